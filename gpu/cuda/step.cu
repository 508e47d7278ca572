/*
 * Maps (slab addresses) and steps (the list of sessions) on a device, and the scratch that a step's operations need.
 *
 * What: host arrays sent through the staging ring; no kernels.
 * Memory traffic: 8 bytes a slab when it is set; 40 bytes a session, 8 a token and 8 a tile once a step.
 * Graphs: what differs from step to step lies in the lists, at addresses that stay; what launches depend on is in struct cuda_step, and its
 * hash is the step's key. A session that is not there has an empty table behind the lists: every kernel finds that it has no lanes.
 * Determinism: scratch only holds values that the same operation wrote before it reads them.
 */
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda/wide.cuh"

#define PARTIAL_MAX (256ull << 20)	/* scratch of either kind: above, slower ways to the same bits that need none */

int cuda_map_new(struct gpu_device *dev, unsigned max_slabs, unsigned slab_shift, struct gpu_map **out)
{
	struct cuda_map *m;
	int rc = cuda_use(dev);

	if (rc)
		return rc;
	m = (struct cuda_map *)calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->base.dev = dev;
	m->base.max_slabs = max_slabs;
	m->base.slab_shift = slab_shift;
	m->base.base = (void **)calloc(max_slabs, sizeof(void *));
	rc = m->base.base ? cuda_errno(cudaMalloc((void **)&m->bases, max_slabs * sizeof(void *))) : -ENOMEM;
	if (!rc)
		rc = cuda_errno(cudaMemset(m->bases, 0, max_slabs * sizeof(void *)));
	if (!rc)
		rc = cuda_errno(cudaStreamSynchronize(0));
	if (rc) {
		cuda_map_free(dev, &m->base);
		return rc;
	}
	*out = &m->base;
	return 0;
}

void cuda_map_free(struct gpu_device *dev, struct gpu_map *map)
{
	struct cuda_map *m = (struct cuda_map *)map;

	if (m->bases && cuda_use(dev) == 0)
		(void)cudaFree(m->bases);	/* waits for the kernels that read it */
	free(m->base.base);
	free(m);
}

int cuda_map_set(struct gpu_map *map, gpu_stream s, unsigned slab, void *base)
{
	struct cuda_map *m = (struct cuda_map *)map;
	int rc = cuda_write(map->dev, s, m->bases + slab, &base, sizeof(base));

	if (!rc)
		map->base[slab] = base;
	return rc;
}

static size_t tile_offset(unsigned max_seqs)
{
	return (size_t)max_seqs * sizeof(struct gpu_seq);
}

static size_t token_offset(unsigned max_seqs, unsigned max_rows)
{
	return tile_offset(max_seqs) + ((size_t)max_seqs + max_rows) * sizeof(struct cuda_tile);
}

static size_t wide_offset(unsigned max_seqs, unsigned max_rows)
{
	return token_offset(max_seqs, max_rows) + (size_t)max_rows * sizeof(struct cuda_token);
}

static size_t list_bytes(unsigned max_seqs, unsigned max_rows)
{
	return wide_offset(max_seqs, max_rows) + (size_t)max_rows * sizeof(struct cuda_tile);
}

int cuda_step_new(struct gpu_device *dev, unsigned max_seqs, unsigned max_rows, struct gpu_step **out)
{
	struct cuda_step *st;
	int rc = cuda_use(dev);

	if (rc)
		return rc;
	if (list_bytes(max_seqs, max_rows) > CUDA_LEASE_MAX)
		return -E2BIG;
	st = (struct cuda_step *)calloc(1, sizeof(*st));
	if (!st)
		return -ENOMEM;
	st->base.dev = dev;
	st->max_seqs = max_seqs;
	st->max_rows = max_rows;
	rc = cuda_errno(cudaMalloc((void **)&st->lists, list_bytes(max_seqs, max_rows) + sizeof(struct gpu_table)));
	if (!rc)
		rc = cuda_errno(cudaMemset(st->lists + list_bytes(max_seqs, max_rows), 0, sizeof(struct gpu_table)));
	if (!rc)
		rc = cuda_errno(cudaStreamSynchronize(0));
	if (rc) {
		(void)cudaFree(st->lists);
		free(st);
		return rc;
	}
	st->seq = (const struct gpu_seq *)st->lists;
	st->tile = (const struct cuda_tile *)(st->lists + tile_offset(max_seqs));
	st->token = (const struct cuda_token *)(st->lists + token_offset(max_seqs, max_rows));
	st->wide = (const struct cuda_tile *)(st->lists + wide_offset(max_seqs, max_rows));
	*out = &st->base;
	return 0;
}

void cuda_step_free(struct gpu_device *dev, struct gpu_step *step)
{
	struct cuda_step *st = (struct cuda_step *)step;

	if (cuda_use(dev) == 0) {
		(void)cudaFree(st->lists);
		(void)cudaFree(st->lse);
		(void)cudaFree(st->partial);
		(void)cudaFree(st->logits);
		(void)cudaFree(st->item);
		cuda_keep_free(st);
	}
	free(st);
}

/* Scratch only grows, by halves at least, so that a session that lengthens slot by slot does not allocate every step. */
int cuda_grow(void **at, size_t *have, size_t need)
{
	size_t bytes = *have + *have / 2;
	void *fresh = NULL;
	int rc;

	if (need <= *have)
		return 0;
	if (bytes < need)
		bytes = need;
	rc = cuda_errno(cudaMalloc(&fresh, bytes));
	if (rc)
		return rc;
	(void)cudaFree(*at);	/* waits for the steps that still use it */
	*at = fresh;
	*have = bytes;
	return 0;
}

/* Decide how the lanes are shared out and find room for it. Touches nothing but scratch: a failed call changes no step. */
static int plan_scratch(struct cuda_step *st, const struct gpu_shape *shape, unsigned n_tiles, uint64_t n_rows,
			uint32_t live_max, uint32_t *n_splits)
{
	uint64_t ctas = (uint64_t)n_tiles * shape->n_kv_heads;
	uint64_t splits = live_max ? (live_max + CUDA_CHUNK - 1u) / CUDA_CHUNK : 1u;
	uint64_t bytes = ctas * splits * CUDA_TILE_ROWS * (shape->head_dim + 2u) * sizeof(float);
	int rc = cuda_grow((void **)&st->lse, &st->lse_bytes, n_rows * shape->n_kv_heads * shape->group * sizeof(float));

	if (rc)
		return rc;
	*n_splits = 1;
	if (shape->slot_type == GPU_F32 && splits > 1 && ctas < 2ull * (unsigned)cuda_dev(st->base.dev)->n_sm && bytes <= PARTIAL_MAX) {
		rc = cuda_grow((void **)&st->partial, &st->partial_bytes, bytes);
		*n_splits = (uint32_t)splits;
	}
	return rc;
}

/* Room for the logits of a step whose sessions all fit into one tile (rows: of the largest). None is no error. */
static void plan_logits(struct cuda_step *st, const struct gpu_shape *shape, unsigned n_tiles, uint64_t rows, uint32_t live_max)
{
	uint64_t slots = (uint64_t)gpu_blocks_for(live_max) * GPU_BLOCK_SLOTS;
	uint64_t bytes = (uint64_t)n_tiles * shape->n_kv_heads * rows * slots * sizeof(float);

	st->kept_rows = 0;
	if (shape->slot_type != GPU_F32 || !bytes || rows > CUDA_TILE_ROWS || bytes > PARTIAL_MAX || cuda_grow((void **)&st->logits, &st->logits_bytes, bytes))
		return;
	st->kept_rows = (uint32_t)rows;
	st->kept_slots = (uint32_t)slots;
}

static struct cuda_tile *list_tiles(struct cuda_tile *to, unsigned seq, uint32_t pairs, uint32_t rows)
{
	for (uint32_t r = 0; r < pairs; r += rows, to++) {
		to->seq = seq;
		to->row0 = r;
	}
	return to;
}

/* The lists of a step in staging memory: the same offsets as on the device. wide: sessions of more pairs are wide. */
static void fill_lists(char *at, const struct cuda_step *st, const struct gpu_seq *seq, unsigned n_seqs, uint32_t group, uint32_t tile_rows,
		       uint64_t wide)
{
	struct cuda_tile *tile = (struct cuda_tile *)(at + tile_offset(st->max_seqs));
	struct cuda_tile *wide_tile = (struct cuda_tile *)(at + wide_offset(st->max_seqs, st->max_rows));
	struct cuda_token *token = (struct cuda_token *)(at + token_offset(st->max_seqs, st->max_rows));
	unsigned n_tokens = 0;

	memcpy(at, seq, n_seqs * sizeof(*seq));
	for (unsigned i = 0; i < n_seqs; i++) {
		if (!seq[i].table)
			((struct gpu_seq *)at)[i].table = st->lists + list_bytes(st->max_seqs, st->max_rows);
		if (seq[i].kept && ((seq[i].kept - 1u) >> 8 >= st->keep.rooms || (seq[i].kept - 1u) % 256u >= st->keep.depth))	/* no such place: at once */
			((struct gpu_seq *)at)[i].kept = 0;
		if ((uint64_t)seq[i].n * group > wide)
			wide_tile = list_tiles(wide_tile, i, seq[i].n * group, WIDE_ROWS);
		else
			tile = list_tiles(tile, i, seq[i].n * group, tile_rows);
		for (uint32_t j = 0; j < seq[i].n; j++) {
			token[n_tokens].seq = i;
			token[n_tokens++].j = j;
		}
	}
}

/* A bound that changes seldom: up to the next of eight steps to the next power of two. */
static uint32_t coarse(uint32_t n)
{
	uint32_t grain = GPU_PAGE_SLOTS;

	while (grain < n / 16u)
		grain *= 2u;
	return n < UINT32_MAX - grain ? (n + grain - 1u) / grain * grain : n;
}

/* Would the plan be that of the last step? Asking the driver what fits takes longer than a small step's launches. */
static bool as_before(const struct cuda_step *st, const struct gpu_shape *shape, unsigned n_seqs, unsigned n_tiles, uint64_t pairs,
		      uint32_t live_max)
{
	return st->n_tiles && st->n_seqs == n_seqs && st->n_tiles == n_tiles && st->tile_pairs == pairs && st->live_max == live_max &&
	       memcmp(&st->shape, shape, sizeof(*shape)) == 0;
}

static uint64_t hash(const struct cuda_step *st)
{
	uint64_t h = 0xcbf29ce484222325ull;

	for (size_t i = 0; i < offsetof(struct cuda_step, key); i++) {
		h = (h ^ ((const unsigned char *)st)[i]) * 0x100000001b3ull;
		h ^= h >> 29;
	}
	return h ? h : 1;
}

uint64_t cuda_step_key(const struct gpu_step *step)
{
	return ((const struct cuda_step *)step)->key;
}

/* Does every query see every live slot? */
static int all_newest(const struct gpu_seq *seq, unsigned n_seqs)
{
	int all = 1;

	for (unsigned i = 0; i < n_seqs; i++)
		all &= !seq[i].n || !seq[i].table || (seq[i].n == 1u && seq[i].newest);
	return all;
}

int cuda_step_set(struct gpu_step *step, gpu_stream s, const struct gpu_shape *shape, const struct gpu_map *map,
		  const struct gpu_seq *seq, unsigned n_seqs, uint32_t live_max)
{
	struct cuda_step *st = (struct cuda_step *)step;
	struct cuda_device *d = cuda_dev(step->dev);
	uint64_t n_tokens = 0, n_tiles = 0, n_wide = 0, n_rows = 0, most = 0, tile_most = 0, wide;
	struct cuda_lease lease;
	uint32_t n_splits = 1, tile_rows = cuda_tile_rows(shape);
	struct cuda_mma mma = {};
	int few = 0, many = 0, rc = cuda_use(step->dev), rc2;

	if (rc)
		return rc;
	if (n_seqs > st->max_seqs)
		return -EINVAL;
	live_max = coarse(live_max);
	wide = wide_takes(d, shape) ? WIDE_PAIRS : UINT64_MAX;
	for (unsigned i = 0; i < n_seqs; i++) {
		uint64_t end = (uint64_t)seq[i].row + seq[i].n, pairs = (uint64_t)seq[i].n * shape->group;
		uint64_t rest = pairs % tile_rows;	/* rows of the last tile, if it is not full */

		n_tokens += seq[i].n;
		n_rows = seq[i].n && end > n_rows ? end : n_rows;
		most = pairs > most ? pairs : most;
		if (pairs > wide) {
			n_wide += (pairs + WIDE_ROWS - 1u) / WIDE_ROWS;
			continue;
		}
		n_tiles += (pairs + tile_rows - 1u) / tile_rows;
		tile_most = pairs > tile_most ? pairs : tile_most;
		few |= rest && rest <= CUDA_FEW_ROWS;
		many |= pairs >= tile_rows || rest > CUDA_FEW_ROWS;
	}
	if (n_tokens > st->max_rows)
		return -EINVAL;
	rc = plan_scratch(st, shape, (unsigned)n_tiles, n_rows, live_max, &n_splits);
	if (!rc && n_tiles && shape->slot_type != GPU_F32 && as_before(st, shape, n_seqs, (unsigned)n_tiles, tile_most, live_max))
		mma = st->mma;
	else if (!rc && n_tiles && shape->slot_type != GPU_F32)
		rc = cuda_mma_plan(st, shape, n_seqs, (unsigned)n_tiles, tile_most, live_max, &mma);
	if (rc)
		return rc;
	if (n_tokens) {
		rc = cuda_lease(d, list_bytes(st->max_seqs, st->max_rows), &lease);
		if (rc)
			return rc;
		fill_lists(lease.host, st, seq, n_seqs, shape->group, tile_rows, wide);
		rc = cuda_errno(cudaMemcpyAsync(st->lists, lease.host, list_bytes(st->max_seqs, st->max_rows),
						cudaMemcpyHostToDevice, cuda_stream(s)));
		rc2 = cuda_unlease(d, cuda_stream(s), &lease);
		rc = rc ? rc : rc2;
		if (rc)
			return rc;
	}
	plan_logits(st, shape, (unsigned)n_tiles, most, live_max);
	st->shape = *shape;
	st->view = cuda_view_of(map);
	st->n_seqs = n_seqs;
	st->n_tokens = (unsigned)n_tokens;
	st->n_tiles = (unsigned)n_tiles;
	st->n_wide = (unsigned)n_wide;
	st->n_splits = n_splits;
	st->live_max = live_max;
	st->pairs = most;
	st->tile_pairs = tile_most;
	st->mma = mma;
	st->few_rows = few;
	st->many_rows = many;
	st->newest = all_newest(seq, n_seqs);
	st->first = 1;
	st->key = hash(st);
	return cuda_mma_items(st, cuda_stream(s));
}
