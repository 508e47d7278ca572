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

#ifdef __cplusplus
}
#endif
#endif
