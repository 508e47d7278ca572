#include "examples/llama/run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "examples/llama/gguf.h"
#include "examples/llama/status.h"

#define PAD 8u		/* decoding sequences are launched in multiples of this, so that graphs of a step last */
#define MAX_TEXT_BYTES (256u << 20)

uint64_t run_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- prompts ---------------------------------------------------------------------------------------------- */

/* All of a file. @text: returned; free with free(). */
static int read_file(const char *path, char **text, size_t *bytes)
{
	FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
	char *buffer = NULL;
	size_t room = 0, n = 0;
	int err = 0;

	if (!file) {
		err = -errno;
		cli_error("%s: cannot open the prompt: %s", path, strerror(errno));
		return err;
	}
	while (!err && !feof(file)) {
		if (n == room) {
			char *more = room < MAX_TEXT_BYTES ? realloc(buffer, room = room ? 2 * room : 1u << 16) : NULL;

			err = more ? 0 : -ENOMEM;
			buffer = more ? more : buffer;
		}
		if (!err)
			n += fread(buffer + n, 1, room - n, file);
		if (ferror(file))
			err = -errno;
	}
	if (file != stdin)
		fclose(file);
	if (err) {
		cli_error("%s: cannot read the prompt: %s", path, err == -ENOMEM ? "it is too large" : strerror(-err));
		free(buffer);
		return err;
	}
	*text = buffer;
	*bytes = n;
	return 0;
}

int run_encode(const struct run *run, const struct cli_source *source, struct tokens *out)
{
	const struct cli *cli = run->cli;
	char *file = NULL;
	size_t bytes = strlen(source->text);
	int err = source->is_file ? read_file(source->text, &file, &bytes) : 0;
	const char *text = source->is_file ? file : source->text;

	if (err)
		return err;
	if (cli->chat) {
		err = tokenizer_chat(run->tok, cli->system, text, bytes, out);
	} else {
		if (!cli->nll && !cli->passkey && !cli->calibrate && tokenizer_bos(run->tok) >= 0)
			err = tokens_add(out, tokenizer_bos(run->tok));
		if (!err)
			err = tokenizer_encode(run->tok, text, bytes, cli->special, out);
	}
	free(file);
	if (err)
		cli_error(err == -ENOTSUP ? "--chat: this model's vocabulary has no <|im_start|>, and other templates are not known; "
			  "leave --chat out" : "not enough memory for the prompt");
	return err;
}

/* Sequence i's part of its source's tokens. */
static int cut(struct run *run, uint32_t i, const struct tokens *all)
{
	const struct cli *cli = run->cli;
	uint64_t from = (uint64_t)(i / cli->n_sources) * cli->batch_offset, least = cli->nll ? 2 : 1;
	struct sequence *s = &run->seq[i];

	if (all->n < from + least) {
		const struct cli_source *source = &cli->source[i % cli->n_sources];

		cli_error("sequence %u: %s has %zu tokens; %s needs more than %llu%s", i,
			  source->is_file ? source->text : "the prompt", all->n, cli->nll ? "--nll" : "generating",
			  (unsigned long long)(from + least - 1), from ? " with this --batch-offset" : "");
		return -EINVAL;
	}
	for (size_t k = (size_t)from; k < all->n && (cli->limit == 0 || s->ids.n < cli->limit); k++)
		if (tokens_add(&s->ids, all->id[k]))
			return -ENOMEM;
	if (s->ids.n < least) {
		cli_error("--limit %u leaves too little: --nll predicts from the second token on", cli->limit);
		return -EINVAL;
	}
	s->n_prompt = (uint32_t)s->ids.n;
	return 0;
}

static int load_prompts(struct run *run)
{
	const struct cli *cli = run->cli;
	const int one_each = cli->ids || cli->calibrate;
	uint32_t n = cli->n_sources < cli->batch || one_each ? cli->n_sources : cli->batch;
	int err = 0;

	run->n_seqs = one_each && cli->batch < n ? n : cli->batch;
	run->seq = calloc(run->n_seqs, sizeof(*run->seq));
	if (!run->seq)
		return -ENOMEM;
	if (cli->passkey)	/* makes its own prompts */
		return 0;
	for (uint32_t k = 0; k < n && !err; k++) {
		struct tokens all = { 0 };

		err = run_encode(run, &cli->source[k], &all);
		for (uint32_t i = k; i < run->n_seqs && !err; i += cli->n_sources)
			err = cut(run, i, &all);
		free(all.id);
	}
	return err;
}

/* Basename and size, which quantised versions of a model share; else its name. Letters, digits, and . _ - as the daemon wants it. */
static void name_model(struct run *run)
{
	struct gguf_text base = { "model", 5 }, size = { "", 0 };

	if (gguf_string(run->file, "general.basename", &base) || gguf_string(run->file, "general.size_label", &size))
		(void)gguf_string(run->file, "general.name", &base);
	snprintf(run->model_name, sizeof(run->model_name), "%.*s%s%.*s", (int)base.bytes, base.at, size.bytes ? "-" : "", (int)size.bytes,
		 size.at);
	for (char *p = run->model_name; *p; p++)
		if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.", *p))
			*p = '-';
}

int run_load(struct run *run, const struct cli *cli)
{
	char why[512] = "out of memory";
	int err;

	memset(run, 0, sizeof(*run));
	run->cli = cli;
	err = gguf_open(cli->model, &run->file, why, sizeof(why));
	if (!err)
		err = model_new(run->file, &run->model, why, sizeof(why));
	if (!err)
		err = tokenizer_new(run->file, &run->tok, why, sizeof(why));
	if (!err && tokenizer_size(run->tok) > run->model->n_vocab) {
		snprintf(why, sizeof(why), "%s: the vocabulary has %u tokens, the model %u", cli->model, tokenizer_size(run->tok),
			 run->model->n_vocab);
		err = -EINVAL;
	}
	if (err) {
		cli_error("%s", why);
		return err;
	}
	name_model(run);
	return load_prompts(run);
}

/* --- connecting ------------------------------------------------------------------------------------------- */

int run_connect(struct run *run)
{
	const struct cli *cli = run->cli;
	char why[512] = "";
	struct ebb_options options = {
		.socket = cli->socket, .name = "ebb-llama", .threads = cli->threads, .why = why, .why_bytes = sizeof(why),
	};
	int err;

	if (cli->local) {
		options.device = cli->pool;
		err = ebb_local(&run->ebb, &options);
		if (err)
			cli_error("--local: %s", *why ? why : strerror(-err));
		return err ? err : ebb_pool(run->ebb, 0, &run->pool);
	}
	err = ebb_connect(&run->ebb, &options);
	if (err) {
		const char *env = getenv("EBB_SOCKET"), *path = cli->socket ? cli->socket : env && *env ? env : EBB_SOCKET_DEFAULT;

		if (err == -ENOENT || err == -ECONNREFUSED)
			cli_error("ebbd is not running: nobody listens on %s. Start it (ebbd --config FILE), name its socket with "
				  "--socket PATH, or use --local to keep the cache in this process", path);
		else if (err == -EACCES)
			cli_error("you may not use the socket %s: ask its owner for the group that may, or use --local", path);
		else
			cli_error("connecting to ebbd on %s: %s", path, *why ? why : strerror(-err));
		return err;
	}
	for (unsigned i = 0;; i++) {
		err = ebb_pool(run->ebb, i, &run->pool);
		if (err) {
			cli_error("ebbd has no pool named %s; ebbctl pools lists them", cli->pool ? cli->pool : "at all");
			return err;
		}
		if (!cli->pool || strcmp(cli->pool, run->pool.name) == 0)
			return 0;
	}
}

/* bf16 weights where text is made, the host's own where something is measured; unless the user says which. */
static int wants_bf16(const struct run *run)
{
	const struct cli *cli = run->cli;

	if (!run->pool.is_cuda)
		return 0;
	return cli->weights ? strcmp(cli->weights, "bf16") == 0 : !cli->nll && !cli->passkey && !cli->calibrate && forward_for(1, 1);
}

static int open_forward(struct run *run)
{
	char why[256] = "";
	struct forward_options options = {
		.model = run->model, .max_rows = run->max_rows, .max_out = run->max_out, .threads = run->cli->threads,
		.ordinal = run->pool.ordinal, .why = why, .why_bytes = sizeof(why),
	};
	const int bf16 = wants_bf16(run);
	int err;

	run->ops = forward_for(run->pool.is_cuda, bf16);
	if (!run->ops && bf16) {
		cli_error("this ebb-llama was built without cuBLAS's headers: --weights bf16 is not there");
		return -ENODEV;
	}
	if (!run->ops || (run->pool.is_cuda && run->pool.ordinal < 0)) {
		cli_error(run->ops ? "the pool %s is on a GPU that this process cannot see (CUDA_VISIBLE_DEVICES?)" :
			  "the pool %s is on a GPU, and this ebb-llama was built without CUDA; choose a host pool with --pool",
			  run->pool.name);
		return -ENODEV;
	}
	err = run->ops->open(&options, &run->forward);
	if (err == -ENOSYS && bf16 && !run->cli->weights) {
		cli_error("note: %s; float32 weights and slower kernels do instead", why);
		run->ops = forward_for(1, 0);
		err = run->ops->open(&options, &run->forward);
	}
	if (err)
		cli_error("%s", *why ? why : strerror(-err));
	return err;
}

static int session_failed(const struct run *run, const struct ebb *ebb, uint32_t i, int err)
{
	if (err == -ENOSPC)
		cli_error("sequence %u: the pool %s has no room for it now (%s). Wait for room with --wait MS, or use a smaller --batch, "
			  "a smaller --budget or --slots q8", i, run->pool.name, ebb_error(ebb));
	else if (err == -ETIMEDOUT)
		cli_error("sequence %u: the pool %s had no room within %d ms", i, run->pool.name, run->cli->wait_ms);
	else
		cli_error("sequence %u: %s", i, ebb_error(ebb));
	return err;
}

int run_open_session(struct run *run, uint32_t i, struct ebb *ebb, struct ebb_batch *batch)
{
	const struct cli *cli = run->cli;
	const struct model *m = run->model;
	struct sequence *s = &run->seq[i];
	struct ebb_session_options options = {
		.pool = cli->local || ebb != run->ebb ? NULL : run->pool.name, .n_layers = m->n_layers, .n_kv_heads = m->n_kv_heads,
		.group = m->group, .head_dim = m->head_dim, .max_tokens = s->n_prompt + (cli->nll ? 0 : cli->n_predict),
		.prompt_tokens = cli->nll || cli->passkey ? 0 : s->n_prompt,
		.settings = cli->settings[0] ? cli->settings : NULL, .wait_ms = cli->wait_ms, .lanes = run->lanes, .model = run->model_name,
	};
	int err = ebb_session_open(ebb, &options, &s->session);

	if (!err)
		err = ebb_batch_join(batch, s->session);
	if (!err)
		err = marks_open(&cli->marks, s->session);
	return err ? session_failed(run, ebb, i, err) : 0;
}

/* The table is text to the library: it ends with a NUL. */
static int read_lanes(struct run *run)
{
	char *text, *whole;
	size_t bytes;
	int err = read_file(run->cli->lanes, &text, &bytes);

	if (err)
		return err;
	whole = realloc(text, bytes + 1);
	if (!whole) {
		free(text);
		return -ENOMEM;
	}
	whole[bytes] = '\0';
	run->lanes = whole;
	return 0;
}

static int open_sessions(struct run *run)
{
	const struct cli *cli = run->cli;
	struct ebb_batch_options batch = {
		.pool = cli->local ? NULL : run->pool.name, .stream = run->ops->stream(run->forward),
		.max_sessions = run->n_seqs, .max_rows = run->max_rows, .pad_sessions = run->n_seqs > PAD ? PAD : 0,
	};
	int err = ebb_batch_new(run->ebb, &batch, &run->batch);

	if (err) {
		cli_error("%s", ebb_error(run->ebb));
		return err;
	}
	if (cli->lanes)
		err = read_lanes(run);
	for (uint32_t i = 0; i < run->n_seqs && !err; i++) {
		uint32_t most = run->seq[i].n_prompt + (cli->nll ? 0 : cli->n_predict);

		if (most > run->model->n_context)
			cli_error("note: sequence %u may reach %u tokens; the model was trained for %u", i, most, run->model->n_context);
		err = run_open_session(run, i, run->ebb, run->batch);
	}
	return err;
}

static int make_arrays(struct run *run, int want_logits)
{
	size_t rows = run->max_rows, out = run->max_out;

	run->n = calloc(run->n_seqs, sizeof(*run->n));
	run->token = calloc(rows, sizeof(*run->token));
	run->pos = calloc(rows, sizeof(*run->pos));
	run->out_row = calloc(out, sizeof(*run->out_row));
	run->out_seq = calloc(out, sizeof(*run->out_seq));
	run->out_pos = calloc(out, sizeof(*run->out_pos));
	run->best = calloc(out, sizeof(*run->best));
	run->target = calloc(out, sizeof(*run->target));
	run->logprob = calloc(out, sizeof(*run->logprob));
	if (want_logits)
		run->logits = malloc(out * run->model->n_vocab * sizeof(*run->logits));
	if (!run->n || !run->token || !run->pos || !run->out_row || !run->out_seq || !run->out_pos || !run->best || !run->target ||
	    !run->logprob || (want_logits && !run->logits)) {
		cli_error("not enough memory for steps of %u tokens; try a smaller --batch or --chunk", run->max_rows);
		return -ENOMEM;
	}
	return 0;
}

int run_open(struct run *run, uint32_t max_rows, uint32_t max_out, int want_logits)
{
	const struct cli *cli = run->cli;
	int err;

	run->max_rows = max_rows;
	run->max_out = max_out;
	err = make_arrays(run, want_logits || cli->logits);
	if (!err && cli->logits) {
		run->logits_file = fopen(cli->logits, "wb");
		if (!run->logits_file) {
			err = -errno;
			cli_error("%s: cannot write the logits: %s", cli->logits, strerror(-err));
		}
	}
	if (!err)
		err = run_connect(run);
	if (!err)
		err = open_forward(run);
	if (!err)
		err = open_sessions(run);
	return err ? err : status_new(run, &run->status);
}

void run_close(struct run *run)
{
	status_free(run->status);
	ebb_close(run->ebb);
	if (run->forward)
		run->ops->close(run->forward);
	for (uint32_t i = 0; i < run->n_seqs && run->seq; i++)
		free(run->seq[i].ids.id);
	if (run->logits_file)
		fclose(run->logits_file);
	free(run->seq);
	free(run->n);
	free(run->token);
	free(run->pos);
	free(run->out_row);
	free(run->out_seq);
	free(run->out_pos);
	free(run->best);
	free(run->target);
	free(run->logprob);
	free(run->logits);
	free(run->lanes);
	tokenizer_free(run->tok);
	model_free(run->model);
	gguf_close(run->file);
	memset(run, 0, sizeof(*run));
}

/* --- a step ----------------------------------------------------------------------------------------------- */

/* The rows of the step, and which of them make a prediction. */
static uint32_t gather(struct run *run, enum run_outputs outputs)
{
	uint32_t rows = 0;

	run->n_out = 0;
	for (uint32_t i = 0; i < run->n_seqs; i++) {
		const struct sequence *s = &run->seq[i];

		for (uint32_t k = 0; k < run->n[i]; k++, rows++) {
			uint32_t at = s->fed + k;
			int wanted = outputs == RUN_ALL ? at + 1 < s->ids.n : at + 1 == s->ids.n;

			run->token[rows] = s->ids.id[at];
			run->pos[rows] = (int32_t)at;
			if (!wanted)
				continue;
			run->out_row[run->n_out] = rows;
			run->out_seq[run->n_out] = i;
			run->out_pos[run->n_out] = at;
			run->target[run->n_out] = outputs == RUN_ALL ? s->ids.id[at + 1] : 0;
			run->n_out++;
		}
	}
	return rows;
}

static int step_failed(const struct run *run, const char *what, int err)
{
	if (err == -EPIPE)
		cli_error("ebbd is gone, and the caches with it: start it again and repeat the run (%s)", ebb_error(run->ebb));
	else
		cli_error("%s: %s", what, ebb_error(run->ebb));
	return err;
}

static int deliver(struct run *run, enum run_outputs outputs)
{
	struct forward_out out = { .logits = run->logits };
	size_t floats = (size_t)run->n_out * run->model->n_vocab;

	if (outputs == RUN_ALL) {
		out.target = run->target;
		out.logprob = run->logprob;
	} else {
		out.best = run->best;
	}
	if (run->ops->output(run->forward, &out)) {
		cli_error("%s", run->forward->why);
		return -EIO;
	}
	if (run->logits_file && fwrite(run->logits, sizeof(float), floats, run->logits_file) != floats) {
		cli_error("%s: cannot write the logits: %s", run->cli->logits, strerror(errno));
		return -EIO;
	}
	return 0;
}

/* Drops that are due; and no sequence goes beyond its next one. */
static int drop_due(struct run *run)
{
	const struct marks *marks = &run->cli->marks;

	for (uint32_t i = 0; i < run->n_seqs; i++) {
		struct ebb_stats before, after;
		int n;

		if (!run->n[i])
			continue;
		run->n[i] = marks_limit(marks, run->seq[i].fed, run->n[i]);
		ebb_session_stats(run->seq[i].session, &before);
		n = marks_drop(marks, run->seq[i].session, run->seq[i].fed);
		if (n < 0)
			return n;
		ebb_session_stats(run->seq[i].session, &after);
		if (n)
			cli_error("note: sequence %u, %u tokens: %llu slots have left", i, run->seq[i].fed,
				  (unsigned long long)(after.evicted - before.evicted));
	}
	return 0;
}

int run_step(struct run *run, enum run_outputs outputs)
{
	struct forward_in in = { .token = run->token, .pos = run->pos, .out_row = run->out_row };
	int err;

	if (!run->start_ns)
		run->start_ns = run_ns();
	err = run->cli->marks.n ? drop_due(run) : 0;
	if (err)
		return step_failed(run, "dropping tokens", err);
	err = ebb_step_begin(run->batch, run->n, -1);
	if (err)
		return step_failed(run, "beginning a step", err);
	in.rows = gather(run, outputs);
	in.n_out = run->n_out;
	err = run->ops->layers(run->forward, run->batch, &in);
	if (err) {
		if (err == -EPIPE)
			return step_failed(run, "in a step", err);
		cli_error("%s (%s)", run->forward->why, ebb_error(run->ebb));
		return err;
	}
	err = run->look ? run->look(run, run->look_arg) : 0;
	if (err)
		return err;
	err = ebb_step_end(run->batch);
	if (err)
		return step_failed(run, "ending a step", err);
	for (uint32_t i = 0; i < run->n_seqs; i++)
		run->seq[i].fed += run->n[i];
	if (run->n_out)
		err = deliver(run, outputs);
	status_tick(run->status, run);
	return err;
}

void run_totals(const struct run *run, struct run_totals *out)
{
	uint64_t lanes = (uint64_t)run->model->n_layers * run->model->n_kv_heads;

	memset(out, 0, sizeof(*out));
	for (uint32_t i = 0; i < run->n_seqs; i++) {
		struct ebb_stats stats = { 0 };

		if (run->seq[i].session)
			ebb_session_stats(run->seq[i].session, &stats);
		out->fed += run->seq[i].fed;
		out->full_slots += run->seq[i].fed * lanes;
		out->live_slots += stats.live_slots;
		out->evicted += stats.evicted;
		if (i == 0)
			out->budget = stats.budget;
	}
}
