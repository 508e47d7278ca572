#include "tests/lib/oracle.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *zeroed(size_t n, size_t bytes)
{
	void *p = calloc(n ? n : 1, bytes ? bytes : 1);

	assert(p);
	return p;
}

uint32_t oracle_row_room(const struct gpu_shape *shape)
{
	const uint32_t k = gpu_row_bytes(gpu_row_type(shape->slot_type, 0), shape->head_dim);
	const uint32_t v = gpu_row_bytes(gpu_row_type(shape->slot_type, 1), shape->head_dim);

	return k > v ? k : v;
}

void oracle_session_init(struct oracle_session *s)
{
	const size_t row = oracle_row_room(&s->shape);

	s->lane = zeroed(s->table.n_lanes, sizeof(*s->lane));
	for (uint32_t l = 0; l < s->table.n_lanes; l++) {
		s->lane[l].meaningful = s->max_slots;
		s->lane[l].next = zeroed(s->table.window, sizeof(uint32_t));
		s->lane[l].slot = zeroed(s->max_slots, sizeof(struct oracle_slot));
		s->lane[l].k = zeroed(s->max_slots, row);
		s->lane[l].v = zeroed(s->max_slots, row);
	}
}

void oracle_session_fini(struct oracle_session *s)
{
	for (uint32_t l = 0; l < s->table.n_lanes; l++) {
		free(s->lane[l].next);
		free(s->lane[l].slot);
		free(s->lane[l].k);
		free(s->lane[l].v);
	}
	free(s->lane);
	s->lane = NULL;
}

void oracle_session_copy(struct oracle_session *to, const struct oracle_session *from)
{
	const size_t row = oracle_row_room(&from->shape);

	assert(to->table.n_lanes == from->table.n_lanes && to->max_slots == from->max_slots);
	for (uint32_t l = 0; l < from->table.n_lanes; l++) {
		to->lane[l].head = from->lane[l].head;
		to->lane[l].meaningful = from->lane[l].meaningful;
		memcpy(to->lane[l].next, from->lane[l].next, from->table.window * sizeof(uint32_t));
		memcpy(to->lane[l].slot, from->lane[l].slot, from->max_slots * sizeof(struct oracle_slot));
		memcpy(to->lane[l].k, from->lane[l].k, from->max_slots * row);
		memcpy(to->lane[l].v, from->lane[l].v, from->max_slots * row);
	}
}

/* --- numbers ------------------------------------------------------------------------------------------------------- */

/*
 * x rounded to a binary format of `digits` significand bits (the leading one included) whose smallest normal number is
 * 2^min_exponent, ties to even (rint). Exact scalings on both sides.
 */
static double round_to(double x, int digits, int min_exponent)
{
	int e;

	if (x == 0.0 || !isfinite(x))
		return x;
	frexp(x, &e);		/* |x| in [2^(e-1), 2^e) */
	if (e - 1 < min_exponent)
		e = min_exponent + 1;
	return ldexp(rint(ldexp(x, digits - e)), e - digits);
}

double oracle_from_f16(uint16_t bits)
{
	const int e = bits >> 10 & 31, m = bits & 1023;
	const double sign = bits & 0x8000 ? -1.0 : 1.0;

	if (e == 31)
		return m ? NAN : sign * INFINITY;
	return sign * (e ? ldexp(1024 + m, e - 25) : ldexp(m, -24));
}

uint16_t oracle_f16(double x)
{
	const uint16_t sign = signbit(x) ? 0x8000 : 0;
	const double r = fabs(round_to(x, 11, -14));
	int e;

	if (isnan(x))
		return 0x7e00;
	if (r > 65504.0)
		return sign | 0x7c00;
	if (r < ldexp(1, -14))
		return (uint16_t)(sign | (int)ldexp(r, 24));
	frexp(r, &e);
	return (uint16_t)(sign | (e + 14) << 10 | ((int)ldexp(r, 11 - e) - 1024));
}

uint16_t oracle_f16_up(double x)
{
	const uint16_t near = oracle_f16(x);

	assert(x >= 0.0);
	if (x > 65504.0)
		return 0x7bff;
	return oracle_from_f16(near) < x ? (uint16_t)(near + 1) : near;	/* non-negative: the next bits are the next number */
}

double oracle_from_bf16(uint16_t bits)
{
	const uint32_t wide = (uint32_t)bits << 16;
	float x;

	memcpy(&x, &wide, sizeof(x));
	return (double)x;
}

uint16_t oracle_bf16(double x)
{
	const float r = (float)round_to(x, 8, -126);	/* exact, or beyond the range: infinity */
	uint32_t bits;

	memcpy(&bits, &r, sizeof(bits));
	return isnan(x) ? 0x7fc0 : (uint16_t)(bits >> 16);
}

double oracle_load(uint32_t type, const void *data, size_t index)
{
	switch (type) {
	case GPU_F32: return (double)((const float *)data)[index];
	case GPU_F16: return oracle_from_f16(((const uint16_t *)data)[index]);
	case GPU_BF16: return oracle_from_bf16(((const uint16_t *)data)[index]);
	default: assert(!"a tensor's type"); return 0.0;
	}
}

void oracle_store(uint32_t type, void *data, size_t index, double x)
{
	switch (type) {
	case GPU_F32: ((float *)data)[index] = (float)x; break;
	case GPU_F16: ((uint16_t *)data)[index] = oracle_f16(x); break;
	case GPU_BF16: ((uint16_t *)data)[index] = oracle_bf16(x); break;
	default: assert(!"a tensor's type");
	}
}

/* Channel c of a q4 row: which byte, how far up in it, and its group's parameters. */
struct nibble { uint32_t byte, shift, param; };

static struct nibble nibble_of(uint32_t head_dim, uint32_t c)
{
	const uint32_t group = c / 32, m = head_dim - group * 32 < 32 ? 16 : 32, in_group = c % 32;

	return (struct nibble){ group * 16 + in_group % (m / 2), in_group < m / 2 ? 0 : 4, head_dim / 2 + group * 4 };
}

static void q4_store(uint32_t head_dim, const float *x, uint8_t *row)
{
	for (uint32_t first = 0; first < head_dim; first += 32) {
		const uint32_t end = first + 32 < head_dim ? first + 32 : head_dim;
		float low = x[first], high = x[first], least, scale;
		uint16_t low_bits, scale_bits;

		for (uint32_t c = first; c < end; c++) {
			low = x[c] < low ? x[c] : low;
			high = x[c] > high ? x[c] : high;
		}
		low_bits = oracle_f16((double)(low + 0.0f));
		least = (float)oracle_from_f16(low_bits);
		scale_bits = high > least ? oracle_f16_up((double)((high - least) / 15.0f)) : 0;
		scale = (float)oracle_from_f16(scale_bits);
		memcpy(row + nibble_of(head_dim, first).param, &scale_bits, 2);
		memcpy(row + nibble_of(head_dim, first).param + 2, &low_bits, 2);
		for (uint32_t c = first; c < end; c++) {
			const struct nibble n = nibble_of(head_dim, c);
			const float q = scale == 0.0f ? 0.0f : rintf((x[c] - least) / scale);
			const uint32_t bits = q > 15.0f ? 15 : q < 0.0f ? 0 : (uint32_t)q;

			row[n.byte] = (uint8_t)((row[n.byte] & (n.shift ? 0x0f : 0xf0)) | bits << n.shift);
		}
	}
}

static double q4_load(uint32_t head_dim, const uint8_t *row, uint32_t c)
{
	const struct nibble n = nibble_of(head_dim, c);
	uint16_t param[2];

	memcpy(param, row + n.param, 4);
	return oracle_from_f16(param[1]) + oracle_from_f16(param[0]) * (double)(row[n.byte] >> n.shift & 15);
}

void oracle_row_store(uint32_t row_type, uint32_t head_dim, const float *x, uint8_t *row, uint32_t *param)
{
	float least = x[0], most = x[0], offset, scale;
	uint16_t offset_bits, scale_bits;

	if (row_type == GPU_Q4) {
		q4_store(head_dim, x, row);
		return;
	}
	if (row_type != GPU_Q8) {
		for (uint32_t c = 0; c < head_dim; c++)
			oracle_store(row_type, row, c, (double)x[c]);
		return;
	}
	for (uint32_t c = 1; c < head_dim; c++) {
		least = x[c] < least ? x[c] : least;
		most = x[c] > most ? x[c] : most;
	}
	offset_bits = oracle_f16((double)((most + least) * 0.5f));
	scale_bits = oracle_f16_up((double)((most - least) / 254.0f));
	offset = (float)oracle_from_f16(offset_bits);
	scale = (float)oracle_from_f16(scale_bits);
	for (uint32_t c = 0; c < head_dim; c++) {
		float q = scale == 0.0f ? 0.0f : rintf((x[c] - offset) / scale);

		row[c] = (uint8_t)(int8_t)(q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q);
	}
	*param = (uint32_t)offset_bits << 16 | scale_bits;
}

double oracle_row_load(uint32_t row_type, uint32_t head_dim, const uint8_t *row, uint32_t param, uint32_t channel)
{
	if (row_type == GPU_Q4)
		return q4_load(head_dim, row, channel);
	if (row_type != GPU_Q8)
		return oracle_load(row_type, row, channel);
	return oracle_from_f16((uint16_t)(param >> 16)) + oracle_from_f16((uint16_t)param) * (double)((const int8_t *)row)[channel];
}

/* --- the client's operations ----------------------------------------------------------------------------------------- */

void oracle_append(const struct oracle_seq *seq, uint32_t layer, const struct gpu_tensor *k, const struct gpu_tensor *v)
{
	const struct gpu_shape *shape = &seq->session->shape;
	const uint32_t d = shape->head_dim, row_bytes = oracle_row_room(shape), type = shape->slot_type;
	float x[256];

	for (uint32_t t = 0; t < seq->n; t++) {
		for (uint32_t g = 0; g < shape->n_kv_heads; g++) {
			struct oracle_lane *lane = &seq->session->lane[layer * shape->n_kv_heads + g];
			const uint32_t at = gpu_slot_of(lane->head, lane->next, seq->used + t);
			struct oracle_slot *slot = &lane->slot[at];
			const size_t row = seq->row + t;

			assert(at < seq->session->max_slots);
			for (uint32_t c = 0; c < d; c++)
				x[c] = (float)oracle_load(k->type, k->data, row * (size_t)k->stride + g * d + c);
			oracle_row_store(gpu_row_type(type, 0), d, x, &lane->k[at * row_bytes], &slot->k_param);
			for (uint32_t c = 0; c < d; c++)
				x[c] = (float)oracle_load(v->type, v->data, row * (size_t)v->stride + g * d + c);
			oracle_row_store(gpu_row_type(type, 1), d, x, &lane->v[at * row_bytes], &slot->v_param);
			slot->pos = seq->pos + (int32_t)t;
			for (uint32_t i = 0; i < seq->session->table.n_heat; i++)
				slot->heat[i] = 0.0;
		}
	}
}

/* All rows of a lane as numbers: [live][head_dim]; free(). */
static double *numbers(const struct oracle_session *s, const struct oracle_lane *lane, uint32_t live, int is_v)
{
	const uint32_t d = s->shape.head_dim, row_bytes = oracle_row_room(&s->shape), type = gpu_row_type(s->shape.slot_type, is_v != 0);
	const uint8_t *rows = is_v ? lane->v : lane->k;
	double *x = zeroed((size_t)live * d, sizeof(*x));

	for (uint32_t at = 0; at < live; at++)
		for (uint32_t c = 0; c < d; c++)
			x[at * d + c] = oracle_row_load(type, d, &rows[at * row_bytes],
							is_v ? lane->slot[at].v_param : lane->slot[at].k_param, c);
	return x;
}

/* scale * q.k of query row `row`, head h, against every slot: logit[at * stride]. */
static void logits(const struct oracle_session *s, const double *k, uint32_t live, const struct gpu_tensor *q, uint32_t row,
		   uint32_t h, double scale, double *logit, size_t stride)
{
	const uint32_t d = s->shape.head_dim;
	double x[256];

	for (uint32_t c = 0; c < d; c++)
		x[c] = oracle_load(q->type, q->data, row * (size_t)q->stride + h * d + c);
	for (uint32_t at = 0; at < live; at++) {
		double dot = 0.0;

		for (uint32_t c = 0; c < d; c++)
			dot += x[c] * k[(size_t)at * d + c];
		logit[at * stride] = scale * dot;
	}
}

/* What one query adds to a slot: p[i] is the probability under the i-th head of the group. */
static void heat_add(const struct oracle_session *s, struct oracle_slot *slot, const double *p)
{
	double sum = 0.0, squares = 0.0;

	for (uint32_t i = 0; i < s->shape.group; i++) {
		sum += p[i];
		squares += p[i] * p[i];
	}
	for (uint32_t i = 0; i < s->table.n_heat; i++) {
		switch (s->table.heat[i]) {
		case EVICT_HEAT_SUM: slot->heat[i] += sum; break;
		case EVICT_HEAT_MAX: slot->heat[i] = sum > slot->heat[i] ? sum : slot->heat[i]; break;
		case EVICT_HEAT_SQUARES: slot->heat[i] += squares; break;
		case EVICT_HEAT_LAST: slot->heat[i] = sum; break;
		default: assert(!"a kind of heat");
		}
	}
}

/* One query under one head: p[at * stride] (0 where it may not look), the output, the log-sum-exp. */
static double query(const struct oracle_session *s, const struct oracle_lane *lane, const double *k, const double *v, uint32_t live,
		    int32_t pos, const struct gpu_tensor *q, uint32_t row, uint32_t h, double scale, double *p, double *out)
{
	const uint32_t d = s->shape.head_dim;
	const size_t stride = s->shape.group;
	double most = -INFINITY, sum = 0.0;

	logits(s, k, live, q, row, h, scale, p, stride);
	for (uint32_t at = 0; at < live; at++) {
		if (lane->slot[at].pos > pos)
			p[at * stride] = -INFINITY;
		most = p[at * stride] > most ? p[at * stride] : most;
	}
	for (uint32_t at = 0; at < live; at++) {
		p[at * stride] = exp(p[at * stride] - most);
		sum += p[at * stride];
	}
	memset(out, 0, d * sizeof(*out));
	for (uint32_t at = 0; at < live; at++) {
		p[at * stride] /= sum;
		for (uint32_t c = 0; c < d; c++)
			out[c] += p[at * stride] * v[(size_t)at * d + c];
	}
	return most + log(sum);
}

void oracle_attend(const struct oracle_seq *seq, uint32_t layer, const struct gpu_tensor *q, double scale, double *out, double *lse)
{
	const struct oracle_session *s = seq->session;
	const uint32_t group = s->shape.group, heads = s->shape.n_kv_heads * group, d = s->shape.head_dim;
	double *p = zeroed(s->max_slots, group * sizeof(double));

	for (uint32_t g = 0; g < s->shape.n_kv_heads && seq->n; g++) {
		struct oracle_lane *lane = &s->lane[layer * s->shape.n_kv_heads + g];
		const uint32_t live = gpu_live(lane->head, seq->used + seq->n);
		double *k = numbers(s, lane, live, 0), *v = numbers(s, lane, live, 1);

		for (uint32_t t = 0; t < seq->n; t++) {
			const int32_t pos = seq->pos + (int32_t)t;

			for (uint32_t i = 0; i < group; i++) {
				const size_t at = (size_t)(seq->row + t) * heads + g * group + i;

				lse[at] = query(s, lane, k, v, live, pos, q, seq->row + t, g * group + i, scale, p + i, &out[at * d]);
			}
			if (!s->table.observe || (uint32_t)pos % s->table.observe || pos < seq->heat_from)
				continue;
			for (uint32_t at = 0; at < live; at++)
				if (lane->slot[at].pos <= pos)
					heat_add(s, &lane->slot[at], &p[at * group]);
		}
		free(k);
		free(v);
	}
	free(p);
}

void oracle_observe(const struct oracle_seq *seq, uint32_t layer, const struct gpu_tensor *q, const float *lse, double scale,
		    uint32_t last)
{
	const struct oracle_session *s = seq->session;
	const uint32_t group = s->shape.group, heads = s->shape.n_kv_heads * group;
	double *p = zeroed(s->max_slots, group * sizeof(double));

	for (uint32_t g = 0; g < s->shape.n_kv_heads && seq->n; g++) {
		struct oracle_lane *lane = &s->lane[layer * s->shape.n_kv_heads + g];
		const uint32_t live = gpu_live(lane->head, seq->used + seq->n);
		double *k = numbers(s, lane, live, 0);

		for (uint32_t t = last && last < seq->n ? seq->n - last : 0; t < seq->n; t++) {
			const uint32_t row = seq->row + t;

			if (seq->pos + (int32_t)t < seq->heat_from)
				continue;
			for (uint32_t i = 0; i < group; i++)
				logits(s, k, live, q, row, g * group + i, scale, p + i, group);
			for (uint32_t at = 0; at < live; at++) {
				if (lane->slot[at].pos > seq->pos + (int32_t)t)
					continue;
				for (uint32_t i = 0; i < group; i++)
					p[at * group + i] = exp(p[at * group + i] - (double)lse[row * heads + g * group + i]);
				heat_add(s, &lane->slot[at], &p[at * group]);
			}
		}
		free(k);
	}
	free(p);
}
