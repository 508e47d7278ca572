/* Part of bench_gpu.cu: the daemon's operations at a window's end. */

/* Blocks of positions and heat lie from the pool's beginning on: random heat into all of them. */
static __global__ void fill_heat(uint32_t *block, size_t n_blocks)
{
	for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n_blocks * GPU_BLOCK_SLOTS; i += (size_t)gridDim.x * blockDim.x) {
		uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull;

		x ^= x >> 31;
		block[i / GPU_BLOCK_SLOTS * 2 * GPU_BLOCK_SLOTS + GPU_BLOCK_SLOTS + i % GPU_BLOCK_SLOTS] = 0x3c000000u | ((uint32_t)x & 0x3ffffffu);
	}
}

/* All lanes of `live` slots, keeping `keep` of them; settled. */
static void settle_all(struct bench *b, std::vector<struct gpu_plan> &plan, std::vector<struct gpu_turn> &turn, uint32_t keep)
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
		x.rule.policy = EVICT_h2o;
		x.rule.sinks = 4;
		x.n_credit = 1;
		x.slot_type = sh->type;
		x.head_dim = sh->d;
		turn.push_back(x);
		for (uint32_t l = 0; l < b->head.n_lanes; l++)
			b->lane[i * b->head.n_lanes + l] = { 0, sh->live };
		must(gpu_write(dev, stream, (char *)b->table[i] + gpu_table_lanes(), &b->lane[i * b->head.n_lanes],
			       b->head.n_lanes * sizeof(struct gpu_lane)), "lanes");
	}
	must(gpu_select(dev, stream, map, turn.data(), sh->sessions, GPU_SETTLE, NULL), "settle");
	fill_heat<<<1024, 256, 0, (cudaStream_t)stream>>>((uint32_t *)slab[0].base, (size_t)sh->sessions * b->head.n_lanes * b->head.max_blocks);
	must(gpu_sync(dev, stream), "sync");
}

static void bench_select(void)
{
	static const struct shape sh = { "", 64, 8, 4, 128, 2048, 32, GPU_BF16, 1, 0, 0, 0 };
	const double slots = 64.0 * 256 * 2048;
	std::vector<struct gpu_plan> plan;
	std::vector<struct gpu_turn> turn;
	std::vector<double> t;
	struct bench b = {};

	b.sh = &sh;
	pool_at = 0;
	make_tables(&b, false);
	settle_all(&b, plan, turn, sh.live);
	for (struct gpu_turn &x : turn) {
		x.pos = (int32_t)sh.live;
		x.appended = 0;
	}
	for (int r = 0; r < REPLAYS; r++)
		t.push_back(time_events([&] {
			must(gpu_select(dev, stream, map, turn.data(), sh.sessions, GPU_SETTLE | GPU_FOLD | GPU_NEXT, NULL), "select");
		}));
	std::sort(t.begin(), t.end());
	report_time("select (settle, fold, next), 64 x 256 lanes of 2048, h2o", t[REPLAYS / 2], slots * 20 / read_rate,
		    1.3e6 * slots * 20 / read_rate);
}

static void bench_compact(void)
{
	static const struct shape sh = { "", 16, 8, 4, 128, 2048, 32, GPU_BF16, 1, 0, 0, 0 };
	const double moved = 16.0 * 256 * 1024 * 512;	/* what is kept is the newer half: all of it moves */
	std::vector<struct gpu_plan> plan;
	std::vector<struct gpu_turn> turn;
	std::vector<double> t;
	struct bench b = {};

	b.sh = &sh;
	pool_at = 0;
	make_tables(&b, true);
	for (int r = 0; r < 5; r++) {
		settle_all(&b, plan, turn, sh.live / 2);
		must(gpu_select(dev, stream, map, turn.data(), sh.sessions, GPU_REMOVE, NULL), "remove");
		t.push_back(time_events([&] { must(gpu_select(dev, stream, map, turn.data(), sh.sessions, GPU_COMPACT, NULL), "compact"); }));
	}
	std::sort(t.begin(), t.end());
	report_rate("compact 2048 to 1024, d128 bf16, 4096 lanes", t[2], 2 * moved, copy_rate, 0.8);
}
