/* One frame of watch: pools, totals with rates, sessions by memory. Built from two snapshots; prints and nothing else. */
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/* Growth of a counter per second between the snapshots; -1: not known (first frame, or the daemon has restarted). */
static double rate(const json_t *old, const json_t *now, const char *key, double seconds)
{
	double grown = ctl_number(now, key) - ctl_number(old, key);

	return old && seconds > 0 && grown >= 0 ? grown / seconds : -1;
}

/* The session with this id in the older snapshot, or NULL. */
static const json_t *same_session(const json_t *sessions, const json_t *now)
{
	double id = ctl_number(now, "id");
	const json_t *s;
	size_t i;

	json_array_foreach(sessions, i, s)
		if (ctl_number(s, "id") == id && ctl_number(s, "client") == ctl_number(now, "client"))
			return s;
	return NULL;
}

static int by_memory(const void *a, const void *b)
{
	const json_t *x = *(const json_t *const *)a, *y = *(const json_t *const *)b;
	double dx = ctl_number(x, "used_bytes"), dy = ctl_number(y, "used_bytes");

	if (dx != dy)
		return dx > dy ? -1 : 1;
	return (ctl_number(x, "id") > ctl_number(y, "id")) - (ctl_number(x, "id") < ctl_number(y, "id"));
}

/* Lines go through here: cut at the terminal's width, and never more of them than it has. */
struct page {
	FILE *to;
	const struct ctl_style *style;
	unsigned used;
};

static unsigned lines_left(const struct page *p)
{
	if (p->style->rows == 0)
		return 1u << 30;
	return p->style->rows - 1 > p->used ? p->style->rows - 1 - p->used : 0;
}

static void put(struct page *p, const char *text)
{
	if (lines_left(p) == 0)
		return;
	ctl_line(p->to, text, p->style);
	fputc('\n', p->to);
	p->used++;
}

/* Puts what was written to a memory stream, line by line. */
static void put_all(struct page *p, char *text)
{
	char *end;

	for (; text && *text != '\0'; text = end + 1) {
		end = strchr(text, '\n');
		if (!end) {
			put(p, text);
			return;
		}
		*end = '\0';
		put(p, text);
	}
}

static void head(struct page *p, const json_t *status, double interval_s)
{
	char version[CTL_CELL], age[CTL_CELL], text[512];
	double waiting = ctl_number(status, "waiting");
	int n;

	n = snprintf(text, sizeof(text), "%sebbd %s%s  up %s  %.0f client%s  %.0f session%s", p->style->colour ? CTL_BOLD : "",
		     ctl_clean(ctl_string(status, "version"), version), p->style->colour ? CTL_RESET : "",
		     ctl_age(ctl_number(status, "uptime_s"), age), ctl_number(status, "clients"),
		     ctl_number(status, "clients") == 1 ? "" : "s", ctl_number(status, "sessions"),
		     ctl_number(status, "sessions") == 1 ? "" : "s");
	if (waiting > 0)
		n += snprintf(text + n, sizeof(text) - (size_t)n, ", %.0f waiting for room", waiting);
	if (p->style->rows)
		snprintf(text + n, sizeof(text) - (size_t)n, "  %severy %g s, q quits%s", p->style->colour ? CTL_DIM : "", interval_s,
			 p->style->colour ? CTL_RESET : "");
	put(p, text);
	put(p, "");
}

static void pools(struct page *p, const json_t *status)
{
	const json_t *all = json_object_get(status, "pools"), *pool;
	char *text = NULL;
	size_t bytes = 0, i;
	int width = 0;
	FILE *to = open_memstream(&text, &bytes);

	if (!to)
		return;
	json_array_foreach(all, i, pool) {
		int n = (int)strnlen(ctl_string(pool, "name"), 32);

		width = n > width ? n : width;
	}
	json_array_foreach(all, i, pool)
		ctl_pool_line(pool, width, to, p->style);
	(void)fclose(to);
	put_all(p, text);
	free(text);
	put(p, "");
}

static void totals(struct page *p, const json_t *old, const json_t *now, double seconds)
{
	static const struct {
		const char *label, *key, *unit;
	} row[] = {
		{ "tokens", "tokens_total", "tok/s" },
		{ "evicted", "slots_evicted_total", "slots/s" },
		{ "windows", "windows_total", "/s" },
		{ "claims", "claims_total", "/s" },
		{ "compactions", "compactions_total", "/s" },
	};
	double live = ctl_number(now, "slots_live"), full = ctl_number(now, "slots_full");
	char total[CTL_CELL], per_s[CTL_CELL], share[CTL_CELL], text[4 * CTL_CELL];

	for (size_t i = 0; i < COUNT_OF(row); i++) {
		snprintf(text, sizeof(text), "%-12s %9s  %16s", row[i].label, ctl_count(ctl_number(now, row[i].key), total),
			 ctl_rate(rate(old, now, row[i].key, seconds), row[i].unit, per_s));
		put(p, text);
	}
	snprintf(text, sizeof(text), "%-12s %9s  of %s slots that full caches would hold: %s", "live", ctl_count(live, total),
		 ctl_count(full, per_s), ctl_share(live, full, share));
	put(p, text);
}

static void session_row(struct ctl_table *table, const json_t *old, const json_t *s, double seconds, bool tide)
{
	char text[CTL_CELL];

	ctl_cell(table, ctl_bytes(ctl_number(s, "used_bytes"), text));
	ctl_cell_format(table, "%.0f", ctl_number(s, "id"));
	ctl_cell_format(table, "%.0f", ctl_number(s, "pid"));
	ctl_cell(table, ctl_string(s, "name"));
	ctl_cell(table, ctl_string(s, "pool"));
	ctl_cell(table, ctl_string(s, "policy"));
	ctl_cell_format(table, "%.0f", ctl_number(s, "budget_slots"));
	ctl_cell_format(table, "%.0f", ctl_number(s, "tokens"));
	ctl_cell(table, ctl_rate(rate(old, s, "tokens", seconds), "tok/s", text));
	ctl_cell(table, ctl_count(ctl_number(s, "slots_live"), text));
	ctl_cell(table, ctl_share(ctl_number(s, "slots_live"), ctl_number(s, "slots_full"), text));
	ctl_cell(table, ctl_count(ctl_number(s, "slots_evicted"), text));
	if (tide) {	/* slots that it leaves, and what one more is expected to save (log2) */
		ctl_cell_format(table, ctl_number(s, "tide_slots") > 0 ? "%.0f" : "-", ctl_number(s, "tide_slots"));
		ctl_cell_format(table, json_is_number(json_object_get(s, "tide_misses")) ? "%.1f" : "-", ctl_number(s, "tide_misses"));
		ctl_cell_format(table, "%g", ctl_number(s, "priority"));
	}
	ctl_cell_format(table, "%s%s", ctl_string(s, "state"), ctl_flag(s, "pressure") ? ", pool short" : "");
}

static void sessions(struct page *p, const struct ctl_snapshot *old, const struct ctl_snapshot *now, double seconds)
{
	static const struct ctl_column columns[] = {
		{ "MEMORY", 1 }, { "ID", 1 }, { "PID", 1 }, { "NAME", 0 }, { "POOL", 0 }, { "POLICY", 0 }, { "BUDGET", 1 }, { "TOKENS", 1 },
		{ "SPEED", 1 }, { "LIVE", 1 }, { "OF FULL", 1 }, { "EVICTED", 1 }, { "STATE", 0 },
	};
	static const struct ctl_column with_tide[] = {
		{ "MEMORY", 1 }, { "ID", 1 }, { "PID", 1 }, { "NAME", 0 }, { "POOL", 0 }, { "POLICY", 0 }, { "BUDGET", 1 }, { "TOKENS", 1 },
		{ "SPEED", 1 }, { "LIVE", 1 }, { "OF FULL", 1 }, { "EVICTED", 1 }, { "TIDE", 1 }, { "MISSES", 1 }, { "PRIORITY", 1 }, { "STATE", 0 },
	};
	size_t n = json_array_size(now->sessions), shown, bytes = 0;
	const json_t **order;
	struct ctl_table *table;
	char *text = NULL, rest[64];
	const json_t *pool;
	bool tide = false;
	size_t at;
	FILE *to;

	json_array_foreach(json_object_get(now->status, "pools"), at, pool)
		tide = tide || ctl_flag(pool, "tide");
	if (n == 0 || lines_left(p) < 3)
		return;
	put(p, "");
	shown = lines_left(p) - 1;
	shown = n <= shown ? n : shown - 1;	/* the last line counts those left out */
	order = calloc(n, sizeof(const json_t *));
	to = open_memstream(&text, &bytes);
	if (order && to) {
		for (size_t i = 0; i < n; i++)
			order[i] = json_array_get(now->sessions, i);
		qsort(order, n, sizeof(const json_t *), by_memory);
		table = tide ? ctl_table_new(with_tide, COUNT_OF(with_tide)) : ctl_table_new(columns, COUNT_OF(columns));
		for (size_t i = 0; i < shown; i++)
			session_row(table, same_session(old->sessions, order[i]), order[i], seconds, tide);
		ctl_table_print(table, to, p->style, 0);
		ctl_table_free(table);
	}
	if (to)
		(void)fclose(to);
	put_all(p, text);
	if (shown < n) {
		snprintf(rest, sizeof(rest), "and %zu more", n - shown);
		put(p, rest);
	}
	free(text);
	free(order);
}

void ctl_frame(const struct ctl_snapshot *old, const struct ctl_snapshot *now, double interval_s, FILE *to,
	       const struct ctl_style *style)
{
	struct page page = { .to = to, .style = style };
	double seconds = old->status ? now->at_s - old->at_s : 0;

	head(&page, now->status, interval_s);
	pools(&page, now->status);
	totals(&page, old->status, now->status, seconds);
	sessions(&page, old, now, seconds);
}
