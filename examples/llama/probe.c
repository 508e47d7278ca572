#include "examples/llama/probe.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "examples/llama/team.h"

#define BLOCK 3u			/* windows that go through a layer together: their rows stay in the second-level cache */
#define ROWS (BLOCK * PROBE_WINDOW)
#define LOOKED (PROBE_WINDOW / PROBE_EVERY)

enum { Q, K, V, O, GATE, UP, DOWN, N_WEIGHTS };

/* A thread's arrays. */
struct scratch {
	float *x, *q, *k, *v, *att, *gate, *up;		/* [ROWS][...] */
	float *head_q, *head_out, *scores;		/* [32 * group][head_dim], .., [tokens] */
	float *own_k, *own_v;				/* a window's keys and values of one head, in panels */
	float *logits;					/* [BLOCK * LOOKED][n_vocab] */
};

struct probe {
	const struct model *model;
	struct team *team;
	uint32_t tokens, n_samples, most;
	uint32_t q_dims, kv_dims;
	uint32_t *sample;
	struct scratch *scratch;	/* [team] */
	float *weight[N_WEIGHTS], *output;	/* panels, of the layer that is loaded; of the vocabulary */
	float *cosine, *sine;		/* [tokens][rope_dims / 2] */
	float *keys;			/* [layer][KV head]: panels of 16 tokens, [tokens / 16][head_dim][16] */
	float *values;			/* [layer][KV head]: panels of 16 channels, [head_dim / 16][tokens][16] */
	float *queries;			/* [layer][tokens][q_dims] */
	float *h;			/* [tokens or n_samples * most * 32][n_embd] */
	float *k, *v;			/* [tokens][kv_dims], of the layer under way */
	float *in, *att;		/* [layer][n_samples][32][n_embd], .. [q_dims]: unchanged */
	float *share, *logits;		/* [n_samples][LOOKED][n_vocab]: unchanged, probabilities and their logits */
	double *lse;			/* [n_samples][LOOKED] */
	double *sum;			/* [n_samples * most] */
};

/* --- parts of a layer ------------------------------------------------------------------------------------------- */

static void multiply(const struct probe *p, const float *x, uint32_t rows, const float *panels, const struct tensor *w, float *y, int add)
{
	(void)p;
	tensor_panels(x, w->cols, rows, panels, w->rows / TENSOR_PANEL, w->cols, y, w->rows, add);
}

static void norms(const struct probe *p, const float *h, const struct tensor *weight, uint32_t rows, float *x)
{
	const struct model *m = p->model;

	for (size_t r = 0; r < rows; r++)
		tensor_norm(h + r * m->n_embd, weight->data, m->n_embd, m->rms_eps, x + r * m->n_embd);
}

/* Rows of 32 from position `pos` on. */
static void rotate(const struct probe *p, float *x, uint32_t pos, uint32_t n_heads)
{
	const uint32_t half = p->model->rope_dims / 2, d = p->model->head_dim;

	for (uint32_t r = 0; r < PROBE_WINDOW; r++) {
		const float *c = p->cosine + (size_t)(pos + r) * half, *s = p->sine + (size_t)(pos + r) * half;

		for (uint32_t h = 0; h < n_heads; h++) {
			float *head = x + ((size_t)r * n_heads + h) * d;

			for (uint32_t i = 0; i < half; i++) {
				const float a = head[2 * i], b = head[2 * i + 1];

				head[2 * i] = a * c[i] - b * s[i];
				head[2 * i + 1] = a * s[i] + b * c[i];
			}
		}
	}
}

/* @pos: [n] where each window begins. */
static void project(const struct probe *p, uint32_t layer, const float *h, const uint32_t *pos, uint32_t n, struct scratch *s, float *q,
		    float *k, float *v)
{
	const struct model_layer *l = &p->model->layer[layer];
	const uint32_t rows = n * PROBE_WINDOW;

	norms(p, h, &l->attn_norm, rows, s->x);
	multiply(p, s->x, rows, p->weight[Q], &l->q, q, 0);
	multiply(p, s->x, rows, p->weight[K], &l->k, k, 0);
	multiply(p, s->x, rows, p->weight[V], &l->v, v, 0);
	for (uint32_t i = 0; i < n; i++) {
		rotate(p, q + (size_t)i * PROBE_WINDOW * p->q_dims, pos[i], p->model->n_heads);
		rotate(p, k + (size_t)i * PROBE_WINDOW * p->kv_dims, pos[i], p->model->n_kv_heads);
	}
}

static float *keys_of(const struct probe *p, uint32_t layer, uint32_t head)
{
	return p->keys + ((size_t)layer * p->model->n_kv_heads + head) * p->tokens * p->model->head_dim;
}

static float *values_of(const struct probe *p, uint32_t layer, uint32_t head)
{
	return p->values + ((size_t)layer * p->model->n_kv_heads + head) * p->tokens * p->model->head_dim;
}

/* A window's rows of one head into panels: keys by token, values by channel with room for `room` tokens. */
static void to_panels(const struct probe *p, const float *k, const float *v, uint32_t head, uint32_t at, uint32_t room, float *keys,
		      float *values)
{
	const uint32_t d = p->model->head_dim;

	for (uint32_t r = 0; r < PROBE_WINDOW; r++) {
		const float *from_k = k + (size_t)r * p->kv_dims + head * d, *from_v = v + (size_t)r * p->kv_dims + head * d;
		const uint32_t token = at + r;

		for (uint32_t c = 0; c < d; c++) {
			keys[((size_t)(token / TENSOR_PANEL) * d + c) * TENSOR_PANEL + token % TENSOR_PANEL] = from_k[c];
			values[((size_t)(c / TENSOR_PANEL) * room + token) * TENSOR_PANEL + c % TENSOR_PANEL] = from_v[c];
		}
	}
}

/* One window's attention in one head's group: the text before `pos`, unchanged, and the window's own k, v. */
static void attend_head(const struct probe *p, uint32_t layer, uint32_t head, uint32_t pos, const float *q, const float *k, const float *v,
			float *att, struct scratch *s)
{
	const struct model *m = p->model;
	const uint32_t d = m->head_dim, rows = PROBE_WINDOW * m->group, wide = pos + PROBE_WINDOW;
	const float *values = values_of(p, layer, head);

	for (uint32_t r = 0; r < PROBE_WINDOW; r++)
		for (uint32_t i = 0; i < m->group * d; i++)
			s->head_q[(size_t)r * m->group * d + i] = q[(size_t)r * p->q_dims + head * m->group * d + i] * m->attn_scale;
	to_panels(p, k, v, head, 0, PROBE_WINDOW, s->own_k, s->own_v);
	tensor_panels(s->head_q, d, rows, keys_of(p, layer, head), pos / TENSOR_PANEL, d, s->scores, wide, 0);
	tensor_panels(s->head_q, d, rows, s->own_k, PROBE_WINDOW / TENSOR_PANEL, d, s->scores + pos, wide, 0);
	for (uint32_t r = 0; r < rows; r++) {
		const uint32_t seen = pos + r / m->group + 1;
		float *score = s->scores + (size_t)r * wide;
		const float scale = 1.0f / tensor_exps(score, seen);

		for (uint32_t t = 0; t < seen; t++)
			score[t] *= scale;
		memset(score + seen, 0, (wide - seen) * sizeof(*score));
	}
	for (uint32_t c = 0; c < d; c += TENSOR_PANEL) {
		tensor_panels(s->scores, wide, rows, values + (size_t)c * p->tokens, 1, pos, s->head_out + c, d, 0);
		tensor_panels(s->scores + pos, wide, rows, s->own_v + (size_t)c * PROBE_WINDOW, 1, PROBE_WINDOW, s->head_out + c, d, 1);
	}
	for (uint32_t r = 0; r < PROBE_WINDOW; r++)
		memcpy(att + (size_t)r * p->q_dims + head * m->group * d, s->head_out + (size_t)r * m->group * d,
		       m->group * d * sizeof(*att));
}

static void attend(const struct probe *p, uint32_t layer, uint32_t pos, const float *q, const float *k, const float *v, float *att,
		   struct scratch *s)
{
	for (uint32_t head = 0; head < p->model->n_kv_heads; head++)
		attend_head(p, layer, head, pos, q, k, v, att, s);
}

/* What comes behind attention. */
static void finish(const struct probe *p, uint32_t layer, float *h, const float *att, uint32_t rows, struct scratch *s)
{
	const struct model *m = p->model;
	const struct model_layer *l = &m->layer[layer];

	multiply(p, att, rows, p->weight[O], &l->o, h, 1);
	norms(p, h, &l->ffn_norm, rows, s->x);
	multiply(p, s->x, rows, p->weight[GATE], &l->gate, s->gate, 0);
	multiply(p, s->x, rows, p->weight[UP], &l->up, s->up, 0);
	tensor_silu_mul(s->gate, s->up, rows * m->n_ff);
	multiply(p, s->gate, rows, p->weight[DOWN], &l->down, h, 1);
}

/* --- weights ------------------------------------------------------------------------------------------------------ */

struct load {
	struct probe *p;
	const struct tensor *w;
	float *panels;
};

static void load_part(void *arg, unsigned index, unsigned n)
{
	const struct load *l = arg;
	unsigned from, to;

	team_share(index, n, l->w->rows / TENSOR_PANEL, 1, &from, &to);
	tensor_to_panels(l->w, from, to, l->panels, l->p->scratch[index].gate);
}

static void load(struct probe *p, const struct tensor *w, float *panels)
{
	struct load l = { p, w, panels };

	team_run(p->team, load_part, &l);
}

static void load_layer(struct probe *p, uint32_t layer)
{
	const struct model_layer *l = &p->model->layer[layer];
	const struct tensor *const w[N_WEIGHTS] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };

	for (int i = 0; i < N_WEIGHTS; i++)
		load(p, w[i], p->weight[i]);
}

/* --- predictions -------------------------------------------------------------------------------------------------- */

/* Logits of the predictions looked at in n windows. */
static void predict(const struct probe *p, const float *h, uint32_t n, struct scratch *s, float *logits)
{
	const struct model *m = p->model;

	for (uint32_t i = 0; i < n * LOOKED; i++)
		tensor_norm(h + ((size_t)i * PROBE_EVERY + PROBE_EVERY - 1) * m->n_embd, m->out_norm.data, m->n_embd, m->rms_eps,
			    s->x + (size_t)i * m->n_embd);
	tensor_panels(s->x, m->n_embd, n * LOOKED, p->output, m->n_vocab / TENSOR_PANEL, m->n_embd, logits, m->n_vocab, 0);
}

/* sum of p (z - z'), in the order of eight partial sums. */
static double weighted_difference(const float *share, const float *z, const float *other, uint32_t n)
{
	double part[8] = { 0 };

	for (uint32_t i = 0; i < n; i += 8)
		for (uint32_t k = 0; k < 8; k++)
			part[k] += (double)(share[i + k] * (z[i + k] - other[i + k]));
	return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

/* --- reading ------------------------------------------------------------------------------------------------------ */

struct read {
	struct probe *p;
	uint32_t layer;
};

static uint32_t blocks(uint32_t windows)
{
	return (windows + BLOCK - 1) / BLOCK;
}

static void read_projections(void *arg, unsigned index, unsigned n)
{
	const struct read *a = arg;
	struct probe *p = a->p;
	const uint32_t windows = p->tokens / PROBE_WINDOW;

	for (uint32_t b = index; b < blocks(windows); b += n) {
		const uint32_t first = b * BLOCK, count = windows - first < BLOCK ? windows - first : BLOCK;
		const size_t row = (size_t)first * PROBE_WINDOW;
		uint32_t pos[BLOCK];

		for (uint32_t i = 0; i < count; i++)
			pos[i] = (first + i) * PROBE_WINDOW;
		project(p, a->layer, p->h + row * p->model->n_embd, pos, count, &p->scratch[index],
			p->queries + ((size_t)a->layer * p->tokens + row) * p->q_dims, p->k + row * p->kv_dims, p->v + row * p->kv_dims);
		for (uint32_t i = 0; i < count; i++)
			for (uint32_t head = 0; head < p->model->n_kv_heads; head++)
				to_panels(p, p->k + (row + i * PROBE_WINDOW) * p->kv_dims, p->v + (row + i * PROBE_WINDOW) * p->kv_dims, head,
					  pos[i], p->tokens, keys_of(p, a->layer, head), values_of(p, a->layer, head));
	}
}

static void keep_sample(struct probe *p, uint32_t layer, uint32_t window, const float *h, const float *att)
{
	for (uint32_t i = 0; i < p->n_samples; i++) {
		const size_t row = ((size_t)layer * p->n_samples + i) * PROBE_WINDOW;

		if (p->sample[i] != window)
			continue;
		memcpy(p->in + row * p->model->n_embd, h, PROBE_WINDOW * p->model->n_embd * sizeof(*h));
		memcpy(p->att + row * p->q_dims, att, PROBE_WINDOW * p->q_dims * sizeof(*att));
	}
}

static void read_rest(void *arg, unsigned index, unsigned n)
{
	const struct read *a = arg;
	struct probe *p = a->p;
	struct scratch *s = &p->scratch[index];
	const uint32_t windows = p->tokens / PROBE_WINDOW;

	for (uint32_t b = index; b < blocks(windows); b += n) {
		const uint32_t first = b * BLOCK, count = windows - first < BLOCK ? windows - first : BLOCK;

		for (uint32_t i = 0; i < count; i++) {
			const size_t row = (size_t)(first + i) * PROBE_WINDOW;
			float *att = s->att + (size_t)i * PROBE_WINDOW * p->q_dims;

			attend(p, a->layer, (uint32_t)row, p->queries + ((size_t)a->layer * p->tokens + row) * p->q_dims,
			       p->k + row * p->kv_dims, p->v + row * p->kv_dims, att, s);
			keep_sample(p, a->layer, first + i, p->h + row * p->model->n_embd, att);
		}
		finish(p, a->layer, p->h + (size_t)first * PROBE_WINDOW * p->model->n_embd, s->att, count * PROBE_WINDOW, s);
	}
}

static void read_predictions(void *arg, unsigned index, unsigned n)
{
	const struct read *a = arg;
	struct probe *p = a->p;
	const uint32_t vocab = p->model->n_vocab;

	for (uint32_t i = index; i < p->n_samples; i += n) {
		float *logits = p->logits + (size_t)i * LOOKED * vocab, *share = p->share + (size_t)i * LOOKED * vocab;

		predict(p, p->h + (size_t)p->sample[i] * PROBE_WINDOW * p->model->n_embd, 1, &p->scratch[index], logits);
		for (uint32_t r = 0; r < LOOKED; r++) {
			const double lse = tensor_lse(logits + (size_t)r * vocab, vocab);
			double sum = 0.0;
			float scale;

			for (uint32_t t = 0; t < vocab; t++) {
				share[(size_t)r * vocab + t] = expf((float)((double)logits[(size_t)r * vocab + t] - lse));
				sum += (double)share[(size_t)r * vocab + t];
			}
			scale = (float)(1.0 / sum);
			for (uint32_t t = 0; t < vocab; t++)
				share[(size_t)r * vocab + t] *= scale;
			p->lse[i * LOOKED + r] = lse;
		}
	}
}

void probe_read(struct probe *p, const int32_t *ids)
{
	struct read a = { p, 0 };

	for (uint32_t t = 0; t < p->tokens; t++)
		tensor_row(&p->model->embd, (uint32_t)ids[t], p->h + (size_t)t * p->model->n_embd);
	for (a.layer = 0; a.layer < p->model->n_layers; a.layer++) {
		load_layer(p, a.layer);
		team_run(p->team, read_projections, &a);
		team_run(p->team, read_rest, &a);
	}
	team_run(p->team, read_predictions, &a);
}

void probe_rows(const struct probe *p, uint32_t layer, uint32_t first, uint32_t n, float *q, float *k, float *v)
{
	const uint32_t d = p->model->head_dim;

	memcpy(q, p->queries + ((size_t)layer * p->tokens + first) * p->q_dims, (size_t)n * p->q_dims * sizeof(*q));
	for (uint32_t head = 0; head < p->model->n_kv_heads; head++) {
		const float *keys = keys_of(p, layer, head), *values = values_of(p, layer, head);

		for (uint32_t r = 0; r < n; r++)
			for (uint32_t c = 0; c < d; c++) {
				const uint32_t token = first + r;

				k[(size_t)r * p->kv_dims + head * d + c] =
					keys[((size_t)(token / TENSOR_PANEL) * d + c) * TENSOR_PANEL + token % TENSOR_PANEL];
				v[(size_t)r * p->kv_dims + head * d + c] =
					values[((size_t)(c / TENSOR_PANEL) * p->tokens + token) * TENSOR_PANEL + c % TENSOR_PANEL];
			}
	}
}

/* --- changing ----------------------------------------------------------------------------------------------------- */

struct alter {
	struct probe *p;
	uint32_t layer, from;		/* the layer under way, and the one that was changed */
	const struct probe_change *change;
	uint32_t n;
};

/* The changed layer: attention is known. Unit u is sample u / n, alternative u % n. */
static void alter_first(struct alter *a, uint32_t first, uint32_t count, struct scratch *s)
{
	struct probe *p = a->p;
	const struct model *m = p->model;
	const size_t group = (size_t)m->group * m->head_dim;

	for (uint32_t i = 0; i < count; i++) {
		const uint32_t sample = (first + i) / a->n;
		const struct probe_change *c = &a->change[(first + i) % a->n];
		const size_t row = ((size_t)a->layer * p->n_samples + sample) * PROBE_WINDOW;
		float *att = s->att + (size_t)i * PROBE_WINDOW * p->q_dims;

		memcpy(p->h + (size_t)(first + i) * PROBE_WINDOW * m->n_embd, p->in + row * m->n_embd,
		       PROBE_WINDOW * m->n_embd * sizeof(float));
		memcpy(att, p->att + row * p->q_dims, PROBE_WINDOW * p->q_dims * sizeof(float));
		for (uint32_t r = 0; r < PROBE_WINDOW; r++)
			memcpy(att + (size_t)r * p->q_dims + c->head * group,
			       c->att + ((size_t)sample * PROBE_WINDOW + r) * p->q_dims + c->head * group, group * sizeof(float));
	}
}

static void alter_layer(void *arg, unsigned index, unsigned n)
{
	struct alter *a = arg;
	struct probe *p = a->p;
	struct scratch *s = &p->scratch[index];
	const uint32_t units = p->n_samples * a->n;

	for (uint32_t b = index; b < blocks(units); b += n) {
		const uint32_t first = b * BLOCK, count = units - first < BLOCK ? units - first : BLOCK;
		float *h = p->h + (size_t)first * PROBE_WINDOW * p->model->n_embd;
		uint32_t pos[BLOCK];

		if (a->layer == a->from) {
			alter_first(a, first, count, s);
		} else {
			for (uint32_t i = 0; i < count; i++)
				pos[i] = p->sample[(first + i) / a->n] * PROBE_WINDOW;
			project(p, a->layer, h, pos, count, s, s->q, s->k, s->v);
			for (uint32_t i = 0; i < count; i++) {
				const size_t row = (size_t)i * PROBE_WINDOW;

				attend(p, a->layer, pos[i], s->q + row * p->q_dims, s->k + row * p->kv_dims, s->v + row * p->kv_dims,
				       s->att + row * p->q_dims, s);
			}
		}
		finish(p, a->layer, h, s->att, count * PROBE_WINDOW, s);
	}
}

static void alter_predictions(void *arg, unsigned index, unsigned n)
{
	struct alter *a = arg;
	struct probe *p = a->p;
	struct scratch *s = &p->scratch[index];
	const uint32_t units = p->n_samples * a->n, vocab = p->model->n_vocab;

	for (uint32_t b = index; b < blocks(units); b += n) {
		const uint32_t first = b * BLOCK, count = units - first < BLOCK ? units - first : BLOCK;

		predict(p, p->h + (size_t)first * PROBE_WINDOW * p->model->n_embd, count, s, s->logits);
		for (uint32_t i = 0; i < count; i++) {
			const size_t row = (size_t)((first + i) / a->n) * LOOKED;
			double sum = 0.0;

			for (uint32_t r = 0; r < LOOKED; r++) {
				const float *z = s->logits + ((size_t)i * LOOKED + r) * vocab;

				sum += weighted_difference(p->share + (row + r) * vocab, p->logits + (row + r) * vocab, z, vocab) +
				       tensor_lse(z, vocab) - p->lse[row + r];
			}
			p->sum[first + i] = sum;
		}
	}
}

void probe_change(struct probe *p, uint32_t layer, const struct probe_change *change, uint32_t n, double *kl)
{
	struct alter a = { p, layer, layer, change, n };

	for (; a.layer < p->model->n_layers; a.layer++) {
		load_layer(p, a.layer);
		team_run(p->team, alter_layer, &a);
	}
	team_run(p->team, alter_predictions, &a);
	for (uint32_t i = 0; i < n; i++) {
		kl[i] = 0.0;
		for (uint32_t w = 0; w < p->n_samples; w++)
			kl[i] += p->sum[w * n + i];
		kl[i] /= (double)p->n_samples * LOOKED;
	}
}

/* --- memory ------------------------------------------------------------------------------------------------------- */

static float *floats(size_t n, int *err)
{
	float *x = *err ? NULL : aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64);

	if (!x)
		*err = -ENOMEM;
	return x;
}

static int make_scratch(struct probe *p, struct scratch *s)
{
	const struct model *m = p->model;
	const size_t rows = ROWS, group_rows = (size_t)PROBE_WINDOW * m->group, d = m->head_dim;
	int err = 0;

	s->x = floats(rows * m->n_embd, &err);
	s->q = floats(rows * p->q_dims, &err);
	s->k = floats(rows * p->kv_dims, &err);
	s->v = floats(rows * p->kv_dims, &err);
	s->att = floats(rows * p->q_dims, &err);
	s->gate = floats(rows * m->n_ff, &err);
	s->up = floats(rows * m->n_ff, &err);
	s->head_q = floats(group_rows * d, &err);
	s->head_out = floats(group_rows * d, &err);
	s->scores = floats(group_rows * p->tokens, &err);
	s->own_k = floats(PROBE_WINDOW * d, &err);
	s->own_v = floats(PROBE_WINDOW * d, &err);
	s->logits = floats((size_t)BLOCK * LOOKED * m->n_vocab, &err);
	return err;
}

static int make_arrays(struct probe *p)
{
	const struct model *m = p->model;
	const struct model_layer *l = &m->layer[0];
	const struct tensor *const w[N_WEIGHTS] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };
	const size_t layers = m->n_layers, looked = (size_t)p->n_samples * LOOKED, units = (size_t)p->n_samples * p->most * PROBE_WINDOW;
	int err = 0;

	for (int i = 0; i < N_WEIGHTS; i++)
		p->weight[i] = floats(tensor_panel_floats(w[i]->rows, w[i]->cols), &err);
	p->output = floats(tensor_panel_floats(m->n_vocab, m->n_embd), &err);
	p->cosine = floats((size_t)p->tokens * (m->rope_dims / 2), &err);
	p->sine = floats((size_t)p->tokens * (m->rope_dims / 2), &err);
	p->keys = floats(layers * p->tokens * p->kv_dims, &err);
	p->values = floats(layers * p->tokens * p->kv_dims, &err);
	p->queries = floats(layers * p->tokens * p->q_dims, &err);
	p->h = floats((units > p->tokens ? units : p->tokens) * m->n_embd, &err);
	p->k = floats((size_t)p->tokens * p->kv_dims, &err);
	p->v = floats((size_t)p->tokens * p->kv_dims, &err);
	p->in = floats(layers * p->n_samples * PROBE_WINDOW * m->n_embd, &err);
	p->att = floats(layers * p->n_samples * PROBE_WINDOW * p->q_dims, &err);
	p->share = floats(looked * m->n_vocab, &err);
	p->logits = floats(looked * m->n_vocab, &err);
	p->lse = malloc(looked * sizeof(*p->lse));
	p->sum = malloc((size_t)p->n_samples * p->most * sizeof(*p->sum));
	for (unsigned i = 0; i < team_size(p->team) && !err; i++)
		err = make_scratch(p, &p->scratch[i]);
	return p->lse && p->sum ? err : -ENOMEM;
}

static int fits(const struct model *m)
{
	return m->n_embd % TENSOR_PANEL == 0 && m->n_ff % TENSOR_PANEL == 0 && m->n_vocab % TENSOR_PANEL == 0 &&
	       m->head_dim % TENSOR_PANEL == 0;
}

int probe_new(const struct model *m, uint32_t tokens, const uint32_t *sample, uint32_t n_samples, uint32_t most, unsigned threads,
	      struct probe **out)
{
	struct probe *p = fits(m) ? calloc(1, sizeof(*p)) : NULL;
	int err = p ? team_new(threads ? threads : 1, &p->team) : fits(m) ? -ENOMEM : -ENOTSUP;

	*out = p;
	if (err)
		return err;
	p->model = m;
	p->tokens = tokens;
	p->n_samples = n_samples;
	p->most = most;
	p->q_dims = m->n_heads * m->head_dim;
	p->kv_dims = m->n_kv_heads * m->head_dim;
	p->sample = malloc(n_samples * sizeof(*sample));
	p->scratch = calloc(team_size(p->team), sizeof(*p->scratch));
	if (!p->sample || !p->scratch)
		return -ENOMEM;
	memcpy(p->sample, sample, n_samples * sizeof(*sample));
	err = make_arrays(p);
	if (err)
		return err;
	for (uint32_t t = 0; t < tokens; t++)
		model_rope(m, t, p->cosine + (size_t)t * (m->rope_dims / 2), p->sine + (size_t)t * (m->rope_dims / 2));
	load(p, &m->output, p->output);
	return 0;
}

static void free_scratch(struct scratch *s)
{
	float *all[] = { s->x, s->q, s->k, s->v, s->att, s->gate, s->up, s->head_q, s->head_out, s->scores, s->own_k, s->own_v, s->logits };

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		free(all[i]);
}

void probe_free(struct probe *p)
{
	if (!p)
		return;
	float *all[] = { p->output, p->cosine, p->sine, p->keys, p->values, p->queries, p->h, p->k, p->v, p->in, p->att, p->share, p->logits };

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		free(all[i]);
	for (int i = 0; i < N_WEIGHTS; i++)
		free(p->weight[i]);
	for (unsigned i = 0; p->scratch && i < team_size(p->team); i++)
		free_scratch(&p->scratch[i]);
	free(p->scratch);
	free(p->lse);
	free(p->sum);
	free(p->sample);
	team_free(p->team);
	free(p);
}
