/*
 * look-m: text first (LOOK-M, arXiv 2406.18139). credit[0] is the sum, over all queries so far and the heads of the group, of the attention
 * probability that the slot received; every slot whose token has a tag other than 0 (image, audio, ...) is worth less than every slot of
 * text (the reference subtracts 10000; here the order is the same without the loss of digits). Victims are merged into the survivor with the
 * most similar key: `merge = auto` is `pivot`. The paper's tenth of recent tokens is `recent = 10%`. At decode: merged and named every window,
 * where the reference does both once, after the prompt.
 */
#ifndef EVICT_POLICY_LOOK_M_H
#define EVICT_POLICY_LOOK_M_H

EVICT_FN void evict_look_m_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	slot->credit[0] = slot->credit[0] + slot->heat[0];
}

EVICT_FN float evict_look_m_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->tag ? evict_below(slot->credit[0]) : slot->credit[0];
}

#endif
