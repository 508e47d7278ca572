/*
 * streaming: the first tokens (sinks) and the most recent ones stay (StreamingLLM, arXiv 2309.17453; the sinks
 * are the rule's, see evict_key()). Keys keep their original positions.
 */
#ifndef EVICT_POLICY_STREAMING_H
#define EVICT_POLICY_STREAMING_H

EVICT_NO_FOLD(streaming)

/* Equal ranks leave in the order of their positions: the oldest first. */
EVICT_FN float evict_streaming_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	(void)lane;
	(void)slot;
	return 0.0f;
}

#endif
