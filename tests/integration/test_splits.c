/*
 * Splits on real sessions: what each lane holds is what the split says, all lanes together hold exactly the session's budget, and a second
 * run gives the same. Host pool; the client is in this process, so that it can ask while its session is open.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <jansson.h>

#include "evict/evict.h"
#include "libclient/ebb.h"
#include "tests/lib/daemon.h"

enum { LAYERS = 5, HEADS = 3, LANES = LAYERS * HEADS, GROUP = 2, DIM = 64, MOST = 64 };

static const char made[] = "ebbd-lanes 1 5 3\n0 0 1\n0 1 2\n0 2 3\n1 0 4\n1 1 5\n1 2 6\n2 0 7\n2 1 8\n2 2 9\n3 0 1\n3 1 0\n3 2 0\n"
			   "4 0 2\n4 1 2\n4 2 2\n";

static struct td d;
static const char *model;	/* what sessions say they are of */

struct client {
	struct ebb *ebb;
	struct ebb_session *session;
	struct ebb_batch *batch;
	uint64_t hash;
};

struct lanes {
	uint32_t budget[LANES], live[LANES];
	uint64_t budget_sum, live_sum;
};

static float kv[2][MOST * HEADS * DIM], q[MOST * HEADS * GROUP * DIM], out[MOST * HEADS * GROUP * DIM];

static void fill(float *x, size_t n, uint64_t seed, float scale)
{
	uint64_t s = (seed + 1) * 0x9e3779b97f4a7c15ull | 1;

	for (size_t i = 0; i < n; i++) {
		s ^= s << 13;
		s ^= s >> 7;
		s ^= s << 17;
		x[i] = (float)(int32_t)(s >> 32) * (scale / 2147483648.0f);
	}
}

static void must(struct client *c, int rc)
{
	if (rc)
		fail_msg("%d: %s", rc, c->ebb ? ebb_error(c->ebb) : "no connection");
}

static int try_open(struct client *c, const char *settings, const char *table, uint32_t prompt)
{
	struct ebb_options o = { .socket = d.socket, .name = "splits" };
	struct ebb_batch_options b = { .max_sessions = 1 };
	struct ebb_session_options s = { .n_layers = LAYERS, .n_kv_heads = HEADS, .group = GROUP, .head_dim = DIM, .max_tokens = 4096,
					 .prompt_tokens = prompt, .settings = settings, .lanes = table, .model = model };
	int rc;

	*c = (struct client){ .hash = 0xcbf29ce484222325ull };
	must(c, ebb_connect(&c->ebb, &o));
	rc = ebb_session_open(c->ebb, &s, &c->session);
	if (rc)
		return rc;
	must(c, ebb_batch_new(c->ebb, &b, &c->batch));
	must(c, ebb_batch_join(c->batch, c->session));
	return 0;
}

/* Lanes look differently: the higher the head the flatter its attention, and from layer 2 on much flatter. */
static void feed(struct client *c, uint32_t tokens, uint32_t at_once)
{
	const struct ebb_tensor k = { .data = kv[0] }, v = { .data = kv[1] }, query = { .data = q }, result = { .data = out };

	while (tokens) {
		uint32_t n = at_once < tokens ? at_once : tokens, pos = ebb_session_tokens(c->session);

		must(c, ebb_step_begin(c->batch, &n, -1));
		for (uint32_t layer = 0; layer < LAYERS; layer++) {
			for (uint32_t i = 0; i < n; i++) {
				const uint64_t seed = (uint64_t)(pos + i) << 8 | layer;

				fill(kv[0] + i * HEADS * DIM, HEADS * DIM, seed, 1.5f);
				fill(kv[1] + i * HEADS * DIM, HEADS * DIM, seed + 1000003, 1.0f);
				for (uint32_t h = 0; h < HEADS * GROUP; h++)
					fill(q + (i * HEADS * GROUP + h) * DIM, DIM, seed + h * 7919,
					     (layer < 2 ? 60.0f : 3.0f) / (float)(1 + 3 * (h / GROUP)));
			}
			must(c, ebb_append(c->batch, layer, &k, &v));
			must(c, ebb_attend(c->batch, layer, &query, &result, 0.125f, NULL));
			for (size_t i = 0; i < n * HEADS * GROUP * DIM; i++) {
				uint32_t bits;

				memcpy(&bits, &out[i], sizeof(bits));
				c->hash = (c->hash ^ bits) * 0x100000001b3ull;
			}
		}
		must(c, ebb_step_end(c->batch));
		tokens -= n;
	}
}

static struct lanes look(struct client *c)
{
	json_t *sessions, *answer;
	struct lanes l = { 0 };
	char question[64], *text;

	must(c, ebb_ask(c->ebb, "sessions", &text));
	sessions = json_loads(text, 0, NULL);
	free(text);
	assert_int_equal(json_array_size(sessions), 1);
	snprintf(question, sizeof(question), "lanes %lld",
		 (long long)json_integer_value(json_object_get(json_array_get(sessions, 0), "id")));
	must(c, ebb_ask(c->ebb, question, &text));
	answer = json_loads(text, 0, NULL);
	free(text);
	for (size_t i = 0; i < LANES; i++) {
		l.budget[i] = (uint32_t)json_integer_value(json_array_get(json_object_get(answer, "budget"), i));
		l.live[i] = (uint32_t)json_integer_value(json_array_get(json_object_get(answer, "live"), i));
		l.budget_sum += l.budget[i];
		l.live_sum += l.live[i];
	}
	json_decref(sessions);
	json_decref(answer);
	return l;
}

static void end(struct client *c)
{
	if (c->session)
		assert_int_equal(ebb_session_close(c->session), 0);
	ebb_close(c->ebb);
}

/*
 * Runs a session and checks what holds for every split; returns the lanes at its end. moves: shares may change at any window's end, and a
 * lane that has just grown has yet to be filled.
 */
static struct lanes run(const char *settings, const char *table, uint32_t budget, int moves, uint64_t *hash)
{
	struct client c;
	struct lanes l;

	must(&c, try_open(&c, settings, table, 0));
	for (uint32_t tokens = 0; tokens < 640; tokens += 32) {
		feed(&c, 32, tokens % 96 ? 32 : 1);
		l = look(&c);
		for (uint32_t i = 0; i < LANES; i++)
			assert_true(l.live[i] <= l.budget[i] && l.budget[i] >= 40 && l.live[i] <= tokens + 32);
		assert_true(l.budget_sum <= (uint64_t)budget * LANES);
	}
	/* Every lane has had the tokens to fill its share by now. */
	assert_int_equal(l.budget_sum, (uint64_t)budget * LANES);
	assert_true(moves ? l.live_sum + 32 * LANES >= l.budget_sum : l.live_sum == l.budget_sum);
	*hash = c.hash;
	end(&c);
	return l;
}

static void expect(const char *split, const char *settings, const float *table)
{
	struct evict_split_in in = { .n_layers = LAYERS, .n_kv_heads = HEADS, .total = 96 * LANES, .floor = 40, .ceiling = 672,
				     .window = 32, .table = table };
	struct evict_split s;
	uint32_t want[LANES];
	double work[LANES];
	struct lanes l;
	uint64_t hash, again;

	assert_int_equal(evict_split_parse(split, &s, NULL, 0), 0);
	evict_split(&s, &in, want, work);
	l = run(settings, table ? made : NULL, 96, 0, &hash);
	assert_memory_equal(l.budget, want, sizeof(want));
	assert_memory_equal(l.live, want, sizeof(want));
	run(settings, table ? made : NULL, 96, 0, &again);
	assert_true(hash == again);
}

static void lanes_hold_what_a_split_without_statistics_says(void **state)
{
	struct evict_lanes about;
	float table[LANES];

	(void)state;
	assert_int_equal(evict_lanes_parse(made, strlen(made), LAYERS, HEADS, NULL, &about, table, NULL, NULL, 0), 0);
	expect("uniform", "split=uniform budget=96", NULL);
	expect("pyramid", "split=pyramid budget=96", NULL);
	expect("pyramid:beta=2,reverse=1", "split=pyramid:beta=2,reverse=1 budget=96", NULL);
	expect("head:beta=1", "split=head:beta=1 budget=96", table);
	expect("head:threshold=4,streaming=50", "split=head:threshold=4,streaming=50 budget=96 policy=streaming", table);
}

static void splits_that_measure_hold_the_total_and_repeat(void **state)
{
	static const char *const settings[] = {
		"split=ada budget=96 recent=8 policy=h2o:age=1", "split=ada:alpha=0 budget=96 recent=8 policy=h2o:age=1",
		"split=dynamic budget=96 recent=8 policy=h2o:age=1",
		"split=cake budget=96", "split=sparsity:threshold=0.1 budget=96", "split=lazy-layer:recent=8,threshold=0.3 budget=96",
		"split=sparsity budget=96 policy=streaming", "split=ada budget=96 observe=0",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(settings) / sizeof(*settings); i++) {
		uint64_t hash, again;
		struct lanes l = run(settings[i], NULL, 96, 1, &hash);
		uint32_t least = UINT32_MAX, most = 0;

		run(settings[i], NULL, 96, 1, &again);
		assert_true(hash == again);
		for (uint32_t k = 0; k < LANES; k++) {
			least = l.budget[k] < least ? l.budget[k] : least;
			most = l.budget[k] > most ? l.budget[k] : most;
		}
		for (uint32_t k = 0; k < LANES && i < 2; k += HEADS)		/* ada: a layer's slots stay in the layer */
			assert_int_equal(l.budget[k] + l.budget[k + 1] + l.budget[k + 2], HEADS * 96);
		for (uint32_t k = 0; k < LANES && i >= 2 && i < 7; k += HEADS)	/* the others: heads of a layer alike */
			assert_true(l.budget[k] <= l.budget[k + 2] + 1 && l.budget[k + 2] <= l.budget[k]);
		if (i == 5 || i == 7)						/* no layer is lazy; nothing was seen: all the same */
			assert_true(least == 96 && most == 96);
		else if (most < least + 4)
			fail_msg("%s: all lanes between %u and %u", settings[i], least, most);
	}
}

/* A prompt that comes in whole is measured before it is compacted: what the split decides is what stays. */
static void a_whole_prompt_is_measured_before_it_shrinks(void **state)
{
	struct client c;
	struct lanes l;

	(void)state;
	must(&c, try_open(&c, "split=ada:alpha=0 budget=96 recent=8 prefill=whole", NULL, 500));
	feed(&c, 500, 64);
	feed(&c, 1, 1);			/* has the grant that follows the compaction */
	l = look(&c);
	assert_int_equal(l.budget_sum, 96 * LANES);
	assert_int_equal(l.live_sum, 96 * LANES);	/* not spread evenly and regrown */
	for (uint32_t k = 0; k < LANES; k++)
		assert_int_equal(l.live[k], l.budget[k]);
	assert_true(l.budget[0] + 4 < l.budget[1] || l.budget[1] + 4 < l.budget[0] || l.budget[0] + 4 < l.budget[2] ||
		    l.budget[2] + 4 < l.budget[0]);
	end(&c);
}

/* A budget that grows with the tokens: nothing is ever compacted, and the sum is right at every window's end. */
static void shares_of_a_growing_budget_grow(void **state)
{
	int64_t compactions = td_number(&d, "status:compactions_total");
	struct lanes l, before = { 0 };
	struct client c;
	uint64_t want;

	(void)state;
	must(&c, try_open(&c, "split=pyramid:beta=3 budget=25%", NULL, 0));
	for (uint32_t tokens = 0; tokens < 1024; tokens += 32) {
		feed(&c, 32, 32);
		want = LANES * (tokens + 32 > 160 ? (tokens + 32) / 4 : 40);
		l = look(&c);
		for (int i = 0; i < 2000 && l.budget_sum != want; i++) {	/* the window's end is on its way to the daemon */
			td_nap_us(1000);
			l = look(&c);
		}
		assert_int_equal(l.budget_sum, want);
		for (uint32_t i = 0; i < LANES; i++)
			assert_true(l.budget[i] >= before.budget[i]);
		before = l;
	}
	assert_true(l.budget[0] > l.budget[LANES - 1] + 50);
	end(&c);
	assert_int_equal(td_number(&d, "status:compactions_total"), compactions);
}

static void what_is_wrong_with_a_split_is_said(void **state)
{
	static const struct { const char *settings, *table, *why; } cases[] = {
		{ "split=cone", NULL, "split: found 'cone'; found split \"cone\"; allowed: uniform, pyramid, head" },
		{ "split=pyramid:beta=0", NULL, "parameter beta: found \"0\"; allowed: 1 to 1000" },
		{ "split=head", NULL, "split: found 'head' without a table of lanes for the model ''; allowed: with one" },
		{ "split=head", "ebbd-lanes 1 5 4\n", "the table of lanes, line 1: found \"4\"; allowed: 3, the model's KV heads" },
		{ "split=head", "ebbd-lanes 1 5 3\n0 0 nan\n", "the table of lanes, line 2: found \"nan\"; allowed: a decimal number" },
		{ "split=head", "", "split: found 'head' without a table of lanes" },
		{ "split=measured", "ebbd-lanes 1 5 3\nbudgets 64\n0 0 1 1\n", "line 3: found \"0\"; allowed: a line \"tokens N\" above the lanes" },
		{ "split=cake policy=two", NULL, "policy: found 'two'" },
		{ "split=head lanes=/etc/passwd", NULL, "lanes: found '/etc/passwd'; allowed: in ebbd.ini only" },
	};
	struct client c;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		assert_int_equal(try_open(&c, cases[i].settings, cases[i].table, 0), -EINVAL);
		if (!strstr(ebb_error(c.ebb), cases[i].why))
			fail_msg("case %zu: %s", i, ebb_error(c.ebb));
		ebb_close(c.ebb);
	}
}

/* The operator's table serves models of its shape, and is read anew on SIGHUP; one that is no good changes nothing. */
static void the_operator_may_name_a_table(void **state)
{
	char path[128], ini[512];
	struct client c;
	FILE *f;

	(void)state;
	snprintf(path, sizeof(path), "%s/lanes", d.dir);
	f = fopen(path, "we");
	assert_non_null(f);
	fputs(made, f);
	fclose(f);
	snprintf(ini, sizeof(ini), "drain = 0s\n[pool p]\ndevice = host\nsize = 64M\n[session]\nfloor = 40\nlanes = %s\n", path);
	td_configure(&d, ini);
	td_signal(&d, 1);
	for (int i = 0; i < 2000 && !td_log_has(&d, "reloaded"); i++)
		td_nap_us(2000);
	assert_int_equal(try_open(&c, "split=head:beta=1 budget=96", NULL, 0), 0);
	feed(&c, 400, 32);
	assert_true(look(&c).budget[8] > 3 * look(&c).budget[0]);
	end(&c);
	f = fopen(path, "we");
	assert_non_null(f);
	fputs("ebbd-lanes 1 5 3\n0 0 -1\n", f);
	fclose(f);
	td_signal(&d, 1);
	for (int i = 0; i < 2000 && !td_log_has(&d, "reload_refused"); i++)
		td_nap_us(2000);
	assert_true(td_log_has(&d, "line 2: found \"-1\"; allowed: a decimal number"));
	assert_int_equal(try_open(&c, "split=head:beta=1 budget=96", NULL, 0), 0);
	end(&c);
}

static void configure(const char *path, const char *file, const char *more)
{
	char ini[512];
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	fputs(file, f);
	fclose(f);
	snprintf(ini, sizeof(ini), "drain = 0s\n[pool p]\ndevice = host\nsize = 64M\n[model five]\nlanes = %s\n[session]\nfloor = 40\n%s", path, more);
	td_configure(&d, ini);
	td_signal(&d, 1);
}

/* A lane's loss is its number plus one at 64 slots, and falls as 1 / slots. */
static void curves(char *text, size_t bytes, const char *name)
{
	int at = snprintf(text, bytes, "ebbd-lanes 1 %d %d\nmodel %s\ntokens 4096\nbudgets 64 256\n", LAYERS, HEADS, name);

	for (int lane = 0; lane < LANES; lane++)
		at += snprintf(text + at, bytes - (size_t)at, "%d %d 1 %d %g\n", lane / HEADS, lane % HEADS, lane + 1, (lane + 1) / 4.0);
}

/* A model's own table, found by name and shape; `measured` by default is for those that have one. */
static void models_have_tables_of_their_own(void **state)
{
	char path[128], text[2048];
	struct client c;

	(void)state;
	snprintf(path, sizeof(path), "%s/five", d.dir);
	curves(text, sizeof(text), "five");
	configure(path, text, "split = measured\n");
	for (int i = 0; i < 2000 && !td_log_has(&d, "model five.lanes"); i++)
		td_nap_us(2000);
	model = "five";
	assert_int_equal(try_open(&c, "budget=96", NULL, 0), 0);
	feed(&c, 400, 32);
	assert_true(look(&c).budget_sum == 96 * LANES && look(&c).budget[LANES - 1] > 2 * look(&c).budget[0]);
	end(&c);
	model = "six";
	assert_int_equal(try_open(&c, "budget=96", NULL, 0), 0);
	feed(&c, 400, 32);
	assert_true(look(&c).budget[0] == 96 && look(&c).budget[LANES - 1] == 96);
	end(&c);
	assert_int_equal(try_open(&c, "budget=96 split=measured", NULL, 0), -EINVAL);
	assert_non_null(strstr(ebb_error(c.ebb), "found 'measured' without a table of lanes for the model 'six'"));
	ebb_close(c.ebb);
	assert_int_equal(try_open(&c, "budget=96 split=measured", made, 0), -EINVAL);
	assert_non_null(strstr(ebb_error(c.ebb), "a table of lanes that has values only"));
	ebb_close(c.ebb);
	assert_int_equal(try_open(&c, "budget=96 split=measured", text, 0), -EINVAL);
	assert_non_null(strstr(ebb_error(c.ebb), "line 2: found \"five\"; allowed: six, the model's name"));
	ebb_close(c.ebb);
	curves(text, sizeof(text), "four");
	configure(path, text, "");
	for (int i = 0; i < 2000 && !td_log_has(&d, "found \"four\"; allowed: five, the model's name"); i++)
		td_nap_us(2000);
	assert_true(td_log_has(&d, "found \"four\"; allowed: five, the model's name"));
	model = NULL;
}

/* window = auto and floor = auto: 8 tokens and 5 in 16 of a budget of 128. The window stays when the budget changes, the floor follows. */
static void a_small_budget_gets_a_short_window_and_a_low_floor(void **state)
{
	static const struct { const char *budget; uint32_t holds; } later[] = { { "budget=16", 16 }, { "budget=4", 12 }, { "budget=1024", 1024 } };
	struct client c;
	struct lanes l;

	(void)state;
	assert_int_equal(try_open(&c, "policy=h2o budget=128 window=auto floor=auto split=uniform", NULL, 0), 0);
	assert_int_equal(td_number(&d, "sessions:0.window"), 8);
	feed(&c, 200, 8);
	l = look(&c);
	for (unsigned i = 0; i < LANES; i++)
		assert_int_equal(l.live[i], 128);
	for (unsigned k = 0; k < sizeof(later) / sizeof(later[0]); k++) {
		assert_true(ebb_session_set(c.session, later[k].budget) >= 0);
		feed(&c, 24, 8);
		l = look(&c);
		assert_int_equal(td_number(&d, "sessions:0.window"), 8);
		for (unsigned i = 0; i < LANES; i++)
			assert_int_equal(l.budget[i], later[k].holds);
	}
	ebb_close(c.ebb);
	assert_int_equal(try_open(&c, "policy=h2o window=auto floor=auto", NULL, 0), 0);	/* a share */
	assert_int_equal(td_number(&d, "sessions:0.window"), 16);
	ebb_close(c.ebb);
}

static int start(void **state)
{
	*state = &d;
	td_start(&d, "drain = 0s\n[pool p]\ndevice = host\nsize = 64M\n[session]\nfloor = 40\nwindow = 32\n");
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lanes_hold_what_a_split_without_statistics_says),
		cmocka_unit_test(splits_that_measure_hold_the_total_and_repeat),
		cmocka_unit_test(a_whole_prompt_is_measured_before_it_shrinks),
		cmocka_unit_test(shares_of_a_growing_budget_grow),
		cmocka_unit_test(what_is_wrong_with_a_split_is_said),
		cmocka_unit_test(the_operator_may_name_a_table),
		cmocka_unit_test(models_have_tables_of_their_own),
		cmocka_unit_test(a_small_budget_gets_a_short_window_and_a_low_floor),
	};

	return cmocka_run_group_tests_name("splits", tests, start, td_teardown);
}
