/*
 * A text of which one attention head group at a time is changed, and what the model then predicts: the arithmetic of --calibrate.
 *
 * probe_read() runs the text through the model once and keeps, of some windows of 32 tokens (the samples), what goes into each layer, what
 * attention gave, and what was predicted; of all tokens, keys and values. probe_change() then replaces the attention output of one KV head
 * in one layer in those windows, for many alternatives at once, and runs the layers from there on. Tokens of a sample see the unchanged keys
 * and values of the text before their window, and their own window's as they came out. So layers before the change are never computed again,
 * and a text costs its samples only.
 *
 * float32 throughout, weights dequantised; sums in one order, so results depend neither on the number of threads nor on what else is
 * computed at the time. Threads: one at a time; the work is shared by a team.
 */
#ifndef LLAMA_PROBE_H
#define LLAMA_PROBE_H

#include <stddef.h>
#include <stdint.h>

#include "examples/llama/model.h"

#define PROBE_WINDOW 32u
#define PROBE_EVERY 2u		/* of a sample's tokens, every so many-th prediction is looked at */

struct probe;

/*
 * probe_new - @tokens: of a text, a multiple of PROBE_WINDOW. @sample: [n_samples] windows (token / PROBE_WINDOW), ascending; copied.
 * @most: alternatives of one probe_change() at most. -ENOMEM, -ENOTSUP (sizes that are no multiples of 16), -EAGAIN (threads).
 */
int probe_new(const struct model *model, uint32_t tokens, const uint32_t *sample, uint32_t n_samples, uint32_t most, unsigned threads,
	      struct probe **out);
void probe_free(struct probe *probe);	/* NULL is fine */

/* probe_read - a new text. @ids: [tokens]. */
void probe_read(struct probe *probe, const int32_t *ids);

/*
 * probe_rows - queries, keys (both rotated) and values of @n tokens from @first on in a layer. @q: [n][n_heads][head_dim], @k, @v:
 * [n][n_kv_heads][..].
 */
void probe_rows(const struct probe *probe, uint32_t layer, uint32_t first, uint32_t n, float *q, float *k, float *v);

/* What one KV head of a layer gives instead, in every sample. */
struct probe_change {
	uint32_t head;			/* KV head */
	const float *att;		/* [n_samples][32][n_heads][head_dim]; the head's group is taken */
};

/*
 * probe_change - @kl: [n]: KL(unchanged || changed) in nats, mean over the predictions looked at.
 */
void probe_change(struct probe *probe, uint32_t layer, const struct probe_change *change, uint32_t n, double *kl);

#endif
