/*
 * Threads of a host device. One job at a time; items are handed out through one counter. A caller that finds the pool
 * busy (another thread of the process uses the device) does its items alone, so nobody waits for a stranger's job.
 * Workers sleep on a condition variable between jobs: cores are short where several clients run.
 */
#include "gpu/host/host.h"

#include <errno.h>
#include <stdlib.h>

struct host_job {
	host_work work;
	void *arg;
	unsigned n_items;
	unsigned next;			/* next item to hand out; atomic */
};

struct host_worker {
	struct host_pool *pool;
	pthread_t thread;
	unsigned index;			/* 1 .. n_workers-1 */
};

struct host_pool {
	pthread_mutex_t busy;		/* held by the caller whose job runs */
	pthread_mutex_t lock;		/* guards what follows */
	pthread_cond_t wake, done;
	struct host_job *job;
	uint64_t round;			/* counts jobs, so that a worker joins each at most once */
	unsigned limit;			/* workers with a smaller index may join the job */
	unsigned active;		/* workers inside the job */
	int stop;
	unsigned n_workers;		/* started, the caller included */
	struct host_worker worker[HOST_MAX_THREADS];
};

static void do_items(struct host_job *job, unsigned worker)
{
	unsigned item;

	while ((item = __atomic_fetch_add(&job->next, 1u, __ATOMIC_RELAXED)) < job->n_items)
		job->work(job->arg, item, worker);
}

static void *worker_main(void *arg)
{
	struct host_worker *w = arg;
	struct host_pool *p = w->pool;
	uint64_t seen = 0;

	pthread_mutex_lock(&p->lock);
	while (!p->stop) {
		struct host_job *job = p->job;

		if (!job || p->round == seen || w->index >= p->limit) {
			pthread_cond_wait(&p->wake, &p->lock);
			continue;
		}
		seen = p->round;
		p->active++;
		pthread_mutex_unlock(&p->lock);
		do_items(job, w->index);
		pthread_mutex_lock(&p->lock);
		if (!--p->active)
			pthread_cond_signal(&p->done);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

void host_run(struct host_device *dev, unsigned n_items, unsigned max_workers, host_work work, void *arg)
{
	struct host_job job = { .work = work, .arg = arg, .n_items = n_items };
	struct host_pool *p = dev->pool;

	if (!p || max_workers < 2 || n_items < 2 || pthread_mutex_trylock(&p->busy)) {
		for (unsigned i = 0; i < n_items; i++)
			work(arg, i, 0);
		return;
	}
	pthread_mutex_lock(&p->lock);
	p->job = &job;
	p->round++;
	p->limit = max_workers;
	pthread_cond_broadcast(&p->wake);
	pthread_mutex_unlock(&p->lock);
	do_items(&job, 0);
	pthread_mutex_lock(&p->lock);
	p->job = NULL;		/* a worker that has not woken yet finds nothing; nobody holds a pointer to the job but active ones */
	while (p->active)
		pthread_cond_wait(&p->done, &p->lock);
	pthread_mutex_unlock(&p->lock);
	pthread_mutex_unlock(&p->busy);
}

int host_pool_new(struct host_pool **out, unsigned n_threads)
{
	struct host_pool *p;
	int rc = 0;

	if (n_threads > HOST_MAX_THREADS)
		return -EINVAL;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	pthread_mutex_init(&p->busy, NULL);
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->wake, NULL);
	pthread_cond_init(&p->done, NULL);
	p->n_workers = 1;
	while (p->n_workers < n_threads && !rc) {
		struct host_worker *w = &p->worker[p->n_workers];

		*w = (struct host_worker){ .pool = p, .index = p->n_workers };
		rc = -pthread_create(&w->thread, NULL, worker_main, w);
		if (!rc)
			p->n_workers++;
	}
	if (rc) {
		host_pool_free(p);
		return rc;
	}
	*out = p;
	return 0;
}

void host_pool_free(struct host_pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = 1;
	pthread_cond_broadcast(&p->wake);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 1; i < p->n_workers; i++)
		pthread_join(p->worker[i].thread, NULL);
	pthread_cond_destroy(&p->done);
	pthread_cond_destroy(&p->wake);
	pthread_mutex_destroy(&p->lock);
	pthread_mutex_destroy(&p->busy);
	free(p);
}
