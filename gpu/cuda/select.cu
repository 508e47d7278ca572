/*
 * select: what happens to a lane when its window ends: settle, fold, remove, compact, next (gpu.h).
 *
 * What: lanes that keep all their slots are done by a warp each, in a pass or two (select_steady.cuh); the others are left to a second kernel, a
 * CTA a lane: keys are 64-bit (evict/rule.h), the k smallest are found by their bytes, most significant first, and the named ones are sorted.
 * compact.cuh moves slots.
 * Memory traffic: position, heat and credit of a slot read once and heat and credit written once (fold), position and credit
 * read once or twice more (keys); compaction moves 2 rows, read and written, per survivor beyond `keep`.
 * Determinism: everything depends on keys alone; atomics only count integers. Sums of credit are doubles in a fixed order.
 * Trust: only private tables are followed. Shared memory gives heat (cleaned) and, when slots move, K and V bytes.
 */
#include <algorithm>
#include <string.h>

#include "gpu/cuda/compact.cuh"
#include "gpu/cuda/select_merge.cuh"
#include "gpu/cuda/select_steady.cuh"

/* Does select_kernel need its scratch for lanes under this rule? And rows of unit keys in it: bytes of a channel? */
static __host__ __device__ inline bool needs_stage(const struct evict_rule *rule)
{
	return evict_is_staged(rule) || rule->merge;
}

static bool needs_rows(const struct evict_rule *rule)
{
	return rule->merge || evict_n_trait(rule->policy) != evict_n_trait_once(rule);
}

static uint32_t unit_bytes(const struct evict_rule *rule)
{
	for (uint32_t i = 0; i < evict_n_trait(rule->policy) && !evict_merge_by_key(rule->merge); i++)
		if (rule->trait[i] == EVICT_KEY_REDUNDANCY)
			return 2;
	return evict_merge_by_key(rule->merge) ? 4 : 0;
}

static __device__ __noinline__ void fold(const struct lane_ctx &x)
{
	for (uint32_t i = threadIdx.x; i < x.live; i += THREADS) {
		char *c = credit_block(x, i), *h = heat_block(x, i);
		struct evict_slot e = {};

		if (!c || !h)
			continue;
		e.pos = *pos_in(c, i);
#pragma unroll
		for (uint32_t k = 0; k < EVICT_MAX_HEAT; k++) {
			e.heat[k] = k < x.n_heat ? evict_clean(*array_in(h, k, i)) : 0.0f;
			if (k < x.n_heat)
				*array_in(h, k, i) = 0.0f;
		}
		load_credit(x, c, i, &e);
		evict_fold(&x.turn.rule, &x.as_lane, &e);
#pragma unroll
		for (uint32_t k = 0; k < EVICT_MAX_CREDIT; k++)
			if (k < x.n_credit)
				*array_in(c, k, i) = e.credit[k];
	}
	__syncthreads();
}

/* A slot of those that go. Returns its credit. */
static __device__ __forceinline__ double leave(const struct lane_ctx &x, uint32_t slot)
{
	char *c = credit_block(x, slot);

	if (!c)
		return 0.0;
	*pos_in(c, slot) = -1;
	return (double)first_credit(x, slot);
}

/* The same with a merge in front, for which they must be listed: survivors' traits, and so their keys, change in it. */
static __device__ double merge_and_remove(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st, const struct threshold &t)
{
	uint32_t n = 0, total;
	double leaving = 0.0;

	for (uint32_t first = 0; first < x.live; first += THREADS) {
		uint32_t slot = first + threadIdx.x, goes = slot < x.live && is_below(t, key_at(x, sh, slot), slot);
		uint32_t before = block_scan(sh, goes, &total);

		if (goes)
			st.gone[n + before] = slot;
		n += total;
	}
	__syncthreads();
	merge_victims(x, sh, st, st.gone, n, x.live);
	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		leaving += leave(x, st.gone[i]);
	__syncthreads();
	return leaving;
}

/* Mark the live - keep least valuable slots. Returns this thread's share of their credit. */
template <bool ROWS>
static __device__ double remove_slots(struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st)
{
	uint32_t n = x.live - x.plan.keep;
	struct threshold t;
	double leaving = 0.0;

	if (!n)
		return 0.0;
	before_ranking(x, sh, st, x.live);
	cache_keys(x, sh, x.live);
	t = kth_key(x, sh, x.live, n);
	if (ROWS && x.turn.rule.merge)
		return merge_and_remove(x, sh, st, t);
	for (uint32_t i = threadIdx.x; i < x.live; i += THREADS)
		if (is_below(t, key_at(x, sh, i), i))
			leaving += leave(x, i);
	__syncthreads();
	return leaving;
}

/* Name the least valuable slots and write the lane's header. Returns the thread's share of the named slots' credit. */
template <bool ROWS>
static __device__ double name_next(struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st)
{
	uint32_t n = x.plan.victims < x.plan.keep ? x.plan.victims : x.plan.keep;
	double leaving = 0.0;

	n = n < x.turn.table.window ? n : x.turn.table.window;
	n = n < MAX_VICTIMS ? n : MAX_VICTIMS;
	if (n) {
		struct threshold named;

		before_ranking(x, sh, st, x.plan.keep);
		cache_keys(x, sh, x.plan.keep);
		named = kth_key(x, sh, x.plan.keep, n);
		if (threadIdx.x == 0)
			sh->n_found = 0;
		__syncthreads();
		for (uint32_t i = threadIdx.x; i < x.plan.keep; i += THREADS) {
			uint64_t key = key_at(x, sh, i);
			uint32_t at;

			if (!is_below(named, key, i))
				continue;
			at = atomicAdd(&sh->n_found, 1u);	/* any order: they are sorted below */
			if (at < MAX_VICTIMS) {
				sh->sorted[at] = key;
				sh->slot[at] = i;
			}
		}
		__syncthreads();
		sort_found(sh, n);
		for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
			x.next[i] = sh->slot[i];
			leaving += (double)first_credit(x, sh->slot[i]);
		}
		if (ROWS && x.turn.rule.merge) {
			__syncthreads();
			merge_victims(x, sh, st, x.next, n, x.plan.keep);
		}
	}
	write_head(x, x.plan.keep, x.plan.fresh);
	return leaving;
}

/* Credit of what is not removed; valid in thread 0. */
static __device__ double sum_kept(const struct lane_ctx &x, struct shared_state *sh, unsigned what)
{
	uint32_t n = what & (GPU_COMPACT | GPU_NEXT) ? x.plan.keep : x.live;
	double kept = 0.0;

	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		if (pos_of(x, i) >= 0)
			kept += (double)first_credit(x, i);
	return block_sum(sh, kept);
}

/* Slots that the marks drop leave, the others close up. */
static __device__ __noinline__ void drop_slots(struct lane_ctx &x, struct shared_state *sh)
{
	const uint32_t layer = x.lane / x.turn.n_kv_heads, planned = x.plan.keep;
	uint32_t mine = 0, dropped, kept;

	for (uint32_t i = threadIdx.x; i < x.live; i += THREADS) {
		if (!evict_mark_drops(mark_of(x, pos_of(x, i)), layer))
			continue;
		mine++;
		(void)leave(x, i);
	}
	__syncthreads();
	(void)block_scan(sh, mine, &dropped);
	kept = x.live - dropped;
	compact(x, sh, kept);
	if (threadIdx.x == 0) {
		x.live = x.as_lane.live = kept;
		x.plan.keep = x.as_lane.keep = planned < kept ? planned : kept;
		x.turn.live[x.lane] = kept;
	}
	__syncthreads();
	write_head(x, kept, 0);
}

/* Fold, traits of the lane, and the statistics that this is the moment for. */
template <bool ROWS>
static __device__ void fold_lane(struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st)
{
	if (x.turn.stats)
		stats_begin(sh);
	if (x.turn.stats & (EVICT_STATS_HEAT | EVICT_STATS_SUMS))
		stats_of_heat(x, sh);
	if (evict_has_heat_figure(x.turn.rule.policy)) {
		const struct evict_figures figures = lane_values(x, sh, st, x.live, VALUE_HEAT_FIGURE);

		if (threadIdx.x == 0)
			x.as_lane.heat = figures;
		__syncthreads();
	}
	fold(x);
	if (ROWS)
		lane_traits(x, sh, st);
	if (x.turn.stats & EVICT_STATS_RANK) {
		before_ranking(x, sh, st, x.live);
		stats_of_ranks(x, sh);
	}
	if (x.turn.stats)
		stats_end(x, sh);
}

/* The addresses of the lane's blocks are looked up once. */
static __device__ __forceinline__ void know_blocks(struct lane_ctx &x, struct shared_state *sh)
{
	const uint32_t i = threadIdx.x, b = i % KNOWN_BLOCKS, n = min(gpu_blocks_for(x.live), KNOWN_BLOCKS);

	if (i < 2u * KNOWN_BLOCKS && b < n)
		sh->known[i] = cuda_at(x.view, (i < KNOWN_BLOCKS ? x.credit : x.block)[b]);
	__syncthreads();
	if (i == 0) {
		x.known = sh->known;
		x.n_known = n;
	}
	__syncthreads();
}

/* One lane, step by step. */
template <bool ROWS>
static __device__ void select_lane(const struct select_args &a, uint32_t turn, uint32_t lane, unsigned what, struct shared_state *sh)
{
	struct lane_stage st = stage_at(sh, a.stage + blockIdx.x * a.stage_bytes, a.stage_slots, a.stage_dim);
	double removed = 0.0, named = 0.0, kept;
	struct lane_ctx &x = sh->lane;

	open_turn(a, turn, &x);
	__syncthreads();
	if (threadIdx.x == 0)
		sh->found = open_lane(a, lane, &x) && !(needs_stage(&x.turn.rule) && x.live > a.stage_slots);
	__syncthreads();
	if (!sh->found)
		return;
	know_blocks(x, sh);
	if (2u * x.live <= KEY_CACHE)	/* they are needed only while there are no keys */
		st.key = sh->key;
	if (what & GPU_SETTLE)
		settle(x);
	__syncthreads();
	if (what & GPU_DROP)
		drop_slots(x, sh);
	if (what & GPU_TRAITS && x.turn.n_once) {
		const struct row_first first = first_values(x);

		for (uint32_t slot = threadIdx.x / ROW_THREADS; slot < x.live; slot += ROWS_AT_ONCE)
			row_traits(x, slot, first);
		__syncthreads();
	}
	if (what & GPU_FOLD)
		fold_lane<ROWS>(x, sh, st);
	if (what & GPU_REMOVE)
		removed = remove_slots<ROWS>(x, sh, st);
	if (what & GPU_COMPACT)
		compact(x, sh, x.plan.keep);
	if (what & GPU_NEXT)
		named = name_next<ROWS>(x, sh, st);
	if (!a.stats)
		return;
	__syncthreads();
	kept = sum_kept(x, sh, what);
	named = block_sum(sh, named);
	__syncthreads();
	removed = block_sum(sh, removed);
	if (threadIdx.x == 0) {
		a.sums[x.turn.first + lane].kept = kept - named;
		a.sums[x.turn.first + lane].leaving = removed + named;
	}
}

/* ROWS: some turn looks at the lanes' rows of K and V: for their traits, or to merge. It needs more registers. */
template <bool ROWS>
static __global__ void __launch_bounds__(THREADS, ROWS ? 2 : 3) select_kernel(const __grid_constant__ struct select_args a)
{
	extern __shared__ __align__(16) char bytes[];

	mma_after();
	for (uint32_t i = blockIdx.x; i < *a.n_left; i += gridDim.x) {
		const uint2 left = a.left[i];

		select_lane<ROWS>(a, left.x & ~LEFT_FOLDED, left.y, left.x & LEFT_FOLDED ? a.what & ~(unsigned)(GPU_SETTLE | GPU_FOLD) : a.what,
			    (struct shared_state *)bytes);
		__syncthreads();
	}
}

static bool may_be_steady(const struct gpu_turn *turn, unsigned what)
{
	return !steady_never(turn->rule.policy) && evict_n_trait(turn->rule.policy) == evict_n_trait_once(&turn->rule) &&
	       !turn->rule.merge && !(turn->marks && turn->n_marks) &&
	       !(what & (GPU_DROP | GPU_TRAITS)) && turn->n_credit >= evict_n_arrays(turn->rule.policy);
}

/*
 * A CTA a turn: brings the lists from the host's memory, and what lanes of the turn have in common. Plans cross the bus only where lanes
 * have plans of their own.
 */
static __global__ void __launch_bounds__(THREADS)
begin_kernel(const struct turn_args *from, const struct gpu_plan *plans, struct turn_args *turn, struct gpu_plan *plan, uint32_t *n_left)
{
	const uint32_t words = sizeof(*turn) / 4u, head = sizeof(struct gpu_table) / 4u;
	__shared__ struct turn_args t;

	mma_next();
	for (uint32_t i = threadIdx.x; i < words; i += THREADS)
		((uint32_t *)&t)[i] = ((const uint32_t *)&from[blockIdx.x])[i];
	__syncthreads();
	for (uint32_t i = threadIdx.x; t.plans_differ && i < t.n_lanes; i += THREADS)
		((uint4 *)plan)[t.first + i] = ((const uint4 *)plans)[t.first + i];
	if (threadIdx.x < head)
		((uint32_t *)&t.table)[threadIdx.x] = ((const uint32_t *)t.priv)[threadIdx.x];
	__syncthreads();
	if (threadIdx.x == 0) {
		const int32_t newest = t.pos + (int32_t)t.appended - 1;

		t.as_lane = evict_lane_at(&t.rule, 0, t.pos, t.appended, t.table.n_heat ? t.table.observe : 0, 0);
		t.as_lane.tag = evict_mark_tag((uint32_t)newest < t.n_marks ? t.marks[newest] : 0u);
	}
	if (threadIdx.x + blockIdx.x == 0)
		*n_left = 0;
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < words; i += THREADS)
		((uint32_t *)&turn[blockIdx.x])[i] = ((const uint32_t *)&t)[i];
}

/* A warp adds up the lanes of one session. */
static __global__ void __launch_bounds__(32) stats_kernel(const struct turn_args *turn, const struct sums *sums,
							  struct gpu_turn_stats *stats)
{
	const struct turn_args *t = turn + blockIdx.x;
	double kept = 0.0, leaving = 0.0;

	for (uint32_t i = threadIdx.x; i < t->n_lanes; i += 32u) {
		kept += sums[t->first + i].kept;
		leaving += sums[t->first + i].leaving;
	}
	for (int i = 16; i; i >>= 1) {
		kept += __shfl_down_sync(0xffffffffu, kept, i);
		leaving += __shfl_down_sync(0xffffffffu, leaving, i);
	}
	if (threadIdx.x == 0) {
		stats[blockIdx.x].credit_kept = kept;
		stats[blockIdx.x].credit_leaving = leaving;
	}
}

/* What a launch has for the device: turns and plans, which begin_kernel() brings, and room for what kernels leave. */
struct lists {
	struct turn_args *turn;
	struct gpu_plan *plan;
	struct sums *sums;
	uint2 *left;
	uint32_t *n_left;
};

static size_t lease_bytes(size_t turns, size_t lanes)
{
	return turns * sizeof(struct turn_args) + lanes * (sizeof(struct gpu_plan) + sizeof(struct sums) + sizeof(uint2)) + 4u;
}

static struct lists lists_at(char *at, size_t turns, size_t lanes)
{
	struct lists l;

	static_assert(sizeof(struct gpu_plan) == sizeof(uint4) && sizeof(struct turn_args) % sizeof(uint4) == 0, "plans are moved by 16 bytes");
	l.turn = (struct turn_args *)at;
	l.plan = (struct gpu_plan *)(l.turn + turns);
	l.sums = (struct sums *)(l.plan + lanes);
	l.left = (uint2 *)(l.sums + lanes);
	l.n_left = (uint32_t *)(l.left + lanes);
	return l;
}

static uint32_t policy_arrays(uint32_t policy)
{
	return 1u + evict_n_heat(policy) + evict_n_arrays(policy);
}

static bool plans_differ(const struct gpu_turn *t)
{
	uint32_t l = 1;

	while (l < t->n_lanes && !memcmp(&t->plan[l], &t->plan[0], sizeof(*t->plan)))
		l++;
	return l < t->n_lanes;
}

static void fill(const struct lists *to, const struct gpu_turn *turn, unsigned n, unsigned what)
{
	uint32_t first = 0;

	for (unsigned i = 0; i < n; i++) {
		const struct gpu_turn *t = &turn[i];
		const uint32_t policy = t->rule.policy;
		struct turn_args x = { {}, (char *)t->priv, t->appended, min(t->n_credit, EVICT_MAX_ARRAYS), t->slot_type, t->head_dim, first, t->n_lanes,
				       t->pos, t->rule, t->stats, { t->stats_heat[0], t->stats_heat[1] }, t->stats_near, t->lane_stats, t->marks,
				       t->marks ? t->n_marks : 0u, t->n_kv_heads, t->live, evict_n_heat(policy), evict_n_credit(policy),
				       policy_arrays(policy), evict_n_trait_once(&t->rule), may_be_steady(t, what), plans_differ(t),
				       t->n_lanes ? t->plan[0] : (struct gpu_plan){}, {} };

		to->turn[i] = x;
		if (x.plans_differ)
			memcpy(to->plan + first, t->plan, t->n_lanes * sizeof(*t->plan));
		first += t->n_lanes;
	}
}

/*
 * Scratch for select_kernel, as many CTAs' as fit into STAGE_MOST, one's at least: *ctas, of at most so many. It belongs to the stream, so what
 * was enqueued before may go on using it. Freed by cudaFreeAsync() behind the kernel. NULL: no lane needs any.
 */
#define STAGE_MOST ((size_t)256 << 20)

/* An upper bound of a lane's live slots. */
static uint32_t live_most(const struct gpu_turn *turn)
{
	const uint32_t now = (uint32_t)turn->pos + turn->appended;

	return turn->live_max && turn->live_max < now ? turn->live_max : now;
}

static int take_stage(struct cuda_device *d, cudaStream_t s, const struct gpu_turn *turn, unsigned n, struct select_args *a, unsigned *ctas)
{
	uint32_t channel = 0;
	uint64_t most;

	for (unsigned i = 0; i < n; i++) {
		if (!needs_stage(&turn[i].rule))
			continue;
		a->stage_slots = max(a->stage_slots, live_most(&turn[i]));
		a->stage_dim = turn[i].head_dim > a->stage_dim ? turn[i].head_dim : a->stage_dim;
		channel = max(channel, unit_bytes(&turn[i].rule));
	}
	if (!a->stage_dim)
		return 0;
	a->stage_slots = gpu_blocks_for(a->stage_slots + !a->stage_slots) * GPU_BLOCK_SLOTS;
	a->stage_bytes = stage_bytes(a->stage_slots, a->stage_dim, channel);
	most = STAGE_MOST / a->stage_bytes + !(STAGE_MOST / a->stage_bytes);
	*ctas = *ctas < most ? *ctas : (unsigned)most;
	return cuda_scratch(d, s, *ctas * a->stage_bytes, (void **)&a->stage);
}

/* early: it begins while the kernel in front still runs, and waits for it itself. */
static int launch(bool early_too, cudaStream_t s, void (*kernel)(struct select_args), dim3 ctas, unsigned threads, size_t shared,
		  const struct select_args *a)
{
	cudaLaunchAttribute early;
	cudaLaunchConfig_t c = {};
	int rc = cuda_errno(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));

	if (rc)
		return rc;
	early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
	early.val.programmaticStreamSerializationAllowed = 1;
	c.gridDim = ctas;
	c.blockDim = dim3(threads);
	c.dynamicSmemBytes = shared;
	c.stream = s;
	c.attrs = &early;
	c.numAttrs = early_too;
	return cuda_errno(cudaLaunchKernelEx(&c, kernel, *a));
}

static int launch_steady(const struct cuda_device *d, cudaStream_t s, struct select_args *a, const struct gpu_turn *turn, unsigned n,
			 unsigned what, uint32_t victims)
{
	uint32_t lanes = 0, arrays = 0, stats = 0, bytes;

	for (unsigned i = 0; i < n; i++) {
		lanes = max(lanes, turn[i].n_lanes);
		arrays = max(arrays, policy_arrays(turn[i].rule.policy));
		stats |= turn[i].stats;
		if (evict_has_cut(turn[i].rule.policy) && may_be_steady(&turn[i], what))
			a->places = max(a->places, min(live_most(&turn[i]) + 3u & ~3u, STEADY_PLACES));
	}
	a->ring = steady_ring(arrays, a->places);
	bytes = a->ring + steady_best(min(victims, STEADY_MAX)) + steady_stats_bytes(stats);
	return launch(d->major >= 9, s, stats & EVICT_STATS_SUMS ? steady_kernel<STEADY_SUMS> : stats ? steady_kernel<STEADY_COUNTS> :
		      steady_kernel<STEADY_NO_STATS>, dim3(lanes, n), 32, bytes, a);
}

/* One launch: turns whose lists fit into a lease. victims: of a lane, at most. */
static int run(struct cuda_device *d, cudaStream_t s, const struct gpu_map *map, const struct gpu_turn *turn, unsigned n,
	       size_t lanes, unsigned what, uint32_t victims, struct gpu_turn_stats *stats)
{
	const bool rows = std::any_of(turn, turn + n, [](const struct gpu_turn &t) { return needs_rows(&t.rule); });
	const bool steady = std::all_of(turn, turn + n, [=](const struct gpu_turn &t) { return may_be_steady(&t, what); });
	unsigned ctas = min((unsigned)lanes, (rows ? 2u : 3u) * (unsigned)d->n_sm);
	struct cuda_lease lease;
	struct select_args a = {};
	struct lists host, dev;
	int rc = cuda_lease(d, lease_bytes(n, lanes), &lease), rc2;

	if (rc)
		return rc;
	host = lists_at(lease.host, n, lanes);
	dev = lists_at(lease.dev, n, lanes);
	fill(&host, turn, n, what);
	a.view = cuda_view_of(map);
	a.turn = dev.turn;
	a.plan = dev.plan;
	a.sums = dev.sums;
	a.left = dev.left;
	a.n_left = dev.n_left;
	a.stats = stats != NULL;
	a.what = what;
	rc = take_stage(d, s, turn, n, &a, &ctas);
	if (!rc)
		begin_kernel<<<n, THREADS, 0, s>>>(host.turn, host.plan, dev.turn, dev.plan, dev.n_left);
	if (!rc)
		rc = cuda_errno(cudaGetLastError());
	if (!rc && lanes)
		rc = launch_steady(d, s, &a, turn, n, what, victims);
	if (!rc && lanes)
		rc = launch(d->major >= 9 && steady, s, rows ? select_kernel<true> : select_kernel<false>, dim3(ctas), THREADS,
			    sizeof(struct shared_state), &a);
	if (!rc && stats) {
		stats_kernel<<<n, 32, 0, s>>>(a.turn, a.sums, stats);
		rc = cuda_errno(cudaGetLastError());
	}
	if (a.stage) {
		rc2 = cuda_errno(cudaFreeAsync(a.stage, s));
		rc = rc ? rc : rc2;
	}
	rc2 = cuda_unlease(d, s, &lease);
	return rc ? rc : rc2;
}

int cuda_select(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const struct gpu_turn *turn, unsigned n,
		unsigned what, struct gpu_turn_stats *stats)
{
	uint32_t victims = 0;
	int rc = cuda_use(dev);

	for (unsigned i = 0; i < n && what & GPU_NEXT; i++)
		for (uint32_t l = 0; l < turn[i].n_lanes; l++)
			victims = max(victims, turn[i].plan[l].victims);
	if (!rc && victims > MAX_VICTIMS)
		return -EINVAL;
	for (unsigned first = 0, m; first < n && !rc; first += m) {
		size_t lanes = 0;

		for (m = 0; first + m < n && lease_bytes(m + 1, lanes + turn[first + m].n_lanes) <= CUDA_LEASE_MAX; m++)
			lanes += turn[first + m].n_lanes;
		if (!m)
			return -E2BIG;
		rc = run(cuda_dev(dev), cuda_stream(s), map, turn + first, m, lanes, what, victims, stats ? stats + first : NULL);
	}
	return rc;
}
