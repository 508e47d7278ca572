/*
 * vatp: attention times the size of the value (arXiv 2406.12335): h2o's credit, by its age and decayed where asked for, times the L1
 * norm of the slot's value (trait[0], computed once), or its L2 norm.
 */
#ifndef EVICT_POLICY_VATP_H
#define EVICT_POLICY_VATP_H

enum { EVICT_VATP_AGE, EVICT_VATP_DECAY, EVICT_VATP_L2 };

EVICT_FN float evict_vatp_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	return evict_pow(rule->param[EVICT_VATP_DECAY], (float)lane->appended);
}

EVICT_FN void evict_vatp_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	(void)rule;
	slot->credit[0] = slot->credit[0] * lane->constant + slot->heat[0];
}

EVICT_FN float evict_vatp_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	return slot->credit[0] / evict_pow(evict_age(lane, slot), rule->param[EVICT_VATP_AGE]) * slot->trait[0];
}

#endif
