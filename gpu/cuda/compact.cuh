/*
 * Private to select.cu: survivors of a lane move into the holes below `keep`, both in ascending order.
 *
 * What: the CTA lists holes and survivors, four slots a thread and round. A warp then moves 32 slots at a time: a thread finds the
 * addresses of one slot and moves what is small of it (position, heat, credit, q8 parameters); the rows of all 32 are one stream of 16-byte pieces
 * through the warp's ring in shared memory: a thread stores the pieces that it asked for COMPACT_STAGES steps before, so that loads are
 * under way all the time.
 * Memory traffic: two rows read and written a move; positions of the lane read once.
 * No two moves touch the same bytes: holes lie below `keep`, survivors do not.
 */
#ifndef GPU_CUDA_COMPACT_CUH
#define GPU_CUDA_COMPACT_CUH

#include "gpu/cuda/select.cuh"

#define COMPACT_PIECES 2u	/* of 16 bytes, a thread and step */
#define COMPACT_STAGES (COMPACT_RING / (COMPACT_PIECES * 512u))

struct compact_rows {
	char *src, *dst;	/* K rows; NULL: nothing to move */
};

/* A thread's way through the rows of 32 slots, a piece in 32 at a time. */
struct compact_cursor {
	uint32_t of, piece;	/* the slot, and the piece of its two rows */
};

/* What all threads of a warp know of the rows. */
struct compact_shape {
	uint32_t k, each, gap;	/* pieces of a row, of a slot; bytes between a slot's K row and its V row */
	uint32_t n;		/* slots */
};

static __device__ __forceinline__ char *compact_next(const struct compact_shape &s, char *base, struct compact_cursor *c)
{
	char *row = (char *)__shfl_sync(0xffffffffu, (unsigned long long)base, (int)(c->of & 31u));
	char *at = c->of < s.n && row ? row + 16u * c->piece + (c->piece < s.k ? 0u : s.gap) : NULL;

	c->of += 32u / s.each;
	c->piece += 32u % s.each;
	if (c->piece >= s.each) {
		c->piece -= s.each;
		c->of++;
	}
	return at;
}

static __device__ __forceinline__ void compact_load(const struct compact_shape &s, const struct compact_rows &rows, char *ring,
						    uint32_t step, struct compact_cursor *from)
{
#pragma unroll
	for (uint32_t u = 0; u < COMPACT_PIECES; u++) {
		const char *at = compact_next(s, rows.src, from);

		if (at)
			copy16(ring + (step % COMPACT_STAGES * COMPACT_PIECES + u) * 512u, at, true);
	}
}

static __device__ __forceinline__ void compact_store(const struct compact_shape &s, const struct compact_rows &rows, const char *ring,
						     uint32_t step, struct compact_cursor *to)
{
#pragma unroll
	for (uint32_t u = 0; u < COMPACT_PIECES; u++) {
		char *at = compact_next(s, rows.dst, to);

		if (at)
			*(uint4 *)at = *(const uint4 *)(ring + (step % COMPACT_STAGES * COMPACT_PIECES + u) * 512u);
	}
}

/* What is small of a slot. */
static __device__ __forceinline__ void move_numbers(const struct lane_ctx &x, const char *src, char *dst, char *hs, char *hd, char *cs,
						    char *cd, uint32_t from, uint32_t to)
{
	const uint32_t type = x.turn.slot_type, d = x.turn.head_dim, a = from % GPU_PAGE_SLOTS, b = to % GPU_PAGE_SLOTS;
	float heat[EVICT_MAX_HEAT], credit[EVICT_MAX_ARRAYS];
	int32_t pos;

	pos = *pos_in(cs, from);
#pragma unroll
	for (uint32_t k = 0; k < EVICT_MAX_HEAT; k++)
		heat[k] = k < x.n_heat ? *array_in(hs, k, from) : 0.0f;
#pragma unroll
	for (uint32_t k = 0; k < EVICT_MAX_ARRAYS; k++)
		credit[k] = k < x.turn.n_credit ? *array_in(cs, k, from) : 0.0f;
	if (type == GPU_Q8) {
		const uint32_t *ps = (const uint32_t *)(src + gpu_page_params(type, d));
		uint32_t *pd = (uint32_t *)(dst + gpu_page_params(type, d)), pk = ps[a], pv = ps[GPU_PAGE_SLOTS + a];

		pd[b] = pk;
		pd[GPU_PAGE_SLOTS + b] = pv;
	}
	*pos_in(hd, to) = pos;	/* the shared position is a copy of the private one, never the other way round */
	*pos_in(cd, to) = pos;
#pragma unroll
	for (uint32_t k = 0; k < EVICT_MAX_HEAT; k++)
		if (k < x.n_heat)
			*array_in(hd, k, to) = heat[k];
#pragma unroll
	for (uint32_t k = 0; k < EVICT_MAX_ARRAYS; k++)
		if (k < x.turn.n_credit)
			*array_in(cd, k, to) = credit[k];
}

/* The warp's threads below n: slot `from` to `to`. Every thread of the warp. */
static __device__ __forceinline__ void move_slots(const struct lane_ctx &x, char *ring, uint32_t from, uint32_t to, uint32_t n)
{
	const uint32_t thread = threadIdx.x % 32u, type = x.turn.slot_type, d = x.turn.head_dim, row = gpu_row_bytes(type, d);
	const uint32_t a = from % GPU_PAGE_SLOTS, b = to % GPU_PAGE_SLOTS;
	const struct compact_shape s = { row / 16u, row / 8u, gpu_page_v(type, d) - row, n };
	const uint32_t steps = (n * s.each + 32u * COMPACT_PIECES - 1u) / (32u * COMPACT_PIECES);
	struct compact_cursor in = { thread / s.each, thread % s.each }, out = in;
	bool mine = thread < n;
	char *src = mine ? cuda_at(x.view, x.page[from / GPU_PAGE_SLOTS]) : NULL;
	char *dst = mine ? cuda_at(x.view, x.page[to / GPU_PAGE_SLOTS]) : NULL;
	char *hs = mine ? heat_block(x, from) : NULL, *hd = mine ? heat_block(x, to) : NULL;
	char *cs = mine ? credit_block(x, from) : NULL, *cd = mine ? credit_block(x, to) : NULL;
	bool there = src && dst && hs && hd && cs && cd;
	struct compact_rows rows = { there ? src + a * row : NULL, there ? dst + b * row : NULL };

	ring += thread * 16u;
#pragma unroll
	for (uint32_t i = 0; i < COMPACT_STAGES; i++) {
		compact_load(s, rows, ring, i, &in);
		asm volatile("cp.async.commit_group;" ::: "memory");
	}
	if (there)
		move_numbers(x, src, dst, hs, hd, cs, cd, from, to);
	for (uint32_t i = 0; i < steps; i++) {
		asm volatile("cp.async.wait_group %0;" :: "n"(COMPACT_STAGES - 1u) : "memory");
		compact_store(s, rows, ring, i, &out);
		compact_load(s, rows, ring, i, &in);
		asm volatile("cp.async.commit_group;" ::: "memory");
	}
	asm volatile("cp.async.wait_group 0;" ::: "memory");
}

/* Append the slots of first .. end-1 among at .. at+LIST/2-1 that are dead (or alive) to a ring list that holds n entries from `head`. */
static __device__ uint32_t gather(const struct lane_ctx &x, struct shared_state *sh, uint32_t *list, uint32_t head, uint32_t n,
				  uint32_t at, uint32_t first, uint32_t end, bool dead)
{
	uint32_t slot = at + 4u * threadIdx.x, total, mine = 0, to;
	int4 pos = make_int4(-1, -1, -1, -1);
	char *c = slot < end ? credit_block(x, slot) : NULL;

	if (c)
		pos = *(const int4 *)pos_in(c, slot);
	mine |= ((pos.x < 0) == dead && slot >= first && slot < end) << 0;
	mine |= ((pos.y < 0) == dead && slot + 1u >= first && slot + 1u < end) << 1;
	mine |= ((pos.z < 0) == dead && slot + 2u >= first && slot + 2u < end) << 2;
	mine |= ((pos.w < 0) == dead && slot + 3u >= first && slot + 3u < end) << 3;
	to = head + n + block_scan(sh, (uint32_t)__popc(mine), &total);
#pragma unroll
	for (uint32_t i = 0; i < 4u; i++)
		if (mine >> i & 1u)
			list[to++ % LIST] = slot + i;
	return n + total;
}

/* The survivors from keep on move into the holes below it. Every thread of the CTA. */
static __device__ __noinline__ void compact(const struct lane_ctx &x, struct shared_state *sh, uint32_t keep)
{
	uint32_t hole_at = 0, survivor_at = keep & ~3u, head = 0, tail = 0, holes = 0, survivors = 0;

	for (;;) {
		uint32_t n;

		for (; holes < LIST / 2u && hole_at < keep; hole_at += LIST / 2u)
			holes = gather(x, sh, sh->hole, head, holes, hole_at, 0, keep, true);
		for (; survivors < LIST / 2u && survivor_at < x.live; survivor_at += LIST / 2u)
			survivors = gather(x, sh, sh->survivor, tail, survivors, survivor_at, keep, x.live, false);
		__syncthreads();
		n = holes < survivors ? holes : survivors;
		if (!n)
			break;
		for (uint32_t i = threadIdx.x & ~31u; i < n; i += THREADS) {
			uint32_t m = i + threadIdx.x % 32u;

			move_slots(x, sh->ring[threadIdx.x / 32u], sh->survivor[(tail + m) % LIST], sh->hole[(head + m) % LIST],
				   n - i < 32u ? n - i : 32u);
		}
		__syncthreads();
		head += n;
		tail += n;
		holes -= n;
		survivors -= n;
	}
}

#endif
