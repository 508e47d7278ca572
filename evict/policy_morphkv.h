/*
 * morphkv: the largest (or summed) attention of the recent queries (arXiv 2503.00979). credit[0] is the largest, over the last
 * `queries` queries, of the group's summed probability; with sum their sum. At decode: the reference sums logits over the group
 * and normalises over the old columns only; here it is the probability that attend computes anyway. Shorter windows leave a fading
 * part of what was.
 */
#ifndef EVICT_POLICY_MORPHKV_H
#define EVICT_POLICY_MORPHKV_H

enum { EVICT_MORPHKV_SUM, EVICT_MORPHKV_QUERIES };

EVICT_FN float evict_morphkv_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	return 1.0f - evict_recent_share(lane, rule->param[EVICT_MORPHKV_QUERIES]);
}

EVICT_FN void evict_morphkv_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	const float sum = rule->param[EVICT_MORPHKV_SUM], kept = slot->credit[0] * lane->constant;

	slot->credit[0] = evict_max(slot->heat[0] + sum * kept, (1.0f - sum) * kept);
}

EVICT_FN float evict_morphkv_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

#endif
