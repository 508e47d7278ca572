/*
 * A recording: what a session that lost nothing has seen, window by window, so that any policy can be tried on it without the model.
 * Written by ebbd (daemon/record.c), read by ebb-replay (replay/). docs/recording.md says the same for people. Only layout, no I/O.
 *
 *	struct evict_record_head	head_bytes long
 *	per window: struct evict_record_window, then `bytes` bytes:
 *	    float heat[n_heat][n_lanes][base + appended]	what each position received in the window
 *	    with kv, per lane: the appended tokens' K rows, their V rows, and of q8 rows their {scale, offset} of K, then of V, as in pages
 *	struct evict_record_window with magic EVICT_RECORD_END, base: tokens in all; missing when the recording was cut short
 *
 * Everything is in the byte order of the machine that wrote it; `order` tells.
 */
#ifndef EVICT_RECORD_H
#define EVICT_RECORD_H

#include <stdint.h>

#define EVICT_RECORD_MAGIC "ebbdrec"	/* with its NUL: 8 bytes */
#define EVICT_RECORD_ORDER 0x01020304u
#define EVICT_RECORD_VERSION 1u
#define EVICT_RECORD_WINDOW 0x57494e44u
#define EVICT_RECORD_END 0x454e4421u
#define EVICT_RECORD_MAX_HEAT 4u

struct evict_record_head {
	char magic[8];
	uint32_t order, version, head_bytes;
	uint32_t n_layers, n_kv_heads, group, head_dim;
	uint32_t slot_type;			/* 0 f32, 1 f16, 2 bf16, 3 q8, 4 k8v4, 5 q4 */
	uint32_t window, sinks, observe, floor;
	uint32_t max_tokens, prompt_tokens, seed;
	uint32_t budget_count, budget_ppm;	/* what the session had asked for, had it evicted: a count, or millionths */
	uint32_t recent_count, recent_ppm;
	uint32_t n_heat;
	uint32_t heat[EVICT_RECORD_MAX_HEAT];	/* enum evict_heat */
	uint32_t kv;				/* 1: K and V rows are there */
	uint32_t zero;
	uint64_t session, started_s;		/* the daemon's number for it; seconds since 1970 */
	char policy[128];			/* as the session had it */
	char client[32];			/* what the client calls itself */
};

struct evict_record_window {
	uint32_t magic;
	uint32_t base;				/* position of the window's first token */
	uint32_t appended;			/* tokens of the window */
	uint32_t zero;
	uint64_t bytes;				/* that follow */
};

#endif
