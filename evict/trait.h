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
#define EVICT_FIRST 64u		/* slots that stand for a lane; even */

enum evict_trait {
	EVICT_NO_TRAIT = 0,
	EVICT_KEY_NORM = 1,		/* once: L2 norm of the key as stored (after RoPE, which does not change it) */
	EVICT_VALUE_L1 = 2,		/* once */
	EVICT_VALUE_L2 = 3,		/* once */
	/*
	 * Once: how far a value v is from where the lane's values are, the L2 norm of v - m. m is the mean of the values of the lane's first
	 * EVICT_FIRST slots (or as many as live) when v's slot is settled: the sum of the even slots, ascending, plus that of the odd ones, times one
	 * over their number. What a slot is merged with does not change it.
	 */
	EVICT_VALUE_APART = 4,
	/*
	 * Cosine to the mean of the lane's unit keys u. With S the sum of u (16 partial sums, row r of pages 0, 1, ...; then halves as in
	 * evict_dot()): u . S / |S|, or 0 when |S| is 0.
	 */
	EVICT_KEY_COSINE = 5,
	/*
	 * Mean cosine to the lane's other keys as R-KV takes it: for every slot i one other slot is not counted, the one of highest
	 * position whose cosine to i is above 0.5 (the slot of lowest position when there is none). With n live
	 * slots:
	 * (u_j . S - u_j . u_j - sum over those i, slots ascending, whose uncounted slot is j, of u_i . u_j) / n.
	 */
	EVICT_KEY_REDUNDANCY = 6,
	/*
	 * LagKV's score. Of the live slots in the order of positions, those behind the sinks in partitions of lag. A row's deviation: of its
	 * channels scaled by the next partition's minimum and maximum (evict_lag_scale()), unbiased. Softmax over the partition, of
	 * K's and of V's, sums in the order of positions; the place of their sum in the partition (from 0, ties by position), over lag. Sinks, the
	 * last whole partition and what follows it have 1. With fewer than 2 lag slots behind the sinks: place in the lane / n.
	 */
	EVICT_KEY_LAG = 7,
	EVICT_N_TRAITS = 8,
};

EVICT_FN int evict_trait_once(uint32_t trait)
{
	return trait <= EVICT_VALUE_APART;
}

EVICT_FN float evict_norm(const float *row, uint32_t d)
{
	return evict_sqrt(evict_dot(row, row, d));
}

/* A trait of the `once` kind, from one slot's rows as float32 (elements cleaned). mean: m of EVICT_VALUE_APART. */
EVICT_FN float evict_trait_of(uint32_t trait, const float *k, const float *v, const float *mean, uint32_t d)
{
	switch (trait) {
	case EVICT_KEY_NORM: return evict_norm(k, d);
	case EVICT_VALUE_L1: return evict_sum_abs(v, d);
	case EVICT_VALUE_L2: return evict_norm(v, d);
	case EVICT_VALUE_APART: return evict_distance(v, mean, d);
	default: return 0.0f;
	}
}

/* The row as multiples of its length; all 0 when that is 0. In place. */
EVICT_FN void evict_unit(float *row, uint32_t d)
{
	const float norm = evict_norm(row, d), inv = norm > 0.0f ? 1.0f / norm : 0.0f;

	for (uint32_t c = 0; c < d; c++)
		row[c] *= inv;
}

/* What a channel of this range is multiplied with. */
EVICT_FN float evict_lag_inverse(float min, float max)
{
	return max > min ? 1.0f / (max - min) : 0.0f;
}

EVICT_FN float evict_lag_scale(float x, float min, float inverse)
{
	return evict_element((x - min) * inverse);
}

/* Deviation over channels, unbiased. x is overwritten. */
EVICT_FN float evict_deviation(float *x, uint32_t d)
{
	const float mean = evict_sum(x, d) / (float)d;

	for (uint32_t c = 0; c < d; c++)
		x[c] -= mean;
	return evict_sqrt(evict_dot(x, x, d) / (float)(d > 1u ? d - 1u : 1u));
}

#endif
