/* Private to gpu/cuda/: a part of attend_mma.cuh: from a lane's logits to heat, once its log-sum-exp is known. */
#ifndef GPU_CUDA_ATTEND_HEAT_CUH
#define GPU_CUDA_ATTEND_HEAT_CUH

#include "gpu/cuda/attend_mma.cuh"
#include "gpu/cuda/heat.cuh"

/* Where the heat of slot i of the CTA's pages is; NULL when there is none. */
static __device__ __forceinline__ float *mma_heat_at(const struct mma_args &a, const struct mma_lane &x, uint32_t i)
{
	uint32_t slot = x.cta_page * GPU_PAGE_SLOTS + i;
	char *block;

	if (i >= x.cta_pages * GPU_PAGE_SLOTS)
		return NULL;
	block = cuda_at(a.view, x.item.block[slot / GPU_BLOCK_SLOTS]);
	return block ? (float *)block + GPU_BLOCK_SLOTS + slot % GPU_BLOCK_SLOTS : NULL;
}

static __device__ __forceinline__ void mma_shared_float4(uint32_t at, float (&v)[4])
{
	asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3]) : "r"(at) : "memory");
}

/* N neighbouring floats: 4, or 1. */
template <int N> static __device__ __forceinline__ void mma_get(const float *from, float (&to)[N])
{
	if constexpr (N == 4) {
		float4 v = *(const float4 *)from;

		to[0] = v.x;
		to[1] = v.y;
		to[2] = v.z;
		to[3] = v.w;
	} else {
		to[0] = *from;
	}
}

template <int N> static __device__ __forceinline__ void mma_put(float *to, const float (&from)[N])
{
	if constexpr (N == 4)
		*(float4 *)to = make_float4(from[0], from[1], from[2], from[3]);
	else
		*to = from[0];
}

/* The heat of N slots that a thread owns, already on its way. */
template <int N> struct mma_own {
	float *at;
	float heat[GPU_MAX_HEAT][N];
};

template <int N> static __device__ __forceinline__ struct mma_own<N> mma_look(const struct mma_args &a, const struct mma_lane &x, uint32_t i)
{
	struct mma_own<N> h = {};

	h.at = mma_heat_at(a, x, i);
	if (h.at)
		mma_get<N>(h.at, h.heat[0]);
	if (h.at && x.item.n_heat > 1u)
		mma_get<N>(h.at + GPU_BLOCK_SLOTS, h.heat[1]);
	return h;
}

/* z: logits of the slots, row by row. */
template <int N>
static __device__ __forceinline__ void mma_add_queries(const struct mma_args &a, const struct mma_lane &x, const float2 *end, const float *z,
						       uint32_t stride, struct mma_own<N> &own)
{
#pragma unroll 1
	for (uint32_t j = 0, r = 0; j < x.item.n; j++, r += a.group) {
		float sum[N] = {}, squares[N] = {};
		bool seen[N] = {};

		if (!mma_counts(x.item, j))
			continue;
#pragma unroll 4
		for (uint32_t h = 0; h < a.group; h++) {
			float2 e = end[r + h];
			float logit[N];

			mma_get<N>(z + (r + h) * stride, logit);
#pragma unroll
			for (int i = 0; i < N; i++) {
				float p = __fmul_rn(mma_exp2(__fsub_rn(logit[i], e.x)), e.y);

				sum[i] = __fadd_rn(sum[i], p);
				squares[i] = __fadd_rn(squares[i], __fmul_rn(p, p));
				seen[i] = logit[i] != __int_as_float(0xff800000);
			}
		}
#pragma unroll
		for (uint32_t k = 0; k < GPU_MAX_HEAT; k++)
#pragma unroll
			for (int i = 0; i < N; i++) {
				float heat = heat_after(x.item.heat[k], own.heat[k][i], sum[i], squares[i]);

				own.heat[k][i] = seen[i] ? heat : own.heat[k][i];	/* what the query may not see stays as it is */
			}
	}
}

/* Add to N neighbouring floats; -inf: leave that one alone. */
template <int N> static __device__ __forceinline__ void mma_red(float *at, const float (&v)[N])
{
	const float none = __int_as_float(0xff800000);

#if MMA_CLUSTERS
	if constexpr (N == 4) {
		if (v[0] != none && v[1] != none && v[2] != none && v[3] != none) {
			asm volatile("red.global.add.v4.f32 [%0], {%1,%2,%3,%4};"
				     :: "l"(at), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
			return;
		}
	}
#endif
#pragma unroll
	for (int i = 0; i < N; i++)
		if (v[i] != none)
			asm volatile("red.global.add.f32 [%0], %1;" :: "l"(at + i), "f"(v[i]) : "memory");
}

/* What a thread's N slots receive, given their logits of one head after the other. */
template <int N> static __device__ __forceinline__ void mma_add_head(float2 end, const float (&logit)[N], float (&sum)[N])
{
#pragma unroll
	for (int j = 0; j < N; j++)
		sum[j] = __fadd_rn(sum[j], __fmul_rn(mma_exp2(__fsub_rn(logit[j], end.x)), end.y));
}

/*
 * mma_heat() of the usual heat (mma_sums()): nobody else adds to a slot in this step, so the memory may, and there is nothing to wait for. The
 * same bits, but for numbers below 2^-126. at: where the heat of the thread's first slots is.
 */
template <int N>
static __device__ __forceinline__ void mma_heat_add(const struct mma_args &a, const struct mma_lane &x, const float2 *end,
						    const float *kept, uint32_t stride, float *at)
{
#pragma unroll 1
	for (uint32_t i = threadIdx.x * N; i < x.cta_pages * GPU_PAGE_SLOTS; i += MMA_THREADS * N) {
		float *ahead = mma_heat_at(a, x, i + MMA_THREADS * N), sum[N] = {}, logit[N];

#pragma unroll 4
		for (uint32_t h = 0; h < a.group; h++) {
			mma_get<N>(kept + i + h * stride, logit);
			mma_add_head<N>(end[h], logit, sum);
		}
#pragma unroll
		for (int j = 0; j < N; j++)	/* no head saw the slot: not the last one either */
			sum[j] = logit[j] == __int_as_float(0xff800000) ? logit[j] : sum[j];
		if (at)
			mma_red<N>(at, sum);
		at = ahead;
	}
}

/*
 * The same where the logits are in scratch, that is in the L2: they pass through the shared memory that shorter lanes' logits have, a few
 * heads of MMA_FAR_SLOTS slots at a time. A thread copies what it adds up itself, so nobody waits for anybody else.
 */
struct mma_far {
	uint32_t at, heads, depth;	/* the thread's place in shared memory; heads at a time; how often they fit */
	uint32_t slot, head;		/* what to ask for next */
};

static __device__ __forceinline__ struct mma_far mma_far_new(const struct mma_args &a, const char *room)
{
	struct mma_far f;

	f.heads = min(a.group, MMA_FAR_HEADS);
	f.depth = a.far_depth;
	f.at = mma_shared(room) + threadIdx.x * 16u;
	f.slot = threadIdx.x * 4u;
	f.head = 0;
	return f;
}

static __device__ __forceinline__ void mma_far_feed(const struct mma_args &a, const struct mma_lane &x, const float *kept, uint32_t stride,
						    uint32_t stage, struct mma_far &f)
{
	const float *from = kept + f.slot + f.head * stride;
	uint32_t to = f.at + stage * f.heads * MMA_FAR_SLOTS * 4u;

#pragma unroll
	for (uint32_t k = 0; k < MMA_FAR_HEADS; k++)
		if (f.head + k < a.group && f.slot < x.cta_pages * GPU_PAGE_SLOTS)
			asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to + k * MMA_FAR_SLOTS * 4u), "l"(from + k * stride)
				     : "memory");
	mma_commit();
	f.head += MMA_FAR_HEADS;
	if (f.head >= a.group) {
		f.head = 0;
		f.slot += MMA_FAR_SLOTS;
	}
}

/* What a warp has read of the logits in scratch need not go to memory when it leaves the L2. 128 bytes are 8 neighbouring threads'. */
static __device__ __forceinline__ void mma_far_forget(const struct mma_args &a, const struct mma_lane &x, const float *kept,
						      uint32_t stride)
{
	uint32_t chunks = (x.cta_pages * GPU_PAGE_SLOTS + MMA_FAR_SLOTS - 1u) / MMA_FAR_SLOTS;

	__syncwarp();
#pragma unroll 1
	for (uint32_t h = 0; h < a.group; h++)
#pragma unroll 1
		for (uint32_t i = x.thread; i < chunks * 4u; i += 32u) {
			uint32_t slot = i / 4u * MMA_FAR_SLOTS + x.warp * 128u + i % 4u * 32u;

			if (slot < x.cta_pages * GPU_PAGE_SLOTS)
				asm volatile("discard.global.L2 [%0], 128;" :: "l"(kept + h * stride + slot) : "memory");
		}
}

static __device__ __forceinline__ void mma_heat_far(const struct mma_args &a, const struct mma_lane &x, const float2 *end,
						    const float *kept, uint32_t stride, float *at, struct mma_far f)
{
	uint32_t stage = 0;

#pragma unroll 1
	for (uint32_t s = 0; s < f.depth; s++)
		mma_far_feed(a, x, kept, stride, s, f);
#pragma unroll 1
	for (uint32_t i = threadIdx.x * 4u; i < x.cta_pages * GPU_PAGE_SLOTS; i += MMA_FAR_SLOTS) {
		float *ahead = mma_heat_at(a, x, i + MMA_FAR_SLOTS), sum[4] = {}, logit[4];

#pragma unroll 1
		for (uint32_t h = 0; h < a.group; h += MMA_FAR_HEADS) {
			mma_wait(f.depth);
#pragma unroll
			for (uint32_t k = 0; k < MMA_FAR_HEADS; k++)
				if (h + k < a.group) {
					mma_shared_float4(f.at + (stage * f.heads + k) * MMA_FAR_SLOTS * 4u, logit);
					mma_add_head<4>(end[h + k], logit, sum);
				}
			mma_far_feed(a, x, kept, stride, stage, f);
			stage = stage + 1u < f.depth ? stage + 1u : 0u;
		}
#pragma unroll
		for (int j = 0; j < 4; j++)	/* no head saw the slot: not the last one either */
			sum[j] = logit[j] == __int_as_float(0xff800000) ? logit[j] : sum[j];
		if (at)
			mma_red<4>(at, sum);
		at = ahead;
	}
	mma_far_forget(a, x, kept, stride);
}

/* Heat of the CTA's slots, N a thread. ahead: of the thread's first. */
template <int N>
static __device__ __forceinline__ void mma_heat(const struct mma_args &a, const struct mma_lane &x, const float2 *end, const float *kept,
						uint32_t stride, struct mma_own<N> ahead)
{
#pragma unroll 1
	for (uint32_t i = threadIdx.x * N; i < x.cta_pages * GPU_PAGE_SLOTS; i += MMA_THREADS * N) {
		struct mma_own<N> own = ahead;

		ahead = mma_look<N>(a, x, i + MMA_THREADS * N);
		if (!own.at)
			continue;
		mma_add_queries<N>(a, x, end, kept + i, stride, own);
		mma_put<N>(own.at, own.heat[0]);
		if (x.item.n_heat > 1u)
			mma_put<N>(own.at + GPU_BLOCK_SLOTS, own.heat[1]);
	}
}

#endif
