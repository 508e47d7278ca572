/* Private to gpu/cuda/: a part of attend_mma.cuh: how a warp's pages come into shared memory. */
#ifndef GPU_CUDA_ATTEND_RING_CUH
#define GPU_CUDA_ATTEND_RING_CUH

#include "gpu/cuda/attend_mma.cuh"

/* --- the ring ---------------------------------------------------------------------------------------------------------------- */

/*
 * A warp's stream of pages, of one lane after the other. Each thread knows the address of one of the next 32. Stages are asked for up to
 * `stages` ahead of the one being read, in the order of reading; behind the pages of the lane being read come those of the CTA's next lane.
 * Strips, and so a warp's part, begin at even pages: those of a stage are one lane's, and of one block of positions.
 */
struct mma_ring {
	uint32_t at, stages;		/* shared address; how many */
	uint32_t stage, ahead;		/* the one to be read next; how many were asked for and not yet read */
	uint32_t feed, first, end;	/* page to ask for next; pages of the warp in the lane that it belongs to */
	uint32_t live, into_next;	/* of that lane; is it the next one already? */
	const uint32_t *ids, *blocks;	/* as struct cuda_item's page and block */
	const char *page, *pos;
	uint64_t policy;
};

static __device__ __forceinline__ void mma_ring_look(const struct mma_args &a, const struct mma_lane &x, struct mma_ring &r)
{
	uint32_t p = r.feed + x.thread;
	const char *block;

	r.page = r.pos = NULL;
	if (p >= r.end)
		return;
	r.page = cuda_at(a.view, r.ids[p]);
	if (x.newest)
		return;
	block = cuda_at(a.view, r.blocks[p / (GPU_BLOCK_SLOTS / GPU_PAGE_SLOTS)]);
	r.pos = block ? block + p % (GPU_BLOCK_SLOTS / GPU_PAGE_SLOTS) * 64u : NULL;
	r.page = block ? r.page : NULL;
}

/* Turn to a lane. */
static __device__ __forceinline__ void mma_ring_turn(const struct mma_args &a, const struct mma_lane &x, struct mma_ring &r,
						     const struct cuda_item &item, uint32_t first, uint32_t end)
{
	r.first = r.feed = first;
	r.end = end;
	r.live = item.live;
	r.ids = item.page;
	r.blocks = item.block;
	mma_ring_look(a, x, r);
}

/* Turn to the CTA's next lane; without one there is nothing to ask for. */
template <int TYPE>
static __device__ __forceinline__ void mma_ring_turn_next(const struct mma_args &a, const struct mma_lane &x, struct mma_ring &r,
							  const struct cuda_item &next)
{
	uint32_t pages, per_strip, n;

	mma_strips(TYPE, next.n ? next.live : 0u, pages, per_strip, n);
	r.into_next = 1;
	mma_ring_turn(a, x, r, next, min(mma_cut(0, n, x.warp) * per_strip, pages), min(mma_cut(0, n, x.warp + 1u) * per_strip, pages));
}

/* A whole page with rows that fill theirs in shared memory. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_ring_copy(const struct mma_lane &x, const struct mma_ring &r, uint32_t dst, const char *page)
{
	using size = mma_size<TYPE, D, NT>;
	constexpr uint32_t per = size::pieces, rows = 32u / per;	/* rows of a copy by all threads */

	page += x.thread * 16u;
	if constexpr (32u % per == 0) {	/* then the bits of a row's number come from the thread and from u apart, and so does its place */
		uint32_t piece = x.thread % per ^ size::place(x.thread / per);

		dst += x.thread / per * size::row;
#pragma unroll
		for (uint32_t u = 0; u < per; u++)
			mma_copy16_all(dst + (piece ^ size::place(u * rows)) * 16u + u * 512u, page + u * 512u, r.policy);
	} else {
#pragma unroll
		for (uint32_t u = 0; u < per; u++) {
			uint32_t e = u * 32u + x.thread;

			mma_copy16_all(dst + e / per * size::row + (e % per ^ size::place(e / per)) * 16u, page + u * 512u, r.policy);
		}
	}
}

/* mma_ring_feed() for stages of one page. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_ring_feed_one(const struct mma_args &a, const struct mma_lane &x, struct mma_ring &r, uint32_t s)
{
	using size = mma_size<TYPE, D, NT>;

	if (r.feed < r.end) {
		uint32_t i = (r.feed - r.first) % 32u, dst = r.at + s * size::stride(x.bare), live;
		const char *page = (const char *)__shfl_sync(0xffffffffu, (unsigned long long)r.page, i);
		const char *pos = x.newest ? NULL : (const char *)__shfl_sync(0xffffffffu, (unsigned long long)r.pos, i);

		live = min(r.live - r.feed * GPU_PAGE_SLOTS, GPU_PAGE_SLOTS);
		if (!page) {
			live = 0;
			page = pos = (const char *)a.item;	/* not read */
		}
		if (a.head_dim == D && live == GPU_PAGE_SLOTS) {
			mma_ring_copy<TYPE, D, NT>(x, r, dst, page);
		} else {
			uint32_t vecs = a.head_dim * (size::q8 ? 1u : 2u) / 16u, inverse = ((1u << 20) + vecs - 1u) / vecs;

#pragma unroll 2
			for (uint32_t e = x.thread; e < vecs * 32u; e += 32u) {
				uint32_t row = e * inverse >> 20;	/* e / vecs: e < 1024 */

				mma_copy16(dst + row * size::row + (e - row * vecs ^ size::place(row)) * 16u, page + e * 16u,
					   row % GPU_PAGE_SLOTS < live, r.policy);
			}
		}
		if (!x.newest && x.thread < 4u)
			mma_copy16(dst + size::pos + x.thread * 16u, pos + x.thread * 16u, live > 0, r.policy);
		else if (size::q8 && x.thread >= 4u && x.thread < 12u)
			mma_copy16(dst + size::params + (x.thread - 4u) * 16u,
				   page + gpu_page_params(TYPE, a.head_dim) + (x.thread - 4u) * 16u, live > 0, r.policy);
		r.ahead++;
		if ((++r.feed - r.first) % 32u == 0)
			mma_ring_look(a, x, r);
	}
	mma_commit();
}

/* A page of `live` slots, or of rows that are shorter: what is missing becomes zeros. page: NULL with live = 0. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_ring_copy_part(const struct mma_args &a, const struct mma_lane &x, const struct mma_ring &r,
							  uint32_t dst, const char *page, uint32_t live)
{
	using size = mma_size<TYPE, D, NT>;
	uint32_t vecs = a.head_dim * (size::q8 ? 1u : 2u) / 16u, inverse = ((1u << 20) + vecs - 1u) / vecs;

	page = page ? page : (const char *)a.item;	/* not read */
#pragma unroll 2
	for (uint32_t e = x.thread; e < vecs * 32u; e += 32u) {
		uint32_t row = e * inverse >> 20;	/* e / vecs: e < 1024 */

		mma_copy16(dst + row * size::row + (e - row * vecs ^ size::place(row)) * 16u, page + e * 16u, row % GPU_PAGE_SLOTS < live,
			   r.policy);
	}
}

/* Parameters and positions of a stage's pages: 16 bytes a thread. Positions of the pages are neighbours: a block has them all. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_ring_copy_rest(const struct mma_args &a, const struct mma_lane &x, const struct mma_ring &r,
							  uint32_t dst, const char *first, const char *last, const char *pos, uint32_t live)
{
	using size = mma_size<TYPE, D, NT>;
	uint32_t i = x.thread < 4u * size::pages ? x.thread : x.thread - 4u * size::pages;
	bool second = i >= (x.thread < 4u * size::pages ? 4u : 8u), there = live > (second ? GPU_PAGE_SLOTS : 0u);
	const char *page = second ? last : first;

	there = there && page;
	if (!x.newest && x.thread < 4u * size::pages)
		mma_copy16(dst + size::pos + i * 16u, there ? pos + i * 16u : (const char *)a.item, there, r.policy);
	else if (size::q8 && x.thread >= 4u * size::pages && x.thread < 12u * size::pages)
		mma_copy16(dst + size::params + i * 16u, there ? page + gpu_page_params(TYPE, a.head_dim) + i % 8u * 16u : (const char *)a.item,
			   there, r.policy);
}

/* The same where all is there. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_ring_copy_all(const struct mma_lane &x, const struct mma_ring &r, uint32_t dst,
							 const char *const (&page)[mma_size<TYPE, D, NT>::pages], const char *pos)
{
	using size = mma_size<TYPE, D, NT>;
	constexpr uint32_t params = size::q8 ? 8u * size::pages : 0u;	/* pieces; those of positions lie behind them */
	const char *from = (x.thread < 8u ? page[0] : page[size::pages - 1u]) + gpu_page_params(TYPE, D) + x.thread % 8u * 16u;

#pragma unroll
	for (uint32_t u = 0; u < size::pages; u++)
		mma_ring_copy<TYPE, D, NT>(x, r, dst + u * size::page, page[u]);
	if (!size::q8 || x.thread >= params)
		from = pos + (x.thread - params) * 16u;
	if (x.thread < params + (x.newest ? 0u : 4u * size::pages))
		mma_copy16_all(dst + size::params + x.thread * 16u, from, r.policy);
}

/* mma_ring_feed() for stages of two pages. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_ring_feed_two(const struct mma_args &a, const struct mma_lane &x, struct mma_ring &r, uint32_t s)
{
	using size = mma_size<TYPE, D, NT>;

	if (r.feed < r.end) {
		uint32_t i = (r.feed - r.first) % 32u, dst = r.at + s * size::stride(x.bare), live = r.live - r.feed * GPU_PAGE_SLOTS;
		const char *pos = x.newest ? NULL : (const char *)__shfl_sync(0xffffffffu, (unsigned long long)r.pos, i);
		const char *page[2];

		page[0] = (const char *)__shfl_sync(0xffffffffu, (unsigned long long)r.page, i);
		page[1] = (const char *)__shfl_sync(0xffffffffu, (unsigned long long)r.page, i + 1u);
		if (a.head_dim == D && live >= 2u * GPU_PAGE_SLOTS && page[0] && page[1]) {
			mma_ring_copy_all<TYPE, D, NT>(x, r, dst, page, pos);
		} else {
#pragma unroll
			for (uint32_t u = 0; u < 2; u++)
				mma_ring_copy_part<TYPE, D, NT>(a, x, r, dst + u * size::page, page[u],
					page[u] ? min(live - min(live, u * GPU_PAGE_SLOTS), GPU_PAGE_SLOTS) : 0u);
			mma_ring_copy_rest<TYPE, D, NT>(a, x, r, dst, page[0], page[1], pos, live);
		}
		r.ahead++;
		r.feed += 2u;
		if ((r.feed - r.first) % 32u == 0)
			mma_ring_look(a, x, r);
	}
	mma_commit();
}

/* Ask for the next page or pages, into stage `s`; slots that are not live become zeros. Always one group of copies. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_ring_feed(const struct mma_args &a, const struct mma_lane &x, struct mma_ring &r, uint32_t s)
{
	if constexpr (mma_size<TYPE, D, NT>::pages == 2u)
		mma_ring_feed_two<TYPE, D, NT>(a, x, r, s);
	else
		mma_ring_feed_one<TYPE, D, NT>(a, x, r, s);
}

/* The stage `n` behind the one to be read next. */
static __device__ __forceinline__ uint32_t mma_ring_stage(const struct mma_ring &r, uint32_t n)
{
	return r.stage + n < r.stages ? r.stage + n : r.stage + n - r.stages;
}

/* Have all pages of the lane been asked for? Of the last two there may be one only. */
template <int TYPE, int D, int NT> static __device__ __forceinline__ bool mma_ring_dry(const struct mma_ring &r)
{
	return mma_size<TYPE, D, NT>::pages == 2u ? r.feed >= r.end : r.feed == r.end;
}

/* A stage was read and is free. Either the ring is full again then, or there is nothing to ask for until the CTA's next lane. */
template <int TYPE, int D, int NT, bool RUN>
static __device__ __forceinline__ void mma_ring_pass(const struct mma_args &a, const struct mma_lane &x, struct mma_ring &r,
						     const struct cuda_item &next)
{
	r.ahead--;
	mma_ring_feed<TYPE, D, NT>(a, x, r, r.stage);
	r.stage = mma_ring_stage(r, 1u);
	if (RUN && mma_ring_dry<TYPE, D, NT>(r) && !r.into_next)
		mma_ring_turn_next<TYPE>(a, x, r, next);
}

/*
 * The lane that the ring turned to is now the one being read, and the one behind it is known. A part of the ring is empty at the very
 * start, and if a lane is short: then there are pages to ask for, in stages that have been free for a while.
 */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_ring_advance(const struct mma_args &a, const struct mma_lane &x, struct mma_ring &r,
							const struct cuda_item &next)
{
	r.into_next = 0;
#pragma unroll 1
	for (uint32_t i = r.ahead; i < r.stages; i++) {	/* with empty groups at the end, so that mma_wait() can count */
		if (mma_ring_dry<TYPE, D, NT>(r) && !r.into_next)
			mma_ring_turn_next<TYPE>(a, x, r, next);
		mma_ring_feed<TYPE, D, NT>(a, x, r, mma_ring_stage(r, i));
	}
	if (mma_ring_dry<TYPE, D, NT>(r) && !r.into_next)	/* full just now: mma_ring_pass() must find the next page */
		mma_ring_turn_next<TYPE>(a, x, r, next);
}

/* The ring before its first page: rows end where the head ends, and what lies behind must be zeros. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_ring_new(const struct mma_args &a, const struct mma_lane &x, char *shared, uint32_t at,
						    struct mma_ring &r)
{
	using size = mma_size<TYPE, D, NT>;
	uint32_t pieces = a.head_dim * (size::q8 ? 1u : 2u) / 16u;

	r.stages = min((a.shared_bytes - at) / (MMA_WARPS * size::stride(x.bare)), MMA_MAX_STAGES);
	at += x.warp * r.stages * size::stride(x.bare);
	r.at = mma_shared(shared) + at;
	r.stage = r.ahead = 0;
	r.into_next = 1;	/* as if the lane before had turned to it */
	r.policy = mma_read_once();
	for (uint32_t s = x.thread; pieces < size::pieces && s < r.stages * size::pages * 32u; s += 32u)
		for (uint32_t c = pieces; c < size::pieces; c++)
			*(uint4 *)(shared + at + s / (size::pages * 32u) * size::stride(x.bare) + s % (size::pages * 32u) * size::row +
				   (c ^ size::place(s)) * 16u) = make_uint4(0, 0, 0, 0);
	__syncwarp();
	mma_ring_turn(a, x, r, x.item, min(x.first * x.per_strip, x.pages), min(x.end * x.per_strip, x.pages));
}

#endif
