/*
 * What a policy does to the slots of one lane: folds, keys, figures over the lane, values pooled over neighbours. The policy is a
 * constant in every inner loop. evict/rule.h says what happens and in which order sums are taken.
 */
#ifndef GPU_HOST_K_POLICY_H
#define GPU_HOST_K_POLICY_H

#include "gpu/host/kernels.h"

struct selection {
	struct host_select *sel;
	const struct gpu_turn *turn;
	const struct gpu_plan *plan;
	struct lane_view v;
	const struct gpu_table *t;
	uint32_t live;			/* before compaction */
	struct evict_lane lane;
	struct host_stage stage;	/* scratch of a staged policy */
	/* The `room` smallest keys so far: a heap with the largest on top. */
	uint64_t *key;
	uint32_t *slot;
	uint32_t n, room;
	struct stats_sums *sums;	/* k_stats.h: NULL while no statistics are taken */
};

/* The arrays of one block, with stand-ins for heat that nobody collects. */
struct arrays {
	const int32_t *pos;
	float *heat[EVICT_MAX_HEAT];
	float *credit[EVICT_MAX_ARRAYS + 1];	/* credits, then traits */
	const float *pooled;		/* or places */
	const uint32_t *mark;		/* for policies that look at tags */
};

struct zeros {
	float x[EVICT_MAX_HEAT][GPU_BLOCK_SLOTS];
};

static int32_t pos_at(const struct selection *s, uint32_t slot)
{
	return credit_pos(&s->v, slot / GPU_BLOCK_SLOTS)[slot % GPU_BLOCK_SLOTS];
}

/* What the client said of the token at this position (evict/mark.h). */
VFN uint32_t mark_of(const struct selection *s, int32_t pos)
{
	return s->turn->marks && (uint32_t)pos < s->turn->n_marks ? s->turn->marks[pos] : 0;
}

static const uint32_t no_marks[GPU_BLOCK_SLOTS];

static void block_arrays(const struct selection *s, uint32_t b, struct zeros *zeros, struct arrays *a)
{
	a->pos = credit_pos(&s->v, b);
	for (uint32_t k = 0; k < EVICT_MAX_HEAT; k++)
		a->heat[k] = k < s->t->n_heat ? block_heat(&s->v, b, k) : zeros->x[k];
	for (uint32_t k = 0; k < s->turn->n_credit; k++)
		a->credit[k] = credit_of(&s->v, b, k);
	a->mark = no_marks;
	a->pooled = s->stage.pooled + (size_t)b * GPU_BLOCK_SLOTS;	/* looked at by policies that pool alone */
}

/* Slot i of the block. The counts are constants, so what a policy does not have is not read. No heat. */
VFN struct evict_slot slot_at(const struct arrays *a, uint32_t i, uint32_t nc, uint32_t nt)
{
	struct evict_slot slot = { .pos = a->pos[i] };

	if (nc > 0)
		slot.credit[0] = a->credit[0][i];
	if (nc > 1)
		slot.credit[1] = a->credit[1][i];
	if (nt > 0)
		slot.trait[0] = a->credit[nc][i];
	if (nt > 1)
		slot.trait[1] = a->credit[nc + 1][i];
	return slot;
}

/* A copy whose policy is a constant, and so is its exponent of age when that is 0. */
VFN struct evict_rule constant_rule(const struct evict_rule *from, uint32_t policy, int aged)
{
	struct evict_rule rule = { .policy = policy, .sinks = from->sinks, .pinned = from->pinned, .seed = from->seed,
				   .group = from->group };

	UNROLL for (uint32_t i = 0; i < EVICT_MAX_PARAMS; i++)
		rule.param[i] = from->param[i];
	if (evict_has_age(policy) && !aged)
		rule.param[0] = 0.0f;
	return rule;
}

/* aged, fold and want_keys are constants. Written so that the compiler vectorises it. */
VFN void block_policy(uint32_t policy, uint32_t nh, uint32_t nc, uint32_t nt, int aged, int fold, int want_keys,
		      const struct selection *s, const struct arrays *a, uint32_t n, uint64_t *restrict keys)
{
	const struct evict_rule rule = constant_rule(&s->turn->rule, policy, aged);
	const struct evict_lane lane = s->lane;
	const int32_t *restrict pos = a->pos;
	float *restrict h0 = a->heat[0], *restrict h1 = a->heat[1];
	float *restrict c0 = a->credit[0], *restrict c1 = a->credit[1];
	const float *restrict t0 = a->credit[nc], *restrict t1 = a->credit[nc + 1], *restrict pooled = a->pooled;
	const uint32_t *restrict mark = a->mark;
	const uint32_t recent = s->plan->recent;

	for (uint32_t i = 0; i < n; i++) {
		struct evict_slot slot = { .pos = pos[i] };

		if (nc > 0)
			slot.credit[0] = c0[i];
		if (nc > 1)
			slot.credit[1] = c1[i];
		if (nt > 0)
			slot.trait[0] = t0[i];
		if (nt > 1)
			slot.trait[1] = t1[i];
		if (evict_has_pool(policy))
			slot.pooled = pooled[i];
		if (evict_has_place(policy))
			slot.place = pooled[i];
		if (evict_has_tag(policy))
			slot.tag = evict_mark_tag(mark[i]);
		if (fold) {
			if (nh > 0) {
				slot.heat[0] = evict_clean(h0[i]);
				h0[i] = 0.0f;
			}
			if (nh > 1) {
				slot.heat[1] = evict_clean(h1[i]);
				h1[i] = 0.0f;
			}
			evict_fold(&rule, &lane, &slot);
			if (nc > 0)
				c0[i] = slot.credit[0];
			if (nc > 1)
				c1[i] = slot.credit[1];
		}
		if (want_keys)
			keys[i] = evict_key(&rule, &lane, recent, &slot);
	}
}

#if HOST_ONE_BODY
#define POLICY(name, nh, nc, nt)											\
static void policy_##name(const struct selection *s, const struct arrays *a, uint32_t n, int fold, uint64_t *keys)		\
{															\
	block_policy(EVICT_##name, nh, nc, nt, 1, fold, keys != NULL, s, a, n, keys);						\
}
#else
#define POLICY(name, nh, nc, nt)											\
static void policy_##name(const struct selection *s, const struct arrays *a, uint32_t n, int fold, uint64_t *keys)		\
{															\
	const int aged = evict_has_age(EVICT_##name) && s->turn->rule.param[0] != 0.0f;					\
															\
	if (fold && keys && aged)											\
		block_policy(EVICT_##name, nh, nc, nt, 1, 1, 1, s, a, n, keys);						\
	else if (fold && keys)												\
		block_policy(EVICT_##name, nh, nc, nt, 0, 1, 1, s, a, n, keys);						\
	else if (fold)													\
		block_policy(EVICT_##name, nh, nc, nt, 1, 1, 0, s, a, n, keys);						\
	else if (keys)													\
		block_policy(EVICT_##name, nh, nc, nt, 1, 0, 1, s, a, n, keys);						\
}
#endif
EVICT_POLICIES(POLICY)
#undef POLICY

static void run_policy(const struct selection *s, const struct arrays *a, uint32_t n, int fold, uint64_t *keys)
{
	switch (s->turn->rule.policy) {
#define CASE(name, nh, nc, nt) case EVICT_##name: policy_##name(s, a, n, fold, keys); break;
	EVICT_POLICIES(CASE)
#undef CASE
	default: break;
	}
}

/* --- before the ranking: figures and pooled values ----------------------------------------------------------------------------- */

/* value[i] of the slots of one block; which: 0 the heat figure, 1 the figure, 2 what is pooled, 3 what places go by. */
static void block_values_of(const struct selection *s, const struct arrays *a, uint32_t n, int which, float *value)
{
	const struct evict_rule *rule = &s->turn->rule;
	const uint32_t p = rule->policy, nh = which ? 0 : evict_n_heat(p), nc = evict_n_credit(p), nt = evict_n_trait(p);

	for (uint32_t i = 0; i < n; i++) {
		struct evict_slot slot = slot_at(a, i, nc, nt);

		for (uint32_t k = 0; k < nh; k++)
			slot.heat[k] = evict_clean(a->heat[k][i]);
		value[i] = which == 0 ? evict_heat_figure(rule, &s->lane, &slot) :
			   which == 1 ? evict_figure(rule, &s->lane, &slot) :
			   which == 2 ? evict_pool(rule, &s->lane, &slot) : evict_worth(rule, &s->lane, &slot);
	}
}

/* Values of slots 0 .. n-1 into value[], and their sum and maximum in the order that evict_places() names. */
static struct evict_figures lane_values(const struct selection *s, uint32_t n, int which, float *value)
{
	float part[GPU_BLOCK_SLOTS] = { 0 }, most[GPU_BLOCK_SLOTS] = { 0 };
	struct zeros zeros = { 0 };
	struct evict_figures f = { 0 };
	struct arrays a = { 0 };

	for (uint32_t b = 0; b < gpu_blocks_for(n); b++) {
		uint32_t first = b * GPU_BLOCK_SLOTS, here = n - first < GPU_BLOCK_SLOTS ? n - first : GPU_BLOCK_SLOTS;

		block_arrays(s, b, &zeros, &a);
		block_values_of(s, &a, here, which, value + first);
		for (uint32_t i = 0; i < here; i++) {
			part[i] += value[first + i];
			most[i] = evict_max(most[i], value[first + i]);
		}
	}
	f.sum = evict_places(part);
	for (uint32_t i = 0; i < GPU_BLOCK_SLOTS; i++)
		f.max = evict_max(f.max, most[i]);
	return f;
}

/*
 * Sorts order[i] by the upper halves of key[i], by bytes, least significant first; equal ones stay as they were. largest: of the upper
 * halves. key: room for 2n; key[i]'s lower half is order[i].
 */
static void sort_by_key(uint64_t *key, uint32_t n, uint32_t largest, uint32_t *order)
{
	uint64_t *from = key, *to = key + n, *other;

	for (int shift = 32; shift < 64 && (uint64_t)largest >> (shift - 32); shift += 8) {
		uint32_t bin[256] = { 0 }, at = 0, count;

		for (uint32_t i = 0; i < n; i++)
			bin[from[i] >> shift & 255u]++;
		for (uint32_t i = 0; i < 256; i++) {
			count = bin[i];
			bin[i] = at;
			at += count;
		}
		for (uint32_t i = 0; i < n; i++)
			to[bin[from[i] >> shift & 255u]++] = from[i];
		other = from;
		from = to;
		to = other;
	}
	for (uint32_t i = 0; i < n; i++)
		order[i] = (uint32_t)from[i];
}

/* Slots 0 .. n-1 in the order of their positions. key: room for 2n. */
static void by_position(const struct selection *s, uint32_t n, uint64_t *key, uint32_t *order)
{
	for (uint32_t i = 0; i < n; i++)
		key[i] = (uint64_t)(uint32_t)pos_at(s, i) << 32 | i;
	sort_by_key(key, n, (uint32_t)s->lane.now, order);
}

static int may_leave(const struct selection *s, int32_t pos)
{
	return !evict_tier(&s->turn->rule, s->plan->recent, s->lane.now, pos) && !(mark_of(s, pos) & EVICT_MARK_PINNED);
}

/* See evict_worth(). value[] and place[] by slot; key, order: scratch. */
static void places(const struct selection *s, uint32_t n, const float *value, uint64_t *key, uint32_t *order, float *place)
{
	uint32_t above[2] = { 0 };

	by_position(s, n, key, order);
	for (uint32_t i = 0; i < n; i++)
		key[i] = (uint64_t)evict_order(value[order[i]]) << 32 | order[i];
	sort_by_key(key, n, UINT32_MAX, order);
	for (uint32_t i = n; i-- > 0;) {
		const int32_t pos = pos_at(s, order[i]);
		const int side = evict_mark_tag(mark_of(s, pos)) == s->lane.tag;

		place[order[i]] = may_leave(s, pos) ? (float)above[side]++ : 0.0f;
	}
}

/* See evict_kernel(). value[] by slot; pooled[] too. */
static void pool_neighbours(const uint32_t *order, const float *value, uint32_t n, uint32_t kernel, int mean, float *pooled)
{
	const uint32_t half = kernel / 2u;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t first = i > half ? i - half : 0, end = n - i > half ? i + half + 1u : n;
		float x = mean ? 0.0f : value[order[first]];

		for (uint32_t j = first; j < end; j++)
			x = mean ? x + value[order[j]] : evict_max(x, value[order[j]]);
		pooled[order[i]] = mean ? x / (float)kernel : x;
	}
}

/* The n-th smallest (from 1) of `keys`, by most significant bytes; work is overwritten. *before: how many are smaller. */
static uint64_t nth_key(const uint64_t *keys, uint64_t *work, uint32_t count, uint32_t n, uint32_t *before)
{
	uint64_t prefix = 0;
	uint32_t below = 0;

	memcpy(work, keys, count * sizeof(*work));
	for (int shift = 56; shift >= 0; shift -= 8) {
		uint32_t bin[256] = { 0 }, which = 0, kept = 0;

		for (uint32_t i = 0; i < count; i++)
			bin[work[i] >> shift & 255u]++;
		while (below + bin[which] < n)
			below += bin[which++];
		prefix |= (uint64_t)which << shift;
		for (uint32_t i = 0; i < count; i++)
			if ((work[i] >> shift & 255u) == which)
				work[kept++] = work[i];
		count = kept;
	}
	*before = below;
	return prefix;
}

/* The smallest place among the spared. None: beyond every place. */
static uint64_t lane_cut(const struct selection *s, uint32_t n, const float *value)
{
	uint64_t *key = s->stage.key;
	uint32_t count = 0, spared, before;

	for (uint32_t i = 0; i < n; i++) {
		int32_t pos = pos_at(s, i);

		if (may_leave(s, pos))
			key[count++] = evict_place(value[i], pos);
	}
	spared = evict_n_spared(&s->turn->rule, &s->lane, n, count);
	if (!spared)
		return UINT64_MAX;
	return spared >= count ? 0 : nth_key(key, key + s->live, count, count - spared + 1u, &before);
}

/* What must be known of slots 0 .. n-1 before they can be ranked. */
static void before_ranking(struct selection *s, uint32_t n)
{
	const uint32_t policy = s->turn->rule.policy;
	const struct host_stage *st = &s->stage;

	if (evict_has_cut(policy) && !evict_n_spared(&s->turn->rule, &s->lane, n, n)) {
		s->lane.cut = UINT64_MAX;
	} else if (evict_has_figure(policy)) {
		s->lane.rank = lane_values(s, n, 1, st->value);
		if (evict_has_cut(policy))
			s->lane.cut = lane_cut(s, n, st->value);
	}
	if (evict_has_pool(policy)) {
		(void)lane_values(s, n, 2, st->value);
		by_position(s, n, st->key, st->order);
		pool_neighbours(st->order, st->value, n, evict_kernel(&s->turn->rule), evict_pool_mean(&s->turn->rule), st->pooled);
	}
	if (evict_has_place(policy)) {
		(void)lane_values(s, n, 3, st->value);
		places(s, n, st->value, st->key, st->order, st->pooled);
	}
}

#endif
