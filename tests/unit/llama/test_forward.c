/*
 * A tiny random model through forward_cpu.c and ebb_local(), against the same model written down plainly in float64; and that
 * neither chunks nor batches nor threads change one bit. Also what model.c refuses.
 */
#include "image.h"

#include <errno.h>
#include <math.h>

#include "examples/llama/forward.h"
#include "examples/llama/gguf.h"

enum { LAYERS = 2, HEADS = 3, KV_HEADS = 1, DIM = 64, EMBD = 96, FF = 72, VOCAB = 50, TOKENS = 24 };

static char why[512];

/* --- the model -------------------------------------------------------------------------------------------- */

struct part {
	const char *name;
	uint32_t cols, rows;
};

static const struct part parts[] = {
	{ "attn_norm", EMBD, 0 }, { "attn_q", EMBD, HEADS * DIM }, { "attn_k", EMBD, KV_HEADS * DIM }, { "attn_v", EMBD, KV_HEADS * DIM },
	{ "attn_output", HEADS * DIM, EMBD }, { "ffn_norm", EMBD, 0 }, { "ffn_gate", EMBD, FF }, { "ffn_up", EMBD, FF },
	{ "ffn_down", FF, EMBD },
};
#define N_PARTS (sizeof(parts) / sizeof(parts[0]))

/* @skip: a tensor to leave out; @wide: one whose width is wrong. Either may be NULL. */
static struct image model_image(const char *arch, const char *skip_part, const char *wide)
{
	uint32_t seed = 11, n = 2 + LAYERS * N_PARTS - (skip_part ? LAYERS : 0);
	struct image im = { 0 };
	size_t floats;
	char name[64];

	image_head(&im, 3, n, 10);
	image_key_text(&im, "general.architecture", arch);
	image_key_u32(&im, "llama.block_count", LAYERS);
	image_key_u32(&im, "llama.context_length", 128);
	image_key_u32(&im, "llama.embedding_length", EMBD);
	image_key_u32(&im, "llama.feed_forward_length", FF);
	image_key_u32(&im, "llama.attention.head_count", HEADS);
	image_key_u32(&im, "llama.attention.head_count_kv", KV_HEADS);
	image_key_u32(&im, "llama.attention.key_length", DIM);
	image_key_u32(&im, "llama.rope.dimension_count", DIM);
	image_key_f32(&im, "llama.rope.freq_base", 1000.0f);
	image_tensor(&im, "token_embd.weight", EMBD, VOCAB);
	image_tensor(&im, "output_norm.weight", EMBD, 0);
	for (int l = 0; l < LAYERS; l++) {
		for (size_t i = 0; i < N_PARTS; i++) {
			if (skip_part && strcmp(skip_part, parts[i].name) == 0)
				continue;
			snprintf(name, sizeof(name), "blk.%d.%s.weight", l, parts[i].name);
			image_tensor(&im, name, parts[i].cols + (wide && strcmp(wide, parts[i].name) == 0 ? 8 : 0), parts[i].rows);
		}
	}
	image_align(&im);
	floats = im.data / 4;
	for (size_t i = 0; i < floats; i++) {
		float f = 0.25f * image_random_float(&seed);

		image_put(&im, &f, 4);
	}
	return im;
}

struct fixture {
	struct image im;
	struct gguf *file;
	struct model *model;
};

static void set_up_model(struct fixture *x)
{
	/* An aligned copy: norms are read in place. */
	void *aligned;

	x->im = model_image("llama", NULL, NULL);
	aligned = aligned_alloc(64, (x->im.n + 63) / 64 * 64);
	assert_non_null(aligned);
	memcpy(aligned, x->im.bytes, x->im.n);
	free(x->im.bytes);
	x->im.bytes = aligned;
	assert_int_equal(gguf_parse(x->im.bytes, x->im.n, "test", &x->file, why, sizeof(why)), 0);
	if (model_new(x->file, &x->model, why, sizeof(why)))
		fail_msg("%s", why);
}

static void tear_down_model(struct fixture *x)
{
	model_free(x->model);
	gguf_close(x->file);
	free(x->im.bytes);
}

/* --- the same, in float64 --------------------------------------------------------------------------------- */

static void mat(const struct tensor *w, const double *x, double *y)
{
	const float *p = w->data;

	for (uint32_t j = 0; j < w->rows; j++) {
		y[j] = 0.0;
		for (uint32_t i = 0; i < w->cols; i++)
			y[j] += (double)p[(size_t)j * w->cols + i] * x[i];
	}
}

static void norm64(const double *x, const struct tensor *w, double *y)
{
	double sum = 0.0;

	for (int i = 0; i < EMBD; i++)
		sum += x[i] * x[i];
	for (int i = 0; i < EMBD; i++)
		y[i] = x[i] / sqrt(sum / EMBD + (double)1e-5f) * (double)((const float *)w->data)[i];
}

static void turn64(double *head, int pos)
{
	for (int i = 0; i < DIM / 2; i++) {
		double angle = pos * pow(1000.0, -2.0 * i / DIM), a = head[2 * i], b = head[2 * i + 1];

		head[2 * i] = a * cos(angle) - b * sin(angle);
		head[2 * i + 1] = a * sin(angle) + b * cos(angle);
	}
}

static double keys[LAYERS][TOKENS][DIM], values[LAYERS][TOKENS][DIM];

static void attention64(const struct model_layer *l, int layer, int pos, const double *x, double *out)
{
	double q[HEADS * DIM], p[TOKENS];

	mat(&l->q, x, q);
	mat(&l->k, x, keys[layer][pos]);
	mat(&l->v, x, values[layer][pos]);
	turn64(keys[layer][pos], pos);
	for (int h = 0; h < HEADS; h++) {
		double sum = 0.0;

		turn64(q + h * DIM, pos);
		for (int t = 0; t <= pos; t++) {
			p[t] = 0.0;
			for (int c = 0; c < DIM; c++)
				p[t] += q[h * DIM + c] * keys[layer][t][c];
			p[t] = exp(p[t] / 8.0);
			sum += p[t];
		}
		for (int c = 0; c < DIM; c++) {
			out[h * DIM + c] = 0.0;
			for (int t = 0; t <= pos; t++)
				out[h * DIM + c] += p[t] / sum * values[layer][t][c];
		}
	}
}

static void forward64(const struct model *m, int32_t token, int pos, double *logits)
{
	double h[EMBD], x[EMBD], a[HEADS * DIM], y[EMBD], gate[FF], up[FF];

	for (int i = 0; i < EMBD; i++)
		h[i] = (double)((const float *)m->embd.data)[token * EMBD + i];
	for (int l = 0; l < LAYERS; l++) {
		norm64(h, &m->layer[l].attn_norm, x);
		attention64(&m->layer[l], l, pos, x, a);
		mat(&m->layer[l].o, a, y);
		for (int i = 0; i < EMBD; i++)
			h[i] += y[i];
		norm64(h, &m->layer[l].ffn_norm, x);
		mat(&m->layer[l].gate, x, gate);
		mat(&m->layer[l].up, x, up);
		for (int i = 0; i < FF; i++)
			gate[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
		mat(&m->layer[l].down, gate, y);
		for (int i = 0; i < EMBD; i++)
			h[i] += y[i];
	}
	norm64(h, &m->out_norm, x);
	mat(&m->output, x, logits);
}

/* --- running ---------------------------------------------------------------------------------------------- */

static int32_t token_of(uint32_t sequence, uint32_t pos)
{
	return (int32_t)((pos * 7 + sequence * 13 + pos * pos) % VOCAB);
}

/* Feeds TOKENS tokens to each of n sequences in steps of `chunk`; logits of sequence 0 go to out[TOKENS][VOCAB]. */
static void run(const struct model *m, uint32_t n_seqs, uint32_t chunk, unsigned threads, float *out)
{
	struct ebb_options options = { .why = why, .why_bytes = sizeof(why) };
	struct forward_options fo = { .model = m, .max_rows = n_seqs * chunk, .max_out = n_seqs * chunk, .threads = threads,
				      .ordinal = -1, .why = why, .why_bytes = sizeof(why) };
	struct ebb_session_options so = { .n_layers = LAYERS, .n_kv_heads = KV_HEADS, .group = HEADS / KV_HEADS, .head_dim = DIM,
					  .max_tokens = TOKENS, .settings = "slots=f32" };
	struct ebb_batch_options bo = { .max_sessions = n_seqs, .max_rows = n_seqs * chunk };
	struct ebb_session *session;
	struct ebb_batch *batch;
	struct forward *f;
	struct ebb *ebb;

	assert_int_equal(ebb_local(&ebb, &options), 0);
	assert_int_equal(forward_cpu_ops.open(&fo, &f), 0);
	assert_int_equal(ebb_batch_new(ebb, &bo, &batch), 0);
	for (uint32_t i = 0; i < n_seqs; i++) {
		assert_int_equal(ebb_session_open(ebb, &so, &session), 0);
		assert_int_equal(ebb_batch_join(batch, session), 0);
	}
	for (uint32_t at = 0; at < TOKENS;) {
		int32_t token[512], pos[512];
		uint32_t n[16], rows = 0, row[512];
		float logits[32 * VOCAB];
		struct forward_out got = { .logits = logits };
		struct forward_in in;

		for (uint32_t i = 0; i < n_seqs; i++)
			n[i] = TOKENS - at < chunk ? TOKENS - at : chunk;
		assert_int_equal(ebb_step_begin(batch, n, -1), 0);
		for (uint32_t i = 0; i < n_seqs; i++) {
			for (uint32_t k = 0; k < n[i]; k++, rows++) {
				token[rows] = token_of(i, at + k);
				pos[rows] = (int32_t)(at + k);
				row[rows] = rows;
			}
		}
		in = (struct forward_in){ rows, token, pos, n[0], row };
		assert_int_equal(forward_cpu_ops.layers(f, batch, &in), 0);
		assert_int_equal(ebb_step_end(batch), 0);
		assert_int_equal(forward_cpu_ops.output(f, &got), 0);
		memcpy(out + (size_t)at * VOCAB, logits, n[0] * VOCAB * sizeof(float));
		at += n[0];
	}
	ebb_close(ebb);
	forward_cpu_ops.close(f);
}

static void logits_are_those_of_float64(void **state)
{
	static float got[TOKENS * VOCAB];
	struct fixture x;

	(void)state;
	set_up_model(&x);
	run(x.model, 1, 5, 1, got);
	for (int t = 0; t < TOKENS; t++) {
		double want[VOCAB];

		forward64(x.model, token_of(0, (uint32_t)t), t, want);
		for (int j = 0; j < VOCAB; j++)
			if (fabs((double)got[t * VOCAB + j] - want[j]) > 2e-5)
				fail_msg("token %d, logit %d: %.9g, not %.9g", t, j, (double)got[t * VOCAB + j], want[j]);
	}
	tear_down_model(&x);
}

/*
 * Against one sequence on one thread. ebb_attend() promises the same bits whatever the other sessions, the threads and the pages
 * are; a single query takes another path through it than several, so chunks of one are compared among themselves.
 */
static void chunks_batches_and_threads_change_nothing(void **state)
{
	static const struct { uint32_t seqs, chunk; unsigned threads; } cases[] = {
		{ 3, 1, 1 }, { 9, 1, 1 }, { 1, 1, 2 }, { 1, 3, 1 }, { 1, 8, 1 }, { 1, TOKENS, 1 }, { 5, 8, 1 }, { 2, 12, 3 },
	};
	static float one[TOKENS * VOCAB], two[TOKENS * VOCAB], got[TOKENS * VOCAB];
	struct fixture x;

	(void)state;
	set_up_model(&x);
	run(x.model, 1, 1, 1, one);
	run(x.model, 1, 2, 1, two);
	for (int i = 0; i < TOKENS * VOCAB; i++)
		assert_true(fabs((double)one[i] - (double)two[i]) < 1e-5);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memset(got, 0, sizeof(got));
		run(x.model, cases[i].seqs, cases[i].chunk, cases[i].threads, got);
		assert_memory_equal(got, cases[i].chunk == 1 ? one : two, sizeof(got));
	}
	tear_down_model(&x);
}

static void best_and_logprob_agree_with_the_logits(void **state)
{
	struct forward_options fo = { .max_rows = 40, .max_out = 40, .threads = 1, .why = why, .why_bytes = sizeof(why) };
	struct ebb_session_options so = { .n_layers = LAYERS, .n_kv_heads = KV_HEADS, .group = HEADS / KV_HEADS, .head_dim = DIM,
					  .max_tokens = 40 };
	struct ebb_options options = { 0 };
	struct ebb_session *session;
	struct ebb_batch *batch;
	struct forward *f;
	struct fixture x;
	struct ebb *ebb;
	int32_t token[40], pos[40], best[40], target[40];
	static float logits[40 * VOCAB];
	double logprob[40];
	uint32_t row[40], n = 40;
	struct forward_in in = { 40, token, pos, 40, row };
	struct forward_out out = { .best = best, .target = target, .logprob = logprob }, raw = { .logits = logits };

	(void)state;
	set_up_model(&x);
	fo.model = x.model;
	for (int i = 0; i < 40; i++) {
		token[i] = token_of(1, (uint32_t)i);
		target[i] = token_of(2, (uint32_t)i);
		pos[i] = i;
		row[i] = (uint32_t)i;
	}
	assert_int_equal(ebb_local(&ebb, &options), 0);
	assert_int_equal(forward_cpu_ops.open(&fo, &f), 0);
	assert_int_equal(ebb_batch_new(ebb, NULL, &batch), 0);
	assert_int_equal(ebb_session_open(ebb, &so, &session), 0);
	assert_int_equal(ebb_batch_join(batch, session), 0);
	assert_int_equal(ebb_step_begin(batch, &n, -1), 0);
	assert_int_equal(n, 40);
	assert_int_equal(forward_cpu_ops.layers(f, batch, &in), 0);
	assert_int_equal(ebb_step_end(batch), 0);
	assert_int_equal(forward_cpu_ops.output(f, &out), 0);	/* in slices of its own memory */
	assert_int_equal(forward_cpu_ops.output(f, &raw), 0);	/* may be asked again */
	for (int i = 0; i < 40; i++) {
		double sum = 0.0;
		int top = 0;

		for (int j = 0; j < VOCAB; j++) {
			sum += exp((double)logits[i * VOCAB + j]);
			top = logits[i * VOCAB + j] > logits[i * VOCAB + top] ? j : top;
		}
		assert_int_equal(best[i], top);
		assert_true(fabs(logprob[i] - ((double)logits[i * VOCAB + target[i]] - log(sum))) < 1e-6);
	}
	token[3] = VOCAB;	/* does not exist */
	assert_int_equal(forward_cpu_ops.layers(f, batch, &in), -EINVAL);
	assert_true(f->why[0] != '\0');
	ebb_close(ebb);
	forward_cpu_ops.close(f);
	tear_down_model(&x);
}

static void refused(struct image im, const char *because)
{
	struct gguf *file = NULL;
	struct model *model = NULL;

	assert_int_equal(gguf_parse(im.bytes, im.n, "test", &file, why, sizeof(why)), 0);
	assert_int_equal(model_new(file, &model, why, sizeof(why)), -EINVAL);
	assert_null(model);
	if (!strstr(why, because))
		fail_msg("the sentence \"%s\" does not say \"%s\"", why, because);
	gguf_close(file);
	free(im.bytes);
}

static void other_models_are_refused_with_a_reason(void **state)
{
	(void)state;
	refused(model_image("gemma", NULL, NULL), "\"gemma\"");
	for (size_t i = 0; i < N_PARTS; i++) {
		char name[64];

		snprintf(name, sizeof(name), "blk.0.%s.weight is missing", parts[i].name);
		refused(model_image("llama", parts[i].name, NULL), name);
		snprintf(name, sizeof(name), "blk.0.%s.weight is %u x", parts[i].name, parts[i].cols + 8);
		refused(model_image("llama", NULL, parts[i].name), name);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(logits_are_those_of_float64),
		cmocka_unit_test(chunks_batches_and_threads_change_nothing),
		cmocka_unit_test(best_and_logprob_agree_with_the_logits),
		cmocka_unit_test(other_models_are_refused_with_a_reason),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
