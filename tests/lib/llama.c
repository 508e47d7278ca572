#include "tests/lib/llama.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/daemon.h"

static char dir[64];
static pid_t dir_owner;

static void remove_dir(void)
{
	char command[128];

	if (getpid() != dir_owner)
		return;
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	if (system(command))
		fprintf(stderr, "%s stays\n", dir);
}

const char *tl_dir(void)
{
	if (!*dir) {
		snprintf(dir, sizeof(dir), "/tmp/ebbd-test-XXXXXX");
		assert_non_null(mkdtemp(dir));
		dir_owner = getpid();
		atexit(remove_dir);
	}
	return dir;
}

static void read_all(FILE *from, char text[TL_TEXT])
{
	size_t n = from ? fread(text, 1, TL_TEXT - 1, from) : 0;

	text[n] = '\0';
}

void tl_run(struct tl *t, const char *format, ...)
{
	const char *model = getenv("EBB_MODEL");
	char command[8192], bin[4096], err_path[128];
	va_list args;
	FILE *from;
	int n, status;

	snprintf(bin, sizeof(bin), "%s", td_program(""));
	setenv("BIN", bin, 1);
	setenv("DIR", tl_dir(), 1);
	setenv("MODEL", model ? model : "build/model/SmolLM2-135M-Instruct.Q4_1.gguf", 1);
	n = snprintf(command, sizeof(command), "{ ");
	va_start(args, format);
	n += vsnprintf(command + n, sizeof(command) - (size_t)n, format, args);
	va_end(args);
	assert_true(n > 2 && (size_t)n < sizeof(command) - 256);
	snprintf(err_path, sizeof(err_path), "%s/stderr", tl_dir());
	snprintf(command + n, sizeof(command) - (size_t)n, "\n} 2>'%s' </dev/null", err_path);
	from = popen(command, "r");
	assert_non_null(from);
	read_all(from, t->out);
	status = pclose(from);
	t->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	from = fopen(err_path, "r");
	read_all(from, t->err);
	if (from)
		fclose(from);
}

static json_t *member_of(const struct tl *t, const char *member)
{
	json_t *root = json_loads(t->out, 0, NULL), *found;

	if (!json_is_object(root))
		fail_msg("no JSON object: %s%s", t->out, t->err);
	found = json_incref(json_object_get(root, member));
	json_decref(root);
	return found;
}

double tl_number(const struct tl *t, const char *member)
{
	json_t *found = member_of(t, member);
	double number = json_is_number(found) ? json_number_value(found) : NAN;

	json_decref(found);
	return number;
}

bool tl_null(const struct tl *t, const char *member)
{
	json_t *found = member_of(t, member);
	bool null = json_is_null(found);

	json_decref(found);
	return null;
}
