/*
 * attend for sessions with many queries in a step ("wide": more than WIDE_PAIRS (query, head) pairs), on the tensor cores of sm_90a;
 * 16-bit slots, heads of up to 128 channels. Where it cannot run, and for all other sessions, see attend_mma.cuh.
 *
 * What: a CTA takes 128 pairs and goes once over all slots of the lane, N at a time. One warpgroup copies: two of its warps K and
 * positions, two of them V, each into a ring in shared memory. The other two have 64 pairs each, 16 a warp, in registers. They take turns:
 * while one works out probabilities, the products of the other run (the next slots' logits, and the last probabilities with V).
 * Memory traffic: K, V and positions once per CTA (from L2); q once, out once.
 * Determinism: slots in order, in steps of N, from the lane's own length: bits do not depend on other sessions, nor on heat (heat_mma.cu
 * takes it).
 */
#include "gpu/cuda/attend_wide.cuh"

#if WG_MMA

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
		float tops[4], top, sum[2] = {};

#pragma unroll
		for (uint32_t n = 0; n < N / 8u; n++)
			tops[n % 4u] = fmaxf(n < 4 ? c[n][2u * h] : tops[n % 4u], fmaxf(c[n][2u * h], c[n][2u * h + 1u]));
		top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
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

/* A row of outputs, which begins at element `at`. */
template <int D>
static __device__ __forceinline__ void wide_write(const struct wide_args &a, const struct wide_work &w, const struct wide_sum<D> &s,
						  uint32_t h, int64_t at, float by)
{
	__nv_bfloat16 *to = (__nv_bfloat16 *)a.out.data + at + 2u * w.t4;

	if (a.out.type == GPU_BF16 && (uintptr_t)to % 4u == 0) {
#pragma unroll
		for (uint32_t j = 0; j < D / 8u; j++)
			if (8u * j < a.t.head_dim)
				*(uint32_t *)(to + 8u * j) = mma_pack<false>(s.o[j][2u * h] * by, s.o[j][2u * h + 1u] * by);
		return;
	}
#pragma unroll
	for (uint32_t j = 0; j < D / 8u; j++)
		for (uint32_t i = 0; 8u * j < a.t.head_dim && i < 2; i++)
			cuda_store(a.out.data, a.out.type, at + 8u * j + 2u * w.t4 + i, s.o[j][2u * h + i] * by);
}

template <int D>
static __device__ __forceinline__ void wide_finish(const struct wide_args &a, const struct wide_work &w, const struct wide_sum<D> &s)
{
#pragma unroll
	for (uint32_t h = 0; h < 2; h++) {
		uint32_t r = 16u * w.warp + w.g + 8u * h, pair = w.x.row0 + r, head = w.x.head * a.t.group + pair % a.t.group;
		int64_t row = (int64_t)w.x.seq.row + pair / a.t.group;
		float l = s.l[h];

		l = __fadd_rn(l, __shfl_xor_sync(0xffffffffu, l, 1));
		l = __fadd_rn(l, __shfl_xor_sync(0xffffffffu, l, 2));
		if (r >= w.x.n_rows)
			continue;
		if (w.t4 == 0)
			a.lse[row * (a.t.n_kv_heads * a.t.group) + head] =
				l > 0.0f ? (s.m[h] + __log2f(l)) * 0.6931471805599453f : TILE_NEG;
		wide_write<D>(a, w, s, h, row * a.out.stride + (int64_t)head * a.t.head_dim, l > 0.0f ? __fdiv_rn(1.0f, l) : 0.0f);
	}
}

/* --- the kernel ----------------------------------------------------------------------------------------------------------------------- */

/* The warpgroups that multiply enqueue their products one after the other. The first turn is group 0's. */
static __device__ __forceinline__ void wide_take_turn(const struct wide_work &w)
{
	asm volatile("bar.sync %0, %1;" :: "r"(1u + w.group), "n"(2u * WIDE_GROUP) : "memory");
}

static __device__ __forceinline__ void wide_give_turn(const struct wide_work &w)
{
	asm volatile("bar.arrive %0, %1;" :: "r"(2u - w.group), "n"(2u * WIDE_GROUP) : "memory");
}

/* The warp needs what a barrier guards no more. */
static __device__ __forceinline__ void wide_done(const struct wide_work &w, uint32_t bar)
{
	__syncwarp();
	if (w.thread == 0)
		wg_bar_arrive(bar);
}

/* The first tile's probabilities. */
template <int TYPE, int D, int N, bool EXACT>
static __device__ __forceinline__ void wide_begin(const struct wide_work &w, const uint32_t (&q)[D / 16][4],
						  const uint32_t (&low)[EXACT ? D / 16 : 1][4], struct wide_sum<D> &s,
						  uint32_t (&p)[N / 16][4])
{
	using size = wide_size<D, N>;
	float c[N / 8][4], by[2];

	wg_bar_wait(wide_bar<D, N>(w, WIDE_K, 0), 0);
	wg_written();
	if (w.group == 1u)
		wide_give_turn(w);
	wide_take_turn(w);
	wg_begin();
	wide_logits<TYPE, D, N, EXACT>(q, low, w.at, c);
	if (w.group == 0 || w.n_tiles > 1u)
		wide_give_turn(w);
	wg_wait<0>();
	wg_touch(c);
	wide_mask<N>(w, 0, w.at + size::pos, c);
	wide_done(w, wide_bar<D, N>(w, WIDE_K_DONE, 0));
	wide_softmax<D, N>(w, c, s, by);
	wide_pack<TYPE, N>(c, p);
}

/* What the warpgroups do that multiply. */
template <int TYPE, int D, int N, bool EXACT>
static __device__ __forceinline__ void wide_tiles(const struct wide_args &a, struct wide_work &w)
{
	using size = wide_size<D, N>;
	uint32_t q[D / 16][4], low[EXACT ? D / 16 : 1][4], p[N / 16][4];
	struct wide_place k = { 0, 0 }, v = { 0, 0 };
	float c[N / 8][4], by[2];
	struct wide_sum<D> s;

	wide_load_queries<TYPE, D, EXACT>(a, w, q, low);
#pragma unroll
	for (uint32_t i = 0; i < D / 2u; i++)
		s.o[i / 4u][i % 4u] = 0.0f;
	s.m[0] = s.m[1] = MMA_NOTHING;
	s.l[0] = s.l[1] = 0.0f;
	if (w.n_tiles)
		wide_begin<TYPE, D, N, EXACT>(w, q, low, s, p);
#pragma unroll 1
	for (uint32_t t = 1; t < w.n_tiles; t++) {
		wide_next<D, N>(&k);
		wg_bar_wait(wide_bar<D, N>(w, WIDE_K, k.stage), k.odd);
		wg_bar_wait(wide_bar<D, N>(w, WIDE_V, v.stage), v.odd);
		wg_written();
		wide_take_turn(w);
		wg_touch(s.o);
		wg_touch(p);
		wg_begin();
		wide_logits<TYPE, D, N, EXACT>(q, low, w.at + k.stage * size::rows, c);
		wide_values<TYPE, D, N>(p, w.at + (size::stages + v.stage) * size::rows, s.o);
		if (w.group == 0 || t + 1u < w.n_tiles)		/* nobody waits for the last turn */
			wide_give_turn(w);
		wg_wait<1>();
		wg_touch(c);
		wide_mask<N>(w, t * N, w.at + size::pos + k.stage * N * 4u, c);
		wide_done(w, wide_bar<D, N>(w, WIDE_K_DONE, k.stage));
		wide_softmax<D, N>(w, c, s, by);
		wide_wait_values<D>(s, by);
		wide_done(w, wide_bar<D, N>(w, WIDE_V_DONE, v.stage));
		wide_pack<TYPE, N>(c, p);
		wide_next<D, N>(&v);
	}
	if (w.n_tiles) {
		wg_bar_wait(wide_bar<D, N>(w, WIDE_V, v.stage), v.odd);
		wg_written();
		wg_touch(s.o);
		wg_touch(p);
		wg_begin();
		wide_values<TYPE, D, N>(p, w.at + (size::stages + v.stage) * size::rows, s.o);
		wg_wait<0>();
		wg_touch(s.o);
	}
	wide_finish<D>(a, w, s);
}

template <int D, int N> static __device__ __forceinline__ void wide_new_bars(const struct wide_work &w)
{
	if (threadIdx.x < wide_size<D, N>::stages) {
		wg_bar_new(wide_bar<D, N>(w, WIDE_K, threadIdx.x), WIDE_COPIERS);
		wg_bar_new(wide_bar<D, N>(w, WIDE_V, threadIdx.x), WIDE_COPIERS);
		wg_bar_new(wide_bar<D, N>(w, WIDE_K_DONE, threadIdx.x), 8u);
		wg_bar_new(wide_bar<D, N>(w, WIDE_V_DONE, threadIdx.x), 8u);
	}
	__syncthreads();
}

#endif

template <int TYPE, int D, int N, bool EXACT>
static __global__ void __launch_bounds__(WIDE_THREADS, 1) wide_kernel(const __grid_constant__ struct wide_args a)
{
#if WG_MMA
	extern __shared__ __align__(1024) char shared[];
	struct cuda_tile tile = a.t.tile[blockIdx.x];
	struct wide_work w;

	if (!tile_lane(a.t, tile.seq, blockIdx.y, &w.x))
		return;
	w.x.row0 = tile.row0;
	w.x.n_rows = min(w.x.seq.n * a.t.group - tile.row0, WIDE_ROWS);
	w.n_tiles = (w.x.live + N - 1u) / N;
	w.thread = threadIdx.x % 32u;
	w.at = mma_shared(shared);
	wide_new_bars<D, N>(w);
	if (threadIdx.x < WIDE_GROUP) {
		asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
		wide_copy_all<D, N>(a, w);
	} else {
		asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
		w.group = threadIdx.x / WIDE_GROUP - 1u;
		w.warp = threadIdx.x / 32u - WIDE_GROUP / 32u;
		w.g = w.thread / 4u;
		w.t4 = w.thread % 4u;
		wide_tiles<TYPE, D, N, EXACT>(a, w);
	}
#endif
}

/* --- launches ------------------------------------------------------------------------------------------------------------------------- */

template <int TYPE, int D, int N, bool EXACT>
static cudaError_t wide_launch(const struct cuda_step *st, const struct wide_args &a, cudaStream_t s)
{
	constexpr uint32_t bytes = wide_size<D, N>::bytes;
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
			       *out, lse, 0 };
	bool exact = cuda_exact_queries(st->shape.slot_type, q->type);

	a.as_is = q->type == GPU_BF16 && (uintptr_t)q->data % 4u == 0 && q->stride % 2 == 0 && scale >= 0.0f;

	return st->shape.slot_type == GPU_BF16 ? wide_launch_type<GPU_BF16>(st, a, exact, s) : wide_launch_type<GPU_F16>(st, a, exact, s);
}
