/*
 * A client of ebb-bench-serve: a model of a given shape, random bf16 weights, cuBLAS, and as many sessions as it is told or as fit.
 *
 * The sessions' first tokens are not computed: random K and V rows are appended through the ordinary calls, in chunks as large as the
 * daemon grants. Then all sessions decode, greedily, a token each a step. Nothing on the device waits for the host: tokens and positions
 * stay there, and the host sees the tokens of a step while the next one runs, as a server does.
 *
 * Deterministic: what is random depends on (session, position, channel) and on nothing else, so with the same caches two runs give the
 * same bits.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "examples/llama/bf16.cuh"
#include "examples/llama/blas.cuh"
#include "examples/serve/model.cuh"
#include "examples/serve/serve.h"
#include "libclient/ebb.h"

#define WINDOW 32u
#define SHIFT 8u		/* elements by which a layer's random rows differ from the last layer's: 16 bytes */
#define MAX_GRAPHS 64u
#define PREFILL_ROWS 1024u	/* of a step of prompts, or a window of every session: attend's scratch grows with them */

struct layer {
	bf16 *qkv, *o, *gate_up, *down;
};

struct graph {
	uint64_t key;
	uint32_t rows;
	cudaGraphExec_t layers, output;
};

struct worker {
	const struct serve_config *c;
	struct serve_result *out;
	struct serve_model m;
	cudaStream_t stream;
	struct blas blas;
	struct ebb *ebb;
	struct ebb_session **session;
	struct ebb_batch *fill, *batch;	/* for prompts, and for decoding */
	uint32_t n_sessions, max_rows, fill_rows;
	struct layer *layer;
	bf16 *embd, *output;
	float *ones;			/* norm weights */
	float2 *angle;
	float *h;
	bf16 *x, *qkv, *att, *delta, *gate_up, *act, *logits;
	int32_t *token, *pos;		/* [sessions + 1]: the last is nobody's */
	uint32_t *slot;			/* [rows] */
	unsigned long long *hash;
	uint32_t *n, *h_slot;		/* host: tokens of a step by session; pinned twin of slot, twice */
	int32_t *h_token;		/* pinned, twice: what a step has chosen */
	bf16 *fill_k, *fill_v;
	uint2 *fill_of, *h_fill_of;	/* {session, position} of the rows of a step of prompts */
	struct graph graph[MAX_GRAPHS];
	uint32_t n_graphs;
	cudaEvent_t done[2];		/* of the last two steps */
	uint64_t steps;
	double ebb_s;
};

/* --- help ---------------------------------------------------------------------------------------------------------------------- */

static int fail(const char *what, const char *why)
{
	fprintf(stderr, "ebb-bench-serve: %s: %s\n", what, why);
	return 1;
}

static int cu(cudaError_t e, const char *what)
{
	return e == cudaSuccess ? 0 : fail(what, cudaGetErrorString(e));
}


static int matmul(struct worker *w, const bf16 *m, const bf16 *x, uint32_t rows, uint32_t cols, uint32_t outs, bf16 *y)
{
	cublasStatus_t s = blas_matmul(&w->blas, m, x, rows, cols, outs, y, CUDA_R_16BF);

	return s == CUBLAS_STATUS_SUCCESS ? 0 : fail("cuBLAS", w->blas.text(s));
}

static double seconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void progress(const char *what, double part, double since)
{
	static double last;
	double now = seconds(CLOCK_MONOTONIC), gone = now - since;

	if (now - last < 1.0 || part <= 0.0)
		return;
	last = now;
	fprintf(stderr, "ebb-bench-serve: %s %.0f %%, %.0f s left\n", what, 100.0 * part, gone / part - gone);
}

/* --- the model ------------------------------------------------------------------------------------------------------------------ */

static int random_matrix(struct worker *w, bf16 **to, size_t outs, size_t cols, uint64_t seed)
{
	cudaError_t e = cudaMalloc((void **)to, outs * cols * sizeof(bf16));

	if (e == cudaSuccess)
		random_kernel<<<2048, 256, 0, w->stream>>>(*to, outs * cols / 2, seed << 40, sqrtf(3.0f / (float)cols));
	return cu(e == cudaSuccess ? cudaGetLastError() : e, "weights");
}

static uint32_t qkv_outs(const struct serve_model *m)
{
	return (m->heads + 2u * m->kv_heads) * m->head_dim;
}

static int make_model(struct worker *w)
{
	const struct serve_model *m = &w->m;
	size_t q = (size_t)m->heads * m->head_dim;
	int bad = random_matrix(w, &w->embd, m->vocab, m->hidden, 1) || random_matrix(w, &w->output, m->vocab, m->hidden, 2);

	w->layer = (struct layer *)calloc(m->layers, sizeof(*w->layer));
	for (uint32_t i = 0; i < m->layers && !bad; i++) {
		struct layer *l = &w->layer[i];

		bad = random_matrix(w, &l->qkv, qkv_outs(m), m->hidden, 4 * i + 4) || random_matrix(w, &l->o, m->hidden, q, 4 * i + 5) ||
		      random_matrix(w, &l->gate_up, 2u * (size_t)m->ffn, m->hidden, 4 * i + 6) ||
		      random_matrix(w, &l->down, m->hidden, m->ffn, 4 * i + 7);
	}
	if (bad)
		return 1;
	bad = cu(cudaMalloc((void **)&w->ones, m->hidden * sizeof(float)), "weights") ||
	      cu(cudaMalloc((void **)&w->angle, ((size_t)w->c->length + 1) * (m->head_dim / 2u) * sizeof(float2)), "angles");
	if (bad)
		return 1;
	ones_kernel<<<1, 256, 0, w->stream>>>(w->ones, m->hidden);
	angle_kernel<<<w->c->length + 1u, m->head_dim / 2u, 0, w->stream>>>(w->angle, m->head_dim / 2u, 500000.0f);
	return cu(cudaGetLastError(), "weights");
}

static int room(void **to, size_t bytes)
{
	if (cu(cudaMalloc(to, bytes), "activations"))
		return 1;
	return cu(cudaMemset(*to, 0, bytes), "activations");
}

static int make_room(struct worker *w)
{
	const struct serve_model *m = &w->m;
	size_t rows = w->max_rows, stride = (size_t)m->kv_heads * m->head_dim + SHIFT * m->layers;

	w->fill_rows = w->n_sessions * WINDOW > PREFILL_ROWS ? w->n_sessions * WINDOW : PREFILL_ROWS;
	w->fill_rows = w->c->fill && w->c->fill < w->fill_rows ? w->c->fill : w->fill_rows;
	return room((void **)&w->h, rows * m->hidden * sizeof(float)) || room((void **)&w->x, rows * m->hidden * sizeof(bf16)) ||
	       room((void **)&w->qkv, rows * qkv_outs(m) * sizeof(bf16)) ||
	       room((void **)&w->att, rows * m->heads * m->head_dim * sizeof(bf16)) ||
	       room((void **)&w->delta, rows * m->hidden * sizeof(bf16)) || room((void **)&w->gate_up, rows * 2u * m->ffn * sizeof(bf16)) ||
	       room((void **)&w->act, rows * m->ffn * sizeof(bf16)) || room((void **)&w->logits, rows * m->vocab * sizeof(bf16)) ||
	       room((void **)&w->token, (w->n_sessions + 1u) * sizeof(int32_t)) ||
	       room((void **)&w->pos, (w->n_sessions + 1u) * sizeof(int32_t)) ||
	       room((void **)&w->slot, rows * sizeof(uint32_t)) || room((void **)&w->hash, sizeof(*w->hash)) ||
	       room((void **)&w->fill_k, w->fill_rows * stride * sizeof(bf16)) ||
	       room((void **)&w->fill_v, w->fill_rows * stride * sizeof(bf16)) ||
	       room((void **)&w->fill_of, w->fill_rows * sizeof(uint2)) ||
	       cu(cudaHostAlloc((void **)&w->h_fill_of, w->fill_rows * sizeof(uint2), 0), "pinned memory") ||
	       cu(cudaHostAlloc((void **)&w->h_slot, 2 * rows * sizeof(uint32_t), 0), "pinned memory") ||
	       cu(cudaHostAlloc((void **)&w->h_token, 2 * (w->n_sessions + 1u) * sizeof(int32_t), 0), "pinned memory") ||
	       cu(cudaStreamSynchronize(0), "activations");
}

/* --- a step --------------------------------------------------------------------------------------------------------------------- */

static dim3 grid(uint32_t rows, uint32_t threads)
{
	return dim3(rows, (threads + BF16_THREADS - 1u) / BF16_THREADS);
}

static int one_layer(struct worker *w, uint32_t i, uint32_t rows)
{
	const struct serve_model *m = &w->m;
	const struct layer *l = &w->layer[i];
	uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim, all = qkv_outs(m), half = m->head_dim / 2u;
	struct ebb_tensor tq = { w->qkv, EBB_BF16, all }, tk = { w->qkv + q, EBB_BF16, all }, tv = { w->qkv + q + kv, EBB_BF16, all };
	struct ebb_tensor to = { w->att, EBB_BF16, 0 };
	int bad;

	bf16_norm_kernel<bf16><<<rows, BF16_THREADS, 0, w->stream>>>(w->h, i ? w->delta : NULL, NULL, w->ones, m->hidden, 1e-5f, w->x);
	bad = matmul(w, l->qkv, w->x, rows, m->hidden, all, w->qkv);
	bf16_rope_kernel<bf16><<<grid(rows, (m->heads + m->kv_heads) * half), BF16_THREADS, 0, w->stream>>>(
		w->qkv, all, m->heads + m->kv_heads, m->head_dim, half, w->angle, w->pos, w->slot);
	if (!bad && ebb_append(w->batch, i, &tk, &tv))
		bad = fail("append", ebb_error(w->ebb));
	if (!bad && ebb_attend(w->batch, i, &tq, &to, 1.0f / sqrtf((float)m->head_dim), NULL))
		bad = fail("attend", ebb_error(w->ebb));
	bad = bad || matmul(w, l->o, w->att, rows, q, m->hidden, w->delta);
	bf16_norm_kernel<bf16><<<rows, BF16_THREADS, 0, w->stream>>>(w->h, w->delta, NULL, w->ones, m->hidden, 1e-5f, w->x);
	bad = bad || matmul(w, l->gate_up, w->x, rows, m->hidden, 2u * m->ffn, w->gate_up);
	bf16_silu_kernel<bf16><<<grid(rows, m->ffn / 2u), BF16_THREADS, 0, w->stream>>>(w->gate_up, m->ffn, w->act);
	bad = bad || matmul(w, l->down, w->act, rows, m->ffn, m->hidden, w->delta);
	return bad || cu(cudaGetLastError(), "a layer");
}

static int all_layers(struct worker *w, uint32_t rows)
{
	int bad = 0;

	bf16_embed_kernel<<<rows, BF16_THREADS, 0, w->stream>>>(w->embd, w->token, w->slot, w->m.hidden, w->h);
	for (uint32_t i = 0; i < w->m.layers && !bad; i++)
		bad = one_layer(w, i, rows);
	return bad;
}

static int vocabulary(struct worker *w, uint32_t rows)
{
	const struct serve_model *m = &w->m;

	bf16_norm_kernel<bf16><<<rows, BF16_THREADS, 0, w->stream>>>(w->h, w->delta, NULL, w->ones, m->hidden, 1e-5f, w->x);
	if (matmul(w, w->output, w->x, rows, m->hidden, m->vocab, w->logits))
		return 1;
	if (w->c->check)
		hash_kernel<<<rows, BF16_THREADS, 0, w->stream>>>(w->logits, m->vocab, w->slot, w->pos, w->n_sessions, w->hash);
	choose_kernel<<<rows, 1024, 0, w->stream>>>(w->logits, m->vocab, w->slot, w->n_sessions, w->token, w->pos);
	return cu(cudaGetLastError(), "logits");
}

typedef int (*part)(struct worker *w, uint32_t rows);

static int capture(struct worker *w, part enqueue, uint32_t rows, cudaGraphExec_t *out)
{
	cudaGraph_t graph;
	int bad = cu(cudaStreamBeginCapture(w->stream, cudaStreamCaptureModeThreadLocal), "capture") || enqueue(w, rows);

	if (cu(cudaStreamEndCapture(w->stream, &graph), "capture") || bad)
		return 1;
	bad = cu(cudaGraphInstantiate(out, graph, 0), "making a graph");
	(void)cudaGraphDestroy(graph);
	return bad;
}

/* The graph of the open step; made where there is none yet. The oldest goes when there are too many. */
static int find_graph(struct worker *w, uint64_t key, uint32_t rows, struct graph **out)
{
	struct graph *g;

	for (uint32_t i = 0; i < w->n_graphs && i < MAX_GRAPHS; i++) {
		*out = &w->graph[i];
		if (w->graph[i].key == key)
			return 0;
	}
	*out = g = &w->graph[w->n_graphs % MAX_GRAPHS];
	if (w->n_graphs >= MAX_GRAPHS) {
		(void)cudaGraphExecDestroy(g->layers);
		(void)cudaGraphExecDestroy(g->output);
	}
	*g = (struct graph){ key, rows, NULL, NULL };
	w->n_graphs++;
	return capture(w, all_layers, rows, &g->layers) || capture(w, vocabulary, rows, &g->output);
}

/* Who decodes in this step, and which row is whose. Rows beyond are nobody's. */
static int assign(struct worker *w, uint32_t rows, unsigned turn)
{
	uint32_t *to = w->h_slot + turn * w->max_rows, r = 0;

	for (uint32_t i = 0; i < w->n_sessions; i++)
		if (w->n[i])
			to[r++] = i;
	while (r < rows)
		to[r++] = w->n_sessions;
	return cu(cudaMemcpyAsync(w->slot, to, rows * sizeof(*to), cudaMemcpyHostToDevice, w->stream), "a step");
}

static int decode_step(struct worker *w)
{
	unsigned turn = w->steps % 2;
	uint32_t rows = 0, live = 0;
	struct graph *g = NULL;
	uint64_t key;
	double t0 = seconds(CLOCK_THREAD_CPUTIME_ID);

	for (uint32_t i = 0; i < w->n_sessions; i++) {
		w->n[i] = !(w->c->ragged && w->n_sessions > 2 && (w->steps + i) % 7 == 3);
		live += w->n[i];
	}
	if (ebb_step_begin(w->batch, w->n, 60000))
		return fail("beginning a step", ebb_error(w->ebb));
	key = ebb_step_key(w->batch, &rows);
	w->ebb_s += seconds(CLOCK_THREAD_CPUTIME_ID) - t0;
	if ((w->c->ragged || !w->steps) && assign(w, rows, turn))
		return 1;
	if (w->c->graph && find_graph(w, key, rows, &g))
		return 1;
	if (g ? cu(cudaGraphLaunch(g->layers, w->stream), "a step") : all_layers(w, rows))
		return 1;
	t0 = seconds(CLOCK_THREAD_CPUTIME_ID);
	if (ebb_step_end(w->batch))	/* before the vocabulary, so that the daemon decides meanwhile */
		return fail("ending a step", ebb_error(w->ebb));
	w->ebb_s += seconds(CLOCK_THREAD_CPUTIME_ID) - t0;
	if (g ? cu(cudaGraphLaunch(g->output, w->stream), "a step") : vocabulary(w, rows))
		return 1;
	if (cu(cudaMemcpyAsync(w->h_token + turn * (w->n_sessions + 1u), w->token, w->n_sessions * sizeof(int32_t), cudaMemcpyDeviceToHost,
			       w->stream), "tokens") || cu(cudaEventRecord(w->done[turn], w->stream), "a step"))
		return 1;
	w->steps++;
	return w->steps > 1 && cu(cudaEventSynchronize(w->done[!turn]), "a step");
}

/* --- sessions -------------------------------------------------------------------------------------------------------------------- */

/* What ebb_local() takes for a session: blocks of 256 tokens, and the table. */
static uint64_t local_bytes(const struct serve_config *c)
{
	uint64_t lanes = (uint64_t)c->model.layers * c->model.kv_heads, blocks = (c->length + 255u) / 256u;

	return lanes * blocks * (16u * 64u * (uint64_t)c->model.head_dim + 1024u) + lanes * (12u + blocks * 17u * 4u);
}

static int open_sessions(struct worker *w)
{
	const struct serve_config *c = w->c;
	struct ebb_session_options o = {};
	uint32_t most = c->sessions ? c->sessions : 1000u;
	uint64_t fit = c->socket ? most : c->bytes / local_bytes(c);
	double since = seconds(CLOCK_MONOTONIC);
	int rc = 0;

	o.n_layers = c->model.layers;
	o.n_kv_heads = c->model.kv_heads;
	o.group = c->model.heads / c->model.kv_heads;
	o.head_dim = c->model.head_dim;
	o.max_tokens = c->length;
	o.prompt_tokens = c->length - c->decode;
	o.settings = c->settings;
	w->session = (struct ebb_session **)calloc(most, sizeof(*w->session));
	w->n = (uint32_t *)calloc(most, sizeof(*w->n));
	if (!w->session || !w->n)
		return fail("sessions", "out of memory");
	while (w->n_sessions < most && w->n_sessions < fit && !rc) {
		rc = ebb_session_open(w->ebb, &o, &w->session[w->n_sessions]);
		w->n_sessions += rc == 0;
		progress("opening sessions", c->sessions ? (double)w->n_sessions / most : 0.0, since);
	}
	if ((rc && rc != -ENOSPC) || !w->n_sessions)
		return fail("opening a session", rc ? ebb_error(w->ebb) : "not even one fits");
	w->max_rows = c->pad ? (w->n_sessions + c->pad - 1u) / c->pad * c->pad : w->n_sessions;
	w->out->sessions = w->n_sessions;
	w->out->open_s = seconds(CLOCK_MONOTONIC) - since;
	return 0;
}

static int make_batch(struct worker *w, uint32_t sessions, uint32_t rows, uint32_t pad, struct ebb_batch **out)
{
	struct ebb_batch_options o = {};

	o.stream = w->stream;
	o.max_sessions = sessions;
	o.max_rows = rows;
	o.pad_sessions = pad;
	return ebb_batch_new(w->ebb, &o, out) ? fail("a batch", ebb_error(w->ebb)) : 0;
}

/* The next chunk of every session's prompt. *left: tokens that are still to come. */
static int fill_step(struct worker *w, uint32_t prompt, uint64_t *left)
{
	const struct serve_model *m = &w->m;
	uint32_t stride = m->kv_heads * m->head_dim + SHIFT * m->layers, share = w->fill_rows / w->n_sessions, rows = 0;
	uint32_t room = w->fill_rows;

	share = share > WINDOW ? share : WINDOW;
	*left = 0;
	for (uint32_t i = 0; i < w->n_sessions; i++) {
		uint32_t rest = prompt - ebb_session_tokens(w->session[i]), most = share < room ? share : room;

		w->n[i] = rest < most ? rest : most;
		room -= w->n[i];
		*left += rest;
	}
	if (!*left)
		return 0;
	if (ebb_step_begin(w->fill, w->n, 60000))
		return fail("beginning a step of prompts", ebb_error(w->ebb));
	if (cu(cudaStreamSynchronize(w->stream), "a step of prompts"))	/* h_fill_of is read until then */
		return 1;
	for (uint32_t i = 0; i < w->n_sessions; i++)
		for (uint32_t j = 0, at = ebb_session_tokens(w->session[i]) - w->n[i]; j < w->n[i]; j++)
			w->h_fill_of[rows++] = make_uint2(i, at + j);
	if (cu(cudaMemcpyAsync(w->fill_of, w->h_fill_of, rows * sizeof(uint2), cudaMemcpyHostToDevice, w->stream), "a step of prompts"))
		return 1;
	fill_kernel<<<rows, BF16_THREADS, 0, w->stream>>>(w->fill_of, stride, w->fill_k, w->fill_v);
	for (uint32_t i = 0; i < m->layers; i++) {
		struct ebb_tensor k = { w->fill_k + SHIFT * i, EBB_BF16, stride }, v = { w->fill_v + SHIFT * i, EBB_BF16, stride };

		if (ebb_append(w->fill, i, &k, &v))
			return fail("append", ebb_error(w->ebb));
	}
	if (ebb_step_end(w->fill))
		return fail("ending a step of prompts", ebb_error(w->ebb));
	return cu(cudaGetLastError(), "a step of prompts");
}

static int fill(struct worker *w)
{
	uint32_t prompt = w->c->length - w->c->decode;
	uint64_t all = (uint64_t)prompt * w->n_sessions, left = all;
	double since = seconds(CLOCK_MONOTONIC);

	for (uint32_t i = 0; i < w->n_sessions; i++)
		if (ebb_batch_join(w->fill, w->session[i]))
			return fail("a batch", ebb_error(w->ebb));
	while (left) {
		if (fill_step(w, prompt, &left))
			return 1;
		progress("appending random prompts", 1.0 - (double)left / (double)all, since);
	}
	for (uint32_t i = 0; i < w->n_sessions; i++)
		if (ebb_batch_leave(w->fill, w->session[i]) || ebb_batch_join(w->batch, w->session[i]))
			return fail("a batch", ebb_error(w->ebb));
	ebb_batch_free(w->fill);
	for (uint32_t i = 0; i < w->n_sessions; i++) {
		w->h_token[i] = (int32_t)(i * 7919u % w->m.vocab);
		w->h_slot[i] = prompt;
	}
	if (cu(cudaMemcpyAsync(w->token, w->h_token, w->n_sessions * sizeof(int32_t), cudaMemcpyHostToDevice, w->stream), "tokens") ||
	    cu(cudaMemcpyAsync(w->pos, w->h_slot, w->n_sessions * sizeof(int32_t), cudaMemcpyHostToDevice, w->stream), "positions") ||
	    cu(cudaStreamSynchronize(w->stream), "prompts"))
		return 1;
	w->out->prefill_s = seconds(CLOCK_MONOTONIC) - since;
	return 0;
}

/* --- measuring ------------------------------------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

/* ms[i]: the time of window i. */
static void sum_up(struct serve_result *r, float *ms, uint32_t n)
{
	double all = 0.0;

	r->n_series = n < SERVE_SERIES ? n : SERVE_SERIES;
	for (uint32_t i = 0; i < r->n_series; i++) {
		uint32_t from = (uint32_t)((uint64_t)i * n / r->n_series), to = (uint32_t)((uint64_t)(i + 1) * n / r->n_series);
		double sum = 0.0;

		for (uint32_t k = from; k < to; k++)
			sum += ms[k];
		r->series_ms[i] = sum / ((to - from) * WINDOW);
		all += sum;
	}
	qsort(ms, n, sizeof(*ms), ascending);
	r->window_ms = ms[n / 2];
	r->seconds = all * 1e-3;
}

static int measure(struct worker *w)
{
	uint32_t n = (w->c->decode - w->c->warm) / WINDOW;
	cudaEvent_t *at = (cudaEvent_t *)calloc(n + 1u, sizeof(*at));
	float *ms = (float *)calloc(n, sizeof(*ms));
	double since = seconds(CLOCK_MONOTONIC), cpu = 0.0;
	int bad = !at || !ms || !n;

	for (uint32_t i = 0; i <= n && !bad; i++)
		bad = cu(cudaEventCreateWithFlags(&at[i], cudaEventBlockingSync), "an event");
	for (uint32_t i = 0; i < w->c->warm && !bad; i++)
		bad = decode_step(w);
	w->ebb_s = 0.0;
	cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
	for (uint32_t i = 0; i < n && !bad; i++) {
		bad = cu(cudaEventRecord(at[i], w->stream), "an event");
		for (uint32_t k = 0; k < WINDOW && !bad; k++)
			bad = decode_step(w);
		progress("decoding", (double)(i + 1) / n, since);
	}
	bad = bad || cu(cudaEventRecord(at[n], w->stream), "an event") || cu(cudaEventSynchronize(at[n]), "decoding");
	w->out->steps = n * WINDOW;
	w->out->cpu_us = (seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) * 1e6 / w->out->steps;
	w->out->ebb_us = w->ebb_s * 1e6 / w->out->steps;
	for (uint32_t i = 0; i < n && !bad; i++)
		bad = cu(cudaEventElapsedTime(&ms[i], at[i], at[i + 1]), "an event");
	if (!bad)
		sum_up(w->out, ms, n);
	w->out->graphs = w->n_graphs;
	bad = bad || cu(cudaMemcpy(&w->out->hash, w->hash, sizeof(w->out->hash), cudaMemcpyDeviceToHost), "hash");
	free(at);
	free(ms);
	return bad;
}

static int connect(struct worker *w)
{
	char why[512] = "", device[32];
	struct ebb_options o = {};
	int rc;

	o.socket = w->c->socket;
	o.name = "ebb-bench-serve";
	o.why = why;
	o.why_bytes = sizeof(why);
	o.device = device;
	snprintf(device, sizeof(device), "cuda:%d", w->c->ordinal);
	rc = w->c->socket ? ebb_connect(&w->ebb, &o) : ebb_local(&w->ebb, &o);
	return rc ? fail(w->c->socket ? w->c->socket : device, *why ? why : strerror(-rc)) : 0;
}

static int prepare(struct worker *w)
{
	const struct serve_model *m = &w->c->model;

	if (m->hidden % 8u || m->hidden > 4u * BF16_NORM_VECS * BF16_THREADS || m->ffn % 8u || m->vocab % 8u || m->heads % m->kv_heads)
		return fail("the model's shape", "sizes must be multiples of 8, hidden at most 8192");
	char why[256] = "";

	return cu(cudaSetDevice(w->c->ordinal), "the device") ||
	       cu(cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking), "a stream") ||
	       cu(cudaEventCreateWithFlags(&w->done[0], cudaEventBlockingSync | cudaEventDisableTiming), "an event") ||
	       cu(cudaEventCreateWithFlags(&w->done[1], cudaEventBlockingSync | cudaEventDisableTiming), "an event") ||
	       (blas_open(&w->blas, w->stream, why, sizeof(why)) ? fail("cuBLAS", why) : 0) || make_model(w);
}

/* READY, and the line that says go. */
static int gate(const struct worker *w)
{
	char line[16];

	if (!w->c->gate)
		return 0;
	printf("ready %u\n", w->n_sessions);
	fflush(stdout);
	return fgets(line, sizeof(line), stdin) ? 0 : 1;
}

int serve_work(const struct serve_config *config, struct serve_result *out)
{
	struct worker w = {};
	int bad;

	memset(out, 0, sizeof(*out));
	w.c = config;
	w.out = out;
	w.m = config->model;
	bad = prepare(&w) || connect(&w) || open_sessions(&w) || make_room(&w) || make_batch(&w, w.n_sessions, w.fill_rows, 0, &w.fill) ||
	      make_batch(&w, w.max_rows, w.max_rows, config->pad, &w.batch) || fill(&w) || gate(&w) || measure(&w);
	ebb_close(w.ebb);	/* the rest goes with the process */
	return bad;
}
