/* The table of keys as data: what there is, where it lives, and what was probably meant. */
#include <string.h>

#include "conf/keys.h"

#define STRUCT_DAEMON struct conf_daemon
#define STRUCT_POOL struct conf_pool
#define STRUCT_MODEL struct conf_model
#define STRUCT_SESSION struct conf_session
#define FIELD_BYTES(type, field) sizeof(((type *)0)->field)

const struct conf_key conf_keys[] = {
#define KEY(section, key, type, field, def, min, max, unit, reload, text, longer)                                                \
	{ CONF_##section, #key, CONF_TYPE_##type, offsetof(STRUCT_##section, field), FIELD_BYTES(STRUCT_##section, field), def,   \
	  min, max, unit, CONF_##reload, text, longer },
#include "conf/keys.def"
#undef KEY
};

const unsigned conf_n_keys = sizeof(conf_keys) / sizeof(conf_keys[0]);
const char *const conf_section_names[CONF_N_SECTIONS] = { "daemon", "pool", "model", "session" };
const char *const conf_reload_names[] = { "live", "next", "restart" };

/* The loader and conf_session.given keep a bit or a word per key. */
_Static_assert(sizeof(conf_keys) / sizeof(conf_keys[0]) <= 64, "too many keys for a 64-bit mask");

void conf_section_keys(enum conf_section section, unsigned *first, unsigned *n)
{
	unsigned i = 0;

	while (i < conf_n_keys && conf_keys[i].section != section)
		i++;
	*first = i;
	while (i < conf_n_keys && conf_keys[i].section == section)
		i++;
	*n = i - *first;
}

const struct conf_key *conf_find(enum conf_section section, const char *name)
{
	for (unsigned i = 0; i < conf_n_keys; i++)
		if (conf_keys[i].section == section && strcmp(conf_keys[i].name, name) == 0)
			return &conf_keys[i];
	return NULL;
}

enum { WORD = 31 };

static unsigned min2(unsigned a, unsigned b)
{
	return a < b ? a : b;
}

unsigned conf_distance(const char *a, const char *b)
{
	unsigned d[WORD + 1][WORD + 1];
	size_t na = strlen(a), nb = strlen(b);

	if (na > WORD || nb > WORD)
		return 99;
	for (unsigned i = 0; i <= na; i++)
		d[i][0] = i;
	for (unsigned j = 0; j <= nb; j++)
		d[0][j] = j;
	for (unsigned i = 1; i <= na; i++) {
		for (unsigned j = 1; j <= nb; j++) {
			unsigned best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);

			best = min2(best, min2(d[i - 1][j], d[i][j - 1]) + 1);
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				best = min2(best, d[i - 2][j - 2] + 1);
			d[i][j] = best;
		}
	}
	return d[na][nb];
}

const struct conf_key *conf_nearest(enum conf_section section, const char *name)
{
	const struct conf_key *nearest = NULL;
	size_t length = strlen(name);
	unsigned best = length < 4 ? 2 : 3;	/* one slip in a short word, two in a longer one */

	best = length < 2 ? 1 : best;
	for (unsigned pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < conf_n_keys; i++) {
			unsigned d;

			if ((conf_keys[i].section == section) != (pass == 0))
				continue;
			d = conf_distance(name, conf_keys[i].name);
			if (d < best) {
				best = d;
				nearest = &conf_keys[i];
			}
		}
	}
	return nearest;
}
