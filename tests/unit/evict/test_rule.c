/* What a slot is worth: the order of evict_key(), heat that is cleaned, folds and ranks, and the golden case of methods.md. */
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
#include "tests/lib/oracle.h"
#include "tests/lib/world.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))

static float from_bits(uint32_t bits)
{
	float x;

	memcpy(&x, &bits, sizeof(x));
	return x;
}

/* --- order ------------------------------------------------------------------------------------------------------------------- */

static void ranks_are_ordered_as_the_floats_are(void **state)
{
	const float rising[] = { -INFINITY, -3.4e38f, -1.0f, -1e-30f, -1e-45f, 0.0f, 1e-45f, 1e-30f, 0.5f, 1.0f, 1.0000001f, 3.4e38f,
				 INFINITY };

	(void)state;
	for (size_t i = 0; i + 1 < N(rising); i++)
		assert_true(evict_order(rising[i]) < evict_order(rising[i + 1]));
	assert_int_equal(evict_order(-0.0f), evict_order(0.0f));
	for (uint32_t sign = 0; sign < 2; sign++) {
		assert_int_equal(evict_order(from_bits(0x7fc00000u | sign << 31)), 0);	/* NaN, quiet and signalling */
		assert_int_equal(evict_order(from_bits(0x7f800001u | sign << 31)), 0);
	}
	assert_true(evict_order(-INFINITY) > 0);
}

static void random_ranks_are_ordered_as_the_floats_are(void **state)
{
	uint64_t random = 5;

	(void)state;
	for (int i = 0; i < 1000000; i++) {
		const float a = from_bits((uint32_t)world_random(&random)), b = from_bits((uint32_t)world_random(&random));

		if (isnan(a) || isnan(b))
			continue;
		assert_int_equal(a < b, evict_order(a) < evict_order(b));
		assert_int_equal(a == b, evict_order(a) == evict_order(b));
	}
}

/* A policy with its defaults. */
static struct evict_rule rule_of(const char *text)
{
	struct evict_rule rule = { 0 };

	assert_int_equal(evict_parse(text, &rule, NULL, 0), 0);
	return rule;
}

static const struct evict_lane at_1000 = { .now = 1000, .constant = 1.0f };

/* A slot of policy h2o, whose rank is its credit. */
static struct evict_slot slot(int32_t pos, float credit)
{
	return (struct evict_slot){ .pos = pos, .credit = { credit } };
}

static void keys_go_by_protection_then_rank_then_position(void **state)
{
	struct evict_rule rule = rule_of("h2o");
	const struct evict_slot leaving[] = {	/* with recent = 50: positions from 950 on */
		slot(500, NAN), slot(501, NAN), slot(400, -INFINITY), slot(300, -1.0f), slot(100, 0.0f), slot(101, -0.0f), slot(949, 0.0f),
		slot(600, 1e-40f), slot(200, 5.0f), slot(949, INFINITY),
		slot(4, NAN), slot(99, 0.0f), slot(50, 7.0f),			/* the pinned prompt */
		slot(999, NAN), slot(950, 0.0f), slot(951, 0.0f), slot(980, 9.0f),	/* recent */
		slot(3, NAN), slot(0, 0.0f), slot(1, 1e30f),			/* sinks */
	};

	(void)state;
	rule.sinks = 4;
	rule.pinned = 100;
	for (size_t i = 0; i + 1 < N(leaving); i++)
		if (evict_key(&rule, &at_1000, 50, &leaving[i]) >= evict_key(&rule, &at_1000, 50, &leaving[i + 1]))
			fail_msg("slot %zu does not leave before slot %zu", i, i + 1);
}

static void protection_has_its_exact_edges(void **state)
{
	struct evict_rule rule = { .policy = EVICT_streaming, .sinks = 4, .pinned = 10 };
	static const struct { int32_t pos; uint32_t recent, tier; } cases[] = {
		{ 0, 0, 3 }, { 3, 0, 3 }, { 4, 0, 1 }, { 9, 0, 1 }, { 10, 0, 0 }, { 999, 0, 0 }, { 999, 1, 2 }, { 998, 1, 0 },
		{ 5, 2000, 2 }, { 3, 2000, 3 }, { 5, UINT32_MAX, 2 },
	};

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		const struct evict_slot s = slot(cases[i].pos, 0.0f);

		assert_int_equal(evict_key(&rule, &at_1000, cases[i].recent, &s) >> 62, cases[i].tier);
	}
	rule.sinks = rule.pinned = 0;
	assert_int_equal(evict_key(&rule, &(struct evict_lane){ .now = 1 }, 0, &(struct evict_slot){ .pos = 0 }) >> 62, 0);
	/* the largest positions still order */
	const struct evict_lane late = { .now = INT32_MAX };
	const struct evict_slot last = { .pos = EVICT_MAX_POSITION }, before = { .pos = EVICT_MAX_POSITION - 1 };

	assert_true(evict_key(&rule, &late, 0, &before) < evict_key(&rule, &late, 0, &last));
}

static void heat_that_cannot_be_counts_as_nothing(void **state)
{
	static const struct { uint32_t bits, want; } cases[] = {
		{ 0x7fc00000, 0 }, { 0xffc00000, 0 }, { 0x7f800000, 0 }, { 0xff800000, 0 }, { 0xbf800000, 0 }, { 0x80000001, 0 },
		{ 0x7f7fffff, 0 }, { 0x3f800000, 0x3f800000 }, { 0x00000001, 0x00000001 }, { 0, 0 },
	};

	(void)state;
	for (size_t i = 0; i < N(cases); i++)
		assert_true(evict_clean(from_bits(cases[i].bits)) == from_bits(cases[i].want));
	assert_true(evict_clean(1e30f) == 1e30f);
	assert_true(evict_clean(-0.0f) == 0.0f);
}

/* --- policies ------------------------------------------------------------------------------------------------------------------ */

static void h2o_adds_heat_to_credit_and_ranks_by_it(void **state)
{
	const struct evict_rule rule = rule_of("h2o");
	struct evict_slot s = { .pos = 500, .heat = { 0.25f, 9.0f }, .credit = { 1.5f, 3.0f } };

	(void)state;
	evict_fold(&rule, &at_1000, &s);
	assert_true(s.credit[0] == 1.75f && s.credit[1] == 3.0f);
	assert_true(evict_rank(&rule, &at_1000, &s) == 1.75f);
}

/* spare=0.4: none of a lane with half the average or less, all of it from 1.5 times that on; sessions below 192 slots a lane less, below 96 none. */
static void ebb_spares_what_stands_out(void **state)
{
	static const struct { uint32_t live, budget; float share; } cases[] = {
		{ 0, 0, 0.0f }, { 0, 192, 0.0f }, { 96, 192, 0.0f }, { 192, 192, 0.2f }, { 240, 192, 0.3f }, { 288, 192, 0.4f }, { 5000, 192, 0.4f },
		{ 96, 96, 0.0f }, { 960, 96, 0.0f }, { 144, 144, 0.1f }, { 960, 144, 0.2f }, { 2000, 1000, 0.4f }, { 1000, 0, 0.2f }, { 144, 0, 0.1f },
	};
	struct evict_rule rule;
	struct evict_slot plain = { .pos = 7, .credit = { 50.0f }, .trait = { 0.25f } }, far = { .pos = 3, .trait = { 1.5f } };
	struct evict_lane lane;

	(void)state;
	assert_int_equal(evict_parse("ebb:spare=0.4", &rule, NULL, 0), 0);
	for (size_t i = 0; i < N(cases); i++) {
		rule.budget = cases[i].budget;
		lane = evict_lane_at(&rule, 0, 1000, 8, 1, cases[i].live);
		assert_true(fabsf(evict_share(&rule, &lane) - cases[i].share) < 1e-6f);
	}
	/* Of 1000 slots 900 may leave and 400 are to: of the 500 that stay 0.4 (600 / 500 - 1/2) are spared. */
	rule.budget = 500;
	lane = evict_lane_at(&rule, 0, 1000, 8, 1, 1000);
	lane.keep = 600;
	assert_true(fabsf(evict_share(&rule, &lane) - 0.28f) < 1e-6f);
	assert_int_equal(evict_n_spared(&rule, &lane, 1000, 900), 140);
	assert_int_equal(evict_n_spared(&rule, &lane, 600, 500), 140);		/* they have left */
	assert_int_equal(evict_n_spared(&rule, &lane, 1000, 400), 0);
	assert_true(evict_figure(&rule, &lane, &plain) == 0.25f && evict_figure(&rule, &lane, &far) == 1.5f);
	assert_true(evict_rank(&rule, &lane, &far) < evict_rank(&rule, &lane, &plain));	/* nothing is spared yet */
	lane.cut = evict_place(1.0f, 0);
	assert_true(evict_rank(&rule, &lane, &far) > evict_rank(&rule, &lane, &plain));
}

static void a_value_is_apart_by_its_distance(void **state)
{
	const float v[16] = { 3.0f, 4.0f }, mean[16] = { 3.0f, 0.0f, 3.0f }, none[16] = { 0 };

	(void)state;
	assert_true(evict_trait_of(EVICT_VALUE_APART, none, v, mean, 16) == 5.0f);
	assert_true(evict_trait_of(EVICT_VALUE_APART, none, v, none, 16) == 5.0f);
	assert_true(evict_trait_of(EVICT_VALUE_APART, none, v, v, 16) == 0.0f);
}

static void streaming_and_full_lose_the_oldest_first(void **state)
{
	static const uint32_t policies[] = { EVICT_streaming, EVICT_full };

	(void)state;
	for (size_t i = 0; i < N(policies); i++) {
		const struct evict_rule rule = { .policy = policies[i], .sinks = 4 };
		const struct evict_lane lane = { .now = 5000 };
		struct evict_slot s = { .pos = 4, .heat = { 1.0f }, .credit = { 2.0f } };
		uint64_t last = 0;

		evict_fold(&rule, &lane, &s);
		assert_true(s.credit[0] == 2.0f);
		for (; s.pos < 5000; s.pos++) {
			assert_true(evict_key(&rule, &lane, 0, &s) > last);
			last = evict_key(&rule, &lane, 0, &s);
		}
	}
}

/* Figures of a second implementation (Python), so that hosts and devices draw the same for ever. */
static void random_draws_what_it_always_drew(void **state)
{
	static const struct { uint32_t seed, lane; int32_t pos, now; uint32_t want; } cases[] = {
		{ 0u, 0, 0, 32, 5652171 }, { 1u, 0, 0, 32, 16171968 }, { 1u, 1, 0, 32, 2419661 },
		{ 1u, 0, 1, 32, 16751727 }, { 1u, 0, 0, 64, 3396887 }, { 4294967295u, 719, 1000000, 1000032, 3805977 },
	};

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		const struct evict_rule rule = { .policy = EVICT_random, .seed = cases[i].seed };
		const struct evict_lane lane = { .lane = cases[i].lane, .now = cases[i].now };

		assert_true(evict_rank(&rule, &lane, &(struct evict_slot){ .pos = cases[i].pos }) == (float)cases[i].want);
	}
}

/* Of 1000 slots, the hundred that leave: spread evenly over ages, and others with another seed, lane or window. */
static void random_is_uniform_and_differs_by_seed_lane_and_window(void **state)
{
	enum { SLOTS = 1000, ROUNDS = 400 };
	uint32_t low_half = 0, same[3] = { 0 };

	(void)state;
	for (uint32_t round = 0; round < ROUNDS; round++) {
		for (int32_t pos = 0; pos < SLOTS; pos++) {
			const struct evict_rule rule = { .policy = EVICT_random, .seed = 3 }, other = { .policy = EVICT_random, .seed = 4 };
			const struct evict_slot s = { .pos = pos };
			struct evict_lane lane = { .lane = 2, .now = (int32_t)(1000 + 32 * round) };
			const float limit = 0.1f * 16777216.0f;

			if (evict_rank(&rule, &lane, &s) >= limit)
				continue;
			low_half += pos < SLOTS / 2;
			same[0] += evict_rank(&other, &lane, &s) < limit;
			lane.lane = 3;
			same[1] += evict_rank(&rule, &lane, &s) < limit;
			lane.lane = 2;
			lane.now += 32;
			same[2] += evict_rank(&rule, &lane, &s) < limit;
		}
	}
	/* 40000 draws expected to leave, half of them old, a tenth again under another draw; bounds are ten standard deviations */
	assert_in_range(low_half, 20000 - 1400, 20000 + 1400);
	for (int i = 0; i < 3; i++)
		assert_in_range(same[i], 4000 - 700, 4000 + 700);
}

/* --- the golden case of research/methods.md, appendix A ----------------------------------------------------------------------------- */

enum { TOKENS = 24, DIM = 8, KV_HEADS = 2, GROUP = 2, HEADS = KV_HEADS * GROUP };

struct golden {
	float q[TOKENS][HEADS][DIM], k[TOKENS][KV_HEADS][DIM], v[TOKENS][KV_HEADS][DIM];
	struct oracle_session session;
	double out[TOKENS][HEADS][DIM], lse[TOKENS][HEADS];
};

static float golden_next(uint32_t *s)
{
	*s = 1664525u * *s + 1013904223u;
	return (float)(2.0 * ((double)(*s >> 8) / 16777216.0) - 1.0);
}

/* Fills the case, appends and attends `tokens` tokens in steps of `step`: the oracle's heat is then what the rules are given. */
static struct golden *golden_new(const uint32_t heat[2], uint32_t tokens, uint32_t step)
{
	struct golden *g = calloc(1, sizeof(*g));
	uint32_t s = 1;

	assert_non_null(g);
	for (int h = 0; h < HEADS; h++)
		for (int i = 0; i < TOKENS; i++)
			for (int c = 0; c < DIM; c++)
				g->q[i][h][c] = 3.0f * golden_next(&s);
	for (int h = 0; h < KV_HEADS; h++)
		for (int i = 0; i < TOKENS; i++)
			for (int c = 0; c < DIM; c++)
				g->k[i][h][c] = golden_next(&s);
	for (int h = 0; h < KV_HEADS; h++)
		for (int i = 0; i < TOKENS; i++)
			for (int c = 0; c < DIM; c++)
				g->v[i][h][c] = golden_next(&s);
	g->session = (struct oracle_session){
		.shape = { .n_kv_heads = KV_HEADS, .group = GROUP, .head_dim = DIM, .slot_type = GPU_F32 },
		.table = { .n_lanes = KV_HEADS, .window = TOKENS, .n_heat = 2, .heat = { heat[0], heat[1] }, .observe = 1 },
		.max_slots = TOKENS, .n_credit = 1,
	};
	oracle_session_init(&g->session);
	for (int l = 0; l < KV_HEADS; l++)
		g->session.lane[l].head.fresh = TOKENS;
	for (uint32_t at = 0; at < tokens; at += step) {
		const struct oracle_seq seq = { .session = &g->session, .row = at, .n = step, .used = at, .pos = (int32_t)at };
		const struct gpu_tensor q = { .data = g->q, .type = GPU_F32, .stride = HEADS * DIM };
		const struct gpu_tensor k = { .data = g->k, .type = GPU_F32, .stride = KV_HEADS * DIM };
		const struct gpu_tensor v = { .data = g->v, .type = GPU_F32, .stride = KV_HEADS * DIM };

		oracle_append(&seq, 0, &k, &v);
		oracle_attend(&seq, 0, &q, 1.0 / sqrt(8.0), &g->out[0][0][0], &g->lse[0][0]);
	}
	return g;
}

static void golden_free(struct golden *g)
{
	oracle_session_fini(&g->session);
	free(g);
}

static void the_golden_case_starts_as_printed(void **state)
{
	static const uint32_t kinds[2] = { EVICT_HEAT_SUM, EVICT_HEAT_LAST };
	static const float q[] = { -1.581267f, -0.784376f, 0.025452f }, k[] = { 0.851451f, -0.101365f, -0.083577f };
	static const float v[] = { 0.277156f, -0.658602f, -0.156478f };
	struct golden *g = golden_new(kinds, TOKENS, TOKENS);

	(void)state;
	for (int c = 0; c < 3; c++) {
		assert_true(fabsf(g->q[0][0][c] - q[c]) < 1e-6f);
		assert_true(fabsf(g->k[0][0][c] - k[c]) < 1e-6f);
		assert_true(fabsf(g->v[0][0][c] - v[c]) < 1e-6f);
	}
	golden_free(g);
}

static void the_golden_heat_is_right(void **state)
{
	static const double sum[2][4] = { { 6.055521, 5.749595, 4.063211, 3.185309 }, { 8.767807, 3.831897, 4.385110, 4.014294 } };
	static const double squares[2][4] = { { 2.800928, 2.271630, 1.019386, 0.752357 },
					      { 5.128640, 1.091639, 1.395398, 0.875713 } };
	static const double tova[4] = { 0.026274, 0.026337, 0.055970, 0.065549 };	/* mean of all four heads */
	static const uint32_t kinds[2] = { EVICT_HEAT_SUM, EVICT_HEAT_SQUARES }, last[2] = { EVICT_HEAT_LAST, EVICT_HEAT_MAX };

	(void)state;
	for (uint32_t step = 1; step <= TOKENS; step *= 2) {	/* 1, 2, 4, 8: however the prompt is cut into steps */
		struct golden *g = golden_new(kinds, TOKENS, step), *t = golden_new(last, TOKENS, step);

		for (int j = 0; j < 4; j++) {
			for (int l = 0; l < KV_HEADS; l++) {
				assert_true(fabs(g->session.lane[l].slot[j].heat[0] - sum[l][j]) < 3e-6);
				assert_true(fabs(g->session.lane[l].slot[j].heat[1] - squares[l][j]) < 3e-6);
			}
			const double both = t->session.lane[0].slot[j].heat[0] + t->session.lane[1].slot[j].heat[0];

			assert_true(fabs(both / HEADS - tova[j]) < 3e-6);
		}
		golden_free(g);
		golden_free(t);
		if (step == 8)
			break;
	}
}

/* The slots of a lane in the order in which they leave. */
static int by_key(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void h2o_keeps_the_golden_set(void **state)
{
	static const int32_t keep[2][8] = { { 0, 1, 2, 6, 20, 21, 22, 23 }, { 0, 2, 3, 4, 20, 21, 22, 23 } };
	static const uint32_t kinds[2] = { EVICT_HEAT_SUM, EVICT_HEAT_MAX };
	const struct evict_rule rule = rule_of("h2o");

	(void)state;
	for (uint32_t windows = 1; windows <= 4; windows *= 2) {	/* folded at once, or in two or four windows */
		float credit[KV_HEADS][TOKENS] = { { 0 } };
		double before[KV_HEADS][TOKENS] = { { 0 } };

		for (uint32_t w = 1; w <= windows; w++) {
			struct golden *g = golden_new(kinds, TOKENS / windows * w, TOKENS / windows);

			for (uint32_t l = 0; l < KV_HEADS; l++) {
				for (int j = 0; j < TOKENS; j++) {
					const struct evict_lane lane = evict_lane_at(&rule, l, TOKENS - (int32_t)(TOKENS / windows),
												     TOKENS / windows, 1, TOKENS);
					struct evict_slot s = { .pos = j, .credit = { credit[l][j] } };

					s.heat[0] = evict_clean((float)(g->session.lane[l].slot[j].heat[0] - before[l][j]));
					evict_fold(&rule, &lane, &s);
					credit[l][j] = s.credit[0];
					before[l][j] = g->session.lane[l].slot[j].heat[0];
				}
			}
			golden_free(g);
		}
		for (uint32_t l = 0; l < KV_HEADS; l++) {
			uint64_t key[TOKENS];

			for (int j = 0; j < TOKENS; j++)
				key[j] = evict_key(&rule, &(struct evict_lane){ .now = TOKENS }, 4,
						   &(struct evict_slot){ .pos = j, .credit = { credit[l][j] } });
			qsort(key, TOKENS, sizeof(key[0]), by_key);
			for (int i = 0; i < 8; i++) {
				int found = 0;

				for (int j = TOKENS - 8; j < TOKENS; j++)
					found |= (int32_t)(key[j] & EVICT_MAX_POSITION) == keep[l][i];
				assert_true(found);
			}
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ranks_are_ordered_as_the_floats_are),
		cmocka_unit_test(random_ranks_are_ordered_as_the_floats_are),
		cmocka_unit_test(keys_go_by_protection_then_rank_then_position),
		cmocka_unit_test(protection_has_its_exact_edges),
		cmocka_unit_test(heat_that_cannot_be_counts_as_nothing),
		cmocka_unit_test(h2o_adds_heat_to_credit_and_ranks_by_it),
		cmocka_unit_test(ebb_spares_what_stands_out), cmocka_unit_test(a_value_is_apart_by_its_distance),
		cmocka_unit_test(streaming_and_full_lose_the_oldest_first),
		cmocka_unit_test(random_draws_what_it_always_drew),
		cmocka_unit_test(random_is_uniform_and_differs_by_seed_lane_and_window),
		cmocka_unit_test(the_golden_case_starts_as_printed),
		cmocka_unit_test(the_golden_heat_is_right),
		cmocka_unit_test(h2o_keeps_the_golden_set),
	};

	return cmocka_run_group_tests_name("evict rule", tests, NULL, NULL);
}
