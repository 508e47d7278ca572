#include "examples/llama/generate.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "examples/llama/run.h"
#include "examples/llama/sample.h"
#include "examples/llama/status.h"
#include "examples/llama/unicode.h"

#define PREFILL_ROWS 256u	/* tokens of a step while prompts are read: enough to keep the arithmetic busy, little memory */

enum finish { GOING, BY_LENGTH, BY_END };

/* What a sequence has produced. */
struct product {
	char *text;
	size_t bytes, room, shown;
	uint32_t n_tokens;
	enum finish finish;
	struct sampler sampler;
};

struct work {
	struct run *run;
	struct product *product;	/* [n_seqs] */
	uint64_t prompt_ns;		/* when the last prompt was read */
	uint32_t prefilling;		/* sequences whose prompt is not read yet */
};

/* --- one token -------------------------------------------------------------------------------------------- */

static int add_text(struct product *p, const char *text, size_t bytes)
{
	if (p->bytes + bytes > p->room) {
		size_t room = 2 * (p->bytes + bytes) + 256;
		char *more = realloc(p->text, room);

		if (!more)
			return -ENOMEM;
		p->text = more;
		p->room = room;
	}
	if (bytes)
		memcpy(p->text + p->bytes, text, bytes);
	p->bytes += bytes;
	return 0;
}

/* Shows what is new of the text; a character whose bytes have not all come waits, unless there will be no more. */
static void show(struct product *p, int last)
{
	size_t whole = last ? p->bytes : unicode_whole(p->text, p->bytes);

	if (whole > p->shown)
		fwrite(p->text + p->shown, 1, whole - p->shown, stdout);
	p->shown = whole > p->shown ? whole : p->shown;
	fflush(stdout);
}

static int take_token(struct work *w, uint32_t i, int32_t id)
{
	struct run *run = w->run;
	struct product *p = &w->product[i];
	size_t bytes;
	const char *text = tokenizer_text(run->tok, id, &bytes);
	int err;

	if (!run->cli->ignore_eos && tokenizer_is_end(run->tok, id)) {
		p->finish = BY_END;
		return 0;
	}
	err = add_text(p, text, bytes);
	if (!err)
		err = tokens_add(&run->seq[i].ids, id);
	if (err) {
		cli_error("out of memory");
		return err;
	}
	if (++p->n_tokens >= run->cli->n_predict)
		p->finish = BY_LENGTH;
	if (i == 0 && !run->cli->json)
		show(p, 0);
	return 0;
}

static int take_predictions(struct work *w)
{
	struct run *run = w->run;
	int err = 0;

	for (uint32_t k = 0; k < run->n_out && !err; k++) {
		uint32_t i = run->out_seq[k];
		const float *logits = run->logits ? run->logits + (size_t)k * run->model->n_vocab : NULL;

		if (run->seq[i].fed == run->seq[i].n_prompt && --w->prefilling == 0)
			w->prompt_ns = run_ns();
		if (run->cli->n_predict == 0) {
			w->product[i].finish = BY_LENGTH;
			continue;
		}
		err = take_token(w, i, run->cli->temperature > 0.0 ?
				 sampler_draw(&w->product[i].sampler, logits, run->model->n_vocab) : run->best[k]);
	}
	return err;
}

/* --- the loop --------------------------------------------------------------------------------------------- */

/* How many tokens each sequence should get. Returns their sum: 0 when all is done. */
static uint32_t plan(const struct work *w, uint32_t chunk)
{
	struct run *run = w->run;
	uint32_t total = 0, decoding = run->n_seqs - w->prefilling, share = chunk;

	if (share == 0 && w->prefilling)
		share = (run->max_rows - decoding) / w->prefilling;
	for (uint32_t i = 0; i < run->n_seqs; i++) {
		uint32_t rest = (uint32_t)run->seq[i].ids.n - run->seq[i].fed;

		run->n[i] = w->product[i].finish != GOING ? 0 : rest < share || rest == 1 ? rest : share ? share : 1;
		total += run->n[i];
	}
	return total;
}

static int loop(struct work *w)
{
	struct run *run = w->run;
	uint32_t chunk = run->cli->chunk;
	int err = 0;

	while (!err && plan(w, chunk) > 0) {
		err = run_step(run, RUN_LAST);
		if (!err)
			err = take_predictions(w);
	}
	return err;
}

/* --- what people and programs get ------------------------------------------------------------------------- */

static double per_second(uint64_t n, uint64_t ns)
{
	return ns ? (double)n * 1e9 / (double)ns : 0.0;
}

static json_t *json_of(const struct work *w, uint32_t i)
{
	static const char *const finish[] = { "stopped", "length", "end" };
	const struct sequence *s = &w->run->seq[i];
	const struct product *p = &w->product[i];
	struct ebb_stats stats = { 0 };
	json_t *text = json_stringn(p->text ? p->text : "", p->bytes), *ids = json_array();

	if (!text)	/* not UTF-8 to its end: JSON can say only the valid part */
		text = json_stringn(p->text, unicode_whole(p->text, p->bytes));
	for (uint32_t k = s->n_prompt; k < s->ids.n; k++)
		json_array_append_new(ids, json_integer(s->ids.id[k]));
	ebb_session_stats(s->session, &stats);
	return json_pack("{s:o?, s:o, s:s, s:I, s:I, s:I, s:I, s:I}", "text", text, "ids", ids, "finish", finish[p->finish],
			 "prompt_tokens", (json_int_t)s->n_prompt, "tokens", (json_int_t)p->n_tokens,
			 "budget", (json_int_t)stats.budget, "live_slots", (json_int_t)stats.live_slots,
			 "evicted", (json_int_t)stats.evicted);
}

static int print_json(const struct work *w, uint64_t n_prompt, uint64_t n_tokens, uint64_t end_ns)
{
	const struct run *run = w->run;
	uint64_t prompt_ns = w->prompt_ns - run->start_ns, decode_ns = end_ns - w->prompt_ns;
	json_t *list = json_array(), *all;
	struct run_totals t;
	int err;

	run_totals(run, &t);
	for (uint32_t i = 0; i < run->n_seqs; i++)
		json_array_append_new(list, json_of(w, i));
	all = json_pack("{s:o, s:I, s:f, s:f, s:I, s:f, s:f, s:I, s:I, s:I, s:s, s:s}", "sequences", list,
			"prompt_tokens", (json_int_t)n_prompt, "prompt_s", (double)prompt_ns / 1e9,
			"prompt_tokens_per_s", per_second(n_prompt, prompt_ns), "tokens", (json_int_t)n_tokens,
			"decode_s", (double)decode_ns / 1e9, "tokens_per_s", per_second(n_tokens, decode_ns),
			"live_slots", (json_int_t)t.live_slots, "full_slots", (json_int_t)t.full_slots,
			"evicted", (json_int_t)t.evicted, "forward", run->ops->name, "isa", tensor_isa());
	err = all ? json_dumpf(all, stdout, JSON_REAL_PRECISION(6)) : -1;
	putchar('\n');
	json_decref(all);
	if (err)
		cli_error("out of memory, or standard output is closed");
	return err ? -EIO : 0;
}

static void print_text(const struct work *w, uint64_t n_prompt, uint64_t n_tokens, uint64_t end_ns)
{
	const struct run *run = w->run;
	uint64_t prompt_ns = w->prompt_ns - run->start_ns, decode_ns = end_ns - w->prompt_ns;
	struct run_totals t;

	show(&w->product[0], 1);
	putchar('\n');
	for (uint32_t i = 1; i < run->n_seqs && run->cli->all; i++) {
		printf("--- sequence %u\n", i);
		show(&w->product[i], 1);
		putchar('\n');
	}
	fflush(stdout);
	if (!run->cli->progress && !isatty(2))
		return;
	run_totals(run, &t);
	fprintf(stderr, "ebb-llama: prompt %llu tokens, %.1f tokens/s; text %llu tokens, %.1f tokens/s; slots %llu live of %llu, "
		"%llu evicted\n", (unsigned long long)n_prompt, per_second(n_prompt, prompt_ns), (unsigned long long)n_tokens,
		per_second(n_tokens, decode_ns), (unsigned long long)t.live_slots, (unsigned long long)t.full_slots,
		(unsigned long long)t.evicted);
}

static int report(const struct work *w)
{
	uint64_t end_ns = run_ns(), n_prompt = 0, n_tokens = 0;

	for (uint32_t i = 0; i < w->run->n_seqs; i++) {
		n_prompt += w->run->seq[i].n_prompt;
		n_tokens += w->product[i].n_tokens ? w->product[i].n_tokens - 1 : 0;	/* the first came with the prompt */
	}
	status_done(w->run->status, w->run);
	if (w->run->cli->json)
		return print_json(w, n_prompt, n_tokens, end_ns);
	print_text(w, n_prompt, n_tokens, end_ns);
	return 0;
}

int generate_run(struct run *run)
{
	const struct cli *cli = run->cli;
	uint32_t rows = cli->chunk ? cli->chunk * run->n_seqs : PREFILL_ROWS;
	struct work w = { run, calloc(run->n_seqs, sizeof(*w.product)), 0, run->n_seqs };
	int err;

	if (!w.product) {
		cli_error("out of memory");
		return -ENOMEM;
	}
	rows = rows < run->n_seqs ? run->n_seqs : rows;
	for (uint32_t i = 0; i < run->n_seqs; i++)
		sampler_init(&w.product[i].sampler, cli->temperature, cli->seed, i);
	err = run_open(run, rows, run->n_seqs, cli->temperature > 0.0);
	if (!err)
		err = loop(&w);
	if (!err)
		err = report(&w);
	for (uint32_t i = 0; i < run->n_seqs; i++)
		free(w.product[i].text);
	free(w.product);
	return err;
}
