/*
 * How many slots a lane may hold and what happens to it at a window's end. The arithmetic that evict.h promises:
 *
 *	limit   what the lane may hold now: the budget, or all the room while a whole prefill runs out of it
 *	keep    min(live, limit)
 *	fresh   what of the grant fits below the limit
 *	victims the rest of the grant, which overwrites
 *
 * grant <= limit is all that it takes: where live < limit, victims = grant - (limit - live) <= live. A share of recent slots
 * is a share of the limit, so that a lane under pressure keeps the proportions that its policy wants.
 */
#include "evict/evict.h"

#include <errno.h>

static uint32_t min32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static uint32_t max32(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

uint32_t evict_amount_of(struct evict_amount amount, uint32_t of)
{
	uint64_t share;

	if (amount.count)
		return amount.count;
	share = ((uint64_t)amount.ppm * of + 999999u) / 1000000u;	/* below 2^64: both factors are below 2^32 */
	return share > UINT32_MAX ? UINT32_MAX : (uint32_t)share;
}

static int policy_evicts(uint32_t policy)
{
	return policy < EVICT_N_POLICIES && !evict_policies[policy].never_evicts;
}

static int evicts(const struct evict_spec *spec)
{
	return policy_evicts(spec->rule.policy);
}

uint32_t evict_window(uint32_t policy, struct evict_amount budget)
{
	if (!policy_evicts(policy))
		return 32;
	return budget.ppm ? 16 : min32(max32(budget.count / 16, 8), 32);
}

uint32_t evict_floor(struct evict_amount budget, uint32_t sinks, uint32_t window)
{
	const uint32_t wish = budget.ppm ? 64 : min32((uint32_t)((uint64_t)budget.count * 5 / 16), 64);

	return max32(wish, sinks + window);
}

/* The prompt is still coming in, and the session may run over its budget until it is complete. */
static int whole_prefill(const struct evict_spec *spec, const struct evict_state *state)
{
	return spec->prefill == EVICT_WHOLE && state->tokens < spec->prompt_tokens && !state->cap;
}

uint32_t evict_budget(const struct evict_spec *spec, uint32_t tokens, uint32_t cap)
{
	uint32_t budget;

	if (!evicts(spec))
		return spec->max_slots;
	budget = max32(evict_amount_of(spec->budget, tokens), spec->floor);
	if (cap)
		budget = min32(budget, max32(cap, spec->floor));
	return min32(budget, spec->max_slots);
}

uint32_t evict_grant(const struct evict_spec *spec, const struct evict_state *state)
{
	uint32_t left = spec->max_slots > state->tokens ? spec->max_slots - state->tokens : 0;
	uint32_t usual;

	if (!evicts(spec))
		return min32(max32(spec->window, state->want), left);
	usual = min32(spec->window, evict_budget(spec, state->tokens, state->cap));
	if (!whole_prefill(spec, state))
		return usual;
	/* No further than the prompt's end: what follows it is bound by the budget. */
	return max32(usual, min32(min32(state->want, spec->prompt_tokens - state->tokens), left));
}

int evict_plan_lane(const struct evict_spec *spec, const struct evict_state *state, uint32_t grant, uint32_t budget,
		    uint32_t live, uint32_t room, struct evict_lane_plan *out)
{
	const int must_fit = !evicts(spec), may_overrun = must_fit || whole_prefill(spec, state);
	const uint32_t sinks = spec->rule.sinks > 0 ? (uint32_t)spec->rule.sinks : 0;
	struct evict_lane_plan plan;
	uint32_t limit;
	uint64_t taken;
	int fits;

	room = min32(room, spec->max_slots);
	limit = may_overrun ? room : min32(budget, room);
	fits = may_overrun && live <= room && grant <= room - live;
	if (!fits && (must_fit || grant > spec->window || grant > limit))
		return -ENOSPC;
	plan.keep = min32(live, limit);
	plan.fresh = min32(grant, limit - plan.keep);
	plan.victims = grant - plan.fresh;
	taken = (uint64_t)sinks + plan.victims;
	plan.recent = plan.keep > taken ? min32(evict_amount_of(spec->recent, limit), plan.keep - (uint32_t)taken) : 0;
	*out = plan;
	return 0;
}
