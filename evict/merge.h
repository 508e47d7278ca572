/*
 * Merges: what becomes of a victim's K and V. Without one they are gone; with one the daemon folds them into slots that stay, when the
 * victim is named or removed, in memory that it owns between windows. Ranks and merges are chosen independently; some policies
 * bring one along. A named victim is still attended until it is overwritten, so for at most a window it counts twice.
 *
 * Which slots a victim goes to is found from the rows as they were before any of it; rows as evict/trait.h reads them, results rounded to
 * the slots' type (q8: the whole row anew). Victims in the order in which they leave (removed ones: by slot), survivors are all
 * live slots that are neither removed nor named, protected ones included. Traits of a row's own follow the new row; credit stays.
 */
#ifndef EVICT_MERGE_H
#define EVICT_MERGE_H

#include "evict/math.h"

/*
 * X(name).
 *	pivot	LOOK-M: to the survivor k with the most similar key (cosine; ties: the lower position), if at least `threshold` so: K and V
 *		of k become (x_k + sum over its victims e of (x_e + x_k) / 2) / (1 + number of them).
 *	d2o	D2O: the same target. A victim less similar to it than the mean over the window's victims (sum in their order / number)
 *		is dropped; with w = exp(cosine): K and V become (e x_k + sum of w_e x_e) / (e + sum of w_e).
 *	cam	CaM: V / budget is added to the V of the next `budget` survivors in the order of positions (fewer at the end), with
 *		probability min(1, a / m): a the victim's credit[0], m the mean of theirs (1 for a policy without credit).
 */
#define EVICT_MERGES(X) X(none) X(pivot) X(d2o) X(cam)

#define EVICT_MERGE_ID(name) EVICT_MERGE_##name,
enum evict_merge { EVICT_MERGES(EVICT_MERGE_ID) EVICT_N_MERGES };
#undef EVICT_MERGE_ID

#define EVICT_MAX_MERGE_PARAMS 2
enum { EVICT_PIVOT_THRESHOLD = 0, EVICT_CAM_BUDGET = 0 };

EVICT_FN int evict_merge_by_key(uint32_t merge)	/* to the survivor with the most similar key */
{
	return merge == EVICT_MERGE_pivot || merge == EVICT_MERGE_d2o;
}

/* The weight of a victim with this cosine, and of the survivor itself (similar to itself by 1). */
EVICT_FN float evict_d2o_weight(float cosine)
{
	return evict_exp(cosine);
}

/* Whether cam merges a victim with credit a into successors whose credit is m on average; u: its draw in (0, 1). */
EVICT_FN int evict_cam_merges(float a, float m, float u)
{
	return u * m < a;
}

#endif
