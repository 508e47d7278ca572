/*
 * lazy: tokens recur (LazyEviction, arXiv 2506.15969). credit[0] is the time of the last activation (as in raas), credit[1] the longest
 * gap seen between two. The slot whose present silence is longest, measured by its own longest gap, goes first. At decode: activations
 * are seen once a window; the paper's score is a sigmoid of this ratio, which orders alike.
 */
#ifndef EVICT_POLICY_LAZY_H
#define EVICT_POLICY_LAZY_H

enum { EVICT_LAZY_ALPHA };

EVICT_FN void evict_lazy_fold(const struct evict_rule *rule, const struct evict_lane *lane, struct evict_slot *slot)
{
	const float last = evict_max(slot->credit[0], (float)slot->pos), now = (float)lane->now;
	const int active = slot->heat[0] > rule->param[EVICT_LAZY_ALPHA] * evict_group(rule);

	slot->credit[1] = active ? evict_max(slot->credit[1], now - last) : slot->credit[1];
	slot->credit[0] = active ? now : last;
}

EVICT_FN float evict_lazy_rank(const struct evict_rule *rule, const struct evict_lane *lane, const struct evict_slot *slot)
{
	(void)rule;
	return -((float)lane->now - slot->credit[0]) / (slot->credit[1] + 1.0f);
}

#endif
