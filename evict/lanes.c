/* Tables of lanes: a text file that says what each lane of a model is worth. The format is in evict/split.h. */
#include "evict/evict_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define KIND "ebbd-lanes"
#define HEAD_LINE "a first line of \"" KIND " 1 LAYERS KV_HEADS\""
#define MAX_WORDS 5
#define MAX_LANES 65536u	/* of a session */

/* One line, taken apart. */
struct line {
	unsigned number;
	const char *word[MAX_WORDS];
	size_t n[MAX_WORDS];
	unsigned words;			/* MAX_WORDS: that many or more */
};

static int blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* The next line with something on it; 0 at the end. */
static int next_line(const char **at, const char *end, struct line *line)
{
	while (*at < end) {
		const char *p = *at, *stop = memchr(p, '\n', (size_t)(end - p));

		if (!stop)
			stop = end;
		*at = stop < end ? stop + 1 : end;
		line->number++;
		line->words = 0;
		while (line->words < MAX_WORDS) {
			while (p < stop && blank(*p))
				p++;
			if (p == stop || *p == '#')
				break;
			line->word[line->words] = p;
			while (p < stop && !blank(*p) && *p != '#')
				p++;
			line->n[line->words] = (size_t)(p - line->word[line->words]);
			line->words++;
		}
		if (line->words)
			return 1;
	}
	return 0;
}

static int complain(struct evict_sentence *why, const struct line *line, unsigned word, const char *allowed)
{
	char number[32];

	snprintf(number, sizeof(number), "line %u: found ", line->number);
	evict_say(why, number);
	if (word < line->words)
		evict_say_quoted(why, line->word[word], line->n[word]);
	else
		evict_say(why, "nothing more");
	evict_say(why, "; allowed: ");
	evict_say(why, allowed);
	return -EINVAL;
}

static int whole(const struct line *line, unsigned word, uint32_t *out)
{
	uint32_t value = 0;

	if (word >= line->words || line->n[word] > 7)
		return -EINVAL;
	for (size_t i = 0; i < line->n[word]; i++) {
		const char c = line->word[word][i];

		if (c < '0' || c > '9')
			return -EINVAL;
		value = value * 10 + (uint32_t)(c - '0');
	}
	*out = value;
	return 0;
}

/* "ebbd-lanes 1 LAYERS KV_HEADS", of any shape. */
static int read_shape(const struct line *line, uint32_t *n_layers, uint32_t *n_kv_heads, struct evict_sentence *why)
{
	uint32_t version;

	if (line->n[0] != strlen(KIND) || memcmp(line->word[0], KIND, line->n[0]) != 0)
		return complain(why, line, 0, HEAD_LINE);
	if (whole(line, 1, &version) || version != 1)
		return complain(why, line, 1, "version 1");
	if (whole(line, 2, n_layers) || !*n_layers || *n_layers > MAX_LANES)
		return complain(why, line, 2, "the model's layers, a whole number from 1");
	if (whole(line, 3, n_kv_heads) || !*n_kv_heads || (uint64_t)*n_layers * *n_kv_heads > MAX_LANES)
		return complain(why, line, 3, "the model's KV heads, a whole number from 1");
	return line->words > 4 ? complain(why, line, 4, "the end of the line") : 0;
}

static int check_shape(const struct line *line, uint32_t n_layers, uint32_t n_kv_heads, struct evict_sentence *why)
{
	uint32_t layers, heads;
	char allowed[80];
	int rc = read_shape(line, &layers, &heads, why);

	if (rc || (layers == n_layers && heads == n_kv_heads))
		return rc;
	snprintf(allowed, sizeof(allowed), layers != n_layers ? "%u, the model's layers" : "%u, the model's KV heads",
		 layers != n_layers ? n_layers : n_kv_heads);
	return complain(why, line, layers != n_layers ? 2 : 3, allowed);
}

int evict_lanes_shape(const char *text, size_t bytes, uint32_t *n_layers, uint32_t *n_kv_heads, char *why, size_t why_bytes)
{
	struct evict_sentence s = { .text = why, .bytes = why ? why_bytes : 0 };
	const char *at = text;
	struct line line = { .number = 0 };

	if (!next_line(&at, text + bytes, &line))
		return complain(&s, &line, 0, HEAD_LINE);
	return read_shape(&line, n_layers, n_kv_heads, &s);
}

/* table[] has -1 where no line has been. */
static int read_lane(const struct line *line, uint32_t n_layers, uint32_t n_kv_heads, float *table, struct evict_sentence *why)
{
	uint32_t layer, head;
	char allowed[80];
	float value;

	snprintf(allowed, sizeof(allowed), "a layer from 0 to %u", n_layers - 1);
	if (whole(line, 0, &layer) || layer >= n_layers)
		return complain(why, line, 0, allowed);
	snprintf(allowed, sizeof(allowed), "a KV head from 0 to %u", n_kv_heads - 1);
	if (whole(line, 1, &head) || head >= n_kv_heads)
		return complain(why, line, 1, allowed);
	if (line->words < 3 || evict_read_number(line->word[2], line->n[2], &value) || !(value >= 0.0f) || !(value <= 1e30f))
		return complain(why, line, 2, "a decimal number from 0 to 1e30");
	if (line->words > 3)
		return complain(why, line, 3, "the end of the line");
	if (table[layer * n_kv_heads + head] >= 0.0f)
		return complain(why, line, 0, "each layer and KV head once, and this one has been");
	table[layer * n_kv_heads + head] = value;
	return 0;
}

static int check_whole(const float *table, uint32_t n_layers, uint32_t n_kv_heads, const struct line *last, struct evict_sentence *why)
{
	char text[96];
	float largest = 0.0f;

	for (uint32_t lane = 0; lane < n_layers * n_kv_heads; lane++) {
		if (table[lane] < 0.0f) {
			snprintf(text, sizeof(text), "line %u: found the end; allowed: a line for layer %u, KV head %u, too", last->number,
				 lane / n_kv_heads, lane % n_kv_heads);
			evict_say(why, text);
			return -EINVAL;
		}
		if (table[lane] > largest)
			largest = table[lane];
	}
	if (largest > 0.0f)
		return 0;
	snprintf(text, sizeof(text), "line %u: found nothing but zeros; allowed: a value above 0 at least once", last->number);
	evict_say(why, text);
	return -EINVAL;
}

int evict_lanes_parse(const char *text, size_t bytes, uint32_t n_layers, uint32_t n_kv_heads, float *table, char *why, size_t why_bytes)
{
	struct evict_sentence s = { .text = why, .bytes = why ? why_bytes : 0 };
	const char *at = text, *end = text + bytes;
	struct line line = { .number = 0 };
	int rc;

	for (uint32_t lane = 0; lane < n_layers * n_kv_heads; lane++)
		table[lane] = -1.0f;
	if (!next_line(&at, end, &line))
		return complain(&s, &line, 0, HEAD_LINE);
	rc = check_shape(&line, n_layers, n_kv_heads, &s);
	while (!rc && next_line(&at, end, &line))
		rc = read_lane(&line, n_layers, n_kv_heads, table, &s);
	return rc ? rc : check_whole(table, n_layers, n_kv_heads, &line, &s);
}
