/*
 * head: by a table that says what each lane is worth, made offline. Two papers, one split. With B slots a lane on average:
 *
 *	threshold = 0	HeadKV (arXiv 2410.19258): budget = B - B / beta + share * lanes * B / beta, share = value / sum of values
 *	threshold > 0	DuoAttention (arXiv 2410.10819): a lane whose value is below it is a streaming head and gets `streaming`
 *			slots (0: the floor); the others share what is left equally
 */
#ifndef EVICT_SPLIT_HEAD_H
#define EVICT_SPLIT_HEAD_H

#include "evict/split_internal.h"

static void split_head(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	const uint32_t n = split_lanes(in);
	const double mean = (double)in->total / n, pool = mean / (double)split->param[0];
	const double few = split->param[2] > 0.0f ? (double)split->param[2] : (double)in->floor;
	double sum = 0.0;
	uint32_t n_retrieval = 0;

	for (uint32_t lane = 0; lane < n; lane++) {
		sum += (double)in->table[lane];
		n_retrieval += in->table[lane] >= split->param[1];
	}
	for (uint32_t lane = 0; lane < n; lane++) {
		if (split->param[1] == 0.0f)
			work[lane] = mean - pool + (double)in->table[lane] / sum * n * pool;
		else if (in->table[lane] < split->param[1])
			work[lane] = few;
		else
			work[lane] = ((double)in->total - few * (n - n_retrieval)) / n_retrieval;
	}
	evict_apportion(work, n, in->total, in->floor, in->ceiling, budget);
}

#endif
