/* attend and observe for blocks of queries: small matrix products, page by page. See k_attend.h. */
#ifndef GPU_HOST_K_BLOCK_H
#define GPU_HOST_K_BLOCK_H

#include "gpu/host/k_attend.h"

struct block {
	const struct host_item *it;
	struct lane_view v;
	struct host_room room;
	uint32_t type, d, group, live, pages;
	size_t ld;
	uint32_t first, queries;	/* queries first .. first + queries - 1 of the step */
	uint32_t rows, tiles;		/* queries * group, and in register tiles */
	int32_t limit[HOST_BLOCK_ROWS];	/* per query: newest position that it sees */
};

/* n rows of one page's half as float32, dst[row][d]. which: 0 K, 1 V. */
static void widen(const struct block *b, uint32_t page_index, uint32_t which, uint32_t n, float *dst)
{
	const char *page = page_at(&b->v, page_index);
	const struct gpu_parts part = gpu_page_parts(b->type, b->d);
	const uint32_t row = part.bytes[which], d = b->d;
	const char *src = page + part.at[which];
	const uint16_t *param = (const void *)(page + part.at[2 + which]);
	vf scale, offset;

	for (uint32_t s = 0; s < n; s++)
		row_to_float(dst + (size_t)s * d, gpu_row_type(b->type, which), src + (size_t)s * row, d);
	if (!part.bytes[2 + which])
		return;
	for (uint32_t s = 0; s < n; s++) {
		if (s % VW == 0)
			q8_params(param + 2 * s, &scale, &offset);
		for (uint32_t c = 0; c < d; c += VW) {
			float *x = dst + (size_t)s * d + c;

			vf_store(x, vf_fma(vf_load(x), vf_set1(scale[s % VW]), vf_set1(offset[s % VW])));
		}
	}
}

/* Queries of the block, scaled, in tiles: q[tile][channel][row of the tile]; rows that do not exist are 0. */
static void load_queries(struct block *b)
{
	const struct host_item *it = b->it;
	float x[HOST_MAX_DIM];

	for (uint32_t m = 0; m < b->tiles * TILE_ROWS; m++) {
		float *dst = b->room.q + (size_t)(m / TILE_ROWS) * TILE_ROWS * b->d + m % TILE_ROWS;
		uint32_t query = b->first + m / b->group, head = it->kv_head * b->group + m % b->group;

		if (m < b->rows)
			row_to_float(x, it->a->type, tensor_row(it->a, (int64_t)it->seq->row + query, head, b->d), b->d);
		else
			memset(x, 0, sizeof(x));
		for (uint32_t c = 0; c < b->d; c++)
			dst[(size_t)c * TILE_ROWS] = x[c] * it->scale;
	}
}

/* logits[TILE_ROWS][16] of one tile of queries and one transposed page. */
static void tile_logits(const float *q, const float *k, uint32_t d, float *l, size_t ld)
{
	vf acc[TILE_ROWS][TILE_VECS] = { 0 };

	for (uint32_t c = 0; c < d; c++) {
		vf x[TILE_VECS];

		UNROLL for (uint32_t j = 0; j < TILE_VECS; j++)
			x[j] = vf_load(k + (size_t)c * GPU_PAGE_SLOTS + j * VW);
		UNROLL for (uint32_t i = 0; i < TILE_ROWS; i++) {
			vf w = vf_set1(q[(size_t)c * TILE_ROWS + i]);

			UNROLL for (uint32_t j = 0; j < TILE_VECS; j++)
				acc[i][j] = vf_fma(x[j], w, acc[i][j]);
		}
	}
	UNROLL for (uint32_t i = 0; i < TILE_ROWS; i++)
		UNROLL for (uint32_t j = 0; j < TILE_VECS; j++)
			vf_store(l + i * ld + j * VW, acc[i][j]);
}

static void fill_hidden(const struct block *b, float *l)
{
	for (uint32_t m = 0; m < b->rows; m++)
		for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW)
			vf_store(l + m * b->ld + s, vf_set1(NEVER));
}

/* Each query sees positions up to its limit; slots that are not live have position INT32_MAX here, past every limit. */
static void mask(const struct block *b, const int32_t pos[GPU_PAGE_SLOTS], float *l)
{
	for (uint32_t m = 0; m < b->rows; m++) {
		vi limit = vi_set1(b->limit[m / b->group]);

		for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += VW) {
			float *at = l + m * b->ld + s;

			vf_store(at, vf_sel(vi_load(pos + s) > limit, vf_set1(NEVER), vf_load(at)));
		}
	}
}

static void block_logits(struct block *b)
{
	int32_t low_limit = b->limit[0], high_limit = b->limit[b->queries - 1];	/* they ascend */

	for (uint32_t i = 0; i < b->pages; i++) {
		uint32_t slot = i * GPU_PAGE_SLOTS, n = b->live - slot;
		float *l = b->room.logits + slot;
		int32_t pos[GPU_PAGE_SLOTS], low = INT32_MAX, high = INT32_MIN;

		memcpy(pos, block_pos(&b->v, slot / GPU_BLOCK_SLOTS) + slot % GPU_BLOCK_SLOTS, sizeof(pos));
		for (uint32_t s = n; s < GPU_PAGE_SLOTS; s++)
			pos[s] = INT32_MAX;
		for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s++) {
			low = pos[s] < low ? pos[s] : low;
			high = pos[s] > high ? pos[s] : high;
		}
		b->room.hidden[i] = low > high_limit;
		if (b->room.hidden[i]) {
			fill_hidden(b, l);
			continue;
		}
		if (i + 1 < b->pages)
			prefetch(page_at(&b->v, i + 1), gpu_page_v(b->type, b->d));
		widen(b, i, 0, GPU_PAGE_SLOTS, b->room.tile);
		for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s += TRANSPOSE)
			for (uint32_t c = 0; c < b->d; c += TRANSPOSE)
				transpose_block(b->room.tile + (size_t)s * b->d + c, b->d,
						b->room.page + (size_t)c * GPU_PAGE_SLOTS + s, GPU_PAGE_SLOTS);
		for (uint32_t m = 0; m < b->tiles; m++)
			tile_logits(b->room.q + (size_t)m * TILE_ROWS * b->d, b->room.page, b->d,
				    l + (size_t)m * TILE_ROWS * b->ld, b->ld);
		if (high > low_limit)
			mask(b, pos, l);
	}
}

/* o[TILE_ROWS][16 channels] += p[TILE_ROWS][n] * v[n][16 channels]. */
static void tile_values(const float *p, size_t ld, const float *v, uint32_t d, uint32_t n, float *o)
{
	vf acc[TILE_ROWS][TILE_VECS];

	UNROLL for (uint32_t i = 0; i < TILE_ROWS; i++)
		UNROLL for (uint32_t j = 0; j < TILE_VECS; j++)
			acc[i][j] = vf_load(o + (size_t)i * d + j * VW);
	for (uint32_t s = 0; s < n; s++) {
		vf x[TILE_VECS];

		UNROLL for (uint32_t j = 0; j < TILE_VECS; j++)
			x[j] = vf_load(v + (size_t)s * d + j * VW);
		UNROLL for (uint32_t i = 0; i < TILE_ROWS; i++) {
			vf w = vf_set1(p[i * ld + s]);

			UNROLL for (uint32_t j = 0; j < TILE_VECS; j++)
				acc[i][j] = vf_fma(x[j], w, acc[i][j]);
		}
	}
	UNROLL for (uint32_t i = 0; i < TILE_ROWS; i++)
		UNROLL for (uint32_t j = 0; j < TILE_VECS; j++)
			vf_store(o + (size_t)i * d + j * VW, acc[i][j]);
}

static void block_values(struct block *b)
{
	const uint32_t together = HOST_TILE_BYTES / (GPU_PAGE_SLOTS * b->d * (uint32_t)sizeof(float));

	memset(b->room.out, 0, (size_t)b->tiles * TILE_ROWS * b->d * sizeof(float));
	for (uint32_t i = 0; i < b->pages;) {
		uint32_t first = i * GPU_PAGE_SLOTS, n = 0;

		for (; i < b->pages && n < together * GPU_PAGE_SLOTS && !b->room.hidden[i]; i++) {
			uint32_t left = b->live - i * GPU_PAGE_SLOTS, rows = left < GPU_PAGE_SLOTS ? left : GPU_PAGE_SLOTS;

			widen(b, i, 1, rows, b->room.tile + (size_t)n * b->d);
			n += rows;
		}
		if (!n) {
			i++;
			continue;
		}
		for (uint32_t m = 0; m < b->tiles; m++)
			for (uint32_t c = 0; c < b->d; c += 16)
				tile_values(b->room.logits + (size_t)m * TILE_ROWS * b->ld + first, b->ld, b->room.tile + c, b->d, n,
					    b->room.out + (size_t)m * TILE_ROWS * b->d + c);
	}
}

static void block_init(struct block *b, const struct host_item *it, const struct lane_view *v, uint32_t live)
{
	const struct gpu_shape *sh = &it->step->shape;

	*b = (struct block){ .it = it, .v = *v, .type = sh->slot_type, .d = sh->head_dim, .group = sh->group, .live = live,
			     .pages = gpu_pages_for(live), .ld = host_row_floats(live) };
	b->room = host_room(it->scratch, sh, live, it->seq->n);
}

/* Takes queries first .. first + queries - 1. */
static void block_take(struct block *b, uint32_t first, uint32_t queries)
{
	b->first = first;
	b->queries = queries;
	b->rows = queries * b->group;
	b->tiles = (b->rows + TILE_ROWS - 1u) / TILE_ROWS;
	for (uint32_t i = 0; i < queries; i++)
		b->limit[i] = b->it->seq->pos + (int32_t)(first + i);
	load_queries(b);
	block_logits(b);
}

static void block_store(const struct block *b, const float *inv)
{
	const struct host_item *it = b->it;

	for (uint32_t m = 0; m < b->rows; m++) {
		float *o = b->room.out + (size_t)m * b->d;
		int64_t row = (int64_t)it->seq->row + b->first + m / b->group;

		for (uint32_t c = 0; c < b->d; c += VW)
			vf_store(o + c, vf_load(o + c) * vf_set1(inv[m]));
		row_from_float(tensor_row(it->b, row, it->kv_head * b->group + m % b->group, b->d), it->b->type, o, b->d);
	}
}

static void attend_block(struct block *b, const struct gpu_table *t)
{
	const struct host_item *it = b->it;
	struct probs p = { .e = b->room.logits, .ld = b->ld, .inv_row = 1, .queries = b->queries, .group = b->group };
	float inv[HOST_BLOCK_ROWS];

	for (uint32_t m = 0; m < b->rows; m++) {
		float max, sum = softmax_row(b->room.logits + m * b->ld, (size_t)b->pages * GPU_PAGE_SLOTS, &max);
		size_t row = (size_t)it->seq->row + b->first + m / b->group;
		size_t head = it->kv_head * b->group + m % b->group;

		inv[m] = sum > 0.0f ? 1.0f / sum : 0.0f;
		if (it->lse)
			it->lse[row * it->step->shape.n_kv_heads * b->group + head] = sum > 0.0f ? max + logf(sum) : NEVER;
	}
	p.inv = inv;
	for (uint32_t i = 0; i < b->queries; i++)
		p.seen |= observed(it, t, it->seq->pos + (int32_t)(b->first + i)) << i;
	heat_add(&b->v, t, &p, b->live);
	block_values(b);
	block_store(b, inv);
}

static void attend_item(const struct host_item *it)
{
	const struct gpu_shape *sh = &it->step->shape;
	const struct gpu_table *t = it->seq->table;
	const struct lane_view v = lane_view(t, it->layer * sh->n_kv_heads + it->kv_head, it->step->map);
	const uint32_t live = gpu_live(v.lane, it->seq->used + it->seq->n), most = host_block_queries(sh->group);
	struct block b;

	if (it->seq->n == 1 && sh->group <= FEW_HEADS) {
		attend_one(it, &v, live);
		return;
	}
	block_init(&b, it, &v, live);
	for (uint32_t i = 0; i < it->seq->n; i += most) {
		block_take(&b, i, it->seq->n - i < most ? it->seq->n - i : most);
		attend_block(&b, t);
	}
}

/* Heat alone: probabilities from another kernel's log-sum-exp. */
static void observe_item(const struct host_item *it)
{
	const struct gpu_shape *sh = &it->step->shape;
	const struct gpu_table *t = it->seq->table;
	const struct lane_view v = lane_view(t, it->layer * sh->n_kv_heads + it->kv_head, it->step->map);
	const uint32_t live = gpu_live(v.lane, it->seq->used + it->seq->n), most = host_block_queries(sh->group);
	float inv[HOST_BLOCK_ROWS];
	struct block b;

	block_init(&b, it, &v, live);
	for (uint32_t m = 0; m < HOST_BLOCK_ROWS; m++)
		inv[m] = 1.0f;
	for (uint32_t i = it->last && it->last < it->seq->n ? it->seq->n - it->last : 0; i < it->seq->n; i += most) {
		struct probs p = { .e = b.room.logits, .ld = b.ld, .inv = inv, .inv_row = 1, .group = sh->group };

		block_take(&b, i, it->seq->n - i < most ? it->seq->n - i : most);
		for (uint32_t m = 0; m < b.rows; m++) {
			float *l = b.room.logits + m * b.ld;
			vf lse = vf_set1(it->lse_in[((size_t)it->seq->row + i + m / b.group) * sh->n_kv_heads * b.group +
						    it->kv_head * b.group + m % b.group]);

			for (uint32_t s = 0; s < b.pages * GPU_PAGE_SLOTS; s += VW)
				vf_store(l + s, vf_exp(vf_load(l + s) - lse));
		}
		p.queries = b.queries;
		for (uint32_t j = 0; j < b.queries; j++)
			p.seen |= (uint64_t)(b.limit[j] >= it->seq->heat_from) << j;
		heat_add(&b.v, t, &p, live);
	}
}

#endif
