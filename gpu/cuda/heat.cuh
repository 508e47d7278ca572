/*
 * Private to gpu/cuda/: heat that is taken after attend has said what the log-sum-exps are: which queries give it, and what becomes of a
 * slot's. observe.cu takes it on CUDA cores (float32 slots), heat_mma.cu on tensor cores.
 */
#ifndef GPU_CUDA_HEAT_CUH
#define GPU_CUDA_HEAT_CUH

#include "gpu/cuda/tile.cuh"

struct heat_args {
	struct tile_args t;
	const float *lse;		/* [rows][n_kv_heads * group] */
	uint32_t n_groups;		/* CTAs along the slots of a lane */
	int observed;			/* 1: the table's observe says which queries count; 0: the last `last` of each session */
	uint32_t last;
	uint32_t done_pairs;		/* sessions of up to so many (query, head) pairs have their heat already */
	uint32_t stages;		/* heat_mma.cu: of queries in shared memory */
	uint32_t both, vectors;		/* queries come as a sum of two, see cuda_exact_queries(); four of a row lie where one load gets them */
};

/* heat_mma.cu: slots other than float32. */
cudaError_t heat_mma(const struct cuda_step *st, const struct heat_args &a, cudaStream_t s);

#ifdef __CUDACC__

static __device__ __forceinline__ struct tile_chosen heat_choose(const struct heat_args &a, const struct tile_ctx &x)
{
	struct tile_chosen c = { 1u, tile_heat_from(x) };

	if (a.observed)
		c.every = x.t->observe;
	else if (a.last && a.last < x.seq.n)
		c.from = max(c.from, x.seq.n - a.last);
	return c;
}

/* What one query's heads gave a slot (their sum, and the sum of their squares) becomes heat. */
static __device__ __forceinline__ float heat_after(uint32_t kind, float heat, float sum, float squares)
{
	float v;

	switch (kind) {
	case EVICT_HEAT_MAX: v = fmaxf(heat, sum); break;
	case EVICT_HEAT_SQUARES: v = __fadd_rn(heat, squares); break;
	case EVICT_HEAT_LAST: v = sum; break;
	default: v = __fadd_rn(heat, sum); break;
	}
	return v;
}

/* The heat of one slot while its owner adds to it. */
struct heat_owner {
	uint32_t n_heat, kind[GPU_MAX_HEAT];
	float heat[GPU_MAX_HEAT];
};

/* What one query's heads gave the slot: their sum, and the sum of their squares. */
static __device__ __forceinline__ void heat_add(struct heat_owner *o, float sum, float squares)
{
#pragma unroll
	for (uint32_t i = 0; i < GPU_MAX_HEAT; i++)
		o->heat[i] = heat_after(o->kind[i], o->heat[i], sum, squares);
}

/* heat: of the slot, in the block's first heat array. Read only when the slot is the thread's (`mine`). */
static __device__ __forceinline__ void heat_take_over(struct heat_owner *o, const struct gpu_table *t, bool mine, const float *heat)
{
	o->n_heat = t->n_heat < GPU_MAX_HEAT ? t->n_heat : GPU_MAX_HEAT;
#pragma unroll
	for (uint32_t i = 0; i < GPU_MAX_HEAT; i++) {
		o->kind[i] = i < o->n_heat ? t->heat[i] : 0u;
		o->heat[i] = mine && i < o->n_heat ? heat[i * GPU_BLOCK_SLOTS] : 0.0f;
	}
}

static __device__ __forceinline__ void heat_give_back(const struct heat_owner *o, bool mine, float *heat)
{
#pragma unroll
	for (uint32_t i = 0; i < GPU_MAX_HEAT; i++)
		if (mine && i < o->n_heat)
			heat[i * GPU_BLOCK_SLOTS] = o->heat[i];
}

#endif
#endif
