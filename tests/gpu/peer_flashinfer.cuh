/*
 * FlashInfer's batch decode over a paged cache, which bench_gpu measures beside our attend (BENCH=peer). peer_flashinfer.cu is linked where
 * `tools/setup.sh flashinfer` has put FlashInfer's headers; elsewhere peer_new is NULL.
 */
#ifndef TESTS_GPU_PEER_FLASHINFER_CUH
#define TESTS_GPU_PEER_FLASHINFER_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#define PEER_PAGE 16u

struct peer;

struct peer_shape {
	uint32_t sessions, kv_heads, group, head_dim;	/* head_dim 64 or 128 */
	uint32_t tokens;	/* of each session, whole pages; bfloat16 */
	int tensor_cores;	/* 1: its prefill kernel, as its wrapper's use_tensor_cores; 0: its decode kernel */
	int hnd;		/* pages of [K, V][heads][tokens][head_dim]; 0: [K, V][tokens][heads][head_dim] */
};

/*
 * peer_new - plan it. @page: ids of the pages of a layer, [sessions][tokens / PEER_PAGE], copied. 0, or 1 after a sentence on stderr.
 * peer_run - enqueue one layer: q, out [sessions][kv_heads * group][head_dim]. @kv: the layer's pages. Likewise.
 */
int peer_new(const struct peer_shape *shape, const int32_t *page, cudaStream_t stream, struct peer **out) __attribute__((weak));
int peer_run(struct peer *p, const void *kv, const void *q, void *out, float scale, cudaStream_t stream) __attribute__((weak));
void peer_free(struct peer *p) __attribute__((weak));

#endif
