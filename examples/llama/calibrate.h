/* What each lane (one KV head of one layer) of a model is worth: a table of lanes (--calibrate). */
#ifndef LLAMA_CALIBRATE_H
#define LLAMA_CALIBRATE_H

struct run;

/*
 * calibrate_run - on every text: for each lane and each of --budgets, KL(full cache || full but for this lane, which holds so many slots
 * under the daemon's rule). Means over the texts go to --output, as ebbd.ini(5) describes tables of lanes.
 *
 * Which tokens a lane of so many slots keeps, and what attention then gives, is not simulated: for every budget there is a session of the
 * real daemon, in float32, that is fed the queries, keys and values of the full run and whose attention in each lane is what the lane would
 * give. probe.h says what the model makes of it, in SAMPLES windows of the second half of each text.
 *
 * What has been measured is appended to FILE.part, layer by layer; a run that is stopped goes on from there when it is started again with
 * the same texts and options, and gives the same file. 0 or a negative errno, reported on stderr.
 */
int calibrate_run(struct run *run);

#endif
