#!/usr/bin/env python3
"""What the tide is worth: eight sessions of four clients in one pool that is too small for them, with [pool] tide = off and on.

  tools/tide.py OUT [--tokens 2048] [--share 12,25] [--modes off,on] [--texts A] [--start ends|together] [--seconds N]

Two record lists, code, two kinds of prose, a specification, a short chat and a long text are fed (--nll --against-full) into one daemon, each by an
ebb-llama of its own, two for each of four users (if we are root; else all are one user's). --start ends: they begin at such times that
all end at about the same time, so that at the end all are there with all their tokens; together: they begin at once, and the short one leaves early.
The default policy and split, and no budget but the pool's size: --share percent of what full caches would take, and what tables and half-filled slabs
take on top.

Modes: off    sizes even out when the pool is short
       on     the tide
       equal  the pool's slots divided equally among the eight, as budgets: what a short session does not need is not used
       first  the tide, and the first user (the first list and the code) weighs 16

Prints per session KL(full || evicted) over all tokens and what it held, and per mode the total in nats, relative to the first mode, and the
worst session. OUT/SHARE.MODE.csv: what every session holds over time, from ebbctl; OUT/SHARE.svg plots it (with matplotlib); OUT/results.jsonl.
OUT/*.full keep what the full cache said, for the next run. Modes compete for the processor alike; what a session holds depends on
who decodes when, so runs differ a little. EBB_BIN, EBB_MODEL as in make quality. --seconds: no run is begun after so many.
"""
import argparse, csv, glob, json, os, signal, subprocess, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import quality

LANES, SLOT = 90, 90 * (2 * 64 * 2 + 16)       # of SmolLM2-135M: bytes of a slot in all lanes, bf16, with one heat and one credit
SLAB = 1 << 18
FIRST_USER = 60001
CHAT = {"A": """<|im_start|>user
Hi! I have three people coming for dinner on Friday and one of them does not eat meat. What could I cook that does not keep me in the kitchen all evening?<|im_end|>
<|im_start|>assistant
A vegetable curry works well: it can be made in the afternoon and tastes better warmed up. You need chickpeas, coconut milk, spinach, two onions, ginger, and a good curry powder. Serve it with rice and a bowl of yoghurt with cucumber.<|im_end|>
<|im_start|>user
Sounds good. How much rice for four people, and how long does it take?<|im_end|>
<|im_start|>assistant
Take 300 grams of dry rice, which is 75 grams each. Rinse it, add 450 millilitres of water and a pinch of salt, bring it to the boil, and leave it covered on the lowest heat for 12 minutes. Then take it off the heat and let it rest for another 10.<|im_end|>
<|im_start|>user
And something sweet afterwards? It should go with the curry, and I have two ripe mangoes here.<|im_end|>
<|im_start|>assistant
Then make a mango fool: blend one mango with a little lime juice, whip 200 millilitres of cream, and fold the two together. Cut the other mango into small pieces and put them on top. It can wait in the fridge until you need it.<|im_end|>
<|im_start|>user
Perfect. Can you write me a shopping list for everything except the mangoes?<|im_end|>
<|im_start|>assistant
Of course: two tins of chickpeas, one tin of coconut milk, 300 grams of spinach, two onions, a piece of ginger, curry powder, 300 grams of rice, 500 grams of yoghurt, one cucumber, two limes, and 200 millilitres of cream.<|im_end|>
""", "B": """<|im_start|>user
My bicycle makes a clicking noise, once per turn of the pedals, and only when I push hard. What is it?<|im_end|>
<|im_start|>assistant
A click once per turn of the pedals comes from something that turns with them: the pedals themselves, the cranks, the bolts of the chainring, or the bearing between the cranks. Does it also click when you stand up, and when you push with one foot only?<|im_end|>
<|im_start|>user
It clicks with the left foot. I stood up and it was the same. I have a set of hex keys and a pedal spanner at home.<|im_end|>
<|im_start|>assistant
Then begin with the left pedal. Take it off (the left one has a left-hand thread, so turn it the other way), clean the thread, put some grease on it, and tighten it well. If it still clicks, do the same with the bolt that holds the left crank.<|im_end|>
<|im_start|>user
The pedal was loose! It is quiet now. How tight should it be, and do I have to check it again?<|im_end|>
<|im_start|>assistant
About 35 newton metres, which is a firm pull on a pedal spanner. Check it once after a week of riding, and then whenever you oil the chain.<|im_end|>
"""}
# Name, files to choose from, tokens as a share of --tokens; two sessions a user, in this order. B has no text of A.
PERL, PYTHON = "/usr/share/perl/5.*/", "/usr/lib/python3*/"
TEXTS = {"A": [("list", PYTHON + "html/entities.py", 1), ("code", PYTHON + "argparse.py", 1), ("services", "/etc/services", 1), ("chat", None, 1),
               ("essay", PERL + "Locale/Maketext/TPJ13.pod", 1), ("long", "/usr/share/common-licenses/GPL-3", 2),
               ("howto", PERL + "Test/Tutorial.pod", 1), ("spec", PERL + "CPAN/Meta/Spec.pm", 1)],
         "B": [("zones", "/usr/share/zoneinfo/zone1970.tab", 1), ("code", PYTHON + "subprocess.py", 1), ("releases", "/usr/share/doc/git/RelNotes/2.10.0.txt", 1),
               ("chat", None, 1), ("faq", PERL + "Net/libnetFAQ.pod", 1), ("long", PERL + "Locale/Maketext.pod", 2),
               ("licence", "/usr/share/common-licenses/LGPL-2.1", 1), ("spec", PERL + "Encode/Supported.pod", 1)]}


class Session:
    def __init__(self, out, texts, at, tokens):
        self.name, pattern, share = TEXTS[texts][at]
        self.special = pattern is None
        self.user = FIRST_USER + at // 2
        local = os.path.join(out, "texts.%s.%s" % (texts, self.name))       # a copy from elsewhere, or made here
        if self.special:
            open(local, "w").write(CHAT[texts])
        found = [local] if os.path.exists(local) else sorted(glob.glob(pattern))
        if not found:
            sys.exit("tide: no text for %s: %s" % (self.name, pattern))
        self.path = found[0]
        ids = subprocess.run([quality.BIN + "/ebb-llama", "-m", quality.MODEL, "-f", self.path, "--ids"] + self.options(), capture_output=True, text=True)
        self.tokens = min(len(ids.stdout.split()), int(tokens * share))
        self.full = os.path.join(out, "%s.%s.%d.full" % (texts, self.name, self.tokens))

    def options(self):
        return ["--special"] if self.special else []

    def start(self, sock, out, extra, root):
        self.said = os.path.join(out, self.name + ".json")
        who = {"user": self.user, "group": self.user, "extra_groups": []} if root else {}
        command = [quality.BIN + "/ebb-llama", "-m", quality.MODEL, "--socket", sock, "-f", self.path, "--limit", str(self.tokens), "--nll",
                   "--against-full", "--full-run", self.full, "--set", "window=32", "--wait", "60000"] + self.options() + extra
        self.client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=open(self.said, "w"), stderr=open(self.said + ".err", "w"), **who)

    def result(self):
        text = open(self.said).read()
        if not text:
            sys.exit("tide: %s: exit status %s: %s" % (self.name, self.client.returncode, open(self.said + ".err").read()))
        return json.loads(text)


def ctl(sock, *words):
    return subprocess.run([quality.BIN + "/ebbctl", "-s", sock, "--json"] + list(words), capture_output=True, text=True)


def start_daemon(out, size, more):
    sock, ini = os.path.join(out, "sock"), os.path.join(out, "ebbd.ini")
    lanes = "lanes = %s\n" % quality.LANES if os.path.exists(quality.LANES) else ""
    with open(ini, "w") as f:
        f.write("[daemon]\nsocket = %s\ndrain = 0s\n%s[pool p]\ndevice = host\nsize = %d\nslab = %d\n%s[session]\nbudget = 65536\nprefill = chunked\n%s"
                % (sock, more.get("daemon", ""), size, SLAB, more.get("pool", ""), lanes))
    log = open(os.path.join(out, "ebbd.log"), "a")
    daemon = subprocess.Popen([quality.BIN + "/ebbd", "--config", ini], stderr=log, stdout=log, stdin=subprocess.DEVNULL)
    while ctl(sock, "status").returncode:
        if daemon.poll() is not None:
            sys.exit("tide: ebbd does not start: see %s" % log.name)
        time.sleep(0.1)
    os.chmod(sock, 0o666)
    return daemon, sock


def stop_daemon(daemon):
    daemon.send_signal(signal.SIGTERM)
    daemon.wait()


def full_runs(out, sessions, jobs):
    """What the full cache says of every text, where it is not known yet."""
    missing = sorted((s for s in sessions if not os.path.exists(s.full)), key=lambda s: -s.tokens)
    if not missing:
        return
    daemon, sock = start_daemon(out, 4 * SLOT * sum(s.tokens for s in sessions), {})
    running = []
    for s in missing:
        while len([r for r in running if r.client.poll() is None]) >= jobs:
            time.sleep(0.1)
        s.start(sock, out, [], False)
        running.append(s)
    for s in running:
        s.client.wait()
        s.result()
        os.chmod(s.full, 0o644)
    stop_daemon(daemon)


def run(out, mode, share, sessions, args):
    slots = sum(s.tokens for s in sessions) * share // 100
    size = (slots * SLOT + len(sessions) * 3 * SLAB) // SLAB * SLAB         # tables and the last slab of each client on top
    root = os.geteuid() == 0
    daemon, sock = start_daemon(out, size, {"pool": "tide = %s\n" % ("off" if mode in ("off", "equal") else "on"),
                                            "daemon": "priority = %d:16\n" % FIRST_USER if mode == "first" else ""})
    extra = ["--budget", str(slots // len(sessions)), "--set", "floor=64"] if mode == "equal" else []
    waiting, rows, begun, longest = list(sessions), [], time.time(), max(sessions, key=lambda s: s.tokens)
    while waiting or any(s.client.poll() is None for s in sessions):
        said = json.loads(ctl(sock, "sessions").stdout or "[]")
        now = {s["pid"]: s for s in said}
        far = now[longest.client.pid]["tokens"] if longest not in waiting and longest.client.pid in now else 0
        over = longest not in waiting and longest.client.poll() is not None
        for s in list(waiting):
            if args.start == "together" or over or longest.tokens - s.tokens <= far:
                s.start(sock, out, extra, root)
                waiting.remove(s)
        for s in sessions:
            if s not in waiting and s.client.pid in now:
                w = now[s.client.pid]
                rows.append([round(time.time() - begun, 2), s.name, w["tokens"], round(w["slots_live"] / LANES, 1), w["budget_slots"], w["tide_slots"], w["tide_misses"]])
        time.sleep(0.25)
    stop_daemon(daemon)
    with open(os.path.join(out, "%d.%s.csv" % (share, mode)), "w", newline="") as f:
        csv.writer(f).writerows([["s", "session", "tokens", "slots", "budget", "tide", "misses"]] + rows)
    return rows, size, time.time() - begun


def report(out, mode, share, sessions, rows, size, seconds, base, args):
    kl = {s.name: s.result()["kl_all"] for s in sessions}
    total = sum(kl[s.name] * (s.tokens - 1) for s in sessions)
    worst = max(kl, key=kl.get)
    base = base or (total, kl[worst])
    print("%d %%, %s: pool of %.1f MiB, %.0f s; total %.1f nats (%.3f), worst session %.4f (%.3f, %s)"
          % (share, mode, size / 2**20, seconds, total, total / base[0], kl[worst], kl[worst] / base[1], worst))
    print("    " + "  ".join("%s %d: %.4f, %.0f slots" % (s.name, s.tokens, kl[s.name], ([r[3] for r in rows if r[1] == s.name] or [0])[-1]) for s in sessions), flush=True)
    with open(os.path.join(out, "results.jsonl"), "a") as f:
        f.write(json.dumps({"texts": args.texts, "start": args.start, "share": share, "mode": mode, "total": total, "worst": kl[worst], "kl": kl,
                            "tokens": {s.name: s.tokens for s in sessions}}) + "\n")
    return base


def plot(path, share, shown, sessions):
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "ebbd", "font.size": 8, "svg.fonttype": "none"})
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3), sharey=True, squeeze=False)
    for ax, (mode, rows) in zip(axes[0], shown):
        for k, s in enumerate(sessions):
            mine = [r for r in rows if r[1] == s.name]
            mine = mine[::max(1, len(mine) // 60)] + mine[-1:]
            ax.plot([r[0] for r in mine], [r[3] for r in mine], label="%s, %d tokens" % (s.name, s.tokens), linewidth=1, color="C%d" % k)
        ax.set_xlabel("seconds")
        ax.set_title("%s, %d %%" % ({"off": "tide = off", "on": "tide = on", "equal": "equal budgets", "first": "tide = on, list and code weigh 16"}[mode], share))
    axes[0][0].set_ylabel("slots a lane")
    axes[0][0].legend(fontsize=6, frameon=False)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("--tokens", type=int, default=2048)
    p.add_argument("--share", default="12,25", help="percent of what full caches would take")
    p.add_argument("--modes", default="off,on")
    p.add_argument("--texts", default="A", choices=sorted(TEXTS))
    p.add_argument("--start", default="ends", choices=["ends", "together"])
    p.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--seconds", type=float, default=1e9)
    args = p.parse_args()
    begun, out = time.time(), os.path.abspath(args.out)
    os.makedirs(out, exist_ok=True)
    sessions = [Session(out, args.texts, i, args.tokens) for i in range(8)]
    full_runs(out, sessions, args.jobs)
    for share in map(int, args.share.split(",")):
        shown, base = [], None
        for mode in args.modes.split(","):
            if time.time() - begun > args.seconds:
                continue
            rows, size, seconds = run(out, mode, share, sessions, args)
            base = report(out, mode, share, sessions, rows, size, seconds, base, args)
            shown.append((mode, rows))
        if shown:
            plot(os.path.join(out, "%d.svg" % share), share, shown, sessions)


if __name__ == "__main__":
    main()
