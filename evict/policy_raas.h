/*
 * raas: least recently activated goes first (arXiv 2502.11147). credit[0] is the time of the last window in which a query paid the
 * slot more than alpha (the group's mean); a slot that never was has its own position. The prompt is pinned by default. At decode:
 * slots, where the paper stamps pages of 16 by Quest's bound of their attention; the time is the window's end.
 */
#ifndef EVICT_POLICY_RAAS_H
#define EVICT_POLICY_RAAS_H

enum { EVICT_RAAS_ALPHA };

EVICT_FN void evict_raas_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	const float last = evict_max(slot->credit[0], (float)slot->pos);

	slot->credit[0] = slot->heat[0] > rule->param[EVICT_RAAS_ALPHA] * evict_group(rule) ? (float)lane->now : last;
}

EVICT_FN float evict_raas_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

#endif
