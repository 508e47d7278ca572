/*
 * The few vector operations that the kernels are written in, for one instruction set at a time: HOST_ISA is 0 (plain: GNU C
 * vectors of four, whatever the processor), 2 (AVX2, FMA, F16C) or 512 (AVX-512). vf holds VW floats, vi VW int32;
 * + - * / and comparisons are the compiler's own on them.
 */
#ifndef GPU_HOST_VEC_H
#define GPU_HOST_VEC_H

#include <stdint.h>
#include <string.h>

#if HOST_ISA != 0
#include <immintrin.h>
#endif

#if HOST_ISA == 512
#define VW 16
#elif HOST_ISA == 2
#define VW 8
#else
#define VW 4
#endif

/*
 * A kernel is one body that is inlined with constants for every case. With a sanitizer's checks in it that takes minutes to
 * compile, so there every body is compiled once and the constants are variables: same operations in the same order.
 */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HOST_ONE_BODY 1
#define VFN static inline __attribute__((unused))
#define UNROLL
#else
#define HOST_ONE_BODY 0
#define VFN static inline __attribute__((always_inline, unused))
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef float vf __attribute__((vector_size(VW * 4)));
typedef int32_t vi __attribute__((vector_size(VW * 4)));
typedef float vf_any __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef int32_t vi_any __attribute__((vector_size(VW * 4), aligned(4), may_alias));

/* Rows of a register tile of VW x (16 / VW) columns: 12 accumulators in every instruction set. */
#define TILE_ROWS (12 * VW / 16)
#define TILE_VECS (16 / VW)

VFN vf vf_load(const float *p) { return *(const vf_any *)p; }
VFN void vf_store(float *p, vf x) { *(vf_any *)p = x; }
VFN vi vi_load(const int32_t *p) { return *(const vi_any *)p; }
VFN vf vf_sel(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* --- scalar conversions, IEEE round to nearest even ------------------------------------------------------------------ */

VFN float f_of_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
VFN uint32_t f_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
VFN float f_of_bf16(uint16_t h) { return f_of_bits((uint32_t)h << 16); }
VFN uint16_t f_to_bf16(float f)
{
	uint32_t u = f_bits(f);

	if ((u & 0x7fffffffu) > 0x7f800000u)
		return (uint16_t)(u >> 16 | 0x40u);	/* a NaN stays one */
	return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

#if HOST_ISA != 0
VFN float f_of_f16(uint16_t h) { return _cvtsh_ss(h); }
VFN uint16_t f_to_f16(float f) { return _cvtss_sh(f, 0); }
#else
VFN float f_of_f16(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = h & 0x7fffu;

	if (mag >= 0x7c00u)		/* infinity; NaN, made quiet */
		return f_of_bits(sign | 0x7f800000u | (mag & 0x3ffu ? 0x400000u | (mag & 0x3ffu) << 13 : 0u));
	/* Shift the fields into a float and scale by 2^(127-15); exact for subnormals too. */
	return f_of_bits(sign | f_bits(f_of_bits(mag << 13) * 0x1p112f));
}
VFN uint16_t f_to_f16(float f)
{
	uint32_t u = f_bits(f), sign = u >> 16 & 0x8000u, mag = u & 0x7fffffffu;

	if (mag > 0x7f800000u)
		return (uint16_t)(sign | 0x7e00u | (mag >> 13 & 0x3ffu));
	if (mag >= 0x477ff000u)		/* rounds past the largest finite number */
		return (uint16_t)(sign | 0x7c00u);
	if (mag < 0x38800000u)		/* subnormal or 0: adding 2^-1 leaves units of 2^-24, rounded to nearest even */
		return (uint16_t)(sign | (f_bits(f_of_bits(mag) + 0.5f) - 0x3f000000u));
	return (uint16_t)(sign | ((mag - 0x38000000u + 0xfffu + (mag >> 13 & 1u)) >> 13));
}
#endif

/* --- what differs ------------------------------------------------------------------------------------------------------ */

#if HOST_ISA == 512

VFN vf vf_set1(float x) { return (vf)_mm512_set1_ps(x); }
VFN vi vi_set1(int32_t x) { return (vi)_mm512_set1_epi32(x); }
VFN vf vf_fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
VFN vf vf_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
VFN vf vf_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
VFN vf vf_of_f16(const uint16_t *p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
VFN vf vf_of_bf16(const uint16_t *p)
{
	return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
VFN vf vf_of_i8(const int8_t *p)
{
	return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
VFN void vf_to_f16(uint16_t *p, vf x)
{
	_mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}
VFN int vi_some(vi mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
VFN __m256 vf_halves(vf x)	/* sum of the two halves */
{
	return _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
}

/* q8: scale and offset of VW rows. */
VFN void q8_params(const uint16_t *p, vf *scale, vf *offset)
{
	__m512i x = _mm512_loadu_si512(p);

	*scale = (vf)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
	*offset = (vf)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)));
}

#elif HOST_ISA == 2

VFN vf vf_set1(float x) { return (vf)_mm256_set1_ps(x); }
VFN vi vi_set1(int32_t x) { return (vi)_mm256_set1_epi32(x); }
VFN vf vf_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
VFN vf vf_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
VFN vf vf_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
VFN vf vf_of_f16(const uint16_t *p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
VFN vf vf_of_bf16(const uint16_t *p)
{
	return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}
VFN vf vf_of_i8(const int8_t *p)
{
	return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
VFN void vf_to_f16(uint16_t *p, vf x)
{
	_mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}
VFN int vi_some(vi mask) { return _mm256_movemask_ps((__m256)mask) != 0; }
VFN void q8_params(const uint16_t *p, vf *scale, vf *offset)
{
	const __m256i x = _mm256_loadu_si256((const __m256i *)p);
	const __m256i apart = _mm256_packus_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32(x, 16));
	const __m256i y = _mm256_permute4x64_epi64(apart, 0xd8);	/* packing works within halves */

	*scale = (vf)_mm256_cvtph_ps(_mm256_castsi256_si128(y));
	*offset = (vf)_mm256_cvtph_ps(_mm256_extracti128_si256(y, 1));
}
VFN __m256 vf_halves(vf x) { return (__m256)x; }

#else

VFN vf vf_set1(float x) { return (vf){ x, x, x, x }; }
VFN vi vi_set1(int32_t x) { return (vi){ x, x, x, x }; }
VFN vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
VFN vf vf_max(vf a, vf b) { return vf_sel(a > b, a, b); }
VFN vf vf_min(vf a, vf b) { return vf_sel(a < b, a, b); }
VFN vf vf_of_f16(const uint16_t *p)
{
	return (vf){ f_of_f16(p[0]), f_of_f16(p[1]), f_of_f16(p[2]), f_of_f16(p[3]) };
}
VFN vf vf_of_bf16(const uint16_t *p)
{
	return (vf){ f_of_bf16(p[0]), f_of_bf16(p[1]), f_of_bf16(p[2]), f_of_bf16(p[3]) };
}
VFN vf vf_of_i8(const int8_t *p)
{
	int8_t x __attribute__((vector_size(4)));

	memcpy(&x, p, 4);
	return __builtin_convertvector(x, vf);
}
VFN int vi_some(vi mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }
VFN void q8_params(const uint16_t *p, vf *scale, vf *offset)
{
	for (int i = 0; i < VW; i++) {
		(*scale)[i] = f_of_f16(p[2 * i]);
		(*offset)[i] = f_of_f16(p[2 * i + 1]);
	}
}
VFN void vf_to_f16(uint16_t *p, vf x)
{
	for (int i = 0; i < VW; i++)
		p[i] = f_to_f16(x[i]);
}

#endif

#if HOST_ISA != 0

/* dst[i] = sum of the lanes of a[i]. */
VFN void vf_sum4(float *dst, vf a0, vf a1, vf a2, vf a3)
{
	__m256 s = _mm256_hadd_ps(_mm256_hadd_ps(vf_halves(a0), vf_halves(a1)), _mm256_hadd_ps(vf_halves(a2), vf_halves(a3)));

	_mm_storeu_ps(dst, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

/* dst[c * ld + r] = src[r * d + c] for 8 rows and 8 columns. */
VFN void transpose_block(const float *src, size_t d, float *dst, size_t ld)
{
	__m256 r[8], t[8];

	UNROLL for (int i = 0; i < 8; i++)
		r[i] = _mm256_loadu_ps(src + (size_t)i * d);
	UNROLL for (int i = 0; i < 8; i += 2) {
		t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
		t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
	}
	UNROLL for (int i = 0; i < 8; i += 4) {
		r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
		r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
		r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
		r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
	}
	UNROLL for (int i = 0; i < 4; i++) {
		_mm256_storeu_ps(dst + (size_t)i * ld, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
		_mm256_storeu_ps(dst + (size_t)(i + 4) * ld, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
	}
}
#define TRANSPOSE 8

#else

VFN float vf_sum1(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
VFN void vf_sum4(float *dst, vf a0, vf a1, vf a2, vf a3)
{
	dst[0] = vf_sum1(a0);
	dst[1] = vf_sum1(a1);
	dst[2] = vf_sum1(a2);
	dst[3] = vf_sum1(a3);
}

VFN void transpose_block(const float *src, size_t d, float *dst, size_t ld)
{
	UNROLL for (int c = 0; c < 4; c++)
		vf_store(dst + (size_t)c * ld, (vf){ src[c], src[d + (size_t)c], src[2 * d + (size_t)c], src[3 * d + (size_t)c] });
}
#define TRANSPOSE 4

#endif

VFN float vf_hsum(vf x)
{
	float s[4];

	vf_sum4(s, x, x, x, x);
	return s[0];
}

VFN float vf_hmax(vf x)
{
	float m = x[0];

	UNROLL for (int i = 1; i < VW; i++)
		m = x[i] > m ? x[i] : m;
	return m;
}

VFN void vf_to_bf16(uint16_t *p, vf x)
{
	vi u = (vi)x;
	vi nan = (u & 0x7fffffff) > 0x7f800000;
	vi up = (u + 0x7fff + (u >> 16 & 1)) >> 16;	/* the sign's copies fall away below */
	vi quiet = u >> 16 | 0x40;
	vi h = (nan & quiet) | (~nan & up);

	UNROLL for (int i = 0; i < VW; i++)
		p[i] = (uint16_t)h[i];
}

/*
 * e^x for x <= 88, 0 below -87 (and for -infinity). x = n ln 2 + r with |r| <= ln(2) / 2; e^r by its Taylor polynomial of degree 7
 * (remainder 6e-9), 2^n by adding n to the exponent. n comes from adding 1.5 * 2^23, whose bits then end in n.
 */
VFN vf vf_exp(vf x)
{
	vf z = vf_max(vf_min(x, vf_set1(88.0f)), vf_set1(-87.0f));
	vf t = vf_fma(z, vf_set1(1.44269504f), vf_set1(12582912.0f));
	vf n = t - vf_set1(12582912.0f);
	vf r = vf_fma(n, vf_set1(-0.693359375f), z);	/* ln 2 in two parts, the first short enough to be exact times n */
	vf p = vf_set1(1.0f / 5040.0f);

	r = vf_fma(n, vf_set1(2.12194440e-4f), r);
	p = vf_fma(p, r, vf_set1(1.0f / 720.0f));
	p = vf_fma(p, r, vf_set1(1.0f / 120.0f));
	p = vf_fma(p, r, vf_set1(1.0f / 24.0f));
	p = vf_fma(p, r, vf_set1(1.0f / 6.0f));
	p = vf_fma(p, r, vf_set1(0.5f));
	p = vf_fma(p, r, vf_set1(1.0f));
	p = vf_fma(p, r, vf_set1(1.0f));
	p = (vf)((vi)p + ((vi)t << 23));
	return vf_sel(x >= vf_set1(-87.0f), p, (vf){ 0 });
}

/* VW elements of a row as float32. type is a constant where it matters. q8: the bare integers. */
VFN vf vf_of(uint32_t type, const char *row, uint32_t c)
{
	switch (type) {
	case 0: return vf_load((const float *)(const void *)row + c);
	case 1: return vf_of_f16((const uint16_t *)(const void *)row + c);
	case 2: return vf_of_bf16((const uint16_t *)(const void *)row + c);
	default: return vf_of_i8((const int8_t *)row + c);
	}
}

/*
 * The fast way to widen short elements: one full load holds 2 bf16 per lane, and a shift and a mask pull them apart without a
 * shuffle (int8 has a load that widens). So vector j of a "unit" of UNIT_VECS vectors holds elements j, j + n, j + 2n, ... of n = UNIT_VECS: unit order. Elements
 * behind the last whole unit follow in natural order.
 */
#define UNIT_VECS(type) ((type) == 2 ? 2u : 1u)

/* The upper 16 bits of each lane. The inner loops have no register left for the mask, and GCC would rather spill than read it. */
VFN vi vi_high(vi x)
{
#if HOST_ISA == 2
	static const vi mask = { -65536, -65536, -65536, -65536, -65536, -65536, -65536, -65536 };
	vi y;

	__asm__("vpand %2, %1, %0" : "=x"(y) : "x"(x), "m"(mask));
	return y;
#else
	return x & -65536;
#endif
}

/* a * b[] + c. b stays in memory: GCC would rather load it once and spill an accumulator. */
VFN vf vf_fma_at(vf a, const float *b, vf c)
{
#if HOST_ISA == 2
	__asm__("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "m"(*(const vf_any *)b));
	return c;
#else
	return vf_fma(a, vf_load(b), c);
#endif
}

/* Loads before are not kept for later: cheaper to repeat than to spill. */
#define FORGET() __asm__ volatile("" ::: "memory")

/* Vectors of a row that are in unit order. */
VFN uint32_t unit_vecs_of(uint32_t type, uint32_t d) { return d / (VW * UNIT_VECS(type)) * UNIT_VECS(type); }

/* Vector j (from the start of the unit at `at`) in unit order. type and j are constants. */
VFN vf vf_piece(uint32_t type, const char *at, uint32_t j)
{
	const uint32_t n = UNIT_VECS(type);
	vi x;

	if (type == 1)
		return vf_of_f16((const uint16_t *)(const void *)at + j * VW);
	if (type == 3)
		return vf_of_i8((const int8_t *)at + j * VW);
	x = vi_load((const int32_t *)(const void *)at + j / n * VW);
	if (type == 2)
		return (vf)(j % n ? vi_high(x) : x << 16);
	return (vf)x;
}

/* A row of d floats into unit order (or back: out of it). */
VFN void unit_order(uint32_t type, uint32_t d, float *restrict dst, const float *restrict src, int back)
{
	const uint32_t n = UNIT_VECS(type), in_units = unit_vecs_of(type, d) * VW;

	for (uint32_t c = 0; c < in_units; c += n * VW)
		for (uint32_t j = 0; j < n; j++)
			for (uint32_t i = 0; i < VW; i++) {
				if (back)
					dst[c + i * n + j] = src[c + j * VW + i];
				else
					dst[c + j * VW + i] = src[c + i * n + j];
			}
	for (uint32_t c = in_units; c < d; c++)
		dst[c] = src[c];
}

VFN void vf_to(uint32_t type, char *row, uint32_t c, vf x)
{
	switch (type) {
	case 0: vf_store((float *)(void *)row + c, x); break;
	case 1: vf_to_f16((uint16_t *)(void *)row + c, x); break;
	default: vf_to_bf16((uint16_t *)(void *)row + c, x); break;
	}
}

#endif
