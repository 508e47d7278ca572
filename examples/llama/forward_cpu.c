/* The forward pass on the CPU: all rows of a step go through every weight matrix together. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/llama/forward.h"
#include "examples/llama/team.h"

#define LINE 64u	/* alignment of every array: a cache line */
#define SLICE 32u	/* rows whose logits are in memory at once when the caller does not want to see them */

struct cpu {
	struct forward base;
	const struct model *model;
	struct team *team;
	uint32_t max_rows, max_out;
	void *memory;			/* one allocation: the arrays below lie in it */
	float *h;			/* [max_rows][n_embd] the residual stream */
	float *x;			/* [max_rows][n_embd] after a norm */
	float *q, *att;			/* [max_rows][n_heads * head_dim] */
	float *k, *v;			/* [max_rows][n_kv_heads * head_dim] */
	float *gate, *up;		/* [max_rows][n_ff] */
	float *cosine, *sine;		/* [max_rows][rope_dims / 2] */
	float *logits;			/* [min(max_out, SLICE)][n_vocab] */
	float *scratch;
	uint32_t n_out;
};

__attribute__((format(printf, 3, 4)))
static int fail(struct cpu *f, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(f->base.why, sizeof(f->base.why), format, args);
	va_end(args);
	return err;
}

/* --- memory ----------------------------------------------------------------------------------------------- */

static float *carve(char *memory, size_t *at, size_t floats)
{
	float *p = memory ? (float *)(void *)(memory + *at) : NULL;

	*at += (floats * sizeof(float) + LINE - 1) / LINE * LINE;
	return p;
}

/* Called twice: without memory to learn how much is needed, then with it. */
static size_t lay_out(struct cpu *f, char *memory)
{
	const struct model *m = f->model;
	uint32_t q_dims = m->n_heads * m->head_dim, kv_dims = m->n_kv_heads * m->head_dim;
	uint32_t widest = m->n_ff > m->n_embd ? m->n_ff : m->n_embd;
	size_t rows = f->max_rows, at = 0;

	widest = q_dims > widest ? q_dims : widest;
	f->h = carve(memory, &at, rows * m->n_embd);
	f->x = carve(memory, &at, rows * m->n_embd);
	f->q = carve(memory, &at, rows * q_dims);
	f->att = carve(memory, &at, rows * q_dims);
	f->k = carve(memory, &at, rows * kv_dims);
	f->v = carve(memory, &at, rows * kv_dims);
	f->gate = carve(memory, &at, rows * m->n_ff);
	f->up = carve(memory, &at, rows * m->n_ff);
	f->cosine = carve(memory, &at, rows * (m->rope_dims / 2));
	f->sine = carve(memory, &at, rows * (m->rope_dims / 2));
	f->logits = carve(memory, &at, (size_t)(f->max_out < SLICE ? f->max_out : SLICE) * m->n_vocab);
	f->scratch = carve(memory, &at, tensor_scratch(widest, f->max_rows > f->max_out ? f->max_rows : f->max_out,
						       team_size(f->team)));
	return at;
}

static void cpu_close(struct forward *forward)
{
	struct cpu *f = (struct cpu *)forward;

	if (!f)
		return;
	team_free(f->team);
	free(f->memory);
	free(f);
}

static int cpu_open(const struct forward_options *options, struct forward **out)
{
	struct cpu *f = calloc(1, sizeof(*f));
	int err = f ? team_new(options->threads ? options->threads : 1, &f->team) : -ENOMEM;

	if (!err) {
		f->base.ops = &forward_cpu_ops;
		f->model = options->model;
		f->max_rows = options->max_rows;
		f->max_out = options->max_out;
		f->memory = aligned_alloc(LINE, lay_out(f, NULL));
		err = f->memory ? 0 : -ENOMEM;
	}
	if (err) {
		snprintf(options->why, options->why_bytes, err == -EINVAL ? "%u threads are not possible; 1 to 256 are" :
			 err == -ENOMEM ? "not enough memory for the forward pass on %u threads; try a smaller --batch" :
			 "the system does not let this process start %u threads", options->threads);
		cpu_close(f ? &f->base : NULL);
		return err;
	}
	lay_out(f, f->memory);
	*out = &f->base;
	return 0;
}

static void *cpu_stream(struct forward *forward)
{
	(void)forward;
	return NULL;
}

/* --- the layers ------------------------------------------------------------------------------------------- */

static void rotate(const struct cpu *f, float *x, uint32_t rows, uint32_t n_heads)
{
	uint32_t half = f->model->rope_dims / 2, d = f->model->head_dim;

	for (uint32_t r = 0; r < rows; r++) {
		const float *c = f->cosine + (size_t)r * half, *s = f->sine + (size_t)r * half;

		for (uint32_t h = 0; h < n_heads; h++) {
			float *head = x + ((size_t)r * n_heads + h) * d;

			for (uint32_t i = 0; i < half; i++) {
				float a = head[2 * i], b = head[2 * i + 1];

				head[2 * i] = a * c[i] - b * s[i];
				head[2 * i + 1] = a * s[i] + b * c[i];
			}
		}
	}
}

static void norm_rows(const struct cpu *f, const struct tensor *weight, uint32_t rows)
{
	const struct model *m = f->model;

	for (size_t r = 0; r < rows; r++)
		tensor_norm(f->h + r * m->n_embd, weight->data, m->n_embd, m->rms_eps, f->x + r * m->n_embd);
}

static int attention(struct cpu *f, struct ebb_batch *batch, uint32_t i, uint32_t rows)
{
	const struct model *m = f->model;
	const struct model_layer *l = &m->layer[i];
	struct ebb_tensor k = { f->k, EBB_F32, 0 }, v = { f->v, EBB_F32, 0 }, q = { f->q, EBB_F32, 0 }, out = { f->att, EBB_F32, 0 };
	int err;

	norm_rows(f, &l->attn_norm, rows);
	tensor_matmul(f->team, &l->q, f->x, rows, f->q, l->q.rows, f->scratch);
	tensor_matmul(f->team, &l->k, f->x, rows, f->k, l->k.rows, f->scratch);
	tensor_matmul(f->team, &l->v, f->x, rows, f->v, l->v.rows, f->scratch);
	rotate(f, f->q, rows, m->n_heads);
	rotate(f, f->k, rows, m->n_kv_heads);
	err = ebb_append(batch, i, &k, &v);
	if (!err)
		err = ebb_attend(batch, i, &q, &out, m->attn_scale, NULL);
	if (err)
		return fail(f, err, "layer %u: storing or reading the KV cache failed: %s", i, strerror(-err));
	tensor_matmul(f->team, &l->o, f->att, rows, f->x, m->n_embd, f->scratch);
	tensor_add(f->h, f->x, rows * m->n_embd);
	return 0;
}

static void feed_forward(struct cpu *f, uint32_t i, uint32_t rows)
{
	const struct model *m = f->model;
	const struct model_layer *l = &m->layer[i];

	norm_rows(f, &l->ffn_norm, rows);
	tensor_matmul(f->team, &l->gate, f->x, rows, f->gate, m->n_ff, f->scratch);
	tensor_matmul(f->team, &l->up, f->x, rows, f->up, m->n_ff, f->scratch);
	for (size_t r = 0; r < rows; r++)	/* row by row: what a row gets must not depend on its neighbours */
		tensor_silu_mul(f->gate + r * m->n_ff, f->up + r * m->n_ff, m->n_ff);
	tensor_matmul(f->team, &l->down, f->gate, rows, f->x, m->n_embd, f->scratch);
	tensor_add(f->h, f->x, rows * m->n_embd);
}

static int cpu_layers(struct forward *forward, struct ebb_batch *batch, const struct forward_in *in)
{
	struct cpu *f = (struct cpu *)forward;
	const struct model *m = f->model;

	if (in->rows == 0 || in->rows > f->max_rows || in->n_out > f->max_out)
		return fail(f, -EINVAL, "a step of %u rows with %u outputs; %u and %u are possible", in->rows, in->n_out,
			    f->max_rows, f->max_out);
	for (uint32_t r = 0; r < in->rows; r++) {
		if (in->token[r] < 0 || (uint32_t)in->token[r] >= m->n_vocab || in->pos[r] < 0)
			return fail(f, -EINVAL, "row %u: token %d at position %d does not exist", r, in->token[r], in->pos[r]);
		tensor_row(&m->embd, (uint32_t)in->token[r], f->h + (size_t)r * m->n_embd);
		model_rope(m, (uint32_t)in->pos[r], f->cosine + (size_t)r * (m->rope_dims / 2),
			   f->sine + (size_t)r * (m->rope_dims / 2));
	}
	for (uint32_t i = 0; i < m->n_layers; i++) {
		int err = attention(f, batch, i, in->rows);

		if (err)
			return err;
		feed_forward(f, i, in->rows);
	}
	/* Only the rows that are wanted go on: normed now, so that output() needs nothing of `in`. */
	for (uint32_t i = 0; i < in->n_out; i++)
		tensor_norm(f->h + (size_t)in->out_row[i] * m->n_embd, m->out_norm.data, m->n_embd, m->rms_eps,
			    f->x + (size_t)i * m->n_embd);
	f->n_out = in->n_out;
	return 0;
}

static int cpu_output(struct forward *forward, const struct forward_out *out)
{
	struct cpu *f = (struct cpu *)forward;
	const struct model *m = f->model;

	for (uint32_t from = 0; from < f->n_out; from += SLICE) {
		uint32_t n = f->n_out - from < SLICE ? f->n_out - from : SLICE;
		float *logits = out->logits ? out->logits + (size_t)from * m->n_vocab : f->logits;

		tensor_matmul(f->team, &m->output, f->x + (size_t)from * m->n_embd, n, logits, m->n_vocab, f->scratch);
		for (uint32_t i = 0; i < n; i++) {
			const float *row = logits + (size_t)i * m->n_vocab;

			if (out->best)
				out->best[from + i] = (int32_t)tensor_best(row, m->n_vocab);
			if (out->target && out->logprob)
				out->logprob[from + i] = (double)row[out->target[from + i]] - tensor_lse(row, m->n_vocab);
		}
	}
	return 0;
}

const struct forward_ops forward_cpu_ops = {
	.name = "cpu", .open = cpu_open, .close = cpu_close, .stream = cpu_stream, .layers = cpu_layers, .output = cpu_output,
};
