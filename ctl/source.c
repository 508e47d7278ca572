/* Where answers come from: the daemon, or for tests a file. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ctl/ctl.h"
#include "libclient/ebb.h"

struct ctl_source {
	const char *socket, *from;
	struct ebb *ebb;		/* NULL: not connected */
	json_t *file;			/* of @from */
	size_t frame;
};

struct ctl_source *ctl_source_new(const char *socket, const char *from)
{
	struct ctl_source *source = calloc(1, sizeof(*source));

	if (!source)
		return NULL;
	source->socket = socket;
	source->from = from;
	return source;
}

void ctl_source_free(struct ctl_source *source)
{
	if (!source)
		return;
	ebb_close(source->ebb);
	json_decref(source->file);
	free(source);
}

/* --- a file ---------------------------------------------------------------------------------------------------------------------- */

static const json_t *current(const struct ctl_source *source)
{
	return json_is_array(source->file) ? json_array_get(source->file, source->frame) : source->file;
}

static int ask_file(struct ctl_source *source, const char *question, json_t **out, char *why, size_t why_bytes)
{
	json_error_t error;
	json_t *answer;

	if (!source->file) {
		source->file = json_load_file(source->from, 0, &error);
		if (!source->file) {
			snprintf(why, why_bytes, "%s:%d: %s", source->from, error.line, error.text);
			return -EPROTO;
		}
	}
	answer = json_object_get(current(source), question);
	if (!answer) {
		snprintf(why, why_bytes, "%s: no answer to \"%s\"", source->from, question);
		return -EPROTO;
	}
	*out = json_incref(answer);
	return 0;
}

bool ctl_source_next(struct ctl_source *source)
{
	if (!source->from)
		return true;
	source->frame++;
	return json_is_array(source->file) && source->frame < json_array_size(source->file);
}

double ctl_source_now(const struct ctl_source *source)
{
	const json_t *at = json_object_get(current(source), "at_s");
	struct timespec t;

	if (json_is_number(at))
		return json_number_value(at);
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* --- the daemon --------------------------------------------------------------------------------------------------------------- */

static const char *socket_path(const struct ctl_source *source)
{
	const char *path = source->socket ? source->socket : getenv("EBB_SOCKET");

	return path && *path ? path : EBB_SOCKET_DEFAULT;
}

/* What went wrong, and what to do about it. @said: the library's sentence. */
static void explain(const struct ctl_source *source, int err, const char *said, char *why, size_t why_bytes)
{
	const char *path = socket_path(source);

	switch (err) {
	case -ENOENT:
	case -ECONNREFUSED:
		snprintf(why, why_bytes, "ebbd is not running: %s %s.\nStart it with \"systemctl start ebbd\", or name its socket with "
			 "--socket or EBB_SOCKET.", err == -ENOENT ? "there is no socket" : "nobody listens on", path);
		return;
	case -EACCES:
	case -EPERM:
		snprintf(why, why_bytes, "you may not use %s.\nBecome a member of its group (\"usermod -aG ebbd USER\", then log in again) "
			 "or use sudo.", path);
		return;
	case -EMFILE:
		snprintf(why, why_bytes, "ebbd has as many clients as it may have.\nRaise max_clients in ebbd.ini and restart ebbd.");
		return;
	case -EPIPE:
	case -ECONNRESET:
		snprintf(why, why_bytes, "ebbd hung up while it was asked.\n\"journalctl -u ebbd\" says why.");
		return;
	default:
		snprintf(why, why_bytes, "%s: %s", path, said && *said ? said : strerror(-err));
	}
}

static int connect_to(struct ctl_source *source, char *why, size_t why_bytes)
{
	char said[512] = "";
	struct ebb_options options = { .socket = source->socket, .name = "ebbctl", .why = said, .why_bytes = sizeof(said) };
	int err = source->ebb ? 0 : ebb_connect(&source->ebb, &options);

	if (err != 0) {
		source->ebb = NULL;
		explain(source, err, said, why, why_bytes);
	}
	return err;
}

/* The next question starts afresh. */
static void give_up(struct ctl_source *source, int err, char *why, size_t why_bytes)
{
	explain(source, err, ebb_error(source->ebb), why, why_bytes);
	ebb_close(source->ebb);
	source->ebb = NULL;
}

static int ask_daemon(struct ctl_source *source, const char *question, char **text, char *why, size_t why_bytes)
{
	int err = connect_to(source, why, why_bytes);

	if (err != 0)
		return err;
	err = ebb_ask(source->ebb, question, text);
	if (err != 0)
		give_up(source, err, why, why_bytes);
	return err;
}

int ctl_set(struct ctl_source *source, uint64_t id, const char *settings, char *why, size_t why_bytes)
{
	int rc;

	if (source->from) {
		snprintf(why, why_bytes, "%s: a file takes no settings", source->from);
		return -EINVAL;
	}
	rc = connect_to(source, why, why_bytes);
	if (rc != 0)
		return rc;
	rc = ebb_set(source->ebb, id, settings);
	if (rc == -EACCES || rc == -ENOENT || rc == -EINVAL || rc == -ENOTSUP || rc == -ENOSPC)
		snprintf(why, why_bytes, "%s", ebb_error(source->ebb));
	else if (rc < 0)
		give_up(source, rc, why, why_bytes);
	return rc;
}

int ctl_ask(struct ctl_source *source, const char *question, json_t **out, char *why, size_t why_bytes)
{
	json_error_t error;
	json_t *answer, *inner;
	char *text = NULL;
	int err;

	if (source->from)
		return ask_file(source, question, out, why, why_bytes);
	err = ask_daemon(source, question, &text, why, why_bytes);
	if (err != 0)
		return err;
	answer = json_loads(text, 0, &error);
	free(text);
	if (!answer) {
		snprintf(why, why_bytes, "ebbd answered \"%s\" with something that is not JSON: %s", question, error.text);
		return -EPROTO;
	}
	inner = json_object_get(answer, question);
	if (json_is_array(inner) && json_object_size(answer) == 1) {	/* {"sessions": [...]} is as good as [...] */
		json_incref(inner);
		json_decref(answer);
		answer = inner;
	}
	*out = answer;
	return 0;
}
