/*
 * 200 clients die by SIGKILL: each by its own hand at a named point of its life (the n-th passing of it), or by the parent's at a random
 * moment. Nothing of them stays, and a client that lived through it all got the same outputs as one that was alone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/daemon.h"
#include "tests/lib/traffic.h"

enum { VICTIMS = 200, AT_A_TIME = 4 };

static struct td d;
static struct traffic_report *report;
static uint64_t lot = 20240607;

static uint32_t draw(uint32_t below)
{
	lot = lot * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(lot >> 33) % below;
}

static const char *const settings[] = {
	"policy=h2o budget=64", "policy=streaming budget=48 slots=q8", "policy=full slots=f32", "policy=h2o budget=25% prefill=chunked",
};

/* The i-th victim. Every second one dies at a named point, the others when the parent pleases. */
static pid_t start_victim(unsigned i, struct traffic_report *r)
{
	struct traffic_spec spec = { .name = "victim", .n_sessions = 1 + draw(3), .prompt = draw(3) * 100, .tokens = 400,
				     .rounds = 1000000, .seed = i, .no_uring = draw(2) };

	spec.settings = settings[draw(4)];
	if (i % 2 == 0) {
		spec.die_at = 1 + i / 2 % (N_POINTS - 1);
		spec.die_step = spec.die_at <= AT_OPENED ? 0 : draw(3);
		if (spec.die_at == AT_PREFILL) {
			spec.prompt = 200;
			spec.die_step = draw(6);
		}
		if (spec.die_at == AT_CLOSING)
			spec.tokens = 100, spec.prompt = 50;
	}
	return traffic_start(d.socket, &spec, r);
}

static void the_killed_leave_nothing(void **state)
{
	struct traffic_spec survivor = { .name = "survivor", .settings = "policy=h2o budget=64", .n_sessions = 2, .prompt = 100,
					 .tokens = 100000, .seed = 5, .pause_us = 300 };
	unsigned descriptors, points[N_POINTS] = { 0 };
	uint64_t under_fire;
	pid_t alive, pid[AT_A_TIME] = { 0 };

	(void)state;
	td_number(&d, "status:sessions");
	descriptors = td_settled_descriptors(&d);
	alive = traffic_start(d.socket, &survivor, report);
	traffic_await(&report->tokens, 1);
	for (unsigned i = 0; i < VICTIMS + AT_A_TIME; i++) {
		unsigned k = i % AT_A_TIME;

		if (pid[k]) {
			unsigned was = i - AT_A_TIME;

			if (was % 2) {
				if (draw(4))
					traffic_await_flag(&report[1 + k].connected);
				td_nap_us(draw(20000));
				assert_int_equal(kill(pid[k], SIGKILL), 0);
			}
			int code = traffic_wait(pid[k]);

			if (code != 256 + SIGKILL)
				print_message("victim %u: code %d, round %llu, token %llu, %s\n", was, code,
					      (unsigned long long)report[1 + k].rounds, (unsigned long long)report[1 + k].tokens,
					      report[1 + k].error);
			assert_int_equal(code, 256 + SIGKILL);	/* it was not told of any error before */
			assert_int_equal(report[1 + k].rc, 0);
			points[was % 2 ? 0 : 1 + was / 2 % (N_POINTS - 1)]++;
		}
		pid[k] = i < VICTIMS ? start_victim(i, &report[1 + k]) : 0;
	}
	for (unsigned i = 0; i < N_POINTS; i++)
		assert_true(points[i] >= VICTIMS / 2 / (N_POINTS - 1) - 1);
	td_await(&d, "status:sessions", 2);		/* the survivor's */
	traffic_stop(report);
	assert_int_equal(traffic_wait(alive), 0);
	td_await(&d, "status:sessions", 0);
	td_await(&d, "status:pools.0.used_bytes", 0);
	td_await(&d, "status:pools.0.slabs_quarantined", 0);
	td_await(&d, "status:clients", 1);		/* who asks */
	assert_true(td_settled_descriptors(&d) <= descriptors);
	assert_int_equal(td_number(&d, "status:clients_dropped_total"), 0);

	under_fire = report->hash;
	survivor.tokens = (uint32_t)report->tokens;
	survivor.max_tokens = 100000;
	survivor.pause_us = 0;
	print_message("survivor: %u tokens\n", survivor.tokens);
	assert_true(survivor.tokens > 500);
	assert_int_equal(traffic_run(d.socket, &survivor, report), under_fire);
}

/* A client that is stopped, not dead, keeps what is its own, and nobody waits for it. */
static void a_stopped_client_holds_up_nobody(void **state)
{
	struct traffic_spec spec = { .settings = "policy=h2o budget=64", .prompt = 100, .tokens = 300, .seed = 9 };
	struct traffic_spec sleeper = { .name = "sleeper", .tokens = 100000, .pause_us = 50 };
	uint64_t alone;
	pid_t pid;

	(void)state;
	alone = traffic_run(d.socket, &spec, report);
	pid = traffic_start(d.socket, &sleeper, &report[1]);
	traffic_await(&report[1].tokens, 100);
	assert_int_equal(kill(pid, SIGSTOP), 0);
	assert_int_equal(traffic_run(d.socket, &spec, report), alone);
	assert_int_equal(td_number(&d, "status:sessions"), 1);
	assert_int_equal(kill(pid, SIGCONT), 0);
	traffic_await(&report[1].tokens, report[1].tokens + 100);
	assert_int_equal(kill(pid, SIGSTOP), 0);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(traffic_wait(pid), 256 + SIGKILL);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

static int start(void **state)
{
	*state = &d;
	report = traffic_reports(1 + AT_A_TIME);
	td_start(&d, "drain = 0s\n[pool p]\ndevice = %D\nsize = 128M\nslab = 1M\n[session]\nwindow = 16\n");
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_killed_leave_nothing),
		cmocka_unit_test(a_stopped_client_holds_up_nobody),
	};

	return cmocka_run_group_tests(tests, start, td_teardown);
}
