/* The program itself: answers from a file, exit codes, and on a terminal of its own: keys, signals, sizes, and what it leaves behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "libclient/ebb.h"

static char program[600];
static char answers[] = "/tmp/ebbctl_test_XXXXXX";

static const char frames[] =
	"[{\"at_s\":1,\"status\":{\"version\":\"9.9\",\"uptime_s\":7391,\"pid\":7,\"clients\":1,\"sessions\":1,\"tokens_total\":1000,"
	"\"pools\":[{\"name\":\"host\",\"device\":\"host\",\"size_bytes\":268435456,\"used_bytes\":67108864,\"slabs\":4,"
	"\"slabs_used\":1}]},"
	"\"sessions\":[{\"id\":1,\"client\":1,\"pid\":8,\"name\":\"llama\",\"policy\":\"h2o\",\"tokens\":10,\"used_bytes\":4096}],"
	"\"clients\":[],\"policies\":[{\"name\":\"h2o\",\"text\":\"heavy hitters\"}],"
	"\"config\":[{\"section\":\"session\",\"key\":\"budget\",\"value\":\"25%\",\"unit\":\"slots\",\"reload\":\"live\"}]},"
	"{\"at_s\":3,\"status\":{\"version\":\"9.9\",\"uptime_s\":7393,\"tokens_total\":1430,\"pools\":[]},\"sessions\":[]}]";

/* Runs ebbctl with @arguments (split by the shell); standard output and error in @out. Returns the exit code. */
static int run(const char *arguments, char *out, size_t bytes)
{
	char command[1400];
	size_t n;
	FILE *from;
	int status;

	snprintf(command, sizeof(command), "'%s' %s 2>&1 </dev/null", program, arguments);
	from = popen(command, "r");
	assert_non_null(from);
	n = fread(out, 1, bytes - 1, from);
	out[n] = '\0';
	status = pclose(from);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int run_from(const char *arguments, char *out, size_t bytes)
{
	char all[700];

	snprintf(all, sizeof(all), "--from %s %s", answers, arguments);
	return run(all, out, bytes);
}

static void each_question_has_an_answer_for_people_and_for_programs(void **state)
{
	static const struct {
		const char *command, *shows;
	} row[] = {
		{ "status", "25.0 %  64 MiB of 256 MiB, 1 of 4 slabs" }, { "sessions", "llama" }, { "clients", "CONNECTED" },
		{ "policies", "heavy hitters" }, { "config", "budget  25%    slots  on reload" }, { "version", "ebbd   9.9" },
	};
	char out[8192], command[64];

	(void)state;
	for (size_t i = 0; i < sizeof(row) / sizeof(row[0]); i++) {
		json_t *json;

		assert_int_equal(run_from(row[i].command, out, sizeof(out)), 0);
		if (!strstr(out, row[i].shows))
			fail_msg("%s: no \"%s\" in\n%s", row[i].command, row[i].shows, out);
		assert_null(strchr(out, '\033'));
		snprintf(command, sizeof(command), "%s --json", row[i].command);
		assert_int_equal(run_from(command, out, sizeof(out)), 0);
		json = json_loads(out, 0, NULL);
		assert_non_null(json);
		json_decref(json);
	}
}

static void watch_prints_frames_into_a_pipe(void **state)
{
	char out[8192], *second;
	unsigned lines = 0;

	(void)state;
	assert_int_equal(run_from("watch --interval 0.1", out, sizeof(out)), 0);
	assert_null(strchr(out, '\033'));
	second = strstr(out + 1, "\nebbd 9.9");
	assert_non_null(second);
	assert_non_null(strstr(second, "215 tok/s"));
	assert_int_equal(run_from("watch --interval 0.1 --json", out, sizeof(out)), 0);
	for (char *at = out, *end; (end = strchr(at, '\n')) != NULL; at = end + 1, lines++) {
		json_t *json = json_loadb(at, (size_t)(end - at), 0, NULL);

		assert_non_null(json_object_get(json, "status"));
		assert_non_null(json_object_get(json, "sessions"));
		json_decref(json);
	}
	assert_int_equal(lines, 2);
	assert_int_equal(run_from("watch -c 1", out, sizeof(out)), 0);
	assert_null(strstr(out + 1, "\nebbd 9.9"));
}

static void exit_codes_say_what_was_wrong(void **state)
{
	static const struct {
		const char *arguments;
		int code;
		const char *says;
	} row[] = {
		{ "", 2, "usage: ebbctl" }, { "help", 0, "usage: ebbctl" }, { "--help", 0, "usage: ebbctl" },
		{ "--version", 0, "ebbctl 0." },
		{ "stats", 2, "there is no command stats" }, { "--colour status", 2, "there is no option --colour" },
		{ "status now", 2, "too much: now" }, { "watch -n 0", 2, "0.1 .. 3600" }, { "watch -n 1x", 2, "0.1 .. 3600" },
		{ "watch -n nan", 2, "0.1 .. 3600" }, { "watch -c -1", 2, "--count" },
		{ "--socket", 2, "a value is missing behind --socket" },
		{ "--socket /nonexistent/s status", 1, "ebbd is not running: there is no socket /nonexistent/s" },
		{ "--socket /nonexistent/s watch", 1, "systemctl start ebbd" }, { "--socket /nonexistent/s version", 0, "not running" },
		{ "--from /nonexistent status", 1, "/nonexistent" },
	};
	char out[8192];

	(void)state;
	for (size_t i = 0; i < sizeof(row) / sizeof(row[0]); i++) {
		int code = run(row[i].arguments, out, sizeof(out));

		if (code != row[i].code || !strstr(out, row[i].says))
			fail_msg("ebbctl %s: %d, expected %d and \"%s\" in\n%s", row[i].arguments, code, row[i].code, row[i].says, out);
	}
}

/* --- on a terminal ------------------------------------------------------------------------------------------------------------------ */

struct terminal {
	int fd;
	pid_t pid;
	struct termios before;
	char out[1 << 16];
	size_t n;
};

/* Reads until @text has come @times; fails after a time that no working machine needs. */
static void expect(struct terminal *t, const char *text, unsigned times)
{
	for (;;) {
		struct pollfd p = { .fd = t->fd, .events = POLLIN };
		unsigned found = 0;
		ssize_t n = 0;

		for (const char *at = t->out; (at = strstr(at, text)) != NULL; at++)
			found++;
		if (found >= times)
			return;
		if (poll(&p, 1, 30000) == 1)
			n = read(t->fd, t->out + t->n, sizeof(t->out) - 1 - t->n);
		if (n <= 0)
			fail_msg("\"%s\" did not come; so far: %s", text, t->out);
		t->n += (size_t)n;
		t->out[t->n] = '\0';
	}
}

static void set_size(struct terminal *t, unsigned short rows, unsigned short columns)
{
	struct winsize size = { .ws_row = rows, .ws_col = columns };

	assert_int_equal(ioctl(t->fd, TIOCSWINSZ, &size), 0);
}

/* Starts watch on a terminal of 20 x 60; the second frame of the file never ends it, since the interval is an hour. */
static void start(struct terminal *t, const char *no_colour)
{
	struct winsize size = { .ws_row = 20, .ws_col = 60 };
	int go[2];
	char c;

	memset(t, 0, sizeof(*t));
	assert_int_equal(pipe(go), 0);
	t->pid = forkpty(&t->fd, NULL, NULL, &size);
	assert_true(t->pid >= 0);
	if (t->pid == 0) {
		close(go[1]);
		(void)!read(go[0], &c, 1);	/* until the parent has looked at the terminal's settings */
		close(go[0]);
		setenv("TERM", "xterm", 1);
		setenv("LC_ALL", "C", 1);
		setenv("NO_COLOR", no_colour, 1);
		execl(program, "ebbctl", "--from", answers, "watch", "--interval", "3600", (char *)NULL);
		_exit(127);
	}
	assert_int_equal(tcgetattr(t->fd, &t->before), 0);
	close(go[0]);
	close(go[1]);
	expect(t, "llama", 1);
}

/* It has gone with this status; the terminal is as it was and shows its cursor. */
static void expect_end(struct terminal *t, int code)
{
	struct termios after;
	int status;

	expect(t, "\033[?25h", 1);
	assert_int_equal(waitpid(t->pid, &status, 0), t->pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), code);
	assert_int_equal(tcgetattr(t->fd, &after), 0);
	assert_int_equal(after.c_lflag, t->before.c_lflag);
	assert_memory_equal(after.c_cc, t->before.c_cc, sizeof(after.c_cc));
	close(t->fd);
}

static void q_ctrl_c_and_signals_leave_the_terminal_as_it_was(void **state)
{
	struct terminal *t = malloc(sizeof(*t));
	struct termios during;

	(void)state;
	assert_non_null(t);
	for (int how = 0; how < 5; how++) {
		start(t, "");
		assert_int_equal(tcgetattr(t->fd, &during), 0);
		assert_int_equal(during.c_lflag & (ICANON | ECHO), 0);
		assert_non_null(strstr(t->out, "\033[?25l"));
		if (how < 3)
			assert_int_equal(write(t->fd, how == 0 ? "q" : how == 1 ? "\003" : "xyzQ", how < 2 ? 1 : 4), how < 2 ? 1 : 4);
		else
			assert_int_equal(kill(t->pid, how == 3 ? SIGTERM : SIGHUP), 0);
		expect_end(t, 0);
	}
	free(t);
}

static void ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(void **state)
{
	struct terminal *t = malloc(sizeof(*t));
	struct termios stopped;
	int status;

	(void)state;
	assert_non_null(t);
	start(t, "");
	assert_int_equal(write(t->fd, "\032", 1), 1);
	assert_int_equal(waitpid(t->pid, &status, WUNTRACED), t->pid);
	assert_true(WIFSTOPPED(status));
	assert_int_equal(tcgetattr(t->fd, &stopped), 0);
	assert_int_equal(stopped.c_lflag, t->before.c_lflag);
	expect(t, "\033[?25h", 1);
	assert_int_equal(kill(t->pid, SIGCONT), 0);
	expect(t, "\033[?25l", 2);
	t->n = 0;
	t->out[0] = '\0';
	assert_int_equal(write(t->fd, "q", 1), 1);
	expect_end(t, 0);
	free(t);
}

static void a_new_size_is_drawn_at_once(void **state)
{
	struct terminal *t = malloc(sizeof(*t));

	(void)state;
	assert_non_null(t);
	start(t, "");
	assert_non_null(strstr(t->out, "\033[H\033[2J"));
	set_size(t, 24, 100);
	expect(t, "ebbd 9.9", 2);	/* an hour's interval: only the size can have brought it */
	assert_int_equal(write(t->fd, "q", 1), 1);
	expect_end(t, 0);
	free(t);
}

static void colour_is_left_off_when_asked(void **state)
{
	struct terminal *t = malloc(sizeof(*t));

	(void)state;
	assert_non_null(t);
	start(t, "");
	assert_non_null(strstr(t->out, "\033[32m"));
	assert_int_equal(write(t->fd, "q", 1), 1);
	expect_end(t, 0);
	start(t, "1");
	assert_int_equal(write(t->fd, "q", 1), 1);
	expect_end(t, 0);
	for (const char *at = t->out; (at = strchr(at, '\033')) != NULL; at++)
		assert_true(at[strspn(at + 1, "[?0123456789;") + 1] != 'm');
	free(t);
}

/* A file system made up for the doctor. */
static void put(const char *root, const char *path, const char *text)
{
	char command[600];

	snprintf(command, sizeof(command), "mkdir -p \"$(dirname %s%s)\" && printf '%s' > %s%s", root, path, text, root, path);
	assert_int_equal(system(command), 0);
}

static void has_check(const json_t *list, const char *check, const char *state, bool cure)
{
	const json_t *row;
	size_t i;

	json_array_foreach(list, i, row) {
		if (strcmp(json_string_value(json_object_get(row, "check")), check) != 0)
			continue;
		if (strcmp(json_string_value(json_object_get(row, "state")), state) != 0 || json_is_string(json_object_get(row, "cure")) != cure)
			fail_msg("%s: %s", check, json_dumps(row, 0));
		return;
	}
	fail_msg("no check %s", check);
}

static void the_doctor_names_what_is_wrong_and_the_cure(void **state)
{
	static const char thp[] = "/sys/kernel/mm/transparent_hugepage/shmem_enabled", uring[] = "/proc/sys/kernel/io_uring_disabled";
	static const char gpu_pool[] = "{\"status\":{\"version\":\"" EBB_VERSION "\",\"pools\":[{\"name\":\"g\",\"mps\":%s},{\"name\":\"h\",\"mps\":null}]}}";
	char root[] = "/tmp/ebb_doctor_XXXXXX", out[8192], command[256], answer[256];
	json_t *list;

	(void)state;
	assert_non_null(mkdtemp(root));
	put(root, uring, "0\n");
	put(root, thp, "always within_size [advise] never deny force\n");
	snprintf(command, sizeof(command), "--root %s doctor --json", root);
	assert_int_equal(run_from(command, out, sizeof(out)), 0);	/* a daemon of another version: a hint */
	list = json_loads(out, 0, NULL);
	has_check(list, "daemon", "ok", false);
	has_check(list, "versions", "hint", true);
	has_check(list, "io_uring", "ok", false);
	has_check(list, "large pages", "ok", false);
	has_check(list, "GPUs", "ok", false);
	json_decref(list);

	put(root, uring, "2\n");
	put(root, thp, "always within_size advise [never] deny force\n");
	put(root, "/proc/driver/nvidia/gpus/0000:00:06.0/information", "x");
	snprintf(command, sizeof(command), "--socket %s/none --root %s doctor --json", root, root);
	assert_int_equal(run(command, out, sizeof(out)), 1);
	list = json_loads(out, 0, NULL);
	has_check(list, "daemon", "bad", true);
	has_check(list, "io_uring", "bad", true);
	has_check(list, "large pages", "hint", true);
	has_check(list, "nvidia-uvm", "bad", true);
	json_decref(list);

	put(root, uring, "1\n");
	put(root, "/dev/nvidia-uvm", "");
	for (int on = 0; on < 2; on++) {
		char file[64];

		snprintf(file, sizeof(file), "%s/answer", root);
		snprintf(answer, sizeof(answer), gpu_pool, on ? "true" : "false");
		put(root, "/answer", answer);
		snprintf(command, sizeof(command), "--from %s --root %s doctor --json", file, root);
		assert_int_equal(run(command, out, sizeof(out)), 0);
		list = json_loads(out, 0, NULL);
		has_check(list, "io_uring", "hint", true);
		has_check(list, "MPS", on ? "ok" : "hint", !on);
		json_decref(list);
	}
	snprintf(command, sizeof(command), "--from %s/answer --root %s doctor", root, root);
	assert_int_equal(run(command, out, sizeof(out)), 0);
	assert_non_null(strstr(out, "hint  io_uring"));
	snprintf(command, sizeof(command), "rm -r %s", root);
	assert_int_equal(system(command), 0);
}

static int set_up(void **state)
{
	const char *bin = getenv("EBB_BIN");
	int fd = mkstemp(answers);

	(void)state;
	snprintf(program, sizeof(program), "%s/ebbctl", bin ? bin : "build/bin");
	unsetenv("EBB_SOCKET");
	if (fd < 0 || write(fd, frames, sizeof(frames) - 1) != (ssize_t)sizeof(frames) - 1)
		return -1;
	return close(fd);
}

static int clean_up(void **state)
{
	(void)state;
	return unlink(answers);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_question_has_an_answer_for_people_and_for_programs),
		cmocka_unit_test(watch_prints_frames_into_a_pipe),
		cmocka_unit_test(exit_codes_say_what_was_wrong),
		cmocka_unit_test(q_ctrl_c_and_signals_leave_the_terminal_as_it_was),
		cmocka_unit_test(ctrl_z_gives_the_terminal_back_and_fg_takes_it_again),
		cmocka_unit_test(a_new_size_is_drawn_at_once),
		cmocka_unit_test(colour_is_left_off_when_asked),
		cmocka_unit_test(the_doctor_names_what_is_wrong_and_the_cure),
	};

	return cmocka_run_group_tests(tests, set_up, clean_up);
}
