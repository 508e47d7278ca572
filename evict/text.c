/*
 * Reading "NAME:key=value,...": numbers, parameters, and the sentences that say what was found and what is allowed.
 */
#include "evict/evict_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define QUOTE_MAX 40	/* characters of the user's text that a sentence repeats */

void evict_say_n(struct evict_sentence *s, const char *text, size_t n)
{
	for (size_t i = 0; i < n && s->at + 1 < s->bytes; i++)
		s->text[s->at++] = text[i] >= 0 && text[i] < ' ' ? '?' : text[i];
	if (s->bytes)
		s->text[s->at] = '\0';
}

void evict_say(struct evict_sentence *s, const char *text)
{
	evict_say_n(s, text, strlen(text));
}

void evict_say_quoted(struct evict_sentence *s, const char *text, size_t n)
{
	evict_say(s, "\"");
	evict_say_n(s, text, n < QUOTE_MAX ? n : QUOTE_MAX);
	evict_say(s, n > QUOTE_MAX ? "...\"" : "\"");
}

void evict_say_number(struct evict_sentence *s, float number)
{
	char text[32];

	snprintf(text, sizeof(text), "%g", (double)number);
	evict_say(s, text);
}

/* A list of parameters, and whose they are: "policy h2o". */
struct owner {
	const char *kind, *name;
	const struct evict_param *param;
	uint32_t n;
};

static void say_params(struct evict_sentence *s, const struct owner *o)
{
	if (!o->n) {
		evict_say(s, o->kind);
		evict_say(s, " ");
		evict_say(s, o->name);
		evict_say(s, " has no parameters");
		return;
	}
	evict_say(s, "allowed: ");
	for (uint32_t i = 0; i < o->n; i++) {
		evict_say(s, i ? ", " : "");
		evict_say(s, o->param[i].name);
	}
}

/*
 * Plain decimal numbers only: [+-]digits[.digits][e[+-]digits]. strtod() would bring the locale, hexadecimal and NaN.
 * Exact to float for the numbers that people write (15 digits, powers of ten up to 22 are exact in a double).
 */
int evict_read_number(const char *p, size_t n, float *out)
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
	if (evict_read_number(text, n, out) || !(*out >= param->min) || !(*out <= param->max))
		return -EINVAL;
	return param->type != EVICT_NUMBER && *out != (float)(int32_t)*out ? -EINVAL : 0;
}

static void say_allowed(struct evict_sentence *s, const struct evict_param *param)
{
	if (param->type == EVICT_FLAG) {
		evict_say(s, "yes or no");
		return;
	}
	evict_say_number(s, param->min);
	evict_say(s, " to ");
	evict_say_number(s, param->max);
	evict_say(s, param->type == EVICT_INTEGER ? ", a whole number" : "");
	evict_say(s, param->unit && *param->unit ? (param->type == EVICT_INTEGER ? " of " : " ") : "");
	evict_say(s, param->unit ? param->unit : "");
}

/* One "key=value" of n characters. */
static int parse_param(const struct owner *o, const char *text, size_t n, float *value, uint32_t *seen,
		       struct evict_sentence *why)
{
	const char *equals = memchr(text, '=', n);
	size_t key_n = equals ? (size_t)(equals - text) : n;
	uint32_t i;

	for (i = 0; i < o->n; i++)
		if (strlen(o->param[i].name) == key_n && memcmp(o->param[i].name, text, key_n) == 0)
			break;
	if (!equals || i == o->n) {
		evict_say(why, equals ? "found parameter " : "found ");
		evict_say_quoted(why, text, key_n);
		evict_say(why, equals ? "; " : " where key=value is expected; ");
		say_params(why, o);
		return -EINVAL;
	}
	if (*seen & 1u << i) {
		evict_say(why, "parameter ");
		evict_say(why, o->param[i].name);
		evict_say(why, " is given twice");
		return -EINVAL;
	}
	*seen |= 1u << i;
	if (read_value(&o->param[i], equals + 1, n - key_n - 1, &value[i])) {
		evict_say(why, "parameter ");
		evict_say(why, o->param[i].name);
		evict_say(why, ": found ");
		evict_say_quoted(why, equals + 1, n - key_n - 1);
		evict_say(why, "; allowed: ");
		say_allowed(why, &o->param[i]);
		return -EINVAL;
	}
	return 0;
}

int evict_parse_params(const char *kind, const char *name, const struct evict_param *param, uint32_t n_params, const char *text,
		       float *value, struct evict_sentence *why)
{
	const struct owner o = { kind, name, param, n_params };
	uint32_t seen = 0;

	for (uint32_t i = 0; i < n_params; i++)
		value[i] = param[i].def;
	while (*text) {	/* at the ':' or a ',' */
		size_t n = strcspn(++text, ",");

		if (parse_param(&o, text, n, value, &seen, why))
			return -EINVAL;
		text += n;
	}
	return 0;
}
