/* Whole numbers that add up, in proportion to weights, between a floor and a ceiling; and when a new share-out is worth its moves. */
#include "evict/evict_internal.h"

#include <string.h>

#define LEAST_WEIGHT 9.094947017729282e-13	/* 2^-40 of the largest: what a weight of 0 counts as */
#define WORTH_MOVING 32u			/* a new share-out is taken at once when a 32nd of the slots changes lanes */

struct share {
	const double *weight;
	double largest;
	uint32_t n, floor, ceiling;
};

static int counts(double weight)	/* not NaN, not infinite, more than nothing */
{
	return weight > 0.0 && weight <= 1e300;
}

static double weight_of(const struct share *s, uint32_t lane)
{
	const double least = s->largest * LEAST_WEIGHT;

	return counts(s->weight[lane]) && s->weight[lane] > least ? s->weight[lane] : least;
}

static uint32_t slots_at(const struct share *s, uint32_t lane, double scale)
{
	const double slots = weight_of(s, lane) * scale + 0.5;

	if (!(slots < (double)s->ceiling))
		return s->ceiling;
	return slots < (double)s->floor ? s->floor : (uint32_t)slots;
}

static uint64_t sum_at(const struct share *s, double scale)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < s->n; i++)
		sum += slots_at(s, i, scale);
	return sum;
}

/*
 * The sum grows with the scale, in steps: sum(low) <= total <= sum(high), halved until it fits or nothing lies between the two. Weights
 * span 2^40 and slots 2^30, so the ends are found within some 90 doublings and the middle within 55 halvings; mostly in ten.
 */
void evict_apportion(const double *weight, uint32_t n, uint64_t total, uint32_t floor, uint32_t ceiling, uint32_t *budget)
{
	struct share s = { weight, 0.0, n, floor, ceiling };
	double sum = 0.0, low, high;
	uint64_t have;

	for (uint32_t i = 0; i < n; i++)
		if (counts(weight[i]) && weight[i] > s.largest)
			s.largest = weight[i];
	if (s.largest == 0.0)
		s.largest = 1.0;
	for (uint32_t i = 0; i < n; i++)
		sum += weight_of(&s, i);
	if (total < (uint64_t)n * floor)
		total = (uint64_t)n * floor;
	if (total > (uint64_t)n * ceiling)
		total = (uint64_t)n * ceiling;
	low = high = (double)total / sum;
	while (sum_at(&s, high) < total)
		high *= 2.0;
	while ((have = sum_at(&s, low)) > total)
		low /= 2.0;
	while (have != total) {
		const double middle = low + (high - low) / 2.0;
		uint64_t there;

		if (middle <= low || middle >= high)
			break;
		there = sum_at(&s, middle);
		if (there <= total) {
			low = middle;
			have = there;
		} else {
			high = middle;
		}
	}
	for (uint32_t i = 0; i < n; i++) {	/* what would come at the next scale: the lower lanes get it */
		const uint32_t more = slots_at(&s, i, high) - slots_at(&s, i, low);
		const uint64_t left = total - have;

		budget[i] = slots_at(&s, i, low) + (more < left ? more : (uint32_t)left);
		have += more < left ? more : left;
	}
}

void evict_reshare(const struct evict_split_in *in, uint32_t *budget, double *work)
{
	const uint32_t n = in->n_layers * in->n_kv_heads;

	for (uint32_t i = 0; i < n; i++)
		work[i] = (double)budget[i];
	evict_apportion(work, n, in->total, in->floor, in->ceiling, budget);
}

int evict_resplit(const struct evict_split *split, const struct evict_split_in *in, uint32_t *budget, uint32_t *target, double *work)
{
	const uint32_t n = in->n_layers * in->n_kv_heads;
	uint32_t *next = (uint32_t *)(void *)(work + n);
	uint64_t in_force = 0, moved = 0;
	int shrinks = 0, whole = 0, rests;

	evict_split(split, in, next, work);
	rests = memcmp(next, target, n * sizeof(*next)) == 0;
	memcpy(target, next, n * sizeof(*next));
	for (uint32_t i = 0; i < n; i++) {
		in_force += budget[i];
		shrinks |= next[i] < budget[i];
		whole |= next[i] == in->ceiling && budget[i] < next[i];
	}
	if (in_force && shrinks && !rests && !whole) {
		evict_reshare(in, budget, work);
		for (uint32_t i = 0; i < n; i++)
			moved += next[i] > budget[i] ? next[i] - budget[i] : 0;
		if (moved * WORTH_MOVING < in->total)
			return 0;
	}
	memcpy(budget, next, n * sizeof(*next));
	return 1;
}
