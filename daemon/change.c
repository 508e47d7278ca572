/*
 * Other settings for an open session: by ebbctl, by its client (ebb_session_set()), or by SIGHUP.
 *
 * A change is prepared at once, so that what cannot be is refused with a sentence; it takes effect at the session's next turn:
 *
 *	budget, recent, prefill		in that turn's plan
 *	policy full			likewise: nothing leaves any more, if there is room for all that may come
 *	the rest			behind that turn. Its victims are those of the policy that has watched the window; the window that is granted
 *					with it collects for the new policy, which decides at its end.
 *
 * How many heat arrays, credits and traits a slot has is the policy's own, so blocks are laid out anew: new ones beside the old, positions
 * copied from the daemon's private twin, heat 0 (a turn has folded it), credits kept as far as they mean the same to both
 * (evict_credits_kept()) and else 0, traits computed from K and V. The client reads of it in the table's header, which comes with the
 * grant; until then it works by the old table. The old blocks go back when the device has done the turn. Pages are not touched.
 *
 * If the pool has no room for a change it is off: the session keeps what it had, and says so (log, `ebbctl session ID`).
 */
#include "daemon/daemon.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool never_evicts(const struct session *s)
{
	return evict_policies[s->spec.rule.policy].never_evicts;
}

/* What cannot change while a session lives. */
static int check_fixed(const struct session *s, const struct conf_session *asked, char *why, size_t why_bytes)
{
	const char *what = asked->window != s->asked.window ? "window" : asked->slots != s->asked.slots ? "slots" :
			   strcmp(asked->record, s->asked.record) != 0 ? "record" : NULL;

	if (what)
		snprintf(why, why_bytes, "%s: cannot change while a session is open; allowed: policy, merge, split, budget, recent, sinks, floor, "
			 "observe, prefill, pin_prompt, seed", what);
	else if (s->record)
		snprintf(why, why_bytes, "session %llu is being recorded, which is done with one policy", (unsigned long long)s->id);
	return what || s->record ? -EINVAL : 0;
}

const struct conf_session *change_asked(const struct session *s)
{
	return s->coming ? &s->coming->asked : s->turning && !s->turned ? &s->turning->asked : &s->asked;
}

int change_prepare(struct session *s, const struct conf_session *asked, char *why, size_t why_bytes)
{
	const size_t ids = (size_t)s->table.n_lanes * s->table.max_blocks;
	struct session *next;
	int rc = check_fixed(s, asked, why, why_bytes);

	if (rc)
		return rc;
	next = calloc(1, sizeof(*next));
	if (!next)
		return -ENOMEM;
	*next = (struct session){ .client = s->client, .pool = s->pool, .id = s->id, .n_layers = s->n_layers, .n_kv_heads = s->n_kv_heads,
				  .group = s->group, .head_dim = s->head_dim, .max_tokens = s->max_tokens, .asked = *asked };
	next->spec.prompt_tokens = s->spec.prompt_tokens;
	next->spec.window = s->spec.window;
	memcpy(next->model, s->model, sizeof(next->model));
	rc = session_spec(next, why, why_bytes);
	if (!rc)
		rc = budget_new(next, s, why, why_bytes);
	next->page = rc ? NULL : calloc(2 * ids, sizeof(*next->page));	/* blocks, then credit blocks */
	if (!rc && !next->page)
		rc = -ENOMEM;
	if (rc) {
		session_free(next);
		return rc;
	}
	if (never_evicts(next)) {	/* needs nothing: it keeps the blocks as they are, so nothing but its floor can be missing */
		memcpy(next->table.heat, s->table.heat, sizeof(next->table.heat));
		next->table.n_heat = s->table.n_heat;
		next->table.observe = 0;
		next->block_bytes = s->block_bytes;
		next->credit_bytes = s->credit_bytes;
		next->n_credit = s->n_credit;
	}
	next->block = next->page;
	next->credit = next->page + ids;
	session_free(s->coming);
	s->coming = next;
	s->kept[0] = '\0';
	return 0;
}

static void call_off(struct session *s)
{
	snprintf(s->kept, sizeof(s->kept), "pool %s has no room for it", s->pool->name);
	log_line(LOG_WARN, "session_keeps session=%llu policy=\"%s\" instead_of=\"%s\" because=\"%s\"", (unsigned long long)s->id,
		 s->asked.policy, s->coming->asked.policy, s->kept);
	session_free(s->coming);
	s->coming = NULL;
}

void change_amounts(struct session *s)
{
	const struct session *next = s->coming;

	if (!next || s->opening)
		return;
	if (!never_evicts(next) || never_evicts(s)) {
		s->spec.budget = next->spec.budget;
		s->spec.recent = next->spec.recent;
		s->spec.prefill = next->spec.prefill;
		return;
	}
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		if (!turn_reserve(s, lane, next->spec.floor)) {
			call_off(s);	/* what some lanes have now goes back after the turn */
			return;
		}
	s->spec = next->spec;
	budget_free(s);
}

/* --- memory ----------------------------------------------------------------------------------------------------------------------- */

/* Whether what is kept of a slot stays as it is. */
static bool same_arrays(const struct evict_rule *a, const struct evict_rule *b)
{
	return a->policy == b->policy && memcmp(a->param, b->param, sizeof(a->param)) == 0 && memcmp(a->heat, b->heat, sizeof(a->heat)) == 0 &&
	       memcmp(a->trait, b->trait, sizeof(a->trait)) == 0 && a->lag == b->lag;
}

/* New blocks of a kind; returns how many were taken: fewer than `most` when the pool has no more. */
static uint32_t take_blocks(struct session *s, bool priv, uint32_t bytes, uint32_t *ids, uint32_t most)
{
	uint32_t n = 0;

	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		for (uint32_t b = 0; b < s->lane[lane].n_blocks && n < most; b++, n++)
			if (!turn_take(s, priv, bytes, &ids[(size_t)lane * s->table.max_blocks + b]))
				return n;
	return n;
}

/* The first n of them go back. */
static void give_blocks(struct session *s, bool priv, uint32_t bytes, const uint32_t *ids, uint32_t n)
{
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		for (uint32_t b = 0; b < s->lane[lane].n_blocks && n; b++, n--)
			turn_give(s, priv, bytes, ids[(size_t)lane * s->table.max_blocks + b]);
}

static uint32_t count_blocks(const struct session *s)
{
	uint32_t n = 0;

	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		n += s->lane[lane].n_blocks;
	return n;
}

void change_reserve(struct session *s)
{
	struct session *next = s->coming;
	uint32_t n, shared, priv = 0;
	bool room = true;

	if (!next || s->opening)
		return;
	for (uint32_t lane = 0; lane < s->table.n_lanes && room && next->spec.floor > s->spec.floor; lane++)
		room = turn_reserve(s, lane, next->spec.floor);
	n = room ? count_blocks(s) : 0;
	shared = next->block_bytes == s->block_bytes ? 0 : take_blocks(s, false, next->block_bytes, next->block, n);
	room = room && (next->block_bytes == s->block_bytes || shared == n);
	if (room && next->credit_bytes != s->credit_bytes) {
		priv = take_blocks(s, true, next->credit_bytes, next->credit, n);
		room = priv == n;
	}
	if (!room) {
		give_blocks(s, false, next->block_bytes, next->block, shared);
		give_blocks(s, true, next->credit_bytes, next->credit, priv);
		call_off(s);
		return;
	}
	s->turning = next;
	s->coming = NULL;
	s->turned = false;
}

/* --- on the device ---------------------------------------------------------------------------------------------------------------- */

/* One block of a lane: its positions, and of its credits as many as are kept, into what it becomes. */
static void relay_block(struct session *s, size_t at, uint32_t kept)
{
	const struct pool *pool = s->pool;
	const struct session *next = s->turning;
	const bool shared = next->block_bytes != s->block_bytes, priv = next->credit_bytes != s->credit_bytes;
	char *was = pool_at(pool, s->credit[at]), *credit = priv ? pool_at(pool, next->credit[at]) : was;
	const uint32_t stays = GPU_BLOCK_SLOTS * 4u * (1 + kept);

	if (shared) {	/* positions from the private twin: nothing that a client wrote comes back as truth */
		char *block = pool_at(pool, next->block[at]);

		serve_must(gpu_copy(pool->dev, pool->stream, block, was, GPU_BLOCK_SLOTS * 4u), "copy", pool);
		if (next->block_bytes > GPU_BLOCK_SLOTS * 4u)
			serve_must(gpu_scrub(pool->dev, pool->stream, block + GPU_BLOCK_SLOTS * 4u, next->block_bytes - GPU_BLOCK_SLOTS * 4u), "scrub", pool);
	}
	if (priv)
		serve_must(gpu_copy(pool->dev, pool->stream, credit, was, stays), "copy", pool);
	if (next->credit_bytes > stays)
		serve_must(gpu_scrub(pool->dev, pool->stream, credit + stays, next->credit_bytes - stays), "scrub", pool);
}

#define SWAP(a, b) do { __typeof__(a) swap_ = (a); (a) = (b); (b) = swap_; } while (0)

/* What the session was goes into `turning`, and the other way round. */
static void turn_over(struct session *s)
{
	struct session *o = s->turning;
	const bool shared = o->block_bytes != s->block_bytes, priv = o->credit_bytes != s->credit_bytes;

	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		for (uint32_t b = 0; b < s->lane[lane].n_blocks; b++) {
			size_t at = (size_t)lane * s->table.max_blocks + b;

			if (shared)
				SWAP(s->block[at], o->block[at]);
			if (priv)
				SWAP(s->credit[at], o->credit[at]);
		}
	/* A split that stays as it was keeps what it has in force. */
	if (!s->split || !o->split || memcmp(&s->how, &o->how, sizeof(s->how)) != 0)
		SWAP(s->split, o->split);
	SWAP(s->asked, o->asked);
	SWAP(s->spec, o->spec);
	SWAP(s->how, o->how);
	SWAP(s->table, o->table);
	SWAP(s->n_credit, o->n_credit);
	SWAP(s->block_bytes, o->block_bytes);
	SWAP(s->credit_bytes, o->credit_bytes);
	memcpy(s->stats_heat, o->stats_heat, sizeof(s->stats_heat));
	s->turned = true;
}

/* Traits that are a row's own, of all live slots. */
static void compute_traits(struct session *s)
{
	const struct pool *pool = s->pool;
	const struct gpu_turn turn = {
		.priv = pool_at(pool, s->private_id), .plan = s->plan, .n_lanes = s->table.n_lanes, .pos = (int32_t)s->tokens,
		.rule = s->spec.rule, .n_credit = s->n_credit, .slot_type = s->slot_type, .head_dim = s->head_dim,
	};

	if (evict_n_trait_once(&s->spec.rule))
		serve_must(gpu_select(pool->dev, pool->stream, pool->map, &turn, 1, GPU_TRAITS, NULL), "select", pool);
}

void change_run(struct session *s, const struct queue *q)
{
	const struct pool *pool = s->pool;
	struct session *next = s->turning;
	uint32_t kept;
	bool same;
	char *priv;

	if (!next || s->turned)
		return;
	same = same_arrays(&s->spec.rule, &next->spec.rule);
	kept = same ? s->n_credit : evict_credits_kept(&s->spec.rule, &next->spec.rule);
	next->spec.rule.since = same || kept ? s->spec.rule.since : (int32_t)s->tokens;
	if (!same || next->block_bytes != s->block_bytes)
		for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
			for (uint32_t b = 0; b < s->lane[lane].n_blocks; b++)
				relay_block(s, (size_t)lane * s->table.max_blocks + b, kept);
	turn_over(s);
	priv = pool_at(pool, s->private_id);
	s->pages_changed = true;
	serve_must(gpu_write(pool->dev, pool->stream, priv, &s->table, sizeof(s->table)), "write", pool);
	serve_write_ids(s, q);
	if (!same)
		compute_traits(s);
	log_line(LOG_INFO, "session_changed session=%llu policy=\"%s\" split=\"%s\"", (unsigned long long)s->id, s->asked.policy, s->asked.split);
}

void change_release(struct session *s)
{
	struct session *was = s->turning;
	uint32_t n = was ? count_blocks(s) : 0;

	if (!was)
		return;
	if (was->block_bytes != s->block_bytes)
		give_blocks(s, false, was->block_bytes, was->block, n);
	if (was->credit_bytes != s->credit_bytes)
		give_blocks(s, true, was->credit_bytes, was->credit, n);
	session_free(was);
	s->turning = NULL;
	s->turned = false;
}
