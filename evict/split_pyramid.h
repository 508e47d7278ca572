/*
 * pyramid: budgets fall from the first layer to the last in equal steps (PyramidKV, arXiv 2406.02069). With B slots a lane on average
 *
 *	last = B / beta		first = 2 B - last	layer l: first - l * (first - last) / (layers - 1)
 *
 * and where `first` would be more than a lane can hold, first = that, last = 2 B - first. The steps are not rounded (the reference
 * rounds them down, and so spends up to a tenth more than it was given). `reverse = 1` turns the pyramid over.
 */
#ifndef EVICT_SPLIT_PYRAMID_H
#define EVICT_SPLIT_PYRAMID_H

#include "evict/split_internal.h"

static void split_pyramid(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	const double mean = (double)in->total / split_lanes(in);
	double last = mean / (double)split->param[0], first = 2.0 * mean - last;

	if (first > (double)in->ceiling) {
		first = (double)in->ceiling;
		last = 2.0 * mean - first;
	}
	for (uint32_t layer = 0; layer < in->n_layers; layer++) {
		const uint32_t step = split->param[1] != 0.0f ? in->n_layers - 1 - layer : layer;
		const double want = in->n_layers > 1 ? first - (first - last) * step / (in->n_layers - 1) : mean;

		for (uint32_t head = 0; head < in->n_kv_heads; head++)
			work[layer * in->n_kv_heads + head] = want;
	}
	evict_apportion(work, split_lanes(in), in->total, in->floor, in->ceiling, budget);
}

#endif
