/*
 * What passes between libebb and ebbd, byte by byte. Private to the two; compiles as C and C++.
 *
 * 1. A UNIX SOCK_SEQPACKET socket. Each message is one struct wire_msg (its first `bytes` bytes), with descriptors where stated.
 *
 *      client                                   daemon
 *      HELLO                      ->
 *                                 <-  WELCOME + 4 fds: shared memory, doorbell, bell, life page
 *                                 <-  POOL, once per pool
 *      LANES                      ->          (a piece of the text of a table of lanes, for the next OPEN; no reply)
 *      OPEN                       ->
 *                                 <-  SLAB + fd (host) for every slab the client does not have yet; later too, unasked
 *                                 <-  OPENED, or FAILED
 *      CLOSE                      ->
 *                                 <-  CLOSED (the session's pages are back) or FAILED
 *                                 <-  DROP: unmap this slab
 *      DROPPED                    ->
 *      MARK                       ->          (tags, pins, drops of a session)
 *                                 <-  MARKED: they hold (the last message of a call: once a turn has passed) or FAILED
 *      CHANGE                     ->          (other settings for an open session)
 *                                 <-  CHANGED, or FAILED
 *      ASK                        ->
 *                                 <-  ANSWER + memfd with JSON, or FAILED
 *
 *    A reply carries the request's seq. Messages that nobody asked for (SLAB, DROP) have seq 0; wire_shared.notices counts
 *    those sent, so that a client knows without a system call that some wait in its socket. They are sent before the grant that
 *    needs them. Hanging up is the only way to say goodbye. A client that breaks the protocol is dropped.
 *
 * 2. Shared memory: a memfd of WIRE_SHARED_BYTES, sealed against resizing: struct wire_shared. Each field is written by one
 *    side, as noted; neither side believes the other's fields: it copies, checks, uses.
 *
 * 3. Doorbell: eventfd, client -> daemon. Bell: eventfd, daemon -> client. Rung only when the other side has said that it sleeps.
 *
 * 4. Life page: one 4096-byte memfd for all clients, which they can only read. Its first word is a robust futex held by
 *    the daemon's loop thread: the kernel sets FUTEX_OWNER_DIED in it the moment the daemon dies, however it dies.
 *    So a client learns of the daemon's death by reading memory.
 *
 * The hand-over of a session is tests/model/handover.pml. Steps are counted in tokens:
 *
 *      hand      begun (32 bits), epoch (31), claim (1) in one word, see wire_hand(). begun: tokens begun. epoch: grants so far.
 *                claim: the daemon's wish to have the session. Both sides change it, by compare-and-swap only.
 *      finished  tokens whose device work is done. The client's device (on the host: step_end).
 *      granted   tokens allowed in all. The daemon, while it owns the session, before it counts up the epoch.
 *
 *    The client reads hand, then granted, then swaps hand: it may begin n tokens while !claim and begun + n <= granted. The epoch makes
 *    the swap fail when a grant came in between (a new grant may allow less in all than the old one did).
 *    The daemon owns the session's tables and scores while (claim or begun == granted) and finished == begun. When the client needs
 *    more than is left it writes `want` and sends a WANT record; the daemon then claims the session; the answer is a new epoch.
 *
 *    Devices that wait for each other (CUDA) take the processors off that path. A grant may then come before finished == begun: the daemon
 *    has enqueued the turn behind a wait for `finished`, and the window behind it holds once wire_shared.turned has come up to `turn`,
 *    which the daemon's device stores when it has done the turn. So the client's device waits for that before it works on the window.
 *    The turns of a client's sessions go in batches, one of a client under way at a time, and `turned` counts them: one word for all of
 *    a step's sessions, since a device takes about a microsecond for each word that it looks at. A turn goes ahead only when launched
 *    == begun: then step_begin is through with the window's words, and what is waited for is the client's device, not the client. What
 *    is left of a client that hung up is let through by storing INT64_MAX in `finished`; if the daemon dies, the client stores INT64_MAX
 *    in `turned`.
 */
#ifndef EBB_WIRE_H
#define EBB_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/layout.h"

#define WIRE_MAGIC 0x62626534u		/* "4ebb" */
#define WIRE_VERSION 3u
#define WIRE_NAME 32			/* names, NUL included */
#define WIRE_TEXT 512
#define WIRE_MODEL 64			/* names of models, NUL included */
#define WIRE_MAX_LANES_TEXT (1u << 20)	/* bytes of a table of lanes, all pieces together */
#define WIRE_MAX_SESSIONS 1024u		/* per client */
#define WIRE_MAX_POOLS 16u
#define WIRE_SQ_ENTRIES 1024u		/* powers of two */
#define WIRE_CQ_ENTRIES 1024u

enum wire_type {
	WIRE_HELLO = 1, WIRE_OPEN, WIRE_CLOSE, WIRE_DROPPED, WIRE_ASK, WIRE_LANES, WIRE_MARK, WIRE_CHANGE,
	WIRE_WELCOME = 65, WIRE_POOL, WIRE_SLAB, WIRE_OPENED, WIRE_CLOSED, WIRE_DROP, WIRE_ANSWER, WIRE_FAILED,
	WIRE_MARKED, WIRE_CHANGED,
};

/* fds of WELCOME, in this order */
enum { WIRE_FD_SHARED, WIRE_FD_DOORBELL, WIRE_FD_BELL, WIRE_FD_LIFE, WIRE_N_FDS };

struct wire_head {
	uint32_t bytes;			/* of the whole message, = what arrived; at least the type's own struct */
	uint16_t type;
	uint16_t zero;
	uint32_t seq;
	int32_t status;			/* FAILED: negative errno; else 0 */
};

struct wire_hello {
	uint32_t magic, version;
	char name[WIRE_NAME];
};

struct wire_welcome {
	uint32_t version, client;
	uint32_t n_pools, zero;
	uint64_t shared_bytes;
};

struct wire_pool {
	uint32_t index;
	uint32_t is_cuda;
	uint32_t slab_shift, max_slabs;
	uint64_t size_bytes;
	char name[WIRE_NAME];
	char uuid[48];
};

struct wire_open {
	char pool[WIRE_NAME];		/* "": the first */
	uint32_t n_layers, n_kv_heads, group, head_dim;
	uint32_t max_tokens, prompt_tokens;
	int32_t wait_ms;
	uint32_t zero;
	char settings[WIRE_TEXT];	/* key=value pairs */
	char model[WIRE_MODEL];		/* what the client calls its model; "": it does not say */
};

struct wire_lanes {
	uint32_t bytes;			/* of text, 1 .. WIRE_TEXT */
	uint32_t zero;
	char text[WIRE_TEXT];
};

/* What is said of a range of positions. */
enum wire_mark_what {
	WIRE_TAG = 1,			/* their modality is `value` */
	WIRE_PIN = 2, WIRE_UNPIN = 3,	/* protected like a pinned prompt; no longer */
	WIRE_LEAVE = 4,			/* the lanes of layers `value` and above lose them */
};

#define WIRE_MAX_RANGES 24u

struct wire_range {
	uint32_t first, count;		/* positions; below max_tokens, and where they shall leave below what has begun */
	uint16_t what, zero;
	uint32_t value;
};

struct wire_mark {
	uint32_t session;
	uint32_t n;			/* ranges, taken in their order */
	uint32_t more;			/* 1: another message of the same call follows: answered at once; 0: answered when all of it holds */
	uint32_t zero;
	struct wire_range range[WIRE_MAX_RANGES];
};

struct wire_change {
	uint64_t id;			/* of any session, as ebbctl shows it; 0: this client's own, by index */
	uint32_t session;
	uint32_t zero;
	char settings[WIRE_TEXT];	/* key=value pairs; keys not named stay as they are */
};

struct wire_opened {
	uint32_t session;		/* index into wire_shared.session; unique among this client's open sessions */
	uint32_t pool;			/* index */
	uint32_t slot_type;
	uint32_t table_id;		/* page id of the session's shared table, as of the first grant */
	uint32_t max_slots;		/* per lane */
	uint32_t zero;
	struct gpu_table table;		/* the table's header as the daemon made it */
};

struct wire_slab {			/* SLAB, DROP, DROPPED */
	uint32_t pool, slab;
	uint64_t generation;		/* of the slab's use; counts up with every change of hands */
	uint64_t bytes;
	uint8_t handle[64];
};

struct wire_msg {
	struct wire_head head;
	union {
		struct wire_hello hello;
		struct wire_welcome welcome;
		struct wire_pool pool;
		struct wire_open open;
		struct wire_lanes lanes;
		struct wire_mark mark;
		struct wire_change change;
		struct wire_opened opened;
		struct { uint32_t session, zero; } close;	/* CLOSE, CLOSED, MARKED */
		struct wire_slab slab;
		char text[WIRE_TEXT];	/* ASK: the question; FAILED: the reason. NUL-terminated */
		struct { uint64_t bytes; } answer;
		struct { uint32_t in_force, zero; } changed;	/* 0: it will be, with the session's next turn */
	} u;
};

/* --- shared memory -------------------------------------------------------------------------------------------------------------- */

enum wire_op {
	WIRE_STEP = 1,		/* client: a step of a batch is over (one record per step, however many sessions) */
	WIRE_WANT = 2,		/* client: session `session` needs a window of at least session[].want tokens */
	WIRE_GRANT = 3,		/* daemon: session `session` has a new window (the words say so too; may be left out when full) */
};

enum { WIRE_USED_UP = 1 };	/* STEP flag: the window of at least one session is used up, or claimed: look at the words */

struct wire_record {		/* 64 bytes */
	uint32_t op, flags;
	uint32_t session;
	uint32_t n_sessions;	/* STEP: of the batch */
	uint64_t n_tokens;	/* STEP: appended by all of them; GRANT: granted */
	uint64_t seq;		/* STEP: of this client's steps */
	uint64_t zero[4];
};

struct wire_session {
	/* line 0: both, compare-and-swap */
	uint64_t hand;		/* wire_hand() */
	uint64_t pad0[7];
	/* line 1: the client, or its device */
	uint64_t finished;
	uint64_t want;		/* tokens the next step would like; 0: no wish */
	uint64_t launched;	/* tokens whose work the client's device has been given (step_end; it reads this window no more) */
	uint64_t pad1[5];
	/* line 2: the daemon */
	uint64_t granted;
	uint64_t base;		/* begun when the window was granted: the window's tokens are base .. granted-1 */
	uint64_t live;		/* slots over all lanes, at base */
	uint64_t evicted;	/* slots, over all lanes, so far */
	uint32_t budget;	/* slots per lane */
	uint32_t live_max;	/* longest lane at base, and what it can grow to in this window */
	uint32_t table_id;	/* page id of the shared table: it may move between windows, read it after each new grant */
	uint32_t heat_from;	/* queries at lower positions shall add no heat */
	uint64_t turn;		/* the batch of its last turn granted ahead: the window holds when wire_shared.turned is no less */
	uint32_t ahead;		/* 1: the next turn is likely to be granted ahead, so nobody need tell the daemon of the device's end */
	uint32_t pad2;
};

struct wire_line {		/* one word on a cache line of its own */
	uint32_t value;
	uint32_t pad[15];
};

struct wire_word {
	uint64_t value;
	uint64_t pad[7];
};

struct wire_shared {
	struct wire_line sq_head;	/* daemon: next record it will take */
	struct wire_line sq_tail;	/* client: next record it will write */
	struct wire_line sq_flags;	/* daemon: WIRE_NEED_WAKEUP */
	struct wire_line cq_head;	/* client */
	struct wire_line cq_tail;	/* daemon */
	struct wire_line cq_flags;	/* client: WIRE_NEED_WAKEUP */
	struct wire_line notices;	/* daemon: SLAB and DROP messages sent so far */
	struct wire_word turned;	/* daemon's device: batches of turns ahead that it has done */
	struct wire_record sq[WIRE_SQ_ENTRIES];
	struct wire_record cq[WIRE_CQ_ENTRIES];
	struct wire_session session[WIRE_MAX_SESSIONS];
};

enum { WIRE_NEED_WAKEUP = 1 };

#define WIRE_SHARED_BYTES ((sizeof(struct wire_shared) + 4095u) / 4096u * 4096u)
#define WIRE_LIFE_BYTES 4096u

/* The hand word. A grant clears the claim and counts up the epoch in one swap, after granted and base are written. */
static inline uint64_t wire_hand(uint32_t begun, uint32_t epoch, uint32_t claim)
{
	return (uint64_t)begun << 32 | (uint64_t)(epoch & 0x7fffffffu) << 1 | (claim & 1u);
}
static inline uint32_t wire_begun(uint64_t hand) { return (uint32_t)(hand >> 32); }
static inline uint32_t wire_epoch(uint64_t hand) { return (uint32_t)(hand >> 1) & 0x7fffffffu; }
static inline uint32_t wire_claim(uint64_t hand) { return (uint32_t)(hand & 1u); }

/* The four ways of touching shared words; each use names its partner in a comment. */
static inline uint32_t wire_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t wire_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void wire_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void wire_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int wire_swap64(uint64_t *p, uint64_t *expected, uint64_t desired)
{
	return __atomic_compare_exchange_n(p, expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
/* Full, as __atomic_thread_fence(__ATOMIC_SEQ_CST), which gcc refuses to compile with -fsanitize=thread -Werror. */
static inline void wire_fence(void) { __sync_synchronize(); }

#endif
