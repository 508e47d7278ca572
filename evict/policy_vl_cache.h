/*
 * vl-cache: what is looked at from behind the images (VL-Cache, arXiv 2410.23317). credit[0] is the sum of the attention probability that the
 * slot received from queries behind the last token with a tag other than 0; the others collect no heat (the client's attend leaves them out, to
 * the token, whatever the window). Until there are such queries all slots are worth the same, and the lower positions go first: so let
 * the prompt come in whole (`prefill = whole`), as in the paper. Credit from behind an earlier image stays when a later one comes. Its
 * budgets are the split `sparsity`, which then sees the same queries' heat; its tenth of recent tokens is `recent = 10%`.
 */
#ifndef EVICT_POLICY_VL_CACHE_H
#define EVICT_POLICY_VL_CACHE_H

EVICT_FN void evict_vl_cache_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	slot->credit[0] = slot->credit[0] + slot->heat[0];
}

EVICT_FN float evict_vl_cache_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	return slot->credit[0];
}

#endif
