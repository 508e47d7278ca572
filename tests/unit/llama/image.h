/* A GGUF file written into memory, piece by piece, for tests. Every write asserts that it fits. */
#ifndef TESTS_LLAMA_IMAGE_H
#define TESTS_LLAMA_IMAGE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct image {
	unsigned char *bytes;
	size_t n, room;
	uint64_t data;		/* bytes of tensor data announced so far */
};

static inline void image_put(struct image *im, const void *bytes, size_t n)
{
	if (im->n + n > im->room) {
		im->room = 2 * (im->n + n) + 4096;
		im->bytes = realloc(im->bytes, im->room);
		assert_non_null(im->bytes);
	}
	if (n)
		memcpy(im->bytes + im->n, bytes, n);
	im->n += n;
}

static inline void image_u32(struct image *im, uint32_t v) { image_put(im, &v, 4); }
static inline void image_u64(struct image *im, uint64_t v) { image_put(im, &v, 8); }

static inline void image_text(struct image *im, const char *s)
{
	image_u64(im, strlen(s));
	image_put(im, s, strlen(s));
}

static inline void image_head(struct image *im, uint32_t version, uint64_t n_tensors, uint64_t n_values)
{
	image_put(im, "GGUF", 4);
	image_u32(im, version);
	image_u64(im, n_tensors);
	image_u64(im, n_values);
}

static inline void image_key_u32(struct image *im, const char *key, uint32_t v)
{
	image_text(im, key);
	image_u32(im, 4);
	image_u32(im, v);
}

static inline void image_key_f32(struct image *im, const char *key, float v)
{
	image_text(im, key);
	image_u32(im, 6);
	image_put(im, &v, 4);
}

static inline void image_key_text(struct image *im, const char *key, const char *v)
{
	image_text(im, key);
	image_u32(im, 8);
	image_text(im, v);
}

/* The start of an array; the items follow with image_text() or image_u32(). */
static inline void image_key_array(struct image *im, const char *key, uint32_t item, uint64_t n)
{
	image_text(im, key);
	image_u32(im, 9);
	image_u32(im, item);
	image_u64(im, n);
}

/* Announces a float32 tensor of cols x rows; its data comes in the same order, each 32-byte aligned. */
static inline void image_tensor(struct image *im, const char *name, uint32_t cols, uint32_t rows)
{
	image_text(im, name);
	image_u32(im, rows ? 2 : 1);
	image_u64(im, cols);
	if (rows)
		image_u64(im, rows);
	image_u32(im, 0);
	image_u64(im, im->data);
	im->data += ((uint64_t)cols * (rows ? rows : 1) * 4 + 31) / 32 * 32;
}

static inline void image_align(struct image *im)
{
	static const unsigned char zeros[32];

	image_put(im, zeros, (32 - im->n % 32) % 32);
}

/* A small repeatable stream of numbers. */
static inline uint32_t image_random(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return *state >> 8;
}

static inline float image_random_float(uint32_t *state)	/* -1 .. 1 */
{
	return (float)image_random(state) / 8388608.0f - 1.0f;
}

#endif
