#include "tests/lib/raw.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/daemon.h"

void raw_connect(struct raw *r, const char *path)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	struct timeval limit = { TD_PATIENCE_S, 0 };

	memset(r, 0, sizeof(*r));
	snprintf(at.sun_path, sizeof(at.sun_path), "%s", path);
	r->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	r->doorbell = -1;
	assert_true(r->sock >= 0);
	setsockopt(r->sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	assert_int_equal(connect(r->sock, (struct sockaddr *)&at, sizeof(at)), 0);
}

void raw_close(struct raw *r)
{
	close(r->sock);
	if (r->doorbell >= 0)
		close(r->doorbell);
	if (r->shared)
		munmap(r->shared, WIRE_SHARED_BYTES);
	for (uint32_t i = 0; i < r->n_slabs; i++) {
		if (r->slab[i].base)
			gpu_slab_unmap(r->dev, r->slab[i].base, r->slab[i].bytes);
		if (r->slab[i].fd >= 0)
			close(r->slab[i].fd);
	}
	if (r->dev)
		gpu_close(r->dev);
}

/* The next message: its type, 0 when the daemon has hung up. Slabs are mapped as they come. */
int raw_receive(struct raw *r)
{
	struct wire_msg m;
	struct iovec iov = { &m, sizeof(m) };
	union {
		char bytes[CMSG_SPACE(sizeof(int) * 8)];
		struct cmsghdr align;
	} control;
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	int fd[8] = { -1, -1, -1, -1 }, n_fds = 0;
	struct cmsghdr *c;
	ssize_t n;

	/* A socket with a time limit is not restarted: work that an io_uring of this process puts off interrupts it like a signal. */
	do
		n = recvmsg(r->sock, &h, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		fail_msg("the daemon neither answers nor hangs up");
	/* The kernel tells of a reset before it hands out what was sent before it. */
	if (n < 0 && errno == ECONNRESET) {
		h.msg_controllen = sizeof(control);
		n = recvmsg(r->sock, &h, MSG_CMSG_CLOEXEC);
	}
	if (n < 0)
		fail_msg("receiving: %s", strerror(errno));
	if (n == 0)
		return 0;
	c = CMSG_FIRSTHDR(&h);
	if (c && c->cmsg_type == SCM_RIGHTS) {
		n_fds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fd, CMSG_DATA(c), (size_t)n_fds * sizeof(int));
	}
	r->status = m.head.status;
	if (m.head.type == WIRE_WELCOME) {
		assert_int_equal(n_fds, WIRE_N_FDS);
		r->shared = mmap(NULL, WIRE_SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd[WIRE_FD_SHARED], 0);
		assert_true(r->shared != MAP_FAILED);
		assert_true(ftruncate(fd[WIRE_FD_SHARED], 4096) < 0);	/* sealed */
		assert_true(mmap(NULL, WIRE_LIFE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd[WIRE_FD_LIFE], 0) == MAP_FAILED);
		assert_true(pwrite(fd[WIRE_FD_LIFE], "x", 1, 0) < 0);
		r->doorbell = dup(fd[WIRE_FD_DOORBELL]);
	} else if (m.head.type == WIRE_SLAB && r->n_slabs < RAW_MAX_SLABS) {
		struct raw_slab *slab = &r->slab[r->n_slabs];

		*slab = (struct raw_slab){ .fd = n_fds ? dup(fd[0]) : -1, .bytes = m.u.slab.bytes };
		memcpy(slab->handle, m.u.slab.handle, sizeof(slab->handle));
		r->n_slabs++;
	} else if (m.head.type == WIRE_OPENED) {
		r->session = m.u.opened.session;
	} else if (m.head.type == WIRE_FAILED) {
		snprintf(r->text, sizeof(r->text), "%.*s", (int)sizeof(r->text) - 1, m.u.text);
	}
	for (int i = 0; i < n_fds; i++)
		close(fd[i]);
	return m.head.type;
}

void raw_map(struct raw *r)
{
	if (!r->dev)
		assert_int_equal(gpu_open(&r->dev, td_device()), 0);
	for (uint32_t i = 0; i < r->n_slabs; i++) {
		struct raw_slab *slab = &r->slab[i];

		if (!slab->base)
			assert_int_equal(gpu_slab_import(r->dev, slab->handle, slab->fd, slab->bytes, &slab->base), 0);
	}
}

/* Reads until a message of this type, FAILED, or the end (0). */
int raw_until(struct raw *r, int type)
{
	int got;

	do
		got = raw_receive(r);
	while (got && got != type && got != WIRE_FAILED);
	return got;
}

void raw_send(struct raw *r, struct wire_msg *m, uint16_t type, size_t body)
{
	m->head.bytes = (uint32_t)(sizeof(m->head) + body);
	m->head.type = type;
	m->head.seq = 1;
	(void)!send(r->sock, m, m->head.bytes, MSG_NOSIGNAL);
}

void raw_hello(struct raw *r)
{
	struct wire_msg m = { .u.hello = { WIRE_MAGIC, WIRE_VERSION, "raw" } };

	raw_send(r, &m, WIRE_HELLO, sizeof(m.u.hello));
	assert_int_equal(raw_until(r, WIRE_POOL), WIRE_POOL);
}

struct wire_msg raw_good_open(void)
{
	return (struct wire_msg){ .u.open = { .n_layers = 2, .n_kv_heads = 2, .group = 3, .head_dim = 64, .max_tokens = 4096,
					      .settings = "policy=h2o budget=64 window=16" } };
}

void raw_open(struct raw *r)
{
	struct wire_msg m = raw_good_open();

	raw_send(r, &m, WIRE_OPEN, sizeof(m.u.open));
	assert_int_equal(raw_until(r, WIRE_OPENED), WIRE_OPENED);
}

void raw_ring(struct raw *r)
{
	uint64_t one = 1;

	(void)!write(r->doorbell, &one, sizeof(one));
}

void raw_push(struct raw *r, const struct wire_record *record)
{
	uint32_t tail = r->shared->sq_tail.value;

	r->shared->sq[tail % WIRE_SQ_ENTRIES] = *record;
	wire_store32(&r->shared->sq_tail.value, tail + 1);
	raw_ring(r);
}
