#include "examples/llama/cli.h"

#include <errno.h>
#include <getopt.h>
#include <glob.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/ebb.h"

enum { FLAG, TEXT, SOURCE, COUNT, AMOUNT, REAL, SEED, WAIT, SETTING, MARK, HELP, VERSION };

/* One row per option: how it is written, what it fills, and what --help says. */
struct option_row {
	const char *name, *argument;
	char letter;
	int kind;
	size_t field;			/* of struct cli; MARK: enum ebb_mark_what */
	uint32_t least, most;		/* COUNT */
	const char *key;		/* the daemon's name: also sent with the session */
	const char *help;
};

#define AT(field) offsetof(struct cli, field)

static const struct option_row rows[] = {
	{ "model", "FILE", 'm', TEXT, AT(model), 0, 0, NULL, "the GGUF file (default: build/model/*.gguf if there is exactly one)" },
	{ "file", "FILE", 'f', SOURCE, 1, 0, 0, NULL, "read the prompt from a file; - is standard input; may be repeated" },
	{ "prompt", "TEXT", 'p', SOURCE, 0, 0, 0, NULL, "the prompt itself; may be repeated" },
	{ "predict", "TOKENS", 'n', COUNT, AT(n_predict), 0, 1u << 24, NULL, "how many tokens to generate (128)" },
	{ "chat", NULL, 0, FLAG, AT(chat), 0, 0, NULL, "the prompt is a user's turn: wrap it in the chat template" },
	{ "system", "TEXT", 0, TEXT, AT(system), 0, 0, NULL, "the system turn of --chat (the model's own by default)" },
	{ "temp", "T", 0, REAL, AT(temperature), 0, 0, NULL, "draw with this temperature (0: always the likeliest token)" },
	{ "seed", "S", 0, SEED, AT(seed), 0, 0, "seed", "seed of the draws, and of a policy that draws (0)" },
	{ "ignore-eos", NULL, 0, FLAG, AT(ignore_eos), 0, 0, NULL, "go on after an end-of-text token" },
	{ "special", NULL, 0, FLAG, AT(special), 0, 0, NULL, "names like <|im_end|> in a prompt mean the special token" },
	{ "batch", "N", 0, COUNT, AT(batch), 1, 4096, NULL,
	  "sequences decoded together; sequence i reads prompt i mod (number of prompts)" },
	{ "batch-offset", "TOKENS", 0, COUNT, AT(batch_offset), 0, 1u << 24, NULL,
	  "each further sequence on the same prompt starts so many tokens later in it (0)" },
	{ "limit", "T", 0, COUNT, AT(limit), 1, 1u << 24, NULL, "use only the first T tokens of a prompt" },
	{ "chunk", "N", 0, COUNT, AT(chunk), 1, 4096, NULL,
	  "prompt tokens of a sequence in one step (--nll: 32; else as many as fit)" },
	{ "nll", NULL, 0, FLAG, AT(nll), 0, 0, NULL, "do not generate: how well is the text predicted? prints one JSON line" },
	{ "against-full", NULL, 0, FLAG, AT(against_full), 0, 0, NULL,
	  "with --nll: run the full cache in lock-step and add what eviction costs: kl, top1, mass_kept, kl_all" },
	{ "full-run", "FILE", 0, TEXT, AT(full_run), 0, 0, NULL,
	  "with --against-full: keep what the full cache said in FILE, and take it from there the next time" },
	{ "full-slots", "TYPE", 0, TEXT, AT(full_slots), 0, 0, NULL,
	  "with --against-full: how the full cache stores keys and values (as --slots says)" },
	{ "belady", NULL, 0, FLAG, AT(belady), 0, 0, NULL,
	  "with --full-run: keep slots by the attention that they will still receive in the full run: the bound" },
	{ "kept", "FILE", 0, TEXT, AT(kept), 0, 0, NULL, "with --against-full: write the positions that each lane holds at the end" },
	{ "passkey", NULL, 0, FLAG, AT(passkey), 0, 0, NULL,
	  "is a number found that was hidden in a long text? with the daemon's cache and with a full one; -f and -p: more texts to hide it in" },
	{ "depths", "LIST", 0, TEXT, AT(depths), 0, 0, NULL, "of --passkey: where the number is, shares of the text, with commas" },
	{ "keys", "N", 0, COUNT, AT(keys), 1, 1000, NULL, "of --passkey: numbers tried at each depth of each text (as many as make 24 trials)" },
	{ "calibrate", NULL, 0, FLAG, AT(calibrate), 0, 0, NULL,
	  "measure what each lane of the model is worth on the texts that are named: a table of lanes, in --output" },
	{ "output", "FILE", 'o', TEXT, AT(output), 0, 0, NULL, "of --calibrate: the table; FILE.part holds what is measured until then" },
	{ "budgets", "LIST", 0, TEXT, AT(budgets), 0, 0, NULL,
	  "of --calibrate: slots that a lane is restricted to, rising, with commas (24,40,64,100,160,400,1000)" },
	{ "ids", NULL, 0, FLAG, AT(ids), 0, 0, NULL, "print the prompt's token ids, one a line, and exit" },
	{ "all", NULL, 0, FLAG, AT(all), 0, 0, NULL, "print the texts of all sequences, not only the first" },
	{ "json", NULL, 0, FLAG, AT(json), 0, 0, NULL, "print one JSON object at the end instead of text" },
	{ "local", NULL, 0, FLAG, AT(local), 0, 0, NULL, "no daemon: keep a full cache in this process (--pool: host or cuda:N)" },
	{ "socket", "PATH", 0, TEXT, AT(socket), 0, 0, NULL, "the daemon's socket ($EBB_SOCKET, else " EBB_SOCKET_DEFAULT ")" },
	{ "pool", "NAME", 0, TEXT, AT(pool), 0, 0, NULL, "the daemon's pool (its first)" },
	{ "wait", "MS", 0, WAIT, AT(wait_ms), 0, 0, NULL, "wait so long when the pool has no room; -1: for ever (0)" },
	{ "policy", "NAME", 0, SETTING, 0, 0, 0, "policy", "eviction policy, NAME[:key=value,...]; ebbctl policies lists them" },
	{ "merge", "NAME", 0, SETTING, 0, 0, 0, "merge", "what becomes of a victim's key and value: none, cam, d2o, pivot" },
	{ "split", "NAME", 0, SETTING, 0, 0, 0, "split", "how the budget is shared over layers and heads; ebbctl policies lists them" },
	{ "lanes", "FILE", 0, TEXT, AT(lanes), 0, 0, NULL, "a table of what each lane is worth, for a split that needs one" },
	{ "budget", "N|P%", 0, AMOUNT, AT(budget), 0, 0, "budget", "slots a lane may hold" },
	{ "slots", "TYPE", 0, SETTING, 0, 0, 0, "slots", "how keys and values are stored: f32, f16, bf16, q8, k8v4 or q4" },
	{ "prefill", "HOW", 0, SETTING, 0, 0, 0, "prefill", "whole or chunked" },
	{ "window", "N", 0, SETTING, 0, 0, 0, "window", "tokens between two decisions of the daemon" },
	{ "sinks", "N", 0, SETTING, 0, 0, 0, "sinks", "first tokens that are never evicted" },
	{ "recent", "N|P%", 0, SETTING, 0, 0, 0, "recent", "newest slots that are never evicted" },
	{ "observe", "K", 0, SETTING, 0, 0, 0, "observe", "collect attention of every K-th query" },
	{ "set", "KEY=VALUE", 0, SETTING, 0, 0, 0, "", "any other setting of the daemon's [session]; may be repeated" },
	{ "tag", "A:B=N", 0, MARK, EBB_TAG, 0, 0, NULL, "positions A to B-1 are of modality N (0: text); may be repeated" },
	{ "pin", "A:B", 0, MARK, EBB_PIN, 0, 0, NULL, "positions A to B-1 are not evicted while anything else can be; may be repeated" },
	{ "drop", "A:B@L", 0, MARK, EBB_DROP, 0, 0, NULL,
	  "once position B is reached, layers from L on lose positions A to B-1; may be repeated" },
	{ "weights", "TYPE", 0, TEXT, AT(weights), 0, 0, NULL,
	  "on a GPU: bf16 (cuBLAS, steps as CUDA graphs), or f32 (as on the host; the default of --nll, --passkey, --calibrate)" },
	{ "threads", "N", 't', COUNT, AT(threads), 1, 256, NULL, "CPU threads (1)" },
	{ "logits", "FILE", 0, TEXT, AT(logits), 0, 0, NULL, "write the float32 logits of every prediction, one after the other" },
	{ "status", "FILE", 0, TEXT, AT(status), 0, 0, NULL, "keep a JSON line on the progress in this file" },
	{ "progress", NULL, 0, FLAG, AT(progress), 0, 0, NULL, "a progress line on stderr even if that is no terminal" },
	{ "help", NULL, 'h', HELP, 0, 0, 0, NULL, "this text" },
	{ "version", NULL, 0, VERSION, 0, 0, 0, NULL, "the version" },
};
#define N_ROWS (sizeof(rows) / sizeof(rows[0]))

void cli_error(const char *format, ...)
{
	va_list args;

	fputs("ebb-llama: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

static void print_help(void)
{
	printf("usage: ebb-llama [-m MODEL] (-f FILE | -p TEXT) [options]\n\n"
	       "Runs a language model of the llama family whose attention cache lives in ebbd (or, with --local, here).\n"
	       "The text of the first sequence goes to standard output as it is produced. What is not given is not sent:\n"
	       "the daemon's own defaults apply.\n\n");
	for (size_t i = 0; i < N_ROWS; i++) {
		char left[64];
		int n = 0;

		if (rows[i].letter)
			n = snprintf(left, sizeof(left), "-%c, ", rows[i].letter);
		snprintf(left + n, sizeof(left) - (size_t)n, "--%s%s%s", rows[i].name, rows[i].argument ? " " : "",
			 rows[i].argument ? rows[i].argument : "");
		printf("  %-24s %s\n", left, rows[i].help);
	}
	printf("\nExit status: 0 done, 1 failed, 2 used wrongly.\n");
}

/* --- values ----------------------------------------------------------------------------------------------- */

static int parse_u64(const char *s, uint64_t most, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(s, &end, 10);
	return errno || end == s || *end || *s < '0' || *s > '9' || *out > most ? -EINVAL : 0;
}

/* A count, or a share of something as P%. */
static int parse_amount(const char *s, uint64_t *count, double *share)
{
	char *end;

	*share = 0.0;
	if (parse_u64(s, UINT32_MAX, count) == 0)
		return *count ? 0 : -EINVAL;
	*count = 0;
	errno = 0;
	*share = strtod(s, &end) / 100.0;
	return errno || end == s || strcmp(end, "%") != 0 || !(*share > 0.0) || *share > 1.0 ? -EINVAL : 0;
}

static int add_setting(struct cli *cli, const char *key, const char *value)
{
	size_t at = strlen(cli->settings);
	int n;

	if (!*value || strpbrk(value, " \t\n") || (!*key && !strchr(value, '='))) {
		cli_error("'%s' is not a setting%s", value, *key ? " without spaces" : " of the form KEY=VALUE");
		return 2;
	}
	n = snprintf(cli->settings + at, sizeof(cli->settings) - at, "%s%s%s%s", at ? " " : "", key, *key ? "=" : "", value);
	if (n < 0 || (size_t)n >= sizeof(cli->settings) - at) {
		cli_error("the settings for the daemon are longer than %zu characters", sizeof(cli->settings) - 1);
		return 2;
	}
	return 0;
}

static int wrong(const struct option_row *row, const char *value, const char *allowed)
{
	cli_error("--%s %s: %s", row->name, value, allowed);
	return 2;
}

static int take_number(struct cli *cli, const struct option_row *row, const char *value)
{
	char *field = (char *)cli + row->field, allowed[64], *end;
	uint64_t number;
	double real;

	switch (row->kind) {
	case COUNT:
		snprintf(allowed, sizeof(allowed), "a whole number from %u to %u is needed", row->least, row->most);
		if (parse_u64(value, row->most, &number) || number < row->least)
			return wrong(row, value, allowed);
		*(uint32_t *)(void *)field = (uint32_t)number;
		return 0;
	case SEED:
		if (parse_u64(value, UINT32_MAX, &cli->seed))
			return wrong(row, value, "a whole number from 0 to 4294967295 is needed");
		return add_setting(cli, row->key, value);
	case REAL:
		real = strtod(value, &end);
		if (end == value || *end || !(real >= 0.0) || real > 100.0)
			return wrong(row, value, "a number from 0 to 100 is needed");
		*(double *)(void *)field = real;
		return 0;
	case WAIT:
		if (strcmp(value, "-1") == 0) {
			cli->wait_ms = -1;
			return 0;
		}
		if (parse_u64(value, 86400000, &number))
			return wrong(row, value, "milliseconds up to 86400000 are needed, or -1");
		cli->wait_ms = (int)number;
		return 0;
	default:
		if (parse_amount(value, &number, &real))
			return wrong(row, value, "a number of slots is needed, or a share such as 25%");
		cli->budget = value;
		return add_setting(cli, row->key, value);
	}
}

static int take_mark(struct cli *cli, const struct option_row *row, const char *value)
{
	char allowed[96];

	snprintf(allowed, sizeof(allowed), "%s is needed, A less than B%s", row->argument, cli->marks.n == MARKS_MAX ?
		 ", and no more than 64 of these options" : "");
	return marks_parse(&cli->marks, (enum ebb_mark_what)row->field, value) ? wrong(row, value, allowed) : 0;
}

static int take(struct cli *cli, const struct option_row *row, const char *value)
{
	char *field = (char *)cli + row->field;

	switch (row->kind) {
	case HELP:
		print_help();
		cli->exit_now = 1;
		return 0;
	case VERSION:
		printf("ebb-llama %s\n", EBB_VERSION);
		cli->exit_now = 1;
		return 0;
	case FLAG:
		*(int *)(void *)field = 1;
		return 0;
	case TEXT:
		*(const char **)(void *)field = value;
		return 0;
	case SOURCE:
		if (cli->n_sources == CLI_MAX_SOURCES) {
			cli_error("more than %u prompts", CLI_MAX_SOURCES);
			return 2;
		}
		cli->source[cli->n_sources++] = (struct cli_source){ value, row->field != 0 };
		return 0;
	case SETTING:
		return add_setting(cli, row->key, value);
	case MARK:
		return take_mark(cli, row, value);
	default:
		return take_number(cli, row, value);
	}
}

/* --- the whole -------------------------------------------------------------------------------------------- */

static int find_model(struct cli *cli)
{
	static char path[4096];
	glob_t found;
	int err = glob("build/model/*.gguf", 0, NULL, &found);
	size_t n = err ? 0 : found.gl_pathc;

	if (n == 1)
		snprintf(path, sizeof(path), "%s", found.gl_pathv[0]);
	if (!err)
		globfree(&found);
	if (n != 1) {
		cli_error(n ? "build/model/ has %zu models; say with -m which one" :
			  "no model: give one with -m FILE.gguf, or run make model in ebbd's folder (build/model/ holds %zu)", n);
		return 2;
	}
	cli->model = path;
	return 0;
}

/* What belongs to --against-full. Both caches must store alike, so what the daemon's default is must not matter. */
static int check_against(struct cli *cli)
{
	if (cli->against_full && (!cli->nll || cli->local)) {
		cli_error("--against-full is a part of --nll through the daemon%s", cli->local ? ": it does not go with --local" : "");
		return 2;
	}
	if (cli->full_slots && !cli->against_full) {
		cli_error("--full-slots is a part of --against-full: give that too");
		return 2;
	}
	if ((cli->full_run || cli->kept) && !cli->against_full) {
		cli_error("--full-run and --kept are parts of --against-full: give that too");
		return 2;
	}
	if (cli->full_run && cli->batch > 1) {
		cli_error("--full-run holds one sequence: it does not go with --batch");
		return 2;
	}
	if (cli->belady && (!cli->full_run || strstr(cli->settings, "policy="))) {
		cli_error(cli->full_run ? "--belady is a policy of its own: it does not go with --policy" :
			  "--belady looks into the future: give the --full-run that knows it");
		return 2;
	}
	if (cli->belady && add_setting(cli, "policy", "tova"))	/* the rule whose slots are worth what their last heat says */
		return 2;
	if (cli->against_full && !strstr(cli->settings, "slots=") && add_setting(cli, "slots", "bf16"))
		return 2;
	return cli->model ? 0 : find_model(cli);
}

static int check_calibrate(struct cli *cli)
{
	static const char *const own[] = { "budget=", "split=", "window=", "slots=", "floor=", "prefill=" };

	if (!cli->calibrate && (cli->output || cli->budgets)) {
		cli_error("--output and --budgets are parts of --calibrate: give that too");
		return 2;
	}
	if (!cli->calibrate)
		return 0;
	if (!cli->output || cli->nll || cli->passkey || cli->chat || cli->ids || cli->local || cli->batch > 1 || cli->logits || cli->lanes) {
		cli_error(cli->output ? "--calibrate does not go with --nll, --passkey, --chat, --ids, --local, --batch, --logits or --lanes" :
			  "--calibrate writes a file: name it with -o FILE");
		return 2;
	}
	for (size_t i = 0; i < sizeof(own) / sizeof(*own); i++)
		if (strstr(cli->settings, own[i])) {
			cli_error("--calibrate says itself what %.*s is", (int)strlen(own[i]) - 1, own[i]);
			return 2;
		}
	if (!cli->limit)
		cli->limit = 2048;
	return 0;
}

static int check(struct cli *cli)
{
	if (cli->n_sources == 0 && !cli->passkey) {
		cli_error("nothing to read: give a text with -p TEXT or a file with -f FILE (--help lists the options)");
		return 2;
	}
	if (cli->passkey && (cli->nll || cli->chat || cli->ids || cli->local || cli->batch > 1 || cli->temperature > 0.0 ||
			     cli->logits)) {
		cli_error("--passkey makes prompts of its own and runs them one by one through the daemon: it does not go with --nll, "
			  "--chat, --ids, --local, --batch, --temp or --logits");
		return 2;
	}
	if (cli->marks.n && (cli->passkey || cli->full_run || cli->calibrate)) {
		cli_error("--tag, --pin and --drop speak of positions of the given text: they do not go with "
			  "--passkey, --full-run or --calibrate");
		return 2;
	}
	if (cli->weights && strcmp(cli->weights, "f32") != 0 && strcmp(cli->weights, "bf16") != 0) {
		cli_error("--weights %s: f32 or bf16 is needed", cli->weights);
		return 2;
	}
	if (!cli->passkey && cli->depths) {
		cli_error("--depths is a part of --passkey: give that too");
		return 2;
	}
	if (cli->nll && (cli->chat || cli->temperature > 0.0)) {
		cli_error("--nll reads a text as it is: it does not go with --chat or --temp");
		return 2;
	}
	if (cli->chat && cli->batch_offset) {
		cli_error("--batch-offset starts in the middle of a text: it does not go with --chat");
		return 2;
	}
	if (cli->system && !cli->chat) {
		cli_error("--system is a part of --chat: give that too");
		return 2;
	}
	return check_calibrate(cli) ? 2 : check_against(cli);
}

static int parse_all(struct cli *cli, int argc, char **argv, const struct option *longs, const char *letters)
{
	int c, index;

	opterr = 0;
	optind = 1;
	while (!cli->exit_now && (c = getopt_long(argc, argv, letters, longs, &index)) != -1) {
		size_t i = c >= 1000 ? (size_t)(c - 1000) : 0;
		int err;

		if (c == '?' || c == ':') {
			cli_error(c == ':' ? "%s needs a value; --help lists the options" : "%s is not an option; --help lists them",
				  argv[optind - 1]);
			return 2;
		}
		while (c < 1000 && rows[i].letter != c)
			i++;
		err = take(cli, &rows[i], optarg);
		if (err)
			return err;
	}
	while (!cli->exit_now && cli->calibrate && optind < argc && cli->n_sources < CLI_MAX_SOURCES)
		cli->source[cli->n_sources++] = (struct cli_source){ argv[optind++], 1 };
	if (!cli->exit_now && optind < argc) {
		cli_error("'%s' belongs to no option; prompts are given with -p TEXT or -f FILE", argv[optind]);
		return 2;
	}
	return cli->exit_now ? 0 : check(cli);
}

int cli_parse(struct cli *cli, int argc, char **argv)
{
	struct option longs[N_ROWS + 1];
	char letters[2 * N_ROWS + 2] = ":";
	size_t n_letters = 1;

	memset(cli, 0, sizeof(*cli));
	memset(longs, 0, sizeof(longs));
	cli->n_predict = 128;
	cli->batch = 1;
	cli->threads = 1;
	cli->source = calloc(CLI_MAX_SOURCES, sizeof(*cli->source));
	if (!cli->source) {
		cli_error("out of memory");
		return 2;
	}
	for (size_t i = 0; i < N_ROWS; i++) {
		int wants = rows[i].argument != NULL;

		longs[i] = (struct option){ rows[i].name, wants ? required_argument : no_argument, NULL, 1000 + (int)i };
		if (rows[i].letter) {
			letters[n_letters++] = rows[i].letter;
			if (wants)
				letters[n_letters++] = ':';
		}
	}
	return parse_all(cli, argc, argv, longs, letters);
}

void cli_free(struct cli *cli)
{
	free(cli->source);
	cli->source = NULL;
}

uint32_t cli_budget(const struct cli *cli, uint32_t tokens)
{
	uint64_t count;
	double share;

	if (!cli->budget || parse_amount(cli->budget, &count, &share))
		return 0;
	if (count)
		return (uint32_t)count;
	count = (uint64_t)(share * tokens);
	return count ? (uint32_t)count : 1;
}
