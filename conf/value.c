/* Values: from text to fields and back. Nothing here knows of files or lines. */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "conf/keys.h"

#define MILLION 1000000u

/* --- numbers and their suffixes ------------------------------------------------------------------------------------------- */

/* Decimal digits at *p, at least one; leaves *p behind them. No sign, no blanks: strtoull() would take both. */
static int take_number(const char **p, uint64_t *out)
{
	const char *s = *p;
	uint64_t n = 0;

	if (*s < '0' || *s > '9')
		return -EINVAL;
	for (; *s >= '0' && *s <= '9'; s++) {
		if (n > (UINT64_MAX - 9) / 10)
			return -EINVAL;
		n = n * 10 + (uint64_t)(*s - '0');
	}
	*p = s;
	*out = n;
	return 0;
}

static int parse_uint(const char *text, uint64_t *out)
{
	uint64_t n;

	if (take_number(&text, &n) != 0 || *text != '\0')
		return -EINVAL;
	*out = n;
	return 0;
}

static int parse_mode(const char *text, uint64_t *out)
{
	uint64_t n = 0;

	if (*text == '\0' || strlen(text) > 7)
		return -EINVAL;
	for (; *text != '\0'; text++) {
		if (*text < '0' || *text > '7')
			return -EINVAL;
		n = n * 8 + (uint64_t)(*text - '0');
	}
	*out = n;
	return 0;
}

static int parse_time(const char *text, uint64_t *out)
{
	uint64_t n, unit;

	if (take_number(&text, &n) != 0)
		return -EINVAL;
	if (strcmp(text, "ms") == 0)
		unit = 1;
	else if (strcmp(text, "s") == 0)
		unit = 1000;
	else if (strcmp(text, "m") == 0)
		unit = 60000;
	else
		return -EINVAL;
	if (n > UINT64_MAX / unit)
		return -EINVAL;
	*out = n * unit;
	return 0;
}

static void time_text(uint64_t ms, char *out, size_t bytes)
{
	if (ms != 0 && ms % 60000 == 0)
		snprintf(out, bytes, "%" PRIu64 "m", ms / 60000);
	else if (ms % 1000 == 0)
		snprintf(out, bytes, "%" PRIu64 "s", ms / 1000);
	else
		snprintf(out, bytes, "%" PRIu64 "ms", ms);
}

int conf_parse_size(const char *text, uint64_t *out)
{
	static const char suffixes[] = "KMGT";
	const char *suffix;
	unsigned shift = 0;
	uint64_t n;

	if (take_number(&text, &n) != 0)
		return -EINVAL;
	if (*text != '\0') {
		suffix = strchr(suffixes, *text);
		if (!suffix)
			return -EINVAL;
		shift = 10u * (unsigned)(suffix - suffixes + 1);
		text++;
		if (*text != '\0' && strcmp(text, "iB") != 0)	/* MB could mean a million: not taken */
			return -EINVAL;
	}
	if (n > UINT64_MAX >> shift)
		return -EINVAL;
	*out = n << shift;
	return 0;
}

void conf_size_text(uint64_t bytes, char *out, size_t out_bytes)
{
	static const char suffixes[] = "KMGT";
	int i = -1;

	while (bytes != 0 && bytes % 1024 == 0 && i < 3) {
		bytes /= 1024;
		i++;
	}
	if (i < 0)
		snprintf(out, out_bytes, "%" PRIu64, bytes);
	else
		snprintf(out, out_bytes, "%" PRIu64 "%c", bytes, suffixes[i]);
}

/* "P%" with up to four decimals, the finest a millionth can say; text is behind the integer part. */
static int parse_share(const char *text, uint64_t whole, struct conf_amount *out)
{
	uint64_t ppm, digit = 1000;

	if (whole > 100)
		return -EINVAL;
	ppm = whole * (MILLION / 100);
	if (*text == '.') {
		text++;
		if (*text == '%')
			return -EINVAL;
		for (; *text >= '0' && *text <= '9' && digit != 0; text++, digit /= 10)
			ppm += (uint64_t)(*text - '0') * digit;
	}
	if (strcmp(text, "%") != 0 || ppm > MILLION)
		return -EINVAL;
	out->count = 0;
	out->ppm = (uint32_t)ppm;
	return 0;
}

int conf_parse_amount(const char *text, struct conf_amount *out)
{
	uint64_t n;

	if (take_number(&text, &n) != 0)
		return -EINVAL;
	if (*text != '\0')
		return parse_share(text, n, out);
	if (n > UINT32_MAX)
		return -EINVAL;
	out->count = (uint32_t)n;
	out->ppm = 0;
	return 0;
}

void conf_amount_text(struct conf_amount amount, char *out, size_t bytes)
{
	uint32_t whole = amount.ppm / (MILLION / 100), part = amount.ppm % (MILLION / 100);
	int digits = 4;

	if (amount.ppm == 0) {
		snprintf(out, bytes, "%" PRIu32, amount.count);
		return;
	}
	if (part == 0) {
		snprintf(out, bytes, "%" PRIu32 "%%", whole);
		return;
	}
	for (; part % 10 == 0; digits--)
		part /= 10;
	snprintf(out, bytes, "%" PRIu32 ".%0*" PRIu32 "%%", whole, digits, part);
}

/* --- words --------------------------------------------------------------------------------------------------------------------- */

/* Index of @text among words separated by '|', or -1. */
static int choice_index(const char *words, const char *text)
{
	size_t length = strlen(text);
	int i = 0;

	for (;; i++) {
		size_t n = strcspn(words, "|");

		if (n == length && memcmp(words, text, n) == 0)
			return i;
		if (words[n] == '\0')
			return -1;
		words += n + 1;
	}
}

static void choice_text(const char *words, uint64_t index, char *out, size_t bytes)
{
	for (; index > 0; index--)
		words += strcspn(words, "|") + 1;
	snprintf(out, bytes, "%.*s", (int)strcspn(words, "|"), words);
}

/* "a | b | c" */
static void spell_choices(const char *words, char *out, size_t bytes)
{
	size_t n = 0;

	for (; *words != '\0' && n + 4 < bytes; words++) {
		if (*words == '|')
			out[n++] = ' ';
		out[n++] = *words;
		if (*words == '|')
			out[n++] = ' ';
	}
	out[n] = '\0';
}

/* Text that an ini file gives back unchanged: no control characters, no comment sign, no blanks at the ends. */
static bool text_is_plain(const char *text)
{
	size_t n = strlen(text);

	if (n != 0 && (text[0] == ' ' || text[n - 1] == ' '))
		return false;
	for (; *text != '\0'; text++)
		if ((unsigned char)*text < ' ' || *text == 127 || *text == ';')
			return false;
	return true;
}

static bool device_is_named(const char *text)
{
	uint64_t n;

	if (strcmp(text, "host") == 0)
		return true;
	if (strncmp(text, "cuda:", 5) != 0)
		return false;
	text += 5;
	if (parse_uint(text, &n) == 0)
		return n < 1024;
	if (strncmp(text, "GPU-", 4) != 0 && strncmp(text, "MIG-", 4) != 0)
		return false;
	return text[4] != '\0' && strspn(text + 4, "0123456789abcdefABCDEF-") == strlen(text + 4);
}

void conf_quote(const char *text, char *out, size_t bytes)
{
	enum { MOST = 60 };
	size_t n = 0;

	if (bytes < 8) {
		if (bytes)
			out[0] = '\0';
		return;
	}
	out[n++] = '\'';
	for (; *text != '\0' && n < MOST && n + 6 < bytes; text++)
		out[n++] = (unsigned char)*text < ' ' || (unsigned char)*text > 126 ? '?' : *text;
	snprintf(out + n, bytes - n, "%s'", *text == '\0' ? "" : "...");
}

/* --- keys ------------------------------------------------------------------------------------------------------------------------ */

void conf_key_allowed(const struct conf_key *key, char *out, size_t bytes)
{
	char low[32], high[32];

	switch (key->type) {
	case CONF_TYPE_TEXT:
		snprintf(out, bytes, "%" PRIu64 " .. %" PRIu64 " bytes, no semicolon", key->min, key->max);
		return;
	case CONF_TYPE_FILE:
		snprintf(out, bytes, "a path of %" PRIu64 " .. %" PRIu64 " bytes, no semicolon", key->min, key->max);
		return;
	case CONF_TYPE_DEVICE:
		snprintf(out, bytes, "host | cuda:N | cuda:GPU-UUID");
		return;
	case CONF_TYPE_POLICY:
		snprintf(out, bytes, "%s", key->section == CONF_SESSION ? "NAME or NAME:parameter=value,..." : "USER:WEIGHT,...");
		return;
	case CONF_TYPE_MODE:
		snprintf(out, bytes, "octal %04" PRIo64 " .. %04" PRIo64, key->min, key->max);
		return;
	case CONF_TYPE_TIME:
		time_text(key->min, low, sizeof(low));
		time_text(key->max, high, sizeof(high));
		snprintf(out, bytes, "%s .. %s, in ms, s or m", low, high);
		return;
	case CONF_TYPE_SIZE:
	case CONF_TYPE_SLAB:
		conf_size_text(key->min, low, sizeof(low));
		conf_size_text(key->max, high, sizeof(high));
		snprintf(out, bytes, "%s%s .. %s", key->type == CONF_TYPE_SLAB ? "auto, or a power of two " : "", low, high);
		return;
	case CONF_TYPE_AMOUNT:
		snprintf(out, bytes, "%" PRIu64 " .. %" PRIu64 ", or %s 100%%", key->min, key->max,
			 key->min ? "more than 0% up to" : "0% ..");
		return;
	case CONF_TYPE_CHOICE:
		spell_choices(key->unit, out, bytes);
		return;
	case CONF_TYPE_UINT:
	case CONF_TYPE_AUTO:
		break;
	}
	snprintf(out, bytes, "%s%" PRIu64 " .. %" PRIu64, key->type == CONF_TYPE_AUTO ? "auto, or " : "", key->min, key->max);
}

static int set_text(const struct conf_key *key, void *field, const char *text, conf_check check, char *why, size_t why_bytes)
{
	size_t n = strlen(text);

	if (n >= key->bytes || !text_is_plain(text))
		return -EINVAL;
	if (key->type == CONF_TYPE_DEVICE ? !device_is_named(text) : n < key->min || n > key->max)
		return -EINVAL;
	if (key->type == CONF_TYPE_POLICY && check && check(key->name, text, why, why_bytes) != 0)
		return -EINVAL;
	memset(field, 0, key->bytes);	/* so that equal settings are equal bytes */
	memcpy(field, text, n);
	return 0;
}

static int set_amount(const struct conf_key *key, void *field, const char *text)
{
	struct conf_amount amount;

	if (conf_parse_amount(text, &amount) != 0)
		return -EINVAL;
	if (amount.ppm == 0 && (amount.count < key->min || amount.count > key->max))
		return -EINVAL;
	memcpy(field, &amount, sizeof(amount));
	return 0;
}

/* "auto" is a value of its own, kept as 0. */
static int has_auto(const struct conf_key *key)
{
	return key->type == CONF_TYPE_SLAB || key->type == CONF_TYPE_AUTO;
}

static int set_number(const struct conf_key *key, void *field, const char *text)
{
	uint64_t n = 0;
	uint32_t n32;
	int err = -EINVAL, i;

	if (has_auto(key) && strcmp(text, "auto") == 0) {
		memset(field, 0, key->bytes);
		return 0;
	}
	if (key->type == CONF_TYPE_CHOICE) {
		i = choice_index(key->unit, text);
		n = key->min + (uint64_t)i;
		err = i < 0 ? -EINVAL : 0;
	} else if (key->type == CONF_TYPE_UINT || key->type == CONF_TYPE_AUTO) {
		err = parse_uint(text, &n);
	} else if (key->type == CONF_TYPE_MODE) {
		err = parse_mode(text, &n);
	} else if (key->type == CONF_TYPE_TIME) {
		err = parse_time(text, &n);
	} else {
		err = conf_parse_size(text, &n);
	}
	if (err != 0 || n < key->min || n > key->max || (key->type == CONF_TYPE_SLAB && (n & (n - 1)) != 0))
		return -EINVAL;
	n32 = (uint32_t)n;
	memcpy(field, key->bytes == sizeof(n) ? (void *)&n : (void *)&n32, key->bytes);
	return 0;
}

int conf_key_set(const struct conf_key *key, void *base, const char *text, conf_check check, char *why, size_t why_bytes)
{
	char quoted[80], allowed[CONF_VALUE_TEXT], verdict[256] = "";
	void *field = (char *)base + key->offset;
	int err;

	switch (key->type) {
	case CONF_TYPE_TEXT:
	case CONF_TYPE_DEVICE:
	case CONF_TYPE_POLICY:
	case CONF_TYPE_FILE:
		err = set_text(key, field, text, check, verdict, sizeof(verdict));
		break;
	case CONF_TYPE_AMOUNT:
		err = set_amount(key, field, text);
		break;
	default:
		err = set_number(key, field, text);
		break;
	}
	if (err != 0 && why && why_bytes) {
		conf_quote(text, quoted, sizeof(quoted));
		conf_key_allowed(key, allowed, sizeof(allowed));
		snprintf(why, why_bytes, "found %s; allowed: %s", quoted, allowed);
		if (verdict[0] != '\0')		/* the policy's own sentence is the better one */
			snprintf(why, why_bytes, "found %s; %s", quoted, verdict);
	}
	return err;
}

int conf_key_is_text(const struct conf_key *key)
{
	return key->type == CONF_TYPE_TEXT || key->type == CONF_TYPE_DEVICE || key->type == CONF_TYPE_POLICY || key->type == CONF_TYPE_FILE;
}

void conf_key_text(const struct conf_key *key, const void *base, char *out, size_t bytes)
{
	const void *field = (const char *)base + key->offset;
	struct conf_amount amount;
	uint32_t n32 = 0;
	uint64_t n = 0;

	if (conf_key_is_text(key)) {
		snprintf(out, bytes, "%.*s", (int)key->bytes, (const char *)field);
		return;
	}
	if (key->type == CONF_TYPE_AMOUNT) {
		memcpy(&amount, field, sizeof(amount));
		conf_amount_text(amount, out, bytes);
		return;
	}
	if (key->bytes == sizeof(n)) {
		memcpy(&n, field, sizeof(n));
	} else {
		memcpy(&n32, field, sizeof(n32));
		n = n32;
	}
	if (has_auto(key) && n == 0)
		snprintf(out, bytes, "auto");
	else if (key->type == CONF_TYPE_SIZE || key->type == CONF_TYPE_SLAB)
		conf_size_text(n, out, bytes);
	else if (key->type == CONF_TYPE_TIME)
		time_text(n, out, bytes);
	else if (key->type == CONF_TYPE_MODE)
		snprintf(out, bytes, "%04" PRIo64, n);
	else if (key->type == CONF_TYPE_CHOICE && n >= key->min && n <= key->max)
		choice_text(key->unit, n - key->min, out, bytes);
	else
		snprintf(out, bytes, "%" PRIu64, n);
}
