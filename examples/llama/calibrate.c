#include "examples/llama/calibrate.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "examples/llama/gguf.h"
#include "examples/llama/probe.h"
#include "examples/llama/run.h"

#define SAMPLES 6u
#define MAX_BUDGETS 8u
#define LEAST_BUDGET 24u	/* sinks, a window, and a few to choose */
#define DEFAULT_BUDGETS "24,40,64,100,160,400,1000"
#define STEP 8u			/* tokens of a step of the restricted sessions, and their window: as short as small budgets have it */
#define READ_WORK 40.0			/* of reading a text, in layers of one alternative's worth: for the time that is left */
#define OUTPUT_WORK 4.0

struct calibrate {
	struct run *run;
	const struct model *m;
	uint32_t tokens, n_lanes, n_texts;
	uint32_t budget[MAX_BUDGETS], n_budgets;
	uint32_t sample[SAMPLES], n_samples;
	uint64_t key;			/* of everything that the figures depend on */
	FILE *part;
	double *loss;			/* [n_texts][n_lanes][n_budgets]; NAN: not yet measured */
	double *weight;			/* [n_texts], of the table */
	struct probe *probe;
	float *att;			/* [n_budgets][n_layers][n_samples][32][n_heads * head_dim]: restricted */
	float *q, *k, *v, *out;		/* [n_budgets * STEP][...]: of a step */
	double work, done;		/* in all; in this run */
	double skipped;
	uint64_t start_ns;
};

/* --- what is asked for ---------------------------------------------------------------------------------------------- */

static int read_budgets(struct calibrate *c)
{
	const char *list = c->run->cli->budgets ? c->run->cli->budgets : DEFAULT_BUDGETS, *at = list;
	uint32_t least = LEAST_BUDGET;

	for (;;) {
		char *end;
		const unsigned long value = strtoul(at, &end, 10);

		if (end == at || *at < '0' || *at > '9' || (*end && *end != ',') || c->n_budgets == MAX_BUDGETS || value < least ||
		    value > c->tokens / 2) {
			cli_error("--budgets %s: 1 to %u numbers of slots are needed, rising, from %u to half of --limit (%u), with commas", list,
				  MAX_BUDGETS, LEAST_BUDGET, c->tokens / 2);
			return -EINVAL;
		}
		c->budget[c->n_budgets++] = (uint32_t)value;
		least = (uint32_t)value + 1;
		if (!*end)
			return 0;
		at = end + 1;
	}
}

static void choose_samples(struct calibrate *c)
{
	const uint32_t windows = c->tokens / PROBE_WINDOW, from = windows / 2;

	c->n_samples = windows - from < SAMPLES ? windows - from : SAMPLES;
	for (uint32_t i = 0; i < c->n_samples; i++)	/* the last one is the text's last */
		c->sample[i] = from + (i + 1) * (windows - from) / c->n_samples - 1;
}

static uint64_t mix(uint64_t hash, const void *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		hash = (hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
	return hash;
}

static uint64_t key_of(const struct calibrate *c)
{
	const uint64_t size = gguf_size(c->run->file);
	const uint32_t window = STEP;
	uint64_t hash = mix(14695981039346656037u, &size, sizeof(size));

	hash = mix(hash, &window, sizeof(window));
	hash = mix(hash, c->budget, sizeof(c->budget));
	hash = mix(hash, c->sample, sizeof(c->sample));
	hash = mix(hash, c->run->cli->settings, strlen(c->run->cli->settings));
	hash = mix(hash, tensor_isa(), strlen(tensor_isa()));
	for (uint32_t i = 0; i < c->n_texts; i++)
		hash = mix(hash, c->run->seq[i].ids.id, c->tokens * sizeof(*c->run->seq[i].ids.id));
	return hash;
}

static int ask(struct calibrate *c)
{
	const struct run *run = c->run;
	int err;

	c->m = run->model;
	c->n_lanes = c->m->n_layers * c->m->n_kv_heads;
	c->n_texts = run->n_seqs;
	c->tokens = run->cli->limit / PROBE_WINDOW * PROBE_WINDOW;
	if (c->tokens < 4 * PROBE_WINDOW) {
		cli_error("--limit %u: --calibrate needs %u tokens of each text", run->cli->limit, 4 * PROBE_WINDOW);
		return -EINVAL;
	}
	for (uint32_t i = 0; i < c->n_texts; i++)
		if (run->seq[i].n_prompt < c->tokens) {
			cli_error("%s has %u tokens; all texts need %u, or give a smaller --limit", run->cli->source[i].text,
				  run->seq[i].n_prompt, c->tokens);
			return -EINVAL;
		}
	err = read_budgets(c);
	if (err)
		return err;
	choose_samples(c);
	c->key = key_of(c);
	return 0;
}

/* --- FILE.part ------------------------------------------------------------------------------------------------------ */

static double *losses(const struct calibrate *c, uint32_t text, uint32_t layer, uint32_t head)
{
	return c->loss + (((size_t)text * c->m->n_layers + layer) * c->m->n_kv_heads + head) * c->n_budgets;
}

static int has_layer(const struct calibrate *c, uint32_t text, uint32_t layer)
{
	const double *loss = losses(c, text, layer, 0);

	for (uint32_t i = 0; i < c->m->n_kv_heads * c->n_budgets; i++)
		if (isnan(loss[i]))
			return 0;
	return 1;
}

/* A line of a layer: text, layer, then the losses of its heads one after the other. 0: it is not whole, or not ours. */
static int take_line(struct calibrate *c, const char *line)
{
	unsigned text, layer;
	int at;

	if (sscanf(line, "%u %u%n", &text, &layer, &at) != 2 || text >= c->n_texts || layer >= c->m->n_layers || !strchr(line, '\n'))
		return 0;
	for (uint32_t i = 0; i < c->m->n_kv_heads * c->n_budgets; i++) {
		char *end;
		const double value = strtod(line + at, &end);

		if (end == line + at || isnan(value))
			return 0;
		losses(c, text, layer, 0)[i] = value;
		at = (int)(end - line);
	}
	return 1;
}

static int write_layer(struct calibrate *c, uint32_t text, uint32_t layer)
{
	fprintf(c->part, "%u %u", text, layer);
	for (uint32_t i = 0; i < c->m->n_kv_heads * c->n_budgets; i++)
		fprintf(c->part, " %.17g", losses(c, text, layer, 0)[i]);
	fputc('\n', c->part);
	if (fflush(c->part)) {
		cli_error("%s.part: cannot be written: %s", c->run->cli->output, strerror(errno));
		return -EIO;
	}
	return 0;
}

static int open_part(struct calibrate *c, const char *path)
{
	char line[4096], head[64];
	unsigned taken = 0;
	FILE *old = fopen(path, "r");
	int err = 0;

	snprintf(head, sizeof(head), "ebb-llama calibrate 1 %016llx\n", (unsigned long long)c->key);
	if (old) {
		if (!fgets(line, sizeof(line), old) || strcmp(line, head) != 0) {
			cli_error("%s is of other texts or options; remove it, or give another -o", path);
			err = -EINVAL;
		}
		while (!err && fgets(line, sizeof(line), old) && take_line(c, line))
			taken++;
		fclose(old);
		if (err)
			return err;
	}
	c->part = fopen(path, "w");	/* anew, so that no torn line stays */
	if (!c->part) {
		err = -errno;
		cli_error("%s: cannot be written: %s", path, strerror(-err));
		return err;
	}
	fputs(head, c->part);
	for (uint32_t i = 0; i < c->n_texts * c->m->n_layers && !err; i++)
		err = has_layer(c, i / c->m->n_layers, i % c->m->n_layers) ? write_layer(c, i / c->m->n_layers, i % c->m->n_layers) : 0;
	if (taken)
		fprintf(stderr, "calibrate: going on behind %u of %u layers\n", taken, c->n_texts * c->m->n_layers);
	return err ? err : fflush(c->part) ? -errno : 0;
}

/* --- what is left to do ----------------------------------------------------------------------------------------------- */

static double layer_work(const struct calibrate *c, uint32_t layer)
{
	return (c->m->n_layers - layer + OUTPUT_WORK) * c->m->n_kv_heads * c->n_budgets;
}

static void show(struct calibrate *c, uint32_t text, uint32_t layer, double more)
{
	const double seconds = (double)(run_ns() - c->start_ns) / 1e9;

	c->done += more;
	if (!isatty(2) && !c->run->cli->progress && layer + 1 != c->m->n_layers)
		return;
	fprintf(stderr, "%scalibrate: text %u of %u, layer %u of %u, %.0f %%, %.0f s left%s", isatty(2) ? "\r\033[K" : "", text + 1, c->n_texts,
		layer + 1, c->m->n_layers, 100.0 * (c->done + c->skipped) / c->work,
		seconds / c->done * (c->work - c->done - c->skipped), isatty(2) ? "" : "\n");
}

static void count_work(struct calibrate *c)
{
	for (uint32_t text = 0; text < c->n_texts; text++) {
		int left = 0;

		for (uint32_t layer = 0; layer < c->m->n_layers; layer++) {
			c->work += layer_work(c, layer);
			c->skipped += has_layer(c, text, layer) ? layer_work(c, layer) : 0.0;
			left |= !has_layer(c, text, layer);
		}
		c->work += left ? READ_WORK : 0.0;
	}
}

/* --- restricted lanes --------------------------------------------------------------------------------------------------- */

static int open_sessions(struct calibrate *c, struct ebb_batch *batch, struct ebb_session **session)
{
	const struct run *run = c->run;
	int err = 0;

	for (uint32_t i = 0; i < c->n_budgets && !err; i++) {
		char settings[sizeof(run->cli->settings) + 128];
		struct ebb_session_options o = {
			.pool = run->pool.name, .n_layers = c->m->n_layers, .n_kv_heads = c->m->n_kv_heads, .group = c->m->group,
			.head_dim = c->m->head_dim, .max_tokens = c->tokens, .settings = settings, .wait_ms = run->cli->wait_ms, .model = run->model_name,
		};

		snprintf(settings, sizeof(settings), "%s split=uniform slots=f32 prefill=chunked window=%u budget=%u floor=%u",
			 run->cli->settings, STEP, c->budget[i], c->budget[i]);
		err = ebb_session_open(run->ebb, &o, &session[i]);
		if (!err)
			err = ebb_batch_join(batch, session[i]);
	}
	if (err)
		cli_error("a session of %u slots a lane: %s", c->budget[c->n_budgets - 1], ebb_error(run->ebb));
	return err;
}

/* One layer of a step: every session gets the same rows. */
static int step_layer(struct calibrate *c, struct ebb_batch *batch, uint32_t layer, uint32_t first)
{
	const size_t q_dims = (size_t)c->m->n_heads * c->m->head_dim, q = STEP * q_dims, kv = (size_t)STEP * c->m->n_kv_heads * c->m->head_dim;
	const struct ebb_tensor tk = { .data = c->k }, tv = { .data = c->v }, tq = { .data = c->q }, out = { .data = c->out };
	int err;

	probe_rows(c->probe, layer, first, STEP, c->q, c->k, c->v);
	for (uint32_t i = 1; i < c->n_budgets; i++) {
		memcpy(c->q + i * q, c->q, q * sizeof(float));
		memcpy(c->k + i * kv, c->k, kv * sizeof(float));
		memcpy(c->v + i * kv, c->v, kv * sizeof(float));
	}
	err = ebb_append(batch, layer, &tk, &tv);
	if (!err)
		err = ebb_attend(batch, layer, &tq, &out, c->m->attn_scale, NULL);
	for (uint32_t s = 0; s < c->n_samples && !err; s++)
		for (uint32_t i = 0; i < c->n_budgets && c->sample[s] == first / PROBE_WINDOW; i++)
			memcpy(c->att + ((((size_t)i * c->m->n_layers + layer) * c->n_samples + s) * PROBE_WINDOW + first % PROBE_WINDOW) * q_dims,
			       c->out + i * q, q * sizeof(float));
	return err;
}

static int step(struct calibrate *c, struct ebb_batch *batch, uint32_t first)
{
	uint32_t n[MAX_BUDGETS];
	int err;

	for (uint32_t i = 0; i < c->n_budgets; i++)
		n[i] = STEP;
	err = ebb_step_begin(batch, n, -1);
	for (uint32_t i = 0; i < c->n_budgets && !err; i++)
		if (n[i] != STEP) {
			cli_error("the pool %s is short: a step of %u tokens was granted %u; calibrate when it has room", c->run->pool.name,
				  STEP, n[i]);
			return -ENOSPC;
		}
	for (uint32_t layer = 0; layer < c->m->n_layers && !err; layer++)
		err = step_layer(c, batch, layer, first);
	if (!err)
		err = ebb_step_end(batch);
	if (err)
		cli_error("a step of the restricted sessions: %s", ebb_error(c->run->ebb));
	return err;
}

static int restrict_lanes(struct calibrate *c)
{
	struct ebb_batch_options options = { .pool = c->run->pool.name, .max_sessions = c->n_budgets,
					     .max_rows = c->n_budgets * STEP };
	struct ebb_session *session[MAX_BUDGETS] = { NULL };
	struct ebb_batch *batch = NULL;
	int err = ebb_batch_new(c->run->ebb, &options, &batch);

	if (err)
		cli_error("%s", ebb_error(c->run->ebb));
	else
		err = open_sessions(c, batch, session);
	for (uint32_t first = 0; first < c->tokens && !err; first += STEP)
		err = step(c, batch, first);
	for (uint32_t i = 0; i < c->n_budgets; i++)
		if (session[i])
			ebb_session_close(session[i]);
	ebb_batch_free(batch);
	return err;
}

/* --- measuring ---------------------------------------------------------------------------------------------------------- */

static int measure_layer(struct calibrate *c, uint32_t text, uint32_t layer)
{
	const size_t rows = (size_t)c->n_samples * PROBE_WINDOW * c->m->n_heads * c->m->head_dim;
	const uint32_t n = c->m->n_kv_heads * c->n_budgets;
	struct probe_change change[MAX_BUDGETS * 64];
	double kl[MAX_BUDGETS * 64];

	for (uint32_t head = 0; head < c->m->n_kv_heads; head++)
		for (uint32_t i = 0; i < c->n_budgets; i++)
			change[head * c->n_budgets + i] = (struct probe_change){
				head, c->att + ((size_t)i * c->m->n_layers + layer) * rows };
	probe_change(c->probe, layer, change, n, kl);
	for (uint32_t i = 0; i < n; i++)	/* rounding may leave a little less than nothing */
		losses(c, text, layer, 0)[i] = kl[i] > 0.0 ? kl[i] : 0.0;
	return write_layer(c, text, layer);
}

static int measure_text(struct calibrate *c, uint32_t text)
{
	int err = 0, read = 0;

	for (uint32_t layer = 0; layer < c->m->n_layers && !err; layer++) {
		if (has_layer(c, text, layer))
			continue;
		if (!read) {
			probe_read(c->probe, c->run->seq[text].ids.id);
			err = restrict_lanes(c);
			c->done += READ_WORK;
			read = 1;
		}
		if (!err)
			err = measure_layer(c, text, layer);
		if (!err)
			show(c, text, layer, layer_work(c, layer));
	}
	return err;
}

/* --- the table ---------------------------------------------------------------------------------------------------------- */

/*
 * What a text counts: one over what all lanes lose on it at the middle budget. So each has the same say in which lanes are worth more than
 * others, where in a plain mean a text of records, on which everything loses ten times as much, would decide alone.
 */
static double text_weight(const struct calibrate *c, uint32_t text)
{
	double sum = 0.0;

	for (uint32_t lane = 0; lane < c->n_lanes; lane++)
		sum += losses(c, text, 0, 0)[(size_t)lane * c->n_budgets + c->n_budgets / 2];
	return sum > 0.0 ? 1.0 / sum : 0.0;
}

static int write_table(const struct calibrate *c, const char *path)
{
	char part[4096];
	double weights = 0.0;
	FILE *file;
	int err = 0;

	if ((size_t)snprintf(part, sizeof(part), "%s.new", path) >= sizeof(part))
		return -ENAMETOOLONG;
	file = fopen(part, "w");
	if (!file)
		return -errno;
	for (uint32_t text = 0; text < c->n_texts; text++)
		weights += c->weight[text] = text_weight(c, text);
	fprintf(file, "# What each lane of a model is worth, for split = measured: see ebbd.ini(5), lanes. Made by ebb-llama --calibrate from %u\n"
		"# texts of %u tokens, under %s. Per lane: layer, KV head, value, and for each of the budgets KL(full cache || this lane\n"
		"# alone held to so many slots) in nats, each text weighed by one over its sum at the middle budget. The value is the loss at "
		"the smallest.\n", c->n_texts, c->tokens, *c->run->cli->settings ? c->run->cli->settings : "the daemon's defaults");
	fprintf(file, "ebbd-lanes 1 %u %u\nmodel %s\ntokens %u\nwindow %u\nbudgets", c->m->n_layers, c->m->n_kv_heads, c->run->model_name,
		c->tokens, STEP);
	for (uint32_t i = 0; i < c->n_budgets; i++)
		fprintf(file, " %u", c->budget[i]);
	fputc('\n', file);
	for (uint32_t lane = 0; lane < c->n_lanes; lane++) {
		fprintf(file, "%u %u", lane / c->m->n_kv_heads, lane % c->m->n_kv_heads);
		for (int i = -1; i < (int)c->n_budgets; i++) {
			double sum = 0.0;

			for (uint32_t text = 0; text < c->n_texts; text++)
				sum += c->weight[text] * losses(c, text, 0, 0)[(size_t)lane * c->n_budgets + (uint32_t)(i < 0 ? 0 : i)];
			fprintf(file, " %.4g", weights > 0.0 ? sum / weights : 0.0);
		}
		fputc('\n', file);
	}
	if (ferror(file) | fclose(file))
		err = -EIO;
	return err ? err : rename(part, path) ? -errno : 0;
}

static int make_arrays(struct calibrate *c)
{
	const size_t q = (size_t)c->m->n_heads * c->m->head_dim, kv = (size_t)c->m->n_kv_heads * c->m->head_dim;
	const size_t all = (size_t)c->n_texts * c->n_lanes * c->n_budgets;

	c->loss = malloc(all * sizeof(*c->loss));
	c->weight = malloc(c->n_texts * sizeof(*c->weight));
	c->att = malloc((size_t)c->n_budgets * c->m->n_layers * c->n_samples * PROBE_WINDOW * q * sizeof(*c->att));
	c->q = malloc(c->n_budgets * STEP * q * sizeof(float));
	c->out = malloc(c->n_budgets * STEP * q * sizeof(float));
	c->k = malloc(c->n_budgets * STEP * kv * sizeof(float));
	c->v = malloc(c->n_budgets * STEP * kv * sizeof(float));
	if (!c->loss || !c->weight || !c->att || !c->q || !c->out || !c->k || !c->v)
		return -ENOMEM;
	for (size_t i = 0; i < all; i++)
		c->loss[i] = NAN;
	return 0;
}

static int prepare(struct calibrate *c, const char *part)
{
	int err = make_arrays(c);

	if (err)
		cli_error("not enough memory");
	else
		err = open_part(c, part);
	if (!err)
		err = run_connect(c->run);
	if (!err && c->run->pool.is_cuda) {
		cli_error("--calibrate computes on the CPU: choose a host pool with --pool");
		err = -ENODEV;
	}
	if (err)
		return err;
	err = c->m->n_kv_heads > 64 ? -ENOTSUP :
		probe_new(c->m, c->tokens, c->sample, c->n_samples, c->m->n_kv_heads * c->n_budgets, c->run->cli->threads, &c->probe);
	if (err)
		cli_error(err == -ENOTSUP ? "this model has sizes that --calibrate cannot do: multiples of 16 are needed, and at most 64 KV heads" :
			  "not enough memory, or no threads: %s", strerror(-err));
	return err;
}

int calibrate_run(struct run *run)
{
	struct calibrate c = { .run = run };
	char part[4096];
	int err = ask(&c);

	if (err)
		return err;
	if ((size_t)snprintf(part, sizeof(part), "%s.part", run->cli->output) >= sizeof(part))
		err = -ENAMETOOLONG;
	if (!err)
		err = prepare(&c, part);
	if (!err)
		count_work(&c);
	c.start_ns = run_ns();
	for (uint32_t text = 0; text < c.n_texts && !err; text++)
		err = measure_text(&c, text);
	if (!err) {
		err = write_table(&c, run->cli->output);
		if (err)
			cli_error("%s: cannot be written: %s", run->cli->output, strerror(-err));
		else
			(void)remove(part);
	}
	if (isatty(2))
		fputc('\n', stderr);
	if (c.part)
		fclose(c.part);
	probe_free(c.probe);
	free(c.loss);
	free(c.weight);
	free(c.att);
	free(c.q);
	free(c.k);
	free(c.v);
	free(c.out);
	return err;
}
