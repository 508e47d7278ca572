/*
 * random: every slot draws a fresh uniform number at every window; the smallest leave. The baseline that a rule with
 * scores has to beat. The draw is a hash of (seed, lane, position, now), so that a run can be repeated and nothing
 * needs to be stored. With the prompt pinned (its default) it is the "random attention" baseline of methods.md 2.15.
 */
#ifndef EVICT_POLICY_RANDOM_H
#define EVICT_POLICY_RANDOM_H

/* 32-bit finaliser with full avalanche (multiply, xor-shift rounds as in MurmurHash3's public-domain fmix32). */
EVICT_FN uint32_t evict_mix(uint32_t x)
{
	x ^= x >> 16;
	x *= 0x85ebca6bu;
	x ^= x >> 13;
	x *= 0xc2b2ae35u;
	x ^= x >> 16;
	return x;
}

EVICT_FN void evict_random_fold(const struct evict_rule *rule, struct evict_slot *slot)
{
	(void)rule;
	(void)slot;
}

EVICT_FN float evict_random_rank(const struct evict_rule *rule, const struct evict_slot *slot)
{
	uint32_t h = evict_mix(rule->seed + 0x9e3779b9u);

	h = evict_mix(h ^ (slot->lane + 0x7f4a7c15u));
	h = evict_mix(h ^ (uint32_t)slot->now);
	h = evict_mix(h ^ (uint32_t)slot->pos);
	return (float)(h >> 8);	/* 24 bits: exact in a float */
}

#endif
