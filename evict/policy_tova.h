/*
 * tova: the last query alone decides (arXiv 2401.06104). credit[0] is the attention that the last observed query of the
 * window paid, summed over the group. At decode: decided once a window, not once a token, and lane by lane, where the paper takes the
 * mean over all heads of a layer and so one set for the layer.
 */
#ifndef EVICT_POLICY_TOVA_H
#define EVICT_POLICY_TOVA_H

EVICT_FN float evict_tova_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	(void)rule;
	return lane->queries ? 0.0f : 1.0f;	/* nobody looked: what was, stays (and heat is 0) */
}

EVICT_FN void evict_tova_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	(void)rule;
	slot->credit[0] = slot->credit[0] * lane->constant + slot->heat[0];
}

EVICT_FN float evict_tova_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

#endif
