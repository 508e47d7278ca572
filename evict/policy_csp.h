/*
 * csp: budgets of their own for attention within a modality and across (CSP, arXiv 2412.04652). credit[0] is the mean probability over the last
 * `queries` queries and the group. A slot is on the side "self" when its tag is that of the session's newest token, whose modality the recent queries
 * have, else "cross". On each side slots have a place by credit (0: the most of those that may leave; of equals the higher position), and the rank is
 * -(place + 1/2) / share, with `cross` the one side's share and 1 - cross the other's. So of any number of slots that are kept (beside the
 * protected) the sides have these shares; where one has too few the other takes the rest. The reference cuts two top-k lists, in which one
 * token can be twice, at the end of the prompt; it scores with exp(x) / (1 + sum of exp), here it is the softmax that attends. Where the
 * recent queries are of two modalities, all count as the newest's.
 */
#ifndef EVICT_POLICY_CSP_H
#define EVICT_POLICY_CSP_H

enum { EVICT_CSP_CROSS, EVICT_CSP_QUERIES };

EVICT_FN float evict_csp_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	return evict_recent_share(lane, rule->param[EVICT_CSP_QUERIES]);
}

EVICT_FN void evict_csp_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	slot->credit[0] = evict_recent_mean(rule, lane, slot);
}

EVICT_FN float evict_csp_worth(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

EVICT_FN float evict_csp_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	const float cross = rule->param[EVICT_CSP_CROSS], share = slot->tag == lane->tag ? 1.0f - cross : cross;

	return share > 0.0f ? -(slot->place + 0.5f) / share : -1e30f;
}

#endif
