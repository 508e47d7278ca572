/*
 * ebb: attention from afar, times the size of the value. What a slot is worth is its attention over its whole remaining life, nearly all
 * of which comes from far behind; so far queries tell more about it than near ones, which look at every young token. A query
 * weighs as much as its distance to the slot, up to `far` tokens. With h a probability and w its query's weight, over all queries so far,
 *
 *	rank = sum(w h) / sum(w) * |v|
 *
 * Slots of different age are compared by means, so old ones have no lead; young ones have been seen from near only, which is why the
 * newest part of the budget is protected. |v| is the L2 norm of the value (trait[0]): what
 * is lost with a slot is its share times its value. sum(w) needs no memory: the queries since a slot's own lie at distances
 * 0 .. age, one each, so with m = min(age, far) it is m * (age - m / 2). Weights are taken once a window, at the middle of what of it
 * lies behind the slot. credit[0] is sum(w h) over the heads of the group.
 *
 * A fact that nobody has asked for yet (a number in a long text, to be quoted at its end) has no attention to show. What tells it from the text
 * around it is |v| / |k|, trait[0] / trait[1]: short keys draw attention (Devoto et al., arXiv 2406.11430), long values change what comes out. So the
 * `spare` share of the slots that may leave with the largest |v| / |k| is spared; in a lane of n slots 32 / n of it less, for a short
 * lane has none to give, and 64 / n at most, for a long one keeps what is looked for anyway. What was tried, and how it was found: docs/rule.md.
 */
#ifndef EVICT_POLICY_EBB_H
#define EVICT_POLICY_EBB_H

#define EVICT_EBB_SHORT 32.0f	/* a lane of so many slots spares none */
#define EVICT_EBB_MOST 64.0f	/* slots that are spared at most, if no slot of a lane is recent; 32 where half of them are */

enum { EVICT_EBB_FAR, EVICT_EBB_SPARE };

EVICT_FN void evict_ebb_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	const float age = evict_age(lane, slot), middle = age - 0.5f * evict_min(age, (float)lane->appended);

	slot->credit[0] += evict_min(middle, rule->param[EVICT_EBB_FAR]) * slot->heat[0];
}

EVICT_FN float evict_ebb_figure(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->trait[0] / evict_max(slot->trait[1], 1e-30f);
}

EVICT_FN float evict_ebb_share(const struct evict_rule *rule, const struct evict_lane *lane)
{
	const float live = (float)lane->live;

	return evict_min(rule->param[EVICT_EBB_SPARE] * evict_max(1.0f - EVICT_EBB_SHORT / live, 0.0f), EVICT_EBB_MOST / live);
}

EVICT_FN float evict_ebb_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	const float age = evict_age(lane, slot), m = evict_min(age, rule->param[EVICT_EBB_FAR]);
	const float rank = slot->credit[0] / (m * (age - 0.5f * m)) * slot->trait[0];

	return evict_spared(lane, evict_ebb_figure(rule, lane, slot), slot->pos) ? rank : evict_below(rank);
}

#endif
