/*
 * The hand-over, client side: tests/model/handover.pml in C, with steps counted in tokens and several sessions at once.
 *
 * ebb_step_begin() has two phases.
 *   1. Wait until every session of the step could begin. Nothing is changed, so this is where the timeout applies.
 *   2. Swap each session's hand word from begun to begun + n. A swap fails when the daemon has claimed the session since; before
 *      the first swap that means phase 1 again, after it we wait for that one session without a timeout. That wait ends: the
 *      daemon never makes a grant depend on what another session of ours does, and if it dies we notice. To give back what was
 *      swapped would need a hand-over in the other direction, for a wait of at most one turn of the daemon.
 *
 * What each wait depends on, and who ends it:
 *   the bell     the daemon, after every grant, if cq_flags says that we sleep
 *   the socket   the daemon's end of it, closed by the kernel if the daemon dies
 * Before a sleep: set the flag, full fence, look at the words once more. The daemon: change the words, full fence, look at the flag.
 *
 * On CUDA a grant may be there before the turn has been done (wire.h, `turn`): then the batch's stream waits for the daemon's device, and
 * this thread goes on.
 */
#include "libclient/client.h"

#include <errno.h>
#include <string.h>

#define AHEAD_NS 500000u	/* how long the daemon is given to take a session before its device is done */

/* The session's words as they are now: could it begin, and with how many tokens? */
enum { LATER = 0, NOW = 1, WISH = 2 };	/* WISH: it could, but a longer window is worth asking for */

/*
 * granted changes only while the daemon owns the session, and then the epoch does, last of all. So it is read once per epoch,
 * and what is remembered is right as long as the swap of `hand`, which names the epoch, succeeds.
 */
static int look(struct ebb_session *s, uint32_t n, uint32_t *take)
{
	uint64_t hand = wire_load64(&s->words->hand);	/* partner: the daemon's swap that grants, after all its other words */
	uint64_t left;

	if (wire_begun(hand) != s->begun)
		return ebbi_broken(s->ebb, "session %u: begun is %u, not %u", s->index, wire_begun(hand), s->begun);
	s->hand = hand;
	if (wire_claim(hand))
		return LATER;
	if (wire_epoch(hand) != s->epoch) {
		s->epoch = wire_epoch(hand);
		s->granted = wire_load64(&s->words->granted);
	}
	left = s->granted - s->begun;
	if ((int64_t)left <= 0)
		return LATER;
	if (left >= n) {
		*take = n;
		return NOW;
	}
	*take = (uint32_t)left;
	/* Only what exceeds a window can gain by asking; and an answer is taken as it is. */
	if (n <= s->window || (s->wish && s->epoch != s->wish_epoch))
		return NOW;
	return s->wish ? LATER : WISH;
}

/* want is written while the session is ours, so that the daemon's decision at a window's end does not depend on timing. */
static int send_wish(struct ebb_session *s, uint32_t n)
{
	struct wire_record r = { .op = WIRE_WANT, .session = s->index, .n_sessions = 1, .n_tokens = n };
	int rc;

	s->wish = true;
	s->wish_epoch = s->epoch;
	wire_store64(&s->words->want, n);	/* read by the daemon when it has the session */
	rc = ebbi_push(s->ebb, &r);
	if (!rc)
		ebbi_wake(s->ebb);
	return rc;
}

/* Looks at members from..to-1 of the step: NOW when all of them could begin, with b->take set. Sends wishes. */
static int look_at_all(struct ebb_batch *b, const uint32_t *n, uint32_t from, uint32_t to)
{
	int all = NOW;

	for (uint32_t i = from; i < to; i++) {
		struct ebb_session *s = b->member[i];
		uint32_t ask = n[i];
		int rc;

		if (!ask)
			continue;
		if (ask > s->max_tokens - s->begun)
			ask = s->max_tokens - s->begun;
		rc = look(s, ask, &b->take[i]);
		if (rc == WISH)
			rc = send_wish(s, ask);	/* 0: later */
		if (rc < 0)
			return rc;
		if (rc == LATER)
			all = LATER;
	}
	return all;
}

static int64_t time_left(uint64_t deadline_ns)
{
	uint64_t now;

	if (deadline_ns == UINT64_MAX)
		return -1;
	now = ebbi_now_ns();
	return now < deadline_ns ? (int64_t)(deadline_ns - now) : 0;
}

/* Lets the device's end of what it has been given wake the daemon. The host is done: nothing written. */
static int ring_when_done(struct ebb_batch *b)
{
	return gpu_notify(b->pool->dev, b->stream, b->ebb->doorbell) < 0 ? ebbi_broken(b->ebb, "the device cannot ring the doorbell") : 0;
}

/* Does the daemon take these sessions as soon as it hears of them? Then the stream need not stop for a callback. */
static bool all_ahead(const struct ebb_batch *b, const uint32_t *n, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++)
		if (n[i] && !wire_load32(&b->member[i]->words->ahead))
			return false;
	return true;
}

/* Waits until members from..to-1 could all begin. 0, -ETIMEDOUT, -EPIPE. */
static int wait_for(struct ebb_batch *b, const uint32_t *n, uint32_t from, uint32_t to, uint64_t deadline_ns)
{
	struct ebb *ebb = b->ebb;
	int rc = look_at_all(b, n, from, to);
	uint64_t ring_ns = rc == LATER && all_ahead(b, n, from, to) ? ebbi_now_ns() + AHEAD_NS : 0;

	while (rc == LATER) {
		int64_t left = time_left(deadline_ns), until_ring = time_left(ring_ns);
		int woke;

		/* A claim that came after step_end waits for the device, and so may a turn that was thought to come ahead. */
		if (until_ring == 0 || (left == 0 && ring_ns != UINT64_MAX)) {
			rc = ring_when_done(b);
			if (rc)
				return rc;
			ring_ns = UINT64_MAX;
			rc = LATER;
		}
		if (left == 0) {
			rc = ebbi_take_notices(ebb);	/* who only ever polls must still learn that it was dropped */
			return rc ? rc : ebbi_error(ebb, -ETIMEDOUT, "no grant yet");
		}
		wire_store32(&ebb->shared->cq_flags.value, WIRE_NEED_WAKEUP);
		wire_fence();	/* the flag, then the last look; partner: the daemon's publishing of a grant */
		rc = look_at_all(b, n, from, to);
		if (until_ring > 0 && (left < 0 || until_ring < left))
			left = until_ring;
		woke = rc == LATER ? ebbi_wait_sleep(ebb->wait, left) : 0;
		wire_store32(&ebb->shared->cq_flags.value, 0);
		if (woke < 0)
			return ebbi_broken(ebb, "the kernel does not let us sleep");
		if (rc == LATER) {
			rc = woke & EBBI_SOCKET ? ebbi_take_notices(ebb) : 0;
			if (!rc)
				rc = ebbi_alive(ebb);
			if (!rc)
				rc = ebbi_drain(ebb);
			if (!rc)
				rc = look_at_all(b, n, from, to);
		}
	}
	return rc < 0 ? rc : 0;
}

/* NOW: begun. LATER: the daemon has claimed it since we looked, and may have granted anew: look again. */
static int swap(struct ebb_session *s, uint32_t n)
{
	uint64_t hand = s->hand;

	/* Partner: the daemon's swaps that claim and that grant. */
	if (!wire_swap64(&s->words->hand, &hand, wire_hand(s->begun + n, s->epoch, 0)))
		return wire_begun(hand) == s->begun ? LATER : ebbi_broken(s->ebb, "session %u: begun is %u, not %u", s->index,
									  wire_begun(hand), s->begun);
	if (s->wish) {
		s->wish = false;
		wire_store64(&s->words->want, 0);
	}
	return NOW;
}

static int begin_all(struct ebb_batch *b, const uint32_t *n, int timeout_ms)
{
	uint64_t deadline_ns = timeout_ms < 0 ? UINT64_MAX : timeout_ms == 0 ? 0 :
		ebbi_now_ns() + (uint64_t)timeout_ms * 1000000u;
	bool begun = false;
	int rc = wait_for(b, n, 0, b->n, deadline_ns);

	for (uint32_t i = 0; i < b->n && !rc; i++) {
		int done = n[i] ? swap(b->member[i], b->take[i]) : NOW;

		if (done < 0)
			return done;
		begun = begun || (n[i] && done == NOW);
		if (done == NOW)
			continue;
		rc = begun ? wait_for(b, n, i, i + 1, UINT64_MAX) : wait_for(b, n, 0, b->n, deadline_ns);
		i--;	/* this one again: those before it sit out, or have begun */
	}
	return rc;
}

/* Where the session's table is. It may move with a grant, and the slab it moved to has been announced before the grant. */
static int find_table(struct ebb_session *s)
{
	uint32_t id = wire_load32(&s->words->table_id);

	if (id == s->table_id)
		return 0;
	s->table = ebbi_pool_at(s->pool, id, sizeof(struct gpu_table));
	if (!s->table)
		return ebbi_broken(s->ebb, "session %u: its table (page %u) does not lie in a mapped slab", s->index, id);
	s->table_id = id;
	return 0;
}

/*
 * The step's work comes behind the turns that its windows were granted on, so behind the last of their batches; those that the device has
 * done by now cost nothing. A session's later steps of a window follow the first, in whatever stream the caller puts them: he orders
 * them already.
 */
static int await_turns(struct ebb_batch *b, const uint32_t *n)
{
	uint64_t *turned, done, last;
	int rc;

	if (b->ebb->local)
		return 0;
	turned = &b->ebb->shared->turned.value;		/* partner: the daemon's device, or the thread of watch.c */
	last = done = wire_load64(turned);
	for (uint32_t i = 0; i < b->n; i++) {
		struct ebb_session *s = b->member[i];
		uint64_t turn = n[i] ? wire_load64(&s->words->turn) : s->awaited;

		if (turn != s->awaited && (int64_t)(turn - last) > 0)
			last = turn;
		s->awaited = turn;
	}
	if (last == done)
		return 0;
	rc = ebbi_watch_new(b->ebb);
	if (!rc)
		rc = gpu_await(b->pool->dev, b->stream, 1, &turned, &last);
	return rc ? ebbi_broken(b->ebb, "the stream cannot wait for the daemon's device: %s", strerror(-rc)) : 0;
}

/* Makes a step of one token a session up to the batch's multiple with sessions that are not there. Returns how many there are then. */
static uint32_t pad(struct ebb_batch *b)
{
	uint32_t n = b->n_seqs, room = b->max_sessions < b->max_rows ? b->max_sessions : b->max_rows;
	uint64_t most = b->pad ? ((uint64_t)n + b->pad - 1) / b->pad * b->pad : n;

	if (b->n_tokens != n)
		return n;
	for (; n < most && n < room; n++)
		b->seq[n] = (struct gpu_seq){ .table = NULL, .row = n, .n = 1 };
	b->n_rows = n;
	return n;
}

/* The step as the device wants it. The sessions are ours now, so their words stand still. */
static int describe(struct ebb_batch *b, const uint32_t *n)
{
	uint32_t row = 0, live_max = 1;
	int rc = await_turns(b, n);

	b->n_seqs = 0;
	for (uint32_t i = 0; i < b->n && !rc; i++) {
		struct ebb_session *s = b->member[i];
		uint64_t used = s->begun - wire_load64(&s->words->base);
		uint32_t live = wire_load32(&s->words->live_max);

		if (!n[i])
			continue;
		if (used > s->max_tokens)
			return ebbi_broken(s->ebb, "session %u: its window begins after its tokens", s->index);
		rc = s->ebb->local ? 0 : find_table(s);
		/* Tokens come in order, so no slot is later than the last of them. */
		b->seq[b->n_seqs] = (struct gpu_seq){ s->table, row, b->take[i], (uint32_t)used, (int32_t)s->begun,
						  (int32_t)wire_load32(&s->words->heat_from), 1, 0 };
		b->active[b->n_seqs] = s;
		b->word[b->n_seqs] = &s->words->finished;
		s->begun += b->take[i];
		b->value[b->n_seqs++] = s->begun;
		row += b->take[i];
		live = live > s->max_slots ? s->max_slots : live;
		live_max = live > live_max ? live : live_max;
	}
	b->n_tokens = b->n_rows = row;
	if (!rc)
		rc = ebbi_keep(b, live_max);
	if (!rc)
		rc = gpu_step_set(b->step, b->stream, &b->member[0]->shape, b->pool->map, b->seq, pad(b), live_max);
	if (rc && rc != -EPIPE)
		rc = ebbi_broken(b->ebb, "the device refused the step: %s", strerror(-rc));
	return rc;
}

/* What can be refused before anything is waited for. */
static int check_step(struct ebb_batch *b, const uint32_t *n)
{
	uint64_t rows = 0;

	if (b->open)
		return ebbi_error(b->ebb, -EBUSY, "a step is open already");
	for (uint32_t i = 0; i < b->n; i++) {
		rows += n[i];
		if (n[i] && b->member[i]->begun >= b->member[i]->max_tokens)
			return ebbi_error(b->ebb, -ENOSPC, "session %u of the batch has reached its max_tokens %u", i,
					  b->member[i]->max_tokens);
	}
	if (!rows)
		return ebbi_error(b->ebb, -EINVAL, "a step needs a session with a token");
	if (rows > b->max_rows)
		return ebbi_error(b->ebb, -E2BIG, "%llu rows; the batch has room for %u", (unsigned long long)rows, b->max_rows);
	return 0;
}

/* Without a daemon every token is granted; there only has to be memory for it. */
static int begin_local(struct ebb_batch *b, const uint32_t *n)
{
	for (uint32_t i = 0; i < b->n; i++) {
		struct ebb_session *s = b->member[i];
		uint32_t left = s->max_tokens - s->begun;
		int rc;

		b->take[i] = n[i] < left ? n[i] : left;
		rc = n[i] ? ebbi_local_grow(s, s->begun + b->take[i]) : 0;
		if (rc)
			return rc;
	}
	return 0;
}

int ebb_step_begin(struct ebb_batch *b, uint32_t *n, int timeout_ms)
{
	int rc;

	if (!b || !n)
		return -EINVAL;
	rc = ebbi_alive(b->ebb);
	if (!rc)
		rc = check_step(b, n);
	if (!rc && b->ebb->local)
		rc = begin_local(b, n);
	else if (!rc) {
		rc = ebbi_drain(b->ebb);
		if (!rc)
			rc = begin_all(b, n, timeout_ms);
		if (!rc)	/* after the grants were seen: slabs are announced before the grant that needs them */
			rc = ebbi_notices(b->ebb);
	}
	if (!rc)
		rc = describe(b, n);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < b->n; i++)
		n[i] = n[i] ? b->take[i] : 0;
	b->open = true;
	return 0;
}

uint64_t ebb_step_key(const struct ebb_batch *b, uint32_t *rows)
{
	if (!b || !b->open)
		return 0;
	if (rows)
		*rows = b->n_rows;
	return gpu_step_key(b->step);
}

/* Is a session of the step now the daemon's to look at? @ring: for one of them it must hear of the device's end. */
static bool handed_over(const struct ebb_batch *b, bool *ring)
{
	bool any = false;

	*ring = false;
	for (uint32_t i = 0; i < b->n_seqs; i++) {
		const struct ebb_session *s = b->active[i];

		if (!wire_claim(wire_load64(&s->words->hand)) && s->begun != s->granted)	/* partner: the swap that claims */
			continue;
		any = true;
		*ring |= !wire_load32(&s->words->ahead);
	}
	return any;
}

/* Lets the device (on the host: this thread) say that the step is done. */
static int finish(struct ebb_batch *b)
{
	if (b->pool->info.is_cuda)
		return gpu_signal(b->pool->dev, b->stream, b->n_seqs, b->word, b->value);
	for (uint32_t i = 0; i < b->n_seqs; i++)
		wire_store64(b->word[i], b->value[i]);	/* the daemon's load of finished sees K, V and heat */
	return 0;
}

int ebbi_step_end(struct ebb_batch *b)
{
	struct ebb *ebb = b->ebb;
	struct wire_record r = { .op = WIRE_STEP, .n_sessions = b->n_seqs, .n_tokens = b->n_tokens };
	bool ring;
	int rc;

	b->open = false;
	if (ebb->local)
		return 0;
	if (ebb->dead)
		return -EPIPE;
	rc = ebbi_keep_end(b);
	if (!rc)
		rc = finish(b);
	for (uint32_t i = 0; i < b->n_seqs; i++)	/* partner: the daemon's look before it grants ahead */
		wire_store64(&b->active[i]->words->launched, b->value[i]);
	if (rc)
		return ebbi_broken(ebb, "the device cannot say when it is done: %s", strerror(-rc));
	wire_fence();	/* finished, then the claim; the daemon sets the claim, fences and looks at finished */
	r.flags = handed_over(b, &ring) ? WIRE_USED_UP : 0;
	r.seq = ++ebb->step_seq;
	rc = ebbi_push(ebb, &r);
	if (rc || !r.flags)
		return rc;
	ebbi_wake(ebb);
	return ring ? ring_when_done(b) : 0;	/* what is not taken ahead can be taken only once the device is done */
}

int ebb_step_end(struct ebb_batch *b)
{
	int rc;

	if (!b)
		return -EINVAL;
	if (!b->open)
		return ebbi_error(b->ebb, -EINVAL, "no step is open");
	rc = ebbi_step_end(b);
	return rc ? rc : ebbi_alive(b->ebb);
}
