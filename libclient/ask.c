/* Questions to the daemon: the answer comes as a memory file, because it may be longer than any message. */
#include "libclient/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_ANSWER (64u << 20)

/* Read, not mapped: a file that turns out shorter ends the reading, not the process. */
static int read_answer(struct ebb *ebb, int fd, size_t bytes, char **json)
{
	char *text = malloc(bytes + 1);
	size_t at = 0;

	if (!text)
		return ebbi_error(ebb, -ENOMEM, "out of memory for an answer of %zu bytes", bytes);
	while (at < bytes) {
		ssize_t n = pread(fd, text + at, bytes - at, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			free(text);
			return ebbi_broken(ebb, "the daemon's answer ends after %zu of %zu bytes", at, bytes);
		}
		at += (size_t)n;
	}
	text[bytes] = 0;
	if (memchr(text, 0, bytes) && strlen(text) + 1 != bytes) {	/* one NUL at the end may be counted in */
		free(text);
		return ebbi_broken(ebb, "the daemon's answer is not a text");
	}
	*json = text;
	return 0;
}

int ebb_ask(struct ebb *ebb, const char *question, char **json)
{
	struct wire_msg msg = { .u.text = "" };
	int fd = -1, rc;

	if (!ebb || !question || !json)
		return -EINVAL;
	if (ebb->local)
		return ebbi_error(ebb, -EINVAL, "there is no daemon to ask");
	if (strlen(question) >= sizeof(msg.u.text))
		return ebbi_error(ebb, -EINVAL, "a question has at most %zu bytes", sizeof(msg.u.text) - 1);
	rc = ebbi_alive(ebb);
	if (rc)
		return rc;
	memcpy(msg.u.text, question, strlen(question));
	rc = ebbi_request(ebb, &msg, WIRE_ASK, sizeof(msg.u.text), WIRE_ANSWER, &fd);
	if (rc)
		return rc;
	if (fd < 0 || msg.u.answer.bytes > MAX_ANSWER)
		rc = ebbi_broken(ebb, "the daemon answered with %llu bytes and %s descriptor",
				 (unsigned long long)msg.u.answer.bytes, fd < 0 ? "no" : "a");
	else
		rc = read_answer(ebb, fd, msg.u.answer.bytes, json);
	if (fd >= 0)
		close(fd);
	return rc;
}
