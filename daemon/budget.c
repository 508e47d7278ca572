/*
 * How a session's slots are shared over its lanes. The deciding is evict's (evict/split.h): here is what a session keeps for it, the
 * table of lanes, and when it is asked.
 *
 * Once per turn, before the lanes are planned. A session whose split is uniform keeps nothing and computes nothing. For the others a turn
 * costs a few passes over the lanes; none at all while nothing that the split depends on has changed.
 */
#include "daemon/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct budget {
	struct evict_split split;
	const struct evict_split_info *info;
	float *table;			/* [n_lanes], or NULL */
	float *curve;			/* [n_lanes][EVICT_MAX_CURVE], or NULL */
	struct evict_lanes lanes;	/* what table and curve are of */
	uint32_t *share;		/* [n_lanes]: slots, in force */
	uint32_t *target;		/* [n_lanes]: what the split last said */
	double *work;			/* [2 * n_lanes] */
	struct evict_lane_stats *stats;	/* [n_lanes], of gpu_host_alloc(); NULL: the split needs none */
	uint64_t total;			/* that share[] adds up to, */
	uint32_t ceiling, largest;	/* under this ceiling; the largest of share[] */
	bool rests;			/* share[] is what the split says */
	struct evict_curve expects;	/* what a slot is worth to it under this floor and ceiling, for the tide; n = 0: not looked at */
	uint32_t expects_floor, expects_ceiling;
};

/* --- tables ------------------------------------------------------------------------------------------------------------------- */

static int read_all(const char *path, char **out, size_t *bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK), rc = fd < 0 ? -errno : 0;
	char *text = rc ? NULL : malloc(WIRE_MAX_LANES_TEXT + 1);
	size_t at = 0;
	ssize_t n = 0;

	if (!rc && !text)
		rc = -ENOMEM;
	while (!rc && at <= WIRE_MAX_LANES_TEXT && (n = read(fd, text + at, WIRE_MAX_LANES_TEXT + 1 - at)) > 0)
		at += (size_t)n;
	if (!rc && n < 0)
		rc = -errno;
	if (!rc && at > WIRE_MAX_LANES_TEXT)
		rc = -EFBIG;
	if (fd >= 0)
		close(fd);
	if (rc) {
		free(text);
		return rc;
	}
	*out = text;
	*bytes = at;
	return 0;
}

/* One table. @model: whose it has to be; "": anybody's. */
static int read_lanes(const char *path, const char *model, struct lanes **out, char *why, size_t why_bytes)
{
	char *text, said[256] = "";
	uint32_t layers, heads;
	struct lanes *lanes;
	size_t bytes, n;
	int rc;

	*out = NULL;
	rc = read_all(path, &text, &bytes);
	if (rc) {
		snprintf(why, why_bytes, "%s: %s", path, strerror(-rc));
		return rc;
	}
	rc = evict_lanes_shape(text, bytes, &layers, &heads, said, sizeof(said));
	n = rc ? 0 : (size_t)layers * heads;
	lanes = rc ? NULL : malloc(sizeof(*lanes) + n * (1 + EVICT_MAX_CURVE) * sizeof(float));
	if (!rc && !lanes)
		rc = -ENOMEM;
	if (!rc) {
		lanes->value = (float *)(void *)(lanes + 1);
		lanes->curve = lanes->value + n;
		rc = evict_lanes_parse(text, bytes, layers, heads, model, &lanes->about, lanes->value, lanes->curve, said, sizeof(said));
	}
	free(text);
	if (rc) {
		snprintf(why, why_bytes, "%s: %s", path, *said ? said : strerror(-rc));
		free(lanes);
		return rc;
	}
	*out = lanes;
	return 0;
}

void budget_lanes_free(struct lanes_set *set)
{
	free(set->session);
	for (unsigned i = 0; i < CONF_MAX_MODELS; i++)
		free(set->model[i]);
	*set = (struct lanes_set){ .session = NULL };
}

int budget_lanes(const struct conf *conf, struct lanes_set *out, char *why, size_t why_bytes)
{
	int rc = *conf->session.lanes ? read_lanes(conf->session.lanes, "", &out->session, why, why_bytes) : 0;

	for (unsigned i = 0; i < conf->n_models && !rc; i++)
		rc = *conf->model[i].lanes ? read_lanes(conf->model[i].lanes, conf->model[i].name, &out->model[i], why, why_bytes) : 0;
	if (rc)
		budget_lanes_free(out);
	return rc;
}

/* The operator's for this session: its model's, else the one for all models, if it does not say that it is another's. */
static const struct lanes *operators(const struct session *s)
{
	const struct daemon *d = s->client->d;
	const struct lanes *l = NULL;

	for (unsigned i = 0; i < d->conf.n_models && *s->model; i++)
		if (strcmp(d->conf.model[i].name, s->model) == 0)
			l = d->lanes.model[i];
	if (!l || l->about.n_layers != s->n_layers || l->about.n_kv_heads != s->n_kv_heads)
		l = d->lanes.session;
	if (!l || l->about.n_layers != s->n_layers || l->about.n_kv_heads != s->n_kv_heads ||
	    (*s->model && *l->about.model && strcmp(s->model, l->about.model) != 0))
		return NULL;
	return l;
}

static int no_table(const struct session *s, char *why, size_t why_bytes)
{
	const struct lanes *mine = s->client->d->lanes.session;

	if (mine)
		snprintf(why, why_bytes, "split: found '%s' for a model '%s' of %u layers and %u KV heads; allowed: with the operator's table "
			 "(ebbd.ini, lanes) %u layers and %u KV heads%s%s; or hand a table over when opening the session", s->asked.split,
			 s->model, s->n_layers, s->n_kv_heads, mine->about.n_layers, mine->about.n_kv_heads,
			 *mine->about.model ? " of the model " : "", mine->about.model);
	else
		snprintf(why, why_bytes, "split: found '%s' without a table of lanes for the model '%s'; allowed: with one, handed over when "
			 "opening the session, or named by the operator (ebbd.ini, [model NAME] lanes)", s->asked.split, s->model);
	return -EINVAL;
}

/* What an open session has had (@was), the client's own table, else the operator's. -ENOENT: there is none, with a sentence. */
static int find_table(struct session *s, const struct session *was, char *why, size_t why_bytes)
{
	const struct client *c = s->client;
	const struct lanes *mine = operators(s);
	struct budget *b = s->split;
	char said[256];
	int rc;

	if (was && was->split && was->split->table) {
		b->lanes = was->split->lanes;
		memcpy(b->table, was->split->table, s->table.n_lanes * sizeof(float));
		memcpy(b->curve, was->split->curve, s->table.n_lanes * EVICT_MAX_CURVE * sizeof(float));
		rc = 0;
	} else if (!was && c->lanes) {
		rc = evict_lanes_parse(c->lanes, c->lanes_bytes, s->n_layers, s->n_kv_heads, s->model, &b->lanes, b->table, b->curve,
				       said, sizeof(said));
		if (rc)
			snprintf(why, why_bytes, "the table of lanes, %s", said);
	} else if (mine) {
		b->lanes = mine->about;
		memcpy(b->table, mine->value, s->table.n_lanes * sizeof(float));
		memcpy(b->curve, mine->curve, s->table.n_lanes * EVICT_MAX_CURVE * sizeof(float));
		rc = 0;
	} else {
		no_table(s, why, why_bytes);
		return -ENOENT;
	}
	if (!rc && b->info->needs & EVICT_NEEDS_CURVE && !b->lanes.n_budgets) {
		snprintf(why, why_bytes, "split: found '%s' with a table of lanes that has values only; allowed: one with budgets and losses, as "
			 "ebb-llama --calibrate makes it, or split=head", s->asked.split);
		return -ENOENT;
	}
	return rc;
}

/* --- a session's ------------------------------------------------------------------------------------------------------------------ */

void budget_free(struct session *s)
{
	if (!s->split)
		return;
	if (s->split->stats)
		gpu_host_free(s->pool->dev, s->split->stats);
	free(s->split->table);
	free(s->split->curve);
	free(s->split->share);
	free(s->split->target);
	free(s->split->work);
	free(s->split);
	s->split = NULL;
}

/*
 * A client that asks for a split by name is refused where there is no table for it. `measured` as the operator's choice is for the models
 * that have one: the others get uniform, and say so.
 */
static int use_table(struct session *s, const struct session *was, char *why, size_t why_bytes)
{
	int rc = find_table(s, was, why, why_bytes);

	if (rc != -ENOENT)
		return rc;
	if (s->split->info->needs & EVICT_NEEDS_CURVE && !conf_was_given(&s->asked, "split")) {
		budget_free(s);
		s->how.id = EVICT_SPLIT_uniform;
		return 0;
	}
	return -EINVAL;
}

int budget_new(struct session *s, const struct session *was, char *why, size_t why_bytes)
{
	const uint32_t n = s->table.n_lanes;
	const struct evict_split split = s->how;
	struct budget *b;
	void *stats;
	int rc = 0;

	if (split.id == EVICT_SPLIT_uniform || evict_policies[s->spec.rule.policy].never_evicts)
		return rc;
	b = s->split = calloc(1, sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->split = split;
	b->info = &evict_splits[split.id];
	b->share = calloc(n, sizeof(*b->share));
	b->target = calloc(n, sizeof(*b->target));
	b->work = calloc(2 * (size_t)n, sizeof(*b->work));
	if (b->info->needs & EVICT_NEEDS_TABLE) {
		b->table = calloc(n, sizeof(*b->table));
		b->curve = calloc((size_t)n * EVICT_MAX_CURVE, sizeof(*b->curve));
	}
	if (!b->share || !b->target || !b->work || (b->info->needs & EVICT_NEEDS_TABLE && (!b->table || !b->curve)))
		return -ENOMEM;
	if (b->info->needs & EVICT_NEEDS_STATS) {
		rc = gpu_host_alloc(s->pool->dev, n * sizeof(*b->stats), &stats);
		if (rc)
			return rc;
		b->stats = stats;
	}
	return b->table ? use_table(s, was, why, why_bytes) : 0;
}

/* --- statistics ------------------------------------------------------------------------------------------------------------------- */

int budget_heat(struct session *s, char *why, size_t why_bytes)
{
	const struct evict_split_info *info;
	struct gpu_table *t = &s->table;

	s->stats_heat[0] = s->stats_heat[1] = GPU_MAX_HEAT;	/* none */
	if (evict_policies[s->spec.rule.policy].never_evicts)
		return 0;
	info = &evict_splits[s->how.id];
	for (uint32_t i = 0; i < info->n_heat && s->asked.observe; i++) {
		uint32_t at = 0;

		while (at < t->n_heat && t->heat[at] != info->heat[i])
			at++;
		if (at == GPU_MAX_HEAT) {
			snprintf(why, why_bytes, "split: found '%s' with policy '%s'; allowed: policies that collect %s, or leave room for "
				 "it (a session collects %u kinds of heat at most)", s->asked.split, s->asked.policy,
				 evict_heat_names[info->heat[i]], GPU_MAX_HEAT);
			return -EINVAL;
		}
		t->heat[at] = info->heat[i];
		if (at == t->n_heat)
			t->n_heat++;
		s->stats_heat[i] = at;
	}
	return 0;
}

bool budget_measures(const struct session *s)
{
	return s->split && s->split->stats;
}

void budget_measure(const struct session *s, struct gpu_turn *turn)
{
	turn->stats = s->split->info->needs & EVICT_NEEDS_STATS;
	turn->lane_stats = s->split->stats;
	turn->stats_near = (uint32_t)evict_split_param(&s->split->split, "recent");
	memcpy(turn->stats_heat, s->stats_heat, sizeof(turn->stats_heat));
}

/* --- budgets ------------------------------------------------------------------------------------------------------------------------ */

uint32_t budget_of(const struct session *s, uint32_t lane)
{
	return s->split ? s->split->share[lane] : s->budget;
}

/* What the session's slots are shared out by. */
static struct evict_split_in shared_out(const struct session *s)
{
	const uint32_t most = s->spec.max_slots;
	const uint64_t usable = (uint64_t)s->tokens + s->table.window;	/* no lane can hold more than there are tokens */
	const struct budget *b = s->split;
	struct evict_split_in in = {
		.n_layers = s->n_layers,
		.n_kv_heads = s->n_kv_heads,
		.total = (uint64_t)s->budget * s->table.n_lanes,
		.floor = s->spec.floor < most ? s->spec.floor : most,
		.window = s->table.window,
		.table = b->table,
		.lanes = &b->lanes,
		.curve = b->curve,
		.stats = s->measuring ? b->stats : NULL,
		.queries = evict_queries(s->asked.observe, (int32_t)s->pos, s->appended) * s->group,
	};

	in.ceiling = usable > in.floor ? usable < most ? (uint32_t)usable : most : in.floor;
	return in;
}

void budget_plan(struct session *s)
{
	const uint32_t n = s->table.n_lanes;
	struct budget *b = s->split;
	struct evict_split_in in;

	s->budget = evict_budget(&s->spec, s->tokens, tide_cap(s));
	if (!b)
		return;
	in = shared_out(s);
	/* Of a split without statistics only total and ceiling change, and not every ceiling counts (evict/split.h). */
	if (!b->stats && b->rests && in.total == b->total && (in.ceiling == b->ceiling || (in.ceiling > b->ceiling &&
	    b->largest < b->ceiling && b->ceiling >= 2 * (uint64_t)s->budget)))
		return;
	/* A turn that nobody looked in since the last one (a claim) has no heat to tell lanes apart by. */
	if (b->info->needs & EVICT_NEEDS_HEAT && !in.queries && s->tokens)
		evict_reshare(&in, b->share, b->work);
	else
		evict_resplit(&b->split, &in, b->share, b->target, b->work);
	b->total = in.total;
	b->ceiling = in.ceiling;
	b->rests = memcmp(b->share, b->target, n * sizeof(*b->share)) == 0;
	b->largest = 0;
	for (uint32_t lane = 0; lane < n; lane++)
		if (b->share[lane] > b->largest)
			b->largest = b->share[lane];
}

const struct evict_curve *budget_curve(const struct session *s)
{
	struct budget *b = s->split;
	struct evict_split_in in;

	if (!b || !b->curve)
		return NULL;
	in = shared_out(s);
	if (in.ceiling < s->spec.max_slots)
		in.ceiling += (TIDE_AHEAD - 1) * s->table.window;
	/* It changes slowly with the tokens that there are. */
	if (!b->expects.n || in.floor != b->expects_floor || in.ceiling < b->expects_ceiling ||
	    in.ceiling > b->expects_ceiling + b->expects_ceiling / 16) {
		if (evict_split_curve(&b->split, &in, &b->expects, b->work))
			return NULL;
		b->expects_floor = in.floor;
		b->expects_ceiling = in.ceiling;
	}
	return &b->expects;
}
