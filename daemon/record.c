/*
 * Recordings (evict/record.h): the heat of a session that evicts nothing, window by window, in a file.
 *
 * Off unless the operator names a folder ([daemon] record); then a session records if it asks for it ([session] record). A client chooses
 * what is recorded of its own session, never where. The loop only copies: a thread of its own does all writing, so a slow disk costs
 * memory at first (QUEUE_BYTES at most, over all recordings), and then the recording, never a step. A recording that fails is
 * closed as it is, with a line in the log; the session goes on.
 */
#include "daemon/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "evict/record.h"

#define QUEUE_BYTES (256u << 20)

struct chunk {
	struct chunk *next;
	struct record *record;
	size_t bytes;
	bool last;			/* close the file and forget the record after it */
	_Alignas(8) char data[];	/* begins with a struct */
};

/* `failed` is an atomic, written by the writer, read by the loop. bytes and over are the loop's, `written` the writer's; the rest stays. */
struct record {
	int fd;
	int failed;			/* a write did; set by the writer */
	bool over;			/* the loop has given up on it */
	uint64_t session, limit_bytes;
	uint64_t bytes, written;
	char path[CONF_TEXT + 80];
};

static struct writer {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct chunk *first, **end;
	size_t queued;			/* bytes */
	bool started, stop;
} writer = { .lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .end = &writer.first };

/* Nothing more goes into this recording. Either side. */
static void say_stopped(const struct record *r, uint64_t bytes, const char *why)
{
	log_line(LOG_WARN, "record_stopped session=%llu file=\"%s\" bytes=%llu why=\"%s\"", (unsigned long long)r->session, r->path,
		 (unsigned long long)bytes, why);
}

/* --- the writer's side ------------------------------------------------------------------------------------------------------- */

static int write_all(int fd, const char *at, size_t bytes)
{
	while (bytes) {
		ssize_t n = write(fd, at, bytes);

		if (n < 0 && errno != EINTR)
			return errno;
		if (n > 0) {
			at += n;
			bytes -= (size_t)n;
		}
	}
	return 0;
}

static void *write_chunks(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&writer.lock);
	for (;;) {
		struct chunk *c = writer.first;
		struct record *r;
		int error = 0;

		if (!c && writer.stop)
			break;
		if (!c) {
			pthread_cond_wait(&writer.more, &writer.lock);
			continue;
		}
		writer.first = c->next;
		if (!writer.first)
			writer.end = &writer.first;
		pthread_mutex_unlock(&writer.lock);
		r = c->record;
		if (!__atomic_load_n(&r->failed, __ATOMIC_RELAXED)) {
			error = write_all(r->fd, c->data, c->bytes);
			if (c->last && close(r->fd) && !error)
				error = errno;
			if (error) {
				say_stopped(r, r->written, strerror(error));
				__atomic_store_n(&r->failed, 1, __ATOMIC_RELAXED);	/* seen by over(), sooner or later */
			}
			r->written += c->bytes;
		} else if (c->last) {
			close(r->fd);
		}
		if (c->last)
			free(r);
		pthread_mutex_lock(&writer.lock);
		writer.queued -= c->bytes;
		free(c);
	}
	pthread_mutex_unlock(&writer.lock);
	return NULL;
}

/* --- the loop's side --------------------------------------------------------------------------------------------------------- */

static struct chunk *chunk_new(struct record *r, size_t bytes, bool last)
{
	struct chunk *c = malloc(sizeof(*c) + bytes);

	if (c)
		*c = (struct chunk){ .record = r, .bytes = bytes, .last = last };
	return c;
}

static void queue(struct chunk *c)
{
	c->record->bytes += c->bytes;
	pthread_mutex_lock(&writer.lock);
	writer.queued += c->bytes;
	*writer.end = c;
	writer.end = &c->next;
	pthread_cond_signal(&writer.more);
	pthread_mutex_unlock(&writer.lock);
}

static int start_writer(void)
{
	int rc = writer.started ? 0 : pthread_create(&writer.thread, NULL, write_chunks, NULL);

	writer.started = writer.started || !rc;
	return -rc;
}

void record_stop(void)
{
	if (!writer.started)
		return;
	pthread_mutex_lock(&writer.lock);
	writer.stop = true;
	pthread_cond_signal(&writer.more);
	pthread_mutex_unlock(&writer.lock);
	pthread_join(writer.thread, NULL);
	writer.started = false;
}

static void give_up(struct record *r, const char *why)
{
	r->over = true;
	say_stopped(r, r->bytes, why);
}

static bool over(const struct record *r)
{
	return r->over || __atomic_load_n(&r->failed, __ATOMIC_RELAXED);
}

/* Room for `bytes` more? */
static bool may_queue(struct record *r, size_t bytes)
{
	size_t queued;

	if (r->bytes + bytes > r->limit_bytes) {
		give_up(r, "it has reached record_limit");
		return false;
	}
	pthread_mutex_lock(&writer.lock);
	queued = writer.queued;
	pthread_mutex_unlock(&writer.lock);
	if (queued + bytes > QUEUE_BYTES)
		give_up(r, "the disk is too slow");
	return !r->over;
}

/* --- what is asked for --------------------------------------------------------------------------------------------------------- */

int record_spec(struct session *s, char *why, size_t why_bytes)
{
	const char *at = s->asked.record;
	struct gpu_table *t = &s->table;

	if (!*at)
		return 0;
	if (!*s->client->d->conf.daemon.record) {
		snprintf(why, why_bytes, "record: this daemon records nothing; its operator allows it with [daemon] record = FOLDER");
		return -EACCES;
	}
	if (!evict_policies[s->spec.rule.policy].never_evicts || !s->asked.observe) {
		if (strcmp(at, s->client->d->conf.session.record) == 0) {	/* the operator's default, which means those that can be */
			s->asked.record[0] = '\0';
			return 0;
		}
		snprintf(why, why_bytes, "record: only a session that loses nothing can be recorded: policy=full and observe=1 or more "
			 "(found policy=%s observe=%u)", s->asked.policy, s->asked.observe);
		return -EINVAL;
	}
	t->n_heat = 0;
	for (size_t n; *at; at += n + (at[n] == ',')) {
		uint32_t kind = 0;

		n = strcspn(at, ",");
		if (n == 2 && strncmp(at, "kv", 2) == 0) {
			s->record_kv = true;
			continue;
		}
		while (kind < EVICT_N_HEAT && (strlen(evict_heat_names[kind]) != n || strncmp(at, evict_heat_names[kind], n) != 0))
			kind++;
		if (kind == EVICT_N_HEAT || t->n_heat == GPU_MAX_HEAT || (t->n_heat && t->heat[0] == kind)) {
			snprintf(why, why_bytes, "record: found \"%.40s\"; allowed: one or two of sum, max, squares, last, and kv, with "
				 "commas", s->asked.record);
			return -EINVAL;
		}
		t->heat[t->n_heat++] = kind;
	}
	return 0;
}

static void write_head(const struct session *s, struct evict_record_head *h)
{
	*h = (struct evict_record_head){
		.magic = EVICT_RECORD_MAGIC, .order = EVICT_RECORD_ORDER, .version = EVICT_RECORD_VERSION, .head_bytes = sizeof(*h),
		.n_layers = s->n_layers, .n_kv_heads = s->n_kv_heads, .group = s->group, .head_dim = s->head_dim,
		.slot_type = s->slot_type, .window = s->table.window, .sinks = s->asked.sinks, .observe = s->asked.observe,
		.floor = session_floor(&s->asked, s->spec.window),	/* what another policy would get; full's own is the whole text */
		.max_tokens = s->max_tokens, .prompt_tokens = s->spec.prompt_tokens, .seed = s->asked.seed,
		.budget_count = s->asked.budget.count, .budget_ppm = s->asked.budget.ppm,
		.recent_count = s->asked.recent.count, .recent_ppm = s->asked.recent.ppm,
		.n_heat = s->table.n_heat, .heat = { s->table.heat[0], s->table.heat[1] }, .kv = s->record_kv,
		.session = s->id, .started_s = (uint64_t)time(NULL),
	};
	snprintf(h->policy, sizeof(h->policy), "%s", s->asked.policy);
	snprintf(h->client, sizeof(h->client), "%s", s->client->name);
}

int record_open(struct session *s, char *why, size_t why_bytes)
{
	const struct conf_daemon *conf = &s->client->d->conf.daemon;
	struct record *r;
	struct chunk *c;
	int rc;

	if (!*s->asked.record)
		return 0;
	r = calloc(1, sizeof(*r));
	c = r ? chunk_new(r, sizeof(struct evict_record_head), false) : NULL;
	rc = c ? start_writer() : -ENOMEM;
	if (!rc) {
		r->session = s->id;
		r->limit_bytes = conf->record_limit_bytes;
		snprintf(r->path, sizeof(r->path), "%s/session-%llu-%llu.ebbrec", conf->record, (unsigned long long)time(NULL),
			 (unsigned long long)s->id);
		r->fd = open(r->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);
		rc = r->fd < 0 ? -errno : 0;
	}
	if (rc) {
		snprintf(why, why_bytes, "record: the daemon cannot write a recording in %s: %s", conf->record, strerror(-rc));
		free(c);
		free(r);
		return rc == -ENOSPC ? -EIO : rc;	/* -ENOSPC means that a pool has no room */
	}
	write_head(s, (struct evict_record_head *)(void *)c->data);
	queue(c);
	s->record = r;
	log_line(LOG_INFO, "record_open session=%llu file=\"%s\"", (unsigned long long)s->id, r->path);
	return 0;
}

/* --- windows ---------------------------------------------------------------------------------------------------------------------- */

static void must(int rc, const struct pool *pool)
{
	if (!rc)
		return;
	log_line(LOG_ERROR, "device_lost pool=%s operation=record error=\"%s\"", pool->name, strerror(-rc));
	_Exit(1);	/* as in serve.c */
}

/* Heat array k of a lane: slot j of a session that lost nothing holds position j. */
static char *copy_heat(struct session *s, uint32_t lane, uint32_t k, uint32_t live, char *to)
{
	struct pool *pool = s->pool;

	for (uint32_t first = 0; first < live; first += GPU_BLOCK_SLOTS) {
		char *block = pool_at(pool, s->block[(size_t)lane * s->table.max_blocks + first / GPU_BLOCK_SLOTS]);
		uint32_t n = live - first < GPU_BLOCK_SLOTS ? live - first : GPU_BLOCK_SLOTS;
		char *heat = block + (1 + k) * GPU_BLOCK_SLOTS * 4u;

		must(gpu_read(pool->dev, pool->stream, to, heat, n * 4u), pool);
		must(gpu_scrub(pool->dev, pool->stream, heat, n * 4u), pool);	/* full folds nothing, so nobody else would */
		to += n * 4u;
	}
	return to;
}

/* K and V of the window's tokens in a lane, row by row where they lie. */
static char *copy_rows(struct session *s, uint32_t lane, uint32_t from, uint32_t n, char *to)
{
	const struct gpu_parts part = gpu_page_parts(s->slot_type, s->head_dim);
	struct pool *pool = s->pool;

	for (uint32_t k = 0; k < 4; k++)
		for (uint32_t j = 0; part.bytes[k] && j < n; j++, to += part.bytes[k]) {
			uint32_t slot = from + j;
			const char *page = pool_at(pool, s->page[(size_t)lane * s->table.max_pages + slot / GPU_PAGE_SLOTS]);

			page += part.at[k] + slot % GPU_PAGE_SLOTS * part.bytes[k];
			must(gpu_read(pool->dev, pool->stream, to, page, part.bytes[k]), pool);
		}
	return to;
}

void record_window(struct session *s)
{
	const uint32_t live = s->pos + s->appended, lanes = s->table.n_lanes;
	const uint32_t bytes = gpu_slot_bytes(s->slot_type, s->head_dim);
	struct evict_record_window w = { .magic = EVICT_RECORD_WINDOW, .base = s->pos, .appended = s->appended };
	struct record *r = s->record;
	struct chunk *c;
	char *to;

	if (!r || !s->appended || over(r))
		return;
	w.bytes = (uint64_t)lanes * live * 4u * s->table.n_heat + (s->record_kv ? (uint64_t)lanes * s->appended * bytes : 0u);
	if (!may_queue(r, sizeof(w) + w.bytes))
		return;
	c = chunk_new(r, sizeof(w) + w.bytes, false);
	if (!c) {
		give_up(r, "out of memory");
		return;
	}
	memcpy(c->data, &w, sizeof(w));
	to = c->data + sizeof(w);
	for (uint32_t k = 0; k < s->table.n_heat; k++)
		for (uint32_t lane = 0; lane < lanes; lane++)
			to = copy_heat(s, lane, k, live, to);
	for (uint32_t lane = 0; s->record_kv && lane < lanes; lane++)
		to = copy_rows(s, lane, s->pos, s->appended, to);
	queue(c);
}

void record_close(struct session *s)
{
	struct evict_record_window end = { .magic = EVICT_RECORD_END };
	const struct wire_session *w = &s->client->shared->session[s->index];
	struct record *r = s->record;
	struct chunk *c;
	uint64_t begun;

	if (!r)
		return;
	/* A client that ends in the middle of a window: what it has finished counts. */
	begun = wire_begun(wire_load64(&w->hand));
	if (begun > s->tokens && begun <= s->granted && wire_load64(&w->finished) == begun) {
		s->pos = s->tokens;
		s->appended = (uint32_t)begun - s->tokens;
		record_window(s);
		s->tokens = (uint32_t)begun;
	}
	end.base = s->tokens;
	c = chunk_new(r, over(r) ? 0 : sizeof(end), true);
	if (c) {
		memcpy(c->data, &end, c->bytes);
		queue(c);
	}	/* else the file stays open until the daemon ends: there is no memory for anything */
	s->record = NULL;
}
