/*
 * A real ebbd of the test's own: a configuration in a temporary folder, started, watched, asked, stopped.
 * The binary is $EBB_BIN/ebbd, else ../../bin/ebbd seen from the test program's folder (build/tests/integration).
 * Failures assert through cmocka. Waiting has a limit (TD_PATIENCE_S) so that a test fails instead of hanging; nothing else
 * looks at a clock.
 */
#ifndef TESTS_LIB_DAEMON_H
#define TESTS_LIB_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define TD_PATIENCE_S 60

struct td {
	pid_t pid;
	char dir[64], socket[96], ini[96], log[96];
};

/* "host", or what EBB_TEST_DEVICE says. */
const char *td_device(void);

/* Path of a program that was built beside the tests: td_program("ebbd"). Borrowed until the next call. */
const char *td_program(const char *name);

/*
 * td_start - start a daemon and wait until it answers. @ini: everything after the [daemon] section's socket line, so it may begin
 * with more [daemon] keys; "%D" in it becomes the device.
 */
void td_start(struct td *d, const char *ini);
void td_configure(struct td *d, const char *ini);	/* writes the file anew; SIGHUP is the test's */
void td_signal(const struct td *d, int sig);
/* SIGTERM, wait, remove the folder. Fails the test unless the daemon ends with exit code 0. */
void td_stop(struct td *d);
int td_teardown(void **state);	/* td_stop() as a cmocka teardown; the setup has set *state to the struct td */
/* SIGKILL and wait; the folder stays until td_stop() or td_forget(). */
void td_kill(struct td *d);
void td_forget(struct td *d);
void td_restart(struct td *d);	/* after td_kill(): a new daemon with the same folder, file and socket */
bool td_alive(const struct td *d);

/*
 * td_number - ask the daemon; @path: "status:sessions", "status:pools.0.used_bytes", "sessions:0.budget_slots". The asking is a
 * client, and counts as one. -1: there is no such thing.
 */
int64_t td_number(const struct td *d, const char *path);
/* Waits until the number is so. The test fails, with the last value, when it never is. */
void td_await(const struct td *d, const char *path, int64_t value);
void td_await_at_least(const struct td *d, const char *path, int64_t value);
unsigned td_descriptors(const struct td *d);	/* open ones of the daemon */
unsigned td_settled_descriptors(const struct td *d);	/* the least seen for a while: who has just hung up is still there */
bool td_log_has(const struct td *d, const char *text);

void td_nap_us(unsigned us);
uint64_t td_now_ns(void);

#endif
