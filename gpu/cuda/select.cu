/*
 * select: what happens to a lane when its window ends: settle, fold, remove, compact, next (gpu.h).
 *
 * What: a CTA takes one lane. Lanes that keep all their slots are done in one pass (select_steady.cuh); for the others keys are 64-bit
 * (evict/rule.h), the k smallest are found by their bytes, most significant first, and the named ones are sorted. A warp moves one slot when
 * a lane is compacted.
 * Memory traffic: position, heat and credit of a slot read once and heat and credit written once (fold), position and credit
 * read once or twice more (keys); compaction moves 2 rows, read and written, per survivor beyond `keep`.
 * Determinism: everything depends on keys alone; atomics only count integers. Sums of credit are doubles in a fixed order.
 * Trust: only private tables are followed. Shared memory gives heat (cleaned) and, when slots move, K and V bytes.
 */
#include <string.h>

#include "gpu/cuda/select_steady.cuh"

#define SELECT_MAX_DIM 256u
#define LEFT_FOLDED 0x80000000u		/* in left[]: the lane is settled and folded already */

struct select_args {
	struct cuda_view view;
	const struct turn_args *turn;
	const struct lane_item *item;
	struct sums *sums;		/* [lanes] */
	uint32_t *n_left, *left;	/* lanes that steady_kernel leaves to select_kernel, in any order */
	struct lane_ctx *lane;		/* what open_kernel found, for steady_kernel */
	unsigned n_lanes;
	unsigned what;
	int stats;
};

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
	x->as_lane = evict_lane_at(&x->turn.rule, x->lane, x->turn.pos, x->turn.appended, x->n_heat ? x->t->observe : 0,
				   x->live);
	return true;
}

/* A slot's K (which = 0) or V (1) as float32, cleaned: as the host reads it. */
static __device__ void read_row(const struct lane_ctx &x, const char *page, uint32_t at, uint32_t which, float *row)
{
	uint32_t type = x.turn.slot_type, d = x.turn.head_dim;
	const char *from = page + which * gpu_page_v(type, d) + at * gpu_row_bytes(type, d);
	const __half *param = (const __half *)(page + gpu_page_params(type, d)) + (which * GPU_PAGE_SLOTS + at) * 2u;

	for (uint32_t c = 0; c < d; c++) {
		float v = type == GPU_Q8 ? __half2float(param[1]) + __half2float(param[0]) * (float)((const signed char *)from)[c]
					 : cuda_load(from, type, c);

		row[c] = evict_element(v);
	}
}

/* Traits of one slot's own rows. One thread: there are a window's tokens a lane, and few policies ask. */
static __device__ __noinline__ void settle_traits(const struct lane_ctx &x, uint32_t slot, char *credit)
{
	const struct evict_rule *rule = &x.turn.rule;
	const char *page = cuda_at(x.view, x.page[slot / GPU_PAGE_SLOTS]);
	float k[SELECT_MAX_DIM], v[SELECT_MAX_DIM];

	if (!page || x.turn.head_dim > SELECT_MAX_DIM)
		return;
	read_row(x, page, slot % GPU_PAGE_SLOTS, 0, k);
	read_row(x, page, slot % GPU_PAGE_SLOTS, 1, v);
	for (uint32_t i = 0; i < evict_n_trait(rule->policy); i++)
		if (evict_trait_once(rule->trait[i]))
			*array_in(credit, x.n_credit + i, slot) = evict_trait_of(rule->trait[i], k, v, x.turn.head_dim);
}

/* The window's tokens get their positions and traits; they start without credit. thread: of `threads`. */
static __device__ void settle(const struct lane_ctx &x, uint32_t thread, uint32_t threads)
{
	for (uint32_t j = thread; j < x.turn.appended; j += threads) {
		uint32_t slot;
		char *c;

		if (j >= x.head.fresh && j - x.head.fresh >= x.t->window)
			break;
		slot = gpu_slot_of(x.head, x.next, j);
		c = slot < x.live ? credit_block(x, slot) : NULL;
		if (!c)
			continue;
		*pos_in(c, slot) = x.turn.pos + (int32_t)j;
		for (uint32_t k = 0; k < x.turn.n_credit; k++)
			*array_in(c, k, slot) = 0.0f;
		if (evict_n_trait(x.turn.rule.policy))
			settle_traits(x, slot, c);
	}
}

static __device__ void fold(const struct lane_ctx &x)
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

/* Mark the live - keep least valuable slots. Returns this thread's share of their credit. */
static __device__ double remove_slots(const struct lane_ctx &x, struct shared_state *sh)
{
	uint32_t n = x.live - x.plan.keep;
	struct threshold t;
	double leaving = 0.0;

	if (!n)
		return 0.0;
	cache_keys(x, sh, x.live);
	t = kth_key(x, sh, x.live, n);
	for (uint32_t i = threadIdx.x; i < x.live; i += THREADS) {
		char *c;

		if (!is_below(t, key_at(x, sh, i), i))
			continue;
		c = credit_block(x, i);
		if (!c)
			continue;
		leaving += (double)first_credit(x, i);
		*pos_in(c, i) = -1;
	}
	__syncthreads();
	return leaving;
}

/* One slot to another place: a warp. */
static __device__ void move_slot(const struct lane_ctx &x, uint32_t from, uint32_t to)
{
	uint32_t type = x.turn.slot_type, d = x.turn.head_dim, thread = threadIdx.x % 32u;
	uint32_t row = gpu_row_bytes(type, d), v = gpu_page_v(type, d), par = gpu_page_params(type, d);
	uint32_t a = from % GPU_PAGE_SLOTS, b = to % GPU_PAGE_SLOTS;
	const char *src = cuda_at(x.view, x.page[from / GPU_PAGE_SLOTS]);
	char *dst = cuda_at(x.view, x.page[to / GPU_PAGE_SLOTS]);
	char *hs = heat_block(x, from), *hd = heat_block(x, to), *cs = credit_block(x, from), *cd = credit_block(x, to);

	if (!src || !dst || !hs || !hd || !cs || !cd)
		return;
	for (uint32_t i = thread; i < row / 16u; i += 32u) {
		((uint4 *)(dst + (size_t)b * row))[i] = ((const uint4 *)(src + (size_t)a * row))[i];
		((uint4 *)(dst + v + (size_t)b * row))[i] = ((const uint4 *)(src + v + (size_t)a * row))[i];
	}
	if (type == GPU_Q8 && thread < 2)
		((uint32_t *)(dst + par))[thread * GPU_PAGE_SLOTS + b] = ((const uint32_t *)(src + par))[thread * GPU_PAGE_SLOTS + a];
	if (thread == 0) {	/* the shared position is a copy of the private one, never the other way round */
		*pos_in(hd, to) = *pos_in(cs, from);
		*pos_in(cd, to) = *pos_in(cs, from);
	}
	if (thread < x.n_heat)
		*array_in(hd, thread, to) = *array_in(hs, thread, from);
	if (thread < x.turn.n_credit)
		*array_in(cd, thread, to) = *array_in(cs, thread, from);
}

/* Append the slots of at .. at+THREADS-1 (< end) that are dead (or alive) to a ring list that holds n entries from `head`. */
static __device__ uint32_t gather(const struct lane_ctx &x, struct shared_state *sh, uint32_t *list, uint32_t head, uint32_t n,
				  uint32_t at, uint32_t end, bool dead)
{
	uint32_t slot = at + threadIdx.x, total, mine = slot < end && (pos_of(x, slot) < 0) == dead;
	uint32_t before = block_scan(sh, mine, &total);

	if (mine)
		list[(head + n + before) % LIST] = slot;
	return n + total;
}

/* The survivors from keep on move into the holes below it, both in ascending order. */
static __device__ void compact(const struct lane_ctx &x, struct shared_state *sh)
{
	uint32_t keep = x.plan.keep, hole_at = 0, survivor_at = keep, head = 0, tail = 0, holes = 0, survivors = 0;

	for (;;) {
		uint32_t n;

		for (; holes < THREADS && hole_at < keep; hole_at += THREADS)
			holes = gather(x, sh, sh->hole, head, holes, hole_at, keep, true);
		for (; survivors < THREADS && survivor_at < x.live; survivor_at += THREADS)
			survivors = gather(x, sh, sh->survivor, tail, survivors, survivor_at, x.live, false);
		__syncthreads();
		n = holes < survivors ? holes : survivors;
		if (!n)
			break;
		for (uint32_t i = threadIdx.x / 32u; i < n; i += WARPS)
			move_slot(x, sh->survivor[(tail + i) % LIST], sh->hole[(head + i) % LIST]);
		__syncthreads();
		head += n;
		tail += n;
		holes -= n;
		survivors -= n;
	}
}

/* Name the least valuable slots and write the lane's header. Returns the thread's share of the named slots' credit. */
static __device__ double name_next(const struct lane_ctx &x, struct shared_state *sh, struct threshold *named)
{
	uint32_t n = x.plan.victims < x.plan.keep ? x.plan.victims : x.plan.keep;
	double leaving = 0.0;

	n = n < x.t->window ? n : x.t->window;
	n = n < MAX_VICTIMS ? n : MAX_VICTIMS;
	if (n) {
		cache_keys(x, sh, x.plan.keep);
		*named = kth_key(x, sh, x.plan.keep, n);
		if (threadIdx.x == 0)
			sh->n_found = 0;
		__syncthreads();
		for (uint32_t i = threadIdx.x; i < x.plan.keep; i += THREADS) {
			uint64_t key = key_at(x, sh, i);
			uint32_t at;

			if (!is_below(*named, key, i))
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
	}
	if (threadIdx.x == 0) {
		struct gpu_lane head = { x.plan.keep, x.plan.fresh };

		((struct gpu_lane *)(x.turn.priv + gpu_table_lanes()))[x.lane] = head;
	}
	return leaving;
}

/* Credit of what is neither removed nor named; valid in thread 0. */
static __device__ double sum_kept(const struct lane_ctx &x, struct shared_state *sh, unsigned what, const struct threshold &named)
{
	uint32_t n = what & (GPU_COMPACT | GPU_NEXT) ? x.plan.keep : x.live;
	double kept = 0.0;

	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		if (pos_of(x, i) >= 0 && !(what & GPU_NEXT && is_below(named, key_of(x, i), i)))
			kept += (double)first_credit(x, i);
	return block_sum(sh, kept);
}

/* One lane, step by step. */
static __device__ void select_lane(const struct select_args &a, uint32_t i, unsigned what, struct shared_state *sh)
{
	struct threshold named = { 0, 0 };	/* nothing: no key is 0, since protection and rank of a real slot are not */
	double leaving = 0.0, kept;
	struct lane_ctx x;
	bool any_named;

	if (!open_lane(a, i, &x))
		return;
	if (what & GPU_SETTLE)
		settle(x, threadIdx.x, THREADS);
	__syncthreads();
	if (what & GPU_FOLD)
		fold(x);
	if (what & GPU_REMOVE)
		leaving += remove_slots(x, sh);
	if (what & GPU_COMPACT)
		compact(x, sh);
	any_named = what & GPU_NEXT && x.plan.victims && x.plan.keep;
	if (what & GPU_NEXT)
		leaving += name_next(x, sh, &named);
	if (!a.stats)
		return;
	__syncthreads();
	kept = sum_kept(x, sh, any_named ? what : what & ~(unsigned)GPU_NEXT, named);
	leaving = block_sum(sh, leaving);
	if (threadIdx.x == 0) {
		a.sums[i].kept = kept;
		a.sums[i].leaving = leaving;
	}
}

static __global__ void __launch_bounds__(THREADS) select_kernel(const __grid_constant__ struct select_args a)
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
	return (!(a.what & (GPU_REMOVE | GPU_COMPACT)) || x.plan.keep == x.live) && !evict_is_staged(&x.turn.rule) &&
	       (!(a.what & GPU_NEXT) || x.plan.victims <= STEADY_MAX) && x.turn.n_credit >= evict_n_arrays(x.turn.rule.policy);
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
				       turn[i].head_dim, first, turn[i].n_lanes, turn[i].pos, turn[i].rule };

		t[i] = x;
		for (uint32_t l = 0; l < turn[i].n_lanes; l++) {
			struct lane_item li = { i, l, turn[i].plan[l] };

			item[first++] = li;
		}
	}
}

/* One launch: turns whose lists fit into a lease. */
static int run(struct cuda_device *d, cudaStream_t s, const struct gpu_map *map, const struct gpu_turn *turn, unsigned n,
	       size_t lanes, unsigned what, struct gpu_turn_stats *stats)
{
	size_t head = lanes * (sizeof(struct sums) + sizeof(struct lane_ctx)), bytes = lease_bytes(n, lanes);
	struct cuda_lease lease;
	struct select_args a;
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
	rc = cuda_errno(cudaMemcpyAsync(lease.dev + head, lease.host + head, bytes - head - lanes * 4u, cudaMemcpyHostToDevice, s));
	if (!rc && lanes) {
		open_kernel<<<(a.n_lanes + WARPS - 1u) / WARPS, THREADS, 0, s>>>(a);
		steady_kernel<<<a.n_lanes, THREADS, 0, s>>>(a);
		select_kernel<<<min(a.n_lanes, 3u * (unsigned)d->n_sm), THREADS, sizeof(struct shared_state), s>>>(a);
		rc = cuda_errno(cudaGetLastError());
	}
	if (!rc && stats) {
		stats_kernel<<<n, 32, 0, s>>>(a.turn, a.sums, stats);
		rc = cuda_errno(cudaGetLastError());
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
