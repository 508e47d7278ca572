/*
 * Heat of many queries on tensor cores, for 16-bit and q8 slots: as observe.cu, from the log-sum-exps that attend or the caller has.
 *
 * What: a CTA owns 256 slots of one lane (128 from head_dim 192 on), a page a warp, whose K rows the warp holds in registers. The queries
 * that give heat pass by in a ring in shared memory, 64 (query, head) pairs at a time: slots are the rows of K q^T, pairs the columns. The
 * pairs are laid out such that a thread has whole queries of its columns (of a group padded to a power of two; half a query from 9 heads
 * on): it turns logits into probabilities, sums up the heads and keeps what they give its two slots. No warpgroup waits for another, so the
 * products of some run beside the exponentials of others.
 * Memory traffic: K once, q once per CTA (from L2), 4 bytes a pair and CTA, 8 bytes a slot and heat array, 4 bytes of position.
 * Determinism: a slot's sums are those of four threads, each of which has fixed queries and adds them in order (heads in order within a
 * query, from 9 on in two halves); then the first two, the last two, and both. Float32, no atomics. Which CTA takes which slots depends
 * on the lane alone.
 */
#include "gpu/cuda/heat_mma.cuh"

/* --- logits ------------------------------------------------------------------------------------------------------------------------ */

/* Begin c = K q^T, or with `add` c += K q^T: the warp's slots, the tile that begins at shared address q. heat_wait() waits for it. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_logits(const struct heat_slots<TYPE, D> &slots, uint32_t q, uint32_t thread, bool add,
						   struct heat_product &p)
{
	using size = heat_size<TYPE, D>;
	auto &c = p.c;

#if WG_MMA
	const uint64_t b = wg_rows(q);

	if (add)
		wg_touch(c);
	wg_begin();
#pragma unroll
	for (uint32_t j = 0; j < size::steps; j++)
		wg_mma<size::half, 0>(c, slots.k[j], b + (j / 4u * size::query_panel + j % 4u * 32u) / 16u, add || j);
	wg_commit();
#else
#pragma unroll
	for (uint32_t i = 0; i < HEAT_PAIRS / 2u && !add; i++)
		c[i / 4u][i % 4u] = 0.0f;
#pragma unroll
	for (uint32_t j = 0; j < size::steps; j += 2u)
#pragma unroll
		for (uint32_t n = 0; n < HEAT_PAIRS / 8u; n++) {
			uint32_t b[4];

			mma_load4(b, q + j / 4u * size::query_panel + wg_piece(n * 8u + thread % 8u, j * 2u % 8u + thread / 8u));
			mma_16816<size::half>(c[n], slots.k[j], b[0], b[1]);
			mma_16816<size::half>(c[n], slots.k[j + 1u], b[2], b[3]);
		}
#endif
}

/* Until the product that began is there. */
static __device__ __forceinline__ void heat_wait(struct heat_product &p)
{
#if WG_MMA
	wg_wait<0>();
	wg_touch(p.c);
#endif
}

/* Logits become probabilities. meta: of the thread's first 8 columns in the stage. SCALED: each pair has a scale and a sum of its own. */
template <int TYPE, int D, bool SCALED>
static __device__ __forceinline__ void heat_probabilities(const float *meta, float scale, const float2 (&param)[2], struct heat_product &p)
{
	using size = heat_size<TYPE, D>;

#pragma unroll
	for (uint32_t i = 0; i < HEAT_PAIRS / 4u; i++) {	/* columns */
		uint32_t n = i / 8u * 4u + i % 8u / 2u, at = i / 8u * HEAT_COLUMNS + i % 8u;
		float lse = meta[at] * -1.4426950408889634f, by = SCALED ? meta[HEAT_CONVERTED * HEAT_PAIRS + at] : scale;

#pragma unroll
		for (uint32_t h = 0; h < 2; h++) {
			float v = p.c[n][2u * h + i % 2u];

			if (size::q8)
				v = __fmaf_rn(param[h].x, v, __fmul_rn(param[h].y, meta[2u * HEAT_CONVERTED * HEAT_PAIRS + at]));
			p.c[n][2u * h + i % 2u] = mma_exp2(__fmaf_rn(v, by, lse));
		}
	}
}

/* --- from pairs to slots ------------------------------------------------------------------------------------------------------------- */

/* What the thread's queries so far gave its two slots. A kind that is the last query's: below 0 if that did not see the slot. */
struct heat_sums {
	float v[GPU_MAX_HEAT][2];
};

/* One query's heads gave a slot this. last: nobody comes behind this query. */
static __device__ __forceinline__ void heat_keep(const struct heat_owner &own, uint32_t h, bool last, float sum, float squares,
						 struct heat_sums *s)
{
#pragma unroll
	for (uint32_t i = 0; i < GPU_MAX_HEAT; i++) {
		if (own.kind[i] != EVICT_HEAT_LAST)
			s->v[i][h] = heat_after(own.kind[i], s->v[i][h], sum, squares);
		else if (last)
			s->v[i][h] = sum;
	}
}

/* A tile's probabilities become heat of any kinds, of the queries that see the slot. */
static __device__ __forceinline__ void heat_add_any(const struct heat_work &w, const int32_t (&pos)[2], const struct heat_product &p,
						    uint32_t tile, const struct heat_owner &own, struct heat_sums *s)
{
	const uint32_t mask = (1u << w.shift) - 1u;
	float sum[2] = {}, squares[2] = {};

#pragma unroll
	for (uint32_t k = 0; k < 16; k++) {	/* the thread's columns */
		uint32_t n = k / 8u * 4u + k % 8u / 2u, i = (tile * HEAT_PAIRS + k / 8u * HEAT_COLUMNS + w.t4 * 8u + k % 8u) >> w.shift;
		int32_t limit = i < w.n ? w.x.seq.pos + (int32_t)(w.first + i * w.every) : INT32_MIN;

#pragma unroll
		for (uint32_t h = 0; h < 2; h++) {
			float v = p.c[n][2u * h + k % 2u], square = __fmul_rn(v, v);
			bool first = (k & mask) == 0 || k == 8u;

			sum[h] = first ? v : __fadd_rn(sum[h], v);
			squares[h] = first ? square : __fadd_rn(squares[h], square);
		}
		if (((k + 1u) & mask) && k % 8u != 7u)
			continue;
#pragma unroll
		for (uint32_t h = 0; h < 2; h++) {
			if (w.shift == 4u) {	/* the other half of the heads */
				sum[h] = __fadd_rn(sum[h], __shfl_xor_sync(0xffffffffu, sum[h], 1));
				squares[h] = __fadd_rn(squares[h], __shfl_xor_sync(0xffffffffu, squares[h], 1));
			}
			if (pos[h] <= limit && (w.shift < 4u || w.t4 % 2u == 0))
				heat_keep(own, h, i + 1u == w.n, sum[h], squares[h], s);
		}
	}
}

/* The same where all queries see the slot and the only kind is a sum; HEADS: of a query, padded; up to 8. */
template <int HEADS> static __device__ __forceinline__ void heat_add_sums(const struct heat_product &p, struct heat_sums *s)
{
#pragma unroll
	for (uint32_t k = 0; k < 16; k += HEADS)
#pragma unroll
		for (uint32_t h = 0; h < 2; h++) {
			float sum = p.c[k / 8u * 4u + k % 8u / 2u][2u * h + k % 2u];

#pragma unroll
			for (uint32_t i = k + 1u; i < k + HEADS; i++)
				sum = __fadd_rn(sum, p.c[i / 8u * 4u + i % 8u / 2u][2u * h + i % 2u]);
			s->v[0][h] = __fadd_rn(s->v[0][h], sum);
		}
}

/* A tile's logits become heat. */
template <int TYPE, int D, bool SCALED>
static __device__ __forceinline__ void heat_take(const struct heat_args &a, const struct heat_work &w,
						 const struct heat_slots<TYPE, D> &slots, uint32_t tile, uint32_t at,
						 struct heat_product &p, const struct heat_owner &own, struct heat_sums *s)
{
	uint32_t per = HEAT_PAIRS >> w.shift;
	bool sums = own.n_heat == 1u && own.kind[0] == EVICT_HEAT_SUM && (tile + 1u) * per <= w.n &&
		    slots.most <= w.x.seq.pos + (int32_t)(w.first + tile * per * w.every);

	heat_probabilities<TYPE, D, SCALED>(heat_meta(w, at, 0) + w.t4 * 8u, a.t.scale, slots.param, p);
	switch (sums ? w.shift : 4u) {
	case 0: heat_add_sums<1>(p, s); break;
	case 1: heat_add_sums<2>(p, s); break;
	case 2: heat_add_sums<4>(p, s); break;
	case 3: heat_add_sums<8>(p, s); break;
	default: heat_add_any(w, slots.pos, p, tile, own, s); break;
	}
}

/* What the four threads have of a slot becomes its heat. */
static __device__ __forceinline__ void heat_write(const struct heat_args &a, const struct heat_work &w, const struct heat_owner &own,
						  const struct heat_sums &s)
{
	char *block = w.slot0 < w.x.live ? cuda_block(a.t.view, w.x.t, w.x.lane, w.slot0) : NULL;
	float *heat = (float *)block + GPU_BLOCK_SLOTS + w.slot0 % GPU_BLOCK_SLOTS;

#pragma unroll
	for (uint32_t i = 0; i < GPU_MAX_HEAT; i++)
#pragma unroll
		for (uint32_t h = 0; h < 2; h++) {
			bool most = own.kind[i] == EVICT_HEAT_LAST || own.kind[i] == EVICT_HEAT_MAX;
			float v = s.v[i][h], *to = heat + i * GPU_BLOCK_SLOTS + w.g + 8u * h;

#pragma unroll
			for (int d = 1; d < 4; d *= 2) {
				float other = __shfl_xor_sync(0xffffffffu, v, d);

				v = most ? fmaxf(v, other) : __fadd_rn(v, other);
			}
			if (w.t4 == 0 && block && i < own.n_heat && w.slot0 + w.g + 8u * h < w.x.live && !(v < 0.0f))
				*to = heat_after(own.kind[i], *to, v, v);
		}
}

/* --- the kernel ---------------------------------------------------------------------------------------------------------------------- */

/* What a CTA has to do; false: nothing. */
template <int TYPE, int D>
static __device__ __forceinline__ bool heat_open(const struct heat_args &a, struct heat_work &w)
{
	uint32_t past, slot0 = blockIdx.x % a.n_groups * heat_size<TYPE, D>::slots;
	struct tile_chosen c;

	if (!tile_lane(a.t, blockIdx.x / a.n_groups, blockIdx.y, &w.x) || slot0 >= w.x.live || w.x.seq.n * a.t.group <= a.done_pairs)
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
	w.slot0 = slot0 + w.warp * GPU_PAGE_SLOTS;
	w.thread = threadIdx.x % 32u;
	w.g = w.thread / 4u;
	w.t4 = w.thread % 4u;
	return true;
}

/* The first tile with a query that sees any slot of the CTA. mine: least of the thread's; least: room for each warp's. Has a barrier. */
template <int TYPE, int D>
static __device__ __forceinline__ uint32_t heat_first_tile(const struct heat_work &w, int32_t mine, int32_t *least)
{
	int32_t from = w.x.seq.pos + (int32_t)w.first;

	mine = __reduce_min_sync(0xffffffffu, mine);
	if (w.thread == 0)
		least[w.warp] = mine;
	__syncthreads();
#pragma unroll
	for (uint32_t i = 0; i < heat_size<TYPE, D>::warps; i++)
		mine = min(mine, least[i]);
	return mine > from ? ((uint32_t)(mine - from) + w.every - 1u) / w.every / (HEAT_PAIRS >> w.shift) : 0u;
}

/* Barriers of a stage: its queries are there; all warps are done with it. */
static __device__ __forceinline__ uint32_t heat_bar(const struct heat_work &w, uint32_t stage, bool done)
{
	return w.bars + (stage * 2u + done) * 8u;
}

/* Ask for the queries of a stage from `tile` on. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_copy(const struct heat_args &a, const struct heat_work &w,
						 const struct heat_source<TYPE, D> &source, uint32_t tile, uint32_t stage)
{
	using size = heat_size<TYPE, D>;

#pragma unroll
	for (uint32_t u = 0; u < size::tiles; u++) {
		heat_fetch_lse(w, source, tile + u, stage * size::tiles + u);
		heat_copy_queries<TYPE, D>(a, w, source, tile + u, stage * size::tiles + u);
	}
	wg_bar_copied(heat_bar(w, stage, false));
}

/*
 * The tiles of queries from `tile` on, which are copied as they are. A stage is filled again once all warps are two stages further: so that
 * none has to wait for the others.
 */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_copied(const struct heat_args &a, const struct heat_work &w,
						   const struct heat_slots<TYPE, D> &slots, uint32_t tile, uint32_t n_tiles,
						   const struct heat_owner &own, struct heat_sums *sums)
{
	using size = heat_size<TYPE, D>;
	struct heat_source<TYPE, D> source = heat_source_of<TYPE, D>(a, w);
	uint32_t stage = 0, odd = 0, to = a.stages - 2u, to_odd = 1, ahead = to * size::tiles;
	struct heat_product p;

	for (uint32_t i = 0; i < to && tile + i * size::tiles < n_tiles; i++)
		heat_copy<TYPE, D>(a, w, source, tile + i * size::tiles, i);
#pragma unroll 1
	for (; tile < n_tiles; tile += size::tiles) {
		wg_bar_wait(heat_bar(w, stage, false), odd);
#if WG_MMA
		wg_written();
#endif
#pragma unroll
		for (uint32_t u = 0; u < size::tiles; u++) {
			heat_logits(slots, w.queries + (stage * size::tiles + u) * w.tile_bytes, w.thread, false, p);
			if (u == 0 && tile + ahead < n_tiles) {
				wg_bar_wait(heat_bar(w, to, true), to_odd);
				heat_copy<TYPE, D>(a, w, source, tile + ahead, to);
			}
			heat_wait(p);
			heat_take<TYPE, D, false>(a, w, slots, tile + u, stage * size::tiles + u, p, own, sums);
		}
		__syncwarp();
		if (w.thread == 0)
			wg_bar_arrive(heat_bar(w, stage, true));
		stage = stage + 1u == a.stages ? 0u : stage + 1u;
		odd ^= stage == 0;
		to = to + 1u == a.stages ? 0u : to + 1u;
		to_odd ^= to == 0;
	}
}

/* Until the tile in front is there, and all are done with the one before it. */
static __device__ __forceinline__ void heat_turn(void)
{
	mma_wait(1);
#if WG_MMA
	wg_written();
#endif
	__syncthreads();
}

template <int TYPE, int D>
static __device__ __forceinline__ void heat_convert(const struct heat_args &a, const struct heat_work &w,
						    const struct heat_source<TYPE, D> &source, uint32_t tile, uint32_t n_tiles,
						    uint32_t stage, char *shared)
{
	if (tile < n_tiles) {
		heat_fetch_lse(w, source, tile, stage);
		heat_convert_queries<TYPE, D>(a, w, tile, stage, shared);
	}
	mma_commit();
}

/* The same for queries that are converted, which does not run ahead: two stages. */
template <int TYPE, int D>
static __device__ __forceinline__ void heat_converted(const struct heat_args &a, const struct heat_work &w,
						      const struct heat_slots<TYPE, D> &slots, uint32_t tile, uint32_t n_tiles,
						      const struct heat_owner &own, struct heat_sums *sums, char *shared)
{
	struct heat_source<TYPE, D> source = heat_source_of<TYPE, D>(a, w);
	struct heat_product p;

	heat_convert<TYPE, D>(a, w, source, tile, n_tiles, 0, shared);
#pragma unroll 1
	for (uint32_t stage = 0; tile < n_tiles; tile++, stage ^= 1u) {
		uint32_t at = w.queries + stage * w.tile_bytes;

		heat_turn();
		heat_convert<TYPE, D>(a, w, source, tile + 1u, n_tiles, stage ^ 1u, shared);
		heat_logits(slots, at, w.thread, false, p);
		heat_wait(p);
		if (a.both) {
			heat_logits(slots, at + heat_size<TYPE, D>::queries, w.thread, true, p);
			heat_wait(p);
		}
		heat_take<TYPE, D, true>(a, w, slots, tile, stage, p, own, sums);
	}
}

template <int TYPE, int D, bool DIRECT>
static __global__ void __launch_bounds__(heat_size<TYPE, D>::threads, 1) heat_mma_kernel(const __grid_constant__ struct heat_args a)
{
	using size = heat_size<TYPE, D>;
	extern __shared__ __align__(1024) char shared[];
	const struct heat_plan plan = heat_plan_of<TYPE, D, DIRECT>(a.stages, a.both);
	struct heat_slots<TYPE, D> slots;
	struct heat_sums sums;
	struct heat_owner own;
	struct heat_work w;
	uint32_t tile, n_tiles;

	if (!heat_open<TYPE, D>(a, w))
		return;
	w.queries = mma_shared(shared);
	w.tile_bytes = (a.both ? 2u : 1u) * size::queries;
	w.meta = (float *)(shared + plan.meta);
	w.bars = w.queries + plan.bars;
	if (DIRECT && threadIdx.x < a.stages) {
		wg_bar_new(heat_bar(w, threadIdx.x, false), size::threads);
		wg_bar_new(heat_bar(w, threadIdx.x, true), size::warps);
	}
	heat_load_slots<TYPE, D>(a, w, slots);
	heat_take_over(&own, w.x.t, false, NULL);
#pragma unroll
	for (uint32_t i = 0; i < GPU_MAX_HEAT; i++)
		sums.v[i][0] = sums.v[i][1] = own.kind[i] == EVICT_HEAT_LAST ? -1.0f : 0.0f;
	tile = heat_first_tile<TYPE, D>(w, min(slots.pos[0], slots.pos[1]), (int32_t *)(shared + plan.least));
	tile = __reduce_min_sync(0xffffffffu, tile);	/* as it is: the compiler sees that it is the same in all threads */
	n_tiles = __reduce_min_sync(0xffffffffu, (w.n + (HEAT_PAIRS >> w.shift) - 1u) / (HEAT_PAIRS >> w.shift));
	if (DIRECT)
		heat_copied<TYPE, D>(a, w, slots, tile, n_tiles, own, &sums);
	else
		heat_converted<TYPE, D>(a, w, slots, tile, n_tiles, own, &sums, shared);
	heat_write(a, w, own, sums);
}

/* --- launches ------------------------------------------------------------------------------------------------------------------------- */

/* Stages of queries that are copied as they are: what there is room for, at most 6. */
template <int TYPE, int D> static uint32_t heat_stages(const struct cuda_step *st)
{
	uint32_t fit = (uint32_t)(cuda_dev(st->base.dev)->shared_block / heat_plan_of<TYPE, D, true>(1, 0).bytes);

	return fit < 6u ? fit : 6u;
}

template <int TYPE, int D, bool DIRECT> static cudaError_t heat_launch_as(const struct cuda_step *st, struct heat_args a, cudaStream_t s)
{
	using size = heat_size<TYPE, D>;
	uint32_t bytes;
	cudaError_t e;

	a.stages = DIRECT ? heat_stages<TYPE, D>(st) : HEAT_CONVERTED;
	bytes = heat_plan_of<TYPE, D, DIRECT>(a.stages, a.both).bytes;
	e = cudaFuncSetAttribute(heat_mma_kernel<TYPE, D, DIRECT>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
	if (e != cudaSuccess)
		return e;
	a.n_groups = (st->live_max + size::slots - 1u) / size::slots;
	if (!a.n_groups)
		return cudaSuccess;
	heat_mma_kernel<TYPE, D, DIRECT><<<dim3(st->n_seqs * a.n_groups, a.t.n_kv_heads), size::threads, bytes, s>>>(a);
	return cudaGetLastError();
}

/* Queries of the slots' own type are copied as they are, if their rows lie at whole pieces of 16 bytes. */
template <int TYPE, int D> static cudaError_t heat_launch(const struct cuda_step *st, const struct heat_args &a, cudaStream_t s)
{
	if constexpr (TYPE != GPU_Q8)
		if (a.t.q.type == TYPE && (uintptr_t)a.t.q.data % 16u == 0 && a.t.q.stride % 8 == 0 && heat_stages<TYPE, D>(st) > 2u)
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
	switch (type) {
	case GPU_F16: return heat_launch_type<GPU_F16>(st, a, s);
	case GPU_BF16: return heat_launch_type<GPU_BF16>(st, a, s);
	default: return heat_launch_type<GPU_Q8>(st, a, s);
	}
}
