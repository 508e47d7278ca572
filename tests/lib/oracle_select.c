/*
 * What the daemon's operation should do: select, slowly. What a single slot's numbers become is the policy's own (evict_fold(),
 * evict_rank(): test_golden checks those against formulas); everything that knows the lane is written here a second time, from the comments
 * of evict/rule.h and evict/trait.h: float32, one sum after the other in the order that they state.
 */
#include "tests/lib/oracle.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *zeroed(size_t n, size_t bytes)
{
	void *p = calloc(n ? n : 1, bytes ? bytes : 1);

	assert(p);
	return p;
}

/* A lane on its way through a turn. */
struct lane_turn {
	struct oracle_session *s;
	const struct gpu_turn *turn;
	const struct gpu_plan *plan;
	struct oracle_lane *lane;
	struct evict_lane view;
	float *pooled;			/* [max_slots]; or places */
};

static uint32_t mark_at(const struct lane_turn *t, int32_t pos)
{
	return t->turn->marks && pos >= 0 && (uint32_t)pos < t->turn->n_marks ? t->turn->marks[pos] : 0;
}

static struct evict_slot slot_view(const struct lane_turn *t, uint32_t at, int with_heat)
{
	const struct oracle_slot *slot = &t->lane->slot[at];
	const uint32_t n_credit = evict_n_credit(t->turn->rule.policy);
	struct evict_slot view = { .pos = slot->own_pos, .pooled = t->pooled[at], .place = t->pooled[at] };

	view.tag = mark_at(t, slot->own_pos) & 255;

	for (uint32_t i = 0; with_heat && i < t->s->table.n_heat; i++) {
		const float heat = (float)slot->heat[i];

		view.heat[i] = isfinite(heat) && heat > 0.0f && heat <= 1e30f ? heat : 0.0f;
	}
	for (uint32_t i = 0; i < evict_n_arrays(t->turn->rule.policy); i++) {
		if (i < n_credit)
			view.credit[i] = slot->credit[i];
		else
			view.trait[i - n_credit] = slot->credit[i];
	}
	return view;
}

static int tier(const struct lane_turn *t, const struct evict_slot *slot)
{
	if (slot->pos < t->turn->rule.sinks)
		return 3;
	if ((int64_t)slot->pos >= (int64_t)t->view.now - t->plan->recent)
		return 2;
	return slot->pos < t->turn->rule.pinned || mark_at(t, slot->pos) >> 8 & 1;
}

/* --- traits --------------------------------------------------------------------------------------------------------------------- */

/* A slot's row as float32, cleaned; free(). */
static float *row_of(const struct lane_turn *t, uint32_t at, int is_v)
{
	const uint32_t d = t->s->shape.head_dim, type = gpu_row_type(t->s->shape.slot_type, is_v != 0), bytes = oracle_row_room(&t->s->shape);
	const struct oracle_slot *slot = &t->lane->slot[at];
	float *x = zeroed(d, sizeof(*x));

	for (uint32_t c = 0; c < d; c++) {
		x[c] = (float)oracle_row_load(type, d, is_v ? &t->lane->v[at * bytes] : &t->lane->k[at * bytes],
					      is_v ? slot->v_param : slot->k_param, c);
		if (!(fabsf(x[c]) <= 1e15f))
			x[c] = 0.0f;
	}
	return x;
}

/* Adds n numbers in 16 parts, then the parts by halves. */
static float sum_16(const float *x, uint32_t n)
{
	float part[16] = { 0 };

	for (uint32_t i = 0; i < n; i++)
		part[i % 16] += x[i];
	for (uint32_t i = 0; i < 8; i++)
		part[i] += part[i + 8];
	for (uint32_t i = 0; i < 4; i++)
		part[i] += part[i + 4];
	return (part[0] + part[2]) + (part[1] + part[3]);
}

static float dot(const float *a, const float *b, uint32_t d)
{
	float product[256] = { 0 };

	for (uint32_t c = 0; c < d; c++)
		product[c] = a[c] * b[c];
	return sum_16(product, d);
}

/* How far value v[d] is from the mean of the first 64. */
static float apart(const struct lane_turn *t, const float *v)
{
	const uint32_t d = t->s->shape.head_dim, live = gpu_live(t->lane->head, t->turn->appended), n = live < 64 ? live : 64;
	float sum[2][256] = { { 0 } }, away[256];

	for (uint32_t at = 0; at < n; at++) {
		float *x = row_of(t, at, 1);

		for (uint32_t c = 0; c < d; c++)
			sum[at % 2][c] += x[c];
		free(x);
	}
	for (uint32_t c = 0; c < d; c++)
		away[c] = v[c] - (sum[0][c] + sum[1][c]) * (1.0f / (float)n);
	return sqrtf(dot(away, away, d));
}

static float once(const struct lane_turn *t, uint32_t trait, uint32_t at)
{
	const uint32_t d = t->s->shape.head_dim;
	float *x = row_of(t, at, trait != EVICT_KEY_NORM), out;

	if (trait == EVICT_VALUE_APART) {
		out = apart(t, x);
		free(x);
		return out;
	}
	for (uint32_t c = 0; c < d && trait == EVICT_VALUE_L1; c++)
		x[c] = fabsf(x[c]);
	out = trait == EVICT_VALUE_L1 ? sum_16(x, d) : sqrtf(dot(x, x, d));
	free(x);
	return out;
}

/* [live] pointers to unit keys, and their sum in the last. */
static float **unit_keys(const struct lane_turn *t, uint32_t live)
{
	const uint32_t d = t->s->shape.head_dim;
	float **u = zeroed(live + 1, sizeof(*u));
	float by_row[16];

	for (uint32_t i = 0; i < live; i++) {
		u[i] = row_of(t, i, 0);
		const float norm = sqrtf(dot(u[i], u[i], d)), inv = norm > 0.0f ? 1.0f / norm : 0.0f;

		for (uint32_t c = 0; c < d; c++)
			u[i][c] *= inv;
	}
	u[live] = zeroed(d, sizeof(float));
	for (uint32_t c = 0; c < d; c++) {
		memset(by_row, 0, sizeof(by_row));
		for (uint32_t i = 0; i < live; i++)
			by_row[i % 16] += u[i][c];
		u[live][c] = sum_16(by_row, 16);
	}
	return u;
}

/* The place of every slot in the order of positions, or the slots in it. */
static uint32_t place_of(const struct lane_turn *t, uint32_t live, uint32_t at)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < live; i++)
		n += t->lane->slot[i].own_pos < t->lane->slot[at].own_pos;
	return n;
}

static uint32_t *in_order(const struct lane_turn *t, uint32_t live)
{
	uint32_t *order = zeroed(live, sizeof(*order));

	for (uint32_t i = 0; i < live; i++)
		order[place_of(t, live, i)] = i;
	return order;
}

static void redundancy(const struct lane_turn *t, uint32_t live, float **u, float *out)
{
	const uint32_t d = t->s->shape.head_dim;

	for (uint32_t j = 0; j < live; j++)
		out[j] = 0.0f;
	for (uint32_t i = 0; i < live; i++) {
		uint32_t newest = UINT32_MAX, oldest = 0;

		for (uint32_t j = 0; j < live; j++) {
			if (t->lane->slot[j].own_pos < t->lane->slot[oldest].own_pos)
				oldest = j;
			if (j != i && dot(u[i], u[j], d) > 0.5f &&
			    (newest == UINT32_MAX || t->lane->slot[j].own_pos > t->lane->slot[newest].own_pos))
				newest = j;
		}
		if (newest == UINT32_MAX)
			newest = oldest;
		if (newest != i)
			out[newest] += dot(u[i], u[newest], d);
	}
	for (uint32_t j = 0; j < live; j++)
		out[j] = (dot(u[j], u[live], d) - dot(u[j], u[j], d) - out[j]) / (float)live;
}

/* Softmaxed deviations of the partition order[0 .. lag-1] against the next one. */
static void lag_side(const struct lane_turn *t, const uint32_t *order, uint32_t lag, int is_v, float *sum_of)
{
	const uint32_t d = t->s->shape.head_dim;
	float low[256], high[256], *score = zeroed(lag, sizeof(*score)), largest = 0.0f, sum = 0.0f;

	for (uint32_t i = 0; i < lag; i++) {
		float *x = row_of(t, order[lag + i], is_v);

		for (uint32_t c = 0; c < d; c++) {
			low[c] = i ? fminf(low[c], x[c]) : x[c];
			high[c] = i ? fmaxf(high[c], x[c]) : x[c];
		}
		free(x);
	}
	for (uint32_t i = 0; i < lag; i++) {
		float *x = row_of(t, order[i], is_v), mean;

		for (uint32_t c = 0; c < d; c++) {
			x[c] = high[c] > low[c] ? (x[c] - low[c]) / (high[c] - low[c]) : 0.0f;
			x[c] = fabsf(x[c]) <= 1e15f ? x[c] : 0.0f;
		}
		mean = sum_16(x, d) / (float)d;
		for (uint32_t c = 0; c < d; c++)
			x[c] -= mean;
		score[i] = sqrtf(dot(x, x, d) / (float)(d - 1));
		largest = fmaxf(largest, score[i]);
		free(x);
	}
	for (uint32_t i = 0; i < lag; i++)
		sum += evict_exp(score[i] - largest);
	for (uint32_t i = 0; i < lag; i++)
		sum_of[i] += evict_exp(score[i] - largest) / sum;
	free(score);
}

static void lagkv(const struct lane_turn *t, uint32_t live, float *out)
{
	const uint32_t lag = t->turn->rule.lag;
	uint32_t *order = in_order(t, live), sinks = 0;
	float *score = zeroed(lag, sizeof(*score));

	for (uint32_t i = 0; i < live; i++)
		sinks += t->lane->slot[i].own_pos < t->turn->rule.sinks;
	for (uint32_t i = 0; i < live; i++)
		out[order[i]] = live - sinks < 2 * lag ? (float)i / (float)live : 1.0f;
	for (uint32_t p = 0; sinks + (p + 2) * lag <= live; p++) {
		const uint32_t *slots = order + sinks + p * lag;

		memset(score, 0, lag * sizeof(*score));
		lag_side(t, slots, lag, 0, score);
		lag_side(t, slots, lag, 1, score);
		for (uint32_t i = 0; i < lag; i++) {
			uint32_t place = 0;

			for (uint32_t j = 0; j < lag; j++)
				place += score[j] < score[i] || (score[j] == score[i] && j < i);
			out[slots[i]] = (float)place / (float)lag;
		}
	}
	free(score);
	free(order);
}

static void lane_traits(const struct lane_turn *t, uint32_t live)
{
	const struct evict_rule *rule = &t->turn->rule;
	const uint32_t d = t->s->shape.head_dim;
	float *out = zeroed(live, sizeof(*out)), **u;

	for (uint32_t k = 0; k < evict_n_trait(rule->policy) && live; k++) {
		if (evict_trait_once(rule->trait[k]))
			continue;
		u = unit_keys(t, live);
		if (rule->trait[k] == EVICT_KEY_REDUNDANCY)
			redundancy(t, live, u, out);
		else if (rule->trait[k] == EVICT_KEY_LAG)
			lagkv(t, live, out);
		for (uint32_t i = 0; i < live && rule->trait[k] == EVICT_KEY_COSINE; i++) {
			const float norm = sqrtf(dot(u[live], u[live], d));

			out[i] = norm > 0.0f ? dot(u[i], u[live], d) / norm : 0.0f;
		}
		for (uint32_t i = 0; i <= live; i++)
			free(u[i]);
		free(u);
		for (uint32_t i = 0; i < live; i++)
			t->lane->slot[i].credit[evict_n_credit(rule->policy) + k] = out[i];
	}
	free(out);
}

/* --- the lane as a whole ---------------------------------------------------------------------------------------------------------- */

/* which: 0 the heat figure, 1 the figure, 2 what is pooled. */
static float value_of(const struct lane_turn *t, uint32_t at, int which)
{
	const struct evict_slot view = slot_view(t, at, which == 0);

	return which == 0 ? evict_heat_figure(&t->turn->rule, &t->view, &view) :
	       which == 1 ? evict_figure(&t->turn->rule, &t->view, &view) : evict_pool(&t->turn->rule, &t->view, &view);
}

static struct evict_figures figures(const struct lane_turn *t, uint32_t n, int which)
{
	struct evict_figures f = { 0 };
	float place[256] = { 0 };

	for (uint32_t at = 0; at < n; at++) {
		const float x = value_of(t, at, which);

		place[at % 256] += x;
		f.max = x > f.max ? x : f.max;
	}
	for (uint32_t half = 128; half; half /= 2)
		for (uint32_t i = 0; i < half; i++)
			place[i] += place[i + half];
	f.sum = place[0];
	return f;
}

/* The place of the last that is spared, by counting how many unprotected slots are above each. */
static uint64_t cut_of(const struct lane_turn *t, uint32_t n)
{
	const uint32_t leave = n > t->plan->keep ? n - t->plan->keep : 0;
	uint32_t free_slots = 0, spared;

	for (uint32_t at = 0; at < n; at++) {
		const struct evict_slot view = slot_view(t, at, 0);

		free_slots += tier(t, &view) == 0;
	}
	/* the share of what may leave and stays */
	spared = free_slots > leave ? (uint32_t)(evict_share(&t->turn->rule, &t->view) * (float)(free_slots - leave)) : 0;
	if (!spared)
		return UINT64_MAX;
	if (spared == free_slots)
		return 0;
	for (uint32_t at = 0; at < n; at++) {
		const struct evict_slot view = slot_view(t, at, 0);
		const float x = value_of(t, at, 1);
		uint32_t above = 0;

		if (tier(t, &view))
			continue;
		for (uint32_t j = 0; j < n; j++) {
			const struct evict_slot other = slot_view(t, j, 0);
			const float y = value_of(t, j, 1);

			above += !tier(t, &other) && (y > x || (y == x && other.pos > view.pos));
		}
		if (above + 1 == spared)
			return evict_place(x, view.pos);
	}
	assert(!"somebody is the last");
	return 0;
}

static void pool(const struct lane_turn *t, uint32_t n)
{
	const int32_t half = (int32_t)evict_kernel(&t->turn->rule) / 2;
	uint32_t *order = in_order(t, n);

	for (int32_t i = 0; i < (int32_t)n; i++) {
		float sum = 0.0f, most = -INFINITY;

		for (int32_t j = i - half; j <= i + half; j++) {
			if (j < 0 || j >= (int32_t)n)
				continue;
			sum += value_of(t, order[j], 2);
			most = fmaxf(most, value_of(t, order[j], 2));
		}
		t->pooled[order[i]] = evict_pool_mean(&t->turn->rule) ? sum / (float)(2 * half + 1) : most;
	}
	free(order);
}

/* Of the slots that may leave, on the same side as each: how many are worth more. */
static void place(const struct lane_turn *t, uint32_t n)
{
	for (uint32_t at = 0; at < n; at++) {
		const struct evict_slot view = slot_view(t, at, 0);
		uint32_t above = 0;

		for (uint32_t j = 0; j < n && !tier(t, &view); j++) {
			const struct evict_slot other = slot_view(t, j, 0);
			const float x = evict_worth(&t->turn->rule, &t->view, &view), y = evict_worth(&t->turn->rule, &t->view, &other);

			above += !tier(t, &other) && (other.tag == t->view.tag) == (view.tag == t->view.tag) &&
				 (y > x || (y == x && other.pos > view.pos));
		}
		t->pooled[at] = (float)above;
	}
}

static void before_ranking(struct lane_turn *t, uint32_t n)
{
	if (evict_has_figure(t->turn->rule.policy))
		t->view.rank = figures(t, n, 1);
	if (evict_has_cut(t->turn->rule.policy))
		t->view.cut = cut_of(t, n);
	if (evict_has_pool(t->turn->rule.policy))
		pool(t, n);
	if (evict_has_place(t->turn->rule.policy))
		place(t, n);
}

/* --- merges ------------------------------------------------------------------------------------------------------------------------- */

/* What is done to a survivor's row: to[] = (start + sum of what its victims give) / total, all of it from the rows before. */
struct merged {
	float *k, *v;			/* NULL: stays */
};

static void write_rows(const struct lane_turn *t, uint32_t at, struct merged *m)
{
	const uint32_t d = t->s->shape.head_dim, type = t->s->shape.slot_type, bytes = oracle_row_room(&t->s->shape);

	if (m->k)
		oracle_row_store(gpu_row_type(type, 0), d, m->k, &t->lane->k[at * bytes], &t->lane->slot[at].k_param);
	if (m->v)
		oracle_row_store(gpu_row_type(type, 1), d, m->v, &t->lane->v[at * bytes], &t->lane->slot[at].v_param);
	for (uint32_t i = 0; (m->k || m->v) && i < evict_n_trait(t->turn->rule.policy); i++)
		if (evict_trait_once(t->turn->rule.trait[i]) && t->turn->rule.trait[i] != EVICT_VALUE_APART)
			t->lane->slot[at].credit[evict_n_credit(t->turn->rule.policy) + i] = once(t, t->turn->rule.trait[i], at);
	free(m->k);
	free(m->v);
}

static int is_in(uint32_t x, const uint32_t *list, uint32_t n)
{
	while (n--)
		if (list[n] == x)
			return 1;
	return 0;
}

/* The survivor with the most similar key, and how similar. */
static uint32_t nearest(const struct lane_turn *t, float **u, uint32_t e, const uint32_t *victim, uint32_t n, uint32_t live, float *cosine)
{
	const uint32_t d = t->s->shape.head_dim;
	uint32_t best = UINT32_MAX;

	for (uint32_t k = 0; k < live; k++) {
		const float x = dot(u[e], u[k], d);

		if (is_in(k, victim, n))
			continue;
		if (best == UINT32_MAX || x > *cosine || (x == *cosine && t->lane->slot[k].own_pos < t->lane->slot[best].own_pos)) {
			best = k;
			*cosine = x;
		}
	}
	return best;
}

/* The half of survivor k under pivot or d2o, or NULL. */
static float *by_key(const struct lane_turn *t, uint32_t k, int is_v, const uint32_t *victim, const uint32_t *target, const float *cosine,
		     float least, uint32_t n)
{
	const int d2o = t->turn->rule.merge == EVICT_MERGE_d2o;
	const uint32_t d = t->s->shape.head_dim;
	float *own = row_of(t, k, is_v), *to = zeroed(d, sizeof(*to)), total = d2o ? evict_exp(1.0f) : 1.0f;
	int any = 0;

	for (uint32_t c = 0; c < d; c++)
		to[c] = total * own[c];
	for (uint32_t i = 0; i < n; i++) {
		float *x;

		if (target[i] != k || cosine[i] < least)
			continue;
		x = row_of(t, victim[i], is_v);
		for (uint32_t c = 0; c < d; c++)
			to[c] += d2o ? evict_exp(cosine[i]) * x[c] : 0.5f * (x[c] + own[c]);
		total += d2o ? evict_exp(cosine[i]) : 1.0f;
		any = 1;
		free(x);
	}
	for (uint32_t c = 0; c < d; c++)
		to[c] /= total;
	free(own);
	if (!any)
		free(to);
	return any ? to : NULL;
}

/* Does cam merge victim e into its successors, the slots of next[0 .. n-1]? */
static int cam_merges(const struct lane_turn *t, uint32_t e, const uint32_t *next, uint32_t n)
{
	const struct oracle_slot *slot = t->lane->slot;
	const uint32_t draw = evict_draw(~t->turn->rule.seed, t->view.lane, t->view.now, slot[e].own_pos);
	float sum = 0.0f;

	for (uint32_t i = 0; i < n; i++)
		sum += slot[next[i]].credit[0];
	return !evict_n_credit(t->turn->rule.policy) || ((float)draw + 0.5f) / 16777216.0f * (sum / (float)n) < slot[e].credit[0];
}

static void cam(const struct lane_turn *t, const uint32_t *victim, uint32_t n, uint32_t live, struct merged *out)
{
	const uint32_t d = t->s->shape.head_dim, budget = (uint32_t)t->turn->rule.merge_param[0];
	uint32_t *order = in_order(t, live), *next = zeroed(budget, sizeof(*next));

	for (uint32_t i = 0; i < n; i++) {
		uint32_t count = 0;

		for (uint32_t at = place_of(t, live, victim[i]) + 1; at < live && count < budget; at++)
			if (!is_in(order[at], victim, n))
				next[count++] = order[at];
		if (!count || !cam_merges(t, victim[i], next, count))
			continue;
		for (uint32_t j = 0; j < count; j++) {
			float *x = row_of(t, victim[i], 1), **to = &out[next[j]].v;

			*to = *to ? *to : row_of(t, next[j], 1);
			for (uint32_t c = 0; c < d; c++)
				(*to)[c] += x[c] / (float)budget;
			free(x);
		}
	}
	free(next);
	free(order);
}

static void merge(const struct lane_turn *t, const uint32_t *victim, uint32_t n, uint32_t live)
{
	const struct evict_rule *rule = &t->turn->rule;
	struct merged *out = zeroed(live, sizeof(*out));
	uint32_t *target = zeroed(n, sizeof(*target));
	float *cosine = zeroed(n, sizeof(*cosine)), sum = 0.0f, **u;

	if (rule->merge == EVICT_MERGE_cam && n < live)
		cam(t, victim, n, live, out);
	u = unit_keys(t, live);
	for (uint32_t i = 0; i < n && n < live && rule->merge != EVICT_MERGE_cam; i++) {
		target[i] = nearest(t, u, victim[i], victim, n, live, &cosine[i]);
		sum += cosine[i];
	}
	for (uint32_t k = 0; k < live && n && n < live && rule->merge != EVICT_MERGE_cam; k++)
		for (int is_v = 0; is_v < 2 && !is_in(k, victim, n); is_v++)
			*(is_v ? &out[k].v : &out[k].k) = by_key(t, k, is_v, victim, target, cosine,
								 rule->merge == EVICT_MERGE_d2o ? sum / (float)n : rule->merge_param[0], n);
	for (uint32_t k = 0; k < live; k++)
		write_rows(t, k, &out[k]);
	for (uint32_t i = 0; i <= live; i++)
		free(u[i]);
	free(u);
	free(out);
	free(target);
	free(cosine);
}

/* --- leaving ------------------------------------------------------------------------------------------------------------------------ */

/* Does a leave before b? By protection, then value, then position: written out, not through evict_key(). */
static int leaves_before(const struct lane_turn *t, const struct evict_slot *a, const struct evict_slot *b)
{
	const int tier_a = tier(t, a), tier_b = tier(t, b);
	const float rank_a = evict_rank(&t->turn->rule, &t->view, a), rank_b = evict_rank(&t->turn->rule, &t->view, b);

	if (tier_a != tier_b)
		return tier_a < tier_b;
	if (isnan(rank_a) != isnan(rank_b))
		return isnan(rank_a);
	if (!isnan(rank_a) && rank_a != rank_b)
		return rank_a < rank_b;
	return a->pos < b->pos;
}

/* The slot below `end` that leaves first, among those that are not removed and not named. */
static uint32_t least(const struct lane_turn *t, uint32_t end, const uint8_t *named)
{
	struct evict_slot best_view = { 0 };
	uint32_t best = UINT32_MAX;

	for (uint32_t at = 0; at < end; at++) {
		const struct evict_slot view = slot_view(t, at, 0);

		if (view.pos < 0 || named[at])
			continue;
		if (best == UINT32_MAX || leaves_before(t, &view, &best_view)) {
			best = at;
			best_view = view;
		}
	}
	assert(best != UINT32_MAX);
	return best;
}

static void compact(struct oracle_session *s, struct oracle_lane *lane, uint32_t keep, uint32_t live)
{
	const uint32_t row = oracle_row_room(&s->shape);
	uint32_t hole = 0;

	for (uint32_t at = keep; at < live; at++) {
		if (lane->slot[at].own_pos < 0)
			continue;
		while (lane->slot[hole].own_pos >= 0)
			hole++;
		assert(hole < keep);
		memcpy(&lane->k[hole * row], &lane->k[at * row], row);
		memcpy(&lane->v[hole * row], &lane->v[at * row], row);
		lane->slot[hole] = lane->slot[at];
		lane->slot[hole].pos = lane->slot[at].own_pos;
		lane->slot[at].own_pos = -1;
	}
}

/* Slots whose mark names this layer, or one below it, are gone; returns how many are left. */
static uint32_t drop(struct lane_turn *t, uint32_t live)
{
	const uint32_t layer = t->view.lane / t->turn->n_kv_heads;
	uint32_t left = live;

	for (uint32_t at = 0; at < live; at++) {
		const uint32_t from = mark_at(t, t->lane->slot[at].own_pos) >> 9;

		if (from && from - 1 <= layer) {
			t->lane->slot[at].own_pos = -1;
			left--;
		}
	}
	compact(t->s, t->lane, left, live);
	t->lane->meaningful = left;
	t->lane->head = (struct gpu_lane){ left, 0 };
	t->turn->live[t->view.lane] = left;
	return left;
}

static double worth(const struct lane_turn *t, uint32_t at)
{
	return evict_n_credit(t->turn->rule.policy) ? (double)t->lane->slot[at].credit[0] : 0.0;
}

static void settle(struct lane_turn *t)
{
	const struct evict_rule *rule = &t->turn->rule;

	for (uint32_t j = 0; j < t->turn->appended; j++) {
		const uint32_t at = gpu_slot_of(t->lane->head, t->lane->next, j);
		struct oracle_slot *slot = &t->lane->slot[at];

		slot->own_pos = t->turn->pos + (int32_t)j;
		memset(slot->credit, 0, sizeof(slot->credit));
		for (uint32_t k = 0; k < evict_n_trait(rule->policy); k++)
			if (evict_trait_once(rule->trait[k]))
				slot->credit[evict_n_credit(rule->policy) + k] = once(t, rule->trait[k], at);
	}
}

static void fold(struct lane_turn *t, uint32_t live)
{
	if (evict_has_heat_figure(t->turn->rule.policy))
		t->view.heat = figures(t, live, 0);
	for (uint32_t at = 0; at < live; at++) {
		struct evict_slot view = slot_view(t, at, 1);

		evict_fold(&t->turn->rule, &t->view, &view);
		memcpy(t->lane->slot[at].credit, view.credit, evict_n_credit(t->turn->rule.policy) * sizeof(float));
	}
	for (uint32_t at = 0; at < live; at++)
		memset(t->lane->slot[at].heat, 0, sizeof(t->lane->slot[at].heat));
	lane_traits(t, live);
}

static void remove_least(struct lane_turn *t, uint32_t live, struct gpu_turn_stats *stats, uint8_t *named)
{
	uint32_t *gone = zeroed(live, sizeof(*gone)), n = 0;

	memset(named, 0, t->s->max_slots);
	before_ranking(t, live);
	for (uint32_t i = t->plan->keep; i < live; i++) {
		const uint32_t at = least(t, live, named);

		stats->credit_leaving += worth(t, at);
		named[at] = 1;
	}
	for (uint32_t at = 0; at < live; at++)
		if (named[at])
			gone[n++] = at;
	if (t->turn->rule.merge)
		merge(t, gone, n, live);
	for (uint32_t i = 0; i < n; i++)
		t->lane->slot[gone[i]].own_pos = -1;
	free(gone);
}

static void name_least(struct lane_turn *t, struct gpu_turn_stats *stats, uint8_t *named)
{
	before_ranking(t, t->plan->keep);
	for (uint32_t i = 0; i < t->plan->victims; i++) {
		const uint32_t at = least(t, t->plan->keep, named);

		stats->credit_leaving += worth(t, at);
		named[at] = 1;
		t->lane->next[i] = at;
	}
	if (t->turn->rule.merge)
		merge(t, t->lane->next, t->plan->victims, t->plan->keep);
}

static void select_lane(struct lane_turn *t, unsigned what, struct gpu_turn_stats *stats, uint8_t *named)
{
	struct oracle_session *s = t->s;
	struct oracle_lane *lane = t->lane;
	const struct gpu_plan *plan = t->plan;
	uint32_t live = gpu_live(lane->head, t->turn->appended), at;

	assert(live <= s->max_slots && (what & GPU_DROP || plan->keep <= live) && plan->victims <= plan->keep);
	if (what & GPU_SETTLE)
		settle(t);
	if (what & GPU_DROP)
		live = drop(t, live);
	t->view.live = live;
	t->view.keep = t->plan->keep < live ? t->plan->keep : live;
	if (what & GPU_FOLD)
		fold(t, live);
	if (what & GPU_REMOVE)
		remove_least(t, live, stats, named);
	if (what & GPU_COMPACT) {
		compact(s, lane, plan->keep, live);
		lane->meaningful = plan->keep;
	}
	memset(named, 0, s->max_slots);
	if (what & GPU_NEXT)
		name_least(t, stats, named);
	for (at = 0; at < live; at++)
		if (lane->slot[at].own_pos >= 0 && !named[at])
			stats->credit_kept += worth(t, at);
	if (what & GPU_NEXT) {
		lane->head = (struct gpu_lane){ .len = plan->keep, .fresh = plan->fresh };
		lane->meaningful = s->max_slots;
	}
}

void oracle_select(struct oracle_session *s, const struct gpu_turn *turn, unsigned what, struct gpu_turn_stats *stats)
{
	struct gpu_turn_stats unused, *sum = stats ? stats : &unused;
	uint8_t *named = zeroed(s->max_slots, 1);
	float *pooled = zeroed(s->max_slots, sizeof(*pooled));

	assert(turn->n_lanes == s->table.n_lanes);
	*sum = (struct gpu_turn_stats){ 0 };
	for (uint32_t l = 0; l < turn->n_lanes; l++) {
		struct lane_turn t = { .s = s, .turn = turn, .plan = &turn->plan[l], .lane = &s->lane[l], .pooled = pooled };

		t.view = (struct evict_lane){ .lane = l, .now = turn->pos + (int32_t)turn->appended, .appended = turn->appended,
					      .tag = mark_at(&t, turn->pos + (int32_t)turn->appended - 1) & 255,
					      .observe = s->table.n_heat ? s->table.observe : 0, .cut = UINT64_MAX };
		for (uint32_t i = 0; i < turn->appended && t.view.observe; i++)
			t.view.queries += ((uint32_t)turn->pos + i) % t.view.observe == 0;
		t.view.constant = evict_constant(&turn->rule, &t.view);
		select_lane(&t, what, sum, named);
	}
	free(pooled);
	free(named);
}
