#include "examples/llama/model.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/llama/gguf.h"

/* What loading carries along: the first failure fills `why` and makes every later step a no-op. */
struct loader {
	const struct gguf *file;
	struct model *model;
	char *why;
	size_t why_bytes;
	int err;
};

__attribute__((format(printf, 2, 3)))
static void refuse(struct loader *l, const char *format, ...)
{
	va_list args;
	int n;

	if (l->err)
		return;
	l->err = -EINVAL;
	n = snprintf(l->why, l->why_bytes, "%s: ", gguf_name(l->file));
	va_start(args, format);
	if (n >= 0 && (size_t)n < l->why_bytes)
		vsnprintf(l->why + n, l->why_bytes - (size_t)n, format, args);
	va_end(args);
}

/* A count in the metadata. @fallback: 0 makes it required. */
static uint32_t number(struct loader *l, const char *key, uint32_t fallback, uint32_t most)
{
	uint32_t value = fallback;
	int err = gguf_u32(l->file, key, &value);

	if ((err && !(err == -ENOENT && fallback)) || value == 0 || value > most) {
		refuse(l, "the metadata key %s is missing or not between 1 and %u", key, most);
		return 1;
	}
	return value;
}

static void sizes(struct loader *l)
{
	struct model *m = l->model;

	m->n_layers = number(l, "llama.block_count", 0, 1024);
	m->n_context = number(l, "llama.context_length", 0, UINT32_MAX);
	m->n_embd = number(l, "llama.embedding_length", 0, 1u << 17);
	m->n_ff = number(l, "llama.feed_forward_length", 0, 1u << 20);
	m->n_heads = number(l, "llama.attention.head_count", 0, 1024);
	m->n_kv_heads = number(l, "llama.attention.head_count_kv", m->n_heads, 1024);
	m->head_dim = number(l, "llama.attention.key_length", m->n_embd / m->n_heads ? m->n_embd / m->n_heads : 1, 1024);
	m->rope_dims = number(l, "llama.rope.dimension_count", m->head_dim, m->head_dim);
	m->rms_eps = 1e-5f;
	if (gguf_f32(l->file, "llama.attention.layer_norm_rms_epsilon", &m->rms_eps) == -EINVAL)
		refuse(l, "llama.attention.layer_norm_rms_epsilon is not a number");
	if (m->n_heads % m->n_kv_heads)
		refuse(l, "%u query heads cannot share %u KV heads evenly", m->n_heads, m->n_kv_heads);
	if (m->rope_dims % 2)
		refuse(l, "an odd number of rotated dimensions (%u)", m->rope_dims);
	m->group = m->n_heads / m->n_kv_heads;
	m->attn_scale = (float)(1.0 / sqrt((double)m->head_dim));
}

/* --- tensors ---------------------------------------------------------------------------------------------- */

static struct tensor tensor(struct loader *l, const char *name, uint32_t cols, uint32_t rows)
{
	struct tensor t = { 0 };
	int err = gguf_tensor(l->file, name, &t);

	if (err == -ENOENT)
		refuse(l, "the tensor %s is missing", name);
	else if (err)
		refuse(l, "the tensor %s is of a type that this program cannot read", name);
	else if (t.cols != cols || t.rows != rows)
		refuse(l, "the tensor %s is %u x %u instead of %u x %u", name, t.cols, t.rows, cols, rows);
	else
		l->model->weight_bytes += t.row_bytes * t.rows;
	return t;
}

static struct tensor layer_tensor(struct loader *l, uint32_t layer, const char *part, uint32_t cols, uint32_t rows)
{
	char name[64];

	snprintf(name, sizeof(name), "blk.%u.%s.weight", layer, part);
	return tensor(l, name, cols, rows);
}

static struct tensor norm(struct loader *l, const char *name)
{
	struct tensor t = tensor(l, name, l->model->n_embd, 1);

	if (!l->err && (t.type != TENSOR_F32 || (uintptr_t)t.data % sizeof(float)))
		refuse(l, "the tensor %s is not in float32", name);
	return t;
}

static void refuse_bias(struct loader *l, uint32_t layer, const char *part)
{
	struct tensor t;
	char name[64];

	snprintf(name, sizeof(name), "blk.%u.%s.bias", layer, part);
	if (gguf_tensor(l->file, name, &t) != -ENOENT)
		refuse(l, "it has biases (%s), which this program does not know", name);
}

static void layer(struct loader *l, uint32_t i)
{
	struct model *m = l->model;
	struct model_layer *at = &m->layer[i];
	uint32_t q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
	char name[64];

	snprintf(name, sizeof(name), "blk.%u.attn_norm.weight", i);
	at->attn_norm = norm(l, name);
	at->q = layer_tensor(l, i, "attn_q", m->n_embd, q);
	at->k = layer_tensor(l, i, "attn_k", m->n_embd, kv);
	at->v = layer_tensor(l, i, "attn_v", m->n_embd, kv);
	at->o = layer_tensor(l, i, "attn_output", q, m->n_embd);
	snprintf(name, sizeof(name), "blk.%u.ffn_norm.weight", i);
	at->ffn_norm = norm(l, name);
	at->gate = layer_tensor(l, i, "ffn_gate", m->n_embd, m->n_ff);
	at->up = layer_tensor(l, i, "ffn_up", m->n_embd, m->n_ff);
	at->down = layer_tensor(l, i, "ffn_down", m->n_ff, m->n_embd);
	refuse_bias(l, i, "attn_q");
	refuse_bias(l, i, "attn_k");
	refuse_bias(l, i, "attn_v");
	refuse_bias(l, i, "attn_output");
}

static void tensors(struct loader *l)
{
	struct model *m = l->model;
	struct tensor t = { 0 };

	if (gguf_tensor(l->file, "token_embd.weight", &t) || t.rows < 1) {
		refuse(l, "the tensor token_embd.weight is missing or of a type that this program cannot read");
		return;
	}
	m->n_vocab = t.rows;
	m->embd = tensor(l, "token_embd.weight", m->n_embd, m->n_vocab);
	m->out_norm = norm(l, "output_norm.weight");
	m->output = m->embd;		/* tied, unless there is one of its own */
	if (gguf_tensor(l->file, "output.weight", &t) != -ENOENT)
		m->output = tensor(l, "output.weight", m->n_embd, m->n_vocab);
	m->layer = calloc(m->n_layers, sizeof(*m->layer));
	if (!m->layer) {
		l->err = -ENOMEM;
		return;
	}
	for (uint32_t i = 0; i < m->n_layers && !l->err; i++)
		layer(l, i);
}

/* --- rotation --------------------------------------------------------------------------------------------- */

static void rope(struct loader *l)
{
	struct model *m = l->model;
	struct gguf_text scaling = { "none", 4 };
	struct tensor factors = { 0 };
	float base = 10000.0f, factor = 1.0f;
	uint32_t half = m->rope_dims / 2;
	int linear;

	gguf_f32(l->file, "llama.rope.freq_base", &base);
	gguf_string(l->file, "llama.rope.scaling.type", &scaling);
	linear = scaling.bytes == 6 && memcmp(scaling.at, "linear", 6) == 0;
	if (linear)
		gguf_f32(l->file, "llama.rope.scaling.factor", &factor);
	else if (scaling.bytes != 4 || memcmp(scaling.at, "none", 4) != 0)
		refuse(l, "it scales rotary positions by \"%.*s\"; this program knows none and linear",
		       (int)(scaling.bytes < 40 ? scaling.bytes : 40), scaling.at);
	if (!(base > 0.0f) || !(factor > 0.0f))
		refuse(l, "the rotary base or factor is not positive");
	if (gguf_tensor(l->file, "rope_freqs.weight", &factors) == 0 && (factors.type != TENSOR_F32 || factors.cols != half))
		refuse(l, "the tensor rope_freqs.weight is not float32 [%u]", half);
	m->rope_freq = calloc(half, sizeof(*m->rope_freq));
	if (!m->rope_freq) {
		l->err = -ENOMEM;
		return;
	}
	for (uint32_t i = 0; i < half; i++) {
		float by = 1.0f;

		if (!l->err && factors.data)
			memcpy(&by, (const char *)factors.data + 4 * (size_t)i, 4);
		m->rope_freq[i] = pow((double)base, -2.0 * i / m->rope_dims) / (double)factor / (double)by;
	}
}

void model_rope(const struct model *model, uint32_t pos, float *cosine, float *sine)
{
	for (uint32_t i = 0; i < model->rope_dims / 2; i++) {
		double angle = pos * model->rope_freq[i];

		cosine[i] = (float)cos(angle);
		sine[i] = (float)sin(angle);
	}
}

/* --- the whole -------------------------------------------------------------------------------------------- */

int model_new(const struct gguf *file, struct model **out, char *why, size_t why_bytes)
{
	struct gguf_text arch = { "?", 1 };
	struct model *m = calloc(1, sizeof(*m));
	struct loader l = { file, m, why, why_bytes, 0 };

	if (!m) {
		snprintf(why, why_bytes, "out of memory");
		return -ENOMEM;
	}
	gguf_string(file, "general.architecture", &arch);
	if (arch.bytes != 5 || memcmp(arch.at, "llama", 5) != 0)
		refuse(&l, "its architecture is \"%.*s\"; this program runs \"llama\"",
		       (int)(arch.bytes < 40 ? arch.bytes : 40), arch.at);
	if (!l.err)
		sizes(&l);
	if (!l.err)
		tensors(&l);
	if (!l.err)
		rope(&l);
	if (l.err) {
		if (l.err == -ENOMEM)
			snprintf(why, why_bytes, "out of memory");
		model_free(m);
		return l.err;
	}
	*out = m;
	return 0;
}

void model_free(struct model *model)
{
	if (!model)
		return;
	free(model->layer);
	free(model->rope_freq);
	free(model);
}
