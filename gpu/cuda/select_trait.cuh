/*
 * Private to select.cu: traits of the lane as a whole (evict/trait.h), when it is folded. A CTA a lane, half a warp a row; the same sums in the
 * same order as gpu/host/k_trait.h.
 */
#ifndef GPU_CUDA_SELECT_TRAIT_CUH
#define GPU_CUDA_SELECT_TRAIT_CUH

#include "gpu/cuda/select_staged.cuh"

static __device__ __forceinline__ void put_trait(const struct lane_ctx &x, uint32_t slot, uint32_t trait, float value)
{
	char *c = credit_block(x, slot);

	if (c)
		*array_in(c, x.n_credit + trait, slot) = value;
}

/* Unit keys of slots 0 .. n-1 into st.unit[], and their sum into st.row[0 .. d-1]. */
static __device__ __noinline__ void unit_keys(const struct lane_ctx &x, const struct lane_stage &st, uint32_t n)
{
	const uint32_t d = x.turn.head_dim;

	for (uint32_t i = threadIdx.x / ROW_THREADS; i < n; i += ROWS_AT_ONCE) {
		struct row u = row_load(x, i, 0);

		row_unit(&u, d);
		row_put(st.unit + (size_t)i * d, u, d);
	}
	__syncthreads();
	for (uint32_t e = threadIdx.x; e < GPU_PAGE_SLOTS * d; e += THREADS) {
		float sum = 0.0f;

		for (uint32_t i = e / d; i < n; i += GPU_PAGE_SLOTS)
			sum += st.unit[(size_t)i * d + e % d];
		st.row[e] = sum;
	}
	__syncthreads();
	for (uint32_t gap = GPU_PAGE_SLOTS / 2; gap; gap /= 2) {
		for (uint32_t e = threadIdx.x; e < gap * d; e += THREADS)
			st.row[e] += st.row[e + gap * d];
		__syncthreads();
	}
}

static __device__ void key_cosine(const struct lane_ctx &x, const struct lane_stage &st, uint32_t trait)
{
	const uint32_t d = x.turn.head_dim;
	struct row sum;
	float norm;

	unit_keys(x, st, x.live);
	sum = row_get(st.row, d);
	norm = row_norm(sum, d);
	for (uint32_t i = threadIdx.x / ROW_THREADS; i < x.live; i += ROWS_AT_ONCE) {
		float cosine = norm > 0.0f ? row_dot(row_get(st.unit + (size_t)i * d, d), sum, d) / norm : 0.0f;

		if (row_thread() == 0)
			put_trait(x, i, trait, cosine);
	}
	__syncthreads();
}

#define ALIKE 0.5f	/* R-KV's threshold */

/* For every slot the one that is not counted for it (itself: none) and its cosine: st.target[], st.weight[]. Newest first: alike keys are near. */
static __device__ void uncounted(const struct lane_ctx &x, const struct lane_stage &st)
{
	const uint32_t d = x.turn.head_dim;

	for (uint32_t i = threadIdx.x / ROW_THREADS; i < x.live; i += ROWS_AT_ONCE) {
		const struct row u = row_get(st.unit + (size_t)i * d, d);
		uint32_t j = i;
		float cosine = 0.0f;

		for (uint32_t at = x.live; at-- > 0;) {
			j = st.order[at];
			cosine = row_dot(u, row_get(st.unit + (size_t)j * d, d), d);
			if (j != i && cosine > ALIKE)
				break;
		}
		if (row_thread() == 0) {
			st.target[i] = j;
			st.weight[i] = cosine;
		}
	}
	__syncthreads();
}

static __device__ void key_redundancy(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st, uint32_t trait)
{
	const uint32_t d = x.turn.head_dim, n = x.live;
	struct row sum;

	unit_keys(x, st, n);
	by_position(x, sh, st, n);
	uncounted(x, st);
	for (uint32_t j = threadIdx.x; j < n; j += THREADS) {
		float lost = 0.0f;

		for (uint32_t i = 0; i < n; i++)
			if (st.target[i] == j && i != j)
				lost += st.weight[i];
		st.value[j] = lost;
	}
	__syncthreads();
	sum = row_get(st.row, d);
	for (uint32_t i = threadIdx.x / ROW_THREADS; i < n; i += ROWS_AT_ONCE) {
		const struct row u = row_get(st.unit + (size_t)i * d, d);
		const float all = row_dot(u, sum, d), own = row_dot(u, u, d);

		if (row_thread() == 0)
			put_trait(x, i, trait, (all - own - st.value[i]) / (float)n);
	}
	__syncthreads();
}

/* Least and largest of each channel over `lag` rows: st.row[0 .. d-1] and [d .. 2d-1]. */
static __device__ void lag_range(const struct lane_ctx &x, const struct lane_stage &st, const uint32_t *order, uint32_t lag, uint32_t which)
{
	const uint32_t d = x.turn.head_dim;
	struct row min = {}, max = {};

	if (threadIdx.x < ROW_THREADS) {
		for (uint32_t i = 0; i < lag; i++) {
			struct row r = row_load(x, order[i], which);

#pragma unroll
			for (uint32_t j = 0; j < ROW_MOST; j++) {
				min.x[j] = i && min.x[j] < r.x[j] ? min.x[j] : r.x[j];
				max.x[j] = i && max.x[j] > r.x[j] ? max.x[j] : r.x[j];
			}
		}
		row_put(st.row, min, d);
		row_put(st.row + d, max, d);
	}
	__syncthreads();
}

/* Deviations of the rows of one partition, scaled by the next one's range; softmaxed and added to st.value[0 .. lag-1]. */
static __device__ void lag_side(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st, const uint32_t *order, uint32_t lag,
				uint32_t which)
{
	const uint32_t d = x.turn.head_dim;
	float *deviation = st.weight, most = 0.0f, sum = 0.0f;

	lag_range(x, st, order + lag, lag, which);
	for (uint32_t i = threadIdx.x / ROW_THREADS; i < lag; i += ROWS_AT_ONCE) {
		struct row r = row_load(x, order[i], which), min = row_get(st.row, d), max = row_get(st.row + d, d);
		float mean, dev;

#pragma unroll
		for (uint32_t j = 0; j < ROW_MOST; j++)
			r.x[j] = evict_lag_scale(r.x[j], min.x[j], max.x[j]);
		mean = row_sum(r, d, false) / (float)d;
#pragma unroll
		for (uint32_t j = 0; j < ROW_MOST; j++)
			r.x[j] -= mean;
		dev = evict_sqrt(row_dot(r, r, d) / (float)(d > 1u ? d - 1u : 1u));
		if (row_thread() == 0)
			deviation[i] = dev;
	}
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < lag; i += THREADS)
		most = evict_max(most, deviation[i]);
	most = block_most(sh, most);
	for (uint32_t i = threadIdx.x; i < lag; i += THREADS)
		deviation[i] = evict_exp(deviation[i] - most);
	__syncthreads();
	for (uint32_t i = 0; i < lag; i++)	/* every thread the same */
		sum += deviation[i];
	for (uint32_t i = threadIdx.x; i < lag; i += THREADS)
		st.value[i] += deviation[i] / sum;
	__syncthreads();
}

static __device__ void key_lag(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st, uint32_t trait)
{
	const uint32_t n = x.live, lag = x.turn.rule.lag ? x.turn.rule.lag : 1u;
	uint32_t mine = 0, sinks;

	by_position(x, sh, st, n);
	for (uint32_t i = threadIdx.x; i < n; i += THREADS)	/* they are the first in this order */
		mine += pos_of(x, i) < x.turn.rule.sinks;
	(void)block_scan(sh, mine, &sinks);
	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		put_trait(x, st.order[i], trait, n - sinks < 2u * lag ? (float)i / (float)n : 1.0f);
	__syncthreads();
	for (uint32_t at = sinks; n - at >= 2u * lag; at += lag) {
		for (uint32_t i = threadIdx.x; i < lag; i += THREADS)
			st.value[i] = 0.0f;
		__syncthreads();
		lag_side(x, sh, st, st.order + at, lag, 0);
		lag_side(x, sh, st, st.order + at, lag, 1);
		for (uint32_t i = threadIdx.x; i < lag; i += THREADS) {
			uint32_t below = 0;

			for (uint32_t j = 0; j < lag; j++)
				below += st.value[j] < st.value[i] || (st.value[j] == st.value[i] && j < i);
			put_trait(x, st.order[at + i], trait, (float)below / (float)lag);
		}
		__syncthreads();
	}
}

static __device__ __noinline__ void lane_traits(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st)
{
	const struct evict_rule *rule = &x.turn.rule;

	__syncthreads();
	for (uint32_t i = 0; i < evict_n_trait(rule->policy) && x.live; i++)
		switch (rule->trait[i]) {
		case EVICT_KEY_COSINE: key_cosine(x, st, i); break;
		case EVICT_KEY_REDUNDANCY: key_redundancy(x, sh, st, i); break;
		case EVICT_KEY_LAG: key_lag(x, sh, st, i); break;
		default: break;
		}
}

#endif
