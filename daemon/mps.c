/* Is there an MPS server? CUDA looks once, when a process first uses it, so the answer at the start of ebbd is the one that counts. */
#include "daemon/daemon.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

bool mps_on(void)
{
	const char *dir = getenv("CUDA_MPS_PIPE_DIRECTORY");
	char path[512];
	int pid = 0;
	FILE *f;

	/* nvidia-cuda-mps-control writes its pid here, beside the pipes that CUDA opens. */
	snprintf(path, sizeof(path), "%s/nvidia-cuda-mps-control.pid", dir && *dir ? dir : "/tmp/nvidia-mps");
	f = fopen(path, "re");
	if (!f)
		return false;
	if (fscanf(f, "%d", &pid) != 1)
		pid = 0;
	fclose(f);
	return pid > 0 && (kill(pid, 0) == 0 || errno == EPERM);
}
