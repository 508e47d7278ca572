#include "examples/llama/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/llama/bpe.h"
#include "examples/llama/gguf.h"
#include "examples/llama/unicode.h"

enum { TYPE_CONTROL = 3, TYPE_USER = 4 };	/* tokenizer.ggml.token_type */

#define MAX_TOKENS (1u << 22)

static const char chat_system[] = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
static const char *const end_names[] = { "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>" };

struct token {
	uint32_t at, bytes;	/* in the arena */
	int32_t type;
};

struct tokenizer {
	uint32_t n;
	struct token *token;
	char *arena;
	struct bpe *bpe;
	int32_t *special;	/* ids of control and user-defined tokens, the longest names first */
	uint32_t n_special;
	int split_digits;
	int32_t bos, eos;
};

int tokens_add(struct tokens *list, int32_t id)
{
	if (list->n == list->room) {
		size_t room = list->room ? 2 * list->room : 256;
		int32_t *more = realloc(list->id, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		list->id = more;
		list->room = room;
	}
	list->id[list->n++] = id;
	return 0;
}

/* --- loading ---------------------------------------------------------------------------------------------- */

static int is_special(const struct token *t)
{
	return t->type == TYPE_CONTROL || t->type == TYPE_USER;
}

/* Texts of the tokens as bytes. */
static int load_texts(struct tokenizer *tok, const struct gguf_text *text, const void *types, size_t n_types)
{
	size_t total = 0, at = 0;

	for (uint32_t i = 0; i < tok->n; i++)
		total += text[i].bytes;
	if (total > UINT32_MAX)
		return -EINVAL;
	tok->token = calloc(tok->n, sizeof(*tok->token));
	tok->arena = malloc(total ? total : 1);
	if (!tok->token || !tok->arena)
		return -ENOMEM;
	for (uint32_t i = 0; i < tok->n; i++) {
		struct token *t = &tok->token[i];

		t->at = (uint32_t)at;
		t->type = 1;
		if (i < n_types)
			memcpy(&t->type, (const char *)types + 4 * (size_t)i, 4);
		if (is_special(t)) {
			memcpy(tok->arena + at, text[i].at, text[i].bytes);
			t->bytes = (uint32_t)text[i].bytes;
		} else {
			t->bytes = (uint32_t)bpe_bytes(text[i].at, text[i].bytes, tok->arena + at);
		}
		at += t->bytes;
		tok->n_special += (uint32_t)is_special(t);
	}
	return 0;
}

static int load_special(struct tokenizer *tok)
{
	uint32_t n = 0;

	tok->special = malloc((tok->n_special ? tok->n_special : 1) * sizeof(*tok->special));
	if (!tok->special)
		return -ENOMEM;
	for (uint32_t i = 0; i < tok->n; i++) {
		uint32_t k;

		if (!is_special(&tok->token[i]) || tok->token[i].bytes == 0)
			continue;
		for (k = n++; k > 0 && tok->token[tok->special[k - 1]].bytes < tok->token[i].bytes; k--)
			tok->special[k] = tok->special[k - 1];
		tok->special[k] = (int32_t)i;
	}
	tok->n_special = n;
	return 0;
}

static int32_t load_id(const struct gguf *file, const char *key, uint32_t n)
{
	uint32_t id;

	return gguf_u32(file, key, &id) == 0 && id < n ? (int32_t)id : -1;
}

static int check_kind(const struct gguf *file, struct tokenizer *tok, char *why, size_t why_bytes)
{
	struct gguf_text model = { "?", 1 }, pre = { "gpt-2", 5 };

	gguf_string(file, "tokenizer.ggml.model", &model);
	gguf_string(file, "tokenizer.ggml.pre", &pre);
	if (model.bytes != 4 || memcmp(model.at, "gpt2", 4) != 0) {
		snprintf(why, why_bytes, "%s: its tokenizer is of the kind \"%.*s\"; this program knows \"gpt2\" (byte-pair encoding)",
			 gguf_name(file), (int)(model.bytes < 40 ? model.bytes : 40), model.at);
		return -EINVAL;
	}
	tok->split_digits = pre.bytes == 6 && memcmp(pre.at, "smollm", 6) == 0;
	if (!tok->split_digits && (pre.bytes != 5 || memcmp(pre.at, "gpt-2", 5) != 0)) {
		snprintf(why, why_bytes, "%s: its tokenizer splits text by the rule \"%.*s\"; this program knows \"smollm\" and \"gpt-2\"",
			 gguf_name(file), (int)(pre.bytes < 40 ? pre.bytes : 40), pre.at);
		return -EINVAL;
	}
	return 0;
}

static int load(const struct gguf *file, struct tokenizer *tok, char *why, size_t why_bytes)
{
	struct gguf_text *text = NULL, *merge = NULL;
	size_t n = 0, n_merges = 0, n_types = 0;
	const void *types = NULL;
	int add_bos = 0, err;

	err = check_kind(file, tok, why, why_bytes);
	if (err)
		return err;
	err = gguf_strings(file, "tokenizer.ggml.tokens", &text, &n);
	if (!err)
		err = gguf_strings(file, "tokenizer.ggml.merges", &merge, &n_merges);
	if (!err && (n < 256 || n > MAX_TOKENS || n_merges > MAX_TOKENS))
		err = -EINVAL;
	if (err)
		goto out;
	gguf_i32s(file, "tokenizer.ggml.token_type", &types, &n_types);
	tok->n = (uint32_t)n;
	err = load_texts(tok, text, types, n_types);
	if (!err)
		err = load_special(tok);
	if (!err)
		err = bpe_new(text, tok->n, merge, (uint32_t)n_merges, &tok->bpe);
	gguf_bool(file, "tokenizer.ggml.add_bos_token", &add_bos);
	tok->bos = add_bos ? load_id(file, "tokenizer.ggml.bos_token_id", tok->n) : -1;
	tok->eos = load_id(file, "tokenizer.ggml.eos_token_id", tok->n);
out:
	free(text);
	free(merge);
	if (err)
		snprintf(why, why_bytes, err == -ENOMEM ? "out of memory" : "%s: its vocabulary is missing or inconsistent",
			 gguf_name(file));
	return err == -ENOENT ? -EINVAL : err;
}

int tokenizer_new(const struct gguf *file, struct tokenizer **out, char *why, size_t why_bytes)
{
	struct tokenizer *tok = calloc(1, sizeof(*tok));
	int err = tok ? load(file, tok, why, why_bytes) : -ENOMEM;

	if (err)
		tokenizer_free(tok);
	else
		*out = tok;
	return err;
}

void tokenizer_free(struct tokenizer *tok)
{
	if (!tok)
		return;
	bpe_free(tok->bpe);
	free(tok->special);
	free(tok->token);
	free(tok->arena);
	free(tok);
}

/* --- splitting -------------------------------------------------------------------------------------------- */

/* Class of the character at @at; -1 at the end. @used: its bytes. */
static int class_at(const char *s, size_t n, size_t at, size_t *used)
{
	*used = 0;
	return at < n ? (int)unicode_class_of(unicode_next(s + at, n - at, used)) : -1;
}

static size_t contraction(const char *s, size_t n)
{
	if (n >= 2 && s[0] == '\'' && (s[1] == 's' || s[1] == 't' || s[1] == 'm' || s[1] == 'd'))
		return 2;
	if (n >= 3 && s[0] == '\'' && (memcmp(s + 1, "re", 2) == 0 || memcmp(s + 1, "ve", 2) == 0 || memcmp(s + 1, "ll", 2) == 0))
		return 3;
	return 0;
}

/* Length of the first piece by GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t first_piece(const char *s, size_t n)
{
	size_t at = contraction(s, n), used, last = 0;
	int class;

	if (at)
		return at;
	at = s[0] == ' ';
	class = class_at(s, n, at, &used);
	if (class < 0 || class == UNICODE_SPACE) {		/* spaces; the last one goes with the word that follows */
		at = 0;
		while (class_at(s, n, at, &used) == UNICODE_SPACE) {
			last = at;
			at += used;
		}
		return at < n && last > 0 ? last : at;
	}
	for (int next = class; next == class; next = class_at(s, n, at, &used))
		at += used;
	return at;
}

static int encode_plain(const struct tokenizer *tok, struct bpe_work *work, const char *s, size_t n, struct tokens *out)
{
	while (n > 0) {
		size_t used, segment = 0, piece;
		int err;

		if (tok->split_digits) {	/* a number character by itself, or all up to the next one */
			while (segment < n && class_at(s, n, segment, &used) != UNICODE_NUMBER)
				segment += used;
			if (segment == 0)
				class_at(s, n, 0, &segment);
		} else {
			segment = n;
		}
		for (n -= segment; segment > 0; segment -= piece, s += piece) {
			piece = first_piece(s, segment);
			err = bpe_encode(tok->bpe, work, s, piece, out);
			if (err)
				return err;
		}
	}
	return 0;
}

/* Where the next special token's name is, or n. User-defined tokens are always found, control tokens only if asked for. */
static size_t next_special(const struct tokenizer *tok, const char *s, size_t n, int control, int32_t *id)
{
	for (size_t at = 0; at < n; at++) {
		for (uint32_t k = 0; k < tok->n_special; k++) {
			const struct token *t = &tok->token[tok->special[k]];

			if (s[at] == tok->arena[t->at] && t->bytes <= n - at && (control || t->type == TYPE_USER) &&
			    memcmp(s + at, tok->arena + t->at, t->bytes) == 0) {
				*id = tok->special[k];
				return at;
			}
		}
	}
	return n;
}

int tokenizer_encode(const struct tokenizer *tok, const char *text, size_t bytes, int special, struct tokens *out)
{
	struct bpe_work work = { 0 };
	int err = 0;

	while (bytes > 0 && !err) {
		int32_t id = -1;
		size_t plain = next_special(tok, text, bytes, special, &id);

		err = encode_plain(tok, &work, text, plain, out);
		text += plain;
		bytes -= plain;
		if (!err && id >= 0) {
			err = tokens_add(out, id);
			text += tok->token[id].bytes;
			bytes -= tok->token[id].bytes;
		}
	}
	bpe_work_free(&work);
	return err;
}

/* --- turns ------------------------------------------------------------------------------------------------ */

static int turn(const struct tokenizer *tok, const char *role, const char *text, size_t bytes, struct tokens *out)
{
	size_t role_bytes = strlen(role);
	char *whole = malloc(role_bytes + 1 + bytes + 1);
	int err;

	if (!whole)
		return -ENOMEM;
	memcpy(whole, role, role_bytes);
	whole[role_bytes] = '\n';
	if (bytes)
		memcpy(whole + role_bytes + 1, text, bytes);
	err = tokens_add(out, tokenizer_find(tok, "<|im_start|>"));
	if (!err)
		err = tokenizer_encode(tok, whole, role_bytes + 1 + bytes, 0, out);
	free(whole);
	return err;
}

static int turn_end(const struct tokenizer *tok, struct tokens *out)
{
	int err = tokens_add(out, tokenizer_find(tok, "<|im_end|>"));

	return err ? err : tokenizer_encode(tok, "\n", 1, 0, out);
}

int tokenizer_chat(const struct tokenizer *tok, const char *system, const char *user, size_t user_bytes, struct tokens *out)
{
	int err;

	if (tokenizer_find(tok, "<|im_start|>") < 0 || tokenizer_find(tok, "<|im_end|>") < 0)
		return -ENOTSUP;
	if (!system)
		system = chat_system;
	err = turn(tok, "system", system, strlen(system), out);
	if (!err)
		err = turn_end(tok, out);
	if (!err)
		err = turn(tok, "user", user, user_bytes, out);
	if (!err)
		err = turn_end(tok, out);
	return err ? err : turn(tok, "assistant", "", 0, out);
}

/* --- asking ----------------------------------------------------------------------------------------------- */

uint32_t tokenizer_size(const struct tokenizer *tok)
{
	return tok->n;
}

const char *tokenizer_text(const struct tokenizer *tok, int32_t id, size_t *bytes)
{
	const struct token *t;

	*bytes = 0;
	if (id < 0 || (uint32_t)id >= tok->n)
		return "";
	t = &tok->token[id];
	if (t->type != TYPE_CONTROL)
		*bytes = t->bytes;
	return tok->arena + t->at;
}

int32_t tokenizer_find(const struct tokenizer *tok, const char *name)
{
	for (uint32_t k = 0; k < tok->n_special; k++) {
		const struct token *t = &tok->token[tok->special[k]];

		if (t->bytes == strlen(name) && memcmp(tok->arena + t->at, name, t->bytes) == 0)
			return tok->special[k];
	}
	return -1;
}

int tokenizer_is_end(const struct tokenizer *tok, int32_t id)
{
	if (id == tok->eos)
		return 1;
	for (size_t i = 0; i < sizeof(end_names) / sizeof(end_names[0]); i++)
		if (id >= 0 && id == tokenizer_find(tok, end_names[i]))
			return 1;
	return 0;
}

int32_t tokenizer_bos(const struct tokenizer *tok)
{
	return tok->bos;
}
