/*
 * Where the bytes of a pool lie. Read by the host, by CUDA kernels, by the daemon and by clients;
 * compiles as C17 and as CUDA C++. No functions with state, only arithmetic.
 *
 *   pool    slabs of one size (a power of two). Byte b of the pool is byte b % slab_bytes of slab b / slab_bytes.
 *   id      uint32: a place in the pool in units of GPU_UNIT bytes (so a pool has at most 512 GiB). Id 0 is valid.
 *   page    GPU_PAGE_SLOTS slots of one lane: K rows, V rows, and for q8 the rows' parameters behind them.
 *   block   positions and heat of GPU_BLOCK_SLOTS slots of one lane, in slot order (shared memory).
 *   credit block   positions and credit of the same slots (memory that only the daemon maps).
 *   table   one per session, one contiguous run: header, lanes, next slots, page ids, block ids.
 *           The daemon has a private twin with credit block ids behind it. Only the private one is ever believed.
 *
 * lane = layer * n_kv_heads + kv_head. Query head h reads KV head h / group.
 */
#ifndef GPU_LAYOUT_H
#define GPU_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define GPU_FN static __host__ __device__ inline
#else
#define GPU_FN static inline
#endif

enum gpu_type { GPU_F32 = 0, GPU_F16 = 1, GPU_BF16 = 2, GPU_Q8 = 3 };

#define GPU_UNIT 128u		/* bytes per unit of a page id */
#define GPU_PAGE_SLOTS 16u
#define GPU_BLOCK_SLOTS 256u
#define GPU_MAX_HEAT 2u
#define GPU_MAX_CREDIT 4u

struct gpu_lane {
	uint32_t len;		/* live slots when the window began: slots 0 .. len-1 */
	uint32_t fresh;		/* the window's first `fresh` tokens go to slots len, len+1, ...; the rest overwrite next[] */
};

/* First bytes of every table. Offsets are in bytes from the table's start. */
struct gpu_table {
	uint32_t n_lanes;
	uint32_t window;	/* entries of a lane's row of next[] */
	uint32_t max_pages;	/* entries of a lane's row of page[] */
	uint32_t max_blocks;	/* entries of a lane's row of block[] and credit[] */
	uint32_t n_heat;
	uint32_t heat[GPU_MAX_HEAT];	/* enum evict_heat (evict/rule.h): what is collected */
	uint32_t observe;	/* heat from queries whose position is a multiple of this; 0: from none */
};

GPU_FN uint32_t gpu_type_bytes(uint32_t type) { return type == GPU_F32 ? 4u : type == GPU_Q8 ? 1u : 2u; }
GPU_FN uint32_t gpu_row_bytes(uint32_t type, uint32_t head_dim) { return head_dim * gpu_type_bytes(type); }

/*
 * q8: x[c] = offset + scale * q[c], q in -127..127; scale and offset are float16 and belong to one row of one slot.
 * A page: K q[16][d], V q[16][d], K {scale, offset}[16], V {scale, offset}[16]. Other types: K x[16][d], V x[16][d].
 */
GPU_FN uint32_t gpu_page_v(uint32_t type, uint32_t d) { return GPU_PAGE_SLOTS * gpu_row_bytes(type, d); }
GPU_FN uint32_t gpu_page_params(uint32_t type, uint32_t d) { return 2u * gpu_page_v(type, d); }
GPU_FN uint32_t gpu_page_bytes(uint32_t type, uint32_t d)
{
	return gpu_page_params(type, d) + (type == GPU_Q8 ? 2u * GPU_PAGE_SLOTS * 4u : 0u);
}

/* A block: int32 position[256], then n_heat times float heat[256]. A credit block: the same with credit. */
GPU_FN uint32_t gpu_block_bytes(uint32_t n_arrays) { return GPU_BLOCK_SLOTS * 4u * (1u + n_arrays); }

GPU_FN uint32_t gpu_pages_for(uint32_t slots) { return (slots + GPU_PAGE_SLOTS - 1u) / GPU_PAGE_SLOTS; }
GPU_FN uint32_t gpu_blocks_for(uint32_t slots) { return (slots + GPU_BLOCK_SLOTS - 1u) / GPU_BLOCK_SLOTS; }

GPU_FN size_t gpu_table_lanes(void) { return sizeof(struct gpu_table); }
GPU_FN size_t gpu_table_next(const struct gpu_table *t)
{
	return gpu_table_lanes() + (size_t)t->n_lanes * sizeof(struct gpu_lane);
}
GPU_FN size_t gpu_table_pages(const struct gpu_table *t)
{
	return gpu_table_next(t) + (size_t)t->n_lanes * t->window * 4u;
}
GPU_FN size_t gpu_table_blocks(const struct gpu_table *t)
{
	return gpu_table_pages(t) + (size_t)t->n_lanes * t->max_pages * 4u;
}
GPU_FN size_t gpu_table_credits(const struct gpu_table *t)	/* private tables only */
{
	return gpu_table_blocks(t) + (size_t)t->n_lanes * t->max_blocks * 4u;
}
GPU_FN size_t gpu_table_bytes(const struct gpu_table *t) { return gpu_table_credits(t); }
GPU_FN size_t gpu_table_private_bytes(const struct gpu_table *t)
{
	return gpu_table_credits(t) + (size_t)t->n_lanes * t->max_blocks * 4u;
}

/* Slot of the window's j-th token (from 0) in a lane; next is the lane's row of next[]. */
GPU_FN uint32_t gpu_slot_of(struct gpu_lane lane, const uint32_t *next, uint32_t j)
{
	return j < lane.fresh ? lane.len + j : next[j - lane.fresh];
}

/* Live slots of a lane once `used` tokens of the window are appended. */
GPU_FN uint32_t gpu_live(struct gpu_lane lane, uint32_t used)
{
	return lane.len + (used < lane.fresh ? used : lane.fresh);
}

/* Address of a page or block: base[] are this process's slab addresses. */
GPU_FN char *gpu_at(void *const *base, uint32_t slab_shift, uint32_t id)
{
	uint64_t at = (uint64_t)id * GPU_UNIT;
	return (char *)base[at >> slab_shift] + (at & ((1ull << slab_shift) - 1ull));
}

#endif
