#!/usr/bin/env python3
"""tools/quality_report.py FOLDER MD PLOTS: what FOLDER/results.csv (written by tools/quality.py) says, as a page with tables (MD) and
plots (SVG files in the folder PLOTS, with the figures behind them as CSV). Nothing in the page is written by hand."""
import collections, csv, json, math, os, shutil, sys

try:
    import matplotlib
except ImportError:                         # the package of Debian belongs to Debian's own python
    if sys.executable != "/usr/bin/python3" and os.path.exists("/usr/bin/python3"):
        os.execv("/usr/bin/python3", ["/usr/bin/python3", "-B"] + sys.argv)
    sys.exit("quality: matplotlib is missing: tools/setup.sh quality")
matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "ebbd", "font.size": 8, "svg.fonttype": "none"})
import matplotlib.pyplot as plt

import quality

# Quantiles of Student's t for 95 %, by degrees of freedom.
T95 = [0, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
       2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]
BOUND, BASE = "belady", "streaming"


def mean_ci(values):
    """Mean, and half of its 95 % confidence interval (None for fewer than two)."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, None
    var = sum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, T95[min(n - 1, 30)] * math.sqrt(var / n)


def text_ci(mean, ci, digits=3):
    return "%.*f" % (digits, mean) + (" ± %.*f" % (digits, ci) if ci is not None else "")


def text_ratio(paired):
    if not paired:
        return ""
    mean, ci = paired
    return "%.2f" % math.exp(mean) + (" (%.2f to %.2f)" % (math.exp(mean - ci), math.exp(mean + ci)) if ci is not None else "")


def load(folder):
    rows = []
    with open(os.path.join(folder, "results.csv"), newline="") as f:
        for r in csv.DictReader(f):
            r["name"] = r["policy"] + (" " + r["settings"] if r["settings"] else "")
            for k in ["tokens", "slots"]:
                r[k] = int(r[k])
            for k in ["nll", "nll_full", "nll_tail", "nll_full_tail", "kl", "top1", "mass_kept", "kl_all"]:
                r[k] = float(r[k]) if r[k] else None
            r["dnll"] = r["nll_tail"] - r["nll_full_tail"] if r["nll_tail"] is not None else None
            rows.append(r)
    return rows


class Group:
    """The cells of one budget: per rule (policy and split), per document."""

    def __init__(self, rows):
        self.cells = collections.defaultdict(dict)
        for r in rows:
            if r["kl"] is not None:
                self.cells[(r["name"], r["split"])][r["text"]] = r

    def values(self, rule, what="kl", documents=None):
        cells = self.cells[rule]
        return [cells[d][what] for d in (documents or cells)]

    def paired(self, rule, other):
        """KL as a multiple of another rule's over the documents that both have: mean and half interval of its logarithm."""
        both = sorted(set(self.cells[rule]) & set(self.cells[other]))
        pairs = [(self.cells[rule][d]["kl"], self.cells[other][d]["kl"]) for d in both]
        if not pairs or min(min(p) for p in pairs) <= 0:
            return None
        return mean_ci([math.log(a / b) for a, b in pairs])

    def order(self, split=None):
        """Rules by mean KL, those with all documents first: a mean over fewer is no match for them."""
        rules = [r for r in self.cells if split is None or r[1] == split]
        most = max((len(self.cells[r]) for r in rules), default=0)
        return sorted(rules, key=lambda r: (len(self.cells[r]) < most, mean_ci(self.values(r))[0]))


def table(group, rules, base, first="policy"):
    """Markdown rows: what each rule costs, and the paired difference to `base`."""
    out = ["| %s | KL (nats a token) | ΔNLL | top-1 | mass kept | KL relative to %s's | documents |" % (first, base[0] if first == "policy" else base[1]),
           "|---|---|---|---|---|---|---|"]
    for r in rules:
        kl, ci = mean_ci(group.values(r))
        diff = group.paired(r, base) if r != base and base in group.cells else None
        name = r[0] if first == "policy" else r[1] if first == "split" else "%s, %s" % r
        mass = [m for m in group.values(r, "mass_kept") if m is not None]    # none where no whole window comes after the budget
        out.append("| %s | %s | %.3f | %.1f %% | %s | %s | %d |" % (
            "*%s* (the bound)" % name if r[0] == BOUND else name, text_ci(kl, ci), mean_ci(group.values(r, "dnll"))[0],
            100 * mean_ci(group.values(r, "top1"))[0], "%.1f %%" % (100 * mean_ci(mass)[0]) if mass else "",
            text_ratio(diff), len(group.cells[r])))
    return out


def advice(group):
    """One sentence per budget: the best rule, and which others the documents cannot tell from it."""
    rules = [r for r in group.order("uniform") if r[0] != BOUND]
    most = max(len(group.cells[r]) for r in rules)
    rules = [r for r in rules if len(group.cells[r]) == most]
    best, rest = rules[0], []
    for r in rules[1:]:
        paired = group.paired(r, best)
        if not paired or paired[1] is None or paired[0] - paired[1] <= 0:
            rest.append(r[0])
    said = "**%s** has the lowest mean KL (%s)" % (best[0], text_ci(*mean_ci(group.values(best))))
    if most < 2:
        return said + "; with one document nothing can be said about the others."
    return said + ("; not distinguishable from it by a paired 95 %% interval over %d documents: %s." % (most, ", ".join(rest)) if rest else
                   "; every other policy is worse by a paired 95 %% interval over %d documents." % most)


# --- plots -------------------------------------------------------------------------------------------------------------------------

def save(fig, path):
    fig.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(fig)


def plot_budgets(groups, tokens, path):
    """KL and dNLL against the budget, a line a policy. groups: percent -> Group."""
    percents = sorted(groups)
    names = [r for r in groups[percents[len(percents) // 2]].order("uniform") if " " not in r[0]]
    fig, axes = plt.subplots(1, 2, figsize=(11, 5))
    colours, marks = plt.get_cmap("tab20").colors, "osv^D<>pPX"
    for i, r in enumerate(names):
        have = [p for p in percents if r in groups[p].cells]
        style = dict(color="black", linestyle="--") if r[0] == BOUND else dict(color=colours[i % 20], marker=marks[i // 20 % 10 if i >= 20 else i % 10], markersize=3)
        for ax, what in zip(axes, ["kl", "dnll"]):
            ax.plot(have, [mean_ci(groups[p].values(r, what))[0] for p in have], linewidth=1.6 if r[0] in (BOUND, BASE) else 0.9, label=r[0], **style)
    for ax, label in zip(axes, ["KL(full || evicted), nats a token", "NLL - NLL of the full cache, nats a token"]):
        ax.set_xscale("log", base=2)
        ax.set_xticks(percents, ["%d %%" % p for p in percents])
        ax.set_xlabel("budget, of %d tokens" % tokens)
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, ncols=1)
    save(fig, path)


def plot_kept(folder, rows, path):
    """Where the kept tokens lie: layer x position, one map a policy, for one document and budget. Returns what it shows, or None."""
    kept = {}
    try:
        with open(os.path.join(folder, "kept.jsonl")) as f:
            for line in f:
                if line.endswith("\n"):
                    k = json.loads(line)
                    kept[(k["text"], k["tokens"], k["slots"], k["policy"])] = k
    except OSError:
        return None
    if not kept:
        return None
    count = collections.Counter(k[:3] for k in kept)
    at = max(count, key=lambda k: (count[k], k[1], -abs(k[2] - k[1] // 4), k))    # where most policies can be seen side by side
    shown = [kept[at + (p,)] for p in sorted(k[3] for k in kept if k[:3] == at)]
    cols = min(6, len(shown))
    lines = -(-len(shown) // cols)
    fig, axes = plt.subplots(lines, cols, figsize=(2.1 * cols, 1.9 * lines + 0.3), squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat:
        ax.axis("off")
    for ax, k in zip(axes.flat, shown):
        ax.axis("on")
        ax.imshow(k["bins"], aspect="auto", origin="lower", cmap="magma", vmin=0, vmax=1, extent=(0, k["tokens"], 0, len(k["bins"])), interpolation="nearest")
        ax.set_title(k["policy"], fontsize=7)
        ax.tick_params(labelsize=5)
    fig.supxlabel("position", fontsize=7)
    fig.supylabel("layer", fontsize=7)
    fig.tight_layout()
    save(fig, path)
    with open(path[:-4] + ".csv", "w", newline="") as f:
        w = csv.writer(f, lineterminator="\n")
        w.writerow(["document", "tokens", "slots", "policy", "layer"] + ["bin%d" % i for i in range(len(shown[0]["bins"][0]))])
        for k in shown:
            for layer, bins in enumerate(k["bins"]):
                w.writerow([k["document"], k["tokens"], k["slots"], k["policy"], layer] + bins)
    return shown[0]


# --- levers: rank, split, how slots are stored -------------------------------------------------------------------------------------

def lever_name(rank, split, slots, window, equal):
    if (rank, split, slots, window, equal) == quality.LEVERS[0]:
        return "*base: %s, %s, %s, window %s*" % (rank, split, slots, window)
    parts = [rank] * (rank != "h2o:age=1") + ["split measured"] * (split == "measured") + ["window auto"] * (window == "auto") + [slots] * (slots != "bf16")
    return " + ".join(parts) + (", in the base's bytes" if equal == "bytes" else "")


def lever_cells(rows):
    """(tokens, percent) -> lever -> text -> row."""
    have = {quality.key_of(r): r for r in rows}
    docs = {r["text"]: {k: r[k] for k in ["document", "kind", "text"]} for r in rows}
    out = collections.defaultdict(dict)
    for tokens, percent in sorted({(r["tokens"], int(r["percent"])) for r in rows}):
        for lever in quality.LEVERS:
            keys = {d: quality.key_of(quality.lever_cell(docs[d], tokens, percent, *lever)) for d in docs}
            out[(tokens, percent)][lever] = {d: have[k] for d, k in keys.items() if k in have}
    return {at: c for at, c in out.items() if c[quality.LEVERS[0]]}


def lever_ratio(cells, lever):
    """KL over all tokens relative to the base: mean and half interval of the logarithm over documents, and the worst document."""
    base = cells[quality.LEVERS[0]]
    ratios = {d: r["kl_all"] / base[d]["kl_all"] for d, r in cells[lever].items() if d in base}
    if not ratios:
        return None
    worst = max(ratios, key=ratios.get)
    return mean_ci([math.log(x) for x in ratios.values()]) + (ratios[worst], base[worst]["kind"])


def tide(plots):
    """The lever that is one of several sessions: tools/tide.py's results.jsonl, kept as tide.jsonl beside the plots."""
    path = os.path.join(plots, "tide.jsonl")
    runs = [json.loads(line) for line in open(path)] if os.path.exists(path) else []
    equal = {(r["texts"], r["share"]): r for r in runs if r["mode"] == "equal"}
    out = []
    for r in runs:
        base = equal.get((r["texts"], r["share"]))
        if r["mode"] != "on" or not base:
            continue
        logs = [math.log(r["kl"][s] / base["kl"][s]) for s in base["kl"]]
        out.append("| %s, %d %% | %.1f | %.1f, %.2f | %s | %.4f, %.2f |" % (r["texts"], r["share"], base["total"], r["total"], r["total"] / base["total"],
                                                                       text_ratio(mean_ci(logs)), r["worst"], r["worst"] / base["worst"]))
    if not out:
        return []
    return ["### With the tide, between sessions", "",
            "Eight sessions of four users in one pool of so many % of what full caches would take, rank, split and window as by default, bf16 (`tools/tide.py`): equal budgets, and the "
            "tide. One run of each; what a session holds depends on who decodes when, so runs differ ([tide.md](tide.md)).", "",
            "| texts, pool | equal budgets: total, nats | tide: total, of equal | a session's KL, of equal: geometric mean over the sessions, 95 % | worst session: KL, of equal's |",
            "|---|---|---|---|---|"] + out + [""]


def plot_levers(by, path):
    tokens = sorted({t for t, _ in by})
    fig, axes = plt.subplots(1, len(tokens), figsize=(1 + 4 * len(tokens), 4), squeeze=False, sharey=True)
    for ax, t in zip(axes[0], tokens):
        percents = sorted(p for n, p in by if n == t)
        for i, lever in enumerate(quality.LEVERS[1:]):
            have = [(p, lever_ratio(by[(t, p)], lever)) for p in percents]
            have = [(p, math.exp(v[0]), math.exp(v[0] - (v[1] or 0)), math.exp(v[0] + (v[1] or 0))) for p, v in have if v]
            ax.errorbar([h[0] for h in have], [h[1] for h in have], yerr=[[h[1] - h[2] for h in have], [h[3] - h[1] for h in have]], marker="osv^D<>pP"[i % 9],
                        markersize=3, capsize=2, linewidth=1, linestyle="--" if lever[4] == "bytes" else "-", label=lever_name(*lever))
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(percents, ["%d %%" % p for p in percents])
        ax.set_xlabel("slots of the base, of %d tokens" % t)
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("KL relative to h2o:age=1, uniform, bf16")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    save(fig, path)


def levers(rows, plots, link):
    """What each lever gives alone and with the others, as one table and one plot."""
    by = lever_cells(rows)
    if not by:
        return []
    n = max(len(c) for cells in by.values() for c in cells.values())
    by = {at: {lever: c if len(c) == n else {} for lever, c in cells.items()} for at, cells in by.items()}
    out = ["## Rank, split, window and precision: each alone, and together", "",
           "KL to the full cache in float32, over all tokens, relative to the base's on the same document: geometric mean over %d documents with its 95 %% interval, and the "
           "document where it is worst; the base's row has its KL; what was not measured on all of them is left out. Base: the best published-style rule (mean attention, newest half protected), equal lanes, bf16. Where "
           "nothing else is said a lever has the base's slots; in the base's bytes q8 has 1.88 times as many. `window auto` is 8 and 15 tokens at 122 and 245 slots, and "
           "32, the base's, from 512 on: there it changes nothing. The table of `measured` is share/smollm2-135M.lanes, which saw none of the documents. How it was made, "
           "and what failed: [quality-lanes.md](quality-lanes.md), [rule.md](rule.md)." % n, "",
           "| levers | " + " | ".join("%d tokens, %d %% (%d slots)" % (t, p, t * p // 100) for t, p in sorted(by)) + " |", "|---|" + "---|" * len(by)]
    for lever in quality.LEVERS:
        line = []
        for at in sorted(by):
            cells = by[at][lever]
            if lever == quality.LEVERS[0]:
                line.append(text_ci(*mean_ci([r["kl_all"] for r in cells.values()]), 4))
                continue
            v = lever_ratio(by[at], lever)
            line.append("%s; %.2f %s" % (text_ratio(v[:2]), v[2], v[3]) if v else "")
        out.append("| %s | %s |" % (lever_name(*lever), " | ".join(line)))
    plot_levers(by, os.path.join(plots, "levers.svg"))
    return out + ["", "![levers](%slevers.svg)" % link, ""]


# --- the page ----------------------------------------------------------------------------------------------------------------------

def reference_table(rows):
    """The rules that another implementation measured, side by side. Its documents are others of the same kinds."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../docs/quality/reference.csv")
    ours = collections.defaultdict(dict)
    for r in rows:
        if r["percent"] == "" and r["tokens"] == 2048 and r["kl"] is not None:
            ours[(r["policy"], r["settings"])][r["kind"]] = r
    if not ours or not os.path.exists(path):
        return []
    with open(path) as f:
        theirs = [r for r in csv.DictReader(line for line in f if line[0] != "#") if r["policy"]]
    kinds = ["essay", "howto", "code", "spec", "list"]
    out = ["## The same rules by another implementation, on other documents", "",
           "KL at 256 slots after each decision (288 here: the window counts), 2048 tokens: ours / the other implementation's "
           "(a PyTorch forward that shares no code with this one). **The documents are not the same**, only their kinds, so agreement within "
           "15 % is to be expected of the order and of the ratios rather than of each number. Ours are means from the budget on "
           "(1760 tokens), theirs from 256 on (1792 tokens, of which the first 32 are 0): ours are multiplied by 1760/1792 below. The last "
           "column is the mean over these kinds relative to streaming's: what a rule is worth, with the document's difficulty taken out.", "",
           "| rule | " + " | ".join(kinds) + " | mean | relative to streaming |", "|---|" + "---|" * (len(kinds) + 2)]
    base = None
    for t in theirs:
        cells = ours.get((t["policy"], t["settings"]), {})
        if not all(k in cells for k in kinds):
            continue
        mine, other = [cells[k]["kl"] * 1760 / 1792 for k in kinds], [float(t[k]) for k in kinds]
        mean = (sum(mine) / len(kinds), sum(other) / len(kinds))
        base = base or mean
        out.append("| %s (%s%s) | " % (t["name"], t["policy"], " " + t["settings"] if t["settings"] else "") +
                   " | ".join("%.3f / %.3f" % p for p in zip(mine, other)) +
                   " | %.3f / %.3f | %.2f / %.2f |" % (mean + (mean[0] / base[0], mean[1] / base[1])))
    return out + [""] if base else []


def same_table(rows):
    """Rules that another implementation ran on the very document."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../docs/quality/same-document.csv")
    ours = {(r["text"], str(r["tokens"]), str(r["slots"]), r["policy"], r["settings"]): r["kl"] for r in rows if r["kl"] is not None}
    out = []
    if os.path.exists(path):
        with open(path) as f:
            for r in csv.DictReader(line for line in f if line[0] != "#"):
                kl = ours.get((r["text"], r["tokens"], r["slots"], r["policy"], r["settings"]))
                if kl is not None:
                    other = float(r["kl"])
                    out.append("| %s, %s tokens | %s | %s %s | %.5f | %.5f | %+.1f %% |" % (
                        r["document"], r["tokens"], r["slots"], r["policy"], r["settings"], kl, other, 100 * (kl / other - 1)))
    if not out:
        return []
    return ["## The same rules by an independent implementation, on the same document", "",
            "KL after the budget: ours through the daemon, the other in numpy, written from the formulas only.", "",
            "| document | slots | rule | ours | independent | difference |", "|---|---|---|---|---|---|"] + out + [""]


def kinds_table(group):
    """Per document: the policies in columns would be too wide, so the best three and the default ones."""
    texts = {d: r for cells in group.cells.values() for d, r in cells.items()}
    out = ["| document | kind | full NLL | best (KL) | second | third | %s | worst |" % BASE, "|---|---|---|---|---|---|---|---|"]
    for d in sorted(texts, key=lambda d: texts[d]["kind"]):
        ranked = sorted((c[d]["kl"], r[0]) for r, c in group.cells.items() if d in c and r[1] == "uniform" and r[0] != BOUND)
        base = group.cells.get((BASE, "uniform"), {}).get(d)
        names = ["%s %.3f" % (n, kl) for kl, n in ranked]
        out.append("| %s | %s | %.3f | %s | %s | %s | %s | %s |" % (
            texts[d]["document"], texts[d]["kind"], texts[d]["nll_full"], *(names + [""] * 3)[:3], "%.3f" % base["kl"] if base else "", names[-1]))
    return out


def page(folder, rows, plots, link):
    out = ["# What each eviction policy costs", "",
           "Written by `tools/quality_report.py` from a run of `make quality`; do not edit. SmolLM2-135M-Instruct (Q4_1), through the real daemon, "
           "teacher forcing in windows of 32 tokens, keys and values in float32, the daemon's defaults (4 sinks, the newest half of the budget "
           "protected) unless a rule says otherwise. A budget of P % is a count: P % of the document's tokens, the window's own 32 slots included; until "
           "so many tokens are in, nothing is evicted, and they are left out of the figures. KL is KL(full ‖ evicted) of the next token's distribution; "
           "ΔNLL what the evicted cache loses in nats a token; top-1 how often both have the same likeliest token; mass kept the share of the full "
           "cache's attention that lies on slots which the evicted one has. ± is a 95 % confidence interval of the mean over documents (Student's t). Documents "
           "differ more than policies do, so compare policies by the relative column: KL as a multiple of a baseline's on the same document, geometric "
           "mean over documents, with its 95 % interval.", ""]
    groups = collections.defaultdict(lambda: collections.defaultdict(list))
    lever_rows = [r for r in rows if "slots=" in r["settings"]]
    rows = [r for r in rows if "slots=" not in r["settings"]]
    for r in rows:
        if r["percent"]:
            groups[r["tokens"]][int(r["percent"])].append(r)
    documents = {r["text"]: r for r in rows + lever_rows}
    out += ["Documents: " + ", ".join("%s (%s)" % (r["document"], r["kind"]) for r in sorted(documents.values(), key=lambda r: r["document"])) +
            ". %d cells measured; the figures are in [results.csv](%sresults.csv); put that file into build/quality/ and `make quality` "
            "goes on from there. A rule that was measured on fewer documents than others stands behind them." % (sum(r["kl"] is not None for r in rows + lever_rows), link), ""]
    for tokens in sorted(groups):
        by = {p: Group(rs) for p, rs in groups[tokens].items()}
        by = {p: g for p, g in by.items() if g.order("uniform")}
        if not by:
            continue
        out += ["## %d tokens: which policy to choose" % tokens, ""]
        out += ["- %d %% (%d slots): %s" % (p, tokens * p // 100, advice(by[p])) for p in sorted(by)]
        plot_budgets(by, tokens, os.path.join(plots, "budget-%d.svg" % tokens))
        out += ["", "![KL and NLL against the budget](%sbudget-%d.svg)" % (link, tokens), ""]
        for p in sorted(by):
            out += ["### %d %% of %d tokens" % (p, tokens), ""] + table(by[p], by[p].order("uniform"), (BASE, "uniform")) + [""]
        middle = 25 if 25 in by else sorted(by)[-1]
        out += ["### By document, %d %%" % middle, ""] + kinds_table(by[middle]) + [""]
        for p in sorted(by):
            split_rules = [r for r in by[p].order() if r[1] != "uniform"]
            for base in sorted({r[0] for r in split_rules}):
                rules = [r for r in by[p].order() if r[0] == base]
                out += ["### Splits under %s, %d %%" % (base, p), ""] + table(by[p], rules, (base, "uniform"), "split") + [""]
    out += levers([r for r in lever_rows if r["kl"] is not None], plots, link)
    out += tide(plots) + same_table(rows) + reference_table(rows)
    shown = plot_kept(folder, rows, os.path.join(plots, "kept.svg"))
    if shown:
        out += ["## Where the kept tokens lie", "", "Layer by position after %d tokens of %s with %d slots a lane: the share of each part of the document that is kept, "
                "mean over the layer's KV heads (black nothing, white everything)." % (shown["tokens"], shown["document"], shown["slots"]), "",
                "![layer by position](%skept.svg)" % link, ""]
    refused = sorted({(r["name"], r["split"], r["refused"]) for r in rows if r["refused"]})
    if refused:
        out += ["## Not measured", "", "| policy | split | what the daemon said |", "|---|---|---|"]
        out += ["| %s | %s | %s |" % (n, s, why.replace("|", "\\|")) for n, s, why in refused] + [""]
    return out


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    folder, md, plots = sys.argv[1:]
    rows = load(folder)
    if not any(r["kl"] is not None for r in rows):
        sys.exit("quality: nothing is measured yet in %s" % folder)
    os.makedirs(plots, exist_ok=True)
    link = os.path.relpath(plots, os.path.dirname(md) or ".") + "/"
    lines = page(folder, rows, plots, "" if link == "./" else link)
    with open(md, "w") as f:
        f.write("\n".join(lines).rstrip() + "\n")
    if os.path.abspath(folder) != os.path.abspath(plots):
        shutil.copyfile(os.path.join(folder, "results.csv"), os.path.join(plots, "results.csv"))
    print("quality: %s, plots in %s" % (md, plots))


if __name__ == "__main__":
    main()
