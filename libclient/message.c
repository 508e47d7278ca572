/*
 * Messages on the socket. Every message that comes in is checked here, once: its size against its type, its strings for an end,
 * its descriptors counted and closed on every path that does not hand them on.
 */
#include "libclient/client.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FDS 8	/* more than any message carries; the kernel drops what does not fit, and that is an error */

int ebbi_send(struct ebb *ebb, struct wire_msg *msg, enum wire_type type, uint32_t seq, size_t bytes)
{
	ssize_t n;

	if (ebb->dead)
		return -EPIPE;
	msg->head = (struct wire_head){ .bytes = (uint32_t)(sizeof(msg->head) + bytes), .type = (uint16_t)type, .seq = seq };
	do {
		n = send(ebb->sock, msg, msg->head.bytes, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n == (ssize_t)msg->head.bytes ? 0 : ebbi_gone(ebb);
}

static void close_all(const int *fd, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		close(fd[i]);
}

/* Smallest body of a message from the daemon; -1: not one of its types. */
static int body_bytes(uint16_t type)
{
	switch (type) {
	case WIRE_WELCOME: return sizeof(struct wire_welcome);
	case WIRE_POOL: return sizeof(struct wire_pool);
	case WIRE_SLAB:
	case WIRE_DROP: return sizeof(struct wire_slab);
	case WIRE_OPENED: return sizeof(struct wire_opened);
	case WIRE_MARKED: return 2 * sizeof(uint32_t);
	case WIRE_ANSWER:
	case WIRE_CHANGED: return sizeof(uint64_t);
	case WIRE_CLOSED:
	case WIRE_FAILED: return 0;
	default: return -1;
	}
}

/* The rest of the message is zeros, so a shorter text still ends. */
static int check(struct ebb *ebb, struct wire_msg *msg, size_t bytes)
{
	int least;

	if (bytes < sizeof(msg->head) || msg->head.bytes != bytes)
		return ebbi_broken(ebb, "the daemon sent %zu bytes that call themselves %u", bytes, msg->head.bytes);
	least = body_bytes(msg->head.type);
	if (least < 0 || bytes < sizeof(msg->head) + (size_t)least)
		return ebbi_broken(ebb, "the daemon sent a message of type %u with %zu bytes", msg->head.type, bytes);
	if (msg->head.type == WIRE_FAILED) {
		msg->u.text[WIRE_TEXT - 1] = 0;
		if (msg->head.status >= 0 || msg->head.status < -4095)
			return ebbi_broken(ebb, "the daemon sent a failure with status %d", msg->head.status);
	}
	return 0;
}

/* Descriptors of a message that has arrived, all of them: even where there are more than we expect. */
static unsigned descriptors(struct msghdr *h, int fd[MAX_FDS])
{
	unsigned n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		size_t bytes = c->cmsg_len - CMSG_LEN(0);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; at + sizeof(int) <= bytes && n < MAX_FDS; at += sizeof(int))
			memcpy(&fd[n++], CMSG_DATA(c) + at, sizeof(int));
	}
	return n;
}

int ebbi_receive(struct ebb *ebb, struct wire_msg *msg, int *fd, unsigned n_fds, bool dont_wait)
{
	union { char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))]; struct cmsghdr align; } control;
	struct iovec iov = { .iov_base = msg, .iov_len = sizeof(*msg) };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	int got[MAX_FDS];
	unsigned n;
	ssize_t bytes;
	int rc;

	for (unsigned i = 0; i < n_fds; i++)
		fd[i] = -1;
	if (ebb->dead)
		return -EPIPE;
	memset(msg, 0, sizeof(*msg));
	do {
		bytes = recvmsg(ebb->sock, &h, MSG_CMSG_CLOEXEC | (dont_wait ? MSG_DONTWAIT : 0));
	} while (bytes < 0 && errno == EINTR);
	if (bytes < 0 && dont_wait && (errno == EAGAIN || errno == EWOULDBLOCK))
		return -EAGAIN;
	if (bytes <= 0)
		return ebbi_gone(ebb);
	n = descriptors(&h, got);
	rc = h.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? ebbi_broken(ebb, "the daemon sent a message that is too long") :
		check(ebb, msg, (size_t)bytes);
	if (!rc && n > n_fds)
		rc = ebbi_broken(ebb, "the daemon sent %u descriptors with a message of type %u", n, msg->head.type);
	if (rc) {
		close_all(got, n);
		return rc;
	}
	if (n)
		memcpy(fd, got, n * sizeof(int));
	return 0;
}

/* SLAB or DROP: what the daemon may send at any time. fd closed. */
static int notice(struct ebb *ebb, const struct wire_msg *msg, int fd)
{
	int rc;

	ebb->notices_seen++;
	if (msg->head.type == WIRE_SLAB)
		rc = ebbi_slab_add(ebb, &msg->u.slab, fd);
	else if (fd < 0)
		rc = ebbi_slab_drop(ebb, &msg->u.slab);
	else
		rc = ebbi_broken(ebb, "the daemon sent a descriptor with a DROP");
	if (fd >= 0)
		close(fd);
	return rc;
}

static bool is_notice(const struct wire_msg *msg)
{
	return msg->head.type == WIRE_SLAB || msg->head.type == WIRE_DROP;
}

int ebbi_request(struct ebb *ebb, struct wire_msg *msg, enum wire_type type, size_t bytes, enum wire_type reply, int *fd)
{
	uint32_t seq = ++ebb->seq;
	int got, rc;

	rc = ebbi_send(ebb, msg, type, seq, bytes);
	while (!rc) {
		rc = ebbi_receive(ebb, msg, &got, 1, false);
		if (rc)
			break;
		if (is_notice(msg)) {
			rc = notice(ebb, msg, got);
			continue;
		}
		if (msg->head.seq == seq && msg->head.type == reply && (got < 0 || fd)) {
			if (fd)
				*fd = got;
			return 0;
		}
		if (got >= 0)
			close(got);
		if (msg->head.seq == seq && msg->head.type == WIRE_FAILED && got < 0)
			return ebbi_error(ebb, msg->head.status, "%s", msg->u.text);
		rc = ebbi_broken(ebb, "the daemon answered message type %u (seq %u) with type %u (seq %u)", type, seq,
				 msg->head.type, msg->head.seq);
	}
	return rc;
}

int ebbi_take_notices(struct ebb *ebb)
{
	struct wire_msg msg;
	int fd, rc;

	for (;;) {
		rc = ebbi_receive(ebb, &msg, &fd, 1, true);
		if (rc)
			return rc == -EAGAIN ? 0 : rc;
		if (!is_notice(&msg)) {
			if (fd >= 0)
				close(fd);
			return ebbi_broken(ebb, "the daemon sent message type %u that nobody asked for", msg.head.type);
		}
		rc = notice(ebb, &msg, fd);
		if (rc)
			return rc;
	}
}

int ebbi_notices(struct ebb *ebb)
{
	/* The daemon counts after it has sent, so what is counted is in the socket: a wait here is short, and ends if it dies. */
	while ((int32_t)(wire_load32(&ebb->shared->notices.value) - ebb->notices_seen) > 0) {
		struct wire_msg msg;
		int fd, rc = ebbi_receive(ebb, &msg, &fd, 1, false);

		if (rc)
			return rc;
		if (!is_notice(&msg)) {
			if (fd >= 0)
				close(fd);
			return ebbi_broken(ebb, "the daemon sent message type %u that nobody asked for", msg.head.type);
		}
		rc = notice(ebb, &msg, fd);
		if (rc)
			return rc;
	}
	return 0;
}
