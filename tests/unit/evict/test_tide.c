/* evict_tide: sums, floors, ceilings, priorities, that nobody would miss less what another would rather have, curves, and sizes at rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
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

static float between(float low, float high)
{
	return low + (high - low) * (float)draw(10000) / 10000.0f;
}

static struct evict_curve some_curve(void)
{
	struct evict_curve c = { .n = 1 + draw(EVICT_CURVE_POINTS), .slots = { between(0, 8) }, .loss = { between(-30, 10) } };

	for (uint32_t i = 1; i < c.n; i++) {
		c.slots[i] = c.slots[i - 1] + between(0.02f, 1.0f);
		c.loss[i] = c.loss[i - 1] - between(0.02f, 6.0f);
	}
	return c;
}

static uint32_t some(struct evict_tide_session *s)
{
	uint32_t n = 1 + draw(MOST);

	for (uint32_t i = 0; i < n; i++) {
		uint32_t floor = 36 + draw(100);

		s[i] = (struct evict_tide_session){
			.curve = some_curve(), .factor = between(-3, 3), .weight = (float)(1 + draw(64)) / 16.0f,
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

/* log2 of the expected loss per byte at `slots`. */
static double loss_at(const struct evict_tide_session *s, uint32_t slots)
{
	return (double)evict_curve_loss(&s->curve, log2f((float)slots)) + (double)s->factor + log2((double)s->weight) - log2(s->slot_bytes);
}

static void a_curve_goes_both_ways(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 5000; round++) {
		const struct evict_curve c = some_curve();
		const float a = between(-2, 16), b = a + between(0.01f, 4), loss = evict_curve_loss(&c, a);

		assert_true(evict_curve_loss(&c, b) < loss);
		assert_true(fabsf(evict_curve_slots(&c, loss) - a) < 1e-3f);
		for (uint32_t i = 0; i < c.n; i++)
			assert_true(fabsf(evict_curve_loss(&c, c.slots[i]) - c.loss[i]) < 1e-4f);
	}
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

/* Slot by slot to whoever is expected to miss it most per byte: slow, and obviously right where a slot takes the same of everybody. */
static void it_is_what_giving_slot_by_slot_gives(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 200; round++) {
		struct evict_tide_session s[MOST];
		uint32_t n = some(s), slow[MOST];
		uint64_t left = 0;

		for (uint32_t i = 0; i < n; i++) {
			s[i].slot_bytes = 4096;
			s[i].ceiling = s[i].floor + draw(400);
			slow[i] = s[i].floor;
			left += s[i].ceiling - s[i].floor;
		}
		left = left * draw(100) / 100 * 4096;
		for (uint32_t i = 0; i < n; i++)
			left += (uint64_t)s[i].floor * 4096;
		(void)evict_tide(s, n, left);
		for (uint32_t i = 0; i < n; i++)
			left -= (uint64_t)slow[i] * 4096;
		for (; left; left -= 4096) {
			uint32_t best = n;

			for (uint32_t i = 0; i < n; i++)
				if (slow[i] < s[i].ceiling &&
				    (best == n || loss_at(&s[i], slow[i] + 1) > loss_at(&s[best], slow[best] + 1)))
					best = i;
			if (best == n)
				break;
			slow[best]++;
		}
		for (uint32_t i = 0; i < n; i++)	/* whole slots: evict_tide() rounds down what is left of each */
			assert_true(s[i].slots <= slow[i] + 1 && slow[i] <= s[i].slots + 2);
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
		{ .curve = { 1, { 0 }, { -10 } }, .weight = 1, .slot_bytes = 1000, .floor = 64, .ceiling = 500 },
		{ .curve = { 1, { 0 }, { -10 } }, .weight = 2000, .slot_bytes = 1000, .floor = 64, .ceiling = 500 },
	};

	(void)state;
	for (uint64_t bytes = 128000; bytes <= 2000000; bytes += 1000) {
		(void)evict_tide(s, 2, bytes);
		if (s[1].slots < 500)
			assert_int_equal(s[0].slots, 64);
	}
	s[1].weight = 1;
	(void)evict_tide(s, 2, 600000);
	assert_int_equal(s[0].slots, s[1].slots);
	assert_in_range(s[0].slots, 298, 300);
}

static void heat_is_squared_over_the_half_that_receives_least(void **state)
{
	struct evict_lane_stats lane[3];
	float heat, other, live;

	(void)state;
	memset(lane, 0, sizeof(lane));
	assert_int_not_equal(evict_tide_heat(lane, 3, 64, &heat, &live), 0);
	for (unsigned k = 0; k < 3; k++) {
		lane[k].live = 400;
		lane[k].heat[evict_bin(8.0f)] = 200;
		lane[k].heat[evict_bin(0.16f)] = 200;
	}
	assert_int_not_equal(evict_tide_heat(lane, 3, 0, &heat, &live), 0);
	assert_int_equal(evict_tide_heat(lane, 3, 64, &heat, &live), 0);
	assert_true(fabs((double)heat - 2 * log2(0.16 / 64)) < 0.4);	/* within what a bin is wide */
	assert_true(fabs((double)live - log2(400)) < 1e-4);
	assert_int_equal(evict_tide_heat(lane, 3, 128, &other, &live), 0);
	assert_true(fabs((double)(heat - other) - 2.0) < 0.01);		/* half the probability, a quarter of the square */
	lane[1].heat[evict_bin(8.0f)] = 0;
	lane[1].heat[evict_bin(0.5f)] = 200;
	assert_int_equal(evict_tide_heat(lane, 3, 64, &other, &live), 0);
	assert_true(other == heat);
	lane[1].heat[evict_bin(0.16f)] = 0;
	assert_int_equal(evict_tide_heat(lane, 3, 64, &other, &live), 0);
	assert_true(other > heat + 1.0f);
}

/* A table of `lanes` lanes, all alike or each worth `apart` times the one before. */
static void table(float *value, float *curve, struct evict_lanes *head, uint32_t lanes, float apart)
{
	char text[4096];
	double worth = 1.0;
	int at = snprintf(text, sizeof(text), "ebbd-lanes 1 1 %u\ntokens 2048\nbudgets 64 160 400 1000\n", lanes);

	for (uint32_t i = 0; i < lanes; i++, worth *= (double)apart)
		at += snprintf(text + at, sizeof(text) - (size_t)at, "0 %u %.9g %.9g %.9g %.9g %.9g\n", i, 0.01 * worth, 0.01 * worth,
			       0.002 * worth, 0.0003 * worth, 0.00004 * worth);
	assert_int_equal(evict_lanes_parse(text, (size_t)at, 1, lanes, NULL, head, value, curve, NULL, 0), 0);
}

static void a_table_gives_a_curve(void **state)
{
	float value[8], curve[8 * EVICT_MAX_CURVE];
	struct evict_lanes head;
	double work[16];
	struct evict_split measured, uniform;

	(void)state;
	assert_int_equal(evict_split_parse("measured", &measured, NULL, 0), 0);
	assert_int_equal(evict_split_parse("uniform", &uniform, NULL, 0), 0);
	for (unsigned round = 0; round < 500; round++) {
		const uint32_t lanes = 1 + draw(8), floor = 32 + draw(64);
		struct evict_split_in in = { .n_layers = 1, .n_kv_heads = lanes, .floor = floor, .ceiling = floor + draw(3000),
					     .table = value, .lanes = &head, .curve = curve, .window = 32 };
		struct evict_curve out, longer;
		uint32_t budget[8], sum = 0;

		table(value, curve, &head, lanes, draw(2) ? 1.0f : between(0.2f, 1.0f));
		assert_int_equal(evict_split_curve(&uniform, &in, &out, work), -ENOENT);
		assert_int_equal(evict_split_curve(&measured, &in, &out, work), 0);
		assert_in_range(out.n, 1, EVICT_CURVE_POINTS);
		for (uint32_t i = 0; i < out.n; i++) {
			assert_true(out.slots[i] > log2f((float)in.floor) - 0.01f && out.slots[i] < log2f((float)in.ceiling) + 0.01f);
			assert_true(!i || (out.slots[i] > out.slots[i - 1] && out.loss[i] < out.loss[i - 1]));
		}
		/* With more tokens to hold the same size is expected to cost no less. */
		in.ceiling += in.ceiling / 2;
		assert_int_equal(evict_split_curve(&measured, &in, &longer, work), 0);
		if (out.n > 2)
			assert_true(evict_curve_loss(&longer, out.slots[out.n - 2]) > out.loss[out.n - 2] - 0.6f);
		/* What the split makes of a size is what the curve says of it: the lane's own marginal, where all are alike. */
		in.total = (uint64_t)lanes * 300;
		evict_split(&measured, &in, budget, work);
		for (uint32_t i = 0; i < lanes; i++)
			sum += budget[i];
		assert_true(in.ceiling < 300 || sum == 300 * lanes);
	}
	table(value, curve, &head, 4, 1.0f);
	for (uint32_t k = 0; k < 4; k++) {
		struct evict_split_in in = { .n_layers = 1, .n_kv_heads = 4, .floor = 32, .ceiling = 4000, .table = value,
					     .lanes = &head, .curve = curve, .window = 32 };
		const float between_budgets[4] = { 64 * 160, 160 * 400, 400 * 1000, 1000 * 2048 };
		const float at = log2f(sqrtf(between_budgets[k]));
		struct evict_curve out;

		assert_int_equal(evict_split_curve(&measured, &in, &out, work), 0);
		assert_int_equal(out.n, EVICT_CURVE_POINTS);
		assert_true(fabsf(evict_curve_loss(&out, at) - curve[k]) < 0.35f);	/* points lie between the table's */
	}
}

static void steps_are_bounded_and_small_ones_are_not_made(void **state)
{
	(void)state;
	assert_int_equal(evict_tide_step(320, 335, 32, 64, 1000), 320);
	assert_int_equal(evict_tide_step(320, 305, 32, 64, 1000), 320);
	assert_int_equal(evict_tide_step(320, 300, 32, 300, 1000), 300);	/* a bound is a bound */
	assert_int_equal(evict_tide_step(320, 1000, 32, 64, 1000), 392);
	assert_int_equal(evict_tide_step(320, 64, 32, 64, 1000), 208);
	assert_int_equal(evict_tide_step(320, 350, 32, 64, 1000), 350);
	assert_int_equal(evict_tide_step(40, 64, 32, 64, 1000), 64);
	for (uint32_t now = 1000, i = 0; i < 100; i++) {	/* it gets there, and stays */
		now = evict_tide_step(now, 200, 32, 64, 2000);
		assert_in_range(now, 200, 1000);
		if (i > 20)
			assert_true(now <= 213);
	}
}

/* One session grows, then stops; all move turn by turn. Who gives way gives way only; then all rest. */
static void one_that_grows_moves_the_others_once(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 200; round++) {
		struct evict_tide_session s[MOST];
		uint32_t n = some(s), now[MOST], was[MOST], moved[MOST] = { 0 }, window = 16 + draw(32);
		uint64_t bytes = 0;

		for (uint32_t i = 0; i < n; i++) {
			s[i].slot_bytes = 4096;
			bytes += 4096 * (uint64_t)(s[i].floor + (s[i].ceiling - s[i].floor) / 2);
			now[i] = s[i].floor;
		}
		for (unsigned turn = 0; turn < 200; turn++) {
			if (turn >= 100 && turn < 140)
				s[0].ceiling += 32;	/* it grows */
			(void)evict_tide(s, n, bytes);
			for (uint32_t i = 0; i < n; i++) {
				was[i] = now[i];
				now[i] = evict_tide_step(now[i], s[i].slots, window, s[i].floor, s[i].ceiling);
				assert_in_range(now[i], s[i].floor, s[i].ceiling);
				if (turn >= 100 && i && now[i] != was[i]) {
					assert_true(now[i] < was[i]);
					moved[i]++;
				}
				if (turn >= 190)
					assert_int_equal(now[i], was[i]);
			}
		}
		for (uint32_t i = 0; i < n; i++)
			assert_true(now[i] >= s[i].slots - s[i].slots / 15 - 1 && now[i] <= s[i].slots + s[i].slots / 15 + 1);
		for (uint32_t i = 1; i < n; i++)
			assert_true(moved[i] <= 40);
	}
}

/* What attention says is noisy: a wish that trembles by a few percent moves nothing. */
static void noise_moves_nothing(void **state)
{
	struct evict_tide_session s[8];
	uint32_t now[8];

	(void)state;
	for (uint32_t i = 0; i < 8; i++) {
		s[i] = (struct evict_tide_session){ .curve = { 1, { 0 }, { 0 } }, .weight = 1, .slot_bytes = 4096, .floor = 64,
						      .ceiling = 2000 };
		now[i] = 250;
	}
	for (unsigned turn = 0; turn < 1000; turn++) {
		for (uint32_t i = 0; i < 8; i++)
			s[i].factor = between(-0.1f, 0.1f);
		(void)evict_tide(s, 8, 8 * 250 * 4096);
		for (uint32_t i = 0; i < 8; i++) {
			now[i] = evict_tide_step(now[i], s[i].slots, 32, 64, 2000);
			assert_int_equal(now[i], 250);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_curve_goes_both_ways),
		cmocka_unit_test(sizes_fit_and_nobody_would_rather_swap),
		cmocka_unit_test(it_is_what_giving_slot_by_slot_gives),
		cmocka_unit_test(more_bytes_or_weight_take_nothing_away),
		cmocka_unit_test(the_heavy_give_way_last),
		cmocka_unit_test(heat_is_squared_over_the_half_that_receives_least),
		cmocka_unit_test(a_table_gives_a_curve),
		cmocka_unit_test(steps_are_bounded_and_small_ones_are_not_made),
		cmocka_unit_test(one_that_grows_moves_the_others_once),
		cmocka_unit_test(noise_moves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
