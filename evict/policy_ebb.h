/*
 * ebb: attention from afar, times how far the value is from the lane's others. What a slot is worth is its attention over its whole remaining
 * life, nearly all of which comes from far behind; so far queries tell more about it than near ones, which look at every young token. A query
 * weighs as much as its distance to the slot, up to `far` tokens. With h a probability and w its query's weight, over all queries so far,
 *
 *	rank = sum(w h) / sum(w) * |v - c|
 *
 * Slots of different age are compared by means, so old ones have no lead; young ones have been seen from near only, which is why the
 * newest part of the budget is protected. An attention of p to a slot that is gone changes an output o by p / (1 - p) |v - o|; c, the mean of
 * some of the lane's values, stands for o (trait[0], EVICT_VALUE_APART). With |v| in its place a slot whose value is small and whose attention is large
 * would leave, on which others then fall. sum(w) needs no memory: the queries since a slot's own lie at distances
 * 0 .. age, one each, so with m = min(age, far) it is m * (age - m / 2). Weights are taken once a window, at the middle of what of it
 * lies behind the slot. credit[0] is sum(w h) over the heads of the group.
 *
 * A fact that nobody has asked for yet (a number in a long text, to be quoted at its end) has no attention to show. What tells it from the text
 * around it is a value far from the lane's others. So of the slots that may leave, and stay, a share with the largest |v - c| is spared. With n slots that
 * stay in the lane and b in the session's lanes on average,
 *
 *	share = spare * clamp(n / b - 1/2, 0, 1) * clamp(b / 96 - 1, 0, 1)
 *
 * for it is the lanes with more than their part that look so far back, small ones have none to give, and sessions of few slots neither. What
 * was tried, and how it was found: docs/rule.md.
 */
#ifndef EVICT_POLICY_EBB_H
#define EVICT_POLICY_EBB_H

#define EVICT_EBB_FEW 96.0f	/* slots a lane, on average: sessions with so many spare none, with twice as many all they are told to */

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
	return slot->trait[0];
}

EVICT_FN float evict_ebb_share(const struct evict_rule *rule, const struct evict_lane *lane)
{
	const float keep = (float)lane->keep, budget = rule->budget ? (float)rule->budget : evict_max(keep, 1.0f);

	return rule->param[EVICT_EBB_SPARE] * evict_min(evict_max(keep / budget - 0.5f, 0.0f), 1.0f) *
	       evict_min(evict_max(budget / EVICT_EBB_FEW - 1.0f, 0.0f), 1.0f);
}

EVICT_FN float evict_ebb_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	const float age = evict_age(lane, slot), m = evict_min(age, rule->param[EVICT_EBB_FAR]);
	const float rank = slot->credit[0] / (m * (age - 0.5f * m)) * slot->trait[0];

	return evict_spared(lane, evict_ebb_figure(rule, lane, slot), slot->pos) ? rank : evict_below(rank);
}

#endif
