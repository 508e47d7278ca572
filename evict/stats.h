/*
 * What select can say about a lane, for splits (evict/split.h) and for whoever compares lanes. Computed only when asked for.
 * Compiles as C17 and as CUDA C++.
 */
#ifndef EVICT_STATS_H
#define EVICT_STATS_H

#include "evict/rule.h"

/*
 * One lane when its last window ended, before anything left it. Sums are float32, in the order of evict_places(). A bin is a
 * quarter of an octave: bin 0 holds what is below 2^-32 (0, negative numbers and NaN too), bin b >= 1 what is at least
 * 2^(e-32) * (1 + m/4) with e = (b-1) / 4, m = (b-1) % 4, and the last bin everything above.
 */
#define EVICT_BINS 192u

enum { EVICT_STATS_RANK = 1, EVICT_STATS_HEAT = 2, EVICT_STATS_SUMS = 4 };

#define EVICT_MOST_COUNT 0xffffu	/* of a bin: stands for so many or more */

struct evict_lane_stats {
	uint32_t live;			/* slots */
	uint32_t free;			/* of them, how many no rule protects: not a sink, recent or pinned. With EVICT_STATS_RANK */
	float heat_sum;			/* sum of the window's first heat. This and the next four with EVICT_STATS_SUMS */
	float heat_near;		/* of the sinks and the newest `near` positions only (struct gpu_turn) */
	float heat_squares;		/* sum of the squares of the first heat */
	float second_sum;		/* sum of the second heat, if there is one */
	float heat_max;			/* the largest first heat */
	uint32_t unused;
	uint16_t heat[EVICT_BINS];	/* the live ones by the first heat. With EVICT_STATS_HEAT */
	uint16_t rank[EVICT_BINS];	/* the free ones, see evict_rank_bin(). With EVICT_STATS_RANK */
};

EVICT_FN uint16_t evict_count(uint32_t slots)
{
	return (uint16_t)(slots < EVICT_MOST_COUNT ? slots : EVICT_MOST_COUNT);
}

/* What evict_order() made of a rank, back again. NaN for NaN. */
EVICT_FN float evict_unorder(uint32_t order)
{
	return evict_from_bits(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

/* The bin of a number. The same for every backend. */
EVICT_FN uint32_t evict_bin(float x)
{
	uint32_t bits;

	if (!(x >= 2.3283064365386963e-10f))	/* 2^-32 */
		return 0;
	bits = evict_bits(x);
	bits = (bits >> 21) - (95u << 2) + 1u;	/* exponent and two bits of mantissa; 2^-32 has the exponent field 95 */
	return bits < EVICT_BINS ? bits : EVICT_BINS - 1u;
}

/* The bin of a slot's rank. Where a policy spares some slots, the others count by what their rank was before it put them below. */
EVICT_FN uint32_t evict_rank_bin(uint32_t policy, float rank)
{
	return evict_bin(evict_has_cut(policy) && rank < 0.0f ? evict_below(rank) : rank);
}

#endif
