#include "examples/llama/tensor.h"

#include <stdlib.h>
#include <string.h>

#include "examples/llama/kernels.h"
#include "examples/llama/team.h"

static const struct {
	uint32_t type;
	const char *name;
	uint32_t block;		/* elements */
	uint32_t bytes;		/* of a block */
} types[] = {
	{ TENSOR_F32, "f32", 1, 4 }, { TENSOR_F16, "f16", 1, 2 }, { TENSOR_BF16, "bf16", 1, 2 },
	{ TENSOR_Q4_0, "q4_0", 32, 18 }, { TENSOR_Q4_1, "q4_1", 32, 20 }, { TENSOR_Q5_0, "q5_0", 32, 22 },
	{ TENSOR_Q5_1, "q5_1", 32, 24 }, { TENSOR_Q8_0, "q8_0", 32, 34 }, { TENSOR_Q4_K, "q4_K", 256, 144 },
	{ TENSOR_Q5_K, "q5_K", 256, 176 }, { TENSOR_Q6_K, "q6_K", 256, 210 },
};
#define N_TYPES (sizeof(types) / sizeof(types[0]))

const char *tensor_type_name(uint32_t type)
{
	for (size_t i = 0; i < N_TYPES; i++)
		if (types[i].type == type)
			return types[i].name;
	return NULL;
}

size_t tensor_row_bytes(uint32_t type, uint64_t cols)
{
	for (size_t i = 0; i < N_TYPES; i++)
		if (types[i].type == type)
			return cols % types[i].block || cols > UINT32_MAX ? 0 : (size_t)(cols / types[i].block) * types[i].bytes;
	return 0;
}

/* --- which instruction set -------------------------------------------------------------------------------- */

static const struct kernels *chosen;	/* the same value whoever writes it */

static const struct kernels *kernels(void)
{
	const struct kernels *k = __atomic_load_n(&chosen, __ATOMIC_RELAXED);

	if (k)
		return k;
	k = &kernels_plain;
#if defined(__x86_64__)
	const char *isa = getenv("EBB_ISA");

	if ((!isa || strcmp(isa, "plain") != 0) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
	    __builtin_cpu_supports("f16c"))
		k = &kernels_avx2;
#endif
	__atomic_store_n(&chosen, k, __ATOMIC_RELAXED);
	return k;
}

const char *tensor_isa(void)
{
	return kernels()->isa;
}

/* --- products --------------------------------------------------------------------------------------------- */

#define SHARE_ROWS 16u	/* weight rows of a thread come in runs of this: whole cache lines of y */

struct product {
	const struct tensor *w;
	const float *packed;
	size_t stride;
	uint32_t rows;
	float *y;
	size_t y_stride;
	float *wide;
	size_t wide_stride;
};

static size_t wide_floats(uint32_t cols)
{
	return ((size_t)cols + 15) / 16 * 16;
}

size_t tensor_scratch(uint32_t cols, uint32_t rows, unsigned n_threads)
{
	return kernels_packed(cols) * rows + wide_floats(cols) * n_threads;
}

static void product_part(void *arg, unsigned index, unsigned n)
{
	const struct product *p = arg;
	unsigned from, to;

	team_share(index, n, p->w->rows, SHARE_ROWS, &from, &to);
	if (from < to)
		kernels()->product(p->w, from, to, p->packed, p->stride, p->rows, p->y, p->y_stride,
				   p->wide + index * p->wide_stride);
}

void tensor_matmul(struct team *team, const struct tensor *w, const float *x, uint32_t rows, float *y, size_t y_stride,
		   float *scratch)
{
	struct product p = { w, scratch, kernels_packed(w->cols), rows, y, y_stride, NULL, wide_floats(w->cols) };

	p.wide = scratch + p.stride * rows;
	for (uint32_t r = 0; r < rows; r++)
		kernels()->pack(w->type, x + (size_t)r * w->cols, w->cols, scratch + p.stride * r);
	team_run(team, product_part, &p);
}

/* --- panels ----------------------------------------------------------------------------------------------- */

void tensor_to_panels(const struct tensor *w, uint32_t from, uint32_t to, float *panels, float *row)
{
	for (uint32_t j = from * TENSOR_PANEL; j < to * TENSOR_PANEL; j++) {
		float *out = panels + (size_t)(j / TENSOR_PANEL) * w->cols * TENSOR_PANEL + j % TENSOR_PANEL;

		if (j < w->rows)
			tensor_row(w, j, row);
		for (uint32_t i = 0; i < w->cols; i++)
			out[(size_t)i * TENSOR_PANEL] = j < w->rows ? row[i] : 0.0f;
	}
}

void tensor_panels(const float *x, size_t x_stride, uint32_t rows, const float *panels, uint32_t n_panels, uint32_t cols, float *y,
		   size_t y_stride, int add)
{
	for (uint32_t p = 0; p < n_panels; p++)
		kernels()->panel(x, x_stride, rows, panels + (size_t)p * cols * TENSOR_PANEL, cols, y + (size_t)p * TENSOR_PANEL,
				 y_stride, add);
}

float tensor_exps(float *x, uint32_t n)
{
	return kernels()->exps(x, n);
}

/* --- small things ----------------------------------------------------------------------------------------- */

void tensor_norm(const float *x, const float *weight, uint32_t n, float eps, float *out)
{
	kernels()->norm(x, weight, n, eps, out);
}

void tensor_silu_mul(float *gate, const float *up, uint32_t n)
{
	kernels()->silu_mul(gate, up, n);
}

void tensor_add(float *x, const float *y, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		x[i] += y[i];
}

double tensor_lse(const float *x, uint32_t n)
{
	return kernels()->lse(x, n);
}

uint32_t tensor_best(const float *x, uint32_t n)
{
	return kernels()->best(x, n);
}
