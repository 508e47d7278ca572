/*
 * The driver of make quality on a tiny matrix: a cell is run once, whatever happened to the driver in between; what the daemon refuses is
 * written down as such; the report can be made at any time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/llama.h"

#define QUALITY "cd \"$EBB_SOURCE\" && EBB_BIN=\"$BIN\" EBB_MODEL=\"$MODEL\" OUT=\"$DIR/q\" QUALITY=ranks TOKENS=96 BUDGETS=75 JOBS=1 " \
	"TEXTS='/usr/share/common-licenses/GPL-3 /usr/share/common-licenses/GPL-2' "
#define RUN "python3 -B tools/quality.py"

static struct tl t;

static unsigned count(const char *text, const char *what)
{
	unsigned n = 0;

	for (; (text = strstr(text, what)); text += strlen(what))
		n++;
	return n;
}

static void a_cell_is_run_once(void **state)
{
	(void)state;
	tl_run(&t, QUALITY "POLICIES=h2o " RUN);
	assert_int_equal(t.status, 0);
	assert_non_null(strstr(t.out, "2 cells, 0 of them done before"));
	/* Half a row, as a machine that lost its power leaves it. */
	tl_run(&t, "printf 'GPL-3,text,3972dc97,96,75,72,streaming,uni' >> $DIR/q/results.csv");
	/* A driver that is killed outright, wherever it just is. Its daemon goes with it. */
	tl_run(&t, QUALITY "POLICIES='h2o streaming' timeout -s KILL 2 " RUN);
	tl_run(&t, QUALITY "POLICIES='h2o streaming' " RUN);
	assert_int_equal(t.status, 0);
	assert_non_null(strstr(t.out, "4 cells, "));
	assert_null(strstr(t.out, "4 cells, 0 of"));
	tl_run(&t, QUALITY "POLICIES='h2o streaming' " RUN);
	assert_int_equal(t.status, 0);
	assert_non_null(strstr(t.out, "4 cells, 4 of them done before"));
	tl_run(&t, "cat $DIR/q/results.csv");
	assert_int_equal(count(t.out, "\n"), 5);	/* the names of the columns, and four rows */
	assert_int_equal(count(t.out, ",h2o,"), 2);
	assert_int_equal(count(t.out, ",streaming,"), 2);
}

static void a_refusal_is_a_result(void **state)
{
	(void)state;
	tl_run(&t, QUALITY "POLICIES='nosuchpolicy' " RUN);
	assert_int_equal(t.status, 0);
	tl_run(&t, QUALITY "POLICIES='nosuchpolicy' " RUN);
	assert_non_null(strstr(t.out, "2 cells, 2 of them done before"));
	tl_run(&t, "grep nosuchpolicy $DIR/q/results.csv");
	assert_non_null(strstr(t.out, "allowed: full"));
}

static void the_report_is_made_from_what_is_there(void **state)
{
	(void)state;
	tl_run(&t, "python3 -c 'import matplotlib' || /usr/bin/python3 -c 'import matplotlib'");
	if (t.status)
		skip();
	tl_run(&t, "cd \"$EBB_SOURCE\" && python3 -B tools/quality_report.py $DIR/q $DIR/q/page.md $DIR/q/plots && cat $DIR/q/page.md");
	assert_int_equal(t.status, 0);
	assert_non_null(strstr(t.out, "| h2o | "));
	assert_non_null(strstr(t.out, "| nosuchpolicy | uniform | ebb-llama: "));
	tl_run(&t, "head -c 5 $DIR/q/plots/budget-96.svg && head -c 5 $DIR/q/plots/kept.svg");
	assert_string_equal(t.out, "<?xml<?xml");
	tl_run(&t, "cd \"$EBB_SOURCE\" && python3 -B tools/quality_report.py $DIR $DIR/page.md $DIR/plots");
	assert_int_not_equal(t.status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_cell_is_run_once), cmocka_unit_test(a_refusal_is_a_result),
		cmocka_unit_test(the_report_is_made_from_what_is_there),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
