/* Private to gpu/cuda/: what attend.cu and step.cu know of attend_wide.cu. */
#ifndef GPU_CUDA_WIDE_CUH
#define GPU_CUDA_WIDE_CUH

#include "gpu/cuda/common.cuh"

#define WIDE_ROWS 128u		/* (query, head) pairs of a CTA */
#define WIDE_PAIRS 128u		/* a session with more in a step is wide */

/* wide_runs() - can the current device run the kernels? wide_takes() - and do they know slots and heads of this shape? */
bool wide_runs(void);
static inline bool wide_takes(const struct cuda_device *d, const struct gpu_shape *shape)
{
	return d->wide && (shape->slot_type == GPU_BF16 || shape->slot_type == GPU_F16) && shape->head_dim <= 128u;
}

cudaError_t wide_attend(const struct cuda_step *st, cudaStream_t s, uint32_t layer, const struct gpu_tensor *q,
			const struct gpu_tensor *out, float scale, float *lse);

#endif
