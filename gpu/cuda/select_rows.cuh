/*
 * Private to select.cu: K and V rows of a lane's slots, half a warp a row: thread i of the 16 holds channels i, i + 16, ..., so that its own sum
 * is one of the 16 partial sums of evict_dot() (evict/math.h), and shuffles add the halves in the same order. Traits of a row's own.
 * Rows are cleaned as they are read: what a client wrote may be anything.
 */
#ifndef GPU_CUDA_SELECT_ROWS_CUH
#define GPU_CUDA_SELECT_ROWS_CUH

#include "gpu/cuda/select.cuh"

#define ROW_THREADS EVICT_PARTS
#define ROW_MOST (256u / ROW_THREADS)		/* channels of a thread: head_dim <= 256 */
#define ROWS_AT_ONCE (THREADS / ROW_THREADS)

struct row {
	float x[ROW_MOST];	/* 0 beyond head_dim */
};

static __device__ __forceinline__ uint32_t row_thread(void) { return threadIdx.x % ROW_THREADS; }
static __device__ __forceinline__ uint32_t row_mask(void) { return 0xffffu << (threadIdx.x & 16u); }

/* An element as slots of each type have it. */
template <uint32_t TYPE> struct row_element { typedef unsigned short type; };
template <> struct row_element<GPU_F32> { typedef float type; };
template <> struct row_element<GPU_Q8> { typedef signed char type; };

/* evict_element(), in as few instructions as there are. */
static __device__ __forceinline__ float row_clean(float x) { return fabsf(x) <= 1e15f ? x : 0.0f; }

template <uint32_t TYPE> static __device__ __forceinline__ float row_float(typename row_element<TYPE>::type x)
{
	if constexpr (TYPE == GPU_F16)
		return __half2float(__ushort_as_half(x));
	else if constexpr (TYPE == GPU_BF16)
		return __uint_as_float((uint32_t)x << 16);
	else
		return (float)x;
}

/* Of a q8 row; others have none. */
struct row_scale {
	float scale, offset;
};

template <uint32_t TYPE> static __device__ __forceinline__ struct row_scale row_scale_of(uint32_t halves)
{
	struct row_scale p = { 1.0f, 0.0f };

	if (TYPE == GPU_Q8) {
		p.scale = __half2float(__ushort_as_half((unsigned short)(halves & 0xffffu)));
		p.offset = __half2float(__ushort_as_half((unsigned short)(halves >> 16)));
	}
	return p;
}

template <uint32_t TYPE> static __device__ __forceinline__ float row_value(typename row_element<TYPE>::type raw, const struct row_scale &p)
{
	const float x = row_float<TYPE>(raw);

	return row_clean(TYPE == GPU_Q8 ? p.offset + p.scale * x : x);
}

/* A row as it is stored, at `from`; param: scale and offset of a q8 row. */
template <uint32_t TYPE> static __device__ __forceinline__ struct row row_as(const char *from, uint32_t param, uint32_t d)
{
	const struct row_scale p = row_scale_of<TYPE>(param);
	struct row r = {};

#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		if (j * ROW_THREADS < d)
			r.x[j] = row_value<TYPE>(((const typename row_element<TYPE>::type *)from)[row_thread() + j * ROW_THREADS], p);
	return r;
}

static __device__ __forceinline__ struct row row_of(const char *from, uint32_t param, uint32_t type, uint32_t d)
{
	switch (type) {
	case GPU_F32: return row_as<GPU_F32>(from, param, d);
	case GPU_F16: return row_as<GPU_F16>(from, param, d);
	case GPU_BF16: return row_as<GPU_BF16>(from, param, d);
	default: return row_as<GPU_Q8>(from, param, d);
	}
}

/* Where a slot's K (which = 0) or V (1) lies in its page, and its q8 parameters. */
static __device__ __forceinline__ const char *row_in(const struct lane_ctx &x, const char *page, uint32_t slot, uint32_t which)
{
	return page + which * gpu_page_v(x.turn.slot_type, x.turn.head_dim) +
	       slot % GPU_PAGE_SLOTS * gpu_row_bytes(x.turn.slot_type, x.turn.head_dim);
}

static __device__ __forceinline__ uint32_t row_param(const struct lane_ctx &x, const char *page, uint32_t slot, uint32_t which)
{
	const uint32_t at = (which * GPU_PAGE_SLOTS + slot % GPU_PAGE_SLOTS) * 4u;

	return x.turn.slot_type == GPU_Q8 ? *cuda_u32(page, gpu_page_params(x.turn.slot_type, x.turn.head_dim) + at) : 0u;
}

static __device__ __forceinline__ struct row row_load(const struct lane_ctx &x, uint32_t slot, uint32_t which)
{
	const char *page = cuda_at(x.view, x.page[slot / GPU_PAGE_SLOTS]);
	const struct row none = {};

	return page ? row_of(row_in(x, page, slot, which), row_param(x, page, slot, which), x.turn.slot_type, x.turn.head_dim) : none;
}

/* Numbers of the kernel's own, [d]. */
static __device__ __forceinline__ struct row row_get(const float *from, uint32_t d)
{
	struct row r = {};

#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		if (j * ROW_THREADS < d)
			r.x[j] = from[row_thread() + j * ROW_THREADS];
	return r;
}

static __device__ __forceinline__ void row_put(float *to, const struct row &r, uint32_t d)
{
#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		if (j * ROW_THREADS < d)
			to[row_thread() + j * ROW_THREADS] = r.x[j];
}

/* evict_halves() over the 16 threads: a + b and b + a have the same bits. */
static __device__ __forceinline__ float row_halves(float part)
{
	for (int gap = EVICT_PARTS / 2; gap; gap /= 2)
		part += __shfl_xor_sync(row_mask(), part, gap);
	return part;
}

/* evict_dot() of rows whose channels beyond d are 0: those change nothing. */
template <uint32_t J> static __device__ __forceinline__ float rows_dot(const float (&a)[J], const float (&b)[J])
{
	float part = 0.0f;

#pragma unroll
	for (uint32_t j = 0; j < J; j++)
		part += a[j] * b[j];
	return row_halves(part);
}

static __device__ __forceinline__ float row_dot(const struct row &a, const struct row &b, uint32_t d)
{
	float part = 0.0f;

#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		if (j * ROW_THREADS < d)
			part += a.x[j] * b.x[j];
	return row_halves(part);
}

static __device__ __forceinline__ float row_sum(const struct row &a, uint32_t d, bool abs)
{
	float part = 0.0f;

#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		if (j * ROW_THREADS < d)
			part += abs && a.x[j] < 0.0f ? -a.x[j] : a.x[j];
	return row_halves(part);
}

static __device__ __forceinline__ float row_norm(const struct row &a, uint32_t d)
{
	return evict_sqrt(row_dot(a, a, d));
}

/* evict_unit(). */
static __device__ __forceinline__ void row_unit(struct row *r, uint32_t d)
{
	const float norm = row_norm(*r, d), inv = norm > 0.0f ? 1.0f / norm : 0.0f;

#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		r->x[j] *= inv;
}

/* A row to q8, as append writes it (append.cu). */
static __device__ __forceinline__ void row_to_q8(const struct row &r, uint32_t d, signed char *to, __half *param)
{
	float lo = __int_as_float(0x7f800000), hi = -lo, middle, scale;
	__half offset, step;

#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		if (j * ROW_THREADS < d) {
			lo = fminf(lo, r.x[j]);
			hi = fmaxf(hi, r.x[j]);
		}
	for (int gap = EVICT_PARTS / 2; gap; gap /= 2) {
		lo = fminf(lo, __shfl_xor_sync(row_mask(), lo, gap));
		hi = fmaxf(hi, __shfl_xor_sync(row_mask(), hi, gap));
	}
	offset = __float2half_rn(fminf(fmaxf((hi + lo) * 0.5f, -65504.0f), 65504.0f));
	middle = __half2float(offset);
	step = __float2half_ru(fminf((hi - lo) / 254.0f, 65504.0f));
	scale = __half2float(step);
#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		if (j * ROW_THREADS < d) {
			float q = scale > 0.0f ? (r.x[j] - middle) / scale : 0.0f;

			to[row_thread() + j * ROW_THREADS] = (signed char)rintf(fminf(fmaxf(q, -127.0f), 127.0f));
		}
	if (row_thread() == 0) {
		param[0] = step;
		param[1] = offset;
	}
}

/* A slot's K or V anew, rounded to the slots' type. */
static __device__ __forceinline__ void row_store(const struct lane_ctx &x, uint32_t slot, uint32_t which, const struct row &r)
{
	const uint32_t type = x.turn.slot_type, d = x.turn.head_dim, at = slot % GPU_PAGE_SLOTS;
	char *page = cuda_at(x.view, x.page[slot / GPU_PAGE_SLOTS]);
	char *to = page + which * gpu_page_v(type, d) + at * gpu_row_bytes(type, d);

	if (!page)
		return;
	if (type == GPU_Q8) {
		row_to_q8(r, d, (signed char *)to, (__half *)(page + gpu_page_params(type, d)) + (which * GPU_PAGE_SLOTS + at) * 2u);
		return;
	}
#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		if (j * ROW_THREADS < d)
			cuda_store(to, type, row_thread() + j * ROW_THREADS, r.x[j]);
}

/* --- many rows ------------------------------------------------------------------------------------------------------------------ */

/* What it takes to read a lane's rows of K, or of V, as fast as memory gives them: nothing is looked up that can be known before. */
struct row_reader {
	const char *const *page;	/* addresses of the lane's pages; NULL: not there */
	const char *nowhere;		/* a row of zeros, which is read in place of what is not there */
	char *ring;			/* of half a warp: rows_each() */
	uint32_t live, type, d, bytes;	/* bytes: of a row */
	uint32_t at, params;		/* where in a page rows and their q8 parameters begin */
};

/*
 * N rows, all on their way together: no load waits for a predicate. J: channels of a thread. EXACT: d is J * ROW_THREADS; else it is at
 * most that, and there are zeros beyond it.
 */
template <uint32_t TYPE, uint32_t N, uint32_t J, bool EXACT>
static __device__ __forceinline__ void rows_as(const struct row_reader &rd, const uint32_t (&slot)[N], float (&r)[N][J])
{
	typedef typename row_element<TYPE>::type element;
	element raw[N][J];
	uint32_t param[N];

#pragma unroll
	for (uint32_t i = 0; i < N; i++) {
		const uint32_t s = min(slot[i], rd.live - 1u), in = s % GPU_PAGE_SLOTS;
		const char *page = rd.page[s / GPU_PAGE_SLOTS];
		const bool there = page && slot[i] < rd.live;
		const element *from = (const element *)(there ? page + rd.at + in * rd.bytes : rd.nowhere) + row_thread();

		if (TYPE == GPU_Q8)
			param[i] = *(const uint32_t *)(there ? page + rd.params + in * 4u : rd.nowhere);
#pragma unroll
		for (uint32_t j = 0; j < J; j++)
			raw[i][j] = from[EXACT || j * ROW_THREADS < rd.d ? j * ROW_THREADS : 0u];
	}
#pragma unroll
	for (uint32_t i = 0; i < N; i++) {
		const float scale = TYPE == GPU_Q8 ? __half2float(__ushort_as_half((unsigned short)(param[i] & 0xffffu))) : 1.0f;
		const float offset = TYPE == GPU_Q8 ? __half2float(__ushort_as_half((unsigned short)(param[i] >> 16))) : 0.0f;

#pragma unroll
		for (uint32_t j = 0; j < J; j++) {
			const float x = row_float<TYPE>(raw[i][j]);

			r[i][j] = row_clean(TYPE == GPU_Q8 ? offset + scale * x : x);
			if (!EXACT && j * ROW_THREADS >= rd.d)
				r[i][j] = 0.0f;
		}
	}
}

/* f<J, EXACT>(...) for rows of d channels. */
#define ROWS_OF(d, f, ...)						\
	do {								\
		if ((d) == 4u * ROW_THREADS)				\
			f<4, true>(__VA_ARGS__);			\
		else if ((d) == 8u * ROW_THREADS)			\
			f<8, true>(__VA_ARGS__);			\
		else if ((d) < 8u * ROW_THREADS)			\
			f<8, false>(__VA_ARGS__);			\
		else							\
			f<ROW_MOST, false>(__VA_ARGS__);		\
	} while (0)

/* Rows of half a warp that are on their way together, as many as registers have room for. */
static __host__ __device__ constexpr uint32_t rows_together(uint32_t channels) { return channels > 8u ? 2u : 4u; }

/* N of the lane's rows; a slot that is not there has zeros. The lane has slots. */
template <bool EXACT, uint32_t N, uint32_t J>
static __device__ __forceinline__ void rows_load(const struct row_reader &rd, const uint32_t (&slot)[N], float (&r)[N][J])
{
	switch (rd.type) {
	case GPU_F32: rows_as<GPU_F32, N, J, EXACT>(rd, slot, r); break;
	case GPU_F16: rows_as<GPU_F16, N, J, EXACT>(rd, slot, r); break;
	case GPU_BF16: rows_as<GPU_BF16, N, J, EXACT>(rd, slot, r); break;
	default: rows_as<GPU_Q8, N, J, EXACT>(rd, slot, r); break;
	}
}

/* A row at `from`: a thread's channels, 0 beyond d. */
template <uint32_t TYPE, uint32_t J, bool EXACT>
static __device__ __forceinline__ void row_read_as(const char *from, uint32_t d, uint32_t param, float (&r)[J])
{
	const float scale = TYPE == GPU_Q8 ? __half2float(__ushort_as_half((unsigned short)(param & 0xffffu))) : 1.0f;
	const float offset = TYPE == GPU_Q8 ? __half2float(__ushort_as_half((unsigned short)(param >> 16))) : 0.0f;

#pragma unroll
	for (uint32_t j = 0; j < J; j++) {
		const bool in = EXACT || j * ROW_THREADS < d;
		const float x = in ? row_float<TYPE>(((const typename row_element<TYPE>::type *)from)[row_thread() + j * ROW_THREADS]) : 0.0f;

		r[j] = in ? row_clean(TYPE == GPU_Q8 ? offset + scale * x : x) : 0.0f;
	}
}

template <uint32_t J, bool EXACT>
static __device__ __forceinline__ void row_read(const struct row_reader &rd, const char *from, uint32_t param, float (&r)[J])
{
	switch (rd.type) {
	case GPU_F32: row_read_as<GPU_F32, J, EXACT>(from, rd.d, param, r); break;
	case GPU_F16: row_read_as<GPU_F16, J, EXACT>(from, rd.d, param, r); break;
	case GPU_BF16: row_read_as<GPU_BF16, J, EXACT>(from, rd.d, param, r); break;
	default: row_read_as<GPU_Q8, J, EXACT>(from, rd.d, param, r); break;
	}
}

#define ROWS_STAGE 1504u	/* bytes of half a warp's rows that are on their way together, and, in a ring, of those that it looks at */
#define ROWS_HALF (2u * ROWS_STAGE)	/* an odd multiple of half of all banks, so that halves do not meet in one */
#define ROWS_RING (WARPS * 2u * ROWS_HALF)

/* f(i, its channels, those of a thread) for rows i = first, first + gap, ... below n, which are those of slots slot_of(i). By half a warp. */
template <uint32_t J, bool EXACT, typename S, typename F>
static __device__ __forceinline__ void rows_each(const struct row_reader &rd, uint32_t first, uint32_t gap, uint32_t n, const S &slot_of, const F &f)
{
	const uint32_t together = ROWS_STAGE / (rd.bytes + 4u), step = together * gap;
	const auto ask = [&](uint32_t at, char *to) {
		for (uint32_t k = 0; k < together && at + k * gap < n; k++) {
			const uint32_t slot = slot_of(at + k * gap), in = slot % GPU_PAGE_SLOTS;
			const char *page = slot < rd.live ? rd.page[slot / GPU_PAGE_SLOTS] : NULL, *from = page ? page + rd.at + in * rd.bytes : rd.nowhere;

			for (uint32_t piece = row_thread(); piece < rd.bytes / 16u; piece += ROW_THREADS)
				copy16(to + k * rd.bytes + piece * 16u, from + piece * 16u, page);
			if (rd.type == GPU_Q8 && row_thread() == 0)
				*(uint32_t *)(to + together * rd.bytes + k * 4u) = page ? *(const uint32_t *)(page + rd.params + in * 4u) : 0u;
		}
		asm volatile("cp.async.commit_group;" ::: "memory");
	};

	__syncwarp();
	ask(first, rd.ring);
	ask(first + step, rd.ring + ROWS_STAGE);
	for (uint32_t at = 0, stage = 0; at < n; at += step, stage ^= 1u) {	/* all halves as often */
		char *in = rd.ring + stage * ROWS_STAGE;

		asm volatile("cp.async.wait_group 1;" ::: "memory");
		__syncwarp();
#pragma unroll 2
		for (uint32_t k = 0; k < together && at + first + k * gap < n; k++) {
			const uint32_t param = rd.type == GPU_Q8 ? *(const uint32_t *)(in + together * rd.bytes + k * 4u) : 0u;
			float r[J];

			row_read<J, EXACT>(rd, in + k * rd.bytes, param, r);
			f(at + first + k * gap, r);
		}
		__syncwarp();
		ask(at + first + 2u * step, in);
	}
	asm volatile("cp.async.wait_group 0;" ::: "memory");
	__syncwarp();
}

/* --- traits of a row's own -------------------------------------------------------------------------------------------------------- */

/* The mean that EVICT_VALUE_APART is about: of half a warp. Not known: no trait needs it, or those that do stay as they are. */
struct row_first {
	struct row mean;
	bool known;
};

/* Channels c .. c + 3 of a row, c a multiple of four. */
template <uint32_t TYPE> static __device__ __forceinline__ void row_four(const char *from, const struct row_scale &p, uint32_t c, float (&v)[4])
{
	typedef typename row_element<TYPE>::type element;
	struct alignas(4 * sizeof(element)) four {
		element x[4];
	} raw = ((const struct four *)from)[c / 4u];

#pragma unroll
	for (uint32_t i = 0; i < 4; i++)
		v[i] = row_value<TYPE>(raw.x[i], p);
}

/*
 * The sum of the values of slots 0 .. n-1 (<= EVICT_FIRST), a warp's: thread t has channels 4 t .. 4 t + 3 of each 128, J of those. Even slots,
 * then odd ones, as EVICT_VALUE_APART has it. What is not there is read elsewhere and thrown away: loads with a predicate wait for each other.
 */
template <uint32_t TYPE, uint32_t J>
static __device__ __forceinline__ void first_sum(const struct lane_ctx &x, uint32_t n, float (&sum)[2][4])
{
	const uint32_t d = x.turn.head_dim, t = threadIdx.x % 32u, pages = gpu_pages_for(n), bytes = gpu_row_bytes(TYPE, d);
	char *const own = t < pages ? cuda_at(x.view, x.page[t]) : NULL;
	float part[2][J][4] = {};

	for (uint32_t p = 0; p < pages; p++) {
		const char *page = (const char *)__shfl_sync(0xffffffffu, (unsigned long long)own, (int)p);
		const char *row = page + gpu_page_v(TYPE, d), *param = page + gpu_page_params(TYPE, d) + GPU_PAGE_SLOTS * 4u;
		const uint32_t left = n - p * GPU_PAGE_SLOTS;

		if (!page)
			continue;
#pragma unroll
		for (uint32_t s = 0; s < GPU_PAGE_SLOTS; s++, row += bytes) {
			const struct row_scale scale = row_scale_of<TYPE>(TYPE == GPU_Q8 ? *cuda_u32(param, s * 4u) : 0u);

#pragma unroll
			for (uint32_t j = 0; j < J; j++) {
				float v[4];

				row_four<TYPE>(row, scale, 4u * t + 128u * j < d ? 4u * t + 128u * j : 0u, v);
#pragma unroll
				for (uint32_t i = 0; i < 4; i++)
					part[s % 2u][j][i] += s < left ? v[i] : 0.0f;
			}
		}
	}
#pragma unroll
	for (uint32_t j = 0; j < J; j++)
#pragma unroll
		for (uint32_t i = 0; i < 4; i++)
			sum[j][i] = 4u * t + 128u * j < d ? part[0][j][i] + part[1][j][i] : 0.0f;
}

/* Every warp for itself. */
static __device__ __noinline__ struct row_first first_values(const struct lane_ctx &x)
{
	const uint32_t n = min(x.live, EVICT_FIRST);
	const float one = 1.0f / (float)n;
	float sum[2][4] = {};
	struct row_first f = {};

	if (!evict_has_apart(&x.turn.rule))
		return f;
	switch (x.turn.slot_type) {
#define FIRST_SUM(type)												\
	case type:												\
		if (x.turn.head_dim <= 128)									\
			first_sum<type, 1>(x, n, sum);								\
		else												\
			first_sum<type, 2>(x, n, sum);								\
		break;
	FIRST_SUM(GPU_F32)
	FIRST_SUM(GPU_F16)
	FIRST_SUM(GPU_BF16)
	FIRST_SUM(GPU_Q8)
#undef FIRST_SUM
	default: break;
	}
#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++) {	/* channel row_thread() + 16 j to either half of the warp */
		const uint32_t from = row_thread() / 4u + 4u * (j % 8u), i = row_thread() % 4u;
		float v[4];

#pragma unroll
		for (uint32_t k = 0; k < 4; k++)
			v[k] = __shfl_sync(0xffffffffu, sum[j / 8u][k], (int)from);
		f.mean.x[j] = (i < 2u ? i ? v[1] : v[0] : i == 2u ? v[2] : v[3]) * one;
	}
	f.known = true;
	return f;
}

/* evict_distance(). */
static __device__ __forceinline__ float row_distance(const struct row &a, const struct row &b, uint32_t d)
{
	struct row away;

#pragma unroll
	for (uint32_t j = 0; j < ROW_MOST; j++)
		away.x[j] = a.x[j] - b.x[j];
	return row_norm(away, d);
}

/* A trait of one row's own (evict_trait_of()), and which row that is. Half a warp. */
static __device__ __forceinline__ uint32_t trait_row(uint32_t trait)
{
	return trait != EVICT_KEY_NORM;
}

static __device__ __forceinline__ float row_trait(const struct row &r, uint32_t trait, const struct row_first &first, uint32_t d)
{
	switch (trait) {
	case EVICT_VALUE_L1: return row_sum(r, d, true);
	case EVICT_VALUE_APART: return row_distance(r, first.mean, d);
	default: return row_norm(r, d);
	}
}

/* The traits of one slot's own rows. Half a warp. */
static __device__ __noinline__ void row_traits(const struct lane_ctx &x, uint32_t slot, const struct row_first &first)
{
	const struct evict_rule *rule = &x.turn.rule;
	char *credit = credit_block(x, slot);

	for (uint32_t i = 0; credit && i < evict_n_trait(rule->policy); i++) {
		float value;

		if (!evict_trait_once(rule->trait[i]) || (rule->trait[i] == EVICT_VALUE_APART && !first.known))
			continue;
		value = row_trait(row_load(x, slot, trait_row(rule->trait[i])), rule->trait[i], first, x.turn.head_dim);
		if (row_thread() == 0)
			*array_in(credit, x.n_credit + i, slot) = value;
	}
}

/* Is this array of a credit block a trait of a row's own? */
static __device__ __forceinline__ bool is_once(const struct lane_ctx &x, uint32_t array)
{
	const uint32_t arrays = x.turn.policy_arrays - x.turn.policy_heat - 1u;	/* credits and traits */

	return array >= x.n_credit && array < arrays && evict_trait_once(x.turn.rule.trait[array - x.n_credit]);
}

/* Tokens of the window that have a slot. */
static __device__ __forceinline__ uint32_t window_tokens(const struct lane_ctx &x)
{
	const uint64_t most = (uint64_t)x.head.fresh + x.turn.table.window;

	return x.turn.appended < most ? x.turn.appended : (uint32_t)most;
}

/* The window's tokens get their positions; they start without credit. thread: of so many. */
static __device__ __noinline__ void settle_slots(const struct lane_ctx &x, uint32_t thread, uint32_t threads)
{
	const uint32_t n = window_tokens(x);

	for (uint32_t j = thread; j < n; j += threads) {
		uint32_t slot = gpu_slot_of(x.head, x.next, j);
		char *c = slot < x.live ? credit_block(x, slot) : NULL;

		if (!c)
			continue;
		*pos_in(c, slot) = x.turn.pos + (int32_t)j;
		for (uint32_t k = 0; k < x.turn.n_credit; k++)
			if (!is_once(x, k))
				*array_in(c, k, slot) = 0.0f;
	}
}

/* The same, and their traits. A CTA of THREADS. */
static __device__ void settle(const struct lane_ctx &x)
{
	const uint32_t n = window_tokens(x);
	struct row_first first;

	settle_slots(x, threadIdx.x, THREADS);
	if (!x.turn.n_once)
		return;
	first = first_values(x);
	for (uint32_t j = threadIdx.x / ROW_THREADS; j < n; j += ROWS_AT_ONCE) {
		uint32_t slot = gpu_slot_of(x.head, x.next, j);

		if (slot < x.live)
			row_traits(x, slot, first);
	}
}

#endif
