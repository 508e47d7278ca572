/* Connecting, opening, closing, asking; and that no descriptor is left whatever happens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/unit/libclient/fake.h"

static const struct ebb_session_options small = { .n_layers = 1, .n_kv_heads = 1, .group = 2, .head_dim = FAKE_DIM, .max_tokens = 256 };

static int connect_to(struct ebb **ebb, const char *path, char why[256])
{
	struct ebb_options o = { .socket = path, .name = "test", .why = why, .why_bytes = 256 };

	*why = 0;
	return ebb_connect(ebb, &o);
}

static void nobody_there_is_named(void **state)
{
	struct fake f = { .window = 8 };
	unsigned before = fake_open_fds();
	char why[256], longer[200];
	struct ebb *ebb = NULL;

	(void)state;
	assert_int_equal(connect_to(&ebb, "/tmp/no-such-folder/sock", why), -ENOENT);
	assert_non_null(strstr(why, "/tmp/no-such-folder/sock"));
	fake_listen(&f);
	close(f.listener);
	assert_int_equal(connect_to(&ebb, f.path, why), -ECONNREFUSED);
	unlink(f.path);
	rmdir(f.dir);
	memset(longer, 'x', sizeof(longer) - 1);
	longer[0] = '/';
	longer[sizeof(longer) - 1] = 0;
	assert_int_equal(connect_to(&ebb, longer, why), -EINVAL);
	assert_int_equal(ebb_connect(NULL, NULL), -EINVAL);
	assert_null(ebb);
	assert_int_equal(fake_open_fds(), before);
}

static void socket_comes_from_the_environment(void **state)
{
	struct fake f = { .window = 8 };
	struct ebb *ebb;

	(void)state;
	fake_start(&f);
	setenv("EBB_SOCKET", f.path, 1);
	assert_int_equal(ebb_connect(&ebb, NULL), 0);
	unsetenv("EBB_SOCKET");
	ebb_close(ebb);
	fake_stop(&f);
}

static bool other_version(struct fake *f, struct wire_msg *msg, int *fd, unsigned *n_fds)
{
	(void)f, (void)fd, (void)n_fds;
	if (msg->head.type == WIRE_WELCOME)
		msg->u.welcome.version = WIRE_VERSION + 1;
	return true;
}

static bool too_many(struct fake *f, struct wire_msg *msg, int *fd, unsigned *n_fds)
{
	(void)f, (void)fd;
	if (msg->head.type == WIRE_WELCOME) {
		memset(&msg->u, 0, sizeof(msg->u));
		strcpy(msg->u.text, "64 clients are connected already");
		msg->head.type = WIRE_FAILED;
		msg->head.status = -EMFILE;
		msg->head.bytes = sizeof(msg->head) + sizeof(msg->u.text);
		*n_fds = 0;
	}
	return msg->head.type != WIRE_POOL;
}

static bool hang_up(struct fake *f, struct wire_msg *msg, int *fd, unsigned *n_fds)
{
	(void)msg, (void)fd, (void)n_fds;
	shutdown(f->conn, SHUT_RDWR);
	return false;
}

static void refusals_have_their_error(void **state)
{
	static const struct { bool (*mangle)(struct fake *, struct wire_msg *, int *, unsigned *); int rc; const char *text; } t[] = {
		{ other_version, -EPROTO, "version 4" }, { too_many, -EMFILE, "64 clients" }, { hang_up, -EPIPE, "gone" },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(t) / sizeof(*t); i++) {
		unsigned before = fake_open_fds();
		struct fake f = { .mangle = t[i].mangle };
		struct ebb *ebb = NULL;
		char why[256];

		fake_start(&f);
		assert_int_equal(connect_to(&ebb, f.path, why), t[i].rc);
		assert_non_null(strstr(why, t[i].text));
		assert_null(ebb);
		fake_stop(&f);
		assert_int_equal(fake_open_fds(), before);
	}
}

static void pools_are_described(void **state)
{
	struct fake f = { .window = 8 };
	struct ebb_pool_info info;
	struct ebb *ebb;
	char why[256];

	(void)state;
	fake_start(&f);
	assert_int_equal(connect_to(&ebb, f.path, why), 0);
	assert_int_equal(ebb_pool(ebb, 0, &info), 0);
	assert_string_equal(info.name, "fake");
	assert_string_equal(info.uuid, "host");
	assert_false(info.is_cuda);
	assert_int_equal(info.ordinal, -1);
	assert_int_equal(info.size_bytes, FAKE_SLABS << FAKE_SHIFT);
	assert_int_equal(ebb_pool(ebb, 1, &info), -ENOENT);
	assert_true(ebb_fd(ebb) >= 0);
	assert_string_equal(ebb_error(ebb), "");
	ebb_close(ebb);
	ebb_close(NULL);
	fake_stop(&f);
}

static void connections_leave_no_descriptor_behind(void **state)
{
	unsigned before = fake_open_fds(), inside;
	struct fake f = { .window = 8 };
	struct ebb_session *s;
	struct ebb *ebb;
	char why[256];

	(void)state;
	fake_start(&f);
	inside = fake_open_fds();
	for (int i = 0; i < 50; i++) {
		assert_int_equal(connect_to(&ebb, f.path, why), 0);
		assert_int_equal(ebb_session_open(ebb, &small, &s), 0);
		if (i % 2)
			assert_int_equal(ebb_session_close(s), 0);
		ebb_close(ebb);
	}
	for (int i = 0; i < 100 && fake_open_fds() != inside; i++)	/* the other side closes when it gets there */
		fake_nap_ms(10);
	assert_int_equal(fake_open_fds(), inside);
	fake_stop(&f);
	assert_int_equal(fake_open_fds(), before);
}

static void received_descriptors_close_on_exec(void **state)
{
	struct fake f = { .window = 8 };
	struct ebb_session *s;
	struct ebb *ebb;
	char why[256], path[64];

	(void)state;
	fake_start(&f);
	assert_int_equal(connect_to(&ebb, f.path, why), 0);
	assert_int_equal(ebb_session_open(ebb, &small, &s), 0);
	for (int fd = 3; fd < 256; fd++) {
		char target[128] = "";
		int flags = fcntl(fd, F_GETFD);

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		(void)!readlink(path, target, sizeof(target) - 1);
		if (flags >= 0 && (strstr(target, "socket:") || strstr(target, "eventfd") || strstr(target, "memfd") ||
				   strstr(target, "io_uring")))
			assert_true(flags & FD_CLOEXEC);
	}
	ebb_close(ebb);
	fake_stop(&f);
}

static void impossible_sessions_are_refused_here(void **state)
{
	struct fake f = { .window = 8 };
	struct ebb_session_options o;
	struct ebb_session *s = NULL;
	struct ebb *ebb;
	char why[256], settings[WIRE_TEXT + 1];

	(void)state;
	fake_start(&f);
	assert_int_equal(connect_to(&ebb, f.path, why), 0);
#define REFUSED(error, change) do { o = small; change; assert_int_equal(ebb_session_open(ebb, &o, &s), error); \
		assert_true(strlen(ebb_error(ebb)) > 10); } while (0)
	REFUSED(-EINVAL, o.n_layers = 0);
	REFUSED(-EINVAL, o.n_kv_heads = 0);
	REFUSED(-EINVAL, (o.n_layers = 1u << 16, o.n_kv_heads = 1u << 16));
	REFUSED(-EINVAL, o.group = 0);
	REFUSED(-EINVAL, o.group = 17);
	REFUSED(-EINVAL, o.head_dim = 48);
	REFUSED(-EINVAL, o.head_dim = 72);
	REFUSED(-EINVAL, o.head_dim = 272);
	REFUSED(-EINVAL, o.max_tokens = 0);
	REFUSED(-E2BIG, o.max_tokens = 1u << 30);
	REFUSED(-EINVAL, o.prompt_tokens = 257);
	REFUSED(-ENOENT, o.pool = "another");
	REFUSED(-ENOENT, o.pool = "a pool whose name is longer than any pool's may be");
	memset(settings, 'a', WIRE_TEXT);
	settings[WIRE_TEXT] = 0;
	REFUSED(-EINVAL, o.settings = settings);
	assert_int_equal(ebb_session_open(ebb, NULL, &s), -EINVAL);
	assert_int_equal(ebb_session_open(ebb, &small, NULL), -EINVAL);
	assert_null(s);
	assert_int_equal(fake_count(&f.n_open), 0);	/* the daemon was not bothered */
	assert_int_equal(ebb_session_open(ebb, &small, &s), 0);
	ebb_close(ebb);
	fake_stop(&f);
}

static void refusals_of_the_daemon_pass_through(void **state)
{
	struct fake f = { .window = 8, .open_status = -ENOSPC };
	struct ebb_session *s = NULL;
	struct ebb *ebb;
	char why[256];

	(void)state;
	fake_start(&f);
	assert_int_equal(connect_to(&ebb, f.path, why), 0);
	assert_int_equal(ebb_session_open(ebb, &small, &s), -ENOSPC);
	assert_string_equal(ebb_error(ebb), "the test says no");
	f.open_status = 0;
	assert_int_equal(ebb_session_open(ebb, &small, &s), 0);	/* and the connection is as good as before */
	assert_int_equal(ebb_session_tokens(s), 0);
	assert_int_equal(ebb_session_close(s), 0);
	assert_int_equal(fake_count(&f.n_close), 1);
	assert_int_equal(ebb_session_close(NULL), 0);
	ebb_close(ebb);
	fake_stop(&f);
}

static void questions_are_answered(void **state)
{
	struct fake f = { .window = 8 };
	unsigned inside;
	struct ebb *ebb;
	char why[256], longer[WIRE_TEXT + 1], *json = NULL;

	(void)state;
	fake_start(&f);
	assert_int_equal(connect_to(&ebb, f.path, why), 0);
	inside = fake_open_fds();
	assert_int_equal(ebb_ask(ebb, "status", &json), 0);
	assert_string_equal(json, "{\"version\":\"fake\"}");
	free(json);
	json = NULL;
	assert_int_equal(ebb_ask(ebb, "weather", &json), -EINVAL);
	memset(longer, 'a', WIRE_TEXT);
	longer[WIRE_TEXT] = 0;
	assert_int_equal(ebb_ask(ebb, longer, &json), -EINVAL);
	assert_int_equal(ebb_ask(ebb, NULL, &json), -EINVAL);
	assert_null(json);
	assert_int_equal(fake_open_fds(), inside);
	ebb_close(ebb);
	fake_stop(&f);
}

static void two_connections_are_independent(void **state)
{
	/* The fake serves one client at a time; two connections of this process take turns, each with its own words. */
	struct fake f = { .window = 8 }, g = { .window = 8 };
	struct ebb_session *s, *t;
	struct ebb *a, *b;
	char why[256];

	(void)state;
	fake_start(&f);
	fake_start(&g);
	assert_int_equal(connect_to(&a, f.path, why), 0);
	assert_int_equal(connect_to(&b, g.path, why), 0);
	assert_int_equal(ebb_session_open(a, &small, &s), 0);
	assert_int_equal(ebb_session_open(b, &small, &t), 0);
	fake_halt(&f);
	assert_int_equal(ebb_session_close(s), -EPIPE);
	assert_int_equal(ebb_session_close(t), 0);
	ebb_close(a);
	ebb_close(b);
	fake_stop(&f);
	fake_stop(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nobody_there_is_named), cmocka_unit_test(socket_comes_from_the_environment),
		cmocka_unit_test(refusals_have_their_error), cmocka_unit_test(pools_are_described),
		cmocka_unit_test(connections_leave_no_descriptor_behind), cmocka_unit_test(received_descriptors_close_on_exec),
		cmocka_unit_test(impossible_sessions_are_refused_here), cmocka_unit_test(refusals_of_the_daemon_pass_through),
		cmocka_unit_test(questions_are_answered), cmocka_unit_test(two_connections_are_independent),
	};

	alarm(60);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
