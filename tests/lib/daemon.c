#include "tests/lib/daemon.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "libclient/ebb.h"

void td_nap_us(unsigned us)
{
	struct timespec t = { us / 1000000, (long)(us % 1000000) * 1000 };

	nanosleep(&t, NULL);
}

uint64_t td_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

const char *td_device(void)
{
	const char *device = getenv("EBB_TEST_DEVICE");

	return device && *device ? device : "host";
}

const char *td_program(const char *name)
{
	static char path[4096];
	const char *bin = getenv("EBB_BIN");
	char *slash;
	ssize_t n;

	if (bin && *bin) {
		snprintf(path, sizeof(path), "%s/%s", bin, name);
		return path;
	}
	n = readlink("/proc/self/exe", path, sizeof(path) - 64);
	assert_true(n > 0);
	path[n] = '\0';
	slash = strrchr(path, '/');
	snprintf(slash, 64, "/../../bin/%s", name);
	return path;
}

void td_configure(struct td *d, const char *ini)
{
	FILE *f = fopen(d->ini, "we");

	assert_non_null(f);
	fprintf(f, "[daemon]\nsocket = %s\n", d->socket);
	for (const char *p = ini; *p; p++) {
		if (p[0] == '%' && p[1] == 'D') {
			fputs(td_device(), f);
			p++;
		} else {
			fputc(*p, f);
		}
	}
	assert_int_equal(fclose(f), 0);
}

static void print_log(const struct td *d)
{
	FILE *f = fopen(d->log, "re");
	char line[512];

	while (f && fgets(line, sizeof(line), f))
		print_message("ebbd: %s", line);
	if (f)
		fclose(f);
}

void td_restart(struct td *d)
{
	uint64_t until = td_now_ns() + TD_PATIENCE_S * 1000000000ull;
	struct ebb_options options = { .socket = d->socket, .name = "test" };
	struct ebb *ebb = NULL;
	const char *program = td_program("ebbd");
	int rc = -EAGAIN, status;

	d->pid = fork();
	assert_true(d->pid >= 0);
	if (d->pid == 0) {
		int fd = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600);

		prctl(PR_SET_PDEATHSIG, SIGKILL);	/* a test that crashes leaves no daemon behind */
		if (fd < 0 || dup2(fd, 2) < 0 || dup2(fd, 1) < 0)
			_exit(99);
		execl(program, "ebbd", "--config", d->ini, (char *)NULL);
		_exit(98);
	}
	while (rc && td_now_ns() < until) {
		rc = ebb_connect(&ebb, &options);
		if (rc && waitpid(d->pid, &status, WNOHANG) == d->pid) {
			print_log(d);
			d->pid = 0;
			fail_msg("%s ended at once, status %x", program, (unsigned)status);
		}
		if (rc)
			td_nap_us(1000);
	}
	if (rc)
		print_log(d);
	assert_int_equal(rc, 0);
	ebb_close(ebb);
}

void td_start(struct td *d, const char *ini)
{
	memset(d, 0, sizeof(*d));
	strcpy(d->dir, "/tmp/ebb-test-XXXXXX");
	assert_non_null(mkdtemp(d->dir));
	snprintf(d->socket, sizeof(d->socket), "%s/sock", d->dir);
	snprintf(d->ini, sizeof(d->ini), "%s/ebbd.ini", d->dir);
	snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
	td_configure(d, ini);
	td_restart(d);
}

void td_signal(const struct td *d, int sig)
{
	assert_int_equal(kill(d->pid, sig), 0);
}

void td_forget(struct td *d)
{
	unlink(d->socket);
	unlink(d->ini);
	unlink(d->log);
	rmdir(d->dir);
	d->pid = 0;
}

void td_kill(struct td *d)
{
	int status;

	td_signal(d, SIGKILL);
	assert_int_equal(waitpid(d->pid, &status, 0), d->pid);
}

bool td_alive(const struct td *d)
{
	char path[64], text[256] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", d->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	close(fd);
	return strrchr(text, ')') && !strchr("ZX", strrchr(text, ')')[2]);
}

void td_stop(struct td *d)
{
	uint64_t until = td_now_ns() + TD_PATIENCE_S * 1000000000ull;
	int status = 0;
	pid_t pid;

	td_signal(d, SIGTERM);
	while ((pid = waitpid(d->pid, &status, WNOHANG)) == 0 && td_now_ns() < until)
		td_nap_us(1000);
	if (pid == 0)
		td_kill(d);
	if (pid == 0 || !WIFEXITED(status) || WEXITSTATUS(status))
		print_log(d);
	td_forget(d);
	assert_true(pid > 0);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int td_teardown(void **state)
{
	td_stop(*state);
	return 0;
}

static const json_t *walk(const json_t *at, const char *path)
{
	char key[64];

	while (at && *path) {
		size_t n = strcspn(path, ".");

		snprintf(key, sizeof(key), "%.*s", (int)n, path);
		at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
		path += n + (path[n] == '.');
	}
	return at;
}

int64_t td_number(const struct td *d, const char *path)
{
	struct ebb_options options = { .socket = d->socket, .name = "asker" };
	const char *colon = strchr(path, ':');
	char question[32], *text = NULL;
	const json_t *at;
	int64_t value = -1;
	struct ebb *ebb;
	json_t *root;
	int rc;

	assert_non_null(colon);
	snprintf(question, sizeof(question), "%.*s", (int)(colon - path), path);
	rc = ebb_connect(&ebb, &options);
	if (!rc)
		rc = ebb_ask(ebb, question, &text);
	if (rc)
		print_log(d);
	assert_int_equal(rc, 0);
	root = json_loads(text, 0, NULL);
	assert_non_null(root);
	at = walk(root, colon + 1);
	if (json_is_array(at))
		value = (int64_t)json_array_size(at);
	else if (at)
		value = json_is_boolean(at) ? json_is_true(at) : (int64_t)json_integer_value(at);
	json_decref(root);
	free(text);
	ebb_close(ebb);
	return value;
}

static void await(const struct td *d, const char *path, int64_t value, bool more)
{
	uint64_t until = td_now_ns() + TD_PATIENCE_S * 1000000000ull;
	int64_t seen;

	for (;;) {
		seen = td_number(d, path);
		if (seen == value || (more && seen > value))
			return;
		if (td_now_ns() > until)
			break;
		td_nap_us(2000);
	}
	print_log(d);
	fail_msg("%s is %lld and does not become %lld", path, (long long)seen, (long long)value);
}

void td_await(const struct td *d, const char *path, int64_t value)
{
	await(d, path, value, false);
}

void td_await_at_least(const struct td *d, const char *path, int64_t value)
{
	await(d, path, value, true);
}

unsigned td_descriptors(const struct td *d)
{
	char path[64];
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", d->pid);
	dir = opendir(path);
	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));)
		n += e->d_name[0] != '.';
	closedir(dir);
	return n;
}

unsigned td_settled_descriptors(const struct td *d)
{
	unsigned least = UINT32_MAX;

	for (unsigned i = 0; i < 200; i++) {
		unsigned now = td_descriptors(d);

		least = now < least ? now : least;
		td_nap_us(2000);
	}
	return least;
}

bool td_log_has(const struct td *d, const char *text)
{
	FILE *f = fopen(d->log, "re");
	char line[1024];
	bool found = false;

	while (f && !found && fgets(line, sizeof(line), f))
		found = strstr(line, text) != NULL;
	if (f)
		fclose(f);
	return found;
}
