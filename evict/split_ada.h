/*
 * ada: the heads of a layer compete for its slots (Ada-KV, arXiv 2407.11550). Every layer gets the same. Of what it may keep beside the
 * coming window's own tokens, B - W slots a lane on average, the slots with the largest ranks of all its heads stay, wherever they lie:
 *
 *	budget = W + alpha (B - W) + (1 - alpha) * count,	count: the lane's slots among those that stay
 *
 * Protected slots stay first. Ranks are compared as they are, without being divided by their sum (the reference can do both).
 */
#ifndef EVICT_SPLIT_ADA_H
#define EVICT_SPLIT_ADA_H

#include "evict/split_internal.h"

static void split_ada(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	const uint32_t heads = in->n_kv_heads;
	const double mean = (double)in->total / split_lanes(in), old = mean - in->window, alpha = (double)split->param[0];

	for (uint32_t layer = 0; layer < in->n_layers; layer++) {
		const uint32_t at = layer * heads;
		const uint64_t slots = in->total / in->n_layers + (layer < in->total % in->n_layers);
		const struct split_cut cut = split_threshold(in->stats + at, heads, old * heads);

		for (uint32_t head = 0; head < heads; head++)
			work[head] = in->window + alpha * old + (1.0 - alpha) * split_above(&in->stats[at + head], &cut);
		evict_apportion(work, heads, slots, in->floor, in->ceiling, budget + at);
	}
}

#endif
