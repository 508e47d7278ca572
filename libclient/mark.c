/* What a client says of the tokens of a session: tags, pins, drops. Between steps, a message per WIRE_MAX_RANGES ranges. */
#include "libclient/client.h"

#include <errno.h>

/* All is checked before anything is sent, so that a call does all or nothing. */
static int check(const struct ebb_session *s, const struct ebb_mark *m)
{
	const uint32_t below = m->what == EBB_DROP ? s->begun : s->max_tokens;

	if (m->first > below || m->n > below - m->first)
		return ebbi_error(s->ebb, -EINVAL, "%u tokens from position %u on; allowed: positions below %u (%s)", m->n, m->first, below,
				  m->what == EBB_DROP ? "appended so far" : "max_tokens");
	switch (m->what) {
	case EBB_TAG:
		if (m->value <= EBB_MAX_TAG)
			return 0;
		return ebbi_error(s->ebb, -EINVAL, "tag %u; allowed: 0 to %u", m->value, EBB_MAX_TAG);
	case EBB_PIN:
	case EBB_UNPIN:
		return 0;
	case EBB_DROP:
		if (m->value < s->n_layers)
			return 0;
		return ebbi_error(s->ebb, -EINVAL, "from layer %u on; allowed: layers below %u", m->value, s->n_layers);
	default:
		return ebbi_error(s->ebb, -EINVAL, "mark %u is none of tag, pin, unpin, drop", (unsigned)m->what);
	}
}

static int has_value(const struct ebb_mark *m)
{
	return m->what == EBB_TAG || m->what == EBB_DROP;
}

static int send_marks(struct ebb_session *s, const struct ebb_mark *mark, uint32_t n)
{
	int rc = 0;

	while (n && !rc) {
		struct wire_msg msg = { .u.mark = { .session = s->index, .n = n < WIRE_MAX_RANGES ? n : WIRE_MAX_RANGES } };
		struct wire_mark *w = &msg.u.mark;

		for (uint32_t i = 0; i < w->n; i++)
			w->range[i] = (struct wire_range){ mark[i].first, mark[i].n, (uint16_t)mark[i].what, 0, has_value(&mark[i]) ?
							   mark[i].value : 0 };
		n -= w->n;
		mark += w->n;
		w->more = n != 0;
		rc = ebbi_request(s->ebb, &msg, WIRE_MARK, offsetof(struct wire_mark, range) + w->n * sizeof(w->range[0]),
				  WIRE_MARKED, NULL);
	}
	return rc;
}

int ebb_session_mark(struct ebb_session *s, const struct ebb_mark *mark, uint32_t n)
{
	int rc;

	if (!s || (n && !mark))
		return -EINVAL;
	rc = ebbi_alive(s->ebb);
	if (!rc && s->batch && s->batch->open)
		rc = ebbi_error(s->ebb, -EBUSY, "a step of the session's batch is open");
	for (uint32_t i = 0; i < n && !rc; i++)
		rc = check(s, &mark[i]);
	if (rc || !n)
		return rc;
	return s->ebb->local ? ebbi_local_mark(s, mark, n) : send_marks(s, mark, n);
}

int ebb_session_tag(struct ebb_session *s, uint32_t first, uint32_t n, uint32_t tag)
{
	return ebb_session_mark(s, &(struct ebb_mark){ .what = EBB_TAG, .first = first, .n = n, .value = tag }, 1);
}

int ebb_session_pin(struct ebb_session *s, uint32_t first, uint32_t n)
{
	return ebb_session_mark(s, &(struct ebb_mark){ .what = EBB_PIN, .first = first, .n = n }, 1);
}

int ebb_session_unpin(struct ebb_session *s, uint32_t first, uint32_t n)
{
	return ebb_session_mark(s, &(struct ebb_mark){ .what = EBB_UNPIN, .first = first, .n = n }, 1);
}

int ebb_session_drop(struct ebb_session *s, uint32_t first, uint32_t n, uint32_t from_layer)
{
	return ebb_session_mark(s, &(struct ebb_mark){ .what = EBB_DROP, .first = first, .n = n, .value = from_layer }, 1);
}
