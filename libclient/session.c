/* Sessions: open, close, and what can be read about one without asking anybody. */
#include "libclient/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int ebbi_session_check(struct ebb *ebb, const struct ebb_session_options *o)
{
	if (!o->n_layers || !o->n_kv_heads || (uint64_t)o->n_layers * o->n_kv_heads > 1u << 20)
		return ebbi_error(ebb, -EINVAL, "%u layers of %u KV heads: at least one, and at most %u lanes", o->n_layers,
				  o->n_kv_heads, 1u << 20);
	if (o->group < 1 || o->group > 16)
		return ebbi_error(ebb, -EINVAL, "group is %u; allowed: 1 to 16", o->group);
	if (o->head_dim < 64 || o->head_dim > 256 || o->head_dim % 16)
		return ebbi_error(ebb, -EINVAL, "head_dim is %u; allowed: 64 to 256 in steps of 16", o->head_dim);
	if (!o->max_tokens || o->max_tokens >= EBBI_MAX_TOKENS)
		return ebbi_error(ebb, o->max_tokens ? -E2BIG : -EINVAL, "max_tokens is %u; allowed: 1 to %u", o->max_tokens,
				  EBBI_MAX_TOKENS - 1);
	if (o->prompt_tokens > o->max_tokens)
		return ebbi_error(ebb, -EINVAL, "prompt_tokens %u is more than max_tokens %u", o->prompt_tokens, o->max_tokens);
	if (o->pool && strlen(o->pool) >= WIRE_NAME)
		return ebbi_error(ebb, -ENOENT, "there is no pool with a name that long");
	if (o->settings && strlen(o->settings) >= WIRE_TEXT)
		return ebbi_error(ebb, -EINVAL, "settings have at most %u bytes", WIRE_TEXT - 1);
	if (o->model && (!*o->model || strlen(o->model) >= WIRE_MODEL || strpbrk(o->model, " \t\r\n")))
		return ebbi_error(ebb, -EINVAL, "the model is called '%.80s'; allowed: 1 to %u characters without blanks", o->model,
				  WIRE_MODEL - 1);
	if (o->lanes && strlen(o->lanes) > WIRE_MAX_LANES_TEXT)
		return ebbi_error(ebb, -EINVAL, "a table of lanes has at most %u bytes", WIRE_MAX_LANES_TEXT);
	return 0;
}

/* The daemon keeps the pieces for the OPEN that follows. */
static int send_lanes(struct ebb *ebb, const char *text)
{
	for (size_t left = text ? strlen(text) : 0; left > 0;) {
		struct wire_msg msg = { .u.lanes = { .bytes = left < WIRE_TEXT ? (uint32_t)left : WIRE_TEXT } };
		int rc;

		memcpy(msg.u.lanes.text, text, msg.u.lanes.bytes);
		rc = ebbi_send(ebb, &msg, WIRE_LANES, 0, offsetof(struct wire_lanes, text) + msg.u.lanes.bytes);
		if (rc)
			return rc;
		text += msg.u.lanes.bytes;
		left -= msg.u.lanes.bytes;
	}
	return 0;
}

/* Does what the daemon opened hang together, and is it what we asked for? */
static int check_opened(struct ebb *ebb, const struct ebb_session_options *o, const struct ebbi_pool *pool,
			const struct wire_opened *w)
{
	const struct gpu_table *t = &w->table;

	if (w->session >= WIRE_MAX_SESSIONS || ebb->session[w->session])
		return ebbi_broken(ebb, "the daemon opened session %u, which is %s", w->session,
				   w->session >= WIRE_MAX_SESSIONS ? "out of range" : "open already");
	if (w->pool >= ebb->n_pools || &ebb->pool[w->pool] != pool || w->slot_type > GPU_Q4)
		return ebbi_broken(ebb, "the daemon opened a session in pool %u with slots of type %u", w->pool, w->slot_type);
	if ((uint64_t)t->n_lanes != (uint64_t)o->n_layers * o->n_kv_heads || !t->window || t->window >= EBBI_MAX_TOKENS ||
	    t->n_heat > GPU_MAX_HEAT || !w->max_slots || w->max_slots >= 2 * EBBI_MAX_TOKENS)
		return ebbi_broken(ebb, "the daemon opened a session of %u lanes, window %u, %u slots", t->n_lanes, t->window,
				   w->max_slots);
	if (t->max_pages > gpu_pages_for(2 * EBBI_MAX_TOKENS) || t->max_blocks > gpu_blocks_for(2 * EBBI_MAX_TOKENS) ||
	    !ebbi_pool_at(pool, w->table_id, gpu_table_bytes(t)))
		return ebbi_broken(ebb, "the daemon opened a session whose table (page %u) does not lie in a mapped slab", w->table_id);
	return 0;
}

static struct ebb_session *session_of(struct ebb *ebb, const struct ebb_session_options *o, struct ebbi_pool *pool,
				      const struct wire_opened *w)
{
	struct ebb_session *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->ebb = ebb;
	s->pool = pool;
	s->index = w->session;
	s->words = &ebb->shared->session[w->session];
	s->window = w->table.window;
	s->n_layers = o->n_layers;
	s->shape = (struct gpu_shape){ o->n_kv_heads, o->group, o->head_dim, w->slot_type };
	s->max_tokens = o->max_tokens;
	s->max_slots = w->max_slots;
	s->observe = gpu_may_keep(&w->table) ? w->table.observe : 0;
	s->table_id = w->table_id;
	s->table = ebbi_pool_at(pool, w->table_id, sizeof(struct gpu_table));
	s->epoch = EBBI_NO_EPOCH;
	s->begun = wire_begun(wire_load64(&s->words->hand));	/* set by the daemon before OPENED */
	ebb->session[w->session] = s;
	return s;
}

int ebb_session_open(struct ebb *ebb, const struct ebb_session_options *o, struct ebb_session **out)
{
	struct wire_msg msg = { .u.open = { .zero = 0 } };
	struct wire_open *w = &msg.u.open;
	struct ebbi_pool *pool;
	struct ebb_session *s;
	int rc;

	if (!ebb || !o || !out)
		return -EINVAL;
	rc = ebbi_alive(ebb);
	if (!rc)
		rc = ebbi_session_check(ebb, o);
	if (!rc && ebb->local)
		return ebbi_local_open(ebb, o, out);
	if (!rc)
		rc = ebbi_pool_find(ebb, o->pool, &pool);
	if (!rc)
		rc = ebbi_pool_device(pool);	/* no slab could be mapped: say so before the daemon spends memory on us */
	if (rc)
		return rc;
	snprintf(w->pool, sizeof(w->pool), "%s", pool->info.name);
	snprintf(w->model, sizeof(w->model), "%s", o->model ? o->model : "");
	snprintf(w->settings, sizeof(w->settings), "%s", o->settings ? o->settings : "");
	w->n_layers = o->n_layers;
	w->n_kv_heads = o->n_kv_heads;
	w->group = o->group;
	w->head_dim = o->head_dim;
	w->max_tokens = o->max_tokens;
	w->prompt_tokens = o->prompt_tokens;
	w->wait_ms = o->wait_ms;
	rc = send_lanes(ebb, o->lanes);
	if (!rc)
		rc = ebbi_request(ebb, &msg, WIRE_OPEN, sizeof(*w), WIRE_OPENED, NULL);
	if (!rc)
		rc = check_opened(ebb, o, pool, &msg.u.opened);
	if (rc)
		return rc;
	s = session_of(ebb, o, pool, &msg.u.opened);
	if (!s) {	/* the daemon has a session that we cannot hold: give it back */
		struct wire_msg bye = { .u.close = { .session = msg.u.opened.session } };

		rc = ebbi_request(ebb, &bye, WIRE_CLOSE, sizeof(bye.u.close), WIRE_CLOSED, NULL);
		return rc ? rc : ebbi_error(ebb, -ENOMEM, "out of memory");
	}
	*out = s;
	return 0;
}

static int close_remote(struct ebb_session *s)
{
	struct wire_msg msg = { .u.close = { .session = s->index } };
	struct ebb *ebb = s->ebb;
	int rc = ebbi_alive(ebb);

	if (!rc)
		rc = ebbi_request(ebb, &msg, WIRE_CLOSE, sizeof(msg.u.close), WIRE_CLOSED, NULL);
	if (rc && rc != -EPIPE)		/* the index is taken for ever now: the two sides disagree about what is open */
		rc = ebbi_broken(ebb, "the daemon did not close session %u: %s", s->index, strerror(-rc));
	ebb->session[s->index] = NULL;
	return rc;
}

/*
 * The session left its batch while the device was at work on it, and the stream may be gone: only the device's own word says when
 * it is done. Ten seconds are for a device that never is; the daemon then keeps the pages until the process ends.
 */
static void wait_for_device(const struct ebb_session *s)
{
	const struct timespec nap = { .tv_nsec = 50000 };

	for (int i = 0; i < 200000 && wire_load64(&s->words->finished) != s->begun && !s->ebb->dead; i++)
		nanosleep(&nap, NULL);
}

int ebb_session_close(struct ebb_session *s)
{
	int rc = 0;

	if (!s)
		return 0;
	if (s->batch) {
		struct ebb_batch *batch = s->batch;

		if (batch->open)
			(void)ebbi_step_end(batch);
		(void)gpu_sync(s->pool->dev, batch->stream);	/* a lost device has nothing left to wait for */
		(void)ebb_batch_leave(batch, s);
	}
	if (s->pool->info.is_cuda && !s->ebb->local)
		wait_for_device(s);
	if (s->ebb->local)
		ebbi_local_close(s);
	else
		rc = close_remote(s);
	free(s);
	return rc;
}

static int change(struct ebb *ebb, uint64_t id, uint32_t index, const char *settings)
{
	struct wire_msg msg = { .u.change = { .id = id, .session = index } };
	int rc;

	if (strlen(settings) >= WIRE_TEXT)
		return ebbi_error(ebb, -EINVAL, "settings have at most %u bytes", WIRE_TEXT - 1);
	rc = ebbi_alive(ebb);
	if (rc)
		return rc;
	memcpy(msg.u.change.settings, settings, strlen(settings));
	rc = ebbi_request(ebb, &msg, WIRE_CHANGE, sizeof(msg.u.change), WIRE_CHANGED, NULL);
	return rc ? rc : msg.u.changed.in_force != 0;
}

int ebb_session_set(struct ebb_session *s, const char *settings)
{
	if (!s || !settings)
		return -EINVAL;
	if (s->ebb->local)
		return ebbi_error(s->ebb, -ENOTSUP, "there is no daemon: a session of ebb_local() keeps its settings");
	return change(s->ebb, 0, s->index, settings);
}

int ebb_set(struct ebb *ebb, uint64_t id, const char *settings)
{
	if (!ebb || !settings || !id)
		return -EINVAL;
	if (ebb->local)
		return ebbi_error(ebb, -ENOTSUP, "there is no daemon");
	return change(ebb, id, 0, settings);
}

void ebb_session_stats(const struct ebb_session *s, struct ebb_stats *out)
{
	if (!s || !out)
		return;
	out->tokens = s->begun;
	out->budget = wire_load32(&s->words->budget);	/* these three: written by the daemon with each grant */
	out->live_slots = wire_load64(&s->words->live);
	out->evicted = wire_load64(&s->words->evicted);
	if (s->ebb->local)
		out->live_slots = (uint64_t)s->begun * s->n_layers * s->shape.n_kv_heads - out->evicted;	/* dropped ones */
}

uint32_t ebb_session_tokens(const struct ebb_session *s)
{
	return s ? s->begun : 0;
}
