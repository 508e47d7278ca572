/*
 * The forward pass on CUDA with bf16 weights: matrix products by cuBLAS, all KV through libebb on the same stream, the layers of a
 * decode step as one CUDA graph.
 *
 * What goes into a product is bf16, its sums and what comes out are float32; the residual, q, k and v are float32. A step's inputs (tokens,
 * positions, wanted rows) are copied to fixed places; everything else is the same from step to step, so the layers of a step are captured when its
 * key (ebb_step_key()) is seen for the second time, and launched as a graph from then on. Steps of prompts seldom repeat and stay as they are.
 * Memory traffic of a decode step: every weight once (2 bytes), activations from the L2.
 * Determinism: cuBLAS gives the same bits for the same shapes; which kernel it takes depends on the number of rows.
 */
#include "examples/llama/forward.h"

#if __has_include(<cublas_v2.h>)
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/llama/bf16.cuh"
#include "examples/llama/blas.cuh"
#include "examples/llama/forward_kernels.cuh"

#define SLICE 256u		/* rows whose logits are on the device at once */
#define GRAPHS 64u
#define ROOM_FLOATS (4u << 20)	/* of weights on their way */

typedef __nv_bfloat16 bf16;

struct layer {
	float *attn_norm, *ffn_norm;
	bf16 *qkv, *o, *gate_up, *down;
};

struct graph {
	uint64_t key;
	uint32_t rows;
	cudaGraphExec_t exec;		/* NULL: seen once */
};

struct pass {
	struct forward base;
	const struct model *model;
	int ordinal;
	uint32_t max_rows, max_out, n_out;
	cudaStream_t stream;
	cudaEvent_t sent, done;		/* the last step's inputs have been read; its results are there */
	struct blas blas;
	char *memory;			/* one allocation: what is not said otherwise lies in it */
	bf16 *embd, *output;
	float *out_norm;
	struct layer *layer;		/* host array of device addresses */
	float *h, *qkv, *delta, *gate_up, *logits;
	bf16 *x, *att, *act;
	int32_t *in;			/* [3][max_rows]: token, position, wanted rows */
	struct result *result;
	float2 *angle;			/* [n_angles][rope_dims / 2], an allocation of its own */
	uint32_t n_angles;
	char *pinned;
	int32_t *p_in;
	struct result *p_result;
	struct graph graph[GRAPHS];
	uint32_t n_graphs;		/* ever; the oldest goes */
};

/* --- errors and memory ------------------------------------------------------------------------------------------------------------ */

__attribute__((format(printf, 3, 4)))
static int fail(struct pass *f, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(f->base.why, sizeof(f->base.why), format, args);
	va_end(args);
	return err;
}

static int check(struct pass *f, cudaError_t e, const char *doing)
{
	if (e == cudaSuccess)
		return 0;
	return fail(f, e == cudaErrorMemoryAllocation ? -ENOMEM : e == cudaErrorNoDevice || e == cudaErrorInvalidDevice ? -ENODEV : -EIO,
		    "%s on CUDA device %d failed: %s", doing, f->ordinal, cudaGetErrorString(e));
}

static void *carve(char *memory, size_t *at, size_t bytes)
{
	char *p = memory ? memory + *at : NULL;

	*at += (bytes + 255u) / 256u * 256u;
	return p;
}

static uint32_t qkv_outs(const struct model *m)
{
	return (m->n_heads + 2u * m->n_kv_heads) * m->head_dim;
}

static uint32_t slice(const struct pass *f)
{
	return f->max_out < SLICE ? f->max_out : SLICE;
}

/* Twice: without memory to learn how much is needed, then with it. */
static size_t lay_out(struct pass *f, char *to)
{
	const struct model *m = f->model;
	size_t rows = f->max_rows, at = 0, e = m->n_embd, q = (size_t)m->n_heads * m->head_dim;

	f->embd = (bf16 *)carve(to, &at, m->n_vocab * e * sizeof(bf16));
	f->output = m->output.data == m->embd.data ? f->embd : (bf16 *)carve(to, &at, m->n_vocab * e * sizeof(bf16));
	f->out_norm = (float *)carve(to, &at, e * sizeof(float));
	for (uint32_t i = 0; i < m->n_layers; i++) {
		struct layer *l = &f->layer[i];

		l->attn_norm = (float *)carve(to, &at, e * sizeof(float));
		l->ffn_norm = (float *)carve(to, &at, e * sizeof(float));
		l->qkv = (bf16 *)carve(to, &at, qkv_outs(m) * e * sizeof(bf16));
		l->o = (bf16 *)carve(to, &at, e * q * sizeof(bf16));
		l->gate_up = (bf16 *)carve(to, &at, 2u * m->n_ff * e * sizeof(bf16));
		l->down = (bf16 *)carve(to, &at, e * m->n_ff * sizeof(bf16));
	}
	f->h = (float *)carve(to, &at, rows * e * sizeof(float));
	f->x = (bf16 *)carve(to, &at, rows * e * sizeof(bf16));
	f->qkv = (float *)carve(to, &at, rows * qkv_outs(m) * sizeof(float));
	f->att = (bf16 *)carve(to, &at, rows * q * sizeof(bf16));
	f->delta = (float *)carve(to, &at, rows * e * sizeof(float));
	f->gate_up = (float *)carve(to, &at, rows * 2u * m->n_ff * sizeof(float));
	f->act = (bf16 *)carve(to, &at, rows * m->n_ff * sizeof(bf16));
	f->logits = (float *)carve(to, &at, (size_t)slice(f) * m->n_vocab * sizeof(float));
	f->result = (struct result *)carve(to, &at, slice(f) * sizeof(struct result));
	f->in = (int32_t *)carve(to, &at, 3u * rows * sizeof(int32_t));
	return at;
}

static size_t lay_out_pinned(struct pass *f, char *pinned)
{
	size_t at = 0;

	f->p_in = (int32_t *)carve(pinned, &at, 3u * (size_t)f->max_rows * sizeof(int32_t));
	f->p_result = (struct result *)carve(pinned, &at, slice(f) * sizeof(struct result));
	return at;
}

static __global__ void round_kernel(const float *from, size_t n, bf16 *to)
{
	for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
		to[i] = __float2bfloat16_rn(from[i]);
}

/* Rows of a weight, dequantised on the host as the CPU does it; rounded on the device, or (to32) kept. */
static cudaError_t upload(const struct tensor *w, bf16 *to, float *to32, float *room, float *staging)
{
	uint32_t batch = ROOM_FLOATS / w->cols;
	cudaError_t e = cudaSuccess;

	for (uint32_t r = 0; r < w->rows && e == cudaSuccess; r += batch) {
		uint32_t n = w->rows - r < batch ? w->rows - r : batch;
		size_t all = (size_t)n * w->cols;

		for (uint32_t i = 0; i < n; i++)
			tensor_row(w, r + i, room + (size_t)i * w->cols);
		e = cudaMemcpy(to32 ? to32 + (size_t)r * w->cols : staging, room, all * sizeof(float), cudaMemcpyHostToDevice);
		if (e == cudaSuccess && !to32) {
			round_kernel<<<1024, 256>>>(staging, all, to + (size_t)r * w->cols);
			e = cudaGetLastError();
		}
	}
	return e;
}

static cudaError_t upload_model(struct pass *f, float *room, float *staging)
{
	const struct model *m = f->model;
	cudaError_t e = upload(&m->embd, f->embd, NULL, room, staging);

	if (e == cudaSuccess && f->output != f->embd)
		e = upload(&m->output, f->output, NULL, room, staging);
	if (e == cudaSuccess)
		e = upload(&m->out_norm, NULL, f->out_norm, room, staging);
	for (uint32_t i = 0; i < m->n_layers && e == cudaSuccess; i++) {
		const struct model_layer *l = &m->layer[i];
		const struct layer *to = &f->layer[i];
		const struct {
			const struct tensor *w;
			bf16 *at;
			float *at32;
		} all[] = {
			{ &l->attn_norm, NULL, to->attn_norm }, { &l->q, to->qkv, NULL }, { &l->k, to->qkv + (size_t)l->q.rows * m->n_embd, NULL },
			{ &l->v, to->qkv + (size_t)(l->q.rows + l->k.rows) * m->n_embd, NULL }, { &l->o, to->o, NULL },
			{ &l->ffn_norm, NULL, to->ffn_norm }, { &l->gate, to->gate_up, NULL },
			{ &l->up, to->gate_up + (size_t)l->gate.rows * m->n_embd, NULL }, { &l->down, to->down, NULL },
		};

		for (size_t k = 0; k < sizeof(all) / sizeof(all[0]) && e == cudaSuccess; k++)
			e = upload(all[k].w, all[k].at, all[k].at32, room, staging);
	}
	return e == cudaSuccess ? cudaDeviceSynchronize() : e;
}

static void forget_graphs(struct pass *f)
{
	for (uint32_t i = 0; i < GRAPHS; i++)
		if (f->graph[i].exec)
			(void)cudaGraphExecDestroy(f->graph[i].exec);
	memset(f->graph, 0, sizeof(f->graph));
}

/* Angles of positions below n, at least. Graphs hold the address of the old ones. */
static int make_angles(struct pass *f, uint32_t n)
{
	uint32_t half = f->model->rope_dims / 2u, to = f->n_angles ? f->n_angles : 1024u;
	float *c = (float *)malloc(2u * half * sizeof(float));
	float2 *all, *at = NULL;
	cudaError_t e;

	while (to < n)
		to *= 2u;
	all = (float2 *)malloc((size_t)to * half * sizeof(*all));
	if (!all || !c) {
		free(all);
		free(c);
		return fail(f, -ENOMEM, "not enough memory for %u positions", to);
	}
	for (uint32_t p = 0; p < to; p++) {
		model_rope(f->model, p, c, c + half);
		for (uint32_t i = 0; i < half; i++)
			all[(size_t)p * half + i] = make_float2(c[i], c[half + i]);
	}
	e = cudaStreamSynchronize(f->stream);
	if (e == cudaSuccess)
		e = cudaMalloc((void **)&at, (size_t)to * half * sizeof(*all));
	if (e == cudaSuccess)
		e = cudaMemcpy(at, all, (size_t)to * half * sizeof(*all), cudaMemcpyHostToDevice);
	free(all);
	free(c);
	if (e == cudaSuccess) {
		forget_graphs(f);
		(void)cudaFree(f->angle);
		f->angle = at;
		f->n_angles = to;
	}
	return check(f, e, "positions");
}

static void pass_close(struct forward *forward)
{
	struct pass *f = (struct pass *)forward;

	if (!f)
		return;
	if (cudaSetDevice(f->ordinal) == cudaSuccess) {
		if (f->stream)
			(void)cudaStreamSynchronize(f->stream);
		forget_graphs(f);
		blas_close(&f->blas);
		if (f->sent)
			(void)cudaEventDestroy(f->sent);
		if (f->done)
			(void)cudaEventDestroy(f->done);
		if (f->stream)
			(void)cudaStreamDestroy(f->stream);
		(void)cudaFree(f->angle);
		(void)cudaFree(f->memory);
		(void)cudaFreeHost(f->pinned);
	}
	free(f->layer);
	free(f);
}

/* Everything on the device. f->layer is there. */
static int open_device(struct pass *f)
{
	size_t bytes = lay_out(f, NULL);
	cudaError_t e = cudaSetDevice(f->ordinal);
	float *room, *staging = NULL;
	int err;

	if (e == cudaSuccess)
		e = cudaStreamCreate(&f->stream);
	if (e == cudaSuccess)
		e = cudaEventCreateWithFlags(&f->sent, cudaEventDisableTiming | cudaEventBlockingSync);
	if (e == cudaSuccess)
		e = cudaEventCreateWithFlags(&f->done, cudaEventDisableTiming | cudaEventBlockingSync);
	if (e != cudaSuccess)
		return check(f, e, "opening it");
	err = blas_open(&f->blas, f->stream, f->base.why, sizeof(f->base.why));
	if (err)
		return err;
	e = cudaHostAlloc((void **)&f->pinned, lay_out_pinned(f, NULL), cudaHostAllocDefault);
	if (e == cudaSuccess)
		e = cudaMalloc((void **)&f->memory, bytes);
	if (e == cudaSuccess)
		e = cudaMalloc((void **)&staging, ROOM_FLOATS * sizeof(float));
	if (e != cudaSuccess)
		return check(f, e, "making room for the model");
	(void)lay_out(f, f->memory);
	(void)lay_out_pinned(f, f->pinned);
	room = (float *)malloc(ROOM_FLOATS * sizeof(float));
	err = room ? check(f, upload_model(f, room, staging), "loading the model") : fail(f, -ENOMEM, "not enough memory to load the model");
	free(room);
	(void)cudaFree(staging);
	return err ? err : make_angles(f, f->model->n_context < 65536u ? f->model->n_context : 65536u);
}

static int pass_open(const struct forward_options *options, struct forward **out)
{
	const struct model *m = options->model;
	struct pass *f = (struct pass *)calloc(1, sizeof(*f));
	int err = -ENOMEM;

	if (f)
		f->layer = (struct layer *)calloc(m->n_layers, sizeof(*f->layer));
	if (f && f->layer) {
		f->base.ops = &forward_bf16_ops;
		f->model = m;
		f->ordinal = options->ordinal;
		f->max_rows = options->max_rows;
		f->max_out = options->max_out ? options->max_out : 1u;
		if (m->n_embd % 8u || m->n_ff % 8u || m->head_dim % 8u || m->n_embd > 4u * BF16_NORM_VECS * BF16_THREADS)
			err = fail(f, -EINVAL, "bf16 weights need sizes that are multiples of 8, and an embedding of at most 8192");
		else
			err = open_device(f);
	}
	if (err) {
		(void)snprintf(options->why, options->why_bytes, "%s", f && f->base.why[0] ? f->base.why : "not enough memory");
		pass_close(f ? &f->base : NULL);
		return err;
	}
	*out = &f->base;
	return 0;
}

static void *pass_stream(struct forward *forward)
{
	return ((struct pass *)forward)->stream;
}

/* --- the layers ---------------------------------------------------------------------------------------------------- */

static int matmul(struct pass *f, const bf16 *w, const bf16 *x, uint32_t rows, uint32_t cols, uint32_t outs, float *y)
{
	cublasStatus_t s = blas_matmul(&f->blas, w, x, rows, cols, outs, y, CUDA_R_32F);

	return s == CUBLAS_STATUS_SUCCESS ? 0 : fail(f, -EIO, "cuBLAS: %s", f->blas.text(s));
}

static dim3 grid(uint32_t rows, uint32_t threads)
{
	return dim3(rows, (threads + BF16_THREADS - 1u) / BF16_THREADS);
}

static int one_layer(struct pass *f, struct ebb_batch *batch, uint32_t i, uint32_t rows)
{
	const struct model *m = f->model;
	const struct layer *l = &f->layer[i];
	uint32_t q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim, all = qkv_outs(m), e = m->n_embd, half = m->rope_dims / 2u;
	struct ebb_tensor tq = { f->qkv, EBB_F32, all }, tk = { f->qkv + q, EBB_F32, all }, tv = { f->qkv + q + kv, EBB_F32, all };
	struct ebb_tensor out = { f->att, EBB_BF16, 0 };
	int err;

	bf16_norm_kernel<float><<<rows, BF16_THREADS, 0, f->stream>>>(f->h, i ? f->delta : NULL, NULL, l->attn_norm, e, m->rms_eps, f->x);
	err = matmul(f, l->qkv, f->x, rows, e, all, f->qkv);
	bf16_rope_kernel<float><<<grid(rows, (m->n_heads + m->n_kv_heads) * half), BF16_THREADS, 0, f->stream>>>(
		f->qkv, all, m->n_heads + m->n_kv_heads, m->head_dim, half, f->angle, f->in + f->max_rows, NULL);
	if (!err) {
		err = ebb_append(batch, i, &tk, &tv);
		if (!err)
			err = ebb_attend(batch, i, &tq, &out, m->attn_scale, NULL);
		if (err)
			return fail(f, err, "layer %u: storing or reading the KV cache failed: %s", i, strerror(-err));
	}
	if (!err)
		err = matmul(f, l->o, f->att, rows, q, e, f->delta);
	bf16_norm_kernel<float><<<rows, BF16_THREADS, 0, f->stream>>>(f->h, f->delta, NULL, l->ffn_norm, e, m->rms_eps, f->x);
	if (!err)
		err = matmul(f, l->gate_up, f->x, rows, e, 2u * m->n_ff, f->gate_up);
	bf16_silu_kernel<float><<<grid(rows, m->n_ff / 2u), BF16_THREADS, 0, f->stream>>>(f->gate_up, m->n_ff, f->act);
	if (!err)
		err = matmul(f, l->down, f->act, rows, m->n_ff, e, f->delta);
	return err ? err : check(f, cudaGetLastError(), "a layer");
}

static int all_layers(struct pass *f, struct ebb_batch *batch, uint32_t rows)
{
	int err = 0;

	bf16_embed_kernel<<<rows, BF16_THREADS, 0, f->stream>>>(f->embd, f->in, NULL, f->model->n_embd, f->h);
	for (uint32_t i = 0; i < f->model->n_layers && !err; i++)
		err = one_layer(f, batch, i, rows);
	return err;
}

static int capture(struct pass *f, struct ebb_batch *batch, struct graph *g)
{
	cudaGraph_t graph = NULL;
	int err = check(f, cudaStreamBeginCapture(f->stream, cudaStreamCaptureModeThreadLocal), "capturing a step"), err2;

	if (err)
		return err;
	err = all_layers(f, batch, g->rows);
	err2 = check(f, cudaStreamEndCapture(f->stream, &graph), "capturing a step");
	if (!err)
		err = err2 ? err2 : check(f, cudaGraphInstantiate(&g->exec, graph, 0), "making a graph");
	if (graph)
		(void)cudaGraphDestroy(graph);
	return err;
}

/* The open step's layers: as they are the first time, then as a graph. */
static int run_layers(struct pass *f, struct ebb_batch *batch, uint64_t key, uint32_t rows)
{
	struct graph *g = NULL;
	int err = 0;

	for (uint32_t i = 0; i < GRAPHS && !g; i++)
		if (key && f->graph[i].key == key)
			g = &f->graph[i];
	if (!g) {
		g = &f->graph[f->n_graphs++ % GRAPHS];
		if (g->exec)
			(void)cudaGraphExecDestroy(g->exec);
		*g = (struct graph){ key, rows, NULL };
		return all_layers(f, batch, rows);
	}
	if (!g->exec)
		err = capture(f, batch, g);
	return err ? err : check(f, cudaGraphLaunch(g->exec, f->stream), "a step");
}

/* The step's inputs through pinned memory; rows beyond in->rows are nobody's. Waits for the step before the last at most. */
static int send_inputs(struct pass *f, const struct forward_in *in, uint32_t rows)
{
	size_t pitch = f->max_rows * sizeof(int32_t);
	cudaError_t e = cudaEventSynchronize(f->sent);
	int32_t *to = f->p_in;

	memcpy(to, in->token, in->rows * sizeof(*to));
	memcpy(to + f->max_rows, in->pos, in->rows * sizeof(*to));
	for (uint32_t r = in->rows; r < rows; r++)
		to[r] = to[f->max_rows + r] = 0;
	if (in->n_out)
		memcpy(to + 2u * f->max_rows, in->out_row, in->n_out * sizeof(*to));
	if (e == cudaSuccess)
		e = cudaMemcpy2DAsync(f->in, pitch, to, pitch, rows * sizeof(*to), 3, cudaMemcpyHostToDevice, f->stream);
	if (e == cudaSuccess)
		e = cudaEventRecord(f->sent, f->stream);
	return check(f, e, "sending a step's inputs");
}

static int pass_layers(struct forward *forward, struct ebb_batch *batch, const struct forward_in *in)
{
	struct pass *f = (struct pass *)forward;
	const struct model *m = f->model;
	uint32_t rows = in->rows, most = 0;
	uint64_t key = ebb_step_key(batch, &rows);
	int err;

	if (in->rows == 0 || rows < in->rows || rows > f->max_rows || in->n_out > in->rows)
		return fail(f, -EINVAL, "a step of %u rows with %u outputs; %u are possible", rows, in->n_out, f->max_rows);
	for (uint32_t r = 0; r < in->rows; r++) {
		if (in->token[r] < 0 || (uint32_t)in->token[r] >= m->n_vocab || in->pos[r] < 0)
			return fail(f, -EINVAL, "row %u: token %d at position %d does not exist", r, in->token[r], in->pos[r]);
		most = (uint32_t)in->pos[r] > most ? (uint32_t)in->pos[r] : most;
	}
	err = check(f, cudaSetDevice(f->ordinal), "a step");
	if (!err && most >= f->n_angles)
		err = make_angles(f, most + 1u);
	if (!err)
		err = send_inputs(f, in, rows);
	if (!err)
		err = run_layers(f, batch, key, rows);
	if (err)
		return err;
	if (in->n_out)
		bf16_norm_kernel<float><<<in->n_out, BF16_THREADS, 0, f->stream>>>(
			f->h, f->delta, (const uint32_t *)f->in + 2u * f->max_rows, f->out_norm, m->n_embd, m->rms_eps, f->x);
	f->n_out = in->n_out;
	return check(f, cudaGetLastError(), "a step");
}

/* Logits of rows from .. from+n-1 of the wanted ones, and what the caller wants to know of them. */
static int output_slice(struct pass *f, const struct forward_out *out, uint32_t from, uint32_t n)
{
	const struct model *m = f->model;
	size_t bytes = n * sizeof(struct result);
	int want = out->best || (out->target && out->logprob), err;
	cudaError_t e = cudaSuccess;

	for (uint32_t i = 0; i < n; i++)
		f->p_result[i].target = out->target ? out->target[from + i] : -1;
	err = matmul(f, f->output, f->x + (size_t)from * m->n_embd, n, m->n_embd, m->n_vocab, f->logits);
	if (err)
		return err;
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

static int pass_output(struct forward *forward, const struct forward_out *out)
{
	struct pass *f = (struct pass *)forward;
	int err = check(f, cudaSetDevice(f->ordinal), "a step");

	for (uint32_t from = 0, n; from < f->n_out && !err; from += n) {
		n = f->n_out - from < slice(f) ? f->n_out - from : slice(f);
		err = output_slice(f, out, from, n);
	}
	return err;
}

extern "C" const struct forward_ops forward_bf16_ops = {
	"cuda, bf16 weights", pass_open, pass_close, pass_stream, pass_layers, pass_output,
};
#endif
