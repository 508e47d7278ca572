/* The command line of ebb-llama. */
#ifndef LLAMA_CLI_H
#define LLAMA_CLI_H

#include <stddef.h>
#include <stdint.h>

#include "examples/llama/marks.h"

#define CLI_MAX_SOURCES 1024u

struct cli_source {		/* one -f or -p */
	const char *text;	/* the argument: a path, or the text itself */
	int is_file;
};

struct cli {
	const char *model;
	struct cli_source *source;	/* [n_sources], in the order given */
	uint32_t n_sources;
	uint32_t n_predict;		/* -n */
	uint32_t batch, batch_offset;
	uint32_t limit;			/* 0: none */
	uint32_t chunk;			/* 0: not given */
	uint32_t threads;
	int wait_ms;
	const char *pool, *socket;
	const char *system, *logits, *status, *lanes;
	const char *weights;		/* "f32", "bf16" or NULL */
	const char *full_run, *full_slots, *kept;
	const char *output, *budgets;	/* of --calibrate */
	const char *depths;		/* of --passkey */
	uint32_t keys;
	const char *budget;		/* as given, or NULL; also in `settings` */
	double temperature;
	uint64_t seed;
	int chat, nll, json, local, ids, all, special, progress, ignore_eos, against_full, belady, passkey, calibrate;
	struct marks marks;		/* --tag, --pin, --drop */
	char settings[1024];		/* for the daemon; only what was given */
	int exit_now;			/* --help or --version: done, exit with 0 */
};

/* cli_parse - 0; 2 after a sentence on stderr (the exit code). Free with cli_free(). */
int cli_parse(struct cli *cli, int argc, char **argv);
void cli_free(struct cli *cli);

/* cli_budget - slots that --budget means for a text of @tokens tokens; 0 when it was not given. */
uint32_t cli_budget(const struct cli *cli, uint32_t tokens);

/* cli_error - "ebb-llama: " and a sentence, on stderr. */
__attribute__((format(printf, 1, 2))) void cli_error(const char *format, ...);

#endif
