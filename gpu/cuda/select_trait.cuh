/*
 * Private to select.cu: traits of the lane as a whole (evict/trait.h), when it is folded. A CTA a lane, half a warp a row; the same sums in the
 * same order as gpu/host/k_trait.h.
 */
#ifndef GPU_CUDA_SELECT_TRAIT_CUH
#define GPU_CUDA_SELECT_TRAIT_CUH

#include "gpu/cuda/select_alike.cuh"
#include "gpu/cuda/select_lag.cuh"

/* Channels' 16 partial sums in st.row[16][d] become their sums: st.row[0 .. d-1]. */
static __device__ void add_parts(const struct lane_stage &st, uint32_t d)
{
	for (uint32_t gap = GPU_PAGE_SLOTS / 2; gap; gap /= 2) {
		for (uint32_t e = threadIdx.x; e < gap * d; e += THREADS)
			st.row[e] += st.row[e + gap * d];
		__syncthreads();
	}
}

/* f(slot, its key) for all slots of the lane; half a warp has the rows of one place of their pages. */
template <uint32_t J, bool EXACT, typename F>
static __device__ __forceinline__ void keys_each(const struct lane_ctx &x, const struct lane_stage &st, const F &f)
{
	static_assert(ROWS_AT_ONCE == GPU_PAGE_SLOTS, "half a warp a partial sum");
	rows_each<J, EXACT>(rows_at(x, st, 0), threadIdx.x / ROW_THREADS, ROWS_AT_ONCE, x.live, [](uint32_t i) { return i; }, f);
}

/*
 * The sum of the lane's unit keys into st.row[0 .. d-1], and what each key is multiplied with to be one long into st.pooled[]. half: where
 * rows go as float16, by slot, or NULL. Returns whether a row is then longer than LONGEST, to the thread that saw it. Half a warp has the
 * rows of one place of their pages, which is one of the 16 partial sums.
 */
template <uint32_t J, bool EXACT>
static __device__ __forceinline__ bool unit_sum(const struct lane_ctx &x, const struct lane_stage &st, __half *half)
{
	const uint32_t d = x.turn.head_dim, part = threadIdx.x / ROW_THREADS;
	float sum[J] = {};
	bool odd = false;

	keys_each<J, EXACT>(x, st, [&](uint32_t slot, float (&r)[J]) {
		const float norm = evict_sqrt(rows_dot(r, r)), inverse = norm > 0.0f ? 1.0f / norm : 0.0f;

#pragma unroll
		for (uint32_t j = 0; j < J; j++) {
			r[j] *= inverse;
			sum[j] += r[j];
		}
		if (half)
			odd = odd || !(rows_dot(r, r) <= LONGEST);
		if (row_thread() == 0)
			st.pooled[slot] = inverse;
#pragma unroll
		for (uint32_t j = 0; j < J; j++)
			if (half && j * ROW_THREADS < d)
				half[(size_t)slot * d + row_thread() + j * ROW_THREADS] = __float2half_rn(r[j]);
	});
#pragma unroll
	for (uint32_t j = 0; j < J; j++)
		if (j * ROW_THREADS < d)
			st.row[part * d + row_thread() + j * ROW_THREADS] = sum[j];
	__syncthreads();
	add_parts(st, d);
	return odd;
}

/* What is asked of every slot's unit key u: its product with the sum of all, and, if `own`, with itself. */
template <uint32_t J, bool EXACT, typename F>
static __device__ __forceinline__ void with_sum(const struct lane_ctx &x, const struct lane_stage &st, bool own, const F &put)
{
	const uint32_t d = x.turn.head_dim;
	float sum[J], norm;

#pragma unroll
	for (uint32_t j = 0; j < J; j++)
		sum[j] = j * ROW_THREADS < d ? st.row[row_thread() + j * ROW_THREADS] : 0.0f;
	norm = evict_sqrt(rows_dot(sum, sum));
	keys_each<J, EXACT>(x, st, [&](uint32_t slot, float (&r)[J]) {
		const float inverse = st.pooled[slot];
		float all, self;

#pragma unroll
		for (uint32_t j = 0; j < J; j++)
			r[j] *= inverse;
		all = rows_dot(r, sum);
		self = own ? rows_dot(r, r) : 0.0f;
		if (row_thread() == 0)
			put(slot, all, self, norm);
	});
	__syncthreads();
}

template <uint32_t J, bool EXACT>
static __device__ __noinline__ void key_cosine(const struct lane_ctx &x, const struct lane_stage &st, uint32_t trait)
{
	(void)unit_sum<J, EXACT>(x, st, NULL);
	with_sum<J, EXACT>(x, st, false, [&](uint32_t slot, float all, float, float norm) {
		put_trait(x, slot, trait, norm > 0.0f ? all / norm : 0.0f);
	});
}

/*
 * st.value[]: the sum of the weights of those whose target a slot is, itself not counted, in the order of slots: they are sorted by their
 * targets, and a thread adds up what lies together.
 */
static __device__ __noinline__ void lost_weights(struct shared_state *sh, const struct lane_stage &st, uint32_t n)
{
	const uint64_t *sorted;
	float *weight;

	for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
		st.key[i] = (uint64_t)st.target[i] << 32 | i;
		st.place[i] = st.gone[i] = 0;
	}
	sorted = sort_keys(sh, st.key, n, n - 1u);
	weight = (float *)(sorted == st.key ? st.key + n : st.key);
	for (uint32_t p = threadIdx.x; p < n; p += THREADS) {
		const uint32_t target = (uint32_t)(sorted[p] >> 32), i = (uint32_t)sorted[p];

		weight[p] = i == target ? 0.0f : st.weight[i];
		if (p == 0 || (uint32_t)(sorted[p - 1u] >> 32) != target)
			st.place[target] = p;
		if (p + 1u == n || (uint32_t)(sorted[p + 1u] >> 32) != target)
			st.gone[target] = p + 1u;
	}
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
		const uint32_t end = st.gone[i];
		float lost = 0.0f;

#pragma unroll 8
		for (uint32_t p = st.place[i]; p < end; p++)
			lost += weight[p];
		st.value[i] = lost;
	}
	__syncthreads();
}

template <uint32_t J, bool EXACT>
static __device__ __noinline__ void key_redundancy(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st,
						   uint32_t trait)
{
	const bool odd = unit_sum<J, EXACT>(x, st, (__half *)st.unit);

	by_position(x, sh, st, x.live);
	uncounted<J, EXACT>(x, sh, st, (const __half *)st.unit, st.pooled, __syncthreads_or(odd) != 0);
	lost_weights(sh, st, x.live);
	with_sum<J, EXACT>(x, st, true, [&](uint32_t slot, float all, float self, float) {
		put_trait(x, slot, trait, (all - self - st.value[slot]) / (float)x.live);
	});
}

static __device__ __noinline__ void lane_traits(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st)
{
	const struct evict_rule *rule = &x.turn.rule;
	const uint32_t d = x.turn.head_dim;

	if (evict_n_trait(rule->policy) == x.turn.n_once)
		return;
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < gpu_pages_for(x.live); i += THREADS)
		st.page[i] = cuda_at(x.view, x.page[i]);
	for (uint32_t i = threadIdx.x; i < d; i += THREADS)
		st.none[i] = 0.0f;
	__syncthreads();
	for (uint32_t i = 0; i < evict_n_trait(rule->policy) && x.live; i++)
		switch (rule->trait[i]) {
		case EVICT_KEY_COSINE: ROWS_OF(d, key_cosine, x, st, i); break;
		case EVICT_KEY_REDUNDANCY: ROWS_OF(d, key_redundancy, x, sh, st, i); break;
		case EVICT_KEY_LAG: key_lag(x, sh, st, i); break;
		default: break;
		}
}

#endif
