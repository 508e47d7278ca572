/*
 * Every error path: the Nth allocation, mmap, send or recvmsg of the client's thread fails, for N from 1 until
 * a whole life of a connection succeeds. After each failure: a negative errno, and neither a descriptor nor memory left behind.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <sys/syscall.h>

#include "tests/unit/libclient/fake.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FAULTS 0	/* the sanitizers want these functions for themselves */
#else
#define FAULTS 1

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

#define EXPORT __attribute__((visibility("default")))

static _Thread_local bool watched;	/* this thread's calls count */
static _Thread_local unsigned countdown;	/* the call that fails, from 1; 0: none */
static _Thread_local long live;		/* allocations less frees */

static bool now(void)
{
	return watched && countdown && --countdown == 0;
}

EXPORT void *malloc(size_t n)
{
	if (now())
		return errno = ENOMEM, NULL;
	live += watched;
	return __libc_malloc(n);
}

EXPORT void *calloc(size_t n, size_t m)
{
	if (now())
		return errno = ENOMEM, NULL;
	live += watched;
	return __libc_calloc(n, m);
}

EXPORT void *realloc(void *p, size_t n)
{
	if (now())
		return errno = ENOMEM, NULL;
	live += watched && !p;
	return __libc_realloc(p, n);
}

EXPORT void *aligned_alloc(size_t align, size_t n)
{
	if (now())
		return errno = ENOMEM, NULL;
	live += watched;
	return __libc_memalign(align, n);
}

EXPORT int posix_memalign(void **out, size_t align, size_t n)
{
	*out = aligned_alloc(align, n);
	return *out ? 0 : ENOMEM;
}

EXPORT void free(void *p)
{
	live -= watched && p;
	__libc_free(p);
}

EXPORT void *mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	if (now())
		return errno = ENOMEM, MAP_FAILED;
	return (void *)syscall(SYS_mmap, at, bytes, prot, flags, fd, offset);
}

EXPORT ssize_t send(int fd, const void *data, size_t bytes, int flags)
{
	if (now())
		return errno = ENOBUFS, -1;
	return syscall(SYS_sendto, fd, data, bytes, flags, NULL, 0);
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *h, int flags)
{
	if (now())
		return errno = ENOMEM, -1;
	return syscall(SYS_recvmsg, fd, h, flags);
}

static const struct ebb_session_options small = { .n_layers = 1, .n_kv_heads = 1, .group = 1, .head_dim = FAKE_DIM, .max_tokens = 600,
						  .settings = "slots=f32" };

/* As much of a life as succeeds. socket NULL: ebb_local(). */
static int life(const char *socket, struct ebb **ebb)
{
	static float x[300 * FAKE_DIM], y[300 * FAKE_DIM];
	const struct ebb_tensor in = { .data = x }, out = { .data = y };
	struct ebb_options o = { .socket = socket, .name = "fault" };
	struct ebb_session *s, *t;
	struct ebb_batch *b;
	uint32_t n[2] = { 5, 300 };
	char *json;
	int rc;

	rc = socket ? ebb_connect(ebb, &o) : ebb_local(ebb, &o);
	if (!rc)
		rc = ebb_session_open(*ebb, &small, &s);
	if (!rc)
		rc = ebb_session_open(*ebb, &small, &t);
	if (!rc)
		rc = ebb_batch_new(*ebb, NULL, &b);
	if (rc)
		return rc;
	assert_int_equal(ebb_batch_join(b, s), 0);
	assert_int_equal(ebb_batch_join(b, t), 0);
	for (int i = 0; i < 3 && !rc; i++) {
		rc = ebb_step_begin(b, n, 5000);
		if (rc)
			break;
		rc = ebb_append(b, 0, &in, &in);
		if (!rc)
			rc = ebb_attend(b, 0, &in, &out, 0.1f, NULL);
		assert_int_equal(ebb_step_end(b), 0);
		n[0] = n[1] = 1;
	}
	if (!rc && socket) {
		rc = ebb_ask(*ebb, "status", &json);
		if (!rc)
			free(json);
	}
	if (!rc)
		rc = ebb_session_close(s);
	return rc;
}

static unsigned fail_each(const char *socket)
{
	unsigned inside = fake_open_fds(), fds, n;
	int rc = -1;

	for (n = 1; n < 1000 && rc; n++) {
		struct ebb *ebb = NULL;

		live = 0;
		countdown = n;
		watched = true;
		rc = life(socket, &ebb);
		countdown = 0;
		ebb_close(ebb);
		watched = false;
		if (rc > 0)
			fail_msg("call %u fails: returns %d", n, rc);
		if (live)
			fail_msg("call %u fails: %ld allocations are left", n, live);
		/* the other side closes its end; one look decides, for it may yet accept, late, a connection that is over already */
		fds = fake_open_fds();
		for (int i = 0; i < 200 && fds != inside; i++, fds = fake_open_fds())
			fake_nap_ms(5);
		if (fds != inside)
			fail_msg("call %u fails: %u descriptors instead of %u", n, fds, inside);
	}
	assert_int_equal(rc, 0);
	return n - 1;
}
#endif

static void a_connection_survives_every_failure(void **state)
{
	(void)state;
#if FAULTS
	struct fake f = { .window = 8, .want_most = 1000 };
	unsigned calls;

	fake_start(&f);
	calls = fail_each(f.path);
	assert_in_range(calls, 20, 900);
	fake_stop(&f);
#else
	skip();
#endif
}

static void a_local_connection_survives_every_failure(void **state)
{
	(void)state;
#if FAULTS
	assert_in_range(fail_each(NULL), 15, 900);
#else
	skip();
#endif
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_connection_survives_every_failure), cmocka_unit_test(a_local_connection_survives_every_failure),
	};

	alarm(120);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
