/*
 * A daemon of the tests' own: one thread on a temporary socket that speaks wire.h with one client at a time, in host memory.
 * It keeps a full cache (nothing is evicted) and grants `window` tokens at a time; knobs make it slow, silent, generous or wrong.
 * Header-only, so that tests and benchmarks can use it under the Makefile's rule of one file a program.
 */
#ifndef TEST_FAKE_H
#define TEST_FAKE_H

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "libclient/ebb.h"
#include "libclient/wire.h"

#define FAKE_SHIFT 22u		/* slabs of 4 MiB */
#define FAKE_SLABS 4u
#define FAKE_DIM 64u

struct fake;

struct fake_session {
	bool open;
	uint32_t max_tokens, granted, n_lanes;
	struct gpu_table *table;
};

struct fake {
	/* knobs, set before fake_start() or while the thread has nothing to do */
	uint32_t window;		/* tokens of a grant */
	bool no_grants;			/* the test grants by itself; __atomic */
	unsigned answer_delay_ms;	/* before a grant */
	uint32_t want_most;		/* answer a WANT with at most so many; 0: with a window */
	unsigned stride;		/* bytes of a session in the slab; 0: FAKE_STRIDE */
	bool deaf;			/* take nothing from the ring, __atomic */
	bool busy;			/* never sleep: look at the ring all the time */
	int open_status;		/* fail OPEN with this */
	int idle_ms;			/* hang up on a client that is silent for so long; 0: never */
	int lie;			/* messages call themselves so much longer than they are */
	/* called before a message is sent: may change it, its size (msg->head.bytes) and its descriptors; false: do not send */
	bool (*mangle)(struct fake *f, struct wire_msg *msg, int *fd, unsigned *n_fds);
	unsigned mangle_case;
	uint32_t mangle_seed;

	char dir[32], path[64];
	int listener, conn, stop_fd, doorbell, bell, shared_fd, life_fd, slab_fd[FAKE_SLABS];
	struct wire_shared *shared;
	uint32_t *life;
	char *slab[FAKE_SLABS];
	bool sent[FAKE_SLABS];
	uint32_t sq_head, cq_tail;
	struct fake_session session[WIRE_MAX_SESSIONS];
	pthread_t thread;
	volatile bool stop;		/* read and written with __atomic */
	bool running;
	/* what has been seen, read with fake_count() */
	unsigned n_hello, n_open, n_close, n_dropped, n_step, n_used_up, n_want, n_doorbell, n_grant;
	uint64_t tokens;
};

#define FAKE_STRIDE (1u << 20)

static inline unsigned fake_count(const unsigned *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void fake_bump(unsigned *p) { __atomic_fetch_add(p, 1, __ATOMIC_RELEASE); }

/* A message of zeros. Assignments instead of designated initialisers here: every header compiles as C++ too. */
static inline struct wire_msg fake_zero(void)
{
	struct wire_msg m;

	memset(&m, 0, sizeof(m));
	return m;
}

static inline unsigned fake_open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	closedir(d);
	return n;
}

static inline void fake_nap_ms(unsigned ms)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };

	nanosleep(&t, NULL);
}

static inline int fake_memfd(size_t bytes, void **map)
{
	int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	*map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert(*map != MAP_FAILED);
	assert(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) == 0);
	return fd;
}

/* `bytes` is of the body. Descriptors are borrowed. */
static inline void fake_send(struct fake *f, struct wire_msg *msg, uint16_t type, uint32_t seq, size_t bytes, const int *fds, unsigned n)
{
	union { char bytes[CMSG_SPACE(16 * sizeof(int))]; struct cmsghdr align; } control;
	struct iovec iov;
	struct msghdr h;
	int fd[16];

	memset(&h, 0, sizeof(h));
	h.msg_iov = &iov;
	h.msg_iovlen = 1;
	iov.iov_base = msg;
	if (n)
		memcpy(fd, fds, n * sizeof(int));
	msg->head.bytes = (uint32_t)(sizeof(msg->head) + bytes);
	msg->head.type = type;
	msg->head.seq = seq;
	iov.iov_len = msg->head.bytes;
	if (f->mangle && !f->mangle(f, msg, fd, &n))
		return;
	if (iov.iov_len == sizeof(msg->head) + bytes)	/* a mangler that changes bytes changes what is sent, too */
		iov.iov_len = msg->head.bytes <= sizeof(*msg) ? msg->head.bytes : sizeof(*msg);
	msg->head.bytes += (uint32_t)f->lie;
	if (n) {
		struct cmsghdr *c = &control.align;

		memset(&control, 0, sizeof(control));
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fd, n * sizeof(int));
		h.msg_control = &control;
		h.msg_controllen = CMSG_SPACE(n * sizeof(int));
	}
	(void)!sendmsg(f->conn, &h, MSG_NOSIGNAL);
}

static inline void fake_fail(struct fake *f, uint32_t seq, int status, const char *text)
{
	struct wire_msg m = fake_zero();

	m.head.status = status;
	snprintf(m.u.text, sizeof(m.u.text), "%s", text);
	fake_send(f, &m, WIRE_FAILED, seq, sizeof(m.u.text), NULL, 0);
}

static inline void fake_wake(struct fake *f)
{
	const uint64_t one = 1;

	wire_fence();
	if (wire_load32(&f->shared->cq_flags.value) & WIRE_NEED_WAKEUP)
		(void)!write(f->bell, &one, sizeof(one));
}

/* A window of n tokens from what has begun, in the order that wire.h asks for. */
static inline void fake_grant(struct fake *f, uint32_t i, uint32_t n)
{
	struct wire_session *w = &f->shared->session[i];
	struct fake_session *s = &f->session[i];
	uint64_t hand = wire_load64(&w->hand);
	uint32_t begun = wire_begun(hand);
	struct gpu_lane *lane = (struct gpu_lane *)((char *)s->table + gpu_table_lanes());
	struct wire_record r;

	if (n > s->max_tokens - begun)
		n = s->max_tokens - begun;
	for (uint32_t l = 0; l < s->n_lanes; l++)
		lane[l] = (struct gpu_lane){ begun, n };
	s->granted = begun + n;
	wire_store64(&w->base, begun);
	wire_store64(&w->live, (uint64_t)begun * s->n_lanes);
	wire_store32(&w->budget, s->max_tokens);
	wire_store32(&w->live_max, begun + n);
	wire_store64(&w->granted, s->granted);
	while (!wire_swap64(&w->hand, &hand, wire_hand(wire_begun(hand), wire_epoch(hand) + 1, 0)))
		;
	memset(&r, 0, sizeof(r));
	r.op = WIRE_GRANT;
	r.session = i;
	r.n_tokens = s->granted;
	f->shared->cq[f->cq_tail++ & (WIRE_CQ_ENTRIES - 1)] = r;
	wire_store32(&f->shared->cq_tail.value, f->cq_tail);
	fake_bump(&f->n_grant);
	fake_wake(f);
}

static inline void fake_claim(struct fake *f, uint32_t i)
{
	uint64_t *hand = &f->shared->session[i].hand, now = wire_load64(hand);

	while (!wire_claim(now) && !wire_swap64(hand, &now, now | 1))
		;
	wire_fence();
}

/* Is the session ours? */
static inline bool fake_owns(struct fake *f, uint32_t i)
{
	const struct wire_session *w = &f->shared->session[i];
	uint64_t hand = wire_load64(&w->hand);

	return f->session[i].open && (wire_claim(hand) || wire_begun(hand) == f->session[i].granted) &&
		wire_load64(&w->finished) == wire_begun(hand);
}

static inline void fake_look(struct fake *f, uint32_t i)
{
	uint64_t want;

	if (__atomic_load_n(&f->no_grants, __ATOMIC_ACQUIRE) || !fake_owns(f, i) ||
	    wire_begun(wire_load64(&f->shared->session[i].hand)) >= f->session[i].max_tokens)
		return;
	if (f->answer_delay_ms)
		fake_nap_ms(f->answer_delay_ms);
	want = wire_load64(&f->shared->session[i].want);
	want = want < f->want_most ? want : f->want_most;
	fake_grant(f, i, want > f->window ? (uint32_t)want : f->window);
}

static inline void fake_hello(struct fake *f, struct wire_msg *m)
{
	struct wire_msg w = fake_zero(), p = fake_zero();
	int fds[WIRE_N_FDS] = { f->shared_fd, f->doorbell, f->bell, f->life_fd };

	w.u.welcome.version = WIRE_VERSION;
	w.u.welcome.n_pools = 1;
	w.u.welcome.shared_bytes = WIRE_SHARED_BYTES;
	p.u.pool.slab_shift = FAKE_SHIFT;
	p.u.pool.max_slabs = FAKE_SLABS;
	p.u.pool.size_bytes = FAKE_SLABS << FAKE_SHIFT;
	strcpy(p.u.pool.name, "fake");
	strcpy(p.u.pool.uuid, "host");
	fake_bump(&f->n_hello);
	if (m->u.hello.magic != WIRE_MAGIC || m->u.hello.version != WIRE_VERSION) {
		fake_fail(f, m->head.seq, -EPROTO, "wrong version");
		return;
	}
	fake_send(f, &w, WIRE_WELCOME, m->head.seq, sizeof(w.u.welcome), fds, WIRE_N_FDS);
	fake_send(f, &p, WIRE_POOL, m->head.seq, sizeof(p.u.pool), NULL, 0);
}

static inline struct wire_msg fake_slab_msg(unsigned slab)
{
	struct wire_msg m = fake_zero();

	m.u.slab.slab = slab;
	m.u.slab.generation = 7;
	m.u.slab.bytes = 1u << FAKE_SHIFT;
	return m;
}

static inline void fake_send_slab(struct fake *f, unsigned slab)
{
	struct wire_msg m = fake_slab_msg(slab);

	if (f->sent[slab])
		return;
	f->sent[slab] = true;
	fake_send(f, &m, WIRE_SLAB, 0, sizeof(m.u.slab), &f->slab_fd[slab], 1);
	wire_store32(&f->shared->notices.value, f->shared->notices.value + 1);
}

static inline void fake_drop_slab(struct fake *f, unsigned slab)
{
	struct wire_msg m = fake_slab_msg(slab);

	f->sent[slab] = false;
	fake_send(f, &m, WIRE_DROP, 0, sizeof(m.u.slab), NULL, 0);
	wire_store32(&f->shared->notices.value, f->shared->notices.value + 1);
}

/* Sessions lie at their stride in the slabs: the table, then every lane's pages and blocks. */
static inline void fake_open(struct fake *f, const struct wire_msg *m)
{
	const struct wire_open *o = &m->u.open;
	struct wire_msg r = fake_zero();
	uint32_t i = 0, n_lanes = o->n_layers * o->n_kv_heads, page = gpu_page_bytes(GPU_F32, o->head_dim) / GPU_UNIT;
	unsigned stride = f->stride ? f->stride : FAKE_STRIDE, per_slab = (1u << FAKE_SHIFT) / stride, slab;
	struct gpu_table *t;
	uint32_t at, *pages, *blocks;

	fake_bump(&f->n_open);
	if (f->open_status) {
		fake_fail(f, m->head.seq, f->open_status, "the test says no");
		return;
	}
	while (f->session[i].open)
		i++;
	slab = i / per_slab;
	assert(slab < FAKE_SLABS);
	fake_send_slab(f, slab);
	at = (slab << (FAKE_SHIFT - 7)) + i % per_slab * (stride / GPU_UNIT);
	t = (struct gpu_table *)(f->slab[slab] + (size_t)(i % per_slab) * stride);
	memset(t, 0, stride);
	t->n_lanes = n_lanes;		/* the rest is zeros: no heat */
	t->window = f->window;
	t->max_pages = gpu_pages_for(o->max_tokens);
	t->max_blocks = gpu_blocks_for(o->max_tokens);
	if (f->stride)		/* a benchmark without attention: the table must fit, pages need not exist */
		t->max_pages = t->max_blocks = 0;
	r.u.opened.slot_type = GPU_F32;
	r.u.opened.session = i;
	r.u.opened.table_id = at;
	r.u.opened.max_slots = o->max_tokens;
	r.u.opened.table = *t;
	at += (uint32_t)((gpu_table_bytes(t) + GPU_UNIT - 1) / GPU_UNIT);
	pages = (uint32_t *)((char *)t + gpu_table_pages(t));
	blocks = (uint32_t *)((char *)t + gpu_table_blocks(t));
	for (uint32_t p = 0; p < n_lanes * t->max_pages; p++, at += page)
		pages[p] = at;
	for (uint32_t b = 0; b < n_lanes * t->max_blocks; b++, at += gpu_block_bytes(0) / GPU_UNIT)
		blocks[b] = at;
	assert(f->stride || (at - r.u.opened.table_id) * GPU_UNIT <= stride);
	f->session[i].open = true;
	f->session[i].max_tokens = o->max_tokens;
	f->session[i].n_lanes = n_lanes;
	f->session[i].table = t;
	memset(&f->shared->session[i], 0, sizeof(f->shared->session[i]));
	wire_store32(&f->shared->session[i].table_id, r.u.opened.table_id);
	wire_store64(&f->shared->session[i].hand, wire_hand(0, 0, 1));
	fake_grant(f, i, f->window);
	fake_send(f, &r, WIRE_OPENED, m->head.seq, sizeof(r.u.opened), NULL, 0);
}

static inline void fake_answer(struct fake *f, const struct wire_msg *m)
{
	static const char text[] = "{\"version\":\"fake\"}";
	struct wire_msg r = fake_zero();
	int fd;

	if (strcmp(m->u.text, "status") != 0) {
		fake_fail(f, m->head.seq, -EINVAL, "no such question");
		return;
	}
	r.u.answer.bytes = sizeof(text) - 1;
	fd = memfd_create("answer", MFD_CLOEXEC);
	(void)!write(fd, text, sizeof(text) - 1);
	fake_send(f, &r, WIRE_ANSWER, m->head.seq, sizeof(r.u.answer), &fd, 1);
	close(fd);
}

static inline void fake_message(struct fake *f)
{
	struct wire_msg m = fake_zero(), r = fake_zero();
	ssize_t n = recv(f->conn, &m, sizeof(m), MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		close(f->conn);
		f->conn = -1;
		return;
	}
	switch (m.head.type) {
	case WIRE_HELLO: fake_hello(f, &m); break;
	case WIRE_OPEN: fake_open(f, &m); break;
	case WIRE_ASK: fake_answer(f, &m); break;
	case WIRE_DROPPED: fake_bump(&f->n_dropped); break;
	case WIRE_CLOSE:
		fake_bump(&f->n_close);
		f->session[m.u.close.session % WIRE_MAX_SESSIONS].open = false;
		fake_send(f, &r, WIRE_CLOSED, m.head.seq, sizeof(r.u.close), NULL, 0);
		break;
	default: break;
	}
}

static inline bool fake_drain(struct fake *f)
{
	uint32_t tail = wire_load32(&f->shared->sq_tail.value);
	bool any = tail != f->sq_head;

	if (any && __atomic_load_n(&f->deaf, __ATOMIC_ACQUIRE)) {
		fake_nap_ms(1);
		return false;
	}
	while (f->sq_head != tail) {
		struct wire_record r = f->shared->sq[f->sq_head++ & (WIRE_SQ_ENTRIES - 1)];

		wire_store32(&f->shared->sq_head.value, f->sq_head);
		if (r.op == WIRE_STEP) {
			__atomic_fetch_add(&f->tokens, r.n_tokens, __ATOMIC_RELEASE);
			fake_bump(&f->n_step);
		}
		if (r.op == WIRE_STEP && r.flags & WIRE_USED_UP) {
			fake_bump(&f->n_used_up);
			for (uint32_t i = 0; i < WIRE_MAX_SESSIONS; i++)
				if (f->session[i].open)
					fake_look(f, i);
		}
		if (r.op == WIRE_WANT) {
			fake_bump(&f->n_want);
			if (!__atomic_load_n(&f->no_grants, __ATOMIC_ACQUIRE)) {
				fake_claim(f, r.session);
				fake_look(f, r.session);
			}
		}
	}
	return any;
}

static inline void fake_accept(struct fake *f)
{
	if (f->conn >= 0)
		return;
	f->conn = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
	memset(f->shared, 0, sizeof(*f->shared));
	memset(f->session, 0, sizeof(f->session));
	memset(f->sent, 0, sizeof(f->sent));
	f->sq_head = f->cq_tail = 0;
	for (uint32_t i = 0; i < WIRE_MAX_SESSIONS; i++)
		f->shared->session[i].hand = wire_hand(0, 0, 1);
}

static inline void *fake_main(void *arg)
{
	struct fake *f = (struct fake *)arg;
	uint64_t count;
	int ready;

	while (!__atomic_load_n(&f->stop, __ATOMIC_ACQUIRE)) {
		struct pollfd p[4] = { { f->stop_fd, POLLIN, 0 }, { f->doorbell, POLLIN, 0 }, { f->conn, POLLIN, 0 },
				       { f->conn < 0 ? f->listener : -1, POLLIN, 0 } };

		if (fake_drain(f))
			continue;
		if (!f->busy) {
			wire_store32(&f->shared->sq_flags.value, WIRE_NEED_WAKEUP);
			wire_fence();
			if (wire_load32(&f->shared->sq_tail.value) != f->sq_head) {
				wire_store32(&f->shared->sq_flags.value, 0);
				continue;
			}
		}
		ready = poll(p, 4, f->busy && f->conn >= 0 ? 0 : f->idle_ms && f->conn >= 0 ? f->idle_ms : -1);
		if (ready == 0 && f->idle_ms && !f->busy) {
			close(f->conn);
			f->conn = -1;
		}
		if (ready <= 0)
			continue;
		wire_store32(&f->shared->sq_flags.value, 0);
		if (p[1].revents && read(f->doorbell, &count, sizeof(count)) == sizeof(count))
			fake_bump(&f->n_doorbell);
		if (p[2].revents)
			fake_message(f);
		if (p[3].revents)
			fake_accept(f);
	}
	if (f->conn >= 0)
		close(f->conn);
	f->conn = -1;
	return NULL;
}

static inline void fake_listen(struct fake *f)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	snprintf(f->dir, sizeof(f->dir), "/tmp/ebb-test-XXXXXX");
	assert(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/sock", f->dir);
	memcpy(a.sun_path, f->path, strlen(f->path));
	f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert(bind(f->listener, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(f->listener, 8) == 0);
}

static inline void fake_start(struct fake *f)
{
	fake_listen(f);
	f->window = f->window ? f->window : 8;
	f->conn = -1;
	f->stop = false;
	f->stop_fd = eventfd(0, EFD_CLOEXEC);
	f->doorbell = eventfd(0, EFD_CLOEXEC);
	f->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	f->shared_fd = fake_memfd(WIRE_SHARED_BYTES, (void **)&f->shared);
	f->life_fd = fake_memfd(WIRE_LIFE_BYTES, (void **)&f->life);
	*f->life = (uint32_t)getpid();
	for (unsigned i = 0; i < FAKE_SLABS; i++)
		f->slab_fd[i] = fake_memfd(1u << FAKE_SHIFT, (void **)&f->slab[i]);
	assert(pthread_create(&f->thread, NULL, fake_main, f) == 0);
	f->running = true;
}

/* Ends the thread, as a daemon that dies would: the socket closes, memory stays. */
static inline void fake_halt(struct fake *f)
{
	const uint64_t one = 1;

	if (!f->running)
		return;
	__atomic_store_n(&f->stop, true, __ATOMIC_RELEASE);
	(void)!write(f->stop_fd, &one, sizeof(one));
	pthread_join(f->thread, NULL);
	f->running = false;
}

static inline void fake_stop(struct fake *f)
{
	fake_halt(f);
	close(f->listener);
	close(f->stop_fd);
	close(f->doorbell);
	close(f->bell);
	close(f->shared_fd);
	close(f->life_fd);
	munmap(f->shared, WIRE_SHARED_BYTES);
	munmap(f->life, WIRE_LIFE_BYTES);
	for (unsigned i = 0; i < FAKE_SLABS; i++) {
		close(f->slab_fd[i]);
		munmap(f->slab[i], 1u << FAKE_SHIFT);
	}
	unlink(f->path);
	rmdir(f->dir);
}

#endif
