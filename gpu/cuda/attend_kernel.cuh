/* Private to gpu/cuda/: the last part of attend_mma.cuh: merging a lane's sums, outputs, and the kernel itself with its launch. */
#ifndef GPU_CUDA_ATTEND_KERNEL_CUH
#define GPU_CUDA_ATTEND_KERNEL_CUH

#include "gpu/cuda/attend_heat.cuh"
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

/* Merged into the group. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_strip_done(struct mma_sum<D, NT> &s, const struct mma_more<NT> &more, struct mma_sum<D, NT> &group)
{
#pragma unroll
	for (int nt = 0; nt < NT; nt++)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			float a, b, l, add = mma_strip_sum<TYPE, D, NT>(s, more, nt, h, l);

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
static __device__ __forceinline__ void mma_group_done(const struct mma_lane &x, struct mma_sum<D, NT> &group, struct mma_quarter<NT> &q)
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

					*at = mma_mix(q.any ? *at : 0.0f, group.o[nt][j][2u * i + h], a, b);
				}
		}
	q.any = true;
	mma_clear(group);
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

/* All pages of the warp. kept: logits of the CTA's first slot; NULL without heat. next: the CTA's next lane, asked for behind them. */
template <int TYPE, int D, int NT, bool RUN>
static __device__ __forceinline__ void mma_read_lane(const struct mma_args &a, const struct mma_lane &x, const struct mma_queries<TYPE, D, NT> &q,
						     struct mma_ring &r, float *kept, uint32_t kept_stride, const struct cuda_item &next,
						     struct mma_quarter<NT> &quarter)
{
	using size = mma_size<TYPE, D, NT>;
	struct mma_sum<D, NT> strip, group;
	uint32_t cut = 0, group_end = x.first;
	struct mma_more<NT> more;

	mma_clear(group);
	for (uint32_t s = x.first; s < x.end; s++) {
		uint32_t end = min((s + 1u) * x.per_strip, x.pages);

		while (group_end <= s)
			group_end = x.cluster == 1u ? mma_cut(x.first, x.end, ++cut) : x.end;
		mma_clear(strip);
		mma_clear(more);
		for (uint32_t p = s * x.per_strip; p < end; p += size::pages) {
			mma_wait(r.stages);
			__syncwarp();
			if constexpr (size::q8 || size::pages == 2u)
				mma_stage<TYPE, D, NT>(x, q, r.at + r.stage * size::stride(x.bare), x.item.live - p * GPU_PAGE_SLOTS, { kept, kept_stride },
						       (p - x.cta_page) * GPU_PAGE_SLOTS, p == s * x.per_strip, strip, more);
			else
				mma_page<TYPE, D, NT>(x, q, r.at + r.stage * size::stride(x.bare),
						      min(x.item.live - p * GPU_PAGE_SLOTS, GPU_PAGE_SLOTS),
						      kept ? kept + (p - x.cta_page) * GPU_PAGE_SLOTS : NULL, kept_stride, p == s * x.per_strip, strip);
			__syncwarp();
			mma_ring_pass<TYPE, D, NT, RUN>(a, x, r, next);
		}
		if (!RUN && x.cluster == 16u) {
			mma_strip_alone<TYPE, D, NT>(x, strip, more, quarter);
			continue;
		}
		mma_strip_done<TYPE, D, NT>(strip, more, group);
		if (s + 1u == group_end)
			mma_group_done<TYPE, D, NT>(x, group, quarter);
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

/* lse and what outputs and heat need of a row whose sum is complete. */
static __device__ __forceinline__ void mma_row_done(const struct mma_args &a, const struct mma_lane &x, uint32_t r, float M, float L, float2 *end)
{
	*end = make_float2(M, L > 0.0f ? __fdiv_rn(1.0f, L) : 0.0f);
	if (x.rank == 0 && a.lse)
		a.lse[mma_lse_at(a, x, r)] = L > 0.0f ? (M + __log2f(L)) * 0.6931471805599453f : __int_as_float(0xff800000);
}

/* Merge four (maximum, sum) that lie `step` apart; leaves their factors in by[0], by[step], ... */
static __device__ __forceinline__ void mma_merge4(const float2 *from, float2 *by, uint32_t step, float &M, float &L)
{
	M = MMA_NOTHING;
	L = 0.0f;
#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		float2 f;

		mma_merge(M, L, from[i * step].x, from[i * step].y, f.x, f.y);
		by[i * step] = f;
	}
}

/* The warps of the CTA. end[] is then (maximum, 1 / sum) of the lane, or (maximum, sum) of the CTA's part. */
static __device__ __forceinline__ void mma_merge_warps(const struct mma_args &a, const struct mma_lane &x, const struct mma_tables &t)
{
	if (threadIdx.x < t.even) {
		uint32_t r = threadIdx.x;
		float M = MMA_NOTHING, L = 0.0f;

		if (r < x.n_rows)
			mma_merge4(t.part + r, t.by_warp + r, t.even, M, L);
		if (x.cluster > 1u)
			t.end[r] = make_float2(M, L);
		else if (r < x.n_rows)
			mma_row_done(a, x, r, M, L, &t.end[r]);
	}
	__syncthreads();
}

/* Four outputs over the CTA's warps. e: of row r, channel c. */
template <int D>
static __device__ __forceinline__ float4 mma_over_warps(const struct mma_args &a, const struct mma_tables &t, uint32_t r, uint32_t c)
{
	float4 sum = make_float4(0, 0, 0, 0);

#pragma unroll
	for (uint32_t w = 0; w < MMA_WARPS; w++)
		mma_mix4(sum, *(const float4 *)(t.out + (w * a.rows + r) * (D + 4u) + c), t.by_warp[w * t.even + r]);
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

/* A lane of one CTA. */
template <int D>
static __device__ __forceinline__ void mma_write_alone(const struct mma_args &a, const struct mma_lane &x, const struct mma_tables &t)
{
	uint32_t vecs = a.head_dim / 4u;

#pragma unroll 1
	for (uint32_t e = threadIdx.x; e < x.n_rows * vecs; e += MMA_THREADS) {
		uint32_t r = mma_divide(e, a.by_vecs), c = (e - r * vecs) * 4u;
		float4 v = mma_over_warps<D>(a, t, r, c);
		float by = t.end[r].y;

		mma_store4(a, mma_row_at(a, x, r, a.out.stride) + c, make_float4(v.x * by, v.y * by, v.z * by, v.w * by));
	}
}

/* Every CTA of the cluster gets all maxima and sums, and its slice of all outputs. */
template <int D>
static __device__ __forceinline__ void mma_exchange(const struct mma_args &a, const struct mma_lane &x, const struct mma_tables &t)
{
	uint32_t pairs = t.even / 2u, vecs = a.head_dim / 4u;

#pragma unroll 1
	for (uint32_t i = threadIdx.x; i < x.cluster * pairs; i += MMA_THREADS) {
		uint32_t to = mma_divide(i, t.by_pairs), r = (i - to * pairs) * 2u;

		mma_push4(mma_shared(t.got + x.rank * t.even + r), t.bar, to, *(const float4 *)(t.end + r));
	}
#pragma unroll 1
	for (uint32_t e = threadIdx.x; e < x.n_rows * vecs; e += MMA_THREADS) {
		uint32_t r = mma_divide(e, a.by_vecs), to = mma_divide(e, t.by_slice);
		float4 v = mma_over_warps<D>(a, t, r, (e - r * vecs) * 4u);

		mma_push4(mma_shared(t.slices + x.rank * t.slice + (e * 4u - to * t.slice)), t.bar, to, v);
	}
	mma_bar_wait(t.bar);
}

/*
 * The parts that the CTAs of the cluster have: 4 quarters, or 4 times 4 groups. Four neighbouring threads have a row. The lane's (maximum, 1 / sum)
 * goes to part[], which nobody reads any more: end[] may still be on its way to other CTAs.
 */
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
			mma_merge4(t.got + q * 4u * t.even + r, t.by_part + q * 4u * t.even + r, t.even, m, l);
		}
#pragma unroll
		for (uint32_t i = 0; i < 4; i++) {
			float2 f;

			mma_merge(M, L, __shfl_sync(0xffffffffu, m, i, 4), __shfl_sync(0xffffffffu, l, i, 4), f.x, f.y);
			if (there && q == i)
				t.by_quarter[i * t.even + r] = f;
		}
		if (there && q == 0)
			mma_row_done(a, x, r, M, L, &t.part[r]);
	}
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
		cuda_store(a.out.data, a.out.type, mma_row_at(a, x, r, a.out.stride) + (e - r * a.head_dim), sum * t.part[r].y);
	}
}

/* --- the kernel --------------------------------------------------------------------------------------------------------------- */

/* Do kernels know queries that lie in memory as the products want them? Of those that run on, the ones with 16 columns get slower by it. */
template <int TYPE, int NT, bool RUN> static __device__ __forceinline__ constexpr bool mma_direct(void)
{
	return TYPE == GPU_BF16 && (!RUN || NT == 1);
}

/* The queries of the lane, and which one comes next. Needs a barrier after it. */
template <int TYPE, int D, int NT, bool RUN>
static __device__ __forceinline__ void mma_take(const struct mma_args &a, const struct mma_lane &x, const struct mma_tables &t, uint32_t &k,
						struct cuda_item *next, struct mma_queries<TYPE, D, NT> &q)
{
	uint32_t word = RUN && x.warp == MMA_WARPS - 1u ? mma_next_word(a, x.thread, ++k) : 0u;

	if constexpr (mma_direct<TYPE, NT, RUN>()) {
		if (a.direct_q)
			mma_direct_queries<D, NT>(a, x, q);
		else
			mma_fetch_queries<D>(a, x, t.out);
	} else {
		mma_fetch_queries<D>(a, x, t.out);
	}
	if (RUN && x.warp == MMA_WARPS - 1u)
		mma_next_item(a, x.thread, k, word, next);
}

/* Are the logits of a CTA's whole lane too long for shared memory? */
static __device__ __forceinline__ bool mma_is_far(const struct mma_args &a, const struct mma_lane &x)
{
	return x.cta_pages * GPU_PAGE_SLOTS > a.heat_floats;
}

/* The lane that x describes: its pages into the warps' parts, merged, written, its heat added. */
template <int TYPE, int D, int NT, int WAY>
static __device__ __forceinline__ void mma_one_lane(const struct mma_args &a, const struct mma_lane &x, const struct mma_plan &plan,
						    const struct mma_tables &t, char *shared, const struct mma_queries<TYPE, D, NT> &q,
						    struct mma_ring &r, const struct cuda_item &next, float *heat_at)
{
	constexpr bool RUN = mma_runs(WAY);
	bool far = WAY == MMA_SIXTEEN ? false : RUN ? mma_is_far(a, x) : !a.heat_floats;
	size_t room = RUN ? blockIdx.x : (size_t)x.tile * a.n_kv_heads + x.item.kv_head;
	float *kept = far ? a.logits + room * a.rows * a.scratch_slots + x.cta_page * GPU_PAGE_SLOTS : (float *)(shared + plan.logits);
	uint32_t stride = far ? a.scratch_slots : a.heat_floats;
	bool adds = mma_heat_adds(x);
	struct mma_quarter<NT> quarter;
	struct mma_own<4> four = {};
	struct mma_own<1> one = {};

	quarter.out = t.out + x.warp * a.rows * (D + 4u);
	quarter.any = false;
#pragma unroll
	for (int nt = 0; nt < NT; nt++) {
		quarter.m[nt][0] = quarter.m[nt][1] = MMA_NOTHING;
		quarter.l[nt][0] = quarter.l[nt][1] = 0.0f;
	}
	mma_read_lane<TYPE, D, NT, RUN>(a, x, q, r, x.heat ? kept : NULL, stride, next, quarter);
	if (RUN && x.heat && adds)
		heat_at = mma_heat_at(a, x, threadIdx.x * 4u);
	else if (x.heat && !adds && x.cluster == 1u)
		four = mma_look<4>(a, x, threadIdx.x * 4u);
	else if (x.heat && !adds)
		one = mma_look<1>(a, x, threadIdx.x);
#pragma unroll
	for (uint32_t nt = 0; nt < NT; nt++)
#pragma unroll
		for (uint32_t h = 0; h < 2; h++)
			if (x.g == 0 && nt * 8u + 2u * x.t4 + h < x.n_rows)
				t.part[x.warp * t.even + nt * 8u + 2u * x.t4 + h] = make_float2(quarter.m[nt][h], quarter.l[nt][h]);
	__syncthreads();
	mma_merge_warps(a, x, t);
	if (RUN || x.cluster == 1u) {
		if (RUN && NT == 1 && D <= 128 && x.heat && adds && far && a.far_depth)
			mma_heat_far(a, x, t.end, kept, stride, heat_at, mma_far_new(a, shared + plan.logits));
		else if (x.heat && adds)
			mma_heat_add<4>(a, x, t.end, kept, stride, heat_at);
		else if (x.heat)
			mma_heat<4>(a, x, t.end, kept, stride, four);
		mma_write_alone<D>(a, x, t);
		return;
	}
	mma_exchange<D>(a, x, t);
	mma_merge_parts(a, x, t);
	mma_write_slice(a, x, t);
	if (x.heat && adds)
		mma_heat_add<1>(a, x, t.part, kept, stride, heat_at);
	else if (x.heat)
		mma_heat<1>(a, x, t.part, kept, stride, one);
}

template <int TYPE, int D, int NT, int WAY>
static __global__ void __launch_bounds__(MMA_THREADS, 2) mma_kernel(const __grid_constant__ struct mma_args a)
{
	constexpr bool RUN = mma_runs(WAY);
	using size = mma_size<TYPE, D, NT>;
	extern __shared__ __align__(128) char shared[];
	struct mma_queries<TYPE, D, NT> q;
	struct cuda_item *next;
	struct mma_plan plan;
	struct mma_tables t;
	struct mma_ring r;
	struct mma_lane x;
	float *heat_at = NULL;
	uint32_t k, fresh;

	if (!mma_open<TYPE, WAY>(a, x, k)) {
		mma_after();
		return;
	}
	plan = mma_shared_plan(a.rows, a.head_dim, D, a.cluster, a.exact_q, a.heat_floats);
	next = (struct cuda_item *)(shared + plan.item);
	t = mma_tables_of<RUN>(shared, plan, a, x);
	if (x.cluster > 1u) {
		if (threadIdx.x == 0)
			mma_bar_new(t.bar, x.cluster * (t.even * 8u + mma_own_slice(a, x, t.slice) * 4u));
		mma_cluster_arrive();
	}
	mma_ring_new<TYPE, D, NT>(a, x, shared, (WAY == MMA_ANY && a.tile) || x.item.any_heat ? plan.ring : plan.logits, r);
	fresh = size::pages == 2u ? x.item.fresh_page & ~1u : x.item.fresh_page;
	/* Ahead of the kernel before: only pages that it cannot have written. That is the step's own append, if anything. */
#pragma unroll 1
	for (uint32_t fed = 0, waited = 0; fed <= r.stages; fed++) {
		if (!waited && (x.item.n != 1u || r.feed >= r.end || r.feed == fresh || fed == r.stages)) {
			mma_next();
			if (!RUN && x.heat && mma_heat_adds(x))
				heat_at = mma_heat_at(a, x, threadIdx.x * (x.cluster == 1u ? 4u : 1u));
			if (!RUN && x.cluster > 1u)
				mma_cluster_wait();	/* everyone's barrier is ready */
			mma_after();
			mma_take<TYPE, D, NT, RUN>(a, x, t, k, next, q);
			waited = 1;
		}
		if (fed < r.stages)
			mma_ring_feed<TYPE, D, NT>(a, x, r, fed);
	}
#pragma unroll 1
	for (;;) {
		__syncthreads();
		if (RUN)
			mma_ring_advance<TYPE, D, NT>(a, x, r, *next);
		if (!mma_direct<TYPE, NT, RUN>() || !a.direct_q) {
			mma_load_queries<TYPE, D, NT>(a, x, t.out, plan.lower, shared, q);
			__syncthreads();
		}
		mma_one_lane<TYPE, D, NT, WAY>(a, x, plan, t, shared, q, r, *next, heat_at);
		if (!RUN || !next->n)
			return;
		x.item = *next;
		x.tile = x.item.tile;
		mma_begin<TYPE>(a, x);
		next = (struct cuda_item *)(shared + plan.item) + (next == (struct cuda_item *)(shared + plan.item));
		__syncthreads();	/* all are done with the last lane's outputs */
		mma_take<TYPE, D, NT, RUN>(a, x, t, k, next, q);
	}
}

/* --- launches -------------------------------------------------------------------------------------------------------------------- */

template <int TYPE, int D, int NT, int WAY> static cudaError_t mma_configure(uint32_t shared_bytes, uint32_t cluster)
{
	cudaError_t e = cudaFuncSetAttribute(mma_kernel<TYPE, D, NT, WAY>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);

	if (e == cudaSuccess && cluster > 8u)
		e = cudaFuncSetAttribute(mma_kernel<TYPE, D, NT, WAY>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
	return e;
}

/* With max_clusters: ask how many clusters run at once, launch nothing. */
template <int TYPE, int D, int NT, int WAY>
static cudaError_t mma_launch_as(const struct mma_args &a, bool early, cudaStream_t s, int *max_clusters)
{
	cudaLaunchAttribute at[2];
	cudaLaunchConfig_t c = {};
	cudaError_t e = mma_configure<TYPE, D, NT, WAY>(a.shared_bytes, a.cluster);

	if (e != cudaSuccess)
		return e;
	c.gridDim = dim3(a.n_tiles * a.n_kv_heads * a.cluster);
	if (mma_runs(WAY) && c.gridDim.x > a.at_once)
		c.gridDim.x = a.at_once;
	c.blockDim = dim3(MMA_THREADS);
	c.dynamicSmemBytes = a.shared_bytes;
	c.stream = s;
	c.attrs = at;
	if (a.cluster > 1u) {
		at[c.numAttrs].id = cudaLaunchAttributeClusterDimension;
		at[c.numAttrs].val.clusterDim.x = a.cluster;
		at[c.numAttrs].val.clusterDim.y = at[c.numAttrs].val.clusterDim.z = 1;
		c.numAttrs++;
	}
	if (max_clusters)
		return cudaOccupancyMaxActiveClusters(max_clusters, mma_kernel<TYPE, D, NT, WAY>, &c);
	if (early) {
		at[c.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
		at[c.numAttrs].val.programmaticStreamSerializationAllowed = 1;
		c.numAttrs++;
	}
	return cudaLaunchKernelEx(&c, mma_kernel<TYPE, D, NT, WAY>, a);
}

template <int TYPE, int D, int NT>
static cudaError_t mma_launch_one(const struct mma_args &a, bool early, cudaStream_t s, int *max_clusters)
{
	if (!a.tile && a.cluster == 1u)
		return a.newest ? mma_launch_as<TYPE, D, NT, MMA_RUN_NEWEST>(a, early, s, max_clusters)
				: mma_launch_as<TYPE, D, NT, MMA_RUN>(a, early, s, max_clusters);
	if constexpr (NT == 1 && D <= 128)
		if (!a.tile && a.cluster == 16u && a.newest && a.heat_floats)
			return mma_launch_as<TYPE, D, NT, MMA_SIXTEEN>(a, early, s, max_clusters);
	return mma_launch_as<TYPE, D, NT, MMA_ANY>(a, early, s, max_clusters);
}

/* 16 columns only where registers last: heads of up to 128 channels. */
template <int TYPE> static cudaError_t mma_launch_type(const struct mma_args &a, bool early, cudaStream_t s, int *max_clusters)
{
	bool two = a.rows > 8u;

	switch (mma_padded(a.head_dim)) {
	case 64: return two ? mma_launch_one<TYPE, 64, 2>(a, early, s, max_clusters) : mma_launch_one<TYPE, 64, 1>(a, early, s, max_clusters);
	case 96: return two ? mma_launch_one<TYPE, 96, 2>(a, early, s, max_clusters) : mma_launch_one<TYPE, 96, 1>(a, early, s, max_clusters);
	case 128: return two ? mma_launch_one<TYPE, 128, 2>(a, early, s, max_clusters) : mma_launch_one<TYPE, 128, 1>(a, early, s, max_clusters);
	case 192: return mma_launch_one<TYPE, 192, 1>(a, early, s, max_clusters);
	default: return mma_launch_one<TYPE, 256, 1>(a, early, s, max_clusters);
	}
}

#endif
