/*
 * What a slot is worth: the part of a policy that runs over slots, written once for the host and for the device.
 * Compiles as C17 and as CUDA C++. Pure arithmetic on its arguments.
 *
 * A policy is a fold (heat of a window into credit) and a rank (what a slot is worth now). Each lives in its own
 * evict/policy_NAME.h of two functions; EVICT_POLICIES below lists them all, evict/policies.c describes them to people.
 * Adding one: write the header, add a line here and a row there.
 */
#ifndef EVICT_RULE_H
#define EVICT_RULE_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define EVICT_FN static __host__ __device__ __forceinline__
#else
#define EVICT_FN static inline __attribute__((always_inline, unused))
#endif

#define EVICT_MAX_PARAMS 4
#define EVICT_MAX_HEAT 2
#define EVICT_MAX_CREDIT 2

/* What a client's attend adds to a heat array, per slot, over the queries of a window and the heads of the group. */
enum evict_heat {
	EVICT_HEAT_SUM = 0,	/* sum of the probabilities */
	EVICT_HEAT_MAX = 1,	/* largest, over queries, of the group's summed probability */
	EVICT_HEAT_SQUARES = 2,	/* sum of the squared probabilities */
	EVICT_HEAT_LAST = 3,	/* the last query's group sum; every observed query overwrites it */
};

/* The policies, in the order of their ids: X(name). */
#define EVICT_POLICIES(X) X(full) X(streaming) X(random) X(h2o)

#define EVICT_ID(name) EVICT_##name,
enum evict_policy { EVICT_POLICIES(EVICT_ID) EVICT_N_POLICIES };
#undef EVICT_ID

/* A session's policy, ready to run. */
struct evict_rule {
	uint32_t policy;		/* enum evict_policy */
	int32_t sinks;			/* positions 0 .. sinks-1 are protected */
	int32_t pinned;			/* positions 0 .. pinned-1 are protected (the prompt); 0: none */
	uint32_t seed;			/* for policies that draw */
	float param[EVICT_MAX_PARAMS];	/* the policy's own, in the order of its table entry */
};

/* One slot as a policy sees it. */
struct evict_slot {
	int32_t pos;			/* position of its token */
	int32_t now;			/* position of the next token to come */
	uint32_t lane;
	float heat[EVICT_MAX_HEAT];	/* this window's, cleaned: finite and >= 0 */
	float credit[EVICT_MAX_CREDIT];	/* read by rank, updated by fold */
};

/* Heat comes from a client: NaN, Inf and negative numbers count as nothing. */
EVICT_FN float evict_clean(float heat)
{
	return heat >= 0.0f && heat <= 1e30f ? heat : 0.0f;
}

#include "evict/policy_full.h"
#include "evict/policy_streaming.h"
#include "evict/policy_random.h"
#include "evict/policy_h2o.h"

EVICT_FN void evict_fold(const struct evict_rule *rule, struct evict_slot *slot)
{
	switch (rule->policy) {
#define EVICT_CASE(name) case EVICT_##name: evict_##name##_fold(rule, slot); break;
	EVICT_POLICIES(EVICT_CASE)
#undef EVICT_CASE
	default: break;
	}
}

EVICT_FN float evict_rank(const struct evict_rule *rule, const struct evict_slot *slot)
{
	switch (rule->policy) {
#define EVICT_CASE(name) case EVICT_##name: return evict_##name##_rank(rule, slot);
	EVICT_POLICIES(EVICT_CASE)
#undef EVICT_CASE
	default: return 0.0f;
	}
}

/*
 * The order in which slots leave, smallest key first, as one 64-bit number:
 * 2 bits of protection (0 none, 1 pinned prompt, 2 recent, 3 sink), 32 bits of rank, 30 bits of position.
 * So ties go to the lower position, and protected slots leave only when nothing else is left.
 */
#define EVICT_MAX_POSITION ((1 << 30) - 1)

EVICT_FN uint32_t evict_order(float rank)	/* same order as the floats; NaN lowest, -0 = +0 */
{
	uint32_t bits;

	if (!(rank == rank))
		return 0;
	rank += 0.0f;
#ifdef __CUDA_ARCH__
	bits = __float_as_uint(rank);
#else
	memcpy(&bits, &rank, sizeof(bits));
#endif
	return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

EVICT_FN uint64_t evict_key(const struct evict_rule *rule, uint32_t recent, const struct evict_slot *slot)
{
	uint64_t tier = 0;

	if (slot->pos < rule->sinks)
		tier = 3;
	else if ((int64_t)slot->pos >= (int64_t)slot->now - (int64_t)recent)
		tier = 2;
	else if (slot->pos < rule->pinned)
		tier = 1;
	return tier << 62 | (uint64_t)evict_order(evict_rank(rule, slot)) << 30 | (uint32_t)(slot->pos & EVICT_MAX_POSITION);
}

#endif
