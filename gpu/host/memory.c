/* Memory of the host device: slabs are sealed memfds that other processes map, or anonymous memory that they cannot. */
#include "gpu/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HOST_SEALS (F_SEAL_GROW | F_SEAL_SHRINK)

#define HUGE_BYTES ((size_t)2 << 20)

/*
 * At a multiple of 2 MiB where the memory is that large, so that the kernel can use large TLB entries, for which callers ask with
 * MADV_HUGEPAGE: pages are anywhere, and attend then reads q8 slots 30 % faster. For memfds the administrator must allow it:
 * echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled. Without, nothing is lost.
 */
static int map_at(int fd, size_t bytes, void **base)
{
	const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	char *room, *at;
	size_t front;

	if (bytes < HUGE_BYTES) {
		at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
		if (at == MAP_FAILED)
			return -errno;
		*base = at;
		return 0;
	}
	room = mmap(NULL, bytes + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		return -errno;
	front = (HUGE_BYTES - (uintptr_t)room % HUGE_BYTES) % HUGE_BYTES;
	at = mmap(room + front, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	if (at == MAP_FAILED) {
		int rc = -errno;

		(void)munmap(room, bytes + HUGE_BYTES);
		return rc;
	}
	if (front)
		(void)munmap(room, front);
	(void)munmap(at + bytes, HUGE_BYTES - front);
	*base = at;
	return 0;
}

static int shared_slab(size_t bytes, struct gpu_slab *slab)
{
	int rc, fd = memfd_create("ebbd-slab", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes) || fcntl(fd, F_ADD_SEALS, HOST_SEALS | F_SEAL_SEAL)) {
		rc = -errno;
		goto err_close;
	}
	rc = map_at(fd, bytes, &slab->base);
	if (rc)
		goto err_close;
	slab->fd = fd;
	return 0;
err_close:
	(void)close(fd);
	return rc;
}

int host_slab_new(struct gpu_device *dev, size_t bytes, int shared, struct gpu_slab *slab)
{
	struct gpu_slab s = { .bytes = bytes, .fd = -1 };
	int rc;

	(void)dev;
	if (!bytes || bytes > (size_t)1 << 46)
		return -EINVAL;
	if (shared) {
		rc = shared_slab(bytes, &s);
		if (rc)
			return rc;
	} else {
		rc = map_at(-1, bytes, &s.base);
		if (rc)
			return rc;
	}
	(void)madvise(s.base, bytes, MADV_HUGEPAGE);
	*slab = s;
	return 0;
}

void host_slab_free(struct gpu_device *dev, struct gpu_slab *slab)
{
	(void)dev;
	if (slab->base)
		(void)munmap(slab->base, slab->bytes);
	if (slab->fd >= 0)
		(void)close(slab->fd);
	*slab = (struct gpu_slab){ .fd = -1 };
}

/* Without the seals the other side could shrink the file under us, and the next access would kill this process. */
int host_slab_import(struct gpu_device *dev, const uint8_t *handle, int fd, size_t bytes, void **base)
{
	struct stat st;
	int seals, rc;

	(void)dev;
	(void)handle;
	if (fd < 0 || !bytes)
		return -EINVAL;
	if (fstat(fd, &st))
		return -errno;
	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || (seals & HOST_SEALS) != HOST_SEALS || st.st_size < 0 || (size_t)st.st_size != bytes)
		return -EPROTO;
	rc = map_at(fd, bytes, base);
	if (rc)
		return rc;
	(void)madvise(*base, bytes, MADV_HUGEPAGE);
	return 0;
}

void host_slab_unmap(struct gpu_device *dev, void *base, size_t bytes)
{
	(void)dev;
	if (base)
		(void)munmap(base, bytes);
}

int host_stream_new(struct gpu_device *dev, int apart, gpu_stream *out)
{
	(void)apart;
	(void)dev;
	*out = NULL;
	return 0;
}

void host_stream_free(struct gpu_device *dev, gpu_stream s)
{
	(void)dev;
	(void)s;
}

int host_sync(struct gpu_device *dev, gpu_stream s)
{
	(void)dev;
	(void)s;
	return 0;
}

/* copy, write and read are one thing here. */
int host_copy(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes)
{
	(void)dev;
	(void)s;
	if (bytes)
		memcpy(dst, src, bytes);
	return 0;
}

int host_scrub(struct gpu_device *dev, gpu_stream s, void *dst, size_t bytes)
{
	(void)dev;
	(void)s;
	if (bytes)
		memset(dst, 0, bytes);
	return 0;
}

int host_notify(struct gpu_device *dev, gpu_stream s, int eventfd)
{
	(void)dev;
	(void)s;
	(void)eventfd;
	return 1;
}

int host_register(struct gpu_device *dev, void *ptr, size_t bytes)
{
	(void)dev;
	(void)ptr;
	(void)bytes;
	return 0;
}

void host_unregister(struct gpu_device *dev, void *ptr)
{
	(void)dev;
	(void)ptr;
}

/* Release: whoever reads a word with acquire (the hand-over, in libclient and daemon) sees all that was done before. */
int host_signal(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[])
{
	(void)dev;
	(void)s;
	for (unsigned i = 0; i < n; i++)
		__atomic_store_n(word[i], value[i], __ATOMIC_RELEASE);
	return 0;
}

/* Acquire; partner: host_signal() of whoever stores the word. */
int host_await(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[])
{
	const struct timespec nap = { .tv_nsec = 50000 };

	(void)dev;
	(void)s;
	for (unsigned i = 0; i < n; i++)
		while ((int64_t)(__atomic_load_n(word[i], __ATOMIC_ACQUIRE) - value[i]) < 0)
			(void)nanosleep(&nap, NULL);
	return 0;
}

int host_alloc(struct gpu_device *dev, size_t bytes, void **out)
{
	size_t rounded = (bytes + 63u) / 64u * 64u;
	void *at;

	(void)dev;
	if (rounded < bytes)
		return -ENOMEM;
	at = aligned_alloc(64, rounded ? rounded : 64);
	if (!at)
		return -ENOMEM;
	memset(at, 0, rounded);
	*out = at;
	return 0;
}

void host_free(struct gpu_device *dev, void *ptr)
{
	(void)dev;
	free(ptr);
}

int host_map_new(struct gpu_device *dev, unsigned max_slabs, unsigned slab_shift, struct gpu_map **out)
{
	struct gpu_map *map = calloc(1, sizeof(*map));

	if (!map)
		return -ENOMEM;
	*map = (struct gpu_map){ .dev = dev, .max_slabs = max_slabs, .slab_shift = slab_shift };
	map->base = calloc(max_slabs, sizeof(*map->base));
	if (!map->base) {
		free(map);
		return -ENOMEM;
	}
	*out = map;
	return 0;
}

void host_map_free(struct gpu_device *dev, struct gpu_map *map)
{
	(void)dev;
	free(map->base);
	free(map);
}

int host_map_set(struct gpu_map *map, gpu_stream s, unsigned slab, void *base)
{
	(void)s;
	map->base[slab] = base;
	return 0;
}

int host_scratch_grow(struct host_scratch *s, size_t bytes)
{
	size_t want = bytes + bytes / 2;	/* so that a lane that grows slot by slot does not allocate at every step */
	char *at;

	if (bytes <= s->bytes)
		return 0;
	want = (want + 4095u) / 4096u * 4096u;
	at = aligned_alloc(4096, want);
	if (!at)
		return -ENOMEM;
	free(s->at);
	*s = (struct host_scratch){ .at = at, .bytes = want };
	return 0;
}

void host_scratch_fini(struct host_scratch *s)
{
	free(s->at);
	*s = (struct host_scratch){ 0 };
}
