/* attend for bf16 slots: the kernels of attend_kernel.cuh. */
#include "gpu/cuda/attend_kernel.cuh"

cudaError_t mma_launch_bf16(const struct mma_args &a, bool early, cudaStream_t s, int *max_clusters)
{
	return mma_launch_type<GPU_BF16>(a, early, s, max_clusters);
}
