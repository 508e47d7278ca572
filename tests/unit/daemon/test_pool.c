/* daemon/pool.c: pages and runs never overlap, belong to whom they should, and come back; against a byte map as oracle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/pool.h"

#define SLAB (256u << 10)
#define SLABS 16u
#define UNITS (SLABS * SLAB / GPU_UNIT)

static uint32_t seed;

static uint32_t draw(uint32_t below)
{
	seed = seed * 1664525u + 1013904223u;
	return (seed >> 8) % below;
}

static void open_pool(struct pool *pool)
{
	struct conf_pool conf = { .name = "test", .device = "host", .size_bytes = SLABS * SLAB, .slab_bytes = SLAB };
	char why[256] = "";

	assert_int_equal(pool_open(pool, &conf, why, sizeof(why)), 0);
	assert_int_equal(pool->n_slabs, SLABS);
	assert_int_equal(pool->n_free, SLABS);
}

struct piece {
	uint32_t id, bytes, owner;
	bool run;
};

/* who[u]: 1 + piece that holds unit u, or 0 */
static void mark(uint16_t *who, const struct piece *p, uint16_t value)
{
	for (uint32_t u = 0; u < p->bytes / GPU_UNIT; u++) {
		assert_true(p->id + u < UNITS);
		assert_int_equal(who[p->id + u], value ? 0 : who[p->id + u]);	/* nobody is there yet */
		who[p->id + u] = value;
	}
}

static void pages_and_runs_never_overlap(void **state)
{
	static const uint32_t sizes[] = { 1024, 2176, 4096, 5120, 8192, 32768, 65536 };
	static uint16_t who[UNITS];
	static struct piece piece[4096];
	struct pool_owner owner[3];
	struct pool pool;
	uint32_t n = 0, none = 0;

	(void)state;
	seed = 7;
	open_pool(&pool);
	for (unsigned i = 0; i < 3; i++)
		pool_owner_init(&pool, &owner[i], i < 2);
	for (unsigned round = 0; round < 60000; round++) {
		bool full_phase = round / 8000 % 2;

		if (n < 4000 && draw(10) < (full_phase ? 7u : 4u)) {
			struct piece *p = &piece[n];

			p->owner = draw(3);
			p->run = draw(8) == 0;
			p->bytes = p->run ? (1 + draw(3)) * POOL_EXTENT_BYTES : sizes[draw(7)];
			p->id = p->run ? pool_run(&pool, &owner[p->owner], p->bytes - draw(1000)) :
					 pool_page(&pool, &owner[p->owner], p->bytes);
			if (p->id == POOL_NO_ID) {
				none++;
				continue;
			}
			mark(who, p, (uint16_t)(n + 1));
			uint32_t slab = pool_slab_of(&pool, p->id);

			assert_int_equal(pool.slab[slab].owner, owner[p->owner].serial);
			assert_int_equal(pool_slab_of(&pool, p->id + p->bytes / GPU_UNIT - 1), slab);
			n++;
		} else if (n) {
			uint32_t i = draw(n);

			(piece[i].run ? pool_run_free : pool_page_free)(&pool, &owner[piece[i].owner], piece[i].id);
			mark(who, &piece[i], 0);
			piece[i] = piece[--n];
			for (uint32_t u = 0; i < n && u < piece[i].bytes / GPU_UNIT; u++)
				who[piece[i].id + u] = (uint16_t)(i + 1);
		}
		if (round % 64 == 0)
			pool_trim(&pool, &owner[draw(3)], NULL, NULL);
	}
	assert_true(none > 0);	/* the pool did run full */
	while (n--)
		(piece[n].run ? pool_run_free : pool_page_free)(&pool, &owner[piece[n].owner], piece[n].id);
	assert_int_equal(pool.used_bytes, 0);
	for (unsigned i = 0; i < 3; i++) {
		pool_trim(&pool, &owner[i], NULL, NULL);
		assert_int_equal(owner[i].n_slabs, 0);
		assert_int_equal(owner[i].used_bytes, 0);
	}
	assert_int_equal(pool.n_free, SLABS);
	pool_close(&pool);
}

static void an_owner_that_is_gone_leaves_nothing(void **state)
{
	struct pool_owner a, b;
	struct pool pool;
	uint32_t kept;

	(void)state;
	open_pool(&pool);
	pool_owner_init(&pool, &a, true);
	pool_owner_init(&pool, &b, true);
	kept = pool_page(&pool, &b, 4096);
	for (unsigned i = 0; i < 300; i++)
		assert_int_not_equal(pool_page(&pool, &a, 4096), POOL_NO_ID);
	assert_int_not_equal(pool_run(&pool, &a, 100000), POOL_NO_ID);
	pool_owner_fini(&pool, &a);
	assert_int_equal(pool.used_bytes, 4096);
	assert_int_equal(pool.n_free, SLABS - 1);
	pool_page_free(&pool, &b, kept);
	pool_trim(&pool, &b, NULL, NULL);
	assert_int_equal(pool.n_free, SLABS);
	pool_close(&pool);
}

static void a_new_owner_never_sees_the_old_ones_bytes(void **state)
{
	struct pool_owner a, b;
	struct pool pool;
	uint32_t id;
	char *at;

	(void)state;
	open_pool(&pool);
	for (unsigned round = 0; round < 3; round++) {
		pool_owner_init(&pool, &a, true);
		while ((id = pool_page(&pool, &a, 65536)) != POOL_NO_ID)
			memset(pool_at(&pool, id), 0xa5, 65536);
		pool_owner_fini(&pool, &a);
		pool_owner_init(&pool, &b, true);
		while ((id = pool_page(&pool, &b, 65536)) != POOL_NO_ID) {
			at = pool_at(&pool, id);
			for (unsigned i = 0; i < 65536; i += 997)
				assert_int_equal(at[i], 0);
		}
		pool_owner_fini(&pool, &b);
	}
	pool_close(&pool);
}

static void count_dropped(void *arg, uint32_t slab)
{
	(void)slab;
	++*(unsigned *)arg;
}

/* How many slabs drain, and the last of them. */
static uint32_t draining(const struct pool *pool, uint32_t *slab)
{
	uint32_t n = 0;

	for (uint32_t s = 0; s < pool->n_slabs; s++)
		if (pool->slab[s].draining) {
			*slab = s;
			n++;
		}
	return n;
}

static void a_draining_slab_takes_nothing_new_and_empties(void **state)
{
	static uint32_t ids[1024];
	struct pool_owner a;
	struct pool pool;
	uint32_t n = 0, slab, kept = 0;
	unsigned dropped = 0;

	(void)state;
	seed = 3;
	open_pool(&pool);
	pool_owner_init(&pool, &a, true);
	assert_false(pool_drain(&pool, &a));			/* has nothing */
	while (a.n_slabs < 4)
		ids[n++] = pool_page(&pool, &a, 4096);
	for (uint32_t i = 0; i < n; i++)			/* free most of it, in whole extents here and there */
		if (i / 16 % 3)
			pool_page_free(&pool, &a, ids[i]);
		else
			ids[kept++] = ids[i];
	n = kept;
	for (uint32_t i = 0; i < pool.n_slabs; i++)
		pool.slab[i].announced = pool.slab[i].state == POOL_OWNED;
	assert_true(pool_drain(&pool, &a));
	assert_int_equal(draining(&pool, &slab), 1);
	assert_true(pool_drain(&pool, &a));			/* of four slabs one at a time */
	assert_int_equal(draining(&pool, &n), 1);
	assert_int_equal(n, slab);
	n = kept;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t to;

		if (pool_slab_of(&pool, ids[i]) != slab)
			continue;
		to = pool_page(&pool, &a, 4096);
		assert_int_not_equal(to, POOL_NO_ID);
		assert_int_not_equal(pool_slab_of(&pool, to), slab);
		pool_page_free(&pool, &a, ids[i]);
		ids[i] = to;
	}
	assert_int_equal(pool.slab[slab].used_extents, 0);
	pool_trim(&pool, &a, count_dropped, &dropped);
	assert_true(dropped >= 1);
	assert_int_equal(pool.slab[slab].state, POOL_FREE);
	for (uint32_t i = 0; i < n; i++)
		pool_page_free(&pool, &a, ids[i]);
	pool_owner_fini(&pool, &a);
	assert_int_equal(pool.used_bytes, 0);
	pool_close(&pool);
}

/* Pages, and now and then a block. */
static uint32_t size(uint32_t i)
{
	return i % 33 ? 4096 : 2048;
}

/* Of many slabs with holes everywhere a quarter drains at a time; pages of any size find a place, and in the end the pages lie close. */
static void holes_in_every_extent_become_slabs(void **state)
{
	static uint32_t ids[8192];
	struct pool_owner a;
	struct pool pool;
	uint32_t n = 0, before, last;

	(void)state;
	open_pool(&pool);
	pool_owner_init(&pool, &a, true);
	for (; pool.n_free; n++)
		ids[n] = pool_page(&pool, &a, size(n));
	for (uint32_t i = 0; i < n; i++)
		if (i / 16 % 2 || i % 3) {
			pool_page_free(&pool, &a, ids[i]);
			ids[i] = POOL_NO_ID;
		}
	before = a.n_slabs;
	for (unsigned turn = 0; turn < 100 && pool_drain(&pool, &a); turn++) {
		uint32_t now = draining(&pool, &last);

		assert_true(now >= 1 && now <= (a.n_slabs < 8 ? 1 : a.n_slabs / 4));
		for (uint32_t i = 0; i < n; i++) {
			uint32_t to;

			if (ids[i] == POOL_NO_ID || !pool_draining(&pool, ids[i]))
				continue;
			to = pool_page(&pool, &a, size(i));
			assert_int_not_equal(to, POOL_NO_ID);
			assert_false(pool_draining(&pool, to));
			pool_page_free(&pool, &a, ids[i]);
			ids[i] = to;
		}
		(void)pool_trim(&pool, &a, count_dropped, &now);
		assert_int_equal(draining(&pool, &last), 0);
	}
	assert_true(a.n_slabs <= before / 2);
	assert_true((uint64_t)a.n_slabs * pool.slab_bytes < a.used_bytes + a.used_bytes / 3 + 2 * pool.slab_bytes);
	for (uint32_t i = 0; i < n; i++)
		if (ids[i] != POOL_NO_ID)
			pool_page_free(&pool, &a, ids[i]);
	assert_int_equal(pool.used_bytes, 0);
	pool_owner_fini(&pool, &a);
	pool_close(&pool);
}

static void undrain_gives_the_slab_back_to_use(void **state)
{
	struct pool_owner a;
	struct pool pool;
	uint32_t n = 0, first;

	(void)state;
	open_pool(&pool);
	pool_owner_init(&pool, &a, true);
	first = pool_page(&pool, &a, 65536);
	while (a.n_slabs < 2)
		pool_page(&pool, &a, 65536);
	pool_page_free(&pool, &a, first);
	assert_true(pool_drain(&pool, &a));
	pool_undrain(&pool, &a);
	assert_int_equal(draining(&pool, &n), 0);
	n = 0;
	while (a.n_slabs <= 2 && pool_page(&pool, &a, 65536) != POOL_NO_ID)
		n++;
	assert_int_equal(n, 1 + 3 + 1);	/* the freed one, what is left of the second slab, and one in a third */
	pool_owner_fini(&pool, &a);
	pool_close(&pool);
}

static void impossible_sizes_are_refused_with_a_sentence(void **state)
{
	static const struct { uint64_t size, slab; } bad[] = {
		{ 1 << 20, 3 << 16 }, { 1 << 20, 1 << 20 }, { 1 << 20, 1 << 12 }, { 0, 0 }, { 1ull << 50, 0 },
	};
	struct pool pool;
	char why[256];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct conf_pool conf = { .name = "p", .device = "host", .size_bytes = bad[i].size, .slab_bytes = bad[i].slab };

		why[0] = 0;
		assert_true(pool_open(&pool, &conf, why, sizeof(why)) < 0);
		assert_non_null(strstr(why, "[pool p]"));
	}
	struct conf_pool conf = { .name = "p", .device = "floppy:0", .size_bytes = 1 << 24 };

	assert_true(pool_open(&pool, &conf, why, sizeof(why)) < 0);
	assert_non_null(strstr(why, "floppy:0"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pages_and_runs_never_overlap),
		cmocka_unit_test(an_owner_that_is_gone_leaves_nothing),
		cmocka_unit_test(a_new_owner_never_sees_the_old_ones_bytes),
		cmocka_unit_test(a_draining_slab_takes_nothing_new_and_empties),
		cmocka_unit_test(holes_in_every_extent_become_slabs),
		cmocka_unit_test(undrain_gives_the_slab_back_to_use),
		cmocka_unit_test(impossible_sizes_are_refused_with_a_sentence),
	};

	return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
