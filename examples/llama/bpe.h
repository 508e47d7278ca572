/*
 * Byte-pair encoding: of all neighbouring pairs the one with the lowest merge rank is joined first, the leftmost of equals.
 * Private to the tokenizer.
 */
#ifndef LLAMA_BPE_H
#define LLAMA_BPE_H

#include <stddef.h>
#include <stdint.h>

struct bpe;
struct gguf_text;
struct tokens;

/* Scratch memory of an encoding; all-zero to begin with. */
struct bpe_work {
	struct bpe_symbol *symbol;
	struct bpe_pair *heap;
	size_t room;		/* bytes of text that they are large enough for */
};

/*
 * bpe_new - from a vocabulary and its merges ("left right"), both in GPT-2's byte alphabet; borrowed.
 * Errors: -EINVAL a merge that is not two texts; -ENOMEM.
 */
int bpe_new(const struct gguf_text *token, uint32_t n_tokens, const struct gguf_text *merge, uint32_t n_merges, struct bpe **out);
void bpe_free(struct bpe *bpe);

/* bpe_encode - append the ids of one piece of text. 0 or -ENOMEM. Bytes that the vocabulary has no token for are left out. */
int bpe_encode(const struct bpe *bpe, struct bpe_work *work, const char *text, size_t bytes, struct tokens *out);
void bpe_work_free(struct bpe_work *work);

/* bpe_bytes - a token's text from GPT-2's byte alphabet to bytes. @out: at least @bytes bytes. Returns how many were written. */
size_t bpe_bytes(const char *text, size_t bytes, char *out);

#endif
