/*
 * sparsity: layers get slots by how many of theirs matter (VL-Cache, arXiv 2410.23317). A slot matters when the window's attention to it is
 * at least `threshold` of the largest in its lane; a layer's budget is in proportion to the share that does, the mean over its heads.
 *
 * The reference counts entries of the attention matrix row by row, each row against its own largest; here it is one row, the sum over the
 * window's queries. The threshold is rounded down to a quarter of an octave (evict/stats.h).
 */
#ifndef EVICT_SPLIT_SPARSITY_H
#define EVICT_SPLIT_SPARSITY_H

#include "evict/split_internal.h"

static void split_sparsity(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	for (uint32_t layer = 0; layer < in->n_layers; layer++) {
		double density = 0.0;

		for (uint32_t head = 0; head < in->n_kv_heads; head++) {
			const struct evict_lane_stats *lane = &in->stats[layer * in->n_kv_heads + head];
			const uint32_t least = evict_bin(split->param[0] * lane->heat_max);
			double dense = 0.0;

			for (uint32_t bin = least > 1 ? least : 1; bin < EVICT_BINS; bin++)
				dense += lane->heat[bin];
			density += lane->live ? dense / lane->live : 0.0;
		}
		split_layer(in, layer, density, work);
	}
	evict_apportion(work, split_lanes(in), in->total, in->floor, in->ceiling, budget);
}

#endif
