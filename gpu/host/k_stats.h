/*
 * Statistics of a lane for splits (evict/stats.h), taken while the fold goes over its blocks: heat before it is folded, ranks behind that.
 * Sums: each place of a block has a partial sum of its own, which is as evict_places() says; gpu.h has the order in words.
 */
#ifndef GPU_HOST_K_STATS_H
#define GPU_HOST_K_STATS_H

#include "gpu/host/k_policy.h"

struct stats_sums {
	float sum[GPU_BLOCK_SLOTS], near[GPU_BLOCK_SLOTS], squares[GPU_BLOCK_SLOTS], second[GPU_BLOCK_SLOTS], most[GPU_BLOCK_SLOTS];
	uint32_t heat[EVICT_BINS], rank[EVICT_BINS], free;
};

static const float *stats_heat(const struct selection *s, const struct arrays *a, uint32_t which)
{
	static const float none[GPU_BLOCK_SLOTS];
	const uint32_t at = s->turn->stats_heat[which];

	return at < s->t->n_heat ? a->heat[at] : none;
}

/* One block's heat, before the fold. */
static void stats_of_heat(const struct selection *s, const struct arrays *a, uint32_t n, struct stats_sums *sums)
{
	const float *restrict first = stats_heat(s, a, 0), *restrict second = stats_heat(s, a, 1);
	const int64_t near = (int64_t)s->lane.now - (int64_t)s->turn->stats_near;
	const int32_t sinks = s->turn->rule.sinks;

	for (uint32_t i = 0; i < n; i++) {
		const float heat = evict_clean(first[i]);
		const int is_near = a->pos[i] < sinks || (int64_t)a->pos[i] >= near;

		sums->sum[i] += heat;
		sums->near[i] += is_near ? heat : 0.0f;
		sums->squares[i] += heat * heat;
		sums->second[i] += evict_clean(second[i]);
		sums->most[i] = evict_max(sums->most[i], heat);
		sums->heat[evict_bin(heat)]++;
	}
}

/* One block's ranks, read back out of the keys. */
static void stats_of_ranks(uint32_t policy, const uint64_t *keys, uint32_t n, struct stats_sums *sums)
{
	for (uint32_t i = 0; i < n; i++) {
		if (keys[i] >> 62)
			continue;
		sums->free++;
		sums->rank[evict_rank_bin(policy, evict_unorder((uint32_t)(keys[i] >> 30)))]++;
	}
}

/* What was asked for, and no more. */
static void stats_finish(struct stats_sums *sums, uint32_t stats, uint32_t live, struct evict_lane_stats *out)
{
	out->live = live;
	if (stats & EVICT_STATS_RANK)
		out->free = sums->free;
	for (uint32_t i = 0; stats & EVICT_STATS_RANK && i < EVICT_BINS; i++)
		out->rank[i] = evict_count(sums->rank[i]);
	for (uint32_t i = 0; stats & EVICT_STATS_HEAT && i < EVICT_BINS; i++)
		out->heat[i] = evict_count(sums->heat[i]);
	if (!(stats & EVICT_STATS_SUMS))
		return;
	out->heat_sum = evict_places(sums->sum);
	out->heat_near = evict_places(sums->near);
	out->heat_squares = evict_places(sums->squares);
	out->second_sum = evict_places(sums->second);
	out->heat_max = 0.0f;
	for (uint32_t i = 0; i < GPU_BLOCK_SLOTS; i++)
		out->heat_max = evict_max(out->heat_max, sums->most[i]);
}

/* Heat that the policy does not read is there for statistics alone: its window is over, too. */
static void zero_other_heat(const struct selection *s, const struct arrays *a, uint32_t n)
{
	for (uint32_t k = evict_n_heat(s->turn->rule.policy); k < s->t->n_heat; k++)
		memset(a->heat[k], 0, n * sizeof(float));
}

#endif
