/*
 * Private to gpu/cuda/: what attend and observe share of float32 slots: K (and V) of a few slots in shared memory, and the logits of
 * up to 16 (query, head) pairs against them. Both operations compute a logit by the very same instructions, so that the
 * probabilities that become heat are those that made the output.
 */
#ifndef GPU_CUDA_TILE_CUH
#define GPU_CUDA_TILE_CUH

#include "gpu/cuda/common.cuh"

#define TILE_THREADS 256u	/* 8 warps: one per 2 rows of a tile in the softmax, and enough loads in flight */
#define TILE_NEG (__int_as_float(0xff800000))

/* Which queries give heat: every `every`-th position (0: none), and of the step's queries only those from `from` on. */
struct tile_chosen {
	uint32_t every, from;
};

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
	uint32_t n_kv_heads, group, head_dim, layer, live_max;
	struct gpu_tensor q;
	float scale;
};

/* Slots that shared memory holds at a time: K and V of 256 channels as float32 are large. */
template <int DP> struct tile_size {
	static constexpr uint32_t slots = DP == 256 ? 32u : 64u;
	static constexpr uint32_t parts = TILE_THREADS / slots;		/* threads of a slot in the logit phase */
};

/* Floats from one slot's row in shared memory to the next: 16 more than there are, so that neighbours do not share banks. */
static __host__ __device__ __forceinline__ uint32_t tile_stride(uint32_t d) { return d + 16u; }

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
	cap = cap < a.live_max ? cap : a.live_max;	/* scratch has no room for more */
	x->live = x->live < cap ? x->live : cap;
	return true;
}

static __device__ __forceinline__ void tile_rows(const struct tile_args &a, uint32_t row0, struct tile_ctx *x)
{
	uint32_t all = x->seq.n * a.group;

	x->row0 = row0;
	x->n_rows = all - row0 < CUDA_TILE_ROWS ? all - row0 : CUDA_TILE_ROWS;
}

/* The first of the step's queries that may give heat, whatever the table says. */
static __device__ __forceinline__ uint32_t tile_heat_from(const struct tile_ctx &x)
{
	return x.seq.heat_from > x.seq.pos ? (uint32_t)(x.seq.heat_from - x.seq.pos) : 0u;
}

static __device__ __forceinline__ bool tile_counts(const struct tile_chosen &c, const struct tile_ctx &x, uint32_t j)
{
	return j >= c.from && c.every && ((uint32_t)x.seq.pos + j) % c.every == 0;
}

/* Does any query of from .. to-1 count? */
static __device__ __forceinline__ bool tile_any_counts(const struct tile_chosen &c, const struct tile_ctx &x, uint32_t from,
						       uint32_t to)
{
	uint32_t j = from > c.from ? from : c.from, past;

	if (!c.every || j >= to)
		return false;
	past = ((uint32_t)x.seq.pos + j) % c.every;
	return past == 0 || c.every - past < to - j;
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

/* Rows on their way from the pool to shared memory: a thread's 16-byte pieces. All are asked for before the first is used. */
template <int DP> struct tile_rows_in_flight {
	static constexpr uint32_t n = (tile_size<DP>::slots * (DP / 4u) + TILE_THREADS - 1u) / TILE_THREADS;

	float4 row[n];
};

/* i / vecs for i <= 4096 and vecs <= 64, by multiplication. inverse = ceil(2^20 / vecs). */
static __device__ __forceinline__ uint32_t tile_divide(uint32_t i, uint32_t inverse)
{
	return i * inverse >> 20;
}

/* Ask for K (which = 0) or V (1) of the slots from `slot` of a chunk; those that are not live (from n_live on) become zeros. */
template <int DP>
static __device__ __forceinline__ void tile_fetch(const struct tile_args &a, char *const *page, uint32_t slot, uint32_t n_live,
						  uint32_t which, uint32_t inverse, struct tile_rows_in_flight<DP> &f)
{
	uint32_t d = a.head_dim, vecs = d / 4u;

#pragma unroll
	for (uint32_t u = 0; u < f.n; u++) {
		uint32_t i = threadIdx.x + u * TILE_THREADS, s = tile_divide(i, inverse), v = i - s * vecs;
		uint32_t in_page = (slot + s) % GPU_PAGE_SLOTS;
		const char *p = s < n_live && s < tile_size<DP>::slots ? page[(slot + s) / GPU_PAGE_SLOTS] : NULL;

		f.row[u] = make_float4(0, 0, 0, 0);
		if (p)
			f.row[u] = *(const float4 *)(p + which * gpu_page_v(GPU_F32, d) + (in_page * vecs + v) * 16u);
	}
}

/* What was fetched, into out[slots][tile_stride(d)]. */
template <int DP>
static __device__ __forceinline__ void tile_put(const struct tile_args &a, uint32_t inverse, const struct tile_rows_in_flight<DP> &f, float *out)
{
	uint32_t d = a.head_dim, vecs = d / 4u;

#pragma unroll
	for (uint32_t u = 0; u < f.n; u++) {
		uint32_t i = threadIdx.x + u * TILE_THREADS, s = tile_divide(i, inverse);

		if (s < tile_size<DP>::slots)
			*(float4 *)(out + s * tile_stride(d) + (i - s * vecs) * 4u) = f.row[u];
	}
}

static __device__ __forceinline__ uint32_t tile_inverse(uint32_t vecs)
{
	return ((1u << 20) + vecs - 1u) / vecs;
}

/*
 * Logits of every row of the tile against the slots in k[], into s[row][slots + 4]; -inf where a query may not look. The threads of
 * a slot share its channels, every 4th (or 8th) four of them each; a dot product is those threads' four running sums, added
 * by a fixed tree. Four rows at a time; the thread with part p < 4 then owns rows p, p + 4, ...
 */
template <int DP>
static __device__ __forceinline__ void tile_logits(const struct tile_args &a, const struct tile_ctx &x, const float *q,
						   const float *k, const char *block, uint32_t chunk_slot,
						   uint32_t n_live, float *s)
{
	constexpr uint32_t slots = tile_size<DP>::slots, parts = tile_size<DP>::parts;
	uint32_t slot = threadIdx.x / parts, part = threadIdx.x % parts, d = a.head_dim;
	int32_t pos = slot < n_live && block ? ((const int32_t *)block)[chunk_slot + slot] : 0;
	const float *mine = k + slot * tile_stride(d);

	for (uint32_t r0 = 0; r0 < x.n_rows; r0 += 4u) {
		float4 sum[4] = {};
		float dot[4];

		for (uint32_t c = 4u * part; c < d; c += 4u * parts) {
			float4 kk = *(const float4 *)(mine + c);

#pragma unroll
			for (uint32_t i = 0; i < 4; i++) {
				float4 qq = *(const float4 *)(q + (r0 + i) * d + c);

				sum[i].x = __fmaf_rn(qq.x, kk.x, sum[i].x);
				sum[i].y = __fmaf_rn(qq.y, kk.y, sum[i].y);
				sum[i].z = __fmaf_rn(qq.z, kk.z, sum[i].z);
				sum[i].w = __fmaf_rn(qq.w, kk.w, sum[i].w);
			}
		}
#pragma unroll
		for (uint32_t i = 0; i < 4; i++) {
			dot[i] = __fadd_rn(__fadd_rn(sum[i].x, sum[i].y), __fadd_rn(sum[i].z, sum[i].w));
#pragma unroll
			for (uint32_t by = 1; by < parts; by *= 2)
				dot[i] = __fadd_rn(dot[i], __shfl_xor_sync(0xffffffffu, dot[i], by));
		}
		if (part < 4 && r0 + part < x.n_rows) {
			float z = part == 0 ? dot[0] : part == 1 ? dot[1] : part == 2 ? dot[2] : dot[3];
			int32_t at = x.seq.pos + (int32_t)((x.row0 + r0 + part) / a.group);

			s[(r0 + part) * (slots + 4u) + slot] = slot < n_live && pos <= at ? __fmul_rn(a.scale, z) : TILE_NEG;
		}
	}
}

#endif
