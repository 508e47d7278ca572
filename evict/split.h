/*
 * Splits: how a session's slots are shared over its lanes. Pure functions of their arguments: no heap, clock, files or threads.
 *
 * A split is a file evict/split_NAME.h with one function and a row in evict/splits.c. It says what every lane is worth to it, in
 * doubles, and hands that to evict_apportion(), which makes whole numbers of it that add up. Adding one: write the file, add a
 * line to EVICT_SPLITS and a row to the table.
 *
 * Everything is computed in lane order (or layer order) in IEEE doubles with + - * / only, so the same numbers give the same
 * budgets on every machine.
 */
#ifndef EVICT_SPLIT_H
#define EVICT_SPLIT_H

#include <stddef.h>

#include "evict/rule.h"
#include "evict/stats.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The splits, in the order of their ids: X(identifier, "name"). */
#define EVICT_SPLITS(X) X(uniform, "uniform") X(pyramid, "pyramid") X(head, "head") \
	X(ada, "ada") X(dynamic, "dynamic") X(cake, "cake") X(sparsity, "sparsity") X(lazy_layer, "lazy-layer") \
	X(measured, "measured")

#define EVICT_SPLIT_ID(id, name) EVICT_SPLIT_##id,
enum evict_split_id { EVICT_SPLITS(EVICT_SPLIT_ID) EVICT_N_SPLITS };
#undef EVICT_SPLIT_ID

/* What a split must be given. */
enum {
	EVICT_NEEDS_RANK = EVICT_STATS_RANK,	/* statistics: the histogram of ranks */
	EVICT_NEEDS_HEAT = EVICT_STATS_HEAT | EVICT_STATS_SUMS,	/* statistics: the histogram and the sums of heat */
	EVICT_NEEDS_STATS = EVICT_NEEDS_RANK | EVICT_NEEDS_HEAT,	/* either: to be measured at a window's end */
	EVICT_NEEDS_TABLE = 8,			/* a table of lanes */
	EVICT_NEEDS_CURVE = 16,			/* one with curves: evict_lanes.n_budgets > 0 */
};

#define EVICT_MODEL 64		/* a model's name, NUL included */
#define EVICT_MAX_CURVE 8

/* What a table of lanes says of itself. */
struct evict_lanes {
	uint32_t n_layers, n_kv_heads;
	char model[EVICT_MODEL];	/* whose lanes they are; "": it does not say */
	uint32_t tokens;		/* of the texts that the losses were measured on: a lane of so many slots loses nothing */
	uint32_t window;		/* slots of each budget that the window's own tokens took there */
	uint32_t n_budgets;		/* losses per lane; 0: none */
	uint32_t budget[EVICT_MAX_CURVE];	/* slots, rising, below tokens */
};

/* What a split shares out, and what it knows. */
struct evict_split_in {
	uint32_t n_layers, n_kv_heads;	/* lane = layer * n_kv_heads + head */
	uint64_t total;			/* slots of all lanes together */
	/*
	 * Of every lane; floor <= ceiling. A split looks at the ceiling only while it is below twice the mean, or leaves it to
	 * evict_apportion(): so a higher one changes nothing once no lane is at it and it is that high.
	 */
	uint32_t floor, ceiling;
	uint32_t window;		/* slots of every lane that the coming window's own tokens take; at most the floor */
	uint32_t queries;		/* probabilities in the heat of a slot at most: the observed queries times the heads of a group */
	const struct evict_lane_stats *stats;	/* [lanes], or NULL: none yet, and splits that need them are uniform */
	const float *table;		/* [lanes], finite and >= 0, not all 0; or NULL */
	const struct evict_lanes *lanes;	/* what curve is of, or NULL */
	const float *curve;		/* [lanes][EVICT_MAX_CURVE], as evict_lanes_parse() makes it; or NULL */
};

/* A session's split, ready to run. */
struct evict_split {
	uint32_t id;			/* enum evict_split_id */
	float param[EVICT_MAX_PARAMS];
};

struct evict_param;

struct evict_split_info {
	const char *name;
	const char *text;		/* one line */
	const char *source;		/* paper, section */
	uint32_t needs;			/* EVICT_NEEDS_* */
	uint32_t n_heat;		/* heat arrays that it reads, which a session collects whatever its policy: first, second */
	uint32_t heat[EVICT_MAX_HEAT];	/* enum evict_heat */
	const struct evict_param *param;
	uint32_t n_params;
};

extern const struct evict_split_info evict_splits[EVICT_N_SPLITS];

/* evict_split_parse - read "NAME" or "NAME:key=value,...", as evict_parse() reads policies. -EINVAL with a sentence. */
int evict_split_parse(const char *text, struct evict_split *split, char *why, size_t why_bytes);

/*
 * What one slot more is expected to save, against the slots that a lane holds on average: log2 of both, straight lines between points.
 */
#define EVICT_CURVE_POINTS 8
struct evict_curve {
	uint32_t n;			/* points, from 1 */
	float slots[EVICT_CURVE_POINTS];	/* rising */
	float loss[EVICT_CURVE_POINTS];	/* falling */
};

/*
 * evict_split_curve - the marginal loss (nats, of one lane's slot) at which split `measured` cuts, against its mean budget, under in->floor
 * and in->ceiling; in->total does not matter. @work: [lanes]. Returns 0, or -ENOENT: the split expects nothing, or knows no losses.
 */
int evict_split_curve(const struct evict_split *split, const struct evict_split_in *in, struct evict_curve *out, double *work);

/* The parameter by name; for the code around a split (lazy-layer's `recent` is what heat_near is taken over). 0 if it has none. */
float evict_split_param(const struct evict_split *split, const char *name);

/*
 * evict_apportion - `total` slots over n lanes in proportion to their weights: budget[i] = the nearest whole number to
 * scale * weight[i], but at least floor and at most ceiling, with the one scale that makes them add up (the method of
 * Webster). Where several lanes would get their next slot at the same scale and not all can, the lower ones do.
 * Adds up to total exactly, or to n * floor or n * ceiling where total lies outside of these. With a larger total and the same weights
 * no lane gets less. Weights that are not positive and finite count as next to nothing: such a lane
 * stays at its floor until all others are at the ceiling. All weights alike: as equal as whole numbers are.
 */
void evict_apportion(const double *weight, uint32_t n, uint64_t total, uint32_t floor, uint32_t ceiling, uint32_t *budget);

/*
 * evict_split - what the split says now: budget[lanes], adding up to in->total as evict_apportion() promises.
 * @work: [lanes]; its contents do not matter.
 */
void evict_split(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, double *work);

/*
 * evict_resplit - at a window's end: new budgets from those in force, without moving slots for next to nothing.
 * The split's answer is taken when
 *	nothing is in force yet (all budgets are 0), or
 *	it takes no slot from any lane, or
 *	at least a 32nd of the total would change lanes, or
 *	it is what it was at the last window's end (target): it has come to rest, or
 *	a lane is to hold as many slots as there are tokens (in->ceiling): waiting would cost it what never comes back.
 * Else evict_reshare().
 * @budget: [lanes], in: in force, out: to be in force. @target: [lanes], kept between calls, zeros at first.
 * @work: [2 * lanes]. Returns 1 if the split's answer was taken.
 */
int evict_resplit(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, uint32_t *target, double *work);

/* evict_reshare - the lanes keep their proportions, at in->total. @budget, @work: as evict_resplit(). */
void evict_reshare(const struct evict_split_in *in, uint32_t *budget, double *work);

/*
 * evict_lanes_parse - read a table of lanes (docs/man/ebbd.ini.5): text of @bytes bytes, NUL or not behind it. The first line
 * that is neither empty nor a comment (#) is "ebbd-lanes 1 LAYERS KV_HEADS"; then, if it says so, "model NAME", "tokens N" and
 * "budgets N N ...", in any order; then one line "LAYER HEAD VALUE" per lane, in any order, each lane once, with as many losses behind it
 * as there are budgets. VALUE and losses are decimal numbers >= 0; one VALUE at least is more than 0.
 * @model: whose table it has to be, if it says whose it is; NULL or "": anybody's. @head: returned.
 * @table: [n_layers * n_kv_heads]: the values. @curve: NULL or [n_layers * n_kv_heads][EVICT_MAX_CURVE]: of each lane, log2 of what one slot
 * more saves (nats) at the geometric mean of budget i and the next (the last: of the last and tokens); falling, as split measured wants it.
 * On failure their contents mean nothing.
 * @why: "line N: found X; allowed: Y". Errors: -EINVAL.
 */
int evict_lanes_parse(const char *text, size_t bytes, uint32_t n_layers, uint32_t n_kv_heads, const char *model, struct evict_lanes *head,
		      float *table, float *curve, char *why, size_t why_bytes);

/* evict_lanes_shape - only its first line: the shape that such a text says it has. -EINVAL with a sentence. */
int evict_lanes_shape(const char *text, size_t bytes, uint32_t *n_layers, uint32_t *n_kv_heads, char *why, size_t why_bytes);

#ifdef __cplusplus
}
#endif
#endif
