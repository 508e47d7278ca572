/*
 * Sleeping until the daemon rings the bell or says something on the socket (hanging up is saying something).
 *
 * Two methods with one meaning: io_uring, where one system call arms and waits, and plain poll() and read() where io_uring is
 * not allowed (container seccomp profiles return EPERM or ENOSYS) or not wanted. Which one is found out once, by trying.
 *
 * io_uring keeps a read of the bell and a poll of the socket armed across sleeps. A ring of the bell in between is then eaten by
 * the armed read, and its completion makes the next sleep end at once: a spurious wake-up, never a lost one.
 */
#include "libclient/client.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

struct ebbi_wait {
	int bell, sock;
	bool uring;
	bool bell_armed, sock_armed;
	bool poll_bell;		/* reads of a non-blocking bell fail at once (before Linux 5.19): poll it instead */
	uint64_t count;		/* what the bell's read stores */
	struct io_uring ring;
};

uint64_t ebbi_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A ring that was set up may still refuse to work: send one no-op through it. */
static bool uring_works(struct io_uring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;
	bool ok;

	if (!sqe || !(ring->features & IORING_FEAT_EXT_ARG))	/* without it a timed wait needs a timer of its own: 5.11 */
		return false;
	io_uring_prep_nop(sqe);
	if (io_uring_submit_and_wait(ring, 1) < 0 || io_uring_peek_cqe(ring, &cqe) < 0)
		return false;
	ok = cqe->res == 0;
	io_uring_cqe_seen(ring, cqe);
	return ok;
}

int ebbi_wait_new(struct ebbi_wait **out, int bell, int sock, bool no_uring)
{
	const char *env = getenv("EBB_NO_URING");
	struct ebbi_wait *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->bell = bell;
	w->sock = sock;
	if (!no_uring && !(env && *env && *env != '0') && io_uring_queue_init(4, &w->ring, 0) == 0) {
		w->uring = uring_works(&w->ring);
		if (!w->uring)
			io_uring_queue_exit(&w->ring);
	}
	*out = w;
	return 0;
}

void ebbi_wait_free(struct ebbi_wait *w)
{
	if (w && w->uring)
		io_uring_queue_exit(&w->ring);
	free(w);
}

bool ebbi_wait_uring(const struct ebbi_wait *w)
{
	return w->uring;
}

static int sleep_poll(struct ebbi_wait *w, int64_t timeout_ns)
{
	struct pollfd p[2] = { { .fd = w->bell, .events = POLLIN }, { .fd = w->sock, .events = POLLIN } };
	struct timespec t = { .tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000 };
	uint64_t count;
	int woke = 0;

	if (ppoll(p, 2, timeout_ns < 0 ? NULL : &t, NULL) < 0)
		return errno == EINTR ? 0 : -EIO;
	if (p[0].revents & POLLIN && read(w->bell, &count, sizeof(count)) == sizeof(count))
		woke |= EBBI_BELL;
	if (p[1].revents)
		woke |= EBBI_SOCKET;
	return woke;
}

enum { TAG_BELL = 1, TAG_SOCK = 2 };

static void arm(struct ebbi_wait *w)
{
	struct io_uring_sqe *sqe;

	if (!w->bell_armed && (sqe = io_uring_get_sqe(&w->ring))) {
		if (w->poll_bell)
			io_uring_prep_poll_add(sqe, w->bell, POLLIN);
		else
			io_uring_prep_read(sqe, w->bell, &w->count, sizeof(w->count), 0);
		io_uring_sqe_set_data64(sqe, TAG_BELL);
		w->bell_armed = true;
	}
	if (!w->sock_armed && (sqe = io_uring_get_sqe(&w->ring))) {
		io_uring_prep_poll_add(sqe, w->sock, POLLIN);
		io_uring_sqe_set_data64(sqe, TAG_SOCK);
		w->sock_armed = true;
	}
}

/* The bell's operation has completed: did it ring? */
static bool bell_rang(struct ebbi_wait *w, int res)
{
	w->bell_armed = false;
	if (!w->poll_bell && (res == -EAGAIN || res == -EINVAL))
		w->poll_bell = true;
	else if (w->poll_bell)
		return res > 0 && read(w->bell, &w->count, sizeof(w->count)) == sizeof(w->count);
	return res == (int)sizeof(w->count);
}

static int sleep_uring(struct ebbi_wait *w, int64_t timeout_ns)
{
	struct __kernel_timespec t = { .tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000 };
	struct io_uring_cqe *cqe;
	int woke = 0, rc;

	arm(w);
	rc = io_uring_submit_and_wait_timeout(&w->ring, &cqe, 1, timeout_ns < 0 ? NULL : &t, NULL);
	if (rc < 0 && rc != -EINTR && rc != -ETIME && rc != -EAGAIN)
		return -EIO;
	while (io_uring_peek_cqe(&w->ring, &cqe) == 0) {
		if (cqe->user_data == TAG_BELL) {
			woke |= bell_rang(w, cqe->res) ? EBBI_BELL : 0;
		} else if (cqe->user_data == TAG_SOCK) {
			w->sock_armed = false;
			woke |= EBBI_SOCKET;
		}
		io_uring_cqe_seen(&w->ring, cqe);
	}
	return woke;
}

int ebbi_wait_sleep(struct ebbi_wait *w, int64_t timeout_ns)
{
	return w->uring ? sleep_uring(w, timeout_ns) : sleep_poll(w, timeout_ns);
}
