/*
 * roco: robust cache omission (arXiv 2402.06262). credit[0] and credit[1] are the sums of the attention and of its square, so mean
 * and deviation over the queries that could look at the slot are known. The `spare` share of slots with the largest deviation is
 * spared; of the others the smallest mean goes. At decode: many leave at once, and squares are summed per head, where EasyKV squares
 * the mean over the group.
 */
#ifndef EVICT_POLICY_ROCO_H
#define EVICT_POLICY_ROCO_H

enum { EVICT_ROCO_SPARE };

EVICT_FN void evict_roco_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	slot->credit[0] += slot->heat[0];
	slot->credit[1] += slot->heat[1];
}

EVICT_FN float evict_roco_mean(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	return slot->credit[0] / (evict_group(rule) * evict_seen(lane, slot));
}

EVICT_FN float evict_roco_figure(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	const float mean = evict_roco_mean(rule, lane, slot);

	return evict_sqrt(evict_max(slot->credit[1] / (evict_group(rule) * evict_seen(lane, slot)) - mean * mean, 0.0f));
}

EVICT_FN float evict_roco_share(const struct evict_rule *rule, const struct evict_lane *lane)
{
	(void)lane;
	return rule->param[EVICT_ROCO_SPARE];
}

EVICT_FN float evict_roco_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	const float mean = evict_roco_mean(rule, lane, slot);

	return evict_spared(lane, evict_roco_figure(rule, lane, slot), slot->pos) ? mean : evict_below(mean);
}

#endif
