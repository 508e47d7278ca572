/* Every key, its limits and its errors, driven from the table itself. */
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

/* What conf_load() must say about a bad value: where, which key, what was found, what is allowed. */
static void expect_complaint(const struct conf_key *key, unsigned line, const char *value, const char *why)
{
	char start[120], quoted[80], allowed[CONF_VALUE_TEXT], label[40];

	snprintf(label, sizeof(label), "%s", test_label(key->section));
	snprintf(start, sizeof(start), "F:%u: [%s] %s: found ", line, label, key->name);
	if (strncmp(why, start, strlen(start)) != 0)
		fail_msg("%s = %s: expected \"%s...\", got \"%s\"", key->name, value, start, why);
	conf_quote(value, quoted, sizeof(quoted));
	assert_non_null(strstr(why, quoted));
	conf_key_allowed(key, allowed, sizeof(allowed));
	if (!strstr(why, "the tests' policies"))
		assert_non_null(strstr(why, allowed));
}

static void each_key_takes_its_limits_and_refuses_what_is_beyond(void **state)
{
	char value[200], ini[512], why[4096], text[CONF_VALUE_TEXT];
	struct conf conf, again;
	unsigned n_good = 0, n_bad = 0;
	int good;

	(void)state;
	for (unsigned k = 0; k < conf_n_keys; k++) {
		const struct conf_key *key = &conf_keys[k];

		for (unsigned i = 0; test_edge(key, i, value, &good); i++) {
			unsigned line = test_ini(key, value, ini, sizeof(ini));
			int err = test_load(ini, &conf, why, sizeof(why));

			if ((key->type == CONF_TYPE_TEXT || key->type == CONF_TYPE_FILE || key->type == CONF_TYPE_POLICY) && key->min == 0 && value[0] == '\0')
				good = 1;
			if (err != (good ? 0 : -22))
				fail_msg("%s = %s: %d (%s), expected %s", key->name, value, err, why, good ? "success" : "-EINVAL");
			if (!good) {
				expect_complaint(key, line, value, why);
				n_bad++;
				continue;
			}
			assert_string_equal(why, "");
			/* the value as text reads back to the same value */
			conf_key_text(key, test_base(&conf, key), text, sizeof(text));
			test_ini(key, text, ini, sizeof(ini));
			assert_int_equal(test_load(ini, &again, why, sizeof(why)), 0);
			assert_memory_equal(&conf, &again, sizeof(conf));
			n_good++;
		}
	}
	assert_true(n_good >= 2 * conf_n_keys && n_bad >= 2 * conf_n_keys);
}

static void numbers_at_the_limits_arrive_as_they_are(void **state)
{
	char value[200], ini[512], why[4096];
	struct conf conf;
	int good;

	(void)state;
	for (unsigned k = 0; k < conf_n_keys; k++) {
		const struct conf_key *key = &conf_keys[k];

		for (unsigned i = 0; i < 2; i++) {
			uint64_t expected = i ? key->max : key->min, n = 0;
			const char *field = (const char *)test_base(&conf, key) + key->offset;
			uint32_t n32;

			if (conf_key_is_text(key))
				continue;
			assert_int_equal(test_edge(key, i, value, &good), 1);
			test_ini(key, value, ini, sizeof(ini));
			assert_int_equal(test_load(ini, &conf, why, sizeof(why)), 0);
			if (key->type == CONF_TYPE_SIZE || key->type == CONF_TYPE_SLAB) {
				memcpy(&n, field, sizeof(n));
			} else {
				memcpy(&n32, field, sizeof(n32));	/* of an amount: the count, its first member */
				n = n32;
			}
			assert_int_equal(n, expected);
		}
	}
}

static void defaults_are_what_the_table_says(void **state)
{
	char text[CONF_VALUE_TEXT];
	struct conf conf;

	(void)state;
	conf_defaults(&conf);
	assert_int_equal(conf.n_pools, 0);
	assert_int_equal(conf.session.given, 0);
	for (unsigned k = 0; k < conf_n_keys; k++) {
		if (conf_keys[k].section == CONF_POOL)
			continue;
		conf_key_text(&conf_keys[k], test_base(&conf, &conf_keys[k]), text, sizeof(text));
		assert_string_equal(text, conf_keys[k].def);
	}
	assert_string_equal(conf.daemon.socket, "/run/ebbd/ebbd.sock");
	assert_int_equal(conf.daemon.socket_mode, 0660);
	assert_int_equal(conf.daemon.log_level, 6);
	assert_int_equal(conf.daemon.drain_ms, 10000);
	assert_int_equal(conf.session.budget.ppm, 250000);
	assert_int_equal(conf.session.slots, 2);
	assert_int_equal(conf.session.pin_prompt, 2);
}

static void a_key_given_twice_is_refused(void **state)
{
	char ini[600], value[CONF_VALUE_TEXT], why[4096], expected[200];
	struct conf conf;

	(void)state;
	for (unsigned k = 0; k < conf_n_keys; k++) {
		const struct conf_key *key = &conf_keys[k];
		const char *label = test_label(key->section);

		snprintf(value, sizeof(value), "%s", key->def ? key->def : "2M");
		snprintf(ini, sizeof(ini), "[%s]\n%s = %s\n\n%s = %s\n%s", label, key->name, value, key->name, value,
			 key->section != CONF_POOL ? "[pool a]\nsize=2M\n" : key->def ? "size=2M\n" : "");
		assert_int_equal(test_load(ini, &conf, why, sizeof(why)), -22);
		snprintf(expected, sizeof(expected), "F:4: [%s] %s: found again (first in line 2); allowed: each key once", label,
			 key->name);
		assert_string_equal(why, expected);
	}
}

static void a_slip_in_a_key_is_recognised(void **state)
{
	char name[40], ini[300], why[4096], expected[64];
	struct conf conf;

	(void)state;
	for (unsigned k = 0; k < conf_n_keys; k++) {
		const struct conf_key *key = &conf_keys[k];
		size_t n = strlen(key->name);

		for (unsigned slip = 0; slip < 4; slip++) {
			snprintf(name, sizeof(name), "%s", key->name);
			if (slip == 0)			/* a letter too many */
				snprintf(name, sizeof(name), "%sz", key->name);
			else if (slip == 1)		/* one too few */
				name[n - 1] = '\0';
			else if (slip == 2)		/* another one */
				name[n / 2] = 'q';
			else {				/* two swapped */
				char c = name[0];

				name[0] = name[1];
				name[1] = c;
			}
			assert_null(conf_find(key->section, name));
			snprintf(ini, sizeof(ini), "[%s]\n%s = 1\n",
				 test_label(key->section), name);
			assert_int_equal(test_load(ini, &conf, why, sizeof(why)), -22);
			snprintf(expected, sizeof(expected), "did you mean %s?", key->name);
			if (!strstr(why, expected))
				fail_msg("%s: %s", name, why);
		}
	}
}

static void only_what_is_near_is_suggested(void **state)
{
	(void)state;
	assert_string_equal(conf_nearest(CONF_SESSION, "obsrvee")->name, "observe");	/* two slips in a long word */
	assert_string_equal(conf_nearest(CONF_POOL, "szie")->name, "size");
	assert_null(conf_nearest(CONF_SESSION, "sz"));		/* two slips in a short one are another word */
	assert_null(conf_nearest(CONF_SESSION, "x"));
	assert_null(conf_nearest(CONF_SESSION, ""));
	assert_null(conf_nearest(CONF_SESSION, "a-word-longer-than-any-key-could-ever-be"));
	assert_int_equal(conf_distance("abcd", "abdc"), 1);
	assert_int_equal(conf_distance("", "abc"), 3);
	assert_int_equal(conf_distance("same", "same"), 0);
}

static void an_unknown_key_is_refused_and_the_known_ones_listed(void **state)
{
	char ini[300], why[4096];
	struct conf conf;

	(void)state;
	for (unsigned s = 0; s < CONF_N_SECTIONS; s++) {
		snprintf(ini, sizeof(ini), "[%s]\nabracadabra = 1\n", test_label((enum conf_section)s));
		assert_int_equal(test_load(ini, &conf, why, sizeof(why)), -22);
		assert_non_null(strstr(why, "F:2: ["));
		assert_non_null(strstr(why, "found the key 'abracadabra'; allowed: "));
		assert_null(strstr(why, "did you mean"));
		for (unsigned k = 0; k < conf_n_keys; k++)
			if (conf_keys[k].section == s)
				assert_non_null(strstr(why, conf_keys[k].name));
	}
	assert_int_equal(test_load("[daemon]\nbudget = 5\n[pool a]\nsize=1M\n", &conf, why, sizeof(why)), -22);
	assert_non_null(strstr(why, "did you mean budget in [session]?"));
}

static void the_table_is_whole(void **state)
{
	(void)state;
	for (unsigned k = 0; k < conf_n_keys; k++) {
		const struct conf_key *key = &conf_keys[k];
		uint64_t low;

		assert_true(strlen(key->text) > 10 && key->text[strlen(key->text) - 1] == '.');
		assert_true(key->min <= key->max);
		assert_true(key->bytes <= CONF_TEXT);
		for (unsigned j = 0; j < k; j++)
			if (conf_keys[j].section == key->section)
				assert_string_not_equal(conf_keys[j].name, key->name);
		/* [session] keys fit the bits of given; no two keys share a byte */
		for (unsigned j = 0; j < k; j++) {
			const struct conf_key *other = &conf_keys[j];

			low = other->offset > key->offset ? other->offset : key->offset;
			if (other->section == key->section)
				assert_true(low >= key->offset + key->bytes || low >= other->offset + other->bytes);
		}
		if (key->section == CONF_POOL)
			assert_int_equal(key->reload, strcmp(key->name, "tide") == 0 ? CONF_LIVE : CONF_RESTART);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_key_takes_its_limits_and_refuses_what_is_beyond),
		cmocka_unit_test(numbers_at_the_limits_arrive_as_they_are),
		cmocka_unit_test(defaults_are_what_the_table_says),
		cmocka_unit_test(a_key_given_twice_is_refused),
		cmocka_unit_test(a_slip_in_a_key_is_recognised),
		cmocka_unit_test(only_what_is_near_is_suggested),
		cmocka_unit_test(an_unknown_key_is_refused_and_the_known_ones_listed),
		cmocka_unit_test(the_table_is_whole),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
