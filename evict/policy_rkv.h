/*
 * rkv: importance against redundancy (R-KV, arXiv 2505.24133). Z = lambda * A - (1 - lambda) * R: A the mean attention of the recent
 * queries, maximum-pooled in the order of positions (credit[0]); R the softmax over the lane of each key's mean cosine to the others
 * (trait[0]; of the keys alike a key, cosine > 0.5, the newest is not counted). At decode: once a window; the reference takes the largest
 * logit of the group and leaves the window's own columns out of both parts.
 */
#ifndef EVICT_POLICY_RKV_H
#define EVICT_POLICY_RKV_H

enum { EVICT_RKV_LAMBDA, EVICT_RKV_KERNEL, EVICT_RKV_QUERIES };

EVICT_FN float evict_rkv_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	return evict_recent_share(lane, rule->param[EVICT_RKV_QUERIES]);
}

EVICT_FN void evict_rkv_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	slot->credit[0] = evict_recent_mean(rule, lane, slot);
}

EVICT_FN float evict_rkv_pool(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

EVICT_FN uint32_t evict_rkv_kernel(const struct evict_rule *rule)
{
	return (uint32_t)rule->param[EVICT_RKV_KERNEL];
}

EVICT_FN int evict_rkv_mean(const struct evict_rule *rule)
{
	(void)rule;
	return 0;
}

EVICT_FN float evict_rkv_figure(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return evict_exp(slot->trait[0]);
}

EVICT_FN float evict_rkv_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	const float redundancy = evict_exp(slot->trait[0]) / lane->rank.sum;

	return rule->param[EVICT_RKV_LAMBDA] * slot->pooled - (1.0f - rule->param[EVICT_RKV_LAMBDA]) * redundancy;
}

#endif
