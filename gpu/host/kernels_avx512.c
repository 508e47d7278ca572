/* The host kernels for avx512. */
#define HOST_ISA 512
#include "gpu/host/k_append.h"
#include "gpu/host/k_block.h"
#include "gpu/host/k_select.h"

const struct host_kernels host_kernels_avx512 = {
	.isa = "avx512", .append = append_item, .attend = attend_item, .observe = observe_item, .select = select_lane,
};
