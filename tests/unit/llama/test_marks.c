/* What the command line says of positions: reading it, and when a drop is due. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "examples/llama/marks.h"

static void ranges_are_read(void **state)
{
	struct marks m = { .n = 0 };

	(void)state;
	assert_int_equal(marks_parse(&m, EBB_TAG, "10:20=3"), 0);
	assert_int_equal(marks_parse(&m, EBB_PIN, "0:1"), 0);
	assert_int_equal(marks_parse(&m, EBB_DROP, "600:900@15"), 0);
	assert_int_equal(m.n, 3);
	assert_true(m.mark[0].what == EBB_TAG && m.mark[0].first == 10 && m.mark[0].n == 10 && m.mark[0].value == 3);
	assert_true(m.mark[1].what == EBB_PIN && m.mark[1].first == 0 && m.mark[1].n == 1);
	assert_true(m.mark[2].what == EBB_DROP && m.mark[2].first == 600 && m.mark[2].n == 300 && m.mark[2].value == 15);
}

static void what_is_no_range_is_refused(void **state)
{
	static const struct { enum ebb_mark_what what; const char *text; } bad[] = {
		{ EBB_PIN, "" }, { EBB_PIN, "5" }, { EBB_PIN, "5:" }, { EBB_PIN, ":5" }, { EBB_PIN, "5:5" }, { EBB_PIN, "6:5" }, { EBB_PIN, "-1:5" },
		{ EBB_PIN, " 1:5" }, { EBB_PIN, "1:5 " }, { EBB_PIN, "1:4294967296" }, { EBB_PIN, "1:99999999999999999999" }, { EBB_PIN, "1:5@2" },
		{ EBB_PIN, "1:5=2" }, { EBB_TAG, "1:5" }, { EBB_TAG, "1:5=" }, { EBB_TAG, "1:5@2" }, { EBB_TAG, "1:5=x" }, { EBB_DROP, "1:5" },
		{ EBB_DROP, "1:5=2" }, { EBB_DROP, "1:5@-1" }, { EBB_DROP, "1:5@2@3" }, { EBB_DROP, "1.5:7@2" },
	};
	struct marks m = { .n = 0 };

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(marks_parse(&m, bad[i].what, bad[i].text), -EINVAL);
	assert_int_equal(m.n, 0);
	while (m.n < MARKS_MAX)
		assert_int_equal(marks_parse(&m, EBB_PIN, "1:2"), 0);
	assert_int_equal(marks_parse(&m, EBB_PIN, "1:2"), -E2BIG);
}

static void a_step_ends_where_a_drop_is_due(void **state)
{
	struct marks m = { .n = 0 };

	(void)state;
	assert_int_equal(marks_parse(&m, EBB_DROP, "100:200@1"), 0);
	assert_int_equal(marks_parse(&m, EBB_DROP, "0:150@3"), 0);
	assert_int_equal(marks_parse(&m, EBB_PIN, "0:130"), 0);		/* has no say here */
	assert_int_equal(marks_limit(&m, 0, 64), 64);
	assert_int_equal(marks_limit(&m, 120, 64), 30);
	assert_int_equal(marks_limit(&m, 150, 64), 50);
	assert_int_equal(marks_limit(&m, 149, 1), 1);
	assert_int_equal(marks_limit(&m, 200, 64), 64);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ranges_are_read),
		cmocka_unit_test(what_is_no_range_is_refused),
		cmocka_unit_test(a_step_ends_where_a_drop_is_due),
	};

	return cmocka_run_group_tests_name("llama marks", tests, NULL, NULL);
}
