/* A connection: the socket, hello and welcome, the four descriptors, and the end of it all. */
#include "libclient/client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef F_SEAL_SHRINK
#define F_SEAL_SHRINK 0x0002
#endif
#define OWNER_DIED 0x40000000u	/* FUTEX_OWNER_DIED: the kernel sets it when the holder of a robust futex dies */

_Static_assert(sizeof(struct wire_record) == 64, "one record is one cache line");
_Static_assert(sizeof(struct wire_session) == 192, "one session is three cache lines");
_Static_assert(sizeof(struct wire_line) == 64, "a line is a cache line");

int ebbi_error(struct ebb *ebb, int error, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(ebb->why, sizeof(ebb->why), format, ap);
	va_end(ap);
	return error;
}

int ebbi_gone(struct ebb *ebb)
{
	if (!ebb->dead && ebb->sock >= 0)
		shutdown(ebb->sock, SHUT_RDWR);
	if (!ebb->dead)
		ebbi_error(ebb, -EPIPE, "the daemon is gone or has dropped this client");
	ebb->dead = true;
	return -EPIPE;
}

int ebbi_broken(struct ebb *ebb, const char *format, ...)
{
	va_list ap;

	if (ebb->dead)
		return -EPIPE;
	ebbi_gone(ebb);
	va_start(ap, format);
	vsnprintf(ebb->why, sizeof(ebb->why), format, ap);
	va_end(ap);
	return -EPIPE;
}

int ebbi_alive(struct ebb *ebb)
{
	uint32_t life;

	if (ebb->dead)
		return -EPIPE;
	if (ebb->local)
		return 0;
	life = wire_load32(ebb->life);	/* written by the daemon's start and the kernel's robust list */
	return life == 0 || life & OWNER_DIED ? ebbi_gone(ebb) : 0;
}

struct ebb *ebbi_new(const struct ebb_options *options)
{
	struct ebb *ebb = calloc(1, sizeof(*ebb));

	if (!ebb)
		return NULL;
	ebb->sock = ebb->doorbell = ebb->bell = -1;
	ebb->threads = options && options->threads ? options->threads : 1;
	return ebb;
}

int ebbi_failed(struct ebb *ebb, const struct ebb_options *options, int error)
{
	if (options && options->why && options->why_bytes)
		snprintf(options->why, options->why_bytes, "%s", ebb ? ebb->why : "out of memory");
	ebb_close(ebb);
	return error;
}

static int open_socket(struct ebb *ebb, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int rc;

	if (!path)
		path = getenv("EBB_SOCKET");
	if (!path || !*path)
		path = EBB_SOCKET_DEFAULT;
	if (strlen(path) >= sizeof(addr.sun_path))
		return ebbi_error(ebb, -EINVAL, "socket %.60s...: longer than %zu bytes", path, sizeof(addr.sun_path) - 1);
	memcpy(addr.sun_path, path, strlen(path));
	ebb->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (ebb->sock < 0)
		return ebbi_error(ebb, -errno, "socket: %s", strerror(errno));
	do {
		rc = connect(ebb->sock, (const struct sockaddr *)&addr, sizeof(addr));
	} while (rc < 0 && errno == EINTR);
	if (rc < 0 && errno != EISCONN) {
		rc = -errno;
		return ebbi_error(ebb, rc, "connect to %s: %s", path, strerror(-rc));
	}
	return 0;
}

/* Maps a memfd of the daemon. A peer must not be able to shrink what we read: that would be SIGBUS. */
static void *map_fd(struct ebb *ebb, int fd, size_t bytes, int prot, const char *what)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);
	void *p;

	if (fstat(fd, &st) < 0 || st.st_size < (off_t)bytes || seals < 0 || !(seals & F_SEAL_SHRINK)) {
		ebbi_error(ebb, -EPROTO, "the daemon's %s is not a sealed memory file of %zu bytes", what, bytes);
		return NULL;
	}
	p = mmap(NULL, bytes, prot, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		ebbi_error(ebb, -ENOMEM, "map the daemon's %s: %s", what, strerror(errno));
		return NULL;
	}
	return p;
}

/* Takes the four descriptors: maps two, keeps two. Those still in fd[] are the caller's to close. */
static int take_fds(struct ebb *ebb, int fd[WIRE_N_FDS], bool no_uring)
{
	for (unsigned i = 0; i < WIRE_N_FDS; i++)
		if (fd[i] < 0)
			return ebbi_error(ebb, -EPROTO, "the daemon's welcome brought %u descriptors instead of %d", i, WIRE_N_FDS);
	ebb->shared = map_fd(ebb, fd[WIRE_FD_SHARED], WIRE_SHARED_BYTES, PROT_READ | PROT_WRITE, "shared memory");
	if (!ebb->shared)
		return -EPROTO;
	ebb->life = map_fd(ebb, fd[WIRE_FD_LIFE], WIRE_LIFE_BYTES, PROT_READ, "life page");
	if (!ebb->life)
		return -EPROTO;
	ebb->doorbell = fd[WIRE_FD_DOORBELL];
	ebb->bell = fd[WIRE_FD_BELL];
	fd[WIRE_FD_DOORBELL] = fd[WIRE_FD_BELL] = -1;
	ebb->sq_tail = wire_load32(&ebb->shared->sq_tail.value);
	ebb->cq_head = wire_load32(&ebb->shared->cq_head.value);
	ebb->sq_head_seen = wire_load32(&ebb->shared->sq_head.value);
	if (ebb->sq_tail - ebb->sq_head_seen > WIRE_SQ_ENTRIES)
		return ebbi_error(ebb, -EPROTO, "the daemon's ring begins with head %u, tail %u", ebb->sq_head_seen, ebb->sq_tail);
	if (ebbi_wait_new(&ebb->wait, ebb->bell, ebb->sock, no_uring))
		return ebbi_error(ebb, -ENOMEM, "out of memory");
	return 0;
}

static int welcome(struct ebb *ebb, const struct wire_msg *msg, int fd[WIRE_N_FDS], bool no_uring)
{
	const struct wire_welcome *w = &msg->u.welcome;

	if (msg->head.type == WIRE_FAILED)
		return ebbi_error(ebb, msg->head.status, "%s", msg->u.text);
	if (msg->head.type != WIRE_WELCOME)
		return ebbi_error(ebb, -EPROTO, "the daemon answered hello with message type %u", msg->head.type);
	if (w->version != WIRE_VERSION)
		return ebbi_error(ebb, -EPROTO, "the daemon speaks version %u, this library %u", w->version, WIRE_VERSION);
	if (w->shared_bytes != WIRE_SHARED_BYTES || !w->n_pools || w->n_pools > WIRE_MAX_POOLS)
		return ebbi_error(ebb, -EPROTO, "the daemon's welcome names %u pools and %llu bytes of shared memory", w->n_pools,
				  (unsigned long long)w->shared_bytes);
	return take_fds(ebb, fd, no_uring);
}

static int receive_pools(struct ebb *ebb, unsigned n_pools)
{
	struct wire_msg msg;
	int rc;

	ebb->pool = calloc(n_pools, sizeof(*ebb->pool));
	if (!ebb->pool)
		return ebbi_error(ebb, -ENOMEM, "out of memory");
	while (ebb->n_pools < n_pools) {
		struct ebbi_pool *pool = &ebb->pool[ebb->n_pools];

		rc = ebbi_receive(ebb, &msg, NULL, 0, false);
		if (rc)
			return rc;
		if (msg.head.type != WIRE_POOL || msg.u.pool.index != ebb->n_pools)
			return ebbi_error(ebb, -EPROTO, "the daemon sent message type %u instead of pool %u", msg.head.type,
					  ebb->n_pools);
		pool->info = msg.u.pool;
		rc = ebbi_pool_init(ebb, pool);
		if (rc)
			return rc;
		ebb->n_pools++;
	}
	return 0;
}

static int hello(struct ebb *ebb, const struct ebb_options *options)
{
	const char *name = options && options->name ? options->name : program_invocation_short_name;
	struct wire_msg msg = { .u.hello = { .magic = WIRE_MAGIC, .version = WIRE_VERSION } };
	int fd[WIRE_N_FDS];
	int rc;

	snprintf(msg.u.hello.name, sizeof(msg.u.hello.name), "%s", name);
	rc = ebbi_send(ebb, &msg, WIRE_HELLO, ++ebb->seq, sizeof(msg.u.hello));
	if (rc)
		return rc;
	rc = ebbi_receive(ebb, &msg, fd, WIRE_N_FDS, false);
	if (rc)
		return rc;
	rc = welcome(ebb, &msg, fd, options && options->no_uring);
	for (unsigned i = 0; i < WIRE_N_FDS; i++)
		if (fd[i] >= 0)
			close(fd[i]);
	return rc ? rc : receive_pools(ebb, msg.u.welcome.n_pools);
}

int ebb_connect(struct ebb **out, const struct ebb_options *options)
{
	struct ebb *ebb;
	int rc;

	if (!out)
		return -EINVAL;
	ebb = ebbi_new(options);
	if (!ebb)
		return ebbi_failed(NULL, options, -ENOMEM);
	rc = open_socket(ebb, options ? options->socket : NULL);
	if (!rc)
		rc = hello(ebb, options);
	if (rc)
		return ebbi_failed(ebb, options, rc);
	*out = ebb;
	return 0;
}

void ebb_close(struct ebb *ebb)
{
	if (!ebb)
		return;
	/* Hanging up is how a client says goodbye; before the pages go, the device must be done with them. */
	while (ebb->batches)
		ebb_batch_free(ebb->batches);
	if (ebb->sock >= 0)
		ebbi_gone(ebb);
	for (unsigned i = 0; i < WIRE_MAX_SESSIONS; i++)
		ebb_session_close(ebb->session[i]);
	for (unsigned i = 0; i < ebb->n_pools; i++)
		ebbi_pool_fini(&ebb->pool[i]);
	free(ebb->pool);
	ebbi_watch_free(ebb->watch);
	ebbi_wait_free(ebb->wait);
	if (ebb->shared)
		munmap(ebb->shared, WIRE_SHARED_BYTES);
	if (ebb->life)
		munmap((void *)(uintptr_t)ebb->life, WIRE_LIFE_BYTES);
	if (ebb->doorbell >= 0)
		close(ebb->doorbell);
	if (ebb->bell >= 0)
		close(ebb->bell);
	if (ebb->sock >= 0)
		close(ebb->sock);
	free(ebb);
}

const char *ebb_error(const struct ebb *ebb)
{
	return ebb ? ebb->why : "no connection";
}

int ebb_fd(const struct ebb *ebb)
{
	return ebb ? ebb->sock : -1;
}

int ebb_pool(const struct ebb *ebb, unsigned index, struct ebb_pool_info *out)
{
	struct ebbi_pool *pool;

	if (!ebb || !out)
		return -EINVAL;
	if (index >= ebb->n_pools)
		return -ENOENT;
	pool = &ebb->pool[index];
	out->name = pool->info.name;
	out->uuid = pool->info.uuid;
	out->is_cuda = pool->info.is_cuda != 0;
	out->size_bytes = pool->info.size_bytes;
	out->ordinal = -1;
	if (pool->info.is_cuda && ebbi_pool_device(pool) == 0)
		out->ordinal = gpu_info(pool->dev)->ordinal;
	return 0;
}
