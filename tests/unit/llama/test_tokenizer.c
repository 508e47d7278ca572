/* Splitting and merging on a made-up vocabulary, and ids of the packaged model that llama.cpp gives too. */
#include "image.h"

#include <errno.h>
#include <unistd.h>

#include "examples/llama/gguf.h"
#include "examples/llama/tokenizer.h"
#include "examples/llama/unicode.h"

static char why[512];

/* --- a vocabulary of all bytes, a few merges and two special tokens --------------------------------------- */

static const char *const extra[] = { "ab", "abc", "bc", "\xc4\xa0" "a", "<|im_start|>", "<|im_end|>", "<user>" };
static const char *const merges[] = { "b c", "a b", "ab c", "\xc4\xa0 a", "a missing" };
enum { AB = 256, ABC, BC, SPACE_A, START, END, USER, N_TOKENS };

/* GPT-2's alphabet, by its definition: printable Latin-1 stands for itself, the rest from U+0100 on, in order. */
static void letter(unsigned byte, char out[5])
{
	uint32_t code = byte, next = 256;

	for (unsigned b = 0; b < 256; b++) {
		int plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;

		if (b == byte && !plain)
			code = next;
		next += !plain;
	}
	out[unicode_put(code, out)] = '\0';
}

static struct image vocabulary(const char *model, const char *pre)
{
	struct image im = { 0 };
	char text[5];

	image_head(&im, 3, 0, 6);
	image_key_text(&im, "tokenizer.ggml.model", model);
	image_key_text(&im, "tokenizer.ggml.pre", pre);
	image_key_u32(&im, "tokenizer.ggml.eos_token_id", END);
	image_key_array(&im, "tokenizer.ggml.tokens", 8, N_TOKENS);
	for (unsigned b = 0; b < 256; b++) {
		letter(b, text);
		image_text(&im, text);
	}
	for (size_t i = 0; i < N_TOKENS - 256; i++)
		image_text(&im, extra[i]);
	image_key_array(&im, "tokenizer.ggml.token_type", 5, N_TOKENS);
	for (int i = 0; i < N_TOKENS; i++)
		image_u32(&im, i == USER ? 4 : i >= START ? 3 : 1);
	image_key_array(&im, "tokenizer.ggml.merges", 8, sizeof(merges) / sizeof(merges[0]));
	for (size_t i = 0; i < sizeof(merges) / sizeof(merges[0]); i++)
		image_text(&im, merges[i]);
	return im;
}

static struct tokenizer *made_up(const char *pre)
{
	struct image im = vocabulary("gpt2", pre);
	struct tokenizer *tok = NULL;
	struct gguf *f = NULL;

	assert_int_equal(gguf_parse(im.bytes, im.n, "test", &f, why, sizeof(why)), 0);
	assert_int_equal(tokenizer_new(f, &tok, why, sizeof(why)), 0);
	gguf_close(f);
	free(im.bytes);
	return tok;
}

static void same_ids(const struct tokenizer *tok, const char *text, int special, const int32_t *id, size_t n)
{
	struct tokens list = { 0 };

	assert_int_equal(tokenizer_encode(tok, text, strlen(text), special, &list), 0);
	for (size_t i = 0; i < n && i < list.n; i++)
		if (list.id[i] != id[i])
			fail_msg("\"%s\": token %zu is %d, not %d", text, i, list.id[i], id[i]);
	assert_int_equal(list.n, n);
	free(list.id);
}

#define IDS(tok, text, special, ...) do { \
	const int32_t ids_[] = { __VA_ARGS__ }; \
	same_ids(tok, text, special, ids_, sizeof(ids_) / sizeof(ids_[0])); \
} while (0)

static void merges_go_by_rank_not_by_place(void **state)
{
	struct tokenizer *tok = made_up("smollm");

	(void)state;
	IDS(tok, "abc", 0, 'a', BC);		/* "b c" has the lower rank, so "ab c" never gets its chance */
	IDS(tok, "ab", 0, AB);
	IDS(tok, "abab", 0, AB, AB);
	IDS(tok, "bcabcb", 0, BC, 'a', BC, 'b');
	IDS(tok, " ab", 0, ' ', AB);		/* "a b" (1) before " a" (3) */
	IDS(tok, " a", 0, SPACE_A);
	IDS(tok, "a b", 0, 'a', ' ', 'b');	/* two pieces */
	tokenizer_free(tok);
}

static void special_tokens_are_text_unless_asked_for(void **state)
{
	struct tokenizer *tok = made_up("smollm");
	size_t bytes;

	(void)state;
	IDS(tok, "a<|im_start|>b", 1, 'a', START, 'b');
	IDS(tok, "<|im_end|><|im_end|>", 1, END, END);
	IDS(tok, "<|im", 1, '<', '|', 'i', 'm');
	IDS(tok, "<|im_end|>", 0, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
	IDS(tok, "a<user>", 0, 'a', USER);	/* user-defined ones are always found */
	assert_int_equal(tokenizer_find(tok, "<|im_end|>"), END);
	assert_int_equal(tokenizer_find(tok, "ab"), -1);
	assert_true(tokenizer_is_end(tok, END));
	assert_false(tokenizer_is_end(tok, 'a'));
	tokenizer_text(tok, END, &bytes);
	assert_int_equal(bytes, 0);
	tokenizer_text(tok, -1, &bytes);
	assert_int_equal(bytes, 0);
	tokenizer_text(tok, N_TOKENS, &bytes);
	assert_int_equal(bytes, 0);
	tokenizer_free(tok);
}

static void every_text_comes_back(void **state)
{
	struct tokenizer *tok = made_up("smollm"), *plain = made_up("gpt-2");
	uint32_t seed = 7;

	(void)state;
	for (int round = 0; round < 400; round++) {
		char text[120], back[120];
		size_t n = image_random(&seed) % sizeof(text), at = 0;
		struct tokens list = { 0 };

		for (size_t i = 0; i < n; i++)	/* any bytes, valid UTF-8 or not; often those that merge */
			text[i] = (char)(round & 1 ? image_random(&seed) : (uint32_t)"abc  1\n'"[image_random(&seed) % 8]);
		assert_int_equal(tokenizer_encode(round % 3 ? tok : plain, text, n, 0, &list), 0);
		for (size_t i = 0; i < list.n; i++) {
			size_t bytes;
			const char *part = tokenizer_text(tok, list.id[i], &bytes);

			assert_true(at + bytes <= n);
			memcpy(back + at, part, bytes);
			at += bytes;
		}
		assert_int_equal(at, n);
		assert_memory_equal(text, back, n);
		free(list.id);
	}
	tokenizer_free(tok);
	tokenizer_free(plain);
}

static void other_tokenizers_are_refused(void **state)
{
	static const struct { const char *model, *pre, *because; } cases[] = {
		{ "llama", "smollm", "\"llama\"" }, { "gpt2", "qwen2", "\"qwen2\"" }, { "gpt2", "smollm2", "\"smollm2\"" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct image im = vocabulary(cases[i].model, cases[i].pre);
		struct tokenizer *tok = NULL;
		struct gguf *f = NULL;

		assert_int_equal(gguf_parse(im.bytes, im.n, "test", &f, why, sizeof(why)), 0);
		assert_int_equal(tokenizer_new(f, &tok, why, sizeof(why)), -EINVAL);
		assert_null(tok);
		assert_non_null(strstr(why, cases[i].because));
		gguf_close(f);
		free(im.bytes);
	}
}

static void characters_are_taken_whole(void **state)
{
	size_t used;

	(void)state;
	assert_int_equal(unicode_next("\xe4\xbd\xa0x", 4, &used), 0x4f60);
	assert_int_equal(used, 3);
	assert_int_equal(unicode_next("\xe4\xbd", 2, &used), 0xfffd);	/* cut off */
	assert_int_equal(used, 1);
	assert_int_equal(unicode_next("\xc0\x80", 2, &used), 0xfffd);	/* longer than needed */
	assert_int_equal(unicode_next("\xed\xa0\x80", 3, &used), 0xfffd);	/* a surrogate */
	assert_int_equal(unicode_next("\xf4\x90\x80\x80", 4, &used), 0xfffd);	/* beyond the last */
	assert_int_equal(unicode_class_of(0xe9), UNICODE_LETTER);
	assert_int_equal(unicode_class_of(0xb2), UNICODE_NUMBER);
	assert_int_equal(unicode_class_of(0x3000), UNICODE_SPACE);
	assert_int_equal(unicode_class_of(0x300), UNICODE_OTHER);	/* a mark */
	assert_int_equal(unicode_class_of(0x10ffff), UNICODE_OTHER);
	assert_int_equal(unicode_whole("ab\xe4\xbd", 4), 2);
	assert_int_equal(unicode_whole("ab\xe4\xbd\xa0", 5), 5);
	assert_int_equal(unicode_whole("\x80\x80\x80\x80", 4), 4);	/* never a character: nothing to wait for */
	assert_int_equal(unicode_whole("", 0), 0);
}

/* --- the packaged model ----------------------------------------------------------------------------------- */

static struct tokenizer *packaged(void)
{
	const char *path = getenv("EBB_MODEL");
	struct tokenizer *tok = NULL;
	struct gguf *f = NULL;

	if (!path)
		path = "build/model/SmolLM2-135M-Instruct.Q4_1.gguf";
	if (access(path, R_OK))
		skip();		/* make check fetches it; a single test may run without */
	assert_int_equal(gguf_open(path, &f, why, sizeof(why)), 0);
	assert_int_equal(tokenizer_new(f, &tok, why, sizeof(why)), 0);
	gguf_close(f);
	return tok;
}

/* Ids from llama.cpp (llama-cpp-python 0.3.36). */
static void ids_equal_those_of_llama_cpp(void **state)
{
	struct tokenizer *tok = packaged();

	(void)state;
	IDS(tok, "Hello world", 0, 19556, 905);
	IDS(tok, "The year 2024, 3.14 and 1e10", 0, 504, 713, 216, 34, 32, 34, 36, 28, 216, 35, 30, 33, 36, 284, 216, 33, 85, 33, 32);
	IDS(tok, "  two  spaces\n\n\tand tabs ", 0, 216, 827, 216, 5600, 1116, 197, 397, 29416, 216);
	IDS(tok, "don't we'll I'VE 'tis", 0, 12420, 982, 392, 3060, 339, 23, 18525, 637, 34818);
	IDS(tok, "Größe naïve 你好 😀", 0, 27302, 7466, 34878, 85, 15486, 46494, 216, 18645, 250, 48392, 138, 40303, 218);
	IDS(tok, "x²+½ Ⅷ ٣٤٥", 0, 104, 19133, 27, 16738, 216, 173, 223, 117, 216, 164, 113, 164, 114, 164, 115);
	IDS(tok, "for (int i = 0; i < n; i++) {\n\treturn a[i]->b;\n}", 0, 1710, 365, 591, 2056, 446, 216, 32, 43, 2056, 2067, 304, 43,
	    2056, 11444, 25, 1662, 198, 197, 5406, 253, 75, 89, 77, 22690, 82, 43, 198, 109);
	IDS(tok, "<|im_start|>user\nhi<|im_end|>\n", 0, 44, 108, 306, 79, 3738, 108, 46, 4093, 198, 6004, 44, 108, 306, 79, 486, 108,
	    46, 198);
	IDS(tok, "<|im_start|>user\nhi<|im_end|>\n", 1, 1, 4093, 198, 6004, 2, 198);
	IDS(tok, "a   ", 0, 81, 333);
	IDS(tok, "\u3000全角 nb\u00a0sp", 0, 12109, 218, 17086, 118, 37249, 236, 32697, 15442, 2401);
	tokenizer_free(tok);
}

static void the_chat_template_is_the_models(void **state)
{
	static const int32_t want[] = {
		1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
		1, 4093, 198, 1780, 314, 216, 34, 27, 34, 47, 2, 198, 1, 520, 9531, 198,
	};
	struct tokenizer *tok = packaged();
	struct tokens list = { 0 };

	(void)state;
	assert_int_equal(tokenizer_chat(tok, NULL, "What is 2+2?", 12, &list), 0);
	assert_int_equal(list.n, sizeof(want) / sizeof(want[0]));
	assert_memory_equal(list.id, want, sizeof(want));
	assert_int_equal(tokenizer_bos(tok), -1);
	assert_true(tokenizer_is_end(tok, 2));
	assert_true(tokenizer_is_end(tok, 0));
	free(list.id);
	tokenizer_free(tok);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(merges_go_by_rank_not_by_place),
		cmocka_unit_test(special_tokens_are_text_unless_asked_for),
		cmocka_unit_test(every_text_comes_back),
		cmocka_unit_test(other_tokenizers_are_refused),
		cmocka_unit_test(characters_are_taken_whole),
		cmocka_unit_test(ids_equal_those_of_llama_cpp),
		cmocka_unit_test(the_chat_template_is_the_models),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
