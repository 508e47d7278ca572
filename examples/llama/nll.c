#include "examples/llama/nll.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "examples/llama/against.h"
#include "examples/llama/run.h"
#include "examples/llama/status.h"

#define DEFAULT_CHUNK 32u

struct sums {
	double *nats;		/* per sequence and position, 0 where nothing is predicted */
	size_t *from;		/* where a sequence's begin */
};

static int feed(struct run *run, uint32_t chunk, const struct sums *sums, struct against *against)
{
	for (;;) {
		uint32_t left = 0;
		int err;

		for (uint32_t i = 0; i < run->n_seqs; i++) {
			uint32_t rest = run->seq[i].n_prompt - run->seq[i].fed;

			run->n[i] = rest < chunk ? rest : chunk;
			left += run->n[i];
		}
		if (left == 0)
			return 0;
		err = run_step(run, RUN_ALL);
		if (!err && against)
			err = against_step(against);
		if (err)
			return err;
		for (uint32_t k = 0; k < run->n_out; k++)
			sums->nats[sums->from[run->out_seq[k]] + run->out_pos[k]] = -run->logprob[k];
	}
}

/* Mean over the predictions made from positions >= from; how many there were. */
static double mean(const struct run *run, const struct sums *sums, const uint32_t *from, uint64_t *n)
{
	double total = 0.0;

	*n = 0;
	for (uint32_t i = 0; i < run->n_seqs; i++) {
		for (uint32_t p = from ? from[i] : 0; p + 1 < run->seq[i].n_prompt; p++, ++*n)
			total += sums->nats[sums->from[i] + p];
	}
	return *n ? total / (double)*n : 0.0;
}

static int report(struct run *run, const struct sums *sums, const struct against *against, double seconds)
{
	uint32_t *from = calloc(run->n_seqs, sizeof(*from));
	struct run_totals t;
	uint64_t n, n_tail;
	double nll, tail;

	if (!from)
		return -ENOMEM;
	run_totals(run, &t);
	for (uint32_t i = 0; i < run->n_seqs; i++) {	/* what was asked for, or else what the daemon gave */
		struct ebb_stats stats = { 0 };

		ebb_session_stats(run->seq[i].session, &stats);
		from[i] = run->cli->budget ? cli_budget(run->cli, run->seq[i].n_prompt) : run->cli->local ? 0 : stats.budget;
	}
	nll = mean(run, sums, NULL, &n);
	tail = mean(run, sums, from, &n_tail);
	printf("{\"tokens\":%llu,\"nll\":%.9g,", (unsigned long long)t.fed, nll);
	if (n_tail)
		printf("\"nll_tail\":%.9g,", tail);
	else
		printf("\"nll_tail\":null,");
	printf("\"live_slots\":%llu,\"evicted\":%llu,\"tokens_per_s\":%.2f,\"predicted\":%llu,\"tail_from\":%u,\"full_slots\":%llu,"
	       "\"forward\":\"%s\",\"isa\":\"%s\"", (unsigned long long)t.live_slots, (unsigned long long)t.evicted,
	       (double)t.fed / seconds, (unsigned long long)n, from[0], (unsigned long long)t.full_slots, run->ops->name,
	       tensor_isa());
	if (against)
		against_print(against, from);
	printf("}\n");
	free(from);
	return against && run->cli->kept ? against_write_kept(against, run->cli->kept) : 0;
}

int nll_run(struct run *run)
{
	uint32_t chunk = run->cli->chunk ? run->cli->chunk : DEFAULT_CHUNK;
	struct against *against = NULL;
	struct sums sums = { NULL, calloc(run->n_seqs, sizeof(size_t)) };
	size_t total = 0;
	int err = -ENOMEM;

	if (sums.from) {
		for (uint32_t i = 0; i < run->n_seqs; i++) {
			sums.from[i] = total;
			total += run->seq[i].n_prompt;
		}
		sums.nats = calloc(total, sizeof(*sums.nats));
	}
	if (sums.nats) {
		err = run_open(run, chunk * run->n_seqs, chunk * run->n_seqs, run->cli->against_full);
		if (!err && run->cli->against_full)
			err = against_open(run, chunk, &against);
		if (!err)
			err = feed(run, chunk, &sums, against);
		if (!err) {
			status_done(run->status, run);
			err = report(run, &sums, against, (double)(run_ns() - run->start_ns) / 1e9);
		}
	} else {
		cli_error("out of memory");
	}
	against_close(against);
	free(sums.nats);
	free(sums.from);
	return err;
}
