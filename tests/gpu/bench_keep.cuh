/* Part of bench_gpu.cu: steps that keep their queries, and the heat that is taken from them later (gpu_keep()). */

/* Queries that libebb would keep (libclient/keep.c). */
static uint32_t keep_depth(const struct shape *sh)
{
	uint32_t most = std::min(32u, GPU_KEPT_PAIRS / sh->group), depth = 8;

	while (depth * 2 <= most && depth * 2 <= sh->live / (16 * sh->group))
		depth *= 2;
	return depth;
}

/* What a layer of a step costs that keeps its queries, and the heat of a window of them, for all layers: of all sessions, and of `few` of them. */
struct kept_times {
	uint32_t depth, few;
	double step, all, some;		/* step 0: this shape keeps none */
};

static double time_heat_kept(struct bench *b, const std::vector<struct gpu_kept> &kept, uint32_t n)
{
	std::vector<double> t;

	for (int i = 0; i < REPLAYS; i++)
		t.push_back(time_events([&] { must(gpu_heat_kept(b->step, stream, kept.data(), n), "heat_kept"); }, 200));
	std::sort(t.begin(), t.end());
	return t[t.size() / 2];
}

static struct kept_times time_kept(struct bench *b)
{
	const struct shape *sh = b->sh;
	struct kept_times t = { keep_depth(sh), 0, 0, 0, 0 };
	std::vector<struct gpu_kept> kept;

	t.few = (sh->sessions + t.depth - 1) / t.depth;
	if (sh->n > 1 || gpu_keep(b->step, stream, &b->gs, sh->layers, sh->sessions, t.depth))
		return t;
	for (uint32_t place = t.depth; place-- > 0;) {
		for (uint32_t i = 0; i < sh->sessions; i++)
			b->seq[i].kept = gpu_kept_at(i, place);
		if (!place) {
			t.step = time_attend(b, 1);
			continue;
		}
		b->head.observe = 1;
		write_headers(b);
		must(gpu_step_set(b->step, stream, &b->gs, map, b->seq.data(), sh->sessions, b->longest), "step_set");
		for (uint32_t l = 0; l < sh->layers; l++)
			must(gpu_attend(b->step, stream, l, &b->q, &b->out, 0.02f, NULL), "attend");
	}
	for (uint32_t i = 0; i < sh->sessions; i++)
		kept.push_back({ b->table[i], i, t.depth, 1, (int32_t)sh->live, 1 });
	t.all = time_heat_kept(b, kept, sh->sessions);
	t.some = time_heat_kept(b, kept, t.few);
	for (struct gpu_seq &s : b->seq)
		s.kept = 0;
	must(gpu_keep(b->step, stream, &b->gs, sh->layers, 0, 0), "keep");
	return t;
}

/* A layer of a step with heat later: sessions whose windows end together, as they come (a part of them each step). */
static double together(const struct bench *b, const struct kept_times *t) { return t->step + t->all / b->sh->layers / t->depth; }
static double as_they_come(const struct bench *b, const struct kept_times *t)
{
	return t->step + t->some / b->sh->layers * b->sh->sessions / t->depth / t->few;
}

static void print_kept(const struct bench *b, const struct kept_times *t)
{
	printf("    keeping queries %.2f us; heat of %u queries a session %.2f us a layer; as they come %.2f us a step\n", t->step * 1e6, t->depth,
	       t->all / b->sh->layers * 1e6, as_they_come(b, t) * 1e6);
}
