/*
 * Private to select.cu: the cut of a lane (evict/rule.h) found by a warp: of the figures of all slots that may leave, digit by digit.
 * Determinism: everything depends on figures and positions alone; atomics count integers.
 */
#ifndef GPU_CUDA_SELECT_CUT_CUH
#define GPU_CUDA_SELECT_CUT_CUH

#include "gpu/cuda/select_smallest.cuh"

#define STEADY_PLACES 8192u	/* slots of a lane; longer ones are left to select_kernel */
#define CUT_NONE 0xffffffffu	/* in place of a figure: the slot may not leave. No number's evict_order() is as large */

/* Does the policy's figure look at what fold() computes? */
static __host__ __device__ inline bool figure_folds(uint32_t policy)
{
	return evict_n_trait(policy) == 0;
}

/* Where a figure has no digit. */
#define CUT_SKIP 256u

/*
 * Of the digits (0 .. 255, or CUT_SKIP) that f(i) gives for 0 .. n-1 the k-th smallest; k becomes the place among those that have it.
 * bin: room for 256 counts.
 */
template <typename F>
static __device__ __forceinline__ uint32_t cut_digit(uint32_t *bin, uint32_t n, uint32_t &k, const F &f)
{
	const uint32_t t = warp_thread();
	uint32_t mine = 0, up, digit = 0, before, who;

	__syncwarp();
	for (uint32_t i = t; i < 256u; i += 32u)
		bin[i] = 0;
	__syncwarp();
	for (uint32_t i = t; i < n; i += 32u) {
		const uint32_t d = f(i);

		if (d != CUT_SKIP)
			atomicAdd(&bin[d], 1u);
	}
	__syncwarp();
	for (uint32_t i = 0; i < 8u; i++)
		mine += bin[8u * t + i];
	up = mine;
	for (uint32_t gap = 1; gap < 32u; gap *= 2u) {
		const uint32_t other = __shfl_up_sync(WARP_ALL, up, gap);

		up += t >= gap ? other : 0u;
	}
	before = up - mine;
	who = (uint32_t)__ffs((int)__ballot_sync(WARP_ALL, before < k && k <= up)) - 1u;
	if (t == who)
		for (digit = 8u * t; before + bin[digit] < k; digit++)
			before += bin[digit];
	k -= __shfl_sync(WARP_ALL, before, (int)who);
	return __shfl_sync(WARP_ALL, digit, (int)who);
}

/* place[]: by slot, evict_order() of the figures of those that may leave, CUT_NONE of the others; n: slots. See evict_n_spared(). */
static __device__ __noinline__ uint64_t steady_cut(const struct lane_ctx &x, uint32_t *bin, const uint32_t *place, uint32_t n)
{
	uint32_t count = 0, order = 0, pos = 0, alike = 0, at = 0, spared, k;

	__syncwarp();
	for (uint32_t i = warp_thread(); i < n; i += 32u)
		count += place[i] != CUT_NONE;
	count = __reduce_add_sync(WARP_ALL, count);
	spared = evict_n_spared(&x.turn.rule, &x.as_lane, n, count);
	if (!spared)
		return ~0ull;
	if (spared >= count)
		return 0ull;
	k = count - spared + 1u;
	for (int shift = 24; shift >= 0; shift -= 8) {
		const uint32_t digit = cut_digit(bin, n, k, [&](uint32_t i) {
			const uint32_t p = place[i];

			return p != CUT_NONE && (shift == 24 || p >> (shift + 8) == order) ? p >> shift & 255u : CUT_SKIP;
		});

		order = order << 8 | digit;
	}
	for (uint32_t i = warp_thread(); i < n; i += 32u)
		if (place[i] == order) {
			alike++;
			at = i;
		}
	if (__reduce_add_sync(WARP_ALL, alike) == 1u) {
		const int who = __ffs((int)__ballot_sync(WARP_ALL, alike != 0)) - 1;

		return (uint64_t)order << 30 | (uint32_t)pos_of(x, __shfl_sync(WARP_ALL, at, who));
	}
	for (int shift = 24; shift >= 0; shift -= 8) {		/* by their positions */
		const uint32_t digit = cut_digit(bin, n, k, [&](uint32_t i) {
			const uint32_t p = place[i] == order ? (uint32_t)pos_of(x, i) : 0u;

			return place[i] == order && (shift == 24 || p >> (shift + 8) == pos) ? p >> shift & 255u : CUT_SKIP;
		});

		pos = pos << 8 | digit;
	}
	return (uint64_t)order << 30 | pos;
}

#endif
