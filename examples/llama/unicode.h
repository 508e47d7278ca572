/* UTF-8 and the few properties of characters that a tokenizer asks for. */
#ifndef LLAMA_UNICODE_H
#define LLAMA_UNICODE_H

#include <stddef.h>
#include <stdint.h>

enum unicode_class { UNICODE_OTHER, UNICODE_LETTER, UNICODE_NUMBER, UNICODE_SPACE };

/*
 * unicode_next - the character at the start of @text.
 * @bytes: how many there are, > 0. @used: set to its length.
 * Returns the code point; a byte that begins no valid character is one character of its own, 0xfffd, one byte long.
 */
uint32_t unicode_next(const char *text, size_t bytes, size_t *used);

/* unicode_put - encode; returns the number of bytes written to @out (up to 4). */
size_t unicode_put(uint32_t code, char *out);

/* unicode_class_of - \p{L}, \p{N}, \s or none of them. */
enum unicode_class unicode_class_of(uint32_t code);

/* unicode_whole - how many of the bytes are whole characters: cuts off a character whose rest may still come. */
size_t unicode_whole(const char *text, size_t bytes);

#endif
