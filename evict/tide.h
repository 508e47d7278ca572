/*
 * The tide: one threshold for all sessions of a pool, on the loss that is expected when a slot is taken. Pure functions of their arguments.
 *
 * A session's expected loss of its next slot is a curve (evict/split.h) times a factor of its own. The curve is the marginal loss at
 * which split `measured` cuts the session's lanes, from the table of its model, for as many tokens as it has; without a table it falls
 * with the power EVICT_FALL of the slots. The factor is what its own attention says: squared probabilities of the half of its slots
 * that receive least. These were measured to fall with slots and to rise with tokens as the marginal loss does (docs/tide.md).
 *
 * Everything is in float, by evict/math.h, in the order of the arguments: the same numbers give the same sizes everywhere.
 */
#ifndef EVICT_TIDE_H
#define EVICT_TIDE_H

#include <stdint.h>

#include "evict/split.h"
#include "evict/stats.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EVICT_FALL 3.5f		/* octaves of loss an octave of slots: where a curve has no points to say it, and beyond its ends */

/* log2 of the loss at 2^slots slots, and the other way round. */
float evict_curve_loss(const struct evict_curve *curve, float slots);
float evict_curve_slots(const struct evict_curve *curve, float loss);

/*
 * evict_tide_heat - log2 of the squared probability of a slot that receives little: over the half of each lane's slots with the least heat
 * (EVICT_STATS_HEAT), mean over slots and lanes. @queries: probabilities in a heat: observed queries times the heads of a group.
 * @live: log2 of the slots that a lane holds on average. Returns 0, or -EAGAIN: too little to say anything.
 */
int evict_tide_heat(const struct evict_lane_stats *stats, uint32_t n_lanes, uint32_t queries, float *heat, float *live);

struct evict_tide_session {
	struct evict_curve curve;
	float factor;			/* log2: on top of the curve */
	float weight;			/* priority, > 0: its losses count so many times */
	uint32_t slot_bytes;		/* of one slot in every lane */
	uint32_t floor, ceiling;	/* slots a lane; floor <= ceiling */
	uint32_t slots;			/* out */
};

/*
 * evict_tide - sizes such that all together take at most `bytes`, and no slot that a session has, above its floor, is expected to be missed
 * less per byte than one that another below its ceiling would get.
 * Returns log2 of the threshold: expected loss per byte; -INFINITY's stand-in EVICT_LOW_TIDE when all have their ceilings. If even the
 * floors do not fit, the floors.
 * With more bytes no session gets less; with a larger weight a session gets no less; equal sessions get the same.
 */
#define EVICT_LOW_TIDE (-1e9f)
float evict_tide(struct evict_tide_session *s, uint32_t n, uint64_t bytes);

/*
 * evict_tide_step - the size that a session takes now, on its way from `now` to `wish`: nothing while they are a 16th apart or less
 * (unless the wish is a bound), else at most an eighth up or a quarter down (and a window). Never below floor or above ceiling.
 */
uint32_t evict_tide_step(uint32_t now, uint32_t wish, uint32_t window, uint32_t floor, uint32_t ceiling);

#ifdef __cplusplus
}
#endif
#endif
