/* gpu_observe against the oracle: heat from given log-sum-exps, from the last queries of a step or from all of them. */
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
static const uint32_t lengths[] = { 0, 1, 17, 37, 255, 256, 257, 600 };
static const uint32_t lasts[] = { 0, 1, 5, 32, 1000 };

/* Appends a step, then observes it with the log-sum-exp that the oracle's attend (which adds no heat here) finds. */
static void observe_step(struct world *w, const uint32_t *n, uint32_t type, uint32_t pad, uint32_t last)
{
	const uint32_t heads = w->spec.shape.n_kv_heads * w->spec.shape.group, d = w->spec.shape.head_dim;
	const float scale = 1.0f / sqrtf((float)d);
	struct gpu_seq seq[WORLD_MAX_SESSIONS];
	struct oracle_seq oracle[WORLD_MAX_SESSIONS];
	const uint32_t rows = world_step(w, n, seq, oracle);
	double *out = calloc((size_t)rows * heads * d, sizeof(double)), *lse = calloc((size_t)rows * heads, sizeof(double));
	float *given = calloc((size_t)rows * heads, sizeof(float));
	struct world_tensor k, v, q;
	struct world_buffer device_lse;

	assert_true(out && lse && given);
	world_tensor_new(w, &k, rows, w->spec.shape.n_kv_heads * d, type, pad, 1.0f);
	world_tensor_new(w, &v, rows, w->spec.shape.n_kv_heads * d, type, 0, 1.0f);
	world_tensor_new(w, &q, rows, heads * d, type, pad, 2.0f);
	world_buffer_new(w, &device_lse, (size_t)rows * heads * sizeof(float));
	for (unsigned i = 0; i < w->spec.n_sessions; i++) {
		struct gpu_table *table = &w->session[i].model.table;
		const uint32_t observe = table->observe;

		oracle_append(&oracle[i], 0, &k.host, &v.host);
		table->observe = 0;
		oracle_attend(&oracle[i], 0, &q.host, (double)scale, out, lse);
		table->observe = observe;
	}
	for (size_t i = 0; i < (size_t)rows * heads; i++)
		given[i] = (float)lse[i];
	assert_int_equal(gpu_write(w->dev, w->stream, device_lse.slab.base, given, device_lse.bytes), 0);
	assert_int_equal(gpu_append(w->step, w->stream, 0, &k.device, &v.device), 0);
	assert_int_equal(gpu_observe(w->step, w->stream, 0, &q.device, device_lse.slab.base, scale, last), 0);
	for (unsigned i = 0; i < w->spec.n_sessions; i++) {
		oracle_observe(&oracle[i], 0, &q.host, given, (double)scale, last);
		w->session[i].used += n[i];
		w->session[i].pos += (int32_t)n[i];
	}
	world_check(w, 2e-4, 2e-6);
	world_tensor_free(w, &k);
	world_tensor_free(w, &v);
	world_tensor_free(w, &q);
	world_buffer_free(w, &device_lse);
	free(out);
	free(lse);
	free(given);
}

static void one_case(uint32_t slot_type, uint32_t dim, uint32_t group, unsigned number, uint32_t last, const uint32_t *n)
{
	struct world_spec spec = {
		.shape = { .n_kv_heads = group > 5 ? 1 : 2, .group = group, .head_dim = dim, .slot_type = slot_type },
		.n_layers = 1, .n_sessions = 3, .window = 32, .max_slots = 1000, .n_heat = 1 + number % 2,
		.heat = { number % 4, (number + 3) % 4 }, .observe = number % 3 == 2 ? 7 : 1,	/* has no say here */
		.n_credit = 1, .seed = 9000 + number, .places = 13 + number,
	};
	struct world *w = world_new(&spec);

	for (unsigned i = 0; i < 3; i++)
		world_fill(w, i, lengths, 8, n[i]);
	world_put(w);
	observe_step(w, n, number % 3, number % 2 ? 8 : 0, last);
	world_free(w);
}

static void observe_adds_what_the_log_sum_exp_says(void **state)
{
	static const uint32_t n[][3] = { { 1, 0, 2 }, { 8, 32, 1 } };

	(void)state;
	for (uint32_t type = GPU_F32; type < world_types(); type++)
		for (unsigned i = 0; i < 6; i++)
			one_case(type, dims[i], groups[(i + type) % 6], type * 7 + i, lasts[(i + type) % 5], n[i % 2]);
}

static void observe_takes_the_last_queries_of_a_prompt(void **state)
{
	static const uint32_t n[3] = { 300, 0, 40 };

	(void)state;
	for (unsigned i = 0; i < 5; i++)
		one_case(GPU_F16, 64, 3, i, lasts[i], n);
}

static void observe_takes_nothing_where_nothing_is_collected(void **state)
{
	static const uint32_t n[3] = { 2, 1, 0 };
	struct world_spec spec = {
		.shape = { .n_kv_heads = 2, .group = 2, .head_dim = 64, .slot_type = GPU_BF16 },
		.n_layers = 1, .n_sessions = 3, .window = 32, .max_slots = 1000, .n_heat = 0, .observe = 1, .n_credit = 1,
		.seed = 1, .places = 2,
	};
	struct world *w = world_new(&spec);

	(void)state;
	for (unsigned i = 0; i < 3; i++)
		world_fill(w, i, lengths, 8, n[i]);
	world_put(w);
	observe_step(w, n, GPU_F32, 0, 0);
	world_free(w);
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(observe_adds_what_the_log_sum_exp_says),
		cmocka_unit_test(observe_takes_the_last_queries_of_a_prompt),
		cmocka_unit_test(observe_takes_nothing_where_nothing_is_collected),
	};

	return cmocka_run_group_tests_name("gpu_observe", tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	return world_main(argc, argv, run);
}
