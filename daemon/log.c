/*
 * One line per event on stderr, with the "<level>" in front that the journal understands. At most 200 lines a second of what is less
 * than a notice. Any thread may log.
 */
#include "daemon/daemon.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define LINES_PER_SECOND 200

static unsigned max_level = LOG_INFO;

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void log_level(unsigned level)
{
	max_level = level;
}

void log_line(unsigned level, const char *format, ...)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static uint64_t second;
	static unsigned lines, lost;
	char text[6144];	/* a refused reload quotes every complaint */
	va_list args;
	uint64_t now = now_ns() / 1000000000ull;

	if (level > max_level)
		return;
	pthread_mutex_lock(&lock);
	if (now != second) {
		if (lost)
			fprintf(stderr, "<%d>log_lines_lost count=%u\n", LOG_WARN, lost);
		second = now;
		lines = lost = 0;
	}
	if (lines++ >= LINES_PER_SECOND && level > LOG_NOTE) {
		lost++;
		pthread_mutex_unlock(&lock);
		return;
	}
	pthread_mutex_unlock(&lock);
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	for (char *p = text; *p; p++)	/* one event, one line, whatever a client calls itself */
		if ((unsigned char)*p < 32 || (unsigned char)*p == 127)
			*p = ' ';
	fprintf(stderr, "<%u>%s\n", level, text);
}
