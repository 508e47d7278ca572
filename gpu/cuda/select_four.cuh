/*
 * Private to select.cu: four slots of a lane as a thread of select_steady.cuh has them: folded, ranked, counted for statistics.
 *
 * Determinism: sums are those of select_stats.cuh, in the same order.
 */
#ifndef GPU_CUDA_SELECT_FOUR_CUH
#define GPU_CUDA_SELECT_FOUR_CUH

#include "gpu/cuda/select_smallest.cuh"

/* Heat of a thread's places before the fold (select_stats.cuh): slots 4 thread + 128 u + i of every block. */
struct steady_sums {
	float heat[2][4], near[2][4], squares[2][4], second[2][4], most[2][4];
};

/* What all slots of a lane have in common. */
struct steady_lane {
	struct evict_rule rule;
	struct evict_lane lane;
	uint32_t live, keep, recent, n_heat;
	int32_t from;			/* positions of slots that may leave, if they are not marked: from here on, */
	uint32_t span;			/* so many */
	bool fold, sums;
};

/* Four slots: what is read of them. */
template <uint32_t NH, uint32_t NC, uint32_t NT> struct steady_four {
	int32_t pos[4];
	float heat[NH ? NH : 1][4], a[NC + NT ? NC + NT : 1][4];	/* a: credits, then traits */
};

template <typename V, typename E> static __device__ __forceinline__ void unpack4(const V &v, E (&x)[4])
{
	x[0] = v.x;
	x[1] = v.y;
	x[2] = v.z;
	x[3] = v.w;
}

template <uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ void steady_take(const uint32_t *in, struct steady_four<NH, NC, NT> &v)
{
	unpack4(*(const int4 *)in, v.pos);
#pragma unroll
	for (int k = 0; k < (int)NH; k++)
		unpack4(*(const float4 *)(in + (1 + k) * 256), v.heat[k]);
#pragma unroll
	for (int k = 0; k < (int)(NC + NT); k++)
		unpack4(*(const float4 *)(in + (1 + NH + k) * 256), v.a[k]);
}

/* The same from a credit block and a heat block, or nothing; at: byte offset of the four in an array. heats: arrays there are. */
template <uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ void steady_fetch(const char *credit, const char *heat, uint32_t heats, uint32_t at,
						    struct steady_four<NH, NC, NT> &v)
{
	unpack4(*(const int4 *)(credit + at), v.pos);
#pragma unroll
	for (int k = 0; k < (int)NH; k++)
		unpack4(heat && (uint32_t)k < heats ? *(const float4 *)(heat + (1 + k) * 1024 + at) : make_float4(0, 0, 0, 0), v.heat[k]);
#pragma unroll
	for (int k = 0; k < (int)(NC + NT); k++)
		unpack4(*(const float4 *)(credit + (1 + k) * 1024 + at), v.a[k]);
}

/* One of them, but for its heat. */
template <uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ struct evict_slot steady_slot(const struct steady_four<NH, NC, NT> &v, uint32_t i)
{
	struct evict_slot e = {};

	e.pos = v.pos[i];
#pragma unroll
	for (int k = 0; k < (int)NC; k++)
		e.credit[k] = v.a[k][i];
#pragma unroll
	for (int k = 0; k < (int)NT; k++)
		e.trait[k] = v.a[NC + k][i];
	return e;
}

/* What nobody looks at before long: others may have its place in the L2. */
static __device__ __forceinline__ void store16(char *to, float a, float b, float c, float d)
{
	asm volatile("st.global.cs.v4.f32 [%0], {%1, %2, %3, %4};" :: "l"(__cvta_generic_to_global(to)), "f"(a), "f"(b), "f"(c), "f"(d)
		     : "memory");
}

template <uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ void steady_folded(const struct steady_lane &x, struct steady_four<NH, NC, NT> &v)
{
#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		struct evict_slot e = steady_slot(v, i);

#pragma unroll
		for (int k = 0; k < (int)NH; k++)
			e.heat[k] = evict_clean(v.heat[k][i]);
		evict_fold(&x.rule, &x.lane, &e);
#pragma unroll
		for (int k = 0; k < (int)NC; k++)
			v.a[k][i] = e.credit[k];
	}
}

/* Folds them. heat, credit: where the four's first array would be; heat NULL: it is not there. */
template <uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ void steady_fold(const struct steady_lane &x, struct steady_four<NH, NC, NT> &v, char *heat, char *credit)
{
	steady_folded(x, v);
#pragma unroll
	for (int k = 0; k < (int)NH; k++)
		if ((uint32_t)k < x.n_heat && heat)
			store16(heat + (1 + k) * 1024, 0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
	for (int k = 0; k < (int)NC; k++)
		store16(credit + (1 + k) * 1024, v.a[k][0], v.a[k][1], v.a[k][2], v.a[k][3]);
}

/*
 * From the first-th on they are not live: what lies there is made what it was before steady_fold(). in: where in shared memory the four
 * are.
 */
static __device__ __noinline__ void steady_restore(uint32_t in, uint32_t first, char *heat, uint32_t heats, uint32_t n_heat, char *credit,
						   uint32_t credits)
{
	const float *was = (const float *)steady_memory() + in;

	for (uint32_t i = first; i < 4; i++) {
		for (uint32_t k = 0; heat && k < n_heat; k++)
			((float *)heat)[(1u + k) * GPU_BLOCK_SLOTS + i] = was[(1u + k) * GPU_BLOCK_SLOTS + i];
		for (uint32_t k = 0; k < credits; k++)
			((float *)credit)[(1u + k) * GPU_BLOCK_SLOTS + i] = was[(1u + heats + k) * GPU_BLOCK_SLOTS + i];
	}
}

/* Is one of them NaN? */
static __device__ __forceinline__ bool is_unordered(float a, float b)
{
	return !(a >= b || a < b);
}

/*
 * The smallest upper half of the keys of those that may leave; STEADY_KEPT or more: none may. Slots that do not count have no position.
 * stats: where ranks are counted, NULL if nobody asks.
 */
template <uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ uint32_t steady_low(const struct steady_lane &x, const struct steady_four<NH, NC, NT> &v,
						      struct stats_counts *stats, double &sum)
{
	float rank[4];
	bool nan;

#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		const struct evict_slot e = steady_slot(v, i);
		const bool leaves = (uint32_t)(e.pos - x.from) < x.span;

		rank[i] = evict_rank(&x.rule, &x.lane, &e);
		if (stats && leaves) {
			atomicAdd(&stats->free, 1u);
			atomicAdd(&stats->rank[evict_rank_bin(x.rule.policy, rank[i])], 1u);
		}
		rank[i] = leaves ? rank[i] : INFINITY;
	}
	if (NC && x.sums)
#pragma unroll
		for (uint32_t i = 0; i < 4; i++)
			sum += v.pos[i] >= 0 ? (double)v.a[0][i] : 0.0;
	nan = is_unordered(rank[0], rank[1]) || is_unordered(rank[2], rank[3]);		/* smaller than all numbers */
	return nan ? 0u : evict_order(fminf(fminf(rank[0], rank[1]), fminf(rank[2], rank[3]))) >> 2;
}

/* What statistics a kernel knows of: none, histograms, the sums of heat as well. */
enum steady_stats { STEADY_NO_STATS, STEADY_COUNTS, STEADY_SUMS };

/* Heat before the fold, of the first n of four: stats_of_heat(). */
template <bool SUMS, uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ void steady_heat(const struct lane_ctx &x, const struct steady_four<NH, NC, NT> &v, uint32_t n,
						   uint32_t n_heat, uint32_t u, struct steady_sums &s, struct stats_counts *counts)
{
	const int64_t near = (int64_t)x.as_lane.now - (int64_t)x.turn.stats_near;
	const uint32_t one = x.turn.stats_heat[0], two = x.turn.stats_heat[1];

#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		float heat[2] = {}, h;

#pragma unroll
		for (int k = 0; k < (int)NH; k++) {
			heat[0] = one == (uint32_t)k && one < n_heat ? v.heat[k][i] : heat[0];
			heat[1] = two == (uint32_t)k && two < n_heat ? v.heat[k][i] : heat[1];
		}
		if (i >= n)
			continue;
		h = evict_clean(heat[0]);
		if (counts)
			atomicAdd(&counts->heat[evict_bin(h)], 1u);
		if (!SUMS)
			continue;
		s.heat[u][i] += h;
		s.near[u][i] += v.pos[i] < x.turn.rule.sinks || (int64_t)v.pos[i] >= near ? h : 0.0f;
		s.squares[u][i] += h * h;
		s.second[u][i] += evict_clean(heat[1]);
		s.most[u][i] = evict_max(s.most[u][i], h);
	}
}

/* --- statistics ------------------------------------------------------------------------------------------------------------------ */

static __device__ __forceinline__ void steady_stats_begin(const struct lane_ctx &x, struct stats_counts *counts)
{
	for (uint32_t i = warp_thread(); x.turn.stats & EVICT_STATS_HEAT && i < EVICT_BINS; i += 32u)
		counts->heat[i] = 0;
	for (uint32_t i = warp_thread(); x.turn.stats & EVICT_STATS_RANK && i <= EVICT_BINS; i += 32u)
		(i < EVICT_BINS ? counts->rank[i] : counts->free) = 0;
	__syncwarp();
}

/* evict_places() of a thread's places: halves of blocks, then threads, then the four of a vector. In thread 0. */
static __device__ __forceinline__ float steady_places(const float (&part)[2][4])
{
	float p[4];

#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		p[i] = part[0][i] + part[1][i];
		for (int gap = 16; gap; gap >>= 1)
			p[i] += __shfl_down_sync(WARP_ALL, p[i], (unsigned)gap);
	}
	return (p[0] + p[2]) + (p[1] + p[3]);
}

/* The same for the largest: of equal ones that of the last place is left, as in block_most(). */
static __device__ __forceinline__ float steady_most(const float (&part)[2][4])
{
	float p[4];

#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		p[i] = evict_max(part[0][i], part[1][i]);
		for (int gap = 16; gap; gap >>= 1)
			p[i] = evict_max(p[i], __shfl_down_sync(WARP_ALL, p[i], (unsigned)gap));
	}
	return evict_max(evict_max(p[0], p[2]), evict_max(p[1], p[3]));
}

/* They go to the host. */
template <bool SUMS>
static __device__ __forceinline__ void steady_stats_end(const struct lane_ctx &x, const struct steady_sums &s, struct stats_counts *counts)
{
	if (SUMS && x.turn.stats & EVICT_STATS_SUMS) {
		const float sum = steady_places(s.heat), near = steady_places(s.near), squares = steady_places(s.squares);
		const float second = steady_places(s.second), most = steady_most(s.most);

		if (warp_thread() == 0) {
			counts->sum = sum;
			counts->near = near;
			counts->squares = squares;
			counts->second = second;
			counts->most = most;
		}
	}
	__syncwarp();
	stats_send(x, counts, warp_thread(), 32u);
}

#endif
