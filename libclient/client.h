/*
 * Private to libclient/: the structures behind ebb.h and what its files offer each other (prefix ebbi_, never exported).
 *
 *   connect.c  socket, hello and welcome, the life page, ebb_close()
 *   message.c  one message out, one in; SLAB and DROP handled whenever they arrive
 *   slabs.c    devices and slab addresses of the pools
 *   ring.c     submission and completion ring, doorbell
 *   wait.c     sleeping until the bell rings or the socket has something: io_uring or poll
 *   watch.c    a thread for the daemon's death, where streams wait for the daemon's device
 *   session.c  open, close, statistics
 *   batch.c    batches, and the operations of a step
 *   lane.c     looking into a lane
 *   mark.c     tags, pins and drops
 *   step.c     begin and end of a step: the hand-over
 *   local.c    sessions without a daemon
 *   ask.c      questions
 *
 * Errors: negative errno, the sentence in ebb->why. A peer that says something impossible is hung up on: ebbi_broken().
 */
#ifndef EBB_CLIENT_H
#define EBB_CLIENT_H

#include <stdbool.h>

/* Everything is compiled with hidden visibility; what ebb.h declares is not. */
#pragma GCC visibility push(default)
#include "libclient/ebb.h"
#pragma GCC visibility pop
#include "gpu/gpu.h"
#include "libclient/wire.h"

#define EBBI_WHY 512
#define EBBI_MAX_TOKENS (1u << 30)	/* positions are int32, and evict's keys have 30 bits for them */

#define EBBI_NO_EPOCH UINT32_MAX		/* epochs have 31 bits */

enum { EBBI_BELL = 1, EBBI_SOCKET = 2 };	/* what woke us */

struct ebbi_wait;
struct ebbi_watch;

struct ebbi_slab {
	void *base;		/* NULL: not mapped */
	size_t bytes;
	uint64_t generation;
};

struct ebbi_pool {
	struct ebb *ebb;
	struct wire_pool info;
	struct gpu_device *dev;	/* NULL until somebody needs it */
	int dev_error;		/* why it could not be opened; not tried again */
	gpu_stream stream;	/* orders changes of the map (CUDA) */
	struct gpu_map *map;
	struct ebbi_slab *slab;	/* [max_slabs] */
	bool registered;	/* the device may write the shared words */
};

struct ebb {
	bool local;
	bool dead;		/* the daemon is gone or was hung up on: everything returns -EPIPE */
	unsigned threads;
	int sock, doorbell, bell;
	struct wire_shared *shared;
	const uint32_t *life;
	struct ebbi_wait *wait;
	struct ebbi_watch *watch;	/* NULL: no stream has had to wait yet */
	uint32_t seq;		/* of the last request */
	uint32_t notices_seen;	/* SLAB and DROP messages taken; may run ahead of shared->notices */
	uint32_t sq_tail, sq_head_seen, cq_head;
	uint64_t step_seq;
	struct ebbi_pool *pool;
	unsigned n_pools;
	struct ebb_session *session[WIRE_MAX_SESSIONS];
	struct ebb_batch *batches;
	char why[EBBI_WHY];
};

struct ebb_session {
	struct ebb *ebb;
	struct ebbi_pool *pool;
	struct ebb_batch *batch;
	struct wire_session *words;	/* shared, or &own */
	uint32_t index;
	uint32_t window;		/* tokens the daemon grants at a time unless asked for more */
	uint32_t n_layers;
	struct gpu_shape shape;
	uint32_t max_tokens;
	uint32_t max_slots;
	uint32_t begun;			/* only we change it, so this copy is the truth */
	uint32_t epoch;			/* of the grant that `granted` is of; EBBI_NO_EPOCH: none seen yet */
	uint64_t granted;
	uint64_t hand;			/* words->hand as last looked at: what a swap expects */
	uint64_t awaited;		/* the turn that a stream of ours has been told to wait for */
	uint32_t table_id;		/* the one that `table` was found from */
	const void *table;
	uint32_t observe;		/* every so many-th query's heat may be taken later (keep.c); 0: none's */
	uint32_t room;			/* of its batch, for queries to be kept in */
	uint32_t kept;			/* how many are, */
	int32_t kept_pos;		/* and the first one's position */

	bool wish;			/* a WANT is out */
	uint32_t wish_epoch;		/* then: another one is the answer */

	struct wire_session own;	/* ebb_local() */
	struct ebbi_local *local;
};

struct ebb_batch {
	struct ebb *ebb;
	struct ebb_batch *next;
	struct ebbi_pool *pool;
	gpu_stream stream;
	struct gpu_step *step;
	uint32_t max_sessions, max_rows;
	uint32_t pad;			/* 0 or 1: not */
	uint32_t n;
	bool open;			/* between step_begin and step_end */
	uint32_t n_seqs;		/* of the open step */
	uint32_t n_rows;		/* as it is launched */
	uint64_t n_tokens;
	struct ebb_session **member;	/* [max_sessions], in the order of joining */
	struct ebb_session **active;	/* [max_sessions]: those with tokens in the open step, [n_seqs] */
	uint32_t *take;			/* [max_sessions]: tokens of the step under way */
	struct gpu_seq *seq;		/* [max_sessions] */
	uint64_t **word;		/* [max_sessions]: words of the step's sessions, what to wait for at its begin, `finished` at its end; */
	uint64_t *value;		/* and their values */
	uint32_t rooms, depth;		/* for queries: how many, of how many each; 0: heat is added at once */
	bool keeps_none;		/* the device does not keep queries of this batch, or shall not */
	bool *room;			/* [max_sessions]: taken */
	struct gpu_kept *due;		/* [max_sessions]: for gpu_heat_kept() */
};

/* --- connect.c */
/* Keeps the sentence and returns `error`. */
int ebbi_error(struct ebb *ebb, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The peer broke the protocol, or the device is lost: hang up. Returns -EPIPE. */
int ebbi_broken(struct ebb *ebb, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* -EPIPE, once the daemon is known to be gone. */
int ebbi_gone(struct ebb *ebb);
/* Reads the life word, no system call: 0 or -EPIPE. */
int ebbi_alive(struct ebb *ebb);
struct ebb *ebbi_new(const struct ebb_options *options);
/* Copies the sentence to options->why, closes, returns `error`. */
int ebbi_failed(struct ebb *ebb, const struct ebb_options *options, int error);

/* --- message.c */
/* Sends head and the first `bytes` bytes of the union. 0 or -EPIPE. */
int ebbi_send(struct ebb *ebb, struct wire_msg *msg, enum wire_type type, uint32_t seq, size_t bytes);
/*
 * ebbi_receive - one message of any kind, checked against its type's size.
 * @fd: [n_fds], filled with what came, -1 for the rest; the caller closes them. More than n_fds is a broken protocol.
 * Errors: -EAGAIN (only with dont_wait), -EPIPE.
 */
int ebbi_receive(struct ebb *ebb, struct wire_msg *msg, int *fd, unsigned n_fds, bool dont_wait);
/*
 * ebbi_request - send, then wait for the reply of the given type, and serve SLAB and DROP meanwhile. @fd: NULL, or the one
 * descriptor of the reply (returned; -1 if none). A FAILED reply returns its status with its text in ebb->why.
 */
int ebbi_request(struct ebb *ebb, struct wire_msg *msg, enum wire_type type, size_t bytes, enum wire_type reply, int *fd);
/* Takes every SLAB and DROP that waits in the socket, and waits for those announced. 0 or -EPIPE. */
int ebbi_notices(struct ebb *ebb);
/* As above but never waits: what is there now. */
int ebbi_take_notices(struct ebb *ebb);

/* --- slabs.c */
int ebbi_pool_init(struct ebb *ebb, struct ebbi_pool *pool);
void ebbi_pool_fini(struct ebbi_pool *pool);
/* Opens the pool's device if it is not open. 0, -ENODEV, ... with a sentence. */
int ebbi_pool_device(struct ebbi_pool *pool);
/* What an open device needs before anything can be mapped: threads, stream, map, the shared words registered. */
int ebbi_pool_prepare(struct ebbi_pool *pool);
/* NULL or "": the first; ebb_local() has one pool under every name. -ENOENT with a sentence. */
int ebbi_pool_find(struct ebb *ebb, const char *name, struct ebbi_pool **out);
int ebbi_slab_add(struct ebb *ebb, const struct wire_slab *slab, int fd);	/* fd borrowed. 0 or -EPIPE */
int ebbi_slab_drop(struct ebb *ebb, const struct wire_slab *slab);		/* answers DROPPED. 0 or -EPIPE */
/* Address of `bytes` bytes at an id of the pool, or NULL when they do not lie in one mapped slab. */
void *ebbi_pool_at(const struct ebbi_pool *pool, uint32_t id, size_t bytes);

/* --- ring.c */
/* Writes a record; if the ring is full, wakes the daemon and waits for room. 0 or -EPIPE. */
int ebbi_push(struct ebb *ebb, const struct wire_record *record);
/* Rings the doorbell if the daemon sleeps. Has the full fence in front. */
void ebbi_wake(struct ebb *ebb);
/* Takes what the completion ring holds. 0 or -EPIPE. */
int ebbi_drain(struct ebb *ebb);

/* --- wait.c */
/* Never fails for want of io_uring; -ENOMEM. */
int ebbi_wait_new(struct ebbi_wait **out, int bell, int sock, bool no_uring);
void ebbi_wait_free(struct ebbi_wait *w);
bool ebbi_wait_uring(const struct ebbi_wait *w);	/* which method it is */
/*
 * ebbi_wait_sleep - sleep until the bell rings (and is then silent again), the socket is readable or has hung up, or the time
 * is over. Returns a mask of EBBI_BELL and EBBI_SOCKET, 0 when the time is over or for no reason at all; the caller looks again.
 * @timeout_ns: < 0: no limit. Errors: -EIO should the kernel refuse.
 */
int ebbi_wait_sleep(struct ebbi_wait *w, int64_t timeout_ns);
uint64_t ebbi_now_ns(void);

/* --- watch.c */
/* Starts it, if it is not there. It ends when the socket is shut down, by whichever side. -ENOMEM, -EAGAIN. */
int ebbi_watch_new(struct ebb *ebb);
void ebbi_watch_free(struct ebbi_watch *w);	/* after that; NULL is fine */

/* --- session.c, batch.c, step.c */
int ebbi_session_check(struct ebb *ebb, const struct ebb_session_options *options);
int ebbi_step_end(struct ebb_batch *batch);

/* --- keep.c */
/* Which of the open step's queries are kept; live_max as for gpu_step_set(), which comes after. */
int ebbi_keep(struct ebb_batch *batch, uint32_t live_max);
/* Has the heat of what the open step's sessions have kept added, where their windows end with it or their rooms are full. */
int ebbi_keep_end(struct ebb_batch *batch);
/* The same of one session, whatever it has kept, if a step of it is open. */
int ebbi_keep_flush(struct ebb_session *session);
/* The session leaves its batch: what it has kept is forgotten. */
void ebbi_keep_leave(struct ebb_session *session);

/* --- local.c */
int ebbi_local_open(struct ebb *ebb, const struct ebb_session_options *options, struct ebb_session **out);
void ebbi_local_close(struct ebb_session *session);
/* Memory for the tokens up to `tokens`. 0, -ENOMEM, ... */
int ebbi_local_grow(struct ebb_session *session, uint64_t tokens);
/* Marks that have been checked. */
int ebbi_local_mark(struct ebb_session *session, const struct ebb_mark *mark, uint32_t n);

#endif
