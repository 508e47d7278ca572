/*
 * ebb-bench-serve: main.c says what is measured and makes the page of it; clients.c starts ebbd and the clients, a process each; worker.cu is
 * a client: a model of a given shape with random weights (model.cuh) that decodes sessions.
 */
#ifndef SERVE_SERVE_H
#define SERVE_SERVE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SERVE_SERIES 32u
#define SERVE_PROCESSES 16u

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
	uint32_t fill;			/* tokens of prompts appended in one step at most; 0: a window of every session */
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

/*
 * serve_daemon_start - ebbd beside this program, or in $EBB_BIN, with one pool on the device. @log: NULL: nowhere. Returns the path of its
 * socket, or NULL after a sentence on stderr. serve_daemon_stop() ends it and takes its files away.
 */
const char *serve_daemon_start(int ordinal, uint64_t bytes, const char *log);
void serve_daemon_stop(void);

/*
 * serve_run - n clients of this configuration side by side; all begin to decode when the last is ready. @limit_s: seconds after which one is
 * ended. @out: sessions of all, times of the slowest, means of the rest. 0, or 1 after a sentence of the client's on stderr.
 */
int serve_run(const struct serve_config *config, uint32_t n, unsigned limit_s, struct serve_result *out);

/* serve_be_client - what serve_run() starts. Returns the exit status. */
int serve_be_client(const char *numbers, const char *socket_path, const char *settings);

/* serve_work - be a client. Progress on stderr. 0, or 1 after a sentence on stderr. */
int serve_work(const struct serve_config *config, struct serve_result *out);

#ifdef __cplusplus
}
#endif
#endif
