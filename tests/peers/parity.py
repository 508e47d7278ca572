"""
parity.py - our ranks beside kvpress's: equal kept sets on Q, K and V of a real model. Run by `make check-peers`.

The model's forward pass is transformers' own, over the weights of the GGUF; nothing here shares code with ebb-llama. Queries and
keys after RoPE, and values, go to tests/peers/kept (our attend and select, on the host) and to the presses' score(). kvpress works in
float32 and leaves ties to topk; here its scores are ordered as ours are (equal ones: the lower position leaves). Sets must be equal.
Where a score is a sum of many numbers, slots may differ whose scores are within NEAR of the cut (rounding: in layer 0, keys of the same
word have the same norm but for that); they are counted in the line. Scores that are small whole numbers or ranks have no such excuse.

    EBB_MODEL=... python parity.py KEPT [TEXT]
"""
import os
import subprocess
import sys
import tempfile
import time

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
import numpy as np
import torch
import transformers.models.llama.modeling_llama as llama
from kvpress import (KeyDiffPress, KnormPress, LagKVPress, ObservedAttentionPress, SnapKVPress, StreamingLLMPress, TOVAPress)
from kvpress.utils import compute_n_kept
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS = 500        # no multiple of a partition, a page or a block
LAYERS = (0, 7, 15, 22, 29)
RATIOS = (0.25, 0.5, 0.75, 0.9)
NEAR = 1e-5         # of the cut
SINKS = 4
WINDOW = 32         # of the recent queries; less than the smallest budget
EXACT = ("streaming", "lagkv")


class Layer:
    """What one attention layer saw and computed; tensors as the presses want them, with a batch of 1 in front."""
    def __init__(self, module, hidden, kwargs, q, k, v, attentions):
        self.module, self.hidden, self.kwargs = module, hidden, kwargs
        self.q, self.k, self.v, self.attentions = q, k, v, attentions


def capture(path, text):
    """{layer number: Layer} of one forward pass over the text's first TOKENS tokens."""
    folder, name = os.path.split(path)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager").eval()
    ids = AutoTokenizer.from_pretrained(folder, gguf_file=name)(text, return_tensors="pt").input_ids[:, :TOKENS]
    if ids.shape[1] != TOKENS:
        sys.exit("the text has only %d tokens; needed: %d" % (ids.shape[1], TOKENS))
    rotated, called = [], {}
    rope = llama.apply_rotary_pos_emb

    def keep_rotated(*args, **kwargs):
        rotated.append(rope(*args, **kwargs))
        return rotated[-1]

    def keep_call(module, args, kwargs, output):
        called[module.layer_idx] = (module, kwargs["hidden_states"], {"position_embeddings": kwargs["position_embeddings"]}, output[1])

    llama.apply_rotary_pos_emb = keep_rotated
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(keep_call, with_kwargs=True)
    with torch.no_grad():
        cache = model.model(ids, use_cache=True).past_key_values
    llama.apply_rotary_pos_emb = rope
    out = {}
    for i in LAYERS:
        module, hidden, kwargs, attentions = called[i]
        q, k = rotated[i]
        out[i] = Layer(module, hidden, kwargs, q, k, cache.layers[i].values, attentions)
    return out


def write_dump(path, layers):
    first = next(iter(layers.values()))
    heads, kv_heads, dim = first.q.shape[1], first.k.shape[1], first.q.shape[3]
    with open(path, "wb") as f:
        np.array([len(layers), TOKENS, kv_heads, heads // kv_heads, dim], "<u4").tofile(f)
        for layer in layers.values():
            for x in (layer.q, layer.k, layer.v):
                x[0].transpose(0, 1).contiguous().numpy().astype("<f4").tofile(f)


# --- kvpress's scores: [KV heads][tokens] -----------------------------------------------------------------------------------------

def plain(press):
    """The press as it is; with sinks of its own lifted above the rest, since ours are protected."""
    def score(layer, ratio):
        p = press(ratio)
        s = p.score(layer.module, layer.hidden, layer.k, layer.v, layer.attentions, layer.kwargs)[0].clone()
        s[:, :getattr(p, "n_sink", 0)] += 1.0
        return s
    return score


def own_attention(press):
    """The press computes the attention it needs from hidden states, with its own projection and RoPE."""
    def score(layer, ratio):
        return press(ratio).score(layer.module, layer.hidden, layer.k, layer.v, None, layer.kwargs)[0]
    return score


def by_head(press):
    """Every KV head with its group alone, as if it were a layer."""
    def score(layer, ratio):
        group = layer.q.shape[1] // layer.k.shape[1]
        return torch.cat([press(ratio).score(layer.module, layer.hidden, layer.k[:, h:h + 1], layer.v[:, h:h + 1],
                                             layer.attentions[:, h * group:(h + 1) * group], layer.kwargs)[0]
                          for h in range(layer.k.shape[1])])
    return score


def window_behind(press, window):
    """The press's observation window is `window` empty slots behind all others, so that it scores the queries' own slots as well."""
    def score(layer, ratio):
        pad = torch.nn.functional.pad
        s = press(ratio).score(layer.module, layer.hidden, pad(layer.k, (0, 0, 0, window)), pad(layer.v, (0, 0, 0, window)),
                               pad(layer.attentions, (0, window)), layer.kwargs)[0]
        return s[:, :-window]
    return score


# Our policy; sinks, recent; windows; kvpress's side; what makes both mean the same.
CASES = [
    ("streaming", SINKS, 0, [TOKENS], plain(lambda r: StreamingLLMPress(r, n_sink=SINKS)), "StreamingLLMPress"),
    ("l2norm", 0, 0, [TOKENS], plain(KnormPress), "KnormPress"),
    ("keydiff", 0, 0, [TOKENS], plain(KeyDiffPress), "KeyDiffPress"),
    ("lagkv:lag=32", SINKS, 0, [300, 200], plain(lambda r: LagKVPress(r, n_sink=SINKS, lag_size=32)), "LagKVPress"),
    ("lagkv:lag=128", SINKS, 0, [TOKENS], plain(lambda r: LagKVPress(r, n_sink=SINKS, lag_size=128)), "LagKVPress"),
    ("lagkv:lag=256", SINKS, 0, [TOKENS], plain(lambda r: LagKVPress(r, n_sink=SINKS, lag_size=256)),
     "LagKVPress, too short for two partitions"),
    ("h2o:age=1", 0, 0, [125] * 4, plain(ObservedAttentionPress), "ObservedAttentionPress: sum / queries that saw the slot"),
    ("tova", 0, 1, [400, 100], by_head(TOVAPress), "TOVAPress by KV head: it takes the mean over all heads of a layer, ours over the group"),
    ("snapkv:kernel=1,queries=32", 0, WINDOW, [TOKENS - WINDOW, WINDOW], own_attention(lambda r: SnapKVPress(r, window_size=WINDOW, kernel_size=1)),
     "SnapKVPress, window protected, without pooling"),
    ("snapkv:kernel=5,mean=1,queries=32", 0, 0, [TOKENS - WINDOW, WINDOW], window_behind(lambda r: SnapKVPress(r, window_size=WINDOW, kernel_size=5), WINDOW),
     "SnapKVPress that pools over the window too: it leaves the window out, ours pools over all live slots"),
    ("cam:queries=32", 0, WINDOW, [TOKENS - WINDOW, WINDOW], own_attention(lambda r: SnapKVPress(r, window_size=WINDOW, kernel_size=1)),
     "SnapKVPress without pooling: the rank, not the merge"),
    ("morphkv:sum=1,queries=32", 0, WINDOW, [TOKENS - WINDOW, WINDOW], own_attention(lambda r: SnapKVPress(r, window_size=WINDOW, kernel_size=1)),
     "SnapKVPress without pooling: sum and mean order alike"),
]

# What both have by name, and yet do not share.
DIFFERENT = [
    ("expected", "ExpectedAttentionPress takes statistics of queries before RoPE; ebbd sees no queries and takes them of a slot's own heat"),
    ("cam's merge", "CAMPress merges only as many victims as there were steps, divides by the successors there are, and draws from torch"),
]


# --- the comparison ----------------------------------------------------------------------------------------------------------------

def ours(kept, dump, policy, n_kept, sinks, recent, windows):
    """[layer][KV head] -> set of positions."""
    done = subprocess.run([kept, dump, policy, str(n_kept), str(sinks), str(recent), ",".join(map(str, windows))],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    lanes = [set(map(int, line.split())) for line in done.stdout.splitlines()]
    per_layer = len(lanes) // len(LAYERS)
    return [lanes[i * per_layer:(i + 1) * per_layer] for i in range(len(LAYERS))]


def differences(score, mine, n_kept, near_cut):
    """(slots that differ and should not, slots that differ by rounding) over the KV heads of a layer."""
    wrong = near = 0
    for head, got in enumerate(mine):
        s = score[head].double().numpy()
        order = np.lexsort((np.arange(TOKENS), s))      # least first, equal ones by position
        if len(got) != n_kept:
            return TOKENS, 0
        cut = s[order[TOKENS - n_kept]]
        for pos in got ^ set(order[TOKENS - n_kept:].tolist()):
            if near_cut and abs(s[pos] - cut) <= near_cut * abs(cut):
                near += 1
            else:
                wrong += 1
    return wrong, near


def main():
    kept, text = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "/usr/share/common-licenses/GPL-3"
    passed = failed = 0
    start = time.time()
    with open(text, encoding="utf-8") as f:
        layers = capture(os.environ["EBB_MODEL"], f.read())
    print("%d tokens of %s through layers %s in %.0f s" % (TOKENS, text, ", ".join(map(str, LAYERS)), time.time() - start))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        dump = os.path.join(folder, "dump")
        write_dump(dump, layers)
        for policy, sinks, recent, windows, press, mapping in CASES:
            print("\n%s = %s" % (policy, mapping))
            for ratio in RATIOS:
                n_kept = compute_n_kept(TOKENS, ratio)
                for mine, (number, layer) in zip(ours(kept, dump, policy, n_kept, sinks, recent, windows), layers.items()):
                    wrong, near = differences(press(layer, ratio), mine, n_kept, 0 if policy.startswith(EXACT) else NEAR)
                    passed, failed = passed + (wrong == 0), failed + (wrong != 0)
                    print("  %-4s layer %2d  %3d of %d kept in %d lanes%s" % (
                        "FAIL" if wrong else "ok", number, n_kept, TOKENS, len(mine),
                        ("  %d slots differ" % wrong if wrong else "") + ("  %d within rounding of the cut" % near if near else "")))
        # The comparison itself: two ranks that are not the same must be told apart.
        mine = ours(kept, dump, "l2norm", 125, 0, 0, [TOKENS])
        told = all(differences(plain(KeyDiffPress)(layer, 0.75), m, 125, NEAR)[0] for m, layer in zip(mine, layers.values()))
        print("\n  %-4s l2norm is not KeyDiffPress" % ("ok" if told else "FAIL"))
        passed, failed = passed + told, failed + (not told)
    for name, why in DIFFERENT:
        print("  skip %s: %s" % (name, why))
    print("\n%d passed, %d failed, %d skipped" % (passed, failed, len(DIFFERENT)))
    return 1 if failed else 0


sys.exit(main())
