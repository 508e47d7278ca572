/*
 * Statistics of lanes that gpu_select takes when asked, against sums written out over the model's slots; to the bit. That asking changes
 * nothing else is checked by the model, as in test_select.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>

#include "evict/evict.h"
#include "tests/lib/world.h"

enum { N = 2, LANES = 4 };

static const uint32_t lengths[] = { 0, 1, 63, 255, 256, 257, 700 };

struct turns {
	struct gpu_turn turn[N];
	struct gpu_plan plan[N][LANES];
};

static struct world *world_for(uint32_t policy, uint32_t n_heat, unsigned number)
{
	const struct world_spec spec = {
		.shape = { .n_kv_heads = 2, .group = 1, .head_dim = 64, .slot_type = GPU_BF16 },
		.n_layers = 2, .n_sessions = N, .window = 32, .max_slots = 800, .n_heat = n_heat,
		.heat = { EVICT_HEAT_SUM, EVICT_HEAT_SQUARES }, .observe = 1, .n_credit = evict_n_arrays(policy),
		.seed = 900 + number, .places = 5 + number,
	};
	struct world *w = world_new(&spec);

	for (unsigned i = 0; i < N; i++) {
		world_fill(w, i, lengths, sizeof(lengths) / sizeof(*lengths), 32);
		for (uint32_t l = 0; l < LANES; l++) {
			struct oracle_lane *lane = &w->session[i].model.lane[l];

			world_room(w, i, l, gpu_live(lane->head, 32));
			for (uint32_t j = 0; j < 32; j++) {
				struct oracle_slot *slot = &lane->slot[gpu_slot_of(lane->head, lane->next, j)];

				slot->pos = w->session[i].pos + (int32_t)j;
			}
			for (uint32_t at = 0; at < gpu_live(lane->head, 32); at++)
				for (uint32_t k = 0; k < GPU_MAX_HEAT; k++)
					lane->slot[at].heat[k] = (double)((float)(1u << world_below(&w->random, 20)) / 70000.0f *
									  (float)world_below(&w->random, 7));
		}
		w->session[i].used = 32;
	}
	return w;
}

static void turns_for(struct world *w, struct turns *t, const struct evict_rule *rule, uint32_t stats)
{
	memset(t, 0, sizeof(*t));
	for (unsigned i = 0; i < N; i++) {
		struct world_session *s = &w->session[i];
		void *out;

		for (uint32_t l = 0; l < LANES; l++) {
			const uint32_t live = gpu_live(s->model.lane[l].head, 32);

			t->plan[i][l] = (struct gpu_plan){ .keep = live, .recent = live / 3 };
		}
		t->turn[i] = (struct gpu_turn){
			.priv = s->priv, .plan = t->plan[i], .n_lanes = LANES, .appended = 32, .pos = s->pos, .rule = *rule,
			.n_credit = w->spec.n_credit, .slot_type = GPU_BF16, .head_dim = 64,
			.stats = stats, .stats_heat = { 0, 1 }, .stats_near = 50 + i,
		};
		t->turn[i].rule.sinks = 4;
		t->turn[i].rule.pinned = i ? s->pos / 2 : 0;
		assert_int_equal(gpu_host_alloc(w->dev, LANES * sizeof(struct evict_lane_stats), &out), 0);
		t->turn[i].lane_stats = out;
	}
}

static void expect_heat(const struct world *w, const struct oracle_lane *lane, uint32_t live, const struct gpu_turn *turn,
			uint32_t stats, struct evict_lane_stats *want)
{
	float sum[256] = { 0 }, near[256] = { 0 }, squares[256] = { 0 }, second[256] = { 0 };
	const int32_t now = turn->pos + 32;

	for (uint32_t at = 0; at < live; at++) {
		const int32_t pos = lane->slot[at].own_pos;
		const float heat = w->spec.n_heat > 0 ? evict_clean((float)lane->slot[at].heat[0]) : 0.0f;

		sum[at % 256] += heat;
		near[at % 256] += pos < turn->rule.sinks || pos >= now - (int32_t)turn->stats_near ? heat : 0.0f;
		squares[at % 256] += heat * heat;
		second[at % 256] += w->spec.n_heat > 1 ? evict_clean((float)lane->slot[at].heat[1]) : 0.0f;
		want->heat_max = stats & EVICT_STATS_SUMS && heat > want->heat_max ? heat : want->heat_max;
		if (stats & EVICT_STATS_HEAT)
			want->heat[evict_bin(heat)]++;
	}
	if (!(stats & EVICT_STATS_SUMS))
		return;
	want->heat_sum = evict_places(sum);
	want->heat_near = evict_places(near);
	want->heat_squares = evict_places(squares);
	want->second_sum = evict_places(second);
}

static void expect_ranks(const struct oracle_lane *lane, uint32_t l, uint32_t live, const struct gpu_turn *turn,
			 struct evict_lane_stats *want)
{
	const struct evict_lane view = evict_lane_at(&turn->rule, l, turn->pos, 32, 1, live);

	for (uint32_t at = 0; at < live; at++) {
		struct evict_slot slot = { .pos = lane->slot[at].own_pos };

		memcpy(slot.credit, lane->slot[at].credit, evict_n_credit(turn->rule.policy) * sizeof(float));
		if (evict_tier(&turn->rule, turn->plan[l].recent, view.now, slot.pos))
			continue;
		want->free++;
		want->rank[evict_rank_bin(turn->rule.policy, evict_rank(&turn->rule, &view, &slot))]++;
	}
}

static void compare(struct world *w, struct turns *t, uint32_t stats)
{
	for (unsigned i = 0; i < N; i++) {
		struct oracle_session *model = &w->session[i].model;
		struct evict_lane_stats want[LANES] = { 0 };

		oracle_select(model, &t->turn[i], GPU_SETTLE, NULL);
		for (uint32_t l = 0; l < LANES; l++) {
			want[l].live = gpu_live(model->lane[l].head, 32);
			expect_heat(w, &model->lane[l], want[l].live, &t->turn[i], stats, &want[l]);
		}
		oracle_select(model, &t->turn[i], GPU_FOLD, NULL);
		for (uint32_t l = 0; l < LANES && stats & EVICT_STATS_RANK; l++)
			expect_ranks(&model->lane[l], l, want[l].live, &t->turn[i], &want[l]);
		assert_memory_equal(t->turn[i].lane_stats, want, sizeof(want));
		w->session[i].shared_stays = 1;
		gpu_host_free(w->dev, t->turn[i].lane_stats);
	}
	world_check(w, 0.0, 0.0);
}

static void statistics_are_what_the_slots_say(void **state)
{
	static const char *const policies[] = { "h2o", "h2o:age=1", "h2o:decay=0.98", "streaming", "random", "roco:spare=0" };
	unsigned number = 0;

	(void)state;
	for (size_t p = 0; p < sizeof(policies) / sizeof(*policies); p++) {
		for (uint32_t n_heat = 0; n_heat <= GPU_MAX_HEAT; n_heat++) {
			for (uint32_t stats = 1; stats < 8; stats++) {
				struct evict_rule rule = { .seed = 3 };
				struct world *w;
				struct turns t;

				assert_int_equal(evict_parse(policies[p], &rule, NULL, 0), 0);
				w = world_for(rule.policy, n_heat, number++);
				turns_for(w, &t, &rule, stats);
				world_put(w);
				assert_int_equal(gpu_select(w->dev, w->stream, w->map, t.turn, N, GPU_SETTLE | GPU_FOLD, NULL), 0);
				assert_int_equal(gpu_sync(w->dev, w->stream), 0);
				compare(w, &t, stats);
				world_free(w);
			}
		}
	}
}

/* Heat is a client's: numbers that are none count as nothing, in the statistics too. */
static void hostile_heat_counts_as_nothing(void **state)
{
	static const uint32_t bad[] = { 0x7fc00000u, 0x7f800000u, 0xff800000u, 0xbf800000u, 0x7f7fffffu, 0x00000001u };
	struct evict_rule rule = { 0 };
	struct world *w;
	struct turns t;

	(void)state;
	assert_int_equal(evict_parse("h2o", &rule, NULL, 0), 0);
	w = world_for(rule.policy, 2, 77);
	for (unsigned i = 0; i < N; i++)
		for (uint32_t l = 0; l < LANES; l++)
			for (uint32_t at = 0; at < gpu_live(w->session[i].model.lane[l].head, 32); at++) {
				float heat;

				memcpy(&heat, &bad[(at + l) % 6], sizeof(heat));
				w->session[i].model.lane[l].slot[at].heat[at % 2] = (double)heat;
			}
	turns_for(w, &t, &rule, 7);
	world_put(w);
	assert_int_equal(gpu_select(w->dev, w->stream, w->map, t.turn, N, GPU_SETTLE | GPU_FOLD, NULL), 0);
	assert_int_equal(gpu_sync(w->dev, w->stream), 0);
	for (uint32_t l = 0; l < LANES; l++)
		assert_true(isfinite(t.turn[0].lane_stats[l].heat_sum) && isfinite(t.turn[0].lane_stats[l].second_sum));
	compare(w, &t, 7);
	world_free(w);
}

static void statistics_without_a_fold_are_refused(void **state)
{
	struct evict_rule rule = { 0 };
	struct world *w;
	struct turns t;

	(void)state;
	assert_int_equal(evict_parse("h2o", &rule, NULL, 0), 0);
	w = world_for(rule.policy, 1, 5);
	turns_for(w, &t, &rule, 1);
	world_put(w);
	assert_int_equal(gpu_select(w->dev, w->stream, w->map, t.turn, N, GPU_SETTLE, NULL), -EINVAL);
	for (unsigned i = 0; i < N; i++)
		gpu_host_free(w->dev, t.turn[i].lane_stats);
	world_free(w);
}

static void bins_are_quarters_of_an_octave(void **state)
{
	(void)state;
	assert_int_equal(evict_bin(0.0f), 0);
	assert_int_equal(evict_bin(-1.0f), 0);
	assert_int_equal(evict_bin(NAN), 0);
	assert_int_equal(evict_bin(INFINITY), EVICT_BINS - 1);
	assert_int_equal(evict_count(65535), EVICT_MOST_COUNT);
	assert_int_equal(evict_count(65536), EVICT_MOST_COUNT);
	assert_int_equal(evict_bin(ldexpf(0.99999f, -32)), 0);
	for (uint32_t bin = 1; bin < EVICT_BINS; bin++) {
		const float low = ldexpf(1.0f + 0.25f * (float)((bin - 1) % 4), (int)((bin - 1) / 4) - 32);

		assert_int_equal(evict_bin(low), bin);
		assert_int_equal(evict_bin(nextafterf(low, 0.0f)), bin - 1);
		/* what is not spared counts as what it was, where a policy spares; the middle, since division rounds */
		assert_int_equal(evict_rank_bin(EVICT_ebb, evict_below(low * 1.1f)), bin);
		assert_int_equal(evict_rank_bin(EVICT_ebb, low), bin);
		assert_int_equal(evict_rank_bin(EVICT_h2o, evict_below(low * 1.1f)), 0);
	}
	assert_int_equal(evict_rank_bin(EVICT_ebb, evict_below(0.0f)), 0);
	assert_int_equal(evict_rank_bin(EVICT_ebb, NAN), 0);
	for (uint32_t i = 0; i < 100000; i++) {
		const uint32_t bits = i * 42949u;
		float x;

		memcpy(&x, &bits, sizeof(x));
		if (!isnan(x) && x != 0.0f)
			assert_true(evict_unorder(evict_order(x)) == x);
	}
	assert_true(isnan(evict_unorder(evict_order(NAN))));
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(statistics_are_what_the_slots_say),
		cmocka_unit_test(hostile_heat_counts_as_nothing),
		cmocka_unit_test(statistics_without_a_fold_are_refused),
		cmocka_unit_test(bins_are_quarters_of_an_octave),
	};

	return cmocka_run_group_tests_name("gpu stats", tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	return world_main(argc, argv, run);
}
