/*
 * Turns: what happens to a session at its window's end, planned lane by lane, and the memory of its lanes. session.c says when.
 *
 * A turn is one pass of the device (settle, fold, name the next slots), unless the session's split must know its lanes first: then it is
 * two halves (settle and fold, taking statistics; then the rest), and the plan is made between them.
 */
#include "daemon/daemon.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static struct pool_owner *owner_of(const struct session *s)
{
	return &s->client->owner[pool_index(s->client->d, s->pool)];
}

/* --- memory of a session ------------------------------------------------------------------------------------------------ */

static struct pool_owner *memory_of(const struct session *s, bool priv)
{
	return priv ? &s->pool->self : owner_of(s);
}

bool turn_take(struct session *s, bool priv, uint32_t bytes, uint32_t *id)
{
	*id = pool_page(s->pool, memory_of(s, priv), bytes);
	if (*id == POOL_NO_ID)
		return false;
	s->bytes += bytes;
	s->pages_changed = true;
	return true;
}

void turn_give(struct session *s, bool priv, uint32_t bytes, uint32_t id)
{
	pool_page_free(s->pool, memory_of(s, priv), id);
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
		turn_give(s, false, s->page_bytes, page_row(s, lane)[--l->n_pages]);
	while (l->n_blocks > gpu_blocks_for(slots)) {
		l->n_blocks--;
		turn_give(s, false, s->block_bytes, block_row(s, lane)[l->n_blocks]);
		turn_give(s, true, s->credit_bytes, credit_row(s, lane)[l->n_blocks]);
	}
}

/* Make a lane's memory fit `slots`. On failure the lane may have grown a little; the caller releases. */
bool turn_reserve(struct session *s, uint32_t lane, uint32_t slots)
{
	struct session_lane *l = &s->lane[lane];

	for (; l->n_pages < gpu_pages_for(slots); l->n_pages++)
		if (!turn_take(s, false, s->page_bytes, &page_row(s, lane)[l->n_pages]))
			return false;
	for (; l->n_blocks < gpu_blocks_for(slots); l->n_blocks++) {
		if (!turn_take(s, false, s->block_bytes, &block_row(s, lane)[l->n_blocks]))
			return false;
		if (!turn_take(s, true, s->credit_bytes, &credit_row(s, lane)[l->n_blocks])) {
			turn_give(s, false, s->block_bytes, block_row(s, lane)[l->n_blocks]);
			return false;
		}
	}
	return true;
}

/* Slots that the lane has memory for, always. What was dropped will never come back, so a lane that must hold every token needs less. */
static uint32_t lane_floor(const struct session *s, uint32_t lane)
{
	uint32_t most = s->spec.max_slots - s->lane[lane].dropped;

	return s->spec.floor < most ? s->spec.floor : most;
}

void turn_free(struct session *s)
{
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		lane_release(s, lane, 0);
	if (s->table_id != POOL_NO_ID)
		pool_run_free(s->pool, owner_of(s), s->table_id);
	if (s->private_id != POOL_NO_ID)
		pool_run_free(s->pool, &s->pool->self, s->private_id);
	s->table_id = s->private_id = POOL_NO_ID;
}

/* --- planning a turn ---------------------------------------------------------------------------------------------------------- */

/*
 * Plans every lane for a window of `grant` tokens and reserves the memory. With `grow`, lanes may ask the pool for pages; a lane
 * that gets none gives up the whole attempt (-ENOSPC) and every lane is as it was. Without, lanes stay within what they hold.
 */
static int plan_lanes(struct session *s, uint32_t grant, bool grow)
{
	struct evict_state state = { s->tokens, grant, tide_cap(s) };

	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		s->lane[lane].held = s->lane[lane].n_pages;
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++) {
		struct session_lane *l = &s->lane[lane];
		struct evict_lane_plan plan;
		uint32_t held = l->n_pages * GPU_PAGE_SLOTS;
		uint32_t room = grow ? s->spec.max_slots : held < s->spec.max_slots ? held : s->spec.max_slots;
		int rc = evict_plan_lane(&s->spec, &state, grant, budget_of(s, lane), l->live, room, &plan);

		if (!rc && !turn_reserve(s, lane, plan.keep + plan.fresh))
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

/* Lists the session's pages that lie in its client's draining slabs, each with a new place. Stops quietly when there is none. */
static void plan_moves(struct session *s)
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

				if (!pool_draining(s->pool, row[i]))
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
	if (pool_draining(s->pool, s->table_id)) {
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
	s->live_before = 0;
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++) {
		struct session_lane *l = &s->lane[lane];
		struct gpu_lane g = { l->live, l->fresh };

		l->live = gpu_live(g, s->appended);
		s->live_before = l->live > s->live_before ? l->live : s->live_before;
		s->evicted += s->appended > l->fresh ? s->appended - l->fresh : 0;
		s->client->d->count.evicted += s->appended > l->fresh ? s->appended - l->fresh : 0;
		l->fresh = 0;
	}
}

static void turn_queue(struct session *s)
{
	s->state = SESSION_DAEMON;
	queue_turn(s);
}

/* A turn in two halves: what the plan must know is found out around the fold, and turn_decide() plans the rest. */
static void turn_measure(struct session *s)
{
	const uint32_t mean = evict_budget(&s->spec, s->tokens, tide_cap(s)), sinks = s->asked.sinks, window = s->table.window;
	const uint32_t most = mean > sinks + window ? mean - sinks - window : 0, recent = evict_amount_of(s->spec.recent, mean);

	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		s->plan[lane] = (struct gpu_plan){ .keep = s->lane[lane].live, .recent = recent < most ? recent : most };
	s->what = GPU_SETTLE | GPU_FOLD | (marks_dropping(s) ? GPU_DROP : 0);
	s->measuring = true;
	turn_queue(s);
}

void turn_decide(struct session *s)
{
	struct daemon *d = s->client->d;
	struct evict_state state;
	uint32_t grant, left = s->max_tokens - s->tokens;
	int rc;

	marks_dropped(s);
	change_amounts(s);
	if (s->cap && !pressure_short(s->pool))
		s->cap = 0;
	tide_turn(s);
	state = (struct evict_state){ s->tokens, s->want, tide_cap(s) };
	grant = evict_grant(&s->spec, &state);
	if (grant > left)
		grant = left;
	if (s->record && grant > s->table.window)	/* window by window: that is how a policy would see it */
		grant = s->table.window;
	if (!s->opening && pressure_short(s->pool) && pool_drain(s->pool, owner_of(s)))
		plan_moves(s);
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
	s->what = s->measuring ? GPU_NEXT : GPU_SETTLE | GPU_FOLD | GPU_NEXT;
	s->measuring = false;
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
	change_reserve(s);
	s->granted = s->tokens + grant;
	s->windows++;
	s->client->windows++;
	d->count.windows++;
	turn_queue(s);
	if (s->starved && !s->opening)
		pressure_starved(s);
}

void turn_begin(struct session *s, uint32_t begun, uint32_t want)
{
	const bool drops = marks_begin(s);

	settle(s, begun);
	s->want = want;
	change_amounts(s);
	if (drops || (budget_measures(s) && s->tokens))
		turn_measure(s);
	else
		turn_decide(s);
}

/* After a turn: what it no longer needs goes back. */
void turn_release(struct session *s)
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
	change_release(s);
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++) {
		uint32_t slots = s->lane[lane].live + s->lane[lane].fresh;

		lane_release(s, lane, slots > lane_floor(s, lane) ? slots : lane_floor(s, lane));
	}
}
