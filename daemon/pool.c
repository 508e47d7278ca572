/* Slabs, extents, pages: see pool.h. */
#include "daemon/pool.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DRAIN_TRIES 8		/* slabs that are looked at until one is found that can be emptied */

static uint32_t pages_per_extent(uint32_t page_bytes)
{
	return POOL_EXTENT_BYTES / page_bytes;
}

static uint64_t full_mask(uint32_t page_bytes)
{
	uint32_t n = pages_per_extent(page_bytes);

	return n == 64 ? UINT64_MAX : (1ull << n) - 1;
}

/* Extents are numbered through the whole pool, so that lists can cross slabs. */
static struct pool_extent *extent_at(struct pool *pool, uint32_t number)
{
	return &pool->slab[number / pool->extents_per_slab].extent[number % pool->extents_per_slab];
}

static uint32_t extent_of(const struct pool *pool, uint32_t id)
{
	(void)pool;
	return (uint32_t)((uint64_t)id * GPU_UNIT / POOL_EXTENT_BYTES);
}

static uint32_t extent_id(uint32_t number)
{
	return (uint32_t)((uint64_t)number * (POOL_EXTENT_BYTES / GPU_UNIT));
}

static struct pool_class *class_of(struct pool_owner *owner, uint32_t page_bytes)
{
	for (uint32_t i = 0; i < owner->n_classes; i++)
		if (owner->cls[i].page_bytes == page_bytes)
			return &owner->cls[i];
	if (owner->n_classes == POOL_MAX_CLASSES)
		return NULL;
	owner->cls[owner->n_classes] = (struct pool_class){ .page_bytes = page_bytes, .partial = POOL_NONE };
	return &owner->cls[owner->n_classes++];
}

static uint32_t used_pages(const struct pool_extent *e)
{
	return (uint32_t)__builtin_popcountll(e->used);
}

static uint32_t free_pages(const struct pool_extent *e)
{
	return pages_per_extent(e->page_bytes) - used_pages(e);
}

static void list_add(struct pool *pool, struct pool_owner *owner, uint32_t number)
{
	struct pool_extent *e = extent_at(pool, number);
	struct pool_class *cls = class_of(owner, e->page_bytes);

	if (e->listed || pool->slab[number / pool->extents_per_slab].draining)
		return;
	e->prev = POOL_NONE;
	e->next = cls->partial;
	if (cls->partial != POOL_NONE)
		extent_at(pool, cls->partial)->prev = number;
	cls->partial = number;
	cls->free += free_pages(e);
	e->listed = true;
}

static void list_remove(struct pool *pool, struct pool_owner *owner, uint32_t number)
{
	struct pool_extent *e = extent_at(pool, number);
	struct pool_class *cls;

	if (!e->listed)
		return;
	cls = class_of(owner, e->page_bytes);
	if (e->next != POOL_NONE)
		extent_at(pool, e->next)->prev = e->prev;
	if (e->prev != POOL_NONE)
		extent_at(pool, e->prev)->next = e->next;
	else
		cls->partial = e->next;
	cls->free -= free_pages(e);
	e->listed = false;
}

/* --- slabs ------------------------------------------------------------------------------------------------------------- */

static int slab_back(struct pool *pool, uint32_t number, bool shared)
{
	struct pool_slab *slab = &pool->slab[number];
	int rc = gpu_slab_new(pool->dev, pool->slab_bytes, shared, &slab->mem);

	if (rc)
		return rc;
	slab->backed = true;
	return gpu_map_set(pool->map, pool->stream, number, slab->mem.base);
}

static void slab_unback(struct pool *pool, uint32_t number)
{
	struct pool_slab *slab = &pool->slab[number];

	if (!slab->backed)
		return;
	(void)gpu_map_set(pool->map, pool->stream, number, NULL);
	gpu_slab_free(pool->dev, &slab->mem);
	slab->backed = false;
}

/* A free slab for the owner. On CUDA the memory stays and is scrubbed here; on the host it is a new memfd. */
static uint32_t slab_take(struct pool *pool, struct pool_owner *owner)
{
	uint32_t i;

	if (!pool->n_free)
		return POOL_NONE;
	/* The daemon's own slabs come from the top, clients' from the bottom: fewer holes between them. */
	for (i = 0; i < pool->n_slabs; i++) {
		uint32_t at = owner->shared ? i : pool->n_slabs - 1 - i;

		if (pool->slab[at].state == POOL_FREE) {
			i = at;
			break;
		}
	}
	assert(i < pool->n_slabs);
	struct pool_slab *slab = &pool->slab[i];

	if (!slab->backed && slab_back(pool, i, owner->shared))
		return POOL_NONE;
	if (slab->generation && gpu_scrub(pool->dev, pool->stream, slab->mem.base, pool->slab_bytes))
		return POOL_NONE;
	slab->state = POOL_OWNED;
	slab->owner = owner->serial;
	slab->generation++;
	slab->announced = false;
	slab->draining = false;
	slab->used_extents = slab->used_bytes = 0;
	memset(slab->extent, 0, pool->extents_per_slab * sizeof(*slab->extent));
	pool->n_free--;
	owner->n_slabs++;
	return i;
}

static void slab_release(struct pool *pool, uint32_t number)
{
	struct pool_slab *slab = &pool->slab[number];

	if (slab->state == POOL_QUARANTINE)
		pool->n_quarantine--;
	slab->state = POOL_FREE;
	slab->owner = 0;
	slab->draining = false;
	if (!gpu_info(pool->dev)->is_cuda)
		slab_unback(pool, number);
	pool->n_free++;
}

/* n contiguous free extents in one of the owner's slabs, else in a new slab; POOL_NONE. */
static uint32_t extents_take(struct pool *pool, struct pool_owner *owner, uint32_t n)
{
	for (uint32_t s = 0; s < pool->n_slabs; s++) {
		struct pool_slab *slab = &pool->slab[s];
		uint32_t length = 0;

		if (slab->state != POOL_OWNED || slab->owner != owner->serial || slab->draining ||
		    pool->extents_per_slab - slab->used_extents < n)
			continue;
		for (uint32_t e = 0; e < pool->extents_per_slab; e++) {
			length = slab->extent[e].page_bytes || slab->extent[e].run ? 0 : length + 1;
			if (length == n) {
				slab->used_extents += n;
				return s * pool->extents_per_slab + e + 1 - n;
			}
		}
	}
	uint32_t s = n <= pool->extents_per_slab ? slab_take(pool, owner) : POOL_NONE;

	if (s == POOL_NONE)
		return POOL_NONE;
	pool->slab[s].used_extents = n;
	return s * pool->extents_per_slab;
}

/* --- pages and runs ------------------------------------------------------------------------------------------------------ */

uint32_t pool_page(struct pool *pool, struct pool_owner *owner, uint32_t page_bytes)
{
	struct pool_class *cls = class_of(owner, page_bytes);
	uint32_t number, bit;
	struct pool_extent *e;

	assert(page_bytes % GPU_UNIT == 0 && page_bytes >= 1024 && page_bytes <= POOL_EXTENT_BYTES);
	if (!cls)
		return POOL_NO_ID;
	if (cls->partial == POOL_NONE) {
		number = extents_take(pool, owner, 1);
		if (number == POOL_NONE)
			return POOL_NO_ID;
		e = extent_at(pool, number);
		e->page_bytes = page_bytes;
		e->used = 0;
		list_add(pool, owner, number);
	}
	number = cls->partial;
	e = extent_at(pool, number);
	bit = (uint32_t)__builtin_ctzll(~e->used);
	e->used |= 1ull << bit;
	cls->free--;
	if (e->used == full_mask(page_bytes))
		list_remove(pool, owner, number);
	pool->slab[number / pool->extents_per_slab].used_bytes += page_bytes;
	owner->used_bytes += page_bytes;
	pool->used_bytes += page_bytes;
	return extent_id(number) + bit * (page_bytes / GPU_UNIT);
}

void pool_page_free(struct pool *pool, struct pool_owner *owner, uint32_t id)
{
	uint32_t number = extent_of(pool, id);
	struct pool_extent *e = extent_at(pool, number);
	struct pool_slab *slab = &pool->slab[number / pool->extents_per_slab];
	uint32_t bit = (id - extent_id(number)) / (e->page_bytes / GPU_UNIT);

	assert(slab->owner == owner->serial && e->page_bytes && (e->used & 1ull << bit));
	e->used &= ~(1ull << bit);
	if (e->listed)
		class_of(owner, e->page_bytes)->free++;
	slab->used_bytes -= e->page_bytes;
	owner->used_bytes -= e->page_bytes;
	pool->used_bytes -= e->page_bytes;
	if (e->used) {
		list_add(pool, owner, number);
		return;
	}
	list_remove(pool, owner, number);
	e->page_bytes = 0;
	slab->used_extents--;
}

uint32_t pool_run(struct pool *pool, struct pool_owner *owner, size_t bytes)
{
	uint32_t n = (uint32_t)((bytes + POOL_EXTENT_BYTES - 1) / POOL_EXTENT_BYTES);
	uint32_t number = n && bytes <= pool->slab_bytes ? extents_take(pool, owner, n) : POOL_NONE;

	if (number == POOL_NONE)
		return POOL_NO_ID;
	for (uint32_t i = 0; i < n; i++)
		extent_at(pool, number + i)->run = i ? POOL_NONE : n;
	pool->slab[number / pool->extents_per_slab].used_bytes += n * POOL_EXTENT_BYTES;
	owner->used_bytes += (uint64_t)n * POOL_EXTENT_BYTES;
	pool->used_bytes += (uint64_t)n * POOL_EXTENT_BYTES;
	return extent_id(number);
}

void pool_run_free(struct pool *pool, struct pool_owner *owner, uint32_t id)
{
	uint32_t number = extent_of(pool, id), n = extent_at(pool, number)->run;

	assert(n && n != POOL_NONE);
	for (uint32_t i = 0; i < n; i++)
		extent_at(pool, number + i)->run = 0;
	pool->slab[number / pool->extents_per_slab].used_extents -= n;
	pool->slab[number / pool->extents_per_slab].used_bytes -= n * POOL_EXTENT_BYTES;
	owner->used_bytes -= (uint64_t)n * POOL_EXTENT_BYTES;
	pool->used_bytes -= (uint64_t)n * POOL_EXTENT_BYTES;
}

/* --- owners ---------------------------------------------------------------------------------------------------------------- */

void pool_owner_init(struct pool *pool, struct pool_owner *owner, bool shared)
{
	memset(owner, 0, sizeof(*owner));
	owner->serial = ++pool->serials;
	owner->shared = shared;
}

unsigned pool_trim(struct pool *pool, struct pool_owner *owner, void (*dropped)(void *arg, uint32_t slab), void *arg)
{
	unsigned n = 0;

	for (uint32_t s = 0; s < pool->n_slabs && owner->n_slabs; s++) {
		struct pool_slab *slab = &pool->slab[s];

		if (slab->state != POOL_OWNED || slab->owner != owner->serial || slab->used_extents)
			continue;
		owner->n_slabs--;
		owner->n_draining -= slab->draining;
		n++;
		if (slab->announced)
			dropped(arg, s);
		/* Device memory keeps its place for the next owner, so this one must have let go of it; a memfd is used once. */
		if (slab->announced && gpu_info(pool->dev)->is_cuda) {
			slab->state = POOL_QUARANTINE;
			slab->draining = false;
			pool->n_quarantine++;
		} else {
			/* Its client has it mapped until it reads of it: take the memory out from under that; it is empty. */
			if (slab->mem.fd >= 0)
				(void)fallocate(slab->mem.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)pool->slab_bytes);
			slab_release(pool, s);
		}
	}
	return n;
}

int pool_unquarantine(struct pool *pool, struct pool_owner *owner, uint32_t slab, uint64_t generation)
{
	if (slab >= pool->n_slabs || pool->slab[slab].state != POOL_QUARANTINE ||
	    pool->slab[slab].owner != owner->serial || pool->slab[slab].generation != generation)
		return -ENOENT;
	slab_release(pool, slab);
	return 0;
}

void pool_owner_fini(struct pool *pool, struct pool_owner *owner)
{
	if (!owner->serial)
		return;
	for (uint32_t s = 0; s < pool->n_slabs; s++)
		if (pool->slab[s].state != POOL_FREE && pool->slab[s].owner == owner->serial)
			slab_release(pool, s);
	pool->used_bytes -= owner->used_bytes;
	memset(owner, 0, sizeof(*owner));
}

/* What has to find a place elsewhere: pages by class, and whole extents. */
struct load {
	uint32_t pages[POOL_MAX_CLASSES], extents;
};

static void load_add(const struct pool *pool, struct pool_owner *owner, uint32_t slab, struct load *load)
{
	for (uint32_t i = 0; i < pool->extents_per_slab; i++) {
		const struct pool_extent *e = &pool->slab[slab].extent[i];

		if (e->run)
			load->extents++;
		else if (e->page_bytes)
			load->pages[class_of(owner, e->page_bytes) - owner->cls] += used_pages(e);
	}
}

/* Whether there is room for the load in the slabs that do not drain, `slab` excepted. @extents: free ones in them, its own too. */
static bool load_fits(const struct pool *pool, struct pool_owner *owner, const struct load *load, uint32_t slab, uint32_t extents)
{
	uint32_t need = load->extents, own[POOL_MAX_CLASSES] = { 0 };

	for (uint32_t i = 0; i < pool->extents_per_slab; i++) {
		const struct pool_extent *e = &pool->slab[slab].extent[i];

		if (e->listed)
			own[class_of(owner, e->page_bytes) - owner->cls] += free_pages(e);
	}
	for (uint32_t c = 0; c < owner->n_classes; c++) {
		const uint32_t room = owner->cls[c].free - own[c], per = pages_per_extent(owner->cls[c].page_bytes);

		if (load->pages[c] > room)
			need += (load->pages[c] - room + per - 1) / per;
	}
	return need <= extents - (pool->extents_per_slab - pool->slab[slab].used_extents);
}

/* Of the slabs with the least in them the first whose contents fit elsewhere; adds them to the load. */
static bool cheapest(const struct pool *pool, struct pool_owner *owner, struct load *load, uint32_t extents, uint32_t *slab)
{
	uint64_t above = 0;		/* bytes used and number of the last one that did not fit, as one number */

	for (unsigned tries = 0; tries < DRAIN_TRIES; tries++) {
		struct load with = *load;
		uint64_t best = UINT64_MAX;

		for (uint32_t s = 0; s < pool->n_slabs; s++) {
			const uint64_t at = (uint64_t)pool->slab[s].used_bytes << 32 | (s + 1);

			if (pool->slab[s].state == POOL_OWNED && pool->slab[s].owner == owner->serial && !pool->slab[s].draining &&
			    at > above && at < best)
				best = at;
		}
		if (best == UINT64_MAX)
			return false;
		above = best;
		*slab = (uint32_t)best - 1;
		load_add(pool, owner, *slab, &with);
		if (load_fits(pool, owner, &with, *slab, extents)) {
			*load = with;
			return true;
		}
	}
	return false;
}

bool pool_drain(struct pool *pool, struct pool_owner *owner)
{
	const uint32_t most = owner->n_slabs < 8 ? 1 : owner->n_slabs / 4;
	const uint64_t room = (uint64_t)owner->n_slabs * pool->slab_bytes - owner->used_bytes;
	struct load load = { .extents = 0 };
	uint32_t extents = 0, best;

	if (owner->n_slabs < 2 || owner->n_draining >= most || room < pool->slab_bytes || room < owner->no_room)
		return owner->n_draining > 0;
	for (uint32_t s = 0; s < pool->n_slabs; s++) {
		const struct pool_slab *slab = &pool->slab[s];

		if (slab->state != POOL_OWNED || slab->owner != owner->serial)
			continue;
		if (slab->draining)
			load_add(pool, owner, s, &load);
		else
			extents += pool->extents_per_slab - slab->used_extents;
	}
	owner->no_room = 0;
	while (owner->n_draining < most && owner->n_draining + 1 < owner->n_slabs) {
		if (!cheapest(pool, owner, &load, extents, &best)) {
			owner->no_room = room + pool->slab_bytes / 4;
			break;
		}
		extents -= pool->extents_per_slab - pool->slab[best].used_extents;
		pool->slab[best].draining = true;
		owner->n_draining++;
		for (uint32_t e = 0; e < pool->extents_per_slab; e++)
			list_remove(pool, owner, best * pool->extents_per_slab + e);
	}
	return owner->n_draining > 0;
}

void pool_undrain(struct pool *pool, struct pool_owner *owner)
{
	for (uint32_t s = 0; s < pool->n_slabs; s++) {
		struct pool_slab *slab = &pool->slab[s];

		if (slab->state != POOL_OWNED || slab->owner != owner->serial || !slab->draining)
			continue;
		slab->draining = false;
		owner->n_draining--;
		for (uint32_t e = 0; e < pool->extents_per_slab; e++)
			if (slab->extent[e].page_bytes && slab->extent[e].used != full_mask(slab->extent[e].page_bytes))
				list_add(pool, owner, s * pool->extents_per_slab + e);
	}
}

/* --- the pool ------------------------------------------------------------------------------------------------------------------ */

#define CUDA_SLAB_LEAST (2u << 20)

static uint64_t slab_default(const struct conf_pool *conf, int is_cuda)
{
	uint64_t bytes = is_cuda ? CUDA_SLAB_LEAST : 256u << 10, most = is_cuda ? 256u << 20 : 64u << 20;

	while (bytes < most && bytes * 128 <= conf->size_bytes)
		bytes *= 2;
	return bytes;
}

static int pool_layout(struct pool *pool, const struct conf_pool *conf, char *why, size_t why_bytes)
{
	uint64_t slab = conf->slab_bytes ? conf->slab_bytes : slab_default(conf, gpu_info(pool->dev)->is_cuda);

	/* The driver carves smaller allocations out of one block of 2 MiB, and an IPC handle exports the whole block. */
	if (gpu_info(pool->dev)->is_cuda && slab < CUDA_SLAB_LEAST)
		slab = CUDA_SLAB_LEAST;
	if (slab & (slab - 1) || slab < POOL_EXTENT_BYTES || slab > 1u << 30 || conf->size_bytes / slab < 2 ||
	    conf->size_bytes > (uint64_t)UINT32_MAX * GPU_UNIT) {
		snprintf(why, why_bytes, "[pool %s]: size %llu and slab %llu bytes do not fit: a slab is a power of two of 64 KiB "
			 "to 1 GiB, a pool has at least 2 of them and at most 512 GiB", conf->name,
			 (unsigned long long)conf->size_bytes, (unsigned long long)slab);
		return -EINVAL;
	}
	pool->slab_bytes = (uint32_t)slab;
	pool->slab_shift = (uint32_t)__builtin_ctzll(slab);
	pool->n_slabs = (uint32_t)(conf->size_bytes / slab);
	pool->n_free = pool->n_slabs;
	pool->size_bytes = (uint64_t)pool->n_slabs * slab;
	pool->extents_per_slab = pool->slab_bytes / POOL_EXTENT_BYTES;
	return 0;
}

int pool_open(struct pool *pool, const struct conf_pool *conf, char *why, size_t why_bytes)
{
	struct pool_extent *extent;
	int rc;

	memset(pool, 0, sizeof(*pool));
	memcpy(pool->name, conf->name, sizeof(pool->name));
	memcpy(pool->device_name, conf->device, sizeof(pool->device_name));
	rc = gpu_open(&pool->dev, conf->device);
	if (rc) {
		snprintf(why, why_bytes, "[pool %s]: cannot open device %s: %s", conf->name, conf->device,
			 rc == -ENOTSUP ? "this ebbd was built without CUDA" :
			 rc == -EINVAL ? "a device is host, cuda:N or cuda:UUID" : strerror(-rc));
		return rc;
	}
	rc = pool_layout(pool, conf, why, why_bytes);
	if (rc)
		goto err_close;
	pool->slab = calloc(pool->n_slabs, sizeof(*pool->slab));
	extent = calloc((size_t)pool->n_slabs * pool->extents_per_slab, sizeof(*extent));
	if (!pool->slab || !extent) {
		free(extent);
		rc = -ENOMEM;
		goto err_text;
	}
	for (uint32_t s = 0; s < pool->n_slabs; s++)
		pool->slab[s].extent = extent + (size_t)s * pool->extents_per_slab;
	rc = gpu_stream_new(pool->dev, &pool->stream);
	if (!rc)
		rc = gpu_map_new(pool->dev, pool->n_slabs, pool->slab_shift, &pool->map);
	for (uint32_t s = 0; !rc && gpu_info(pool->dev)->is_cuda && s < pool->n_slabs; s++)
		rc = slab_back(pool, s, true);
	if (rc)
		goto err_text;
	pool_owner_init(pool, &pool->self, false);
	return 0;
err_text:
	snprintf(why, why_bytes, "[pool %s]: cannot allocate %llu bytes on %s: %s", conf->name,
		 (unsigned long long)pool->size_bytes, conf->device, strerror(-rc));
err_close:
	pool_close(pool);
	return rc;
}

void pool_close(struct pool *pool)
{
	if (!pool->dev)
		return;
	if (pool->slab) {
		for (uint32_t s = 0; s < pool->n_slabs && pool->map; s++)
			slab_unback(pool, s);
		free(pool->slab[0].extent);
	}
	gpu_map_free(pool->dev, pool->map);
	if (pool->stream)
		gpu_stream_free(pool->dev, pool->stream);
	free(pool->slab);
	gpu_close(pool->dev);
	memset(pool, 0, sizeof(*pool));
}
