/* A client's wishes, who follows a change, and SIGHUP: by key and reload class of the table. */
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

static void every_session_key_is_a_setting_and_sets_its_bit(void **state)
{
	struct conf_session defaults, session;
	char value[200], word[300], why[1024], text[CONF_VALUE_TEXT];
	struct conf conf;
	unsigned first, n;
	int good;

	(void)state;
	conf_defaults(&conf);
	defaults = conf.session;
	conf_section_keys(CONF_SESSION, &first, &n);
	assert_int_equal(n, 15);
	for (unsigned i = 0; i < n; i++) {
		const struct conf_key *key = &conf_keys[first + i];

		for (unsigned e = 0; test_edge(key, e, value, &good); e++) {
			if (strchr(value, ' '))
				continue;	/* a blank ends a setting */
			session = defaults;
			snprintf(word, sizeof(word), "%s=%s", key->name, value);
			if (key->type == CONF_TYPE_FILE)
				good = 0;	/* no client names files */
			assert_int_equal(conf_settings(&session, word, test_check_policy, why, sizeof(why)), good ? 0 : -22);
			if (!good) {
				assert_memory_equal(&session, &defaults, sizeof(session));
				assert_int_equal(strncmp(why, key->name, strlen(key->name)), 0);
				assert_non_null(strstr(why, "found '"));
				continue;
			}
			assert_string_equal(why, "");
			assert_int_equal(session.given, UINT64_C(1) << i);
			conf_key_text(key, &session, text, sizeof(text));
			snprintf(word, sizeof(word), "%s=%s", key->name, text);
			session = defaults;
			assert_int_equal(conf_settings(&session, word, test_check_policy, why, sizeof(why)), 0);
		}
	}
}

static void settings_are_all_taken_or_none(void **state)
{
	struct conf_session session, before;
	struct conf conf;
	char why[600];

	(void)state;
	conf_defaults(&conf);
	session = before = conf.session;
	assert_int_equal(conf_settings(&session, "  policy=x:a=1,b=2\tbudget=12.5%  slots=q8 ", test_check_policy, why, sizeof(why)), 0);
	assert_string_equal(session.policy, "x:a=1,b=2");
	assert_int_equal(session.budget.ppm, 125000);
	assert_int_equal(session.slots, 3);
	assert_int_equal(session.window, before.window);

	before = session;
	assert_int_equal(conf_settings(&session, "window=64 slots=q5", NULL, why, sizeof(why)), -22);
	assert_string_equal(why, "slots: found 'q5'; allowed: f32 | f16 | bf16 | q8 | k8v4 | q4");
	assert_int_equal(conf_settings(&session, "window=64 window=32", NULL, why, sizeof(why)), -22);
	assert_string_equal(why, "window: found again; allowed: each key once");
	assert_int_equal(conf_settings(&session, "window=64 widow=3", NULL, why, sizeof(why)), -22);
	assert_non_null(strstr(why, "found the key 'widow'; allowed: policy, merge, budget, "));
	assert_non_null(strstr(why, "did you mean window?"));
	assert_int_equal(conf_settings(&session, "socket=/tmp/x", NULL, why, sizeof(why)), -22);	/* not a session's */
	assert_int_equal(conf_settings(&session, "window = 3", NULL, why, sizeof(why)), -22);
	assert_int_equal(conf_settings(&session, "=3", NULL, why, sizeof(why)), -22);
	assert_int_equal(conf_settings(&session, "window", NULL, why, sizeof(why)), -22);
	assert_string_equal(why, "found 'window'; allowed: key=value pairs separated by spaces");
	assert_int_equal(conf_settings(&session, "policy=h2o;x", NULL, why, sizeof(why)), -22);
	assert_memory_equal(&session, &before, sizeof(session));

	assert_int_equal(conf_settings(&session, "", NULL, why, sizeof(why)), 0);
	assert_int_equal(conf_settings(&session, " \t\n", NULL, NULL, 0), 0);
	assert_int_equal(conf_settings(&session, "bad", NULL, NULL, 0), -22);
	assert_memory_equal(&session, &before, sizeof(session));
}

static void settings_of_any_length_are_survived(void **state)
{
	struct conf_session session;
	struct conf conf;
	char *text = malloc(100001), why[40];

	(void)state;
	conf_defaults(&conf);
	session = conf.session;
	memset(text, 'x', 100000);
	text[100000] = '\0';
	assert_int_equal(conf_settings(&session, text, NULL, why, sizeof(why)), -22);
	text[6] = '=';
	assert_int_equal(conf_settings(&session, text, NULL, why, sizeof(why)), -22);
	assert_true(strlen(why) < sizeof(why));
	free(text);
}

/* Another good value of this key than the default. */
static void other_value(const struct conf_key *key, const void *base, char *out)
{
	char now[CONF_VALUE_TEXT];
	int good;

	conf_key_text(key, base, now, sizeof(now));
	for (unsigned i = 0; test_edge(key, i, out, &good); i++)
		if (good && strcmp(out, now) != 0 && out[0] != '\0')
			return;
	fail_msg("%s has one value only", key->name);
}

static void open_sessions_follow_live_keys_that_they_were_not_given(void **state)
{
	char value[200];
	struct conf conf;
	unsigned first, n;

	(void)state;
	conf_section_keys(CONF_SESSION, &first, &n);
	for (unsigned i = 0; i < n; i++) {
		const struct conf_key *key = &conf_keys[first + i];
		struct conf_session session, defaults;

		conf_defaults(&conf);
		session = defaults = conf.session;
		assert_int_equal(conf_follow(&session, &defaults), 0);
		other_value(key, &defaults, value);
		assert_int_equal(conf_key_set(key, &defaults, value, NULL, NULL, 0), 0);

		session.given = UINT64_C(1) << i;
		assert_int_equal(conf_follow(&session, &defaults), 0);
		session.given = ~(UINT64_C(1) << i);
		assert_int_equal(conf_follow(&session, &defaults), key->reload == CONF_LIVE);
		session.given = 0;
		if (key->reload == CONF_LIVE)
			assert_memory_equal(&session, &defaults, sizeof(session));
		else
			assert_memory_equal(&session, &conf.session, sizeof(session));
	}
}

static void models_come_and_go_with_the_file(void **state)
{
	char report[1024];
	struct conf conf, next;

	(void)state;
	assert_int_equal(test_load("[pool a]\nsize=8M\n[model x]\nlanes=/x\n[model y]\nlanes=/y\n", &conf, report, sizeof(report)), 0);
	assert_true(conf.n_models == 2 && strcmp(conf.model[1].name, "y") == 0 && strcmp(conf.model[1].lanes, "/y") == 0);
	assert_int_equal(test_load("[pool a]\nsize=8M\n[model z]\nlanes=/z\n[model y]\nlanes=/y\n", &next, report, sizeof(report)), 0);
	assert_int_equal(conf_reload(&conf, &next, report, sizeof(report)), 2);
	assert_non_null(strstr(report, "model z.lanes:  -> /z for sessions opened from now on"));
	assert_non_null(strstr(report, "model x.lanes: /x ->  for sessions opened from now on"));
	assert_null(strstr(report, "model y"));
	assert_memory_equal(&conf, &next, sizeof(conf));
}

static void reload_takes_what_may_change_and_names_the_rest(void **state)
{
	char value[200], report[1024], expected[600], old_text[CONF_VALUE_TEXT], new_text[CONF_VALUE_TEXT];
	struct conf conf, next, before;

	(void)state;
	for (unsigned k = 0; k < conf_n_keys; k++) {
		const struct conf_key *key = &conf_keys[k];

		assert_int_equal(test_load("[pool a]\nsize=8M\n[model a]\n", &conf, report, sizeof(report)), 0);
		before = next = conf;
		assert_int_equal(conf_reload(&conf, &next, report, sizeof(report)), 0);
		assert_string_equal(report, "");
		other_value(key, test_base(&conf, key), value);
		assert_int_equal(conf_key_set(key, test_base(&next, key), value, NULL, NULL, 0), 0);
		conf_key_text(key, test_base(&conf, key), old_text, sizeof(old_text));
		conf_key_text(key, test_base(&next, key), new_text, sizeof(new_text));

		assert_int_equal(conf_reload(&conf, &next, report, sizeof(report)), key->reload != CONF_RESTART);
		snprintf(expected, sizeof(expected), "%s.%s: %s -> %s%s",
			 test_label(key->section), key->name, old_text, new_text,
			 key->reload == CONF_LIVE ? "" :
			 key->reload == CONF_NEXT ? " for sessions opened from now on" : " needs a restart");
		assert_string_equal(report, expected);
		assert_memory_equal(&conf, key->reload == CONF_RESTART ? &before : &next, sizeof(conf));
	}
}

static void pools_that_come_and_go_need_a_restart(void **state)
{
	struct conf conf, next, before;
	char report[1024];

	(void)state;
	assert_int_equal(test_load("[pool a]\nsize=1M\n[pool b]\nsize=2M\n", &conf, report, sizeof(report)), 0);
	before = conf;
	/* b keeps its settings though its place in the file changed */
	assert_int_equal(test_load("[pool b]\nsize=2M\n[pool c]\nsize=2M\n[session]\nbudget = 30%\n", &next, report, sizeof(report)), 0);
	assert_int_equal(conf_reload(&conf, &next, report, sizeof(report)), 1);
	assert_string_equal(report, "session.budget: 25% -> 30%\n"
			    "pool a: no longer in the file; going without it needs a restart\n"
			    "pool c: new; having it needs a restart");
	assert_memory_equal(&conf.pool, &before.pool, sizeof(conf.pool));
	assert_int_equal(conf.n_pools, 2);
	assert_int_equal(conf.session.budget.ppm, 300000);

	conf = before;
	for (size_t n = 0; n < 60; n++) {	/* a short buffer costs text, nothing else */
		struct conf copy = before;

		memset(report, '#', sizeof(report));
		assert_int_equal(conf_reload(&copy, &next, report, n), 1);
		assert_int_equal(report[n], '#');
		if (n)
			assert_true(strlen(report) < n);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_session_key_is_a_setting_and_sets_its_bit),
		cmocka_unit_test(settings_are_all_taken_or_none),
		cmocka_unit_test(settings_of_any_length_are_survived),
		cmocka_unit_test(open_sessions_follow_live_keys_that_they_were_not_given),
		cmocka_unit_test(models_come_and_go_with_the_file),
		cmocka_unit_test(reload_takes_what_may_change_and_names_the_rest),
		cmocka_unit_test(pools_that_come_and_go_need_a_restart),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
