/* evict_apportion, every split against its formula, evict_resplit, and tables of lanes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "evict/evict.h"
#include "tests/lib/world.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))
#define MAX_LANES 600

static uint32_t got[MAX_LANES], kept[MAX_LANES], target[MAX_LANES];
static double work[2 * MAX_LANES], weight[MAX_LANES];
static float table[MAX_LANES];

static struct evict_split split_of(const char *text)
{
	struct evict_split split;
	char why[256] = "";

	if (evict_split_parse(text, &split, why, sizeof(why)))
		fail_msg("%s: %s", text, why);
	return split;
}

static uint64_t sum_of(const uint32_t *budget, uint32_t n)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += budget[i];
	return sum;
}

static uint64_t seed_of_tests(void)
{
	const char *given = getenv("EBB_TEST_SEED");

	return given ? strtoull(given, NULL, 0) : 20261123;
}

/* --- evict_apportion -------------------------------------------------------------------------------------------------------------- */

static void shares_are_as_the_cases_say(void **state)
{
	static const struct {
		uint32_t n;
		double weight[6];
		uint32_t total, floor, ceiling, want[6];
	} cases[] = {
		{ 1, { 5 }, 100, 0, 1000, { 100 } },
		{ 3, { 1, 1, 1 }, 300, 0, 1000, { 100, 100, 100 } },
		{ 3, { 1, 1, 1 }, 301, 0, 1000, { 101, 100, 100 } },		/* ties: the lower lanes */
		{ 3, { 1, 1, 1 }, 302, 0, 1000, { 101, 101, 100 } },
		{ 3, { 0, 0, 0 }, 10, 0, 1000, { 4, 3, 3 } },			/* nothing known: equal */
		{ 3, { 1, 2, 3 }, 60, 0, 1000, { 10, 20, 30 } },
		{ 3, { 1, 2, 3 }, 60, 15, 1000, { 15, 18, 27 } },		/* 45 left for 2 : 3 */
		{ 3, { 1, 2, 3 }, 60, 0, 25, { 12, 23, 25 } },			/* 35 left for 1 : 2, 11.67 and 23.33 */
		{ 3, { 1, 2, 3 }, 10, 5, 1000, { 5, 5, 5 } },			/* less than the floors */
		{ 3, { 1, 2, 3 }, 100, 5, 20, { 20, 20, 20 } },			/* more than the ceilings */
		{ 4, { 1, 0, 0, 1 }, 50, 10, 15, { 15, 10, 10, 15 } },
		{ 4, { 1, 0, 0, 1 }, 54, 10, 15, { 15, 12, 12, 15 } },		/* zeros fill up last */
		{ 2, { -3, 1 }, 40, 5, 100, { 5, 35 } },
		/* Webster's divisors 0.5, 1.5, 2.5 for weights 53, 24, 23 and 7 seats: 3, 2, 2 (53/3.5 = 15.1 loses to 23/1.5 = 15.3). */
		{ 3, { 53, 24, 23 }, 7, 0, 100, { 3, 2, 2 } },
	};

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		evict_apportion(cases[i].weight, cases[i].n, cases[i].total, cases[i].floor, cases[i].ceiling, got);
		for (uint32_t k = 0; k < cases[i].n; k++)
			if (got[k] != cases[i].want[k])
				fail_msg("case %zu lane %u: %u, expected %u", i, k, got[k], cases[i].want[k]);
	}
}

static void a_weight_that_is_no_number_counts_as_nothing(void **state)
{
	const double zero = 0.0, odd[4] = { 0.0 / zero, 1.0 / zero, -1.0 / zero, 2.0 };

	(void)state;
	evict_apportion(odd, 4, 100, 10, 1000, got);
	assert_true(got[0] == 10 && got[1] == 10 && got[2] == 10 && got[3] == 70);
}

static double any_weight(uint64_t *random)
{
	double w = (double)world_below(random, 1000000);

	for (uint32_t k = world_below(random, 3) ? 0 : world_below(random, 60); k > 0; k--)
		w *= world_below(random, 2) ? 2.0 : 0.5;
	return world_below(random, 8) ? w : 0.0;
}

/*
 * For any weights: exact sums, floor and ceiling, more weight never gets less, more slots take from nobody, and Webster's own
 * criterion: no slot could move from a lane above its floor to one below its ceiling that has a better claim to it.
 */
static void shares_keep_their_promises_for_anything(void **state)
{
	uint64_t seed = seed_of_tests();

	(void)state;
	for (unsigned round = 0; round < 3000; round++, seed++) {
		uint64_t random = seed;
		const uint32_t n = 1 + world_below(&random, round % 10 ? 24 : MAX_LANES);
		const uint32_t floor = world_below(&random, 100), ceiling = floor + world_below(&random, 1u << world_below(&random, 14));
		const uint64_t least = (uint64_t)n * floor, most = (uint64_t)n * ceiling;
		uint64_t total = least + (most > least ? world_random(&random) % (most - least + 1) : 0);

		for (uint32_t i = 0; i < n; i++)
			weight[i] = any_weight(&random);
		evict_apportion(weight, n, total, floor, ceiling, got);
		if (sum_of(got, n) != total)
			fail_msg("EBB_TEST_SEED=%llu: %llu slots of %llu", (unsigned long long)seed,
				 (unsigned long long)sum_of(got, n), (unsigned long long)total);
		for (uint32_t i = 0; i < n; i++) {
			assert_true(got[i] >= floor && got[i] <= ceiling);
			for (uint32_t k = 0; k < n && n <= 24; k++) {
				if (weight[i] > weight[k] && got[i] < got[k])
					fail_msg("EBB_TEST_SEED=%llu: more weight, fewer slots", (unsigned long long)seed);
				if (got[i] > floor && got[k] < ceiling && weight[i] > 0 && weight[k] > 0 &&
				    weight[k] / (got[k] + 0.5) > weight[i] / (got[i] - 0.5) * (1.0 + 1e-9) &&
				    weight[i] > weight[k] * 1e-11)
					fail_msg("EBB_TEST_SEED=%llu: lane %u has a better claim than %u", (unsigned long long)seed, k, i);
			}
		}
		total += world_below(&random, 50);
		evict_apportion(weight, n, total, floor, ceiling, kept);
		for (uint32_t i = 0; i < n; i++)
			assert_true(kept[i] >= got[i]);
	}
}

/* --- each split against its formula --------------------------------------------------------------------------------------------- */

static void equal_shares_are_equal(void **state)
{
	const struct evict_split uniform = split_of("uniform");

	(void)state;
	for (uint32_t layers = 1; layers < 40; layers += 7) {
		struct evict_split_in in = { .n_layers = layers, .n_kv_heads = 3, .total = 3 * layers * 256ull, .floor = 64, .ceiling = 4096 };

		evict_split(&uniform, &in, got, work);
		for (uint32_t i = 0; i < 3 * layers; i++)
			assert_int_equal(got[i], 256);
	}
}

/*
 * methods.md, appendix A: 234, 227, ..., 31 with integer steps (3975 slots instead of 3600). With exact steps, as kvpress has them,
 * C = 128 less w = 8, L = 30: 234, 234 - 228 / 29, ..., 6, and they add up.
 */
static void a_pyramid_falls_in_equal_steps_and_adds_up(void **state)
{
	const struct evict_split pyramid = split_of("pyramid"), reverse = split_of("pyramid:reverse=1"), flat = split_of("pyramid:beta=1");
	struct evict_split_in in = { .n_layers = 30, .n_kv_heads = 1, .total = 3600, .floor = 0, .ceiling = 1016 };
	uint32_t up[30];

	(void)state;
	evict_split(&pyramid, &in, got, work);
	assert_int_equal(sum_of(got, 30), 3600);
	assert_int_equal(got[0], 234);
	assert_int_equal(got[29], 6);
	for (uint32_t i = 0; i < 30; i++) {
		const double want = 234.0 - i * 228.0 / 29.0;

		assert_true(got[i] >= want - 1.0 && got[i] <= want + 1.0);
	}
	evict_split(&reverse, &in, up, work);
	for (uint32_t i = 0; i < 30; i++)
		assert_true(up[i] + 1 >= got[29 - i] && up[i] <= got[29 - i] + 1);	/* but for whom a tie favours */
	evict_split(&flat, &in, got, work);
	for (uint32_t i = 0; i < 30; i++)
		assert_int_equal(got[i], 120);
	/* C = 512, w = 8, n = 700 (appendix A: 692, 680, ..., 344 with 504 a layer): the first layer is held to what there is. */
	in.total = 30 * 504;
	in.ceiling = 684;
	evict_split(&pyramid, &in, got, work);
	assert_int_equal(got[0], 684);
	assert_int_equal(got[29], 324);
	assert_int_equal(sum_of(got, 30), 30 * 504);
	/* One layer has nothing to fall to. */
	in = (struct evict_split_in){ .n_layers = 1, .n_kv_heads = 4, .total = 403, .floor = 0, .ceiling = 1000 };
	evict_split(&pyramid, &in, got, work);
	assert_true(got[0] == 101 && got[1] == 101 && got[2] == 101 && got[3] == 100);
}

static void heads_get_what_the_table_says(void **state)
{
	const struct evict_split headkv = split_of("head:beta=2"), duo = split_of("head:threshold=0.5,streaming=80");
	const struct evict_split duo_floor = split_of("head:threshold=0.5");
	struct evict_split_in in = { .n_layers = 2, .n_kv_heads = 2, .total = 4 * 200, .floor = 50, .ceiling = 2000, .table = table };

	(void)state;
	table[0] = 1.0f;
	table[1] = 3.0f;
	table[2] = 0.0f;
	table[3] = 4.0f;
	/* base 200 - 100, pool 4 * 100 shared 1 : 3 : 0 : 4 */
	evict_split(&headkv, &in, got, work);
	assert_true(got[0] == 150 && got[1] == 250 && got[2] == 100 && got[3] == 300);
	table[0] = 0.5f;
	table[1] = 0.2f;
	table[3] = 1.0f;
	evict_split(&duo, &in, got, work);	/* lanes 1 and 2 stream */
	assert_true(got[0] == 320 && got[1] == 80 && got[2] == 80 && got[3] == 320);
	evict_split(&duo_floor, &in, got, work);
	assert_true(got[0] == 350 && got[1] == 50 && got[2] == 50 && got[3] == 350);
	table[0] = table[3] = 0.1f;		/* all stream: equal */
	evict_split(&duo, &in, got, work);
	assert_true(got[0] == 200 && got[1] == 200 && got[2] == 200 && got[3] == 200);
	in.table = NULL;
	evict_split(&headkv, &in, got, work);
	assert_true(got[0] == 200 && got[3] == 200);
}

/* --- all of them, for anything ---------------------------------------------------------------------------------------------------- */

static struct evict_split any_split(uint64_t *random)
{
	struct evict_split split = { .id = world_below(random, EVICT_N_SPLITS) };
	const struct evict_split_info *info = &evict_splits[split.id];

	for (uint32_t i = 0; i < info->n_params; i++) {
		const struct evict_param *p = &info->param[i];
		const float at = (float)world_below(random, 1001) / 1000.0f;

		split.param[i] = world_below(random, 2) ? p->def : p->min + at * ((p->max < 100.0f ? p->max : 100.0f) - p->min);
	}
	return split;
}

static void every_split_adds_up_for_anything(void **state)
{
	uint64_t seed = seed_of_tests();

	(void)state;
	for (unsigned round = 0; round < 4000; round++, seed++) {
		uint64_t random = seed;
		const struct evict_split split = any_split(&random);
		const uint32_t heads = 1 + world_below(&random, 8), layers = 1 + world_below(&random, 1 + world_below(&random, 60));
		const uint32_t n = heads * layers, floor = world_below(&random, 100), ceiling = floor + 1 + world_below(&random, 4000);
		struct evict_split_in in = { .n_layers = layers, .n_kv_heads = heads, .floor = floor, .ceiling = ceiling, .window = 32,
					     .queries = 96, .total = (uint64_t)n * floor + world_random(&random) % ((uint64_t)n * (ceiling - floor)) };

		if (n > MAX_LANES)
			continue;
		for (uint32_t i = 0; i < n; i++)
			table[i] = (float)any_weight(&random);
		table[world_below(&random, n)] = 1.0f;
		in.table = world_below(&random, 2) ? table : NULL;
		evict_split(&split, &in, got, work);
		if (sum_of(got, n) != in.total)
			fail_msg("EBB_TEST_SEED=%llu: %s gives %llu slots of %llu", (unsigned long long)seed, evict_splits[split.id].name,
				 (unsigned long long)sum_of(got, n), (unsigned long long)in.total);
		for (uint32_t i = 0; i < n; i++)
			assert_true(got[i] >= floor && got[i] <= ceiling);
		evict_split(&split, &in, kept, work);
		assert_memory_equal(got, kept, n * sizeof(*got));
	}
}

/* --- when a share-out changes ------------------------------------------------------------------------------------------------------ */

static void a_new_split_waits_until_it_is_worth_the_moves(void **state)
{
	const struct evict_split headkv = split_of("head:beta=1");
	struct evict_split_in in = { .n_layers = 1, .n_kv_heads = 4, .total = 1000, .floor = 50, .ceiling = 900, .table = table };

	(void)state;
	memset(got, 0, sizeof(got));
	memset(target, 0, sizeof(target));
	for (uint32_t i = 0; i < 4; i++)
		table[i] = 250.0f;
	assert_int_equal(evict_resplit(&headkv, &in, got, target, work), 1);		/* the first is always taken */
	assert_true(got[0] == 250 && got[3] == 250);
	table[0] = 265.0f;
	table[1] = 235.0f;
	assert_int_equal(evict_resplit(&headkv, &in, got, target, work), 0);		/* 15 of 1000 */
	assert_true(got[0] == 250 && got[1] == 250);
	in.total = 1200;
	table[0] = 270.0f;
	table[1] = 230.0f;
	assert_int_equal(evict_resplit(&headkv, &in, got, target, work), 1);		/* it grows: nobody loses a slot */
	assert_true(got[0] == 324 && got[1] == 276 && got[2] == 300);
	table[0] = 300.0f;
	table[1] = 200.0f;
	assert_int_equal(evict_resplit(&headkv, &in, got, target, work), 0);		/* 36 of 1200 */
	assert_int_equal(got[0], 324);
	table[0] = 310.0f;
	table[1] = 190.0f;
	assert_int_equal(evict_resplit(&headkv, &in, got, target, work), 1);		/* 48 of 1200 */
	assert_true(got[0] == 372 && got[1] == 228);
	table[0] = 315.0f;
	table[1] = 185.0f;
	assert_int_equal(evict_resplit(&headkv, &in, got, target, work), 0);
	assert_int_equal(evict_resplit(&headkv, &in, got, target, work), 1);		/* at rest */
	assert_true(got[0] == 378 && got[1] == 222);
	table[0] = 320.0f;
	table[1] = 180.0f;
	in.total = 1210;	/* it grows, but a lane would shrink for little: proportions stay, at the new total */
	assert_int_equal(evict_resplit(&headkv, &in, got, target, work), 0);
	assert_true(got[0] == 381 && got[1] == 224);
	assert_int_equal(sum_of(got, 4), 1210);
}

/* --- tables of lanes ------------------------------------------------------------------------------------------------------------------ */

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
	uint64_t random = seed_of_tests();
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

static void splits_are_parsed_like_policies(void **state)
{
	struct evict_split split;
	char why[256];

	(void)state;
	for (uint32_t i = 0; i < EVICT_N_SPLITS; i++) {
		assert_int_equal(evict_split_parse(evict_splits[i].name, &split, NULL, 0), 0);
		assert_int_equal(split.id, i);
		assert_true(strlen(evict_splits[i].text) > 10 && strlen(evict_splits[i].source) > 5);
		for (uint32_t k = 0; k < evict_splits[i].n_params; k++) {
			const struct evict_param *p = &evict_splits[i].param[k];

			assert_true(split.param[k] == p->def && p->def >= p->min && p->def <= p->max && p->text);
			assert_true(evict_split_param(&split, p->name) == p->def);
		}
		assert_true(evict_split_param(&split, "nothing") == 0.0f);
	}
	split = split_of("pyramid:beta=10,reverse=1");
	assert_true(split.param[0] == 10.0f && split.param[1] == 1.0f);
	assert_int_equal(evict_split_parse("cone", &split, why, sizeof(why)), -EINVAL);
	assert_true(strncmp(why, "found split \"cone\"; allowed: uniform, pyramid, head", 50) == 0);
	assert_int_equal(evict_split_parse("pyramid:beta=0.5", &split, why, sizeof(why)), -EINVAL);
	assert_string_equal(why, "parameter beta: found \"0.5\"; allowed: 1 to 1000");
	assert_int_equal(evict_split_parse("pyramid:beta=nan", &split, why, sizeof(why)), -EINVAL);
	assert_int_equal(evict_split_parse("uniform:a=1", &split, why, sizeof(why)), -EINVAL);
	assert_string_equal(why, "found parameter \"a\"; split uniform has no parameters");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(shares_are_as_the_cases_say),
		cmocka_unit_test(a_weight_that_is_no_number_counts_as_nothing),
		cmocka_unit_test(shares_keep_their_promises_for_anything),
		cmocka_unit_test(equal_shares_are_equal),
		cmocka_unit_test(a_pyramid_falls_in_equal_steps_and_adds_up),
		cmocka_unit_test(heads_get_what_the_table_says),
		cmocka_unit_test(every_split_adds_up_for_anything),
		cmocka_unit_test(a_new_split_waits_until_it_is_worth_the_moves),
		cmocka_unit_test(a_table_of_lanes_is_read),
		cmocka_unit_test(a_bad_table_is_refused_with_line_value_and_what_is_allowed),
		cmocka_unit_test(random_tables_never_harm),
		cmocka_unit_test(splits_are_parsed_like_policies),
	};

	return cmocka_run_group_tests_name("evict split", tests, NULL, NULL);
}
