/*
 * The steady state makes no system call and no allocation: steps run in a child process under a seccomp filter that kills it at
 * the first system call, with malloc and friends replaced by ones that count.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/unit/libclient/fake.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define QUIET 0		/* the sanitizers' own malloc and system calls are none of our business */
#else
#define QUIET 1

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static unsigned long allocations;

__attribute__((visibility("default"))) void *malloc(size_t n)
{
	allocations++;
	return __libc_malloc(n);
}

__attribute__((visibility("default"))) void *calloc(size_t n, size_t m)
{
	allocations++;
	return __libc_calloc(n, m);
}

__attribute__((visibility("default"))) void *realloc(void *p, size_t n)
{
	allocations++;
	return __libc_realloc(p, n);
}

__attribute__((visibility("default"))) void *aligned_alloc(size_t align, size_t n)
{
	allocations++;
	return __libc_memalign(align, n);
}
#endif

enum { STEPS = 400, OK = 42, ALLOCATED = 43, STEP_FAILED = 44, NO_SETUP = 45, NOT_KILLED = 46 };

#if QUIET
/* From here on only exit_group() is allowed. */
static int be_quiet(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog prog = { .len = sizeof(code) / sizeof(*code), .filter = code };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) ? -1 : 0;
}

static int one_step(struct ebb_batch *batch, uint32_t n_sessions, bool attend)
{
	static float x[64 * 2 * FAKE_DIM], y[64 * 2 * FAKE_DIM];
	const struct ebb_tensor in = { .data = x }, out = { .data = y };
	uint32_t n[64];

	for (uint32_t i = 0; i < n_sessions; i++)
		n[i] = 1;
	if (ebb_step_begin(batch, n, 1000))
		return -1;
	if (attend && (ebb_append(batch, 0, &in, &in) || ebb_attend(batch, 0, &in, &out, 0.1f, NULL)))
		return -1;
	return ebb_step_end(batch);
}

/* The client: opens, warms up, falls silent, decodes, and says how it went. */
static int client(const char *socket, uint32_t n_sessions, bool attend, bool sin)
{
	struct ebb_session_options s = { .n_layers = 1, .n_kv_heads = 1, .group = 2, .head_dim = FAKE_DIM,
					 .max_tokens = attend ? 500 : 5000 };
	struct ebb_options o = { .socket = socket, .name = "quiet" };
	struct ebb_session *session;
	struct ebb_batch *batch;
	struct ebb *ebb;
	unsigned long before;

	if (ebb_connect(&ebb, &o) || ebb_batch_new(ebb, NULL, &batch))
		return NO_SETUP;
	for (uint32_t i = 0; i < n_sessions; i++)
		if (ebb_session_open(ebb, &s, &session) || ebb_batch_join(batch, session))
			return NO_SETUP;
	for (int i = 0; i < 3; i++)
		if (one_step(batch, n_sessions, attend))
			return NO_SETUP;
	if (be_quiet())
		return NO_SETUP;
	before = allocations;
	for (int i = 0; i < STEPS; i++)
		if (one_step(batch, n_sessions, attend))
			return STEP_FAILED;
	if (allocations != before)
		return ALLOCATED;
	if (sin) {
		getppid();
		return NOT_KILLED;
	}
	return OK;
}

static int status_of(uint32_t n_sessions, bool attend, bool sin)
{
	struct fake f = { .window = 5000, .stride = attend ? 0 : 4096 };
	int status;
	pid_t pid;

	fake_start(&f);
	pid = fork();
	if (pid == 0) {
		int rc = client(f.path, n_sessions, attend, sin);

		syscall(SYS_exit_group, rc);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	fake_stop(&f);
	return status;
}

static void assert_quiet(uint32_t n_sessions, bool attend)
{
	int status = status_of(n_sessions, attend, false);

	if (WIFSIGNALED(status))
		fail_msg("killed by signal %d (%d is a system call)", WTERMSIG(status), SIGSYS);
	assert_int_equal(WEXITSTATUS(status), OK);
}
#endif

static void a_session_decodes_in_silence(void **state)
{
	(void)state;
#if QUIET
	assert_quiet(1, false);
#else
	skip();
#endif
}

static void a_batch_decodes_in_silence(void **state)
{
	(void)state;
#if QUIET
	assert_quiet(64, false);
#else
	skip();
#endif
}

static void append_and_attend_are_silent_too(void **state)
{
	(void)state;
#if QUIET
	assert_quiet(2, true);
#else
	skip();
#endif
}

static void the_filter_does_kill(void **state)
{
	(void)state;
#if QUIET
	int status = status_of(1, false, true);

	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
#else
	skip();
#endif
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_session_decodes_in_silence), cmocka_unit_test(a_batch_decodes_in_silence),
		cmocka_unit_test(append_and_attend_are_silent_too), cmocka_unit_test(the_filter_does_kill),
	};

	alarm(60);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
