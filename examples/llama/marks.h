/*
 * What the command line says of positions: --tag A:B=N, --pin A:B, --drop A:B@L. Positions A to B - 1 of every sequence, from 0.
 * Tags and pins are said when a session opens; a drop when the tokens before B have been fed, at that step boundary exactly.
 */
#ifndef LLAMA_MARKS_H
#define LLAMA_MARKS_H

#include "libclient/ebb.h"

#define MARKS_MAX 64u

struct marks {
	struct ebb_mark mark[MARKS_MAX];
	uint32_t n;
};

/*
 * marks_parse - one option's value into the next mark. @what: EBB_TAG, EBB_PIN or EBB_DROP, which say what follows the range.
 * -EINVAL: not so written; -E2BIG: more than MARKS_MAX.
 */
int marks_parse(struct marks *marks, enum ebb_mark_what what, const char *text);

/* marks_open - the tags and pins, on a new session. 0 or an error of ebb_session_mark(). */
int marks_open(const struct marks *marks, struct ebb_session *session);

/* marks_limit - of the `n` tokens that a sequence with `fed` would be fed next, as many as go before the next drop. */
uint32_t marks_limit(const struct marks *marks, uint32_t fed, uint32_t n);

/*
 * marks_drop - the drops that are due when exactly `fed` tokens have been fed, in one call.
 * Returns how many there were, or an error of ebb_session_mark().
 */
int marks_drop(const struct marks *marks, struct ebb_session *session, uint32_t fed);

#endif
