/* Text out of prompts. */
#ifndef LLAMA_GENERATE_H
#define LLAMA_GENERATE_H

struct run;

/*
 * generate_run - read the prompts, then draw tokens until every sequence has --predict of them or has ended.
 * The first sequence's text goes to stdout as it is produced; --all adds the others' at the end; --json prints an object instead.
 * 0 or a negative errno, reported on stderr.
 */
int generate_run(struct run *run);

#endif
