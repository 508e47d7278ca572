/* Retrieval: is a number that was said somewhere in a long text still known at its end (--passkey)? */
#ifndef LLAMA_PASSKEY_H
#define LLAMA_PASSKEY_H

struct run;

/*
 * passkey_run - trials = fillers x --depths x --keys. A prompt of --limit tokens is filler with one five-digit key at a depth (a
 * share of the filler); it is read in steps of --chunk as if it were decoded, so that eviction runs without knowing the question,
 * which comes last; then a few tokens are drawn greedily. Each trial runs with the daemon's session and with a full cache in this
 * process.
 * Fillers: a repeated sentence, and what -f and -p give. Prints a table, or with --json one object: trials, found, found_full, tokens,
 * by_depth and by_filler (lists of the same). Progress goes to stderr. 0 or a negative errno, reported on stderr.
 */
int passkey_run(struct run *run);

#endif
