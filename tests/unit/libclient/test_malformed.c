/*
 * A daemon that says impossible things. Every case: an error with a sentence, -EPIPE from then on, no descriptor left, no crash.
 * What is not tried: page ids inside a session's table. They are the daemon's memory, and whoever can write them can as well
 * write the keys and values they lead to.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/unit/libclient/fake.h"

static const struct ebb_session_options small = { .n_layers = 1, .n_kv_heads = 2, .group = 2, .head_dim = FAKE_DIM, .max_tokens = 200 };

/* --- one lie at a time ------------------------------------------------------------------------------------------------------- */

static int bad_fd(size_t bytes, bool sealed)
{
	int fd = memfd_create("bad", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	if (sealed)
		assert(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	return fd;
}

static int spare = -1;	/* a descriptor to send and to close afterwards */

#define LIES(X) \
	X(WIRE_WELCOME, msg->head.bytes -= 8) \
	X(WIRE_WELCOME, f->lie = 8) \
	X(WIRE_WELCOME, f->lie = -8) \
	X(WIRE_WELCOME, msg->head.bytes = 8) \
	X(WIRE_WELCOME, msg->head.type = WIRE_OPENED) \
	X(WIRE_WELCOME, msg->head.type = 999) \
	X(WIRE_WELCOME, *n = 0) \
	X(WIRE_WELCOME, *n = 3) \
	X(WIRE_WELCOME, (fd[4] = fd[0], *n = 5)) \
	X(WIRE_WELCOME, (fd[0] = spare = bad_fd(WIRE_SHARED_BYTES, false))) \
	X(WIRE_WELCOME, (fd[0] = spare = bad_fd(WIRE_SHARED_BYTES - 4096, true))) \
	X(WIRE_WELCOME, (fd[3] = spare = bad_fd(1, true))) \
	X(WIRE_WELCOME, (fd[0] = fd[1])) \
	X(WIRE_WELCOME, msg->u.welcome.n_pools = 0) \
	X(WIRE_WELCOME, msg->u.welcome.n_pools = WIRE_MAX_POOLS + 1) \
	X(WIRE_WELCOME, msg->u.welcome.shared_bytes = 4096) \
	X(WIRE_WELCOME, wire_store32(&f->shared->sq_head.value, 5)) \
	X(WIRE_POOL, msg->u.pool.index = 1) \
	X(WIRE_POOL, msg->u.pool.slab_shift = 5) \
	X(WIRE_POOL, msg->u.pool.slab_shift = 64) \
	X(WIRE_POOL, msg->u.pool.max_slabs = 0) \
	X(WIRE_POOL, msg->u.pool.max_slabs = 0xffffffff) \
	X(WIRE_POOL, memset(msg->u.pool.name, 'x', sizeof(msg->u.pool.name))) \
	X(WIRE_POOL, memset(msg->u.pool.uuid, 'x', sizeof(msg->u.pool.uuid))) \
	X(WIRE_POOL, (fd[0] = f->bell, *n = 1)) \
	X(WIRE_SLAB, msg->u.slab.pool = 1) \
	X(WIRE_SLAB, msg->u.slab.pool = 0xffffffff) \
	X(WIRE_SLAB, msg->u.slab.slab = FAKE_SLABS) \
	X(WIRE_SLAB, msg->u.slab.slab = 0xffffffff) \
	X(WIRE_SLAB, msg->u.slab.slab = 1) \
	X(WIRE_SLAB, msg->u.slab.bytes = 0) \
	X(WIRE_SLAB, msg->u.slab.bytes = 2u << FAKE_SHIFT) \
	X(WIRE_SLAB, msg->u.slab.bytes = UINT64_MAX) \
	X(WIRE_SLAB, (fd[0] = spare = bad_fd(4096, true))) \
	X(WIRE_SLAB, *n = 0) \
	X(WIRE_SLAB, (fd[1] = fd[0], *n = 2)) \
	X(WIRE_SLAB, (fd[0] = f->bell)) \
	X(WIRE_SLAB, (f->sent[0] = false, f->mangle = NULL, fake_send_slab(f, 0))) \
	X(WIRE_OPENED, msg->u.opened.session = WIRE_MAX_SESSIONS) \
	X(WIRE_OPENED, msg->u.opened.pool = 1) \
	X(WIRE_OPENED, msg->u.opened.slot_type = GPU_Q4 + 1) \
	X(WIRE_OPENED, msg->u.opened.table.n_lanes = 1) \
	X(WIRE_OPENED, msg->u.opened.table.window = 0) \
	X(WIRE_OPENED, msg->u.opened.table.window = 0xffffffff) \
	X(WIRE_OPENED, msg->u.opened.table.max_pages = 0xffffffff) \
	X(WIRE_OPENED, msg->u.opened.table.max_blocks = 1u << 20) \
	X(WIRE_OPENED, msg->u.opened.table.n_heat = 3) \
	X(WIRE_OPENED, msg->u.opened.max_slots = 0) \
	X(WIRE_OPENED, msg->u.opened.max_slots = 0xffffffff) \
	X(WIRE_OPENED, msg->u.opened.table_id = 0xffffffff) \
	X(WIRE_OPENED, msg->u.opened.table_id = 1u << (FAKE_SHIFT - 7)) \
	X(WIRE_OPENED, msg->u.opened.table_id = (1u << (FAKE_SHIFT - 7)) - 1) \
	X(WIRE_OPENED, msg->head.seq++) \
	X(WIRE_OPENED, msg->head.type = WIRE_CLOSED) \
	X(WIRE_OPENED, msg->head.type = WIRE_ANSWER) \
	X(WIRE_OPENED, msg->head.bytes -= 4) \
	X(WIRE_OPENED, (fd[0] = f->bell, *n = 1)) \
	X(WIRE_OPENED, (msg->head.type = WIRE_FAILED, msg->head.status = 0)) \
	X(WIRE_OPENED, (msg->head.type = WIRE_FAILED, msg->head.status = 12)) \
	X(WIRE_OPENED, (msg->head.type = WIRE_FAILED, msg->head.status = -100000)) \
	X(WIRE_ANSWER, *n = 0) \
	X(WIRE_ANSWER, msg->u.answer.bytes = UINT64_MAX) \
	X(WIRE_ANSWER, msg->u.answer.bytes = 1u << 20) \
	X(WIRE_ANSWER, (fd[0] = spare = bad_fd(100, false), msg->u.answer.bytes = 100)) \
	X(WIRE_ANSWER, (fd[0] = f->conn)) \
	X(WIRE_ANSWER, msg->head.seq = 0) \
	X(WIRE_DROP, msg->u.slab.slab = 3) \
	X(WIRE_DROP, msg->u.slab.slab = 0xffffffff) \
	X(WIRE_DROP, msg->u.slab.pool = 1) \
	X(WIRE_DROP, msg->u.slab.generation++) \
	X(WIRE_DROP, (fd[0] = f->bell, *n = 1)) \
	X(WIRE_DROP, msg->head.type = WIRE_CLOSED) \
	X(WIRE_DROP, msg->head.type = WIRE_POOL) \
	X(WIRE_CLOSED, msg->head.seq++) \
	X(WIRE_CLOSED, msg->head.type = WIRE_OPENED) \
	X(WIRE_CLOSED, (msg->head.type = WIRE_FAILED, msg->head.status = -EBUSY))

#define TYPE_OF(type, what) type,
#define TEXT_OF(type, what) #type ": " #what,
static const unsigned lie_type[] = { LIES(TYPE_OF) };
static const char *const lie_text[] = { LIES(TEXT_OF) };

static bool lie(struct fake *f, struct wire_msg *msg, int *fd, unsigned *n)
{
	int k = 0;

	(void)fd, (void)n;
	if (msg->head.type != lie_type[f->mangle_case])
		return true;
#define DO(type, what) if (f->mangle_case == (unsigned)k++) { what; }
	LIES(DO)
	return true;
}

/* Connect, open, step, a slab that comes and goes, ask, close; the first error, and what it was that failed. */
static int life(struct fake *f, struct ebb **out, char *why)
{
	struct ebb_options o = { .socket = f->path, .name = "test", .why = why, .why_bytes = 512 };
	struct ebb_session *s;
	struct ebb_batch *b;
	char *json;
	uint32_t n = 1;
	int rc;

	*out = NULL;
	rc = ebb_connect(out, &o);
	if (rc)
		return rc;
	rc = ebb_session_open(*out, &small, &s);
	if (rc)
		return rc;
	assert_int_equal(ebb_batch_new(*out, NULL, &b), 0);
	assert_int_equal(ebb_batch_join(b, s), 0);
	rc = ebb_step_begin(b, &n, 2000);
	if (!rc)
		rc = ebb_step_end(b);
	if (!rc && !f->idle_ms) {	/* the fuzzer's daemon may have hung up already: its thread owns the socket */
		fake_send_slab(f, 2);
		fake_drop_slab(f, 2);
		n = 1;
		rc = ebb_step_begin(b, &n, 2000);
		if (!rc)
			rc = ebb_step_end(b);
	}
	if (!rc)
		rc = ebb_ask(*out, "status", &json);
	if (rc)
		return rc;
	free(json);
	return ebb_session_close(s);
}

static void assert_over(struct ebb *ebb)
{
	struct ebb_session *s;
	char *json;

	assert_int_equal(ebb_session_open(ebb, &small, &s), -EPIPE);
	assert_int_equal(ebb_ask(ebb, "status", &json), -EPIPE);
}

static void every_lie_is_an_error(void **state)
{
	unsigned before = fake_open_fds();

	(void)state;
	for (unsigned i = 0; i < sizeof(lie_type) / sizeof(*lie_type); i++) {
		struct fake f = { .window = 8, .mangle = lie, .mangle_case = i };
		char why[512] = "";
		struct ebb *ebb;
		int rc;

		fake_start(&f);
		rc = life(&f, &ebb, why);
		if (rc >= 0)
			fail_msg("%s: not noticed", lie_text[i]);
		if (strlen(ebb ? ebb_error(ebb) : why) < 10)
			fail_msg("%s: %d without a sentence", lie_text[i], rc);
		if (ebb)
			assert_over(ebb);
		ebb_close(ebb);
		fake_stop(&f);
		if (spare >= 0)
			close(spare);
		spare = -1;
		if (fake_open_fds() != before)
			fail_msg("%s: %u descriptors instead of %u", lie_text[i], fake_open_fds(), before);
	}
}

static void the_truth_is_no_error(void **state)
{
	struct fake f = { .window = 8 };
	char why[512];
	struct ebb *ebb;

	(void)state;
	fake_start(&f);
	assert_int_equal(life(&f, &ebb, why), 0);
	ebb_close(ebb);
	fake_stop(&f);
}

/* --- messages that are no messages ---------------------------------------------------------------------------------------------- */

static bool giant(struct fake *f, struct wire_msg *msg, int *fd, unsigned *n)
{
	static char big[4096];

	(void)fd, (void)n;
	if (msg->head.type != WIRE_OPENED)
		return true;
	memcpy(big, msg, sizeof(*msg));
	((struct wire_head *)(void *)big)->bytes = f->mangle_case ? sizeof(big) : sizeof(*msg);
	(void)!send(f->conn, big, f->mangle_case ? sizeof(big) : 1, MSG_NOSIGNAL);
	return false;
}

static void giants_and_dwarfs_are_refused(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		struct fake f = { .window = 8, .mangle = giant, .mangle_case = i };
		char why[512];
		struct ebb *ebb;

		fake_start(&f);
		assert_int_equal(life(&f, &ebb, why), -EPIPE);
		assert_over(ebb);
		ebb_close(ebb);
		fake_stop(&f);
	}
}

static bool endless(struct fake *f, struct wire_msg *msg, int *fd, unsigned *n)
{
	(void)f, (void)fd, (void)n;
	if (msg->head.type == WIRE_FAILED)
		memset(msg->u.text, 'x', sizeof(msg->u.text));
	return true;
}

static void a_reason_without_an_end_is_cut(void **state)
{
	struct fake f = { .window = 8, .mangle = endless, .open_status = -ENOSPC };
	char why[512];
	struct ebb *ebb;

	(void)state;
	fake_start(&f);
	assert_int_equal(life(&f, &ebb, why), -ENOSPC);
	assert_true(strlen(ebb_error(ebb)) < WIRE_TEXT);
	ebb_close(ebb);
	fake_stop(&f);
}

/* --- random bytes ------------------------------------------------------------------------------------------------------------------ */

static uint32_t draw(uint32_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 17;
	*seed ^= *seed << 5;
	return *seed;
}

/* One message in three has up to four bytes changed; some lose or gain descriptors. */
static bool scramble(struct fake *f, struct wire_msg *msg, int *fd, unsigned *n)
{
	uint32_t *seed = &f->mangle_seed;

	if (draw(seed) % 3)
		return true;
	for (uint32_t k = draw(seed) % 4 + 1; k--;) {
		uint32_t at = 4 + draw(seed) % (msg->head.bytes > 4 ? msg->head.bytes - 4 : 1);

		if (at < sizeof(*msg))
			((unsigned char *)msg)[at] = (unsigned char)draw(seed);
	}
	if (draw(seed) % 8 == 0 && *n)
		--*n;
	if (draw(seed) % 8 == 0 && *n < 7)
		fd[(*n)++] = f->bell;
	return true;
}

static void random_changes_never_crash_or_leak(void **state)
{
	unsigned before = fake_open_fds(), errors = 0, rounds = 400;

	(void)state;
	for (uint32_t i = 1; i <= rounds; i++) {
		struct fake f = { .window = 8, .mangle = scramble, .mangle_seed = i * 2654435761u, .idle_ms = 100 };
		char why[512];
		struct ebb *ebb;

		fake_start(&f);
		errors += life(&f, &ebb, why) < 0;
		ebb_close(ebb);
		fake_stop(&f);
		if (fake_open_fds() != before)
			fail_msg("seed %u: %u descriptors instead of %u", i, fake_open_fds(), before);
	}
	assert_in_range(errors, rounds / 4, rounds - 1);	/* most changes are noticed, and not everything was changed */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_truth_is_no_error), cmocka_unit_test(every_lie_is_an_error),
		cmocka_unit_test(giants_and_dwarfs_are_refused), cmocka_unit_test(a_reason_without_an_end_is_cut),
		cmocka_unit_test(random_changes_never_crash_or_leak),
	};

	alarm(150);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
