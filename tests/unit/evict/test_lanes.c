/* Tables of lanes: what is read, what is refused, and that it is said where and why. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "evict/evict.h"
#include "tests/lib/world.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))

static float table[6], curve[6 * EVICT_MAX_CURVE];
static struct evict_lanes about;

static void a_table_of_lanes_is_read(void **state)
{
	static const char text[] = "# made by hand\n\n  ebbd-lanes 1 2 3\t# two layers of three\r\n0 0 1\n0 1 2.5\n1 2 0\n1 1 1e-3\n"
				   "0 2 7 # the best\n1 0 0.25";
	char why[200];

	(void)state;
	assert_int_equal(evict_lanes_parse(text, strlen(text), 2, 3, NULL, &about, table, NULL, why, sizeof(why)), 0);
	assert_true(table[0] == 1.0f && table[1] == 2.5f && table[2] == 7.0f && table[3] == 0.25f && table[4] == 1e-3f && table[5] == 0.0f);
}

static void a_bad_table_is_refused_with_line_value_and_what_is_allowed(void **state)
{
	static const struct { const char *text, *why; } cases[] = {
		{ "", "line 0: found nothing more; allowed: a first line of \"ebbd-lanes 1 LAYERS KV_HEADS\"" },
		{ "0 0 1\n", "line 1: found \"0\"; allowed: a first line of \"ebbd-lanes 1 LAYERS KV_HEADS\"" },
		{ "ebbd-lanes 2 1 2\n", "line 1: found \"2\"; allowed: version 1" },
		{ "\nebbd-lanes 1 3 2\n", "line 2: found \"3\"; allowed: 1, the model's layers" },
		{ "ebbd-lanes 1 1\n", "line 1: found nothing more; allowed: the model's KV heads, a whole number from 1" },
		{ "ebbd-lanes 1 1 3\n", "line 1: found \"3\"; allowed: 2, the model's KV heads" },
		{ "ebbd-lanes 1 60000 60000\n", "line 1: found \"60000\"; allowed: the model's KV heads, a whole number from 1" },
		{ "ebbd-lanes 1 1 2 9\n", "line 1: found \"9\"; allowed: the end of the line" },
		{ "ebbd-lanes 1 1 2\n0 0 1\n0 1 nan\n", "line 3: found \"nan\"; allowed: a decimal number from 0 to 1e30" },
		{ "ebbd-lanes 1 1 2\n0 0 -1\n", "line 2: found \"-1\"; allowed: a decimal number from 0 to 1e30" },
		{ "ebbd-lanes 1 1 2\n0 0 inf\n", "line 2: found \"inf\"; allowed: a decimal number from 0 to 1e30" },
		{ "ebbd-lanes 1 1 2\n0 0 1e99\n", "line 2: found \"1e99\"; allowed: a decimal number from 0 to 1e30" },
		{ "ebbd-lanes 1 1 2\n0 0\n", "line 2: found nothing more; allowed: a decimal number from 0 to 1e30" },
		{ "ebbd-lanes 1 1 2\n1 0 5\n", "line 2: found \"1\"; allowed: a layer from 0 to 0" },
		{ "ebbd-lanes 1 1 2\n0 2 5\n", "line 2: found \"2\"; allowed: a KV head from 0 to 1" },
		{ "ebbd-lanes 1 1 2\n0 -1 5\n", "line 2: found \"-1\"; allowed: a KV head from 0 to 1" },
		{ "ebbd-lanes 1 1 2\n0 99999999999 5\n", "line 2: found \"99999999999\"; allowed: a KV head from 0 to 1" },
		{ "ebbd-lanes 1 1 2\n0 0 5 5\n", "line 2: found \"5\"; allowed: the end of the line" },
		{ "ebbd-lanes 1 1 2\n0 0 5\n0 0 6\n", "line 3: found \"0\"; allowed: each layer and KV head once, and this one has been" },
		{ "ebbd-lanes 1 1 2\n0 0 5\n", "line 2: found the end; allowed: a line for layer 0, KV head 1, too" },
		{ "ebbd-lanes 1 1 2\n0 0 0\n0 1 0\n", "line 3: found nothing but zeros; allowed: a value above 0 at least once" },
	};
	char why[200];

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		assert_int_equal(evict_lanes_parse(cases[i].text, strlen(cases[i].text), 1, 2, NULL, &about, table, NULL, why, sizeof(why)), -EINVAL);
		assert_string_equal(why, cases[i].why);
		assert_int_equal(evict_lanes_parse(cases[i].text, strlen(cases[i].text), 1, 2, NULL, &about, table, NULL, NULL, 0), -EINVAL);
	}
}

#define HEAD "ebbd-lanes 1 1 2\n"

static void a_table_says_whose_it_is_and_what_was_measured(void **state)
{
	static const char text[] = HEAD "model smollm2-135M\ntokens 4096 # each\nbudgets 64 256 1024\n0 1 5 4 2 1\n0 0 0.5 0.25 0.125 0\n";
	char why[200];

	(void)state;
	if (evict_lanes_parse(text, strlen(text), 1, 2, "smollm2-135M", &about, table, curve, why, sizeof(why)))
		fail_msg("%s", why);
	assert_string_equal(about.model, "smollm2-135M");
	assert_true(about.n_layers == 1 && about.n_kv_heads == 2 && about.tokens == 4096 && about.n_budgets == 3);
	assert_true(about.budget[0] == 64 && about.budget[1] == 256 && about.budget[2] == 1024);
	assert_true(table[0] == 0.5f && table[1] == 5.0f);
	/* (4 - 2) / 192, (2 - 1) / 768 and 1 / 3072 nats a slot: a quarter, a quarter. */
	assert_true(curve[EVICT_MAX_CURVE] - curve[EVICT_MAX_CURVE + 1] > 2.99f && curve[EVICT_MAX_CURVE] - curve[EVICT_MAX_CURVE + 1] < 3.01f);
	assert_true(curve[EVICT_MAX_CURVE + 1] - curve[EVICT_MAX_CURVE + 2] > 1.99f &&
		    curve[EVICT_MAX_CURVE + 1] - curve[EVICT_MAX_CURVE + 2] < 2.01f);
	assert_int_equal(evict_lanes_parse(text, strlen(text), 1, 2, NULL, &about, table, NULL, why, sizeof(why)), 0);
	assert_int_equal(evict_lanes_parse(text, strlen(text), 1, 2, "", &about, table, NULL, why, sizeof(why)), 0);
}

static void what_it_says_of_itself_is_checked(void **state)
{
	static const struct { const char *text, *why; } cases[] = {
		{ HEAD "model other\n", "line 2: found \"other\"; allowed: mine, the model's name" },
		{ HEAD "model\n", "line 2: found nothing more; allowed: the model's name, at most 63 characters without blanks" },
		{ HEAD "model mine too\n", "line 2: found \"too\"; allowed: the end of the line" },
		{ HEAD "tokens 100\ntokens 100\n", "line 3: found \"tokens\"; allowed: model, tokens, window and budgets once each, and this one has been" },
		{ HEAD "window 8\nwindow 8\n", "line 3: found \"window\"; allowed: model, tokens, window and budgets once each, and this one has been" },
		{ HEAD "window 0\n", "line 2: found \"0\"; allowed: the window under which budgets were measured, a whole number from 1" },
		{ HEAD "window 8 9\n", "line 2: found \"9\"; allowed: the end of the line" },
		{ HEAD "tokens 1.5\n", "line 2: found \"1.5\"; allowed: the tokens of the texts that were measured, a whole number from 1" },
		{ HEAD "budgets\n", "line 2: found nothing more; allowed: numbers of slots, whole and rising" },
		{ HEAD "budgets 64 64\n", "line 2: found \"64\"; allowed: numbers of slots, whole and rising" },
		{ HEAD "budgets 0\n", "line 2: found \"0\"; allowed: numbers of slots, whole and rising" },
		{ HEAD "budgets 1 2 3 4 5 6 7 8 9\n", "line 2: found \"9\"; allowed: the end of the line: a lane has at most 8 losses" },
		{ HEAD "budgets 64 128\n0 0 1 1 1\n",
		  "line 3: found \"0\"; allowed: a line \"tokens N\" above the lanes, N more than the last budget, 128" },
		{ HEAD "budgets 64 128\ntokens 128\n0 0 1 1 1\n",
		  "line 4: found \"0\"; allowed: a line \"tokens N\" above the lanes, N more than the last budget, 128" },
		{ HEAD "budgets 64\ntokens 128\n0 0 1\n", "line 4: found nothing more; allowed: a decimal number from 0 to 1e30" },
		{ HEAD "budgets 64\ntokens 128\n0 0 1 nan\n", "line 4: found \"nan\"; allowed: a decimal number from 0 to 1e30" },
		{ HEAD "budgets 64\ntokens 128\n0 0 1 2 3\n", "line 4: found \"3\"; allowed: the end of the line" },
		{ HEAD "0 0 1\nmodel mine\n", "line 3: found \"model\"; allowed: a layer from 0 to 0" },
	};
	char why[200];

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		assert_int_equal(evict_lanes_parse(cases[i].text, strlen(cases[i].text), 1, 2, "mine", &about, table, curve, why, sizeof(why)), -EINVAL);
		assert_string_equal(why, cases[i].why);
	}
}

static void random_tables_never_harm(void **state)
{
	static const char alphabet[] = "ebbd-lanes 1 1 2\n0 1 2.5e#budgetsmodelknan\t-\x01\xff";
	const char *given = getenv("EBB_TEST_SEED");
	uint64_t random = given ? strtoull(given, NULL, 0) : 20261123;
	char text[200];

	(void)state;
	for (int round = 0; round < 20000; round++) {
		const uint32_t n = world_below(&random, sizeof(text)), head = world_below(&random, 2) ? 17 : 0;

		for (uint32_t i = 0; i < n; i++)
			text[i] = i < head ? alphabet[i] : alphabet[world_below(&random, sizeof(alphabet) - 1)];
		if (evict_lanes_parse(text, n, 1, 2, NULL, &about, table, curve, NULL, 0) == 0)
			assert_true(table[0] >= 0.0f && table[1] >= 0.0f && table[0] + table[1] > 0.0f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_table_of_lanes_is_read),
		cmocka_unit_test(a_bad_table_is_refused_with_line_value_and_what_is_allowed),
		cmocka_unit_test(a_table_says_whose_it_is_and_what_was_measured),
		cmocka_unit_test(what_it_says_of_itself_is_checked),
		cmocka_unit_test(random_tables_never_harm),
	};

	return cmocka_run_group_tests_name("evict lanes", tests, NULL, NULL);
}
