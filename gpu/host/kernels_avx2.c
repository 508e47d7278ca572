/* The host kernels for avx2. */
#define HOST_ISA 2
#include "gpu/host/k_append.h"
#include "gpu/host/k_block.h"
#include "gpu/host/k_select.h"

const struct host_kernels host_kernels_avx2 = {
	.isa = "avx2", .append = append_item, .attend = attend_item, .observe = observe_item, .select = select_lane,
};
