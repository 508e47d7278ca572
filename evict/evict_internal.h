/* Private to evict/ and its tests. */
#ifndef EVICT_EVICT_INTERNAL_H
#define EVICT_EVICT_INTERNAL_H

#include "evict/evict.h"

#ifdef __cplusplus
extern "C" {
#endif

/* evict_parse() over any table of policies, so that parameters can be tested whatever the real policies have. */
int evict_parse_in(const struct evict_policy_info *table, uint32_t n_table, const char *text, struct evict_rule *rule, char *why,
		   size_t why_bytes);

/* --- text.c: a sentence that grows in the caller's buffer and is cut when it is full; and reading what people write. */
struct evict_sentence {
	char *text;
	size_t bytes, at;
};

void evict_say_n(struct evict_sentence *s, const char *text, size_t n);	/* control characters become '?' */
void evict_say(struct evict_sentence *s, const char *text);
void evict_say_quoted(struct evict_sentence *s, const char *text, size_t n);
void evict_say_number(struct evict_sentence *s, float number);

/* [+-]digits[.digits][e[+-]digits] and nothing else, of n characters. -EINVAL. */
int evict_read_number(const char *text, size_t n, float *out);

/*
 * evict_parse_params - read ":key=value,key=value" or "" into value[n_params]; what is not named gets its default.
 * @kind, @name: whose parameters they are, for the sentence ("policy", "h2o"). -EINVAL.
 */
int evict_parse_params(const char *kind, const char *name, const struct evict_param *param, uint32_t n_params, const char *text,
		       float *value, struct evict_sentence *why);

/* --- lanes.c: log2 of the slots at which marginal i of a lane's curve holds. */
float evict_curve_at(const struct evict_lanes *head, uint32_t i);

#ifdef __cplusplus
}
#endif
#endif
