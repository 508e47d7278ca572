/*
 * Private to select.cu: the common turn, in one pass: a lane that keeps all its slots is folded and ranked, and its least valuable slots are named.
 *
 * What: a warp takes a lane, and waits for nobody: two dozen lanes share a multiprocessor, so that one's chain of addresses hides behind the
 * others' data. Blocks of 256 slots come into a ring in shared memory, by copies that need no registers; a thread folds the vectors of four slots
 * that it copied itself and keeps the smallest upper half (protection, rank) of their keys. After 2048 slots follows a bound: of the smallest of 256
 * groups the k-th smallest cannot lie below the k-th smallest of all, and few vectors have a key below it. The keys of those are computed once
 * more, in full, and find their places by counting the smaller ones. Equal ranks may be many: then the candidates are cut to k every now and then.
 * Memory traffic: position, heat and credit of a slot read once, heat and credit written once; the candidates' twice.
 * Determinism: candidates gather in any order, their places depend on keys and slots alone. Sums are those of select_stats.cuh, in the same order.
 */
#ifndef GPU_CUDA_SELECT_STEADY_CUH
#define GPU_CUDA_SELECT_STEADY_CUH

#include "gpu/cuda/select_stats.cuh"

#define STEADY_BLOCKS 8u		/* of a round: until candidates are looked for */
#define STEADY_VECTORS (STEADY_BLOCKS * GPU_BLOCK_SLOTS / 4u)
#define STEADY_STAGES 2u		/* blocks in the ring */
#define STEADY_ROOM 512u		/* candidates; they lie where the ring was */
#define STEADY_MAX 256u			/* victims */
#define STEADY_CTAS 22u			/* of a multiprocessor: what shared memory has room for. With statistics: what registers have room for */
#define STEADY_STATS_CTAS 14u
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
	__device__ __forceinline__ struct evict_lane_stats *stats(void) const
	{
		return (struct evict_lane_stats *)(steady_memory() + ring + STEADY_MAX * 12u);
	}
};

/* Heat of a thread's places before the fold (select_stats.cuh): slots 4 thread + 128 u + i of every block. */
struct steady_sums {
	float heat[2][4], near[2][4], squares[2][4], second[2][4], most[2][4];
};

/* What all slots of a lane have in common. */
struct steady_lane {
	struct evict_rule rule;
	struct evict_lane lane;
	uint32_t live, keep, recent, n_heat;
	bool fold, sums;
};

static __device__ __forceinline__ uint32_t warp_thread(void) { return threadIdx.x % 32u; }

/* --- a block comes in ------------------------------------------------------------------------------------------------------------ */

/*
 * The thread's block ids of the round from slot `first` on: credit blocks for eight threads, heat blocks for eight others; the turn's table must
 * be known, the lane's header need not be. What lies behind its live slots is not looked at.
 */
static __device__ __forceinline__ uint32_t steady_id(const struct lane_ctx &x, uint32_t lane, uint32_t first, bool *there)
{
	const struct gpu_table *t = &x.turn.table;
	const uint32_t i = warp_thread(), b = first / GPU_BLOCK_SLOTS + i % STEADY_BLOCKS;
	const size_t row = i < STEADY_BLOCKS ? gpu_table_credits(t) : gpu_table_blocks(t);

	*there = i < 2u * STEADY_BLOCKS && lane < t->n_lanes && b < t->max_blocks && (i < STEADY_BLOCKS || t->n_heat);
	return *there ? cuda_u32(x.turn.priv, row)[(size_t)lane * t->max_blocks + b] : 0u;
}

static __device__ __forceinline__ void steady_blocks(struct steady_state *sh, uint32_t id, bool there)
{
	char *at = there ? cuda_at(sh->lane.view, id) : NULL;

	if (warp_thread() < STEADY_BLOCKS)
		sh->credit[warp_thread()] = at;
	else if (warp_thread() < 2u * STEADY_BLOCKS)
		sh->heat[warp_thread() - STEADY_BLOCKS] = at;
}

/* The thread's vectors of block b of the round from slot `first` on are on their way. n_heat: so many heat arrays are read, the others are zeros. */
template <uint32_t NH, uint32_t NA>
static __device__ __forceinline__ void steady_load(const struct lane_ctx &x, const struct steady_state *sh, uint32_t first, uint32_t b, uint32_t n_heat)
{
	const uint32_t slot = first + b * GPU_BLOCK_SLOTS + 4u * warp_thread();
	char *to = steady_memory() + (b % STEADY_STAGES * (1u + NH + NA)) * GPU_BLOCK_SLOTS * 4u + 16u * warp_thread();

	if (b < STEADY_BLOCKS && slot < x.live) {
		const char *c = sh->credit[b], *h = n_heat ? sh->heat[b] : NULL, *nowhere = x.turn.priv;	/* nothing is read there */
		const char *from = (c ? c : nowhere) + 16u * warp_thread(), *heat = (h ? h : nowhere) + 16u * warp_thread();

#pragma unroll
		for (uint32_t u = 0; u < 2; u++, to += 512, from += 512, heat += 512) {
			if (slot + 128u * u >= x.live)
				break;
			copy16(to, from, c);
#pragma unroll
			for (int k = 0; k < (int)NH; k++)
				copy16(to + (1 + k) * 1024, heat + (1 + k) * 1024, h && (uint32_t)k < n_heat);
#pragma unroll
			for (int k = 0; k < (int)NA; k++)
				copy16(to + (1 + NH + k) * 1024, from + (1 + k) * 1024, c);
		}
	}
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* What settle() wrote while the copies were under way: the thread's token, if its slot lies in this block. Every thread. */
static __device__ __forceinline__ void steady_patch(const struct lane_ctx &x, uint32_t *in, uint32_t heats, uint32_t arrays, uint32_t block, uint32_t token)
{
	__syncwarp();
	if (token / GPU_BLOCK_SLOTS == block) {
		const uint32_t at = token % GPU_BLOCK_SLOTS;

		in[at] = (uint32_t)(x.turn.pos + (int32_t)warp_thread());
		for (uint32_t k = 1u + heats; k < arrays; k++)
			in[k * GPU_BLOCK_SLOTS + at] = 0;
	}
	__syncwarp();
}

/* --- fold and rank --------------------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ void unpack4(const float4 &v, float *x)
{
	x[0] = v.x;
	x[1] = v.y;
	x[2] = v.z;
	x[3] = v.w;
}

/* One of four slots, but for its heat. */
template <uint32_t NC, uint32_t NT>
static __device__ __forceinline__ struct evict_slot steady_slot(int32_t pos, uint32_t i, const float (&a)[NC + NT ? NC + NT : 1][4])
{
	struct evict_slot e = {};

	e.pos = pos;
#pragma unroll
	for (int k = 0; k < (int)NC; k++)
		e.credit[k] = a[k][i];
#pragma unroll
	for (int k = 0; k < (int)NT; k++)
		e.trait[k] = a[NC + k][i];
	return e;
}

/*
 * Four slots, the first of them `slot`, at `in`: folds them, if told to, and ranks. Returns their smallest key's upper half. stats: where ranks are
 * counted, NULL if nobody asks.
 */
template <uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ uint32_t steady_vector(const struct steady_lane &x, const uint32_t *in, uint32_t slot, char *heat, char *credit,
							 struct evict_lane_stats *stats, double &sum)
{
	const uint32_t live = x.live - slot, keep = credit && slot < x.keep ? x.keep - slot : 0u;	/* slots of the vector and behind it */
	float h[NH ? NH : 1][4], a[NC + NT ? NC + NT : 1][4];
	const int4 where = *(const int4 *)in;
	const int32_t pos[4] = { where.x, where.y, where.z, where.w };
	uint32_t upper[4];

#pragma unroll
	for (int k = 0; k < (int)NH; k++)
		unpack4(*(const float4 *)(in + (1 + k) * 256), h[k]);
#pragma unroll
	for (int k = 0; k < (int)(NC + NT); k++)
		unpack4(*(const float4 *)(in + (1 + NH + k) * 256), a[k]);
	if (x.fold) {
#pragma unroll
		for (uint32_t i = 0; i < 4; i++) {
			struct evict_slot e = steady_slot<NC, NT>(pos[i], i, a);

#pragma unroll
			for (int k = 0; k < (int)NH; k++)
				e.heat[k] = evict_clean(h[k][i]);
			evict_fold(&x.rule, &x.lane, &e);
#pragma unroll
			for (int k = 0; k < (int)NC; k++)
				a[k][i] = i < live ? e.credit[k] : a[k][i];
#pragma unroll
			for (int k = 0; k < (int)NH; k++)
				h[k][i] = i < live ? 0.0f : h[k][i];
		}
		if (credit) {
#pragma unroll
			for (int k = 0; k < (int)NH; k++)
				if ((uint32_t)k < x.n_heat && heat)
					*(float4 *)array_in(heat, (uint32_t)k, slot) = make_float4(h[k][0], h[k][1], h[k][2], h[k][3]);
#pragma unroll
			for (int k = 0; k < (int)NC; k++)
				*(float4 *)array_in(credit, (uint32_t)k, slot) = make_float4(a[k][0], a[k][1], a[k][2], a[k][3]);
		}
	}
#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		const struct evict_slot e = steady_slot<NC, NT>(pos[i], i, a);
		const uint64_t key = evict_key(&x.rule, &x.lane, x.recent, &e);

		upper[i] = i < keep && e.pos >= 0 ? (uint32_t)(key >> 32) : STEADY_NONE;
		if (stats && !(upper[i] >> 30)) {
			atomicAdd(&stats->free, 1u);
			atomicAdd(&stats->rank[evict_bin(evict_unorder((uint32_t)(key >> 30)))], 1u);
		}
	}
	if (NC && x.sums)
#pragma unroll
		for (uint32_t i = 0; i < 4; i++)
			sum += upper[i] != STEADY_NONE ? (double)a[0][i] : 0.0;
	return min(min(upper[0], upper[1]), min(upper[2], upper[3]));
}

/* Heat of a vector before the fold: stats_of_heat(). */
static __device__ __forceinline__ void steady_heat(const struct lane_ctx &x, const uint32_t *in, uint32_t slot, uint32_t n_heat, uint32_t u,
						   struct steady_sums &s, struct evict_lane_stats *stats)
{
	const int64_t near = (int64_t)x.as_lane.now - (int64_t)x.turn.stats_near;
	const uint32_t one = x.turn.stats_heat[0], two = x.turn.stats_heat[1];

#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		const int32_t pos = (int32_t)in[i];
		float h;

		if (slot + i >= x.live)
			continue;
		h = one < n_heat ? evict_clean(__uint_as_float(in[(1u + one) * GPU_BLOCK_SLOTS + i])) : 0.0f;
		s.heat[u][i] += h;
		s.near[u][i] += pos < x.turn.rule.sinks || (int64_t)pos >= near ? h : 0.0f;
		s.squares[u][i] += h * h;
		s.second[u][i] += two < n_heat ? evict_clean(__uint_as_float(in[(1u + two) * GPU_BLOCK_SLOTS + i])) : 0.0f;
		s.most[u][i] = evict_max(s.most[u][i], h);
		atomicAdd(&stats->heat[evict_bin(h)], 1u);
	}
}

/* What a round is told. */
struct steady_job {
	uint32_t first, n_heat, token;	/* token: the slot of the thread's token if it must be patched, else STEADY_NONE */
	bool fold, sums, patches, settles;
	struct evict_lane_stats *heat, *ranks;	/* statistics that are asked for */
};

/* One round: what was folded is stored, the vectors' smallest keys are left in sh->low[]. */
template <uint32_t P, uint32_t NH, uint32_t NC, uint32_t NT, bool AGED, bool STATS>
static __device__ __forceinline__ void steady_round(const struct lane_ctx &x, struct steady_state *sh, const struct steady_job &job, struct steady_sums &s,
						    double &sum)
{
	constexpr uint32_t arrays = 1u + NH + NC + NT;
	struct steady_lane y = { x.turn.rule, x.as_lane, x.live, x.plan.keep, x.plan.recent, job.n_heat, job.fold, job.sums };

	y.rule.policy = P;
	if (evict_has_age(P) && !AGED)
		y.rule.param[0] = 0.0f;
	for (uint32_t b = 0; b < STEADY_STAGES; b++)
		steady_load<NH, NC + NT>(x, sh, job.first, b, job.n_heat);
	if (job.settles)
		settle(x, warp_thread(), 32u);
#pragma unroll 1
	for (uint32_t b = 0; b < STEADY_BLOCKS && job.first + b * GPU_BLOCK_SLOTS < y.live; b++) {
		uint32_t *in = (uint32_t *)steady_memory() + b % STEADY_STAGES * arrays * GPU_BLOCK_SLOTS;

		asm volatile("cp.async.wait_group %0;" :: "n"(STEADY_STAGES - 1u) : "memory");	/* a thread reads nobody else's copies: no barrier */
		if (job.patches)
			steady_patch(x, in, NH, arrays, job.first / GPU_BLOCK_SLOTS + b, job.token);
#pragma unroll(STATS ? 2 : 1)
		for (uint32_t u = 0; u < 2; u++) {
			const uint32_t v = warp_thread() + 32u * u, slot = job.first + b * GPU_BLOCK_SLOTS + 4u * v;
			uint32_t low = STEADY_NONE;

			if (slot < y.live) {
				if (STATS && job.heat)
					steady_heat(x, in + 4u * v, slot, job.n_heat, u, s, job.heat);
				low = steady_vector<NH, NC, NT>(y, in + 4u * v, slot, sh->heat[b], sh->credit[b], STATS ? job.ranks : NULL, sum);
			}
			sh->low[b * 64u + v] = low;
		}
		steady_load<NH, NC + NT>(x, sh, job.first, b + STEADY_STAGES, job.n_heat);
	}
	asm volatile("cp.async.wait_group 0;" ::: "memory");
}

/* Policies that never come here are left out. */
static __host__ __device__ inline bool steady_never(uint32_t policy)
{
	return evict_has_heat_figure(policy) || evict_has_figure(policy) || evict_has_cut(policy) || evict_has_pool(policy) || evict_has_place(policy);
}

template <bool STATS>
static __device__ __forceinline__ void steady_policy(const struct lane_ctx &x, struct steady_state *sh, const struct steady_job &job, struct steady_sums &s,
						     double &sum)
{
	const bool aged = evict_has_age(x.turn.rule.policy) && x.turn.rule.param[0] != 0.0f;

	switch (x.turn.rule.policy) {
#define STEADY_CASE(name, nh, nc, nt)										\
	case EVICT_##name:											\
		if (steady_never(EVICT_##name))									\
			break;											\
		if (evict_has_age(EVICT_##name) && aged)							\
			steady_round<EVICT_##name, nh, nc, nt, true, STATS>(x, sh, job, s, sum);		\
		else												\
			steady_round<EVICT_##name, nh, nc, nt, false, STATS>(x, sh, job, s, sum);		\
		break;
	EVICT_POLICIES(STEADY_CASE)
#undef STEADY_CASE
	default: break;
	}
}

/* --- the k smallest -------------------------------------------------------------------------------------------------------------- */

/*
 * A bound for the upper halves of the k smallest keys of a round of so many blocks: at least k groups of two vectors have a key that does not lie above
 * it, and not many more, or there are no more.
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
static __device__ __forceinline__ uint32_t steady_smallest(const struct lane_ctx &x, struct steady_state *sh, const struct steady_found &f, uint32_t first,
							   uint32_t n)
{
	const uint32_t blocks = min(STEADY_BLOCKS, (x.live - first + GPU_BLOCK_SLOTS - 1u) / GPU_BLOCK_SLOTS), most = max(128u, min(4u * f.k, STEADY_ROOM - 32u));
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
		const uint64_t key = slot < x.plan.keep ? key_of(x, slot) : NO_KEY;

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

/* --- statistics ------------------------------------------------------------------------------------------------------------------ */

static __device__ __forceinline__ void steady_stats_begin(const struct lane_ctx &x, struct evict_lane_stats *stats)
{
	for (uint32_t i = warp_thread(); i < sizeof(*stats) / 4u; i += 32u)
		((uint32_t *)stats)[i] = 0;
	__syncwarp();
	if (warp_thread() == 0)
		stats->live = x.live;
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

/* All of it goes to the host. */
static __device__ __forceinline__ void steady_stats_end(const struct lane_ctx &x, const struct steady_sums &s, struct evict_lane_stats *stats)
{
	const float sum = steady_places(s.heat), near = steady_places(s.near), squares = steady_places(s.squares), second = steady_places(s.second);
	const float most = steady_most(s.most);

	__syncwarp();
	if (warp_thread() == 0) {
		stats->heat_sum = sum;
		stats->heat_near = near;
		stats->heat_squares = squares;
		stats->second_sum = second;
		stats->heat_max = most;
	}
	__syncwarp();
	for (uint32_t i = warp_thread(); i < sizeof(*stats) / 4u; i += 32u)
		((uint32_t *)&x.turn.lane_stats[x.lane])[i] = ((const uint32_t *)stats)[i];
}

/* --- a turn ---------------------------------------------------------------------------------------------------------------------- */

/*
 * Settles and folds (if told to) and finds the k <= STEADY_MAX slots of smallest keys below plan.keep: f.best(2)[0 .. n-1], ascending. Returns n. sum: the
 * thread's share of the first credit of slots below keep.
 */
template <bool STATS>
static __device__ __forceinline__ uint32_t steady_turn(const struct lane_ctx &x, struct steady_state *sh, const struct steady_found &f, unsigned what, bool sums,
						       double &sum)
{
	const uint32_t tokens = what & GPU_SETTLE ? window_tokens(x) : 0u;
	const bool fold = what & GPU_FOLD, reads = fold || f.k || sums, patches = tokens && reads && tokens <= 32u && !x.turn.n_once;
	struct evict_lane_stats *heat = x.turn.stats & EVICT_STATS_HEAT ? f.stats() : NULL, *ranks = x.turn.stats & EVICT_STATS_RANK ? f.stats() : NULL;
	struct steady_job job = { 0, fold ? min(x.n_heat, x.turn.policy_heat) : 0u, STEADY_NONE, fold, sums, patches, patches, heat, ranks };
	struct steady_sums s = {};
	uint32_t n = 0;

	if (STATS && x.turn.stats)
		steady_stats_begin(x, f.stats());
	if (patches && warp_thread() < tokens)
		job.token = gpu_slot_of(x.head, x.next, warp_thread());
	if (job.token >= x.live)
		job.token = STEADY_NONE;
	if (tokens && !patches)		/* more than a thread has, or with traits, which are too much work to be done twice */
		settle(x, warp_thread(), 32u);
	for (; reads && job.first < x.live; job.first += 4u * STEADY_VECTORS) {
		__syncwarp();
		if (job.first) {
			bool there;
			const uint32_t id = steady_id(x, x.lane, job.first, &there);

			steady_blocks(sh, id, there);
			__syncwarp();
		}
		steady_policy<STATS>(x, sh, job, s, sum);
		job.settles = false;
		if (f.k)
			n = steady_smallest(x, sh, f, job.first, n);
	}
	if (STATS && x.turn.stats)
		steady_stats_end(x, s, f.stats());
	return n;
}

#endif
