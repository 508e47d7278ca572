/*
 * One policy on a recording. The session is built as the daemon builds one, in one piece of memory: a table, blocks, credit blocks and
 * pages. Then, window by window: its tokens take the slots that were named for them, every slot gets the heat that its position received
 * in the recording, and the daemon's turn follows: plan, select.
 */
#include "replay/replay.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "evict/split.h"
#include "gpu/gpu.h"

#define SLAB_SHIFT 38u		/* one slab holds everything */

struct session {
	const struct recording *r;
	struct evict_spec spec;
	struct evict_split split;
	int heat[EVICT_MAX_HEAT];	/* array of the recording for each of the policy's; -1: what is still to come */
	int mass;			/* array of the recording with the sums */
	struct gpu_device *dev;
	struct gpu_map *map;
	char *memory;
	size_t bytes;
	struct gpu_table *table;
	struct gpu_plan *plan;
	uint32_t *share;		/* [n_lanes]: slots */
	double *work;
	double *future;			/* belady: [n_lanes][tokens] */
	uint32_t max_slots, page_bytes, block_bytes, credit_bytes;
};

/* --- building ------------------------------------------------------------------------------------------------------------------ */

/* Has the recording what the policy wants? */
static int find_heat(struct session *s, bool belady, const char *policy, char *why, size_t why_bytes)
{
	const struct evict_rule *rule = &s->spec.rule;

	s->mass = recording_kind(s->r, EVICT_HEAT_SUM);
	if (s->mass < 0) {
		snprintf(why, why_bytes, "the recording lacks the heat \"sum\", which the attention kept is measured by");
		return -ENOTSUP;
	}
	for (uint32_t k = 0; k < evict_n_heat(rule->policy); k++) {
		s->heat[k] = belady ? -1 : recording_kind(s->r, rule->heat[k]);
		if (s->heat[k] < 0 && !belady) {
			snprintf(why, why_bytes, "%s needs the heat \"%s\", which the recording lacks: record = sum,%s", policy,
				 evict_heat_names[rule->heat[k]], evict_heat_names[rule->heat[k]]);
			return -ENOTSUP;
		}
	}
	if (evict_n_trait(rule->policy) && !s->r->head->kv) {
		snprintf(why, why_bytes, "%s looks at keys or values, which the recording lacks: record = sum,kv", policy);
		return -ENOTSUP;
	}
	return 0;
}

static int set_spec(struct session *s, const struct attempt *a, char *why, size_t why_bytes)
{
	const struct evict_record_head *h = s->r->head;
	struct evict_spec *spec = &s->spec;
	bool belady = strcmp(a->policy, "belady") == 0;
	int rc = evict_parse(belady ? "tova" : a->policy, &spec->rule, why, why_bytes);	/* tova: worth is what the last heat says */
	const struct evict_split_info *split;

	if (!rc)
		rc = find_heat(s, belady, a->policy, why, why_bytes);
	if (!rc)
		rc = evict_split_parse(a->split, &s->split, why, why_bytes);
	if (rc)
		return rc;
	split = &evict_splits[s->split.id];
	if (split->needs) {
		snprintf(why, why_bytes, "split %s needs %s, which a replay does not have", a->split,
			 split->needs & EVICT_NEEDS_TABLE ? "a table of lanes" : "statistics of the session");
		return -ENOTSUP;
	}
	spec->rule.sinks = (int32_t)h->sinks;
	spec->rule.pinned = evict_policies[spec->rule.policy].pin_prompt ? (int32_t)h->prompt_tokens : 0;
	spec->rule.seed = a->seed;
	spec->rule.group = h->group;
	spec->budget = (struct evict_amount){ .count = a->budget };
	spec->recent = a->recent;
	spec->window = h->window;
	spec->prefill = EVICT_CHUNKED;
	spec->prompt_tokens = h->prompt_tokens;
	spec->max_slots = s->r->tokens + h->window;
	spec->floor = h->floor > h->sinks + h->window ? h->floor : h->sinks + h->window;
	if (evict_policies[spec->rule.policy].never_evicts || spec->floor > spec->max_slots)
		spec->floor = spec->max_slots;
	return 0;
}

/* Everything side by side; ids count GPU_UNITs from the start. Called without memory to learn how much is needed, then with it. */
static size_t lay_out(struct session *s, bool write)
{
	const struct evict_record_head *h = s->r->head;
	struct gpu_table t = { .n_lanes = s->r->n_lanes, .window = h->window, .max_pages = gpu_pages_for(s->max_slots),
			       .max_blocks = gpu_blocks_for(s->max_slots), .n_heat = evict_n_heat(s->spec.rule.policy),
			       .heat = { s->spec.rule.heat[0], s->spec.rule.heat[1] }, .observe = h->observe };
	size_t at = (gpu_table_private_bytes(&t) + GPU_UNIT - 1) / GPU_UNIT * GPU_UNIT;
	struct { size_t first; uint32_t n, bytes; } part[] = {
		{ gpu_table_pages(&t), t.max_pages, s->page_bytes }, { gpu_table_blocks(&t), t.max_blocks, s->block_bytes },
		{ gpu_table_credits(&t), t.max_blocks, s->credit_bytes },
	};

	if (write)
		*s->table = t;
	for (unsigned k = 0; k < 3; k++) {
		uint64_t n = (uint64_t)t.n_lanes * part[k].n;

		for (uint64_t i = 0; write && i < n; i++) {
			uint32_t id = (uint32_t)((at + i * part[k].bytes) / GPU_UNIT);

			memcpy(s->memory + part[k].first + i * 4u, &id, 4);
		}
		at += n * part[k].bytes;
	}
	return at;
}

static int build(struct session *s, const struct attempt *a)
{
	const struct evict_record_head *h = s->r->head;
	uint64_t most = (uint64_t)a->budget + h->window;	/* slots that a lane can come to hold; a split may give one lane more */
	int rc;

	most = s->split.id == EVICT_SPLIT_uniform && most < s->spec.max_slots && !evict_policies[s->spec.rule.policy].never_evicts ?
		(most > s->spec.floor + h->window ? most : s->spec.floor + h->window) : s->spec.max_slots;
	s->max_slots = (uint32_t)most;
	if (s->spec.max_slots > s->max_slots)
		s->spec.max_slots = s->max_slots;
	s->page_bytes = gpu_page_bytes(h->slot_type, h->head_dim);
	s->block_bytes = gpu_block_bytes(evict_n_heat(s->spec.rule.policy));
	s->credit_bytes = gpu_block_bytes(evict_n_arrays(s->spec.rule.policy));
	s->bytes = (lay_out(s, false) + 4095u) / 4096u * 4096u;
	s->memory = aligned_alloc(4096, s->bytes);
	s->plan = calloc(s->r->n_lanes, sizeof(*s->plan));
	s->share = calloc(s->r->n_lanes, sizeof(*s->share));
	s->work = calloc(s->r->n_lanes, sizeof(*s->work));
	if (!s->memory || !s->plan || !s->share || !s->work)
		return -ENOMEM;
	memset(s->memory, 0, s->bytes);
	s->table = (struct gpu_table *)(void *)s->memory;
	lay_out(s, true);
	rc = gpu_open(&s->dev, "host");
	if (!rc)
		rc = gpu_map_new(s->dev, 1, SLAB_SHIFT, &s->map);
	return rc ? rc : gpu_map_set(s->map, NULL, 0, s->memory);
}

static void clear(struct session *s)
{
	if (s->map)
		gpu_map_free(s->dev, s->map);
	gpu_close(s->dev);
	free(s->memory);
	free(s->plan);
	free(s->share);
	free(s->work);
	free(s->future);
}

/* Belady knows: what every position receives over the whole recording. */
static int look_ahead(struct session *s)
{
	const struct recording *r = s->r;

	s->future = calloc((size_t)r->n_lanes * r->tokens, sizeof(*s->future));
	if (!s->future)
		return -ENOMEM;
	for (uint32_t w = 0; w < r->n_windows; w++)
		for (uint32_t lane = 0; lane < r->n_lanes; lane++) {
			const char *heat = recording_heat(r, w, (uint32_t)s->mass, lane);
			struct evict_record_window head = recording_window(r, w);
			double *future = s->future + (size_t)lane * r->tokens;

			for (uint32_t pos = 0; pos < head.base + head.appended; pos++) {
				float x;

				memcpy(&x, heat + (size_t)pos * 4u, 4);
				future[pos] += (double)x;
			}
		}
	return 0;
}

/* --- a window -------------------------------------------------------------------------------------------------------------------- */

static struct gpu_lane *lane_of(const struct session *s, uint32_t lane)
{
	return (struct gpu_lane *)(void *)(s->memory + gpu_table_lanes()) + lane;
}

static char *at_id(const struct session *s, size_t row, uint32_t per_lane, uint32_t lane, uint32_t i)
{
	uint32_t id;

	memcpy(&id, s->memory + row + ((size_t)lane * per_lane + i) * 4u, 4);
	return s->memory + (size_t)id * GPU_UNIT;
}

static char *block_of(const struct session *s, uint32_t lane, uint32_t b)
{
	return at_id(s, gpu_table_blocks(s->table), s->table->max_blocks, lane, b);
}

static void put_rows(const struct session *s, uint32_t window, uint32_t lane, uint32_t j, uint32_t slot)
{
	const struct evict_record_head *h = s->r->head;
	const struct gpu_parts part = gpu_page_parts(h->slot_type, h->head_dim);
	char *page = at_id(s, gpu_table_pages(s->table), s->table->max_pages, lane, slot / GPU_PAGE_SLOTS);

	for (uint32_t k = 0; k < 4; k++)
		memcpy(page + part.at[k] + slot % GPU_PAGE_SLOTS * part.bytes[k],
		       recording_rows(s->r, window, k, lane) + (size_t)j * part.bytes[k], part.bytes[k]);
}

/* The window's tokens go where append would put them. */
static void append(const struct session *s, uint32_t window, const struct evict_record_window *w, uint32_t lane)
{
	const uint32_t *next = (const uint32_t *)(const void *)(s->memory + gpu_table_next(s->table)) + (size_t)lane * s->table->window;

	for (uint32_t j = 0; j < w->appended; j++) {
		uint32_t slot = gpu_slot_of(*lane_of(s, lane), next, j);
		int32_t *pos = (int32_t *)(void *)block_of(s, lane, slot / GPU_BLOCK_SLOTS);

		pos[slot % GPU_BLOCK_SLOTS] = (int32_t)(w->base + j);
		if (evict_n_trait(s->spec.rule.policy))
			put_rows(s, window, lane, j, slot);
	}
}

/* Gives every live slot its heat; returns the attention that the lane's slots received in the full cache. */
static double attend(const struct session *s, uint32_t window, const struct evict_record_window *w, uint32_t lane)
{
	const uint32_t live = gpu_live(*lane_of(s, lane), w->appended), n_heat = s->table->n_heat;
	const char *mass = recording_heat(s->r, window, (uint32_t)s->mass, lane);
	const char *from[EVICT_MAX_HEAT] = { NULL };
	double *future = s->future ? s->future + (size_t)lane * s->r->tokens : NULL, kept = 0.0;

	for (uint32_t k = 0; k < n_heat; k++)
		from[k] = s->heat[k] >= 0 ? recording_heat(s->r, window, (uint32_t)s->heat[k], lane) : NULL;
	for (uint32_t pos = 0; future && pos < w->base + w->appended; pos++) {
		float x;

		memcpy(&x, mass + (size_t)pos * 4u, 4);
		future[pos] -= (double)x;
	}
	for (uint32_t first = 0; first < live; first += GPU_BLOCK_SLOTS) {
		char *block = block_of(s, lane, first / GPU_BLOCK_SLOTS);
		const int32_t *pos = (const int32_t *)(const void *)block;
		float *heat = (float *)(void *)(block + GPU_BLOCK_SLOTS * 4u);
		uint32_t n = live - first < GPU_BLOCK_SLOTS ? live - first : GPU_BLOCK_SLOTS;

		for (uint32_t i = 0; i < n; i++) {
			float x;

			memcpy(&x, mass + (size_t)pos[i] * 4u, 4);
			kept += (double)x;
		}
		for (uint32_t k = 0; k < n_heat; k++, heat += GPU_BLOCK_SLOTS)
			for (uint32_t i = 0; i < n; i++) {
				if (from[k])
					memcpy(&heat[i], from[k] + (size_t)pos[i] * 4u, 4);
				else
					heat[i] = future[pos[i]] > 0.0 ? (float)future[pos[i]] : 0.0f;
			}
	}
	return kept;
}

static uint32_t budgets(struct session *s, uint32_t tokens)
{
	const struct evict_record_head *h = s->r->head;
	uint32_t each = evict_budget(&s->spec, tokens, 0);
	struct evict_split_in in = { .n_layers = h->n_layers, .n_kv_heads = h->n_kv_heads, .total = (uint64_t)each * s->r->n_lanes,
				     .floor = s->spec.floor, .ceiling = s->spec.max_slots, .window = h->window };

	if (s->split.id != EVICT_SPLIT_uniform) {
		evict_split(&s->split, &in, s->share, s->work);
		return each;
	}
	for (uint32_t lane = 0; lane < s->r->n_lanes; lane++)
		s->share[lane] = each;
	return each;
}

/* The daemon's turn, after `appended` tokens from position `pos` on. */
static int turn(struct session *s, uint32_t pos, uint32_t appended)
{
	struct gpu_turn t = { .priv = s->memory, .plan = s->plan, .n_lanes = s->r->n_lanes, .appended = appended, .pos = (int32_t)pos,
			      .rule = s->spec.rule, .n_credit = evict_n_arrays(s->spec.rule.policy),
			      .slot_type = s->r->head->slot_type, .head_dim = s->r->head->head_dim };
	struct evict_state state = { .tokens = pos + appended };
	unsigned what = GPU_SETTLE | GPU_FOLD | GPU_NEXT;

	t.rule.budget = budgets(s, pos + appended);
	for (uint32_t lane = 0; lane < s->r->n_lanes; lane++) {
		uint32_t live = gpu_live(*lane_of(s, lane), appended);
		struct evict_lane_plan p;
		int rc = evict_plan_lane(&s->spec, &state, s->table->window, s->share[lane], live, s->max_slots, &p);

		if (rc)
			return rc;
		s->plan[lane] = (struct gpu_plan){ p.keep, p.fresh, p.victims, p.recent };
		if (p.keep < live)
			what |= GPU_REMOVE | GPU_COMPACT;
	}
	return gpu_select(s->dev, NULL, s->map, &t, 1, what, NULL);
}

/* --- the whole --------------------------------------------------------------------------------------------------------------------- */

static int take_kept(const struct session *s, uint32_t appended, struct outcome *out)
{
	uint32_t n_lanes = s->r->n_lanes;

	out->kept_room = s->max_slots;
	out->kept = malloc((size_t)n_lanes * s->max_slots * sizeof(*out->kept));
	out->n_kept = calloc(n_lanes, sizeof(*out->n_kept));
	if (!out->kept || !out->n_kept)
		return -ENOMEM;
	for (uint32_t lane = 0; lane < n_lanes; lane++) {
		out->n_kept[lane] = gpu_live(*lane_of(s, lane), appended);
		for (uint32_t i = 0; i < out->n_kept[lane]; i++)
			memcpy(&out->kept[(size_t)lane * s->max_slots + i],
			       block_of(s, lane, i / GPU_BLOCK_SLOTS) + i % GPU_BLOCK_SLOTS * 4u, 4);
	}
	return 0;
}

static int replay(struct session *s, uint32_t from, bool want_kept, struct outcome *out)
{
	const struct recording *r = s->r;
	double kept = 0.0, queries = 0.0;
	int rc = turn(s, 0, 0);

	for (uint32_t i = 0; i < r->n_windows && !rc; i++) {
		struct evict_record_window w = recording_window(r, i);
		double mass = 0.0;

		for (uint32_t lane = 0; lane < r->n_lanes; lane++) {
			append(s, i, &w, lane);
			mass += attend(s, i, &w, lane);
		}
		if (w.base >= from) {
			/* What all slots of the full cache received is the number of queries that were observed. */
			for (uint32_t j = 0; j < w.appended; j++)
				queries += (w.base + j) % r->head->observe == 0 ? (double)r->n_lanes * r->head->group : 0.0;
			kept += mass;
		}
		if (i + 1 == r->n_windows && want_kept)
			rc = take_kept(s, w.appended, out);
		if (!rc)
			rc = turn(s, w.base, w.appended);
	}
	out->mass_kept = queries > 0.0 ? kept / queries : (double)NAN;
	out->windows = r->n_windows;
	return rc;
}

int try_policy(const struct recording *r, const struct attempt *a, bool want_kept, struct outcome *out, char *why, size_t why_bytes)
{
	struct session s = { .r = r };
	struct timespec t0, t1;
	int rc;

	memset(out, 0, sizeof(*out));
	rc = set_spec(&s, a, why, why_bytes);
	if (rc)
		return rc;
	rc = build(&s, a);
	if (!rc && strcmp(a->policy, "belady") == 0)
		rc = look_ahead(&s);
	clock_gettime(CLOCK_MONOTONIC, &t0);
	if (!rc)
		rc = replay(&s, a->budget, want_kept, out);
	clock_gettime(CLOCK_MONOTONIC, &t1);
	out->seconds = (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
	clear(&s);
	if (rc) {
		snprintf(why, why_bytes, "%s", strerror(-rc));
		free(out->kept);
		free(out->n_kept);
		out->kept = NULL;
		out->n_kept = NULL;
	}
	return rc;
}
