/*
 * A few threads that do one thing together and then sleep. They spin for at most a few microseconds: cores are short where
 * several clients run.
 */
#ifndef LLAMA_TEAM_H
#define LLAMA_TEAM_H

struct team;

/* What a member does: part `index` of `n`. */
typedef void (*team_work)(void *arg, unsigned index, unsigned n);

/* team_new - start n - 1 threads (the caller is the n-th). @out: returned; free with team_free(). -EINVAL, -ENOMEM, -EAGAIN. */
int team_new(unsigned n, struct team **out);
void team_free(struct team *team);	/* NULL is fine */

unsigned team_size(const struct team *team);

/* team_run - every member runs work(arg, its index, n); returns when all have. Thread: the one that made the team. */
void team_run(struct team *team, team_work work, void *arg);

/* team_share - member index's part [*from, *to) of `count` things, in whole units of `unit`. */
void team_share(unsigned index, unsigned n, unsigned count, unsigned unit, unsigned *from, unsigned *to);

#endif
