/*
 * Every rank and merge against its formula: the case of research/methods.md, appendix A, in double precision straight from the attention
 * matrix. Three windows of 8 tokens go through oracle_select(), which tests/unit/gpu/test_select shows to be what the devices do;
 * the order in which slots leave must be that of the formula's values. Where appendix A prints figures, they are compared, too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "evict/evict.h"
#include "tests/lib/oracle.h"

enum { TOKENS = 24, DIM = 8, KV_HEADS = 2, GROUP = 2, HEADS = KV_HEADS * GROUP, SEED = 5 };

static float q[TOKENS][HEADS][DIM], k[TOKENS][KV_HEADS][DIM], v[TOKENS][KV_HEADS][DIM];
static double p[HEADS][TOKENS][TOKENS];		/* [head][query][key] */

static float next_number(uint32_t *s)
{
	*s = 1664525u * *s + 1013904223u;
	return (float)(2.0 * ((double)(*s >> 8) / 16777216.0) - 1.0);
}

static int make_case(void **state)
{
	uint32_t s = 1;

	(void)state;
	for (int h = 0; h < HEADS; h++)
		for (int i = 0; i < TOKENS; i++)
			for (int c = 0; c < DIM; c++)
				q[i][h][c] = 3.0f * next_number(&s);
	for (int h = 0; h < KV_HEADS; h++)
		for (int i = 0; i < TOKENS; i++)
			for (int c = 0; c < DIM; c++)
				k[i][h][c] = next_number(&s);
	for (int h = 0; h < KV_HEADS; h++)
		for (int i = 0; i < TOKENS; i++)
			for (int c = 0; c < DIM; c++)
				v[i][h][c] = next_number(&s);
	for (int h = 0; h < HEADS; h++) {
		for (int i = 0; i < TOKENS; i++) {
			double sum = 0.0;

			for (int j = 0; j <= i; j++) {
				double dot = 0.0;

				for (int c = 0; c < DIM; c++)
					dot += (double)q[i][h][c] * (double)k[j][h / GROUP][c];
				p[h][i][j] = exp(dot / sqrt((double)DIM));
				sum += p[h][i][j];
			}
			for (int j = 0; j <= i; j++)
				p[h][i][j] /= sum;
		}
	}
	return 0;
}

/* --- running a policy ------------------------------------------------------------------------------------------------------------ */

struct run {
	struct evict_rule rule;
	struct oracle_session session;
	struct gpu_plan plan[KV_HEADS];
	uint32_t mark[TOKENS];
};

static int is_image(int j)
{
	return j >= 5 && j <= 10;
}

/* `tokens` more, from `pos` on, into new slots; then settle and fold; with victims they are named. */
static void window(struct run *r, uint32_t pos, uint32_t tokens, uint32_t victims, uint32_t recent)
{
	const struct oracle_seq seq = { .session = &r->session, .row = pos, .n = tokens, .pos = (int32_t)pos,
					.heat_from = evict_has_late_heat(r->rule.policy) ? 11 : 0 };
	const struct gpu_tensor tq = { .data = q, .type = GPU_F32, .stride = HEADS * DIM };
	const struct gpu_tensor tk = { .data = k, .type = GPU_F32, .stride = KV_HEADS * DIM };
	const struct gpu_tensor tv = { .data = v, .type = GPU_F32, .stride = KV_HEADS * DIM };
	struct gpu_turn turn = { .plan = r->plan, .n_lanes = KV_HEADS, .appended = tokens, .pos = (int32_t)pos, .rule = r->rule,
				 .marks = r->mark, .n_marks = TOKENS };
	static double out[TOKENS * HEADS * DIM], lse[TOKENS * HEADS];

	oracle_append(&seq, 0, &tk, &tv);
	oracle_attend(&seq, 0, &tq, 1.0 / sqrt((double)DIM), out, lse);
	for (int l = 0; l < KV_HEADS; l++)
		r->plan[l] = (struct gpu_plan){ .keep = pos + tokens, .fresh = TOKENS - pos - tokens, .victims = victims, .recent = recent };
	oracle_select(&r->session, &turn, GPU_SETTLE | GPU_FOLD | GPU_NEXT, NULL);
}

static void run_open(struct run *r, const char *policy, const char *merge)
{
	char why[200] = "";

	memset(r, 0, sizeof(*r));
	if (evict_parse(policy, &r->rule, why, sizeof(why)) || evict_merge_parse(merge, &r->rule, why, sizeof(why)))
		fail_msg("%s: %s", policy, why);
	r->rule.seed = SEED;
	r->rule.group = GROUP;
	r->session = (struct oracle_session){
		.shape = { .n_kv_heads = KV_HEADS, .group = GROUP, .head_dim = DIM, .slot_type = GPU_F32 },
		.table = { .n_lanes = KV_HEADS, .window = TOKENS, .n_heat = evict_n_heat(r->rule.policy),
			   .heat = { r->rule.heat[0], r->rule.heat[1] }, .observe = 1 },
		.max_slots = TOKENS, .n_credit = evict_n_arrays(r->rule.policy),
	};
	for (int j = 0; j < TOKENS; j++)
		r->mark[j] = is_image(j) ? 1 + (uint32_t)j % 3 : 0;
	oracle_session_init(&r->session);
	for (int l = 0; l < KV_HEADS; l++)
		r->session.lane[l].head.fresh = TOKENS;
}

/* Windows of `step` tokens; after the last one `victims` are named. Merges only there. */
static void run_policy(struct run *r, const char *policy, const char *merge, uint32_t step, int32_t sinks, uint32_t victims, uint32_t recent)
{
	run_open(r, policy, "none");
	r->rule.sinks = sinks;
	for (uint32_t at = 0; at < TOKENS; at += step) {
		const int last = at + step >= TOKENS;

		if (last)
			assert_int_equal(evict_merge_parse(merge, &r->rule, NULL, 0), 0);
		window(r, at, last ? TOKENS - at : step, last ? victims : 0, recent);
	}
}

static float credit(const struct run *r, int lane, int j, int array)
{
	return r->session.lane[lane].slot[j].credit[array];
}

/* The order of leaving must be that of value[], up to what float32 cannot tell apart. */
static void leaves_in_order_of(const struct run *r, int lane, const double *value, const char *what)
{
	const uint32_t *order = r->session.lane[lane].next;

	for (int i = 0; i + 1 < TOKENS; i++) {
		const double a = value[order[i]], b = value[order[i + 1]];

		if (a > b + 2e-6 * (fabs(a) + fabs(b)))
			fail_msg("%s, lane %d: slot %u (%.9g) leaves before slot %u (%.9g)", what, lane, order[i], a, order[i + 1], b);
		if (a == b && order[i] > order[i + 1])
			fail_msg("%s, lane %d: of equal slots %u leaves before %u", what, lane, order[i], order[i + 1]);
	}
}

/* Those that stay when all but eight have left. */
static void keeps(const struct run *r, int lane, const int *want, const char *what)
{
	const uint32_t *order = r->session.lane[lane].next;

	for (int i = 0; i < 8; i++) {
		int found = 0;

		for (int at = TOKENS - 8; at < TOKENS; at++)
			found |= (int)order[at] == want[i];
		if (!found)
			fail_msg("%s, lane %d: %d has left", what, lane, want[i]);
	}
}

/* --- what formulas are made of ------------------------------------------------------------------------------------------------------ */

static double group_sum(int lane, int i, int j)
{
	return p[lane * GROUP][i][j] + p[lane * GROUP + 1][i][j];
}

/* Over the queries first .. end-1. */
static double sum_of(int lane, int first, int end, int j)
{
	double sum = 0.0;

	for (int i = first; i < end; i++)
		sum += group_sum(lane, i, j);
	return sum;
}

static double max_of(int lane, int first, int end, int j)
{
	double most = 0.0;

	for (int i = first; i < end; i++)
		most = fmax(most, group_sum(lane, i, j));
	return most;
}

static double squares_of(int lane, int end, int j)
{
	double sum = 0.0;

	for (int i = 0; i < end; i++)
		for (int h = lane * GROUP; h < (lane + 1) * GROUP; h++)
			sum += p[h][i][j] * p[h][i][j];
	return sum;
}

static double norm_of(const float *row, int kind)
{
	double sum = 0.0;

	for (int c = 0; c < DIM; c++)
		sum += kind == 1 ? fabs((double)row[c]) : (double)row[c] * (double)row[c];
	return kind == 1 ? sum : sqrt(sum);
}

static double cosine(int lane, int a, int b)
{
	double dot = 0.0;

	for (int c = 0; c < DIM; c++)
		dot += (double)k[a][lane][c] * (double)k[b][lane][c];
	return dot / norm_of(k[a][lane], 2) / norm_of(k[b][lane], 2);
}

static double pooled(const double *x, int j, int kernel, int mean)
{
	double sum = 0.0, most = -1e300;

	for (int i = j - kernel / 2; i <= j + kernel / 2; i++) {
		if (i < 0 || i >= TOKENS)
			continue;
		sum += x[i];
		most = fmax(most, x[i]);
	}
	return mean ? sum / kernel : most;
}

/* R-KV's redundancy: the matrix of cosines, one entry a row taken out, column means, softmax. */
static void redundancy(int lane, double *r)
{
	static double s[TOKENS][TOKENS];
	double sum = 0.0;

	for (int i = 0; i < TOKENS; i++) {
		int last = 0;

		for (int j = 0; j < TOKENS; j++) {
			s[i][j] = i == j ? 0.0 : cosine(lane, i, j);
			if (s[i][j] > 0.5)
				last = j;
		}
		s[i][last] = 0.0;
	}
	for (int j = 0; j < TOKENS; j++) {
		r[j] = 0.0;
		for (int i = 0; i < TOKENS; i++)
			r[j] += s[i][j] / TOKENS;
		r[j] = exp(r[j]);
		sum += r[j];
	}
	for (int j = 0; j < TOKENS; j++)
		r[j] /= sum;
}

static double uniform(int lane, int now, int j)
{
	return ((double)evict_draw(SEED, (uint32_t)lane, now, j) + 0.5) / 16777216.0;
}

/* The n slots with the largest x are 1, the others 0. */
static void best(const double *x, int n, int *is)
{
	for (int j = 0; j < TOKENS; j++) {
		int above = 0;

		for (int i = 0; i < TOKENS; i++)
			above += x[i] > x[j] || (x[i] == x[j] && i > j);
		is[j] = above < n;
	}
}

/* --- formulas: value[j] of a lane after windows 0-7, 8-15, 16-23 ------------------------------------------------------------------------- */

typedef void (*formula)(int lane, double *value);

#define FORMULA(name, expression)					\
static void f_##name(int lane, double *value)				\
{									\
	for (int j = 0; j < TOKENS; j++)				\
		value[j] = (expression);				\
}

FORMULA(h2o, sum_of(lane, 0, 24, j))
FORMULA(h2o_age, sum_of(lane, 0, 24, j) / (24 - j))
FORMULA(h2o_half, sum_of(lane, 0, 24, j) / pow(24 - j, 0.75))
FORMULA(h2o_decay, sum_of(lane, 0, 8, j) * pow(0.95, 16) + sum_of(lane, 8, 16, j) * pow(0.95, 8) + sum_of(lane, 16, 24, j))
FORMULA(h2o_squared, squares_of(lane, 24, j))
FORMULA(tova, group_sum(lane, 23, j))
FORMULA(recent, sum_of(lane, 16, 24, j) / 16)
FORMULA(morphkv, max_of(lane, 16, 24, j))
FORMULA(morphkv_12, fmax(max_of(lane, 16, 24, j), fmax(max_of(lane, 8, 16, j), max_of(lane, 0, 8, j) / 3) / 3))
FORMULA(l2norm, -norm_of(k[j][lane], 2))
FORMULA(vatp, sum_of(lane, 0, 24, j) * norm_of(v[j][lane], 1))
FORMULA(vatp_l2, sum_of(lane, 0, 24, j) / (24 - j) * norm_of(v[j][lane], 2))
FORMULA(streaming, j + 0 * lane)

static void f_scissorhands(int lane, double *value)
{
	for (int j = 0; j < TOKENS; j++) {
		value[j] = 0.0;
		for (int w = 1; w < 3; w++)	/* windows=2: the last two, live 16 and 24 */
			if (j < 8 * (w + 1))
				value[j] -= max_of(lane, 8 * w, 8 * w + 8, j) / GROUP < 1.0 / (8 * (w + 1));
	}
}

/* How far value j is from the mean of those that were there when its window ended. */
static double apart(int lane, int j)
{
	const int n = j / 8 * 8 + 8;
	double square = 0.0;

	for (int c = 0; c < DIM; c++) {
		double mean = 0.0;

		for (int i = 0; i < n; i++)
			mean += v[i][lane][c] / (double)n;
		square += (v[j][lane][c] - mean) * (v[j][lane][c] - mean);
	}
	return sqrt(square);
}

/* far=10: windows of 8, by the distance to the middle of what lies behind the slot. Sessions of so few slots spare none. */
static void f_ebb(int lane, double *value)
{
	for (int j = 0; j < TOKENS; j++) {
		double weights = 0.0;

		value[j] = 0.0;
		for (int w = j / 8; w < 3; w++) {
			const int first = j > 8 * w ? j : 8 * w, end = 8 * w + 8;

			value[j] += sum_of(lane, first, end, j) * fmin((first + end) / 2.0 - j, 10.0);
		}
		for (double d = 0.0005; d < 24 - j; d += 0.001)	/* the integral of min(distance, far) */
			weights += 0.001 * fmin(d, 10.0);
		value[j] *= apart(lane, j) / weights;
	}
}

static void f_roco(int lane, double *value)
{
	double mean[TOKENS], std[TOKENS];
	int spared[TOKENS];

	for (int j = 0; j < TOKENS; j++) {
		mean[j] = sum_of(lane, 0, 24, j) / (GROUP * (24 - j));
		std[j] = sqrt(fmax(squares_of(lane, 24, j) / (GROUP * (24 - j)) - mean[j] * mean[j], 0.0));
	}
	best(std, 6, spared);	/* spare=0.25 of 24 */
	for (int j = 0; j < TOKENS; j++)
		value[j] = mean[j] + (spared[j] ? 100.0 : 0.0);
}

static void f_keyformer(int lane, double *value)
{
	memset(value, 0, TOKENS * sizeof(*value));
	for (int w = 0; w < 3; w++) {
		const double tau = 1.0 + 8.0 * (w + 1) / 48.0;	/* steps=48: 1 to 2 */
		double x[TOKENS], sum = 0.0;

		for (int j = 0; j < 8 * (w + 1); j++) {
			x[j] = pow(sum_of(lane, 8 * w, 8 * w + 8, j) / 16 / -log(uniform(lane, 8 * (w + 1), j)), 1 / tau);
			sum += x[j];
		}
		for (int j = 0; j < 8 * (w + 1); j++)
			value[j] += x[j] / sum;
	}
}

static void f_snapkv(int lane, double *value)
{
	double x[TOKENS];

	f_recent(lane, x);
	for (int j = 0; j < TOKENS; j++)
		value[j] = pooled(x, j, 7, 0);
}

static void f_snapkv_mean(int lane, double *value)
{
	double x[TOKENS];

	f_recent(lane, x);
	for (int j = 0; j < TOKENS; j++)
		value[j] = pooled(x, j, 5, 1);
}

static void f_rkv(int lane, double *value)
{
	double x[TOKENS], r[TOKENS];

	f_recent(lane, x);
	redundancy(lane, r);
	for (int j = 0; j < TOKENS; j++)
		value[j] = 0.1 * pooled(x, j, 7, 0) - 0.9 * r[j];
}

static void f_gkv(int lane, double *value)
{
	double f[TOKENS] = { 0 }, r[TOKENS], most_r = 0.0;

	for (int w = 0; w < 3; w++) {
		double most = 0.0;

		for (int j = 0; j < 8 * (w + 1); j++)
			most = fmax(most, sum_of(lane, 8 * w, 8 * w + 8, j));
		for (int j = 0; j < 8 * (w + 1); j++)
			f[j] = fmax(0.8 * f[j], sum_of(lane, 8 * w, 8 * w + 8, j) / most);
	}
	redundancy(lane, r);
	for (int j = 0; j < TOKENS; j++)
		most_r = fmax(most_r, r[j]);
	for (int j = 0; j < TOKENS; j++)
		value[j] = 0.5 * f[j] - 0.5 * r[j] / most_r;
}

static void stamps(int lane, int j, double *last, double *gap)
{
	*last = j;
	*gap = 0.0;
	for (int w = j / 8; w < 3; w++)
		if (max_of(lane, 8 * w, 8 * w + 8, j) / GROUP > 0.2) {
			*gap = fmax(*gap, 8 * (w + 1) - *last);
			*last = 8 * (w + 1);
		}
}

static void f_raas(int lane, double *value)
{
	double gap;

	for (int j = 0; j < TOKENS; j++)
		stamps(lane, j, &value[j], &gap);
}

static void f_lazy(int lane, double *value)
{
	for (int j = 0; j < TOKENS; j++) {
		double last, gap;

		stamps(lane, j, &last, &gap);
		value[j] = -(24 - last) / (gap + 1);
	}
}

static void f_nacl(int lane, double *value)
{
	double x[TOKENS];
	int spared[TOKENS];

	f_recent(lane, x);
	best(x, 12, spared);	/* random=0.5 */
	for (int j = 0; j < TOKENS; j++)	/* the others by x / temperature + Gumbel noise */
		value[j] = spared[j] ? 1000.0 + x[j] : x[j] / 0.05 - log(-log(uniform(lane, 24, j)));
}

static void f_keydiff(int lane, double *value)
{
	double mean[DIM] = { 0 }, length = 0.0;

	for (int j = 0; j < TOKENS; j++)
		for (int c = 0; c < DIM; c++)
			mean[c] += (double)k[j][lane][c] / norm_of(k[j][lane], 2) / TOKENS;
	for (int c = 0; c < DIM; c++)
		length += mean[c] * mean[c];
	for (int j = 0; j < TOKENS; j++) {
		value[j] = 0.0;
		for (int c = 0; c < DIM; c++)
			value[j] -= (double)k[j][lane][c] * mean[c] / norm_of(k[j][lane], 2) / sqrt(length);
	}
}

static void f_expected(int lane, double *value)
{
	for (int j = 0; j < TOKENS; j++) {
		double x[3], mean = 0.0, variance = 0.0;
		int n = 0;

		for (int w = j / 8; w < 3; w++)
			x[n++] = log(fmax(sum_of(lane, 8 * w, 8 * w + 8, j) / 16, 1e-7));
		for (int i = 0; i < n; i++)
			mean += x[i] / n;
		for (int i = 0; i < n; i++)
			variance += (x[i] - mean) * (x[i] - mean) / n;
		value[j] = exp(mean + variance / 2) * norm_of(v[j][lane], 2);
	}
}

/* Images: tokens 5 to 10. The newest token is text. */
FORMULA(look_m, sum_of(lane, 0, 24, j) - (is_image(j) ? 10000 : 0))
FORMULA(vl_cache, sum_of(lane, 11, 24, j))

/* Lists of text and of images, and at every place whose turn it is: the one that is further behind its share. */
static void f_csp_of(int lane, double cross, double *value)
{
	double x[TOKENS];

	f_recent(lane, x);
	for (int j = 0; j < TOKENS; j++) {
		int above = 0;

		for (int i = 0; i < TOKENS; i++)
			above += is_image(i) == is_image(j) && (x[i] > x[j] || (x[i] == x[j] && i > j));
		value[j] = -(above + 0.5) / (is_image(j) ? cross : 1 - cross);
	}
}

static void f_csp(int lane, double *value)
{
	f_csp_of(lane, 0.1, value);
}

static void f_csp_third(int lane, double *value)
{
	f_csp_of(lane, 1.0 / 3.0, value);
}

static void every_rank_orders_by_its_formula(void **state)
{
	static const struct { const char *policy; formula f; } cases[] = {
		{ "streaming", f_streaming }, { "full", f_streaming },
		{ "h2o", f_h2o }, { "h2o:age=1", f_h2o_age }, { "h2o:age=0.75", f_h2o_half }, { "h2o:decay=0.95", f_h2o_decay },
		{ "h2o:squared=yes", f_h2o_squared }, { "tova", f_tova }, { "scissorhands:windows=2", f_scissorhands },
		{ "roco:spare=0.25", f_roco }, { "keyformer:steps=48", f_keyformer }, { "snapkv:queries=8", f_snapkv },
		{ "snapkv:queries=8,kernel=5,mean=yes", f_snapkv_mean }, { "snapkv:queries=8,kernel=1", f_recent },
		{ "morphkv:queries=8", f_morphkv }, { "morphkv:queries=12", f_morphkv_12 }, { "morphkv:sum=yes,queries=8", f_recent },
		{ "rkv:queries=8", f_rkv }, { "gkv", f_gkv }, { "raas:alpha=0.2", f_raas }, { "lazy:alpha=0.2", f_lazy },
		{ "nacl:random=0.5,temperature=0.05,queries=8", f_nacl }, { "l2norm", f_l2norm }, { "vatp", f_vatp },
		{ "vatp:age=1,l2=yes", f_vatp_l2 }, { "keydiff", f_keydiff }, { "expected", f_expected }, { "cam:queries=8", f_recent },
		{ "d2o", f_h2o }, { "look-m", f_look_m }, { "vl-cache", f_vl_cache }, { "csp:queries=8", f_csp },
		{ "csp:queries=8,cross=0.33333334", f_csp_third }, { "ebb:far=10", f_ebb },
	};
	uint32_t seen = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct run r;

		run_policy(&r, cases[i].policy, "none", 8, 0, TOKENS, 0);
		seen |= 1u << r.rule.policy;
		for (int lane = 0; lane < KV_HEADS; lane++) {
			double value[TOKENS];

			cases[i].f(lane, value);
			leaves_in_order_of(&r, lane, value, cases[i].policy);
		}
		oracle_session_fini(&r.session);
	}
	/* random has figures of its own in test_rule, lagkv below */
	assert_int_equal(seen | 1u << EVICT_random | 1u << EVICT_lagkv, (1u << EVICT_N_POLICIES) - 1u);
}

/* Of any number that stay, images have their share, to less than one slot either way, as long as there are enough of both. */
static void csp_gives_each_side_its_share(void **state)
{
	struct run r;

	(void)state;
	for (int percent = 5; percent < 100; percent += 5) {
		char policy[64];

		snprintf(policy, sizeof(policy), "csp:queries=8,cross=0.%02d", percent);
		run_policy(&r, policy, "none", 8, 0, TOKENS, 0);
		for (int lane = 0; lane < KV_HEADS; lane++) {
			int images = 0;

			for (int stay = 1; stay <= TOKENS; stay++) {
				images += is_image((int)r.session.lane[lane].next[TOKENS - stay]);
				if (images < 6 && stay - images < 18 && fabs(images - stay * percent / 100.0) >= 1.0)
					fail_msg("cross %d%%, lane %d: %d images of %d", percent, lane, images, stay);
			}
		}
		oracle_session_fini(&r.session);
	}
}

/* --- appendix A, as printed ------------------------------------------------------------------------------------------------------------ */

static void near(double got, double want, const char *what)
{
	if (fabs(got - want) > 3e-6)
		fail_msg("%s: %.9g, printed %.9g", what, got, want);
}

static void appendix_a_is_met(void **state)
{
	static const double observed[2][3] = { { 0.126157, 0.124991, 0.092346 }, { 0.182663, 0.083302, 0.099662 } };
	static const double snapkv[2][4] = { { 0.108960, 0.142917, 0.179339, 0.195905 }, { 0.107323, 0.158779, 0.180200, 0.159427 } };
	static const double rkv[2][3] = { { 0.040630, 0.037084, 0.042341 }, { 0.043468, 0.041440, 0.042420 } };
	static const double lag[2][12] = { { 1, 1, .2, .8, .6, 0, .4, .8, 0, .2, .4, .6 }, { 1, 1, .8, .6, .4, .2, 0, 0, .4, .6, .2, .8 } };
	static const int kept[3][2][8] = {
		{ { 0, 1, 2, 3, 4, 5, 6, 8 }, { 0, 1, 2, 3, 4, 5, 11, 12 } },		/* observed attention: h2o by age */
		{ { 1, 7, 10, 11, 13, 14, 17, 22 }, { 3, 4, 10, 14, 16, 18, 21, 22 } },	/* Knorm */
		{ { 0, 1, 3, 7, 10, 11, 14, 17 }, { 1, 11, 12, 16, 17, 18, 22, 23 } },	/* KeyDiff */
	};
	static const char *const names[] = { "h2o:age=1", "l2norm", "keydiff" };
	struct run r;

	(void)state;
	for (int i = 0; i < 3; i++) {
		run_policy(&r, names[i], "none", TOKENS, 0, TOKENS, 0);
		for (int lane = 0; lane < KV_HEADS; lane++) {
			keeps(&r, lane, kept[i][lane], names[i]);
			for (int j = 0; j < 3 && i == 0; j++)
				near((double)credit(&r, lane, j, 0) / (24 - j) / GROUP, observed[lane][j], "observed attention");
		}
		oracle_session_fini(&r.session);
	}
	run_policy(&r, "snapkv:queries=4,kernel=5,mean=yes", "none", 4, 0, TOKENS, 0);	/* row sums there, means here: 4 times */
	for (int lane = 0; lane < KV_HEADS; lane++)
		for (int j = 0; j < 4; j++) {
			double sum = 0.0;

			for (int i = j < 2 ? 0 : j - 2; i <= j + 2; i++)
				sum += (double)credit(&r, lane, i, 0) / 5;
			near(4 * sum, snapkv[lane][j], "SnapKV");
		}
	oracle_session_fini(&r.session);
	run_policy(&r, "rkv", "none", TOKENS, 0, TOKENS, 0);
	for (int lane = 0; lane < KV_HEADS; lane++) {
		double sum = 0.0;

		for (int j = 0; j < TOKENS; j++)
			sum += exp((double)credit(&r, lane, j, 1));
		for (int j = 0; j < 3; j++)
			near(exp((double)credit(&r, lane, j, 1)) / sum, rkv[lane][j], "R-KV's redundancy");
	}
	oracle_session_fini(&r.session);
	run_policy(&r, "lagkv:lag=5", "none", TOKENS, 2, TOKENS, 0);
	for (int lane = 0; lane < KV_HEADS; lane++)
		for (int j = 0; j < TOKENS; j++)	/* 12 to 16 are not printed; behind them "7 ones" */
			if (j < 12 || j > 16)
				near((double)credit(&r, lane, j, 0), j < 12 ? lag[lane][j] : 1.0, "LagKV");
	oracle_session_fini(&r.session);
}

/* --- merges -------------------------------------------------------------------------------------------------------------------------- */

static double stored(const struct run *r, int lane, int j, int c, int is_v)
{
	const struct oracle_lane *l = &r->session.lane[lane];

	return oracle_row_load(GPU_F32, DIM, is_v ? &l->v[(size_t)j * DIM * 4] : &l->k[(size_t)j * DIM * 4], 0, (uint32_t)c);
}

static void check_row(const struct run *r, int lane, int j, int is_v, const double *want, const char *what)
{
	for (int c = 0; c < DIM; c++)
		if (fabs(stored(r, lane, j, c, is_v) - want[c]) > 2e-6)
			fail_msg("%s, lane %d, slot %d, %s[%d]: %.9g, expected %.9g", what, lane, j, is_v ? "V" : "K", c,
				 stored(r, lane, j, c, is_v), want[c]);
}

static int is_victim(const struct run *r, int lane, int j, int n)
{
	for (int i = 0; i < n; i++)
		if ((int)r->session.lane[lane].next[i] == j)
			return 1;
	return 0;
}

static void check_by_key(const struct run *r, int lane, int n, int d2o, const char *what)
{
	int target[TOKENS];
	double cos_of[TOKENS], mean = 0.0;

	for (int i = 0; i < n; i++) {
		const int e = (int)r->session.lane[lane].next[i];

		cos_of[i] = -2.0;
		for (int j = 0; j < TOKENS; j++)
			if (!is_victim(r, lane, j, n) && cosine(lane, e, j) > cos_of[i]) {
				target[i] = j;
				cos_of[i] = cosine(lane, e, j);
			}
		mean += cos_of[i] / n;
	}
	for (int j = 0; j < TOKENS; j++) {
		for (int is_v = 0; is_v < 2; is_v++) {
			const float *own = is_v ? v[j][lane] : k[j][lane];
			double to[DIM], total = d2o ? exp(1.0) : 1.0;

			for (int c = 0; c < DIM; c++)
				to[c] = total * (double)own[c];
			for (int i = 0; i < n; i++) {
				const int e = (int)r->session.lane[lane].next[i];
				const float *x = is_v ? v[e][lane] : k[e][lane];

				if (target[i] != j || (d2o && cos_of[i] < mean))
					continue;
				for (int c = 0; c < DIM; c++)
					to[c] += d2o ? exp(cos_of[i]) * (double)x[c] : ((double)x[c] + (double)own[c]) / 2;
				total += d2o ? exp(cos_of[i]) : 1.0;
			}
			for (int c = 0; c < DIM; c++)
				to[c] /= total;
			check_row(r, lane, j, is_v, to, what);
		}
	}
}

/* Values of victims into the next three survivors, by lot. Returns how many victims were merged. */
static int check_cam(const struct run *r, int lane, int n)
{
	double value[TOKENS][DIM], attention[TOKENS];
	int merged = 0;

	f_recent(lane, attention);
	for (int j = 0; j < TOKENS; j++)
		for (int c = 0; c < DIM; c++)
			value[j][c] = (double)v[j][lane][c];
	for (int i = 0; i < n; i++) {
		const int e = (int)r->session.lane[lane].next[i];
		const double u = ((double)evict_draw(~(uint32_t)SEED, (uint32_t)lane, TOKENS, e) + 0.5) / 16777216.0;
		int next[3], count = 0;
		double mean = 0.0;

		for (int j = e + 1; j < TOKENS && count < 3; j++)
			if (!is_victim(r, lane, j, n))
				next[count++] = j;
		for (int a = 0; a < count; a++)
			mean += attention[next[a]] / count;
		if (!count || u >= fmin(1.0, attention[e] / mean))
			continue;
		merged++;
		for (int a = 0; a < count; a++)
			for (int c = 0; c < DIM; c++)
				value[next[a]][c] += (double)v[e][lane][c] / 3;
	}
	for (int j = 0; j < TOKENS; j++) {
		double key[DIM];

		for (int c = 0; c < DIM; c++)
			key[c] = (double)k[j][lane][c];
		check_row(r, lane, j, 1, value[j], "cam");
		check_row(r, lane, j, 0, key, "cam");
	}
	return merged;
}

static void every_merge_makes_what_its_formula_says(void **state)
{
	int merged = 0;
	struct run r;

	(void)state;
	for (int n = 1; n <= 12; n += 11) {
		for (int d2o = 0; d2o < 2; d2o++) {
			run_policy(&r, "h2o", d2o ? "d2o" : "pivot", 8, 0, (uint32_t)n, 4);
			for (int lane = 0; lane < KV_HEADS; lane++)
				check_by_key(&r, lane, n, d2o, d2o ? "d2o" : "pivot");
			oracle_session_fini(&r.session);
		}
		run_policy(&r, "cam:queries=8", "cam:budget=3", 8, 0, (uint32_t)n, 4);
		for (int lane = 0; lane < KV_HEADS; lane++)
			merged += check_cam(&r, lane, n);
		oracle_session_fini(&r.session);
	}
	assert_in_range(merged, 1, 25);	/* by lot: some, not all of the 26 */
}

/* --- arithmetic --------------------------------------------------------------------------------------------------------------------- */

static void arithmetic_is_near_the_mathematics(void **state)
{
	(void)state;
	for (double x = -120.0; x < 120.0; x += 0.0137) {
		assert_true(fabs((double)evict_exp2((float)x) / exp2((double)(float)x) - 1.0) < 3e-7);
		assert_true(fabs((double)evict_log2((float)exp2(x)) - log2((double)(float)exp2(x))) < 2e-7 * fmax(1.0, fabs(x)));
	}
	for (double x = -20.0; x < 20.0; x += 0.00937)
		assert_true(fabs((double)evict_exp((float)x) / exp((double)(float)x) - 1.0) < 3e-6);
	for (double x = 0.001; x < 5000.0; x *= 1.01)
		for (double y = 0.0; y <= 2.0; y += 0.125)
			assert_true(fabs((double)evict_pow((float)x, (float)y) / pow((double)(float)x, y) - 1.0) < 5e-6);
	assert_true(evict_pow(3.0f, 1.0f) == 3.0f && evict_pow(0.0f, 0.0f) == 1.0f && evict_pow(0.0f, 0.5f) == 0.0f);
	assert_true(evict_exp2(-1e9f) > 0.0f && evict_exp2(1e9f) < INFINITY && evict_exp2(0.0f) == 1.0f && evict_exp2(5.0f) == 32.0f);
	assert_true(evict_log2(1.0f) == 0.0f && evict_log2(8.0f) == 3.0f && evict_log2(0.0f) == -126.0f);
	assert_true(evict_element(NAN) == 0.0f && evict_element(-INFINITY) == 0.0f && evict_element(-3.0f) == -3.0f);
	for (uint32_t observe = 1; observe < 6; observe++)
		for (int32_t pos = 0; pos < 12; pos++)
			for (uint32_t n = 0; n < 20; n++) {
				uint32_t count = 0;

				for (uint32_t i = 0; i < n; i++)
					count += ((uint32_t)pos + i) % observe == 0;
				assert_int_equal(evict_queries(observe, pos, n), count);
			}
	assert_int_equal(evict_queries(0, 5, 32), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_rank_orders_by_its_formula),
		cmocka_unit_test(csp_gives_each_side_its_share),
		cmocka_unit_test(appendix_a_is_met),
		cmocka_unit_test(every_merge_makes_what_its_formula_says),
		cmocka_unit_test(arithmetic_is_near_the_mathematics),
	};

	return cmocka_run_group_tests_name("evict golden", tests, make_case, NULL);
}
