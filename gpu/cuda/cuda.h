/*
 * Private to gpu/cuda/: the functions behind the backend table (backend.c), in plain C. What each does is said in gpu.h.
 */
#ifndef GPU_CUDA_CUDA_H
#define GPU_CUDA_CUDA_H

#include "gpu/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* device.cu */
int cuda_open(struct gpu_device **out, const char *name);
void cuda_close(struct gpu_device *dev);
int cuda_set_threads(struct gpu_device *dev, unsigned n_threads);
int cuda_slab_new(struct gpu_device *dev, size_t bytes, int shared, struct gpu_slab *slab);
void cuda_slab_free(struct gpu_device *dev, struct gpu_slab *slab);
int cuda_slab_import(struct gpu_device *dev, const uint8_t *handle, int fd, size_t bytes, void **base);
void cuda_slab_unmap(struct gpu_device *dev, void *base, size_t bytes);
int cuda_stream_new(struct gpu_device *dev, int apart, gpu_stream *out);
void cuda_stream_free(struct gpu_device *dev, gpu_stream s);
int cuda_sync(struct gpu_device *dev, gpu_stream s);

/* transfer.cu */
int cuda_copy(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes);
int cuda_write(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes);
int cuda_read(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes);
int cuda_scrub(struct gpu_device *dev, gpu_stream s, void *dst, size_t bytes);
int cuda_notify(struct gpu_device *dev, gpu_stream s, int eventfd);
int cuda_reg(struct gpu_device *dev, void *ptr, size_t bytes);
void cuda_unreg(struct gpu_device *dev, void *ptr);
int cuda_signal(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[]);
int cuda_await(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[]);
int cuda_order(struct gpu_device *dev, gpu_stream first, gpu_stream then);
int cuda_host_alloc(struct gpu_device *dev, size_t bytes, void **out);
void cuda_host_free(struct gpu_device *dev, void *ptr);

/* step.cu */
int cuda_map_new(struct gpu_device *dev, unsigned max_slabs, unsigned slab_shift, struct gpu_map **out);
void cuda_map_free(struct gpu_device *dev, struct gpu_map *map);
int cuda_map_set(struct gpu_map *map, gpu_stream s, unsigned slab, void *base);
int cuda_step_new(struct gpu_device *dev, unsigned max_seqs, unsigned max_rows, struct gpu_step **out);
void cuda_step_free(struct gpu_device *dev, struct gpu_step *step);
int cuda_step_set(struct gpu_step *step, gpu_stream s, const struct gpu_shape *shape, const struct gpu_map *map,
		  const struct gpu_seq *seq, unsigned n_seqs, uint32_t live_max);
uint64_t cuda_step_key(const struct gpu_step *step);

/* append.cu, attend.cu, observe.cu, keep.cu, select.cu, move.cu */
int cuda_append(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *k, const struct gpu_tensor *v);
int cuda_attend(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *q,
		const struct gpu_tensor *out, float scale, float *lse);
int cuda_observe(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *q, const float *lse,
		 float scale, uint32_t last);
int cuda_keep(struct gpu_step *step, gpu_stream s, const struct gpu_shape *shape, uint32_t n_layers, uint32_t rooms, uint32_t depth);
int cuda_heat_kept(struct gpu_step *step, gpu_stream s, const struct gpu_kept *kept, unsigned n);
int cuda_select(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const struct gpu_turn *turn, unsigned n,
		unsigned what, struct gpu_turn_stats *stats);
int cuda_move(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const uint32_t *src, const uint32_t *dst,
	      unsigned n, uint32_t bytes);

#ifdef __cplusplus
}
#endif
#endif
