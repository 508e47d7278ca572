#include "tests/lib/traffic.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu/gpu.h"
#include "libclient/ebb.h"
#include "tests/lib/daemon.h"

#define MAX_SESSIONS 64u

struct traffic {
	struct traffic_spec spec;
	struct traffic_report *report;
	struct ebb *ebb;
	struct ebb_session *session[MAX_SESSIONS];
	struct ebb_batch *batch;
	struct gpu_device *dev;
	gpu_stream stream;
	struct gpu_slab slab;		/* k, v, q, out, one behind the other, on the device */
	float *host;			/* the same, here */
	size_t kv_floats, q_floats;	/* of one row */
	uint32_t max_rows;
	uint32_t passed;		/* of the point to die at */
	uint64_t lot;
};

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ull;
	return x ^ x >> 33;
}

static void store(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static void on_alarm(int sig)
{
	(void)sig;
	raise(SIGKILL);
}

/* Die here, or soon: within the given time. */
static void maybe_die(struct traffic *t, enum traffic_point at, unsigned within_us)
{
	struct itimerval timer = { { 0, 0 }, { 0, 0 } };

	if (t->spec.die_at != at || t->passed++ != t->spec.die_step)
		return;
	if (within_us == 0)
		raise(SIGKILL);
	t->lot = mix(t->lot + 1);
	timer.it_value.tv_usec = 1 + (long)(t->lot % within_us);
	signal(SIGALRM, on_alarm);
	setitimer(ITIMER_REAL, &timer, NULL);
}

static int complain(struct traffic *t, int rc, const char *what, const char *why)
{
	if (!t->report->rc) {
		t->report->rc = rc;
		snprintf(t->report->error, sizeof(t->report->error), "%s: %d (%s): %s", what, rc, strerror(-rc), why);
	}
	return rc;
}

/* --- numbers ---------------------------------------------------------------------------------------------------------------- */

static void fill(float *x, size_t n, uint64_t seed)
{
	uint64_t s = mix(seed) | 1;

	for (size_t i = 0; i < n; i++) {
		s ^= s << 13;
		s ^= s >> 7;
		s ^= s << 17;
		x[i] = (float)(int32_t)(s >> 32) * (1.5f / 2147483648.0f);
	}
}

static int make_rows(struct traffic *t, const uint32_t *n, const uint32_t *pos, uint32_t layer)
{
	float *k = t->host, *v = k + t->max_rows * t->kv_floats, *q = v + t->max_rows * t->kv_floats;
	size_t row = 0;

	for (uint32_t i = 0; i < t->spec.n_sessions; i++)
		for (uint32_t j = 0; j < n[i]; j++, row++) {
			uint64_t seed = mix(t->spec.seed) + mix((uint64_t)i << 40 | (uint64_t)(pos[i] + j) << 8 | layer);

			fill(k + row * t->kv_floats, t->kv_floats, seed);
			fill(v + row * t->kv_floats, t->kv_floats, seed + 1);
			fill(q + row * t->q_floats, t->q_floats, seed + 2);
		}
	return gpu_write(t->dev, t->stream, t->slab.base, t->host, (2 * t->kv_floats + t->q_floats) * t->max_rows * sizeof(float));
}

static int take_outputs(struct traffic *t, uint32_t rows)
{
	size_t at = (2 * t->kv_floats + t->q_floats) * t->max_rows, n = rows * t->q_floats;
	uint64_t hash = t->report->hash;
	int rc = gpu_read(t->dev, t->stream, t->host + at, (float *)t->slab.base + at, n * sizeof(float));

	for (size_t i = 0; i < n; i++) {
		uint32_t bits;

		memcpy(&bits, t->host + at + i, sizeof(bits));
		hash = (hash ^ bits) * 0x100000001b3ull;
	}
	store(&t->report->hash, hash);
	return rc;
}

/* --- one step ---------------------------------------------------------------------------------------------------------------- */

static int layers(struct traffic *t, const uint32_t *n, const uint32_t *pos, uint32_t rows, bool prefill)
{
	float *base = t->slab.base;
	struct ebb_tensor k = { .data = base }, v = { .data = base + t->max_rows * t->kv_floats };
	struct ebb_tensor q = { .data = base + 2 * t->max_rows * t->kv_floats };
	struct ebb_tensor out = { .data = base + (2 * t->kv_floats + t->q_floats) * t->max_rows };
	int rc = 0;

	for (uint32_t layer = 0; layer < t->spec.n_layers && !rc; layer++) {
		rc = make_rows(t, n, pos, layer);
		if (!rc)
			rc = ebb_append(t->batch, layer, &k, &v);
		if (prefill)
			maybe_die(t, AT_PREFILL, 0);
		if (layer == t->spec.n_layers / 2)
			maybe_die(t, AT_APPENDED, 0);
		if (!rc)
			rc = ebb_attend(t->batch, layer, &q, &out, 0.125f, NULL);
		if (!rc)
			rc = take_outputs(t, rows);
	}
	return rc;
}

static int step(struct traffic *t, uint32_t ask)
{
	uint32_t n[MAX_SESSIONS], pos[MAX_SESSIONS], rows = 0;
	struct ebb_stats stats;
	uint32_t least = UINT32_MAX;
	bool prefill = ask > 1;
	int rc;

	for (uint32_t i = 0; i < t->spec.n_sessions; i++) {
		pos[i] = ebb_session_tokens(t->session[i]);
		n[i] = pos[i] < t->spec.tokens ? ask < t->spec.tokens - pos[i] ? ask : t->spec.tokens - pos[i] : 0;
	}
	rc = ebb_step_begin(t->batch, n, -1);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < t->spec.n_sessions; i++) {
		t->report->fewer += n[i] < ask;
		rows += n[i];
	}
	maybe_die(t, AT_BEGUN, 0);
	rc = layers(t, n, pos, rows, prefill);
	if (rc)
		return rc;
	maybe_die(t, AT_WORKED, 0);
	if (!prefill && (pos[0] + 1) % 16 == 0)
		maybe_die(t, AT_HANDED, 400);
	rc = ebb_step_end(t->batch);
	for (uint32_t i = 0; i < t->spec.n_sessions; i++)
		if (pos[i] + n[i] < least)
			least = pos[i] + n[i];
	ebb_session_stats(t->session[0], &stats);
	t->report->budget = stats.budget;
	store(&t->report->live, stats.live_slots);
	store(&t->report->evicted, stats.evicted);
	store(&t->report->tokens, least);
	return rc;
}

/* --- a round ------------------------------------------------------------------------------------------------------------------- */

static int open_sessions(struct traffic *t)
{
	const struct traffic_spec *s = &t->spec;
	struct ebb_session_options o = {
		.n_layers = s->n_layers, .n_kv_heads = s->n_kv_heads, .group = s->group, .head_dim = s->head_dim,
		.max_tokens = s->max_tokens, .prompt_tokens = s->announce_prompt ? s->prompt : 0, .settings = s->settings,
		.wait_ms = s->wait_ms,
	};
	int rc = 0;

	for (uint32_t i = 0; i < s->n_sessions && !rc; i++) {
		rc = ebb_session_open(t->ebb, &o, &t->session[i]);
		if (!rc)
			rc = ebb_batch_join(t->batch, t->session[i]);
	}
	__atomic_store_n(&t->report->opened, !rc, __ATOMIC_RELEASE);
	return rc;
}

static int round_of(struct traffic *t)
{
	int rc;

	t->report->hash = 0xcbf29ce484222325ull;
	store(&t->report->tokens, 0);
	rc = open_sessions(t);
	maybe_die(t, AT_OPENED, 0);
	while (!rc && t->report->tokens < t->spec.tokens && !__atomic_load_n(&t->report->stop, __ATOMIC_ACQUIRE)) {
		uint64_t at = t->report->tokens, left = t->spec.prompt - (at < t->spec.prompt ? at : t->spec.prompt);

		rc = step(t, left ? left < t->spec.chunk ? (uint32_t)left : t->spec.chunk : 1);
		if (t->spec.pause_us)
			td_nap_us(t->spec.pause_us);
	}
	if (!rc && t->spec.hang) {
		uint32_t n[MAX_SESSIONS];

		for (uint32_t i = 0; i < t->spec.n_sessions; i++)
			n[i] = 1;
		rc = ebb_step_begin(t->batch, n, -1);
		__atomic_store_n(&t->report->ended, 1, __ATOMIC_RELEASE);
		while (!rc)
			pause();
	}
	if (rc)
		return complain(t, rc, "round", ebb_error(t->ebb));
	maybe_die(t, AT_CLOSING, 300);
	for (uint32_t i = 0; i < t->spec.n_sessions && !rc; i++)
		rc = ebb_session_close(t->session[i]);
	if (rc)
		return complain(t, rc, "close", ebb_error(t->ebb));
	store(&t->report->rounds, t->report->rounds + 1);
	return 0;
}

static int set_up(struct traffic *t, const char *socket)
{
	struct traffic_spec *s = &t->spec;
	char why[256] = "";
	struct ebb_options o = { .socket = socket, .name = s->name ? s->name : "traffic", .no_uring = s->no_uring,
				 .why = why, .why_bytes = sizeof(why) };
	struct ebb_batch_options b;
	struct ebb_pool_info pool;
	char device[32] = "host";
	size_t floats;
	int rc = ebb_connect(&t->ebb, &o);

	if (!rc)
		rc = ebb_pool(t->ebb, 0, &pool);
	if (rc)
		return complain(t, rc, "connect", why);
	if (pool.is_cuda)
		snprintf(device, sizeof(device), "cuda:%d", pool.ordinal);
	__atomic_store_n(&t->report->connected, 1, __ATOMIC_RELEASE);
	maybe_die(t, AT_CONNECTED, 0);
	t->kv_floats = (size_t)s->n_kv_heads * s->head_dim;
	t->q_floats = t->kv_floats * s->group;
	t->max_rows = s->chunk * s->n_sessions;
	floats = 2 * (t->kv_floats + t->q_floats) * t->max_rows;
	t->host = calloc(floats, sizeof(float));
	rc = t->host ? gpu_open(&t->dev, device) : -ENOMEM;
	if (!rc)
		rc = gpu_slab_new(t->dev, floats * sizeof(float), 0, &t->slab);
	if (!rc)
		rc = gpu_stream_new(t->dev, &t->stream);
	if (rc)
		return complain(t, rc, "device", "");
	b = (struct ebb_batch_options){ .stream = t->stream, .max_sessions = s->n_sessions, .max_rows = t->max_rows };
	rc = ebb_batch_new(t->ebb, &b, &t->batch);
	return rc ? complain(t, rc, "batch", ebb_error(t->ebb)) : 0;
}

static void defaults(struct traffic_spec *s)
{
	s->n_layers = s->n_layers ? s->n_layers : 2;
	s->n_kv_heads = s->n_kv_heads ? s->n_kv_heads : 2;
	s->group = s->group ? s->group : 3;
	s->head_dim = s->head_dim ? s->head_dim : 64;
	s->n_sessions = s->n_sessions ? s->n_sessions : 1;
	s->chunk = s->chunk ? s->chunk : 64;
	s->max_tokens = s->max_tokens ? s->max_tokens : s->tokens + s->hang;
	s->rounds = s->rounds ? s->rounds : 1;
}

static int child(const char *socket, const struct traffic_spec *spec, struct traffic_report *report)
{
	struct traffic t = { .spec = *spec, .report = report, .lot = spec->seed };
	int rc;

	defaults(&t.spec);
	if (t.spec.n_sessions > MAX_SESSIONS)
		return complain(&t, -EINVAL, "sessions", "too many");
	rc = set_up(&t, socket);
	for (uint32_t i = 0; i < t.spec.rounds && !rc && !__atomic_load_n(&report->stop, __ATOMIC_ACQUIRE); i++)
		rc = round_of(&t);
	ebb_close(t.ebb);
	if (t.stream)
		gpu_stream_free(t.dev, t.stream);
	if (t.slab.base)
		gpu_slab_free(t.dev, &t.slab);
	if (t.dev)
		gpu_close(t.dev);
	free(t.host);
	__atomic_store_n(&report->ended, 1, __ATOMIC_RELEASE);
	return rc;
}

struct traffic_report *traffic_reports(unsigned n)
{
	void *p = mmap(NULL, n * sizeof(struct traffic_report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(p != MAP_FAILED);
	return p;
}

pid_t traffic_start(const char *socket, const struct traffic_spec *spec, struct traffic_report *report)
{
	pid_t pid;

	memset(report, 0, sizeof(*report));
	fflush(stdout);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		static const int fatal[] = { SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL };

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (unsigned i = 0; i < sizeof(fatal) / sizeof(*fatal); i++)
			signal(fatal[i], SIG_DFL);	/* cmocka's handlers would go on with the suite, in the child */
		if (spec->uid && (setgid((gid_t)spec->uid) || setuid(spec->uid)))
			_exit(2);
		_exit(child(socket, spec, report) ? 1 : 0);
	}
	return pid;
}

int traffic_wait(pid_t pid)
{
	uint64_t until = td_now_ns() + 4 * TD_PATIENCE_S * 1000000000ull;
	int status;
	pid_t got;

	while ((got = waitpid(pid, &status, WNOHANG)) == 0 && td_now_ns() < until)
		td_nap_us(500);
	if (got == 0) {
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		fail_msg("a client hangs");
	}
	assert_int_equal(got, pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

uint64_t traffic_run(const char *socket, const struct traffic_spec *spec, struct traffic_report *report)
{
	int code = traffic_wait(traffic_start(socket, spec, report));

	if (code)
		print_message("client: exit %d, %s\n", code, report->error);
	assert_int_equal(code, 0);
	return report->hash;
}

void traffic_await(const uint64_t *word, uint64_t at_least)
{
	uint64_t until = td_now_ns() + TD_PATIENCE_S * 1000000000ull;

	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) < at_least) {
		if (td_now_ns() > until)
			fail_msg("a client does not get to %llu, it is at %llu", (unsigned long long)at_least, (unsigned long long)*word);
		td_nap_us(200);
	}
}

void traffic_await_flag(const uint32_t *word)
{
	uint64_t until = td_now_ns() + TD_PATIENCE_S * 1000000000ull;

	while (!__atomic_load_n(word, __ATOMIC_ACQUIRE)) {
		if (td_now_ns() > until)
			fail_msg("a client does not get there");
		td_nap_us(200);
	}
}

void traffic_stop(struct traffic_report *report)
{
	__atomic_store_n(&report->stop, 1, __ATOMIC_RELEASE);
}
