/*
 * GGUF files (version 2 and 3), read in place: the file is mapped and everything handed out points into it.
 * The file is not trusted: every length and offset is checked when the file is opened, so that what is found later is in bounds.
 * Threads: any number may read an open file.
 */
#ifndef LLAMA_GGUF_H
#define LLAMA_GGUF_H

#include <stddef.h>
#include <stdint.h>

#include "examples/llama/tensor.h"

struct gguf;

struct gguf_text {	/* not NUL-terminated; borrowed from the file */
	const char *at;
	size_t bytes;
};

/*
 * gguf_open - map a file and check it.
 * @out: returned; free with gguf_close(). @why: on failure a sentence that names the file and the cause.
 * Errors: -ENOENT, -EACCES, ... from the system; -EPROTO not a GGUF file, truncated or inconsistent; -ENOMEM.
 */
int gguf_open(const char *path, struct gguf **out, char *why, size_t why_bytes);

/* gguf_parse - the same for bytes in memory (kept: borrowed until gguf_close()). @name: for sentences. */
int gguf_parse(const void *bytes, size_t size, const char *name, struct gguf **out, char *why, size_t why_bytes);

/* NULL is fine. */
void gguf_close(struct gguf *file);

/* --- metadata: 0; -ENOENT no such key; -EINVAL another type or out of range. @out is untouched on failure. --- */

int gguf_u32(const struct gguf *file, const char *key, uint32_t *out);		/* any integer type that holds it */
int gguf_f32(const struct gguf *file, const char *key, float *out);		/* float32 or float64 */
int gguf_bool(const struct gguf *file, const char *key, int *out);
int gguf_string(const struct gguf *file, const char *key, struct gguf_text *out);

/* gguf_strings - an array of strings. @out: returned, [*n]; free with free(). */
int gguf_strings(const struct gguf *file, const char *key, struct gguf_text **out, size_t *n);

/* gguf_i32s - an array of 32-bit integers, by reference. The address may be unaligned: read it with memcpy. */
int gguf_i32s(const struct gguf *file, const char *key, const void **out, size_t *n);

/* --- tensors ---------------------------------------------------------------------------------------------- */

/* gguf_tensor - find by name. -ENOENT no such tensor; -EINVAL a type that tensor.h does not know, or more than two dimensions. */
int gguf_tensor(const struct gguf *file, const char *name, struct tensor *out);
size_t gguf_n_tensors(const struct gguf *file);
size_t gguf_size(const struct gguf *file);	/* bytes of the file */
const char *gguf_name(const struct gguf *file);	/* as opened; borrowed */

#endif
