/*
 * Private to select.cu: LagKV's score of a lane's slots (EVICT_KEY_LAG). A partition at a time: the ranges of the one behind it, its rows'
 * deviations within them, its softmax, its places. A CTA a lane, half a warp a row, a few rows of each at once.
 */
#ifndef GPU_CUDA_SELECT_LAG_CUH
#define GPU_CUDA_SELECT_LAG_CUH

#include "gpu/cuda/select_staged.cuh"

#define LAG_SHARED 1024u	/* a partition of so many slots has its numbers in shared memory */

/* Where a CTA's numbers are while a lane is gone through. [side]: of K, of V. */
struct lag_state {
	float *part[2];		/* [WARPS][2][d]: least and largest of the rows that a warp has seen */
	float *least[2], *inverse[2];	/* [d]: evict_lag_scale() */
	float *deviation[2];	/* [lag] */
	float *value;		/* [lag] */
};

static __device__ __forceinline__ struct lag_state lag_state_at(struct shared_state *sh, const struct lane_stage &st, uint32_t d,
								uint32_t lag)
{
	float *part = (float *)sh->key, *shared = (float *)sh->sorted;
	struct lag_state s;

	static_assert(sizeof(sh->key) >= 2u * WARPS * 2u * 256u * 4u, "they lie where keys will be");
	static_assert(sizeof(sh->sorted) >= (4u * 256u + 3u * LAG_SHARED) * 4u, "and these");
	for (uint32_t side = 0; side < 2; side++) {
		s.part[side] = part + side * WARPS * 2u * d;
		s.least[side] = shared + side * 2u * d;
		s.inverse[side] = s.least[side] + d;
	}
	s.deviation[0] = lag <= LAG_SHARED ? shared + 4u * d : st.weight;
	s.deviation[1] = lag <= LAG_SHARED ? s.deviation[0] + lag : st.pooled;
	s.value = lag <= LAG_SHARED ? s.deviation[1] + lag : st.value;
	return s;
}

/* The slots of the partition that begins at order[], from the i-th on; not there beyond its end. */
template <uint32_t N>
static __device__ __forceinline__ void lag_slots(const uint32_t *order, uint32_t i, uint32_t lag, uint32_t (&slot)[N])
{
#pragma unroll
	for (uint32_t k = 0; k < N; k++)
		slot[k] = i + k * ROWS_AT_ONCE < lag ? order[i + k * ROWS_AT_ONCE] : 0xffffffffu;
}

/* Ranges of the channels of K and V over the partition at order[]. */
template <uint32_t J, bool EXACT>
static __device__ __forceinline__ void lag_ranges(const struct lane_ctx &x, const struct lane_stage &st, const struct lag_state &s,
						  const uint32_t *order, uint32_t lag)
{
	constexpr uint32_t N = rows_together(J);
	const float far = __int_as_float(0x7f800000);
	const uint32_t d = x.turn.head_dim, warp = threadIdx.x / 32u;

	for (uint32_t side = 0; side < 2; side++) {
		const struct row_reader rows = rows_at(x, st.page, st.row, side);
		float low[J], high[J];

#pragma unroll
		for (uint32_t j = 0; j < J; j++) {
			low[j] = far;
			high[j] = -far;
		}
		for (uint32_t i = threadIdx.x / ROW_THREADS; i < lag; i += N * ROWS_AT_ONCE) {
			uint32_t slot[N];
			float r[N][J];

			lag_slots(order, i, lag, slot);
			rows_load<EXACT>(rows, slot, r);
#pragma unroll
			for (uint32_t k = 0; k < N; k++)
#pragma unroll
				for (uint32_t j = 0; j < J; j++) {
					low[j] = slot[k] == 0xffffffffu ? low[j] : evict_min(low[j], r[k][j]);
					high[j] = slot[k] == 0xffffffffu ? high[j] : evict_max(high[j], r[k][j]);
				}
		}
		__syncwarp();
#pragma unroll
		for (uint32_t j = 0; j < J; j++) {
			const uint32_t c = row_thread() + j * ROW_THREADS;

			low[j] = evict_min(low[j], __shfl_xor_sync(0xffffffffu, low[j], 16));
			high[j] = evict_max(high[j], __shfl_xor_sync(0xffffffffu, high[j], 16));
			if (c < d && !(threadIdx.x & 16u)) {
				s.part[side][warp * 2u * d + c] = low[j];
				s.part[side][(warp * 2u + 1u) * d + c] = high[j];
			}
		}
	}
	__syncthreads();
	for (uint32_t e = threadIdx.x; e < 2u * d; e += THREADS) {
		const uint32_t side = e >= d, c = side ? e - d : e;
		float low = far, high = -far;

		for (uint32_t w = 0; w < WARPS; w++) {
			low = evict_min(low, s.part[side][w * 2u * d + c]);
			high = evict_max(high, s.part[side][(w * 2u + 1u) * d + c]);
		}
		s.least[side][c] = low;
		s.inverse[side][c] = evict_lag_inverse(low, high);
	}
	__syncthreads();
}

/* Deviations of the partition's rows. */
template <uint32_t J, bool EXACT>
static __device__ __forceinline__ void lag_deviations(const struct lane_ctx &x, const struct lane_stage &st, const struct lag_state &s,
						      const uint32_t *order, uint32_t lag)
{
	constexpr uint32_t N = rows_together(J);
	const uint32_t d = x.turn.head_dim;

	for (uint32_t side = 0; side < 2; side++) {
		const struct row_reader rows = rows_at(x, st.page, st.row, side);
		float least[J], inverse[J];

#pragma unroll
		for (uint32_t j = 0; j < J; j++) {
			const uint32_t c = row_thread() + j * ROW_THREADS;

			least[j] = c < d ? s.least[side][c] : 0.0f;
			inverse[j] = c < d ? s.inverse[side][c] : 0.0f;
		}
		for (uint32_t i = threadIdx.x / ROW_THREADS; i < lag; i += N * ROWS_AT_ONCE) {
			uint32_t slot[N];
			float r[N][J];

			lag_slots(order, i, lag, slot);
			rows_load<EXACT>(rows, slot, r);
#pragma unroll
			for (uint32_t k = 0; k < N; k++) {
				float sum = 0.0f;

#pragma unroll
				for (uint32_t j = 0; j < J; j++) {
					r[k][j] = evict_lag_scale(r[k][j], least[j], inverse[j]);
					sum += r[k][j];
				}
				sum = row_halves(sum) / (float)d;
#pragma unroll
				for (uint32_t j = 0; j < J; j++)
					r[k][j] = j * ROW_THREADS < d ? r[k][j] - sum : 0.0f;
				sum = evict_sqrt(rows_dot(r[k], r[k]) / (float)(d > 1u ? d - 1u : 1u));
				if (slot[k] != 0xffffffffu && row_thread() == 0)
					s.deviation[side][i + k * ROWS_AT_ONCE] = sum;
			}
		}
	}
	__syncthreads();
}

/* s.value[] of the partition: the softmaxes of both sides' deviations, added. The sums go in the order of positions: a thread each. */
static __device__ __noinline__ void lag_values(struct shared_state *sh, const struct lag_state &s, uint32_t lag)
{
	float sum[2];

	for (uint32_t side = 0; side < 2; side++) {
		float most = 0.0f;

		for (uint32_t i = threadIdx.x; i < lag; i += THREADS)
			most = evict_max(most, s.deviation[side][i]);
		most = block_most(sh, most);
		for (uint32_t i = threadIdx.x; i < lag; i += THREADS)
			s.deviation[side][i] = evict_exp(s.deviation[side][i] - most);
	}
	__syncthreads();
	if (threadIdx.x % 32u == 0 && threadIdx.x < 64u) {
		const float *from = s.deviation[threadIdx.x / 32u];
		float all = 0.0f;

#pragma unroll 8
		for (uint32_t i = 0; i < lag; i++)
			all += from[i];
		((float *)sh->sum)[threadIdx.x / 32u] = all;
	}
	__syncthreads();
	for (uint32_t side = 0; side < 2; side++)
		sum[side] = ((const float *)sh->sum)[side];
	for (uint32_t i = threadIdx.x; i < lag; i += THREADS)
		s.value[i] = s.deviation[0][i] / sum[0] + s.deviation[1][i] / sum[1];
	__syncthreads();
}

/* A slot's place in its partition, two threads a slot. */
static __device__ __noinline__ void lag_places(const struct lane_ctx &x, const struct lag_state &s, const uint32_t *order, uint32_t lag,
					       uint32_t trait)
{
	for (uint32_t first = 0; first < lag; first += THREADS / 2u) {
		const uint32_t i = first + threadIdx.x / 2u, half = threadIdx.x % 2u, middle = lag / 2u;
		const float own = i < lag ? s.value[i] : 0.0f;
		uint32_t below = 0;

#pragma unroll 4
		for (uint32_t j = half ? middle : 0u; j < (half ? lag : middle); j++)
			below += s.value[j] < own || (s.value[j] == own && j < i);
		__syncwarp();
		below += __shfl_xor_sync(0xffffffffu, below, 1);
		if (i < lag && !half)
			put_trait(x, order[i], trait, (float)below / (float)lag);
	}
	__syncthreads();
}

template <uint32_t J, bool EXACT>
static __device__ __noinline__ void lag_partitions(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st,
						   uint32_t first, uint32_t lag, uint32_t trait)
{
	const struct lag_state s = lag_state_at(sh, st, x.turn.head_dim, lag);

	for (uint32_t at = first; x.live - at >= 2u * lag; at += lag) {
		lag_ranges<J, EXACT>(x, st, s, st.order + at + lag, lag);
		lag_deviations<J, EXACT>(x, st, s, st.order + at, lag);
		lag_values(sh, s, lag);
		lag_places(x, s, st.order + at, lag, trait);
	}
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
	ROWS_OF(x.turn.head_dim, lag_partitions, x, sh, st, sinks, lag, trait);
}

#endif
