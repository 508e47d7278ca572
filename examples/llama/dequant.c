/* Block formats to float32, in plain C: one function per format, the reference for the vectorised kernels. */
#include <string.h>

#include "examples/llama/tensor.h"

typedef unsigned char byte;

float tensor_half(uint16_t half)
{
	uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u, mantissa = half & 1023u, bits;
	float f;

	if (exponent == 0) {		/* zero or subnormal: mantissa * 2^-24 */
		f = (float)mantissa * 0x1p-24f;
		return sign ? -f : f;
	}
	bits = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | mantissa << 13;
	memcpy(&f, &bits, 4);
	return f;
}

static float half_at(const byte *p)
{
	return tensor_half((uint16_t)(p[0] | p[1] << 8));
}

static void row_f32(const byte *p, uint32_t n, float *out)
{
	memcpy(out, p, (size_t)n * 4);
}

static void row_f16(const byte *p, uint32_t n, float *out)
{
	for (uint32_t i = 0; i < n; i++)
		out[i] = half_at(p + 2 * (size_t)i);
}

static void row_bf16(const byte *p, uint32_t n, float *out)
{
	for (uint32_t i = 0; i < n; i++) {
		uint32_t bits = (uint32_t)p[2 * (size_t)i] << 16 | (uint32_t)p[2 * (size_t)i + 1] << 24;

		memcpy(&out[i], &bits, 4);
	}
}

static void row_q8_0(const byte *p, uint32_t n, float *out)
{
	for (uint32_t b = 0; b < n / 32; b++, p += 34)
		for (uint32_t i = 0; i < 32; i++)
			out[32 * b + i] = half_at(p) * (float)(int8_t)p[2 + i];
}

/* 4 bits of a block of 32: low nibbles are elements 0..15, high ones 16..31. With @high: bit i is a fifth bit of element i. */
static void nibbles(const byte *q, uint32_t high, float d, float m, float *out)
{
	for (uint32_t i = 0; i < 16; i++) {
		out[i] = d * (float)((q[i] & 15u) | (high >> i & 1u) << 4) + m;
		out[i + 16] = d * (float)((uint32_t)(q[i] >> 4) | (high >> (i + 16) & 1u) << 4) + m;
	}
}

static uint32_t word_at(const byte *p)
{
	uint32_t w;

	memcpy(&w, p, 4);
	return w;
}

static void row_q4_0(const byte *p, uint32_t n, float *out)
{
	for (uint32_t b = 0; b < n / 32; b++, p += 18)
		nibbles(p + 2, 0, half_at(p), -8.0f * half_at(p), out + 32 * b);
}

static void row_q4_1(const byte *p, uint32_t n, float *out)
{
	for (uint32_t b = 0; b < n / 32; b++, p += 20)
		nibbles(p + 4, 0, half_at(p), half_at(p + 2), out + 32 * b);
}

static void row_q5_0(const byte *p, uint32_t n, float *out)
{
	for (uint32_t b = 0; b < n / 32; b++, p += 22)
		nibbles(p + 6, word_at(p + 2), half_at(p), -16.0f * half_at(p), out + 32 * b);
}

static void row_q5_1(const byte *p, uint32_t n, float *out)
{
	for (uint32_t b = 0; b < n / 32; b++, p += 24)
		nibbles(p + 8, word_at(p + 4), half_at(p), half_at(p + 2), out + 32 * b);
}

/* The k-quants' 8 pairs of 6-bit scale and minimum in 12 bytes. */
static void k_scale(const byte *s, uint32_t j, float *scale, float *minimum)
{
	if (j < 4) {
		*scale = (float)(s[j] & 63);
		*minimum = (float)(s[j + 4] & 63);
	} else {
		*scale = (float)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
		*minimum = (float)((s[j + 4] >> 4) | (s[j] >> 6) << 4);
	}
}

/* @five: q5_K, with a fifth bit of every element in 32 bytes between the scales and the nibbles. */
static void row_q45_k(const byte *p, uint32_t n, int five, float *out)
{
	size_t step = five ? 176 : 144;

	for (uint32_t b = 0; b < n / 256; b++, p += step) {
		const byte *high = p + 16, *q = p + (five ? 48 : 16);

		for (uint32_t j = 0; j < 8; j++) {
			float scale, minimum;

			k_scale(p + 4, j, &scale, &minimum);
			scale *= half_at(p);
			minimum *= half_at(p + 2);
			for (uint32_t i = 0; i < 32; i++) {
				uint32_t v = j & 1 ? q[32 * (j / 2) + i] >> 4 : q[32 * (j / 2) + i] & 15u;

				if (five)
					v |= (high[i] >> j & 1u) << 4;
				out[256 * b + 32 * j + i] = scale * (float)v - minimum;
			}
		}
	}
}

static void row_q6_k(const byte *p, uint32_t n, float *out)
{
	for (uint32_t b = 0; b < n / 256; b++, p += 210) {
		float d = half_at(p + 208);

		for (uint32_t e = 0; e < 256; e++) {
			uint32_t half = e / 128, quarter = e / 32 % 4, i = e % 32;
			uint32_t low = p[64 * half + 32 * (quarter & 1) + i], high = p[128 + 32 * half + i];
			uint32_t v = (quarter < 2 ? low & 15u : low >> 4) | (high >> (2 * quarter) & 3u) << 4;

			out[256 * b + e] = d * (float)(int8_t)p[192 + e / 16] * (float)((int32_t)v - 32);
		}
	}
}

void tensor_row(const struct tensor *w, uint32_t row, float *out)
{
	const byte *p = (const byte *)w->data + (size_t)row * w->row_bytes;

	switch (w->type) {
	case TENSOR_F32: row_f32(p, w->cols, out); break;
	case TENSOR_F16: row_f16(p, w->cols, out); break;
	case TENSOR_BF16: row_bf16(p, w->cols, out); break;
	case TENSOR_Q4_0: row_q4_0(p, w->cols, out); break;
	case TENSOR_Q4_1: row_q4_1(p, w->cols, out); break;
	case TENSOR_Q5_0: row_q5_0(p, w->cols, out); break;
	case TENSOR_Q5_1: row_q5_1(p, w->cols, out); break;
	case TENSOR_Q8_0: row_q8_0(p, w->cols, out); break;
	case TENSOR_Q4_K: row_q45_k(p, w->cols, 0, out); break;
	case TENSOR_Q5_K: row_q45_k(p, w->cols, 1, out); break;
	case TENSOR_Q6_K: row_q6_k(p, w->cols, out); break;
	}
}
