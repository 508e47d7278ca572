#include "examples/llama/unicode.h"

#include "examples/llama/unicode_table.h"

uint32_t unicode_next(const char *text, size_t bytes, size_t *used)
{
	static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
	unsigned char first = (unsigned char)text[0];
	uint32_t code = first;
	size_t n = first < 0x80 ? 1 : first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 :
		   first >= 0xf0 && first < 0xf5 ? 4 : 0;

	*used = 1;
	if (n == 1)
		return code;
	if (n == 0 || n > bytes)
		return 0xfffd;
	code = first & (0x7fu >> n);
	for (size_t i = 1; i < n; i++) {
		unsigned char c = (unsigned char)text[i];

		if ((c & 0xc0) != 0x80)
			return 0xfffd;
		code = code << 6 | (c & 0x3fu);
	}
	if (code < least[n] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
		return 0xfffd;
	*used = n;
	return code;
}

size_t unicode_put(uint32_t code, char *out)
{
	if (code < 0x80) {
		out[0] = (char)code;
		return 1;
	}
	if (code < 0x800) {
		out[0] = (char)(0xc0 | code >> 6);
		out[1] = (char)(0x80 | (code & 0x3f));
		return 2;
	}
	if (code < 0x10000) {
		out[0] = (char)(0xe0 | code >> 12);
		out[1] = (char)(0x80 | (code >> 6 & 0x3f));
		out[2] = (char)(0x80 | (code & 0x3f));
		return 3;
	}
	out[0] = (char)(0xf0 | code >> 18);
	out[1] = (char)(0x80 | (code >> 12 & 0x3f));
	out[2] = (char)(0x80 | (code >> 6 & 0x3f));
	out[3] = (char)(0x80 | (code & 0x3f));
	return 4;
}

static int in_ranges(const uint32_t (*range)[2], size_t n, uint32_t code)
{
	size_t low = 0, high = n;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (code > range[mid][1])
			low = mid + 1;
		else
			high = mid;
	}
	return low < n && code >= range[low][0];
}

#define IN(table, code) in_ranges(table, sizeof(table) / sizeof((table)[0]), code)

static int is_space(uint32_t c)
{
	return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
	       c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

enum unicode_class unicode_class_of(uint32_t code)
{
	if (code < 0x80) {
		if ((code | 0x20) >= 'a' && (code | 0x20) <= 'z')
			return UNICODE_LETTER;
		if (code >= '0' && code <= '9')
			return UNICODE_NUMBER;
		return is_space(code) ? UNICODE_SPACE : UNICODE_OTHER;
	}
	if (is_space(code))
		return UNICODE_SPACE;
	if (IN(letter_range, code))
		return UNICODE_LETTER;
	return IN(number_range, code) ? UNICODE_NUMBER : UNICODE_OTHER;
}

size_t unicode_whole(const char *text, size_t bytes)
{
	for (size_t back = 1; back <= 3 && back <= bytes; back++) {
		unsigned char c = (unsigned char)text[bytes - back];

		if (c < 0x80)
			break;
		if (c >= 0xc0) {	/* a first byte: does its character end within? */
			size_t need = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;

			return need > back ? bytes - back : bytes;
		}
	}
	return bytes;
}
