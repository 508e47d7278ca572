/*
 * observe: the probability exp(scale * q.k - lse) that queries gave to slots, added to the slots' heat.
 *
 * What: a CTA takes 32 or 64 slots of one lane, keeps their K rows in shared memory and lets the step's queries pass by in tiles of
 * 16 (query, head) pairs. Logits come from the same instructions as attend's. One thread owns a slot. After an attend of few
 * queries the logits are still there, and a thread per slot adds up what they say.
 * Memory traffic: K once, q once per CTA (from L2), 8 bytes a slot and heat array, 4 bytes of position; or 4 bytes a logit and
 * 8 a slot and heat array.
 * Determinism: the owner adds queries in order and heads in order within a query; float32, no atomics.
 */
#include "gpu/cuda/tile.cuh"

struct heat_args {
	struct tile_args t;
	const float *lse;		/* [rows][n_kv_heads * group] */
	uint32_t n_groups;		/* CTAs along the slots of a lane */
	int observed;			/* 1: the table's observe says which queries count; 0: the last `last` of each session */
	uint32_t last;
	uint32_t done_pairs;		/* sessions of up to so many (query, head) pairs have their heat already */
};

static __device__ __forceinline__ struct tile_chosen choose(const struct heat_args &a, const struct tile_ctx &x)
{
	struct tile_chosen c = { 1u, tile_heat_from(x) };

	if (a.observed)
		c.every = x.t->observe;
	else if (a.last && a.last < x.seq.n)
		c.from = max(c.from, x.seq.n - a.last);
	return c;
}

/* The heat of one slot while its owner adds to it. */
struct owner {
	uint32_t n_heat, kind[GPU_MAX_HEAT];
	float heat[GPU_MAX_HEAT];
	float sum, squares;		/* of the query at hand, over the heads so far */
};

/* The heads of a group are summed in order, then the query's sum goes to the heat. */
static __device__ __forceinline__ void add_pair(struct owner *o, float p, bool first_head, bool last_head)
{
	o->sum = first_head ? p : __fadd_rn(o->sum, p);
	o->squares = first_head ? __fmul_rn(p, p) : __fadd_rn(o->squares, __fmul_rn(p, p));
	if (!last_head)
		return;
#pragma unroll
	for (uint32_t i = 0; i < GPU_MAX_HEAT; i++) {
		switch (o->kind[i]) {
		case EVICT_HEAT_MAX: o->heat[i] = fmaxf(o->heat[i], o->sum); break;
		case EVICT_HEAT_SQUARES: o->heat[i] = __fadd_rn(o->heat[i], o->squares); break;
		case EVICT_HEAT_LAST: o->heat[i] = o->sum; break;
		default: o->heat[i] = __fadd_rn(o->heat[i], o->sum); break;
		}
	}
}

/* heat: of the slot, in the block's first heat array. Read only when the slot is the thread's (`mine`). */
static __device__ __forceinline__ void take_over(struct owner *o, const struct gpu_table *t, bool mine, const float *heat)
{
	o->n_heat = t->n_heat < GPU_MAX_HEAT ? t->n_heat : GPU_MAX_HEAT;
	o->sum = o->squares = 0.0f;
#pragma unroll
	for (uint32_t i = 0; i < GPU_MAX_HEAT; i++) {
		o->kind[i] = i < o->n_heat ? t->heat[i] : 0u;
		o->heat[i] = mine && i < o->n_heat ? heat[i * GPU_BLOCK_SLOTS] : 0.0f;
	}
}

static __device__ __forceinline__ void give_back(const struct owner *o, bool mine, float *heat)
{
#pragma unroll
	for (uint32_t i = 0; i < GPU_MAX_HEAT; i++)
		if (mine && i < o->n_heat)
			heat[i * GPU_BLOCK_SLOTS] = o->heat[i];
}

/* Heat from the logits that attend has kept: a thread per slot, a CTA per block. The one tile of a session has all its pairs. */
static __global__ void __launch_bounds__(GPU_BLOCK_SLOTS) kept_kernel(const __grid_constant__ struct heat_args a,
								      const float *logits, uint32_t kept_rows, uint32_t kept_slots)
{
	uint32_t n_blocks = kept_slots / GPU_BLOCK_SLOTS, tile = blockIdx.x / n_blocks, block = blockIdx.x % n_blocks;
	uint32_t slot = block * GPU_BLOCK_SLOTS + threadIdx.x;
	const float *z = logits + ((size_t)tile * a.t.n_kv_heads + blockIdx.y) * kept_rows * kept_slots + slot;
	struct tile_chosen c;
	struct owner own;
	struct tile_ctx x;
	float *heat;
	bool mine;

	if (!tile_lane(a.t, a.t.tile[tile].seq, blockIdx.y, &x) || block * GPU_BLOCK_SLOTS >= x.live)
		return;
	c = choose(a, x);
	if (!x.t->n_heat || !tile_any_counts(c, x, 0, x.seq.n))
		return;
	heat = (float *)cuda_block(a.t.view, x.t, x.lane, slot);
	mine = slot < x.live && heat;
	heat += GPU_BLOCK_SLOTS + threadIdx.x;
	take_over(&own, x.t, mine, heat);
	for (uint32_t r = 0; r < x.seq.n * a.t.group; r++) {
		uint32_t j = r / a.t.group, g = r % a.t.group;
		float lse = a.lse[((int64_t)x.seq.row + j) * a.t.n_kv_heads * a.t.group + x.head * a.t.group + g];
		float logit = mine ? z[(size_t)r * kept_slots] : TILE_NEG;

		if (tile_counts(c, x, j))
			add_pair(&own, logit == TILE_NEG ? 0.0f : expf(__fsub_rn(logit, lse)), g == 0, g + 1u == a.t.group);
	}
	give_back(&own, mine, heat);
}

/* The thread's logits in s (see tile_logits) become probabilities. */
template <int DP>
static __device__ __forceinline__ void to_probabilities(const struct heat_args &a, const struct tile_ctx &x, float *s)
{
	constexpr uint32_t slots = tile_size<DP>::slots, parts = tile_size<DP>::parts;
	uint32_t slot = threadIdx.x / parts, part = threadIdx.x % parts;

	for (uint32_t r = part; part < 4 && r < x.n_rows; r += 4u) {
		float *z = s + r * (slots + 4u) + slot;
		uint32_t pair = x.row0 + r;
		int64_t row = (int64_t)x.seq.row + pair / a.t.group;
		float lse = a.lse[row * a.t.n_kv_heads * a.t.group + x.head * a.t.group + pair % a.t.group];

		*z = *z == TILE_NEG ? 0.0f : expf(__fsub_rn(*z, lse));
	}
}

/* Shared memory in floats: q[16][d], k[slots][stride], s[16][slots + 4]. */
template <int DP> static size_t heat_shared(uint32_t d)
{
	return (CUDA_TILE_ROWS * d + tile_size<DP>::slots * tile_stride(d) + CUDA_TILE_ROWS * (tile_size<DP>::slots + 4u)) *
	       sizeof(float);
}

template <int TYPE, int DP>
static __global__ void __launch_bounds__(TILE_THREADS) heat_kernel(const __grid_constant__ struct heat_args a)
{
	constexpr uint32_t slots = tile_size<DP>::slots;
	extern __shared__ __align__(16) float shared[];
	__shared__ char *page[CUDA_CHUNK / GPU_PAGE_SLOTS], *block;
	uint32_t d = a.t.head_dim, slot0 = blockIdx.x % a.n_groups * slots, in_chunk = slot0 % CUDA_CHUNK, n_live;
	float *q = shared, *k = q + CUDA_TILE_ROWS * d, *s = k + slots * tile_stride(d), *heat;
	const uint32_t inverse = tile_inverse(d / tile_rows_in_flight<TYPE, DP>::per);
	struct tile_rows_in_flight<TYPE, DP> rows;
	struct owner own;
	struct tile_chosen c;
	struct tile_ctx x;
	bool mine;

	if (!tile_lane(a.t, blockIdx.x / a.n_groups, blockIdx.y, &x) || slot0 >= x.live || x.seq.n * a.t.group <= a.done_pairs)
		return;
	c = choose(a, x);
	if (!x.t->n_heat || !tile_any_counts(c, x, 0, x.seq.n))
		return;
	n_live = x.live - slot0 < slots ? x.live - slot0 : slots;
	tile_load_pages(a.t, x, slot0 - in_chunk, page, &block);
	__syncthreads();
	tile_fetch<TYPE, DP>(a.t, page, in_chunk, n_live, 0, inverse, rows);
	tile_put<TYPE, DP>(a.t, inverse, rows, k);
	mine = threadIdx.x < n_live && block;
	heat = (float *)block + GPU_BLOCK_SLOTS + in_chunk + threadIdx.x;
	take_over(&own, x.t, mine, heat);
	for (uint32_t row0 = 0; row0 < x.seq.n * a.t.group; row0 += CUDA_TILE_ROWS) {
		tile_rows(a.t, row0, &x);
		if (!tile_any_counts(c, x, row0 / a.t.group, (row0 + x.n_rows - 1u) / a.t.group + 1u))
			continue;
		tile_load_q(a.t, x, q);
		__syncthreads();
		tile_logits<DP>(a.t, x, q, k, block, in_chunk, n_live, s);
		to_probabilities<DP>(a, x, s);
		__syncthreads();
		for (uint32_t r = 0; mine && r < x.n_rows; r++) {
			uint32_t pair = row0 + r, g = pair % a.t.group;

			if (tile_counts(c, x, pair / a.t.group))
				add_pair(&own, s[r * (slots + 4u) + threadIdx.x], g == 0, g + 1u == a.t.group);
		}
	}
	give_back(&own, mine, heat);
}

template <int TYPE, int DP> static cudaError_t launch(const struct cuda_step *st, struct heat_args a, cudaStream_t s)
{
	size_t bytes = heat_shared<DP>(a.t.head_dim);
	cudaError_t e = cudaFuncSetAttribute(heat_kernel<TYPE, DP>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

	if (e != cudaSuccess)
		return e;
	a.n_groups = (st->live_max + tile_size<DP>::slots - 1u) / tile_size<DP>::slots;
	if (!a.n_groups)
		return cudaSuccess;
	heat_kernel<TYPE, DP><<<dim3(st->n_seqs * a.n_groups, a.t.n_kv_heads), TILE_THREADS, bytes, s>>>(a);
	return cudaGetLastError();
}

template <int TYPE> static cudaError_t launch_type(const struct cuda_step *st, const struct heat_args &a, cudaStream_t s)
{
	switch (tile_dp(a.t.head_dim)) {
	case 64: return launch<TYPE, 64>(st, a, s);
	case 128: return launch<TYPE, 128>(st, a, s);
	default: return launch<TYPE, 256>(st, a, s);
	}
}

int cuda_heat(struct cuda_step *st, cudaStream_t s, uint32_t layer, const struct gpu_tensor *q, const float *lse,
	      float scale, int observed, uint32_t last, uint32_t done_pairs)
{
	struct heat_args a = { { st->view, st->seq, st->tile, st->shape.n_kv_heads, st->shape.group, st->shape.head_dim,
				 layer, st->live_max, *q, scale },
			       lse, 0, observed, last, done_pairs };

	if (observed && st->kept_rows) {
		kept_kernel<<<dim3(st->n_tiles * (st->kept_slots / GPU_BLOCK_SLOTS), a.t.n_kv_heads), GPU_BLOCK_SLOTS, 0, s>>>(
			a, st->logits, st->kept_rows, st->kept_slots);
		return cuda_errno(cudaGetLastError());
	}
	switch (st->shape.slot_type) {
	case GPU_F32: return cuda_errno(launch_type<GPU_F32>(st, a, s));
	case GPU_F16: return cuda_errno(launch_type<GPU_F16>(st, a, s));
	case GPU_BF16: return cuda_errno(launch_type<GPU_BF16>(st, a, s));
	default: return cuda_errno(launch_type<GPU_Q8>(st, a, s));
	}
}

int cuda_observe(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *q, const float *lse,
		 float scale, uint32_t last)
{
	struct cuda_step *st = (struct cuda_step *)step;
	int rc = cuda_use(step->dev);

	return rc || !st->n_tokens ? rc : cuda_heat(st, cuda_stream(s), layer, q, lse, scale, 0, last, 0);
}
