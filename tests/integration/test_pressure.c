/*
 * A pool that is too small. Sessions that decode shrink, none is ended; a newcomer gets its floor out of what the others give up,
 * waits in a queue with a time limit, or is refused with -ENOSPC and a sentence; and all of it comes back.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/daemon.h"
#include "tests/lib/traffic.h"

enum { SESSIONS = 4, CLIENTS = 4 };

static struct td d;
static struct traffic_report *report;

static void await_rc(pid_t pid, const struct traffic_report *r, int32_t rc)
{
	assert_int_equal(traffic_wait(pid), 1);
	if (r->rc != rc)
		print_message("client: %s\n", r->error);
	assert_int_equal(r->rc, rc);
	assert_true(strlen(r->error) > 30);
}

/* Together they would like 4 * 4 * 4 * 4000 slots of 512 bytes: 128 MiB. There are 8 (on a GPU 32). */
static void those_who_decode_shrink_and_none_is_ended(void **state)
{
	struct traffic_spec spec = { .settings = "policy=h2o budget=100% slots=f32 floor=64", .n_sessions = SESSIONS, .prompt = 200,
				     .tokens = 4000, .pause_us = 30 };
	pid_t pid[CLIENTS];

	(void)state;
	for (unsigned i = 0; i < CLIENTS; i++) {
		spec.seed = i;
		pid[i] = traffic_start(d.socket, &spec, &report[i]);
		traffic_await(&report[i].tokens, 300);
	}
	for (unsigned i = 0; i < CLIENTS; i++) {
		int code = traffic_wait(pid[i]);

		if (code)
			print_message("client %u: exit %d, %s\n", i, code, report[i].error);
		assert_int_equal(code, 0);
		assert_int_equal(report[i].tokens, 4000);
		assert_true(report[i].evicted > 0);
	}
	assert_int_equal(td_number(&d, "status:clients_dropped_total"), 0);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

/* One has taken all there is; what the newcomer needs is claimed from it, although it stands still. */
static void a_newcomer_gets_its_floor_from_an_idle_giant(void **state)
{
	struct traffic_spec giant = { .name = "giant", .settings = "policy=h2o budget=100% slots=f32 floor=64", .n_sessions = 2,
				      .prompt = 512, .tokens = 30000 };
	struct traffic_spec newcomer = { .name = "newcomer", .settings = "policy=streaming budget=64 slots=f32 floor=64", .prompt = 100,
					 .tokens = 400, .wait_ms = 30000 };
	uint64_t seen;
	pid_t pid;

	(void)state;
	pid = traffic_start(d.socket, &giant, &report[0]);
	do {	/* until the pool has no more for it: it evicts although its budget is not reached */
		seen = report[0].tokens;
		td_nap_us(2000);
	} while (report[0].evicted == 0 && report[0].tokens < 29000 && !report[0].rc);
	assert_true(report[0].evicted > 0 && seen < 29000);
	kill(pid, SIGSTOP);
	traffic_run(d.socket, &newcomer, &report[1]);
	kill(pid, SIGCONT);
	traffic_await(&report[0].tokens, seen + 200);	/* it goes on, smaller */
	traffic_stop(&report[0]);
	assert_int_equal(traffic_wait(pid), 0);
	assert_int_equal(report[0].rc, 0);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

/* Full caches cannot shrink. */
static void what_cannot_fit_is_refused_or_waits(void **state)
{
	struct traffic_spec rock = { .name = "rock", .settings = "policy=full slots=f32", .prompt = 10, .tokens = 20, .max_tokens = 1500,
				     .hang = true };
	struct traffic_spec hopeless = { .settings = "policy=full slots=f32", .tokens = 10, .max_tokens = 100000 };
	pid_t pid[16], waiter[3];
	unsigned n = 0;

	(void)state;
	for (; n < 16; n++) {
		pid[n] = traffic_start(d.socket, &rock, &report[n]);
		while (!report[n].ended)
			td_nap_us(500);
		if (report[n].rc)
			break;
	}
	assert_true(n > 0 && n < 16);
	await_rc(pid[n], &report[n], -ENOSPC);
	rock.wait_ms = 150;				/* its turn does not come */
	waiter[0] = traffic_start(d.socket, &rock, &report[16]);
	await_rc(waiter[0], &report[16], -ETIMEDOUT);
	assert_int_equal(traffic_wait(traffic_start(d.socket, &hopeless, &report[16])), 1);
	assert_true(report[16].rc == -E2BIG || report[16].rc == -ENOSPC);

	rock.wait_ms = -1;				/* two that wait for ever, one that gives up by dying */
	rock.hang = false;
	for (unsigned i = 0; i < 3; i++) {
		waiter[i] = traffic_start(d.socket, &rock, &report[16 + i]);
		td_await(&d, "status:waiting", i + 1);
	}
	kill(waiter[1], SIGKILL);
	assert_int_equal(traffic_wait(waiter[1]), 256 + SIGKILL);
	td_await(&d, "status:waiting", 2);
	kill(pid[0], SIGKILL);				/* makes room for one after the other */
	assert_int_equal(traffic_wait(pid[0]), 256 + SIGKILL);
	assert_int_equal(traffic_wait(waiter[0]), 0);
	assert_int_equal(traffic_wait(waiter[2]), 0);
	for (unsigned i = 1; i < n; i++) {
		kill(pid[i], SIGKILL);
		assert_int_equal(traffic_wait(pid[i]), 256 + SIGKILL);
	}
	td_await(&d, "status:waiting", 0);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

/* A prompt that the whole pool could not hold, chunk by chunk and at once. */
static void a_prompt_larger_than_the_pool(void **state)
{
	const uint32_t prompt = strcmp(td_device(), "host") ? 20000 : 6000;	/* 2048 bytes each */
	struct traffic_spec spec = { .settings = "policy=h2o budget=256 slots=f32 prefill=chunked", .prompt = prompt,
				     .tokens = prompt + 100, .chunk = 256, .announce_prompt = true };

	(void)state;
	traffic_run(d.socket, &spec, &report[0]);
	assert_true(report[0].live <= 4 * 256);
	assert_true(report[0].fewer > 0);		/* a window at a time */
	spec.settings = "policy=h2o budget=256 slots=f32 prefill=whole";
	traffic_run(d.socket, &spec, &report[0]);	/* it cannot be held whole: what fits, then windows */
	assert_true(report[0].live <= 4 * 256);
}

static int start(void **state)
{
	char conf[200];

	*state = &d;
	report = traffic_reports(20);
	/* A GPU's slabs are 2 MiB at least, and each client has one or more of its own. */
	snprintf(conf, sizeof(conf), "drain = 0s\n[pool p]\ndevice = %%D\nsize = %s\nslab = 256K\n[session]\nwindow = 16\nsinks = 4\n",
		 strcmp(td_device(), "host") ? "32M" : "8M");
	td_start(&d, conf);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(those_who_decode_shrink_and_none_is_ended),
		cmocka_unit_test(a_newcomer_gets_its_floor_from_an_idle_giant),
		cmocka_unit_test(what_cannot_fit_is_refused_or_waits),
		cmocka_unit_test(a_prompt_larger_than_the_pool),
	};

	return cmocka_run_group_tests(tests, start, td_teardown);
}
