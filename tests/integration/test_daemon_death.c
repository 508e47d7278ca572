/*
 * The daemon dies under its clients: every call of theirs returns -EPIPE, with io_uring and without, whether they are at work, asleep
 * for a grant, waiting for room, or between steps. None hangs, none crashes. And a new daemon takes up where the old one stood.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu/gpu.h"
#include "libclient/ebb.h"
#include "tests/lib/daemon.h"
#include "tests/lib/traffic.h"

static const char ini[] = "drain = 0s\n[pool p]\ndevice = %D\nsize = 16M\nslab = 1M\n[session]\nwindow = 16\n";

static struct td d;
static struct traffic_report *report;

/* Clients end with -EPIPE; prints how long the last took, asserts only that each does end. */
static void expect_epipe(pid_t *pid, unsigned n, const char *what)
{
	uint64_t since = td_now_ns();

	for (unsigned i = 0; i < n; i++) {
		int code = traffic_wait(pid[i]);

		if (code != 1 || report[i].rc != -EPIPE)
			print_message("%s: client %u: exit %d, %s\n", what, i, code, report[i].error);
		assert_int_equal(code, 1);
		assert_int_equal(report[i].rc, -EPIPE);
		assert_true(strlen(report[i].error) > 20);
	}
	print_message("%s: all had returned %.1f ms after the daemon's death\n", what, (double)(td_now_ns() - since) / 1e6);
}

static void at_work(void **state)
{
	pid_t pid[6];

	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		struct traffic_spec spec = { .settings = "policy=h2o budget=64", .n_sessions = 2, .prompt = 64, .tokens = 4096,
					     .seed = i, .no_uring = i % 2, .pause_us = i < 4 ? 0 : 2000, .rounds = 1000 };

		pid[i] = traffic_start(d.socket, &spec, &report[i]);
	}
	for (unsigned i = 0; i < 6; i++)
		traffic_await(&report[i].tokens, 80);
	td_kill(&d);
	expect_epipe(pid, 6, "at work");
}

/* The daemon does not answer any more, so they all come to wait for a grant; then it dies. */
static void asleep_for_a_grant(void **state)
{
	pid_t pid[4];

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		struct traffic_spec spec = { .settings = "policy=h2o budget=64", .tokens = 100000, .no_uring = i % 2 };

		pid[i] = traffic_start(d.socket, &spec, &report[i]);
	}
	for (unsigned i = 0; i < 4; i++)
		traffic_await(&report[i].tokens, 40);
	td_signal(&d, SIGSTOP);
	for (unsigned i = 0; i < 4; i++) {
		uint64_t seen;

		do {	/* until it stands still */
			seen = report[i].tokens;
			td_nap_us(50000);
		} while (report[i].tokens != seen);
	}
	td_kill(&d);
	expect_epipe(pid, 4, "asleep for a grant");
}

static void waiting_for_room(void **state)
{
	struct traffic_spec big = { .settings = "policy=full slots=f32", .prompt = 10, .tokens = 20, .max_tokens = 2000, .hang = true };
	pid_t pid[64];
	unsigned n = 0;

	(void)state;
	/* Full caches, as many as there is room for: the first that is refused is followed by two that wait. */
	for (; n < 60; n++) {
		pid[n] = traffic_start(d.socket, &big, &report[n]);
		while (!report[n].ended && td_alive(&d))
			td_nap_us(500);
		if (report[n].rc)
			break;
	}
	assert_true(n > 0 && n < 60);
	assert_int_equal(report[n].rc, -ENOSPC);
	assert_int_equal(traffic_wait(pid[n]), 1);
	for (unsigned i = 0; i < 2; i++) {
		struct traffic_spec patient = big;

		patient.wait_ms = -1;
		patient.no_uring = i;
		pid[n + i] = traffic_start(d.socket, &patient, &report[n + i]);
		td_await(&d, "status:waiting", i + 1);
	}
	td_kill(&d);
	for (unsigned i = 0; i < n; i++) {	/* these hang in a step of their own */
		kill(pid[i], SIGKILL);
		traffic_wait(pid[i]);
	}
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(traffic_wait(pid[n + i]), 1);
		assert_int_equal(report[n + i].rc, -EPIPE);
	}
}

/* --- every call --------------------------------------------------------------------------------------------------------------- */

struct shared {
	uint32_t ready, go;
	int rc[16];
};

enum { LAYERS = 2, HEADS = 2, GROUP = 2, DIM = 64 };

/* In a child: in the middle of a step, or between steps, when the daemon dies; then every call in turn. */
static int every_call(struct shared *sh, bool in_step, bool no_uring)
{
	struct ebb_options o = { .socket = d.socket, .no_uring = no_uring };
	struct ebb_session_options so = { .n_layers = LAYERS, .n_kv_heads = HEADS, .group = GROUP, .head_dim = DIM, .max_tokens = 500 };
	struct ebb_session *s, *t = NULL;
	struct ebb_batch *b;
	struct gpu_device *dev;
	struct gpu_slab slab;
	struct ebb *ebb;
	char *json = NULL;
	uint32_t n = 1;
	int rc = ebb_connect(&ebb, &o);

	if (!rc)
		rc = gpu_open(&dev, td_device());
	if (!rc)
		rc = gpu_slab_new(dev, 65536, 0, &slab);
	if (!rc)
		rc = ebb_session_open(ebb, &so, &s);
	if (!rc)
		rc = ebb_batch_new(ebb, NULL, &b);
	if (!rc)
		rc = ebb_batch_join(b, s);
	if (!rc && in_step)
		rc = ebb_step_begin(b, &n, -1);
	if (rc)
		return 10;
	__atomic_store_n(&sh->ready, 1, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&sh->go, __ATOMIC_ACQUIRE))
		td_nap_us(100);
	if (in_step) {
		struct ebb_tensor x = { .data = slab.base };

		for (uint32_t layer = 0; layer < LAYERS; layer++) {
			rc = ebb_append(b, layer, &x, &x);
			if (rc && rc != -EPIPE)
				return 11;
			rc = ebb_attend(b, layer, &x, &x, 1.0f, NULL);
			if (rc && rc != -EPIPE)
				return 12;
		}
		sh->rc[0] = ebb_step_end(b);
	} else {
		sh->rc[0] = ebb_step_begin(b, &n, -1);
	}
	sh->rc[1] = ebb_step_begin(b, &n, -1);
	sh->rc[2] = ebb_step_begin(b, &n, 0);
	sh->rc[3] = ebb_session_open(ebb, &so, &t);
	sh->rc[4] = ebb_ask(ebb, "status", &json);
	sh->rc[5] = ebb_session_close(s);
	if (!*ebb_error(ebb))
		return 13;
	ebb_batch_free(b);
	ebb_close(ebb);
	gpu_slab_free(dev, &slab);
	gpu_close(dev);
	return 0;
}

static void every_call_says_so(void **state)
{
	struct shared *sh = mmap(NULL, 4096 * 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid[4];

	(void)state;
	assert_true(sh != MAP_FAILED);
	fflush(stdout);
	for (unsigned i = 0; i < 4; i++) {
		pid[i] = fork();
		if (pid[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			_exit(every_call(&sh[i], i & 1, i & 2));
		}
	}
	for (unsigned i = 0; i < 4; i++)
		traffic_await_flag(&sh[i].ready);
	td_kill(&d);
	for (unsigned i = 0; i < 4; i++)
		__atomic_store_n(&sh[i].go, 1, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(traffic_wait(pid[i]), 0);
		for (unsigned k = 0; k < 6; k++)
			assert_int_equal(sh[i].rc[k], -EPIPE);
	}
	munmap(sh, 4096 * 4);
}

/* --- afterwards ------------------------------------------------------------------------------------------------------------------ */

static void its_successor_serves_on_the_same_path(void **state)
{
	struct traffic_spec spec = { .settings = "policy=h2o budget=64", .prompt = 50, .tokens = 200, .seed = 1 };
	uint64_t before;

	(void)state;
	before = traffic_run(d.socket, &spec, report);
	for (unsigned i = 0; i < 10; i++) {
		td_kill(&d);
		if (i % 2) {
			/* The socket is still there, and for a moment its backlog: the kernel ends an io_uring behind its owner. */
			assert_int_equal(traffic_wait(traffic_start(d.socket, &spec, report)), 1);
			assert_true(report->rc == -ECONNREFUSED || report->rc == -EPIPE);
		}
		td_restart(&d);
		assert_int_equal(traffic_run(d.socket, &spec, report), before);
	}
	td_stop(&d);
}

/* SIGTERM with nobody connected ends at once; with a client it waits for `drain`, then hangs up on it. */
static void sigterm_drains(void **state)
{
	struct traffic_spec brief = { .tokens = 3000, .pause_us = 100 }, endless = { .tokens = 100000, .pause_us = 1000 };
	pid_t pid;

	(void)state;
	td_configure(&d, "drain = 60s\n[pool p]\ndevice = %D\nsize = 16M\nslab = 1M\n");
	td_signal(&d, SIGHUP);
	pid = traffic_start(d.socket, &brief, report);
	traffic_await(&report->tokens, 10);
	td_signal(&d, SIGTERM);
	assert_int_equal(traffic_wait(pid), 0);		/* it could finish */
	assert_int_equal(report->tokens, 3000);
	td_stop(&d);

	td_start(&d, "drain = 100ms\n[pool p]\ndevice = %D\nsize = 16M\nslab = 1M\n");
	pid = traffic_start(d.socket, &endless, report);
	traffic_await(&report->tokens, 10);
	td_stop(&d);
	assert_int_equal(traffic_wait(pid), 1);
	assert_int_equal(report->rc, -EPIPE);
}

static int start(void **state)
{
	(void)state;
	if (!report)
		report = traffic_reports(64);
	td_start(&d, ini);
	return 0;
}

static int forget(void **state)
{
	(void)state;
	if (d.pid)
		td_forget(&d);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(at_work, start, forget),
		cmocka_unit_test_setup_teardown(asleep_for_a_grant, start, forget),
		cmocka_unit_test_setup_teardown(waiting_for_room, start, forget),
		cmocka_unit_test_setup_teardown(every_call_says_so, start, forget),
		cmocka_unit_test_setup_teardown(its_successor_serves_on_the_same_path, start, forget),
		cmocka_unit_test_setup_teardown(sigterm_drains, start, forget),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
