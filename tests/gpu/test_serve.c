/*
 * ebb-bench-serve --part check: a model with cuBLAS and CUDA graphs, through a real daemon and without one. Logits must be the same bits with a budget
 * that never bites as without a daemon, from graphs as from launched kernels, also while sessions sit steps out; and with a budget that does bite,
 * from graphs as from launched kernels. Skipped without a GPU, or where it was not built.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu/gpu.h"

static char program[512];

static void a_serving_models_logits_are_the_same_bits(void **state)
{
	const pid_t pid = fork();
	int status;

	(void)state;
	assert_true(pid >= 0);
	if (pid == 0) {
		execl(program, program, "--part", "check", "--pool", "4G", "--vocab", "32000", "--limit", "60", (char *)NULL);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_serving_models_logits_are_the_same_bits),
	};

	snprintf(program, sizeof(program), "%s/ebb-bench-serve", getenv("EBB_BIN") ? getenv("EBB_BIN") : "build/bin");
	if (!gpu_count() || access(program, X_OK)) {
		fprintf(stderr, "no CUDA device, or no %s: skipped\n", program);
		return 77;
	}
	return cmocka_run_group_tests_name("serve", tests, NULL, NULL);
}
