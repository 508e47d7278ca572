/* Looking into a lane while a step is open: which tokens it holds, and their heat. For tools, not for the step path. */
#include "libclient/client.h"

#include <errno.h>
#include <string.h>

/* A lane as it is in the open step. */
struct lane {
	struct gpu_table t;
	uint32_t index, live;
};

/* The tables are device memory: read everything as such. */
static int read_at(const struct ebb_session *s, const void *at, void *to, size_t bytes)
{
	int rc = gpu_read(s->pool->dev, s->pool->stream, to, at, bytes);

	return rc ? ebbi_error(s->ebb, rc, "reading the session's tables: %s", strerror(-rc)) : 0;
}

/* Finds the lane and how many of its slots are live. Also waits for the step's work on the device, once per lane. */
static int find(struct ebb_session *s, uint32_t index, struct lane *out)
{
	const char *table = s->table;
	uint64_t used = s->begun - wire_load64(&s->words->base);
	struct gpu_lane lane;
	int rc;

	if (!s->batch || !s->batch->open)
		return ebbi_error(s->ebb, -EINVAL, "a lane can be looked at only while a step of its session is open");
	if (index >= s->n_layers * s->shape.n_kv_heads)
		return ebbi_error(s->ebb, -EINVAL, "lane %u of %u", index, s->n_layers * s->shape.n_kv_heads);
	rc = ebbi_keep_flush(s);
	if (!rc)
		rc = gpu_sync(s->pool->dev, s->batch->stream);
	if (!rc)
		rc = read_at(s, table, &out->t, sizeof(out->t));
	if (!rc && index >= out->t.n_lanes)
		rc = ebbi_broken(s->ebb, "session %u: its table has %u lanes", s->index, out->t.n_lanes);
	if (!rc)
		rc = read_at(s, table + gpu_table_lanes() + index * sizeof(lane), &lane, sizeof(lane));
	if (rc)
		return rc;
	out->index = index;
	out->live = gpu_live(lane, (uint32_t)used);
	if (out->t.n_heat > GPU_MAX_HEAT || gpu_blocks_for(out->live) > out->t.max_blocks)
		return ebbi_broken(s->ebb, "session %u: lane %u has %u slots, its table room for %u blocks", s->index, index, out->live,
				   out->t.max_blocks);
	return 0;
}

/* Address of the lane's block b. */
static int block(struct ebb_session *s, const struct lane *l, uint32_t b, char **at)
{
	const char *ids = (const char *)s->table + gpu_table_blocks(&l->t) + (size_t)l->index * l->t.max_blocks * 4u;
	uint32_t id;
	int rc = read_at(s, ids + b * 4u, &id, sizeof(id));

	if (rc)
		return rc;
	*at = ebbi_pool_at(s->pool, id, gpu_block_bytes(l->t.n_heat));
	return *at ? 0 : ebbi_broken(s->ebb, "session %u: a block of lane %u does not lie in a mapped slab", s->index, l->index);
}

int ebb_lane_read(struct ebb_session *s, uint32_t index, int32_t *pos, float *heat, uint32_t max)
{
	struct lane l;
	int rc = s ? find(s, index, &l) : -EINVAL;

	if (!rc && heat && !l.t.n_heat)
		rc = ebbi_error(s->ebb, -ENOTSUP, "this session collects no heat");
	for (uint32_t first = 0; !rc && first < l.live && first < max; first += GPU_BLOCK_SLOTS) {
		uint32_t left = (l.live < max ? l.live : max) - first, n = left < GPU_BLOCK_SLOTS ? left : GPU_BLOCK_SLOTS;
		char *at;

		rc = block(s, &l, first / GPU_BLOCK_SLOTS, &at);
		if (!rc && pos)
			rc = read_at(s, at, pos + first, n * sizeof(*pos));
		if (!rc && heat)
			rc = read_at(s, at + GPU_BLOCK_SLOTS * 4u, heat + first, n * sizeof(*heat));
	}
	return rc ? rc : (int)l.live;
}

int ebb_lane_write(struct ebb_session *s, uint32_t index, const float *heat, uint32_t n)
{
	struct lane l;
	int rc = s && heat ? find(s, index, &l) : -EINVAL;

	if (!rc && !l.t.n_heat)
		rc = ebbi_error(s->ebb, -ENOTSUP, "this session collects no heat");
	if (!rc && n > l.live)
		rc = ebbi_error(s->ebb, -EINVAL, "heat for %u slots; lane %u has %u", n, index, l.live);
	for (uint32_t first = 0; !rc && first < n; first += GPU_BLOCK_SLOTS) {
		uint32_t left = n - first;
		char *at;

		rc = block(s, &l, first / GPU_BLOCK_SLOTS, &at);
		if (!rc)
			rc = gpu_write(s->pool->dev, s->pool->stream, at + GPU_BLOCK_SLOTS * 4u, heat + first,
				       (left < GPU_BLOCK_SLOTS ? left : GPU_BLOCK_SLOTS) * sizeof(*heat));
	}
	if (!rc)
		rc = gpu_sync(s->pool->dev, s->pool->stream);	/* before step_end says that the step is done */
	return rc;
}
