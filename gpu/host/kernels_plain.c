/* The host kernels for plain. */
#define HOST_ISA 0
#include "gpu/host/k_append.h"
#include "gpu/host/k_block.h"
#include "gpu/host/k_select.h"

const struct host_kernels host_kernels_plain = {
	.isa = "plain", .append = append_item, .attend = attend_item, .observe = observe_item, .select = select_lane,
};
