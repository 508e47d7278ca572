/*
 * Private to gpu/cuda/: the backend's structs, the staging ring, error translation, and the device functions that all
 * operations share (addresses, element conversions).
 */
#ifndef GPU_CUDA_COMMON_CUH
#define GPU_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <errno.h>
#include <pthread.h>

#include "gpu/cuda/cuda.h"

/*
 * Host data on its way to the device waits in a ring of pinned segments; each has an event that says when the
 * device is done with it. 8 MiB: more than any step or turn sends, so a segment is free again long before its turn.
 */
#define CUDA_RING_SEGMENTS 256u
#define CUDA_SEGMENT_BYTES 32768u
#define CUDA_LEASE_MAX ((size_t)CUDA_RING_SEGMENTS / 2u * CUDA_SEGMENT_BYTES)

struct cuda_device {
	struct gpu_device base;
	int n_sm;			/* multiprocessors */
	int major;			/* of the compute capability */
	size_t shared_block, shared_sm;	/* bytes of shared memory: of a block at most, of a multiprocessor */
	int wide;			/* can attend_wide.cu run? */
	pthread_mutex_t lock;		/* the ring: held from cuda_lease() to cuda_unlease() */
	char *ring;			/* pinned, CUDA_RING_SEGMENTS * CUDA_SEGMENT_BYTES */
	char *twin;			/* device memory of the same size, for what kernels read in place */
	cudaEvent_t done[CUDA_RING_SEGMENTS];
	unsigned next;			/* segment to hand out next */
	cudaMemPool_t scratch;		/* of cuda_scratch(), under the lock; NULL until then */
	cudaEvent_t order;		/* of cuda_order() */
	struct cuda_piece *piece;	/* host memory given out by cuda_host_alloc(), under the lock: [n_pieces], kept until the device is closed */
	unsigned n_pieces;
};

struct cuda_piece {
	void *at;
	size_t bytes;
	bool free;
};

/* A stretch of the ring. Taken and returned by the same thread; nothing that waits for the device may lie between. */
struct cuda_lease {
	char *host;
	char *dev;			/* its device twin */
	unsigned first, n;		/* segments */
};

/*
 * cuda_lease - room for `bytes` (<= CUDA_LEASE_MAX, else -E2BIG). Waits for the device only when the ring is full.
 * cuda_unlease - marks the room as free once the work so far enqueued on `s` has finished.
 */
int cuda_lease(struct cuda_device *dev, size_t bytes, struct cuda_lease *out);
int cuda_unlease(struct cuda_device *dev, cudaStream_t s, const struct cuda_lease *lease);

/*
 * cuda_scratch - device memory for what is enqueued on `s` from now on, until cudaFreeAsync() there. Within a lease. It comes from a pool of the
 * device's own that keeps what it has had. -ENOMEM.
 */
int cuda_scratch(struct cuda_device *dev, cudaStream_t s, size_t bytes, void **out);

int cuda_errno(cudaError_t e);			/* also clears an error that does not stick */
int cuda_use(const struct gpu_device *dev);	/* makes dev the calling thread's current device */

struct cuda_map {
	struct gpu_map base;
	void **bases;			/* device copy of base.base */
};

/* A pool as a kernel sees it. */
struct cuda_view {
	void *const *base;
	uint32_t n_slabs, shift;
};

struct cuda_tile {			/* up to tile_rows (query, head) pairs of one session and KV head */
	uint32_t seq, row0;		/* row0: index of the first pair; pair = token * group + head */
};

struct cuda_token {
	uint32_t seq, j;
};

#define CUDA_TILE_ROWS 16		/* a whole group (1 .. 16) of one query always fits */
#define CUDA_FEW_ROWS 4		/* of a tile: attend treats smaller ones in another way than larger ones */
#define CUDA_CHUNK GPU_BLOCK_SLOTS	/* slots whose softmax is finished before it is merged: fixed, see attend.cu */

/* How attend on tensor cores shares out a step. */
struct cuda_mma {
	uint32_t cluster;		/* CTAs of a lane */
	uint32_t shared_bytes, heat_floats;	/* of a CTA; of a row of logits in it, 0: they go to scratch */
	uint32_t rows;			/* pairs of the largest tile */
	uint32_t at_once;		/* CTAs that run side by side on the whole device */
	uint32_t tiles;			/* of a launch at most: as many as scratch has room for the logits of */
	int single;			/* no session has more than one tile */
	int ordered;			/* the longest lanes come first; only if single */
};

/* A lane of a step, as attend needs it: worked out once a step for all layers, so that attend's first page is two loads away. */
struct cuda_item {
	const uint32_t *page, *block;	/* the lane's rows of ids */
	uint32_t live;			/* slots, this step's tokens included */
	uint32_t fresh_page;		/* that this step's token is written to; ~0 unless there is exactly one token */
	uint32_t row, n;		/* as in struct gpu_seq; n = 0: there is no such lane */
	int32_t pos;
	uint32_t tile;
	uint16_t kv_head;
	uint8_t n_heat, any_heat;	/* as in struct gpu_table; does any lane of the layer take heat in this step? CUDA_HEAT_NOW, CUDA_HEAT_LATER */
	uint32_t heat[GPU_MAX_HEAT], observe;
	int32_t heat_from;		/* as in struct gpu_seq */
	uint32_t kept;			/* the same; 0 also where the query gives no heat, or not the kind that can be taken later */
};

enum { CUDA_HEAT_NOW = 1, CUDA_HEAT_LATER = 2 };

/*
 * What gpu_keep() made room for: [layer][room][kv head][place][head of the group], a query's head_dim numbers as they came, and its log-sum-exp,
 * to the base 2 and with the scale in it; CUDA_KEPT_NONE: nothing is kept there.
 */
struct cuda_keep {
	uint16_t *q;
	float *lse;
	struct gpu_kept *list;		/* of gpu_heat_kept() on its way */
	struct gpu_shape shape;
	uint32_t n_layers, rooms, depth;
};

#define CUDA_KEPT_NONE 3.3961514e38f	/* 0x7f7f7f7f */

#define CUDA_LAYERS 256u		/* of a model at most */

struct cuda_step {
	struct gpu_step base;
	unsigned max_seqs, max_rows;
	struct gpu_shape shape;
	struct cuda_view view;
	unsigned n_seqs, n_tokens, n_tiles, n_wide;
	int few_rows, many_rows;	/* are there tiles of at most CUDA_FEW_ROWS rows, and of more? */
	uint32_t live_max;
	int newest;			/* one query a session, and no live slot is later: see struct gpu_seq */
	uint64_t pairs, tile_pairs;	/* (query, head) pairs of the largest session, and of the largest that has tiles */
	uint32_t n_splits;		/* > 1: a CTA takes one chunk and combine() merges; 1: a CTA takes all chunks */
	struct cuda_mma mma;		/* slots other than float32 */
	char *lists;			/* device: gpu_seq[max_seqs], cuda_tile[max_seqs + max_rows], cuda_token[max_rows], cuda_tile[max_rows] */
	const struct gpu_seq *seq;	/* into lists */
	const struct cuda_tile *tile, *wide;	/* wide: of the sessions that attend_wide.cu takes, which have none in tile[] */
	const struct cuda_token *token;
	float *lse;			/* when the caller wants none */
	size_t lse_bytes;
	float *partial;			/* [tile][kv head][split]: max[16], sum[16], out[16][head_dim] */
	size_t partial_bytes;
	/*
	 * Logits that attend leaves for its heat, when every session fits into one tile: [tile][kv head][kept_rows][kept_slots].
	 * kept_rows 0: not kept, heat computes them again, to the same bits.
	 */
	float *logits;
	size_t logits_bytes;
	uint32_t kept_rows, kept_slots;
	struct cuda_item *item;		/* [CUDA_LAYERS][kv head * (single ? tile : session)] */
	size_t item_bytes;
	struct cuda_keep keep;
	int first;			/* nothing has been launched since step_set: what comes must wait for its kernels */
	uint64_t key;			/* of all the above, as step_set left it: whatever launches depend on is in this struct */
	float keep_scale;		/* of the queries that are kept, times log2(e); 0: none has been yet */
	uint32_t keep_type;		/* and their type */
};

static inline struct cuda_device *cuda_dev(struct gpu_device *dev) { return (struct cuda_device *)dev; }
static inline cudaStream_t cuda_stream(gpu_stream s) { return (cudaStream_t)s; }
static inline struct cuda_view cuda_view_of(const struct gpu_map *map)
{
	struct cuda_view v = { ((const struct cuda_map *)map)->bases, map->max_slabs, map->slab_shift };

	return v;
}

/*
 * attend.cu asks observe.cu (heat_mma.cu) for heat that it does not take itself. observed: 1: the tables' observe decides; 0: the last
 * `last` queries.
 * done_pairs: sessions of up to so many (query, head) pairs are left alone.
 */
int cuda_heat(struct cuda_step *step, cudaStream_t s, uint32_t layer, const struct gpu_tensor *q, const float *lse,
	      float scale, int observed, uint32_t last, uint32_t done_pairs);

/* keep.cu: queries of the layer, and their log-sum-exps; false: attend must take heat at once. scale: times log2(e). */
bool cuda_keeps(struct cuda_step *step, uint32_t layer, const struct gpu_tensor *q, float scale, uint16_t **kept_q, float **kept_lse);

void cuda_keep_free(struct cuda_step *step);	/* what cuda_keep() made room for */

/* attend_f32.cu */
cudaError_t cuda_attend_f32(const struct cuda_step *st, cudaStream_t s, uint32_t layer, const struct gpu_tensor *q,
			    const struct gpu_tensor *out, float scale, float *lse);

/*
 * attend.cu: how the step will be shared out, and room for it; called before the step changes. cuda_mma_items() enqueues what fills item[].
 * pairs: of the largest session. Rows of a tile for a shape: cuda_tile_rows(). cuda_early(): may the step's next kernel begin before the one in
 * front of it has ended?
 */
uint32_t cuda_tile_rows(const struct gpu_shape *shape);
int cuda_mma_plan(struct cuda_step *st, const struct gpu_shape *shape, unsigned n_seqs, unsigned n_tiles, uint64_t pairs, uint32_t live_max,
		  struct cuda_mma *out);
int cuda_mma_items(struct cuda_step *st, cudaStream_t s);
static inline bool cuda_early(struct cuda_step *st)
{
	bool early = !st->first && cuda_dev(st->base.dev)->major >= 9;

	st->first = 0;
	return early;
}
int cuda_grow(void **at, size_t *have, size_t need);	/* scratch that only grows, by halves at least */

/* Queries have more digits than slots: tensor cores then take them as a sum of two. */
static inline bool cuda_exact_queries(uint32_t slot_type, uint32_t q_type)
{
	return q_type == GPU_F32 || (q_type == GPU_F16 && slot_type == GPU_BF16);
}

#ifdef __CUDACC__

/* Address of a page or block, NULL when the id lies outside the pool or in a slab that is not mapped. */
static __device__ __forceinline__ char *cuda_at(const struct cuda_view &v, uint32_t id)
{
	uint64_t at = (uint64_t)id * GPU_UNIT, slab = at >> v.shift;
	char *base = slab < v.n_slabs ? (char *)__ldg((const unsigned long long *)v.base + slab) : NULL;

	return base ? base + (at & ((1ull << v.shift) - 1ull)) : NULL;
}

static __device__ __forceinline__ const uint32_t *cuda_u32(const void *table, size_t offset)
{
	return (const uint32_t *)((const char *)table + offset);
}

/* Slots that a lane's table can name: nothing beyond is ever touched. */
static __device__ __forceinline__ uint32_t cuda_slots(const struct gpu_table *t)
{
	uint64_t pages = (uint64_t)t->max_pages * GPU_PAGE_SLOTS, blocks = (uint64_t)t->max_blocks * GPU_BLOCK_SLOTS;
	uint64_t n = pages < blocks ? pages : blocks;

	return n < 0x7fffffffu ? (uint32_t)n : 0x7fffffffu;
}

static __device__ __forceinline__ char *cuda_page(const struct cuda_view &v, const struct gpu_table *t, uint32_t lane,
						  uint32_t slot)
{
	return cuda_at(v, cuda_u32(t, gpu_table_pages(t))[(size_t)lane * t->max_pages + slot / GPU_PAGE_SLOTS]);
}

static __device__ __forceinline__ char *cuda_block(const struct cuda_view &v, const struct gpu_table *t, uint32_t lane,
						   uint32_t slot)
{
	return cuda_at(v, cuda_u32(t, gpu_table_blocks(t))[(size_t)lane * t->max_blocks + slot / GPU_BLOCK_SLOTS]);
}

static __device__ __forceinline__ float cuda_load(const void *data, uint32_t type, int64_t i)
{
	switch (type) {
	case GPU_F32: return ((const float *)data)[i];
	case GPU_F16: return __half2float(((const __half *)data)[i]);
	default: return __bfloat162float(((const __nv_bfloat16 *)data)[i]);
	}
}

static __device__ __forceinline__ void cuda_store(void *data, uint32_t type, int64_t i, float x)
{
	switch (type) {
	case GPU_F32: ((float *)data)[i] = x; break;
	case GPU_F16: ((__half *)data)[i] = __float2half_rn(x); break;
	default: ((__nv_bfloat16 *)data)[i] = __float2bfloat16_rn(x); break;
	}
}

#endif
#endif
