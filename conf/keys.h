/*
 * The table of keys as data, and the values behind it. Private to conf/ and its tests.
 * Errors: 0 or negative errno. Thread: any; the table is constant.
 */
#ifndef CONF_KEYS_H
#define CONF_KEYS_H

#include "conf/conf.h"

enum conf_section { CONF_DAEMON, CONF_POOL, CONF_MODEL, CONF_SESSION, CONF_N_SECTIONS };

enum conf_type {
	CONF_TYPE_TEXT, CONF_TYPE_DEVICE, CONF_TYPE_POLICY, CONF_TYPE_UINT, CONF_TYPE_AUTO, CONF_TYPE_MODE, CONF_TYPE_TIME, CONF_TYPE_SIZE,
	CONF_TYPE_SLAB, CONF_TYPE_AMOUNT, CONF_TYPE_CHOICE, CONF_TYPE_FILE,
};

enum conf_reload_class { CONF_LIVE, CONF_NEXT, CONF_RESTART };

struct conf_key {
	enum conf_section section;
	const char *name;
	enum conf_type type;
	size_t offset, bytes;		/* of the field in its section's struct */
	const char *def;		/* NULL: has to be given */
	uint64_t min, max;
	const char *unit;		/* CHOICE: the words, separated by | */
	enum conf_reload_class reload;
	const char *text, *longer;
};

extern const struct conf_key conf_keys[];
extern const unsigned conf_n_keys;
extern const char *const conf_section_names[CONF_N_SECTIONS];
extern const char *const conf_reload_names[];		/* "live", "next", "restart" */

/* Room for any value or any list of what is allowed, as text. */
#define CONF_VALUE_TEXT 160

/* Keys of @section are conf_keys[first] .. conf_keys[first + n - 1]. */
void conf_section_keys(enum conf_section section, unsigned *first, unsigned *n);

/* The key, or NULL. */
const struct conf_key *conf_find(enum conf_section section, const char *name);

/*
 * conf_key_set - read @text into the field of @key in @base (struct conf_daemon, conf_pool, conf_model or conf_session).
 * @check: for POLICY keys; may be NULL. @why: "found 'x'; allowed: ..." on failure; @base is then unchanged.
 * Errors: -EINVAL.
 */
int conf_key_set(const struct conf_key *key, void *base, const char *text, conf_check check, char *why, size_t why_bytes);

int conf_key_is_text(const struct conf_key *key);	/* its field is a char array */

/* The field as conf_key_set() reads it. */
void conf_key_text(const struct conf_key *key, const void *base, char *out, size_t bytes);

/* What conf_key_set() accepts, for people: "1 .. 2048". */
void conf_key_allowed(const struct conf_key *key, char *out, size_t bytes);

/* @text between quotes for a message: unprintable bytes become '?', long text is cut. */
void conf_quote(const char *text, char *out, size_t bytes);

/* The key of any section whose name is nearest to @name and near enough to be meant, or NULL. Prefers @section. */
const struct conf_key *conf_nearest(enum conf_section section, const char *name);

/* Edits (insert, delete, change, swap neighbours) from a to b; 99 if either is longer than 31 bytes. */
unsigned conf_distance(const char *a, const char *b);

/* The file to install: [pool host] of 256M, the model whose table is installed with it (@DATADIR@ is filled in then), and every other key as a comment with its default. */
void conf_template(FILE *to);

#endif
