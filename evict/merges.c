/* The merges as people see them. What they do is in evict/merge.h and gpu/host/k_merge.h. */
#include "evict/evict_internal.h"

#include <errno.h>
#include <string.h>

const struct evict_merge_info evict_merges[EVICT_N_MERGES] = {
	[EVICT_MERGE_none] = {
		.name = "none",
		.text = "a victim is gone when it is overwritten",
		.source = "eviction",
	},
	[EVICT_MERGE_pivot] = {
		.name = "pivot",
		.text = "K and V of a victim are averaged into the survivor with the most similar key",
		.source = "LOOK-M, arXiv 2406.18139 (pivotal merging)",
		.n_params = 1,
		.param = { { .name = "threshold", .text = "cosine that a victim must have, else it is dropped", .def = -1.0f, .min = -1.0f,
			     .max = 1.0f } },
	},
	[EVICT_MERGE_d2o] = {
		.name = "d2o",
		.text = "as pivot, weighted by similarity, and only victims more similar than the window's mean",
		.source = "D2O, arXiv 2406.13035",
	},
	[EVICT_MERGE_cam] = {
		.name = "cam",
		.text = "the value of a victim is spread over its successors, by lot in proportion to its attention",
		.source = "CaM, ICML 2024, openreview LCTmppB165",
		.n_params = 1,
		.param = { { .name = "budget", .unit = "slots", .type = EVICT_INTEGER, .text = "over how many successors", .def = 32.0f,
			     .min = 1.0f, .max = 1024.0f } },
	},
};

int evict_merge_parse(const char *text, struct evict_rule *rule, char *why, size_t why_bytes)
{
	struct evict_sentence s = { .text = why, .bytes = why ? why_bytes : 0 };
	float value[EVICT_MAX_PARAMS] = { 0 };
	const size_t n = strcspn(text, ":");
	const int is_auto = strcmp(text, "auto") == 0;
	uint32_t id = is_auto && rule->policy < EVICT_N_POLICIES ? evict_policies[rule->policy].merge : 0;

	for (; !is_auto && id < EVICT_N_MERGES; id++)
		if (strlen(evict_merges[id].name) == n && memcmp(evict_merges[id].name, text, n) == 0)
			break;
	if (id == EVICT_N_MERGES) {
		evict_say(&s, "found merge ");
		evict_say_quoted(&s, text, n);
		evict_say(&s, "; allowed: auto");
		for (uint32_t i = 0; i < EVICT_N_MERGES; i++) {
			evict_say(&s, ", ");
			evict_say(&s, evict_merges[i].name);
		}
		return -EINVAL;
	}
	if (evict_parse_params("merge", evict_merges[id].name, evict_merges[id].param, evict_merges[id].n_params,
			       is_auto ? "" : text + n, value, &s))
		return -EINVAL;
	rule->merge = id;
	memcpy(rule->merge_param, value, sizeof(rule->merge_param));
	return 0;
}
