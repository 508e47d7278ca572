/*
 * Private to select.cu: the common turn, in one pass: a lane that keeps all its slots is folded and ranked, and its least valuable slots
 * are named. Policies with a cut (evict/rule.h) take two.
 *
 * What: a warp takes a lane, and waits for nobody: seventeen lanes share a multiprocessor, so that one's chain of addresses hides behind
 * the others' data. Blocks of 256 slots come into a ring in shared memory, by copies that need no registers; a thread folds the vectors of
 * four slots that it copied itself (select_four.cuh) and keeps the smallest upper half (protection, rank) of their keys. After every 2048
 * slots select_smallest.cuh finds the least valuable. A cut is found before (select_cut.cuh), in a pass that stores nothing and needs no ring: the
 * figures lie where it will be. Tokens are settled in blocks that have come in.
 * Memory traffic: position, heat and credit of a slot read once, heat and credit written once; the candidates' read twice. With a cut: what
 * the figure needs once more.
 * Determinism: as select_smallest.cuh; sums are those of select_stats.cuh, in the same order.
 */
#ifndef GPU_CUDA_SELECT_STEADY_CUH
#define GPU_CUDA_SELECT_STEADY_CUH

#include "gpu/cuda/select_cut.cuh"
#include "gpu/cuda/select_four.cuh"
#include "gpu/cuda/select_open.cuh"

/* --- a block comes in ------------------------------------------------------------------------------------------------------------ */

/*
 * warp_thread(), read here and now: left to itself the compiler reads the register wherever it is asked for, or keeps what it compared it with,
 * where there is no register for that.
 */
static __device__ __forceinline__ uint32_t thread_once(void)
{
	uint32_t t;

	asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
	return t;
}

/*
 * The thread's block id of the round from slot `first` on: credit blocks for eight threads, heat blocks for eight others; the turn's table
 * must be known, the lane's header need not be. What lies behind its live slots is not looked at.
 */
static __device__ __forceinline__ uint32_t steady_id(const struct lane_ctx &x, uint32_t lane, uint32_t first, bool *there)
{
	const struct gpu_table *t = &x.turn.table;
	const uint32_t i = thread_once(), b = first / GPU_BLOCK_SLOTS + i % STEADY_BLOCKS;
	const size_t row = i < STEADY_BLOCKS ? gpu_table_credits(t) : gpu_table_blocks(t);

	*there = i < 2u * STEADY_BLOCKS && lane < t->n_lanes && b < t->max_blocks && (i < STEADY_BLOCKS || t->n_heat);
	return *there ? cuda_u32(x.turn.priv, row)[(size_t)lane * t->max_blocks + b] : 0u;
}

/* The thread's entry of next[]. */
static __device__ __forceinline__ uint32_t steady_named(const struct lane_ctx &x, uint32_t lane)
{
	const struct gpu_table *t = &x.turn.table;

	if (lane >= t->n_lanes || warp_thread() >= t->window)
		return 0;
	return cuda_u32(x.turn.priv, gpu_table_next(t))[(size_t)lane * t->window + warp_thread()];
}

static __device__ __forceinline__ void steady_blocks(struct steady_state *sh, uint32_t id, bool there)
{
	char *at = there ? cuda_at(sh->lane.view, id) : NULL;
	const uint32_t i = thread_once();

	if (i < STEADY_BLOCKS)
		sh->credit[i] = at;
	else if (i < 2u * STEADY_BLOCKS)
		sh->heat[i - STEADY_BLOCKS] = at;
}

/*
 * The thread's vectors of block b of the round are on their way into a stage of the ring. left: live slots of the lane from that block on.
 * n_heat: heat arrays to read; the others are zeros. t: warp_thread().
 */
template <uint32_t NH, uint32_t NA>
static __device__ __forceinline__ void steady_load(const struct steady_state *sh, const char *nowhere, uint32_t t, uint32_t b,
						   uint32_t stage, uint32_t left, uint32_t n_heat)
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

/*
 * The thread's token is settled, if its slot lies in this block, which has come in, `in` words from the ring's beginning on. Not sooner: a store
 * to what is still on its way costs the memory more than all else here. stored: arrays of the block that are stored anyway when it is folded. t:
 * warp_thread(). Every thread.
 */
static __device__ __forceinline__ void steady_settle(const struct lane_ctx &x, const struct steady_state *sh, uint32_t heats, uint32_t arrays,
						     uint32_t block, uint32_t b, uint32_t in, uint32_t stored, uint32_t t)
{
	const uint32_t token = sh->token[t], at = token % GPU_BLOCK_SLOTS;
	char *const credit = sh->credit[b];

	__syncwarp();
	if (token / GPU_BLOCK_SLOTS == block && credit) {
		uint32_t *ring = (uint32_t *)steady_memory() + in + at;

		*ring = (uint32_t)(x.turn.pos + (int32_t)t);
		*pos_in(credit, at) = (int32_t)*ring;
		for (uint32_t k = 1u + heats; k < arrays; k++)
			ring[k * GPU_BLOCK_SLOTS] = 0;
		for (uint32_t k = stored; k < x.turn.n_credit; k++)
			*array_in(credit, k, at) = 0.0f;
	}
	__syncwarp();
}

/*
 * One of the traits of the window's tokens: array `array` of their credit blocks. Rows come through the ring, half a warp reads one; what a thread
 * knows of its own token (the addresses, in the end the trait) is looked up for 32 at once.
 */
static __device__ __forceinline__ void steady_trait(const struct lane_ctx &x, uint32_t tokens, uint32_t ring, uint32_t trait, uint32_t array,
						    const struct row_first &values)
{
	const uint32_t type = x.turn.slot_type, d = x.turn.head_dim, bytes = gpu_row_bytes(type, d), pieces = bytes / 16u;
	const uint32_t t = warp_thread(), which = trait_row(trait), rows = min(32u, ring / bytes) & ~1u;

	for (uint32_t first = 0; first < tokens; first += rows) {
		const uint32_t m = min(rows, tokens - first), own = t < m ? gpu_slot_of(x.head, x.next, first + t) : STEADY_NONE;
		const char *page = own < x.live ? cuda_at(x.view, x.page[own / GPU_PAGE_SLOTS]) : NULL, *row = page ? row_in(x, page, own, which) : NULL;
		const uint32_t param = page ? row_param(x, page, own, which) : 0u;
		char *credit = own < x.live ? credit_block(x, own) : NULL;
		uint32_t r = t / pieces, piece = t % pieces;
		float value = 0.0f;

		__syncwarp();
		for (uint32_t p = 0; p < m * pieces; p += 32u) {
			const char *from = (const char *)__shfl_sync(WARP_ALL, (unsigned long long)row, (int)(r & 31u));

			if (r < m)
				copy16(steady_memory() + (p + t) * 16u, (from ? from : x.turn.priv) + piece * 16u, from);
			r += 32u / pieces;
			piece += 32u % pieces;
			r += piece >= pieces;
			piece -= piece >= pieces ? pieces : 0u;
		}
		asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 0;" ::: "memory");
		__syncwarp();
		for (r = 0; r < m; r += 2u) {	/* the last row alone: the second half reads it, too */
			const uint32_t mine = min(r + t / ROW_THREADS, m - 1u), scale = __shfl_sync(WARP_ALL, param, (int)mine);
			const float v = row_trait(row_of(steady_memory() + mine * bytes, scale, type, d), trait, values, d);
			const float even = __shfl_sync(WARP_ALL, v, 0), odd = __shfl_sync(WARP_ALL, v, ROW_THREADS);

			value = t == r ? even : t == r + 1u ? odd : value;
		}
		if (credit)
			*array_in(credit, array, own) = value;
	}
}

/* Traits of the window's tokens. */
static __device__ __noinline__ void steady_traits(const struct lane_ctx &x, uint32_t tokens, uint32_t ring)
{
	const struct row_first values = first_values(x);

	for (uint32_t i = 0; i < x.turn.n_once; i++)
		steady_trait(x, tokens, ring, x.turn.rule.trait[i], x.n_credit + i, values);
}

/* --- a round ------------------------------------------------------------------------------------------------------------------------- */

/* What a round is told. */
struct steady_job {
	uint32_t first, n_heat;
	bool fold, sums, looks;		/* looks: at the heat, for statistics */
	struct stats_counts *heat, *ranks;	/* where they are counted; NULL: nobody asks */
};

static __device__ __forceinline__ struct steady_lane steady_lane_of(const struct lane_ctx &x, uint32_t n_heat, bool fold, bool sums)
{
	const int32_t from = max(max(x.turn.rule.sinks, x.turn.rule.pinned), 0);
	const int32_t to = max(x.as_lane.now - (int32_t)min(x.plan.recent, 0x7fffffffu), from);

	return { x.turn.rule, x.as_lane, x.live, x.plan.keep, x.plan.recent, n_heat, from, (uint32_t)(to - from), fold, sums };
}

/* The keys of candidates, slots of listed vectors, and of best(), which has n: it then has as many as returned. */
template <uint32_t NC, uint32_t NT>
static __device__ __forceinline__ uint32_t steady_keys(const struct steady_lane &x, const struct steady_state *sh,
						       const struct steady_found &f, uint32_t first, const struct steady_list &list,
						       uint64_t last, uint32_t n)
{
	const uint32_t most = max(128u, min(4u * f.k, STEADY_ROOM - 36u));	/* candidates before they are cut to k */
	const uint32_t t = thread_once(), whole = min(x.live, x.keep), *chunk = (const uint32_t *)f.chunk();

	for (uint32_t c = 0; c < list.vectors; c += STEADY_CHUNK) {
		const uint32_t m = min(STEADY_CHUNK, list.vectors - c);

		for (uint32_t j = t; j < m; j += 32u) {		/* all are on their way together */
			const uint32_t v = sh->low[c + j];
			const char *from = sh->credit[v / 64u] + v % 64u * 16u;

#pragma unroll
			for (int k = 0; k < (int)(1 + NC + NT); k++)
				copy16(f.chunk() + (k * STEADY_CHUNK + j) * 16u, from + k * 1024, true);
		}
		asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 0;" ::: "memory");
		__syncwarp();
#pragma unroll 1
		for (uint32_t s = t; s < 4u * m + t; s += 32u) {
			const uint32_t slot = s < 4u * m ? first + 4u * sh->low[c + s / 4u] + s % 4u : STEADY_NONE;
			struct evict_slot e = {};
			uint64_t key = NO_KEY;
			uint32_t all;
			bool mine;

			if (slot < whole) {
				e.pos = (int32_t)chunk[s];
#pragma unroll
				for (int k = 0; k < (int)NC; k++)
					e.credit[k] = __uint_as_float(chunk[(1 + k) * 4 * STEADY_CHUNK + s]);
#pragma unroll
				for (int k = 0; k < (int)NT; k++)
					e.trait[k] = __uint_as_float(chunk[(1 + NC + k) * 4 * STEADY_CHUNK + s]);
				if (e.pos >= 0)
					key = evict_key(&x.rule, &x.lane, x.recent, &e);
			}
			mine = (uint32_t)(key >> 32) <= list.bound && key <= last;
			all = __ballot_sync(WARP_ALL, mine);
			if (mine) {
				const uint32_t at = n + __popc(all & ((1u << t) - 1u));

				f.key()[at] = key;
				f.slot()[at] = slot;
			}
			n += __popc(all);
			if (n > most) {
				n = steady_rank(f, n);
				last = steady_last(f, n);
				steady_again(f, n);
			}
		}
		__syncwarp();
	}
	return steady_rank(f, n);
}

/*
 * Block b of the round, which lies in shared memory from word `in` on: folds and ranks it; vectors' smallest keys are left in sh->low[]. t:
 * warp_thread().
 */
template <uint32_t NH, uint32_t NC, uint32_t NT, enum steady_stats STATS>
static __device__ __forceinline__ void steady_block(const struct lane_ctx &x, const struct steady_lane &y, struct steady_state *sh,
						    const struct steady_job &job, uint32_t t, uint32_t b, uint32_t in,
						    struct steady_sums &s, double &sum)
{
	const uint32_t first = job.first + b * GPU_BLOCK_SLOTS + 4u * t, whole = min(y.live, y.keep);
	const uint32_t *from = (const uint32_t *)steady_memory() + in + 4u * t;
	char *credit = sh->credit[b], *heat = sh->heat[b];
	struct stats_counts *ranks = STATS ? job.ranks : NULL;
	struct steady_four<NH, NC, NT> v[2];

	if (credit && job.first + (b + 1u) * GPU_BLOCK_SLOTS <= whole) {	/* the common case, without branches */
		steady_take(from, v[0]);
		steady_take(from + 128, v[1]);
#pragma unroll
		for (uint32_t u = 0; u < 2; u++) {
			if (STATS && job.looks)
				steady_heat<STATS == STEADY_SUMS>(x, v[u], 4, job.n_heat, u, s, job.heat);
			if (y.fold)
				steady_fold(y, v[u], heat ? heat + 16u * t + 512u * u : NULL, credit + 16u * t + 512u * u);
		}
#pragma unroll
		for (uint32_t u = 0; u < 2; u++)
			sh->low[b * 64u + 32u * u + t] = steady_low(y, v[u], ranks, sum);
		return;
	}
#pragma unroll(STATS == STEADY_SUMS ? 2 : 1)
	for (uint32_t u = 0; u < 2; u++) {
		const uint32_t slot = first + 128u * u;
		char *h = heat ? heat + 16u * t + 512u * u : NULL, *c = credit + 16u * t + 512u * u;
		uint32_t low = STEADY_NONE;

		if (slot < y.live) {
			steady_take(from + 128u * u, v[0]);
			if (STATS && job.looks)
				steady_heat<STATS == STEADY_SUMS>(x, v[0], y.live - slot, job.n_heat, u, s, job.heat);
			if (credit && y.fold) {
				steady_fold(y, v[0], h, c);
				if (slot + 4u > y.live)
					steady_restore(in + 4u * t + 128u * u, y.live - slot, h, NH, y.n_heat, c, NC);
			}
#pragma unroll
			for (uint32_t i = 0; i < 4; i++)
				v[0].pos[i] = slot + i < whole ? v[0].pos[i] : -1;
			if (credit)
				low = steady_low(y, v[0], ranks, sum);
		}
		sh->low[b * 64u + 32u * u + t] = low;
	}
}

/*
 * Figures of the round's slots from slot `first` on, of which a cut is found: places[], by slot. Nothing is stored, and no copies are needed.
 */
template <uint32_t P, uint32_t NH, uint32_t NC, uint32_t NT>
static __device__ __forceinline__ void steady_figures(struct steady_lane y, const struct steady_state *sh, uint32_t first, uint32_t *places)
{
	const uint32_t n = min(y.live - first, 4u * STEADY_VECTORS), whole = min(y.live, y.keep);
	constexpr uint32_t U = NT ? 4u : 2u;	/* vectors, which are asked for before one of them is looked at */
	struct steady_four<NH, NC, NT> v[U];
	const char *some = NULL;

	for (uint32_t b = 0; b < STEADY_BLOCKS; b++)
		some = sh->credit[b] ? sh->credit[b] : some;
	y.rule.policy = P;
	y.fold = y.fold && NT == 0;	/* figures look at traits, or at what is folded */
#pragma unroll 1
	for (uint32_t in = 4u * warp_thread(); in < n; in += 128u * U) {
#pragma unroll
		for (uint32_t u = 0; some && u < U; u++) {	/* of a block that is not there, another one's, which nobody looks at */
			const uint32_t at = in + 128u * u < n ? in + 128u * u : in;
			const char *credit = sh->credit[at / GPU_BLOCK_SLOTS];

			steady_fetch(credit ? credit : some, sh->heat[at / GPU_BLOCK_SLOTS], y.n_heat, at % GPU_BLOCK_SLOTS * 4u, v[u]);
		}
#pragma unroll
		for (uint32_t u = 0; u < U; u++) {
			const uint32_t at = in + 128u * u;
			uint32_t place[4];

			if (at >= n)
				break;
			if (y.fold)
				steady_folded(y, v[u]);
#pragma unroll
			for (uint32_t i = 0; i < 4; i++) {
				const struct evict_slot e = steady_slot(v[u], i);
				const bool leaves = (uint32_t)(e.pos - y.from) < y.span && first + at + i < whole && sh->credit[at / GPU_BLOCK_SLOTS];

				place[i] = leaves ? evict_order(evict_figure(&y.rule, &y.lane, &e)) : CUT_NONE;
			}
			*(uint4 *)(places + first + at) = make_uint4(place[0], place[1], place[2], place[3]);
		}
	}
}

/*
 * One round: what was folded is stored; best(), which has the n smallest keys of the rounds before it, then has as many of this one and
 * those as returned.
 */
template <uint32_t P, uint32_t NH, uint32_t NC, uint32_t NT, bool AGED, enum steady_stats STATS>
static __device__ __forceinline__ uint32_t steady_round(const struct lane_ctx &x, struct steady_state *sh, const struct steady_job &job,
							const struct steady_found &f, struct steady_sums &s, double &sum, uint32_t n)
{
	constexpr uint32_t words = (1u + NH + NC + NT) * GPU_BLOCK_SLOTS;	/* of a stage */
	const uint32_t t = thread_once(), left = x.live - job.first, blocks = min(STEADY_BLOCKS, gpu_blocks_for(left));
	struct steady_lane y = steady_lane_of(x, job.n_heat, job.fold, job.sums);
	const char *nowhere = x.turn.priv;

	y.rule.policy = P;
	if (evict_has_age(P) && !AGED)
		y.rule.param[0] = 0.0f;
	for (uint32_t b = 0; b < STEADY_STAGES; b++)
		steady_load<NH, NC + NT>(sh, nowhere, t, b, b, left > b * GPU_BLOCK_SLOTS ? left - b * GPU_BLOCK_SLOTS : 0u, y.n_heat);
#pragma unroll 1
	for (uint32_t b = 0, stage = 0; b < blocks; b++, stage = stage + 1u < STEADY_STAGES ? stage + 1u : 0u) {
		const uint32_t next = (b + STEADY_STAGES) * GPU_BLOCK_SLOTS;

		asm volatile("cp.async.wait_group %0;" :: "n"(STEADY_STAGES - 1u) : "memory");	/* a thread reads nobody else's copies: no barrier */
		if (sh->settles)
			steady_settle(x, sh, NH, words / GPU_BLOCK_SLOTS, job.first / GPU_BLOCK_SLOTS + b, b, stage * words,
				      sh->settles == STEADY_FOLDED ? NC : 0u, t);
		steady_block<NH, NC, NT, STATS>(x, y, sh, job, t, b, stage * words, s, sum);
		steady_load<NH, NC + NT>(sh, nowhere, t, b + STEADY_STAGES, stage, left > next ? left - next : 0u, y.n_heat);
	}
	if (f.k) {
		const uint64_t last = steady_last(f, n);
		const struct steady_list list = steady_candidates(sh, blocks, f.k, (uint32_t)(last >> 32));

		steady_again(f, n);
		n = steady_keys<NC, NT>(y, sh, f, job.first, list, last, n);
	}
	return n;
}

/* Policies that never come here are left out. Of a figure, ranks here know the cut alone. */
static __host__ __device__ inline bool steady_never(uint32_t policy)
{
	return evict_has_heat_figure(policy) || (evict_has_figure(policy) && !evict_has_cut(policy)) || evict_has_pool(policy) ||
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

/* --- a turn ---------------------------------------------------------------------------------------------------------------------- */

/* The blocks of the round from slot `first` on. */
static __device__ __forceinline__ void steady_turn_to(const struct lane_ctx &x, struct steady_state *sh, uint32_t first)
{
	bool there;
	const uint32_t id = steady_id(x, x.lane, first, &there);

	steady_blocks(sh, id, there);
	__syncwarp();
}

/* A pass over what the policy's figure looks at. By itself, so that its registers are not those of policies without a cut. */
static __device__ __noinline__ uint64_t steady_find_cut(const struct lane_ctx &x, struct steady_state *sh, uint32_t *places, uint32_t n_heat,
							bool fold)
{
	const struct steady_lane y = steady_lane_of(x, n_heat, fold, false);

	for (uint32_t first = 0; first < x.live; first += 4u * STEADY_VECTORS) {
		__syncwarp();
		if (first)
			steady_turn_to(x, sh, first);
		switch (x.turn.rule.policy) {
#define STEADY_CASE(name, nh, nc, nt)										\
		case EVICT_##name:										\
			if (evict_has_cut(EVICT_##name) && !steady_never(EVICT_##name))				\
				steady_figures<EVICT_##name, nh, nc, nt>(y, sh, first, places);			\
			break;
		EVICT_POLICIES(STEADY_CASE)
#undef STEADY_CASE
		default: break;
		}
	}
	return steady_cut(x, sh->low, places, x.live);
}

/*
 * Settles and folds (if told to) and finds the k <= STEADY_MAX slots of smallest keys below plan.keep: f.best_slot()[0 .. n-1], ascending.
 * Returns n. named: the thread's entry of the lane's next[]. sum: the thread's share of the first credit of slots below keep.
 */
template <enum steady_stats STATS>
static __device__ __forceinline__ uint32_t steady_turn(const struct lane_ctx &x, struct steady_state *sh, const struct steady_found &f,
						       unsigned what, bool sums, uint32_t named, double &sum)
{
	const uint32_t tokens = what & GPU_SETTLE ? window_tokens(x) : 0u;
	const bool looks = x.turn.stats & (EVICT_STATS_HEAT | EVICT_STATS_SUMS), fold = what & GPU_FOLD, reads = fold || f.k || sums;
	const bool cuts = evict_has_cut(x.turn.rule.policy) && (f.k || x.turn.stats & EVICT_STATS_RANK) &&
			  evict_n_spared(&x.turn.rule, &x.as_lane, x.live, x.live);
	const bool settles = tokens && reads && tokens <= 32u && !x.turn.n_once && !cuts;
	struct stats_counts *counts = (struct stats_counts *)f.end();
	struct steady_job job = { 0, fold ? min(x.n_heat, x.turn.policy_heat) : 0u, fold, sums, looks,
				  x.turn.stats & EVICT_STATS_HEAT ? counts : NULL, x.turn.stats & EVICT_STATS_RANK ? counts : NULL };
	struct steady_sums s = {};
	uint32_t n = 0;

	if (STATS && x.turn.stats)
		steady_stats_begin(x, counts);
	named = __shfl_sync(WARP_ALL, named, (int)(warp_thread() - x.head.fresh));
	sh->settles = settles ? fold ? STEADY_FOLDED : STEADY_SETTLED : 0u;
	if (settles) {
		uint32_t token = STEADY_NONE;

		if (warp_thread() < tokens)
			token = warp_thread() < x.head.fresh ? x.head.len + warp_thread() : named;
		sh->token[warp_thread()] = token < x.live ? token : STEADY_NONE;
	}
	if (tokens && !settles)		/* more than a thread has, traits, which are not known before their rows have come, or two passes */
		settle_slots(x, warp_thread(), 32u);
	if (tokens && x.turn.n_once)
		steady_traits(x, tokens, f.ring);
	if (cuts) {
		const uint64_t cut = steady_find_cut(x, sh, f.places(), job.n_heat, fold);

		if (warp_thread() == 0)
			sh->lane.as_lane.cut = cut;
	}
	for (job.first = 0; reads && job.first < x.live; job.first += 4u * STEADY_VECTORS) {
		__syncwarp();
		if (job.first || (cuts && x.live > 4u * STEADY_VECTORS))
			steady_turn_to(x, sh, job.first);
		n = steady_policy<STATS>(x, sh, job, f, s, sum, n);
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
	if (evict_has_cut(x.turn.rule.policy) && x.live > a.places)
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
static __global__ void __launch_bounds__(32, STATS == STEADY_SUMS ? STEADY_SUMS_CTAS : STEADY_CTAS)
steady_kernel(const __grid_constant__ struct select_args a)
{
	__shared__ struct steady_state sh;
	const struct lane_ctx &x = sh.lane;
	double sum = 0.0, leaving = 0.0;
	struct steady_found f;
	uint32_t id, named, n;
	bool there;

	mma_after();
	mma_next();
	open_turn(a, blockIdx.y, &sh.lane);
	__syncwarp();
	id = steady_id(x, blockIdx.x, 0, &there);	/* on their way while the lane is opened */
	named = steady_named(x, blockIdx.x);
	if (threadIdx.x == 0)
		steady_open(a, blockIdx.y, blockIdx.x, &sh.lane);
	steady_blocks(&sh, id, there);
	__syncwarp();
	if (!x.is_steady)
		return;
	f.ring = a.ring;
	f.k = x.plan.victims;
	n = steady_turn<STATS>(x, &sh, f, a.what, a.stats, named, sum);
	if (n < f.k) {			/* some of its slots have no key */
		if (threadIdx.x == 0)
			leave_lane(a, blockIdx.y | LEFT_FOLDED, blockIdx.x);
		return;
	}
	for (uint32_t i = threadIdx.x; i < n; i += 32u) {
		const uint32_t slot = f.best_slot()[i];

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
