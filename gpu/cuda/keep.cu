/*
 * keep: heat of many steps at once, from the queries that attend has kept.
 *
 * What: a CTA takes a lane. Its queries, up to GPU_KEPT_PAIRS (query, head) pairs, lie in shared memory; each warp streams every fourth unit of 32 slots'
 * K rows through shared memory of its own. Slots are the rows of S = K q^T, pairs the columns; a probability is 2^(S scale - lse), and a thread adds up those of
 * its columns.
 * Memory traffic: K once, 4 bytes of position and 8 of heat a slot, and the kept queries. 32 queries of 4 heads over 2048 slots of 128 channels: 64 bytes
 * a slot for the queries.
 * Determinism: a slot's probabilities are added in four sums, of fixed pairs in order, and those in a fixed order; nobody else adds to the slot.
 */
#include "gpu/cuda/mma.cuh"

#include "evict/rule.h"

#define KEEP_WARPS 4u
#define KEEP_CTAS 3			/* of a multiprocessor */
#define KEEP_THREADS (KEEP_WARPS * 32u)
#define KEEP_SLOTS 32u			/* of a unit: two pages, of one block */
#define KEEP_TILES 2u			/* of 8 pairs at a time; GPU_KEPT_PAIRS is a multiple */

struct keep_args {
	struct cuda_view view;
	const struct gpu_kept *list;
	uint16_t *q;
	float *lse;
	uint32_t n_kv_heads, group, depth, rooms;
	uint32_t bf16;			/* queries are bfloat16, else float16 */
	float scale;			/* times log2(e) */
};

/*
 * Shared memory: the queries as 16-bit numbers; of each pair its log-sum-exp, and for q8 what its products are multiplied by and the sum of its channels;
 * each warp's unit: rows of K, positions, parameters of q8, where the block is. Piece c of 16 bytes of a row lies in place c ^ place(row).
 */
template <int TYPE, int D> struct keep_size {
	static constexpr bool q8 = TYPE == GPU_Q8, half = TYPE != GPU_BF16;	/* int8 fits float16, too */
	static constexpr uint32_t row = D * (q8 ? 1u : 2u), pieces = row / 16u, q_row = D * 2u, q_pieces = q_row / 16u;
	static constexpr uint32_t pos = KEEP_SLOTS * row, param = pos + KEEP_SLOTS * 4u, block = param + (q8 ? KEEP_SLOTS * 4u : 0u), unit = block + 16u;
	static constexpr uint32_t lse = GPU_KEPT_PAIRS * q_row, by = lse + GPU_KEPT_PAIRS * 4u, sum = by + (q8 ? GPU_KEPT_PAIRS * 4u : 0u);
	static constexpr uint32_t units = sum + GPU_KEPT_PAIRS * 4u, all = units + KEEP_WARPS * unit;

	static __device__ __forceinline__ uint32_t place(uint32_t r) { return pieces < 8u ? r / 2u % 4u : r % 8u; }
};

/* A warp's units of a lane, on their way one at a time: it lives in registers once it has come. Each thread knows where one of the next 32 pages is. */
struct keep_stream {
	uint32_t at, pages, units;
	const uint32_t *page_id, *block_id;
	char *page, *block;
};

static __device__ __forceinline__ void keep_copy(uint32_t dst, const void *src)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(dst), "l"(src) : "memory");
}

/* A page's K rows, and for q8 their parameters. u: the first or the second of the unit. */
template <int TYPE, int D> static __device__ __forceinline__ void keep_copy_page(uint32_t at, uint32_t thread, uint32_t u, const char *page)
{
	using size = keep_size<TYPE, D>;

#pragma unroll
	for (uint32_t c = 0; c < size::pieces / 2u; c++) {
		uint32_t e = c * 32u + thread, row = u * GPU_PAGE_SLOTS + e / size::pieces;

		keep_copy(at + row * size::row + (e % size::pieces ^ size::place(row)) * 16u, page + e * 16u);
	}
	if (size::q8 && thread < GPU_PAGE_SLOTS / 4u)
		keep_copy(at + size::param + u * GPU_PAGE_SLOTS * 4u + thread * 16u, page + 2u * GPU_PAGE_SLOTS * D + thread * 16u);
}

/* Ask for the warp's unit i. */
template <int TYPE, int D>
static __device__ __forceinline__ void keep_feed(const struct keep_args &a, uint32_t warp, uint32_t thread, char *shared, uint32_t i,
						 struct keep_stream &r)
{
	using size = keep_size<TYPE, D>;
	uint32_t unit = warp + KEEP_WARPS * i, at = mma_shared(shared) + r.at;

	if (i % 16u == 0) {
		uint32_t p = 2u * (warp + KEEP_WARPS * (i + thread / 2u)) + thread % 2u;

		r.page = p < r.pages ? cuda_at(a.view, r.page_id[p]) : NULL;
		r.block = p < r.pages ? cuda_at(a.view, r.block_id[p / (GPU_BLOCK_SLOTS / GPU_PAGE_SLOTS)]) : NULL;
	}
	if (unit < r.units) {
		const char *block = (const char *)__shfl_sync(0xffffffffu, (unsigned long long)r.block, i % 16u * 2u);

#pragma unroll
		for (uint32_t u = 0; u < 2; u++) {
			const char *page = (const char *)__shfl_sync(0xffffffffu, (unsigned long long)r.page, i % 16u * 2u + u);

			if (page)
				keep_copy_page<TYPE, D>(at, thread, u, page);
			else if (2u * unit + u < r.pages)	/* its slots are as good as not there */
				block = NULL;
		}
		if (thread < KEEP_SLOTS / 4u && block)
			keep_copy(at + size::pos + thread * 16u, block + (unit * KEEP_SLOTS % GPU_BLOCK_SLOTS + thread * 4u) * 4u);
		if (thread == 0)
			*(const char **)(shared + r.at + size::block) = block;
	}
	mma_commit();
}

/* The unit as a warp multiplies it: rows as fragments, k-step j of page u; of the thread's slots (rows g and g + 8 of both pages) the rest. */
template <int D> struct keep_unit {
	uint32_t k[2][D / 16][4];
	uint32_t from[2][2];		/* the first pair that sees the slot; UINT32_MAX: none */
	float by[2][2], offset[2][2];	/* q8 */
	char *block;
};

/*
 * int8: a matrix of 8 rows and 16 bytes gives a thread four neighbouring channels; even ones are the first half of a k-step, odd ones the second, and so
 * lie the queries' (keep_queries()).
 */
template <int TYPE, int D>
static __device__ __forceinline__ void keep_rows(uint32_t at, uint32_t thread, struct keep_unit<D> &x)
{
	using size = keep_size<TYPE, D>;

#pragma unroll
	for (uint32_t u = 0; u < 2; u++)
#pragma unroll
		for (uint32_t j = 0; j < size::pieces / 2u; j++) {
			uint32_t row = u * GPU_PAGE_SLOTS + thread % 16u, r[4];

			mma_load4(r, at + row * size::row + ((2u * j + thread / 16u) ^ size::place(row)) * 16u);
			if constexpr (size::q8) {
#pragma unroll
				for (uint32_t i = 0; i < 4; i++)
					mma_from_int8(r[i], x.k[u][2u * j + i / 2u][i % 2u], x.k[u][2u * j + i / 2u][2u + i % 2u]);
			} else {
#pragma unroll
				for (uint32_t i = 0; i < 4; i++)
					x.k[u][j][i] = r[i];
			}
		}
}

/* What else the unit says of the thread's slots. */
template <int TYPE, int D>
static __device__ __forceinline__ void keep_slots(const struct keep_args &a, const struct gpu_kept &kept, const char *unit, uint32_t slot, uint32_t live,
						  struct keep_unit<D> &x)
{
	using size = keep_size<TYPE, D>;

	x.block = *(char *const *)(unit + size::block);
#pragma unroll
	for (uint32_t s = 0; s < 4; s++, slot += 8u) {
		uint32_t i = slot % KEEP_SLOTS;
		int32_t own = ((const int32_t *)(unit + size::pos))[i];

		x.from[s / 2u][s % 2u] = !x.block || slot >= live ? UINT32_MAX : own <= kept.pos ? 0u :
					 min(((uint32_t)own - (uint32_t)kept.pos + kept.every - 1u) / kept.every, GPU_KEPT_PAIRS) * a.group;
		if (size::q8) {
			float2 p = __half22float2(((const __half2 *)(unit + size::param))[i]);

			x.by[s / 2u][s % 2u] = p.x;
			x.offset[s / 2u][s % 2u] = p.y;
		}
	}
}

/* Logit to probability: s is the product of slot and pair. */
template <bool Q8>
static __device__ __forceinline__ float keep_probability(const struct keep_args &a, float s, float less, float by, float sum, float slot_by, float slot_offset)
{
	return Q8 ? mma_exp2(__fmaf_rn(__fmaf_rn(slot_offset, sum, __fmul_rn(slot_by, s)), by, -less)) : mma_exp2(__fmaf_rn(s, a.scale, -less));
}

/*
 * What all pairs gave the thread's slots, of its columns. ALL: every pair sees every slot. Several tiles of 8 pairs at a time: products that do not wait
 * for each other.
 */
template <int TYPE, int D, bool ALL>
static __device__ __forceinline__ void keep_add(const struct keep_args &a, const char *shared, uint32_t pairs, uint32_t thread, const struct keep_unit<D> &x,
						float (&sum)[2][2])
{
	using size = keep_size<TYPE, D>;
	uint32_t row = thread % 8u, col = 2u * (thread % 4u), q = mma_shared(shared);

#pragma unroll 1
	for (uint32_t pair = 0; pair < pairs; pair += 8u * KEEP_TILES) {
		float c[KEEP_TILES][2][4] = {};

#pragma unroll
		for (uint32_t jj = 0; jj < D / 32u; jj++)
#pragma unroll
			for (uint32_t n = 0; n < KEEP_TILES; n++) {
				uint32_t b[4];

				mma_load4(b, q + (pair + n * 8u + row) * size::q_row + ((jj * 4u + thread / 8u) ^ row) * 16u);
#pragma unroll
				for (uint32_t u = 0; u < 2; u++)
					mma_16816<size::half>(c[n][u], x.k[u][2u * jj], b[0], b[1]);
#pragma unroll
				for (uint32_t u = 0; u < 2; u++)
					mma_16816<size::half>(c[n][u], x.k[u][2u * jj + 1u], b[2], b[3]);
			}
#pragma unroll
		for (uint32_t n = 0; n < KEEP_TILES; n++, col += 8u) {
			float2 less = *(const float2 *)(shared + size::lse + col * 4u), by = make_float2(0, 0), of = by;

			if (size::q8) {
				by = *(const float2 *)(shared + size::by + col * 4u);
				of = *(const float2 *)(shared + size::sum + col * 4u);
			}
#pragma unroll
			for (uint32_t u = 0; u < 2; u++)
#pragma unroll
				for (uint32_t h = 0; h < 2; h++) {
					float one = keep_probability<size::q8>(a, c[n][u][2u * h], less.x, by.x, of.x, x.by[u][h], x.offset[u][h]);
					float two = keep_probability<size::q8>(a, c[n][u][2u * h + 1u], less.y, by.y, of.y, x.by[u][h], x.offset[u][h]);

					one = __fadd_rn(ALL || col >= x.from[u][h] ? one : 0.0f, ALL || col + 1u >= x.from[u][h] ? two : 0.0f);
					sum[u][h] = __fadd_rn(sum[u][h], one);
				}
		}
	}
}

/* 16 channels of a query as float16, all times `by`, even ones and odd ones apart. Adds them to sum. */
static __device__ __forceinline__ void keep_split(const struct keep_args &a, const uint4 (&v)[2], float by, uint4 &even, uint4 &odd, float &sum)
{
	const uint32_t w[8] = { v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w };
	uint32_t to[8];

#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		float2 one = a.bf16 ? __bfloat1622float2(*(const __nv_bfloat162 *)&w[2u * i]) : __half22float2(*(const __half2 *)&w[2u * i]);
		float2 two = a.bf16 ? __bfloat1622float2(*(const __nv_bfloat162 *)&w[2u * i + 1u]) : __half22float2(*(const __half2 *)&w[2u * i + 1u]);

		to[i] = mma_pack<true>(one.x * by, two.x * by);
		to[4u + i] = mma_pack<true>(one.y * by, two.y * by);
		sum += (one.x + one.y + (two.x + two.y)) * by;
	}
	even = make_uint4(to[0], to[1], to[2], to[3]);
	odd = make_uint4(to[4], to[5], to[6], to[7]);
}

/* The exponent field of the largest number of a query's 16 channels. */
static __device__ __forceinline__ uint32_t keep_top(const struct keep_args &a, const uint4 (&v)[2])
{
	const uint32_t w[8] = { v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w };
	float top = 0.0f;

#pragma unroll
	for (uint32_t i = 0; i < 8; i++) {
		float2 x = a.bf16 ? __bfloat1622float2(*(const __nv_bfloat162 *)&w[i]) : __half22float2(*(const __half2 *)&w[i]);

		top = fmaxf(top, fmaxf(fabsf(x.x), fabsf(x.y)));
	}
	return __float_as_uint(top) >> 23;
}

/* The same for q8: float16 has a small range, so a query's largest number is brought near 2^14; a power of two, so that nothing is lost. */
template <int D>
static __device__ __forceinline__ void keep_queries_q8(const struct keep_args &a, const uint16_t *from, uint32_t pairs, uint32_t whole, char *shared)
{
	using size = keep_size<GPU_Q8, D>;
	constexpr uint32_t per = D / 16u;	/* threads of a query */

	for (uint32_t e = threadIdx.x; e < whole * per; e += KEEP_THREADS) {	/* whole * per is a multiple of 32 */
		uint32_t row = e / per, j = e % per, top;
		uint4 v[2] = { make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0) }, even, odd;
		float by, sum = 0.0f;

		if (row < pairs) {
			v[0] = ((const uint4 *)(from + row * D))[2u * j];
			v[1] = ((const uint4 *)(from + row * D))[2u * j + 1u];
		}
		top = keep_top(a, v);
#pragma unroll
		for (uint32_t d = 1; d < per; d <<= 1)
			top = max(top, __shfl_xor_sync(0xffffffffu, top, d));
		top = top < 24u || top > 240u ? 141u : top;	/* nothing but zeros; no numbers */
		by = __uint_as_float((268u - top) << 23);	/* 2^14 / 2^(top - 127) */
		keep_split(a, v, by, even, odd, sum);
#pragma unroll
		for (uint32_t d = 1; d < per; d <<= 1)
			sum += __shfl_xor_sync(0xffffffffu, sum, d);
		*(uint4 *)(shared + row * size::q_row + (2u * j ^ row % 8u) * 16u) = even;
		*(uint4 *)(shared + row * size::q_row + ((2u * j + 1u) ^ row % 8u) * 16u) = odd;
		if (j == 0) {
			((float *)(shared + size::by))[row] = a.scale * __uint_as_float((top - 14u) << 23);
			((float *)(shared + size::sum))[row] = sum;
		}
	}
}

/* The lane's queries into shared memory, up to whole tiles of pairs; their places are empty then. at: the first pair's. */
template <int TYPE, int D>
static __device__ __forceinline__ void keep_queries(const struct keep_args &a, size_t at, uint32_t pairs, char *shared)
{
	using size = keep_size<TYPE, D>;
	uint32_t whole = (pairs + 8u * KEEP_TILES - 1u) / (8u * KEEP_TILES) * 8u * KEEP_TILES;
	float *lse = (float *)(shared + size::lse);

	if constexpr (size::q8)
		keep_queries_q8<D>(a, a.q + at * D, pairs, whole, shared);
	for (uint32_t e = threadIdx.x; !size::q8 && e < whole * size::q_pieces; e += KEEP_THREADS) {
		uint32_t row = e / size::q_pieces, piece = e % size::q_pieces;
		uint4 v = row < pairs ? *(const uint4 *)(a.q + (at + row) * D + piece * 8u) : make_uint4(0, 0, 0, 0);

		*(uint4 *)(shared + row * size::q_row + (piece ^ row % 8u) * 16u) = v;
	}
	for (uint32_t i = threadIdx.x; i < whole; i += KEEP_THREADS) {
		lse[i] = i < pairs ? a.lse[at + i] : CUDA_KEPT_NONE;
		if (i < pairs)
			a.lse[at + i] = CUDA_KEPT_NONE;
	}
	__syncthreads();
}

/* Slots that the lane has; 0 where there is no such lane, or it collects no sums. */
static __device__ __forceinline__ uint32_t keep_open(const struct keep_args &a, const struct gpu_kept &k, struct keep_stream &r)
{
	uint32_t lane = blockIdx.y * a.n_kv_heads + blockIdx.x % a.n_kv_heads;
	const char *t = (const char *)k.table;
	struct gpu_table head;

	if (!t)
		return 0;
	head = *(const struct gpu_table *)t;
	if (lane >= head.n_lanes || !head.n_heat || head.heat[0] != EVICT_HEAT_SUM)
		return 0;
	r.page_id = cuda_u32(t, gpu_table_pages(&head)) + (size_t)lane * head.max_pages;
	r.block_id = cuda_u32(t, gpu_table_blocks(&head)) + (size_t)lane * head.max_blocks;
	return min(gpu_live(((const struct gpu_lane *)(t + gpu_table_lanes()))[lane], k.used), cuda_slots(&head));
}

template <int TYPE, int D>
static __global__ void __launch_bounds__(KEEP_THREADS, KEEP_CTAS) keep_kernel(const __grid_constant__ struct keep_args a)
{
	using size = keep_size<TYPE, D>;
	extern __shared__ __align__(128) char shared[];
	const struct gpu_kept kept = a.list[blockIdx.x / a.n_kv_heads];
	const uint32_t warp = threadIdx.x / 32u, thread = threadIdx.x % 32u, pairs = min(kept.n, a.depth) * a.group;
	struct keep_stream r = {};
	uint32_t live = keep_open(a, kept, r);

	r.at = size::units + warp * size::unit;
	r.pages = gpu_pages_for(live);
	r.units = (live + KEEP_SLOTS - 1u) / KEEP_SLOTS;
	keep_feed<TYPE, D>(a, warp, thread, shared, 0, r);
	keep_queries<TYPE, D>(a, (((size_t)blockIdx.y * a.rooms + kept.room) * a.n_kv_heads + blockIdx.x % a.n_kv_heads) * a.depth * a.group, pairs, shared);
#pragma unroll 1
	for (uint32_t i = 0; warp + KEEP_WARPS * i < r.units; i++) {
		uint32_t first = (warp + KEEP_WARPS * i) * KEEP_SLOTS, slot = first + thread % 4u * 8u + thread / 4u;
		struct keep_unit<D> x;
		float sum[2][2] = {};

		mma_wait(1);
		__syncwarp();
		keep_rows<TYPE, D>(mma_shared(shared) + r.at, thread, x);
		keep_slots<TYPE, D>(a, kept, shared + r.at, first + thread / 4u, live, x);
		__syncwarp();	/* all have read it: the next one comes while this one is multiplied */
		keep_feed<TYPE, D>(a, warp, thread, shared, i + 1u, r);
		if (__any_sync(0xffffffffu, x.from[0][0] | x.from[0][1] | x.from[1][0] | x.from[1][1]))
			keep_add<TYPE, D, false>(a, shared, pairs, thread, x, sum);
		else
			keep_add<TYPE, D, true>(a, shared, pairs, thread, x, sum);
#pragma unroll
		for (uint32_t s = 0; s < 4; s++) {
			float &of = sum[s / 2u][s % 2u];

			of = __fadd_rn(of, __shfl_xor_sync(0xffffffffu, of, 1));
			of = __fadd_rn(of, __shfl_xor_sync(0xffffffffu, of, 2));
		}
		/* Each of the four threads that have a row's sums adds one of their four slots'. */
		if (x.block && slot < live)
			atomicAdd((float *)x.block + GPU_BLOCK_SLOTS + slot % GPU_BLOCK_SLOTS,
				  thread % 4u == 0 ? sum[0][0] : thread % 4u == 1u ? sum[0][1] : thread % 4u == 2u ? sum[1][0] : sum[1][1]);
	}
}

template <int TYPE, int D> static cudaError_t launch_as(const struct keep_args &a, unsigned n, uint32_t n_layers, cudaStream_t s)
{
	constexpr uint32_t bytes = keep_size<TYPE, D>::all;
	cudaError_t e = cudaFuncSetAttribute(keep_kernel<TYPE, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

	if (e != cudaSuccess)
		return e;
	keep_kernel<TYPE, D><<<dim3(n * a.n_kv_heads, n_layers), KEEP_THREADS, bytes, s>>>(a);
	return cudaGetLastError();
}

template <int TYPE> static cudaError_t launch(const struct keep_args &a, const struct cuda_keep *k, unsigned n, cudaStream_t s)
{
	return k->shape.head_dim == 64u ? launch_as<TYPE, 64>(a, n, k->n_layers, s) : launch_as<TYPE, 128>(a, n, k->n_layers, s);
}

static bool can_keep(const struct cuda_device *d, const struct gpu_shape *s, uint32_t depth)
{
	return s->slot_type != GPU_F32 && (s->head_dim == 64u || s->head_dim == 128u) && depth * s->group <= GPU_KEPT_PAIRS &&
	       d->shared_block >= keep_size<GPU_BF16, 128>::all;
}

void cuda_keep_free(struct cuda_step *st)
{
	(void)cudaFree(st->keep.q);	/* these wait for the steps that still use them */
	(void)cudaFree(st->keep.lse);
	(void)cudaFree(st->keep.list);
	st->keep = {};
	st->keep_scale = 0.0f;
	st->keep_type = 0;
}

int cuda_keep(struct gpu_step *step, gpu_stream stream, const struct gpu_shape *shape, uint32_t n_layers, uint32_t rooms, uint32_t depth)
{
	struct cuda_step *st = (struct cuda_step *)step;
	size_t pairs = (size_t)n_layers * rooms * shape->n_kv_heads * depth * shape->group;
	cudaStream_t s = cuda_stream(stream);
	struct cuda_keep k = {};
	int rc = cuda_use(step->dev);

	if (rc)
		return rc;
	cuda_keep_free(st);
	if (!depth)
		return 0;
	if (!can_keep(cuda_dev(step->dev), shape, depth))
		return -ENOTSUP;
	k.shape = *shape;
	k.n_layers = n_layers;
	k.rooms = rooms;
	k.depth = depth;
	rc = cuda_errno(cudaMalloc((void **)&k.q, pairs * shape->head_dim * sizeof(*k.q)));
	if (!rc)
		rc = cuda_errno(cudaMalloc((void **)&k.lse, pairs * sizeof(*k.lse)));
	if (!rc)
		rc = cuda_errno(cudaMalloc((void **)&k.list, st->max_seqs * sizeof(*k.list)));
	if (!rc)	/* what nobody has written is read, too, and must be numbers */
		rc = cuda_errno(cudaMemsetAsync(k.q, 0, pairs * shape->head_dim * sizeof(*k.q), s));
	if (!rc)
		rc = cuda_errno(cudaMemsetAsync(k.lse, 0x7f, pairs * sizeof(*k.lse), s));
	st->keep = k;
	if (rc)
		cuda_keep_free(st);
	return rc;
}

bool cuda_keeps(struct cuda_step *st, uint32_t layer, const struct gpu_tensor *q, float scale, uint16_t **kept_q, float **kept_lse)
{
	const struct cuda_keep *k = &st->keep;
	size_t pair = (size_t)layer * k->rooms * k->shape.n_kv_heads * k->depth * k->shape.group;

	if (layer >= k->n_layers || !k->depth || memcmp(&k->shape, &st->shape, sizeof(k->shape)) != 0)
		return false;
	if (q->type == GPU_F32 || (k->shape.slot_type != GPU_Q8 && q->type != k->shape.slot_type) || (uintptr_t)q->data % 16u || q->stride % 8)
		return false;
	if (st->keep_scale != 0.0f && (st->keep_scale != scale || st->keep_type != q->type))	/* those that are kept have others */
		return false;
	st->keep_scale = scale;
	st->keep_type = q->type;
	*kept_q = k->q + pair * k->shape.head_dim;
	*kept_lse = k->lse + pair;
	return true;
}

int cuda_heat_kept(struct gpu_step *step, gpu_stream stream, const struct gpu_kept *kept, unsigned n)
{
	struct cuda_step *st = (struct cuda_step *)step;
	const struct cuda_keep *k = &st->keep;
	struct keep_args a = {};
	int rc = cuda_use(step->dev);

	if (rc || !k->depth)
		return rc;
	if (n > st->max_seqs)
		return -EINVAL;
	for (unsigned i = 0; i < n; i++)
		if (kept[i].room >= k->rooms || !kept[i].every)
			return -EINVAL;
	rc = cuda_write(step->dev, stream, k->list, kept, n * sizeof(*kept));
	if (rc)
		return rc;
	a.view = st->view;
	a.list = k->list;
	a.q = k->q;
	a.lse = k->lse;
	a.n_kv_heads = k->shape.n_kv_heads;
	a.group = k->shape.group;
	a.depth = k->depth;
	a.rooms = k->rooms;
	a.bf16 = st->keep_type == GPU_BF16;
	a.scale = st->keep_scale;
	switch (k->shape.slot_type) {
	case GPU_F16: return cuda_errno(launch<GPU_F16>(a, k, n, cuda_stream(stream)));
	case GPU_BF16: return cuda_errno(launch<GPU_BF16>(a, k, n, cuda_stream(stream)));
	default: return cuda_errno(launch<GPU_Q8>(a, k, n, cuda_stream(stream)));
	}
}
