/*
 * snapkv: what the recent queries look at, and its neighbours (arXiv 2404.14469, section 4). credit[0] is the mean probability over the
 * last `queries` queries and the group; the rank is its maximum (or mean) over `kernel` neighbours in the order of positions. At decode:
 * the observation window is the session's window; longer ones are approximated by a running mean, and after a prompt that was appended in
 * one grant (prefill = whole) it is the whole prompt.
 */
#ifndef EVICT_POLICY_SNAPKV_H
#define EVICT_POLICY_SNAPKV_H

enum { EVICT_SNAPKV_KERNEL, EVICT_SNAPKV_MEAN, EVICT_SNAPKV_QUERIES };

EVICT_FN float evict_snapkv_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	return evict_recent_share(lane, rule->param[EVICT_SNAPKV_QUERIES]);
}

EVICT_FN void evict_snapkv_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	slot->credit[0] = evict_recent_mean(rule, lane, slot);
}

EVICT_FN float evict_snapkv_pool(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

EVICT_FN uint32_t evict_snapkv_kernel(const struct evict_rule *rule)
{
	return (uint32_t)rule->param[EVICT_SNAPKV_KERNEL];
}

EVICT_FN int evict_snapkv_mean(const struct evict_rule *rule)
{
	return rule->param[EVICT_SNAPKV_MEAN] != 0.0f;
}

EVICT_FN float evict_snapkv_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->pooled;
}

#endif
