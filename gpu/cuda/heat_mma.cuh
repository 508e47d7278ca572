/* Private to gpu/cuda/: the first part of heat_mma.cu: what a CTA has in shared memory, keys, and queries on their way there. */
#ifndef GPU_CUDA_HEAT_MMA_CUH
#define GPU_CUDA_HEAT_MMA_CUH

#include "gpu/cuda/heat.cuh"
#include "gpu/cuda/attend_mma.cuh"
#include "gpu/cuda/wgmma.cuh"

#define HEAT_WARPS 4u
#define HEAT_THREADS (HEAT_WARPS * 32u)
#define HEAT_PAIRS 64u		/* of a stage */
#define HEAT_COLUMNS 32u	/* of a product: 8 a thread */

template <int TYPE, int D> struct heat_size {
	static constexpr bool half = TYPE != GPU_BF16, q8 = TYPE == GPU_Q8;
	static constexpr uint32_t parts = D <= 128 ? 2u : 1u;	/* 16 slots each, of a warp */
	static constexpr uint32_t slots = HEAT_WARPS * 16u * parts, owned = 16u * parts;
	static constexpr uint32_t steps = D / 16u, pieces = D / 8u, panels = (D + WG_PANEL - 1u) / WG_PANEL;
	static constexpr uint32_t key_panel = slots * WG_ROW, query_panel = HEAT_PAIRS * WG_ROW;
	static constexpr uint32_t queries = panels * query_panel;	/* bytes of a stage */
};

/* The slots of a thread's rows of a product: their keys (fragments), q8 parameters, positions. */
template <int TYPE, int D> struct heat_slots {
	uint32_t k[heat_size<TYPE, D>::parts][D / 16][4];
	float2 param[2u * heat_size<TYPE, D>::parts];
	int32_t pos[2u * heat_size<TYPE, D>::parts];
};

/* Logits or probabilities of the warp's slots and 32 pairs. */
template <int TYPE, int D> struct heat_product {
	float c[heat_size<TYPE, D>::parts][4][4];
};

/* What a thread knows of its work. */
struct heat_work {
	struct tile_ctx x;
	uint32_t slot0;			/* of the CTA */
	uint32_t first, every, n;	/* queries that count: those with index first + i * every in the step, i < n */
	uint32_t shift;			/* a query has room for 1 << shift heads */
	uint32_t warp, thread, g, t4;
	uint32_t shared, queries, stage_bytes;	/* addresses of shared memory and of the stages in it */
	float *meta, *gather;		/* [stages][3][HEAT_PAIRS]: lse, scale, sum of channels; the warp's sums for the owners */
	const int32_t *pos;
};

/* --- shared memory ------------------------------------------------------------------------------------------------------------- */

struct heat_plan {
	uint32_t queries, meta, pos, param, least, bytes;	/* the keys, and later what owners gather, are at 0 */
};

/* Floats from one query's sums to the next: so that threads of a warp write to different banks. */
static __host__ __device__ constexpr uint32_t heat_stride(uint32_t heads) { return 32u + (heads >= 8u ? 8u : heads); }
static __host__ __device__ constexpr uint32_t heat_gather(uint32_t heads) { return 2u * (HEAT_COLUMNS / heads) * heat_stride(heads); }

template <int TYPE, int D>
static __host__ __device__ __forceinline__ struct heat_plan heat_plan_of(uint32_t heads, uint32_t stages, uint32_t both)
{
	using size = heat_size<TYPE, D>;
	uint32_t keys = size::panels * size::key_panel, gather = HEAT_WARPS * heat_gather(heads) * 4u;
	struct heat_plan p;

	p.queries = ((keys > gather ? keys : gather) + 1023u) / 1024u * 1024u;
	p.meta = p.queries + stages * (both ? 2u : 1u) * size::queries;
	p.pos = p.meta + stages * 3u * HEAT_PAIRS * 4u;
	p.param = p.pos + size::slots * 4u;
	p.least = p.param + (size::q8 ? size::slots * 8u : 0u);
	p.bytes = p.least + HEAT_WARPS * 4u;
	return p;
}

/* --- keys ------------------------------------------------------------------------------------------------------------------------ */

/* 16 int8 as float16 into two pieces. */
static __device__ __forceinline__ void heat_unpack(uint4 raw, uint4 (&to)[2])
{
	const uint32_t w[4] = { raw.x, raw.y, raw.z, raw.w };
	uint32_t out[8];

#pragma unroll
	for (int i = 0; i < 4; i++) {
		uint32_t even, odd;

		mma_from_int8(w[i], even, odd);
		out[2 * i] = __byte_perm(even, odd, 0x5410);
		out[2 * i + 1] = __byte_perm(even, odd, 0x7632);
	}
	to[0] = make_uint4(out[0], out[1], out[2], out[3]);
	to[1] = make_uint4(out[4], out[5], out[6], out[7]);
}

/* The slots' keys and positions on their way to shared memory; what is not there becomes zeros, and a position that no query sees. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_fetch_keys(const struct heat_args &a, const struct heat_work &w, char *shared, int32_t *pos,
						       float2 *param)
{
	using size = heat_size<TYPE, D>;
	constexpr uint32_t per = size::q8 ? 16u : 8u, vecs = D / per;
	uint32_t have = a.t.head_dim / per;

#pragma unroll 4
	for (uint32_t e = threadIdx.x; e < size::slots * vecs; e += HEAT_THREADS) {
		uint32_t s = e / vecs, c = e % vecs, slot = w.slot0 + s;
		const char *page = slot < w.x.live && c < have ? cuda_page(a.t.view, w.x.t, w.x.lane, slot) : NULL;
		const char *from = page + (size_t)(slot % GPU_PAGE_SLOTS * have + c) * 16u;

		if (size::q8) {
			uint4 raw = page ? *(const uint4 *)from : make_uint4(0, 0, 0, 0), to[2];

			heat_unpack(raw, to);
#pragma unroll
			for (uint32_t i = 0; i < 2; i++)
				*(uint4 *)(shared + (2u * c + i) / 8u * size::key_panel + wg_piece(s, (2u * c + i) % 8u)) = to[i];
		} else {
			wg_copy16(w.shared + c / 8u * size::key_panel + wg_piece(s, c % 8u), page ? from : (const char *)a.lse, page != NULL);
		}
	}
	if (threadIdx.x < size::slots) {
		uint32_t slot = w.slot0 + threadIdx.x;
		const char *page = slot < w.x.live ? cuda_page(a.t.view, w.x.t, w.x.lane, slot) : NULL;
		const char *block = slot < w.x.live ? cuda_block(a.t.view, w.x.t, w.x.lane, slot) : NULL;

		pos[threadIdx.x] = block ? ((const int32_t *)block)[slot % GPU_BLOCK_SLOTS] : INT32_MAX;
		if (size::q8)
			param[threadIdx.x] = page ? __half22float2(((const __half2 *)(page + gpu_page_params(TYPE, a.t.head_dim)))[slot % GPU_PAGE_SLOTS])
						  : make_float2(0.0f, 0.0f);
	}
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
	return w.meta + (stage * 3u + which) * HEAT_PAIRS;
}

/* What a thread copies of every tile: four rows of a stage, the log-sum-exp of one pair. Of tile 0, and how far it is to the next one. */
struct heat_source {
	const char *from[4], *lse;
	int64_t next, next_lse;
	uint32_t query[4], query_lse;	/* NOBODY: there is no such head */
};

#define NOBODY (1u << 31)

static __device__ __forceinline__ struct heat_source heat_source_of(const struct heat_args &a, const struct heat_work &w)
{
	uint32_t per = HEAT_PAIRS >> w.shift, heads = a.t.n_kv_heads * a.t.group, head;
	struct heat_source s;
	int64_t row;

	s.next = (int64_t)per * w.every * a.t.q.stride * 2;
	s.next_lse = (int64_t)per * w.every * heads * 4;
#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		uint32_t p = heat_pair(threadIdx.x / 8u + i * (HEAT_PAIRS / 4u));

		(void)heat_row(a, w, 0, p, &row, &head);
		s.query[i] = head < (w.x.head + 1u) * a.t.group ? p >> w.shift : NOBODY;
		s.from[i] = (const char *)a.t.q.data + (row * a.t.q.stride + (int64_t)head * a.t.head_dim + threadIdx.x % 8u * 8u) * 2;
	}
	(void)heat_row(a, w, 0, threadIdx.x % HEAT_PAIRS, &row, &head);
	s.query_lse = head < (w.x.head + 1u) * a.t.group ? threadIdx.x % HEAT_PAIRS >> w.shift : NOBODY;
	s.lse = (const char *)(a.lse + row * heads + head);
	return s;
}

/* The log-sum-exp of a tile's pairs; infinity takes a pair out. */
static __device__ __forceinline__ void heat_fetch_lse(const struct heat_work &w, const struct heat_source &s, uint32_t tile, uint32_t stage)
{
	float *to = heat_meta(w, stage, 0) + threadIdx.x;

	if (threadIdx.x >= HEAT_PAIRS)
		return;
	if (tile * (HEAT_PAIRS >> w.shift) + s.query_lse < w.n)
		wg_copy4(mma_shared(to), s.lse + tile * s.next_lse);
	else
		*to = __int_as_float(0x7f800000);
}

/* Queries of the slots' own type, as they are. Eight threads have a row. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_copy_queries(const struct heat_args &a, const struct heat_work &w, const struct heat_source &s,
							 uint32_t tile, uint32_t stage)
{
	using size = heat_size<TYPE, D>;
	uint32_t to = w.queries + stage * w.stage_bytes + wg_piece(threadIdx.x / 8u, threadIdx.x % 8u), query = tile * (HEAT_PAIRS >> w.shift);

#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		const char *from = s.from[i] + tile * s.next;
		bool there = query + s.query[i] < w.n;

#pragma unroll
		for (uint32_t k = 0; k < size::panels; k++) {
			bool in = k * 8u + threadIdx.x % 8u < a.t.head_dim / 8u;

			if (D % WG_PANEL == 0 || k * 8u + threadIdx.x % 8u < size::pieces)
				wg_copy16(to + k * size::query_panel + i * (HEAT_PAIRS / 4u) * WG_ROW, there && in ? from + k * WG_ROW : (const char *)a.lse,
					  there && in);
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

/* Rows r0, r0 + HEAT_WARPS, ... of a stage, each over the warp; so many that their loads overlap. */
template <int D> struct heat_rows {
	static constexpr uint32_t chunks = (D + 127u) / 128u, n = 8u / chunks;

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
		bool there = heat_row(a, w, tile, heat_pair(r0 + i * HEAT_WARPS), &row, &head);

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
	char *to = shared + (w.queries - w.shared) + stage * w.stage_bytes;
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
	for (uint32_t r0 = w.warp; r0 < HEAT_PAIRS; r0 += HEAT_WARPS * q.n) {
		switch (a.vectors ? (int)a.t.q.type : ANY_TYPE) {
		case GPU_F32: heat_load_rows<D, GPU_F32>(a, w, tile, r0, q); break;
		case GPU_F16: heat_load_rows<D, GPU_F16>(a, w, tile, r0, q); break;
		case GPU_BF16: heat_load_rows<D, GPU_BF16>(a, w, tile, r0, q); break;
		default: heat_load_rows<D, ANY_TYPE>(a, w, tile, r0, q); break;
		}
#pragma unroll
		for (uint32_t i = 0; i < q.n; i++)
			heat_convert_row<TYPE, D>(a, w, stage, r0 + i * HEAT_WARPS, q.v[i], shared);
	}
}

#endif
