/* Models into images, images to and from the device, and the comparison. */
#include "tests/lib/world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

static void put_slot(struct world *w, unsigned session, uint32_t lane, uint32_t at)
{
	const struct oracle_session *m = &w->session[session].model;
	const struct oracle_lane *l = &m->lane[lane];
	const struct oracle_slot *slot = &l->slot[at];
	const uint32_t row = oracle_row_room(&m->shape);
	const struct gpu_parts part = gpu_page_parts(m->shape.slot_type, m->shape.head_dim);
	struct world_place p = world_at(w, w->image, session, lane, at);

	memcpy(p.k, &l->k[at * row], part.bytes[0]);
	memcpy(p.v, &l->v[at * row], part.bytes[1]);
	if (p.k_param)
		memcpy(p.k_param, &slot->k_param, 4);
	if (p.v_param)
		memcpy(p.v_param, &slot->v_param, 4);
	memcpy(p.pos, &slot->pos, 4);
	memcpy(p.own_pos, &slot->own_pos, 4);
	for (uint32_t i = 0; i < m->table.n_heat; i++) {
		const float heat = (float)slot->heat[i];

		memcpy(p.heat[i], &heat, 4);
	}
	for (uint32_t i = 0; i < m->n_credit; i++)
		memcpy(p.credit[i], &slot->credit[i], 4);
}

static void put_table(const struct world_session *s, uint8_t *to, int private)
{
	const struct gpu_table *t = &s->model.table;

	memcpy(to, t, sizeof(*t));
	for (uint32_t l = 0; l < t->n_lanes; l++) {
		memcpy(to + gpu_table_lanes() + l * sizeof(struct gpu_lane), &s->model.lane[l].head, sizeof(struct gpu_lane));
		memcpy(to + gpu_table_next(t) + (size_t)l * t->window * 4, s->model.lane[l].next, (size_t)t->window * 4);
	}
	memcpy(to + gpu_table_pages(t), s->page, (size_t)t->n_lanes * t->max_pages * 4);
	memcpy(to + gpu_table_blocks(t), s->block, (size_t)t->n_lanes * t->max_blocks * 4);
	if (private)
		memcpy(to + gpu_table_credits(t), s->credit, (size_t)t->n_lanes * t->max_blocks * 4);
}

/* Slots of a lane that have contents: len, and those that the window's tokens so far have taken. */
static uint32_t filled(const struct world_session *s, uint32_t lane)
{
	const uint32_t live = gpu_live(s->model.lane[lane].head, s->used), meaningful = s->model.lane[lane].meaningful;

	return live < meaningful ? live : meaningful;
}

void world_put(struct world *w)
{
	for (unsigned i = 0; i < w->spec.n_sessions; i++) {
		struct world_session *s = &w->session[i];

		if (!s->shared_stays)
			put_table(s, world_byte(w->image, s->table_id), 0);
		put_table(s, world_byte(w->image, s->priv_id), 1);
		for (uint32_t l = 0; l < s->model.table.n_lanes; l++)
			for (uint32_t at = 0; at < filled(s, l); at++)
				put_slot(w, i, l, at);
	}
	for (uint32_t i = 0; i < w->n_slabs; i++) {
		const uint32_t index = w->slab_order[i];

		assert_int_equal(gpu_write(w->dev, w->stream, w->slab[index].base, w->image[index],
					   (size_t)1 << WORLD_SLAB_SHIFT), 0);
	}
	assert_int_equal(gpu_sync(w->dev, w->stream), 0);
}

void world_pull(struct world *w)
{
	for (uint32_t i = 0; i < w->n_slabs; i++) {
		const uint32_t index = w->slab_order[i];

		assert_int_equal(gpu_read(w->dev, w->stream, w->actual[index], w->slab[index].base,
					  (size_t)1 << WORLD_SLAB_SHIFT), 0);
	}
}

/* --- comparing ---------------------------------------------------------------------------------------------------------- */

struct where {
	unsigned session;
	uint32_t lane, slot;
	const char *part;
};

static void differ(const struct where *at, size_t byte, const uint8_t *expected, const uint8_t *actual, size_t n)
{
	fprintf(stderr, "session %u lane %u slot %u: %s differs at byte %zu: expected", at->session, at->lane, at->slot, at->part, byte);
	for (size_t i = byte; i < n && i < byte + 8; i++)
		fprintf(stderr, " %02x", expected[i]);
	fprintf(stderr, ", found");
	for (size_t i = byte; i < n && i < byte + 8; i++)
		fprintf(stderr, " %02x", actual[i]);
	fprintf(stderr, "\n");
	fail();
}

static void same(struct where *at, const char *part, const uint8_t *expected, const uint8_t *actual, size_t n)
{
	if (!expected || !memcmp(expected, actual, n))
		return;
	at->part = part;
	for (size_t i = 0; i < n; i++)
		if (expected[i] != actual[i])
			differ(at, i, expected, actual, n);
}

/* Heat within its tolerance; then the image takes the device's, so that whole slabs can be compared. */
static void check_heat(struct where *at, uint8_t *expected, const uint8_t *actual, double want, double relative, double absolute)
{
	float got;

	memcpy(&got, actual, 4);
	if (memcmp(expected, actual, 4) && !(fabs((double)got - want) <= absolute + relative * fabs(want))) {
		fprintf(stderr, "session %u lane %u slot %u: heat is %.9g, expected %.9g\n", at->session, at->lane, at->slot,
			(double)got, want);
		fail();
	}
	memcpy(expected, actual, 4);
}

static void check_slot(struct world *w, struct where *at, double relative, double absolute)
{
	const struct oracle_session *m = &w->session[at->session].model;
	const struct gpu_parts part = gpu_page_parts(m->shape.slot_type, m->shape.head_dim);
	struct world_place want = world_at(w, w->image, at->session, at->lane, at->slot);
	struct world_place got = world_at(w, w->actual, at->session, at->lane, at->slot);

	same(at, "position", want.pos, got.pos, 4);
	same(at, "the daemon's position", want.own_pos, got.own_pos, 4);
	same(at, "K's parameters", want.k_param, got.k_param, part.bytes[2]);
	same(at, "V's parameters", want.v_param, got.v_param, part.bytes[3]);
	same(at, "K", want.k, got.k, part.bytes[0]);
	same(at, "V", want.v, got.v, part.bytes[1]);
	for (uint32_t i = 0; i < m->n_credit; i++)
		same(at, "credit", want.credit[i], got.credit[i], 4);
	for (uint32_t i = 0; i < m->table.n_heat; i++)
		check_heat(at, want.heat[i], got.heat[i], m->lane[at->lane].slot[at->slot].heat[i], relative, absolute);
}

/* What may be anything becomes what it is. */
static void take_slot(struct world *w, const struct where *at)
{
	const struct oracle_session *m = &w->session[at->session].model;
	const struct gpu_parts part = gpu_page_parts(m->shape.slot_type, m->shape.head_dim);
	struct world_place want = world_at(w, w->image, at->session, at->lane, at->slot);
	struct world_place got = world_at(w, w->actual, at->session, at->lane, at->slot);

	memcpy(want.k, got.k, part.bytes[0]);
	memcpy(want.v, got.v, part.bytes[1]);
	memcpy(want.pos, got.pos, 4);
	memcpy(want.own_pos, got.own_pos, 4);
	if (want.k_param)
		memcpy(want.k_param, got.k_param, 4);
	if (want.v_param)
		memcpy(want.v_param, got.v_param, 4);
	for (uint32_t i = 0; i < m->table.n_heat; i++)
		memcpy(want.heat[i], got.heat[i], 4);
	for (uint32_t i = 0; i < m->n_credit; i++)
		memcpy(want.credit[i], got.credit[i], 4);
}

static void check_table(struct world *w, unsigned session, uint32_t id, int private)
{
	const struct world_session *s = &w->session[session];
	const struct gpu_table *t = &s->model.table;
	uint8_t *want = world_byte(w->image, id);
	const uint8_t *got = world_byte(w->actual, id);

	if (private || !s->shared_stays)
		put_table(s, want, private);
	for (uint32_t l = 0; l < t->n_lanes; l++) {
		struct where at = { session, l, 0, NULL };
		const size_t lane = gpu_table_lanes() + l * sizeof(struct gpu_lane);

		same(&at, private ? "the private lane header" : "the shared lane header", want + lane, got + lane,
		     sizeof(struct gpu_lane));
		for (at.slot = 0; at.slot < t->window; at.slot++) {
			const size_t next = gpu_table_next(t) + ((size_t)l * t->window + at.slot) * 4;
			uint32_t known;

			memcpy(&known, want + next, 4);
			if (known == WORLD_OPEN)
				memcpy(want + next, got + next, 4);
			same(&at, private ? "the private next[slot]" : "the shared next[slot]", want + next, got + next, 4);
		}
	}
}

void world_check(struct world *w, double heat_relative, double heat_absolute)
{
	world_pull(w);
	for (unsigned i = 0; i < w->spec.n_sessions; i++) {
		struct world_session *s = &w->session[i];

		check_table(w, i, s->table_id, 0);
		check_table(w, i, s->priv_id, 1);
		for (uint32_t l = 0; l < s->model.table.n_lanes; l++) {
			struct where at = { i, l, 0, NULL };

			for (; at.slot < filled(s, l); at.slot++) {
				put_slot(w, i, l, at.slot);
				check_slot(w, &at, heat_relative, heat_absolute);
			}
			for (; at.slot < s->open_to && at.slot / GPU_PAGE_SLOTS < s->model.table.max_pages; at.slot++)
				if (s->page[l * s->model.table.max_pages + at.slot / GPU_PAGE_SLOTS] != w->nowhere)
					take_slot(w, &at);
		}
	}
	for (uint32_t i = 0; i < w->n_slabs; i++) {
		const uint32_t index = w->slab_order[i];

		if (!memcmp(w->image[index], w->actual[index], (size_t)1 << WORLD_SLAB_SHIFT))
			continue;
		for (size_t b = 0; b < (size_t)1 << WORLD_SLAB_SHIFT; b++)
			if (w->image[index][b] != w->actual[index][b]) {
				fprintf(stderr, "slab %u byte %zu (id %zu + %zu) was written: expected %02x, found %02x\n", index, b,
					(((size_t)index << WORLD_SLAB_SHIFT) + b) / GPU_UNIT, b % GPU_UNIT, w->image[index][b],
					w->actual[index][b]);
				fail();
			}
	}
}
