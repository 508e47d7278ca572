/*
 * The kernels with AVX2, FMA and F16C.
 *
 * Four-bit weights. A byte b >= 0x80 in the third byte of a 32-bit lane of zeros is the float 2^-126 * (b / 128): with
 * b = 0x80 | q << 3 that is 2^-126 * (1 + q / 16), exactly. So one byte shuffle turns four nibbles into four floats, without a
 * conversion. The activations carry a factor 2^90 to stay clear of subnormals; all factors are powers of two and cost nothing.
 * With s = sum(x) of a block, the block's share of the result is
 *     sum((d q + m) x) = 16 d (2^36 t - s) + m s = 2^40 (d t + (-16 d s + m s) 2^-40),    t = sum(2^-126 (1 + q / 16) 2^90 x).
 * Two blocks A and B go side by side in the halves of a register, so packed activations are A[0..3] B[0..3] A[4..7] ...
 *
 * Results do not depend on how many rows go together: every row runs through the same operations in the same order.
 */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "examples/llama/kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define GROUP 8		/* rows that share an unpacked weight */
#define WIDE 1024u	/* columns from which only half of them fit the first-level cache */

typedef unsigned char byte;

INLINE float sum8(__m256 v)
{
	__m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

	s = _mm_add_ps(s, _mm_movehl_ps(s, s));
	s = _mm_add_ss(s, _mm_movehdup_ps(s));
	return _mm_cvtss_f32(s);
}

/* exp(x) for x <= 88; below -87 it is 0. Relative error under 2e-7. */
INLINE __m256 exp8(__m256 x)
{
	const __m256 low = _mm256_set1_ps(-87.0f);
	__m256 keep = _mm256_cmp_ps(x, low, _CMP_GE_OQ), n, r, p;
	__m256i power;

	x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(88.0f)), low);
	n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
	r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);		/* ln 2 in two parts: the first has zeros */
	r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);		/* to the right, so that n times it is exact */
	p = _mm256_set1_ps(1.0f / 5040);
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
	power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
	return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(power)), keep);
}

/* --- packing ---------------------------------------------------------------------------------------------- */

static float sum32(const float *x)
{
	__m256 s = _mm256_add_ps(_mm256_add_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)),
				 _mm256_add_ps(_mm256_loadu_ps(x + 16), _mm256_loadu_ps(x + 24)));
	return sum8(s);
}

/* @centre: 0 for q4_1, whose blocks have a minimum; 8 for q4_0, whose minimum is -8 d. Odd counts get a block of zeros. */
static void pack_nibbles(const float *x, uint32_t cols, float centre, float *packed)
{
	const __m128 up = _mm_set1_ps(0x1p90f);
	uint32_t n_blocks = cols / 32, n_pairs = (n_blocks + 1) / 2;
	float *sums = packed + (size_t)n_pairs * 64;

	for (uint32_t b = 0; b < 2 * n_pairs; b++) {
		float *to = packed + (size_t)(b / 2) * 64 + (b & 1) * 4, *sum = sums + (size_t)(b / 2) * 8 + (b & 1) * 2;
		float s = 0.0f;

		for (int i = 0; i < 8; i++)
			_mm_storeu_ps(to + 8 * i, b < n_blocks ? _mm_mul_ps(up, _mm_loadu_ps(x + 32 * b + 4 * i)) : _mm_setzero_ps());
		if (b < n_blocks)
			s = sum32(x + 32 * b) * 0x1p-40f;
		sum[0] = -(16.0f + centre) * s;
		sum[1] = s;
		sums[(size_t)(b / 2) * 8 + 4 + (b & 1) * 2] = 0.0f;
		sums[(size_t)(b / 2) * 8 + 5 + (b & 1) * 2] = 0.0f;
	}
}

static void avx2_pack(enum tensor_type type, const float *x, uint32_t cols, float *packed)
{
	if (type == TENSOR_Q4_1 || type == TENSOR_Q4_0)
		pack_nibbles(x, cols, type == TENSOR_Q4_0 ? 8.0f : 0.0f, packed);
	else
		memcpy(packed, x, (size_t)cols * sizeof(*x));
}

/* --- four bits -------------------------------------------------------------------------------------------- */

/* {d, m} of the two blocks as {dA, mA, dB, mB}; q4_0 has no m. */
INLINE __m128 nibble_scales(const byte *a, const byte *b, int has_min)
{
	uint32_t sa = 0, sb = 0;

	memcpy(&sa, a, has_min ? 4 : 2);
	memcpy(&sb, b, has_min ? 4 : 2);
	return _mm_cvtph_ps(_mm_insert_epi32(_mm_cvtsi32_si128((int)sa), (int)sb, 1));
}

INLINE void nibble_rows(const byte *w, uint32_t n_blocks, int has_min, const float *packed, size_t stride, float *y,
			size_t y_stride, int n)
{
	const uint32_t bytes = has_min ? 20 : 18, n_pairs = (n_blocks + 1) / 2;
	const __m256i mask = _mm256_set1_epi8(0x78), one = _mm256_set1_epi8((char)0x80);
	/* Third byte of each lane from the half's bytes 0..3; the others zero. Adding 4 moves on to the next four. */
	const __m256i place = _mm256_set_epi8(-1, 3, -1, -1, -1, 2, -1, -1, -1, 1, -1, -1, -1, 0, -1, -1,
					      -1, 3, -1, -1, -1, 2, -1, -1, -1, 1, -1, -1, -1, 0, -1, -1);
	const __m256i four = _mm256_set_epi8(0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0,
					     0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0);
	const __m256i place1 = _mm256_add_epi8(place, four), place2 = _mm256_add_epi8(place1, four);
	const __m256i place3 = _mm256_add_epi8(place2, four);
	const __m256i twice = _mm256_set_epi32(2, 2, 2, 2, 0, 0, 0, 0);
	const float *sums = packed + (size_t)n_pairs * 64;
	__m256 acc[GROUP];

	for (int r = 0; r < n; r++)
		acc[r] = _mm256_setzero_ps();
	for (uint32_t p = 0; p < n_pairs; p++) {
		const byte *a = w + (size_t)p * 2 * bytes, *b = 2 * p + 1 < n_blocks ? a + bytes : a;
		__m256i q = _mm256_inserti128_si256(
			_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(a + bytes - 16))),
			_mm_loadu_si128((const __m128i *)(const void *)(b + bytes - 16)), 1);
		__m256i low = _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi16(q, 3), mask), one);
		__m256i high = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(q, 1), mask), one);
		__m256 w0 = _mm256_castsi256_ps(_mm256_shuffle_epi8(low, place));
		__m256 w1 = _mm256_castsi256_ps(_mm256_shuffle_epi8(low, place1));
		__m256 w2 = _mm256_castsi256_ps(_mm256_shuffle_epi8(low, place2));
		__m256 w3 = _mm256_castsi256_ps(_mm256_shuffle_epi8(low, place3));
		__m256 w4 = _mm256_castsi256_ps(_mm256_shuffle_epi8(high, place));
		__m256 w5 = _mm256_castsi256_ps(_mm256_shuffle_epi8(high, place1));
		__m256 w6 = _mm256_castsi256_ps(_mm256_shuffle_epi8(high, place2));
		__m256 w7 = _mm256_castsi256_ps(_mm256_shuffle_epi8(high, place3));
		__m256 dm = _mm256_zextps128_ps256(nibble_scales(a, b, has_min));
		__m256 d = _mm256_permutevar8x32_ps(dm, twice);

		for (int r = 0; r < n; r++) {
			const float *x = packed + (size_t)r * stride + (size_t)p * 64;
			__m256 t = _mm256_mul_ps(w0, _mm256_load_ps(x)), u = _mm256_mul_ps(w1, _mm256_load_ps(x + 8));

			t = _mm256_fmadd_ps(w2, _mm256_load_ps(x + 16), t);
			u = _mm256_fmadd_ps(w3, _mm256_load_ps(x + 24), u);
			t = _mm256_fmadd_ps(w4, _mm256_load_ps(x + 32), t);
			u = _mm256_fmadd_ps(w5, _mm256_load_ps(x + 40), u);
			t = _mm256_fmadd_ps(w6, _mm256_load_ps(x + 48), t);
			u = _mm256_fmadd_ps(w7, _mm256_load_ps(x + 56), u);
			u = _mm256_add_ps(t, u);
			t = _mm256_mul_ps(dm, _mm256_load_ps(sums + (size_t)r * stride + (size_t)p * 8));
			acc[r] = _mm256_add_ps(acc[r], _mm256_fmadd_ps(u, d, t));
		}
	}
	for (int r = 0; r < n; r++)
		y[(size_t)r * y_stride] = sum8(acc[r]) * 0x1p40f;
}

/* --- eight bits ------------------------------------------------------------------------------------------- */

INLINE __m256 bytes8(const byte *p)
{
	return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

INLINE void byte_rows(const byte *w, uint32_t n_blocks, const float *packed, size_t stride, float *y, size_t y_stride, int n)
{
	__m256 acc[GROUP];

	for (int r = 0; r < n; r++)
		acc[r] = _mm256_setzero_ps();
	for (uint32_t b = 0; b < n_blocks; b++, w += 34) {
		__m256 w0 = bytes8(w + 2), w1 = bytes8(w + 10), w2 = bytes8(w + 18), w3 = bytes8(w + 26), d;
		uint16_t half;

		memcpy(&half, w, 2);
		d = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
		for (int r = 0; r < n; r++) {
			const float *x = packed + (size_t)r * stride + (size_t)b * 32;
			__m256 t = _mm256_mul_ps(w0, _mm256_load_ps(x)), u = _mm256_mul_ps(w1, _mm256_load_ps(x + 8));

			t = _mm256_fmadd_ps(w2, _mm256_load_ps(x + 16), t);
			u = _mm256_fmadd_ps(w3, _mm256_load_ps(x + 24), u);
			acc[r] = _mm256_fmadd_ps(_mm256_add_ps(t, u), d, acc[r]);
		}
	}
	for (int r = 0; r < n; r++)
		y[(size_t)r * y_stride] = sum8(acc[r]);
}

/* --- everything else: a dequantised row, or a row of float32 ---------------------------------------------- */

INLINE void wide_rows(const float *w, uint32_t cols, const float *packed, size_t stride, float *y, size_t y_stride, int n)
{
	for (int r = 0; r < n; r++) {
		const float *x = packed + (size_t)r * stride;
		__m256 t = _mm256_setzero_ps(), u = _mm256_setzero_ps();
		uint32_t i = 0;
		float s;

		for (; i + 16 <= cols; i += 16) {
			t = _mm256_fmadd_ps(_mm256_loadu_ps(w + i), _mm256_load_ps(x + i), t);
			u = _mm256_fmadd_ps(_mm256_loadu_ps(w + i + 8), _mm256_load_ps(x + i + 8), u);
		}
		s = sum8(_mm256_add_ps(t, u));
		for (; i < cols; i++)
			s += w[i] * x[i];
		y[(size_t)r * y_stride] = s;
	}
}

/* float16 and bfloat16 are worth vectors; the other formats are dequantised by the plain code. */
static const float *widen(const struct tensor *w, uint32_t row, float *wide)
{
	const byte *p = (const byte *)w->data + (size_t)row * w->row_bytes;
	uint32_t n = w->cols & ~7u;

	if (w->cols % 8 == 0 && w->type == TENSOR_F16) {
		for (uint32_t i = 0; i < n; i += 8)
			_mm256_store_ps(wide + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i))));
	} else if (w->cols % 8 == 0 && w->type == TENSOR_BF16) {
		for (uint32_t i = 0; i < n; i += 8) {
			__m128i h = _mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i));

			_mm256_store_si256((__m256i *)(void *)(wide + i), _mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
		}
	} else {
		tensor_row(w, row, wide);
	}
	return wide;
}

/* One weight row times n rows; the constants select a specialised copy of the loop. */
INLINE void product_rows(const struct tensor *w, uint32_t j, const float *packed, size_t stride, float *y, size_t y_stride,
			 const float *wide, int n)
{
	const byte *p = (const byte *)w->data + (size_t)j * w->row_bytes;

	if (w->type == TENSOR_Q4_1)
		nibble_rows(p, w->cols / 32, 1, packed, stride, y, y_stride, n);
	else if (w->type == TENSOR_Q4_0)
		nibble_rows(p, w->cols / 32, 0, packed, stride, y, y_stride, n);
	else if (w->type == TENSOR_Q8_0)
		byte_rows(p, w->cols / 32, packed, stride, y, y_stride, n);
	else
		wide_rows(wide, w->cols, packed, stride, y, y_stride, n);
}

static void avx2_product(const struct tensor *w, uint32_t from, uint32_t to, const float *packed, size_t stride, uint32_t rows,
			 float *y, size_t y_stride, float *wide)
{
	int direct = w->type == TENSOR_Q4_1 || w->type == TENSOR_Q4_0 || w->type == TENSOR_Q8_0;

	for (uint32_t r = 0; r < rows;) {
		uint32_t n = rows - r >= GROUP && w->cols < WIDE ? GROUP : rows - r >= 4 ? 4 : rows - r >= 2 ? 2 : 1;
		const float *x = packed + (size_t)r * stride;

		for (uint32_t j = from; j < to; j++) {
			float *out = y + (size_t)r * y_stride + j;
			const float *row = direct ? NULL : widen(w, j, wide);

			switch (n) {
			case GROUP: product_rows(w, j, x, stride, out, y_stride, row, GROUP); break;
			case 4: product_rows(w, j, x, stride, out, y_stride, row, 4); break;
			case 2: product_rows(w, j, x, stride, out, y_stride, row, 2); break;
			default: product_rows(w, j, x, stride, out, y_stride, row, 1); break;
			}
		}
		r += n;
	}
}

/* --- panels ----------------------------------------------------------------------------------------------- */

/* n rows times 16 columns of accumulators stay in registers. */
INLINE void panel_rows(const float *x, size_t x_stride, const float *panel, uint32_t cols, float *y, size_t y_stride, int add, int n)
{
	__m256 a[6], b[6];

#pragma GCC unroll 6
	for (int r = 0; r < n; r++)
		a[r] = b[r] = _mm256_setzero_ps();
	for (uint32_t i = 0; i < cols; i++, panel += 16) {
		const __m256 left = _mm256_loadu_ps(panel), right = _mm256_loadu_ps(panel + 8);

#pragma GCC unroll 6
		for (int r = 0; r < n; r++) {
			const __m256 one = _mm256_broadcast_ss(x + (size_t)r * x_stride + i);

			a[r] = _mm256_fmadd_ps(one, left, a[r]);
			b[r] = _mm256_fmadd_ps(one, right, b[r]);
		}
	}
#pragma GCC unroll 6
	for (int r = 0; r < n; r++) {
		float *out = y + (size_t)r * y_stride;

		_mm256_storeu_ps(out, add ? _mm256_add_ps(_mm256_loadu_ps(out), a[r]) : a[r]);
		_mm256_storeu_ps(out + 8, add ? _mm256_add_ps(_mm256_loadu_ps(out + 8), b[r]) : b[r]);
	}
}

static void avx2_panel(const float *x, size_t x_stride, uint32_t rows, const float *panel, uint32_t cols, float *y, size_t y_stride,
		       int add)
{
	for (uint32_t r = 0; r < rows;) {
		const float *from = x + (size_t)r * x_stride;
		float *to = y + (size_t)r * y_stride;

		if (rows - r >= 6) {
			panel_rows(from, x_stride, panel, cols, to, y_stride, add, 6);
			r += 6;
		} else if (rows - r >= 4) {
			panel_rows(from, x_stride, panel, cols, to, y_stride, add, 4);
			r += 4;
		} else {
			panel_rows(from, x_stride, panel, cols, to, y_stride, add, 1);
			r++;
		}
	}
}

/* The largest of n numbers; a NaN never is. */
static float highest(const float *x, uint32_t n)
{
	__m256 top8 = _mm256_set1_ps(-INFINITY);
	float top = -INFINITY, lane[8];
	uint32_t i = 0;

	for (; i + 8 <= n; i += 8)	/* the second operand comes out when one is NaN */
		top8 = _mm256_max_ps(_mm256_loadu_ps(x + i), top8);
	_mm256_storeu_ps(lane, top8);
	for (int k = 0; k < 8; k++)
		top = lane[k] > top ? lane[k] : top;
	for (; i < n; i++)
		top = x[i] > top ? x[i] : top;
	return top;
}

static float avx2_exps(float *x, uint32_t n)
{
	const float top = highest(x, n);
	const __m256 top8 = _mm256_set1_ps(top);
	__m256 sum8s = _mm256_setzero_ps();
	float sum;
	uint32_t i = 0;

	for (; i + 8 <= n; i += 8) {
		const __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), top8));

		_mm256_storeu_ps(x + i, e);
		sum8s = _mm256_add_ps(sum8s, e);
	}
	sum = sum8(sum8s);
	for (; i < n; i++) {
		x[i] = expf(x[i] - top);
		sum += x[i];
	}
	return sum;
}

/* --- small things ----------------------------------------------------------------------------------------- */

static void avx2_norm(const float *x, const float *weight, uint32_t n, float eps, float *out)
{
	__m256 t = _mm256_setzero_ps();
	float s, scale;
	uint32_t i = 0;

	for (; i + 8 <= n; i += 8)
		t = _mm256_fmadd_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(x + i), t);
	s = sum8(t);
	for (; i < n; i++)
		s += x[i] * x[i];
	scale = 1.0f / sqrtf(s / (float)n + eps);
	for (i = 0; i < n; i++)
		out[i] = x[i] * scale * weight[i];
}

static void avx2_silu_mul(float *gate, const float *up, uint32_t n)
{
	const __m256 one = _mm256_set1_ps(1.0f);
	uint32_t i = 0;

	for (; i + 8 <= n; i += 8) {
		__m256 g = _mm256_loadu_ps(gate + i), e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));

		g = _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(one, e)), _mm256_loadu_ps(up + i));
		_mm256_storeu_ps(gate + i, g);
	}
	for (; i < n; i++)
		gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static double avx2_lse(const float *x, uint32_t n)
{
	const float top = highest(x, n);
	const __m256 top8 = _mm256_set1_ps(top);
	__m256d a = _mm256_setzero_pd(), b = a;
	double sum[4], total;
	uint32_t i = 0;

	for (; i + 8 <= n; i += 8) {
		__m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), top8));

		a = _mm256_add_pd(a, _mm256_cvtps_pd(_mm256_castps256_ps128(e)));
		b = _mm256_add_pd(b, _mm256_cvtps_pd(_mm256_extractf128_ps(e, 1)));
	}
	_mm256_storeu_pd(sum, _mm256_add_pd(a, b));
	total = (sum[0] + sum[2]) + (sum[1] + sum[3]);
	for (; i < n; i++)
		total += exp((double)(x[i] - top));
	return (double)top + log(total);
}

static uint32_t avx2_best(const float *x, uint32_t n)
{
	const float top = highest(x, n);

	for (uint32_t i = 0; i < n; i++)
		if (x[i] == top)
			return i;
	return 0;
}

const struct kernels kernels_avx2 = {
	.isa = "avx2", .pack = avx2_pack, .product = avx2_product, .norm = avx2_norm, .silu_mul = avx2_silu_mul,
	.lse = avx2_lse, .best = avx2_best, .panel = avx2_panel, .exps = avx2_exps,
};
#endif
