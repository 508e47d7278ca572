/* Private to select.cu: what its kernels are given, and how a CTA finds its lane. */
#ifndef GPU_CUDA_SELECT_OPEN_CUH
#define GPU_CUDA_SELECT_OPEN_CUH

#include "gpu/cuda/mma.cuh"
#include "gpu/cuda/select.cuh"

#define LEFT_FOLDED 0x80000000u		/* in left[], beside the turn: the lane is settled and folded already */

struct select_args {
	struct cuda_view view;
	const struct turn_args *turn;
	const struct gpu_plan *plan;	/* of all lanes, one turn's behind the other's */
	struct sums *sums;		/* likewise */
	uint32_t *n_left;		/* lanes that steady_kernel leaves to select_kernel: */
	uint2 *left;			/* turn and lane, in any order */
	char *stage;			/* scratch of select_kernel's CTAs, stage_bytes each, for lanes of stage_slots slots (select_staged.cuh) */
	size_t stage_bytes;
	uint32_t stage_slots, stage_dim;
	uint32_t ring;			/* bytes of steady_kernel's (select_steady.cuh) */
	uint32_t places;		/* slots whose figures it has room for */
	unsigned what;
	int stats;
};

/* What is known of a lane for its turn's sake. Every thread; a barrier before it is used. */
static __device__ __forceinline__ void open_turn(const struct select_args &a, uint32_t turn, struct lane_ctx *x)
{
	static_assert(sizeof(struct turn_args) <= 32u * sizeof(uint4), "a warp copies it at once");
	if (threadIdx.x < sizeof(struct turn_args) / sizeof(uint4))
		((uint4 *)&x->turn)[threadIdx.x] = ((const uint4 *)&a.turn[turn])[threadIdx.x];
	if (threadIdx.x == 0)
		x->view = a.view;
}

/* Lane `lane` of the turn; false: it has no such lane. One thread for all. */
static __device__ bool open_lane(const struct select_args &a, uint32_t lane, struct lane_ctx *x)
{
	const struct gpu_table *t = &x->turn.table;
	char *at = x->turn.priv;
	uint32_t cap;

	if (lane >= x->turn.n_lanes || lane >= t->n_lanes)
		return false;
	x->lane = lane;
	x->plan = x->turn.plans_differ ? a.plan[x->turn.first + lane] : x->turn.plan;
	x->head = ((const struct gpu_lane *)(at + gpu_table_lanes()))[lane];
	x->next = (uint32_t *)(at + gpu_table_next(t)) + (size_t)lane * t->window;
	x->page = cuda_u32(at, gpu_table_pages(t)) + (size_t)lane * t->max_pages;
	x->block = cuda_u32(at, gpu_table_blocks(t)) + (size_t)lane * t->max_blocks;
	x->credit = cuda_u32(at, gpu_table_credits(t)) + (size_t)lane * t->max_blocks;
	cap = cuda_slots(t);
	x->live = gpu_live(x->head, x->turn.appended);
	x->live = x->live < cap ? x->live : cap;
	x->plan.keep = x->plan.keep < x->live ? x->plan.keep : x->live;
	x->n_heat = t->n_heat < EVICT_MAX_HEAT ? t->n_heat : EVICT_MAX_HEAT;
	x->n_credit = x->turn.policy_credit;
	x->n_known = 0;
	x->pooled = NULL;
	x->as_lane = x->turn.as_lane;
	x->as_lane.lane = lane;
	x->as_lane.live = x->live;
	x->as_lane.keep = x->plan.keep;
	return true;
}

static __device__ __forceinline__ void write_head(const struct lane_ctx &x, uint32_t len, uint32_t fresh)
{
	struct gpu_lane head = { len, fresh };

	if (threadIdx.x == 0)
		((struct gpu_lane *)(x.turn.priv + gpu_table_lanes()))[x.lane] = head;
}

#endif
