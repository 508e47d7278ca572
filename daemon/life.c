/*
 * The life page: how clients learn by reading memory that the daemon has died, however it died.
 *
 * One word is a robust futex "held" by the loop's thread. When a thread ends, for whatever reason, the kernel walks the list
 * that the thread registered with set_robust_list(2) and sets FUTEX_OWNER_DIED in every word on it that carries the thread's id.
 * The list's node is in our private memory; only the word is in the shared page, which clients can map for reading only.
 */
#include "daemon/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct robust_list_head head;
static struct robust_list node;

int life_open(void)
{
	uint32_t *word;
	int fd = memfd_create("ebbd-life", MFD_CLOEXEC | MFD_ALLOW_SEALING), rc;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, WIRE_LIFE_BYTES))
		goto fail;
	word = mmap(NULL, WIRE_LIFE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (word == MAP_FAILED)
		goto fail;
	/* Ours is the last writable mapping there will ever be. */
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)) {
		munmap(word, WIRE_LIFE_BYTES);
		goto fail;
	}
	__atomic_store_n(word, (uint32_t)gettid(), __ATOMIC_RELEASE);
	node.next = &head.list;
	head.list.next = &node;
	head.futex_offset = (char *)word - (char *)&node;
	head.list_op_pending = NULL;
	if (syscall(SYS_set_robust_list, &head, sizeof(head)))	/* replaces libc's, whose robust mutexes nobody here uses */
		goto fail;
	return fd;
fail:
	rc = -errno;
	close(fd);
	return rc;
}
