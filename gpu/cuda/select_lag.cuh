/*
 * Private to select.cu: LagKV's score of a lane's slots (EVICT_KEY_LAG). A warp a partition, and none waits for another: the ranges of the partition
 * behind it, its rows' deviations within them, its softmax, its places. Half a warp a row.
 */
#ifndef GPU_CUDA_SELECT_LAG_CUH
#define GPU_CUDA_SELECT_LAG_CUH

#include "gpu/cuda/select_staged.cuh"

/* A partition's numbers: [lag] each. */
struct lag_numbers {
	float *k, *v;		/* deviations */
	float *value;
};

/* f(i, channels of a thread) for row i of the partition at order[], by half a warp. */
template <uint32_t J, bool EXACT, typename F>
static __device__ __forceinline__ void lag_rows(const struct row_reader &rows, const uint32_t *order, uint32_t lag, const F &f)
{
	rows_each<J, EXACT>(rows, threadIdx.x / ROW_THREADS % 2u, 2, lag, [&](uint32_t i) { return order[i]; }, f);
}

/* Deviations of the rows of the partition at order[], K's or V's, within the ranges of the one behind it. */
template <uint32_t J, bool EXACT>
static __device__ __forceinline__ void lag_deviations(const struct row_reader &rows, const uint32_t *order, uint32_t lag, float *deviation)
{
	const float far = __int_as_float(0x7f800000);
	const uint32_t d = rows.d;
	float least[J], most[J];

#pragma unroll
	for (uint32_t j = 0; j < J; j++) {
		least[j] = far;
		most[j] = -far;
	}
	lag_rows<J, EXACT>(rows, order + lag, lag, [&](uint32_t, float (&r)[J]) {		/* no NaN is left in them */
#pragma unroll
		for (uint32_t j = 0; j < J; j++) {
			least[j] = fminf(least[j], r[j]);
			most[j] = fmaxf(most[j], r[j]);
		}
	});
	__syncwarp();
#pragma unroll
	for (uint32_t j = 0; j < J; j++) {
		least[j] = fminf(least[j], __shfl_xor_sync(0xffffffffu, least[j], 16));
		most[j] = fmaxf(most[j], __shfl_xor_sync(0xffffffffu, most[j], 16));
		most[j] = evict_lag_inverse(least[j], most[j]);
	}
	lag_rows<J, EXACT>(rows, order, lag, [&](uint32_t i, float (&r)[J]) {
		float sum = 0.0f;

#pragma unroll
		for (uint32_t j = 0; j < J; j++) {
			r[j] = evict_lag_scale(r[j], least[j], most[j]);
			sum += r[j];
		}
		sum = row_halves(sum) / (float)d;
#pragma unroll
		for (uint32_t j = 0; j < J; j++)
			r[j] = EXACT || j * ROW_THREADS < d ? r[j] - sum : 0.0f;
		sum = evict_sqrt(rows_dot(r, r) / (float)(d > 1u ? d - 1u : 1u));
		if (row_thread() == 0)
			deviation[i] = sum;
	});
	__syncwarp();
}

/* value[]: the softmaxes of both sides' deviations, added. The sums go in the order of positions: a thread each. */
static __device__ __forceinline__ void lag_values(const struct lag_numbers &s, uint32_t lag)
{
	const uint32_t thread = threadIdx.x % 32u;
	float all = 0.0f, k, v;

#pragma unroll
	for (uint32_t side = 0; side < 2; side++) {
		float *deviation = side ? s.v : s.k, most = 0.0f;

		for (uint32_t i = thread; i < lag; i += 32u)
			most = evict_max(most, deviation[i]);
		for (int gap = 16; gap; gap >>= 1)
			most = evict_max(most, __shfl_xor_sync(0xffffffffu, most, gap));
		for (uint32_t i = thread; i < lag; i += 32u)
			deviation[i] = evict_exp(deviation[i] - most);
	}
	__syncwarp();
	if (thread < 2u) {
		const float *from = thread ? s.v : s.k;

#pragma unroll 8
		for (uint32_t i = 0; i < lag; i++)
			all += from[i];
	}
	__syncwarp();
	k = __shfl_sync(0xffffffffu, all, 0);
	v = __shfl_sync(0xffffffffu, all, 1);
	for (uint32_t i = thread; i < lag; i += 32u)
		s.value[i] = s.k[i] / k + s.v[i] / v;
	__syncwarp();
}

/* The slots' places in their partition. */
static __device__ __forceinline__ void lag_places(const struct lane_ctx &x, const float *value, const uint32_t *order, uint32_t lag, uint32_t trait)
{
	for (uint32_t i = threadIdx.x % 32u; i < lag; i += 32u) {
		const float own = value[i];
		uint32_t below = 0;

#pragma unroll 8
		for (uint32_t j = 0; j < lag; j++)
			below += value[j] < own || (value[j] == own && j < i);
		put_trait(x, order[i], trait, (float)below / (float)lag);
	}
}

/* n partitions of slots in the order of positions, and one behind them. */
template <uint32_t J, bool EXACT>
static __device__ __noinline__ void lag_partitions(const struct lane_ctx &x, const struct lane_stage &st, uint32_t first, uint32_t n, uint32_t lag,
						   uint32_t trait)
{
	for (uint32_t p = threadIdx.x / 32u; p < n; p += WARPS) {
		const uint32_t at = first + p * lag;
		const struct lag_numbers s = { st.weight + at, st.pooled + at, st.value + at };

#pragma unroll 1
		for (uint32_t side = 0; side < 2; side++)
			lag_deviations<J, EXACT>(rows_at(x, st, side), st.order + at, lag, side ? s.v : s.k);
		lag_values(s, lag);
		lag_places(x, s.value, st.order + at, lag, trait);
	}
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
	if (n - sinks >= 2u * lag)
		ROWS_OF(x.turn.head_dim, lag_partitions, x, st, sinks, (n - sinks) / lag - 1u, lag, trait);
}

#endif
