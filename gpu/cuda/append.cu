/*
 * append: K and V of a step's tokens of one layer go into their slots.
 *
 * What: a warp takes one token of one KV head: reads its K and V row, rounds them to the slot type, writes them into the page
 * of the slot that the table names, sets the slot's position and zeroes its heat.
 * Memory traffic: the rows read once and written once, 4 bytes of position and 4 of each heat array; q8 4 bytes a row more.
 * Determinism: no two tokens of a step share a slot; no atomics.
 */
#include "gpu/cuda/mma.cuh"

#define WARPS 4			/* a CTA: enough warps to hide the table's latency, small enough for batches of a few tokens */
#define PER_LANE 8		/* channels of a lane of the warp: head_dim <= 256 */

struct append_args {
	struct cuda_view view;
	const struct gpu_seq *seq;
	const struct cuda_token *token;
	struct gpu_tensor k, v;
	unsigned n_tokens;
	uint32_t n_kv_heads, head_dim, slot_type, layer;
};

static __device__ __forceinline__ float warp_max(float x)
{
	for (int i = 16; i; i >>= 1)
		x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
	return x;
}

/*
 * q8 as in layout.h: the offset is the middle of the row's range, the scale (rounded up) reaches its
 * ends. Integers are computed against what will be read back, as on the host: the bits are the same.
 */
static __device__ void store_q8(const float x[PER_LANE], uint32_t d, unsigned thread, char *row, char *params)
{
	float lo = __int_as_float(0x7f800000), hi = -lo, middle, scale;
	__half offset, step;

#pragma unroll
	for (uint32_t i = 0; i < PER_LANE; i++) {
		if (thread + 32u * i < d) {
			lo = fminf(lo, x[i]);
			hi = fmaxf(hi, x[i]);
		}
	}
	lo = -warp_max(-lo);
	hi = warp_max(hi);
	offset = __float2half_rn(fminf(fmaxf((hi + lo) * 0.5f, -65504.0f), 65504.0f));
	middle = __half2float(offset);
	step = __float2half_ru(fminf(__fdiv_rn(hi - lo, 254.0f), 65504.0f));
	scale = __half2float(step);
#pragma unroll
	for (uint32_t i = 0; i < PER_LANE; i++) {
		float q = scale > 0.0f ? __fdiv_rn(__fsub_rn(x[i], middle), scale) : 0.0f;

		if (thread + 32u * i < d)
			((signed char *)row)[thread + 32u * i] = (signed char)rintf(fminf(fmaxf(q, -127.0f), 127.0f));
	}
	if (thread == 0) {
		((__half *)params)[0] = step;
		((__half *)params)[1] = offset;
	}
}

static __device__ void store_row(const struct gpu_tensor &t, int64_t from, const struct append_args &a, unsigned thread,
				 char *row, char *params)
{
	float x[PER_LANE];

#pragma unroll
	for (uint32_t i = 0; i < PER_LANE; i++)
		x[i] = thread + 32u * i < a.head_dim ? cuda_load(t.data, t.type, from + thread + 32u * i) : 0.0f;
	if (a.slot_type == GPU_Q8) {
		store_q8(x, a.head_dim, thread, row, params);
		return;
	}
#pragma unroll
	for (uint32_t i = 0; i < PER_LANE; i++)
		if (thread + 32u * i < a.head_dim)
			cuda_store(row, a.slot_type, thread + 32u * i, x[i]);
}

static __global__ void __launch_bounds__(WARPS * 32) append_kernel(const __grid_constant__ struct append_args a)
{
	unsigned i = blockIdx.x * WARPS + threadIdx.x / 32u, thread = threadIdx.x % 32u;
	uint32_t head = blockIdx.y, lane = a.layer * a.n_kv_heads + head, j, slot, in_page;
	const struct gpu_table *t;
	struct gpu_lane l;
	struct gpu_seq seq;
	char *page, *block;

	mma_after();
	mma_next();
	if (i >= a.n_tokens)
		return;
	seq = a.seq[a.token[i].seq];
	t = (const struct gpu_table *)seq.table;
	if (lane >= t->n_lanes)
		return;
	l = ((const struct gpu_lane *)((const char *)t + gpu_table_lanes()))[lane];
	j = seq.used + a.token[i].j;
	if (j >= l.fresh && j - l.fresh >= t->window)
		return;
	slot = gpu_slot_of(l, cuda_u32(t, gpu_table_next(t)) + (size_t)lane * t->window, j);
	if (slot >= cuda_slots(t))
		return;
	page = cuda_page(a.view, t, lane, slot);
	block = cuda_block(a.view, t, lane, slot);
	if (!page || !block)
		return;
	in_page = slot % GPU_PAGE_SLOTS;
	{
		uint32_t row_bytes = gpu_row_bytes(a.slot_type, a.head_dim);
		char *params = page + gpu_page_params(a.slot_type, a.head_dim);
		int64_t r = (int64_t)seq.row + a.token[i].j, c = (int64_t)head * a.head_dim;

		store_row(a.k, r * a.k.stride + c, a, thread, page + (size_t)in_page * row_bytes, params + in_page * 4u);
		store_row(a.v, r * a.v.stride + c, a, thread,
			  page + gpu_page_v(a.slot_type, a.head_dim) + (size_t)in_page * row_bytes,
			  params + (GPU_PAGE_SLOTS + in_page) * 4u);
	}
	if (thread == 0)
		((int32_t *)block)[slot % GPU_BLOCK_SLOTS] = seq.pos + (int32_t)a.token[i].j;
	else if (thread <= t->n_heat && thread <= GPU_MAX_HEAT)
		((float *)block)[GPU_BLOCK_SLOTS * thread + slot % GPU_BLOCK_SLOTS] = 0.0f;
}

int cuda_append(struct gpu_step *step, gpu_stream s, uint32_t layer, const struct gpu_tensor *k, const struct gpu_tensor *v)
{
	struct cuda_step *st = (struct cuda_step *)step;
	struct append_args a = { st->view, st->seq, st->token, *k, *v, st->n_tokens, st->shape.n_kv_heads,
				 st->shape.head_dim, st->shape.slot_type, layer };
	cudaLaunchAttribute early;
	cudaLaunchConfig_t c = {};
	int rc = cuda_use(step->dev);

	if (rc || !st->n_tokens)
		return rc;
	early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
	early.val.programmaticStreamSerializationAllowed = 1;
	c.gridDim = dim3((st->n_tokens + WARPS - 1) / WARPS, st->shape.n_kv_heads);
	c.blockDim = dim3(WARPS * 32);
	c.stream = cuda_stream(s);
	c.attrs = &early;
	c.numAttrs = cuda_early(st);
	return cuda_errno(cudaLaunchKernelEx(&c, append_kernel, a));
}
