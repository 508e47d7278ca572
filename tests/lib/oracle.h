/*
 * What the device operations should do, slowly and obviously: float64 arithmetic over plain arrays, one slot after the other.
 * Knows nothing of pages, tables in memory, devices or threads; tests/lib/world.h lays the same contents out in a pool.
 * Single-threaded. Impossible arguments assert.
 */
#ifndef TESTS_LIB_ORACLE_H
#define TESTS_LIB_ORACLE_H

#include "gpu/gpu.h"

struct oracle_slot {
	uint32_t k_param, v_param;	/* q8: scale (low half) and offset (high half), float16 bits */
	int32_t pos;			/* in the shared block */
	int32_t own_pos;		/* in the daemon's credit block */
	double heat[GPU_MAX_HEAT];
	float credit[GPU_MAX_CREDIT];
};

struct oracle_lane {
	struct gpu_lane head;
	uint32_t meaningful;		/* between COMPACT and NEXT: slots from here on are left-overs */
	uint32_t *next;			/* [window] */
	struct oracle_slot *slot;	/* [max_slots] */
	uint8_t *k, *v;			/* [max_slots][oracle_row_room()], as stored */
};

struct oracle_session {
	struct gpu_shape shape;
	struct gpu_table table;		/* header only */
	uint32_t max_slots;
	uint32_t n_credit;
	struct oracle_lane *lane;	/* [table.n_lanes] */
};

/* One session in one step; tensors are host copies. */
struct oracle_seq {
	struct oracle_session *session;
	uint32_t row, n, used;
	int32_t pos;
	int32_t heat_from;
};

/* Allocates lanes, all zero. table and shape must be filled in. Undo with oracle_session_fini(). */
void oracle_session_init(struct oracle_session *s);
void oracle_session_fini(struct oracle_session *s);
/* Contents of @from into @to, which was initialised for the same sizes. */
void oracle_session_copy(struct oracle_session *to, const struct oracle_session *from);

/* --- numbers ------------------------------------------------------------------------------------------------------- */

uint16_t oracle_f16(double x);			/* nearest even; beyond the range: infinity */
uint16_t oracle_f16_up(double x);		/* x >= 0: the smallest float16 >= x, at most 65504 */
uint16_t oracle_bf16(double x);
double oracle_from_f16(uint16_t bits);
double oracle_from_bf16(uint16_t bits);
double oracle_load(uint32_t type, const void *data, size_t index);		/* GPU_F32, GPU_F16, GPU_BF16 */
void oracle_store(uint32_t type, void *data, size_t index, double x);
/* Bytes from one row to the next in an oracle_lane's k and v. */
uint32_t oracle_row_room(const struct gpu_shape *shape);
/* One row of a slot, as gpu/layout.h says: row_type is gpu_row_type()'s. *param is written for q8 only. */
void oracle_row_store(uint32_t row_type, uint32_t head_dim, const float *x, uint8_t *row, uint32_t *param);
double oracle_row_load(uint32_t row_type, uint32_t head_dim, const uint8_t *row, uint32_t param, uint32_t channel);

/* --- operations ---------------------------------------------------------------------------------------------------- */

void oracle_append(const struct oracle_seq *seq, uint32_t layer, const struct gpu_tensor *k, const struct gpu_tensor *v);

/* @out: [rows][n_heads][head_dim], @lse: [rows][n_heads]; rows of this session are written. Heat is added to the model. */
void oracle_attend(const struct oracle_seq *seq, uint32_t layer, const struct gpu_tensor *q, double scale, double *out, double *lse);

/* @lse: what the operation under test was given. */
void oracle_observe(const struct oracle_seq *seq, uint32_t layer, const struct gpu_tensor *q, const float *lse, double scale,
		    uint32_t last);

/* turn->priv, slot_type, head_dim and n_credit are not looked at. @stats may be NULL. */
void oracle_select(struct oracle_session *s, const struct gpu_turn *turn, unsigned what, struct gpu_turn_stats *stats);

#endif
