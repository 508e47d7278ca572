/*
 * FlashInfer's batch decode (peer_flashinfer.cuh) through its public headers, called as its Python wrapper calls it: a plan outside the
 * graph that fits these lengths (faster than the plan for graphs that stay), early launches on, no mask, no log-sum-exp.
 */
#include <flashinfer/attention/decode.cuh>
#include <flashinfer/attention/default_decode_params.cuh>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>

#include <stdio.h>

#include <vector>

#include "tests/gpu/peer_flashinfer.cuh"

namespace fi = flashinfer;

#define FLOATS (256ull << 20)	/* bytes of workspace, as its documentation advises */
#define INTS (8ull << 20)

using bf16 = __nv_bfloat16;
using plain = fi::DefaultAttention<false, false, false, false>;
using decode_params = fi::BatchDecodeParams<bf16, bf16, bf16, int32_t>;
using prefill_params = fi::BatchPrefillPagedParams<bf16, bf16, bf16, int32_t>;

struct peer {
	struct peer_shape s;
	char *floats, *ints, *pinned;
	int32_t *indices, *indptr, *last, *q_indptr;
	fi::DecodePlanInfo decode;
	fi::PrefillPlanInfo prefill;
};

static int complain(const char *what, const char *why)
{
	fprintf(stderr, "FlashInfer: %s: %s\n", what, why);
	return 1;
}

static int cu(cudaError_t e, const char *what)
{
	return e == cudaSuccess ? 0 : complain(what, cudaGetErrorString(e));
}

static int32_t *ints_at(const struct peer *p, int64_t offset)
{
	return (int32_t *)(p->ints + offset);
}

/* What CTAs that share a lane leave for each other. */
template <typename T> static T *parts(const struct peer *p, bool split, int64_t offset)
{
	return split ? (T *)(p->floats + offset) : nullptr;
}

template <uint32_t D, uint32_t G> static cudaError_t plan_decode(struct peer *p, int32_t *indptr, cudaStream_t stream)
{
	auto estimate = fi::BatchDecodeWithPagedKVCacheWorkEstimationDispatched<G, D, fi::PosEncodingMode::kNone, plain, decode_params>;

	return fi::DecodePlan<D, fi::PosEncodingMode::kNone, plain, decode_params>(
		p->floats, FLOATS, p->ints, p->pinned, INTS, p->decode, indptr, p->s.sessions, p->s.kv_heads * G, PEER_PAGE, false, stream,
		estimate);
}

template <uint32_t D> static cudaError_t plan(struct peer *p, int32_t *indptr, int32_t *q_indptr, cudaStream_t stream)
{
	const struct peer_shape *s = &p->s;

	if (s->tensor_cores)
		return fi::PrefillPlan<int32_t>(p->floats, FLOATS, p->ints, p->pinned, INTS, p->prefill, q_indptr, indptr, s->sessions,
						s->sessions, s->kv_heads * s->group, s->kv_heads, D, D, PEER_PAGE, false, 2, -1, -1, false,
						0, 1, true, stream);
	switch (s->group) {
	case 1: return plan_decode<D, 1>(p, indptr, stream);
	case 3: return plan_decode<D, 3>(p, indptr, stream);
	case 4: return plan_decode<D, 4>(p, indptr, stream);
	case 8: return plan_decode<D, 8>(p, indptr, stream);
	}
	return cudaErrorNotSupported;
}

static fi::paged_kv_t<bf16, int32_t> pages(const struct peer *p, const void *kv)
{
	const struct peer_shape *s = &p->s;
	int64_t half = (int64_t)PEER_PAGE * s->kv_heads * s->head_dim;
	int64_t stride[4] = { 2 * half, (int64_t)(s->hnd ? PEER_PAGE : s->kv_heads) * s->head_dim, s->head_dim, 1 };
	fi::QKVLayout layout = s->hnd ? fi::QKVLayout::kHND : fi::QKVLayout::kNHD;

	return fi::paged_kv_t<bf16, int32_t>(s->kv_heads, PEER_PAGE, s->head_dim, s->sessions, layout, (bf16 *)kv, (bf16 *)kv + half,
					     stride, p->indices, p->indptr, p->last);
}

template <uint32_t D> static cudaError_t decode(struct peer *p, const void *kv, const void *q, void *out, float scale, cudaStream_t stream)
{
	uint32_t heads = p->s.kv_heads * p->s.group;
	decode_params a((bf16 *)q, nullptr, pages(p, kv), (bf16 *)out, nullptr, nullptr, heads, heads * D, D, -1, 0.0f, scale, 1.0f, 1e4f);
	const fi::DecodePlanInfo &i = p->decode;

	a.request_indices = ints_at(p, i.request_indices_offset);
	a.kv_tile_indices = ints_at(p, i.kv_tile_indices_offset);
	a.o_indptr = ints_at(p, i.o_indptr_offset);
	a.kv_chunk_size_ptr = ints_at(p, i.kv_chunk_size_ptr_offset);
	a.padded_batch_size = (uint32_t)i.padded_batch_size;
	return fi::BatchDecodeWithPagedKVCacheDispatched<D, fi::PosEncodingMode::kNone, plain, decode_params>(
		a, parts<bf16>(p, i.split_kv, i.v_offset), parts<float>(p, i.split_kv, i.s_offset), true, stream);
}

template <uint32_t D> static cudaError_t prefill(struct peer *p, const void *kv, const void *q, void *out, float scale, cudaStream_t stream)
{
	uint32_t heads = p->s.kv_heads * p->s.group;
	prefill_params a((bf16 *)q, pages(p, kv), nullptr, p->q_indptr, nullptr, nullptr, (bf16 *)out, nullptr, nullptr, heads, heads * D,
			 D, -1, 0.0f, scale, 1.0f, 1e4f);
	const fi::PrefillPlanInfo &i = p->prefill;

	if (i.cta_tile_q != 16)	/* one query a session has no more rows than that */
		return cudaErrorNotSupported;
	a.request_indices = ints_at(p, i.request_indices_offset);
	a.qo_tile_indices = ints_at(p, i.qo_tile_indices_offset);
	a.kv_tile_indices = ints_at(p, i.kv_tile_indices_offset);
	a.o_indptr = ints_at(p, i.o_indptr_offset);
	a.kv_chunk_size_ptr = ints_at(p, i.kv_chunk_size_ptr_offset);
	a.merge_indptr = i.split_kv ? ints_at(p, i.merge_indptr_offset) : nullptr;
	a.padded_batch_size = (uint32_t)i.padded_batch_size;
	a.max_total_num_rows = (uint32_t)i.total_num_rows;
	return fi::BatchPrefillWithPagedKVCacheDispatched<true, 16, D, D, fi::PosEncodingMode::kNone, false, fi::MaskMode::kNone, false,
							  plain, prefill_params>(
		a, parts<bf16>(p, i.split_kv, i.v_offset), parts<float>(p, i.split_kv, i.s_offset), true, stream);
}

static int copied(const std::vector<int32_t> &from, int32_t **to)
{
	size_t bytes = from.size() * sizeof(from[0]);

	return cu(cudaMalloc(to, bytes), "memory") || cu(cudaMemcpy(*to, from.data(), bytes, cudaMemcpyHostToDevice), "lists");
}

int peer_new(const struct peer_shape *s, const int32_t *page, cudaStream_t stream, struct peer **out)
{
	struct peer *p = new struct peer();
	uint32_t each = s->tokens / PEER_PAGE;
	std::vector<int32_t> indices(page, page + (size_t)s->sessions * each), indptr, one, last(s->sessions, PEER_PAGE);
	int bad;

	p->s = *s;
	for (uint32_t i = 0; i <= s->sessions; i++) {
		indptr.push_back((int32_t)(i * each));
		one.push_back((int32_t)i);
	}
	bad = cu(cudaMalloc(&p->floats, FLOATS), "memory") || cu(cudaMalloc(&p->ints, INTS), "memory") ||
	      cu(cudaMallocHost(&p->pinned, INTS), "memory") || copied(indices, &p->indices) || copied(indptr, &p->indptr) ||
	      copied(last, &p->last) || copied(one, &p->q_indptr);
	try {
		bad = bad || cu(s->head_dim == 64 ? plan<64>(p, indptr.data(), one.data(), stream) :
				s->head_dim == 128 ? plan<128>(p, indptr.data(), one.data(), stream) : cudaErrorNotSupported, "plan");
	} catch (const std::exception &e) {
		bad = complain("plan", e.what());
	}
	if (bad || cu(cudaStreamSynchronize(stream), "plan")) {
		peer_free(p);
		return 1;
	}
	*out = p;
	return 0;
}

int peer_run(struct peer *p, const void *kv, const void *q, void *out, float scale, cudaStream_t stream)
{
	auto run = p->s.head_dim == 128 ? p->s.tensor_cores ? prefill<128> : decode<128> : p->s.tensor_cores ? prefill<64> : decode<64>;

	try {
		return cu(run(p, kv, q, out, scale, stream), "run");
	} catch (const std::exception &e) {
		return complain("run", e.what());
	}
}

void peer_free(struct peer *p)
{
	cudaFree(p->floats);
	cudaFree(p->ints);
	cudaFreeHost(p->pinned);
	cudaFree(p->indices);
	cudaFree(p->indptr);
	cudaFree(p->last);
	cudaFree(p->q_indptr);
	delete p;
}
