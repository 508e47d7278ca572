/* How well a text is predicted: teacher forcing through the decode path. */
#ifndef LLAMA_NLL_H
#define LLAMA_NLL_H

struct run;

/*
 * nll_run - feed all tokens in steps of --chunk and print one JSON line:
 * tokens fed, predictions made ("predicted"), nats per prediction over all ("nll") and over those made from positions at or
 * beyond the first budget's worth of tokens ("nll_tail", from position "tail_from"; null when there are none), slots at the end.
 * With --against-full also what against.h says.
 * 0 or a negative errno, reported on stderr.
 */
int nll_run(struct run *run);

#endif
