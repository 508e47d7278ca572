/*
 * ebb_local(): the same sessions without a daemon. A session has one window that never ends: no slot of it is ever named for
 * overwriting, token j of a lane lies in slot j. Memory follows the tokens: whenever a session's next GROW_TOKENS begin, every
 * lane gets pages and a block for them, ids side by side, in slabs that belong to the session alone.
 * With observe=k it has one array of heat, the sum; slabs are zeros when they are new.
 */
#include "libclient/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GROW_TOKENS GPU_BLOCK_SLOTS
#define GROW_PAGES (GPU_BLOCK_SLOTS / GPU_PAGE_SLOTS)
#define SLAB_SHIFT 26u				/* of the id space; a slab has only the bytes that it needs */
#define MAX_SLABS (1u << (32u + 7u - SLAB_SHIFT))	/* ids are 32 bits of 128 bytes */

struct local_slab {
	uint32_t index;		/* in the pool's map */
	struct gpu_slab memory;
};

struct ebbi_local {
	struct gpu_table table;		/* the header, as it is on the device */
	struct gpu_slab memory;		/* the table */
	struct local_slab *slab;	/* [n_slabs], of room for max_slabs */
	uint32_t n_slabs, max_slabs;
	size_t at;			/* first free byte of the last slab */
	uint64_t tokens;		/* there are pages for so many */
	uint32_t page_bytes, block_bytes;
};

/* --- the connection ----------------------------------------------------------------------------------------------------- */

int ebb_local(struct ebb **out, const struct ebb_options *options)
{
	const char *device = options && options->device ? options->device : "host";
	struct ebbi_pool *pool;
	struct ebb *ebb;
	int rc;

	if (!out)
		return -EINVAL;
	ebb = ebbi_new(options);
	if (!ebb)
		return ebbi_failed(NULL, options, -ENOMEM);
	ebb->local = true;
	ebb->pool = pool = calloc(1, sizeof(*pool));
	if (!pool)
		return ebbi_failed(ebb, options, ebbi_error(ebb, -ENOMEM, "out of memory"));
	ebb->n_pools = 1;
	pool->info = (struct wire_pool){ .name = "local", .slab_shift = SLAB_SHIFT, .max_slabs = MAX_SLABS };
	rc = ebbi_pool_init(ebb, pool);
	if (!rc) {
		rc = gpu_open(&pool->dev, device);
		if (rc)
			pool->dev = NULL;
		else
			rc = ebbi_pool_prepare(pool);
		if (rc)
			ebbi_error(ebb, rc, "device %s: %s", device, strerror(-rc));
	}
	if (rc)
		return ebbi_failed(ebb, options, rc);
	pool->info.is_cuda = gpu_info(pool->dev)->is_cuda != 0;
	pool->info.size_bytes = gpu_info(pool->dev)->total_bytes;
	snprintf(pool->info.uuid, sizeof(pool->info.uuid), "%s", gpu_info(pool->dev)->uuid);
	*out = ebb;
	return 0;
}

/* --- memory of a session --------------------------------------------------------------------------------------------------- */

/* A new last slab for the session, of `bytes` bytes. */
static int add_slab(struct ebb_session *s, size_t bytes)
{
	struct ebbi_local *l = s->local;
	struct ebbi_pool *pool = s->pool;
	struct local_slab *slab;
	uint32_t index = 0;
	int rc;

	while (index < MAX_SLABS && pool->slab[index].base)
		index++;
	if (index == MAX_SLABS)
		return -ENOSPC;
	if (l->n_slabs == l->max_slabs) {
		uint32_t room = l->max_slabs ? 2 * l->max_slabs : 8;
		struct local_slab *more = realloc(l->slab, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		l->slab = more;
		l->max_slabs = room;
	}
	slab = &l->slab[l->n_slabs];
	slab->index = index;
	rc = gpu_slab_new(pool->dev, bytes, 0, &slab->memory);
	if (rc)
		return rc;
	rc = gpu_map_set(pool->map, pool->stream, index, slab->memory.base);
	if (rc) {
		gpu_slab_free(pool->dev, &slab->memory);
		return rc;
	}
	pool->slab[index] = (struct ebbi_slab){ .base = slab->memory.base, .bytes = bytes };
	l->n_slabs++;
	l->at = 0;
	return 0;
}

/* `bytes` bytes at an id; `coming` is what the rest of this growth needs, these bytes included. */
static int take(struct ebb_session *s, size_t bytes, size_t coming, uint32_t *id)
{
	const size_t most = (size_t)1 << SLAB_SHIFT;
	struct ebbi_local *l = s->local;
	const struct local_slab *last = l->n_slabs ? &l->slab[l->n_slabs - 1] : NULL;

	if (!last || l->at + bytes > last->memory.bytes) {
		int rc = add_slab(s, coming < most ? coming : most);

		if (rc)
			return rc;
		last = &l->slab[l->n_slabs - 1];
	}
	*id = (uint32_t)((((uint64_t)last->index << SLAB_SHIFT) + l->at) / GPU_UNIT);
	l->at += bytes;
	return 0;
}

static int put(struct ebb_session *s, size_t at, const void *src, size_t bytes)
{
	return gpu_write(s->pool->dev, s->pool->stream, (char *)s->local->memory.base + at, src, bytes);
}

/* Pages and a block for one lane's next GROW_TOKENS, and their ids in the table. */
static int grow_lane(struct ebb_session *s, uint32_t lane, size_t *coming)
{
	struct ebbi_local *l = s->local;
	size_t block = l->tokens / GROW_TOKENS;
	size_t page_at = gpu_table_pages(&l->table) + ((size_t)lane * l->table.max_pages + block * GROW_PAGES) * 4;
	size_t block_at = gpu_table_blocks(&l->table) + ((size_t)lane * l->table.max_blocks + block) * 4;
	size_t bytes = (size_t)GROW_PAGES * l->page_bytes;
	uint32_t first, id[GROW_PAGES];
	int rc;

	rc = take(s, bytes + l->block_bytes, *coming, &first);
	if (rc)
		return rc;
	*coming -= bytes + l->block_bytes;
	for (uint32_t i = 0; i < GROW_PAGES; i++)
		id[i] = first + i * (l->page_bytes / GPU_UNIT);
	rc = put(s, page_at, id, sizeof(id));
	id[0] = first + (uint32_t)(bytes / GPU_UNIT);
	return rc ? rc : put(s, block_at, id, sizeof(id[0]));
}

int ebbi_local_grow(struct ebb_session *s, uint64_t tokens)
{
	struct ebbi_local *l = s->local;
	int rc = 0;

	s->own.live_max = (uint32_t)tokens;
	if (tokens <= l->tokens)
		return 0;
	while (l->tokens < tokens && !rc) {
		size_t coming = (size_t)l->table.n_lanes * ((size_t)GROW_PAGES * l->page_bytes + l->block_bytes);

		for (uint32_t lane = 0; lane < l->table.n_lanes && !rc; lane++)
			rc = grow_lane(s, lane, &coming);
		if (!rc)
			l->tokens += GROW_TOKENS;
	}
	if (!rc)
		rc = gpu_sync(s->pool->dev, s->pool->stream);
	return rc ? ebbi_error(s->ebb, rc, "memory for %llu tokens: %s", (unsigned long long)tokens, strerror(-rc)) : 0;
}

/* --- open and close -------------------------------------------------------------------------------------------------------- */

/* The next value of `key` ("slots=") in "key=value key=value": where it begins and how long it is. *at moves behind it. NULL: no more. */
static const char *next_value(const char **at, const char *key, size_t *bytes)
{
	const size_t n = strlen(key);

	while (**at) {
		const char *word = *at + strspn(*at, " \t\n");
		size_t len = strcspn(word, " \t\n");

		*at = word + len;
		if (len >= n && strncmp(word, key, n) == 0) {
			*bytes = len - n;
			return word + n;
		}
	}
	return NULL;
}

/* The value of slots=; without it the daemon's own default. */
static int slots_of(struct ebb *ebb, const char *settings, uint32_t *type)
{
	const char *at = settings ? settings : "", *value, *name;
	size_t len;

	*type = GPU_BF16;
	while ((value = next_value(&at, "slots=", &len))) {
		for (*type = 0; (name = gpu_type_name(*type)); ++*type)
			if (len == strlen(name) && strncmp(value, name, len) == 0)
				break;
		if (!name)
			return ebbi_error(ebb, -EINVAL, "slots: found %.*s; allowed: f32, f16, bf16, q8, k8v4, q4", (int)len, value);
	}
	return 0;
}

/* The value of observe=, 0 where it is not given: without anybody who wants it, heat costs for nothing. */
static uint32_t observe_of(const char *settings)
{
	const char *at = settings ? settings : "", *value;
	uint32_t observe = 0;
	size_t len;

	while ((value = next_value(&at, "observe=", &len)))
		observe = (uint32_t)strtoul(value, NULL, 10);
	return observe;
}

/* The table without pages: every lane is empty and all its tokens go to new slots. */
static int write_table(struct ebb_session *s)
{
	struct ebbi_local *l = s->local;
	const struct gpu_table *t = &l->table;
	struct gpu_lane *lane = malloc(t->n_lanes * sizeof(*lane));
	int rc;

	if (!lane)
		return -ENOMEM;
	for (uint32_t i = 0; i < t->n_lanes; i++)
		lane[i] = (struct gpu_lane){ .len = 0, .fresh = s->max_tokens };
	rc = put(s, 0, t, sizeof(*t));
	if (!rc)
		rc = put(s, gpu_table_lanes(), lane, t->n_lanes * sizeof(*lane));
	if (!rc)
		rc = gpu_sync(s->pool->dev, s->pool->stream);
	free(lane);
	return rc;
}

static int free_index(struct ebb *ebb)
{
	for (unsigned i = 0; i < WIRE_MAX_SESSIONS; i++)
		if (!ebb->session[i])
			return (int)i;
	return -EMFILE;
}

int ebbi_local_open(struct ebb *ebb, const struct ebb_session_options *o, struct ebb_session **out)
{
	uint32_t n_blocks = gpu_blocks_for(o->max_tokens), observe = observe_of(o->settings), type;
	struct ebb_session *s;
	struct ebbi_local *l;
	int index = free_index(ebb), rc = slots_of(ebb, o->settings, &type);

	if (rc)
		return rc;
	if (!gpu_can_store(ebb->pool[0].dev, type))
		return ebbi_error(ebb, -ENOTSUP, "slots k8v4 and q4 do not work on %s: use slots=q8, or the host", gpu_info(ebb->pool[0].dev)->name);
	if (index < 0)
		return ebbi_error(ebb, index, "a connection has at most %u sessions", WIRE_MAX_SESSIONS);
	s = calloc(1, sizeof(*s));
	l = calloc(1, sizeof(*l));
	if (!s || !l) {
		free(s);
		free(l);
		return ebbi_error(ebb, -ENOMEM, "out of memory");
	}
	*s = (struct ebb_session){
		.ebb = ebb, .pool = &ebb->pool[0], .index = (uint32_t)index, .words = &s->own, .window = UINT32_MAX,
		.n_layers = o->n_layers, .shape = { o->n_kv_heads, o->group, o->head_dim, type },
		.max_tokens = o->max_tokens, .max_slots = o->max_tokens, .local = l,
		.own = { .granted = o->max_tokens, .budget = o->max_tokens },
	};
	l->table = (struct gpu_table){ .n_lanes = o->n_layers * o->n_kv_heads, .window = 1, .max_pages = n_blocks * GROW_PAGES,
				       .max_blocks = n_blocks, .n_heat = observe ? 1 : 0, .observe = observe };
	l->page_bytes = gpu_page_bytes(type, o->head_dim);
	l->block_bytes = gpu_block_bytes(l->table.n_heat);
	rc = gpu_slab_new(s->pool->dev, gpu_table_bytes(&l->table), 0, &l->memory);
	if (!rc) {
		rc = write_table(s);
		if (rc)
			gpu_slab_free(s->pool->dev, &l->memory);
	}
	if (rc) {
		free(l);
		free(s);
		return ebbi_error(ebb, rc, "a session of %u tokens: %s", o->max_tokens, strerror(-rc));
	}
	s->table = l->memory.base;
	ebb->session[index] = s;
	*out = s;
	return 0;
}

void ebbi_local_close(struct ebb_session *s)
{
	struct ebbi_local *l = s->local;

	for (uint32_t i = 0; i < l->n_slabs; i++) {
		(void)gpu_map_set(s->pool->map, s->pool->stream, l->slab[i].index, NULL);
		s->pool->slab[l->slab[i].index] = (struct ebbi_slab){ 0 };
		gpu_slab_free(s->pool->dev, &l->slab[i].memory);
	}
	gpu_slab_free(s->pool->dev, &l->memory);
	s->ebb->session[s->index] = NULL;
	free(l->slab);
	free(l);
}
