/*
 * What a slot is worth: the part of a policy that runs over slots, written once for the host and for the device.
 * Compiles as C17 and as CUDA C++. Pure arithmetic on its arguments (evict/math.h says which, so that both give the same bits).
 *
 * A policy is a file evict/policy_NAME.h of a few functions:
 *
 *	evict_NAME_fold(rule, lane, slot)	heat of a window, and what was credit, into credit
 *	evict_NAME_rank(rule, lane, slot)	what the slot is worth now; the smallest leave
 *
 * and where one slot's own numbers do not say it all, in this order:
 *
 *	evict_NAME_constant	-> lane->constant	a number that is the same for all slots
 *	traits		numbers from the slot's K and V rows that the table row asks for (enum evict_trait)
 *	evict_NAME_heat_figure	-> lane->heat	sum and maximum over the lane before the fold
 *	evict_NAME_figure	-> lane->rank	sum and maximum over the lane before the ranking
 *	evict_NAME_share	-> lane->cut	the share with the largest figure is spared (evict_n_spared()); others are ranked evict_below()
 *	evict_NAME_pool, _kernel, _mean	-> slot->pooled		a value pooled over neighbours in position order
 *	evict_NAME_worth	-> slot->place		how many slots of the same side of the lane are worth more
 *
 * EVICT_POLICIES and the lists below it name them all, evict/policies.c describes them to people. docs/add-a-policy.md
 * walks through adding one.
 */
#ifndef EVICT_RULE_H
#define EVICT_RULE_H

#include "evict/mark.h"
#include "evict/math.h"
#include "evict/merge.h"
#include "evict/trait.h"

#define EVICT_MAX_PARAMS 6
#define EVICT_MAX_HEAT 2
#define EVICT_MAX_CREDIT 2
#define EVICT_MAX_ARRAYS (EVICT_MAX_CREDIT + EVICT_MAX_TRAIT)	/* in a credit block: credits, then traits */

/* What a client's attend adds to a heat array, per slot, over the queries of a window and the heads of the group. */
enum evict_heat {
	EVICT_HEAT_SUM = 0,	/* sum of the probabilities */
	EVICT_HEAT_MAX = 1,	/* largest, over queries, of the group's summed probability */
	EVICT_HEAT_SQUARES = 2,	/* sum of the squared probabilities */
	EVICT_HEAT_LAST = 3,	/* the last query's group sum; every observed query overwrites it */
	EVICT_N_HEAT = 4,
};

/* The policies, in the order of their ids: X(name, heat arrays, credits, traits). */
#define EVICT_POLICIES(X)									\
	X(full, 0, 0, 0) X(streaming, 0, 0, 0) X(random, 0, 0, 0) X(h2o, 1, 1, 0)		\
	X(tova, 1, 1, 0) X(scissorhands, 1, 1, 0) X(roco, 2, 2, 0) X(keyformer, 1, 1, 0)	\
	X(snapkv, 1, 1, 0) X(morphkv, 1, 1, 0) X(rkv, 1, 1, 1) X(gkv, 1, 1, 1)			\
	X(raas, 1, 1, 0) X(lazy, 1, 2, 0) X(nacl, 1, 1, 0) X(l2norm, 0, 0, 1)			\
	X(vatp, 1, 1, 1) X(keydiff, 0, 0, 1) X(lagkv, 0, 0, 1) X(expected, 1, 2, 1)		\
	X(cam, 1, 1, 0) X(d2o, 1, 1, 0)								\
	X(look_m, 1, 1, 0) X(vl_cache, 1, 1, 0) X(csp, 1, 1, 0) X(ebb, 1, 1, 1)

/* Those that also have a figure over the heat, a figure before the ranking, a cut by it, a pooled value. */
#define EVICT_WITH_HEAT_FIGURE(X) X(keyformer) X(gkv)
#define EVICT_WITH_FIGURE(X) X(roco) X(rkv) X(gkv) X(nacl) X(ebb)
#define EVICT_WITH_CUT(X) X(roco) X(nacl) X(ebb)
#define EVICT_WITH_POOL(X) X(snapkv) X(rkv) X(gkv)

/* Those that rank by place (no pooled value then), those that look at the tag of a slot, and those that collect no heat from queries up to the last
   token that has one. */
#define EVICT_WITH_PLACE(X) X(csp)
#define EVICT_WITH_TAG(X) X(look_m) X(csp)
#define EVICT_WITH_LATE_HEAT(X) X(vl_cache)

/* Those that compute a number once per lane and window, before the fold: evict_NAME_constant() -> lane->constant. */
#define EVICT_WITH_CONSTANT(X) X(h2o) X(tova) X(keyformer) X(snapkv) X(morphkv) X(rkv) X(nacl) X(vatp) X(cam) X(csp)

/* Those whose first parameter is an exponent of age, 0 by default: the host compiles the loop without it as well. */
#define EVICT_WITH_AGE(X) X(h2o) X(vatp)

#define EVICT_ID(name, heat, credits, traits) EVICT_##name,
enum evict_policy { EVICT_POLICIES(EVICT_ID) EVICT_N_POLICIES };
#undef EVICT_ID

/* A session's policy, ready to run. evict_parse() fills in policy, param, heat, trait and lag. */
struct evict_rule {
	uint32_t policy;		/* enum evict_policy */
	int32_t sinks;			/* positions 0 .. sinks-1 are protected */
	int32_t pinned;			/* positions 0 .. pinned-1 are protected (the prompt); 0: none */
	int32_t since;			/* the policy knows of slots from this position on (it was taken up then): older ones count as this old */
	uint32_t seed;			/* for policies that draw */
	uint32_t group;			/* query heads per KV head, over which heat is summed; 0 counts as 1 */
	uint32_t budget;		/* slots that a lane of the session has on average (evict_budget()); 0: as many as the lane at hand */
	float param[EVICT_MAX_PARAMS];	/* the policy's own, in the order of its table entry */
	uint32_t heat[EVICT_MAX_HEAT];	/* enum evict_heat: what is collected */
	uint32_t trait[EVICT_MAX_TRAIT];/* enum evict_trait: what is computed from K and V, */
	uint32_t lag;			/* and for EVICT_KEY_LAG, slots of a partition */
	uint32_t merge;			/* enum evict_merge; evict_merge_parse() fills in these two */
	float merge_param[EVICT_MAX_MERGE_PARAMS];
};

/* Numbers over all live slots of a lane. */
struct evict_figures {
	float sum, max;			/* sum: in the order of evict_places(); max: 0 when nothing is larger */
};

/* One lane as a policy sees it. */
struct evict_lane {
	uint32_t lane;
	int32_t now;			/* position of the next token to come */
	int32_t since;			/* the rule's */
	uint32_t tag;			/* of the newest token */
	uint32_t appended;		/* tokens of the window that ended */
	uint32_t observe;		/* every so many-th query is observed; 0: none */
	uint32_t queries;		/* of the window's tokens, how many were */
	uint32_t live;			/* slots */
	uint32_t keep;			/* of them, how many the plan lets stay */
	float constant;
	struct evict_figures heat, rank;
	uint64_t cut;			/* see evict_spared() */
};

/* One slot as a policy sees it. */
struct evict_slot {
	int32_t pos;			/* position of its token */
	uint32_t tag;			/* modality of its token; 0: text */
	float heat[EVICT_MAX_HEAT];	/* this window's, cleaned: finite and >= 0; for fold and the heat figure */
	float credit[EVICT_MAX_CREDIT];	/* read by rank, updated by fold */
	float trait[EVICT_MAX_TRAIT];
	float pooled, place;		/* for rank */
};

/* Heat comes from a client: NaN, Inf and negative numbers count as nothing. */
EVICT_FN float evict_clean(float heat)
{
	return heat >= 0.0f && heat <= 1e30f ? heat : 0.0f;
}

EVICT_FN float evict_group(const struct evict_rule *rule)
{
	return (float)(rule->group ? rule->group : 1u);
}

/* Tokens since the slot's own, itself included: the queries that can have looked at it, as far as the policy was there. */
EVICT_FN float evict_age(const struct evict_lane *lane, const struct evict_slot *slot)
{
	return (float)(lane->now - (slot->pos > lane->since ? slot->pos : lane->since));
}

/* Of those, the observed ones: at least 1. */
EVICT_FN float evict_seen(const struct evict_lane *lane, const struct evict_slot *slot)
{
	return evict_max(evict_age(lane, slot) / (float)(lane->observe > 1u ? lane->observe : 1u), 1.0f);
}

/* Where heat[0] is a sum: the window's mean probability, over observed queries and the heads of the group. */
EVICT_FN float evict_mean_heat(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	return slot->heat[0] / evict_max(evict_group(rule) * (float)lane->queries, 1.0f);
}

/*
 * The mean over the last `queries` queries, for policies whose constant is evict_recent_share(): windows of as many queries or
 * more replace what was, shorter ones are mixed into it.
 */
EVICT_FN float evict_recent_share(const struct evict_lane *lane, float queries)
{
	return evict_min((float)lane->queries / queries, 1.0f);
}

EVICT_FN float evict_recent_mean(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	return slot->credit[0] * (1.0f - lane->constant) + evict_mean_heat(rule, lane, slot) * lane->constant;
}

/*
 * The order of floats as unsigned integers; NaN lowest, -0 = +0.
 */
EVICT_FN uint32_t evict_order(float rank)
{
	uint32_t bits;

	if (!(rank == rank))
		return 0;
	bits = evict_bits(rank + 0.0f);
	return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

#define EVICT_MAX_POSITION ((1 << 30) - 1)

/* Order by value, equal values by position: 62 bits. */
EVICT_FN uint64_t evict_place(float value, int32_t pos)
{
	return (uint64_t)evict_order(value) << 30 | (uint32_t)(pos & EVICT_MAX_POSITION);
}

/* Whether a slot with this figure is among the spared: the `share` of largest figures among the slots that may leave. */
EVICT_FN int evict_spared(const struct evict_lane *lane, float figure, int32_t pos)
{
	return evict_place(figure, pos) >= lane->cut;
}

/* For x >= 0: the same order, and all below 0. Lets a rank put some slots below all others. Given what it returned, x again. */
EVICT_FN float evict_below(float x)
{
	return -1.0f / x;
}

#define EVICT_NO_FOLD(name)											\
EVICT_FN void evict_##name##_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)	\
{														\
	(void)rule;												\
	(void)lane;												\
	(void)slot;												\
}

#include "evict/policy_full.h"
#include "evict/policy_streaming.h"
#include "evict/policy_random.h"
#include "evict/policy_h2o.h"
#include "evict/policy_tova.h"
#include "evict/policy_scissorhands.h"
#include "evict/policy_roco.h"
#include "evict/policy_keyformer.h"
#include "evict/policy_snapkv.h"
#include "evict/policy_morphkv.h"
#include "evict/policy_rkv.h"
#include "evict/policy_gkv.h"
#include "evict/policy_raas.h"
#include "evict/policy_lazy.h"
#include "evict/policy_nacl.h"
#include "evict/policy_l2norm.h"
#include "evict/policy_vatp.h"
#include "evict/policy_keydiff.h"
#include "evict/policy_lagkv.h"
#include "evict/policy_expected.h"
#include "evict/policy_cam.h"
#include "evict/policy_d2o.h"
#include "evict/policy_look_m.h"
#include "evict/policy_vl_cache.h"
#include "evict/policy_csp.h"
#include "evict/policy_ebb.h"

/* --- dispatch: one switch per function ---------------------------------------------------------------------------------------- */

EVICT_FN uint32_t evict_n_heat(uint32_t policy)
{
	switch (policy) {
#define EVICT_CASE(name, heat, credits, traits) case EVICT_##name: return heat;
	EVICT_POLICIES(EVICT_CASE)
#undef EVICT_CASE
	default: return 0;
	}
}

EVICT_FN uint32_t evict_n_credit(uint32_t policy)
{
	switch (policy) {
#define EVICT_CASE(name, heat, credits, traits) case EVICT_##name: return credits;
	EVICT_POLICIES(EVICT_CASE)
#undef EVICT_CASE
	default: return 0;
	}
}

EVICT_FN uint32_t evict_n_trait(uint32_t policy)
{
	switch (policy) {
#define EVICT_CASE(name, heat, credits, traits) case EVICT_##name: return traits;
	EVICT_POLICIES(EVICT_CASE)
#undef EVICT_CASE
	default: return 0;
	}
}

/* Traits of the rule that are a row's own: computed once, when a slot is settled. */
/* Does a trait need the mean of the lane's first values? */
EVICT_FN int evict_has_apart(const struct evict_rule *rule)
{
	return rule->trait[0] == EVICT_VALUE_APART || rule->trait[1] == EVICT_VALUE_APART;
}

EVICT_FN uint32_t evict_n_trait_once(const struct evict_rule *rule)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < evict_n_trait(rule->policy); i++)
		n += (uint32_t)evict_trait_once(rule->trait[i]);
	return n;
}

/*
 * What a policy's first credit is, where other policies keep the same: 1 a running sum of heat (decayed or not), 2 the mean of recent
 * queries; 0: something of its own.
 */
EVICT_FN uint32_t evict_credit_kind(uint32_t policy)
{
	switch (policy) {
	case EVICT_h2o: case EVICT_vatp: case EVICT_d2o: case EVICT_look_m: return 1;
	case EVICT_snapkv: case EVICT_cam: case EVICT_nacl: case EVICT_rkv: case EVICT_csp: return 2;
	default: return 0;
	}
}

/*
 * A session's policy changes from `a` to `b`: how many credits, from the first, mean the same to both and stay. Those of one policy
 * with the same heat and traits, whatever its other parameters; the first of two that keep the same kind of the same heat; else none.
 */
EVICT_FN uint32_t evict_credits_kept(const struct evict_rule *a, const struct evict_rule *b)
{
	const uint32_t p = a->policy, q = b->policy;

	for (uint32_t i = 0; i < evict_n_heat(p) && i < evict_n_heat(q); i++)
		if (a->heat[i] != b->heat[i])
			return 0;
	if (p == q)
		return evict_n_credit(p);
	return evict_credit_kind(p) && evict_credit_kind(p) == evict_credit_kind(q);
}

/* Arrays of a credit block. */
EVICT_FN uint32_t evict_n_arrays(uint32_t policy)
{
	return evict_n_credit(policy) + evict_n_trait(policy);
}

#define EVICT_YES(name) case EVICT_##name: return 1;
EVICT_FN int evict_has_heat_figure(uint32_t policy)
{
	switch (policy) {
	EVICT_WITH_HEAT_FIGURE(EVICT_YES)
	default: return 0;
	}
}

EVICT_FN int evict_has_figure(uint32_t policy)
{
	switch (policy) {
	EVICT_WITH_FIGURE(EVICT_YES)
	default: return 0;
	}
}

EVICT_FN int evict_has_cut(uint32_t policy)
{
	switch (policy) {
	EVICT_WITH_CUT(EVICT_YES)
	default: return 0;
	}
}

EVICT_FN int evict_has_pool(uint32_t policy)
{
	switch (policy) {
	EVICT_WITH_POOL(EVICT_YES)
	default: return 0;
	}
}

EVICT_FN int evict_has_age(uint32_t policy)
{
	switch (policy) {
	EVICT_WITH_AGE(EVICT_YES)
	default: return 0;
	}
}

EVICT_FN int evict_has_place(uint32_t policy)
{
	switch (policy) {
	EVICT_WITH_PLACE(EVICT_YES)
	default: return 0;
	}
}

EVICT_FN int evict_has_tag(uint32_t policy)
{
	switch (policy) {
	EVICT_WITH_TAG(EVICT_YES)
	default: return 0;
	}
}

EVICT_FN int evict_has_late_heat(uint32_t policy)
{
	switch (policy) {
	EVICT_WITH_LATE_HEAT(EVICT_YES)
	default: return 0;
	}
}
#undef EVICT_YES

/* Whether the lane has to be gone over before its slots can be ranked: otherwise fold and rank are one pass. */
EVICT_FN int evict_is_staged(const struct evict_rule *rule)
{
	const uint32_t p = rule->policy;

	for (uint32_t i = 0; i < evict_n_trait(p); i++)
		if (!evict_trait_once(rule->trait[i]))
			return 1;
	return evict_has_heat_figure(p) || evict_has_figure(p) || evict_has_cut(p) || evict_has_pool(p) || evict_has_place(p);
}

EVICT_FN void evict_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	switch (rule->policy) {
#define EVICT_CASE(name, heat, credits, traits) case EVICT_##name: evict_##name##_fold(rule, lane, slot); break;
	EVICT_POLICIES(EVICT_CASE)
#undef EVICT_CASE
	default: break;
	}
}

EVICT_FN float evict_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	switch (rule->policy) {
#define EVICT_CASE(name, heat, credits, traits) case EVICT_##name: return evict_##name##_rank(rule, lane, slot);
	EVICT_POLICIES(EVICT_CASE)
#undef EVICT_CASE
	default: return 0.0f;
	}
}

EVICT_FN float evict_constant(const struct evict_rule *rule, const struct evict_lane *lane)
{
	switch (rule->policy) {
#define EVICT_CASE(name) case EVICT_##name: return evict_##name##_constant(rule, lane);
	EVICT_WITH_CONSTANT(EVICT_CASE)
#undef EVICT_CASE
	default: return 0.0f;
	}
}

EVICT_FN float evict_heat_figure(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)lane;
	(void)slot;
	switch (rule->policy) {
#define EVICT_CASE(name) case EVICT_##name: return evict_##name##_heat_figure(rule, lane, slot);
	EVICT_WITH_HEAT_FIGURE(EVICT_CASE)
#undef EVICT_CASE
	default: return 0.0f;
	}
}

EVICT_FN float evict_figure(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)lane;
	(void)slot;
	switch (rule->policy) {
#define EVICT_CASE(name) case EVICT_##name: return evict_##name##_figure(rule, lane, slot);
	EVICT_WITH_FIGURE(EVICT_CASE)
#undef EVICT_CASE
	default: return 0.0f;
	}
}

EVICT_FN float evict_share(const struct evict_rule *rule, const struct evict_lane *lane)	/* 0 .. 1 */
{
	(void)lane;
	switch (rule->policy) {
#define EVICT_CASE(name) case EVICT_##name: return evict_##name##_share(rule, lane);
	EVICT_WITH_CUT(EVICT_CASE)
#undef EVICT_CASE
	default: return 0.0f;
	}
}

/* How many of n slots are spared, of which free_slots may leave and all but lane->keep do: the share of those that may leave and stay. */
EVICT_FN uint32_t evict_n_spared(const struct evict_rule *rule, const struct evict_lane *lane, uint32_t n, uint32_t free_slots)
{
	const uint32_t leave = n > lane->keep ? n - lane->keep : 0u;

	return free_slots > leave ? (uint32_t)(evict_share(rule, lane) * (float)(free_slots - leave)) : 0u;
}

EVICT_FN float evict_pool(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)lane;
	(void)slot;
	switch (rule->policy) {
#define EVICT_CASE(name) case EVICT_##name: return evict_##name##_pool(rule, lane, slot);
	EVICT_WITH_POOL(EVICT_CASE)
#undef EVICT_CASE
	default: return 0.0f;
	}
}

/*
 * pooled[j] = over the live slots whose places in the order of positions are within kernel / 2 of j's own: the largest value, or the
 * sum, lower positions first, divided by the kernel (also at the ends, where there are fewer).
 */
EVICT_FN uint32_t evict_kernel(const struct evict_rule *rule)	/* odd */
{
	switch (rule->policy) {
#define EVICT_CASE(name) case EVICT_##name: return evict_##name##_kernel(rule) | 1u;
	EVICT_WITH_POOL(EVICT_CASE)
#undef EVICT_CASE
	default: return 1;
	}
}

EVICT_FN int evict_pool_mean(const struct evict_rule *rule)
{
	switch (rule->policy) {
#define EVICT_CASE(name) case EVICT_##name: return evict_##name##_mean(rule);
	EVICT_WITH_POOL(EVICT_CASE)
#undef EVICT_CASE
	default: return 0;
	}
}

/*
 * place = of the live slots on the same side (those with the tag of the newest token, or the others) that may leave, how many are worth more, or as
 * much at a higher position. Of a protected slot: 0.
 */
EVICT_FN float evict_worth(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)lane;
	(void)slot;
	switch (rule->policy) {
#define EVICT_CASE(name) case EVICT_##name: return evict_##name##_worth(rule, lane, slot);
	EVICT_WITH_PLACE(EVICT_CASE)
#undef EVICT_CASE
	default: return 0.0f;
	}
}

/* Observed queries among `n` from position pos on: those whose position is a multiple of observe; 0: none. */
EVICT_FN uint32_t evict_queries(uint32_t observe, int32_t pos, uint32_t n)
{
	const uint32_t first = (uint32_t)pos;

	return observe ? (first + n + observe - 1u) / observe - (first + observe - 1u) / observe : 0;
}

/* A lane whose window of `appended` tokens from position pos on has ended, and which keeps all its slots; figures are not known yet. */
EVICT_FN struct evict_lane evict_lane_at(const struct evict_rule *rule, uint32_t number, int32_t pos, uint32_t appended,
					 uint32_t observe, uint32_t live)
{
	struct evict_lane lane;

	memset(&lane, 0, sizeof(lane));
	lane.lane = number;
	lane.now = pos + (int32_t)appended;
	lane.since = rule->since;
	lane.appended = appended;
	lane.observe = observe;
	lane.queries = evict_queries(observe, pos, appended);
	lane.live = lane.keep = live;
	lane.cut = ~0ull;
	lane.constant = evict_constant(rule, &lane);
	return lane;
}

/*
 * The order in which slots leave, smallest key first, as one 64-bit number:
 * 2 bits of protection (0 none, 1 pinned, 2 recent, 3 sink), 32 bits of rank, 30 bits of position. Pinned is a pinned prompt, or what
 * the client pins: evict_marked_key() (evict/mark.h). So ties go to the lower position, and protected slots leave only when nothing else is left.
 */
EVICT_FN uint64_t evict_tier(const struct evict_rule *rule, uint32_t recent, int32_t now, int32_t pos)
{
	const int32_t newest = (int32_t)(recent < 0x7fffffffu ? recent : 0x7fffffffu);
	uint64_t tier = pos < rule->pinned;

	tier = now - pos <= newest ? 2 : tier;	/* neither is negative: pos >= now - recent */
	return pos < rule->sinks ? 3 : tier;
}

EVICT_FN uint64_t evict_key(const struct evict_rule *rule, const struct evict_lane *lane, uint32_t recent,
			    const struct evict_slot *slot)
{
	return evict_tier(rule, recent, lane->now, slot->pos) << 62 | evict_place(evict_rank(rule, lane, slot), slot->pos);
}

#endif
