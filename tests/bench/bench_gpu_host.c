/*
 * Host operations beside their ceilings: attend (with and without heat) against a plain streaming read of as many bytes,
 * select against a streaming read of the arrays that it goes over, compact against memcpy(). One thread. Pages lie as
 * after a prefill: the daemon fills extents of 64 KiB with pages of one lane; the extents are anywhere in the pool, a memfd as in the daemon.
 * Times are the thread's own processor time. Figure and ceiling are timed in turns and each is the median of its rounds: what
 * the machine does meanwhile hits both.
 */
#include "gpu/gpu.h"
#include "tests/bench/bench.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 9
#define SLAB_SHIFT 25u
#define MAX_SLABS 64u
#define WINDOW 32u
#define EXTENT_BYTES 65536u		/* daemon/pool.h */
#define FLUSH ((size_t)64 << 20)

struct shape {
	const char *name;
	struct gpu_shape gpu;
	uint32_t sessions, slots;
	size_t bytes;			/* of K and V in all; layers follow from it */
	const uint32_t *lengths;	/* [n_kv_heads], of mean `slots`: what lanes hold instead; or NULL */
};

struct pool {
	struct gpu_device *dev;
	struct gpu_map *map;
	struct gpu_slab slab[MAX_SLABS];
	unsigned n_slabs;
	uint32_t *id;			/* pages, in shuffled extents */
	uint32_t page_units, n_pages, used;
	uint32_t block_at;		/* next free unit of the block slabs */
	unsigned block_slab;
};

struct cache {
	struct pool pool;
	const struct shape *shape;
	uint32_t layers, lanes;		/* of a session */
	char **table;			/* [sessions]; private tables */
	struct gpu_plan *plan;
	struct gpu_step *step;
	struct gpu_seq *seq;
	struct gpu_tensor q, out;
	size_t bytes;			/* K and V */
};

static uint64_t seed = 88172645463325252ull;

static uint32_t draw(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 20) % below;
}

static void check(int rc)
{
	if (rc) {
		fprintf(stderr, "bench_gpu_host: error %d\n", rc);
		exit(1);
	}
}

/* Slots of a lane. With lengths of their own, another head of each layer is the longest. */
static uint32_t lane_slots(const struct shape *shape, uint32_t lane)
{
	const uint32_t heads = shape->gpu.n_kv_heads;

	return shape->lengths ? shape->lengths[(lane + lane / heads) % heads] : shape->slots;
}

static uint32_t longest(const struct shape *shape)
{
	uint32_t most = 0;

	for (uint32_t l = 0; l < shape->gpu.n_kv_heads; l++)
		most = lane_slots(shape, l) > most ? lane_slots(shape, l) : most;
	return most;
}

/* --- a pool and its sessions ------------------------------------------------------------------------------------------ */

static void add_slab(struct pool *p)
{
	assert(p->n_slabs < MAX_SLABS);
	check(gpu_slab_new(p->dev, (size_t)1 << SLAB_SHIFT, 1, &p->slab[p->n_slabs]));
	check(gpu_map_set(p->map, NULL, p->n_slabs, p->slab[p->n_slabs].base));
	p->n_slabs++;
}

static void pool_new(struct pool *p, uint32_t page_bytes, uint32_t n_pages)
{
	const uint32_t slab_units = (1u << SLAB_SHIFT) / GPU_UNIT, units = (page_bytes + GPU_UNIT - 1u) / GPU_UNIT;
	const uint32_t run = EXTENT_BYTES / page_bytes;
	uint32_t per_slab = slab_units / units;

	*p = (struct pool){ .page_units = units, .n_pages = n_pages };
	check(gpu_open(&p->dev, "host"));
	check(gpu_map_new(p->dev, MAX_SLABS, SLAB_SHIFT, &p->map));
	p->id = malloc(n_pages * sizeof(*p->id));
	assert(p->id);
	for (uint32_t i = 0; i < n_pages; i++) {
		if (i % per_slab == 0)
			add_slab(p);
		p->id[i] = (p->n_slabs - 1u) * slab_units + i % per_slab * units;
	}
	/* Extents, not pages, are shuffled. The last one may be short and stays. */
	for (uint32_t i = n_pages / run - 1; i > 0; i--) {
		uint32_t j = draw(i + 1);

		for (uint32_t k = 0; k < run; k++) {
			uint32_t t = p->id[i * run + k];

			p->id[i * run + k] = p->id[j * run + k];
			p->id[j * run + k] = t;
		}
	}
	p->block_at = slab_units;
}

static uint32_t new_block(struct pool *p, uint32_t arrays)
{
	const uint32_t slab_units = (1u << SLAB_SHIFT) / GPU_UNIT, units = gpu_block_bytes(arrays) / GPU_UNIT;

	if (p->block_at + units > slab_units) {
		add_slab(p);
		p->block_slab = p->n_slabs - 1u;
		p->block_at = 0;
	}
	p->block_at += units;
	return p->block_slab * slab_units + p->block_at - units;
}

static void pool_free(struct pool *p)
{
	for (unsigned i = 0; i < p->n_slabs; i++)
		gpu_slab_free(p->dev, &p->slab[i]);
	gpu_map_free(p->dev, p->map);
	gpu_close(p->dev);
	free(p->id);
}

/* A private table; it serves as the shared one as well. */
static char *table_new(struct cache *c)
{
	struct gpu_table head = { .n_lanes = c->lanes, .window = WINDOW, .max_pages = gpu_pages_for(longest(c->shape)),
				  .max_blocks = gpu_blocks_for(longest(c->shape)), .n_heat = 1, .observe = 1 };
	char *at = calloc(1, gpu_table_private_bytes(&head));
	struct gpu_lane *lane = (void *)(at + gpu_table_lanes());
	uint32_t *page = (void *)(at + gpu_table_pages(&head)), *block = (void *)(at + gpu_table_blocks(&head));
	uint32_t *credit = (void *)(at + gpu_table_credits(&head));

	assert(at);
	memcpy(at, &head, sizeof(head));
	for (uint32_t l = 0; l < c->lanes; l++) {
		lane[l] = (struct gpu_lane){ .len = lane_slots(c->shape, l) };
		for (uint32_t i = 0; i < gpu_pages_for(lane[l].len); i++)
			page[l * head.max_pages + i] = c->pool.id[c->pool.used++];
		for (uint32_t i = 0; i < gpu_blocks_for(lane[l].len); i++) {
			int32_t *pos[2];

			block[l * head.max_blocks + i] = new_block(&c->pool, 1);
			credit[l * head.max_blocks + i] = new_block(&c->pool, 1);
			pos[0] = (void *)gpu_at(gpu_map_bases(c->pool.map), SLAB_SHIFT, block[l * head.max_blocks + i]);
			pos[1] = (void *)gpu_at(gpu_map_bases(c->pool.map), SLAB_SHIFT, credit[l * head.max_blocks + i]);
			for (uint32_t s = 0; s < GPU_BLOCK_SLOTS; s++)
				pos[0][s] = pos[1][s] = (int32_t)(i * GPU_BLOCK_SLOTS + s);
		}
	}
	return at;
}

/* Every page full of small finite numbers, so that no arithmetic is unusually slow or fast. */
static void fill_pages(struct cache *c)
{
	const struct gpu_shape *g = &c->shape->gpu;
	const uint32_t n = 2u * GPU_PAGE_SLOTS * g->head_dim, bytes = gpu_page_bytes(g->slot_type, g->head_dim);
	char *page = malloc(bytes);
	uint16_t *param = (void *)(page + gpu_page_params(g->slot_type, g->head_dim));

	assert(page);
	for (uint32_t e = 0; e < n; e++) {
		float x = ((float)draw(2001) - 1000.0f) / 1000.0f;
		uint32_t bits;

		memcpy(&bits, &x, 4);
		if (g->slot_type == GPU_F32)
			memcpy(page + e * 4u, &x, 4);
		else if (g->slot_type == GPU_BF16)
			memcpy(page + e * 2u, (char *)&bits + 2, 2);
		else
			page[e] = (char)(x * 100.0f);
	}
	for (uint32_t r = 0; g->slot_type == GPU_Q8 && r < 2u * GPU_PAGE_SLOTS; r++) {
		param[2 * r] = 0x2000;		/* scale 1/128 */
		param[2 * r + 1] = 0x2800;	/* offset 1/32 */
	}
	for (uint32_t i = 0; i < c->pool.n_pages; i++)
		memcpy(gpu_at(gpu_map_bases(c->pool.map), SLAB_SHIFT, c->pool.id[i]), page, bytes);
	free(page);
}

static void cache_new(struct cache *c, const struct shape *shape)
{
	const struct gpu_shape *g = &shape->gpu;
	const uint32_t row = gpu_row_bytes(g->slot_type, g->head_dim), heads = g->n_kv_heads * g->group;
	size_t layer_bytes = (size_t)shape->sessions * g->n_kv_heads * shape->slots * row * 2u;
	size_t floats = (size_t)shape->sessions * heads * g->head_dim;
	uint32_t pages = 0;

	*c = (struct cache){ .shape = shape };
	c->layers = (uint32_t)((shape->bytes + layer_bytes - 1u) / layer_bytes);
	if (shape->bytes > FLUSH && c->layers < 16u)	/* attend_round() comes back to a layer soon: not while the L3 still has it */
		c->layers = 16u;
	c->lanes = c->layers * g->n_kv_heads;
	c->bytes = layer_bytes * c->layers;
	for (uint32_t l = 0; l < c->lanes; l++)
		pages += gpu_pages_for(lane_slots(shape, l));
	pool_new(&c->pool, gpu_page_bytes(g->slot_type, g->head_dim), shape->sessions * pages);
	fill_pages(c);
	c->table = calloc(shape->sessions, sizeof(*c->table));
	c->seq = calloc(shape->sessions, sizeof(*c->seq));
	c->plan = calloc(c->lanes, sizeof(*c->plan));
	c->q = (struct gpu_tensor){ .data = malloc(floats * 4u), .type = GPU_F32, .stride = (int64_t)heads * g->head_dim };
	c->out = (struct gpu_tensor){ .data = malloc(floats * 4u), .type = GPU_F32, .stride = (int64_t)heads * g->head_dim };
	assert(c->table && c->seq && c->plan && c->q.data && c->out.data);
	for (size_t i = 0; i < floats; i++)
		((float *)c->q.data)[i] = ((float)draw(2001) - 1000.0f) / 1000.0f;
	for (uint32_t i = 0; i < shape->sessions; i++) {
		c->table[i] = table_new(c);
		c->seq[i] = (struct gpu_seq){ .table = c->table[i], .row = i, .n = 1, .pos = (int32_t)shape->slots };
	}
	check(gpu_step_new(c->pool.dev, shape->sessions, shape->sessions, &c->step));
}

static void cache_free(struct cache *c)
{
	gpu_step_free(c->pool.dev, c->step);
	for (uint32_t i = 0; i < c->shape->sessions; i++)
		free(c->table[i]);
	free(c->table);
	free(c->seq);
	free(c->plan);
	free(c->q.data);
	free(c->out.data);
	pool_free(&c->pool);
}

/* --- ceilings ----------------------------------------------------------------------------------------------------------- */

typedef int64_t wide __attribute__((vector_size(32), aligned(8), may_alias));

static volatile int64_t sink;

/* Reads n bytes in order, as fast as plain loads go. */
__attribute__((target_clones("avx2", "default"), optimize("O3")))
static void read_span(const char *at, size_t n)
{
	wide s[8] = { 0 };

	for (size_t i = 0; i + 256 <= n; i += 256)
		for (size_t j = 0; j < 8; j++)
			s[j] += *(const wide *)(const void *)(at + i + 32 * j);
	for (size_t j = 1; j < 8; j++)
		s[0] += s[j];
	sink += s[0][0] + s[0][1] + s[0][2] + s[0][3];
}

/* --- attend --------------------------------------------------------------------------------------------------------------- */

/* Reads the pages of one layer's lanes as attend does, K rows then V rows, page after page, and does nothing with them. */
static void read_pages(const struct cache *c, uint32_t layer)
{
	const struct gpu_shape *g = &c->shape->gpu;
	const uint32_t half = gpu_page_v(g->slot_type, g->head_dim), pages = gpu_pages_for(c->shape->slots);

	for (uint32_t i = 0; i < c->shape->sessions * g->n_kv_heads; i++) {
		const char *table = c->table[i / g->n_kv_heads];
		const uint32_t *id = (const void *)(table + gpu_table_pages((const void *)table));

		id += (size_t)(layer * g->n_kv_heads + i % g->n_kv_heads) * pages;
		for (uint32_t k = 0; k < 2 * pages; k++) {
			const uint32_t soon = k + 2 < 2 * pages ? k + 2 : k;
			const char *ahead = gpu_at(gpu_map_bases(c->pool.map), SLAB_SHIFT, id[soon % pages]) + soon / pages * half;

			for (uint32_t b = 0; b < half; b += 64)
				__builtin_prefetch(ahead + b, 0, 3);
			read_span(gpu_at(gpu_map_bases(c->pool.map), SLAB_SHIFT, id[k % pages]) + k / pages * half, half);
		}
	}
}

static uint64_t attend_layer(struct cache *c, uint32_t layer, uint32_t observe)
{
	uint64_t start;

	for (uint32_t i = 0; i < c->shape->sessions; i++)
		((struct gpu_table *)(void *)c->table[i])->observe = observe;
	start = bench_cpu_ns();
	check(gpu_attend(c->step, NULL, layer, &c->q, &c->out, 0.125f, NULL));
	return bench_cpu_ns() - start;
}

/*
 * Layer by layer in turns: attend with heat of one, without heat of another, a plain read of as many bytes elsewhere, and one of
 * the pages of a third in attend's order: what their places leave of the memory's speed. All layers
 * together do not fit in the caches, nor does what is read (but for the shapes that are meant to fit).
 */
static void attend_round(struct cache *c, const struct gpu_slab *other, uint64_t ns[4])
{
	const size_t layer_bytes = c->bytes / c->layers;

	for (uint32_t l = 0; l < c->layers; l++) {
		uint64_t start;

		ns[0] += attend_layer(c, l, 1);
		ns[1] += attend_layer(c, (l + c->layers / 2u) % c->layers, 0);
		start = bench_cpu_ns();
		read_span((const char *)other->base + l * layer_bytes, layer_bytes);
		ns[2] += bench_cpu_ns() - start;
		start = bench_cpu_ns();
		read_pages(c, (l + c->layers / 4u) % c->layers);
		ns[3] += bench_cpu_ns() - start;
	}
}

static void bench_attend(const struct shape *shape)
{
	double with[ROUNDS], without[ROUNDS], plain[ROUNDS], cost[ROUNDS], share[ROUNDS], paged[ROUNDS], w, p;
	struct gpu_slab other;
	struct cache c;
	char name[96];
	int judged;

	cache_new(&c, shape);
	check(gpu_slab_new(c.pool.dev, c.bytes, 1, &other));
	memset(other.base, 1, c.bytes);
	check(gpu_step_set(c.step, NULL, &c.shape->gpu, c.pool.map, c.seq, c.shape->sessions, c.shape->slots + 1u));
	for (int r = -1; r < ROUNDS; r++) {	/* the first is not counted */
		uint64_t ns[4] = { 0 };

		for (unsigned times = (unsigned)((48u << 20) / c.bytes + 1u); times; times--)
			attend_round(&c, &other, ns);
		if (r < 0)
			continue;
		with[r] = (double)ns[0];
		without[r] = (double)ns[1];
		plain[r] = (double)ns[2];
		share[r] = plain[r] / with[r];
		paged[r] = plain[r] / (double)ns[3];
		cost[r] = 100.0 * (with[r] / without[r] - 1.0);
	}
	judged = c.bytes >= 64u << 20;
	w = bench_median(share, ROUNDS);
	p = (double)c.bytes * (double)((48u << 20) / c.bytes + 1u) / bench_median(plain, ROUNDS);
	snprintf(name, sizeof(name), "host attend+heat %s", shape->name);
	bench_report(name, w * p, "GB/s", p, judged ? ">= 60 %" : "", judged ? w >= 0.6 : -1);
	snprintf(name, sizeof(name), "host attend+heat %s: time", shape->name);
	bench_report(name, (double)c.bytes / (w * p) / 1e3 / c.layers, "us/layer", (double)c.bytes / p / 1e3 / c.layers, "", -1);
	snprintf(name, sizeof(name), "plain read of its pages %s", shape->name);
	bench_report(name, bench_median(paged, ROUNDS) * p, "GB/s", p, "", -1);
	snprintf(name, sizeof(name), "host heat costs %s", shape->name);
	bench_report(name, bench_median(cost, ROUNDS), "% of attend", (double)NAN, "", -1);
	gpu_slab_free(c.pool.dev, &other);
	cache_free(&c);
}

/* Lanes of very different lengths, as split = measured makes them, beside as many slots in equal ones: layer by layer in turns. */
static void bench_ragged(const struct shape *shape)
{
	const struct shape equal = { shape->name, shape->gpu, shape->sessions, shape->slots, shape->bytes, NULL };
	double cost[ROUNDS], rate[ROUNDS], equal_rate[ROUNDS], w;
	struct cache c[2];
	char name[96];

	cache_new(&c[0], &equal);
	cache_new(&c[1], shape);
	for (int i = 0; i < 2; i++)
		check(gpu_step_set(c[i].step, NULL, &shape->gpu, c[i].pool.map, c[i].seq, shape->sessions, longest(c[i].shape) + 1u));
	for (int r = -1; r < ROUNDS; r++) {	/* the first is not counted */
		uint64_t ns[2] = { 0 };

		for (uint32_t k = 0; k < 4u * c[0].layers; k++) {
			const uint32_t layer = k % c[0].layers, which = (layer + k / c[0].layers) & 1;

			ns[which] += attend_layer(&c[which], layer, 1);
		}
		if (r < 0)
			continue;
		cost[r] = 100.0 * ((double)ns[1] / (double)ns[0] - 1.0);
		equal_rate[r] = 2.0 * (double)c[0].bytes / (double)ns[0];
		rate[r] = 2.0 * (double)c[1].bytes / (double)ns[1];
	}
	w = bench_median(cost, ROUNDS);
	snprintf(name, sizeof(name), "host attend+heat %s", shape->name);
	bench_report(name, bench_median(rate, ROUNDS), "GB/s", bench_median(equal_rate, ROUNDS), "", -1);
	snprintf(name, sizeof(name), "host ragged costs %s", shape->name);
	bench_report(name, w, "% of equal", (double)NAN, "<= 5 %", w <= 5.0);
	cache_free(&c[0]);
	cache_free(&c[1]);
}

/* --- select and compact ------------------------------------------------------------------------------------------------------ */

static void set_heat(struct cache *c)
{
	for (uint32_t i = 0; i < c->shape->sessions; i++) {
		const struct gpu_table *t = (const void *)c->table[i];
		const uint32_t *block = (const void *)(c->table[i] + gpu_table_blocks(t));
		struct gpu_lane *lane = (void *)(c->table[i] + gpu_table_lanes());

		for (uint32_t b = 0; b < t->n_lanes * t->max_blocks; b++) {
			float *heat = (float *)(void *)gpu_at(gpu_map_bases(c->pool.map), SLAB_SHIFT, block[b]) + GPU_BLOCK_SLOTS;

			for (uint32_t s = 0; s < GPU_BLOCK_SLOTS; s++)
				heat[s] = (float)draw(100000) * 1e-5f;
		}
		for (uint32_t l = 0; l < t->n_lanes; l++)
			lane[l] = (struct gpu_lane){ .len = c->shape->slots };
	}
}

static void turns(struct cache *c, struct gpu_turn *turn, uint32_t keep, uint32_t victims)
{
	for (uint32_t l = 0; l < c->lanes; l++)
		c->plan[l] = (struct gpu_plan){ .keep = keep, .victims = victims, .fresh = WINDOW - victims, .recent = keep / 2 };
	for (uint32_t i = 0; i < c->shape->sessions; i++)
		turn[i] = (struct gpu_turn){ .priv = c->table[i], .plan = c->plan, .n_lanes = c->lanes, .pos = (int32_t)c->shape->slots,
					     .rule = { .policy = EVICT_h2o, .sinks = 4, .param = { 0.0f, 1.0f } }, .n_credit = 1,
					     .slot_type = c->shape->gpu.slot_type, .head_dim = c->shape->gpu.head_dim };
}

/*
 * The floor of select is what it must read and write per slot: position 4, heat 4 read and 4 written, credit 4 and 4.
 * The ceiling is copying: half of those bytes read and half written by memcpy (20 bytes a slot are 10 copied).
 */
static void bench_select(const struct shape *shape)
{
	double ours[ROUNDS], plain[ROUNDS];
	struct gpu_turn turn[64];
	struct cache c;
	char name[96], *a, *b, *flush = malloc(FLUSH);
	size_t copied;

	assert(flush);
	cache_new(&c, shape);
	turns(&c, turn, shape->slots, WINDOW);
	copied = (size_t)shape->sessions * c.lanes * shape->slots * 10u;
	a = malloc(copied);
	b = malloc(copied);
	assert(a && b);
	memset(a, 1, copied);
	memset(b, 1, copied);
	for (unsigned r = 0; r < ROUNDS; r++) {
		uint64_t t0, t1, t2;

		set_heat(&c);
		memset(flush, (int)r, FLUSH);	/* the arrays leave the caches */
		t0 = bench_cpu_ns();
		check(gpu_select(c.pool.dev, NULL, c.pool.map, turn, shape->sessions, GPU_SETTLE | GPU_FOLD | GPU_NEXT, NULL));
		t1 = bench_cpu_ns();
		memcpy(b, a, copied);
		t2 = bench_cpu_ns();
		sink += b[r];
		ours[r] = 2.0 * (double)copied / (double)(t1 - t0);
		plain[r] = 2.0 * (double)copied / (double)(t2 - t1);
	}
	free(flush);
	{
		double w = bench_median(ours, ROUNDS), p = bench_median(plain, ROUNDS);

		snprintf(name, sizeof(name), "host select %s", shape->name);
		bench_report(name, w, "GB/s", p, ">= 50 %", w >= 0.5 * p);
		snprintf(name, sizeof(name), "host select %s: time", shape->name);
		bench_report(name, 20.0 / w, "ns/slot", 20.0 / p, "", -1);
	}
	free(a);
	free(b);
	cache_free(&c);
}

/* Half of the slots go. COMPACT alone is timed; its ceiling is copying the survivors of the upper half, K and V. */
static void bench_compact(const struct shape *shape)
{
	double ours[ROUNDS], plain[ROUNDS];
	struct gpu_turn turn[64];
	struct cache c;
	char name[96], *a, *b;
	size_t copied;

	cache_new(&c, shape);
	turns(&c, turn, shape->slots / 2, 0);
	copied = c.bytes / 4;
	a = malloc(copied);
	b = malloc(copied);
	assert(a && b);
	memset(a, 1, copied);
	memset(b, 1, copied);
	for (unsigned r = 0; r < ROUNDS; r++) {
		uint64_t t0, t1, t2;

		for (uint32_t l = 0; l < c.lanes; l++)
			c.plan[l].recent = 0;
		/* Random keys, so half of the upper half survives. */
		for (uint32_t i = 0; i < shape->sessions; i++)
			turn[i].rule = (struct evict_rule){ .policy = EVICT_random, .seed = r };
		for (uint32_t i = 0; i < shape->sessions; i++) {
			const struct gpu_table *t = (const void *)c.table[i];
			const uint32_t *credit = (const void *)(c.table[i] + gpu_table_credits(t));

			for (uint32_t k = 0; k < t->n_lanes * t->max_blocks; k++) {
				int32_t *pos = (void *)gpu_at(gpu_map_bases(c.pool.map), SLAB_SHIFT, credit[k]);

				for (uint32_t s = 0; s < GPU_BLOCK_SLOTS; s++)
					pos[s] = (int32_t)(k % t->max_blocks * GPU_BLOCK_SLOTS + s);
			}
		}
		check(gpu_select(c.pool.dev, NULL, c.pool.map, turn, shape->sessions, GPU_REMOVE, NULL));
		t0 = bench_cpu_ns();
		check(gpu_select(c.pool.dev, NULL, c.pool.map, turn, shape->sessions, GPU_COMPACT, NULL));
		t1 = bench_cpu_ns();
		memcpy(b, a, copied);
		t2 = bench_cpu_ns();
		sink += b[r];
		ours[r] = 2.0 * (double)copied / (double)(t1 - t0);
		plain[r] = 2.0 * (double)copied / (double)(t2 - t1);
	}
	{
		double w = bench_median(ours, ROUNDS), p = bench_median(plain, ROUNDS);

		snprintf(name, sizeof(name), "host compact %s", shape->name);
		bench_report(name, w, "GB/s", p, ">= 50 %", w >= 0.5 * p);
	}
	free(a);
	free(b);
	cache_free(&c);
}

#define BIG ((size_t)96 << 20)
#define SMALL ((size_t)2 << 20)

int main(int argc, char **argv)
{
	static const struct shape attend[] = {
		{ "d64 G3 bf16 1x2048", { 3, 3, 64, GPU_BF16 }, 1, 2048, BIG, NULL },
		{ "d64 G3 bf16 1x512", { 3, 3, 64, GPU_BF16 }, 1, 512, BIG, NULL },
		{ "d64 G3 bf16 8x1024", { 3, 3, 64, GPU_BF16 }, 8, 1024, BIG, NULL },
		{ "d64 G3 q8 1x2048", { 3, 3, 64, GPU_Q8 }, 1, 2048, BIG, NULL },
		{ "d64 G3 q8 8x1024", { 3, 3, 64, GPU_Q8 }, 8, 1024, BIG, NULL },
		{ "d64 G3 f32 1x2048", { 3, 3, 64, GPU_F32 }, 1, 2048, BIG, NULL },
		{ "d128 G4 bf16 1x4096", { 8, 4, 128, GPU_BF16 }, 1, 4096, BIG, NULL },
		{ "d128 G4 bf16 4x1024", { 8, 4, 128, GPU_BF16 }, 4, 1024, BIG, NULL },
		{ "d128 G4 q8 1x4096", { 8, 4, 128, GPU_Q8 }, 1, 4096, BIG, NULL },
		{ "d64 G3 bf16 1x512 in cache", { 3, 3, 64, GPU_BF16 }, 1, 512, SMALL, NULL },
		{ "d64 G3 q8 1x512 in cache", { 3, 3, 64, GPU_Q8 }, 1, 512, SMALL, NULL },
	};
	static const uint32_t three[] = { 50, 400, 1500 }, eight[] = { 50, 100, 200, 400, 700, 1000, 1250, 1500 };
	static const struct shape ragged[] = {
		{ "d64 G3 bf16 1x650 ragged", { 3, 3, 64, GPU_BF16 }, 1, 650, BIG, three },
		{ "d64 G3 q8 1x650 ragged", { 3, 3, 64, GPU_Q8 }, 1, 650, BIG, three },
		{ "d64 G3 bf16 8x650 ragged", { 3, 3, 64, GPU_BF16 }, 8, 650, BIG, three },
		{ "d128 G4 bf16 1x650 ragged", { 8, 4, 128, GPU_BF16 }, 1, 650, BIG, eight },
		{ "d128 G4 bf16 4x650 ragged", { 8, 4, 128, GPU_BF16 }, 4, 650, BIG, eight },
	};
	static const struct shape selects[] = {
		{ "h2o 32 of 2048", { 3, 3, 64, GPU_Q8 }, 8, 2048, BIG, NULL },
		{ "h2o 32 of 512", { 3, 3, 64, GPU_Q8 }, 8, 512, BIG, NULL },
	};
	static const struct shape compacts[] = {
		{ "d64 bf16 2048 to 1024", { 3, 3, 64, GPU_BF16 }, 2, 2048, BIG, NULL },
		{ "d128 q8 2048 to 1024", { 8, 4, 128, GPU_Q8 }, 2, 2048, BIG, NULL },
	};
	const char *only = argc > 1 ? argv[1] : "";

	printf("host operations with %s, one thread; ceiling: a streaming read (attend) or memcpy of as many bytes\n", gpu_host_isa());
	for (unsigned i = 0; i < sizeof(attend) / sizeof(attend[0]); i++)
		if (strstr(attend[i].name, only))
			bench_attend(&attend[i]);
	for (unsigned i = 0; i < sizeof(ragged) / sizeof(ragged[0]); i++)
		if (strstr(ragged[i].name, only))
			bench_ragged(&ragged[i]);
	for (unsigned i = 0; i < sizeof(selects) / sizeof(selects[0]); i++)
		if (strstr(selects[i].name, only))
			bench_select(&selects[i]);
	for (unsigned i = 0; i < sizeof(compacts) / sizeof(compacts[0]); i++)
		if (strstr(compacts[i].name, only))
			bench_compact(&compacts[i]);
	return 0;
}
