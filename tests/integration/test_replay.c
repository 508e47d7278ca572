/*
 * Recordings and their replay. The strong one: for every policy, a session that evicts and a session that is recorded get the same heat for
 * the same tokens; what the daemon has kept of the first is, slot by slot, what ebb-replay keeps on the recording of the second.
 * Then what a recorder must survive: no consent, no folder, a full disk, a limit; and what a reader must refuse.
 */
#include <errno.h>
#include <jansson.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "evict/evict.h"
#include "libclient/ebb.h"
#include "tests/lib/daemon.h"
#include "tests/lib/llama.h"

enum { LAYERS = 2, KV = 2, LANES = LAYERS * KV, DIM = 64, TOKENS = 500, BUDGET = 128, WINDOW = 32 };

static struct td d;
static struct tl t;

static uint32_t mix(uint32_t x)
{
	x ^= x >> 16;
	x *= 0x7feb352du;
	x ^= x >> 15;
	x *= 0x846ca68bu;
	return x ^ x >> 16;
}

/* What position pos receives in window w: a few tokens much, most of them little, nothing that ties. */
static float heat_of(uint32_t lane, int32_t pos, uint32_t w)
{
	uint32_t x = mix(mix((uint32_t)pos * 31u + lane) + w * 977u), steady = mix((uint32_t)pos * 7919u + lane) % 16u;

	return (float)(x >> 8) / 16777216.0f * (steady == 0 ? 2.0f : 0.1f);
}

struct pair {
	struct ebb *ebb;
	struct ebb_batch *batch;
	struct ebb_session *s[2];	/* one that evicts, one that is recorded */
};

static void open_session(struct pair *p, unsigned i, const char *settings)
{
	struct ebb_session_options o = { .n_layers = LAYERS, .n_kv_heads = KV, .group = 1, .head_dim = DIM, .max_tokens = TOKENS,
					 .settings = settings };

	if (ebb_session_open(p->ebb, &o, &p->s[i]) || ebb_batch_join(p->batch, p->s[i]))
		fail_msg("%s: %s", settings, ebb_error(p->ebb));
}

/* n tokens for both; both sessions then hold the heat that heat_of() says, if they collect any. */
static void step(struct pair *p, uint32_t at, uint32_t n)
{
	static float k[2 * WINDOW][KV][DIM], out[2 * WINDOW][KV][DIM], heat[TOKENS];
	static int32_t pos[TOKENS];
	struct ebb_tensor tk = { k, EBB_F32, 0 }, to = { out, EBB_F32, 0 };
	uint32_t each[2] = { n, n };

	for (uint32_t r = 0; r < 2 * n; r++)
		for (uint32_t c = 0; c < KV * DIM; c++)
			k[r][c / DIM][c % DIM] = (float)(mix((at + r % n) * 1009u + c) >> 8) / 16777216.0f - 0.5f;
	assert_int_equal(ebb_step_begin(p->batch, each, 10000), 0);
	assert_int_equal(each[0], n);
	assert_int_equal(each[1], n);
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		assert_int_equal(ebb_append(p->batch, layer, &tk, &tk), 0);
		assert_int_equal(ebb_attend(p->batch, layer, &tk, &to, 0.125f, NULL), 0);
	}
	for (unsigned i = 0; i < 2; i++)
		for (uint32_t lane = 0; lane < LANES; lane++) {
			int live = ebb_lane_read(p->s[i], lane, pos, NULL, TOKENS), rc;

			assert_true(live > 0);
			for (int j = 0; j < live; j++)
				heat[j] = heat_of(lane, pos[j], at / WINDOW);
			rc = ebb_lane_write(p->s[i], lane, heat, (uint32_t)live);
			assert_true(rc == 0 || (i == 0 && rc == -ENOTSUP));	/* streaming and random collect nothing */
		}
}

/* Feeds all tokens; kept[lane] is what the evicting session's lanes hold in the last step. */
static void run(struct pair *p, int32_t kept[LANES][TOKENS], int n_kept[LANES])
{
	uint32_t n;

	for (uint32_t at = 0; at < TOKENS; at += n) {
		n = 1 + mix(at) % 20;	/* steps of all sizes; none crosses a window's end */
		n = n > WINDOW - at % WINDOW ? WINDOW - at % WINDOW : n;
		n = n > TOKENS - at ? TOKENS - at : n;
		step(p, at, n);
		for (uint32_t lane = 0; at + n == TOKENS && lane < LANES; lane++)
			n_kept[lane] = ebb_lane_read(p->s[0], lane, kept[lane], NULL, TOKENS);
		assert_int_equal(ebb_step_end(p->batch), 0);
	}
}

static void compare(const char *policy, int32_t kept[LANES][TOKENS], const int n_kept[LANES])
{
	json_t *root = json_load_file(t.out, 0, NULL), *lanes = json_object_get(root, "kept");

	assert_int_equal(json_array_size(lanes), LANES);
	for (uint32_t lane = 0; lane < LANES; lane++) {
		json_t *row = json_array_get(lanes, lane);

		if ((int)json_array_size(row) != n_kept[lane])
			fail_msg("%s: lane %u holds %d tokens, in the replay %zu", policy, lane, n_kept[lane], json_array_size(row));
		for (int i = 0; i < n_kept[lane]; i++)
			if (json_integer_value(json_array_get(row, (size_t)i)) != kept[lane][i])
				fail_msg("%s: lane %u, slot %d holds token %d, in the replay %lld", policy, lane, i, kept[lane][i],
					 (long long)json_integer_value(json_array_get(row, (size_t)i)));
	}
	json_decref(root);
}

/* One policy both ways. Returns 0 if it cannot be compared: its second array of heat is the attention itself. */
static int both_ways(const char *policy, const char *type)
{
	static const char *const kinds[] = { "sum", "max", "squares", "last" };
	static int32_t kept[LANES][TOKENS];
	struct ebb_options options = { .socket = d.socket };
	struct evict_rule rule = { 0 };
	struct pair p = { NULL };
	char settings[256];
	int n_kept[LANES];

	assert_int_equal(evict_parse(policy, &rule, NULL, 0), 0);
	if (evict_n_heat(rule.policy) > 1)
		return 0;
	assert_int_equal(ebb_connect(&p.ebb, &options), 0);
	assert_int_equal(ebb_batch_new(p.ebb, NULL, &p.batch), 0);
	snprintf(settings, sizeof(settings), "policy=%s budget=%d window=%d recent=40 slots=%s", policy, BUDGET, WINDOW, type);
	open_session(&p, 0, settings);
	snprintf(settings, sizeof(settings), "policy=full window=%d slots=%s record=%s%s,kv", WINDOW, type, kinds[rule.heat[0]],
		 rule.heat[0] == EVICT_HEAT_SUM ? "" : ",sum");
	open_session(&p, 1, settings);
	run(&p, kept, n_kept);
	ebb_close(p.ebb);
	td_await(&d, "status:sessions", 0);
	for (int tries = 0; tries < 200; tries++, td_nap_us(20000)) {	/* the writer may still be at it when the session is over */
		tl_run(&t, "$BIN/ebb-replay -p '%s' -b %d -r 40 --json --kept $DIR/kept $(ls -t %s/rec/*.ebbrec | head -n 1)", policy,
		       BUDGET, d.dir);
		if (!strstr(t.err, "cut short") && !strstr(t.err, "no "))
			break;
	}
	if (t.status)
		fail_msg("%s: %s", policy, t.err);
	snprintf(t.out, sizeof(t.out), "%s/kept", tl_dir());
	compare(policy, kept, n_kept);
	return 1;
}

static void start(const char *daemon_keys)
{
	char ini[512];

	snprintf(ini, sizeof(ini), "drain = 0s\n%s\n[pool p]\ndevice = host\nsize = 64M\nslab = 1M\n", daemon_keys);
	td_start(&d, ini);
}

static void start_recording(const char *more)
{
	char folder[160], ini[768];

	start("");
	snprintf(folder, sizeof(folder), "%s/rec", d.dir);
	assert_int_equal(mkdir(folder, 0700), 0);
	td_kill(&d);
	snprintf(ini, sizeof(ini), "drain = 0s\nrecord = %s\n%s\n[pool p]\ndevice = host\nsize = 64M\nslab = 1M\n", folder, more);
	td_configure(&d, ini);
	td_restart(&d);
}

static void stop_recording(void)
{
	tl_run(&t, "rm -rf '%s/rec'", d.dir);
	td_stop(&d);
}

static void a_replay_decides_as_the_daemon_did(void **state)
{
	static const char *const more[] = { "h2o:age=1", "h2o:decay=0.98", "h2o:squared=yes" };
	unsigned compared = 0;

	(void)state;
	start_recording("");
	for (uint32_t i = 1; i < EVICT_N_POLICIES; i++)	/* full is the recording itself */
		compared += (unsigned)both_ways(evict_policies[i].name, "f32");
	for (unsigned i = 0; i < sizeof(more) / sizeof(*more); i++)
		compared += (unsigned)both_ways(more[i], i ? "bf16" : "q8");
	assert_true(compared >= 6);
	stop_recording();
}

static int try_open(const char *settings, char *why, size_t why_bytes)
{
	struct ebb_options options = { .socket = d.socket };
	struct ebb_session_options o = { .n_layers = LAYERS, .n_kv_heads = KV, .group = 1, .head_dim = DIM, .max_tokens = TOKENS,
					 .settings = settings };
	struct ebb_session *s;
	struct ebb *ebb;
	int rc;

	assert_int_equal(ebb_connect(&ebb, &options), 0);
	rc = ebb_session_open(ebb, &o, &s);
	snprintf(why, why_bytes, "%s", rc ? ebb_error(ebb) : "");
	ebb_close(ebb);
	return rc;
}

static void nothing_is_written_without_consent(void **state)
{
	char why[512];

	(void)state;
	start("");
	assert_int_equal(try_open("policy=full record=sum", why, sizeof(why)), -EACCES);
	assert_non_null(strstr(why, "[daemon] record"));
	assert_int_equal(try_open("policy=full", why, sizeof(why)), 0);
	td_stop(&d);
}

static void what_cannot_be_recorded_is_refused(void **state)
{
	static const struct { const char *settings, *says; } wrong[] = {
		{ "policy=h2o record=sum", "policy=full" }, { "policy=full observe=0 record=sum", "observe" },
		{ "policy=full record=heat", "allowed: one or two of" }, { "policy=full record=sum,max,last", "allowed: one or two of" },
		{ "policy=full record=sum,sum", "allowed: one or two of" },
	};
	char why[512];

	(void)state;
	start_recording("");
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		assert_int_equal(try_open(wrong[i].settings, why, sizeof(why)), -EINVAL);
		if (!strstr(why, wrong[i].says))
			fail_msg("%s: %s", wrong[i].settings, why);
	}
	stop_recording();
	start_recording("\n[session]\nrecord = sum\n");	/* everything that can be; the rest is served as ever */
	assert_int_equal(try_open("policy=h2o", why, sizeof(why)), 0);
	assert_int_equal(try_open("policy=full", why, sizeof(why)), 0);
	td_await(&d, "status:sessions", 0);
	tl_run(&t, "ls %s/rec | wc -l", d.dir);
	assert_string_equal(t.out, "1\n");
	stop_recording();
	start("record = /proc/nobody");		/* a folder where nobody can write */
	assert_int_equal(try_open("policy=full record=sum", why, sizeof(why)), -ENOENT);
	assert_non_null(strstr(why, "cannot write a recording in /proc/nobody"));
	assert_int_equal(try_open("policy=full", why, sizeof(why)), 0);	/* the daemon lives, and serves */
	td_stop(&d);
}

/* A recorded session that decodes to its end while its recording ends early: `says` is in the log. */
static void ends_early(const char *more, const char *says)
{
	static int32_t kept[LANES][TOKENS];
	struct ebb_options options;
	struct pair p = { NULL };
	int n_kept[LANES];

	start_recording(more);
	options = (struct ebb_options){ .socket = d.socket };
	assert_int_equal(ebb_connect(&p.ebb, &options), 0);
	assert_int_equal(ebb_batch_new(p.ebb, NULL, &p.batch), 0);
	open_session(&p, 0, "policy=streaming budget=100 window=32 slots=f32");
	open_session(&p, 1, "policy=full slots=f32 record=sum,last,kv");
	run(&p, kept, n_kept);
	ebb_close(p.ebb);
	td_await(&d, "status:sessions", 0);
	for (int tries = 0; tries < 200 && !td_log_has(&d, "record_stopped"); tries++)
		td_nap_us(20000);
	if (!td_log_has(&d, "record_stopped") || !td_log_has(&d, says))
		fail_msg("the log does not say that the recording was stopped because: %s", says);
	tl_run(&t, "$BIN/ebb-replay -p streaming -b 100 --json %s/rec/*.ebbrec", d.dir);
	assert_int_equal(t.status, 0);
	assert_non_null(strstr(t.err, "cut short"));
	stop_recording();
}

static void a_limit_ends_the_recording_and_not_the_session(void **state)
{
	(void)state;
	ends_early("record_limit = 1M", "record_limit");
}

static void a_full_disk_ends_the_recording_and_not_the_session(void **state)
{
	/* Files (a slab is one) may have 1 MiB and a bit: to the writer that is a disk without room. */
	struct rlimit before, small;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	small = (struct rlimit){ .rlim_cur = (1u << 20) + 4096, .rlim_max = before.rlim_max };
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	ends_early("", "File too large");
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	signal(SIGXFSZ, SIG_DFL);
}

static void a_reader_refuses_what_is_no_recording(void **state)
{
	static const struct { const char *make, *says; } wrong[] = {
		{ "echo hello > $DIR/bad", "no recording" }, { ": > $DIR/bad", "no recording" },
		{ "head -c 200 $DIR/good > $DIR/bad", "no recording" },
		{ "cp $DIR/good $DIR/bad; printf '\\002' | dd of=$DIR/bad bs=1 seek=12 conv=notrunc 2>&-", "version 2" },
		{ "cp $DIR/good $DIR/bad; printf '\\004\\003\\002\\001' | dd of=$DIR/bad bs=1 seek=8 conv=notrunc 2>&-", "" },
		{ "cp $DIR/good $DIR/bad; printf '\\001\\002\\003\\004' | dd of=$DIR/bad bs=1 seek=8 conv=notrunc 2>&-", "byte order" },
		{ "cp $DIR/good $DIR/bad; printf '\\377' | dd of=$DIR/bad bs=1 seek=36 conv=notrunc 2>&-", "cannot be" },
		{ "head -c 300 $DIR/good > $DIR/bad", "no whole window" }, { "rm -f $DIR/bad", "No such file" },
	};
	int rc;

	(void)state;
	start_recording("");
	rc = both_ways("streaming", "f32");
	assert_int_equal(rc, 1);
	tl_run(&t, "cp %s/rec/*.ebbrec $DIR/good", d.dir);
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		tl_run(&t, "%s; $BIN/ebb-replay -p streaming -b 100 $DIR/bad", wrong[i].make);
		if (t.status != (*wrong[i].says ? 1 : 0) || !strstr(t.err, wrong[i].says))
			fail_msg("%s: exit status %d, %s", wrong[i].make, t.status, t.err);
	}
	tl_run(&t, "$BIN/ebb-replay -p h2o:squared=yes -b 100 $DIR/good");	/* what was not recorded cannot be replayed */
	assert_int_equal(t.status, 1);
	assert_non_null(strstr(t.out, "lacks: record = sum,squares"));
	tl_run(&t, "$BIN/ebb-replay -p nosuchpolicy $DIR/good");
	assert_int_equal(t.status, 1);
	assert_non_null(strstr(t.err, "allowed: full"));
	stop_recording();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_replay_decides_as_the_daemon_did),
		cmocka_unit_test(nothing_is_written_without_consent),
		cmocka_unit_test(what_cannot_be_recorded_is_refused),
		cmocka_unit_test(a_limit_ends_the_recording_and_not_the_session),
		cmocka_unit_test(a_full_disk_ends_the_recording_and_not_the_session),
		cmocka_unit_test(a_reader_refuses_what_is_no_recording),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
