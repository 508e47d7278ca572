/* Programs of this project as a shell would run them: ebb-llama on the real model, and others. Failures assert through cmocka. */
#ifndef TESTS_LIB_LLAMA_H
#define TESTS_LIB_LLAMA_H

#include <stdbool.h>
#include <stddef.h>

#define TL_TEXT (1u << 20)

/* What a program said. */
struct tl {
	int status;		/* exit status */
	char out[TL_TEXT], err[TL_TEXT];	/* NUL-terminated */
};

/* tl_run - a command line of /bin/sh; $BIN in it is the folder of the programs, $MODEL the model, $DIR a folder of this test's own. */
void tl_run(struct tl *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The number of a member of the JSON object on stdout ("kl"); NAN when it is null or not there. */
double tl_number(const struct tl *t, const char *member);
bool tl_null(const struct tl *t, const char *member);	/* it is there, and null */
const char *tl_dir(void);	/* made at the first call, removed when the test ends */

#endif
