/*
 * attend for float32 slots, on CUDA cores: softmax(scale * q K^T) V over the live slots of a lane. Other slots: attend_mma.cuh.
 *
 * What: a CTA takes up to 16 (query, head) pairs of one session and KV head and walks over the lane's slots in chunks of 256.
 * Each chunk is finished by itself (maximum, sum, output) and then merged into the running result. Tiles of up to 4 rows (decode)
 * share out P.V in another way than larger ones; which way depends on the session's own tokens alone. With few CTAs every chunk
 * has a CTA of its own, the chunks' results go to scratch and combine() merges them: the same numbers, merged in the
 * same order by the same instructions, so the two ways agree bit for bit and the choice may depend on the whole step.
 * Heat follows in a second pass (observe.cu), when the log-sum-exp is known.
 * Memory traffic: K and V once per tile of 16 pairs (decode: once), 4 bytes of position a slot. Heat: logits (4 bytes a pair and
 * slot) written and read, or with many queries K once more; 8 bytes a slot and heat array. Split: 4 * (head_dim + 2)
 * bytes a pair and chunk, written and read.
 * Determinism: fixed chunks, fixed order, no atomics; nothing depends on page ids, on heat or on other sessions.
 */
#include "gpu/cuda/tile.cuh"

struct attend_args {
	struct tile_args t;
	struct gpu_tensor out;
	float *lse;			/* [rows][n_kv_heads * group] */
	float *partial;
	uint32_t n_splits;
	float *logits;			/* for heat, as in struct cuda_step; kept_rows 0: not kept */
	uint32_t kept_rows, kept_slots;
};

#define FEW_ROWS CUDA_FEW_ROWS	/* tiles of so few rows (decode) have a kernel of their own */

/* How threads share the output of N rows: DP channels, the other threads take other rows. */
template <int DP, int N> struct out_size {
	static constexpr uint32_t row_groups = TILE_THREADS / DP;
	static constexpr uint32_t rows = N / row_groups;
};

/* A thread's rows of a running result. */
template <int DP, int N> struct running {
	float m[out_size<DP, N>::rows], l[out_size<DP, N>::rows], o[out_size<DP, N>::rows];
};

/* The other way to share it, for few rows, until a chunk is done: 4 (or 8) channels and all rows a thread, groups of threads take slots. */
template <int DP> struct few_size {
	static constexpr uint32_t vecs = DP == 256 ? 2u : 1u;
	static constexpr uint32_t threads = DP == 64 ? 16u : 32u;	/* of a group */
	static constexpr uint32_t groups = TILE_THREADS / threads;
	static constexpr uint32_t slots = tile_size<DP>::slots / groups;	/* of a group: 4 or 8 */
};

/* Merge one row of a chunk (maximum cm, sum cl, output co) into the running (m, l, o). */
static __device__ __forceinline__ void merge(float &m, float &l, float &o, float cm, float cl, float co)
{
	float top = fmaxf(m, cm), a, b;

	if (cm == TILE_NEG)
		return;
	a = m == TILE_NEG ? 0.0f : expf(__fsub_rn(m, top));
	b = expf(__fsub_rn(cm, top));
	l = __fadd_rn(__fmul_rn(l, a), __fmul_rn(cl, b));
	o = __fadd_rn(__fmul_rn(o, a), __fmul_rn(co, b));
	m = top;
}

static __device__ __forceinline__ size_t partial_floats(uint32_t d)
{
	return (size_t)CUDA_TILE_ROWS * (d + 2u);
}

/*
 * One softmax step over the logits in s: a warp has two rows. Replaces logits by exp(logit - maximum), updates the
 * chunk's maximum and sum, and says by how much older outputs shrink.
 */
template <int DP>
static __device__ __forceinline__ void softmax_rows(const struct tile_ctx &x, float *s, float *m, float *l, float *shrink)
{
	constexpr uint32_t slots = tile_size<DP>::slots;
	unsigned thread = threadIdx.x % 32u;

	for (uint32_t r = threadIdx.x / 32u; r < x.n_rows; r += TILE_THREADS / 32u) {
		float *row = s + r * (slots + 4u);
		float old = m[r], top = old, sum = 0.0f, by;

#pragma unroll
		for (uint32_t i = 0; i < slots; i += 32)
			top = fmaxf(top, row[i + thread]);
		for (int i = 16; i; i >>= 1)
			top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, i));
#pragma unroll
		for (uint32_t i = 0; i < slots; i += 32) {
			float z = row[i + thread], p = z == TILE_NEG ? 0.0f : expf(__fsub_rn(z, top));

			row[i + thread] = p;
			sum = __fadd_rn(sum, p);
		}
		for (int i = 16; i; i >>= 1)
			sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, i));
		by = old == TILE_NEG ? 0.0f : expf(__fsub_rn(old, top));
		__syncwarp();
		if (thread == 0) {
			m[r] = top;
			l[r] = __fadd_rn(__fmul_rn(l[r], by), sum);
			shrink[r] = by;
		}
	}
}

/* o[row] = o[row] * shrink[row] + sum over slots of p[row][slot] * v[slot][channel]. */
template <int DP, int N>
static __device__ __forceinline__ void add_values(const struct tile_ctx &x, uint32_t d, const float *s, const float *v,
						  const float *shrink, float o[out_size<DP, N>::rows])
{
	constexpr uint32_t slots = tile_size<DP>::slots, groups = out_size<DP, N>::row_groups, rows = out_size<DP, N>::rows;
	uint32_t c = threadIdx.x % DP, rg = threadIdx.x / DP;

	if (c >= d)
		return;
#pragma unroll
	for (uint32_t i = 0; i < rows; i++)
		if (rg + groups * i < x.n_rows)
			o[i] = __fmul_rn(o[i], shrink[rg + groups * i]);
#pragma unroll 2
	for (uint32_t k = 0; k < slots; k += 4) {
		const float *from = v + k * tile_stride(d) + c;
		float v0 = from[0], v1 = from[tile_stride(d)], v2 = from[2u * tile_stride(d)], v3 = from[3u * tile_stride(d)];

#pragma unroll
		for (uint32_t i = 0; i < rows; i++) {
			if (rg + groups * i < x.n_rows) {
				float4 p = *(const float4 *)(s + (rg + groups * i) * (slots + 4u) + k);

				o[i] = __fmaf_rn(p.w, v3, __fmaf_rn(p.z, v2, __fmaf_rn(p.y, v1, __fmaf_rn(p.x, v0, o[i]))));
			}
		}
	}
}

static __device__ __forceinline__ void add_scaled(float4 &to, float by, const float4 &v)
{
	to.x = __fmaf_rn(by, v.x, to.x);
	to.y = __fmaf_rn(by, v.y, to.y);
	to.z = __fmaf_rn(by, v.z, to.z);
	to.w = __fmaf_rn(by, v.w, to.w);
}

/* The same for few rows. Rows and channels that do not exist hold garbage that nobody looks at. */
template <int DP>
static __device__ __forceinline__ void add_values_few(uint32_t d, const float *s, const float *v, const float *shrink,
						      float4 o[FEW_ROWS][few_size<DP>::vecs])
{
	using few = few_size<DP>;
	constexpr uint32_t slots = tile_size<DP>::slots;
	uint32_t first = threadIdx.x / few::threads * few::slots, c = threadIdx.x % few::threads * 4u;

#pragma unroll
	for (uint32_t r = 0; r < FEW_ROWS; r++)
#pragma unroll
		for (uint32_t i = 0; i < few::vecs; i++) {
			o[r][i].x = __fmul_rn(o[r][i].x, shrink[r]);
			o[r][i].y = __fmul_rn(o[r][i].y, shrink[r]);
			o[r][i].z = __fmul_rn(o[r][i].z, shrink[r]);
			o[r][i].w = __fmul_rn(o[r][i].w, shrink[r]);
		}
#pragma unroll
	for (uint32_t k = first; k < first + few::slots; k += 4) {
		float4 p[FEW_ROWS];

#pragma unroll
		for (uint32_t r = 0; r < FEW_ROWS; r++)
			p[r] = *(const float4 *)(s + r * (slots + 4u) + k);
#pragma unroll
		for (uint32_t i = 0; i < few::vecs; i++) {
			const float *at = v + k * tile_stride(d) + c + i * few::threads * 4u;
			float4 v0 = *(const float4 *)at, v1 = *(const float4 *)(at + tile_stride(d));
			float4 v2 = *(const float4 *)(at + 2u * tile_stride(d)), v3 = *(const float4 *)(at + 3u * tile_stride(d));

#pragma unroll
			for (uint32_t r = 0; r < FEW_ROWS; r++) {
				add_scaled(o[r][i], p[r].x, v0);
				add_scaled(o[r][i], p[r].y, v1);
				add_scaled(o[r][i], p[r].z, v2);
				add_scaled(o[r][i], p[r].w, v3);
			}
		}
	}
}

/* What the groups of threads have, added up in their order: a thread's rows of the output. room: groups * 4 * DP floats. */
template <int DP>
static __device__ __forceinline__ void gather_few(const float4 from[FEW_ROWS][few_size<DP>::vecs], float *room,
						  float o[out_size<DP, FEW_ROWS>::rows])
{
	using few = few_size<DP>;
	constexpr uint32_t groups = out_size<DP, FEW_ROWS>::row_groups, rows = out_size<DP, FEW_ROWS>::rows;
	uint32_t group = threadIdx.x / few::threads, c = threadIdx.x % few::threads * 4u;

#pragma unroll
	for (uint32_t r = 0; r < FEW_ROWS; r++)
#pragma unroll
		for (uint32_t i = 0; i < few::vecs; i++)
			*(float4 *)(room + (group * FEW_ROWS + r) * DP + c + i * few::threads * 4u) = from[r][i];
	__syncthreads();
#pragma unroll
	for (uint32_t i = 0; i < rows; i++) {
		uint32_t r = threadIdx.x / DP + groups * i;

		o[i] = 0.0f;
#pragma unroll
		for (uint32_t g = 0; g < few::groups; g++)
			o[i] = __fadd_rn(o[i], room[(g * FEW_ROWS + r) * DP + threadIdx.x % DP]);
	}
	__syncthreads();
}

/* The thread's logits (see tile_logits) of the slots from `slot` of the lane on, for the heat to come. */
template <int DP>
static __device__ __forceinline__ void keep_logits(const struct attend_args &a, const struct tile_ctx &x, const float *s, float *kept,
						   uint32_t slot)
{
	constexpr uint32_t slots = tile_size<DP>::slots, parts = tile_size<DP>::parts;
	uint32_t at = threadIdx.x / parts, part = threadIdx.x % parts;

	for (uint32_t r = part; part < 4 && r < x.n_rows; r += 4u)
		kept[(size_t)r * a.kept_slots + slot + at] = s[r * (slots + 4u) + at];
}

/* out and lse of a thread's rows. */
template <int DP, int N>
static __device__ __forceinline__ void finish(const struct attend_args &a, const struct tile_ctx &x, const struct running<DP, N> &run)
{
	constexpr uint32_t groups = out_size<DP, N>::row_groups, rows = out_size<DP, N>::rows;
	uint32_t c = threadIdx.x % DP, rg = threadIdx.x / DP, d = a.t.head_dim, heads = a.t.n_kv_heads * a.t.group;

	if (c >= d)
		return;
#pragma unroll
	for (uint32_t i = 0; i < rows; i++) {
		uint32_t r = rg + groups * i, pair = x.row0 + r, head = x.head * a.t.group + pair % a.t.group;
		int64_t row = (int64_t)x.seq.row + pair / a.t.group;

		if (r >= x.n_rows)
			continue;
		cuda_store(a.out.data, a.out.type, row * a.out.stride + (int64_t)head * d + c,
			   run.l[i] > 0.0f ? __fdiv_rn(run.o[i], run.l[i]) : 0.0f);
		if (c == 0)
			a.lse[row * heads + head] = run.l[i] > 0.0f ? __fadd_rn(run.m[i], logf(run.l[i])) : TILE_NEG;
	}
}

/* Shared memory of attend_kernel, in floats: q[16][d], k[slots][stride], v[slots][stride], s[16][slots + 4], m, l, shrink[16]. */
template <int DP> static size_t attend_shared(uint32_t d)
{
	return (CUDA_TILE_ROWS * d + 2u * tile_size<DP>::slots * tile_stride(d) + CUDA_TILE_ROWS * (tile_size<DP>::slots + 4u) +
		3u * CUDA_TILE_ROWS) * sizeof(float);
}

/*
 * One chunk: its maximum and sum into m[], l[]; a thread's rows of its output into o[]. Ends with a barrier. While some slots are
 * worked on, the next ones are on their way.
 */
template <int DP, int N>
static __device__ __forceinline__ void one_chunk(const struct attend_args &a, const struct tile_ctx &x, uint32_t first, float *kept,
						 float *shared, char **page, char **block, float o[out_size<DP, N>::rows])
{
	constexpr uint32_t slots = tile_size<DP>::slots;
	const uint32_t inverse = tile_inverse(a.t.head_dim / 4u);
	uint32_t d = a.t.head_dim, end = x.live - first < CUDA_CHUNK ? x.live - first : CUDA_CHUNK;
	float *q = shared, *k = q + CUDA_TILE_ROWS * d, *v = k + slots * tile_stride(d), *s = v + slots * tile_stride(d);
	float *m = s + CUDA_TILE_ROWS * (slots + 4u), *l = m + CUDA_TILE_ROWS, *shrink = l + CUDA_TILE_ROWS;
	struct tile_rows_in_flight<DP> fk, fv;
	float4 few[FEW_ROWS][few_size<DP>::vecs] = {};

	tile_load_pages(a.t, x, first, page, block);
	if (threadIdx.x < CUDA_TILE_ROWS) {
		m[threadIdx.x] = TILE_NEG;
		l[threadIdx.x] = 0.0f;
	}
#pragma unroll
	for (uint32_t i = 0; i < out_size<DP, N>::rows; i++)
		o[i] = 0.0f;
	__syncthreads();
	tile_fetch<DP>(a.t, page, 0, end, 0, inverse, fk);
	tile_fetch<DP>(a.t, page, 0, end, 1, inverse, fv);
	for (uint32_t at = 0; at < end; at += slots) {
		uint32_t n_live = end - at < slots ? end - at : slots;

		tile_put<DP>(a.t, inverse, fk, k);
		tile_put<DP>(a.t, inverse, fv, v);
		__syncthreads();
		if (at + slots < end) {
			tile_fetch<DP>(a.t, page, at + slots, end - at - slots, 0, inverse, fk);
			tile_fetch<DP>(a.t, page, at + slots, end - at - slots, 1, inverse, fv);
		}
		tile_logits<DP>(a.t, x, q, k, *block, at, n_live, s);
		if (kept)
			keep_logits<DP>(a, x, s, kept, first + at);
		__syncthreads();
		softmax_rows<DP>(x, s, m, l, shrink);
		__syncthreads();
		if constexpr (N == FEW_ROWS)
			add_values_few<DP>(d, s, v, shrink, few);
		else
			add_values<DP, N>(x, d, s, v, shrink, o);
		__syncthreads();
	}
	if constexpr (N == FEW_ROWS)
		gather_few<DP>(few, k, o);
}

/* Where the tile's logits are to be kept; NULL when no heat will be taken from them. */
static __device__ __forceinline__ float *kept_for(const struct attend_args &a, const struct tile_ctx &x, uint32_t tile)
{
	const struct tile_chosen c = { x.t->observe, tile_heat_from(x) };

	if (!a.kept_rows || !x.t->n_heat || !tile_any_counts(c, x, 0, x.seq.n))
		return NULL;
	return a.logits + ((size_t)tile * a.t.n_kv_heads + x.head) * a.kept_rows * a.kept_slots;
}

/* N: FEW_ROWS takes the tiles of at most so many rows, CUDA_TILE_ROWS the others. */
template <int DP, int N>
static __global__ void __launch_bounds__(TILE_THREADS) attend_kernel(const __grid_constant__ struct attend_args a)
{
	constexpr uint32_t groups = out_size<DP, N>::row_groups, rows = out_size<DP, N>::rows, slots = tile_size<DP>::slots;
	extern __shared__ __align__(16) float shared[];
	__shared__ char *page[CUDA_CHUNK / GPU_PAGE_SLOTS], *block;
	uint32_t tile = blockIdx.x / a.n_splits, split = blockIdx.x % a.n_splits, d = a.t.head_dim;
	uint32_t c = threadIdx.x % DP, rg = threadIdx.x / DP;
	const float *m = shared + CUDA_TILE_ROWS * d + 2u * slots * tile_stride(d) + CUDA_TILE_ROWS * (slots + 4u), *l = m + CUDA_TILE_ROWS;
	struct running<DP, N> run;
	struct tile_ctx x;
	float o[rows], *kept;

	if (!tile_lane(a.t, a.t.tile[tile].seq, blockIdx.y, &x))
		return;
	if (a.n_splits > 1 && split * CUDA_CHUNK >= x.live)
		return;
	tile_rows(a.t, a.t.tile[tile].row0, &x);
	if ((x.n_rows <= FEW_ROWS) != (N == FEW_ROWS))
		return;
	tile_load_q(a.t, x, shared);
	kept = kept_for(a, x, tile);
	if (a.n_splits > 1) {
		float *p = a.partial + (((size_t)tile * a.t.n_kv_heads + x.head) * a.n_splits + split) * partial_floats(d);

		one_chunk<DP, N>(a, x, split * CUDA_CHUNK, kept, shared, page, &block, o);
		if (threadIdx.x < x.n_rows) {
			p[threadIdx.x] = m[threadIdx.x];
			p[CUDA_TILE_ROWS + threadIdx.x] = l[threadIdx.x];
		}
#pragma unroll
		for (uint32_t i = 0; i < rows; i++)
			if (c < d && rg + groups * i < x.n_rows)
				p[2u * CUDA_TILE_ROWS + (rg + groups * i) * d + c] = o[i];
		return;
	}
#pragma unroll
	for (uint32_t i = 0; i < rows; i++) {
		run.m[i] = TILE_NEG;
		run.l[i] = run.o[i] = 0.0f;
	}
	for (uint32_t first = 0; first < x.live; first += CUDA_CHUNK) {
		one_chunk<DP, N>(a, x, first, kept, shared, page, &block, o);
#pragma unroll
		for (uint32_t i = 0; i < rows; i++)
			if (rg + groups * i < x.n_rows)
				merge(run.m[i], run.l[i], run.o[i], m[rg + groups * i], l[rg + groups * i], o[i]);
		__syncthreads();
	}
	finish<DP, N>(a, x, run);
}

template <int DP>
static __global__ void __launch_bounds__(TILE_THREADS) combine_kernel(const __grid_constant__ struct attend_args a)
{
	constexpr uint32_t groups = out_size<DP, CUDA_TILE_ROWS>::row_groups, rows = out_size<DP, CUDA_TILE_ROWS>::rows;
	uint32_t c = threadIdx.x % DP, rg = threadIdx.x / DP, d = a.t.head_dim, n;
	struct running<DP, CUDA_TILE_ROWS> run;
	struct tile_ctx x;

	if (!tile_lane(a.t, a.t.tile[blockIdx.x].seq, blockIdx.y, &x))
		return;
	tile_rows(a.t, a.t.tile[blockIdx.x].row0, &x);
	n = (x.live + CUDA_CHUNK - 1u) / CUDA_CHUNK;
	n = n < a.n_splits ? n : a.n_splits;
#pragma unroll
	for (uint32_t i = 0; i < rows; i++) {
		run.m[i] = TILE_NEG;
		run.l[i] = run.o[i] = 0.0f;
	}
	for (uint32_t split = 0; split < n && c < d; split++) {
		const float *p = a.partial + (((size_t)blockIdx.x * a.t.n_kv_heads + x.head) * a.n_splits + split) *
						     partial_floats(d);

#pragma unroll
		for (uint32_t i = 0; i < rows; i++) {
			uint32_t r = rg + groups * i;

			if (r < x.n_rows)
				merge(run.m[i], run.l[i], run.o[i], p[r], p[CUDA_TILE_ROWS + r],
				      p[2u * CUDA_TILE_ROWS + r * d + c]);
		}
	}
	finish<DP, CUDA_TILE_ROWS>(a, x, run);
}

template <int DP, int N> static cudaError_t launch_rows(const struct cuda_step *st, const struct attend_args &a, cudaStream_t s)
{
	size_t bytes = attend_shared<DP>(a.t.head_dim);
	cudaError_t e = cudaFuncSetAttribute(attend_kernel<DP, N>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

	if (e != cudaSuccess)
		return e;
	attend_kernel<DP, N><<<dim3(st->n_tiles * a.n_splits, a.t.n_kv_heads), TILE_THREADS, bytes, s>>>(a);
	return cudaGetLastError();
}

template <int DP> static cudaError_t launch(const struct cuda_step *st, const struct attend_args &a, cudaStream_t s)
{
	cudaError_t e = cudaSuccess;

	if (st->few_rows)
		e = launch_rows<DP, FEW_ROWS>(st, a, s);
	if (e == cudaSuccess && st->many_rows)
		e = launch_rows<DP, CUDA_TILE_ROWS>(st, a, s);
	if (e != cudaSuccess || a.n_splits == 1)
		return e;
	combine_kernel<DP><<<dim3(st->n_tiles, a.t.n_kv_heads), TILE_THREADS, 0, s>>>(a);
	return cudaGetLastError();
}

cudaError_t cuda_attend_f32(const struct cuda_step *st, cudaStream_t s, uint32_t layer, const struct gpu_tensor *q, const struct gpu_tensor *out,
			    float scale, float *lse)
{
	struct attend_args a = { { st->view, st->seq, st->tile, st->shape.n_kv_heads, st->shape.group, st->shape.head_dim,
				   layer, st->live_max, *q, scale },
				 *out, lse, st->partial, st->n_splits, st->logits, st->kept_rows, st->kept_slots };

	switch (tile_dp(a.t.head_dim)) {
	case 64: return launch<64>(st, a, s);
	case 128: return launch<128>(st, a, s);
	default: return launch<256>(st, a, s);
	}
}
