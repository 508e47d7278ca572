/* Files as a whole: sections, lines, comments, and how complaints are collected. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/lib/conf_test.h"

static void the_manual_s_example_loads(void **state)
{
	static const char text[] =
		"; ebbd.ini\n"
		"[daemon]\n"
		"socket = /run/ebbd/ebbd.sock\n"
		"[pool host]            ; one section a pool; the name is the operator's\n"
		"device = host          ; host | cuda:N | cuda:UUID\n"
		"size = 256M\n"
		"[session]              ; what a session gets when its client does not say\n"
		"policy = h2o\n"
		"budget = 25%           ; slots per lane: a count, or a share of the tokens appended so far\n"
		"window = 32\n"
		"sinks = 4\n"
		"slots = bf16           ; how K and V are stored: f32 | f16 | bf16 | q8\n"
		"recent = 50%           ; newest slots that are never evicted: a count, or a share of the budget\n"
		"observe = 1            ; take heat from every k-th query\n"
		"prefill = whole\n";
	char why[1024];
	struct conf conf;

	(void)state;
	assert_int_equal(test_load(text, &conf, why, sizeof(why)), 0);
	assert_string_equal(why, "");
	assert_int_equal(conf.n_pools, 1);
	assert_string_equal(conf.pool[0].name, "host");
	assert_string_equal(conf.pool[0].device, "host");
	assert_int_equal(conf.pool[0].size_bytes, 256 << 20);
	assert_int_equal(conf.pool[0].slab_bytes, 0);
	assert_int_equal(conf.session.budget.ppm, 250000);
	assert_int_equal(conf.session.budget.count, 0);
	assert_int_equal(conf.session.given, 0);	/* only a client gives */
}

static void all_complaints_come_at_once_with_their_lines(void **state)
{
	char why[4096];
	struct conf conf;

	(void)state;
	assert_int_equal(test_load("x = 1\n"
				   "[daemon]\n"
				   "sokcet = /x\n"
				   "\n"
				   "log_level = loud\n"
				   "[sesion]\n"
				   "foo = 1\n"
				   "[session]\n"
				   "window = 0 ; none\n"
				   "nonsense\n"
				   "[pool a]\n"
				   "slab = 1M", &conf, why, sizeof(why)), -22);
	assert_string_equal(why,
		"F:1: found 'x' before any section; allowed: first a line [daemon], [pool NAME], [model NAME] or [session]\n"
		"F:3: [daemon]: found the key 'sokcet'; allowed: socket, socket_mode, socket_group, log_level, max_clients, drain, record, record_limit, "
		"priority; "
		"did you mean socket?\n"
		"F:5: [daemon] log_level: found 'loud'; allowed: err | warning | notice | info | debug\n"
		"F:6: found the section 'sesion'; allowed: [daemon], [pool NAME], [model NAME], [session]; did you mean [session]?\n"
		"F:9: [session] window: found '0'; allowed: auto, or 1 .. 2048\n"
		"F:10: found 'nonsense'; allowed: [section], key = value, or a comment (; ...)\n"
		"F:11: [pool a] size: found nothing; allowed: 1M .. 8T");
}

static void ten_complaints_then_a_count(void **state)
{
	char ini[2000] = "[pool a]\nsize=1M\n[session]\n", why[8192], *last;
	unsigned lines = 1;
	struct conf conf;

	(void)state;
	for (int i = 0; i < 23; i++)
		snprintf(ini + strlen(ini), sizeof(ini) - strlen(ini), "bad%d = 1\n", i);
	assert_int_equal(test_load(ini, &conf, why, sizeof(why)), -22);
	for (const char *s = why; *s; s++)
		lines += *s == '\n';
	assert_int_equal(lines, 11);
	last = strrchr(why, '\n') + 1;
	assert_string_equal(last, "F: and 13 more");
}

static void a_small_buffer_cuts_the_complaints(void **state)
{
	char *name = test_file("[x]\n[y]\n", 8), buffer[64];
	struct conf conf;

	(void)state;
	for (size_t n = 0; n <= 40; n++) {
		memset(buffer, '#', sizeof(buffer));
		assert_int_equal(conf_load(&conf, name, NULL, buffer, n), -22);
		if (n)
			assert_true(strlen(buffer) < n);
		assert_int_equal(buffer[n], '#');
	}
	assert_int_equal(conf_load(&conf, name, NULL, NULL, 0), -22);
	unlink(name);
	free(name);
}

static void sections_appear_once(void **state)
{
	char why[4096];
	struct conf conf;

	(void)state;
	assert_int_equal(test_load("[pool a]\nsize=1M\n[pool b]\nsize=2M\n[pool  a]\nsize=3M\n", &conf, why, sizeof(why)), -22);
	assert_string_equal(why, "F:5: [pool a]: found again (first in line 1); allowed: each section once");
	assert_int_equal(test_load("[session]\nwindow=5\n[pool a]\nsize=1M\n[session]\nsinks=5\n", &conf, why, sizeof(why)), -22);
	assert_string_equal(why, "F:5: [session]: found again (first in line 1); allowed: each section once");
}

static void a_pool_is_needed_and_sixteen_are_enough(void **state)
{
	char ini[2000] = "", why[4096];
	struct conf conf;

	(void)state;
	assert_int_equal(test_load("[session]\n", &conf, why, sizeof(why)), -22);
	assert_string_equal(why, "F: found no pool; allowed: 1 .. 16 sections [pool NAME], each with its size");
	assert_int_equal(test_load("", &conf, why, sizeof(why)), -22);
	for (int i = 0; i < CONF_MAX_POOLS; i++)
		snprintf(ini + strlen(ini), sizeof(ini) - strlen(ini), "[pool p%d]\nsize = %dM\n", i, i + 1);
	assert_int_equal(test_load(ini, &conf, why, sizeof(why)), 0);
	assert_int_equal(conf.n_pools, 16);
	assert_string_equal(conf.pool[15].name, "p15");
	assert_int_equal(conf.pool[15].size_bytes, 16 << 20);
	snprintf(ini + strlen(ini), sizeof(ini) - strlen(ini), "[pool more]\nsize = 1M\n");
	assert_int_equal(test_load(ini, &conf, why, sizeof(why)), -22);
	assert_string_equal(why, "F:33: [pool more]: found one pool more; allowed: 16 pools");
}

static void pool_names_are_plain(void **state)
{
	static const char *const good[] = { "a", "gpu-0.left_1", "1234567890123456789012345678901" };
	static const char *const bad[] = { "", "a b", "a/b", "12345678901234567890123456789012", "\xc3\xa4", "a'b" };
	char ini[200], why[4096];
	struct conf conf;

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		snprintf(ini, sizeof(ini), "[ pool\t%s ]\nsize=1M\n", good[i]);
		assert_int_equal(test_load(ini, &conf, why, sizeof(why)), 0);
		assert_string_equal(conf.pool[0].name, good[i]);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(ini, sizeof(ini), "[pool %s]\nsize=1M\n", bad[i]);
		assert_int_equal(test_load(ini, &conf, why, sizeof(why)), -22);
		assert_non_null(strstr(why, "F:1: [pool NAME]: found the name '"));
		assert_null(strchr(why, '\n'));		/* its keys are not complained about, too */
	}
}

static void section_lines_are_read_strictly(void **state)
{
	char why[4096];
	struct conf conf;

	(void)state;
	assert_int_equal(test_load("[pool a\nsize=1M\n", &conf, why, sizeof(why)), -22);
	assert_string_equal(why, "F:1: found [ and 'pool a'; allowed: a section name between [ and ]\n"
				 "F: found no pool; allowed: 1 .. 16 sections [pool NAME], each with its size");
	assert_int_equal(test_load("[pool a] size=1M\nsize=1M\n", &conf, why, sizeof(why)), -22);
	assert_string_equal(why, "F:1: found 'size=1M' behind the section; allowed: a comment (; ...)");
	assert_int_equal(test_load("[pool a]# here\nsize=1M\n[daemon] ;\n", &conf, why, sizeof(why)), 0);
	assert_int_equal(test_load("[pools]\n", &conf, why, sizeof(why)), -22);
	assert_non_null(strstr(why, "did you mean [pool NAME]?"));
	assert_int_equal(test_load("[Daemon x]\n[pool a]\nsize=1M\n", &conf, why, sizeof(why)), -22);
}

static void a_slab_fits_its_pool(void **state)
{
	char why[4096];
	struct conf conf;

	(void)state;
	assert_int_equal(test_load("[pool a]\nslab = 2M\nsize = 1M\n", &conf, why, sizeof(why)), -22);
	assert_string_equal(why, "F:2: [pool a] slab: found '2M'; allowed: not more than the pool's size, 1M");
	assert_int_equal(test_load("[pool a]\nslab = 2MiB\nsize = 2097152\n", &conf, why, sizeof(why)), 0);
	assert_int_equal(conf.pool[0].slab_bytes, 2 << 20);
}

static void lines_of_every_shape(void **state)
{
	static const char *const good[] = {
		"[pool a]\r\nsize = 1M\r\n",
		"\xef\xbb\xbf[pool a]\nsize = 1M\n",
		"[pool a]\n\tsize\t=\t1M\t; a tab\n",
		"   [pool a]\n        size=1M",			/* an indented key is a key, not more of the line above */
		"[pool a]\ndevice = host\n   size = 1M\n",
		"[pool a]\nsize: 1M\n",
		"# a comment\n[pool a]\n;another\nsize=1M\n;size=2M\n",
		"[pool a]\nsize = 1M ;; two\n",
		"\n\n\n[pool a]\n\n\nsize = 1M\n\n\n",
	};
	char why[4096], ini[1200];
	struct conf conf;

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		if (test_load(good[i], &conf, why, sizeof(why)) != 0)
			fail_msg("%s: %s", good[i], why);
		assert_int_equal(conf.pool[0].size_bytes, 1 << 20);
	}
	/* comments of any length; a long inline comment does not count against the line */
	snprintf(ini, sizeof(ini), "; %0500d\n[pool a]\nsize = 1M ; %0500d\n", 1, 2);
	assert_int_equal(test_load(ini, &conf, why, sizeof(why)), 0);
	assert_int_equal(test_load_bytes("[pool a]\nsize = 1M\n[sess\0ion]\n", 30, &conf, why, sizeof(why)), -22);
	assert_string_equal(why, "F:3: found a zero byte; allowed: text");
	snprintf(ini, sizeof(ini), "[pool a]\nsize = 1M\n[daemon]\nsocket = /%0600d\n", 7);
	assert_int_equal(test_load(ini, &conf, why, sizeof(why)), -22);
	assert_non_null(strstr(why, "F:4: found a line of 610 bytes; allowed: at most 19"));
	assert_int_equal(test_load("[pool a]\nsize = 1M # not a comment\n", &conf, why, sizeof(why)), -22);
	assert_non_null(strstr(why, "F:2: [pool a] size: found '1M # not a comment'"));
	assert_int_equal(test_load("[pool a]\nsize = 1M\n= 5\n", &conf, why, sizeof(why)), -22);
	assert_non_null(strstr(why, "F:3: [pool a]: found the key ''"));
}

static void messages_cannot_steer_a_terminal(void **state)
{
	char why[4096];
	struct conf conf;

	(void)state;
	assert_int_equal(test_load("[pool a]\nsize = \033[31m\n\033[2J = 1\n[\033c]\n\033\n", &conf, why, sizeof(why)), -22);
	for (const char *s = why; *s; s++)
		assert_true((*s >= ' ' && *s < 127) || *s == '\n');
}

static void the_policy_s_judge_is_asked_and_quoted(void **state)
{
	char why[4096];
	struct conf conf;

	(void)state;
	assert_int_equal(test_load("[pool a]\nsize=1M\n[session]\npolicy = h3o\n", &conf, why, sizeof(why)), -22);
	assert_string_equal(why, "F:4: [session] policy: found 'h3o'; the tests' policies are h2o, ebb, full and x:");
	assert_int_equal(test_load("[pool a]\nsize=1M\n[session]\npolicy = x:a=1,b=2\n", &conf, why, sizeof(why)), 0);
	assert_string_equal(conf.session.policy, "x:a=1,b=2");
}

static void files_that_cannot_be_read(void **state)
{
	char why[256], *name = test_file("[pool a]\nsize=1M\n", 17), *big = calloc(1, (1 << 20) + 1), *big_name;
	struct conf conf, before;

	(void)state;
	conf_defaults(&conf);
	before = conf;
	assert_int_equal(conf_load(&conf, "/nonexistent/ebbd.ini", NULL, why, sizeof(why)), -2);
	assert_non_null(strstr(why, "/nonexistent/ebbd.ini: there is no such file"));
	assert_int_equal(conf_load(&conf, "/tmp", NULL, why, sizeof(why)), -5);
	assert_true(why[0] != '\0');
	if (geteuid() != 0) {
		assert_int_equal(chmod(name, 0), 0);
		assert_int_equal(conf_load(&conf, name, NULL, why, sizeof(why)), -13);
	}
	memset(big, ';', (1 << 20) + 1);
	big_name = test_file(big, (1 << 20) + 1);
	assert_int_equal(conf_load(&conf, big_name, NULL, why, sizeof(why)), -22);
	assert_non_null(strstr(why, "more than 1 MiB"));
	assert_memory_equal(&conf, &before, sizeof(conf));
	unlink(name);
	unlink(big_name);
	free(name);
	free(big_name);
	free(big);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_manual_s_example_loads),
		cmocka_unit_test(all_complaints_come_at_once_with_their_lines),
		cmocka_unit_test(ten_complaints_then_a_count),
		cmocka_unit_test(a_small_buffer_cuts_the_complaints),
		cmocka_unit_test(sections_appear_once),
		cmocka_unit_test(a_pool_is_needed_and_sixteen_are_enough),
		cmocka_unit_test(pool_names_are_plain),
		cmocka_unit_test(section_lines_are_read_strictly),
		cmocka_unit_test(a_slab_fits_its_pool),
		cmocka_unit_test(lines_of_every_shape),
		cmocka_unit_test(messages_cannot_steer_a_terminal),
		cmocka_unit_test(the_policy_s_judge_is_asked_and_quoted),
		cmocka_unit_test(files_that_cannot_be_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
