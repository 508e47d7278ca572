/* The table of policies, and evict_parse(): what it takes, what it refuses, and that it says why. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "evict/evict_internal.h"
#include "tests/lib/world.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))

/* A table with parameters, whatever the real policies have. */
static const struct evict_policy_info made_up[] = {
	{ .name = "plain", .text = "-", .source = "-" },
	{ .name = "decay", .text = "-", .source = "-", .n_params = 2,
	  .param = { { .name = "factor", .unit = "", .text = "-", .def = 0.5f, .min = 0.0f, .max = 1.0f },
		     { .name = "age", .unit = "tokens", .text = "-", .def = 100.0f, .min = -10.0f, .max = 1e6f } } },
};

static void every_policy_is_described_as_it_is(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < EVICT_N_POLICIES; i++) {
		const struct evict_policy_info *p = &evict_policies[i];

		assert_true(p->name && p->text && p->source && *p->name && *p->text && *p->source);
		assert_null(strchr(p->text, '\n'));
		assert_true(evict_n_heat(i) <= EVICT_MAX_HEAT && evict_n_credit(i) <= EVICT_MAX_CREDIT && p->n_params <= EVICT_MAX_PARAMS);
		assert_true(evict_n_trait(i) <= EVICT_MAX_TRAIT && evict_n_arrays(i) <= EVICT_MAX_ARRAYS);
		for (uint32_t h = 0; h < EVICT_MAX_HEAT; h++)
			assert_true(p->heat[h] <= EVICT_HEAT_LAST);
		for (uint32_t h = 0; h < EVICT_MAX_TRAIT; h++)
			assert_true(p->trait[h] < EVICT_N_TRAITS && (p->trait[h] != EVICT_NO_TRAIT) == (h < evict_n_trait(i)));
		for (uint32_t k = 0; k < p->n_params; k++) {
			assert_true(p->param[k].name && p->param[k].text);
			assert_true(p->param[k].min <= p->param[k].def && p->param[k].def <= p->param[k].max);
		}
		for (uint32_t j = 0; j < i; j++)
			assert_string_not_equal(p->name, evict_policies[j].name);
	}
	for (uint32_t t = 0; t < EVICT_N_TRAITS; t++)
		assert_true(evict_trait_names[t] && *evict_trait_names[t]);
	assert_string_equal(evict_trait_names[evict_policies[EVICT_ebb].trait[0]], "distance of the value from the others");
	assert_string_equal(evict_trait_names[evict_policies[EVICT_keydiff].trait[0]], "cosine to the mean key");
	assert_string_equal(evict_trait_names[evict_policies[EVICT_lagkv].trait[0]], "lag");
	assert_string_equal(evict_policies[EVICT_full].name, "full");
	assert_string_equal(evict_policies[EVICT_streaming].name, "streaming");
	assert_string_equal(evict_policies[EVICT_random].name, "random");
	assert_string_equal(evict_policies[EVICT_h2o].name, "h2o");
	assert_true(evict_policies[EVICT_full].never_evicts && !evict_policies[EVICT_h2o].never_evicts);
	assert_true(evict_policies[EVICT_random].pin_prompt && !evict_policies[EVICT_h2o].pin_prompt);
	assert_true(!evict_policies[EVICT_streaming].pin_prompt && !evict_policies[EVICT_full].pin_prompt);
}

/* No fold, figure or rank may look at heat, credit or traits that its policy did not declare: nobody collects them. */
static void policies_use_only_what_they_declare(void **state)
{
	uint64_t random = 1;

	(void)state;
	for (uint32_t i = 0; i < EVICT_N_POLICIES; i++) {
		struct evict_rule rule = { .seed = 9, .group = 3 };

		assert_int_equal(evict_parse(evict_policies[i].name, &rule, NULL, 0), 0);
		for (int trial = 0; trial < 1000; trial++) {
			const struct evict_lane lane = { .lane = (uint32_t)trial % 9, .now = 1000, .appended = 32, .queries = 32,
							 .heat = { 40.0f, 3.0f }, .rank = { 50.0f, 4.0f }, .cut = (uint64_t)trial << 50 };
			struct evict_slot a = { .pos = (int32_t)world_below(&random, 1000), .pooled = (float)world_below(&random, 9) }, b;

			for (uint32_t h = 0; h < EVICT_MAX_HEAT; h++)
				a.heat[h] = (float)world_below(&random, 100);
			for (uint32_t h = 0; h < EVICT_MAX_CREDIT; h++)
				a.credit[h] = (float)world_below(&random, 100);
			for (uint32_t h = 0; h < EVICT_MAX_TRAIT; h++)
				a.trait[h] = (float)world_below(&random, 100) / 100.0f;
			b = a;
			for (uint32_t h = evict_n_heat(i); h < EVICT_MAX_HEAT; h++)
				b.heat[h] += 1.0f;
			for (uint32_t h = evict_n_credit(i); h < EVICT_MAX_CREDIT; h++)
				b.credit[h] += 1.0f;
			for (uint32_t h = evict_n_trait(i); h < EVICT_MAX_TRAIT; h++)
				b.trait[h] += 1.0f;
			b.pooled += evict_has_pool(i) ? 0.0f : 1.0f;
			b.place += evict_has_place(i) ? 0.0f : 1.0f;
			b.tag += evict_has_tag(i) ? 0 : 1;
			assert_true(evict_heat_figure(&rule, &lane, &a) == evict_heat_figure(&rule, &lane, &b));
			evict_fold(&rule, &lane, &a);
			evict_fold(&rule, &lane, &b);
			assert_memory_equal(a.credit, b.credit, evict_n_credit(i) * sizeof(float));
			assert_true(evict_figure(&rule, &lane, &a) == evict_figure(&rule, &lane, &b));
			assert_true(evict_pool(&rule, &lane, &a) == evict_pool(&rule, &lane, &b));
			assert_true(evict_worth(&rule, &lane, &a) == evict_worth(&rule, &lane, &b));
			assert_true(evict_rank(&rule, &lane, &a) == evict_rank(&rule, &lane, &b));
		}
	}
}

static void names_alone_give_the_defaults_and_leave_the_rest(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < EVICT_N_POLICIES; i++) {
		struct evict_rule rule = { .policy = 77, .sinks = 5, .pinned = 6, .seed = 7, .param = { 8, 8, 8, 8, 8, 8 } };

		assert_int_equal(evict_parse(evict_policies[i].name, &rule, NULL, 0), 0);
		assert_int_equal(rule.policy, i);
		assert_true(rule.sinks == 5 && rule.pinned == 6 && rule.seed == 7);
		for (uint32_t k = 0; k < EVICT_MAX_PARAMS; k++)
			assert_true(rule.param[k] == (k < evict_policies[i].n_params ? evict_policies[i].param[k].def : 0.0f));
	}
}

static void parameters_are_read(void **state)
{
	static const struct { const char *text; uint32_t policy; float factor, age; } cases[] = {
		{ "plain", 0, 0.0f, 0.0f }, { "decay", 1, 0.5f, 100.0f }, { "decay:factor=1", 1, 1.0f, 100.0f },
		{ "decay:age=7", 1, 0.5f, 7.0f }, { "decay:factor=0.25,age=-10", 1, 0.25f, -10.0f },
		{ "decay:age=1e6,factor=0", 1, 0.0f, 1e6f }, { "decay:factor=.98", 1, 0.98f, 100.0f },
		{ "decay:factor=0.995", 1, 0.995f, 100.0f }, { "decay:factor=5e-1", 1, 0.5f, 100.0f },
		{ "decay:factor=1e-3", 1, 0.001f, 100.0f }, { "decay:factor=+0.1", 1, 0.1f, 100.0f }, { "decay:age=128.", 1, 0.5f, 128.0f },
		{ "decay:factor=0.1234567", 1, 0.1234567f, 100.0f }, { "decay:age=1E2", 1, 0.5f, 100.0f },
	};

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		struct evict_rule rule = { 0 };

		if (evict_parse_in(made_up, N(made_up), cases[i].text, &rule, NULL, 0))
			fail_msg("%s is refused", cases[i].text);
		if (rule.policy != cases[i].policy || rule.param[0] != cases[i].factor || rule.param[1] != cases[i].age)
			fail_msg("%s: %g %g", cases[i].text, (double)rule.param[0], (double)rule.param[1]);
	}
}

static void refusals_change_nothing_and_say_why(void **state)
{
	static const struct { const char *text, *why; } cases[] = {
		{ "", "found policy \"\"; allowed: plain, decay" },
		{ "h2o", "found policy \"h2o\"; allowed: plain, decay" },
		{ "Decay", "found policy \"Decay\"; allowed: plain, decay" },
		{ "decay ", "found policy \"decay \"; allowed: plain, decay" },
		{ "deca", "found policy \"deca\"; allowed: plain, decay" },
		{ "a\tb\nc", "found policy \"a?b?c\"; allowed: plain, decay" },
		{ ":factor=1", "found policy \"\"; allowed: plain, decay" },
		{ "plain:factor=1", "found parameter \"factor\"; policy plain has no parameters" },
		{ "plain:", "found \"\" where key=value is expected; policy plain has no parameters" },
		{ "decay:", "found \"\" where key=value is expected; allowed: factor, age" },
		{ "decay:factor", "found \"factor\" where key=value is expected; allowed: factor, age" },
		{ "decay:factor=1,", "found \"\" where key=value is expected; allowed: factor, age" },
		{ "decay:fac=1", "found parameter \"fac\"; allowed: factor, age" },
		{ "decay:=1", "found parameter \"\"; allowed: factor, age" },
		{ "decay:factor=", "parameter factor: found \"\"; allowed: 0 to 1" },
		{ "decay:factor=x", "parameter factor: found \"x\"; allowed: 0 to 1" },
		{ "decay:factor=1x", "parameter factor: found \"1x\"; allowed: 0 to 1" },
		{ "decay:factor=0,5", "found \"5\" where key=value is expected; allowed: factor, age" },
		{ "decay:factor=1.0001", "parameter factor: found \"1.0001\"; allowed: 0 to 1" },
		{ "decay:factor=-0.1", "parameter factor: found \"-0.1\"; allowed: 0 to 1" },
		{ "decay:factor=nan", "parameter factor: found \"nan\"; allowed: 0 to 1" },
		{ "decay:factor=inf", "parameter factor: found \"inf\"; allowed: 0 to 1" },
		{ "decay:factor=0x1", "parameter factor: found \"0x1\"; allowed: 0 to 1" },
		{ "decay:factor=1e", "parameter factor: found \"1e\"; allowed: 0 to 1" },
		{ "decay:factor=.", "parameter factor: found \".\"; allowed: 0 to 1" },
		{ "decay:factor= 1", "parameter factor: found \" 1\"; allowed: 0 to 1" },
		{ "decay:age=1e9", "parameter age: found \"1e9\"; allowed: -10 to 1e+06 tokens" },
		{ "decay:age=1e999999999999", "parameter age: found \"1e999999999999\"; allowed: -10 to 1e+06 tokens" },
		{ "decay:age=5,factor=0.5,age=5", "parameter age is given twice" },
		{ "decay:factor=0.00000000000000000000000000000000000000001",
		  "parameter factor: found \"0.00000000000000000000000000000000000000...\"; allowed: 0 to 1" },
	};

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		struct evict_rule rule = { .policy = 7, .param = { 1, 2, 3, 4 } }, before = rule;
		char why[200] = "";

		if (evict_parse_in(made_up, N(made_up), cases[i].text, &rule, why, sizeof(why)) != -EINVAL)
			fail_msg("\"%s\" is taken", cases[i].text);
		assert_memory_equal(&rule, &before, sizeof(rule));
		assert_string_equal(why, cases[i].why);
		for (size_t bytes = 0; bytes < 40; bytes++) {	/* cut where the buffer ends, terminated, not a byte more */
			memset(why, '#', sizeof(why));
			assert_int_equal(evict_parse_in(made_up, N(made_up), cases[i].text, &rule, why, bytes), -EINVAL);
			if (bytes)
				assert_int_equal(strlen(why), bytes - 1 < strlen(cases[i].why) ? bytes - 1 : strlen(cases[i].why));
			assert_memory_equal(why, cases[i].why, bytes ? strlen(why) : 0);
			assert_int_equal(why[bytes], '#');
		}
	}
}

static void real_policies_are_named_in_the_refusal(void **state)
{
	struct evict_rule rule = { 0 };
	char why[300];

	(void)state;
	assert_int_equal(evict_parse("lru", &rule, why, sizeof(why)), -EINVAL);
	assert_memory_equal(why, "found policy \"lru\"; allowed: full, streaming, random, h2o", 57);
	assert_int_equal(evict_parse("h2o:decay=1", &rule, why, sizeof(why)), 0);
	assert_int_equal(evict_parse("h2o:decay=1.5", &rule, why, sizeof(why)), -EINVAL);
	assert_string_equal(why, "parameter decay: found \"1.5\"; allowed: 0 to 1 per token");
	assert_int_equal(evict_parse("h2o:squared=maybe", &rule, why, sizeof(why)), -EINVAL);
	assert_string_equal(why, "parameter squared: found \"maybe\"; allowed: yes or no");
	assert_int_equal(evict_parse("h2o:squared=0.5", &rule, why, sizeof(why)), -EINVAL);
	assert_int_equal(evict_parse("h2o:squared=yes", &rule, why, sizeof(why)), 0);
	assert_true(rule.param[EVICT_H2O_SQUARED] == 1.0f && rule.heat[0] == EVICT_HEAT_SQUARES);
}

static void merges_are_parsed_and_auto_follows_the_policy(void **state)
{
	struct evict_rule rule = { 0 };
	char why[200];

	(void)state;
	assert_int_equal(evict_parse("cam", &rule, NULL, 0), 0);
	assert_int_equal(evict_merge_parse("auto", &rule, NULL, 0), 0);
	assert_true(rule.merge == EVICT_MERGE_cam && rule.merge_param[EVICT_CAM_BUDGET] == 32.0f);
	assert_int_equal(evict_parse("d2o", &rule, NULL, 0), 0);
	assert_int_equal(evict_merge_parse("auto", &rule, NULL, 0), 0);
	assert_int_equal(rule.merge, EVICT_MERGE_d2o);
	assert_int_equal(evict_parse("h2o", &rule, NULL, 0), 0);
	assert_int_equal(evict_merge_parse("auto", &rule, NULL, 0), 0);
	assert_int_equal(rule.merge, EVICT_MERGE_none);
	assert_int_equal(evict_merge_parse("pivot:threshold=0.5", &rule, NULL, 0), 0);
	assert_true(rule.merge == EVICT_MERGE_pivot && rule.merge_param[EVICT_PIVOT_THRESHOLD] == 0.5f && rule.policy == EVICT_h2o);
	assert_int_equal(evict_merge_parse("cam:budget=0", &rule, why, sizeof(why)), -EINVAL);
	assert_string_equal(why, "parameter budget: found \"0\"; allowed: 1 to 1024, a whole number of slots");
	assert_int_equal(evict_merge_parse("cam:budget=2.5", &rule, why, sizeof(why)), -EINVAL);
	assert_int_equal(evict_merge_parse("none:x=1", &rule, why, sizeof(why)), -EINVAL);
	assert_int_equal(evict_merge_parse("camel", &rule, why, sizeof(why)), -EINVAL);
	assert_string_equal(why, "found merge \"camel\"; allowed: auto, none, pivot, d2o, cam");
	assert_true(rule.merge == EVICT_MERGE_pivot && rule.merge_param[EVICT_PIVOT_THRESHOLD] == 0.5f);
}

/* Any bytes: it answers, and takes only what the grammar says. */
static void random_text_never_harms(void **state)
{
	static const char letters[] = "decayplnftorg:=,.0123456789e+- \x80\xff";
	uint64_t random = 99;

	(void)state;
	for (int i = 0; i < 200000; i++) {
		struct evict_rule rule = { 0 };
		char text[40] = "decay:factor=", why[64];
		const uint32_t from = world_below(&random, 14), n = world_below(&random, 25);

		for (uint32_t j = 0; j < n; j++)
			text[from + j] = letters[world_below(&random, sizeof(letters) - 1)];
		text[from + n] = '\0';
		if (evict_parse_in(made_up, N(made_up), text, &rule, why, sizeof(why)) == 0) {
			assert_true(rule.policy < 2);
			assert_true(rule.policy == 0 || (rule.param[0] >= 0.0f && rule.param[0] <= 1.0f));
			assert_true(rule.policy == 0 || (rule.param[1] >= -10.0f && rule.param[1] <= 1e6f));
		} else {
			assert_true(strlen(why) > 10);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_policy_is_described_as_it_is),
		cmocka_unit_test(policies_use_only_what_they_declare),
		cmocka_unit_test(names_alone_give_the_defaults_and_leave_the_rest),
		cmocka_unit_test(parameters_are_read),
		cmocka_unit_test(refusals_change_nothing_and_say_why),
		cmocka_unit_test(real_policies_are_named_in_the_refusal),
		cmocka_unit_test(merges_are_parsed_and_auto_follows_the_policy),
		cmocka_unit_test(random_text_never_harms),
	};

	return cmocka_run_group_tests_name("evict policies", tests, NULL, NULL);
}
