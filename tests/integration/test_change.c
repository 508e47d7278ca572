/*
 * Other settings for open sessions: by their client, by another process, by SIGHUP. After a change every lane holds what it held, less what
 * its budget takes, attention over it is what K and V say, and heat is what the new policy collects; neighbours notice nothing.
 * Host pool; the client under test is in this process.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <errno.h>
#include <jansson.h>

#include "evict/evict.h"
#include "libclient/ebb.h"
#include "tests/lib/daemon.h"
#include "tests/lib/llama.h"
#include "tests/lib/traffic.h"

enum { LAYERS = 2, HEADS = 2, LANES = LAYERS * HEADS, GROUP = 2, DIM = 64, TOKENS = 12000, MOST = 600 };

#define INI "drain = 0s\nlog_level = notice\n[pool p]\ndevice = host\nsize = 64M\nslab = 1M\n[session]\nbudget = 96\nwindow = 16\nslots = f32\n"

static struct td d;
static struct traffic_report *report;
static const float scale = 0.125f;
static bool merged;	/* V is not what was appended any more */

/* A client whose keys, values and queries are functions of the position. */
struct one {
	struct ebb *ebb;
	struct ebb_session *session;
	struct ebb_batch *batch;
	uint64_t id;
	uint32_t tokens;
	uint32_t live[LANES];		/* as of the last step, its token included */
	int32_t pos[LANES][MOST];
};

static uint32_t mixed(uint32_t x)
{
	x = (x ^ x >> 16) * 0x7feb352du;
	x = (x ^ x >> 15) * 0x846ca68bu;
	return x ^ x >> 16;
}

static float number(uint32_t what, uint32_t layer, uint32_t head, int32_t pos, uint32_t c)
{
	return (float)(int32_t)mixed(mixed((uint32_t)pos * 31 + what) + layer * 8191 + head * 131 + c) * (2.0f / 2147483648.0f);
}

static json_t *ask(struct one *o, const char *question)
{
	char *text = NULL;
	json_t *json;

	assert_int_equal(ebb_ask(o->ebb, question, &text), 0);
	json = json_loads(text, 0, NULL);
	free(text);
	assert_non_null(json);
	return json;
}

static json_t *ask_session(struct one *o)
{
	char question[40];

	snprintf(question, sizeof(question), "session %llu", (unsigned long long)o->id);
	return ask(o, question);
}

static void open_one(struct one *o, const char *settings)
{
	const struct ebb_options options = { .socket = d.socket, .name = "one" };
	const struct ebb_session_options so = { .n_layers = LAYERS, .n_kv_heads = HEADS, .group = GROUP, .head_dim = DIM,
						.max_tokens = TOKENS, .settings = settings };
	json_t *sessions;

	memset(o, 0, sizeof(*o));
	assert_int_equal(ebb_connect(&o->ebb, &options), 0);
	assert_int_equal(ebb_session_open(o->ebb, &so, &o->session), 0);
	assert_int_equal(ebb_batch_new(o->ebb, &(struct ebb_batch_options){ 0 }, &o->batch), 0);
	assert_int_equal(ebb_batch_join(o->batch, o->session), 0);
	sessions = ask(o, "sessions");
	for (size_t i = 0; i < json_array_size(sessions); i++) {	/* the newest is ours */
		uint64_t id = (uint64_t)json_integer_value(json_object_get(json_array_get(sessions, i), "id"));

		o->id = id > o->id ? id : o->id;
	}
	json_decref(sessions);
	assert_true(o->id > 0);
}

static void close_one(struct one *o)
{
	assert_int_equal(ebb_session_close(o->session), 0);
	ebb_close(o->ebb);
}

/* Attention of query head h over these positions, in double; its largest difference to what came back. */
static double off_by(const struct one *o, uint32_t layer, uint32_t h, const float *got)
{
	const uint32_t head = h / GROUP, lane = layer * HEADS + head;
	double out[DIM] = { 0 }, sum = 0, worst = 0;

	for (uint32_t i = 0; i < o->live[lane]; i++) {
		double logit = 0, p;

		for (uint32_t c = 0; c < DIM; c++)
			logit += (double)number(2, layer, h, (int32_t)o->tokens, c) * (double)number(0, layer, head, o->pos[lane][i], c);
		p = exp(logit * (double)scale);
		sum += p;
		for (uint32_t c = 0; c < DIM; c++)
			out[c] += p * (double)number(1, layer, head, o->pos[lane][i], c);
	}
	for (uint32_t c = 0; c < DIM; c++)
		worst = fmax(worst, fabs(out[c] / sum - (double)got[c]));
	return worst;
}

/* One token. Leaves in o->pos what each lane held while it was attended. */
static void step(struct one *o)
{
	static float k[HEADS * DIM], v[HEADS * DIM], q[HEADS * GROUP * DIM], out[HEADS * GROUP * DIM];
	const struct ebb_tensor K = { k, EBB_F32, 0 }, V = { v, EBB_F32, 0 }, Q = { q, EBB_F32, 0 }, O = { out, EBB_F32, 0 };
	uint32_t n = 1;

	if (ebb_step_begin(o->batch, &n, 20000))
		fail_msg("%s", ebb_error(o->ebb));
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		for (uint32_t c = 0; c < HEADS * DIM; c++) {
			k[c] = number(0, layer, c / DIM, (int32_t)o->tokens, c % DIM);
			v[c] = number(1, layer, c / DIM, (int32_t)o->tokens, c % DIM);
		}
		for (uint32_t c = 0; c < HEADS * GROUP * DIM; c++)
			q[c] = number(2, layer, c / DIM, (int32_t)o->tokens, c % DIM);
		assert_int_equal(ebb_append(o->batch, layer, &K, &V), 0);
		assert_int_equal(ebb_attend(o->batch, layer, &Q, &O, scale, NULL), 0);
		for (uint32_t head = 0; head < HEADS; head++) {
			int live = ebb_lane_read(o->session, layer * HEADS + head, o->pos[layer * HEADS + head], NULL, MOST);

			assert_in_range(live, 1, MOST);
			o->live[layer * HEADS + head] = (uint32_t)live;
		}
		for (uint32_t h = 0; !merged && h < HEADS * GROUP; h++)
			assert_true(off_by(o, layer, h, out + h * DIM) < 1e-4);
	}
}

/* The heat of the open step, right behind the first token of a window: what that token's queries gave. */
static void check_heat(struct one *o, const char *policy)
{
	struct evict_rule rule = { 0 };
	float heat[MOST];
	double sum = 0;

	assert_int_equal(evict_parse(policy, &rule, NULL, 0), 0);
	if (!evict_n_heat(rule.policy) || evict_policies[rule.policy].never_evicts)
		return;
	assert_int_equal(ebb_lane_read(o->session, 1, NULL, heat, MOST), (int)o->live[1]);
	for (uint32_t i = 0; i < o->live[1]; i++) {
		assert_true(heat[i] >= 0.0f);
		sum += (double)heat[i];
	}
	if (rule.heat[0] == EVICT_HEAT_SQUARES)
		assert_true(sum > 0 && sum < GROUP);
	else	/* of one query the sum, the maximum and the last are the same */
		assert_true(fabs(sum - GROUP) < 1e-3);
}

static void end_step(struct one *o)
{
	assert_int_equal(ebb_step_end(o->batch), 0);
	o->tokens++;
}

static int by_value(const void *a, const void *b)
{
	const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

	return x < y ? -1 : x > y;
}

/* Every position of `now` was there `before`, or is the new token's; none twice. */
static void check_subset(const struct one *before, const struct one *now)
{
	static int32_t a[MOST], b[MOST];

	for (uint32_t lane = 0; lane < LANES; lane++) {
		uint32_t at = 0;

		memcpy(a, before->pos[lane], before->live[lane] * sizeof(*a));
		memcpy(b, now->pos[lane], now->live[lane] * sizeof(*b));
		qsort(a, before->live[lane], sizeof(*a), by_value);
		qsort(b, now->live[lane], sizeof(*b), by_value);
		for (uint32_t i = 0; i < now->live[lane]; i++) {
			if (i)
				assert_true(b[i] > b[i - 1]);
			if (b[i] == (int32_t)now->tokens)
				continue;
			while (at < before->live[lane] && a[at] < b[i])
				at++;
			assert_true(at < before->live[lane] && a[at] == b[i]);
		}
		assert_int_equal(b[now->live[lane] - 1], (int32_t)now->tokens);
	}
}

static void change(struct one *o, const char *settings)
{
	int rc = ebb_session_set(o->session, settings);

	if (rc != 1)
		fail_msg("%s: %d %s", settings, rc, rc < 0 ? ebb_error(o->ebb) : "not in force");
}

/* Uniform lanes, budgets as counts: what a lane holds is known exactly. */
static void no_slot_is_lost_that_the_budget_does_not_take(void **state)
{
	static const uint32_t budgets[] = { 96, 160, 64, 96, 300, 96 };
	static struct one o, before;
	uint32_t budget = 96;
	char settings[128], policy[32] = "h2o";
	bool was_full;

	(void)state;
	open_one(&o, "policy=h2o budget=96 floor=40 recent=25% merge=none");
	for (uint32_t flip = 0; flip < 3 * EVICT_N_POLICIES; flip++) {
		uint32_t steps = 1 + mixed(flip) % 40;

		for (uint32_t i = 0; i < steps; i++) {
			step(&o);
			end_step(&o);
		}
		before = o;
		was_full = strcmp(policy, "full") == 0;
		snprintf(policy, sizeof(policy), "%s", evict_policies[flip * 5 % EVICT_N_POLICIES].name);
		budget = budgets[flip % 6];
		snprintf(settings, sizeof(settings), "policy=%s budget=%u observe=1", policy, budget);
		change(&o, settings);
		step(&o);
		check_subset(&before, &o);
		check_heat(&o, policy);
		for (uint32_t lane = 0; lane < LANES; lane++) {
			const uint32_t had = before.live[lane];

			/* After full, what it holds goes at the window's end, when somebody has watched. */
			if (was_full || strcmp(policy, "full") == 0)
				assert_int_equal(o.live[lane], had + 1);
			else
				assert_int_equal(o.live[lane], had + 1 < budget ? had + 1 : budget);
		}
		end_step(&o);
	}
	close_one(&o);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

static void splits_merges_and_the_rest_change_too(void **state)
{
	static const char *const all[] = {
		"split=ada", "policy=tova split=ada:alpha=0.1", "split=pyramid", "policy=roco split=uniform merge=none",
		"split=dynamic policy=snapkv", "observe=3", "observe=0", "observe=1 sinks=9", "split=cake policy=h2o", "floor=80", "pin_prompt=yes recent=8", "prefill=chunked seed=9",
		"policy=rkv split=sparsity", "split=lazy-layer policy=h2o", "policy=full", "policy=lagkv:lag=8 split=uniform", "policy=vatp",
		"policy=h2o floor=40 sinks=2 split=uniform", "merge=cam", "policy=d2o merge=auto", "merge=pivot", "merge=none policy=h2o",
	};
	enum { N = sizeof(all) / sizeof(*all) };
	static struct one o, before;

	(void)state;
	open_one(&o, "policy=h2o budget=96 floor=40 merge=none");
	for (uint32_t round = 0; round < 2 * N; round++) {
		for (uint32_t i = 0; i < 1 + mixed(round) % 50; i++) {
			step(&o);
			end_step(&o);
		}
		before = o;
		merged = merged || strstr(all[round % N], "merge=cam") != NULL;
		change(&o, all[round % N]);
		step(&o);
		check_subset(&before, &o);
		end_step(&o);
	}
	merged = false;
	close_one(&o);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

/* Two policies: after a change and as many windows as the other needs to forget, the sets are those of the new policy from the start. */
static void the_new_policy_decides(void **state)
{
	static struct one a, b;
	const uint32_t tokens = 400;

	(void)state;
	open_one(&a, "policy=streaming budget=64 floor=20 recent=0");
	open_one(&b, "policy=h2o budget=64 floor=20 recent=0");
	for (uint32_t i = 0; i < tokens; i++) {
		if (i == 200)
			change(&b, "policy=streaming");
		step(&a);
		end_step(&a);
		step(&b);
		end_step(&b);
	}
	for (uint32_t lane = 0; lane < LANES; lane++) {	/* the newest 60 and the sinks: whatever h2o had kept is gone */
		assert_int_equal(a.live[lane], b.live[lane]);
		qsort(a.pos[lane], a.live[lane], sizeof(int32_t), by_value);
		qsort(b.pos[lane], b.live[lane], sizeof(int32_t), by_value);
		assert_memory_equal(a.pos[lane] + 16, b.pos[lane] + 16, (a.live[lane] - 16) * sizeof(int32_t));
	}
	close_one(&a);
	close_one(&b);
}

static void what_cannot_be_is_refused_by_name(void **state)
{
	static const struct { const char *settings; int rc; const char *named[3]; } bad[] = {
		{ "policy=nonsense", -EINVAL, { "policy", "nonsense", "tova" } }, { "budget=lots", -EINVAL, { "budget", "lots", "allowed" } },
		{ "budget=0", -EINVAL, { "budget", "'0'", "1 .. " } }, { "window=8", -EINVAL, { "window", "open", "policy, merge" } },
		{ "slots=q8", -EINVAL, { "slots", "open", "allowed" } }, { "split=head", -EINVAL, { "split", "head", "table" } },
		{ "policy=h2o:decay=7", -EINVAL, { "decay", "7", "allowed" } }, { "lanes=/etc/passwd", -EINVAL, { "lanes", "passwd", "allowed" } },
		{ "nothing=1", -EINVAL, { "nothing", "allowed", "policy" } }, { "policy", -EINVAL, { "policy", "key=value", "allowed" } },
		{ "record=sum", -EINVAL, { "record", "open", "allowed" } }, { "split=cake policy=raas:heat", -EINVAL, { "policy", "raas", "allowed" } },
		{ "budget=64 budget=65", -EINVAL, { "budget", "again", "once" } },
	};
	static struct one o;
	json_t *was, *is;

	(void)state;
	open_one(&o, "policy=h2o");
	step(&o);
	end_step(&o);
	was = ask_session(&o);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		int rc = ebb_session_set(o.session, bad[i].settings);

		if (rc != bad[i].rc)
			fail_msg("%s: %d", bad[i].settings, rc);
		for (unsigned k = 0; k < 3; k++)
			if (!strstr(ebb_error(o.ebb), bad[i].named[k]))
				fail_msg("%s: \"%s\" does not name %s", bad[i].settings, ebb_error(o.ebb), bad[i].named[k]);
		assert_int_equal(ebb_set(o.ebb, o.id, bad[i].settings), bad[i].rc);
	}
	is = ask_session(&o);
	assert_true(json_equal(json_object_get(was, "settings"), json_object_get(is, "settings")));
	assert_true(json_is_null(json_object_get(is, "coming")));
	json_decref(was);
	json_decref(is);
	assert_int_equal(ebb_set(o.ebb, 999999, "policy=tova"), -ENOENT);
	assert_int_equal(ebb_set(o.ebb, 0, "policy=tova"), -EINVAL);
	step(&o);
	/* Within a step: when it is over. */
	assert_int_equal(ebb_session_set(o.session, "policy=tova"), 0);
	is = ask_session(&o);
	assert_string_equal(json_string_value(json_object_get(json_object_get(is, "coming"), "policy")), "tova");
	json_decref(is);
	assert_int_equal(ebb_session_set(o.session, "policy=roco budget=77"), 0);	/* in place of the other */
	end_step(&o);
	step(&o);
	is = ask_session(&o);
	assert_string_equal(json_string_value(json_object_get(json_object_get(is, "settings"), "policy")), "roco");
	assert_string_equal(json_string_value(json_object_get(json_object_get(is, "chosen"), "budget")), "77");
	assert_true(json_is_null(json_object_get(is, "coming")));
	json_decref(is);
	end_step(&o);
	close_one(&o);
}

/* As nobody, in a child: 0 if the daemon refuses by right. */
static int as_another_user(uint64_t id)
{
	const struct ebb_options options = { .socket = d.socket, .name = "nobody" };
	struct ebb *ebb;

	if (setgid(65534) || setuid(65534) || ebb_connect(&ebb, &options))
		return 2;
	return ebb_set(ebb, id, "policy=tova") == -EACCES && strstr(ebb_error(ebb), "another user") ? 0 : 1;
}

static void only_those_whose_it_is_may_change_it(void **state)
{
	static struct one o;
	int status;
	pid_t pid;

	(void)state;
	if (geteuid() != 0)
		skip();
	open_one(&o, "policy=h2o");
	assert_int_equal(chmod(d.dir, 0755) | chmod(d.socket, 0666), 0);
	pid = fork();
	if (pid == 0)
		_exit(as_another_user(o.id));
	assert_true(pid > 0 && waitpid(pid, &status, 0) == pid);
	assert_int_equal(status, 0);
	close_one(&o);
}

static void a_full_pool_leaves_a_session_as_it_was(void **state)
{
	static struct one o;
	struct ebb_session *other[256];
	const struct ebb_session_options so = { .n_layers = LAYERS, .n_kv_heads = HEADS, .group = GROUP, .head_dim = DIM, .max_tokens = 500,
						.settings = "policy=full" };
	unsigned n = 0, live;
	uint64_t used;
	json_t *is;

	(void)state;
	open_one(&o, "policy=h2o budget=96 floor=40");
	while (n < 256 && ebb_session_open(o.ebb, &so, &other[n]) == 0)
		n++;
	assert_in_range(n, 10, 255);
	for (uint32_t i = 0; i < 150; i++) {
		step(&o);
		end_step(&o);
	}
	used = (uint64_t)td_number(&d, "status:pools.0.used_bytes");
	assert_int_equal(ebb_session_set(o.session, "policy=full"), -ENOSPC);
	assert_non_null(strstr(ebb_error(o.ebb), "no room"));
	assert_int_equal(td_number(&d, "status:pools.0.used_bytes"), used);
	is = ask_session(&o);
	assert_string_equal(json_string_value(json_object_get(json_object_get(is, "settings"), "policy")), "h2o");
	assert_non_null(strstr(json_string_value(json_object_get(is, "kept_because")), "no room"));
	json_decref(is);
	assert_true(td_log_has(&d, "session_keeps"));
	for (uint32_t i = 0; i < 50; i++) {
		step(&o);
		assert_true(o.live[0] <= 96);
		end_step(&o);
	}
	while (n)
		assert_int_equal(ebb_session_close(other[--n]), 0);
	change(&o, "policy=full");
	live = o.live[0];
	for (uint32_t i = 0; i < 50; i++) {
		step(&o);
		end_step(&o);
	}
	assert_int_equal(o.live[0], live + 50);
	close_one(&o);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

static const char *policy_of(struct one *o, char *out)
{
	json_t *is = ask_session(o);

	snprintf(out, 64, "%s", json_string_value(json_object_get(json_object_get(is, "settings"), "policy")));
	json_decref(is);
	return out;
}

static void a_new_file_reaches_those_that_did_not_choose(void **state)
{
	static struct one follows, chose;
	char text[64];

	(void)state;
	open_one(&follows, "budget=80 merge=none");
	open_one(&chose, "policy=h2o");
	for (unsigned i = 0; i < 2 * EVICT_N_POLICIES; i++) {
		const char *name = evict_policies[i * 7 % EVICT_N_POLICIES].name;
		char ini[512];

		snprintf(ini, sizeof(ini), INI "policy = %s\n", name);
		td_configure(&d, ini);
		td_signal(&d, SIGHUP);
		for (unsigned tries = 0; strcmp(policy_of(&follows, text), name) != 0; tries++) {
			if (tries > 3000)
				fail_msg("the policy stays %s instead of %s", text, name);
			step(&follows);
			end_step(&follows);
			step(&chose);
			end_step(&chose);
			td_nap_us(500);
		}
		assert_string_equal(policy_of(&chose, text), "h2o");
	}
	td_configure(&d, INI);
	td_signal(&d, SIGHUP);
	close_one(&follows);
	close_one(&chose);
}

/* Flips the policy of the session with this pid until it is gone; returns how often. */
static unsigned flip(pid_t pid, unsigned most)
{
	const struct ebb_options options = { .socket = d.socket, .name = "flip" };
	unsigned n = 0, gone = 0;
	struct ebb *ebb;

	assert_int_equal(ebb_connect(&ebb, &options), 0);
	while (n < most && gone < 2000) {
		char *text, settings[128];
		json_t *list, *s;
		bool found = false;
		size_t i;

		assert_int_equal(ebb_ask(ebb, "sessions", &text), 0);
		list = json_loads(text, 0, NULL);
		free(text);
		json_array_foreach(list, i, s) {
			if (json_integer_value(json_object_get(s, "pid")) != pid)
				continue;
			found = true;
			if (n == most || json_is_true(json_object_get(s, "changing")))	/* it has several sessions */
				continue;
			snprintf(settings, sizeof(settings), "policy=%s split=%s budget=%u", evict_policies[1 + n % (EVICT_N_POLICIES - 1)].name,
				 n % 3 ? "uniform" : "pyramid", 60 + n % 5 * 30);
			if (ebb_set(ebb, (uint64_t)json_integer_value(json_object_get(s, "id")), settings) >= 0)
				n++;
		}
		json_decref(list);
		gone = found ? 0 : gone + 1;
		td_nap_us(1000);
	}
	ebb_close(ebb);
	return n;
}

static void neighbours_notice_nothing(void **state)
{
	struct traffic_spec neighbour = { .settings = "policy=h2o budget=96", .n_sessions = 2, .prompt = 200, .tokens = 3000, .seed = 5 };
	struct traffic_spec flipped = { .name = "flipped", .n_sessions = 2, .prompt = 100, .tokens = 60000, .pause_us = 100, .seed = 6 };
	uint64_t alone;
	pid_t pid[2];

	(void)state;
	alone = traffic_run(d.socket, &neighbour, &report[0]);
	pid[1] = traffic_start(d.socket, &flipped, &report[1]);
	traffic_await(&report[1].tokens, 101);
	pid[0] = traffic_start(d.socket, &neighbour, &report[0]);
	assert_int_equal(flip(pid[1], 200), 200);
	assert_int_equal(traffic_wait(pid[0]), 0);
	assert_int_equal(report[0].hash, alone);
	traffic_stop(&report[1]);
	assert_int_equal(traffic_wait(pid[1]), 0);
	assert_int_equal(report[1].rc, 0);
	td_await(&d, "status:pools.0.used_bytes", 0);
	assert_false(td_log_has(&d, "client_dropped"));
}

/* A real model, decoding while its policy changes a hundred times; it ends well, and has said something all the time. */
static void a_model_decodes_while_its_policy_flips(void **state)
{
	static struct tl t;
	unsigned flips;
	long pid = 0;

	(void)state;
	tl_run(&t, "$BIN/ebb-llama -m $MODEL --socket %s -p 'Once upon a time' -n 700 --ignore-eos --json >$DIR/json 2>$DIR/err & echo $! >$DIR/pid",
	       d.socket);
	tl_run(&t, "cat $DIR/pid");
	pid = atol(t.out);
	assert_true(pid > 0);
	flips = flip((pid_t)pid, 100);
	assert_int_equal(flips, 100);
	tl_run(&t, "while kill -0 %ld 2>/dev/null; do sleep 0.2; done; cat $DIR/json; cat $DIR/err >&2", pid);
	if (!strstr(t.out, "{"))
		fail_msg("%s", t.err);
	assert_non_null(strstr(t.out, "\"finish\": \"length\""));
	td_await(&d, "status:pools.0.used_bytes", 0);
}

static int start(void **state)
{
	*state = &d;
	report = traffic_reports(4);
	td_start(&d, INI);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_slot_is_lost_that_the_budget_does_not_take),
		cmocka_unit_test(splits_merges_and_the_rest_change_too),
		cmocka_unit_test(the_new_policy_decides),
		cmocka_unit_test(what_cannot_be_is_refused_by_name),
		cmocka_unit_test(only_those_whose_it_is_may_change_it),
		cmocka_unit_test(a_full_pool_leaves_a_session_as_it_was),
		cmocka_unit_test(a_new_file_reaches_those_that_did_not_choose),
		cmocka_unit_test(neighbours_notice_nothing),
		cmocka_unit_test(a_model_decodes_while_its_policy_flips),
	};

	return cmocka_run_group_tests(tests, start, td_teardown);
}
