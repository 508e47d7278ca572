/*
 * How long the device operations take on a GPU, through gpu.h alone. Wall clock over many enqueued calls and one wait, so
 * whatever is larger counts, the device's work or the CPU's launches; no graphs. K and V are random numbers in scattered pages.
 * One line a measurement: operation, shape, microseconds, GB/s of the bytes that it must touch, share of a plain copy's rate.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gpu/gpu.h"

#define SHIFT 30u
#define MAX_SLABS 40u

struct pool {
	struct gpu_device *dev;
	gpu_stream s;
	struct gpu_map *map;
	struct gpu_slab slab[MAX_SLABS];
	unsigned n_slabs;
	uint64_t at;
};

struct shape {
	const char *name;
	uint32_t sessions, kv, group, d, live, layers, type, n;
};

static double copy_rate;	/* bytes read plus bytes written a second */

static void must(int rc, const char *what)
{
	if (rc) {
		fprintf(stderr, "%s: %s\n", what, strerror(-rc));
		exit(1);
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint32_t draw(void)
{
	static uint64_t s = 88172645463325252ull;

	s ^= s << 13;
	s ^= s >> 7;
	s ^= s << 17;
	return (uint32_t)(s >> 20);
}

/* A place of `bytes` that does not straddle slabs; its id. */
static uint32_t place(struct pool *p, uint64_t bytes)
{
	uint64_t slab_bytes = 1ull << SHIFT;

	bytes = (bytes + GPU_UNIT - 1) / GPU_UNIT * GPU_UNIT;
	if (p->at % slab_bytes + bytes > slab_bytes)
		p->at = (p->at / slab_bytes + 1) * slab_bytes;
	while (p->at + bytes > (uint64_t)p->n_slabs * slab_bytes) {
		if (p->n_slabs == MAX_SLABS)
			must(-28, "pool");
		must(gpu_slab_new(p->dev, slab_bytes, 1, &p->slab[p->n_slabs]), "slab");
		must(gpu_map_set(p->map, p->s, p->n_slabs, p->slab[p->n_slabs].base), "map");
		p->n_slabs++;
	}
	p->at += bytes;
	return (uint32_t)((p->at - bytes) / GPU_UNIT);
}

static void *address(const struct pool *p, uint32_t id)
{
	return gpu_at(gpu_map_bases(p->map), SHIFT, id);
}

static uint32_t *places(struct pool *p, size_t n, uint64_t bytes)
{
	uint32_t *id = malloc((n + 1) * sizeof(*id));

	for (size_t i = 0; i < n; i++)
		id[i] = place(p, bytes);
	for (size_t i = n; i > 1; i--) {
		size_t j = draw() % i;
		uint32_t kept = id[i - 1];

		id[i - 1] = id[j];
		id[j] = kept;
	}
	return id;
}

static void report(const char *op, const char *shape, double seconds, double bytes)
{
	printf("%-26s %-34s %10.1f us", op, shape, seconds * 1e6);
	if (bytes > 0)
		printf(" %8.0f GB/s %5.1f %%", bytes / seconds / 1e9, 100.0 * bytes / seconds / copy_rate);
	printf("\n");
	fflush(stdout);
}

static void measure_copy(struct pool *p)
{
	struct gpu_slab a, b;
	double t = 0;

	must(gpu_slab_new(p->dev, 2ull << 30, 0, &a), "slab");
	must(gpu_slab_new(p->dev, 2ull << 30, 0, &b), "slab");
	for (int i = 0; i < 12; i++) {
		if (i == 2) {
			must(gpu_sync(p->dev, p->s), "sync");
			t = now();
		}
		must(gpu_copy(p->dev, p->s, a.base, b.base, a.bytes), "copy");
	}
	must(gpu_sync(p->dev, p->s), "sync");
	t = (now() - t) / 10;
	copy_rate = 2.0 * (double)a.bytes / t;
	report("copy", "2 GiB", t, 2.0 * (double)a.bytes);
	gpu_slab_free(p->dev, &a);
	gpu_slab_free(p->dev, &b);
}

/* --- sessions -------------------------------------------------------------------------------------------------------------- */

struct bench {
	struct pool *p;
	const struct shape *sh;
	struct gpu_shape gs;
	struct gpu_table head;
	void **table;
	struct gpu_step *step;
	struct gpu_slab io;		/* k, v, q and out rows */
	struct gpu_tensor k, q, out;
	struct gpu_seq *seq;
};

/* Tables of all sessions, shared and private alike in one: header, lanes {0, live}, next, pages, blocks, credits. */
static void make_tables(struct bench *b, int with_pages)
{
	const struct shape *sh = b->sh;
	struct gpu_table *t = &b->head;
	size_t lanes = (size_t)sh->layers * sh->kv, n = lanes * sh->sessions, bytes;
	uint32_t *page, *block, *credit;
	char *image;

	*t = (struct gpu_table){ .n_lanes = (uint32_t)lanes, .window = 32, .max_pages = gpu_pages_for(sh->live),
				 .max_blocks = gpu_blocks_for(sh->live), .n_heat = 1, .heat = { EVICT_HEAT_SUM }, .observe = 1 };
	page = with_pages ? places(b->p, n * t->max_pages, gpu_page_bytes(sh->type, sh->d)) : calloc(n * t->max_pages, 4);
	block = places(b->p, n * t->max_blocks, gpu_block_bytes(1));
	credit = places(b->p, n * t->max_blocks, gpu_block_bytes(1));
	bytes = gpu_table_private_bytes(t);
	image = calloc(1, bytes);
	b->table = calloc(sh->sessions, sizeof(void *));
	for (uint32_t i = 0; i < sh->sessions; i++) {
		struct gpu_lane *lane = (struct gpu_lane *)(void *)(image + gpu_table_lanes());

		memcpy(image, t, sizeof(*t));
		for (size_t l = 0; l < lanes; l++)
			lane[l] = (struct gpu_lane){ 0, sh->live };
		memcpy(image + gpu_table_pages(t), page + i * lanes * t->max_pages, lanes * t->max_pages * 4);
		memcpy(image + gpu_table_blocks(t), block + i * lanes * t->max_blocks, lanes * t->max_blocks * 4);
		memcpy(image + gpu_table_credits(t), credit + i * lanes * t->max_blocks, lanes * t->max_blocks * 4);
		b->table[i] = address(b->p, place(b->p, bytes));
		must(gpu_write(b->p->dev, b->p->s, b->table[i], image, bytes), "table");
	}
	free(image);
	free(page);
	free(block);
	free(credit);
}

static void set_headers(struct bench *b, uint32_t len, uint32_t fresh, uint32_t observe)
{
	struct gpu_lane *lane = calloc(b->head.n_lanes, sizeof(*lane));

	b->head.observe = observe;
	for (uint32_t l = 0; l < b->head.n_lanes; l++)
		lane[l] = (struct gpu_lane){ len, fresh };
	for (uint32_t i = 0; i < b->sh->sessions; i++) {
		must(gpu_write(b->p->dev, b->p->s, b->table[i], &b->head, sizeof(b->head)), "header");
		must(gpu_write(b->p->dev, b->p->s, (char *)b->table[i] + gpu_table_lanes(), lane, b->head.n_lanes * sizeof(*lane)),
		     "lanes");
	}
	free(lane);
}

static void make_tensors(struct bench *b)
{
	const struct shape *sh = b->sh;
	uint32_t rows = sh->sessions * sh->n > sh->live ? sh->sessions * sh->n : sh->live, width = sh->kv * sh->group * sh->d;
	size_t bytes = (size_t)rows * width * 2;
	uint16_t *x = malloc(bytes);

	for (size_t i = 0; i < bytes / 2; i++)	/* bfloat16, +-[1/8, 2) */
		x[i] = (uint16_t)((draw() & 1) << 15 | (124 + draw() % 4) << 7 | (draw() & 127));
	must(gpu_slab_new(b->p->dev, 2 * bytes, 0, &b->io), "tensors");
	must(gpu_write(b->p->dev, b->p->s, b->io.base, x, bytes), "tensors");
	b->q = (struct gpu_tensor){ b->io.base, GPU_BF16, width };
	b->k = (struct gpu_tensor){ b->io.base, GPU_BF16, sh->kv * sh->d };
	b->out = (struct gpu_tensor){ (char *)b->io.base + bytes, GPU_BF16, width };
	free(x);
	must(gpu_step_new(b->p->dev, sh->sessions, rows, &b->step), "step");
	b->seq = calloc(sh->sessions, sizeof(*b->seq));
}

static void fill_cache(struct bench *b)
{
	for (uint32_t i = 0; i < b->sh->sessions; i++) {
		struct gpu_seq seq = { .table = b->table[i], .n = b->sh->live };

		must(gpu_step_set(b->step, b->p->s, &b->gs, b->p->map, &seq, 1, b->sh->live), "step_set");
		for (uint32_t l = 0; l < b->sh->layers; l++)
			must(gpu_append(b->step, b->p->s, l, &b->k, &b->k), "append");
	}
}

static double time_attend(struct bench *b, uint32_t observe, unsigned rounds)
{
	double t = 0;

	set_headers(b, b->sh->live - b->sh->n, b->sh->n, observe);
	for (uint32_t i = 0; i < b->sh->sessions; i++)
		b->seq[i] = (struct gpu_seq){ .table = b->table[i], .row = i * b->sh->n, .n = b->sh->n,
					     .pos = (int32_t)(b->sh->live - b->sh->n) };
	must(gpu_step_set(b->step, b->p->s, &b->gs, b->p->map, b->seq, b->sh->sessions, b->sh->live), "step_set");
	for (unsigned r = 0; r <= rounds; r++) {
		if (r == 1) {
			must(gpu_sync(b->p->dev, b->p->s), "sync");
			t = now();
		}
		for (uint32_t l = 0; l < b->sh->layers; l++)
			must(gpu_attend(b->step, b->p->s, l, &b->q, &b->out, 0.08f, NULL), "attend");
	}
	must(gpu_sync(b->p->dev, b->p->s), "sync");
	return (now() - t) / (rounds * b->sh->layers);
}

static double time_append(struct bench *b, unsigned rounds)
{
	double t = now();

	for (unsigned r = 0; r < rounds; r++)
		for (uint32_t l = 0; l < b->sh->layers; l++)
			must(gpu_append(b->step, b->p->s, l, &b->k, &b->k), "append");
	must(gpu_sync(b->p->dev, b->p->s), "sync");
	return (now() - t) / (rounds * b->sh->layers);
}

static void bench_shape(struct pool *p, const struct shape *sh)
{
	struct bench b = { .p = p, .sh = sh, .gs = { sh->kv, sh->group, sh->d, sh->type } };
	double bytes = (double)sh->sessions * sh->kv * sh->live * 2 * gpu_row_bytes(sh->type, sh->d);
	unsigned rounds = sh->n > 1 ? 5 : 3 + 400 / sh->layers;

	p->at = 0;
	make_tables(&b, 1);
	make_tensors(&b);
	fill_cache(&b);
	report("attend, no heat", sh->name, time_attend(&b, 0, rounds), bytes);
	report("attend, heat", sh->name, time_attend(&b, 1, rounds), bytes);
	report("append", sh->name, time_append(&b, rounds), 0);
	gpu_step_free(p->dev, b.step);
	gpu_slab_free(p->dev, &b.io);
	free(b.table);
	free(b.seq);
}

/* --- select, and the small change ---------------------------------------------------------------------------------------------- */

static void bench_select(struct pool *p, const struct shape *sh)
{
	struct bench b = { .p = p, .sh = sh };
	struct gpu_turn *turn = calloc(sh->sessions, sizeof(*turn));
	struct gpu_plan *plan;
	double t = 0, slots;

	p->at = 0;
	make_tables(&b, 0);
	plan = calloc(b.head.n_lanes, sizeof(*plan));
	for (uint32_t l = 0; l < b.head.n_lanes; l++)
		plan[l] = (struct gpu_plan){ .keep = sh->live, .victims = 32, .recent = sh->live / 2 };
	for (uint32_t i = 0; i < sh->sessions; i++)
		turn[i] = (struct gpu_turn){ .priv = b.table[i], .plan = plan, .n_lanes = b.head.n_lanes, .appended = sh->live,
					     .rule = { .policy = EVICT_h2o, .sinks = 4, .param = { 0.0f, 1.0f } }, .n_credit = 1,
					     .slot_type = GPU_BF16, .head_dim = 128 };
	must(gpu_select(p->dev, p->s, p->map, turn, sh->sessions, GPU_SETTLE | GPU_FOLD | GPU_NEXT, NULL), "select");
	for (uint32_t i = 0; i < sh->sessions; i++) {
		turn[i].appended = 32;
		turn[i].pos = (int32_t)sh->live;
	}
	for (unsigned r = 0; r < 6; r++) {
		if (r == 1) {
			must(gpu_sync(p->dev, p->s), "sync");
			t = now();
		}
		must(gpu_select(p->dev, p->s, p->map, turn, sh->sessions, GPU_SETTLE | GPU_FOLD | GPU_NEXT, NULL), "select");
	}
	must(gpu_sync(p->dev, p->s), "sync");
	slots = (double)sh->sessions * b.head.n_lanes * sh->live;
	report("select (fold, next)", sh->name, (now() - t) / 5, slots * 20);	/* position, heat and credit read, both written */
	free(turn);
	free(plan);
	free(b.table);
}

static void bench_small(struct pool *p)
{
	enum { N = 2000 };
	uint64_t *word, value = 0;
	char bytes[2048] = { 0 };
	void *at;
	double t;

	must(gpu_host_alloc(p->dev, 4096, &at), "host");
	word = at;
	t = now();
	for (int i = 0; i < N; i++)
		must(gpu_write(p->dev, p->s, p->slab[0].base, bytes, sizeof(bytes)), "write");
	report("write, enqueue", "2 KiB", (now() - t) / N, 0);
	must(gpu_sync(p->dev, p->s), "sync");
	t = now();
	for (int i = 0; i < N; i++) {
		value++;
		must(gpu_signal(p->dev, p->s, 1, &word, &value), "signal");
	}
	report("signal, enqueue", "1 word", (now() - t) / N, 0);
	must(gpu_sync(p->dev, p->s), "sync");
	t = now();
	for (int i = 0; i < N; i++) {
		value++;
		must(gpu_signal(p->dev, p->s, 1, &word, &value), "signal");
		while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value)
			;
	}
	report("signal, round trip", "1 word", (now() - t) / N, 0);
	gpu_host_free(p->dev, at);
}

int main(void)
{
	static const struct shape shapes[] = {
		{ "64 x 8 lanes, G4, d128, 2048 bf16", 64, 8, 4, 128, 2048, 4, GPU_BF16, 1 },
		{ "64 x 8 lanes, G4, d128, 2048 q8", 64, 8, 4, 128, 2048, 4, GPU_Q8, 1 },
		{ "64 x 8 lanes, G1, d128, 2048 bf16", 64, 8, 1, 128, 2048, 4, GPU_BF16, 1 },
		{ "1 x 8 lanes, G4, d128, 2048 bf16", 1, 8, 4, 128, 2048, 32, GPU_BF16, 1 },
		{ "64 x 3 lanes, G3, d64, 1024 bf16", 64, 3, 3, 64, 1024, 30, GPU_BF16, 1 },
		{ "1 x 3 lanes, G3, d64, 1024 bf16", 1, 3, 3, 64, 1024, 30, GPU_BF16, 1 },
		{ "1 x 8 lanes, G4, d128, 2048 queries", 1, 8, 4, 128, 2048, 2, GPU_BF16, 2048 },
	};
	static const struct shape all = { "16384 lanes, 2048", 64, 8, 4, 128, 2048, 32, GPU_BF16, 1 };
	struct pool p = { 0 };
	const char *name = getenv("EBB_TEST_DEVICE");

	if (!gpu_count())
		return 77;
	must(gpu_open(&p.dev, name ? name : "cuda:0"), "open");
	must(gpu_stream_new(p.dev, &p.s), "stream");
	must(gpu_map_new(p.dev, MAX_SLABS, SHIFT, &p.map), "map");
	measure_copy(&p);
	for (unsigned i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
		bench_shape(&p, &shapes[i]);
	bench_select(&p, &all);
	bench_small(&p);
	return 0;
}
