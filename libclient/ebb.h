/*
 * libebb: keep the KV cache of a model in ebbd's memory, on the host or on a GPU, and let the daemon evict while you decode.
 *
 * The life of a client: ebb_connect(), ebb_session_open() per sequence, ebb_batch_new() and ebb_batch_join(); then per step
 *
 *     ebb_step_begin(batch, n, -1);            n[i]: tokens of session i in this step
 *     for each layer: ebb_append(batch, layer, k, v); ebb_attend(batch, layer, q, out, scale, NULL);
 *     ebb_step_end(batch);
 *
 * On a CUDA pool the same calls take device pointers and enqueue on the batch's stream; none of them waits for the device.
 * Keys are stored after RoPE at the token's own position (ebb_session_tokens() before the step), and never re-rotated.
 *
 * Return values: 0 or a negative errno. ebb_error() has a sentence on the last failure. Everywhere:
 *   -EPIPE   the daemon is gone or has dropped this client. Close the connection; sessions are lost.
 *   -EINVAL  an argument is impossible; nothing happened.
 * Threads: a connection and all that was made from it belong to one thread at a time; use one connection per thread.
 * Ownership words: borrowed (until return), kept (until close), copied, returned (free with the function named).
 */
#ifndef EBB_H
#define EBB_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EBB_VERSION "0.1.0"
#define EBB_SOCKET_DEFAULT "/run/ebbd/ebbd.sock"

struct ebb;		/* a connection */
struct ebb_session;	/* one sequence */
struct ebb_batch;	/* sessions that one forward pass advances together */

enum ebb_type { EBB_F32 = 0, EBB_F16 = 1, EBB_BF16 = 2 };

/* Row r, head h, channel c at data[r * stride + h * head_dim + c], in elements. Memory of the pool's device. */
struct ebb_tensor {
	void *data;
	enum ebb_type type;
	int64_t stride;		/* elements from one row to the next; 0: rows are dense */
};

/* All-zero means defaults. Strings are copied. */
struct ebb_options {
	const char *socket;	/* NULL: $EBB_SOCKET, else EBB_SOCKET_DEFAULT */
	const char *name;	/* shown by ebbctl; NULL: the program's name */
	const char *device;	/* ebb_local() only: "host" (default), "cuda:N" or "cuda:UUID" */
	unsigned threads;	/* threads that one operation on a host pool may use; 0: 1 */
	int no_uring;		/* 1: wait with poll() even where io_uring is allowed; so does EBB_NO_URING=1 */
	char *why;		/* on failure: a sentence, NUL-terminated (there is no connection yet to ask) */
	size_t why_bytes;
};

/*
 * ebb_connect - connect to the daemon.
 * @out: returned; free with ebb_close().
 * Errors: -ENOENT no socket there, -ECONNREFUSED nobody listens, -EACCES, -EPROTO other version, -EMFILE too many clients.
 */
int ebb_connect(struct ebb **out, const struct ebb_options *options);

/*
 * ebb_local - the same API without a daemon: full caches in this process's own memory, nothing is ever evicted.
 * The baseline to compare with, and a way to run where no daemon is. Same kernels, so same results bit for bit.
 */
int ebb_local(struct ebb **out, const struct ebb_options *options);

/* Closes sessions and batches too. NULL is fine. */
void ebb_close(struct ebb *ebb);

/* The last failure on this connection, as a sentence; borrowed until the next call. Never NULL. */
const char *ebb_error(const struct ebb *ebb);

/* A descriptor that polls readable (POLLIN or POLLHUP) when the daemon hangs up; -1 for ebb_local(). Borrowed; do not read it. */
int ebb_fd(const struct ebb *ebb);

struct ebb_pool_info {
	const char *name;	/* borrowed until ebb_close() */
	const char *uuid;	/* "host" or "GPU-..." */
	int is_cuda;
	int ordinal;		/* CUDA device in this process; -1 on the host or when this process cannot see the device */
	uint64_t size_bytes;
};

/* ebb_pool - describe pool `index`. -ENOENT past the last. */
int ebb_pool(const struct ebb *ebb, unsigned index, struct ebb_pool_info *out);

/* --- sessions --------------------------------------------------------------------------------------------------------------- */

struct ebb_session_options {
	const char *pool;		/* NULL: the daemon's first pool */
	uint32_t n_layers, n_kv_heads;	/* lanes = n_layers * n_kv_heads */
	uint32_t group;			/* query heads per KV head, 1 .. 16, any number */
	uint32_t head_dim;		/* 64 .. 256 in steps of 16 */
	uint32_t max_tokens;		/* no more than this many tokens will ever be appended */
	uint32_t prompt_tokens;		/* announced length of the prompt, 0 if not known (then nothing is a prompt) */
	/*
	 * "key=value" pairs separated by spaces, keys and values as in the [session] section of ebbd.ini: policy, budget, window,
	 * sinks, slots, recent, observe, prefill, ... e.g. "policy=h2o budget=25% slots=q8". What is not named is the daemon's
	 * default. NULL: all defaults. ebb_local() looks at slots, and at observe if it is given: with observe=1 it adds up the
	 * attention that each slot received, for ebb_lane_read(); without it, nothing.
	 */
	const char *settings;
	int wait_ms;			/* when the pool has no room: 0 refuse at once, > 0 wait so long, < 0 wait for ever */
	/*
	 * What each lane of the model is worth, for a split that needs it ("split=measured", "split=head"): the contents of a table as
	 * ebbd.ini(5) describes it under `lanes`, at most 1 MiB, NUL-terminated. NULL: the operator's table for this model, if there
	 * is one. ebb_local() ignores it.
	 */
	const char *lanes;
	/*
	 * What the model is called, 1 to 63 printable characters without blanks: by this and its shape the operator's table for it
	 * ([model NAME] in ebbd.ini) is found, and a table that says it is of another model is refused. NULL: nothing is said.
	 */
	const char *model;
};

/*
 * ebb_session_open - open a sequence. Everything in @options is copied.
 * Errors: -ENOSPC the pool cannot hold even this session's floor now; -ETIMEDOUT it still could not after wait_ms;
 *         -ENOENT no such pool; -EINVAL with a sentence that names the setting; -E2BIG max_tokens is too large for the pool;
 *         -EINVAL with line, value and what is allowed for a table of lanes of the wrong shape or content;
 *         -ENODEV the pool's GPU is not visible to this process; -EPIPE.
 */
int ebb_session_open(struct ebb *ebb, const struct ebb_session_options *options, struct ebb_session **out);

/* Leaves its batch if it is in one. Waits for the device's work on it. NULL is fine. 0 or -EPIPE; the session is gone either way. */
int ebb_session_close(struct ebb_session *session);

/*
 * ebb_session_set - other settings for an open session: "policy=tova split=ada budget=20%". Keys and values as for opening it; what is not
 * named stays. Not window, slots, lanes and record, by which its memory is laid out. At any time; it takes effect when the daemon next has the
 * session: at once between steps, else at the end of the step under way (its window ends with it). Steps go on as before.
 * Returns 1 in force, 0 it will be, or
 *   -EINVAL, -ENOTSUP  with a sentence that names the setting; nothing has changed
 *   -ENOSPC            the pool has no room for what the new policy keeps of a slot; nothing has changed. (If that turns out only
 *                      later the session goes on as it was, and says so: ebb_ask() "session ID", kept_because.)
 */
int ebb_session_set(struct ebb_session *session, const char *settings);

/*
 * ebb_set - the same for any session by its id (ebb_ask() "sessions"): what `ebbctl session ID set` uses. Also -ENOENT there is none,
 * -EACCES it is another user's: its own user, root and the daemon's user may change it.
 */
int ebb_set(struct ebb *ebb, uint64_t id, const char *settings);

struct ebb_stats {
	uint32_t tokens;	/* appended so far = position of the next token */
	uint32_t budget;	/* slots a lane may hold now */
	uint64_t live_slots;	/* over all lanes, as of the last window's end */
	uint64_t evicted;	/* slots overwritten or removed so far, over all lanes, as of the last window's end */
};

/* No system call. Threads: as the connection. */
void ebb_session_stats(const struct ebb_session *session, struct ebb_stats *out);
uint32_t ebb_session_tokens(const struct ebb_session *session);

/* --- what tokens are: tags, pins, drops ----------------------------------------------------------------------------------------------- */

/*
 * Positions count from 0 over the session's life; a token keeps its own whatever is evicted. A call needs a step boundary: no step of the
 * session's batch is open. It waits for the daemon, which ends the session's window and plans it anew, and when it returns all of it holds.
 * That costs as much as a window's end, so say what is to be said in one call of ebb_session_mark(), not token by token.
 *
 *	EBB_TAG		the tokens' modality: 0 is text, 1 .. EBB_MAX_TAG what the client likes (1 an image, 2 the next one, 3 audio, ...).
 *			Policies that know modalities use it (look-m, vl-cache, csp); to all others it means nothing. Tokens that have not come yet
 *			can be tagged, and should be: before they are appended.
 *	EBB_PIN		protected like a pinned prompt: of the unpinned tokens that are neither sinks nor recent all leave before the first
 *			of these does. More pins than the budget has room for do not enlarge it: the least valuable pinned leave then. What has
 *			been evicted or dropped does not come back. Also for tokens to come.
 *	EBB_UNPIN	takes that back.
 *	EBB_DROP	the tokens leave every lane of layers value .. n_layers-1, at once, pinned or not, whatever the policy; other layers
 *			keep them. Only tokens that have been appended. What a lane held is gone for good, later queries do not see it, and
 *			its pages go back to the pool, as far as they do not belong to the floor that the session is sure of (sinks, window, the
 *			key `floor`; under policy full every token to come, but not those that were dropped).
 *
 * For methods that choose tokens before or while the prompt goes in (FastV, VisionZip, PruMerge, SparseVLM): append the prompt, then drop
 * what the method gives up from the layer on at which it does.
 */
enum ebb_mark_what { EBB_TAG = 1, EBB_PIN = 2, EBB_UNPIN = 3, EBB_DROP = 4 };

#define EBB_MAX_TAG 255u

struct ebb_mark {
	enum ebb_mark_what what;
	uint32_t first, n;	/* positions first .. first + n - 1; below max_tokens, for EBB_DROP below ebb_session_tokens() */
	uint32_t value;		/* EBB_TAG: the tag; EBB_DROP: the first layer; else ignored */
};

/*
 * ebb_session_mark - say these things, in their order. @mark: [n], borrowed.
 * Errors: -EINVAL a position, tag or layer out of range (nothing of the call was done); -EBUSY a step is open; -ENOTSUP the
 * session is recorded; -ENOMEM; -EPIPE. ebb_local() evicts nothing, so tags and pins change
 * nothing there; a drop does what it says, but the memory stays the session's.
 */
int ebb_session_mark(struct ebb_session *session, const struct ebb_mark *mark, uint32_t n);

/* The same for one range. */
int ebb_session_tag(struct ebb_session *session, uint32_t first, uint32_t n, uint32_t tag);
int ebb_session_pin(struct ebb_session *session, uint32_t first, uint32_t n);
int ebb_session_unpin(struct ebb_session *session, uint32_t first, uint32_t n);
int ebb_session_drop(struct ebb_session *session, uint32_t first, uint32_t n, uint32_t from_layer);

/* --- steps ------------------------------------------------------------------------------------------------------------------- */

struct ebb_batch_options {
	const char *pool;	/* NULL: the first */
	void *stream;		/* cudaStream_t on a CUDA pool, kept: destroy it after the batch; ignored on the host */
	uint32_t max_sessions;	/* 0: 64 */
	uint32_t max_rows;	/* tokens of one step over all sessions; 0: 2048 */
	/*
	 * CUDA, for clients that keep the launches of a step in graphs: a step of one token a session is launched as if as many sessions
	 * decoded as the next multiple of this (max_sessions at most), so that its key (ebb_step_key()) stays while sessions join and
	 * leave. 0: it is launched as it is.
	 */
	uint32_t pad_sessions;
	/*
	 * CUDA: attention scores of steps of one token a session are taken once a window, or once in so many steps, from the queries that libebb keeps until
	 * then. They take up to a 32nd of the memory that the batch's sessions (the next power of two of them) would have if all were as long as the
	 * longest: outside the pool, in this process, and only if there is so much. Float32 slots, other head_dims than 64 and 128, and policies that want more
	 * than a sum of scores keep none. 1: no queries are kept, every step adds its scores itself and takes longer (docs/performance.md).
	 */
	uint32_t scores_at_once;
};

/* ebb_batch_new - @out: returned; free with ebb_batch_free() (ebb_close() does too). */
int ebb_batch_new(struct ebb *ebb, const struct ebb_batch_options *options, struct ebb_batch **out);
void ebb_batch_free(struct ebb_batch *batch);

/*
 * ebb_batch_join, ebb_batch_leave - between steps only (-EBUSY). A session is in one batch at most (-EALREADY), of its own pool and
 * with the others' n_layers, n_kv_heads, group, head_dim and slots (-EINVAL). Members keep the order in which they joined.
 * -ENOSPC: the batch is full. -ENOENT: not a member.
 */
int ebb_batch_join(struct ebb_batch *batch, struct ebb_session *session);
int ebb_batch_leave(struct ebb_batch *batch, struct ebb_session *session);
uint32_t ebb_batch_size(const struct ebb_batch *batch);

/*
 * ebb_step_begin - begin a step. Waits only for sessions whose window is used up or claimed by the daemon.
 * @n: [batch size], in: tokens that each session would like to append (0: sits this step out); out: how many it shall append,
 *     at least 1 where more than 0 was asked and never more than that. Fewer than asked come back when the daemon can
 *     give no more at a time (a window, with prefill=chunked or when the pool is short). A step of one token always fits.
 *     Rows of session i start at n[0] + ... + n[i-1] in every tensor of the step.
 * On CUDA a window is usually granted before the daemon's device has decided on it, soon after the step_end of the window before: then the
 * batch's stream waits for that device, not the caller. So a caller may enqueue steps ahead of the device, over the ends of windows.
 * @timeout_ms: < 0: no limit.
 * Errors: -ETIMEDOUT nothing has begun, call again; -ENOSPC a session has reached max_tokens; -E2BIG more rows than max_rows;
 *         -EBUSY a step is open already; -EPIPE.
 */
int ebb_step_begin(struct ebb_batch *batch, uint32_t *n, int timeout_ms);

/*
 * ebb_append - store the step's keys and values of one layer. @k, @v: [rows][n_kv_heads][head_dim], borrowed (on CUDA: until
 * the stream has passed). Each layer once per step.
 */
int ebb_append(struct ebb_batch *batch, uint32_t layer, const struct ebb_tensor *k, const struct ebb_tensor *v);

/*
 * ebb_attend - softmax(scale q K^T) V over each session's live slots, causal by position, and the heat that the session's policy
 * wants. After ebb_append() of the layer. @q, @out: [rows][n_kv_heads * group][head_dim]. @lse: NULL or
 * float [rows][n_kv_heads * group], natural logarithm of the sum of exponentials.
 */
int ebb_attend(struct ebb_batch *batch, uint32_t layer, const struct ebb_tensor *q, const struct ebb_tensor *out, float scale,
	       float *lse);

/*
 * ebb_observe - for engines that compute attention themselves over the prompt: heat from the last `last` queries of each
 * session in this step (0: all), from their log-sum-exp. @lse: float [rows][n_kv_heads * group].
 */
int ebb_observe(struct ebb_batch *batch, uint32_t layer, const struct ebb_tensor *q, const float *lse, float scale, uint32_t last);

/*
 * ebb_step_key - which launches the operations of the open step make, for CUDA graphs. Two steps of a batch with the same key make the same
 * launches from the same calls. So what ebb_append(), ebb_attend() and ebb_observe() put on the batch's stream while it was captured
 * (cudaStreamBeginCapture(), behind ebb_step_begin() and with nothing called before) may be launched as a graph in every later step with that
 * key, in place of the calls. ebb_step_begin() and ebb_step_end() are never captured: they tell the device what differs.
 * The key changes with the number of sessions (see pad_sessions), with a step of other than one token a session, and with the bound on
 * the lanes' lengths, in steps of an eighth; not when sessions grow within that, evict, change places or are others.
 * @rows: NULL, or out: rows that the step is launched with. With pad_sessions they may be more than its tokens, and q, k, v and out must have
 * memory for them; k, v and q are not read there, out is not written.
 * 0: no step is open, or the pool is on the host, where nothing is launched.
 */
uint64_t ebb_step_key(const struct ebb_batch *batch, uint32_t *rows);

/*
 * ebb_step_end - the step's work is enqueued (CUDA) or done (host): hand the step over. No system call unless a window is used
 * up and the daemon sleeps. Errors: -EINVAL no step is open, -EPIPE.
 */
int ebb_step_end(struct ebb_batch *batch);

/* --- looking into a lane: for tools and tests, between ebb_step_begin() and ebb_step_end() ----------------------------------------- */

/*
 * ebb_lane_read - which tokens a lane holds in the open step, in slot order, and what attention they have received.
 * After the step's ebb_append() calls these are what its queries see, the step's own tokens among them. Waits for the device.
 * @lane: layer * n_kv_heads + KV head. @pos: NULL or [max]: their positions. @heat: NULL or [max]: the first heat array of the
 * session's policy: since the window began (ebb_local(): since the session began, or the last ebb_lane_write()).
 * Returns how many slots are live (more than @max: only the first were written), or
 *   -EINVAL   no step of the session is open, or there is no such lane
 *   -ENOTSUP  @heat is wanted and the session collects none
 */
int ebb_lane_read(struct ebb_session *session, uint32_t lane, int32_t *pos, float *heat, uint32_t max);

/*
 * ebb_lane_write - replace the first heat array of the lane's first @n slots: for engines that know better than attention what a
 * token is worth. After the step's ebb_attend() calls. A session's heat is its client's own affair: the daemon takes NaN, Inf and
 * negative numbers for nothing, and nobody else's slots depend on it. 0 or an error as above.
 */
int ebb_lane_write(struct ebb_session *session, uint32_t lane, const float *heat, uint32_t n);

/* --- asking the daemon -------------------------------------------------------------------------------------------------------- */

/*
 * ebb_ask - what `ebbctl` uses: "status", "sessions", "clients", "pools", "policies", "config", "session ID", "lanes ID".
 * @json: returned, NUL-terminated; free with free(). Errors: -EINVAL unknown question, -EPIPE.
 */
int ebb_ask(struct ebb *ebb, const char *question, char **json);

#ifdef __cplusplus
}
#endif
#endif
