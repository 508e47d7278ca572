/* The kernels in plain C: every machine, and what the vectorised ones are compared with. */
#include <math.h>
#include <string.h>

#include "examples/llama/kernels.h"

static void plain_pack(enum tensor_type type, const float *x, uint32_t cols, float *packed)
{
	(void)type;
	memcpy(packed, x, (size_t)cols * sizeof(*x));
}

/* Eight partial sums: short dependency chains, and a compiler may use whatever vectors there are without reordering. */
static float dot(const float *a, const float *b, uint32_t n)
{
	float s[8] = { 0 };
	uint32_t i = 0;

	for (; i + 8 <= n; i += 8)
		for (int k = 0; k < 8; k++)
			s[k] += a[i + (uint32_t)k] * b[i + (uint32_t)k];
	for (; i < n; i++)
		s[0] += a[i] * b[i];
	return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static void plain_product(const struct tensor *w, uint32_t from, uint32_t to, const float *packed, size_t stride, uint32_t rows,
			  float *y, size_t y_stride, float *wide)
{
	for (uint32_t j = from; j < to; j++) {
		tensor_row(w, j, wide);
		for (uint32_t r = 0; r < rows; r++)
			y[r * y_stride + j] = dot(wide, packed + r * stride, w->cols);
	}
}

static void plain_norm(const float *x, const float *weight, uint32_t n, float eps, float *out)
{
	float scale = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);

	for (uint32_t i = 0; i < n; i++)
		out[i] = x[i] * scale * weight[i];
}

static void plain_silu_mul(float *gate, const float *up, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static double plain_lse(const float *x, uint32_t n)
{
	float top = x[0];
	double sum = 0.0;

	for (uint32_t i = 1; i < n; i++)
		if (x[i] > top)
			top = x[i];
	for (uint32_t i = 0; i < n; i++)
		sum += (double)expf(x[i] - top);
	return (double)top + log(sum);
}

static uint32_t plain_best(const float *x, uint32_t n)
{
	uint32_t best = 0;

	for (uint32_t i = 1; i < n; i++)
		if (x[i] > x[best] || (x[best] != x[best] && x[i] == x[i]))
			best = i;
	return best;
}

static void plain_panel(const float *x, size_t x_stride, uint32_t rows, const float *panel, uint32_t cols, float *y, size_t y_stride,
			int add)
{
	for (uint32_t r = 0; r < rows; r++) {
		float sum[TENSOR_PANEL] = { 0 };

		for (uint32_t i = 0; i < cols; i++)
			for (uint32_t j = 0; j < TENSOR_PANEL; j++)
				sum[j] += x[r * x_stride + i] * panel[(size_t)i * TENSOR_PANEL + j];
		for (uint32_t j = 0; j < TENSOR_PANEL; j++)
			y[r * y_stride + j] = add ? y[r * y_stride + j] + sum[j] : sum[j];
	}
}

static float plain_exps(float *x, uint32_t n)
{
	float top = x[0], sum = 0.0f;

	for (uint32_t i = 1; i < n; i++)
		top = x[i] > top ? x[i] : top;
	for (uint32_t i = 0; i < n; i++) {
		x[i] = expf(x[i] - top);
		sum += x[i];
	}
	return sum;
}

const struct kernels kernels_plain = {
	.isa = "plain", .pack = plain_pack, .product = plain_product, .norm = plain_norm, .silu_mul = plain_silu_mul,
	.lse = plain_lse, .best = plain_best, .panel = plain_panel, .exps = plain_exps,
};
