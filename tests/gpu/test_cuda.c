/*
 * What only a CUDA device has: names and UUIDs, the staging ring, signals into registered memory, notification, handles between
 * processes, the two ways of sharing out an attend. The operations' results are tested by tests/unit/gpu/ on any device.
 * The first tests need no GPU; without one the others are skipped.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/world.h"

enum { MIB = 1 << 20 };

static struct gpu_device *device(void)
{
	static struct gpu_device *dev;

	if (!gpu_count())
		skip();
	if (!dev)
		assert_int_equal(gpu_open(&dev, getenv("EBB_TEST_DEVICE") ? getenv("EBB_TEST_DEVICE") : "cuda:0"), 0);
	return dev;
}

static void names_that_are_none_are_refused(void **state)
{
	static const char *const bad[] = { "cuda:", "cuda:x", "cuda:0x", "cuda:-1", "cuda: 0", "cuda:GPU-", "cuda:GPU-12", "cuda",
					   "cuda:01234567-0123-0123-0123-0123456789ag", "cuda:0123456780123-0123-0123-0123456789ab0" };
	struct gpu_device *dev = NULL;

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(gpu_open(&dev, bad[i]), -EINVAL);
	assert_int_equal(gpu_open(&dev, "cuda:4000"), -ENODEV);
	assert_int_equal(gpu_open(&dev, "cuda:99999999999999999999"), -ENODEV);
	assert_int_equal(gpu_open(&dev, "cuda:GPU-01234567-0123-0123-0123-0123456789ab"), -ENODEV);
	assert_null(dev);
}

static void without_a_gpu_nothing_opens_and_nothing_crashes(void **state)
{
	struct gpu_device *dev = NULL;

	(void)state;
	if (gpu_count())
		skip();
	assert_int_equal(gpu_open(&dev, "cuda:0"), -ENODEV);
	assert_null(dev);
}

static void a_device_opens_by_every_form_of_its_name(void **state)
{
	const struct gpu_info *info = gpu_info(device());
	struct gpu_device *dev;
	char name[64];

	(void)state;
	assert_true(info->is_cuda && info->ordinal >= 0 && info->total_bytes > 1u << 30);
	assert_int_equal(strlen(info->uuid), 40);
	for (unsigned form = 0; form < 3; form++) {
		snprintf(name, sizeof(name), "cuda:%s", info->uuid + (form ? 4 : 0));
		for (char *c = name + 5; form == 2 && *c; c++)
			*c = (char)toupper((unsigned char)*c);
		assert_int_equal(gpu_open(&dev, name), 0);
		assert_string_equal(gpu_info(dev)->uuid, info->uuid);
		assert_int_equal(gpu_info(dev)->ordinal, info->ordinal);
		gpu_close(dev);
	}
}

/* --- bytes ------------------------------------------------------------------------------------------------------------ */

static void fill(uint8_t *at, size_t n, uint64_t seed)
{
	for (size_t i = 0; i < n; i++)
		at[i] = (uint8_t)(i % 8 ? seed >> (i % 8 * 8) : world_random(&seed));
}

static void slabs_begin_as_zeros(void **state)
{
	struct gpu_device *dev = device();
	uint8_t *got = malloc(4 * MIB);
	struct gpu_slab slab;

	(void)state;
	assert_non_null(got);
	for (unsigned round = 0; round < 3; round++) {
		assert_int_equal(gpu_slab_new(dev, 4 * MIB, round == 1, &slab), 0);
		assert_int_equal(slab.fd, -1);
		memset(got, 1, 4 * MIB);
		assert_int_equal(gpu_read(dev, NULL, got, slab.base, 4 * MIB), 0);
		for (size_t i = 0; i < 4 * MIB; i++)
			assert_int_equal(got[i], 0);
		memset(got, 7, 4 * MIB);
		assert_int_equal(gpu_write(dev, NULL, slab.base, got, 4 * MIB), 0);
		gpu_slab_free(dev, &slab);
	}
	assert_int_equal(gpu_slab_new(dev, (size_t)1 << 46, 1, &slab), -ENOMEM);
	free(got);
}

/* The source may be overwritten at once, also when the ring is far too small for all that is under way. */
static void written_bytes_are_copied_before_the_call_returns(void **state)
{
	static const size_t sizes[] = { 1, 7, 32767, 32768, 32769, MIB, MIB + 1, 20 * MIB + 5 };
	struct gpu_device *dev = device();
	uint8_t *src = malloc(21 * MIB), *got = malloc(21 * MIB), *want = malloc(21 * MIB);
	struct gpu_slab slab;
	gpu_stream s;

	(void)state;
	assert_true(src && got && want);
	assert_int_equal(gpu_stream_new(dev, &s), 0);
	assert_int_equal(gpu_slab_new(dev, 32 * MIB, 0, &slab), 0);
	for (unsigned i = 0; i < 8; i++) {
		fill(want, sizes[i], i);
		memcpy(src, want, sizes[i]);
		assert_int_equal(gpu_write(dev, s, (char *)slab.base + 3, src, sizes[i]), 0);
		memset(src, 0xee, sizes[i]);
		assert_int_equal(gpu_read(dev, s, got, (char *)slab.base + 3, sizes[i]), 0);
		assert_memory_equal(got, want, sizes[i]);
	}
	for (uint32_t i = 0; i < 5000; i++)
		assert_int_equal(gpu_write(dev, s, (uint32_t *)slab.base + i, &i, sizeof(i)), 0);
	assert_int_equal(gpu_read(dev, s, got, slab.base, 20000), 0);
	for (uint32_t i = 0; i < 5000; i++)
		assert_memory_equal(got + 4 * i, &i, 4);
	gpu_slab_free(dev, &slab);
	gpu_stream_free(dev, s);
	free(src);
	free(got);
	free(want);
}

struct writer {
	struct gpu_device *dev;
	char *base;
	uint32_t id;
	int rc;
};

static void *write_much(void *arg)
{
	struct writer *w = arg;
	uint32_t block[2048];
	gpu_stream s;

	w->rc = gpu_stream_new(w->dev, &s);
	for (uint32_t i = 0; i < 1000 && !w->rc; i++) {
		for (uint32_t j = 0; j < 2048; j++)
			block[j] = w->id << 24 | i;
		w->rc = gpu_write(w->dev, s, w->base + (size_t)i * sizeof(block), block, sizeof(block));
	}
	if (!w->rc)
		w->rc = gpu_sync(w->dev, s);
	gpu_stream_free(w->dev, s);
	return NULL;
}

static void threads_share_the_ring(void **state)
{
	const size_t each = 1000 * 8192;
	struct gpu_device *dev = device();
	uint32_t *got = malloc(each);
	struct writer w[4];
	pthread_t thread[4];
	struct gpu_slab slab;

	(void)state;
	assert_non_null(got);
	assert_int_equal(gpu_slab_new(dev, 4 * each, 0, &slab), 0);
	for (uint32_t t = 0; t < 4; t++) {
		w[t] = (struct writer){ dev, (char *)slab.base + t * each, t + 1, -1 };
		assert_int_equal(pthread_create(&thread[t], NULL, write_much, &w[t]), 0);
	}
	for (uint32_t t = 0; t < 4; t++) {
		pthread_join(thread[t], NULL);
		assert_int_equal(w[t].rc, 0);
		assert_int_equal(gpu_read(dev, NULL, got, w[t].base, each), 0);
		for (uint32_t i = 0; i < 1000 * 2048; i++)
			assert_int_equal(got[i], (t + 1) << 24 | i / 2048);
	}
	gpu_slab_free(dev, &slab);
	free(got);
}

static void copy_and_scrub_touch_what_they_are_told(void **state)
{
	struct gpu_device *dev = device();
	uint8_t want[4096], got[4096];
	struct gpu_slab slab;

	(void)state;
	fill(want, sizeof(want), 9);
	assert_int_equal(gpu_slab_new(dev, MIB, 0, &slab), 0);
	assert_int_equal(gpu_write(dev, NULL, slab.base, want, sizeof(want)), 0);
	assert_int_equal(gpu_copy(dev, NULL, (char *)slab.base + 2048, slab.base, 1000), 0);
	assert_int_equal(gpu_scrub(dev, NULL, (char *)slab.base + 100, 33), 0);
	assert_int_equal(gpu_scrub(dev, NULL, slab.base, 0), 0);
	assert_int_equal(gpu_read(dev, NULL, got, slab.base, sizeof(got)), 0);
	memcpy(want + 2048, want, 1000);
	memset(want + 100, 0, 33);
	assert_memory_equal(got, want, sizeof(want));
	gpu_slab_free(dev, &slab);
}

/* --- the device speaks ---------------------------------------------------------------------------------------------------- */

/* A word must not change before the work in front of it has finished: here large scrubs and a copy whose result is then there. */
static void signals_come_after_the_work_before_them(void **state)
{
	struct gpu_device *dev = device();
	const int fd = memfd_create("words", MFD_CLOEXEC);
	struct gpu_slab slab;
	uint64_t *word[200], value[200], *at, *host;
	void *pinned;
	gpu_stream s;

	(void)state;
	assert_int_equal(ftruncate(fd, 8192), 0);
	at = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(at, MAP_FAILED);
	assert_int_equal(gpu_register(dev, at, 8192), 0);
	assert_int_equal(gpu_register(dev, at, 8192), 0);	/* as a second pool's device does */
	gpu_unregister(dev, at);
	assert_int_equal(gpu_host_alloc(dev, 4096, &pinned), 0);
	host = pinned;
	assert_int_equal(host[511], 0);
	assert_int_equal(gpu_stream_new(dev, &s), 0);
	assert_int_equal(gpu_slab_new(dev, 512 * MIB, 0, &slab), 0);
	for (uint64_t round = 1; round <= 50; round++) {
		for (unsigned i = 0; i < 200; i++) {
			word[i] = &at[i * 5];
			value[i] = round << 32 | i;
		}
		for (unsigned i = 0; i < 4; i++)
			assert_int_equal(gpu_scrub(dev, s, slab.base, slab.bytes), 0);
		assert_int_equal(gpu_write(dev, s, slab.base, &round, sizeof(round)), 0);
		assert_int_equal(gpu_copy(dev, s, host, slab.base, sizeof(round)), 0);
		assert_int_equal(gpu_signal(dev, s, 200, word, value), 0);
		for (unsigned i = 0; i < 200; i++) {	/* in any order, but each behind the work */
			unsigned which = (i + (unsigned)round * 37) % 200;

			while (__atomic_load_n(word[which], __ATOMIC_ACQUIRE) != value[which])
				;
			assert_int_equal(__atomic_load_n(host, __ATOMIC_RELAXED), round);
		}
	}
	assert_int_equal(gpu_signal(dev, s, 0, word, value), 0);
	assert_int_equal(gpu_sync(dev, s), 0);
	gpu_slab_free(dev, &slab);
	gpu_stream_free(dev, s);
	gpu_host_free(dev, pinned);
	gpu_unregister(dev, at);
	munmap(at, 8192);
	close(fd);
}

static void notify_rings_once_the_work_is_done(void **state)
{
	struct gpu_device *dev = device();
	struct pollfd p = { .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .events = POLLIN };
	uint64_t count;
	gpu_stream s;

	(void)state;
	assert_int_equal(gpu_stream_new(dev, &s), 0);
	for (unsigned i = 0; i < 10; i++) {
		assert_int_equal(gpu_notify(dev, s, p.fd), 0);
		assert_int_equal(poll(&p, 1, 10000), 1);
		assert_int_equal(read(p.fd, &count, sizeof(count)), 8);
		assert_int_equal(count, 1);
	}
	gpu_stream_free(dev, s);
	close(p.fd);
}

/* --- two processes --------------------------------------------------------------------------------------------------------- */

enum { IPC_BYTES = 4 * MIB };

/* What the other process does with a handle that it reads from standard input; its exit status says where it failed. */
static int importer(void)
{
	uint8_t handle[GPU_HANDLE_BYTES], *want = malloc(IPC_BYTES), *got = malloc(IPC_BYTES);
	struct gpu_device *dev;
	void *base;

	if (!want || !got || read(0, handle, sizeof(handle)) != sizeof(handle))
		return 2;
	if (gpu_open(&dev, getenv("EBB_TEST_DEVICE") ? getenv("EBB_TEST_DEVICE") : "cuda:0"))
		return 3;
	if (gpu_slab_import(dev, handle, -1, IPC_BYTES, &base))
		return 4;
	fill(want, IPC_BYTES, 1);
	if (gpu_read(dev, NULL, got, base, IPC_BYTES) || memcmp(got, want, IPC_BYTES))
		return 5;
	fill(want, IPC_BYTES, 2);
	if (gpu_write(dev, NULL, base, want, IPC_BYTES) || gpu_sync(dev, NULL))
		return 6;
	gpu_slab_unmap(dev, base, IPC_BYTES);
	gpu_close(dev);
	return 0;
}

static int run_importer(const uint8_t *handle)
{
	int in[2], status;
	pid_t pid;

	assert_int_equal(pipe(in), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(in[0], 0);
		close(in[1]);
		execl("/proc/self/exe", "test_cuda", "import", (char *)NULL);
		_exit(99);
	}
	close(in[0]);
	assert_int_equal(write(in[1], handle, GPU_HANDLE_BYTES), GPU_HANDLE_BYTES);
	close(in[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void two_processes_map_one_slab(void **state)
{
	struct gpu_device *dev = device();
	uint8_t *bytes = malloc(IPC_BYTES), *want = malloc(IPC_BYTES), old[GPU_HANDLE_BYTES];
	struct gpu_slab slab;

	(void)state;
	assert_true(bytes && want);
	assert_int_equal(gpu_slab_new(dev, IPC_BYTES, 1, &slab), 0);
	for (unsigned round = 0; round < 2; round++) {
		fill(bytes, IPC_BYTES, 1);
		assert_int_equal(gpu_write(dev, NULL, slab.base, bytes, IPC_BYTES), 0);
		assert_int_equal(gpu_sync(dev, NULL), 0);
		assert_int_equal(run_importer(slab.handle), 0);
		fill(want, IPC_BYTES, 2);
		assert_int_equal(gpu_read(dev, NULL, bytes, slab.base, IPC_BYTES), 0);
		assert_memory_equal(bytes, want, IPC_BYTES);
	}
	memcpy(old, slab.handle, sizeof(old));
	gpu_slab_free(dev, &slab);
	assert_int_equal(run_importer(old), 4);		/* refused, not a crash */
	assert_int_equal(gpu_slab_new(dev, IPC_BYTES, 0, &slab), 0);	/* and this process is none the worse */
	gpu_slab_free(dev, &slab);
	free(bytes);
	free(want);
}

/* --- attend's two ways ------------------------------------------------------------------------------------------------------- */

/*
 * Many lanes: a CTA takes whole lanes, one after the other. One session alone: a CTA takes a chunk, the chunks are merged. The bits must
 * agree, also where a warp's part of a lane is nothing, or shorter than its ring, or as long, and where positions are read.
 */
static void split_and_whole_lanes_give_the_same_bits(void **state)
{
	static const uint32_t n[3] = { 1, 1, 1 }, len[] = { 700, 1500, 257, 1, 320, 192, 16, 384, 33, 96, 1600, 64, 128, 7, 256 };
	const struct world_spec spec = {
		.shape = { .n_kv_heads = 300, .group = 3, .head_dim = 64, .slot_type = GPU_BF16 }, .n_layers = 1, .n_sessions = 3,
		.window = 32, .max_slots = 1600, .n_heat = 1, .observe = 1, .n_credit = 1, .seed = 5, .places = 6,
	};
	const size_t bytes = spec.shape.n_kv_heads * 3 * 64 * sizeof(float);
	struct oracle_seq oracle[WORLD_MAX_SESSIONS];
	struct gpu_seq seq[WORLD_MAX_SESSIONS];
	struct world_tensor q, out;
	struct world *w;
	void *first;

	(void)state;
	(void)device();
	w = world_new(&spec);
	for (unsigned i = 0; i < 3; i++)
		world_fill(w, i, len, sizeof(len) / sizeof(len[0]), 1);
	world_put(w);
	world_tensor_new(w, &q, world_step(w, n, seq, oracle), 300 * 3 * 64, GPU_F32, 0, 2.0f);
	world_tensor_new(w, &out, (uint32_t)(q.bytes / bytes), 300 * 3 * 64, GPU_F32, 0, 0.0f);
	assert_int_equal(gpu_attend(w->step, w->stream, 0, &q.device, &out.device, 0.125f, NULL), 0);
	world_tensor_read(w, &out);
	first = malloc(out.bytes);
	assert_non_null(first);
	memcpy(first, out.host.data, out.bytes);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(gpu_step_set(w->step, w->stream, &spec.shape, w->map, &seq[i], 1, 1600), 0);
		assert_int_equal(gpu_attend(w->step, w->stream, 0, &q.device, &out.device, 0.125f, NULL), 0);
		world_tensor_read(w, &out);
		assert_memory_equal((char *)out.host.data + seq[i].row * bytes, (char *)first + seq[i].row * bytes, bytes);
	}
	for (unsigned i = 0; i < 3; i++) {
		assert_true(seq[i].newest);
		seq[i].newest = 0;	/* then positions are read, by another kernel */
	}
	assert_int_equal(gpu_step_set(w->step, w->stream, &spec.shape, w->map, seq, 3, 1600), 0);
	assert_int_equal(gpu_attend(w->step, w->stream, 0, &q.device, &out.device, 0.125f, NULL), 0);
	world_tensor_read(w, &out);
	assert_memory_equal(out.host.data, first, out.bytes);
	free(first);
	world_tensor_free(w, &q);
	world_tensor_free(w, &out);
	world_free(w);
}

/*
 * The same session once, 8, 64 and 40 times in a step: 8 lanes, 64, 512 and 320, which 16, 4, 1 and 1 CTAs a lane read on a GPU of 132
 * multiprocessors. Every copy must have the bits of the first.
 */
static void however_many_ctas_share_a_lane_the_bits_are_the_same(void **state)
{
	static const uint32_t copies[] = { 1, 8, 64, 40 }, len[][3] = { { 2300, 2049, 1999 }, { 700, 40, 2048 }, { 16, 257, 1 } };
	enum { WIDTH = 8 * 4 * 128, COPIES = 64 };

	(void)state;
	(void)device();
	for (unsigned round = 0; round < 6; round++) {
		const struct world_spec spec = {
			.shape = { .n_kv_heads = 8, .group = 4, .head_dim = 128, .slot_type = round < 3 ? GPU_BF16 : GPU_Q8 },
			.n_layers = 1, .n_sessions = 1, .window = 32, .max_slots = 2500, .n_credit = 1, .seed = 80 + round, .places = 81,
		};
		struct gpu_seq seq[WORLD_MAX_SESSIONS], many[COPIES];
		struct oracle_seq oracle[WORLD_MAX_SESSIONS];
		struct world_tensor k, v, q, out;
		struct world *w = world_new(&spec);
		const uint32_t n = 1;
		struct gpu_step *step;
		float *first = malloc(WIDTH * sizeof(float));

		assert_non_null(first);
		world_fill(w, 0, len[round % 3], 3, 1);
		world_put(w);
		(void)world_step(w, &n, seq, oracle);
		world_tensor_new(w, &k, seq[0].row + 1, 8 * 128, GPU_F32, 0, 1.0f);
		world_tensor_new(w, &v, seq[0].row + 1, 8 * 128, GPU_F32, 0, 1.0f);
		world_tensor_new(w, &q, COPIES, WIDTH, GPU_F32, 0, 2.0f);
		world_tensor_new(w, &out, COPIES, WIDTH, GPU_F32, 0, 0.0f);
		assert_int_equal(gpu_append(w->step, w->stream, 0, &k.device, &v.device), 0);
		assert_int_equal(gpu_step_new(w->dev, COPIES, COPIES, &step), 0);
		for (uint32_t i = 1; i < COPIES; i++)	/* one query for all */
			assert_int_equal(gpu_copy(w->dev, w->stream, (float *)q.device.data + (size_t)i * WIDTH, q.device.data,
						  WIDTH * sizeof(float)), 0);
		for (unsigned c = 0; c < 4; c++) {
			for (uint32_t i = 0; i < copies[c]; i++) {
				many[i] = seq[0];
				many[i].row = i;
			}
			assert_int_equal(gpu_step_set(step, w->stream, &spec.shape, w->map, many, copies[c], 2500), 0);
			assert_int_equal(gpu_attend(step, w->stream, 0, &q.device, &out.device, 0.0883883f, NULL), 0);
			world_tensor_read(w, &out);
			if (c == 0)
				memcpy(first, out.host.data, WIDTH * sizeof(float));
			for (uint32_t i = 0; i < WIDTH; i++)
				assert_true(first[i] > -100.0f && first[i] < 100.0f);
			for (uint32_t i = 0; i < copies[c]; i++)
				assert_memory_equal((float *)out.host.data + (size_t)i * WIDTH, first, WIDTH * sizeof(float));
		}
		free(first);
		world_tensor_free(w, &k);
		world_tensor_free(w, &v);
		world_tensor_free(w, &q);
		world_tensor_free(w, &out);
		gpu_step_free(w->dev, step);
		world_free(w);
	}
}

/*
 * Lanes whose logits fit into shared memory beside lanes whose logits do not: outputs, and heat of several kinds, of six sessions in one step (360
 * lanes, each read by one CTA of a GPU of 132 multiprocessors) and one after the other (60 lanes, each read by four). The second turn of each finds the
 * first one's heat.
 */
static void short_and_long_lanes_give_the_same_heat(void **state)
{
	static const uint32_t n[] = { 1, 1, 1, 1, 1, 1 }, len[] = { 120, 520, 33, 520, 700, 16, 257, 900, 3300, 2300, 64 };
	static const struct {
		uint32_t group, type, n_heat, heat[GPU_MAX_HEAT];
	} turn[] = {
		{ 4, GPU_BF16, 1, { EVICT_HEAT_SUM } }, { 3, GPU_Q8, 2, { EVICT_HEAT_MAX, EVICT_HEAT_SQUARES } }, { 16, GPU_BF16, 1, { EVICT_HEAT_SUM } },
		{ 7, GPU_BF16, 1, { EVICT_HEAT_SUM } }, { 1, GPU_F16, 1, { EVICT_HEAT_SUM } },
	};
	enum { KV = 60, SESSIONS = 6 };
	struct oracle_seq oracle[WORLD_MAX_SESSIONS];

	(void)state;
	(void)device();
	for (unsigned t = 0; t < sizeof(turn) / sizeof(turn[0]); t++) {
		const struct world_spec spec = {
			.shape = { .n_kv_heads = KV, .group = turn[t].group, .head_dim = 128, .slot_type = turn[t].type }, .n_layers = 1, .n_sessions = SESSIONS,
			.window = 32, .max_slots = 3300, .n_heat = turn[t].n_heat, .heat = { turn[t].heat[0], turn[t].heat[1] }, .observe = 1,
			.n_credit = 1, .seed = 91 + t, .places = 92,
		};
		const uint32_t width = KV * turn[t].group * 128;
		struct world *w[2];
		struct world_tensor q[2], out[2];

		for (unsigned i = 0; i < 2; i++) {
			struct gpu_seq seq[WORLD_MAX_SESSIONS];
			uint32_t rows;

			w[i] = world_new(&spec);
			for (unsigned j = 0; j < SESSIONS; j++)
				world_fill(w[i], j, len, sizeof(len) / sizeof(len[0]), 1);
			world_put(w[i]);
			rows = world_step(w[i], n, seq, oracle);
			world_tensor_new(w[i], &q[i], rows, width, GPU_F32, 0, 2.0f);
			world_tensor_new(w[i], &out[i], rows, width, GPU_F32, 0, 0.0f);
			for (unsigned k = 0; k < (i ? 2u * SESSIONS : 2u); k++) {
				assert_int_equal(gpu_step_set(w[i]->step, w[i]->stream, &spec.shape, w[i]->map, &seq[i ? k % SESSIONS : 0],
							  i ? 1 : SESSIONS, 3300), 0);
				assert_int_equal(gpu_attend(w[i]->step, w[i]->stream, 0, &q[i].device, &out[i].device, 0.0883883f, NULL), 0);
			}
			world_tensor_read(w[i], &out[i]);
			world_pull(w[i]);
		}
		assert_memory_equal(out[0].host.data, out[1].host.data, out[0].bytes);
		for (uint32_t s = 0; s < w[0]->n_slabs; s++)
			assert_memory_equal(w[0]->actual[w[0]->slab_order[s]], w[1]->actual[w[1]->slab_order[s]], w[0]->slab[w[0]->slab_order[s]].bytes);
		for (unsigned i = 0; i < 2; i++) {
			world_tensor_free(w[i], &q[i]);
			world_tensor_free(w[i], &out[i]);
			world_free(w[i]);
		}
	}
}

/* --- kernels that begin before the one in front has ended ------------------------------------------------------------------------ */

enum { CHAIN = 12 };

struct chain {
	struct gpu_step *step[CHAIN];
	struct world_tensor k[CHAIN], v[CHAIN], q[CHAIN], out[CHAIN];
	void *want[CHAIN];
};

/* Append and attend, step after step; with `slowly`, each waits for the one before. */
static void run_chain(struct world *w, struct chain *c, int slowly)
{
	for (unsigned t = 0; t < CHAIN; t++) {
		assert_int_equal(gpu_append(c->step[t], w->stream, 0, &c->k[t].device, &c->v[t].device), 0);
		assert_true(!slowly || gpu_sync(w->dev, w->stream) == 0);
		assert_int_equal(gpu_attend(c->step[t], w->stream, 0, &c->q[t].device, &c->out[t].device, 0.125f, NULL), 0);
		assert_true(!slowly || gpu_sync(w->dev, w->stream) == 0);
	}
}

/* One layer, lanes of few and of many slots, most of whose tokens overwrite slots: each step must see what the steps before wrote. */
static void slots_written_in_the_step_before_are_seen(void **state)
{
	static const uint32_t n[2][3] = { { 1, 1, 1 }, { 1, 2, 1 } }, len[] = { 20, 33, 700, 64 };

	(void)state;
	(void)device();
	for (unsigned round = 0; round < 6; round++) {
		const struct world_spec spec = {
			.shape = { .n_kv_heads = round % 2 ? 40 : 2, .group = 4, .head_dim = 128, .slot_type = round < 4 ? GPU_BF16 : GPU_Q8 },
			.n_layers = 1, .n_sessions = 3, .window = 32, .max_slots = 1600, .n_heat = 1, .observe = 1, .n_credit = 1,
			.seed = 50 + round, .places = 60 + round,
		};
		struct oracle_seq oracle[WORLD_MAX_SESSIONS];
		struct gpu_seq seq[WORLD_MAX_SESSIONS];
		struct world *w = world_new(&spec);
		struct chain c;

		for (unsigned i = 0; i < 3; i++)
			world_fill(w, i, len, 4, 2 * CHAIN);
		for (unsigned t = 0; t < CHAIN; t++) {
			const uint32_t *count = n[round / 2 % 2], rows = world_step(w, count, seq, oracle);

			world_tensor_new(w, &c.k[t], rows, spec.shape.n_kv_heads * 128, GPU_BF16, 0, 1.0f);
			world_tensor_new(w, &c.v[t], rows, spec.shape.n_kv_heads * 128, GPU_BF16, 0, 1.0f);
			world_tensor_new(w, &c.q[t], rows, spec.shape.n_kv_heads * 4 * 128, GPU_BF16, 0, 2.0f);
			world_tensor_new(w, &c.out[t], rows, spec.shape.n_kv_heads * 4 * 128, GPU_F32, 0, 0.0f);
			assert_int_equal(gpu_step_new(w->dev, 3, 1024, &c.step[t]), 0);
			assert_int_equal(gpu_step_set(c.step[t], w->stream, &spec.shape, w->map, seq, 3, 1600), 0);
			for (unsigned i = 0; i < 3; i++) {
				w->session[i].used += count[i];
				w->session[i].pos += (int32_t)count[i];
			}
		}
		for (unsigned again = 0; again < 20; again++) {
			world_put(w);
			assert_int_equal(gpu_sync(w->dev, w->stream), 0);
			run_chain(w, &c, !again);
			for (unsigned t = 0; t < CHAIN; t++) {
				world_tensor_read(w, &c.out[t]);
				if (!again) {
					c.want[t] = malloc(c.out[t].bytes);
					assert_non_null(c.want[t]);
					memcpy(c.want[t], c.out[t].host.data, c.out[t].bytes);
				}
				assert_memory_equal(c.out[t].host.data, c.want[t], c.out[t].bytes);
			}
		}
		for (unsigned t = 0; t < CHAIN; t++) {
			world_tensor_free(w, &c.k[t]);
			world_tensor_free(w, &c.v[t]);
			world_tensor_free(w, &c.q[t]);
			world_tensor_free(w, &c.out[t]);
			gpu_step_free(w->dev, c.step[t]);
			free(c.want[t]);
		}
		world_free(w);
	}
}

/* --- steps that are launched alike -------------------------------------------------------------------------------------------------- */

enum { PLACES = 8 };

/* Session `which[i]` in row i, and nobody in the rows behind. Returns the step's key. */
static uint64_t seat(struct world *w, struct gpu_step *step, const struct gpu_seq *seq, const unsigned *which, unsigned n, unsigned places,
		     uint32_t live_max)
{
	struct gpu_seq at[PLACES];

	for (unsigned i = 0; i < places; i++) {
		at[i] = i < n ? seq[which[i]] : (struct gpu_seq){ .table = NULL, .n = 1 };
		at[i].row = i;
	}
	assert_int_equal(gpu_step_set(step, w->stream, &w->spec.shape, w->map, at, places, live_max), 0);
	return gpu_step_key(step);
}

static void nobody_changes_nothing_and_keeps_the_key(void **state)
{
	static const uint32_t len[] = { 1500, 33, 700, 64 }, n[] = { 1, 1, 1 }, type[] = { GPU_BF16, GPU_Q8, GPU_F32 };
	static const unsigned all[] = { 0, 1, 2 }, last[] = { 2 };

	(void)state;
	(void)device();
	for (unsigned round = 0; round < 3; round++) {
		const struct world_spec spec = {
			.shape = { .n_kv_heads = 2, .group = 4, .head_dim = 128, .slot_type = type[round] },
			.n_layers = 1, .n_sessions = 3, .window = 32, .max_slots = 1600, .n_heat = 1, .observe = 1, .n_credit = 1,
			.seed = 90 + round, .places = 91 + round,
		};
		struct gpu_seq seq[WORLD_MAX_SESSIONS];
		struct oracle_seq oracle[WORLD_MAX_SESSIONS];
		struct world *w = world_new(&spec);
		struct world_tensor k, v, q, out, padded;
		const size_t row = 2 * 4 * 128 * sizeof(float);
		struct gpu_step *step;
		uint64_t key[5];

		for (unsigned i = 0; i < 3; i++)
			world_fill(w, i, len, 4, 5);
		world_put(w);
		(void)world_step(w, n, seq, oracle);
		assert_int_equal(gpu_step_new(w->dev, PLACES, PLACES, &step), 0);
		world_tensor_new(w, &k, PLACES, 2 * 128, GPU_BF16, 0, 1.0f);
		world_tensor_new(w, &v, PLACES, 2 * 128, GPU_BF16, 0, 1.0f);
		world_tensor_new(w, &q, PLACES, 2 * 4 * 128, GPU_BF16, 0, 2.0f);
		world_tensor_new(w, &out, PLACES, 2 * 4 * 128, GPU_F32, 0, 0.0f);
		world_tensor_new(w, &padded, PLACES, 2 * 4 * 128, GPU_F32, 0, 0.0f);
		key[0] = seat(w, step, seq, all, 3, 3, 1600);
		assert_int_equal(gpu_append(step, w->stream, 0, &k.device, &v.device), 0);
		assert_int_equal(gpu_attend(step, w->stream, 0, &q.device, &out.device, 0.0883883f, NULL), 0);
		key[1] = seat(w, step, seq, all, 3, PLACES, 1600);
		assert_int_equal(gpu_append(step, w->stream, 0, &k.device, &v.device), 0);
		assert_int_equal(gpu_attend(step, w->stream, 0, &q.device, &padded.device, 0.0883883f, NULL), 0);
		key[2] = seat(w, step, seq, last, 1, PLACES, 1590);
		key[3] = seat(w, step, seq, last, 1, PLACES, 3200);
		key[4] = seat(w, step, seq, all, 3, 3, 1600);
		assert_true(key[0] && key[1] && key[3]);
		assert_true(key[0] != key[1] && key[1] == key[2]);
		assert_true(key[3] != key[2]);
		assert_true(key[4] && key[4] != key[1]);	/* key[0] again, unless scratch has grown meanwhile */
		world_tensor_read(w, &out);
		world_tensor_read(w, &padded);
		assert_memory_equal(padded.host.data, out.host.data, 3 * row);
		for (size_t i = 3 * row; i < PLACES * row; i++)
			assert_int_equal(((uint8_t *)padded.host.data)[i], 0xff);
		world_tensor_free(w, &k);
		world_tensor_free(w, &v);
		world_tensor_free(w, &q);
		world_tensor_free(w, &out);
		world_tensor_free(w, &padded);
		gpu_step_free(w->dev, step);
		world_free(w);
	}
}

/* Sessions of eight tiles each over lanes of up to 256K slots: a room for each tile and KV head would be 279 GB. */
static void scratch_does_not_grow_with_the_tiles_of_a_step(void **state)
{
	enum { SESSIONS = 260, TOKENS = 32 };
	const struct gpu_shape shape = { .n_kv_heads = 8, .group = 4, .head_dim = 128, .slot_type = GPU_BF16 };
	static struct gpu_seq seq[SESSIONS];
	struct gpu_device *dev = device();
	struct gpu_step *step;
	struct gpu_map *map;

	(void)state;
	for (uint32_t i = 0; i < SESSIONS; i++)	/* of nobody: what is asked for depends on their numbers alone */
		seq[i] = (struct gpu_seq){ .row = i * TOKENS, .n = TOKENS };
	assert_int_equal(gpu_map_new(dev, 1, 30, &map), 0);
	assert_int_equal(gpu_step_new(dev, SESSIONS, SESSIONS * TOKENS, &step), 0);
	assert_int_equal(gpu_step_set(step, NULL, &shape, map, seq, SESSIONS, 1u << 18), 0);
	assert_int_equal(gpu_sync(dev, NULL), 0);
	gpu_step_free(dev, step);
	gpu_map_free(dev, map);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_that_are_none_are_refused),
		cmocka_unit_test(without_a_gpu_nothing_opens_and_nothing_crashes),
		cmocka_unit_test(a_device_opens_by_every_form_of_its_name),
		cmocka_unit_test(slabs_begin_as_zeros),
		cmocka_unit_test(written_bytes_are_copied_before_the_call_returns),
		cmocka_unit_test(threads_share_the_ring),
		cmocka_unit_test(copy_and_scrub_touch_what_they_are_told),
		cmocka_unit_test(signals_come_after_the_work_before_them),
		cmocka_unit_test(notify_rings_once_the_work_is_done),
		cmocka_unit_test(two_processes_map_one_slab),
		cmocka_unit_test(split_and_whole_lanes_give_the_same_bits),
		cmocka_unit_test(however_many_ctas_share_a_lane_the_bits_are_the_same),
		cmocka_unit_test(short_and_long_lanes_give_the_same_heat),
		cmocka_unit_test(slots_written_in_the_step_before_are_seen),
		cmocka_unit_test(nobody_changes_nothing_and_keeps_the_key),
		cmocka_unit_test(scratch_does_not_grow_with_the_tiles_of_a_step),
	};

	if (argc == 2 && strcmp(argv[1], "import") == 0)
		return importer();
	setenv("EBB_TEST_DEVICE", "cuda:0", 0);		/* the world's device too */
	return cmocka_run_group_tests_name("cuda", tests, NULL, NULL);
}
