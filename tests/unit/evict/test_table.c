/* docs/policies.md is what the tables and the policies' own files say. EBB_WRITE=1 build/tests/unit/evict/test_table rewrites it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "evict/evict.h"
#include "evict/split.h"

static const char head[] =
	"# Policies\n\n"
	"Made from the tables in `evict/` and the first comment of each `evict/policy_NAME.h` (`EBB_WRITE=1 build/tests/unit/evict/test_table`); `ebbctl policies`\n"
	"prints the same tables. Written as `policy = NAME` or `policy = NAME:key=value,key=value`, likewise `merge` and `split`, in ebbd.ini or by a client.\n\n"
	"*Protected* under every policy: the first `sinks` tokens, the newest `recent` slots, the prompt where it is pinned (`pin_prompt`), and what the client\n"
	"pins (`ebb_session_pin()`). A policy ranks the\n"
	"rest once a window; ties go to the lower position. Scores are per lane (layer and KV head), summed over the group's query heads. Two remarks hold for all\n"
	"methods that were published for the prompt or for every token: here they run at every window's end, over what is live then; and\n"
	"what they call a budget split is a `split` here, chosen apart.\n\n"
	"## Ranks\n\n";

static const char tail[] =
	"\n## Said in other words, or not expressed\n\n"
	"- **Half recent, as in H2O's paper**: the key `recent` (50% by default), for every policy.\n"
	"- **PyramidKV, Ada-KV, HeadKV, DuoAttention, DynamicKV, CAKE, SimLayerKV, VL-Cache's budgets**: splits; their ranks are `snapkv`, `h2o` or `vl-cache`.\n"
	"- **Expected Attention with query statistics**: needs queries before RoPE; the daemon sees neither queries nor hidden states, and attend sees rotated ones. `expected`\n"
	"  estimates the same log-normal mean per slot from the attention itself.\n"
	"- **Beside kvpress** (`make check-peers`, on SmolLM2's Q, K and V): `streaming`, `l2norm`, `keydiff`, `lagkv`, `h2o:age=1` (its ObservedAttention), `tova`, `snapkv`\n"
	"  and the ranks of `cam` and `morphkv:sum=1` keep the same slots. Two differ by definition: its TOVA takes the mean over all heads of a layer, ours over the group;\n"
	"  its SnapKV pools without the observation window, ours over all live slots, which lifts the kernel / 2 slots before the window.\n"
	"- **R-KV, G-KV and MorphKV's reduction over a group** (largest logit, largest probability, summed logits): attend hands out sums of probabilities over the group;\n"
	"  these three rank by that.\n"
	"- **KVzip, KVCompose, RestoreKV**: a second pass of the model over its context. Not a cache's business.\n"
	"- **DMS, KVzap, FastKVzip, Q-Filter, KVpop, LU-KV**: need trained parts that would have to come with the model.\n"
	"- **ThinK**: prunes channels, not slots; pages have rows of one length.\n"
	"- **Quest, RocketKV's second stage, MInference**: skip slots in attention without freeing them. Selection, not eviction.\n"
	"- **Leverage scores, Compactor, non-causal attention (2507.08143)**: need keys before RoPE, or attention that the model does not compute.\n"
	"- **MiniCache**: merges the caches of neighbouring layers; lanes here are independent.\n"
	"- **Modalities** (`look-m`, `vl-cache`, `csp`): the client says what its tokens are (`ebb_session_tag()`, ranges of positions, before they are appended). Without\n"
	"  tags everything is text: then `look-m` is `h2o` with pivot merges, `vl-cache` `h2o`, and `csp` ranks by recent attention.\n"
	"- **CSP's two sums of a slot** (from queries of its own modality, and from others): attend adds one sum over all queries. The sides are told apart by the newest token's\n"
	"  tag, which is the same wherever the recent queries are of one modality: at decode, and at the end of a prompt that ends in text.\n"
	"- **FastV**: append the prompt, then `ebb_session_drop()` the image tokens that it gives up from layer 2 on: one call, and their memory is back. In the step that brings\n"
	"  the prompt the later layers still hold all its tokens, since a step appends to every layer; an engine that leaves them out of that step's computation does its\n"
	"  attention itself (`ebb_append()`, `ebb_observe()`).\n"
	"- **VisionZip, PruMerge+**: choose and merge image tokens in the vision tower. The client appends what they leave; there is nothing to drop. Their contextual and merged tokens\n"
	"  are tokens like any others, and can be pinned.\n"
	"- **SparseVLM**: gives up more tokens with every stage of layers: one call of `ebb_session_mark()` with a drop for each stage. Its recycled tokens (merged from dropped ones\n"
	"  between two layers) cannot be expressed: they would exist from some layer on, and a token is appended to all layers.\n";

struct out {
	char *text;
	size_t n, room;
};

static void __attribute__((format(printf, 2, 3))) put(struct out *o, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(o->text + o->n, o->room - o->n, format, args);
	va_end(args);
	assert_true(n >= 0 && o->n + (size_t)n < o->room);
	o->n += (size_t)n;
}

static char *read_file(const char *name)
{
	const char *source = getenv("EBB_SOURCE");
	static char path[512], text[65536];
	FILE *f;
	size_t n;

	snprintf(path, sizeof(path), "%s/%s", source ? source : ".", name);
	f = fopen(path, "r");
	if (!f)
		return NULL;
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	fclose(f);
	return text;
}

/* The first comment of the policy's file, as a paragraph. */
static void put_comment(struct out *o, const char *name)
{
	char path[128], *text, *end;

	snprintf(path, sizeof(path), "evict/policy_%s.h", name);
	for (char *p = path; *p; p++)
		*p = *p == '-' ? '_' : *p;
	text = read_file(path);
	if (!text)
		fail_msg("%s is missing", path);
	end = strstr(text, "*/");
	assert_true(strncmp(text, "/*\n", 3) == 0 && end);
	for (char *line = text + 3; line < end; line = strchr(line, '\n') + 1) {
		const size_t n = strcspn(line, "\n");

		if (line + 3 < end && n > 3)
			put(o, "%.*s\n", (int)n - 3, line + 3);
	}
}

static void put_params(struct out *o, const struct evict_param *param, uint32_t n)
{
	static const char *const types[] = { "number", "whole number", "yes or no" };

	if (!n)
		return;
	put(o, "\n| parameter | default | range | type | meaning |\n|---|---|---|---|---|\n");
	for (uint32_t i = 0; i < n; i++) {
		const struct evict_param *p = &param[i];

		if (p->type == EVICT_FLAG)
			put(o, "| `%s` | %s | | %s | %s |\n", p->name, p->def != 0.0f ? "yes" : "no", types[p->type], p->text);
		else
			put(o, "| `%s` | %g | %g to %g%s%s | %s | %s |\n", p->name, (double)p->def, (double)p->min, (double)p->max,
			    p->unit ? " " : "", p->unit ? p->unit : "", types[p->type], p->text);
	}
}

static void put_rank(struct out *o, uint32_t i)
{
	static const char *const heat[] = { "sum", "maximum", "sum of squares", "last query" };
	const struct evict_policy_info *p = &evict_policies[i];
	uint32_t n = 0;

	put(o, "### %s\n\n**%s.** *%s*\n\nNeeds: ", p->name, p->text, p->source);
	for (uint32_t k = 0; k < evict_n_heat(i); k++)
		put(o, "%sheat (%s)", n++ ? ", " : "", heat[p->heat[k]]);
	for (uint32_t k = 0; k < evict_n_trait(i); k++)
		put(o, "%s%s%s", n++ ? ", " : "", evict_trait_names[p->trait[k]], evict_trait_once(p->trait[k]) ? "" : " (every window)");
	put(o, "%s; %u bytes a slot.%s", n ? "" : "nothing", 4 * evict_n_heat(i) + 4 * evict_n_arrays(i),
	    p->pin_prompt ? " Pins the prompt by default." : "");
	if (p->merge)
		put(o, " Brings `merge = %s` along.", evict_merges[p->merge].name);
	put(o, "\n\n");
	put_comment(o, p->name);
	put_params(o, p->param, p->n_params);
	put(o, "\n");
}

static void docs_policies_md_is_what_the_tables_say(void **state)
{
	struct out o = { .text = calloc(1, 1 << 18), .room = 1 << 18 };
	const char *source = getenv("EBB_SOURCE");
	const char *found;
	char path[512];
	FILE *f;

	(void)state;
	assert_non_null(o.text);
	put(&o, "%s", head);
	for (uint32_t i = 0; i < EVICT_N_POLICIES; i++)
		put_rank(&o, i);
	put(&o, "## Merges\n\nWhat becomes of a victim's key and value; `evict/merge.h` has the formulas. `auto`: what the policy brings along.\n\n");
	for (uint32_t i = 0; i < EVICT_N_MERGES; i++) {
		put(&o, "### %s\n\n**%s.** *%s*\n", evict_merges[i].name, evict_merges[i].text, evict_merges[i].source);
		put_params(&o, evict_merges[i].param, evict_merges[i].n_params);
		put(&o, "\n");
	}
	put(&o, "## Splits\n\nHow a session's slots are shared over its lanes.\n\n");
	for (uint32_t i = 0; i < EVICT_N_SPLITS; i++) {
		put(&o, "### %s\n\n**%s.** *%s*\n", evict_splits[i].name, evict_splits[i].text, evict_splits[i].source);
		put_params(&o, evict_splits[i].param, evict_splits[i].n_params);
		put(&o, "\n");
	}
	put(&o, "%s", tail + 1);
	if (getenv("EBB_WRITE")) {
		snprintf(path, sizeof(path), "%s/docs/policies.md", source ? source : ".");
		f = fopen(path, "w");
		assert_non_null(f);
		assert_int_equal(fwrite(o.text, 1, o.n, f), o.n);
		fclose(f);
	}
	found = read_file("docs/policies.md");
	if (!found || strcmp(found, o.text) != 0)
		fail_msg("docs/policies.md is not what the tables make; EBB_WRITE=1 build/tests/unit/evict/test_table makes it");
	free(o.text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(docs_policies_md_is_what_the_tables_say),
	};

	return cmocka_run_group_tests_name("evict table", tests, NULL, NULL);
}
