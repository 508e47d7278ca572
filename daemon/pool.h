/*
 * A pool: the KV memory of one device, cut into slabs, extents and pages. Pure book-keeping over gpu_slab_new(): which client
 * owns which slab, and what of a slab is in use. This record is in the daemon's private memory and is the only truth.
 *
 *   slab    belongs to one owner at a time: a client, or the daemon itself (private memory that is never exported). A client maps
 *           only its own slabs, so whatever it writes there hurts nobody else. A slab goes back to the pool when its last page
 *           is freed; a shared one on a GPU first waits (quarantine) until its client has unmapped it or its process is gone.
 *   extent  64 KiB of a slab: pages of one size, or part of a run.
 *   page    what a session gets; any multiple of GPU_UNIT bytes from 1 KiB up to an extent.
 *   run     contiguous extents, for tables.
 *
 * Threads: the daemon's loop thread only. Nothing here blocks on a device except taking and freeing slabs.
 */
#ifndef DAEMON_POOL_H
#define DAEMON_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "conf/conf.h"
#include "gpu/gpu.h"

#define POOL_EXTENT_BYTES 65536u
#define POOL_NO_ID UINT32_MAX
#define POOL_MAX_CLASSES 8
#define POOL_NONE UINT32_MAX

enum pool_slab_state { POOL_FREE, POOL_OWNED, POOL_QUARANTINE };

struct pool_extent {
	uint32_t page_bytes;		/* 0: free, or part of a run */
	uint32_t run;			/* first extent of a run: its length; other extents of it: POOL_NONE; 0: not a run */
	uint64_t used;			/* bitmap of pages */
	uint32_t next, prev;		/* list of extents of one owner and size with a free page; global extent numbers */
	bool listed;
};

struct pool_slab {
	struct gpu_slab mem;
	enum pool_slab_state state;
	bool backed;			/* mem is there */
	bool announced;			/* its client has been told */
	bool draining;			/* nothing new is placed here: it is being emptied */
	uint32_t used_extents, used_bytes;
	uint64_t generation;		/* counts the slab's owners */
	uint64_t owner;			/* serial of the owner */
	struct pool_extent *extent;	/* [extents per slab] */
};

/* What one client (or the daemon) has in one pool. */
struct pool_owner {
	uint64_t serial;		/* 0: not in use */
	bool shared;			/* its slabs can be exported */
	uint64_t used_bytes;		/* pages and runs */
	uint32_t n_slabs, n_draining;	/* owned, without quarantine; of them, draining */
	uint64_t no_room;		/* with fewer bytes free in its slabs there is no use in looking for one to drain */
	uint32_t n_classes;
	struct pool_class {
		uint32_t page_bytes;
		uint32_t partial;		/* extents with a free page: the first of a list, */
		uint32_t free;			/* and the free pages in them */
	} cls[POOL_MAX_CLASSES];
};

struct pool {
	char name[CONF_NAME];
	char device_name[CONF_TEXT];
	struct gpu_device *dev;
	gpu_stream stream;
	struct gpu_map *map;
	uint64_t size_bytes;
	uint32_t slab_bytes, slab_shift;
	uint32_t n_slabs, extents_per_slab;
	uint32_t n_free, n_quarantine;	/* slabs */
	uint32_t wanted;		/* sessions that wait for room */
	uint64_t used_bytes;
	uint64_t serials;
	struct pool_slab *slab;
	struct pool_owner self;		/* the daemon's private memory */
};

/*
 * pool_open - open the device and lay out the pool. On CUDA all slabs are allocated now, so that the memory is ours; on the
 * host a slab is a fresh memfd for every owner. @why: a sentence on failure. Errors: as gpu_open(), -ENOMEM, -EINVAL.
 */
int pool_open(struct pool *pool, const struct conf_pool *conf, char *why, size_t why_bytes);
void pool_close(struct pool *pool);

void pool_owner_init(struct pool *pool, struct pool_owner *owner, bool shared);

/* pool_page - a page of page_bytes, or POOL_NO_ID when neither the owner's slabs nor the pool have room. */
uint32_t pool_page(struct pool *pool, struct pool_owner *owner, uint32_t page_bytes);
void pool_page_free(struct pool *pool, struct pool_owner *owner, uint32_t id);

/* pool_run - contiguous bytes (rounded up to extents), or POOL_NO_ID. bytes <= slab_bytes. */
uint32_t pool_run(struct pool *pool, struct pool_owner *owner, size_t bytes);
void pool_run_free(struct pool *pool, struct pool_owner *owner, uint32_t id);

/* Address in this process. */
static inline void *pool_at(const struct pool *pool, uint32_t id)
{
	return gpu_at(gpu_map_bases(pool->map), pool->slab_shift, id);
}

static inline uint32_t pool_slab_of(const struct pool *pool, uint32_t id)
{
	return (uint32_t)(((uint64_t)id * GPU_UNIT) >> pool->slab_shift);
}

/*
 * pool_trim - give up the owner's empty slabs. For one that the client was told of `dropped` is called (before it is given up),
 * and on a GPU it goes into quarantine. Returns the number of slabs given up.
 */
unsigned pool_trim(struct pool *pool, struct pool_owner *owner, void (*dropped)(void *arg, uint32_t slab), void *arg);

/* pool_unquarantine - the client has unmapped the slab (generation as announced). -ENOENT if it has no such slab. */
int pool_unquarantine(struct pool *pool, struct pool_owner *owner, uint32_t slab, uint64_t generation);

/* pool_owner_fini - the owner's process is gone: all its slabs, quarantined ones too, return to the pool, scrubbed. */
void pool_owner_fini(struct pool *pool, struct pool_owner *owner);

/*
 * pool_drain - pick those of the owner's slabs that are cheapest to empty, while what is in them fits elsewhere in the owner's slabs, a
 * quarter of its slabs (one at least): nothing is placed there any more. Returns whether any slab drains. pool_undrain - give up.
 */
bool pool_drain(struct pool *pool, struct pool_owner *owner);
void pool_undrain(struct pool *pool, struct pool_owner *owner);

/* Whether a page or run lies in a slab that drains. */
static inline bool pool_draining(const struct pool *pool, uint32_t id)
{
	return pool->slab[pool_slab_of(pool, id)].draining;
}

#endif
