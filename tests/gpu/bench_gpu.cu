/*
 * The device operations against the memory's speed, through gpu.h. Each figure is the median of 11 replays of a CUDA graph whose kernels walk over
 * more memory than the L2 holds; beside it stands the plain read of as many bytes at the best rate of this very run. K and V are random,
 * pages scattered at random over slabs of 4 GiB. BENCH=name[,name] runs a part: attend ragged long latency chunk append select
 * policies compact small peer.
 * Without a GPU it ends with 77.
 */
#include <cuda_runtime.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "evict/evict.h"
#include "gpu/gpu.h"
#include "tests/bench/bench.h"

#define SHIFT 32u
#define SLAB_BYTES (1ull << SHIFT)
#define MAX_SLABS 8u
#define REPLAYS 11

static struct gpu_device *dev;
static gpu_stream stream;
static struct gpu_map *map;
static struct gpu_slab slab[MAX_SLABS];
static unsigned n_slabs;
static uint64_t pool_at;
static double read_rate, copy_rate;	/* bytes a second */

static void must(int rc, const char *what)
{
	if (rc) {
		fprintf(stderr, "%s: %s\n", what, strerror(-rc));
		exit(1);
	}
}

static void cu(cudaError_t e, const char *what)
{
	if (e != cudaSuccess) {
		fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
		exit(1);
	}
}

static bool wanted(const char *part)
{
	const char *list = getenv("BENCH"), *at = list ? strstr(list, part) : NULL;
	size_t n = strlen(part);

	return !list || !*list || (at && (at == list || at[-1] == ',') && (!at[n] || at[n] == ','));
}

static uint64_t random_state = 88172645463325252ull;
static uint32_t draw(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 20);
}

/* --- measuring ---------------------------------------------------------------------------------------------------------------- */

/* Seconds of one of the n calls that `record` enqueues. */
static double time_graph(unsigned n, const std::function<void(void)> &record)
{
	cudaStream_t s = (cudaStream_t)stream;
	cudaEvent_t from, to;
	cudaGraph_t graph;
	cudaGraphExec_t exec;
	std::vector<float> t;

	cu(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), "capture");
	record();
	cu(cudaStreamEndCapture(s, &graph), "capture");
	cu(cudaGraphInstantiate(&exec, graph, 0), "graph");
	cu(cudaEventCreate(&from), "event");
	cu(cudaEventCreate(&to), "event");
	for (int i = 0; i < REPLAYS + 2; i++) {
		float ms;

		cu(cudaEventRecord(from, s), "record");
		cu(cudaGraphLaunch(exec, s), "launch");
		cu(cudaEventRecord(to, s), "record");
		cu(cudaEventSynchronize(to), "replay");
		cu(cudaEventElapsedTime(&ms, from, to), "elapsed");
		if (i >= 2)
			t.push_back(ms);
	}
	std::sort(t.begin(), t.end());
	cudaGraphExecDestroy(exec);
	cudaGraphDestroy(graph);
	cudaEventDestroy(from);
	cudaEventDestroy(to);
	return (double)t[t.size() / 2] * 1e-3 / n;
}

static __global__ void hold(uint64_t ns)
{
	uint64_t from, now;

	asm volatile("mov.u64 %0, %globaltimer;" : "=l"(from));
	do
		asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
	while (now - from < ns);
}

/*
 * Seconds of what `work` enqueues, between events. hold_us: so long the device is kept from it, so that the host's part (filling lists) is over when it
 * begins; 0: an idle device begins at once, and waits for the host where that is slower.
 */
static double time_events(const std::function<void(void)> &work, unsigned hold_us)
{
	cudaEvent_t e[2];
	float ms;

	cudaEventCreate(&e[0]);
	cudaEventCreate(&e[1]);
	if (hold_us)
		hold<<<1, 1, 0, (cudaStream_t)stream>>>(hold_us * 1000ull);
	cudaEventRecord(e[0], (cudaStream_t)stream);
	work();
	cudaEventRecord(e[1], (cudaStream_t)stream);
	cu(cudaEventSynchronize(e[1]), "event");
	cu(cudaEventElapsedTime(&ms, e[0], e[1]), "elapsed");
	cudaEventDestroy(e[0]);
	cudaEventDestroy(e[1]);
	return ms * 1e-3;
}

template <int U> static __global__ void read_plain(const uint4 *p, size_t n, unsigned *out)
{
	size_t per = n / gridDim.x;
	uint32_t x = 0;

	p += per * blockIdx.x;
	for (size_t i = threadIdx.x; i + (U - 1) * blockDim.x < per; i += U * blockDim.x) {
		uint4 v[U];

#pragma unroll
		for (int u = 0; u < U; u++)
			asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
				     : "=r"(v[u].x), "=r"(v[u].y), "=r"(v[u].z), "=r"(v[u].w) : "l"(p + i + u * blockDim.x));
#pragma unroll
		for (int u = 0; u < U; u++)
			x += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
	}
	if (x == 0x12345678u)
		*out = x;
}

static void grow_pool(unsigned slabs)
{
	while (n_slabs < slabs) {
		if (n_slabs == MAX_SLABS)
			must(-ENOSPC, "pool");
		must(gpu_slab_new(dev, SLAB_BYTES, 1, &slab[n_slabs]), "slab");
		must(gpu_map_set(map, stream, n_slabs, slab[n_slabs].base), "map");
		n_slabs++;
	}
}

static void measure_ceilings(void)
{
	static const struct { int grid, threads; } shape[] = { { 132 * 4, 512 }, { 132 * 8, 512 }, { 4096, 256 }, { 16384, 256 }, { 65536, 256 } };
	cudaStream_t s = (cudaStream_t)stream;
	unsigned *out;
	double t;

	cu(cudaMalloc(&out, 4), "malloc");
	grow_pool(2);
	for (unsigned u = 0; u < 10; u++) {
		t = time_graph(2, [&] {
			for (unsigned i = 0; i < 2; i++)
				if (u % 2)
					read_plain<8><<<shape[u / 2].grid, shape[u / 2].threads, 0, s>>>((const uint4 *)slab[i].base, SLAB_BYTES / 16, out);
				else
					read_plain<4><<<shape[u / 2].grid, shape[u / 2].threads, 0, s>>>((const uint4 *)slab[i].base, SLAB_BYTES / 16, out);
		});
		read_rate = std::max(read_rate, (double)SLAB_BYTES / t);
	}
	for (unsigned i = 0; i < REPLAYS; i++) {	/* no graph: there copies go another way, which is slower */
		t = time_events([&] { must(gpu_copy(dev, stream, slab[0].base, slab[1].base, SLAB_BYTES), "copy"); }, 0);
		copy_rate = std::max(copy_rate, 2.0 * (double)SLAB_BYTES / t);
	}
	bench_report("plain read, 8 GiB", read_rate * 1e-9, "GB/s", NAN, "", -1);
	bench_report("device copy, read + written", copy_rate * 1e-9, "GB/s", NAN, "", -1);
	cudaFree(out);
}

/* A figure in GB/s beside the read ceiling; goal: least share of it, 0 none. */
static void report_rate(const char *name, double seconds, double bytes, double ceiling, double goal)
{
	char text[32] = "";

	printf("%-58s %9.2f us %6.1f %%\n", name, seconds * 1e6, 100 * bytes / seconds / ceiling);
	if (goal > 0)
		snprintf(text, sizeof(text), ">= %.3g %%", goal * 100);
	bench_report(name, bytes / seconds * 1e-9, "GB/s", ceiling * 1e-9, text, goal > 0 ? bytes / seconds >= goal * ceiling : -1);
}

static void report_time(const char *name, double seconds, double ceiling, double goal_us)
{
	char text[32] = "";

	if (goal_us > 0)
		snprintf(text, sizeof(text), "<= %.3g us", goal_us);
	printf("%-58s %9.2f us\n", name, seconds * 1e6);
	bench_report(name, seconds * 1e6, "us", ceiling * 1e6, text, goal_us > 0 ? seconds * 1e6 <= goal_us : -1);
}

/* --- a pool with sessions ------------------------------------------------------------------------------------------------------ */

struct shape {
	const char *name;
	uint32_t sessions, kv, group, d, live, layers, type, n, ragged;
	double goal, goal_heat;		/* shares of the read ceiling */
};

struct bench {
	const struct shape *sh;
	struct gpu_shape gs;
	struct gpu_table head;
	uint32_t longest;
	double slots;			/* of one layer */
	uint32_t run;			/* pages of a lane that lie side by side; 0: 1 */
	uint32_t heats, arrays;		/* that blocks and credit blocks have room for; 0: 1 */
	std::vector<struct gpu_lane> lane;	/* [session][lane] */
	std::vector<void *> table;
	std::vector<struct gpu_seq> seq;
	struct gpu_step *step;
	struct gpu_slab io;
	struct gpu_tensor k, q, out;
};

static uint32_t place(uint64_t bytes)
{
	bytes = (bytes + GPU_UNIT - 1) / GPU_UNIT * GPU_UNIT;
	if (pool_at % SLAB_BYTES + bytes > SLAB_BYTES)
		pool_at = (pool_at / SLAB_BYTES + 1) * SLAB_BYTES;
	grow_pool((unsigned)((pool_at + bytes + SLAB_BYTES - 1) / SLAB_BYTES));
	pool_at += bytes;
	return (uint32_t)((pool_at - bytes) / GPU_UNIT);
}

/* n ids; those of `run` neighbours lie side by side, the runs anywhere. */
static std::vector<uint32_t> places(size_t n, uint64_t bytes, uint32_t run)
{
	std::vector<uint32_t> id(n);

	for (size_t i = 0; i < n; i++)
		id[i] = place(bytes);
	for (size_t i = n / run; i > 1; i--)
		std::swap_ranges(id.begin() + (i - 1) * run, id.begin() + i * run, id.begin() + draw() % i * run);
	return id;
}

static __global__ void fill_pages(char *base, size_t n_words, uint32_t type)
{
	for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n_words; i += (size_t)gridDim.x * blockDim.x) {
		uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull;

		x ^= x >> 29;
		x *= 0xbf58476d1ce4e5b9ull;
		x ^= x >> 32;	/* two numbers of +-[1/8, 2), or four small integers */
		if (type == GPU_F32)
			((uint32_t *)base)[i] = (uint32_t)x & 0x80ffffffu | 0x3e000000u;
		else if (type == GPU_Q8)
			((uint32_t *)base)[i] = (uint32_t)x & 0x1f1f1f1fu | 0x20002000u;	/* as parameters: small positive halves */
		else
			((uint32_t *)base)[i] = (uint32_t)x & (type == GPU_BF16 ? 0x80ff80ffu : 0x87ff87ffu) | (type == GPU_BF16 ? 0x3e003e00u : 0x30003000u);
	}
}

/* Lengths of one layer's lanes: all the same, or 16 .. 4096 with the same sum. */
static std::vector<uint32_t> lengths(const struct shape *sh, size_t n)
{
	std::vector<uint32_t> len(n, sh->live);
	int64_t left = 0;

	if (!sh->ragged)
		return len;
	for (size_t i = 0; i < n; i++) {
		len[i] = 16 + draw() % 4081;
		left += (int64_t)sh->live - len[i];
	}
	while (left) {	/* spread the difference */
		uint32_t &l = len[draw() % n];
		int64_t step = left > 0 ? std::min<int64_t>(left, 64) : std::max<int64_t>(left, -64);

		if ((int64_t)l + step < 16 || (int64_t)l + step > 4096)
			continue;
		l = (uint32_t)((int64_t)l + step);
		left -= step;
	}
	return len;
}

/* Tables of all sessions, shared and private alike in one. Positions are 0: every query sees every slot. */
static void make_tables(struct bench *b, bool with_pages)
{
	const struct shape *sh = b->sh;
	struct gpu_table *t = &b->head;
	size_t lanes = (size_t)sh->layers * sh->kv, n = lanes * sh->sessions, first_page;
	std::vector<uint32_t> page, block, credit;
	std::vector<char> image;

	b->lane.assign(n, {});
	b->longest = 0;
	for (uint32_t l = 0; l < sh->layers; l++) {
		std::vector<uint32_t> len = lengths(sh, (size_t)sh->sessions * sh->kv);

		for (uint32_t i = 0; i < sh->sessions; i++)
			for (uint32_t h = 0; h < sh->kv; h++) {
				uint32_t x = len[(size_t)i * sh->kv + h];

				b->lane[i * lanes + l * sh->kv + h] = { x - std::min(x, sh->n), std::min(x, sh->n) };
				b->longest = std::max(b->longest, x);
			}
	}
	b->slots = (double)sh->sessions * sh->kv * sh->live;
	*t = (struct gpu_table){ (uint32_t)lanes, 32, gpu_pages_for(b->longest), gpu_blocks_for(b->longest), 1, { EVICT_HEAT_SUM }, 1 };
	block = places(n * t->max_blocks, gpu_block_bytes(b->heats ? b->heats : 1), 1);
	credit = places(n * t->max_blocks, gpu_block_bytes(b->arrays ? b->arrays : 1), 1);
	for (uint64_t at = 0; at < pool_at; at += SLAB_BYTES)
		must(gpu_scrub(dev, stream, slab[at / SLAB_BYTES].base, (size_t)std::min<uint64_t>(SLAB_BYTES, pool_at - at)), "scrub");
	pool_at = (pool_at + (1 << 20)) / (1 << 20) * (1 << 20);
	first_page = pool_at;
	page.assign(n * t->max_pages, 0);
	if (with_pages) {
		std::vector<uint32_t> id;
		size_t need = 0, at = 0;

		for (size_t i = 0; i < n; i++)
			need += gpu_pages_for(b->lane[i].len + b->lane[i].fresh);
		id = places(need, gpu_page_bytes(sh->type, sh->d), b->run ? b->run : 1);
		for (size_t i = 0; i < n; i++)
			for (uint32_t p = 0; p < gpu_pages_for(b->lane[i].len + b->lane[i].fresh); p++)
				page[i * t->max_pages + p] = id[at++];
		for (uint64_t s = 0; s < n_slabs; s++) {
			uint64_t from = s * SLAB_BYTES < first_page ? first_page - std::min<uint64_t>(first_page, s * SLAB_BYTES) : 0;

			if (from < SLAB_BYTES)
				fill_pages<<<2048, 256, 0, (cudaStream_t)stream>>>((char *)slab[s].base + from, (SLAB_BYTES - from) / 4, sh->type);
		}
	}
	image.assign(gpu_table_private_bytes(t), 0);
	for (uint32_t i = 0; i < sh->sessions; i++) {
		memcpy(image.data(), t, sizeof(*t));
		memcpy(image.data() + gpu_table_lanes(), &b->lane[i * lanes], lanes * sizeof(struct gpu_lane));
		memcpy(image.data() + gpu_table_pages(t), &page[i * lanes * t->max_pages], lanes * t->max_pages * 4);
		memcpy(image.data() + gpu_table_blocks(t), &block[i * lanes * t->max_blocks], lanes * t->max_blocks * 4);
		memcpy(image.data() + gpu_table_credits(t), &credit[i * lanes * t->max_blocks], lanes * t->max_blocks * 4);
		b->table.push_back(gpu_at(gpu_map_bases(map), SHIFT, place(image.size())));
		must(gpu_write(dev, stream, b->table[i], image.data(), image.size()), "table");
	}
}

static void write_headers(const struct bench *b)
{
	for (void *t : b->table)
		must(gpu_write(dev, stream, t, &b->head, sizeof(b->head)), "header");
}

static void make_step(struct bench *b)
{
	const struct shape *sh = b->sh;
	uint32_t rows = sh->sessions * sh->n, width = sh->kv * sh->group * sh->d;
	size_t bytes = (size_t)rows * width * 2;

	must(gpu_slab_new(dev, 2 * bytes + 256, 0, &b->io), "tensors");
	fill_pages<<<256, 256, 0, (cudaStream_t)stream>>>((char *)b->io.base, bytes / 4, GPU_BF16);
	b->q = (struct gpu_tensor){ b->io.base, GPU_BF16, width };
	b->k = (struct gpu_tensor){ b->io.base, GPU_BF16, sh->kv * sh->d };
	b->out = (struct gpu_tensor){ (char *)b->io.base + bytes, GPU_BF16, width };
	must(gpu_step_new(dev, sh->sessions, rows, &b->step), "step");
	for (uint32_t i = 0; i < sh->sessions; i++)
		b->seq.push_back({ b->table[i], i * sh->n, sh->n, 0, (int32_t)(sh->live - sh->n), 0, 1, 0 });
	must(gpu_step_set(b->step, stream, &b->gs, map, b->seq.data(), sh->sessions, b->longest), "step_set");
}

/* How often a graph walks over all layers. */
static uint32_t rounds(const struct shape *sh) { return sh->n == 1 ? (31 + sh->layers) / sh->layers : 1; }

static double time_attend(struct bench *b, uint32_t observe)
{
	b->head.observe = observe;
	write_headers(b);
	must(gpu_step_set(b->step, stream, &b->gs, map, b->seq.data(), b->sh->sessions, b->longest), "step_set");
	/* 32 layers at least, as a model has: what a graph costs before its first kernel is not a layer's. */
	return time_graph(b->sh->layers * rounds(b->sh), [&] {
		for (uint32_t l = 0; l < b->sh->layers * rounds(b->sh); l++)
			must(gpu_attend(b->step, stream, l % b->sh->layers, &b->q, &b->out, 0.02f, NULL), "attend");
	});
}

static void open_shape(struct bench *b, const struct shape *sh)
{
	b->sh = sh;
	b->gs = { sh->kv, sh->group, sh->d, sh->type };
	pool_at = 0;
	make_tables(b, true);
	make_step(b);
	must(gpu_sync(dev, stream), "sync");
}

static void close_shape(struct bench *b)
{
	gpu_step_free(dev, b->step);
	gpu_slab_free(dev, &b->io);
}

/* Bytes of K and V alone, as everyone counts them. */
static double kv_bytes(const struct bench *b)
{
	return b->slots * (double)gpu_page_bytes(b->sh->type, b->sh->d) / GPU_PAGE_SLOTS;
}

#include "tests/gpu/bench_keep.cuh"

static void bench_attend(const struct shape *sh)
{
	char name[128];
	struct kept_times kept;
	struct bench b = {};
	double t;

	open_shape(&b, sh);
	t = time_attend(&b, 0);
	snprintf(name, sizeof(name), "attend %s, no heat", sh->name);
	report_rate(name, t, kv_bytes(&b), read_rate, sh->goal);
	t = time_attend(&b, 1);
	snprintf(name, sizeof(name), "attend %s, heat", sh->name);
	report_rate(name, t, kv_bytes(&b), read_rate, 0);
	kept = time_kept(&b);
	snprintf(name, sizeof(name), "attend %s, heat later", sh->name);
	if (kept.step > 0) {
		print_kept(&b, &kept);
		report_rate(name, together(&b, &kept), kv_bytes(&b), read_rate, sh->goal_heat);
	}
	close_shape(&b);
}

static void bench_latency(const struct shape *sh, double goal)
{
	struct kept_times kept;
	char name[128];
	struct bench b = {};

	open_shape(&b, sh);
	for (uint32_t heat = 0; heat < 2; heat++) {
		snprintf(name, sizeof(name), "attend %s, %s", sh->name, heat ? "heat" : "no heat");
		report_time(name, time_attend(&b, heat), kv_bytes(&b) / read_rate, 0);
	}
	snprintf(name, sizeof(name), "attend %s, heat later", sh->name);
	kept = time_kept(&b);
	if (kept.step > 0) {
		print_kept(&b, &kept);
		report_time(name, together(&b, &kept), kv_bytes(&b) / read_rate, goal);
	}
	close_shape(&b);
}

static void bench_append(const struct shape *sh)
{
	char name[128];
	struct bench b = {};

	open_shape(&b, sh);
	snprintf(name, sizeof(name), "append %s", sh->name);
	report_time(name, time_graph(sh->layers, [&] {
		for (uint32_t l = 0; l < sh->layers; l++)
			must(gpu_append(b.step, stream, l, &b.k, &b.k), "append");
	}), (double)sh->sessions * sh->n * sh->kv * 4 * gpu_row_bytes(sh->type, sh->d) / copy_rate, 0);
	close_shape(&b);
}

#include "tests/gpu/bench_peer.cuh"
#include "tests/gpu/bench_select.cuh"

/* --- small change --------------------------------------------------------------------------------------------------------------- */

static void bench_small(void)
{
	enum { N = 2000 };
	uint64_t *word, value = 0, t;
	char bytes[2048] = { 0 };
	void *at;

	must(gpu_host_alloc(dev, 4096, &at), "host");
	word = (uint64_t *)at;
	t = bench_ns();
	for (int i = 0; i < N; i++)
		must(gpu_write(dev, stream, slab[0].base, bytes, sizeof(bytes)), "write");
	report_time("write of 2 KiB, to enqueue it", (double)(bench_ns() - t) * 1e-9 / N, NAN, 0);
	must(gpu_sync(dev, stream), "sync");
	t = bench_ns();
	for (int i = 0; i < N; i++) {
		value++;
		must(gpu_signal(dev, stream, 1, &word, &value), "signal");
		while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value)
			;
	}
	report_time("signal of 1 word, until the CPU sees it", (double)(bench_ns() - t) * 1e-9 / N, NAN, 0);
	gpu_host_free(dev, at);
}

int main(void)
{
	/* name; sessions, KV heads, group, head_dim, live, layers, slots, queries, ragged; goals */
	static const struct shape attend[] = {
		{ "64 x 8, G4, d128, 2048, bf16", 64, 8, 4, 128, 2048, 16, GPU_BF16, 1, 0, 0.93, 0.88 },
		{ "64 x 8, G1, d128, 2048, bf16", 64, 8, 1, 128, 2048, 16, GPU_BF16, 1, 0, 0.93, 0.88 },
		{ "256 x 8, G4, d128, 1024, bf16", 256, 8, 4, 128, 1024, 8, GPU_BF16, 1, 0, 0.93, 0.88 },
		{ "64 x 8, G8, d128, 2048, bf16", 64, 8, 8, 128, 2048, 16, GPU_BF16, 1, 0, 0.925, 0.849 },
		{ "64 x 3, G3, d64, 1024, bf16", 64, 3, 3, 64, 1024, 60, GPU_BF16, 1, 0, 0.766, 0.672 },
		{ "40 x 8, G4, d128, 2048, bf16", 40, 8, 4, 128, 2048, 16, GPU_BF16, 1, 0, 0, 0 },
		{ "64 x 8, G4, d256, 1024, bf16", 64, 8, 4, 256, 1024, 16, GPU_BF16, 1, 0, 0, 0 },
		{ "64 x 8, G16, d128, 2048, bf16", 64, 8, 16, 128, 2048, 16, GPU_BF16, 1, 0, 0, 0 },
		{ "64 x 8, G4, d128, 2048, q8", 64, 8, 4, 128, 2048, 16, GPU_Q8, 1, 0, 0.85, 0 },
		{ "256 x 8, G4, d128, 1024, q8", 256, 8, 4, 128, 1024, 8, GPU_Q8, 1, 0, 0.85, 0 },
	};
	static const struct shape ragged[] = {
		{ "64 x 8, G4, d128, 16..4096, bf16", 64, 8, 4, 128, 2048, 16, GPU_BF16, 1, 1, 0, 0 },
	};
	/* Full caches of the page "Serving": logits beyond shared memory where one CTA has a lane. */
	static const struct shape longer = { "19 x 8, G4, d128, 16384, bf16", 19, 8, 4, 128, 16384, 6, GPU_BF16, 1, 0, 0, 0 };
	static const struct shape latency[] = {
		{ "1 x 8, G4, d128, 2048, bf16", 1, 8, 4, 128, 2048, 32, GPU_BF16, 1, 0, 0, 0 },
		{ "1 x 3, G3, d64, 1024, bf16", 1, 3, 3, 64, 1024, 30, GPU_BF16, 1, 0, 0, 0 },
		{ "8 x 8, G4, d128, 2048, bf16", 8, 8, 4, 128, 2048, 32, GPU_BF16, 1, 0, 0, 0 },
		{ "1 x 8, G4, d128, 2048, bf16, 4 queries", 1, 8, 4, 128, 2048, 32, GPU_BF16, 4, 0, 0, 0 },
	};
	/* Those of attend.md. */
	static const struct shape *peer[] = { &attend[0], &attend[1], &attend[2], &latency[0], &attend[3], &attend[4] };
	static const struct shape chunk[] = {
		{ "64 x 8, G4, d128, 2048, bf16, 4 queries", 64, 8, 4, 128, 2048, 16, GPU_BF16, 4, 0, 0, 0 },
		{ "8 x 8, G4, d128, 2048, bf16, 64 queries", 8, 8, 4, 128, 2048, 16, GPU_BF16, 64, 0, 0, 0 },
		{ "1 x 8, G4, d128, 4096, bf16, 512 queries", 1, 8, 4, 128, 4096, 8, GPU_BF16, 512, 0, 0, 0 },
	};
	const char *name = getenv("EBB_TEST_DEVICE");

	if (!gpu_count())
		return 77;
	must(gpu_open(&dev, name ? name : "cuda:0"), "open");
	must(gpu_stream_new(dev, &stream), "stream");
	must(gpu_map_new(dev, MAX_SLABS, SHIFT, &map), "map");
	printf("%s\n", gpu_info(dev)->name);
	measure_ceilings();
	for (const struct shape &s : attend)
		if (wanted("attend"))
			bench_attend(&s);
	for (const struct shape &s : ragged)
		if (wanted("ragged"))
			bench_attend(&s);
	if (wanted("long"))
		bench_attend(&longer);
	for (const struct shape &s : latency)
		if (wanted("latency"))
			bench_latency(&s, s.kv == 8 && s.sessions == 1 && s.n == 1 ? 6 : 0);
	for (const struct shape &s : chunk)
		if (wanted("chunk"))
			bench_latency(&s, 0);
	for (const struct shape *s : peer)
		if (wanted("peer") && peer_new)
			bench_peer(s);
	if (wanted("peer") && !peer_new)
		printf("FlashInfer: not linked; tools/setup.sh flashinfer gets it\n");
	if (wanted("append"))
		bench_append(&attend[0]);
	if (wanted("select"))
		bench_select();
	if (wanted("policies"))
		bench_policies();
	if (wanted("compact"))
		bench_compact();
	if (wanted("small"))
		bench_small();
	return 0;
}
