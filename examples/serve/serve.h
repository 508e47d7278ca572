/*
 * ebb-bench-serve: main.c runs workers, one process per client and configuration, and makes the page of what they say; worker.cu is the client:
 * a model of a given shape with random weights that decodes sessions. They talk by a pipe (see worker.cu).
 */
#ifndef SERVE_SERVE_H
#define SERVE_SERVE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SERVE_SERIES 32u

struct serve_model {
	uint32_t layers, heads, kv_heads, head_dim, hidden, ffn, vocab;
};

/* What a worker does. */
struct serve_config {
	struct serve_model model;
	int ordinal;			/* CUDA device */
	const char *socket;		/* NULL: no daemon, plain caches in memory of its own (ebb_local()) */
	const char *settings;		/* of the sessions */
	uint64_t bytes;			/* without a daemon: memory for caches */
	uint32_t sessions;		/* 0: as many as fit */
	uint32_t length;		/* tokens of a session in all: the last `decode` of them are decoded, those before appended at random */
	uint32_t decode;		/* steps; the first `warm` are not measured */
	uint32_t warm;
	uint32_t pad;			/* ebb_batch_options.pad_sessions */
	int graph;			/* steps as CUDA graphs */
	int ragged;			/* now and then a session sits a step out */
	int check;			/* a hash of all logits */
	int gate;			/* say READY, then wait for a line before decoding */
};

/* What it says: times over the measured steps. */
struct serve_result {
	uint32_t sessions;
	uint32_t steps;
	double seconds;			/* from the end of the last step before them to the end of the last, on the device */
	double window_ms;		/* median time of 32 steps */
	double cpu_us, ebb_us;		/* a step: CPU time of the process; of it between ebb_step_begin() and _end(), without the layers' calls */
	uint32_t graphs;		/* captured, all in all */
	double open_s, prefill_s;
	uint64_t hash;			/* of all logits of all steps */
	uint32_t n_series;
	double series_ms[SERVE_SERIES];	/* mean step time over equal parts of the measured steps */
};

/* serve_work - be a client. Progress on stderr. 0, or 1 after a sentence on stderr. */
int serve_work(const struct serve_config *config, struct serve_result *out);

#ifdef __cplusplus
}
#endif
#endif
