/* What eviction costs: an evicted run measured against the full cache, token by token (--against-full). */
#ifndef LLAMA_AGAINST_H
#define LLAMA_AGAINST_H

#include <stdint.h>

struct run;
struct against;

/*
 * against_open - after run_open(), before the first step. With --belady the sessions' heat is replaced, step by step, by the
 * attention that a slot will still receive from later tokens in the full run, which is what the slots are then kept by.
 * @out: free with against_close(). 0 or a negative errno, reported on stderr.
 */
int against_open(struct run *run, uint32_t chunk, struct against **out);
void against_close(struct against *against);	/* NULL is fine */

/* against_step - after each run_step(run, RUN_ALL). */
int against_step(struct against *against);

/*
 * against_print - the members "kl", "top1", "mass_kept", "kl_all", "nll_full" and "nll_full_tail" (the full cache's "nll" and
 * "nll_tail") of the JSON line, each with a comma in front; null where nothing was predicted. @from: per sequence, the position from
 * which kl, top1, mass_kept (this from the first whole step on) and nll_full_tail count.
 */
void against_print(const struct against *against, const uint32_t *from);

/*
 * against_write_kept - which positions the first sequence's lanes held in the last step, as one JSON object:
 * {"tokens":N,"layers":N,"kv_heads":N,"kept":[[position, ...] per lane, in slot order]}. 0 or a negative errno, reported on stderr.
 */
int against_write_kept(const struct against *against, const char *path);

#endif
