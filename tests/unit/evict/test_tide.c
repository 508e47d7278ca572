/* evict_tide: sums, floors, ceilings, priorities, and that nobody would miss less what another would rather have. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "evict/tide.h"

enum { MOST = 40 };

static uint64_t state_ = 88172645463325252ull;

static uint32_t draw(uint32_t below)
{
	state_ ^= state_ << 13;
	state_ ^= state_ >> 7;
	state_ ^= state_ << 17;
	return (uint32_t)(state_ >> 33) % below;
}

static uint32_t some(struct evict_tide_session *s)
{
	uint32_t n = 1 + draw(MOST);

	for (uint32_t i = 0; i < n; i++) {
		uint32_t floor = 36 + draw(100);

		s[i] = (struct evict_tide_session){
			.curve = { (float)draw(400) / 10.0f - 30.0f, 0.5f + (float)draw(350) / 100.0f }, .weight = (float)(1 + draw(64)) / 16.0f,
			.slot_bytes = 256u * (1 + draw(200)), .floor = floor, .ceiling = floor + (draw(4) ? draw(4000) : 0),
		};
	}
	return n;
}

static uint64_t taken(const struct evict_tide_session *s, uint32_t n)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += (uint64_t)s[i].slots * s[i].slot_bytes;
	return sum;
}

/* log2 of the expected loss per byte at `slots`, by the C library. */
static double loss_at(const struct evict_tide_session *s, uint32_t slots)
{
	return (double)s->curve.at - (double)s->curve.slope * log2(slots) + log2((double)s->weight) - log2(s->slot_bytes);
}

static void sizes_fit_and_nobody_would_rather_swap(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 3000; round++) {
		struct evict_tide_session s[MOST];
		uint32_t n = some(s), low = 0, high = 0;
		uint64_t floors = 0, ceilings = 0, bytes;
		float level;

		for (uint32_t i = 0; i < n; i++) {
			floors += (uint64_t)s[i].floor * s[i].slot_bytes;
			ceilings += (uint64_t)s[i].ceiling * s[i].slot_bytes;
		}
		bytes = draw(8) ? floors + (ceilings - floors) / 1000 * draw(1100) : draw(1000000);
		level = evict_tide(s, n, bytes);
		for (uint32_t i = 0; i < n; i++) {
			assert_in_range(s[i].slots, s[i].floor, s[i].ceiling);
			low += s[i].slots == s[i].floor;
			high += s[i].slots == s[i].ceiling;
			if (bytes >= ceilings)
				assert_int_equal(s[i].slots, s[i].ceiling);
			else if (s[i].slots > s[i].floor)	/* its last slot is worth the threshold; the next one would not be */
				assert_true(loss_at(&s[i], s[i].slots) > (double)level - 0.01);
			if (bytes < ceilings && s[i].slots < s[i].ceiling)
				assert_true(loss_at(&s[i], s[i].slots + 1) < (double)level + 0.01);
		}
		assert_true(bytes >= ceilings ? level == EVICT_LOW_TIDE : level > EVICT_LOW_TIDE);
		if (bytes >= floors)
			assert_true(taken(s, n) <= bytes);
		else
			assert_int_equal(low, n);
	}
}

static void more_bytes_or_weight_take_nothing_away(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 2000; round++) {
		struct evict_tide_session a[MOST], b[MOST];
		uint32_t n = some(a), who = draw(n);
		uint64_t bytes = draw(1u << 30);

		memcpy(b, a, sizeof(a));
		(void)evict_tide(a, n, bytes);
		(void)evict_tide(b, n, bytes + bytes / 16);
		for (uint32_t i = 0; i < n; i++)
			assert_true(b[i].slots >= a[i].slots);
		memcpy(b, a, sizeof(a));
		b[who].weight *= 8;
		(void)evict_tide(b, n, bytes);
		assert_true(b[who].slots >= a[who].slots);
		for (uint32_t i = 0; i < n; i++)
			if (i != who)
				assert_true(b[i].slots <= a[i].slots);
	}
}

/* Of sessions that are alike but for their weight the light one is at its floor before the heavy one loses what it would not have lost alone. */
static void the_heavy_give_way_last(void **state)
{
	struct evict_tide_session s[2] = {
		{ .curve = { -10, 1.5f }, .weight = 1, .slot_bytes = 1000, .floor = 64, .ceiling = 1000 },
		{ .curve = { -10, 1.5f }, .weight = 1000, .slot_bytes = 1000, .floor = 64, .ceiling = 1000 },
	};

	(void)state;
	for (uint64_t bytes = 128000; bytes <= 2000000; bytes += 1000) {
		(void)evict_tide(s, 2, bytes);
		if (s[1].slots < 1000)
			assert_int_equal(s[0].slots, 64);
	}
	s[1].weight = 1;
	(void)evict_tide(s, 2, 1000000);
	assert_int_equal(s[0].slots, s[1].slots);
	assert_in_range(s[0].slots, 498, 500);
}

static void a_curve_is_read_from_what_attention_gave(void **state)
{
	struct evict_lane_stats lane[3];
	struct evict_curve flat, steep, faint;

	(void)state;
	memset(lane, 0, sizeof(lane));
	assert_int_not_equal(evict_curve_of(lane, 3, 64, &flat), 0);
	for (unsigned k = 0; k < 3; k++) {
		lane[k].live = 400;
		lane[k].heat[evict_bin(0.16f)] = 400;
	}
	assert_int_not_equal(evict_curve_of(lane, 3, 0, &flat), 0);
	assert_int_equal(evict_curve_of(lane, 3, 64, &flat), 0);
	assert_true(flat.slope == EVICT_MIN_SLOPE);
	for (unsigned k = 0; k < 3; k++) {
		memset(lane[k].heat, 0, sizeof(lane[k].heat));
		lane[k].heat[evict_bin(8.0f)] = 200;
		lane[k].heat[evict_bin(0.16f)] = 200;
	}
	assert_int_equal(evict_curve_of(lane, 3, 64, &steep), 0);
	assert_true(steep.slope > flat.slope && steep.slope <= EVICT_MAX_SLOPE);
	/* At three quarters both have the same slot: (0.16 / 64)^2, within what a bin is wide. */
	assert_true(fabs((double)(steep.at - steep.slope * log2f(300)) - 2 * log2(0.16 / 64)) < 0.4);
	assert_true(fabs((double)(flat.at - flat.slope * log2f(300)) - 2 * log2(0.16 / 64)) < 0.4);
	assert_int_equal(evict_curve_of(lane, 3, 128, &faint), 0);
	assert_true(fabs((double)(steep.at - faint.at) - 2.0) < 0.01);	/* half the probability, a quarter of the loss */
}

static void steps_are_bounded_and_small_ones_are_not_made(void **state)
{
	(void)state;
	assert_int_equal(evict_tide_step(320, 335, 32, 64, 1000), 320);
	assert_int_equal(evict_tide_step(320, 305, 32, 64, 1000), 320);
	assert_int_equal(evict_tide_step(320, 300, 32, 300, 1000), 300);	/* a bound is a bound */
	assert_int_equal(evict_tide_step(320, 1000, 32, 64, 1000), 392);
	assert_int_equal(evict_tide_step(320, 64, 32, 64, 1000), 248);
	assert_int_equal(evict_tide_step(320, 350, 32, 64, 1000), 350);
	assert_int_equal(evict_tide_step(40, 64, 32, 64, 1000), 64);
	for (uint32_t now = 1000, i = 0; i < 100; i++) {	/* it gets there, and stays */
		now = evict_tide_step(now, 200, 32, 64, 2000);
		assert_in_range(now, 200, 1000);
		if (i > 20)
			assert_true(now <= 213);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_fit_and_nobody_would_rather_swap),
		cmocka_unit_test(more_bytes_or_weight_take_nothing_away),
		cmocka_unit_test(the_heavy_give_way_last),
		cmocka_unit_test(a_curve_is_read_from_what_attention_gave),
		cmocka_unit_test(steps_are_bounded_and_small_ones_are_not_made),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
