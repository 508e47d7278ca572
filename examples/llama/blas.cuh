/*
 * cuBLAS, found when it is needed and not before: ebb-llama runs where there is none. The library's own major version is looked for where the
 * dynamic linker looks (LD_LIBRARY_PATH), then in /usr/local/cuda.
 */
#ifndef LLAMA_BLAS_CUH
#define LLAMA_BLAS_CUH

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define BLAS_TEXT2(x) #x
#define BLAS_TEXT(x) BLAS_TEXT2(x)
#define BLAS_NAME "libcublas.so." BLAS_TEXT(CUBLAS_VER_MAJOR)
#define BLAS_WORKSPACE (64u << 20)	/* given, because a captured product must not allocate */

/* The header overloads the name in C++; the symbol is this one. */
typedef cublasStatus_t (*blas_gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *, const void *,
				    cudaDataType_t, int, const void *, cudaDataType_t, int, const void *, void *, cudaDataType_t, int,
				    cublasComputeType_t, cublasGemmAlgo_t);

struct blas {
	void *lib, *workspace;
	cublasHandle_t handle;
	decltype(&cublasDestroy_v2) destroy;
	blas_gemm gemm;
	decltype(&cublasGetStatusString) text;
};

static inline void blas_close(struct blas *b)
{
	if (b->handle)
		(void)b->destroy(b->handle);
	(void)cudaFree(b->workspace);
	if (b->lib)
		(void)dlclose(b->lib);
	memset(b, 0, sizeof(*b));
}

/* Products go to this stream of the current device. 0; -ENOSYS there is no cuBLAS, -ENOMEM, -EIO: with a sentence. */
static inline int blas_open(struct blas *b, cudaStream_t stream, char *why, size_t why_bytes)
{
	decltype(&cublasCreate_v2) create;
	decltype(&cublasSetStream_v2) set_stream;
	decltype(&cublasSetWorkspace_v2) set_workspace;

	memset(b, 0, sizeof(*b));
	b->lib = dlopen(BLAS_NAME, RTLD_NOW | RTLD_LOCAL);
	if (!b->lib)
		b->lib = dlopen("/usr/local/cuda/lib64/" BLAS_NAME, RTLD_NOW | RTLD_LOCAL);
	if (!b->lib) {
		(void)snprintf(why, why_bytes, "cuBLAS: %s", dlerror());
		return -ENOSYS;
	}
	create = (decltype(create))dlsym(b->lib, "cublasCreate_v2");
	set_stream = (decltype(set_stream))dlsym(b->lib, "cublasSetStream_v2");
	set_workspace = (decltype(set_workspace))dlsym(b->lib, "cublasSetWorkspace_v2");
	b->destroy = (decltype(b->destroy))dlsym(b->lib, "cublasDestroy_v2");
	b->gemm = (decltype(b->gemm))dlsym(b->lib, "cublasGemmEx");
	b->text = (decltype(b->text))dlsym(b->lib, "cublasGetStatusString");
	if (!create || !set_stream || !set_workspace || !b->destroy || !b->gemm || !b->text) {
		(void)snprintf(why, why_bytes, "cuBLAS: %s lacks a function", BLAS_NAME);
		blas_close(b);
		return -ENOSYS;
	}
	if (cudaMalloc(&b->workspace, BLAS_WORKSPACE) != cudaSuccess || create(&b->handle) != CUBLAS_STATUS_SUCCESS ||
	    set_stream(b->handle, stream) != CUBLAS_STATUS_SUCCESS ||
	    set_workspace(b->handle, b->workspace, BLAS_WORKSPACE) != CUBLAS_STATUS_SUCCESS) {	/* behind the stream, which resets it */
		(void)snprintf(why, why_bytes, "cuBLAS does not start");
		blas_close(b);
		return -EIO;
	}
	return 0;
}

/* y = x w^T: x [rows][cols], w [outs][cols], both bf16, y [rows][outs] of type `to`. */
static inline cublasStatus_t blas_matmul(const struct blas *b, const void *w, const void *x, uint32_t rows, uint32_t cols, uint32_t outs,
					 void *y, cudaDataType_t to)
{
	const float one = 1.0f, zero = 0.0f;

	return b->gemm(b->handle, CUBLAS_OP_T, CUBLAS_OP_N, (int)outs, (int)rows, (int)cols, &one, w, CUDA_R_16BF, (int)cols, x, CUDA_R_16BF,
		       (int)cols, &zero, y, to, (int)outs, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

#endif
