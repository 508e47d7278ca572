/*
 * keydiff: keys unlike the others are kept (arXiv 2504.15364). trait[0] is the cosine of a key to the mean of the lane's unit keys,
 * computed anew at every window; the most similar goes first. No attention is needed.
 */
#ifndef EVICT_POLICY_KEYDIFF_H
#define EVICT_POLICY_KEYDIFF_H

EVICT_NO_FOLD(keydiff)

EVICT_FN float evict_keydiff_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return -slot->trait[0];
}

#endif
