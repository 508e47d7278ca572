/* ebb-llama --passkey through a real daemon: a cache that holds everything finds what the full one does, one that lost the key does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/daemon.h"
#include "tests/lib/llama.h"

#define PASSKEY "$BIN/ebb-llama -m $MODEL --socket %s --passkey --limit 256 --depths 0.1,0.5 --keys 1 --json "

static struct td d;
static struct tl t;

static void a_cache_that_holds_everything_finds_what_the_full_one_finds(void **state)
{
	(void)state;
	tl_run(&t, PASSKEY "--budget 1000 -p 'One thing after another, and so on and on. '", d.socket);
	assert_int_equal(t.status, 0);
	assert_true(tl_number(&t, "trials") == 4.0);
	assert_true(tl_number(&t, "found_full") >= 3.0);	/* the model can do it at all */
	assert_true(tl_number(&t, "found") == tl_number(&t, "found_full"));
	assert_non_null(strstr(t.out, "\"by_depth\":[{\"depth\":0.1,\"trials\":2,"));
	assert_non_null(strstr(t.out, "\"by_filler\":[{\"filler\":\"grass\",\"trials\":2,"));
	assert_non_null(strstr(t.err, "passkey 4/4: "));
}

static void what_is_evicted_is_not_found(void **state)
{
	(void)state;
	tl_run(&t, PASSKEY "--budget 64 --policy streaming", d.socket);
	assert_int_equal(t.status, 0);
	assert_true(tl_number(&t, "trials") == 6.0);	/* three texts are built in */
	assert_true(tl_number(&t, "found") == 0.0);
	assert_true(tl_number(&t, "found_full") >= 5.0);
	assert_non_null(strstr(t.out, "{\"filler\":\"essay\",\"trials\":2,"));
	assert_non_null(strstr(t.out, "{\"filler\":\"manual\",\"trials\":2,"));
	td_await(&d, "status:sessions", 0);
}

static void wrong_use_is_refused(void **state)
{
	static const char *const wrong[] = { "--nll", "--local", "--chat", "--batch 2", "--depths x", "--depths 2", "--limit 20",
					     "--keys 0" };

	(void)state;
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		tl_run(&t, "$BIN/ebb-llama -m $MODEL --socket %s --passkey %s", d.socket, wrong[i]);
		if (!t.status || !*t.err)
			fail_msg("%s: exit status %d, %s", wrong[i], t.status, t.err);
	}
	tl_run(&t, "$BIN/ebb-llama -m $MODEL -p text --depths 0.5");
	assert_int_equal(t.status, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_cache_that_holds_everything_finds_what_the_full_one_finds),
		cmocka_unit_test(what_is_evicted_is_not_found),
		cmocka_unit_test(wrong_use_is_refused),
	};
	int rc;

	td_start(&d, "drain = 0s\n[pool p]\ndevice = host\nsize = 256M\n");
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	td_stop(&d);
	return rc;
}
