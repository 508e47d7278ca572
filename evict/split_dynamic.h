/*
 * dynamic: the layers compete for the session's slots (DynamicKV, arXiv 2412.14838). Of what may be kept beside the coming window's
 * own tokens, the slots with the largest ranks of all layers stay, wherever they lie; a layer's heads share its count equally:
 *
 *	budget = W + min(count of the layer / heads, most * (B - W))
 *
 * The reference does this layer by layer while the prompt is read; here all layers are known.
 */
#ifndef EVICT_SPLIT_DYNAMIC_H
#define EVICT_SPLIT_DYNAMIC_H

#include "evict/split_internal.h"

static void split_dynamic(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	const uint32_t n = split_lanes(in), heads = in->n_kv_heads;
	const double old = (double)in->total / n - in->window, most = old * (double)split->param[0];
	const struct split_cut cut = split_threshold(in->stats, n, old * n);

	for (uint32_t layer = 0; layer < in->n_layers; layer++) {
		double count = 0.0;

		for (uint32_t head = 0; head < heads; head++)
			count += split_above(&in->stats[layer * heads + head], &cut);
		count /= heads;
		split_layer(in, layer, in->window + (count < most ? count : most), work);
	}
	evict_apportion(work, n, in->total, in->floor, in->ceiling, budget);
}

#endif
