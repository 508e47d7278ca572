/* uniform: every lane the same. */
#ifndef EVICT_SPLIT_UNIFORM_H
#define EVICT_SPLIT_UNIFORM_H

#include "evict/split_internal.h"

static void split_uniform(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	(void)split;
	for (uint32_t lane = 0; lane < split_lanes(in); lane++)
		work[lane] = 1.0;
	evict_apportion(work, split_lanes(in), in->total, in->floor, in->ceiling, budget);
}

#endif
