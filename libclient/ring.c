/*
 * The pair of rings in shared memory. Fixed 64-byte records; indices count up for ever and wrap as uint32.
 * We own sq_tail and cq_head and keep our own copies; what the daemon writes is checked before it is used.
 */
#include "libclient/client.h"

#include <errno.h>
#include <sched.h>
#include <unistd.h>

static void ring_doorbell(struct ebb *ebb)
{
	const uint64_t one = 1;

	/* Can only fail with a counter at its maximum, and then the daemon is awake. */
	if (write(ebb->doorbell, &one, sizeof(one)) < 0)
		return;
}

void ebbi_wake(struct ebb *ebb)
{
	wire_fence();	/* our record, then the daemon's flag; its partner sets the flag, fences and looks at sq_tail */
	if (wire_load32(&ebb->shared->sq_flags.value) & WIRE_NEED_WAKEUP)
		ring_doorbell(ebb);
}

/* Room for one record? -EPIPE when the daemon's head is nowhere between what it was and our tail. */
static int room(struct ebb *ebb)
{
	uint32_t head = wire_load32(&ebb->shared->sq_head.value);	/* released by the daemon once it has copied the record */

	if (ebb->sq_tail - head > WIRE_SQ_ENTRIES)
		return ebbi_broken(ebb, "the daemon's ring head is %u, our tail %u", head, ebb->sq_tail);
	ebb->sq_head_seen = head;
	return ebb->sq_tail - head < WIRE_SQ_ENTRIES;
}

/*
 * The ring is full: the daemon is behind. It rings no bell for room, so wake it and look again every millisecond; the socket
 * tells us if it dies. Full means 1024 steps behind, so this is rare.
 */
static int wait_for_room(struct ebb *ebb)
{
	int rc, spins = 0;

	for (;;) {
		rc = room(ebb);
		if (rc)
			return rc < 0 ? rc : 0;
		rc = ebbi_alive(ebb);
		if (rc)
			return rc;
		ebbi_wake(ebb);
		if (spins++ < 4) {
			sched_yield();
			continue;
		}
		rc = ebbi_wait_sleep(ebb->wait, 1000000);
		if (rc < 0)
			return ebbi_broken(ebb, "the kernel does not let us sleep");
		if (rc & EBBI_SOCKET) {
			rc = ebbi_take_notices(ebb);
			if (rc)
				return rc;
		}
	}
}

int ebbi_push(struct ebb *ebb, const struct wire_record *record)
{
	uint32_t used = ebb->sq_tail - ebb->sq_head_seen;

	if (used >= WIRE_SQ_ENTRIES) {
		int rc = wait_for_room(ebb);

		if (rc)
			return rc;
	}
	ebb->shared->sq[ebb->sq_tail & (WIRE_SQ_ENTRIES - 1)] = *record;
	ebb->sq_tail++;
	wire_store32(&ebb->shared->sq_tail.value, ebb->sq_tail);	/* the daemon's load of it sees the record */
	/* Long windows ring no bell for many steps: let a sleeping daemon empty the ring before it is full. */
	if ((ebb->sq_tail & (WIRE_SQ_ENTRIES / 2 - 1)) == 0)
		ebbi_wake(ebb);
	return 0;
}

int ebbi_drain(struct ebb *ebb)
{
	uint32_t tail = wire_load32(&ebb->shared->cq_tail.value);	/* released by the daemon after its records */

	if (tail == ebb->cq_head)
		return 0;
	if (tail - ebb->cq_head > WIRE_CQ_ENTRIES)
		return ebbi_broken(ebb, "the daemon's completion tail is %u, our head %u", tail, ebb->cq_head);
	/* Records only repeat what the words say, and may come later than the words: there is nothing in them to act on. */
	ebb->cq_head = tail;
	wire_store32(&ebb->shared->cq_head.value, ebb->cq_head);	/* the daemon may overwrite what we have read */
	return 0;
}
