/*
 * Queues: how turns get to a device. Each pool has a queue on its own stream, which takes the turns of all clients, a batch at a time.
 *
 * Ahead. On CUDA most turns need nothing from the device to be planned: what is live is a matter of counting. Such a turn is enqueued as soon
 * as the work of its tokens is with the client's device, in a queue of that client's, behind a wait for that device; its grant is published at
 * once, and the client's device waits for ours in turn (wire.h). So no processor is between the last step of a window and the first of the next. A turn cannot
 * go ahead if it comes in halves, changes settings, knows marks or is recorded, nor while another one of its session, or another batch of
 * its client, is on its way. What a queue waits for is work that its client's device has: only that client can make it long, and
 * nobody else is behind it. So each queue has a stream that is apart from all others, and a device handle, whose staging memory is kept as long.
 */
#include "daemon/daemon.h"

#include <stdio.h>
#include <string.h>

#define STAGE_MOST (3u << 20)		/* bytes that a batch ahead may stage: less than the half of what a device handle has */
#define STAGE_PIECE 32768u		/* each call's lists are rounded up to so much */

static int queue_stage(struct queue *q)
{
	void *done = NULL;
	int rc = gpu_host_alloc(q->dev, sizeof(*q->done), &done);

	q->done = done;
	return rc;
}

int queue_open(struct daemon *d, unsigned pool)
{
	struct queue *q = &d->queue[pool][0];

	q->dev = d->pool[pool].dev;
	q->stream = d->pool[pool].stream;
	return queue_stage(q);
}

/* A queue for turns that go ahead. It stays until the end. */
static int open_ahead(struct queue *q, const struct pool *pool)
{
	const struct gpu_info *info = gpu_info(pool->dev);
	char name[sizeof(info->uuid) + 8];
	int rc;

	snprintf(name, sizeof(name), "cuda:%s", info->uuid);
	rc = gpu_open(&q->dev, name);
	if (rc) {
		q->dev = NULL;
		return rc;
	}
	rc = gpu_stream_apart(q->dev, &q->stream);
	if (!rc)
		rc = queue_stage(q);
	if (rc) {
		if (q->stream)
			gpu_stream_free(q->dev, q->stream);
		gpu_close(q->dev);
		q->dev = NULL;
		q->stream = NULL;
	}
	return rc;
}

void queue_close(struct daemon *d, unsigned pool)
{
	for (unsigned i = 0; i < 1 + DAEMON_AHEAD; i++) {
		struct queue *q = &d->queue[pool][i];

		if (q->client)
			queue_let_through(q->client);
		if (q->running) {
			(void)gpu_sync(q->dev, q->stream);
			serve_done(d, pool);
		}
	}
}

/* Frees what queue_open() and queue_ahead() made, when no session is left. */
void queue_free(struct daemon *d, unsigned pool)
{
	for (unsigned i = 0; i < 1 + DAEMON_AHEAD; i++) {
		struct queue *q = &d->queue[pool][i];

		if (!q->dev)
			continue;
		gpu_host_free(q->dev, q->done);
		if (i) {
			gpu_stream_free(q->dev, q->stream);
			gpu_close(q->dev);
		}
	}
}

/* Can turns of the session go ahead at all? */
bool queue_may_ahead(const struct session *s)
{
	return gpu_info(s->pool->dev)->is_cuda && !s->client->d->no_ahead && !s->opening && !s->closing && !s->coming && !s->turning &&
	       !s->marks && !s->record && !budget_measures(s);
}

/* The client's words, for the device to write and to wait for. A first wait, over at once, finds out whether the driver knows of waits. */
static int register_words(struct client *c, const struct queue *q, struct pool *pool)
{
	uint64_t *const word[1] = { &c->shared->session[0].finished };
	const uint64_t none = 0;
	int rc;

	if (c->registered)
		return 0;
	rc = gpu_register(pool->dev, c->shared, WIRE_SHARED_BYTES);
	if (rc)
		return rc;
	c->registered = pool->dev;
	return gpu_await(q->dev, q->stream, 1, word, &none);
}

bool queue_ahead(struct session *s)
{
	struct client *c = s->client;
	struct daemon *d = c->d;
	struct pool *pool = s->pool;
	struct queue *ahead = d->queue[pool_index(d, pool)] + 1, *q = ahead;
	int rc;

	if (!queue_may_ahead(s) || s->flying)
		return false;
	if (c->ahead)		/* it joins its client's others, unless they are on the device, or on another one */
		return !c->ahead->running && c->ahead >= ahead && c->ahead < ahead + DAEMON_AHEAD;
	while (q < ahead + DAEMON_AHEAD && q->client)
		q++;
	if (q == ahead + DAEMON_AHEAD) {
		d->ahead_refused = true;
		return false;
	}
	rc = q->dev ? 0 : open_ahead(q, pool);
	if (!rc)
		rc = register_words(c, q, pool);
	if (rc) {
		d->no_ahead = true;
		log_line(LOG_WARN, "no_turns_ahead pool=%s because=\"%s\" hint=\"windows are handed over by the processor\"", pool->name,
			 strerror(-rc));
		return false;
	}
	q->client = c;
	c->ahead = q;
	return true;
}

static size_t rounded(size_t bytes)
{
	return (bytes + STAGE_PIECE - 1) / STAGE_PIECE * STAGE_PIECE;
}

size_t session_ids_bytes(const struct session *s)
{
	return (size_t)s->table.n_lanes * (s->table.max_pages + 2 * (size_t)s->table.max_blocks) * sizeof(*s->page);
}

/* What the session's turn keeps of the handle's staging memory until the device has done it; at most. */
static size_t staged(const struct session *s)
{
	return s->table.n_lanes * (size_t)64 + 512 + (s->pages_changed ? rounded(session_ids_bytes(s)) : 0) +
	       (s->n_moves[0] + s->n_moves[1] ? 2 * rounded(8 * ((size_t)s->n_moves[0] + s->n_moves[1])) : 0);
}

void queue_leave(struct queue *q)
{
	q->client->ahead = NULL;
	q->client = NULL;
}

/*
 * A turn that would stage too much is not for a queue that waits for a client. It is planned, so it is kept until the client's device is done:
 * session_look() sees that, and comes back.
 */
static bool park(struct session *s)
{
	const struct wire_session *w = &s->client->shared->session[s->index];
	struct queue *q = s->client->ahead;

	if (s->ahead && staged(s) > STAGE_MOST) {
		s->ahead = false;
		if (!q->due && !q->running)
			queue_leave(q);
		s->parked = true;
	}
	s->parked = s->parked && wire_load64(&w->finished) != s->tokens && !s->client->gone;
	return s->parked;
}

void queue_turn(struct session *s)
{
	struct daemon *d = s->client->d;
	struct queue *q;

	if (park(s))
		return;
	q = s->ahead ? s->client->ahead : &d->queue[pool_index(d, s->pool)][0];
	s->next_due = q->due;
	q->due = s;
}

struct session *queue_take(struct queue *q)
{
	struct session *out = NULL, **end = &out, *list = q->due, *next, *first = NULL;
	size_t bytes = 0;

	for (; list; list = next) {
		next = list->next_due;
		list->next_due = first;
		first = list;
	}
	q->due = NULL;
	for (; first; first = next) {
		next = first->next_due;
		bytes += staged(first);
		if (q->client && out && bytes > STAGE_MOST) {
			first->next_due = q->due;
			q->due = first;
			continue;
		}
		*end = first;
		first->next_due = NULL;
		end = &first->next_due;
	}
	return out;
}

void queue_let_through(struct client *c)
{
	if (!c->registered)
		return;
	for (uint32_t i = 0; i < WIRE_MAX_SESSIONS; i++)	/* partner: our device's waits */
		wire_store64(&c->shared->session[i].finished, INT64_MAX);
}

bool queue_may_unregister(const struct client *c)
{
	const struct daemon *d = c->d;

	for (unsigned i = 0; c->registered && i < d->n_pools; i++)
		for (unsigned k = 1; k < 1 + DAEMON_AHEAD; k++)
			if (d->queue[i][k].running)
				return false;
	return true;
}
