/*
 * The kernels for one instruction set: included by kernels_ISA.c after it has defined HOST_ISA. What the operations have in
 * common is here; k_append.h, k_attend.h and k_select.h hold one each.
 *
 * Everything is a fixed sequence of float32 operations per (row, slot): no result depends on threads, on other sessions or on where
 * pages lie. Between instruction sets the order of sums differs, so those agree only to rounding; select is exact in all.
 */
#ifndef GPU_HOST_KERNELS_H
#define GPU_HOST_KERNELS_H

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
/* Values stay what IEEE says; without trapping-math comparisons of floats can be vectorised. */
#pragma GCC optimize("O3", "no-trapping-math")
#endif

#include "gpu/host/host.h"
#include "gpu/host/vec.h"

#include <math.h>

VFN void prefetch(const char *at, uint32_t bytes)
{
#pragma GCC unroll 4
	for (uint32_t b = 0; b < bytes; b += 64)
		__builtin_prefetch(at + b, 0, 3);
}

/* A lane as a table describes it, in this process. */
struct lane_view {
	void *const *base;
	uint32_t shift;
	const uint32_t *next, *page, *block, *credit;
	struct gpu_lane lane;
};

VFN struct lane_view lane_view(const void *table, uint32_t lane, const struct gpu_map *map)
{
	const struct gpu_table *t = table;
	const char *at = table;
	struct lane_view v = { .base = map->base, .shift = map->slab_shift };

	v.lane = ((const struct gpu_lane *)(const void *)(at + gpu_table_lanes()))[lane];
	v.next = (const uint32_t *)(const void *)(at + gpu_table_next(t)) + (size_t)lane * t->window;
	v.page = (const uint32_t *)(const void *)(at + gpu_table_pages(t)) + (size_t)lane * t->max_pages;
	v.block = (const uint32_t *)(const void *)(at + gpu_table_blocks(t)) + (size_t)lane * t->max_blocks;
	v.credit = (const uint32_t *)(const void *)(at + gpu_table_credits(t)) + (size_t)lane * t->max_blocks;
	return v;
}

VFN char *page_at(const struct lane_view *v, uint32_t page) { return gpu_at(v->base, v->shift, v->page[page]); }

/* Arrays of a block: 0 positions, 1.. heat (or credit). */
VFN int32_t *block_pos(const struct lane_view *v, uint32_t block)
{
	return (int32_t *)(void *)gpu_at(v->base, v->shift, v->block[block]);
}
VFN float *block_heat(const struct lane_view *v, uint32_t block, uint32_t k)
{
	return (float *)(void *)gpu_at(v->base, v->shift, v->block[block]) + (size_t)(k + 1u) * GPU_BLOCK_SLOTS;
}
VFN int32_t *credit_pos(const struct lane_view *v, uint32_t block)
{
	return (int32_t *)(void *)gpu_at(v->base, v->shift, v->credit[block]);
}
VFN float *credit_of(const struct lane_view *v, uint32_t block, uint32_t k)
{
	return (float *)(void *)gpu_at(v->base, v->shift, v->credit[block]) + (size_t)(k + 1u) * GPU_BLOCK_SLOTS;
}

VFN char *tensor_row(const struct gpu_tensor *t, int64_t row, uint32_t head, uint32_t d)
{
	return (char *)t->data + (row * t->stride + (int64_t)head * d) * (int64_t)gpu_type_bytes(t->type);
}

/* A whole row of q4. scale * q is exact, so each number is rounded once. */
static void row_of_q4(float *restrict dst, const char *row, uint32_t d)
{
	const uint16_t *param = (const uint16_t *)(const void *)(row + d / 2u);

	for (uint32_t c = 0; c < d; c += 32, param += 2) {
		const uint8_t *q = (const uint8_t *)row + c / 2u;
		const float scale = f_of_f16(param[0]), least = f_of_f16(param[1]);
		const uint32_t half = d - c < 32 ? 8 : 16;

		for (uint32_t b = 0; b < half; b++) {
			dst[c + b] = least + scale * (float)(q[b] & 15);
			dst[c + half + b] = least + scale * (float)(q[b] >> 4);
		}
	}
}

/* type: of the row. Of q8 the bare integers. */
static inline void row_to_float(float *dst, uint32_t type, const char *src, uint32_t d)
{
	switch (type) {
	case GPU_Q4:
		row_of_q4(dst, src, d);
		break;
	case GPU_F32:
		memcpy(dst, src, (size_t)d * 4u);
		break;
	case GPU_F16:
		for (uint32_t c = 0; c < d; c += VW)
			vf_store(dst + c, vf_of(GPU_F16, src, c));
		break;
	case GPU_BF16:
		for (uint32_t c = 0; c < d; c += VW)
			vf_store(dst + c, vf_of(GPU_BF16, src, c));
		break;
	default:
		for (uint32_t c = 0; c < d; c += VW)
			vf_store(dst + c, vf_of(GPU_Q8, src, c));
		break;
	}
}

static inline void row_from_float(char *dst, uint32_t type, const float *src, uint32_t d)
{
	for (uint32_t c = 0; c < d; c += VW)
		vf_to(type, dst, c, vf_load(src + c));
}

#endif
