/*
 * Arithmetic that gives the same bits on the host and on the device: float32, nothing but + - * / and integer operations, each
 * rounded once (the host is compiled with -ffp-contract=off, gpu/cuda/select.cu with -fmad=false), no libm. sqrt is IEEE's on both.
 * Sums that run over more than one number have their order stated here.
 */
#ifndef EVICT_MATH_H
#define EVICT_MATH_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define EVICT_FN static __host__ __device__ __forceinline__
#else
#define EVICT_FN static inline __attribute__((always_inline, unused))
#endif

EVICT_FN uint32_t evict_bits(float x)
{
#ifdef __CUDA_ARCH__
	return __float_as_uint(x);
#else
	uint32_t bits;

	memcpy(&bits, &x, sizeof(bits));
	return bits;
#endif
}

EVICT_FN float evict_from_bits(uint32_t bits)
{
#ifdef __CUDA_ARCH__
	return __uint_as_float(bits);
#else
	float x;

	memcpy(&x, &bits, sizeof(x));
	return x;
#endif
}

EVICT_FN float evict_sqrt(float x)
{
#ifdef __CUDA_ARCH__
	return __fsqrt_rn(x);
#else
	return __builtin_sqrtf(x);
#endif
}

EVICT_FN float evict_max(float a, float b) { return a > b ? a : b; }
EVICT_FN float evict_min(float a, float b) { return a < b ? a : b; }

/* log2 of a normal x > 0, to 1e-7 of the larger of 1 and |log2 x|. Subnormal numbers count as the smallest normal one. */
EVICT_FN float evict_log2(float x)
{
	const uint32_t bits = evict_bits(evict_max(x, 1.17549435e-38f));
	const uint32_t above = (bits & 0x7fffffu) > 0x3504f3u;		/* mantissa beyond sqrt(2): halve it */
	const float m = evict_from_bits((bits & 0x7fffffu) | (above ? 0x3f000000u : 0x3f800000u));
	const float e = (float)((int32_t)(bits >> 23) - 127 + (int32_t)above);
	const float t = (m - 1.0f) / (m + 1.0f), u = t * t;

	/* 2/ln 2 * artanh(t), |t| < 0.1716 */
	return e + t * (2.885390082f + u * (0.961796694f + u * (0.577078016f + u * (0.412198583f + u * 0.320598898f))));
}

/* 2^x, to 2e-7 of it; beyond [-126, 127] it stays what it is there. */
EVICT_FN float evict_exp2(float x)
{
	const float in = evict_min(evict_max(x, -126.0f), 127.0f);
	const float n = (in + 12582912.0f) - 12582912.0f;		/* nearest whole number, ties to even */
	const float f = in - n;
	const float p = 1.0f + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f +
			f * (0.00133335581f + f * 0.000154035304f)))));

	return p * evict_from_bits((uint32_t)((int32_t)n + 127) << 23);
}

EVICT_FN float evict_exp(float x) { return evict_exp2(x * 1.44269504f); }
EVICT_FN float evict_log(float x) { return evict_log2(x) * 0.693147181f; }

/*
 * x^y for x >= 0: exact for y = 0 and y = 1; 0^y is 0 for y > 0. Without branches, and choices that depend on y alone by mask:
 * loops over slots stay vectors.
 */
EVICT_FN float evict_pow(float x, float y)
{
	const uint32_t is_0 = 0u - (uint32_t)(y == 0.0f), is_1 = 0u - (uint32_t)(y == 1.0f);
	const float p = evict_exp2(y * evict_log2(x)), q = x > 0.0f ? p : 0.0f;

	return evict_from_bits((evict_bits(q) & ~is_0 & ~is_1) | (evict_bits(x) & is_1) | (evict_bits(1.0f) & is_0));
}

/* --- lots ------------------------------------------------------------------------------------------------------------------- */

/* 32-bit finaliser with full avalanche (multiply, xor-shift rounds as in MurmurHash3's public-domain fmix32). */
EVICT_FN uint32_t evict_mix(uint32_t x)
{
	x ^= x >> 16;
	x *= 0x85ebca6bu;
	x ^= x >> 13;
	x *= 0xc2b2ae35u;
	x ^= x >> 16;
	return x;
}

/* 24 bits that depend on all four: a draw that can be repeated and needs no state. */
EVICT_FN uint32_t evict_draw(uint32_t seed, uint32_t lane, int32_t now, int32_t pos)
{
	uint32_t h = evict_mix(seed + 0x9e3779b9u);

	h = evict_mix(h ^ (lane + 0x7f4a7c15u));
	h = evict_mix(h ^ (uint32_t)now);
	h = evict_mix(h ^ (uint32_t)pos);
	return h >> 8;
}

/* A draw as a number in (0, 1): exact. */
EVICT_FN float evict_uniform(uint32_t draw) { return ((float)draw + 0.5f) * 0x1p-24f; }

/* --- rows of K and V -------------------------------------------------------------------------------------------------------- */

/* K and V come from memory that a client writes: what is not a number of sensible size counts as nothing. */
EVICT_FN float evict_element(float x) { return x >= -1e15f && x <= 1e15f ? x : 0.0f; }

/*
 * Sums over the channels of a row: 16 partial sums, channels i, i + 16, i + 32, ... in this order, then halves are added: i and
 * i + 8, i and i + 4, i and i + 2, 0 and 1.
 */
#define EVICT_PARTS 16

EVICT_FN float evict_halves(float *part)
{
	for (int gap = EVICT_PARTS / 2; gap; gap /= 2)
		for (int i = 0; i < gap; i++)
			part[i] += part[i + gap];
	return part[0];
}

EVICT_FN float evict_dot(const float *a, const float *b, uint32_t d)
{
	float part[EVICT_PARTS] = { 0 };
	uint32_t c = 0;

	for (; c + EVICT_PARTS <= d; c += EVICT_PARTS)
		for (uint32_t i = 0; i < EVICT_PARTS; i++)
			part[i] += a[c + i] * b[c + i];
	for (uint32_t i = 0; c + i < d; i++)
		part[i] += a[c + i] * b[c + i];
	return evict_halves(part);
}

/* L2 norm of a - b. */
EVICT_FN float evict_distance(const float *a, const float *b, uint32_t d)
{
	float part[EVICT_PARTS] = { 0 };

	for (uint32_t c = 0; c < d; c++)
		part[c % EVICT_PARTS] += (a[c] - b[c]) * (a[c] - b[c]);
	return evict_sqrt(evict_halves(part));
}

EVICT_FN float evict_sum_abs(const float *a, uint32_t d)
{
	float part[EVICT_PARTS] = { 0 };
	uint32_t c = 0;

	for (; c + EVICT_PARTS <= d; c += EVICT_PARTS)
		for (uint32_t i = 0; i < EVICT_PARTS; i++)
			part[i] += a[c + i] < 0.0f ? -a[c + i] : a[c + i];
	for (uint32_t i = 0; c + i < d; i++)
		part[i] += a[c + i] < 0.0f ? -a[c + i] : a[c + i];
	return evict_halves(part);
}

EVICT_FN float evict_sum(const float *a, uint32_t d)
{
	float part[EVICT_PARTS] = { 0 };
	uint32_t c = 0;

	for (; c + EVICT_PARTS <= d; c += EVICT_PARTS)
		for (uint32_t i = 0; i < EVICT_PARTS; i++)
			part[i] += a[c + i];
	for (uint32_t i = 0; c + i < d; i++)
		part[i] += a[c + i];
	return evict_halves(part);
}

/*
 * Sums over the slots of a lane: 256 partial sums, one per place in a block (slots i, i + 256, ... in this order), then halves are
 * added: i and i + 128, i and i + 64, ..., 0 and 1.
 */
#define EVICT_PLACES 256

EVICT_FN float evict_places(float *part)
{
	for (int gap = EVICT_PLACES / 2; gap; gap /= 2)
		for (int i = 0; i < gap; i++)
			part[i] += part[i + gap];
	return part[0];
}

#endif
