/*
 * h2o: heavy hitters (arXiv 2306.14048). credit[0] is the sum, over all queries so far and the heads of the group, of the
 * attention probability that the slot received. The newest half of the budget is protected (the `recent` key, 50%):
 * without that the running sum favours old tokens so much that random does better (docs/design.md).
 */
#ifndef EVICT_POLICY_H2O_H
#define EVICT_POLICY_H2O_H

EVICT_FN void evict_h2o_fold(const struct evict_rule *rule, struct evict_slot *slot)
{
	(void)rule;
	slot->credit[0] += slot->heat[0];
}

EVICT_FN float evict_h2o_rank(const struct evict_rule *rule, const struct evict_slot *slot)
{
	(void)rule;
	return slot->credit[0];
}

#endif
