#include "examples/llama/sample.h"

#include <math.h>

/* SplitMix64: one multiplication-xor-shift hash of a counter per draw. */
static uint64_t draw_u64(struct sampler *s)
{
	uint64_t z = s->state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

void sampler_init(struct sampler *s, double temperature, uint64_t seed, uint64_t stream)
{
	s->temperature = temperature;
	s->state = seed;
	s->state = draw_u64(s) ^ (stream + 1) * 0xd1342543de82ef95u;
}

int32_t sampler_draw(struct sampler *s, const float *logits, uint32_t n)
{
	double total = 0.0, top = -INFINITY, at;
	int32_t last = 0;

	for (uint32_t i = 0; i < n; i++)
		top = (double)logits[i] > top ? (double)logits[i] : top;
	for (uint32_t i = 0; i < n; i++)
		total += exp(((double)logits[i] - top) / s->temperature);
	at = (double)(draw_u64(s) >> 11) * 0x1p-53 * total;
	for (uint32_t i = 0; i < n; i++) {
		double p = exp(((double)logits[i] - top) / s->temperature);

		if (p > 0.0)
			last = (int32_t)i;
		at -= p;
		if (at < 0.0)
			break;
	}
	return last;
}
