/*
 * The processes of ebb-bench-serve: ebbd with a pool of its own, and clients.
 *
 * A client is this program again: --work NUMBERS SOCKET SETTINGS SECONDS. It says "ready N" on its standard output once its sessions
 * have their prompts, decodes when it reads a line, and says "result ...". Whatever happens here, the kernel ends the others: each asks
 * for a signal when its parent dies, and for one after its seconds.
 */
#include "examples/serve/serve.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

struct client {
	pid_t pid;
	FILE *to, *from;
	struct serve_result r;
};

static char dir[64], sock[128];
static pid_t daemon_pid;

static int complain(const char *what, const char *why)
{
	fprintf(stderr, "ebb-bench-serve: %s: %s\n", what, why);
	return 1;
}

static int connected(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), ok;

	snprintf(a.sun_path, sizeof(a.sun_path), "%.107s", sock);
	ok = fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;
	if (fd >= 0)
		close(fd);
	return ok;
}

void serve_daemon_stop(void)
{
	char path[128];

	if (daemon_pid > 0) {
		kill(daemon_pid, SIGTERM);
		waitpid(daemon_pid, NULL, 0);
	}
	daemon_pid = 0;
	if (!*dir)
		return;
	snprintf(path, sizeof(path), "%s/ini", dir);
	unlink(path);
	unlink(sock);
	rmdir(dir);
	*dir = '\0';
}

static void daemon_run(const char *exe, const char *ini, const char *log)
{
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (!freopen("/dev/null", "r", stdin) || !freopen(log ? log : "/dev/null", "a", stdout) ||
	    !freopen(log ? log : "/dev/null", "a", stderr))
		_exit(1);
	execl(exe, "ebbd", "--config", ini, (char *)NULL);
	_exit(127);
}

const char *serve_daemon_start(int ordinal, uint64_t bytes, const char *log)
{
	const char *bin = getenv("EBB_BIN");
	char exe[512], self[400], ini[128], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	FILE *f;

	self[n > 0 ? n : 0] = '\0';
	slash = strrchr(self, '/');
	if (slash)
		*slash = '\0';
	snprintf(exe, sizeof(exe), "%s/ebbd", bin && *bin ? bin : self);
	snprintf(dir, sizeof(dir), "/tmp/ebb-serve.XXXXXX");
	if (!mkdtemp(dir))
		return complain("a folder in /tmp", strerror(errno)), NULL;
	snprintf(ini, sizeof(ini), "%s/ini", dir);
	snprintf(sock, sizeof(sock), "%s/sock", dir);
	f = fopen(ini, "w");
	if (!f)
		return complain(ini, strerror(errno)), NULL;
	fprintf(f, "[daemon]\nsocket = %s\ndrain = 0s\n[pool gpu]\ndevice = cuda:%d\nsize = %llu\n", sock, ordinal,
		(unsigned long long)bytes);
	fclose(f);
	fflush(stdout);
	daemon_pid = fork();
	if (daemon_pid == 0)
		daemon_run(exe, ini, log);
	for (unsigned i = 0; i < 600; i++) {
		if (daemon_pid < 0 || waitpid(daemon_pid, NULL, WNOHANG) != 0)
			break;
		if (connected())
			return sock;
		usleep(100000);
	}
	complain(exe, "it does not answer (see --daemon-log)");
	serve_daemon_stop();
	return NULL;
}

/* What --work gets; read back by serve_be_client(). */
static void describe(const struct serve_config *c, char *to, size_t bytes)
{
	const struct serve_model *m = &c->model;

	snprintf(to, bytes, "%u %u %u %u %u %u %u %d %llu %u %u %u %u %u %u %d %d %d", m->layers, m->heads, m->kv_heads, m->head_dim,
		 m->hidden, m->ffn, m->vocab, c->ordinal, (unsigned long long)c->bytes, c->sessions, c->length, c->decode, c->warm, c->pad,
		 c->fill, c->graph, c->ragged, c->check);
}

int serve_be_client(const char *numbers, const char *socket_path, const char *settings)
{
	struct serve_config c = { .gate = 1 };
	struct serve_model *m = &c.model;
	struct serve_result r;
	unsigned long long bytes;

	if (sscanf(numbers, "%u %u %u %u %u %u %u %d %llu %u %u %u %u %u %u %d %d %d", &m->layers, &m->heads, &m->kv_heads, &m->head_dim,
		   &m->hidden, &m->ffn, &m->vocab, &c.ordinal, &bytes, &c.sessions, &c.length, &c.decode, &c.warm, &c.pad, &c.fill,
		   &c.graph, &c.ragged, &c.check) != 18)
		return complain("--work", "is for this program's own use");
	c.bytes = bytes;
	c.socket = *socket_path ? socket_path : NULL;
	c.settings = settings;
	if (serve_work(&c, &r))
		return 1;
	printf("result %u %u %.17g %.17g %.17g %.17g %u %.17g %.17g %llx %u", r.sessions, r.steps, r.seconds, r.window_ms, r.cpu_us,
	       r.ebb_us, r.graphs, r.open_s, r.prefill_s, (unsigned long long)r.hash, r.n_series);
	for (uint32_t i = 0; i < r.n_series; i++)
		printf(" %.6g", r.series_ms[i]);
	printf("\n");
	return 0;
}

static int client_start(struct client *c, const struct serve_config *config, unsigned limit_s)
{
	int in[2], out[2];
	char text[256], limit[16];

	describe(config, text, sizeof(text));
	snprintf(limit, sizeof(limit), "%u", limit_s);
	if (pipe(in) || pipe(out))
		return complain("a pipe", strerror(errno));
	fflush(stdout);
	c->pid = fork();
	if (c->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(in[0], 0);
		dup2(out[1], 1);
		for (int fd = 3; fd < 64; fd++)
			close(fd);
		execl("/proc/self/exe", "ebb-bench-serve", "--work", text, config->socket ? config->socket : "", config->settings, limit,
		      (char *)NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	c->to = fdopen(in[1], "w");
	c->from = fdopen(out[0], "r");
	return c->pid < 0 || !c->to || !c->from ? complain("a process", strerror(errno)) : 0;
}

/* The client's next line that begins with `word`. Its own lines only: what libraries print is not ours to read. */
static int next_line(struct client *c, const char *word, char *line, size_t bytes)
{
	while (fgets(line, (int)bytes, c->from))
		if (strncmp(line, word, strlen(word)) == 0)
			return 0;
	return 1;
}

static int read_result(struct client *c)
{
	struct serve_result *r = &c->r;
	unsigned long long hash;
	char line[1024];
	int at = 0;

	if (next_line(c, "result ", line, sizeof(line)) ||
	    sscanf(line, "result %u %u %lf %lf %lf %lf %u %lf %lf %llx %u%n", &r->sessions, &r->steps, &r->seconds, &r->window_ms,
		   &r->cpu_us, &r->ebb_us, &r->graphs, &r->open_s, &r->prefill_s, &hash, &r->n_series, &at) != 11 ||
	    r->n_series > SERVE_SERIES)
		return 1;
	r->hash = hash;
	for (uint32_t i = 0; i < r->n_series; i++) {
		int more = 0;

		if (sscanf(line + at, "%lf%n", &r->series_ms[i], &more) != 1)
			return 1;
		at += more;
	}
	return 0;
}

/* One result of all: sessions and seconds of the slowest, means of the rest. */
static void add_up(const struct client *c, uint32_t n, struct serve_result *out)
{
	*out = c[0].r;
	for (uint32_t i = 1; i < n; i++) {
		const struct serve_result *r = &c[i].r;

		out->sessions += r->sessions;
		out->seconds = r->seconds > out->seconds ? r->seconds : out->seconds;
		out->window_ms += r->window_ms;
		out->cpu_us += r->cpu_us;
		out->ebb_us += r->ebb_us;
		out->graphs += r->graphs;
	}
	out->window_ms /= n;
	out->cpu_us /= n;
	out->ebb_us /= n;
}

int serve_run(const struct serve_config *config, uint32_t n, unsigned limit_s, struct serve_result *out)
{
	struct client c[SERVE_PROCESSES] = { 0 };
	char line[1024];
	int bad = 0;

	for (uint32_t i = 0; i < n && !bad; i++)
		bad = client_start(&c[i], config, limit_s);
	for (uint32_t i = 0; i < n && !bad; i++)
		bad = next_line(&c[i], "ready ", line, sizeof(line));
	for (uint32_t i = 0; i < n && !bad; i++) {
		fprintf(c[i].to, "go\n");
		fflush(c[i].to);
	}
	for (uint32_t i = 0; i < n && !bad; i++)
		bad = read_result(&c[i]);
	for (uint32_t i = 0; i < n; i++) {
		if (c[i].pid > 0 && bad)
			kill(c[i].pid, SIGKILL);
		if (c[i].to)
			fclose(c[i].to);
		if (c[i].from)
			fclose(c[i].from);
		if (c[i].pid > 0)
			waitpid(c[i].pid, NULL, 0);
	}
	if (!bad)
		add_up(c, n, out);
	return bad;
}
