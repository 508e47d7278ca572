/* The table for people: as an ini file with comments, as help, as a page of the manual, and key by key for ebbctl. */
#include <stdbool.h>
#include <string.h>

#include "conf/keys.h"

enum { WIDTH = 100 };

static const char *const when[] = {
	[CONF_LIVE] = "at once on SIGHUP",
	[CONF_NEXT] = "on SIGHUP, for sessions opened later",
	[CONF_RESTART] = "when the daemon starts",
};

static const char *const section_text[CONF_N_SECTIONS] = {
	[CONF_DAEMON] = "The daemon itself.",
	[CONF_POOL] = "One section a pool; the name after \"pool\" is yours. The first one is what clients get that name none.",
	[CONF_MODEL] = "What is known of a model. The name after \"model\" is what clients call it: letters, digits, and . _ -",
	[CONF_SESSION] = "What a session gets when its client does not say. A client may choose each of these keys for itself, except "
			 "those that name a file.",
};

/* @text in lines of at most WIDTH, each behind @indent. */
static void wrap(FILE *to, const char *indent, const char *text)
{
	size_t room = WIDTH - strlen(indent);

	while (*text != '\0') {
		size_t n = strlen(text);

		if (n > room) {
			for (n = room; n > 0 && text[n] != ' '; n--)
				;
			if (n == 0)
				n = room;
		}
		fprintf(to, "%s%.*s\n", indent, (int)n, text);
		text += n;
		text += strspn(text, " ");
	}
}

/* "tokens, 1 .. 2048; default 32": what there is to know, in a line. Other types say their unit in what they allow. */
static void facts(const struct conf_key *key, char *out, size_t bytes)
{
	bool counted = (key->type == CONF_TYPE_UINT || key->type == CONF_TYPE_AUTO || key->type == CONF_TYPE_AMOUNT) && key->unit[0];
	char allowed[CONF_VALUE_TEXT];

	conf_key_allowed(key, allowed, sizeof(allowed));
	snprintf(out, bytes, "%s%s%s; %s%s", counted ? key->unit : "", counted ? ", " : "", allowed,
		 !key->def ? "has to be given" : "default ",
		 !key->def ? "" : key->def[0] ? key->def : "empty");
}

static const void *base_of(const struct conf *conf, enum conf_section section, unsigned i)
{
	switch (section) {
	case CONF_DAEMON: return &conf->daemon;
	case CONF_POOL: return &conf->pool[i];
	case CONF_MODEL: return &conf->model[i];
	default: return &conf->session;
	}
}

/* How many sections of the kind there are, and what the i-th is called behind the kind's word: " NAME" or "". */
static unsigned times_of(const struct conf *conf, enum conf_section section)
{
	return section == CONF_POOL ? conf->n_pools : section == CONF_MODEL ? conf->n_models : 1;
}

static void label_of(const struct conf *conf, enum conf_section section, unsigned i, char *out, size_t bytes)
{
	const char *name = section == CONF_POOL ? conf->pool[i].name : section == CONF_MODEL ? conf->model[i].name : "";

	snprintf(out, bytes, "%s%s%s", conf_section_names[section], *name ? " " : "", name);
}

/* The keys of one section; @all 0: only those without a default as settings, the others as comments. */
static void print_section(FILE *to, enum conf_section section, const void *base, bool all)
{
	unsigned first, n;
	char value[CONF_VALUE_TEXT], line[2 * CONF_VALUE_TEXT];

	conf_section_keys(section, &first, &n);
	for (unsigned i = first; i < first + n; i++) {
		const struct conf_key *key = &conf_keys[i];

		conf_key_text(key, base, value, sizeof(value));
		facts(key, line, sizeof(line));
		fprintf(to, "\n");
		wrap(to, "; ", key->text);
		fprintf(to, "; (%s; takes effect %s)\n", line, when[key->reload]);
		fprintf(to, "%s%s =%s%s\n", all || !key->def || strcmp(value, key->def) != 0 ? "" : ";", key->name, value[0] ? " " : "", value);
	}
}

static void print_conf(FILE *to, const struct conf *conf, bool all)
{
	fprintf(to, "; ebbd.ini: settings of ebbd, the daemon that owns the KV cache. The manual is ebbd.ini(5).\n"
		    "; Check it with \"ebbd --check-config --config FILE\"; load it with \"systemctl reload ebbd\".\n"
		    "; Sizes: K, M, G, T are powers of 1024. Times: ms, s, m. A comment starts with ; at the start of a line\n"
		    "; or behind a blank.\n");
	for (unsigned s = 0; s < CONF_N_SECTIONS; s++) {
		for (unsigned i = 0; i < times_of(conf, (enum conf_section)s); i++) {
			char label[CONF_MODEL_NAME + 8];

			label_of(conf, (enum conf_section)s, i, label, sizeof(label));
			fprintf(to, "\n");
			if (i == 0)
				wrap(to, "; ", section_text[s]);
			fprintf(to, "[%s]\n", label);
			print_section(to, (enum conf_section)s, base_of(conf, (enum conf_section)s, i), all);
		}
	}
}

void conf_print(const struct conf *conf, FILE *to)
{
	print_conf(to, conf, true);
}

void conf_template(FILE *to)
{
	struct conf conf;

	conf_defaults(&conf);
	conf.n_pools = 1;
	conf.n_models = 1;
	conf.model[0] = (struct conf_model){ .name = "smollm2-135M", .lanes = "@DATADIR@/smollm2-135M.lanes" };
	conf.pool[0] = (struct conf_pool){ .name = "host", .device = "host", .size_bytes = UINT64_C(256) << 20 };
	print_conf(to, &conf, false);
}

/* --- help and manual ------------------------------------------------------------------------------------------------------- */

static void roff_text(FILE *to, const char *text)
{
	if (*text == '.' || *text == '\'')
		fprintf(to, "\\&");
	for (; *text != '\0'; text++) {
		if (*text == '\\')
			fprintf(to, "\\e");
		else if (*text == '-')
			fprintf(to, "\\-");
		else if (*text == '"')
			fprintf(to, "\\(dq");
		else
			fputc(*text, to);
	}
}

static void help_roff(FILE *to, const struct conf_key *key)
{
	char line[2 * CONF_VALUE_TEXT];

	facts(key, line, sizeof(line));
	fprintf(to, ".TP\n.B %s\n", key->name);
	roff_text(to, key->text);
	fprintf(to, "\n");
	if (key->longer[0]) {
		roff_text(to, key->longer);
		fprintf(to, "\n");
	}
	fprintf(to, ".br\n");
	roff_text(to, line);
	fprintf(to, "; takes effect %s.\n", when[key->reload]);
}

static void help_plain(FILE *to, const struct conf_key *key)
{
	char line[2 * CONF_VALUE_TEXT];

	facts(key, line, sizeof(line));
	fprintf(to, "  %s\n", key->name);
	wrap(to, "      ", key->text);
	if (key->longer[0])
		wrap(to, "      ", key->longer);
	fprintf(to, "      (%s; takes effect %s)\n", line, when[key->reload]);
}

void conf_help(FILE *to, int roff)
{
	for (unsigned i = 0; i < conf_n_keys; i++) {
		const struct conf_key *key = &conf_keys[i];
		const char *name = key->section == CONF_POOL ? "pool NAME" : key->section == CONF_MODEL ? "model NAME" :
			conf_section_names[key->section];

		if (i == 0 || key->section != conf_keys[i - 1].section) {
			if (roff) {
				fprintf(to, ".SS [%s]\n", name);
				roff_text(to, section_text[key->section]);
				fprintf(to, "\n");
			} else {
				fprintf(to, "%s[%s]\n", i ? "\n" : "", name);
				wrap(to, "  ", section_text[key->section]);
			}
		}
		if (roff)
			help_roff(to, key);
		else
			help_plain(to, key);
	}
}

/* --- ebbctl config ---------------------------------------------------------------------------------------------------------- */

void conf_each_setting(const struct conf_session *session, int chosen, void (*fn)(void *arg, const char *key, const char *value), void *arg)
{
	char value[CONF_VALUE_TEXT];
	unsigned first, n;

	conf_section_keys(CONF_SESSION, &first, &n);
	for (unsigned i = 0; i < n; i++) {
		if (chosen && !(session->given >> i & 1))
			continue;
		conf_key_text(&conf_keys[first + i], session, value, sizeof(value));
		fn(arg, conf_keys[first + i].name, value);
	}
}

void conf_each(const struct conf *conf,
	       void (*fn)(void *arg, const char *section, const char *key, const char *value, const char *unit, const char *reload),
	       void *arg)
{
	char label[CONF_MODEL_NAME + 8], value[CONF_VALUE_TEXT];

	for (unsigned s = 0; s < CONF_N_SECTIONS; s++) {
		unsigned first, n;

		conf_section_keys((enum conf_section)s, &first, &n);
		for (unsigned p = 0; p < times_of(conf, (enum conf_section)s); p++) {
			label_of(conf, (enum conf_section)s, p, label, sizeof(label));
			for (unsigned i = first; i < first + n; i++) {
				const struct conf_key *key = &conf_keys[i];

				conf_key_text(key, base_of(conf, key->section, p), value, sizeof(value));
				fn(arg, label, key->name, value, key->type == CONF_TYPE_CHOICE ? "" : key->unit,
				   conf_reload_names[key->reload]);
			}
		}
	}
}
