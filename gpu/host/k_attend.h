/*
 * attend and observe of one (session, KV head).
 *
 * One query, group <= 4 (decode): every page is read once, K and V rows straight from their storage type, against all heads of the group, with
 * a running maximum; exponentials wait in scratch for the heat. While one page is worked on, the next are fetched.
 * Otherwise queries are taken in blocks of up to 48 rows (query x head): a page of K is widened and transposed once per block
 * and multiplied as a small matrix, likewise V. Either way heat is a pass of its own over the finished probabilities: `out`
 * cannot depend on it, and one thread adds to a slot, queries in order, the group's heads summed in order.
 */
#ifndef GPU_HOST_K_ATTEND_H
#define GPU_HOST_K_ATTEND_H

#include "gpu/host/kernels.h"

#include <float.h>

#define FEW_HEADS HOST_FEW_HEADS
#define NEVER (-INFINITY)
#define PAGES_AHEAD 2u	/* pages are anywhere, so the processor cannot guess the next: it is asked for this early */

/* --- one query ------------------------------------------------------------------------------------------------------------ */

/*
 * Fetches the cache lines that begin in bytes at .. at + n - 1 of `ahead`. A line or two at a time, evenly between the arithmetic: bursts
 * fill the processor's list of outstanding misses and what follows waits.
 */
VFN void fetch(const char *ahead, uint32_t at, uint32_t n)
{
	UNROLL for (uint32_t b = (64u - at % 64u) % 64u; b < n; b += 64)
		__builtin_prefetch(ahead + at + b, 0, 3);
}

/*
 * l[h][slot] = q[h] . k[slot] for `n` rows; q in unit order. type, heads and n are constants: n * heads accumulators.
 * As many bytes at `ahead` are fetched meanwhile.
 */
VFN void dot_rows(uint32_t type, uint32_t heads, uint32_t n, const char *k, uint32_t d, const float *q, float *l, size_t ld,
		  const char *ahead)
{
	const uint32_t row = gpu_row_bytes(type, d), unit = UNIT_VECS(type), in_units = unit_vecs_of(type, d) * VW;
	const uint32_t each = n * gpu_type_bytes(type);		/* bytes a channel */
	vf acc[4][FEW_HEADS] = { 0 };

	for (uint32_t c = 0; c < in_units; c += unit * VW) {
		fetch(ahead, c * each, unit * VW * each);
		UNROLL for (uint32_t j = 0; j < unit; j++) {
			UNROLL for (uint32_t i = 0; i < n; i++) {
				vf x = vf_piece(type, k + (size_t)i * row + c * gpu_type_bytes(type), j);

				UNROLL for (uint32_t h = 0; h < heads; h++)
					acc[i][h] = vf_fma_at(x, q + h * d + c + j * VW, acc[i][h]);
			}
			FORGET();
		}
	}
	for (uint32_t c = in_units; c < d; c += VW) {
		fetch(ahead, c * each, VW * each);
		UNROLL for (uint32_t i = 0; i < n; i++) {
			vf x = vf_of(type, k + (size_t)i * row, c);

			UNROLL for (uint32_t h = 0; h < heads; h++)
				acc[i][h] = vf_fma_at(x, q + h * d + c, acc[i][h]);
		}
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
		dot_rows(type, heads, n, k + (size_t)r * row, d, q, l + r, ld, ahead + (size_t)r * row);
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
	const uint32_t each = vecs * VW * gpu_type_bytes(type);		/* bytes of a slot in this call */
	vf acc[4][FEW_HEADS];

	ahead += (size_t)GPU_PAGE_SLOTS * c * gpu_type_bytes(type);
	UNROLL for (uint32_t i = 0; i < vecs; i++)
		UNROLL for (uint32_t h = 0; h < heads; h++)
			acc[i][h] = vf_load(o + h * d + c + i * VW);
	for (uint32_t s = 0; s < n; s++) {
		const char *at = v + (size_t)s * row;
		vf w[FEW_HEADS];

		fetch(ahead, s * each, each);
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

/* One query's pass over a lane. */
struct one {
	struct lane_view v;
	uint32_t d, heads, live, pages;
	int32_t limit;			/* newest position that the query sees */
	const float *q;
	float q_sum[FEW_HEADS];		/* q8: sum of q's channels */
	float *l;			/* [heads][ld]: logits, then e^(logit - the maximum as it was when the page was visited) */
	size_t ld;
	float *ref;			/* [heads][ref_ld]: that maximum, by page */
	size_t ref_ld;
	float *o;			/* [heads][d]: sum of e * v, and of e, relative to the maximum so far */
	vf sum[FEW_HEADS];
	vf share[FEW_HEADS];		/* q8: sum of e * the row's offset */
	float max[FEW_HEADS];
	float *tile;			/* q4: [16][d], rows of a page as numbers */
	const char *after[PAGES_AHEAD];	/* pages that are read after the last one */
};

VFN void q8_logits(const struct one *a, uint32_t heads, const uint16_t *param, float *l)
{
	UNROLL for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW) {
		vf scale, offset;

		q8_params(param + 2 * s, &scale, &offset);
		UNROLL for (uint32_t h = 0; h < heads; h++)
			vf_store(l + h * a->ld + s, vf_fma(offset, vf_set1(a->q_sum[h]), vf_load(l + h * a->ld + s) * scale));
	}
}

/* Slots that the query may not see. There are none unless the table or the positions are wrong. */
VFN void hide(const struct one *a, uint32_t heads, uint32_t slot, float *l)
{
	const int32_t *pos = block_pos(&a->v, slot / GPU_BLOCK_SLOTS) + slot % GPU_BLOCK_SLOTS;
	const vi limit = vi_set1(a->limit);
	vi any = { 0 };

	UNROLL for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW)
		any |= vi_load(pos + s) > limit;
	if (vi_some(any))
		for (uint32_t h = 0; h < heads; h++)
			for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW)
				vf_store(l + h * a->ld + s, vf_sel(vi_load(pos + s) > limit, vf_set1(NEVER), vf_load(l + h * a->ld + s)));
	for (uint32_t s = a->live - slot; s < GPU_PAGE_SLOTS; s++)
		for (uint32_t h = 0; h < heads; h++)
			l[h * a->ld + s] = NEVER;
}

/* The 16 q4 rows at `rows`, as numbers; as many bytes at `ahead` are fetched. Rows that hold nothing yet give any finite number. */
VFN const char *unpack(const struct one *a, uint32_t d, const char *rows, const char *ahead)
{
	const uint32_t row = gpu_row_bytes(GPU_Q4, d);

	for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s++) {
		fetch(ahead, s * row, row);
		row_of_q4(a->tile + (size_t)s * d, rows + (size_t)s * row, d);
	}
	return (const char *)a->tile;
}

VFN void page_logits(uint32_t type, uint32_t heads, uint32_t d, const struct one *a, uint32_t i, const char *ahead)
{
	const uint32_t rows = gpu_row_type(type, 0);
	float *l = a->l + (size_t)i * GPU_PAGE_SLOTS;

	if (rows == GPU_Q4)
		dot_page(GPU_F32, heads, unpack(a, d, page_at(&a->v, i), ahead), d, a->q, l, a->ld, (const char *)a->tile);
	else
		dot_page(rows, heads, page_at(&a->v, i), d, a->q, l, a->ld, ahead);
}

/* A page has a logit above the maximum so far: what was summed becomes relative to the new one. Rare after the first pages. */
static __attribute__((noinline)) void one_raise(struct one *a, const float *l)
{
	for (uint32_t h = 0; h < a->heads; h++, l += a->ld) {
		vf m = vf_load(l), less;

		for (uint32_t s = VW; s < GPU_PAGE_SLOTS; s += VW)
			m = vf_max(vf_load(l + s), m);
		if (!(vf_hmax(m) > a->max[h]))
			continue;
		less = vf_exp(vf_set1(a->max[h] - vf_hmax(m)));
		a->max[h] = vf_hmax(m);
		a->sum[h] *= less;
		a->share[h] *= less;
		for (uint32_t c = 0; c < a->d; c += VW)
			vf_store(a->o + h * a->d + c, vf_load(a->o + h * a->d + c) * less);
	}
}

/* The logits of page i become e^(logit - maximum so far). */
VFN void page_exp(uint32_t type, uint32_t heads, uint32_t d, struct one *a, uint32_t i)
{
	float *l = a->l + (size_t)i * GPU_PAGE_SLOTS;
	vi above = { 0 };

	if (gpu_row_type(type, 0) == GPU_Q8)
		q8_logits(a, heads, (const uint16_t *)(const void *)(page_at(&a->v, i) + gpu_page_params(type, d)), l);
	hide(a, heads, i * GPU_PAGE_SLOTS, l);
	UNROLL for (uint32_t h = 0; h < heads; h++)
		UNROLL for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW)
			above |= vf_load(l + h * a->ld + s) > vf_set1(a->max[h]);
	if (vi_some(above))
		one_raise(a, l);
	UNROLL for (uint32_t h = 0; h < heads; h++) {
		UNROLL for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW) {
			vf e = vf_exp(vf_load(l + h * a->ld + s) - vf_set1(a->max[h]));

			vf_store(l + h * a->ld + s, e);
			a->sum[h] += e;
		}
		a->ref[h * a->ref_ld + i] = a->max[h];
	}
}

/* q8: sum of p * (offset + scale * q) = sum of (p * scale) * q, and the offsets' share, the same for every channel. */
VFN void q8_weights(struct one *a, uint32_t heads, const uint16_t *param, const float *p, uint32_t n,
		    float w[FEW_HEADS * GPU_PAGE_SLOTS])
{
	static const int32_t place[GPU_PAGE_SLOTS] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };

	UNROLL for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW) {
		const vi there = vi_load(place + s) < vi_set1((int32_t)n);
		vf scale, offset;

		q8_params(param + 2 * s, &scale, &offset);
		scale = vf_sel(there, scale, (vf){ 0 });	/* what no token has written may be anything */
		offset = vf_sel(there, offset, (vf){ 0 });
		UNROLL for (uint32_t h = 0; h < heads; h++) {
			vf x = vf_load(p + h * a->ld + s);

			vf_store(w + h * GPU_PAGE_SLOTS + s, x * scale);
			a->share[h] = vf_fma(x, offset, a->share[h]);
		}
	}
}

VFN void page_values(uint32_t type, uint32_t heads, uint32_t d, struct one *a, uint32_t i, const char *ahead)
{
	const char *page = page_at(&a->v, i), *v = page + gpu_page_v(type, d);
	const float *p = a->l + (size_t)i * GPU_PAGE_SLOTS;
	uint32_t n = a->live - i * GPU_PAGE_SLOTS;

	n = n < GPU_PAGE_SLOTS ? n : GPU_PAGE_SLOTS;
	if (gpu_row_type(type, 1) == GPU_Q4) {
		weigh_page(GPU_F32, heads, unpack(a, d, v, ahead), d, n, p, a->ld, a->o, (const char *)a->tile);
	} else if (type == GPU_Q8) {
		const char *param = page + gpu_page_params(type, d) + GPU_PAGE_SLOTS * 4u;
		float w[FEW_HEADS * GPU_PAGE_SLOTS];

		q8_weights(a, heads, (const uint16_t *)(const void *)param, p, n, w);
		weigh_page(type, heads, v, d, n, w, GPU_PAGE_SLOTS, a->o, ahead);
	} else {
		weigh_page(type, heads, v, d, n, p, a->ld, a->o, ahead);
	}
}

/*
 * Every page is visited once, K and V, so that memory is read in the order in which pages lie. The logits of the next page come
 * before the values of this one: neither waits for the other, and the exponentials between them are hidden.
 */
VFN void one_pass(uint32_t type, uint32_t heads, uint32_t d, struct one *a)
{
	const uint32_t half = gpu_page_v(type, d);

	page_logits(type, heads, d, a, 0, page_at(&a->v, 0));
	for (uint32_t i = 0; i < a->pages; i++) {
		const char *soon = i + PAGES_AHEAD < a->pages ? page_at(&a->v, i + PAGES_AHEAD) : a->after[i + PAGES_AHEAD - a->pages];

		page_exp(type, heads, d, a, i);
		if (i + 1 < a->pages)
			page_logits(type, heads, d, a, i + 1, soon);
		if (gpu_row_type(type, 0) == GPU_Q8)
			prefetch(soon + gpu_page_params(type, d), 2u * GPU_PAGE_SLOTS * 4u);
		page_values(type, heads, d, a, i, soon + half);
	}
	for (uint32_t h = 0; type == GPU_Q8 && h < heads; h++) {
		vf x = vf_set1(vf_hsum(a->share[h]));

		for (uint32_t c = 0; c < d; c += VW)
			vf_store(a->o + h * d + c, vf_load(a->o + h * d + c) + x);
	}
}

#if HOST_ONE_BODY
static void one_pass_type(uint32_t type, struct one *a) { one_pass(type, a->heads, a->d, a); }
#else
#define ONE_HEADS(type, d)							\
	switch (a->heads) {							\
	case 1: one_pass(type, 1, d, a); break;					\
	case 2: one_pass(type, 2, d, a); break;					\
	case 3: one_pass(type, 3, d, a); break;					\
	default: one_pass(type, 4, d, a); break;				\
	}
/* The usual head sizes of the types that most slots have: constants again, worth 15 % within the caches. */
#if HOST_ISA != 0
#define ONE_COMMON(type)							\
	if (a->d == 64) {							\
		ONE_HEADS(type, 64)						\
		return;								\
	}									\
	if (a->d == 128) {							\
		ONE_HEADS(type, 128)						\
		return;								\
	}
#else
#define ONE_COMMON(type)
#endif
static void one_pass_f32(struct one *a) { ONE_COMMON(0) ONE_HEADS(0, a->d) }
static void one_pass_f16(struct one *a) { ONE_HEADS(1, a->d) }
static void one_pass_bf16(struct one *a) { ONE_COMMON(2) ONE_HEADS(2, a->d) }
static void one_pass_q8(struct one *a) { ONE_COMMON(3) ONE_HEADS(3, a->d) }
static void one_pass_k8v4(struct one *a) { ONE_HEADS(4, a->d) }
static void one_pass_q4(struct one *a) { ONE_HEADS(5, a->d) }
static void one_pass_type(uint32_t type, struct one *a)
{
	switch (type) {
	case GPU_F32: one_pass_f32(a); break;
	case GPU_F16: one_pass_f16(a); break;
	case GPU_BF16: one_pass_bf16(a); break;
	case GPU_Q8: one_pass_q8(a); break;
	case GPU_K8V4: one_pass_k8v4(a); break;
	default: one_pass_q4(a); break;
	}
}
#endif

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

/* Finished rows of a block of queries: probability of (row, slot) = e[row * ld + slot] * inv[row * inv_row + slot / 16 * inv_page]. */
struct probs {
	const float *e;
	size_t ld;
	const float *inv;
	size_t inv_row, inv_page;
	uint32_t queries, group;
	uint64_t seen;			/* bit i: query i gives heat */
};

/* What the block's queries add to VW slots that start at `slot` of the lane. kind is a constant. */
VFN vf heat_vector(uint32_t kind, vf x, const struct probs *p, size_t slot)
{
	for (uint32_t i = 0; i < p->queries; i++) {
		const float *e = p->e + (size_t)i * p->group * p->ld + slot;
		const float *inv = p->inv + i * p->group * p->inv_row + slot / GPU_PAGE_SLOTS * p->inv_page;
		vf sum = { 0 };

		if (!(p->seen >> i & 1u))
			continue;
		for (uint32_t h = 0; h < p->group; h++) {
			vf one = vf_load(e + h * p->ld) * vf_set1(inv[h * p->inv_row]);

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

/* The pages with which the item behind this one begins; what it lacks, and what is behind the last one, is any page. */
static void pages_after(const struct host_item *it, const char *any, const char *after[PAGES_AHEAD])
{
	const struct gpu_shape *sh = &it->step->shape;
	const struct gpu_seq *seq = it->kv_head + 1u < sh->n_kv_heads ? it->seq : it->seq + 1;
	const int is_one = seq < it->step->seq + it->step->n_seqs && seq->n;
	const struct lane_view v = lane_view(is_one ? seq->table : it->seq->table,
					     it->layer * sh->n_kv_heads + (it->kv_head + 1u) % sh->n_kv_heads, it->step->map);
	const uint32_t pages = is_one ? gpu_pages_for(gpu_live(v.lane, seq->used + seq->n)) : 0;

	for (uint32_t i = 0; i < PAGES_AHEAD; i++)
		after[i] = i < pages ? page_at(&v, i) : any;
}

static void attend_one(const struct host_item *it, const struct lane_view *v, uint32_t live)
{
	const struct gpu_shape *sh = &it->step->shape;
	const struct gpu_table *t = it->seq->table;
	const uint32_t d = sh->head_dim, g = sh->group, head = it->kv_head * g;
	struct host_room room = host_room(it->scratch, sh, live, 1);
	struct one a = { .v = *v, .d = d, .heads = g, .live = live, .pages = gpu_pages_for(live), .q = room.q, .l = room.logits,
			 .o = room.out, .ld = host_row_floats(live), .limit = it->seq->pos,
			 .tile = room.tile, .ref = room.ref, .ref_ld = host_ref_floats(live) };
	struct probs p = { .e = a.l, .ld = a.ld, .inv = a.ref, .inv_row = a.ref_ld, .inv_page = 1, .queries = 1, .group = g,
			   .seen = observed(it, t, it->seq->pos) };
	float inv[FEW_HEADS], x[HOST_MAX_DIM];

	for (uint32_t h = 0; h < g; h++) {
		vf sum = { 0 };

		row_to_float(x, it->a->type, tensor_row(it->a, it->seq->row, head + h, d), d);
		for (uint32_t c = 0; c < d; c += VW) {
			vf_store(x + c, vf_load(x + c) * vf_set1(it->scale));
			sum += vf_load(x + c);
		}
		a.q_sum[h] = vf_hsum(sum);
		a.max[h] = -FLT_MAX;
		unit_order(sh->slot_type, d, room.q + h * d, x, 0);
	}
	memset(a.o, 0, (size_t)g * d * sizeof(float));
	if (live) {
		pages_after(it, page_at(v, 0), a.after);
		one_pass_type(sh->slot_type, &a);
	}
	for (uint32_t h = 0; h < g; h++) {
		float sum = vf_hsum(a.sum[h]);

		inv[h] = sum > 0.0f ? 1.0f / sum : 0.0f;
		if (it->lse)
			it->lse[(size_t)it->seq->row * sh->n_kv_heads * g + head + h] = sum > 0.0f ? a.max[h] + logf(sum) : NEVER;
		for (uint32_t i = 0; p.seen && i < a.ref_ld; i += VW) {
			float *ref = a.ref + h * a.ref_ld + i;

			vf_store(ref, vf_exp(vf_load(ref) - vf_set1(a.max[h])) * vf_set1(inv[h]));
		}
		unit_order(sh->slot_type, d, x, a.o + h * d, 1);
		for (uint32_t c = 0; c < d; c += VW)
			vf_store(x + c, vf_load(x + c) * vf_set1(inv[h]));
		row_from_float(tensor_row(it->b, it->seq->row, head + h, d), it->b->type, x, d);
	}
	heat_add(v, t, &p, live);
}

#endif
