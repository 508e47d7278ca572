/*
 * select: one lane at its window's end. Settle and fold, keys, the least valuable slots. Follows private tables only; from shared
 * memory it takes heat (cleaned) and, when it compacts, K and V bytes. The policy is a constant in every inner loop.
 */
#ifndef GPU_HOST_K_SELECT_H
#define GPU_HOST_K_SELECT_H

#include "gpu/host/k_merge.h"
#include "gpu/host/k_stats.h"

/* --- a heap of the smallest keys ---------------------------------------------------------------------------------------------- */

/*
 * Puts (k, s) in at i and lets it sink. Which child is larger is a coin toss, so it is computed, not branched on: key[n] must be
 * readable and not lead astray. It is 0 (heap_offer) or k itself (heap_sort): either way the sinking stops where it should.
 */
static void heap_sink(uint64_t *key, uint32_t *slot, uint32_t n, uint32_t i, uint64_t k, uint32_t s)
{
	for (;;) {
		uint32_t child = 2 * i + 1;

		if (child >= n)
			break;
		child += key[child + 1] > key[child];
		if (key[child] <= k)
			break;
		key[i] = key[child];
		slot[i] = slot[child];
		i = child;
	}
	key[i] = k;
	slot[i] = s;
}

static void heap_grow(struct selection *s, uint64_t k, uint32_t slot)
{
	uint32_t i = s->n++;

	while (i) {
		uint32_t parent = (i - 1) / 2;

		if (s->key[parent] >= k)
			break;
		s->key[i] = s->key[parent];
		s->slot[i] = s->slot[parent];
		i = parent;
	}
	s->key[i] = k;
	s->slot[i] = slot;
}

/* Offers n keys of slots first, first + 1, ... Almost none gets past the first comparison. */
static void heap_offer(struct selection *s, const uint64_t *keys, uint32_t first, uint32_t n)
{
	uint32_t i = 0;

	for (; i < n && s->n < s->room; i++)
		heap_grow(s, keys[i], first + i);
	if (!s->room)
		return;
	for (; i < n; i++)
		if (keys[i] < s->key[0])
			heap_sink(s->key, s->slot, s->n, 0, keys[i], first + i);
}

/* Ascending, in place. */
static void heap_sort(struct selection *s)
{
	for (uint32_t n = s->n; n > 1; n--) {
		uint64_t k = s->key[n - 1];
		uint32_t slot = s->slot[n - 1], top = s->slot[0];
		uint64_t top_key = s->key[0];

		heap_sink(s->key, s->slot, n - 1, 0, k, slot);
		s->key[n - 1] = top_key;
		s->slot[n - 1] = top;
	}
}

/* --- fold and keys, one block at a time ------------------------------------------------------------------------------------------ */

static double sum_credit(const float *c, uint32_t n)
{
	double sum = 0.0;

	for (uint32_t i = 0; i < n; i++)
		sum += (double)c[i];
	return sum;
}

/* Blocks are anywhere: the processor cannot guess where the next one's arrays are. */
VFN void prefetch_block(const struct selection *s, uint32_t b, int fold)
{
	if (fold && s->t->n_heat)
		prefetch((const char *)block_heat(&s->v, b, 0), s->t->n_heat * GPU_BLOCK_SLOTS * 4u);
	prefetch((const char *)credit_pos(&s->v, b), gpu_block_bytes(s->turn->n_credit));
}

/* The marks of one block's slots. */
static void read_marks(const struct selection *s, const int32_t *pos, uint32_t n, uint32_t *mark)
{
	for (uint32_t i = 0; i < n; i++)
		mark[i] = mark_of(s, pos[i]);
}

/* Keys of one block, in the light of the marks. */
static void mark_keys(const uint32_t *mark, uint32_t n, uint64_t *keys)
{
	for (uint32_t i = 0; i < n; i++)
		keys[i] = evict_marked_key(keys[i], mark[i]);
}

/*
 * Goes over slots 0 .. n-1 block by block. keys: for all n slots, or NULL. With `offer` the keys go to the heap. ranks: they may be
 * counted (a staged policy that folds has none yet).
 */
static void sweep(struct selection *s, uint32_t n, int fold, uint64_t *keys, int offer, int sum, int ranks)
{
	uint64_t own[GPU_BLOCK_SLOTS];
	uint32_t mark[GPU_BLOCK_SLOTS];
	struct zeros zeros = { 0 };
	struct arrays a = { 0 };

	for (uint32_t b = 0; b < gpu_blocks_for(n); b++) {
		uint32_t first = b * GPU_BLOCK_SLOTS, left = n - first;
		uint32_t here = left < GPU_BLOCK_SLOTS ? left : GPU_BLOCK_SLOTS;
		const uint32_t stats = s->sums ? s->turn->stats : 0;
		uint64_t *to = keys ? keys + first : offer || (stats & EVICT_STATS_RANK && ranks) ? own : NULL;

		block_arrays(s, b, &zeros, &a);
		if (first + GPU_BLOCK_SLOTS < n)
			prefetch_block(s, b + 1, fold);
		if (fold && stats & (EVICT_STATS_HEAT | EVICT_STATS_SUMS))
			stats_of_heat(s, &a, here, s->sums);
		if (to && s->turn->marks) {
			read_marks(s, a.pos, here, mark);
			a.mark = mark;
		}
		run_policy(s, &a, here, fold, to);
		if (to && s->turn->marks)
			mark_keys(mark, here, to);
		if (fold && s->t->n_heat > evict_n_heat(s->turn->rule.policy))
			zero_other_heat(s, &a, here);
		if (stats & EVICT_STATS_RANK && ranks)
			stats_of_ranks(s->turn->rule.policy, to, here, s->sums);
		if (offer)
			heap_offer(s, to, first, here);
		if (sum && evict_n_credit(s->turn->rule.policy))
			s->sel->kept += sum_credit(a.credit[0], here);
	}
}

/* --- settle, remove, compact ---------------------------------------------------------------------------------------------------------- */

static void settle(struct selection *s)
{
	float first[HOST_MAX_DIM];

	if (s->turn->appended)
		first_values(s, first);
	for (uint32_t j = 0; j < s->turn->appended; j++) {
		uint32_t slot = gpu_slot_of(s->v.lane, s->v.next, j);
		uint32_t b = slot / GPU_BLOCK_SLOTS, at = slot % GPU_BLOCK_SLOTS;

		credit_pos(&s->v, b)[at] = s->turn->pos + (int32_t)j;
		for (uint32_t k = 0; k < s->turn->n_credit; k++)
			credit_of(&s->v, b, k)[at] = 0.0f;
		if (evict_n_trait(s->turn->rule.policy))
			settle_traits(s, slot, first);
	}
}

static void traits_anew(const struct selection *s)
{
	float first[HOST_MAX_DIM];

	first_values(s, first);
	for (uint32_t slot = 0; slot < s->live; slot++)
		settle_traits(s, slot, first);
}

/* Marks the live - keep slots with the smallest keys; of equal keys (there should be none) the lower slots. */
static void remove_slots(struct selection *s)
{
	const uint64_t *keys = s->sel->keys;
	uint32_t n = s->live - s->plan->keep, found = 0, before, equal, *gone = (uint32_t *)(s->sel->keys + s->live);
	uint64_t last;

	if (!n)
		return;
	last = nth_key(keys, s->sel->keys + s->live, s->live, n, &before);
	equal = n - before;
	for (uint32_t i = 0; i < s->live; i++) {
		if (keys[i] > last || (keys[i] == last && !equal))
			continue;
		equal -= keys[i] == last;
		gone[found++] = i;
	}
	if (s->turn->rule.merge)
		merge_victims(s, gone, n, s->live);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t block = gone[i] / GPU_BLOCK_SLOTS, at = gone[i] % GPU_BLOCK_SLOTS;

		credit_pos(&s->v, block)[at] = -1;
		if (evict_n_credit(s->turn->rule.policy))
			s->sel->leaving += (double)credit_of(&s->v, block, 0)[at];
	}
}

static void move_slot(const struct selection *s, uint32_t from, uint32_t to)
{
	const struct gpu_parts part = gpu_page_parts(s->turn->slot_type, s->turn->head_dim);
	const uint32_t fr = from % GPU_PAGE_SLOTS, tr = to % GPU_PAGE_SLOTS;
	const uint32_t fb = from / GPU_BLOCK_SLOTS, tb = to / GPU_BLOCK_SLOTS;
	const uint32_t fs = from % GPU_BLOCK_SLOTS, ts = to % GPU_BLOCK_SLOTS;
	const char *src = page_at(&s->v, from / GPU_PAGE_SLOTS);
	char *dst = page_at(&s->v, to / GPU_PAGE_SLOTS);

	for (uint32_t i = 0; i < 4; i++)
		memcpy(dst + part.at[i] + (size_t)tr * part.bytes[i], src + part.at[i] + (size_t)fr * part.bytes[i], part.bytes[i]);
	/* The shared position is a copy of the private one: nothing that a client wrote comes back as truth. */
	block_pos(&s->v, tb)[ts] = credit_pos(&s->v, fb)[fs];
	credit_pos(&s->v, tb)[ts] = credit_pos(&s->v, fb)[fs];
	for (uint32_t k = 0; k < s->t->n_heat; k++)
		block_heat(&s->v, tb, k)[ts] = block_heat(&s->v, fb, k)[fs];
	for (uint32_t k = 0; k < s->turn->n_credit; k++)
		credit_of(&s->v, tb, k)[ts] = credit_of(&s->v, fb, k)[fs];
}

/* Credit of slots that an earlier call has marked: they leave, too. */
static void leave_marked(struct selection *s)
{
	for (uint32_t i = 0; evict_n_credit(s->turn->rule.policy) && i < s->live; i++)
		if (credit_pos(&s->v, i / GPU_BLOCK_SLOTS)[i % GPU_BLOCK_SLOTS] == -1)
			s->sel->leaving += (double)credit_of(&s->v, i / GPU_BLOCK_SLOTS, 0)[i % GPU_BLOCK_SLOTS];
}

/* Slots from first to end - 1 that are marked (dead) or not, ascending, at most `most`; returns how many. */
static uint32_t list_slots(const struct selection *s, uint32_t first, uint32_t end, int dead, uint32_t *list, uint32_t most)
{
	uint32_t n = 0;

	while (first < end && n < most) {
		const int32_t *pos = credit_pos(&s->v, first / GPU_BLOCK_SLOTS);
		uint32_t at = first % GPU_BLOCK_SLOTS, left = end - first;
		uint32_t stop = GPU_BLOCK_SLOTS - at < left ? GPU_BLOCK_SLOTS : at + left;

		for (; at < stop && n < most; at++, first++) {
			list[n] = first;
			n += (pos[at] == -1) == dead;
		}
	}
	return n;
}

VFN void prefetch_slot(const struct selection *s, uint32_t slot)
{
	const struct gpu_parts part = gpu_page_parts(s->turn->slot_type, s->turn->head_dim);
	const char *page = page_at(&s->v, slot / GPU_PAGE_SLOTS);

	for (uint32_t i = 0; i < 2; i++)
		prefetch(page + part.at[i] + slot % GPU_PAGE_SLOTS * part.bytes[i], part.bytes[i]);
}

#define MOVES_AHEAD 8u

/* Survivors from `keep` on go into the holes below, both ascending. There are as many of the one as of the other. */
static void compact(struct selection *s, uint32_t keep)
{
	uint32_t *hole = (uint32_t *)s->sel->keys, *from = hole + s->live;
	uint32_t n = list_slots(s, keep, s->live, 0, from, s->live);

	n = list_slots(s, 0, keep, 1, hole, n);
	for (uint32_t i = 0; i < n; i++) {
		if (i + MOVES_AHEAD < n) {
			prefetch_slot(s, from[i + MOVES_AHEAD]);
			prefetch_slot(s, hole[i + MOVES_AHEAD]);
		}
		move_slot(s, from[i], hole[i]);
	}
}

static struct gpu_lane *header_of(const struct selection *s)
{
	char *at = s->turn->priv;

	return (struct gpu_lane *)(void *)(at + gpu_table_lanes()) + s->sel->lane;
}

/* The header's window is over: all that is left is in slots below its new length, whatever was appended. */
static void drop_slots(struct selection *s)
{
	const uint32_t layer = s->sel->lane / s->turn->n_kv_heads;
	uint32_t keep = s->live;

	for (uint32_t i = 0; i < s->live; i++)
		if (evict_mark_drops(mark_of(s, pos_at(s, i)), layer)) {
			credit_pos(&s->v, i / GPU_BLOCK_SLOTS)[i % GPU_BLOCK_SLOTS] = -1;
			keep--;
		}
	compact(s, keep);
	*header_of(s) = (struct gpu_lane){ .len = keep };
	s->turn->live[s->sel->lane] = s->live = s->lane.live = keep;
	s->lane.keep = s->plan->keep < keep ? s->plan->keep : keep;
}

static void name_next(struct selection *s)
{
	struct gpu_table *t = s->turn->priv;
	char *at = s->turn->priv;
	uint32_t *next = (uint32_t *)(void *)(at + gpu_table_next(t)) + (size_t)s->sel->lane * t->window;

	heap_sort(s);
	if (s->turn->rule.merge)
		merge_victims(s, s->slot, s->n, s->plan->keep);
	for (uint32_t i = 0; i < s->n; i++) {
		next[i] = s->slot[i];
		if (evict_n_credit(s->turn->rule.policy))
			s->sel->leaving += (double)credit_of(&s->v, s->slot[i] / GPU_BLOCK_SLOTS, 0)[s->slot[i] % GPU_BLOCK_SLOTS];
	}
	*header_of(s) = (struct gpu_lane){ .len = s->plan->keep, .fresh = s->plan->fresh };
}

/* A policy that needs to know the whole lane first: fold and ranking are passes of their own. keys and offer as in sweep(). */
static void staged(struct selection *s, uint32_t n, int fold, uint64_t *keys, int offer, int sum)
{
	if (fold) {
		if (evict_has_heat_figure(s->turn->rule.policy))
			s->lane.heat = lane_values(s, n, 0, s->stage.value);
		sweep(s, n, 1, NULL, 0, sum, 0);
		lane_traits(s);
		sum = 0;
	}
	if (!keys && !offer && !sum && !s->sums)
		return;
	before_ranking(s, n);
	sweep(s, n, 0, keys, offer, sum, 1);
}

static void go_over(struct selection *s, uint32_t n, int fold, uint64_t *keys, int offer, int sum)
{
	if (s->sel->staged)
		staged(s, n, fold, keys, offer, sum);
	else
		sweep(s, n, fold, keys, offer, sum, 1);
}

/* The first time over, which folds, takes the statistics. */
static void go_over_first(struct selection *s, uint32_t n, int fold, uint64_t *keys, int offer, int sum)
{
	struct evict_lane_stats *out = s->turn->stats && fold ? &s->turn->lane_stats[s->sel->lane] : NULL;
	struct stats_sums sums;

	if (out) {
		memset(&sums, 0, sizeof(sums));
		s->sums = &sums;
	}
	go_over(s, n, fold, keys, offer, sum);
	s->sums = NULL;
	if (out)
		stats_finish(&sums, s->turn->stats, n, out);
}

static void open_lane(struct selection *s, struct host_select *sel)
{
	const struct gpu_turn *turn = sel->turn;

	*s = (struct selection){ .sel = sel, .turn = turn, .plan = &turn->plan[sel->lane], .t = turn->priv };
	s->v = lane_view(turn->priv, sel->lane, sel->map);
	s->live = gpu_live(s->v.lane, turn->appended);
	s->lane = evict_lane_at(&turn->rule, sel->lane, turn->pos, turn->appended, s->t->n_heat ? s->t->observe : 0,
				s->live);
	s->lane.keep = s->plan->keep < s->live ? s->plan->keep : s->live;
	s->lane.tag = evict_mark_tag(mark_of(s, s->lane.now - 1));
	if (sel->staged || turn->rule.merge)
		s->stage = host_stage(sel->stage, turn, s->live);
	s->room = s->plan->victims;
	s->key = sel->heap;
	s->key[s->room] = 0;
	s->slot = (uint32_t *)(sel->heap + s->room + 1);
}

static void select_lane(struct host_select *sel)
{
	const int fold = (sel->what & GPU_FOLD) != 0, rest = sel->what & (GPU_REMOVE | GPU_COMPACT);
	const int next = (sel->what & GPU_NEXT) != 0;
	struct selection s;

	open_lane(&s, sel);
	if (sel->what & GPU_SETTLE)
		settle(&s);
	if (sel->what & GPU_DROP)
		drop_slots(&s);
	if (sel->what & GPU_TRAITS)
		traits_anew(&s);
	if (sel->what == GPU_TRAITS)
		return;
	if (!rest && s.plan->keep == s.live) {		/* the common case: one pass */
		if (fold || next || sel->want_stats)
			go_over_first(&s, s.live, fold, NULL, next, sel->want_stats);
	} else {
		if (fold || sel->what & GPU_REMOVE || sel->want_stats)
			go_over_first(&s, s.live, fold, sel->what & GPU_REMOVE ? sel->keys : NULL, 0, sel->want_stats);
		if (sel->what & GPU_REMOVE)
			remove_slots(&s);
		else if (sel->what & GPU_COMPACT && sel->want_stats)
			leave_marked(&s);
		if (sel->what & GPU_COMPACT)
			compact(&s, s.plan->keep);
		if (next)
			go_over(&s, s.plan->keep, 0, NULL, 1, 0);
	}
	if (next)
		name_next(&s);
	sel->kept -= sel->leaving;
}

#endif
