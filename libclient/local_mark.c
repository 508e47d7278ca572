/*
 * Marks without a daemon. Nothing is evicted, so tags and pins change nothing; a drop is done as the daemon does it, by select, lane by
 * lane: each gets a private table of its own for the while (select trusts no other), with the positions that the shared blocks have.
 * Behind it the session is in a new window, which begins with what is left.
 */
#include "libclient/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct drop {
	struct ebb_session *s;
	struct gpu_table t, one;	/* the session's table, and that of a lane alone */
	struct gpu_slab slab;		/* the lane's private table, then its credit blocks */
	uint32_t index;			/* of the slab in the map */
	size_t credit_at;
	uint32_t *word;			/* [begun]: all that was said */
	uint32_t *mark;			/* [begun]: as one layer sees it */
	uint32_t *live;			/* of the lane, behind the drop. These three: memory that the device reads and writes, too */
	uint32_t used;			/* tokens of the window so far */
};

static char *table_at(const struct drop *d, size_t bytes)
{
	return (char *)(uintptr_t)d->s->table + bytes;
}

static int copy(const struct drop *d, void *to, const void *from, size_t bytes)
{
	return gpu_copy(d->s->pool->dev, d->s->pool->stream, to, from, bytes);
}

/* The lane's private table: its own rows, and credit blocks with the positions of its first `live` slots. */
static int lane_table(const struct drop *d, uint32_t lane, uint32_t live)
{
	const struct ebb_session *s = d->s;
	const uint32_t n_blocks = gpu_blocks_for(live), bytes = gpu_block_bytes(0), first = (uint32_t)(d->credit_at / GPU_UNIT);
	const struct gpu_lane header = { .len = live };
	char *priv = d->slab.base;
	int rc = gpu_write(s->pool->dev, s->pool->stream, priv, &d->one, sizeof(d->one));

	if (!rc)
		rc = gpu_write(s->pool->dev, s->pool->stream, priv + gpu_table_lanes(), &header, sizeof(header));
	if (!rc)
		rc = copy(d, priv + gpu_table_pages(&d->one), table_at(d, gpu_table_pages(&d->t) + (size_t)lane * d->t.max_pages * 4u),
			  d->t.max_pages * 4u);
	if (!rc)
		rc = copy(d, priv + gpu_table_blocks(&d->one), table_at(d, gpu_table_blocks(&d->t) + (size_t)lane * d->t.max_blocks * 4u),
			  d->t.max_blocks * 4u);
	for (uint32_t b = 0; b < n_blocks && !rc; b++) {
		const uint64_t slab = ((uint64_t)d->index << s->pool->info.slab_shift) / GPU_UNIT;
		const uint32_t id = (uint32_t)(slab + first + b * (bytes / GPU_UNIT));
		uint32_t block;

		rc = gpu_write(s->pool->dev, s->pool->stream, priv + gpu_table_credits(&d->one) + b * 4u, &id, sizeof(id));
		if (!rc)
			rc = gpu_read(s->pool->dev, s->pool->stream, &block, priv + gpu_table_blocks(&d->one) + b * 4u, sizeof(block));
		if (!rc)
			rc = copy(d, priv + d->credit_at + (size_t)b * bytes, ebbi_pool_at(s->pool, block, bytes), bytes);
	}
	return rc;
}

static int drop_lane(const struct drop *d, uint32_t lane)
{
	struct ebb_session *s = d->s;
	char *header_at = table_at(d, gpu_table_lanes() + lane * sizeof(struct gpu_lane));
	struct gpu_plan plan = { 0 };
	struct gpu_lane header;
	struct gpu_turn turn = { .priv = d->slab.base, .plan = &plan, .n_lanes = 1, .slot_type = s->shape.slot_type,
				 .head_dim = s->shape.head_dim, .rule = { .policy = EVICT_full }, .marks = d->mark, .n_marks = s->begun,
				 .n_kv_heads = 1, .live = d->live };
	int rc = gpu_read(s->pool->dev, s->pool->stream, &header, header_at, sizeof(header));

	if (!rc)
		rc = lane_table(d, lane, gpu_live(header, d->used));
	if (!rc)
		rc = gpu_select(s->pool->dev, s->pool->stream, s->pool->map, &turn, 1, GPU_DROP, NULL);
	if (!rc)
		rc = gpu_sync(s->pool->dev, s->pool->stream);
	if (!rc)
		s->own.evicted += gpu_live(header, d->used) - *d->live;
	header = (struct gpu_lane){ .len = *d->live, .fresh = s->max_tokens - s->begun };
	return rc ? rc : gpu_write(s->pool->dev, s->pool->stream, header_at, &header, sizeof(header));
}

static int drop_all(struct drop *d)
{
	struct ebb_session *s = d->s;
	int rc = 0;

	for (uint32_t layer = 0; layer < s->n_layers && !rc; layer++) {
		for (uint32_t i = 0; i < s->begun; i++)
			d->mark[i] = evict_mark_drops(d->word[i], layer) ? evict_mark_drop(0, 0) : 0;
		for (uint32_t head = 0; head < s->shape.n_kv_heads && !rc; head++)
			rc = drop_lane(d, layer * s->shape.n_kv_heads + head);
	}
	if (!rc)
		s->own.base = s->begun;
	return rc ? rc : gpu_sync(s->pool->dev, s->pool->stream);
}

/* Room for one lane's private table, where the map finds it. */
static int drop_room(struct drop *d)
{
	struct ebbi_pool *pool = d->s->pool;
	int rc;

	d->one = d->t;
	d->one.n_lanes = 1;
	d->credit_at = (gpu_table_private_bytes(&d->one) + GPU_UNIT - 1) / GPU_UNIT * GPU_UNIT;
	while (d->index < pool->info.max_slabs && pool->slab[d->index].base)
		d->index++;
	if (d->index == pool->info.max_slabs)
		return -ENOSPC;
	rc = gpu_slab_new(pool->dev, d->credit_at + (size_t)d->t.max_blocks * gpu_block_bytes(0), 0, &d->slab);
	if (rc)
		return rc;
	rc = gpu_map_set(pool->map, pool->stream, d->index, d->slab.base);
	if (rc)
		gpu_slab_free(pool->dev, &d->slab);
	return rc;
}

int ebbi_local_mark(struct ebb_session *s, const struct ebb_mark *mark, uint32_t n)
{
	struct ebbi_pool *pool = s->pool;
	struct drop d = { .s = s, .used = s->begun - (uint32_t)s->own.base };
	bool drops = false;
	void *memory;
	int rc = 0;

	for (uint32_t i = 0; i < n; i++)
		drops |= mark[i].what == EBB_DROP && mark[i].n;
	if (!drops)
		return 0;
	rc = gpu_host_alloc(pool->dev, (2 * (size_t)s->begun + 1) * sizeof(*d.word), &memory);
	if (rc)
		return ebbi_error(s->ebb, rc, "memory for drops: %s", strerror(-rc));
	d.word = memory;
	d.mark = d.word + s->begun;
	d.live = d.mark + s->begun;
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t at = mark[i].first; mark[i].what == EBB_DROP && at < mark[i].first + mark[i].n; at++)
			d.word[at] = evict_mark_drop(d.word[at], mark[i].value);
	if (s->batch)
		rc = gpu_sync(pool->dev, s->batch->stream);
	if (!rc)
		rc = gpu_read(pool->dev, pool->stream, &d.t, s->table, sizeof(d.t));
	if (!rc)
		rc = drop_room(&d);
	if (!rc) {
		rc = drop_all(&d);
		(void)gpu_map_set(pool->map, pool->stream, d.index, NULL);
		gpu_slab_free(pool->dev, &d.slab);
	}
	gpu_host_free(pool->dev, memory);
	return rc ? ebbi_error(s->ebb, rc, "dropping tokens: %s", strerror(-rc)) : 0;
}
