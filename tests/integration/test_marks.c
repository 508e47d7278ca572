/*
 * Tags, pins and drops through the real daemon. What is dropped is gone from the named layers and nowhere else, its memory is back
 * when the call returns, and what attention then gives is what ebb_local() gives after the same drop, bit for bit. What is pinned stays,
 * and the policies that know modalities do with tags what they say. Neighbours in other processes notice nothing. Host pool; the
 * client is in this process, so that it can look into its lanes and ask the daemon.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "libclient/ebb.h"
#include "tests/lib/daemon.h"
#include "tests/lib/raw.h"
#include "tests/lib/traffic.h"

enum { LAYERS = 6, HEADS = 2, LANES = LAYERS * HEADS, GROUP = 3, DIM = 64, MOST = 64, MAX = 2048 };

static struct td d;

struct client {
	struct ebb *ebb;
	struct ebb_session *session;
	struct ebb_batch *batch;
	uint64_t hash;		/* of all outputs */
	const uint32_t *as;	/* the steps shall be as long as these; NULL: as long as they may */
	uint32_t n_steps, steps[MAX];
};

static float kv[2][MOST * HEADS * DIM], q[MOST * HEADS * GROUP * DIM], out[MOST * HEADS * GROUP * DIM];

static void fill(float *x, size_t n, uint64_t seed)
{
	uint64_t s = (seed + 1) * 0x9e3779b97f4a7c15ull | 1;

	for (size_t i = 0; i < n; i++) {
		s ^= s << 13;
		s ^= s >> 7;
		s ^= s << 17;
		x[i] = (float)(int32_t)(s >> 32) * (2.0f / 2147483648.0f);
	}
}

static void must(struct client *c, int rc)
{
	if (rc)
		fail_msg("%d: %s", rc, c->ebb ? ebb_error(c->ebb) : "no connection");
}

static void begin(struct client *c, int local, const char *settings, uint32_t prompt)
{
	struct ebb_options o = { .socket = d.socket, .name = "marks" };
	struct ebb_batch_options b = { .max_sessions = 1 };
	struct ebb_session_options s = { .n_layers = LAYERS, .n_kv_heads = HEADS, .group = GROUP, .head_dim = DIM, .max_tokens = MAX,
					 .prompt_tokens = prompt, .settings = settings };

	*c = (struct client){ .hash = 0xcbf29ce484222325ull };
	must(c, local ? ebb_local(&c->ebb, &o) : ebb_connect(&c->ebb, &o));
	must(c, ebb_session_open(c->ebb, &s, &c->session));
	must(c, ebb_batch_new(c->ebb, &b, &c->batch));
	must(c, ebb_batch_join(c->batch, c->session));
}

static void end(struct client *c)
{
	assert_int_equal(ebb_session_close(c->session), 0);
	ebb_close(c->ebb);
}

/* One step of n tokens; the positions that every lane holds in it, sorted, into pos[lane] and how many into live[lane]; NULL: not asked. */
static uint32_t step(struct client *c, uint32_t n, int32_t (*pos)[MAX], uint32_t *live)
{
	const struct ebb_tensor k = { .data = kv[0] }, v = { .data = kv[1] }, query = { .data = q }, result = { .data = out };
	const uint32_t first = ebb_session_tokens(c->session);

	n = c->as ? c->as[c->n_steps] : n;
	must(c, ebb_step_begin(c->batch, &n, -1));
	c->steps[c->n_steps++] = n;
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		for (uint32_t i = 0; i < n; i++) {
			const uint64_t seed = (uint64_t)(first + i) << 8 | layer;

			fill(kv[0] + i * HEADS * DIM, HEADS * DIM, seed);
			fill(kv[1] + i * HEADS * DIM, HEADS * DIM, seed + 1000003);
			fill(q + i * HEADS * GROUP * DIM, HEADS * GROUP * DIM, seed + 7919);
		}
		must(c, ebb_append(c->batch, layer, &k, &v));
		must(c, ebb_attend(c->batch, layer, &query, &result, 0.125f, NULL));
		for (size_t i = 0; i < n * HEADS * GROUP * DIM; i++) {
			uint32_t bits;

			memcpy(&bits, &out[i], sizeof(bits));
			c->hash = (c->hash ^ bits) * 0x100000001b3ull;
		}
	}
	for (uint32_t lane = 0; pos && lane < LANES; lane++) {
		int got = ebb_lane_read(c->session, lane, pos[lane], NULL, MAX);

		assert_true(got > 0 && got <= MAX);
		live[lane] = (uint32_t)got;
	}
	must(c, ebb_step_end(c->batch));
	return n;
}

static void feed(struct client *c, uint32_t tokens, uint32_t at_once)
{
	while (tokens)
		tokens -= step(c, at_once < tokens ? at_once : tokens, NULL, NULL);
}

static int holds(const int32_t *pos, uint32_t live, int32_t which)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < live; i++)
		n += pos[i] == which;
	assert_true(n <= 1);
	return n == 1;
}

/* --- drops --------------------------------------------------------------------------------------------------------------------- */

static void what_is_dropped_is_gone_there_and_nowhere_else(void **state)
{
	static int32_t pos[LANES][MAX];
	uint32_t live[LANES];
	struct ebb_stats stats;
	struct client c;
	int64_t before, pool;

	(void)state;
	begin(&c, 0, "policy=full slots=f32", 0);
	feed(&c, 1000, 64);
	before = td_number(&d, "sessions:0.used_bytes");
	pool = td_number(&d, "status:pools.0.used_bytes");
	must(&c, ebb_session_drop(c.session, 300, 400, 2));
	/* 400 tokens of 4 layers x 2 heads: 25 pages of 16 slots in each lane, K and V of 64 float32. At once: the call has returned. */
	assert_true(before - td_number(&d, "sessions:0.used_bytes") >= 8ll * 25 * 16 * 2 * 64 * 4);
	assert_true(pool - td_number(&d, "status:pools.0.used_bytes") >= 8ll * 25 * 16 * 2 * 64 * 4);
	assert_int_equal(td_number(&d, "sessions:0.slots_dropped"), 8 * 400);
	ebb_session_stats(c.session, &stats);
	assert_int_equal(stats.live_slots, 12 * 1000 - 8 * 400);
	assert_int_equal(stats.evicted, 8 * 400);
	step(&c, 1, pos, live);
	for (uint32_t lane = 0; lane < LANES; lane++) {
		assert_int_equal(live[lane], lane / HEADS < 2 ? 1001 : 601);
		for (int32_t p = 0; p <= 1000; p++)
			assert_int_equal(holds(pos[lane], live[lane], p), lane / HEADS < 2 || p < 300 || p >= 700);
	}
	feed(&c, MAX - 1001, 64);	/* to its very end: what a full session was promised is still there */
	ebb_session_stats(c.session, &stats);
	assert_int_equal(stats.tokens, MAX);
	end(&c);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

/* The same, many times over, at odd places: single tokens, nothing, everything, twice the same, in the middle of windows. */
static void drop_here_and_there(struct client *c)
{
	struct ebb_mark many[100];

	feed(c, 77, 64);
	must(c, ebb_session_drop(c->session, 0, 0, 0));
	must(c, ebb_session_drop(c->session, 76, 1, 5));
	feed(c, 40, 1);
	for (uint32_t i = 0; i < 100; i++)
		many[i] = (struct ebb_mark){ .what = EBB_DROP, .first = i, .n = 1 + i % 3, .value = i % LAYERS };
	must(c, ebb_session_mark(c->session, many, 100));
	feed(c, 300, 33);
	must(c, ebb_session_drop(c->session, 100, 200, 3));
	must(c, ebb_session_drop(c->session, 150, 250, 1));
	must(c, ebb_session_drop(c->session, 150, 250, 4));
	feed(c, 100, 7);
	must(c, ebb_session_drop(c->session, 0, 517, 5));		/* all that the last layer has */
	must(c, ebb_session_drop(c->session, 0, 517, 2));
	feed(c, 200, 64);
}

static void attention_after_drops_is_that_of_a_local_cache(void **state)
{
	static const char *const settings[] = { "policy=full slots=f32", "policy=h2o budget=2048 slots=bf16 window=16",
						"policy=full slots=q8", "policy=h2o budget=2048 slots=f16 split=ada" };
	static const char *const same[] = { "slots=f32", "slots=bf16", "slots=q8", "slots=f16" };
	struct ebb_stats there, here;
	static struct client remote, local;

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		begin(&remote, 0, settings[i], 0);
		drop_here_and_there(&remote);
		begin(&local, 1, same[i], 0);
		local.as = remote.steps;
		drop_here_and_there(&local);
		assert_true(remote.hash == local.hash);
		ebb_session_stats(remote.session, &there);
		ebb_session_stats(local.session, &here);
		assert_int_equal(there.tokens, here.tokens);
		assert_int_equal(there.evicted, here.evicted);
		assert_true(here.evicted > 1000);
		end(&local);
		end(&remote);
	}
}

/* Another policy and a drop meet in one turn, in either order, and while the change before still waits for the window's end. */
static void change_and_drop(struct client *c, int local)
{
	static const char *const to[] = { "policy=h2o", "policy=tova split=ada", "policy=roco split=uniform", "policy=keydiff",
					  "policy=rkv split=pyramid", "policy=streaming", "policy=full" };

	for (uint32_t i = 0; i < 28; i++) {
		feed(c, 5 + 7 * (i % 5), i % 3 ? 64 : 1);
		/* With room for everything only the drops take slots away, whatever the policy. */
		if (!local && i % 2)
			assert_in_range(ebb_session_set(c->session, to[i % 7]), 0, 1);
		must(c, ebb_session_drop(c->session, 5 * i, 4, i % LAYERS));
		if (!local && !(i % 2))
			assert_in_range(ebb_session_set(c->session, to[i % 7]), 0, 1);
		if (i % 4 == 3)
			must(c, ebb_session_drop(c->session, 5 * i - 3, 6, 1));
	}
	feed(c, 200, 64);
	must(c, ebb_session_drop(c->session, 0, 1, 0));		/* is gone already: a turn, so that the statistics are of now */
}

static void a_drop_and_another_policy_meet(void **state)
{
	struct ebb_stats there, here;
	static struct client remote, local;

	(void)state;
	begin(&remote, 0, "policy=h2o budget=2048 slots=f32 window=16", 0);
	change_and_drop(&remote, 0);
	begin(&local, 1, "slots=f32", 0);
	local.as = remote.steps;
	change_and_drop(&local, 1);
	assert_true(remote.hash == local.hash);
	ebb_session_stats(remote.session, &there);
	ebb_session_stats(local.session, &here);
	assert_int_equal(there.tokens, here.tokens);
	assert_int_equal(there.evicted, here.evicted);
	assert_int_equal(there.live_slots, here.live_slots);
	assert_true(here.evicted > 500);
	end(&local);
	end(&remote);
}

static void dropped_slots_make_room_for_new_tokens_under_a_budget(void **state)
{
	static int32_t pos[LANES][MAX];
	uint32_t live[LANES];
	struct client c;

	(void)state;
	begin(&c, 0, "policy=h2o budget=256 slots=bf16 recent=32", 0);
	feed(&c, 600, 32);
	must(&c, ebb_session_drop(c.session, 0, 590, 3));	/* below the floor: what is left are ten tokens */
	step(&c, 1, pos, live);
	for (uint32_t lane = 0; lane < LANES; lane++) {
		if (lane / HEADS >= 3)
			assert_int_equal(live[lane], 11);
		else
			assert_true(live[lane] >= 224 && live[lane] <= 256);
		for (uint32_t i = 0; lane / HEADS >= 3 && i < live[lane]; i++)
			assert_true(pos[lane][i] >= 590);
	}
	feed(&c, 500, 32);
	step(&c, 1, pos, live);
	for (uint32_t lane = 0; lane < LANES; lane++)
		assert_true(live[lane] >= 224 && live[lane] <= 256);
	end(&c);
}

/* --- pins ---------------------------------------------------------------------------------------------------------------------- */

static void pinned_tokens_stay_while_others_can_go(void **state)
{
	static const char *const policy[] = { "streaming", "h2o", "roco", "keydiff", "random:pin_prompt=no", "nacl", "d2o" };
	static int32_t pos[LANES][MAX];
	char settings[128];
	uint32_t live[LANES];
	struct client c;

	(void)state;
	for (unsigned i = 0; i < sizeof(policy) / sizeof(*policy); i++) {
		snprintf(settings, sizeof(settings), "policy=%.*s budget=192 slots=bf16 recent=32 pin_prompt=no",
			 (int)strcspn(policy[i], ":"), policy[i]);
		begin(&c, 0, settings, 0);
		must(&c, ebb_session_pin(c.session, 700, 20));	/* to come */
		feed(&c, 101, 32);
		must(&c, ebb_session_pin(c.session, 20, 60));	/* in the middle of a window: those already named are named no more */
		must(&c, ebb_session_pin(c.session, 80, 10));
		must(&c, ebb_session_unpin(c.session, 85, 10));
		feed(&c, 900, 32);
		step(&c, 1, pos, live);
		for (uint32_t lane = 0; lane < LANES; lane++) {
			for (int32_t p = 20; p < 85; p++)
				assert_true(holds(pos[lane], live[lane], p));
			for (int32_t p = 700; p < 720; p++)
				assert_true(holds(pos[lane], live[lane], p));
			assert_true(live[lane] <= 192);
		}
		if (i == 0)	/* streaming: what nobody pins is long gone */
			for (int32_t p = 85; p < 100; p++)
				assert_false(holds(pos[0], live[0], p));
		must(&c, ebb_session_unpin(c.session, 0, MAX));
		feed(&c, 300, 32);
		step(&c, 1, pos, live);
		if (i == 0)
			for (int32_t p = 20; p < 85; p++)
				assert_false(holds(pos[0], live[0], p));
		end(&c);
	}
}

static void more_pins_than_slots_do_not_enlarge_the_budget(void **state)
{
	static int32_t pos[LANES][MAX];
	uint32_t live[LANES];
	struct client c;

	(void)state;
	begin(&c, 0, "policy=h2o budget=128 slots=bf16 recent=16", 0);
	must(&c, ebb_session_pin(c.session, 0, MAX));
	feed(&c, 700, 32);
	step(&c, 1, pos, live);
	for (uint32_t lane = 0; lane < LANES; lane++)
		assert_true(live[lane] >= 96 && live[lane] <= 128);
	end(&c);
}

/* --- tags ---------------------------------------------------------------------------------------------------------------------- */

/* Positions from first to end - 1 among them. */
static uint32_t count(const int32_t *pos, uint32_t live, int32_t first, int32_t end)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < live; i++)
		n += pos[i] >= first && pos[i] < end;
	return n;
}

static void look_m_lets_images_go_before_text(void **state)
{
	static int32_t pos[LANES][MAX];
	uint32_t live[LANES];
	struct client c;

	(void)state;
	for (int tags = 0; tags < 2; tags++) {
		begin(&c, 0, "policy=look-m budget=256 slots=bf16 recent=16 prefill=whole", 384);
		if (tags)
			must(&c, ebb_session_tag(c.session, 100, 200, 1));
		feed(&c, 384, 64);
		step(&c, 1, pos, live);		/* 184 of text and 200 of an image came; 256 stayed, and the new token took one's slot */
		for (uint32_t lane = 0; lane < LANES; lane++) {
			const uint32_t images = count(pos[lane], live[lane], 100, 300);

			assert_int_equal(live[lane], 256);
			if (tags)
				assert_int_equal(images, 71);
			else
				assert_true(images > 90);
		}
		end(&c);
	}
}

static void csp_keeps_a_share_for_the_other_modality(void **state)
{
	static int32_t pos[LANES][MAX];
	uint32_t live[LANES];
	struct client c;

	(void)state;
	begin(&c, 0, "policy=csp:cross=0.25 budget=256 slots=bf16 recent=32 sinks=4 prefill=whole", 576);
	must(&c, ebb_session_tag(c.session, 50, 300, 7));
	feed(&c, 576, 64);
	step(&c, 1, pos, live);
	for (uint32_t lane = 0; lane < LANES; lane++) {
		/* 256 slots; 4 sinks and 32 recent ones are protected: a quarter of the other 220 are images. */
		assert_int_equal(live[lane], 256);
		assert_in_range(count(pos[lane], live[lane], 50, 350), 54, 55);
	}
	end(&c);
}

/* The client's attend leaves queries up to the last image out, to the token; a second image counts from when it is said that there is one. */
static void vl_cache_takes_heat_from_behind_the_last_image(void **state)
{
	static const struct ebb_mark retagged[2] = { { EBB_TAG, 50, 25, 3 }, { EBB_TAG, 40, 60, 0 } };
	static float heat[MAX];
	struct client c;

	(void)state;
	begin(&c, 0, "policy=vl-cache budget=2048 slots=f32 split=sparsity", 300);
	must(&c, ebb_session_tag(c.session, 20, 30, 2));
	for (uint32_t at = 0; at < 160; at++) {
		const struct ebb_tensor t = { .data = kv[0] }, query = { .data = q }, result = { .data = out };
		const int seen = at < 100 ? at >= 50 : at < 120 || at >= 150;
		uint32_t n = 1;
		float sum = 0.0f;
		int live;

		if (at == 100) {	/* another image, which is none after all; then one to come */
			must(&c, ebb_session_mark(c.session, retagged, 2));
			must(&c, ebb_session_tag(c.session, 20, 30, 0));
		}
		if (at == 120)
			must(&c, ebb_session_tag(c.session, 140, 10, 1));
		if (at % 32 == 0 || at == 50 || at == 150)	/* so that the heat seen below is this query's: a call ends the window */
			must(&c, ebb_session_tag(c.session, MAX - 1, 1, 0));
		must(&c, ebb_step_begin(c.batch, &n, -1));
		for (uint32_t layer = 0; layer < LAYERS; layer++) {
			fill(kv[0], HEADS * DIM, at);
			fill(q, HEADS * GROUP * DIM, at + 99);
			must(&c, ebb_append(c.batch, layer, &t, &t));
			must(&c, ebb_attend(c.batch, layer, &query, &result, 0.125f, NULL));
		}
		live = ebb_lane_read(c.session, 5, NULL, heat, MAX);
		assert_int_equal(live, at + 1);
		for (int i = 0; i < live; i++)
			sum += heat[i];
		if (seen)
			assert_true(sum > 2.99f);	/* three heads, and what the window has had */
		else if (at < 100 || at >= 128)
			assert_true(sum == 0.0f);
		must(&c, ebb_step_end(c.batch));
	}
	end(&c);
}

/* --- what is refused ------------------------------------------------------------------------------------------------------------- */

static void impossible_marks_are_refused_and_nothing_happens(void **state)
{
	struct ebb_mark two[2] = { { EBB_DROP, 0, 50, 0 }, { EBB_TAG, 0, 1, 256 } };
	uint32_t n = 1;
	struct ebb_stats stats;
	struct client c;

	(void)state;
	for (int local = 0; local < 2; local++) {
		begin(&c, local, local ? "slots=f32" : "policy=full slots=f32", 0);
		feed(&c, 100, 64);
		assert_int_equal(ebb_session_drop(c.session, 0, 101, 0), -EINVAL);
		assert_int_equal(ebb_session_drop(c.session, 100, 1, 0), -EINVAL);
		assert_int_equal(ebb_session_drop(c.session, UINT32_MAX, 2, 0), -EINVAL);
		assert_int_equal(ebb_session_drop(c.session, 2, UINT32_MAX, 0), -EINVAL);
		assert_int_equal(ebb_session_drop(c.session, 0, 1, LAYERS), -EINVAL);
		assert_int_equal(ebb_session_pin(c.session, MAX, 1), -EINVAL);
		assert_int_equal(ebb_session_unpin(c.session, 1, MAX), -EINVAL);
		assert_int_equal(ebb_session_tag(c.session, 0, 1, 256), -EINVAL);
		assert_non_null(strstr(ebb_error(c.ebb), "256"));
		assert_int_equal(ebb_session_mark(c.session, two, 2), -EINVAL);		/* all or nothing */
		two[1].what = (enum ebb_mark_what)9;
		assert_int_equal(ebb_session_mark(c.session, two, 2), -EINVAL);
		two[1] = (struct ebb_mark){ EBB_TAG, 0, 1, 256 };
		must(&c, ebb_session_mark(c.session, NULL, 0));
		must(&c, ebb_step_begin(c.batch, &n, -1));
		assert_int_equal(ebb_session_drop(c.session, 0, 1, 0), -EBUSY);
		must(&c, ebb_step_end(c.batch));
		ebb_session_stats(c.session, &stats);
		assert_int_equal(stats.evicted, 0);
		end(&c);
	}
}

static int32_t send_mark(struct raw *r, const struct wire_mark *mark, size_t bytes)
{
	struct wire_msg m = { .u.mark = *mark };

	raw_send(r, &m, WIRE_MARK, bytes);
	r->status = 0;
	return raw_until(r, WIRE_MARKED) == WIRE_MARKED ? 0 : r->status;
}

/* Without libebb in between; and sessions of others are nobody's business: an index means the sender's own. */
static void hostile_marks_are_refused_by_the_daemon(void **state)
{
	static const struct wire_range bad[] = {
		{ 0, UINT32_MAX, WIRE_PIN, 0, 0 }, { UINT32_MAX, 1, WIRE_PIN, 0, 0 }, { UINT32_MAX, UINT32_MAX, WIRE_TAG, 0, 1 },
		{ 1u << 31, 1u << 31, WIRE_TAG, 0, 1 }, { 0, 1, WIRE_TAG, 0, 256 }, { 0, 1, WIRE_TAG, 0, UINT32_MAX }, { 0, 1, WIRE_PIN, 0, 1 },
		{ 0, 1, WIRE_TAG, 1, 1 }, { 0, 1, 0, 0, 0 }, { 0, 1, 5, 0, 0 }, { 0, 1, 0xffff, 0, 0 }, { 0, 1, WIRE_LEAVE, 0, 0 },
		{ 0, 1, WIRE_LEAVE, 0, UINT32_MAX }, { UINT32_MAX, 2, WIRE_LEAVE, 0, 0 }, { 1, UINT32_MAX, WIRE_LEAVE, 0, 0 },
	};
	struct wire_mark mark = { 0 };
	struct client mine;
	struct raw r;

	(void)state;
	begin(&mine, 0, "policy=full slots=f32", 0);	/* index 0 of another client */
	feed(&mine, 50, 50);
	raw_connect(&r, d.socket);
	raw_hello(&r);
	mark.n = 1;
	mark.range[0] = (struct wire_range){ 0, 10, WIRE_LEAVE, 0, 0 };
	assert_int_equal(send_mark(&r, &mark, sizeof(mark)), -ENOENT);
	raw_open(&r);
	for (uint32_t session = 1; session; session = session * 5 + (session == 1)) {
		mark.session = session;
		assert_int_equal(send_mark(&r, &mark, sizeof(mark)), -ENOENT);
		if (session > UINT32_MAX / 6)
			break;
	}
	mark.session = r.session;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		mark.range[0] = bad[i];
		assert_int_equal(send_mark(&r, &mark, sizeof(mark)), -EINVAL);
		assert_true(strlen(r.text) > 10);
	}
	mark.range[0] = (struct wire_range){ 0, 1, WIRE_PIN, 0, 0 };
	mark.n = WIRE_MAX_RANGES + 1;
	assert_int_equal(send_mark(&r, &mark, sizeof(mark)), -EINVAL);
	mark.n = UINT32_MAX;
	assert_int_equal(send_mark(&r, &mark, sizeof(mark)), -EINVAL);
	mark.n = 2;	/* more than the message has: zeros, and those mean nothing */
	assert_int_equal(send_mark(&r, &mark, offsetof(struct wire_mark, range) + sizeof(mark.range[0])), -EINVAL);
	mark.n = 1;
	mark.zero = 1;
	assert_int_equal(send_mark(&r, &mark, sizeof(mark)), -EINVAL);
	mark.zero = 0;
	mark.more = 2;
	assert_int_equal(send_mark(&r, &mark, sizeof(mark)), -EINVAL);
	mark.more = 1;
	assert_int_equal(send_mark(&r, &mark, sizeof(mark)), 0);
	mark.more = 0;
	assert_int_equal(send_mark(&r, &mark, sizeof(mark)), 0);
	raw_close(&r);
	td_await(&d, "status:sessions", 1);
	assert_int_equal(td_number(&d, "sessions:0.slots_dropped"), 0);
	feed(&mine, 50, 50);
	end(&mine);
}

/* --- several processes ------------------------------------------------------------------------------------------------------------ */

static void neighbours_notice_nothing(void **state)
{
	struct traffic_spec spec = { .name = "neighbour", .settings = "policy=h2o budget=128", .n_sessions = 2, .prompt = 200,
				     .tokens = 1500, .seed = 5, .n_layers = 3 };
	struct traffic_report *report = traffic_reports(3);
	uint64_t alone = traffic_run(d.socket, &spec, &report[2]);
	pid_t pid[2];
	struct client c;

	(void)state;
	for (unsigned i = 0; i < 2; i++)
		pid[i] = traffic_start(d.socket, &spec, &report[i]);
	begin(&c, 0, "policy=snapkv budget=300 slots=bf16", 0);
	for (uint32_t i = 0; i < 30; i++) {
		feed(&c, 50, 32);
		must(&c, ebb_session_drop(c.session, i * 50, 35, i % LAYERS));
		must(&c, ebb_session_pin(c.session, i * 50 + 40, 2));
	}
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(traffic_wait(pid[i]), 0);
		assert_true(report[i].hash == alone);
	}
	end(&c);
	td_await(&d, "status:pools.0.used_bytes", 0);
}

/* --------------------------------------------------------------------------------------------------------------------------------- */

static int setup(void **state)
{
	td_start(&d, "[pool host]\ndevice = host\nsize = 128M\nslab = 2M\n");
	*state = &d;
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_dropped_is_gone_there_and_nowhere_else),
		cmocka_unit_test(attention_after_drops_is_that_of_a_local_cache),
		cmocka_unit_test(a_drop_and_another_policy_meet),
		cmocka_unit_test(dropped_slots_make_room_for_new_tokens_under_a_budget),
		cmocka_unit_test(pinned_tokens_stay_while_others_can_go),
		cmocka_unit_test(more_pins_than_slots_do_not_enlarge_the_budget),
		cmocka_unit_test(look_m_lets_images_go_before_text),
		cmocka_unit_test(csp_keeps_a_share_for_the_other_modality),
		cmocka_unit_test(vl_cache_takes_heat_from_behind_the_last_image),
		cmocka_unit_test(impossible_marks_are_refused_and_nothing_happens),
		cmocka_unit_test(hostile_marks_are_refused_by_the_daemon),
		cmocka_unit_test(neighbours_notice_nothing),
	};

	return cmocka_run_group_tests(tests, setup, td_teardown);
}
