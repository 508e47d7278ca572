/* evict_apportion, and every split against its formula. Tables are in test_lanes.c, evict_resplit in test_resplit.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>

#include "evict/evict.h"
#include "tests/lib/world.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))
#define MAX_LANES 600
static uint32_t got[MAX_LANES], kept[MAX_LANES];
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
	return getenv("EBB_TEST_SEED") ? strtoull(getenv("EBB_TEST_SEED"), NULL, 0) : 20261123;
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
		struct evict_split_in in = { .n_layers = layers, .n_kv_heads = 3, .total = 3 * layers * 256ull, .floor = 64,
					     .ceiling = 4096 };

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

/* --- splits that measure: against their formulas written out over slots --------------------------------------------------------------- */

enum { GL = 3, GH = 2, GLANES = GL * GH, GSLOTS = 200 };

static struct evict_lane_stats stats[MAX_LANES];
static float rank_of[GLANES][GSLOTS], heat_of[GLANES][GSLOTS];

/* Lanes of GSLOTS slots, the first `held` of them protected; ranks and heats are powers of two with two bits behind the point. */
static void make_stats(uint64_t seed, uint32_t held)
{
	uint64_t random = seed;

	memset(stats, 0, sizeof(stats));
	for (uint32_t l = 0; l < GLANES; l++) {
		stats[l].live = GSLOTS;
		stats[l].free = GSLOTS - held;
		for (uint32_t i = 0; i < GSLOTS; i++) {
			const float quarter = 1.0f + 0.25f * (float)world_below(&random, 4);

			rank_of[l][i] = quarter * (float)(1u << world_below(&random, 4 + 3 * l)) / 65536.0f;
			heat_of[l][i] = quarter * (float)(1u << world_below(&random, 3 + 2 * l)) / 65536.0f;
			if (i >= held)
				stats[l].rank[evict_bin(rank_of[l][i])]++;
			stats[l].heat[evict_bin(heat_of[l][i])]++;
			stats[l].heat_sum += heat_of[l][i];
			stats[l].heat_squares += heat_of[l][i] * heat_of[l][i];
			stats[l].second_sum += heat_of[l][i] * heat_of[l][i] / (float)(2 + l);
			stats[l].heat_max = heat_of[l][i] > stats[l].heat_max ? heat_of[l][i] : stats[l].heat_max;
		}
		stats[l].heat_near = stats[l].heat_sum * (l / GH == 1 ? 0.95f : 0.5f);
	}
}

static struct evict_split_in measured(void)
{
	return (struct evict_split_in){ .n_layers = GL, .n_kv_heads = GH, .total = GLANES * 128, .floor = 40, .ceiling = 2000, .window = 32,
					.queries = 96, .stats = stats };
}

/* Slots of lane l among the `keep` best of lanes first .. first + n - 1; equal ranks count by their share. By comparing every two. */
static double kept_of(uint32_t l, uint32_t first, uint32_t n, double keep, uint32_t held)
{
	double mine = held;

	keep -= n * held;
	for (uint32_t i = held; i < GSLOTS; i++) {
		double above = 0, equal = 0;

		for (uint32_t k = first; k < first + n; k++)
			for (uint32_t j = held; j < GSLOTS; j++) {
				above += rank_of[k][j] > rank_of[l][i];
				equal += rank_of[k][j] == rank_of[l][i];
			}
		mine += above + equal <= keep ? 1.0 : above < keep ? (keep - above) / equal : 0.0;
	}
	return mine;
}

static void near(uint32_t slots, double want, const char *what)
{
	if (!(fabs(slots - want) <= 1.0))
		fail_msg("%s: %u slots, the formula says %f", what, slots, want);
}

static void ada_gives_heads_what_their_ranks_win(void **state)
{
	const struct evict_split ada = split_of("ada"), pure = split_of("ada:alpha=0"), none = split_of("ada:alpha=1");
	struct evict_split_in in = measured();

	(void)state;
	for (uint32_t held = 0; held < 60; held += 25) {
		make_stats(99 + held, held);
		evict_split(&ada, &in, got, work);
		for (uint32_t l = 0; l < GLANES; l++) {
			near(got[l], 32 + 0.2 * 96 + 0.8 * kept_of(l, l / GH * GH, GH, GH * 96, held), "ada");
			if (l % GH)
				assert_int_equal(got[l] + got[l - 1], 2 * 128);		/* a layer's slots stay in the layer */
		}
		evict_split(&pure, &in, got, work);
		for (uint32_t l = 0; l < GLANES; l++) {
			double want = 32 + kept_of(l, l / GH * GH, GH, GH * 96, held);

			near(got[l], want < 40 ? 40 : want > 216 ? 216 : want, "ada:alpha=0");
		}
		evict_split(&none, &in, got, work);
		for (uint32_t l = 0; l < GLANES; l++)
			assert_int_equal(got[l], 128);
	}
}

static void dynamic_gives_layers_what_their_ranks_win(void **state)
{
	const struct evict_split dynamic = split_of("dynamic");
	struct evict_split_in in = measured();

	(void)state;
	make_stats(7, 10);
	in.floor = 0;
	evict_split(&dynamic, &in, got, work);
	for (uint32_t l = 0; l < GLANES; l += GH) {
		near(got[l], 32 + (kept_of(l, 0, GLANES, GLANES * 96, 10) + kept_of(l + 1, 0, GLANES, GLANES * 96, 10)) / 2, "dynamic");
		near(got[l + 1], got[l], "dynamic");
	}
}

/* The entropy of a histogram of one bin a value is exact but for the middle of the bin, which all values share. */
static void cake_follows_spread_and_change(void **state)
{
	const struct evict_split cake = split_of("cake"), flat = split_of("cake:tau1=1000,tau2=1000");
	struct evict_split_in in = measured();
	double want[GL], sum = 0;

	(void)state;
	make_stats(3, 0);
	for (uint32_t layer = 0; layer < GL; layer++) {
		double h = 0, v = 0;

		for (uint32_t l = layer * GH; l < layer * GH + GH; l++) {
			double mass = 0;

			for (uint32_t i = 0; i < GSLOTS; i++)
				mass += (double)heat_of[l][i];
			for (uint32_t i = 0; i < GSLOTS; i++)
				h -= (double)heat_of[l][i] / mass * log((double)heat_of[l][i] / mass) / GH;
			stats[l].second_sum = stats[l].heat_squares / 96.0f * (2.0f + (float)l);	/* so V > 0 */
			v += ((double)stats[l].second_sum / 96.0 - (double)stats[l].heat_squares / 96.0 / 96.0) / GH;
		}
		want[layer] = h * v;
		sum += want[layer];
	}
	in.floor = 0;
	evict_split(&cake, &in, got, work);
	for (uint32_t l = 0; l < GLANES; l++)
		if (fabs(got[l] - want[l / GH] / sum * 128 * GL) > 2 + 0.02 * got[l])	/* the middles of bins: 2 % */
			fail_msg("cake: lane %u has %u, the formula says %f", l, got[l], want[l / GH] / sum * 128 * GL);
	evict_split(&flat, &in, got, work);
	for (uint32_t l = 0; l < GLANES; l++)
		near(got[l], 128, "cake, high temperatures");
}

static void sparsity_counts_slots_that_matter(void **state)
{
	const struct evict_split sparsity = split_of("sparsity:threshold=0.25");
	struct evict_split_in in = measured();
	double dense[GL] = { 0 }, sum = 0;

	(void)state;
	make_stats(5, 0);
	for (uint32_t l = 0; l < GLANES; l++)
		for (uint32_t i = 0; i < GSLOTS; i++) {
			dense[l / GH] += heat_of[l][i] >= 0.25f * stats[l].heat_max;
			sum += heat_of[l][i] >= 0.25f * stats[l].heat_max;
		}
	in.floor = 0;
	evict_split(&sparsity, &in, got, work);
	for (uint32_t l = 0; l < GLANES; l++)
		near(got[l], dense[l / GH] / sum * 128 * GL, "sparsity");
}

static void lazy_layers_keep_what_is_near(void **state)
{
	const struct evict_split lazy = split_of("lazy-layer:recent=16"), paper = split_of("lazy-layer");
	struct evict_split_in in = measured();

	(void)state;
	make_stats(11, 0);	/* layer 1 is lazy */
	evict_split(&lazy, &in, got, work);
	for (uint32_t l = 0; l < GLANES; l++)
		assert_int_equal(got[l], l / GH == 1 ? 52 : 166);	/* 4 + 16 + 32; (6 * 128 - 2 * 52) / 4 */
	evict_split(&paper, &in, got, work);				/* 1024 newest are more than there are */
	for (uint32_t l = 0; l < GLANES; l++)
		assert_int_equal(got[l], 128);
}

static void lanes_that_are_alike_get_the_same(void **state)
{
	(void)state;
	for (uint32_t id = 0; id < EVICT_N_SPLITS; id++) {
		struct evict_split_in in = measured();
		struct evict_split split = split_of(evict_splits[id].name);

		make_stats(13, 20);
		for (uint32_t l = 1; l < GLANES; l++)
			stats[l] = stats[0];
		for (uint32_t l = 0; l < GLANES; l++)
			table[l] = 3.0f;
		in.table = table;
		if (id == EVICT_SPLIT_pyramid)		/* the one that does not look at the lanes */
			split.param[0] = 1.0f;
		evict_split(&split, &in, got, work);
		for (uint32_t l = 0; l < GLANES; l++)
			if (got[l] != 128)
				fail_msg("%s: lane %u gets %u of 128", evict_splits[id].name, l, got[l]);
		in.stats = NULL;			/* nothing known yet */
		evict_split(&split, &in, got, work);
		for (uint32_t l = 0; l < GLANES; l++)
			assert_int_equal(got[l], 128);
	}
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

static struct evict_lane_stats many[MAX_LANES];

static float any_float(uint64_t *random)
{
	const uint32_t bits = (uint32_t)world_random(random);
	float x;

	memcpy(&x, &bits, sizeof(x));
	return world_below(random, 4) ? evict_clean(x) : 0.0f;
}

/* What select would never say as well: statistics that do not hang together must not harm either. */
static void any_stats(uint64_t *random, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct evict_lane_stats *s = &many[i];

		memset(s, 0, sizeof(*s));
		s->live = world_below(random, 3000);
		s->free = s->live ? world_below(random, s->live) : 0;
		for (uint32_t k = 0; k < 300; k++) {
			s->rank[world_below(random, EVICT_BINS)] = (uint16_t)world_below(random, 3000);
			s->heat[world_below(random, EVICT_BINS)] = (uint16_t)world_below(random, 3000);
		}
		s->heat_sum = any_float(random);
		s->heat_near = any_float(random);
		s->heat_squares = any_float(random);
		s->second_sum = any_float(random);
		s->heat_max = any_float(random);
	}
}

static void every_split_adds_up_for_anything(void **state)
{
	uint64_t seed = seed_of_tests();

	(void)state;
	for (unsigned round = 0; round < 1500; round++, seed++) {
		uint64_t random = seed;
		const struct evict_split split = any_split(&random);
		const uint32_t heads = 1 + world_below(&random, 8), layers = 1 + world_below(&random, 1 + world_below(&random, 60));
		const uint32_t n = heads * layers, floor = world_below(&random, 100), ceiling = floor + 1 + world_below(&random, 4000);
		struct evict_split_in in = { .n_layers = layers, .n_kv_heads = heads, .floor = floor, .ceiling = ceiling, .window = 32,
					     .queries = 96, .total = (uint64_t)n * floor };

		if (n > MAX_LANES)
			continue;
		in.total += world_random(&random) % ((uint64_t)n * (ceiling - floor));
		for (uint32_t i = 0; i < n; i++)
			table[i] = (float)any_weight(&random);
		table[world_below(&random, n)] = 1.0f;
		in.table = world_below(&random, 2) ? table : NULL;
		any_stats(&random, n);
		in.stats = world_below(&random, 8) ? many : NULL;
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

/* --- settings ---------------------------------------------------------------------------------------------------------------------- */

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
		cmocka_unit_test(ada_gives_heads_what_their_ranks_win),
		cmocka_unit_test(dynamic_gives_layers_what_their_ranks_win),
		cmocka_unit_test(cake_follows_spread_and_change),
		cmocka_unit_test(sparsity_counts_slots_that_matter),
		cmocka_unit_test(lazy_layers_keep_what_is_near),
		cmocka_unit_test(lanes_that_are_alike_get_the_same),
		cmocka_unit_test(every_split_adds_up_for_anything),
		cmocka_unit_test(splits_are_parsed_like_policies),
	};

	return cmocka_run_group_tests_name("evict split", tests, NULL, NULL);
}
