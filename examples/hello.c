/* libebb in one page, without a model: random keys, values and queries, and a budget so small that the daemon evicts at once. */
#include <stdio.h>
#include <stdlib.h>

#include "libclient/ebb.h"

enum { LAYERS = 2, KV_HEADS = 2, GROUP = 3, DIM = 64, TOKENS = 512 };

static void randomise(float *x, int n)
{
	while (n--)
		*x++ = 2.0f * (float)rand() / (float)RAND_MAX - 1.0f;
}

static int fail(struct ebb *ebb, const char *what, const char *why)
{
	fprintf(stderr, "ebb-hello: %s: %s\n", what, ebb ? ebb_error(ebb) : why);
	ebb_close(ebb);
	return 1;
}

int main(int argc, char **argv)
{
	float k[KV_HEADS * DIM], v[KV_HEADS * DIM], q[KV_HEADS * GROUP * DIM], out[KV_HEADS * GROUP * DIM];
	struct ebb_tensor tk = { .data = k }, tv = { .data = v }, tq = { .data = q }, to = { .data = out };
	struct ebb_session_options want = { .n_layers = LAYERS, .n_kv_heads = KV_HEADS, .group = GROUP, .head_dim = DIM,
					    .max_tokens = TOKENS, .settings = "policy=h2o budget=64 window=16 sinks=4" };
	struct ebb_session *session;
	struct ebb_batch *batch;
	struct ebb_stats stats;
	struct ebb *ebb = NULL;
	char why[512] = "";
	struct ebb_options options = { .name = "hello", .socket = argc == 2 ? argv[1] : NULL, .why = why, .why_bytes = sizeof(why) };

	if (argc > 2 || (argc == 2 && argv[1][0] == '-'))
		return fprintf(stderr, "usage: ebb-hello [SOCKET]\n"), 2;
	if (ebb_connect(&ebb, &options))
		return fail(NULL, "connect", why);
	if (ebb_session_open(ebb, &want, &session) || ebb_batch_new(ebb, NULL, &batch) || ebb_batch_join(batch, session))
		return fail(ebb, "open", NULL);
	for (uint32_t t = 0, n = 1; t < TOKENS; t++) {
		if (ebb_step_begin(batch, &n, -1))
			return fail(ebb, "step", NULL);
		for (uint32_t layer = 0; layer < LAYERS; layer++) {
			randomise(k, KV_HEADS * DIM), randomise(v, KV_HEADS * DIM), randomise(q, KV_HEADS * GROUP * DIM);
			if (ebb_append(batch, layer, &tk, &tv) || ebb_attend(batch, layer, &tq, &to, 0.125f, NULL))
				return fail(ebb, "attend", NULL);
		}
		if (ebb_step_end(batch))
			return fail(ebb, "step", NULL);
		ebb_session_stats(session, &stats);
		if (stats.tokens % 64 == 0)
			printf("%4u tokens  %5llu live slots of %5u  %6llu evicted  out[0] %+.4f\n", stats.tokens,
			       (unsigned long long)stats.live_slots, stats.tokens * LAYERS * KV_HEADS,
			       (unsigned long long)stats.evicted, out[0]);
	}
	ebb_close(ebb);
	return 0;
}
