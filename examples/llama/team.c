#include "examples/llama/team.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#define MAX_MEMBERS 256u
#define SPINS 100	/* pauses of 20 to 60 cycles: 1 to 3 microseconds */

struct member {
	struct team *team;
	pthread_t thread;
	unsigned index;
};

struct team {
	pthread_mutex_t lock;
	pthread_cond_t go, done;
	unsigned n, n_started;
	unsigned round;		/* atomic: counts the runs; written under the lock */
	unsigned busy;		/* atomic: members that have not finished this run */
	int stop;
	team_work work;
	void *arg;
	struct member member[];
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#endif
}

/* Waits until the round changes from `seen`; returns the new one. */
static unsigned wait_round(struct team *t, unsigned seen)
{
	unsigned now;

	for (int i = 0; i < SPINS; i++) {
		now = __atomic_load_n(&t->round, __ATOMIC_ACQUIRE);	/* partner: team_run() */
		if (now != seen)
			return now;
		relax();
	}
	pthread_mutex_lock(&t->lock);
	while ((now = __atomic_load_n(&t->round, __ATOMIC_ACQUIRE)) == seen)
		pthread_cond_wait(&t->go, &t->lock);
	pthread_mutex_unlock(&t->lock);
	return now;
}

static void *member_main(void *arg)
{
	struct member *m = arg;
	struct team *t = m->team;
	unsigned seen = 0;

	for (;;) {
		seen = wait_round(t, seen);
		if (t->stop)
			return NULL;
		t->work(t->arg, m->index, t->n);
		if (__atomic_sub_fetch(&t->busy, 1, __ATOMIC_ACQ_REL) == 0) {	/* partner: team_run() */
			pthread_mutex_lock(&t->lock);
			pthread_cond_signal(&t->done);
			pthread_mutex_unlock(&t->lock);
		}
	}
}

/* Everybody may start on what `work`, `arg` and `stop` say now. */
static void start_round(struct team *t, unsigned busy)
{
	pthread_mutex_lock(&t->lock);
	__atomic_store_n(&t->busy, busy, __ATOMIC_RELAXED);
	__atomic_store_n(&t->round, t->round + 1, __ATOMIC_RELEASE);	/* partner: wait_round() */
	pthread_cond_broadcast(&t->go);
	pthread_mutex_unlock(&t->lock);
}

int team_new(unsigned n, struct team **out)
{
	struct team *t;

	if (n == 0 || n > MAX_MEMBERS)
		return -EINVAL;
	t = calloc(1, sizeof(*t) + n * sizeof(t->member[0]));
	if (!t)
		return -ENOMEM;
	t->n = n;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->go, NULL);
	pthread_cond_init(&t->done, NULL);
	for (unsigned i = 1; i < n; i++) {
		struct member *m = &t->member[i];
		int err;

		m->team = t;
		m->index = i;
		err = pthread_create(&m->thread, NULL, member_main, m);
		if (err) {
			team_free(t);
			return -err;
		}
		t->n_started = i;
	}
	*out = t;
	return 0;
}

void team_free(struct team *team)
{
	if (!team)
		return;
	team->stop = 1;		/* published by start_round() */
	start_round(team, 0);
	for (unsigned i = 1; i <= team->n_started; i++)
		pthread_join(team->member[i].thread, NULL);
	pthread_cond_destroy(&team->done);
	pthread_cond_destroy(&team->go);
	pthread_mutex_destroy(&team->lock);
	free(team);
}

unsigned team_size(const struct team *team)
{
	return team->n;
}

void team_run(struct team *team, team_work work, void *arg)
{
	if (team->n == 1) {
		work(arg, 0, 1);
		return;
	}
	team->work = work;
	team->arg = arg;
	start_round(team, team->n - 1);
	work(arg, 0, team->n);
	for (int i = 0; i < SPINS; i++) {
		if (__atomic_load_n(&team->busy, __ATOMIC_ACQUIRE) == 0)	/* partner: member_main() */
			return;
		relax();
	}
	pthread_mutex_lock(&team->lock);
	while (__atomic_load_n(&team->busy, __ATOMIC_ACQUIRE) != 0)
		pthread_cond_wait(&team->done, &team->lock);
	pthread_mutex_unlock(&team->lock);
}

void team_share(unsigned index, unsigned n, unsigned count, unsigned unit, unsigned *from, unsigned *to)
{
	unsigned units = (count + unit - 1) / unit;
	unsigned a = (unsigned)((unsigned long long)units * index / n) * unit;
	unsigned b = (unsigned)((unsigned long long)units * (index + 1) / n) * unit;

	*from = a < count ? a : count;
	*to = b < count ? b : count;
}
