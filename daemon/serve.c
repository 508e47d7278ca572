/*
 * Turns on a device. What is due in a queue runs as one batch: page moves out of draining slabs, new ids into the private tables,
 * select (settle, fold, remove, compact, next) over all lanes of all sessions, then the private tables are copied over
 * the shared ones. When the device has done all that the grants are published.
 *
 * One batch at a time per queue; sessions that become due meanwhile form the next one. On the host everything is done when the
 * calls return, and serve_done() follows at once.
 */
#include "daemon/daemon.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 64	/* sessions handed to one gpu_select() call */

/* A device that fails has lost our context: nothing here can be trusted any more. systemd starts us afresh. */
void serve_must(int rc, const char *what, const struct pool *pool)
{
	if (!rc)
		return;
	log_line(LOG_ERROR, "device_lost pool=%s operation=%s error=\"%s\"", pool->name, what, strerror(-rc));
	_Exit(1);
}

static void move_pages(const struct queue *q, struct pool *pool, struct session *s)
{
	uint32_t pages = s->n_moves[0], blocks = s->n_moves[1];

	if (pages)
		serve_must(gpu_move(q->dev, q->stream, pool->map, s->move_src, s->move_dst, pages, s->page_bytes), "move", pool);
	if (blocks)
		serve_must(gpu_move(q->dev, q->stream, pool->map, s->move_src + pages, s->move_dst + pages, blocks,
			      s->block_bytes), "move", pool);
	s->client->d->count.moves += pages + blocks;
}

void serve_write_ids(struct session *s, const struct queue *q)
{
	const struct pool *pool = s->pool;

	serve_must(gpu_write(q->dev, q->stream, (char *)pool_at(pool, s->private_id) + gpu_table_pages(&s->table), s->page,
			     session_ids_bytes(s)), "write", pool);
}

/* What the device must know before it selects: the header (once) and the ids (when they changed). */
static void write_private(const struct queue *q, struct pool *pool, struct session *s)
{
	char *priv = pool_at(pool, s->private_id);

	if (s->opening) {
		serve_must(gpu_scrub(q->dev, q->stream, priv, gpu_table_pages(&s->table)), "scrub", pool);
		serve_must(gpu_write(q->dev, q->stream, priv, &s->table, sizeof(s->table)), "write", pool);
	}
	if (s->pages_changed)
		serve_write_ids(s, q);
}

static void select_batch(const struct queue *q, struct pool *pool, struct session **batch, unsigned n, unsigned what)
{
	struct gpu_turn turn[BATCH];

	for (unsigned i = 0; i < n; i++) {
		struct session *s = batch[i];

		turn[i] = (struct gpu_turn){
			.priv = pool_at(pool, s->private_id),
			.plan = s->plan,
			.n_lanes = s->table.n_lanes,
			.appended = s->appended,
			.pos = (int32_t)s->pos,
			.rule = s->spec.rule,
			.n_credit = s->n_credit,
			.slot_type = s->slot_type,
			.head_dim = s->head_dim,
			.live_max = s->live_before,
		};
		turn[i].rule.budget = s->budget;
		marks_turn(s, &turn[i]);
		if (s->measuring && budget_measures(s))
			budget_measure(s, &turn[i]);
		tide_measure(s, &turn[i]);
	}
	serve_must(gpu_select(q->dev, q->stream, pool->map, turn, n, what, NULL), "select", pool);
}

/* Most turns neither compact nor come in halves (turn.c). What is alike goes in one call. */
enum { PLAIN, COMPACTING, MEASURING, DROPPING, DECIDED, DECIDED_COMPACTING, N_KINDS };

static unsigned kind_of(const struct session *s)
{
	if (!(s->what & GPU_NEXT))
		return s->what & GPU_DROP ? DROPPING : MEASURING;
	if (s->what & GPU_FOLD)
		return s->what & GPU_COMPACT ? COMPACTING : PLAIN;
	return s->what & GPU_COMPACT ? DECIDED_COMPACTING : DECIDED;
}

static void select_all(const struct queue *q, struct pool *pool, struct session *list)
{
	static const unsigned what[N_KINDS] = {
		[PLAIN] = GPU_SETTLE | GPU_FOLD | GPU_NEXT,
		[COMPACTING] = GPU_SETTLE | GPU_FOLD | GPU_REMOVE | GPU_COMPACT | GPU_NEXT,
		[MEASURING] = GPU_SETTLE | GPU_FOLD,
		[DROPPING] = GPU_SETTLE | GPU_DROP | GPU_FOLD,
		[DECIDED] = GPU_NEXT,
		[DECIDED_COMPACTING] = GPU_REMOVE | GPU_COMPACT | GPU_NEXT,
	};
	struct session *batch[N_KINDS][BATCH];
	unsigned n[N_KINDS] = { 0 };

	for (struct session *s = list; s; s = s->next_due) {
		unsigned kind = kind_of(s);

		batch[kind][n[kind]++] = s;
		if (n[kind] == BATCH) {
			select_batch(q, pool, batch[kind], BATCH, what[kind]);
			n[kind] = 0;
		}
	}
	for (unsigned kind = 0; kind < N_KINDS; kind++)
		if (n[kind])
			select_batch(q, pool, batch[kind], n[kind], what[kind]);
}

/* Tables that wait to be copied over their shared twins: many of one size in one call, because on a device each call costs microseconds. */
struct publish {
	uint32_t src[BATCH], dst[BATCH];
	uint32_t bytes;			/* of each */
	unsigned n;
};

#define PUBLISH_MOST 65536u		/* bytes: above, a copy of its own is faster */

static void publish_flush(const struct queue *q, struct pool *pool, struct publish *p)
{
	if (p->n)
		serve_must(gpu_move(q->dev, q->stream, pool->map, p->src, p->dst, p->n, p->bytes), "move", pool);
	p->n = 0;
}

static void publish_table(const struct queue *q, struct pool *pool, struct session *s, struct publish *p)
{
	size_t bytes = s->pages_changed ? gpu_table_bytes(&s->table) : gpu_table_pages(&s->table);

	s->pages_changed = false;
	if (bytes > PUBLISH_MOST) {
		serve_must(gpu_copy(q->dev, q->stream, pool_at(pool, s->table_id), pool_at(pool, s->private_id), bytes), "copy", pool);
		return;
	}
	if (p->n == BATCH || p->bytes != bytes)
		publish_flush(q, pool, p);
	p->src[p->n] = s->private_id;
	p->dst[p->n++] = s->table_id;
	p->bytes = (uint32_t)bytes;
}

/* The device shall begin when the client's has done what the turns are about; behind what the pool's own stream has been given, too. */
static void await_client(const struct queue *q, struct pool *pool, const struct session *list)
{
	uint64_t *word[WIRE_MAX_SESSIONS], value[WIRE_MAX_SESSIONS];
	unsigned n = 0;

	serve_must(gpu_order(q->dev, pool->stream, q->stream), "order", pool);
	for (const struct session *s = list; s; s = s->next_due) {
		word[n] = &s->client->shared->session[s->index].finished;	/* partner: the client's device, at step_end */
		value[n++] = s->tokens;
	}
	serve_must(gpu_await(q->dev, q->stream, n, word, value), "await", pool);
}

/* The device says that it has done the batch: to us, and to the client that waits for it. */
static void say_done(struct queue *q, struct pool *pool, struct session *list)
{
	uint64_t *word[2] = { q->done }, value[2] = { ++q->batches };
	struct client *c = q->client;

	if (c) {
		word[1] = &c->shared->turned.value;	/* partner: the client's stream, at step_begin */
		value[1] = ++c->turns;
		for (struct session *s = list; s; s = s->next_due)
			s->turn = c->turns;
	}
	serve_must(gpu_signal(q->dev, q->stream, c ? 2 : 1, word, value), "signal", pool);
}

static void publish_ahead(struct queue *q, struct session *list, unsigned pool)
{
	struct client *c = q->client;

	for (struct session *s = list; s; s = s->next_due)
		s->flying = true;
	client_announce(c, pool);
	for (struct session *s = list; s; s = s->next_due) {
		c->d->count.ahead++;
		s->state = SESSION_PUBLISH;
		if (!s->closing)
			serve_publish(s);
	}
}

static void run_queue(struct daemon *d, unsigned index, struct queue *q)
{
	struct pool *pool = &d->pool[index];
	struct publish tables = { .n = 0 };
	struct session *list;

	while (q->due && !q->running) {
		list = queue_take(q);
		q->running = list;
		if (q->client)
			await_client(q, pool, list);
		for (struct session *s = list; s; s = s->next_due) {
			move_pages(q, pool, s);
			record_window(s);	/* where it now lies */
			write_private(q, pool, s);
		}
		select_all(q, pool, list);
		for (struct session *s = list; s; s = s->next_due)
			if (!s->measuring) {
				change_run(s, q);
				publish_table(q, pool, s, &tables);
			}
		publish_flush(q, pool, &tables);
		say_done(q, pool, list);
		int rc = gpu_notify(q->dev, q->stream, d->done_fd[index]);

		if (q->client)
			publish_ahead(q, list, index);
		if (rc == 1)
			serve_done(d, index);
		else
			serve_must(rc, "notify", pool);
	}
}

void serve_run(struct daemon *d, unsigned index)
{
	for (unsigned i = 0; i < 1 + DAEMON_AHEAD; i++)
		run_queue(d, index, &d->queue[index][i]);
}

/* The device has done the session's turn. Returns whether memory has become free. */
static bool turn_done(struct session *s, unsigned index)
{
	const bool granted = s->flying;		/* already, or as soon as the outbox is empty */
	bool freed;

	tide_learn(s);
	if (s->measuring && !s->closing) {
		turn_decide(s);
		return false;
	}
	freed = s->freed || s->what & GPU_COMPACT || s->n_moves[0] || s->old_table_id != POOL_NO_ID;
	s->freed = false;
	turn_release(s);
	s->flying = s->ahead = false;
	if (!granted)
		s->state = SESSION_PUBLISH;
	if (s->closing) {
		session_end(s);
	} else if (!granted) {
		client_announce(s->client, index);
		serve_publish(s);
	}
	return freed;
}

/* Sessions that could not go ahead, because a batch was before them: nobody else may ever tell of them. */
static void look_again(struct daemon *d, struct client *c)
{
	const bool all = d->ahead_refused;	/* those that are refused now are for the next time */

	d->ahead_refused = false;
	for (unsigned i = 0; i < d->max_clients && d->loop; i++)
		if (d->client[i] && (all || d->client[i] == c) && !d->client[i]->gone)
			client_look(d->client[i]);
}

void serve_done(struct daemon *d, unsigned index)
{
	bool freed = false;

	for (unsigned i = 0; i < 1 + DAEMON_AHEAD; i++) {
		struct queue *q = &d->queue[index][i];
		struct session *s = q->running, *next;
		struct client *c = q->client;

		if (!s || __atomic_load_n(q->done, __ATOMIC_ACQUIRE) != q->batches)	/* partner: say_done() */
			continue;
		q->running = NULL;
		if (c && !q->due)
			queue_leave(q);
		for (; s; s = next) {
			next = s->next_due;
			s->next_due = NULL;
			freed |= turn_done(s, index);
		}
		if (c)
			look_again(d, c);
	}
	if (!freed)
		return;
	for (unsigned i = 0; i < d->max_clients; i++)
		if (d->client[i] && d->client[i]->owner[index].serial)
			client_trim(d->client[i], index);
	pool_trim(&d->pool[index], &d->pool[index].self, NULL, NULL);
	pressure_retry(d);
}

void serve_publish(struct session *s)
{
	struct client *c = s->client;
	struct wire_session *w = &c->shared->session[s->index];
	uint64_t hand;

	if (s->state != SESSION_PUBLISH || c->gone || c->n_outbox)
		return;			/* client_flush() comes back */
	if (s->opening) {
		struct wire_msg m = { .head = { .type = WIRE_OPENED, .seq = s->seq } };

		m.u.opened = (struct wire_opened){ s->index, pool_index(c->d, s->pool), s->slot_type, s->table_id,
						   s->spec.max_slots, 0, s->table };
		client_send(c, &m, -1, false);
		if (c->gone)
			return;
		s->opening = false;
	}
	s->state = SESSION_CLIENT;
	if (s->claimed) {
		s->claimed = false;
		c->d->n_claimed--;
	}
	w->base = s->tokens;
	w->live = s->live;
	w->evicted = s->evicted;
	w->budget = s->budget;
	w->live_max = s->live_max;
	w->table_id = s->table_id;
	w->turn = s->turn;
	w->ahead = queue_may_ahead(s);
	w->heat_from = evict_has_late_heat(s->spec.rule.policy) ? marks_tagged(s) : 0;
	wire_store64(&w->granted, s->granted);
	/*
	 * A window that was used up without a claim is the client's again from the store above on: it may swap begun forward before we
	 * count up the epoch, so that is a swap as well (a plain store here loses its begin: BUG 17 of the model).
	 */
	hand = wire_load64(&w->hand);
	s->epoch++;
	for (unsigned tries = 0; !wire_swap64(&w->hand, &hand, wire_hand(wire_begun(hand), s->epoch, 0)); tries++)
		if (tries == 1000) {	/* an honest client swaps once per grant */
			client_drop(c, "it keeps changing the word that hands its session over");
			return;
		}
	client_grant_record(c, s);
	client_wake(c);
	marks_published(s);
}
