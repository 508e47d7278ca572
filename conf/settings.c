/* What changes after the start: a client's wishes, SIGHUP, and who follows it. */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include "conf/keys.h"

/* --- a client's wishes ------------------------------------------------------------------------------------------------------ */

static int unknown_setting(const char *name, char *why, size_t why_bytes)
{
	const struct conf_key *meant = conf_nearest(CONF_SESSION, name);
	char quoted[80];
	unsigned first, n;
	size_t used;

	if (!why || why_bytes == 0)
		return -EINVAL;
	conf_quote(name, quoted, sizeof(quoted));
	used = (size_t)snprintf(why, why_bytes, "found the key %s; allowed: ", quoted);
	conf_section_keys(CONF_SESSION, &first, &n);
	for (unsigned i = first; i < first + n && used < why_bytes; i++)
		used += (size_t)snprintf(why + used, why_bytes - used, "%s%s", i == first ? "" : ", ", conf_keys[i].name);
	if (meant && meant->section == CONF_SESSION && used < why_bytes)
		(void)snprintf(why + used, why_bytes - used, "; did you mean %s?", meant->name);
	return -EINVAL;
}

/* One "key=value", in place. */
static int one_setting(struct conf_session *session, uint64_t *seen, char *word, conf_check check, char *why, size_t why_bytes)
{
	char *equals = strchr(word, '='), quoted[80], said[512];
	const struct conf_key *key;
	unsigned first, n;
	uint64_t bit;

	if (!equals || equals == word) {
		conf_quote(word, quoted, sizeof(quoted));
		if (why && why_bytes)
			(void)snprintf(why, why_bytes, "found %s; allowed: key=value pairs separated by spaces", quoted);
		return -EINVAL;
	}
	*equals = '\0';
	key = conf_find(CONF_SESSION, word);
	if (!key)
		return unknown_setting(word, why, why_bytes);
	conf_section_keys(CONF_SESSION, &first, &n);
	bit = UINT64_C(1) << (unsigned)(key - conf_keys - first);
	if (*seen & bit) {
		if (why && why_bytes)
			(void)snprintf(why, why_bytes, "%s: found again; allowed: each key once", key->name);
		return -EINVAL;
	}
	*seen |= bit;
	if (key->type == CONF_TYPE_FILE) {
		conf_quote(equals + 1, quoted, sizeof(quoted));
		if (why && why_bytes)
			(void)snprintf(why, why_bytes, "%s: found %s; allowed: in ebbd.ini only, where the operator names files; a "
				       "client hands the contents over when it opens the session", key->name, quoted);
		return -EINVAL;
	}
	if (conf_key_set(key, session, equals + 1, check, said, sizeof(said)) != 0) {
		if (why && why_bytes)
			(void)snprintf(why, why_bytes, "%s: %s", key->name, said);
		return -EINVAL;
	}
	return 0;
}

int conf_settings(struct conf_session *session, const char *settings, conf_check check, char *why, size_t why_bytes)
{
	static const char blanks[] = " \t\r\n";
	struct conf_session next = *session;
	uint64_t seen = 0;
	char word[CONF_TEXT + CONF_NAME], quoted[80];
	size_t n;
	int err;

	if (why && why_bytes)
		why[0] = '\0';
	for (settings += strspn(settings, blanks); *settings != '\0'; settings += strspn(settings, blanks)) {
		n = strcspn(settings, blanks);
		if (n >= sizeof(word)) {
			conf_quote(settings, quoted, sizeof(quoted));
			if (why && why_bytes)
				(void)snprintf(why, why_bytes, "found %s, %zu bytes; allowed: at most %zu", quoted, n, sizeof(word) - 1);
			return -EINVAL;
		}
		memcpy(word, settings, n);
		word[n] = '\0';
		err = one_setting(&next, &seen, word, check, why, why_bytes);
		if (err != 0)
			return err;
		settings += n;
	}
	next.given |= seen;
	*session = next;
	return 0;
}

int conf_follow(struct conf_session *session, const struct conf_session *defaults)
{
	unsigned first, n;
	int changed = 0;

	conf_section_keys(CONF_SESSION, &first, &n);
	for (unsigned i = 0; i < n; i++) {
		const struct conf_key *key = &conf_keys[first + i];
		char *to = (char *)session + key->offset;
		const char *from = (const char *)defaults + key->offset;

		if (key->reload != CONF_LIVE || (session->given >> i & 1) || memcmp(to, from, key->bytes) == 0)
			continue;
		memcpy(to, from, key->bytes);
		changed = 1;
	}
	return changed;
}

int conf_was_given(const struct conf_session *session, const char *key)
{
	const struct conf_key *found = conf_find(CONF_SESSION, key);
	unsigned first, n;

	conf_section_keys(CONF_SESSION, &first, &n);
	return found && (session->given >> (unsigned)(found - conf_keys - first) & 1) != 0;
}

/* --- SIGHUP ------------------------------------------------------------------------------------------------------------------ */

struct report {
	char *text;
	size_t bytes, used;
};

static void __attribute__((format(printf, 2, 3))) report_line(struct report *r, const char *format, ...)
{
	va_list args;
	int n;

	if (!r->text || r->used + 2 >= r->bytes)
		return;
	if (r->used)
		r->text[r->used++] = '\n';
	va_start(args, format);
	n = vsnprintf(r->text + r->used, r->bytes - r->used, format, args);
	va_end(args);
	r->used += n > 0 ? (size_t)n : 0;
	if (r->used >= r->bytes)
		r->used = r->bytes - 1;
}

/* One section of both; returns the keys taken. */
static int reload_section(enum conf_section section, const char *label, void *base, const void *next, struct report *r)
{
	unsigned first, n;
	int taken = 0;

	conf_section_keys(section, &first, &n);
	for (unsigned i = first; i < first + n; i++) {
		const struct conf_key *key = &conf_keys[i];
		char *to = (char *)base + key->offset, old_text[CONF_VALUE_TEXT], new_text[CONF_VALUE_TEXT];
		const char *from = (const char *)next + key->offset;

		if (memcmp(to, from, key->bytes) == 0)
			continue;
		conf_key_text(key, base, old_text, sizeof(old_text));
		conf_key_text(key, next, new_text, sizeof(new_text));
		if (key->reload == CONF_RESTART) {
			report_line(r, "%s.%s: %s -> %s needs a restart", label, key->name, old_text, new_text);
			continue;
		}
		report_line(r, "%s.%s: %s -> %s%s", label, key->name, old_text, new_text,
			    key->reload == CONF_NEXT ? " for sessions opened from now on" : "");
		memcpy(to, from, key->bytes);
		taken++;
	}
	return taken;
}

static struct conf_pool *pool_named(struct conf *conf, const char *name)
{
	for (unsigned i = 0; i < conf->n_pools; i++)
		if (strcmp(conf->pool[i].name, name) == 0)
			return &conf->pool[i];
	return NULL;
}

static const struct conf_model *model_named(const struct conf *conf, const char *name)
{
	for (unsigned i = 0; i < conf->n_models; i++)
		if (strcmp(conf->model[i].name, name) == 0)
			return &conf->model[i];
	return NULL;
}

/* All of next's, in its order: all keys are for sessions opened later. */
static int reload_models(struct conf *conf, const struct conf *next, struct report *r)
{
	static const struct conf_model none = { .name = "" };
	char label[CONF_MODEL_NAME + 8];
	int taken = 0;

	for (unsigned i = 0; i < next->n_models + conf->n_models; i++) {
		const struct conf_model *now = i < next->n_models ? &next->model[i] : &none;
		const struct conf_model *was = i < next->n_models ? model_named(conf, now->name) : &conf->model[i - next->n_models];
		struct conf_model changes;

		if (now == &none && model_named(next, was->name))
			continue;
		changes = was ? *was : none;
		snprintf(label, sizeof(label), "model %s", now == &none ? was->name : now->name);
		taken += reload_section(CONF_MODEL, label, &changes, now, r);
	}
	memcpy(conf->model, next->model, sizeof(conf->model));
	conf->n_models = next->n_models;
	return taken;
}

int conf_reload(struct conf *conf, const struct conf *next, char *report, size_t report_bytes)
{
	struct report r = { .text = report, .bytes = report_bytes };
	struct conf wanted = *next;
	char label[CONF_MODEL_NAME + 8];
	int taken;

	if (report && report_bytes)
		report[0] = '\0';
	taken = reload_section(CONF_DAEMON, "daemon", &conf->daemon, &next->daemon, &r);
	taken += reload_section(CONF_SESSION, "session", &conf->session, &next->session, &r);
	taken += reload_models(conf, next, &r);
	for (unsigned i = 0; i < conf->n_pools; i++) {
		const struct conf_pool *same = pool_named(&wanted, conf->pool[i].name);

		snprintf(label, sizeof(label), "pool %s", conf->pool[i].name);
		if (same)
			taken += reload_section(CONF_POOL, label, &conf->pool[i], same, &r);
		else
			report_line(&r, "%s: no longer in the file; going without it needs a restart", label);
	}
	for (unsigned i = 0; i < next->n_pools; i++)
		if (!pool_named(conf, next->pool[i].name))
			report_line(&r, "pool %s: new; having it needs a restart", next->pool[i].name);
	return taken;
}
