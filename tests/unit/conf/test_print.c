/*
 * What is printed reads back; and the files made from the table (conf/ebbd.ini, the middle of docs/man/ebbd.ini.5) are those
 * that the table makes now. EBB_WRITE=1 build/tests/unit/conf/test_print rewrites them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/lib/conf_test.h"

#define BEGIN ".\\\" begin: made from conf/keys.def by tests/unit/conf/test_print.c\n"
#define END ".\\\" end: made from conf/keys.def\n"

/* What @print writes; returned, free(). */
static char *printed(void (*print)(FILE *to, const void *arg), const void *arg)
{
	char *text = NULL;
	size_t bytes = 0;
	FILE *to = open_memstream(&text, &bytes);

	assert_non_null(to);
	print(to, arg);
	assert_int_equal(fclose(to), 0);
	return text;
}

static void print_conf(FILE *to, const void *conf) { conf_print(conf, to); }
static void print_template(FILE *to, const void *unused) { (void)unused; conf_template(to); }
static void print_roff(FILE *to, const void *unused) { (void)unused; conf_help(to, 1); }
static void print_help(FILE *to, const void *unused) { (void)unused; conf_help(to, 0); }

/* A random good value. */
static void random_value(const struct conf_key *key, uint64_t *seed, char *out, size_t bytes)
{
	static const char *const devices[] = { "host", "cuda:3", "cuda:GPU-00ff-1", "cuda:MIG-7" };
	static const char *const policies[] = { "h2o", "full", "x:a=1,b=0.5", "x:" };
	uint64_t span = key->max - key->min + 1, n = key->min + (span ? test_random(seed) % span : 0);

	switch (key->type) {
	case CONF_TYPE_TEXT:
	case CONF_TYPE_FILE: snprintf(out, bytes, "/t%" PRIu64 "/:=#[x] y", n % 1000); break;
	case CONF_TYPE_DEVICE: snprintf(out, bytes, "%s", devices[n % 4]); break;
	case CONF_TYPE_POLICY: snprintf(out, bytes, "%s", policies[n % 4]); break;
	case CONF_TYPE_MODE: snprintf(out, bytes, "%" PRIo64, n); break;
	case CONF_TYPE_TIME: snprintf(out, bytes, "%" PRIu64 "ms", n % 3 ? n : n / 60000 * 60000); break;
	case CONF_TYPE_SLAB: snprintf(out, bytes, "%s", n % 5 ? "1M" : "auto"); break;
	case CONF_TYPE_AUTO:
		snprintf(out, bytes, "%" PRIu64, n);
		if (n % 5 == 0)
			snprintf(out, bytes, "auto");
		break;
	case CONF_TYPE_SIZE: snprintf(out, bytes, "%" PRIu64, n % 2 ? n : n >> 20 << 20); break;
	case CONF_TYPE_AMOUNT:
		snprintf(out, bytes, n % 2 ? "%" PRIu64 : "%" PRIu64 ".%04" PRIu64 "%%", n % 2 ? n : n % 100, 1 + n % 9999);
		break;
	case CONF_TYPE_CHOICE:
	case CONF_TYPE_UINT: snprintf(out, bytes, "%" PRIu64, n); break;
	}
}

static void any_configuration_reads_back_from_its_print(void **state)
{
	uint64_t seed = 20261123;
	char value[200], why[4096], *text;
	struct conf conf, again;

	(void)state;
	for (int round = 0; round < 400; round++) {
		conf_defaults(&conf);
		conf.n_pools = 1 + (unsigned)(test_random(&seed) % CONF_MAX_POOLS);
		conf.n_models = (unsigned)(test_random(&seed) % (CONF_MAX_MODELS + 1));
		for (unsigned i = 0; i < conf.n_models; i++)
			snprintf(conf.model[i].name, sizeof(conf.model[i].name), "model-%u", i);
		for (unsigned p = 0; p < conf.n_pools; p++) {
			snprintf(conf.pool[p].name, CONF_NAME, "p%u", p);
			snprintf(conf.pool[p].device, CONF_TEXT, "host");
			conf.pool[p].size_bytes = 1 << 20;
		}
		for (unsigned k = 0; k < conf_n_keys; k++) {
			const struct conf_key *key = &conf_keys[k];

			for (unsigned p = 0; p < (key->section == CONF_POOL ? conf.n_pools : key->section == CONF_MODEL ? conf.n_models : 1); p++) {
				char *base = key->section == CONF_POOL ? (char *)&conf.pool[p] : key->section == CONF_MODEL ? (char *)&conf.model[p] :
					(char *)test_base(&conf, key);
				uint32_t n;

				random_value(key, &seed, value, sizeof(value));
				if (key->type == CONF_TYPE_CHOICE) {
					n = (uint32_t)strtoul(value, NULL, 10);
					memcpy(base + key->offset, &n, sizeof(n));
				} else if (conf_key_set(key, base, value, test_check_policy, why, sizeof(why)) != 0 &&
					   strcmp(key->name, "socket_group") != 0) {
					fail_msg("%s: %s", key->name, why);
				}
			}
		}
		text = printed(print_conf, &conf);
		if (test_load(text, &again, why, sizeof(why)) != 0)
			fail_msg("round %d: %s\n%s", round, why, text);
		assert_memory_equal(&conf, &again, sizeof(conf));
		free(text);
	}
}

struct walk {
	unsigned n;
	struct conf *conf;
};

static void check_key(void *arg, const char *section, const char *key, const char *value, const char *unit, const char *reload)
{
	struct walk *walk = arg;
	const struct conf_key *k = &conf_keys[walk->n];
	char text[CONF_VALUE_TEXT];

	assert_int_equal(strncmp(section, conf_section_names[k->section], strlen(conf_section_names[k->section])), 0);
	assert_string_equal(key, k->name);
	conf_key_text(k, test_base(walk->conf, k), text, sizeof(text));
	assert_string_equal(value, text);
	assert_non_null(unit);
	assert_null(strchr(unit, '|'));
	assert_string_equal(reload, k->reload == CONF_LIVE ? "live" : k->reload == CONF_NEXT ? "next" : "restart");
	walk->n++;
}

static void each_visits_every_key_in_order(void **state)
{
	struct conf conf;
	struct walk walk = { .conf = &conf };
	char why[200];

	(void)state;
	assert_int_equal(test_load("[pool a]\nsize=1M\n[model a]\n[session]\nbudget=77\n", &conf, why, sizeof(why)), 0);
	conf_each(&conf, check_key, &walk);
	assert_int_equal(walk.n, conf_n_keys);
}

static void help_names_every_key_with_its_default_and_limits(void **state)
{
	char *help = printed(print_help, NULL), *roff = printed(print_roff, NULL), line[100], allowed[CONF_VALUE_TEXT];

	(void)state;
	for (unsigned k = 0; k < conf_n_keys; k++) {
		const struct conf_key *key = &conf_keys[k];

		snprintf(line, sizeof(line), "\n  %s\n", key->name);
		assert_non_null(strstr(help, line));
		conf_key_allowed(key, allowed, sizeof(allowed));
		assert_non_null(strstr(help, allowed));
		snprintf(line, sizeof(line), "\n.B %s\n", key->name);
		assert_non_null(strstr(roff, line));
		snprintf(line, sizeof(line), "; default %s; takes", key->def ? key->def[0] ? key->def : "empty" : "");
		if (key->def)
			assert_non_null(strstr(help, line));
	}
	assert_null(strstr(roff, "\n'"));
	free(help);
	free(roff);
}

/* --- files made from the table -------------------------------------------------------------------------------------------------- */

/* Of the source tree; returned, free(). NULL if it cannot be opened. */
static char *source_file(const char *name, char path[512])
{
	const char *root = getenv("EBB_SOURCE");
	char *text = calloc(1, 1 << 20);
	FILE *from;

	snprintf(path, 512, "%s/%s", root ? root : ".", name);
	from = fopen(path, "r");
	if (from) {
		assert_true(fread(text, 1, (1 << 20) - 1, from) > 0);
		fclose(from);
		return text;
	}
	free(text);
	return NULL;
}

static void write_file(const char *path, const char *a, size_t a_bytes, const char *b, const char *c)
{
	FILE *to = fopen(path, "w");

	assert_non_null(to);
	fwrite(a, 1, a_bytes, to);
	fputs(b, to);
	fputs(c, to);
	assert_int_equal(fclose(to), 0);
}

static void the_installed_file_is_the_table_s_and_loads_to_the_defaults(void **state)
{
	char path[512], why[4096], line[100], *made = printed(print_template, NULL), *text;
	struct conf conf, defaults;

	(void)state;
	text = source_file("conf/ebbd.ini", path);
	if (getenv("EBB_WRITE")) {
		write_file(path, made, strlen(made), "", "");
		free(text);
		text = source_file("conf/ebbd.ini", path);
	}
	assert_non_null(text);
	if (strcmp(text, made) != 0)
		fail_msg("%s is not what conf/keys.def makes; EBB_WRITE=1 build/tests/unit/conf/test_print makes it", path);
	assert_int_equal(conf_load(&conf, path, test_check_policy, why, sizeof(why)), 0);
	conf_defaults(&defaults);
	assert_memory_equal(&conf.daemon, &defaults.daemon, sizeof(conf.daemon));
	assert_memory_equal(&conf.session, &defaults.session, sizeof(conf.session));
	assert_int_equal(conf.n_pools, 1);
	assert_string_equal(conf.pool[0].name, "host");
	assert_int_equal(conf.pool[0].size_bytes, 256 << 20);
	for (unsigned k = 0; k < conf_n_keys; k++) {
		snprintf(line, sizeof(line), "\n%s%s =", conf_keys[k].def ? ";" : "", conf_keys[k].name);
		assert_non_null(strstr(text, line));
	}
	free(text);
	free(made);
}

static void the_manual_s_keys_are_the_table_s(void **state)
{
	char path[512], *made = printed(print_roff, NULL), *text = source_file("docs/man/ebbd.ini.5", path), *from, *to;

	(void)state;
	assert_non_null(text);
	from = strstr(text, BEGIN);
	to = strstr(text, END);
	assert_true(from && to && from < to);
	from += strlen(BEGIN);
	if (getenv("EBB_WRITE"))
		write_file(path, text, (size_t)(from - text), made, to);
	else if ((size_t)(to - from) != strlen(made) || memcmp(from, made, strlen(made)) != 0)
		fail_msg("%s is not what conf/keys.def makes; EBB_WRITE=1 build/tests/unit/conf/test_print makes it", path);
	free(text);
	free(made);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_configuration_reads_back_from_its_print),
		cmocka_unit_test(each_visits_every_key_in_order),
		cmocka_unit_test(help_names_every_key_with_its_default_and_limits),
		cmocka_unit_test(the_installed_file_is_the_table_s_and_loads_to_the_defaults),
		cmocka_unit_test(the_manual_s_keys_are_the_table_s),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
