#include "examples/llama/passkey.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "examples/llama/filler.h"
#include "examples/llama/run.h"

#define CHUNK 32u
#define TOKENS 1536u		/* of a prompt, unless --limit says otherwise */
#define ANSWER 12u		/* tokens drawn */
#define MAX_DEPTHS 32u
#define TRIALS 24u		/* at least, unless --keys says otherwise */
#define SENTENCE 64u		/* tokens that the key may move to stand behind a sentence */

/*
 * The prompt of Mohtashami and Jaggi (Landmark Attention, 2023), as a text to go on with. In the chat template the full cache fails
 * where the text is one line again and again: the model then tells what a pass key is in general.
 */
static const char head[] = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
	"I will quiz you about the important information there.\n";
static const char question[] = "\nWhat is the pass key? The pass key is";

static const struct {
	const char *name, *text;
} builtin[] = { { "grass", filler_grass }, { "essay", filler_essay }, { "manual", filler_manual } };
#define N_BUILTIN (sizeof(builtin) / sizeof(*builtin))

/* One of the two caches that a trial runs on. */
struct side {
	struct ebb *ebb;
	struct ebb_batch *batch;
};

struct score {
	uint32_t trials, found, found_full;
};

struct quiz {
	struct run *run;
	struct side evicted, full;
	struct tokens *filler;		/* [n_fillers] */
	uint32_t n_builtin;		/* the first ones; then what the user gives */
	uint32_t n_fillers, n_depths, n_keys, tokens;
	double depth[MAX_DEPTHS];
	struct score *by_filler, by_depth[MAX_DEPTHS], all;
};

/* --- prompts -------------------------------------------------------------------------------------------------- */

static int add_text(struct quiz *q, const char *text, struct tokens *out)
{
	return tokenizer_encode(q->run->tok, text, strlen(text), 1, out);
}

/* n tokens of the filler from its token `from` on, which begins anew where it ends. */
static int add_filler(const struct tokens *filler, uint32_t from, uint32_t n, struct tokens *out)
{
	int err = 0;

	for (uint32_t i = 0; i < n && !err; i++)
		err = tokens_add(out, filler->id[(from + i) % filler->n]);
	return err;
}

/* Back from token `at` to the end of a sentence, if there is one near. */
static uint32_t sentence_end(const struct quiz *q, const struct tokens *filler, uint32_t at)
{
	for (uint32_t back = 0; back < SENTENCE && back < at; back++) {
		size_t bytes;
		const char *text = tokenizer_text(q->run->tok, filler->id[(at - back - 1) % filler->n], &bytes);

		if (bytes && text[bytes - 1] == '.')
			return at - back;
	}
	return at;
}

/* Five digits, the same for the same seed and trial. */
static uint32_t key_of(uint64_t seed, uint32_t trial)
{
	uint64_t x = seed + 0x9e3779b97f4a7c15u * (trial + 1);

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return 10000u + (uint32_t)((x ^ x >> 31) % 90000u);
}

static int make_prompt(struct quiz *q, const struct tokens *filler, double depth, uint32_t key)
{
	struct tokens before = { 0 }, needle = { 0 }, after = { 0 }, *ids = &q->run->seq[0].ids;
	uint32_t fixed, room, at;
	char text[128];
	int err;

	snprintf(text, sizeof(text), "\nThe pass key is %u. Remember it. %u is the pass key.\n", key, key);
	err = add_text(q, head, &before);
	if (!err)
		err = add_text(q, text, &needle);
	if (!err)
		err = add_text(q, question, &after);
	fixed = (uint32_t)(before.n + needle.n + after.n);
	room = q->tokens > fixed ? q->tokens - fixed : 0;
	at = sentence_end(q, filler, (uint32_t)(depth * room));
	ids->n = 0;
	for (size_t i = 0; i < before.n && !err; i++)
		err = tokens_add(ids, before.id[i]);
	if (!err)
		err = add_filler(filler, 0, at, ids);
	for (size_t i = 0; i < needle.n && !err; i++)
		err = tokens_add(ids, needle.id[i]);
	if (!err)
		err = add_filler(filler, at, room - at, ids);
	for (size_t i = 0; i < after.n && !err; i++)
		err = tokens_add(ids, after.id[i]);
	free(before.id);
	free(needle.id);
	free(after.id);
	q->run->seq[0].n_prompt = (uint32_t)ids->n;
	if (err)
		cli_error("not enough memory for the prompt");
	return err;
}

/* --- a trial -------------------------------------------------------------------------------------------------- */

/* Reads the prompt and draws the answer. @found: the key is in it. */
static int ask(struct quiz *q, const struct side *side, uint32_t key, int *found)
{
	struct run *run = q->run;
	struct sequence *s = &run->seq[0];
	const uint32_t chunk = run->cli->chunk ? run->cli->chunk : CHUNK;
	char answer[ANSWER * 64] = "", digits[16];
	size_t at = 0;
	int err = run_open_session(run, 0, side->ebb, side->batch);

	if (err)
		return err;
	run->batch = side->batch;
	s->fed = 0;
	while (!err && s->ids.n < s->n_prompt + ANSWER) {
		uint32_t left = (uint32_t)s->ids.n - s->fed;
		const char *text;
		size_t bytes;

		run->n[0] = left < chunk ? left : chunk;
		err = run_step(run, RUN_LAST);
		if (err || !run->n_out)
			continue;
		if (tokenizer_is_end(run->tok, run->best[0]))
			break;
		text = tokenizer_text(run->tok, run->best[0], &bytes);
		for (size_t i = 0; i < bytes && at + 1 < sizeof(answer); i++)
			answer[at++] = text[i];
		err = tokens_add(&s->ids, run->best[0]);
	}
	answer[at] = '\0';
	snprintf(digits, sizeof(digits), "%u", key);
	*found = strstr(answer, digits) != NULL;
	s->ids.n = s->n_prompt;
	if (!err)
		err = ebb_session_close(s->session);
	s->session = NULL;
	return err;
}

static void count(struct score *score, int found, int found_full)
{
	score->trials++;
	score->found += found != 0;
	score->found_full += found_full != 0;
}

static int trial(struct quiz *q, uint32_t filler, uint32_t depth, uint32_t number, uint32_t total)
{
	uint32_t key = key_of(q->run->cli->seed, number);
	int found = 0, found_full = 0, err = make_prompt(q, &q->filler[filler], q->depth[depth], key);

	if (!err)
		err = ask(q, &q->evicted, key, &found);
	if (!err)
		err = ask(q, &q->full, key, &found_full);
	if (err)
		return err;
	count(&q->all, found, found_full);
	count(&q->by_filler[filler], found, found_full);
	count(&q->by_depth[depth], found, found_full);
	fprintf(stderr, "passkey %u/%u: filler %u, depth %.3g, key %u: %s, full cache: %s\n", number + 1, total, filler, q->depth[depth],
		key, found ? "found" : "lost", found_full ? "found" : "lost");
	return 0;
}

/* --- set-up ----------------------------------------------------------------------------------------------------- */

static int parse_depths(struct quiz *q, const char *text)
{
	while (*text) {
		char *end;
		double x = strtod(text, &end);

		if (end == text || (*end && *end != ',') || !(x >= 0.0) || x > 1.0 || q->n_depths == MAX_DEPTHS) {
			cli_error("--depths %s: up to %u numbers from 0 to 1 are needed, with commas", text, MAX_DEPTHS);
			return -EINVAL;
		}
		q->depth[q->n_depths++] = x;
		text = *end ? end + 1 : end;
	}
	return q->n_depths ? 0 : -EINVAL;
}

static int make_fillers(struct quiz *q)
{
	const struct cli *cli = q->run->cli;
	int err = 0;

	q->n_builtin = cli->n_sources ? 1 : N_BUILTIN;
	q->n_fillers = q->n_builtin + cli->n_sources;
	q->filler = calloc(q->n_fillers, sizeof(*q->filler));
	q->by_filler = calloc(q->n_fillers, sizeof(*q->by_filler));
	if (!q->filler || !q->by_filler)
		return -ENOMEM;
	for (uint32_t i = 0; i < q->n_builtin && !err; i++)
		err = add_text(q, builtin[i].text, &q->filler[i]);
	for (uint32_t i = 0; i < cli->n_sources && !err; i++) {
		err = run_encode(q->run, &cli->source[i], &q->filler[q->n_builtin + i]);
		if (!err && q->filler[q->n_builtin + i].n == 0) {
			cli_error("%s: there is nothing in it to fill a prompt with", cli->source[i].text);
			err = -EINVAL;
		}
	}
	return err;
}

static int open_full(struct quiz *q)
{
	struct run *run = q->run;
	char why[256] = "", device[64] = "host";
	struct ebb_options options = { .device = device, .threads = run->cli->threads, .why = why, .why_bytes = sizeof(why) };
	struct ebb_batch_options batch = { .stream = run->ops->stream(run->forward), .max_sessions = 1, .max_rows = run->max_rows };
	int err;

	if (run->pool.is_cuda)
		snprintf(device, sizeof(device), "cuda:%d", run->pool.ordinal);
	err = ebb_local(&q->full.ebb, &options);
	if (!err)
		err = ebb_batch_new(q->full.ebb, &batch, &q->full.batch);
	if (err)
		cli_error("the full cache to compare with: %s", *why ? why : strerror(-err));
	return err;
}

static int open_all(struct quiz *q)
{
	struct run *run = q->run;
	int err = make_fillers(q);

	if (!err)
		err = parse_depths(q, run->cli->depths ? run->cli->depths : "0.1,0.2,0.35,0.5,0.65,0.8,0.9,0.95");
	if (err)
		return err;
	q->n_keys = run->cli->keys ? run->cli->keys : (TRIALS + q->n_fillers * q->n_depths - 1) / (q->n_fillers * q->n_depths);
	q->tokens = run->cli->limit ? run->cli->limit : TOKENS;
	err = make_prompt(q, &q->filler[0], 0.5, 10000);
	if (!err && q->run->seq[0].n_prompt > q->tokens) {
		cli_error("--limit %u: the question and the key alone take %u tokens", q->tokens, q->run->seq[0].n_prompt);
		err = -EINVAL;
	}
	if (!err)
		err = run_open(run, run->cli->chunk ? run->cli->chunk : CHUNK, 1, 0);
	if (err)
		return err;
	q->evicted = (struct side){ run->ebb, run->batch };
	err = ebb_session_close(run->seq[0].session);	/* every trial opens its own */
	run->seq[0].session = NULL;
	return err ? err : open_full(q);
}

/* --- what is printed --------------------------------------------------------------------------------------------- */

static json_t *score_json(const char *name, json_t *value, const struct score *s)
{
	json_t *o = json_object();

	if (name)
		json_object_set_new(o, name, value);
	json_object_set_new(o, "trials", json_integer(s->trials));
	json_object_set_new(o, "found", json_integer(s->found));
	json_object_set_new(o, "found_full", json_integer(s->found_full));
	return o;
}

static const char *filler_name(const struct quiz *q, uint32_t i)
{
	return i < q->n_builtin ? builtin[i].name : q->run->cli->source[i - q->n_builtin].text;
}

static int print_json(const struct quiz *q)
{
	json_t *o = score_json("tokens", json_integer(q->tokens), &q->all), *depths = json_array(), *fillers = json_array();
	char *text;

	for (uint32_t i = 0; i < q->n_depths; i++)
		json_array_append_new(depths, score_json("depth", json_real(q->depth[i]), &q->by_depth[i]));
	for (uint32_t i = 0; i < q->n_fillers; i++)
		json_array_append_new(fillers, score_json("filler", json_string(filler_name(q, i)), &q->by_filler[i]));
	json_object_set_new(o, "by_depth", depths);
	json_object_set_new(o, "by_filler", fillers);
	text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6));
	json_decref(o);
	if (!text)
		return -ENOMEM;
	puts(text);
	free(text);
	return 0;
}

static void print_table(const struct quiz *q)
{
	printf("%-24s %6s %6s %10s\n", "", "TRIALS", "FOUND", "FULL CACHE");
	for (uint32_t i = 0; i < q->n_depths; i++)
		printf("depth %-18.3g %6u %6u %10u\n", q->depth[i], q->by_depth[i].trials, q->by_depth[i].found, q->by_depth[i].found_full);
	for (uint32_t i = 0; i < q->n_fillers; i++)
		printf("filler %-17.17s %6u %6u %10u\n", filler_name(q, i), q->by_filler[i].trials, q->by_filler[i].found,
		       q->by_filler[i].found_full);
	printf("%-24s %6u %6u %10u\n", "all", q->all.trials, q->all.found, q->all.found_full);
}

int passkey_run(struct run *run)
{
	struct quiz q = { .run = run };
	uint32_t total, number = 0;
	int err = open_all(&q);

	total = q.n_fillers * q.n_depths * q.n_keys;
	for (uint32_t filler = 0; filler < q.n_fillers && !err; filler++)
		for (uint32_t depth = 0; depth < q.n_depths && !err; depth++)
			for (uint32_t key = 0; key < q.n_keys && !err; key++)
				err = trial(&q, filler, depth, number++, total);
	if (!err && run->cli->json)
		err = print_json(&q);
	else if (!err)
		print_table(&q);
	run->batch = q.evicted.batch;
	ebb_close(q.full.ebb);
	for (uint32_t i = 0; q.filler && i < q.n_fillers; i++)
		free(q.filler[i].id);
	free(q.filler);
	free(q.by_filler);
	return err;
}
