/*
 * [pool] tide = on: sessions share a pool that is too small by one threshold. None goes below its floor, who weighs more gives way last, sizes
 * come to rest, memory that is freed goes round, and it can be turned on and off under load.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/daemon.h"
#include "tests/lib/traffic.h"

enum { CLIENTS = 5, LANES = 4, FLOOR = 64, NOBODY = 65534 };

/* 5 x 2000 tokens of 4 lanes would take 11 MB. */
#define INI "drain = 0s\nlog_level = notice\n%s[pool p]\ndevice = host\nsize = 5M\nslab = 256K\ntide = %s\n" \
	    "[session]\npolicy = h2o\nbudget = 100%%\nwindow = 16\nfloor = 64\nrecent = 25%%\n"

static struct td d;
static struct traffic_report *report;

static void configure(const char *daemon, const char *tide)
{
	char ini[512];

	snprintf(ini, sizeof(ini), INI, daemon, tide);
	td_configure(&d, ini);
	td_signal(&d, SIGHUP);
}

static void begin(pid_t *pid, uid_t first_is, const char *first_asks)
{
	for (unsigned i = 0; i < CLIENTS; i++) {
		struct traffic_spec spec = { .n_sessions = 1, .prompt = 64, .tokens = 30000, .pause_us = 100, .seed = 90 + i };

		if (i == 0) {
			spec.uid = first_is;
			spec.settings = first_asks;
		}
		pid[i] = traffic_start(d.socket, &spec, &report[i]);
	}
	for (unsigned i = 0; i < CLIENTS; i++)
		traffic_await(&report[i].tokens, 2000);
}

static void end(const pid_t *pid)
{
	for (unsigned i = 0; i < CLIENTS; i++)
		traffic_stop(&report[i]);
	for (unsigned i = 0; i < CLIENTS; i++) {
		assert_int_equal(traffic_wait(pid[i]), 0);
		assert_int_equal(report[i].rc, 0);
	}
	td_await(&d, "status:pools.0.used_bytes", 0);
}

/* Slots a lane. */
static unsigned holds(unsigned client)
{
	return (unsigned)(__atomic_load_n(&report[client].live, __ATOMIC_ACQUIRE) / LANES);
}

static void come_to_rest(void)
{
	unsigned least[CLIENTS], most[CLIENTS] = { 0 };

	memset(least, 0xff, sizeof(least));
	assert_true(td_number(&d, "status:pools.0.tide_bytes") > 1 << 20);
	for (unsigned look = 0; look < 60; look++) {
		for (unsigned i = 0; i < CLIENTS; i++) {
			unsigned n = holds(i);

			least[i] = n < least[i] ? n : least[i];
			most[i] = n > most[i] ? n : most[i];
			assert_true(n >= FLOOR - 16);	/* the window's own tokens are in the floor */
		}
		traffic_await(&report[0].tokens, report[0].tokens + 24);
	}
	for (unsigned i = 0; i < CLIENTS; i++) {
		if (most[i] > 2 * least[i])
			fail_msg("client %u swings between %u and %u slots", i, least[i], most[i]);
		assert_true(least[i] > 80);	/* 5M is room for four times the floors, and it is used */
	}
}

static void sizes_come_to_rest_above_the_floor(void **state)
{
	pid_t pid[CLIENTS];

	(void)state;
	configure("", "on");
	begin(pid, 0, NULL);
	come_to_rest();
	end(pid);
}

/* The same with a table of lanes, whose curves the threshold then cuts. */
static void a_table_of_lanes_is_joined(void **state)
{
	char path[256], ini[768];
	pid_t pid[CLIENTS];
	FILE *file;

	(void)state;
	snprintf(path, sizeof(path), "%s/lanes", d.dir);
	file = fopen(path, "w");
	assert_non_null(file);
	fprintf(file, "ebbd-lanes 1 2 2\ntokens 2048\nbudgets 64 256 1024\n0 0 1 0.1 0.01 0.001\n0 1 1 0.01 0.002 0.0002\n"
		      "1 0 1 0.02 0.001 0.0001\n1 1 1 0.4 0.1 0.02\n");
	assert_int_equal(fclose(file), 0);
	snprintf(ini, sizeof(ini), INI "lanes = %s\n", "", "on", path);
	td_configure(&d, ini);
	td_signal(&d, SIGHUP);
	begin(pid, 0, NULL);
	come_to_rest();
	for (unsigned i = 0; i < CLIENTS; i++) {
		snprintf(path, sizeof(path), "sessions:%u.tide_slots", i);
		assert_in_range(td_number(&d, path), FLOOR, 4000);
	}
	end(pid);
	configure("", "on");
}

static void who_weighs_more_gives_way_last(void **state)
{
	pid_t pid[CLIENTS];

	(void)state;
	if (geteuid() != 0)
		skip();
	assert_int_equal(chmod(d.dir, 0755) | chmod(d.socket, 0666), 0);
	configure("priority = 65534:1000\n", "on");
	begin(pid, NOBODY, NULL);
	for (unsigned look = 0; look < 20; look++) {
		for (unsigned i = 1; i < CLIENTS; i++) {
			if (holds(0) < 2 * holds(i))
				fail_msg("the heavy one holds %u slots a lane, another %u", holds(0), holds(i));
			assert_true(holds(i) >= FLOOR - 16);
		}
		traffic_await(&report[0].tokens, report[0].tokens + 48);
	}
	/* It weighs less than the others now, under way. */
	configure("priority = 65534:0.001\n", "on");
	for (unsigned tries = 0; holds(0) >= holds(1) || holds(0) >= holds(2); tries++) {
		if (tries > 400)
			fail_msg("the light one still holds %u slots a lane, others %u and %u", holds(0), holds(1), holds(2));
		traffic_await(&report[0].tokens, report[0].tokens + 16);
	}
	assert_true(holds(0) >= FLOOR - 16);
	end(pid);
	configure("", "on");
}

static void a_budget_of_its_own_is_a_ceiling(void **state)
{
	pid_t pid[CLIENTS];

	(void)state;
	configure("", "on");
	begin(pid, 0, "budget=80");
	for (unsigned look = 0; look < 20; look++) {
		assert_true(holds(0) <= 80);
		traffic_await(&report[0].tokens, report[0].tokens + 48);
	}
	end(pid);
}

static void it_is_turned_on_and_off_under_load(void **state)
{
	pid_t pid[CLIENTS];

	(void)state;
	configure("", "off");
	begin(pid, 0, NULL);
	for (unsigned i = 0; i < 10; i++) {
		configure("", i % 2 ? "off" : "on");
		traffic_await(&report[i % CLIENTS].tokens, report[i % CLIENTS].tokens + 160);
	}
	end(pid);
	assert_true(td_alive(&d));
}

/* Sessions that the tide says nothing of: policies without a sum of heat, a full one, one with a split that measures. */
static void others_swim_along(void **state)
{
	static const char *const settings[CLIENTS] = { "policy=tova", "policy=l2norm", "policy=full", "policy=h2o split=ada", "policy=streaming observe=0" };
	pid_t pid[CLIENTS];

	(void)state;
	configure("", "on");
	for (unsigned i = 0; i < CLIENTS; i++) {
		struct traffic_spec spec = { .settings = settings[i], .n_sessions = 1, .prompt = 64, .tokens = i == 2 ? 500 : 2500, .seed = 90 + i, .wait_ms = -1 };

		pid[i] = traffic_start(d.socket, &spec, &report[i]);
	}
	for (unsigned i = 0; i < CLIENTS; i++) {
		assert_int_equal(traffic_wait(pid[i]), 0);
		assert_int_equal(report[i].rc, 0);
	}
	td_await(&d, "status:pools.0.used_bytes", 0);
}

static void bad_priorities_are_refused(void **state)
{
	static const char *const bad[] = { "nosuchuser:2", "root", "root:0", "root:lots", ":3", "0:1001", "0:nan" };

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		char line[64];

		snprintf(line, sizeof(line), "priority = %s\n", bad[i]);
		configure(line, "on");
		for (unsigned tries = 0; tries < 2000 && !td_log_has(&d, bad[i]); tries++)
			td_nap_us(1000);
		assert_true(td_log_has(&d, bad[i]));
	}
	assert_true(td_log_has(&d, "USER:WEIGHT"));
	assert_true(td_log_has(&d, "reload_refused"));
}

static int start(void **state)
{
	char ini[512];

	*state = &d;
	report = traffic_reports(CLIENTS);
	snprintf(ini, sizeof(ini), INI, "", "on");
	td_start(&d, ini);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_come_to_rest_above_the_floor),
		cmocka_unit_test(a_table_of_lanes_is_joined),
		cmocka_unit_test(who_weighs_more_gives_way_last),
		cmocka_unit_test(a_budget_of_its_own_is_a_ceiling),
		cmocka_unit_test(it_is_turned_on_and_off_under_load),
		cmocka_unit_test(others_swim_along),
		cmocka_unit_test(bad_priorities_are_refused),
	};

	return cmocka_run_group_tests(tests, start, td_teardown);
}
