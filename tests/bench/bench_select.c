/*
 * select with every policy, and every merge under h2o, against its byte floor: what the policy must read and write per slot at a window's
 * end (position, heat, credit; for traits of the whole lane the keys, for LagKV the values too). The ceiling is copying half
 * as many bytes. One session of 30 lanes, d64, bf16, 32 victims a lane; one thread; its own processor time; medians.
 */
#include "evict/evict.h"
#include "gpu/gpu.h"
#include "tests/bench/bench.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 9, SHIFT = 26, LANES = 30, DIM = 64, WINDOW = 32 };

struct lanes {
	struct gpu_device *dev;
	struct gpu_map *map;
	char *memory, *priv;
	uint32_t slots, at;		/* at: next free unit */
	struct gpu_plan plan[LANES];
};

static uint32_t place(struct lanes *l, uint32_t bytes)
{
	uint32_t id = l->at;

	l->at += (bytes + GPU_UNIT - 1u) / GPU_UNIT;
	assert((size_t)l->at * GPU_UNIT <= (size_t)1 << SHIFT);
	return id;
}

static uint32_t draw(void)
{
	static uint64_t seed = 88172645463325252ull;

	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 20);
}

static char *at(const struct lanes *l, uint32_t id)
{
	return l->memory + (size_t)id * GPU_UNIT;
}

/* A table whose lanes hold `slots` slots: rows of random bf16 numbers of size 1, positions in an order of their own. */
static void lanes_new(struct lanes *l, struct gpu_device *dev, uint32_t slots, const struct evict_rule *rule)
{
	const uint32_t n_heat = evict_n_heat(rule->policy), n_credit = evict_n_arrays(rule->policy);
	struct gpu_table t = { .n_lanes = LANES, .window = WINDOW, .max_pages = gpu_pages_for(slots), .max_blocks = gpu_blocks_for(slots),
			       .n_heat = n_heat, .heat = { rule->heat[0], rule->heat[1] }, .observe = 1 };

	*l = (struct lanes){ .dev = dev, .slots = slots, .memory = calloc(1, (size_t)1 << SHIFT) };
	assert(l->memory && !gpu_map_new(dev, 1, SHIFT, &l->map) && !gpu_map_set(l->map, NULL, 0, l->memory));
	l->priv = at(l, place(l, (uint32_t)gpu_table_private_bytes(&t)));
	memcpy(l->priv, &t, sizeof(t));
	for (uint32_t lane = 0; lane < LANES; lane++) {
		uint32_t *page = (uint32_t *)(void *)(l->priv + gpu_table_pages(&t)) + lane * t.max_pages;
		uint32_t *block = (uint32_t *)(void *)(l->priv + gpu_table_blocks(&t)) + lane * t.max_blocks;
		uint32_t *credit = (uint32_t *)(void *)(l->priv + gpu_table_credits(&t)) + lane * t.max_blocks;

		((struct gpu_lane *)(void *)(l->priv + gpu_table_lanes()))[lane].len = slots;
		for (uint32_t i = 0; i < t.max_pages; i++) {
			uint16_t *x;

			page[i] = place(l, gpu_page_bytes(GPU_BF16, DIM));
			x = (uint16_t *)(void *)at(l, page[i]);
			for (uint32_t c = 0; c < 2u * GPU_PAGE_SLOTS * DIM; c++)
				x[c] = (uint16_t)(0x3f00u | (draw() & 0x80ffu));	/* 0.5 to 2, either sign */
		}
		for (uint32_t i = 0; i < t.max_blocks; i++) {
			block[i] = place(l, gpu_block_bytes(n_heat));
			credit[i] = place(l, gpu_block_bytes(n_credit));
			for (uint32_t s = 0; s < GPU_BLOCK_SLOTS; s++)
				((int32_t *)(void *)at(l, credit[i]))[s] = (int32_t)((i * GPU_BLOCK_SLOTS + s) * 7u % slots);
		}
		l->plan[lane] = (struct gpu_plan){ .keep = slots, .victims = WINDOW, .recent = slots / 2 };
	}
}

static void heat_up(const struct lanes *l)
{
	const struct gpu_table *t = (const struct gpu_table *)(void *)l->priv;
	const uint32_t *block = (const uint32_t *)(void *)(l->priv + gpu_table_blocks(t));

	for (uint32_t i = 0; i < t->n_lanes * t->max_blocks; i++)
		for (uint32_t s = 0; s < GPU_BLOCK_SLOTS * t->n_heat; s++)
			((float *)(void *)at(l, block[i]))[GPU_BLOCK_SLOTS + s] = (float)(draw() % 100000u) * 1e-5f;
}

/* Bytes a slot that nobody can avoid. */
static uint32_t floor_of(const struct evict_rule *rule)
{
	uint32_t bytes = 4u + 8u * evict_n_heat(rule->policy) + 8u * evict_n_credit(rule->policy) + 4u * evict_n_trait(rule->policy);

	for (uint32_t i = 0; i < evict_n_trait(rule->policy); i++)
		if (!evict_trait_once(rule->trait[i]))
			bytes += 4u + DIM * 2u * (rule->trait[i] == EVICT_KEY_LAG ? 2u : 1u);
	return bytes + (evict_merge_by_key(rule->merge) ? DIM * 2u : 0u);
}

static void bench(struct gpu_device *dev, const char *name, const char *merge, uint32_t slots)
{
	struct evict_rule rule = { .sinks = 4, .group = 3, .seed = 1 };
	double ours[ROUNDS], plain[ROUNDS];
	struct gpu_turn turn;
	struct lanes l;
	char title[96], *a, *b;
	size_t half;

	assert(!evict_parse(name, &rule, NULL, 0) && !evict_merge_parse(merge, &rule, NULL, 0));
	lanes_new(&l, dev, slots, &rule);
	turn = (struct gpu_turn){ .priv = l.priv, .plan = l.plan, .n_lanes = LANES, .pos = (int32_t)slots, .rule = rule,
				  .n_credit = evict_n_arrays(rule.policy), .slot_type = GPU_BF16, .head_dim = DIM };
	half = (size_t)LANES * slots * floor_of(&rule) / 2u;
	a = malloc(half);
	b = malloc(half);
	assert(a && b);
	memset(a, 1, half);
	memset(b, 1, half);
	for (int r = 0; r < ROUNDS; r++) {
		uint64_t t0, t1, t2;

		heat_up(&l);
		t0 = bench_cpu_ns();
		assert(!gpu_select(dev, NULL, l.map, &turn, 1, GPU_SETTLE | GPU_FOLD | GPU_NEXT, NULL));
		t1 = bench_cpu_ns();
		memcpy(b, a, half);
		t2 = bench_cpu_ns();
		ours[r] = (double)(t1 - t0) / (LANES * slots);
		plain[r] = (double)(t2 - t1) / (LANES * slots);
	}
	snprintf(title, sizeof(title), "select %s%s%s, %u slots, floor %u bytes a slot", name, rule.merge ? " + " : "", rule.merge ? merge : "",
		 slots, floor_of(&rule));
	bench_report(title, bench_median(ours, ROUNDS), "ns/slot", bench_median(plain, ROUNDS), "", -1);
	gpu_map_free(dev, l.map);
	free(l.memory);
	free(a);
	free(b);
}

int main(void)
{
	static const char *const merges[] = { "pivot", "d2o", "cam" };
	struct gpu_device *dev;

	assert(!gpu_open(&dev, "host"));
	printf("select on the host with %s, per policy: nanoseconds a slot and window; ceiling: memcpy of its byte floor\n", gpu_host_isa());
	for (uint32_t slots = 256; slots <= 1024; slots *= 4)
		for (uint32_t i = 0; i < EVICT_N_POLICIES; i++)
			bench(dev, evict_policies[i].name, "none", slots);
	for (int i = 0; i < 3; i++)
		bench(dev, "h2o", merges[i], 256);
	gpu_close(dev);
	return 0;
}
