/*
 * A client without a model: random keys, values and queries that are a function of (seed, session, position, layer) alone, so
 * that what attention returns can be compared bit for bit between runs. Runs in a child process, on the device of the daemon's first pool (on CUDA
 * the parent never touches it, so that it may fork). What the child does is seen in a struct traffic_report that both share.
 */
#ifndef TESTS_LIB_TRAFFIC_H
#define TESTS_LIB_TRAFFIC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Where a client may be told to die, by its own hand, with SIGKILL. */
enum traffic_point {
	AT_NOTHING,
	AT_CONNECTED,		/* no session yet */
	AT_OPENED,
	AT_PREFILL,		/* K and V of the prompt are appended, not attended */
	AT_BEGUN,		/* a step is begun, no work done */
	AT_APPENDED,		/* in the middle of a step's layers */
	AT_WORKED,		/* before step_end */
	AT_HANDED,		/* after a step_end that used a window up, at a random moment of the hand-over */
	AT_CLOSING,		/* at a random moment of closing */
	N_POINTS
};

struct traffic_spec {
	const char *name;		/* NULL: "traffic" */
	const char *settings;		/* of the sessions; NULL: the daemon's */
	uint32_t n_layers, n_kv_heads, group, head_dim;	/* 0: 2, 2, 3, 64 */
	uint32_t n_sessions;		/* of the batch; 0: 1 */
	uint32_t prompt;		/* tokens fed before the decoding, in steps of `chunk` */
	uint32_t chunk;			/* 0: 64 */
	uint32_t tokens;		/* in all, prompt included */
	uint32_t max_tokens;		/* of the sessions; 0: tokens */
	uint32_t rounds;		/* open, decode, close: so often; 0: once */
	uint32_t pause_us;		/* after each step */
	uint64_t seed;
	int wait_ms;			/* of opening */
	uid_t uid;			/* 0: who we are; else become this user first */
	bool no_uring;
	bool announce_prompt;
	enum traffic_point die_at;
	uint32_t die_step;		/* at the point's die_step-th passing, from 0 */
	bool hang;			/* begin a step at the end and never end it */
};

struct traffic_report {			/* in shared memory; written by the child, read with traffic_load() */
	uint64_t tokens;		/* of the round, of each session */
	uint64_t rounds;
	uint64_t hash;			/* over all outputs of the round so far; of the last round when it is over */
	uint64_t evicted, live;		/* of session 0, at the last step */
	uint32_t budget, fewer;		/* fewer: steps that were granted fewer tokens than asked */
	uint32_t connected, opened, ended;
	uint32_t stop;			/* the parent: end at the next step boundary, with everything closed */
	int32_t rc;			/* first error, and */
	char error[256];		/* its sentence */
};

/* Shared memory for n reports, zeroed. Lives until the program ends. */
struct traffic_report *traffic_reports(unsigned n);
/* Starts a client. Its exit code: 0 done or stopped, 1 with rc and error in the report. */
pid_t traffic_start(const char *socket, const struct traffic_spec *spec, struct traffic_report *report);
/* Waits for its end; returns the exit code, or 256 + signal. */
int traffic_wait(pid_t pid);
/* Runs one to its end, fails the test unless it went well, returns the hash. */
uint64_t traffic_run(const char *socket, const struct traffic_spec *spec, struct traffic_report *report);
/* Waits until *word is at least so much. Fails the test if that takes too long. */
void traffic_await(const uint64_t *word, uint64_t at_least);
void traffic_await_flag(const uint32_t *word);
void traffic_stop(struct traffic_report *report);

#endif
