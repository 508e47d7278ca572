#include "examples/llama/bpe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "examples/llama/gguf.h"
#include "examples/llama/tokenizer.h"
#include "examples/llama/unicode.h"

#define NONE (-1)

struct merge {
	int32_t left, right;	/* NONE: empty place of the table */
	uint32_t rank;
	int32_t result;
};

struct bpe {
	int32_t byte_id[256];
	struct merge *merge;	/* open addressing */
	uint32_t mask;
};

struct bpe_symbol {
	int32_t id, previous, next;	/* neighbours by index; NONE at the ends */
};

struct bpe_pair {
	uint32_t rank;
	int32_t at, left, right;	/* symbol index and the ids that were there: stale if they are not any more */
	int32_t result;
};

/* --- GPT-2's byte alphabet -------------------------------------------------------------------------------- */

/* Printable bytes stand for themselves; the 68 others are the characters from 256 on, in order. */
static int printable(unsigned b)
{
	return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
}

static uint32_t letter_of(unsigned byte)
{
	uint32_t code = 256;

	if (printable(byte))
		return byte;
	for (unsigned b = 0; b < byte; b++)
		code += !printable(b);
	return code;
}

static int byte_of(uint32_t letter)
{
	if (letter < 256)
		return printable(letter) ? (int)letter : NONE;
	for (unsigned b = 0; b < 256 && letter < 256 + 68; b++)
		if (!printable(b) && letter_of(b) == letter)
			return (int)b;
	return NONE;
}

size_t bpe_bytes(const char *text, size_t bytes, char *out)
{
	size_t n = 0, used;

	for (size_t at = 0; at < bytes; at += used) {
		int b = byte_of(unicode_next(text + at, bytes - at, &used));

		if (b >= 0)
			out[n++] = (char)b;
		else {
			memcpy(out + n, text + at, used);	/* not of the alphabet: as it is */
			n += used;
		}
	}
	return n;
}

/* --- the table of merges ---------------------------------------------------------------------------------- */

/* Names of the vocabulary, while it is loaded. */
struct names {
	const struct gguf_text *token;
	int32_t *slot;
	uint32_t mask;
};

static uint32_t hash_text(const char *s, size_t n)
{
	uint32_t h = 2166136261u;

	for (size_t i = 0; i < n; i++)
		h = (h ^ (unsigned char)s[i]) * 16777619u;
	return h ^ h >> 15;
}

static uint32_t table_size(uint32_t n)
{
	uint32_t size = 16;

	while (size < 2 * n)
		size *= 2;
	return size;
}

static int32_t *name_slot(const struct names *names, const char *s, size_t n)
{
	uint32_t i = hash_text(s, n) & names->mask;

	for (;; i = (i + 1) & names->mask) {
		int32_t id = names->slot[i];

		if (id == NONE || (names->token[id].bytes == n && memcmp(names->token[id].at, s, n) == 0))
			return &names->slot[i];
	}
}

static uint32_t hash_pair(int32_t left, int32_t right)
{
	uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;

	return (uint32_t)(h >> 32);
}

static struct merge *merge_slot(const struct bpe *bpe, int32_t left, int32_t right)
{
	uint32_t i = hash_pair(left, right) & bpe->mask;

	while (bpe->merge[i].left != NONE && (bpe->merge[i].left != left || bpe->merge[i].right != right))
		i = (i + 1) & bpe->mask;
	return &bpe->merge[i];
}

static int add_merge(struct bpe *bpe, const struct names *names, struct gguf_text text, uint32_t rank, char *joined)
{
	const char *space = text.bytes > 2 ? memchr(text.at + 1, ' ', text.bytes - 2) : NULL;
	size_t left_bytes, right_bytes;
	int32_t left, right, result;
	struct merge *m;

	if (!space)
		return -EINVAL;
	left_bytes = (size_t)(space - text.at);
	right_bytes = text.bytes - left_bytes - 1;
	memcpy(joined, text.at, left_bytes);
	memcpy(joined + left_bytes, space + 1, right_bytes);
	left = *name_slot(names, text.at, left_bytes);
	right = *name_slot(names, space + 1, right_bytes);
	result = *name_slot(names, joined, left_bytes + right_bytes);
	if (left == NONE || right == NONE || result == NONE)
		return 0;	/* can never apply */
	m = merge_slot(bpe, left, right);
	if (m->left == NONE)
		*m = (struct merge){ left, right, rank, result };
	return 0;
}

static int load_merges(struct bpe *bpe, const struct names *names, const struct gguf_text *merge, uint32_t n)
{
	size_t longest = 1;
	char *joined;
	int err = 0;

	for (uint32_t i = 0; i < n; i++)
		longest = merge[i].bytes > longest ? merge[i].bytes : longest;
	joined = malloc(longest);
	if (!joined)
		return -ENOMEM;
	for (uint32_t i = 0; i < n && !err; i++)
		err = add_merge(bpe, names, merge[i], i, joined);
	free(joined);
	return err;
}

int bpe_new(const struct gguf_text *token, uint32_t n_tokens, const struct gguf_text *merge, uint32_t n_merges, struct bpe **out)
{
	struct names names = { token, NULL, table_size(n_tokens) - 1 };
	struct bpe *bpe = calloc(1, sizeof(*bpe));
	int err = -ENOMEM;

	if (!bpe)
		return -ENOMEM;
	bpe->mask = table_size(n_merges) - 1;
	bpe->merge = malloc(((size_t)bpe->mask + 1) * sizeof(*bpe->merge));
	names.slot = malloc(((size_t)names.mask + 1) * sizeof(*names.slot));
	if (!bpe->merge || !names.slot)
		goto out;
	for (uint32_t i = 0; i <= bpe->mask; i++)
		bpe->merge[i] = (struct merge){ NONE, NONE, 0, NONE };
	for (uint32_t i = 0; i <= names.mask; i++)
		names.slot[i] = NONE;
	for (uint32_t i = 0; i < n_tokens; i++) {
		int32_t *slot = name_slot(&names, token[i].at, token[i].bytes);

		if (*slot == NONE)
			*slot = (int32_t)i;
	}
	for (unsigned b = 0; b < 256; b++) {
		char letter[4];

		bpe->byte_id[b] = *name_slot(&names, letter, unicode_put(letter_of(b), letter));
	}
	err = load_merges(bpe, &names, merge, n_merges);
out:
	free(names.slot);
	if (err)
		bpe_free(bpe);
	else
		*out = bpe;
	return err;
}

void bpe_free(struct bpe *bpe)
{
	if (!bpe)
		return;
	free(bpe->merge);
	free(bpe);
}

/* --- encoding: a linked list of symbols and a heap of the pairs that could be joined ---------------------- */

static int before(const struct bpe_pair *a, const struct bpe_pair *b)
{
	return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(struct bpe_pair *heap, size_t *n, struct bpe_pair pair)
{
	size_t i = (*n)++;

	while (i > 0 && before(&pair, &heap[(i - 1) / 2])) {
		heap[i] = heap[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	heap[i] = pair;
}

static struct bpe_pair heap_pop(struct bpe_pair *heap, size_t *n)
{
	struct bpe_pair top = heap[0], last = heap[--*n];
	size_t i = 0, child;

	while ((child = 2 * i + 1) < *n) {
		if (child + 1 < *n && before(&heap[child + 1], &heap[child]))
			child++;
		if (!before(&heap[child], &last))
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = last;
	return top;
}

static void consider(const struct bpe *bpe, struct bpe_work *w, size_t *n_heap, int32_t at)
{
	int32_t next = at == NONE ? NONE : w->symbol[at].next;
	const struct merge *m;

	if (next == NONE || w->symbol[at].id == NONE || w->symbol[next].id == NONE)
		return;
	m = merge_slot(bpe, w->symbol[at].id, w->symbol[next].id);
	if (m->left != NONE)
		heap_push(w->heap, n_heap, (struct bpe_pair){ m->rank, at, m->left, m->right, m->result });
}

static int make_room(struct bpe_work *w, size_t bytes)
{
	size_t room = bytes < 256 ? 256 : bytes;

	if (bytes <= w->room)
		return 0;
	if (bytes > INT32_MAX / 4)
		return -ENOMEM;
	bpe_work_free(w);
	w->symbol = malloc(room * sizeof(*w->symbol));
	w->heap = malloc(3 * room * sizeof(*w->heap));	/* one pair per symbol, and two more per join */
	if (!w->symbol || !w->heap)
		return -ENOMEM;
	w->room = room;
	return 0;
}

int bpe_encode(const struct bpe *bpe, struct bpe_work *work, const char *text, size_t bytes, struct tokens *out)
{
	int err = make_room(work, bytes);
	size_t n_heap = 0;

	if (err)
		return err;
	for (size_t i = 0; i < bytes; i++)
		work->symbol[i] = (struct bpe_symbol){ bpe->byte_id[(unsigned char)text[i]], (int32_t)i - 1,
						       i + 1 < bytes ? (int32_t)i + 1 : NONE };
	for (size_t i = 0; i + 1 < bytes; i++)
		consider(bpe, work, &n_heap, (int32_t)i);
	while (n_heap > 0) {
		struct bpe_pair p = heap_pop(work->heap, &n_heap);
		struct bpe_symbol *left = &work->symbol[p.at], *right = left->next == NONE ? NULL : &work->symbol[left->next];

		if (!right || left->id != p.left || right->id != p.right)
			continue;	/* one of the two has been joined with another since */
		left->id = p.result;
		right->id = NONE;
		left->next = right->next;
		if (left->next != NONE)
			work->symbol[left->next].previous = p.at;
		consider(bpe, work, &n_heap, left->previous);
		consider(bpe, work, &n_heap, p.at);
	}
	for (int32_t i = bytes ? 0 : NONE; i != NONE && !err; i = work->symbol[i].next)
		if (work->symbol[i].id != NONE)
			err = tokens_add(out, work->symbol[i].id);
	return err;
}

void bpe_work_free(struct bpe_work *work)
{
	free(work->symbol);
	free(work->heap);
	*work = (struct bpe_work){ 0 };
}
