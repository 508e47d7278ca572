/* Frames of watch: rates between snapshots, order, and never more than the terminal holds. Answers with parts missing, too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"

/* A daemon after @k seconds with @n sessions. */
static struct ctl_snapshot snapshot(int k, int n)
{
	struct ctl_snapshot s = { .at_s = 50 + k };
	json_t *pool = json_pack("{s:s, s:s, s:I, s:I, s:i, s:i, s:i}", "name", "host", "device", "host",
				 "size_bytes", (json_int_t)64 << 20, "used_bytes", (json_int_t)32 << 20,
				 "slabs", 64, "slabs_used", 32, "slabs_quarantined", 1);

	s.status = json_pack("{s:s, s:i, s:[o], s:i, s:i, s:i, s:i, s:i}", "version", "9.9", "uptime_s", 100 + k, "pools", pool,
			     "clients", 1, "sessions", n, "tokens_total", 1000 + 250 * k, "slots_live", 500, "slots_full", 2000);
	s.sessions = json_array();
	for (int i = 0; i < n; i++)
		json_array_append_new(s.sessions, json_pack("{s:i, s:i, s:i, s:s, s:i, s:i, s:s, s:b}", "id", i + 1, "client", 1,
			"pid", 4000, "name", i ? "llama" : "\033[31mred", "tokens", 100 + (10 + i) * k,
			"used_bytes", 1024 * (1 + i * 7 % n), "state", "client", "pressure", i == 1));
	assert_non_null(s.status);
	return s;
}

static void drop(struct ctl_snapshot *s)
{
	json_decref(s->status);
	json_decref(s->sessions);
}

static char *frame(const struct ctl_snapshot *old, const struct ctl_snapshot *now, const struct ctl_style *style)
{
	enum { ROOM = 1 << 16 };
	char *text = calloc(1, ROOM);
	FILE *to = fmemopen(text, ROOM - 1, "w");

	assert_true(text && to);
	ctl_frame(old, now, 1, to, style);
	fclose(to);
	return text;
}

static void rates_are_growth_by_time(void **state)
{
	const struct ctl_style plain = { 0 };
	struct ctl_snapshot none = { 0 }, old = snapshot(0, 3), now = snapshot(2, 3);
	char *first = frame(&none, &old, &plain), *second = frame(&old, &now, &plain), *back = frame(&now, &old, &plain);

	(void)state;
	assert_null(strstr(first, "tok/s"));
	assert_non_null(strstr(second, "1.50 k         250 tok/s"));
	assert_non_null(strstr(second, "12.0 tok/s"));	/* session 3 */
	assert_non_null(strstr(second, "500  of 2.00 k slots that full caches would hold: 25.0 %"));
	assert_non_null(strstr(second, "50.0 %  32 MiB of 64 MiB, 32 of 64 slabs, 1 in quarantine"));
	assert_non_null(strstr(second, "client, pool short"));
	assert_null(strstr(back, "tok/s"));		/* counters that went back: another daemon */
	assert_null(strchr(second, '\033'));
	assert_non_null(strstr(second, "?[31mred"));
	free(first);
	free(second);
	free(back);
	drop(&old);
	drop(&now);
}

static void sessions_are_sorted_by_memory(void **state)
{
	const struct ctl_style plain = { 0 };
	struct ctl_snapshot none = { 0 }, now = snapshot(0, 11);
	char *text = frame(&none, &now, &plain);
	size_t at = (size_t)(strstr(text, "MEMORY") - text);
	int kib, last = 12, rows = 0;

	(void)state;
	while (at += strcspn(text + at, "\n") + 1, at < strlen(text) && sscanf(text + at, "%d KiB", &kib) == 1) {
		assert_true(kib < last);
		last = kib;
		rows++;
	}
	assert_int_equal(rows, 11);
	free(text);
	drop(&now);
}

/* What a terminal shows of a line: escape sequences take no room, a character of several bytes takes one. */
static unsigned seen(const char *line, size_t n)
{
	unsigned width = 0;

	for (size_t i = 0; i < n; i++) {
		if (line[i] == '\033')
			while (i < n && line[i] != 'm')
				i++;
		else
			width += ((unsigned char)line[i] & 0xc0) != 0x80;
	}
	return width;
}

static void no_frame_is_larger_than_its_terminal(void **state)
{
	struct ctl_snapshot none = { 0 }, now = snapshot(0, 30);

	(void)state;
	for (unsigned rows = 1; rows < 50; rows++) {
		for (unsigned columns = 1; columns < 180; columns += 7) {
			const struct ctl_style style = { .rows = rows, .columns = columns, .colour = columns % 2, .utf8 = rows % 2 };
			char *text = frame(&none, &now, &style);
			unsigned lines = 0;

			for (const char *at = text, *end; (end = strchr(at, '\n')) != NULL; at = end + 1, lines++)
				assert_true(seen(at, (size_t)(end - at)) <= columns);
			assert_true(lines < rows || (rows == 1 && lines == 0));
			if (rows > 20 && rows < 40 && columns > 20)
				assert_non_null(strstr(text, " more\n"));
			if (!style.colour)
				assert_null(strchr(text, '\033'));
			free(text);
		}
	}
	drop(&now);
}

static void answers_with_parts_missing_are_survived(void **state)
{
	static const char *const odd[] = {
		"{}", "[]", "{\"pools\":3,\"version\":[]}", "{\"pools\":[1,{},null,{\"name\":5,\"size_bytes\":\"x\"}],\"uptime_s\":-1e300}",
		"[{},1,null,[],{\"name\":{},\"id\":1e300,\"uid\":0,\"heat\":[1,\"sum\"],\"params\":[{},2]}]",
	};
	static void (*const show[])(const json_t *, FILE *, const struct ctl_style *) = {
		ctl_show_status, ctl_show_sessions, ctl_show_clients, ctl_show_pools, ctl_show_policies, ctl_show_config,
	};
	const struct ctl_style plain = { 0 };
	struct ctl_snapshot none = { 0 }, now;
	char *text;
	size_t bytes;

	(void)state;
	for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
		json_t *answer = json_loads(odd[i], 0, NULL);

		assert_non_null(answer);
		for (size_t s = 0; s < sizeof(show) / sizeof(show[0]); s++) {
			FILE *to = open_memstream(&text, &bytes);

			show[s](answer, to, &plain);
			fclose(to);
			free(text);
		}
		now = (struct ctl_snapshot){ .status = answer, .sessions = answer, .at_s = 1 };
		text = frame(&now, &now, &plain);
		free(text);
		text = frame(&none, &now, &plain);
		free(text);
		json_decref(answer);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rates_are_growth_by_time),
		cmocka_unit_test(sessions_are_sorted_by_memory),
		cmocka_unit_test(no_frame_is_larger_than_its_terminal),
		cmocka_unit_test(answers_with_parts_missing_are_survived),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
