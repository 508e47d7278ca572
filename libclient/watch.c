/*
 * A thread that sleeps until the daemon hangs up. Streams of ours may wait for what its device was to store (step.c, await_turns()), while our
 * own thread waits for those streams: so if the daemon dies, somebody else must let them through. Started with the first such wait.
 */
#include "libclient/client.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

struct ebbi_watch {
	pthread_t thread;
	struct wire_shared *shared;
	int sock;
};

static void *watch(void *arg)
{
	const struct ebbi_watch *w = arg;
	struct pollfd p = { .fd = w->sock, .events = POLLRDHUP };

	while (poll(&p, 1, -1) < 0 || !(p.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)))
		;
	wire_store64(&w->shared->turned.value, INT64_MAX);	/* partner: the waits of our streams */
	return NULL;
}

int ebbi_watch_new(struct ebb *ebb)
{
	struct ebbi_watch *w;
	sigset_t all, was;
	int rc;

	if (ebb->watch)
		return 0;
	w = malloc(sizeof(*w));
	if (!w)
		return -ENOMEM;
	*w = (struct ebbi_watch){ .shared = ebb->shared, .sock = ebb->sock };
	(void)sigfillset(&all);		/* signals are the program's, not ours */
	(void)pthread_sigmask(SIG_BLOCK, &all, &was);
	rc = pthread_create(&w->thread, NULL, watch, w);
	(void)pthread_sigmask(SIG_SETMASK, &was, NULL);
	if (rc) {
		free(w);
		return -rc;
	}
	ebb->watch = w;
	return 0;
}

void ebbi_watch_free(struct ebbi_watch *w)
{
	if (!w)
		return;
	(void)pthread_join(w->thread, NULL);
	free(w);
}
