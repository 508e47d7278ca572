/*
 * A decode step of the real client: through ebbd against --local, the same kernels on a plain full cache in the process's own memory.
 * Runs are interleaved, the median of each kind counts. One thread. Needs EBB_BIN and EBB_MODEL (make bench sets them).
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/bench/bench.h"

#define DOC "/usr/share/common-licenses/GPL-3"
#define MOST_ROUNDS 9

static const char *bin, *model;
static char dir[] = "/tmp/ebb-bench-XXXXXX";

/* Milliseconds a token, or NAN. */
static double decode_ms(const char *how, unsigned prompt, unsigned tokens)
{
	char command[2048], out[65536];
	const char *at;
	size_t n;
	FILE *f;

	snprintf(command, sizeof(command), "'%s/ebb-llama' -m '%s' -f " DOC " --limit %u -n %u --ignore-eos --json %s 2>/dev/null", bin,
		 model, prompt, tokens, how);
	f = popen(command, "r");
	n = f ? fread(out, 1, sizeof(out) - 1, f) : 0;
	if (f)
		pclose(f);
	out[n] = 0;
	at = strstr(out, "\"decode_s\"");
	return at ? 1e3 * strtod(strchr(at, ':') + 1, NULL) / (tokens - 1) : NAN;
}

/* Prints ebbd's time with --local's as the ceiling; good: the ratio that is wanted, at most. */
static void compare(const char *name, const char *settings, unsigned prompt, unsigned tokens, unsigned rounds, double good,
		    const char *goal)
{
	double ours[MOST_ROUNDS], local[MOST_ROUNDS];
	char how[512];

	snprintf(how, sizeof(how), "--socket %s/s %s", dir, settings);
	for (unsigned i = 0; i < rounds; i++) {
		local[i] = decode_ms("--local", prompt, tokens);
		ours[i] = decode_ms(how, prompt, tokens);
	}
	double theirs = bench_median(local, rounds), mine = bench_median(ours, rounds);

	bench_report(name, mine, "ms/token", theirs, goal, mine <= good * theirs);
}

static pid_t start_daemon(void)
{
	char ini[128], path[4096];
	pid_t pid;
	FILE *f;

	snprintf(ini, sizeof(ini), "%s/ini", dir);
	f = fopen(ini, "w");
	if (!f)
		return -1;
	fprintf(f, "[daemon]\nsocket = %s/s\nlog_level = err\n[pool host]\ndevice = host\nsize = 1G\n", dir);
	if (fclose(f))
		return -1;
	snprintf(path, sizeof(path), "%s/ebbd", bin);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(path, "ebbd", "--config", ini, (char *)NULL);
		_exit(127);
	}
	snprintf(ini, sizeof(ini), "%s/s", dir);
	for (int i = 0; i < 300 && access(ini, F_OK); i++)
		usleep(10000);
	return access(ini, F_OK) ? -1 : pid;
}

int main(void)
{
	char command[128];
	pid_t pid;

	bin = getenv("EBB_BIN");
	model = getenv("EBB_MODEL");
	if (!bin || !model || access(model, R_OK) || !mkdtemp(dir)) {
		fputs("bench_decode: EBB_BIN and EBB_MODEL must name the programs and the model; see make bench\n", stderr);
		return 1;
	}
	pid = start_daemon();
	if (pid < 0) {
		fputs("bench_decode: ebbd does not start\n", stderr);
		return 1;
	}
	compare("decode step through ebbd, full, 512 tokens; --local", "--policy full", 512, 128, 5, 1.02, "<= 1.02 x");
	compare("decode step through ebbd, h2o, budget >= length; --local", "--policy h2o --budget 1024", 512, 128, 5, 1.02, "<= 1.02 x");
	compare("decode step through ebbd, h2o 25 % of 4096 tokens; --local", "--policy h2o --budget 25%", 4032, 64, 1, 1.0, "< 1.0 x");
	kill(pid, SIGTERM);
	waitpid(pid, NULL, 0);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command) ? 1 : 0;
}
