/* Part of bench_gpu.cu: the daemon's operations at a window's end. */

#define HOLD_US 2000u		/* longer than the host's part of any call here */

/* Blocks of positions and heat lie from the pool's beginning on: random heat into all of them. */
static __global__ void fill_heat(uint32_t *block, size_t n_blocks, uint32_t n_heat)
{
	const uint32_t words = n_heat * GPU_BLOCK_SLOTS;	/* of a block, behind its positions */

	for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n_blocks * words; i += (size_t)gridDim.x * blockDim.x) {
		uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull;

		x ^= x >> 31;
		block[i / words * (words + GPU_BLOCK_SLOTS) + GPU_BLOCK_SLOTS + i % words] = 0x3c000000u | ((uint32_t)x & 0x3ffffffu);
	}
}

static void heat_up(const struct bench *b)
{
	if (b->head.n_heat)
		fill_heat<<<1024, 256, 0, (cudaStream_t)stream>>>((uint32_t *)slab[0].base,
								  (size_t)b->sh->sessions * b->head.n_lanes * b->head.max_blocks,
								  b->heats ? b->heats : 1);
}

static struct evict_rule rule_of(const char *policy)
{
	struct evict_rule rule = {};

	must(evict_parse(policy, &rule, NULL, 0), policy);
	rule.sinks = 4;
	rule.seed = 1;
	rule.group = 4;
	return rule;
}

static void write_lanes(struct bench *b, struct gpu_lane head)
{
	b->lane.assign(b->lane.size(), head);
	for (uint32_t i = 0; i < b->sh->sessions; i++)
		must(gpu_write(dev, stream, (char *)b->table[i] + gpu_table_lanes(), b->lane.data(), b->head.n_lanes * sizeof(head)), "lanes");
}

/* All lanes of `live` slots, keeping `keep` of them; settled. */
static void settle_all(struct bench *b, const struct evict_rule *rule, std::vector<struct gpu_plan> &plan,
		       std::vector<struct gpu_turn> &turn, uint32_t keep)
{
	const struct shape *sh = b->sh;

	plan.assign(b->head.n_lanes, { keep, 0, 32, keep / 2 });
	turn.clear();
	for (uint32_t i = 0; i < sh->sessions; i++) {
		struct gpu_turn x = {};

		x.priv = b->table[i];
		x.plan = plan.data();
		x.n_lanes = b->head.n_lanes;
		x.appended = sh->live;
		x.rule = *rule;
		x.n_credit = evict_n_arrays(rule->policy);
		x.slot_type = sh->type;
		x.head_dim = sh->d;
		x.live_max = sh->live;
		turn.push_back(x);
	}
	write_lanes(b, { 0, sh->live });
	must(gpu_select(dev, stream, map, turn.data(), sh->sessions, GPU_SETTLE, NULL), "settle");
	write_lanes(b, { sh->live, 0 });
	heat_up(b);
	must(gpu_sync(dev, stream), "sync");
	for (struct gpu_turn &x : turn) {
		x.pos = (int32_t)sh->live;
		x.appended = 0;
	}
}

/* Median of `reps` turns of `tokens` tokens each. They overwrite the slots that the turn before named. */
static double time_turns(const struct bench *b, std::vector<struct gpu_turn> &turn, uint32_t tokens, unsigned hold_us, int reps)
{
	std::vector<double> t;

	for (int r = 0; r < reps; r++) {
		heat_up(b);
		must(gpu_sync(dev, stream), "sync");
		for (struct gpu_turn &x : turn) {
			x.pos += (int32_t)x.appended;
			x.appended = r ? tokens : 0;	/* none are named before the first */
		}
		t.push_back(time_events([&] {
			must(gpu_select(dev, stream, map, turn.data(), (unsigned)turn.size(), GPU_SETTLE | GPU_FOLD | GPU_NEXT, NULL), "select");
		}, hold_us));
	}
	std::sort(t.begin(), t.end());
	return t[t.size() / 2];
}

/* With statistics, for the tide and for splits: what crosses the bus is no part of the floor. */
static void bench_select_stats(const struct bench *b, std::vector<struct gpu_turn> &turn, double floor)
{
	static const struct { uint32_t stats; const char *name; } what[] = {
		{ EVICT_STATS_HEAT, "the histogram of heat" },
		{ EVICT_STATS_RANK, "the histogram of ranks" },
		{ EVICT_STATS_HEAT | EVICT_STATS_SUMS, "the histogram and the sums of heat" },
	};

	const size_t lanes = (size_t)b->sh->sessions * b->head.n_lanes;
	struct evict_lane_stats *out;
	void *at;

	must(gpu_host_alloc(dev, lanes * sizeof(*out), &at), "statistics");
	out = (struct evict_lane_stats *)at;
	for (size_t i = 0; i < turn.size(); i++) {
		turn[i].stats_heat[1] = GPU_MAX_HEAT;
		turn[i].stats_near = 1024;
		turn[i].lane_stats = out + i * b->head.n_lanes;
	}
	for (const auto &w : what) {
		char name[128];

		for (struct gpu_turn &x : turn)
			x.stats = w.stats;
		snprintf(name, sizeof(name), "select 64 x 256 lanes of 2048, h2o, the device's time, with %s", w.name);
		report_time(name, time_turns(b, turn, 32, HOLD_US, REPLAYS), floor, 1.3e6 * floor);
	}
	for (struct gpu_turn &x : turn)
		x.stats = 0;
	gpu_host_free(dev, at);
}

static void bench_select(void)
{
	static const struct shape sh = { "", 64, 8, 4, 128, 2048, 32, GPU_BF16, 1, 0, 0, 0 };
	const double floor = 64.0 * 256 * 2048 * 20 / read_rate;
	const struct evict_rule rule = rule_of("h2o");
	std::vector<struct gpu_plan> plan;
	std::vector<struct gpu_turn> turn;
	struct bench b = {};
	uint64_t t;

	b.sh = &sh;
	pool_at = 0;
	make_tables(&b, false);
	settle_all(&b, &rule, plan, turn, sh.live);
	report_time("select (settle, fold, next), 64 x 256 lanes of 2048, h2o", time_turns(&b, turn, 0, 0, REPLAYS), floor, 1.3e6 * floor);
	report_time("select 64 x 256 lanes of 2048, h2o, the device's time", time_turns(&b, turn, 0, HOLD_US, REPLAYS), floor, 1.3e6 * floor);
	report_time("select 64 x 256 lanes of 2048, h2o, the device's time, 32 tokens to settle",
		    time_turns(&b, turn, 32, HOLD_US, REPLAYS), floor, 1.3e6 * floor);
	plan.back().recent++;
	report_time("select 64 x 256 lanes of 2048, h2o, the device's time, plans that differ",
		    time_turns(&b, turn, 32, HOLD_US, REPLAYS), floor, 1.3e6 * floor);
	plan.back().recent--;
	t = bench_ns();
	must(gpu_select(dev, stream, map, turn.data(), sh.sessions, GPU_SETTLE | GPU_FOLD | GPU_NEXT, NULL), "select");
	report_time("select 64 x 256 lanes, to enqueue it", (double)(bench_ns() - t) * 1e-9, NAN, 0);
	bench_select_stats(&b, turn, floor);
}

/*
 * Bytes a slot that nobody can avoid: position, heat, credit, traits; the rows that traits are made of: of the whole lane, or of its 32 new
 * tokens.
 */
static double floor_of(const struct evict_rule *rule, uint32_t d, uint32_t live)
{
	double bytes = 4.0 + 8.0 * evict_n_heat(rule->policy) + 8.0 * evict_n_credit(rule->policy) + 4.0 * evict_n_trait(rule->policy);

	for (uint32_t i = 0; i < evict_n_trait(rule->policy); i++)
		if (evict_trait_once(rule->trait[i]))
			bytes += 2.0 * d * 32 / live;
		else
			bytes += 4.0 + 2.0 * d * (rule->trait[i] == EVICT_KEY_LAG ? 2 : 1);
	return bytes;
}

static bool compares_all_rows(const struct evict_rule *rule)
{
	return evict_n_trait(rule->policy) && rule->trait[0] == EVICT_KEY_REDUNDANCY;
}

/* A turn of every policy beside its byte floor. Sessions whose rows are compared each with each: one, a single time. */
static void bench_policies(void)
{
	static const struct shape sh = { "", 16, 8, 4, 128, 2048, 32, GPU_BF16, 1, 0, 0, 0 };
	std::vector<struct gpu_plan> plan;
	std::vector<struct gpu_turn> turn;
	struct bench b = {};
	char name[128];

	b.sh = &sh;
	b.heats = EVICT_MAX_HEAT;
	b.arrays = EVICT_MAX_ARRAYS;
	pool_at = 0;
	make_tables(&b, true);
	for (uint32_t p = 0; p < EVICT_N_POLICIES; p++) {
		const struct evict_rule rule = rule_of(evict_policies[p].name);
		const bool slow = compares_all_rows(&rule);
		const double bytes = floor_of(&rule, sh.d, sh.live);
		double floor;

		b.head.n_heat = evict_n_heat(p);
		memcpy(b.head.heat, rule.heat, sizeof(b.head.heat));
		write_headers(&b);
		settle_all(&b, &rule, plan, turn, sh.live);
		turn.resize(slow ? 1 : sh.sessions);
		snprintf(name, sizeof(name), "select %s, %zu x 256 lanes of 2048, %.0f bytes a slot%s", evict_policies[p].name, turn.size(), bytes,
			 evict_is_staged(&rule) ? ", staged" : "");
		floor = (double)turn.size() * b.head.n_lanes * sh.live * bytes / read_rate;
		report_time(name, time_turns(&b, turn, slow ? 0 : 32, HOLD_US, slow ? 1 : 5), floor, 1.3e6 * floor);
	}
}

static void bench_compact(void)
{
	static const struct shape sh = { "", 16, 8, 4, 128, 2048, 32, GPU_BF16, 1, 0, 0, 0 };
	const double moved = 16.0 * 256 * 1024 * 512;	/* what is kept is the newer half: all of it moves */
	const struct evict_rule rule = rule_of("h2o");
	std::vector<struct gpu_plan> plan;
	std::vector<struct gpu_turn> turn;
	std::vector<double> t;
	struct bench b = {};

	b.sh = &sh;
	pool_at = 0;
	make_tables(&b, true);
	for (int r = 0; r < 5; r++) {
		settle_all(&b, &rule, plan, turn, sh.live / 2);
		must(gpu_select(dev, stream, map, turn.data(), sh.sessions, GPU_REMOVE, NULL), "remove");
		t.push_back(time_events([&] { must(gpu_select(dev, stream, map, turn.data(), sh.sessions, GPU_COMPACT, NULL), "compact"); }, 0));
	}
	std::sort(t.begin(), t.end());
	report_rate("compact 2048 to 1024, d128 bf16, 4096 lanes", t[2], 2 * moved, copy_rate, 0.8);
}
