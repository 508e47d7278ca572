/*
 * attend: how a step is shared out, and which kernel runs. Slots of 16 bits and q8: attend_mma.cuh, and attend_wide.cu where sessions have
 * many queries; float32: attend_f32.cu.
 *
 * What: decides how many CTAs share a lane, from the number of lanes and the bound on their lengths; the lengths themselves the host never
 * sees. Once a step a kernel works out each layer's lanes (struct cuda_item), the longest first where they outnumber what runs at once.
 * Memory traffic: 100 bytes a lane and step read, 64 written.
 * Determinism: the order of lanes and their sharing out change no bit of a result.
 */
#include "gpu/cuda/attend_mma.cuh"
#include "gpu/cuda/wide.cuh"

#define ITEM_THREADS 256u
#define ITEM_BINS 1024u

uint32_t cuda_tile_rows(const struct gpu_shape *shape)
{
	return shape->slot_type == GPU_F32 ? CUDA_TILE_ROWS : mma_tile_rows(shape->head_dim);
}

/* --- the plan ---------------------------------------------------------------------------------------------------------------- */

static uint32_t stage_bytes(const struct gpu_shape *s)
{
	return mma_stage_bytes(mma_padded(s->head_dim) * gpu_type_bytes(s->slot_type), s->slot_type == GPU_Q8);
}

/* Floats of a row of logits: of the pages that a CTA has at most; 4 more than a multiple of 32, so that rows lie in different banks. */
static uint32_t row_floats(const struct gpu_shape *s, uint32_t live_max, uint32_t cluster)
{
	uint32_t pages, strip, strips, most;

	mma_strips(s->slot_type, live_max, pages, strip, strips);
	most = cluster == 1u ? pages : pages / cluster + 2u * strip + 1u;
	return ((most < pages ? most : pages) * GPU_PAGE_SLOTS + 31u) / 32u * 32u + 4u;
}

/* Of a row of logits in scratch: whole pairs of pages, as a stage may have. */
static uint32_t scratch_slots(uint32_t live_max) { return (gpu_pages_for(live_max) + 1u) / 2u * 2u * GPU_PAGE_SLOTS; }

/* Floats of a row where `bytes` are left for `rows` of them. */
static uint32_t row_floats_in(uint32_t bytes, uint32_t rows)
{
	uint32_t floats = bytes / 4u / rows;

	return floats < 260u ? 0u : (floats - 4u) / 32u * 32u + 4u;
}

/*
 * Shared memory for `cluster` CTAs a lane: two CTAs a multiprocessor if each has room for the logits and two pages a warp. Where a CTA has
 * whole lanes, of one query each: two CTAs anyhow, and the logits of lanes that are too long go to scratch. Else one CTA, else all logits go
 * to scratch. Returns the CTAs a multiprocessor; 0: does not fit.
 */
static uint32_t fit(const struct cuda_device *d, const struct gpu_shape *s, uint32_t live_max, struct cuda_mma *m)
{
	uint32_t stages = MMA_WARPS * stage_bytes(s), dp = mma_padded(s->head_dim), floats = row_floats(s, live_max, m->cluster);

	for (uint32_t turn = 0; turn < 8; turn++) {	/* logits in shared memory or not, 2 or 1 stages of the ring, 2 or 1 CTAs */
		uint32_t need = turn / 2u % 2u ? 1u : 2u, ctas = turn % 2u ? 1u : 2u;
		size_t bytes = (d->shared_sm / ctas - 1024u) / 16u * 16u;
		struct mma_plan p;

		bytes = bytes < d->shared_block ? bytes : d->shared_block;
		m->shared_bytes = (uint32_t)bytes;
		m->heat_floats = turn < 4u ? floats : 0u;
		p = mma_shared_plan(m->rows, s->head_dim, dp, m->cluster, true, m->heat_floats);
		if ((uint64_t)m->rows * m->heat_floats * 4u < bytes && p.ring + need * stages <= bytes)
			return ctas;
		if (turn == 0 && m->single && m->cluster == 1u && m->rows <= s->group &&
		    p.logits + need * stages + 128u <= bytes) {
			m->heat_floats = row_floats_in((uint32_t)bytes - p.logits - need * stages - 128u, m->rows);
			return ctas;
		}
	}
	return 0;
}

/* Slots of a CTA whose logits go to scratch, if its lane is as long as any may be. */
static uint32_t far_slots(const struct cuda_mma *m, uint32_t live_max)
{
	return m->heat_floats >= (m->cluster == 1u ? scratch_slots(live_max) : 1u) ? 0u : live_max / m->cluster;
}

/*
 * About how many microseconds a layer takes with so many CTAs a lane: they run in rounds, each of which begins and ends; one CTA alone
 * gets no more than RATE_CTA out of the memory, two on a multiprocessor RATE_PAIR each (those of a pair end last where not all have one), a
 * multiprocessor's share of the whole is RATE_SM, or RATE_ONE of it where only one CTA fits. Heat from logits in scratch takes FAR_US a
 * slot: half of it is counted, since not every step takes heat. The numbers are an H100's, the lower three such that what was fastest on an
 * H200 comes out; only their ratios matter.
 */
#define RATE_CTA 30e3	/* bytes a microsecond */
#define RATE_SM 24e3
#define RATE_PAIR 17.5e3
#define RATE_ONE 0.8
#define FAR_US 3.6e-3

static double estimate(const struct cuda_device *d, uint64_t lanes, double lane_bytes, uint32_t cluster, uint32_t ctas, uint32_t far)
{
	const double begin = (cluster == 1u ? 3.0 : cluster == 4u ? 4.0 : 5.5) + far * FAR_US / 2.0;
	const double whole = RATE_SM * d->n_sm * (ctas == 1u ? RATE_ONE : 1.0);
	const double each = lane_bytes / cluster;
	uint64_t all = lanes * cluster, at_once = (uint64_t)d->n_sm * ctas, rest = all % at_once;
	double last = (double)rest * (rest > (uint64_t)d->n_sm ? RATE_PAIR : RATE_CTA);	/* what the last round may read */

	return (double)((all + at_once - 1u) / at_once) * begin + (double)(all - rest) * each / whole +
	       (double)rest * each / (last < whole && rest ? last : whole);
}

static cudaError_t launch(uint32_t type, const struct mma_args &a, bool early, cudaStream_t s, int *max_clusters)
{
	switch (type) {
	case GPU_F16: return mma_launch_f16(a, early, s, max_clusters);
	case GPU_BF16: return mma_launch_bf16(a, early, s, max_clusters);
	default: return mma_launch_q8(a, early, s, max_clusters);
	}
}

/* Can clusters of this size run at all? A part of a GPU (MPS, MIG) may be too small for 16 CTAs side by side. */
static bool clusters_run(const struct gpu_shape *shape, const struct cuda_mma &m)
{
	struct mma_args a = {};
	int n = 0;

	a.n_tiles = a.n_kv_heads = 1;
	a.head_dim = shape->head_dim;
	a.rows = m.rows;
	a.cluster = m.cluster;
	a.shared_bytes = m.shared_bytes;
	if (launch(shape->slot_type, a, false, 0, &n) == cudaSuccess && n > 0)
		return true;
	(void)cudaGetLastError();
	return false;
}

int cuda_mma_plan(struct cuda_step *st, const struct gpu_shape *shape, unsigned n_seqs, unsigned n_tiles, uint64_t pairs, uint32_t live_max,
		  struct cuda_mma *out)
{
	const struct cuda_device *d = cuda_dev(st->base.dev);
	uint64_t lanes = (uint64_t)n_tiles * shape->n_kv_heads;
	uint32_t tile_rows = cuda_tile_rows(shape), found = 0;
	double best = 0, lane_bytes = (double)live_max * gpu_page_bytes(shape->slot_type, shape->head_dim) / GPU_PAGE_SLOTS;
	int rc = 0;

	for (uint32_t cluster = 1; cluster <= (d->major >= 9 ? 16u : 1u); cluster *= 4u) {
		struct cuda_mma m = { cluster, 0, 0, (uint32_t)(pairs < tile_rows ? pairs : tile_rows), 0, 0, pairs <= tile_rows, 0 };
		uint32_t ctas = fit(d, shape, live_max, &m);
		double t = ctas ? estimate(d, lanes, lane_bytes, cluster, ctas, far_slots(&m, live_max)) : 0.0;

		if (!ctas || (found && t >= best) || (cluster > 1u && !clusters_run(shape, m)))
			continue;
		*out = m;
		out->at_once = (uint32_t)d->n_sm * ctas;
		best = t;
		found = 1;
		out->ordered = m.single && lanes * cluster > (uint64_t)d->n_sm * ctas;
	}
	if (!found)
		return -ENOTSUP;
	out->tiles = n_tiles;
	if (far_slots(out, live_max)) {	/* room for what runs side by side: the lanes of a launch, or where CTAs run on, one a CTA */
		uint64_t rooms = out->at_once / out->cluster > shape->n_kv_heads ? out->at_once / out->cluster : shape->n_kv_heads;

		if (!out->single && rooms / shape->n_kv_heads < n_tiles)
			out->tiles = (uint32_t)(rooms / shape->n_kv_heads);
		rooms = rooms < lanes && (!out->single || out->cluster == 1u) ? rooms : lanes;
		rc = cuda_grow((void **)&st->logits, &st->logits_bytes, rooms * out->rows * scratch_slots(live_max) * sizeof(float));
	}
	lanes = (uint64_t)(out->single ? n_tiles : n_seqs) * shape->n_kv_heads;
	return rc ? rc : cuda_grow((void **)&st->item, &st->item_bytes, lanes * CUDA_LAYERS * sizeof(struct cuda_item));
}

/* --- the lanes of a step ------------------------------------------------------------------------------------------------------ */

struct item_args {
	const struct gpu_seq *seq;
	const struct cuda_tile *tile;
	struct cuda_item *item;
	uint32_t n, n_kv_heads, live_max;	/* n: sessions, or tiles where there is one each */
	int single, ordered;
};

/* Lane i of the layer: KV head i / n of session (or tile) i % n. */
static __device__ __forceinline__ struct cuda_item make_item(const struct item_args &a, uint32_t layer, uint32_t i)
{
	struct gpu_seq seq = a.seq[a.single ? a.tile[i % a.n].seq : i % a.n];
	const char *t = (const char *)seq.table;
	struct gpu_table head = *(const struct gpu_table *)seq.table;
	uint32_t lane = layer * a.n_kv_heads + i / a.n, slot;
	struct cuda_item x = {};
	struct gpu_lane l;

	if (lane >= head.n_lanes)
		return x;
	l = ((const struct gpu_lane *)(t + gpu_table_lanes()))[lane];
	x.page = cuda_u32(t, gpu_table_pages(&head)) + (size_t)lane * head.max_pages;
	x.block = cuda_u32(t, gpu_table_blocks(&head)) + (size_t)lane * head.max_blocks;
	x.live = min(gpu_live(l, seq.used + seq.n), min(cuda_slots(&head), a.live_max));
	x.fresh_page = ~0u;
	if (seq.n == 1u && (seq.used < l.fresh || seq.used - l.fresh < head.window)) {
		slot = gpu_slot_of(l, cuda_u32(t, gpu_table_next(&head)) + (size_t)lane * head.window, seq.used);
		x.fresh_page = slot / GPU_PAGE_SLOTS;
	}
	x.row = seq.row;
	x.n = seq.n;
	x.pos = seq.pos;
	x.tile = i % a.n;
	x.kv_head = (uint16_t)(i / a.n);
	x.n_heat = (uint8_t)(head.observe ? min(head.n_heat, GPU_MAX_HEAT) : 0u);
	x.heat[0] = head.heat[0];
	x.heat[1] = head.heat[1];
	x.observe = head.observe;
	x.heat_from = seq.heat_from;
	x.kept = mma_sums(x) && mma_gives_heat(x) ? seq.kept : 0u;
	return x;
}

static __device__ __forceinline__ uint32_t item_bin(const struct item_args &a, const struct cuda_item &x)
{
	return ITEM_BINS - 1u - (uint32_t)((uint64_t)x.live * (ITEM_BINS - 1u) / (a.live_max + 1u));
}

/* Where the lanes of each length begin when the longest come first. */
static __device__ void count_lengths(const struct item_args &a, uint32_t layer, uint32_t *bin, uint32_t *sum)
{
	constexpr uint32_t per = ITEM_BINS / ITEM_THREADS;
	uint32_t before = 0;

	for (uint32_t i = threadIdx.x; i < ITEM_BINS; i += ITEM_THREADS)
		bin[i] = 0;
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < a.n * a.n_kv_heads; i += ITEM_THREADS)
		atomicAdd(&bin[item_bin(a, make_item(a, layer, i))], 1u);
	__syncthreads();
	for (uint32_t i = 0; i < per; i++)
		before += bin[threadIdx.x * per + i];
	sum[threadIdx.x] = before;
	__syncthreads();
	before = 0;
	for (uint32_t i = 0; i < threadIdx.x; i++)
		before += sum[i];
	for (uint32_t i = 0; i < per; i++) {
		uint32_t here = bin[threadIdx.x * per + i];

		bin[threadIdx.x * per + i] = before;
		before += here;
	}
	__syncthreads();
}

/* A CTA a layer. Lanes of one length come in any order. */
static __global__ void __launch_bounds__(ITEM_THREADS) item_kernel(const __grid_constant__ struct item_args a)
{
	__shared__ uint32_t bin[ITEM_BINS], sum[ITEM_THREADS];
	uint32_t n = a.n * a.n_kv_heads, layer = blockIdx.x;
	int any = 0;

	if ((uint64_t)layer * a.n_kv_heads >= ((const struct gpu_table *)a.seq[0].table)->n_lanes)
		return;
	if (a.ordered)
		count_lengths(a, layer, bin, sum);
	for (uint32_t i = threadIdx.x; i < a.n; i += ITEM_THREADS) {	/* KV heads of a session take heat all together */
		struct cuda_item x = make_item(a, layer, i);

		any |= x.kept ? CUDA_HEAT_LATER : mma_gives_heat(x) ? CUDA_HEAT_NOW : 0;
	}
	any = (__syncthreads_or(any & CUDA_HEAT_NOW) ? CUDA_HEAT_NOW : 0) | (__syncthreads_or(any & CUDA_HEAT_LATER) ? CUDA_HEAT_LATER : 0);
	for (uint32_t i = threadIdx.x; i < n; i += ITEM_THREADS) {
		struct cuda_item x = make_item(a, layer, i);

		x.any_heat = (uint8_t)any;
		a.item[(size_t)layer * n + (a.ordered ? atomicAdd(&bin[item_bin(a, x)], 1u) : i)] = x;
	}
}

int cuda_mma_items(struct cuda_step *st, cudaStream_t s)
{
	struct item_args a = { st->seq, st->tile, st->item, st->mma.single ? st->n_tiles : st->n_seqs, st->shape.n_kv_heads, st->live_max,
			       st->mma.single, st->mma.ordered };

	if (!st->n_tiles || st->shape.slot_type == GPU_F32)
		return 0;
	item_kernel<<<CUDA_LAYERS, ITEM_THREADS, 0, s>>>(a);
	return cuda_errno(cudaGetLastError());
}

/* --- attend -------------------------------------------------------------------------------------------------------------------- */

static cudaError_t attend_mma(struct cuda_step *st, cudaStream_t s, uint32_t layer, const struct gpu_tensor *q,
			      const struct gpu_tensor *out, float scale, float *lse)
{
	const struct gpu_shape *sh = &st->shape;
	cudaError_t e = cudaSuccess;
	struct mma_args a = {};

	a.view = st->view;
	a.n_units = st->mma.single ? st->n_tiles : st->n_seqs;
	a.item = st->item + (size_t)layer * a.n_units * sh->n_kv_heads;
	a.n_kv_heads = sh->n_kv_heads;
	a.group = sh->group;
	a.head_dim = sh->head_dim;
	a.rows = st->mma.rows;
	a.shared_bytes = st->mma.shared_bytes;
	a.heat_floats = st->mma.heat_floats;
	a.cluster = st->mma.cluster;
	a.at_once = st->mma.at_once;
	a.exact_q = sh->slot_type == GPU_Q8 || cuda_exact_queries(sh->slot_type, q->type);	/* q8: see struct mma_queries */
	a.direct_q = sh->slot_type == GPU_BF16 && q->type == GPU_BF16 && (uintptr_t)q->data % 4u == 0 && q->stride % 2 == 0;
	a.newest = (uint32_t)st->newest;
	a.by_group = mma_inverse(sh->group);
	a.by_vecs = mma_inverse(sh->head_dim / 4u);
	a.q = *q;
	a.out = *out;
	a.lse = lse;
	a.scale = scale * 1.4426950408889634f;
	a.keep_depth = cuda_keeps(st, layer, q, a.scale, &a.keep_q, &a.keep_lse) ? st->keep.depth : 0u;
	a.logits = st->logits;
	a.scratch_slots = scratch_slots(st->live_max);
	a.far_depth = st->mma.rows * st->mma.heat_floats / ((sh->group < MMA_FAR_HEADS ? sh->group : MMA_FAR_HEADS) * MMA_FAR_SLOTS);
	a.far_depth = a.far_depth < MMA_MAX_STAGES ? a.far_depth : MMA_MAX_STAGES;
	for (uint32_t first = 0; e == cudaSuccess && first < st->n_tiles; first += st->mma.tiles) {	/* more than one only with a.tile */
		a.tile = st->mma.single ? NULL : st->tile + first;
		a.n_tiles = st->n_tiles - first < st->mma.tiles ? st->n_tiles - first : st->mma.tiles;
		e = launch(sh->slot_type, a, first ? false : cuda_early(st), s, NULL);
	}
	return e;
}

int cuda_attend(struct gpu_step *step, gpu_stream stream, uint32_t layer, const struct gpu_tensor *q,
		const struct gpu_tensor *out, float scale, float *lse)
{
	struct cuda_step *st = (struct cuda_step *)step;
	cudaStream_t s = cuda_stream(stream);
	uint32_t rows = cuda_tile_rows(&st->shape);
	int rc = cuda_use(step->dev);

	if (rc || !st->n_tokens)
		return rc;
	lse = lse ? lse : st->lse;
	if (st->shape.slot_type == GPU_F32) {
		rc = cuda_errno(cuda_attend_f32(st, s, layer, q, out, scale, lse));
		return rc ? rc : cuda_heat(st, s, layer, q, lse, scale, 1, 0, 0);
	}
	if (layer >= CUDA_LAYERS)
		return -E2BIG;
	if (st->n_tiles)
		rc = cuda_errno(attend_mma(st, s, layer, q, out, scale, lse));
	if (!rc && st->n_wide)
		rc = cuda_errno(wide_attend(st, s, layer, q, out, scale, lse));
	if (rc || st->pairs <= rows)
		return rc;
	return cuda_heat(st, s, layer, q, lse, scale, 1, 0, rows);
}
