/*
 * Tensors of a model file and the arithmetic on them: float32 activations times weights that stay quantised in memory.
 *
 * Every number is what float32 arithmetic on the dequantised weights gives (activations are never quantised), and every
 * output element is summed in one fixed order: results do not depend, bit for bit, on how many rows go through at once
 * nor on the number of threads. They do depend on the instruction set (tensor_isa()), in the last bits.
 */
#ifndef LLAMA_TENSOR_H
#define LLAMA_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Numbers as in the GGUF format. */
enum tensor_type {
	TENSOR_F32 = 0, TENSOR_F16 = 1, TENSOR_Q4_0 = 2, TENSOR_Q4_1 = 3, TENSOR_Q5_0 = 6, TENSOR_Q5_1 = 7, TENSOR_Q8_0 = 8,
	TENSOR_Q4_K = 12, TENSOR_Q5_K = 13, TENSOR_Q6_K = 14, TENSOR_BF16 = 30,
};

/* A matrix of `rows` rows (outputs) of `cols` elements (inputs); a vector has one row. data == NULL: absent. */
struct tensor {
	const void *data;	/* borrowed from the mapped file; rows are row_bytes apart */
	enum tensor_type type;
	uint32_t cols, rows;
	size_t row_bytes;
};

struct team;	/* threads (team.h) */

/* tensor_type_name - "q4_1", ...; NULL for a type that this program does not know. */
const char *tensor_type_name(uint32_t type);

/* tensor_row_bytes - bytes of one row of `cols` elements; 0 if the type is unknown or cols is no multiple of its block. */
size_t tensor_row_bytes(uint32_t type, uint64_t cols);

/* tensor_isa - "avx2" or "plain": what the functions below run with. EBB_ISA=plain in the environment forces the plain one. */
const char *tensor_isa(void);

/* tensor_row - dequantise row `row` to float32. @out: [cols]. Plain C, the reference for everything else. */
void tensor_row(const struct tensor *w, uint32_t row, float *out);

/* tensor_scratch - floats that tensor_matmul() needs in scratch for `rows` rows of any of the matrices up to `cols` wide. */
size_t tensor_scratch(uint32_t cols, uint32_t rows, unsigned n_threads);

/*
 * tensor_matmul - y[r][j] = sum over i of w[j][i] * x[r][i].
 * @x: [rows][w->cols], @y: [rows][y_stride], @scratch: tensor_scratch() floats, 32-byte aligned; all borrowed.
 * Thread: uses @team's threads; one call per team at a time.
 */
void tensor_matmul(struct team *team, const struct tensor *w, const float *x, uint32_t rows, float *y, size_t y_stride,
		   float *scratch);

/* tensor_norm - out = x / sqrt(mean(x^2) + eps) * weight. */
void tensor_norm(const float *x, const float *weight, uint32_t n, float eps, float *out);

/* tensor_silu_mul - gate = silu(gate) * up. */
void tensor_silu_mul(float *gate, const float *up, uint32_t n);

/* tensor_add - x += y. */
void tensor_add(float *x, const float *y, uint32_t n);

/* tensor_lse - natural logarithm of the sum of exp(x), in float64 sums. */
double tensor_lse(const float *x, uint32_t n);

/* tensor_best - index of the largest element, the lowest one of equals; NaN never wins. */
uint32_t tensor_best(const float *x, uint32_t n);

/*
 * --- panels: for many rows at once. A matrix of `rows` outputs as float32, 16 outputs side by side: element (j, i) of the weights is at
 * panels[(j / 16 * cols + i) * 16 + j % 16]. Twice as fast as tensor_matmul() from some 30 rows on, at eight times the memory of
 * four-bit weights. One thread; sums run over i in ascending order, whatever the number of rows.
 */
#define TENSOR_PANEL 16u

static inline size_t tensor_panel_floats(uint32_t rows, uint32_t cols)
{
	return ((size_t)rows + TENSOR_PANEL - 1) / TENSOR_PANEL * TENSOR_PANEL * cols;
}

/* tensor_to_panels - weight rows of panels from <= p < to. @row: [cols] scratch. */
void tensor_to_panels(const struct tensor *w, uint32_t from, uint32_t to, float *panels, float *row);

/* tensor_panels - y[r][j] = sum over i of w[j][i] * x[r][i] for n_panels panels of `cols` inputs; @add: += instead. */
void tensor_panels(const float *x, size_t x_stride, uint32_t rows, const float *panels, uint32_t n_panels, uint32_t cols, float *y,
		   size_t y_stride, int add);

/* tensor_exps - x = exp(x - largest x); returns their sum. */
float tensor_exps(float *x, uint32_t n);

float tensor_half(uint16_t half);	/* float16 to float32 */

#ifdef __cplusplus
}
#endif
#endif
