/*
 * h2o: heavy hitters (arXiv 2306.14048). credit[0] is the sum, over all queries so far and the heads of the group, of the
 * attention probability that the slot received. The newest half of the budget is protected (the `recent` key, 50%):
 * without that the running sum favours old tokens so much that random does better (docs/design.md). Two more cures are parameters:
 * age divides the sum by (tokens since)^age, decay multiplies it by decay for every token that is appended (once a window, by
 * decay^tokens). squared collects squared probabilities (KV-Compress, arXiv 2410.00161).
 */
#ifndef EVICT_POLICY_H2O_H
#define EVICT_POLICY_H2O_H

enum { EVICT_H2O_AGE, EVICT_H2O_DECAY, EVICT_H2O_SQUARED };

EVICT_FN float evict_h2o_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	return evict_pow(rule->param[EVICT_H2O_DECAY], (float)lane->appended);
}

EVICT_FN void evict_h2o_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	(void)rule;
	slot->credit[0] = slot->credit[0] * lane->constant + slot->heat[0];
}

EVICT_FN float evict_h2o_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	return slot->credit[0] / evict_pow(evict_age(lane, slot), rule->param[EVICT_H2O_AGE]);
}

#endif
