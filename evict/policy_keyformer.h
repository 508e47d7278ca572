/*
 * keyformer: attention with noise (arXiv 2403.09054). Adds softmax((logit + Gumbel noise) / tau) instead of the probability, tau
 * rising from `tau` to `tau_end` over the first `steps` tokens. With x = p^(1/tau) * e^(noise/tau) the softmax is x / sum of x over the
 * lane, so probabilities suffice. At decode: the mean probability of a window stands for its queries, with one draw per slot and window.
 */
#ifndef EVICT_POLICY_KEYFORMER_H
#define EVICT_POLICY_KEYFORMER_H

enum { EVICT_KEYFORMER_TAU, EVICT_KEYFORMER_TAU_END, EVICT_KEYFORMER_STEPS };

EVICT_FN float evict_keyformer_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	const float way = evict_min((float)lane->now / rule->param[EVICT_KEYFORMER_STEPS], 1.0f);

	return 1.0f / (rule->param[EVICT_KEYFORMER_TAU] + way * (rule->param[EVICT_KEYFORMER_TAU_END] - rule->param[EVICT_KEYFORMER_TAU]));
}

EVICT_FN float evict_keyformer_heat_figure(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	const float u = evict_uniform(evict_draw(rule->seed, lane->lane, lane->now, slot->pos));

	return evict_pow(evict_mean_heat(rule, lane, slot) / -evict_log(u), lane->constant);
}

EVICT_FN void evict_keyformer_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	slot->credit[0] += evict_keyformer_heat_figure(rule, lane, slot) / evict_max(lane->heat.sum, 1e-30f);
}

EVICT_FN float evict_keyformer_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

#endif
