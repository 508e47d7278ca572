#include "examples/llama/against.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/llama/full.h"
#include "examples/llama/run.h"

/* One prediction, or (mass) one token. */
struct mark {
	double kl;		/* nats; 0 where nothing is predicted */
	double nats;		/* of the token that did follow, by the full cache */
	double mass;		/* the step's mean share of the full cache's attention that lies on slots the evicted one has */
	uint32_t step_at;	/* position where the step of the token begins */
	int same;		/* both have the same likeliest token */
};

struct against {
	struct run *run;
	struct full full;
	uint32_t n_lanes, max_live;
	struct mark **mark;	/* [n_seqs], each [n_prompt] */
	int32_t **kept;		/* [n_seqs], each [n_lanes][n_prompt]: positions in the lane in the last step */
	uint32_t **n_kept;	/* [n_seqs], each [n_lanes] */
	double *future;		/* --belady: [n_lanes][n_prompt] attention still to come, by position */
	float *worth;		/* scratch: [n_prompt] */
};

/* --- while a step is open ------------------------------------------------------------------------------------- */

/* The slots' heat becomes what is still to come for them once this step's queries have had their share. */
static int write_future(struct against *a, uint32_t lane)
{
	const uint32_t n = a->n_kept[0][lane], room = a->run->seq[0].n_prompt;
	const int32_t *kept = a->kept[0] + (size_t)lane * room;
	const float *now = a->full.heat[0] + (size_t)lane * room;
	double *future = a->future + (size_t)lane * room;

	for (uint32_t pos = 0; pos < a->full.fed; pos++)
		future[pos] -= (double)now[pos];
	for (uint32_t i = 0; i < n; i++)
		a->worth[i] = future[kept[i]] > 0.0 ? (float)future[kept[i]] : 0.0f;
	return ebb_lane_write(a->run->seq[0].session, lane, a->worth, n);
}

static int look_lane(struct against *a, uint32_t i, uint32_t lane)
{
	const struct sequence *s = &a->run->seq[i];
	int32_t *pos = a->kept[i] + (size_t)lane * s->n_prompt;
	int n = ebb_lane_read(s->session, lane, pos, NULL, s->n_prompt);

	if (n < 0)
		return n;
	if ((uint32_t)n > s->n_prompt)
		return -EPROTO;
	a->n_kept[i][lane] = (uint32_t)n;
	for (int k = 0; k < n; k++)
		if (pos[k] < 0 || (uint32_t)pos[k] >= s->n_prompt)
			return -EPROTO;
	return 0;
}

static int look(struct run *run, void *arg)
{
	struct against *a = arg;
	int err = 0;

	/* Belady wants the full run's heat of this very step before it is over; it is read from a file, so it can be had. */
	if (a->future)
		err = full_step(&a->full);
	for (uint32_t i = 0; i < run->n_seqs; i++)
		for (uint32_t lane = 0; run->n[i] && lane < a->n_lanes && !err; lane++) {
			err = look_lane(a, i, lane);
			if (!err && a->future)
				err = write_future(a, lane);
			if (err)
				cli_error("looking into lane %u: %s", lane, err == -EPROTO ? "it holds positions that do not exist" :
					  ebb_error(run->ebb));
		}
	return err;
}

/* --- after a step --------------------------------------------------------------------------------------------- */

/* KL(full || evicted) of two rows of logits, in nats. Exactly 0 for equal rows. @lse_full: of the row `full`. */
static double divergence(const float *full, double lse_full, const float *evicted, uint32_t n)
{
	double lse_evicted = tensor_lse(evicted, n), sum = 0.0;

	for (uint32_t i = 0; i < n; i++) {
		double p = (double)full[i] - lse_full;

		if (p > -40.0)	/* what is left out weighs less than 1e-17 */
			sum += exp(p) * (p - ((double)evicted[i] - lse_evicted));
	}
	return sum;
}

/* The share of the step's attention in the full cache, mean over lanes, heads and tokens, that fell on what sequence i has kept. */
static double mass(const struct against *a, uint32_t i)
{
	const uint32_t room = a->run->seq[i].n_prompt;
	double sum = 0.0;

	for (uint32_t lane = 0; lane < a->n_lanes; lane++) {
		const float *heat = a->full.heat[i] + (size_t)lane * room;
		const int32_t *kept = a->kept[i] + (size_t)lane * room;

		for (uint32_t k = 0; k < a->n_kept[i][lane]; k++)
			sum += (double)heat[kept[k]];
	}
	return sum / ((double)a->n_lanes * a->run->model->group * a->run->n[i]);
}

int against_step(struct against *a)
{
	struct run *run = a->run;
	const uint32_t vocab = run->model->n_vocab;
	int err = a->future ? 0 : full_step(&a->full);

	if (err)
		return err;
	for (uint32_t k = 0; k < run->n_out; k++) {
		const float *full = a->full.logits + (size_t)k * vocab, *evicted = run->logits + (size_t)k * vocab;
		struct mark *m = &a->mark[run->out_seq[k]][run->out_pos[k]];
		double lse = tensor_lse(full, vocab);

		m->nats = lse - (double)full[run->target[k]];
		m->kl = divergence(full, lse, evicted, vocab);
		m->same = tensor_best(full, vocab) == tensor_best(evicted, vocab);
	}
	for (uint32_t i = 0; i < run->n_seqs; i++) {
		uint32_t first = run->seq[i].fed - run->n[i];
		double share = run->n[i] ? mass(a, i) : 0.0;

		for (uint32_t pos = first; pos < run->seq[i].fed; pos++) {
			a->mark[i][pos].mass = share;
			a->mark[i][pos].step_at = first;
		}
	}
	return 0;
}

/* --- the whole ------------------------------------------------------------------------------------------------ */

static void print_mean(const char *name, double sum, uint64_t n)
{
	if (n)
		printf(",\"%s\":%.9g", name, sum / (double)n);
	else
		printf(",\"%s\":null", name);
}

void against_print(const struct against *a, const uint32_t *from)
{
	double kl = 0.0, kl_all = 0.0, mass_kept = 0.0, nats = 0.0, nats_all = 0.0;
	uint64_t n = 0, n_all = 0, n_mass = 0, same = 0;

	for (uint32_t i = 0; i < a->run->n_seqs; i++)
		for (uint32_t pos = 0; pos < a->run->seq[i].n_prompt; pos++) {
			const struct mark *m = &a->mark[i][pos];

			if (m->step_at >= from[i]) {
				mass_kept += m->mass;
				n_mass++;
			}
			if (pos + 1 == a->run->seq[i].n_prompt)
				continue;		/* nothing is predicted from the last token */
			kl_all += m->kl;
			nats_all += m->nats;
			n_all++;
			if (pos >= from[i]) {
				kl += m->kl;
				nats += m->nats;
				same += m->same != 0;
				n++;
			}
		}
	print_mean("kl", kl, n);
	print_mean("top1", (double)same, n);
	print_mean("mass_kept", mass_kept, n_mass);
	print_mean("kl_all", kl_all, n_all);
	print_mean("nll_full", nats_all, n_all);
	print_mean("nll_full_tail", nats, n);
}

int against_write_kept(const struct against *a, const char *path)
{
	const struct run *run = a->run;
	const uint32_t room = run->seq[0].n_prompt;
	FILE *file = fopen(path, "w");
	int err = file ? 0 : -errno;

	for (uint32_t lane = 0; !err && lane < a->n_lanes; lane++) {
		if (lane == 0)
			fprintf(file, "{\"tokens\":%u,\"layers\":%u,\"kv_heads\":%u,\"kept\":[", run->seq[0].fed,
				run->model->n_layers, run->model->n_kv_heads);
		for (uint32_t k = 0; k < a->n_kept[0][lane]; k++)
			fprintf(file, "%s%d", k ? "," : lane ? "],[" : "[", a->kept[0][(size_t)lane * room + k]);
		if (lane + 1 == a->n_lanes)
			fprintf(file, "]]}\n");
	}
	if (file && (ferror(file) | fclose(file)))
		err = -EIO;
	if (err)
		cli_error("%s: cannot write the kept positions: %s", path, strerror(-err));
	return err;
}

/* Sums what each slot receives over the whole text. */
static void add_future(void *arg, struct full *full)
{
	double *future = arg;

	for (size_t i = 0; i < (size_t)full->n_lanes * full->room[0]; i++)
		future[i] += (double)full->heat[0][i];
}

static int make_arrays(struct against *a)
{
	uint32_t n = a->run->n_seqs;

	a->mark = calloc(n, sizeof(*a->mark));
	a->kept = calloc(n, sizeof(*a->kept));
	a->n_kept = calloc(n, sizeof(*a->n_kept));
	if (!a->mark || !a->kept || !a->n_kept)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t room = a->run->seq[i].n_prompt;

		a->mark[i] = calloc(room, sizeof(**a->mark));
		a->kept[i] = malloc((size_t)a->n_lanes * room * sizeof(**a->kept));
		a->n_kept[i] = calloc(a->n_lanes, sizeof(**a->n_kept));
		if (!a->mark[i] || !a->kept[i] || !a->n_kept[i])
			return -ENOMEM;
	}
	if (!a->run->cli->belady)
		return 0;
	a->future = calloc((size_t)a->n_lanes * a->run->seq[0].n_prompt, sizeof(*a->future));
	a->worth = malloc(a->run->seq[0].n_prompt * sizeof(*a->worth));
	return a->future && a->worth ? 0 : -ENOMEM;
}

int against_open(struct run *run, uint32_t chunk, struct against **out)
{
	struct against *a = calloc(1, sizeof(*a));
	int err = a ? 0 : -ENOMEM;

	*out = a;
	if (!err) {
		a->run = run;
		a->n_lanes = run->model->n_layers * run->model->n_kv_heads;
		err = make_arrays(a);
	}
	if (err) {
		cli_error("not enough memory to compare with the full cache");
		return err;
	}
	err = full_open(&a->full, run, chunk, run->cli->full_run);
	if (!err && a->future)
		err = full_scan(&a->full, add_future, a->future);
	run->look = look;
	run->look_arg = a;
	return err;
}

void against_close(struct against *a)
{
	if (!a)
		return;
	for (uint32_t i = 0; i < a->run->n_seqs; i++) {
		free(a->mark ? a->mark[i] : NULL);
		free(a->kept ? a->kept[i] : NULL);
		free(a->n_kept ? a->n_kept[i] : NULL);
	}
	if (a->full.run)
		full_close(&a->full);
	free(a->mark);
	free(a->kept);
	free(a->n_kept);
	free(a->future);
	free(a->worth);
	free(a);
}
