/* ebbctl: what ebbd is doing. Options, one question, one answer. Exit codes: 0 done, 1 failed, 2 used wrongly. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctl/ctl.h"
#include "libclient/ebb.h"

#ifndef EBB_BUILD_VERSION
#define EBB_BUILD_VERSION EBB_VERSION
#endif

struct command {
	const char *name, *text;
	void (*show)(const json_t *answer, FILE *to, const struct ctl_style *style);	/* NULL: not a single question */
};

static const struct command commands[] = {
	{ "status", "pools, clients, sessions and totals", ctl_show_status },
	{ "sessions", "every sequence: policy, budget, tokens, live slots, memory", ctl_show_sessions },
	{ "session", "one of them, \"session ID\": its settings; \"session ID set KEY=VALUE ...\" changes some", ctl_show_session },
	{ "lanes", "of a session, \"lanes ID\": what each layer and head may hold, and holds", ctl_show_lanes },
	{ "clients", "every connected process", ctl_show_clients },
	{ "pools", "memory by device", ctl_show_pools },
	{ "policies", "eviction policies and their parameters", ctl_show_policies },
	{ "config", "the settings in force, and when a change takes effect", ctl_show_config },
	{ "doctor", "what this machine gives ebbd and what it keeps from it, and what to do about it", NULL },
	{ "watch", "pools, rates and sessions, refreshed in place; q quits", NULL },
	{ "version", "of this tool and of the daemon", NULL },
	{ "help", "this text", NULL },
};

enum { N_COMMANDS = sizeof(commands) / sizeof(commands[0]) };

struct arguments {
	const char *socket, *from, *root, *command, *object;	/* object: what a command is about, or NULL */
	char settings[512];		/* session ID set: with spaces between them */
	bool json, help, version;
	struct ctl_watch_options watch;
};

static void usage(FILE *to)
{
	fprintf(to, "usage: ebbctl [options] COMMAND\n\nCommands:\n");
	for (int i = 0; i < N_COMMANDS; i++)
		fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].text);
	fprintf(to, "\nOptions:\n"
		    "  -s, --socket PATH   the daemon's socket (default: $EBB_SOCKET, else %s)\n"
		    "  -j, --json          what the daemon said, as JSON; watch: one object a line\n"
		    "  -n, --interval S    watch: seconds between frames, 0.1 .. 3600 (default 1)\n"
		    "  -c, --count N       watch: stop after N frames\n"
		    "  -h, --help          this text\n"
		    "  -V, --version       of this tool\n"
		    "\nColour only on a terminal; NO_COLOR=1 turns it off. Exit codes: 0 done, 1 failed, 2 used wrongly.\n",
		EBB_SOCKET_DEFAULT);
}

static int wrong_use(const char *what, const char *value)
{
	char clean[CTL_CELL];

	fprintf(stderr, "ebbctl: %s%s%s; \"ebbctl help\" shows what there is\n", what, *value ? " " : "", ctl_clean(value, clean));
	return 2;
}

static bool read_interval(const char *text, double *out)
{
	char *end;
	double x = strtod(text, &end);

	if (end == text || *end != '\0' || !(x >= 0.1 && x <= 3600))
		return false;
	*out = x;
	return true;
}

static bool read_count(const char *text, unsigned *out)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end != '\0' || n == 0 || n > 1000000000)
		return false;
	*out = (unsigned)n;
	return true;
}

static bool add_setting(struct arguments *a, const char *pair)
{
	size_t used = strlen(a->settings);

	if (!strchr(pair, '=') || *pair == '=' || used + strlen(pair) + 2 > sizeof(a->settings))
		return false;
	snprintf(a->settings + used, sizeof(a->settings) - used, "%s%s", used ? " " : "", pair);
	return true;
}

/* 0, or the exit code of wrong use. */
static int read_arguments(int argc, char **argv, struct arguments *a)
{
	static const struct option options[] = {
		{ "socket", required_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },
		{ "interval", required_argument, NULL, 'n' },
		{ "count", required_argument, NULL, 'c' },
		{ "from", required_argument, NULL, 'F' },
		{ "root", required_argument, NULL, 'R' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":s:jn:c:hV", options, NULL)) != -1) {
		switch (c) {
		case 's': a->socket = optarg; break;
		case 'j': a->json = true; break;
		case 'F': a->from = optarg; break;	/* for tests: a file in place of the daemon */
		case 'R': a->root = optarg; break;	/* for tests: a folder in place of / */
		case 'h': a->help = true; break;
		case 'V': a->version = true; break;
		case 'n':
			if (!read_interval(optarg, &a->watch.interval_s))
				return wrong_use("--interval takes 0.1 .. 3600 seconds, not", optarg);
			break;
		case 'c':
			if (!read_count(optarg, &a->watch.count))
				return wrong_use("--count takes a number of frames, not", optarg);
			break;
		case ':': return wrong_use("a value is missing behind", argv[optind - 1]);
		default: return wrong_use("there is no option", argv[optind - 1]);
		}
	}
	a->command = optind < argc ? argv[optind++] : "";
	if (strcmp(a->command, "lanes") == 0 || strcmp(a->command, "session") == 0) {
		unsigned id;

		if (optind >= argc || !read_count(argv[optind], &id))
			return wrong_use(*a->command == 'l' ? "lanes takes the id of a session, as \"ebbctl sessions\" shows it, not" :
					 "session takes the id of one, as \"ebbctl sessions\" shows it, not",
					 optind < argc ? argv[optind] : "nothing");
		a->object = argv[optind++];
	}
	if (strcmp(a->command, "session") == 0 && optind < argc && strcmp(argv[optind], "set") == 0) {
		if (++optind == argc)
			return wrong_use("session ID set takes KEY=VALUE pairs, as [session] of ebbd.ini has them, not", "nothing");
		for (; optind < argc; optind++)
			if (!add_setting(a, argv[optind]))
				return wrong_use("set takes KEY=VALUE pairs of 500 bytes in all, not", argv[optind]);
	}
	if (optind < argc)
		return wrong_use("too much:", argv[optind]);
	return 0;
}

static const struct command *find_command(const char *name)
{
	for (int i = 0; i < N_COMMANDS; i++)
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	return NULL;
}

static void print_json(const json_t *answer)
{
	(void)json_dumpf(answer, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
	fputc('\n', stdout);
}

/* A daemon that is not there is no failure here: its version is then not known. */
static int show_version(struct ctl_source *source, const struct arguments *a)
{
	char why[1024], clean[CTL_CELL];
	json_t *status = NULL, *both;
	const char *daemon = NULL;

	if (ctl_ask(source, "status", &status, why, sizeof(why)) == 0)
		daemon = ctl_clean(ctl_string(status, "version"), clean);
	if (a->json) {
		both = json_pack("{s:s, s:s?}", "ebbctl", EBB_BUILD_VERSION, "ebbd", daemon);
		print_json(both);
		json_decref(both);
	} else {
		printf("ebbctl %s\nebbd   %s\n", EBB_BUILD_VERSION, daemon ? daemon : "not running");
	}
	json_decref(status);
	return 0;
}

static int set_session(struct ctl_source *source, const struct arguments *a)
{
	char why[1024];
	json_t *answer;
	int rc = ctl_set(source, strtoull(a->object, NULL, 10), a->settings, why, sizeof(why));

	if (rc < 0) {
		fprintf(stderr, "ebbctl: %s\n", why);
		return 1;
	}
	if (a->json) {
		answer = json_pack("{s:I, s:b}", "id", (json_int_t)strtoll(a->object, NULL, 10), "in_force", rc);
		print_json(answer);
		json_decref(answer);
	} else {
		printf("session %s: %s\n", a->object, rc ? "in force" : "takes effect when its step is over");
	}
	return 0;
}

static int run(struct ctl_source *source, const struct command *command, const struct arguments *a)
{
	struct ctl_style style;
	char why[1024], question[64];
	json_t *answer;

	snprintf(question, sizeof(question), "%s%s%s", command->name, a->object ? " " : "", a->object ? a->object : "");
	if (strcmp(command->name, "version") == 0)
		return show_version(source, a);
	if (strcmp(command->name, "watch") == 0)
		return ctl_watch(source, &a->watch);
	if (*a->settings)
		return set_session(source, a);
	style = ctl_style_of(STDOUT_FILENO);
	if (strcmp(command->name, "doctor") == 0)
		return ctl_doctor(source, a->root, a->json, stdout, &style);
	if (ctl_ask(source, question, &answer, why, sizeof(why)) != 0) {
		fprintf(stderr, "ebbctl: %s\n", why);
		return 1;
	}
	style.columns = 0;	/* a terminal wraps; what was asked for is shown whole */
	if (a->json)
		print_json(answer);
	else
		command->show(answer, stdout, &style);
	json_decref(answer);
	return 0;
}

int main(int argc, char **argv)
{
	struct arguments a = { .watch = { .interval_s = 1 } };
	const struct command *command;
	struct ctl_source *source;
	int code = read_arguments(argc, argv, &a);

	if (code != 0)
		return code;
	if (a.version) {
		printf("ebbctl %s\n", EBB_BUILD_VERSION);
		return 0;
	}
	if (a.help || strcmp(a.command, "help") == 0) {
		usage(stdout);
		return 0;
	}
	if (*a.command == '\0') {
		usage(stderr);
		return 2;
	}
	command = find_command(a.command);
	if (!command)
		return wrong_use("there is no command", a.command);
	a.watch.json = a.json;
	source = ctl_source_new(a.socket, a.from);
	if (!source)
		return 1;
	code = run(source, command, &a);
	ctl_source_free(source);
	if (fflush(stdout) != 0 || ferror(stdout))
		code = 1;
	return code;
}
