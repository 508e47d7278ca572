/* The CUDA backend of a build without CUDA: knows the names and says that it is not there. */
#include "gpu/backend.h"

#include <errno.h>
#include <string.h>

static int none_open(struct gpu_device **out, const char *name)
{
	(void)out;
	return strncmp(name, "cuda:", 5) == 0 ? -ENOTSUP : -EINVAL;
}

const struct gpu_backend gpu_cuda_backend = { .open = none_open };

int gpu_cuda_count(void)
{
	return 0;
}
