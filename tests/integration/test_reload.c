/*
 * SIGHUP under load: budgets of open sessions follow, those of sessions that chose for themselves do not; a broken file changes
 * nothing and is named in the log; what needs a restart is said. Nobody's step is disturbed.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/daemon.h"
#include "tests/lib/traffic.h"

#define POOL "drain = 0s\nlog_level = notice\n[pool p]\ndevice = %D\nsize = 64M\nslab = 1M\n"

static struct td d;
static struct traffic_report *report;

static void await_budget(const struct traffic_report *r, uint32_t slots)
{
	uint64_t until = td_now_ns() + TD_PATIENCE_S * 1000000000ull;

	while (__atomic_load_n(&r->budget, __ATOMIC_ACQUIRE) != slots) {
		if (td_now_ns() > until)
			fail_msg("the budget is %u and does not become %u", r->budget, slots);
		td_nap_us(500);
	}
}

/* Live slots over 4 lanes, as of the last window: what the budget allows, the coming window's tokens being in it. */
static void await_live(struct traffic_report *r, uint64_t most)
{
	uint64_t until = td_now_ns() + TD_PATIENCE_S * 1000000000ull;

	while (__atomic_load_n(&r->live, __ATOMIC_ACQUIRE) > most) {
		if (td_now_ns() > until)
			fail_msg("%llu slots stay live, %llu are allowed", (unsigned long long)r->live, (unsigned long long)most);
		td_nap_us(500);
	}
}

static void budgets_follow_under_load(void **state)
{
	static const uint32_t budgets[] = { 256, 96, 512, 128, 200 };
	struct traffic_spec follows = { .name = "follows", .n_sessions = 3, .prompt = 600, .tokens = 1000000, .pause_us = 50,
					.max_tokens = 60000 };
	struct traffic_spec chose = { .name = "chose", .settings = "budget=160", .prompt = 400, .tokens = 60000, .pause_us = 50 };
	pid_t pid[2];
	char ini[512];

	(void)state;
	follows.tokens = 60000;
	pid[0] = traffic_start(d.socket, &follows, &report[0]);
	pid[1] = traffic_start(d.socket, &chose, &report[1]);
	traffic_await(&report[0].tokens, 601);
	traffic_await(&report[1].tokens, 401);
	for (unsigned i = 0; i < sizeof(budgets) / sizeof(*budgets); i++) {
		snprintf(ini, sizeof(ini), "%s[session]\nbudget = %u\nwindow = 16\n", POOL, budgets[i]);
		td_configure(&d, ini);
		td_signal(&d, SIGHUP);
		await_budget(&report[0], budgets[i]);
		await_live(&report[0], 4ull * budgets[i]);
		assert_int_equal(report[1].budget, 160);
		assert_true(report[1].live <= 4 * 160);
	}
	for (unsigned i = 0; i < 2; i++) {
		traffic_stop(&report[i]);
		assert_int_equal(traffic_wait(pid[i]), 0);
	}
	td_await(&d, "status:pools.0.used_bytes", 0);
}

static void a_broken_file_changes_nothing(void **state)
{
	static const char *const broken[] = {
		POOL "[session]\nbudget = lots\n", POOL "[session]\nnonsense = 1\n", POOL "[session]\nbudget = 64\n[",
		POOL "[session]\nwindow = 0\n",
		"", POOL "[session]\npolicy = none-such\n",
	};
	struct traffic_spec spec = { .prompt = 400, .tokens = 60000, .pause_us = 50 };
	pid_t pid = traffic_start(d.socket, &spec, report);

	(void)state;
	traffic_await(&report->tokens, 401);
	for (unsigned i = 0; i < sizeof(broken) / sizeof(*broken); i++) {
		uint64_t tokens = report->tokens;
		int64_t before = td_number(&d, "status:windows_total");

		td_configure(&d, broken[i]);
		td_signal(&d, SIGHUP);
		td_await_at_least(&d, "status:windows_total", before + 10);
		traffic_await(&report->tokens, tokens + 64);
		assert_int_equal(report->budget, 200);
		assert_true(td_alive(&d));
	}
	assert_true(td_log_has(&d, "lots"));
	assert_true(td_log_has(&d, "nonsense"));
	assert_true(td_log_has(&d, "none-such"));
	traffic_stop(report);
	assert_int_equal(traffic_wait(pid), 0);
}

static void what_needs_a_restart_is_said(void **state)
{
	(void)state;
	td_configure(&d, "drain = 0s\nlog_level = notice\n[pool p]\ndevice = %D\nsize = 32M\nslab = 1M\n"
		     "[session]\nbudget = 200\nwindow = 16\n");
	td_signal(&d, SIGHUP);
	for (unsigned i = 0; i < 10000 && !td_log_has(&d, "restart"); i++)
		td_nap_us(5000);
	assert_true(td_log_has(&d, "restart"));
	assert_int_equal(td_number(&d, "status:pools.0.size_bytes"), 64 << 20);
}

static void a_hundred_hangups_in_a_row(void **state)
{
	struct traffic_spec spec = { .prompt = 100, .tokens = 2000, .seed = 4 };
	uint64_t alone;
	pid_t pid;

	(void)state;
	alone = traffic_run(d.socket, &spec, report);
	pid = traffic_start(d.socket, &spec, report);
	for (unsigned i = 0; i < 100; i++) {
		td_signal(&d, SIGHUP);
		td_nap_us(300);
	}
	assert_int_equal(traffic_wait(pid), 0);
	assert_int_equal(report->hash, alone);		/* the same settings read again are no change */
}

static int start(void **state)
{
	*state = &d;
	report = traffic_reports(4);
	td_start(&d, POOL "[session]\nbudget = 300\nwindow = 16\n");
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(budgets_follow_under_load),
		cmocka_unit_test(a_broken_file_changes_nothing),
		cmocka_unit_test(what_needs_a_restart_is_said),
		cmocka_unit_test(a_hundred_hangups_in_a_row),
	};

	return cmocka_run_group_tests(tests, start, td_teardown);
}
