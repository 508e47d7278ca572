/*
 * Private to gpu/host/: the host device, its threads, and the table of kernels that each instruction set fills.
 *
 *   memory.c      slabs, copies, signals, maps
 *   pool.c        a few threads that share the items of one operation
 *   ops.c         open and close, steps, the operations: checks, scratch, sharing out
 *   kernels.h     the work on one item, written once over vec.h; kernels_ISA.c instantiate it
 */
#ifndef GPU_HOST_HOST_H
#define GPU_HOST_HOST_H

#include "gpu/backend.h"

#include <pthread.h>

#define HOST_MAX_THREADS 256u

/* Rows of queries (query x head) that one block of a many-query attend works on at once. */
#define HOST_BLOCK_ROWS 48u
#define HOST_TILE_ROWS 12u		/* the largest register tile of any instruction set */
#define HOST_FEW_HEADS 4u		/* heads of a group up to which one query has a kernel of its own */
#define HOST_MAX_DIM 256u
#define HOST_TILE_BYTES 16384u		/* V rows held as float32 at once */

/* Does item `item` of an operation with the worker's own scratch. */
typedef void (*host_work)(void *arg, unsigned item, unsigned worker);

struct host_pool;

struct host_scratch {
	char *at;
	size_t bytes;
};

struct host_device {
	struct gpu_device base;
	const struct host_kernels *kernels;
	unsigned n_threads;
	struct host_pool *pool;		/* NULL while n_threads is 1 */
	pthread_mutex_t select_lock;	/* one select at a time: it owns the scratch below */
	struct host_scratch select_scratch;
};

struct host_step {
	struct gpu_step base;
	unsigned max_seqs, max_rows, n_seqs;
	struct gpu_seq *seq;		/* [max_seqs] */
	struct gpu_shape shape;
	const struct gpu_map *map;	/* kept by the caller until the next step_set */
	uint32_t live_max;
	uint32_t n_max;			/* most tokens of one session in this step */
	unsigned n_workers;		/* workers that scratch has room for */
	size_t worker_bytes;
	struct host_scratch scratch;
};

/* One (session, KV head) of append, attend or observe. */
struct host_item {
	const struct host_step *step;
	const struct gpu_seq *seq;
	uint32_t layer, kv_head;
	const struct gpu_tensor *a, *b;	/* append: k, v; attend: q, out; observe: q */
	float scale;
	float *lse;
	const float *lse_in;
	uint32_t last;
	char *scratch;			/* worker_bytes of the step, 64-byte aligned */
};

/* One lane of select. */
struct host_select {
	const struct gpu_map *map;
	const struct gpu_turn *turn;
	uint32_t lane;
	unsigned what;
	int want_stats;
	double kept, leaving;		/* returned */
	uint64_t *keys;			/* scratch for live keys, twice; with DROP, REMOVE or COMPACT */
	uint64_t *heap;			/* scratch for victims + 1 keys and slots */
	int staged;			/* evict_is_staged() */
	char *stage;			/* the scratch that host_stage() divides, for staged policies and merges */
};

struct host_kernels {
	const char *isa;
	void (*append)(const struct host_item *it);
	void (*attend)(const struct host_item *it);
	void (*observe)(const struct host_item *it);
	void (*select)(struct host_select *sel);
};

extern const struct host_kernels host_kernels_plain;
#if defined(__x86_64__)
extern const struct host_kernels host_kernels_avx2;
extern const struct host_kernels host_kernels_avx512;
#endif

/* Queries that attend takes at once when a step has many; depends on the shape alone. */
static inline uint32_t host_block_queries(uint32_t group)
{
	return HOST_BLOCK_ROWS / group;
}

/* Room for the logits of one row, in floats: whole pages, an odd number of them so that rows do not meet in a cache set. */
static inline size_t host_row_floats(uint32_t live)
{
	return (size_t)(gpu_pages_for(live) | 1u) * GPU_PAGE_SLOTS;
}

/* One float for each page, in whole vectors. */
static inline size_t host_ref_floats(uint32_t live)
{
	return (gpu_pages_for(live) + 15u) / 16u * 16u;
}

/* Rows (query x head) that attend and observe need room for when no session has more than n_max tokens. */
static inline uint32_t host_rows(uint32_t group, uint32_t n_max)
{
	uint32_t queries = host_block_queries(group);
	uint32_t rows = (n_max < queries ? n_max : queries) * group;

	return (rows + HOST_TILE_ROWS - 1u) / HOST_TILE_ROWS * HOST_TILE_ROWS;
}

/* Scratch of one worker for attend and observe, in this order. Everything is a multiple of 64 bytes. */
struct host_room {
	float *logits;		/* [rows][host_row_floats(live)] */
	float *q;		/* [rows][d] */
	float *out;		/* [rows][d] */
	float *ref;		/* [HOST_FEW_HEADS][host_ref_floats(live)] */
	float *page;		/* [d][16]: one page of K, transposed */
	float *tile;		/* HOST_TILE_BYTES */
	unsigned char *hidden;	/* [pages]: no query of the block sees the page */
	size_t bytes;		/* of all of it */
};

static inline struct host_room host_room(char *at, const struct gpu_shape *sh, uint32_t live, uint32_t n_max)
{
	size_t rows = host_rows(sh->group, n_max), d = sh->head_dim, used = 0;
	struct host_room r;

	r.logits = (float *)(void *)(at + used);
	used += rows * host_row_floats(live) * sizeof(float);
	r.q = (float *)(void *)(at + used);
	used += rows * d * sizeof(float);
	r.out = (float *)(void *)(at + used);
	used += rows * d * sizeof(float);
	r.ref = (float *)(void *)(at + used);
	used += HOST_FEW_HEADS * host_ref_floats(live) * sizeof(float);
	r.page = (float *)(void *)(at + used);
	used += d * GPU_PAGE_SLOTS * sizeof(float);
	r.tile = (float *)(void *)(at + used);
	used += HOST_TILE_BYTES;
	r.hidden = (unsigned char *)(at + used);
	used += (gpu_pages_for(live) + 63u) / 64u * 64u;
	r.bytes = used;
	return r;
}

/* Scratch of one worker for a lane of a policy that is staged or merges, in this order. Everything is a multiple of 64 bytes. */
struct host_stage {
	uint64_t *key;		/* [2 * live] */
	uint32_t *order;	/* [live]: slots in the order of their positions */
	float *value, *pooled;	/* [whole blocks] */
	float *unit;		/* [live][d]: unit keys, for traits of the whole lane */
	float *row;		/* [17][d]: sums over the lane's rows */
	uint32_t *target;	/* [live]; this and the next for merges */
	uint8_t *leaves;	/* [live] */
	size_t bytes;		/* of all of it */
};

static inline struct host_stage host_stage(char *at, const struct gpu_turn *turn, uint32_t live)
{
	const size_t n = (size_t)gpu_blocks_for(live) * GPU_BLOCK_SLOTS, d = turn->head_dim;
	struct host_stage st;

	st.key = (uint64_t *)(void *)at;
	st.order = (uint32_t *)(st.key + 2 * n);
	st.value = (float *)(st.order + n);
	st.pooled = st.value + n;
	st.unit = st.pooled + n;
	st.row = st.unit + (evict_n_trait(turn->rule.policy) || turn->rule.merge ? n * d : 0);
	st.target = (uint32_t *)(st.row + 17 * d);
	st.leaves = (uint8_t *)(st.target + n);
	st.bytes = (size_t)((char *)st.leaves + n - at);
	return st;
}

/* Enlarges s to at least `bytes` (contents are lost). -ENOMEM leaves it as it was. */
int host_scratch_grow(struct host_scratch *s, size_t bytes);
void host_scratch_fini(struct host_scratch *s);

/*
 * host_run - do work(arg, item, worker) for every item in 0 .. n_items-1, in any order, on at most max_workers threads
 * (worker < max_workers); returns when all are done. The caller is worker 0 and may be the only one.
 */
void host_run(struct host_device *dev, unsigned n_items, unsigned max_workers, host_work work, void *arg);
int host_pool_new(struct host_pool **out, unsigned n_threads);
void host_pool_free(struct host_pool *pool);

/* ops.c and memory.c: the members of gpu_host_backend. */
int host_slab_new(struct gpu_device *dev, size_t bytes, int shared, struct gpu_slab *slab);
void host_slab_free(struct gpu_device *dev, struct gpu_slab *slab);
int host_slab_import(struct gpu_device *dev, const uint8_t *handle, int fd, size_t bytes, void **base);
void host_slab_unmap(struct gpu_device *dev, void *base, size_t bytes);
int host_stream_new(struct gpu_device *dev, int apart, gpu_stream *out);
void host_stream_free(struct gpu_device *dev, gpu_stream s);
int host_sync(struct gpu_device *dev, gpu_stream s);
int host_copy(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes);
int host_scrub(struct gpu_device *dev, gpu_stream s, void *dst, size_t bytes);
int host_notify(struct gpu_device *dev, gpu_stream s, int eventfd);
int host_register(struct gpu_device *dev, void *ptr, size_t bytes);
void host_unregister(struct gpu_device *dev, void *ptr);
int host_signal(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[]);
int host_await(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[]);
int host_alloc(struct gpu_device *dev, size_t bytes, void **out);
void host_free(struct gpu_device *dev, void *ptr);
int host_map_new(struct gpu_device *dev, unsigned max_slabs, unsigned slab_shift, struct gpu_map **out);
void host_map_free(struct gpu_device *dev, struct gpu_map *map);
int host_map_set(struct gpu_map *map, gpu_stream s, unsigned slab, void *base);

#endif
