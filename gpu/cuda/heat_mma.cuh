/* Private to gpu/cuda/: the first part of heat_mma.cu: what a CTA has in shared memory, keys, and queries on their way there. */
#ifndef GPU_CUDA_HEAT_MMA_CUH
#define GPU_CUDA_HEAT_MMA_CUH

#include "gpu/cuda/heat.cuh"
#include "gpu/cuda/attend_mma.cuh"
#include "gpu/cuda/wgmma.cuh"

#define HEAT_PAIRS 64u		/* of a tile of queries, and of a product: 16 a thread */
#define HEAT_CONVERTED 2u	/* stages where queries are converted on their way */
#define HEAT_COLUMNS 32u	/* half of a product's: 8 a thread, one behind the other */

template <int TYPE, int D> struct heat_size {
	static constexpr bool half = TYPE != GPU_BF16, q8 = TYPE == GPU_Q8;
	static constexpr uint32_t threads = D <= 128 ? 512u : 256u, warps = threads / 32u;
	static constexpr uint32_t slots = warps * GPU_PAGE_SLOTS;	/* a page a warp */
	static constexpr uint32_t tiles = D <= 128 ? 2u : 1u;	/* of a stage, of queries that are copied as they are; else one */
	static constexpr uint32_t steps = D / 16u, pieces = D / 8u, panels = (D + WG_PANEL - 1u) / WG_PANEL;
	static constexpr uint32_t query_panel = HEAT_PAIRS * WG_ROW, queries = panels * query_panel;	/* bytes: of a panel, of a tile */
	static constexpr uint32_t copies = HEAT_PAIRS * 8u / threads;	/* rows of a tile that a thread copies a piece of each panel of */
};

/*
 * The slots of a thread's rows of a product, g and g + 8 of the warp's page: their keys (fragments), q8 parameters, positions; and the
 * page's last position.
 */
template <int TYPE, int D> struct heat_slots {
	uint32_t k[D / 16][4];
	float2 param[2];
	int32_t pos[2], most;
};

/* Logits or probabilities of the warp's slots and a tile's pairs. */
struct heat_product {
	float c[HEAT_PAIRS / 8u][4];
};

/* What a thread knows of its work. */
struct heat_work {
	struct tile_ctx x;
	uint32_t slot0;			/* of the warp */
	uint32_t first, every, n;	/* queries that count: those with index first + i * every in the step, i < n */
	uint32_t shift;			/* a query has room for 1 << shift heads */
	uint32_t warp, thread, g, t4;
	uint32_t queries, tile_bytes, bars;	/* shared addresses of tiles and barriers; bytes of a tile, see heat_args.both */
	float *meta;			/* [3][HEAT_CONVERTED][HEAT_PAIRS]: lse, scale, sum of channels; or [tiles][HEAT_PAIRS]: lse */
};

/* --- shared memory ------------------------------------------------------------------------------------------------------------- */

struct heat_plan {
	uint32_t meta, least, bars, bytes;	/* the stages are at 0 */
};

/* A stage of queries that are copied as they are has several tiles. */
template <int TYPE, int D, bool DIRECT>
static __host__ __device__ __forceinline__ struct heat_plan heat_plan_of(uint32_t stages, uint32_t both)
{
	using size = heat_size<TYPE, D>;
	uint32_t tiles = stages * (DIRECT ? size::tiles : 1u);
	struct heat_plan p;

	p.meta = tiles * (both ? 2u : 1u) * size::queries;
	p.least = p.meta + tiles * (DIRECT ? 1u : 3u) * HEAT_PAIRS * 4u;
	p.bars = p.least + size::warps * 4u;
	p.bytes = p.bars + stages * 2u * 8u;
	return p;
}

/* --- keys ------------------------------------------------------------------------------------------------------------------------ */

/* Two neighbouring channels of a row of slots as 16-bit numbers. */
template <int TYPE> static __device__ __forceinline__ uint32_t heat_key(const char *row, uint32_t c)
{
	if (TYPE != GPU_Q8)
		return *(const uint32_t *)(row + c * 2u);
	__half2 h = __floats2half2_rn((float)((const int8_t *)row)[c], (float)((const int8_t *)row)[c + 1u]);

	return *(uint32_t *)&h;
}

/* The warp's keys, and what belongs to the thread's slots; what is not there becomes zeros, and a position that no query sees. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_load_slots(const struct heat_args &a, const struct heat_work &w,
						       struct heat_slots<TYPE, D> &slots)
{
	using size = heat_size<TYPE, D>;
	uint32_t row_bytes = a.t.head_dim * (size::q8 ? 1u : 2u);
	const char *page = w.slot0 < w.x.live ? cuda_page(a.t.view, w.x.t, w.x.lane, w.slot0) : NULL;
	const char *block = w.slot0 < w.x.live ? cuda_block(a.t.view, w.x.t, w.x.lane, w.slot0) : NULL;

#pragma unroll
	for (uint32_t h = 0; h < 2; h++) {
		uint32_t r = w.g + 8u * h;
		bool there = w.slot0 + r < w.x.live;

		slots.pos[h] = block && there ? ((const int32_t *)block)[w.slot0 % GPU_BLOCK_SLOTS + r] : INT32_MAX;
		slots.param[h] = make_float2(0.0f, 0.0f);
		if (size::q8 && page && there)
			slots.param[h] = __half22float2(((const __half2 *)(page + gpu_page_params(TYPE, a.t.head_dim)))[r]);
#pragma unroll
		for (uint32_t j = 0; j < size::steps; j++)
#pragma unroll
			for (uint32_t i = 0; i < 2; i++) {
				uint32_t c = 16u * j + 8u * i + 2u * w.t4;

				slots.k[j][2u * i + h] = page && there && c < a.t.head_dim ? heat_key<TYPE>(page + r * row_bytes, c) : 0u;
			}
	}
	slots.most = __reduce_max_sync(0xffffffffu, max(slots.pos[0], slots.pos[1]));
}

/* --- queries --------------------------------------------------------------------------------------------------------------------- */

/* The pair that row r of a stage holds, padded heads included: a thread's columns 8 nt + 2 t4 + h of a product are neighbours. */
static __device__ __forceinline__ uint32_t heat_pair(uint32_t r)
{
	return r / 32u * 32u + r % 8u / 2u * 8u + r % 32u / 8u * 2u + r % 2u;
}

/* Where the query of pair p of the tile is, in rows of the step's tensors; false: there is none. */
static __device__ __forceinline__ bool heat_row(const struct heat_args &a, const struct heat_work &w, uint32_t tile, uint32_t p,
						int64_t *row, uint32_t *head)
{
	uint32_t i = tile * (HEAT_PAIRS >> w.shift) + (p >> w.shift), h = p & ((1u << w.shift) - 1u);

	*row = (int64_t)w.x.seq.row + w.first + (int64_t)i * w.every;
	*head = w.x.head * a.t.group + h;
	return i < w.n && h < a.t.group;
}

static __device__ __forceinline__ float *heat_meta(const struct heat_work &w, uint32_t stage, uint32_t which)
{
	return w.meta + (which * HEAT_CONVERTED + stage) * HEAT_PAIRS;
}

/* What a thread copies of every tile: pieces of rows, the log-sum-exp of one pair. Of tile 0, and how far it is to the next one. */
template <int TYPE, int D> struct heat_source {
	const char *from[heat_size<TYPE, D>::copies], *lse;
	int64_t next, next_lse;
	uint32_t query[heat_size<TYPE, D>::copies], query_lse;	/* NOBODY: there is no such head */
};

#define NOBODY (1u << 31)

template <int TYPE, int D>
static __device__ __forceinline__ struct heat_source<TYPE, D> heat_source_of(const struct heat_args &a, const struct heat_work &w)
{
	using size = heat_size<TYPE, D>;
	uint32_t per = HEAT_PAIRS >> w.shift, heads = a.t.n_kv_heads * a.t.group, head;
	struct heat_source<TYPE, D> s;
	int64_t row;

	s.next = (int64_t)per * w.every * a.t.q.stride * 2;
	s.next_lse = (int64_t)per * w.every * heads * 4;
#pragma unroll
	for (uint32_t i = 0; i < size::copies; i++) {
		uint32_t p = heat_pair(threadIdx.x / 8u + i * (size::threads / 8u));

		(void)heat_row(a, w, 0, p, &row, &head);
		s.query[i] = head < (w.x.head + 1u) * a.t.group ? p >> w.shift : NOBODY;
		s.from[i] = (const char *)a.t.q.data + (row * a.t.q.stride + (int64_t)head * a.t.head_dim + threadIdx.x % 8u * 8u) * 2;
	}
	(void)heat_row(a, w, 0, threadIdx.x % HEAT_PAIRS, &row, &head);
	s.query_lse = head < (w.x.head + 1u) * a.t.group ? threadIdx.x % HEAT_PAIRS >> w.shift : NOBODY;
	s.lse = (const char *)(a.lse + row * heads + head);
	return s;
}

static __device__ const float heat_nobody = INFINITY;	/* a log-sum-exp that takes a pair out */

/* The log-sum-exps of a tile's pairs. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_fetch_lse(const struct heat_work &w, const struct heat_source<TYPE, D> &s, uint32_t tile,
						      uint32_t stage)
{
	bool there = tile * (HEAT_PAIRS >> w.shift) + s.query_lse < w.n;

	if (threadIdx.x < HEAT_PAIRS)
		wg_copy4(mma_shared(heat_meta(w, stage, 0) + threadIdx.x), there ? s.lse + tile * s.next_lse : (const char *)&heat_nobody);
}

/* Queries of the slots' own type, as they are. Eight threads have a row. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_copy_queries(const struct heat_args &a, const struct heat_work &w,
							 const struct heat_source<TYPE, D> &s, uint32_t tile, uint32_t stage)
{
	using size = heat_size<TYPE, D>;
	uint32_t to = w.queries + stage * w.tile_bytes + wg_piece(threadIdx.x / 8u, threadIdx.x % 8u);
	uint32_t query = tile * (HEAT_PAIRS >> w.shift);

#pragma unroll
	for (uint32_t i = 0; i < size::copies; i++) {
		const char *from = s.from[i] + tile * s.next;
		bool there = query + s.query[i] < w.n;

#pragma unroll
		for (uint32_t k = 0; k < size::panels; k++) {
			bool in = k * 8u + threadIdx.x % 8u < a.t.head_dim / 8u;

			if (D % WG_PANEL == 0 || k * 8u + threadIdx.x % 8u < size::pieces)
				wg_copy16(to + k * size::query_panel + i * (size::threads / 8u) * WG_ROW,
					  there && in ? from + k * WG_ROW : (const char *)a.lse, there && in);
		}
	}
}

/* Four numbers of a query: rounded, and with `low` what the rounding left. */
template <bool HALF> static __device__ __forceinline__ void heat_put(char *to, const float4 &v, uint32_t low)
{
	*(uint2 *)to = make_uint2(mma_pack<HALF>(v.x, v.y), mma_pack<HALF>(v.z, v.w));
	if (low)
		*(uint2 *)(to + low) = make_uint2(mma_pack<HALF>(v.x - mma_rounded<HALF>(v.x), v.y - mma_rounded<HALF>(v.y)),
						  mma_pack<HALF>(v.z - mma_rounded<HALF>(v.z), v.w - mma_rounded<HALF>(v.w)));
}

#define ANY_TYPE (-1)		/* and anywhere in memory */

template <int QTYPE> static __device__ __forceinline__ float4 heat_load4(const struct gpu_tensor &q, int64_t at)
{
	if constexpr (QTYPE == GPU_F32)
		return *(const float4 *)((const float *)q.data + at);
	if constexpr (QTYPE == GPU_F16 || QTYPE == GPU_BF16) {
		uint2 raw = *(const uint2 *)((const __half *)q.data + at);
		float2 a = QTYPE == GPU_F16 ? __half22float2(*(__half2 *)&raw.x) : __bfloat1622float2(*(__nv_bfloat162 *)&raw.x);
		float2 b = QTYPE == GPU_F16 ? __half22float2(*(__half2 *)&raw.y) : __bfloat1622float2(*(__nv_bfloat162 *)&raw.y);

		return make_float4(a.x, a.y, b.x, b.y);
	}
	return make_float4(cuda_load(q.data, q.type, at), cuda_load(q.data, q.type, at + 1), cuda_load(q.data, q.type, at + 2),
			   cuda_load(q.data, q.type, at + 3));
}

/* Rows r0, r0 + the CTA's warps, ... of a stage, each over the warp; so many that their loads overlap. */
template <int D> struct heat_rows {
	static constexpr uint32_t chunks = (D + 127u) / 128u, n = 4u;

	float4 v[n][chunks];
};

template <int D, int QTYPE>
static __device__ __forceinline__ void heat_load_rows(const struct heat_args &a, const struct heat_work &w, uint32_t tile, uint32_t r0,
						      struct heat_rows<D> &q)
{
#pragma unroll
	for (uint32_t i = 0; i < q.n; i++) {
		uint32_t head;
		int64_t row;
		bool there = heat_row(a, w, tile, heat_pair(r0 + i * (blockDim.x / 32u)), &row, &head);

#pragma unroll
		for (uint32_t k = 0; k < q.chunks; k++) {
			uint32_t c = (k * 32u + w.thread) * 4u;

			q.v[i][k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
			if (there && c < a.t.head_dim)
				q.v[i][k] = heat_load4<QTYPE>(a.t.q, row * a.t.q.stride + (int64_t)head * a.t.head_dim + c);
		}
	}
}

/* A row as the product wants it: as in mma_load_queries(), float16 ones scaled by a power of two. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_convert_row(const struct heat_args &a, const struct heat_work &w, uint32_t stage, uint32_t r,
							float4 (&v)[heat_rows<D>::chunks], char *shared)
{
	using size = heat_size<TYPE, D>;
	char *to = shared + stage * w.tile_bytes;
	float sum = 0.0f, by = 1.0f;
	uint32_t top = 0;

	if (size::half) {
#pragma unroll
		for (uint32_t k = 0; k < heat_rows<D>::chunks; k++) {
			sum += (v[k].x + v[k].y) + (v[k].z + v[k].w);
			top = max(top, __float_as_uint(fmaxf(fmaxf(fabsf(v[k].x), fabsf(v[k].y)), fmaxf(fabsf(v[k].z), fabsf(v[k].w)))));
		}
#pragma unroll
		for (int d = 1; d < 32; d <<= 1)
			sum += __shfl_xor_sync(0xffffffffu, sum, d);
		top = __reduce_max_sync(0xffffffffu, top) >> 23;
		top = top < 20u || top > 240u ? 127u + 13u : top;
		by = __uint_as_float((254u + 13u - top) << 23);
	}
#pragma unroll
	for (uint32_t k = 0; k < heat_rows<D>::chunks; k++) {
		uint32_t c = (k * 32u + w.thread) * 4u;

		v[k] = make_float4(v[k].x * by, v[k].y * by, v[k].z * by, v[k].w * by);
		if (c < D)
			heat_put<size::half>(to + c / WG_PANEL * size::query_panel + wg_piece(r, c % WG_PANEL / 8u) + c % 8u * 2u, v[k],
					     a.both ? size::queries : 0u);
	}
	if (w.thread == 0) {
		heat_meta(w, stage, 1)[heat_pair(r)] = a.t.scale / by;
		heat_meta(w, stage, 2)[heat_pair(r)] = sum * by;
	}
}

/* Queries of any type. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_convert_queries(const struct heat_args &a, const struct heat_work &w, uint32_t tile,
							    uint32_t stage, char *shared)
{
	struct heat_rows<D> q;

#pragma unroll 1
	for (uint32_t r0 = w.warp; r0 < HEAT_PAIRS; r0 += heat_size<TYPE, D>::warps * q.n) {
		switch (a.vectors ? (int)a.t.q.type : ANY_TYPE) {
		case GPU_F32: heat_load_rows<D, GPU_F32>(a, w, tile, r0, q); break;
		case GPU_F16: heat_load_rows<D, GPU_F16>(a, w, tile, r0, q); break;
		case GPU_BF16: heat_load_rows<D, GPU_BF16>(a, w, tile, r0, q); break;
		default: heat_load_rows<D, ANY_TYPE>(a, w, tile, r0, q); break;
		}
#pragma unroll
		for (uint32_t i = 0; i < q.n; i++)
			heat_convert_row<TYPE, D>(a, w, stage, r0 + i * heat_size<TYPE, D>::warps, q.v[i], shared);
	}
}

#endif
