/*
 * Devices, their memory and the operations on it: one interface, two backends (host memory; CUDA).
 * Plain C, no CUDA types; compiles as C++ too.
 *
 * Errors everywhere: 0 or a negative errno. From CUDA: out of memory -ENOMEM, no such device -ENODEV, not built in
 * -ENOTSUP, and anything sticky -ENOTRECOVERABLE: the process's context is lost and the process must end.
 *
 * A stream orders work on a device. On the host backend every call has finished when it returns and streams are NULL.
 * On CUDA a stream is a cudaStream_t; calls that take one only enqueue, and copy their (host) arguments before they return.
 * Threading: a device may be used by several threads; one map, step or stream by one thread at a time.
 */
#ifndef GPU_GPU_H
#define GPU_GPU_H

#include "evict/rule.h"
#include "evict/stats.h"
#include "gpu/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

struct gpu_device;
struct gpu_map;
struct gpu_step;
typedef void *gpu_stream;

#define GPU_HANDLE_BYTES 64
#define GPU_NAME_BYTES 64

struct gpu_info {
	int is_cuda;
	int ordinal;			/* CUDA's; -1 on the host */
	char name[GPU_NAME_BYTES];	/* "host", or the product's name */
	char uuid[48];			/* "host", or "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx" */
	uint64_t total_bytes;
};

/*
 * gpu_open - open a device by name: "host", "cuda:N" or "cuda:UUID" (with or without the "GPU-" in front).
 * @out: returned; free with gpu_close().
 * Errors: -EINVAL not such a name, -ENODEV, -ENOTSUP built without CUDA, -ENOMEM, -ENOTRECOVERABLE.
 */
int gpu_open(struct gpu_device **out, const char *name);
void gpu_close(struct gpu_device *dev);
const struct gpu_info *gpu_info(const struct gpu_device *dev);	/* borrowed for the device's life */
int gpu_count(void);		/* CUDA devices that can be used now; 0 without CUDA */

/* Threads that one operation on the host may use (default 1, the caller itself). No effect on CUDA. -EINVAL for 0. */
int gpu_set_threads(struct gpu_device *dev, unsigned n_threads);

/* "plain", "avx2" or "avx512": what the host operations run with. EBB_ISA in the environment forces a lower one. */
const char *gpu_host_isa(void);

/* --- memory ------------------------------------------------------------------------------------------------------ */

struct gpu_slab {
	void *base;			/* device address in this process */
	size_t bytes;
	int fd;				/* host: the memfd; CUDA: -1 */
	uint8_t handle[GPU_HANDLE_BYTES];	/* CUDA: cudaIpcMemHandle_t; host: zeros */
};

/*
 * gpu_slab_new - allocate memory that other processes can map (shared != 0), or cannot (0).
 * Contents are zero. @slab: filled; undo with gpu_slab_free(). Shared host slabs are memfds sealed against resizing.
 */
int gpu_slab_new(struct gpu_device *dev, size_t bytes, int shared, struct gpu_slab *slab);
void gpu_slab_free(struct gpu_device *dev, struct gpu_slab *slab);
/*
 * gpu_slab_import - map a slab of another process. @fd is borrowed (host only, its size is checked: -EPROTO).
 * @base: returned; undo with gpu_slab_unmap().
 */
int gpu_slab_import(struct gpu_device *dev, const uint8_t handle[GPU_HANDLE_BYTES], int fd, size_t bytes, void **base);
void gpu_slab_unmap(struct gpu_device *dev, void *base, size_t bytes);

/*
 * gpu_stream_new - a stream of the caller's. CUDA: in order with the default stream, so a caller that passes NULL elsewhere is safe.
 * gpu_stream_apart - one that is not: what it waits for (gpu_await()) holds up nobody else.
 */
int gpu_stream_new(struct gpu_device *dev, gpu_stream *out);
int gpu_stream_apart(struct gpu_device *dev, gpu_stream *out);
void gpu_stream_free(struct gpu_device *dev, gpu_stream stream);
int gpu_sync(struct gpu_device *dev, gpu_stream stream);	/* never on a step's path */
int gpu_copy(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes);	/* device to device */
int gpu_write(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes);	/* from host; src copied */
int gpu_read(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes);	/* to host; synchronises */
int gpu_scrub(struct gpu_device *dev, gpu_stream s, void *dst, size_t bytes);			/* zeros */

/* gpu_notify - add 1 to the eventfd once all earlier work of the stream has finished. Host: returns 1, nothing written. */
int gpu_notify(struct gpu_device *dev, gpu_stream s, int eventfd);

/*
 * gpu_register - let the device write words of this host memory (page-aligned). gpu_signal - once all earlier work of the
 * stream has finished, store value[i] into *word[i] (release, visible to other processes). Host: stored at once.
 */
int gpu_register(struct gpu_device *dev, void *ptr, size_t bytes);
void gpu_unregister(struct gpu_device *dev, void *ptr);
int gpu_signal(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[]);

/*
 * gpu_await - later work of the stream waits until *word[i] >= value[i] for all i (by signed difference: INT64_MAX lets everything
 * through), whoever stores them: this host, another process's device. The words are registered, or gpu_host_alloc()ed; no processor is
 * needed on the way. While it waits a call that waits for the whole device, in this process, waits with it. Host: the call itself waits.
 * Errors: -ENOTSUP a driver without stream memory operations.
 * gpu_order - later work of `then` waits for the earlier work of `first`, two streams of this process on one device.
 */
int gpu_await(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[]);
int gpu_order(struct gpu_device *dev, gpu_stream first, gpu_stream then);

/* --- operations -------------------------------------------------------------------------------------------------- */

/* Slab addresses of one pool as this process sees them. A slab that is not mapped has base NULL. */
int gpu_map_new(struct gpu_device *dev, unsigned max_slabs, unsigned slab_shift, struct gpu_map **out);
void gpu_map_free(struct gpu_device *dev, struct gpu_map *map);
int gpu_map_set(struct gpu_map *map, gpu_stream s, unsigned slab, void *base);
void *const *gpu_map_bases(const struct gpu_map *map);	/* host copy of the addresses, max_slabs long */

/* What the sessions of one step share. */
struct gpu_shape {
	uint32_t n_kv_heads;
	uint32_t group;		/* query heads per KV head, 1 .. 16 */
	uint32_t head_dim;	/* 64 .. 256, a multiple of 16 */
	uint32_t slot_type;	/* enum gpu_type */
};

/* gpu_type_name - what settings and reports call slots of this type: "bf16"; NULL: there is no such type. */
const char *gpu_type_name(uint32_t slot_type);

/* gpu_can_store - 1 if the device's operations know slots of this type, else 0 (they say -ENOTSUP): k8v4 and q4 are the host's alone. */
int gpu_can_store(const struct gpu_device *dev, uint32_t slot_type);

/* One session in one step. */
struct gpu_seq {
	const void *table;	/* the session's shared table, this process's address; NULL (CUDA): nobody, the rows are left alone */
	uint32_t row;		/* its first row in k, v, q and out */
	uint32_t n;		/* tokens of this step; 0 is allowed */
	uint32_t used;		/* tokens of the window appended before this step */
	int32_t pos;		/* position of the step's first token */
	int32_t heat_from;	/* queries at lower positions add no heat, whatever the table says */
	uint32_t newest;	/* no live slot has a later position than the step's last token. Attend may then do without positions */
	uint32_t kept;		/* gpu_kept_at(): where attend may keep the step's only query for gpu_heat_kept(); 0: heat is added at once */
};

/* Rows of a caller's tensor: row r, head h, channel c at data[r * stride + h * head_dim + c] (elements). */
struct gpu_tensor {
	void *data;		/* device memory of this process */
	uint32_t type;		/* GPU_F32, GPU_F16 or GPU_BF16 */
	int64_t stride;
};

/*
 * A step: the list of sessions, on the device. max_rows bounds the rows (tokens) of a step.
 * gpu_step_set - announce the step that the following operations work on.
 * @live_max: an upper bound of any lane's live slots in this step (sizes launches and scratch).
 * Errors: -EINVAL, -ENOMEM, -ENOTSUP a slot type that the device does not know (gpu_can_store()).
 * gpu_step_key - a number for what the step's operations launch: with the same arguments they make the same launches in all steps of this key, so
 * a captured graph of them may stand for the calls. Host: 0.
 */
int gpu_step_new(struct gpu_device *dev, unsigned max_seqs, unsigned max_rows, struct gpu_step **out);
void gpu_step_free(struct gpu_device *dev, struct gpu_step *step);
int gpu_step_set(struct gpu_step *step, gpu_stream s, const struct gpu_shape *shape, const struct gpu_map *map,
		 const struct gpu_seq *seq, unsigned n_seqs, uint32_t live_max);
uint64_t gpu_step_key(const struct gpu_step *step);

/*
 * gpu_append - write K and V of the step's tokens of one layer into their slots: position set, heat zeroed.
 * @k, @v: [rows][n_kv_heads][head_dim], keys after RoPE. Values are rounded to nearest even; q8 as in layout.h.
 */
int gpu_append(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *k, const struct gpu_tensor *v);

/*
 * gpu_attend - softmax(scale * q K^T) V over every live slot whose position is not later than the query's.
 * Adds heat (tables' n_heat, heat[], observe). Call gpu_append for the layer first: queries see their own tokens.
 * @q, @out: [rows][n_kv_heads * group][head_dim]. @lse: [rows][n_kv_heads * group] natural-log sum of exp, or NULL.
 * out does not depend, bit for bit, on whether heat is taken, on threads, on page ids, or on the other sessions
 * of the step. Heat is float32, added in a fixed order: for a slot, queries in order, and heads in order within a query. A
 * GPU that takes it from many queries has four sums a slot, of fixed queries each, and adds those.
 */
int gpu_attend(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *q, const struct gpu_tensor *out,
	       float scale, float *lse);

/*
 * gpu_observe - heat only, for engines that ran another attention kernel: adds exp(scale * q.k - lse) of the step's last
 * `last` queries of each session (0: of all) to the slots they may see. @lse: as attend returns it. Ignores `observe`, but not heat_from.
 */
int gpu_observe(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *q, const float *lse,
		float scale, uint32_t last);

/*
 * Heat later. Heat costs a step more than its bytes, for they are the only ones that it writes (docs/performance.md). Instead a step
 * may keep its queries, and the heat of many steps is taken from them together, which reads K once more. A slot then has their sum, in a fixed order:
 * of fixed queries, then over those; not the bits of steps that add at once.
 *
 * gpu_keep - `rooms` in the step, each for `depth` queries (1 .. 256) of a session in n_layers layers, memory of the device. What was kept is
 * forgotten. A step of one token whose gpu_seq says where then keeps its query in attend, where that can be done: heat is one array of sums,
 * the queries have the slots' type (q8: either type of 16 bits) and one scale; else it adds its heat at once. Enqueued on `s`, before a
 * gpu_step_set(); waits for the device. depth 0: no rooms any more. Errors: -ENOTSUP a device, or a shape, that never keeps any; -ENOMEM;
 * after both there are none.
 *
 * gpu_heat_kept - add the heat of what sessions have kept, of all layers, and forget it. Slots that a token has taken since a query take none from it.
 */
struct gpu_kept {
	const void *table;	/* NULL: only forget */
	uint32_t room, n;	/* the queries are those of places 0 .. n-1 of the room */
	uint32_t used;		/* tokens of the window appended so far */
	int32_t pos;		/* of the first query */
	uint32_t every;		/* how far the others are apart: 1, or the table's observe */
};

#define GPU_KEPT_PAIRS 128u	/* (query, head of the group) pairs of a room at most, else -ENOTSUP */

static inline uint32_t gpu_kept_at(uint32_t room, uint32_t place) { return (room << 8 | place) + 1u; }

/* 1 if the heat of a session with this table can be taken later: it has one array, of sums, and some query is observed. */
int gpu_may_keep(const struct gpu_table *table);
int gpu_keep(struct gpu_step *step, gpu_stream s, const struct gpu_shape *shape, uint32_t n_layers, uint32_t rooms, uint32_t depth);
int gpu_heat_kept(struct gpu_step *step, gpu_stream s, const struct gpu_kept *kept, unsigned n);

/* --- the daemon's operations --------------------------------------------------------------------------------------- */

enum {
	GPU_SETTLE = 1,	/* give the window's `appended` tokens their positions, credit 0 */
	GPU_DROP = 2,	/* slots that the marks drop leave; the others close up, and the lane's header says how many (fresh: 0) */
	GPU_FOLD = 4,	/* fold heat into credit, zero the heat */
	GPU_REMOVE = 8,	/* mark the live - keep least valuable slots (private position = -1) */
	GPU_COMPACT = 16,/* move the survivors of slots >= keep into the holes below keep, both ascending */
	GPU_NEXT = 32,	/* name the `victims` least valuable slots, least first, and write the lane's header */
	GPU_TRAITS = 64,/* after SETTLE: compute the traits that are a row's own (evict_trait_once()) of every live slot anew */
};

struct gpu_plan {		/* one lane */
	uint32_t keep;		/* slots that stay: <= live; the lane's new len */
	uint32_t fresh;		/* of the next window's tokens, how many get new slots (their pages are in the table) */
	uint32_t victims;	/* how many slots to name, <= keep and <= window */
	uint32_t recent;	/* newest positions protected: >= now - recent */
};

struct gpu_turn {		/* one session at its window's end */
	void *priv;		/* private table (layout.h); device memory of the daemon */
	const struct gpu_plan *plan;	/* [n_lanes], host memory, copied */
	uint32_t n_lanes;
	uint32_t appended;	/* tokens of the window that ended */
	int32_t pos;		/* position of the first of them; now = pos + appended */
	struct evict_rule rule;
	uint32_t n_credit;	/* arrays of a credit block: at least evict_n_arrays() of the policy */
	uint32_t slot_type, head_dim;
	uint32_t live_max;	/* an upper bound of the lanes' live slots now, `appended` included (sizes scratch on CUDA); 0: all tokens may be live */
	/*
	 * Statistics of the lanes: what to take (EVICT_STATS_*), 0 for none, and where to put it: [n_lanes], gpu_host_alloc()ed. `live` and what
	 * evict/stats.h says comes with it are written, the rest stays as it was. Taken by a call that folds: heat as it was before
	 * the fold, cleaned; ranks and protection (plan[].recent) behind it, over all slots that are live then.
	 */
	uint32_t stats;
	uint32_t stats_heat[EVICT_MAX_HEAT];	/* which of the table's heat arrays is the first and the second; >= n_heat: zeros */
	uint32_t stats_near;	/* heat_near: positions >= now - stats_near, and the sinks */
	struct evict_lane_stats *lane_stats;
	/*
	 * What the client said of its tokens (evict/mark.h), by position: [n_marks], readable by the device; NULL: nothing. Positions from
	 * n_marks on have no mark. With DROP, which comes without REMOVE, COMPACT and NEXT (they need a plan that knows what is left):
	 * live[n_lanes], gpu_host_alloc()ed, gets the lanes' live slots behind it; lane / n_kv_heads is the layer.
	 */
	const uint32_t *marks;
	uint32_t n_marks, n_kv_heads;
	uint32_t *live;
};

struct gpu_turn_stats {		/* per session, host memory that the device can write: gpu_host_alloc() */
	double credit_kept;	/* sum of credit[0] over what stays unnamed */
	double credit_leaving;	/* over the removed and the named; the dropped are in neither */
};

/* Memory of the host that the device can read and write, zeroed. Freed pieces are kept for the next call of their size, so nothing waits for the device. */
int gpu_host_alloc(struct gpu_device *dev, size_t bytes, void **out);
void gpu_host_free(struct gpu_device *dev, void *ptr);

/*
 * gpu_select - run the operations of `what` (in the order of the enum) over every lane of the sessions.
 * Value of a slot = evict_key() of its rank: protected ones only when nothing else is left, ties to the lower position.
 * After COMPACT K, V, position, credit and heat of a survivor lie in its new slot. After NEXT the private table is what is to be
 * published: copy [0, gpu_table_bytes) of it to the shared one. Heat is never trusted: NaN, Inf and negative count as 0.
 * Heat arrays that a table lacks (observe = 0) count as 0; those that the policy does not read (they are there for statistics) are
 * zeroed by the fold, too. Kernels follow only private tables.
 * Both backends choose the same slots and leave the same bytes, but for heat: that is added up by attend in an order of its own.
 * @stats: [n], may be NULL; valid once the stream has got there.
 * Errors: -EINVAL a plan or rule that does not fit the table (on CUDA, where the table is the device's, such lanes are cut to it), -ENOMEM,
 * -ENOTSUP slots of a type that the device does not know (gpu_can_store()).
 */
int gpu_select(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const struct gpu_turn *turn, unsigned n,
	       unsigned what, struct gpu_turn_stats *stats);

/* gpu_move - copy `bytes` from page id src[i] to page id dst[i]; the sets do not overlap. */
int gpu_move(struct gpu_device *dev, gpu_stream s, const struct gpu_map *map, const uint32_t *src, const uint32_t *dst,
	     unsigned n, uint32_t bytes);

#ifdef __cplusplus
}
#endif
#endif
