/*
 * The policies as people see them, and the reading of "NAME:key=value,...". What they do is in evict/policy_NAME.h.
 */
#include "evict/evict_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define QUOTE_MAX 40	/* characters of the user's text that a sentence repeats */

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

/* A sentence that grows in the caller's buffer and is cut when it is full. */
struct sentence {
	char *text;
	size_t bytes, at;
};

static void say_n(struct sentence *s, const char *text, size_t n)
{
	for (size_t i = 0; i < n && s->at + 1 < s->bytes; i++)
		s->text[s->at++] = text[i] >= 0 && text[i] < ' ' ? '?' : text[i];
	if (s->bytes)
		s->text[s->at] = '\0';
}

static void say(struct sentence *s, const char *text)
{
	say_n(s, text, strlen(text));
}

static void say_quoted(struct sentence *s, const char *text, size_t n)
{
	say(s, "\"");
	say_n(s, text, n < QUOTE_MAX ? n : QUOTE_MAX);
	say(s, n > QUOTE_MAX ? "...\"" : "\"");
}

static void say_number(struct sentence *s, float number)
{
	char text[32];

	snprintf(text, sizeof(text), "%g", (double)number);
	say(s, text);
}

static void say_params(struct sentence *s, const struct evict_policy_info *info)
{
	if (!info->n_params) {
		say(s, "policy ");
		say(s, info->name);
		say(s, " has no parameters");
		return;
	}
	say(s, "allowed: ");
	for (uint32_t i = 0; i < info->n_params; i++) {
		say(s, i ? ", " : "");
		say(s, info->param[i].name);
	}
}

/*
 * Plain decimal numbers only: [+-]digits[.digits][e[+-]digits]. strtod() would bring the locale, hexadecimal and NaN.
 * Exact to float for the numbers that people write (15 digits, powers of ten up to 22 are exact in a double).
 */
static int read_number(const char *p, size_t n, float *out)
{
	const char *end = p + n;
	double value = 0.0, sign = 1.0;
	int digits = 0, scale = 0, exponent = 0, exponent_sign = 1;

	if (p < end && (*p == '-' || *p == '+'))
		sign = *p++ == '-' ? -1.0 : 1.0;
	for (; p < end && *p >= '0' && *p <= '9'; p++, digits++)
		value = value * 10.0 + (*p - '0');
	if (p < end && *p == '.')
		for (p++; p < end && *p >= '0' && *p <= '9'; p++, digits++, scale--)
			value = value * 10.0 + (*p - '0');
	if (!digits || digits > 18)
		return -EINVAL;
	if (p < end && (*p == 'e' || *p == 'E')) {
		if (++p < end && (*p == '-' || *p == '+'))
			exponent_sign = *p++ == '-' ? -1 : 1;
		if (p == end)
			return -EINVAL;
		for (; p < end && *p >= '0' && *p <= '9' && exponent < 100; p++)
			exponent = exponent * 10 + (*p - '0');
	}
	if (p != end)
		return -EINVAL;
	for (scale += exponent_sign * exponent; scale > 0; scale--)
		value *= 10.0;
	double divisor = 1.0;	/* one division rounds once */
	for (; scale < 0; scale++)
		divisor *= 10.0;
	*out = (float)(sign * value / divisor);
	return 0;
}

static int is_word(const char *text, size_t n, const char *word)
{
	return strlen(word) == n && memcmp(text, word, n) == 0;
}

static int read_value(const struct evict_param *param, const char *text, size_t n, float *out)
{
	if (param->type == EVICT_FLAG && (is_word(text, n, "yes") || is_word(text, n, "no"))) {
		*out = *text == 'y';
		return 0;
	}
	if (read_number(text, n, out) || !(*out >= param->min) || !(*out <= param->max))
		return -EINVAL;
	return param->type != EVICT_NUMBER && *out != (float)(int32_t)*out ? -EINVAL : 0;
}

static void say_allowed(struct sentence *s, const struct evict_param *param)
{
	if (param->type == EVICT_FLAG) {
		say(s, "yes or no");
		return;
	}
	say_number(s, param->min);
	say(s, " to ");
	say_number(s, param->max);
	say(s, param->type == EVICT_INTEGER ? ", a whole number" : "");
	say(s, param->unit && *param->unit ? (param->type == EVICT_INTEGER ? " of " : " ") : "");
	say(s, param->unit ? param->unit : "");
}

/* One "key=value" of n characters. */
static int parse_param(const struct evict_policy_info *info, const char *text, size_t n, float *value, uint32_t *seen,
		       struct sentence *why)
{
	const char *equals = memchr(text, '=', n);
	size_t key_n = equals ? (size_t)(equals - text) : n;
	uint32_t i;

	for (i = 0; i < info->n_params; i++)
		if (strlen(info->param[i].name) == key_n && memcmp(info->param[i].name, text, key_n) == 0)
			break;
	if (!equals || i == info->n_params) {
		say(why, equals ? "found parameter " : "found ");
		say_quoted(why, text, key_n);
		say(why, equals ? "; " : " where key=value is expected; ");
		say_params(why, info);
		return -EINVAL;
	}
	if (*seen & 1u << i) {
		say(why, "parameter ");
		say(why, info->param[i].name);
		say(why, " is given twice");
		return -EINVAL;
	}
	*seen |= 1u << i;
	if (read_value(&info->param[i], equals + 1, n - key_n - 1, &value[i])) {
		say(why, "parameter ");
		say(why, info->param[i].name);
		say(why, ": found ");
		say_quoted(why, equals + 1, n - key_n - 1);
		say(why, "; allowed: ");
		say_allowed(why, &info->param[i]);
		return -EINVAL;
	}
	return 0;
}

int evict_parse_in(const struct evict_policy_info *table, uint32_t n_table, const char *text, struct evict_rule *rule, char *why,
		   size_t why_bytes)
{
	struct sentence s = { .text = why, .bytes = why ? why_bytes : 0 };
	float value[EVICT_MAX_PARAMS] = { 0 };
	const char *p = text + strcspn(text, ":");
	uint32_t seen = 0, id;

	for (id = 0; id < n_table; id++)
		if (strlen(table[id].name) == (size_t)(p - text) && memcmp(table[id].name, text, (size_t)(p - text)) == 0)
			break;
	if (id == n_table) {
		say(&s, "found policy ");
		say_quoted(&s, text, (size_t)(p - text));
		say(&s, "; allowed: ");
		for (uint32_t i = 0; i < n_table; i++) {
			say(&s, i ? ", " : "");
			say(&s, table[i].name);
		}
		return -EINVAL;
	}
	for (uint32_t i = 0; i < table[id].n_params; i++)
		value[i] = table[id].param[i].def;
	while (*p) {	/* at the ':' or a ',' */
		size_t n = strcspn(++p, ",");

		if (parse_param(&table[id], p, n, value, &seen, &s))
			return -EINVAL;
		p += n;
	}
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
