/* Private to gpu/cuda/: the first part of attend_wide.cu: what a CTA has in shared memory, slots on their way there, and queries. */
#ifndef GPU_CUDA_ATTEND_WIDE_CUH
#define GPU_CUDA_ATTEND_WIDE_CUH

#include "gpu/cuda/attend_mma.cuh"
#include "gpu/cuda/tile.cuh"
#include "gpu/cuda/wide.cuh"
#include "gpu/cuda/wgmma.cuh"

#define WIDE_GROUP 128u		/* threads of a warpgroup */
#define WIDE_THREADS (3u * WIDE_GROUP)
#define WIDE_COPIERS (WIDE_GROUP / 2u)	/* threads that copy K, or V */
#define WIDE_SHARED 232448u	/* bytes that a CTA may have on sm_90 */

struct wide_args {
	struct tile_args t;		/* tile: of wide sessions, WIDE_ROWS pairs each */
	struct gpu_tensor out;
	float *lse;
	uint32_t as_is;			/* queries are bfloat16, two of them where one load gets them, and the scale is not below 0 */
};

template <int D, int N> struct wide_size {
	static constexpr uint32_t panels = D / WG_PANEL, panel = N * WG_ROW, rows = panels * panel;	/* bytes: of a panel; of K, or V */
	static constexpr uint32_t pages = N / GPU_PAGE_SLOTS, stage = 2u * rows + N * 4u + 32u;	/* with positions and four barriers */
	static constexpr uint32_t fit = WIDE_SHARED / stage, stages = fit < 8u ? fit : 8u;
	static constexpr uint32_t pos = 2u * stages * rows, bars = pos + stages * N * 4u, bytes = stages * stage;
};

#if WG_MMA

/* Barriers of a stage: K (V) is there; all are done with it. */
enum wide_bar { WIDE_K, WIDE_V, WIDE_K_DONE, WIDE_V_DONE };

/* What a thread knows of its work; its two rows of pairs are 16 * warp + g and 8 more. */
struct wide_work {
	struct tile_ctx x;
	uint32_t n_tiles;		/* of slots */
	uint32_t group, warp, thread, g, t4;	/* group: warpgroup of those that multiply; warp: among all of theirs */
	uint32_t at;			/* shared address: of K's stages; V's, positions and barriers lie behind, see wide_size */
	int32_t limit[2], least;	/* positions of the rows' queries; of the warp's first query */
	float scale[2];			/* >= 0: what the logits of a row are multiplied by */
};

/* A place in a ring: the stage, and whether the rounds so far are odd. */
struct wide_place {
	uint32_t stage, odd;
};

template <int D, int N> static __device__ __forceinline__ void wide_next(struct wide_place *p)
{
	p->stage++;
	if (p->stage == wide_size<D, N>::stages) {
		p->stage = 0;
		p->odd ^= 1u;
	}
}

template <int D, int N> static __device__ __forceinline__ uint32_t wide_bar(const struct wide_work &w, enum wide_bar which, uint32_t stage)
{
	return w.at + wide_size<D, N>::bars + (stage * 4u + which) * 8u;
}

/* --- slots ------------------------------------------------------------------------------------------------------------------------- */

/* Pages and positions of the slots to come: each thread of a warp knows where one of 32 pages is, and of the 32 behind them. */
struct wide_pages {
	const char *page, *pos, *page_next, *pos_next;
};

static __device__ __forceinline__ void wide_look(const struct wide_args &a, const struct wide_work &w, uint32_t first, struct wide_pages *p)
{
	uint32_t slot = (first + w.thread) * GPU_PAGE_SLOTS;
	const char *block;

	p->page_next = p->pos_next = NULL;
	if (slot >= w.x.live)
		return;
	p->page_next = cuda_page(a.t.view, w.x.t, w.x.lane, slot);
	block = cuda_block(a.t.view, w.x.t, w.x.lane, slot);
	p->pos_next = block ? block + slot % GPU_BLOCK_SLOTS * 4u : NULL;
	p->page_next = block ? p->page_next : NULL;
}

/* K or V of a page, rows behind each other at `from`. live: of its slots; the others become zeros. to: of the page's first row. */
template <int D, int N>
static __device__ __forceinline__ void wide_copy_rows(const struct wide_args &a, const char *from, uint32_t live, uint32_t to)
{
	constexpr uint32_t pieces = D / 8u;

#pragma unroll 1
	for (uint32_t e = threadIdx.x % WIDE_COPIERS; e < GPU_PAGE_SLOTS * pieces; e += WIDE_COPIERS) {
		uint32_t row = e / pieces, c = e % pieces, have = a.t.head_dim / 8u;
		bool there = row < live && c < have;

		wg_copy16(to + c / 8u * wide_size<D, N>::panel + wg_piece(row, c % 8u),
			  there ? from + (row * have + c) * 16u : (const char *)a.lse, there);
	}
}

/* Where a thread's first piece of a page goes; every second one of D = 128 is 4 rows further, in the other half of a row's places. */
template <int D, int N> static __device__ __forceinline__ uint32_t wide_first_piece(void)
{
	constexpr uint32_t pieces = D / 8u;
	uint32_t e = threadIdx.x % WIDE_COPIERS;

	return e % pieces / 8u * wide_size<D, N>::panel + wg_piece(e / pieces, e % 8u);
}

/* A whole page, with rows that fill theirs; to: where the thread's first piece goes. */
template <int D> static __device__ __forceinline__ void wide_copy_whole(const char *from, uint32_t to, uint32_t to_odd)
{
	constexpr uint32_t pieces = D / 8u, step = WIDE_COPIERS / pieces;

	from += threadIdx.x % WIDE_COPIERS * 16u;
#pragma unroll
	for (uint32_t i = 0; i < GPU_PAGE_SLOTS / step; i++)
		wg_copy16_all((i * step % 8u ? to_odd : to) + i * step * WG_ROW, from + i * WIDE_COPIERS * 16u);
}

/* Ask for K (V) of tile t. first_piece: see wide_first_piece(). */
template <int D, int N>
static __device__ __forceinline__ void wide_copy(const struct wide_args &a, const struct wide_work &w, bool v, uint32_t t, uint32_t stage,
						 uint32_t first_piece, struct wide_pages *p)
{
	using size = wide_size<D, N>;
	uint32_t first = t * size::pages, to = w.at + ((v ? size::stages : 0u) + stage) * size::rows;
	uint32_t to_even = to + first_piece, to_odd = to + (first_piece ^ 64u);
	bool whole = (t + 1u) * N <= w.x.live && a.t.head_dim == D;
	uint64_t skip = v ? (uint64_t)GPU_PAGE_SLOTS * a.t.head_dim * 2u : 0u;

	if (first % 32u == 0) {
		p->page = p->page_next;
		p->pos = p->pos_next;
	}
#pragma unroll
	for (uint32_t i = 0; i < size::pages; i++) {
		const char *page = (const char *)__shfl_sync(0xffffffffu, (unsigned long long)p->page, (first + i) % 32u);
		uint32_t slot = (first + i) * GPU_PAGE_SLOTS, live = slot < w.x.live ? min(w.x.live - slot, GPU_PAGE_SLOTS) : 0u;

		if (whole && page)
			wide_copy_whole<D>(page + skip, to_even + i * GPU_PAGE_SLOTS * WG_ROW, to_odd + i * GPU_PAGE_SLOTS * WG_ROW);
		else
			wide_copy_rows<D, N>(a, page + skip, page ? live : 0u, to + i * GPU_PAGE_SLOTS * WG_ROW);
	}
	if (threadIdx.x < 32u) {	/* of those that copy K */
		const char *pos = (const char *)__shfl_sync(0xffffffffu, (unsigned long long)p->pos, (first + w.thread / 4u) % 32u);

		if (w.thread < size::pages * 4u)
			wg_copy16(w.at + size::pos + (stage * N + w.thread * 4u) * 4u,
				  pos ? pos + w.thread % 4u * 16u : (const char *)a.lse, pos != NULL);
	}
	if (first % 32u == 0)	/* only now: it waits for the table */
		wide_look(a, w, first + 32u, p);
}

/* What the warpgroup does that copies. */
template <int D, int N> static __device__ __forceinline__ void wide_copy_all(const struct wide_args &a, const struct wide_work &w)
{
	const bool v = threadIdx.x >= WIDE_COPIERS;
	uint32_t first_piece = wide_first_piece<D, N>();
	struct wide_place at = { 0, 0 };
	struct wide_pages pages;

	wide_look(a, w, 0, &pages);
#pragma unroll 1
	for (uint32_t t = 0; t < w.n_tiles; t++, wide_next<D, N>(&at)) {
		wg_bar_wait(wide_bar<D, N>(w, v ? WIDE_V_DONE : WIDE_K_DONE, at.stage), at.odd ^ 1u);
		wide_copy<D, N>(a, w, v, t, at.stage, first_piece, &pages);
		wg_bar_copied(wide_bar<D, N>(w, v ? WIDE_V : WIDE_K, at.stage));
	}
	wg_wait_copies<0>();
}

/* --- queries ----------------------------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float2 wide_load2(const struct gpu_tensor &q, int64_t at)
{
	if (q.type == GPU_F32)
		return make_float2(((const float *)q.data)[at], ((const float *)q.data)[at + 1]);
	if (((uintptr_t)q.data + (uintptr_t)at * 2u) % 4u)
		return make_float2(cuda_load(q.data, q.type, at), cuda_load(q.data, q.type, at + 1));
	if (q.type == GPU_F16)
		return __half22float2(*(const __half2 *)((const __half *)q.data + at));
	return __bfloat1622float2(*(const __nv_bfloat162 *)((const __nv_bfloat16 *)q.data + at));
}

/* Where the query of a pair of the tile begins in q. */
static __device__ __forceinline__ int64_t wide_query_at(const struct wide_args &a, const struct wide_work &w, uint32_t pair)
{
	return ((int64_t)w.x.seq.row + pair / a.t.group) * a.t.q.stride + ((int64_t)w.x.head * a.t.group + pair % a.t.group) * a.t.head_dim;
}

/* Queries that can be taken as they are: all loads are under way before the first is waited for. */
template <int D>
static __device__ __forceinline__ void wide_take_queries(const struct wide_args &a, const struct wide_work &w, uint32_t (&q)[D / 16][4])
{
#pragma unroll
	for (uint32_t h = 0; h < 2; h++) {
		uint32_t pair = w.x.row0 + min(16u * w.warp + w.g + 8u * h, w.x.n_rows - 1u);
		const __nv_bfloat16 *from = (const __nv_bfloat16 *)a.t.q.data + wide_query_at(a, w, pair) + 2u * w.t4;

#pragma unroll
		for (uint32_t j = 0; j < D / 16u; j++)
#pragma unroll
			for (uint32_t i = 0; i < 2; i++)
				q[j][2u * i + h] = 16u * j + 8u * i < a.t.head_dim ? *(const uint32_t *)(from + 16u * j + 8u * i) : 0u;
	}
}

/*
 * The warp's queries as fragments, what the rounding left in low[]; float16 ones are scaled by a power of two, so that the largest
 * number of a row lies near the upper end of the range. A scale below 0 goes into the queries: then the largest logit is the largest
 * product.
 */
template <int TYPE, int D, bool EXACT>
static __device__ __forceinline__ void wide_load_queries(const struct wide_args &a, struct wide_work &w, uint32_t (&q)[D / 16][4],
							 uint32_t (&low)[EXACT ? D / 16 : 1][4])
{
	constexpr bool half = TYPE != GPU_BF16;
	const bool as_is = !half && !EXACT && a.as_is;

	w.least = w.x.seq.pos + (int32_t)((w.x.row0 + min(16u * w.warp, w.x.n_rows - 1u)) / a.t.group);
	if (as_is)
		wide_take_queries<D>(a, w, q);
#pragma unroll
	for (uint32_t h = 0; h < 2; h++) {
		uint32_t pair = w.x.row0 + min(16u * w.warp + w.g + 8u * h, w.x.n_rows - 1u), top = 0;	/* rows of nobody repeat the last */
		int64_t at = wide_query_at(a, w, pair);
		float by = 1.0f;

		w.limit[h] = w.x.seq.pos + (int32_t)(pair / a.t.group);
		w.scale[h] = a.t.scale;
		if (as_is)
			continue;
		if (half) {
#pragma unroll 4
			for (uint32_t c = 2u * w.t4; c < a.t.head_dim; c += 8u) {
				float2 v = wide_load2(a.t.q, at + c);

				top = max(top, max(__float_as_uint(v.x) & 0x7fffffffu, __float_as_uint(v.y) & 0x7fffffffu));
			}
			top = max(top, __shfl_xor_sync(0xffffffffu, top, 1));
			top = max(top, __shfl_xor_sync(0xffffffffu, top, 2)) >> 23;
			top = top < 20u || top > 240u ? 127u + 13u : top;
			by = __uint_as_float((254u + 13u - top) << 23);
		}
		w.scale[h] = fabsf(a.t.scale) / by;
		by = a.t.scale < 0.0f ? -by : by;
#pragma unroll
		for (uint32_t j = 0; j < D / 16u; j++)
#pragma unroll
			for (uint32_t i = 0; i < 2; i++) {
				uint32_t c = 16u * j + 8u * i + 2u * w.t4;
				float2 v = c < a.t.head_dim ? wide_load2(a.t.q, at + c) : make_float2(0.0f, 0.0f);

				v.x *= by;
				v.y *= by;
				q[j][2u * i + h] = mma_pack<half>(v.x, v.y);
				if (EXACT)
					low[j][2u * i + h] = mma_pack<half>(v.x - mma_rounded<half>(v.x), v.y - mma_rounded<half>(v.y));
			}
	}
}

#endif
#endif
