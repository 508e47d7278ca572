/*
 * split measured: equal marginal loss, against an oracle that finds the convex minorant of the losses by trying all chords and works
 * with libm; exact totals, floors, ceilings; the same for a longer text when curves stretch with it.
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

#include "evict/evict.h"
#include "tests/lib/world.h"

enum { MOST = 40, BUDGETS = 4 };

static struct evict_lanes about;
static float table[MOST], curve[MOST * EVICT_MAX_CURVE];
static double loss[MOST][BUDGETS + 1], work[2 * MOST];
static uint32_t got[MOST], more[MOST];

static struct evict_split split_of(const char *text)
{
	struct evict_split split;

	assert_int_equal(evict_split_parse(text, &split, NULL, 0), 0);
	return split;
}

/* A table of n lanes, through its text. Losses fall as people's would, with noise, now and then rising, and some are nothing. */
static void make_table(uint64_t *random, uint32_t n)
{
	static const uint32_t budget[BUDGETS + 1] = { 64, 160, 400, 1000, 2048 };
	char text[8192], why[200];
	int at = snprintf(text, sizeof(text), "ebbd-lanes 1 %u 1\ntokens 2048\nwindow %u\nbudgets 64 160 400 1000\n", n,
			  8 + world_below(random, 25));

	for (uint32_t i = 0; i < n; i++) {
		const double size = pow(10.0, -(double)world_below(random, 6)), fall = 0.2 + 0.3 * world_below(random, 8);
		const int none = world_below(random, 12) == 0;

		at += snprintf(text + at, sizeof(text) - (size_t)at, "%u 0 1", i);
		for (uint32_t k = 0; k < BUDGETS; k++) {
			char number[32];

			snprintf(number, sizeof(number), "%.4g", none ? 0.0 : size * pow(64.0 / budget[k], fall) *
				 (0.7 + 0.06 * world_below(random, 10)));
			loss[i][k] = (double)strtof(number, NULL);
			at += snprintf(text + at, sizeof(text) - (size_t)at, " %s", number);
		}
		at += snprintf(text + at, sizeof(text) - (size_t)at, "\n");
		loss[i][BUDGETS] = 0.0;
	}
	if (evict_lanes_parse(text, (size_t)at, n, 1, NULL, &about, table, curve, why, sizeof(why)))
		fail_msg("%s", why);
}

static double budget_at(uint32_t k)
{
	return k < BUDGETS ? (double)about.budget[k] : (double)about.tokens;
}

/* The largest convex curve below the losses at budget k: the lowest chord there. */
static double minorant(const double *l, uint32_t k)
{
	double least = l[k];

	for (uint32_t i = 0; i < k; i++)
		for (uint32_t j = k + 1; j <= BUDGETS; j++)
			least = fmin(least, l[i] + (l[j] - l[i]) * (budget_at(k) - budget_at(i)) / (budget_at(j) - budget_at(i)));
	return least;
}

/* log2 of the marginal loss of a lane at so many slots, if the window's own tokens take `window` of them. */
static double marginal(uint32_t lane, double slots, uint32_t window)
{
	double x[BUDGETS], y[BUDGETS];
	uint32_t k = 0;

	slots += (double)about.window - window;
	for (uint32_t i = 0; i < BUDGETS; i++) {
		x[i] = 0.5 * (log2(budget_at(i)) + log2(budget_at(i + 1)));
		y[i] = log2(fmax((minorant(loss[lane], i) - minorant(loss[lane], i + 1)) / (budget_at(i + 1) - budget_at(i)), 1e-30));
		if (i)
			y[i] = fmin(y[i], y[i - 1] - 0.5 * (x[i] - x[i - 1]));
	}
	while (k + 2 < BUDGETS && log2(slots) > x[k + 1])
		k++;
	return y[k] + (log2(slots) - x[k]) * (y[k + 1] - y[k]) / (x[k + 1] - x[k]);
}

static void one_slot_more_saves_the_same_everywhere(void **state)
{
	const struct evict_split split = split_of("measured");
	uint64_t seed = getenv("EBB_TEST_SEED") ? strtoull(getenv("EBB_TEST_SEED"), NULL, 0) : 20261123;

	(void)state;
	for (unsigned round = 0; round < 500; round++, seed++) {
		uint64_t random = seed, sum = 0;
		const uint32_t n = 1 + world_below(&random, MOST), floor = 36 + world_below(&random, 40);
		const uint32_t ceiling = floor + world_below(&random, 3000);
		struct evict_split_in in = { .n_layers = n, .n_kv_heads = 1, .floor = floor, .ceiling = ceiling, .table = table,
					     .lanes = &about, .curve = curve, .window = 8 + world_below(&random, 25) };

		in.total = (uint64_t)n * floor + world_below(&random, n * (ceiling - floor) + 1);
		make_table(&random, n);
		evict_split(&split, &in, got, work);
		for (uint32_t i = 0; i < n; i++) {
			sum += got[i];
			assert_true(got[i] >= floor && got[i] <= ceiling);
			for (uint32_t k = 0; k < n; k++)	/* but for rounding */
				if (got[i] > floor && got[k] + 2 <= ceiling &&
				    marginal(k, got[k] + 2.0, in.window) > marginal(i, got[i] - 2.0, in.window) + 1e-3)
					fail_msg("EBB_TEST_SEED=%llu: lane %u of %u slots would miss less than %u of %u gains: %f, %f", (unsigned long long)seed,
						 i, got[i], k, got[k], marginal(i, got[i] - 2.0, in.window), marginal(k, got[k] + 2.0, in.window));
		}
		assert_int_equal(sum, in.total);
		in.total = in.total + n <= (uint64_t)n * ceiling ? in.total + n : (uint64_t)n * ceiling;
		evict_split(&split, &in, more, work);
		for (uint32_t i = 0; i < n; i++)	/* but for rounding nobody pays for a larger total */
			assert_true(more[i] + 1 >= got[i]);
	}
}

/* Two lanes whose losses fall as 4 / slots and 1 / slots, on texts that are long enough: twice the slots for the first. */
static void figures_of_a_case_by_hand(void **state)
{
	static const char text[] = "ebbd-lanes 1 2 1\ntokens 1048576\nbudgets 64 128 256 512\n"
				   "0 0 1 0.0625 0.03125 0.015625 0.0078125\n1 0 1 0.015625 0.0078125 0.00390625 0.001953125\n";
	const struct evict_split split = split_of("measured");
	struct evict_split_in in = { .n_layers = 2, .n_kv_heads = 1, .total = 450, .floor = 32, .ceiling = 4096, .table = table,
				     .lanes = &about, .curve = curve, .window = 32 };

	(void)state;
	assert_int_equal(evict_lanes_parse(text, strlen(text), 2, 1, NULL, &about, table, curve, NULL, 0), 0);
	evict_split(&split, &in, got, work);
	assert_true(got[0] == 300 && got[1] == 150);
	in.total = 466;
	in.window = 40;		/* the table does not say, so it was 32: eight slots of each lane more are the window's */
	evict_split(&split, &in, got, work);
	assert_true(got[0] == 308 && got[1] == 158);
	in.window = 32;
	in.total = 90;
	evict_split(&split, &in, got, work);
	assert_true(got[0] == 58 && got[1] == 32);	/* the floor */
	in.total = 600;
	in.ceiling = 350;
	evict_split(&split, &in, got, work);
	assert_true(got[0] == 350 && got[1] == 250);
}

static void on_half_the_text_half_the_slots_mean_the_same(void **state)
{
	const struct evict_split stretched = split_of("measured:scale=1");
	uint64_t random = 5;
	struct evict_split_in in = { .n_layers = MOST, .n_kv_heads = 1, .total = MOST * 512, .floor = 2, .ceiling = 2048, .table = table,
				     .lanes = &about, .curve = curve };

	(void)state;
	make_table(&random, MOST);
	in.window = about.window;
	evict_split(&stretched, &in, got, work);
	in.total /= 2;
	in.ceiling /= 2;
	in.floor /= 2;
	evict_split(&stretched, &in, more, work);
	for (uint32_t i = 0; i < MOST; i++)
		assert_true(2 * more[i] + 2 >= got[i] && 2 * more[i] <= got[i] + 2);
}

static void without_curves_it_is_uniform(void **state)
{
	const struct evict_split split = split_of("measured");
	struct evict_split_in in = { .n_layers = 2, .n_kv_heads = 1, .total = 401, .floor = 32, .ceiling = 4096 };

	(void)state;
	evict_split(&split, &in, got, work);
	assert_true(got[0] == 201 && got[1] == 200);
	about.n_budgets = 0;
	in.table = table;
	in.curve = curve;
	in.lanes = &about;
	evict_split(&split, &in, got, work);
	assert_true(got[0] == 201 && got[1] == 200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_slot_more_saves_the_same_everywhere),
		cmocka_unit_test(figures_of_a_case_by_hand),
		cmocka_unit_test(on_half_the_text_half_the_slots_mean_the_same),
		cmocka_unit_test(without_curves_it_is_uniform),
	};

	return cmocka_run_group_tests_name("split measured", tests, NULL, NULL);
}
