/*
 * Attention scores that libebb takes later (libclient/keep.c) through the real daemon: two sessions that see the same numbers, one in a batch that
 * keeps queries, one in a batch that adds every step's scores at once. What their lanes hold, and with which scores, is the same but for rounding. On a host
 * pool nothing is kept, and all is equal. The client is in this process, so that it can look into its lanes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "gpu/gpu.h"
#include "libclient/ebb.h"
#include "tests/lib/daemon.h"

enum { LAYERS = 2, HEADS = 2, GROUP = 2, DIM = 64, PROMPT = 96, TOKENS = 1500 };
enum { KV = HEADS * DIM, Q = HEADS * GROUP * DIM, ROWS = 16 };

static struct td d;

struct side {
	struct ebb *ebb;
	struct ebb_session *session;
	struct ebb_batch *batch;
	int32_t pos[TOKENS];
	float score[TOKENS];
	int n;
};

/* What the device is given: K, V, queries of a step, room for outputs. */
static struct gpu_device *dev;
static gpu_stream stream;
static struct gpu_slab slab;
static uint16_t numbers[ROWS * (2 * KV + Q)];

static void must(struct side *s, int rc)
{
	if (rc)
		fail_msg("%d: %s", rc, s->ebb ? ebb_error(s->ebb) : "no connection");
}

static struct ebb_session_options options(const char *settings)
{
	return (struct ebb_session_options){ .n_layers = LAYERS, .n_kv_heads = HEADS, .group = GROUP, .head_dim = DIM, .max_tokens = TOKENS,
					     .settings = settings };
}

static void begin(struct side *s, uint32_t at_once, const char *settings)
{
	const struct ebb_options o = { .socket = d.socket, .name = "keep" };
	const struct ebb_batch_options b = { .stream = stream, .max_sessions = 2, .max_rows = ROWS, .scores_at_once = at_once };
	const struct ebb_session_options so = options(settings);

	memset(s, 0, sizeof(*s));
	must(s, ebb_connect(&s->ebb, &o));
	must(s, ebb_session_open(s->ebb, &so, &s->session));
	must(s, ebb_batch_new(s->ebb, &b, &s->batch));
	must(s, ebb_batch_join(s->batch, s->session));
}

static void end(struct side *s)
{
	must(s, ebb_session_close(s->session));
	ebb_close(s->ebb);
}

/* bfloat16 of -2 .. 2. */
static void fill(uint16_t *x, size_t n, uint64_t seed)
{
	uint64_t s = (seed + 1) * 0x9e3779b97f4a7c15ull | 1;

	for (size_t i = 0; i < n; i++) {
		float f;
		uint32_t bits;

		s ^= s << 13;
		s ^= s >> 7;
		s ^= s << 17;
		f = (float)(int32_t)(s >> 32) * (2.0f / 2147483648.0f);
		memcpy(&bits, &f, sizeof(bits));
		x[i] = (uint16_t)(bits >> 16);
	}
}

/* n tokens, and as many as are given of the batch's second session, whose numbers are others. */
static void step_both(struct side *s, uint32_t n, struct ebb_session *second, uint32_t n_second, uint32_t look)
{
	uint16_t *base = slab.base;
	const struct ebb_tensor k = { base, EBB_BF16, 0 }, v = { base + ROWS * KV, EBB_BF16, 0 }, q = { base + 2 * ROWS * KV, EBB_BF16, 0 };
	const struct ebb_tensor out = { base + ROWS * (2 * KV + Q), EBB_BF16, 0 };
	const uint64_t first = ebb_session_tokens(s->session), other = second ? (1ull << 40) + ebb_session_tokens(second) : 0;
	uint32_t given[2] = { n, n_second };

	must(s, ebb_step_begin(s->batch, given, -1));
	assert_int_equal(given[0], n);
	assert_int_equal(given[1], n_second);
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		for (uint32_t i = 0; i < n + n_second; i++) {
			const uint64_t seed = (i < n ? first + i : other + i - n) << 8 | layer;

			fill(numbers + i * KV, KV, seed);
			fill(numbers + (ROWS + i) * KV, KV, seed + 1000003);
			fill(numbers + 2 * ROWS * KV + i * Q, Q, seed + 7919);
		}
		assert_int_equal(gpu_write(dev, stream, slab.base, numbers, sizeof(numbers)), 0);
		must(s, ebb_append(s->batch, layer, &k, &v));
		must(s, ebb_attend(s->batch, layer, &q, &out, 0.125f, NULL));
		assert_int_equal(gpu_sync(dev, stream), 0);
	}
	if (look < LAYERS * HEADS) {
		s->n = ebb_lane_read(s->session, look, s->pos, s->score, TOKENS);
		must(s, s->n < 0 ? s->n : 0);
	}
	must(s, ebb_step_end(s->batch));
}

static void step(struct side *s, uint32_t n, uint32_t look)
{
	step_both(s, n, NULL, 0, look);
}

static float score_of(const struct side *s, int32_t pos)
{
	for (int i = 0; i < s->n; i++)
		if (s->pos[i] == pos)
			return s->score[i];
	return NAN;
}

/* Both lanes as looked at last: the same tokens but for a few that ranked alike, and the same scores. */
static void compare(const struct side *a, const struct side *b, int few)
{
	int missing = 0;

	assert_int_equal(a->n, b->n);
	for (int i = 0; i < a->n; i++) {
		const float other = score_of(b, a->pos[i]);

		if (isnan(other))
			missing++;
		else if (!(fabsf(a->score[i] - other) <= 1e-5f + 2e-3f * other))
			fail_msg("token %d has %g, and %g where scores are added at once", a->pos[i], (double)a->score[i], (double)other);
	}
	if (missing > few)
		fail_msg("%d of %d tokens are others", missing, a->n);
}

static void run(const char *settings, int few)
{
	struct side later, once;
	uint32_t lane = 0;

	begin(&later, 0, settings);
	begin(&once, 1, settings);
	for (uint32_t at = 0; at < PROMPT; at += ROWS) {
		step(&later, ROWS, UINT32_MAX);
		step(&once, ROWS, UINT32_MAX);
	}
	for (uint32_t at = PROMPT; at < TOKENS - 8; at++) {
		const uint32_t look = at % 37 == 0 || at > TOKENS - 40 ? lane++ % (LAYERS * HEADS) : UINT32_MAX;

		step(&later, 1, look);
		step(&once, 1, look);
		if (look != UINT32_MAX)
			compare(&later, &once, few);
	}
	end(&later);
	end(&once);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

static void scores_of_a_session_that_loses_nothing(void **state)
{
	(void)state;
	run("policy=h2o budget=2000 floor=2000 slots=bf16", 0);
}

static void a_budget_takes_the_same_tokens(void **state)
{
	(void)state;
	run("policy=h2o budget=600 slots=bf16 window=32", 6);
	run("policy=ebb budget=600 slots=q8 window=16", 6);
}

static void every_fourth_query(void **state)
{
	(void)state;
	run("policy=h2o budget=600 slots=bf16 observe=4", 6);
}

/* A session that leaves in the middle of a window goes on: what it had kept is lost, once, and nobody takes it for a newcomer's. */
static void leaving_in_the_middle_of_a_window(void **state)
{
	struct side s;
	struct ebb_session *other;
	const struct ebb_session_options so = options("policy=h2o budget=600 slots=bf16");

	(void)state;
	begin(&s, 0, "policy=h2o budget=600 slots=bf16");
	must(&s, ebb_session_open(s.ebb, &so, &other));
	for (uint32_t at = 0; at < 700; at += ROWS)
		step(&s, ROWS, UINT32_MAX);
	for (uint32_t i = 0; i < 11; i++)
		step(&s, 1, UINT32_MAX);
	for (uint32_t turn = 0; turn < 4; turn++) {
		struct ebb_session *mine = s.session;

		must(&s, ebb_batch_leave(s.batch, s.session));
		must(&s, ebb_batch_join(s.batch, turn % 2 ? other : mine));
		s.session = turn % 2 ? other : mine;
		for (uint32_t i = 0; i < 5; i++)
			step(&s, 1, 0);
		assert_true(s.n > 0);
		for (int i = 0; i < s.n; i++)	/* no more than all heads of all queries so far */
			assert_true(s.score[i] >= 0.0f && s.score[i] <= (float)(ebb_session_tokens(s.session) * GROUP));
		if (turn % 2) {
			must(&s, ebb_batch_leave(s.batch, other));
			must(&s, ebb_batch_join(s.batch, mine));
			s.session = mine;
		}
	}
	must(&s, ebb_session_close(other));
	end(&s);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

/* A second one joins when the first has kept some: rooms become more, and nothing is lost. */
static void another_session_joins(void **state)
{
	const char *settings = "policy=h2o budget=2000 floor=2000 slots=bf16";
	const struct ebb_session_options so = options(settings);
	struct side later, once;
	struct ebb_session *second;

	(void)state;
	begin(&later, 0, settings);
	begin(&once, 1, settings);
	for (uint32_t at = 0; at < 608; at += 16) {
		step(&later, 16, UINT32_MAX);
		step(&once, 16, UINT32_MAX);
	}
	for (uint32_t i = 0; i < 5; i++) {
		step(&later, 1, UINT32_MAX);
		step(&once, 1, UINT32_MAX);
	}
	must(&later, ebb_session_open(later.ebb, &so, &second));
	must(&later, ebb_batch_join(later.batch, second));
	for (uint32_t i = 0; i < 60; i++) {
		step_both(&later, 1, second, i ? 1 : 15, i % (LAYERS * HEADS));
		step(&once, 1, i % (LAYERS * HEADS));
		compare(&later, &once, 0);
	}
	must(&later, ebb_session_close(second));
	end(&later);
	end(&once);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

static int set_up(void **state)
{
	char ini[256];

	*state = &d;
	snprintf(ini, sizeof(ini), "drain = 0s\n[pool p]\ndevice = %s\nsize = 64M\nslab = 2M\n", td_device());
	td_start(&d, ini);
	if (gpu_open(&dev, td_device()) || gpu_stream_new(dev, &stream) ||
	    gpu_slab_new(dev, (sizeof(numbers) + ROWS * Q * sizeof(uint16_t) + 4095) / 4096 * 4096, 0, &slab))
		return -1;
	return 0;
}

static int tear_down(void **state)
{
	gpu_slab_free(dev, &slab);
	gpu_stream_free(dev, stream);
	gpu_close(dev);
	return td_teardown(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(scores_of_a_session_that_loses_nothing),
		cmocka_unit_test(a_budget_takes_the_same_tokens),
		cmocka_unit_test(every_fourth_query),
		cmocka_unit_test(leaving_in_the_middle_of_a_window),
		cmocka_unit_test(another_session_joins),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
