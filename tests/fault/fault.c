/*
 * Preloaded into ebbd by test_fault: makes the Nth of the calls below fail, once (EBB_FAULT=N, counted from main()'s getopt_long()
 * on: what CUDA's library does before main() is not ours). Creates the file EBB_FAULT_MARK when it strikes, so that the
 * test knows when N is beyond the last call.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

static long countdown = -1;
static bool ready, armed;
static const char *mark;

static void set_up(void)
{
	const char *n = getenv("EBB_FAULT");

	ready = true;
	countdown = n ? atol(n) : -1;
	mark = getenv("EBB_FAULT_MARK");
}

static bool strike(void)
{
	if (!ready)
		set_up();
	if (!armed || countdown < 0 || (countdown > 0 && --countdown > 0))
		return false;
	countdown = -1;
	if (mark) {
		int fd = open(mark, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

		if (fd >= 0)
			close(fd);
	}
	return true;
}

/* The real function; dlsym() may allocate, so calloc() has its own way below. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t n, size_t bytes);

void *malloc(size_t bytes)
{
	if (strike()) {
		errno = ENOMEM;
		return NULL;
	}
	return __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes)
{
	if (strike()) {
		errno = ENOMEM;
		return NULL;
	}
	return __libc_calloc(n, bytes);
}

int getopt_long(int argc, char *const argv[], const char *shorts, const struct option *longs, int *index)
{
	armed = true;
	return REAL(getopt_long)(argc, argv, shorts, longs, index);
}

#define FAIL(type, name, args, call, error)	\
type name args					\
{						\
	if (strike()) {				\
		errno = error;			\
		return (type)-1;		\
	}					\
	return REAL(name) call;			\
}

FAIL(void *, mmap, (void *at, size_t bytes, int prot, int flags, int fd, off_t offset), (at, bytes, prot, flags, fd, offset), ENOMEM)
FAIL(int, memfd_create, (const char *name, unsigned flags), (name, flags), EMFILE)
FAIL(int, ftruncate, (int fd, off_t bytes), (fd, bytes), ENOMEM)
FAIL(int, eventfd, (unsigned value, int flags), (value, flags), EMFILE)
FAIL(int, signalfd, (int fd, const sigset_t *set, int flags), (fd, set, flags), EMFILE)
FAIL(int, socket, (int domain, int type, int protocol), (domain, type, protocol), EMFILE)
FAIL(int, listen, (int fd, int backlog), (fd, backlog), EADDRINUSE)
FAIL(ssize_t, sendmsg, (int fd, const struct msghdr *m, int flags), (fd, m, flags), ENOBUFS)

int fcntl(int fd, int cmd, ...)
{
	va_list args;
	void *arg;

	va_start(args, cmd);
	arg = va_arg(args, void *);
	va_end(args);
	if ((cmd == F_ADD_SEALS || cmd == F_DUPFD_CLOEXEC) && strike()) {
		errno = EMFILE;
		return -1;
	}
	return REAL(fcntl)(fd, cmd, arg);
}
