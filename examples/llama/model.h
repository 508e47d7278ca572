/*
 * A model of the llama family out of a GGUF file: sizes and where its tensors lie. Weights stay in the mapped file.
 */
#ifndef LLAMA_MODEL_H
#define LLAMA_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "examples/llama/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct gguf;

struct model_layer {
	struct tensor attn_norm;	/* f32 [n_embd] */
	struct tensor q, k, v, o;	/* q and k rows are permuted for interleaved rotary pairs (see model_rope) */
	struct tensor ffn_norm;		/* f32 [n_embd] */
	struct tensor gate, up, down;
};

struct model {
	uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab;
	uint32_t group;			/* query heads per KV head: head h reads KV head h / group */
	uint32_t n_context;		/* what it was trained for */
	float rms_eps;
	float attn_scale;		/* 1 / sqrt(head_dim) */
	uint32_t rope_dims;		/* rotated dimensions of a head, from its first; even, <= head_dim */
	double *rope_freq;		/* [rope_dims / 2] radians per position; owned */
	struct tensor embd;		/* [n_vocab][n_embd] */
	struct tensor out_norm;		/* f32 [n_embd] */
	struct tensor output;		/* [n_vocab][n_embd]; the same as embd when tied */
	struct model_layer *layer;	/* [n_layers]; owned */
	uint64_t weight_bytes;		/* of all tensors of the file */
};

/*
 * model_new - find the tensors and check their shapes.
 * @file: kept (borrowed for the model's life). @why: on failure a sentence.
 * Errors: -EINVAL not a model that this program can run; -ENOMEM.
 */
int model_new(const struct gguf *file, struct model **out, char *why, size_t why_bytes);
void model_free(struct model *model);

/*
 * model_rope - the rotations of one position. @cosine, @sine: [rope_dims / 2].
 * A head is rotated in neighbouring pairs: (x[2i], x[2i+1]) = (x[2i] c - x[2i+1] s, x[2i] s + x[2i+1] c) with c, s of pair i.
 * Computed in float64 and rounded, so that every backend rotates with the same bits.
 */
void model_rope(const struct model *model, uint32_t pos, float *cosine, float *sine);

#ifdef __cplusplus
}
#endif
#endif
