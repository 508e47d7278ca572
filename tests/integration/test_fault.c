/*
 * Every system call and allocation of the daemon fails once, the Nth for N = 1, 2, ... until there is no Nth. Whatever happens: the
 * daemon ends at its start with a message and exit code 1, or it lives; a client gets 0 or a negative errno within its time; and when
 * it has lived, the next client finds a daemon that works and whose pool is empty again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "libclient/ebb.h"

static char dir[] = "/tmp/ebb-fault-XXXXXX", binary[4096], preload[4096];

static void path(char *out, size_t bytes, const char *name)
{
	snprintf(out, bytes, "%s/%s", dir, name);
}

static void nap(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

static pid_t start(long fault)
{
	char ini[128], mark[128], log[128], number[32];
	pid_t pid;

	path(ini, sizeof(ini), "ebbd.ini");
	path(mark, sizeof(mark), "mark");
	path(log, sizeof(log), "log");
	snprintf(number, sizeof(number), "%ld", fault);
	unlink(mark);
	pid = fork();
	if (pid == 0) {
		if (!freopen(log, "w", stderr) || !freopen("/dev/null", "w", stdout) || prctl(PR_SET_PDEATHSIG, SIGKILL))
			_exit(99);
		if (fault) {
			setenv("EBB_FAULT", number, 1);
			setenv("EBB_FAULT_MARK", mark, 1);
			setenv("LD_PRELOAD", preload, 1);
		}
		execl(binary, "ebbd", "--config", ini, (char *)NULL);
		_exit(98);
	}
	assert_true(pid > 0);
	return pid;
}

/* A whole life of a small client. Returns 0 or the first error; never hangs. */
static int live_once(struct ebb *ebb)
{
	static float k[64 * 2], v[64 * 2], q[64 * 4], out[64 * 4];
	struct ebb_tensor K = { k, EBB_F32, 0 }, V = { v, EBB_F32, 0 }, Q = { q, EBB_F32, 0 }, O = { out, EBB_F32, 0 };
	struct ebb_session_options so = { .n_layers = 2, .n_kv_heads = 2, .group = 2, .head_dim = 64, .max_tokens = 512,
					  .settings = "policy=h2o budget=80" };
	struct ebb_session *s = NULL;
	struct ebb_batch *b = NULL;
	char *json = NULL;
	int rc = ebb_session_open(ebb, &so, &s);

	if (!rc)
		rc = ebb_batch_new(ebb, &(struct ebb_batch_options){ 0 }, &b);
	if (!rc)
		rc = ebb_batch_join(b, s);
	for (int i = 0; !rc && i < 130; i++) {
		uint32_t n = 1;

		if (i == 110) {		/* no memory for it: it stays as it was */
			rc = ebb_session_set(s, "policy=roco split=ada");
			rc = rc == -ENOMEM || rc == 1 ? 0 : rc ? rc : -EPROTO;
		}
		if (rc)
			break;

		rc = ebb_step_begin(b, &n, 3000);
		for (uint32_t layer = 0; !rc && layer < 2; layer++) {
			rc = ebb_append(b, layer, &K, &V);
			if (!rc)
				rc = ebb_attend(b, layer, &Q, &O, 0.125f, NULL);
		}
		if (!rc)
			rc = ebb_step_end(b);
	}
	if (!rc)
		rc = ebb_ask(ebb, "status", &json);
	free(json);
	if (s && !rc)
		rc = ebb_session_close(s);
	return rc;
}

/* 0, or a negative errno; -EAGAIN: nobody listens yet. */
static int client(void)
{
	char at[128], why[256] = "";
	struct ebb_options o = { .name = "fault", .why = why, .why_bytes = sizeof(why) };
	struct ebb *ebb = NULL;
	int rc;

	path(at, sizeof(at), "sock");
	o.socket = at;
	rc = ebb_connect(&ebb, &o);
	if (rc)
		return rc == -ENOENT || rc == -ECONNREFUSED ? -EAGAIN : rc;
	rc = live_once(ebb);
	ebb_close(ebb);
	return rc;
}

static int client_when_up(pid_t daemon, int *status)
{
	for (int i = 0; i < 500; i++) {
		int rc = client();

		if (rc != -EAGAIN)
			return rc;
		if (waitpid(daemon, status, WNOHANG) == daemon)
			return -ESRCH;
		nap(10);
	}
	fail_msg("the daemon neither listens nor ends");
	return 0;
}

/* What the daemon said, for whoever reads of a failure. */
static void show_log(void)
{
	char at[128], line[512];
	FILE *f;

	path(at, sizeof(at), "log");
	f = fopen(at, "r");
	while (f && fgets(line, sizeof(line), f))
		fputs(line, stderr);
	if (f)
		fclose(f);
}

static void expect_empty(void)
{
	char at[128], *json = NULL;
	struct ebb_options o = { .name = "look" };
	struct ebb *ebb;
	int rc;

	path(at, sizeof(at), "sock");
	o.socket = at;
	for (int i = 0; i < 200; i++) {
		if ((rc = ebb_connect(&ebb, &o))) {
			show_log();
			fail_msg("a look at the daemon: %d", rc);
		}
		assert_int_equal(ebb_ask(ebb, "status", &json), 0);
		ebb_close(ebb);
		if (strstr(json, "\"used_bytes\":0,") && strstr(json, "\"sessions\":0,")) {
			free(json);
			return;
		}
		if (i == 199)
			fail_msg("memory is left behind: %s", json);
		free(json);
		nap(10);
	}
}

/* A daemon that ends because it cannot start does so with exit code 1, not by a signal. */
static void expect_clean_end(long n, int status)
{
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 1)
		fail_msg("fault %ld at the start: status %#x", n, (unsigned)status);
}

static int run_with_fault(long n)
{
	char mark[128];
	struct stat st;
	int status = 0, rc, struck;
	pid_t pid = start(n);

	rc = client_when_up(pid, &status);
	path(mark, sizeof(mark), "mark");
	struck = stat(mark, &st) == 0;
	if (rc == -ESRCH) {
		expect_clean_end(n, status);
		return struck;
	}
	assert_true(rc <= 0);
	assert_int_not_equal(rc, -ETIMEDOUT);	/* nobody may hang until his patience ends */
	if (!struck) {			/* N is beyond what one client's life takes: the end of the series */
		assert_int_equal(rc, 0);
	} else {			/* the fault is behind us: all must be well again */
		rc = client_when_up(pid, &status);
		if (rc == -ESRCH) {	/* the first client had come before the start failed */
			expect_clean_end(n, status);
			return struck;
		}
		if (rc) {
			show_log();
			fail_msg("after fault %ld a new client still sees %d", n, rc);
		}
		expect_empty();
	}
	kill(pid, SIGTERM);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	return struck;
}

static void every_call_may_fail_once(void **state)
{
	long n = 1;

	(void)state;
	for (; run_with_fault(n); n++)
		assert_true(n < 5000);
	printf("%ld calls failed, one at a time\n", n - 1);
	assert_true(n > 100);	/* the faults did strike */
}

static int set_up(void **state)
{
	char ini[128], exe[3000];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	FILE *f;

	(void)state;
	if (n < 0 || !mkdtemp(dir))
		return -1;
	exe[n] = 0;
	for (int i = 0; i < 3; i++)	/* BUILD/tests/integration/test_fault -> BUILD */
		*strrchr(exe, '/') = 0;
	snprintf(binary, sizeof(binary), "%s/bin/ebbd", exe);
	snprintf(preload, sizeof(preload), "%s/tests/fault/fault.so", exe);
	if (access(binary, X_OK) || access(preload, R_OK)) {
		fprintf(stderr, "needs %s and %s\n", binary, preload);
		return -1;
	}
	path(ini, sizeof(ini), "ebbd.ini");
	f = fopen(ini, "w");
	if (!f)
		return -1;
	fprintf(f, "[daemon]\nsocket = %s/sock\ndrain = 1s\n[pool host]\ndevice = host\nsize = 8M\nslab = 256K\n", dir);
	return fclose(f);
}

static int tear_down(void **state)
{
	char command[128];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command) ? -1 : 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(every_call_may_fail_once) };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return 77;	/* a preloaded malloc and a sanitizer's do not go together */
#endif
	return cmocka_run_group_tests_name("fault", tests, set_up, tear_down);
}
