/*
 * l2norm: keys of small L2 norm are kept (arXiv 2406.11430): a small norm goes with high attention. trait[0] is the norm, computed once.
 * The paper leaves the first two layers whole; here every lane has its budget (a split can give those more).
 */
#ifndef EVICT_POLICY_L2NORM_H
#define EVICT_POLICY_L2NORM_H

EVICT_NO_FOLD(l2norm)

EVICT_FN float evict_l2norm_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return -slot->trait[0];
}

#endif
