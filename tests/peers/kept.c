/*
 * kept - which positions does a policy keep? For tests/peers/parity.py: our attend and our select on the host, on dumped Q, K and V.
 *
 *	kept DUMP POLICY KEEP SINKS RECENT WINDOW,WINDOW,...
 *
 * DUMP: uint32 layers, tokens, KV heads, query heads per KV head, head_dim; then for every layer float32 Q[token][head][d],
 * K[token][KV head][d], V like K. The tokens are appended and attended (and every query observed) in windows of the given lengths, the
 * policy folds after each, and after the last one select removes all but KEEP slots a lane. Prints a line per lane: positions, ascending.
 */
#include "evict/evict.h"
#include "gpu/gpu.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLAB_SHIFT 30u

struct dump {
	uint32_t n_layers, tokens, n_kv_heads, group, head_dim;
	float *data;			/* all layers */
};

struct cache {
	struct gpu_device *dev;
	struct gpu_map *map;
	struct gpu_step *step;
	struct gpu_slab slab;
	uint32_t at;			/* first free id */
	struct gpu_table head;
	char *table;			/* a private table, which serves as the shared one as well */
	uint32_t n_arrays;
};

static void must(int rc, const char *what)
{
	if (rc) {
		fprintf(stderr, "kept: %s: %s\n", what, strerror(rc < 0 ? -rc : rc));
		exit(1);
	}
}

static struct dump dump_read(const char *path)
{
	FILE *f = fopen(path, "rb");
	struct dump d = { 0 };
	size_t n;

	must(!f || fread(&d, sizeof(uint32_t), 5, f) != 5, path);
	n = (size_t)d.n_layers * d.tokens * d.n_kv_heads * d.head_dim * (d.group + 2u);
	d.data = malloc(n * sizeof(float));
	assert(d.data);
	must(fread(d.data, sizeof(float), n, f) != n || fgetc(f) != EOF, path);
	fclose(f);
	return d;
}

static uint32_t take(struct cache *c, uint32_t bytes)
{
	const uint32_t id = c->at;

	c->at += (bytes + GPU_UNIT - 1u) / GPU_UNIT;
	return id;
}

/* Every lane has room for all tokens; token j lies in slot j. */
static struct cache cache_new(const struct dump *d, const struct evict_rule *rule)
{
	const uint32_t lanes = d->n_layers * d->n_kv_heads, page_bytes = gpu_page_bytes(GPU_F32, d->head_dim);
	struct cache c = { .n_arrays = evict_n_arrays(rule->policy) };
	uint32_t *page, *block, *credit;
	size_t bytes;

	c.head = (struct gpu_table){ .n_lanes = lanes, .window = 1, .max_pages = gpu_pages_for(d->tokens),
				     .max_blocks = gpu_blocks_for(d->tokens), .n_heat = evict_n_heat(rule->policy),
				     .heat = { rule->heat[0], rule->heat[1] }, .observe = 1 };
	c.table = calloc(1, gpu_table_private_bytes(&c.head));
	assert(c.table);
	memcpy(c.table, &c.head, sizeof(c.head));
	page = (void *)(c.table + gpu_table_pages(&c.head));
	block = (void *)(c.table + gpu_table_blocks(&c.head));
	credit = (void *)(c.table + gpu_table_credits(&c.head));
	for (uint32_t i = 0; i < lanes * c.head.max_pages; i++)
		page[i] = take(&c, page_bytes);
	for (uint32_t i = 0; i < lanes * c.head.max_blocks; i++) {
		block[i] = take(&c, gpu_block_bytes(c.head.n_heat));
		credit[i] = take(&c, gpu_block_bytes(c.n_arrays));
	}
	bytes = (size_t)c.at * GPU_UNIT;
	assert(bytes <= (size_t)1 << SLAB_SHIFT);
	must(gpu_open(&c.dev, "host"), "host");
	must(gpu_map_new(c.dev, 1, SLAB_SHIFT, &c.map), "map");
	must(gpu_slab_new(c.dev, bytes, 0, &c.slab), "slab");
	must(gpu_map_set(c.map, NULL, 0, c.slab.base), "slab");
	must(gpu_step_new(c.dev, 1, d->tokens, &c.step), "step");
	return c;
}

static void cache_free(struct cache *c)
{
	gpu_step_free(c->dev, c->step);
	gpu_map_free(c->dev, c->map);
	gpu_slab_free(c->dev, &c->slab);
	gpu_close(c->dev);
	free(c->table);
}

/* Appends the window's tokens and lets their queries look. */
static void window_attend(struct cache *c, const struct dump *d, uint32_t pos, uint32_t n)
{
	const struct gpu_shape shape = { d->n_kv_heads, d->group, d->head_dim, GPU_F32 };
	const struct gpu_seq seq = { .table = c->table, .row = 0, .n = n, .used = 0, .pos = (int32_t)pos };
	const size_t kv = (size_t)d->n_kv_heads * d->head_dim, q = kv * d->group;
	float *out = malloc(n * q * sizeof(*out)), root = 1.0f;

	assert(out);
	for (int i = 0; i < 20; i++)
		root = 0.5f * (root + (float)d->head_dim / root);
	must(gpu_step_set(c->step, NULL, &shape, c->map, &seq, 1, pos + n), "step");
	for (uint32_t layer = 0; layer < d->n_layers; layer++) {
		float *data = d->data + layer * d->tokens * (q + 2 * kv);
		float *k = data + d->tokens * q, *v = k + d->tokens * kv;
		const struct gpu_tensor tq = { data + pos * q, GPU_F32, (int64_t)q }, to = { out, GPU_F32, (int64_t)q };
		const struct gpu_tensor tk = { k + pos * kv, GPU_F32, (int64_t)kv }, tv = { v + pos * kv, GPU_F32, (int64_t)kv };

		must(gpu_append(c->step, NULL, layer, &tk, &tv), "append");
		must(gpu_attend(c->step, NULL, layer, &tq, &to, 1.0f / root, NULL), "attend");
	}
	free(out);
}

/* The window's end; after the last one all but `keep` slots are removed. */
static void window_end(struct cache *c, const struct dump *d, const struct evict_rule *rule, uint32_t pos, uint32_t n, uint32_t keep,
		       uint32_t recent)
{
	struct gpu_lane *lane = (void *)(c->table + gpu_table_lanes());
	struct gpu_plan *plan = calloc(c->head.n_lanes, sizeof(*plan));
	const struct gpu_turn turn = { .priv = c->table, .plan = plan, .n_lanes = c->head.n_lanes, .appended = n, .pos = (int32_t)pos,
				       .rule = *rule, .n_credit = c->n_arrays, .slot_type = GPU_F32, .head_dim = d->head_dim };
	const unsigned last = pos + n == d->tokens ? GPU_REMOVE : 0;

	assert(plan);
	for (uint32_t l = 0; l < c->head.n_lanes; l++)
		plan[l] = (struct gpu_plan){ .keep = last ? keep : pos + n, .recent = recent };
	must(gpu_select(c->dev, NULL, c->map, &turn, 1, GPU_SETTLE | GPU_FOLD | last, NULL), "select");
	for (uint32_t l = 0; l < c->head.n_lanes; l++)
		lane[l] = (struct gpu_lane){ .len = pos + n };
	free(plan);
}

static void print_kept(const struct cache *c, const struct dump *d)
{
	const uint32_t *credit = (const void *)(c->table + gpu_table_credits(&c->head));

	for (uint32_t l = 0; l < c->head.n_lanes; l++) {
		for (uint32_t i = 0; i < d->tokens; i++) {
			const uint32_t id = credit[l * c->head.max_blocks + i / GPU_BLOCK_SLOTS];
			const int32_t *pos = (const void *)gpu_at(gpu_map_bases(c->map), SLAB_SHIFT, id);

			if (pos[i % GPU_BLOCK_SLOTS] >= 0)
				printf("%d ", pos[i % GPU_BLOCK_SLOTS]);
		}
		printf("\n");
	}
}

int main(int argc, char **argv)
{
	struct evict_rule rule = { 0 };
	uint32_t keep, recent, pos = 0;
	struct cache c;
	struct dump d;
	char why[256];

	if (argc != 7) {
		fprintf(stderr, "usage: kept DUMP POLICY KEEP SINKS RECENT WINDOW,WINDOW,...\n");
		return 2;
	}
	d = dump_read(argv[1]);
	if (evict_parse(argv[2], &rule, why, sizeof(why))) {
		fprintf(stderr, "kept: %s\n", why);
		return 2;
	}
	keep = (uint32_t)strtoul(argv[3], NULL, 10);
	rule.sinks = (int32_t)strtol(argv[4], NULL, 10);
	recent = (uint32_t)strtoul(argv[5], NULL, 10);
	rule.group = d.group;
	c = cache_new(&d, &rule);
	for (char *at = argv[6]; *at;) {
		const uint32_t n = (uint32_t)strtoul(at, &at, 10);
		struct gpu_lane *lane = (void *)(c.table + gpu_table_lanes());

		at += *at == ',';
		must(n == 0 || n > d.tokens - pos || keep > d.tokens, "windows do not fit the dump");
		for (uint32_t l = 0; l < c.head.n_lanes; l++)
			lane[l].fresh = n;
		window_attend(&c, &d, pos, n);
		window_end(&c, &d, &rule, pos, n, keep, recent);
		pos += n;
	}
	must(pos != d.tokens, "windows do not fit the dump");
	print_kept(&c, &d);
	cache_free(&c);
	free(d.data);
	return 0;
}
