/*
 * A run of the program: the model, the connection to libebb and the sequences that are advanced together. generate.c and nll.c
 * decide what to feed and what to do with what comes out; run_step() does the rest. Failures are reported on stderr here.
 */
#ifndef LLAMA_RUN_H
#define LLAMA_RUN_H

#include <stdint.h>
#include <stdio.h>

#include "examples/llama/cli.h"
#include "examples/llama/forward.h"
#include "examples/llama/tokenizer.h"
#include "libclient/ebb.h"

struct sequence {
	struct ebb_session *session;
	struct tokens ids;		/* the prompt and what was generated */
	uint32_t n_prompt;
	uint32_t fed;			/* of them, tokens that have gone through the model */
};

enum run_outputs {
	RUN_LAST,	/* the prediction after a sequence's last known token, if the step reached it */
	RUN_ALL,	/* the prediction after every token whose successor is known, scored against it */
};

struct run {
	const struct cli *cli;
	struct gguf *file;
	struct model *model;
	struct tokenizer *tok;
	struct ebb *ebb;
	struct ebb_pool_info pool;
	const struct forward_ops *ops;
	struct forward *forward;
	struct ebb_batch *batch;
	struct sequence *seq;
	char model_name[64];		/* for the daemon, and in tables of lanes */
	char *lanes;			/* text of --lanes, or NULL */
	uint32_t n_seqs;
	FILE *logits_file;
	struct status *status;
	uint64_t start_ns;		/* when the first step began */
	int (*look)(struct run *run, void *arg);	/* NULL, or called in every step before it ends; reports its own failures */
	void *look_arg;

	/* One step's arrays. */
	uint32_t max_rows, max_out;
	uint32_t *n;			/* [n_seqs] in: tokens to feed; out: tokens fed */
	int32_t *token, *pos;		/* [max_rows] */
	uint32_t *out_row;		/* [max_out] */
	uint32_t n_out;			/* predictions that the last step made */
	uint32_t *out_seq, *out_pos;	/* [max_out] whose, and after which token */
	int32_t *best, *target;		/* [max_out] */
	double *logprob;		/* [max_out] RUN_ALL: of the token that did follow */
	float *logits;			/* [max_out][n_vocab], NULL unless they were asked for */
};

/* Sums over the sequences. */
struct run_totals {
	uint64_t fed, live_slots, full_slots, evicted;
	uint32_t budget;	/* the first sequence's */
};

/* run_load - open the model and read the prompts into run->seq. 0 or a negative errno. Undo with run_close(), also on failure. */
int run_load(struct run *run, const struct cli *cli);

/*
 * run_open - connect, open the sessions and the forward pass.
 * @max_rows, @max_out: rows and predictions of a step. @want_logits: keep run->logits.
 */
int run_open(struct run *run, uint32_t max_rows, uint32_t max_out, int want_logits);
void run_close(struct run *run);

/* run_connect - only run->ebb and run->pool, as run_open() makes them first. For who opens sessions of its own. */
int run_connect(struct run *run);

/*
 * run_open_session - open sequence i's session on a connection (run->ebb, or another of the same device) and let it join a batch.
 * For who opens sessions one by one; run_open() has opened one per sequence.
 */
int run_open_session(struct run *run, uint32_t i, struct ebb *ebb, struct ebb_batch *batch);

/* run_encode - the token ids of a prompt, appended. */
int run_encode(const struct run *run, const struct cli_source *source, struct tokens *out);

/* run_step - feed up to run->n[i] tokens of every sequence; on return run->n[i] is how many. 0 or a negative errno. */
int run_step(struct run *run, enum run_outputs outputs);

void run_totals(const struct run *run, struct run_totals *out);
uint64_t run_ns(void);	/* the monotonic clock */

#endif
