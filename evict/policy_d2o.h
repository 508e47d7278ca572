/*
 * d2o: dynamic discriminative operations (arXiv 2406.13035): ranked by accumulated attention as h2o, victims merged into their
 * nearest survivor if that is near enough (merge d2o, on by default). Its share of layers by the variance of attention is a split.
 */
#ifndef EVICT_POLICY_D2O_H
#define EVICT_POLICY_D2O_H

EVICT_FN void evict_d2o_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	slot->credit[0] += slot->heat[0];
}

EVICT_FN float evict_d2o_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

#endif
