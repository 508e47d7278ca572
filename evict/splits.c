/*
 * The splits as people see them, and the choice among them. What they do is in evict/split_NAME.h.
 */
#include "evict/evict_internal.h"

#include <errno.h>
#include <string.h>

#include "evict/split_uniform.h"
#include "evict/split_pyramid.h"
#include "evict/split_head.h"
#include "evict/split_ada.h"
#include "evict/split_dynamic.h"
#include "evict/split_cake.h"
#include "evict/split_sparsity.h"
#include "evict/split_lazy_layer.h"
#include "evict/split_measured.h"

#define PARAMS(list) .param = list, .n_params = sizeof(list) / sizeof((list)[0])

static const struct evict_param pyramid_params[] = {
	{ .name = "beta", .text = "the last layer gets the mean divided by this", .def = 20.0f, .min = 1.0f, .max = 1000.0f },
	{ .name = "reverse", .text = "the last layer gets most", .type = EVICT_FLAG, .max = 1.0f },
};

static const struct evict_param head_params[] = {
	{ .name = "beta", .text = "the mean divided by this is shared by the table, the rest equally", .def = 1.005f,
	  .min = 1.0f, .max = 1000.0f },
	{ .name = "threshold", .text = "more than 0: lanes whose value is below it are streaming heads", .max = 1e9f },
	{ .name = "streaming", .unit = "slots", .text = "what a streaming head gets; 0: the floor", .type = EVICT_INTEGER,
	  .max = 65536.0f },
};

static const struct evict_param ada_params[] = {
	{ .name = "alpha", .text = "the share of the mean that every head gets whatever its ranks", .def = 0.2f, .max = 1.0f },
};

static const struct evict_param dynamic_params[] = {
	{ .name = "most", .text = "no layer gets more than this many times the mean", .def = 10.0f, .min = 1.0f, .max = 1000.0f },
};

static const struct evict_param cake_params[] = {
	{ .name = "tau1", .text = "temperature of the spread: larger evens it out", .def = 1.0f, .min = 0.1f, .max = 1000.0f },
	{ .name = "tau2", .text = "temperature of the change over time: larger evens it out", .def = 1.0f, .min = 0.1f, .max = 1000.0f },
};

static const struct evict_param sparsity_params[] = {
	{ .name = "threshold", .text = "of the lane's largest heat: from here on a slot matters", .def = 0.01f, .min = 1e-6f, .max = 1.0f },
};

static const struct evict_param lazy_layer_params[] = {
	{ .name = "recent", .unit = "tokens", .text = "the newest, which a lazy layer keeps", .type = EVICT_INTEGER, .def = 1024.0f,
	  .min = 1.0f, .max = 65536.0f },
	{ .name = "threshold", .text = "a layer is lazy when more than this share of its attention is near", .def = 0.9f, .max = 1.0f },
};

static const struct evict_param measured_params[] = {
	{ .name = "scale", .text = "how far curves stretch with the text: 0 not at all (slots count), 1 in proportion (shares count)", .max = 1.0f },
};

const struct evict_split_info evict_splits[EVICT_N_SPLITS] = {
	[EVICT_SPLIT_uniform] = {
		.name = "uniform",
		.text = "every lane gets the same",
		.source = "the default of all methods that say nothing else",
	},
	[EVICT_SPLIT_pyramid] = {
		.name = "pyramid",
		.text = "falls from the first layer to the last in equal steps; the heads of a layer get the same",
		.source = "PyramidKV, arXiv 2406.02069, section 4",
		PARAMS(pyramid_params),
	},
	[EVICT_SPLIT_head] = {
		.name = "head",
		.text = "by a table that says what each lane is worth (HeadKV), or which lanes may forget (DuoAttention)",
		.source = "HeadKV, arXiv 2410.19258, section 4; DuoAttention, arXiv 2410.10819, section 3",
		.needs = EVICT_NEEDS_TABLE,
		PARAMS(head_params),
	},
	[EVICT_SPLIT_ada] = {
		.name = "ada",
		.text = "the heads of a layer compete for its slots by rank",
		.source = "Ada-KV, arXiv 2407.11550, algorithm 1",
		.needs = EVICT_NEEDS_RANK,
		PARAMS(ada_params),
	},
	[EVICT_SPLIT_dynamic] = {
		.name = "dynamic",
		.text = "the layers compete for the session's slots by rank; the heads of a layer get the same",
		.source = "DynamicKV, arXiv 2412.14838, section 3",
		.needs = EVICT_NEEDS_RANK,
		PARAMS(dynamic_params),
	},
	[EVICT_SPLIT_cake] = {
		.name = "cake",
		.text = "layers whose attention is spread out and changes over time get more",
		.source = "CAKE, arXiv 2503.12491, section 4",
		.needs = EVICT_NEEDS_HEAT,
		.n_heat = 2,
		.heat = { EVICT_HEAT_SUM, EVICT_HEAT_SQUARES },
		PARAMS(cake_params),
	},
	[EVICT_SPLIT_sparsity] = {
		.name = "sparsity",
		.text = "layers get slots by the share of theirs that attention looks at",
		.source = "VL-Cache, arXiv 2410.23317, section 4",
		.needs = EVICT_NEEDS_HEAT,
		.n_heat = 1,
		.heat = { EVICT_HEAT_SUM },
		PARAMS(sparsity_params),
	},
	[EVICT_SPLIT_lazy_layer] = {
		.name = "lazy-layer",
		.text = "layers that look at little but the first and the newest tokens keep only these",
		.source = "SimLayerKV, arXiv 2410.13846, section 3",
		.needs = EVICT_NEEDS_HEAT,
		.n_heat = 1,
		.heat = { EVICT_HEAT_SUM },
		PARAMS(lazy_layer_params),
	},
	[EVICT_SPLIT_measured] = {
		.name = "measured",
		.text = "by a table of what each lane loses at several budgets (ebb-llama --calibrate): equal marginal loss",
		.source = "ours: docs/quality-lanes.md",
		.needs = EVICT_NEEDS_TABLE | EVICT_NEEDS_CURVE,
		PARAMS(measured_params),
	},
};

int evict_split_parse(const char *text, struct evict_split *split, char *why, size_t why_bytes)
{
	struct evict_sentence s = { .text = why, .bytes = why ? why_bytes : 0 };
	float value[EVICT_MAX_PARAMS] = { 0 };
	const size_t n = strcspn(text, ":");
	uint32_t id;

	for (id = 0; id < EVICT_N_SPLITS; id++)
		if (strlen(evict_splits[id].name) == n && memcmp(evict_splits[id].name, text, n) == 0)
			break;
	if (id == EVICT_N_SPLITS) {
		evict_say(&s, "found split ");
		evict_say_quoted(&s, text, n);
		evict_say(&s, "; allowed: ");
		for (uint32_t i = 0; i < EVICT_N_SPLITS; i++) {
			evict_say(&s, i ? ", " : "");
			evict_say(&s, evict_splits[i].name);
		}
		return -EINVAL;
	}
	if (evict_parse_params("split", evict_splits[id].name, evict_splits[id].param, evict_splits[id].n_params, text + n, value, &s))
		return -EINVAL;
	split->id = id;
	memcpy(split->param, value, sizeof(value));
	return 0;
}

float evict_split_param(const struct evict_split *split, const char *name)
{
	const struct evict_split_info *info = &evict_splits[split->id];

	for (uint32_t i = 0; i < info->n_params; i++)
		if (strcmp(info->param[i].name, name) == 0)
			return split->param[i];
	return 0.0f;
}

void evict_split(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work)
{
	const uint32_t needs = evict_splits[split->id].needs;

	if ((needs & EVICT_NEEDS_STATS && !in->stats) || (needs & EVICT_NEEDS_TABLE && !in->table) ||
	    (needs & EVICT_NEEDS_CURVE && (!in->curve || !in->lanes->n_budgets))) {
		split_uniform(split, in, budget, work);
		return;
	}
	switch (split->id) {
#define SPLIT_CASE(id, name) case EVICT_SPLIT_##id: split_##id(split, in, budget, work); break;
	EVICT_SPLITS(SPLIT_CASE)
#undef SPLIT_CASE
	default: break;
	}
}

int evict_split_curve(const struct evict_split *split, const struct evict_split_in *in, struct evict_curve *out, double *work)
{
	if (split->id != EVICT_SPLIT_measured || !in->curve || !in->lanes->n_budgets)
		return -ENOENT;
	measured_curve(split, in, out, work);
	return 0;
}
