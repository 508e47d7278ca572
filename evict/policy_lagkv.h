/*
 * lagkv: tokens that stand out against the ones that follow (arXiv 2504.04704). Slots behind the sinks, in the order of positions, in
 * partitions of `lag`: channels are scaled by the minimum and maximum of the next partition, the deviation over channels of K and of V
 * is softmaxed within the partition and averaged, and the rank within the partition, divided by lag, is the score (trait[0]); the last
 * partition and the rest have 1. At decode: anew over what is live at every window, where the paper scores a partition once.
 */
#ifndef EVICT_POLICY_LAGKV_H
#define EVICT_POLICY_LAGKV_H

enum { EVICT_LAGKV_LAG };

EVICT_NO_FOLD(lagkv)

EVICT_FN float evict_lagkv_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->trait[0];
}

#endif
