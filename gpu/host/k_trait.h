/*
 * Traits (evict/trait.h) of one lane's slots, from its K and V pages. What a client wrote there may be anything: rows are cleaned
 * element by element as they are read, so everything that follows is finite.
 */
#ifndef GPU_HOST_K_TRAIT_H
#define GPU_HOST_K_TRAIT_H

#include "gpu/host/k_policy.h"

/* evict_dot(), the same sums in the same order, with the partial sums in registers. d is a multiple of 16. */
VFN float row_dot(const float *a, const float *b, uint32_t d)
{
	vf acc[EVICT_PARTS / VW] = { 0 };
	float part[EVICT_PARTS];

	for (uint32_t c = 0; c < d; c += EVICT_PARTS)
		UNROLL for (uint32_t i = 0; i < EVICT_PARTS / VW; i++)
			acc[i] += vf_load(a + c + i * VW) * vf_load(b + c + i * VW);
	UNROLL for (uint32_t i = 0; i < EVICT_PARTS / VW; i++)
		vf_store(part + i * VW, acc[i]);
	UNROLL for (uint32_t i = 0; i < 8; i++)
		part[i] += part[i + 8];
	UNROLL for (uint32_t i = 0; i < 4; i++)
		part[i] += part[i + 4];
	return (part[0] + part[2]) + (part[1] + part[3]);
}

/* A slot's K (which = 0) or V (1) as float32. */
static void read_row(const struct selection *s, uint32_t slot, uint32_t which, float *x)
{
	const uint32_t type = s->turn->slot_type, d = s->turn->head_dim, at = slot % GPU_PAGE_SLOTS;
	const char *page = page_at(&s->v, slot / GPU_PAGE_SLOTS);

	const struct gpu_parts part = gpu_page_parts(type, d);

	row_to_float(x, gpu_row_type(type, which), page + part.at[which] + (size_t)at * part.bytes[which], d);
	if (part.bytes[2 + which]) {
		const uint16_t *param = (const uint16_t *)(const void *)(page + part.at[2 + which] + at * 4u);
		const float scale = f_of_f16(param[0]), offset = f_of_f16(param[1]);

		for (uint32_t c = 0; c < d; c++)
			x[c] = offset + scale * x[c];
	}
	for (uint32_t c = 0; c < d; c++)
		x[c] = evict_element(x[c]);
}

static float *trait_array(const struct selection *s, uint32_t slot, uint32_t trait)
{
	return credit_of(&s->v, slot / GPU_BLOCK_SLOTS, evict_n_credit(s->turn->rule.policy) + trait) + slot % GPU_BLOCK_SLOTS;
}

/* The mean that EVICT_VALUE_APART is about, where a trait needs it. */
static void first_values(const struct selection *s, float *mean)
{
	const uint32_t d = s->turn->head_dim, n = s->live < EVICT_FIRST ? s->live : EVICT_FIRST;
	float half[2][HOST_MAX_DIM] = { { 0 } }, v[HOST_MAX_DIM];

	if (!evict_has_apart(&s->turn->rule))
		return;
	for (uint32_t i = 0; i < n; i++) {
		read_row(s, i, 1, v);
		for (uint32_t c = 0; c < d; c++)
			half[i % 2][c] += v[c];
	}
	for (uint32_t c = 0; c < d; c++)
		mean[c] = (half[0][c] + half[1][c]) * (1.0f / (float)n);
}

/* Traits of one slot's own rows, when it is settled. first: first_values(); NULL: the trait that needs it stays. */
static void settle_traits(const struct selection *s, uint32_t slot, const float *first)
{
	const struct evict_rule *rule = &s->turn->rule;
	float k[HOST_MAX_DIM], v[HOST_MAX_DIM];

	read_row(s, slot, 0, k);
	read_row(s, slot, 1, v);
	for (uint32_t i = 0; i < evict_n_trait(rule->policy); i++)
		if (evict_trait_once(rule->trait[i]) && (first || rule->trait[i] != EVICT_VALUE_APART))
			*trait_array(s, slot, i) = evict_trait_of(rule->trait[i], k, v, first, s->turn->head_dim);
}

/* Unit keys of slots 0 .. n-1, and their sum into row[16]. */
static void unit_keys(const struct selection *s, uint32_t n)
{
	const uint32_t d = s->turn->head_dim;
	float *part = s->stage.row, *sum = part + (size_t)GPU_PAGE_SLOTS * d;

	memset(part, 0, (size_t)GPU_PAGE_SLOTS * d * sizeof(float));
	for (uint32_t i = 0; i < n; i++) {
		float *u = s->stage.unit + (size_t)i * d, *to = part + (size_t)(i % GPU_PAGE_SLOTS) * d;

		read_row(s, i, 0, u);
		evict_unit(u, d);
		for (uint32_t c = 0; c < d; c++)
			to[c] += u[c];
	}
	for (uint32_t gap = GPU_PAGE_SLOTS / 2; gap; gap /= 2)
		for (uint32_t i = 0; i < gap * d; i++)
			part[i] += part[i + (size_t)gap * d];
	memcpy(sum, part, d * sizeof(float));
}

static void key_cosine(const struct selection *s, uint32_t trait)
{
	const uint32_t d = s->turn->head_dim;
	const float *sum = s->stage.row + (size_t)GPU_PAGE_SLOTS * d;
	float norm;

	unit_keys(s, s->live);
	norm = evict_norm(sum, d);
	for (uint32_t i = 0; i < s->live; i++)
		*trait_array(s, i, trait) = norm > 0.0f ? row_dot(s->stage.unit + (size_t)i * d, sum, d) / norm : 0.0f;
}

#define ALIKE 0.5f	/* R-KV's threshold */

/* The slot that is not counted for slot i. Newest first: alike keys are usually near. */
static uint32_t uncounted(const struct selection *s, uint32_t i, float *cosine)
{
	const uint32_t d = s->turn->head_dim;
	const float *unit = s->stage.unit;

	for (uint32_t at = s->live; at-- > 0;) {
		uint32_t j = s->stage.order[at];

		*cosine = row_dot(unit + (size_t)i * d, unit + (size_t)j * d, d);
		if (j != i && *cosine > ALIKE)
			return j;
	}
	return s->stage.order[0];
}

static void key_redundancy(const struct selection *s, uint32_t trait)
{
	const uint32_t d = s->turn->head_dim, n = s->live;
	const float *sum = s->stage.row + (size_t)GPU_PAGE_SLOTS * d, *unit = s->stage.unit;
	float *lost = s->stage.value;

	unit_keys(s, s->live);
	by_position(s, n, s->stage.key, s->stage.order);
	memset(lost, 0, n * sizeof(float));
	for (uint32_t i = 0; i < n; i++) {
		float cosine = 0.0f;
		uint32_t j = uncounted(s, i, &cosine);

		if (j != i)
			lost[j] += cosine;
	}
	for (uint32_t i = 0; i < n; i++) {
		const float *u = unit + (size_t)i * d;

		*trait_array(s, i, trait) = (row_dot(u, sum, d) - row_dot(u, u, d) - lost[i]) / (float)n;
	}
}

/* Deviations of the rows of one partition, scaled by the next one's range; softmaxed and added to value[0 .. lag-1]. */
static void lag_side(const struct selection *s, const uint32_t *order, uint32_t lag, uint32_t which, float *value)
{
	const uint32_t d = s->turn->head_dim;
	float min[HOST_MAX_DIM], max[HOST_MAX_DIM], inverse[HOST_MAX_DIM], x[HOST_MAX_DIM], *deviation = s->stage.pooled, most = 0.0f, sum = 0.0f;

	for (uint32_t i = 0; i < lag; i++) {
		read_row(s, order[lag + i], which, x);
		for (uint32_t c = 0; c < d; c++) {
			min[c] = i && min[c] < x[c] ? min[c] : x[c];
			max[c] = i && max[c] > x[c] ? max[c] : x[c];
		}
	}
	for (uint32_t c = 0; c < d; c++)
		inverse[c] = evict_lag_inverse(min[c], max[c]);
	for (uint32_t i = 0; i < lag; i++) {
		read_row(s, order[i], which, x);
		for (uint32_t c = 0; c < d; c++)
			x[c] = evict_lag_scale(x[c], min[c], inverse[c]);
		deviation[i] = evict_deviation(x, d);
		most = evict_max(most, deviation[i]);
	}
	for (uint32_t i = 0; i < lag; i++) {
		deviation[i] = evict_exp(deviation[i] - most);
		sum += deviation[i];
	}
	for (uint32_t i = 0; i < lag; i++)
		value[i] += deviation[i] / sum;
}

static void key_lag(const struct selection *s, uint32_t trait)
{
	const uint32_t n = s->live, lag = s->turn->rule.lag ? s->turn->rule.lag : 1u;
	uint32_t *order = s->stage.order, sinks = 0;
	float *value = s->stage.value;

	by_position(s, n, s->stage.key, order);
	while (sinks < n && pos_at(s, order[sinks]) < s->turn->rule.sinks)
		sinks++;
	for (uint32_t i = 0; i < n; i++)
		*trait_array(s, order[i], trait) = n - sinks < 2u * lag ? (float)i / (float)n : 1.0f;
	for (uint32_t at = sinks; n - at >= 2u * lag; at += lag) {
		memset(value, 0, lag * sizeof(float));
		lag_side(s, order + at, lag, 0, value);
		lag_side(s, order + at, lag, 1, value);
		for (uint32_t i = 0; i < lag; i++) {
			uint32_t below = 0;

			for (uint32_t j = 0; j < lag; j++)
				below += value[j] < value[i] || (value[j] == value[i] && j < i);
			*trait_array(s, order[at + i], trait) = (float)below / (float)lag;
		}
	}
}

/* Traits of the lane as a whole, when it is folded. */
static void lane_traits(const struct selection *s)
{
	const struct evict_rule *rule = &s->turn->rule;

	for (uint32_t i = 0; i < evict_n_trait(rule->policy) && s->live; i++)
		switch (rule->trait[i]) {
		case EVICT_KEY_COSINE: key_cosine(s, i); break;
		case EVICT_KEY_REDUNDANCY: key_redundancy(s, i); break;
		case EVICT_KEY_LAG: key_lag(s, i); break;
		default: break;
		}
}

#endif
