/*
 * full: nothing is ever evicted. The plan never asks for a victim under this policy; should one be needed all the same
 * (it is not), the oldest would go.
 */
#ifndef EVICT_POLICY_FULL_H
#define EVICT_POLICY_FULL_H

EVICT_NO_FOLD(full)

EVICT_FN float evict_full_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return (float)slot->pos;
}

#endif
