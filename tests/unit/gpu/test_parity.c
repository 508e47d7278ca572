/*
 * Every rank with every merge on the host and on the device of EBB_TEST_DEVICE side by side, on the same bytes: sessions of ragged lanes, several
 * windows, marks and statistics in some of them. After each turn every byte of the pool and every number said must be equal: the same
 * victims, the same rows, the same credit. With EBB_TEST_DEVICE=host the best of the host's instruction sets stands for the device.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "evict/evict.h"
#include "tests/lib/world.h"

enum { HEADS = 2, LAYERS = 2, LANES = HEADS * LAYERS, SLOTS = 700, WINDOW = 32, WINDOWS = 5, SHIFT = 22, PROMPT = 600,
       ALL = GPU_SETTLE | GPU_FOLD | GPU_REMOVE | GPU_COMPACT | GPU_NEXT };

static const char *const merges[] = { "none", "pivot:threshold=0.3", "d2o", "cam:budget=3" };

/* One backend's pool: a slab; the other has the same bytes. */
struct side {
	struct gpu_device *dev;
	struct gpu_map *map;
	struct gpu_slab slab;
	struct evict_lane_stats *stats;
	uint32_t *live, *marks;
	struct gpu_turn_stats *sums;
	uint8_t *image;
};

struct both {
	struct side side[2];
	struct gpu_table table;
	struct gpu_turn turn;
	struct gpu_plan plan[LANES];
	uint32_t page_bytes;
	bool tiny;			/* some rows are so small that their squares vanish */
	uint64_t random;
	uint8_t *bytes;			/* what side 0 has, when a window begins */
};

static void *host_memory(struct gpu_device *dev, size_t bytes)
{
	void *at;

	assert_int_equal(gpu_host_alloc(dev, bytes, &at), 0);
	return at;
}

static void side_open(struct side *s, struct gpu_device *dev)
{
	s->dev = dev;
	assert_int_equal(gpu_map_new(dev, 1, SHIFT, &s->map), 0);
	assert_int_equal(gpu_slab_new(dev, (size_t)1 << SHIFT, 0, &s->slab), 0);
	assert_int_equal(gpu_map_set(s->map, NULL, 0, s->slab.base), 0);
	s->stats = host_memory(dev, LANES * sizeof(*s->stats));
	s->live = host_memory(dev, LANES * sizeof(*s->live));
	s->marks = host_memory(dev, 4096 * sizeof(*s->marks));
	s->sums = host_memory(dev, sizeof(*s->sums));
	s->image = calloc(1, (size_t)1 << SHIFT);
	assert_non_null(s->image);
}

static void side_close(struct side *s)
{
	gpu_host_free(s->dev, s->stats);
	gpu_host_free(s->dev, s->live);
	gpu_host_free(s->dev, s->marks);
	gpu_host_free(s->dev, s->sums);
	gpu_map_free(s->dev, s->map);
	gpu_slab_free(s->dev, &s->slab);
	free(s->image);
}

static uint32_t *word_at(const struct both *b, size_t at)
{
	return (uint32_t *)(void *)(b->bytes + at);
}

static struct gpu_lane *lane_at(const struct both *b, uint32_t lane)
{
	return (struct gpu_lane *)(void *)(b->bytes + gpu_table_lanes()) + lane;
}

static uint8_t *at_id(const struct both *b, size_t row, uint32_t lane, uint32_t per_lane, uint32_t i)
{
	return b->bytes + (size_t)*word_at(b, row + ((size_t)lane * per_lane + i) * 4u) * GPU_UNIT;
}

/* The table at 0, then each lane's pages, blocks and credit blocks. */
static void lay_out(struct both *b)
{
	const struct gpu_table *t = &b->table;
	size_t at = (gpu_table_private_bytes(t) + GPU_UNIT - 1) / GPU_UNIT * GPU_UNIT;

	memcpy(b->bytes, t, sizeof(*t));
	for (uint32_t lane = 0; lane < LANES; lane++) {
		for (uint32_t i = 0; i < t->max_pages; i++, at += b->page_bytes)
			*word_at(b, gpu_table_pages(t) + ((size_t)lane * t->max_pages + i) * 4u) = (uint32_t)(at / GPU_UNIT);
		for (uint32_t i = 0; i < t->max_blocks; i++, at += gpu_block_bytes(t->n_heat))
			*word_at(b, gpu_table_blocks(t) + ((size_t)lane * t->max_blocks + i) * 4u) = (uint32_t)(at / GPU_UNIT);
		for (uint32_t i = 0; i < t->max_blocks; i++, at += gpu_block_bytes(b->turn.n_credit))
			*word_at(b, gpu_table_credits(t) + ((size_t)lane * t->max_blocks + i) * 4u) = (uint32_t)(at / GPU_UNIT);
	}
	assert_true(at <= (size_t)1 << SHIFT);
}

/* A token's rows: near one of a few directions, so that some keys are alike. */
static void put_rows(struct both *b, uint8_t *page, uint32_t slot)
{
	const uint32_t type = b->turn.slot_type, d = b->turn.head_dim, like = world_below(&b->random, 6);
	const struct gpu_parts part = gpu_page_parts(type, d);
	const float scale = b->tiny && !world_below(&b->random, 3) ? 2e-23f : 1.0f;

	for (uint32_t which = 0; which < 2; which++) {
		uint8_t *row = page + part.at[which] + (size_t)slot * part.bytes[which];

		for (uint32_t c = 0; c < d; c++) {
			const float x = scale * ((c % 6 == like ? 2.0f : 0.0f) + 0.7f * world_normal(&b->random));
			uint32_t bits;

			memcpy(&bits, &x, 4);
			if (type == GPU_F32)
				memcpy(row + 4u * c, &bits, 4);
			else if (type == GPU_F16)
				memcpy(row + 2u * c, &(uint16_t){ (uint16_t)(bits >> 16 & 0xbfffu) }, 2);
			else if (type == GPU_BF16)
				memcpy(row + 2u * c, (uint8_t *)&bits + 2, 2);
			else
				row[c] = (uint8_t)(world_below(&b->random, 255) + 129u);
		}
		if (part.bytes[2 + which]) {
			const uint16_t param[2] = { (uint16_t)(0x2000 + world_below(&b->random, 999)), (uint16_t)(0x3000 + world_below(&b->random, 999)) };

			memcpy(page + part.at[2 + which] + slot * 4u, param, 4);
		}
	}
}

/* What a client does in a window: tokens into their slots, heat for all. A lane grows to its own length first. */
static void client_window(struct both *b, uint32_t appended)
{
	const struct gpu_table *t = &b->table;

	for (uint32_t lane = 0; lane < LANES; lane++) {
		const struct gpu_lane head = *lane_at(b, lane);
		const uint32_t *next = word_at(b, gpu_table_next(t) + (size_t)lane * t->window * 4u);

		for (uint32_t j = 0; j < appended; j++) {
			const uint32_t slot = gpu_slot_of(head, next, j);

			assert_true(slot < SLOTS);
			put_rows(b, at_id(b, gpu_table_pages(t), lane, t->max_pages, slot / GPU_PAGE_SLOTS), slot % GPU_PAGE_SLOTS);
			*(int32_t *)(void *)(at_id(b, gpu_table_blocks(t), lane, t->max_blocks, slot / GPU_BLOCK_SLOTS) +
					     slot % GPU_BLOCK_SLOTS * 4u) = b->turn.pos + (int32_t)j;
		}
		for (uint32_t slot = 0; slot < gpu_live(head, appended); slot++)
			for (uint32_t k = 0; k < t->n_heat; k++) {
				const float heat = world_below(&b->random, 4) ? (float)world_below(&b->random, 1000) / 700.0f : 0.0f;

				memcpy(at_id(b, gpu_table_blocks(t), lane, t->max_blocks, slot / GPU_BLOCK_SLOTS) +
				       ((k + 1u) * GPU_BLOCK_SLOTS + slot % GPU_BLOCK_SLOTS) * 4u, &heat, 4);
			}
	}
}

static void compare(const struct both *b, const char *what, uint32_t window)
{
	const uint8_t *x = b->side[0].image, *y = b->side[1].image;

	for (size_t i = 0; i < (size_t)1 << SHIFT; i++)
		if (x[i] != y[i])
			fail_msg("%s, window %u: byte %zu is %u on the host and %u on the device (table: %zu bytes, lanes from %zu, next from %zu, "
				 "pages from %zu)", what, window, i, x[i], y[i], gpu_table_private_bytes(&b->table), gpu_table_lanes(),
				 gpu_table_next(&b->table), gpu_table_pages(&b->table));
	if (b->turn.stats && memcmp(b->side[0].stats, b->side[1].stats, LANES * sizeof(*b->side[0].stats)) != 0)
		fail_msg("%s, window %u: other statistics", what, window);
}

/* One call on both, on the same bytes; then both have the same. */
static void select_both(struct both *b, unsigned calls, const char *what, uint32_t window)
{
	for (unsigned i = 0; i < 2; i++) {
		struct side *s = &b->side[i];
		struct gpu_turn turn = b->turn;

		turn.priv = s->slab.base;
		turn.lane_stats = s->stats;
		turn.live = s->live;
		turn.marks = b->turn.n_marks ? s->marks : NULL;
		assert_int_equal(gpu_write(s->dev, NULL, s->slab.base, b->bytes, (size_t)1 << SHIFT), 0);
		assert_int_equal(gpu_select(s->dev, NULL, s->map, &turn, 1, calls, s->sums), 0);
		assert_int_equal(gpu_sync(s->dev, NULL), 0);
		assert_int_equal(gpu_read(s->dev, NULL, s->image, s->slab.base, (size_t)1 << SHIFT), 0);
	}
	compare(b, what, window);
	memcpy(b->bytes, b->side[0].image, (size_t)1 << SHIFT);
}

static void draw_marks(struct both *b)
{
	b->turn.n_marks = 4096;
	for (uint32_t i = 0; i < 4096; i++) {
		const uint32_t mark = (world_below(&b->random, 3) ? 0 : 1 + world_below(&b->random, 2)) |
				      (world_below(&b->random, 9) ? 0 : EVICT_MARK_PINNED);

		b->side[0].marks[i] = b->side[1].marks[i] = mark;
	}
}

static void draw_plan(struct both *b, uint32_t appended, bool shrink)
{
	for (uint32_t lane = 0; lane < LANES; lane++) {
		const uint32_t live = gpu_live(*lane_at(b, lane), appended);
		struct gpu_plan *p = &b->plan[lane];

		*p = (struct gpu_plan){ .keep = shrink ? live - world_below(&b->random, live / 3) : live, .recent = 8 + 4 * lane };
		p->victims = p->keep + WINDOW > SLOTS || world_below(&b->random, 3) ? WINDOW - world_below(&b->random, 5) : 0;
		p->fresh = WINDOW - p->victims;
		if (p->keep + p->fresh > SLOTS) {
			p->fresh = 0;
			p->victims = WINDOW;
		}
	}
}

static void run_pair(struct gpu_device *host, uint32_t policy, unsigned merge, unsigned number, uint32_t type, uint32_t dim, bool tiny)
{
	struct both b = { .random = 1000 + number, .tiny = tiny };
	char what[64];

	snprintf(what, sizeof(what), "%s with %s", evict_policies[policy].name, merges[merge]);
	side_open(&b.side[0], host);
	side_open(&b.side[1], world_device());
	assert_int_equal(evict_parse(evict_policies[policy].name, &b.turn.rule, NULL, 0), 0);
	assert_int_equal(evict_merge_parse(merges[merge], &b.turn.rule, NULL, 0), 0);
	b.turn.rule.lag = b.turn.rule.lag ? 16 : 0;
	b.turn.rule.sinks = 4;
	b.turn.rule.seed = number;
	b.turn.n_lanes = LANES;
	b.turn.plan = b.plan;
	b.turn.n_kv_heads = HEADS;
	b.turn.slot_type = type;
	b.turn.head_dim = dim;
	b.turn.n_credit = evict_n_arrays(policy);
	b.turn.stats_near = 40;
	b.turn.stats_heat[1] = 1;
	b.page_bytes = gpu_page_bytes(b.turn.slot_type, b.turn.head_dim);
	b.table = (struct gpu_table){ .n_lanes = LANES, .window = WINDOW, .max_pages = gpu_pages_for(SLOTS), .max_blocks = gpu_blocks_for(SLOTS),
				      .n_heat = number % 4 ? evict_n_heat(policy) : GPU_MAX_HEAT, .observe = 1 };
	b.bytes = calloc(1, (size_t)1 << SHIFT);
	assert_non_null(b.bytes);
	lay_out(&b);
	for (uint32_t lane = 0; lane < LANES; lane++)	/* the prompt: ragged, so the first window ends with what a lane has */
		*lane_at(&b, lane) = (struct gpu_lane){ .fresh = PROMPT };
	for (uint32_t window = 0; window < WINDOWS; window++) {
		const uint32_t appended = window ? WINDOW - (window == 3) * 7 : PROMPT;

		b.turn.appended = appended;
		b.turn.stats = window % 2 ? EVICT_STATS_RANK | EVICT_STATS_HEAT | EVICT_STATS_SUMS : 0;
		client_window(&b, appended);
		if (window == 2 && number % 2)
			draw_marks(&b);
		draw_plan(&b, appended, window != 3);
		select_both(&b, window == 3 ? GPU_SETTLE | GPU_FOLD | GPU_NEXT : ALL, what, window);
		b.turn.pos += (int32_t)appended;
	}
	b.turn.stats = 0;
	b.turn.appended = 0;
	select_both(&b, GPU_TRAITS, what, WINDOWS);
	side_close(&b.side[0]);
	side_close(&b.side[1]);
	free(b.bytes);
}

static struct gpu_device *plain_host(void)
{
	struct gpu_device *host;

	assert_int_equal(setenv("EBB_ISA", "plain", 1), 0);
	assert_int_equal(gpu_open(&host, "host"), 0);
	assert_int_equal(unsetenv("EBB_ISA"), 0);
	return host;
}

static void every_rank_with_every_merge_chooses_the_same_victims(void **state)
{
	static const uint32_t types[] = { GPU_BF16, GPU_Q8, GPU_F32 }, dims[] = { 64, 128, 80 };
	struct gpu_device *host = plain_host();

	(void)state;
	for (uint32_t policy = 0; policy < EVICT_N_POLICIES; policy++)
		for (unsigned merge = 0; merge < sizeof(merges) / sizeof(*merges); merge++) {
			const unsigned number = policy * 4 + merge + policy;

			run_pair(host, policy, merge, number, types[number % 3], dims[number % 3], false);
		}
	gpu_close(host);
}

/* Policies that look at rows of a lane: each type, rows wide and narrow, and rows whose unit keys are not one long. */
static void rows_of_any_size_choose_the_same_victims(void **state)
{
	static const uint32_t policies[] = { EVICT_rkv, EVICT_gkv, EVICT_keydiff, EVICT_lagkv, EVICT_ebb };
	static const struct { uint32_t type, dim; bool tiny; } rows[] = {
		{ GPU_BF16, 256, false }, { GPU_F16, 192, true }, { GPU_BF16, 128, true }, { GPU_F32, 64, true }, { GPU_Q8, 144, false },
		{ GPU_F16, 80, false },
	};
	struct gpu_device *host = plain_host();

	(void)state;
	for (unsigned p = 0; p < sizeof(policies) / sizeof(*policies); p++)
		for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++)
			run_pair(host, policies[p], 0, 500 + 10 * p + i, rows[i].type, rows[i].dim, rows[i].tiny);
	gpu_close(host);
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_rank_with_every_merge_chooses_the_same_victims),
		cmocka_unit_test(rows_of_any_size_choose_the_same_victims),
	};

	return cmocka_run_group_tests_name("gpu parity", tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	return run();
}
