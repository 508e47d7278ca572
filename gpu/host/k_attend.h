/*
 * attend and observe of one (session, KV head).
 *
 * One query, group <= 4 (decode): K rows are read once, straight from their storage type, against all heads of the group;
 * logits wait in scratch; softmax; heat; then V rows once. While one page is worked on, the next is prefetched.
 * Otherwise queries are taken in blocks of up to 48 rows (query x head): a page of K is widened and transposed once per block
 * and multiplied as a small matrix, likewise V. Either way heat is a pass of its own over the finished probabilities: `out`
 * cannot depend on it, and one thread adds to a slot, queries in order, the group's heads summed in order.
 */
#ifndef GPU_HOST_K_ATTEND_H
#define GPU_HOST_K_ATTEND_H

#include "gpu/host/kernels.h"

#define FEW_HEADS 4u
#define NEVER (-INFINITY)

/* --- one query ------------------------------------------------------------------------------------------------------------ */

/* l[h][slot] = q[h] . k[slot] for `n` rows; q in unit order. type, heads and n are constants: n * heads accumulators. */
VFN void dot_rows(uint32_t type, uint32_t heads, uint32_t n, const char *k, uint32_t d, const float *q, float *l, size_t ld)
{
	const uint32_t row = gpu_row_bytes(type, d), unit = UNIT_VECS(type), in_units = unit_vecs_of(type, d) * VW;
	vf acc[4][FEW_HEADS] = { 0 };

	for (uint32_t c = 0; c < in_units; c += unit * VW) {
		UNROLL for (uint32_t j = 0; j < unit; j++) {
			UNROLL for (uint32_t i = 0; i < n; i++) {
				vf x = vf_piece(type, k + (size_t)i * row + c * gpu_type_bytes(type), j);

				UNROLL for (uint32_t h = 0; h < heads; h++)
					acc[i][h] = vf_fma(x, vf_load(q + h * d + c + j * VW), acc[i][h]);
			}
			FORGET();
		}
	}
	for (uint32_t c = in_units; c < d; c += VW)
		UNROLL for (uint32_t i = 0; i < n; i++) {
			vf x = vf_of(type, k + (size_t)i * row, c);

			UNROLL for (uint32_t h = 0; h < heads; h++)
				acc[i][h] = vf_fma(x, vf_load(q + h * d + c), acc[i][h]);
		}
	if (n == 4) {
		UNROLL for (uint32_t h = 0; h < heads; h++)
			vf_sum4(l + h * ld, acc[0][h], acc[1][h], acc[2][h], acc[3][h]);
	} else {
		UNROLL for (uint32_t h = 0; h + 1 < heads; h += 2) {
			float sum[4];

			vf_sum4(sum, acc[0][h], acc[1][h], acc[0][h + 1], acc[1][h + 1]);
			memcpy(l + h * ld, sum, 8);
			memcpy(l + (h + 1) * ld, sum + 2, 8);
		}
	}
}

/* The 16 rows of a page, as many at a time as there are registers for; the rows of `ahead` are fetched meanwhile. */
VFN void dot_page(uint32_t type, uint32_t heads, const char *k, uint32_t d, const float *q, float *l, size_t ld, const char *ahead)
{
	const uint32_t row = gpu_row_bytes(type, d), n = heads > 3 && VW < 16 ? 2 : 4;

	for (uint32_t r = 0; r < GPU_PAGE_SLOTS; r += n) {
		prefetch(ahead + (size_t)r * row, n * row);
		dot_rows(type, heads, n, k + (size_t)r * row, d, q, l + r, ld);
	}
}

/*
 * o[h] += p[h][slot] * v[slot] over the first n rows of a page, for `vecs` vectors from vector `first` on. Unit order when
 * `units` (j: the first one's place in its unit, 0 or 2), else natural. All of type, heads, vecs, units and j are constants.
 */
VFN void weigh_some(uint32_t type, uint32_t heads, uint32_t vecs, int units, uint32_t j, const char *v, uint32_t d, uint32_t n,
		    uint32_t first, const float *p, size_t ld, float *o, const char *ahead)
{
	const uint32_t row = gpu_row_bytes(type, d), c = first * VW;
	const uint32_t lines = GPU_PAGE_SLOTS * vecs * VW * gpu_type_bytes(type) / 64u;	/* this call's share of the page */
	vf acc[4][FEW_HEADS];

	UNROLL for (uint32_t i = 0; i < lines; i++)
		__builtin_prefetch(ahead + (size_t)first / vecs * lines * 64u + i * 64u, 0, 3);
	UNROLL for (uint32_t i = 0; i < vecs; i++)
		UNROLL for (uint32_t h = 0; h < heads; h++)
			acc[i][h] = vf_load(o + h * d + c + i * VW);
	for (uint32_t s = 0; s < n; s++) {
		const char *at = v + (size_t)s * row;
		vf w[FEW_HEADS];

		UNROLL for (uint32_t h = 0; h < heads; h++)
			w[h] = vf_set1(p[h * ld + s]);
		UNROLL for (uint32_t i = 0; i < vecs; i++) {
			vf x = units ? vf_piece(type, at + (c - j * VW) * gpu_type_bytes(type), j + i) : vf_of(type, at, c + i * VW);

			UNROLL for (uint32_t h = 0; h < heads; h++)
				acc[i][h] = vf_fma(x, w[h], acc[i][h]);
			FORGET();
		}
	}
	UNROLL for (uint32_t i = 0; i < vecs; i++)
		UNROLL for (uint32_t h = 0; h < heads; h++)
			vf_store(o + h * d + c + i * VW, acc[i][h]);
}

VFN void weigh_page(uint32_t type, uint32_t heads, const char *v, uint32_t d, uint32_t n, const float *p, size_t ld, float *o,
		    const char *ahead)
{
	const uint32_t vecs = heads > 3 && VW < 16 ? 2 : 4, in_units = unit_vecs_of(type, d);
	uint32_t i = 0;

	for (; i + 4 <= in_units; i += 4) {
		weigh_some(type, heads, vecs, 1, 0, v, d, n, i, p, ld, o, ahead);
		if (vecs == 2)
			weigh_some(type, heads, 2, 1, UNIT_VECS(type) == 4 ? 2 : 0, v, d, n, i + 2, p, ld, o, ahead);
	}
	if (UNIT_VECS(type) == 2 && i < in_units) {
		weigh_some(type, heads, 2, 1, 0, v, d, n, i, p, ld, o, ahead);
		i += 2;
	}
	for (; i < d / VW; i++)
		weigh_some(type, heads, 1, 0, 0, v, d, n, i, p, ld, o, ahead);
}

/* What one query's two passes over a lane need. */
struct one {
	struct lane_view v;
	uint32_t d, heads, live, pages;
	int32_t limit;			/* newest position that the query sees */
	const float *q;
	float q_sum[FEW_HEADS];		/* q8: sum of q's channels */
	float *l, *o;
	size_t ld;
};

VFN void q8_logits(const struct one *a, uint32_t heads, const uint16_t *param, float *l)
{
	float scale[GPU_PAGE_SLOTS], offset[GPU_PAGE_SLOTS];

	q8_params(param, scale, offset);
	UNROLL for (uint32_t h = 0; h < heads; h++)
		UNROLL for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW) {
			vf x = vf_load(l + h * a->ld + s) * vf_load(scale + s);

			vf_store(l + h * a->ld + s, vf_fma(vf_load(offset + s), vf_set1(a->q_sum[h]), x));
		}
}

/* Slots that the query may not see. There are none unless the table or the positions are wrong. */
VFN void hide(const struct one *a, uint32_t heads, uint32_t slot, float *l)
{
	const int32_t *pos = block_pos(&a->v, slot / GPU_BLOCK_SLOTS) + slot % GPU_BLOCK_SLOTS;

	UNROLL for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW) {
		vi later = vi_load(pos + s) > vi_set1(a->limit);

		UNROLL for (uint32_t h = 0; h < heads; h++)
			vf_store(l + h * a->ld + s, vf_sel(later, vf_set1(NEVER), vf_load(l + h * a->ld + s)));
	}
}

/* Pages are anywhere, so the processor cannot guess the next: ask for it this many bytes before it is needed. */
#define AHEAD_BYTES 4096u

VFN uint32_t pages_ahead(uint32_t half) { return (AHEAD_BYTES + half - 1u) / half; }

VFN void one_logits(uint32_t type, uint32_t heads, uint32_t d, const struct one *a)
{
	const uint32_t half = gpu_page_v(type, d), ahead = pages_ahead(half);

	for (uint32_t i = 0; i < a->pages; i++) {
		const char *page = page_at(&a->v, i);
		/* At the end the first pages of V, which are next. */
		const char *soon = i + ahead < a->pages ? page_at(&a->v, i + ahead) :
				   page_at(&a->v, (i + ahead - a->pages) % a->pages) + half;
		float *l = a->l + (size_t)i * GPU_PAGE_SLOTS;

		dot_page(type, heads, page, d, a->q, l, a->ld, soon);
		if (type == GPU_Q8)
			q8_logits(a, heads, (const uint16_t *)(const void *)(page + gpu_page_params(type, d)), l);
		hide(a, heads, i * GPU_PAGE_SLOTS, l);
	}
	for (uint32_t h = 0; h < heads; h++)
		for (uint32_t s = a->live; s < a->pages * GPU_PAGE_SLOTS; s++)
			a->l[h * a->ld + s] = NEVER;
}

/* q8: sum of p * (offset + scale * q) = sum of (p * scale) * q, and the offsets' share, the same for every channel. */
VFN void q8_weights(const struct one *a, uint32_t heads, const uint16_t *param, const float *p, uint32_t n,
		    float w[FEW_HEADS * GPU_PAGE_SLOTS], vf share[FEW_HEADS])
{
	float scale[GPU_PAGE_SLOTS], offset[GPU_PAGE_SLOTS];

	q8_params(param, scale, offset);
	for (uint32_t s = n; s < GPU_PAGE_SLOTS; s++)
		scale[s] = offset[s] = 0.0f;
	UNROLL for (uint32_t h = 0; h < heads; h++)
		UNROLL for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW) {
			vf x = vf_load(p + h * a->ld + s);

			vf_store(w + h * GPU_PAGE_SLOTS + s, x * vf_load(scale + s));
			share[h] = vf_fma(x, vf_load(offset + s), share[h]);
		}
}

VFN void one_values(uint32_t type, uint32_t heads, uint32_t d, const struct one *a)
{
	const uint32_t half = gpu_page_v(type, d), ahead = pages_ahead(half);
	vf share[FEW_HEADS] = { 0 };

	memset(a->o, 0, (size_t)heads * d * sizeof(float));
	for (uint32_t i = 0; i < a->pages; i++) {
		const char *page = page_at(&a->v, i);
		const float *p = a->l + (size_t)i * GPU_PAGE_SLOTS;
		const char *soon = page_at(&a->v, i + ahead < a->pages ? i + ahead : i) + half;
		uint32_t n = a->live - i * GPU_PAGE_SLOTS;

		n = n < GPU_PAGE_SLOTS ? n : GPU_PAGE_SLOTS;
		if (type == GPU_Q8) {
			const char *param = page + gpu_page_params(type, d) + GPU_PAGE_SLOTS * 4u;
			float w[FEW_HEADS * GPU_PAGE_SLOTS];

			q8_weights(a, heads, (const uint16_t *)(const void *)param, p, n, w, share);
			weigh_page(type, heads, page + half, d, n, w, GPU_PAGE_SLOTS, a->o, soon);
		} else {
			weigh_page(type, heads, page + half, d, n, p, a->ld, a->o, soon);
		}
	}
	if (type == GPU_Q8)
		for (uint32_t h = 0; h < heads; h++) {
			vf x = vf_set1(vf_hsum(share[h]));

			for (uint32_t c = 0; c < d; c += VW)
				vf_store(a->o + h * d + c, vf_load(a->o + h * d + c) + x);
		}
}

#if HOST_ONE_BODY
#define ONE(name) static void name##_type(uint32_t type, const struct one *a) { name(type, a->heads, a->d, a); }
#else
#define ONE_HEADS(name, type, d)							\
	switch (a->heads) {								\
	case 1: name(type, 1, d, a); break;						\
	case 2: name(type, 2, d, a); break;						\
	case 3: name(type, 3, d, a); break;						\
	default: name(type, 4, d, a); break;						\
	}
/* The usual head sizes of the types that most slots have: constants again, worth 15 % within the caches. */
#if HOST_ISA != 0
#define ONE_COMMON(name, type)								\
	if (a->d == 64) {								\
		ONE_HEADS(name, type, 64)						\
		return;									\
	}										\
	if (a->d == 128) {								\
		ONE_HEADS(name, type, 128)						\
		return;									\
	}
#else
#define ONE_COMMON(name, type)
#endif
#define ONE(name)									\
static void name##_f32(const struct one *a) { ONE_HEADS(name, 0, a->d) }		\
static void name##_f16(const struct one *a) { ONE_HEADS(name, 1, a->d) }		\
static void name##_bf16(const struct one *a) { ONE_COMMON(name, 2) ONE_HEADS(name, 2, a->d) }	\
static void name##_q8(const struct one *a) { ONE_COMMON(name, 3) ONE_HEADS(name, 3, a->d) }	\
static void name##_type(uint32_t type, const struct one *a)				\
{											\
	switch (type) {									\
	case GPU_F32: name##_f32(a); break;						\
	case GPU_F16: name##_f16(a); break;						\
	case GPU_BF16: name##_bf16(a); break;						\
	default: name##_q8(a); break;							\
	}										\
}
#endif
ONE(one_logits)
ONE(one_values)
#undef ONE

/* --- softmax and heat ------------------------------------------------------------------------------------------------------- */

/* l[0 .. n) = exp(l - max), n whole vectors; returns the sum, 0 when every logit is -infinity. */
static float softmax_row(float *l, size_t n, float *max_out)
{
	vf m = vf_set1(NEVER), sum = { 0 };
	float max;

	for (size_t s = 0; s < n; s += VW)
		m = vf_max(vf_load(l + s), m);
	max = vf_hmax(m);
	if (!(max > NEVER))
		max = 0.0f;
	m = vf_set1(max);
	for (size_t s = 0; s < n; s += VW) {
		vf e = vf_exp(vf_load(l + s) - m);

		vf_store(l + s, e);
		sum += e;
	}
	*max_out = max;
	return vf_hsum(sum);
}

/* The finished rows of a block of queries: probability of (row, slot) = e[row * ld + slot] * inv[row]. */
struct probs {
	const float *e;
	size_t ld;
	const float *inv;
	uint32_t queries, group;
	uint64_t seen;			/* bit i: query i gives heat */
};

/* What the block's queries add to VW slots that start at `slot` of the lane. kind is a constant. */
VFN vf heat_vector(uint32_t kind, vf x, const struct probs *p, size_t slot)
{
	for (uint32_t i = 0; i < p->queries; i++) {
		const float *e = p->e + (size_t)i * p->group * p->ld + slot;
		vf sum = { 0 };

		if (!(p->seen >> i & 1u))
			continue;
		for (uint32_t h = 0; h < p->group; h++) {
			vf one = vf_load(e + h * p->ld) * vf_set1(p->inv[i * p->group + h]);

			sum += kind == EVICT_HEAT_SQUARES ? one * one : one;
		}
		x = kind == EVICT_HEAT_MAX ? vf_max(x, sum) : kind == EVICT_HEAT_LAST ? sum : x + sum;
	}
	return x;
}

/* n slots of one block's heat array; what lies behind the last live slot is not touched. */
VFN void heat_some(uint32_t kind, float *heat, const struct probs *p, size_t first, uint32_t n)
{
	uint32_t s = 0;

	for (; s + VW <= n; s += VW)
		vf_store(heat + s, heat_vector(kind, vf_load(heat + s), p, first + s));
	if (s < n) {
		float part[VW] = { 0 };

		memcpy(part, heat + s, (n - s) * sizeof(float));
		vf_store(part, heat_vector(kind, vf_load(part), p, first + s));
		memcpy(heat + s, part, (n - s) * sizeof(float));
	}
}

static void heat_add(const struct lane_view *v, const struct gpu_table *t, const struct probs *p, uint32_t live)
{
	if (!p->seen)
		return;
	for (uint32_t b = 0; b < gpu_blocks_for(live); b++) {
		size_t first = (size_t)b * GPU_BLOCK_SLOTS;
		uint32_t left = live - b * GPU_BLOCK_SLOTS;
		uint32_t n = left < GPU_BLOCK_SLOTS ? left : GPU_BLOCK_SLOTS;

		for (uint32_t k = 0; k < t->n_heat; k++) {
			float *heat = block_heat(v, b, k);

			switch (t->heat[k]) {
			case EVICT_HEAT_MAX: heat_some(EVICT_HEAT_MAX, heat, p, first, n); break;
			case EVICT_HEAT_SQUARES: heat_some(EVICT_HEAT_SQUARES, heat, p, first, n); break;
			case EVICT_HEAT_LAST: heat_some(EVICT_HEAT_LAST, heat, p, first, n); break;
			default: heat_some(EVICT_HEAT_SUM, heat, p, first, n); break;
			}
		}
	}
}

/* Does the query at this position give heat? */
VFN uint64_t observed(const struct host_item *it, const struct gpu_table *t, int32_t pos)
{
	return t->n_heat && t->observe && (uint32_t)pos % t->observe == 0 && pos >= it->seq->heat_from;
}

static void attend_one(const struct host_item *it, const struct lane_view *v, uint32_t live)
{
	const struct gpu_shape *sh = &it->step->shape;
	const struct gpu_table *t = it->seq->table;
	const uint32_t d = sh->head_dim, g = sh->group, head = it->kv_head * g;
	struct host_room room = host_room(it->scratch, sh, live, 1);
	struct one a = { .v = *v, .d = d, .heads = g, .live = live, .pages = gpu_pages_for(live), .q = room.q, .l = room.logits,
			 .o = room.out, .ld = host_row_floats(live), .limit = it->seq->pos };
	struct probs p = { .e = a.l, .ld = a.ld, .queries = 1, .group = g, .seen = observed(it, t, it->seq->pos) };
	float inv[FEW_HEADS], x[HOST_MAX_DIM];

	for (uint32_t h = 0; h < g; h++) {
		vf sum = { 0 };

		row_to_float(x, it->a->type, tensor_row(it->a, it->seq->row, head + h, d), d);
		for (uint32_t c = 0; c < d; c += VW) {
			vf_store(x + c, vf_load(x + c) * vf_set1(it->scale));
			sum += vf_load(x + c);
		}
		a.q_sum[h] = vf_hsum(sum);
		unit_order(sh->slot_type, d, room.q + h * d, x, 0);
	}
	one_logits_type(sh->slot_type, &a);
	for (uint32_t h = 0; h < g; h++) {
		float max, sum = softmax_row(a.l + h * a.ld, (size_t)a.pages * GPU_PAGE_SLOTS, &max);

		inv[h] = sum > 0.0f ? 1.0f / sum : 0.0f;
		if (it->lse)
			it->lse[(size_t)it->seq->row * sh->n_kv_heads * g + head + h] = sum > 0.0f ? max + logf(sum) : NEVER;
	}
	p.inv = inv;
	heat_add(v, t, &p, live);
	one_values_type(sh->slot_type, &a);
	for (uint32_t h = 0; h < g; h++) {
		unit_order(sh->slot_type, d, x, a.o + h * d, 1);
		for (uint32_t c = 0; c < d; c += VW)
			vf_store(x + c, vf_load(x + c) * vf_set1(inv[h]));
		row_from_float(tensor_row(it->b, it->seq->row, head + h, d), it->b->type, x, d);
	}
}

#endif
