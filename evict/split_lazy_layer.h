/*
 * lazy-layer: a layer that attends to little but the first tokens and the `recent` newest is lazy, and keeps only these (SimLayerKV,
 * arXiv 2410.13846): where they receive more than `threshold` of the layer's attention in the window, its lanes get
 * min(B, sinks + recent + W) slots. What lazy layers give up is shared by the others equally, so that the total stays what it is (the
 * reference gives them nothing, and needs less memory instead).
 */
#ifndef EVICT_SPLIT_LAZY_LAYER_H
#define EVICT_SPLIT_LAZY_LAYER_H

#include "evict/split_internal.h"

#define LAZY_SINKS 4.0

static int is_lazy(const struct evict_split *split, const struct evict_split_in *in, uint32_t layer)
{
	double near = 0.0, sum = 0.0;

	for (uint32_t head = 0; head < in->n_kv_heads; head++) {
		near += (double)in->stats[layer * in->n_kv_heads + head].heat_near;
		sum += (double)in->stats[layer * in->n_kv_heads + head].heat_sum;
	}
	return sum > 0.0 && near > (double)split->param[1] * sum;
}

static void split_lazy_layer(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	const double mean = (double)in->total / split_lanes(in), little = LAZY_SINKS + (double)split->param[0] + in->window;
	const double few = little < mean ? little : mean;
	uint32_t lazy = 0;

	for (uint32_t layer = 0; layer < in->n_layers; layer++)
		lazy += (uint32_t)is_lazy(split, in, layer);
	for (uint32_t layer = 0; layer < in->n_layers; layer++) {
		const double rest = (mean * in->n_layers - few * lazy) / (in->n_layers - lazy + !(in->n_layers - lazy));

		split_layer(in, layer, is_lazy(split, in, layer) ? few : rest, work);
	}
	evict_apportion(work, split_lanes(in), in->total, in->floor, in->ceiling, budget);
}

#endif
