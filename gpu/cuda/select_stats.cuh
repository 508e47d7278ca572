/*
 * Private to select.cu: statistics of a lane (evict/stats.h), for splits and the tide: heat before it is folded, ranks behind that. Thread i of
 * the CTA has place i of evict_places(); counts are integers, added in any order. They gather in shared memory and leave for the host at the end.
 */
#ifndef GPU_CUDA_SELECT_STATS_CUH
#define GPU_CUDA_SELECT_STATS_CUH

#include "gpu/cuda/select_staged.cuh"

/* A lane's statistics in the making. */
struct stats_counts {
	uint32_t heat[EVICT_BINS], rank[EVICT_BINS], free;
	float sum, near, squares, second, most;
};

/* Between stats_begin() and stats_end() they lie where the sorted slots will be. */
static __device__ __forceinline__ struct stats_counts *stats_of(struct shared_state *sh)
{
	static_assert(sizeof(struct stats_counts) <= sizeof(sh->slot), "statistics lie in slot[]");
	return (struct stats_counts *)sh->slot;
}

/* Two bins, as they are sent. */
static __device__ __forceinline__ uint32_t stats_pair(uint32_t one, uint32_t two)
{
	return (uint32_t)evict_count(two) << 16 | evict_count(one);
}

static __device__ __forceinline__ void stats_send_bins(uint16_t *to, const uint32_t *count, uint32_t thread, uint32_t threads)
{
	for (uint32_t i = thread; i < EVICT_BINS / 8u; i += threads) {
		const uint4 a = ((const uint4 *)count)[2u * i], b = ((const uint4 *)count)[2u * i + 1u];

		((uint4 *)to)[i] = make_uint4(stats_pair(a.x, a.y), stats_pair(a.z, a.w), stats_pair(b.x, b.y), stats_pair(b.z, b.w));
	}
}

/* What was asked for goes to the host. thread: of so many. */
static __device__ __forceinline__ void stats_send(const struct lane_ctx &x, const struct stats_counts *s, uint32_t thread, uint32_t threads)
{
	struct evict_lane_stats *to = &x.turn.lane_stats[x.lane];

	if (x.turn.stats & EVICT_STATS_HEAT)
		stats_send_bins(to->heat, s->heat, thread, threads);
	if (x.turn.stats & EVICT_STATS_RANK)
		stats_send_bins(to->rank, s->rank, thread, threads);
	if (thread)
		return;
	to->live = x.live;
	if (x.turn.stats & EVICT_STATS_RANK)
		to->free = s->free;
	if (x.turn.stats & EVICT_STATS_SUMS) {
		to->heat_sum = s->sum;
		to->heat_near = s->near;
		to->heat_squares = s->squares;
		to->second_sum = s->second;
		to->heat_max = s->most;
	}
}

static __device__ void stats_begin(struct shared_state *sh)
{
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < sizeof(struct stats_counts) / 4u; i += THREADS)
		sh->slot[i] = 0;
	__syncthreads();
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
	struct stats_counts *out = stats_of(sh);

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
		out->sum = sum;
		out->near = near_sum;
		out->squares = squares;
		out->second = second;
		out->most = most;
	}
}

/* Ranks, read back out of the keys. */
static __device__ void stats_of_ranks(const struct lane_ctx &x, struct shared_state *sh)
{
	struct stats_counts *out = stats_of(sh);

	for (uint32_t i = threadIdx.x; i < x.live; i += THREADS) {
		const uint64_t key = key_of(x, i);

		if (key >> 62)
			continue;
		atomicAdd(&out->free, 1u);
		atomicAdd(&out->rank[evict_rank_bin(x.turn.rule.policy, evict_unorder((uint32_t)(key >> 30)))], 1u);
	}
}

static __device__ void stats_end(const struct lane_ctx &x, struct shared_state *sh)
{
	__syncthreads();
	stats_send(x, stats_of(sh), threadIdx.x, THREADS);
	__syncthreads();
}

#endif
