/*
 * ebbctl: asks the daemon and shows what it said. Private to ctl/. Errors: 0 or negative errno. One thread.
 */
#ifndef CTL_CTL_H
#define CTL_CTL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* How output looks; see ctl_style_of(). */
struct ctl_style {
	bool colour;			/* escape sequences for colour and weight */
	bool utf8;			/* block characters */
	unsigned columns, rows;		/* of the terminal; 0: not one, do not clip */
};

/* --- source.c: where answers come from ------------------------------------------------------------------------------------ */

struct ctl_source;

/*
 * ctl_source_new - @socket: NULL for the library's default. @from: for tests, a JSON file in place of the daemon: an object with
 * one member per question, or an array of those, one per frame of watch. Both borrowed for its life. Returned; ctl_source_free().
 */
struct ctl_source *ctl_source_new(const char *socket, const char *from);
void ctl_source_free(struct ctl_source *source);

/*
 * ctl_ask - @out: returned, json_decref(). Connects when it must. @why: on failure one or two lines for people, cure included.
 * Errors: those of ebb_connect() and ebb_ask(); -EPROTO: the answer makes no sense.
 */
int ctl_ask(struct ctl_source *source, const char *question, json_t **out, char *why, size_t why_bytes);

/*
 * ctl_set - ebb_set(): other settings for a session. Returns 1 in force, 0 later, or an error as ctl_ask().
 */
int ctl_set(struct ctl_source *source, uint64_t id, const char *settings, char *why, size_t why_bytes);

/* The next frame of a file; false when there is none. Always true with a daemon. */
bool ctl_source_next(struct ctl_source *source);

/* Seconds for rates: the frame's "at_s" in a file that has it, else the monotonic clock. */
double ctl_source_now(const struct ctl_source *source);

/* --- text.c: values for people ---------------------------------------------------------------------------------------------- */

#define CTL_CELL 96

/* Members of a JSON object; 0, "" or false where there is none of that type. Strings are borrowed from the object. */
double ctl_number(const json_t *object, const char *key);
const char *ctl_string(const json_t *object, const char *key);
bool ctl_flag(const json_t *object, const char *key);

/* All return @out, CTL_CELL bytes. */
const char *ctl_bytes(double bytes, char *out);			/* 256 MiB */
const char *ctl_count(double n, char *out);			/* 12.3 k */
const char *ctl_rate(double per_s, const char *unit, char *out);	/* 12.3 k tok/s; a negative rate is not known: "-" */
const char *ctl_age(double seconds, char *out);			/* 2 h 03 min */
const char *ctl_share(double part, double whole, char *out);	/* 47.1 %, "-" of nothing */
const char *ctl_clean(const char *text, char *out);		/* printable ASCII: a client's name must not steer a terminal */

/* --- table.c: aligned columns --------------------------------------------------------------------------------------------------- */

struct ctl_column {
	const char *title;
	bool right;			/* figures */
};

struct ctl_table;

struct ctl_table *ctl_table_new(const struct ctl_column *columns, unsigned n_columns);	/* columns borrowed for its life */
void ctl_table_free(struct ctl_table *table);
void ctl_cell(struct ctl_table *table, const char *text);	/* the next cell, row by row; copied */
void ctl_cell_format(struct ctl_table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Header and the first @max_rows rows (0: all), each line cut at the terminal's width. */
void ctl_table_print(const struct ctl_table *table, FILE *to, const struct ctl_style *style, unsigned max_rows);

/* @line without its newline, cut at style->columns; escape sequences take no room. Ends with a reset if it was cut. */
void ctl_line(FILE *to, const char *line, const struct ctl_style *style);

/* --- show.c, frame.c, watch.c -------------------------------------------------------------------------------------------------- */

void ctl_show_status(const json_t *status, FILE *to, const struct ctl_style *style);
void ctl_show_sessions(const json_t *sessions, FILE *to, const struct ctl_style *style);
void ctl_show_session(const json_t *session, FILE *to, const struct ctl_style *style);
void ctl_show_lanes(const json_t *lanes, FILE *to, const struct ctl_style *style);
void ctl_show_clients(const json_t *clients, FILE *to, const struct ctl_style *style);
void ctl_show_pools(const json_t *pools, FILE *to, const struct ctl_style *style);
void ctl_show_policies(const json_t *policies, FILE *to, const struct ctl_style *style);
void ctl_show_config(const json_t *config, FILE *to, const struct ctl_style *style);

/* One line: name, bar, share, bytes, slabs. @name_width: of the longest name. */
void ctl_pool_line(const json_t *pool, int name_width, FILE *to, const struct ctl_style *style);

/* What two frames of watch are made from. */
struct ctl_snapshot {
	json_t *status, *sessions;	/* owned; NULL: none yet */
	double at_s;
};

/*
 * ctl_frame - one frame of watch. @old: the one before, for rates; its status may be NULL. Lines: at most style->rows - 1 if
 * that is not 0. @interval_s: shown.
 */
void ctl_frame(const struct ctl_snapshot *old, const struct ctl_snapshot *now, double interval_s, FILE *to,
	       const struct ctl_style *style);

struct ctl_watch_options {
	double interval_s;
	unsigned count;			/* frames; 0: until stopped */
	bool json;			/* an object a line */
};

/* ctl_watch - refresh until q, a signal, the count, or (not on a terminal) a failure. Returns the exit code. */
int ctl_watch(struct ctl_source *source, const struct ctl_watch_options *options);

/*
 * ctl_doctor - doctor.c: checks of the machine and of the daemon, a line each, with what to do. @root: for tests, a folder in place of / (NULL).
 * Returns the exit code: 1 when something keeps ebbd from working.
 */
int ctl_doctor(struct ctl_source *source, const char *root, bool json, FILE *to, const struct ctl_style *style);

/* Looks at fd 1, NO_COLOR, TERM and the locale. */
struct ctl_style ctl_style_of(int fd);

#define CTL_BOLD "\033[1m"
#define CTL_DIM "\033[2m"
#define CTL_RED "\033[31m"
#define CTL_GREEN "\033[32m"
#define CTL_YELLOW "\033[33m"
#define CTL_RESET "\033[0m"

#endif
