/*
 * Where the bytes of a pool lie. Read by the host, by CUDA kernels, by the daemon and by clients;
 * compiles as C17 and as CUDA C++. No functions with state, only arithmetic.
 *
 *   pool    slabs of one size (a power of two). Byte b of the pool is byte b % slab_bytes of slab b / slab_bytes.
 *   id      uint32: a place in the pool in units of GPU_UNIT bytes (so a pool has at most 512 GiB). Id 0 is valid.
 *   page    GPU_PAGE_SLOTS slots of one lane: K rows, V rows, and the parameters of q8 rows behind them; a multiple of GPU_UNIT.
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

enum gpu_type { GPU_F32 = 0, GPU_F16 = 1, GPU_BF16 = 2, GPU_Q8 = 3, GPU_K8V4 = 4, GPU_Q4 = 5 };

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

/*
 * Rows. f32, f16, bf16: d numbers.
 * q8: x[c] = offset + scale * q[c], int8 q[d] in -127..127; scale and offset are float16, belong to one row and lie behind the page's rows.
 * q4: x[c] = least + scale * q[c], q in 0..15, by groups of 32 channels (a last one of 16, where d is no multiple of 32). A row: d / 2 bytes, then
 *   {float16 scale, float16 least} of each group. Byte b of a group of m channels: channel b in the low half, channel b + m / 2 in the high one.
 * Slots of type k8v4 have K rows of q8 and V rows of q4; of every other type both rows are of the slots' type.
 */
GPU_FN uint32_t gpu_type_bytes(uint32_t type) { return type == GPU_F32 ? 4u : type == GPU_Q8 ? 1u : 2u; }	/* not of q4 */
GPU_FN uint32_t gpu_row_type(uint32_t type, uint32_t which)	/* which: 0 K, 1 V */
{
	return type == GPU_K8V4 ? which ? (uint32_t)GPU_Q4 : (uint32_t)GPU_Q8 : type;
}
GPU_FN uint32_t gpu_row_bytes(uint32_t row_type, uint32_t d)
{
	return row_type == GPU_Q4 ? d / 2u + (d + 31u) / 32u * 4u : d * gpu_type_bytes(row_type);
}

/* A page: K rows[16], V rows[16], then of q8 rows K {scale, offset}[16], V {scale, offset}[16]. K rows begin at 0. */
GPU_FN uint32_t gpu_page_v(uint32_t type, uint32_t d) { return GPU_PAGE_SLOTS * gpu_row_bytes(gpu_row_type(type, 0), d); }
GPU_FN uint32_t gpu_page_params(uint32_t type, uint32_t d)
{
	return gpu_page_v(type, d) + GPU_PAGE_SLOTS * gpu_row_bytes(gpu_row_type(type, 1), d);
}
/* Where the parts of a page are: part i of slot s at at[i] + s * bytes[i]. Part 0: K row, 1: V row; 2, 3: their q8 parameters, 0 bytes if none. */
struct gpu_parts { uint32_t at[4], bytes[4]; };
GPU_FN struct gpu_parts gpu_page_parts(uint32_t type, uint32_t d)
{
	struct gpu_parts p;

	for (uint32_t which = 0; which < 2u; which++) {
		p.at[which] = which ? gpu_page_v(type, d) : 0u;
		p.bytes[which] = gpu_row_bytes(gpu_row_type(type, which), d);
		p.at[2u + which] = gpu_page_params(type, d) + which * GPU_PAGE_SLOTS * 4u;
		p.bytes[2u + which] = gpu_row_type(type, which) == GPU_Q8 ? 4u : 0u;
	}
	return p;
}
GPU_FN uint32_t gpu_slot_bytes(uint32_t type, uint32_t d)	/* of all four parts */
{
	struct gpu_parts p = gpu_page_parts(type, d);

	return p.bytes[0] + p.bytes[1] + p.bytes[2] + p.bytes[3];
}
GPU_FN uint32_t gpu_page_bytes(uint32_t type, uint32_t d)
{
	return (GPU_PAGE_SLOTS * gpu_slot_bytes(type, d) + GPU_UNIT - 1u) / GPU_UNIT * GPU_UNIT;
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
