/*
 * Private to forward_cuda.cu: the kernels of the forward pass. float32; one CTA per row unless said otherwise; sums in a
 * fixed order, no atomics.
 */
#ifndef LLAMA_FORWARD_KERNELS_CUH
#define LLAMA_FORWARD_KERNELS_CUH

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#define FEW 8u			/* rows up to which a warp per output is faster than tiles */
#define TILE 64u
#define DEPTH 16u		/* of a tile's step along the inner dimension: 2 * 64 * 16 floats of shared memory */
#define THREADS 256u

struct result {			/* of one row of logits */
	double logprob;
	int32_t best, target;	/* target goes in */
};

static __global__ void __launch_bounds__(THREADS) embed_kernel(const float *embd, const int32_t *token, uint32_t n, float *h)
{
	const float *from = embd + (size_t)token[blockIdx.x] * n;

	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		h[(size_t)blockIdx.x * n + i] = from[i];
}

/* Sum over a CTA of THREADS threads, for all of them. */
static __device__ float block_sum(float v)
{
	__shared__ float part[THREADS / 32u];
	float sum = 0.0f;

	for (int i = 16; i; i >>= 1)
		v += __shfl_xor_sync(0xffffffffu, v, i);
	__syncthreads();
	if (threadIdx.x % 32u == 0)
		part[threadIdx.x / 32u] = v;
	__syncthreads();
	for (uint32_t i = 0; i < THREADS / 32u; i++)
		sum += part[i];
	return sum;
}

/* A CTA per row: x = h / sqrt(mean(h^2) + eps) * weight. rows: which rows of h, or NULL for the row's own. */
static __global__ void __launch_bounds__(THREADS) norm_kernel(const float *h, const uint32_t *rows, const float *weight,
							      uint32_t n, float eps, float *x)
{
	const float *in = h + (size_t)(rows ? rows[blockIdx.x] : blockIdx.x) * n;
	float sum = 0.0f, by;

	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		sum += in[i] * in[i];
	by = 1.0f / sqrtf(block_sum(sum) / (float)n + eps);
	for (uint32_t i = threadIdx.x; i < n; i += THREADS)
		x[(size_t)blockIdx.x * n + i] = in[i] * by * weight[i];
}

/* y[r][j] = sum of w[j][i] x[r][i] (+ y[r][j] when add). A warp has one output of up to FEW rows. */
template <uint32_t R>
static __global__ void __launch_bounds__(THREADS) thin_kernel(const float *w, const float *x, uint32_t cols, uint32_t outs, float *y,
							      int add)
{
	uint32_t j = blockIdx.x * (THREADS / 32u) + threadIdx.x / 32u, thread = threadIdx.x % 32u;
	const float4 *row = (const float4 *)(w + (size_t)j * cols);
	float sum[R] = {};

	if (j >= outs)
		return;
#pragma unroll 4
	for (uint32_t i = thread; i < cols / 4u; i += 32u) {
		float4 a = __ldg(row + i);

#pragma unroll
		for (uint32_t r = 0; r < R; r++) {
			float4 b = __ldg((const float4 *)(x + (size_t)r * cols) + i);

			sum[r] = fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum[r]))));
		}
	}
#pragma unroll
	for (uint32_t r = 0; r < R; r++) {
		for (int i = 16; i; i >>= 1)
			sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], i);
		if (thread == 0)
			y[(size_t)r * outs + j] = add ? y[(size_t)r * outs + j] + sum[r] : sum[r];
	}
}

/* The same for many rows: 64 rows x 64 outputs a CTA, 4 x 4 a thread. cols is a multiple of DEPTH. */
static __global__ void __launch_bounds__(THREADS) tile_kernel(const float *w, const float *x, uint32_t rows, uint32_t cols, uint32_t outs,
							      float *y, int add)
{
	__shared__ float a[DEPTH][TILE + 4u], b[DEPTH][TILE + 4u];	/* x and w, transposed */
	uint32_t row0 = blockIdx.y * TILE, out0 = blockIdx.x * TILE;
	uint32_t line = threadIdx.x / 4u, part = threadIdx.x % 4u * 4u;	/* what this thread loads: 4 floats of one line of each */
	uint32_t tr = threadIdx.x / 16u * 4u, tj = threadIdx.x % 16u * 4u;
	const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
	float sum[4][4] = {};

	for (uint32_t k = 0; k < cols; k += DEPTH) {
		float4 u = row0 + line < rows ? *(const float4 *)(x + (size_t)(row0 + line) * cols + k + part) : zero;
		float4 v = out0 + line < outs ? __ldg((const float4 *)(w + (size_t)(out0 + line) * cols + k + part)) : zero;

		__syncthreads();
		a[part][line] = u.x, a[part + 1][line] = u.y, a[part + 2][line] = u.z, a[part + 3][line] = u.w;
		b[part][line] = v.x, b[part + 1][line] = v.y, b[part + 2][line] = v.z, b[part + 3][line] = v.w;
		__syncthreads();
#pragma unroll
		for (uint32_t i = 0; i < DEPTH; i++) {
			float4 p = *(const float4 *)&a[i][tr], q = *(const float4 *)&b[i][tj];
			const float pr[4] = { p.x, p.y, p.z, p.w }, qj[4] = { q.x, q.y, q.z, q.w };

#pragma unroll
			for (int r = 0; r < 4; r++)
#pragma unroll
				for (int j = 0; j < 4; j++)
					sum[r][j] = fmaf(pr[r], qj[j], sum[r][j]);
		}
	}
#pragma unroll
	for (uint32_t r = 0; r < 4; r++)
#pragma unroll
		for (uint32_t j = 0; j < 4; j++)
			if (row0 + tr + r < rows && out0 + tj + j < outs) {
				float *at = y + (size_t)(row0 + tr + r) * outs + out0 + tj + j;

				*at = add ? *at + sum[r][j] : sum[r][j];
			}
}

/* Neighbouring pairs of the first `heads` heads (q, then k) of every row. The host multiplies and adds without fusing, so here too. */
static __global__ void __launch_bounds__(THREADS) rope_kernel(float *qkv, uint32_t stride, uint32_t heads, uint32_t d, uint32_t half,
							      const float *cosine, const float *sine)
{
	for (uint32_t i = threadIdx.x; i < heads * half; i += THREADS) {
		float *p = qkv + (size_t)blockIdx.x * stride + i / half * d + 2u * (i % half), a = p[0], b = p[1];
		float c = cosine[(size_t)blockIdx.x * half + i % half], s = sine[(size_t)blockIdx.x * half + i % half];

		p[0] = __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s));
		p[1] = __fadd_rn(__fmul_rn(a, s), __fmul_rn(b, c));
	}
}

static __global__ void __launch_bounds__(THREADS) silu_kernel(const float *gate_up, uint32_t n, float *act)
{
	for (uint32_t i = blockIdx.y * THREADS + threadIdx.x; i < n; i += gridDim.y * THREADS) {
		float g = gate_up[(size_t)blockIdx.x * 2u * n + i], u = gate_up[(size_t)blockIdx.x * 2u * n + n + i];

		act[(size_t)blockIdx.x * n + i] = g / (1.0f + expf(-g)) * u;
	}
}

/* Keeps the larger value, of equals the lower index. NaN never wins. */
static __device__ void better(float *v, uint32_t *at, float v2, uint32_t at2)
{
	if (v2 > *v || (v2 == *v && at2 < *at)) {
		*v = v2;
		*at = at2;
	}
}

/* A CTA per row of logits: the best token, and the log-probability of the target. */
static __global__ void __launch_bounds__(THREADS) result_kernel(const float *logits, uint32_t n, struct result *result)
{
	__shared__ float value[THREADS];
	__shared__ uint32_t index[THREADS];
	__shared__ double part[THREADS];
	const float *row = logits + (size_t)blockIdx.x * n;
	float v = -INFINITY;
	uint32_t at = 0xffffffffu, i = threadIdx.x;
	double sum = 0.0;

	for (uint32_t k = i; k < n; k += THREADS)
		better(&v, &at, row[k], k);
	value[i] = v;
	index[i] = at;
	for (uint32_t gap = THREADS / 2u; gap; gap /= 2u) {
		__syncthreads();
		if (i < gap)
			better(&value[i], &index[i], value[i + gap], index[i + gap]);
	}
	__syncthreads();
	v = value[0];
	for (uint32_t k = i; k < n; k += THREADS)
		sum += exp((double)row[k] - (double)v);
	part[i] = sum;
	for (uint32_t gap = THREADS / 2u; gap; gap /= 2u) {
		__syncthreads();
		if (i < gap)
			part[i] += part[i + gap];
	}
	if (i == 0) {
		struct result *r = result + blockIdx.x;

		r->best = index[0] < n ? (int32_t)index[0] : 0;
		r->logprob = r->target >= 0 && (uint32_t)r->target < n ? (double)row[r->target] - ((double)v + log(part[0])) : 0.0;
	}
}

#endif
