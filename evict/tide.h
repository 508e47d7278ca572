/*
 * The tide: one threshold for all sessions of a pool, on the loss that is expected when a slot is taken. Pure functions of their arguments.
 *
 * A session's expected loss of its next slot at b slots a lane is taken to be 2^(at - slope * log2(b)), in squared probability: what
 * leaves attention shifts the output by its probability, and the divergence of the model's prediction is of second order in that
 * shift. A share of attention mass (first order) says that a thousand slots of 1/1000 are worth as much as one that a head looks at alone.
 *
 * Everything is in float, by evict/math.h, in the order of the arguments: the same numbers give the same sizes everywhere.
 */
#ifndef EVICT_TIDE_H
#define EVICT_TIDE_H

#include <stdint.h>

#include "evict/stats.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EVICT_MIN_SLOPE 0.5f
#define EVICT_MAX_SLOPE 4.0f

struct evict_curve {
	float at, slope;	/* slope: EVICT_MIN_SLOPE .. EVICT_MAX_SLOPE */
};

/*
 * evict_curve_of - from the histograms of heat (EVICT_STATS_HEAT) of a session's lanes: the squared probability of the slots that would
 * be the next to go if a lane kept a quarter, and three quarters, of what it holds by its heat; means over the lanes.
 * @queries: probabilities in a heat: observed queries times the heads of a group. Returns 0, or -EAGAIN: too little to say anything.
 */
int evict_curve_of(const struct evict_lane_stats *stats, uint32_t n_lanes, uint32_t queries, struct evict_curve *out);

struct evict_tide_session {
	struct evict_curve curve;
	float weight;			/* priority, > 0: its losses count so many times */
	uint32_t slot_bytes;		/* of one slot in every lane */
	uint32_t floor, ceiling;	/* slots a lane; floor <= ceiling */
	uint32_t slots;			/* out */
};

/*
 * evict_tide - sizes such that all together take at most `bytes`, and no slot that a session has, above its floor, is expected to be missed less per byte
 * than one that another below its ceiling would get.
 * Returns log2 of the threshold: expected loss per byte; -INFINITY's stand-in EVICT_LOW_TIDE when all have their ceilings. If even the floors
 * do not fit, the floors.
 * With more bytes no session gets less; with a larger weight a session gets no less; equal sessions get the same.
 */
#define EVICT_LOW_TIDE (-1e9f)
float evict_tide(struct evict_tide_session *s, uint32_t n, uint64_t bytes);

/*
 * evict_tide_step - the size that a session takes now, on its way from `now` to `wish`: nothing while they are a 16th apart or less (unless the
 * wish is a bound), else at most an eighth (and a window) further. Never below floor or above ceiling.
 */
uint32_t evict_tide_step(uint32_t now, uint32_t wish, uint32_t window, uint32_t floor, uint32_t ceiling);

#ifdef __cplusplus
}
#endif
#endif
