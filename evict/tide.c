/* See tide.h. */
#include "evict/tide.h"

#include <errno.h>

#define LEAST 1e-12f		/* squared probability: what is less counts as this */
#define TURNS 48		/* halvings of the threshold's bracket */
#define BRACKET 128.0f		/* octaves: any squared probability per byte lies within */

/* The middle of a bin, as evict_bin() cuts them. */
static float bin_value(uint32_t bin)
{
	const uint32_t e = (bin - 1u) / 4u, m = (bin - 1u) % 4u;

	return bin ? evict_exp2((float)e - 32.0f) * (1.125f + 0.25f * (float)m) : 0.0f;
}

/* The heat of the slot that is the rank-th largest, from 1. */
static float heat_at(const struct evict_lane_stats *s, uint32_t rank)
{
	uint32_t above = 0;

	for (uint32_t bin = EVICT_BINS; bin-- > 0;) {
		above += s->heat[bin];
		if (above >= rank)
			return bin_value(bin);
	}
	return 0.0f;
}

int evict_curve_of(const struct evict_lane_stats *stats, uint32_t n_lanes, uint32_t queries, struct evict_curve *out)
{
	float loss[2] = { 0.0f, 0.0f }, live = 0.0f, low, high, slope;

	if (!n_lanes || !queries)
		return -EAGAIN;
	for (uint32_t i = 0; i < n_lanes; i++) {
		const uint32_t n = stats[i].live;
		float p;

		live += (float)n;
		p = heat_at(&stats[i], n / 4u + 1u) / (float)queries;
		loss[0] += p * p;
		p = heat_at(&stats[i], n - n / 4u) / (float)queries;
		loss[1] += p * p;
	}
	live /= (float)n_lanes;
	if (live < 16.0f)
		return -EAGAIN;
	high = evict_log2(evict_max(loss[0] / (float)n_lanes, LEAST));
	low = evict_log2(evict_max(loss[1] / (float)n_lanes, LEAST));
	slope = evict_min(evict_max((high - low) / evict_log2(3.0f), EVICT_MIN_SLOPE), EVICT_MAX_SLOPE);
	out->slope = slope;
	out->at = low + slope * evict_log2(0.75f * live);
	return 0;
}

/* Slots at which the session's loss per byte is 2^level. */
static uint32_t slots_at(const struct evict_tide_session *s, float level)
{
	const float y = (s->curve.at + evict_log2(s->weight) - evict_log2((float)s->slot_bytes) - level) / s->curve.slope;
	uint32_t slots;

	if (y >= 30.0f)
		return s->ceiling;
	slots = y <= 0.0f ? 0u : (uint32_t)evict_exp2(y);
	return slots < s->floor ? s->floor : slots > s->ceiling ? s->ceiling : slots;
}

static uint64_t bytes_at(const struct evict_tide_session *s, uint32_t n, float level)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += (uint64_t)slots_at(&s[i], level) * s[i].slot_bytes;
	return sum;
}

float evict_tide(struct evict_tide_session *s, uint32_t n, uint64_t bytes)
{
	float low = -BRACKET, high = BRACKET, level = EVICT_LOW_TIDE;
	uint64_t most = 0;

	for (uint32_t i = 0; i < n; i++)
		most += (uint64_t)s[i].ceiling * s[i].slot_bytes;
	if (most > bytes) {
		for (uint32_t turn = 0; turn < TURNS; turn++) {
			const float middle = 0.5f * (low + high);

			if (bytes_at(s, n, middle) > bytes)
				low = middle;
			else
				high = middle;
		}
		level = high;
	}
	for (uint32_t i = 0; i < n; i++)
		s[i].slots = most > bytes ? slots_at(&s[i], level) : s[i].ceiling;
	return level;
}

uint32_t evict_tide_step(uint32_t now, uint32_t wish, uint32_t window, uint32_t floor, uint32_t ceiling)
{
	const uint32_t far = now / 8u + window, apart = wish > now ? wish - now : now - wish;
	uint32_t to = wish;

	if (apart <= now / 16u && wish != floor && wish != ceiling)
		to = now;
	else if (apart > far)
		to = wish > now ? now + far : now - far;
	return to < floor ? floor : to > ceiling ? ceiling : to;
}
