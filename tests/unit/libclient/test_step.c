/* The hand-over as a client sees it: windows, wishes, claims, what a step record says, and what happens when the daemon dies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/unit/libclient/fake.h"

#define N 4	/* sessions of the larger batches */

struct rig {
	struct fake f;
	struct ebb *ebb;
	struct ebb_session *s[N];
	struct ebb_batch *batch;
	unsigned turns;		/* of the daemon's device, read with fake_count() */
};

static const struct ebb_session_options small = { .n_layers = 1, .n_kv_heads = 1, .group = 2, .head_dim = FAKE_DIM, .max_tokens = 200 };

static void rig_up(struct rig *r, unsigned sessions, int no_uring)
{
	struct ebb_options o = { .name = "test", .no_uring = no_uring };

	fake_start(&r->f);
	o.socket = r->f.path;
	assert_int_equal(ebb_connect(&r->ebb, &o), 0);
	assert_int_equal(ebb_batch_new(r->ebb, NULL, &r->batch), 0);
	for (unsigned i = 0; i < sessions; i++) {
		assert_int_equal(ebb_session_open(r->ebb, &small, &r->s[i]), 0);
		assert_int_equal(ebb_batch_join(r->batch, r->s[i]), 0);
	}
}

static void rig_down(struct rig *r)
{
	ebb_close(r->ebb);
	fake_stop(&r->f);
}

/* One step of n tokens for every session; how many the first was given. */
static uint32_t step(struct rig *r, uint32_t n)
{
	uint32_t ask[N] = { n, n, n, n };

	assert_int_equal(ebb_step_begin(r->batch, ask, 5000), 0);
	assert_int_equal(ebb_step_end(r->batch), 0);
	return ask[0];
}

/* Waits for the fake's thread to have taken what was sent. */
static void settle(struct rig *r)
{
	for (int i = 0; i < 500 && wire_load32(&r->f.shared->sq_head.value) != wire_load32(&r->f.shared->sq_tail.value); i++)
		fake_nap_ms(2);
}

static void steps_within_a_window_ring_nothing(void **state)
{
	struct rig r = { .f.window = 8 };

	(void)state;
	rig_up(&r, 1, 0);
	for (int i = 0; i < 7; i++)
		assert_int_equal(step(&r, 1), 1);
	fake_nap_ms(20);
	assert_int_equal(fake_count(&r.f.n_doorbell), 0);
	assert_int_equal(step(&r, 1), 1);	/* uses the window up */
	settle(&r);
	assert_int_equal(fake_count(&r.f.n_doorbell), 1);
	assert_int_equal(fake_count(&r.f.n_used_up), 1);
	assert_int_equal(fake_count(&r.f.n_step), 8);
	assert_int_equal(wire_load64(&r.f.tokens), 8);
	assert_int_equal(step(&r, 1), 1);
	assert_int_equal(ebb_session_tokens(r.s[0]), 9);
	rig_down(&r);
}

static void what_is_left_of_a_window_is_taken(void **state)
{
	struct rig r = { .f.window = 8 };

	(void)state;
	rig_up(&r, 1, 0);
	assert_int_equal(step(&r, 5), 5);
	assert_int_equal(step(&r, 8), 3);	/* no more than a window was asked: no wish */
	assert_int_equal(step(&r, 8), 8);
	settle(&r);
	assert_int_equal(fake_count(&r.f.n_want), 0);
	rig_down(&r);
}

static void a_longer_step_asks_for_a_longer_window(void **state)
{
	struct rig r = { .f = { .window = 8, .want_most = 100 } };

	(void)state;
	rig_up(&r, 1, 0);
	assert_int_equal(step(&r, 3), 3);
	assert_int_equal(step(&r, 64), 64);
	settle(&r);
	assert_int_equal(fake_count(&r.f.n_want), 1);
	assert_int_equal(wire_load64(&r.f.shared->session[0].want), 0);	/* the wish was fulfilled */
	assert_int_equal(step(&r, 1), 1);
	rig_down(&r);
}

static void a_wish_denied_takes_what_there_is(void **state)
{
	struct rig r = { .f = { .window = 8, .want_most = 0 } };

	(void)state;
	rig_up(&r, 1, 0);
	/* Granted stays at 8 and base at 0: only the epoch tells that this was the answer. */
	assert_int_equal(step(&r, 64), 8);
	assert_int_equal(step(&r, 64), 8);
	settle(&r);
	assert_int_equal(fake_count(&r.f.n_want), 2);
	assert_int_equal(ebb_session_tokens(r.s[0]), 16);
	rig_down(&r);
}

static void capacity_is_the_end(void **state)
{
	struct rig r = { .f = { .window = 8, .want_most = 1000 } };
	uint32_t one = 1;

	(void)state;
	rig_up(&r, 1, 0);
	assert_int_equal(step(&r, 150), 150);
	assert_int_equal(step(&r, 150), 50);	/* max_tokens is 200 */
	assert_int_equal(ebb_step_begin(r.batch, &one, 0), -ENOSPC);
	assert_int_equal(one, 1);
	rig_down(&r);
}

static void impossible_steps_change_nothing(void **state)
{
	struct rig r = { .f.window = 8 };
	uint32_t n[N] = { 0 };
	struct ebb_tensor t = { 0 };
	float x[512] = { 0 };
	struct ebb_session *other;
	struct ebb_session_options wide = small;

	(void)state;
	rig_up(&r, 2, 0);
	assert_int_equal(ebb_step_begin(r.batch, n, -1), -EINVAL);	/* nobody has a token */
	n[0] = n[1] = 0xfffffff0u;
	assert_int_equal(ebb_step_begin(r.batch, n, -1), -E2BIG);
	assert_int_equal(ebb_step_end(r.batch), -EINVAL);
	assert_int_equal(ebb_append(r.batch, 0, &t, &t), -EINVAL);
	n[0] = n[1] = 1;
	assert_int_equal(ebb_step_begin(r.batch, n, -1), 0);
	assert_int_equal(ebb_step_begin(r.batch, n, -1), -EBUSY);
	assert_int_equal(ebb_batch_leave(r.batch, r.s[0]), -EBUSY);
	assert_int_equal(ebb_append(r.batch, 0, &t, &t), -EINVAL);	/* no data */
	t.data = x;
	assert_int_equal(ebb_append(r.batch, 1, &t, &t), -EINVAL);	/* no such layer */
	t.stride = FAKE_DIM - 1;
	assert_int_equal(ebb_append(r.batch, 0, &t, &t), -EINVAL);
	t.stride = 0;
	t.type = (enum ebb_type)7;
	assert_int_equal(ebb_append(r.batch, 0, &t, &t), -EINVAL);
	t.type = EBB_F32;
	assert_int_equal(ebb_append(r.batch, 0, &t, &t), 0);
	assert_int_equal(ebb_observe(r.batch, 0, &t, NULL, 1.0f, 0), -EINVAL);
	assert_int_equal(ebb_step_end(r.batch), 0);
	assert_int_equal(ebb_batch_join(r.batch, r.s[0]), -EALREADY);
	wide.group = 3;
	assert_int_equal(ebb_session_open(r.ebb, &wide, &other), 0);
	assert_int_equal(ebb_batch_join(r.batch, other), -EINVAL);
	assert_int_equal(ebb_batch_leave(r.batch, other), -ENOENT);
	assert_int_equal(ebb_batch_size(r.batch), 2);
	rig_down(&r);
}

static void members_sit_out_and_leave(void **state)
{
	struct rig r = { .f.window = 8 };
	uint32_t n[N] = { 2, 0, 3, 0 };

	(void)state;
	rig_up(&r, 4, 0);
	assert_int_equal(ebb_step_begin(r.batch, n, -1), 0);
	assert_int_equal(ebb_step_end(r.batch), 0);
	assert_int_equal(ebb_session_tokens(r.s[0]), 2);
	assert_int_equal(ebb_session_tokens(r.s[1]), 0);
	assert_int_equal(ebb_session_tokens(r.s[2]), 3);
	assert_int_equal(ebb_batch_leave(r.batch, r.s[1]), 0);
	assert_int_equal(ebb_session_close(r.s[0]), 0);
	assert_int_equal(ebb_batch_size(r.batch), 2);
	n[0] = 0, n[1] = 1;	/* now s[2], s[3] */
	assert_int_equal(ebb_step_begin(r.batch, n, -1), 0);
	assert_int_equal(ebb_step_end(r.batch), 0);
	assert_int_equal(ebb_session_tokens(r.s[3]), 1);
	assert_int_equal(ebb_session_tokens(r.s[2]), 3);
	rig_down(&r);
}

static void a_timeout_leaves_nothing_begun(void **state)
{
	struct rig r = { .f.window = 8 };
	uint32_t n[N] = { 1, 1, 0, 0 };

	(void)state;
	rig_up(&r, 2, 0);
	settle(&r);
	__atomic_store_n(&r.f.no_grants, true, __ATOMIC_RELEASE);
	fake_claim(&r.f, 1);
	assert_int_equal(ebb_step_begin(r.batch, n, 30), -ETIMEDOUT);
	assert_int_equal(ebb_step_begin(r.batch, n, 0), -ETIMEDOUT);
	assert_int_equal(wire_begun(wire_load64(&r.f.shared->session[0].hand)), 0);
	assert_int_equal(wire_begun(wire_load64(&r.f.shared->session[1].hand)), 0);
	assert_int_equal(wire_load32(&r.f.shared->cq_flags.value), 0);
	fake_grant(&r.f, 1, 8);
	assert_int_equal(ebb_step_begin(r.batch, n, 0), 0);
	assert_int_equal(ebb_step_end(r.batch), 0);
	rig_down(&r);
}

static void a_claim_in_a_step_is_answered_at_its_end(void **state)
{
	struct rig r = { .f.window = 8 };
	uint32_t n[N] = { 1, 1, 0, 0 };

	(void)state;
	rig_up(&r, 2, 0);
	assert_int_equal(ebb_step_begin(r.batch, n, -1), 0);
	fake_claim(&r.f, 1);
	assert_false(fake_owns(&r.f, 1));	/* its step is under way */
	assert_int_equal(ebb_step_end(r.batch), 0);
	settle(&r);
	assert_int_equal(fake_count(&r.f.n_used_up), 1);	/* the record said: look */
	assert_int_equal(step(&r, 1), 1);	/* the fake has granted again */
	assert_int_equal(wire_load64(&r.f.shared->session[1].base), 1);
	assert_int_equal(wire_load64(&r.f.shared->session[0].base), 0);
	rig_down(&r);
}

/* A grant that comes from another thread a while after the client has gone to sleep. */
static void *late_grant(void *arg)
{
	struct rig *r = arg;

	for (int i = 0; i < 1000 && !wire_load32(&r->f.shared->cq_flags.value); i++)
		fake_nap_ms(1);
	fake_nap_ms(20);
	fake_grant(&r->f, 0, 8);
	return NULL;
}

static void a_sleeper_is_woken(int no_uring)
{
	struct rig r = { .f.window = 8 };
	pthread_t t;

	rig_up(&r, 1, no_uring);
	for (int round = 0; round < 5; round++) {
		__atomic_store_n(&r.f.no_grants, true, __ATOMIC_RELEASE);
		step(&r, 8);
		settle(&r);
		assert_int_equal(pthread_create(&t, NULL, late_grant, &r), 0);
		assert_int_equal(step(&r, 1), 1);
		pthread_join(t, NULL);
		assert_int_equal(wire_load32(&r.f.shared->cq_flags.value), 0);
		step(&r, 7);
		settle(&r);
		fake_grant(&r.f, 0, 8);
	}
	rig_down(&r);
}

static void a_sleeper_is_woken_by_io_uring(void **state) { (void)state; a_sleeper_is_woken(0); }
static void a_sleeper_is_woken_by_poll(void **state) { (void)state; a_sleeper_is_woken(1); }

/* --- grants that are ahead of the daemon's device --- */

/* The daemon's device, a while later: two batches of turns. */
static void *late_turns(void *arg)
{
	struct rig *r = arg;

	for (uint64_t i = 1; i <= 2; i++) {
		fake_nap_ms(60);
		fake_bump(&r->turns);
		wire_store64(&r->f.shared->turned.value, i);
	}
	return NULL;
}

/* Session 0's next window is granted, and its turn is still to come. */
static void grant_ahead(struct rig *r, uint32_t tokens)
{
	wire_store64(&r->f.shared->session[0].turn, 1);
	fake_grant(&r->f, 0, tokens);
}

/* A rig whose sessions have used their first window up, and whose daemon grants only what the test has it grant. */
static void rig_used_up(struct rig *r, unsigned sessions)
{
	rig_up(r, sessions, 0);
	__atomic_store_n(&r->f.no_grants, true, __ATOMIC_RELEASE);
	step(r, 8);
	assert_int_equal(wire_load64(&r->f.shared->session[0].launched), 8);
	settle(r);
}

static void a_step_waits_for_the_last_turn_that_its_windows_were_granted_on(void **state)
{
	struct rig r = { .f.window = 8 };
	pthread_t t;

	(void)state;
	rig_used_up(&r, 3);
	for (uint32_t i = 0; i < 3; i++) {		/* the last one is not ahead; the second one's batch comes last */
		wire_store64(&r.f.shared->session[i].turn, (i + 1) % 3);
		fake_grant(&r.f, i, 8);
	}
	assert_int_equal(pthread_create(&t, NULL, late_turns, &r), 0);
	assert_int_equal(step(&r, 1), 1);
	assert_int_equal(fake_count(&r.turns), 2);	/* on the host the call itself waits */
	pthread_join(t, NULL);
	wire_store64(&r.f.shared->turned.value, 0);
	assert_int_equal(step(&r, 1), 1);		/* once per grant: what follows is behind it anyway */
	rig_down(&r);
}

static void *late_hangup(void *arg)
{
	struct rig *r = arg;

	fake_nap_ms(100);
	fake_halt(&r->f);
	return NULL;
}

static void death_lets_a_waiting_stream_through(void **state)
{
	struct rig r = { .f.window = 8 };
	pthread_t t;

	(void)state;
	rig_used_up(&r, 1);
	grant_ahead(&r, 8);
	assert_int_equal(pthread_create(&t, NULL, late_hangup, &r), 0);
	(void)ebb_step_begin(r.batch, &(uint32_t){ 1 }, 5000);	/* it returns; what, depends on who is first */
	pthread_join(t, NULL);
	assert_true((int64_t)wire_load64(&r.f.shared->turned.value) >= 1);
	rig_down(&r);
}

static void *late_death(void *arg)
{
	struct rig *r = arg;

	for (int i = 0; i < 1000 && !wire_load32(&r->f.shared->cq_flags.value); i++)
		fake_nap_ms(1);
	fake_nap_ms(20);
	fake_halt(&r->f);
	return NULL;
}

static void everything_is_over(struct rig *r)
{
	uint32_t n[N] = { 1, 1, 1, 1 };
	struct ebb_session *s;
	struct ebb_batch *b;
	char *json;

	assert_int_equal(ebb_step_begin(r->batch, n, -1), -EPIPE);
	assert_int_equal(ebb_session_open(r->ebb, &small, &s), -EPIPE);
	assert_int_equal(ebb_batch_new(r->ebb, NULL, &b), -EPIPE);
	assert_int_equal(ebb_ask(r->ebb, "status", &json), -EPIPE);
	assert_true(strlen(ebb_error(r->ebb)) > 10);
}

static void death_wakes_the_sleeper(int no_uring)
{
	struct rig r = { .f.window = 8 };
	uint32_t n = 1;
	pthread_t t;

	rig_up(&r, 1, no_uring);
	__atomic_store_n(&r.f.no_grants, true, __ATOMIC_RELEASE);
	step(&r, 8);
	assert_int_equal(pthread_create(&t, NULL, late_death, &r), 0);
	assert_int_equal(ebb_step_begin(r.batch, &n, -1), -EPIPE);
	pthread_join(t, NULL);
	everything_is_over(&r);
	rig_down(&r);
}

static void death_wakes_the_sleeper_of_io_uring(void **state) { (void)state; death_wakes_the_sleeper(0); }
static void death_wakes_the_sleeper_of_poll(void **state) { (void)state; death_wakes_the_sleeper(1); }

static void death_is_read_from_the_life_word(void **state)
{
	static const uint32_t word[] = { 0, 0x40000000u, 0x40000000u | 4711, 0xc0000000u | 4711 };

	(void)state;
	for (unsigned i = 0; i < sizeof(word) / sizeof(*word); i++) {
		struct rig r = { .f.window = 8 };
		uint32_t n = 1;
		float x[FAKE_DIM] = { 0 };
		struct ebb_tensor t = { .data = x };

		rig_up(&r, 1, 0);
		assert_int_equal(ebb_step_begin(r.batch, &n, -1), 0);
		__atomic_store_n(r.f.life, word[i], __ATOMIC_RELEASE);
		assert_int_equal(ebb_append(r.batch, 0, &t, &t), -EPIPE);
		assert_int_equal(ebb_step_end(r.batch), -EPIPE);
		everything_is_over(&r);
		assert_int_equal(ebb_session_close(r.s[0]), -EPIPE);
		rig_down(&r);
	}
}

static void who_only_polls_learns_of_being_dropped(void **state)
{
	struct rig r = { .f.window = 8 };
	uint32_t n = 1;

	(void)state;
	rig_up(&r, 1, 0);
	__atomic_store_n(&r.f.no_grants, true, __ATOMIC_RELEASE);
	step(&r, 8);
	assert_int_equal(ebb_step_begin(r.batch, &n, 0), -ETIMEDOUT);
	fake_halt(&r.f);	/* hangs up; the life word stays */
	assert_int_equal(ebb_step_begin(r.batch, &n, 0), -EPIPE);
	rig_down(&r);
}

static void *late_hearing(void *arg)
{
	struct rig *r = arg;

	for (int i = 0; i < 5000 && wire_load32(&r->f.shared->sq_tail.value) < WIRE_SQ_ENTRIES; i++)
		fake_nap_ms(1);
	fake_nap_ms(30);
	assert_int_equal(wire_load32(&r->f.shared->sq_tail.value), WIRE_SQ_ENTRIES);	/* full, and not one beyond */
	__atomic_store_n(&r->f.deaf, false, __ATOMIC_RELEASE);
	return NULL;
}

static void a_full_ring_waits_for_room(void **state)
{
	struct rig r = { .f = { .window = 5000, .stride = 4096, .deaf = true } };
	struct ebb_session_options o = small;
	pthread_t t;

	(void)state;
	rig_up(&r, 0, 0);
	o.max_tokens = 5000;
	assert_int_equal(ebb_session_open(r.ebb, &o, &r.s[0]), 0);
	assert_int_equal(ebb_batch_join(r.batch, r.s[0]), 0);
	assert_int_equal(pthread_create(&t, NULL, late_hearing, &r), 0);
	for (uint32_t i = 0; i < WIRE_SQ_ENTRIES + 10; i++)
		step(&r, 1);
	pthread_join(t, NULL);
	for (int i = 0; i < 500 && fake_count(&r.f.n_step) < WIRE_SQ_ENTRIES; i++)
		fake_nap_ms(2);
	assert_true(fake_count(&r.f.n_step) >= WIRE_SQ_ENTRIES);
	rig_down(&r);
}

static void a_full_ring_of_a_dead_daemon_is_the_end(void **state)
{
	struct rig r = { .f = { .window = 5000, .stride = 4096, .deaf = true } };
	struct ebb_session_options o = small;
	int rc = 0;
	uint32_t n = 1;

	(void)state;
	rig_up(&r, 0, 0);
	o.max_tokens = 5000;
	assert_int_equal(ebb_session_open(r.ebb, &o, &r.s[0]), 0);
	assert_int_equal(ebb_batch_join(r.batch, r.s[0]), 0);
	fake_halt(&r.f);	/* the socket closes; the life word, as it happens, does not change */
	for (uint32_t i = 0; i < WIRE_SQ_ENTRIES + 1 && !rc; i++) {
		rc = ebb_step_begin(r.batch, &n, -1);
		if (!rc)
			rc = ebb_step_end(r.batch);
	}
	assert_int_equal(rc, -EPIPE);
	rig_down(&r);
}

static void long_windows_do_not_overrun_the_ring(void **state)
{
	struct rig r = { .f = { .window = 5000, .stride = 4096 } };
	struct ebb_session_options o = small;
	uint32_t n;

	(void)state;
	rig_up(&r, 0, 0);
	o.max_tokens = 5000;
	assert_int_equal(ebb_session_open(r.ebb, &o, &r.s[0]), 0);
	assert_int_equal(ebb_batch_join(r.batch, r.s[0]), 0);
	for (uint32_t i = 0; i < 4000; i++) {
		n = 1;
		assert_int_equal(ebb_step_begin(r.batch, &n, 5000), 0);
		assert_int_equal(ebb_step_end(r.batch), 0);
	}
	for (int i = 0; i < 500 && fake_count(&r.f.n_step) < 3584; i++)
		fake_nap_ms(2);
	assert_true(fake_count(&r.f.n_step) >= 3584);	/* woken at every half ring */
	assert_int_equal(wire_load64(&r.f.tokens), fake_count(&r.f.n_step));	/* and not one record was lost or doubled */
	rig_down(&r);
}

static void nonsense_in_the_words_ends_the_connection(void **state)
{
	(void)state;
	for (int i = 0; i < 5; i++) {
		struct rig r = { .f.window = 8 };
		uint32_t n = 1;
		struct wire_session *w;

		rig_up(&r, 1, 0);
		settle(&r);
		__atomic_store_n(&r.f.no_grants, true, __ATOMIC_RELEASE);
		w = &r.f.shared->session[0];
		switch (i) {
		case 0: wire_store64(&w->hand, wire_hand(77, 1, 0)); break;
		case 1: wire_store64(&w->base, 12345); break;
		case 2: wire_store32(&w->table_id, 0xffffffffu); break;
		case 3: wire_store32(&r.f.shared->cq_tail.value, 0x80000000u); break;
		case 4:
			for (int k = 0; k < 7; k++)
				step(&r, 1);
			wire_store32(&w->table_id, 1u << (FAKE_SHIFT - 7));	/* a slab that was never sent */
			break;
		}
		if (i == 4)
			wire_store32(&w->live_max, 0xffffffffu);
		assert_int_equal(ebb_step_begin(r.batch, &n, 100), -EPIPE);
		assert_true(strlen(ebb_error(r.ebb)) > 10);
		assert_int_equal(ebb_step_begin(r.batch, &n, 100), -EPIPE);
		rig_down(&r);
	}
}

static void slabs_come_and_go_between_steps(void **state)
{
	struct rig r = { .f.window = 8 };

	(void)state;
	rig_up(&r, 1, 0);
	settle(&r);
	fake_send_slab(&r.f, 2);
	assert_int_equal(step(&r, 1), 1);
	fake_drop_slab(&r.f, 2);
	assert_int_equal(step(&r, 1), 1);
	for (int i = 0; i < 500 && !fake_count(&r.f.n_dropped); i++)
		fake_nap_ms(2);
	assert_int_equal(fake_count(&r.f.n_dropped), 1);
	fake_send_slab(&r.f, 2);	/* and again: it may come back */
	assert_int_equal(step(&r, 1), 1);
	rig_down(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(steps_within_a_window_ring_nothing), cmocka_unit_test(what_is_left_of_a_window_is_taken),
		cmocka_unit_test(a_longer_step_asks_for_a_longer_window), cmocka_unit_test(a_wish_denied_takes_what_there_is),
		cmocka_unit_test(capacity_is_the_end), cmocka_unit_test(impossible_steps_change_nothing),
		cmocka_unit_test(members_sit_out_and_leave), cmocka_unit_test(a_timeout_leaves_nothing_begun),
		cmocka_unit_test(a_claim_in_a_step_is_answered_at_its_end), cmocka_unit_test(a_sleeper_is_woken_by_io_uring),
		cmocka_unit_test(a_sleeper_is_woken_by_poll), cmocka_unit_test(death_wakes_the_sleeper_of_io_uring),
		cmocka_unit_test(death_wakes_the_sleeper_of_poll), cmocka_unit_test(death_is_read_from_the_life_word),
		cmocka_unit_test(who_only_polls_learns_of_being_dropped), cmocka_unit_test(a_full_ring_waits_for_room),
		cmocka_unit_test(a_full_ring_of_a_dead_daemon_is_the_end),
		cmocka_unit_test(long_windows_do_not_overrun_the_ring), cmocka_unit_test(nonsense_in_the_words_ends_the_connection),
		cmocka_unit_test(slabs_come_and_go_between_steps), cmocka_unit_test(death_lets_a_waiting_stream_through),
		cmocka_unit_test(a_step_waits_for_the_last_turn_that_its_windows_were_granted_on),
	};

	alarm(120);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
