/*
 * gkv: a global score that decays (G-KV, arXiv 2512.00504). The window's attention, divided by the lane's largest, is the local
 * score; credit[0] = max(alpha * credit[0], local). Optionally pooled, and set against redundancy as in rkv, both with maximum 1. At
 * decode: mean over the group where the reference takes the largest head, and alpha applies once a window of 32, not of 128, queries.
 */
#ifndef EVICT_POLICY_GKV_H
#define EVICT_POLICY_GKV_H

enum { EVICT_GKV_ALPHA, EVICT_GKV_LAMBDA, EVICT_GKV_KERNEL };

EVICT_FN float evict_gkv_heat_figure(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	return evict_mean_heat(rule, lane, slot);
}

EVICT_FN void evict_gkv_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	const float local = evict_mean_heat(rule, lane, slot) / evict_max(lane->heat.max, 1e-30f);

	slot->credit[0] = evict_max(rule->param[EVICT_GKV_ALPHA] * slot->credit[0], local);
}

EVICT_FN float evict_gkv_pool(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

EVICT_FN uint32_t evict_gkv_kernel(const struct evict_rule *rule)
{
	return (uint32_t)rule->param[EVICT_GKV_KERNEL];
}

EVICT_FN int evict_gkv_mean(const struct evict_rule *rule)
{
	(void)rule;
	return 0;
}

EVICT_FN float evict_gkv_figure(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return evict_exp(slot->trait[0]);
}

EVICT_FN float evict_gkv_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	const float redundancy = evict_exp(slot->trait[0]) / lane->rank.max;

	return rule->param[EVICT_GKV_LAMBDA] * slot->pooled - (1.0f - rule->param[EVICT_GKV_LAMBDA]) * redundancy;
}

#endif
