/*
 * The forward pass: one interface, an implementation per kind of pool. The CPU's is forward_cpu.c, CUDA's are forward_cuda.cu (float32
 * weights, kernels of its own) and forward_bf16.cu (bf16 weights, cuBLAS), in builds that have nvcc and its headers: the symbols are weak. The caller
 * chooses by ebb_pool_info.is_cuda, with forward_for().
 *
 * One step of a batch, as the caller (run.c) does it:
 *
 *     ebb_step_begin(batch, n, -1)
 *     ops->layers(f, batch, &in)        embedding, and per layer: norm, q k v, rope, ebb_append, ebb_attend, o, FFN
 *     ebb_step_end(batch)               before the vocabulary projection, so that the daemon decides meanwhile
 *     ops->output(f, &out)              final norm and vocabulary projection of in.out_row[] only; waits for the device
 *
 * Rows of the batch's sessions follow each other in the order of the batch. Errors: negative errno; f->why explains.
 * Threads: one at a time. `layers` and `output` never allocate.
 */
#ifndef LLAMA_FORWARD_H
#define LLAMA_FORWARD_H

#include <stddef.h>
#include <stdint.h>

#include "examples/llama/model.h"
#include "libclient/ebb.h"

#ifdef __cplusplus
extern "C" {
#endif

struct forward_options {
	const struct model *model;	/* kept */
	uint32_t max_rows;		/* rows of a step */
	uint32_t max_out;		/* rows of a step whose logits may be wanted */
	unsigned threads;		/* CPU */
	int ordinal;			/* CUDA device in this process */
	char *why;			/* on failure: a sentence */
	size_t why_bytes;
};

/* What goes in. Everything is host memory, borrowed until output() has returned (or layers() has failed). */
struct forward_in {
	uint32_t rows;			/* 1 .. max_rows */
	const int32_t *token;		/* [rows], each in 0 .. n_vocab-1 */
	const int32_t *pos;		/* [rows] position of the row in its sequence */
	uint32_t n_out;			/* 0 .. max_out */
	const uint32_t *out_row;	/* [n_out], ascending: rows whose logits are needed */
};

/* What comes out, host memory; each pointer may be NULL when it is not wanted. Row i belongs to out_row[i]. */
struct forward_out {
	float *logits;			/* [n_out][n_vocab] */
	int32_t *best;			/* [n_out]: the token with the largest logit, the lowest id of equals */
	const int32_t *target;		/* [n_out], read: whose log-probability is wanted ... */
	double *logprob;		/* [n_out]: ... natural logarithm, log-sum-exp in float64 or with compensated sums */
};

/* Every implementation's own struct begins with this. */
struct forward {
	const struct forward_ops *ops;
	char why[256];			/* the last failure, a sentence */
};

struct forward_ops {
	const char *name;		/* "cpu" or "cuda": shown to people */
	/* Loads what it needs of the model. -ENOMEM, -ENODEV, -EINVAL (a tensor type it cannot do), with options->why. */
	int (*open)(const struct forward_options *options, struct forward **out);
	void (*close)(struct forward *f);
	/* The stream for ebb_batch_options.stream; NULL on the CPU. */
	void *(*stream)(struct forward *f);
	int (*layers)(struct forward *f, struct ebb_batch *batch, const struct forward_in *in);
	int (*output)(struct forward *f, const struct forward_out *out);
};

extern const struct forward_ops forward_cpu_ops;
extern const struct forward_ops forward_cuda_ops __attribute__((weak));	/* forward_cuda.cu */
extern const struct forward_ops forward_bf16_ops __attribute__((weak));	/* forward_bf16.cu; open() says -ENOSYS where there is no cuBLAS */

/* forward_for - the implementation for a pool, on CUDA with bf16 weights or without; NULL when this build has none. */
const struct forward_ops *forward_for(int is_cuda, int bf16);

#ifdef __cplusplus
}
#endif
#endif
