/* append: K and V rows of one (session, KV head) into their slots. Writes each row once; positions and heat with it. */
#ifndef GPU_HOST_K_APPEND_H
#define GPU_HOST_K_APPEND_H

#include "gpu/host/kernels.h"

/* The smallest float16 that is not below x >= 0 (65504 at most). */
static inline uint16_t f16_up(float x)
{
	uint16_t h = f_to_f16(x);

	if (f_of_f16(h) < x)
		h++;
	return h > 0x7bffu ? 0x7bffu : h;
}

static inline uint16_t f16_near(float x)
{
	return f_to_f16(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}

/*
 * One row to q8: parameters are rounded first and the integers computed against what will be read back.
 * Not inlined: the compiler would not see that x is always filled.
 */
static __attribute__((noinline)) void row_to_q8(int8_t *dst, uint16_t param[2], const float *x, uint32_t d)
{
	vf lo = vf_load(x), hi = lo, voff, vscale;
	float max, min, scale;

	for (uint32_t c = VW; c < d; c += VW) {
		lo = vf_min(lo, vf_load(x + c));
		hi = vf_max(hi, vf_load(x + c));
	}
	max = vf_hmax(hi);
	min = -vf_hmax(-lo);
	param[1] = f16_near((max + min) * 0.5f);
	param[0] = f16_up((max - min) / 254.0f);
	scale = f_of_f16(param[0]);
	if (!(scale > 0.0f)) {		/* all equal to the offset (or NaN) */
		memset(dst, 0, d);
		return;
	}
	voff = vf_set1(f_of_f16(param[1]));
	vscale = vf_set1(scale);
	for (uint32_t c = 0; c < d; c += VW) {
		vf q = (vf_load(x + c) - voff) / vscale;

		q = vf_max(vf_min(q, vf_set1(127.0f)), vf_set1(-127.0f));
		q = (q + vf_set1(12582912.0f)) - vf_set1(12582912.0f);	/* to nearest, ties to even */
		UNROLL for (int i = 0; i < VW; i++)
			dst[c + (uint32_t)i] = (int8_t)(q[i] == q[i] ? q[i] : 0.0f);
	}
}

/* One row to q4: likewise, group by group. */
static __attribute__((noinline)) void row_to_q4(char *dst, const float *x, uint32_t d)
{
	uint16_t *param = (uint16_t *)(void *)(dst + d / 2u);

	for (uint32_t c = 0; c < d; c += 32, param += 2) {
		const uint32_t n = d - c < 32 ? 16 : 32;
		vf lo = vf_load(x + c), hi = lo;
		float q[32], max, least, scale;

		for (uint32_t i = VW; i < n; i += VW) {
			lo = vf_min(lo, vf_load(x + c + i));
			hi = vf_max(hi, vf_load(x + c + i));
		}
		max = vf_hmax(hi);
		param[1] = f16_near(-vf_hmax(-lo) + 0.0f);	/* no zero with a sign */
		least = f_of_f16(param[1]);
		param[0] = max > least ? f16_up((max - least) / 15.0f) : 0;
		scale = f_of_f16(param[0]);
		for (uint32_t i = 0; i < n; i++) {
			float y = scale > 0.0f ? (x[c + i] - least) / scale : 0.0f;

			y = y > 0.0f ? y : 0.0f;	/* NaN, too */
			y = y < 15.0f ? y : 15.0f;
			q[i] = (y + 12582912.0f) - 12582912.0f;
		}
		for (uint32_t b = 0; b < n / 2; b++)
			dst[c / 2u + b] = (char)((uint32_t)q[b] | (uint32_t)q[b + n / 2] << 4);
	}
}

/* Row `row` of a page's K (which = 0) or V (1) from d numbers. type: the slots'. */
static void put_row(char *page, uint32_t which, uint32_t row, uint32_t type, uint32_t d, const float *x)
{
	const struct gpu_parts part = gpu_page_parts(type, d);
	char *dst = page + part.at[which] + (size_t)row * part.bytes[which];

	switch (gpu_row_type(type, which)) {
	case GPU_F32: memcpy(dst, x, d * sizeof(*x)); break;
	case GPU_Q8: row_to_q8((int8_t *)dst, (uint16_t *)(void *)(page + part.at[2 + which] + row * 4u), x, d); break;
	case GPU_Q4: row_to_q4(dst, x, d); break;
	default: row_from_float(dst, type, x, d);
	}
}

static void store_row(char *page, uint32_t which, uint32_t row, uint32_t type, uint32_t d, const struct gpu_tensor *t, int64_t r,
		      uint32_t head)
{
	const char *src = tensor_row(t, r, head, d);
	float x[HOST_MAX_DIM];

	if (type == t->type) {
		memcpy(page + (which ? gpu_page_v(type, d) : 0u) + (size_t)row * gpu_row_bytes(type, d), src, gpu_row_bytes(type, d));
		return;
	}
	row_to_float(x, t->type, src, d);
	put_row(page, which, row, type, d, x);
}

static void append_item(const struct host_item *it)
{
	const struct gpu_shape *sh = &it->step->shape;
	const struct gpu_seq *seq = it->seq;
	const struct gpu_table *t = seq->table;
	const struct lane_view v = lane_view(t, it->layer * sh->n_kv_heads + it->kv_head, it->step->map);

	for (uint32_t i = 0; i < seq->n; i++) {
		uint32_t slot = gpu_slot_of(v.lane, v.next, seq->used + i);
		uint32_t block = slot / GPU_BLOCK_SLOTS, at = slot % GPU_BLOCK_SLOTS;
		char *page = page_at(&v, slot / GPU_PAGE_SLOTS);
		int64_t r = (int64_t)seq->row + i;

		store_row(page, 0, slot % GPU_PAGE_SLOTS, sh->slot_type, sh->head_dim, it->a, r, it->kv_head);
		store_row(page, 1, slot % GPU_PAGE_SLOTS, sh->slot_type, sh->head_dim, it->b, r, it->kv_head);
		block_pos(&v, block)[at] = seq->pos + (int32_t)i;
		for (uint32_t k = 0; k < t->n_heat; k++)
			block_heat(&v, block, k)[at] = 0.0f;
	}
}

#endif
