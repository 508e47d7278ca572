/*
 * gpu_select against the oracle: settle, fold, remove, compact, next, together and one after the other, for every policy; hostile
 * heat and shared memory; ties. All of it exact. And gpu_move.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>

#include "evict/evict.h"
#include "tests/lib/world.h"

enum { N = 3, MAX_LANES = 8, ALL = GPU_SETTLE | GPU_FOLD | GPU_REMOVE | GPU_COMPACT | GPU_NEXT };

static const uint32_t small[] = { 0, 1, 2, 15, 16, 17, 31 }, middle[] = { 37, 63, 255, 256, 257 }, large[] = { 900, 1311, 511 };
static const uint32_t for_pairs[] = { 300, 411, 100 };	/* instead of large, where the oracle compares every key to every other */

struct turns {
	struct gpu_turn turn[N];
	struct gpu_plan plan[N][MAX_LANES];
	uint32_t live_max[N];
};

static struct evict_rule rule_of(uint32_t policy)
{
	struct evict_rule rule = { 0 };

	assert_int_equal(evict_parse(evict_policies[policy].name, &rule, NULL, 0), 0);
	return rule;
}

static struct world *world_for(uint32_t policy, uint32_t slot_type, uint32_t dim, unsigned number)
{
	const struct evict_rule rule = rule_of(policy);
	struct world_spec spec = {
		.shape = { .n_kv_heads = 1 + number % 2, .group = 1, .head_dim = dim, .slot_type = slot_type },
		.n_layers = 2, .n_sessions = N, .window = 32, .max_slots = 1400, .n_heat = evict_n_heat(policy),
		.heat = { rule.heat[0], rule.heat[1] }, .observe = 1, .n_credit = evict_n_arrays(policy),
		.seed = 600 + number, .places = 31 + number,
	};

	return world_new(&spec);
}

/* The window's tokens go into their slots (any contents), in the models and by way of world_put() on the device. */
static void append_window(struct world *w, unsigned session, uint32_t appended)
{
	struct world_session *s = &w->session[session];

	for (uint32_t l = 0; l < s->model.table.n_lanes; l++) {
		struct oracle_lane *lane = &s->model.lane[l];

		world_room(w, session, l, gpu_live(lane->head, appended));
		for (uint32_t j = 0; j < appended; j++) {
			struct oracle_slot *slot = &lane->slot[gpu_slot_of(lane->head, lane->next, j)];

			slot->pos = s->pos + (int32_t)j;
			slot->heat[0] = (double)((float)world_below(&w->random, 20) / 8.0f);
			slot->heat[1] = (double)((float)world_below(&w->random, 20) / 8.0f);
		}
	}
	s->used = appended;
}

/* A turn per session with plans drawn at random: keeping all, or few; no victim, some, or a whole window. */
static void turns_new(struct world *w, struct turns *t, uint32_t policy, int compacts, const uint32_t *appended)
{
	memset(t, 0, sizeof(*t));
	for (unsigned i = 0; i < N; i++) {
		struct world_session *s = &w->session[i];

		for (uint32_t l = 0; l < s->model.table.n_lanes; l++) {
			const uint32_t live = gpu_live(s->model.lane[l].head, appended[i]), window = w->spec.window;
			struct gpu_plan *p = &t->plan[i][l];

			p->keep = compacts && world_below(&w->random, 4) ? world_below(&w->random, live + 1) : live;
			p->victims = p->keep < window ? p->keep : window;
			if (!world_below(&w->random, 3))
				p->victims = world_below(&w->random, p->victims + 1);
			p->fresh = window - p->victims;
			p->recent = world_below(&w->random, 3) ? world_below(&w->random, p->keep + 1) : 0;
			t->live_max[i] = live > t->live_max[i] ? live : t->live_max[i];
		}
		t->turn[i] = (struct gpu_turn){
			.priv = s->priv, .plan = t->plan[i], .n_lanes = s->model.table.n_lanes, .appended = appended[i], .pos = s->pos,
			.rule = rule_of(policy),
			.n_credit = w->spec.n_credit, .slot_type = w->spec.shape.slot_type, .head_dim = w->spec.shape.head_dim,
		};
		t->turn[i].rule.sinks = (int32_t)(i * 4);
		t->turn[i].rule.pinned = i == 1 ? s->pos / 2 : 0;
		t->turn[i].rule.seed = 7 + i;
	}
}

/* What a call with `what` leaves open: slots behind keep, entries of next[] behind the victims. */
static void expect_open(struct world *w, const struct turns *t, unsigned what)
{
	for (unsigned i = 0; i < N; i++) {
		struct world_session *s = &w->session[i];

		s->shared_stays = 1;
		if (what & (GPU_COMPACT | GPU_DROP))
			s->open_to = t->live_max[i];
		if (!(what & GPU_NEXT))
			continue;
		s->used = 0;
		for (uint32_t l = 0; l < s->model.table.n_lanes; l++)
			for (uint32_t j = t->plan[i][l].victims; j < w->spec.window; j++)
				s->model.lane[l].next[j] = WORLD_OPEN;
	}
}

static void check_stats(const struct gpu_turn_stats *got, const struct gpu_turn_stats *want)
{
	for (unsigned i = 0; i < N; i++) {
		const double allowed = 1e-6 * (1.0 + fabs(want[i].credit_kept) + fabs(want[i].credit_leaving));

		if (fabs(got[i].credit_kept - want[i].credit_kept) > allowed ||
		    fabs(got[i].credit_leaving - want[i].credit_leaving) > allowed) {
			fprintf(stderr, "session %u: kept %.9g leaving %.9g, expected %.9g and %.9g\n", i, got[i].credit_kept,
				got[i].credit_leaving, want[i].credit_kept, want[i].credit_leaving);
			fail();
		}
	}
}

static void select_and_check(struct world *w, struct turns *t, unsigned what, int with_stats)
{
	struct gpu_turn_stats want[N];
	void *got = NULL;

	if (with_stats)
		assert_int_equal(gpu_host_alloc(w->dev, sizeof(want), &got), 0);
	assert_int_equal(gpu_select(w->dev, w->stream, w->map, t->turn, N, what, got), 0);
	assert_int_equal(gpu_sync(w->dev, w->stream), 0);
	for (unsigned i = 0; i < N; i++)
		oracle_select(&w->session[i].model, &t->turn[i], what, &want[i]);
	expect_open(w, t, what);
	world_check(w, 0.0, 0.0);
	if (with_stats) {
		check_stats(got, want);
		gpu_host_free(w->dev, got);
	}
}

static struct world *settled_world(uint32_t policy, uint32_t slot_type, uint32_t dim, unsigned number, uint32_t *appended)
{
	const uint32_t *long_ones = evict_n_trait(policy) ? for_pairs : large;
	const uint32_t *len = number % 3 == 0 ? middle : number % 3 == 1 ? small : long_ones;
	const unsigned n_len = number % 3 == 0 ? 5 : number % 3 == 1 ? 7 : 3;
	struct world *w = world_for(policy, slot_type, dim, number);

	for (unsigned i = 0; i < N; i++) {
		appended[i] = number % 5 == 3 ? world_below(&w->random, 33) : i == 2 && number % 2 ? 0 : 32;
		world_fill(w, i, len, n_len, 32);
		append_window(w, i, appended[i]);
	}
	return w;
}

static void a_whole_turn_is_exact_for_every_policy_and_slot_type(void **state)
{
	static const uint32_t dims[] = { 64, 80, 128, 256 };
	uint32_t appended[N];
	struct turns t;

	(void)state;
	for (uint32_t policy = 0; policy < EVICT_N_POLICIES; policy++) {
		for (uint32_t type = GPU_F32; type < world_types(); type++) {
			/* All lengths for the first few, which share their code with all; of the others one for each type. */
			for (unsigned i = policy < 4 ? 0 : type % 3; i < (policy < 4 ? 3 : type % 3 + 1); i++) {
				struct world *w = settled_world(policy, type, dims[(type + i) % 4], policy * 12 + type * 3 + i, appended);

				turns_new(w, &t, policy, 1, appended);
				world_put(w);
				select_and_check(w, &t, ALL, 1);
				world_free(w);
			}
		}
	}
}

/* Every merge under a policy with credit, one with a trait of its own rows, and one with neither; q8 rows are made anew. */
static void merges_are_exact_for_every_slot_type(void **state)
{
	static const char *const merge[] = { "pivot", "pivot:threshold=0.1", "d2o", "cam", "cam:budget=3" };
	static const uint32_t policies[] = { EVICT_h2o, EVICT_vatp, EVICT_random };
	uint32_t appended[N];
	struct turns t;

	(void)state;
	for (unsigned m = 0; m < 5; m++) {
		for (uint32_t type = GPU_F32; type < world_types(); type++) {
			const unsigned number = m * 4 + type;
			const uint32_t policy = policies[number % 3];
			struct world *w = settled_world(policy, type, type % 2 ? 64 : 80, number % 3 == 2 ? number + 1 : number, appended);

			turns_new(w, &t, policy, (int)(number % 2), appended);
			for (unsigned i = 0; i < N; i++)
				assert_int_equal(evict_merge_parse(merge[m], &t.turn[i].rule, NULL, 0), 0);
			world_put(w);
			select_and_check(w, &t, number % 2 ? ALL : GPU_SETTLE | GPU_FOLD | GPU_NEXT, 1);
			world_free(w);
		}
	}
}

static void the_steps_of_a_turn_may_be_separate_calls(void **state)
{
	static const unsigned calls[][5] = {
		{ GPU_SETTLE, GPU_FOLD, GPU_REMOVE, GPU_COMPACT, GPU_NEXT },
		{ GPU_SETTLE | GPU_FOLD, GPU_REMOVE | GPU_COMPACT, GPU_NEXT, 0, 0 },
		{ GPU_SETTLE | GPU_FOLD | GPU_REMOVE, GPU_COMPACT | GPU_NEXT, 0, 0, 0 },
		{ GPU_SETTLE | GPU_REMOVE | GPU_COMPACT | GPU_NEXT, 0, 0, 0, 0 },	/* heat moves along */
	};
	uint32_t appended[N];
	struct turns t;

	(void)state;
	for (unsigned c = 0; c < 4; c++) {
		for (unsigned i = 0; i < 3; i++) {
			struct world *w = settled_world(EVICT_h2o, i + 1, 64, i, appended);

			turns_new(w, &t, EVICT_h2o, 1, appended);
			world_put(w);
			for (unsigned k = 0; k < 5 && calls[c][k]; k++)
				select_and_check(w, &t, calls[c][k], 0);
			world_free(w);
		}
	}
}

static void a_steady_turn_names_victims_and_moves_nothing(void **state)
{
	uint32_t appended[N];
	struct turns t;

	(void)state;
	for (uint32_t policy = 0; policy < EVICT_N_POLICIES; policy++) {
		for (unsigned i = 0; i < 3; i++) {
			struct world *w = settled_world(policy, GPU_BF16, 64, i + 3 * policy, appended);

			turns_new(w, &t, policy, 0, appended);
			world_put(w);
			select_and_check(w, &t, GPU_SETTLE | GPU_FOLD | GPU_NEXT, i != 1);
			world_free(w);
		}
	}
}

/* Policies of one to four numbers a slot; windows of which a CTA knows all victims at once, and of which it does not. */
static void long_lanes_are_exact(void **state)
{
	static const uint32_t policies[] = { EVICT_streaming, EVICT_l2norm, EVICT_h2o, EVICT_lazy, EVICT_ebb };
	static const uint32_t len[] = { 1535, 2047, 2049, 4100, 5000 }, windows[] = { 32, 100, 300 };
	struct turns t;

	(void)state;
	for (unsigned i = 0; i < 15; i++) {
		const uint32_t policy = policies[i % 5], window = windows[i / 5], appended[N] = { window, window, window / 2 };
		const struct evict_rule rule = rule_of(policy);
		struct world *w = world_new(&(struct world_spec){
			.shape = { .n_kv_heads = 2, .group = 1, .head_dim = 64, .slot_type = GPU_BF16 },
			.n_layers = 1, .n_sessions = N, .window = window, .max_slots = 5400, .n_heat = evict_n_heat(policy),
			.heat = { rule.heat[0], rule.heat[1] }, .observe = 1, .n_credit = evict_n_arrays(policy), .seed = 900 + i, .places = 77 + i,
		});

		for (unsigned k = 0; k < N; k++) {
			world_fill(w, k, len, 5, window);
			append_window(w, k, appended[k]);
		}
		turns_new(w, &t, policy, 0, appended);
		world_put(w);
		select_and_check(w, &t, GPU_SETTLE | GPU_FOLD | GPU_NEXT, 1);
		world_free(w);
	}
}

static void turns_follow_one_another(void **state)
{
	uint32_t appended[N] = { 32, 32, 32 };
	struct turns t;

	(void)state;
	for (uint32_t policy = 0; policy < EVICT_N_POLICIES; policy++) {
		struct world *w = world_for(policy, GPU_F16, 64, policy);

		for (unsigned i = 0; i < N; i++)
			world_fill(w, i, middle, 5, 32);
		for (unsigned turn = 0; turn < 6; turn++) {
			for (unsigned i = 0; i < N; i++) {
				for (uint32_t l = 0; turn && l < w->session[i].model.table.n_lanes; l++)
					for (uint32_t j = 0; j < w->spec.window; j++)
						if (w->session[i].model.lane[l].next[j] == WORLD_OPEN)
							w->session[i].model.lane[l].next[j] = UINT32_MAX;
				w->session[i].shared_stays = 0;
				w->session[i].open_to = 0;
				append_window(w, i, appended[i]);
			}
			turns_new(w, &t, policy, (int)(turn % 2), appended);
			world_put(w);
			select_and_check(w, &t, ALL, 1);
			for (unsigned i = 0; i < N; i++)
				w->session[i].pos += 32;
		}
		world_free(w);
	}
}

/* --- marks ------------------------------------------------------------------------------------------------------------------------ */

enum { MAX_MARKS = 4096 };

/* Memory that the device reads and writes, too. */
static void *marks_new(size_t bytes)
{
	void *at;

	assert_int_equal(gpu_host_alloc(world_device(), bytes, &at), 0);
	return at;
}

static void marks_free(void *mark, void *live)
{
	gpu_host_free(world_device(), mark);
	gpu_host_free(world_device(), live);
}

/* Tags, pins and drops at random, for some of the positions that there are. */
static void draw_marks(struct world *w, struct turns *t, uint32_t mark[N][MAX_MARKS], uint32_t live[N][MAX_LANES], int drops)
{
	memset(live, 0xee, N * MAX_LANES * sizeof(uint32_t));
	for (unsigned i = 0; i < N; i++) {
		const uint32_t end = (uint32_t)t->turn[i].pos + t->turn[i].appended;

		t->turn[i].marks = mark[i];
		t->turn[i].n_marks = end < MAX_MARKS ? world_below(&w->random, end + 9) : MAX_MARKS;
		t->turn[i].n_kv_heads = w->spec.shape.n_kv_heads;
		t->turn[i].live = live[i];
		for (uint32_t pos = 0; pos < MAX_MARKS; pos++) {
			mark[i][pos] = world_below(&w->random, 3) ? 0 : world_below(&w->random, 4);
			if (!world_below(&w->random, 5))
				mark[i][pos] |= EVICT_MARK_PINNED;
			/* Session 1 loses everything in layer 1. */
			if (drops && (i == 1 || !world_below(&w->random, 3)))
				mark[i][pos] = evict_mark_drop(mark[i][pos], i == 1 ? 1 : world_below(&w->random, 3));
		}
		if (drops && i == 1)
			t->turn[i].n_marks = MAX_MARKS;
	}
}

static void pins_and_tags_are_exact_for_every_policy(void **state)
{
	uint32_t (*mark)[MAX_MARKS] = marks_new(N * sizeof(*mark)), (*live)[MAX_LANES] = marks_new(N * sizeof(*live));
	uint32_t appended[N];
	struct turns t;

	(void)state;
	for (uint32_t policy = 0; policy < EVICT_N_POLICIES; policy++)
		for (unsigned i = 0; i < 3; i++) {
			struct world *w = settled_world(policy, GPU_BF16, 64, policy * 3 + i, appended);

			turns_new(w, &t, policy, i != 1, appended);
			draw_marks(w, &t, mark, live, 0);
			if (i == 2)	/* nothing but pins: the least valuable go all the same */
				for (unsigned k = 0; k < N * MAX_MARKS; k++)
					mark[k / MAX_MARKS][k % MAX_MARKS] |= EVICT_MARK_PINNED;
			world_put(w);
			select_and_check(w, &t, ALL, 1);
			world_free(w);
		}
	marks_free(mark, live);
}

static void dropped_slots_leave_the_named_layers_and_the_rest_closes_up(void **state)
{
	uint32_t (*mark)[MAX_MARKS] = marks_new(N * sizeof(*mark)), (*live)[MAX_LANES] = marks_new(N * sizeof(*live)), got[N][MAX_LANES];
	static const uint32_t policies[] = { EVICT_full, EVICT_h2o, EVICT_roco, EVICT_snapkv, EVICT_vatp, EVICT_rkv };
	const unsigned halves[2] = { GPU_SETTLE | GPU_DROP | GPU_FOLD, GPU_REMOVE | GPU_COMPACT | GPU_NEXT };
	uint32_t appended[N];
	struct turns t;

	(void)state;
	for (unsigned number = 0; number < 24; number++) {
		const uint32_t policy = policies[number % 6];
		struct world *w = settled_world(policy, number / 6, 64, number, appended);

		turns_new(w, &t, policy, 0, appended);
		draw_marks(w, &t, mark, live, 1);
		world_put(w);
		assert_int_equal(gpu_select(w->dev, w->stream, w->map, t.turn, N, halves[0], NULL), 0);
		assert_int_equal(gpu_sync(w->dev, w->stream), 0);
		memcpy(got, live, sizeof(got));
		for (unsigned i = 0; i < N; i++)
			oracle_select(&w->session[i].model, &t.turn[i], halves[0], NULL);
		expect_open(w, &t, halves[0]);
		world_check(w, 0.0, 0.0);
		for (unsigned i = 0; i < N; i++)
			for (uint32_t l = 0; l < w->session[i].model.table.n_lanes; l++)
				assert_int_equal(got[i][l], live[i][l]);
		for (uint32_t l = w->spec.shape.n_kv_heads; l < w->session[1].model.table.n_lanes; l++)
			assert_int_equal(got[1][l], 0);
		turns_new(w, &t, policy, 1, appended);		/* plans for what is left */
		for (unsigned i = 0; i < N; i++)
			for (uint32_t l = 0; l < w->session[i].model.table.n_lanes; l++)
				t.live_max[i] = w->session[i].open_to > t.live_max[i] ? w->session[i].open_to : t.live_max[i];
		select_and_check(w, &t, halves[1], 1);
		world_free(w);
	}
	marks_free(mark, live);
}

static void drops_that_do_not_fit_a_turn_are_refused(void **state)
{
	uint32_t (*mark)[MAX_MARKS] = marks_new(N * sizeof(*mark)), (*live)[MAX_LANES] = marks_new(N * sizeof(*live));
	uint32_t appended[N];
	struct turns t;
	struct world *w = settled_world(EVICT_h2o, GPU_BF16, 64, 0, appended);

	(void)state;
	turns_new(w, &t, EVICT_h2o, 0, appended);
	draw_marks(w, &t, mark, live, 1);
	world_put(w);
	assert_int_equal(gpu_select(w->dev, w->stream, w->map, t.turn, N, GPU_SETTLE | GPU_DROP | GPU_NEXT, NULL), -EINVAL);
	t.turn[1].live = NULL;
	assert_int_equal(gpu_select(w->dev, w->stream, w->map, t.turn, N, GPU_SETTLE | GPU_DROP, NULL), -EINVAL);
	t.turn[1].live = live[1];
	t.turn[1].marks = NULL;
	assert_int_equal(gpu_select(w->dev, w->stream, w->map, t.turn, N, GPU_SETTLE | GPU_DROP, NULL), -EINVAL);
	t.turn[1].marks = mark[1];
	t.turn[2].n_kv_heads = 0;
	assert_int_equal(gpu_select(w->dev, w->stream, w->map, t.turn, N, GPU_SETTLE | GPU_DROP, NULL), -EINVAL);
	world_check(w, 0.0, 0.0);
	world_free(w);
	marks_free(mark, live);
}

/* Bits that a hostile client may leave as heat. */
static void hostile_heat_counts_as_nothing(void **state)
{
	static const uint32_t bits[] = { 0x7fc00000, 0xffc00000, 0x7f800000, 0xff800000, 0x7f800001, 0xbf800000, 0x80000000,
					 0x7f7fffff, 0x7149f2ca, 0x00000001, 0xffffffff, 0x3f800000 };
	uint32_t appended[N];
	struct turns t;

	(void)state;
	for (unsigned number = 0; number < 3; number++) {
		struct world *w = settled_world(EVICT_h2o, GPU_BF16, 64, number, appended);

		turns_new(w, &t, EVICT_h2o, 1, appended);
		world_put(w);
		for (unsigned i = 0; i < N; i++) {
			for (uint32_t l = 0; l < w->session[i].model.table.n_lanes; l++) {
				for (uint32_t at = 0; at < gpu_live(w->session[i].model.lane[l].head, appended[i]); at++) {
					const uint32_t heat = bits[(at * 7 + l) % 12];
					float as_float;

					memcpy(&as_float, &heat, 4);
					w->session[i].model.lane[l].slot[at].heat[0] = (double)as_float;
				}
			}
		}
		world_put(w);
		select_and_check(w, &t, ALL, 1);
		world_free(w);
	}
}

/* The shared table and the shared positions say anything; the private ones are followed. Only private parts are compared. */
static void shared_memory_is_not_believed(void **state)
{
	uint32_t appended[N];
	struct turns t;

	(void)state;
	for (unsigned number = 0; number < 3; number++) {
		struct world *w = settled_world(EVICT_h2o, GPU_F16, 64, number, appended);

		turns_new(w, &t, EVICT_h2o, 1, appended);
		world_put(w);
		for (unsigned i = 0; i < N; i++) {
			const size_t bytes = gpu_table_bytes(&w->session[i].model.table);
			uint8_t *garbage = malloc(bytes);

			assert_non_null(garbage);
			for (size_t b = 0; b < bytes; b++)
				garbage[b] = (uint8_t)world_random(&w->random);
			memcpy(world_byte(w->image, w->session[i].table_id), garbage, bytes);
			free(garbage);
			for (uint32_t l = 0; l < t.turn[i].n_lanes; l++)
				for (uint32_t at = 0; at < gpu_live(w->session[i].model.lane[l].head, appended[i]); at++)
					w->session[i].model.lane[l].slot[at].pos = (int32_t)world_random(&w->random);
			w->session[i].shared_stays = 1;
		}
		world_put(w);
		select_and_check(w, &t, ALL, 1);
		world_free(w);
	}
}

static void equal_credit_leaves_by_position(void **state)
{
	uint32_t appended[N];
	struct turns t;

	(void)state;
	for (unsigned number = 0; number < 3; number++) {
		struct world *w = settled_world(EVICT_h2o, GPU_BF16, 64, number, appended);

		for (unsigned i = 0; i < N; i++) {
			for (uint32_t l = 0; l < w->session[i].model.table.n_lanes; l++) {
				for (uint32_t at = 0; at < gpu_live(w->session[i].model.lane[l].head, appended[i]); at++) {
					struct oracle_slot *slot = &w->session[i].model.lane[l].slot[at];

					slot->heat[0] = 0.0;
					slot->credit[0] = at % 2 ? 0.0f : -0.0f;
				}
			}
		}
		turns_new(w, &t, EVICT_h2o, 1, appended);
		world_put(w);
		select_and_check(w, &t, ALL, 1);
		world_free(w);
	}
}

/* Policies that spare a share, of figures most of which are the same: positions decide, as they do among a few that are. */
static void equal_figures_are_spared_by_position(void **state)
{
	static const uint32_t policies[] = { EVICT_ebb, EVICT_roco, EVICT_nacl }, unlike[] = { 1, 3, 60 };
	uint32_t appended[N];
	struct turns t;

	(void)state;
	for (unsigned number = 0; number < 18; number++) {
		const uint32_t policy = policies[number % 3];
		struct world *w = settled_world(policy, GPU_BF16, 64, number % 2 ? 3 : 0, appended);

		for (unsigned i = 0; i < N; i++)
			for (uint32_t l = 0; l < w->session[i].model.table.n_lanes; l++)
				for (uint32_t at = 0; at < gpu_live(w->session[i].model.lane[l].head, appended[i]); at++) {
					struct oracle_slot *slot = &w->session[i].model.lane[l].slot[at];

					for (uint32_t k = 0; k < evict_n_heat(policy); k++)
						slot->heat[k] = 0.0;
					for (uint32_t k = 0; k < evict_n_arrays(policy); k++)
						slot->credit[k] = 1.0f + (float)(at % unlike[number / 3 % 3]);
				}
		turns_new(w, &t, policy, number >= 9, appended);
		world_put(w);
		select_and_check(w, &t, number >= 9 ? ALL : GPU_SETTLE | GPU_FOLD | GPU_NEXT, 1);
		world_free(w);
	}
}

static void move_copies_pages_across_slabs(void **state)
{
	struct world_spec spec = {
		.shape = { .n_kv_heads = 1, .group = 1, .head_dim = 64, .slot_type = GPU_Q8 },
		.n_layers = 1, .n_sessions = 2, .window = 32, .max_slots = 1400, .n_heat = 1, .n_credit = 1, .seed = 3, .places = 4,
	};
	const uint32_t bytes = gpu_page_bytes(GPU_Q8, 64), n = gpu_pages_for(900);
	struct world *w = world_new(&spec);

	(void)state;
	for (unsigned i = 0; i < 2; i++)
		world_lane(w, i, 0, 900, 0, 1000, 1);
	world_put(w);
	assert_int_equal(gpu_move(w->dev, w->stream, w->map, w->session[0].page, w->session[1].page, n, bytes), 0);
	assert_int_equal(gpu_move(w->dev, w->stream, w->map, w->session[0].page, w->session[1].page, 0, bytes), 0);
	assert_int_equal(gpu_sync(w->dev, w->stream), 0);
	for (uint32_t at = 0; at < 900; at++) {
		w->session[1].model.lane[0].slot[at].k_param = w->session[0].model.lane[0].slot[at].k_param;
		w->session[1].model.lane[0].slot[at].v_param = w->session[0].model.lane[0].slot[at].v_param;
	}
	memcpy(w->session[1].model.lane[0].k, w->session[0].model.lane[0].k, 900 * 64);
	memcpy(w->session[1].model.lane[0].v, w->session[0].model.lane[0].v, 900 * 64);
	world_check(w, 0.0, 0.0);
	world_free(w);
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_whole_turn_is_exact_for_every_policy_and_slot_type),
		cmocka_unit_test(merges_are_exact_for_every_slot_type),
		cmocka_unit_test(the_steps_of_a_turn_may_be_separate_calls),
		cmocka_unit_test(a_steady_turn_names_victims_and_moves_nothing),
		cmocka_unit_test(long_lanes_are_exact),
		cmocka_unit_test(turns_follow_one_another),
		cmocka_unit_test(pins_and_tags_are_exact_for_every_policy),
		cmocka_unit_test(dropped_slots_leave_the_named_layers_and_the_rest_closes_up),
		cmocka_unit_test(drops_that_do_not_fit_a_turn_are_refused),
		cmocka_unit_test(hostile_heat_counts_as_nothing),
		cmocka_unit_test(shared_memory_is_not_believed),
		cmocka_unit_test(equal_credit_leaves_by_position),
		cmocka_unit_test(equal_figures_are_spared_by_position),
		cmocka_unit_test(move_copies_pages_across_slabs),
	};

	return cmocka_run_group_tests_name("gpu_select", tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	return world_main(argc, argv, run);
}
