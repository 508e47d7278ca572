/*
 * ebb-replay: any policy on a recording (evict/record.h), without the model. It is the daemon's own code that decides: budgets from
 * evict/plan.c, victims from gpu_select() of the host, on tables in this process's memory, so a new policy is in it without a line here.
 *
 *   main.c       the command line, and what is printed
 *   recording.c  the file
 *   try.c        one policy at one budget
 *
 * A replay is not a run: what a token attends to in the recording does not change when others have been evicted. It says which tokens
 * a rule would keep and how much of the full cache's attention falls on them; what that costs the model, make quality says.
 * Errors: negative errno, with a sentence.
 */
#ifndef REPLAY_REPLAY_H
#define REPLAY_REPLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "evict/evict.h"
#include "evict/record.h"

struct recording {
	const char *map;			/* the file */
	size_t map_bytes;
	const struct evict_record_head *head;
	uint32_t n_lanes, tokens, n_windows;
	const char **window;			/* [n_windows]: struct evict_record_window, not aligned */
	bool cut_short;				/* it has no end */
};

/* recording_open - map and check a file. Undo with recording_close(), also on failure. -EINVAL: it is none, or not one of ours. */
int recording_open(struct recording *r, const char *path, char *why, size_t why_bytes);
void recording_close(struct recording *r);
struct evict_record_window recording_window(const struct recording *r, uint32_t index);
/* Heat array k of a lane in a window: one float per position up to the window's end, not aligned. */
const char *recording_heat(const struct recording *r, uint32_t index, uint32_t k, uint32_t lane);
/* K (which = 0) or V (1) rows of the window's tokens in a lane, then the parameters of q8 rows, K's (2) and V's (3). */
const char *recording_rows(const struct recording *r, uint32_t index, uint32_t which, uint32_t lane);
/* Which heat array holds this kind; -1: none. */
int recording_kind(const struct recording *r, uint32_t kind);

/* What to try. */
struct attempt {
	const char *policy;			/* as in ebbd.ini, or "belady": by the attention still to come */
	const char *split;			/* likewise */
	uint32_t budget;			/* slots a lane may hold */
	struct evict_amount recent;
	uint32_t seed;
};

struct outcome {
	double mass_kept;			/* of the attention from the first budget's worth on; NAN: there is none */
	uint32_t windows;			/* decided */
	double seconds;
	/* Which positions each lane held in the last window: [n_lanes][budget + window], n_kept[n_lanes]. Only if asked for. */
	int32_t *kept;
	uint32_t *n_kept, kept_room;
};

/*
 * try - replay one attempt. @want_kept: fill outcome->kept (returned; free kept and n_kept).
 * -ENOTSUP with a sentence: the recording lacks what the policy or split needs. -EINVAL: there is no such policy, ...
 */
int try_policy(const struct recording *r, const struct attempt *attempt, bool want_kept, struct outcome *out, char *why, size_t why_bytes);

#endif
