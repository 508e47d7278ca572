/*
 * How a benchmark says what it measured: one JSON line on stdout per figure; tools/bench.sh makes the table of them.
 * Anything else a benchmark prints on stdout is shown as it is.
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline uint64_t bench_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Time of this thread on a processor: on a busy machine waiting for one is not the operation's doing. */
static inline uint64_t bench_cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline int bench_ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Sorts x. n > 0. */
static inline double bench_median(double *x, unsigned n)
{
	qsort(x, n, sizeof(*x), bench_ascending);
	return x[n / 2];
}

static inline void bench_number(const char *key, double value)
{
	if (isfinite(value))
		printf("\"%s\": %.6g, ", key, value);
	else
		printf("\"%s\": null, ", key);
}

/*
 * bench_report - one figure.
 * @ceiling: the best this machine could do, in the same unit; NAN: none. Shown beside the figure, with value / ceiling.
 * @goal:    as the issue has it, e.g. "<= 150 ns"; "": none.
 * @ok:      1 reached, 0 missed, -1 there is no goal.
 */
static inline void bench_report(const char *name, double value, const char *unit, double ceiling, const char *goal, int ok)
{
	printf("{\"name\": \"%s\", ", name);
	bench_number("value", value);
	printf("\"unit\": \"%s\", ", unit);
	bench_number("ceiling", ceiling);
	bench_number("ratio", value / ceiling);
	printf("\"goal\": \"%s\", \"ok\": %s}\n", goal, ok < 0 ? "null" : ok ? "true" : "false");
	fflush(stdout);
}

#endif
