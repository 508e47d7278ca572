/*
 * Sessions: opening one, looking whether it is the daemon's turn (turn.c plans it), ending one.
 * The states are drawn in daemon.h, the hand-over in libclient/wire.h and tests/model/handover.pml.
 *
 * Everything that decides is in private memory. Of the shared words this file reads turn, finished and want, checks each against
 * what it granted, and drops a client whose words are impossible.
 */
#include "daemon/daemon.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct wire_session *words(const struct session *s)
{
	return &s->client->shared->session[s->index];
}

int session_check(const char *key, const char *text, char *why, size_t why_bytes)
{
	struct evict_split split;
	struct evict_rule rule;

	if (strcmp(key, "priority") == 0) {
		struct priority list[DAEMON_MAX_PRIORITIES];
		unsigned n;

		return tide_priorities(text, list, DAEMON_MAX_PRIORITIES, &n, why, why_bytes);
	}
	if (strcmp(key, "split") == 0)
		return evict_split_parse(text, &split, why, why_bytes);
	if (strcmp(key, "merge") == 0) {
		rule.policy = EVICT_full;
		return evict_merge_parse(text, &rule, why, why_bytes);
	}
	return evict_parse(text, &rule, why, why_bytes);
}

static uint32_t run_bytes(size_t bytes)
{
	return (uint32_t)((bytes + POOL_EXTENT_BYTES - 1) / POOL_EXTENT_BYTES * POOL_EXTENT_BYTES);
}

void session_free(struct session *s)
{
	if (!s)
		return;
	session_free(s->coming);
	session_free(s->turning);
	budget_free(s);
	tide_free(s);
	marks_free(s);
	free(s->move_src);
	free(s->lane);
	free(s->page);
	free(s->plan);
	free(s);
}

/* --- whose turn it is ----------------------------------------------------------------------------------------------------------- */

void session_look(struct session *s)
{
	struct wire_session *w = words(s);
	uint64_t hand, finished, want;
	uint32_t begun;

	if (s->parked)
		queue_turn(s);			/* if the client's device is done now */
	if (s->state != SESSION_CLIENT || s->flying || s->client->gone)
		return;
	hand = wire_load64(&w->hand);		/* partner: libebb's swap in step_begin */
	begun = wire_begun(hand);
	if (begun < s->tokens || begun > s->granted) {
		client_drop(s->client, "its session has begun tokens that were not granted");
		return;
	}
	if (!wire_claim(hand) && begun != s->granted)
		return;				/* the client's turn */
	finished = wire_load64(&w->finished);	/* partner: step_end, or the client's device */
	if (finished > begun) {
		client_drop(s->client, "its session has finished tokens that it never began");
		return;
	}
	if (begun == s->tokens && begun == s->max_tokens && !s->claimed)
		return;				/* at its end: nothing to grant */
	/* Not while step_begin still reads the window. Partner: step_end's store, when the step's work is with the device. */
	s->ahead = wire_load64(&w->launched) == begun && queue_ahead(s);
	if (finished < begun && !s->ahead)
		return;				/* its step_end, or its device, will ring */
	want = wire_load64(&w->want);
	if (want > s->max_tokens - begun)
		want = s->max_tokens - begun;
	turn_begin(s, begun, (uint32_t)want);
}

void session_claim(struct session *s, uint32_t cap)
{
	struct wire_session *w = words(s);
	uint64_t hand;

	if (cap && (!s->cap || cap < s->cap))
		s->cap = cap;
	if (s->state != SESSION_CLIENT || s->client->gone)
		return;				/* its next turn will see the cap */
	if (!s->claimed) {
		s->claimed = true;
		s->client->d->n_claimed++;
		hand = wire_load64(&w->hand);
		while (!wire_claim(hand) && !wire_swap64(&w->hand, &hand, hand | 1))
			;
		wire_fence();			/* partner: the fence in step_end, between finished and its look at hand */
	}
	session_look(s);
}

/* --- opening ---------------------------------------------------------------------------------------------------------------------- */

static struct evict_amount amount_of(struct conf_amount a)
{
	return (struct evict_amount){ a.count, a.ppm };
}

uint32_t session_window(const struct conf_session *a, uint32_t policy)
{
	return a->window ? a->window : evict_window(policy, amount_of(a->budget));
}

uint32_t session_floor(const struct conf_session *a, uint32_t window)
{
	const uint32_t least = a->sinks + window;

	if (!a->floor)
		return evict_floor(amount_of(a->budget), a->sinks, window);
	return a->floor > least ? a->floor : least;
}

int session_spec(struct session *s, char *why, size_t why_bytes)
{
	const struct conf_session *a = &s->asked;
	struct evict_spec *spec = &s->spec;
	const struct evict_policy_info *info;
	bool pin;
	int rc = evict_parse(a->policy, &spec->rule, why, why_bytes);

	if (!rc)
		rc = evict_merge_parse(a->merge, &spec->rule, why, why_bytes);
	if (!rc)
		rc = evict_split_parse(a->split, &s->how, why, why_bytes);
	if (rc)
		return rc;
	info = &evict_policies[spec->rule.policy];
	if (!gpu_can_store(s->pool->dev, a->slots)) {
		snprintf(why, why_bytes, "slots %s do not work on the device of pool %s: use slots=q8, or a pool with device = host",
			 gpu_type_name(a->slots), s->pool->name);
		return -ENOTSUP;
	}
	pin = a->pin_prompt == 2 ? info->pin_prompt : a->pin_prompt == 1;
	spec->rule.sinks = (int32_t)a->sinks;
	spec->rule.pinned = pin ? (int32_t)spec->prompt_tokens : 0;
	spec->rule.seed = a->seed;
	spec->rule.group = s->group;
	spec->budget = amount_of(a->budget);
	spec->recent = amount_of(a->recent);
	if (!spec->window)	/* not an open session's that changes: it keeps its own */
		spec->window = session_window(a, spec->rule.policy);
	spec->prefill = a->prefill;
	spec->max_slots = s->max_tokens;
	spec->floor = session_floor(a, spec->window);
	if (info->never_evicts || spec->floor > spec->max_slots)
		spec->floor = spec->max_slots;
	s->n_credit = evict_n_arrays(spec->rule.policy);
	s->slot_type = a->slots;
	s->table = (struct gpu_table){
		.n_lanes = s->n_layers * s->n_kv_heads,
		.window = spec->window,
		.max_pages = gpu_pages_for(spec->max_slots),
		.max_blocks = gpu_blocks_for(spec->max_slots),
		.n_heat = a->observe ? evict_n_heat(spec->rule.policy) : 0,
		.heat = { spec->rule.heat[0], spec->rule.heat[1] },
		.observe = a->observe,
	};
	rc = budget_heat(s, why, why_bytes);
	if (!rc)
		rc = record_spec(s, why, why_bytes);
	if (rc)
		return rc;
	s->page_bytes = gpu_page_bytes(s->slot_type, s->head_dim);
	s->block_bytes = gpu_block_bytes(s->table.n_heat);
	s->credit_bytes = gpu_block_bytes(s->n_credit);
	return 0;
}

static int check_shape(const struct wire_open *o, const struct pool *pool, char *why, size_t why_bytes)
{
	uint64_t lanes = (uint64_t)o->n_layers * o->n_kv_heads;

	if (!o->n_layers || !o->n_kv_heads || lanes > 65536 || !o->group || o->group > 16 || o->head_dim < 64 ||
	    o->head_dim > 256 || o->head_dim % 16) {
		snprintf(why, why_bytes, "a model of %u layers, %u KV heads, group %u, head_dim %u: allowed are 1 to 65536 lanes "
			 "(layers x KV heads), group 1 to 16, head_dim 64 to 256 in steps of 16",
			 o->n_layers, o->n_kv_heads, o->group, o->head_dim);
		return -EINVAL;
	}
	if (!o->max_tokens || o->max_tokens > EVICT_MAX_POSITION || o->prompt_tokens > o->max_tokens) {
		snprintf(why, why_bytes, "max_tokens %u, prompt_tokens %u: allowed are 1 <= max_tokens <= %d and prompt_tokens <= "
			 "max_tokens", o->max_tokens, o->prompt_tokens, EVICT_MAX_POSITION);
		return -EINVAL;
	}
	struct gpu_table t = { .n_lanes = (uint32_t)lanes, .window = 2048, .max_pages = gpu_pages_for(o->max_tokens),
			       .max_blocks = gpu_blocks_for(o->max_tokens) };
	uint64_t bytes = gpu_table_private_bytes(&t) - lanes * 2048 * 4;

	if (bytes > pool->slab_bytes) {
		snprintf(why, why_bytes, "max_tokens %u over %llu lanes needs a table of %llu bytes, pool %s has slabs of %u: "
			 "lower max_tokens, or set a larger slab in [pool %s]", o->max_tokens, (unsigned long long)lanes,
			 (unsigned long long)bytes, pool->name, pool->slab_bytes, pool->name);
		return -E2BIG;
	}
	return 0;
}

struct session *session_find(struct daemon *d, uint64_t id)
{
	for (unsigned i = 0; i < d->max_clients; i++)
		for (uint32_t k = 0; d->client[i] && k < WIRE_MAX_SESSIONS; k++)
			if (d->client[i]->session[k] && d->client[i]->session[k]->id == id)
				return d->client[i]->session[k];
	return NULL;
}

struct pool *session_pool(struct daemon *d, const char *name)
{
	if (!*name)
		return &d->pool[0];
	for (unsigned i = 0; i < d->n_pools; i++)
		if (strcmp(d->pool[i].name, name) == 0)
			return &d->pool[i];
	return NULL;
}

/* Tables, and the floor of every lane: what the session will never lose. */
static bool take_floor(struct session *s)
{
	s->table_id = pool_run(s->pool, &s->client->owner[pool_index(s->client->d, s->pool)], gpu_table_bytes(&s->table));
	s->private_id = pool_run(s->pool, &s->pool->self, gpu_table_private_bytes(&s->table));
	if (s->table_id == POOL_NO_ID || s->private_id == POOL_NO_ID)
		return false;
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		if (!turn_reserve(s, lane, s->spec.floor))
			return false;
	s->bytes += run_bytes(gpu_table_bytes(&s->table)) + run_bytes(gpu_table_private_bytes(&s->table));
	return true;
}

static struct session *session_alloc(struct client *c, struct pool *pool, const struct wire_open *o, char *why, size_t why_bytes,
				     int *rc)
{
	struct session *s = calloc(1, sizeof(*s));
	size_t ids;

	*rc = -ENOMEM;
	if (!s)
		return NULL;
	s->client = c;
	s->pool = pool;
	s->n_layers = o->n_layers;
	s->n_kv_heads = o->n_kv_heads;
	s->group = o->group;
	s->head_dim = o->head_dim;
	s->max_tokens = o->max_tokens;
	s->spec.prompt_tokens = o->prompt_tokens;
	s->asked = c->d->conf.session;
	s->asked.given = 0;
	s->table_id = s->private_id = s->old_table_id = POOL_NO_ID;
	memcpy(s->model, o->model, sizeof(s->model));
	*rc = conf_settings(&s->asked, o->settings, session_check, why, why_bytes);
	if (!*rc)
		*rc = session_spec(s, why, why_bytes);
	if (*rc)
		goto fail;
	ids = (size_t)s->table.n_lanes * (s->table.max_pages + 2 * (size_t)s->table.max_blocks);
	s->lane = calloc(s->table.n_lanes, sizeof(*s->lane));
	s->plan = calloc(s->table.n_lanes, sizeof(*s->plan));
	s->page = calloc(ids, sizeof(*s->page));
	if (!s->lane || !s->plan || !s->page) {
		*rc = -ENOMEM;
		goto fail;
	}
	s->block = s->page + (size_t)s->table.n_lanes * s->table.max_pages;
	s->credit = s->block + (size_t)s->table.n_lanes * s->table.max_blocks;
	*rc = budget_new(s, NULL, why, why_bytes);
	if (*rc)
		goto fail;
	return s;
fail:
	if (*rc == -ENOMEM)
		snprintf(why, why_bytes, "the daemon is out of memory");
	session_free(s);
	return NULL;
}

int session_open(struct client *c, uint32_t seq, const struct wire_open *open, char *why, size_t why_bytes)
{
	struct daemon *d = c->d;
	struct pool *pool = session_pool(d, open->pool);
	struct session *s;
	uint32_t index = 0;
	int rc;

	if (!pool) {
		snprintf(why, why_bytes, "no pool is called '%s' (see: ebbctl pools)", open->pool);
		return -ENOENT;
	}
	rc = check_shape(open, pool, why, why_bytes);
	if (rc)
		return rc;
	while (index < WIRE_MAX_SESSIONS && c->session[index])
		index++;
	if (index == WIRE_MAX_SESSIONS) {
		snprintf(why, why_bytes, "a client has at most %u sessions", WIRE_MAX_SESSIONS);
		return -EMFILE;
	}
	s = session_alloc(c, pool, open, why, why_bytes, &rc);
	if (!s)
		return rc;
	if (!c->owner[pool_index(d, pool)].serial)
		pool_owner_init(pool, &c->owner[pool_index(d, pool)], true);
	s->index = index;
	s->id = d->session_ids + 1;
	rc = take_floor(s) ? record_open(s, why, why_bytes) : -ENOSPC;
	if (rc) {
		turn_free(s);
		session_free(s);
		client_trim(c, pool_index(d, pool));
		pool_trim(pool, &pool->self, NULL, NULL);
		if (rc == -ENOSPC)
			snprintf(why, why_bytes, "pool %s has no room for even the floor of this session (see: ebbctl pools)", pool->name);
		return rc;
	}
	s->seq = seq;
	d->session_ids++;
	s->opened_ns = now_ns();
	s->opening = true;
	c->session[index] = s;
	c->n_sessions++;
	d->count.opened++;
	memset(words(s), 0, sizeof(struct wire_session));
	wire_store64(&words(s)->hand, wire_hand(0, 0, 1));	/* ours until it is published */
	turn_begin(s, 0, 0);
	return 0;
}

/* --- ending ------------------------------------------------------------------------------------------------------------------------- */

void session_end(struct session *s)
{
	struct client *c = s->client;
	struct daemon *d = c->d;
	unsigned pool = pool_index(d, s->pool);

	if ((s->state == SESSION_DAEMON && !s->parked) || s->flying) {	/* the device is at it: serve_done() comes back here */
		s->closing = true;
		return;
	}
	if (s->parked)		/* planned, and never begun: what it took goes back */
		turn_release(s);
	if (s->claimed)
		d->n_claimed--;
	record_close(s);
	turn_free(s);
	c->session[s->index] = NULL;
	c->n_sessions--;
	if (!c->gone) {		/* one that is gone may still look: it learns of our end from the life page, not from odd words */
		memset(words(s), 0, sizeof(struct wire_session));
		wire_store64(&words(s)->hand, wire_hand(0, 0, 1));	/* nobody may begin */
	}
	client_trim(c, pool);
	pool_trim(s->pool, &s->pool->self, NULL, NULL);
	if (!c->gone) {
		struct wire_msg m = { .head = { .type = WIRE_CLOSED, .seq = s->seq } };

		m.u.close.session = s->index;
		client_send(c, &m, -1, false);
	}
	session_free(s);
	pressure_retry(d);
}

void session_follow(struct session *s)
{
	struct conf_session asked = *change_asked(s);
	char why[WIRE_TEXT] = "";

	if (s->closing || !conf_follow(&asked, &s->client->d->conf.session))
		return;
	if (change_prepare(s, &asked, why, sizeof(why)))
		log_line(LOG_WARN, "session_keeps session=%llu because=\"%s\"", (unsigned long long)s->id, why);
}
