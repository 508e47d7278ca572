/*
 * Heat of many queries on tensor cores, for 16-bit and q8 slots: as observe.cu, from the log-sum-exps that attend or the caller has.
 *
 * What: a CTA of four warps owns 128 slots of one lane (64 from head_dim 192 on), whose K rows it holds in registers. The queries that
 * give heat pass by in shared memory, 64 (query, head) pairs at a time: slots are the rows of K q^T, pairs the columns. The pairs are
 * laid out such that a thread has whole queries of its columns (of a group padded to a power of two): it turns logits into probabilities
 * and sums up the heads; what it has of each query goes to the slots' owners through shared memory.
 * Memory traffic: K once, q once per CTA (from L2), 4 bytes a pair and CTA, 8 bytes a slot and heat array, 4 bytes of position.
 * Determinism: a slot has one owner, who adds queries in order; heads in order within a query; float32, no atomics. Which CTA
 * takes which slots depends on the lane alone.
 */
#include "gpu/cuda/heat_mma.cuh"

/* --- logits ------------------------------------------------------------------------------------------------------------------------ */

/* Begin c = K q^T, or with `add` c += K q^T: the warp's slots, the 32 columns that begin at shared address q. heat_wait() waits for it. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_logits(const struct heat_slots<TYPE, D> &slots, uint32_t q, uint32_t thread, bool add,
						   struct heat_product<TYPE, D> &p)
{
	using size = heat_size<TYPE, D>;
	const auto &k = slots.k;
	auto &c = p.c;

#if WG_MMA
	const uint64_t b = wg_rows(q);

#pragma unroll
	for (uint32_t m = 0; add && m < size::parts; m++)
		wg_touch(c[m]);
	wg_begin();
#pragma unroll
	for (uint32_t j = 0; j < size::steps; j++)
#pragma unroll
		for (uint32_t m = 0; m < size::parts; m++)
			wg_mma<size::half, 0>(c[m], k[m][j], b + (j / 4u * size::query_panel + j % 4u * 32u) / 16u, add || j);
	wg_commit();
#else
#pragma unroll
	for (uint32_t m = 0; m < size::parts && !add; m++)
#pragma unroll
		for (uint32_t i = 0; i < 16; i++)
			c[m][i / 4u][i % 4u] = 0.0f;
#pragma unroll
	for (uint32_t j = 0; j < size::steps; j += 2u)
#pragma unroll
		for (uint32_t n = 0; n < 4; n++) {
			uint32_t b[4];

			mma_load4(b, q + j / 4u * size::query_panel + wg_piece(n * 8u + thread % 8u, j * 2u % 8u + thread / 8u));
#pragma unroll
			for (uint32_t m = 0; m < size::parts; m++) {
				mma_16816<size::half>(c[m][n], k[m][j], b[0], b[1]);
				mma_16816<size::half>(c[m][n], k[m][j + 1u], b[2], b[3]);
			}
		}
#endif
}

/* Until at most N of the products that began are under way, p not among them. */
template <int N, int TYPE, int D> static __device__ __forceinline__ void heat_wait(struct heat_product<TYPE, D> &p)
{
#if WG_MMA
	wg_wait<N>();
#pragma unroll
	for (uint32_t m = 0; m < heat_size<TYPE, D>::parts; m++)
		wg_touch(p.c[m]);
#endif
}

/* Logits become probabilities. meta: of the thread's 8 columns in the stage. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_probabilities(const float *meta, const float2 *param, struct heat_product<TYPE, D> &p)
{
	using size = heat_size<TYPE, D>;
	auto &c = p.c;
	float lse[8], scale[8], sum[8];

#pragma unroll
	for (uint32_t i = 0; i < 8; i += 4u) {
		float4 l = *(const float4 *)(meta + i), s = *(const float4 *)(meta + HEAT_PAIRS + i), q = *(const float4 *)(meta + 2u * HEAT_PAIRS + i);

		lse[i] = l.x, lse[i + 1] = l.y, lse[i + 2] = l.z, lse[i + 3] = l.w;
		scale[i] = s.x, scale[i + 1] = s.y, scale[i + 2] = s.z, scale[i + 3] = s.w;
		sum[i] = q.x, sum[i + 1] = q.y, sum[i + 2] = q.z, sum[i + 3] = q.w;
	}
#pragma unroll
	for (uint32_t i = 0; i < 8; i++)
		lse[i] *= -1.4426950408889634f;
#pragma unroll
	for (uint32_t m = 0; m < size::parts; m++)
#pragma unroll
		for (uint32_t n = 0; n < 4; n++)
#pragma unroll
			for (uint32_t i = 0; i < 4; i++) {
				uint32_t col = 2u * n + i % 2u;
				float v = c[m][n][i];

				if (size::q8)
					v = __fmaf_rn(param[2u * m + i / 2u].x, v, __fmul_rn(param[2u * m + i / 2u].y, sum[col]));
				c[m][n][i] = mma_exp2(__fmaf_rn(v, scale[col], lse[col]));
			}
}

/* --- from pairs to slots ------------------------------------------------------------------------------------------------------------- */

/* The heads of a thread's columns first .. first + N - 1, added in order to what the heads before them gave. */
template <int N, int TYPE, int D>
static __device__ __forceinline__ void heat_sum(const struct heat_product<TYPE, D> &product, uint32_t m, uint32_t first, bool begin,
						float &sum,
						float &squares)
{
#pragma unroll
	for (uint32_t i = 0; i < N; i++) {
		float p = product.c[m / 2u][(first + i) / 2u][m % 2u * 2u + (first + i) % 2u];

		sum = begin && i == 0 ? p : __fadd_rn(sum, p);
		squares = begin && i == 0 ? __fmul_rn(p, p) : __fadd_rn(squares, __fmul_rn(p, p));
	}
}

/*
 * A product's probabilities: the heads of each query summed up for each slot, then handed to the slots' owners, who add queries in order.
 * HEADS: of a query, padded. ALL: any kinds of heat; else the one that is a sum. query: index of the first among those that count.
 */
template <int TYPE, int D, int HEADS, bool ALL>
static __device__ __forceinline__ void heat_gather_queries(const struct heat_work &w, const struct heat_slots<TYPE, D> &slots,
							   const struct heat_product<TYPE, D> &p, uint32_t query, struct heat_owner *own)
{
	using size = heat_size<TYPE, D>;
	constexpr uint32_t heads = HEADS, queries = HEAT_COLUMNS / heads, per = heads < 8u ? 8u / heads : 1u, stride = heat_stride(heads);
	uint32_t q0 = heads == 16u ? w.t4 / 2u : w.t4 * per;

#pragma unroll
	for (uint32_t k = 0; k < per; k++) {
		uint32_t i = query + q0 + k;
		int32_t limit = i < w.n ? w.x.seq.pos + (int32_t)(w.first + i * w.every) : INT32_MIN;

#pragma unroll
		for (uint32_t m = 0; m < 2u * size::parts; m++) {
			float sum = 0.0f, squares = 0.0f;
			bool seen = slots.pos[m] <= limit;

			heat_sum<(heads < 8 ? heads : 8)>(p, m, k * heads, true, sum, squares);
			if (heads == 16u) {	/* the second thread goes on where the first one ended */
				sum = __shfl_xor_sync(0xffffffffu, sum, 1);
				squares = __shfl_xor_sync(0xffffffffu, squares, 1);
				heat_sum<8>(p, m, 0, false, sum, squares);
			}
			if (heads < 16u || w.t4 % 2u) {
				w.gather[(q0 + k) * stride + 8u * m + w.g] = seen ? sum : ALL ? -1.0f : 0.0f;
				if (ALL)
					w.gather[(queries + q0 + k) * stride + 8u * m + w.g] = squares;
			}
		}
	}
	__syncwarp();
	if (w.thread < size::owned) {
#pragma unroll
		for (uint32_t q = 0; q < queries; q++) {
			float sum = w.gather[q * stride + w.thread];

			if (!ALL)
				own->heat[0] = __fadd_rn(own->heat[0], sum);
			else if (sum >= 0.0f)
				heat_add(own, sum, w.gather[(queries + q) * stride + w.thread]);
		}
	}
	__syncwarp();
}

template <int TYPE, int D, bool ALL>
static __device__ __forceinline__ void heat_gather_any(const struct heat_work &w, const struct heat_slots<TYPE, D> &slots,
						       const struct heat_product<TYPE, D> &p, uint32_t query, struct heat_owner *own)
{
	switch (w.shift) {
	case 0: heat_gather_queries<TYPE, D, 1, ALL>(w, slots, p, query, own); break;
	case 1: heat_gather_queries<TYPE, D, 2, ALL>(w, slots, p, query, own); break;
	case 2: heat_gather_queries<TYPE, D, 4, ALL>(w, slots, p, query, own); break;
	case 3: heat_gather_queries<TYPE, D, 8, ALL>(w, slots, p, query, own); break;
	default: heat_gather_queries<TYPE, D, 16, ALL>(w, slots, p, query, own); break;
	}
}

/* The logits of half a stage (part 0 or 1) become heat. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_take(const struct heat_work &w, const struct heat_slots<TYPE, D> &slots, uint32_t tile,
						 uint32_t stage,
						 uint32_t part, struct heat_product<TYPE, D> &p, struct heat_owner *own)
{
	uint32_t query = tile * (HEAT_PAIRS >> w.shift) + (part * HEAT_COLUMNS >> w.shift);

	heat_probabilities<TYPE, D>(heat_meta(w, stage, 0) + part * HEAT_COLUMNS + w.t4 * 8u, slots.param, p);
	if (own->n_heat > 1u || own->kind[0] != EVICT_HEAT_SUM)
		heat_gather_any<TYPE, D, true>(w, slots, p, query, own);
	else
		heat_gather_any<TYPE, D, false>(w, slots, p, query, own);
}

/* --- the kernel ---------------------------------------------------------------------------------------------------------------------- */

/* What a CTA has to do; false: nothing. */
template <int TYPE, int D>
static __device__ __forceinline__ bool heat_open(const struct heat_args &a, struct heat_work &w)
{
	struct tile_chosen c;
	uint32_t past;

	w.slot0 = blockIdx.x % a.n_groups * heat_size<TYPE, D>::slots;
	if (!tile_lane(a.t, blockIdx.x / a.n_groups, blockIdx.y, &w.x) || w.slot0 >= w.x.live || w.x.seq.n * a.t.group <= a.done_pairs)
		return false;
	c = heat_choose(a, w.x);
	if (!w.x.t->n_heat || !tile_any_counts(c, w.x, 0, w.x.seq.n))
		return false;
	past = ((uint32_t)w.x.seq.pos + c.from) % c.every;
	w.first = c.from + (past ? c.every - past : 0u);
	w.every = c.every;
	w.n = (w.x.seq.n - w.first + c.every - 1u) / c.every;
	w.shift = a.t.group > 1u ? 32u - (uint32_t)__clz((int)(a.t.group - 1u)) : 0u;
	w.warp = threadIdx.x / 32u;
	w.thread = threadIdx.x % 32u;
	w.g = w.thread / 4u;
	w.t4 = w.thread % 4u;
	return true;
}

/* The first tile with a query that sees any slot of the CTA. least: room for a number of each warp. Has a barrier. */
static __device__ __forceinline__ uint32_t heat_first_tile(const struct heat_work &w, uint32_t slots, int32_t *least)
{
	int32_t mine = threadIdx.x < slots ? w.pos[threadIdx.x] : INT32_MAX, from = w.x.seq.pos + (int32_t)w.first;

	mine = __reduce_min_sync(0xffffffffu, mine);
	if (w.thread == 0)
		least[w.warp] = mine;
	__syncthreads();
	mine = min(min(least[0], least[1]), min(least[2], least[3]));
	return mine > from ? ((uint32_t)(mine - from) + w.every - 1u) / w.every / (HEAT_PAIRS >> w.shift) : 0u;
}

template <int TYPE, int D, bool DIRECT>
static __device__ __forceinline__ void heat_feed(const struct heat_args &a, const struct heat_work &w, const struct heat_source &source,
						 uint32_t tile, uint32_t n_tiles, uint32_t stage, char *shared)
{
	if (tile < n_tiles) {
		heat_fetch_lse(w, source, tile, stage);
		if (DIRECT)
			heat_copy_queries<TYPE, D>(a, w, source, tile, stage);
		else
			heat_convert_queries<TYPE, D>(a, w, tile, stage, shared);
	}
	mma_commit();
}

/* Until the tile in front is there, and all are done with the one before it. */
static __device__ __forceinline__ void heat_turn(uint32_t ahead)
{
	mma_wait(ahead);
#if WG_MMA
	wg_written();
#endif
	__syncthreads();
}

/* The tiles of queries from `tile` on, whose copies are under way. The second half of a tile is multiplied while the first becomes heat. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_copied(const struct heat_args &a, const struct heat_work &w, const struct heat_source &source,
						   const struct heat_slots<TYPE, D> &slots, uint32_t tile, uint32_t n_tiles,
						   struct heat_owner *own)
{
	struct heat_product<TYPE, D> p[2];

#pragma unroll 1
	for (uint32_t stage = 0; tile < n_tiles; tile++) {
		uint32_t at = w.queries + stage * w.stage_bytes;

		heat_turn(a.stages - 1u);
		heat_logits(slots, at, w.thread, false, p[0]);
		heat_logits(slots, at + HEAT_COLUMNS * WG_ROW, w.thread, false, p[1]);
		heat_feed<TYPE, D, true>(a, w, source, tile + a.stages - 1u, n_tiles, stage ? stage - 1u : a.stages - 1u, NULL);
		heat_wait<1>(p[0]);
		heat_take(w, slots, tile, stage, 0, p[0], own);
		heat_wait<0>(p[1]);
		heat_take(w, slots, tile, stage, 1, p[1], own);
		stage = stage + 1u < a.stages ? stage + 1u : 0u;
	}
}

/* The same for queries that are converted, which does not run ahead: two stages. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_converted(const struct heat_args &a, const struct heat_work &w, const struct heat_source &source,
						      const struct heat_slots<TYPE, D> &slots, uint32_t tile, uint32_t n_tiles,
						      struct heat_owner *own, char *shared)
{
	struct heat_product<TYPE, D> p;

#pragma unroll 1
	for (uint32_t stage = 0; tile < n_tiles; tile++, stage ^= 1u) {
		heat_turn(1);
		heat_feed<TYPE, D, false>(a, w, source, tile + 1u, n_tiles, stage ^ 1u, shared);
#pragma unroll 1
		for (uint32_t part = 0; part < 2; part++) {
			uint32_t at = w.queries + stage * w.stage_bytes + part * HEAT_COLUMNS * WG_ROW;

			heat_logits(slots, at, w.thread, false, p);
			heat_wait<0>(p);
			if (a.both) {
				heat_logits(slots, at + heat_size<TYPE, D>::queries, w.thread, true, p);
				heat_wait<0>(p);
			}
			heat_take(w, slots, tile, stage, part, p, own);
		}
	}
}

/* The warp's keys as fragments, and what belongs to the thread's slots. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_load_keys(const struct heat_work &w, const float2 *param, struct heat_slots<TYPE, D> &slots)
{
	using size = heat_size<TYPE, D>;

#pragma unroll
	for (uint32_t m = 0; m < size::parts; m++) {
		uint32_t row = m * 64u + w.warp * 16u;

#pragma unroll
		for (uint32_t j = 0; j < size::steps; j++)
			mma_load4(slots.k[m][j], w.shared + j / 4u * size::key_panel + wg_piece(row + w.thread % 16u, j % 4u * 2u + w.thread / 16u));
#pragma unroll
		for (uint32_t i = 0; i < 2; i++) {
			slots.pos[2u * m + i] = w.pos[row + w.g + 8u * i];
			slots.param[2u * m + i] = size::q8 ? param[row + w.g + 8u * i] : make_float2(0.0f, 0.0f);
		}
	}
}

template <int TYPE, int D, bool DIRECT>
static __global__ void __launch_bounds__(HEAT_THREADS, heat_size<TYPE, D>::parts)
heat_mma_kernel(const __grid_constant__ struct heat_args a)
{
	using size = heat_size<TYPE, D>;
	extern __shared__ __align__(1024) char shared[];
	const struct heat_plan plan = heat_plan_of<TYPE, D>(a.heads, a.stages, a.both);
	uint32_t tile, n_tiles, mine, ahead = a.stages - 1u;
	struct heat_slots<TYPE, D> slots;
	struct heat_source source;
	struct heat_owner own;
	struct heat_work w;
	bool owns;
	char *block;
	float *heat;

	if (!heat_open<TYPE, D>(a, w))
		return;
	w.shared = mma_shared(shared);
	w.queries = w.shared + plan.queries;
	w.stage_bytes = (a.both ? 2u : 1u) * size::queries;
	w.meta = (float *)(shared + plan.meta);
	w.gather = (float *)shared + w.warp * heat_gather(a.heads);
	w.pos = (int32_t *)(shared + plan.pos);
	heat_fetch_keys<TYPE, D>(a, w, shared, (int32_t *)(shared + plan.pos), (float2 *)(shared + plan.param));
	mma_commit();
	for (uint32_t i = threadIdx.x; DIRECT && i < a.stages * 3u * HEAT_PAIRS; i += HEAT_THREADS)
		if (i / HEAT_PAIRS % 3u)
			w.meta[i] = i / HEAT_PAIRS % 3u == 1u ? a.t.scale : 0.0f;
	__syncthreads();
	source = heat_source_of(a, w);
	tile = heat_first_tile(w, size::slots, (int32_t *)(shared + plan.least));
	n_tiles = (w.n + (HEAT_PAIRS >> w.shift) - 1u) / (HEAT_PAIRS >> w.shift);
	for (uint32_t i = 0; i < ahead; i++)
		heat_feed<TYPE, D, DIRECT>(a, w, source, tile + i, n_tiles, i, shared);
	mma_wait(ahead + 1u);		/* the keys */
	__syncthreads();
	heat_load_keys(w, (const float2 *)(shared + plan.param), slots);
	mine = w.thread / 16u * 64u + w.warp * 16u + w.thread % 16u;	/* the slot that the thread owns */
	block = cuda_block(a.t.view, w.x.t, w.x.lane, w.slot0);
	owns = w.thread < size::owned && w.slot0 + mine < w.x.live && block;
	heat = (float *)block + GPU_BLOCK_SLOTS + w.slot0 % GPU_BLOCK_SLOTS + mine;
	heat_take_over(&own, w.x.t, owns, heat);
	if (DIRECT)
		heat_copied(a, w, source, slots, tile, n_tiles, &own);
	else
		heat_converted(a, w, source, slots, tile, n_tiles, &own, shared);
	heat_give_back(&own, owns, heat);
}

/* --- launches ------------------------------------------------------------------------------------------------------------------------- */

template <int TYPE, int D, bool DIRECT> static cudaError_t heat_launch_as(const struct cuda_step *st, struct heat_args a, cudaStream_t s)
{
	using size = heat_size<TYPE, D>;
	uint32_t bytes;
	cudaError_t e;

	a.stages = DIRECT ? 3u : 2u;
	bytes = heat_plan_of<TYPE, D>(a.heads, a.stages, a.both).bytes;
	e = cudaFuncSetAttribute(heat_mma_kernel<TYPE, D, DIRECT>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
	if (e != cudaSuccess)
		return e;
	a.n_groups = (st->live_max + size::slots - 1u) / size::slots;
	if (!a.n_groups)
		return cudaSuccess;
	heat_mma_kernel<TYPE, D, DIRECT><<<dim3(st->n_seqs * a.n_groups, a.t.n_kv_heads), HEAT_THREADS, bytes, s>>>(a);
	return cudaGetLastError();
}

/* Queries of the slots' own type are copied as they are, if their rows lie at whole pieces of 16 bytes. */
template <int TYPE, int D> static cudaError_t heat_launch(const struct cuda_step *st, const struct heat_args &a, cudaStream_t s)
{
	if constexpr (TYPE != GPU_Q8)
		if (a.t.q.type == TYPE && (uintptr_t)a.t.q.data % 16u == 0 && a.t.q.stride % 8 == 0)
			return heat_launch_as<TYPE, D, true>(st, a, s);
	return heat_launch_as<TYPE, D, false>(st, a, s);
}

template <int TYPE> static cudaError_t heat_launch_type(const struct cuda_step *st, const struct heat_args &a, cudaStream_t s)
{
	switch (mma_padded(a.t.head_dim)) {
	case 64: return heat_launch<TYPE, 64>(st, a, s);
	case 96: return heat_launch<TYPE, 96>(st, a, s);
	case 128: return heat_launch<TYPE, 128>(st, a, s);
	case 192: return heat_launch<TYPE, 192>(st, a, s);
	default: return heat_launch<TYPE, 256>(st, a, s);
	}
}

cudaError_t heat_mma(const struct cuda_step *st, const struct heat_args &args, cudaStream_t s)
{
	uint32_t type = st->shape.slot_type;
	struct heat_args a = args;

	a.t.scale *= 1.4426950408889634f;
	a.both = cuda_exact_queries(type, a.t.q.type);
	a.vectors = (uintptr_t)a.t.q.data % 16u == 0 && a.t.q.stride % 4 == 0;
	for (a.heads = 1; a.heads < a.t.group; a.heads *= 2u)
		;
	switch (type) {
	case GPU_F16: return heat_launch_type<GPU_F16>(st, a, s);
	case GPU_BF16: return heat_launch_type<GPU_BF16>(st, a, s);
	default: return heat_launch_type<GPU_Q8>(st, a, s);
	}
}
