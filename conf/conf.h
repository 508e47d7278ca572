/*
 * Configuration: one table of keys (conf/keys.def) feeds the ini parser (inih), --print-config, --help, the manual and the
 * settings that a client sends with a session. Includes nobody of this project. Errors: 0 or negative errno, with a sentence.
 * Thread: any; nothing here has state.
 */
#ifndef CONF_CONF_H
#define CONF_CONF_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CONF_MAX_POOLS 16
#define CONF_MAX_MODELS 32
#define CONF_MODEL_NAME 64		/* models' names, NUL included */
#define CONF_NAME 32		/* pool names, NUL included */
#define CONF_TEXT 128

/* A number of slots: a count, or a share in millionths (25% = 250000). One of the two is 0. */
struct conf_amount {
	uint32_t count, ppm;
};

struct conf_daemon {
	char socket[CONF_TEXT];		/* at most 107 bytes */
	uint32_t socket_mode;		/* octal, 0660 */
	char socket_group[CONF_NAME];	/* "": leave the group alone */
	uint32_t log_level;		/* 3 err .. 7 debug, as syslog */
	uint32_t max_clients;
	uint32_t drain_ms;		/* how long SIGTERM waits for clients to finish */
	char record[CONF_TEXT];		/* folder for recordings; "": none are made */
	uint64_t record_limit_bytes;	/* of one recording */
	char priority[CONF_TEXT];	/* USER:WEIGHT,... ; its meaning is the daemon's, see conf_check */
};

struct conf_pool {
	char name[CONF_NAME];
	char device[CONF_TEXT];		/* host | cuda:N | cuda:UUID */
	uint64_t size_bytes;
	uint32_t tide;			/* 0 off, 1 on */
	uint64_t slab_bytes;		/* 0: chosen from size and device; else a power of two */
};

/* What the operator says of a model, which clients name when they open a session. */
struct conf_model {
	char name[CONF_MODEL_NAME];
	char lanes[CONF_TEXT];		/* path of its table of lanes; "": none */
};

/* What a session gets. Also the type of what a client asked for. */
struct conf_session {
	char policy[CONF_TEXT];		/* NAME or NAME:key=value,... ; its meaning is evict's, see conf_check */
	char merge[CONF_TEXT];		/* auto, NAME or NAME:key=value,... */
	struct conf_amount budget;
	struct conf_amount recent;
	uint32_t window;		/* 0: auto, of the budget (evict_window()) */
	uint32_t sinks;
	uint32_t floor;			/* slots a lane keeps under pressure; 0: auto (evict_floor()) */
	uint32_t observe;
	uint32_t slots;			/* 0 f32, 1 f16, 2 bf16, 3 q8, 4 k8v4, 5 q4: the order of enum gpu_type */
	uint32_t prefill;		/* 0 whole, 1 chunked */
	uint32_t pin_prompt;		/* 0 no, 1 yes, 2 auto: what the policy prefers */
	uint32_t seed;
	char split[CONF_TEXT];		/* NAME or NAME:key=value,... */
	char lanes[CONF_TEXT];		/* path of a table of lanes, which only the operator may name; "": none */
	char record[CONF_NAME];		/* heat to record: "sum", "sum,last,kv", ...; "": nothing */
	uint64_t given;			/* bit i: key i of [session] (order of keys.def) was given explicitly */
};

struct conf {
	struct conf_daemon daemon;
	struct conf_session session;
	struct conf_pool pool[CONF_MAX_POOLS];
	unsigned n_pools;
	struct conf_model model[CONF_MAX_MODELS];
	unsigned n_models;
};

/* Checks the value of the key `policy`, `merge`, `split` or `priority` for conf, which knows none of them: 0, or -EINVAL with a sentence in why. */
typedef int (*conf_check)(const char *key, const char *text, char *why, size_t why_bytes);

void conf_defaults(struct conf *conf);	/* no pools */

/*
 * conf_load - defaults, then the file. Nothing of @conf changes on failure.
 * @why: every complaint, one per line: "file:line: [section] key: found X; allowed: Y". At most 10, then a count of the rest.
 * Errors: -EINVAL (bad content: also no pool, two pools of one name, unknown section or key, a key twice), -ENOENT, -EACCES, -EIO.
 */
int conf_load(struct conf *conf, const char *path, conf_check check, char *why, size_t why_bytes);

/*
 * conf_reload - of @next, take into @conf what may change while the daemon runs; say what may not.
 * @report: one line per changed key ("session.budget: 25% -> 30%", "pool host.size: 256M -> 1G needs a restart").
 * Models come and go as the file says. Returns the number of keys taken.
 */
int conf_reload(struct conf *conf, const struct conf *next, char *report, size_t report_bytes);

/*
 * conf_settings - apply "key=value key=value" (a client's wishes) to @session, whose given bits are set for them.
 * The sentence names the key, what was found and what is allowed. -EINVAL; @session is then unchanged.
 * A key that names a file is refused: the daemon opens no file because a client says so.
 */
int conf_settings(struct conf_session *session, const char *settings, conf_check check, char *why, size_t why_bytes);

/*
 * conf_follow - copy from @defaults every "live" key that @session was not given: what SIGHUP does to open sessions.
 * Returns 1 if any changed.
 */
int conf_follow(struct conf_session *session, const struct conf_session *defaults);

/* conf_was_given - whether the client said this key of [session] itself. */
int conf_was_given(const struct conf_session *session, const char *key);

/* conf_print - the whole configuration as an ini file that conf_load() reads back to the same values, with comments. */
void conf_print(const struct conf *conf, FILE *to);

/* conf_help - every key: name, unit, default, range, when a change takes effect, text. For --help (plain) and the manual (roff). */
void conf_help(FILE *to, int roff);

/*
 * conf_each - walk the configuration for `ebbctl config`: fn(section, key, value as text, unit or "", reload class) per key.
 * reload class: "live" (SIGHUP; open sessions follow), "next" (SIGHUP; sessions opened later: what a session's tables are sized
 * by), "restart". section is "daemon", "session", "pool NAME" or "model NAME".
 */
void conf_each(const struct conf *conf,
	       void (*fn)(void *arg, const char *section, const char *key, const char *value, const char *unit, const char *reload),
	       void *arg);

/* conf_each_setting - the keys of a session and their values as text; with @chosen only those that were given explicitly. */
void conf_each_setting(const struct conf_session *session, int chosen, void (*fn)(void *arg, const char *key, const char *value), void *arg);

/* Text of the amounts and sizes, as conf_load() reads them: "25%", "256", "256M". */
void conf_amount_text(struct conf_amount amount, char *out, size_t bytes);
void conf_size_text(uint64_t bytes, char *out, size_t out_bytes);
int conf_parse_amount(const char *text, struct conf_amount *out);
int conf_parse_size(const char *text, uint64_t *out);

#ifdef __cplusplus
}
#endif
#endif
