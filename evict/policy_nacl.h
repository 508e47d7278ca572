/*
 * nacl: the best by proxy queries, the rest by lot (arXiv 2408.03675). credit[0] is the mean attention of the recent queries (the
 * proxies). All but the `random` share of the slots that may leave are spared by it; from that share slots leave so that those who
 * stay are a sample without replacement from softmax(credit / temperature) (Gumbel keys). At decode: proxies are the last window's
 * queries, where the paper takes the end of the prompt.
 */
#ifndef EVICT_POLICY_NACL_H
#define EVICT_POLICY_NACL_H

enum { EVICT_NACL_RANDOM, EVICT_NACL_TEMPERATURE, EVICT_NACL_QUERIES };

EVICT_FN float evict_nacl_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	return evict_recent_share(lane, rule->param[EVICT_NACL_QUERIES]);
}

EVICT_FN void evict_nacl_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	slot->credit[0] = evict_recent_mean(rule, lane, slot);
}

EVICT_FN float evict_nacl_figure(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

EVICT_FN float evict_nacl_share(const struct evict_rule *rule, const struct evict_lane *lane)
{
	(void)lane;
	return 1.0f - rule->param[EVICT_NACL_RANDOM];
}

EVICT_FN float evict_nacl_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	const float u = evict_uniform(evict_draw(rule->seed, lane->lane, lane->now, slot->pos));

	if (evict_spared(lane, slot->credit[0], slot->pos))
		return slot->credit[0];
	/* log(u) * e^-x orders as x + Gumbel noise does, below 0 */
	return evict_log(u) * evict_exp(-slot->credit[0] / rule->param[EVICT_NACL_TEMPERATURE]);
}

#endif
