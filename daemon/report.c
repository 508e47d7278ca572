/* Answers to questions, as JSON: what ebbctl prints and scripts read. The schema is in docs/man/ebbctl.1. */
#include "daemon/daemon.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static json_int_t num(uint64_t v)
{
	return (json_int_t)v;
}

static void set(json_t *o, const char *key, uint64_t value)
{
	json_object_set_new(o, key, json_integer(num(value)));
}

static void set_text(json_t *o, const char *key, const char *value)
{
	json_t *text = json_string(value);

	json_object_set_new(o, key, text ? text : json_string("(not UTF-8)"));	/* a client may call itself anything */
}

static double seconds_since(uint64_t then_ns)
{
	return (double)(now_ns() - then_ns) / 1e9;
}

static json_t *pools(struct daemon *d)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < d->n_pools; i++) {
		const struct pool *p = &d->pool[i];
		json_t *o = json_object();

		set_text(o, "name", p->name);
		set_text(o, "device", p->device_name);
		set_text(o, "device_name", gpu_info(p->dev)->name);
		set_text(o, "uuid", gpu_info(p->dev)->uuid);
		set(o, "size_bytes", p->size_bytes);
		set(o, "used_bytes", p->used_bytes);
		set(o, "free_bytes", (uint64_t)p->n_free * p->slab_bytes);
		set(o, "slab_bytes", p->slab_bytes);
		set(o, "slabs", p->n_slabs);
		set(o, "slabs_used", p->n_slabs - p->n_free - p->n_quarantine);
		set(o, "slabs_quarantined", p->n_quarantine);
		set(o, "waiting", p->wanted);
		json_object_set_new(o, "mps", gpu_info(p->dev)->is_cuda ? json_boolean(d->mps) : json_null());
		json_object_set_new(o, "tide", json_boolean(d->conf.pool[i].tide));
		json_object_set_new(o, "tide_level", d->conf.pool[i].tide && d->tide[i].rounds && d->tide[i].level > EVICT_LOW_TIDE ?
				    json_real((double)d->tide[i].level) : json_null());
		set(o, "tide_bytes", d->conf.pool[i].tide ? d->tide[i].bytes : 0);
		json_array_append_new(list, o);
	}
	return list;
}

/* Calls fn for every session of every client. */
static void each_session(struct daemon *d, void (*fn)(void *arg, struct session *s), void *arg)
{
	for (unsigned i = 0; i < d->max_clients; i++)
		for (uint32_t k = 0; d->client[i] && k < WIRE_MAX_SESSIONS; k++)
			if (d->client[i]->session[k])
				fn(arg, d->client[i]->session[k]);
}

/* Tokens begun, for people: the words may say more than the last turn knew. Bounded, since a client writes them. */
static uint32_t tokens_now(const struct session *s)
{
	uint32_t begun = wire_begun(wire_load64(&s->client->shared->session[s->index].hand));

	return begun >= s->tokens && begun <= s->granted ? begun : s->tokens;
}

static uint64_t live_now(const struct session *s)
{
	uint32_t used = tokens_now(s) - s->tokens;
	uint64_t live = 0;

	for (uint32_t lane = 0; lane < s->table.n_lanes; lane++)
		live += s->lane[lane].live + (used < s->lane[lane].fresh ? used : s->lane[lane].fresh);
	return live;
}

struct sums {
	uint64_t sessions, live, full;
};

static void add_session(void *arg, struct session *s)
{
	struct sums *sums = arg;

	sums->sessions++;
	sums->live += live_now(s);
	sums->full += (uint64_t)tokens_now(s) * s->table.n_lanes;
}

/* Not those that have hung up and whose last operations are still coming back. */
static unsigned connected(const struct daemon *d)
{
	unsigned n = 0;

	for (unsigned i = 0; i < d->max_clients; i++)
		n += d->client[i] && !d->client[i]->gone;
	return n;
}

static json_t *status(struct daemon *d)
{
	json_t *o = json_object();
	struct sums sums = { 0 };

	each_session(d, add_session, &sums);
	set_text(o, "version", EBB_BUILD_VERSION);
	set(o, "pid", (uint64_t)getpid());
	json_object_set_new(o, "uptime_s", json_real(seconds_since(d->started_ns)));
	set_text(o, "config", d->conf_path);
	set_text(o, "socket", d->conf.daemon.socket);
	json_object_set_new(o, "draining", json_boolean(d->draining));
	json_object_set_new(o, "pools", pools(d));
	set(o, "clients", connected(d));
	set(o, "sessions", sums.sessions);
	set(o, "waiting", d->n_waiting);
	set(o, "slots_live", sums.live);
	set(o, "slots_full", sums.full);
	set(o, "slots_evicted_total", d->count.evicted);
	set(o, "tokens_total", d->count.tokens);
	set(o, "steps_total", d->count.steps);
	set(o, "records_total", d->count.records);
	set(o, "windows_total", d->count.windows);
	set(o, "windows_ahead_total", d->count.ahead);
	set(o, "claims_total", d->count.claims);
	set(o, "compactions_total", d->count.compactions);
	set(o, "pages_moved_total", d->count.moves);
	set(o, "sessions_opened_total", d->count.opened);
	set(o, "sessions_refused_total", d->count.refused);
	set(o, "clients_dropped_total", d->count.dropped);
	return o;
}

/* As it was asked for, unless the default is for models with a table and this one has none (budget.c). */
static const char *split_of(const struct session *s)
{
	return s->how.id == EVICT_SPLIT_uniform ? "uniform" : s->asked.split;
}

static void session_row(void *arg, struct session *s)
{
	static const char *const states[] = { "client", "daemon", "daemon" };
	char budget[32];
	json_t *o = json_object();

	conf_amount_text(s->asked.budget, budget, sizeof(budget));
	set(o, "id", s->id);
	set(o, "client", s->client->id);
	set(o, "pid", (uint64_t)s->client->pid);
	set_text(o, "name", s->client->name);
	set_text(o, "pool", s->pool->name);
	set_text(o, "policy", s->asked.policy);
	set_text(o, "split", split_of(s));
	set_text(o, "budget", budget);
	set(o, "budget_slots", s->budget);
	set_text(o, "slots", gpu_type_name(s->slot_type));
	set(o, "tokens", tokens_now(s));
	set(o, "max_tokens", s->max_tokens);
	set(o, "lanes", s->table.n_lanes);
	set(o, "slots_live", live_now(s));
	set(o, "slots_full", (uint64_t)tokens_now(s) * s->table.n_lanes);
	set(o, "slots_evicted", s->evicted);
	set(o, "slots_dropped", s->dropped);
	set(o, "used_bytes", s->bytes);
	set(o, "window", s->table.window);
	set(o, "windows", s->windows);
	set_text(o, "state", s->closing ? "closing" : s->claimed ? "claimed" : states[s->state]);
	set(o, "tide_slots", s->tide.slots);
	json_object_set_new(o, "tide_misses", tide_on(s) && s->budget ? json_real((double)tide_misses(s)) : json_null());
	json_object_set_new(o, "priority", json_real((double)tide_weight(s->client)));
	json_object_set_new(o, "changing", json_boolean(s->coming || s->turning));
	json_object_set_new(o, "pressure", json_boolean(s->cap || s->starved));
	json_object_set_new(o, "age_s", json_real(seconds_since(s->opened_ns)));
	json_array_append_new(arg, o);
}

static json_t *sessions(struct daemon *d)
{
	json_t *list = json_array();

	each_session(d, session_row, list);
	return list;
}

/* "lanes ID": one session, lane by lane, layers first. NULL: there is no such session. */
static json_t *lanes(struct daemon *d, const char *id)
{
	struct session *found = session_find(d, strtoull(id, NULL, 10));
	json_t *o, *budget, *live;
	uint32_t used;

	if (!found)
		return NULL;
	o = json_object();
	budget = json_array();
	live = json_array();
	used = tokens_now(found) - found->tokens;
	set(o, "id", found->id);
	set_text(o, "split", split_of(found));
	set(o, "layers", found->n_layers);
	set(o, "kv_heads", found->n_kv_heads);
	for (uint32_t lane = 0; lane < found->table.n_lanes; lane++) {
		const struct session_lane *l = &found->lane[lane];

		json_array_append_new(budget, json_integer(budget_of(found, lane)));
		json_array_append_new(live, json_integer(l->live + (used < l->fresh ? used : l->fresh)));
	}
	json_object_set_new(o, "budget", budget);
	json_object_set_new(o, "live", live);
	return o;
}

static void add_setting(void *arg, const char *key, const char *value)
{
	set_text(arg, key, value);
}

static json_t *settings_of(const struct conf_session *asked, bool chosen)
{
	json_t *o = json_object();

	conf_each_setting(asked, chosen, add_setting, o);
	return o;
}

/* "session ID": one session, and its settings. NULL: there is no such session. */
static json_t *session(struct daemon *d, const char *id)
{
	struct session *found = session_find(d, strtoull(id, NULL, 10));
	json_t *list, *o;

	if (!found)
		return NULL;
	list = json_array();
	session_row(list, found);
	o = json_incref(json_array_get(list, 0));
	json_decref(list);
	json_object_set_new(o, "settings", settings_of(&found->asked, false));
	json_object_set_new(o, "chosen", settings_of(&found->asked, true));
	json_object_set_new(o, "coming", change_asked(found) == &found->asked ? json_null() : settings_of(change_asked(found), false));
	set_text(o, "kept_because", found->kept);
	return o;
}

static json_t *clients(struct daemon *d)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < d->max_clients; i++) {
		const struct client *c = d->client[i];
		uint64_t used = 0, slabs = 0;
		json_t *o;

		if (!c || !c->welcome)
			continue;
		for (unsigned p = 0; p < d->n_pools; p++) {
			used += c->owner[p].used_bytes;
			slabs += c->owner[p].n_slabs;
		}
		o = json_object();
		set(o, "id", c->id);
		set(o, "pid", (uint64_t)c->pid);
		set(o, "uid", c->uid);
		set(o, "gid", c->gid);
		set_text(o, "name", c->name);
		set(o, "sessions", c->n_sessions);
		set(o, "used_bytes", used);
		set(o, "slabs", slabs);
		set(o, "tokens", c->tokens);
		set(o, "steps", c->steps);
		set(o, "windows", c->windows);
		json_object_set_new(o, "gone", json_boolean(c->gone));
		json_object_set_new(o, "connected_s", json_real(seconds_since(c->connected_ns)));
		json_array_append_new(list, o);
	}
	return list;
}

static json_t *params_of(const struct evict_param *param, uint32_t n)
{
	static const char *const types[] = { "number", "integer", "flag" };
	json_t *list = json_array();

	for (uint32_t k = 0; k < n; k++)
		json_array_append_new(list, json_pack("{s:s, s:s, s:f, s:f, s:f, s:s, s:s}", "name", param[k].name, "type",
						      types[param[k].type % 3], "default", (double)param[k].def, "min",
						      (double)param[k].min, "max", (double)param[k].max, "unit",
						      param[k].unit ? param[k].unit : "", "text", param[k].text));
	return list;
}

static void add_splits(json_t *list)
{
	for (unsigned i = 0; i < EVICT_N_SPLITS; i++) {
		const struct evict_split_info *p = &evict_splits[i];
		json_t *o = json_object(), *needs = json_array();

		set_text(o, "name", p->name);
		set_text(o, "kind", "split");
		set_text(o, "text", p->text);
		set_text(o, "source", p->source);
		if (p->needs & EVICT_NEEDS_TABLE)
			json_array_append_new(needs, json_string("table"));
		if (p->needs & EVICT_NEEDS_RANK)
			json_array_append_new(needs, json_string("ranks"));
		if (p->needs & EVICT_NEEDS_HEAT)
			json_array_append_new(needs, json_string("heat"));
		json_object_set_new(o, "needs", needs);
		json_object_set_new(o, "params", params_of(p->param, p->n_params));
		json_array_append_new(list, o);
	}
}

static void add_merges(json_t *list)
{
	for (unsigned i = 0; i < EVICT_N_MERGES; i++) {
		const struct evict_merge_info *p = &evict_merges[i];

		json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:o}", "name", p->name, "kind", "merge", "text", p->text,
						      "source", p->source, "params", params_of(p->param, p->n_params)));
	}
}

static json_t *policies(struct daemon *d)
{
	json_t *list = json_array();

	(void)d;
	for (unsigned i = 0; i < EVICT_N_POLICIES; i++) {
		const struct evict_policy_info *p = &evict_policies[i];
		json_t *o = json_object(), *heat = json_array(), *traits = json_array();

		set_text(o, "name", p->name);
		set_text(o, "kind", "rank");
		set_text(o, "text", p->text);
		set_text(o, "source", p->source);
		for (uint32_t k = 0; k < evict_n_heat(i); k++)
			json_array_append_new(heat, json_string(evict_heat_names[p->heat[k]]));
		for (uint32_t k = 0; k < evict_n_trait(i); k++)
			json_array_append_new(traits, json_string(evict_trait_names[p->trait[k]]));
		json_object_set_new(o, "heat", heat);
		json_object_set_new(o, "traits", traits);
		set_text(o, "merge", evict_merges[p->merge].name);
		json_object_set_new(o, "params", params_of(p->param, p->n_params));
		json_array_append_new(list, o);
	}
	add_merges(list);
	add_splits(list);
	return list;
}

static void config_row(void *arg, const char *section, const char *key, const char *value, const char *unit, const char *reload)
{
	json_array_append_new(arg, json_pack("{s:s, s:s, s:s, s:s, s:s}", "section", section, "key", key, "value", value, "unit",
					     unit, "reload", reload));
}

static json_t *config(struct daemon *d)
{
	json_t *list = json_array();

	conf_each(&d->conf, config_row, list);
	return list;
}

static char *text_of(json_t *o)
{
	char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

	json_decref(o);
	return text;
}

char *report_json(struct daemon *d, const char *question)
{
	static const struct {
		const char *name;
		json_t *(*make)(struct daemon *d);
	} known[] = {
		{ "status", status },	{ "sessions", sessions }, { "clients", clients },
		{ "pools", pools },	{ "policies", policies }, { "config", config },
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(known[i].name, question) == 0)
			return text_of(known[i].make(d));
	if (strncmp(question, "session ", 8) == 0)
		return text_of(session(d, question + 8));
	return strncmp(question, "lanes ", 6) == 0 ? text_of(lanes(d, question + 6)) : NULL;
}
