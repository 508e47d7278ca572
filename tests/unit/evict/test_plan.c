/* evict_amount_of, evict_budget, evict_grant and evict_plan_lane: cases, and what evict.h guarantees for any of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include <errno.h>

#include "evict/evict.h"
#include "tests/lib/world.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))

/* --- amounts ---------------------------------------------------------------------------------------------------------------- */

static void an_amount_is_a_count_or_a_share_rounded_up(void **state)
{
	static const struct { uint32_t count, ppm, of, want; } cases[] = {
		{ 0, 0, 1000, 0 }, { 7, 0, 1000, 7 }, { 7, 0, 0, 7 }, { 0, 250000, 0, 0 }, { 0, 250000, 1, 1 }, { 0, 250000, 4, 1 },
		{ 0, 250000, 5, 2 }, { 0, 250000, 8, 2 }, { 0, 1, 1000000, 1 }, { 0, 1, 1000001, 2 }, { 0, 1, 1, 1 },
		{ 0, 1000000, 12345, 12345 }, { 0, 333333, 3, 1 }, { 0, 333334, 3, 2 }, { 0, 999999, 1000000, 999999 },
		{ 0, 1000000, UINT32_MAX, UINT32_MAX }, { 0, 500000, UINT32_MAX, 2147483648u }, { 0, 2000000, 5, 10 },
		{ 0, UINT32_MAX, UINT32_MAX, UINT32_MAX }, { UINT32_MAX, 0, 1, UINT32_MAX },
	};

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		const struct evict_amount a = { .count = cases[i].count, .ppm = cases[i].ppm };

		assert_int_equal(evict_amount_of(a, cases[i].of), cases[i].want);
	}
}

static void a_window_and_a_floor_follow_from_the_budget(void **state)
{
	static const struct { struct evict_amount budget; uint32_t window, floor; } cases[] = {
		{ { 0, 250000 }, 16, 64 }, { { 0, 1 }, 16, 64 }, { { 1, 0 }, 8, 12 }, { { 38, 0 }, 8, 12 }, { { 48, 0 }, 8, 15 },
		{ { 122, 0 }, 8, 38 }, { { 128, 0 }, 8, 40 }, { { 204, 0 }, 12, 63 }, { { 205, 0 }, 12, 64 }, { { 256, 0 }, 16, 64 },
		{ { 511, 0 }, 31, 64 }, { { 512, 0 }, 32, 64 }, { { 16777216, 0 }, 32, 64 }, { { UINT32_MAX, 0 }, 32, 64 },
	};

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		assert_int_equal(evict_window(EVICT_h2o, cases[i].budget), cases[i].window);
		assert_int_equal(evict_window(EVICT_full, cases[i].budget), 32);
		assert_int_equal(evict_floor(cases[i].budget, 4, cases[i].window), cases[i].floor);
		assert_int_equal(evict_floor(cases[i].budget, 100, cases[i].window), 100 + cases[i].window);
	}
}

/* The definition of rounding up, checked without dividing: want is the least number whose million-fold reaches ppm * of. */
static void a_share_is_exact_for_any_numbers(void **state)
{
	uint64_t random = 17;

	(void)state;
	for (int i = 0; i < 200000; i++) {
		const uint32_t ppm = world_below(&random, 1000001), of = (uint32_t)world_random(&random) >> world_below(&random, 32);
		const uint64_t got = evict_amount_of((struct evict_amount){ .ppm = ppm }, of);

		assert_true(got * 1000000u >= (uint64_t)ppm * of);
		assert_true(got == 0 || (got - 1) * 1000000u < (uint64_t)ppm * of);
	}
}

/* --- budgets and grants ------------------------------------------------------------------------------------------------------- */

static struct evict_spec spec_h2o(void)
{
	return (struct evict_spec){
		.rule = { .policy = EVICT_h2o, .sinks = 4 }, .budget = { .ppm = 250000 }, .recent = { .ppm = 500000 },
		.window = 32, .floor = 64, .prefill = EVICT_CHUNKED, .max_slots = 4096,
	};
}

static void a_budget_lies_between_floor_cap_and_table(void **state)
{
	static const struct { uint32_t count, ppm, tokens, cap, want; } cases[] = {
		{ 0, 250000, 0, 0, 64 }, { 0, 250000, 256, 0, 64 }, { 0, 250000, 257, 0, 65 }, { 0, 250000, 1024, 0, 256 },
		{ 0, 250000, 100000, 0, 4096 }, { 256, 0, 0, 0, 256 }, { 256, 0, 99999, 0, 256 }, { 10, 0, 500, 0, 64 },
		{ 256, 0, 500, 100, 100 }, { 256, 0, 500, 1, 64 }, { 256, 0, 500, 64, 64 }, { 256, 0, 500, 1000, 256 },
		{ 9999, 0, 500, 0, 4096 }, { 9999, 0, 500, 5000, 4096 }, { 0, 0, 500, 0, 64 },
	};
	struct evict_spec spec = spec_h2o();

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		spec.budget = (struct evict_amount){ .count = cases[i].count, .ppm = cases[i].ppm };
		assert_int_equal(evict_budget(&spec, cases[i].tokens, cases[i].cap), cases[i].want);
	}
	spec.max_slots = 40;	/* a short session: its whole table lies below the floor */
	assert_int_equal(evict_budget(&spec, 1000, 0), 40);
	spec.rule.policy = EVICT_full;
	assert_int_equal(evict_budget(&spec, 10, 20), 40);
}

static void a_grant_is_a_window_unless_a_prefill_or_full_may_take_more(void **state)
{
	static const struct {
		uint32_t policy, prefill, prompt, tokens, want, cap, max_slots, grant;
	} cases[] = {
		{ EVICT_h2o, EVICT_CHUNKED, 2000, 0, 500, 0, 4096, 32 },
		{ EVICT_h2o, EVICT_WHOLE, 2000, 0, 500, 0, 4096, 500 },
		{ EVICT_h2o, EVICT_WHOLE, 2000, 0, 0, 0, 4096, 32 },
		{ EVICT_h2o, EVICT_WHOLE, 2000, 0, 9, 0, 4096, 32 },
		{ EVICT_h2o, EVICT_WHOLE, 2000, 1800, 500, 0, 4096, 200 },	/* to the prompt's end */
		{ EVICT_h2o, EVICT_WHOLE, 2000, 1990, 500, 0, 4096, 32 },
		{ EVICT_h2o, EVICT_WHOLE, 2000, 2000, 500, 0, 4096, 32 },	/* the prompt is complete */
		{ EVICT_h2o, EVICT_WHOLE, 2000, 0, 500, 300, 4096, 32 },	/* the pool is short */
		{ EVICT_h2o, EVICT_WHOLE, 0, 0, 500, 0, 4096, 32 },		/* no prompt announced */
		{ EVICT_h2o, EVICT_WHOLE, 8000, 4000, 500, 0, 4096, 96 },	/* the table's end */
		{ EVICT_h2o, EVICT_WHOLE, 8000, 4096, 500, 0, 4096, 32 },
		{ EVICT_h2o, EVICT_CHUNKED, 0, 9999, 0, 0, 4096, 32 },
		{ EVICT_h2o, EVICT_CHUNKED, 0, 5, 0, 0, 20, 20 },		/* a table smaller than a window */
		{ EVICT_full, EVICT_CHUNKED, 0, 0, 0, 0, 4096, 32 },
		{ EVICT_full, EVICT_CHUNKED, 0, 0, 700, 0, 4096, 700 },
		{ EVICT_full, EVICT_WHOLE, 100, 4000, 700, 0, 4096, 96 },
		{ EVICT_full, EVICT_WHOLE, 100, 4090, 0, 0, 4096, 6 },
		{ EVICT_full, EVICT_WHOLE, 100, 4096, 1, 0, 4096, 0 },		/* at its capacity */
		{ EVICT_full, EVICT_WHOLE, 100, 5000, 1, 0, 4096, 0 },
	};
	struct evict_spec spec = spec_h2o();

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		const struct evict_state now = { .tokens = cases[i].tokens, .want = cases[i].want, .cap = cases[i].cap };

		spec.rule.policy = cases[i].policy;
		spec.prefill = cases[i].prefill;
		spec.prompt_tokens = cases[i].prompt;
		spec.max_slots = cases[i].max_slots;
		if (evict_grant(&spec, &now) != cases[i].grant)
			fail_msg("case %zu: grant %u, expected %u", i, evict_grant(&spec, &now), cases[i].grant);
	}
}

/* --- plans --------------------------------------------------------------------------------------------------------------------- */

struct plan_case {
	const char *name;
	uint32_t policy, prefill, prompt, budget, recent_ppm;
	uint32_t tokens, cap, grant, live, room;
	int rc;
	struct evict_lane_plan want;
};

static const struct plan_case plan_cases[] = {
	{ "the first window", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 0, 0, 32, 0, 256, 0, { 0, 32, 0, 0 } },
	{ "growing", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 96, 0, 32, 96, 256, 0, { 96, 32, 0, 92 } },
	{ "the last fresh slots", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 240, 0, 32, 240, 4096, 0, { 240, 16, 16, 128 } },
	{ "steady", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 5000, 0, 32, 256, 256, 0, { 256, 0, 32, 128 } },
	{ "steady with more room", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 5000, 0, 32, 256, 4096, 0, { 256, 0, 32, 128 } },
	{ "a larger lane shrinks", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 5000, 0, 32, 400, 4096, 0, { 256, 0, 32, 128 } },
	{ "pressure shrinks it to the cap", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 5000, 100, 32, 256, 256, 0, { 100, 0, 32, 50 } },
	{ "and no further than the floor", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 5000, 1, 32, 256, 256, 0, { 64, 0, 32, 28 } },
	{ "less room than budget", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 5000, 0, 32, 112, 112, 0, { 112, 0, 32, 56 } },
	{ "little more room", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 5000, 0, 32, 112, 128, 0, { 112, 16, 16, 64 } },
	{ "all recent", EVICT_streaming, EVICT_CHUNKED, 0, 256, 1000000, 5000, 0, 32, 256, 256, 0, { 256, 0, 32, 220 } },
	{ "a short grant", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 5000, 0, 5, 256, 256, 0, { 256, 0, 5, 128 } },
	{ "no grant", EVICT_h2o, EVICT_CHUNKED, 0, 256, 500000, 5000, 0, 0, 300, 300, 0, { 256, 0, 0, 128 } },
	{ "whole prefill with room", EVICT_h2o, EVICT_WHOLE, 2000, 256, 500000, 500, 0, 700, 500, 1200, 0, { 500, 700, 0, 496 } },
	{ "whole prefill without", EVICT_h2o, EVICT_WHOLE, 2000, 256, 500000, 500, 0, 700, 500, 1199, -ENOSPC, { 0 } },
	{ "then by the window, in place", EVICT_h2o, EVICT_WHOLE, 2000, 256, 500000, 500, 0, 32, 500, 512, 0, { 500, 12, 20, 256 } },
	{ "to the last slot", EVICT_h2o, EVICT_WHOLE, 2000, 256, 500000, 532, 0, 32, 512, 512, 0, { 512, 0, 32, 256 } },
	{ "the prompt is complete", EVICT_h2o, EVICT_WHOLE, 2000, 256, 500000, 2000, 0, 32, 2000, 2000, 0, { 256, 0, 32, 128 } },
	{ "pressure ends a whole prefill", EVICT_h2o, EVICT_WHOLE, 2000, 256, 500000, 500, 300, 32, 500, 1200, 0, { 256, 0, 32, 128 } },
	{ "a large grant outside prefill", EVICT_h2o, EVICT_WHOLE, 100, 256, 500000, 500, 0, 33, 256, 4096, -ENOSPC, { 0 } },
	{ "full grows", EVICT_full, EVICT_CHUNKED, 0, 256, 0, 500, 0, 700, 500, 1200, 0, { 500, 700, 0, 0 } },
	{ "full never evicts", EVICT_full, EVICT_CHUNKED, 0, 256, 0, 500, 64, 32, 500, 531, -ENOSPC, { 0 } },
	{ "full to the last slot", EVICT_full, EVICT_CHUNKED, 0, 256, 0, 500, 64, 32, 500, 532, 0, { 500, 32, 0, 0 } },
};

static void plans_are_as_the_cases_say(void **state)
{
	(void)state;
	for (size_t i = 0; i < N(plan_cases); i++) {
		const struct plan_case *c = &plan_cases[i];
		const struct evict_state now = { .tokens = c->tokens, .cap = c->cap };
		struct evict_lane_plan got = { 9, 9, 9, 9 };
		struct evict_spec spec = spec_h2o();
		int rc;

		spec.rule.policy = c->policy;
		spec.prefill = c->prefill;
		spec.prompt_tokens = c->prompt;
		spec.budget = (struct evict_amount){ .count = c->budget };
		spec.recent = (struct evict_amount){ .ppm = c->recent_ppm };
		rc = evict_plan_lane(&spec, &now, c->grant, evict_budget(&spec, now.tokens, now.cap), c->live, c->room, &got);
		if (rc != c->rc)
			fail_msg("%s: %d, expected %d", c->name, rc, c->rc);
		if (rc)
			assert_true(got.keep == 9 && got.fresh == 9 && got.victims == 9 && got.recent == 9);	/* untouched */
		else if (got.keep != c->want.keep || got.fresh != c->want.fresh || got.victims != c->want.victims ||
			 got.recent != c->want.recent)
			fail_msg("%s: keep %u fresh %u victims %u recent %u, expected %u %u %u %u", c->name, got.keep, got.fresh,
				 got.victims, got.recent, c->want.keep, c->want.fresh, c->want.victims, c->want.recent);
	}
}

/* Numbers of every size, small ones often. */
static uint32_t any_number(uint64_t *random, uint32_t below)
{
	const uint32_t limit = below >> world_below(random, 12);

	return world_below(random, limit ? limit : 1);
}

static struct evict_amount any_amount(uint64_t *random)
{
	return world_below(random, 2) ? (struct evict_amount){ .count = any_number(random, 5000) }
				      : (struct evict_amount){ .ppm = world_below(random, 1000001) };
}

struct question {
	struct evict_spec spec;
	struct evict_state now;
	uint32_t grant, budget, live, room;
};

/* A situation as the daemon may meet it: room >= live, room >= min(floor, max_slots), floor >= sinks + window. */
static struct question any_question(uint64_t *random)
{
	struct question q = {
		.spec = {
			.rule = { .policy = world_below(random, EVICT_N_POLICIES), .sinks = (int32_t)any_number(random, 64) },
			.budget = any_amount(random), .recent = any_amount(random), .window = 1 + any_number(random, 128),
			.prefill = world_below(random, 2), .prompt_tokens = any_number(random, 6000), .max_slots = any_number(random, 8192),
		},
		.now = { .tokens = any_number(random, 9000), .want = any_number(random, 3000), .cap = any_number(random, 4000) },
	};
	uint32_t least;

	q.spec.floor = (uint32_t)q.spec.rule.sinks + q.spec.window + any_number(random, 300);
	least = q.spec.floor < q.spec.max_slots ? q.spec.floor : q.spec.max_slots;
	q.live = any_number(random, (q.now.tokens < q.spec.max_slots ? q.now.tokens : q.spec.max_slots) + 1);
	q.room = (q.live > least ? q.live : least) + any_number(random, 5000);
	/* Lanes of one session may have budgets of their own (evict/split.h), none below the floor. */
	q.budget = world_below(random, 2) ? evict_budget(&q.spec, q.now.tokens, q.now.cap) : least + any_number(random, 6000);
	if (evict_policies[q.spec.rule.policy].never_evicts || q.budget > q.spec.max_slots)
		q.budget = q.spec.max_slots;
	q.grant = world_below(random, 2) ? evict_grant(&q.spec, &q.now) : any_number(random, 4000);
	return q;
}

static const char *broken(const struct question *q, int rc, const struct evict_lane_plan *p)
{
	const struct evict_spec *s = &q->spec;
	const int evicts = !evict_policies[s->rule.policy].never_evicts;
	const int overrun = !evicts || (s->prefill == EVICT_WHOLE && q->now.tokens < s->prompt_tokens && !q->now.cap);
	const uint32_t limit = q->budget < q->room ? q->budget : q->room;
	const uint64_t after = (uint64_t)p->keep + p->fresh, sinks = (uint64_t)s->rule.sinks;

	if (rc && rc != -ENOSPC)
		return "another error than -ENOSPC";
	if (rc) {
		if (evicts && q->grant <= evict_grant(s, &q->now) && q->grant <= s->window)
			return "no plan for a grant within the window";
		if (overrun && (uint64_t)q->live + q->grant <= (q->room < s->max_slots ? q->room : s->max_slots))
			return "no plan although there is room";
		return NULL;
	}
	if (p->keep > q->live)
		return "keep > live";
	if (after > q->room || after > s->max_slots)
		return "keep + fresh > room";
	if ((uint64_t)p->fresh + p->victims != q->grant)
		return "fresh + victims != grant";
	if (p->victims > p->keep)
		return "victims > keep";
	if (p->victims > s->window)
		return "victims > window";
	if (sinks + p->victims <= p->keep && sinks + p->recent + p->victims > p->keep)
		return "sinks + recent + victims > keep";
	if (sinks + p->victims > p->keep && p->recent)
		return "recent although nothing is left to protect";
	if (!evicts && (p->victims || p->keep != q->live))
		return "full evicts";
	if (!overrun && after > limit)
		return "more than the budget";
	if (!overrun && p->victims && after < limit)
		return "a victim although the budget is not used up";
	if (!overrun && p->keep < q->live && p->keep < limit)
		return "less kept than the budget allows";
	if (overrun && p->keep != q->live)
		return "compaction in a whole prefill";
	return NULL;
}

static void plans_keep_their_guarantees_for_anything(void **state)
{
	const char *given = getenv("EBB_TEST_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : 20261123;
	unsigned plans = 0, refusals = 0;

	(void)state;
	for (unsigned i = 0; i < 400000; i++, seed++) {
		uint64_t random = seed;
		const struct question q = any_question(&random);
		struct evict_lane_plan plan = { 0 };
		const int rc = evict_plan_lane(&q.spec, &q.now, q.grant, q.budget, q.live, q.room, &plan);
		const char *why = broken(&q, rc, &plan);

		if (why)
			fail_msg("%s; EBB_TEST_SEED=%llu: policy %u budget %u/%u recent %u/%u window %u floor %u prefill %u prompt %u "
				 "max %u sinks %d tokens %u want %u cap %u grant %u budget %u live %u room %u -> %d keep %u fresh %u "
				 "victims %u recent %u",
				 why, (unsigned long long)seed, q.spec.rule.policy, q.spec.budget.count, q.spec.budget.ppm,
				 q.spec.recent.count, q.spec.recent.ppm, q.spec.window, q.spec.floor, q.spec.prefill, q.spec.prompt_tokens,
				 q.spec.max_slots, q.spec.rule.sinks, q.now.tokens, q.now.want, q.now.cap, q.grant, q.budget, q.live,
				 q.room, rc, plan.keep, plan.fresh, plan.victims, plan.recent);
		plans += !rc;
		refusals += rc != 0;
	}
	assert_true(plans > 100000 && refusals > 10000);	/* both sides were really tried */
}

/* Window after window, a session that follows its plans: it fills its budget and then holds exactly that, for ever. */
static void a_session_that_follows_its_plans_holds_its_budget(void **state)
{
	(void)state;
	for (uint32_t shares = 0; shares < 2; shares++) {
		struct evict_spec spec = spec_h2o();
		struct evict_state now = { 0 };
		uint32_t live = 0;

		if (!shares)
			spec.budget = (struct evict_amount){ .count = 300 };
		while (now.tokens < 20000) {
			const uint32_t grant = evict_grant(&spec, &now), budget = evict_budget(&spec, now.tokens, 0);
			struct evict_lane_plan plan;

			assert_int_equal(evict_plan_lane(&spec, &now, grant, budget, live, spec.max_slots, &plan), 0);
			assert_int_equal(plan.keep, live);	/* nothing is ever compacted */
			live = plan.keep + plan.fresh;
			now.tokens += grant;
			assert_int_equal(live, now.tokens < budget ? now.tokens : budget);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_amount_is_a_count_or_a_share_rounded_up),
		cmocka_unit_test(a_share_is_exact_for_any_numbers),
		cmocka_unit_test(a_window_and_a_floor_follow_from_the_budget),
		cmocka_unit_test(a_budget_lies_between_floor_cap_and_table),
		cmocka_unit_test(a_grant_is_a_window_unless_a_prefill_or_full_may_take_more),
		cmocka_unit_test(plans_are_as_the_cases_say),
		cmocka_unit_test(plans_keep_their_guarantees_for_anything),
		cmocka_unit_test(a_session_that_follows_its_plans_holds_its_budget),
	};

	return cmocka_run_group_tests_name("evict plan", tests, NULL, NULL);
}
