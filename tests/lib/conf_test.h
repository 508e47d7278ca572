/*
 * What the tests of conf/ share: files made from text, values made from the table of keys, and a generator with a seed.
 * Failures are cmocka's.
 */
#ifndef TESTS_LIB_CONF_TEST_H
#define TESTS_LIB_CONF_TEST_H

#include "conf/keys.h"

#ifdef __cplusplus
extern "C" {
#endif

/* xorshift64*; the same numbers everywhere. *state is not 0. */
uint64_t test_random(uint64_t *state);

/* A conf_check: policies and splits as the tests know them, h2o..., full, uniform and x:... */
int test_check_policy(const char *key, const char *text, char *why, size_t why_bytes);

/* A new file of these bytes. Its name: returned; unlink() and free(). */
char *test_file(const void *data, size_t bytes);

/*
 * conf_load() of these bytes. In @why the file's name is replaced by F, so that messages can be compared.
 * @conf is poisoned first, and a failure that touches it fails the test.
 */
int test_load_bytes(const void *data, size_t bytes, struct conf *conf, char *why, size_t why_bytes);
int test_load(const char *text, struct conf *conf, char *why, size_t why_bytes);

/* Where the key's section is in @conf: of pools, the first. */
/* How a file names the section: "daemon", "pool a", "model a", ... */
const char *test_label(enum conf_section section);
void *test_base(struct conf *conf, const struct conf_key *key);

/* A file that says key = value and what a file has to say. Returns the value's line. */
unsigned test_ini(const struct conf_key *key, const char *value, char *out, size_t bytes);

/*
 * The i-th value at or beyond the limits of @key; *good says whether it is allowed. Returns 0 behind the last.
 * Every type: the minimum, the maximum, one below, one above; then values of other types.
 */
int test_edge(const struct conf_key *key, unsigned i, char out[200], int *good);

#ifdef __cplusplus
}
#endif
#endif
