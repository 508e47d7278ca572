/*
 * The policies as people see them, and the reading of "NAME:key=value,...". What they do is in evict/policy_NAME.h.
 */
#include "evict/evict_internal.h"

#include <errno.h>
#include <string.h>

static void h2o_needs(struct evict_rule *rule)
{
	if (rule->param[EVICT_H2O_SQUARED] != 0.0f)
		rule->heat[0] = EVICT_HEAT_SQUARES;
}

#define AGE(default)		{ .name = "age", .text = "credit is divided by (tokens since)^age", .def = default, .max = 2.0f }
#define DECAY			{ .name = "decay", .unit = "per token", .text = "what credit keeps with every token", .def = 1.0f, .max = 1.0f }

const struct evict_policy_info evict_policies[EVICT_N_POLICIES] = {
	[EVICT_full] = {
		.name = "full",
		.text = "keeps every token; the baseline, and for sessions that must lose nothing",
		.source = "no eviction",
		.never_evicts = 1,
	},
	[EVICT_streaming] = {
		.name = "streaming",
		.text = "keeps the first tokens (sinks) and the most recent ones",
		.source = "StreamingLLM, arXiv 2309.17453, section 3",
	},
	[EVICT_random] = {
		.name = "random",
		.text = "evicts uniformly at random, drawn anew per lane and window; what a rule with scores has to beat",
		.source = "Random Attention, arXiv 2609.03430 (prompt kept, generated tokens at random per head)",
		.pin_prompt = 1,
	},
	[EVICT_h2o] = {
		.name = "h2o",
		.text = "keeps the tokens that received most attention so far (heavy hitters) and the most recent ones",
		.source = "H2O, arXiv 2306.14048, section 4; squared: KV-Compress, arXiv 2410.00161",
		.heat = { EVICT_HEAT_SUM },
		.needs = h2o_needs,
		.n_params = 3,
		.param = { AGE(0.0f), DECAY,
			   { .name = "squared", .type = EVICT_FLAG, .text = "collect squared probabilities", .max = 1.0f } },
	},
};

int evict_parse_in(const struct evict_policy_info *table, uint32_t n_table, const char *text, struct evict_rule *rule, char *why,
		   size_t why_bytes)
{
	struct evict_sentence s = { .text = why, .bytes = why ? why_bytes : 0 };
	float value[EVICT_MAX_PARAMS] = { 0 };
	const size_t n = strcspn(text, ":");
	uint32_t id;

	for (id = 0; id < n_table; id++)
		if (strlen(table[id].name) == n && memcmp(table[id].name, text, n) == 0)
			break;
	if (id == n_table) {
		evict_say(&s, "found policy ");
		evict_say_quoted(&s, text, n);
		evict_say(&s, "; allowed: ");
		for (uint32_t i = 0; i < n_table; i++) {
			evict_say(&s, i ? ", " : "");
			evict_say(&s, table[i].name);
		}
		return -EINVAL;
	}
	if (evict_parse_params("policy", table[id].name, table[id].param, table[id].n_params, text + n, value, &s))
		return -EINVAL;
	rule->policy = id;
	memcpy(rule->param, value, sizeof(value));
	memcpy(rule->heat, table[id].heat, sizeof(rule->heat));
	memcpy(rule->trait, table[id].trait, sizeof(rule->trait));
	if (table[id].needs)
		table[id].needs(rule);
	return 0;
}

int evict_parse(const char *text, struct evict_rule *rule, char *why, size_t why_bytes)
{
	return evict_parse_in(evict_policies, EVICT_N_POLICIES, text, rule, why, why_bytes);
}
