/* ebb_local() against plain attention in double precision, and against the same session in a daemon's memory, bit for bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>

#include "tests/unit/libclient/fake.h"

enum { LAYERS = 2, KV = 2, GROUP = 3, DIM = 80, MAX = 700, HEADS = KV * GROUP };

static uint32_t seed;

static float noise(void)	/* -1 .. 1, the same on every machine */
{
	seed = seed * 1664525u + 1013904223u;
	return (float)(int32_t)seed / 2147483648.0f;
}

static void randomise(float *x, size_t n)
{
	while (n--)
		*x++ = noise();
}

/* Everything that one sequence has seen, as it was given to libebb. */
struct history {
	uint32_t tokens;
	float k[LAYERS][MAX][KV][DIM], v[LAYERS][MAX][KV][DIM];
};

/* Softmax attention of one query head over positions 0 .. pos, in double, from the given values. */
static void plain(const struct history *h, uint32_t layer, uint32_t head, const float *q, uint32_t pos, double scale, double *out,
		  double *lse)
{
	static double p[MAX];
	double most = -INFINITY, sum = 0;
	uint32_t kv = head / GROUP;

	for (uint32_t t = 0; t <= pos; t++) {
		p[t] = 0;
		for (uint32_t c = 0; c < DIM; c++)
			p[t] += (double)q[c] * (double)h->k[layer][t][kv][c];
		p[t] *= scale;
		most = p[t] > most ? p[t] : most;
	}
	memset(out, 0, DIM * sizeof(*out));
	for (uint32_t t = 0; t <= pos; t++) {
		p[t] = exp(p[t] - most);
		sum += p[t];
	}
	for (uint32_t t = 0; t <= pos; t++)
		for (uint32_t c = 0; c < DIM; c++)
			out[c] += p[t] / sum * (double)h->v[layer][t][kv][c];
	*lse = most + log(sum);
}

struct run {
	struct ebb_batch *batch;
	struct history *h[2];
	unsigned n_seqs;
	double worst;		/* largest difference from plain(), of out */
	double worst_lse;
	uint64_t hash;		/* of every bit of out and lse */
};

static void hash_bytes(uint64_t *hash, const void *data, size_t bytes)
{
	for (const unsigned char *p = data; bytes--; p++)
		*hash = (*hash ^ *p) * 1099511628211u;
}

/* One step with n[i] tokens for sequence i, every layer. `checked`: compare with plain(). */
static void step(struct run *r, const uint32_t *want, bool checked)
{
	static float k[MAX][KV][DIM], v[MAX][KV][DIM], q[MAX][HEADS][DIM], out[MAX][HEADS][DIM], lse[MAX][HEADS];
	const struct ebb_tensor tk = { k, EBB_F32, 0 }, tv = { v, EBB_F32, KV * DIM }, tq = { q, EBB_F32, 0 }, to = { out, EBB_F32, 0 };
	uint32_t n[2] = { want[0], want[1] }, rows;
	double expect[DIM], l;

	assert_int_equal(ebb_step_begin(r->batch, n, 5000), 0);
	rows = n[0] + n[1];
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		randomise(&k[0][0][0], (size_t)rows * KV * DIM);
		randomise(&v[0][0][0], (size_t)rows * KV * DIM);
		randomise(&q[0][0][0], (size_t)rows * HEADS * DIM);
		for (uint32_t i = 0, row = 0; i < r->n_seqs; row += n[i++]) {
			memcpy(r->h[i]->k[layer][r->h[i]->tokens], k[row], n[i] * sizeof(k[0]));
			memcpy(r->h[i]->v[layer][r->h[i]->tokens], v[row], n[i] * sizeof(v[0]));
		}
		assert_int_equal(ebb_append(r->batch, layer, &tk, &tv), 0);
		assert_int_equal(ebb_attend(r->batch, layer, &tq, &to, 0.3f, &lse[0][0]), 0);
		hash_bytes(&r->hash, out, rows * sizeof(out[0]));
		hash_bytes(&r->hash, lse, rows * sizeof(lse[0]));
		for (uint32_t i = 0, row = 0; checked && i < r->n_seqs; i++)
			for (uint32_t t = 0; t < n[i]; t++, row++)
				for (uint32_t head = 0; head < HEADS; head++) {
					plain(r->h[i], layer, head, q[row][head], r->h[i]->tokens + t, (double)0.3f, expect, &l);
					for (uint32_t c = 0; c < DIM; c++)
						r->worst = fmax(r->worst, fabs(expect[c] - (double)out[row][head][c]));
					r->worst_lse = fmax(r->worst_lse, fabs(l - (double)lse[row][head]));
				}
	}
	for (uint32_t i = 0; i < r->n_seqs; i++)
		r->h[i]->tokens += n[i];
	assert_int_equal(ebb_step_end(r->batch), 0);
}

static struct ebb_session_options options(const char *settings)
{
	return (struct ebb_session_options){ .n_layers = LAYERS, .n_kv_heads = KV, .group = GROUP, .head_dim = DIM, .max_tokens = MAX,
					     .settings = settings };
}

static struct ebb *local(unsigned threads)
{
	struct ebb_options o = { .threads = threads };
	struct ebb *ebb;

	assert_int_equal(ebb_local(&ebb, &o), 0);
	return ebb;
}

static void attention_equals_double_precision(void **state)
{
	/* The error of rounding K and V into slots of each type; measured values are about a third of these. */
	static const struct { const char *settings; double out, lse; } t[] = {
		{ "slots=f32", 1.5e-6, 2e-6 }, { "policy=h2o slots=f16 budget=8", 1e-3, 1.3e-3 }, { "slots=bf16", 1e-2, 1e-2 },
		{ "budget=3 slots=q8", 2.6e-2, 2e-2 },
	};

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		struct ebb *ebb = local(1);
		struct ebb_session_options o = options(t[i].settings);
		struct ebb_session *s[2];
		struct run r = { .n_seqs = 2 };
		struct ebb_stats stats;

		seed = 1;
		assert_int_equal(ebb_batch_new(ebb, NULL, &r.batch), 0);
		for (int k = 0; k < 2; k++) {
			r.h[k] = calloc(1, sizeof(*r.h[k]));
			assert_int_equal(ebb_session_open(ebb, &o, &s[k]), 0);
			assert_int_equal(ebb_batch_join(r.batch, s[k]), 0);
		}
		/* Lengths that are 0, 1, odd, across a page, across a growth (256 and 512), and a sequence that sits out. */
		step(&r, (const uint32_t[]){ 1, 17 }, true);
		step(&r, (const uint32_t[]){ 15, 0 }, true);
		step(&r, (const uint32_t[]){ 1, 1 }, true);
		step(&r, (const uint32_t[]){ 233, 3 }, false);
		for (int k = 0; k < 10; k++)
			step(&r, (const uint32_t[]){ 1, 2 }, true);
		step(&r, (const uint32_t[]){ 0, 300 }, false);
		step(&r, (const uint32_t[]){ 300, 1 }, false);
		step(&r, (const uint32_t[]){ 1, 5 }, true);
		ebb_session_stats(s[0], &stats);
		assert_int_equal(stats.tokens, r.h[0]->tokens);
		assert_int_equal(stats.live_slots, (uint64_t)r.h[0]->tokens * LAYERS * KV);
		assert_int_equal(stats.evicted, 0);
		if (!(r.worst < t[i].out && r.worst_lse < t[i].lse))
			fail_msg("%s: out differs by %g, lse by %g", t[i].settings, r.worst, r.worst_lse);
		if (i == 3 && r.worst < 1e-6)	/* a test that could not fail would be one that does not round */
			fail_msg("q8 slots do not round");
		ebb_close(ebb);
		free(r.h[0]);
		free(r.h[1]);
	}
}

static uint64_t hash_of(struct ebb *ebb, unsigned others)
{
	struct ebb_session_options o = options("slots=f32");
	struct ebb_session *s, *other;
	struct run r = { .n_seqs = 1, .hash = 14695981039346656037u };

	o.max_tokens = 300;
	for (unsigned i = 0; i < others; i++)	/* so that page ids differ */
		assert_int_equal(ebb_session_open(ebb, &o, &other), 0);
	r.h[0] = calloc(1, sizeof(*r.h[0]));
	seed = 7;
	assert_int_equal(ebb_session_open(ebb, &o, &s), 0);
	assert_int_equal(ebb_batch_new(ebb, NULL, &r.batch), 0);
	assert_int_equal(ebb_batch_join(r.batch, s), 0);
	for (int i = 0; i < 37; i++)
		step(&r, (const uint32_t[]){ 8, 0 }, false);
	ebb_close(ebb);
	free(r.h[0]);
	return r.hash;
}

static void results_are_the_daemons_bit_for_bit(void **state)
{
	struct fake f = { .window = 8 };
	struct ebb_options o = { .name = "test" };
	uint64_t here = hash_of(local(1), 0);
	struct ebb *ebb;

	(void)state;
	assert_true(here == hash_of(local(2), 3));
	fake_start(&f);
	o.socket = f.path;
	assert_int_equal(ebb_connect(&ebb, &o), 0);
	assert_true(here == hash_of(ebb, 1));
	fake_stop(&f);
}

static void memory_follows_the_tokens(void **state)
{
	struct ebb *ebb = local(1);
	struct ebb_session_options o = options("slots=f32");
	struct ebb_session *s;
	struct run r = { .n_seqs = 1 };

	(void)state;
	/* A session that could hold 2^24 tokens, 34 GiB, opens and decodes here because it does not hold them. */
	o.max_tokens = 1u << 24;
	assert_int_equal(ebb_session_open(ebb, &o, &s), 0);
	assert_int_equal(ebb_batch_new(ebb, NULL, &r.batch), 0);
	assert_int_equal(ebb_batch_join(r.batch, s), 0);
	r.h[0] = calloc(1, sizeof(*r.h[0]));
	for (int i = 0; i < 20; i++)
		step(&r, (const uint32_t[]){ 30, 0 }, i % 8 == 0);
	assert_true(r.worst < 1.5e-6);
	assert_int_equal(ebb_session_close(s), 0);
	/* Its ids are free again: sessions come and go for longer than the ids would last. */
	for (int i = 0; i < 200; i++) {
		uint32_t n = 300;

		o.max_tokens = 300;
		assert_int_equal(ebb_session_open(ebb, &o, &s), 0);
		assert_int_equal(ebb_batch_join(r.batch, s), 0);
		assert_int_equal(ebb_step_begin(r.batch, &n, 0), 0);
		assert_int_equal(n, 300);
		assert_int_equal(ebb_session_close(s), 0);	/* even with the step open */
	}
	ebb_close(ebb);
	free(r.h[0]);
}

static void it_is_a_connection_like_others(void **state)
{
	struct ebb_options bad = { .device = "toaster" };
	struct ebb_session_options o = options("slots=q9 policy=full");
	struct ebb_pool_info info;
	struct ebb_session *s = NULL;
	struct ebb *ebb = NULL;
	char why[256] = "", *json = NULL;
	uint32_t n = 1;
	struct ebb_batch *b;

	(void)state;
	bad.why = why;
	bad.why_bytes = sizeof(why);
	assert_int_equal(ebb_local(&ebb, &bad), -EINVAL);
	assert_non_null(strstr(why, "toaster"));
	assert_null(ebb);
	ebb = local(1);
	assert_int_equal(ebb_fd(ebb), -1);
	assert_int_equal(ebb_pool(ebb, 0, &info), 0);
	assert_string_equal(info.uuid, "host");
	assert_true(info.size_bytes > 0);
	assert_int_equal(ebb_pool(ebb, 1, &info), -ENOENT);
	assert_int_equal(ebb_ask(ebb, "status", &json), -EINVAL);
	assert_int_equal(ebb_session_open(ebb, &o, &s), -EINVAL);
	assert_non_null(strstr(ebb_error(ebb), "q9"));
	o.settings = "xslots=q9 slots=f16";
	o.max_tokens = 3;
	assert_int_equal(ebb_session_open(ebb, &o, &s), 0);
	assert_int_equal(ebb_batch_new(ebb, NULL, &b), 0);
	assert_int_equal(ebb_batch_join(b, s), 0);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(ebb_step_begin(b, &n, 0), 0);
		assert_int_equal(ebb_step_end(b), 0);
	}
	assert_int_equal(ebb_step_begin(b, &n, 0), -ENOSPC);
	ebb_batch_free(b);
	assert_int_equal(ebb_session_close(s), 0);
	ebb_close(ebb);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(attention_equals_double_precision), cmocka_unit_test(results_are_the_daemons_bit_for_bit),
		cmocka_unit_test(memory_follows_the_tokens), cmocka_unit_test(it_is_a_connection_like_others),
	};

	alarm(120);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
