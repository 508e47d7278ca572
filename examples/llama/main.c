/* ebb-llama: runs a model of the llama family with its attention cache in ebbd. See cli.c for the options. */
#include "examples/llama/calibrate.h"
#include "examples/llama/generate.h"
#include "examples/llama/nll.h"
#include "examples/llama/passkey.h"
#include "examples/llama/run.h"

static int print_ids(const struct run *run)
{
	for (uint32_t i = 0; i < run->n_seqs; i++)
		for (size_t k = 0; k < run->seq[i].ids.n; k++)
			printf("%d\n", run->seq[i].ids.id[k]);
	return 0;
}

int main(int argc, char **argv)
{
	struct cli cli;
	struct run run;
	int err = cli_parse(&cli, argc, argv);

	if (err || cli.exit_now) {
		cli_free(&cli);
		return err;
	}
	err = run_load(&run, &cli);
	if (!err)
		err = cli.ids ? print_ids(&run) : cli.nll ? nll_run(&run) : cli.passkey ? passkey_run(&run) : cli.calibrate ? calibrate_run(&run) :
			generate_run(&run);
	run_close(&run);
	cli_free(&cli);
	if (!err && fflush(stdout)) {
		cli_error("standard output is closed or full");
		err = -1;
	}
	return err ? 1 : 0;
}
