/*
 * Private to select.cu: the common turn, in one pass: a lane that keeps all its slots is folded and ranked, and its least valuable slots
 * are named.
 *
 * What: a warp takes a lane, and waits for nobody: two dozen lanes share a multiprocessor, so that one's chain of addresses hides behind
 * the others' data. Blocks of 256 slots come into a ring in shared memory, by copies that need no registers; a thread folds the vectors of four
 * slots that it copied itself and keeps the smallest upper half (protection, rank) of their keys. After every 2048 slots
 * select_smallest.cuh finds the least valuable.
 * Memory traffic: position, heat and credit of a slot read once, heat and credit written once; the candidates' read twice.
 * Determinism: as select_smallest.cuh; sums are those of select_stats.cuh, in the same order.
 */
#ifndef GPU_CUDA_SELECT_STEADY_CUH
#define GPU_CUDA_SELECT_STEADY_CUH

#include "gpu/cuda/select_open.cuh"
#include "gpu/cuda/select_smallest.cuh"
#include "gpu/cuda/select_stats.cuh"

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

/* --- a block comes in ------------------------------------------------------------------------------------------------------------ */

/*
 * The thread's block id of the round from slot `first` on: credit blocks for eight threads, heat blocks for eight others; the turn's table
 * must be known, the lane's header need not be. What lies behind its live slots is not looked at.
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

/* warp_thread(), read once: left to itself the compiler reads the register wherever it is asked for. */
static __device__ __forceinline__ uint32_t thread_once(void)
{
	uint32_t t;

	asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
	return t;
}

/*
 * The thread's vectors of block b of the round are on their way into a stage of the ring. left: live slots of the lane from that block on. n_heat: heat
 * arrays to read; the others are zeros.
 */
template <uint32_t NH, uint32_t NA>
static __device__ __forceinline__ void steady_load(const struct steady_state *sh, const char *nowhere, uint32_t t, uint32_t b, uint32_t stage,
						   uint32_t left, uint32_t n_heat)
{
	char *to = steady_memory() + stage * (1u + NH + NA) * GPU_BLOCK_SLOTS * 4u + 16u * t;

	if (b < STEADY_BLOCKS && 4u * t < left) {
		const char *c = sh->credit[b], *h = n_heat ? sh->heat[b] : NULL;	/* nothing is read where one is not there */
		const char *from = (c ? c : nowhere) + 16u * t, *heat = (h ? h : nowhere) + 16u * t;

#pragma unroll
		for (uint32_t u = 0; u < 2; u++, to += 512, from += 512, heat += 512) {
			if (4u * t + 128u * u >= left)
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
static __device__ __forceinline__ void steady_patch(const struct lane_ctx &x, uint32_t *in, uint32_t heats, uint32_t arrays, uint32_t block,
						    uint32_t token)
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

/* Trait i of the window's tokens: their rows come through the ring, as many as it holds at a time. */
static __device__ __noinline__ void steady_traits(const struct lane_ctx &x, uint32_t tokens, uint32_t i, uint32_t ring)
{
	const uint32_t trait = x.turn.rule.trait[i], which = trait_row(trait), type = x.turn.slot_type, d = x.turn.head_dim;
	const uint32_t bytes = gpu_row_bytes(type, d), pieces = bytes / 16u, rows = min(32u, ring / bytes);

	for (uint32_t first = 0; first < tokens; first += rows) {
		const uint32_t n = min(rows, tokens - first), own = warp_thread() < n ? gpu_slot_of(x.head, x.next, first + warp_thread()) : STEADY_NONE;
		const char *page = own < x.live ? cuda_at(x.view, x.page[own / GPU_PAGE_SLOTS]) : NULL, *row = page ? row_in(x, page, own, which) : NULL;
		const uint32_t param = page ? row_param(x, page, own, which) : 0u;
		uint32_t r = warp_thread() / pieces, piece = warp_thread() % pieces;

		__syncwarp();
		for (uint32_t p = 0; p < n * pieces; p += 32u) {
			const char *from = (const char *)__shfl_sync(WARP_ALL, (unsigned long long)row, (int)(r & 31u));

			if (r < n)
				copy16(steady_memory() + (p + warp_thread()) * 16u, (from ? from : x.turn.priv) + piece * 16u, from);
			r += 32u / pieces;
			piece += 32u % pieces;
			r += piece >= pieces;
			piece -= piece >= pieces ? pieces : 0u;
		}
		asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 0;" ::: "memory");
		__syncwarp();
		for (r = warp_thread() / ROW_THREADS; r < (n + 1u & ~1u); r += 2u) {	/* half a warp a row */
			const uint32_t slot = __shfl_sync(WARP_ALL, own, (int)r), scale = __shfl_sync(WARP_ALL, param, (int)r);
			const float value = row_trait(row_of(steady_memory() + r * bytes, scale, type, d), trait, d);
			char *credit = r < n && slot < x.live ? credit_block(x, slot) : NULL;

			if (credit && row_thread() == 0)
				*array_in(credit, x.n_credit + i, slot) = value;
		}
		__syncwarp();
	}
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

/* What statistics a kernel knows of: none, histograms, the sums of heat as well. */
enum steady_stats { STEADY_NO_STATS, STEADY_COUNTS, STEADY_SUMS };

static __device__ __forceinline__ void store16(float *to, float a, float b, float c, float d)
{
	asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" :: "l"(__cvta_generic_to_global(to)), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

/* Is one of them NaN? */
static __device__ __forceinline__ bool is_unordered(float a, float b)
{
	return !(a >= b || a < b);
}

/* What lies behind the lane's live slots, of the vector at `in`, is what it was before the vector was folded. */
static __device__ __noinline__ void steady_restore(const uint32_t *in, uint32_t slot, uint32_t live, char *heat, uint32_t heats, uint32_t n_heat,
						   char *credit, uint32_t credits)
{
	for (uint32_t i = live - slot; i < 4; i++) {
		for (uint32_t k = 0; heat && k < n_heat; k++)
			*array_in(heat, k, slot + i) = __uint_as_float(in[(1u + k) * GPU_BLOCK_SLOTS + i]);
		for (uint32_t k = 0; k < credits; k++)
			*array_in(credit, k, slot + i) = __uint_as_float(in[(1u + heats + k) * GPU_BLOCK_SLOTS + i]);
	}
}

/*
 * Four slots, the first of them `slot`, at `in`: folds them, if told to, and ranks. Returns the smallest upper half of the keys of those that may leave;
 * STEADY_KEPT or more: none may. stats: where ranks are counted, NULL if nobody asks.
 */
template <uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ uint32_t steady_vector(const struct steady_lane &x, const uint32_t *in, uint32_t slot, char *heat,
							 char *credit, struct stats_counts *stats, double &sum)
{
	const int4 where = *(const int4 *)in;
	float h[NH ? NH : 1][4], a[NC + NT ? NC + NT : 1][4], rank[4];
	int32_t pos[4] = { where.x, where.y, where.z, where.w };

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
				a[k][i] = e.credit[k];
		}
#pragma unroll
		for (int k = 0; k < (int)NH; k++)
			if ((uint32_t)k < x.n_heat && heat)
				store16(array_in(heat, (uint32_t)k, slot), 0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
		for (int k = 0; k < (int)NC; k++)
			store16(array_in(credit, (uint32_t)k, slot), a[k][0], a[k][1], a[k][2], a[k][3]);
	}
	if (slot + 4u > min(x.live, x.keep)) {
		if (x.fold && slot + 4u > x.live)
			steady_restore(in, slot, x.live, heat, NH, x.n_heat, credit, NC);
#pragma unroll
		for (uint32_t i = 0; i < 4; i++)
			pos[i] = slot + i < x.live && slot + i < x.keep ? pos[i] : -1;
	}
#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		const struct evict_slot e = steady_slot<NC, NT>(pos[i], i, a);
		const bool leaves = (uint32_t)(pos[i] - x.from) < x.span;

		rank[i] = evict_rank(&x.rule, &x.lane, &e);
		if (stats && leaves) {
			atomicAdd(&stats->free, 1u);
			atomicAdd(&stats->rank[evict_bin(rank[i])], 1u);
		}
		rank[i] = leaves ? rank[i] : INFINITY;
	}
	if (NC && x.sums)
#pragma unroll
		for (uint32_t i = 0; i < 4; i++)
			sum += pos[i] >= 0 ? (double)a[0][i] : 0.0;
	if (is_unordered(rank[0], rank[1]) || is_unordered(rank[2], rank[3]))
		return 0;		/* NaN is smaller than all numbers */
	return evict_order(fminf(fminf(rank[0], rank[1]), fminf(rank[2], rank[3]))) >> 2;
}

/* Heat of a vector before the fold: stats_of_heat(). */
template <bool SUMS>
static __device__ __forceinline__ void steady_heat(const struct lane_ctx &x, const uint32_t *in, uint32_t slot, uint32_t n_heat, uint32_t u,
						   struct steady_sums &s, struct stats_counts *counts)
{
	const int64_t near = (int64_t)x.as_lane.now - (int64_t)x.turn.stats_near;
	const uint32_t one = x.turn.stats_heat[0], two = x.turn.stats_heat[1];
	float heat[4] = {}, second[4] = {};

	if (one < n_heat)
		unpack4(*(const float4 *)(in + (1u + one) * GPU_BLOCK_SLOTS), heat);
	if (SUMS && two < n_heat)
		unpack4(*(const float4 *)(in + (1u + two) * GPU_BLOCK_SLOTS), second);
#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		const int32_t pos = (int32_t)in[i];
		const float h = evict_clean(heat[i]);

		if (slot + i >= x.live)
			continue;
		if (counts)
			atomicAdd(&counts->heat[evict_bin(h)], 1u);
		if (!SUMS)
			continue;
		s.heat[u][i] += h;
		s.near[u][i] += pos < x.turn.rule.sinks || (int64_t)pos >= near ? h : 0.0f;
		s.squares[u][i] += h * h;
		s.second[u][i] += evict_clean(second[i]);
		s.most[u][i] = evict_max(s.most[u][i], h);
	}
}

/* What a round is told. */
struct steady_job {
	uint32_t first, n_heat, token;	/* token: the slot of the thread's token if it must be patched, else STEADY_NONE */
	bool fold, sums, patches, settles, looks;	/* looks: at the heat, for statistics */
	struct stats_counts *heat, *ranks;	/* where they are counted; NULL: nobody asks */
};

/* The keys of candidates, slots of listed vectors, and of best(), which has n: it then has as many as returned. */
template <uint32_t NC, uint32_t NT>
static __device__ __forceinline__ uint32_t steady_keys(const struct steady_lane &x, const struct steady_state *sh, const struct steady_found &f,
						       uint32_t first, const struct steady_list &list, uint64_t last, uint32_t n)
{
	const uint32_t most = max(128u, min(4u * f.k, STEADY_ROOM - 68u));	/* candidates before they are cut to k */

	for (uint32_t from = 0; from < 4u * list.vectors; from += 64u) {
		float a[2][NC + NT ? NC + NT : 1];
		uint32_t slot[2];
		int32_t pos[2];

#pragma unroll
		for (uint32_t u = 0; u < 2; u++) {
			const uint32_t j = from + 32u * u + warp_thread();
			const char *c;

			slot[u] = j < 4u * list.vectors ? first + 4u * sh->low[j / 4u] + j % 4u : STEADY_NONE;
			c = slot[u] < x.keep && slot[u] < x.live ? sh->credit[(slot[u] - first) / GPU_BLOCK_SLOTS] : NULL;
			pos[u] = c ? *((const int32_t *)c + slot[u] % GPU_BLOCK_SLOTS) : -1;
#pragma unroll
			for (int k = 0; k < (int)(NC + NT); k++)
				a[u][k] = c ? *((const float *)c + (1 + k) * 256 + slot[u] % GPU_BLOCK_SLOTS) : 0.0f;
		}
#pragma unroll
		for (uint32_t u = 0; u < 2; u++) {
			struct evict_slot e = {};
			uint64_t key = NO_KEY;
			uint32_t all;
			bool mine;

			e.pos = pos[u];
#pragma unroll
			for (int k = 0; k < (int)NC; k++)
				e.credit[k] = a[u][k];
#pragma unroll
			for (int k = 0; k < (int)NT; k++)
				e.trait[k] = a[u][NC + k];
			if (pos[u] >= 0)
				key = evict_key(&x.rule, &x.lane, x.recent, &e);
			mine = (uint32_t)(key >> 32) <= list.bound && key <= last;
			all = __ballot_sync(WARP_ALL, mine);
			if (mine) {
				const uint32_t at = n + __popc(all & ((1u << warp_thread()) - 1u));

				f.found(0)[at] = (uint32_t)(key >> 32);
				f.found(1)[at] = (uint32_t)key;
				f.found(2)[at] = slot[u];
			}
			n += __popc(all);
		}
		if (n > most) {
			n = steady_rank(f, n);
			last = steady_last(f, n);
			steady_again(f, n);
		}
	}
	return steady_rank(f, n);
}

/*
 * One round: what was folded is stored; best(), which has the n smallest keys of the rounds before it, then has as many of this one and those as
 * returned.
 */
template <uint32_t P, uint32_t NH, uint32_t NC, uint32_t NT, bool AGED, enum steady_stats STATS>
static __device__ __forceinline__ uint32_t steady_round(const struct lane_ctx &x, struct steady_state *sh, const struct steady_job &job,
							const struct steady_found &f, struct steady_sums &s, double &sum, uint32_t n)
{
	constexpr uint32_t arrays = 1u + NH + NC + NT;
	const uint32_t left = x.live - job.first, blocks = min(STEADY_BLOCKS, gpu_blocks_for(left));
	const int32_t free_from = max(max(x.turn.rule.sinks, x.turn.rule.pinned), 0);
	const int32_t free_to = max(x.as_lane.now - (int32_t)min(x.plan.recent, 0x7fffffffu), free_from);
	struct steady_lane y = { x.turn.rule, x.as_lane, x.live, x.plan.keep, x.plan.recent, job.n_heat, free_from, (uint32_t)(free_to - free_from),
				 job.fold, job.sums };
	const uint32_t t = thread_once();
	const char *nowhere = x.turn.priv;

	y.rule.policy = P;
	if (evict_has_age(P) && !AGED)
		y.rule.param[0] = 0.0f;
	for (uint32_t b = 0; b < STEADY_STAGES; b++)
		steady_load<NH, NC + NT>(sh, nowhere, t, b, b, left > b * GPU_BLOCK_SLOTS ? left - b * GPU_BLOCK_SLOTS : 0u, job.n_heat);
	if (job.settles)
		settle_slots(x, warp_thread(), 32u);
#pragma unroll 1
	for (uint32_t b = 0, stage = 0; b < blocks; b++, stage = stage + 1u < STEADY_STAGES ? stage + 1u : 0u) {
		uint32_t *in = (uint32_t *)steady_memory() + stage * arrays * GPU_BLOCK_SLOTS;
		const uint32_t next = (b + STEADY_STAGES) * GPU_BLOCK_SLOTS;
		char *credit = sh->credit[b], *heat = sh->heat[b];

		asm volatile("cp.async.wait_group %0;" :: "n"(STEADY_STAGES - 1u) : "memory");	/* a thread reads nobody else's copies: no barrier */
		if (job.patches)
			steady_patch(x, in, NH, arrays, job.first / GPU_BLOCK_SLOTS + b, job.token);
#pragma unroll
		for (uint32_t u = 0; u < 2; u++) {
			const uint32_t v = t + 32u * u, slot = job.first + b * GPU_BLOCK_SLOTS + 4u * v;
			uint32_t low = STEADY_NONE;

			if (slot < y.live) {
				if (STATS && job.looks)
					steady_heat<STATS == STEADY_SUMS>(x, in + 4u * v, slot, job.n_heat, u, s, job.heat);
				if (credit)
					low = steady_vector<NH, NC, NT>(y, in + 4u * v, slot, heat, credit, STATS ? job.ranks : NULL, sum);
			}
			sh->low[b * 64u + v] = low;
		}
		steady_load<NH, NC + NT>(sh, nowhere, t, b + STEADY_STAGES, stage, left > next ? left - next : 0u, job.n_heat);
	}
	asm volatile("cp.async.wait_group 0;" ::: "memory");
	if (f.k) {
		const uint64_t last = steady_last(f, n);
		const struct steady_list list = steady_candidates(sh, blocks, f.k, (uint32_t)(last >> 32));

		steady_again(f, n);
		n = steady_keys<NC, NT>(y, sh, f, job.first, list, last, n);
	}
	return n;
}

/* Policies that never come here are left out. */
static __host__ __device__ inline bool steady_never(uint32_t policy)
{
	return evict_has_heat_figure(policy) || evict_has_figure(policy) || evict_has_cut(policy) || evict_has_pool(policy) ||
	       evict_has_place(policy);
}

template <enum steady_stats STATS>
static __device__ __forceinline__ uint32_t steady_policy(const struct lane_ctx &x, struct steady_state *sh, const struct steady_job &job,
							 const struct steady_found &f, struct steady_sums &s, double &sum, uint32_t n)
{
	const bool aged = evict_has_age(x.turn.rule.policy) && x.turn.rule.param[0] != 0.0f;

	switch (x.turn.rule.policy) {
#define STEADY_CASE(name, nh, nc, nt)										\
	case EVICT_##name:											\
		if (steady_never(EVICT_##name))									\
			break;											\
		if (evict_has_age(EVICT_##name) && aged)							\
			n = steady_round<EVICT_##name, nh, nc, nt, true, STATS>(x, sh, job, f, s, sum, n);	\
		else												\
			n = steady_round<EVICT_##name, nh, nc, nt, false, STATS>(x, sh, job, f, s, sum, n);	\
		break;
	EVICT_POLICIES(STEADY_CASE)
#undef STEADY_CASE
	default: break;
	}
	return n;
}

/* --- statistics ------------------------------------------------------------------------------------------------------------------ */

/* Bytes that a warp needs for these. */
static inline uint32_t steady_stats_bytes(uint32_t stats)
{
	return (uint32_t)(stats & EVICT_STATS_SUMS ? sizeof(struct stats_counts) : stats & EVICT_STATS_RANK ? offsetof(struct stats_counts, sum) :
			  stats ? offsetof(struct stats_counts, rank) : 0u);
}

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

/* --- a turn ---------------------------------------------------------------------------------------------------------------------- */

/*
 * Settles and folds (if told to) and finds the k <= STEADY_MAX slots of smallest keys below plan.keep: f.best(2)[0 .. n-1], ascending.
 * Returns n. sum: the thread's share of the first credit of slots below keep.
 */
template <enum steady_stats STATS>
static __device__ __forceinline__ uint32_t steady_turn(const struct lane_ctx &x, struct steady_state *sh, const struct steady_found &f,
						       unsigned what, bool sums, double &sum)
{
	const uint32_t tokens = what & GPU_SETTLE ? window_tokens(x) : 0u;
	const bool fold = what & GPU_FOLD, reads = fold || f.k || sums, patches = tokens && reads && tokens <= 32u && !x.turn.n_once;
	const bool looks = x.turn.stats & (EVICT_STATS_HEAT | EVICT_STATS_SUMS);
	struct stats_counts *counts = (struct stats_counts *)f.end();
	struct steady_job job = { 0, fold ? min(x.n_heat, x.turn.policy_heat) : 0u, STEADY_NONE, fold, sums, patches, patches, looks,
				  x.turn.stats & EVICT_STATS_HEAT ? counts : NULL, x.turn.stats & EVICT_STATS_RANK ? counts : NULL };
	struct steady_sums s = {};
	uint32_t n = 0;

	if (STATS && x.turn.stats)
		steady_stats_begin(x, counts);
	if (patches && warp_thread() < tokens)
		job.token = gpu_slot_of(x.head, x.next, warp_thread());
	if (job.token >= x.live)
		job.token = STEADY_NONE;
	if (tokens && !patches)		/* more than a thread has, or traits, which are not known before their rows have come */
		settle_slots(x, warp_thread(), 32u);
	for (uint32_t i = 0; tokens && i < x.turn.n_once; i++)	/* those of one kind: no policy has two kinds */
		steady_traits(x, tokens, i, f.ring);
	for (; reads && job.first < x.live; job.first += 4u * STEADY_VECTORS) {
		__syncwarp();
		if (job.first) {
			bool there;
			const uint32_t id = steady_id(x, x.lane, job.first, &there);

			steady_blocks(sh, id, there);
			__syncwarp();
		}
		n = steady_policy<STATS>(x, sh, job, f, s, sum, n);
		job.settles = false;
	}
	if (STATS && x.turn.stats)
		steady_stats_end<STATS == STEADY_SUMS>(x, s, counts);
	return n;
}

/* --- the kernel ------------------------------------------------------------------------------------------------------------------ */

/* Does the lane keep all of its slots, and does its policy need to see no other slot to rank one? */
static __device__ __forceinline__ bool is_steady(const struct select_args &a, const struct lane_ctx &x)
{
	if (a.what & GPU_FOLD && x.n_heat > x.turn.policy_heat)	/* for statistics of other turns: it is zeroed, too */
		return false;
	if (x.turn.stats & EVICT_STATS_RANK && a.what & GPU_NEXT && x.plan.keep != x.live)	/* ranks are of all live slots */
		return false;
	return x.turn.may_be_steady && (!(a.what & (GPU_REMOVE | GPU_COMPACT)) || x.plan.keep == x.live) &&
	       (!(a.what & GPU_NEXT) || x.plan.victims <= STEADY_MAX);
}

static __device__ __forceinline__ void leave_lane(const struct select_args &a, uint32_t turn, uint32_t lane)
{
	a.left[atomicAdd(a.n_left, 1u)] = make_uint2(turn, lane);
}

/* Finds the lane: one thread for all. */
static __device__ __forceinline__ void steady_open(const struct select_args &a, uint32_t turn, uint32_t lane, struct lane_ctx *x)
{
	const bool there = open_lane(a, lane, x);

	x->is_steady = there && is_steady(a, *x);
	if (!x->is_steady) {
		if (there)
			leave_lane(a, turn, lane);
		return;
	}
	if (a.what & GPU_NEXT) {
		x->plan.victims = min(min(x->plan.victims, x->plan.keep), x->turn.table.window);
	} else {
		x->plan.victims = 0;
		x->plan.keep = x->live;
	}
}

static __device__ __forceinline__ double warp_sum(double v)
{
	for (int i = 16; i; i >>= 1)
		v += __shfl_down_sync(WARP_ALL, v, i);
	return v;
}

/* A warp, which is a CTA, a lane: grid.x lanes of each turn. */
template <enum steady_stats STATS>
static __global__ void __launch_bounds__(32, STATS == STEADY_SUMS ? STEADY_SUMS_CTAS : STATS ? STEADY_COUNT_CTAS : STEADY_CTAS)
steady_kernel(const __grid_constant__ struct select_args a)
{
	__shared__ struct steady_state sh;
	const struct lane_ctx &x = sh.lane;
	double sum = 0.0, leaving = 0.0;
	struct steady_found f;
	uint32_t id, n;
	bool there;

	mma_after();
	mma_next();
	open_turn(a, blockIdx.y, &sh.lane);
	__syncwarp();
	id = steady_id(x, blockIdx.x, 0, &there);	/* on its way while the lane is opened */
	if (threadIdx.x == 0)
		steady_open(a, blockIdx.y, blockIdx.x, &sh.lane);
	steady_blocks(&sh, id, there);
	__syncwarp();
	if (!x.is_steady)
		return;
	f.ring = a.ring;
	f.k = x.plan.victims;
	n = steady_turn<STATS>(x, &sh, f, a.what, a.stats, sum);
	if (n < f.k) {			/* some of its slots have no key */
		if (threadIdx.x == 0)
			leave_lane(a, blockIdx.y | LEFT_FOLDED, blockIdx.x);
		return;
	}
	for (uint32_t i = threadIdx.x; i < n; i += 32u) {
		const uint32_t slot = f.best(2)[i];

		x.next[i] = slot;
		if (a.stats)
			leaving += (double)first_credit(x, slot);
	}
	if (a.what & GPU_NEXT)
		write_head(x, x.plan.keep, x.plan.fresh);
	if (!a.stats)
		return;
	sum = warp_sum(sum);
	leaving = warp_sum(leaving);
	if (threadIdx.x == 0) {
		a.sums[x.turn.first + blockIdx.x].kept = sum - leaving;
		a.sums[x.turn.first + blockIdx.x].leaving = leaving;
	}
}

#endif
