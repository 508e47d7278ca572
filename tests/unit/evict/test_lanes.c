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

static float table[6];

static void a_table_of_lanes_is_read(void **state)
{
	static const char text[] = "# made by hand\n\n  ebbd-lanes 1 2 3\t# two layers of three\r\n0 0 1\n0 1 2.5\n1 2 0\n1 1 1e-3\n"
				   "0 2 7 # the best\n1 0 0.25";
	char why[200];

	(void)state;
	assert_int_equal(evict_lanes_parse(text, strlen(text), 2, 3, table, why, sizeof(why)), 0);
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
		assert_int_equal(evict_lanes_parse(cases[i].text, strlen(cases[i].text), 1, 2, table, why, sizeof(why)), -EINVAL);
		assert_string_equal(why, cases[i].why);
		assert_int_equal(evict_lanes_parse(cases[i].text, strlen(cases[i].text), 1, 2, table, NULL, 0), -EINVAL);
	}
}

static void random_tables_never_harm(void **state)
{
	static const char alphabet[] = "ebbd-lanes 1 1 2\n0 1 2.5e#nan\t-\x01\xff";
	const char *given = getenv("EBB_TEST_SEED");
	uint64_t random = given ? strtoull(given, NULL, 0) : 20261123;
	char text[200];

	(void)state;
	for (int round = 0; round < 20000; round++) {
		const uint32_t n = world_below(&random, sizeof(text)), head = world_below(&random, 2) ? 17 : 0;

		for (uint32_t i = 0; i < n; i++)
			text[i] = i < head ? alphabet[i] : alphabet[world_below(&random, sizeof(alphabet) - 1)];
		if (evict_lanes_parse(text, n, 1, 2, table, NULL, 0) == 0)
			assert_true(table[0] >= 0.0f && table[1] >= 0.0f && table[0] + table[1] > 0.0f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_table_of_lanes_is_read),
		cmocka_unit_test(a_bad_table_is_refused_with_line_value_and_what_is_allowed),
		cmocka_unit_test(random_tables_never_harm),
	};

	return cmocka_run_group_tests_name("evict lanes", tests, NULL, NULL);
}
