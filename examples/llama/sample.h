/* Drawing a token from logits. */
#ifndef LLAMA_SAMPLE_H
#define LLAMA_SAMPLE_H

#include <stdint.h>

struct sampler {
	double temperature;	/* > 0 */
	uint64_t state;
};

/* sampler_init - @seed and @stream (the sequence's number) together choose the draws. */
void sampler_init(struct sampler *s, double temperature, uint64_t seed, uint64_t stream);

/* sampler_draw - a token with probability softmax(logits / temperature). The same state and logits give the same token. */
int32_t sampler_draw(struct sampler *s, const float *logits, uint32_t n);

#endif
