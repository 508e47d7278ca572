#include "examples/llama/marks.h"

#include <errno.h>
#include <stdlib.h>

/* Digits at *text; *text moves behind them. */
static int number(const char **text, uint32_t *out)
{
	unsigned long long x;
	char *end;

	if (**text < '0' || **text > '9')
		return -EINVAL;
	errno = 0;
	x = strtoull(*text, &end, 10);
	if (errno || x > UINT32_MAX)
		return -EINVAL;
	*text = end;
	*out = (uint32_t)x;
	return 0;
}

int marks_parse(struct marks *marks, enum ebb_mark_what what, const char *text)
{
	const char sign = what == EBB_TAG ? '=' : what == EBB_DROP ? '@' : '\0';
	struct ebb_mark m = { .what = what };
	uint32_t end;

	if (marks->n == MARKS_MAX)
		return -E2BIG;
	if (number(&text, &m.first) || *text++ != ':' || number(&text, &end) || end <= m.first)
		return -EINVAL;
	if (*text != sign || (sign && (text++, number(&text, &m.value))) || *text)
		return -EINVAL;
	m.n = end - m.first;
	marks->mark[marks->n++] = m;
	return 0;
}

int marks_open(const struct marks *marks, struct ebb_session *session)
{
	struct ebb_mark due[MARKS_MAX];
	uint32_t n = 0;

	for (uint32_t i = 0; i < marks->n; i++)
		if (marks->mark[i].what != EBB_DROP)
			due[n++] = marks->mark[i];
	return ebb_session_mark(session, due, n);
}

uint32_t marks_limit(const struct marks *marks, uint32_t fed, uint32_t n)
{
	for (uint32_t i = 0; i < marks->n; i++) {
		const struct ebb_mark *m = &marks->mark[i];
		const uint32_t end = m->first + m->n;

		if (m->what == EBB_DROP && end > fed && end - fed < n)
			n = end - fed;
	}
	return n;
}

int marks_drop(const struct marks *marks, struct ebb_session *session, uint32_t fed)
{
	struct ebb_mark due[MARKS_MAX];
	uint32_t n = 0;
	int err;

	for (uint32_t i = 0; i < marks->n; i++)
		if (marks->mark[i].what == EBB_DROP && marks->mark[i].first + marks->mark[i].n == fed)
			due[n++] = marks->mark[i];
	err = ebb_session_mark(session, due, n);
	return err ? err : (int)n;
}
