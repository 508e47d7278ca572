/* Aligned columns. Cells are ASCII (ctl_clean), so bytes are columns. */
#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"

struct ctl_table {
	const struct ctl_column *column;
	unsigned n_columns;
	char (*cell)[CTL_CELL];
	unsigned n_cells, room;
};

static void *must(void *memory)
{
	if (!memory) {
		fprintf(stderr, "ebbctl: out of memory\n");
		exit(1);
	}
	return memory;
}

struct ctl_table *ctl_table_new(const struct ctl_column *columns, unsigned n_columns)
{
	struct ctl_table *table = must(calloc(1, sizeof(*table)));

	assert(n_columns > 0);
	table->column = columns;
	table->n_columns = n_columns;
	return table;
}

void ctl_table_free(struct ctl_table *table)
{
	if (table)
		free(table->cell);
	free(table);
}

void ctl_cell(struct ctl_table *table, const char *text)
{
	if (table->n_cells == table->room) {
		table->room = table->room ? table->room * 2 : 64;
		table->cell = must(realloc(table->cell, table->room * sizeof(*table->cell)));
	}
	(void)ctl_clean(text, table->cell[table->n_cells++]);
}

void ctl_cell_format(struct ctl_table *table, const char *format, ...)
{
	char text[4 * CTL_CELL];
	va_list args;

	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	ctl_cell(table, text);
}

void ctl_line(FILE *to, const char *line, const struct ctl_style *style)
{
	unsigned used = 0;

	for (const char *s = line; *s != '\0'; s++) {
		if (*s == '\033') {
			const char *end = strchr(s, 'm');

			if (!end)
				break;
			fwrite(s, 1, (size_t)(end - s + 1), to);
			s = end;
			continue;
		}
		if (((unsigned char)*s & 0xc0) != 0x80 && style->columns && used++ >= style->columns) {
			fputs(style->colour ? CTL_RESET : "", to);
			break;
		}
		fputc(*s, to);
	}
}

static void append(char *line, size_t bytes, size_t *used, const char *text, size_t width, bool right, bool last)
{
	int n;

	if (*used >= bytes)
		return;
	if (right)
		n = snprintf(line + *used, bytes - *used, "%*s%s", (int)width, text, last ? "" : "  ");
	else if (last)
		n = snprintf(line + *used, bytes - *used, "%s", text);
	else
		n = snprintf(line + *used, bytes - *used, "%-*s  ", (int)width, text);
	*used += (size_t)n;
}

void ctl_table_print(const struct ctl_table *table, FILE *to, const struct ctl_style *style, unsigned max_rows)
{
	enum { MAX_COLUMNS = 24 };
	unsigned n = table->n_columns, n_rows = table->n_cells / n;
	size_t width[MAX_COLUMNS], used;
	char line[MAX_COLUMNS * (CTL_CELL + 2) + 16];

	assert(n <= MAX_COLUMNS);
	if (max_rows && n_rows > max_rows)
		n_rows = max_rows;
	for (unsigned c = 0; c < n; c++) {
		width[c] = strlen(table->column[c].title);
		for (unsigned r = 0; r < n_rows; r++) {
			size_t cell = strlen(table->cell[r * n + c]);

			width[c] = cell > width[c] ? cell : width[c];
		}
	}
	for (unsigned r = 0; r <= n_rows; r++) {
		used = 0;
		line[0] = '\0';
		for (unsigned c = 0; c < n; c++)
			append(line, sizeof(line), &used, r ? table->cell[(r - 1) * n + c] : table->column[c].title, width[c],
			       table->column[c].right, c + 1 == n);
		fputs(r == 0 && style->colour ? CTL_BOLD : "", to);
		ctl_line(to, line, style);
		fputs(r == 0 && style->colour ? CTL_RESET "\n" : "\n", to);
	}
}
