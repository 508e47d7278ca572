/*
 * Private to select.cu: what a policy must know of the whole lane before a slot can be ranked (evict/rule.h: staged policies): figures, values
 * pooled over neighbours, places, the cut. A CTA a lane; the same numbers in the same order as gpu/host/k_policy.h, so the same bits.
 * Scratch of a CTA lies in device memory (struct lane_stage).
 */
#ifndef GPU_CUDA_SELECT_STAGED_CUH
#define GPU_CUDA_SELECT_STAGED_CUH

#include "gpu/cuda/select_rows.cuh"

/* Scratch of one CTA for the lane at hand; n: slots, whole blocks. */
struct lane_stage {
	uint64_t *key;			/* [2 n] */
	uint32_t *order;		/* [n]: slots in the order of their positions */
	uint32_t *place, *target, *gone;	/* [n] */
	float *value, *pooled, *weight;	/* [n] */
	float *row, *none;		/* [16][d], [d]: none is zeros, while traits are computed */
	union {
		uint8_t *leaves;	/* [n]: in a merge */
		const char **page;	/* addresses of the lane's pages, which take half as much: for its traits */
	};
	float *unit;			/* [n][d]: unit keys; for redundancy float16 */
	char *ring;			/* shared memory, where keys will be: ROWS_RING */
};

/* channel: bytes of a channel in unit[]. */
static __host__ __device__ inline size_t stage_bytes(uint32_t n, uint32_t d, uint32_t channel)
{
	return (size_t)n * (2u * 8u + 7u * 4u + 1u) + (size_t)d * 68u + (size_t)n * d * channel;
}

static __device__ __forceinline__ struct lane_stage stage_at(struct shared_state *sh, char *at, uint32_t n, uint32_t d)
{
	struct lane_stage st;

	static_assert(ROWS_RING <= sizeof(sh->key) + sizeof(sh->sorted), "rows lie where keys will be");
	st.ring = (char *)sh->key;
	st.key = (uint64_t *)at;
	st.order = (uint32_t *)(st.key + 2u * (size_t)n);
	st.place = st.order + n;
	st.target = st.place + n;
	st.gone = st.target + n;
	st.value = (float *)(st.gone + n);
	st.pooled = st.value + n;
	st.weight = st.pooled + n;
	st.row = st.weight + n;
	st.none = st.row + 16u * d;
	st.leaves = (uint8_t *)(st.none + d);
	st.unit = (float *)(st.leaves + n);	/* not there if no lane needs it */
	return st;
}

/* The lane's rows of K (which: 0) or V. */
static __device__ __forceinline__ struct row_reader rows_at(const struct lane_ctx &x, const struct lane_stage &st, uint32_t which)
{
	const uint32_t type = x.turn.slot_type, d = x.turn.head_dim;
	const struct row_reader r = { st.page, (const char *)st.none, st.ring + threadIdx.x / ROW_THREADS * ROWS_HALF, x.live, type, d,
				      gpu_row_bytes(type, d), which * gpu_page_v(type, d),
				      gpu_page_params(type, d) + which * GPU_PAGE_SLOTS * 4u };

	return r;
}

/* --- sums over the lane -------------------------------------------------------------------------------------------------------- */

/* evict_places(): thread i has the partial sum of place i. */
static __device__ float block_places(struct shared_state *sh, float mine)
{
	float *part = (float *)sh->bin, sum;

	__syncthreads();
	part[threadIdx.x] = mine;
	__syncthreads();
	for (uint32_t gap = EVICT_PLACES / 2; gap; gap /= 2) {
		if (threadIdx.x < gap)
			part[threadIdx.x] += part[threadIdx.x + gap];
		__syncthreads();
	}
	sum = part[0];
	__syncthreads();
	return sum;
}

/*
 * The largest, at least 0, asked in the order of threads: NaN has the same say as on the host, and of equal ones (zeros of either sign) the last
 * is left.
 */
static __device__ float block_most(struct shared_state *sh, float mine)
{
	float *part = (float *)sh->bin, most = 0.0f;
	uint32_t n = WARPS, step = 32u;

	if (__syncthreads_or(mine != mine)) {
		n = THREADS;
		step = 1u;
	} else {
#pragma unroll
		for (uint32_t gap = 1; gap < 32u; gap *= 2)
			mine = evict_max(mine, __shfl_down_sync(0xffffffffu, mine, gap));
	}
	part[threadIdx.x] = mine;
	__syncthreads();
	for (uint32_t i = 0; i < n; i++)
		most = evict_max(most, part[i * step]);
	__syncthreads();
	return most;
}

static __device__ __forceinline__ void put_trait(const struct lane_ctx &x, uint32_t slot, uint32_t trait, float value)
{
	char *c = credit_block(x, slot);

	if (c)
		*array_in(c, x.n_credit + trait, slot) = value;
}

enum lane_value { VALUE_HEAT_FIGURE, VALUE_FIGURE, VALUE_POOL, VALUE_WORTH };

static __device__ __noinline__ float value_of(const struct lane_ctx &x, uint32_t slot, enum lane_value which)
{
	char *c = credit_block(x, slot), *h = which == VALUE_HEAT_FIGURE ? heat_block(x, slot) : NULL;
	struct evict_slot e = {};

	if (!c)
		return 0.0f;
	e.pos = *pos_in(c, slot);
	load_credit(x, c, slot, &e);
	for (uint32_t k = 0; k < EVICT_MAX_HEAT; k++)
		e.heat[k] = h && k < x.n_heat ? evict_clean(*array_in(h, k, slot)) : 0.0f;
	switch (which) {
	case VALUE_HEAT_FIGURE: return evict_heat_figure(&x.turn.rule, &x.as_lane, &e);
	case VALUE_FIGURE: return evict_figure(&x.turn.rule, &x.as_lane, &e);
	case VALUE_POOL: return evict_pool(&x.turn.rule, &x.as_lane, &e);
	default: return evict_worth(&x.turn.rule, &x.as_lane, &e);
	}
}

/* Values of slots 0 .. n-1 into st.value[], and their sum and maximum. */
static __device__ struct evict_figures lane_values(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st, uint32_t n,
						   enum lane_value which)
{
	float part = 0.0f, most = 0.0f;
	struct evict_figures f;

	for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
		float v = value_of(x, i, which);

		st.value[i] = v;
		part += v;
		most = evict_max(most, v);
	}
	f.sum = block_places(sh, part);
	f.max = block_most(sh, most);
	return f;
}

/* --- orders --------------------------------------------------------------------------------------------------------------------- */

/* One byte's pass of sort_keys(). Keys that have the same byte stay as they were. */
static __device__ void sort_pass(struct shared_state *sh, const uint64_t *from, uint64_t *to, uint32_t n, int shift)
{
	uint32_t *count = (uint32_t *)sh->sorted;	/* [WARPS][256] */
	uint32_t thread = threadIdx.x % 32u, warp = threadIdx.x / 32u, total, at;

	__syncthreads();
	sh->bin[threadIdx.x] = 0;
	for (uint32_t w = 0; w < WARPS; w++)
		count[w * 256u + threadIdx.x] = 0;
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		atomicAdd(&sh->bin[from[i] >> shift & 255u], 1u);
	__syncthreads();
	at = block_scan(sh, sh->bin[threadIdx.x], &total);	/* where the keys with byte threadIdx.x begin */
	for (uint32_t first = 0; first < n; first += THREADS) {
		const bool there = first + threadIdx.x < n;
		const uint64_t key = there ? from[first + threadIdx.x] : 0u;
		const uint32_t byte = there ? (uint32_t)(key >> shift) & 255u : 256u;
		const uint32_t same = __match_any_sync(0xffffffffu, byte), rank = __popc(same & ((1u << thread) - 1u));

		if (there && rank == 0)
			count[warp * 256u + byte] = __popc(same);
		__syncthreads();
		for (uint32_t w = 0; w < WARPS; w++) {
			uint32_t here = count[w * 256u + threadIdx.x];

			count[w * 256u + threadIdx.x] = at;
			at += here;
		}
		__syncthreads();
		if (there)
			to[count[warp * 256u + byte] + rank] = key;
		__syncthreads();
		for (uint32_t w = 0; w < WARPS; w++)
			count[w * 256u + threadIdx.x] = 0;
		__syncthreads();
	}
}

/*
 * Sorts key[0 .. n-1] by their upper halves, of which `largest` is the largest; equal ones stay as they were. key has room for 2n. Returns
 * where they are then.
 */
static __device__ uint64_t *sort_keys(struct shared_state *sh, uint64_t *key, uint32_t n, uint32_t largest)
{
	uint64_t *from = key, *to = key + n, *other;

	for (int shift = 32; shift < 64 && (uint64_t)largest >> (shift - 32); shift += 8) {
		sort_pass(sh, from, to, n, shift);
		other = from;
		from = to;
		to = other;
	}
	__syncthreads();
	return from;
}

/* Slots 0 .. n-1 in the order of their positions: st.order[]. */
static __device__ void by_position(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st, uint32_t n)
{
	const uint64_t *sorted;

	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		st.key[i] = (uint64_t)(uint32_t)pos_of(x, i) << 32 | i;
	sorted = sort_keys(sh, st.key, n, (uint32_t)x.as_lane.now);
	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		st.order[i] = (uint32_t)sorted[i];
	__syncthreads();
}

static __device__ __forceinline__ bool may_leave(const struct lane_ctx &x, int32_t pos)
{
	return !evict_tier(&x.turn.rule, x.plan.recent, x.as_lane.now, pos) && !(mark_of(x, pos) & EVICT_MARK_PINNED);
}

/* See evict_worth(). st.value[] -> st.pooled[], both by slot. */
static __device__ void places(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st, uint32_t n)
{
	uint32_t above[2] = { 0, 0 };
	const uint64_t *sorted;

	by_position(x, sh, st, n);
	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		st.key[i] = (uint64_t)evict_order(st.value[st.order[i]]) << 32 | st.order[i];
	sorted = sort_keys(sh, st.key, n, 0xffffffffu);
	for (uint32_t done = 0; done < n; done += THREADS) {	/* from the top */
		const bool there = done + threadIdx.x < n;
		const uint32_t slot = there ? (uint32_t)sorted[n - 1u - done - threadIdx.x] : 0u;
		const int32_t pos = there ? pos_of(x, slot) : 0;
		const uint32_t side = there && evict_mark_tag(mark_of(x, pos)) == x.as_lane.tag, leaves = there && may_leave(x, pos);
		uint32_t total, before = block_scan(sh, leaves << (16u * side), &total);	/* a count in each half */

		if (there)
			st.pooled[slot] = leaves ? (float)(above[side] + (before >> (16u * side) & 0xffffu)) : 0.0f;
		above[0] += total & 0xffffu;
		above[1] += total >> 16;
	}
	__syncthreads();
}

/* See evict_kernel(). st.value[] -> st.pooled[], both by slot; st.order[] is known. */
static __device__ void pool_neighbours(const struct lane_stage &st, uint32_t n, uint32_t kernel, bool mean)
{
	const uint32_t half = kernel / 2u;

	for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
		uint32_t first = i > half ? i - half : 0u, end = n - i > half ? i + half + 1u : n;
		float v = mean ? 0.0f : st.value[st.order[first]];

		for (uint32_t j = first; j < end; j++)
			v = mean ? v + st.value[st.order[j]] : evict_max(v, st.value[st.order[j]]);
		st.pooled[st.order[i]] = mean ? v / (float)kernel : v;
	}
	__syncthreads();
}

/* The k-th smallest (from 1) of key[0 .. n-1]. */
static __device__ uint64_t nth_key(struct shared_state *sh, const uint64_t *key, uint32_t n, uint32_t k)
{
	uint64_t prefix = 0;

	for (int shift = 56; shift >= 0; shift -= 8) {
		uint32_t before, total, mine;

		__syncthreads();
		sh->bin[threadIdx.x] = 0;
		__syncthreads();
		for (uint32_t i = threadIdx.x; i < n; i += THREADS)
			if (shift == 56 || key[i] >> (shift + 8) == prefix)
				atomicAdd(&sh->bin[key[i] >> shift & 255u], 1u);
		__syncthreads();
		mine = sh->bin[threadIdx.x];
		before = block_scan(sh, mine, &total);
		if (before < k && k <= before + mine) {
			sh->found = threadIdx.x;
			sh->below = before;
		}
		__syncthreads();
		prefix = prefix << 8 | sh->found;
		k -= sh->below;
	}
	__syncthreads();
	return prefix;
}

/* The smallest place among the spared. None: beyond every place. */
static __device__ uint64_t lane_cut(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st, uint32_t n)
{
	uint32_t mine = 0, count, spared;

	for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
		const int32_t pos = pos_of(x, i);
		const bool leaves = may_leave(x, pos);

		st.key[i] = leaves ? evict_place(st.value[i], pos) : NO_KEY;
		mine += leaves;
	}
	(void)block_scan(sh, mine, &count);
	spared = evict_n_spared(&x.turn.rule, &x.as_lane, n, count);
	if (!spared)
		return ~0ull;
	return spared >= count ? 0ull : nth_key(sh, st.key, n, count - spared + 1u);
}

/* What must be known of slots 0 .. n-1 before they can be ranked. */
static __device__ __noinline__ void before_ranking(struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st, uint32_t n)
{
	const uint32_t policy = x.turn.rule.policy;

	if (!evict_is_staged(&x.turn.rule))
		return;
	__syncthreads();
	if (evict_has_figure(policy)) {
		const struct evict_figures figures = lane_values(x, sh, st, n, VALUE_FIGURE);
		const uint64_t cut = evict_has_cut(policy) ? lane_cut(x, sh, st, n) : x.as_lane.cut;

		__syncthreads();
		if (threadIdx.x == 0) {
			x.as_lane.rank = figures;
			x.as_lane.cut = cut;
		}
		__syncthreads();
	}
	if (evict_has_pool(policy)) {
		(void)lane_values(x, sh, st, n, VALUE_POOL);
		by_position(x, sh, st, n);
		pool_neighbours(st, n, evict_kernel(&x.turn.rule), evict_pool_mean(&x.turn.rule) != 0);
	}
	if (evict_has_place(policy)) {
		(void)lane_values(x, sh, st, n, VALUE_WORTH);
		places(x, sh, st, n);
	}
	if (threadIdx.x == 0 && (evict_has_pool(policy) || evict_has_place(policy)))
		x.pooled = st.pooled;
	__syncthreads();
}

#endif
