#!/usr/bin/env python3
"""What the tide is worth: sessions of different kinds in one pool that is too small for them, with [pool] tide = off and on.

  tools/tide.py OUT [--tokens 640] [--share 25] [--modes off,on] [--policy h2o]

Eight clients feed a document each (--nll --against-full) into one daemon, all at a time. Per mode: OUT/MODE.csv (what every session holds over
time, from ebbctl), OUT/MODE.svg, and a line per session with its KL to the full cache. OUT/*.full keep what the full cache said, for the next run.
The modes compete for the processor alike; what a session holds depends on who decodes when, so runs differ a little. EBB_BIN, EBB_MODEL as in make quality.
"""
import argparse, csv, json, os, signal, subprocess, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import quality

LANES, SLOT = 90, 90 * (2 * 64 * 2 + 16)       # of SmolLM2-135M: bytes of a slot in all lanes, bf16, with one heat and one credit

def documents(tokens):
    """(name, file, tokens, announced as a prompt or not): six kinds, a short one, a long one."""
    found = [(k, os.path.abspath(f)) for k, fs in quality.DOCUMENTS for f in sum((sorted(quality.glob.glob(c)) for c in fs), [])[:1]] \
        if hasattr(quality, "glob") else []
    if not found:
        import glob
        found = [(k, sum((sorted(glob.glob(c)) for c in fs), [])[0]) for k, fs in quality.DOCUMENTS if sum((glob.glob(c) for c in fs), [])]
    out = [(k, f, tokens) for k, f in found]
    return out + [("short", found[0][1], tokens * 3 // 10), ("long", found[-1][1], tokens * 16 // 10)]

def start(out, mode, docs, share):
    need = sum(n for _, _, n in docs) * SLOT * share // 100
    slab = 1 << 18
    size = (need + len(docs) * 3 * slab) // slab * slab         # tables and the last slab of each client on top
    ini = os.path.join(out, mode + ".ini")
    with open(ini, "w") as f:
        f.write("[daemon]\nsocket = %s\ndrain = 0s\n[pool p]\ndevice = host\nsize = %d\nslab = 256K\ntide = %s\n[session]\nbudget = 100%%\n"
                "prefill = chunked\nfloor = 48\n" % (os.path.join(out, "sock"), size, "on" if mode == "on" else "off"))
    log = open(os.path.join(out, mode + ".log"), "w")
    daemon = subprocess.Popen([quality.BIN + "/ebbd", "--config", ini], stderr=log, stdout=log, stdin=subprocess.DEVNULL)
    while subprocess.run([quality.BIN + "/ebbctl", "-s", os.path.join(out, "sock"), "status"], capture_output=True).returncode:
        if daemon.poll() is not None:
            sys.exit("tide: ebbd does not start: see %s" % log.name)
        time.sleep(0.1)
    return daemon, size

def watch(out, mode, clients, names):
    rows, begun = [], time.time()
    while any(c.poll() is None for c in clients):
        said = subprocess.run([quality.BIN + "/ebbctl", "-s", os.path.join(out, "sock"), "--json", "sessions"], capture_output=True, text=True)
        pid = {c.pid: n for c, n in zip(clients, names)}
        for s in json.loads(said.stdout or "[]"):
            if s["pid"] in pid:
                rows.append([round(time.time() - begun, 2), pid[s["pid"]], s["tokens"], s["slots_live"] / LANES, s["budget_slots"], s["tide_slots"],
                             s["tide_misses"]])
        time.sleep(0.5)
    with open(os.path.join(out, mode + ".csv"), "w", newline="") as f:
        csv.writer(f).writerows([["s", "session", "tokens", "slots", "budget", "tide", "misses"]] + rows)
    return rows

def plot(out, mode, rows, names):
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(7, 3.5))
    for n in names:
        mine = [r for r in rows if r[1] == n]
        ax.plot([r[0] for r in mine], [r[3] for r in mine], label=n, linewidth=1)
    ax.set_xlabel("seconds")
    ax.set_ylabel("slots a lane")
    ax.set_title("[pool] tide = " + mode)
    ax.legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(os.path.join(out, mode + ".svg"))

def run(out, mode, docs, args):
    daemon, size = start(out, mode, docs, args.share)
    names = [n for n, _, _ in docs]
    clients = []
    for name, path, tokens in docs:
        clients.append(subprocess.Popen([quality.BIN + "/ebb-llama", "-m", quality.MODEL, "--socket", os.path.join(out, "sock"), "-f", path, "--limit", str(tokens),
                                         "--nll", "--against-full", "--full-run", os.path.join(out, name + ".full"), "--policy", args.policy],
                                        stdout=open(os.path.join(out, "%s.%s.json" % (mode, name)), "w"), stderr=open(os.path.join(out, name + ".err"), "w"),
                                        stdin=subprocess.DEVNULL))
    rows = watch(out, mode, clients, names)
    daemon.send_signal(signal.SIGTERM)
    daemon.wait()
    plot(out, mode, rows, names)
    result = {}
    for name in names:
        text = open(os.path.join(out, "%s.%s.json" % (mode, name))).read()
        if not text:
            sys.exit("tide: %s: %s" % (name, open(os.path.join(out, name + ".err")).read()))
        result[name] = json.loads(text)
    print("%s: pool of %.1f MiB" % (mode, size / 2**20))
    for name, _, tokens in docs:
        mine = [r[3] for r in rows if r[1] == name]
        print("  %-6s tokens %5d  KL(all tokens) %.4f  slots at the end %4.0f" % (name, tokens, result[name]["kl_all"], mine[-1] if mine else 0), flush=True)
    total = sum(result[n]["kl_all"] * t for n, _, t in docs) / sum(t for _, _, t in docs)
    worst = max(names, key=lambda n: result[n]["kl_all"])
    print("  mean over tokens %.4f, worst session %.4f (%s)" % (total, result[worst]["kl_all"], worst), flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("--tokens", type=int, default=640)
    p.add_argument("--share", type=int, default=25, help="percent of what full caches would take")
    p.add_argument("--modes", default="off,on")
    p.add_argument("--policy", default="h2o")
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    args.out = os.path.abspath(args.out)
    docs = documents(args.tokens)
    for mode in args.modes.split(","):
        run(args.out, mode, docs, args)

if __name__ == "__main__":
    main()
