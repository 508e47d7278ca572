/*
 * Private to select.cu: merges (evict/merge.h): victims of one lane go into its survivors before they are overwritten or removed. A CTA a lane,
 * half a warp a row; the same sums in the same order as gpu/host/k_merge.h. Rows of victims are only read, those of survivors have one writer.
 */
#ifndef GPU_CUDA_SELECT_MERGE_CUH
#define GPU_CUDA_SELECT_MERGE_CUH

#include "gpu/cuda/select_trait.cuh"

#define NO_TARGET 0xffffffffu

/* The lane at hand. Per victim, st.target[]: where to (by key: the survivor; cam: the first successor's place in st.order[]), and st.weight[]. */
struct merging {
	const struct lane_ctx &x;
	const struct lane_stage &st;
	const uint32_t *victim;		/* slots, in the order of leaving */
	uint32_t n_victims;
	uint32_t live;			/* slots 0 .. live-1 are there */
};

/* --- targets --------------------------------------------------------------------------------------------------------------------- */

/* Unit keys of slots 0 .. n-1 into st.unit[]. */
static __device__ void unit_keys(const struct lane_ctx &x, const struct lane_stage &st, uint32_t n)
{
	const uint32_t d = x.turn.head_dim;

	for (uint32_t i = threadIdx.x / ROW_THREADS; i < n; i += ROWS_AT_ONCE) {
		struct row u = row_load(x, i, 0);

		row_unit(&u, d);
		row_put(st.unit + (size_t)i * d, u, d);
	}
	__syncthreads();
}

static __device__ void nearest_survivors(const struct merging &m)
{
	const uint32_t d = m.x.turn.head_dim;

	for (uint32_t i = threadIdx.x / ROW_THREADS; i < m.n_victims; i += ROWS_AT_ONCE) {
		const struct row u = row_get(m.st.unit + (size_t)m.victim[i] * d, d);
		uint32_t best = NO_TARGET;
		float most = 0.0f;

		for (uint32_t k = 0; k < m.live; k++) {
			float cosine;

			if (m.st.leaves[k])
				continue;
			cosine = row_dot(u, row_get(m.st.unit + (size_t)k * d, d), d);
			if (best != NO_TARGET && (cosine < most || (cosine == most && pos_of(m.x, k) > pos_of(m.x, best))))
				continue;
			best = k;
			most = cosine;
		}
		if (row_thread() == 0) {
			m.st.target[i] = best;
			m.st.weight[i] = most;
		}
	}
	__syncthreads();
}

/* Those that are not similar enough go nowhere; cosines become weights. */
static __device__ void weigh_by_key(const struct merging &m)
{
	const struct evict_rule *rule = &m.x.turn.rule;
	float least = rule->merge_param[EVICT_PIVOT_THRESHOLD], sum = 0.0f;

	for (uint32_t i = 0; i < m.n_victims; i++)	/* every thread the same */
		sum += m.st.weight[i];
	if (rule->merge == EVICT_MERGE_d2o)
		least = sum / (float)m.n_victims;
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < m.n_victims; i += THREADS) {
		if (m.st.weight[i] < least)
			m.st.target[i] = NO_TARGET;
		m.st.weight[i] = rule->merge == EVICT_MERGE_d2o ? evict_d2o_weight(m.st.weight[i]) : 0.5f;
	}
	__syncthreads();
}

/* The survivors in the order of positions: st.order[]; and for each victim the place of the first behind it. Returns how many survive. */
static __device__ uint32_t successors(const struct merging &m, struct shared_state *sh)
{
	const struct lane_stage &st = m.st;
	uint32_t n = 0;

	by_position(m.x, sh, st, m.live);
	for (uint32_t first = 0; first < m.live; first += THREADS) {
		const bool there = first + threadIdx.x < m.live;
		const uint32_t slot = there ? st.order[first + threadIdx.x] : 0u, stays = there && !st.leaves[slot];
		uint32_t total, before = block_scan(sh, stays, &total);

		if (stays)	/* at or before where this round has read */
			st.order[n + before] = slot;
		else if (there)
			st.place[slot] = n + before;
		n += total;
	}
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < m.n_victims; i += THREADS)
		st.target[i] = st.place[m.victim[i]];
	__syncthreads();
	return n;
}

/* Who is merged is drawn by lot. */
static __device__ void draw_cam(const struct merging &m, uint32_t survivors, uint32_t budget)
{
	const struct lane_ctx &x = m.x;

	for (uint32_t i = threadIdx.x; i < m.n_victims; i += THREADS) {
		uint32_t first = m.st.target[i], end = survivors - first < budget ? survivors : first + budget;
		uint32_t draw = evict_draw(~x.turn.rule.seed, x.as_lane.lane, x.as_lane.now, pos_of(x, m.victim[i]));
		float sum = 0.0f;

		if (first == end) {
			m.st.target[i] = NO_TARGET;
			continue;
		}
		if (!x.n_credit)
			continue;
		for (uint32_t j = first; j < end; j++)
			sum += first_credit(x, m.st.order[j]);
		if (!evict_cam_merges(first_credit(x, m.victim[i]), sum / (float)(end - first), evict_uniform(draw)))
			m.st.target[i] = NO_TARGET;
	}
	__syncthreads();
}

/* --- rows --------------------------------------------------------------------------------------------------------------------------- */

/*
 * Of victims first .. first + 15: which go to `target`, within `reach` of their own, as bits. Half a warp, all of its threads; the same
 * in each.
 */
static __device__ __forceinline__ uint32_t victims_of(const struct merging &m, uint32_t first, uint32_t target, uint32_t reach)
{
	const uint32_t i = first + row_thread(), t = i < m.n_victims ? m.st.target[i] : NO_TARGET;

	return __ballot_sync(row_mask(), t != NO_TARGET && t <= target && target - t < reach) >> (threadIdx.x & 16u) & 0xffffu;
}

/* One half (0 K, 1 V) of survivor k with its victims, of which it has some. */
static __device__ void merge_by_key(const struct merging &m, uint32_t k, uint32_t which)
{
	const bool by_weight = m.x.turn.rule.merge == EVICT_MERGE_d2o;
	const struct row own = row_load(m.x, k, which);
	float total = by_weight ? evict_d2o_weight(1.0f) : 1.0f;
	struct row to = own;

#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		to.x[j] = by_weight ? total * own.x[j] : own.x[j];
	for (uint32_t first = 0; first < m.n_victims; first += ROW_THREADS)
		for (uint32_t left = victims_of(m, first, k, 1u); left; left &= left - 1u) {
			const uint32_t i = first + __ffs((int)left) - 1u;
			const struct row x = row_load(m.x, m.victim[i], which);
			const float weight = m.st.weight[i];

#pragma unroll
			for (uint32_t j = 0; j < ROW_MOST; j++)
				to.x[j] += weight * (by_weight ? x.x[j] : x.x[j] + own.x[j]);
			total += by_weight ? weight : 1.0f;
		}
#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		to.x[j] /= total;
	row_store(m.x, k, which, to);
}

static __device__ void merge_cam(const struct merging &m, uint32_t place, uint32_t budget)
{
	const uint32_t k = m.st.order[place];
	struct row to = row_load(m.x, k, 1);

	for (uint32_t first = 0; first < m.n_victims; first += ROW_THREADS)
		for (uint32_t left = victims_of(m, first, place, budget); left; left &= left - 1u) {
			const struct row x = row_load(m.x, m.victim[first + __ffs((int)left) - 1u], 1);

#pragma unroll
			for (uint32_t j = 0; j < ROW_MOST; j++)
				to.x[j] += x.x[j] / (float)budget;
		}
	row_store(m.x, k, 1, to);
}

static __device__ bool has_victims(const struct merging &m, uint32_t target, uint32_t reach)
{
	for (uint32_t first = 0; first < m.n_victims; first += ROW_THREADS)
		if (victims_of(m, first, target, reach))
			return true;
	return false;
}

/* Slots 0 .. live-1 are there, the victims among them leave. victim: not in shared memory. */
static __device__ __noinline__ void merge_victims(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st,
						  const uint32_t *victim, uint32_t n, uint32_t live)
{
	const struct merging m = { x, st, victim, n, live };
	const bool by_key = evict_merge_by_key(x.turn.rule.merge);
	uint32_t budget = by_key ? 1u : (uint32_t)x.turn.rule.merge_param[EVICT_CAM_BUDGET], places = live;

	if (!n || n == live)
		return;
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < live; i += THREADS)
		st.leaves[i] = 0;
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		st.leaves[victim[i]] = 1;
	__syncthreads();
	if (by_key) {
		unit_keys(x, st, live);
		nearest_survivors(m);
		weigh_by_key(m);
	} else {
		places = successors(m, sh);
		draw_cam(m, places, budget);
	}
	for (uint32_t at = threadIdx.x / ROW_THREADS; at < places; at += ROWS_AT_ONCE) {
		if (!has_victims(m, at, budget))
			continue;
		if (by_key) {
			merge_by_key(m, at, 0);
			merge_by_key(m, at, 1);
		} else {
			merge_cam(m, at, budget);
		}
		__syncwarp(row_mask());
		if (evict_n_trait_once(&x.turn.rule)) {
			const struct row_first none = {};

			row_traits(x, by_key ? at : st.order[at], none);
		}
	}
	__syncthreads();
}

#endif
