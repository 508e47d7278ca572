#!/usr/bin/env python3
"""`make quality`: what each eviction policy costs, measured through the real daemon on a real model.

Runs a matrix of cells, policies x splits x budgets x documents, each one an `ebb-llama --nll --against-full` on an ebbd of this script's
own, and appends a row per cell to build/quality/results.csv. Cells that are there already are not run again: kill it and start it again.
Policies and splits are those that `ebbctl policies --json` lists. tools/quality_report.py makes the tables and plots.

A budget of 25 % is a count here: a quarter of the document's tokens (512 slots a lane for 2048 tokens), the window's 32 included; the first
so many tokens equal the full run and are left out of kl, top1 and mass_kept.

Environment:
  QUALITY   quick (default: about ten minutes), ranks, splits, full (everything with everything), levers (rank, split, precision and
            window, each alone and all together, at equal slots and at equal bytes), reference (the rules that were measured by another
            implementation, at its budgets), or several of them with commas
  TEXTS     documents to take instead of the default ones, with spaces: FILE or KIND=FILE
  TOKENS    tokens of each document (quick: 1024, else 2048)           BUDGETS   percent, with commas (quick: 12,25, else 25,12,6,50)
  POLICIES  instead of all: NAME[:key=value,...][+setting=value...] with spaces, e.g. "h2o h2o+recent=32 belady"
  SPLITS    instead of all: names with spaces                          JOBS      cells at a time (number of cores, at most 2)
  OUT       the folder (build/quality)                                 MINUTES   stop starting cells after so many
  LANES     the lane table (share/smollm2-135M.lanes)                  POOL      size of the daemon's pool (2G)
  DEVICE    of the pool (host)
"""
import argparse, csv, ctypes, hashlib, io, json, os, queue, re, shutil, signal, subprocess, sys, tempfile, threading, time

BIN = os.environ.get("EBB_BIN", "build/bin")
MODEL = os.environ.get("EBB_MODEL", "build/model/SmolLM2-135M-Instruct.Q4_1.gguf")
OUT = os.environ.get("OUT", "build/quality")
# What each lane of the model is worth, for split=measured.
LANES = os.environ.get("LANES") or os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "share/smollm2-135M.lanes")
WINDOW = 32
BINS = 64                                   # of the heat map, over the document's length
FIELDS = ["document", "kind", "text", "tokens", "percent", "slots", "policy", "split", "settings", "nll", "nll_full", "nll_tail",
          "nll_full_tail", "kl", "top1", "mass_kept", "kl_all", "live_slots", "evicted", "seconds", "refused"]
KEY = ["text", "tokens", "slots", "policy", "split", "settings"]
MEASURED = ["nll", "nll_full", "nll_tail", "nll_full_tail", "kl", "top1", "mass_kept", "kl_all", "live_slots", "evicted"]

PERL = "/usr/share/perl/*/"
# What every Debian has, of different kinds; the first that exists of each.
DOCUMENTS = [
    ("legal", ["/usr/share/common-licenses/GPL-3"]),
    ("list", ["/usr/lib/python3*/html/entities.py", "/etc/services"]),
    ("essay", [PERL + "Locale/Maketext/TPJ13.pod", "/usr/share/common-licenses/Artistic"]),
    ("code", ["/usr/lib/python3*/argparse.py"]),
    ("howto", [PERL + "Test/Tutorial.pod", "/usr/lib/python3*/pydoc.py"]),
    ("spec", [PERL + "CPAN/Meta/Spec.pm", "/usr/share/common-licenses/MPL-2.0"]),
]
# Rank, split, window and how K and V are stored: each alone beside the best published-style rule (the first), and together; with as many slots
# as it or in as many bytes.
LEVERS = [("h2o:age=1", "uniform", "bf16", "32", "slots"), ("ebb", "uniform", "bf16", "32", "slots"),
          ("h2o:age=1", "measured", "bf16", "32", "slots"), ("h2o:age=1", "uniform", "bf16", "auto", "slots"),
          ("h2o:age=1", "uniform", "q8", "32", "slots"), ("ebb", "measured", "bf16", "32", "slots"),
          ("ebb", "measured", "bf16", "auto", "slots"), ("ebb", "measured", "q8", "auto", "slots"),
          ("h2o:age=1", "uniform", "q8", "32", "bytes"), ("ebb", "measured", "q8", "auto", "bytes")]
SLOT_BYTES = {"bf16": 256, "q8": 136}       # K and V of a slot, head_dim 64
# The other implementation's budget is what is left after each decision; here the window's slots are part of it.
REFERENCE_SLOTS = 256 + WINDOW


def fail(text):
    sys.exit("quality: " + text)


def choice(name, default):
    return [x for x in re.split(r"[\s,]+", os.environ.get(name, "") or default) if x]


# --- what there is to run ----------------------------------------------------------------------------------------------------------

def documents():
    import glob
    texts = os.environ.get("TEXTS", "").split()
    if texts:
        found = [(os.path.basename(t), t.partition("=")[0] if "=" in t else "text", t.partition("=")[2] or t) for t in texts]
    else:
        found = []
        for kind, candidates in DOCUMENTS:
            files = [f for c in candidates for f in sorted(glob.glob(c)) if os.path.isfile(f)]
            if files:
                found.append((os.path.basename(files[0]), kind, files[0]))
            else:
                print("quality: no document of kind %s on this machine: none of %s" % (kind, " ".join(candidates)), file=sys.stderr)
    out = []
    for name, kind, path in found:
        try:
            digest = hashlib.sha256(open(path, "rb").read()).hexdigest()[:8]
        except OSError as e:
            fail("%s: %s" % (path, e.strerror))
        out.append({"document": name, "kind": kind, "path": path, "text": digest})
    return out


def policies(sock):
    out = subprocess.run([os.path.join(BIN, "ebbctl"), "--socket", sock, "--json", "policies"], capture_output=True, timeout=30)
    if out.returncode:
        fail("ebbctl policies: " + out.stderr.decode().strip())
    return json.loads(out.stdout)


def default_policy(sock):
    out = subprocess.run([os.path.join(BIN, "ebbctl"), "--socket", sock, "--json", "config"], capture_output=True, timeout=30)
    return next(k["value"] for k in json.loads(out.stdout) if k["section"] == "session" and k["key"] == "policy")


def cell(doc, tokens, percent, slots, policy, split="uniform", settings=""):
    return dict(doc, tokens=tokens, percent=percent, slots=slots, policy=policy, split=split, settings=settings)


def auto_window(slots):
    """What the daemon makes of `window = auto` (evict/plan.c)."""
    return min(max(slots // 16, 8), WINDOW)


def lever_cell(doc, tokens, percent, rank, split, slots, window, equal):
    n = tokens * percent // 100
    if equal == "bytes":
        n = tokens * percent * SLOT_BYTES["bf16"] // SLOT_BYTES[slots] // 100
    auto = " window=auto" if window == "auto" and auto_window(n) != WINDOW else ""
    return cell(doc, tokens, percent, n, rank, split, "slots=" + slots + auto)


def matrix(name, docs, listed, base):
    """The cells of one matrix, documents outermost so that what is done can be compared early."""
    ranks = [p["name"] for p in listed if p["kind"] == "rank" and p["name"] != "full"] + ["h2o:age=1", "belady"]
    splits = [p["name"] for p in listed if p["kind"] == "split" and p["name"] != "uniform"]
    merges = [p["name"] for p in listed if p["kind"] == "merge" and p["name"] != "none"]
    ranks = os.environ.get("POLICIES", "").split() or ranks
    splits = os.environ.get("SPLITS", "").split() or splits
    quick = name == "quick"
    tokens = [int(t) for t in choice("TOKENS", "1024" if quick else "2048")]
    percents = [int(b) for b in choice("BUDGETS", "12,25" if quick else "25,12,6,50")]
    if quick and not os.environ.get("TEXTS"):
        docs = docs[:3]
    out = []
    if name == "levers":
        return [lever_cell(doc, t, percent, *lever) for t in tokens for percent in percents for lever in LEVERS for doc in docs]
    for t in tokens:
        for percent in percents:
            for doc in docs:
                c = lambda rank, split="uniform", extra="": cell(doc, t, percent, t * percent // 100, rank.partition("+")[0], split,
                                                                 " ".join(filter(None, [rank.partition("+")[2].replace("+", " "), extra])))
                out += [c(r) for r in ranks]
                if name in ("quick", "splits") and percent == percents[-1] or name == "splits":
                    out += [c(base, s) for s in splits] + [c(base, "uniform", "merge=" + m) for m in merges]
                if name == "full":
                    out += [c(r, s) for r in ranks if r != "belady" for s in splits]
                    out += [c(r, "uniform", "merge=" + m) for r in ranks if r != "belady" for m in merges]
    return out


def reference(docs):
    """What other implementations measured: on the same document, and their rules at their budget on our documents."""
    def rows_of(name):
        with open(os.path.join(os.path.dirname(__file__), "../docs/quality", name)) as f:
            return [r for r in csv.DictReader(line for line in f if line[0] != "#") if r["policy"]]
    same = [cell(doc, int(r["tokens"]), "", int(r["slots"]), r["policy"], "uniform", r["settings"])
            for r in rows_of("same-document.csv") for doc in docs if doc["text"] == r["text"]]
    rows = rows_of("reference.csv")
    return same + [cell(doc, 2048, "", REFERENCE_SLOTS, r["policy"], "uniform", r["settings"]) for r in rows for doc in docs if r.get(doc["kind"])]


# --- results -----------------------------------------------------------------------------------------------------------------------

def key_of(row):
    return tuple(str(row[k]) for k in KEY)


class Results:
    """results.csv: rows are appended whole; what a killed run left of one is cut off."""

    def __init__(self, path):
        self.path, self.rows, self.lock = path, {}, threading.Lock()
        text = open(path, newline="").read() if os.path.exists(path) else ""
        whole = text[:text.rfind("\n") + 1]
        rows = list(csv.reader(io.StringIO(whole)))
        if rows and rows[0] != FIELDS:
            fail("%s has other columns than this version writes; move it away" % path)
        for row in rows[1:]:
            if len(row) == len(FIELDS):
                row = dict(zip(FIELDS, row))
                self.rows[key_of(row)] = row
        if whole != text or not rows:
            with open(path, "w", newline="") as f:
                f.write(whole)
                if not rows:
                    csv.writer(f, lineterminator="\n").writerow(FIELDS)

    def add(self, row):
        with self.lock:
            self.rows[key_of(row)] = row
            with open(self.path, "a", newline="") as f:
                csv.DictWriter(f, FIELDS, lineterminator="\n").writerow({k: row.get(k, "") for k in FIELDS})
                f.flush()
                os.fsync(f.fileno())


# --- running -----------------------------------------------------------------------------------------------------------------------

def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a driver that is killed leaves no daemon


def start_daemon(work):
    sock, ini = os.path.join(work, "ebbd.sock"), os.path.join(work, "ebbd.ini")
    with open(ini, "w") as f:
        f.write("[daemon]\nsocket = %s\ndrain = 0s\n[model smollm2-135M]\nlanes = %s\n"
                "[pool p]\ndevice = %s\nsize = %s\n" % (sock, LANES, os.environ.get("DEVICE") or "host", os.environ.get("POOL") or "2G"))
    log = open(os.path.join(work, "ebbd.log"), "w")
    daemon = subprocess.Popen([os.path.join(BIN, "ebbd"), "--config", ini], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                              preexec_fn=die_with_parent)
    for _ in range(200):
        if subprocess.run([os.path.join(BIN, "ebbctl"), "--socket", sock, "status"], capture_output=True).returncode == 0:
            return daemon, sock
        if daemon.poll() is not None:
            break
        time.sleep(0.05)
    fail("ebbd does not start:\n" + open(os.path.join(work, "ebbd.log")).read())


def kept_bins(path, tokens):
    """Per layer, the share of the kept slots (mean of its lanes) in each of BINS parts of the document."""
    with open(path) as f:
        kept = json.load(f)
    out = []
    for layer in range(kept["layers"]):
        lanes = kept["kept"][layer * kept["kv_heads"]:(layer + 1) * kept["kv_heads"]]
        counts = [0] * BINS
        for lane in lanes:
            for pos in lane:
                counts[pos * BINS // tokens] += 1
        out.append([round(c * BINS / (tokens * len(lanes)), 4) for c in counts])
    return out


class Runner:
    def __init__(self, cells, results, daemon, sock, jobs):
        self.results, self.daemon, self.sock, self.jobs = results, daemon, sock, jobs
        self.todo, self.running, self.stop = queue.Queue(), {}, threading.Event()
        self.full_lock = {c["text"] + str(c["tokens"]): threading.Lock() for c in cells}
        self.total, self.done, self.left_cost, self.spent_cost, self.spent_s = len(cells), 0, 0.0, 0.0, 0.0
        self.failed = 0
        for c in cells:
            self.todo.put(c)
            self.left_cost += self.cost(c)
        self.started, self.lock = time.time(), threading.Lock()
        self.deadline = time.time() + 60 * float(os.environ.get("MINUTES") or 1e9)

    @staticmethod
    def cost(c):
        """Relative: tokens, and the attention over what they see."""
        return c["tokens"] * (1.0 + c["slots"] / 2000.0)

    def full_run(self, c):
        return os.path.join(OUT, "full", "%s-%d" % (c["text"], c["tokens"]))

    def command(self, c, kept):
        args = [os.path.join(BIN, "ebb-llama"), "-m", MODEL, "--socket", self.sock, "-f", c["path"], "--nll", "--against-full",
                "--limit", str(c["tokens"]), "--budget", str(c["slots"]), "--split", c["split"], "--kept", kept]
        if "window=auto" in c["settings"]:       # a full run is of steps of one length, and few cells have this one's: none is kept
            args += ["--chunk", str(auto_window(c["slots"]))]
        else:
            args += ["--full-run", self.full_run(c), "--window", str(WINDOW)]
        args += ["--full-slots", "f32"] if "slots=" in c["settings"] else ["--slots", "f32"]
        args += ["--belady", "--recent", str(WINDOW)] if c["policy"] == "belady" else ["--policy", c["policy"]]
        for s in c["settings"].split():
            args += ["--set", s]
        return args

    def run_cell(self, c):
        kept = os.path.join(OUT, "kept.%d" % threading.get_ident())
        lock, command = self.full_lock[c["text"] + str(c["tokens"])], self.command(c, kept)
        makes = "--full-run" in command and not os.path.exists(self.full_run(c))     # one does, the others wait for it
        with lock if makes else threading.Lock():
            t0 = time.time()
            p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            with self.lock:
                self.running[threading.get_ident()] = p
            out, err = p.communicate()
            seconds = time.time() - t0
        if self.stop.is_set():
            return None
        row = {k: c[k] for k in FIELDS if k in c}
        row["seconds"] = "%.1f" % seconds
        if p.returncode == 0:
            said = json.loads(out)
            row.update({k: "" if said[k] is None else "%.7g" % said[k] for k in MEASURED})
            if c["settings"] == "" and c["split"] == "uniform":
                bins = kept_bins(kept, c["tokens"])
                with self.lock, open(os.path.join(OUT, "kept.jsonl"), "a") as f:
                    f.write(json.dumps({k: c[k] for k in ["document", "text", "tokens", "slots", "policy"]} | {"bins": bins}) + "\n")
        else:
            row["refused"] = (err.decode(errors="replace").strip().splitlines() or ["exit status %d" % p.returncode])[-1]
        if os.path.exists(kept):
            os.remove(kept)
        return row

    def say(self, c, row):
        left = self.left_cost * self.spent_s / self.spent_cost / self.jobs if self.spent_cost else 0
        what = "%s %s%s %s%s" % (c["document"], c["policy"], " " + c["settings"] if c["settings"] else "", c["slots"],
                                 " split=" + c["split"] if c["split"] != "uniform" else "")
        said = "kl %s top1 %s" % (row["kl"], row["top1"]) if row.get("kl") else row.get("refused") or "nothing after the budget"
        print("%4d/%d  %-56s %-40s %5ss  about %d min left" % (self.done, self.total, what, said, row["seconds"], -(-left // 60)),
              flush=True)

    def work(self):
        while not self.stop.is_set() and time.time() < self.deadline:
            try:
                c = self.todo.get_nowait()
            except queue.Empty:
                return
            row = self.run_cell(c)
            if row is None:
                return
            with self.lock:
                self.done += 1
                self.spent_s += float(row["seconds"])
                self.spent_cost += self.cost(c)
                self.left_cost -= self.cost(c)
            # What the daemon refuses is an answer (a split that wants a table, a policy that wants tags); anything else is none.
            refused = row.get("refused", "")
            if refused and (not refused.startswith("ebb-llama: sequence 0:") or "no room" in refused):
                with self.lock:
                    self.failed += 1
                print("failed, and will be run again next time: %s: %s" % (" ".join(self.command(c, "-")[3:]), refused), flush=True)
                if self.daemon.poll() is not None:
                    fail("ebbd has ended with %d" % self.daemon.returncode)
            else:
                self.results.add(row)
                self.say(c, row)

    def interrupt(self, *_):
        self.stop.set()
        for p in list(self.running.values()):
            p.terminate()

    def run(self):
        signal.signal(signal.SIGINT, self.interrupt)
        signal.signal(signal.SIGTERM, self.interrupt)
        threads = [threading.Thread(target=self.work) for _ in range(self.jobs)]
        for t in threads:
            t.start()
        for t in threads:
            while t.is_alive():
                t.join(0.2)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    names = choice("QUALITY", "quick")
    known = ["quick", "ranks", "splits", "full", "levers", "reference"]
    if [n for n in names if n not in known]:
        fail("QUALITY=%s: known are %s" % (",".join(names), ", ".join(known)))
    os.makedirs(os.path.join(OUT, "full"), exist_ok=True)
    work = tempfile.mkdtemp(prefix="ebbd-quality-")
    daemon, sock = start_daemon(work)
    try:
        docs, listed, base = documents(), policies(sock), default_policy(sock)
        cells = []
        for n in names:
            cells += reference(docs) if n == "reference" else matrix(n, docs, listed, base)
        results = Results(os.path.join(OUT, "results.csv"))
        cells = list({key_of(c): c for c in cells}.values())
        new = [c for c in cells if key_of(c) not in results.rows]
        jobs = int(os.environ.get("JOBS") or min(2, os.cpu_count() or 1))
        print("quality: %d cells, %d of them done before; %d at a time, results in %s/results.csv" %
              (len(cells), len(cells) - len(new), jobs, OUT), flush=True)
        runner = Runner(new, results, daemon, sock, jobs)
        runner.run()
    finally:
        daemon.terminate()
        daemon.wait()
        shutil.rmtree(work, ignore_errors=True)
    left = len(new) - runner.done + runner.failed
    if runner.stop.is_set() or left:
        print("quality: %d cells are left; run the same again to go on" % left)
    return 130 if runner.stop.is_set() else 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())
