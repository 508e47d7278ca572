/*
 * Private to gpu/cuda/: attend on tensor cores, for 16-bit and q8 slots. attend_mma.cu plans and launches; attend_bf16.cu, attend_f16.cu and
 * attend_q8.cu make the kernels.
 *
 * What: four warps take a lane, or four warps of each CTA of a cluster share one. A warp streams pages into its own ring in shared
 * memory; slots are the rows of S = K q^T and of P V, (query, head) pairs the columns, 8 or 16 of them. No barrier until the lane is read.
 * With one CTA a lane, and one tile a session (RUN): no more CTAs than run at once, each takes one lane after the other, and the rings run
 * on into the next lane, so that the memory stays busy while a lane is merged and written.
 *
 * The tree. A lane's pages form up to 64 strips of equal length, of 2 pages up to 2048 slots (q8: up to 32, of 4: its pages are small, and
 * merging strips costs as much as reading them). A strip is summed up in order while its maximum moves; 4 strips make a group, 4 groups a
 * quarter, 4 quarters the lane, each merged in order by the same instructions. One CTA a lane: a warp has a quarter. Clusters of 4: a warp has
 * a group. Clusters of 16: a warp has a strip. So the bits of out depend on the lane's own length and on nothing else: not on how many CTAs
 * share it, on heat, on page ids, on other sessions.
 *
 * Heat: the logits stay in shared memory (or scratch) until the lane's log-sum-exp is known; then each slot has one owner, who adds up the
 * heads in order, and the queries in order. Or it is taken later (keep.cu): then a lane's query and log-sum-exp are kept when it is written.
 *
 * Memory traffic: K, V and positions (unless every query sees every slot) once; logits none (or 8 bytes a pair and slot, L2); heat 8 bytes
 * a slot and array, or a query's bytes.
 */
#ifndef GPU_CUDA_ATTEND_MMA_CUH
#define GPU_CUDA_ATTEND_MMA_CUH

#include "gpu/cuda/mma.cuh"

#define MMA_WARPS 4u
#define MMA_THREADS (MMA_WARPS * 32u)
#define MMA_MAX_STAGES 6u
#define MMA_FAR_SLOTS (MMA_THREADS * 4u)	/* slots and heads whose logits are fetched from scratch at a time */
#define MMA_FAR_HEADS 4u
#define MMA_NOTHING -1e30f	/* maximum of no slots: finite, so that differences are numbers */

struct mma_args {
	struct cuda_view view;
	const struct cuda_item *item;	/* of the layer */
	const struct cuda_tile *tile;	/* NULL: one tile a session, and items are tiles; else items are sessions */
	uint32_t n_units, n_tiles, n_kv_heads, group, head_dim;
	uint32_t rows;			/* pairs of the largest tile */
	uint32_t shared_bytes;
	uint32_t heat_floats;		/* of a row of logits in shared memory; 0: they go to scratch */
	uint32_t cluster;		/* 1, 4 or 16 */
	uint32_t at_once;		/* CTAs that run side by side */
	uint32_t exact_q;		/* queries have more digits than a slot: they come as a sum of two */
	uint32_t direct_q;		/* queries lie in memory as the products want them */
	uint32_t by_group, by_vecs;	/* mma_inverse() of the group, and of a head's vectors of four */
	struct gpu_tensor q, out;
	float *lse;
	float scale;			/* times log2(e) */
	float *logits;			/* scratch: [tile of the launch][kv head][rows][scratch_slots]; if a CTA has whole lanes: [CTA][rows][scratch_slots] */
	uint32_t scratch_slots;
	uint32_t newest;		/* every query sees every live slot: positions are not read */
	uint16_t *keep_q;		/* of the layer: struct cuda_keep */
	float *keep_lse;
	uint32_t keep_depth;		/* 0: heat is taken at once */
	uint32_t far_depth;		/* how often a few heads of some slots fit where logits have room: mma_heat_far(). 0: not at all */
};

/* Shared memory of a CTA, byte offsets. Behind `ring` come the stages, as many as fit. */
struct mma_plan {
	uint32_t item, part, end, by_warp, got, by_part, by_quarter, slices, out, lower, logits, ring;
};

/* n / d as a product, for n * d below 2^32: behind a lane's last page all is one chain of instructions, in which a division takes 100 cycles. */
static __host__ __device__ __forceinline__ uint32_t mma_inverse(uint32_t d) { return d > 1u ? 0xffffffffu / d + 1u : 0u; }
static __device__ __forceinline__ uint32_t mma_divide(uint32_t n, uint32_t inverse) { return inverse ? __umulhi(n, inverse) : n; }

static __host__ __device__ __forceinline__ uint32_t mma_slice(uint32_t rows, uint32_t d, uint32_t cluster)	/* floats */
{
	return (rows * d / 4u + cluster - 1u) / cluster * 4u;
}

static __host__ __device__ __forceinline__ struct mma_plan mma_shared_plan(uint32_t rows, uint32_t d, uint32_t dp, uint32_t cluster, bool lower,
									 uint32_t heat_floats)
{
	struct mma_plan p;
	uint32_t even = (rows + 1u) / 2u * 2u;

	p.item = 16u;						/* behind the barrier: the CTA's next lane, in one of two places */
	p.part = p.item + 2u * (uint32_t)sizeof(struct cuda_item);	/* (maximum, sum) of each warp */
	p.end = p.part + MMA_WARPS * even * 8u;			/* of the lane: (maximum, 1 / sum) */
	p.by_warp = p.end + even * 8u;				/* factors of the warps' merge */
	p.got = p.by_warp + MMA_WARPS * even * 8u;		/* (maximum, sum) of each CTA of the cluster */
	p.by_part = p.got + (cluster > 1u ? cluster * even * 8u : 0u);
	p.by_quarter = p.by_part + (cluster > 1u ? cluster * even * 8u : 0u);
	p.slices = p.by_quarter + (cluster > 1u ? 4u * even * 8u : 0u);
	p.out = p.slices + (cluster > 1u ? cluster * mma_slice(rows, d, cluster) * 4u : 0u);
	p.lower = p.out + MMA_WARPS * rows * (dp + 4u) * 4u;
	p.logits = (p.lower + (lower ? (rows + 7u) / 8u * dp * 16u : 0u) + 127u) / 128u * 128u;
	p.ring = (p.logits + rows * heat_floats * 4u + 127u) / 128u * 128u;
	return p;
}

/* Kernels are made for some head sizes; the others use the next larger one. */
static inline uint32_t mma_padded(uint32_t d) { return d <= 64u ? 64u : d <= 96u ? 96u : d <= 128u ? 128u : d <= 192u ? 192u : 256u; }

static inline uint32_t mma_tile_rows(uint32_t d) { return mma_padded(d) <= 128u ? 16u : 8u; }

/* attend_bf16.cu, attend_f16.cu, attend_q8.cu. early: before the kernel in front has ended. max_clusters: ask only, see mma_launch_one(). */
cudaError_t mma_launch_bf16(const struct mma_args &a, bool early, cudaStream_t s, int *max_clusters);
cudaError_t mma_launch_f16(const struct mma_args &a, bool early, cudaStream_t s, int *max_clusters);
cudaError_t mma_launch_q8(const struct mma_args &a, bool early, cudaStream_t s, int *max_clusters);

/* The part of the tree that a warp has: strips first .. end-1, groups as they end. */
static __host__ __device__ __forceinline__ uint32_t mma_cut(uint32_t from, uint32_t to, uint32_t i)
{
	return from + (to - from) * i / 4u;
}

/*
 * A stage of the ring: the rows of K and of V, page by page, then parameters, then positions. Of short rows a stage has two pages: what a
 * warp does with 32 slots at a time takes little longer than with 16. Pieces of 16 bytes change places within a row so that the same piece
 * of 8 neighbouring rows lies in 8 different groups of banks; they stay in their 128 bytes (where a row has so many). Padding the rows
 * instead costs: a copy whose two halves of a 32-byte sector land in two sectors fetches it twice: every second row, with 16 bytes.
 */
static __host__ __device__ constexpr uint32_t mma_stage_pages(uint32_t row) { return row <= 128u ? 2u : 1u; }

static __host__ __device__ constexpr uint32_t mma_stage_bytes(uint32_t row, bool q8)
{
	return (mma_stage_pages(row) * (2u * GPU_PAGE_SLOTS * row + (q8 ? 128u : 0u) + 64u) + 127u) / 128u * 128u;
}

template <int TYPE, int D, int NT> struct mma_size {
	static constexpr bool half = TYPE != GPU_BF16, q8 = TYPE == GPU_Q8;	/* int8 fits float16, too */
	static constexpr uint32_t row = D * (q8 ? 1u : 2u), pieces = row / 16u;
	static constexpr uint32_t turn = pieces % 8u == 0 ? 8u : pieces % 4u == 0 ? 4u : 2u;	/* pieces that change places */
	static constexpr uint32_t pages = mma_stage_pages(row), page = 2u * GPU_PAGE_SLOTS * row, params = pages * page;
	static constexpr uint32_t pos = params + (q8 ? pages * 128u : 0u), stage = mma_stage_bytes(row, q8);
	static constexpr uint32_t steps = D / (q8 ? 32u : 16u);		/* of the products K q^T */

	/* From one stage to the next; bare: without positions. */
	static __host__ __device__ constexpr uint32_t stride(bool bare) { return bare ? pos : stage; }

	/* Piece c of row r lies where piece c ^ place(r) of an unchanged row would. */
	static __device__ __forceinline__ uint32_t place(uint32_t r) { return r % 8u / (8u / turn); }
};

/* M, L of a running merge take in (m, l): a and b are what the old and the new outputs are multiplied by. */
static __device__ __forceinline__ void mma_merge(float &M, float &L, float m, float l, float &a, float &b)
{
	float top = fmaxf(M, m);

	a = mma_exp2(__fsub_rn(M, top));
	b = mma_exp2(__fsub_rn(m, top));
	L = __fmaf_rn(l, b, __fmul_rn(L, a));
	M = top;
}

static __device__ __forceinline__ float mma_mix(float O, float o, float a, float b) { return __fmaf_rn(o, b, __fmul_rn(O, a)); }

static __device__ __forceinline__ void mma_mix4(float4 &O, const float4 &o, float2 f)
{
	O.x = mma_mix(O.x, o.x, f.x, f.y);
	O.y = mma_mix(O.y, o.y, f.x, f.y);
	O.z = mma_mix(O.z, o.z, f.x, f.y);
	O.w = mma_mix(O.w, o.w, f.x, f.y);
}

/* What a CTA (or cluster) works on; every thread alike, but for its place in the warp. */
struct mma_lane {
	struct cuda_item item;
	uint32_t tile, row0, n_rows;	/* the tile's pairs begin with pair row0 */
	uint32_t pages, per_strip;
	uint32_t first, end;		/* strips of the warp */
	uint32_t cta_page, cta_pages;	/* first page of the CTA, and how many */
	bool heat;			/* taken here and now */
	bool keeps;			/* taken later: the query is kept */
	bool newest;			/* every query sees every live slot: positions are not read */
	bool bare;			/* and stages of the ring have no room for them */
	uint32_t warp, thread, g, t4;	/* thread = 4 g + t4 */
	uint32_t cluster, rank;
};

/* Pages of a strip of a lane of up to 2048 slots. */
static __host__ __device__ constexpr uint32_t mma_strip_pages(uint32_t type) { return type == GPU_Q8 ? 4u : 2u; }

/* How the pages of a lane form strips. */
static __host__ __device__ __forceinline__ void mma_strips(uint32_t type, uint32_t live, uint32_t &pages, uint32_t &per_strip,
							   uint32_t &strips)
{
	pages = (live + GPU_PAGE_SLOTS - 1u) / GPU_PAGE_SLOTS;
	per_strip = mma_strip_pages(type) * ((pages + 127u) / 128u);
	strips = pages ? (pages + per_strip - 1u) / per_strip : 0u;
}

/* Which strips: see the tree above. */
template <int TYPE> static __device__ __forceinline__ void mma_share(struct mma_lane &x)
{
	uint32_t n, a, b, c, e;

	mma_strips(TYPE, x.item.live, x.pages, x.per_strip, n);
	if (x.cluster == 1u) {
		c = 0;
		e = n;
		x.first = mma_cut(0, n, x.warp);
		x.end = mma_cut(0, n, x.warp + 1u);
	} else if (x.cluster == 4u) {
		c = mma_cut(0, n, x.rank);
		e = mma_cut(0, n, x.rank + 1u);
		x.first = mma_cut(c, e, x.warp);
		x.end = mma_cut(c, e, x.warp + 1u);
	} else {
		a = mma_cut(0, n, x.rank / 4u);
		b = mma_cut(0, n, x.rank / 4u + 1u);
		c = mma_cut(a, b, x.rank % 4u);
		e = mma_cut(a, b, x.rank % 4u + 1u);
		x.first = min(c + x.warp, e);
		x.end = min(c + x.warp + 1u, e);
	}
	x.cta_page = min(c * x.per_strip, x.pages);
	x.cta_pages = min(e * x.per_strip, x.pages) - x.cta_page;
}

/*
 * The lanes of a CTA that runs on: every gridDim.x-th, each second time from the other end, so that the CTA that got the longest gets the
 * shortest. Returns the index of its lane number k; not below a.n_tiles * a.n_kv_heads: none.
 */
static __device__ __forceinline__ uint32_t mma_nth(uint32_t k)
{
	return k * gridDim.x + (k % 2u ? gridDim.x - 1u - blockIdx.x : blockIdx.x);
}

/* A word of the CTA's next lane for each thread of a warp, on its way; of lane number k. */
static __device__ __forceinline__ uint32_t mma_next_word(const struct mma_args &a, uint32_t thread, uint32_t k)
{
	uint32_t i = mma_nth(k);

	return i < a.n_tiles * a.n_kv_heads && thread < sizeof(struct cuda_item) / 4u
		       ? ((const uint32_t *)&a.item[i])[thread] : 0u;
}

/* One warp puts the CTA's next lane that exists into shared memory; n = 0: none. k: the number of the last lane looked at; v: its words. */
static __device__ __forceinline__ void mma_next_item(const struct mma_args &a, uint32_t thread, uint32_t &k, uint32_t v,
						     struct cuda_item *to)
{
	while (!__shfl_sync(0xffffffffu, v, offsetof(struct cuda_item, n) / 4u) && mma_nth(k) < a.n_tiles * a.n_kv_heads)
		v = mma_next_word(a, thread, ++k);
	if (thread < sizeof(struct cuda_item) / 4u)
		((uint32_t *)to)[thread] = v;
}

/* Does the query at index j of the step give heat? */
static __device__ __forceinline__ bool mma_counts(const struct cuda_item &x, uint32_t j)
{
	return x.pos + (int32_t)j >= x.heat_from && ((uint32_t)x.pos + j) % x.observe == 0;
}

/* Does any query of the step give heat to the lane? */
static __device__ __forceinline__ bool mma_gives_heat(const struct cuda_item &x)
{
	bool any = false;

	for (uint32_t j = 0; x.n_heat && j < x.n; j++)
		any = any || mma_counts(x, j);
	return any;
}

/* The usual heat: the sum of one query's probabilities. */
static __device__ __forceinline__ bool mma_sums(const struct cuda_item &x)
{
	return x.n == 1u && x.n_heat == 1u && x.heat[0] == EVICT_HEAT_SUM;
}

/* Heat is taken here when all pairs of the session are in this tile. Otherwise observe.cu takes it afterwards. */
static __device__ __forceinline__ bool mma_takes_heat(const struct mma_args &a, const struct mma_lane &x)
{
	return x.n_rows == x.item.n * a.group && (a.heat_floats || a.logits) && mma_gives_heat(x.item);
}

/* What follows from x.item. */
template <int TYPE> static __device__ __forceinline__ void mma_begin(const struct mma_args &a, struct mma_lane &x)
{
	x.n_rows = min(x.item.n * a.group - x.row0, a.rows);
	mma_share<TYPE>(x);
	x.keeps = a.keep_depth && x.item.kept;
	x.heat = !x.keeps && mma_takes_heat(a, x);
}

/* Does any lane of the layer take heat here and now? */
static __device__ __forceinline__ bool mma_any_heat(const struct mma_args &a, const struct mma_lane &x)
{
	return x.item.any_heat & (a.keep_depth ? CUDA_HEAT_NOW : CUDA_HEAT_NOW | CUDA_HEAT_LATER);
}

/* Where the first head's query is kept, and its log-sum-exp. */
static __device__ __forceinline__ size_t mma_kept_at(const struct mma_args &a, const struct mma_lane &x)
{
	uint32_t at = x.item.kept - 1u;

	return (((size_t)(at >> 8) * a.n_kv_heads + x.item.kv_head) * a.keep_depth + (at & 255u)) * a.group;
}

/*
 * Kernels of their own, so that the others' instructions are not in the way: one CTA a lane, which runs on, with positions and without; 16
 * CTAs a lane, without positions and with logits in shared memory, if at all; all that is left.
 */
enum mma_way { MMA_RUN, MMA_RUN_NEWEST, MMA_SIXTEEN, MMA_ANY };

static __host__ __device__ constexpr bool mma_runs(int way) { return way == MMA_RUN || way == MMA_RUN_NEWEST; }

/* Find the first lane. False when there is none. Reads what item_kernel left, long before. k: as for mma_next_item(). */
template <int TYPE, int WAY> static __device__ __forceinline__ bool mma_open(const struct mma_args &a, struct mma_lane &x, uint32_t &k)
{
	constexpr bool RUN = mma_runs(WAY);
	uint32_t i = blockIdx.x / a.cluster;

	x.warp = threadIdx.x / 32u;
	x.thread = threadIdx.x % 32u;
	x.g = x.thread / 4u;
	x.t4 = x.thread % 4u;
	x.cluster = RUN ? 1u : WAY == MMA_SIXTEEN ? 16u : a.cluster;
	x.rank = RUN ? 0u : mma_cluster_rank();
	x.row0 = 0;
	x.bare = WAY == MMA_RUN_NEWEST || WAY == MMA_SIXTEEN;
	x.newest = x.bare || (WAY == MMA_ANY && a.newest);
	k = 0;
	if (WAY == MMA_ANY && a.tile) {
		x.tile = i % a.n_tiles;
		x.row0 = a.tile[x.tile].row0;
		i = i / a.n_tiles * a.n_units + a.tile[x.tile].seq;
	}
	x.item = a.item[i];
	while (RUN && !x.item.n && (i = mma_nth(++k)) < a.n_tiles * a.n_kv_heads)
		x.item = a.item[i];
	if (!x.item.n)
		return false;
	if (WAY != MMA_ANY || !a.tile)
		x.tile = x.item.tile;
	mma_begin<TYPE>(a, x);
	return true;
}

/* --- queries ----------------------------------------------------------------------------------------------------------------- */

/*
 * The queries as fragments, and per column of S what its logits are multiplied by, and its position. K of 16 bits: the queries as numbers
 * of that type; where they have more digits, what the rounding left is in shared memory. K of int8: the queries as integers of 23 bits, three
 * bytes each, and a product for every byte: the uppermost bytes come first in hi[], the middle ones in its second half, the lowest are in
 * shared memory.
 */
template <int TYPE, int D, int NT> struct mma_queries {
	uint32_t hi[NT][D / 16][2];
	float scale[NT][2];		/* of columns 2 t4 and 2 t4 + 1 */
	float sum[NT][2];		/* of the query's channels: q8 */
	int32_t pos[NT][2];
	uint32_t lower;			/* what is in shared memory; 0: nothing */
};

/* The position of row r's query; not below any where nobody asks. */
static __device__ __forceinline__ int32_t mma_pos(const struct mma_args &a, const struct mma_lane &x, uint32_t r)
{
	return x.newest ? INT32_MAX : x.item.pos + (int32_t)mma_divide(x.row0 + r, a.by_group);
}

/* Where row r of the tile is in a tensor. */
static __device__ __forceinline__ int64_t mma_row_at(const struct mma_args &a, const struct mma_lane &x, uint32_t r, int64_t stride)
{
	uint32_t pair = x.row0 + r, query = mma_divide(pair, a.by_group), head = x.item.kv_head * a.group + pair - query * a.group;

	return ((int64_t)x.item.row + query) * stride + (int64_t)head * a.head_dim;
}

/* The tile's queries as float32 into shared memory, [row][D + 4]; channels that a head has not are zeros. Needs a barrier after it. */
template <int D> static __device__ __forceinline__ void mma_fetch_queries(const struct mma_args &a, const struct mma_lane &x, float *to)
{
#pragma unroll 1
	for (uint32_t e = threadIdx.x; e < x.n_rows * (D / 4u); e += MMA_THREADS) {
		uint32_t r = e / (D / 4u), c = e % (D / 4u) * 4u;
		int64_t at = mma_row_at(a, x, r, a.q.stride) + c;
		float4 v = make_float4(0, 0, 0, 0);

		if (c < a.head_dim) {
			if (a.q.type == GPU_BF16 && ((uintptr_t)a.q.data + (uintptr_t)at * 2u) % 8u == 0) {
				uint2 raw = *(const uint2 *)((const __nv_bfloat16 *)a.q.data + at);
				float2 lo = __bfloat1622float2(*(__nv_bfloat162 *)&raw.x), hi = __bfloat1622float2(*(__nv_bfloat162 *)&raw.y);

				v = make_float4(lo.x, lo.y, hi.x, hi.y);
			} else {
				v.x = cuda_load(a.q.data, a.q.type, at);
				v.y = cuda_load(a.q.data, a.q.type, at + 1);
				v.z = cuda_load(a.q.data, a.q.type, at + 2);
				v.w = cuda_load(a.q.data, a.q.type, at + 3);
			}
		}
		*(float4 *)(to + r * (D + 4u) + c) = v;
	}
}

/* On its way while a lane is merged and written: of the CTA's next lane, four numbers of its queries; of the one behind it, a word. */
struct mma_ahead {
	uint2 q;
	uint32_t word;
};

/* Is a lane's query a vector of four a thread at most, of the usual kind? */
template <int D> static __device__ __forceinline__ bool mma_one_vector(const struct mma_args &a, const struct cuda_item &item)
{
	return item.n * a.group * (D / 4u) <= MMA_THREADS && a.head_dim == D && a.q.type == GPU_BF16 && a.q.stride % 4 == 0 &&
	       (uintptr_t)a.q.data % 8u == 0;
}

template <int D>
static __device__ __forceinline__ struct mma_ahead mma_look_ahead(const struct mma_args &a, const struct mma_lane &x, uint32_t k,
								  const struct cuda_item &next)
{
	struct mma_ahead ahead = {};

	if (x.warp == MMA_WARPS - 1u)
		ahead.word = mma_next_word(a, x.thread, k + 1u);
	if (next.n && mma_one_vector<D>(a, next) && threadIdx.x < next.n * a.group * (D / 4u)) {
		uint32_t r = threadIdx.x / (D / 4u), c = threadIdx.x % (D / 4u) * 4u, query = mma_divide(r, a.by_group);
		uint32_t head = next.kv_head * a.group + r - query * a.group;
		int64_t at = ((int64_t)next.row + query) * a.q.stride + (int64_t)head * D + c;

		ahead.q = *(const uint2 *)((const __nv_bfloat16 *)a.q.data + at);
	}
	return ahead;
}

/* As mma_fetch_queries(), of what mma_look_ahead() asked for. */
template <int D>
static __device__ __forceinline__ void mma_fetched_queries(const struct mma_args &a, const struct mma_lane &x,
							   const struct mma_ahead &ahead, float *to)
{
	float2 lo = __bfloat1622float2(*(const __nv_bfloat162 *)&ahead.q.x), hi = __bfloat1622float2(*(const __nv_bfloat162 *)&ahead.q.y);

	if (!mma_one_vector<D>(a, x.item))
		mma_fetch_queries<D>(a, x, to);
	else if (threadIdx.x < x.n_rows * (D / 4u))
		*(float4 *)(to + threadIdx.x / (D / 4u) * (D + 4u) + threadIdx.x % (D / 4u) * 4u) = make_float4(lo.x, lo.y, hi.x, hi.y);
}

/* Where a thread's four numbers of k-step j are. */
static __device__ __forceinline__ uint32_t mma_channel(uint32_t j, uint32_t t4, uint32_t i)
{
	return j * 16u + 2u * t4 + (i & 1u) + (i >> 1) * 8u;
}

/* Channels 4 t4 .. + 3 of a half of a k-step (32 channels) as integers: byte k of each of the four in byte[k]. */
static __device__ __forceinline__ void mma_query_bytes(const float *from, float by, uint32_t (&byte)[3])
{
	float4 v = *(const float4 *)from;
	uint32_t w[4], a, b;

	w[0] = (uint32_t)__float2int_rn(v.x * by);
	w[1] = (uint32_t)__float2int_rn(v.y * by);
	w[2] = (uint32_t)__float2int_rn(v.z * by);
	w[3] = (uint32_t)__float2int_rn(v.w * by);
#pragma unroll
	for (int i = 0; i < 4; i++)	/* digits of -128 .. 127 */
		w[i] = (w[i] + 0x808080u) ^ 0x808080u;
	a = __byte_perm(w[0], w[1], 0x5140);
	b = __byte_perm(w[2], w[3], 0x5140);
	byte[0] = __byte_perm(a, b, 0x5410);
	byte[1] = __byte_perm(a, b, 0x7632);
	byte[2] = __byte_perm(__byte_perm(w[0], w[1], 0x0062), __byte_perm(w[2], w[3], 0x0062), 0x5410);
}

/*
 * A column's query for K of int8: a warp splits every fourth k-step for all of them. to: where the lowest bytes of k-step 0 go, then the
 * middle ones, `set` bytes behind them; high: where the uppermost go.
 */
template <int D>
static __device__ __forceinline__ void mma_split_query(const struct mma_lane &x, const float *row, float by, char *to, uint32_t set,
						       char *high)
{
#pragma unroll
	for (uint32_t j = x.warp; j < D / 32u; j += MMA_WARPS) {
		uint32_t first[3], second[3], at = (j * 32u + x.thread) * 8u;

		mma_query_bytes(row + j * 32u + 4u * x.t4, by, first);
		mma_query_bytes(row + j * 32u + 16u + 4u * x.t4, by, second);
		*(uint2 *)(to + at) = make_uint2(first[0], second[0]);
		*(uint2 *)(to + set + at) = make_uint2(first[1], second[1]);
		*(uint2 *)(high + at) = make_uint2(first[2], second[2]);
	}
}

/* What mma_split_query() made of all columns. */
template <int D, int NT>
static __device__ __forceinline__ void mma_gather_query(const struct mma_lane &x, const char *middle, const char *high,
							uint32_t (&hi)[NT][D / 16][2])
{
	__syncthreads();
#pragma unroll
	for (uint32_t i = 0; i < NT * (D / 32u); i++) {
		uint2 h = *(const uint2 *)(high + (i * 32u + x.thread) * 8u), m = *(const uint2 *)(middle + (i * 32u + x.thread) * 8u);

		hi[i / (D / 32u)][i % (D / 32u)][0] = h.x;
		hi[i / (D / 32u)][i % (D / 32u)][1] = h.y;
		hi[i / (D / 32u)][D / 32u + i % (D / 32u)][0] = m.x;
		hi[i / (D / 32u)][D / 32u + i % (D / 32u)][1] = m.y;
	}
}

/* Fragments from the queries in shared memory. lower: its place in there. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_load_queries(const struct mma_args &a, const struct mma_lane &x, float *from, uint32_t lower,
							char *shared, struct mma_queries<TYPE, D, NT> &q)
{
	constexpr bool half = mma_size<TYPE, D, NT>::half, q8 = TYPE == GPU_Q8;
	constexpr uint32_t digits = q8 ? 22u : 14u, least = q8 ? 24u : 20u;

	char *high = (char *)(from + a.rows * (D + 4u));	/* behind the queries as float32 */

	q.lower = a.exact_q ? mma_shared(shared) + lower : 0u;
#pragma unroll
	for (uint32_t nt = 0; nt < NT; nt++) {
		uint32_t col = nt * 8u + x.g, top = 0;
		const float *row = from + min(col, x.n_rows - 1u) * (D + 4u);	/* columns of nobody repeat the last: nobody looks */
		float sum = 0.0f, by = 1.0f;

		if (half) {	/* float16 has a small range, and bytes hold integers: bring the row's largest number near 2^digits */
#pragma unroll
			for (uint32_t c = 0; c < D; c += 16u) {
				float4 v = *(const float4 *)(row + c + 4u * x.t4);

				top = max(max(top, __float_as_uint(v.x) & 0x7fffffffu), __float_as_uint(v.y) & 0x7fffffffu);
				top = max(max(top, __float_as_uint(v.z) & 0x7fffffffu), __float_as_uint(v.w) & 0x7fffffffu);
				sum += v.x + v.y + (v.z + v.w);
			}
#pragma unroll
			for (int d = 1; d < 4; d <<= 1) {
				top = max(top, __shfl_xor_sync(0xffffffffu, top, d));
				sum += __shfl_xor_sync(0xffffffffu, sum, d);
			}
			top >>= 23;
			top = top < least || top > 240u ? 126u + digits : top;
			by = __uint_as_float((253u + digits - top) << 23);
		}
		if constexpr (q8)
			mma_split_query<D>(x, row, by, shared + lower + nt * D * 8u, NT * D * 8u, high + nt * D * 8u);
#pragma unroll
		for (uint32_t j = 0; !q8 && j < D / 16u; j++) {
			uint32_t lo[2];

#pragma unroll
			for (uint32_t i = 0; i < 2; i++) {
				float u = row[mma_channel(j, x.t4, 2u * i)] * by, w = row[mma_channel(j, x.t4, 2u * i + 1u)] * by;

				q.hi[nt][j][i] = mma_pack<half>(u, w);
				lo[i] = mma_pack<half>(u - mma_rounded<half>(u), w - mma_rounded<half>(w));
			}
			if (a.exact_q && x.warp == 0)
				*(uint2 *)(shared + lower + ((nt * (D / 16u) + j) * 32u + x.thread) * 8u) = make_uint2(lo[0], lo[1]);
		}
#pragma unroll
		for (uint32_t i = 0; i < 2; i++) {	/* column 2 t4 + i is loaded by the threads with g = 2 t4 + i */
			uint32_t from_thread = (2u * x.t4 + i) * 4u;
			uint32_t power = half ? __float_as_uint(__shfl_sync(0xffffffffu, by, from_thread)) : 0u;	/* of two */

			q.scale[nt][i] = half ? a.scale * __uint_as_float(0x7f000000u - power) : a.scale;
			q.sum[nt][i] = TYPE == GPU_Q8 ? __shfl_sync(0xffffffffu, sum * by, from_thread) : 0.0f;
			q.pos[nt][i] = mma_pos(a, x, nt * 8u + 2u * x.t4 + i);
		}
	}
	if constexpr (q8)
		mma_gather_query<D, NT>(x, shared + lower + NT * D * 8u, high, q.hi);
}

/* The same from memory, for queries that come as K does, in bfloat16. */
template <int D, int NT>
static __device__ __forceinline__ void mma_direct_queries(const struct mma_args &a, const struct mma_lane &x,
							  struct mma_queries<GPU_BF16, D, NT> &q)
{
	q.lower = 0;
#pragma unroll
	for (uint32_t nt = 0; nt < NT; nt++) {
		int64_t at = mma_row_at(a, x, min(nt * 8u + x.g, x.n_rows - 1u), a.q.stride) + 2u * x.t4;
		const uint32_t *row = (const uint32_t *)((const __nv_bfloat16 *)a.q.data + at);

#pragma unroll
		for (uint32_t j = 0; j < D / 16u; j++)
#pragma unroll
			for (uint32_t i = 0; i < 2; i++)
				q.hi[nt][j][i] = j * 16u < a.head_dim ? row[j * 8u + i * 4u] : 0u;
#pragma unroll
		for (uint32_t i = 0; i < 2; i++) {
			q.scale[nt][i] = a.scale;
			q.sum[nt][i] = 0.0f;
			q.pos[nt][i] = mma_pos(a, x, nt * 8u + 2u * x.t4 + i);
		}
	}
}

#endif
