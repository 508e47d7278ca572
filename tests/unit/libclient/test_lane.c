/* ebb_lane_read() and ebb_lane_write(): what a lane holds while a step is open. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "libclient/ebb.h"

enum { LAYERS = 2, KV = 2, GROUP = 3, DIM = 64, MAX = 600 };

static float data[MAX * KV * GROUP * DIM], out[MAX * KV * GROUP * DIM];

struct fixture {
	struct ebb *ebb;
	struct ebb_batch *batch;
	struct ebb_session *s;
};

static void open_local(struct fixture *f, const char *settings)
{
	struct ebb_session_options o = { .n_layers = LAYERS, .n_kv_heads = KV, .group = GROUP, .head_dim = DIM, .max_tokens = MAX,
					 .settings = settings };

	assert_int_equal(ebb_local(&f->ebb, NULL), 0);
	assert_int_equal(ebb_batch_new(f->ebb, NULL, &f->batch), 0);
	assert_int_equal(ebb_session_open(f->ebb, &o, &f->s), 0);
	assert_int_equal(ebb_batch_join(f->batch, f->s), 0);
}

/* Appends n tokens whose keys are all alike, so that attention is uniform; the step stays open. */
static void begin(struct fixture *f, uint32_t n)
{
	struct ebb_tensor t = { data, EBB_F32, 0 }, o = { out, EBB_F32, 0 };

	assert_int_equal(ebb_step_begin(f->batch, &n, -1), 0);
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		assert_int_equal(ebb_append(f->batch, layer, &t, &t), 0);
		assert_int_equal(ebb_attend(f->batch, layer, &t, &o, 0.125f, NULL), 0);
	}
}

static void positions_and_heat_are_read_and_written(void **state)
{
	static int32_t pos[MAX];
	static float heat[MAX], none[MAX], odd[MAX];
	struct fixture f;
	double sum = 0.0;

	(void)state;
	open_local(&f, "slots=f32 observe=1");
	begin(&f, 300);
	assert_int_equal(ebb_lane_read(f.s, LAYERS * KV - 1, pos, heat, MAX), 300);
	for (int i = 0; i < 300; i++) {
		assert_int_equal(pos[i], i);
		sum += (double)heat[i];
	}
	assert_true(fabs(sum - 300.0 * GROUP) < 1e-2);		/* every query of every head hands out 1 */
	assert_true(fabs((double)heat[299] - GROUP / 300.0) < 1e-5);	/* the last token: one query's share, uniform */
	assert_int_equal(ebb_lane_read(f.s, 0, pos + 10, NULL, 5), 300);	/* no more than there is room for */
	assert_int_equal(pos[15], 15);
	assert_int_equal(ebb_lane_write(f.s, 0, none, 300), 0);
	for (int i = 0; i < 257; i++)
		odd[i] = (float)i;
	assert_int_equal(ebb_lane_write(f.s, 1, odd, 257), 0);	/* over the edge of a block */
	assert_int_equal(ebb_step_end(f.batch), 0);
	begin(&f, 1);
	assert_int_equal(ebb_lane_read(f.s, 0, pos, heat, MAX), 301);
	assert_int_equal(pos[300], 300);
	for (int i = 0; i < 301; i++)
		assert_true(fabs((double)heat[i] - GROUP / 301.0) < 1e-5);
	assert_int_equal(ebb_lane_read(f.s, 1, NULL, heat, MAX), 301);
	for (int i = 0; i < 257; i++)
		assert_true(fabs((double)heat[i] - i - GROUP / 301.0) < 1e-3);
	assert_int_equal(ebb_step_end(f.batch), 0);
	ebb_close(f.ebb);
}

static void what_cannot_be_is_refused(void **state)
{
	static float heat[MAX];
	struct fixture f;
	int32_t pos;

	(void)state;
	open_local(&f, "slots=f32");
	assert_int_equal(ebb_lane_read(NULL, 0, &pos, NULL, 1), -EINVAL);
	assert_int_equal(ebb_lane_read(f.s, 0, &pos, NULL, 1), -EINVAL);	/* no step is open */
	begin(&f, 2);
	assert_int_equal(ebb_lane_read(f.s, LAYERS * KV, &pos, NULL, 1), -EINVAL);
	assert_int_equal(ebb_lane_read(f.s, 0, NULL, NULL, 0), 2);
	assert_int_equal(ebb_lane_read(f.s, 0, &pos, heat, 1), -ENOTSUP);	/* nobody asked for heat */
	assert_int_equal(ebb_lane_write(f.s, 0, heat, 1), -ENOTSUP);
	assert_int_equal(ebb_step_end(f.batch), 0);
	assert_int_equal(ebb_lane_write(f.s, 0, heat, 1), -EINVAL);
	ebb_close(f.ebb);
	open_local(&f, "slots=f32 observe=1");
	begin(&f, 2);
	assert_int_equal(ebb_lane_write(f.s, 0, heat, 3), -EINVAL);	/* more than there are slots */
	assert_int_equal(ebb_lane_write(f.s, 0, NULL, 1), -EINVAL);
	assert_int_equal(ebb_step_end(f.batch), 0);
	ebb_close(f.ebb);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(positions_and_heat_are_read_and_written), cmocka_unit_test(what_cannot_be_is_refused),
	};

	alarm(60);
	for (size_t i = 0; i < sizeof(data) / sizeof(*data); i++)
		data[i] = (float)(i % DIM) / DIM - 0.5f;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
