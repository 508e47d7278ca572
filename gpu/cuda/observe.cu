/*
 * observe: the probability exp(scale * q.k - lse) that queries gave to slots, added to the slots' heat. Here float32 slots; others:
 * heat_mma.cu.
 *
 * What: a CTA takes 32 or 64 slots of one lane, keeps their K rows in shared memory and lets the step's queries pass by in tiles of
 * 16 (query, head) pairs. Logits come from the same instructions as attend's. One thread owns a slot. After an attend of few
 * queries the logits are still there, and a thread per slot adds up what they say.
 * Memory traffic: K once, q once per CTA (from L2), 8 bytes a slot and heat array, 4 bytes of position; or 4 bytes a logit and
 * 8 a slot and heat array.
 * Determinism: the owner adds queries in order and heads in order within a query; float32, no atomics.
 */
#include "gpu/cuda/heat.cuh"

/* A query's probabilities of a slot, head by head, on their way to the slot's heat. */
struct heads {
	float sum, squares;		/* over the heads so far */
};

static __device__ __forceinline__ void add_pair(struct heat_owner *o, struct heads *h, float p, bool first_head, bool last_head)
{
	h->sum = first_head ? p : __fadd_rn(h->sum, p);
	h->squares = first_head ? __fmul_rn(p, p) : __fadd_rn(h->squares, __fmul_rn(p, p));
	if (last_head)
		heat_add(o, h->sum, h->squares);
}

/* Heat from the logits that attend has kept: a thread per slot, a CTA per block. The one tile of a session has all its pairs. */
static __global__ void __launch_bounds__(GPU_BLOCK_SLOTS) kept_kernel(const __grid_constant__ struct heat_args a,
								      const float *logits, uint32_t kept_rows, uint32_t kept_slots)
{
	uint32_t n_blocks = kept_slots / GPU_BLOCK_SLOTS, tile = blockIdx.x / n_blocks, block = blockIdx.x % n_blocks;
	uint32_t slot = block * GPU_BLOCK_SLOTS + threadIdx.x;
	const float *z = logits + ((size_t)tile * a.t.n_kv_heads + blockIdx.y) * kept_rows * kept_slots + slot;
	struct tile_chosen c;
	struct heat_owner own;
	struct heads heads = {};
	struct tile_ctx x;
	float *heat;
	bool mine;

	if (!tile_lane(a.t, a.t.tile[tile].seq, blockIdx.y, &x) || block * GPU_BLOCK_SLOTS >= x.live)
		return;
	c = heat_choose(a, x);
	if (!x.t->n_heat || !tile_any_counts(c, x, 0, x.seq.n))
		return;
	heat = (float *)cuda_block(a.t.view, x.t, x.lane, slot);
	mine = slot < x.live && heat;
	heat += GPU_BLOCK_SLOTS + threadIdx.x;
	heat_take_over(&own, x.t, mine, heat);
	for (uint32_t r = 0; r < x.seq.n * a.t.group; r++) {
		uint32_t j = r / a.t.group, g = r % a.t.group;
		float lse = a.lse[((int64_t)x.seq.row + j) * a.t.n_kv_heads * a.t.group + x.head * a.t.group + g];
		float logit = mine ? z[(size_t)r * kept_slots] : TILE_NEG;

		if (tile_counts(c, x, j))
			add_pair(&own, &heads, logit == TILE_NEG ? 0.0f : expf(__fsub_rn(logit, lse)), g == 0, g + 1u == a.t.group);
	}
	heat_give_back(&own, mine, heat);
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

template <int DP>
static __global__ void __launch_bounds__(TILE_THREADS) heat_kernel(const __grid_constant__ struct heat_args a)
{
	constexpr uint32_t slots = tile_size<DP>::slots;
	extern __shared__ __align__(16) float shared[];
	__shared__ char *page[CUDA_CHUNK / GPU_PAGE_SLOTS], *block;
	uint32_t d = a.t.head_dim, slot0 = blockIdx.x % a.n_groups * slots, in_chunk = slot0 % CUDA_CHUNK, n_live;
	float *q = shared, *k = q + CUDA_TILE_ROWS * d, *s = k + slots * tile_stride(d), *heat;
	const uint32_t inverse = tile_inverse(d / 4u);
	struct tile_rows_in_flight<DP> rows;
	struct heat_owner own;
	struct heads heads = {};
	struct tile_chosen c;
	struct tile_ctx x;
	bool mine;

	if (!tile_lane(a.t, blockIdx.x / a.n_groups, blockIdx.y, &x) || slot0 >= x.live || x.seq.n * a.t.group <= a.done_pairs)
		return;
	c = heat_choose(a, x);
	if (!x.t->n_heat || !tile_any_counts(c, x, 0, x.seq.n))
		return;
	n_live = x.live - slot0 < slots ? x.live - slot0 : slots;
	tile_load_pages(a.t, x, slot0 - in_chunk, page, &block);
	__syncthreads();
	tile_fetch<DP>(a.t, page, in_chunk, n_live, 0, inverse, rows);
	tile_put<DP>(a.t, inverse, rows, k);
	mine = threadIdx.x < n_live && block;
	heat = (float *)block + GPU_BLOCK_SLOTS + in_chunk + threadIdx.x;
	heat_take_over(&own, x.t, mine, heat);
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
				add_pair(&own, &heads, s[r * (slots + 4u) + threadIdx.x], g == 0, g + 1u == a.t.group);
		}
	}
	heat_give_back(&own, mine, heat);
}

template <int DP> static cudaError_t launch(const struct cuda_step *st, struct heat_args a, cudaStream_t s)
{
	size_t bytes = heat_shared<DP>(a.t.head_dim);
	cudaError_t e = cudaFuncSetAttribute(heat_kernel<DP>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

	if (e != cudaSuccess)
		return e;
	a.n_groups = (st->live_max + tile_size<DP>::slots - 1u) / tile_size<DP>::slots;
	if (!a.n_groups)
		return cudaSuccess;
	heat_kernel<DP><<<dim3(st->n_seqs * a.n_groups, a.t.n_kv_heads), TILE_THREADS, bytes, s>>>(a);
	return cudaGetLastError();
}

int cuda_heat(struct cuda_step *st, cudaStream_t s, uint32_t layer, const struct gpu_tensor *q, const float *lse,
	      float scale, int observed, uint32_t last, uint32_t done_pairs)
{
	struct heat_args a = { { st->view, st->seq, st->tile, st->shape.n_kv_heads, st->shape.group, st->shape.head_dim,
				 layer, st->live_max, *q, scale },
			       lse, 0, observed, last, done_pairs, 0, 0, 0 };

	if (observed && st->kept_rows) {
		kept_kernel<<<dim3(st->n_tiles * (st->kept_slots / GPU_BLOCK_SLOTS), a.t.n_kv_heads), GPU_BLOCK_SLOTS, 0, s>>>(
			a, st->logits, st->kept_rows, st->kept_slots);
		return cuda_errno(cudaGetLastError());
	}
	if (st->shape.slot_type != GPU_F32)
		return cuda_errno(heat_mma(st, a, s));
	switch (tile_dp(a.t.head_dim)) {
	case 64: return cuda_errno(launch<64>(st, a, s));
	case 128: return cuda_errno(launch<128>(st, a, s));
	default: return cuda_errno(launch<256>(st, a, s));
	}
}

int cuda_observe(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *q, const float *lse,
		 float scale, uint32_t last)
{
	struct cuda_step *st = (struct cuda_step *)step;
	int rc = cuda_use(step->dev);

	return rc || !st->n_tokens ? rc : cuda_heat(st, cuda_stream(s), layer, q, lse, scale, 0, last, 0);
}
