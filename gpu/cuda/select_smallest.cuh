/*
 * Private to select.cu: the k slots of smallest keys, found by a warp that has seen the upper half of every key (select_steady.cuh).
 *
 * What: of the smallest of 256 groups of slots the k-th smallest cannot lie below the k-th smallest of all, and few vectors of four slots
 * have a key below it. The keys of those are computed once more, in full, and find their places by counting the smaller ones. Equal
 * ranks may be many: then the candidates are cut to k every now and then.
 * Determinism: candidates gather in any order, their places depend on keys and slots alone.
 */
#ifndef GPU_CUDA_SELECT_SMALLEST_CUH
#define GPU_CUDA_SELECT_SMALLEST_CUH

#include "gpu/cuda/select.cuh"

#define STEADY_BLOCKS 8u		/* of a round: until candidates are looked for */
#define STEADY_VECTORS (STEADY_BLOCKS * GPU_BLOCK_SLOTS / 4u)
#define STEADY_STAGES 2u		/* blocks in the ring */
#define STEADY_ROOM 512u		/* candidates; they lie where the ring was */
#define STEADY_MAX 256u			/* victims */
#define STEADY_CTAS 22u			/* of a multiprocessor: what shared memory has room for. With sums of heat: what registers have room for */
#define STEADY_COUNT_CTAS 20u
#define STEADY_SUMS_CTAS 14u
#define STEADY_NONE 0xffffffffu		/* the upper half of NO_KEY; no real key's is as large */
#define WARP_ALL 0xffffffffu

struct steady_state {
	struct lane_ctx lane;
	char *credit[STEADY_BLOCKS], *heat[STEADY_BLOCKS];	/* blocks of the round; NULL: not there */
	uint32_t low[STEADY_VECTORS];	/* upper halves: the smallest of each vector; then vectors that have candidates */
	uint32_t n_found;
};

/* Dynamic shared memory: the ring, the k smallest so far, statistics. */
static __device__ __forceinline__ char *steady_memory(void)
{
	extern __shared__ __align__(16) char memory[];

	return memory;
}

static inline uint32_t steady_ring(uint32_t arrays)
{
	return max(STEADY_STAGES * arrays * GPU_BLOCK_SLOTS * 4u, STEADY_ROOM * 12u);
}

/* Candidates and the k smallest of them, ascending: upper halves of the keys, lower halves, slots. */
struct steady_found {
	uint32_t ring, k;

	__device__ __forceinline__ uint32_t *found(uint32_t i) const { return (uint32_t *)steady_memory() + i * STEADY_ROOM; }
	__device__ __forceinline__ uint32_t *best(uint32_t i) const { return (uint32_t *)(steady_memory() + ring) + i * k; }
	__device__ __forceinline__ char *end(void) const { return steady_memory() + ring + 12u * k; }
};

static __device__ __forceinline__ uint32_t warp_thread(void) { return threadIdx.x % 32u; }

/*
 * A bound for the upper halves of the k smallest keys of a round of so many blocks: at least k groups of two vectors have a key that does
 * not lie above it, and not many more, or there are no more.
 */
static __device__ __forceinline__ uint32_t steady_bound(const struct steady_state *sh, uint32_t blocks, uint32_t k)
{
	uint32_t v[STEADY_BLOCKS], low = STEADY_NONE, high = 0, prefix;
	int bit;

#pragma unroll
	for (uint32_t i = 0; i < STEADY_BLOCKS; i++) {
		v[i] = i < blocks ? min(sh->low[64u * i + warp_thread()], sh->low[64u * i + 32u + warp_thread()]) : STEADY_NONE;
		low = min(low, v[i]);
		high = max(high, v[i]);
	}
	low = __reduce_min_sync(WARP_ALL, low);
	high = __reduce_max_sync(WARP_ALL, high);
	if (low == high)
		return high;
	bit = 31 - __clz((int)(low ^ high));	/* above it, all agree */
	prefix = bit == 31 ? 0u : high >> (bit + 1) << (bit + 1);
	for (; bit >= 0; bit--) {
		const uint32_t test = prefix | ((1u << bit) - 1u);
		uint32_t count = 0;

#pragma unroll
		for (uint32_t i = 0; i < STEADY_BLOCKS; i++)
			count += v[i] <= test;
		count = __reduce_add_sync(WARP_ALL, count);
		if (count < k)
			prefix |= 1u << bit;
		else if (count <= k + k / 4u)
			return test;
	}
	return prefix;
}

/* The k smallest of n candidates into best(), ascending: each counts those before it. Then only they are candidates. Returns how many. */
static __device__ __forceinline__ uint32_t steady_rank(const struct steady_found &f, uint32_t n)
{
	__syncwarp();
	for (uint32_t i = warp_thread(); i < n; i += 32u) {
		const uint32_t upper = f.found(0)[i], lower = f.found(1)[i], slot = f.found(2)[i];
		uint32_t at = 0, same = 0;

#pragma unroll 4
		for (uint32_t j = 0; j < n; j++) {
			const uint32_t other = f.found(0)[j];

			at += other < upper;
			same += other == upper;
		}
		for (uint32_t j = 0; same > 1u && j < n; j++)
			at += f.found(0)[j] == upper && comes_after(lower, slot, f.found(1)[j], f.found(2)[j]);
		if (at < f.k) {
			f.best(0)[at] = upper;
			f.best(1)[at] = lower;
			f.best(2)[at] = slot;
		}
	}
	__syncwarp();
	return min(n, f.k);
}

/* The n smallest so far become candidates again. */
static __device__ __forceinline__ void steady_again(const struct steady_found &f, struct steady_state *sh, uint32_t n)
{
	for (uint32_t k = 0; k < 3u; k++)
		for (uint32_t i = warp_thread(); i < n; i += 32u)
			f.found(k)[i] = f.best(k)[i];
	if (warp_thread() == 0)
		sh->n_found = n;
	__syncwarp();
}

/* The largest of the n smallest so far, if they are k. */
static __device__ __forceinline__ uint64_t steady_last(const struct steady_found &f, uint32_t n)
{
	return n == f.k ? (uint64_t)f.best(0)[n - 1u] << 32 | f.best(1)[n - 1u] : NO_KEY - 1u;
}

/* The k smallest keys of this round and those before it, of which best() has n: it then has as many as returned. */
static __device__ __forceinline__ uint32_t steady_smallest(const struct lane_ctx &x, struct steady_state *sh, const struct steady_found &f,
							   uint32_t first, uint32_t n)
{
	const uint32_t blocks = min(STEADY_BLOCKS, gpu_blocks_for(x.live - first));
	const uint32_t most = max(128u, min(4u * f.k, STEADY_ROOM - 32u));	/* candidates before they are cut to k */
	uint64_t last = steady_last(f, n);
	uint32_t bound, vectors = 0;

	__syncwarp();
	bound = min(steady_bound(sh, blocks, f.k), (uint32_t)(last >> 32));
	steady_again(f, sh, n);
	for (uint32_t i = 0; i < 2u * blocks; i++) {	/* the list grows no faster than what is read */
		const bool mine = sh->low[32u * i + warp_thread()] <= bound;
		const uint32_t all = __ballot_sync(WARP_ALL, mine);

		if (mine)
			sh->low[vectors + __popc(all & ((1u << warp_thread()) - 1u))] = 32u * i + warp_thread();
		vectors += __popc(all);
		__syncwarp();
	}
	for (uint32_t i = 0; i < 4u * vectors; i += 32u) {
		const uint32_t j = i + warp_thread(), slot = j < 4u * vectors ? first + 4u * sh->low[j / 4u] + j % 4u : STEADY_NONE;
		const uint64_t key = slot < x.plan.keep ? key_in(x, sh->credit[(slot - first) / GPU_BLOCK_SLOTS], slot) : NO_KEY;

		if ((uint32_t)(key >> 32) <= bound && key <= last) {
			const uint32_t at = atomicAdd(&sh->n_found, 1u);	/* any order */

			f.found(0)[at] = (uint32_t)(key >> 32);
			f.found(1)[at] = (uint32_t)key;
			f.found(2)[at] = slot;
		}
		__syncwarp();
		n = sh->n_found;
		__syncwarp();
		if (n > most) {
			n = steady_rank(f, n);
			last = steady_last(f, n);
			steady_again(f, sh, n);
		}
	}
	return steady_rank(f, n);
}

#endif
