/*
 * When a pool is short. Two needs, one means: sessions are claimed and held to fewer slots a lane ("cap"), the largest first, never
 * below their floor. What they give up is compacted, pages move out of the emptiest slab of their client, and the slab goes back.
 *
 *   growing   a session that gets no pages evicts in place and goes on at the size it has; if another one is much larger,
 *             that one is capped half way between the two, so that sizes even out over some windows.
 *   opening   a session whose floor does not fit waits in a queue, in order of arrival. The others are capped by as much as it needs.
 *
 * A cap ends when the pool is no longer short. A session that is decoding is never closed to make room.
 */
#include "daemon/daemon.h"

#include <errno.h>
#include <stdlib.h>

#define SETTLE_NS 1000000000ull	/* how long a client that does not wish to wait waits for the claims made on its behalf */

bool pressure_short(const struct pool *pool)
{
	return pool->wanted || pool->n_free * 8 < pool->n_slabs;
}

static uint32_t mean_live(const struct session *s)
{
	return (uint32_t)(s->live / s->table.n_lanes);
}

static uint64_t slot_bytes(const struct session *s)	/* of all lanes together */
{
	return (uint64_t)s->table.n_lanes * s->page_bytes / GPU_PAGE_SLOTS;
}

/* Bytes that the session could give up. */
static uint64_t excess(const struct session *s)
{
	uint32_t live = mean_live(s);

	if (s->opening || s->closing || evict_policies[s->spec.rule.policy].never_evicts || live <= s->spec.floor)
		return 0;
	return (live - s->spec.floor) * slot_bytes(s);
}

static struct session *largest_excess(struct daemon *d, const struct pool *pool, const struct session *but, uint64_t below)
{
	struct session *best = NULL;

	for (unsigned i = 0; i < d->max_clients; i++) {
		struct client *c = d->client[i];

		for (uint32_t k = 0, left = c && !c->gone ? c->n_sessions : 0; left && k < WIRE_MAX_SESSIONS; k++) {
			struct session *s = c->session[k];

			if (!s)
				continue;
			left--;
			if (s != but && s->pool == pool && excess(s) && excess(s) < below && (!best || excess(s) > excess(best)))
				best = s;
		}
	}
	return best;
}

void pressure_starved(struct session *s)
{
	struct daemon *d = s->client->d;
	struct session *v;

	if (d->n_claimed || tide_on(s))
		return;		/* something is on its way already, or sizes are the tide's affair */
	v = largest_excess(d, s->pool, s, UINT64_MAX);
	if (!v || mean_live(v) < mean_live(s) + mean_live(s) / 4 + 2 * s->table.window)
		return;
	uint32_t cap = (mean_live(v) + mean_live(s)) / 2;

	log_line(LOG_DEBUG, "claim session=%llu cap=%u for=%llu", (unsigned long long)v->id, cap, (unsigned long long)s->id);
	d->count.claims++;
	session_claim(v, cap > v->spec.floor ? cap : v->spec.floor);
}

/* What an OPEN needs at least, without opening it: its floor's pages and its tables. Decides whether waiting makes sense. */
static uint64_t need_bytes(const struct daemon *d, const struct wire_open *o)
{
	struct conf_session a = d->conf.session;
	uint64_t lanes = (uint64_t)o->n_layers * o->n_kv_heads, floor;
	struct evict_rule rule;

	if (conf_settings(&a, o->settings, NULL, NULL, 0) || evict_parse(a.policy, &rule, NULL, 0))
		return 0;
	floor = session_floor(&a, session_window(&a, rule.policy));
	if (evict_policies[rule.policy].never_evicts || floor > o->max_tokens)
		floor = o->max_tokens;
	return lanes * gpu_pages_for((uint32_t)floor) * gpu_page_bytes(a.slots, o->head_dim) +
	       lanes * gpu_blocks_for((uint32_t)floor) * 2 * gpu_block_bytes(0) + lanes * o->max_tokens / 2;
}

static uint64_t available(struct daemon *d, const struct pool *pool, uint64_t *free_bytes)
{
	uint64_t sum = 0;

	*free_bytes = (uint64_t)(pool->n_free + pool->n_quarantine) * pool->slab_bytes;
	for (unsigned i = 0; i < d->max_clients; i++)
		for (uint32_t k = 0; d->client[i] && k < WIRE_MAX_SESSIONS; k++)
			if (d->client[i]->session[k] && d->client[i]->session[k]->pool == pool)
				sum += excess(d->client[i]->session[k]);
	return sum;
}

/* Caps the largest sessions until together they give up `bytes`. */
static void squeeze(struct daemon *d, struct pool *pool, uint64_t bytes)
{
	uint64_t below = UINT64_MAX, given = 0;
	struct session *s;

	while (given < bytes && (s = largest_excess(d, pool, NULL, below))) {
		uint64_t most = excess(s), part = bytes - given < most ? bytes - given : most;
		uint32_t cap = mean_live(s) - (uint32_t)((part + slot_bytes(s) - 1) / slot_bytes(s));

		below = most;
		given += part;
		d->count.claims++;
		session_claim(s, cap > s->spec.floor ? cap : s->spec.floor);
	}
}

/*
 * Freed pages help a newcomer only as whole slabs: every client that has more than it needs empties one. Sessions move their pages
 * at their next turn, so those that are idle are claimed.
 */
static bool consolidate(struct daemon *d, struct pool *pool)
{
	unsigned index = pool_index(d, pool);
	bool some = false;

	for (unsigned i = 0; i < d->max_clients; i++) {
		struct client *c = d->client[i];

		if (!c || c->gone || !c->owner[index].serial || !pool_drain(pool, &c->owner[index]))
			continue;
		for (uint32_t k = 0; k < WIRE_MAX_SESSIONS && !c->gone; k++)
			if (c->session[k] && c->session[k]->pool == pool && !c->session[k]->opening) {
				d->count.claims++;
				session_claim(c->session[k], c->session[k]->cap);
				some = true;
			}
	}
	return some;
}

static void answer_no(struct daemon *d, struct waiting *w, int status)
{
	d->count.refused++;
	if (status == -ETIMEDOUT)
		client_fail(w->client, w->seq, status, "the pool had no room for the floor of this session for %d ms; others were asked to "
			    "shrink (see: ebbctl sessions)", w->open.wait_ms);
	else
		client_fail(w->client, w->seq, status, "the pool has no room for even the floor of this session, and the others are at "
			    "theirs: close sessions, lower max_tokens or slots, raise [pool] size, or open it with a wait");
}

static void wait_remove(struct daemon *d, struct waiting **link)
{
	struct waiting *w = *link;

	*link = w->next;
	if (d->waiting_tail == &w->next)
		d->waiting_tail = link;
	w->client->waiting_open = false;
	client_forget_lanes(w->client);
	w->pool->wanted--;
	d->n_waiting--;
	free(w);
}

int pressure_wait(struct client *c, uint32_t seq, const struct wire_open *open)
{
	struct daemon *d = c->d;
	struct waiting *w;
	struct pool *pool = session_pool(d, open->pool);	/* there is one: session_open() has looked */
	uint64_t free_bytes, sum, need;

	need = need_bytes(d, open);
	sum = available(d, pool, &free_bytes);
	if (open->wait_ms == 0 && need > free_bytes + sum)
		return -ENOSPC;
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	*w = (struct waiting){ .client = c, .pool = pool, .seq = seq, .open = *open, .patient = open->wait_ms != 0 };
	w->deadline_ns = open->wait_ms < 0 ? UINT64_MAX :
			 now_ns() + (open->wait_ms ? (uint64_t)(unsigned)open->wait_ms * 1000000u : SETTLE_NS);
	*d->waiting_tail = w;
	d->waiting_tail = &w->next;
	d->n_waiting++;
	pool->wanted++;
	c->waiting_open = true;
	log_line(LOG_INFO, "open_waits client=%u pool=%s needs=%llu free=%llu could_shrink=%llu wait_ms=%d", c->id, pool->name,
		 (unsigned long long)need, (unsigned long long)free_bytes, (unsigned long long)sum, open->wait_ms);
	squeeze(d, pool, need + 2 * (uint64_t)pool->slab_bytes);	/* what is freed must add up to whole slabs */
	pressure_retry(d);
	return 0;
}

/* One round over the queue. Returns true if something was opened or asked for, so that another round may help. */
static void try_waiting(struct daemon *d)
{
	bool blocked[WIRE_MAX_POOLS] = { false };
	struct waiting **link = &d->waiting, *w;

	while ((w = *link)) {
		unsigned index = pool_index(d, w->pool);
		char why[WIRE_TEXT];
		int rc = blocked[index] ? -ENOSPC : session_open(w->client, w->seq, &w->open, why, sizeof(why));

		if (rc == -ENOSPC) {
			uint64_t free_bytes;

			if (!blocked[index] && !d->n_claimed && !consolidate(d, w->pool)) {
				if (available(d, w->pool, &free_bytes)) {
					squeeze(d, w->pool, need_bytes(d, &w->open) + 2 * (uint64_t)w->pool->slab_bytes);
				} else if (!w->patient && !w->pool->n_quarantine && !d->n_claimed) {
					answer_no(d, w, -ENOSPC);
					wait_remove(d, link);
					continue;
				}
			}
			blocked[index] = true;
			link = &w->next;
			continue;
		}
		if (rc)
			client_fail(w->client, w->seq, rc, "%s", why);
		wait_remove(d, link);
	}
}

void pressure_retry(struct daemon *d)
{
	static bool busy;	/* what follows can free memory, and so come here again: the round under way will see it */

	if (busy || !d->waiting)
		return;
	busy = true;
	try_waiting(d);
	busy = false;
}

void pressure_forget(struct client *c)
{
	struct waiting **link = &c->d->waiting;

	while (*link)
		if ((*link)->client == c)
			wait_remove(c->d, link);
		else
			link = &(*link)->next;
}

void pressure_tick(struct daemon *d, uint64_t now)
{
	struct waiting **link = &d->waiting;

	pressure_retry(d);
	while (*link) {
		struct waiting *w = *link;

		if (w->deadline_ns > now) {
			link = &w->next;
			continue;
		}
		answer_no(d, w, w->patient ? -ETIMEDOUT : -ENOSPC);
		wait_remove(d, link);
	}
}
