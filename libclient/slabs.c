/* Pools as this process sees them: their device, and where their slabs are mapped. */
#include "libclient/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool ends(const char *text, size_t bytes)
{
	return memchr(text, 0, bytes) != NULL;
}

int ebbi_pool_init(struct ebb *ebb, struct ebbi_pool *pool)
{
	const struct wire_pool *p = &pool->info;

	pool->ebb = ebb;
	if (!ends(p->name, sizeof(p->name)) || !ends(p->uuid, sizeof(p->uuid)))
		return ebbi_error(ebb, -EPROTO, "the name of the daemon's pool %u does not end", p->index);
	/* Ids are 32 bits of GPU_UNIT bytes. A slab table larger than that many slabs describes nothing. */
	if (p->slab_shift < 12 || p->slab_shift > 39 || !p->max_slabs ||
	    (uint64_t)p->max_slabs << p->slab_shift > (1ull << 32) * GPU_UNIT || p->max_slabs > 1u << 20)
		return ebbi_error(ebb, -EPROTO, "the daemon's pool %s has %u slabs of 2^%u bytes", p->name, p->max_slabs,
				  p->slab_shift);
	pool->slab = calloc(p->max_slabs, sizeof(*pool->slab));
	return pool->slab ? 0 : ebbi_error(ebb, -ENOMEM, "out of memory");
}

void ebbi_pool_fini(struct ebbi_pool *pool)
{
	for (uint32_t i = 0; pool->dev && i < pool->info.max_slabs; i++)
		if (pool->slab[i].base)
			gpu_slab_unmap(pool->dev, pool->slab[i].base, pool->slab[i].bytes);
	free(pool->slab);
	pool->slab = NULL;
	gpu_map_free(pool->dev, pool->map);
	if (pool->registered)
		gpu_unregister(pool->dev, pool->ebb->shared);
	if (pool->stream)
		gpu_stream_free(pool->dev, pool->stream);
	gpu_close(pool->dev);
	pool->dev = NULL;
}

/* Leaves half of it behind on failure: ebbi_pool_fini() copes. */
int ebbi_pool_prepare(struct ebbi_pool *pool)
{
	int rc = gpu_set_threads(pool->dev, pool->ebb->threads);

	if (!rc)
		rc = gpu_stream_new(pool->dev, &pool->stream);
	if (!rc)
		rc = gpu_map_new(pool->dev, pool->info.max_slabs, pool->info.slab_shift, &pool->map);
	if (!rc && pool->info.is_cuda && !pool->ebb->local) {
		rc = gpu_register(pool->dev, pool->ebb->shared, WIRE_SHARED_BYTES);
		pool->registered = rc == 0;
		rc = rc == -EEXIST ? 0 : rc;	/* another pool's device has done it, for all devices */
	}
	return rc;
}

int ebbi_pool_device(struct ebbi_pool *pool)
{
	char name[sizeof(pool->info.uuid) + 8];
	int rc;

	if (pool->dev && !pool->dev_error)
		return 0;
	if (!pool->dev_error) {
		snprintf(name, sizeof(name), "%s%s", pool->info.is_cuda ? "cuda:" : "", pool->info.is_cuda ? pool->info.uuid : "host");
		rc = gpu_open(&pool->dev, name);
		if (rc)
			pool->dev = NULL;
		else
			rc = ebbi_pool_prepare(pool);
		pool->dev_error = rc;
	}
	if (!pool->dev_error)
		return 0;
	rc = pool->dev_error == -ENOTSUP ? -ENODEV : pool->dev_error;
	return ebbi_error(pool->ebb, rc, "pool %s: device %s cannot be used by this process: %s", pool->info.name,
			  pool->info.uuid, strerror(-pool->dev_error));
}

int ebbi_pool_find(struct ebb *ebb, const char *name, struct ebbi_pool **out)
{
	for (unsigned i = 0; i < ebb->n_pools; i++) {
		if (ebb->local || !name || !*name || strcmp(ebb->pool[i].info.name, name) == 0) {
			*out = &ebb->pool[i];
			return 0;
		}
	}
	return ebbi_error(ebb, -ENOENT, "there is no pool called %.64s", name ? name : "");
}

/* Points the map's entry at a new address. Rare, so on a device it may wait until kernels see it, whatever their stream. */
static int set_base(struct ebbi_pool *pool, uint32_t slab, void *base)
{
	int rc = gpu_map_set(pool->map, pool->stream, slab, base);

	return rc ? rc : gpu_sync(pool->dev, pool->stream);
}

static struct ebbi_pool *named(struct ebb *ebb, const struct wire_slab *slab)
{
	if (slab->pool >= ebb->n_pools || slab->slab >= ebb->pool[slab->pool].info.max_slabs) {
		ebbi_broken(ebb, "the daemon named slab %u of pool %u", slab->slab, slab->pool);
		return NULL;
	}
	return &ebb->pool[slab->pool];
}

int ebbi_slab_add(struct ebb *ebb, const struct wire_slab *msg, int fd)
{
	struct ebbi_pool *pool = named(ebb, msg);
	struct ebbi_slab *slab;
	void *base;
	int rc;

	if (!pool)
		return -EPIPE;
	slab = &pool->slab[msg->slab];
	if (slab->base)
		return ebbi_broken(ebb, "the daemon sent slab %u of pool %u twice", msg->slab, msg->pool);
	if (!msg->bytes || msg->bytes > 1ull << pool->info.slab_shift || (fd >= 0) == (pool->info.is_cuda != 0))
		return ebbi_broken(ebb, "the daemon sent slab %u of pool %u with %llu bytes and %s descriptor", msg->slab, msg->pool,
				   (unsigned long long)msg->bytes, fd >= 0 ? "a" : "no");
	if (ebbi_pool_device(pool))
		return ebbi_broken(ebb, "slab %u of pool %s is for a device that cannot be used", msg->slab, pool->info.name);
	rc = gpu_slab_import(pool->dev, msg->handle, fd, msg->bytes, &base);
	if (!rc) {
		rc = set_base(pool, msg->slab, base);
		if (rc)
			gpu_slab_unmap(pool->dev, base, msg->bytes);
	}
	if (rc)
		return ebbi_broken(ebb, "slab %u of pool %s cannot be mapped: %s", msg->slab, pool->info.name, strerror(-rc));
	*slab = (struct ebbi_slab){ .base = base, .bytes = msg->bytes, .generation = msg->generation };
	return 0;
}

int ebbi_slab_drop(struct ebb *ebb, const struct wire_slab *msg)
{
	struct ebbi_pool *pool = named(ebb, msg);
	struct wire_msg answer = { .u.slab = *msg };
	struct ebbi_slab *slab;
	int rc;

	if (!pool)
		return -EPIPE;
	slab = &pool->slab[msg->slab];
	if (!slab->base || slab->generation != msg->generation)
		return ebbi_broken(ebb, "the daemon dropped slab %u of pool %s, which is not mapped", msg->slab, pool->info.name);
	rc = set_base(pool, msg->slab, NULL);
	gpu_slab_unmap(pool->dev, slab->base, slab->bytes);
	*slab = (struct ebbi_slab){ 0 };
	if (rc)
		return ebbi_broken(ebb, "slab %u of pool %s cannot be unmapped: %s", msg->slab, pool->info.name, strerror(-rc));
	return ebbi_send(ebb, &answer, WIRE_DROPPED, 0, sizeof(answer.u.slab));
}

void *ebbi_pool_at(const struct ebbi_pool *pool, uint32_t id, size_t bytes)
{
	uint64_t at = (uint64_t)id * GPU_UNIT;
	uint64_t index = at >> pool->info.slab_shift, offset = at & ((1ull << pool->info.slab_shift) - 1);
	const struct ebbi_slab *slab;

	if (index >= pool->info.max_slabs)
		return NULL;
	slab = &pool->slab[index];
	if (!slab->base || offset >= slab->bytes || bytes > slab->bytes - offset)
		return NULL;
	return (char *)slab->base + offset;
}
