/*
 * ebbd.ini into struct conf. inih splits lines into keys and values; the reader in front of it counts lines, which Debian's
 * inih does not tell its handler, watches the sections, and notices lines that inih could not use.
 */
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "conf/keys.h"

enum {
	MAX_FILE = 1 << 20,
	MAX_COMPLAINTS = 10,
	MAX_KEYS = 64,
	MAX_LINE = 512,			/* of a line that counts; inih's own limit is lower */
	LABEL = CONF_MODEL_NAME + 8,	/* "pool NAME", "model NAME" */
};

/* What the file said about one section. */
struct part {
	unsigned line;			/* of its header; 0: not seen */
	unsigned key_line[MAX_KEYS];	/* by index into conf_keys; 0: not given */
};

struct loader {
	const char *path;
	const char *text;		/* the whole file */
	size_t bytes, at;
	unsigned line;			/* of the line that inih has now */
	char waiting[MAX_LINE];		/* that line, while its key and value have not come back; else "" */

	struct conf *conf;
	conf_check check;
	struct part daemon, session, pool[CONF_MAX_POOLS], model[CONF_MAX_MODELS];

	struct part *part;		/* the section we are in; NULL: none, or one whose keys mean nothing */
	enum conf_section section;
	void *base;			/* of its fields */
	char label[LABEL];
	bool skip;			/* the section itself was complained about */
	bool saw_pool;			/* good or bad */

	char *why;
	size_t why_bytes, why_used;
	unsigned n_complaints;
};

static void append(struct loader *l, const char *format, va_list args)
{
	int n;

	if (!l->why || l->why_used + 1 >= l->why_bytes)
		return;
	n = vsnprintf(l->why + l->why_used, l->why_bytes - l->why_used, format, args);
	l->why_used += n > 0 ? (size_t)n : 0;
	if (l->why_used >= l->why_bytes)
		l->why_used = l->why_bytes - 1;
}

static void __attribute__((format(printf, 2, 3))) say(struct loader *l, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	append(l, format, args);
	va_end(args);
}

/* One complaint, "file:line: " and what @format makes, on a line of its own. line 0: about the file as a whole. */
static void __attribute__((format(printf, 3, 4))) complain(struct loader *l, unsigned line, const char *format, ...)
{
	va_list args;

	if (l->n_complaints++ >= MAX_COMPLAINTS)
		return;
	say(l, "%s%s", l->why_used ? "\n" : "", l->path);
	if (line)
		say(l, ":%u", line);
	say(l, ": ");
	va_start(args, format);
	append(l, format, args);
	va_end(args);
}

/* --- sections -------------------------------------------------------------------------------------------------------------- */

static void enter(struct loader *l, enum conf_section section, struct part *part, void *base, const char *label)
{
	l->section = section;
	l->part = part;
	l->base = base;
	l->skip = false;
	snprintf(l->label, sizeof(l->label), "%s", label);
	if (part->line) {
		complain(l, l->line, "[%s]: found again (first in line %u); allowed: each section once", label, part->line);
		memset(part->key_line, 0, sizeof(part->key_line));	/* still look at its values, not for keys given twice */
		return;
	}
	part->line = l->line;
}

/* @room: of the name, NUL included. */
static bool name_is_plain(const char *name, size_t room)
{
	size_t n = strlen(name);

	return n > 0 && n < room &&
	       strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == n;
}

static void pool_defaults(struct conf_pool *pool, const char *name)
{
	unsigned first, n;

	memset(pool, 0, sizeof(*pool));
	memcpy(pool->name, name, strlen(name));
	conf_section_keys(CONF_POOL, &first, &n);
	for (unsigned i = first; i < first + n; i++)
		if (conf_keys[i].def)
			(void)conf_key_set(&conf_keys[i], pool, conf_keys[i].def, NULL, NULL, 0);
}

static void enter_pool(struct loader *l, const char *name)
{
	struct conf *conf = l->conf;
	char label[LABEL], quoted[80];
	unsigned i;

	l->saw_pool = true;
	if (!name_is_plain(name, CONF_NAME)) {
		conf_quote(name, quoted, sizeof(quoted));
		complain(l, l->line, "[pool NAME]: found the name %s; allowed: 1 .. %d letters, digits, and . _ -", quoted, CONF_NAME - 1);
		return;
	}
	for (i = 0; i < conf->n_pools && strcmp(conf->pool[i].name, name) != 0; i++)
		;
	if (i == CONF_MAX_POOLS) {
		complain(l, l->line, "[pool %s]: found one pool more; allowed: %d pools", name, CONF_MAX_POOLS);
		return;
	}
	if (i == conf->n_pools) {
		pool_defaults(&conf->pool[i], name);
		conf->n_pools++;
	}
	snprintf(label, sizeof(label), "pool %s", name);
	enter(l, CONF_POOL, &l->pool[i], &conf->pool[i], label);
}

static void enter_model(struct loader *l, const char *name)
{
	struct conf *conf = l->conf;
	char label[LABEL], quoted[80];
	unsigned i;

	if (!name_is_plain(name, CONF_MODEL_NAME)) {
		conf_quote(name, quoted, sizeof(quoted));
		complain(l, l->line, "[model NAME]: found the name %s; allowed: 1 .. %d letters, digits, and . _ -", quoted, CONF_MODEL_NAME - 1);
		return;
	}
	for (i = 0; i < conf->n_models && strcmp(conf->model[i].name, name) != 0; i++)
		;
	if (i == CONF_MAX_MODELS) {
		complain(l, l->line, "[model %s]: found one model more; allowed: %d models", name, CONF_MAX_MODELS);
		return;
	}
	if (i == conf->n_models)
		memcpy(conf->model[conf->n_models++].name, name, strlen(name) + 1);
	snprintf(label, sizeof(label), "model %s", name);
	enter(l, CONF_MODEL, &l->model[i], &conf->model[i], label);
}

static void unknown_section(struct loader *l, const char *name)
{
	char quoted[80];
	const char *meant = "";

	for (int i = 0; i < CONF_N_SECTIONS; i++)
		if (conf_distance(name, conf_section_names[i]) <= 2)
			meant = conf_section_names[i];
	conf_quote(name, quoted, sizeof(quoted));
	complain(l, l->line, "found the section %s; allowed: [daemon], [pool NAME], [model NAME], [session]%s%s%s", quoted,
		 *meant ? "; did you mean [" : "", meant, *meant ? (strcmp(meant, "pool") == 0 || strcmp(meant, "model") == 0 ? " NAME]?" : "]?") : "");
}

/* @line: trimmed, starts with '['. */
static void section_line(struct loader *l, const char *line)
{
	char name[MAX_LINE], quoted[80], *end;
	size_t n;

	l->part = NULL;
	l->skip = true;		/* until it is known to be good */
	line += 1 + strspn(line + 1, " \t");
	snprintf(name, sizeof(name), "%s", line);
	end = strchr(name, ']');
	if (!end) {
		conf_quote(line, quoted, sizeof(quoted));
		complain(l, l->line, "found [ and %s; allowed: a section name between [ and ]", quoted);
		return;
	}
	n = strspn(end + 1, " \t");
	if (end[1 + n] != '\0' && end[1 + n] != ';' && end[1 + n] != '#') {
		conf_quote(end + 1 + n, quoted, sizeof(quoted));
		complain(l, l->line, "found %s behind the section; allowed: a comment (; ...)", quoted);
	}
	while (end > name && (end[-1] == ' ' || end[-1] == '\t'))
		end--;
	*end = '\0';
	n = strcspn(name, " \t");
	if (strcmp(name, "daemon") == 0)
		enter(l, CONF_DAEMON, &l->daemon, &l->conf->daemon, name);
	else if (strcmp(name, "session") == 0)
		enter(l, CONF_SESSION, &l->session, &l->conf->session, name);
	else if (n == 4 && memcmp(name, "pool", 4) == 0)
		enter_pool(l, name + n + strspn(name + n, " \t"));
	else if (n == 5 && memcmp(name, "model", 5) == 0)
		enter_model(l, name + n + strspn(name + n, " \t"));
	else
		unknown_section(l, name);
}

/* --- keys ---------------------------------------------------------------------------------------------------------------------- */

static void unknown_key(struct loader *l, const char *name)
{
	const struct conf_key *meant = conf_nearest(l->section, name);
	char quoted[80], keys[512] = "";
	unsigned first, n;
	size_t used = 0;

	conf_section_keys(l->section, &first, &n);
	for (unsigned i = first; i < first + n && used < sizeof(keys); i++)
		used += (size_t)snprintf(keys + used, sizeof(keys) - used, "%s%s", i == first ? "" : ", ", conf_keys[i].name);
	conf_quote(name, quoted, sizeof(quoted));
	if (meant && meant->section != l->section)
		complain(l, l->line, "[%s]: found the key %s; allowed: %s; did you mean %s in [%s]?", l->label, quoted, keys, meant->name,
			 conf_section_names[meant->section]);
	else if (meant)
		complain(l, l->line, "[%s]: found the key %s; allowed: %s; did you mean %s?", l->label, quoted, keys, meant->name);
	else
		complain(l, l->line, "[%s]: found the key %s; allowed: %s", l->label, quoted, keys);
}

/* inih's handler. Always 1: complaints are counted here. */
static int on_value(void *arg, const char *section, const char *name, const char *value)
{
	struct loader *l = arg;
	const struct conf_key *key;
	char why[512], quoted[80];
	unsigned *given;

	(void)section;		/* cut by inih at 49 bytes; section_line() knows better */
	l->waiting[0] = '\0';
	if (l->skip)
		return 1;
	if (!l->part) {
		conf_quote(name, quoted, sizeof(quoted));
		complain(l, l->line, "found %s before any section; allowed: first a line [daemon], [pool NAME], [model NAME] or [session]", quoted);
		return 1;
	}
	key = conf_find(l->section, name);
	if (!key) {
		unknown_key(l, name);
		return 1;
	}
	given = &l->part->key_line[key - conf_keys];
	if (*given)
		complain(l, l->line, "[%s] %s: found again (first in line %u); allowed: each key once", l->label, name, *given);
	else if (conf_key_set(key, l->base, value, l->check, why, sizeof(why)) != 0)
		complain(l, l->line, "[%s] %s: %s", l->label, name, why);
	*given = l->line;
	return 1;
}

/* --- lines ------------------------------------------------------------------------------------------------------------------- */

/* A line that inih had and made nothing of. */
static void check_waiting(struct loader *l)
{
	char quoted[80];

	if (l->waiting[0] == '\0')
		return;
	conf_quote(l->waiting, quoted, sizeof(quoted));
	complain(l, l->line, "found %s; allowed: [section], key = value, or a comment (; ...)", quoted);
	l->waiting[0] = '\0';
}

/* Where an inline comment starts in @s (a ; behind a blank), else its end. */
static size_t without_comment(const char *s, size_t n)
{
	for (size_t i = 1; i < n; i++)
		if (s[i] == ';' && (s[i - 1] == ' ' || s[i - 1] == '\t'))
			return i;
	return n;
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

/* inih's reader, shaped like fgets(): one line into @str of @room bytes; NULL at the end. Empty where inih should not look. */
static char *next_line(char *str, int room, void *stream)
{
	struct loader *l = stream;
	const char *s = l->text + l->at, *end;
	size_t n;

	check_waiting(l);
	if (l->at >= l->bytes)
		return NULL;
	end = memchr(s, '\n', l->bytes - l->at);
	n = end ? (size_t)(end - s) : l->bytes - l->at;
	l->at += n + (end ? 1 : 0);
	str[0] = '\0';
	if (++l->line == 1 && n >= 3 && memcmp(s, "\xef\xbb\xbf", 3) == 0) {
		s += 3;
		n -= 3;
	}
	for (; n && is_blank(*s); s++, n--)	/* inih would take an indented line for more of the value above */
		;
	if (n == 0 || *s == ';' || *s == '#')
		return str;
	if (memchr(s, '\0', n)) {
		complain(l, l->line, "found a zero byte; allowed: text");
		return str;
	}
	n = without_comment(s, n);
	while (n && is_blank(s[n - 1]))
		n--;
	if (n + 3 > (size_t)room || n >= MAX_LINE) {
		complain(l, l->line, "found a line of %zu bytes; allowed: at most %d", n, room < MAX_LINE ? room - 3 : MAX_LINE - 1);
		return str;
	}
	memcpy(str, s, n);
	str[n] = '\0';
	if (*str == '[') {
		section_line(l, str);
		str[0] = '\0';
	} else {
		memcpy(l->waiting, str, n + 1);
	}
	return str;
}

/* --- the file ------------------------------------------------------------------------------------------------------------------ */

static void check_whole(struct loader *l)
{
	unsigned first, n;

	if (!l->saw_pool)
		complain(l, 0, "found no pool; allowed: 1 .. %d sections [pool NAME], each with its size", CONF_MAX_POOLS);
	conf_section_keys(CONF_POOL, &first, &n);
	for (unsigned p = 0; p < l->conf->n_pools; p++) {
		const struct conf_pool *pool = &l->conf->pool[p];
		const struct part *part = &l->pool[p];
		const struct conf_key *slab = conf_find(CONF_POOL, "slab");
		char allowed[CONF_VALUE_TEXT], found[32];

		for (unsigned i = first; i < first + n; i++) {
			if (conf_keys[i].def || part->key_line[i])
				continue;
			conf_key_allowed(&conf_keys[i], allowed, sizeof(allowed));
			complain(l, part->line, "[pool %s] %s: found nothing; allowed: %s", pool->name, conf_keys[i].name, allowed);
		}
		if (pool->size_bytes && pool->slab_bytes > pool->size_bytes) {
			conf_size_text(pool->slab_bytes, found, sizeof(found));
			conf_size_text(pool->size_bytes, allowed, sizeof(allowed));
			complain(l, part->key_line[slab - conf_keys],
				 "[pool %s] slab: found '%s'; allowed: not more than the pool's size, %s", pool->name, found, allowed);
		}
	}
}

/* The whole file; *out: returned, free(). */
static int read_file(const char *path, char **out, size_t *out_bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), err = 0;
	char *text;
	size_t used = 0;
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT || errno == EACCES ? -errno : -EIO;
	text = malloc(MAX_FILE + 1);
	if (!text) {
		(void)close(fd);
		return -ENOMEM;
	}
	while (used <= MAX_FILE && (n = read(fd, text + used, MAX_FILE + 1 - used)) != 0) {
		if (n < 0 && errno != EINTR) {
			err = -EIO;
			break;
		}
		used += n > 0 ? (size_t)n : 0;
	}
	(void)close(fd);
	if (err == 0 && used > MAX_FILE)
		err = -EFBIG;
	if (err != 0) {
		free(text);
		return err;
	}
	*out = text;
	*out_bytes = used;
	return 0;
}

static int cannot_read(struct loader *l, int err)
{
	if (err == -EFBIG) {
		complain(l, 0, "found more than 1 MiB; allowed: a file of settings");
		return -EINVAL;
	}
	if (err == -ENOENT)
		complain(l, 0, "there is no such file; ebbd.ini(5) says what one holds");
	else if (err == -EACCES)
		complain(l, 0, "this user may not read it");
	else
		complain(l, 0, "cannot be read: %s", strerror(-err));
	return err;
}

int conf_load(struct conf *conf, const char *path, conf_check check, char *why, size_t why_bytes)
{
	struct loader *l = calloc(1, sizeof(*l));
	struct conf *next = calloc(1, sizeof(*next));
	char *text = NULL;
	int err = -ENOMEM;

	if (why && why_bytes)
		why[0] = '\0';
	if (!l || !next)
		goto out;
	*l = (struct loader){ .path = path, .conf = next, .check = check, .why = why, .why_bytes = why_bytes };
	conf_defaults(next);
	err = read_file(path, &text, &l->bytes);
	if (err != 0) {
		err = cannot_read(l, err);
		goto out;
	}
	l->text = text;
	(void)ini_parse_stream(next_line, l, on_value, l);	/* what it returns, check_waiting() has said with more words */
	check_waiting(l);
	check_whole(l);
	if (l->n_complaints > MAX_COMPLAINTS)
		say(l, "\n%s: and %u more", path, l->n_complaints - MAX_COMPLAINTS);
	err = l->n_complaints ? -EINVAL : 0;
	if (err == 0)
		*conf = *next;
out:
	free(text);
	free(next);
	free(l);
	return err;
}

void conf_defaults(struct conf *conf)
{
	memset(conf, 0, sizeof(*conf));
	for (unsigned i = 0; i < conf_n_keys; i++) {
		const struct conf_key *key = &conf_keys[i];

		if (key->section == CONF_DAEMON)
			(void)conf_key_set(key, &conf->daemon, key->def, NULL, NULL, 0);
		else if (key->section == CONF_SESSION)
			(void)conf_key_set(key, &conf->session, key->def, NULL, NULL, 0);
	}
}
