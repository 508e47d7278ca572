/* Private to gpu/cuda/: the last part of attend_mma.cuh: the kernel itself, with its launch. */
#ifndef GPU_CUDA_ATTEND_KERNEL_CUH
#define GPU_CUDA_ATTEND_KERNEL_CUH

#include "gpu/cuda/attend_heat.cuh"
#include "gpu/cuda/attend_tree.cuh"

/* --- the kernel --------------------------------------------------------------------------------------------------------------- */

/* Do kernels know queries that lie in memory as the products want them? Of those that run on, the ones with 16 columns get slower by it. */
template <int TYPE, int NT, bool RUN> static __device__ __forceinline__ constexpr bool mma_direct(void)
{
	return TYPE == GPU_BF16 && (!RUN || NT == 1);
}

/* Does a CTA that runs on ask for the next lane's queries early? Those that lie as the products want them gain nothing by it. */
template <int TYPE, int NT, bool RUN> static __device__ __forceinline__ constexpr bool mma_looks_ahead(void)
{
	return RUN && NT == 1 && !mma_direct<TYPE, NT, RUN>();
}

/* The lane's queries: straight into fragments, or into shared memory, which needs a barrier after it. */
template <int TYPE, int D, int NT, bool RUN>
static __device__ __forceinline__ void mma_take(const struct mma_args &a, const struct mma_lane &x, const struct mma_tables &t,
						struct mma_queries<TYPE, D, NT> &q)
{
	if constexpr (mma_direct<TYPE, NT, RUN>()) {
		if (a.direct_q)
			mma_direct_queries<D, NT>(a, x, q);
		else
			mma_fetch_queries<D>(a, x, t.out);
	} else {
		mma_fetch_queries<D>(a, x, t.out);
	}
}

/* The lane's query on its way to where it is kept: 16 bytes of a thread. The CTA that has a cluster's last part has the least to do. */
struct mma_query {
	const uint4 *from;
	uint4 *to;
	uint32_t vecs;			/* of 16 bytes, of all threads; 0: it is not kept, or not by this CTA */
	uint4 v;
};

template <int D> static __device__ __forceinline__ struct mma_query mma_look_query(const struct mma_args &a, const struct mma_lane &x)
{
	struct mma_query k = {};

	if (!x.keeps || x.rank + 1u != x.cluster)
		return k;
	k.vecs = a.group * (D / 8u);
	k.from = (const uint4 *)((const uint16_t *)a.q.data + (int64_t)x.item.row * a.q.stride + (int64_t)x.item.kv_head * a.group * D) +
		 threadIdx.x;
	k.to = (uint4 *)(a.keep_q + mma_kept_at(a, x) * D) + threadIdx.x;
	if (threadIdx.x < k.vecs)
		k.v = *k.from;
	return k;
}

static __device__ __forceinline__ void mma_keep_query(const struct mma_query &k)
{
	if (threadIdx.x < k.vecs)
		*k.to = k.v;
#pragma unroll 1
	for (uint32_t e = MMA_THREADS; threadIdx.x + e < k.vecs; e += MMA_THREADS)
		k.to[e] = k.from[e];
}

/* Can kernels of this head size keep queries? */
template <int D> static __host__ __device__ constexpr bool mma_can_keep(void) { return D == 64 || D == 128; }

/* The lane that x describes: its pages into the warps' parts, merged, written, its heat added. */
template <int TYPE, int D, int NT, int WAY>
static __device__ __forceinline__ void mma_one_lane(const struct mma_args &a, const struct mma_lane &x, const struct mma_plan &plan,
						    const struct mma_tables &t, char *shared, const struct mma_queries<TYPE, D, NT> &q,
						    struct mma_ring &r, const struct cuda_item &next, uint32_t k, float *heat_at,
						    struct mma_ahead &ahead)
{
	constexpr bool RUN = mma_runs(WAY);
	bool far = WAY == MMA_SIXTEEN ? false : RUN ? x.cta_pages * GPU_PAGE_SLOTS > a.heat_floats : !a.heat_floats;
	size_t room = RUN ? blockIdx.x : (size_t)x.tile * a.n_kv_heads + x.item.kv_head;
	float *kept = far ? a.logits + room * a.rows * a.scratch_slots + x.cta_page * GPU_PAGE_SLOTS : (float *)(shared + plan.logits);
	uint32_t stride = far ? a.scratch_slots : a.heat_floats;
	bool adds = mma_sums(x.item);
	struct mma_quarter<NT> quarter;
	struct mma_own<4> four = {};
	struct mma_own<1> one = {};
	struct mma_query query = {};

	quarter.out = t.out + x.warp * a.rows * (D + 4u);
	quarter.any = false;
#pragma unroll
	for (int nt = 0; nt < NT; nt++) {
		quarter.m[nt][0] = quarter.m[nt][1] = MMA_NOTHING;
		quarter.l[nt][0] = quarter.l[nt][1] = 0.0f;
	}
	mma_read_lane<TYPE, D, NT, WAY>(a, x, q, r, x.heat ? kept : NULL, stride, next, quarter);
	if constexpr (mma_looks_ahead<TYPE, NT, RUN>())
		ahead = mma_look_ahead<D>(a, x, k, next);
	if constexpr (mma_can_keep<D>())
		query = mma_look_query<D>(a, x);
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
	if (RUN || x.cluster == 1u) {
		if constexpr (TYPE != GPU_Q8 && NT == 1)	/* the others are bound by instructions, and this is more of them */
			if (!x.heat) {
				mma_write_alone<D, true>(a, x, t);
				mma_keep_query(query);
				return;
			}
		mma_merge_warps(a, x, t);
		if (RUN && NT == 1 && D <= 128 && x.heat && adds && far && a.far_depth)
			mma_heat_far(a, x, t.end, kept, stride, heat_at, mma_far_new(a, shared + plan.logits));
		else if (x.heat && adds)
			mma_heat_add<4>(a, x, t.end, kept, stride, heat_at);
		else if (x.heat)
			mma_heat<4>(a, x, t.end, kept, stride, four);
		mma_write_alone<D, false>(a, x, t);
		mma_keep_query(query);
		return;
	}
	mma_exchange<D>(a, x, t);
	if (WAY == MMA_SIXTEEN && !x.heat && t.slice <= 32u && x.n_rows <= 8u) {	/* what is left is one warp's: no barrier */
		if (x.warp == 0) {
			mma_merge_parts<true>(a, x, t);
			mma_write_slice(a, x, t);
		}
		mma_keep_query(query);
		return;
	}
	mma_merge_parts<false>(a, x, t);
	mma_write_slice(a, x, t);
	if (x.heat && adds)
		mma_heat_add<1>(a, x, t.end, kept, stride, heat_at);
	else if (x.heat)
		mma_heat<1>(a, x, t.end, kept, stride, one);
	mma_keep_query(query);
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
	struct mma_ahead ahead;
	uint32_t k, fresh, word = 0;
	bool finds, left;	/* has the warp to find the CTA's next lane? did anybody leave something for others in shared memory? */

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
	mma_ring_new<TYPE, D, NT>(a, x, shared, (WAY == MMA_ANY && a.tile) || mma_any_heat(a, x) ? plan.ring : plan.logits, r);
	fresh = size::pages == 2u ? x.item.fresh_page & ~1u : x.item.fresh_page;
	finds = RUN && x.warp == MMA_WARPS - 1u;
	if (finds)
		word = mma_next_word(a, x.thread, ++k);
	/* Ahead of the kernel before: only pages that it cannot have written. That is the step's own append, if anything. */
#pragma unroll 1
	for (uint32_t fed = 0, waited = 0; fed <= r.stages; fed++) {
		if (!waited && (x.item.n != 1u || r.feed >= r.end || r.feed == fresh || fed == r.stages)) {
			if (finds)
				mma_next_item(a, x.thread, k, word, next);
			if (RUN)	/* here, where there is something else to wait for, instead of behind the queries */
				__syncthreads();
			mma_next();
			if (!RUN && x.heat && mma_sums(x.item))
				heat_at = mma_heat_at(a, x, threadIdx.x * (x.cluster == 1u ? 4u : 1u));
			if (!RUN && x.cluster > 1u)
				mma_cluster_wait();	/* everyone's barrier is ready */
			mma_after();
			mma_take<TYPE, D, NT, RUN>(a, x, t, q);
			waited = 1;
		}
		if (fed < r.stages)
			mma_ring_feed<TYPE, D, NT>(a, x, r, fed);
	}
	left = WAY == MMA_ANY || !mma_direct<TYPE, NT, RUN>() || !a.direct_q;
#pragma unroll 1
	for (;; left = true) {
		if (left)
			__syncthreads();
		if (RUN)
			mma_ring_advance<TYPE, D, NT>(a, x, r, *next);
		if (!mma_direct<TYPE, NT, RUN>() || !a.direct_q) {
			mma_load_queries<TYPE, D, NT>(a, x, t.out, plan.lower, shared, q);
			__syncthreads();
		}
		mma_one_lane<TYPE, D, NT, WAY>(a, x, plan, t, shared, q, r, *next, k, heat_at, ahead);
		if (!RUN || !next->n)
			return;
		x.item = *next;
		x.tile = x.item.tile;
		mma_begin<TYPE>(a, x);
		next = (struct cuda_item *)(shared + plan.item) + (next == (struct cuda_item *)(shared + plan.item));
		__syncthreads();	/* all are done with the last lane's outputs */
		if (finds)
			k++;
		if constexpr (mma_looks_ahead<TYPE, NT, RUN>()) {
			word = ahead.word;
			mma_fetched_queries<D>(a, x, ahead, t.out);
		} else {
			word = finds ? mma_next_word(a, x.thread, k) : 0u;
			mma_take<TYPE, D, NT, RUN>(a, x, t, q);
		}
		if (finds)
			mma_next_item(a, x.thread, k, word, next);
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
	case 64:
		return two ? mma_launch_one<TYPE, 64, 2>(a, early, s, max_clusters)
			   : mma_launch_one<TYPE, 64, 1>(a, early, s, max_clusters);
	case 96:
		return two ? mma_launch_one<TYPE, 96, 2>(a, early, s, max_clusters)
			   : mma_launch_one<TYPE, 96, 1>(a, early, s, max_clusters);
	case 128:
		return two ? mma_launch_one<TYPE, 128, 2>(a, early, s, max_clusters)
			   : mma_launch_one<TYPE, 128, 1>(a, early, s, max_clusters);
	case 192: return mma_launch_one<TYPE, 192, 1>(a, early, s, max_clusters);
	default: return mma_launch_one<TYPE, 256, 1>(a, early, s, max_clusters);
	}
}

#endif
