#include "examples/llama/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "examples/llama/run.h"

#define PERIOD_NS 250000000u
#define LINE_BYTES 256
#define LONG_PROMPT 512u	/* tokens from which a progress line is worth showing */

struct status {
	int fd;			/* -1: no file */
	int show;		/* the line on stderr */
	int shown;
	uint64_t last_ns, last_tokens;
	double rate;		/* tokens per second, smoothed */
};

int status_new(const struct run *run, struct status **out)
{
	const struct cli *cli = run->cli;
	uint64_t prompt = 0;
	struct status *s;

	for (uint32_t i = 0; i < run->n_seqs; i++)
		prompt += run->seq[i].n_prompt;
	if (!cli->status && !cli->progress && (!isatty(2) || prompt < LONG_PROMPT))
		return 0;
	s = calloc(1, sizeof(*s));
	if (!s) {
		cli_error("out of memory");
		return -ENOMEM;
	}
	s->fd = -1;
	s->show = cli->progress || (isatty(2) && prompt >= LONG_PROMPT);
	s->last_ns = run_ns();
	if (cli->status) {
		s->fd = open(cli->status, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
		if (s->fd < 0) {
			int err = -errno;

			cli_error("%s: cannot write the status: %s", cli->status, strerror(-err));
			free(s);
			return err;
		}
	}
	*out = s;
	return 0;
}

static void clear_line(struct status *s)
{
	if (s->shown)
		fputs("\r\033[K", stderr);
	s->shown = 0;
}

void status_free(struct status *status)
{
	if (!status)
		return;
	clear_line(status);
	if (status->fd >= 0)
		close(status->fd);
	free(status);
}

static const char *phase(const struct run *run)
{
	if (run->cli->nll)
		return "nll";
	for (uint32_t i = 0; i < run->n_seqs; i++)
		if (run->seq[i].fed < run->seq[i].n_prompt)
			return "prefill";
	return "decode";
}

static void write_file(struct status *s, const struct run *run, const char *what)
{
	char line[LINE_BYTES + 1];
	struct run_totals t;
	int n;

	run_totals(run, &t);
	n = snprintf(line, sizeof(line),
		     "{\"tokens\":%llu,\"tokens_per_s\":%.1f,\"live_slots\":%llu,\"full_slots\":%llu,\"evicted\":%llu,\"phase\":\"%s\"}",
		     (unsigned long long)t.fed, s->rate, (unsigned long long)t.live_slots, (unsigned long long)t.full_slots,
		     (unsigned long long)t.evicted, what);
	if (n < 0 || n >= LINE_BYTES)
		return;
	memset(line + n, ' ', (size_t)(LINE_BYTES - n));
	line[LINE_BYTES - 1] = '\n';
	if (pwrite(s->fd, line, LINE_BYTES, 0) != LINE_BYTES) {	/* a viewer's loss is no reason to stop */
		close(s->fd);
		s->fd = -1;
	}
}

/* Only while prompts are read: later the text itself shows that something happens. */
static void show_line(struct status *s, const struct run *run, const char *what)
{
	uint64_t done = 0, all = 0;

	if (strcmp(what, "decode") == 0) {
		clear_line(s);
		return;
	}
	for (uint32_t i = 0; i < run->n_seqs; i++) {
		const struct sequence *q = &run->seq[i];

		done += q->fed < q->n_prompt ? q->fed : q->n_prompt;
		all += q->n_prompt;
	}
	fprintf(stderr, "\r\033[Kreading: %llu of %llu tokens (%.0f %%), %.0f tokens/s", (unsigned long long)done,
		(unsigned long long)all, 100.0 * (double)done / (double)all, s->rate);
	fflush(stderr);
	s->shown = 1;
}

static void measure(struct status *s, const struct run *run, uint64_t now)
{
	uint64_t tokens = 0;
	double rate;

	for (uint32_t i = 0; i < run->n_seqs; i++)
		tokens += run->seq[i].fed;
	rate = (double)(tokens - s->last_tokens) * 1e9 / (double)(now - s->last_ns + 1);
	s->rate = s->rate > 0.0 ? 0.5 * s->rate + 0.5 * rate : rate;
	s->last_ns = now;
	s->last_tokens = tokens;
}

void status_tick(struct status *status, const struct run *run)
{
	const char *what;
	uint64_t now;

	if (!status)
		return;
	what = phase(run);
	if (status->shown && strcmp(what, "decode") == 0)
		clear_line(status);	/* before the first word */
	now = run_ns();
	if (now - status->last_ns < PERIOD_NS)
		return;
	measure(status, run, now);
	if (status->fd >= 0)
		write_file(status, run, what);
	if (status->show)
		show_line(status, run, what);
}

void status_done(struct status *status, const struct run *run)
{
	if (!status)
		return;
	clear_line(status);
	if (status->fd >= 0)
		write_file(status, run, "done");
}
