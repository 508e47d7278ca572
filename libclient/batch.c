/* Batches: who advances together, and the operations between the begin and the end of a step. */
#include "libclient/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_SESSIONS 64u
#define DEFAULT_ROWS 2048u

static int allocate(struct ebb_batch *b)
{
	b->member = calloc(b->max_sessions, sizeof(*b->member));
	b->active = calloc(b->max_sessions, sizeof(*b->active));
	b->take = calloc(b->max_sessions, sizeof(*b->take));
	b->seq = calloc(b->max_sessions, sizeof(*b->seq));
	b->word = calloc(b->max_sessions, sizeof(*b->word));
	b->value = calloc(b->max_sessions, sizeof(*b->value));
	b->room = calloc(b->max_sessions, sizeof(*b->room));
	b->due = calloc(b->max_sessions, sizeof(*b->due));
	if (!b->member || !b->active || !b->take || !b->seq || !b->word || !b->value || !b->room || !b->due)
		return -ENOMEM;
	return gpu_step_new(b->pool->dev, b->max_sessions, b->max_rows, &b->step);
}

static void release(struct ebb_batch *b)
{
	if (b->step)
		gpu_step_free(b->pool->dev, b->step);
	free(b->member);
	free(b->active);
	free(b->take);
	free(b->seq);
	free(b->word);
	free(b->value);
	free(b->room);
	free(b->due);
	free(b);
}

int ebb_batch_new(struct ebb *ebb, const struct ebb_batch_options *o, struct ebb_batch **out)
{
	static const struct ebb_batch_options none;
	struct ebbi_pool *pool;
	struct ebb_batch *b;
	int rc;

	if (!ebb || !out)
		return -EINVAL;
	if (!o)
		o = &none;
	if (o->max_sessions > WIRE_MAX_SESSIONS || o->max_rows > EBBI_MAX_TOKENS)
		return ebbi_error(ebb, -EINVAL, "a batch has at most %u sessions and %u rows", WIRE_MAX_SESSIONS, EBBI_MAX_TOKENS);
	rc = ebbi_alive(ebb);
	if (!rc)
		rc = ebbi_pool_find(ebb, o->pool, &pool);
	if (!rc)
		rc = ebbi_pool_device(pool);
	if (rc)
		return rc;
	b = calloc(1, sizeof(*b));
	if (!b)
		return ebbi_error(ebb, -ENOMEM, "out of memory");
	b->ebb = ebb;
	b->pool = pool;
	b->stream = pool->info.is_cuda ? o->stream : NULL;
	b->max_sessions = o->max_sessions ? o->max_sessions : DEFAULT_SESSIONS;
	b->max_rows = o->max_rows ? o->max_rows : DEFAULT_ROWS;
	b->pad = pool->info.is_cuda ? o->pad_sessions : 0;
	b->keeps_none = o->scores_at_once != 0;
	rc = allocate(b);
	if (rc) {
		release(b);
		return ebbi_error(ebb, rc, "a batch of %u rows: %s", o->max_rows, strerror(-rc));
	}
	b->next = ebb->batches;
	ebb->batches = b;
	*out = b;
	return 0;
}

void ebb_batch_free(struct ebb_batch *b)
{
	struct ebb_batch **at;

	if (!b)
		return;
	if (b->open)
		(void)ebbi_step_end(b);
	(void)gpu_sync(b->pool->dev, b->stream);	/* a lost device has nothing left to wait for */
	while (b->n)
		b->member[--b->n]->batch = NULL;
	for (at = &b->ebb->batches; *at != b; at = &(*at)->next)
		;
	*at = b->next;
	release(b);
}

int ebb_batch_join(struct ebb_batch *b, struct ebb_session *s)
{
	const struct ebb_session *first;

	if (!b || !s || b->ebb != s->ebb)
		return -EINVAL;
	if (b->open)
		return ebbi_error(b->ebb, -EBUSY, "a step is open");
	if (s->batch)
		return ebbi_error(b->ebb, -EALREADY, "the session is in a batch");
	if (b->n == b->max_sessions)
		return ebbi_error(b->ebb, -ENOSPC, "the batch has its %u sessions", b->max_sessions);
	first = b->n ? b->member[0] : s;
	if (s->pool != b->pool)
		return ebbi_error(b->ebb, -EINVAL, "the session is in pool %s, the batch in %s", s->pool->info.name, b->pool->info.name);
	if (s->n_layers != first->n_layers || memcmp(&s->shape, &first->shape, sizeof(s->shape)) != 0)
		return ebbi_error(b->ebb, -EINVAL, "the session's layers, heads or slots differ from the batch's");
	b->member[b->n++] = s;
	s->batch = b;
	for (s->room = 0; b->room[s->room]; s->room++)	/* there is one for each member */
		;
	b->room[s->room] = true;
	s->kept = 0;
	return 0;
}

int ebb_batch_leave(struct ebb_batch *b, struct ebb_session *s)
{
	if (!b || !s)
		return -EINVAL;
	if (b->open)
		return ebbi_error(b->ebb, -EBUSY, "a step is open");
	for (uint32_t i = 0; i < b->n; i++) {
		if (b->member[i] != s)
			continue;
		ebbi_keep_leave(s);
		b->room[s->room] = false;
		memmove(&b->member[i], &b->member[i + 1], (b->n - i - 1) * sizeof(*b->member));
		b->n--;
		s->batch = NULL;
		return 0;
	}
	return ebbi_error(b->ebb, -ENOENT, "the session is not in this batch");
}

uint32_t ebb_batch_size(const struct ebb_batch *b)
{
	return b ? b->n : 0;
}

/* --- operations ----------------------------------------------------------------------------------------------------------- */

/* 0 when a step is open and has such a layer. */
static int may_operate(struct ebb_batch *b, uint32_t layer)
{
	int rc;

	if (!b)
		return -EINVAL;
	rc = ebbi_alive(b->ebb);
	if (rc)
		return rc;
	if (!b->open)
		return ebbi_error(b->ebb, -EINVAL, "no step is open");
	if (layer >= b->member[0]->n_layers)
		return ebbi_error(b->ebb, -EINVAL, "layer %u of %u", layer, b->member[0]->n_layers);
	return 0;
}

/* The caller's tensor of `heads` heads as the device wants it. */
static int tensor(struct ebb_batch *b, const struct ebb_tensor *t, uint32_t heads, struct gpu_tensor *out)
{
	int64_t dense = (int64_t)heads * b->member[0]->shape.head_dim;

	if (!t || !t->data || (t->type != EBB_F32 && t->type != EBB_F16 && t->type != EBB_BF16) || (t->stride && t->stride < dense))
		return ebbi_error(b->ebb, -EINVAL, "a tensor needs data, a type and rows of at least %lld elements", (long long)dense);
	*out = (struct gpu_tensor){ t->data, (uint32_t)t->type, t->stride ? t->stride : dense };
	return 0;
}

/* An operation that the device refused: its bytes are not what the next step would expect. */
static int operated(struct ebb_batch *b, int rc, const char *what)
{
	return rc ? ebbi_error(b->ebb, rc, "%s: %s", what, strerror(-rc)) : 0;
}

int ebb_append(struct ebb_batch *b, uint32_t layer, const struct ebb_tensor *k, const struct ebb_tensor *v)
{
	struct gpu_tensor gk, gv;
	int rc = may_operate(b, layer);

	if (!rc)
		rc = tensor(b, k, b->member[0]->shape.n_kv_heads, &gk);
	if (!rc)
		rc = tensor(b, v, b->member[0]->shape.n_kv_heads, &gv);
	return rc ? rc : operated(b, gpu_append(b->step, b->stream, layer, &gk, &gv), "append");
}

int ebb_attend(struct ebb_batch *b, uint32_t layer, const struct ebb_tensor *q, const struct ebb_tensor *out, float scale,
	       float *lse)
{
	struct gpu_tensor gq, go;
	int rc = may_operate(b, layer);

	if (!rc)
		rc = tensor(b, q, b->member[0]->shape.n_kv_heads * b->member[0]->shape.group, &gq);
	if (!rc)
		rc = tensor(b, out, b->member[0]->shape.n_kv_heads * b->member[0]->shape.group, &go);
	return rc ? rc : operated(b, gpu_attend(b->step, b->stream, layer, &gq, &go, scale, lse), "attend");
}

int ebb_observe(struct ebb_batch *b, uint32_t layer, const struct ebb_tensor *q, const float *lse, float scale, uint32_t last)
{
	struct gpu_tensor gq;
	int rc = may_operate(b, layer);

	if (!rc && !lse)
		rc = ebbi_error(b->ebb, -EINVAL, "observe needs the log-sum-exp");
	if (!rc)
		rc = tensor(b, q, b->member[0]->shape.n_kv_heads * b->member[0]->shape.group, &gq);
	return rc ? rc : operated(b, gpu_observe(b->step, b->stream, layer, &gq, lse, scale, last), "observe");
}
