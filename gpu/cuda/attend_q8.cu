/* attend for q8 slots: the kernels of attend_kernel.cuh. */
#include "gpu/cuda/attend_kernel.cuh"

cudaError_t mma_launch_q8(const struct mma_args &a, bool early, cudaStream_t s, int *max_clusters)
{
	return mma_launch_type<GPU_Q8>(a, early, s, max_clusters);
}
