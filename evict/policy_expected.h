/*
 * expected: what future queries are expected to pay, times the size of the value (Expected Attention, arXiv 2510.00636). With normal
 * queries a slot's logit is normal, so its attention is log-normal: exp(mean + variance / 2). The paper takes mean and variance from
 * statistics of the queries before RoPE, which the daemon does not see. At decode, and here: online per slot, from the logarithm of the
 * mean probability in each window (credit[0] mean, credit[1] variance, over about `horizon` windows); trait[0] is the value's L2 norm.
 */
#ifndef EVICT_POLICY_EXPECTED_H
#define EVICT_POLICY_EXPECTED_H

enum { EVICT_EXPECTED_HORIZON, EVICT_EXPECTED_VARIANCE, EVICT_EXPECTED_VALUES };

EVICT_FN void evict_expected_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	const float before = (evict_age(lane, slot) - 1.0f) / evict_max((float)lane->appended, 1.0f);
	const float windows = (float)(int32_t)before + 1.0f;	/* that the slot has seen, this one included */
	const float share = lane->queries ? 1.0f / evict_min(windows, rule->param[EVICT_EXPECTED_HORIZON]) : 0.0f;
	const float x = evict_log(evict_max(evict_mean_heat(rule, lane, slot), 1e-7f)), step = x - slot->credit[0];

	slot->credit[1] = (1.0f - share) * (slot->credit[1] + share * step * step);
	slot->credit[0] = share < 1.0f ? slot->credit[0] + share * step : x;
}

EVICT_FN float evict_expected_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	const float values = rule->param[EVICT_EXPECTED_VALUES];

	(void)lane;
	return evict_exp(slot->credit[0] + 0.5f * rule->param[EVICT_EXPECTED_VARIANCE] * slot->credit[1]) *
	       (values * slot->trait[0] + (1.0f - values));
}

#endif
