/*
 * select: what happens to a lane when its window ends: settle, fold, remove, compact, next (gpu.h).
 *
 * What: a CTA takes one lane. Lanes that keep all their slots are done in one pass (select_steady.cuh); for the others keys are 64-bit
 * (evict/rule.h), the k smallest are found by their bytes, most significant first, and the named ones are sorted. compact.cuh
 * moves slots.
 * Memory traffic: position, heat and credit of a slot read once and heat and credit written once (fold), position and credit
 * read once or twice more (keys); compaction moves 2 rows, read and written, per survivor beyond `keep`.
 * Determinism: everything depends on keys alone; atomics only count integers. Sums of credit are doubles in a fixed order.
 * Trust: only private tables are followed. Shared memory gives heat (cleaned) and, when slots move, K and V bytes.
 */
#include <string.h>

#include "gpu/cuda/compact.cuh"
#include "gpu/cuda/select_merge.cuh"
#include "gpu/cuda/select_stats.cuh"
#include "gpu/cuda/select_steady.cuh"

#define LEFT_FOLDED 0x80000000u		/* in left[]: the lane is settled and folded already */

struct select_args {
	struct cuda_view view;
	const struct turn_args *turn;
	const struct lane_item *item;
	struct sums *sums;		/* [lanes] */
	uint32_t *n_left, *left;	/* lanes that steady_kernel leaves to select_kernel, in any order */
	struct lane_ctx *lane;		/* what open_kernel found, for steady_kernel */
	char *stage;			/* scratch of select_kernel's CTAs, stage_bytes each, for lanes of stage_slots slots (select_staged.cuh) */
	size_t stage_bytes;
	uint32_t stage_slots, stage_dim;
	unsigned n_lanes;
	unsigned what;
	int stats;
};

/* Does select_kernel need its scratch for lanes under this rule? And rows of unit keys in it? */
static __host__ __device__ inline bool needs_stage(const struct evict_rule *rule)
{
	return evict_is_staged(rule) || rule->merge;
}

static __host__ __device__ inline bool needs_rows(const struct evict_rule *rule)
{
	return evict_n_trait(rule->policy) != evict_n_trait_once(rule) || evict_merge_by_key(rule->merge);
}

static __device__ bool open_lane(const struct select_args &a, unsigned i, struct lane_ctx *x)
{
	struct lane_item item = a.item[i];
	uint32_t cap;
	char *at;

	x->view = a.view;
	x->turn = a.turn[item.turn];
	x->plan = item.plan;
	x->lane = item.lane;
	at = x->turn.priv;
	x->t = (struct gpu_table *)at;
	if (x->lane >= x->t->n_lanes)
		return false;
	x->head = ((const struct gpu_lane *)(at + gpu_table_lanes()))[x->lane];
	x->next = (uint32_t *)(at + gpu_table_next(x->t)) + (size_t)x->lane * x->t->window;
	x->page = cuda_u32(at, gpu_table_pages(x->t)) + (size_t)x->lane * x->t->max_pages;
	x->block = cuda_u32(at, gpu_table_blocks(x->t)) + (size_t)x->lane * x->t->max_blocks;
	x->credit = cuda_u32(at, gpu_table_credits(x->t)) + (size_t)x->lane * x->t->max_blocks;
	cap = cuda_slots(x->t);
	x->live = gpu_live(x->head, x->turn.appended);
	x->live = x->live < cap ? x->live : cap;
	x->plan.keep = x->plan.keep < x->live ? x->plan.keep : x->live;
	x->n_heat = x->t->n_heat < EVICT_MAX_HEAT ? x->t->n_heat : EVICT_MAX_HEAT;
	x->turn.n_credit = x->turn.n_credit < EVICT_MAX_ARRAYS ? x->turn.n_credit : EVICT_MAX_ARRAYS;
	x->n_credit = evict_n_credit(x->turn.rule.policy);
	x->pooled = NULL;
	x->as_lane = evict_lane_at(&x->turn.rule, x->lane, x->turn.pos, x->turn.appended, x->n_heat ? x->t->observe : 0,
				   x->live);
	x->as_lane.tag = evict_mark_tag(mark_of(*x, x->as_lane.now - 1));
	return true;
}

/* Is this array of a credit block a trait of a row's own? */
static __device__ __forceinline__ bool is_once(const struct lane_ctx &x, uint32_t array)
{
	const uint32_t policy = x.turn.rule.policy;

	return array >= x.n_credit && array < evict_n_arrays(policy) && evict_trait_once(x.turn.rule.trait[array - x.n_credit]);
}

/* The window's tokens get their positions and traits; they start without credit. thread: of `threads`, whole warps. */
static __device__ void settle(const struct lane_ctx &x, uint32_t thread, uint32_t threads)
{
	const uint64_t most = (uint64_t)x.head.fresh + x.t->window;	/* tokens of the window that have a slot */
	const uint32_t n = x.turn.appended < most ? x.turn.appended : (uint32_t)most;

	for (uint32_t j = thread; j < n; j += threads) {
		uint32_t slot = gpu_slot_of(x.head, x.next, j);
		char *c = slot < x.live ? credit_block(x, slot) : NULL;

		if (!c)
			continue;
		*pos_in(c, slot) = x.turn.pos + (int32_t)j;
		for (uint32_t k = 0; k < x.turn.n_credit; k++)
			if (!is_once(x, k))
				*array_in(c, k, slot) = 0.0f;
	}
	if (!evict_n_trait_once(&x.turn.rule))
		return;
	for (uint32_t j = thread / ROW_THREADS; j < n; j += threads / ROW_THREADS) {
		uint32_t slot = gpu_slot_of(x.head, x.next, j);

		if (slot < x.live)
			row_traits(x, slot);
	}
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
	if (x.turn.rule.merge)
		return merge_and_remove(x, sh, st, t);
	for (uint32_t i = threadIdx.x; i < x.live; i += THREADS)
		if (is_below(t, key_at(x, sh, i), i))
			leaving += leave(x, i);
	__syncthreads();
	return leaving;
}

static __device__ __forceinline__ void write_head(const struct lane_ctx &x, uint32_t len, uint32_t fresh)
{
	struct gpu_lane head = { len, fresh };

	if (threadIdx.x == 0)
		((struct gpu_lane *)(x.turn.priv + gpu_table_lanes()))[x.lane] = head;
}

/* Name the least valuable slots and write the lane's header. Returns the thread's share of the named slots' credit. */
static __device__ double name_next(struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st)
{
	uint32_t n = x.plan.victims < x.plan.keep ? x.plan.victims : x.plan.keep;
	double leaving = 0.0;

	n = n < x.t->window ? n : x.t->window;
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
		if (x.turn.rule.merge) {
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
	uint32_t mine = 0, dropped;

	for (uint32_t i = threadIdx.x; i < x.live; i += THREADS) {
		if (!evict_mark_drops(mark_of(x, pos_of(x, i)), layer))
			continue;
		mine++;
		(void)leave(x, i);
	}
	__syncthreads();
	(void)block_scan(sh, mine, &dropped);
	x.plan.keep = x.live - dropped;
	compact(x, sh);
	x.live = x.as_lane.live = x.plan.keep;
	x.plan.keep = planned < x.live ? planned : x.live;
	write_head(x, x.live, 0);
	if (threadIdx.x == 0)
		x.turn.live[x.lane] = x.live;
	__syncthreads();
}

/* Fold, traits of the lane, and the statistics that this is the moment for. */
static __device__ void fold_lane(struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st)
{
	if (x.turn.stats)
		stats_begin(x, sh);
	if (x.turn.stats & EVICT_STATS_HEAT)
		stats_of_heat(x, sh);
	if (evict_has_heat_figure(x.turn.rule.policy))
		x.as_lane.heat = lane_values(x, sh, st, x.live, VALUE_HEAT_FIGURE);
	fold(x);
	lane_traits(x, sh, st);
	if (x.turn.stats & EVICT_STATS_RANK) {
		before_ranking(x, sh, st, x.live);
		stats_of_ranks(x, sh);
	}
	if (x.turn.stats)
		stats_end(x, sh);
}

/* One lane, step by step. */
static __device__ void select_lane(const struct select_args &a, uint32_t i, unsigned what, struct shared_state *sh)
{
	const struct lane_stage st = stage_at(a.stage + blockIdx.x * a.stage_bytes, a.stage_slots, a.stage_dim);
	double removed = 0.0, named = 0.0, kept;
	struct lane_ctx x;

	if (!open_lane(a, i, &x) || (needs_stage(&x.turn.rule) && x.live > a.stage_slots))
		return;
	if (what & GPU_SETTLE)
		settle(x, threadIdx.x, THREADS);
	__syncthreads();
	if (what & GPU_DROP)
		drop_slots(x, sh);
	if (what & GPU_TRAITS && evict_n_trait_once(&x.turn.rule)) {
		for (uint32_t slot = threadIdx.x / ROW_THREADS; slot < x.live; slot += ROWS_AT_ONCE)
			row_traits(x, slot);
		__syncthreads();
	}
	if (what & GPU_FOLD)
		fold_lane(x, sh, st);
	if (what & GPU_REMOVE)
		removed = remove_slots(x, sh, st);
	if (what & GPU_COMPACT)
		compact(x, sh);
	if (what & GPU_NEXT)
		named = name_next(x, sh, st);
	if (!a.stats)
		return;
	__syncthreads();
	kept = sum_kept(x, sh, what);
	named = block_sum(sh, named);
	__syncthreads();
	removed = block_sum(sh, removed);
	if (threadIdx.x == 0) {
		a.sums[i].kept = kept - named;
		a.sums[i].leaving = removed + named;
	}
}

static __global__ void __launch_bounds__(THREADS, 2) select_kernel(const __grid_constant__ struct select_args a)
{
	extern __shared__ __align__(16) char bytes[];

	for (uint32_t i = blockIdx.x; i < *a.n_left; i += gridDim.x) {
		uint32_t lane = a.left[i];

		select_lane(a, lane & ~LEFT_FOLDED, lane & LEFT_FOLDED ? a.what & ~(unsigned)(GPU_SETTLE | GPU_FOLD) : a.what,
			    (struct shared_state *)bytes);
		__syncthreads();
	}
}

/* Does the lane keep all of its slots, and does its policy need to see no other slot to rank one? */
static __device__ __forceinline__ bool is_steady(const struct select_args &a, const struct lane_ctx &x)
{
	const struct evict_rule *rule = &x.turn.rule;

	if (evict_is_staged(rule) || rule->merge || x.turn.stats || x.turn.n_marks || a.what & (GPU_DROP | GPU_TRAITS))
		return false;
	if (a.what & GPU_FOLD && x.n_heat > evict_n_heat(rule->policy))	/* for statistics of other turns: it is zeroed, too */
		return false;
	return (!(a.what & (GPU_REMOVE | GPU_COMPACT)) || x.plan.keep == x.live) && (!(a.what & GPU_NEXT) || x.plan.victims <= STEADY_MAX) &&
	       x.turn.n_credit >= evict_n_arrays(rule->policy);
}

/* A warp a lane: finds it, and settles it if it is steady; the others are left to select_kernel. */
static __global__ void __launch_bounds__(THREADS) open_kernel(const __grid_constant__ struct select_args a)
{
	uint32_t i = blockIdx.x * WARPS + threadIdx.x / 32u, thread = threadIdx.x % 32u;
	struct lane_ctx x;
	bool there;

	if (i >= a.n_lanes)
		return;
	there = open_lane(a, i, &x);
	x.is_steady = there && is_steady(a, x);
	if (x.is_steady) {
		if (a.what & GPU_SETTLE)
			settle(x, thread, 32u);
		if (a.what & GPU_NEXT) {
			x.plan.victims = min(min(x.plan.victims, x.plan.keep), x.t->window);
		} else {
			x.plan.victims = 0;
			x.plan.keep = x.live;
		}
	}
	if (thread == 0) {
		a.lane[i] = x;
		if (there && !x.is_steady)
			a.left[atomicAdd(a.n_left, 1u)] = i;
	}
}

static __global__ void __launch_bounds__(THREADS, 3) steady_kernel(const __grid_constant__ struct select_args a)
{
	__shared__ struct steady_state sh;
	const struct lane_ctx &x = sh.lane;
	double sum = 0.0, leaving = 0.0;

	for (uint32_t i = threadIdx.x; i < sizeof(struct lane_ctx) / 4u; i += THREADS)
		((uint32_t *)&sh.lane)[i] = ((const uint32_t *)&a.lane[blockIdx.x])[i];
	__syncthreads();
	if (!x.is_steady)
		return;
	if (!steady_lane(x, &sh, a.what & GPU_FOLD, x.plan.victims, sum)) {
		if (threadIdx.x == 0)
			a.left[atomicAdd(a.n_left, 1u)] = blockIdx.x | LEFT_FOLDED;
		return;
	}
	for (uint32_t i = threadIdx.x; i < x.plan.victims; i += THREADS) {
		x.next[i] = sh.slot[i];
		leaving += (double)first_credit(x, sh.slot[i]);
	}
	if (threadIdx.x == 0 && a.what & GPU_NEXT) {
		struct gpu_lane head = { x.plan.keep, x.plan.fresh };

		((struct gpu_lane *)(x.turn.priv + gpu_table_lanes()))[x.lane] = head;
	}
	if (!a.stats)
		return;
	sum = block_sum(&sh, sum);
	__syncthreads();
	leaving = block_sum(&sh, leaving);
	if (threadIdx.x == 0) {
		a.sums[blockIdx.x].kept = sum - leaving;
		a.sums[blockIdx.x].leaving = leaving;
	}
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

static size_t lease_bytes(size_t turns, size_t lanes)
{
	return turns * sizeof(struct turn_args) + lanes * (sizeof(struct lane_item) + sizeof(struct sums) + sizeof(struct lane_ctx) + 4u) + 8u;
}

/* Room for what kernels leave comes first (sums, lanes; never uploaded), then how many lanes are left over (none), turns, lanes; last which are left. */
static void fill(char *at, const struct gpu_turn *turn, unsigned n, size_t lanes)
{
	uint32_t *n_left = (uint32_t *)(at + lanes * (sizeof(struct sums) + sizeof(struct lane_ctx)));
	struct turn_args *t = (struct turn_args *)(n_left + 2);
	struct lane_item *item = (struct lane_item *)(t + n);
	uint32_t first = 0;

	*n_left = 0;

	for (unsigned i = 0; i < n; i++) {
		struct turn_args x = { (char *)turn[i].priv, turn[i].appended, turn[i].n_credit, turn[i].slot_type,
				       turn[i].head_dim, first, turn[i].n_lanes, turn[i].pos, turn[i].rule, turn[i].stats,
				       { turn[i].stats_heat[0], turn[i].stats_heat[1] }, turn[i].stats_near, turn[i].lane_stats,
				       turn[i].marks, turn[i].marks ? turn[i].n_marks : 0u, turn[i].n_kv_heads, turn[i].live };

		t[i] = x;
		for (uint32_t l = 0; l < turn[i].n_lanes; l++) {
			struct lane_item li = { i, l, turn[i].plan[l] };

			item[first++] = li;
		}
	}
}

/*
 * Scratch for select_kernel, as many CTAs' as fit into STAGE_MOST, one's at least: *ctas, of at most so many. It belongs to the stream, so what
 * was enqueued before may go on using it. Freed by cudaFreeAsync() behind the kernel. NULL: no lane needs any.
 */
#define STAGE_MOST ((size_t)256 << 20)

static int take_stage(struct cuda_device *d, cudaStream_t s, const struct gpu_turn *turn, unsigned n, struct select_args *a, unsigned *ctas)
{
	bool rows = false;
	uint64_t most;

	for (unsigned i = 0; i < n; i++) {
		const uint32_t now = (uint32_t)turn[i].pos + turn[i].appended, live = turn[i].live_max && turn[i].live_max < now ? turn[i].live_max : now;

		if (!needs_stage(&turn[i].rule))
			continue;
		a->stage_slots = live > a->stage_slots ? live : a->stage_slots;
		a->stage_dim = turn[i].head_dim > a->stage_dim ? turn[i].head_dim : a->stage_dim;
		rows = rows || needs_rows(&turn[i].rule);
	}
	if (!a->stage_dim)
		return 0;
	a->stage_slots = gpu_blocks_for(a->stage_slots + !a->stage_slots) * GPU_BLOCK_SLOTS;
	a->stage_bytes = stage_bytes(a->stage_slots, a->stage_dim, rows);
	most = STAGE_MOST / a->stage_bytes + !(STAGE_MOST / a->stage_bytes);
	*ctas = *ctas < most ? *ctas : (unsigned)most;
	return cuda_scratch(d, s, *ctas * a->stage_bytes, (void **)&a->stage);
}

/* One launch: turns whose lists fit into a lease. */
static int run(struct cuda_device *d, cudaStream_t s, const struct gpu_map *map, const struct gpu_turn *turn, unsigned n,
	       size_t lanes, unsigned what, struct gpu_turn_stats *stats)
{
	size_t head = lanes * (sizeof(struct sums) + sizeof(struct lane_ctx)), bytes = lease_bytes(n, lanes);
	unsigned ctas = min((unsigned)lanes, 2u * (unsigned)d->n_sm);
	struct cuda_lease lease;
	struct select_args a = {};
	int rc = cuda_lease(d, bytes, &lease), rc2;

	if (rc)
		return rc;
	fill(lease.host, turn, n, lanes);
	a.view = cuda_view_of(map);
	a.sums = (struct sums *)lease.dev;
	a.lane = (struct lane_ctx *)(a.sums + lanes);
	a.n_left = (uint32_t *)(lease.dev + head);
	a.turn = (const struct turn_args *)(a.n_left + 2);
	a.item = (const struct lane_item *)(a.turn + n);
	a.left = (uint32_t *)(a.item + lanes);
	a.stats = stats != NULL;
	a.n_lanes = (unsigned)lanes;
	a.what = what;
	rc = take_stage(d, s, turn, n, &a, &ctas);
	if (!rc)
		rc = cuda_errno(cudaMemcpyAsync(lease.dev + head, lease.host + head, bytes - head - lanes * 4u, cudaMemcpyHostToDevice, s));
	if (!rc && lanes) {
		open_kernel<<<(a.n_lanes + WARPS - 1u) / WARPS, THREADS, 0, s>>>(a);
		steady_kernel<<<a.n_lanes, THREADS, 0, s>>>(a);
		select_kernel<<<ctas, THREADS, sizeof(struct shared_state), s>>>(a);
		rc = cuda_errno(cudaGetLastError());
	}
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
	int rc = cuda_use(dev);

	for (unsigned i = 0; i < n && !rc; i++)
		for (uint32_t l = 0; l < turn[i].n_lanes; l++)
			if (what & GPU_NEXT && turn[i].plan[l].victims > MAX_VICTIMS)
				return -EINVAL;
	if (!rc)
		rc = cuda_errno(cudaFuncSetAttribute(select_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
						     (int)sizeof(struct shared_state)));
	for (unsigned first = 0, m; first < n && !rc; first += m) {
		size_t lanes = 0;

		for (m = 0; first + m < n && lease_bytes(m + 1, lanes + turn[first + m].n_lanes) <= CUDA_LEASE_MAX; m++)
			lanes += turn[first + m].n_lanes;
		if (!m)
			return -E2BIG;
		rc = run(cuda_dev(dev), cuda_stream(s), map, turn + first, m, lanes, what, stats ? stats + first : NULL);
	}
	return rc;
}
