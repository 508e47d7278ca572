/* Private to select.cu: one lane as a CTA sees it, and the block-wide helpers (scan, sum, k-th smallest key, sort). */
#ifndef GPU_CUDA_SELECT_CUH
#define GPU_CUDA_SELECT_CUH

#include "gpu/cuda/common.cuh"

#define THREADS 256u		/* one per slot of a block */
#define WARPS (THREADS / 32u)
#define MAX_VICTIMS 2048u
#define KEY_CACHE 4096u		/* keys of a lane's first slots stay in shared memory; the others are computed anew */
#define NO_KEY (~0ull)		/* of a slot that is not there: after every real one */
#define LIST 2048u		/* holes or survivors waiting to be paired: two rounds of four slots a thread, a power of two */

/* One session, as uploaded; begin_kernel() adds what it finds in the table. */
struct alignas(16) turn_args {
	struct gpu_table table;
	char *priv;
	uint32_t appended, n_credit, slot_type, head_dim;
	uint32_t first, n_lanes;	/* its lanes in the list */
	int32_t pos;
	struct evict_rule rule;
	uint32_t stats, stats_heat[EVICT_MAX_HEAT], stats_near;	/* these as in struct gpu_turn */
	struct evict_lane_stats *lane_stats;
	const uint32_t *marks;
	uint32_t n_marks, n_kv_heads;	/* n_marks: 0 without marks */
	uint32_t *live;
	uint32_t policy_heat, policy_credit;	/* evict_n_heat(), evict_n_credit() */
	uint32_t policy_arrays;		/* of a slot: its position, heat, credits, traits */
	uint32_t n_once;		/* evict_n_trait_once() */
	uint32_t may_be_steady;		/* the rule and the call let select_steady.cuh take lanes that keep all their slots */
	uint32_t plans_differ;		/* each lane has its own, in the list; else all have this: */
	struct gpu_plan plan;
	struct evict_lane as_lane;	/* any of its lanes, but for its number and its slots. begin_kernel()'s, too */
};

struct sums {
	double kept, leaving;
};

struct lane_ctx {
	struct cuda_view view;
	struct turn_args turn;
	struct gpu_plan plan;
	struct gpu_lane head;
	const uint32_t *page, *block, *credit;
	uint32_t *next;
	uint32_t lane, live, n_heat, n_credit;	/* n_credit: without traits */
	uint32_t is_steady;		/* select_steady.cuh takes the lane */
	char *const *known;		/* addresses of its first n_known credit blocks, and, KNOWN_BLOCKS behind them, heat blocks */
	uint32_t n_known;
	const float *pooled;		/* by slot: pooled values or places (select_staged.cuh); NULL: the policy has none */
	struct evict_lane as_lane;
};

#define KNOWN_BLOCKS 32u
#define COMPACT_RING 5120u	/* bytes of a warp's ring of rows (compact.cuh) */

struct shared_state {
	union {
		struct {
			uint64_t key[KEY_CACHE], sorted[MAX_VICTIMS];
			uint32_t slot[MAX_VICTIMS];
		};
		struct {		/* while slots move, nobody looks at keys */
			uint32_t hole[LIST], survivor[LIST];
			char ring[WARPS][COMPACT_RING];
		};
	};
	uint32_t bin[256];
	uint32_t warp[WARPS];
	double sum[WARPS];
	uint32_t found, below, n_found;
	char *known[2u * KNOWN_BLOCKS];
	struct lane_ctx lane;		/* once a CTA: a copy a thread would lie in memory. Thread 0 changes it, between barriers */
};

/* 16 bytes on their way into shared memory; zeros, and nothing read, if they are not there. */
static __device__ __forceinline__ void copy16(void *to, const char *from, bool there)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 16 : 0)
		     : "memory");
}

/* --- slots ----------------------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ char *credit_block(const struct lane_ctx &x, uint32_t slot)
{
	const uint32_t b = slot / GPU_BLOCK_SLOTS;

	return b < x.n_known ? x.known[b] : cuda_at(x.view, x.credit[b]);
}

static __device__ __forceinline__ char *heat_block(const struct lane_ctx &x, uint32_t slot)
{
	const uint32_t b = slot / GPU_BLOCK_SLOTS;

	return b < x.n_known ? x.known[KNOWN_BLOCKS + b] : cuda_at(x.view, x.block[b]);
}

static __device__ __forceinline__ int32_t *pos_in(char *block, uint32_t slot)
{
	return (int32_t *)block + slot % GPU_BLOCK_SLOTS;
}

static __device__ __forceinline__ float *array_in(char *block, uint32_t k, uint32_t slot)
{
	return (float *)block + (k + 1u) * GPU_BLOCK_SLOTS + slot % GPU_BLOCK_SLOTS;
}

static __device__ __forceinline__ int32_t pos_of(const struct lane_ctx &x, uint32_t slot)
{
	char *c = credit_block(x, slot);

	return c ? *pos_in(c, slot) : -1;
}

static __device__ __forceinline__ float first_credit(const struct lane_ctx &x, uint32_t slot)
{
	char *c = x.n_credit ? credit_block(x, slot) : NULL;

	return c ? *array_in(c, 0, slot) : 0.0f;
}

static __device__ __forceinline__ void load_credit(const struct lane_ctx &x, char *c, uint32_t slot, struct evict_slot *e)
{
#pragma unroll
	for (uint32_t k = 0; k < EVICT_MAX_CREDIT; k++)
		e->credit[k] = k < x.n_credit ? *array_in(c, k, slot) : 0.0f;
#pragma unroll
	for (uint32_t k = 0; k < EVICT_MAX_TRAIT; k++)
		e->trait[k] = x.n_credit + k < x.turn.n_credit ? *array_in(c, x.n_credit + k, slot) : 0.0f;
}

/* What the client said of the token at this position (evict/mark.h). */
static __device__ __forceinline__ uint32_t mark_of(const struct lane_ctx &x, int32_t pos)
{
	return (uint32_t)pos < x.turn.n_marks ? x.turn.marks[pos] : 0u;
}

/* A slot's place in the order of leaving; c: its credit block. Private memory only, so that it is the same whenever it is asked for. */
static __device__ __noinline__ uint64_t key_in(const struct lane_ctx &x, char *c, uint32_t slot)
{
	struct evict_slot e = {};	/* no heat: a rank looks at credit alone, fold has seen the heat */
	uint32_t mark;

	if (!c || *pos_in(c, slot) < 0)
		return NO_KEY;
	e.pos = *pos_in(c, slot);
	load_credit(x, c, slot, &e);
	e.pooled = e.place = x.pooled ? x.pooled[slot] : 0.0f;
	mark = mark_of(x, e.pos);
	e.tag = evict_mark_tag(mark);
	return evict_marked_key(evict_key(&x.turn.rule, &x.as_lane, x.plan.recent, &e), mark);
}

static __device__ __forceinline__ uint64_t key_of(const struct lane_ctx &x, uint32_t slot)
{
	return key_in(x, credit_block(x, slot), slot);
}

static __device__ __forceinline__ uint64_t key_at(const struct lane_ctx &x, const struct shared_state *sh, uint32_t slot)
{
	return slot < KEY_CACHE ? sh->key[slot] : key_of(x, slot);
}

/* Fill the cache for slots 0 .. n-1. */
static __device__ __forceinline__ void cache_keys(const struct lane_ctx &x, struct shared_state *sh, uint32_t n)
{
	for (uint32_t i = threadIdx.x; i < n && i < KEY_CACHE; i += THREADS)
		sh->key[i] = key_of(x, i);
	__syncthreads();
}

/* --- block-wide helpers: every thread calls them --------------------------------------------------------------------------- */

/* Sum of v over the threads before this one; *total over all of them. */
static __device__ __forceinline__ uint32_t block_scan(struct shared_state *sh, uint32_t v, uint32_t *total)
{
	uint32_t thread = threadIdx.x % 32u, warp = threadIdx.x / 32u, up = v, before = 0, all = 0;

	for (uint32_t i = 1; i < 32; i *= 2) {
		uint32_t other = __shfl_up_sync(0xffffffffu, up, i);

		up += thread >= i ? other : 0u;
	}
	__syncthreads();	/* the last use of warp[] is over */
	if (thread == 31)
		sh->warp[warp] = up;
	__syncthreads();
	for (uint32_t i = 0; i < WARPS; i++) {
		before += i < warp ? sh->warp[i] : 0u;
		all += sh->warp[i];
	}
	*total = all;
	return before + up - v;
}

/* Sum over all threads, in a fixed order; valid in thread 0. */
template <typename S> static __device__ __forceinline__ double block_sum(S *sh, double v)
{
	double all = 0.0;

	for (int i = 16; i; i >>= 1)
		v += __shfl_down_sync(0xffffffffu, v, i);
	__syncthreads();
	if (threadIdx.x % 32u == 0)
		sh->sum[threadIdx.x / 32u] = v;
	__syncthreads();
	for (uint32_t i = 0; i < sizeof(sh->sum) / sizeof(*sh->sum); i++)
		all += sh->sum[i];
	return all;
}

/* The slots that go: keys below `key`, and of those equal to it the ones up to slot `last_equal`. */
struct threshold {
	uint64_t key;
	uint32_t last_equal;
};

static __device__ __forceinline__ bool is_below(const struct threshold &t, uint64_t key, uint32_t slot)
{
	return key < t.key || (key == t.key && slot <= t.last_equal);
}

/*
 * The k-th smallest key (from 1) of slots 0 .. n-1, k <= n, most significant byte first. Counts are integers, so the
 * order of the atomics does not matter; nor does it matter that the key returned may lie between the k-th and the next one.
 * Needs cache_keys(n) before it.
 */
static __device__ struct threshold kth_key(const struct lane_ctx &x, struct shared_state *sh, uint32_t n, uint32_t k)
{
	struct threshold t = { 0, 0xffffffffu };
	uint32_t equal = 0;

	for (int shift = 56; shift >= 0; shift -= 8) {
		uint32_t before, total, mine;

		sh->bin[threadIdx.x] = 0;
		__syncthreads();
		for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
			uint64_t key = key_at(x, sh, i);

			if (shift == 56 || key >> (shift + 8) == t.key)
				atomicAdd(&sh->bin[key >> shift & 255u], 1u);
		}
		__syncthreads();
		mine = sh->bin[threadIdx.x];
		before = block_scan(sh, mine, &total);
		if (before < k && k <= before + mine) {
			sh->found = threadIdx.x;
			sh->below = before;
		}
		__syncthreads();
		t.key = t.key << 8 | sh->found;
		k -= sh->below;
		equal = sh->bin[sh->found];
		__syncthreads();
		if (k == equal) {	/* all that begin so: the rest of the key decides nothing */
			t.key = t.key << shift | ((1ull << shift) - 1ull);
			return t;
		}
	}
	if (k < equal) {	/* equal keys: only if two slots have one position. The lower slots go. */
		if (threadIdx.x == 0) {
			uint32_t i = 0;

			for (uint32_t left = k; i < n; i++)
				if (key_at(x, sh, i) == t.key && --left == 0)
					break;
			sh->found = i;
		}
		__syncthreads();
		t.last_equal = sh->found;
		__syncthreads();
	}
	return t;
}

static __device__ __forceinline__ bool comes_after(uint64_t ka, uint32_t sa, uint64_t kb, uint32_t sb)
{
	return ka > kb || (ka == kb && sa > sb);
}

/* sorted[], slot[]: n entries (<= MAX_VICTIMS) into ascending order, a bitonic network over the next power of two. */
static __device__ void sort_found(struct shared_state *sh, uint32_t n)
{
	uint32_t size = 1;

	while (size < n)
		size *= 2;
	for (uint32_t i = n + threadIdx.x; i < size; i += THREADS) {
		sh->sorted[i] = NO_KEY;
		sh->slot[i] = 0xffffffffu;
	}
	__syncthreads();
	for (uint32_t run = 2; run <= size; run *= 2)
		for (uint32_t gap = run / 2; gap; gap /= 2) {
			for (uint32_t i = threadIdx.x; i < size; i += THREADS) {
				uint32_t j = i ^ gap;
				uint64_t ki = sh->sorted[i], kj;
				uint32_t si = sh->slot[i], sj;

				if (j <= i)
					continue;
				kj = sh->sorted[j];
				sj = sh->slot[j];
				if (comes_after(ki, si, kj, sj) == ((i & run) == 0)) {
					sh->sorted[i] = kj;
					sh->sorted[j] = ki;
					sh->slot[i] = sj;
					sh->slot[j] = si;
				}
			}
			__syncthreads();
		}
}

#endif
