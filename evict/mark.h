/*
 * Marks: what a client has said of a token of its session, one word per position. 0: nothing: text, neither pinned nor to be dropped.
 * Compiles as C17 and as CUDA C++.
 *
 *	bits 0-7	tag: the modality of the token; 0 is text, what the others are is the client's affair
 *	bit 8		pinned: protected as a pinned prompt is
 *	bits 9-31	drop: 0, or 1 + the first layer whose lanes shall lose the token at the session's next turn
 */
#ifndef EVICT_MARK_H
#define EVICT_MARK_H

#include "evict/math.h"

#define EVICT_MAX_TAG 255u
#define EVICT_MARK_PINNED 0x100u
#define EVICT_MARK_DROP_SHIFT 9u
#define EVICT_MARK_DROP (~0u << EVICT_MARK_DROP_SHIFT)
#define EVICT_MAX_MARK_LAYERS (1u << 20)

EVICT_FN uint32_t evict_mark_tag(uint32_t mark)
{
	return mark & EVICT_MAX_TAG;
}

/* To be dropped from `layer` on, too. */
EVICT_FN uint32_t evict_mark_drop(uint32_t mark, uint32_t layer)
{
	const uint32_t asked = mark >> EVICT_MARK_DROP_SHIFT, first = asked && asked < layer + 1u ? asked : layer + 1u;

	return (mark & ~EVICT_MARK_DROP) | first << EVICT_MARK_DROP_SHIFT;
}

/* Whether a lane of this layer loses the token. */
EVICT_FN int evict_mark_drops(uint32_t mark, uint32_t layer)
{
	const uint32_t first = mark >> EVICT_MARK_DROP_SHIFT;

	return first && layer >= first - 1u;
}

/* The key of a slot (evict_key()) whose token has this mark. */
EVICT_FN uint64_t evict_marked_key(uint64_t key, uint32_t mark)
{
	return mark & EVICT_MARK_PINNED && !(key >> 62) ? key | 1ull << 62 : key;
}

#endif
