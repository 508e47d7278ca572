/*
 * Text to token ids and back: byte-pair encoding over bytes (GGUF's tokenizer model "gpt2"), with the splitting rules "smollm"
 * (every digit by itself, then GPT-2's pattern) and "gpt-2". Ids are those of llama.cpp on valid UTF-8.
 * Threads: a tokenizer is read-only once made.
 */
#ifndef LLAMA_TOKENIZER_H
#define LLAMA_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

struct gguf;
struct tokenizer;

/* A growing list of ids: all-zero to begin with; free(list.id) in the end. */
struct tokens {
	int32_t *id;
	size_t n, room;
};

/*
 * tokenizer_new - read the vocabulary. @file may be closed afterwards. @why: on failure a sentence.
 * Errors: -EINVAL a tokenizer that this program does not know, or an inconsistent one; -ENOMEM.
 */
int tokenizer_new(const struct gguf *file, struct tokenizer **out, char *why, size_t why_bytes);
void tokenizer_free(struct tokenizer *tok);	/* NULL is fine */

uint32_t tokenizer_size(const struct tokenizer *tok);

/*
 * tokenizer_encode - append the ids of a text.
 * @special: whether "<|im_start|>" and the like in the text become the token of that name; else they are plain text.
 * Bytes that are no valid UTF-8 are kept as they are. Errors: -ENOMEM (the list may have grown).
 */
int tokenizer_encode(const struct tokenizer *tok, const char *text, size_t bytes, int special, struct tokens *out);

/*
 * tokenizer_chat - append a conversation of one user turn in the ChatML form, ready for the assistant's answer.
 * @system: NULL: the model's usual system turn. Errors: -ENOTSUP the vocabulary lacks <|im_start|>, -ENOMEM.
 */
int tokenizer_chat(const struct tokenizer *tok, const char *system, const char *user, size_t user_bytes, struct tokens *out);

/* tokenizer_text - the bytes of a token; nothing for control tokens. Borrowed for the tokenizer's life. */
const char *tokenizer_text(const struct tokenizer *tok, int32_t id, size_t *bytes);

/* tokenizer_find - the id of a special token by its name ("<|im_end|>"), or -1. */
int32_t tokenizer_find(const struct tokenizer *tok, const char *name);

int tokenizer_is_end(const struct tokenizer *tok, int32_t id);	/* ends a generation */
int32_t tokenizer_bos(const struct tokenizer *tok);		/* put before a text; -1: this model wants none */

/* tokens_add - append one id. 0 or -ENOMEM. */
int tokens_add(struct tokens *list, int32_t id);

#endif
