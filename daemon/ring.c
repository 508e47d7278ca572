/*
 * A client's rings. Records are copied out once; head and tail as the client sees them are only a copy of ours, and whatever
 * stands in shared memory can at worst make us look at its sessions' words, which are checked by themselves (session_look()).
 */
#include "daemon/daemon.h"

#include <sys/eventfd.h>
#include <unistd.h>

/* The window of some session may be used up: the words say which. */
void client_look(struct client *c)
{
	uint32_t left = c->n_sessions;

	for (uint32_t i = 0; i < WIRE_MAX_SESSIONS && left && !c->gone; i++)
		if (c->session[i]) {
			left--;
			session_look(c->session[i]);
		}
}

static void take_record(struct client *c, const struct wire_record *r, bool *look)
{
	struct daemon *d = c->d;

	switch (r->op) {
	case WIRE_STEP:
		if (r->n_sessions > WIRE_MAX_SESSIONS || r->n_tokens > (uint64_t)WIRE_MAX_SESSIONS * EVICT_MAX_POSITION) {
			client_drop(c, "its step record has impossible counts");
			return;
		}
		c->steps++;
		c->tokens += r->n_tokens;
		d->count.steps++;
		d->count.tokens += r->n_tokens;
		*look |= r->flags & WIRE_USED_UP;
		return;
	case WIRE_WANT:
		if (r->session >= WIRE_MAX_SESSIONS || !c->session[r->session]) {
			client_drop(c, "it wants a window for a session that is not open");
			return;
		}
		session_claim(c->session[r->session], 0);
		return;
	default:
		client_drop(c, "its ring holds a record of no known kind");
	}
}

unsigned client_drain_ring(struct client *c, unsigned most)
{
	uint32_t tail = wire_load32(&c->shared->sq_tail.value);	/* partner: the client's store after it wrote the record */
	uint32_t n = tail - c->sq_head;
	bool look = false;

	if (n > WIRE_SQ_ENTRIES) {
		client_drop(c, "its ring's tail is out of range");
		return 0;
	}
	if (n > most)
		n = most;
	for (uint32_t i = 0; i < n && !c->gone; i++) {
		struct wire_record r = c->shared->sq[c->sq_head & (WIRE_SQ_ENTRIES - 1)];

		__asm__ volatile("" ::: "memory");	/* the copy is what we check and what we use */
		c->sq_head++;
		take_record(c, &r, &look);
	}
	if (n && !c->gone) {
		c->d->count.records += n;
		wire_store32(&c->shared->sq_head.value, c->sq_head);	/* partner: the client's look for room */
	}
	if (look && !c->gone)
		client_look(c);
	return n;
}

bool client_ring_empty(const struct client *c)
{
	return wire_load32(&c->shared->sq_tail.value) == c->sq_head;
}

void client_grant_record(struct client *c, const struct session *s)
{
	uint32_t head = wire_load32(&c->shared->cq_head.value);
	struct wire_record r = { .op = WIRE_GRANT, .session = s->index, .n_tokens = s->granted, .seq = s->epoch };

	if (c->cq_tail - head >= WIRE_CQ_ENTRIES)
		return;		/* full: the words say it too */
	c->shared->cq[c->cq_tail & (WIRE_CQ_ENTRIES - 1)] = r;
	wire_store32(&c->shared->cq_tail.value, ++c->cq_tail);
}

void client_wake(struct client *c)
{
	uint64_t one = 1;

	wire_fence();		/* partner: the client's fence between its flag and its last look */
	if (wire_load32(&c->shared->cq_flags.value) & WIRE_NEED_WAKEUP)
		(void)!write(c->bell, &one, sizeof(one));	/* EAGAIN: it is ringing already */
}
