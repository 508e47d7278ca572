/*
 * Private to worker.cu: kernels of the made-up model that no real one needs: random numbers, the choice of a token, a hash of logits.
 */
#ifndef SERVE_MODEL_CUH
#define SERVE_MODEL_CUH

#include "examples/llama/bf16.cuh"

typedef __nv_bfloat16 bf16;

static __device__ __forceinline__ uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static __device__ __forceinline__ float unit(uint32_t x) { return (float)(int32_t)x * (1.0f / 2147483648.0f); }	/* -1 .. 1 */

/* Two numbers a thread, uniform in -scale .. scale. */
static __global__ void random_kernel(bf16 *to, size_t pairs, uint64_t seed, float scale)
{
	for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < pairs; i += (size_t)gridDim.x * blockDim.x) {
		uint64_t r = mix(seed + i);

		bf16_store2(to + 2 * i, make_float2(scale * unit((uint32_t)r), scale * unit((uint32_t)(r >> 32))));
	}
}

static __global__ void ones_kernel(float *to, uint32_t n)
{
	for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
		to[i] = 1.0f;
}

static __global__ void angle_kernel(float2 *to, uint32_t half, float theta)
{
	double by = (double)blockIdx.x * exp2(-log2((double)theta) * (double)threadIdx.x / half);

	to[(size_t)blockIdx.x * half + threadIdx.x] = make_float2((float)cos(by), (float)sin(by));
}

/* A CTA a row: the largest logit's token, of equals the lowest; the row's sequence goes on by one. */
static __global__ void __launch_bounds__(1024) choose_kernel(const bf16 *logits, uint32_t n, const uint32_t *slot, uint32_t nobody,
							    int32_t *token, int32_t *pos)
{
	__shared__ float value[32];
	__shared__ uint32_t index[32];
	const bf16 *row = logits + (size_t)blockIdx.x * n;
	uint32_t at = 0xffffffffu;
	float best = -INFINITY;

	for (uint32_t i = threadIdx.x; i < n; i += 1024u) {
		float x = __bfloat162float(row[i]);

		if (x > best || (x == best && i < at)) {
			best = x;
			at = i;
		}
	}
	for (uint32_t round = 0; round < 2; round++) {
		for (int gap = 16; gap; gap >>= 1) {
			float x = __shfl_xor_sync(0xffffffffu, best, gap);
			uint32_t i = __shfl_xor_sync(0xffffffffu, at, gap);

			if (x > best || (x == best && i < at)) {
				best = x;
				at = i;
			}
		}
		if (round)
			break;
		if (threadIdx.x % 32u == 0) {
			value[threadIdx.x / 32u] = best;
			index[threadIdx.x / 32u] = at;
		}
		__syncthreads();
		best = value[threadIdx.x % 32u];
		at = index[threadIdx.x % 32u];
	}
	if (threadIdx.x == 0 && slot[blockIdx.x] != nobody) {
		token[slot[blockIdx.x]] = at < n ? (int32_t)at : 0;
		pos[slot[blockIdx.x]]++;
	}
}

/* A sum, so in no order; each logit with its place, and none of nobody's rows. */
static __global__ void __launch_bounds__(BF16_THREADS) hash_kernel(const bf16 *logits, uint32_t n, const uint32_t *slot, const int32_t *pos,
								     uint32_t nobody, unsigned long long *hash)
{
	uint32_t who = slot[blockIdx.x];
	unsigned long long sum = 0;

	if (who == nobody)
		return;
	for (uint32_t i = threadIdx.x; i < n; i += BF16_THREADS)
		sum += mix(((uint64_t)who << 52) ^ ((uint64_t)pos[who] << 34) ^ ((uint64_t)i << 16) ^
			   __bfloat16_as_ushort(logits[(size_t)blockIdx.x * n + i]));
	for (int gap = 16; gap; gap >>= 1)
		sum += __shfl_xor_sync(0xffffffffu, sum, gap);
	if (threadIdx.x % 32u == 0)
		atomicAdd(hash, sum);
}

/* A CTA a row. What a channel holds depends on session, position and channel. */
static __global__ void __launch_bounds__(BF16_THREADS) fill_kernel(const uint2 *of, uint32_t stride, bf16 *k, bf16 *v)
{
	uint2 who = of[blockIdx.x];
	uint64_t seed = mix(((uint64_t)who.x << 32) + who.y + 77u);

	for (uint32_t i = threadIdx.x; i < stride / 2u; i += BF16_THREADS) {
		uint64_t r = mix(seed + i);
		size_t at = (size_t)blockIdx.x * stride + 2u * i;

		bf16_store2(k + at, make_float2(2.0f * unit((uint32_t)r & 0xffff0000u), 2.0f * unit((uint32_t)r << 16)));
		bf16_store2(v + at, make_float2(2.0f * unit((uint32_t)(r >> 32) & 0xffff0000u), 2.0f * unit((uint32_t)(r >> 48) << 16)));
	}
}

#endif
