/*
 * Private to gpu/cuda/: products of a warpgroup (four warps), which only sm_90a has. A comes from registers, 16 rows a warp, as
 * mma_16816() wants it, and so do the sums; B lies in shared memory, in panels of 64 numbers of 16 bits: a row is 128 bytes, whose piece
 * c of 16 bytes lies where piece c ^ (row % 8) would (wg_piece()). Panels begin at multiples of 1024 bytes. Also copies without a hint
 * for the L2.
 */
#ifndef GPU_CUDA_WGMMA_CUH
#define GPU_CUDA_WGMMA_CUH

#include "gpu/cuda/mma.cuh"

#ifdef __CUDACC__

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WG_MMA 1
#else
#define WG_MMA 0
#endif

#define WG_PANEL 64u		/* numbers of a row of a panel */
#define WG_ROW 128u		/* bytes of it */

/* Where piece c of row r of a panel is, in bytes. */
static __device__ __forceinline__ uint32_t wg_piece(uint32_t r, uint32_t c) { return r * WG_ROW + (c ^ r % 8u) * 16u; }

/* 16 bytes into shared memory, or zeros where `there` is false; src is then not read. */
static __device__ __forceinline__ void wg_copy16(uint32_t dst, const void *src, bool there)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(dst), "l"(src), "r"(there ? 16 : 0) : "memory");
}

static __device__ __forceinline__ void wg_copy16_all(uint32_t dst, const void *src)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(dst), "l"(src) : "memory");
}

static __device__ __forceinline__ void wg_copy4(uint32_t dst, const void *src)
{
	asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(dst), "l"(src) : "memory");
}

/*
 * A barrier in shared memory that opens once `count` threads have come, and again after as many more: its phases are numbered from 0, and
 * whoever waits says whether for an even or an odd one. Whoever waits for an odd one at first does not wait.
 */
static __device__ __forceinline__ void wg_bar_new(uint32_t bar, uint32_t count)
{
	asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(bar), "r"(count) : "memory");
}

static __device__ __forceinline__ void wg_bar_arrive(uint32_t bar)
{
	asm volatile("{\n.reg .b64 s;\nmbarrier.arrive.shared.b64 s, [%0];\n}" :: "r"(bar) : "memory");
}

/* The same, as soon as the thread's copies so far are there. */
static __device__ __forceinline__ void wg_bar_copied(uint32_t bar)
{
	asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" :: "r"(bar) : "memory");
}

static __device__ __forceinline__ void wg_bar_wait(uint32_t bar, uint32_t odd)
{
	uint32_t done;

	do
#if __CUDA_ARCH__ >= 900
		asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
#else
		asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
#endif
			     : "=r"(done) : "r"(bar), "r"(odd) : "memory");
	while (!done);
}

/* Until at most N of the thread's groups of copies are under way. */
template <int N>
static __device__ __forceinline__ void wg_wait_copies(void) { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

#if WG_MMA

/* What the thread wrote to shared memory, by copies that it has waited for as well, is there for products after the next barrier. */
static __device__ __forceinline__ void wg_written(void) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
static __device__ __forceinline__ void wg_begin(void) { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void wg_commit(void) { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* Until at most N groups of products are under way. Whoever reads sums next says so by wg_touch(). */
template <int N>
static __device__ __forceinline__ void wg_wait(void) { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }

/* The compiler must not move what makes or uses these registers over this place. */
template <int N> static __device__ __forceinline__ void wg_touch(float (&c)[N][4])
{
#pragma unroll
	for (int i = 0; i < N; i++)
		asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3]) :: "memory");
}

template <int N> static __device__ __forceinline__ void wg_touch(uint32_t (&a)[N][4])
{
#pragma unroll
	for (int i = 0; i < N; i++)
		asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3]) :: "memory");
}

/* Rows of B are columns of the product (K), 1024 bytes every 8 of them: panels are selected by their address. */
static __device__ __forceinline__ uint64_t wg_rows(uint32_t shared)
{
	return (uint64_t)(shared >> 4 & 0x3fffu) | 1ull << 16 | (uint64_t)(1024u >> 4) << 32 | 1ull << 62;
}

/* Rows of B are what is summed over (V): the panels, `panel` bytes apart, hold the columns. */
static __device__ __forceinline__ uint64_t wg_turned(uint32_t shared, uint32_t panel)
{
	return (uint64_t)(shared >> 4 & 0x3fffu) | (uint64_t)(panel >> 4) << 16 | (uint64_t)(1024u >> 4) << 32 | 1ull << 62;
}

#define WG_SUMS(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define WG_SUMS4(i) WG_SUMS(i), WG_SUMS(i + 1), WG_SUMS(i + 2), WG_SUMS(i + 3)
#define WG_SUMS16(i) WG_SUMS4(i), WG_SUMS4(i + 4), WG_SUMS4(i + 8), WG_SUMS4(i + 12)
#define WG_REST "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"(TURNED)
#define WG_NAMES16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define WG_NAMES32 WG_NAMES16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WG_NAMES64 WG_NAMES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54," \
	"%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WG_TEXT(n, type, sums, a0, a1, a2, a3, b, add, turned)									\
	"{\n.reg .pred p;\nsetp.ne.b32 p, %" #add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type		\
	" {" sums "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #b ", p, 1, 1, %" #turned ";\n}"

/* c = a b, or with `add` c += a b; 8 N columns. B's rows are columns, or (TURNED) what is summed over. */
template <bool HALF, int TURNED>
static __device__ __forceinline__ void wg_mma(float (&c)[4][4], const uint32_t (&a)[4], uint64_t b, bool add)
{
	if (HALF)
		asm volatile(WG_TEXT(32, "f16", WG_NAMES16, 16, 17, 18, 19, 20, 21, 22) : WG_SUMS4(0) : WG_REST);
	else
		asm volatile(WG_TEXT(32, "bf16", WG_NAMES16, 16, 17, 18, 19, 20, 21, 22) : WG_SUMS4(0) : WG_REST);
}

template <bool HALF, int TURNED>
static __device__ __forceinline__ void wg_mma(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b, bool add)
{
	if (HALF)
		asm volatile(WG_TEXT(64, "f16", WG_NAMES32, 32, 33, 34, 35, 36, 37, 38) : WG_SUMS4(0), WG_SUMS4(4) : WG_REST);
	else
		asm volatile(WG_TEXT(64, "bf16", WG_NAMES32, 32, 33, 34, 35, 36, 37, 38) : WG_SUMS4(0), WG_SUMS4(4) : WG_REST);
}

template <bool HALF, int TURNED>
static __device__ __forceinline__ void wg_mma(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, bool add)
{
	if (HALF)
		asm volatile(WG_TEXT(128, "f16", WG_NAMES64, 64, 65, 66, 67, 68, 69, 70) : WG_SUMS16(0) : WG_REST);
	else
		asm volatile(WG_TEXT(128, "bf16", WG_NAMES64, 64, 65, 66, 67, 68, 69, 70) : WG_SUMS16(0) : WG_REST);
}

#endif
#endif
#endif
