/* What the files of the splits share. Private to evict/splits.c. */
#ifndef EVICT_SPLIT_INTERNAL_H
#define EVICT_SPLIT_INTERNAL_H

#include "evict/evict_internal.h"

static inline uint32_t split_lanes(const struct evict_split_in *in)
{
	return in->n_layers * in->n_kv_heads;
}

#endif
