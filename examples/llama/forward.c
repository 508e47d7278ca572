#include "examples/llama/forward.h"

#include <stddef.h>

const struct forward_ops *forward_for(int is_cuda, int bf16)
{
	if (!is_cuda)
		return &forward_cpu_ops;
	if (bf16)
		return &forward_bf16_ops ? &forward_bf16_ops : NULL;
	return &forward_cuda_ops ? &forward_cuda_ops : NULL;
}
