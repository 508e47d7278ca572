/* ebb-replay: the command line, and what is printed. */
#include "replay/replay.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LIST 64

struct options {
	const char *path, *kept, *split;
	const char *policy[MAX_LIST], *budget[MAX_LIST];
	unsigned n_policies, n_budgets;
	struct evict_amount recent;
	uint32_t seed;
	bool json;
};

static void usage(FILE *to)
{
	fputs("usage: ebb-replay [options] RECORDING\n\n"
	      "Tries policies on a recording of ebbd (see ebbd.ini(5): record), without the model: how much of the full cache's\n"
	      "attention falls on the slots that a policy keeps. belady keeps slots by the attention still to come: the bound.\n\n"
	      "  -p, --policy NAME    with parameters as in ebbd.ini; may be repeated (default: all, and belady)\n"
	      "  -b, --budget N|P%    slots a lane may hold, or a share of the recording's tokens; may be repeated (6%, 12%, 25%, 50%)\n"
	      "  -r, --recent N|P%    newest slots that are never evicted, or a share of the budget (50%; belady: the window)\n"
	      "      --split NAME     how the slots are shared over the lanes (uniform)\n"
	      "      --seed S         of policies that draw lots (1)\n"
	      "  -j, --json           one JSON object a line\n"
	      "      --kept FILE      write the positions that each lane holds in the last window (one policy, one budget)\n"
	      "  -h, --help           this\n\n"
	      "Exit status: 0 done, 1 failed, 2 used wrongly. A policy that needs more than was recorded is named with the reason.\n", to);
}

static int parse_amount(const char *text, struct evict_amount *out)
{
	char *end;
	double x = strtod(text, &end);

	*out = (struct evict_amount){ 0 };
	if (end == text || !(x >= 0.0) || x > 16777216.0)
		return -EINVAL;
	if (strcmp(end, "%") == 0 && x <= 100.0)
		out->ppm = (uint32_t)(x * 10000.0 + 0.5);
	else if (!*end && x == floor(x))
		out->count = (uint32_t)x;
	else
		return -EINVAL;
	return 0;
}

static int add(const char **list, unsigned *n, const char *text)
{
	if (*n == MAX_LIST) {
		fprintf(stderr, "ebb-replay: more than %d policies or budgets\n", MAX_LIST);
		return 2;
	}
	list[(*n)++] = text;
	return 0;
}

static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "policy", required_argument, NULL, 'p' }, { "budget", required_argument, NULL, 'b' },
		{ "recent", required_argument, NULL, 'r' }, { "split", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'S' },   { "json", no_argument, NULL, 'j' },
		{ "kept", required_argument, NULL, 'k' },   { "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct evict_amount amount;
	int c, rc = 0;

	while (!rc && (c = getopt_long(argc, argv, "p:b:r:jh", longs, NULL)) != -1) {
		switch (c) {
		case 'p': rc = add(o->policy, &o->n_policies, optarg); break;
		case 'b':
			rc = parse_amount(optarg, &amount) || !(amount.count | amount.ppm) ? 2 : add(o->budget, &o->n_budgets, optarg);
			break;
		case 'r': rc = parse_amount(optarg, &o->recent) ? 2 : 0; break;
		case 's': o->split = optarg; break;
		case 'S': o->seed = (uint32_t)strtoul(optarg, NULL, 10); break;
		case 'j': o->json = true; break;
		case 'k': o->kept = optarg; break;
		case 'h': usage(stdout); exit(0);
		default: rc = 2;
		}
		if (rc && (c == 'b' || c == 'r'))
			fprintf(stderr, "ebb-replay: %s: a number of slots is needed, or a share such as 25%%\n", optarg);
	}
	if (!rc && optind + 1 != argc) {
		fputs("ebb-replay: one recording is needed; try: ebb-replay --help\n", stderr);
		return 2;
	}
	if (!rc && o->kept && (o->n_policies != 1 || o->n_budgets != 1)) {
		fputs("ebb-replay: --kept is of one --policy at one --budget\n", stderr);
		return 2;
	}
	o->path = rc ? NULL : argv[optind];
	return rc;
}

static int write_kept(const struct recording *r, const struct outcome *out, const char *path)
{
	FILE *file = fopen(path, "w");

	if (file)
		fprintf(file, "{\"tokens\":%u,\"layers\":%u,\"kv_heads\":%u,\"kept\":[", r->tokens, r->head->n_layers, r->head->n_kv_heads);
	for (uint32_t lane = 0; file && lane < r->n_lanes; lane++) {
		for (uint32_t i = 0; i < out->n_kept[lane]; i++)
			fprintf(file, "%s%d", i ? "," : lane ? "],[" : "[", out->kept[(size_t)lane * out->kept_room + i]);
	}
	if (file)
		fputs("]]}\n", file);
	if (!file || ferror(file) | fclose(file)) {
		fprintf(stderr, "ebb-replay: %s: cannot write: %s\n", path, strerror(errno));
		return 1;
	}
	return 0;
}

static void print_json(const struct attempt *a, const struct outcome *o, const char *why)
{
	printf("{\"policy\":\"%s\",\"split\":\"%s\",\"budget\":%u,", a->policy, a->split, a->budget);
	if (why)
		printf("\"refused\":\"%s\"}\n", why);	/* our own sentences: quotes are escaped by the caller */
	else if (isnan(o->mass_kept))
		printf("\"mass_kept\":null,\"windows\":%u,\"seconds\":%.6f}\n", o->windows, o->seconds);
	else
		printf("\"mass_kept\":%.9g,\"windows\":%u,\"seconds\":%.6f}\n", o->mass_kept, o->windows, o->seconds);
}

/* One row of the table, or of JSON lines. 0, 1 failed, or -1: refused. */
static int one(const struct recording *r, const struct options *o, const char *policy, const char *budget)
{
	bool belady = strcmp(policy, "belady") == 0;
	struct attempt a = { .policy = policy, .split = o->split, .seed = o->seed, .recent = o->recent };
	struct evict_amount amount;
	struct outcome out;
	char why[512] = "";
	int rc;

	if (!a.recent.count && !a.recent.ppm)
		a.recent = belady ? (struct evict_amount){ .count = r->head->window } : (struct evict_amount){ .ppm = 500000 };
	(void)parse_amount(budget, &amount);
	a.budget = amount.count ? amount.count : (uint32_t)((uint64_t)r->tokens * amount.ppm / 1000000u);
	rc = try_policy(r, &a, o->kept != NULL, &out, why, sizeof(why));
	if (rc && rc != -ENOTSUP) {
		fprintf(stderr, "ebb-replay: %s: %s\n", policy, why);
		return 1;
	}
	for (char *p = why; *p; p++)
		*p = *p == '"' ? '\'' : *p;
	if (o->json)
		print_json(&a, &out, rc ? why : NULL);
	else if (rc)
		printf("%-32s %6u  not possible: %s\n", policy, a.budget, why);
	else if (isnan(out.mass_kept))
		printf("%-32s %6u        -  %9.0f\n", policy, a.budget, out.windows / out.seconds);
	else
		printf("%-32s %6u  %6.2f%%  %9.0f\n", policy, a.budget, 100.0 * out.mass_kept, out.windows / out.seconds);
	fflush(stdout);
	rc = rc ? -1 : o->kept ? write_kept(r, &out, o->kept) : 0;
	free(out.kept);
	free(out.n_kept);
	return rc;
}

static int all(const struct recording *r, const struct options *o)
{
	int failed = 0, done = 0;

	if (!o->json)
		printf("%-32s %6s  %7s  %9s\n", "POLICY", "SLOTS", "MASS", "WINDOWS/S");
	for (unsigned b = 0; b < o->n_budgets; b++)
		for (unsigned p = 0; p < o->n_policies; p++) {
			int rc = one(r, o, o->policy[p], o->budget[b]);

			failed |= rc > 0;
			done += rc == 0;
		}
	return failed || !done ? 1 : 0;
}

int main(int argc, char **argv)
{
	static const char *const shares[] = { "6%", "12%", "25%", "50%" };
	struct options o = { .split = "uniform", .seed = 1 };
	struct recording r = { 0 };
	char why[512] = "";
	int rc = parse_options(argc, argv, &o);

	if (rc)
		return rc;
	for (uint32_t i = 1; !o.n_policies && i < EVICT_N_POLICIES; i++)	/* full is the recording itself */
		o.policy[i - 1] = evict_policies[i].name;
	if (!o.n_policies) {
		o.n_policies = EVICT_N_POLICIES;
		o.policy[EVICT_N_POLICIES - 1] = "belady";
	}
	if (!o.n_budgets) {
		memcpy(o.budget, shares, sizeof(shares));
		o.n_budgets = 4;
	}
	rc = recording_open(&r, o.path, why, sizeof(why));
	if (rc) {
		fprintf(stderr, "ebb-replay: %s: %s\n", o.path, *why ? why : strerror(-rc));
	} else {
		if (r.cut_short)
			fprintf(stderr, "ebb-replay: note: the recording was cut short after %u tokens\n", r.tokens);
		rc = all(&r, &o);
	}
	recording_close(&r);
	return rc ? 1 : 0;
}
