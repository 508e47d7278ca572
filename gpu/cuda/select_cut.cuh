/*
 * Private to select.cu: the cut of a lane (evict/rule.h) found by a warp: of the figures of all slots that may leave, digit by digit.
 * Determinism: everything depends on figures and positions alone; atomics count integers.
 */
#ifndef GPU_CUDA_SELECT_CUT_CUH
#define GPU_CUDA_SELECT_CUT_CUH

#include "gpu/cuda/select_smallest.cuh"

#define STEADY_PLACES 8192u	/* slots of a lane; longer ones are left to select_kernel */
#define CUT_NONE 0xffffffffu	/* in place of a figure: the slot may not leave. No number's evict_order() is as large */

/* f(place, slot) for all slots: four at a time, so that loads do not wait for what is done with them. Every thread calls it as often. */
template <typename F> static __device__ __forceinline__ void cut_each(const uint32_t *place, uint32_t n, const F &f)
{
#pragma unroll 2
	for (uint32_t first = 0; first < n; first += 128u) {
		const uint32_t i = first + 4u * warp_thread();
		const uint4 p = i < n ? *(const uint4 *)(place + i) : make_uint4(CUT_NONE, CUT_NONE, CUT_NONE, CUT_NONE);

		f(p.x, i);
		f(p.y, i + 1u);
		f(p.z, i + 2u);
		f(p.w, i + 3u);
	}
}

/* Where a slot has no digit; each thread counts those in a place of its own. */
#define CUT_SKIP 256u

/*
 * Of the digits (0 .. 255, or CUT_SKIP) that f(place, slot) gives the k-th smallest; k becomes the place among those that have it, *alike their
 * number. bin: room for 288 counts.
 */
template <typename F>
static __device__ __forceinline__ uint32_t cut_digit(uint32_t *bin, const uint32_t *place, uint32_t n, uint32_t &k, uint32_t *alike, const F &f)
{
	const uint32_t t = warp_thread();
	uint32_t mine = 0, up, digit = 0, before, who;

	__syncwarp();
	for (uint32_t i = t; i < 256u; i += 32u)
		bin[i] = 0;
	__syncwarp();
	cut_each(place, n, [&](uint32_t p, uint32_t slot) {
		const uint32_t d = f(p, slot);

		atomicAdd(&bin[d < CUT_SKIP ? d : CUT_SKIP + t], 1u);
	});
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
	digit = __shfl_sync(WARP_ALL, digit, (int)who);
	*alike = bin[digit];
	return digit;
}

/* The k-th smallest of at most 32 figures, those from low to high, equal ones by their positions. slots: room for 32. */
static __device__ __forceinline__ uint64_t cut_of_few(const struct lane_ctx &x, uint32_t *slots, const uint32_t *place, uint32_t n, uint32_t low,
						      uint32_t high, uint32_t k)
{
	const uint32_t t = warp_thread();
	uint32_t found = 0, before = 0;
	uint64_t own = ~0ull;

	__syncwarp();
	cut_each(place, n, [&](uint32_t p, uint32_t slot) {
		const bool in = p - low <= high - low;
		const uint32_t all = __ballot_sync(WARP_ALL, in);

		if (in)
			slots[found + __popc(all & ((1u << t) - 1u))] = slot;
		found += __popc(all);
	});
	__syncwarp();
	if (t < found)
		own = (uint64_t)place[slots[t]] << 30 | (uint32_t)pos_of(x, slots[t]);
	for (uint32_t i = 0; i < found; i++)
		before += __shfl_sync(WARP_ALL, own, (int)i) < own;
	/* Two slots of one position have the same place: then nobody may have k - 1 before it, and the largest that has fewer is the k-th. */
	before = __reduce_max_sync(WARP_ALL, before < k ? before << 5 | t : 0u) & 31u;
	return __shfl_sync(WARP_ALL, own, (int)before);
}

/*
 * place[]: by slot, evict_order() of the figures of those that may leave, CUT_NONE of the others. n: slots; up to a multiple of four all are
 * there. See evict_n_spared(). Figures of a lane are much alike: digits of where they lie between the smallest and the largest say more than
 * those of the numbers.
 */
static __device__ __noinline__ uint64_t steady_cut(const struct lane_ctx &x, uint32_t *bin, const uint32_t *place, uint32_t n)
{
	uint32_t count = 0, low = CUT_NONE, high = 0, pos = 0, alike, spared, k;

	__syncwarp();
	cut_each(place, n, [&](uint32_t p, uint32_t) {
		count += p != CUT_NONE;
		low = min(low, p);
		high = max(high, p != CUT_NONE ? p : 0u);
	});
	alike = count = __reduce_add_sync(WARP_ALL, count);
	spared = evict_n_spared(&x.turn.rule, &x.as_lane, n, count);
	if (!spared)
		return ~0ull;
	if (spared >= count)
		return 0ull;
	k = count - spared + 1u;
	low = __reduce_min_sync(WARP_ALL, low);
	high = __reduce_max_sync(WARP_ALL, high);
	while (low < high && alike > 32u) {
		const int bits = 32 - __clz((int)(high - low)), shift = bits > 8 ? bits - 8 : 0;

		low += cut_digit(bin, place, n, k, &alike, [&](uint32_t p, uint32_t) {
			return p - low <= high - low ? (p - low) >> shift : CUT_SKIP;
		}) << shift;
		high = min(high, low + ((1u << shift) - 1u));
	}
	if (alike <= 32u)
		return cut_of_few(x, bin, place, n, low, high, k);
	for (int shift = 24; shift >= 0; shift -= 8) {		/* by their positions */
		const uint32_t digit = cut_digit(bin, place, n, k, &alike, [&](uint32_t p, uint32_t slot) {
			const uint32_t at = p == low ? (uint32_t)pos_of(x, slot) : 0u;

			return p == low && (shift == 24 || at >> (shift + 8) == pos) ? at >> shift & 255u : CUT_SKIP;
		});

		pos = pos << 8 | digit;
	}
	return (uint64_t)low << 30 | pos;
}

#endif
