/* Tables of lanes: a text file that says what each lane of a model is worth. The format is in evict/split.h. */
#include "evict/evict_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define KIND "ebbd-lanes"
#define OLD_WINDOW 32u		/* of tables that do not say */
#define HEAD_LINE "a first line of \"" KIND " 1 LAYERS KV_HEADS\""
#define MAX_WORDS (EVICT_MAX_CURVE + 4)
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

/* --- what it says of itself --------------------------------------------------------------------------------------------------- */

static int is_word(const struct line *line, const char *word)
{
	return line->n[0] == strlen(word) && memcmp(line->word[0], word, line->n[0]) == 0;
}

static int read_model(const struct line *line, const char *model, struct evict_lanes *head, struct evict_sentence *why)
{
	char allowed[EVICT_MODEL + 32];

	if (line->words < 2 || line->n[1] >= EVICT_MODEL)
		return complain(why, line, 1, "the model's name, at most 63 characters without blanks");
	if (line->words > 2)
		return complain(why, line, 2, "the end of the line");
	memcpy(head->model, line->word[1], line->n[1]);
	head->model[line->n[1]] = 0;
	if (!model || !*model || strcmp(model, head->model) == 0)
		return 0;
	snprintf(allowed, sizeof(allowed), "%s, the model's name", model);
	return complain(why, line, 1, allowed);
}

static int read_budgets(const struct line *line, struct evict_lanes *head, struct evict_sentence *why)
{
	for (uint32_t i = 1; i < line->words; i++) {
		if (head->n_budgets == EVICT_MAX_CURVE)
			return complain(why, line, i, "the end of the line: a lane has at most 8 losses");
		if (whole(line, i, &head->budget[head->n_budgets]) || !head->budget[head->n_budgets] ||
		    (i > 1 && head->budget[head->n_budgets] <= head->budget[head->n_budgets - 1]))
			return complain(why, line, i, "numbers of slots, whole and rising");
		head->n_budgets++;
	}
	return head->n_budgets ? 0 : complain(why, line, 1, "numbers of slots, whole and rising");
}

static int read_count(const struct line *line, const char *allowed, uint32_t *out, struct evict_sentence *why)
{
	if (whole(line, 1, out) || !*out)
		return complain(why, line, 1, allowed);
	return line->words > 2 ? complain(why, line, 2, "the end of the line") : 0;
}

/* One line between the first and the lanes. 1: it is one. */
static int read_about(const struct line *line, const char *model, struct evict_lanes *head, struct evict_sentence *why)
{
	int rc = -EINVAL;

	if (!is_word(line, "model") && !is_word(line, "tokens") && !is_word(line, "window") && !is_word(line, "budgets"))
		return 0;
	if ((is_word(line, "model") && *head->model) || (is_word(line, "tokens") && head->tokens) ||
	    (is_word(line, "window") && head->window) || (is_word(line, "budgets") && head->n_budgets))
		return complain(why, line, 0, "model, tokens, window and budgets once each, and this one has been");
	if (is_word(line, "model"))
		rc = read_model(line, model, head, why);
	else if (is_word(line, "budgets"))
		rc = read_budgets(line, head, why);
	else if (is_word(line, "tokens"))
		rc = read_count(line, "the tokens of the texts that were measured, a whole number from 1", &head->tokens, why);
	else
		rc = read_count(line, "the window under which budgets were measured, a whole number from 1", &head->window, why);
	return rc ? rc : 1;
}

/* Before the first lane, which is in `line`. */
static int check_about(struct evict_lanes *head, const struct line *line, struct evict_sentence *why)
{
	char allowed[80];

	if (!head->window)
		head->window = OLD_WINDOW;
	if (!head->n_budgets || head->tokens > head->budget[head->n_budgets - 1])
		return 0;
	snprintf(allowed, sizeof(allowed), "a line \"tokens N\" above the lanes, N more than the last budget, %u",
		 head->budget[head->n_budgets - 1]);
	return complain(why, line, 0, allowed);
}

/* --- lanes ------------------------------------------------------------------------------------------------------------------- */

/* log2 of the slots at which marginal i of a curve holds. */
float evict_curve_at(const struct evict_lanes *head, uint32_t i)
{
	const uint32_t next = i + 1 < head->n_budgets ? head->budget[i + 1] : head->tokens;

	return 0.5f * (evict_log2((float)head->budget[i]) + evict_log2((float)next));
}

/*
 * Losses at the budgets, and none at `tokens`, into marginals: the slopes of the largest convex curve that lies nowhere above the losses
 * (neighbours that rise are pooled), as logarithms. What was measured is noisy: a marginal falls at least as fast as slots^-1/2.
 */
static void to_marginals(const struct evict_lanes *head, float *curve)
{
	double slope[EVICT_MAX_CURVE], length[EVICT_MAX_CURVE];
	uint32_t parts[EVICT_MAX_CURVE], n = 0, at = 0;

	for (uint32_t i = 0; i < head->n_budgets; i++) {
		const int last = i + 1 == head->n_budgets;

		length[n] = (double)((last ? head->tokens : head->budget[i + 1]) - head->budget[i]);
		slope[n] = ((double)curve[i] - (last ? 0.0 : (double)curve[i + 1])) / length[n];
		parts[n++] = 1;
		for (; n > 1 && slope[n - 2] <= slope[n - 1]; n--) {
			slope[n - 2] = (slope[n - 2] * length[n - 2] + slope[n - 1] * length[n - 1]) / (length[n - 2] + length[n - 1]);
			length[n - 2] += length[n - 1];
			parts[n - 2] += parts[n - 1];
		}
	}
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t k = 0; k < parts[i]; k++)
			curve[at++] = evict_log2(slope[i] > 1e-30 ? (float)slope[i] : 1e-30f);
	for (uint32_t i = 1; i < head->n_budgets; i++)
		curve[i] = evict_min(curve[i], curve[i - 1] - 0.5f * (evict_curve_at(head, i) - evict_curve_at(head, i - 1)));
	for (; at < EVICT_MAX_CURVE; at++)
		curve[at] = 0.0f;
}

static int read_value(const struct line *line, uint32_t word, float *value, struct evict_sentence *why)
{
	if (word < line->words && !evict_read_number(line->word[word], line->n[word], value) && *value >= 0.0f && *value <= 1e30f)
		return 0;
	return complain(why, line, word, "a decimal number from 0 to 1e30");
}

/* table[] has -1 where no line has been. */
static int read_lane(const struct line *line, const struct evict_lanes *head, float *table, float *curve, struct evict_sentence *why)
{
	float value, loss[EVICT_MAX_CURVE];
	uint32_t layer, kv_head, lane;
	char allowed[80];
	int rc;

	snprintf(allowed, sizeof(allowed), "a layer from 0 to %u", head->n_layers - 1);
	if (whole(line, 0, &layer) || layer >= head->n_layers)
		return complain(why, line, 0, allowed);
	snprintf(allowed, sizeof(allowed), "a KV head from 0 to %u", head->n_kv_heads - 1);
	if (whole(line, 1, &kv_head) || kv_head >= head->n_kv_heads)
		return complain(why, line, 1, allowed);
	rc = read_value(line, 2, &value, why);
	for (uint32_t i = 0; i < head->n_budgets && !rc; i++)
		rc = read_value(line, 3 + i, &loss[i], why);
	if (rc)
		return rc;
	if (line->words > 3 + head->n_budgets)
		return complain(why, line, 3 + head->n_budgets, "the end of the line");
	lane = layer * head->n_kv_heads + kv_head;
	if (table[lane] >= 0.0f)
		return complain(why, line, 0, "each layer and KV head once, and this one has been");
	table[lane] = value;
	if (curve && head->n_budgets) {
		memcpy(curve + (size_t)lane * EVICT_MAX_CURVE, loss, sizeof(loss));
		to_marginals(head, curve + (size_t)lane * EVICT_MAX_CURVE);
	}
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

int evict_lanes_parse(const char *text, size_t bytes, uint32_t n_layers, uint32_t n_kv_heads, const char *model, struct evict_lanes *head,
		      float *table, float *curve, char *why, size_t why_bytes)
{
	struct evict_sentence s = { .text = why, .bytes = why ? why_bytes : 0 };
	const char *at = text, *end = text + bytes;
	struct line line = { .number = 0 };
	int rc, about = 1;

	*head = (struct evict_lanes){ .n_layers = n_layers, .n_kv_heads = n_kv_heads };
	for (uint32_t lane = 0; lane < n_layers * n_kv_heads; lane++)
		table[lane] = -1.0f;
	if (!next_line(&at, end, &line))
		return complain(&s, &line, 0, HEAD_LINE);
	rc = check_shape(&line, n_layers, n_kv_heads, &s);
	while (!rc && next_line(&at, end, &line)) {
		const int was_about = about;

		about = about ? read_about(&line, model, head, &s) : 0;
		rc = about < 0 ? about : about ? 0 : was_about ? check_about(head, &line, &s) : 0;
		if (!rc && !about)
			rc = read_lane(&line, head, table, curve, &s);
	}
	return rc ? rc : check_whole(table, n_layers, n_kv_heads, &line, &s);
}
