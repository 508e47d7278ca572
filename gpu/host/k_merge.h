/* Merges (evict/merge.h): victims of one lane go into its survivors before they are overwritten or removed. */
#ifndef GPU_HOST_K_MERGE_H
#define GPU_HOST_K_MERGE_H

#include "gpu/host/k_append.h"
#include "gpu/host/k_trait.h"

struct merging {
	const struct selection *s;
	const uint32_t *victim;		/* slots, in the order of leaving */
	uint32_t n_victims;
	uint32_t live;			/* slots 0 .. live-1 are there */
	uint8_t *leaves;		/* [live] */
	/* Per victim: where to (by key: the survivor; cam: the first successor's place in the order), NO_TARGET: nowhere; and its weight. */
	uint32_t *target;
	float *weight;
};

#define NO_TARGET UINT32_MAX

static void write_row(const struct selection *s, uint32_t slot, uint32_t which, const float *x)
{
	put_row(page_at(&s->v, slot / GPU_PAGE_SLOTS), which, slot % GPU_PAGE_SLOTS, s->turn->slot_type, s->turn->head_dim, x);
}

/* --- targets --------------------------------------------------------------------------------------------------------------------- */

static void nearest_survivors(const struct merging *m)
{
	const uint32_t d = m->s->turn->head_dim;
	const float *unit = m->s->stage.unit;

	for (uint32_t i = 0; i < m->n_victims; i++) {
		const float *u = unit + (size_t)m->victim[i] * d;

		m->target[i] = NO_TARGET;
		m->weight[i] = 0.0f;
		for (uint32_t k = 0; k < m->live; k++) {
			float cosine;

			if (m->leaves[k])
				continue;
			cosine = row_dot(u, unit + (size_t)k * d, d);
			if (m->target[i] != NO_TARGET && (cosine < m->weight[i] || (cosine == m->weight[i] &&
							   pos_at(m->s, k) > pos_at(m->s, m->target[i]))))
				continue;
			m->target[i] = k;
			m->weight[i] = cosine;
		}
	}
}

/* Those that are not similar enough go nowhere; cosines become weights. */
static void weigh_by_key(const struct merging *m)
{
	const struct evict_rule *rule = &m->s->turn->rule;
	float least = rule->merge_param[EVICT_PIVOT_THRESHOLD], sum = 0.0f;

	for (uint32_t i = 0; i < m->n_victims; i++)
		sum += m->weight[i];
	if (rule->merge == EVICT_MERGE_d2o)
		least = sum / (float)m->n_victims;
	for (uint32_t i = 0; i < m->n_victims; i++) {
		if (m->weight[i] < least)
			m->target[i] = NO_TARGET;
		m->weight[i] = rule->merge == EVICT_MERGE_d2o ? evict_d2o_weight(m->weight[i]) : 0.5f;
	}
}

/* The survivors in the order of positions, and for each victim the place of the first behind it. Returns how many survive. */
static uint32_t successors(const struct merging *m)
{
	const struct selection *s = m->s;
	uint32_t *order = s->stage.order, n = 0;

	by_position(s, m->live, s->stage.key, order);
	for (uint32_t i = 0; i < m->live; i++) {
		if (!m->leaves[order[i]]) {
			order[n++] = order[i];
			continue;
		}
		for (uint32_t j = 0; j < m->n_victims; j++)
			if (m->victim[j] == order[i])
				m->target[j] = n;
	}
	return n;
}

static float first_credit(const struct selection *s, uint32_t slot)
{
	return credit_of(&s->v, slot / GPU_BLOCK_SLOTS, 0)[slot % GPU_BLOCK_SLOTS];
}

/* Who is merged is drawn by lot. */
static void draw_cam(const struct merging *m, uint32_t survivors, uint32_t budget)
{
	const struct selection *s = m->s;

	for (uint32_t i = 0; i < m->n_victims; i++) {
		uint32_t first = m->target[i], end = survivors - first < budget ? survivors : first + budget;
		uint32_t draw = evict_draw(~s->turn->rule.seed, s->lane.lane, s->lane.now, pos_at(s, m->victim[i]));
		float sum = 0.0f;

		if (first == end) {
			m->target[i] = NO_TARGET;
			continue;
		}
		if (!evict_n_credit(s->turn->rule.policy))
			continue;
		for (uint32_t j = first; j < end; j++)
			sum += first_credit(s, s->stage.order[j]);
		if (!evict_cam_merges(first_credit(s, m->victim[i]), sum / (float)(end - first), evict_uniform(draw)))
			m->target[i] = NO_TARGET;
	}
}

/* --- rows --------------------------------------------------------------------------------------------------------------------------- */

/* One half (0 K, 1 V) of survivor k with its victims; nothing is written if it has none. */
static void merge_by_key(const struct merging *m, uint32_t k, uint32_t which)
{
	const uint32_t d = m->s->turn->head_dim;
	const int by_weight = m->s->turn->rule.merge == EVICT_MERGE_d2o;
	float own[HOST_MAX_DIM], x[HOST_MAX_DIM], to[HOST_MAX_DIM], total = by_weight ? evict_d2o_weight(1.0f) : 1.0f;

	read_row(m->s, k, which, own);
	for (uint32_t c = 0; c < d; c++)
		to[c] = by_weight ? total * own[c] : own[c];
	for (uint32_t i = 0; i < m->n_victims; i++) {
		if (m->target[i] != k)
			continue;
		read_row(m->s, m->victim[i], which, x);
		for (uint32_t c = 0; c < d; c++)
			to[c] += m->weight[i] * (by_weight ? x[c] : x[c] + own[c]);
		total += by_weight ? m->weight[i] : 1.0f;
	}
	for (uint32_t c = 0; c < d; c++)
		to[c] /= total;
	write_row(m->s, k, which, to);
}

static void merge_cam(const struct merging *m, uint32_t place, uint32_t budget)
{
	const uint32_t d = m->s->turn->head_dim, k = m->s->stage.order[place];
	float to[HOST_MAX_DIM], x[HOST_MAX_DIM];

	read_row(m->s, k, 1, to);
	for (uint32_t i = 0; i < m->n_victims; i++) {
		if (m->target[i] == NO_TARGET || m->target[i] > place || place - m->target[i] >= budget)
			continue;
		read_row(m->s, m->victim[i], 1, x);
		for (uint32_t c = 0; c < d; c++)
			to[c] += x[c] / (float)budget;
	}
	write_row(m->s, k, 1, to);
}

static int has_victims(const struct merging *m, uint32_t target, uint32_t reach)
{
	for (uint32_t i = 0; i < m->n_victims; i++)
		if (m->target[i] != NO_TARGET && m->target[i] <= target && target - m->target[i] < reach)
			return 1;
	return 0;
}

/* Slots 0 .. live-1 are there, the victims among them leave. */
static void merge_victims(const struct selection *s, const uint32_t *victim, uint32_t n, uint32_t live)
{
	const struct evict_rule *rule = &s->turn->rule;
	struct merging m = { .s = s, .victim = victim, .n_victims = n, .live = live, .leaves = s->stage.leaves,
			     .target = s->stage.target, .weight = s->stage.value };
	const int by_key = evict_merge_by_key(rule->merge);
	uint32_t budget = by_key ? 1u : (uint32_t)rule->merge_param[EVICT_CAM_BUDGET], places;

	if (!n || n == live)
		return;
	memset(m.leaves, 0, live);
	for (uint32_t i = 0; i < n; i++)
		m.leaves[victim[i]] = 1;
	if (by_key) {
		places = live;
		unit_keys(s, live);
		nearest_survivors(&m);
		weigh_by_key(&m);
	} else {
		places = successors(&m);
		draw_cam(&m, places, budget);
	}
	for (uint32_t at = 0; at < places; at++) {
		uint32_t slot = by_key ? at : s->stage.order[at];

		if (!has_victims(&m, at, budget))
			continue;
		if (by_key) {
			merge_by_key(&m, at, 0);
			merge_by_key(&m, at, 1);
		} else {
			merge_cam(&m, at, budget);
		}
		if (evict_n_trait(rule->policy))
			settle_traits(s, slot, NULL);
	}
}

#endif
