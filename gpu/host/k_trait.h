/*
 * Traits (evict/trait.h) of one lane's slots, from its K and V pages. What a client wrote there may be anything: rows are cleaned
 * element by element as they are read, so everything that follows is finite.
 */
#ifndef GPU_HOST_K_TRAIT_H
#define GPU_HOST_K_TRAIT_H

#include "gpu/host/k_policy.h"

/* A slot's K (which = 0) or V (1) as float32. */
static void read_row(const struct selection *s, uint32_t slot, uint32_t which, float *x)
{
	const uint32_t type = s->turn->slot_type, d = s->turn->head_dim, at = slot % GPU_PAGE_SLOTS;
	const char *page = page_at(&s->v, slot / GPU_PAGE_SLOTS);

	row_to_float(x, type, page + (which ? gpu_page_v(type, d) : 0u) + (size_t)at * gpu_row_bytes(type, d), d);
	if (type == GPU_Q8) {
		const uint16_t *param = (const uint16_t *)(const void *)(page + gpu_page_params(type, d)) + (which * GPU_PAGE_SLOTS + at) * 2u;
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

/* Traits of one slot's own rows, when it is settled. */
static void settle_traits(const struct selection *s, uint32_t slot)
{
	const struct evict_rule *rule = &s->turn->rule;
	float k[HOST_MAX_DIM], v[HOST_MAX_DIM];

	read_row(s, slot, 0, k);
	read_row(s, slot, 1, v);
	for (uint32_t i = 0; i < evict_n_trait(rule->policy); i++)
		if (evict_trait_once(rule->trait[i]))
			*trait_array(s, slot, i) = evict_trait_of(rule->trait[i], k, v, s->turn->head_dim);
}

/* Traits of the lane as a whole, when it is folded. */
static void lane_traits(const struct selection *s)
{
	(void)s;
}

#endif
