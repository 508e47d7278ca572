/*
 * Heat later (gpu_keep()): on a device that can, steps of one token keep their queries, and at a window's end, or once there is no room for more,
 * their heat is added together. That writes 1 / depth of what heat writes when it is added step by step, and reads K once more each time.
 *
 * Invariant: what a session has kept are the queries of `kept` positions from kept_pos on, `observe` apart; a step that does not follow, or of several
 * tokens, adds its heat at once, and so does a query that the table observes by now though it did not when the session was opened. The heat of all of
 * them is on its way, in the batch's stream, before the daemon hears that the window is used up. A claim may come earlier than we hear of
 * it: then what was kept counts in the next window, for the slots that are there by then.
 *
 * Heat is added only to sessions that have a step open: any other the daemon may take at any moment, and its memory with it. So a session that leaves its
 * batch in the middle of a window loses what it has kept, once: from then on its heat is added at once.
 */
#include "libclient/client.h"

#include <errno.h>
#include <string.h>

#define LEAST 8u	/* queries: for fewer, reading K once more costs what it saves */
#define MOST 32u

/*
 * How many queries of a session to keep: what takes a 32nd of the memory that the longest lane's K and V take, since there is a room for every
 * lane of every member. 0: lanes are too short to be worth it.
 */
static uint32_t depth_for(const struct gpu_shape *shape, uint32_t live_max)
{
	uint32_t most = GPU_KEPT_PAIRS / shape->group < MOST ? GPU_KEPT_PAIRS / shape->group : MOST, depth = LEAST;

	if (live_max / (16u * shape->group) < LEAST || most < LEAST)
		return 0;
	while (2u * depth <= most && 2u * depth <= live_max / (16u * shape->group))
		depth *= 2u;
	return depth;
}

/* Is a step of the session open? It is the client's then, until the step ends. */
static bool held(const struct ebb_session *s)
{
	const struct ebb_batch *b = s->batch;

	for (uint32_t i = 0; i < b->n_seqs; i++)
		if (b->active[i] == s)
			return true;
	return false;
}

/* What the session has kept, as the device wants it; it keeps nothing from then on. add: else it is forgotten. */
static struct gpu_kept take(struct ebb_session *s, bool add)
{
	const struct gpu_kept k = { add ? s->table : NULL, s->room, s->kept, (uint32_t)(s->begun - wire_load64(&s->words->base)), s->kept_pos,
				    s->observe };

	s->kept = 0;
	return k;
}

static int add(struct ebb_batch *b, uint32_t n)
{
	int rc = gpu_heat_kept(b->step, b->stream, b->due, n);

	return rc ? ebbi_broken(b->ebb, "the device cannot add heat: %s", strerror(-rc)) : 0;
}

int ebbi_keep_flush(struct ebb_session *s)
{
	if (!s->kept || !held(s))
		return 0;
	s->batch->due[0] = take(s, true);
	return add(s->batch, 1);
}

void ebbi_keep_leave(struct ebb_session *s)
{
	if (!s->kept || s->ebb->dead)
		return;
	s->batch->due[0] = take(s, false);
	s->observe = 0;
	(void)add(s->batch, 1);		/* on a lost device there is nothing to forget */
}

/* Rooms for all members: a power of two of them, so that they seldom become more. */
static uint32_t rooms_for(const struct ebb_batch *b)
{
	uint32_t last = 0, rooms = 1;

	for (uint32_t i = 0; i < b->n; i++)
		last = b->member[i]->room > last ? b->member[i]->room : last;
	while (rooms <= last)
		rooms *= 2u;
	return rooms < b->max_sessions ? rooms : b->max_sessions;
}

/* Larger rooms where lanes have grown, more where sessions have joined. What they hold is added first; of a session that sits the step out it is lost. */
static int grow(struct ebb_batch *b, uint32_t live_max)
{
	const struct gpu_shape *shape = &b->member[0]->shape;
	uint32_t rooms = rooms_for(b), depth = depth_for(shape, live_max), n = 0;
	int rc;

	rooms = rooms > b->rooms ? rooms : b->rooms;
	depth = depth > b->depth ? depth : b->depth;
	if (!depth || (rooms == b->rooms && depth == b->depth))
		return 0;
	for (uint32_t i = 0; i < b->n; i++)
		if (b->member[i]->kept)
			b->due[n++] = take(b->member[i], held(b->member[i]));
	rc = add(b, n);
	if (rc)
		return rc;
	rc = gpu_keep(b->step, b->stream, shape, b->member[0]->n_layers, rooms, depth);
	b->rooms = rc ? 0 : rooms;
	b->depth = rc ? 0 : depth;
	b->keeps_none = rc != 0;
	return rc && rc != -ENOTSUP && rc != -ENOMEM ? ebbi_broken(b->ebb, "the device cannot keep queries: %s", strerror(-rc)) : 0;
}

int ebbi_keep(struct ebb_batch *b, uint32_t live_max)
{
	bool any = false;
	int rc;

	for (uint32_t i = 0; i < b->n_seqs; i++)
		any |= b->active[i]->observe && b->seq[i].n == 1;
	rc = any && !b->keeps_none && !b->ebb->local ? grow(b, live_max) : 0;
	for (uint32_t i = 0; i < b->n_seqs && !rc && b->depth; i++) {
		struct ebb_session *s = b->active[i];
		struct gpu_seq *q = &b->seq[i];

		if (q->n != 1 || !s->observe || (uint32_t)q->pos % s->observe || s->kept == b->depth)
			continue;
		if (s->kept && (uint32_t)q->pos != (uint32_t)s->kept_pos + s->kept * s->observe)
			continue;
		if (!s->kept)
			s->kept_pos = q->pos;
		q->kept = gpu_kept_at(s->room, s->kept++);
	}
	return rc;
}

int ebbi_keep_end(struct ebb_batch *b)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < b->n_seqs; i++) {
		struct ebb_session *s = b->active[i];

		if (s->kept && (s->kept == b->depth || s->begun == s->granted || wire_claim(wire_load64(&s->words->hand))))
			b->due[n++] = take(s, true);
	}
	return add(b, n);
}
