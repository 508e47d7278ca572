/* gguf.c: what a good file says, and that no damaged one is believed or read out of bounds (run under ASan too). */
#include "image.h"

#include <errno.h>
#include <unistd.h>

#include "examples/llama/gguf.h"

static char why[512];

static struct image good(void)
{
	struct image im = { 0 };

	image_head(&im, 3, 2, 5);
	image_key_u32(&im, "a.number", 42);
	image_key_f32(&im, "a.float", 0.5f);
	image_key_text(&im, "a.text", "hello");
	image_key_array(&im, "a.list", 8, 2);
	image_text(&im, "one");
	image_text(&im, "");
	image_key_array(&im, "a.ints", 5, 3);
	image_u32(&im, 7);
	image_u32(&im, 8);
	image_u32(&im, 9);
	image_tensor(&im, "matrix", 4, 3);
	image_tensor(&im, "vector", 5, 0);
	image_align(&im);
	for (int i = 0; i < 16 + 8; i++) {
		float f = (float)i;

		image_put(&im, &f, 4);
	}
	return im;
}

/* Parses a copy of exactly n bytes, so that ASan sees any read beyond them. */
static int parse(const unsigned char *bytes, size_t n, struct gguf **out, unsigned char **copy)
{
	*copy = malloc(n ? n : 1);
	assert_non_null(*copy);
	memcpy(*copy, bytes, n);
	why[0] = '\0';
	return gguf_parse(*copy, n, "test", out, why, sizeof(why));
}

static void refused(const struct image *im, const char *because)
{
	struct gguf *f = NULL;
	unsigned char *copy;

	assert_int_equal(parse(im->bytes, im->n, &f, &copy), -EPROTO);
	assert_null(f);
	if (!strstr(why, because))
		fail_msg("the sentence \"%s\" does not say \"%s\"", why, because);
	free(copy);
}

static void a_good_file_is_read(void **state)
{
	struct image im = good();
	struct gguf *f = NULL;
	struct gguf_text text, *list;
	struct tensor t;
	unsigned char *copy;
	const void *ints;
	uint32_t u = 0;
	float x = 0.0f;
	size_t n = 0;
	int third;

	(void)state;
	assert_int_equal(parse(im.bytes, im.n, &f, &copy), 0);
	assert_int_equal(gguf_u32(f, "a.number", &u), 0);
	assert_int_equal(u, 42);
	assert_int_equal(gguf_f32(f, "a.float", &x), 0);
	assert_true(x == 0.5f);
	assert_int_equal(gguf_string(f, "a.text", &text), 0);
	assert_int_equal(text.bytes, 5);
	assert_memory_equal(text.at, "hello", 5);
	assert_int_equal(gguf_strings(f, "a.list", &list, &n), 0);
	assert_int_equal(n, 2);
	assert_int_equal(list[0].bytes, 3);
	assert_int_equal(list[1].bytes, 0);
	free(list);
	assert_int_equal(gguf_i32s(f, "a.ints", &ints, &n), 0);
	assert_int_equal(n, 3);
	memcpy(&third, (const char *)ints + 8, 4);
	assert_int_equal(third, 9);
	assert_int_equal(gguf_tensor(f, "matrix", &t), 0);
	assert_int_equal(t.cols, 4);
	assert_int_equal(t.rows, 3);
	assert_true(((const float *)t.data)[11] == 11.0f);
	assert_int_equal(gguf_tensor(f, "vector", &t), 0);
	assert_int_equal(t.rows, 1);
	assert_true(((const float *)t.data)[4] == 20.0f);
	assert_int_equal(gguf_n_tensors(f), 2);
	gguf_close(f);
	free(copy);
	free(im.bytes);
}

static void a_wrong_key_or_type_is_an_error_and_changes_nothing(void **state)
{
	struct image im = good();
	struct gguf *f = NULL;
	struct gguf_text text = { "x", 1 }, *list = NULL;
	unsigned char *copy;
	uint32_t u = 5;
	size_t n = 5;

	(void)state;
	assert_int_equal(parse(im.bytes, im.n, &f, &copy), 0);
	assert_int_equal(gguf_u32(f, "nothing", &u), -ENOENT);
	assert_int_equal(gguf_u32(f, "a.text", &u), -EINVAL);
	assert_int_equal(gguf_u32(f, "a.float", &u), -EINVAL);
	assert_int_equal(gguf_string(f, "a.number", &text), -EINVAL);
	assert_int_equal(gguf_strings(f, "a.ints", &list, &n), -EINVAL);
	assert_int_equal(u, 5);
	assert_int_equal(text.bytes, 1);
	assert_null(list);
	gguf_close(f);
	free(copy);
	free(im.bytes);
}

static void every_truncation_is_refused(void **state)
{
	struct image im = good();

	(void)state;
	for (size_t n = 0; n < im.n; n++) {
		struct gguf *f = NULL;
		unsigned char *copy;
		int err = parse(im.bytes, n, &f, &copy);

		/* The last tensor has 20 bytes; 12 of padding follow it. */
		if (n + 12 >= im.n) {
			assert_int_equal(err, 0);
			gguf_close(f);
		} else {
			assert_int_equal(err, -EPROTO);
			assert_true(why[0] != '\0');
		}
		free(copy);
	}
	free(im.bytes);
}

static void any_changed_byte_is_refused_or_harmless(void **state)
{
	static const unsigned char values[] = { 0x00, 0x01, 0x7f, 0x80, 0xff };
	struct image im = good();

	(void)state;
	for (size_t at = 0; at < im.n; at++) {
		for (size_t v = 0; v < sizeof(values); v++) {
			unsigned char before = im.bytes[at], *copy;
			struct gguf *f = NULL;
			struct gguf_text *list;
			struct tensor t;
			size_t n;

			im.bytes[at] = values[v];
			if (parse(im.bytes, im.n, &f, &copy) == 0) {
				if (gguf_tensor(f, "matrix", &t) == 0) {	/* reading all of it stays in bounds */
					float *row = malloc(t.cols * sizeof(float));

					assert_non_null(row);
					for (uint32_t r = 0; r < t.rows; r++)
						tensor_row(&t, r, row);
					free(row);
				}
				if (gguf_strings(f, "a.list", &list, &n) == 0) {
					size_t sum = 0;

					for (size_t i = 0; i < n; i++)
						for (size_t k = 0; k < list[i].bytes; k++)
							sum += (unsigned char)list[i].at[k];
					assert_true(sum < SIZE_MAX);
					free(list);
				}
				gguf_close(f);
			}
			free(copy);
			im.bytes[at] = before;
		}
	}
	free(im.bytes);
}

static void hostile_counts_are_refused(void **state)
{
	struct image im = { 0 };

	(void)state;
	image_head(&im, 3, UINT64_MAX, 1);
	refused(&im, "not believed");
	im.n = 0;
	image_head(&im, 3, 0, UINT64_MAX);
	refused(&im, "not believed");
	im.n = 0;
	image_head(&im, 3, 0, 1);
	image_key_array(&im, "k", 10, UINT64_MAX);	/* times 8 bytes overflows */
	refused(&im, "truncated");
	im.n = 0;
	image_head(&im, 3, 0, 1);
	image_key_array(&im, "k", 8, UINT64_MAX);
	refused(&im, "truncated");
	im.n = 0;
	image_head(&im, 3, 0, 1);
	image_key_array(&im, "k", 9, 1);		/* an array of arrays */
	refused(&im, "type");
	im.n = 0;
	image_head(&im, 3, 0, 1);
	image_u64(&im, UINT64_MAX);			/* the length of a key */
	refused(&im, "truncated");
	free(im.bytes);
}

static void hostile_tensors_are_refused(void **state)
{
	static const struct {
		uint64_t dim[2], offset;
		uint32_t n_dims, type;
		const char *because;
	} cases[] = {
		{ { 4, 1u << 20 }, 0, 2, 0, "beyond the end" }, { { 4, 2 }, 1u << 30, 2, 0, "beyond the end" },
		{ { 4, 2 }, UINT64_MAX - 31, 2, 0, "beyond the end" }, { { 4, 2 }, 4, 2, 0, "aligned" },
		{ { UINT64_MAX, 2 }, 0, 2, 0, "shape" }, { { 4, UINT64_MAX / 16 + 1 }, 0, 2, 0, "shape" },
		{ { 0, 2 }, 0, 2, 0, "shape" }, { { 4, 0 }, 0, 2, 0, "shape" }, { { 33, 2 }, 0, 2, 3, "shape" },
		{ { 4, 2 }, 0, 0, 0, "dimensions" }, { { 4, 2 }, 0, 5, 0, "dimensions" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct image im = { 0 };

		image_head(&im, 3, 1, 0);
		image_text(&im, "t");
		image_u32(&im, cases[i].n_dims);
		for (uint32_t d = 0; d < cases[i].n_dims; d++)
			image_u64(&im, cases[i].dim[d & 1]);
		image_u32(&im, cases[i].type);
		image_u64(&im, cases[i].offset);
		image_align(&im);
		for (int k = 0; k < 16; k++)
			image_u64(&im, 0);
		refused(&im, cases[i].because);
		free(im.bytes);
	}
}

static void other_files_are_refused(void **state)
{
	struct image im = { 0 };
	struct gguf *f = NULL;

	(void)state;
	image_put(&im, "PK\3\4 not a model at all", 23);
	refused(&im, "not a GGUF file");
	im.n = 0;
	image_head(&im, 1, 0, 0);
	refused(&im, "version 1");
	im.n = 0;
	image_head(&im, 0x03000000, 0, 0);
	refused(&im, "big-endian");
	im.n = 0;
	image_head(&im, 3, 0, 1);
	image_key_u32(&im, "general.alignment", 33);
	refused(&im, "alignment");
	free(im.bytes);
	assert_int_equal(gguf_open("/nonexistent/model.gguf", &f, why, sizeof(why)), -ENOENT);
	assert_non_null(strstr(why, "/nonexistent/model.gguf"));
	assert_int_equal(gguf_open("/tmp", &f, why, sizeof(why)), -EPROTO);
	assert_int_equal(gguf_open("/dev/null", &f, why, sizeof(why)), -EPROTO);
}

static void an_unknown_tensor_type_is_refused_only_when_asked_for(void **state)
{
	struct image im = { 0 };
	struct gguf *f = NULL;
	unsigned char *copy;
	struct tensor t;

	(void)state;
	image_head(&im, 3, 1, 0);
	image_text(&im, "t");
	image_u32(&im, 1);
	image_u64(&im, 32);
	image_u32(&im, 4711);
	image_u64(&im, 0);
	assert_int_equal(parse(im.bytes, im.n, &f, &copy), 0);
	assert_int_equal(gguf_tensor(f, "t", &t), -EINVAL);
	assert_int_equal(gguf_tensor(f, "u", &t), -ENOENT);
	gguf_close(f);
	free(copy);
	free(im.bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_good_file_is_read),
		cmocka_unit_test(a_wrong_key_or_type_is_an_error_and_changes_nothing),
		cmocka_unit_test(every_truncation_is_refused),
		cmocka_unit_test(any_changed_byte_is_refused_or_harmless),
		cmocka_unit_test(hostile_counts_are_refused),
		cmocka_unit_test(hostile_tensors_are_refused),
		cmocka_unit_test(other_files_are_refused),
		cmocka_unit_test(an_unknown_tensor_type_is_refused_only_when_asked_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
