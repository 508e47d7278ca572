/*
 * Part of bench_gpu.cu: attend beside FlashInfer's batch decode (peer_flashinfer.cuh) on as many bytes, in one run. Each of its two kernels
 * with each of its two layouts of a page is tried, and the fastest counts. Its output is compared with a float64 reference first.
 */
#include <cuda_bf16.h>

#include "tests/gpu/peer_flashinfer.cuh"

#define PEER_SCALE 0.02f

static double from_bf16(uint16_t x)
{
	uint32_t bits = (uint32_t)x << 16;
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

static std::vector<uint16_t> fetched(const void *from, size_t n)
{
	std::vector<uint16_t> to(n);

	cu(cudaMemcpy(to.data(), from, 2 * n, cudaMemcpyDeviceToHost), "copy");
	return to;
}

/* ||out - reference|| / ||reference|| of the last head of the last session. page: the session's pages of this layer. */
static double peer_error(const struct peer_shape *s, const char *kv, const int32_t *page, const void *q, const void *out)
{
	size_t d = s->head_dim, half = PEER_PAGE * s->kv_heads * d, row = s->hnd ? d : s->kv_heads * d;
	size_t first = (s->kv_heads - 1) * (s->hnd ? PEER_PAGE * d : d), at = ((size_t)s->sessions * s->kv_heads * s->group - 1) * d;
	std::vector<uint16_t> qs = fetched((const char *)q + 2 * at, d), os = fetched((const char *)out + 2 * at, d), one;
	std::vector<double> sum(d, 0.0);
	double total = 0.0, off = 0.0, all = 0.0;

	for (uint32_t t = 0; t < s->tokens; t++) {
		double x = 0.0;
		size_t k = first + t % PEER_PAGE * row;

		if (t % PEER_PAGE == 0)
			one = fetched(kv + 4 * half * page[t / PEER_PAGE], 2 * half);
		for (size_t c = 0; c < d; c++)
			x += from_bf16(one[k + c]) * from_bf16(qs[c]);
		x = exp(x * PEER_SCALE);
		total += x;
		for (size_t c = 0; c < d; c++)
			sum[c] += x * from_bf16(one[half + k + c]);
	}
	for (size_t c = 0; c < d; c++) {
		off += pow(from_bf16(os[c]) - sum[c] / total, 2);
		all += pow(sum[c] / total, 2);
	}
	return sqrt(off / all);
}

/* FlashInfer's fastest, seconds a layer. */
static double time_peer(const struct bench *b, const char *kv)
{
	static const char *const name[] = { "NHD", "HND", "tensor cores, NHD", "tensor cores, HND" };
	const struct shape *sh = b->sh;
	size_t bytes = (size_t)kv_bytes(b), pages = (size_t)sh->sessions * sh->live / PEER_PAGE;
	std::vector<int32_t> page(pages);
	double best = INFINITY;

	for (size_t i = 0; i < pages; i++)
		page[i] = (int32_t)i;
	for (size_t i = pages; i > 1; i--)
		std::swap(page[i - 1], page[draw() % i]);
	for (int way = 0; way < 4; way++) {
		struct peer_shape s = { sh->sessions, sh->kv, sh->group, sh->d, sh->live, way / 2, way % 2 };
		struct peer *p;
		double t, error;
		int bad;

		if (peer_new(&s, page.data(), (cudaStream_t)stream, &p))
			exit(1);
		bad = peer_run(p, kv, b->q.data, b->out.data, PEER_SCALE, (cudaStream_t)stream);
		must(gpu_sync(dev, stream), "sync");
		error = peer_error(&s, kv, &page[pages - sh->live / PEER_PAGE], b->q.data, b->out.data);
		t = time_graph(sh->layers * rounds(sh), [&] {
			for (uint32_t l = 0; l < sh->layers * rounds(sh); l++)
				bad |= peer_run(p, kv + l % sh->layers * bytes, b->q.data, b->out.data, PEER_SCALE, (cudaStream_t)stream);
		});
		peer_free(p);
		printf("  FlashInfer, %-44s %9.2f us %6.1f %%  off by %.1e\n", name[way], t * 1e6, 100 * (double)bytes / t / read_rate,
		       error);
		if (bad || !(error < 0.02))	/* bfloat16 outputs: 2e-3 */
			must(-EIO, "FlashInfer's output");
		best = std::min(best, t);
	}
	return best;
}

static void report_beside(const struct bench *b, const char *what, double t, double peer, double goal)
{
	char name[160], text[32];

	snprintf(name, sizeof(name), "attend %s, %s, beside FlashInfer", b->sh->name, what);
	snprintf(text, sizeof(text), ">= %.4gx", goal);
	printf("  ours, %-50s %9.2f us %6.1f %%  %.3fx\n", what, t * 1e6, 100 * kv_bytes(b) / t / read_rate, peer / t);
	bench_report(name, kv_bytes(b) / t * 1e-9, "GB/s", kv_bytes(b) / peer * 1e-9, text, peer / t >= goal);
}

/* Without heat, with pages of a lane in runs of 64 KiB as prompts leave them: FlashInfer's pages are of that size, with all KV heads. */
static double time_in_runs(const struct shape *sh)
{
	struct bench b = {};
	double t;

	b.run = 65536 / gpu_page_bytes(sh->type, sh->d);
	open_shape(&b, sh);
	t = time_attend(&b, 0);
	close_shape(&b);
	return t;
}

static void bench_peer(const struct shape *sh)
{
	struct bench b = {};
	struct kept_times kept;
	double plain, runs, peer;
	size_t bytes;
	char *kv;

	printf("%s\n", sh->name);
	runs = time_in_runs(sh);
	open_shape(&b, sh);
	plain = time_attend(&b, 0);
	kept = time_kept(&b);
	bytes = (size_t)kv_bytes(&b) * sh->layers;
	cu(cudaMalloc(&kv, bytes), "FlashInfer's pages");
	fill_pages<<<2048, 256, 0, (cudaStream_t)stream>>>(kv, bytes / 4, GPU_BF16);
	must(gpu_sync(dev, stream), "fill");
	peer = time_peer(&b, kv);
	report_beside(&b, "no heat", plain, peer, 1.05);
	report_beside(&b, "no heat, pages in runs of 64 KiB", runs, peer, 1.05);
	report_beside(&b, "heat of every query, later", together(&b, &kept), peer, 1.0);
	report_beside(&b, "the same, sessions as they come", as_they_come(&b, &kept), peer, 1.0);
	/* Every fourth query kept, and a window of 32 ends with a quarter of them: the heat of fewer queries costs less, hardly. */
	report_beside(&b, "observe = 4", plain + (kept.step - plain) / 4 + kept.all / sh->layers / std::max(32u, kept.depth), peer, 1.0);
	cudaFree(kv);
	close_shape(&b);
}
