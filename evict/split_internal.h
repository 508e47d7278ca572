/* What the files of the splits share. Private to evict/splits.c. */
#ifndef EVICT_SPLIT_INTERNAL_H
#define EVICT_SPLIT_INTERNAL_H

#include "evict/evict_internal.h"

static inline uint32_t split_lanes(const struct evict_split_in *in)
{
	return in->n_layers * in->n_kv_heads;
}

/* Slots of a bin as numbers: the middle of what falls into it; 0 for bin 0. */
static inline double split_middle(uint32_t bin)
{
	double value = 2.3283064365386963e-10;	/* 2^-32 */

	if (!bin)
		return 0.0;
	for (uint32_t octave = (bin - 1) / 4; octave; octave--)
		value *= 2.0;
	return value * (1.0 + ((bin - 1) % 4 + 0.5) / 4.0);
}

/* Where a threshold lies: all slots of higher bins are above it, and this share of those in the bin. */
struct split_cut {
	uint32_t bin;
	double share;
	double spare;			/* slots a lane beyond what there is: everything is above, and there is room left */
};

/*
 * The threshold that keeps `keep` slots of n lanes together: the protected ones, then those with the largest ranks. Within the bin of the
 * threshold lanes give in proportion to what they have there.
 */
static inline struct split_cut split_threshold(const struct evict_lane_stats *lane, uint32_t n, double keep)
{
	struct split_cut cut = { .bin = EVICT_BINS };
	double left = keep, here = 0.0;

	for (uint32_t i = 0; i < n; i++)
		left -= lane[i].live - lane[i].free;
	while (left > 0.0 && cut.bin > 0) {
		here = 0.0;
		cut.bin--;
		for (uint32_t i = 0; i < n; i++)
			here += lane[i].rank[cut.bin];
		if (here >= left) {
			cut.share = left / here;
			return cut;
		}
		left -= here;
	}
	cut.share = cut.bin ? 0.0 : 1.0;
	cut.spare = left > 0.0 ? left / n : 0.0;
	return cut;
}

/* Slots of a lane that the threshold keeps. */
static inline double split_above(const struct evict_lane_stats *lane, const struct split_cut *cut)
{
	double slots = (double)(lane->live - lane->free) + cut->spare;

	for (uint32_t bin = EVICT_BINS; bin > cut->bin + 1; bin--)
		slots += lane->rank[bin - 1];
	if (cut->bin < EVICT_BINS)
		slots += cut->share * lane->rank[cut->bin];
	return slots;
}

/* Every lane of a layer gets the same weight. */
static inline void split_layer(const struct evict_split_in *in, uint32_t layer, double weight, double *work)
{
	for (uint32_t head = 0; head < in->n_kv_heads; head++)
		work[layer * in->n_kv_heads + head] = weight;
}

#endif
