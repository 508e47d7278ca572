/* Sleeping, with io_uring and with poll: what wakes, what does not, and which of the two is chosen. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "libclient/client.h"
#include "tests/unit/libclient/fake.h"

struct rig {
	int bell, sock[2];
	struct ebbi_wait *w;
};

static void up(struct rig *r, bool no_uring, int flags)
{
	r->bell = eventfd(0, EFD_CLOEXEC | flags);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, r->sock), 0);
	assert_int_equal(ebbi_wait_new(&r->w, r->bell, r->sock[0], no_uring), 0);
}

static void down(struct rig *r)
{
	ebbi_wait_free(r->w);
	close(r->bell);
	close(r->sock[0]);
	if (r->sock[1] >= 0)
		close(r->sock[1]);
}

static void ring(struct rig *r)
{
	const uint64_t one = 1;

	assert_int_equal(write(r->bell, &one, sizeof(one)), sizeof(one));
}

static void *late_ring(void *arg)
{
	fake_nap_ms(20);
	ring(arg);
	return NULL;
}

static void *late_hangup(void *arg)
{
	struct rig *r = arg;

	fake_nap_ms(20);
	close(r->sock[1]);
	r->sock[1] = -1;
	return NULL;
}

static void sleeping(bool no_uring, int flags)
{
	const int64_t long_ns = 5000000000, short_ns = 10000000;
	unsigned before = fake_open_fds();
	struct rig r;
	pthread_t t;
	char byte;

	up(&r, no_uring, flags);
	if (no_uring)
		assert_false(ebbi_wait_uring(r.w));
	assert_int_equal(ebbi_wait_sleep(r.w, 0), 0);
	assert_int_equal(ebbi_wait_sleep(r.w, short_ns), 0);		/* nothing: the time is over */
	ring(&r);
	assert_int_equal(ebbi_wait_sleep(r.w, long_ns), EBBI_BELL);	/* rung before the sleep */
	assert_int_equal(ebbi_wait_sleep(r.w, short_ns), 0);		/* and silent since */
	for (int i = 0; i < 3; i++) {
		assert_int_equal(pthread_create(&t, NULL, late_ring, &r), 0);
		assert_int_equal(ebbi_wait_sleep(r.w, i == 0 ? -1 : long_ns), EBBI_BELL);
		pthread_join(t, NULL);
	}
	ring(&r), ring(&r), ring(&r);
	assert_int_equal(ebbi_wait_sleep(r.w, long_ns), EBBI_BELL);	/* many rings, one wake-up, or a spurious one more */
	(void)ebbi_wait_sleep(r.w, 0);
	assert_int_equal(ebbi_wait_sleep(r.w, short_ns), 0);
	assert_int_equal(send(r.sock[1], "x", 1, 0), 1);
	assert_int_equal(ebbi_wait_sleep(r.w, long_ns), EBBI_SOCKET);
	assert_int_equal(recv(r.sock[0], &byte, 1, 0), 1);
	assert_int_equal(ebbi_wait_sleep(r.w, short_ns), 0);
	assert_int_equal(pthread_create(&t, NULL, late_hangup, &r), 0);
	assert_int_equal(ebbi_wait_sleep(r.w, -1), EBBI_SOCKET);
	pthread_join(t, NULL);
	down(&r);
	assert_int_equal(fake_open_fds(), before);
}

static void io_uring_wakes(void **state) { (void)state; sleeping(false, 0); sleeping(false, EFD_NONBLOCK); }
static void poll_wakes(void **state) { (void)state; sleeping(true, 0); sleeping(true, EFD_NONBLOCK); }

static void the_environment_forbids_io_uring(void **state)
{
	static const struct { const char *value; bool forbids; } t[] = { { "1", true }, { "yes", true }, { "0", false }, { "", false } };
	bool here;
	struct rig r;

	(void)state;
	unsetenv("EBB_NO_URING");
	up(&r, false, 0);
	here = ebbi_wait_uring(r.w);	/* false where the tests run in a container that blocks it */
	down(&r);
	for (unsigned i = 0; i < 4; i++) {
		setenv("EBB_NO_URING", t[i].value, 1);
		up(&r, false, 0);
		assert_int_equal(ebbi_wait_uring(r.w), here && !t[i].forbids);
		down(&r);
	}
	unsetenv("EBB_NO_URING");
}

/* What a container's seccomp profile does: io_uring_setup() returns an error, everything else works. */
static int forbid_io_uring(uint32_t error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 425, 0, 1),		/* io_uring_setup, on every machine */
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = sizeof(code) / sizeof(*code), .filter = code };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) ? -1 : 0;
}

static void a_container_that_blocks_io_uring_gets_poll(void **state)
{
	static const int error[] = { EPERM, ENOSYS, EACCES, ENOMEM };

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		int status;
		pid_t pid = fork();

		if (pid == 0) {
			struct rig r;
			int rc;

			alarm(20);
			if (forbid_io_uring((uint32_t)error[i]))
				_exit(3);
			up(&r, false, 0);
			ring(&r);
			rc = ebbi_wait_uring(r.w) ? 4 : ebbi_wait_sleep(r.w, 1000000000) == EBBI_BELL ? 0 : 5;
			_exit(rc);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(io_uring_wakes), cmocka_unit_test(poll_wakes), cmocka_unit_test(the_environment_forbids_io_uring),
		cmocka_unit_test(a_container_that_blocks_io_uring_gets_poll),
	};

	alarm(60);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
