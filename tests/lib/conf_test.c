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

uint64_t test_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * UINT64_C(2685821657736338717);
}

int test_check_policy(const char *key, const char *text, char *why, size_t why_bytes)
{
	assert_true(strcmp(key, "policy") == 0 || strcmp(key, "merge") == 0 || strcmp(key, "split") == 0 || strcmp(key, "priority") == 0);
	if (strcmp(key, "priority") == 0 && !*text)
		return 0;
	if (strncmp(text, "h2o", 3) == 0 || strcmp(text, "ebb") == 0 || strcmp(text, "full") == 0 || strcmp(text, "uniform") == 0 ||
	    strcmp(text, "measured") == 0 || strcmp(text, "auto") == 0 || strncmp(text, "x:", 2) == 0)
		return 0;
	snprintf(why, why_bytes, "the tests' policies are h2o, ebb, full and x:");
	return -22;
}

char *test_file(const void *data, size_t bytes)
{
	char name[] = "/tmp/conf_test_XXXXXX";
	int fd = mkstemp(name);

	assert_true(fd >= 0);
	assert_true(write(fd, data, bytes) == (ssize_t)bytes);
	close(fd);
	return strdup(name);
}

int test_load_bytes(const void *data, size_t bytes, struct conf *conf, char *why, size_t why_bytes)
{
	char *name = test_file(data, bytes), *at, *raw = malloc(65536);
	struct conf before;
	int err;

	assert_non_null(raw);
	memset(conf, 0x5a, sizeof(*conf));
	before = *conf;
	err = conf_load(conf, name, test_check_policy, raw, 65536);
	if (err)
		assert_memory_equal(conf, &before, sizeof(before));
	while ((at = strstr(raw, name))) {
		at[0] = 'F';
		memmove(at + 1, at + strlen(name), strlen(at + strlen(name)) + 1);
	}
	snprintf(why, why_bytes, "%s", raw);
	unlink(name);
	free(name);
	free(raw);
	return err;
}

int test_load(const char *text, struct conf *conf, char *why, size_t why_bytes)
{
	return test_load_bytes(text, strlen(text), conf, why, why_bytes);
}

void *test_base(struct conf *conf, const struct conf_key *key)
{
	if (key->section == CONF_DAEMON)
		return &conf->daemon;
	if (key->section == CONF_MODEL)
		return &conf->model[0];
	return key->section == CONF_POOL ? (void *)&conf->pool[0] : (void *)&conf->session;
}

const char *test_label(enum conf_section section)
{
	return section == CONF_POOL ? "pool a" : section == CONF_MODEL ? "model a" : conf_section_names[section];
}

unsigned test_ini(const struct conf_key *key, const char *value, char *out, size_t bytes)
{
	if (key->section == CONF_POOL && key->def) {
		snprintf(out, bytes, "[pool a]\nsize = 8T\n%s = %s\n", key->name, value);
		return 3;
	}
	snprintf(out, bytes, "[%s]\n%s = %s\n%s", test_label(key->section), key->name,
		 value, key->section == CONF_POOL ? "" : "[pool a]\nsize = 8T\n");
	return 2;
}

static void repeat(char *out, size_t n)
{
	memset(out, 'a', n);
	out[n] = '\0';
}

/* Values of other types, by type. */
static const char *const wrong[][12] = {
	[CONF_TYPE_UINT] = { "many", "1.5", "0x10", "+3", "3 4", "-1", "3k", "18446744073709551616", "99999999999999999999999",
			     "" },
	[CONF_TYPE_AUTO] = { "many", "1.5", "0x10", "+3", "autos", "-1", "3k", "18446744073709551616", "99999999999999999999999", "AUTO", "" },
	[CONF_TYPE_MODE] = { "0999", "rw", "-1", "0660 1", "00000000660", "" },
	[CONF_TYPE_TIME] = { "10", "10 s", "s", "10h", "1.5s", "-1s", "10sec", "18446744073709551615m", "" },
	[CONF_TYPE_SIZE] = { "big", "1MB", "1.5G", "-1", "4MM", "1 G", "16777216T", "99999999999999999999G", "" },
	[CONF_TYPE_SLAB] = { "3M", "no", "1MB", "-1", "autos", "" },
	[CONF_TYPE_AMOUNT] = { "25 %", "%", "-5%", "0.00001%", "1e3", "25%%", "100.0001%", "101%", "1.5", "5.%", "half", "" },
	[CONF_TYPE_CHOICE] = { "neither", "F32", "|", "0", "whole|chunked", "" },
	[CONF_TYPE_DEVICE] = { "cuda", "cuda:", "gpu0", "cuda:-1", "HOST", "cuda:GPU-", "cuda:1024", "cuda:GPU-xyz", "host 1",
			       "" },
	[CONF_TYPE_POLICY] = { "nobody", "", NULL },
	[CONF_TYPE_TEXT] = { NULL },
	[CONF_TYPE_FILE] = { NULL },
};

int test_edge(const struct conf_key *key, unsigned i, char out[200], int *good)
{
	static const char *const devices[] = { "host", "cuda:0", "cuda:1023", "cuda:GPU-1b2c3d4e-00ff-1122-3344-5566778899aa" };
	uint64_t lo = key->min, hi = key->max;
	const char *w;

	*good = i < 2;
	switch (key->type) {
	case CONF_TYPE_UINT:
	case CONF_TYPE_AUTO:
		if (i == 2 && lo == 0)
			snprintf(out, 200, "-1");
		else if (i < 4)
			snprintf(out, 200, "%" PRIu64, (uint64_t[]){ lo, hi, lo - 1, hi + 1 }[i]);
		break;
	case CONF_TYPE_MODE:
		if (i < 4)
			snprintf(out, 200, "0%" PRIo64, (uint64_t[]){ lo, hi, hi + 1, hi * 8 }[i]);
		break;
	case CONF_TYPE_TIME:
		if (i < 4)
			snprintf(out, 200, "%" PRIu64 "ms", (uint64_t[]){ lo, hi, hi + 1, hi * 60 }[i]);
		break;
	case CONF_TYPE_SIZE:
		if (i < 4)
			snprintf(out, 200, "%" PRIu64, (uint64_t[]){ lo, hi, lo - 1, hi + 1 }[i]);
		break;
	case CONF_TYPE_SLAB:
		if (i < 4)
			snprintf(out, 200, "%" PRIu64, (uint64_t[]){ lo, hi, lo / 2, hi * 2 }[i]);
		break;
	case CONF_TYPE_AMOUNT:
		*good = i < 2 || (i == 2 && lo == 0);
		if (i < 4)
			snprintf(out, 200, "%" PRIu64, (uint64_t[]){ lo, hi, 0, hi + 1 }[i]);
		if (i == 2)
			snprintf(out, 200, "0%%");
		break;
	case CONF_TYPE_CHOICE:
		if (i < 2)
			snprintf(out, 200, "%.*s", (int)strcspn(i ? strrchr(key->unit, '|') + 1 : key->unit, "|"),
				 i ? strrchr(key->unit, '|') + 1 : key->unit);
		else if (i < 4)
			snprintf(out, 200, "%s", i == 2 ? "nothing" : "everything");
		break;
	case CONF_TYPE_DEVICE:
		*good = i < 4;
		if (i < 4)
			snprintf(out, 200, "%s", devices[i]);
		break;
	case CONF_TYPE_POLICY:
		if (i == 0 || i == 1 || i == 3) {
			memcpy(out, "x:", 2);
			repeat(out + 2, i == 0 ? 1 : i == 1 ? hi - 2 : hi - 1);
		} else if (i == 2) {
			snprintf(out, 200, "somebody");
		}
		break;
	case CONF_TYPE_TEXT:
	case CONF_TYPE_FILE:
		*good = i < 2 || (i == 2 && lo == 0);
		if (i < 4)
			repeat(out, (size_t[]){ lo, hi, lo ? lo - 1 : 0, hi + 1 }[i]);
		break;
	}
	if (i < 4)
		return 1;
	w = wrong[key->type][0] && i - 4 < 12 ? wrong[key->type][i - 4] : NULL;
	if (!w)
		return 0;
	snprintf(out, 200, "%s", w);
	return 1;
}
