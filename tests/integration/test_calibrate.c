/* ebb-llama --calibrate through a real daemon: the same table again, also when it was stopped half way, and the daemon takes it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "evict/evict.h"
#include "tests/lib/daemon.h"
#include "tests/lib/llama.h"

#define CALIBRATE "$BIN/ebb-llama -m $MODEL --socket %s --policy h2o:age=1 --calibrate --limit 128 --budgets 64 "
#define TEXT "/usr/share/common-licenses/GPL-3"

static struct td d;
static struct tl t;

static void a_stopped_calibration_goes_on_to_the_same_table(void **state)
{
	(void)state;
	tl_run(&t, CALIBRATE "-t 2 " TEXT " -o $DIR/once", d.socket);
	if (t.status)
		fail_msg("%s", t.err);
	assert_non_null(strstr(t.err, "100 %, 0 s left"));
	/* Stopped once some layers are written: the part stays, the table is not there. */
	tl_run(&t, CALIBRATE TEXT " -o $DIR/again & P=$!; while [ $(cat $DIR/again.part 2>/dev/null | wc -l) -lt 4 ] && kill -0 $P; do sleep 0.1; "
	       "done; kill -9 $P; wait $P; [ -e $DIR/again.part ] && ! [ -e $DIR/again ]", d.socket);
	assert_int_equal(t.status, 0);
	tl_run(&t, CALIBRATE "--observe 2 " TEXT " -o $DIR/again", d.socket);	/* another question: not these answers */
	assert_int_equal(t.status, 1);
	assert_non_null(strstr(t.err, "again.part is of other texts or options"));
	tl_run(&t, "printf '0 29 0.5' >> $DIR/again.part; " CALIBRATE TEXT " -o $DIR/again", d.socket);	/* a line that was cut off */
	if (t.status)
		fail_msg("%s", t.err);
	assert_non_null(strstr(t.err, "going on behind"));
	tl_run(&t, "cmp $DIR/once $DIR/again && ! [ -e $DIR/again.part ]");
	assert_int_equal(t.status, 0);
}

static void the_table_is_one_that_the_daemon_takes(void **state)
{
	struct evict_lanes about;
	static float table[90], curve[90 * EVICT_MAX_CURVE];
	char why[200] = "";
	uint32_t above = 0;

	(void)state;
	tl_run(&t, "cat $DIR/once");
	if (evict_lanes_parse(t.out, strlen(t.out), 30, 3, "smollm2-135M", &about, table, curve, why, sizeof(why)))
		fail_msg("%s", why);
	assert_true(about.tokens == 128 && about.n_budgets == 1 && about.budget[0] == 64);
	for (uint32_t lane = 0; lane < 90; lane++) {
		assert_true(table[lane] >= 0.0f && table[lane] < 10.0f);	/* nats: no lane alone is that much */
		above += table[lane] > 1e-7f;
	}
	assert_true(above > 60);
	tl_run(&t, "$BIN/ebb-llama -m $MODEL --socket %s --nll --limit 160 --budget 80 -f " TEXT " --split measured --lanes $DIR/once", d.socket);
	if (t.status)
		fail_msg("%s", t.err);
	assert_true(tl_number(&t, "live_slots") == 80.0 * 90);
	tl_run(&t, "sed s/smollm2-135M/another/ $DIR/once > $DIR/other; $BIN/ebb-llama -m $MODEL --socket %s --nll --limit 160 --budget 80 -f "
	       TEXT " --split measured --lanes $DIR/other", d.socket);
	assert_int_equal(t.status, 1);
	assert_non_null(strstr(t.err, "found \"another\"; allowed: smollm2-135M, the model's name"));
}

static void wrong_use_is_refused(void **state)
{
	static const char *const wrong[] = { "-o $DIR/x", "-o $DIR/x --limit 64 " TEXT, "-o $DIR/x --budgets 64,64 " TEXT, "-o $DIR/x --budgets 9 " TEXT,
					     "-o $DIR/x --budgets 2000 " TEXT, "-o $DIR/x -p short", "-o $DIR/x --split ada " TEXT, TEXT,
					     "-o $DIR/x --nll " TEXT, "-o $DIR/x --budget 5 " TEXT, "-o /nowhere/x " TEXT };

	(void)state;
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		tl_run(&t, "$BIN/ebb-llama -m $MODEL --socket %s --calibrate %s", d.socket, wrong[i]);
		if (!t.status || !*t.err)
			fail_msg("%s: exit status %d, %s", wrong[i], t.status, t.err);
	}
	tl_run(&t, "$BIN/ebb-llama -m $MODEL -p text -o x");
	assert_int_equal(t.status, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_stopped_calibration_goes_on_to_the_same_table),
		cmocka_unit_test(the_table_is_one_that_the_daemon_takes),
		cmocka_unit_test(wrong_use_is_refused),
	};
	int rc;

	td_start(&d, "drain = 0s\n[pool p]\ndevice = host\nsize = 128M\n");
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	td_stop(&d);
	return rc;
}
