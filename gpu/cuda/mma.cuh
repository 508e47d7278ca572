/*
 * Private to gpu/cuda/: the instructions that CUDA C++ has no words for: asynchronous copies into shared memory, matrix fragments, tensor cores,
 * clusters, and launches that begin before the kernel in front of them has ended. All but the last two work from sm_80 on.
 */
#ifndef GPU_CUDA_MMA_CUH
#define GPU_CUDA_MMA_CUH

#include "gpu/cuda/common.cuh"

#ifdef __CUDACC__

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define MMA_CLUSTERS 1
#else
#define MMA_CLUSTERS 0
#endif

static __device__ __forceinline__ uint32_t mma_shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* 2^x; within 2 units in the last place, subnormal results are 0. */
static __device__ __forceinline__ float mma_exp2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* --- copies ------------------------------------------------------------------------------------------------------------------ */

/* A hint for what is read once: it leaves the L2 before everything else. */
static __device__ __forceinline__ uint64_t mma_read_once(void)
{
	uint64_t policy;

	asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
	return policy;
}

/* 16 bytes, or zeros where `there` is false; src is then not read. */
static __device__ __forceinline__ void mma_copy16(uint32_t dst, const void *src, bool there, uint64_t policy)
{
	asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" :: "r"(dst), "l"(src), "r"(there ? 16 : 0),
		     "l"(policy) : "memory");
}

static __device__ __forceinline__ void mma_copy16_all(uint32_t dst, const void *src, uint64_t policy)
{
	asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" :: "r"(dst), "l"(src), "l"(policy) : "memory");
}

static __device__ __forceinline__ void mma_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }

/* Until at most n - 1 of the thread's groups of copies are under way; n is 1 .. 6. */
static __device__ __forceinline__ void mma_wait(uint32_t n)
{
	switch (n) {
	case 1: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
	case 2: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
	case 3: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
	case 4: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
	case 5: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
	default: asm volatile("cp.async.wait_group 5;" ::: "memory"); break;
	}
}

/* --- fragments and products ---------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ void mma_load4(uint32_t (&r)[4], uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

static __device__ __forceinline__ void mma_load4_turned(uint32_t (&r)[4], uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

/* The transpose of an 8 x 8 matrix of 16-bit numbers that lies over the warp. */
static __device__ __forceinline__ uint32_t mma_turn(uint32_t x)
{
	uint32_t y;

	asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
	return y;
}

/* Two floats as 16-bit numbers: a in the lower half. */
template <bool HALF> static __device__ __forceinline__ uint32_t mma_pack(float a, float b)
{
	if (HALF) {
		__half2 h = __floats2half2_rn(a, b);

		return *(uint32_t *)&h;
	}
	__nv_bfloat162 h = __floats2bfloat162_rn(a, b);

	return *(uint32_t *)&h;
}

template <bool HALF> static __device__ __forceinline__ float mma_rounded(float a)
{
	return HALF ? __half2float(__float2half_rn(a)) : __bfloat162float(__float2bfloat16_rn(a));
}

/* c += a b: a 16 x 16, b 16 x 8, c 16 x 8, float32 sums. */
template <bool HALF>
static __device__ __forceinline__ void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
	if (HALF)
		asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
			     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
			     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
	else
		asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
			     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
			     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* c += a b: a 16 x 32, b 32 x 8, both int8, c 16 x 8, int32. */
static __device__ __forceinline__ void mma_16832(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
		     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/*
 * Four int8 as float16, exactly: bytes 0 and 2 into `even`, 1 and 3 into `odd`. A byte in the mantissa of 1024, its sign bit turned over, makes
 * 1024 + 128 + x.
 */
static __device__ __forceinline__ void mma_from_int8(uint32_t x, uint32_t &even, uint32_t &odd)
{
	const uint32_t bias = 0x64806480u;	/* 1152, twice */
	uint32_t e = (x & 0x00ff00ffu) ^ bias, o = (x >> 8 & 0x00ff00ffu) ^ bias;
	__half2 a = __hsub2(*(__half2 *)&e, *(const __half2 *)&bias), b = __hsub2(*(__half2 *)&o, *(const __half2 *)&bias);

	even = *(uint32_t *)&a;
	odd = *(uint32_t *)&b;
}

#define MMA_INT8_BIAS 0x64806480u	/* float16: 1152, twice */

/* The same without the subtraction, so MMA_INT8_BIAS too large. */
static __device__ __forceinline__ void mma_from_int8_biased(uint32_t x, uint32_t &even, uint32_t &odd)
{
	x ^= 0x80808080u;
	even = __byte_perm(x, 0x64646464u, 0x4240);
	odd = __byte_perm(x, 0x64646464u, 0x4341);
}

/* --- clusters and early launches: nothing before sm_90 ---------------------------------------------------------------------------- */

static __device__ __forceinline__ uint32_t mma_cluster_size(void)
{
	uint32_t n = 1;

#if MMA_CLUSTERS
	asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(n));
#endif
	return n;
}

static __device__ __forceinline__ uint32_t mma_cluster_rank(void)
{
	uint32_t n = 0;

#if MMA_CLUSTERS
	asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(n));
#endif
	return n;
}

static __device__ __forceinline__ void mma_cluster_arrive(void)
{
#if MMA_CLUSTERS
	asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

static __device__ __forceinline__ void mma_cluster_wait(void)
{
#if MMA_CLUSTERS
	asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* A barrier in shared memory that opens once `bytes` have been pushed to it. One thread makes it ready; cluster_arrive() comes after. */
static __device__ __forceinline__ void mma_bar_new(uint32_t bar, uint32_t bytes)
{
#if MMA_CLUSTERS
	asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(bar) : "memory");
	asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
	asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
#endif
}

static __device__ __forceinline__ void mma_bar_wait(uint32_t bar)
{
#if MMA_CLUSTERS
	asm volatile("{\n.reg .pred p;\nW%=: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], 0;\n@p bra D%=;\nbra W%=;\nD%=:\n}"
		     :: "r"(bar) : "memory");
#endif
}

/* Four floats to where `local` is in CTA `rank` of the cluster; its barrier counts them. */
static __device__ __forceinline__ void mma_push4(uint32_t local, uint32_t bar, uint32_t rank, float4 v)
{
#if MMA_CLUSTERS
	uint32_t to, at;

	asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(local), "r"(rank));
	asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(bar), "r"(rank));
	asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];"
		     :: "r"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(at) : "memory");
#endif
}

/*
 * Programmatic dependent launch, for append and attend. mma_after(): from here on everything that earlier kernels of the stream wrote can be
 * seen; every CTA calls it, also one that has nothing to do, so that a kernel's end means the end of all before it. mma_next(): the next kernel
 * may begin. append calls it after mma_after(), attend before it: so when an attend begins, the only kernel that writes K and V and may
 * still run is the last append, and that writes tokens of the attend's own step.
 */
static __device__ __forceinline__ void mma_after(void)
{
#if MMA_CLUSTERS
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ void mma_next(void)
{
#if MMA_CLUSTERS
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
#endif
