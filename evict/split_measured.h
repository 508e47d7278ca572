/*
 * measured: every lane where one slot more would save the same. A table says of each lane what it alone loses at several budgets
 * (KL to the full cache, nats); evict/lanes.c makes marginal losses of that, falling, at the same slots for all lanes. Between these, and
 * beyond them, log marginal is linear in log slots. The one marginal loss at which the lanes' slots, between floor and ceiling, add up
 * is found by halving.
 *
 * Losses were measured on texts of `tokens` tokens. On a text t times as long the curves are stretched by t^scale. What a lane can keep is its
 * slots without those of the coming window's own tokens: a curve that was measured under another window moves by the difference.
 */
#ifndef EVICT_SPLIT_MEASURED_H
#define EVICT_SPLIT_MEASURED_H

#include "evict/split_internal.h"

#define MEASURED_HALVINGS 30	/* of 128 octaves: to 1e-7 of one */
#define CURVE_STEP 0.015625f	/* octaves between two points of a curve, at least, both ways */

struct measured {
	uint32_t n;
	float at[EVICT_MAX_CURVE];	/* log2 slots, rising */
	double more;			/* slots that the window takes beyond the one of the table, or less */
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
		const double slots = (double)evict_exp2(measured_slots(m, in->curve + (size_t)lane * EVICT_MAX_CURVE, y)) + m->more;

		work[lane] = slots < in->floor ? in->floor : slots > in->ceiling ? in->ceiling : slots;
		total += work[lane];
	}
	return total;
}

static struct measured measured_of(const struct evict_split *split, const struct evict_split_in *in)
{
	const float stretch = split->param[0] * (evict_log2((float)in->ceiling) - evict_log2((float)in->lanes->tokens));
	struct measured m = { .n = in->lanes->n_budgets, .more = (double)in->window - (double)in->lanes->window };

	for (uint32_t i = 0; i < m.n; i++)
		m.at[i] = evict_curve_at(in->lanes, i) + stretch;
	return m;
}

/* log2 of the marginal loss at which the lanes hold no more than `total`. */
static float measured_level(const struct measured *m, const struct evict_split_in *in, double total, double *work)
{
	float low = -110.0f, high = 18.0f;

	for (uint32_t i = 0; i < MEASURED_HALVINGS; i++) {
		const float middle = 0.5f * (low + high);

		if (measured_total(m, in, middle, work) > total)
			low = middle;
		else
			high = middle;
	}
	return high;
}

static void split_measured(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	const struct measured m = measured_of(split, in);

	measured_total(&m, in, measured_level(&m, in, (double)in->total, work), work);
	evict_apportion(work, split_lanes(in), in->total, in->floor, in->ceiling, budget);
}

/*
 * Points at losses evenly apart, from where lanes hold little more than their floors to where they hold nearly all that there is:
 * before and behind that sizes hardly depend on the loss.
 */
static void measured_curve(const struct evict_split *split, const struct evict_split_in *in, struct evict_curve *out, double *work)
{
	const struct measured m = measured_of(split, in);
	const double n = split_lanes(in), least = 1.05 * in->floor, most = 0.95 * in->ceiling;
	const float high = measured_level(&m, in, n * (least < most ? least : in->ceiling), work);	/* else it has all that there is */
	const float low = least < most ? measured_level(&m, in, n * most, work) : high;

	out->n = 0;
	for (uint32_t i = 0; i < EVICT_CURVE_POINTS; i++) {
		const float loss = high + (low - high) * ((float)i / (float)(EVICT_CURVE_POINTS - 1));
		const float slots = evict_log2((float)(measured_total(&m, in, loss, work) / n));
		const uint32_t k = out->n;

		if (k && (slots < out->slots[k - 1] + CURVE_STEP || loss > out->loss[k - 1] - CURVE_STEP))
			continue;
		out->slots[k] = slots;
		out->loss[k] = loss;
		out->n++;
	}
}

#endif
