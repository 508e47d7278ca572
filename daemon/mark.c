/*
 * Marks: what a client says of the tokens of its session (evict/mark.h). They come in messages at a step boundary; the last message
 * of a call claims the session, and is answered when a turn that knew them has been published. So tags and pins hold from the answer
 * on, and what was dropped is gone and its memory back.
 *
 * A turn that drops has two halves, as a turn that measures has: only the device knows which positions a lane still holds, so the plan is
 * made when it has said what is left.
 */
#include "daemon/daemon.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The calls that wait for an answer: one at a time, since a client waits for each. */
enum marks_call { MARKS_NONE, MARKS_ASKED, MARKS_AT_TURN };	/* none; not seen by a turn yet; by the one under way */

struct marks {
	uint32_t *word;			/* [max_tokens], by position */
	uint32_t *seen;			/* [max_tokens]: what they were when the turn under way began: the device may read while messages come */
	uint32_t *live;			/* [n_lanes]: what a turn that drops has left */
	uint32_t tagged;		/* position behind the last token whose tag is not 0 */
	bool drops;			/* some word says drop */
	bool dropping;			/* the turn's first half under way does it */
	enum marks_call call;
	uint32_t seq;			/* of the message to answer */
};

static int marks_new(struct session *s)
{
	struct gpu_device *dev = s->pool->dev;
	struct marks *m = calloc(1, sizeof(*m));
	void *word = NULL, *live = NULL;	/* word: and seen behind it */

	if (!m)
		return -ENOMEM;
	if (gpu_host_alloc(dev, 2 * (size_t)s->max_tokens * sizeof(*m->word), &word) ||
	    gpu_host_alloc(dev, s->table.n_lanes * sizeof(*m->live), &live)) {
		if (word)
			gpu_host_free(dev, word);
		free(m);
		return -ENOMEM;
	}
	m->word = word;
	m->seen = m->word + s->max_tokens;
	m->live = live;
	s->marks = m;
	return 0;
}

void marks_free(struct session *s)
{
	if (!s->marks)
		return;
	gpu_host_free(s->pool->dev, s->marks->word);
	gpu_host_free(s->pool->dev, s->marks->live);
	free(s->marks);
	s->marks = NULL;
}

/* --- what a client asks for ---------------------------------------------------------------------------------------------------- */

/* Is the range within the session, and what it asks for possible? `appended`: tokens begun. */
static bool range_ok(const struct session *s, const struct wire_range *r, uint32_t appended)
{
	if (r->zero || r->first > s->max_tokens || r->count > s->max_tokens - r->first)
		return false;
	switch (r->what) {
	case WIRE_TAG: return r->value <= EVICT_MAX_TAG;
	case WIRE_PIN:
	case WIRE_UNPIN: return r->value == 0;
	case WIRE_LEAVE: return r->value < s->n_layers && r->first + r->count <= appended;	/* no overflow: both are < 2^30 */
	default: return false;
	}
}

static void set_range(struct marks *m, const struct wire_range *r)
{
	for (uint32_t i = r->first; i < r->first + r->count; i++) {
		uint32_t *w = &m->word[i];

		switch (r->what) {
		case WIRE_TAG: *w = (*w & ~EVICT_MAX_TAG) | r->value; break;
		case WIRE_PIN: *w |= EVICT_MARK_PINNED; break;
		case WIRE_UNPIN: *w &= ~EVICT_MARK_PINNED; break;
		default: *w = evict_mark_drop(*w, r->value); break;
		}
	}
	m->drops |= r->what == WIRE_LEAVE && r->count;
	if (r->what == WIRE_TAG && r->first + r->count >= m->tagged)
		m->tagged = r->first + r->count;
	while (m->tagged && !evict_mark_tag(m->word[m->tagged - 1]))
		m->tagged--;
}

static int check(const struct session *s, const struct wire_mark *w, char *why, size_t why_bytes)
{
	uint32_t begun = wire_begun(wire_load64(&s->client->shared->session[s->index].hand));

	if (s->record) {
		snprintf(why, why_bytes, "the session is recorded, and a recording has no place for tags, pins and drops");
		return -ENOTSUP;
	}
	if (w->n > WIRE_MAX_RANGES || w->more > 1 || w->zero || begun < s->tokens || begun > s->granted) {
		snprintf(why, why_bytes, "the message is malformed");
		return -EINVAL;
	}
	for (uint32_t i = 0; i < w->n; i++) {
		const struct wire_range *r = &w->range[i];

		if (range_ok(s, r, begun))
			continue;
		snprintf(why, why_bytes, "found %u of %u tokens from position %u on; allowed: positions below %u (below %u to drop), "
			 "tags 0 to %u, layers below %u", r->what, r->count, r->first, s->max_tokens, begun, EVICT_MAX_TAG, s->n_layers);
		return -EINVAL;
	}
	return 0;
}

static void answer(struct session *s)
{
	struct wire_msg m = { .head = { .type = WIRE_MARKED, .seq = s->marks->seq } };

	m.u.close.session = s->index;
	s->marks->call = MARKS_NONE;
	client_send(s->client, &m, -1, false);
}

int marks_set(struct session *s, uint32_t seq, const struct wire_mark *w, char *why, size_t why_bytes)
{
	int rc = check(s, w, why, why_bytes);

	if (!rc && s->marks && s->marks->call) {
		snprintf(why, why_bytes, "an earlier call has not been answered yet");
		return -EBUSY;
	}
	if (!rc && !s->marks) {
		rc = marks_new(s);
		if (rc)
			snprintf(why, why_bytes, "the daemon is out of memory");
	}
	if (rc)
		return rc;
	for (uint32_t i = 0; i < w->n; i++)
		set_range(s->marks, &w->range[i]);
	s->marks->seq = seq;
	if (w->more) {
		answer(s);
		return 0;
	}
	s->marks->call = MARKS_ASKED;
	session_claim(s, 0);
	return 0;
}

/* --- turns --------------------------------------------------------------------------------------------------------------------- */

bool marks_begin(struct session *s)
{
	struct marks *m = s->marks;

	if (!m)
		return false;
	if (m->call == MARKS_ASKED)
		m->call = MARKS_AT_TURN;
	m->dropping = m->drops;
	memcpy(m->seen, m->word, s->max_tokens * sizeof(*m->word));
	return m->dropping;
}

void marks_turn(const struct session *s, struct gpu_turn *turn)
{
	if (!s->marks)
		return;
	turn->marks = s->marks->seen;
	turn->n_marks = s->max_tokens;
	turn->n_kv_heads = s->n_kv_heads;
	turn->live = s->marks->live;
}

uint32_t marks_tagged(const struct session *s)
{
	return s->marks ? s->marks->tagged : 0;
}

bool marks_dropping(const struct session *s)
{
	return s->marks && s->marks->dropping;
}

void marks_dropped(struct session *s)
{
	struct marks *m = s->marks;

	if (!marks_dropping(s))
		return;
	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++) {
		struct session_lane *l = &s->lane[lane];
		const uint32_t gone = l->live - m->live[lane];

		assert(m->live[lane] <= l->live);
		l->live -= gone;
		l->dropped += gone;
		s->dropped += gone;
		s->evicted += gone;
		s->client->d->count.evicted += gone;
	}
	m->drops = m->dropping = false;
	for (uint32_t i = 0; i < s->max_tokens; i++) {
		if ((m->word[i] & EVICT_MARK_DROP) == (m->seen[i] & EVICT_MARK_DROP))
			m->word[i] &= ~EVICT_MARK_DROP;
		m->drops |= (m->word[i] & EVICT_MARK_DROP) != 0;	/* asked for meanwhile: the next turn's */
		m->seen[i] &= ~EVICT_MARK_DROP;
	}
	s->freed = true;
}

void marks_published(struct session *s)
{
	if (!s->marks)
		return;
	if (s->marks->call == MARKS_AT_TURN)
		answer(s);
	else if (s->marks->call == MARKS_ASKED)	/* it came while a turn was under way */
		session_claim(s, 0);
}
