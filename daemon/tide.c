/*
 * The tide of a pool ([pool NAME] tide = on): one threshold on the expected loss of a slot (evict/tide.h), weighted by the priority of
 * the client's user, says how many slots a lane of each session may hold. It takes the place of evening out sizes when the pool is short.
 *
 * What a slot is worth to a session says the lane table of its model, for as many tokens as it has (budget_curve()); how much more or
 * less than to others of that model, its own attention: every fourth turn takes statistics of its lanes' heat. Once all sessions of
 * the pool have had a turn on average, the threshold is found anew; each session then moves towards its size turn by turn
 * (evict_tide_step()), and those that hold more and are idle are claimed when the pool is short. A session whose attention is not known
 * yet counts as the mean of those of its model.
 */
#include "daemon/daemon.h"

#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVERY 4			/* turns from one look at the heat to the next */
#define FRESH 0.25f		/* what a new look counts against what was known */
#define MOSTLY 0.75f		/* of its tokens: a session that holds more has lost too little to learn from */
#define APART 2.0f		/* octaves: no session counts more than this against the mean of its kin, or less */
#define MANY 8.0f		/* log2 of the slots at which sessions are compared that have no curve in common */

bool tide_on(const struct session *s)
{
	const struct daemon *d = s->client->d;

	return d->conf.pool[pool_index(d, s->pool)].tide;
}

/* --- priorities -------------------------------------------------------------------------------------------------------------------- */

static int parse_one(const char *at, size_t n, uid_t *uid, float *weight)
{
	char name[64], *colon, *end;
	const struct passwd *user;
	unsigned long number;

	if (n >= sizeof(name))
		return -EINVAL;
	memcpy(name, at, n);
	name[n] = '\0';
	colon = strchr(name, ':');
	if (!colon || colon == name)
		return -EINVAL;
	*colon = '\0';
	*weight = strtof(colon + 1, &end);
	if (end == colon + 1 || *end || !(*weight >= 0.001f && *weight <= 1000.0f))
		return -EINVAL;
	number = strtoul(name, &end, 10);
	user = *end ? getpwnam(name) : NULL;
	if (*end && !user)
		return -ENOENT;
	*uid = user ? user->pw_uid : (uid_t)number;
	return 0;
}

int tide_priorities(const char *text, struct priority *out, unsigned most, unsigned *n, char *why, size_t why_bytes)
{
	*n = 0;
	for (size_t used; *text; text += used + (text[used] == ',')) {
		struct priority p;
		int rc;

		used = strcspn(text, ",");
		rc = *n == most ? -E2BIG : parse_one(text, used, &p.uid, &p.weight);
		if (rc) {
			snprintf(why, why_bytes, "found '%.*s'; allowed: USER:WEIGHT,... with at most %u users that this machine knows (or their "
				 "numbers) and weights 0.001 .. 1000", (int)used, text, most);
			return -EINVAL;
		}
		out[(*n)++] = p;
	}
	return 0;
}

float tide_weight(const struct client *c)
{
	for (unsigned i = 0; i < c->d->n_priorities; i++)
		if (c->d->priority[i].uid == c->uid)
			return c->d->priority[i].weight;
	return 1.0f;
}

/* --- what a session would miss -------------------------------------------------------------------------------------------------------- */

/* Which of the table's heat arrays is a sum; >= n_heat: none. */
static uint32_t sum_at(const struct session *s)
{
	uint32_t at = 0;

	while (at < s->table.n_heat && s->table.heat[at] != EVICT_HEAT_SUM)
		at++;
	return at;
}

void tide_measure(struct session *s, struct gpu_turn *turn)
{
	const uint32_t at = sum_at(s);
	void *stats = s->tide.stats;

	s->tide.measured = false;
	if (!tide_on(s) || s->windows % EVERY || at >= s->table.n_heat || !s->asked.observe || !s->appended || !(s->what & GPU_FOLD))
		return;
	if (turn->stats) {		/* the split measures in this turn: the same will do, if it looks at the same heat */
		if (turn->stats_heat[0] != at && turn->stats_heat[0] < s->table.n_heat)
			return;
		turn->stats_heat[0] = at;
		turn->stats |= EVICT_STATS_HEAT;
		s->tide.from = turn->lane_stats;
	} else {
		if (!stats && gpu_host_alloc(s->pool->dev, s->table.n_lanes * sizeof(*s->tide.stats), &stats))
			return;
		s->tide.stats = stats;
		s->tide.from = s->tide.stats;
		turn->stats = EVICT_STATS_HEAT;
		turn->lane_stats = s->tide.stats;
		turn->stats_heat[0] = at;
		turn->stats_heat[1] = GPU_MAX_HEAT;
	}
	s->tide.measured = true;
}

/* What a slot is worth without a table, up to a factor. */
static const struct evict_curve plain = { .n = 1 };

static const struct evict_curve *curve_of(const struct session *s)
{
	const struct evict_curve *c = budget_curve(s);

	return c ? c : &plain;
}

void tide_learn(struct session *s)
{
	const uint32_t queries = evict_queries(s->asked.observe, (int32_t)s->pos, s->appended) * s->group;
	float heat, live, now;

	if (!s->tide.measured)
		return;
	s->tide.measured = false;
	if (evict_tide_heat(s->tide.from, s->table.n_lanes, queries, &heat, &live))
		return;
	/* Near the floor a table's curve is that of a few lanes, and it ends where lanes have all tokens. Attention knows of neither. */
	if (budget_curve(s) && (live < 1.0f + evict_log2((float)s->spec.floor) || live > evict_log2(MOSTLY * (float)s->tokens)))
		return;
	now = heat - evict_curve_loss(curve_of(s), live);
	s->tide.own = s->tide.known ? s->tide.own + FRESH * (now - s->tide.own) : now;
	s->tide.known = true;
}

float tide_misses(const struct session *s)
{
	return evict_curve_loss(curve_of(s), evict_log2((float)s->budget)) + s->tide.factor;
}

void tide_free(struct session *s)
{
	if (s->tide.stats)
		gpu_host_free(s->pool->dev, s->tide.stats);
	s->tide.stats = NULL;
}

/* --- the threshold -------------------------------------------------------------------------------------------------------------------- */

static bool takes_part(const struct session *s, const struct pool *pool)
{
	return s && s->pool == pool && !s->closing && !evict_policies[s->spec.rule.policy].never_evicts;
}

/* Of one slot in every lane: its share of a page, a block and a credit block. */
static uint32_t slot_bytes(const struct session *s)
{
	return s->table.n_lanes * (s->page_bytes / GPU_PAGE_SLOTS + (s->block_bytes + s->credit_bytes) / GPU_BLOCK_SLOTS);
}

/* What the lanes of a session take, as they are: all but this is out of the tide's reach. */
static uint64_t lane_bytes(const struct session *s)
{
	uint64_t sum = 0;

	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		sum += (uint64_t)s->lane[lane].n_pages * s->page_bytes +
		       (uint64_t)s->lane[lane].n_blocks * (s->block_bytes + s->credit_bytes);
	return sum;
}

/* Slots that it would hold if there were no tide. */
static uint32_t wish_of(const struct session *s)
{
	const uint32_t own = evict_budget(&s->spec, s->tokens, 0), most = s->tokens + TIDE_AHEAD * s->table.window, floor = s->spec.floor;

	return own > most ? (most > floor ? most : floor) : own;
}

/* Sessions that have a curve in common: those of one model with a table, or all that have none. */
struct kin {
	const struct session *of;	/* one of them; NULL: those without a table */
	float own;			/* sum, then mean, over those that are known */
	uint32_t known;
};

struct round {
	struct evict_tide_session *in;
	struct session **who;
	uint32_t *kin_of;
	struct kin *kin;		/* [n_kin]; the first is those without a table */
	uint32_t n, n_kin;
	uint64_t other;			/* bytes that the tide has no say in */
};

static uint32_t find_kin(struct round *r, const struct session *s, bool table)
{
	uint32_t k = 1;

	if (!table)
		return 0;
	while (k < r->n_kin && (r->kin[k].of->n_layers != s->n_layers || r->kin[k].of->n_kv_heads != s->n_kv_heads ||
				strcmp(r->kin[k].of->model, s->model) != 0))
		k++;
	if (k == r->n_kin)
		r->kin[r->n_kin++] = (struct kin){ .of = s };
	return k;
}

static void add(struct round *r, struct session *s)
{
	const uint32_t lanes = s->table.n_lanes, floor = s->spec.floor, wish = wish_of(s);
	struct kin *kin = &r->kin[r->kin_of[r->n] = find_kin(r, s, budget_curve(s) != NULL)];

	r->in[r->n] = (struct evict_tide_session){ .curve = *curve_of(s), .weight = tide_weight(s->client), .slot_bytes = slot_bytes(s),
						   .floor = floor < wish ? floor : wish, .ceiling = wish };
	r->who[r->n++] = s;
	/* A lane ends within a page, and within a block. */
	r->other += (uint64_t)lanes * (s->page_bytes / 2 + (s->block_bytes + s->credit_bytes) / 2);
	if (s->tide.known) {
		kin->own += s->tide.own;
		kin->known++;
	}
}

/*
 * Within kin a session counts by what its attention says against the others': a table's nats stay nats. Those without a table are known by
 * attention alone; it is taken to be worth as many nats as with those that have one.
 */
static void compare(struct round *r)
{
	float nats = 0.0f, others = 0.0f;
	uint32_t n_nats = 0, n_others = 0;

	for (uint32_t k = 0; k < r->n_kin; k++) {
		nats += k ? r->kin[k].own : 0.0f;
		n_nats += k ? r->kin[k].known : 0;
		r->kin[k].own /= r->kin[k].known ? (float)r->kin[k].known : 1.0f;
	}
	nats /= n_nats ? (float)n_nats : 1.0f;
	for (uint32_t i = 0; i < r->n; i++) {
		const struct session *s = r->who[i];
		const struct kin *kin = &r->kin[r->kin_of[i]];

		r->in[i].factor = s->tide.known ? evict_min(evict_max(s->tide.own - kin->own, -APART), APART) : 0.0f;
		if (!r->kin_of[i])
			r->in[i].factor += kin->own - nats;
		if (kin->known || r->kin_of[i]) {
			others += evict_curve_loss(&r->in[i].curve, MANY) + r->in[i].factor;
			n_others++;
		}
	}
	for (uint32_t i = 0; i < r->n; i++) {
		if (!r->kin_of[i] && !r->kin[0].known)	/* nothing is known of it or its like */
			r->in[i].factor = (n_others ? others / (float)n_others : 0.0f) - evict_curve_loss(&plain, MANY);
		r->who[i]->tide.factor = r->in[i].factor;
		r->in[i].factor += evict_log2((float)r->who[i]->table.n_lanes);		/* curves are of a lane */
	}
}

static bool collect(struct daemon *d, struct pool *pool, struct round *r)
{
	const unsigned index = pool_index(d, pool);
	uint32_t most = 0;

	for (unsigned i = 0; i < d->max_clients; i++)
		most += d->client[i] ? d->client[i]->n_sessions : 0;
	*r = (struct round){ .in = calloc(most + 1, sizeof(*r->in)), .who = calloc(most + 1, sizeof(struct session *)),
			     .kin_of = calloc(most + 1, sizeof(*r->kin_of)), .kin = calloc(most + 2, sizeof(*r->kin)), .n_kin = 1 };
	if (!r->in || !r->who || !r->kin_of || !r->kin)
		return false;
	r->other = pool->used_bytes;
	for (unsigned i = 0; i < d->max_clients; i++) {
		struct client *c = d->client[i];

		if (!c || !c->owner[index].serial)
			continue;
		r->other += pool->slab_bytes / 2;	/* its last slab is half empty, on average */
		for (uint32_t k = 0, left = c->n_sessions; left && k < WIRE_MAX_SESSIONS; k++) {
			left -= c->session[k] != NULL;
			if (takes_part(c->session[k], pool)) {
				add(r, c->session[k]);
				r->other -= lane_bytes(c->session[k]);
			}
		}
	}
	return true;
}

static void turn_tide(struct daemon *d, struct pool *pool)
{
	struct tide_level *t = &d->tide[pool_index(d, pool)];
	const uint64_t most = pool->size_bytes - pool->size_bytes / 32;	/* sizes are kept to a 16th only (evict_tide_step()) */
	struct round r;

	if (collect(d, pool, &r)) {
		compare(&r);
		t->bytes = most > r.other ? most - r.other : 0;
		t->level = evict_tide(r.in, r.n, t->bytes);
		t->n = r.n;
		t->rounds++;
		for (uint32_t i = 0; i < r.n; i++)
			r.who[i]->tide.wish = t->level > EVICT_LOW_TIDE ? r.in[i].slots : 0;
	}
	free(r.in);
	free(r.who);
	free(r.kin_of);
	free(r.kin);
}

/* Those that hold more and are idle give it back when they are asked. `but` is in the middle of its turn. */
static void claim_idle(struct daemon *d, struct pool *pool, const struct session *but)
{
	static bool busy;	/* a claim of an idle session is its turn, which may come here: `but` of the outer round is not to be claimed either */

	if (busy || d->n_claimed || !pressure_short(pool))
		return;
	busy = true;
	for (unsigned i = 0; i < d->max_clients; i++)
		for (uint32_t k = 0; d->client[i] && !d->client[i]->gone && k < WIRE_MAX_SESSIONS; k++) {
			struct session *s = d->client[i]->session[k];

			if (s != but && takes_part(s, pool) && s->state == SESSION_CLIENT && s->tide.wish &&
			    s->live / s->table.n_lanes > s->tide.wish + s->tide.wish / 8) {
				d->count.claims++;
				session_claim(s, 0);
			}
		}
	busy = false;
}

void tide_turn(struct session *s)
{
	struct daemon *d = s->client->d;
	struct tide_level *t = &d->tide[pool_index(d, s->pool)];
	const uint32_t wish = wish_of(s), floor = s->spec.floor < wish ? s->spec.floor : wish;
	uint32_t now = s->tide.slots ? s->tide.slots : s->budget;

	s->tide.slots = 0;
	if (!tide_on(s) || !takes_part(s, s->pool)) {
		s->tide.wish = 0;
		return;
	}
	if (t->turns++ >= t->n) {
		t->turns = 0;
		turn_tide(d, s->pool);
		claim_idle(d, s->pool, s);
	}
	/* What it was granted and found no pages for is not what it has. */
	if (s->starved && now > s->live / s->table.n_lanes + s->table.window)
		now = (uint32_t)(s->live / s->table.n_lanes) + s->table.window;
	/* A cap made room for somebody who is in now: the threshold knows of him. */
	if (s->tide.wish && !s->pool->wanted)
		s->cap = 0;
	if (s->tide.wish)
		s->tide.slots = evict_tide_step(now > wish || !now ? wish : now, s->tide.wish, s->table.window, floor, wish);
	/* While not one slab is free somebody may be waiting for just that 16th. */
	if (s->tide.wish >= floor && s->tide.wish < s->tide.slots && s->tide.slots == now && !s->pool->n_free)
		s->tide.slots = s->tide.wish;
}

uint32_t tide_cap(const struct session *s)
{
	return s->cap && (!s->tide.slots || s->cap < s->tide.slots) ? s->cap : s->tide.slots;
}
