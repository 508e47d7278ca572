/*
 * gpu_attend against the oracle: outputs, log-sum-exp and heat, over slot types, head sizes, groups, lengths, queries, tensor types
 * and strides; then what it must not depend on, bit for bit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "tests/lib/world.h"

static const uint32_t dims[] = { 64, 80, 96, 128, 192, 256 }, groups[] = { 1, 3, 4, 5, 8, 16 };
static const uint32_t small[] = { 0, 1, 2, 15, 16, 17, 31 }, middle[] = { 37, 63, 255, 256, 257 }, large[] = { 1000, 2049, 511 };
static const uint32_t counts[][3] = { { 1, 0, 2 }, { 1, 1, 1 }, { 32, 1, 0 }, { 2, 31, 1 } };

/* All that one layer of a step needs; outputs poisoned. */
struct layer {
	uint32_t rows, heads;
	struct world_tensor k, v, q, out;
	struct world_buffer lse;
};

static void layer_new(struct world *w, struct layer *l, uint32_t rows, uint32_t in_type, uint32_t out_type, uint32_t pad)
{
	const struct gpu_shape *s = &w->spec.shape;

	l->rows = rows;
	l->heads = s->n_kv_heads * s->group;
	world_tensor_new(w, &l->k, rows, s->n_kv_heads * s->head_dim, in_type, pad, 1.0f);
	world_tensor_new(w, &l->v, rows, s->n_kv_heads * s->head_dim, in_type, pad, 1.0f);
	world_tensor_new(w, &l->q, rows, l->heads * s->head_dim, in_type, pad ? 3 * pad : 0, 2.0f);
	world_tensor_new(w, &l->out, rows, l->heads * s->head_dim, out_type, pad, 0.0f);
	world_buffer_new(w, &l->lse, (size_t)rows * l->heads * sizeof(float));
}

static void layer_free(struct world *w, struct layer *l)
{
	world_tensor_free(w, &l->k);
	world_tensor_free(w, &l->v);
	world_tensor_free(w, &l->q);
	world_tensor_free(w, &l->out);
	world_buffer_free(w, &l->lse);
}

/* What an output may be off: the arithmetic's share (float32 on the host; a CUDA kernel may use tensor cores), the type's rounding. */
static double tolerance(const struct world *w, uint32_t out_type, double expected)
{
	const double arithmetic = world_is_cuda() && w->spec.shape.slot_type != GPU_F32 ? 5e-3 : 2e-5;

	return arithmetic + fabs(expected) * (out_type == GPU_BF16 ? 0.0040 : out_type == GPU_F16 ? 0.0005 : 1e-6);
}

static void check_rows(struct world *w, struct layer *l, const struct oracle_seq *seq, const double *out, const double *lse,
		       const float *got_lse, uint8_t *row_used)
{
	const uint32_t width = l->heads * w->spec.shape.head_dim;

	for (uint32_t r = seq->row; r < seq->row + seq->n; r++) {
		row_used[r] = 1;
		for (uint32_t c = 0; c < width; c++) {
			const double want = out[(size_t)r * width + c];
			const double got = oracle_load(l->out.host.type, l->out.host.data, (size_t)r * (size_t)l->out.host.stride + c);

			if (!(fabs(got - want) <= tolerance(w, l->out.host.type, want))) {
				fprintf(stderr, "slots %u d %u group %u: row %u (of %u from %u) head %u channel %u: %.9g, expected %.9g\n",
					w->spec.shape.slot_type, w->spec.shape.head_dim, w->spec.shape.group, r, seq->n, seq->row,
					c / w->spec.shape.head_dim, c % w->spec.shape.head_dim, got, want);
				fail();
			}
		}
		for (uint32_t h = 0; h < l->heads; h++) {
			const double want = lse[r * l->heads + h], got = (double)got_lse[r * l->heads + h];

			if (!(fabs(got - want) <= 2e-5 * (1.0 + fabs(want)))) {
				fprintf(stderr, "row %u head %u: lse %.9g, expected %.9g\n", r, h, got, want);
				fail();
			}
		}
	}
}

/* Rows of nobody and the room between the rows keep their poison. */
static void check_poison(struct layer *l, uint32_t head_dim, const float *lse, const uint8_t *row_used)
{
	const uint32_t width = l->heads * head_dim, bytes = gpu_type_bytes(l->out.host.type);

	for (uint32_t r = 0; r < l->rows; r++) {
		const uint8_t *row = (const uint8_t *)l->out.host.data + (size_t)r * (size_t)l->out.host.stride * bytes;

		for (size_t b = row_used[r] ? (size_t)width * bytes : 0; b < (size_t)l->out.host.stride * bytes; b++)
			assert_int_equal(row[b], 0xff);
		for (size_t b = 0; !row_used[r] && b < l->heads * sizeof(float); b++)
			assert_int_equal(((const uint8_t *)&lse[r * l->heads])[b], 0xff);
	}
}

static void check_outputs(struct world *w, struct layer *l, const struct oracle_seq *seq, uint32_t layer, double scale)
{
	const uint32_t width = l->heads * w->spec.shape.head_dim;
	double *out = calloc((size_t)l->rows * width, sizeof(double)), *lse = calloc((size_t)l->rows * l->heads, sizeof(double));
	float *got_lse = calloc((size_t)l->rows * l->heads, sizeof(float));
	uint8_t *row_used = calloc(l->rows, 1);

	assert_true(out && lse && got_lse && row_used);
	world_tensor_read(w, &l->out);
	assert_int_equal(gpu_read(w->dev, w->stream, got_lse, l->lse.slab.base, l->lse.bytes), 0);
	for (unsigned i = 0; i < w->spec.n_sessions; i++) {
		oracle_append(&seq[i], layer, &l->k.host, &l->v.host);
		oracle_attend(&seq[i], layer, &l->q.host, scale, out, lse);
		check_rows(w, l, &seq[i], out, lse, got_lse, row_used);
	}
	check_poison(l, w->spec.shape.head_dim, got_lse, row_used);
	free(out);
	free(lse);
	free(got_lse);
	free(row_used);
}

/* One step of all sessions over all layers: append, attend, compare. live_max: another bound on the lanes; 0: what the world says. */
static void bounded_step_and_check(struct world *w, const uint32_t *n, uint32_t in_type, uint32_t out_type, uint32_t pad, uint32_t live_max)
{
	struct gpu_seq seq[WORLD_MAX_SESSIONS];
	struct oracle_seq oracle[WORLD_MAX_SESSIONS];
	const uint32_t rows = world_step(w, n, seq, oracle);
	const float scale = 1.0f / sqrtf((float)w->spec.shape.head_dim);

	if (live_max)
		assert_int_equal(gpu_step_set(w->step, w->stream, &w->spec.shape, w->map, seq, w->spec.n_sessions, live_max), 0);
	for (uint32_t layer = 0; layer < w->spec.n_layers; layer++) {
		struct layer l;

		layer_new(w, &l, rows, in_type, out_type, pad);
		assert_int_equal(gpu_append(w->step, w->stream, layer, &l.k.device, &l.v.device), 0);
		assert_int_equal(gpu_attend(w->step, w->stream, layer, &l.q.device, &l.out.device, scale, l.lse.slab.base), 0);
		check_outputs(w, &l, oracle, layer, (double)scale);
		layer_free(w, &l);
	}
	for (unsigned i = 0; i < w->spec.n_sessions; i++) {
		w->session[i].used += n[i];
		w->session[i].pos += (int32_t)n[i];
	}
	world_check(w, 2e-4, 2e-6);
}

static void step_and_check(struct world *w, const uint32_t *n, uint32_t in_type, uint32_t out_type, uint32_t pad)
{
	bounded_step_and_check(w, n, in_type, out_type, pad, 0);
}

static struct world_spec spec_of(uint32_t slot_type, uint32_t dim, uint32_t group, unsigned number)
{
	return (struct world_spec){
		.shape = { .n_kv_heads = group > 5 ? 1 : 1 + number % 3, .group = group, .head_dim = dim, .slot_type = slot_type },
		.n_layers = 1 + number % 2, .n_sessions = 3, .window = 32, .max_slots = 2500,
		.n_heat = number % 3, .heat = { number % 4, (number + 1) % 4 }, .observe = number % 7 == 6 ? 3 : 1, .n_credit = 1,
		.seed = 4000 + number, .places = 99 + number,
	};
}

static void one_case(uint32_t slot_type, uint32_t dim, uint32_t group, unsigned number)
{
	struct world_spec spec = spec_of(slot_type, dim, group, number);
	const uint32_t *n = counts[number % 4];
	const uint32_t *len = number % 3 == 0 ? middle : number % 3 == 1 ? small : large;
	const unsigned n_len = number % 3 == 0 ? 5 : number % 3 == 1 ? 7 : 3;
	struct world *w;

	if (len == large)	/* thousands of slots: few lanes and few queries */
		n = counts[number % 2];
	w = world_new(&spec);
	for (unsigned i = 0; i < spec.n_sessions; i++)
		world_fill(w, i, len, n_len, 32);
	world_put(w);
	step_and_check(w, n, number % 3, (number / 2) % 3, number % 2 ? 8 : 0);
	if (n[0] < 32 && n[1] < 31)	/* on in the same window */
		step_and_check(w, n, (number + 1) % 3, (number + 2) % 3, number % 2 ? 0 : 3);
	world_free(w);
}

static void attend_agrees_with_the_oracle(void **state)
{
	(void)state;
	for (uint32_t type = GPU_F32; type < world_types(); type++)
		for (unsigned i = 0; i < 6; i++)
			one_case(type, dims[i], groups[(i + type) % 6], type * 7 + i);
}

static void every_group_works_at_the_commonest_head_sizes(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		one_case(GPU_BF16, 64, groups[i], 50 + i);
		one_case(GPU_BF16, 128, groups[i], 61 + i);
	}
}

static void a_long_prefill_chunk_agrees_with_the_oracle(void **state)
{
	static const uint32_t n[3] = { 300, 0, 2 }, first[] = { 0, 1, 130 };

	(void)state;
	for (uint32_t type = GPU_F32; type < world_types(); type++) {
		struct world_spec spec = spec_of(type, type == GPU_BF16 ? 128 : 64, 3, 20 + type);
		struct world *w;

		spec.n_heat = 2;
		w = world_new(&spec);
		for (unsigned i = 0; i < 3; i++)
			world_fill(w, i, first, 3, n[i]);
		world_put(w);
		step_and_check(w, n, type % 3, type % 3, 0);
		world_free(w);
	}
}

/* Steps that go more than once around whatever rings there are, with every size of group and of head. */
static void many_queries_over_long_lanes_agree_with_the_oracle(void **state)
{
	static const uint32_t n[3] = { 49, 0, 2 };

	(void)state;
	for (uint32_t type = GPU_F16; type < world_types(); type++) {
		for (unsigned i = 0; i < 6; i++) {
			struct world_spec spec = spec_of(type, dims[i], groups[(i + type) % 6], 20 + 6 * type + i);
			struct world *w;

			spec.shape.n_kv_heads = 1;
			spec.n_layers = 1;
			spec.n_heat = 1 + i % 2;
			spec.heat[0] = i % 2 ? spec.heat[0] : EVICT_HEAT_SUM;
			w = world_new(&spec);
			for (unsigned j = 0; j < 3; j++)
				world_fill(w, j, large, 3, n[j]);
			world_put(w);
			step_and_check(w, n, i % 3 == 2 ? GPU_F32 : type == GPU_F16 ? GPU_F16 : GPU_BF16, (i / 2) % 3, i % 2 ? 8 : 0);
			world_free(w);
		}
	}
}

/* More tiles than scratch has room for, so several launches: 8 lanes of 57 (75) tiles, and of one whose heat attend takes itself. */
static void tiles_over_lanes_that_may_be_very_long_agree_with_the_oracle(void **state)
{
	static const uint32_t n[3] = { 300, 0, 2 }, first[] = { 0, 1, 130 };

	(void)state;
	for (uint32_t type = GPU_F16; type < world_types(); type++) {
		struct world_spec spec = spec_of(type, type == GPU_Q8 ? 64 : 192, type == GPU_Q8 ? 3 : 2, 26);
		struct world *w;

		spec.shape.n_kv_heads = 8;
		spec.n_layers = 1;
		spec.n_heat = 1;
		spec.heat[0] = EVICT_HEAT_SUM;
		w = world_new(&spec);
		for (unsigned i = 0; i < 3; i++)
			world_fill(w, i, first, 3, n[i]);
		world_put(w);
		bounded_step_and_check(w, n, GPU_BF16, GPU_F32, 0, 100000);
		world_free(w);
	}
}

static void every_kind_of_heat_is_taken_from_every_kth_query_only(void **state)
{
	static const uint32_t n[3] = { 5, 32, 1 };

	(void)state;
	for (uint32_t kind = EVICT_HEAT_SUM; kind <= EVICT_HEAT_LAST; kind++) {
		for (uint32_t observe = 0; observe <= 4; observe++) {
			struct world_spec spec = spec_of(GPU_F16, 64, 3, 31 + kind);
			struct world *w;

			spec.n_heat = 2;
			spec.heat[0] = kind;
			spec.heat[1] = (kind + 2) % 4;
			spec.observe = observe;
			w = world_new(&spec);
			for (unsigned i = 0; i < 3; i++)
				world_fill(w, i, middle, 4, n[i]);
			world_put(w);
			step_and_check(w, n, GPU_F32, GPU_F32, 0);
			world_free(w);
		}
	}
}

/* --- what it must not depend on ----------------------------------------------------------------------------------------- */

struct bits {
	size_t out_bytes, n_heat;
	uint8_t *out;
	float *heat;		/* of session 1, all lanes and slots */
};

static void bits_free(struct bits *b)
{
	free(b->out);
	free(b->heat);
}

static void collect_heat(struct world *w, struct bits *b)
{
	const struct oracle_session *m = &w->session[1].model;

	b->n_heat = (size_t)m->table.n_lanes * m->max_slots;
	b->heat = calloc(b->n_heat, sizeof(float));
	assert_non_null(b->heat);
	world_pull(w);
	for (uint32_t l = 0; w->spec.n_heat && l < m->table.n_lanes; l++)
		for (uint32_t at = 0; at < m->lane[l].head.len; at++)
			memcpy(&b->heat[l * m->max_slots + at], world_at(w, w->actual, 1, l, at).heat[0], 4);
}

/* One step on a world of its own; the outputs of session 1 (all rows when `alone` is not set). */
static struct bits run_step(const struct world_spec *spec, const uint32_t *n, unsigned threads, int alone)
{
	const uint32_t width = spec->shape.n_kv_heads * spec->shape.group * spec->shape.head_dim;
	struct world *w = world_new(spec);
	struct gpu_seq seq[WORLD_MAX_SESSIONS];
	struct oracle_seq oracle[WORLD_MAX_SESSIONS];
	struct bits b = { .out_bytes = n[1] * width * sizeof(float) };
	struct layer l;

	for (unsigned i = 0; i < 3; i++)
		world_fill(w, i, i == 1 ? large : middle, 3, n[i]);
	world_put(w);
	assert_int_equal(gpu_set_threads(w->dev, threads), 0);
	layer_new(w, &l, world_step(w, n, seq, oracle), GPU_F32, GPU_F32, 0);
	if (alone)	/* only session 1, and another bound on the lanes */
		assert_int_equal(gpu_step_set(w->step, w->stream, &spec->shape, w->map, &seq[1], 1, spec->max_slots), 0);
	assert_int_equal(gpu_append(w->step, w->stream, 0, &l.k.device, &l.v.device), 0);
	assert_int_equal(gpu_attend(w->step, w->stream, 0, &l.q.device, &l.out.device, 0.125f, NULL), 0);
	assert_int_equal(gpu_set_threads(w->dev, 1), 0);
	world_tensor_read(w, &l.out);
	b.out = malloc(b.out_bytes);
	assert_non_null(b.out);
	memcpy(b.out, (const float *)l.out.host.data + seq[1].row * width, b.out_bytes);
	collect_heat(w, &b);
	layer_free(w, &l);
	world_free(w);
	return b;
}

static void compare_bits(const struct bits *a, const struct bits *b, int heat, const char *what)
{
	if (memcmp(a->out, b->out, a->out_bytes)) {
		fprintf(stderr, "out depends on %s\n", what);
		fail();
	}
	if (heat && memcmp(a->heat, b->heat, a->n_heat * sizeof(float))) {
		fprintf(stderr, "heat depends on %s\n", what);
		fail();
	}
}

static void independent(uint32_t slot_type, uint32_t dim, uint32_t group, const uint32_t *n)
{
	struct world_spec spec = {
		.shape = { .n_kv_heads = 2, .group = group, .head_dim = dim, .slot_type = slot_type },
		.n_layers = 1, .n_sessions = 3, .window = 32, .max_slots = 2500, .n_heat = 1, .heat = { EVICT_HEAT_SUM }, .observe = 1,
		.n_credit = 1, .seed = 70, .places = 71,
	};
	struct world_spec cold = spec, elsewhere = spec, two = spec, untold = spec;
	struct bits base = run_step(&spec, n, 1, 0), other;

	cold.n_heat = 0;
	other = run_step(&cold, n, 1, 0);
	compare_bits(&base, &other, 0, "whether heat is taken");
	bits_free(&other);
	elsewhere.places = 12346;	/* even: other garbage behind the slots, too */
	other = run_step(&elsewhere, n, 1, 0);
	compare_bits(&base, &other, 1, "page ids or what lies in unused slots");
	bits_free(&other);
	untold.untold = 1;
	other = run_step(&untold, n, 1, 0);
	compare_bits(&base, &other, 1, "whether positions are read");
	bits_free(&other);
	two.n_heat = 2;
	two.heat[1] = EVICT_HEAT_SQUARES;
	other = run_step(&two, n, 1, 0);
	compare_bits(&base, &other, 1, "a second heat");
	bits_free(&other);
	other = run_step(&spec, n, 2, 0);
	compare_bits(&base, &other, 1, "threads");
	bits_free(&other);
	other = run_step(&spec, n, 1, 1);
	compare_bits(&base, &other, 1, "the other sessions of the step");
	bits_free(&other);
	bits_free(&base);
}

static void out_depends_on_nothing_but_its_inputs(void **state)
{
	static const uint32_t one[3] = { 1, 1, 1 }, ragged[3] = { 0, 2, 17 };
	static const uint32_t many[3] = { 32, 32, 1 };	/* enough work for two threads */

	(void)state;
	for (uint32_t type = GPU_F32; type < world_types(); type++) {
		independent(type, 64, 3, one);
		independent(type, 128, 4, ragged);
		independent(type, 80, 5, many);
	}
}

/* Logits far beyond what exp() can hold, and slots that nobody may see yet. */
static void large_logits_neither_overflow_nor_vanish(void **state)
{
	static const uint32_t n[3] = { 2, 1, 3 };

	(void)state;
	for (uint32_t type = GPU_F32; type < world_types(); type++) {
		struct world_spec spec = spec_of(type, 64, 4, 40);
		struct world *w;
		struct gpu_seq seq[WORLD_MAX_SESSIONS];
		struct oracle_seq oracle[WORLD_MAX_SESSIONS];
		struct layer l;

		spec.n_layers = 1;
		spec.n_heat = 1;
		spec.heat[0] = EVICT_HEAT_SUM;
		w = world_new(&spec);
		for (unsigned i = 0; i < 3; i++)
			world_fill(w, i, middle, 5, n[i]);
		/* Slots from the future: in one lane all of its live slots but none of the step's own */
		for (uint32_t at = 0; at < w->session[1].model.lane[0].head.len; at++)
			w->session[1].model.lane[0].slot[at].pos = w->session[1].pos + 1 + (int32_t)at;
		world_put(w);
		layer_new(w, &l, world_step(w, n, seq, oracle), GPU_F32, GPU_F32, 0);
		assert_int_equal(gpu_append(w->step, w->stream, 0, &l.k.device, &l.v.device), 0);
		assert_int_equal(gpu_attend(w->step, w->stream, 0, &l.q.device, &l.out.device, 1.0f, l.lse.slab.base), 0);
		check_outputs(w, &l, oracle, 0, 1.0);
		layer_free(w, &l);
		for (unsigned i = 0; i < 3; i++)
			w->session[i].used += n[i];
		world_check(w, 1e-3, 1e-5);
		world_free(w);
	}
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(attend_agrees_with_the_oracle),
		cmocka_unit_test(every_group_works_at_the_commonest_head_sizes),
		cmocka_unit_test(a_long_prefill_chunk_agrees_with_the_oracle),
		cmocka_unit_test(many_queries_over_long_lanes_agree_with_the_oracle),
		cmocka_unit_test(tiles_over_lanes_that_may_be_very_long_agree_with_the_oracle),
		cmocka_unit_test(every_kind_of_heat_is_taken_from_every_kth_query_only),
		cmocka_unit_test(out_depends_on_nothing_but_its_inputs),
		cmocka_unit_test(large_logits_neither_overflow_nor_vanish),
	};

	return cmocka_run_group_tests_name("gpu_attend", tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	return world_main(argc, argv, run);
}
