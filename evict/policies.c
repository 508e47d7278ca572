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

static void morphkv_needs(struct evict_rule *rule)
{
	if (rule->param[EVICT_MORPHKV_SUM] != 0.0f)
		rule->heat[0] = EVICT_HEAT_SUM;
}

static void vatp_needs(struct evict_rule *rule)
{
	if (rule->param[EVICT_VATP_L2] != 0.0f)
		rule->trait[0] = EVICT_VALUE_L2;
}

static void lagkv_needs(struct evict_rule *rule)
{
	rule->lag = (uint32_t)rule->param[EVICT_LAGKV_LAG];
}

/* Parameters that several policies have. */
#define AGE(default)	{ .name = "age", .text = "credit is divided by (tokens since)^age", .def = default, .max = 2.0f }
#define DECAY		{ .name = "decay", .unit = "per token", .text = "what credit keeps with every token", .def = 1.0f, \
			  .max = 1.0f }
#define QUERIES		{ .name = "queries", .unit = "queries", .type = EVICT_INTEGER, .text = "how many recent queries count", \
			  .def = 32.0f, .min = 1.0f, .max = 65536.0f }
#define KERNEL(default)	{ .name = "kernel", .unit = "slots", .type = EVICT_INTEGER, \
			  .text = "width of the pooling, made odd; 1: none", .def = default, .min = 1.0f, .max = 127.0f }
#define ALPHA		{ .name = "alpha", .text = "a query that pays more activates the token", .def = 1e-4f, .max = 1.0f }

const char *const evict_heat_names[EVICT_N_HEAT] = { "sum", "max", "squares", "last" };
const char *const evict_trait_names[EVICT_N_TRAITS] = {
	[EVICT_NO_TRAIT] = "none", [EVICT_KEY_NORM] = "key norm", [EVICT_VALUE_L1] = "value L1 norm", [EVICT_VALUE_L2] = "value L2 norm",
	[EVICT_VALUE_APART] = "distance of the value from the others", [EVICT_KEY_COSINE] = "cosine to the mean key",
	[EVICT_KEY_REDUNDANCY] = "redundancy among keys", [EVICT_KEY_LAG] = "lag",
};

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
		.param = {
			AGE(0.0f),
			DECAY,
			{ .name = "squared", .type = EVICT_FLAG, .text = "collect squared probabilities", .max = 1.0f },
		},
	},
	[EVICT_tova] = {
		.name = "tova",
		.text = "keeps what the last query looked at",
		.source = "TOVA, arXiv 2401.06104",
		.heat = { EVICT_HEAT_LAST },
	},
	[EVICT_scissorhands] = {
		.name = "scissorhands",
		.text = "evicts tokens that stayed below average attention in most of the recent windows",
		.source = "Scissorhands, arXiv 2305.17118, section 4",
		.heat = { EVICT_HEAT_MAX },
		.n_params = 1,
		.param = {
			{ .name = "windows", .unit = "windows", .type = EVICT_INTEGER, .text = "how many windows are remembered",
			  .def = 12.0f, .min = 1.0f, .max = 24.0f },
		},
	},
	[EVICT_roco] = {
		.name = "roco",
		.text = "spares tokens whose attention varies most; of the others the smallest mean attention goes",
		.source = "RoCo (EasyKV), arXiv 2402.06262",
		.heat = { EVICT_HEAT_SUM, EVICT_HEAT_SQUARES },
		.n_params = 1,
		.param = {
			{ .name = "spare", .text = "share that is spared by deviation", .def = 0.3f, .max = 0.9f },
		},
	},
	[EVICT_keyformer] = {
		.name = "keyformer",
		.text = "accumulates attention with Gumbel noise and a rising temperature, so that late tokens have a chance",
		.source = "Keyformer, arXiv 2403.09054",
		.heat = { EVICT_HEAT_SUM },
		.n_params = 3,
		.param = {
			{ .name = "tau", .text = "temperature at the start", .def = 1.0f, .min = 0.1f, .max = 10.0f },
			{ .name = "tau_end", .text = "temperature in the end", .def = 2.0f, .min = 0.1f, .max = 10.0f },
			{ .name = "steps", .unit = "tokens", .type = EVICT_INTEGER, .text = "tokens until the end temperature is reached",
			  .def = 1024.0f, .min = 1.0f, .max = 1e6f },
		},
	},
	[EVICT_snapkv] = {
		.name = "snapkv",
		.text = "keeps what the recent queries looked at, and its neighbours",
		.source = "SnapKV, arXiv 2404.14469, section 4",
		.heat = { EVICT_HEAT_SUM },
		.n_params = 3,
		.param = {
			KERNEL(7.0f),
			{ .name = "mean", .type = EVICT_FLAG, .text = "pool by mean, not by maximum", .max = 1.0f },
			QUERIES,
		},
	},
	[EVICT_morphkv] = {
		.name = "morphkv",
		.text = "keeps what any of the recent queries looked at most",
		.source = "MorphKV, arXiv 2503.00979",
		.heat = { EVICT_HEAT_MAX },
		.needs = morphkv_needs,
		.n_params = 2,
		.param = {
			{ .name = "sum", .type = EVICT_FLAG, .text = "sum over the recent queries, not their maximum", .max = 1.0f },
			QUERIES,
		},
	},
	[EVICT_rkv] = {
		.name = "rkv",
		.text = "weighs recent attention against redundancy among keys",
		.source = "R-KV, arXiv 2505.24133",
		.heat = { EVICT_HEAT_SUM },
		.trait = { EVICT_KEY_REDUNDANCY },
		.n_params = 3,
		.param = {
			{ .name = "lambda", .text = "weight of attention; the rest is redundancy's", .def = 0.1f, .max = 1.0f },
			KERNEL(7.0f),
			QUERIES,
		},
	},
	[EVICT_gkv] = {
		.name = "gkv",
		.text = "a decaying maximum of recent attention against redundancy among keys",
		.source = "G-KV, arXiv 2512.00504",
		.heat = { EVICT_HEAT_SUM },
		.trait = { EVICT_KEY_REDUNDANCY },
		.n_params = 3,
		.param = {
			{ .name = "alpha", .unit = "per window", .text = "what the global score keeps with every window",
			  .def = 0.8f, .max = 1.0f },
			{ .name = "lambda", .text = "weight of attention; the rest is redundancy's", .def = 0.5f, .max = 1.0f },
			KERNEL(1.0f),
		},
	},
	[EVICT_raas] = {
		.name = "raas",
		.text = "evicts the token that was activated least recently",
		.source = "RaaS, arXiv 2502.11147",
		.heat = { EVICT_HEAT_MAX },
		.pin_prompt = 1,
		.n_params = 1,
		.param = {
			ALPHA,
		},
	},
	[EVICT_lazy] = {
		.name = "lazy",
		.text = "evicts the token whose silence is longest, measured by its own longest gap",
		.source = "LazyEviction, arXiv 2506.15969",
		.heat = { EVICT_HEAT_MAX },
		.n_params = 1,
		.param = {
			ALPHA,
		},
	},
	[EVICT_nacl] = {
		.name = "nacl",
		.text = "keeps the best by recent attention and draws the rest by lot",
		.source = "NACL, arXiv 2408.03675",
		.heat = { EVICT_HEAT_SUM },
		.n_params = 3,
		.param = {
			{ .name = "random", .text = "share of the slots that is drawn", .def = 0.3f, .max = 1.0f },
			{ .name = "temperature", .text = "of the draw", .def = 1.0f, .min = 0.001f, .max = 100.0f },
			QUERIES,
		},
	},
	[EVICT_l2norm] = {
		.name = "l2norm",
		.text = "keeps keys of small L2 norm; needs no attention",
		.source = "L2Norm, arXiv 2406.11430",
		.trait = { EVICT_KEY_NORM },
	},
	[EVICT_vatp] = {
		.name = "vatp",
		.text = "accumulated attention times the size of the value",
		.source = "VATP, arXiv 2406.12335",
		.heat = { EVICT_HEAT_SUM },
		.trait = { EVICT_VALUE_L1 },
		.needs = vatp_needs,
		.n_params = 3,
		.param = {
			AGE(0.0f),
			DECAY,
			{ .name = "l2", .type = EVICT_FLAG, .text = "L2 norm of the value, not L1", .max = 1.0f },
		},
	},
	[EVICT_keydiff] = {
		.name = "keydiff",
		.text = "keeps keys unlike the others; needs no attention",
		.source = "KeyDiff, arXiv 2504.15364",
		.trait = { EVICT_KEY_COSINE },
	},
	[EVICT_lagkv] = {
		.name = "lagkv",
		.text = "keeps tokens that stand out against the ones that follow; needs no attention",
		.source = "LagKV, arXiv 2504.04704",
		.trait = { EVICT_KEY_LAG },
		.needs = lagkv_needs,
		.n_params = 1,
		.param = {
			{ .name = "lag", .unit = "slots", .type = EVICT_INTEGER, .text = "slots of a partition",
			  .def = 32.0f, .min = 2.0f, .max = 1024.0f },
		},
	},
	[EVICT_expected] = {
		.name = "expected",
		.text = "log-normal estimate of the attention that future queries will pay, times the size of the value",
		.source = "Expected Attention, arXiv 2510.00636",
		.heat = { EVICT_HEAT_SUM },
		.trait = { EVICT_VALUE_L2 },
		.n_params = 3,
		.param = {
			{ .name = "horizon", .unit = "windows", .type = EVICT_INTEGER, .text = "windows over which mean and variance run",
			  .def = 16.0f, .min = 1.0f, .max = 1e6f },
			{ .name = "variance", .text = "weight of the variance", .def = 1.0f, .max = 1.0f },
			{ .name = "values", .type = EVICT_FLAG, .text = "times the norm of the value", .def = 1.0f, .max = 1.0f },
		},
	},
	[EVICT_cam] = {
		.name = "cam",
		.text = "keeps what the recent queries looked at; the values of victims go into their successors",
		.merge = EVICT_MERGE_cam,
		.source = "CaM, ICML 2024, openreview LCTmppB165",
		.heat = { EVICT_HEAT_SUM },
		.n_params = 1,
		.param = {
			QUERIES,
		},
	},
	[EVICT_d2o] = {
		.name = "d2o",
		.text = "accumulated attention; victims are merged into their nearest survivor",
		.merge = EVICT_MERGE_d2o,
		.source = "D2O, arXiv 2406.13035",
		.heat = { EVICT_HEAT_SUM },
	},
	[EVICT_look_m] = {
		.name = "look-m",
		.text = "accumulated attention, every token of text before any other; victims are merged into their nearest survivor",
		.merge = EVICT_MERGE_pivot,
		.source = "LOOK-M, arXiv 2406.18139",
		.heat = { EVICT_HEAT_SUM },
	},
	[EVICT_vl_cache] = {
		.name = "vl-cache",
		.text = "accumulated attention of the queries behind the last image alone",
		.source = "VL-Cache, arXiv 2410.23317",
		.heat = { EVICT_HEAT_SUM },
	},
	[EVICT_csp] = {
		.name = "csp",
		.text = "recent attention, with budgets of their own for the newest token's modality and the others",
		.source = "CSP, arXiv 2412.04652",
		.heat = { EVICT_HEAT_SUM },
		.n_params = 2,
		.param = {
			{ .name = "cross", .text = "share of the slots for tokens of another modality than the newest", .def = 0.1f, .max = 1.0f },
			QUERIES,
		},
	},
	[EVICT_ebb] = {
		.name = "ebb",
		.text = "mean attention, which counts the more the farther it came, times how far the value is from the others; spares the farthest",
		.source = "ebbd's own: docs/rule.md",
		.heat = { EVICT_HEAT_SUM },
		.trait = { EVICT_VALUE_APART },
		.n_params = 2,
		.param = {
			{ .name = "far", .unit = "tokens", .type = EVICT_INTEGER, .text = "from farther away attention counts no more",
			  .def = 512.0f, .min = 1.0f, .max = 1e6f },
			{ .name = "spare", .text = "share that is spared for values far from the others, in lanes with half as many slots again as the average", .def = 0.7f, .max = 0.9f },
		},
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
	rule->lag = 0;
	if (table[id].needs)
		table[id].needs(rule);
	return 0;
}

int evict_parse(const char *text, struct evict_rule *rule, char *why, size_t why_bytes)
{
	return evict_parse_in(evict_policies, EVICT_N_POLICIES, text, rule, why, why_bytes);
}
