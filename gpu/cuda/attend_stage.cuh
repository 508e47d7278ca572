/*
 * Private to gpu/cuda/: a part of attend_mma.cuh: what a warp does with a stage of its ring where that is q8, or two pages. As in
 * attend_page.cuh, but that the two pages' chains of instructions run side by side, and have one maximum. And with two stages at a time.
 */
#ifndef GPU_CUDA_ATTEND_STAGE_CUH
#define GPU_CUDA_ATTEND_STAGE_CUH

#include "gpu/cuda/attend_page.cuh"

/* Where logits are kept until the lane's log-sum-exp is known: rows of `stride` floats from the CTA's first slot; NULL: nowhere. */
struct mma_kept {
	float *at;
	uint32_t stride;
};

/* --- logits ------------------------------------------------------------------------------------------------------------------- */

/* K of int8: a product for each byte of the queries, exactly. */
template <int D, int NT>
static __device__ __forceinline__ void mma_products_int8(const struct mma_lane &x, const struct mma_queries<GPU_Q8, D, NT> &q, uint32_t k,
							 uint32_t place, mma_logits<GPU_Q8, D, NT> &c)
{
	using size = mma_size<GPU_Q8, D, NT>;
	constexpr uint32_t together = NT == 1 ? size::pages : 1u;	/* pages; with 16 columns there are no registers for two */

#pragma unroll
	for (uint32_t from = 0; from < size::pages; from += together) {
		int32_t high[together][NT][4] = {}, middle[together][NT][4] = {}, low[together][NT][4] = {};

#pragma unroll
		for (uint32_t j = 0; j < size::steps; j++) {
			uint2 b[NT];

#pragma unroll
			for (uint32_t nt = 0; nt < NT; nt++)
				b[nt] = mma_shared_pair(q.lower + ((nt * size::steps + j) * 32u + x.thread) * 8u);
#pragma unroll
			for (uint32_t u = 0; u < together; u++) {
				uint32_t f[4];

				mma_load4(f, k + (from + u) * size::page + (j * 2u ^ place) * 16u);
#pragma unroll
				for (int nt = 0; nt < NT; nt++) {
					mma_16832(high[u][nt], f, q.hi[nt][j][0], q.hi[nt][j][1]);
					mma_16832(middle[u][nt], f, q.hi[nt][D / 32 + j][0], q.hi[nt][D / 32 + j][1]);
					mma_16832(low[u][nt], f, b[nt].x, b[nt].y);
				}
			}
		}
#pragma unroll
		for (uint32_t u = 0; u < together; u++)
#pragma unroll
			for (int nt = 0; nt < NT; nt++)
#pragma unroll
				for (int i = 0; i < 4; i++)	/* the lower two fit 31 bits together */
					c[from + u][nt][i] = __fmaf_rn((float)high[u][nt][i], 65536.0f,
								       (float)(middle[u][nt][i] * 256 + low[u][nt][i]));
	}
}

static __device__ __forceinline__ uint32_t mma_shared_word(uint32_t at)
{
	uint32_t v;

	asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
	return v;
}

/* What q8 needs beside the rows: (scale, offset) of K and V of slots g and g + 8 of each page. Slots without a token may hold anything. */
template <int PAGES> struct mma_params {
	float2 k[PAGES][2], v[PAGES][2];
};

template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_load_params(const struct mma_lane &x, uint32_t at, uint32_t live,
						       struct mma_params<mma_size<TYPE, D, NT>::pages> &p)
{
	using size = mma_size<TYPE, D, NT>;

#pragma unroll
	for (uint32_t u = 0; u < size::pages; u++)
#pragma unroll
		for (uint32_t i = 0; TYPE == GPU_Q8 && i < 2; i++) {
			uint32_t from = at + size::params + u * 128u + (x.g + 8u * i) * 4u;
			uint32_t k = mma_shared_word(from), v = mma_shared_word(from + 64u);

			v = u * GPU_PAGE_SLOTS + x.g + 8u * i < live ? v : 0u;
			p.k[u][i] = __half22float2(*(__half2 *)&k);
			p.v[u][i] = __half22float2(*(__half2 *)&v);
		}
}

/* Positions of slots g and g + 8 of each page; zeros where nobody asks. */
template <int PAGES> struct mma_places {
	int32_t pos[PAGES][2];
};

template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_load_places(const struct mma_lane &x, uint32_t at,
						       struct mma_places<mma_size<TYPE, D, NT>::pages> &p)
{
	using size = mma_size<TYPE, D, NT>;

#pragma unroll
	for (uint32_t u = 0; u < size::pages; u++)
#pragma unroll
		for (uint32_t i = 0; !x.bare && i < 2; i++)
			p.pos[u][i] = (int32_t)mma_shared_word(at + size::pos + (u * GPU_PAGE_SLOTS + x.g + 8u * i) * 4u);
}

/* Logits that a query may see, times log2(e); the others are -inf. live: slots from the stage's first on. */
template <int TYPE, int D, int NT, typename ROWS>
static __device__ __forceinline__ void mma_stage_logits(const struct mma_lane &x, const struct mma_queries<TYPE, D, NT> &q,
							uint32_t live, const struct mma_params<mma_size<TYPE, D, NT>::pages> &par,
							const struct mma_places<mma_size<TYPE, D, NT>::pages> &places, const ROWS &rows,
							mma_logits<TYPE, D, NT> &c)
{
	using size = mma_size<TYPE, D, NT>;
	const float none = __int_as_float(0xff800000);

	if constexpr (size::q8)
		mma_products_int8<D, NT>(x, q, rows.k_at, rows.k_place, c);
	else
		mma_products<TYPE, D, NT, size::pages>(x, q, rows, c);
#pragma unroll
	for (uint32_t u = 0; u < size::pages; u++)
#pragma unroll
		for (uint32_t i = 0; i < 2; i++) {
			uint32_t slot = u * GPU_PAGE_SLOTS + x.g + 8u * i;
			int32_t pos = places.pos[u][i];

#pragma unroll
			for (int nt = 0; nt < NT; nt++)
#pragma unroll
				for (int h = 0; h < 2; h++) {
					float v = c[u][nt][2u * i + h];

					if constexpr (size::q8)
						v = __fmaf_rn(par.k[u][i].x, v, __fmul_rn(par.k[u][i].y, q.sum[nt][h]));
					c[u][nt][2u * i + h] = slot < live && (x.bare || pos <= q.pos[nt][h]) ? v * q.scale[nt][h] : none;
				}
		}
}

template <int NT, uint32_t PAGES>
static __device__ __forceinline__ void mma_keep_logits(const struct mma_lane &x, const struct mma_kept &kept, uint32_t slot,
						       const mma_paged<NT, PAGES> &c)
{
#pragma unroll
	for (int nt = 0; nt < NT; nt++)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			uint32_t col = nt * 8u + 2u * x.t4 + h;
			float *to = kept.at + (col * kept.stride + slot + x.g);

			if (col >= x.n_rows)
				continue;
#pragma unroll
			for (uint32_t i = 0; i < 2u * PAGES; i++)
				to[i * 8u] = c[i / 2u][nt][i % 2u * 2u + h];
		}
}

/* --- outputs ------------------------------------------------------------------------------------------------------------------- */

/* o += V^T p of a page of int8 at `v`. b: the probabilities of slots 2 t4, 2 t4 + 1 (and + 8) and column g. */
template <int D, int NT>
static __device__ __forceinline__ void mma_values_int8(const struct mma_lane &x, uint32_t v, const uint32_t (&b)[NT][2],
						       struct mma_sum<D, NT> &s, struct mma_more<NT> &more)
{
	using size = mma_size<GPU_Q8, D, NT>;
	constexpr uint32_t bias = MMA_INT8_BIAS | 0x80008000u;
	const uint32_t less[4] = { bias, bias, bias, bias };
	uint32_t f[4], place = size::place(x.thread) ^ x.thread >> 4;

	v += ((x.thread & 7u) + (x.thread >> 3 & 1u) * 8u) * size::row;
#pragma unroll
	for (int nt = 0; nt < NT; nt++)
		mma_16816<true>(more.bias[nt], less, b[nt][0], b[nt][1]);
#pragma unroll
	for (uint32_t j = 0; j < D / 16u; j++) {
		uint32_t e[4];

		if (j % 2u == 0)
			mma_load4_turned(f, v + (j ^ place) * 16u);
		mma_from_int8_biased(f[j % 2u * 2u], e[0], e[1]);
		mma_from_int8_biased(f[j % 2u * 2u + 1u], e[2], e[3]);
#pragma unroll
		for (int nt = 0; nt < NT; nt++)
			mma_16816<true>(s.o[nt][j], e, b[nt][0], b[nt][1]);
	}
}

/* mma_new_top() for the logits of a stage, all of a thread's columns. Does any of them move? */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ bool mma_new_tops(const mma_logits<TYPE, D, NT> &c, struct mma_sum<D, NT> &s, float (&by)[NT][2])
{
	bool moves = false;

#pragma unroll
	for (int nt = 0; nt < NT; nt++)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			float top = fmaxf(c[0][nt][h], c[0][nt][2 + h]);

#pragma unroll
			for (uint32_t u = 1; u < mma_size<TYPE, D, NT>::pages; u++)
				top = fmaxf(top, fmaxf(c[u][nt][h], c[u][nt][2 + h]));
			moves |= mma_new_top(top, s.m[nt][h], by[nt][h]);
		}
	return moves;
}

/* The scales of V of a stage in units of a power of two that is not below any of them. Returns by how much older outputs shrink. */
template <int PAGES> static __device__ __forceinline__ float mma_new_unit(struct mma_params<PAGES> &par, float &unit)
{
	uint32_t top = 0, old = __float_as_uint(unit);
	float inverse;

#pragma unroll
	for (int u = 0; u < PAGES; u++)
		top = max(top, max(__float_as_uint(par.v[u][0].x), __float_as_uint(par.v[u][1].x)));
	top = __reduce_max_sync(0xffffffffu, top);
	top = max((top + 0x7fffffu) & 0x7f800000u, old);
	inverse = __uint_as_float((254u << 23) - top);
#pragma unroll
	for (int u = 0; u < PAGES; u++) {
		par.v[u][0].x *= inverse;
		par.v[u][1].x *= inverse;
	}
	unit = __uint_as_float(top);
	return __uint_as_float(old) * inverse;
}

/* Older sums of a strip become relative to the new maximum (and unit). */
template <int D, int NT>
static __device__ __forceinline__ void mma_rescale(const float (&by)[NT][2], float shrink, struct mma_sum<D, NT> &s,
						   struct mma_more<NT> &more)
{
#pragma unroll
	for (int nt = 0; nt < NT; nt++) {
#pragma unroll
		for (int h = 0; h < 2; h++) {
			s.l[nt][h] *= by[nt][h];
			more.offset[nt][h] *= by[nt][h];
			more.bias[nt][h] *= by[nt][h] * shrink;
		}
#pragma unroll
		for (int j = 0; j < D / 16; j++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				s.o[nt][j][i] *= by[nt][i & 1] * shrink;
	}
}

/*
 * A stage: logits, the maximum moves, probabilities, outputs. live: slots from its first on; slot: the first, within the CTA's part. Of
 * 16-bit slots nothing but `rows` looks into shared memory.
 */
template <int TYPE, int D, int NT, typename ROWS>
static __device__ __forceinline__ void mma_stage(const struct mma_lane &x, const struct mma_queries<TYPE, D, NT> &q, uint32_t at,
						 uint32_t live, const struct mma_kept &kept, uint32_t slot, bool first,
						 const struct mma_places<mma_size<TYPE, D, NT>::pages> &places, const ROWS &rows,
						 struct mma_sum<D, NT> &s, struct mma_more<NT> &more)
{
	using size = mma_size<TYPE, D, NT>;
	struct mma_params<size::pages> par = {};
	mma_logits<TYPE, D, NT> c = {};
	float by[NT][2], shrink = 1.0f;
	bool moves;

	mma_load_params<TYPE, D, NT>(x, at, live, par);
	mma_stage_logits<TYPE, D, NT>(x, q, live, par, places, rows, c);
	if (kept.at)
		mma_keep_logits<NT, size::pages>(x, kept, slot, c);
	moves = mma_new_tops<TYPE, D, NT>(c, s, by);
	if (size::q8) {
		shrink = mma_new_unit(par, more.unit);
		moves = moves || shrink != 1.0f;
	}
	if (!first && __any_sync(0xffffffffu, moves))	/* the sums of no slots are zeros */
		mma_rescale(by, shrink, s, more);
#pragma unroll
	for (uint32_t u = 0; u < size::pages; u++) {
		uint32_t b[NT][2];

#pragma unroll
		for (int nt = 0; nt < NT; nt++)
#pragma unroll
			for (int i = 0; i < 2; i++) {
				float p0 = mma_exp2(c[u][nt][2 * i] - s.m[nt][0]), p1 = mma_exp2(c[u][nt][2 * i + 1] - s.m[nt][1]);

				s.l[nt][0] += p0;
				s.l[nt][1] += p1;
				if (size::q8) {
					more.offset[nt][0] = __fmaf_rn(p0, par.v[u][i].y, more.offset[nt][0]);
					more.offset[nt][1] = __fmaf_rn(p1, par.v[u][i].y, more.offset[nt][1]);
					p0 *= par.v[u][i].x;
					p1 *= par.v[u][i].x;
				}
				b[nt][i] = mma_turn(mma_pack<size::half>(p0, p1));
			}
		if constexpr (size::q8)
			mma_values_int8<D, NT>(x, at + u * size::page + GPU_PAGE_SLOTS * size::row, b, s, more);
		else
			mma_values<TYPE, D, NT>(rows, u, b, s);
	}
}

/*
 * Two stages of one page each, without positions, as by mma_page() one after the other: the same bits. But their chains of instructions
 * run side by side, and no branch is between. Where a warp is alone on its scheduler, as in clusters of 16, that is worth 3 % of a step; in
 * kernels that run on 0.5 to 1 %: their first pages are asked for sooner, and their last ones done sooner.
 */
template <int TYPE, int D, int NT>
static __device__ __forceinline__ void mma_pair(const struct mma_lane &x, const struct mma_queries<TYPE, D, NT> &q, const uint32_t (&at)[2],
						uint32_t live, const struct mma_kept &kept, uint32_t slot, struct mma_sum<D, NT> &s)
{
	using size = mma_size<TYPE, D, NT>;
	const struct mma_in_place<TYPE, D, NT> rows(x, at[0], at[1] - at[0]);
	const float none = __int_as_float(0xff800000);
	float top[2][NT][2], m[2][NT][2], by[2][NT][2];
	mma_paged<NT, 2> c = {};
	uint32_t b[2][NT][2];

	mma_products<TYPE, D, NT, 2>(x, q, rows, c);
#pragma unroll
	for (uint32_t u = 0; u < 2; u++)
#pragma unroll
		for (int nt = 0; nt < NT; nt++) {
#pragma unroll
			for (uint32_t i = 0; i < 4; i++)
				c[u][nt][i] = u * GPU_PAGE_SLOTS + x.g + i / 2u * 8u < live ? c[u][nt][i] * q.scale[nt][i % 2u] : none;
			top[u][nt][0] = fmaxf(c[u][nt][0], c[u][nt][2]);
			top[u][nt][1] = fmaxf(c[u][nt][1], c[u][nt][3]);
		}
#pragma unroll
	for (int d = 4; d < 32; d <<= 1)
#pragma unroll
		for (uint32_t i = 0; i < 4u * NT; i++) {
			float &t = top[i % 2u][i / 4u][i / 2u % 2u];

			t = fmaxf(t, __shfl_xor_sync(0xffffffffu, t, d));
		}
#pragma unroll
	for (int nt = 0; nt < NT; nt++)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			m[0][nt][h] = fmaxf(top[0][nt][h], s.m[nt][h]);
			m[1][nt][h] = fmaxf(top[1][nt][h], m[0][nt][h]);
			by[0][nt][h] = mma_exp2(s.m[nt][h] - m[0][nt][h]);
			by[1][nt][h] = mma_exp2(m[0][nt][h] - m[1][nt][h]);
			s.m[nt][h] = m[1][nt][h];
		}
#pragma unroll
	for (uint32_t u = 0; u < 2; u++)
#pragma unroll
		for (int nt = 0; nt < NT; nt++) {
			s.l[nt][0] = __fmul_rn(s.l[nt][0], by[u][nt][0]);
			s.l[nt][1] = __fmul_rn(s.l[nt][1], by[u][nt][1]);
#pragma unroll
			for (int i = 0; i < 2; i++) {
				float p0 = mma_exp2(c[u][nt][2 * i] - m[u][nt][0]), p1 = mma_exp2(c[u][nt][2 * i + 1] - m[u][nt][1]);

				s.l[nt][0] = __fadd_rn(s.l[nt][0], p0);
				s.l[nt][1] = __fadd_rn(s.l[nt][1], p1);
				b[u][nt][i] = mma_turn(mma_pack<size::half>(p0, p1));
			}
		}
	if (kept.at)
		mma_keep_logits<NT, 2>(x, kept, slot, c);
#pragma unroll
	for (uint32_t u = 0; u < 2; u++) {
#pragma unroll
		for (int nt = 0; nt < NT; nt++)
#pragma unroll
			for (int j = 0; j < D / 16; j++)
#pragma unroll
				for (int i = 0; i < 4; i++)
					s.o[nt][j][i] *= by[u][nt][i & 1];
		mma_values<TYPE, D, NT>(rows, u, b[u], s);
	}
}

#endif
