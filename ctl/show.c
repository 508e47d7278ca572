/* Answers as tables. */
#include <pwd.h>
#include <string.h>
#include <unistd.h>

#include "ctl/ctl.h"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/* --- pools ----------------------------------------------------------------------------------------------------------------------- */

static void bar(double share, FILE *to, const struct ctl_style *style)
{
	enum { WIDTH = 30 };
	int full = (int)(share * WIDTH + 0.5);

	full = full < 0 ? 0 : full > WIDTH ? WIDTH : full;
	if (full == 0 && share > 0)
		full = 1;		/* something is not nothing */
	if (style->colour)
		fputs(share < 0.75 ? CTL_GREEN : share < 0.95 ? CTL_YELLOW : CTL_RED, to);
	for (int i = 0; i < full; i++)
		fputs(style->utf8 ? "\u2588" : "#", to);
	if (style->colour)
		fputs(CTL_RESET CTL_DIM, to);
	for (int i = full; i < WIDTH; i++)
		fputs(style->utf8 ? "\u2591" : ".", to);
	if (style->colour)
		fputs(CTL_RESET, to);
}

void ctl_pool_line(const json_t *pool, int name_width, FILE *to, const struct ctl_style *style)
{
	double size = ctl_number(pool, "size_bytes"), used = ctl_number(pool, "used_bytes");
	double quarantined = ctl_number(pool, "slabs_quarantined");
	char name[CTL_CELL], share[CTL_CELL], have[CTL_CELL], all[CTL_CELL];

	fprintf(to, "%-*s  ", name_width, ctl_clean(ctl_string(pool, "name"), name));
	bar(size > 0 ? used / size : 0, to, style);
	fprintf(to, "  %7s  %s of %s, %.0f of %.0f slabs", ctl_share(used, size, share), ctl_bytes(used, have), ctl_bytes(size, all),
		ctl_number(pool, "slabs_used"), ctl_number(pool, "slabs"));
	if (quarantined > 0)
		fprintf(to, ", %.0f in quarantine", quarantined);
	if (ctl_flag(pool, "tide"))
		fprintf(to, json_is_number(json_object_get(pool, "tide_level")) ? ", tide at %.1f" : ", low tide", ctl_number(pool, "tide_level"));
	fputc('\n', to);
}

void ctl_show_pools(const json_t *pools, FILE *to, const struct ctl_style *style)
{
	static const struct ctl_column columns[] = {
		{ "POOL", 0 }, { "DEVICE", 0 }, { "SIZE", 1 }, { "USED", 1 }, { "FREE", 1 }, { "USE", 1 }, { "SLAB", 1 }, { "SLABS", 1 },
		{ "IN USE", 1 }, { "QUARANTINE", 1 }, { "UUID", 0 },
	};
	struct ctl_table *table = ctl_table_new(columns, COUNT_OF(columns));
	char text[CTL_CELL];
	const json_t *pool;
	size_t i;

	json_array_foreach(pools, i, pool) {
		double size = ctl_number(pool, "size_bytes"), used = ctl_number(pool, "used_bytes");

		ctl_cell(table, ctl_string(pool, "name"));
		ctl_cell(table, ctl_string(pool, "device"));
		ctl_cell(table, ctl_bytes(size, text));
		ctl_cell(table, ctl_bytes(used, text));
		ctl_cell(table, ctl_bytes(ctl_number(pool, "free_bytes"), text));
		ctl_cell(table, ctl_share(used, size, text));
		ctl_cell(table, ctl_bytes(ctl_number(pool, "slab_bytes"), text));
		ctl_cell_format(table, "%.0f", ctl_number(pool, "slabs"));
		ctl_cell_format(table, "%.0f", ctl_number(pool, "slabs_used"));
		ctl_cell_format(table, "%.0f", ctl_number(pool, "slabs_quarantined"));
		ctl_cell(table, ctl_string(pool, "uuid"));
	}
	ctl_table_print(table, to, style, 0);
	ctl_table_free(table);
}

/* --- status ---------------------------------------------------------------------------------------------------------------------- */

static int longest_name(const json_t *pools)
{
	size_t i, longest = 0;
	const json_t *pool;

	json_array_foreach(pools, i, pool) {
		size_t n = strlen(ctl_string(pool, "name"));

		longest = n > longest ? n : longest;
	}
	return longest < 32 ? (int)longest : 32;
}

static void line(FILE *to, const char *label, const char *value, const char *more)
{
	fprintf(to, "  %-12s %10s%s%s\n", label, value, *more ? "  " : "", more);
}

void ctl_show_status(const json_t *status, FILE *to, const struct ctl_style *style)
{
	const json_t *pools = json_object_get(status, "pools"), *pool;
	double live = ctl_number(status, "slots_live"), full = ctl_number(status, "slots_full");
	char a[CTL_CELL], b[CTL_CELL], more[4 * CTL_CELL];
	size_t i;

	fprintf(to, "%sebbd %s%s  up %s, pid %.0f", style->colour ? CTL_BOLD : "", ctl_clean(ctl_string(status, "version"), a),
		style->colour ? CTL_RESET : "", ctl_age(ctl_number(status, "uptime_s"), b), ctl_number(status, "pid"));
	fprintf(to, "%s%s\n\n", *ctl_string(status, "config") ? ", " : "", ctl_clean(ctl_string(status, "config"), a));
	json_array_foreach(pools, i, pool)
		ctl_pool_line(pool, longest_name(pools), to, style);
	fputc('\n', to);

	line(to, "clients", ctl_count(ctl_number(status, "clients"), a), "");
	snprintf(more, sizeof(more), "%.0f waiting for room", ctl_number(status, "waiting"));
	line(to, "sessions", ctl_count(ctl_number(status, "sessions"), a), ctl_number(status, "waiting") > 0 ? more : "");
	snprintf(more, sizeof(more), "%s of the %s that full caches would hold", ctl_share(live, full, a), ctl_count(full, b));
	line(to, "live slots", ctl_count(live, a), full > 0 ? more : "");
	fprintf(to, "\nsince the start\n");
	line(to, "tokens", ctl_count(ctl_number(status, "tokens_total"), a), "");
	line(to, "evicted", ctl_count(ctl_number(status, "slots_evicted_total"), a), "slots");
	line(to, "steps", ctl_count(ctl_number(status, "steps_total"), a), "");
	line(to, "windows", ctl_count(ctl_number(status, "windows_total"), a), "");
	line(to, "claims", ctl_count(ctl_number(status, "claims_total"), a), "sessions taken back to make room");
	line(to, "compactions", ctl_count(ctl_number(status, "compactions_total"), a), "");
	line(to, "dropped", ctl_count(ctl_number(status, "clients_dropped_total"), a), "clients that broke the protocol or died");
}

/* --- sessions, clients ----------------------------------------------------------------------------------------------------------- */

void ctl_show_sessions(const json_t *sessions, FILE *to, const struct ctl_style *style)
{
	static const struct ctl_column columns[] = {
		{ "ID", 1 }, { "CLIENT", 1 }, { "PID", 1 }, { "NAME", 0 }, { "POOL", 0 }, { "POLICY", 0 }, { "BUDGET", 1 }, { "SLOTS", 1 },
		{ "TYPE", 0 }, { "TOKENS", 1 }, { "LANES", 1 }, { "LIVE", 1 }, { "OF FULL", 1 }, { "EVICTED", 1 }, { "MEMORY", 1 },
		{ "STATE", 0 }, { "AGE", 1 },
	};
	struct ctl_table *table = ctl_table_new(columns, COUNT_OF(columns));
	char text[CTL_CELL];
	const json_t *s;
	size_t i;

	json_array_foreach(sessions, i, s) {
		ctl_cell_format(table, "%.0f", ctl_number(s, "id"));
		ctl_cell_format(table, "%.0f", ctl_number(s, "client"));
		ctl_cell_format(table, "%.0f", ctl_number(s, "pid"));
		ctl_cell(table, ctl_string(s, "name"));
		ctl_cell(table, ctl_string(s, "pool"));
		ctl_cell(table, ctl_string(s, "policy"));
		ctl_cell(table, ctl_string(s, "budget"));
		ctl_cell_format(table, "%.0f", ctl_number(s, "budget_slots"));
		ctl_cell(table, ctl_string(s, "slots"));
		ctl_cell_format(table, "%.0f", ctl_number(s, "tokens"));
		ctl_cell_format(table, "%.0f", ctl_number(s, "lanes"));
		ctl_cell(table, ctl_count(ctl_number(s, "slots_live"), text));
		ctl_cell(table, ctl_share(ctl_number(s, "slots_live"), ctl_number(s, "slots_full"), text));
		ctl_cell(table, ctl_count(ctl_number(s, "slots_evicted"), text));
		ctl_cell(table, ctl_bytes(ctl_number(s, "used_bytes"), text));
		ctl_cell_format(table, "%s%s", ctl_string(s, "state"), ctl_flag(s, "pressure") ? ", pool short" : "");
		ctl_cell(table, ctl_age(ctl_number(s, "age_s"), text));
	}
	if (json_array_size(sessions) == 0)
		fprintf(to, "no sessions\n");
	else
		ctl_table_print(table, to, style, 0);
	ctl_table_free(table);
}

/* "12 30 64": one row of a layer's heads. */
static void heads_cell(struct ctl_table *table, const json_t *values, size_t first, size_t n)
{
	char text[CTL_CELL];
	size_t at = 0;

	text[0] = '\0';
	for (size_t i = 0; i < n && at + 12 < sizeof(text); i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%.0f", i ? " " : "",
				       json_number_value(json_array_get(values, first + i)));
	ctl_cell(table, text);
}

/* Its row, then its settings; what it chose itself (or was given by hand) does not follow the configuration. */
void ctl_show_session(const json_t *session, FILE *to, const struct ctl_style *style)
{
	static const struct ctl_column columns[] = { { "KEY", 0 }, { "VALUE", 0 }, { "FROM", 0 }, { "COMING", 0 } };
	json_t *settings = json_object_get(session, "settings"), *chosen = json_object_get(session, "chosen");
	const json_t *coming = json_object_get(session, "coming");
	struct ctl_table *table = ctl_table_new(columns, COUNT_OF(columns));
	const char *key, *next;
	char because[CTL_CELL];
	json_t *rows = json_array(), *value;

	(void)json_array_append(rows, (json_t *)session);
	ctl_show_sessions(rows, to, style);
	json_decref(rows);
	fputc('\n', to);
	json_object_foreach(settings, key, value) {
		next = json_is_object(coming) ? ctl_string(coming, key) : json_string_value(value);
		ctl_cell(table, key);
		ctl_cell(table, json_string_value(value));
		ctl_cell(table, json_object_get(chosen, key) ? "session" : "ebbd.ini");
		ctl_cell(table, next && strcmp(next, json_string_value(value)) != 0 ? next : "");
	}
	ctl_table_print(table, to, style, 0);
	ctl_table_free(table);
	if (*ctl_string(session, "kept_because"))
		fprintf(to, "\nIts last change was not made: %s\n", ctl_clean(ctl_string(session, "kept_because"), because));
}

void ctl_show_lanes(const json_t *lanes, FILE *to, const struct ctl_style *style)
{
	static const struct ctl_column columns[] = { { "LAYER", 1 }, { "MAY HOLD, BY KV HEAD", 0 }, { "HOLDS", 0 } };
	const double layers = ctl_number(lanes, "layers"), heads = ctl_number(lanes, "kv_heads");
	struct ctl_table *table = ctl_table_new(columns, COUNT_OF(columns));
	char split[CTL_CELL];

	fprintf(to, "split %s\n", ctl_clean(ctl_string(lanes, "split"), split));
	for (size_t layer = 0; layer < layers && layer < 65536; layer++) {
		ctl_cell_format(table, "%zu", layer);
		heads_cell(table, json_object_get(lanes, "budget"), layer * (size_t)heads, (size_t)heads);
		heads_cell(table, json_object_get(lanes, "live"), layer * (size_t)heads, (size_t)heads);
	}
	ctl_table_print(table, to, style, 0);
	ctl_table_free(table);
}

/* The user's name, or the number where there is none. */
static void user_cell(struct ctl_table *table, double uid)
{
	const struct passwd *user = getpwuid((uid_t)uid);

	if (user)
		ctl_cell(table, user->pw_name);
	else
		ctl_cell_format(table, "%.0f", uid);
}

void ctl_show_clients(const json_t *clients, FILE *to, const struct ctl_style *style)
{
	static const struct ctl_column columns[] = {
		{ "ID", 1 }, { "PID", 1 }, { "USER", 0 }, { "NAME", 0 }, { "SESSIONS", 1 }, { "MEMORY", 1 }, { "SLABS", 1 },
		{ "TOKENS", 1 }, { "STEPS", 1 }, { "WINDOWS", 1 }, { "CONNECTED", 1 },
	};
	struct ctl_table *table = ctl_table_new(columns, COUNT_OF(columns));
	char text[CTL_CELL];
	const json_t *c;
	size_t i;

	json_array_foreach(clients, i, c) {
		ctl_cell_format(table, "%.0f", ctl_number(c, "id"));
		ctl_cell_format(table, "%.0f", ctl_number(c, "pid"));
		user_cell(table, ctl_number(c, "uid"));
		ctl_cell(table, ctl_string(c, "name"));
		ctl_cell_format(table, "%.0f", ctl_number(c, "sessions"));
		ctl_cell(table, ctl_bytes(ctl_number(c, "used_bytes"), text));
		ctl_cell_format(table, "%.0f", ctl_number(c, "slabs"));
		ctl_cell(table, ctl_count(ctl_number(c, "tokens"), text));
		ctl_cell(table, ctl_count(ctl_number(c, "steps"), text));
		ctl_cell(table, ctl_count(ctl_number(c, "windows"), text));
		ctl_cell(table, ctl_age(ctl_number(c, "connected_s"), text));
	}
	ctl_table_print(table, to, style, 0);
	ctl_table_free(table);
}

/* --- policies, config -------------------------------------------------------------------------------------------------------------- */

/* Parameters as in evict.h: name, unit, text, default, min, max. */
static void policy_params(const json_t *params, FILE *to)
{
	char name[CTL_CELL], unit[CTL_CELL], text[CTL_CELL];
	const json_t *p;
	size_t i;

	json_array_foreach(params, i, p) {
		const char *def = json_object_get(p, "default") ? "default" : "def";

		fprintf(to, "    %s = %g%s%s  (%g .. %g)  %s\n", ctl_clean(ctl_string(p, "name"), name), ctl_number(p, def),
			*ctl_string(p, "unit") ? " " : "", ctl_clean(ctl_string(p, "unit"), unit), ctl_number(p, "min"),
			ctl_number(p, "max"), ctl_clean(ctl_string(p, "text"), text));
	}
}

void ctl_show_policies(const json_t *policies, FILE *to, const struct ctl_style *style)
{
	size_t i, j;
	const json_t *p, *heat;

	json_array_foreach(policies, i, p) {
		const char *kind = ctl_string(p, "kind");
		char name[CTL_CELL];

		/* Not through ctl_clean(): these are the daemon's own sentences, and longer than a cell. */
		fprintf(to, "%s%s%s%s", i ? "\n" : "", style->colour ? CTL_BOLD : "", ctl_clean(ctl_string(p, "name"), name),
			style->colour ? CTL_RESET : "");
		if (*kind && strcmp(kind, "rank") != 0)
			fprintf(to, "  (%s)", kind);
		fprintf(to, "\n    %s\n", ctl_string(p, "text"));
		if (*ctl_string(p, "source"))
			fprintf(to, "    from %s\n", ctl_string(p, "source"));
		json_array_foreach(json_object_get(p, "heat"), j, heat)
			fprintf(to, "%s%s", j ? ", " : "    heat: ", json_string_value(heat) ? json_string_value(heat) : "?");
		if (j)
			fputc('\n', to);
		json_array_foreach(json_object_get(p, "traits"), j, heat)
			fprintf(to, "%s%s", j ? ", " : "    of keys and values: ", json_string_value(heat) ? json_string_value(heat) : "?");
		if (j && json_object_get(p, "traits"))
			fputc('\n', to);
		if (*ctl_string(p, "merge") && strcmp(ctl_string(p, "merge"), "none") != 0)
			fprintf(to, "    merge: %s\n", ctl_string(p, "merge"));
		json_array_foreach(json_object_get(p, "needs"), j, heat)
			fprintf(to, "%s%s", j ? ", " : "    needs: ", json_string_value(heat) ? json_string_value(heat) : "?");
		if (j && json_object_get(p, "needs"))
			fputc('\n', to);
		policy_params(json_object_get(p, "params"), to);
	}
}

void ctl_show_config(const json_t *config, FILE *to, const struct ctl_style *style)
{
	static const struct ctl_column columns[] = {
		{ "SECTION", 0 }, { "KEY", 0 }, { "VALUE", 0 }, { "UNIT", 0 }, { "CHANGES", 0 },
	};
	struct ctl_table *table = ctl_table_new(columns, COUNT_OF(columns));
	const json_t *k;
	size_t i;

	json_array_foreach(config, i, k) {
		const char *reload = ctl_string(k, "reload");

		ctl_cell(table, ctl_string(k, "section"));
		ctl_cell(table, ctl_string(k, "key"));
		ctl_cell(table, *ctl_string(k, "value") ? ctl_string(k, "value") : "-");
		ctl_cell(table, *ctl_string(k, "unit") ? ctl_string(k, "unit") : "-");
		ctl_cell(table, strcmp(reload, "live") == 0 ? "on reload" :
			 strcmp(reload, "next") == 0 ? "on reload, for later sessions" : "on restart");
	}
	ctl_table_print(table, to, style, 0);
	ctl_table_free(table);
}
