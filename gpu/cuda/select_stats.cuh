/*
 * Private to select.cu: statistics of a lane (evict/stats.h), for splits and the tide: heat before it is folded, ranks behind that. Thread i of
 * the CTA has place i of evict_places(); counts are integers, added in any order. They gather in shared memory and leave for the host at the end.
 */
#ifndef GPU_CUDA_SELECT_STATS_CUH
#define GPU_CUDA_SELECT_STATS_CUH

#include "gpu/cuda/select_staged.cuh"

/* Between stats_begin() and stats_end() they lie where the sorted slots will be. */
static __device__ __forceinline__ struct evict_lane_stats *stats_of(struct shared_state *sh)
{
	static_assert(sizeof(struct evict_lane_stats) <= sizeof(sh->slot), "statistics lie in slot[]");
	return (struct evict_lane_stats *)sh->slot;
}

static __device__ void stats_begin(const struct lane_ctx &x, struct shared_state *sh)
{
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < sizeof(struct evict_lane_stats) / 4u; i += THREADS)
		sh->slot[i] = 0;
	__syncthreads();
	if (threadIdx.x == 0)
		stats_of(sh)->live = x.live;
}

static __device__ __forceinline__ float stats_heat(const struct lane_ctx &x, char *block, uint32_t which, uint32_t slot)
{
	const uint32_t at = x.turn.stats_heat[which];

	return block && at < x.n_heat ? evict_clean(*array_in(block, at, slot)) : 0.0f;
}

/* Heat before the fold. */
static __device__ __noinline__ void stats_of_heat(const struct lane_ctx &x, struct shared_state *sh)
{
	const int64_t near = (int64_t)x.as_lane.now - (int64_t)x.turn.stats_near;
	float sum = 0.0f, near_sum = 0.0f, squares = 0.0f, second = 0.0f, most = 0.0f;
	struct evict_lane_stats *out = stats_of(sh);

	for (uint32_t i = threadIdx.x; i < x.live; i += THREADS) {
		char *block = heat_block(x, i);
		const int32_t pos = pos_of(x, i);
		const float heat = stats_heat(x, block, 0, i);

		sum += heat;
		near_sum += pos < x.turn.rule.sinks || (int64_t)pos >= near ? heat : 0.0f;
		squares += heat * heat;
		second += stats_heat(x, block, 1, i);
		most = evict_max(most, heat);
		atomicAdd(&out->heat[evict_bin(heat)], 1u);
	}
	sum = block_places(sh, sum);
	near_sum = block_places(sh, near_sum);
	squares = block_places(sh, squares);
	second = block_places(sh, second);
	most = block_most(sh, most);
	if (threadIdx.x == 0) {
		out->heat_sum = sum;
		out->heat_near = near_sum;
		out->heat_squares = squares;
		out->second_sum = second;
		out->heat_max = most;
	}
}

/* Ranks, read back out of the keys. */
static __device__ void stats_of_ranks(const struct lane_ctx &x, struct shared_state *sh)
{
	struct evict_lane_stats *out = stats_of(sh);

	for (uint32_t i = threadIdx.x; i < x.live; i += THREADS) {
		const uint64_t key = key_of(x, i);

		if (key >> 62)
			continue;
		atomicAdd(&out->free, 1u);
		atomicAdd(&out->rank[evict_bin(evict_unorder((uint32_t)(key >> 30)))], 1u);
	}
}

static __device__ void stats_end(const struct lane_ctx &x, struct shared_state *sh)
{
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < sizeof(struct evict_lane_stats) / 4u; i += THREADS)
		((uint32_t *)&x.turn.lane_stats[x.lane])[i] = sh->slot[i];
	__syncthreads();
}

#endif
