/* The host backend: devices, steps, and the operations as far as they do not depend on the instruction set. */
#include "gpu/host/host.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Below so many bytes of K and V (weighed by queries) waking other threads costs more than it saves. */
#define ALONE_BYTES (512u << 10)

/* --- the device ------------------------------------------------------------------------------------------------------------ */

/* The best instruction set of this processor, or a lower one that EBB_ISA asks for. */
static const struct host_kernels *choose_kernels(void)
{
#if defined(__x86_64__)
	const char *ask = getenv("EBB_ISA");
	int level = 0;

	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
		level = 1;
	if (level == 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
		level = 2;
	if (ask && !strcmp(ask, "plain"))
		level = 0;
	else if (ask && !strcmp(ask, "avx2") && level > 1)
		level = 1;
	return level == 2 ? &host_kernels_avx512 : level == 1 ? &host_kernels_avx2 : &host_kernels_plain;
#else
	return &host_kernels_plain;
#endif
}

const char *gpu_host_isa(void)
{
	return choose_kernels()->isa;
}

static int host_open(struct gpu_device **out, const char *name)
{
	long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
	struct host_device *dev;

	if (strcmp(name, "host"))
		return -EINVAL;
	dev = calloc(1, sizeof(*dev));
	if (!dev)
		return -ENOMEM;
	dev->base = (struct gpu_device){
		.ops = &gpu_host_backend,
		.info = { .ordinal = -1, .name = "host", .uuid = "host" },
	};
	if (pages > 0 && page > 0)
		dev->base.info.total_bytes = (uint64_t)pages * (uint64_t)page;
	dev->kernels = choose_kernels();
	dev->n_threads = 1;
	pthread_mutex_init(&dev->select_lock, NULL);
	*out = &dev->base;
	return 0;
}

static void host_close(struct gpu_device *base)
{
	struct host_device *dev = (struct host_device *)base;

	host_pool_free(dev->pool);
	host_scratch_fini(&dev->select_scratch);
	pthread_mutex_destroy(&dev->select_lock);
	free(dev);
}

static int host_set_threads(struct gpu_device *base, unsigned n_threads)
{
	struct host_device *dev = (struct host_device *)base;
	struct host_pool *pool = NULL;
	int rc;

	if (n_threads > HOST_MAX_THREADS)
		return -EINVAL;
	if (n_threads == dev->n_threads)
		return 0;
	if (n_threads > 1) {
		rc = host_pool_new(&pool, n_threads);
		if (rc)
			return rc;
	}
	host_pool_free(dev->pool);
	dev->pool = pool;
	dev->n_threads = n_threads;
	return 0;
}

/* --- steps ------------------------------------------------------------------------------------------------------------------- */

static int host_step_new(struct gpu_device *dev, unsigned max_seqs, unsigned max_rows, struct gpu_step **out)
{
	struct host_step *step = calloc(1, sizeof(*step));

	if (!step)
		return -ENOMEM;
	*step = (struct host_step){ .base = { .dev = dev }, .max_seqs = max_seqs, .max_rows = max_rows };
	step->seq = calloc(max_seqs, sizeof(*step->seq));
	if (!step->seq) {
		free(step);
		return -ENOMEM;
	}
	*out = &step->base;
	return 0;
}

static void host_step_free(struct gpu_device *dev, struct gpu_step *base)
{
	struct host_step *step = (struct host_step *)base;

	(void)dev;
	host_scratch_fini(&step->scratch);
	free(step->seq);
	free(step);
}

static int host_step_set(struct gpu_step *base, gpu_stream s, const struct gpu_shape *shape, const struct gpu_map *map,
			 const struct gpu_seq *seq, unsigned n_seqs, uint32_t live_max)
{
	struct host_step *step = (struct host_step *)base;
	const struct host_device *dev = (const struct host_device *)base->dev;
	uint64_t rows = 0;
	uint32_t n_max = 0;
	size_t bytes;
	int rc;

	(void)s;
	for (unsigned i = 0; i < n_seqs && n_seqs <= step->max_seqs; i++) {
		rows += seq[i].n;
		n_max = seq[i].n > n_max ? seq[i].n : n_max;
	}
	if (n_seqs > step->max_seqs || rows > step->max_rows)
		return -EINVAL;
	bytes = host_room(NULL, shape, live_max, n_max).bytes;
	rc = host_scratch_grow(&step->scratch, bytes * dev->n_threads);
	if (rc)
		return rc;
	step->worker_bytes = bytes;
	step->n_workers = dev->n_threads;
	step->shape = *shape;
	step->map = map;
	step->n_seqs = n_seqs;
	step->live_max = live_max;
	step->n_max = n_max;
	if (n_seqs)
		memcpy(step->seq, seq, n_seqs * sizeof(*seq));
	return 0;
}

/* --- append, attend, observe ------------------------------------------------------------------------------------------------------ */

struct step_job {
	const struct host_step *step;
	struct host_item item;
	void (*kernel)(const struct host_item *it);
};

static void step_work(void *arg, unsigned item, unsigned worker)
{
	const struct step_job *job = arg;
	struct host_item it = job->item;

	it.seq = &job->step->seq[item / job->step->shape.n_kv_heads];
	it.kv_head = item % job->step->shape.n_kv_heads;
	it.scratch = job->step->scratch.at + worker * job->step->worker_bytes;
	if (it.seq->n)
		job->kernel(&it);
}

/* The tables must have the layer, and no lane may be longer than the caller said: the scratch would not hold it. */
static int step_check(const struct host_step *step, uint32_t layer)
{
	for (unsigned i = 0; i < step->n_seqs; i++) {
		const struct gpu_seq *seq = &step->seq[i];
		const struct gpu_table *t = seq->table;
		const char *at = seq->table;
		const struct gpu_lane *lane = (const struct gpu_lane *)(const void *)(at + gpu_table_lanes());
		uint64_t first = (uint64_t)layer * step->shape.n_kv_heads;

		if (!seq->n)
			continue;
		if (first + step->shape.n_kv_heads > t->n_lanes || t->n_heat > GPU_MAX_HEAT)
			return -EINVAL;
		for (uint32_t h = 0; h < step->shape.n_kv_heads; h++)
			if (gpu_live(lane[first + h], seq->used + seq->n) > step->live_max)
				return -EINVAL;
	}
	return 0;
}

/* bytes: roughly what the whole operation touches. */
static int step_run(struct gpu_step *base, struct step_job *job, uint64_t bytes)
{
	const struct host_step *step = (const struct host_step *)base;
	struct host_device *dev = (struct host_device *)base->dev;
	unsigned workers = bytes < ALONE_BYTES ? 1 : step->n_workers;
	int rc = step_check(step, job->item.layer);

	if (rc)
		return rc;
	job->step = step;
	job->item.step = step;
	host_run(dev, step->n_seqs * step->shape.n_kv_heads, workers, step_work, job);
	return 0;
}

static uint64_t lane_bytes(const struct host_step *step, uint64_t slots)
{
	return slots * step->shape.n_kv_heads * step->n_seqs * gpu_slot_bytes(step->shape.slot_type, step->shape.head_dim);
}

static int host_append(struct gpu_step *base, gpu_stream s, uint32_t layer, const struct gpu_tensor *k,
		       const struct gpu_tensor *v)
{
	const struct host_step *step = (const struct host_step *)base;
	struct step_job job = {
		.item = { .layer = layer, .a = k, .b = v },
		.kernel = ((const struct host_device *)base->dev)->kernels->append,
	};

	(void)s;
	return step_run(base, &job, lane_bytes(step, step->n_max));
}

static int host_attend(struct gpu_step *base, gpu_stream s, uint32_t layer, const struct gpu_tensor *q,
		       const struct gpu_tensor *out, float scale, float *lse)
{
	const struct host_step *step = (const struct host_step *)base;
	struct step_job job = {
		.item = { .layer = layer, .a = q, .b = out, .scale = scale, .lse = lse },
		.kernel = ((const struct host_device *)base->dev)->kernels->attend,
	};

	(void)s;
	return step_run(base, &job, lane_bytes(step, (uint64_t)step->live_max * step->n_max));
}

static int host_observe(struct gpu_step *base, gpu_stream s, uint32_t layer, const struct gpu_tensor *q, const float *lse,
			float scale, uint32_t last)
{
	const struct host_step *step = (const struct host_step *)base;
	struct step_job job = {
		.item = { .layer = layer, .a = q, .scale = scale, .lse_in = lse, .last = last },
		.kernel = ((const struct host_device *)base->dev)->kernels->observe,
	};

	(void)s;
	return step_run(base, &job, lane_bytes(step, (uint64_t)step->live_max * step->n_max));
}

/* --- select and move ------------------------------------------------------------------------------------------------------------------ */

struct select_job {
	const struct host_device *dev;
	const struct gpu_map *map;
	const struct gpu_turn *turn;
	unsigned what;
	int want_stats;
	double *sums;			/* per lane: kept, leaving */
	char *scratch;
	size_t keys_bytes, heap_bytes, worker_bytes;
};

static void select_work(void *arg, unsigned item, unsigned worker)
{
	const struct select_job *job = arg;
	const struct gpu_turn *turn = job->turn;
	char *scratch = job->scratch + worker * job->worker_bytes;
	struct host_select sel = { .map = job->map, .what = job->what, .want_stats = job->want_stats };
	unsigned lane = item;

	while (lane >= turn->n_lanes)
		lane -= (turn++)->n_lanes;
	sel.turn = turn;
	sel.lane = lane;
	sel.keys = (uint64_t *)(void *)scratch;
	sel.heap = (uint64_t *)(void *)(scratch + job->keys_bytes);
	sel.staged = evict_is_staged(&turn->rule);
	sel.stage = scratch + job->keys_bytes + job->heap_bytes;
	job->dev->kernels->select(&sel);
	job->sums[2u * item] = sel.kept;
	job->sums[2u * item + 1u] = sel.leaving;
}

struct select_size {
	uint32_t live, victims;		/* largest of any lane */
	uint64_t lanes, slots;		/* of all */
	size_t stage_bytes;		/* largest of any lane */
};

/* A plan that does not fit its table would write out of bounds: refuse it before anything is touched. */
static int check_turn(const struct gpu_turn *turn, unsigned what, struct select_size *size)
{
	const struct gpu_table *t = turn->priv;
	const char *at = turn->priv;
	const struct gpu_lane *lane = (const struct gpu_lane *)(const void *)(at + gpu_table_lanes());

	if (turn->n_lanes > t->n_lanes || t->n_heat > GPU_MAX_HEAT)
		return -EINVAL;
	for (uint32_t i = 0; i < turn->n_lanes; i++) {
		const struct gpu_plan *p = &turn->plan[i];
		uint32_t live = gpu_live(lane[i], turn->appended);

		if (live > (uint64_t)t->max_pages * GPU_PAGE_SLOTS || live > (uint64_t)t->max_blocks * GPU_BLOCK_SLOTS)
			return -EINVAL;
		if (what & (GPU_REMOVE | GPU_COMPACT | GPU_NEXT) && p->keep > live)
			return -EINVAL;
		if (what & GPU_NEXT && (p->victims > p->keep || p->victims > t->window))
			return -EINVAL;
		size->live = live > size->live ? live : size->live;
		if (evict_is_staged(&turn->rule) || turn->rule.merge) {
			size_t bytes = host_stage(NULL, turn, live).bytes;

			size->stage_bytes = bytes > size->stage_bytes ? bytes : size->stage_bytes;
		}
		size->victims = p->victims > size->victims && what & GPU_NEXT ? p->victims : size->victims;
		size->slots += live;
	}
	size->lanes += turn->n_lanes;
	return 0;
}

static void add_stats(const struct gpu_turn *turn, unsigned n, const double *sums, struct gpu_turn_stats *stats)
{
	for (unsigned i = 0; i < n; i++) {
		struct gpu_turn_stats total = { 0 };

		for (uint32_t lane = 0; lane < turn[i].n_lanes; lane++, sums += 2) {
			total.credit_kept += sums[0];
			total.credit_leaving += sums[1];
		}
		stats[i] = total;
	}
}

static int host_select(struct gpu_device *base, gpu_stream s, const struct gpu_map *map, const struct gpu_turn *turn, unsigned n,
		       unsigned what, struct gpu_turn_stats *stats)
{
	struct host_device *dev = (struct host_device *)base;
	struct select_job job = { .dev = dev, .map = map, .turn = turn, .what = what, .want_stats = stats != NULL };
	struct select_size size = { 0 };
	size_t sums_bytes;
	unsigned workers;
	int rc;

	(void)s;
	for (unsigned i = 0; i < n; i++) {
		rc = check_turn(&turn[i], what, &size);
		if (rc)
			return rc;
	}
	if (size.lanes > UINT32_MAX / 4u)
		return -EINVAL;
	workers = size.slots * 32u < ALONE_BYTES ? 1 : dev->n_threads;
	sums_bytes = (size.lanes * 2u * sizeof(double) + 63u) / 64u * 64u;
	job.keys_bytes = what & (GPU_DROP | GPU_REMOVE | GPU_COMPACT) ? ((size_t)size.live * 16u + 63u) / 64u * 64u : 0;
	job.heap_bytes = ((size_t)size.victims * 12u + 8u + 63u) / 64u * 64u;
	job.worker_bytes = job.keys_bytes + job.heap_bytes + (size.stage_bytes + 63u) / 64u * 64u;
	pthread_mutex_lock(&dev->select_lock);
	rc = host_scratch_grow(&dev->select_scratch, sums_bytes + workers * job.worker_bytes);
	if (!rc) {
		job.sums = (double *)(void *)dev->select_scratch.at;
		job.scratch = dev->select_scratch.at + sums_bytes;
		host_run(dev, (unsigned)size.lanes, workers, select_work, &job);
		if (stats)
			add_stats(turn, n, job.sums, stats);
	}
	pthread_mutex_unlock(&dev->select_lock);
	return rc;
}

static int host_move(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const uint32_t *src, const uint32_t *dst,
		     unsigned n, uint32_t bytes)
{
	(void)dev;
	(void)s;
	for (unsigned i = 0; i < n; i++)
		memcpy(gpu_at(map->base, map->slab_shift, dst[i]), gpu_at(map->base, map->slab_shift, src[i]), bytes);
	return 0;
}

const struct gpu_backend gpu_host_backend = {
	.open = host_open, .close = host_close, .set_threads = host_set_threads,
	.slab_new = host_slab_new, .slab_free = host_slab_free, .slab_import = host_slab_import, .slab_unmap = host_slab_unmap,
	.stream_new = host_stream_new, .stream_free = host_stream_free, .sync = host_sync,
	.copy = host_copy, .write = host_copy, .read = host_copy, .scrub = host_scrub,
	.notify = host_notify, .reg = host_register, .unreg = host_unregister, .signal = host_signal, .await = host_await,
	.host_alloc = host_alloc, .host_free = host_free,
	.map_new = host_map_new, .map_free = host_map_free, .map_set = host_map_set,
	.step_new = host_step_new, .step_free = host_step_free, .step_set = host_step_set,
	.append = host_append, .attend = host_attend, .observe = host_observe,
	.select = host_select, .move = host_move,
};
