/*
 * Random bytes, random lines and mutated good files: nothing crashes (build with SAN=address,undefined), every refusal has a
 * sentence, and what is accepted prints and reads back. The seed is printed; CONF_SEED=N repeats one, CONF_ROUNDS=N goes on longer.
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

static uint64_t seed_of(unsigned salt)
{
	const char *text = getenv("CONF_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 10) : 20261123;

	print_message("seed %" PRIu64 "\n", seed);
	return seed * 2654435761u + salt + 1;
}

static unsigned rounds(void)
{
	const char *text = getenv("CONF_ROUNDS");

	return text ? (unsigned)strtoul(text, NULL, 10) : 2000;
}

static unsigned n_taken, n_refused;

static void check(const char *data, size_t bytes)
{
	char why[8192], *text = NULL;
	struct conf conf, again;
	size_t n;
	FILE *to;

	if (test_load_bytes(data, bytes, &conf, why, sizeof(why)) != 0) {
		assert_true(why[0] != '\0');
		n_refused++;
		return;
	}
	assert_string_equal(why, "");
	n_taken++;
	to = open_memstream(&text, &n);
	assert_non_null(to);
	conf_print(&conf, to);
	fclose(to);
	if (test_load(text, &again, why, sizeof(why)) != 0)
		fail_msg("%s\nof\n%.*s", why, (int)bytes, data);
	assert_memory_equal(&conf, &again, sizeof(conf));
	free(text);
}

static void random_bytes(void **state)
{
	uint64_t seed = seed_of(1);
	char data[1500];

	(void)state;
	for (unsigned r = 0; r < rounds(); r++) {
		size_t n = test_random(&seed) % sizeof(data);

		for (size_t i = 0; i < n; i++)
			data[i] = (char)test_random(&seed);
		check(data, n);
	}
}

static const char *const words[] = {
	"[", "]", "=", ";", "#", " ", "\t", "\n", "\n", "\n", "\r\n", "pool", "[pool a]", "[pool b]\n", "[session]\n", "[daemon]\n",
	"size = 1M\n",
	"budget=", "25%", "0", "1", "99999999999", "%", "policy = h2o\n", "window", ":", "auto", "host", "cuda:0", "\0", "\xef\xbb\xbf",
	"K", "G", "ms", "-", ".", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
};

enum { N_WORDS = sizeof(words) / sizeof(words[0]) };

static void random_words(void **state)
{
	uint64_t seed = seed_of(2);
	char data[4096];

	(void)state;
	for (unsigned r = 0; r < rounds(); r++) {
		size_t n = 0, count = test_random(&seed) % 60;

		if (r % 2)
			n = (size_t)snprintf(data, sizeof(data), "[pool host]\nsize = 1M\n");
		for (size_t i = 0; i < count && n + 128 < sizeof(data); i++) {
			const char *word = words[test_random(&seed) % N_WORDS];
			size_t bytes = *word ? strlen(word) : 1;

			memcpy(data + n, word, bytes);
			n += bytes;
		}
		check(data, n);
	}
}

/* The whole configuration as a file, some bytes of it changed, lost or doubled. */
static void mutated_files(void **state)
{
	uint64_t seed = seed_of(3);
	char *good = NULL, data[16384];
	size_t good_bytes;
	struct conf conf;
	FILE *to = open_memstream(&good, &good_bytes);

	(void)state;
	assert_non_null(to);
	conf_template(to);
	conf_defaults(&conf);
	fclose(to);
	for (size_t i = 0; i < good_bytes; i++)		/* every key in force */
		if (good[i] == ';' && i && good[i - 1] == '\n' && good[i + 1] != ' ')
			good[i] = ' ';
	assert_true(good_bytes < sizeof(data) / 2);
	for (unsigned r = 0; r < rounds(); r++) {
		size_t n = good_bytes, changes = test_random(&seed) % 12;

		memcpy(data, good, n);
		for (size_t i = 0; i < changes; i++) {
			size_t at = test_random(&seed) % n, span = 1 + test_random(&seed) % 40;

			span = span > n - at ? n - at : span;
			switch (test_random(&seed) % 4) {
			case 0: data[at] = (char)test_random(&seed); break;
			case 1: data[at] = "=;[]#%\n 09kM"[test_random(&seed) % 12]; break;
			case 2:
				memmove(data + at, data + at + span, n - at - span);
				n = n - span ? n - span : 1;
				break;
			default:
				if (n + span <= sizeof(data)) {
					memmove(data + at + span, data + at, n - at);
					n += span;
				}
			}
		}
		check(data, n);
	}
	free(good);
	/* Otherwise this tested one of the two outcomes only. */
	assert_true(n_taken > rounds() / 50 && n_refused > rounds());
}

static void random_settings(void **state)
{
	uint64_t seed = seed_of(4);
	struct conf_session session, before;
	struct conf conf;
	char data[1200], why[256];

	(void)state;
	conf_defaults(&conf);
	for (unsigned r = 0; r < rounds(); r++) {
		size_t n = 0, count = test_random(&seed) % 12;

		for (size_t i = 0; i < count; i++) {
			const struct conf_key *key = &conf_keys[test_random(&seed) % conf_n_keys];
			const char *word = words[test_random(&seed) % N_WORDS];

			n += (size_t)snprintf(data + n, sizeof(data) - n, "%s%s%s%s", i ? " " : "", key->name,
					      test_random(&seed) % 8 ? "=" : "", test_random(&seed) % 3 ? key->def ? key->def : "" : word);
			n = n < sizeof(data) ? n : sizeof(data) - 1;
		}
		data[n] = '\0';
		session = before = conf.session;
		if (conf_settings(&session, data, test_check_policy, why, sizeof(why)) != 0) {
			assert_true(why[0] != '\0' && strlen(why) < sizeof(why));
			assert_memory_equal(&session, &before, sizeof(session));
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_bytes),
		cmocka_unit_test(random_words),
		cmocka_unit_test(mutated_files),
		cmocka_unit_test(random_settings),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
