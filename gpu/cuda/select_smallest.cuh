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

#include "gpu/cuda/select_stats.cuh"

#define STEADY_BLOCKS 8u		/* of a round: until candidates are looked for */
#define STEADY_VECTORS (STEADY_BLOCKS * GPU_BLOCK_SLOTS / 4u)
#define STEADY_STAGES 3u		/* blocks in the ring */
#define STEADY_ROOM 384u		/* candidates; they lie where the ring was, */
#define STEADY_CHUNK 64u		/* and so many of the vectors that have some behind them */
#define STEADY_MAX 256u			/* victims */
#define STEADY_CTAS 17u			/* of a multiprocessor: what shared memory has room for. With sums of heat, what registers have: */
#define STEADY_SUMS_CTAS 12u
#define STEADY_NONE 0xffffffffu		/* the upper half of NO_KEY; no real key's is as large */
#define STEADY_KEPT 0x3fe00000u		/* that of an infinite rank; stands for those of slots that may not leave, none of which is smaller */
#define WARP_ALL 0xffffffffu

enum { STEADY_SETTLED = 1, STEADY_FOLDED };

struct steady_state {
	struct lane_ctx lane;
	char *credit[STEADY_BLOCKS], *heat[STEADY_BLOCKS];	/* blocks of the round; NULL: not there */
	/*
	 * Are tokens settled as blocks come in (STEADY_SETTLED; STEADY_FOLDED: and their credits are stored in the fold), and which slots have they (by
	 * thread; STEADY_NONE: none)? Not in registers: what the loop over blocks finds no register for must not come from local memory, whose
	 * loads wait for all copies under way.
	 */
	uint32_t settles, token[32];
	uint32_t low[STEADY_VECTORS];	/* upper halves: the smallest of each vector; then vectors that have candidates */
};

/* Dynamic shared memory: the ring, which is also room for the figures of `places` slots, the k smallest so far, statistics. */
static __device__ __forceinline__ char *steady_memory(void)
{
	extern __shared__ __align__(16) char memory[];

	return memory;
}

static inline uint32_t steady_ring(uint32_t arrays, uint32_t places)
{
	return max(max(STEADY_STAGES * arrays * GPU_BLOCK_SLOTS * 4u, STEADY_ROOM * 12u + STEADY_CHUNK * 16u * arrays), places * 4u);
}

/* Bytes of the k smallest. */
static __host__ __device__ inline uint32_t steady_best(uint32_t k)
{
	return (12u * k + 15u) / 16u * 16u;
}

/* Bytes that a warp needs for statistics. */
static __host__ __device__ inline uint32_t steady_stats_bytes(uint32_t stats)
{
	const uint32_t bytes = (uint32_t)(stats & EVICT_STATS_SUMS ? sizeof(struct stats_counts) : stats & EVICT_STATS_RANK ?
					  offsetof(struct stats_counts, sum) : stats ? offsetof(struct stats_counts, rank) : 0u);

	return (bytes + 15u) / 16u * 16u;
}

/* Candidates, keys and slots; the k smallest of them, ascending. */
struct steady_found {
	uint32_t ring, k;

	__device__ __forceinline__ uint64_t *key(void) const { return (uint64_t *)steady_memory(); }
	__device__ __forceinline__ uint32_t *slot(void) const { return (uint32_t *)(steady_memory() + 8u * STEADY_ROOM); }
	__device__ __forceinline__ char *chunk(void) const { return steady_memory() + 12u * STEADY_ROOM; }
	__device__ __forceinline__ uint64_t *best(void) const { return (uint64_t *)(steady_memory() + ring); }
	__device__ __forceinline__ uint32_t *best_slot(void) const { return (uint32_t *)(steady_memory() + ring + 8u * k); }
	__device__ __forceinline__ char *end(void) const { return steady_memory() + ring + steady_best(k); }
	__device__ __forceinline__ uint32_t *places(void) const { return (uint32_t *)steady_memory(); }	/* of slots (select_cut.cuh), where the ring is later */
};

static __device__ __forceinline__ uint32_t warp_thread(void) { return threadIdx.x % 32u; }

/*
 * The smallest number, or one not much above it, that at least k of the threads' groups v[] do not lie above; with fewer such groups, the
 * largest.
 */
static __device__ __forceinline__ uint32_t steady_bound(const uint32_t (&v)[STEADY_BLOCKS], uint32_t k)
{
	uint32_t low = STEADY_NONE, high = 0, prefix;
	int bit;

#pragma unroll
	for (uint32_t i = 0; i < STEADY_BLOCKS; i++) {
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

/* Vectors that may have some of the k smallest keys of a round are listed in sh->low[]: what they are, and up to which upper half. */
struct steady_list {
	uint32_t vectors, bound;
};

/* most: larger upper halves are of no use. */
static __device__ __noinline__ struct steady_list steady_candidates(struct steady_state *sh, uint32_t blocks, uint32_t k, uint32_t most)
{
	uint32_t v[2u * STEADY_BLOCKS], group[STEADY_BLOCKS], mine = 0, at;
	struct steady_list list;

	__syncwarp();
#pragma unroll
	for (uint32_t i = 0; i < 2u * STEADY_BLOCKS; i++)
		v[i] = i < 2u * blocks ? sh->low[32u * i + warp_thread()] : STEADY_NONE;
#pragma unroll
	for (uint32_t i = 0; i < STEADY_BLOCKS; i++)
		group[i] = min(v[2u * i], v[2u * i + 1u]);
	list.bound = steady_bound(group, k);
	if (list.bound >= STEADY_KEPT) {
		uint32_t largest = 0;

#pragma unroll
		for (uint32_t i = 0; i < STEADY_BLOCKS; i++)
			largest = max(largest, group[i] <= list.bound ? group[i] : 0u);
		list.bound = __reduce_max_sync(WARP_ALL, largest);
		if (list.bound >= STEADY_KEPT)		/* slots are needed that nobody has ranked: all of them are looked at */
			list.bound = STEADY_NONE - 1u;
	}
	list.bound = min(list.bound, most);
#pragma unroll
	for (uint32_t i = 0; i < 2u * STEADY_BLOCKS; i++)
		mine |= (v[i] <= list.bound) << i;
	at = __popc(mine);
	for (uint32_t gap = 1; gap < 32u; gap *= 2u) {
		const uint32_t other = __shfl_up_sync(WARP_ALL, at, gap);

		at += warp_thread() >= gap ? other : 0u;
	}
	list.vectors = __shfl_sync(WARP_ALL, at, 31);
	for (at -= __popc(mine); mine; mine &= mine - 1u)
		sh->low[at++] = 32u * (uint32_t)(__ffs((int)mine) - 1) + warp_thread();
	__syncwarp();
	return list;
}

/* Candidate i is the at-th. */
static __device__ __forceinline__ void steady_put(const struct steady_found &f, uint32_t at, uint32_t i)
{
	if (at >= f.k)
		return;
	f.best()[at] = f.key()[i];
	f.best_slot()[at] = f.slot()[i];
}

/*
 * The k smallest of n candidates into best(), ascending: each counts those before it. Then only they are candidates. Returns how many.
 * Where keys are all unlike the places are those from 0 to n - 1, and add up to what those do; else slots decide.
 */
static __device__ __noinline__ uint32_t steady_rank(struct steady_found f, uint32_t n)
{
	uint32_t places = 0;

	if (warp_thread() == 0)
		f.key()[n] = NO_KEY;
	__syncwarp();
	for (uint32_t i = warp_thread(); i < n; i += 64u) {	/* two at a time: what takes long is to read the others */
		const uint32_t i2 = i + 32u < n ? i + 32u : i;
		const uint64_t key = f.key()[i], key2 = f.key()[i2];
		uint32_t at = 0, at2 = 0;

#pragma unroll 2
		for (uint32_t j = 0; j < n; j += 2u) {
			const ulonglong2 other = *(const ulonglong2 *)(f.key() + j);

			at += other.x < key;
			at2 += other.x < key2;
			at += other.y < key;
			at2 += other.y < key2;
		}
		places += at;
		steady_put(f, at, i);
		if (i2 == i)
			continue;
		places += at2;
		steady_put(f, at2, i2);
	}
	places = __reduce_add_sync(WARP_ALL, places);
	__syncwarp();
	for (uint32_t i = warp_thread(); places != n * (n - 1u) / 2u && i < n; i += 32u) {
		uint32_t at = 0;

		for (uint32_t j = 0; j < n; j++)
			at += comes_after(f.key()[i], f.slot()[i], f.key()[j], f.slot()[j]);
		steady_put(f, at, i);
	}
	__syncwarp();
	return min(n, f.k);
}

/* The n smallest so far become candidates again. */
static __device__ __forceinline__ void steady_again(const struct steady_found &f, uint32_t n)
{
	for (uint32_t i = warp_thread(); i < n; i += 32u) {
		f.key()[i] = f.best()[i];
		f.slot()[i] = f.best_slot()[i];
	}
	__syncwarp();
}

/* The largest of the n smallest so far, if they are k. */
static __device__ __forceinline__ uint64_t steady_last(const struct steady_found &f, uint32_t n)
{
	return n == f.k ? f.best()[n - 1u] : NO_KEY - 1u;
}

#endif
