#include "examples/llama/forward.h"

const struct forward_ops *forward_for(int is_cuda)
{
	if (!is_cuda)
		return &forward_cpu_ops;
	return &forward_cuda_ops ? &forward_cuda_ops : NULL;
}
