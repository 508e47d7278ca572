#include "examples/llama/full.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "examples/llama/run.h"

static int out_of_memory(void)
{
	cli_error("not enough memory for the full cache beside the other one");
	return -ENOMEM;
}

/* --- the live one --------------------------------------------------------------------------------------------- */

static int open_live(struct full *f)
{
	const struct run *run = f->run;
	const struct model *m = run->model;
	char why[512] = "", device[64] = "host", settings[sizeof(run->cli->settings) + 64];
	const char *slots = run->cli->full_slots;
	struct ebb_options options = { .device = device, .threads = run->cli->threads, .why = why, .why_bytes = sizeof(why) };
	struct ebb_batch_options batch = { .stream = run->ops->stream(run->forward), .max_sessions = run->n_seqs,
					   .max_rows = run->max_rows };
	int err;

	if (run->pool.is_cuda)
		snprintf(device, sizeof(device), "cuda:%d", run->pool.ordinal);
	/* What is said last counts. A name that is too long is cut off, and refused as unknown. */
	snprintf(settings, sizeof(settings), "%s observe=1%s%.24s", run->cli->settings, slots ? " slots=" : "", slots ? slots : "");
	err = ebb_local(&f->ebb, &options);
	if (err) {
		cli_error("the full cache to compare with: %s", *why ? why : strerror(-err));
		return err;
	}
	err = ebb_batch_new(f->ebb, &batch, &f->batch);
	for (uint32_t i = 0; i < run->n_seqs && !err; i++) {
		struct ebb_session_options o = {
			.n_layers = m->n_layers, .n_kv_heads = m->n_kv_heads, .group = m->group, .head_dim = m->head_dim,
			.max_tokens = run->seq[i].n_prompt, .settings = settings,
		};

		err = ebb_session_open(f->ebb, &o, &f->session[i]);
		if (!err)
			err = ebb_batch_join(f->batch, f->session[i]);
	}
	if (err)
		cli_error("the full cache to compare with: %s", ebb_error(f->ebb));
	return err;
}

/* While its step is open: the step's heat, and the arrays back to zero for the next. */
static int take_heat(struct full *f)
{
	for (uint32_t i = 0; i < f->run->n_seqs; i++)
		for (uint32_t lane = 0; f->run->n[i] && lane < f->n_lanes; lane++) {
			int n = ebb_lane_read(f->session[i], lane, NULL, f->heat[i] + (size_t)lane * f->room[i], f->room[i]);
			int err = n < 0 ? n : ebb_lane_write(f->session[i], lane, f->none, (uint32_t)n);

			if (err) {
				cli_error("reading the attention of the full cache: %s", ebb_error(f->ebb));
				return err;
			}
		}
	return 0;
}

static int step_live(struct full *f)
{
	struct run *run = f->run;
	struct forward_in in = { .token = run->token, .pos = run->pos, .out_row = run->out_row, .n_out = run->n_out };
	struct forward_out out = { .logits = f->logits };
	int err = ebb_step_begin(f->batch, run->n, -1);

	for (uint32_t i = 0; i < run->n_seqs; i++)
		in.rows += run->n[i];
	if (!err)
		err = run->ops->layers(run->forward, f->batch, &in);
	if (!err)
		err = take_heat(f);
	if (!err)
		err = ebb_step_end(f->batch);
	if (!err)
		err = run->ops->output(run->forward, &out);
	if (err)
		cli_error("a step of the full cache: %s (%s)", ebb_error(f->ebb), run->forward->why);
	return err;
}

/* --- the file ------------------------------------------------------------------------------------------------- */

static struct full_head expected(const struct full *f)
{
	const struct run *run = f->run;
	const struct tokens *ids = &run->seq[0].ids;
	const char *set = strstr(run->cli->settings, "slots=");
	const char *slots = run->cli->full_slots ? run->cli->full_slots : set ? set + 6 : "";
	struct full_head h = { .magic = "ebbfull", .tokens = run->seq[0].n_prompt, .n_vocab = run->model->n_vocab,
			       .n_lanes = f->n_lanes, .chunk = f->chunk, .ids = 14695981039346656037u };
	struct stat st;

	h.magic[7] = '1';
	for (uint32_t i = 0; i < h.tokens; i++)
		h.ids = (h.ids ^ (uint32_t)ids->id[i]) * 1099511628211u;
	if (stat(run->cli->model, &st) == 0)
		h.model_bytes = (uint64_t)st.st_size;
	snprintf(h.slots, sizeof(h.slots), "%.*s", (int)strcspn(slots, " "), slots);
	snprintf(h.isa, sizeof(h.isa), "%.7s %.7s", run->ops->name, tensor_isa());
	return h;
}

static int file_failed(const struct full *f, const char *path, const char *what)
{
	int err = f->file && ferror(f->file) ? -EIO : -EINVAL;

	cli_error("%s: %s; remove it, or give --full-run another name", path, what);
	return err;
}

static int check_head(struct full *f, const char *path)
{
	struct full_head want = expected(f), *got = &f->head;

	if (fread(got, sizeof(*got), 1, f->file) != 1 || memcmp(got->magic, want.magic, sizeof(want.magic)) != 0)
		return file_failed(f, path, "this is no full run that this program wrote");
	if (got->ids != want.ids || got->tokens != want.tokens)
		return file_failed(f, path, "this is a full run of another text");
	if (got->n_vocab != want.n_vocab || got->n_lanes != want.n_lanes || got->model_bytes != want.model_bytes)
		return file_failed(f, path, "this is a full run of another model");
	if (got->chunk != want.chunk)
		return file_failed(f, path, "this is a full run with another --chunk");
	if (memcmp(got->slots, want.slots, sizeof(want.slots)) != 0)
		return file_failed(f, path, "this is a full run with other --slots");
	if (memcmp(got->isa, want.isa, sizeof(want.isa)) != 0)
		return file_failed(f, path, "this is a full run by another machine's arithmetic");
	return 0;
}

static int read_step(struct full *f, uint32_t n[2])
{
	size_t logits;

	if (fread(n, sizeof(*n), 2, f->file) != 2 || !n[0] || n[0] > f->chunk || n[1] > n[0] || n[0] > f->room[0] - f->fed)
		return -EIO;
	f->fed += n[0];
	logits = (size_t)n[1] * f->head.n_vocab;
	if (fread(f->logits, sizeof(float), logits, f->file) != logits)
		return -EIO;
	for (uint32_t lane = 0; lane < f->n_lanes; lane++)
		if (fread(f->heat[0] + (size_t)lane * f->room[0], sizeof(float), f->fed, f->file) != f->fed)
			return -EIO;
	return 0;
}

static int write_step(struct full *f)
{
	const struct run *run = f->run;
	uint32_t n[2] = { run->n[0], run->n_out }, so_far = run->seq[0].fed;
	size_t logits = (size_t)run->n_out * run->model->n_vocab;

	if (fwrite(n, sizeof(*n), 2, f->file) != 2 || fwrite(run->logits, sizeof(float), logits, f->file) != logits)
		return -EIO;
	for (uint32_t lane = 0; lane < f->n_lanes; lane++)
		if (fwrite(f->heat[0] + (size_t)lane * f->room[0], sizeof(float), so_far, f->file) != so_far)
			return -EIO;
	return 0;
}

static int look_live(struct run *run, void *arg)
{
	(void)run;
	return take_heat(arg);
}

/* Runs the text through the full cache alone, in place of the sessions of the run, and writes every step. */
static int record(struct full *f)
{
	struct run *run = f->run;
	struct ebb_batch *own = run->batch;
	struct sequence *s = &run->seq[0];
	int err = fwrite(&f->head, sizeof(f->head), 1, f->file) == 1 ? 0 : -EIO;

	run->batch = f->batch;
	run->look = look_live;
	run->look_arg = f;
	while (!err && s->fed < s->n_prompt) {
		run->n[0] = s->n_prompt - s->fed < f->chunk ? s->n_prompt - s->fed : f->chunk;
		err = run_step(run, RUN_ALL);
		if (!err)
			err = write_step(f);
	}
	if (!err && fflush(f->file))
		err = -EIO;
	run->batch = own;
	run->look = NULL;
	run->start_ns = 0;
	s->fed = 0;
	return err;
}

/* Under a name of its own until it is whole: a run that is killed leaves nothing that looks like a full run. */
static int record_file(struct full *f, const char *path)
{
	char part[4096];
	int err = 0;

	f->head = expected(f);
	if ((size_t)snprintf(part, sizeof(part), "%s.part", path) >= sizeof(part))
		err = -ENAMETOOLONG;
	if (!err) {
		f->file = fopen(part, "w+b");
		err = f->file ? 0 : -errno;
	}
	if (!err) {
		err = record(f);
		err = !err && rename(part, path) ? -errno : err;
		if (err)
			(void)remove(part);
	}
	if (err)
		cli_error("%s: cannot keep the full run: %s", path, strerror(-err));
	else
		fseek(f->file, (long)sizeof(f->head), SEEK_SET);
	return err;
}

static int step_file(struct full *f)
{
	struct run *run = f->run;
	uint32_t n[2];

	if (read_step(f, n)) {
		cli_error("%s: the full run ends early, or cannot be read; remove it", run->cli->full_run);
		return -EIO;
	}
	if (n[0] == run->n[0] && n[1] == run->n_out)
		return 0;
	cli_error("%s: the full run has a step of %u tokens where the daemon granted %u; use a --chunk that is no larger than the window, "
		  "or no --full-run", run->cli->full_run, n[0], run->n[0]);
	return -EINVAL;
}

int full_scan(struct full *f, void (*fn)(void *arg, struct full *full), void *arg)
{
	long start = ftell(f->file);
	uint32_t n[2];

	while (f->fed < f->head.tokens) {
		if (read_step(f, n)) {
			cli_error("%s: the full run ends early, or cannot be read; remove it", f->run->cli->full_run);
			return -EIO;
		}
		fn(arg, f);
	}
	f->fed = 0;
	return fseek(f->file, start, SEEK_SET) ? -errno : 0;
}

/* --- both ----------------------------------------------------------------------------------------------------- */

static int make_arrays(struct full *f)
{
	const struct run *run = f->run;
	uint32_t longest = 0;

	f->session = calloc(run->n_seqs, sizeof(*f->session));
	f->heat = calloc(run->n_seqs, sizeof(*f->heat));
	f->room = calloc(run->n_seqs, sizeof(*f->room));
	f->logits = malloc((size_t)run->max_out * run->model->n_vocab * sizeof(*f->logits));
	if (!f->session || !f->heat || !f->room || !f->logits)
		return out_of_memory();
	for (uint32_t i = 0; i < run->n_seqs; i++) {
		f->room[i] = run->seq[i].n_prompt;
		longest = f->room[i] > longest ? f->room[i] : longest;
		f->heat[i] = calloc((size_t)f->n_lanes * f->room[i], sizeof(**f->heat));
		if (!f->heat[i])
			return out_of_memory();
	}
	f->none = calloc(longest, sizeof(*f->none));
	return f->none ? 0 : out_of_memory();
}

int full_open(struct full *f, struct run *run, uint32_t chunk, const char *path)
{
	int err;

	memset(f, 0, sizeof(*f));
	f->run = run;
	f->chunk = chunk;
	f->n_lanes = run->model->n_layers * run->model->n_kv_heads;
	err = make_arrays(f);
	if (err || !path)
		return err ? err : open_live(f);
	f->file = fopen(path, "rb");
	if (f->file)
		return check_head(f, path);
	if (errno != ENOENT) {
		err = -errno;
		cli_error("%s: cannot read the full run: %s", path, strerror(-err));
		return err;
	}
	err = open_live(f);
	if (!err)
		err = record_file(f, path);
	ebb_close(f->ebb);
	f->ebb = NULL;
	return err;
}

int full_step(struct full *f)
{
	return f->file ? step_file(f) : step_live(f);
}

void full_close(struct full *f)
{
	ebb_close(f->ebb);
	if (f->file)
		fclose(f->file);
	for (uint32_t i = 0; f->heat && i < f->run->n_seqs; i++)
		free(f->heat[i]);
	free(f->session);
	free(f->heat);
	free(f->room);
	free(f->logits);
	free(f->none);
	memset(f, 0, sizeof(*f));
}
