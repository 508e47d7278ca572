/*
 * Sessions: opening one, looking whether it is the daemon's turn, planning the turn, ending one.
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

static struct pool_owner *owner_of(const struct session *s)
{
	return &s->client->owner[pool_index(s->client->d, s->pool)];
}

int session_check(const char *key, const char *text, char *why, size_t why_bytes)
{
	struct evict_split split;
	struct evict_rule rule;

	if (strcmp(key, "split") == 0)
		return evict_split_parse(text, &split, why, why_bytes);
	if (strcmp(key, "merge") == 0) {
		rule.policy = EVICT_full;
		return evict_merge_parse(text, &rule, why, why_bytes);
	}
	return evict_parse(text, &rule, why, why_bytes);
}

/* --- memory of a session ------------------------------------------------------------------------------------------------ */

static bool take(struct session *s, struct pool_owner *owner, uint32_t bytes, uint32_t *id)
{
	*id = pool_page(s->pool, owner, bytes);
	if (*id == POOL_NO_ID)
		return false;
	s->bytes += bytes;
	s->pages_changed = true;
	return true;
}

static void give(struct session *s, struct pool_owner *owner, uint32_t bytes, uint32_t id)
{
	pool_page_free(s->pool, owner, id);
	s->bytes -= bytes;
}

static uint32_t *page_row(const struct session *s, uint32_t lane)
{
	return s->page + (size_t)lane * s->table.max_pages;
}

static uint32_t *block_row(const struct session *s, uint32_t lane)
{
	return s->block + (size_t)lane * s->table.max_blocks;
}

static uint32_t *credit_row(const struct session *s, uint32_t lane)
{
	return s->credit + (size_t)lane * s->table.max_blocks;
}

/* Shrink a lane's memory to what `slots` need. */
static void lane_release(struct session *s, uint32_t lane, uint32_t slots)
{
	struct session_lane *l = &s->lane[lane];

	while (l->n_pages > gpu_pages_for(slots))
		give(s, owner_of(s), s->page_bytes, page_row(s, lane)[--l->n_pages]);
	while (l->n_blocks > gpu_blocks_for(slots)) {
		l->n_blocks--;
		give(s, owner_of(s), s->block_bytes, block_row(s, lane)[l->n_blocks]);
		give(s, &s->pool->self, s->credit_bytes, credit_row(s, lane)[l->n_blocks]);
	}
}

/* Make a lane's memory fit `slots`. On failure the lane may have grown a little; the caller releases. */
static bool lane_reserve(struct session *s, uint32_t lane, uint32_t slots)
{
	struct session_lane *l = &s->lane[lane];

	for (; l->n_pages < gpu_pages_for(slots); l->n_pages++)
		if (!take(s, owner_of(s), s->page_bytes, &page_row(s, lane)[l->n_pages]))
			return false;
	for (; l->n_blocks < gpu_blocks_for(slots); l->n_blocks++) {
		if (!take(s, owner_of(s), s->block_bytes, &block_row(s, lane)[l->n_blocks]))
			return false;
		if (!take(s, &s->pool->self, s->credit_bytes, &credit_row(s, lane)[l->n_blocks])) {
			give(s, owner_of(s), s->block_bytes, block_row(s, lane)[l->n_blocks]);
			return false;
		}
	}
	return true;
}

static uint32_t run_bytes(size_t bytes)
{
	return (uint32_t)((bytes + POOL_EXTENT_BYTES - 1) / POOL_EXTENT_BYTES * POOL_EXTENT_BYTES);
}

static void free_memory(struct session *s)
{
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		lane_release(s, lane, 0);
	if (s->table_id != POOL_NO_ID)
		pool_run_free(s->pool, owner_of(s), s->table_id);
	if (s->private_id != POOL_NO_ID)
		pool_run_free(s->pool, &s->pool->self, s->private_id);
	s->table_id = s->private_id = POOL_NO_ID;
}

static void free_struct(struct session *s)
{
	budget_free(s);
	free(s->move_src);
	free(s->lane);
	free(s->page);
	free(s->plan);
	free(s);
}

/* --- planning a turn ---------------------------------------------------------------------------------------------------------- */

/*
 * Plans every lane for a window of `grant` tokens and reserves the memory. With `grow`, lanes may ask the pool for pages; a lane
 * that gets none gives up the whole attempt (-ENOSPC) and every lane is as it was. Without, lanes stay within what they hold.
 */
static int plan_lanes(struct session *s, uint32_t grant, bool grow)
{
	struct evict_state state = { s->tokens, grant, s->cap };

	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		s->lane[lane].held = s->lane[lane].n_pages;
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++) {
		struct session_lane *l = &s->lane[lane];
		struct evict_lane_plan plan;
		uint32_t held = l->n_pages * GPU_PAGE_SLOTS;
		uint32_t room = grow ? s->spec.max_slots : held < s->spec.max_slots ? held : s->spec.max_slots;
		int rc = evict_plan_lane(&s->spec, &state, grant, budget_of(s, lane), l->live, room, &plan);

		if (!rc && !lane_reserve(s, lane, plan.keep + plan.fresh))
			rc = -ENOSPC;
		if (rc) {
			for (uint32_t i = 0; i <= lane; i++)
				lane_release(s, i, s->lane[i].held * GPU_PAGE_SLOTS);
			return rc;
		}
		s->plan[lane] = (struct gpu_plan){ plan.keep, plan.fresh, plan.victims, plan.recent };
	}
	return 0;
}

/* Lists the session's pages that lie in its client's draining slab, each with a new place. Stops quietly when there is none. */
static void plan_moves(struct session *s, uint32_t slab)
{
	struct pool_owner *owner = owner_of(s);
	uint32_t n = s->table.n_lanes, most = 0;

	for (uint32_t lane = 0; lane < n; lane++)
		most += s->lane[lane].n_pages + s->lane[lane].n_blocks;
	s->move_src = calloc(2 * (size_t)most, sizeof(uint32_t));
	if (!s->move_src)
		return;
	s->move_dst = s->move_src + most;
	for (unsigned kind = 0; kind < 2; kind++) {
		uint32_t bytes = kind ? s->block_bytes : s->page_bytes;

		for (uint32_t lane = 0; lane < n; lane++) {
			uint32_t *row = kind ? block_row(s, lane) : page_row(s, lane);
			uint32_t count = kind ? s->lane[lane].n_blocks : s->lane[lane].n_pages;

			for (uint32_t i = 0; i < count; i++) {
				uint32_t at = s->n_moves[0] + s->n_moves[1];

				if (pool_slab_of(s->pool, row[i]) != slab)
					continue;
				s->move_src[at] = row[i];
				s->move_dst[at] = pool_page(s->pool, owner, bytes);
				if (s->move_dst[at] == POOL_NO_ID) {
					pool_undrain(s->pool, owner);
					return;
				}
				row[i] = s->move_dst[at];
				s->n_moves[kind]++;
				s->pages_changed = true;
			}
		}
	}
	if (pool_slab_of(s->pool, s->table_id) == slab) {
		uint32_t id = pool_run(s->pool, owner, gpu_table_bytes(&s->table));

		if (id != POOL_NO_ID) {
			s->old_table_id = s->table_id;
			s->table_id = id;
			s->pages_changed = true;
		}
	}
}

/* The window's tokens have their slots now; what is live, and how many slots were overwritten for it. */
static void settle(struct session *s, uint32_t begun)
{
	s->appended = begun - s->tokens;
	s->pos = s->tokens;
	s->tokens = begun;
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++) {
		struct session_lane *l = &s->lane[lane];
		struct gpu_lane g = { l->live, l->fresh };

		l->live = gpu_live(g, s->appended);
		s->evicted += s->appended > l->fresh ? s->appended - l->fresh : 0;
		s->client->d->count.evicted += s->appended > l->fresh ? s->appended - l->fresh : 0;
		l->fresh = 0;
	}
}

static void turn_plan(struct session *s, uint32_t want)
{
	struct daemon *d = s->client->d;
	struct evict_state state;
	uint32_t grant, left = s->max_tokens - s->tokens, slab;
	int rc;

	if (s->cap && !pressure_short(s->pool))
		s->cap = 0;
	state = (struct evict_state){ s->tokens, want, s->cap };
	grant = evict_grant(&s->spec, &state);
	if (grant > left)
		grant = left;
	if (s->record && grant > s->table.window)	/* window by window: that is how a policy would see it */
		grant = s->table.window;
	if (!s->opening && pressure_short(s->pool)) {
		slab = pool_drain(s->pool, owner_of(s));
		if (slab != POOL_NONE)
			plan_moves(s, slab);
	}
	budget_plan(s);
	rc = plan_lanes(s, grant, true);
	s->starved = rc == -ENOSPC;
	if (s->starved) {
		if (grant > s->table.window)
			grant = s->table.window;
		rc = plan_lanes(s, grant, true);
		if (rc)
			rc = plan_lanes(s, grant, false);
	}
	assert(rc == 0);	/* the floor is always held: a plan within it exists */
	s->what = GPU_SETTLE | GPU_FOLD | GPU_NEXT;
	s->live = 0;
	s->live_max = 0;
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++) {
		struct session_lane *l = &s->lane[lane];
		struct gpu_plan *p = &s->plan[lane];

		if (p->keep < l->live) {
			s->what |= GPU_REMOVE | GPU_COMPACT;
			s->evicted += l->live - p->keep;
			d->count.evicted += l->live - p->keep;
		}
		l->live = p->keep;
		l->fresh = p->fresh;
		s->live += p->keep;
		if (p->keep + p->fresh > s->live_max)
			s->live_max = p->keep + p->fresh;
	}
	d->count.compactions += !!(s->what & GPU_COMPACT);
	s->granted = s->tokens + grant;
	s->state = SESSION_DAEMON;
	s->windows++;
	s->client->windows++;
	d->count.windows++;
	serve_queue(s);
	if (s->starved && !s->opening)
		pressure_starved(s);
}

void session_look(struct session *s)
{
	struct wire_session *w = words(s);
	uint64_t hand, finished, want;
	uint32_t begun;

	if (s->state != SESSION_CLIENT || s->client->gone)
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
	if (finished < begun)
		return;				/* its step_end, or its device, will ring */
	if (begun == s->tokens && begun == s->max_tokens && !s->claimed)
		return;				/* at its end: nothing to grant */
	want = wire_load64(&w->want);
	if (want > s->max_tokens - begun)
		want = s->max_tokens - begun;
	settle(s, begun);
	turn_plan(s, (uint32_t)want);
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

static int set_spec(struct session *s, char *why, size_t why_bytes)
{
	const struct conf_session *a = &s->asked;
	struct evict_spec *spec = &s->spec;
	const struct evict_policy_info *info;
	bool pin;
	int rc = evict_parse(a->policy, &spec->rule, why, why_bytes);

	if (!rc)
		rc = evict_merge_parse(a->merge, &spec->rule, why, why_bytes);
	if (rc)
		return rc;
	info = &evict_policies[spec->rule.policy];
	if (!gpu_can_select(s->pool->dev, &spec->rule)) {
		snprintf(why, why_bytes, "policy %s with merge %s does not run on the device of pool %s yet", info->name,
			 evict_merges[spec->rule.merge].name, s->pool->name);
		return -ENOTSUP;
	}
	pin = a->pin_prompt == 2 ? info->pin_prompt : a->pin_prompt == 1;
	spec->rule.sinks = (int32_t)a->sinks;
	spec->rule.pinned = pin ? (int32_t)spec->prompt_tokens : 0;
	spec->rule.seed = a->seed;
	spec->rule.group = s->group;
	spec->budget = (struct evict_amount){ a->budget.count, a->budget.ppm };
	spec->recent = (struct evict_amount){ a->recent.count, a->recent.ppm };
	spec->window = a->window;
	spec->prefill = a->prefill;
	spec->max_slots = s->max_tokens;
	spec->floor = a->floor > a->sinks + a->window ? a->floor : a->sinks + a->window;
	if (info->never_evicts || spec->floor > spec->max_slots)
		spec->floor = spec->max_slots;
	s->n_credit = evict_n_arrays(spec->rule.policy);
	s->slot_type = a->slots;
	s->table = (struct gpu_table){
		.n_lanes = s->n_layers * s->n_kv_heads,
		.window = a->window,
		.max_pages = gpu_pages_for(spec->max_slots),
		.max_blocks = gpu_blocks_for(spec->max_slots),
		.n_heat = a->observe ? evict_n_heat(spec->rule.policy) : 0,
		.heat = { spec->rule.heat[0], spec->rule.heat[1] },
		.observe = a->observe,
	};
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
	s->table_id = pool_run(s->pool, owner_of(s), gpu_table_bytes(&s->table));
	s->private_id = pool_run(s->pool, &s->pool->self, gpu_table_private_bytes(&s->table));
	if (s->table_id == POOL_NO_ID || s->private_id == POOL_NO_ID)
		return false;
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		if (!lane_reserve(s, lane, s->spec.floor))
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
	*rc = conf_settings(&s->asked, o->settings, session_check, why, why_bytes);
	if (!*rc)
		*rc = set_spec(s, why, why_bytes);
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
	*rc = budget_new(s, why, why_bytes);
	if (*rc)
		goto fail;
	return s;
fail:
	if (*rc == -ENOMEM)
		snprintf(why, why_bytes, "the daemon is out of memory");
	free_struct(s);
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
		free_memory(s);
		free_struct(s);
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
	turn_plan(s, 0);
	return 0;
}

/* --- ending ------------------------------------------------------------------------------------------------------------------------- */

void session_end(struct session *s)
{
	struct client *c = s->client;
	struct daemon *d = c->d;
	unsigned pool = pool_index(d, s->pool);

	if (s->state == SESSION_DAEMON) {	/* the device is at it: serve_done() comes back here */
		s->closing = true;
		return;
	}
	if (s->claimed)
		d->n_claimed--;
	record_close(s);
	free_memory(s);
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
	free_struct(s);
	pressure_retry(d);
}

/* After a turn: what it no longer needs goes back. */
void session_release(struct session *s)
{
	uint32_t at = 0;

	for (unsigned kind = 0; kind < 2; kind++)
		for (uint32_t i = 0; i < s->n_moves[kind]; i++)
			pool_page_free(s->pool, owner_of(s), s->move_src[at++]);
	free(s->move_src);
	s->move_src = s->move_dst = NULL;
	s->n_moves[0] = s->n_moves[1] = 0;
	if (s->old_table_id != POOL_NO_ID) {
		pool_run_free(s->pool, owner_of(s), s->old_table_id);
		s->old_table_id = POOL_NO_ID;
	}
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++) {
		uint32_t slots = s->lane[lane].live + s->lane[lane].fresh;

		lane_release(s, lane, slots > s->spec.floor ? slots : s->spec.floor);
	}
}

void session_follow(struct session *s)
{
	if (!conf_follow(&s->asked, &s->client->d->conf.session))
		return;
	/* What can change under way: how much, not what is collected or how it is laid out. */
	s->spec.budget = (struct evict_amount){ s->asked.budget.count, s->asked.budget.ppm };
	s->spec.recent = (struct evict_amount){ s->asked.recent.count, s->asked.recent.ppm };
}
