/* The public calls of gpu.h: argument checks that both backends share, then the backend. */
#include "gpu/backend.h"

#include <errno.h>
#include <string.h>

int gpu_open(struct gpu_device **out, const char *name)
{
	int rc = gpu_host_backend.open(out, name);

	return rc == -EINVAL ? gpu_cuda_backend.open(out, name) : rc;
}

void gpu_close(struct gpu_device *dev)
{
	if (dev)
		dev->ops->close(dev);
}

const struct gpu_info *gpu_info(const struct gpu_device *dev)
{
	return &dev->info;
}

int gpu_count(void)
{
	return gpu_cuda_count();
}

int gpu_set_threads(struct gpu_device *dev, unsigned n_threads)
{
	return n_threads ? dev->ops->set_threads(dev, n_threads) : -EINVAL;
}

int gpu_slab_new(struct gpu_device *dev, size_t bytes, int shared, struct gpu_slab *slab)
{
	return dev->ops->slab_new(dev, bytes, shared, slab);
}

void gpu_slab_free(struct gpu_device *dev, struct gpu_slab *slab)
{
	dev->ops->slab_free(dev, slab);
}

int gpu_slab_import(struct gpu_device *dev, const uint8_t handle[GPU_HANDLE_BYTES], int fd, size_t bytes, void **base)
{
	return dev->ops->slab_import(dev, handle, fd, bytes, base);
}

void gpu_slab_unmap(struct gpu_device *dev, void *base, size_t bytes)
{
	dev->ops->slab_unmap(dev, base, bytes);
}

int gpu_stream_new(struct gpu_device *dev, gpu_stream *out)
{
	return dev->ops->stream_new(dev, 0, out);
}

int gpu_stream_apart(struct gpu_device *dev, gpu_stream *out)
{
	return dev->ops->stream_new(dev, 1, out);
}

void gpu_stream_free(struct gpu_device *dev, gpu_stream stream)
{
	dev->ops->stream_free(dev, stream);
}

int gpu_sync(struct gpu_device *dev, gpu_stream stream)
{
	return dev->ops->sync(dev, stream);
}

int gpu_copy(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes)
{
	return dev->ops->copy(dev, s, dst, src, bytes);
}

int gpu_write(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes)
{
	return dev->ops->write(dev, s, dst, src, bytes);
}

int gpu_read(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes)
{
	return dev->ops->read(dev, s, dst, src, bytes);
}

int gpu_scrub(struct gpu_device *dev, gpu_stream s, void *dst, size_t bytes)
{
	return dev->ops->scrub(dev, s, dst, bytes);
}

int gpu_notify(struct gpu_device *dev, gpu_stream s, int eventfd)
{
	return dev->ops->notify(dev, s, eventfd);
}

int gpu_register(struct gpu_device *dev, void *ptr, size_t bytes)
{
	return dev->ops->reg(dev, ptr, bytes);
}

void gpu_unregister(struct gpu_device *dev, void *ptr)
{
	dev->ops->unreg(dev, ptr);
}

int gpu_signal(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[])
{
	return dev->ops->signal(dev, s, n, word, value);
}

int gpu_await(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[])
{
	return dev->ops->await(dev, s, n, word, value);
}

int gpu_order(struct gpu_device *dev, gpu_stream first, gpu_stream then)
{
	return dev->ops->order ? dev->ops->order(dev, first, then) : 0;
}

int gpu_host_alloc(struct gpu_device *dev, size_t bytes, void **out)
{
	return dev->ops->host_alloc(dev, bytes, out);
}

void gpu_host_free(struct gpu_device *dev, void *ptr)
{
	dev->ops->host_free(dev, ptr);
}

int gpu_map_new(struct gpu_device *dev, unsigned max_slabs, unsigned slab_shift, struct gpu_map **out)
{
	if (!max_slabs || slab_shift < 12 || slab_shift > 40)
		return -EINVAL;
	return dev->ops->map_new(dev, max_slabs, slab_shift, out);
}

void gpu_map_free(struct gpu_device *dev, struct gpu_map *map)
{
	if (map)
		dev->ops->map_free(dev, map);
}

int gpu_map_set(struct gpu_map *map, gpu_stream s, unsigned slab, void *base)
{
	return slab < map->max_slabs ? map->dev->ops->map_set(map, s, slab, base) : -EINVAL;
}

void *const *gpu_map_bases(const struct gpu_map *map)
{
	return map->base;
}

int gpu_step_new(struct gpu_device *dev, unsigned max_seqs, unsigned max_rows, struct gpu_step **out)
{
	return max_seqs && max_rows ? dev->ops->step_new(dev, max_seqs, max_rows, out) : -EINVAL;
}

void gpu_step_free(struct gpu_device *dev, struct gpu_step *step)
{
	if (step)
		dev->ops->step_free(dev, step);
}

int gpu_step_set(struct gpu_step *step, gpu_stream s, const struct gpu_shape *shape, const struct gpu_map *map,
		 const struct gpu_seq *seq, unsigned n_seqs, uint32_t live_max)
{
	if (!shape->n_kv_heads || shape->group < 1 || shape->group > 16 || shape->head_dim < 64 || shape->head_dim > 256 ||
	    shape->head_dim % 16 || shape->slot_type > GPU_Q4)
		return -EINVAL;
	if (!gpu_can_store(step->dev, shape->slot_type))
		return -ENOTSUP;
	return step->dev->ops->step_set(step, s, shape, map, seq, n_seqs, live_max);
}

uint64_t gpu_step_key(const struct gpu_step *step)
{
	return step->dev->ops->step_key ? step->dev->ops->step_key(step) : 0;
}

static int tensor_ok(const struct gpu_tensor *t)
{
	return t->data && (t->type == GPU_F32 || t->type == GPU_F16 || t->type == GPU_BF16) && t->stride > 0;
}

int gpu_append(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *k, const struct gpu_tensor *v)
{
	return tensor_ok(k) && tensor_ok(v) ? step->dev->ops->append(step, s, layer, k, v) : -EINVAL;
}

int gpu_attend(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *q, const struct gpu_tensor *out,
	       float scale, float *lse)
{
	return tensor_ok(q) && tensor_ok(out) ? step->dev->ops->attend(step, s, layer, q, out, scale, lse) : -EINVAL;
}

int gpu_may_keep(const struct gpu_table *table)
{
	return table->n_heat == 1 && table->heat[0] == EVICT_HEAT_SUM && table->observe;
}

int gpu_keep(struct gpu_step *step, gpu_stream s, const struct gpu_shape *shape, uint32_t n_layers, uint32_t rooms,
	     uint32_t depth)
{
	if (depth > 256 || !n_layers || (depth && (!rooms || rooms > 1u << 23)))
		return -EINVAL;
	return step->dev->ops->keep ? step->dev->ops->keep(step, s, shape, n_layers, rooms, depth) : -ENOTSUP;
}

int gpu_heat_kept(struct gpu_step *step, gpu_stream s, const struct gpu_kept *kept, unsigned n)
{
	return n && step->dev->ops->heat_kept ? step->dev->ops->heat_kept(step, s, kept, n) : 0;
}

int gpu_observe(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *q, const float *lse,
		float scale, uint32_t last)
{
	return tensor_ok(q) && lse ? step->dev->ops->observe(step, s, layer, q, lse, scale, last) : -EINVAL;
}

const char *gpu_type_name(uint32_t slot_type)
{
	static const char *const name[] = { [GPU_F32] = "f32", [GPU_F16] = "f16", [GPU_BF16] = "bf16", [GPU_Q8] = "q8", [GPU_K8V4] = "k8v4",
					    [GPU_Q4] = "q4" };

	return slot_type < sizeof(name) / sizeof(*name) ? name[slot_type] : NULL;
}

int gpu_can_store(const struct gpu_device *dev, uint32_t slot_type)
{
	return !dev->info.is_cuda || slot_type <= GPU_Q8;
}

/* What is wrong with a turn whatever its table says. */
static int check_turn(const struct gpu_device *dev, const struct gpu_turn *turn, unsigned what)
{
	if (turn->slot_type > GPU_Q4 || turn->head_dim > 256 || turn->rule.policy >= EVICT_N_POLICIES || turn->rule.merge >= EVICT_N_MERGES ||
	    turn->n_credit < evict_n_arrays(turn->rule.policy) || turn->n_credit > GPU_MAX_CREDIT ||
	    (turn->stats && (!turn->lane_stats || !(what & GPU_FOLD))))
		return -EINVAL;
	if (what & GPU_DROP && (what & (GPU_REMOVE | GPU_COMPACT | GPU_NEXT) || !turn->marks || !turn->live || !turn->n_kv_heads))
		return -EINVAL;
	return gpu_can_store(dev, turn->slot_type) ? 0 : -ENOTSUP;
}

int gpu_select(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const struct gpu_turn *turn, unsigned n,
	       unsigned what, struct gpu_turn_stats *stats)
{
	for (unsigned i = 0; i < n; i++) {
		int rc = check_turn(dev, &turn[i], what);

		if (rc)
			return rc;
	}
	return dev->ops->select(dev, s, map, turn, n, what, stats);
}

int gpu_move(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const uint32_t *src, const uint32_t *dst,
	     unsigned n, uint32_t bytes)
{
	return dev->ops->move(dev, s, map, src, dst, n, bytes);
}
