/*
 * Private to gpu/cuda/: what attend and observe share: K (and V) of a few slots as float32 in shared memory, and the logits of
 * up to 16 (query, head) pairs against them. Both operations compute a logit by the very same instructions, so that the
 * probabilities that become heat are those that made the output.
 */
#ifndef GPU_CUDA_TILE_CUH
#define GPU_CUDA_TILE_CUH

#include "gpu/cuda/common.cuh"

#define TILE_THREADS 256u	/* 8 warps: one per 2 rows of a tile in the softmax, and enough loads in flight */
#define TILE_NEG (__int_as_float(0xff800000))

/* What a CTA works on. Filled by every thread alike. */
struct tile_ctx {
	const struct gpu_table *t;
	struct gpu_seq seq;
	uint32_t lane, head;		/* lane of the session; KV head */
	uint32_t live;			/* live slots of the lane, this step's tokens included */
	uint32_t row0, n_rows;		/* (query, head) pairs of this tile: pair = query * group + head of the group */
};

struct tile_args {
	struct cuda_view view;
	const struct gpu_seq *seq;
	const struct cuda_tile *tile;
	uint32_t n_kv_heads, group, head_dim, layer, slot_type;
	struct gpu_tensor q;
	float scale;
};

/* Slots that shared memory holds at a time: K and V of 256 channels as float32 are large. */
template <int DP> struct tile_size {
	static constexpr uint32_t slots = DP == 256 ? 32u : 64u;
	static constexpr uint32_t row_groups = TILE_THREADS / slots;		/* threads of a slot in the logit phase */
	static constexpr uint32_t rows = CUDA_TILE_ROWS / row_groups;		/* rows of a thread there */
};

static inline int tile_dp(uint32_t head_dim) { return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256; }

static __device__ __forceinline__ bool tile_lane(const struct tile_args &a, uint32_t seq, uint32_t head, struct tile_ctx *x)
{
	struct gpu_lane l;
	uint32_t cap;

	x->seq = a.seq[seq];
	x->t = (const struct gpu_table *)x->seq.table;
	x->head = head;
	x->lane = a.layer * a.n_kv_heads + head;
	if (x->lane >= x->t->n_lanes)
		return false;
	l = ((const struct gpu_lane *)((const char *)x->t + gpu_table_lanes()))[x->lane];
	x->live = gpu_live(l, x->seq.used + x->seq.n);
	cap = cuda_slots(x->t);
	x->live = x->live < cap ? x->live : cap;
	return true;
}

static __device__ __forceinline__ void tile_rows(const struct tile_args &a, uint32_t row0, struct tile_ctx *x)
{
	uint32_t all = x->seq.n * a.group;

	x->row0 = row0;
	x->n_rows = all - row0 < CUDA_TILE_ROWS ? all - row0 : CUDA_TILE_ROWS;
}

/* Queries of the tile into q[16][d]; rows beyond the last are zero. Needs a barrier after it. */
static __device__ void tile_load_q(const struct tile_args &a, const struct tile_ctx &x, float *q)
{
	uint32_t d = a.head_dim;

	for (uint32_t i = threadIdx.x; i < CUDA_TILE_ROWS * d; i += TILE_THREADS) {
		uint32_t r = i / d, pair = x.row0 + r;
		int64_t row = (int64_t)x.seq.row + pair / a.group;
		int64_t at = row * a.q.stride + ((int64_t)x.head * a.group + pair % a.group) * d + (i - r * d);

		q[i] = r < x.n_rows ? cuda_load(a.q.data, a.q.type, at) : 0.0f;
	}
}

/* Page addresses (NULL beyond the live slots) and the position block of the chunk that begins at slot `first`. */
static __device__ __forceinline__ void tile_load_pages(const struct tile_args &a, const struct tile_ctx &x, uint32_t first,
						       char **page, char **block)
{
	uint32_t slot = first + threadIdx.x * GPU_PAGE_SLOTS;

	if (threadIdx.x < CUDA_CHUNK / GPU_PAGE_SLOTS)
		page[threadIdx.x] = slot < x.live ? cuda_page(a.view, x.t, x.lane, slot) : NULL;
	if (threadIdx.x == 32)
		*block = first < x.live ? cuda_block(a.view, x.t, x.lane, first) : NULL;
}

/* 16 bytes of a row as floats. scale and offset: q8 only. */
template <int TYPE>
static __device__ __forceinline__ void tile_unpack(const uint4 &raw, float scale, float offset, float *out)
{
	const uint32_t w[4] = { raw.x, raw.y, raw.z, raw.w };

#pragma unroll
	for (int i = 0; i < 4; i++) {
		if (TYPE == GPU_F32) {
			out[i] = __uint_as_float(w[i]);
		} else if (TYPE == GPU_F16) {
			out[2 * i] = __half2float(__ushort_as_half((unsigned short)(w[i] & 0xffffu)));
			out[2 * i + 1] = __half2float(__ushort_as_half((unsigned short)(w[i] >> 16)));
		} else if (TYPE == GPU_BF16) {
			out[2 * i] = __uint_as_float(w[i] << 16);
			out[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
		} else {
#pragma unroll
			for (int b = 0; b < 4; b++)
				out[4 * i + b] = __fmaf_rn(scale, (float)(signed char)(w[i] >> (8 * b) & 0xffu), offset);
		}
	}
}

/* K (which = 0) or V (1) rows of `n` slots from `slot` of a chunk into out[n][d + 4]; slots that are not live become zeros. */
template <int TYPE, int DP>
static __device__ __forceinline__ void tile_load_rows(const struct tile_args &a, char *const *page, uint32_t slot,
						      uint32_t n_live, uint32_t which, float *out)
{
	constexpr uint32_t per = TYPE == GPU_F32 ? 4u : TYPE == GPU_Q8 ? 16u : 8u;	/* channels in 16 bytes */
	uint32_t d = a.head_dim, vecs = d / per;

#pragma unroll 4
	for (uint32_t i = threadIdx.x; i < tile_size<DP>::slots * vecs; i += TILE_THREADS) {
		uint32_t s = i / vecs, v = i - s * vecs, in_page = (slot + s) % GPU_PAGE_SLOTS;
		const char *p = page[(slot + s) / GPU_PAGE_SLOTS];
		uint4 raw = make_uint4(0, 0, 0, 0);
		float scale = 0.0f, offset = 0.0f, x[per];

		if (p && s < n_live) {
			raw = *(const uint4 *)(p + which * gpu_page_v(TYPE, d) + (in_page * vecs + v) * 16u);
			if (TYPE == GPU_Q8) {
				const __half *par = (const __half *)(p + gpu_page_params(TYPE, d)) +
						    2u * (which * GPU_PAGE_SLOTS + in_page);

				scale = __half2float(par[0]);
				offset = __half2float(par[1]);
			}
		}
		tile_unpack<TYPE>(raw, scale, offset, x);
#pragma unroll
		for (uint32_t c = 0; c < per; c += 4)
			*(float4 *)(out + s * (d + 4u) + v * per + c) = make_float4(x[c], x[c + 1], x[c + 2], x[c + 3]);
	}
}

/*
 * Logits of every row of the tile against the slots in k[][d + 4], into s[row][slots + 1]; -inf where a query may not look.
 * A thread has one slot and several rows; a dot product is four running sums over the channels, added at the end.
 */
template <int DP>
static __device__ __forceinline__ void tile_logits(const struct tile_args &a, const struct tile_ctx &x, const float *q,
						   const float *k, const char *block, uint32_t chunk_slot,
						   uint32_t n_live, float *s)
{
	using size = tile_size<DP>;
	uint32_t slot = threadIdx.x % size::slots, rg = threadIdx.x / size::slots, d = a.head_dim;
	int32_t pos = slot < n_live && block ? ((const int32_t *)block)[chunk_slot + slot] : 0;
	float4 sum[size::rows];

#pragma unroll
	for (uint32_t i = 0; i < size::rows; i++)
		sum[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
	for (uint32_t c = 0; c < d; c += 4) {
		float4 kk = *(const float4 *)(k + slot * (d + 4u) + c);

#pragma unroll
		for (uint32_t i = 0; i < size::rows; i++) {
			if (rg + size::row_groups * i < x.n_rows) {
				float4 qq = *(const float4 *)(q + (rg + size::row_groups * i) * d + c);

				sum[i].x = __fmaf_rn(qq.x, kk.x, sum[i].x);
				sum[i].y = __fmaf_rn(qq.y, kk.y, sum[i].y);
				sum[i].z = __fmaf_rn(qq.z, kk.z, sum[i].z);
				sum[i].w = __fmaf_rn(qq.w, kk.w, sum[i].w);
			}
		}
	}
#pragma unroll
	for (uint32_t i = 0; i < size::rows; i++) {
		uint32_t r = rg + size::row_groups * i;
		int32_t at = x.seq.pos + (int32_t)((x.row0 + r) / a.group);
		float dot = __fadd_rn(__fadd_rn(sum[i].x, sum[i].y), __fadd_rn(sum[i].z, sum[i].w));

		if (r < x.n_rows)
			s[r * (size::slots + 1u) + slot] = slot < n_live && pos <= at ? __fmul_rn(a.scale, dot) : TILE_NEG;
	}
}

#endif
