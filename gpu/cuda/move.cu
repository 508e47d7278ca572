/*
 * move: whole pages or blocks from one place of a pool to another.
 *
 * What: a CTA copies one place, 16 bytes a thread.
 * Memory traffic: each byte read once and written once; 8 bytes of ids a place.
 * Determinism: sources and destinations do not overlap; no atomics.
 */
#include <string.h>

#include "gpu/cuda/common.cuh"

#define THREADS 128		/* a page of 8 KB is four rounds */

static __global__ void __launch_bounds__(THREADS) move_kernel(struct cuda_view view, const uint32_t *src, const uint32_t *dst,
							      uint32_t bytes)
{
	const char *from = cuda_at(view, src[blockIdx.x]);
	char *to = cuda_at(view, dst[blockIdx.x]);

	if (!from || !to)
		return;
	for (uint32_t i = threadIdx.x; i < bytes / 16u; i += THREADS)
		((uint4 *)to)[i] = ((const uint4 *)from)[i];
	for (uint32_t i = bytes / 16u * 16u + threadIdx.x; i < bytes; i += THREADS)
		to[i] = from[i];
}

int cuda_move(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const uint32_t *src, const uint32_t *dst,
	      unsigned n, uint32_t bytes)
{
	const unsigned most = (unsigned)(CUDA_LEASE_MAX / 8u);
	struct cuda_device *d = cuda_dev(dev);
	int rc = cuda_use(dev), rc2;

	for (unsigned at = 0, part; at < n && bytes && !rc; at += part) {
		struct cuda_lease lease;

		part = n - at < most ? n - at : most;
		rc = cuda_lease(d, (size_t)part * 8u, &lease);
		if (rc)
			break;
		memcpy(lease.host, src + at, (size_t)part * 4u);
		memcpy(lease.host + (size_t)part * 4u, dst + at, (size_t)part * 4u);
		rc = cuda_errno(cudaMemcpyAsync(lease.dev, lease.host, (size_t)part * 8u, cudaMemcpyHostToDevice, cuda_stream(s)));
		if (!rc) {
			move_kernel<<<part, THREADS, 0, cuda_stream(s)>>>(cuda_view_of(map), (const uint32_t *)lease.dev,
									  (const uint32_t *)lease.dev + part, bytes);
			rc = cuda_errno(cudaGetLastError());
		}
		rc2 = cuda_unlease(d, cuda_stream(s), &lease);
		rc = rc ? rc : rc2;
	}
	return rc;
}
