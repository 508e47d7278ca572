/*
 * Devices, slabs, copies, maps, signals; slabs that a second process maps. That process is this program again, started with
 * "--importer FD": nothing of a CUDA context survives a fork. Over the socket FD goes one message per slab: its size, its
 * handle and, on the host, its descriptor.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/world.h"

#define SLAB ((size_t)2 << 20)

struct offer {
	uint64_t bytes;
	uint8_t handle[GPU_HANDLE_BYTES];
};

static uint8_t pattern(size_t at, unsigned salt)
{
	return (uint8_t)((at * 2654435761u >> 13) + salt * 41u);
}

static void fill(uint8_t *p, size_t n, unsigned salt)
{
	for (size_t i = 0; i < n; i++)
		p[i] = pattern(i, salt);
}

/* First byte that is not the pattern's, or n. */
static size_t matches(const uint8_t *p, size_t n, unsigned salt)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != pattern(i, salt))
			return i;
	return n;
}

/* --- one process ----------------------------------------------------------------------------------------------------------- */

static void names_are_told_apart(void **state)
{
	struct gpu_device *dev = (struct gpu_device *)&dev;
	struct gpu_device *const untouched = dev;
	const struct gpu_info *info = gpu_info(world_device());
	int rc;

	(void)state;
	assert_int_equal(gpu_open(&dev, "nonsense"), -EINVAL);
	assert_int_equal(gpu_open(&dev, ""), -EINVAL);
	assert_int_equal(gpu_open(&dev, "hostess"), -EINVAL);
	rc = gpu_open(&dev, "cuda:4096");
	assert_true(rc == -ENODEV || rc == -ENOTSUP);
	rc = gpu_open(&dev, "cuda:GPU-00000000-0000-0000-0000-000000000000");
	assert_true(rc == -ENODEV || rc == -ENOTSUP);
	assert_ptr_equal(dev, untouched);
	assert_true(gpu_count() >= world_is_cuda());
	assert_int_equal(info->is_cuda, world_is_cuda());
	assert_true(info->total_bytes > 0);
	if (!info->is_cuda) {
		assert_string_equal(info->name, "host");
		assert_string_equal(info->uuid, "host");
		assert_int_equal(info->ordinal, -1);
	} else {
		assert_memory_equal(info->uuid, "GPU-", 4);
		assert_int_equal(strlen(info->uuid), 40);
		assert_true(info->ordinal >= 0);
	}
}

static void a_device_opens_by_its_uuid_too(void **state)
{
	const struct gpu_info *info = gpu_info(world_device());
	struct gpu_device *dev;
	char name[80];

	(void)state;
	for (int bare = 0; info->is_cuda && bare < 2; bare++) {
		snprintf(name, sizeof(name), "cuda:%s", info->uuid + 4 * bare);
		assert_int_equal(gpu_open(&dev, name), 0);
		assert_string_equal(gpu_info(dev)->uuid, info->uuid);
		assert_int_equal(gpu_info(dev)->ordinal, info->ordinal);
		gpu_close(dev);
	}
	gpu_close(NULL);
}

static void slabs_are_zero_and_hold_what_is_written(void **state)
{
	struct gpu_device *dev = world_device();
	uint8_t *here = malloc(SLAB), *back = malloc(SLAB);
	gpu_stream s;

	(void)state;
	assert_true(here && back);
	assert_int_equal(gpu_stream_new(dev, &s), 0);
	for (int shared = 0; shared < 2; shared++) {
		struct gpu_slab slab;
		char *base;

		assert_int_equal(gpu_slab_new(dev, SLAB, shared, &slab), 0);
		assert_int_equal(slab.bytes, SLAB);
		assert_int_equal((uintptr_t)slab.base % 256, 0);
		assert_true(shared && !world_is_cuda() ? slab.fd >= 0 : slab.fd == -1);
		base = slab.base;
		memset(back, 1, SLAB);
		assert_int_equal(gpu_read(dev, s, back, base, SLAB), 0);
		for (size_t i = 0; i < SLAB; i++)
			assert_int_equal(back[i], 0);
		fill(here, SLAB, 1);
		assert_int_equal(gpu_write(dev, s, base + 7, here, 100003), 0);
		memset(here, 0, SLAB);	/* src was copied */
		assert_int_equal(gpu_copy(dev, s, base + 500001, base + 7, 100003), 0);
		assert_int_equal(gpu_scrub(dev, s, base + 7, 50001), 0);
		assert_int_equal(gpu_scrub(dev, s, base + 3, 0), 0);
		assert_int_equal(gpu_read(dev, s, back, base, SLAB), 0);
		for (size_t i = 0; i < 50008; i++)
			assert_int_equal(back[i], 0);
		for (size_t i = 50001; i < 100003; i++)
			assert_int_equal(back[7 + i], pattern(i, 1));
		for (size_t i = 100010; i < 500001; i++)
			assert_int_equal(back[i], 0);
		assert_int_equal(matches(back + 500001, 100003, 1), 100003);
		for (size_t i = 600004; i < SLAB; i++)
			assert_int_equal(back[i], 0);
		gpu_slab_free(dev, &slab);
	}
	gpu_stream_free(dev, s);
	free(here);
	free(back);
}

static void shared_host_slabs_cannot_be_resized(void **state)
{
	struct gpu_slab slab;

	(void)state;
	assert_int_equal(gpu_slab_new(world_device(), SLAB, 1, &slab), 0);
	if (slab.fd >= 0) {
		assert_int_equal(ftruncate(slab.fd, 0), -1);
		assert_int_equal(errno, EPERM);
		assert_int_equal(ftruncate(slab.fd, (off_t)(2 * SLAB)), -1);
		assert_int_equal(errno, EPERM);
	}
	gpu_slab_free(world_device(), &slab);
}

static void a_file_of_another_size_is_not_mapped(void **state)
{
	const uint8_t none[GPU_HANDLE_BYTES] = { 0 };
	struct gpu_slab slab;
	void *base = &slab;
	int fd;

	(void)state;
	if (world_is_cuda())
		return;
	assert_int_equal(gpu_slab_new(world_device(), SLAB, 1, &slab), 0);
	assert_int_equal(gpu_slab_import(world_device(), slab.handle, slab.fd, 2 * SLAB, &base), -EPROTO);
	assert_int_equal(gpu_slab_import(world_device(), slab.handle, slab.fd, SLAB / 2, &base), -EPROTO);
	assert_true(gpu_slab_import(world_device(), slab.handle, -1, SLAB, &base) < 0);
	fd = memfd_create("unsealed", MFD_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)SLAB), 0);
	assert_true(gpu_slab_import(world_device(), none, fd, SLAB, &base) < 0);	/* it could shrink under us */
	assert_ptr_equal(base, &slab);
	close(fd);
	gpu_slab_free(world_device(), &slab);
}

static void maps_hold_what_was_set(void **state)
{
	struct gpu_device *dev = world_device();
	struct gpu_slab slab;
	struct gpu_map *map;

	(void)state;
	assert_int_equal(gpu_map_new(dev, 0, 21, &map), -EINVAL);
	assert_int_equal(gpu_map_new(dev, 4, 11, &map), -EINVAL);
	assert_int_equal(gpu_map_new(dev, 4, 21, &map), 0);
	assert_int_equal(gpu_slab_new(dev, SLAB, 0, &slab), 0);
	for (int i = 0; i < 4; i++)
		assert_null(gpu_map_bases(map)[i]);
	assert_int_equal(gpu_map_set(map, NULL, 2, slab.base), 0);
	assert_int_equal(gpu_map_set(map, NULL, 4, slab.base), -EINVAL);
	assert_ptr_equal(gpu_map_bases(map)[2], slab.base);
	assert_null(gpu_map_bases(map)[1]);
	assert_int_equal(gpu_map_set(map, NULL, 2, NULL), 0);
	assert_null(gpu_map_bases(map)[2]);
	gpu_map_free(dev, map);
	gpu_map_free(dev, NULL);
	gpu_slab_free(dev, &slab);
}

struct late {
	uint64_t *word, value;
	unsigned stored;	/* atomic */
};

static void *store_late(void *arg)
{
	struct late *l = arg;
	const struct timespec nap = { .tv_nsec = 100000000 };

	nanosleep(&nap, NULL);
	__atomic_store_n(&l->stored, 1, __ATOMIC_RELEASE);
	__atomic_store_n(l->word, l->value, __ATOMIC_RELEASE);
	return NULL;
}

/* The work behind a wait comes behind the store that ends it, whoever stores, and 2^63 - 1 ends every wait. */
static void streams_wait_for_words(void **state)
{
	struct gpu_device *dev = world_device();
	const uint64_t value[2] = { 7, 1ull << 40 };
	uint64_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), *word[2];
	gpu_stream s, apart;

	(void)state;
	assert_true(page != MAP_FAILED);
	assert_int_equal(gpu_stream_new(dev, &s), 0);
	assert_int_equal(gpu_stream_apart(dev, &apart), 0);
	assert_int_equal(gpu_register(dev, page, 4096), 0);
	word[0] = &page[0];
	word[1] = &page[64];
	page[64] = 1ull << 40;
	for (int round = 0; round < 3; round++) {	/* the value itself, more, and the end of all waiting */
		struct late l = { .word = &page[0], .value = round == 0 ? 7 : round == 1 ? 9 : INT64_MAX };
		uint64_t *const done = &page[128];
		const uint64_t one = 1;
		pthread_t t;

		page[0] = 6;
		page[128] = 0;
		assert_int_equal(pthread_create(&t, NULL, store_late, &l), 0);
		assert_int_equal(gpu_await(dev, apart, 2, word, value), 0);
		assert_int_equal(gpu_order(dev, apart, s), 0);
		assert_int_equal(gpu_signal(dev, s, 1, &done, &one), 0);
		if (__atomic_load_n(&page[128], __ATOMIC_ACQUIRE))
			assert_int_equal(__atomic_load_n(&l.stored, __ATOMIC_ACQUIRE), 1);
		assert_int_equal(gpu_sync(dev, s), 0);
		assert_int_equal(__atomic_load_n(&l.stored, __ATOMIC_ACQUIRE), 1);
		assert_int_equal(page[128], 1);
		pthread_join(t, NULL);
	}
	assert_int_equal(gpu_await(dev, s, 0, NULL, NULL), 0);
	gpu_unregister(dev, page);
	gpu_stream_free(dev, apart);
	gpu_stream_free(dev, s);
	munmap(page, 4096);
}

static void signals_and_notices_arrive(void **state)
{
	struct gpu_device *dev = world_device();
	const uint64_t value[3] = { 1, UINT64_MAX, 0x0123456789abcdefu };
	const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct pollfd wait = { .fd = fd, .events = POLLIN };
	uint64_t *word[3], *page, count = 0;
	gpu_stream s;
	int rc;

	(void)state;
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(page != MAP_FAILED && fd >= 0);
	assert_int_equal(gpu_stream_new(dev, &s), 0);
	assert_int_equal(gpu_register(dev, page, 4096), 0);
	for (int i = 0; i < 3; i++)
		word[i] = &page[8 * i + 1];
	assert_int_equal(gpu_signal(dev, s, 3, word, value), 0);
	assert_int_equal(gpu_sync(dev, s), 0);
	for (int i = 0; i < 512; i++)
		assert_int_equal(page[i], i == 1 ? value[0] : i == 9 ? value[1] : i == 17 ? value[2] : 0);
	rc = gpu_notify(dev, s, fd);
	assert_int_equal(rc, !world_is_cuda());
	if (!rc) {
		assert_int_equal(poll(&wait, 1, 10000), 1);
		assert_int_equal(read(fd, &count, 8), 8);
		assert_int_equal(count, 1);
	} else {
		assert_int_equal(poll(&wait, 1, 0), 0);
	}
	gpu_unregister(dev, page);
	gpu_stream_free(dev, s);
	munmap(page, 4096);
	close(fd);
}

static void host_memory_is_zeroed(void **state)
{
	const uint8_t *p;
	void *at;

	(void)state;
	assert_int_equal(gpu_host_alloc(world_device(), 10000, &at), 0);
	p = at;
	for (size_t i = 0; i < 10000; i++)
		assert_int_equal(p[i], 0);
	memset(at, 1, 10000);
	gpu_host_free(world_device(), at);
}

static void impossible_arguments_are_refused(void **state)
{
	static const struct gpu_shape bad[] = {
		{ .n_kv_heads = 0, .group = 1, .head_dim = 64 }, { .n_kv_heads = 1, .group = 0, .head_dim = 64 },
		{ .n_kv_heads = 1, .group = 17, .head_dim = 64 }, { .n_kv_heads = 1, .group = 1, .head_dim = 48 },
		{ .n_kv_heads = 1, .group = 1, .head_dim = 72 }, { .n_kv_heads = 1, .group = 1, .head_dim = 272 },
		{ .n_kv_heads = 1, .group = 1, .head_dim = 64, .slot_type = GPU_Q4 + 1 },
	};
	const struct gpu_shape good = { .n_kv_heads = 1, .group = 1, .head_dim = 64 };
	struct gpu_seq seq[3] = { 0 };
	struct gpu_tensor t = { .data = NULL, .type = GPU_F32, .stride = 64 };
	struct gpu_device *dev = world_device();
	struct gpu_step *step;
	struct gpu_map *map;
	float lse;

	(void)state;
	assert_int_equal(gpu_set_threads(dev, 0), -EINVAL);
	assert_int_equal(gpu_map_new(dev, 4, 21, &map), 0);
	assert_int_equal(gpu_step_new(dev, 0, 8, &step), -EINVAL);
	assert_int_equal(gpu_step_new(dev, 2, 0, &step), -EINVAL);
	assert_int_equal(gpu_step_new(dev, 2, 8, &step), 0);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(gpu_step_set(step, NULL, &bad[i], map, seq, 0, 1), -EINVAL);
	assert_true(gpu_step_set(step, NULL, &good, map, seq, 3, 1) < 0);	/* more sessions than max_seqs */
	seq[0].n = 9;
	assert_true(gpu_step_set(step, NULL, &good, map, seq, 1, 1) < 0);	/* more rows than max_rows */
	assert_int_equal(gpu_append(step, NULL, 0, &t, &t), -EINVAL);
	t.data = &lse;
	t.type = GPU_Q8;
	assert_int_equal(gpu_attend(step, NULL, 0, &t, &t, 1.0f, NULL), -EINVAL);
	t.type = GPU_F32;
	t.stride = 0;
	assert_int_equal(gpu_append(step, NULL, 0, &t, &t), -EINVAL);
	assert_int_equal(gpu_observe(step, NULL, 0, &t, &lse, 1.0f, 0), -EINVAL);
	gpu_step_free(dev, step);
	gpu_step_free(dev, NULL);
	gpu_map_free(dev, map);
}

/* --- two processes ----------------------------------------------------------------------------------------------------------- */

static int send_offer(int socket, const struct gpu_slab *slab)
{
	struct offer offer = { .bytes = slab->bytes };
	struct iovec iov = { .iov_base = &offer, .iov_len = sizeof(offer) };
	union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } control = { 0 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	memcpy(offer.handle, slab->handle, sizeof(offer.handle));
	if (slab->fd >= 0) {
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		control.head = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)),
		};
		memcpy(CMSG_DATA(&control.head), &slab->fd, sizeof(int));
	}
	return sendmsg(socket, &msg, MSG_NOSIGNAL) == (ssize_t)sizeof(offer) ? 0 : -1;
}

static int receive_offer(int socket, struct offer *offer, int *fd)
{
	struct iovec iov = { .iov_base = offer, .iov_len = sizeof(*offer) };
	union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } control = { 0 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	const struct cmsghdr *c;

	*fd = -1;
	if (recvmsg(socket, &msg, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(*offer))
		return -1;
	c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(c), sizeof(int));
	return 0;
}

/* The other process: maps two slabs, checks patterns 1 and 2, writes 3 and 4 over them, waits for a byte, unmaps. */
static int importer(int socket)
{
	struct gpu_device *dev = world_device();
	uint8_t *here = malloc(SLAB);
	void *base[2];
	gpu_stream s;
	char byte;

	if (!here || gpu_stream_new(dev, &s))
		return 10;
	for (unsigned i = 0; i < 2; i++) {
		struct offer offer;
		int fd, rc;

		if (receive_offer(socket, &offer, &fd))
			return 11;
		rc = gpu_slab_import(dev, offer.handle, fd, offer.bytes, &base[i]);
		if (fd >= 0)
			close(fd);	/* it was borrowed */
		if (rc) {
			fprintf(stderr, "import: %s\n", strerror(-rc));
			return 12;
		}
	}
	for (unsigned i = 0; i < 2; i++) {
		if (gpu_read(dev, s, here, base[i], SLAB) || matches(here, SLAB, 1 + i) != SLAB)
			return 13;
		fill(here, SLAB, 3 + i);
		if (gpu_write(dev, s, base[i], here, SLAB))
			return 14;
	}
	if (gpu_sync(dev, s) || write(socket, "w", 1) != 1 || read(socket, &byte, 1) != 1)
		return 15;
	for (unsigned i = 0; i < 2; i++) {	/* the owner wrote meanwhile */
		if (gpu_read(dev, s, here, base[i], SLAB) || matches(here, SLAB, 5 + i) != SLAB)
			return 16;
		gpu_slab_unmap(dev, base[i], SLAB);
	}
	gpu_stream_free(dev, s);
	gpu_close(dev);
	free(here);
	return 0;
}

static pid_t start_importer(int *socket)
{
	int pair[2];
	char arg[16];
	pid_t pid;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		const int inherited = dup(pair[1]);	/* without CLOEXEC */

		snprintf(arg, sizeof(arg), "%d", inherited);
		execl("/proc/self/exe", "test_memory", "--importer", arg, (char *)NULL);
		_exit(9);
	}
	close(pair[1]);
	*socket = pair[0];
	return pid;
}

static void another_process_maps_the_same_slabs(void **state)
{
	struct gpu_device *dev = world_device();
	uint8_t *here = malloc(SLAB);
	struct gpu_slab slab[2];
	int socket, status;
	pid_t pid = start_importer(&socket);
	char byte;

	(void)state;
	assert_non_null(here);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(gpu_slab_new(dev, SLAB, 1, &slab[i]), 0);
		fill(here, SLAB, 1 + i);
		assert_int_equal(gpu_write(dev, NULL, slab[i].base, here, SLAB), 0);
	}
	assert_int_equal(gpu_sync(dev, NULL), 0);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(send_offer(socket, &slab[i]), 0);
	if (read(socket, &byte, 1) == 1) {	/* else the importer has ended; its status says why */
		for (unsigned i = 0; i < 2; i++) {
			assert_int_equal(gpu_read(dev, NULL, here, slab[i].base, SLAB), 0);
			assert_int_equal(matches(here, SLAB, 3 + i), SLAB);
			fill(here, SLAB, 5 + i);
			assert_int_equal(gpu_write(dev, NULL, slab[i].base, here, SLAB), 0);
		}
		assert_int_equal(gpu_sync(dev, NULL), 0);
		assert_int_equal(write(socket, "r", 1), 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	close(socket);
	gpu_slab_free(dev, &slab[0]);
	gpu_slab_free(dev, &slab[1]);
	free(here);
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_are_told_apart),
		cmocka_unit_test(a_device_opens_by_its_uuid_too),
		cmocka_unit_test(slabs_are_zero_and_hold_what_is_written),
		cmocka_unit_test(shared_host_slabs_cannot_be_resized),
		cmocka_unit_test(a_file_of_another_size_is_not_mapped),
		cmocka_unit_test(maps_hold_what_was_set),
		cmocka_unit_test(signals_and_notices_arrive),
		cmocka_unit_test(streams_wait_for_words),
		cmocka_unit_test(host_memory_is_zeroed),
		cmocka_unit_test(impossible_arguments_are_refused),
		cmocka_unit_test(another_process_maps_the_same_slabs),
	};

	return cmocka_run_group_tests_name("gpu memory", tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "--importer") == 0)
		return importer(atoi(argv[2]));
	return world_main(argc, argv, run);
}
