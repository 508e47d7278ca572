/*
 * Heat later (gpu_keep(), gpu_heat_kept()) against the oracle, which knows nothing of it: steps some of whose sessions keep their queries, now and
 * then the heat of what they kept. Outputs are those of steps that add heat at once, bit for bit. A device that keeps none adds it at once, whatever
 * it is told: the tests hold there, too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>

#include "tests/lib/world.h"

enum { LAYERS = 2, SESSIONS = 3, STEPS = 24 };

/* What a session has kept. */
struct kept {
	uint32_t n;
	int32_t pos;
};

static int keeps(const struct world *w)
{
	const struct gpu_shape *s = &w->spec.shape;

	return world_is_cuda() && s->slot_type != GPU_F32 && (s->head_dim == 64 || s->head_dim == 128);
}

/* One layer of a step: of w and of its twin, which adds heat at once; the same numbers go into both. */
static void layer_of(struct world *w, struct world *twin, const struct oracle_seq *oracle, uint32_t layer, uint32_t rows, uint32_t type)
{
	const uint32_t heads = w->spec.shape.n_kv_heads * w->spec.shape.group, d = w->spec.shape.head_dim;
	const float scale = 1.0f / sqrtf((float)d);
	double *out = calloc((size_t)rows * heads * d, sizeof(double)), *lse = calloc((size_t)rows * heads, sizeof(double));
	struct world_tensor k, v, q, got, want;

	assert_true(out && lse);
	world_tensor_new(w, &k, rows, w->spec.shape.n_kv_heads * d, type, 0, 1.0f);
	world_tensor_new(w, &v, rows, w->spec.shape.n_kv_heads * d, type, 0, 1.0f);
	world_tensor_new(w, &q, rows, heads * d, type, 0, 2.0f);
	world_tensor_new(w, &got, rows, heads * d, GPU_F32, 0, 0.0f);
	world_tensor_new(w, &want, rows, heads * d, GPU_F32, 0, 0.0f);
	assert_int_equal(gpu_append(w->step, w->stream, layer, &k.device, &v.device), 0);
	assert_int_equal(gpu_attend(w->step, w->stream, layer, &q.device, &got.device, scale, NULL), 0);
	assert_int_equal(gpu_sync(w->dev, w->stream), 0);
	assert_int_equal(gpu_append(twin->step, twin->stream, layer, &k.device, &v.device), 0);
	assert_int_equal(gpu_attend(twin->step, twin->stream, layer, &q.device, &want.device, scale, NULL), 0);
	assert_int_equal(gpu_sync(twin->dev, twin->stream), 0);
	world_tensor_read(w, &got);
	world_tensor_read(w, &want);
	assert_memory_equal(got.host.data, want.host.data, got.bytes);
	for (unsigned i = 0; i < SESSIONS; i++) {
		oracle_append(&oracle[i], layer, &k.host, &v.host);
		oracle_attend(&oracle[i], layer, &q.host, (double)scale, out, lse);
	}
	world_tensor_free(w, &k);
	world_tensor_free(w, &v);
	world_tensor_free(w, &q);
	world_tensor_free(w, &got);
	world_tensor_free(w, &want);
	free(out);
	free(lse);
}

static void flush(struct world *w, struct kept *kept, unsigned which, int forget)
{
	struct gpu_kept list[SESSIONS];
	unsigned n = 0;

	for (unsigned i = 0; i < SESSIONS; i++)
		if (which >> i & 1 && kept[i].n) {
			list[n++] = (struct gpu_kept){ forget ? NULL : w->session[i].table, SESSIONS - 1 - i, kept[i].n, w->session[i].used,
						       kept[i].pos, w->spec.observe };
			kept[i].n = 0;
		}
	assert_int_equal(gpu_heat_kept(w->step, w->stream, list, n), 0);
}

static void run_case(const struct world_spec *spec, uint32_t type, uint32_t depth, const uint32_t *len, unsigned n_len)
{
	struct world *w = world_new(spec), *twin = world_new(spec);
	struct kept kept[SESSIONS] = { { 0, 0 } };
	uint64_t random = spec->seed;

	assert_int_equal(gpu_keep(w->step, w->stream, &spec->shape, LAYERS, SESSIONS, depth), keeps(w) ? 0 : -ENOTSUP);
	for (unsigned i = 0; i < SESSIONS; i++) {
		world_fill(w, i, len, n_len, STEPS);
		world_fill(twin, i, len, n_len, STEPS);
	}
	world_put(w);
	world_put(twin);
	for (unsigned s = 0; s < STEPS; s++) {
		uint32_t n[SESSIONS], rows;
		struct oracle_seq oracle[SESSIONS], other[SESSIONS];
		struct gpu_seq seq[SESSIONS];

		for (unsigned i = 0; i < SESSIONS; i++)		/* now and then one sits out */
			n[i] = world_below(&random, 8) || i == s % SESSIONS;
		rows = world_step(w, n, seq, oracle);
		assert_int_equal(world_step(twin, n, seq, other), rows);
		for (unsigned i = 0; i < SESSIONS; i++) {
			if (!n[i] || kept[i].n == depth || (i == 1 && !world_below(&random, 3)) || (uint32_t)seq[i].pos % spec->observe ||
			    (kept[i].n && (uint32_t)seq[i].pos != (uint32_t)kept[i].pos + kept[i].n * spec->observe))
				continue;
			if (!kept[i].n)
				kept[i].pos = seq[i].pos;
			seq[i].kept = gpu_kept_at(SESSIONS - 1 - i, kept[i].n++);
		}
		assert_int_equal(gpu_step_set(w->step, w->stream, &spec->shape, w->map, seq, SESSIONS, world_live_max(w, n)), 0);
		for (uint32_t layer = 0; layer < LAYERS; layer++)
			layer_of(w, twin, oracle, layer, rows, type);
		for (unsigned i = 0; i < SESSIONS; i++) {
			w->session[i].used += n[i];
			w->session[i].pos += (int32_t)n[i];
			twin->session[i].used += n[i];
			twin->session[i].pos += (int32_t)n[i];
		}
		if (!world_below(&random, 5))
			flush(w, kept, 1u << world_below(&random, SESSIONS), 0);
	}
	flush(w, kept, 7, 0);
	world_check(w, 1e-3, 2e-5);
	flush(w, (struct kept[]){ { depth, 0 }, { depth, 0 }, { depth, 0 } }, 7, 0);	/* it was forgotten: nothing is added twice */
	world_check(w, 1e-3, 2e-5);
	world_free(w);
	world_free(twin);
}

static const uint32_t dims[] = { 64, 128 }, groups[] = { 1, 3, 4, 5, 8, 16 };
static const uint32_t lengths[] = { 0, 1, 17, 31, 32, 33, 255, 257, 600 }, long_ones[] = { 2049, 1000, 511 };

static struct world_spec spec_of(uint32_t slot_type, uint32_t dim, uint32_t group, unsigned number)
{
	return (struct world_spec){
		.shape = { .n_kv_heads = 1 + number % 2, .group = group, .head_dim = dim, .slot_type = slot_type },
		.n_layers = LAYERS, .n_sessions = SESSIONS, .window = 32, .max_slots = 2200, .n_heat = 1, .heat = { EVICT_HEAT_SUM },
		.observe = number % 4 == 3 ? 3 : 1, .n_credit = 1, .seed = 300 + number, .places = 17 + number,
	};
}

/* All types of slots and sizes of heads, with one group or with all others. */
static void all_types(int usual)
{
	unsigned number = 0;

	for (uint32_t t = GPU_F16; t <= GPU_Q8; t++)
		for (unsigned d = 0; d < 2; d++)
			for (unsigned g = 0; g < 6; g++, number++) {
				const struct world_spec spec = spec_of(t, dims[d], groups[g], number);
				const uint32_t depth = groups[g] == 16 || number % 3 == 0 ? 8 : groups[g] == 8 ? 16 : 24;

				if (usual == (groups[g] == 4))
					run_case(&spec, t == GPU_Q8 ? g % 2 ? GPU_F16 : GPU_BF16 : t, depth, lengths, 9);
			}
}

/* First, and few, so that a sanitizer gets through them. */
static void heat_is_the_same_later(void **state)
{
	(void)state;
	all_types(1);
}

static void groups_of_any_size_agree(void **state)
{
	(void)state;
	all_types(0);
}

static void heat_of_long_lanes_is_the_same_later(void **state)
{
	struct world_spec spec = spec_of(GPU_BF16, 128, 4, 4);

	(void)state;
	run_case(&spec, GPU_BF16, 32, long_ones, 3);
	spec.shape.group = 8;	/* the logits of such lanes do not fit into shared memory */
	run_case(&spec, GPU_BF16, 16, long_ones, 3);
}

/* Other kinds of heat, other queries and other slots: all is added at once. */
static void what_cannot_be_kept_is_added_at_once(void **state)
{
	struct world_spec spec;

	(void)state;
	for (unsigned kind = 1; kind < 4; kind++) {
		spec = spec_of(GPU_BF16, 64, 3, kind);
		spec.heat[0] = kind;
		run_case(&spec, GPU_BF16, 16, lengths, 9);
	}
	spec = spec_of(GPU_BF16, 64, 3, 4);
	spec.n_heat = 2;
	spec.heat[1] = EVICT_HEAT_SQUARES;
	run_case(&spec, GPU_BF16, 16, lengths, 9);
	spec = spec_of(GPU_BF16, 128, 4, 5);
	run_case(&spec, GPU_F32, 16, lengths, 9);
	spec = spec_of(GPU_Q8, 64, 4, 6);
	run_case(&spec, GPU_F32, 16, lengths, 9);
	spec = spec_of(GPU_F32, 64, 4, 6);
	run_case(&spec, GPU_F32, 16, lengths, 9);
	spec = spec_of(GPU_BF16, 80, 4, 7);
	run_case(&spec, GPU_BF16, 16, lengths, 9);
}

static void what_is_forgotten_adds_nothing(void **state)
{
	struct world_spec spec = spec_of(GPU_BF16, 64, 3, 8);
	struct world *w = world_new(&spec);
	struct kept kept[SESSIONS] = { { 8, 0 }, { 8, 0 }, { 8, 0 } };

	(void)state;
	assert_int_equal(gpu_keep(w->step, w->stream, &spec.shape, LAYERS, SESSIONS, 8), keeps(w) ? 0 : -ENOTSUP);
	assert_int_equal(gpu_keep(w->step, w->stream, &spec.shape, LAYERS, SESSIONS, 257), -EINVAL);
	assert_int_equal(gpu_keep(w->step, w->stream, &spec.shape, LAYERS, 0, 8), -EINVAL);
	for (unsigned i = 0; i < SESSIONS; i++)
		world_fill(w, i, lengths, 9, STEPS);
	world_put(w);
	flush(w, kept, 7, 0);		/* nobody has written there */
	kept[0].n = kept[1].n = kept[2].n = 8;
	flush(w, kept, 7, 1);
	world_check(w, 0, 0);
	assert_int_equal(gpu_keep(w->step, w->stream, &spec.shape, LAYERS, 0, 0), keeps(w) ? 0 : -ENOTSUP);
	world_free(w);
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(heat_is_the_same_later),
		cmocka_unit_test(groups_of_any_size_agree),
		cmocka_unit_test(heat_of_long_lanes_is_the_same_later),
		cmocka_unit_test(what_cannot_be_kept_is_added_at_once),
		cmocka_unit_test(what_is_forgotten_adds_nothing),
	};

	return cmocka_run_group_tests_name("heat later", tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	return world_main(argc, argv, run);
}
