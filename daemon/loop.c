/*
 * The loop: one io_uring, one thread. It turns completions into calls of client.c, session.c and serve.c, and sleeps when there is
 * nothing to do: then every client's sq_flags say NEED_WAKEUP, so that the next used-up window rings the doorbell.
 *
 * user_data is op (8 bits), slot (24), id (32): never a pointer. A completion for a client that is gone finds another id and is
 * dropped. Operations of a client are counted, and its memory is released when the last one has come back.
 */
#include "daemon/daemon.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define RING_ENTRIES 4096
#define DRAIN_MOST 256			/* records taken from one client before the next one's turn */
#define TICK_MIN_NS 1000000ull		/* while something is awaited that nobody announces */
#define TICK_MAX_NS 64000000ull

enum op { OP_ACCEPT = 1, OP_RECV, OP_DOORBELL, OP_PIDFD, OP_ROOM, OP_SIGNAL, OP_TIMER, OP_DONE, OP_CANCEL };

struct loop {
	struct io_uring ring;
	int listen_fd, signal_fd;
	struct signalfd_siginfo signal;
	uint64_t done_value[WIRE_MAX_POOLS];
	struct __kernel_timespec tick;
	uint64_t tick_ns, stop_at_ns;
	bool timer_armed, accept_armed, stop;
	bool leaving;			/* some client's last operations have not come back yet */
};

static uint64_t tag(enum op op, uint32_t slot, uint32_t id)
{
	return (uint64_t)op << 56 | (uint64_t)(slot & 0xffffffu) << 32 | id;
}

static struct io_uring_sqe *sqe_get(struct loop *l)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&l->ring);

	while (!sqe) {			/* full: hand over what is there */
		io_uring_submit(&l->ring);
		sqe = io_uring_get_sqe(&l->ring);
	}
	return sqe;
}

/* --- arming ----------------------------------------------------------------------------------------------------------------- */

static void arm_accept(struct daemon *d)
{
	struct io_uring_sqe *sqe = sqe_get(d->loop);

	io_uring_prep_multishot_accept(sqe, d->loop->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	io_uring_sqe_set_data64(sqe, tag(OP_ACCEPT, 0, 0));
	d->loop->accept_armed = true;
}

static void arm_signal(struct daemon *d)
{
	struct io_uring_sqe *sqe = sqe_get(d->loop);

	io_uring_prep_read(sqe, d->loop->signal_fd, &d->loop->signal, sizeof(d->loop->signal), 0);
	io_uring_sqe_set_data64(sqe, tag(OP_SIGNAL, 0, 0));
}

static void arm_done(struct daemon *d, unsigned pool)
{
	struct io_uring_sqe *sqe = sqe_get(d->loop);

	io_uring_prep_read(sqe, d->done_fd[pool], &d->loop->done_value[pool], sizeof(uint64_t), 0);
	io_uring_sqe_set_data64(sqe, tag(OP_DONE, pool, 0));
}

static void arm_timer(struct daemon *d)
{
	struct loop *l = d->loop;
	struct io_uring_sqe *sqe;

	if (l->timer_armed)
		return;
	l->tick = (struct __kernel_timespec){ .tv_nsec = (long long)l->tick_ns };
	sqe = sqe_get(l);
	io_uring_prep_timeout(sqe, &l->tick, 0, 0);
	io_uring_sqe_set_data64(sqe, tag(OP_TIMER, 0, 0));
	l->timer_armed = true;
	l->tick_ns = l->tick_ns * 2 < TICK_MAX_NS ? l->tick_ns * 2 : TICK_MAX_NS;
}

static struct io_uring_sqe *client_sqe(struct client *c)
{
	c->pending_ops++;
	return sqe_get(c->d->loop);
}

/* Last: io_uring_prep_*() clears user_data. */
static void tag_client(struct io_uring_sqe *sqe, const struct client *c, enum op op)
{
	io_uring_sqe_set_data64(sqe, tag(op, c->slot, c->id));
}

static void arm_recv(struct client *c)
{
	struct io_uring_sqe *sqe = client_sqe(c);

	io_uring_prep_recv(sqe, c->fd, c->in, sizeof(*c->in) + 1, 0);	/* one byte more: too long a message shows */
	tag_client(sqe, c, OP_RECV);
}

static void arm_doorbell(struct client *c)
{
	struct io_uring_sqe *sqe = client_sqe(c);

	io_uring_prep_read(sqe, c->doorbell, &c->doorbell_value, sizeof(c->doorbell_value), 0);
	tag_client(sqe, c, OP_DOORBELL);
}

static void arm_poll(struct client *c, int fd, short events, enum op op)
{
	struct io_uring_sqe *sqe = client_sqe(c);

	io_uring_prep_poll_add(sqe, fd, (unsigned)events);
	tag_client(sqe, c, op);
}

void loop_watch_client(struct client *c)
{
	arm_recv(c);
	arm_doorbell(c);
	if (c->pidfd >= 0)
		arm_poll(c, c->pidfd, POLLIN, OP_PIDFD);
}

void loop_unwatch_client(struct client *c)
{
	static const enum op ops[] = { OP_RECV, OP_DOORBELL, OP_PIDFD, OP_ROOM };
	uint64_t one = 1;

	/* A cancel that meets its operation half way does nothing (-EALREADY), so the two that can be ended by their files are. */
	(void)shutdown(c->fd, SHUT_RDWR);
	(void)!write(c->doorbell, &one, sizeof(one));
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		struct io_uring_sqe *sqe = sqe_get(c->d->loop);

		io_uring_prep_cancel64(sqe, tag(ops[i], c->slot, c->id), 0);
		io_uring_sqe_set_data64(sqe, tag(OP_CANCEL, 0, 0));
	}
}

void loop_want_room(struct client *c)
{
	if (c->room_armed)
		return;
	c->room_armed = true;
	arm_poll(c, c->fd, POLLOUT, OP_ROOM);
}

/* --- active clients: those whose rings are polled because they rang ------------------------------------------------------------- */

static void activate(struct client *c)
{
	struct daemon *d = c->d;

	if (c->active)
		return;
	c->active = true;
	c->next_active = d->active;
	d->active = c;
	wire_store32(&c->shared->sq_flags.value, 0);
}

/* Takes records from every active client. One that has none goes to sleep. Returns whether any is still active. */
static bool poll_active(struct daemon *d)
{
	struct client **link = &d->active, *c;

	while ((c = *link)) {
		unsigned n = c->gone ? 0 : client_drain_ring(c, DRAIN_MOST);

		if (n == 0) {
			wire_store32(&c->shared->sq_flags.value, WIRE_NEED_WAKEUP);
			wire_fence();	/* partner: libebb's fence between its tail and its look at this flag */
			if (c->gone || client_ring_empty(c)) {
				*link = c->next_active;
				c->active = false;
				continue;
			}
			wire_store32(&c->shared->sq_flags.value, 0);
		}
		link = &c->next_active;
	}
	return d->active != NULL;
}

/* --- completions ----------------------------------------------------------------------------------------------------------------- */

static void on_client_op(struct daemon *d, enum op op, uint32_t slot, uint32_t id, int res)
{
	struct client *c = slot < d->max_clients ? d->client[slot] : NULL;

	assert(c && c->id == id);	/* it is released only after its last completion */
	c->pending_ops--;
	if (op == OP_PIDFD && res > 0) {
		c->process_ended = true;
		client_hangup(c);
	}
	if (op == OP_ROOM) {
		c->room_armed = false;
		if (!c->gone)
			client_flush(c);
	}
	if (op == OP_RECV && !c->gone) {
		if (res > 0)
			client_message(c, (size_t)res);
		else if (res != -EINTR && res != -EAGAIN)
			client_hangup(c);
		if (!c->gone)
			arm_recv(c);
	}
	if (op == OP_DOORBELL && !c->gone) {
		activate(c);
		client_look(c);		/* its device may have finished a step whose record was taken before */
		if (!c->gone)
			arm_doorbell(c);
	}
}

static void reload(struct daemon *d)
{
	struct lanes_set lanes = { .session = NULL };
	struct conf next;
	char text[5120];
	int rc;

	sd_notify(0, "RELOADING=1");
	rc = d->conf_path ? conf_load(&next, d->conf_path, session_check, text, sizeof(text)) : -ENOENT;
	if (!rc)
		rc = budget_lanes(&next, &lanes, text, sizeof(text));
	if (rc) {
		log_line(LOG_ERROR, "reload_refused config=%s keeping=old reason=\"%s\"", d->conf_path ? d->conf_path : "(none)",
			 d->conf_path ? text : "ebbd was started without --config");
	} else {
		int n = conf_reload(&d->conf, &next, text, sizeof(text));

		(void)tide_priorities(d->conf.daemon.priority, d->priority, DAEMON_MAX_PRIORITIES, &d->n_priorities, text, 0);
		budget_lanes_free(&d->lanes);
		d->lanes = lanes;
		log_line(LOG_NOTE, "reloaded config=%s keys=%d changes=\"%s\"", d->conf_path, n, text);
		log_level(d->conf.daemon.log_level);
		for (unsigned i = 0; i < d->max_clients; i++)
			for (uint32_t k = 0; d->client[i] && k < WIRE_MAX_SESSIONS; k++)
				if (d->client[i]->session[k])
					session_follow(d->client[i]->session[k]);
	}
	sd_notify(0, "READY=1");
}

static void on_signal(struct daemon *d, int signo)
{
	struct loop *l = d->loop;

	if (signo == SIGHUP) {
		reload(d);
		return;
	}
	if (d->draining)
		l->stop = true;			/* asked twice */
	log_line(LOG_NOTE, "stopping signal=%d clients=%u drain_ms=%u", signo, d->n_clients, d->conf.daemon.drain_ms);
	sd_notify(0, "STOPPING=1");
	d->draining = true;
	l->stop_at_ns = now_ns() + (uint64_t)d->conf.daemon.drain_ms * 1000000u;
	l->tick_ns = TICK_MIN_NS;
}

static void look_at_claimed(struct daemon *d)
{
	for (unsigned i = 0; i < d->max_clients && d->n_claimed; i++) {
		struct client *c = d->client[i];

		for (uint32_t k = 0; c && !c->gone && k < WIRE_MAX_SESSIONS; k++)
			if (c->session[k] && c->session[k]->claimed)
				session_look(c->session[k]);
	}
}

/* What a stop waits for: work, not onlookers. */
static bool sessions_open(const struct daemon *d)
{
	for (unsigned i = 0; i < d->max_clients; i++)
		if (d->client[i] && d->client[i]->n_sessions)
			return true;
	return false;
}

static void on_timer(struct daemon *d)
{
	struct loop *l = d->loop;
	uint64_t now = now_ns();

	l->timer_armed = false;
	for (unsigned i = 0; l->leaving && i < d->max_clients; i++)
		if (d->client[i] && d->client[i]->unwatched && d->client[i]->pending_ops)
			loop_unwatch_client(d->client[i]);	/* once more */
	look_at_claimed(d);
	pressure_tick(d, now);
	if (d->draining && (!sessions_open(d) || now >= l->stop_at_ns))
		l->stop = true;
}

static void on_completion(struct daemon *d, struct io_uring_cqe *cqe)
{
	struct loop *l = d->loop;
	enum op op = (enum op)(cqe->user_data >> 56);
	uint32_t slot = (uint32_t)(cqe->user_data >> 32) & 0xffffffu, id = (uint32_t)cqe->user_data;
	int res = cqe->res;
	bool more = cqe->flags & IORING_CQE_F_MORE;

	switch (op) {
	case OP_ACCEPT:
		if (res >= 0)
			(void)client_new(d, res);
		else if (res != -EAGAIN && res != -ECANCELED)
			log_line(LOG_WARN, "accept_failed error=\"%s\"", strerror(-res));
		l->accept_armed = more;
		break;
	case OP_SIGNAL:
		if (res == sizeof(l->signal))
			on_signal(d, (int)l->signal.ssi_signo);
		arm_signal(d);
		break;
	case OP_TIMER:
		on_timer(d);
		break;
	case OP_DONE:
		serve_done(d, slot);
		arm_done(d, slot);
		break;
	case OP_CANCEL:
		break;
	default:
		on_client_op(d, op, slot, id, res);
	}
}

/* Clients that are gone are taken down here, where nobody holds a pointer into them; the memory goes with the last operation. */
static void reap(struct daemon *d)
{
	d->loop->leaving = false;
	for (unsigned i = 0; i < d->max_clients; i++) {
		struct client *c = d->client[i];

		if (!c || !c->gone)
			continue;
		client_reap(c);
		if (c->unwatched && !c->pending_ops && !c->active && queue_may_unregister(c))
			client_release(c);
		else if (c->unwatched)
			d->loop->leaving = true;
	}
}

int loop_run(struct daemon *d)
{
	struct loop *l = d->loop;
	struct io_uring_cqe *cqe;
	unsigned head, n;

	sd_notifyf(0, "READY=1\nSTATUS=%u pools", d->n_pools);
	while (!l->stop) {
		bool busy = poll_active(d);

		for (unsigned i = 0; i < d->n_pools; i++)
			serve_run(d, i);
		if (!l->accept_armed && !d->draining)
			arm_accept(d);
		if (d->n_waiting || d->n_claimed || d->draining || l->leaving)
			arm_timer(d);
		else
			l->tick_ns = TICK_MIN_NS;
		int rc = busy ? io_uring_submit(&l->ring) : io_uring_submit_and_wait(&l->ring, 1);

		if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY)
			return rc;
		n = 0;
		io_uring_for_each_cqe(&l->ring, head, cqe) {
			on_completion(d, cqe);
			n++;
		}
		io_uring_cq_advance(&l->ring, n);
		reap(d);
	}
	return 0;
}

/* --- making -------------------------------------------------------------------------------------------------------------------------- */

static void loop_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGHUP);
}

void loop_block_signals(void)
{
	sigset_t set;

	loop_signals(&set);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
}

int loop_new(struct daemon *d, int listen_fd)
{
	struct loop *l = calloc(1, sizeof(*l));
	struct io_uring_params params = { .flags = IORING_SETUP_CQSIZE, .cq_entries = 4 * RING_ENTRIES };
	sigset_t set;
	int rc;

	if (!l)
		return -ENOMEM;
	rc = io_uring_queue_init_params(RING_ENTRIES, &l->ring, &params);
	if (rc) {
		free(l);
		return rc;
	}
	l->listen_fd = listen_fd;
	l->tick_ns = TICK_MIN_NS;
	loop_signals(&set);
	l->signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	if (l->signal_fd < 0) {
		rc = -errno;
		io_uring_queue_exit(&l->ring);
		free(l);
		return rc;
	}
	d->loop = l;
	arm_signal(d);
	for (unsigned i = 0; i < d->n_pools; i++)
		arm_done(d, i);
	return 0;
}

void loop_free(struct daemon *d)
{
	if (!d->loop)
		return;
	io_uring_queue_exit(&d->loop->ring);
	close(d->loop->signal_fd);
	close(d->loop->listen_fd);
	free(d->loop);
	d->loop = NULL;
}
