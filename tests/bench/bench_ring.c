/*
 * What the client's side of the hand-over costs, each figure beside its ceiling of the same run:
 *
 *   step_begin + step_end within a window, without any attention work: ns, and system calls as ptrace counts them
 *   one record through the submission ring: cycles
 *   a window handed over and back (step_end ... step_begin): p50 and p99, by io_uring and by poll, the daemon asleep and awake;
 *   the ceiling is a bare eventfd there and back between two processes
 *   step records that ebbd digests per second of its own CPU time, from 1, 16 and 256 clients
 *
 * Everything up to the third line runs against the tests' own daemon (tests/unit/libclient/fake.h), a thread of this process while
 * the client is a child; the hand-over and the digest also against ebbd: $EBB_BIN/ebbd, or the one behind --socket PATH.
 */
#include <getopt.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "libclient/client.h"
#include "tests/bench/bench.h"
#include "tests/unit/libclient/fake.h"

#if defined(__x86_64__)
#include <x86intrin.h>
#define cycles() __rdtsc()
#define CYCLES "cycles"
#else
#define cycles() bench_ns()
#define CYCLES "ns"
#endif

/* What a child process found out. Shared memory: the child writes, the parent reads after its end. */
struct result {
	int rc;
	unsigned n;
	double value[65536];
};

static struct result *result;

static double quantile(struct result *r, double q)
{
	if (!r->n)
		return NAN;
	qsort(r->value, r->n, sizeof(*r->value), bench_ascending);
	return r->value[(unsigned)(q * (r->n - 1))];
}

static void note(double value)
{
	if (result->n < sizeof(result->value) / sizeof(*result->value))
		result->value[result->n++] = value;
}

/* Runs f(arg) in a child. 0 when it said so. */
static int in_child(int (*f)(void *), void *arg)
{
	int status;
	pid_t pid;

	fflush(stdout);
	result->n = 0;
	pid = fork();
	if (pid == 0) {
		alarm(60);
		_exit(f(arg));
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

/* --- a client to measure ---------------------------------------- */

struct plan {
	const char *socket;
	const char *settings;
	uint32_t sessions, max_tokens;
	unsigned rounds, steps, nap_ms;
	int no_uring;
};

static struct ebb_batch *client(const struct plan *p, struct ebb **ebb)
{
	struct ebb_session_options so = { .n_layers = 1, .n_kv_heads = 1, .group = 1, .head_dim = FAKE_DIM, .max_tokens = p->max_tokens,
					  .settings = p->settings };
	struct ebb_options o = { .socket = p->socket, .name = "bench", .no_uring = p->no_uring };
	struct ebb_batch_options bo = { .max_sessions = 256 };
	struct ebb_session *s;
	struct ebb_batch *batch;

	if (ebb_connect(ebb, &o) || ebb_batch_new(*ebb, &bo, &batch))
		return NULL;
	for (uint32_t i = 0; i < p->sessions; i++)
		if (ebb_session_open(*ebb, &so, &s) || ebb_batch_join(batch, s))
			return NULL;
	return batch;
}

static int one_step(struct ebb_batch *batch, uint32_t sessions)
{
	uint32_t n[256];
	int rc;

	for (uint32_t i = 0; i < sessions; i++)
		n[i] = 1;
	rc = ebb_step_begin(batch, n, 5000);
	return rc ? rc : ebb_step_end(batch);
}

static int run_steps(void *arg)
{
	const struct plan *p = arg;
	struct ebb *ebb;
	struct ebb_batch *batch = client(p, &ebb);

	for (unsigned r = 0; batch && r < p->rounds; r++) {
		uint64_t t = bench_ns();

		for (unsigned i = 0; i < p->steps; i++)
			if (one_step(batch, p->sessions))
				return 1;
		note((double)(bench_ns() - t) / p->steps);
		ebbi_wake(ebb);		/* the ring is emptied between rounds, not inside them */
		fake_nap_ms(p->nap_ms);
	}
	ebb_close(ebb);
	return !batch;
}

/* --- system calls, counted by the kernel ---------------------------------------- */

/* The child stops itself before and after its steps; what it calls in between is counted here. */
static int count_calls(struct plan *p, unsigned steps)
{
	struct ebb *ebb;
	int status, calls = 0;
	pid_t pid = fork();

	if (pid == 0) {
		struct ebb_batch *batch = client(p, &ebb);

		if (!batch || ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(1);
		for (unsigned i = 0; i < 3; i++)
			if (one_step(batch, p->sessions))
				_exit(1);
		raise(SIGSTOP);
		for (unsigned i = 0; i < steps; i++)
			if (one_step(batch, p->sessions))
				_exit(1);
		raise(SIGSTOP);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
		return -1;
	for (;;) {	/* entries and exits of calls stop it with SIGTRAP; the second SIGSTOP ends it */
		if (ptrace(PTRACE_SYSCALL, pid, NULL, NULL) || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
			return -1;
		if (WSTOPSIG(status) == SIGSTOP)
			break;
		calls++;
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return calls;
}

/* The least that a step of n sessions does, ns: a swap each, one fence, one record. Best of twenty. */
static double least_ns(uint32_t n)
{
	static uint64_t word[256 * 8];		/* a cache line each */
	static struct wire_record ring[WIRE_SQ_ENTRIES];
	double best = INFINITY;

	for (int round = 0; round < 20; round++) {
		uint64_t t = bench_ns();

		for (uint64_t i = 0; i < 1000; i++) {
			for (uint32_t k = 0; k < n; k++) {
				uint64_t expected = word[k * 8];

				wire_swap64(&word[k * 8], &expected, expected + 1);
			}
			wire_fence();
			ring[i & (WIRE_SQ_ENTRIES - 1)] = (struct wire_record){ .op = WIRE_STEP, .seq = i };
			__asm__ volatile("" : : "r"(&ring[i & (WIRE_SQ_ENTRIES - 1)]) : "memory");
		}
		best = fmin(best, (double)(bench_ns() - t) / 1000);
	}
	return best;
}

static void bench_steps(void)
{
	static const uint32_t sessions[] = { 1, 16, 256 };

	for (unsigned i = 0; i < 3; i++) {
		struct fake f = { .window = 100000, .stride = 4096 };
		struct plan p = { .sessions = sessions[i], .max_tokens = 100000, .rounds = 60, .steps = 500, .nap_ms = 2 };
		double ns, calls;
		char name[64];

		fake_start(&f);
		p.socket = f.path;
		if (in_child(run_steps, &p)) {
			printf("steps of %u sessions: failed\n", sessions[i]);
			exit(1);
		}
		ns = quantile(result, 0.1);	/* of 60 rounds: what it costs when nobody else has the core */
		snprintf(name, sizeof(name), "step_begin + step_end, batch of %u", sessions[i]);
		bench_report(name, ns, "ns", least_ns(sessions[i]), i ? "" : "<= 150 ns", i ? -1 : ns <= 150);
		calls = (double)(count_calls(&p, 400) - count_calls(&p, 0));
		snprintf(name, sizeof(name), "system calls in 400 steps, batch of %u", sessions[i]);
		bench_report(name, calls, "calls", NAN, "0", calls == 0);
		fake_stop(&f);
	}
}

/* --- the ring by itself ---------------------------------------- */

static void bench_records(void)
{
	struct wire_shared *shared = aligned_alloc(4096, WIRE_SHARED_BYTES);
	static struct ebb ebb;
	struct wire_record r = { .op = WIRE_STEP }, copy;
	double best = INFINITY, plain = INFINITY;
	uint64_t sum = 0;

	memset(shared, 0, WIRE_SHARED_BYTES);
	ebb.shared = shared;
	ebb.doorbell = -1;
	for (int round = 0; round < 20; round++) {
		uint32_t head = ebb.sq_tail;
		uint64_t t = cycles(), u;

		for (uint32_t i = 0; i < 100000; i++) {
			r.seq = i;
			if (ebbi_push(&ebb, &r))
				exit(1);
			if (wire_load32(&shared->sq_tail.value) - head != 1)
				exit(1);
			copy = shared->sq[head++ & (WIRE_SQ_ENTRIES - 1)];
			__asm__ volatile("" ::: "memory");
			wire_store32(&shared->sq_head.value, head);
			sum += copy.seq;
		}
		u = cycles();
		best = fmin(best, (double)(u - t) / 100000);
		t = cycles();
		for (uint32_t i = 0; i < 100000; i++) {
			r.seq = i;
			shared->sq[i & (WIRE_SQ_ENTRIES - 1)] = r;
			__asm__ volatile("" ::: "memory");
			copy = shared->sq[i & (WIRE_SQ_ENTRIES - 1)];
			__asm__ volatile("" ::: "memory");
			sum += copy.seq;
		}
		plain = fmin(plain, (double)(cycles() - t) / 100000);
	}
	bench_report("ring record, push and pop", best, CYCLES, plain, "", -1);
	if (sum == 1)	/* keep the loops */
		printf("%llu\n", (unsigned long long)sum);
	free(shared);
}

/* --- round trips ---------------------------------------- */

static double floor_p50, floor_p99;	/* eventfd there and back between two processes, us */

static int echo(void *arg)
{
	const int *fd = arg;
	uint64_t count;

	while (read(fd[0], &count, sizeof(count)) == sizeof(count) && count < 1000)
		if (write(fd[1], &(uint64_t){ 1 }, sizeof(count)) < 0)
			return 1;
	return 0;
}

/* Measured anew before each figure that stands beside it: where the scheduler puts two processes changes by the minute. */
static void measure_floor(unsigned nap_ms)
{
	int fd[2] = { eventfd(0, EFD_CLOEXEC), eventfd(0, EFD_CLOEXEC) }, status;
	const uint64_t one = 1, end = 1000;
	uint64_t count;
	pid_t pid = fork();

	if (pid == 0)
		_exit(echo(fd));
	result->n = 0;
	for (int i = 0; i < (nap_ms ? 500 : 5000); i++) {
		uint64_t t;

		if (nap_ms)
			fake_nap_ms(nap_ms);
		t = bench_ns();
		if (write(fd[0], &one, sizeof(one)) < 0 || read(fd[1], &count, sizeof(count)) < 0)
			exit(1);
		note((double)(bench_ns() - t) / 1e3);
	}
	(void)!write(fd[0], &end, sizeof(end));
	waitpid(pid, &status, 0);
	close(fd[0]);
	close(fd[1]);
	floor_p50 = quantile(result, 0.5);
	floor_p99 = quantile(result, 0.99);
}

/* Windows of one token: every step_end hands over, every step_begin waits for the grant. */
static int run_handover(void *arg)
{
	const struct plan *p = arg;
	struct ebb *ebb;
	struct ebb_batch *batch = client(p, &ebb);
	uint32_t n = 1;

	if (!batch || ebb_step_begin(batch, &n, 5000))
		return 1;
	for (unsigned i = 0; i < p->rounds; i++) {
		uint64_t t;

		if (p->nap_ms)
			fake_nap_ms(p->nap_ms);
		t = bench_ns();
		if (ebb_step_end(batch) || ebb_step_begin(batch, &n, 5000))
			return 1;
		if (i >= p->rounds / 10)	/* warm by then */
			note((double)(bench_ns() - t) / 1e3);
	}
	ebb_close(ebb);
	return 0;
}

static void report_handover(struct plan *p, const char *what)
{
	char name[96];

	measure_floor(p->nap_ms);
	if (in_child(run_handover, p)) {
		printf("%s: failed\n", what);
		exit(1);
	}
	for (int i = 0; i < 2; i++) {
		snprintf(name, sizeof(name), "%s, %s", what, i ? "p99" : "p50");
		bench_report(name, quantile(result, i ? 0.99 : 0.5), "us", i ? floor_p99 : floor_p50, "", -1);
	}
}

static void bench_handover_alone(void)
{
	for (int busy = 0; busy < 2; busy++)
		for (int no_uring = 0; no_uring < 2; no_uring++) {
			struct fake f = { .window = 1, .stride = 4096, .busy = busy };
			struct plan p = { .sessions = 1, .max_tokens = 20000, .rounds = 10000, .no_uring = no_uring };
			char what[64];

			fake_start(&f);
			p.socket = f.path;
			snprintf(what, sizeof(what), "doorbell and bell, %s, peer %s", no_uring ? "poll" : "io_uring",
				 busy ? "awake" : "asleep");
			report_handover(&p, what);
			fake_stop(&f);
		}
}

/* --- ebbd ---------------------------------------- */

struct ebbd {
	char dir[32], path[64], conf[64];
	pid_t pid;
	bool ours;
};

static bool ebbd_answers(const char *socket)
{
	struct ebb_options o = { .socket = socket, .no_uring = 1 };
	struct ebb *ebb;

	if (ebb_connect(&ebb, &o))
		return false;
	ebb_close(ebb);
	return true;
}

static bool ebbd_start(struct ebbd *d, const char *program)
{
	FILE *f;

	snprintf(d->dir, sizeof(d->dir), "/tmp/ebb-bench-XXXXXX");
	if (!mkdtemp(d->dir))
		return false;
	snprintf(d->path, sizeof(d->path), "%s/sock", d->dir);
	snprintf(d->conf, sizeof(d->conf), "%s/ini", d->dir);
	f = fopen(d->conf, "w");
	if (!f)
		return false;
	fprintf(f, "[daemon]\nsocket = %s\nmax_clients = 300\nlog_level = warning\n[pool host]\ndevice = host\nsize = 64M\n", d->path);
	fclose(f);
	d->pid = fork();
	if (d->pid == 0) {
		execl(program, "ebbd", "--config", d->conf, (char *)NULL);
		_exit(127);
	}
	d->ours = true;
	for (int i = 0; i < 200; i++) {
		if (ebbd_answers(d->path))
			return true;
		fake_nap_ms(20);
	}
	return false;
}

static void ebbd_stop(struct ebbd *d)
{
	if (!d->ours)
		return;
	kill(d->pid, SIGTERM);
	waitpid(d->pid, NULL, 0);
	unlink(d->conf);
	unlink(d->path);
	rmdir(d->dir);
}

/* CPU time that the daemon has used, ns. */
static uint64_t cpu_ns(pid_t pid)
{
	struct timespec t;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t))
		return 0;
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static const char one_token[] = "policy=streaming budget=16 window=1 sinks=4 recent=4";

/* Keeps the daemon awake for as long as it lives. */
static pid_t hammer(const char *socket)
{
	struct plan p = { .socket = socket, .settings = one_token, .sessions = 1, .max_tokens = 1u << 20 };
	pid_t pid = fork();

	if (pid == 0) {
		struct ebb *ebb;
		struct ebb_batch *batch;

		alarm(60);
		batch = client(&p, &ebb);
		while (batch && !one_step(batch, 1))
			;
		_exit(1);
	}
	return pid;
}

static void bench_handover_ebbd(const char *socket)
{
	struct plan p = { .socket = socket, .settings = one_token, .sessions = 1, .max_tokens = 1u << 20, .rounds = 10000 };
	pid_t pid;

	report_handover(&p, "window handed over to ebbd, back to back");
	p.rounds = 500;
	p.nap_ms = 3;
	report_handover(&p, "window handed over to ebbd, after 3 ms of sleep");
	pid = hammer(socket);
	p.rounds = 2000;
	p.nap_ms = 0;
	report_handover(&p, "window handed over to ebbd, busy with another");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* Records from n clients, a ring's worth at a time; 0 when the machine has not the descriptors. */
static double digest(const char *socket, pid_t pid, unsigned n)
{
	const unsigned rounds = 6000 / n + 4, each = WIRE_SQ_ENTRIES / 2;
	struct ebb_options o = { .socket = socket, .name = "bench", .no_uring = 1 };
	struct wire_record r = { .op = WIRE_STEP, .n_sessions = 1, .n_tokens = 1 };
	struct ebb **ebb = calloc(n, sizeof(*ebb));
	uint64_t t0 = 0, t1;
	unsigned connected = 0;

	while (connected < n && ebb_connect(&ebb[connected], &o) == 0)
		connected++;
	fake_nap_ms(50);
	for (unsigned k = 0; connected == n && k < rounds; k++) {
		if (k == 1)
			t0 = cpu_ns(pid);
		for (unsigned i = 0; i < n; i++) {
			for (unsigned j = 0; j < each; j++)
				if (ebbi_push(ebb[i], &r))
					connected = 0;
			ebbi_wake(ebb[i]);
		}
	}
	for (unsigned i = 0; i < n && connected; i++)
		while (wire_load32(&ebb[i]->shared->sq_head.value) != ebb[i]->sq_tail)
			fake_nap_ms(1);
	t1 = cpu_ns(pid);
	for (unsigned i = 0; i < n; i++)
		ebb_close(ebb[i]);
	free(ebb);
	return connected == n ? (double)(rounds - 1) * each * n / ((double)(t1 - t0) / 1e3) : 0;
}

static void bench_digest(const char *socket, pid_t pid)
{
	static const unsigned clients[] = { 1, 16, 256 };

	for (unsigned i = 0; i < 3; i++) {
		char name[64];
		double best = 0;

		for (int k = 0; k < 3; k++)
			best = fmax(best, digest(socket, pid, clients[i]));
		snprintf(name, sizeof(name), "step records digested by ebbd, %u clients", clients[i]);
		bench_report(name, best, "M/s of CPU", NAN, ">= 3 M/s", best >= 3);
	}
}

static pid_t pid_behind(const char *socket)
{
	struct ebb_options o = { .socket = socket, .no_uring = 1 };
	struct ucred cred = { 0 };
	socklen_t bytes = sizeof(cred);
	struct ebb *ebb;

	if (ebb_connect(&ebb, &o))
		return 0;
	getsockopt(ebb_fd(ebb), SOL_SOCKET, SO_PEERCRED, &cred, &bytes);
	ebb_close(ebb);
	return cred.pid;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "socket", required_argument, NULL, 's' }, { NULL, 0, NULL, 0 } };
	const struct rlimit files = { 4096, 4096 };
	struct ebbd d = { .pid = 0 };
	const char *bin = getenv("EBB_BIN");
	char program[256];
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c != 's') {
			fprintf(stderr, "usage: bench_ring [--socket PATH]\n");
			return 2;
		}
		snprintf(d.path, sizeof(d.path), "%s", optarg);
		d.pid = pid_behind(optarg);
	}
	(void)setrlimit(RLIMIT_NOFILE, &files);
	signal(SIGPIPE, SIG_IGN);
	result = mmap(NULL, sizeof(*result), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	bench_steps();
	bench_records();
	bench_handover_alone();
	snprintf(program, sizeof(program), "%s/ebbd", bin ? bin : "build/bin");
	if (!d.pid && (access(program, X_OK) || !ebbd_start(&d, program))) {
		printf("no ebbd at %s: hand-over and digest are left out\n", program);
		return bin ? 1 : 0;
	}
	bench_handover_ebbd(d.path);
	bench_digest(d.path, d.pid);
	ebbd_stop(&d);
	return 0;
}
