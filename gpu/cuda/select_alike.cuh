/*
 * Private to select.cu: of every slot the newest other one whose key is like its own (EVICT_KEY_REDUNDANCY), out of all pairs.
 *
 * What: tensor cores multiply unit keys, rounded to float16, a tile of 128 x 64 pairs at a time, newest first; a pair whose product comes
 * near enough to the threshold is looked at once more, by the sum that evict/trait.h states. So the answer is that of going through the
 * pairs one by one. Rounding moves a product of rows no longer than LONGEST by less than NEAR (2^-11 for each of the two rows, and next to
 * nothing for the sums): lanes with longer "unit" rows, of numbers whose squares vanish, have every pair looked at.
 */
#ifndef GPU_CUDA_SELECT_ALIKE_CUH
#define GPU_CUDA_SELECT_ALIKE_CUH

#include "gpu/cuda/mma.cuh"
#include "gpu/cuda/select_staged.cuh"

#define ALIKE 0.5f		/* R-KV's threshold */
#define NEAR 0.005f
#define LONGEST 1.01f		/* of a unit row's square */
#define ALIKE_ROWS 128u		/* of a tile: 16 a warp */
#define ALIKE_COLS 64u
#define ALIKE_DEEP 128u		/* channels at a time */
#define ALIKE_PITCH (ALIKE_DEEP * 2u)
#define ALIKE_TILE (ALIKE_COLS * ALIKE_PITCH)
#define ALIKE_NONE 0xffffffffu	/* no target yet */
#define ALIKE_STAGES 3u		/* of columns, in shared memory */

/* What is known of the lane: rows as float16 by slot, and what each was multiplied with to be one long. */
struct alike {
	const struct lane_stage &st;
	const struct row_reader keys;
	const __half *unit;		/* [n][d] */
	const float *inverse;		/* [n] */
	uint32_t n, d, chunks;		/* chunks: ALIKE_DEEP channels or what is left, of a row */
	float least;			/* products above it are looked at */
};

/* The stated cosine of two slots. Half a warp. */
template <uint32_t J, bool EXACT>
static __device__ __forceinline__ void cosine_of(const struct alike &l, uint32_t a, uint32_t b, float *cosine)
{
	const uint32_t slot[2] = { a, b };
	const float inverse[2] = { l.inverse[a], l.inverse[b] };
	float r[2][J];

	rows_load<EXACT>(l.keys, slot, r);
#pragma unroll
	for (uint32_t j = 0; j < J; j++) {
		r[0][j] *= inverse[0];
		r[1][j] *= inverse[1];
	}
	*cosine = rows_dot(r[0], r[1]);
}

static __device__ __noinline__ float alike_cosine(const struct alike &l, uint32_t a, uint32_t b)
{
	float cosine = 0.0f;

	ROWS_OF(l.d, cosine_of, l, a, b, &cosine);
	return cosine;
}

/* Step s, from the newest columns on: ALIKE_COLS rows of the order, a chunk of their channels. Every thread. */
static __device__ __forceinline__ void alike_copy(const struct alike &l, char *stages, uint32_t s, uint32_t steps)
{
	const uint32_t first = (steps - 1u - s) / l.chunks * ALIKE_COLS, from = s % l.chunks * ALIKE_DEEP;
	const uint32_t pieces = min(ALIKE_DEEP, l.d - from) / 8u;
	char *to = stages + s % ALIKE_STAGES * ALIKE_TILE;

	for (uint32_t p = threadIdx.x; s < steps && p < ALIKE_COLS * ALIKE_DEEP / 8u; p += THREADS) {
		const uint32_t r = p / (ALIKE_DEEP / 8u), piece = p % (ALIKE_DEEP / 8u);
		const bool there = first + r < l.n;

		if (piece < pieces)
			copy16(to + r * ALIKE_PITCH + (piece ^ (r & 7u)) * 16u,
			       (const char *)(l.unit + (size_t)(there ? l.st.order[first + r] : 0u) * l.d + from + piece * 8u), there);
	}
	mma_commit();
}

/* The warp's 16 rows from place `row` of the order on, a chunk of their channels, as fragments. */
static __device__ __forceinline__ void alike_rows(const struct alike &l, uint32_t row, uint32_t chunk, uint32_t (&a)[ALIKE_DEEP / 16u][4])
{
	const uint32_t thread = threadIdx.x % 32u, from = chunk * ALIKE_DEEP + thread % 4u * 2u;

#pragma unroll
	for (uint32_t half = 0; half < 2; half++) {
		const uint32_t place = row + thread / 4u + 8u * half;
		const __half *at = l.unit + (size_t)(place < l.n ? l.st.order[place] : 0u) * l.d;

#pragma unroll
		for (uint32_t k = 0; k < ALIKE_DEEP / 16u; k++)
#pragma unroll
			for (uint32_t upper = 0; upper < 2; upper++) {
				const uint32_t c = from + k * 16u + upper * 8u;

				a[k][half + 2u * upper] = place < l.n && c < l.d ? *(const uint32_t *)(at + c) : 0u;
			}
	}
}

/* c += the warp's rows times a stage's columns. */
static __device__ __forceinline__ void alike_multiply(const uint32_t (&a)[ALIKE_DEEP / 16u][4], const char *stage, uint32_t depth,
						      float (&c)[ALIKE_COLS / 8u][4])
{
	const uint32_t thread = threadIdx.x % 32u, row = thread % 8u + thread / 16u * 8u, at = mma_shared(stage) + row * ALIKE_PITCH;

#pragma unroll
	for (uint32_t k = 0; k < ALIKE_DEEP / 16u; k++) {
		if (k * 16u >= depth)
			break;
#pragma unroll
		for (uint32_t n = 0; n < ALIKE_COLS / 16u; n++) {
			uint32_t b[4];

			mma_load4(b, at + n * 16u * ALIKE_PITCH + ((k * 2u + thread / 8u % 2u) ^ (row & 7u)) * 16u);
			mma_16816<true>(c[2u * n], a[k], b[0], b[1]);
			mma_16816<true>(c[2u * n + 1u], a[k], b[2], b[3]);
		}
	}
}

/* Which columns are near enough, of the rows thread / 4 and that + 8 of the warp's: a bit each. The same in all four threads of a row. */
static __device__ __forceinline__ void alike_near(const struct alike &l, const float (&c)[ALIKE_COLS / 8u][4], uint64_t (&near)[2])
{
#pragma unroll
	for (uint32_t half = 0; half < 2; half++) {
		uint32_t bits[2] = { 0, 0 };

#pragma unroll
		for (uint32_t n = 0; n < ALIKE_COLS / 8u; n++)
#pragma unroll
			for (uint32_t i = 0; i < 2; i++)
				bits[n / 4u] |= (uint32_t)(c[n][2u * half + i] > l.least) << (n % 4u * 8u + i);
#pragma unroll
		for (uint32_t i = 0; i < 2; i++) {
			bits[i] <<= threadIdx.x % 4u * 2u;
			bits[i] |= __shfl_xor_sync(0xffffffffu, bits[i], 1);
			bits[i] |= __shfl_xor_sync(0xffffffffu, bits[i], 2);
		}
		near[half] = (uint64_t)bits[1] << 32 | bits[0];
	}
}

/* Looks at what is near, newest first; half a warp a row. Returns the warp's rows that have found theirs, beside those that had. */
static __device__ __noinline__ uint32_t alike_look(const struct alike &l, uint32_t row, uint32_t first, uint64_t lower, uint64_t upper,
						   uint32_t found)
{
	for (uint32_t i = 0; i < 8; i++) {
		const uint32_t r = i + (threadIdx.x & 16u) / 2u, a = row + r;
		const uint64_t low = __shfl_sync(0xffffffffu, lower, (int)(i * 4u)), high = __shfl_sync(0xffffffffu, upper, (int)(i * 4u));
		uint64_t left = a < l.n && !(found >> r & 1u) ? threadIdx.x & 16u ? high : low : 0u;
		bool has = false;

		for (; left && !has; left &= ~(1ull << (63 - __clzll((long long)left)))) {
			const uint32_t b = first + 63u - (uint32_t)__clzll((long long)left);
			const uint32_t slot = l.st.order[a], other = b < l.n ? l.st.order[b] : slot;
			float cosine;

			if (other == slot)
				continue;
			cosine = alike_cosine(l, slot, other);
			has = cosine > ALIKE;
			if (has && row_thread() == 0) {
				l.st.target[slot] = other;
				l.st.weight[slot] = cosine;
			}
		}
		__syncwarp();
		found |= (uint32_t)((__ballot_sync(0xffffffffu, has) & 0xffffu) != 0u) << i;
		found |= (uint32_t)((__ballot_sync(0xffffffffu, has) >> 16) != 0u) << (i + 8u);
	}
	return found;
}

/* The warp's rows of a tile of rows, against all columns. Every warp of the CTA. */
static __device__ __noinline__ void alike_tile(const struct alike &l, char *stages, uint32_t row)
{
	const uint32_t steps = (l.n + ALIKE_COLS - 1u) / ALIKE_COLS * l.chunks;
	uint32_t a[ALIKE_DEEP / 16u][4], found = 0;
	float c[ALIKE_COLS / 8u][4];

	alike_rows(l, row, 0, a);
	for (uint32_t r = 0; r < 16; r++)	/* rows that are not there have nothing to find */
		found |= (uint32_t)(row + r >= l.n) << r;
	for (uint32_t s = 0; s + 1u < ALIKE_STAGES; s++)
		alike_copy(l, stages, s, steps);
	for (uint32_t s = 0; s < steps; s++) {
		const uint32_t chunk = s % l.chunks;

		mma_wait(ALIKE_STAGES - 1u);
		if (__syncthreads_and(found == 0xffffu))
			break;
		alike_copy(l, stages, s + ALIKE_STAGES - 1u, steps);
		if (found == 0xffffu)
			continue;
		if (chunk == 0)
#pragma unroll
			for (uint32_t i = 0; i < ALIKE_COLS / 8u * 4u; i++)
				c[i / 4u][i % 4u] = 0.0f;
		if (l.chunks > 1u)
			alike_rows(l, row, chunk, a);
		alike_multiply(a, stages + s % ALIKE_STAGES * ALIKE_TILE, l.d - chunk * ALIKE_DEEP, c);
		if (chunk + 1u == l.chunks) {
			uint64_t near[2];

			alike_near(l, c, near);
			if (__any_sync(0xffffffffu, (near[0] | near[1]) != 0u))
				found = alike_look(l, row, (steps - 1u - s) / l.chunks * ALIKE_COLS, near[0], near[1], found);
		}
	}
	mma_wait(1);
	__syncthreads();
}

/* Slots that no other is like: the oldest is not counted for them. */
template <uint32_t J, bool EXACT>
static __device__ __forceinline__ void alike_oldest(const struct alike &l)
{
	constexpr uint32_t N = rows_together(J);
	const uint32_t oldest[1] = { l.st.order[0] };
	const float inverse = l.inverse[oldest[0]];
	float u[1][J];

	rows_load<EXACT>(l.keys, oldest, u);
#pragma unroll
	for (uint32_t j = 0; j < J; j++)
		u[0][j] *= inverse;
	for (uint32_t i = threadIdx.x / ROW_THREADS; i < l.n; i += N * ROWS_AT_ONCE) {
		uint32_t slot[N];
		float r[N][J];

#pragma unroll
		for (uint32_t k = 0; k < N; k++)
			slot[k] = i + k * ROWS_AT_ONCE;
		rows_load<EXACT>(l.keys, slot, r);
#pragma unroll
		for (uint32_t k = 0; k < N; k++) {
			const uint32_t s = min(slot[k], l.n - 1u);
			const float own = l.inverse[s];
			float cosine;

#pragma unroll
			for (uint32_t j = 0; j < J; j++)
				r[k][j] *= own;
			cosine = rows_dot(r[k], u[0]);
			if (slot[k] < l.n && row_thread() == 0 && l.st.target[s] == ALIKE_NONE) {
				l.st.target[s] = oldest[0];
				l.st.weight[s] = cosine;
			}
		}
	}
	__syncthreads();
}

/*
 * For every slot the one that is not counted for it (itself: none) and its cosine: st.target[], st.weight[]. All are in st.order[], by their
 * positions. odd: a row is longer than LONGEST.
 */
template <uint32_t J, bool EXACT>
static __device__ __forceinline__ void uncounted(const struct lane_ctx &x, struct shared_state *sh, const struct lane_stage &st,
						 const __half *unit, const float *inverse, bool odd)
{
	const uint32_t d = x.turn.head_dim;
	const struct alike l = { st, rows_at(x, st, 0), unit, inverse, x.live, d, (d + ALIKE_DEEP - 1u) / ALIKE_DEEP,
				 odd ? -1e30f : ALIKE - NEAR };

	static_assert(ALIKE_STAGES * ALIKE_TILE <= sizeof(sh->key) + sizeof(sh->sorted), "the columns lie where keys will be");
	for (uint32_t i = threadIdx.x; i < l.n; i += THREADS)
		st.target[i] = ALIKE_NONE;
	__syncthreads();
	for (uint32_t row = 0; row < l.n; row += ALIKE_ROWS)
		alike_tile(l, (char *)sh->key, row + threadIdx.x / 32u * 16u);
	alike_oldest<J, EXACT>(l);
}

#endif
