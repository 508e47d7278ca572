/* gpu_append against the oracle: every stored bit, and every byte of the pool that must stay as it was. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "tests/lib/world.h"

static const uint32_t dims[] = { 64, 80, 96, 128, 192, 256 };
static const uint32_t small[] = { 0, 1, 2, 15, 16, 17, 31 }, middle[] = { 37, 63, 255, 256, 257 }, large[] = { 1000, 2049, 511 };
static const uint32_t counts[][4] = { { 1, 0, 2, 1 }, { 32, 1, 7, 0 }, { 0, 300, 1, 16 }, { 2, 2, 31, 1 } };

struct kv {
	struct world_tensor k, v;
};

/* One step of all sessions over all layers, on the device and in the models. */
static void append_step(struct world *w, const uint32_t *n, uint32_t k_type, uint32_t v_type, uint32_t pad)
{
	const uint32_t width = w->spec.shape.n_kv_heads * w->spec.shape.head_dim;
	struct gpu_seq seq[WORLD_MAX_SESSIONS];
	struct oracle_seq oracle[WORLD_MAX_SESSIONS];
	const uint32_t rows = world_step(w, n, seq, oracle);

	for (uint32_t layer = 0; layer < w->spec.n_layers; layer++) {
		struct kv t;

		world_tensor_new(w, &t.k, rows, width, k_type, pad, w->spec.spread);
		world_tensor_new(w, &t.v, rows, width, v_type, pad ? pad + 2 : 0, w->spec.spread);
		assert_int_equal(gpu_append(w->step, w->stream, layer, &t.k.device, &t.v.device), 0);
		for (unsigned i = 0; i < w->spec.n_sessions; i++)
			oracle_append(&oracle[i], layer, &t.k.host, &t.v.host);
		world_tensor_free(w, &t.k);
		world_tensor_free(w, &t.v);
	}
	for (unsigned i = 0; i < w->spec.n_sessions; i++) {
		w->session[i].used += n[i];
		w->session[i].pos += (int32_t)n[i];
	}
}

static void one_case(uint32_t slot_type, uint32_t dim, unsigned number)
{
	struct world_spec spec = {
		.shape = { .n_kv_heads = 1 + number % 3, .group = 1, .head_dim = dim, .slot_type = slot_type },
		.n_layers = 2, .n_sessions = 4, .window = 32, .max_slots = 2500,
		.n_heat = number % 3, .heat = { EVICT_HEAT_SUM, EVICT_HEAT_MAX }, .observe = 1, .n_credit = (number + 1) % 3,
		.seed = 1000 + number, .places = 77 + number, .spread = number % 4 == 3 ? 300.0f : 1.0f,
	};
	const uint32_t *n = counts[number % 4], *len = number % 3 == 0 ? small : number % 3 == 1 ? middle : large;
	const unsigned n_len = number % 3 == 0 ? 7 : number % 3 == 1 ? 5 : 3;
	uint32_t again[4];
	struct world *w = world_new(&spec);

	for (unsigned i = 0; i < 4; i++) {
		again[i] = n[i] > 16 ? 0 : n[(i + 1) % 4] > 16 ? 16 : n[(i + 1) % 4];	/* a second step in the same window */
		world_fill(w, i, len, n_len, n[i] + again[i]);
	}
	world_put(w);
	append_step(w, n, number % 3, number % 5 == 4 ? (number + 1) % 3 : number % 3, number % 2 ? 16 : 0);
	world_check(w, 0.0, 0.0);
	append_step(w, again, (number + 1) % 3, (number + 1) % 3, number % 2 ? 0 : 5);
	world_check(w, 0.0, 0.0);
	world_free(w);
}

static void append_stores_what_layout_h_says(void **state)
{
	(void)state;
	for (uint32_t type = GPU_F32; type < world_types(); type++)
		for (unsigned i = 0; i < sizeof(dims) / sizeof(dims[0]); i++)
			one_case(type, dims[i], type * 6 + i + type);
}

/* The rows that rounding finds hard: ties, subnormals, the largest numbers, zeros of both signs, constants. */
static void hard_row(uint32_t kind, float *x, uint32_t d)
{
	for (uint32_t c = 0; c < d; c++) {
		const float j = (float)(int)c;

		switch (kind) {
		case 0: x[c] = 0.0f; break;
		case 1: x[c] = c % 2 ? -0.0f : 0.0f; break;
		case 2: x[c] = 3.25f; break;					/* q8: scale 0 */
		case 3: x[c] = 1.0f + (2.0f * j + 1.0f) / 2048.0f; break;	/* float16 ties */
		case 4: x[c] = 1.0f + (2.0f * j + 1.0f) / 256.0f; break;	/* bfloat16 ties */
		case 5: x[c] = (j - 20.5f) * 5.9604645e-8f; break;		/* float16 subnormals and ties */
		case 6: x[c] = 65400.0f + j; break;				/* float16 overflow from 65520 on */
		case 7: x[c] = j - 63.5f; break;				/* q8: ties */
		case 8: x[c] = 1e-9f * j; break;				/* q8: scale is subnormal or rounds up from 0 */
		case 9: x[c] = c == 5 ? 1000.0f : 0.001f * j; break;		/* an outlier */
		case 10: x[c] = -30000.0f + 900.0f * j; break;
		default: x[c] = 500.0f + j / 64.0f; break;			/* a large offset */
		}
	}
}

static void append_rounds_hard_rows_exactly(void **state)
{
	enum { KINDS = 12 };
	const uint32_t n[1] = { KINDS };
	const uint32_t empty[] = { 0, 3, 16 };

	(void)state;
	for (uint32_t type = GPU_F32; type < world_types(); type++) {
		struct world_spec spec = {
			.shape = { .n_kv_heads = 2, .group = 1, .head_dim = 128, .slot_type = type },
			.n_layers = 1, .n_sessions = 1, .window = 32, .max_slots = 64, .n_heat = 1, .n_credit = 1, .seed = 5, .places = 6,
		};
		struct world *w = world_new(&spec);
		struct gpu_seq seq[WORLD_MAX_SESSIONS];
		struct oracle_seq oracle[WORLD_MAX_SESSIONS];
		struct kv t;
		uint32_t rows;

		world_fill(w, 0, empty, 3, KINDS);
		world_put(w);
		rows = world_step(w, n, seq, oracle);
		world_tensor_new(w, &t.k, rows, 256, GPU_F32, 0, 1.0f);
		world_tensor_new(w, &t.v, rows, 256, GPU_F32, 0, 1.0f);
		for (uint32_t r = 0; r < 2 * KINDS; r++) {
			hard_row(r / 2, (float *)t.k.host.data + (seq[0].row * 2 + r) * 128, 128);
			hard_row((r + 1) / 2 % KINDS, (float *)t.v.host.data + (seq[0].row * 2 + r) * 128, 128);
		}
		assert_int_equal(gpu_write(w->dev, w->stream, t.k.device.data, t.k.host.data, t.k.bytes), 0);
		assert_int_equal(gpu_write(w->dev, w->stream, t.v.device.data, t.v.host.data, t.v.bytes), 0);
		assert_int_equal(gpu_append(w->step, w->stream, 0, &t.k.device, &t.v.device), 0);
		oracle_append(&oracle[0], 0, &t.k.host, &t.v.host);
		w->session[0].used += KINDS;
		world_check(w, 0.0, 0.0);
		world_tensor_free(w, &t.k);
		world_tensor_free(w, &t.v);
		world_free(w);
	}
}

/* Half of a slot's q8 step is all that may be lost: the oracle's own claim, from the layout's formula. */
static void q8_rows_lose_half_a_step_at_most(void **state)
{
	uint64_t random = 11;

	(void)state;
	for (unsigned trial = 0; trial < 2000; trial++) {
		float x[64], least = 1e30f, most = -1e30f;
		const float shift = 4.0f * world_normal(&random), spread = 1e-3f + (float)world_below(&random, 1000) / 50.0f;
		uint8_t row[64];
		uint32_t param;

		for (unsigned c = 0; c < 64; c++) {
			x[c] = shift + spread * world_normal(&random);
			least = x[c] < least ? x[c] : least;
			most = x[c] > most ? x[c] : most;
		}
		oracle_row_store(GPU_Q8, 64, x, row, &param);
		/* half a step, what float16 rounding adds to the scale (1/1024) and takes from the offset */
		const double loss = (double)(most - least) / 254.0 / 2.0 * 1.002 + (double)(fabsf(shift) + 20.0f * spread) / 2048.0 + 1e-6;

		for (unsigned c = 0; c < 64; c++)
			assert_true(fabs(oracle_row_load(GPU_Q8, 64, row, param, c) - (double)x[c]) <= loss);
	}
}

/* The same of q4: half of a group's step, and what float16 takes from the least number. A small group last (d = 80). */
static void q4_rows_lose_half_a_step_at_most(void **state)
{
	enum { D = 80 };
	uint64_t random = 12;

	(void)state;
	assert_int_equal(gpu_row_bytes(GPU_Q4, D), 52);
	assert_int_equal(gpu_page_bytes(GPU_Q4, 64), 16 * 80);
	assert_int_equal(gpu_page_bytes(GPU_K8V4, 64), (16 * (64 + 4 + 40) + 127) / 128 * 128);
	for (unsigned trial = 0; trial < 2000; trial++) {
		const float spread = 1e-3f + (float)world_below(&random, 1000) / 50.0f;
		float x[D];
		uint8_t row[52];

		for (unsigned c = 0; c < D; c++)
			x[c] = spread * world_normal(&random);
		oracle_row_store(GPU_Q4, D, x, row, NULL);
		for (unsigned first = 0; first < D; first += 32) {
			const unsigned end = first + 32 < D ? first + 32 : D;
			float least = x[first], most = least;

			for (unsigned c = first; c < end; c++) {
				least = x[c] < least ? x[c] : least;
				most = x[c] > most ? x[c] : most;
			}
			for (unsigned c = first; c < end; c++)
				assert_true(fabs(oracle_row_load(GPU_Q4, D, row, 0, c) - (double)x[c]) <=
					    (double)(most - least) / 30.0 * 1.002 + (double)fabsf(least) / 1024.0 + 1e-6);
		}
	}
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(append_stores_what_layout_h_says),
		cmocka_unit_test(append_rounds_hard_rows_exactly),
		cmocka_unit_test(q8_rows_lose_half_a_step_at_most),
		cmocka_unit_test(q4_rows_lose_half_a_step_at_most),
	};

	return cmocka_run_group_tests_name("gpu_append", tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	return world_main(argc, argv, run);
}
