/*
 * Bytes to, from and on a device, and word from the device to the host.
 *
 * What: copy, write, read, scrub by the copy engines; notify by a host callback; signal by a kernel of a thread a word;
 * await by the stream memory operations of the driver.
 * Memory traffic: each byte once, and once more through the pinned ring for writes; a signal 8 bytes a word.
 * Determinism: everything happens in stream order.
 */
#include <cudaTypedefs.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/cuda/common.cuh"

#define REGISTERED_MAX 256	/* connections of a process */
#define AWAIT_MAX 128u		/* words of one call of the driver, which takes 256 */
#define SIGNAL_MAX 252u		/* words of one launch: its parameters are below 4 KiB */

struct signal_args {
	unsigned n;
	uint64_t *word[SIGNAL_MAX];
	uint64_t value[SIGNAL_MAX];
};

/*
 * A word a thread, because a store that is visible to the host takes about a microsecond. All work before this kernel is in its past, so each
 * store releases it; the words among themselves are in no order. Partner: the acquire loads of whoever polls them.
 */
static __global__ void signal_kernel(const __grid_constant__ struct signal_args a)
{
	unsigned i = threadIdx.x;

	if (i < a.n)
		asm volatile("st.release.sys.global.u64 [%0], %1;" :: "l"(a.word[i]), "l"(a.value[i]) : "memory");
}

int cuda_lease(struct cuda_device *dev, size_t bytes, struct cuda_lease *out)
{
	unsigned n = (unsigned)((bytes + CUDA_SEGMENT_BYTES - 1) / CUDA_SEGMENT_BYTES);

	if (bytes > CUDA_LEASE_MAX)
		return -E2BIG;
	if (!n)
		n = 1;
	(void)pthread_mutex_lock(&dev->lock);
	if (dev->next + n > CUDA_RING_SEGMENTS)
		dev->next = 0;
	for (unsigned i = dev->next; i < dev->next + n; i++) {
		cudaError_t e = cudaEventQuery(dev->done[i]);

		if (e == cudaErrorNotReady)
			e = cudaEventSynchronize(dev->done[i]);
		if (e != cudaSuccess) {
			(void)pthread_mutex_unlock(&dev->lock);
			return cuda_errno(e);
		}
	}
	(void)cudaGetLastError();	/* a not-ready event leaves its mark */
	out->first = dev->next;
	out->n = n;
	out->host = dev->ring + (size_t)dev->next * CUDA_SEGMENT_BYTES;
	out->dev = dev->twin + (size_t)dev->next * CUDA_SEGMENT_BYTES;
	dev->next = (dev->next + n) % CUDA_RING_SEGMENTS;
	return 0;
}

int cuda_unlease(struct cuda_device *dev, cudaStream_t s, const struct cuda_lease *lease)
{
	cudaError_t e = cudaSuccess;

	for (unsigned i = 0; i < lease->n && e == cudaSuccess; i++)
		e = cudaEventRecord(dev->done[lease->first + i], s);
	(void)pthread_mutex_unlock(&dev->lock);
	return cuda_errno(e);
}

int cuda_scratch(struct cuda_device *dev, cudaStream_t s, size_t bytes, void **out)
{
	uint64_t keep = UINT64_MAX;	/* bytes, whatever is synchronised */

	if (!dev->scratch) {
		cudaMemPoolProps props = {};
		int rc;

		props.allocType = cudaMemAllocationTypePinned;
		props.location.type = cudaMemLocationTypeDevice;
		props.location.id = dev->base.info.ordinal;
		rc = cuda_errno(cudaMemPoolCreate(&dev->scratch, &props));
		if (rc)
			return rc;
		rc = cuda_errno(cudaMemPoolSetAttribute(dev->scratch, cudaMemPoolAttrReleaseThreshold, &keep));
		if (rc)
			return rc;
	}
	return cuda_errno(cudaMallocFromPoolAsync(out, bytes, dev->scratch, s));
}

int cuda_copy(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes)
{
	int rc = cuda_use(dev);

	return rc || !bytes ? rc : cuda_errno(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, cuda_stream(s)));
}

int cuda_write(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes)
{
	struct cuda_device *d = cuda_dev(dev);
	const size_t piece = 32u * (size_t)CUDA_SEGMENT_BYTES;	/* 1 MiB: large copies overlap filling with sending */
	int rc = cuda_use(dev);

	for (size_t at = 0; at < bytes && !rc; at += piece) {
		size_t n = bytes - at < piece ? bytes - at : piece;
		struct cuda_lease lease;
		int rc2;

		rc = cuda_lease(d, n, &lease);
		if (rc)
			break;
		memcpy(lease.host, (const char *)src + at, n);
		rc = cuda_errno(cudaMemcpyAsync((char *)dst + at, lease.host, n, cudaMemcpyHostToDevice, cuda_stream(s)));
		rc2 = cuda_unlease(d, cuda_stream(s), &lease);
		rc = rc ? rc : rc2;
	}
	return rc;
}

int cuda_read(struct gpu_device *dev, gpu_stream s, void *dst, const void *src, size_t bytes)
{
	int rc = cuda_use(dev);

	if (rc || !bytes)
		return rc;
	rc = cuda_errno(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, cuda_stream(s)));
	return rc ? rc : cuda_errno(cudaStreamSynchronize(cuda_stream(s)));
}

int cuda_scrub(struct gpu_device *dev, gpu_stream s, void *dst, size_t bytes)
{
	int rc = cuda_use(dev);

	return rc || !bytes ? rc : cuda_errno(cudaMemsetAsync(dst, 0, bytes, cuda_stream(s)));
}

static void CUDART_CB ring_bell(void *arg)
{
	uint64_t one = 1;
	ssize_t n = write((int)(intptr_t)arg, &one, sizeof(one));

	(void)n;	/* a full counter wakes its reader as well as one more would */
}

int cuda_notify(struct gpu_device *dev, gpu_stream s, int eventfd)
{
	int rc = cuda_use(dev);

	return rc ? rc : cuda_errno(cudaLaunchHostFunc(cuda_stream(s), ring_bell, (void *)(intptr_t)eventfd));
}

/*
 * What is registered, by how many devices: CUDA registers memory once for all devices of a process, while a client with two pools
 * registers its words for each of them.
 */
static struct {
	void *ptr;
	unsigned n;
} registered[REGISTERED_MAX];
static pthread_mutex_t registered_lock = PTHREAD_MUTEX_INITIALIZER;

static int find_registered(const void *ptr)
{
	for (int i = 0; i < REGISTERED_MAX; i++)
		if (registered[i].ptr == ptr)
			return i;
	return -1;
}

static int register_first(void *ptr, size_t bytes)
{
	void *at = NULL;
	int slot = find_registered(NULL), rc;

	if (slot < 0)
		return -ENOSPC;
	rc = cuda_errno(cudaHostRegister(ptr, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped));
	if (rc)
		return rc;
	/* signal() uses the host's addresses on the device: so they must be the same, as they are on x86-64 Linux. */
	rc = cuda_errno(cudaHostGetDevicePointer(&at, ptr, 0));
	if (!rc && at != ptr)
		rc = -ENOTSUP;
	if (rc) {
		(void)cudaHostUnregister(ptr);
		return rc;
	}
	registered[slot].ptr = ptr;
	registered[slot].n = 1;
	return 0;
}

int cuda_reg(struct gpu_device *dev, void *ptr, size_t bytes)
{
	int rc = cuda_use(dev), slot;

	if (rc || !ptr)
		return rc ? rc : -EINVAL;
	(void)pthread_mutex_lock(&registered_lock);
	slot = find_registered(ptr);
	if (slot >= 0)
		registered[slot].n++;
	else
		rc = register_first(ptr, bytes);
	(void)pthread_mutex_unlock(&registered_lock);
	return rc;
}

void cuda_unreg(struct gpu_device *dev, void *ptr)
{
	int slot;

	if (!ptr || cuda_use(dev))
		return;
	(void)pthread_mutex_lock(&registered_lock);
	slot = find_registered(ptr);
	if (slot >= 0 && --registered[slot].n == 0) {
		(void)cuda_errno(cudaHostUnregister(ptr));
		registered[slot].ptr = NULL;
	}
	(void)pthread_mutex_unlock(&registered_lock);
}

int cuda_signal(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[])
{
	int rc = cuda_use(dev);

	for (unsigned at = 0; at < n && !rc; at += SIGNAL_MAX) {
		struct signal_args a;

		a.n = n - at < SIGNAL_MAX ? n - at : SIGNAL_MAX;
		for (unsigned i = 0; i < a.n; i++) {
			a.word[i] = word[at + i];
			a.value[i] = value[at + i];
		}
		signal_kernel<<<1, (a.n + 31u) / 32u * 32u, 0, cuda_stream(s)>>>(a);
		rc = cuda_errno(cudaGetLastError());
	}
	return rc;
}

/* The driver's own function: the runtime has none for this. */
static PFN_cuStreamBatchMemOp_v11070 batch_mem_op(void)
{
	enum cudaDriverEntryPointQueryResult found;
	void *f = NULL;

	if (cudaGetDriverEntryPointByVersion("cuStreamBatchMemOp", &f, 11070, cudaEnableDefault, &found) != cudaSuccess ||
	    found != cudaDriverEntryPointSuccess)
		f = NULL;
	(void)cudaGetLastError();
	return (PFN_cuStreamBatchMemOp_v11070)f;
}

/* The device's front end polls the words, no multiprocessor does. Partner: the release stores of signal_kernel(), or of a host. */
int cuda_await(struct gpu_device *dev, gpu_stream s, unsigned n, uint64_t *const word[], const uint64_t value[])
{
	const PFN_cuStreamBatchMemOp_v11070 f = batch_mem_op();
	CUstreamBatchMemOpParams op[AWAIT_MAX];
	int rc = cuda_use(dev);

	if (!rc && !f)
		rc = -ENOTSUP;
	for (unsigned at = 0, m; at < n && !rc; at += m) {
		m = n - at < AWAIT_MAX ? n - at : AWAIT_MAX;
		memset(op, 0, sizeof(op));
		for (unsigned i = 0; i < m; i++) {
			op[i].waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_64;
			op[i].waitValue.address = (CUdeviceptr)(uintptr_t)word[at + i];
			op[i].waitValue.value64 = value[at + i];
			op[i].waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;
		}
		switch (f((CUstream)cuda_stream(s), m, op, 0)) {
		case CUDA_SUCCESS: break;
		case CUDA_ERROR_NOT_SUPPORTED: rc = -ENOTSUP; break;
		case CUDA_ERROR_INVALID_VALUE: rc = -EINVAL; break;
		default: rc = -ENOTRECOVERABLE;
		}
	}
	return rc;
}

int cuda_order(struct gpu_device *dev, gpu_stream first, gpu_stream then)
{
	struct cuda_device *d = cuda_dev(dev);
	int rc = cuda_use(dev);

	if (!rc && !d->order)
		rc = cuda_errno(cudaEventCreateWithFlags(&d->order, cudaEventDisableTiming));
	if (!rc)
		rc = cuda_errno(cudaEventRecord(d->order, cuda_stream(first)));
	return rc ? rc : cuda_errno(cudaStreamWaitEvent(cuda_stream(then), d->order, 0));
}

/* A free piece of that size, or a new one. To free one for good would wait for the whole device, for waiting streams too. */
static int take_piece(struct cuda_device *d, size_t bytes, void **out)
{
	struct cuda_piece *more;
	void *at = NULL;
	int rc;

	for (unsigned i = 0; i < d->n_pieces; i++)
		if (d->piece[i].free && d->piece[i].bytes == bytes) {
			d->piece[i].free = false;
			*out = d->piece[i].at;
			return 0;
		}
	more = (struct cuda_piece *)realloc(d->piece, (d->n_pieces + 1u) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	d->piece = more;
	rc = cuda_errno(cudaHostAlloc(&at, bytes, cudaHostAllocPortable | cudaHostAllocMapped));
	if (rc)
		return rc;
	more[d->n_pieces].at = *out = at;
	more[d->n_pieces].bytes = bytes;
	more[d->n_pieces++].free = false;
	return 0;
}

int cuda_host_alloc(struct gpu_device *dev, size_t bytes, void **out)
{
	struct cuda_device *d = cuda_dev(dev);
	size_t rounded = 4096;
	int rc = cuda_use(dev);

	while (rounded < bytes)
		rounded *= 2;
	(void)pthread_mutex_lock(&d->lock);
	if (!rc)
		rc = take_piece(d, rounded, out);
	(void)pthread_mutex_unlock(&d->lock);
	if (!rc)
		memset(*out, 0, bytes);
	return rc;
}

void cuda_host_free(struct gpu_device *dev, void *ptr)
{
	struct cuda_device *d = cuda_dev(dev);

	(void)pthread_mutex_lock(&d->lock);
	for (unsigned i = 0; i < d->n_pieces && ptr; i++)
		if (d->piece[i].at == ptr)
			d->piece[i].free = true;
	(void)pthread_mutex_unlock(&d->lock);
}
