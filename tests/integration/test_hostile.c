/*
 * Clients that speak the protocol badly, or write what they like over every byte they may write. The daemon answers with a named
 * error or drops them; a neighbour that decodes all the while gets the same outputs, bit for bit, as when it is alone.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/daemon.h"
#include "tests/lib/raw.h"
#include "tests/lib/traffic.h"

static struct td d;
static struct traffic_report *report;
static uint64_t lot = 99;

static uint64_t draw64(void)
{
	lot ^= lot << 13;
	lot ^= lot >> 7;
	lot ^= lot << 17;
	return lot;
}

static uint32_t draw(uint32_t below)
{
	return (uint32_t)(draw64() >> 20) % below;
}

/* --- the neighbour -------------------------------------------------------------------------------------------------------------- */

static const struct traffic_spec neighbour = { .name = "neighbour", .settings = "policy=h2o budget=64", .n_sessions = 2, .prompt = 100,
					       .tokens = 100000, .seed = 77, .pause_us = 1000 };
static pid_t neighbour_pid;

static int neighbour_moves_in(void **state)
{
	(void)state;
	neighbour_pid = traffic_start(d.socket, &neighbour, report);
	traffic_await(&report->tokens, 200);
	return 0;
}

static int neighbour_noticed_nothing(void **state)
{
	struct traffic_spec again = neighbour;
	uint64_t hash;

	(void)state;
	assert_true(td_alive(&d));
	traffic_await(&report->tokens, report->tokens + 64);	/* it still gets windows */
	traffic_stop(report);
	assert_int_equal(traffic_wait(neighbour_pid), 0);
	hash = report->hash;
	again.tokens = (uint32_t)report->tokens;
	again.max_tokens = 100000;
	again.pause_us = 0;
	td_await(&d, "status:sessions", 0);
	td_await(&d, "status:pools.0.used_bytes", 0);
	assert_int_equal(traffic_run(d.socket, &again, report), hash);
	return 0;
}

/* --- messages -------------------------------------------------------------------------------------------------------------------- */

static void expect_drop(struct raw *r)
{
	int got;

	while ((got = raw_receive(r)))
		;
	raw_close(r);
}

static void malformed_messages_end_the_connection(void **state)
{
	static const uint16_t types[] = { 0, 6, 64, WIRE_WELCOME, WIRE_POOL, WIRE_SLAB, WIRE_OPENED, WIRE_CLOSED, WIRE_DROP, WIRE_ANSWER,
					  WIRE_FAILED, 0xffff };
	int64_t before = td_number(&d, "status:clients_dropped_total");
	struct wire_msg m;
	struct raw r;
	unsigned n = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++, n++) {	/* types that are none, or the daemon's */
		raw_connect(&r, d.socket);
		raw_hello(&r);
		memset(&m, 0, sizeof(m));
		raw_send(&r, &m, types[i], sizeof(m.u));
		expect_drop(&r);
	}
	for (size_t bytes = 1; bytes < sizeof(struct wire_head) + sizeof(struct wire_open); bytes += 37, n++) {	/* truncated */
		raw_connect(&r, d.socket);
		raw_hello(&r);
		m = raw_good_open();
		m.head = (struct wire_head){ .bytes = (uint32_t)bytes, .type = WIRE_OPEN, .seq = 1 };
		assert_int_equal(send(r.sock, &m, bytes, MSG_NOSIGNAL), (ssize_t)bytes);
		expect_drop(&r);
	}
	for (unsigned i = 0; i < 4; i++, n++) {
		static char big[65536];

		raw_connect(&r, d.socket);
		if (i)
			raw_hello(&r);
		m = raw_good_open();
		raw_send(&r, &m, WIRE_OPEN, 0);					/* its length says less than a body */
		if (i == 1)
			m.head.bytes = UINT32_MAX;				/* and more than there is */
		if (i == 2)
			m.head = (struct wire_head){ sizeof(m), WIRE_OPEN, 7, 1, 0 };	/* a zero that is none */
		(void)!send(r.sock, i == 3 ? (void *)big : (void *)&m, i == 3 ? sizeof(big) : sizeof(m), MSG_NOSIGNAL);
		expect_drop(&r);
	}
	for (unsigned i = 0; i < 3; i++, n++) {
		raw_connect(&r, d.socket);
		m = (struct wire_msg){ .u.hello = { WIRE_MAGIC + (i == 0), WIRE_VERSION + (i == 1), "x" } };
		raw_send(&r, &m, WIRE_HELLO, sizeof(m.u.hello));
		if (i == 1)
			assert_int_equal(raw_receive(&r), WIRE_FAILED);		/* which version it should have */
		if (i == 2)
			raw_send(&r, &m, WIRE_HELLO, sizeof(m.u.hello));	/* twice */
		expect_drop(&r);
	}
	td_await(&d, "status:clients_dropped_total", before + n);
}

static void expect_refusal(struct raw *r, struct wire_msg *m, int32_t status)
{
	raw_send(r, m, WIRE_OPEN, sizeof(m->u.open));
	assert_int_equal(raw_until(r, WIRE_OPENED), WIRE_FAILED);
	assert_int_equal(r->status, status);
	assert_true(strlen(r->text) > 10);
}

/* Well-formed, but nonsense: a named error, and the connection goes on. */
static void nonsense_is_refused_by_name(void **state)
{
	static const uint32_t odd[] = { 0, 1, 17, 65, 272, 0x7fffffff, 0x80000000, UINT32_MAX };
	struct wire_msg m;
	struct raw r;

	(void)state;
	raw_connect(&r, d.socket);
	raw_hello(&r);
	for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
		if (odd[i] != 1 && odd[i] != 17 && odd[i] != 65 && odd[i] != 272) {
			m = raw_good_open(), m.u.open.n_layers = odd[i], expect_refusal(&r, &m, -EINVAL);
			m = raw_good_open(), m.u.open.n_kv_heads = odd[i], expect_refusal(&r, &m, -EINVAL);
			m = raw_good_open(), m.u.open.max_tokens = odd[i], expect_refusal(&r, &m, -EINVAL);
		}
		if (odd[i] != 1)
			m = raw_good_open(), m.u.open.group = odd[i], expect_refusal(&r, &m, -EINVAL);
		m = raw_good_open(), m.u.open.head_dim = odd[i], expect_refusal(&r, &m, -EINVAL);
		if (odd[i] > 4096)
			m = raw_good_open(), m.u.open.prompt_tokens = odd[i], expect_refusal(&r, &m, -EINVAL);
	}
	m = raw_good_open(), m.u.open.n_layers = 65536, m.u.open.n_kv_heads = 65536, expect_refusal(&r, &m, -EINVAL);
	m = raw_good_open(), m.u.open.max_tokens = 1u << 29, expect_refusal(&r, &m, -E2BIG);
	m = raw_good_open(), strcpy(m.u.open.pool, "nowhere"), expect_refusal(&r, &m, -ENOENT);
	m = raw_good_open(), memset(m.u.open.pool, 'x', sizeof(m.u.open.pool)), expect_refusal(&r, &m, -ENOENT);
	m = raw_good_open(), memset(m.u.open.settings, 'x', sizeof(m.u.open.settings)), expect_refusal(&r, &m, -EINVAL);
	m = raw_good_open(), strcpy(m.u.open.settings, "budget=999%"), expect_refusal(&r, &m, -EINVAL);
	assert_non_null(strstr(r.text, "budget"));
	for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
		memset(&m, 0, sizeof(m));
		m.u.close.session = odd[i];
		raw_send(&r, &m, WIRE_CLOSE, 8);
		assert_int_equal(raw_until(&r, WIRE_CLOSED), WIRE_FAILED);
		assert_int_equal(r.status, -ENOENT);
	}
	memset(&m, 'q', sizeof(m));
	m.head = (struct wire_head){ 0 };
	raw_send(&r, &m, WIRE_ASK, WIRE_TEXT);
	assert_int_equal(raw_until(&r, WIRE_ANSWER), WIRE_FAILED);
	raw_open(&r);		/* all that, and it is still a client */
	raw_close(&r);
}

static void descriptors_sent_along_are_not_kept(void **state)
{
	unsigned before;

	(void)state;
	td_await(&d, "status:clients", 2);
	before = td_settled_descriptors(&d);
	for (unsigned i = 0; i < 50; i++) {
		struct wire_msg m = { .head = { sizeof(m.head) + 7, WIRE_ASK, 0, 1, 0 } };
		struct iovec iov = { &m, m.head.bytes };
		union {
			char bytes[CMSG_SPACE(sizeof(int) * 8)];
			struct cmsghdr align;
		} control = { { 0 } };
		struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
		struct cmsghdr *c = CMSG_FIRSTHDR(&h);
		struct raw r;

		raw_connect(&r, d.socket);
		raw_hello(&r);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * 8);
		for (unsigned k = 0; k < 8; k++)
			memcpy(CMSG_DATA(c) + k * sizeof(int), &r.sock, sizeof(int));
		strcpy(m.u.text, "status");
		assert_true(sendmsg(r.sock, &h, MSG_NOSIGNAL) > 0);
		raw_until(&r, WIRE_ANSWER);	/* or a hang-up: either is fine */
		raw_close(&r);
	}
	td_await(&d, "status:clients", 2);
	assert_true(td_settled_descriptors(&d) <= before);
}

static void random_bytes_do_no_harm(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 400; i++) {
		union {
			struct wire_msg m;
			uint64_t word[200];
		} u;
		size_t bytes = 1 + draw(sizeof(u));
		struct raw r;

		for (size_t k = 0; k < 200; k++)
			u.word[k] = draw64() & (draw(2) ? UINT64_MAX : 0x0000000f0000000full);
		raw_connect(&r, d.socket);
		if (i % 2) {
			raw_hello(&r);
			u.m.head = (struct wire_head){ (uint32_t)bytes, (uint16_t)(1 + draw(7)), 0, draw(5), 0 };
		}
		for (unsigned k = draw(4); k > 0; k--)
			(void)!send(r.sock, &u, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
		raw_close(&r);
	}
	td_await(&d, "status:clients", 2);	/* the neighbour, and who asks */
}

/* --- shared memory ------------------------------------------------------------------------------------------------------------- */

/* Has it been dropped? It may have been at any time in what follows. */
static bool raw_dropped(struct raw *r)
{
	char byte;
	ssize_t n = recv(r->sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK);
}

/*
 * fn(n) in a child, and what it returns. CUDA must not be touched before a fork, a vandal is no part of the test's own memory, and what a
 * dropped client had of a GPU comes back when its process has ended.
 */
static int in_child(int (*fn)(unsigned), unsigned n)
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		lot += 0x9e3779b97f4a7c15ull * (n + 1u);
		_exit(fn(n));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int odd_heads_and_tails(unsigned i)
{
	static const uint32_t odd[] = { 1, 2, 1023, 1024, 1025, 0x7fffffff, 0x80000000, UINT32_MAX - 1023, UINT32_MAX };
	int dropped;
	struct raw r;

	raw_connect(&r, d.socket);
	raw_hello(&r);
	raw_open(&r);
	r.shared->sq_tail.value = i < 18 ? odd[i / 2] : (uint32_t)draw64();
	if (i % 2) {
		r.shared->sq_head.value = (uint32_t)draw64();
		r.shared->sq_flags.value = (uint32_t)draw64();
		r.shared->cq_head.value = (uint32_t)draw64();
		r.shared->cq_tail.value = (uint32_t)draw64();
		r.shared->cq_flags.value = (uint32_t)draw64();
	}
	raw_ring(&r);
	for (unsigned k = 0; k < 200 && !raw_dropped(&r); k++)
		td_nap_us(20);
	dropped = raw_dropped(&r);
	raw_close(&r);
	return dropped;
}

static void heads_and_tails_set_to_anything(void **state)
{
	int dropped = 0;

	(void)state;
	for (unsigned i = 0; i < 120; i++)
		dropped += in_child(odd_heads_and_tails, i);
	assert_true(dropped > 100);	/* nearly every tail is more records than the ring has, or records that are none */
}

static int odd_records(unsigned i)
{
	struct wire_record rec;
	struct raw r;

	(void)i;
	raw_connect(&r, d.socket);
	raw_hello(&r);
	raw_open(&r);
	for (unsigned k = 0; k < 20 && !raw_dropped(&r); k++) {
		for (size_t w = 0; w < sizeof(rec) / 8; w++) {
			uint64_t word = draw64();

			memcpy((char *)&rec + 8 * w, &word, 8);
		}
		rec.op = draw(4) ? 1 + draw(3) : rec.op;
		if (draw(2))
			rec.session = draw(2) ? r.session : WIRE_MAX_SESSIONS - draw(3);
		if (draw(2))
			rec.n_sessions = draw(3), rec.n_tokens = draw(100);
		raw_push(&r, &rec);
		if (draw(3) == 0)
			td_nap_us(50);
	}
	raw_close(&r);
	return 0;
}

static void records_of_every_kind(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 200; i++)
		assert_int_equal(in_child(odd_records, i), 0);
}

static int odd_words(unsigned i)
{
	struct wire_record look = { .op = WIRE_STEP, .flags = WIRE_USED_UP, .n_sessions = 1, .n_tokens = 1 };
	struct wire_session *w;
	struct raw r;

	(void)i;
	raw_connect(&r, d.socket);
	raw_hello(&r);
	raw_open(&r);
	w = &r.shared->session[r.session];
	for (unsigned k = 0; k < 30 && !raw_dropped(&r); k++) {
		uint32_t begun = draw(2) ? (uint32_t)w->granted : draw(3) ? draw(64) : (uint32_t)draw64();

		if (draw(2))
			w->want = draw(2) ? draw(5000) : draw64();
		w->finished = draw(3) ? begun : draw(2) ? begun + draw(3) - 1 : draw64();
		w->hand = draw(8) ? wire_hand(begun, wire_epoch(w->hand), draw(2)) : draw64();
		if (draw(4) == 0)
			w->granted = draw64(), w->base = draw64(), w->table_id = w->live_max = (uint32_t)draw64();
		if (draw(3) == 0)
			raw_push(&r, &(struct wire_record){ .op = WIRE_WANT, .session = r.session, .n_sessions = 1 });
		else
			raw_push(&r, &look);
		if (draw(2))
			td_nap_us(50);
	}
	raw_close(&r);
	return 0;
}

static void words_set_to_anything(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 200; i++)
		assert_int_equal(in_child(odd_words, i), 0);
}

/* --- pages ------------------------------------------------------------------------------------------------------------------------ */

static void fill_page(uint8_t page[4096], unsigned kind)
{
	static const uint32_t words[] = { 0x7fc00000, 0x7f800000, 0xff800000, 0xffffffff, 0x7fffffff, 0, 0x00000001, 0x7f7fffff };

	for (size_t i = 0; i < 4096; i += 4) {
		uint32_t word = kind < 8 ? words[kind] : (uint32_t)draw64();

		memcpy(page + i, &word, 4);
	}
}

static void scribble(struct raw *r, unsigned kind)
{
	uint8_t page[4096];

	raw_map(r);
	fill_page(page, kind);
	for (uint32_t s = 0; s < r->n_slabs; s++)
		for (size_t at = 0; at + 4096 <= r->slab[s].bytes; at += 4096) {
			if (kind > 8)
				fill_page(page, kind);
			assert_int_equal(gpu_write(r->dev, NULL, (char *)r->slab[s].base + at, page, 4096), 0);
		}
}

/* Keeps to the hand-over, but NaN, Inf and noise are in its heat, keys, values, positions and tables when the daemon gets them. */
static int garbage_client(unsigned turns)
{
	struct wire_record look = { .op = WIRE_STEP, .flags = WIRE_USED_UP, .n_sessions = 1, .n_tokens = 16 };
	struct raw r;

	raw_connect(&r, d.socket);
	raw_hello(&r);
	raw_open(&r);
	for (unsigned i = 0; i < turns; i++) {
		struct wire_session *w = &r.shared->session[r.session];
		uint64_t hand = wire_load64(&w->hand);
		uint32_t epoch = wire_epoch(hand);

		while (!raw_dropped(&r) && recv(r.sock, &(char){ 0 }, 1, MSG_PEEK | MSG_DONTWAIT) > 0)
			raw_receive(&r);	/* slabs that came since */
		scribble(&r, i % 10);
		wire_store64(&w->hand, wire_hand((uint32_t)w->granted, epoch, 0));
		wire_store64(&w->finished, w->granted);
		raw_push(&r, &look);
		for (unsigned k = 0; wire_epoch(wire_load64(&w->hand)) == epoch; k++) {
			if (raw_dropped(&r) || k > 200000)
				return 1;
			td_nap_us(50);
		}
	}
	raw_close(&r);
	return 0;
}

/* Writes over all it may write, rings and words included, without any order; comes back when it is thrown out. */
static int vandal(unsigned life)
{
	struct raw r;

	(void)life;
	raw_connect(&r, d.socket);
	raw_hello(&r);
	raw_open(&r);
	for (unsigned k = 0; k < 20 && !raw_dropped(&r); k++) {
		uint64_t *word = (uint64_t *)r.shared;

		scribble(&r, draw(10));
		for (size_t at = 0; at < sizeof(*r.shared) / 8; at++)
			if (draw(16) == 0)
				word[at] = draw64();
		if (k % 4 == 3)
			raw_ring(&r);
	}
	raw_close(&r);
	return 0;
}

static void garbage_in_the_pages_is_only_garbage(void **state)
{
	int64_t before = td_number(&d, "status:clients_dropped_total");

	(void)state;
	assert_int_equal(in_child(garbage_client, 60), 0);
	assert_int_equal(td_number(&d, "status:clients_dropped_total"), before);
}

static void a_vandal_harms_only_itself(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 25; i++)
		assert_int_equal(in_child(vandal, i), 0);
}

/* It has hung up, but its mapping lives on: what it writes there must not be anybody's memory any more. */
static int ghost(unsigned n)
{
	struct raw r;

	raw_connect(&r, d.socket);
	raw_hello(&r);
	raw_open(&r);
	raw_map(&r);
	close(r.sock);
	for (unsigned i = 0; i < n; i++) {
		scribble(&r, draw(10));
		td_nap_us(200);
	}
	return 0;
}

static void a_mapping_that_outlives_its_connection_reaches_nobody(void **state)
{
	struct traffic_spec spec = { .settings = "policy=h2o budget=64", .n_sessions = 16, .prompt = 100, .tokens = 300, .seed = 3 };
	uint64_t alone;
	pid_t pid;

	(void)state;
	alone = traffic_run(d.socket, &spec, &report[1]);
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(ghost(1000000));
	}
	td_await_at_least(&d, "status:clients", 2);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(traffic_run(d.socket, &spec, &report[1]), alone);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* --- a step without an end --------------------------------------------------------------------------------------------------------- */

static void a_step_that_never_ends_holds_up_nobody(void **state)
{
	struct traffic_spec stuck = { .name = "stuck", .prompt = 64, .tokens = 200, .hang = true, .n_sessions = 2 };
	struct traffic_spec spec = { .settings = "policy=h2o budget=64", .prompt = 100, .tokens = 300, .seed = 9 };
	uint64_t alone;
	pid_t pid;

	(void)state;
	alone = traffic_run(d.socket, &spec, &report[1]);
	pid = traffic_start(d.socket, &stuck, &report[2]);
	traffic_await_flag(&report[2].ended);
	assert_int_equal(traffic_run(d.socket, &spec, &report[1]), alone);
	td_signal(&d, SIGHUP);			/* new settings are for its next window, whenever that is */
	assert_int_equal(traffic_run(d.socket, &spec, &report[1]), alone);
	kill(pid, SIGKILL);
	assert_int_equal(traffic_wait(pid), 256 + SIGKILL);
}

static int start(void **state)
{
	*state = &d;
	report = traffic_reports(3);
	td_start(&d, "drain = 0s\nlog_level = notice\n[pool p]\ndevice = %D\nsize = 64M\nslab = 256K\n[session]\nwindow = 16\n");
	return 0;
}

#define WITH_NEIGHBOUR(f) cmocka_unit_test_setup_teardown(f, neighbour_moves_in, neighbour_noticed_nothing)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_NEIGHBOUR(malformed_messages_end_the_connection),
		WITH_NEIGHBOUR(nonsense_is_refused_by_name),
		WITH_NEIGHBOUR(descriptors_sent_along_are_not_kept),
		WITH_NEIGHBOUR(random_bytes_do_no_harm),
		WITH_NEIGHBOUR(heads_and_tails_set_to_anything),
		WITH_NEIGHBOUR(records_of_every_kind),
		WITH_NEIGHBOUR(words_set_to_anything),
		WITH_NEIGHBOUR(garbage_in_the_pages_is_only_garbage),
		WITH_NEIGHBOUR(a_vandal_harms_only_itself),
		WITH_NEIGHBOUR(a_mapping_that_outlives_its_connection_reaches_nobody),
		WITH_NEIGHBOUR(a_step_that_never_ends_holds_up_nobody),
	};

	return cmocka_run_group_tests(tests, start, td_teardown);
}
