/*
 * attend for sessions with many queries in a step ("wide": more than WIDE_PAIRS (query, head) pairs), on the tensor cores of sm_90a;
 * 16-bit slots, heads of up to 128 channels. Where it cannot run, and for all other sessions, see attend_mma.cuh.
 *
 * What: a CTA of two warpgroups takes 128 pairs and goes once over all slots of the lane, N at a time. The queries stay in registers, 16
 * pairs a warp; K and V of the slots that come next are on their way to a ring in shared memory. The products of the next slots' logits,
 * and of the last probabilities with V, run while the probabilities in between are worked out.
 * Memory traffic: K, V and positions once per CTA (from L2); q once, out once.
 * Determinism: slots in order, in steps of N, from the lane's own length: bits do not depend on other sessions, nor on heat (heat_mma.cu
 * takes it).
 */
#include "gpu/cuda/attend_mma.cuh"
#include "gpu/cuda/tile.cuh"
#include "gpu/cuda/wide.cuh"
#include "gpu/cuda/wgmma.cuh"

#define WIDE_THREADS 256u

struct wide_args {
	struct tile_args t;		/* tile: of wide sessions, WIDE_ROWS pairs each */
	struct gpu_tensor out;
	float *lse;
};

#define WIDE_SHARED 232448u	/* bytes that a CTA may have on sm_90 */

template <int D, int N> struct wide_size {
	static constexpr uint32_t panels = D / WG_PANEL, panel = N * WG_ROW, rows = panels * panel, stage = 2u * rows;	/* bytes; rows: K, and V */
	static constexpr uint32_t pages = N / GPU_PAGE_SLOTS, fit = WIDE_SHARED / (stage + N * 4u), stages = fit < 8u ? fit : 8u;
	static constexpr uint32_t ahead = stages - 2u;	/* tiles asked for before the one being read; two are in use */
};

#if WG_MMA

/* What a thread knows of its work; its two rows of pairs are 16 * warp + g and 8 more. */
struct wide_work {
	struct tile_ctx x;
	uint32_t n_tiles;		/* of slots */
	uint32_t warp, thread, g, t4;
	uint32_t at, pos, to;		/* shared addresses: of the stages, of their positions; where in a stage the thread's first piece of a page goes */
	int32_t limit[2], least;	/* positions of the rows' queries; of the warp's first query */
	float scale[2];			/* >= 0: what the logits of a row are multiplied by */
};

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

/* One page: rows of K, then of V, behind each other in memory. live: of its slots; the others become zeros. */
template <int D, int N>
static __device__ __forceinline__ void wide_copy_page(const struct wide_args &a, const char *page, uint32_t live, uint32_t row0,
						      uint32_t stage)
{
	using size = wide_size<D, N>;
	constexpr uint32_t pieces = D / 8u;

#pragma unroll 1
	for (uint32_t e = threadIdx.x; e < 32u * pieces; e += WIDE_THREADS) {
		uint32_t row = e / pieces, c = e % pieces, have = a.t.head_dim / 8u;
		bool there = row % 16u < live && c < have;

		wg_copy16(stage + row / 16u * size::rows + c / 8u * size::panel + wg_piece(row0 + row % 16u, c % 8u),
			  there ? page + (row * have + c) * 16u : (const char *)a.lse, there);
	}
}

/* A whole page, with rows that fill theirs; `to` as in struct wide_work. */
template <int D, int N> static __device__ __forceinline__ void wide_copy_whole(const char *page, uint32_t to)
{
	wg_copy16_all(to, page + threadIdx.x * 16u);
	if (D == 128)
		wg_copy16_all(to + wide_size<D, N>::rows, page + (WIDE_THREADS + threadIdx.x) * 16u);
}

/* Ask for tile t, if there is one. Always one group of copies. */
template <int D, int N>
static __device__ __forceinline__ void wide_feed(const struct wide_args &a, const struct wide_work &w, uint32_t t, uint32_t stage,
						 struct wide_pages *p)
{
	using size = wide_size<D, N>;
	uint32_t first = t * size::pages;	/* page */
	bool whole = (t + 1u) * N <= w.x.live && a.t.head_dim == D;

	if (t < w.n_tiles) {
		if (first % 32u == 0) {
			p->page = p->page_next;
			p->pos = p->pos_next;
			wide_look(a, w, first + 32u, p);
		}
#pragma unroll
		for (uint32_t i = 0; i < size::pages; i++) {
			const char *page = (const char *)__shfl_sync(0xffffffffu, (unsigned long long)p->page, (first + i) % 32u);
			uint32_t slot = (first + i) * GPU_PAGE_SLOTS, live = slot < w.x.live ? min(w.x.live - slot, GPU_PAGE_SLOTS) : 0u;

			if (whole && page)
				wide_copy_whole<D, N>(page, w.to + stage * size::stage + i * GPU_PAGE_SLOTS * WG_ROW);
			else
				wide_copy_page<D, N>(a, page, page ? live : 0u, i * GPU_PAGE_SLOTS, w.at + stage * size::stage);
		}
		if (w.warp == 0) {
			const char *pos = (const char *)__shfl_sync(0xffffffffu, (unsigned long long)p->pos, (first + w.thread / 4u) % 32u);

			if (w.thread < size::pages * 4u)
				wg_copy16(w.pos + (stage * N + w.thread * 4u) * 4u, pos ? pos + w.thread % 4u * 16u : (const char *)a.lse, pos != NULL);
		}
	}
	mma_commit();
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

	w.least = w.x.seq.pos + (int32_t)((w.x.row0 + min(16u * w.warp, w.x.n_rows - 1u)) / a.t.group);
#pragma unroll
	for (uint32_t h = 0; h < 2; h++) {
		uint32_t pair = w.x.row0 + min(16u * w.warp + w.g + 8u * h, w.x.n_rows - 1u), top = 0;	/* rows of nobody repeat the last */
		int64_t at = ((int64_t)w.x.seq.row + pair / a.t.group) * a.t.q.stride + ((int64_t)w.x.head * a.t.group + pair % a.t.group) * a.t.head_dim;
		float by = 1.0f;

		w.limit[h] = w.x.seq.pos + (int32_t)(pair / a.t.group);
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

/* --- softmax ------------------------------------------------------------------------------------------------------------------------ */

/* A row so far: the largest logit (times log2(e)), the thread's share of the sum, outputs relative to the maximum. */
template <int D> struct wide_sum {
	float m[2], l[2], o[D / 8][4];
};

/* Logits that a query may not see become -inf; done only where there are any. first: slot of the lane; pos: shared address. */
template <int N>
static __device__ __forceinline__ void wide_mask(const struct wide_work &w, uint32_t first, uint32_t pos, float (&c)[N / 8][4])
{
	const float none = __int_as_float(0xff800000);
	int32_t last = INT32_MIN;

#pragma unroll
	for (uint32_t i = 0; i < N; i += 32u) {
		int32_t p;

		asm volatile("ld.shared.s32 %0, [%1];" : "=r"(p) : "r"(pos + (i + w.thread) * 4u));
		last = max(last, p);
	}
	if (__reduce_max_sync(0xffffffffu, last) <= w.least && first + N <= w.x.live)
		return;
#pragma unroll
	for (uint32_t n = 0; n < N / 8u; n++) {
		uint32_t slot = 8u * n + 2u * w.t4;
		int32_t p[2];

		asm volatile("ld.shared.v2.s32 {%0,%1}, [%2];" : "=r"(p[0]), "=r"(p[1]) : "r"(pos + slot * 4u));
#pragma unroll
		for (uint32_t i = 0; i < 4; i++)
			c[n][i] = first + slot + i % 2u < w.x.live && p[i % 2u] <= w.limit[i / 2u] ? c[n][i] : none;
	}
}

/* Logits become probabilities relative to the new maximum; by: what older sums and outputs are multiplied by. */
template <int D, int N>
static __device__ __forceinline__ void wide_softmax(const struct wide_work &w, float (&c)[N / 8][4], struct wide_sum<D> &s, float (&by)[2])
{
#pragma unroll
	for (uint32_t h = 0; h < 2; h++) {
		float top = c[0][2u * h], sum[2] = {};

#pragma unroll
		for (uint32_t n = 0; n < N / 8u; n++)
			top = fmaxf(top, fmaxf(c[n][2u * h], c[n][2u * h + 1u]));
		top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
		top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
		top = fmaxf(s.m[h], __fmul_rn(top, w.scale[h]));
		by[h] = mma_exp2(__fsub_rn(s.m[h], top));
		s.m[h] = top;
#pragma unroll
		for (uint32_t n = 0; n < N / 8u; n++)
#pragma unroll
			for (uint32_t i = 0; i < 2; i++) {
				c[n][2u * h + i] = mma_exp2(__fmaf_rn(c[n][2u * h + i], w.scale[h], -top));
				sum[i] = __fadd_rn(sum[i], c[n][2u * h + i]);
			}
		s.l[h] = __fmaf_rn(s.l[h], by[h], __fadd_rn(sum[0], sum[1]));
	}
}

/*
 * Until the outputs so far are there; older ones shrink if any maximum of the warp moved. That this is asked for together with the sums,
 * which are never below 0, keeps the wait behind the probabilities: the compiler would rather wait first, and then nothing runs beside
 * the product.
 */
template <int D> static __device__ __forceinline__ void wide_wait_values(struct wide_sum<D> &s, const float (&by)[2])
{
	if (!__any_sync(0xffffffffu, by[0] != 1.0f || by[1] != 1.0f || s.l[0] < 0.0f || s.l[1] < 0.0f)) {
		wg_wait<0>();
		wg_touch(s.o);
		return;
	}
	wg_wait<0>();
	wg_touch(s.o);
#pragma unroll
	for (uint32_t j = 0; j < D / 8u; j++)
#pragma unroll
		for (uint32_t i = 0; i < 4; i++)
			s.o[j][i] *= by[i / 2u];
}

template <int TYPE, int N> static __device__ __forceinline__ void wide_pack(const float (&c)[N / 8][4], uint32_t (&p)[N / 16][4])
{
#pragma unroll
	for (uint32_t j = 0; j < N / 16u; j++)
#pragma unroll
		for (uint32_t i = 0; i < 4; i++)
			p[j][i] = mma_pack<TYPE != GPU_BF16>(c[2u * j + i / 2u][i % 2u * 2u], c[2u * j + i / 2u][i % 2u * 2u + 1u]);
}

/* --- products ------------------------------------------------------------------------------------------------------------------------- */

/* Begin c = q K^T with the rows of K at shared address k. */
template <int TYPE, int D, int N, bool EXACT>
static __device__ __forceinline__ void wide_logits(const uint32_t (&q)[D / 16][4], const uint32_t (&low)[EXACT ? D / 16 : 1][4],
						   uint32_t k, float (&c)[N / 8][4])
{
	constexpr bool half = TYPE != GPU_BF16;
	const uint64_t b = wg_rows(k);

#pragma unroll
	for (uint32_t j = 0; j < D / 16u; j++)
		wg_mma<half, 0>(c, q[j], b + (j / 4u * wide_size<D, N>::panel + j % 4u * 32u) / 16u, j > 0);
#pragma unroll
	for (uint32_t j = 0; EXACT && j < D / 16u; j++)
		wg_mma<half, 0>(c, low[EXACT ? j : 0], b + (j / 4u * wide_size<D, N>::panel + j % 4u * 32u) / 16u, true);
	wg_commit();
}

/* Begin o += p V with the rows of V at shared address v. */
template <int TYPE, int D, int N>
static __device__ __forceinline__ void wide_values(const uint32_t (&p)[N / 16][4], uint32_t v, float (&o)[D / 8][4])
{
	const uint64_t b = wg_turned(v, wide_size<D, N>::panel);

#pragma unroll
	for (uint32_t j = 0; j < N / 16u; j++)
		wg_mma<TYPE != GPU_BF16, 1>(o, p[j], b + j * 16u * WG_ROW / 16u, true);
	wg_commit();
}

/* --- results -------------------------------------------------------------------------------------------------------------------------- */

template <int D>
static __device__ __forceinline__ void wide_finish(const struct wide_args &a, const struct wide_work &w, struct wide_sum<D> &s)
{
#pragma unroll
	for (uint32_t h = 0; h < 2; h++) {
		uint32_t r = 16u * w.warp + w.g + 8u * h, pair = w.x.row0 + r, head = w.x.head * a.t.group + pair % a.t.group;
		int64_t row = (int64_t)w.x.seq.row + pair / a.t.group, at = row * a.out.stride + (int64_t)head * a.t.head_dim;
		bool by_two = a.out.type == GPU_BF16 && ((uintptr_t)a.out.data + (uintptr_t)at * 2u) % 4u == 0;
		float l = s.l[h], by;

		l = __fadd_rn(l, __shfl_xor_sync(0xffffffffu, l, 1));
		l = __fadd_rn(l, __shfl_xor_sync(0xffffffffu, l, 2));
		by = l > 0.0f ? __fdiv_rn(1.0f, l) : 0.0f;
		if (r >= w.x.n_rows)
			continue;
		if (w.t4 == 0)
			a.lse[row * (a.t.n_kv_heads * a.t.group) + head] = l > 0.0f ? (s.m[h] + __log2f(l)) * 0.6931471805599453f : TILE_NEG;
#pragma unroll
		for (uint32_t j = 0; j < D / 8u; j++) {
			uint32_t c = 8u * j + 2u * w.t4;
			float u = s.o[j][2u * h] * by, v = s.o[j][2u * h + 1u] * by;

			if (c >= a.t.head_dim)
				continue;
			if (by_two) {
				*(uint32_t *)((__nv_bfloat16 *)a.out.data + at + c) = mma_pack<false>(u, v);
			} else {
				cuda_store(a.out.data, a.out.type, at + c, u);
				cuda_store(a.out.data, a.out.type, at + c + 1, v);
			}
		}
	}
}

/* --- the kernel ----------------------------------------------------------------------------------------------------------------------- */

/* Until the tile in front is there, and all are done with the one before the last. */
template <int D, int N> static __device__ __forceinline__ void wide_turn(void)
{
	wg_wait_copies<wide_size<D, N>::ahead - 1u>();
	wg_written();
	__syncthreads();
}

template <int TYPE, int D, int N, bool EXACT>
static __device__ __forceinline__ void wide_tiles(const struct wide_args &a, struct wide_work &w)
{
	using size = wide_size<D, N>;
	uint32_t q[D / 16][4], low[EXACT ? D / 16 : 1][4], p[N / 16][4], stage = 0;
	float c[N / 8][4], by[2];
	struct wide_pages pages;
	struct wide_sum<D> s;

	wide_look(a, w, 0, &pages);
	for (uint32_t t = 0; t < size::ahead; t++)
		wide_feed<D, N>(a, w, t, t, &pages);
	wide_load_queries<TYPE, D, EXACT>(a, w, q, low);
#pragma unroll
	for (uint32_t i = 0; i < D / 2u; i++)
		s.o[i / 4u][i % 4u] = 0.0f;
	s.m[0] = s.m[1] = MMA_NOTHING;
	s.l[0] = s.l[1] = 0.0f;
	if (w.n_tiles) {
		wide_turn<D, N>();
		wg_begin();
		wide_logits<TYPE, D, N, EXACT>(q, low, w.at, c);
		wide_feed<D, N>(a, w, size::ahead, size::ahead, &pages);
		wg_wait<0>();
		wg_touch(c);
		wide_mask<N>(w, 0, w.pos, c);
		wide_softmax<D, N>(w, c, s, by);
		wide_pack<TYPE, N>(c, p);
	}
#pragma unroll 1
	for (uint32_t t = 1; t < w.n_tiles; t++) {
		uint32_t before = stage;

		stage = stage + 1u < size::stages ? stage + 1u : 0u;
		wide_turn<D, N>();
		wg_touch(s.o);
		wg_touch(p);
		wg_begin();
		wide_logits<TYPE, D, N, EXACT>(q, low, w.at + stage * size::stage, c);
		wide_values<TYPE, D, N>(p, w.at + before * size::stage + size::rows, s.o);
		wide_feed<D, N>(a, w, t + size::ahead, before ? before - 1u : size::stages - 1u, &pages);
		wg_wait<1>();
		wg_touch(c);
		wide_mask<N>(w, t * N, w.pos + stage * N * 4u, c);
		wide_softmax<D, N>(w, c, s, by);
		wide_wait_values<D>(s, by);
		wide_pack<TYPE, N>(c, p);
	}
	if (w.n_tiles) {
		wg_touch(s.o);
		wg_touch(p);
		wg_begin();
		wide_values<TYPE, D, N>(p, w.at + stage * size::stage + size::rows, s.o);
		wg_wait<0>();
		wg_touch(s.o);
	}
	wide_finish<D>(a, w, s);
}

#endif

template <int TYPE, int D, int N, bool EXACT>
static __global__ void __launch_bounds__(WIDE_THREADS, 1) wide_kernel(const __grid_constant__ struct wide_args a)
{
#if WG_MMA
	using size = wide_size<D, N>;
	constexpr uint32_t pieces = D / 8u;
	extern __shared__ __align__(1024) char shared[];
	struct cuda_tile tile = a.t.tile[blockIdx.x];
	struct wide_work w;

	if (!tile_lane(a.t, tile.seq, blockIdx.y, &w.x))
		return;
	w.x.row0 = tile.row0;
	w.x.n_rows = min(w.x.seq.n * a.t.group - tile.row0, WIDE_ROWS);
	w.n_tiles = (w.x.live + N - 1u) / N;
	w.warp = threadIdx.x / 32u;
	w.thread = threadIdx.x % 32u;
	w.g = w.thread / 4u;
	w.t4 = w.thread % 4u;
	w.at = mma_shared(shared);
	w.pos = w.at + size::stages * size::stage;
	w.to = w.at + threadIdx.x / pieces / 16u * size::rows + threadIdx.x % pieces / 8u * size::panel +
	       wg_piece(threadIdx.x / pieces % 16u, threadIdx.x % 8u);
	wide_tiles<TYPE, D, N, EXACT>(a, w);
#endif
}

/* --- launches ------------------------------------------------------------------------------------------------------------------------- */

template <int TYPE, int D, int N, bool EXACT>
static cudaError_t wide_launch(const struct cuda_step *st, const struct wide_args &a, cudaStream_t s)
{
	constexpr uint32_t bytes = wide_size<D, N>::stages * (wide_size<D, N>::stage + N * 4u);
	cudaError_t e = cudaFuncSetAttribute(wide_kernel<TYPE, D, N, EXACT>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

	if (e != cudaSuccess)
		return e;
	wide_kernel<TYPE, D, N, EXACT><<<dim3(st->n_wide, a.t.n_kv_heads), WIDE_THREADS, bytes, s>>>(a);
	return cudaGetLastError();
}

/* 128 slots at a time where registers last. */
template <int TYPE> static cudaError_t wide_launch_type(const struct cuda_step *st, const struct wide_args &a, bool exact, cudaStream_t s)
{
	if (a.t.head_dim <= 64u)
		return exact ? wide_launch<TYPE, 64, 64, true>(st, a, s) : wide_launch<TYPE, 64, 128, false>(st, a, s);
	return exact ? wide_launch<TYPE, 128, 64, true>(st, a, s) : wide_launch<TYPE, 128, 128, false>(st, a, s);
}

bool wide_runs(void)
{
	cudaFuncAttributes at;

	if (cudaFuncGetAttributes(&at, wide_kernel<GPU_BF16, 128, 128, false>) == cudaSuccess)
		return true;
	(void)cudaGetLastError();
	return false;
}

cudaError_t wide_attend(const struct cuda_step *st, cudaStream_t s, uint32_t layer, const struct gpu_tensor *q,
			const struct gpu_tensor *out, float scale, float *lse)
{
	struct wide_args a = { { st->view, st->seq, st->wide, st->shape.n_kv_heads, st->shape.group, st->shape.head_dim, layer, st->live_max, *q,
				 scale * 1.4426950408889634f },
			       *out, lse };
	bool exact = cuda_exact_queries(st->shape.slot_type, q->type);

	return st->shape.slot_type == GPU_BF16 ? wide_launch_type<GPU_BF16>(st, a, exact, s) : wide_launch_type<GPU_F16>(st, a, exact, s);
}
