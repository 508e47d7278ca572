/*
 * Private to gpu/: what a backend provides. gpu.c forwards every public call through this table, so that callers never
 * know which backend they have. Every backend's own device, map and step structs begin with the ones below.
 */
#ifndef GPU_BACKEND_H
#define GPU_BACKEND_H

#include "gpu/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

struct gpu_backend {
	int (*open)(struct gpu_device **out, const char *name);	/* -EINVAL: not a name of mine */
	void (*close)(struct gpu_device *dev);
	int (*set_threads)(struct gpu_device *dev, unsigned n_threads);
	int (*slab_new)(struct gpu_device *dev, size_t bytes, int shared, struct gpu_slab *slab);
	void (*slab_free)(struct gpu_device *dev, struct gpu_slab *slab);
	int (*slab_import)(struct gpu_device *dev, const uint8_t *handle, int fd, size_t bytes, void **base);
	void (*slab_unmap)(struct gpu_device *dev, void *base, size_t bytes);
	int (*stream_new)(struct gpu_device *dev, int apart, gpu_stream *out);
	void (*stream_free)(struct gpu_device *dev, gpu_stream s);
	int (*sync)(struct gpu_device *dev, gpu_stream s);
	int (*copy)(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes);
	int (*write)(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes);
	int (*read)(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes);
	int (*scrub)(struct gpu_device *dev, gpu_stream s, void *dst, size_t bytes);
	int (*notify)(struct gpu_device *dev, gpu_stream s, int eventfd);
	int (*reg)(struct gpu_device *dev, void *ptr, size_t bytes);
	void (*unreg)(struct gpu_device *dev, void *ptr);
	int (*signal)(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[]);
	int (*await)(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[]);
	int (*order)(struct gpu_device *dev, gpu_stream first, gpu_stream then);	/* NULL: all is in order anyway */
	int (*host_alloc)(struct gpu_device *dev, size_t bytes, void **out);
	void (*host_free)(struct gpu_device *dev, void *ptr);
	int (*map_new)(struct gpu_device *dev, unsigned max_slabs, unsigned slab_shift, struct gpu_map **out);
	void (*map_free)(struct gpu_device *dev, struct gpu_map *map);
	int (*map_set)(struct gpu_map *map, gpu_stream s, unsigned slab, void *base);
	int (*step_new)(struct gpu_device *dev, unsigned max_seqs, unsigned max_rows, struct gpu_step **out);
	void (*step_free)(struct gpu_device *dev, struct gpu_step *step);
	int (*step_set)(struct gpu_step *step, gpu_stream s, const struct gpu_shape *shape, const struct gpu_map *map,
			const struct gpu_seq *seq, unsigned n_seqs, uint32_t live_max);
	uint64_t (*step_key)(const struct gpu_step *step);	/* NULL: 0 */
	int (*append)(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *k,
		      const struct gpu_tensor *v);
	int (*attend)(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *q,
		      const struct gpu_tensor *out, float scale, float *lse);
	int (*observe)(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *q, const float *lse,
		       float scale, uint32_t last);
	int (*keep)(struct gpu_step *step, gpu_stream s, const struct gpu_shape *shape, uint32_t n_layers, uint32_t rooms,
		    uint32_t depth);	/* NULL: never */
	int (*heat_kept)(struct gpu_step *step, gpu_stream s, const struct gpu_kept *kept, unsigned n);
	int (*select)(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const struct gpu_turn *turn, unsigned n,
		      unsigned what, struct gpu_turn_stats *stats);
	int (*move)(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const uint32_t *src, const uint32_t *dst,
		    unsigned n, uint32_t bytes);
};

struct gpu_device {
	const struct gpu_backend *ops;
	struct gpu_info info;
};

struct gpu_map {
	struct gpu_device *dev;
	unsigned max_slabs, slab_shift;
	void **base;			/* host copy, [max_slabs] */
};

struct gpu_step {
	struct gpu_device *dev;
};

extern const struct gpu_backend gpu_host_backend;
extern const struct gpu_backend gpu_cuda_backend;	/* gpu/cuda/, or gpu/cuda_none.c in a build without CUDA */
int gpu_cuda_count(void);

#ifdef __cplusplus
}
#endif
#endif
