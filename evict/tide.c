/* See tide.h. */
#include "evict/tide.h"

#include <errno.h>

#define LEAST 1e-12f		/* squared probability: what is less counts as this */
#define TURNS 48		/* halvings of the threshold's bracket */
#define BRACKET 256.0f		/* octaves: any loss per byte lies within */

/* The line through points k and k + 1, or, with only one point, through that. */
static float fall(const struct evict_curve *c, uint32_t k)
{
	return c->n == 1 ? EVICT_FALL : (c->loss[k] - c->loss[k + 1]) / (c->slots[k + 1] - c->slots[k]);
}

float evict_curve_loss(const struct evict_curve *c, float slots)
{
	uint32_t k = 0;

	if (slots < c->slots[0])
		return c->loss[0] + EVICT_FALL * (c->slots[0] - slots);
	if (slots > c->slots[c->n - 1])
		return c->loss[c->n - 1] - EVICT_FALL * (slots - c->slots[c->n - 1]);
	while (k + 2 < c->n && slots > c->slots[k + 1])
		k++;
	return c->loss[k] - fall(c, k) * (slots - c->slots[k]);
}

float evict_curve_slots(const struct evict_curve *c, float loss)
{
	uint32_t k = 0;

	if (loss > c->loss[0])
		return c->slots[0] - (loss - c->loss[0]) / EVICT_FALL;
	if (loss < c->loss[c->n - 1])
		return c->slots[c->n - 1] + (c->loss[c->n - 1] - loss) / EVICT_FALL;
	while (k + 2 < c->n && loss < c->loss[k + 1])
		k++;
	return c->slots[k] + (c->loss[k] - loss) / fall(c, k);
}

/* The middle of a bin, as evict_bin() cuts them. */
static float bin_value(uint32_t bin)
{
	const uint32_t e = (bin - 1u) / 4u, m = (bin - 1u) % 4u;

	return bin ? evict_exp2((float)e - 32.0f) * (1.125f + 0.25f * (float)m) : 0.0f;
}

/* Mean of the squares of the `n` smallest heats of a lane. */
static float least_squares(const struct evict_lane_stats *s, uint32_t n)
{
	float sum = 0.0f;

	for (uint32_t bin = 0, left = n; left && bin < EVICT_BINS; bin++) {
		const uint32_t here = s->heat[bin] < left ? s->heat[bin] : left;
		const float value = bin_value(bin);

		sum += (float)here * (value * value);
		left -= here;
	}
	return n ? sum / (float)n : 0.0f;
}

int evict_tide_heat(const struct evict_lane_stats *stats, uint32_t n_lanes, uint32_t queries, float *heat, float *live)
{
	float squares = 0.0f, slots = 0.0f;

	if (!n_lanes || !queries)
		return -EAGAIN;
	for (uint32_t i = 0; i < n_lanes; i++) {
		squares += least_squares(&stats[i], stats[i].live / 2u);
		slots += (float)stats[i].live;
	}
	slots /= (float)n_lanes;
	if (slots < 16.0f)
		return -EAGAIN;
	squares /= (float)n_lanes * (float)queries * (float)queries;
	*heat = evict_log2(evict_max(squares, LEAST));
	*live = evict_log2(slots);
	return 0;
}

/* Slots at which the session's loss per byte is 2^level. */
static uint32_t slots_at(const struct evict_tide_session *s, float level)
{
	const float loss = level + evict_log2((float)s->slot_bytes) - evict_log2(s->weight) - s->factor;
	const float y = evict_curve_slots(&s->curve, loss);
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
	const uint32_t far = now / (wish < now ? 4u : 8u) + window, apart = wish > now ? wish - now : now - wish;
	uint32_t to = wish;

	if (apart <= now / 16u && wish != floor && wish != ceiling)
		to = now;
	else if (apart > far)
		to = wish > now ? now + far : now - far;
	return to < floor ? floor : to > ceiling ? ceiling : to;
}
