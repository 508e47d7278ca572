/* Units, cutting and alignment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"

static void bytes_are_shown_in_the_largest_unit(void **state)
{
	static const struct {
		double bytes;
		const char *text;
	} row[] = {
		{ 0, "0 B" }, { 1, "1 B" }, { 1000, "1000 B" }, { 1024, "1 KiB" }, { 1536, "1.50 KiB" }, { 268435456, "256 MiB" },
		{ 1073741824, "1 GiB" }, { 1.5 * 1073741824, "1.50 GiB" }, { 123456789, "118 MiB" }, { 1048575, "1.00 MiB" },
		{ 12.34 * 1048576, "12.3 MiB" }, { 1099511627776., "1 TiB" }, { -5, "0 B" }, { NAN, "0 B" },
	};
	char text[CTL_CELL];

	(void)state;
	for (size_t i = 0; i < sizeof(row) / sizeof(row[0]); i++)
		assert_string_equal(ctl_bytes(row[i].bytes, text), row[i].text);
}

static void counts_keep_three_digits(void **state)
{
	static const struct {
		double n;
		const char *text;
	} row[] = {
		{ 0, "0" }, { 999, "999" }, { 1000, "1.00 k" }, { 12345, "12.3 k" }, { 123456, "123 k" }, { 999900, "1.00 M" },
		{ 1234567, "1.23 M" }, { 9994999999., "9.99 G" }, { 1e18, "1000 P" }, { 1e30, "1000000000000000 P" },
	};
	char text[CTL_CELL];

	(void)state;
	for (size_t i = 0; i < sizeof(row) / sizeof(row[0]); i++)
		assert_string_equal(ctl_count(row[i].n, text), row[i].text);
	assert_string_equal(ctl_rate(12345, "tok/s", text), "12.3 k tok/s");
	assert_string_equal(ctl_rate(215, "tok/s", text), "215 tok/s");
	assert_string_equal(ctl_rate(20.04, "tok/s", text), "20.0 tok/s");
	assert_string_equal(ctl_rate(0, "tok/s", text), "0 tok/s");
	assert_string_equal(ctl_rate(-1, "tok/s", text), "-");
	assert_string_equal(ctl_rate(NAN, "tok/s", text), "-");
}

static void ages_and_shares(void **state)
{
	char text[CTL_CELL];

	(void)state;
	assert_string_equal(ctl_age(0, text), "0 s");
	assert_string_equal(ctl_age(59.9, text), "59 s");
	assert_string_equal(ctl_age(60, text), "1 min 00 s");
	assert_string_equal(ctl_age(7391, text), "2 h 03 min");
	assert_string_equal(ctl_age(90000, text), "1 d 01 h");
	assert_string_equal(ctl_age(-3, text), "0 s");
	assert_string_equal(ctl_share(1, 3, text), "33.3 %");
	assert_string_equal(ctl_share(1, 0, text), "-");
}

static void names_cannot_steer_a_terminal(void **state)
{
	char text[CTL_CELL], in[300];

	(void)state;
	assert_string_equal(ctl_clean("a\033[2Jb\n\xc3\xa4\x7f", text), "a?[2Jb????");
	memset(in, 'x', sizeof(in));
	in[sizeof(in) - 1] = '\0';
	assert_int_equal(strlen(ctl_clean(in, text)), CTL_CELL - 1);
}

static char *cut(const char *line, unsigned columns)
{
	const struct ctl_style style = { .columns = columns, .colour = true };
	char *text = NULL;
	size_t bytes;
	FILE *to = open_memstream(&text, &bytes);

	assert_non_null(to);
	ctl_line(to, line, &style);
	fclose(to);
	return text;
}

static void lines_are_cut_by_what_is_seen(void **state)
{
	static const struct {
		const char *line;
		unsigned columns;
		const char *text;
	} row[] = {
		{ "hello", 0, "hello" }, { "hello", 5, "hello" }, { "hello", 4, "hell" CTL_RESET },
		{ CTL_RED "hello" CTL_RESET, 5, CTL_RED "hello" CTL_RESET }, { CTL_RED "hello" CTL_RESET, 2, CTL_RED "he" CTL_RESET },
		{ "\u2588\u2588\u2591", 2, "\u2588\u2588" CTL_RESET }, { "", 1, "" }, { "a\033[", 9, "a" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(row) / sizeof(row[0]); i++) {
		char *text = cut(row[i].line, row[i].columns);

		assert_string_equal(text, row[i].text);
		free(text);
	}
}

static void columns_line_up(void **state)
{
	static const struct ctl_column columns[] = { { "N", 1 }, { "NAME", 0 }, { "X", 1 } };
	const struct ctl_style plain = { 0 };
	struct ctl_table *table = ctl_table_new(columns, 3);
	char *text = NULL;
	size_t bytes;
	FILE *to = open_memstream(&text, &bytes);

	(void)state;
	assert_non_null(to);
	for (int i = 0; i < 2; i++) {
		ctl_cell_format(table, "%d", i ? 1000 : 1);
		ctl_cell(table, i ? "b" : "longer");
		ctl_cell_format(table, "%d", 7);
	}
	ctl_table_print(table, to, &plain, 0);
	ctl_table_print(table, to, &plain, 1);
	fclose(to);
	assert_string_equal(text, "   N  NAME    X\n   1  longer  7\n1000  b       7\n"
				  "N  NAME    X\n1  longer  7\n");
	free(text);
	ctl_table_free(table);
	ctl_table_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bytes_are_shown_in_the_largest_unit),
		cmocka_unit_test(counts_keep_three_digits),
		cmocka_unit_test(ages_and_shares),
		cmocka_unit_test(names_cannot_steer_a_terminal),
		cmocka_unit_test(lines_are_cut_by_what_is_seen),
		cmocka_unit_test(columns_line_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
