/*
 * The forward pass on CUDA: float32 weights and activations on the device, all KV through libebb on the same stream.
 *
 * Weights are dequantised once, when the model is opened. q, k and v are one matrix, so are gate and up: fewer launches. The
 * matrix products are this file's own, so that the program needs no library beyond the driver: a warp per output for a
 * few rows (bound by reading the weights once), 64 x 64 tiles for many.
 * Memory traffic of a decode step: every weight once (4 bytes), activations from the L2.
 * Determinism: sums in a fixed order, no atomics. The order depends on which of the two products a row count takes.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/llama/forward.h"
#include "examples/llama/forward_kernels.cuh"

#define SLICE 64u		/* rows whose logits are on the device at once */

struct layer {
	float *attn_norm, *qkv, *o, *ffn_norm, *gate_up, *down;
};

struct cuda {
	struct forward base;
	const struct model *model;
	int ordinal;
	uint32_t max_rows, max_out, n_out;
	cudaStream_t stream;
	cudaEvent_t sent, done;		/* the last step's inputs have been read; its results are there */
	char *memory;			/* one allocation: everything below lies in it */
	float *embd, *out_norm, *output;
	struct layer *layer;		/* host array of device addresses */
	float *h, *x, *qkv, *att, *gate_up, *act, *cosine, *sine, *logits;
	int32_t *token;
	uint32_t *out_row;
	struct result *result;
	char *pinned;			/* staging: cosine, sine, token, out_row, then results */
	float *p_cosine, *p_sine;
	int32_t *p_token;
	uint32_t *p_out_row;
	struct result *p_result;
};

/* --- errors and memory ------------------------------------------------------------------------------------------------------------ */

__attribute__((format(printf, 3, 4)))
static int fail(struct cuda *f, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(f->base.why, sizeof(f->base.why), format, args);
	va_end(args);
	return err;
}

static int check(struct cuda *f, cudaError_t e, const char *doing)
{
	if (e == cudaSuccess)
		return 0;
	return fail(f, e == cudaErrorMemoryAllocation ? -ENOMEM : e == cudaErrorNoDevice || e == cudaErrorInvalidDevice ? -ENODEV : -EIO,
		    "%s on CUDA device %d failed: %s", doing, f->ordinal, cudaGetErrorString(e));
}

static char *carve(char *memory, size_t *at, size_t bytes)
{
	char *p = memory ? memory + *at : NULL;

	*at += (bytes + 255u) / 256u * 256u;
	return p;
}

static float *floats(char *memory, size_t *at, size_t n)
{
	return (float *)carve(memory, at, n * sizeof(float));
}

static uint32_t qkv_outs(const struct model *m)
{
	return (m->n_heads + 2u * m->n_kv_heads) * m->head_dim;
}

static uint32_t slice(const struct cuda *f)
{
	return f->max_out < SLICE ? f->max_out : SLICE;
}

/* Twice: without memory to learn how much is needed, then with it. */
static size_t lay_out(struct cuda *f, char *at_device)
{
	const struct model *m = f->model;
	size_t rows = f->max_rows, at = 0, e = m->n_embd, q = (size_t)m->n_heads * m->head_dim;
	size_t x_rows = f->max_rows > f->max_out ? f->max_rows : f->max_out;

	f->embd = floats(at_device, &at, m->n_vocab * e);
	f->output = m->output.data == m->embd.data ? f->embd : floats(at_device, &at, m->n_vocab * e);
	f->out_norm = floats(at_device, &at, e);
	for (uint32_t i = 0; i < m->n_layers; i++) {
		struct layer *l = &f->layer[i];

		l->attn_norm = floats(at_device, &at, e);
		l->qkv = floats(at_device, &at, qkv_outs(m) * e);
		l->o = floats(at_device, &at, e * q);
		l->ffn_norm = floats(at_device, &at, e);
		l->gate_up = floats(at_device, &at, 2u * m->n_ff * e);
		l->down = floats(at_device, &at, e * m->n_ff);
	}
	f->h = floats(at_device, &at, rows * e);
	f->x = floats(at_device, &at, x_rows * e);
	f->qkv = floats(at_device, &at, rows * qkv_outs(m));
	f->att = floats(at_device, &at, rows * q);
	f->gate_up = floats(at_device, &at, rows * 2u * m->n_ff);
	f->act = floats(at_device, &at, rows * m->n_ff);
	f->logits = floats(at_device, &at, (size_t)slice(f) * m->n_vocab);
	f->result = (struct result *)carve(at_device, &at, slice(f) * sizeof(struct result));
	f->cosine = floats(at_device, &at, rows * (m->rope_dims / 2u));
	f->sine = floats(at_device, &at, rows * (m->rope_dims / 2u));
	f->token = (int32_t *)carve(at_device, &at, rows * 4u);
	f->out_row = (uint32_t *)carve(at_device, &at, (size_t)f->max_out * 4u);
	return at;
}

static size_t lay_out_pinned(struct cuda *f, char *pinned)
{
	size_t at = 0, half = f->model->rope_dims / 2u;

	f->p_cosine = floats(pinned, &at, f->max_rows * half);
	f->p_sine = floats(pinned, &at, f->max_rows * half);
	f->p_token = (int32_t *)carve(pinned, &at, (size_t)f->max_rows * 4u);
	f->p_out_row = (uint32_t *)carve(pinned, &at, (size_t)f->max_out * 4u);
	f->p_result = (struct result *)carve(pinned, &at, slice(f) * sizeof(struct result));
	return at;
}

/* Rows of a weight, dequantised on the host as the CPU does it, to the device. @room: for one batch of rows. */
static cudaError_t upload(const struct tensor *w, float *to, float *room, size_t room_floats)
{
	uint32_t batch = (uint32_t)(room_floats / w->cols);
	cudaError_t e = cudaSuccess;

	for (uint32_t r = 0; r < w->rows && e == cudaSuccess; r += batch) {
		uint32_t n = w->rows - r < batch ? w->rows - r : batch;

		for (uint32_t i = 0; i < n; i++)
			tensor_row(w, r + i, room + (size_t)i * w->cols);
		e = cudaMemcpy(to + (size_t)r * w->cols, room, (size_t)n * w->cols * sizeof(float), cudaMemcpyHostToDevice);
	}
	return e;
}

static cudaError_t upload_model(struct cuda *f, float *room, size_t room_floats)
{
	const struct model *m = f->model;
	cudaError_t e = upload(&m->embd, f->embd, room, room_floats);

	if (e == cudaSuccess && f->output != f->embd)
		e = upload(&m->output, f->output, room, room_floats);
	if (e == cudaSuccess)
		e = upload(&m->out_norm, f->out_norm, room, room_floats);
	for (uint32_t i = 0; i < m->n_layers && e == cudaSuccess; i++) {
		const struct model_layer *l = &m->layer[i];
		const struct layer *to = &f->layer[i];
		const struct {
			const struct tensor *w;
			float *at;
		} all[] = {
			{ &l->attn_norm, to->attn_norm }, { &l->q, to->qkv }, { &l->k, to->qkv + (size_t)l->q.rows * m->n_embd },
			{ &l->v, to->qkv + (size_t)(l->q.rows + l->k.rows) * m->n_embd }, { &l->o, to->o }, { &l->ffn_norm, to->ffn_norm },
			{ &l->gate, to->gate_up }, { &l->up, to->gate_up + (size_t)l->gate.rows * m->n_embd }, { &l->down, to->down },
		};

		for (size_t k = 0; k < sizeof(all) / sizeof(all[0]) && e == cudaSuccess; k++)
			e = upload(all[k].w, all[k].at, room, room_floats);
	}
	return e;
}

static void cuda_forward_close(struct forward *forward)
{
	struct cuda *f = (struct cuda *)forward;

	if (!f)
		return;
	if (cudaSetDevice(f->ordinal) == cudaSuccess) {
		if (f->stream)
			(void)cudaStreamSynchronize(f->stream);
		if (f->sent)
			(void)cudaEventDestroy(f->sent);
		if (f->done)
			(void)cudaEventDestroy(f->done);
		if (f->stream)
			(void)cudaStreamDestroy(f->stream);
		(void)cudaFree(f->memory);
		(void)cudaFreeHost(f->pinned);
	}
	free(f->layer);
	free(f);
}

/* Everything on the device. f->layer is there. */
static int open_device(struct cuda *f)
{
	const size_t room_floats = 4u << 20;
	size_t bytes = lay_out(f, NULL);
	cudaError_t e = cudaSetDevice(f->ordinal);
	float *room;
	int err;

	if (e == cudaSuccess)
		e = cudaStreamCreate(&f->stream);
	if (e == cudaSuccess)
		e = cudaEventCreateWithFlags(&f->sent, cudaEventDisableTiming | cudaEventBlockingSync);
	if (e == cudaSuccess)
		e = cudaEventCreateWithFlags(&f->done, cudaEventDisableTiming | cudaEventBlockingSync);
	if (e == cudaSuccess)
		e = cudaHostAlloc((void **)&f->pinned, lay_out_pinned(f, NULL), cudaHostAllocDefault);
	if (e == cudaSuccess)
		e = cudaMalloc((void **)&f->memory, bytes);
	if (e != cudaSuccess)
		return check(f, e, "making room for the model");
	(void)lay_out(f, f->memory);
	(void)lay_out_pinned(f, f->pinned);
	room = (float *)malloc(room_floats * sizeof(float));
	if (!room)
		return fail(f, -ENOMEM, "not enough memory to load the model");
	err = check(f, upload_model(f, room, room_floats), "loading the model");
	free(room);
	return err;
}

static int cuda_forward_open(const struct forward_options *options, struct forward **out)
{
	const struct model *m = options->model;
	struct cuda *f = (struct cuda *)calloc(1, sizeof(*f));
	int err = -ENOMEM;

	if (f)
		f->layer = (struct layer *)calloc(m->n_layers, sizeof(*f->layer));
	if (f && f->layer) {
		f->base.ops = &forward_cuda_ops;
		f->model = m;
		f->ordinal = options->ordinal;
		f->max_rows = options->max_rows;
		f->max_out = options->max_out ? options->max_out : 1u;
		if (m->n_embd % DEPTH || m->n_ff % DEPTH || m->head_dim % DEPTH)
			err = fail(f, -EINVAL, "the CUDA forward pass needs sizes that are multiples of %u", DEPTH);
		else
			err = open_device(f);
	}
	if (err) {
		(void)snprintf(options->why, options->why_bytes, "%s", f && f->base.why[0] ? f->base.why : "not enough memory");
		cuda_forward_close(f ? &f->base : NULL);
		return err;
	}
	*out = &f->base;
	return 0;
}

static void *cuda_forward_stream(struct forward *forward)
{
	return ((struct cuda *)forward)->stream;
}

/* --- the layers ---------------------------------------------------------------------------------------------------- */

static void thin(struct cuda *f, const float *w, const float *x, uint32_t rows, uint32_t cols, uint32_t outs, float *y, int add)
{
	uint32_t grid = (outs + THREADS / 32u - 1u) / (THREADS / 32u);

	switch (rows) {
	case 1: thin_kernel<1><<<grid, THREADS, 0, f->stream>>>(w, x, cols, outs, y, add); break;
	case 2: thin_kernel<2><<<grid, THREADS, 0, f->stream>>>(w, x, cols, outs, y, add); break;
	case 3: thin_kernel<3><<<grid, THREADS, 0, f->stream>>>(w, x, cols, outs, y, add); break;
	case 4: thin_kernel<4><<<grid, THREADS, 0, f->stream>>>(w, x, cols, outs, y, add); break;
	case 5: thin_kernel<5><<<grid, THREADS, 0, f->stream>>>(w, x, cols, outs, y, add); break;
	case 6: thin_kernel<6><<<grid, THREADS, 0, f->stream>>>(w, x, cols, outs, y, add); break;
	case 7: thin_kernel<7><<<grid, THREADS, 0, f->stream>>>(w, x, cols, outs, y, add); break;
	default: thin_kernel<8><<<grid, THREADS, 0, f->stream>>>(w, x, cols, outs, y, add); break;
	}
}

static void matmul(struct cuda *f, const float *w, const float *x, uint32_t rows, uint32_t cols, uint32_t outs, float *y, int add)
{
	static_assert(FEW == 8, "thin() lists the row counts");
	if (rows <= FEW)
		thin(f, w, x, rows, cols, outs, y, add);
	else
		tile_kernel<<<dim3((outs + TILE - 1u) / TILE, (rows + TILE - 1u) / TILE), THREADS, 0, f->stream>>>(w, x, rows, cols,
													      outs, y, add);
}

static int one_layer(struct cuda *f, struct ebb_batch *batch, uint32_t i, uint32_t rows)
{
	const struct model *m = f->model;
	const struct layer *l = &f->layer[i];
	uint32_t q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim, all = qkv_outs(m), e = m->n_embd;
	struct ebb_tensor tq = { f->qkv, EBB_F32, all }, tk = { f->qkv + q, EBB_F32, all }, tv = { f->qkv + q + kv, EBB_F32, all };
	struct ebb_tensor out = { f->att, EBB_F32, 0 };
	int err;

	norm_kernel<<<rows, THREADS, 0, f->stream>>>(f->h, NULL, l->attn_norm, e, m->rms_eps, f->x);
	matmul(f, l->qkv, f->x, rows, e, all, f->qkv, 0);
	rope_kernel<<<rows, THREADS, 0, f->stream>>>(f->qkv, all, m->n_heads + m->n_kv_heads, m->head_dim, m->rope_dims / 2u,
						     f->cosine, f->sine);
	err = ebb_append(batch, i, &tk, &tv);
	if (!err)
		err = ebb_attend(batch, i, &tq, &out, m->attn_scale, NULL);
	if (err)
		return fail(f, err, "layer %u: storing or reading the KV cache failed: %s", i, strerror(-err));
	matmul(f, l->o, f->att, rows, q, e, f->h, 1);
	norm_kernel<<<rows, THREADS, 0, f->stream>>>(f->h, NULL, l->ffn_norm, e, m->rms_eps, f->x);
	matmul(f, l->gate_up, f->x, rows, e, 2u * m->n_ff, f->gate_up, 0);
	silu_kernel<<<dim3(rows, (m->n_ff + THREADS - 1u) / THREADS), THREADS, 0, f->stream>>>(f->gate_up, m->n_ff, f->act);
	matmul(f, l->down, f->act, rows, m->n_ff, e, f->h, 1);
	return check(f, cudaGetLastError(), "a layer");
}

/* The step's inputs through pinned memory. Waits for the step before the last at most. */
static int send_inputs(struct cuda *f, const struct forward_in *in)
{
	const struct model *m = f->model;
	size_t half = m->rope_dims / 2u, rows = in->rows;
	cudaError_t e = cudaEventSynchronize(f->sent);

	for (uint32_t r = 0; r < in->rows; r++)
		model_rope(m, (uint32_t)in->pos[r], f->p_cosine + r * half, f->p_sine + r * half);
	memcpy(f->p_token, in->token, rows * 4u);
	if (in->n_out)
		memcpy(f->p_out_row, in->out_row, (size_t)in->n_out * 4u);
	if (e == cudaSuccess)
		e = cudaMemcpyAsync(f->token, f->p_token, rows * 4u, cudaMemcpyHostToDevice, f->stream);
	if (e == cudaSuccess)
		e = cudaMemcpyAsync(f->cosine, f->p_cosine, rows * half * 4u, cudaMemcpyHostToDevice, f->stream);
	if (e == cudaSuccess)
		e = cudaMemcpyAsync(f->sine, f->p_sine, rows * half * 4u, cudaMemcpyHostToDevice, f->stream);
	if (e == cudaSuccess && in->n_out)
		e = cudaMemcpyAsync(f->out_row, f->p_out_row, (size_t)in->n_out * 4u, cudaMemcpyHostToDevice, f->stream);
	if (e == cudaSuccess)
		e = cudaEventRecord(f->sent, f->stream);
	return check(f, e, "sending a step's inputs");
}

static int cuda_forward_layers(struct forward *forward, struct ebb_batch *batch, const struct forward_in *in)
{
	struct cuda *f = (struct cuda *)forward;
	const struct model *m = f->model;
	int err;

	if (in->rows == 0 || in->rows > f->max_rows || in->n_out > f->max_out)
		return fail(f, -EINVAL, "a step of %u rows with %u outputs; %u and %u are possible", in->rows, in->n_out, f->max_rows,
			    f->max_out);
	for (uint32_t r = 0; r < in->rows; r++)
		if (in->token[r] < 0 || (uint32_t)in->token[r] >= m->n_vocab || in->pos[r] < 0)
			return fail(f, -EINVAL, "row %u: token %d at position %d does not exist", r, in->token[r], in->pos[r]);
	err = check(f, cudaSetDevice(f->ordinal), "a step");
	if (!err)
		err = send_inputs(f, in);
	if (err)
		return err;
	embed_kernel<<<in->rows, THREADS, 0, f->stream>>>(f->embd, f->token, m->n_embd, f->h);
	for (uint32_t i = 0; i < m->n_layers && !err; i++)
		err = one_layer(f, batch, i, in->rows);
	if (err)
		return err;
	if (in->n_out)
		norm_kernel<<<in->n_out, THREADS, 0, f->stream>>>(f->h, f->out_row, f->out_norm, m->n_embd, m->rms_eps, f->x);
	f->n_out = in->n_out;
	return check(f, cudaGetLastError(), "a step");
}

/* Logits of rows from .. from+n-1 of the wanted ones, and what the caller wants to know of them. */
static int output_slice(struct cuda *f, const struct forward_out *out, uint32_t from, uint32_t n)
{
	const struct model *m = f->model;
	size_t bytes = n * sizeof(struct result);
	int want = out->best || (out->target && out->logprob);
	cudaError_t e = cudaSuccess;

	for (uint32_t i = 0; i < n; i++)
		f->p_result[i].target = out->target ? out->target[from + i] : -1;
	matmul(f, f->output, f->x + (size_t)from * m->n_embd, n, m->n_embd, m->n_vocab, f->logits, 0);
	if (want) {
		e = cudaMemcpyAsync(f->result, f->p_result, bytes, cudaMemcpyHostToDevice, f->stream);
		result_kernel<<<n, THREADS, 0, f->stream>>>(f->logits, m->n_vocab, f->result);
		if (e == cudaSuccess)
			e = cudaMemcpyAsync(f->p_result, f->result, bytes, cudaMemcpyDeviceToHost, f->stream);
	}
	if (e == cudaSuccess && out->logits)
		e = cudaMemcpyAsync(out->logits + (size_t)from * m->n_vocab, f->logits, (size_t)n * m->n_vocab * sizeof(float),
				    cudaMemcpyDeviceToHost, f->stream);
	if (e == cudaSuccess)
		e = cudaGetLastError();
	if (e == cudaSuccess)
		e = cudaEventRecord(f->done, f->stream);
	if (e == cudaSuccess)
		e = cudaEventSynchronize(f->done);	/* sleeps: cores are short where several clients run */
	if (e != cudaSuccess)
		return check(f, e, "the vocabulary projection");
	for (uint32_t i = 0; i < n; i++) {
		if (out->best)
			out->best[from + i] = f->p_result[i].best;
		if (out->target && out->logprob)
			out->logprob[from + i] = f->p_result[i].logprob;
	}
	return 0;
}

static int cuda_forward_output(struct forward *forward, const struct forward_out *out)
{
	struct cuda *f = (struct cuda *)forward;
	int err = check(f, cudaSetDevice(f->ordinal), "a step");

	for (uint32_t from = 0, n; from < f->n_out && !err; from += n) {
		n = f->n_out - from < slice(f) ? f->n_out - from : slice(f);
		err = output_slice(f, out, from, n);
	}
	return err;
}

extern "C" const struct forward_ops forward_cuda_ops = {
	"cuda", cuda_forward_open, cuda_forward_close, cuda_forward_stream, cuda_forward_layers, cuda_forward_output,
};
