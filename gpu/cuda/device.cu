/*
 * CUDA devices: opening by ordinal or UUID, errors, slabs that other processes can map, streams.
 *
 * Every call makes its device current for the calling thread. Where there is no driver the static runtime says so by
 * an error code, so the same binary runs on machines without a GPU.
 */
#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda/wide.cuh"

int cuda_errno(cudaError_t e)
{
	if (e == cudaSuccess)
		return 0;
	(void)cudaGetLastError();
	switch (e) {
	case cudaErrorMemoryAllocation:
		return -ENOMEM;
	case cudaErrorNotReady:
		return -EAGAIN;
	case cudaErrorNoDevice:
	case cudaErrorInvalidDevice:
	case cudaErrorInsufficientDriver:
	case cudaErrorInitializationError:
	case cudaErrorStubLibrary:
	case cudaErrorDevicesUnavailable:
	case cudaErrorSystemNotReady:
	case cudaErrorSystemDriverMismatch:
	case cudaErrorCompatNotSupportedOnDevice:
		return -ENODEV;
	case cudaErrorInvalidValue:
	case cudaErrorInvalidResourceHandle:
	case cudaErrorInvalidConfiguration:
	case cudaErrorInvalidDevicePointer:
	case cudaErrorInvalidMemcpyDirection:
	case cudaErrorMapBufferObjectFailed:	/* an IPC handle whose memory is gone */
	case cudaErrorDeviceUninitialized:	/* an IPC handle of this very process */
		return -EINVAL;
	case cudaErrorHostMemoryAlreadyRegistered:
		return -EEXIST;
	case cudaErrorHostMemoryNotRegistered:
		return -ENOENT;
	case cudaErrorNotSupported:
	case cudaErrorNoKernelImageForDevice:
	case cudaErrorOperatingSystem:
		return -ENOTSUP;
	case cudaErrorStreamCaptureUnsupported:
	case cudaErrorStreamCaptureImplicit:
		return -EBUSY;
	default:
		return -ENOTRECOVERABLE;
	}
}

int cuda_use(const struct gpu_device *dev)
{
	return cuda_errno(cudaSetDevice(dev->info.ordinal));
}

int gpu_cuda_count(void)
{
	int n = 0;

	return cuda_errno(cudaGetDeviceCount(&n)) ? 0 : n;
}

/* 16 bytes as GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx. */
static void format_uuid(char out[48], const char *bytes)
{
	size_t at = (size_t)snprintf(out, 48, "GPU-");

	for (int i = 0; i < 16; i++)
		at += (size_t)snprintf(out + at, 48 - at, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x",
				       (unsigned)(unsigned char)bytes[i]);
}

static int same_uuid(const char *a, const char *b)
{
	for (; *a && tolower((unsigned char)*a) == tolower((unsigned char)*b); a++, b++)
		;
	return *a == *b;
}

/* Does it have the form of a UUID, after an optional "GPU-"? */
static int is_uuid(const char *s)
{
	if (strlen(s) != 36)
		return 0;
	for (int i = 0; i < 36; i++)
		if (i == 8 || i == 13 || i == 18 || i == 23 ? s[i] != '-' : !isxdigit((unsigned char)s[i]))
			return 0;
	return 1;
}

/* Turn the part of a name behind "cuda:" into an ordinal and its properties. */
static int find(const char *what, int *ordinal, struct cudaDeviceProp *prop)
{
	const char *uuid = strncmp(what, "GPU-", 4) == 0 ? what + 4 : what;
	int n, by_number = *what && strspn(what, "0123456789") == strlen(what);
	char text[48];
	int rc;

	if (!by_number && !is_uuid(uuid))
		return -EINVAL;
	rc = cuda_errno(cudaGetDeviceCount(&n));
	if (rc)
		return rc == -ENOMEM || rc == -ENOTRECOVERABLE ? rc : -ENODEV;
	for (int i = 0; i < n; i++) {
		if (by_number && (strlen(what) > 9 || atoi(what) != i))
			continue;
		rc = cuda_errno(cudaGetDeviceProperties(prop, i));
		if (rc)
			return rc;
		format_uuid(text, prop->uuid.bytes);
		if (by_number || same_uuid(text + 4, uuid)) {
			*ordinal = i;
			return 0;
		}
	}
	return -ENODEV;
}

static void free_ring(struct cuda_device *d)
{
	for (unsigned i = 0; i < CUDA_RING_SEGMENTS; i++)
		if (d->done[i])
			(void)cudaEventDestroy(d->done[i]);
	(void)cudaFree(d->twin);
	(void)cudaFreeHost(d->ring);
}

static int new_ring(struct cuda_device *d)
{
	size_t bytes = (size_t)CUDA_RING_SEGMENTS * CUDA_SEGMENT_BYTES;
	cudaError_t e = cudaHostAlloc((void **)&d->ring, bytes, cudaHostAllocPortable);

	if (e == cudaSuccess)
		e = cudaMalloc((void **)&d->twin, bytes);
	for (unsigned i = 0; i < CUDA_RING_SEGMENTS && e == cudaSuccess; i++)
		e = cudaEventCreateWithFlags(&d->done[i], cudaEventDisableTiming);
	return cuda_errno(e);
}

int cuda_open(struct gpu_device **out, const char *name)
{
	struct cudaDeviceProp prop;
	struct cuda_device *d;
	int ordinal = 0, rc;

	if (strncmp(name, "cuda:", 5) != 0)
		return -EINVAL;
	rc = find(name + 5, &ordinal, &prop);
	if (rc)
		return rc;
	d = (struct cuda_device *)calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->base.ops = &gpu_cuda_backend;
	d->base.info.is_cuda = 1;
	d->base.info.ordinal = ordinal;
	d->base.info.total_bytes = prop.totalGlobalMem;
	(void)snprintf(d->base.info.name, sizeof(d->base.info.name), "%.*s", GPU_NAME_BYTES - 1, prop.name);
	format_uuid(d->base.info.uuid, prop.uuid.bytes);
	d->n_sm = prop.multiProcessorCount;
	d->major = prop.major;
	d->shared_block = prop.sharedMemPerBlockOptin;
	d->shared_sm = prop.sharedMemPerMultiprocessor;
	rc = cuda_use(&d->base);
	if (!rc)
		rc = new_ring(d);
	d->wide = !rc && wide_runs();
	if (rc) {
		free_ring(d);
		free(d);
		return rc;
	}
	(void)pthread_mutex_init(&d->lock, NULL);
	*out = &d->base;
	return 0;
}

void cuda_close(struct gpu_device *dev)
{
	struct cuda_device *d = cuda_dev(dev);

	if (cuda_use(dev) == 0) {
		(void)cudaDeviceSynchronize();	/* the ring may still be read */
		free_ring(d);
		if (d->scratch)
			(void)cudaMemPoolDestroy(d->scratch);
		if (d->order)
			(void)cudaEventDestroy(d->order);
		for (unsigned i = 0; i < d->n_pieces; i++)
			(void)cudaFreeHost(d->piece[i].at);
	}
	free(d->piece);
	(void)pthread_mutex_destroy(&d->lock);
	free(d);
}

int cuda_set_threads(struct gpu_device *dev, unsigned n_threads)
{
	(void)dev;
	(void)n_threads;
	return 0;
}

int cuda_slab_new(struct gpu_device *dev, size_t bytes, int shared, struct gpu_slab *slab)
{
	cudaIpcMemHandle_t handle;
	void *base = NULL;
	cudaError_t e;
	int rc = cuda_use(dev);

	if (rc)
		return rc;
	if (!bytes)
		return -EINVAL;
	e = cudaMalloc(&base, bytes);
	if (e != cudaSuccess)
		return cuda_errno(e);
	memset(&handle, 0, sizeof(handle));
	e = cudaMemset(base, 0, bytes);
	if (e == cudaSuccess)
		e = cudaStreamSynchronize(0);
	if (e == cudaSuccess && shared)
		e = cudaIpcGetMemHandle(&handle, base);
	if (e != cudaSuccess) {
		(void)cudaFree(base);
		return cuda_errno(e);
	}
	memset(slab, 0, sizeof(*slab));
	slab->base = base;
	slab->bytes = bytes;
	slab->fd = -1;
	static_assert(sizeof(handle) == GPU_HANDLE_BYTES, "the wire carries a CUDA handle");
	memcpy(slab->handle, &handle, sizeof(handle));
	return 0;
}

void cuda_slab_free(struct gpu_device *dev, struct gpu_slab *slab)
{
	if (slab->base && cuda_use(dev) == 0)
		(void)cudaFree(slab->base);
	memset(slab, 0, sizeof(*slab));
	slab->fd = -1;
}

int cuda_slab_import(struct gpu_device *dev, const uint8_t *handle, int fd, size_t bytes, void **base)
{
	cudaIpcMemHandle_t h;
	void *at = NULL;
	int rc = cuda_use(dev);

	(void)fd;
	if (rc)
		return rc;
	if (!bytes)
		return -EINVAL;
	memcpy(&h, handle, sizeof(h));
	rc = cuda_errno(cudaIpcOpenMemHandle(&at, h, cudaIpcMemLazyEnablePeerAccess));
	if (!rc)
		*base = at;
	return rc;
}

void cuda_slab_unmap(struct gpu_device *dev, void *base, size_t bytes)
{
	(void)bytes;
	if (base && cuda_use(dev) == 0)
		(void)cuda_errno(cudaIpcCloseMemHandle(base));
}

/* Streams that wait for, and are waited for by, the default stream: a caller that passes NULL stays in order with them. Not those apart. */
int cuda_stream_new(struct gpu_device *dev, int apart, gpu_stream *out)
{
	cudaStream_t s;
	int rc = cuda_use(dev);

	if (!rc)
		rc = cuda_errno(cudaStreamCreateWithFlags(&s, apart ? cudaStreamNonBlocking : cudaStreamDefault));
	if (!rc)
		*out = s;
	return rc;
}

void cuda_stream_free(struct gpu_device *dev, gpu_stream s)
{
	if (s && cuda_use(dev) == 0)
		(void)cudaStreamDestroy(cuda_stream(s));
}

int cuda_sync(struct gpu_device *dev, gpu_stream s)
{
	int rc = cuda_use(dev);

	return rc ? rc : cuda_errno(cudaStreamSynchronize(cuda_stream(s)));
}
