/* Private to gpu/cuda/: a part of attend_mma.cuh: what a warp does with a page of 16-bit slots. */
#ifndef GPU_CUDA_ATTEND_PAGE_CUH
#define GPU_CUDA_ATTEND_PAGE_CUH

#include "gpu/cuda/attend_mma.cuh"

/* --- a strip ----------------------------------------------------------------------------------------------------------------- */

/* Outputs of some slots, relative to 2^m: channels on the rows of fragments, pairs on the columns. */
template <int D, int NT> struct mma_sum {
	float m[NT][2], l[NT][2], o[NT][D / 16][4];
};

/*
 * What q8 adds to a strip: sums of p * offset, per thread as l is; a power of two not below any scale of V, which o is relative to; and
 * what o is too large by, since int8 comes with a bias (mma_from_int8_biased): bias[..][h] for columns h, summed up by the same products.
 */
template <int NT> struct mma_more {
	float offset[NT][2], bias[NT][4], unit;
};

template <int D, int NT> static __device__ __forceinline__ void mma_clear(struct mma_sum<D, NT> &s)
{
#pragma unroll
	for (int nt = 0; nt < NT; nt++) {
		s.m[nt][0] = s.m[nt][1] = MMA_NOTHING;
		s.l[nt][0] = s.l[nt][1] = 0.0f;
#pragma unroll
		for (int j = 0; j < D / 16; j++)
			s.o[nt][j][0] = s.o[nt][j][1] = s.o[nt][j][2] = s.o[nt][j][3] = 0.0f;
	}
}

template <int NT> static __device__ __forceinline__ void mma_clear(struct mma_more<NT> &more)
{
#pragma unroll
	for (int nt = 0; nt < NT; nt++) {
		more.offset[nt][0] = more.offset[nt][1] = 0.0f;
		more.bias[nt][0] = more.bias[nt][1] = more.bias[nt][2] = more.bias[nt][3] = 0.0f;
	}
	more.unit = 0.0f;
}

/* Logits of pages: c[page][nt][0..1]: slot g, columns 2 t4 and 2 t4 + 1; c[page][nt][2..3]: slot g + 8. */
template <int NT, uint32_t PAGES> using mma_paged = float[PAGES][NT][4];
template <int TYPE, int D, int NT> using mma_logits = mma_paged<NT, mma_size<TYPE, D, NT>::pages>;

static __device__ __forceinline__ uint2 mma_shared_pair(uint32_t at)
{
	uint2 v;

	asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
	return v;
}

/*
 * Rows of 16-bit slots of up to two pages, as fragments that are read from shared memory when they are asked for. A thread reads a piece
 * of 16 bytes: of K a slot's, of V, which turns round on the way, too; places are mma_size::place()'s.
 */
template <int TYPE, int D, int NT> struct mma_in_place {
	using size = mma_size<TYPE, D, NT>;
	uint32_t k_at, k_place, v_at, v_place, step;

	/* at: the first page; step: from one to the next. */
	__device__ __forceinline__ mma_in_place(const struct mma_lane &x, uint32_t at, uint32_t step)
		: k_at(at + ((x.thread & 7u) + (x.thread >> 3 & 1u) * 8u) * size::row), k_place(size::place(x.thread) ^ x.thread >> 4),
		  v_at(at + (GPU_PAGE_SLOTS + (x.thread & 7u) + (x.thread >> 4) * 8u) * size::row),
		  v_place(size::place(x.thread) ^ (x.thread >> 3 & 1u)), step(step)
	{
	}

	/* Of page u: channels 16 j .. of K, and of V. */
	__device__ __forceinline__ void k(uint32_t u, uint32_t j, uint32_t (&f)[4]) const
	{
		mma_load4(f, k_at + u * step + (j * 2u ^ k_place) * 16u);
	}

	__device__ __forceinline__ void v(uint32_t u, uint32_t j, uint32_t (&f)[4]) const
	{
		mma_load4_turned(f, v_at + u * step + (j * 2u ^ v_place) * 16u);
	}
};

/*
 * The same, taken out of shared memory all at once, so that other pages may come there while these are worked on, and no product waits
 * for its fragment. 32 registers of a thread for a page of head_dim 64.
 */
template <int TYPE, int D, int NT> struct mma_taken {
	static constexpr uint32_t pages = mma_size<TYPE, D, NT>::pages;
	uint32_t ks[pages][D / 16u][4], vs[pages][D / 16u][4];

	__device__ __forceinline__ explicit mma_taken(const struct mma_in_place<TYPE, D, NT> &rows)
	{
#pragma unroll
		for (uint32_t u = 0; u < pages; u++)
#pragma unroll
			for (uint32_t j = 0; j < D / 16u; j++)
				rows.k(u, j, ks[u][j]);
#pragma unroll
		for (uint32_t u = 0; u < pages; u++)
#pragma unroll
			for (uint32_t j = 0; j < D / 16u; j++)
				rows.v(u, j, vs[u][j]);
	}

	__device__ __forceinline__ void k(uint32_t u, uint32_t j, uint32_t (&f)[4]) const
	{
#pragma unroll
		for (int i = 0; i < 4; i++)
			f[i] = ks[u][j][i];
	}

	__device__ __forceinline__ void v(uint32_t u, uint32_t j, uint32_t (&f)[4]) const
	{
#pragma unroll
		for (int i = 0; i < 4; i++)
			f[i] = vs[u][j][i];
	}
};

/* K of 16 bits, times the queries, added to c. */
template <int TYPE, int D, int NT, uint32_t PAGES, typename ROWS>
static __device__ __forceinline__ void mma_products(const struct mma_lane &x, const struct mma_queries<TYPE, D, NT> &q, const ROWS &rows,
						    mma_paged<NT, PAGES> &c)
{
	using size = mma_size<TYPE, D, NT>;
	mma_paged<NT, PAGES> c2 = {};
	uint32_t f[4];

#pragma unroll
	for (uint32_t j = 0; j < size::steps; j++)
#pragma unroll
		for (uint32_t u = 0; u < PAGES; u++) {
			rows.k(u, j, f);
#pragma unroll
			for (int nt = 0; nt < NT; nt++)
				mma_16816<size::half>(j % 2u ? c2[u][nt] : c[u][nt], f, q.hi[nt][j][0], q.hi[nt][j][1]);
		}
	if (q.lower) {
#pragma unroll (size::pages == 2u && NT == 1 ? size::steps : 1u)	/* registers have no index */
		for (uint32_t j = 0; j < size::steps; j++)
#pragma unroll
			for (uint32_t u = 0; u < PAGES; u++) {
				rows.k(u, j, f);
#pragma unroll
				for (uint32_t nt = 0; nt < NT; nt++) {
					uint2 b = mma_shared_pair(q.lower + ((nt * size::steps + j) * 32u + x.thread) * 8u);

					mma_16816<size::half>(c2[u][nt], f, b.x, b.y);
				}
			}
	}
#pragma unroll
	for (uint32_t u = 0; u < PAGES; u++)
#pragma unroll
		for (int nt = 0; nt < NT; nt++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				c[u][nt][i] += c2[u][nt][i];
}

/* o += V^T p of page u. b: the probabilities of slots 2 t4, 2 t4 + 1 (and + 8) and column g. */
template <int TYPE, int D, int NT, typename ROWS>
static __device__ __forceinline__ void mma_values(const ROWS &rows, uint32_t u, const uint32_t (&b)[NT][2], struct mma_sum<D, NT> &s)
{
	uint32_t f[4];

#pragma unroll
	for (uint32_t j = 0; j < D / 16u; j++) {
		rows.v(u, j, f);
#pragma unroll
		for (int nt = 0; nt < NT; nt++)
			mma_16816<mma_size<TYPE, D, NT>::half>(s.o[nt][j], f, b[nt][0], b[nt][1]);
	}
}

/* The channel of o[..][j][i] (i < 2: of the first half of the fragment's rows). */
template <int TYPE> static __device__ __forceinline__ uint32_t mma_out_channel(uint32_t j, uint32_t g, uint32_t second)
{
	return TYPE == GPU_Q8 ? j * 16u + 2u * g + second : j * 16u + g + 8u * second;
}

static __device__ __forceinline__ float mma_shared_float(uint32_t at)
{
	float v;

	asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at));
	return v;
}

/* Logits that a query may see, times log2(e); the others are -inf. With heat they are kept, row by row. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_page_scores(const struct mma_lane &x, const struct mma_queries<TYPE, D, NT> &q, uint32_t at,
						       const struct mma_in_place<TYPE, D, NT> &rows, uint32_t live, mma_paged<NT, 1> &page)
{
	using size = mma_size<TYPE, D, NT>;
	const float none = __int_as_float(0xff800000);
	float (&c)[NT][4] = page[0];

	mma_products<TYPE, D, NT, 1>(x, q, rows, page);
#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		int32_t pos = x.bare ? 0 : __float_as_int(mma_shared_float(at + size::pos + (x.g + 8u * i) * 4u));

#pragma unroll
		for (int nt = 0; nt < NT; nt++)
#pragma unroll
			for (int h = 0; h < 2; h++) {
				float v = c[nt][2u * i + h];

				c[nt][2u * i + h] = x.g + 8u * i < live && (x.bare || pos <= q.pos[nt][h]) ? v * q.scale[nt][h] : none;
			}
	}
}

/* A column's maximum takes in a thread's logits, of which `top` is the largest. by: what older sums shrink by. Does it move? */
static __device__ __forceinline__ bool mma_new_top(float top, float &m, float &by)
{
	bool moves;

#pragma unroll
	for (int d = 4; d < 32; d <<= 1)
		top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
	top = fmaxf(top, m);
	by = mma_exp2(m - top);
	moves = top != m;
	m = top;
	return moves;
}

/* One page: logits, the maximum moves, probabilities, outputs. */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_page(const struct mma_lane &x, const struct mma_queries<TYPE, D, NT> &q, uint32_t at,
						uint32_t live, float *kept, uint32_t kept_stride, bool first, struct mma_sum<D, NT> &s)
{
	const struct mma_in_place<TYPE, D, NT> rows(x, at, 0);
	mma_paged<NT, 1> page = {};
	float (&c)[NT][4] = page[0], by[NT][2];
	uint32_t b[NT][2];
	bool moves = false;

	mma_page_scores<TYPE, D, NT>(x, q, at, rows, live, page);
#pragma unroll
	for (int nt = 0; nt < NT; nt++)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			uint32_t col = nt * 8u + 2u * x.t4 + h;
			float top = fmaxf(c[nt][h], c[nt][2 + h]);

			if (kept && col < x.n_rows) {
				kept[col * kept_stride + x.g] = c[nt][h];
				kept[col * kept_stride + x.g + 8u] = c[nt][2 + h];
			}
			moves |= mma_new_top(top, s.m[nt][h], by[nt][h]);
		}
	if (!first && __any_sync(0xffffffffu, moves)) {	/* the sums of no slots are zeros */
#pragma unroll
		for (int nt = 0; nt < NT; nt++) {
#pragma unroll
			for (int h = 0; h < 2; h++)
				s.l[nt][h] *= by[nt][h];
#pragma unroll
			for (int j = 0; j < D / 16; j++)
#pragma unroll
				for (int i = 0; i < 4; i++)
					s.o[nt][j][i] *= by[nt][i & 1];
		}
	}
#pragma unroll
	for (int nt = 0; nt < NT; nt++) {
#pragma unroll
		for (int i = 0; i < 2; i++) {
			float p0 = mma_exp2(c[nt][2 * i] - s.m[nt][0]), p1 = mma_exp2(c[nt][2 * i + 1] - s.m[nt][1]);

			s.l[nt][0] += p0;
			s.l[nt][1] += p1;
			b[nt][i] = mma_turn(mma_pack<mma_size<TYPE, D, NT>::half>(p0, p1));
		}
	}
	mma_values<TYPE, D, NT>(rows, 0, b, s);
}

#endif
