/*
 * A pool with made-up sessions on any device, for tests: pages scattered at random over slabs, ragged lanes, shared and private
 * tables, everything else poisoned. Contents are a function of the seed. Device memory is reached through gpu_write and
 * gpu_read only. Every slab has an image here on the host:
 *
 *	world_put(w)    models -> images -> device
 *	...             operations on the device; the oracle's on the models
 *	world_check(w)  device -> actual; models -> expected images; every byte of every slab is compared
 *
 * Heat is compared with a tolerance, bytes that an operation leaves open (open_to, WORLD_OPEN in next[]) not at all.
 * Failures assert through cmocka. Single-threaded.
 */
#ifndef TESTS_LIB_WORLD_H
#define TESTS_LIB_WORLD_H

#include "tests/lib/oracle.h"

#define WORLD_SLAB_SHIFT 18u
#define WORLD_MAX_SLABS 1024u
#define WORLD_MAX_SESSIONS 8u
#define WORLD_ROWS 509u		/* different rows that K and V of filled lanes are drawn from: rounding each anew takes too long */
#define WORLD_SKIP 77
#define WORLD_OPEN 0xfffffffeu		/* in a model's next[]: not compared */

struct world_spec {
	struct gpu_shape shape;
	uint32_t n_layers, n_sessions;
	uint32_t window, max_slots;
	uint32_t n_heat, heat[GPU_MAX_HEAT], observe, n_credit;
	uint64_t seed;			/* of contents */
	uint64_t places;		/* of page ids and slabs */
	uint32_t untold;		/* 1: steps do not say that no slot is later than their queries */
	float spread;			/* size of K and V; 0: 1 */
	int max_rows;			/* of a step; 0: 1024 */
};

struct world_class;			/* the places of one size */

struct world_session {
	struct oracle_session model;
	uint32_t *page, *block, *credit;	/* [n_lanes][max_pages or max_blocks], as in the tables */
	uint32_t table_id, priv_id;
	void *table, *priv;		/* device addresses */
	int32_t pos;			/* of the next token */
	uint32_t used;			/* of the window */
	uint32_t open_to;		/* slots from len to here may hold anything (compaction left them) */
	int shared_stays;		/* the shared table is not what the model says, but what it was */
};

struct world {
	struct gpu_device *dev;
	gpu_stream stream;
	struct gpu_map *map;
	struct gpu_step *step;
	struct world_spec spec;
	struct world_session session[WORLD_MAX_SESSIONS];
	uint64_t random, random_place;	/* states of the generators */
	uint32_t slab_order[WORLD_MAX_SLABS];	/* a permutation: the n-th slab made has this index */
	uint32_t n_slabs;
	struct gpu_slab slab[WORLD_MAX_SLABS];	/* by index */
	uint8_t *image[WORLD_MAX_SLABS], *actual[WORLD_MAX_SLABS];
	struct world_class *places[5];	/* pages, blocks, credit blocks, tables, private tables */
	uint32_t nowhere;		/* an id in a slab that is not mapped */
	uint8_t *rows[2];		/* K's and V's: [WORLD_ROWS], as stored */
	uint32_t row_param[WORLD_ROWS];
};

/* Where one slot's parts lie in an image. */
struct world_place {
	uint8_t *k, *v, *k_param, *v_param, *pos, *own_pos;
	uint8_t *heat[GPU_MAX_HEAT], *credit[GPU_MAX_CREDIT];
};

/*
 * The device named by EBB_TEST_DEVICE (default "host"); ends the program with 77 when there is none such.
 * world_is_cuda() - 1 for a CUDA device. Both may be called at any time; the device lives until the program ends.
 */
struct gpu_device *world_device(void);
int world_is_cuda(void);
/* How many of enum gpu_type, from 0 on, the device stores. */
uint32_t world_types(void);

/*
 * world_main - run the tests on the device: on the host once per instruction set that this machine has (the program runs itself
 * with EBB_ISA set), on CUDA once. Returns what main() shall return. cmocka's groups go into `run`.
 */
int world_main(int argc, char **argv, int (*run)(void));

/* splitmix64 over a state; world_below: 0 .. n-1; world_normal: roughly, sum of uniform numbers, variance 1. */
uint64_t world_random(uint64_t *state);
uint32_t world_below(uint64_t *state, uint32_t n);
float world_normal(uint64_t *state);

struct world *world_new(const struct world_spec *spec);
void world_free(struct world *w);

/*
 * world_lane - fill a lane: `len` live slots with contents, distinct positions below `pos` (shuffled over the slots when `shuffle`),
 * `fresh` new slots for the window's tokens; the window's other tokens overwrite distinct random slots.
 */
void world_lane(struct world *w, unsigned session, uint32_t lane, uint32_t len, uint32_t fresh, int32_t pos, int shuffle);
/* Makes sure that pages and blocks for `slots` slots are in the lane's table. */
void world_room(struct world *w, unsigned session, uint32_t lane, uint32_t slots);

void world_put(struct world *w);
/* After operations: |heat - expected| <= absolute + relative * expected; all else must be equal. Reads the device. */
void world_check(struct world *w, double heat_relative, double heat_absolute);
void world_pull(struct world *w);	/* device -> actual, without comparing */
struct world_place world_at(struct world *w, uint8_t *const *image, unsigned session, uint32_t lane, uint32_t slot);
uint8_t *world_byte(uint8_t *const *image, uint32_t id);

/* --- tensors and steps --------------------------------------------------------------------------------------------------- */

struct world_tensor {
	struct gpu_tensor device, host;	/* the same contents */
	struct gpu_slab slab;
	size_t bytes;
};

/* Random contents of size `spread`; columns beyond `width` and all of an output (spread 0) are poison (NaN bytes). */
void world_tensor_new(struct world *w, struct world_tensor *t, uint32_t rows, uint32_t width, uint32_t type, uint32_t pad, float spread);
void world_tensor_read(struct world *w, struct world_tensor *t);	/* device -> host */
void world_tensor_free(struct world *w, struct world_tensor *t);

/*
 * world_fill - fill all lanes of a session, with lengths drawn from len[], for a window in which `tokens` are appended; some
 * lanes have only fresh slots, some none, some both.
 */
void world_fill(struct world *w, unsigned session, const uint32_t *len, unsigned n_len, uint32_t tokens);

/* The step of all sessions with n[i] tokens each, rows in an order of their own with gaps. Returns the number of rows. */
uint32_t world_step(struct world *w, const uint32_t *n, struct gpu_seq *seq, struct oracle_seq *oracle);
uint32_t world_live_max(const struct world *w, const uint32_t *n);

/* A device buffer; poisoned. */
struct world_buffer {
	struct gpu_slab slab;
	size_t bytes;
};
void world_buffer_new(struct world *w, struct world_buffer *b, size_t bytes);
void world_buffer_free(struct world *w, struct world_buffer *b);

#endif
