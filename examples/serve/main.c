/*
 * ebb-bench-serve: how many long sessions a GPU serves, and how fast, with ebbd and without.
 *
 * A model of the shape of Llama-3-8B with random weights decodes sessions of --length tokens out of --pool bytes of KV memory: with plain
 * full caches (ebb_local(): contiguous runs of pages, nothing evicted, the same attention kernels, so as good as ours), through ebbd with
 * the policy full, with a budget that never bites, and with budgets that do. One line a configuration; goals beside them.
 *
 * Each client is a process of its own (clients.c starts them and ebbd, worker.cu is one). No CUDA here.
 * Parts (--part, or BENCH in the environment): check serve launch handover growth.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "examples/serve/serve.h"

#define MAX_BUDGETS 8u
#define WINDOW 32u

struct options {
	struct serve_config base;
	uint32_t budget[MAX_BUDGETS], n_budgets;
	uint32_t processes[4], n_processes;	/* 0: the part's own */
	uint32_t growth;		/* tokens a session generates in the part growth */
	uint64_t pool_bytes;
	unsigned limit_s;		/* of one client */
	const char *part, *log, *policy;	/* policy: of the budgets on the page */
	bool json, no_full;
};

static struct options opt;
static const char *sock;

/* The daemon is started when it is first needed. 1: it does not come. */
static int with_daemon(void)
{
	if (!sock)
		sock = serve_daemon_start(opt.base.ordinal, opt.pool_bytes, opt.log);
	return !sock;
}

static void without_daemon(void)
{
	serve_daemon_stop();
	sock = NULL;
}

static int run(const struct serve_config *config, uint32_t n, struct serve_result *out)
{
	return serve_run(config, n, opt.limit_s, out);
}

static int complain(const char *what, const char *why)
{
	fprintf(stderr, "ebb-bench-serve: %s: %s\n", what, why);
	return 1;
}

static const char usage[] =
"usage: ebb-bench-serve [options]\n"
"  --part NAME,...     check serve launch handover growth (default: $BENCH, else all)\n"
"  --length N          tokens of a session in all (16384)\n"
"  --decode N          of them decoded, 32 as a warm-up; the rest is appended at random (256)\n"
"  --sessions N        sessions in all; 0: as many as fit (0)\n"
"  --budgets N,...     slots a lane (4096,2048,1024); --policy NAME  who is evicted then (h2o)\n"
"  --processes N,...   client processes (1,4; in the part handover 1,4,8)\n"
"  --pool BYTES        memory for KV; K, M, G (40G)\n"
"  --layers N          of the model (32); --vocab N (128256)\n"
"  --growth N          tokens a session generates in the part growth (100000)\n"
"  --device N          CUDA device (0)\n"
"  --fill N            tokens of prompts appended in one step at most; attend's scratch grows with them (0: a window of every session)\n"
"  --pad N             launch steps as for a multiple of N sessions (0: as they are)\n"
"  --no-full           leave out the caches that never evict\n"
"  --no-graph          launch every kernel of every step\n"
"  --limit S           seconds a client may take (300)\n"
"  --daemon-log FILE   what ebbd says\n"
"  --json              figures as JSON lines, too (make bench-gpu sets EBB_BENCH_ROWS=1 for the same)\n";

/* --- rows ---------------------------------------------------------------------------------------------------------------- */

static void number(const char *key, double value)
{
	if (isfinite(value))
		printf("\"%s\": %.6g, ", key, value);
	else
		printf("\"%s\": null, ", key);
}

/* In the form of tests/bench/bench.h. ceiling NAN: none; ok < 0: no goal. */
static void row(const char *name, double value, const char *unit, double ceiling, const char *goal, int ok)
{
	if (!opt.json)
		return;
	printf("{\"name\": \"%s\", ", name);
	number("value", value);
	printf("\"unit\": \"%s\", ", unit);
	number("ceiling", ceiling);
	number("ratio", value / ceiling);
	printf("\"goal\": \"%s\", \"ok\": %s}\n", goal, ok < 0 ? "null" : ok ? "true" : "false");
	fflush(stdout);
}

/* --- check: the same bits ------------------------------------------------------------------------------------------------ */

struct same {
	const char *name;
	bool local;
	int graph, ragged;
	uint32_t pad;
	const char *settings;
	int like;			/* row whose bits it must have; -1: none */
};

static const struct same same[] = {
	{ "no daemon", true, 1, 0, 0, "", -1 },
	{ "no daemon, no graph", true, 0, 0, 0, "", 0 },
	{ "ebbd, full", false, 1, 0, 0, "policy=full", 0 },
	{ "ebbd, a budget that never bites", false, 1, 0, 0, "policy=h2o budget=1024", 0 },
	{ "ebbd, the same, no graph", false, 0, 0, 0, "policy=h2o budget=1024", 0 },
	{ "no daemon, sessions come and go, padded", true, 1, 1, 8, "", -1 },
	{ "no daemon, the same, no graph", true, 0, 1, 8, "", 5 },
	{ "ebbd, never bites, come and go, padded", false, 1, 1, 8, "policy=h2o budget=1024", 5 },
	{ "ebbd, budget 256", false, 1, 0, 0, "policy=h2o budget=256 prefill=chunked", -1 },
	{ "ebbd, budget 256, no graph", false, 0, 0, 0, "policy=h2o budget=256 prefill=chunked", 8 },
};

static int check(void)
{
	uint64_t hash[sizeof(same) / sizeof(same[0])];
	unsigned wrong = 0;

	for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
		const struct same *s = &same[i];
		struct serve_config c = opt.base;
		struct serve_result r;

		c.model.layers = c.model.layers < 3 ? c.model.layers : 3;
		c.sessions = 5;
		c.length = 1024;
		c.decode = 224;
		c.warm = WINDOW;
		c.check = 1;
		c.graph = s->graph;
		c.ragged = s->ragged;
		c.pad = s->pad;
		c.socket = s->local ? NULL : sock;
		c.bytes = opt.pool_bytes;
		c.settings = s->settings;
		if (run(&c, 1, &r))
			return 1;
		hash[i] = r.hash;
		if (s->like >= 0 && hash[i] != hash[s->like])
			wrong++;
		printf("%-5s %-44s logits %016llx, %u graphs, prompts %.1f s\n", s->like < 0 ? "-" : hash[i] == hash[s->like] ? "ok" : "FAIL",
		       s->name, (unsigned long long)hash[i], r.graphs, r.prefill_s);
		fflush(stdout);
	}
	row("serve: configurations whose logits differ", wrong, "", NAN, "0", wrong == 0);
	return wrong != 0;
}

/* --- serve: the page ----------------------------------------------------------------------------------------------------- */

static void page_row(const char *name, uint32_t processes, const struct serve_result *r, const struct serve_result *full, double goal_speed,
		     double goal_sessions)
{
	double speed = (double)r->sessions * r->steps / r->seconds, base = (double)full->sessions * full->steps / full->seconds;
	char text[160], goal[32];

	printf("%-30s %2u %9u %7.2fx %10.0f %7.2fx %9.3f %8.0f %7.1f %5.1f %5.1f\n", name, processes, r->sessions,
	       (double)r->sessions / full->sessions, speed, speed / base, r->seconds * 1e3 / r->steps, r->cpu_us, r->ebb_us, r->open_s,
	       r->prefill_s);
	fflush(stdout);
	snprintf(text, sizeof(text), "serve, %s, %u process%s: sessions", name, processes, processes == 1 ? "" : "es");
	snprintf(goal, sizeof(goal), goal_sessions > 0 ? ">= %gx" : "", goal_sessions);
	row(text, r->sessions, "sessions", full->sessions, goal, goal_sessions > 0 ? r->sessions >= goal_sessions * full->sessions : -1);
	snprintf(text, sizeof(text), "serve, %s, %u process%s: speed", name, processes, processes == 1 ? "" : "es");
	snprintf(goal, sizeof(goal), goal_speed > 0 ? ">= %gx" : "", goal_speed);
	row(text, speed, "tokens/s", base, goal, goal_speed > 0 ? speed >= goal_speed * base : -1);
}

/* all: sessions that one process had, to be shared; 0: find out. */
static int page_one(const char *name, const char *settings, uint32_t processes, uint32_t *all, struct serve_result *full, double goal_speed,
		    double goal_sessions)
{
	struct serve_config c = opt.base;
	struct serve_result r;

	c.settings = settings;
	c.socket = *settings ? sock : NULL;
	c.bytes = opt.pool_bytes / processes;
	c.sessions = opt.base.sessions ? opt.base.sessions / processes : processes > 1 && *all ? *all / processes : 0;
	if (run(&c, processes, &r))
		return complain(name, "failed");
	if (!full->sessions)
		*full = r;
	if (processes == 1)
		*all = r.sessions;
	page_row(name, processes, &r, full, goal_speed, goal_sessions);
	return 0;
}

static void never_bites(char *to, size_t bytes, const char *observe)
{
	snprintf(to, bytes, "policy=%s budget=%u floor=%u%s", opt.policy, opt.base.length, opt.base.length, observe);
}

/* What goes through the daemon, for n processes. */
static int page_ebbd(uint32_t n, uint32_t *all, struct serve_result *full)
{
	const bool alone = n == 1 && !opt.no_full;	/* and beside the full cache: goals are shares of it */
	char name[64], text[128];
	int bad = 0;

	if (alone)
		bad |= page_one("ebbd, full", "policy=full", n, &all[1], full, 0, 0);
	never_bites(text, sizeof(text), "");
	if (!opt.no_full)
		bad |= page_one("ebbd, budget that never bites", text, n, &all[2], full, n == 1 ? 0.98 : 0, 0);
	never_bites(text, sizeof(text), " observe=4");
	if (alone)
		bad |= page_one("ebbd, the same, observe=4", text, n, &all[2], full, 0.98, 0);
	for (uint32_t i = 0; i < opt.n_budgets; i++) {
		uint32_t b = opt.budget[i];
		const bool goals = alone && b == 1024;

		snprintf(name, sizeof(name), "ebbd, %s, budget %u", opt.policy, b);
		snprintf(text, sizeof(text), "policy=%s budget=%u floor=%u prefill=chunked", opt.policy, b, b);
		bad |= page_one(name, text, n, &all[3 + i], full, goals ? 6 : 0, goals ? 12 : 0);
	}
	return bad;
}

/* First without the daemon, whose pool would take the memory. */
static int page(void)
{
	uint32_t all[3 + MAX_BUDGETS] = { 0 };
	struct serve_result full[4] = { { 0 } };
	static const uint32_t usual[] = { 1, 4 };
	const uint32_t *processes = opt.n_processes ? opt.processes : usual, n = opt.n_processes ? opt.n_processes : 2;
	int bad = 0;

	printf("%-30s %2s %9s %8s %10s %8s %9s %8s %7s %5s %5s\n", "cache", "P", "sessions", "", "tokens/s", "", "ms/step", "CPU us",
	       "ebb us", "open", "fill");
	for (uint32_t p = 0; p < n && !opt.no_full; p++)
		bad |= page_one("plain full cache, no daemon", "", processes[p], &all[0], &full[p], 0, 0);
	if (with_daemon())
		return 1;
	for (uint32_t p = 0; p < n; p++)
		bad |= page_ebbd(processes[p], all, &full[p]);
	return bad;
}

/* --- launch: what a graph is worth --------------------------------------------------------------------------------------- */

static int launch(void)
{
	static const uint32_t sessions[] = { 1, 16, 128 };
	char name[96];

	printf("%-12s %12s %12s %12s %12s %8s\n", "sessions", "ms, launched", "ms, graph", "CPU us", "CPU us", "graphs");
	for (size_t i = 0; i < sizeof(sessions) / sizeof(sessions[0]); i++) {
		struct serve_config c = opt.base;
		struct serve_result r[2];
		double ms[2];

		c.sessions = sessions[i];
		c.length = 2048;
		c.settings = "policy=h2o budget=1024 floor=1024 prefill=chunked";
		c.socket = sock;
		for (c.graph = 0; c.graph < 2; c.graph++) {
			if (run(&c, 1, &r[c.graph]))
				return 1;
			ms[c.graph] = r[c.graph].seconds * 1e3 / r[c.graph].steps;
		}
		printf("%-12u %12.3f %12.3f %12.0f %12.0f %8u\n", sessions[i], ms[0], ms[1], r[0].cpu_us, r[1].cpu_us, r[1].graphs);
		fflush(stdout);
		snprintf(name, sizeof(name), "a step of %u sessions as a graph", sessions[i]);
		row(name, ms[1], "ms", ms[0], "", -1);
	}
	return 0;
}

/* --- handover and growth ------------------------------------------------------------------------------------------------- */

static int by_window(const void *a, const void *b)
{
	const double x = ((const struct serve_result *)a)->window_ms, y = ((const struct serve_result *)b)->window_ms;

	return x < y ? -1 : x > y;
}

/*
 * The kinds in turns, several times, and of each its median run: what a machine does in one second it need not do in the next. The last two
 * beside the second: what handing over more often costs. One process takes seconds, and has the goal that is the hardest to see: more rounds
 * of the two that it compares.
 */
static int handover(void)
{
	enum { KINDS = 4, LONG = 1, SHORT = 2, ROUNDS = 3, MOST_ROUNDS = 11 };
	static const struct {
		const char *name, *settings;
	} kind[KINDS] = {
		{ "no daemon", "" },
		{ "ebbd, no heat, one long window", "policy=h2o observe=0 budget=2048 floor=2048 window=512" },
		{ "ebbd, no heat", "policy=h2o observe=0 budget=2048 floor=2048" },
		{ "ebbd, heat", "policy=h2o budget=2048 floor=2048" },
	};
	static const uint32_t usual[] = { 1, 4, 8 };
	const uint32_t *processes = opt.n_processes ? opt.processes : usual;
	const bool mps = getenv("CUDA_MPS_PIPE_DIRECTORY") != NULL;
	char name[96];

	printf("%-32s %2s %12s %12s %8s %8s %8s\n", "32 steps", "P", "median ms", "mean ms", "more", "CPU us", "ebb us");
	for (size_t p = 0; p < (opt.n_processes ? opt.n_processes : 3); p++) {
		struct serve_result r[KINDS][MOST_ROUNDS];
		double base = 0.0;
		size_t rounds[KINDS];

		for (size_t k = 0; k < KINDS; k++)
			rounds[k] = processes[p] == 1 && (k == LONG || k == SHORT) ? MOST_ROUNDS : ROUNDS;
		for (size_t i = 0; i < KINDS * rounds[SHORT]; i++) {
			const size_t k = i % KINDS;
			struct serve_config c = opt.base;

			if (i / KINDS >= rounds[k])
				continue;
			c.model.layers = c.model.layers < 8 ? c.model.layers : 8;
			c.sessions = 32u / processes[p];
			c.length = 2048;
			c.decode = 512;		/* of local caches, in whole blocks */
			c.settings = kind[k].settings;
			c.socket = *c.settings ? sock : NULL;
			c.bytes = opt.pool_bytes;
			if (run(&c, processes[p], &r[k][i / KINDS]))
				return 1;
		}
		for (size_t k = 0; k < KINDS; k++) {
			const struct serve_result *m = &r[k][rounds[k] / 2];	/* once they are sorted */

			qsort(r[k], rounds[k], sizeof(r[k][0]), by_window);
			base = k <= LONG ? m->window_ms : base;
			printf("%-32s %2u %12.3f %12.3f %+7.2f%% %8.1f %8.2f\n", kind[k].name, processes[p], m->window_ms,
			       m->seconds * 1e3 / (m->steps / WINDOW), 100.0 * (m->window_ms / base - 1.0), m->cpu_us, m->ebb_us);
			fflush(stdout);
			snprintf(name, sizeof(name), "hand-over, %s, %u processes: a window", kind[k].name, processes[p]);
			row(name, m->window_ms, "ms", base, k != SHORT ? "" : mps ? "<= 0.1 % more" : "<= 0.7 % more",
			    k != SHORT ? -1 : m->window_ms <= (mps ? 1.001 : 1.007) * base);
		}
	}
	return 0;
}

static int growth(void)
{
	struct serve_config c = opt.base;
	struct serve_result r;
	double first, worst = 0.0;

	c.model.layers = c.model.layers < 2 ? c.model.layers : 2;
	c.sessions = 8;
	c.warm = 2048;			/* by then every lane is at its budget */
	c.decode = c.warm + opt.growth / WINDOW * WINDOW;
	c.length = c.decode + 256;
	c.settings = "policy=h2o budget=1024 floor=1024 prefill=chunked";
	c.socket = sock;
	if (run(&c, 1, &r))
		return 1;
	first = r.series_ms[0];
	printf("%-24s %s\n", "tokens of a session", "ms a step (8 sessions, 2 layers, budget 1024)");
	for (uint32_t i = 0; i < r.n_series; i++) {
		printf("%-24u %.4f\n", 256u + c.warm + (uint32_t)((uint64_t)(i + 1) * r.steps / r.n_series), r.series_ms[i]);
		worst = r.series_ms[i] > worst ? r.series_ms[i] : worst;
	}
	row("growth: last step time against the first, at budget", r.series_ms[r.n_series - 1], "ms", first, "flat: within 2 %",
	    r.series_ms[r.n_series - 1] <= 1.02 * first);
	row("growth: largest mean step time", worst, "ms", first, "", -1);
	return 0;
}

/* --- command line -------------------------------------------------------------------------------------------------------- */

static uint32_t list(const char *text, uint32_t *to, uint32_t room)
{
	uint32_t n = 0;
	char *end;

	for (; n < room && *text; text = *end ? end + 1 : end) {
		unsigned long x = strtoul(text, &end, 10);

		if (end == text || (*end && *end != ',') || !x || x > 1u << 20)
			return 0;
		to[n++] = (uint32_t)x;
	}
	return *text ? 0 : n;
}

static uint64_t size(const char *text)
{
	char *end;
	uint64_t x = strtoull(text, &end, 10);
	unsigned shift = *end == 'G' ? 30 : *end == 'M' ? 20 : *end == 'K' ? 10 : 0;

	return end == text || (*end && end[1]) || (*end && !shift) ? 0 : x << shift;
}

/* One option with a value. 0 when it is none or impossible. */
static int option(const char *name, const char *value)
{
	struct { const char *name; uint32_t *to; bool zero; } n[] = {
		{ "--length", &opt.base.length, false }, { "--decode", &opt.base.decode, false },
		{ "--sessions", &opt.base.sessions, true }, { "--layers", &opt.base.model.layers, false },
		{ "--vocab", &opt.base.model.vocab, false }, { "--growth", &opt.growth, false },
		{ "--pad", &opt.base.pad, true }, { "--limit", &opt.limit_s, false },
		{ "--fill", &opt.base.fill, true },
	};
	char *end;

	for (size_t i = 0; i < sizeof(n) / sizeof(n[0]); i++) {
		unsigned long x = strtoul(value, &end, 10);

		if (strcmp(name, n[i].name) != 0)
			continue;
		*n[i].to = (uint32_t)x;
		return end != value && !*end && (x || n[i].zero) && x <= 1u << 24;
	}
	if (strcmp(name, "--budgets") == 0)
		return (opt.n_budgets = list(value, opt.budget, MAX_BUDGETS)) != 0;
	if (strcmp(name, "--processes") == 0)
		return (opt.n_processes = list(value, opt.processes, 4)) != 0 && opt.processes[opt.n_processes - 1] <= SERVE_PROCESSES;
	if (strcmp(name, "--pool") == 0)
		return (opt.pool_bytes = size(value)) != 0;
	if (strcmp(name, "--device") == 0)
		return (opt.base.ordinal = atoi(value)) >= 0;
	if (strcmp(name, "--part") == 0)
		return (opt.part = value) != NULL;
	if (strcmp(name, "--policy") == 0)
		return strlen(opt.policy = value) < 32;
	if (strcmp(name, "--daemon-log") == 0)
		return (opt.log = value) != NULL;
	return 0;
}

static int wanted(const char *part)
{
	const char *at = opt.part ? strstr(opt.part, part) : NULL;
	size_t n = strlen(part);

	return !opt.part || !*opt.part || (at && (at == opt.part || at[-1] == ',') && (!at[n] || at[n] == ','));
}

static int parse(int argc, char **argv)
{
	opt = (struct options){
		.base = { .model = { 32, 32, 8, 128, 4096, 14336, 128256 }, .length = 16384, .decode = 256, .warm = WINDOW, .graph = 1,
			  .settings = "" },
		.budget = { 4096, 2048, 1024 }, .n_budgets = 3, .growth = 100000, .policy = "h2o",
		.pool_bytes = 40ull << 30, .limit_s = 300, .part = getenv("BENCH"), .json = getenv("EBB_BENCH_ROWS") != NULL,
	};
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--no-graph") == 0)
			opt.base.graph = 0;
		else if (strcmp(argv[i], "--no-full") == 0)
			opt.no_full = true;
		else if (strcmp(argv[i], "--json") == 0)
			opt.json = true;
		else if (strcmp(argv[i], "--help") == 0)
			return printf("%s", usage), -1;
		else if (i + 1 < argc && option(argv[i], argv[i + 1]))
			i++;
		else
			return fprintf(stderr, "ebb-bench-serve: %s\n%s", argv[i], usage), 2;
	}
	if (opt.base.decode < 2 * WINDOW || opt.base.decode >= opt.base.length)
		return complain("--decode", "two windows (64) at least, and less than --length"), 2;
	return 0;
}

int main(int argc, char **argv)
{
	int bad;

	if (argc == 6 && strcmp(argv[1], "--work") == 0) {
		alarm((unsigned)atoi(argv[5]));	/* nothing that hangs stays */
		return serve_be_client(argv[2], argv[3], argv[4]);
	}
	bad = parse(argc, argv);
	if (bad)
		return bad < 0 ? 0 : bad;
	if (!wanted("check") && !wanted("serve") && !wanted("launch") && !wanted("handover") && !wanted("growth"))
		return 0;
	if (wanted("serve"))
		bad = page();
	if (!bad && wanted("check"))
		bad = with_daemon() || check();
	if (!bad && wanted("launch"))
		bad = with_daemon() || launch();
	if (!bad && wanted("handover"))
		bad = with_daemon() || handover();
	if (!bad && wanted("growth"))
		bad = with_daemon() || growth();
	without_daemon();
	return bad;
}
