/*
 * random: every slot draws a fresh uniform number at every window; the smallest leave. The baseline that a rule with
 * scores has to beat. The draw is a hash of (seed, lane, position, now), so that a run can be repeated and nothing
 * needs to be stored. With the prompt pinned (its default) it is the "random attention" baseline of methods.md 2.15.
 */
#ifndef EVICT_POLICY_RANDOM_H
#define EVICT_POLICY_RANDOM_H

EVICT_NO_FOLD(random)

EVICT_FN float evict_random_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	return (float)evict_draw(rule->seed, lane->lane, lane->now, slot->pos);	/* 24 bits: exact in a float */
}

#endif
