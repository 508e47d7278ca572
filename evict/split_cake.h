/*
 * cake: layers whose attention is spread out, and changes from query to query, get more (CAKE, arXiv 2503.12491). Over the queries of
 * the last window, per lane, and then the mean over a layer's heads:
 *
 *	H = - sum over slots of p ln p, p: the slot's share of the attention	V = sum over slots of the variance of its probability
 *	preference = H^(1/tau1) * V^(1/tau2), and budgets are in proportion to it
 *
 * H is computed from the histogram of heat (quarters of an octave); V from the sums of probabilities and of their squares:
 * sum of squares / n - sum over slots of (heat / n)^2, n = queries times heads of the group.
 */
#ifndef EVICT_SPLIT_CAKE_H
#define EVICT_SPLIT_CAKE_H

#include "evict/split_internal.h"

static double cake_entropy(const struct evict_lane_stats *lane)
{
	double sum = 0.0, weighted = 0.0;	/* sum of x, and of x log2 x */

	for (uint32_t bin = 1; bin < EVICT_BINS; bin++) {
		const double x = split_middle(bin), n = lane->heat[bin];

		if (n > 0.0) {
			sum += n * x;
			weighted += n * x * (double)evict_log2((float)x);
		}
	}
	return sum > 0.0 ? ((double)evict_log2((float)sum) - weighted / sum) * 0.6931471805599453 : 0.0;
}

static double cake_shift(const struct evict_lane_stats *lane, double n)
{
	const double v = n > 0.0 ? (double)lane->second_sum / n - (double)lane->heat_squares / (n * n) : 0.0;

	return v > 0.0 ? v : 0.0;
}

static double cake_power(double x, float tau)
{
	return x > 1e-30 ? (double)evict_exp2(evict_log2((float)x) / tau) : 0.0;
}

static void split_cake(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	for (uint32_t layer = 0; layer < in->n_layers; layer++) {
		double h = 0.0, v = 0.0;

		for (uint32_t head = 0; head < in->n_kv_heads; head++) {
			const struct evict_lane_stats *lane = &in->stats[layer * in->n_kv_heads + head];

			h += cake_entropy(lane);
			v += cake_shift(lane, in->queries);
		}
		split_layer(in, layer, cake_power(h / in->n_kv_heads, split->param[0]) * cake_power(v / in->n_kv_heads, split->param[1]),
			    work);
	}
	evict_apportion(work, split_lanes(in), in->total, in->floor, in->ceiling, budget);
}

#endif
