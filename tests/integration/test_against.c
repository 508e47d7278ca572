/*
 * ebb-llama --nll --against-full through a real daemon, on the real model: a budget that holds everything costs exactly nothing, the
 * comparison disturbs nothing, a full run from a file says what the live one says, and what does not fit together is refused.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/daemon.h"
#include "tests/lib/llama.h"

#define NLL "$BIN/ebb-llama -m $MODEL --socket %s -f /usr/share/common-licenses/GPL-3 --nll --limit 200 --window 32 "

static struct td d;
static struct tl t, u;

/* The members of the JSON line that must not differ; the speed may. */
static void same(const struct tl *a, const struct tl *b, const char *const *members)
{
	for (; *members; members++) {
		double x = tl_number(a, *members), y = tl_number(b, *members);

		if (!(x == y))
			fail_msg("%s: %.17g and %.17g", *members, x, y);
	}
}

static const char *const nll_members[] = { "tokens", "nll", "nll_tail", "live_slots", "evicted", "tail_from", NULL };
static const char *const all_members[] = { "tokens", "nll", "nll_tail", "kl", "top1", "mass_kept", "kl_all", NULL };

static void a_budget_that_holds_everything_costs_exactly_nothing(void **state)
{
	static const char *const slots[] = { "f32", "bf16", "q8" };

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		tl_run(&t, NLL "--against-full --budget 200 --slots %s --policy h2o", d.socket, slots[i]);
		assert_int_equal(t.status, 0);
		assert_true(tl_number(&t, "kl_all") == 0.0);
		assert_true(tl_null(&t, "kl") && tl_null(&t, "top1") && tl_null(&t, "mass_kept"));	/* nothing comes after the budget */
		tl_run(&u, NLL "--local --slots %s", d.socket, slots[i]);
		assert_true(tl_number(&t, "nll") == tl_number(&u, "nll"));
		assert_true(fabs(tl_number(&t, "nll_full") - tl_number(&u, "nll")) < 1e-9);
	}
	/* With a budget that counts as used up from the start, the tail is everything, and full keeps everything. */
	tl_run(&t, NLL "--against-full --budget 1 --policy full", d.socket);
	assert_true(tl_number(&t, "kl") == 0.0 && tl_number(&t, "top1") == 1.0);
	assert_true(fabs(tl_number(&t, "mass_kept") - 1.0) < 1e-6);
}

static void the_comparison_disturbs_nothing(void **state)
{
	(void)state;
	tl_run(&t, NLL "--budget 80 --policy h2o --slots f32", d.socket);
	tl_run(&u, NLL "--budget 80 --policy h2o --slots f32 --against-full", d.socket);
	assert_int_equal(u.status, 0);
	same(&t, &u, nll_members);
	assert_true(tl_number(&u, "kl") > 0.0 && tl_number(&u, "kl_all") > 0.0);
	assert_true(tl_number(&u, "kl_all") < tl_number(&u, "kl"));	/* the first budget's worth is equal */
	assert_true(tl_number(&u, "mass_kept") > 0.5 && tl_number(&u, "mass_kept") < 1.0);
	assert_true(tl_number(&u, "top1") > 0.5 && tl_number(&u, "top1") < 1.0);
}

static void a_full_run_from_a_file_says_the_same(void **state)
{
	(void)state;
	tl_run(&t, NLL "--budget 80 --policy h2o --slots f32 --against-full", d.socket);
	for (unsigned i = 0; i < 2; i++) {	/* written, then read */
		tl_run(&u, NLL "--budget 80 --policy h2o --slots f32 --against-full --full-run $DIR/full --kept $DIR/kept", d.socket);
		assert_int_equal(u.status, 0);
		same(&t, &u, all_members);
	}
	tl_run(&t, "cat $DIR/kept");
	assert_true(strncmp(t.out, "{\"tokens\":200,\"layers\":30,\"kv_heads\":3,\"kept\":[[", 48) == 0);
}

/* With room for all tokens only the way they are stored can cost anything. */
static void the_full_cache_may_store_its_slots_otherwise(void **state)
{
	(void)state;
	tl_run(&t, NLL "--budget 4096 --slots q8 --against-full", d.socket);
	assert_int_equal(t.status, 0);
	assert_true(tl_number(&t, "kl_all") == 0.0);
	for (unsigned i = 0; i < 2; i++) {
		tl_run(&u, NLL "--budget 4096 --slots q8 --against-full --full-slots f32 %s", d.socket, i ? "--full-run $DIR/f32" : "");
		assert_int_equal(u.status, 0);
		assert_true(tl_number(&u, "kl_all") > 0.0 && tl_number(&u, "kl_all") < 0.01);
	}
	tl_run(&t, NLL "--budget 80 --slots f32 --against-full --full-run $DIR/f32", d.socket);
	assert_int_equal(t.status, 0);
	tl_run(&t, NLL "--budget 80 --against-full --full-slots gold", d.socket);
	assert_int_equal(t.status, 1);
	assert_non_null(strstr(t.err, "gold"));
}

static void a_full_run_of_something_else_is_refused(void **state)
{
	static const struct { const char *options, *says; } wrong[] = {
		{ "--slots f32 --limit 199", "another text" }, { "--slots q8", "other --slots" }, { "--slots f32 --chunk 16", "another --chunk" },
	};

	(void)state;
	tl_run(&t, NLL "--budget 80 --slots f32 --against-full --full-run $DIR/full", d.socket);
	assert_int_equal(t.status, 0);
	for (unsigned i = 0; i < 3; i++) {
		tl_run(&t, NLL "--budget 80 --against-full --full-run $DIR/full %s", d.socket, wrong[i].options);
		assert_int_equal(t.status, 1);
		if (!strstr(t.err, wrong[i].says))
			fail_msg("%s: %s", wrong[i].options, t.err);
	}
	tl_run(&t, "head -c 100000 $DIR/full > $DIR/short; " NLL "--budget 80 --against-full --full-run $DIR/short --slots f32",
	       d.socket);
	assert_int_equal(t.status, 1);
	assert_non_null(strstr(t.err, "ends early"));
	tl_run(&t, "echo hello > $DIR/text; " NLL "--budget 80 --against-full --full-run $DIR/text --slots f32", d.socket);
	assert_int_equal(t.status, 1);
	assert_non_null(strstr(t.err, "no full run"));
	tl_run(&t, NLL "--budget 80 --against-full --full-run /proc/nobody/full --slots f32", d.socket);
	assert_int_equal(t.status, 1);
	assert_non_null(strstr(t.err, "cannot keep the full run"));
}

static void what_does_not_go_together_is_refused(void **state)
{
	static const char *const wrong[] = {
		"-p text --against-full", "-p text --nll --against-full --local", "-p text --nll --full-run x", "-p text --nll --kept x",
		"-p text --nll --full-slots f32", "-p text --nll --against-full --belady", "-p text --nll --against-full --full-run x --batch 2",
		"-p text --nll --against-full --full-run x --belady --policy h2o",
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		tl_run(&t, "$BIN/ebb-llama -m $MODEL --socket %s %s", d.socket, wrong[i]);
		if (t.status != 2 || !*t.err)
			fail_msg("%s: exit status %d, %s", wrong[i], t.status, t.err);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_budget_that_holds_everything_costs_exactly_nothing),
		cmocka_unit_test(the_comparison_disturbs_nothing),
		cmocka_unit_test(a_full_run_from_a_file_says_the_same),
		cmocka_unit_test(the_full_cache_may_store_its_slots_otherwise),
		cmocka_unit_test(a_full_run_of_something_else_is_refused),
		cmocka_unit_test(what_does_not_go_together_is_refused),
	};
	int rc;

	td_start(&d, "drain = 0s\n[pool p]\ndevice = host\nsize = 256M\n");
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	td_stop(&d);
	return rc;
}
