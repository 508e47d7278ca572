/*
 * Traits: numbers about a slot that come from its K and V rows, for the policies whose table row asks for them. A trait is either a
 * row's own (computed once, when the slot is settled) or the lane's as a whole (computed anew at every fold). Traits lie in credit
 * blocks behind the credits, so they move with their slot.
 *
 * Arithmetic: elements as evict_element() leaves them, row sums in the order of evict_dot(). A unit row is x * (1 / norm), all 0
 * when the norm is 0. Rows are what attend reads: after rounding to the slots' type, q8 widened as offset + scale * q.
 */
#ifndef EVICT_TRAIT_H
#define EVICT_TRAIT_H

#include "evict/math.h"

#define EVICT_MAX_TRAIT 2

enum evict_trait {
	EVICT_NO_TRAIT = 0,
	EVICT_KEY_NORM = 1,		/* once: L2 norm of the key as stored (after RoPE, which does not change it) */
	EVICT_VALUE_L1 = 2,		/* once */
	EVICT_VALUE_L2 = 3,		/* once */
	EVICT_KEY_COSINE = 4,		/* to the mean of the lane's unit keys */
	EVICT_KEY_REDUNDANCY = 5,	/* mean cosine to the lane's other keys, as R-KV takes it: see gpu/host/k_trait.h */
	EVICT_KEY_LAG = 6,		/* LagKV's score: see gpu/host/k_trait.h */
};

EVICT_FN int evict_trait_once(uint32_t trait)
{
	return trait <= EVICT_VALUE_L2;
}

EVICT_FN float evict_norm(const float *row, uint32_t d)
{
	return evict_sqrt(evict_dot(row, row, d));
}

/* A trait of the `once` kind, from one slot's rows as float32 (elements cleaned). */
EVICT_FN float evict_trait_of(uint32_t trait, const float *k, const float *v, uint32_t d)
{
	switch (trait) {
	case EVICT_KEY_NORM: return evict_norm(k, d);
	case EVICT_VALUE_L1: return evict_sum_abs(v, d);
	case EVICT_VALUE_L2: return evict_norm(v, d);
	default: return 0.0f;
	}
}

#endif
