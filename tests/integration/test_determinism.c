/*
 * The same input, policy and seed give the same outputs, bit for bit: alone, again, with the other way of sleeping, and while three
 * other clients hammer the same pool. Every policy, every kind of slot.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/daemon.h"
#include "tests/lib/traffic.h"

static const char *const settings[] = {
	"policy=h2o budget=64 slots=bf16 sinks=4", "policy=h2o budget=25% slots=f32 observe=4 prefill=chunked",
	"policy=streaming budget=80 slots=q8", "policy=random budget=64 slots=f16 seed=7", "policy=full slots=bf16",
	"policy=rkv:kernel=5 budget=64 slots=q8", "policy=cam budget=64 slots=bf16", "policy=vatp:age=1 merge=pivot budget=64 slots=q8",
	"policy=roco budget=25%", "policy=expected budget=64 slots=f16 merge=d2o", "policy=lagkv:lag=8 budget=96 slots=f32",
};
enum { N_SETTINGS = sizeof(settings) / sizeof(*settings) };

static struct td d;
static struct traffic_report *report;

static struct traffic_spec spec_of(unsigned i)
{
	return (struct traffic_spec){ .settings = settings[i], .n_sessions = 2, .prompt = 150, .tokens = 400, .seed = 40 + i };
}

static void a_second_run_gives_the_same_bits(void **state)
{
	(void)state;
	for (unsigned i = 0; i < N_SETTINGS; i++) {
		struct traffic_spec spec = spec_of(i);
		uint64_t alone = traffic_run(d.socket, &spec, report);

		if (i != 4)	/* full */
			assert_true(report->evicted > 0);
		spec.no_uring = true;
		assert_int_equal(traffic_run(d.socket, &spec, report), alone);
		spec.seed++;
		assert_int_not_equal(traffic_run(d.socket, &spec, report), alone);	/* the hash does tell runs apart */
	}
}

static void three_hammering_clients_change_no_bit(void **state)
{
	struct traffic_spec noise = { .name = "noise", .settings = "policy=h2o budget=96", .n_sessions = 3, .prompt = 128,
				      .tokens = 300, .rounds = 1000000 };
	uint64_t alone[N_SETTINGS];
	pid_t pid[3];

	(void)state;
	for (unsigned i = 0; i < N_SETTINGS; i++) {
		struct traffic_spec spec = spec_of(i);

		alone[i] = traffic_run(d.socket, &spec, report);
	}
	for (unsigned i = 0; i < 3; i++) {
		noise.seed = 1000 + i;
		pid[i] = traffic_start(d.socket, &noise, &report[1 + i]);
	}
	for (unsigned i = 0; i < 3; i++)
		traffic_await(&report[1 + i].tokens, 1);
	for (unsigned i = 0; i < N_SETTINGS; i++) {
		struct traffic_spec spec = spec_of(i);

		assert_int_equal(traffic_run(d.socket, &spec, report), alone[i]);
	}
	for (unsigned i = 0; i < 3; i++) {
		traffic_stop(&report[1 + i]);
		assert_int_equal(traffic_wait(pid[i]), 0);
		assert_true(report[1 + i].rc == 0);
	}
}

static int start(void **state)
{
	(void)state;
	report = traffic_reports(8);
	td_start(&d, "drain = 0s\n[pool p]\ndevice = %D\nsize = 128M\nslab = 1M\n[session]\nwindow = 16\n");
	return 0;
}

static int stop(void **state)
{
	(void)state;
	td_await(&d, "status:pools.0.used_bytes", 0);
	td_stop(&d);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_second_run_gives_the_same_bits),
		cmocka_unit_test(three_hammering_clients_change_no_bit),
	};

	return cmocka_run_group_tests(tests, start, stop);
}
