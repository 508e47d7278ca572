/*
 * The eviction decision: pure functions of their arguments. No I/O, clock, heap, threads or CUDA.
 * What a slot is worth is rule.h; here is how many slots there may be, and what the policies are called.
 * Errors: 0 or negative errno.
 */
#ifndef EVICT_EVICT_H
#define EVICT_EVICT_H

#include <stddef.h>

#include "evict/rule.h"
#include "evict/split.h"
#include "evict/tide.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- policies as people see them ------------------------------------------------------------------------------------ */

enum evict_param_type { EVICT_NUMBER = 0, EVICT_INTEGER = 1, EVICT_FLAG = 2 };	/* a flag is 0 or 1, read as no or yes */

struct evict_param {
	const char *name, *unit, *text;	/* unit may be NULL */
	uint32_t type;			/* enum evict_param_type */
	float def, min, max;
};

/* How many heat arrays, credits and traits a policy has is in EVICT_POLICIES (rule.h): evict_n_heat() and so on. */
struct evict_policy_info {
	const char *name;
	const char *text;		/* one line */
	const char *source;		/* paper, section */
	uint32_t heat[EVICT_MAX_HEAT];	/* enum evict_heat: what the clients must collect */
	uint32_t trait[EVICT_MAX_TRAIT];	/* enum evict_trait: what is computed from K and V */
	void (*needs)(struct evict_rule *rule);	/* where heat or trait depend on parameters; may be NULL */
	uint32_t merge;			/* enum evict_merge: what the merge key's auto means */
	int pin_prompt;			/* default of the pin_prompt key */
	int never_evicts;		/* full */
	struct evict_param param[EVICT_MAX_PARAMS];
	uint32_t n_params;
};

extern const struct evict_policy_info evict_policies[EVICT_N_POLICIES];
extern const char *const evict_heat_names[EVICT_N_HEAT];	/* by enum evict_heat */
extern const char *const evict_trait_names[EVICT_N_TRAITS];	/* by enum evict_trait */

/*
 * evict_parse - read "NAME" or "NAME:key=value,key=value" into a rule: policy, params (others at their defaults), heat and trait.
 * The other fields of the rule are left alone.
 * @why: on failure a sentence that says what was found and what is allowed (truncated to why_bytes); may be NULL.
 * Errors: -EINVAL.
 */
int evict_parse(const char *text, struct evict_rule *rule, char *why, size_t why_bytes);

struct evict_merge_info {
	const char *name;
	const char *text;		/* one line */
	const char *source;		/* paper */
	struct evict_param param[EVICT_MAX_MERGE_PARAMS];
	uint32_t n_params;
};

extern const struct evict_merge_info evict_merges[EVICT_N_MERGES];

/*
 * evict_merge_parse - read "NAME", "NAME:key=value,..." or "auto" (what the rule's policy brings along) into the rule's merge and
 * merge_param. -EINVAL with a sentence.
 */
int evict_merge_parse(const char *text, struct evict_rule *rule, char *why, size_t why_bytes);

/* --- budgets ----------------------------------------------------------------------------------------------------------- */

/* A number of slots: a count, or a share of something else. Exactly one of the two is non-zero, or both are 0 (none). */
struct evict_amount {
	uint32_t count;
	uint32_t ppm;			/* share in millionths: 25% = 250000 */
};

/* count, or ceil(ppm / 1e6 * of) in exact integers. */
uint32_t evict_amount_of(struct evict_amount amount, uint32_t of);

/*
 * evict_window - tokens between two decisions, for a session that does not say: 16 for a budget that is a share (it begins small),
 *	of a count a 16th, from 8 to 32; 32 under a policy (enum evict_policy) that never evicts, for long ones cost the fewest hand-overs.
 * evict_floor  - slots that no lane of it goes below: 64, and 5 in 16 of a count if that is less; sinks + window at least.
 * A window's slots are part of the budget, so a small budget wants a short window: 128 slots of 2048 tokens of SmolLM2 cost 0.65 to 0.72
 * times the KL with (8, 40) that they cost with (32, 64), 256 slots 0.91 to 0.95 times with (16, 64), 512 hardly less (docs/quality-lanes.md).
 */
uint32_t evict_window(uint32_t policy, struct evict_amount budget);
uint32_t evict_floor(struct evict_amount budget, uint32_t sinks, uint32_t window);

enum evict_prefill { EVICT_WHOLE = 0, EVICT_CHUNKED = 1 };

/* What a session asked for, resolved against the daemon's defaults. */
struct evict_spec {
	struct evict_rule rule;
	struct evict_amount budget;	/* slots a lane may hold; share: of the tokens appended so far */
	struct evict_amount recent;	/* newest slots never evicted; share: of the budget */
	uint32_t window;		/* tokens per decision */
	uint32_t floor;			/* a lane is never asked to go below this many slots; >= sinks + window */
	uint32_t prefill;		/* enum evict_prefill */
	uint32_t prompt_tokens;		/* announced length of the prompt; 0: none */
	uint32_t max_slots;		/* capacity of a lane's table */
};

/* What a session is when its window ends. */
struct evict_state {
	uint32_t tokens;		/* appended so far */
	uint32_t want;			/* tokens the client's next step would like to carry; 0: any */
	uint32_t cap;			/* pool pressure: slots a lane may hold at most; 0: no pressure */
};

/* The answer for one lane. */
struct evict_lane_plan {
	uint32_t keep;			/* slots that stay; < live asks for compaction */
	uint32_t fresh;			/* new slots for the coming tokens */
	uint32_t victims;		/* slots to be named */
	uint32_t recent;
};

/*
 * evict_budget - slots a lane may hold on average after `tokens` tokens: the budget, at least the floor, at most cap (if not 0, never
 * below the floor) and max_slots. For policy full: max_slots.
 */
uint32_t evict_budget(const struct evict_spec *spec, uint32_t tokens, uint32_t cap);

/*
 * evict_grant - how many tokens the coming window may carry: `window`, more (up to want) while a whole prefill runs or the
 * policy never evicts. Never more than max_slots - tokens under full. 0 means that the session is at its capacity.
 */
uint32_t evict_grant(const struct evict_spec *spec, const struct evict_state *state);

/*
 * evict_plan_lane - one lane's plan for a window of `grant` tokens.
 * @budget: slots that this lane may hold: evict_budget(), or the lane's part of it (evict/split.h). At least min(floor, max_slots).
 * @live: slots that are live now. @room: slots for which the lane has pages, or could get them (>= live).
 * Guarantees: keep <= live; keep + fresh <= room; fresh + victims == grant; victims <= keep; victims <= window;
 * sinks + recent + victims <= keep whenever victims > 0 and keep allows it. The caller has made sure that room >= min(floor,
 * max_slots), so a plan always exists for grant <= window. For a larger grant (whole prefill) it needs room >= live + grant:
 * otherwise -ENOSPC, and the caller asks again with grant = window.
 */
int evict_plan_lane(const struct evict_spec *spec, const struct evict_state *state, uint32_t grant, uint32_t budget, uint32_t live,
		    uint32_t room, struct evict_lane_plan *out);

#ifdef __cplusplus
}
#endif
#endif
