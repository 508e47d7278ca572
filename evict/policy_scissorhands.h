/*
 * scissorhands: importance persists (arXiv 2305.17118). A slot whose attention stays below the uniform value 1/t again and again
 * goes; of the last `windows` windows, credit[0] holds one bit each (exact in a float up to 24): 1 when the slot was below. At decode: the
 * paper counts queries of its last 400; here a window (32 queries) counts once, by the largest attention in it (the group's mean), and
 * t is the number of live slots.
 */
#ifndef EVICT_POLICY_SCISSORHANDS_H
#define EVICT_POLICY_SCISSORHANDS_H

enum { EVICT_SCISSORHANDS_WINDOWS };

EVICT_FN void evict_scissorhands_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	const uint32_t shift = lane->queries ? 1u : 0u, mask = (1u << (uint32_t)rule->param[EVICT_SCISSORHANDS_WINDOWS]) - 1u;
	const uint32_t low = slot->heat[0] * (float)lane->live < evict_group(rule);

	slot->credit[0] = (float)(int32_t)((((uint32_t)(int32_t)slot->credit[0] << shift) | (low & shift)) & mask);
}

EVICT_FN float evict_scissorhands_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	uint32_t n = (uint32_t)(int32_t)slot->credit[0];

	(void)rule;
	(void)lane;
	n -= n >> 1 & 0x555555u;	/* how many bits are set, by twos, fours and eights */
	n = (n & 0x333333u) + (n >> 2 & 0x333333u);
	n = (n + (n >> 4)) & 0x0f0f0fu;
	return -(float)(int32_t)((n * 0x010101u >> 16) & 0xffu);
}

#endif
