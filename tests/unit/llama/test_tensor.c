/*
 * Block formats against an independent reading of them in float64, products against float64, and bit equality over the number
 * of rows and threads. Bounds of errors follow from float32: n additions of terms of known size.
 */
#include "image.h"

#include <float.h>
#include <math.h>

#include "examples/llama/kernels.h"
#include "examples/llama/team.h"
#include "examples/llama/tensor.h"

static const enum tensor_type all_types[] = {
	TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_Q4_0, TENSOR_Q4_1, TENSOR_Q5_0, TENSOR_Q5_1, TENSOR_Q8_0, TENSOR_Q4_K,
	TENSOR_Q5_K, TENSOR_Q6_K,
};
#define N_ALL (sizeof(all_types) / sizeof(all_types[0]))

/* --- the reference: element i of a row, straight from the definition of the format ------------------------ */

static double half(const unsigned char *p)
{
	unsigned bits = p[0] | (unsigned)p[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
	double v = exponent ? ldexp(1024.0 + mantissa, (int)exponent - 25) : ldexp(mantissa, -24);

	return bits & 0x8000 ? -v : v;
}

static unsigned bit(const unsigned char *p, unsigned i)
{
	return (unsigned)p[i / 8] >> i % 8 & 1u;
}

/* The six bits number k of eight scales (which = 0) or minima (1): low four or six bits first, then the two spare ones. */
static unsigned six(const unsigned char *s, unsigned k, unsigned which)
{
	if (k < 4)
		return s[k + 4 * which] & 63u;
	return (which ? s[k + 4] >> 4 : s[k + 4] & 15u) + 16u * (s[k - 4 + 4 * which] >> 6);
}

static double element(enum tensor_type type, const unsigned char *row, unsigned i)
{
	const unsigned char *b;
	unsigned k = i % 32, q;
	float f;

	switch (type) {
	case TENSOR_F32:
		memcpy(&f, row + 4 * i, 4);
		return (double)f;
	case TENSOR_F16:
		return half(row + 2 * i);
	case TENSOR_BF16:
		q = (unsigned)row[2 * i] << 16 | (unsigned)row[2 * i + 1] << 24;
		memcpy(&f, &q, 4);
		return (double)f;
	case TENSOR_Q8_0:
		b = row + i / 32 * 34;
		return half(b) * (b[2 + k] < 128 ? b[2 + k] : b[2 + k] - 256);
	case TENSOR_Q4_0:
		b = row + i / 32 * 18;
		return half(b) * ((int)(b[2 + k % 16] >> (k < 16 ? 0 : 4) & 15) - 8);
	case TENSOR_Q4_1:
		b = row + i / 32 * 20;
		return half(b) * (b[4 + k % 16] >> (k < 16 ? 0 : 4) & 15) + half(b + 2);
	case TENSOR_Q5_0:
		b = row + i / 32 * 22;
		q = ((unsigned)b[6 + k % 16] >> (k < 16 ? 0 : 4) & 15u) + 16u * bit(b + 2, k);
		return half(b) * ((int)q - 16);
	case TENSOR_Q5_1:
		b = row + i / 32 * 24;
		q = ((unsigned)b[8 + k % 16] >> (k < 16 ? 0 : 4) & 15u) + 16u * bit(b + 4, k);
		return half(b) * q + half(b + 2);
	default:
		break;
	}
	k = i % 256 / 32;	/* of the eight parts of a k-block */
	if (type == TENSOR_Q4_K || type == TENSOR_Q5_K) {
		b = row + i / 256 * (type == TENSOR_Q4_K ? 144 : 176);
		q = (unsigned)b[(type == TENSOR_Q4_K ? 16 : 48) + k / 2 * 32 + i % 32] >> 4 * (k & 1) & 15u;
		if (type == TENSOR_Q5_K)
			q += 16u * ((unsigned)b[16 + i % 32] >> k & 1u);
		return half(b) * six(b + 4, k, 0) * q - half(b + 2) * six(b + 4, k, 1);
	}
	b = row + i / 256 * 210;
	q = (unsigned)b[k / 4 * 64 + k % 2 * 32 + i % 32] >> (k % 4 < 2 ? 0 : 4) & 15u;
	q += 16u * ((unsigned)b[128 + k / 4 * 32 + i % 32] >> 2 * (k % 4) & 3u);
	return half(b + 208) * (int8_t)b[192 + i % 256 / 16] * ((int)q - 32);
}

/* Where a block's float16 numbers are. */
static void scales_at(enum tensor_type type, size_t *bytes, int *first, int *second)
{
	*bytes = tensor_row_bytes(type, type >= TENSOR_Q4_K && type <= TENSOR_Q6_K ? 256 : 32);
	*first = type == TENSOR_Q6_K ? 208 : 0;
	*second = type == TENSOR_Q4_1 || type == TENSOR_Q5_1 || type == TENSOR_Q4_K || type == TENSOR_Q5_K ? 2 : -1;
}

/* Random weights of a size that occurs: any bits for the integers, scales between 2^-9 and 2^-6 with either sign. */
static struct tensor make_weights(enum tensor_type type, uint32_t cols, uint32_t rows, uint32_t *seed, unsigned char **bytes)
{
	struct tensor w = { NULL, type, cols, rows, tensor_row_bytes(type, cols) };
	size_t n = w.row_bytes * rows, block;
	int first, second;

	*bytes = malloc(n);
	assert_non_null(*bytes);
	for (size_t i = 0; i < n; i++)
		(*bytes)[i] = (unsigned char)image_random(seed);
	if (type == TENSOR_F32) {
		for (size_t i = 0; i < n; i += 4) {
			float f = image_random_float(seed);

			memcpy(*bytes + i, &f, 4);
		}
	} else if (type == TENSOR_F16 || type == TENSOR_BF16) {		/* exponents around that of 1 */
		for (size_t i = 1; i < n; i += 2)
			(*bytes)[i] = (unsigned char)(((*bytes)[i] & 0x83) | (type == TENSOR_F16 ? 0x38 : 0x3e));
	} else {
		scales_at(type, &block, &first, &second);
		for (size_t i = 0; i < n; i += block) {
			(*bytes)[i + (size_t)first + 1] = (unsigned char)(0x18 + image_random(seed) % 12 + 128 * (image_random(seed) & 1));
			if (second >= 0)
				(*bytes)[i + (size_t)second + 1] = (unsigned char)(0x18 + image_random(seed) % 12 +
										   128 * (image_random(seed) & 1));
		}
	}
	w.data = *bytes;
	return w;
}

static void every_format_is_read_as_defined(void **state)
{
	uint32_t seed = 1;

	(void)state;
	for (size_t k = 0; k < N_ALL; k++) {
		unsigned char *bytes;
		struct tensor w = make_weights(all_types[k], 512, 5, &seed, &bytes);
		float row[512];

		for (uint32_t r = 0; r < w.rows; r++) {
			tensor_row(&w, r, row);
			for (uint32_t i = 0; i < w.cols; i++) {
				double want = element(w.type, bytes + r * w.row_bytes, i);

				if (fabs((double)row[i] - want) > 1e-6 * (1.0 + fabs(want)))
					fail_msg("%s: row %u element %u is %g, not %g", tensor_type_name(w.type), r, i,
						 (double)row[i], want);
			}
		}
		free(bytes);
	}
}

static void every_half_is_exact(void **state)
{
	(void)state;
	for (unsigned bits = 0; bits < 0x10000; bits++) {
		unsigned char p[2] = { (unsigned char)bits, (unsigned char)(bits >> 8) };
		float f = tensor_half((uint16_t)bits);

		if ((bits & 0x7c00) == 0x7c00)
			assert_true(bits & 1023 ? isnan(f) : isinf(f) && (f < 0.0f) == (bits >> 15 == 1));
		else
			assert_true((double)f == half(p));
	}
}

static void sizes_are_those_of_the_format(void **state)
{
	(void)state;
	assert_int_equal(tensor_row_bytes(TENSOR_Q4_1, 576), 360);
	assert_int_equal(tensor_row_bytes(TENSOR_Q8_0, 576), 612);
	assert_int_equal(tensor_row_bytes(TENSOR_Q6_K, 512), 420);
	assert_int_equal(tensor_row_bytes(TENSOR_Q4_1, 33), 0);
	assert_int_equal(tensor_row_bytes(TENSOR_F32, 7), 28);
	assert_int_equal(tensor_row_bytes(9999, 32), 0);
	assert_null(tensor_type_name(9999));
}

/* --- products --------------------------------------------------------------------------------------------- */

static float *product(struct team *team, const struct tensor *w, const float *x, uint32_t rows)
{
	size_t floats = tensor_scratch(w->cols, rows, team_size(team));
	float *scratch = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64), *y = malloc((size_t)rows * w->rows * sizeof(float));

	assert_non_null(scratch);
	assert_non_null(y);
	tensor_matmul(team, w, x, rows, y, w->rows, scratch);
	free(scratch);
	return y;
}

/* What an element is summed as: the four-bit kernels add d (16 + q) and, apart, multiples of d and m. */
static double largest_term(const struct tensor *w, uint32_t row, uint32_t i, double e)
{
	const unsigned char *p = (const unsigned char *)w->data + row * w->row_bytes;

	if (w->type == TENSOR_Q4_0)
		return e + 32 * fabs(half(p + i / 32 * 18));
	if (w->type == TENSOR_Q4_1)
		return e + 32 * fabs(half(p + i / 32 * 20)) + fabs(half(p + i / 32 * 20 + 2));
	return e;
}

static void close_to_float64(const struct tensor *w, const float *x, uint32_t rows, const float *y)
{
	for (uint32_t r = 0; r < rows; r++) {
		for (uint32_t j = 0; j < w->rows; j++) {
			double want = 0.0, size = 0.0, got = (double)y[(size_t)r * w->rows + j];

			for (uint32_t i = 0; i < w->cols; i++) {
				double e = element(w->type, (const unsigned char *)w->data + j * w->row_bytes, i);

				want += e * (double)x[(size_t)r * w->cols + i];
				size += largest_term(w, j, i, fabs(e)) * fabs((double)x[(size_t)r * w->cols + i]);
			}
			if (fabs(got - want) > 8 * (double)FLT_EPSILON * size + 1e-30)
				fail_msg("%s %ux%u row %u of %u output %u: %.9g, not %.9g", tensor_type_name(w->type), w->cols, w->rows,
					 r, rows, j, got, want);
		}
	}
}

static const uint32_t widths[] = { 32, 64, 96, 256, 288, 576, 1536 };

static void products_are_those_of_float64(void **state)
{
	struct team *team;
	uint32_t seed = 2;

	(void)state;
	assert_int_equal(team_new(1, &team), 0);
	for (size_t k = 0; k < N_ALL; k++) {
		for (size_t c = 0; c < sizeof(widths) / sizeof(widths[0]); c++) {
			unsigned char *bytes;
			struct tensor w;
			float *x, *y;

			if (tensor_row_bytes(all_types[k], widths[c]) == 0)
				continue;
			w = make_weights(all_types[k], widths[c], 21, &seed, &bytes);
			x = malloc(11 * (size_t)w.cols * sizeof(float));
			assert_non_null(x);
			for (uint32_t i = 0; i < 11 * w.cols; i++)	/* sizes from 2^-20 to 2^10, as residual streams have */
				x[i] = ldexpf(image_random_float(&seed), (int)(image_random(&seed) % 31) - 20);
			y = product(team, &w, x, 11);
			close_to_float64(&w, x, 11, y);
			free(y);
			free(x);
			free(bytes);
		}
	}
	team_free(team);
}

static void results_do_not_depend_on_rows_or_threads(void **state)
{
	enum { MOST = 21 };
	uint32_t seed = 3;

	(void)state;
	for (size_t k = 0; k < N_ALL; k++) {
		unsigned char *bytes;
		struct tensor w = make_weights(all_types[k], k & 1 ? 256 : 768, 37, &seed, &bytes);
		float *x = malloc(MOST * (size_t)w.cols * sizeof(float)), *want[MOST];
		struct team *team;

		assert_non_null(x);
		for (uint32_t i = 0; i < MOST * w.cols; i++)
			x[i] = image_random_float(&seed);
		assert_int_equal(team_new(1, &team), 0);
		for (uint32_t r = 0; r < MOST; r++)
			want[r] = product(team, &w, x + (size_t)r * w.cols, 1);
		team_free(team);
		for (unsigned threads = 1; threads <= 3; threads++) {
			assert_int_equal(team_new(threads, &team), 0);
			for (uint32_t rows = 1; rows <= MOST; rows++) {
				float *y = product(team, &w, x, rows);

				for (uint32_t r = 0; r < rows; r++)
					assert_memory_equal(y + (size_t)r * w.rows, want[r], w.rows * sizeof(float));
				free(y);
			}
			team_free(team);
		}
		for (uint32_t r = 0; r < MOST; r++)
			free(want[r]);
		free(x);
		free(bytes);
	}
}

/* --- small things, with both instruction sets ------------------------------------------------------------- */

static void check_small(const struct kernels *k)
{
	uint32_t seed = 4;

	for (uint32_t n = 1; n < 200; n += n < 20 ? 1 : 37) {
		float x[200], up[200], out[200];
		double total = 0.0, squares = 0.0;

		for (uint32_t i = 0; i < n; i++) {
			x[i] = 30.0f * image_random_float(&seed);
			up[i] = image_random_float(&seed);
			total += exp((double)x[i]);
			squares += (double)x[i] * (double)x[i];
		}
		assert_true(fabs(k->lse(x, n) - log(total)) < 2e-6 * (1.0 + fabs(log(total))));
		k->norm(x, up, n, 1e-5f, out);
		for (uint32_t i = 0; i < n; i++) {
			double want = (double)x[i] / sqrt(squares / n + (double)1e-5f) * (double)up[i];

			assert_true(fabs((double)out[i] - want) < 2e-6 * (1e-3 + fabs(want)));
		}
		memcpy(out, x, sizeof(out));
		k->silu_mul(out, up, n);
		for (uint32_t i = 0; i < n; i++) {
			double want = (double)x[i] / (1.0 + exp(-(double)x[i])) * (double)up[i];

			assert_true(fabs((double)out[i] - want) < 2e-6 * (1e-6 + fabs(want)));
		}
	}
}

static void check_extremes(const struct kernels *k)
{
	float x[19], one = 1.0f;

	for (int i = 0; i < 19; i++)
		x[i] = -3.0f;
	x[5] = x[11] = x[18] = 7.0f;
	assert_int_equal(k->best(x, 19), 5);	/* the lowest of equals */
	x[5] = NAN;
	assert_int_equal(k->best(x, 19), 11);
	for (int i = 0; i < 19; i++)
		x[i] = -INFINITY;
	x[17] = -1e30f;
	assert_int_equal(k->best(x, 19), 17);
	assert_true(k->lse(x, 19) == (double)-1e30f);
	for (int i = 0; i < 19; i++)
		x[i] = i & 1 ? 1e4f : -1e4f;
	assert_true(fabs(k->lse(x, 19) - (1e4 + log(9.0))) < 1e-6 * 1e4);
	for (int i = 0; i < 16; i++) {		/* silu of very large and very small numbers: x and 0, never NaN */
		float gate[8], up[8];

		for (int c = 0; c < 8; c++) {
			gate[c] = i & 1 ? -ldexpf(one, i) : ldexpf(one, i);
			up[c] = 1.0f;
		}
		k->silu_mul(gate, up, 8);
		for (int c = 0; c < 8; c++)
			assert_true(i & 1 ? gate[c] <= 0.0f && gate[c] > -0.27f : gate[c] > 0.7f * ldexpf(one, i));
	}
}

static void small_functions_are_right_in_plain_c(void **state)
{
	(void)state;
	check_small(&kernels_plain);
	check_extremes(&kernels_plain);
}

static void small_functions_are_right_with_vectors(void **state)
{
	(void)state;
#if defined(__x86_64__)
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
		check_small(&kernels_avx2);
		check_extremes(&kernels_avx2);
		return;
	}
#endif
	skip();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_format_is_read_as_defined),
		cmocka_unit_test(every_half_is_exact),
		cmocka_unit_test(sizes_are_those_of_the_format),
		cmocka_unit_test(products_are_those_of_float64),
		cmocka_unit_test(results_do_not_depend_on_rows_or_threads),
		cmocka_unit_test(small_functions_are_right_in_plain_c),
		cmocka_unit_test(small_functions_are_right_with_vectors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
