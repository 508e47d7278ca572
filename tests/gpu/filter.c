/* Preloaded by run.sh: runs only the cmocka tests whose names match $EBB_TEST_FILTER. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

__attribute__((constructor)) static void set_filter(void)
{
	if (getenv("EBB_TEST_FILTER"))
		cmocka_set_test_filter(getenv("EBB_TEST_FILTER"));
}
