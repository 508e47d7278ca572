/*
 * Clients: connections, messages, rings. What a client says is copied once, checked, then used. A client that breaks the protocol is
 * dropped with a line in the log that names what it did; the others do not notice.
 */
#include "daemon/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* --- coming and going ------------------------------------------------------------------------------------------------------ */

static int open_pidfd(int fd, pid_t pid)
{
	int pidfd = -1;
	socklen_t bytes = sizeof(pidfd);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &bytes) == 0)	/* Linux 6.5: no race with a reused pid */
		return pidfd;
	return pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
}

static int make_shared(struct client *c)
{
	c->shared_fd = memfd_create("ebbd-client", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (c->shared_fd < 0 || ftruncate(c->shared_fd, (off_t)WIRE_SHARED_BYTES) ||
	    fcntl(c->shared_fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL))
		return -errno;
	c->shared = mmap(NULL, WIRE_SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, c->shared_fd, 0);
	if (c->shared == MAP_FAILED) {
		c->shared = NULL;
		return -errno;
	}
	c->doorbell = eventfd(0, EFD_CLOEXEC);
	c->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->doorbell < 0 || c->bell < 0)
		return -errno;
	for (uint32_t i = 0; i < WIRE_MAX_SESSIONS; i++)
		c->shared->session[i].hand = wire_hand(0, 0, 1);
	wire_store32(&c->shared->sq_flags.value, WIRE_NEED_WAKEUP);
	return 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void client_free(struct client *c)
{
	struct daemon *d = c->d;

	for (uint32_t i = 0; i < c->n_outbox; i++)
		if (c->outbox[i].owned)
			close(c->outbox[i].fd);
	if (c->registered)
		gpu_unregister(c->registered, c->shared);
	if (c->shared)
		munmap(c->shared, WIRE_SHARED_BYTES);
	close_fd(&c->fd);
	close_fd(&c->pidfd);
	close_fd(&c->doorbell);
	close_fd(&c->bell);
	close_fd(&c->shared_fd);
	free(c->outbox);
	free(c->lanes);
	free(c->in);
	if (d->client[c->slot] == c) {
		d->client[c->slot] = NULL;
		d->n_clients--;
	}
	free(c);
}

struct client *client_new(struct daemon *d, int fd)
{
	struct ucred cred = { 0 };
	socklen_t bytes = sizeof(cred);
	struct client *c = calloc(1, sizeof(*c));
	int buffer = 1 << 20;
	unsigned slot = 0;

	while (slot < d->max_clients && d->client[slot])
		slot++;
	if (!c || slot == d->max_clients || d->draining || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &bytes)) {
		log_line(LOG_WARN, "client_refused reason=\"%s\" limit=%u", slot == d->max_clients ? "max_clients" :
			 d->draining ? "draining" : "out of memory", d->max_clients);
		close(fd);
		free(c);
		return NULL;
	}
	c->d = d;
	c->slot = slot;
	c->fd = fd;
	c->doorbell = c->bell = c->shared_fd = c->pidfd = -1;
	c->pid = cred.pid;
	c->uid = cred.uid;
	c->gid = cred.gid;
	c->id = (uint32_t)++d->client_ids;
	c->connected_ns = now_ns();
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
	c->pidfd = open_pidfd(fd, cred.pid);
	c->in = malloc(sizeof(*c->in) + 1);
	d->client[slot] = c;
	d->n_clients++;
	if (!c->in || make_shared(c)) {
		log_line(LOG_ERROR, "client_refused reason=\"%s\"", strerror(errno));
		client_free(c);
		return NULL;
	}
	loop_watch_client(c);
	return c;
}

/*
 * Both only mark the client: its sessions may be in the hands of whoever found out. client_reap(), from the loop's own level, takes
 * them down.
 */
void client_drop(struct client *c, const char *why)
{
	if (c->gone)
		return;
	log_line(LOG_WARN, "client_dropped client=%u pid=%d uid=%u name=\"%s\" because=\"%s\"", c->id, (int)c->pid,
		 (unsigned)c->uid, c->name, why);
	c->d->count.dropped++;
	c->gone = true;
	(void)shutdown(c->fd, SHUT_RDWR);
}

void client_hangup(struct client *c)
{
	if (c->gone)
		return;
	c->gone = true;
	log_line(LOG_INFO, "client_gone client=%u pid=%d name=\"%s\" sessions=%u", c->id, (int)c->pid, c->name, c->n_sessions);
}

/* On the host a slab that the client still maps is lost to everybody else; a GPU's slab waits for the process to end. */
static bool must_wait_for_process(const struct client *c)
{
	for (unsigned i = 0; i < c->d->n_pools; i++)
		if (c->owner[i].serial && gpu_info(c->d->pool[i].dev)->is_cuda)
			return c->pidfd >= 0;
	return false;
}

/*
 * Its sessions end at once: their pages go back to its own slabs, into which kernels of its may still write. The slabs go to others
 * when none can.
 */
void client_reap(struct client *c)
{
	struct daemon *d = c->d;

	if (!c->gone || c->reaped)
		return;
	pressure_forget(c);
	for (uint32_t i = 0; i < WIRE_MAX_SESSIONS && c->n_sessions; i++)
		if (c->session[i] && !c->session[i]->closing)
			session_end(c->session[i]);
	if (c->n_sessions)
		queue_let_through(c);
	if (c->n_sessions || (!c->process_ended && must_wait_for_process(c)))
		return;		/* serve_done() ends the others; the pidfd tells of the process. The loop comes back */
	for (unsigned i = 0; i < d->n_pools; i++)
		pool_owner_fini(&d->pool[i], &c->owner[i]);
	c->reaped = true;
	if (!c->unwatched) {
		c->unwatched = true;
		loop_unwatch_client(c);	/* client_release() when its last operation has ended */
	}
	pressure_retry(d);
}

void client_release(struct client *c)
{
	client_free(c);
}

/* --- sending ------------------------------------------------------------------------------------------------------------------ */

static int send_now(struct client *c, const struct wire_msg *msg, int fd)
{
	struct iovec iov = { (void *)msg, msg->head.bytes };
	union {
		char bytes[CMSG_SPACE(sizeof(int) * WIRE_N_FDS)];
		struct cmsghdr align;
	} control = { { 0 } };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1 };
	int fds[WIRE_N_FDS], n = 0;

	if (msg->head.type == WIRE_WELCOME) {
		fds[WIRE_FD_SHARED] = c->shared_fd;
		fds[WIRE_FD_DOORBELL] = c->doorbell;
		fds[WIRE_FD_BELL] = c->bell;
		fds[WIRE_FD_LIFE] = c->d->life_fd;
		n = WIRE_N_FDS;
	} else if (fd >= 0) {
		fds[0] = fd;
		n = 1;
	}
	if (n) {
		struct cmsghdr *m;

		h.msg_control = control.bytes;
		h.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)n);
		m = CMSG_FIRSTHDR(&h);
		m->cmsg_level = SOL_SOCKET;
		m->cmsg_type = SCM_RIGHTS;
		m->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)n);
		memcpy(CMSG_DATA(m), fds, sizeof(int) * (size_t)n);
	}
	return sendmsg(c->fd, &h, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void sent(struct client *c, const struct wire_msg *msg)
{
	if (msg->head.type == WIRE_SLAB || msg->head.type == WIRE_DROP)
		wire_store32(&c->shared->notices.value, ++c->notices);	/* partner: libebb's look before a step */
}

static uint32_t body_bytes(const struct wire_msg *msg)
{
	switch (msg->head.type) {
	case WIRE_WELCOME: return sizeof(msg->u.welcome);
	case WIRE_POOL: return sizeof(msg->u.pool);
	case WIRE_SLAB:
	case WIRE_DROP: return sizeof(msg->u.slab);
	case WIRE_OPENED: return sizeof(msg->u.opened);
	case WIRE_MARKED:
	case WIRE_CLOSED: return sizeof(msg->u.close);
	case WIRE_ANSWER: return sizeof(msg->u.answer);
	case WIRE_CHANGED: return sizeof(msg->u.changed);
	default: return (uint32_t)strnlen(msg->u.text, WIRE_TEXT - 1) + 1;
	}
}

/* fd is borrowed until the message is sent, or taken (owned). */
void client_send(struct client *c, const struct wire_msg *msg, int fd, bool owned)
{
	struct wire_msg m = *msg;
	int rc = -EAGAIN;

	m.head.bytes = (uint32_t)(sizeof(m.head) + body_bytes(msg));
	if (!c->gone && !c->n_outbox)
		rc = send_now(c, &m, fd);
	if (rc == -EAGAIN && !c->gone && c->n_outbox < DAEMON_MAX_OUTBOX) {
		if (!c->outbox)
			c->outbox = calloc(DAEMON_MAX_OUTBOX, sizeof(*c->outbox));
		if (c->outbox) {
			c->outbox[c->n_outbox++] = (struct outgoing){ m, fd, owned };
			loop_want_room(c);
			return;
		}
	}
	if (owned)
		close(fd);
	if (rc == 0)
		sent(c, &m);
	else if (!c->gone && rc != -EPIPE && rc != -ECONNRESET)
		client_drop(c, rc == -EAGAIN ? "it does not read its messages" : strerror(-rc));
}

void client_flush(struct client *c)
{
	uint32_t n = 0;

	while (n < c->n_outbox && !c->gone) {
		struct outgoing *o = &c->outbox[n];
		int rc = send_now(c, &o->msg, o->fd);

		if (rc == -EAGAIN)
			break;
		if (rc == 0)
			sent(c, &o->msg);
		if (o->owned)
			close(o->fd);
		n++;
	}
	if (c->gone)
		return;
	memmove(c->outbox, c->outbox + n, (c->n_outbox - n) * sizeof(*c->outbox));
	c->n_outbox -= n;
	if (c->n_outbox) {
		loop_want_room(c);
		return;
	}
	for (uint32_t i = 0; i < WIRE_MAX_SESSIONS; i++)
		if (c->session[i])
			serve_publish(c->session[i]);
}

void client_fail(struct client *c, uint32_t seq, int status, const char *format, ...)
{
	struct wire_msg m = { .head = { .type = WIRE_FAILED, .seq = seq, .status = status } };
	va_list args;

	va_start(args, format);
	vsnprintf(m.u.text, sizeof(m.u.text), format, args);
	va_end(args);
	client_send(c, &m, -1, false);
}

/* --- slabs ---------------------------------------------------------------------------------------------------------------------- */

static void slab_message(struct client *c, unsigned index, uint32_t slab, uint16_t type)
{
	struct pool *pool = &c->d->pool[index];
	struct pool_slab *s = &pool->slab[slab];
	struct wire_msg m = { .head = { .type = type } };
	int fd = -1;

	m.u.slab = (struct wire_slab){ .pool = index, .slab = slab, .generation = s->generation, .bytes = pool->slab_bytes };
	if (type == WIRE_SLAB) {
		memcpy(m.u.slab.handle, s->mem.handle, sizeof(m.u.slab.handle));
		/* A copy: the slab may be given up before a full socket takes the message. */
		fd = s->mem.fd >= 0 ? fcntl(s->mem.fd, F_DUPFD_CLOEXEC, 0) : -1;
	}
	client_send(c, &m, fd, fd >= 0);
}

void client_announce(struct client *c, unsigned index)
{
	struct pool *pool = &c->d->pool[index];
	uint32_t left = c->owner[index].n_slabs - c->announced[index];

	for (uint32_t i = 0; i < pool->n_slabs && left; i++) {
		struct pool_slab *s = &pool->slab[i];

		if (s->state != POOL_OWNED || s->owner != c->owner[index].serial || s->announced)
			continue;
		s->announced = true;
		c->announced[index]++;
		left--;
		slab_message(c, index, i, WIRE_SLAB);
	}
}

struct trim {
	struct client *c;
	unsigned pool;
};

static void slab_dropped(void *arg, uint32_t slab)
{
	struct trim *t = arg;

	t->c->announced[t->pool]--;
	slab_message(t->c, t->pool, slab, WIRE_DROP);
}

void client_trim(struct client *c, unsigned index)
{
	struct trim t = { c, index };

	if (c->owner[index].serial && !c->gone)	/* of one that is gone, client_reap() takes all of them */
		pool_trim(&c->d->pool[index], &c->owner[index], slab_dropped, &t);
}

/* --- messages ------------------------------------------------------------------------------------------------------------------- */

static void on_hello(struct client *c, const struct wire_msg *m)
{
	struct daemon *d = c->d;
	struct wire_msg reply = { .head = { .type = WIRE_WELCOME, .seq = m->head.seq } };

	if (m->u.hello.version != WIRE_VERSION) {
		client_fail(c, m->head.seq, -EPROTO, "this daemon speaks version %u, the client %u: install matching ones",
			    WIRE_VERSION, m->u.hello.version);
		client_drop(c, "it speaks another version");
		return;
	}
	memcpy(c->name, m->u.hello.name, sizeof(c->name) - 1);
	c->welcome = true;
	reply.u.welcome = (struct wire_welcome){ WIRE_VERSION, c->id, d->n_pools, 0, WIRE_SHARED_BYTES };
	client_send(c, &reply, -1, false);
	for (unsigned i = 0; i < d->n_pools; i++) {
		struct pool *p = &d->pool[i];
		struct wire_msg info = { .head = { .type = WIRE_POOL, .seq = m->head.seq } };

		info.u.pool = (struct wire_pool){ .index = i, .is_cuda = (uint32_t)gpu_info(p->dev)->is_cuda,
						  .slab_shift = p->slab_shift, .max_slabs = p->n_slabs, .size_bytes = p->size_bytes };
		memcpy(info.u.pool.name, p->name, sizeof(info.u.pool.name));
		memcpy(info.u.pool.uuid, gpu_info(p->dev)->uuid, sizeof(info.u.pool.uuid));
		client_send(c, &info, -1, false);
	}
	log_line(LOG_INFO, "client_connected client=%u pid=%d uid=%u name=\"%s\"", c->id, (int)c->pid, (unsigned)c->uid, c->name);
}

/* A piece of a table. It is kept until an OPEN has been answered, which may be after a wait. */
static void on_lanes(struct client *c, const struct wire_msg *m)
{
	uint32_t bytes = m->u.lanes.bytes;
	char *text;

	if (!bytes || bytes > WIRE_TEXT || m->head.bytes < sizeof(m->head) + offsetof(struct wire_lanes, text) + bytes ||
	    c->lanes_bytes + bytes > WIRE_MAX_LANES_TEXT || c->waiting_open) {
		client_drop(c, "its table of lanes is malformed, or too large");
		return;
	}
	text = realloc(c->lanes, c->lanes_bytes + bytes);
	if (!text) {
		client_drop(c, "the daemon has no memory for its table of lanes");
		return;
	}
	memcpy(text + c->lanes_bytes, m->u.lanes.text, bytes);
	c->lanes = text;
	c->lanes_bytes += bytes;
}

void client_forget_lanes(struct client *c)
{
	free(c->lanes);
	c->lanes = NULL;
	c->lanes_bytes = 0;
}

static void on_open(struct client *c, const struct wire_msg *m)
{
	struct wire_open open = m->u.open;
	char why[WIRE_TEXT] = "";
	int rc;

	open.pool[sizeof(open.pool) - 1] = open.settings[sizeof(open.settings) - 1] = open.model[sizeof(open.model) - 1] = 0;
	if (c->waiting_open) {
		client_drop(c, "it opens a session while another waits to be opened");
		return;
	}
	rc = session_open(c, m->head.seq, &open, why, sizeof(why));
	if (rc == -ENOSPC)
		rc = pressure_wait(c, m->head.seq, &open);
	if (!c->waiting_open)
		client_forget_lanes(c);
	if (rc) {
		c->d->count.refused++;
		client_fail(c, m->head.seq, rc, "%s", why);
	}
}

static void on_close(struct client *c, const struct wire_msg *m)
{
	uint32_t index = m->u.close.session;
	struct session *s = index < WIRE_MAX_SESSIONS ? c->session[index] : NULL;

	if (!s || s->closing || s->opening) {
		client_fail(c, m->head.seq, -ENOENT, "no session %u is open", index);
		return;
	}
	s->seq = m->head.seq;
	session_end(s);
}

static void on_mark(struct client *c, const struct wire_msg *m)
{
	uint32_t index = m->u.mark.session;
	struct session *s = index < WIRE_MAX_SESSIONS ? c->session[index] : NULL;
	char why[WIRE_TEXT] = "no such session is open";
	int rc = -ENOENT;

	if (s && !s->closing && !s->opening)
		rc = marks_set(s, m->head.seq, &m->u.mark, why, sizeof(why));
	if (rc)
		client_fail(c, m->head.seq, rc, "%s", why);
}

/* Whose sessions a client may change: its own user's; root and the daemon's user may all. */
static bool may_change(const struct client *c, const struct session *s)
{
	return c->uid == 0 || c->uid == geteuid() || c->uid == s->client->uid;
}

static void on_change(struct client *c, const struct wire_msg *m)
{
	const struct wire_change *change = &m->u.change;
	struct wire_msg reply = { .head = { .type = WIRE_CHANGED, .seq = m->head.seq } };
	struct session *s = change->id ? session_find(c->d, change->id) :
			    change->session < WIRE_MAX_SESSIONS ? c->session[change->session] : NULL;
	char settings[WIRE_TEXT], why[WIRE_TEXT] = "";
	struct conf_session asked;
	int rc;

	if (!s || s->closing || s->client->gone || (!may_change(c, s) && s->client != c)) {
		client_fail(c, m->head.seq, s && !s->closing ? -EACCES : -ENOENT, s && !s->closing ?
			    "the session is another user's: its own user, root and the daemon's user may change it" :
			    "there is no such session (see: ebbctl sessions)");
		return;
	}
	memcpy(settings, change->settings, sizeof(settings));
	settings[sizeof(settings) - 1] = '\0';
	asked = *change_asked(s);
	rc = conf_settings(&asked, settings, session_check, why, sizeof(why));
	if (!rc)
		rc = change_prepare(s, &asked, why, sizeof(why));
	if (rc) {
		client_fail(c, m->head.seq, rc, "%s", *why ? why : "the daemon is out of memory");
		return;
	}
	session_claim(s, 0);	/* if it is idle now, this is its turn; else the end of its step is */
	serve_run(c->d, pool_index(c->d, s->pool));
	if (s->coming) {	/* a turn had been planned already, which knew nothing of this: the next one does */
		session_claim(s, 0);
		serve_run(c->d, pool_index(c->d, s->pool));
	}
	if (*s->kept) {
		client_fail(c, m->head.seq, -ENOSPC, "%s; the session keeps what it had", s->kept);
		return;
	}
	reply.u.changed.in_force = !s->coming && !s->turning;
	client_send(c, &reply, -1, false);
}

static void on_ask(struct client *c, const struct wire_msg *m)
{
	struct wire_msg reply = { .head = { .type = WIRE_ANSWER, .seq = m->head.seq } };
	char *json = report_json(c->d, m->u.text);
	size_t bytes, at = 0;
	ssize_t n;
	int fd;

	if (!json) {
		client_fail(c, m->head.seq, -EINVAL, "'%.40s' is not a question; ask status, sessions, clients, pools, policies, config, "
			    "session ID or lanes ID (of an open session)",
			    m->u.text);
		return;
	}
	bytes = strlen(json);
	fd = memfd_create("ebbd-answer", MFD_CLOEXEC);
	while (fd >= 0 && at < bytes && (n = write(fd, json + at, bytes - at)) > 0)
		at += (size_t)n;
	free(json);
	if (fd < 0 || at < bytes) {
		close_fd(&fd);
		client_fail(c, m->head.seq, -ENOMEM, "the daemon has no memory for the answer");
		return;
	}
	reply.u.answer.bytes = bytes;
	client_send(c, &reply, fd, true);
}

static void on_dropped(struct client *c, const struct wire_msg *m)
{
	const struct wire_slab *s = &m->u.slab;

	if (s->pool >= c->d->n_pools)
		client_drop(c, "it speaks of a pool that is not there");
	else if (pool_unquarantine(&c->d->pool[s->pool], &c->owner[s->pool], s->slab, s->generation) == 0)
		pressure_retry(c->d);
}

void client_message(struct client *c, size_t bytes)
{
	static const struct { uint16_t type; size_t body; } known[] = {
		{ WIRE_HELLO, sizeof(struct wire_hello) }, { WIRE_OPEN, sizeof(struct wire_open) }, { WIRE_CLOSE, 8 },
		{ WIRE_DROPPED, sizeof(struct wire_slab) }, { WIRE_ASK, 1 }, { WIRE_LANES, offsetof(struct wire_lanes, text) },
		{ WIRE_MARK, offsetof(struct wire_mark, range) },
		{ WIRE_CHANGE, offsetof(struct wire_change, settings) },
	};
	struct wire_msg *m = c->in;
	size_t body = SIZE_MAX;

	for (size_t i = 0; bytes >= sizeof(m->head) && i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].type == m->head.type)
			body = known[i].body;
	if (body == SIZE_MAX || bytes > sizeof(*m) || m->head.bytes != bytes || bytes < sizeof(m->head) + body || m->head.zero) {
		client_drop(c, "its message is malformed");
		return;
	}
	memset((char *)m + bytes, 0, sizeof(*m) + 1 - bytes);	/* so that every text ends */
	if (c->welcome == (m->head.type == WIRE_HELLO) || (m->head.type == WIRE_HELLO && m->u.hello.magic != WIRE_MAGIC)) {
		client_drop(c, c->welcome ? "it says hello twice" : "it does not begin with a proper hello");
		return;
	}
	switch (m->head.type) {
	case WIRE_HELLO: on_hello(c, m); break;
	case WIRE_OPEN: on_open(c, m); break;
	case WIRE_CLOSE: on_close(c, m); break;
	case WIRE_DROPPED: on_dropped(c, m); break;
	case WIRE_LANES: on_lanes(c, m); break;
	case WIRE_MARK: on_mark(c, m); break;
	case WIRE_CHANGE: on_change(c, m); break;
	default: m->u.text[WIRE_TEXT - 1] = 0; on_ask(c, m); break;
	}
}
