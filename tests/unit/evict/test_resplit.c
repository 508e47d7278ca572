/* evict_resplit: when a share-out changes. One layer of four lanes, which share by a table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "evict/evict.h"

static uint32_t got[4], target[4];
static double work[8];
static float table[4];
static struct evict_split headkv;

static int split_by_table(void **state)
{
	(void)state;
	memset(got, 0, sizeof(got));
	memset(target, 0, sizeof(target));
	return evict_split_parse("head:beta=1", &headkv, NULL, 0);
}

static void a_new_split_waits_until_it_is_worth_the_moves(void **state)
{
	struct evict_split_in in = { .n_layers = 1, .n_kv_heads = 4, .total = 1000, .floor = 50, .ceiling = 900, .table = table };

	(void)state;
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
	assert_int_equal(got[0] + got[1] + got[2] + got[3], 1210);
}

/* What is evicted while it waits never comes back. */
static void a_lane_that_holds_all_tokens_waits_for_nothing(void **state)
{
	struct evict_split_in in = { .n_layers = 1, .n_kv_heads = 4, .total = 4000, .floor = 50, .ceiling = 1500, .table = table };

	(void)state;
	table[0] = 3000.0f;
	table[1] = 500.0f;
	table[2] = 250.0f;
	table[3] = 250.0f;
	assert_int_equal(evict_resplit(&headkv, &in, got, target, work), 1);
	assert_int_equal(got[0], 1500);
	in.ceiling = 1532;
	assert_int_equal(evict_resplit(&headkv, &in, got, target, work), 1);		/* 32 of 4000 */
	assert_int_equal(got[0], 1532);
	assert_true(got[1] < 1250 && got[2] < 625);
	assert_int_equal(got[0] + got[1] + got[2] + got[3], 4000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(a_new_split_waits_until_it_is_worth_the_moves, split_by_table),
		cmocka_unit_test_setup(a_lane_that_holds_all_tokens_waits_for_nothing, split_by_table),
	};

	return cmocka_run_group_tests_name("evict resplit", tests, NULL, NULL);
}
