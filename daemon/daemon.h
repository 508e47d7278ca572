/*
 * The daemon's own structures: who is connected, what they have open, and whose turn it is. Private to daemon/.
 *
 * One thread runs everything here. Data flows one way:
 *
 *   client.c   takes records out of rings and messages out of sockets
 *   session.c  looks at a session's words; when the session is the daemon's:
 *   turn.c     plans the turn (evict/) and queues it
 *   mark.c     what a client says of its tokens: tags, pins, drops
 *   change.c   gives an open session other settings, with the turn that comes next
 *   budget.c   shares the session's slots over its lanes (evict/split.h)
 *   queue.c    puts it where its device will take it; on CUDA it may go ahead of the client's device
 *   serve.c    runs the queued turns of a pool on its device (gpu/) as one batch, then publishes the grants
 *   tide.c     with [pool] tide: how many slots a lane of each session of the pool may hold
 *   pressure.c when a pool is short: claims sessions, keeps the queue of sessions waiting to be opened
 *   loop.c     one io_uring that tells the others when
 *   mps.c      is there an MPS server?
 *   report.c   answers questions in JSON
 *   record.c   writes what a session sees to a file, for ebb-replay
 */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "conf/conf.h"
#include "daemon/pool.h"
#include "evict/evict.h"
#include "libclient/wire.h"

#define DAEMON_MAX_OUTBOX 8192	/* messages a client may leave unread before it is dropped */

struct daemon;
struct client;

/*
 *          open                    used up, or claimed, and finished == begun (or ahead: see below)
 *   (none) ------> SESSION_DAEMON <----------------------------------------- SESSION_CLIENT
 *                      |  ^                                                    ^
 *        device done,  |  | outbox empty                                       |
 *        or ahead      v  |                  grant                             |
 *                  SESSION_PUBLISH --------------------------------------------+
 *
 * A claim is not a state: it is a bit in the shared word, and `claimed` here remembers that we set it.
 *
 * Ahead (CUDA, queue.c): the turn is enqueued behind a wait for the client's device, and the grant is published at once, for
 * windows whose work the client has behind a wait for our device. Until that has done the turn the session is `flying`, whatever its state: no
 * other turn begins, and what the turn frees is not free yet.
 * CLOSE while SESSION_DAEMON or flying: `closing`, and the session ends when the device is done.
 */
enum session_state {
	SESSION_CLIENT,		/* the client's: it may begin steps */
	SESSION_DAEMON,		/* ours: a turn is queued or on the device */
	SESSION_PUBLISH,	/* ours: the turn is done, but messages it depends on are not yet sent */
};

struct session_lane {
	uint32_t live;		/* slots that are live at `base` */
	uint32_t fresh;		/* of the window granted, tokens that go to new slots */
	uint32_t n_pages, n_blocks;
	uint32_t held;			/* n_pages before the plan under way */
	uint32_t dropped;		/* tokens that its client had it drop, in all: it can never hold more than the others */
};

struct session {
	struct client *client;
	struct pool *pool;
	uint32_t index;			/* in wire_shared.session */
	uint32_t seq;			/* of the OPEN or CLOSE to answer */
	uint64_t id;			/* for people */
	enum session_state state;
	bool claimed, closing, opening;
	bool ahead, flying;		/* this turn goes ahead of the device; it is on the device, and its grant has been (or may be) published */
	bool parked;			/* this turn was to go ahead, but is too large: it waits for the client's device */
	uint64_t turn;			/* the batch of its last turn that went ahead */
	bool measuring;			/* the turn's first half is under way: what the split must know before it can be planned */
	bool pages_changed;		/* this turn must publish ids too, not only lanes and next slots */
	bool freed;			/* so much that whole slabs may be empty */
	bool starved;			/* wanted new pages and got none, at its last turn */
	uint64_t opened_ns;

	struct conf_session asked;	/* with the bits of what the client gave */
	char model[WIRE_MODEL];		/* what the client calls its model; "": it does not say */
	struct evict_spec spec;
	struct evict_split how;		/* what asked.split says */
	uint32_t n_layers, n_kv_heads, group, head_dim, slot_type;
	uint32_t max_tokens;
	uint32_t n_credit;
	uint32_t page_bytes, block_bytes, credit_bytes;

	struct gpu_table table;		/* header; also the sizes of the arrays below */
	uint32_t table_id, private_id;	/* runs */
	struct session_lane *lane;	/* [n_lanes] */
	uint32_t *page;			/* [n_lanes][max_pages]: the truth */
	uint32_t *block, *credit;	/* [n_lanes][max_blocks] */
	struct gpu_plan *plan;		/* [n_lanes] of this turn */
	uint32_t stats_heat[EVICT_MAX_HEAT];	/* which of the table's heat arrays the split reads */
	struct budget *split;		/* budget.c's; NULL: every lane gets `budget` */
	unsigned what;			/* GPU_* of this turn */
	uint32_t *move_src, *move_dst;	/* pages, then blocks, that leave a draining slab in this turn */
	uint32_t n_moves[2];
	uint32_t old_table_id;		/* the table's former place, or POOL_NO_ID */

	uint32_t tokens;		/* appended and settled: begun at the last turn */
	uint32_t pos, appended;		/* of the turn under way */
	uint32_t want;			/* tokens that the client would like to be granted at its end */
	uint32_t granted, epoch;
	uint32_t cap;			/* pool pressure: slots a lane may hold; 0: none */
	uint32_t budget;		/* slots per lane, in force: the mean over the lanes */
	uint32_t live_max;
	uint32_t live_before;		/* of the longest lane, when its window ended */
	uint64_t live, evicted, windows;
	uint64_t dropped;		/* of evicted: because the client said so */
	uint64_t bytes;			/* of pages and runs, private ones too */

	struct {
		struct evict_lane_stats *stats;		/* [n_lanes], or NULL */
		const struct evict_lane_stats *from;	/* what the turn under way measures into, if `measured` */
		float own;		/* log2 of what its attention gives for what its curve says; mixed over its turns */
		float factor;		/* log2: what its curve is multiplied by to be compared with others */
		bool known, measured;
		uint32_t wish, slots;		/* what the tide says; what is in force on the way there. 0: no tide */
	} tide;				/* tide.c */

	struct marks *marks;		/* mark.c's; NULL: the client has said nothing of its tokens */
	struct session *coming;		/* change.c: what it becomes at its next turn, or NULL; only what settings decide is filled in */
	struct session *turning;	/* what this turn makes of it, with new blocks; once `turned`, what it was, with the old ones; or NULL */
	bool turned;
	char kept[160];			/* why its last change was not made; "": it was, or there was none */

	struct record *record;		/* NULL: it is not recorded */
	bool record_kv;
	struct session *next_due;
};

struct outgoing {
	struct wire_msg msg;
	int fd;				/* closed once sent, if `owned` */
	bool owned;
};

/*
 * Turns on their way through a device: `due` wait until it has done the batch that is `running`. Each pool has one, on the pool's stream, and on
 * CUDA a few for turns that go ahead, of one client at a time: those wait on the device for that client's device, so they need streams of their
 * own, and a handle of their own, whose staging memory is kept as long.
 */
#define DAEMON_AHEAD 12			/* clients of a pool that can be ahead at a time */

struct queue {
	struct gpu_device *dev;
	gpu_stream stream;
	struct session *due, *running;
	uint64_t *done, batches;	/* batches that the device has done, written by it; that were begun */
	struct client *client;		/* whose turns go ahead here; NULL: free, or the pool's own */
};

struct client {
	struct daemon *d;
	uint32_t slot, id;
	bool welcome, process_ended, reaped, gone;	/* gone: hung up or dropped; waiting for the process to end */
	bool active;			/* its ring is being polled */
	bool waiting_open, unwatched, room_armed;
	int fd, pidfd, doorbell, bell, shared_fd;
	pid_t pid;
	uid_t uid;
	gid_t gid;
	char name[WIRE_NAME];
	struct wire_shared *shared;
	uint32_t sq_head, cq_tail, notices;	/* ours; what is in shared memory is a copy */
	uint64_t turns;			/* batches of its turns that went ahead; one at a time is under way */
	struct session *session[WIRE_MAX_SESSIONS];
	uint32_t n_sessions;
	struct pool_owner owner[WIRE_MAX_POOLS];
	struct queue *ahead;		/* where its turns are that go ahead, or NULL */
	struct gpu_device *registered;	/* the device that can write and await its shared words, or NULL */
	uint32_t announced[WIRE_MAX_POOLS];	/* of the owner's slabs, how many the client was told of */
	struct outgoing *outbox;	/* what the socket had no room for */
	uint32_t n_outbox;
	uint32_t pending_ops;		/* io_uring operations in flight that name this client */
	char *lanes;			/* text of a table of lanes for its next OPEN, or NULL */
	uint32_t lanes_bytes;
	struct wire_msg *in;		/* receive buffer, one byte longer than a message */
	uint64_t doorbell_value;
	uint64_t tokens, steps, windows, connected_ns;
	struct client *next_active;
};

/* A session that waits for room. */
struct waiting {
	struct client *client;
	struct pool *pool;
	uint32_t seq;
	struct wire_open open;
	uint64_t deadline_ns;		/* UINT64_MAX: none */
	bool patient;			/* the client asked to wait; else: only until the claims under way have been served */
	struct waiting *next;
};

/* A table of lanes of the operator's, as it was when it was last read. */
struct lanes {
	struct evict_lanes about;
	float *value, *curve;		/* behind the struct: [lanes], [lanes][EVICT_MAX_CURVE] */
};

/* All of them. */
struct lanes_set {
	struct lanes *session;		/* of [session] lanes; NULL: none */
	struct lanes *model[CONF_MAX_MODELS];	/* of [model NAME], in the order of conf.model */
};

struct priority {
	uid_t uid;
	float weight;
};

#define DAEMON_MAX_PRIORITIES 16

struct tide_level {
	float level;			/* log2 of the threshold; EVICT_LOW_TIDE: all have what they ask for */
	uint64_t bytes, rounds;		/* that the sessions share; how often it was found */
	uint32_t n, turns;		/* sessions that took part; turns since */
};

struct daemon {
	struct conf conf;
	struct priority priority[DAEMON_MAX_PRIORITIES];	/* what conf.daemon.priority says */
	unsigned n_priorities;
	struct tide_level tide[WIRE_MAX_POOLS];
	struct lanes_set lanes;
	const char *conf_path;
	struct pool pool[WIRE_MAX_POOLS];
	unsigned n_pools;
	struct queue queue[WIRE_MAX_POOLS][1 + DAEMON_AHEAD];	/* the pool's own first */
	int done_fd[WIRE_MAX_POOLS];			/* eventfd: the device has done a batch of one of them */
	struct client **client;		/* [conf.daemon.max_clients] */
	unsigned max_clients, n_clients;
	struct client *active;
	struct waiting *waiting;
	struct waiting **waiting_tail;
	unsigned n_waiting, n_claimed;
	struct loop *loop;
	int life_fd;
	bool draining, mps;		/* mps: ebbd's own CUDA runs under an MPS server */
	bool no_ahead, ahead_refused;	/* no turn can go ahead here; one could not, for want of a queue */
	uint64_t session_ids, client_ids, started_ns;
	struct {
		uint64_t tokens, steps, records, windows, ahead, claims, compactions, moves, evicted, dropped, opened, refused;
	} count;
};

uint64_t now_ns(void);

/* --- log.c: one line per event on stderr, "<level>event key=value ..." for the journal. Not on the step path. */
enum { LOG_ERROR = 3, LOG_WARN = 4, LOG_NOTE = 5, LOG_INFO = 6, LOG_DEBUG = 7 };
void log_level(unsigned level);
void log_line(unsigned level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* --- life.c */
int life_open(void);			/* the memfd of the life page, or -errno. Call from the loop's thread; once. */

/* --- client.c */
struct client *client_new(struct daemon *d, int fd);		/* fd taken. NULL: refused, closed */
void client_message(struct client *c, size_t bytes);		/* c->in holds what arrived; bytes may exceed a message */
void client_drop(struct client *c, const char *why);		/* hang up on it; client_reap() does the rest */
void client_hangup(struct client *c);				/* it hung up; likewise */
void client_reap(struct client *c);		/* if it is gone: end its sessions; free all, once no kernel of it can run */
void client_release(struct client *c);				/* its last operation in the loop has ended: free it */
void client_send(struct client *c, const struct wire_msg *msg, int fd, bool owned);
void client_fail(struct client *c, uint32_t seq, int status, const char *format, ...) __attribute__((format(printf, 4, 5)));
void client_forget_lanes(struct client *c);			/* the table that it handed over */
void client_flush(struct client *c);				/* the socket has room again */
void client_announce(struct client *c, unsigned pool);		/* tell it of its new slabs */
void client_trim(struct client *c, unsigned pool);		/* give up its empty slabs */
/* --- ring.c */
unsigned client_drain_ring(struct client *c, unsigned most);	/* records taken */
void client_look(struct client *c);				/* at the words of all its sessions */
bool client_ring_empty(const struct client *c);
void client_wake(struct client *c);				/* ring its bell if it sleeps */
void client_grant_record(struct client *c, const struct session *s);

/* --- session.c */
/* Returns 0 (OPENED will follow), -ENOSPC (nothing changed: there is no room) or another error with a sentence in why. */
int session_open(struct client *c, uint32_t seq, const struct wire_open *open, char *why, size_t why_bytes);
void session_look(struct session *s);				/* is it our turn? then plan and queue it */
void session_claim(struct session *s, uint32_t cap);		/* ask for it, to hold it to `cap` slots a lane (0: no cap) */
void session_end(struct session *s);				/* free everything; answers CLOSE if that was asked */
/* What follows from s->asked: spec, table, sizes. 0, or an error with a sentence. */
int session_spec(struct session *s, char *why, size_t why_bytes);
uint32_t session_window(const struct conf_session *a, uint32_t policy);	/* what a session that asks for this is opened with */
uint32_t session_floor(const struct conf_session *a, uint32_t window);	/* slots that no lane of it goes below */
void session_free(struct session *s);				/* the struct and what only it points to; no pages */
void session_follow(struct session *s);				/* the daemon's defaults have changed */
struct session *session_find(struct daemon *d, uint64_t id);	/* NULL: there is none */
struct pool *session_pool(struct daemon *d, const char *name);	/* "": the first; NULL: there is none of that name */
int session_check(const char *key, const char *text, char *why, size_t why_bytes);	/* conf_check of the keys policy, merge and split */

/* --- change.c: other settings for an open session */
/*
 * Prepares them: they take effect at the session's next turn, in place of what an earlier call prepared. @asked: copied.
 * 0, -ENOMEM, or -EINVAL or -ENOTSUP with a sentence; then nothing has changed.
 */
const struct conf_session *change_asked(const struct session *s);	/* the settings that it has, or will have */
int change_prepare(struct session *s, const struct conf_session *asked, char *why, size_t why_bytes);
void change_amounts(struct session *s);				/* before a turn is planned: what it may plan with already */
void change_reserve(struct session *s);				/* after: memory for the rest, or the change is off */
void change_run(struct session *s, const struct queue *q);	/* behind the turn's select: on the device, and then here */
void change_release(struct session *s);				/* after the turn: the blocks that it had before go back */

/* --- turn.c */
void turn_begin(struct session *s, uint32_t begun, uint32_t want);	/* it is ours: settle what was begun, plan and queue the turn */
void turn_decide(struct session *s);				/* plan the turn, or its second half, and queue it */
void turn_release(struct session *s);				/* after a turn: pages that it no longer needs go back */
bool turn_reserve(struct session *s, uint32_t lane, uint32_t slots);	/* make a lane's memory fit; else false, and it may have grown */
/* A block or page of the client's (or, with priv, the daemon's) memory, counted in s->bytes. */
bool turn_take(struct session *s, bool priv, uint32_t bytes, uint32_t *id);
void turn_give(struct session *s, bool priv, uint32_t bytes, uint32_t id);
void turn_free(struct session *s);				/* lanes and tables */

/* --- budget.c */
/*
 * Makes s->split for what it asked (s->how). A split that needs a table gets, when the session opens (@was: NULL), the one that its
 * client has just handed over, later the one that the session has; else the operator's. 0, -ENOMEM, or -EINVAL with a sentence.
 */
int budget_new(struct session *s, const struct session *was, char *why, size_t why_bytes);
/* Adds to the table what heat the split needs. 0, or -EINVAL or -ENOTSUP with a sentence. */
int budget_heat(struct session *s, char *why, size_t why_bytes);
bool budget_measures(const struct session *s);			/* the split needs statistics before a turn is planned */
void budget_measure(const struct session *s, struct gpu_turn *turn);	/* what to take, for the first half of a turn */
void budget_free(struct session *s);
void budget_plan(struct session *s);				/* s->budget and its lanes' shares, for the coming window */
uint32_t budget_of(const struct session *s, uint32_t lane);	/* slots that the lane may hold */
const struct evict_curve *budget_curve(const struct session *s);	/* what a slot is worth by a table; NULL: it has none */
/* Reads the tables that the configuration names. 0 and *out (budget_lanes_free()), or an error with a sentence. */
int budget_lanes(const struct conf *conf, struct lanes_set *out, char *why, size_t why_bytes);
void budget_lanes_free(struct lanes_set *set);

/* --- mark.c */
/* A MARK message, answered now or when its turn has passed: 0; or nothing of it is taken, with a sentence: -EINVAL, -ENOTSUP, -EBUSY, -ENOMEM. */
int marks_set(struct session *s, uint32_t seq, const struct wire_mark *w, char *why, size_t why_bytes);
bool marks_begin(struct session *s);				/* a turn begins; true if it must drop, and so has two halves */
bool marks_dropping(const struct session *s);			/* the turn's first half drops */
void marks_turn(const struct session *s, struct gpu_turn *turn);	/* what select must know of them */
void marks_dropped(struct session *s);				/* between the halves: what is left of its lanes */
void marks_published(struct session *s);			/* the turn has been published: answer */
uint32_t marks_tagged(const struct session *s);		/* position behind the last token with a tag other than 0 */
void marks_free(struct session *s);

/* --- serve.c */
void serve_must(int rc, const char *what, const struct pool *pool);	/* a device that fails has lost us: ends the process if rc */
void serve_write_ids(struct session *s, const struct queue *q);	/* of its pages and blocks, into the private table */
void serve_run(struct daemon *d, unsigned pool);		/* start what is queued, unless the device is busy */
void serve_done(struct daemon *d, unsigned pool);		/* the device has finished a batch */
void serve_publish(struct session *s);				/* hand the session over, now or when the outbox is empty */

/* --- queue.c */
int queue_open(struct daemon *d, unsigned pool);		/* the pool's own. 0 or -errno */
void queue_close(struct daemon *d, unsigned pool);		/* waits for the device */
void queue_free(struct daemon *d, unsigned pool);		/* its queues, when all sessions have ended */
bool queue_may_ahead(const struct session *s);			/* can its turns go ahead, as it is now? */
bool queue_ahead(struct session *s);				/* shall the turn that is about to be planned? Then there is a queue for it */
void queue_turn(struct session *s);				/* its turn is planned */
struct session *queue_take(struct queue *q);			/* what is due, in the order in which it came; ahead no more than may be staged at a time */
void queue_leave(struct queue *q);				/* its client has nothing in it any more */
void queue_let_through(struct client *c);			/* it is gone: what waits for its device shall wait no longer */
bool queue_may_unregister(const struct client *c);		/* its words, from the device: that waits for all that the device waits for */
size_t session_ids_bytes(const struct session *s);		/* of pages and blocks, in its tables */

/* --- tide.c */
#define TIDE_AHEAD 4	/* windows: what a session may get until the threshold is found anew and memory has changed hands */
/* Reads the key `priority`. 0, or -EINVAL with a sentence. */
int tide_priorities(const char *text, struct priority *out, unsigned most, unsigned *n, char *why, size_t why_bytes);
float tide_weight(const struct client *c);			/* of its user */
bool tide_on(const struct session *s);				/* for its pool */
float tide_misses(const struct session *s);			/* log2 of what a slot more would save, at the size that it has */
void tide_measure(struct session *s, struct gpu_turn *turn);	/* what this turn shall take, if it is time */
void tide_learn(struct session *s);				/* it has been taken */
void tide_turn(struct session *s);				/* before its turn is planned: s->tide.slots */
uint32_t tide_cap(const struct session *s);			/* slots a lane may hold: by the tide, and s->cap; 0: as many as it likes */
void tide_free(struct session *s);

/* --- pressure.c */
void pressure_starved(struct session *s);			/* s wanted pages and the pool had none */
int pressure_wait(struct client *c, uint32_t seq, const struct wire_open *open);	/* -ENOSPC: hopeless, and not patient */
void pressure_retry(struct daemon *d);				/* something was freed: try the waiting */
void pressure_forget(struct client *c);
void pressure_tick(struct daemon *d, uint64_t now);
bool pressure_short(const struct pool *pool);			/* few slabs are left, or somebody waits */

/* --- mps.c: does an MPS server wait for this process's CUDA? For what ebbd says of itself (log, report) alone. */
bool mps_on(void);

/* --- report.c */
char *report_json(struct daemon *d, const char *question);	/* malloc'ed, or NULL: no such question */

/* --- record.c */
/* What the session's `record` asks for, into its table: 0, or an error with a sentence. Before its sizes are computed. */
int record_spec(struct session *s, char *why, size_t why_bytes);
int record_open(struct session *s, char *why, size_t why_bytes);	/* 0 also when nothing is to be recorded */
void record_window(struct session *s);				/* at a turn, before its select */
void record_close(struct session *s);				/* before its memory goes */
void record_stop(void);						/* all is written and closed, and the writer has ended */

/* --- loop.c */
void loop_block_signals(void);	/* before any other thread exists (CUDA starts some): they inherit the mask */
int loop_new(struct daemon *d, int listen_fd);
void loop_free(struct daemon *d);
int loop_run(struct daemon *d);					/* until SIGTERM has drained; 0 or -errno */
void loop_watch_client(struct client *c);			/* start receiving from it */
void loop_unwatch_client(struct client *c);			/* its descriptors are about to be closed */
void loop_want_room(struct client *c);				/* client_flush() when its socket has room */

static inline unsigned pool_index(const struct daemon *d, const struct pool *pool)
{
	return (unsigned)(pool - d->pool);
}

#endif
