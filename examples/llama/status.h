/* Progress for people (a line on stderr) and for a viewer (a JSON line in a file, rewritten about four times a second). */
#ifndef LLAMA_STATUS_H
#define LLAMA_STATUS_H

struct run;
struct status;

/*
 * status_new - @out: NULL when nobody wants to know; free with status_free(). 0 or a negative errno, reported on stderr.
 * The file holds one line, padded with spaces to a fixed length and written with one pwrite, so a reader never sees half of it:
 * {"tokens":N,"tokens_per_s":X,"live_slots":N,"full_slots":N,"evicted":N,"phase":"prefill"|"decode"|"nll"|"done"}
 */
int status_new(const struct run *run, struct status **out);
void status_free(struct status *status);	/* clears the line on stderr; NULL is fine */

/* status_tick - after a step. Cheap unless it is time to write. */
void status_tick(struct status *status, const struct run *run);

/* status_done - the last line of the file. */
void status_done(struct status *status, const struct run *run);

#endif
