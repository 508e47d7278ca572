/*
 * Private to select.cu: the common turn, in one pass: a lane that keeps all its slots is folded and ranked, and its least valuable slots are named.
 *
 * What: a CTA goes over a lane in rounds of 2048 slots, 8 a thread, keys in registers. A bound comes first: of the threads' smallest keys the
 * k-th smallest cannot lie below the k-th smallest of all, and few keys lie below it. Those find their places by counting the smaller ones.
 * With too many of them the lane is left to select_kernel().
 * Memory traffic: position, heat and credit of a slot read once, heat and credit written once.
 */
#ifndef GPU_CUDA_SELECT_STEADY_CUH
#define GPU_CUDA_SELECT_STEADY_CUH

#include "gpu/cuda/select.cuh"

#define STEADY_VECTORS 2u			/* of four slots, a thread and round */
#define STEADY_KEYS (4u * STEADY_VECTORS)
#define STEADY_SLOTS (THREADS * STEADY_KEYS)
#define STEADY_MAX THREADS			/* victims: there must be as many threads with a smallest key */
#define STEADY_ROOM 1024u			/* candidates */

struct steady_state {
	uint64_t key[THREADS], sorted[STEADY_ROOM];
	uint32_t slot[STEADY_ROOM];
	double sum[WARPS];
	uint64_t bound;
	uint32_t n_found;
	struct lane_ctx lane;		/* once a CTA: a copy a thread would not fit its registers */
};

/* Four slots of a lane. */
template <uint32_t NH, uint32_t NA> struct steady_vector {
	float *heat;		/* of the first slot, NULL: no such slots */
	char *credit;
	int32_t pos[4];
	float h[NH ? NH : 1][4], a[NA ? NA : 1][4];
};

static __device__ __forceinline__ void unpack4(const float4 &v, float *x)
{
	x[0] = v.x;
	x[1] = v.y;
	x[2] = v.z;
	x[3] = v.w;
}

template <uint32_t NH, uint32_t NA>
static __device__ __forceinline__ void steady_load(const struct lane_ctx &x, uint32_t slot, uint32_t n_heat, struct steady_vector<NH, NA> &v)
{
	int4 pos = make_int4(-1, -1, -1, -1);
	char *h = NULL;

	v.credit = slot < x.live ? credit_block(x, slot) : NULL;
	h = v.credit && n_heat ? heat_block(x, slot) : NULL;
	v.heat = h ? (float *)h + GPU_BLOCK_SLOTS + slot % GPU_BLOCK_SLOTS : NULL;
	if (v.credit)
		pos = *(const int4 *)pos_in(v.credit, slot);
	v.pos[0] = pos.x;
	v.pos[1] = pos.y;
	v.pos[2] = pos.z;
	v.pos[3] = pos.w;
#pragma unroll
	for (int k = 0; k < (int)NH; k++)
		unpack4((uint32_t)k < n_heat && v.heat ? *(const float4 *)(v.heat + k * (int)GPU_BLOCK_SLOTS) : make_float4(0, 0, 0, 0), v.h[k]);
#pragma unroll
	for (int k = 0; k < (int)NA; k++)
		unpack4(v.credit ? *(const float4 *)array_in(v.credit, (uint32_t)k, slot) : make_float4(0, 0, 0, 0), v.a[k]);
}

/* Fold and rank; what is not there gets NO_KEY, what was folded is stored. sum: of the first credit of slots below n_sum. */
template <uint32_t P, uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ void steady_policy(const struct lane_ctx &x, const struct evict_rule &rule, uint32_t slot, uint32_t n_heat,
						     uint32_t fold, struct steady_vector<NH, NC + NT> &v, uint64_t *keys, double &sum)
{
	float old[NH ? NH : 1][4];

#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		struct evict_slot e = {};

		e.pos = v.pos[i];
#pragma unroll
		for (int k = 0; k < (int)NC; k++)
			e.credit[k] = v.a[k][i];
#pragma unroll
		for (int k = 0; k < (int)NT; k++)
			e.trait[k] = v.a[NC + k][i];
		keys[i] = NO_KEY;
#pragma unroll
		for (int k = 0; k < (int)NH; k++) {
			old[k][i] = v.h[k][i];
			e.heat[k] = evict_clean(v.h[k][i]);
		}
		if (slot + i >= x.live)
			continue;
		if (fold) {
			evict_fold(&rule, &x.as_lane, &e);
#pragma unroll
			for (int k = 0; k < (int)NC; k++)
				v.a[k][i] = e.credit[k];
#pragma unroll
			for (int k = 0; k < (int)NH; k++)
				old[k][i] = 0.0f;
		}
		if (slot + i < x.plan.keep && e.pos >= 0) {
			keys[i] = evict_key(&rule, &x.as_lane, x.plan.recent, &e);
			sum += NC ? (double)e.credit[0] : 0.0;
		}
	}
	if (!fold)
		return;
#pragma unroll
	for (int k = 0; k < (int)NH; k++)
		if ((uint32_t)k < n_heat && v.heat)
			*(float4 *)(v.heat + k * (int)GPU_BLOCK_SLOTS) = make_float4(old[k][0], old[k][1], old[k][2], old[k][3]);
#pragma unroll
	for (int k = 0; k < (int)NC; k++)
		if (v.credit)
			*(float4 *)array_in(v.credit, (uint32_t)k, slot) = make_float4(v.a[k][0], v.a[k][1], v.a[k][2], v.a[k][3]);
}

/* One round: keys of the thread's slots, from slot `first` of the lane on. */
template <uint32_t P, uint32_t NH, uint32_t NC, uint32_t NT, bool AGED>
static __device__ __forceinline__ void steady_round(const struct lane_ctx &x, uint32_t first, uint32_t fold, uint64_t *keys, double &sum)
{
	struct steady_vector<NH, NC + NT> v[STEADY_VECTORS];
	struct evict_rule rule = x.turn.rule;
	uint32_t n_heat = x.n_heat < NH ? x.n_heat : NH;

	rule.policy = P;
	if (evict_has_age(P) && !AGED)
		rule.param[0] = 0.0f;
#pragma unroll
	for (uint32_t u = 0; u < STEADY_VECTORS; u++)
		steady_load<NH, NC + NT>(x, first + 4u * (threadIdx.x + u * THREADS), fold ? n_heat : 0u, v[u]);
#pragma unroll
	for (uint32_t u = 0; u < STEADY_VECTORS; u++)
		steady_policy<P, NH, NC, NT>(x, rule, first + 4u * (threadIdx.x + u * THREADS), n_heat, fold, v[u], keys + 4u * u, sum);
}

static __device__ __forceinline__ void steady_keys(const struct lane_ctx &x, uint32_t first, uint32_t fold, uint64_t *keys, double &sum)
{
	bool aged = evict_has_age(x.turn.rule.policy) && x.turn.rule.param[0] != 0.0f;

	switch (x.turn.rule.policy) {
#define STEADY_CASE(name, nh, nc, nt)											\
	case EVICT_##name:												\
		if (evict_has_age(EVICT_##name) && aged)								\
			steady_round<EVICT_##name, nh, nc, nt, true>(x, first, fold, keys, sum);			\
		else													\
			steady_round<EVICT_##name, nh, nc, nt, false>(x, first, fold, keys, sum);			\
		break;
	EVICT_POLICIES(STEADY_CASE)
#undef STEADY_CASE
	default: break;
	}
}

/*
 * A bound for the k smallest of the round: at least k of the threads' smallest keys (sh->key[0 .. THREADS-1]) do not lie above it, and not many
 * more. One warp; needs barriers around it.
 */
static __device__ __forceinline__ uint64_t steady_bound(const struct steady_state *sh, uint32_t k)
{
	uint64_t v[THREADS / 32u], low = NO_KEY, high = 0, prefix, same;
	int bit;

#pragma unroll
	for (uint32_t i = 0; i < THREADS / 32u; i++) {
		v[i] = sh->key[threadIdx.x + 32u * i];
		low = v[i] < low ? v[i] : low;
		high = v[i] > high ? v[i] : high;
	}
#pragma unroll
	for (int d = 16; d; d >>= 1) {
		uint64_t a = __shfl_xor_sync(0xffffffffu, low, d), b = __shfl_xor_sync(0xffffffffu, high, d);

		low = a < low ? a : low;
		high = b > high ? b : high;
	}
	if (low == high)
		return high;
	bit = 63 - __clzll((long long)(low ^ high));	/* above it, all keys agree */
	same = bit == 63 ? 0u : high >> (bit + 1) << (bit + 1);
	prefix = same;
	for (; bit >= 0; bit--) {
		uint64_t test = prefix | ((1ull << bit) - 1ull);
		uint32_t count = 0;

#pragma unroll
		for (uint32_t i = 0; i < THREADS / 32u; i++)
			count += __popc(__ballot_sync(0xffffffffu, v[i] <= test));
		if (count < k)
			prefix |= 1ull << bit;
		else if (count <= k + k / 4u)
			return test;
	}
	return prefix;
}

/* The n candidates of sorted[] and slot[] into ascending order: each counts those before it. Keeps the first `most`. Every thread. */
static __device__ __forceinline__ void steady_rank(struct steady_state *sh, uint32_t n, uint32_t most)
{
	uint64_t key[STEADY_ROOM / THREADS];
	uint32_t slot[STEADY_ROOM / THREADS], at[STEADY_ROOM / THREADS];

#pragma unroll
	for (uint32_t u = 0; u < STEADY_ROOM / THREADS; u++) {
		uint32_t i = threadIdx.x + u * THREADS;

		at[u] = 0;
		if (u * THREADS >= n)
			continue;
		key[u] = i < n ? sh->sorted[i] : NO_KEY;
		slot[u] = i < n ? sh->slot[i] : 0xffffffffu;
		if ((i & ~31u) >= n)	/* the whole warp */
			continue;
#pragma unroll 4
		for (uint32_t j = 0; j < n; j++)
			at[u] += comes_after(key[u], slot[u], sh->sorted[j], sh->slot[j]);
	}
	__syncthreads();
#pragma unroll
	for (uint32_t u = 0; u < STEADY_ROOM / THREADS; u++) {
		if (threadIdx.x + u * THREADS < n && at[u] < most) {
			sh->sorted[at[u]] = key[u];
			sh->slot[at[u]] = slot[u];
		}
	}
	__syncthreads();
}

/*
 * Folds (if told to) and finds the k <= STEADY_MAX slots of smallest keys below plan.keep: sh->slot[0 .. k-1], ascending. Returns false when they
 * were too many to tell; all else is done then. sum: the thread's share of the first credit of slots below keep.
 */
static __device__ __forceinline__ bool steady_lane(const struct lane_ctx &x, struct steady_state *sh, uint32_t fold, uint32_t k, double &sum)
{
	uint64_t last = NO_KEY;		/* the k-th smallest key so far */
	uint32_t n = 0;
	bool fits = true;

	for (uint32_t first = 0; first < x.live; first += STEADY_SLOTS) {
		uint64_t keys[STEADY_KEYS], low = NO_KEY, bound;

		steady_keys(x, first, fold, keys, sum);
		if (!k || !fits)
			continue;
#pragma unroll
		for (uint32_t i = 0; i < STEADY_KEYS; i++)
			low = keys[i] < low ? keys[i] : low;
		sh->key[threadIdx.x] = low;
		if (threadIdx.x == 0)
			sh->n_found = n;
		__syncthreads();
		if (threadIdx.x < 32u) {
			bound = steady_bound(sh, k);
			if (threadIdx.x == 0)
				sh->bound = bound;
		}
		__syncthreads();
		bound = sh->bound < last ? sh->bound : last;
#pragma unroll
		for (uint32_t i = 0; i < STEADY_KEYS; i++) {
			if (keys[i] <= bound && keys[i] != NO_KEY) {
				uint32_t at = atomicAdd(&sh->n_found, 1u);	/* any order: they are sorted below */

				if (at < STEADY_ROOM) {
					sh->sorted[at] = keys[i];
					sh->slot[at] = first + 4u * (threadIdx.x + i / 4u * THREADS) + i % 4u;
				}
			}
		}
		__syncthreads();
		n = sh->n_found;
		if (n > STEADY_ROOM) {
			fits = false;
			continue;
		}
		steady_rank(sh, n, k);
		n = n < k ? n : k;
		last = n == k ? sh->sorted[k - 1u] : NO_KEY;
		__syncthreads();
	}
	return fits;
}

#endif
