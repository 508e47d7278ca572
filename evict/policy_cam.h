/*
 * cam: cache merging (ICML 2024, openreview LCTmppB165): the mean attention of the recent queries, without neighbours, and the value
 * of a victim goes into its successors (merge cam, on by default).
 */
#ifndef EVICT_POLICY_CAM_H
#define EVICT_POLICY_CAM_H

enum { EVICT_CAM_QUERIES };

EVICT_FN float evict_cam_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	return evict_recent_share(lane, rule->param[EVICT_CAM_QUERIES]);
}

EVICT_FN void evict_cam_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	slot->credit[0] = evict_recent_mean(rule, lane, slot);
}

EVICT_FN float evict_cam_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

#endif
