#include "tests/lib/world.h"

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
#include <sys/wait.h>
#include <unistd.h>

/*
 * What lies where nothing was put. Rows of K and V, by the world: NaN, which 0 * V must not let through, or large finite numbers,
 * which must not get a probability (a NaN may vanish in a maximum). Positions there are -1, so that no query is too early for them.
 */
#define POISON 0xff		/* NaN in every type; -1 as a position or id */
#define POISON_FINITE 0x4b	/* 1.3e7 as float32 and bfloat16, 14.6 as float16 */

enum { CLASS_PAGE, CLASS_BLOCK, CLASS_CREDIT, CLASS_TABLE, CLASS_PRIVATE };

struct world_class {
	size_t bytes;
	int shared, poison;
	uint32_t n_free;
	uint32_t *free;		/* ids, shuffled */
};

/* --- devices and programs --------------------------------------------------------------------------------------------- */

static const char *device_name(void)
{
	const char *name = getenv("EBB_TEST_DEVICE");

	return name && *name ? name : "host";
}

struct gpu_device *world_device(void)
{
	static struct gpu_device *dev;
	int rc;

	if (dev)
		return dev;
	rc = gpu_open(&dev, device_name());
	if (rc == -ENODEV || rc == -ENOTSUP) {
		fprintf(stderr, "%s: no such device here (%s): skipped\n", device_name(), strerror(-rc));
		exit(WORLD_SKIP);
	}
	if (rc) {
		fprintf(stderr, "%s: %s\n", device_name(), strerror(-rc));
		exit(1);
	}
	return dev;
}

uint32_t world_types(void)
{
	return gpu_can_store(world_device(), GPU_Q4) ? GPU_Q4 + 1u : GPU_Q8 + 1u;
}

int world_is_cuda(void)
{
	return strncmp(device_name(), "cuda:", 5) == 0;
}

/* The program once more, with EBB_ISA set and told not to do so again. */
static int run_self(char **argv, const char *isa)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return 1;
	if (pid == 0) {
		setenv("EBB_ISA", isa, 1);
		setenv("EBB_TEST_ISA", isa, 1);
		execv("/proc/self/exe", argv);
		_exit(1);
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int world_main(int argc, char **argv, int (*run)(void))
{
	static const char *const isa[] = { "plain", "avx2", "avx512" };
	const char *asked = getenv("EBB_TEST_ISA");
	unsigned last = 0;
	int failed = 0;

	(void)argc;
	if (world_is_cuda())
		return run();
	if (asked || getenv("EBB_ISA")) {
		if (asked && strcmp(asked, gpu_host_isa()) != 0) {
			fprintf(stderr, "EBB_ISA=%s was asked for, but the host runs %s\n", asked, gpu_host_isa());
			return 1;
		}
		fprintf(stderr, "# host, %s\n", gpu_host_isa());
		return run();
	}
	while (last < 2 && strcmp(isa[last], gpu_host_isa()) != 0)
		last++;
	for (unsigned i = 0; i <= last; i++)
		failed |= run_self(argv, isa[i]);
	return failed;
}

/* --- random numbers ----------------------------------------------------------------------------------------------------- */

uint64_t world_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

uint32_t world_below(uint64_t *state, uint32_t n)
{
	assert_true(n > 0);
	return (uint32_t)((world_random(state) >> 32) * n >> 32);
}

float world_normal(uint64_t *state)
{
	const uint64_t bits = world_random(state);
	float sum = 0.0f;

	for (int i = 0; i < 4; i++)	/* four uniform numbers in [0, 1): mean 2, variance 1/3 */
		sum += (float)(bits >> (16 * i) & 0xffff) / 65536.0f;
	return (sum - 2.0f) * 1.7320508f;
}

static void shuffle_ids(uint64_t *state, uint32_t *id, uint32_t n)
{
	for (uint32_t i = n; i > 1; i--) {
		const uint32_t j = world_below(state, i), kept = id[i - 1];

		id[i - 1] = id[j];
		id[j] = kept;
	}
}

static void *zeroed(size_t n, size_t bytes)
{
	void *p = calloc(n ? n : 1, bytes ? bytes : 1);

	assert_non_null(p);
	return p;
}

/* --- places --------------------------------------------------------------------------------------------------------------- */

static uint32_t slab_add(struct world *w, int shared, int poison)
{
	const size_t bytes = (size_t)1 << WORLD_SLAB_SHIFT;
	uint32_t index;

	assert_true(w->n_slabs + 1 < WORLD_MAX_SLABS);	/* the last of the order is never mapped */
	index = w->slab_order[w->n_slabs++];
	assert_int_equal(gpu_slab_new(w->dev, bytes, shared, &w->slab[index]), 0);
	w->image[index] = malloc(bytes);
	w->actual[index] = malloc(bytes);
	assert_non_null(w->image[index]);
	assert_non_null(w->actual[index]);
	memset(w->image[index], poison, bytes);
	assert_int_equal(gpu_map_set(w->map, w->stream, index, w->slab[index].base), 0);
	return index;
}

static struct world_class *class_new(size_t bytes, int shared)
{
	struct world_class *c = zeroed(1, sizeof(*c));

	c->bytes = (bytes + GPU_UNIT - 1) / GPU_UNIT * GPU_UNIT;
	c->shared = shared;
	c->poison = POISON;
	assert_true(c->bytes <= (size_t)1 << WORLD_SLAB_SHIFT);
	return c;
}

/* A place of the class; two slabs at a time, so that neighbours in a lane lie in different slabs. */
static uint32_t place_new(struct world *w, struct world_class *c)
{
	const uint32_t per_slab = (uint32_t)(((size_t)1 << WORLD_SLAB_SHIFT) / c->bytes);

	if (!c->n_free) {
		free(c->free);
		c->free = zeroed(2 * per_slab, sizeof(uint32_t));
		for (int i = 0; i < 2; i++) {
			const uint64_t at = (uint64_t)slab_add(w, c->shared, c->poison) << WORLD_SLAB_SHIFT;

			for (uint32_t j = 0; j < per_slab; j++)
				c->free[c->n_free++] = (uint32_t)((at + j * c->bytes) / GPU_UNIT);
		}
		shuffle_ids(&w->random_place, c->free, c->n_free);
	}
	return c->free[--c->n_free];
}

uint8_t *world_byte(uint8_t *const *image, uint32_t id)
{
	const uint64_t at = (uint64_t)id * GPU_UNIT;

	assert_non_null(image[at >> WORLD_SLAB_SHIFT]);
	return image[at >> WORLD_SLAB_SHIFT] + (at & (((uint64_t)1 << WORLD_SLAB_SHIFT) - 1));
}

static void *device_address(struct world *w, uint32_t id)
{
	const uint64_t at = (uint64_t)id * GPU_UNIT;

	return (char *)w->slab[at >> WORLD_SLAB_SHIFT].base + (at & (((uint64_t)1 << WORLD_SLAB_SHIFT) - 1));
}

struct world_place world_at(struct world *w, uint8_t *const *image, unsigned session, uint32_t lane, uint32_t slot)
{
	const struct world_session *s = &w->session[session];
	const struct gpu_table *t = &s->model.table;
	const struct gpu_parts part = gpu_page_parts(s->model.shape.slot_type, s->model.shape.head_dim);
	const uint32_t in_page = slot % GPU_PAGE_SLOTS, in_block = slot % GPU_BLOCK_SLOTS;
	uint8_t *page = world_byte(image, s->page[lane * t->max_pages + slot / GPU_PAGE_SLOTS]);
	uint8_t *block = world_byte(image, s->block[lane * t->max_blocks + slot / GPU_BLOCK_SLOTS]);
	uint8_t *credit = world_byte(image, s->credit[lane * t->max_blocks + slot / GPU_BLOCK_SLOTS]);
	struct world_place p = {
		.k = page + in_page * part.bytes[0], .v = page + part.at[1] + in_page * part.bytes[1],
		.pos = block + in_block * 4, .own_pos = credit + in_block * 4,
	};

	if (part.bytes[2])
		p.k_param = page + part.at[2] + in_page * 4;
	if (part.bytes[3])
		p.v_param = page + part.at[3] + in_page * 4;
	for (uint32_t i = 0; i < t->n_heat; i++)
		p.heat[i] = block + (i + 1) * GPU_BLOCK_SLOTS * 4 + in_block * 4;
	for (uint32_t i = 0; i < s->model.n_credit; i++)
		p.credit[i] = credit + (i + 1) * GPU_BLOCK_SLOTS * 4 + in_block * 4;
	return p;
}

void world_room(struct world *w, unsigned session, uint32_t lane, uint32_t slots)
{
	struct world_session *s = &w->session[session];
	uint32_t *page = &s->page[lane * s->model.table.max_pages], *block = &s->block[lane * s->model.table.max_blocks];
	uint32_t *credit = &s->credit[lane * s->model.table.max_blocks];

	assert_true(slots <= s->model.max_slots);
	for (uint32_t i = 0; i < gpu_pages_for(slots); i++)
		if (page[i] == w->nowhere)
			page[i] = place_new(w, w->places[CLASS_PAGE]);
	for (uint32_t i = 0; i < gpu_blocks_for(slots); i++) {
		if (block[i] != w->nowhere)
			continue;
		block[i] = place_new(w, w->places[CLASS_BLOCK]);
		credit[i] = place_new(w, w->places[CLASS_CREDIT]);
	}
}

/* --- worlds ---------------------------------------------------------------------------------------------------------------- */

static void session_new(struct world *w, unsigned index)
{
	struct world_session *s = &w->session[index];
	const struct world_spec *spec = &w->spec;
	struct gpu_table *t = &s->model.table;

	*t = (struct gpu_table){
		.n_lanes = spec->n_layers * spec->shape.n_kv_heads, .window = spec->window,
		.max_pages = gpu_pages_for(spec->max_slots), .max_blocks = gpu_blocks_for(spec->max_slots),
		.n_heat = spec->n_heat, .heat = { spec->heat[0], spec->heat[1] }, .observe = spec->observe,
	};
	s->model.shape = spec->shape;
	s->model.max_slots = spec->max_slots;
	s->model.n_credit = spec->n_credit;
	oracle_session_init(&s->model);
	for (uint32_t i = 0; i < t->n_lanes * spec->max_slots; i++) {	/* as the poisoned memory reads */
		struct oracle_slot *slot = &s->model.lane[i / spec->max_slots].slot[i % spec->max_slots];

		slot->pos = slot->own_pos = -1;
		memset(slot->credit, POISON, sizeof(slot->credit));
	}
	s->page = zeroed((size_t)t->n_lanes * t->max_pages, sizeof(uint32_t));
	s->block = zeroed((size_t)t->n_lanes * t->max_blocks, sizeof(uint32_t));
	s->credit = zeroed((size_t)t->n_lanes * t->max_blocks, sizeof(uint32_t));
	for (uint32_t i = 0; i < t->n_lanes * t->max_pages; i++)
		s->page[i] = w->nowhere;
	for (uint32_t i = 0; i < t->n_lanes * t->max_blocks; i++)
		s->block[i] = s->credit[i] = w->nowhere;
	if (!index) {
		w->places[CLASS_TABLE] = class_new(gpu_table_bytes(t), 1);
		w->places[CLASS_PRIVATE] = class_new(gpu_table_private_bytes(t), 0);
	}
	s->table_id = place_new(w, w->places[CLASS_TABLE]);
	s->priv_id = place_new(w, w->places[CLASS_PRIVATE]);
	s->table = device_address(w, s->table_id);
	s->priv = device_address(w, s->priv_id);
}

static void rows_new(struct world *w)
{
	const uint32_t d = w->spec.shape.head_dim, row = oracle_row_room(&w->spec.shape);
	float x[256];

	for (uint32_t which = 0; which < 2; which++)
		w->rows[which] = zeroed(WORLD_ROWS, row);
	for (uint32_t i = 0; i < WORLD_ROWS; i++) {
		for (uint32_t c = 0; c < d; c++)
			x[c] = w->spec.spread * world_normal(&w->random);
		for (uint32_t which = 0; which < 2; which++)
			oracle_row_store(gpu_row_type(w->spec.shape.slot_type, which), d, x, &w->rows[which][i * row], &w->row_param[i]);
	}
}

struct world *world_new(const struct world_spec *spec)
{
	struct world *w = zeroed(1, sizeof(*w));

	w->dev = world_device();
	w->spec = *spec;
	w->random = spec->seed;
	w->random_place = spec->places;
	if (w->spec.spread == 0.0f)
		w->spec.spread = 1.0f;
	assert_int_equal(gpu_stream_new(w->dev, &w->stream), 0);
	assert_int_equal(gpu_map_new(w->dev, WORLD_MAX_SLABS, WORLD_SLAB_SHIFT, &w->map), 0);
	assert_int_equal(gpu_step_new(w->dev, WORLD_MAX_SESSIONS, spec->max_rows ? (unsigned)spec->max_rows : 1024, &w->step), 0);
	for (uint32_t i = 0; i < WORLD_MAX_SLABS; i++)
		w->slab_order[i] = i;
	shuffle_ids(&w->random_place, w->slab_order, WORLD_MAX_SLABS);
	w->nowhere = w->slab_order[WORLD_MAX_SLABS - 1] << (WORLD_SLAB_SHIFT - 7);
	w->places[CLASS_PAGE] = class_new(gpu_page_bytes(spec->shape.slot_type, spec->shape.head_dim), 1);
	if (spec->places % 2)
		w->places[CLASS_PAGE]->poison = POISON_FINITE;
	w->places[CLASS_BLOCK] = class_new(gpu_block_bytes(spec->n_heat), 1);
	w->places[CLASS_CREDIT] = class_new(gpu_block_bytes(spec->n_credit), 0);
	rows_new(w);
	for (unsigned i = 0; i < spec->n_sessions; i++)
		session_new(w, i);
	return w;
}

void world_free(struct world *w)
{
	gpu_sync(w->dev, w->stream);
	gpu_step_free(w->dev, w->step);
	for (uint32_t i = 0; i < w->n_slabs; i++) {
		const uint32_t index = w->slab_order[i];

		gpu_map_set(w->map, w->stream, index, NULL);
		gpu_sync(w->dev, w->stream);
		gpu_slab_free(w->dev, &w->slab[index]);
		free(w->image[index]);
		free(w->actual[index]);
	}
	free(w->rows[0]);
	free(w->rows[1]);
	gpu_map_free(w->dev, w->map);
	gpu_stream_free(w->dev, w->stream);
	for (unsigned i = 0; i < w->spec.n_sessions; i++) {
		oracle_session_fini(&w->session[i].model);
		free(w->session[i].page);
		free(w->session[i].block);
		free(w->session[i].credit);
	}
	for (unsigned i = 0; i < 5; i++) {
		free(w->places[i]->free);
		free(w->places[i]);
	}
	free(w);
}

/* `len` distinct positions below pos, ascending: pos - len .. pos - 1 with older ones mixed in when there are any. */
static void positions(struct world *w, int32_t *at, uint32_t len, int32_t pos)
{
	uint32_t left = (uint32_t)pos, wanted = len, n = 0;

	for (int32_t p = 0; wanted; p++, left--)	/* selection sampling */
		if (world_below(&w->random, left) < wanted) {
			at[n++] = p;
			wanted--;
		}
}

void world_lane(struct world *w, unsigned session, uint32_t lane, uint32_t len, uint32_t fresh, int32_t pos, int shuffle)
{
	struct world_session *s = &w->session[session];
	struct oracle_lane *l = &s->model.lane[lane];
	const uint32_t row = oracle_row_room(&s->model.shape);
	uint32_t *order = zeroed((size_t)len + 1, sizeof(uint32_t));

	assert_true(len <= (uint32_t)pos && len + fresh <= s->model.max_slots);
	world_room(w, session, lane, len + fresh);
	s->pos = pos;
	l->head = (struct gpu_lane){ .len = len, .fresh = fresh };
	positions(w, (int32_t *)order, len, pos);
	if (shuffle)
		shuffle_ids(&w->random, order, len);
	for (uint32_t i = 0; i < len; i++) {
		struct oracle_slot *slot = &l->slot[i];

		const uint32_t k = world_below(&w->random, WORLD_ROWS), v = world_below(&w->random, WORLD_ROWS);

		memcpy(&l->k[i * row], &w->rows[0][k * row], row);
		memcpy(&l->v[i * row], &w->rows[1][v * row], row);
		slot->k_param = w->row_param[k];
		slot->v_param = w->row_param[v];
		slot->pos = slot->own_pos = (int32_t)order[i];
		for (uint32_t h = 0; h < GPU_MAX_HEAT; h++)
			slot->heat[h] = (double)((float)world_below(&w->random, 1000) / 256.0f);
		for (uint32_t h = 0; h < GPU_MAX_CREDIT; h++)
			slot->credit[h] = (float)world_below(&w->random, 50) / 3.0f;	/* few values: many ties */
	}
	for (uint32_t i = 0; i < len; i++)
		order[i] = i;
	shuffle_ids(&w->random, order, len);
	for (uint32_t j = 0; j < s->model.table.window; j++)
		l->next[j] = j < len ? order[j] : UINT32_MAX;
	free(order);
}
