/* Tensors, buffers and steps of a world. */
#include "tests/lib/world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define POISON 0xff

static size_t whole(size_t bytes)	/* memory pages */
{
	return (bytes + 4095) / 4096 * 4096;
}

void world_buffer_new(struct world *w, struct world_buffer *b, size_t bytes)
{
	uint8_t *poison = malloc(bytes);

	assert_non_null(poison);
	memset(poison, POISON, bytes);
	b->bytes = bytes;
	assert_int_equal(gpu_slab_new(w->dev, whole(bytes), 0, &b->slab), 0);
	assert_int_equal(gpu_write(w->dev, w->stream, b->slab.base, poison, bytes), 0);
	free(poison);
}

void world_buffer_free(struct world *w, struct world_buffer *b)
{
	gpu_sync(w->dev, w->stream);
	gpu_slab_free(w->dev, &b->slab);
}

void world_tensor_new(struct world *w, struct world_tensor *t, uint32_t rows, uint32_t width, uint32_t type, uint32_t pad, float spread)
{
	t->bytes = (size_t)(rows ? rows : 1) * (width + pad) * gpu_type_bytes(type);
	t->host = (struct gpu_tensor){ .data = malloc(t->bytes), .type = type, .stride = width + pad };
	assert_non_null(t->host.data);
	memset(t->host.data, POISON, t->bytes);
	for (uint32_t r = 0; r < rows && spread != 0.0f; r++)
		for (uint32_t c = 0; c < width; c++)
			oracle_store(type, t->host.data, (size_t)r * (width + pad) + c, (double)(spread * world_normal(&w->random)));
	assert_int_equal(gpu_slab_new(w->dev, whole(t->bytes), 0, &t->slab), 0);
	assert_int_equal(gpu_write(w->dev, w->stream, t->slab.base, t->host.data, t->bytes), 0);
	t->device = t->host;
	t->device.data = t->slab.base;
}

void world_tensor_read(struct world *w, struct world_tensor *t)
{
	assert_int_equal(gpu_read(w->dev, w->stream, t->host.data, t->slab.base, t->bytes), 0);
}

void world_tensor_free(struct world *w, struct world_tensor *t)
{
	gpu_sync(w->dev, w->stream);
	gpu_slab_free(w->dev, &t->slab);
	free(t->host.data);
}

uint32_t world_live_max(const struct world *w, const uint32_t *n)
{
	uint32_t most = 1;

	for (unsigned i = 0; i < w->spec.n_sessions; i++) {
		const struct world_session *s = &w->session[i];

		for (uint32_t l = 0; l < s->model.table.n_lanes; l++) {
			const uint32_t live = gpu_live(s->model.lane[l].head, s->used + n[i]);

			most = live > most ? live : most;
		}
	}
	return most;
}

/* No live slot is later than the step's last token: what attend may be told. */
static bool is_newest(const struct world_session *s, uint32_t n)
{
	for (uint32_t l = 0; l < s->model.table.n_lanes; l++) {
		const struct oracle_lane *lane = &s->model.lane[l];

		for (uint32_t at = 0; at < gpu_live(lane->head, s->used); at++)
			if (lane->slot[at].pos > s->pos + (int32_t)n - 1)
				return false;
	}
	return true;
}

uint32_t world_step(struct world *w, const uint32_t *n, struct gpu_seq *seq, struct oracle_seq *oracle)
{
	uint32_t rows = 1;	/* row 0 is nobody's */

	for (unsigned i = w->spec.n_sessions; i-- > 0;) {	/* the last session's rows come first */
		struct world_session *s = &w->session[i];

		seq[i] = (struct gpu_seq){ .table = s->table, .row = rows, .n = n[i], .used = s->used, .pos = s->pos };
		seq[i].newest = !w->spec.untold && is_newest(s, n[i]);
		oracle[i] = (struct oracle_seq){ .session = &s->model, .row = rows, .n = n[i], .used = s->used, .pos = s->pos };
		/* In half of the steps, heat from some of the queries only: from all, the later half, none. */
		if (w->spec.seed % 2)
			seq[i].heat_from = oracle[i].heat_from = s->pos + (int32_t)(n[i] * ((w->spec.seed + i) % 3)) / 2;
		rows += n[i] + (i % 2);
	}
	assert_int_equal(gpu_step_set(w->step, w->stream, &w->spec.shape, w->map, seq, w->spec.n_sessions,
				      world_live_max(w, n)), 0);
	return rows;
}

void world_fill(struct world *w, unsigned session, const uint32_t *len, unsigned n_len, uint32_t tokens)
{
	struct world_session *s = &w->session[session];
	const uint32_t window = w->spec.window;
	uint32_t longest = 1;

	for (unsigned i = 0; i < n_len; i++)
		longest = len[i] > longest ? len[i] : longest;
	const int32_t pos = (int32_t)(longest + world_below(&w->random, 2 * longest));

	for (uint32_t l = 0; l < s->model.table.n_lanes; l++) {
		const uint32_t live = len[world_below(&w->random, n_len)];
		const uint32_t least = live < window ? window - live : 0;	/* next[] holds live slots only */
		uint32_t fresh;

		if (tokens > window) {
			fresh = tokens + world_below(&w->random, 3);
		} else {
			switch (world_below(&w->random, 3)) {
			case 0: fresh = least; break;
			case 1: fresh = window; break;
			default: fresh = least + world_below(&w->random, window - least + 1); break;
			}
		}
		if (live + fresh > w->spec.max_slots)
			fresh = w->spec.max_slots - live;
		world_lane(w, session, l, live, fresh, pos, 1);
	}
	s->used = 0;
}
