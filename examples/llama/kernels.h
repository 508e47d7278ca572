/*
 * Private to the tensor files: what an instruction set provides. tensor.c chooses one table at start.
 */
#ifndef LLAMA_KERNELS_H
#define LLAMA_KERNELS_H

#include "examples/llama/tensor.h"

struct kernels {
	const char *isa;
	/* Activations as `product` of this weight type wants them: [kernels_packed(cols)] floats a row. */
	void (*pack)(enum tensor_type type, const float *x, uint32_t cols, float *packed);
	/*
	 * y[r][j] for weight rows from <= j < to and all activation rows. @packed: rows `stride` floats apart, 32-byte aligned.
	 * @wide: [cols rounded up to 8] floats for a dequantised weight row.
	 */
	void (*product)(const struct tensor *w, uint32_t from, uint32_t to, const float *packed, size_t stride, uint32_t rows,
			float *y, size_t y_stride, float *wide);
	void (*norm)(const float *x, const float *weight, uint32_t n, float eps, float *out);
	void (*silu_mul)(float *gate, const float *up, uint32_t n);
	double (*lse)(const float *x, uint32_t n);
	uint32_t (*best)(const float *x, uint32_t n);
	/* tensor_panels() for one panel: y[r][0..15], added to what is there with `add`. */
	void (*panel)(const float *x, size_t x_stride, uint32_t rows, const float *panel, uint32_t cols, float *y, size_t y_stride,
		      int add);
	float (*exps)(float *x, uint32_t n);
};

/* Room for a packed row: the values, rounded up to two blocks of 32, and 8 floats of block sums for every two blocks. */
static inline size_t kernels_packed(uint32_t cols)
{
	return ((size_t)cols + 63) / 64 * 72;
}

extern const struct kernels kernels_plain;
extern const struct kernels kernels_avx2;	/* machines with AVX2, FMA and F16C only */

#endif
