/*
 * Kernels of a forward pass whose weights are bf16 and whose matrix products are cuBLAS's: used by ebb-llama (forward_cuda.cu) and by
 * ebb-bench-serve. What goes into a product is bf16, what comes out of it is of type T: float, or bf16. The residual h is float32.
 *
 * Every state of a sequence (its last token, its position) is found through slot[row], so a captured graph of a step serves whatever sequences
 * its rows belong to. slot NULL: row r is sequence r.
 * Determinism: sums in a fixed order, no atomics. cuBLAS gives the same bits for the same shapes.
 */
#ifndef LLAMA_BF16_CUH
#define LLAMA_BF16_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#define BF16_THREADS 256u
#define BF16_NORM_VECS 8u	/* of four numbers a thread: rows of up to 8192 */

static __device__ __forceinline__ float2 bf16_load2(const float *p) { return *(const float2 *)p; }
static __device__ __forceinline__ float2 bf16_load2(const __nv_bfloat16 *p) { return __bfloat1622float2(*(const __nv_bfloat162 *)p); }
static __device__ __forceinline__ void bf16_store2(float *p, float2 x) { *(float2 *)p = x; }
static __device__ __forceinline__ void bf16_store2(__nv_bfloat16 *p, float2 x) { *(__nv_bfloat162 *)p = __float22bfloat162_rn(x); }
static __device__ __forceinline__ float bf16_float(float x) { return x; }
static __device__ __forceinline__ float bf16_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> static __device__ __forceinline__ float4 bf16_load4(const T *p)
{
	float2 a = bf16_load2(p), b = bf16_load2(p + 2);

	return make_float4(a.x, a.y, b.x, b.y);
}

static __device__ __forceinline__ uint32_t bf16_slot(const uint32_t *slot, uint32_t row) { return slot ? slot[row] : row; }

/* A CTA a row: h = the token's row. n is a multiple of 2. */
static __global__ void __launch_bounds__(BF16_THREADS) bf16_embed_kernel(const __nv_bfloat16 *embd, const int32_t *token,
									   const uint32_t *slot, uint32_t n, float *h)
{
	const __nv_bfloat16 *from = embd + (size_t)token[bf16_slot(slot, blockIdx.x)] * n;

	for (uint32_t i = threadIdx.x; i < n / 2u; i += BF16_THREADS)
		bf16_store2(h + (size_t)blockIdx.x * n + 2u * i, bf16_load2(from + 2u * i));
}

/* Sum over a CTA of BF16_THREADS threads, for all of them. */
static __device__ __forceinline__ float bf16_block_sum(float v)
{
	__shared__ float part[BF16_THREADS / 32u];
	float sum = 0.0f;

	for (int i = 16; i; i >>= 1)
		v += __shfl_xor_sync(0xffffffffu, v, i);
	if (threadIdx.x % 32u == 0)
		part[threadIdx.x / 32u] = v;
	__syncthreads();
	for (uint32_t i = 0; i < BF16_THREADS / 32u; i++)
		sum += part[i];
	return sum;
}

/*
 * A CTA a row: h += delta, x = h / sqrt(mean(h^2) + eps) * weight. delta NULL: nothing is added. rows: of which rows of h, which then stays as
 * it is; NULL: all. n is a multiple of 4 and at most 4 * BF16_NORM_VECS * BF16_THREADS.
 */
template <typename T>
static __global__ void __launch_bounds__(BF16_THREADS) bf16_norm_kernel(float *h, const T *delta, const uint32_t *rows, const float *weight,
									  uint32_t n, float eps, __nv_bfloat16 *x)
{
	size_t row = rows ? rows[blockIdx.x] : blockIdx.x;
	float4 v[BF16_NORM_VECS];
	float sum = 0.0f, by;

#pragma unroll
	for (uint32_t k = 0; k < BF16_NORM_VECS; k++) {
		uint32_t i = 4u * (threadIdx.x + k * BF16_THREADS);

		if (i >= n)
			break;
		v[k] = *(const float4 *)(h + row * n + i);
		if (delta) {
			float4 d = bf16_load4(delta + row * n + i);

			v[k].x += d.x, v[k].y += d.y, v[k].z += d.z, v[k].w += d.w;
			if (!rows)
				*(float4 *)(h + row * n + i) = v[k];
		}
		sum += v[k].x * v[k].x + v[k].y * v[k].y + v[k].z * v[k].z + v[k].w * v[k].w;
	}
	by = 1.0f / sqrtf(bf16_block_sum(sum) / (float)n + eps);
#pragma unroll
	for (uint32_t k = 0; k < BF16_NORM_VECS; k++) {
		uint32_t i = 4u * (threadIdx.x + k * BF16_THREADS);
		__nv_bfloat16 *to = x + (size_t)blockIdx.x * n + i;
		float4 w;

		if (i >= n)
			break;
		w = *(const float4 *)(weight + i);
		bf16_store2(to, make_float2(v[k].x * by * w.x, v[k].y * by * w.y));
		bf16_store2(to + 2, make_float2(v[k].z * by * w.z, v[k].w * by * w.w));
	}
}

/* A thread a pair: neighbouring pairs of the first `heads` heads (q, then k) of a row turn by angle[position][pair] = {cosine, sine}. */
template <typename T>
static __global__ void __launch_bounds__(BF16_THREADS) bf16_rope_kernel(T *qkv, uint32_t stride, uint32_t heads, uint32_t d, uint32_t half,
									  const float2 *angle, const int32_t *pos, const uint32_t *slot)
{
	uint32_t i = blockIdx.y * BF16_THREADS + threadIdx.x;
	T *at = qkv + (size_t)blockIdx.x * stride + i / half * d + 2u * (i % half);
	float2 x, a;

	if (i >= heads * half)
		return;
	a = angle[(size_t)(pos ? pos[bf16_slot(slot, blockIdx.x)] : (int32_t)blockIdx.x) * half + i % half];
	x = bf16_load2(at);
	bf16_store2(at, make_float2(__fsub_rn(__fmul_rn(x.x, a.x), __fmul_rn(x.y, a.y)), __fadd_rn(__fmul_rn(x.x, a.y), __fmul_rn(x.y, a.x))));
}

/* act = silu(gate) * up, two a thread. n is a multiple of 2. */
template <typename T>
static __global__ void __launch_bounds__(BF16_THREADS) bf16_silu_kernel(const T *gate_up, uint32_t n, __nv_bfloat16 *act)
{
	uint32_t i = 2u * (blockIdx.y * BF16_THREADS + threadIdx.x);
	float2 g, u;

	if (i >= n)
		return;
	g = bf16_load2(gate_up + (size_t)blockIdx.x * 2u * n + i);
	u = bf16_load2(gate_up + (size_t)blockIdx.x * 2u * n + n + i);
	bf16_store2(act + (size_t)blockIdx.x * n + i, make_float2(g.x / (1.0f + expf(-g.x)) * u.x, g.y / (1.0f + expf(-g.y)) * u.y));
}

#endif
