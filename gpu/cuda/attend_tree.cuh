/* Private to gpu/cuda/: a part of attend_mma.cuh: reading a warp's pages strip by strip, merging all sums of a lane, outputs. */
#ifndef GPU_CUDA_ATTEND_TREE_CUH
#define GPU_CUDA_ATTEND_TREE_CUH

#include "gpu/cuda/attend_ring.cuh"
#include "gpu/cuda/attend_stage.cuh"

/* --- the tree, inside a warp ------------------------------------------------------------------------------------------------------ */

/* A strip is read: its sum over the warp, of columns h. Returns what q8 adds to its outputs. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ float mma_strip_sum(const struct mma_sum<D, NT> &s, const struct mma_more<NT> &more, int nt, int h,
						      float &l)
{
	float add = more.offset[nt][h];

	l = s.l[nt][h];
#pragma unroll
	for (int d = 4; d < 32; d <<= 1) {
		l = __fadd_rn(l, __shfl_xor_sync(0xffffffffu, l, d));
		if (TYPE == GPU_Q8)
			add = __fadd_rn(add, __shfl_xor_sync(0xffffffffu, add, d));
	}
	return TYPE == GPU_Q8 ? __fmaf_rn(more.bias[nt][h], more.unit, add) : 0.0f;
}

/*
 * Merged into the group. first: there is none yet; merged with nothing a strip would stay as it is, but for -0. That is worth instructions
 * of its own with q8 alone: 16-bit slots wait for the memory, and are 0.6 % slower by them.
 */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_strip_done(const struct mma_sum<D, NT> &s, const struct mma_more<NT> &more, bool first,
						      struct mma_sum<D, NT> &group)
{
#pragma unroll
	for (int nt = 0; nt < NT; nt++)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			float a, b, l, add = mma_strip_sum<TYPE, D, NT>(s, more, nt, h, l);

			if (TYPE == GPU_Q8 && first) {
				group.m[nt][h] = s.m[nt][h];
				group.l[nt][h] = l;
#pragma unroll
				for (int j = 0; j < D / 16; j++)
#pragma unroll
					for (int i = h; i < 4; i += 2)
						group.o[nt][j][i] = __fadd_rn(__fmaf_rn(s.o[nt][j][i], more.unit, add), 0.0f);
				continue;
			}
			mma_merge(group.m[nt][h], group.l[nt][h], s.m[nt][h], l, a, b);
#pragma unroll
			for (int j = 0; j < D / 16; j++)
#pragma unroll
				for (int i = h; i < 4; i += 2) {
					float o = TYPE == GPU_Q8 ? __fmaf_rn(s.o[nt][j][i], more.unit, add) : s.o[nt][j][i];

					group.o[nt][j][i] = mma_mix(group.o[nt][j][i], o, a, b);
				}
		}
}

/* What the warp has so far: maximum and sum in registers, outputs in shared memory, [row][D + 4] from `out` on. */
template <int NT> struct mma_quarter {
	float m[NT][2], l[NT][2];
	float *out;
	bool any;
};

template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_group_done(const struct mma_lane &x, const struct mma_sum<D, NT> &group,
						      struct mma_quarter<NT> &q)
{
#pragma unroll
	for (int nt = 0; nt < NT; nt++)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			uint32_t col = nt * 8u + 2u * x.t4 + h;
			float *to = q.out + col * (D + 4u), a, b;

			mma_merge(q.m[nt][h], q.l[nt][h], group.m[nt][h], group.l[nt][h], a, b);
			if (col >= x.n_rows)
				continue;
#pragma unroll
			for (uint32_t j = 0; j < D / 16u; j++)
#pragma unroll
				for (uint32_t i = 0; i < 2; i++) {
					float *at = to + mma_out_channel<TYPE>(j, x.g, i);

					if (TYPE == GPU_Q8 && !q.any)
						*at = group.o[nt][j][2u * i + h];
					else
						*at = mma_mix(q.any ? *at : 0.0f, group.o[nt][j][2u * i + h], a, b);
				}
		}
	q.any = true;
}

/* The only strip of a warp is its group and its quarter, too: merged with nothing it would stay as it is, but for -0. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_strip_alone(const struct mma_lane &x, const struct mma_sum<D, NT> &s,
						       const struct mma_more<NT> &more, struct mma_quarter<NT> &q)
{
#pragma unroll
	for (int nt = 0; nt < NT; nt++)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			uint32_t col = nt * 8u + 2u * x.t4 + h;
			float *to = q.out + col * (D + 4u), add = mma_strip_sum<TYPE, D, NT>(s, more, nt, h, q.l[nt][h]);

			q.m[nt][h] = s.m[nt][h];
			if (col >= x.n_rows)
				continue;
#pragma unroll
			for (uint32_t j = 0; j < D / 16u; j++)
#pragma unroll
				for (uint32_t i = 0; i < 2; i++) {
					float o = s.o[nt][j][2u * i + h];

					o = TYPE == GPU_Q8 ? __fmaf_rn(o, more.unit, add) : o;
					to[mma_out_channel<TYPE>(j, x.g, i)] = __fadd_rn(o, 0.0f);	/* -0 becomes 0 */
				}
		}
	q.any = true;
}

/* Do kernels take two stages of one page at a time? Not where positions are read, and only where registers last. */
template <int TYPE, int D, int NT, int WAY> static __device__ __forceinline__ constexpr bool mma_pairs(void)
{
	return (WAY == MMA_SIXTEEN || WAY == MMA_RUN_NEWEST) && mma_size<TYPE, D, NT>::pages == 1u && TYPE != GPU_Q8 && NT == 1 &&
	       D <= 128;
}

/*
 * Do they take a stage of two pages out of shared memory all at once? Not with 16 columns, for want of registers; nor where CTAs share a
 * lane: there are few other pages, and K's products would wait for V's rows.
 */
template <int TYPE, int NT, int WAY> static __device__ __forceinline__ constexpr bool mma_takes(void)
{
	return TYPE != GPU_Q8 && NT == 1 && mma_runs(WAY);
}

/* A strip, stage by stage, or two at a time. p: its first page. */
template <int TYPE, int D, int NT, int WAY>
static __device__ __forceinline__ void mma_read_strip(const struct mma_args &a, const struct mma_lane &x,
						      const struct mma_queries<TYPE, D, NT> &q, struct mma_ring &r,
						      const struct mma_kept &kept, const struct cuda_item &next, uint32_t p,
						      uint32_t end, struct mma_sum<D, NT> &strip, struct mma_more<NT> &more)
{
	using size = mma_size<TYPE, D, NT>;
	constexpr bool RUN = mma_runs(WAY);
	bool first = true;

	if constexpr (mma_pairs<TYPE, D, NT, WAY>())
#pragma unroll 1
		for (; p + 2u <= end && r.stages > 1u; p += 2u, first = false) {
			const uint32_t at[2] = { r.at + r.stage * size::stride(true), r.at + mma_ring_stage(r, 1u) * size::stride(true) };

			mma_wait(r.stages - 1u);
			__syncwarp();
			mma_pair<TYPE, D, NT>(x, q, at, x.item.live - p * GPU_PAGE_SLOTS, kept, (p - x.cta_page) * GPU_PAGE_SLOTS, strip);
			__syncwarp();
			mma_ring_pass<TYPE, D, NT, RUN>(a, x, r, next);
			mma_ring_pass<TYPE, D, NT, RUN>(a, x, r, next);
		}
	for (; p < end; p += size::pages, first = false) {
		uint32_t at = r.at + r.stage * size::stride(x.bare), slots = x.item.live - p * GPU_PAGE_SLOTS;
		uint32_t slot = (p - x.cta_page) * GPU_PAGE_SLOTS;
		float *to = kept.at ? kept.at + slot : NULL;

		mma_wait(r.stages);
		__syncwarp();
		if constexpr (size::q8 || size::pages == 2u) {
			const struct mma_in_place<TYPE, D, NT> rows(x, at, size::page);
			struct mma_places<size::pages> places = {};

			mma_load_places<TYPE, D, NT>(x, at, places);
			if constexpr (mma_takes<TYPE, NT, WAY>()) {
				const struct mma_taken<TYPE, D, NT> taken(rows);

				__syncwarp();
				mma_ring_pass<TYPE, D, NT, RUN>(a, x, r, next);
				mma_stage<TYPE, D, NT>(x, q, at, slots, kept, slot, first, places, taken, strip, more);
				continue;
			}
			mma_stage<TYPE, D, NT>(x, q, at, slots, kept, slot, first, places, rows, strip, more);
		} else {
			mma_page<TYPE, D, NT>(x, q, at, min(slots, GPU_PAGE_SLOTS), to, kept.stride, first, strip);
		}
		__syncwarp();
		mma_ring_pass<TYPE, D, NT, RUN>(a, x, r, next);
	}
}

/* All pages of the warp. kept: logits of the CTA's first slot; NULL without heat. next: the CTA's next lane, asked for behind them. */
template <int TYPE, int D, int NT, int WAY>
static __device__ __forceinline__ void mma_read_lane(const struct mma_args &a, const struct mma_lane &x,
						     const struct mma_queries<TYPE, D, NT> &q, struct mma_ring &r, float *kept,
						     uint32_t kept_stride, const struct cuda_item &next,
						     struct mma_quarter<NT> &quarter)
{
	constexpr bool RUN = mma_runs(WAY);
	using size = mma_size<TYPE, D, NT>;
	struct mma_sum<D, NT> strip, group;
	uint32_t cut = 0, group_end = x.first;
	struct mma_more<NT> more;
	bool fresh = true;	/* the group has no strip yet */

	mma_clear(group);
	for (uint32_t s = x.first; s < x.end; s++) {
		uint32_t end = min((s + 1u) * x.per_strip, x.pages);

		while (group_end <= s)
			group_end = x.cluster == 1u ? mma_cut(x.first, x.end, ++cut) : x.end;
		mma_clear(strip);
		mma_clear(more);
		mma_read_strip<TYPE, D, NT, WAY>(a, x, q, r, { kept, kept_stride }, next, s * x.per_strip, end, strip, more);
		if (!RUN && x.cluster == 16u) {
			mma_strip_alone<TYPE, D, NT>(x, strip, more, quarter);
			continue;
		}
		mma_strip_done<TYPE, D, NT>(strip, more, fresh, group);
		fresh = s + 1u == group_end;
		if (!fresh)
			continue;
		mma_group_done<TYPE, D, NT>(x, group, quarter);
		if (TYPE != GPU_Q8)	/* there the next strip is taken as it is */
			mma_clear(group);
	}
	if (!quarter.any)
#pragma unroll 1
		for (uint32_t i = x.thread; i < x.n_rows * (D + 4u); i += 32u)
			quarter.out[i] = 0.0f;
}

/* --- the tree, over warps and CTAs -------------------------------------------------------------------------------------------------- */

/* Shared memory by name. Rows of (maximum, sum) and of factors are `even` long. */
struct mma_tables {
	float2 *part, *end, *by_warp, *got, *by_part, *by_quarter;
	float *slices, *out;
	uint32_t even, slice, bar;
	uint32_t by_pairs, by_slice;	/* mma_inverse() of pairs of `even`, and of a slice's vectors of four: clusters only */
};

template <bool RUN>
static __device__ __forceinline__ struct mma_tables mma_tables_of(char *shared, const struct mma_plan &p, const struct mma_args &a,
								 const struct mma_lane &x)
{
	struct mma_tables t;

	t.part = (float2 *)(shared + p.part);
	t.end = (float2 *)(shared + p.end);
	t.by_warp = (float2 *)(shared + p.by_warp);
	t.got = (float2 *)(shared + p.got);
	t.by_part = (float2 *)(shared + p.by_part);
	t.by_quarter = (float2 *)(shared + p.by_quarter);
	t.slices = (float *)(shared + p.slices);
	t.out = (float *)(shared + p.out);
	t.even = (a.rows + 1u) / 2u * 2u;
	t.slice = mma_slice(x.n_rows, a.head_dim, x.cluster);
	t.bar = mma_shared(shared);
	t.by_pairs = RUN ? 0u : mma_inverse(t.even / 2u);
	t.by_slice = RUN ? 0u : mma_inverse(t.slice / 4u);
	return t;
}

/* Floats of the outputs that this CTA finishes. */
static __device__ __forceinline__ uint32_t mma_own_slice(const struct mma_args &a, const struct mma_lane &x, uint32_t slice)
{
	uint32_t all = x.n_rows * a.head_dim, from = x.rank * slice;

	return from < all ? min(slice, all - from) : 0u;
}

static __device__ __forceinline__ int64_t mma_lse_at(const struct mma_args &a, const struct mma_lane &x, uint32_t r)
{
	uint32_t pair = x.row0 + r, query = mma_divide(pair, a.by_group);

	return (((int64_t)x.item.row + query) * a.n_kv_heads + x.item.kv_head) * a.group + pair - query * a.group;
}

/* What outputs are multiplied by. L: a row's complete sum. */
static __device__ __forceinline__ float mma_over_sum(float L) { return L > 0.0f ? __frcp_rn(L) : 0.0f; }

/* Its lse, for those who asked for it. */
static __device__ __forceinline__ void mma_tell_lse(const struct mma_args &a, const struct mma_lane &x, uint32_t r, float M, float L)
{
	if (x.rank == 0 && a.lse)
		a.lse[mma_lse_at(a, x, r)] = L > 0.0f ? (M + __log2f(L)) * 0.6931471805599453f : __int_as_float(0xff800000);
	if (x.rank == 0 && x.keeps)
		a.keep_lse[mma_kept_at(a, x) + r] = L > 0.0f ? M + __log2f(L) : CUDA_KEPT_NONE;
}

/* Both; what heat and outputs need goes to *end. */
static __device__ __forceinline__ void mma_row_done(const struct mma_args &a, const struct mma_lane &x, uint32_t r, float M, float L,
						    float2 *end)
{
	*end = make_float2(M, mma_over_sum(L));
	mma_tell_lse(a, x, r, M, L);
}

/* Merge four (maximum, sum) that lie `step` apart; leaves their factors in by[0], by[by_step], ... */
static __device__ __forceinline__ void mma_merge4(const float2 *from, uint32_t step, float2 *by, uint32_t by_step, float &M, float &L)
{
	M = MMA_NOTHING;
	L = 0.0f;
#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		float2 f;

		mma_merge(M, L, from[i * step].x, from[i * step].y, f.x, f.y);
		by[i * by_step] = f;
	}
}

/*
 * The warps of a CTA that has whole lanes. end[] is then (maximum, 1 / sum) of the lane. (Said in one condition, kernels
 * of 16 columns spill 16 bytes more.)
 */
static __device__ __forceinline__ void mma_merge_warps(const struct mma_args &a, const struct mma_lane &x, const struct mma_tables &t)
{
	if (threadIdx.x < t.even) {
		uint32_t r = threadIdx.x;
		float M = MMA_NOTHING, L = 0.0f;

		if (r < x.n_rows)
			mma_merge4(t.part + r, t.even, t.by_warp + r, t.even, M, L);
		if (r < x.n_rows)
			mma_row_done(a, x, r, M, L, &t.end[r]);
	}
	__syncthreads();
}

/* Four outputs over the CTA's warps, of row r from channel c on. by: the warps' factors, `step` apart. */
template <int D>
static __device__ __forceinline__ float4 mma_over_warps(const struct mma_args &a, const struct mma_tables &t, uint32_t r, uint32_t c,
							const float2 *by, uint32_t step)
{
	float4 sum = make_float4(0, 0, 0, 0);

#pragma unroll
	for (uint32_t w = 0; w < MMA_WARPS; w++)
		mma_mix4(sum, *(const float4 *)(t.out + (w * a.rows + r) * (D + 4u) + c), by[w * step]);
	return sum;
}

static __device__ __forceinline__ void mma_store4(const struct mma_args &a, int64_t at, float4 v)
{
	if (a.out.type == GPU_BF16 && ((uintptr_t)a.out.data + (uintptr_t)at * 2u) % 8u == 0) {
		*(uint2 *)((__nv_bfloat16 *)a.out.data + at) = make_uint2(mma_pack<false>(v.x, v.y), mma_pack<false>(v.z, v.w));
		return;
	}
	cuda_store(a.out.data, a.out.type, at, v.x);
	cuda_store(a.out.data, a.out.type, at + 1, v.y);
	cuda_store(a.out.data, a.out.type, at + 2, v.z);
	cuda_store(a.out.data, a.out.type, at + 3, v.w);
}

/* A lane of one CTA. OWN: without mma_merge_warps(): each thread finds the factors that it needs by itself. */
template <int D, bool OWN>
static __device__ __forceinline__ void mma_write_alone(const struct mma_args &a, const struct mma_lane &x, const struct mma_tables &t)
{
	uint32_t vecs = a.head_dim / 4u;

#pragma unroll 1
	for (uint32_t e = threadIdx.x; e < x.n_rows * vecs; e += MMA_THREADS) {
		uint32_t r = mma_divide(e, a.by_vecs), c = (e - r * vecs) * 4u;
		float4 v;
		float by;

		if (OWN) {
			float2 f[MMA_WARPS];
			float M, L;

			mma_merge4(t.part + r, t.even, f, 1u, M, L);
			v = mma_over_warps<D>(a, t, r, c, f, 1u);
			by = mma_over_sum(L);
			if (c == 0)
				mma_tell_lse(a, x, r, M, L);
		} else {
			v = mma_over_warps<D>(a, t, r, c, t.by_warp + r, t.even);
			by = t.end[r].y;
		}
		mma_store4(a, mma_row_at(a, x, r, a.out.stride) + c, make_float4(v.x * by, v.y * by, v.z * by, v.w * by));
	}
}

/*
 * Every CTA of the cluster gets all maxima and sums, and its slice of all outputs, of the CTA's warps merged. Each thread finds the factors
 * that it needs by itself: a barrier more would cost more.
 */
template <int D>
static __device__ __forceinline__ void mma_exchange(const struct mma_args &a, const struct mma_lane &x, const struct mma_tables &t)
{
	uint32_t pairs = t.even / 2u, vecs = a.head_dim / 4u;

#pragma unroll 1
	for (uint32_t e = threadIdx.x; e < x.n_rows * vecs; e += MMA_THREADS) {
		uint32_t r = mma_divide(e, a.by_vecs), to = mma_divide(e, t.by_slice), c = (e - r * vecs) * 4u;
		float2 f[MMA_WARPS];
		float M, L;
		float4 v;

		mma_merge4(t.part + r, t.even, f, 1u, M, L);
		v = mma_over_warps<D>(a, t, r, c, f, 1u);
		mma_push4(mma_shared(t.slices + x.rank * t.slice + (e * 4u - to * t.slice)), t.bar, to, v);
	}
#pragma unroll 1
	for (uint32_t i = threadIdx.x; i < x.cluster * pairs; i += MMA_THREADS) {
		uint32_t to = mma_divide(i, t.by_pairs), r = (i - to * pairs) * 2u;
		float M[2] = { MMA_NOTHING, MMA_NOTHING }, L[2] = { 0.0f, 0.0f };

#pragma unroll
		for (uint32_t w = 0; w < MMA_WARPS; w++)
#pragma unroll
			for (uint32_t k = 0; k < 2; k++) {
				float2 p = r + k < x.n_rows ? t.part[w * t.even + r + k] : make_float2(MMA_NOTHING, 0.0f), f;

				mma_merge(M[k], L[k], p.x, p.y, f.x, f.y);
			}
		mma_push4(mma_shared(t.got + x.rank * t.even + r), t.bar, to, make_float4(M[0], L[0], M[1], L[1]));
	}
	mma_bar_wait(t.bar);
}

/*
 * The parts that the CTAs of the cluster have: 4 quarters, or 4 times 4 groups. Four neighbouring threads have a row. The lane's
 * (maximum, 1 / sum) goes to end[]. ALONE: by one warp, of up to 8 rows.
 */
template <bool ALONE>
static __device__ __forceinline__ void mma_merge_parts(const struct mma_args &a, const struct mma_lane &x, const struct mma_tables &t)
{
	if (threadIdx.x < 64u) {	/* whole warps: they exchange values */
		uint32_t r = threadIdx.x / 4u, q = threadIdx.x % 4u;
		float M = MMA_NOTHING, L = 0.0f, m = MMA_NOTHING, l = 0.0f;
		bool there = r < x.n_rows;

		if (x.cluster == 4u && there) {
			m = t.got[q * t.even + r].x;
			l = t.got[q * t.even + r].y;
		} else if (there) {
			mma_merge4(t.got + q * 4u * t.even + r, t.even, t.by_part + q * 4u * t.even + r, t.even, m, l);
		}
#pragma unroll
		for (uint32_t i = 0; i < 4; i++) {
			float2 f;

			mma_merge(M, L, __shfl_sync(0xffffffffu, m, i, 4), __shfl_sync(0xffffffffu, l, i, 4), f.x, f.y);
			if (there && q == i)
				t.by_quarter[i * t.even + r] = f;
		}
		if (there && q == 0)
			mma_row_done(a, x, r, M, L, &t.end[r]);
	}
	if (ALONE)
		__syncwarp();
	else
		__syncthreads();
}

static __device__ __forceinline__ void mma_write_slice(const struct mma_args &a, const struct mma_lane &x, const struct mma_tables &t)
{
	uint32_t n = mma_own_slice(a, x, t.slice);

#pragma unroll 1
	for (uint32_t i = threadIdx.x; i < n; i += MMA_THREADS) {
		uint32_t e = x.rank * t.slice + i, r = mma_divide(e / 4u, a.by_vecs);
		float sum = 0.0f;

#pragma unroll
		for (uint32_t q = 0; q < 4; q++) {
			float2 f = t.by_quarter[q * t.even + r];
			float v = 0.0f;

			if (x.cluster == 4u)
				v = t.slices[q * t.slice + i];
			else
#pragma unroll
				for (uint32_t k = q * 4u; k < q * 4u + 4u; k++)
					v = mma_mix(v, t.slices[k * t.slice + i], t.by_part[k * t.even + r].x, t.by_part[k * t.even + r].y);
			sum = mma_mix(sum, v, f.x, f.y);
		}
		cuda_store(a.out.data, a.out.type, mma_row_at(a, x, r, a.out.stride) + (e - r * a.head_dim), sum * t.end[r].y);
	}
}

#endif
