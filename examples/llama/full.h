/*
 * The full cache that an evicted one is compared with: what it predicts, and where its attention goes. Either it runs, in lock-step
 * with the other, in sessions of ebb_local() on the same device; or it ran before and is read from a file.
 *
 * The file, in the byte order of the machine that wrote it, is a cache and not an exchange format: struct full_head, then per step
 * uint32 tokens, uint32 predictions, float logits[predictions][n_vocab], float heat[n_lanes][tokens so far]. A file that belongs to
 * another text, model, chunk or slot type is refused.
 */
#ifndef LLAMA_FULL_H
#define LLAMA_FULL_H

#include <stdint.h>
#include <stdio.h>

struct run;

struct full_head {
	char magic[8];			/* "ebbfull1" */
	uint32_t tokens, n_vocab, n_lanes, chunk;
	uint64_t ids;			/* hash of the token ids */
	uint64_t model_bytes;		/* size of the model's file */
	char slots[8], isa[16];
};

struct full {
	struct run *run;		/* borrowed */
	uint32_t n_lanes, chunk;
	struct ebb *ebb;		/* NULL when a file is read */
	struct ebb_batch *batch;
	struct ebb_session **session;	/* [n_seqs] */
	FILE *file;
	struct full_head head;
	uint32_t fed;			/* tokens of the file read so far */
	/* What it said to the last step: */
	float *logits;			/* [run->n_out][n_vocab] */
	/*
	 * [n_seqs], each [n_lanes][room]: attention by position, summed over the step's queries and the group's heads. Nothing is said of
	 * positions that are still to come.
	 */
	float **heat;
	uint32_t *room;			/* [n_seqs] */
	float *none;			/* zeros, as many as the largest room */
};

/*
 * full_open - after run_open(). @path: NULL: run it in lock-step. Else the file; when there is none the full cache runs over the whole
 * text first and writes it (one sequence only). 0 or a negative errno, reported on stderr. Undo with full_close(), also on failure.
 */
int full_open(struct full *full, struct run *run, uint32_t chunk, const char *path);
void full_close(struct full *full);

/* full_step - let it do what run_step() has just done. */
int full_step(struct full *full);

/* full_scan - call fn for every step of the file, with heat in full->heat; rewinds afterwards. Only when a file is read. */
int full_scan(struct full *full, void (*fn)(void *arg, struct full *full), void *arg);

#endif
