/*
 * measured: every lane where one slot more would save the same. A table says of each lane what it alone loses at several budgets
 * (KL to the full cache, nats); evict/lanes.c makes marginal losses of that, falling, at the same slots for all lanes. Between these, and
 * beyond them, log marginal is linear in log slots. The one marginal loss at which the lanes' slots, between floor and ceiling, add up
 * is found by halving.
 *
 * Losses were measured on texts of `tokens` tokens. On a text t times as long the curves are stretched by t^scale.
 */
#ifndef EVICT_SPLIT_MEASURED_H
#define EVICT_SPLIT_MEASURED_H

#include "evict/split_internal.h"

#define MEASURED_HALVINGS 30	/* of 128 octaves: to 1e-7 of one */

struct measured {
	uint32_t n;
	float at[EVICT_MAX_CURVE];	/* log2 slots, rising */
};

/* log2 of the slots at which the lane's marginal loss is 2^y. Neighbours differ: log marginals fall with a slope of -1/2 or steeper. */
static float measured_slots(const struct measured *m, const float *marginal, float y)
{
	uint32_t k = 0;

	if (m->n == 1)
		return m->at[0] + (marginal[0] - y);
	while (k + 2 < m->n && y < marginal[k + 1])
		k++;
	return m->at[k] + (marginal[k] - y) * (m->at[k + 1] - m->at[k]) / (marginal[k] - marginal[k + 1]);
}

static double measured_total(const struct measured *m, const struct evict_split_in *in, float y, double *work)
{
	double total = 0.0;

	for (uint32_t lane = 0; lane < split_lanes(in); lane++) {
		const double slots = (double)evict_exp2(measured_slots(m, in->curve + (size_t)lane * EVICT_MAX_CURVE, y));

		work[lane] = slots < in->floor ? in->floor : slots > in->ceiling ? in->ceiling : slots;
		total += work[lane];
	}
	return total;
}

static void split_measured(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	const float stretch = split->param[0] * (evict_log2((float)in->ceiling) - evict_log2((float)in->lanes->tokens));
	struct measured m = { .n = in->lanes->n_budgets };
	float low = -110.0f, high = 18.0f;

	for (uint32_t i = 0; i < m.n; i++)
		m.at[i] = evict_curve_at(in->lanes, i) + stretch;
	for (uint32_t i = 0; i < MEASURED_HALVINGS; i++) {
		const float middle = 0.5f * (low + high);

		if (measured_total(&m, in, middle, work) > (double)in->total)
			low = middle;
		else
			high = middle;
	}
	measured_total(&m, in, high, work);
	evict_apportion(work, split_lanes(in), in->total, in->floor, in->ceiling, budget);
}

#endif
