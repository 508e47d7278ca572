#!/usr/bin/env python3
"""The demo of `make demo`: several processes decode a real model out of one pool that is far too small for their full caches.

Starts an ebbd of its own (temporary folder, own socket), three ebb-llama processes with several sequences each and a fourth that is
killed half way, shows what they do, and sums up. Uses nothing but the programs, ebbctl's JSON, and the files that Debian and
Ubuntu have in /usr/share/common-licenses. Environment: EBB_BIN, EBB_MODEL (set by make), EBB_DEMO_DEVICE (host, cuda:0; default: a GPU
if there is one), EBB_DEMO_QUICK=1 (a fifth of the work). Exit code: 0 if everything went as it should.
"""
import argparse, json, os, shutil, signal, subprocess, sys, tempfile, time

BIN = os.environ.get("EBB_BIN", "build/bin")
MODEL = os.environ.get("EBB_MODEL", "build/model/SmolLM2-135M-Instruct.Q4_1.gguf")
DOCS = "/usr/share/common-licenses/"
QUICK = os.environ.get("EBB_DEMO_QUICK") == "1"
PROMPT, DECODE, OFFSET, NLL_TOKENS = (300, 24, 100, 256) if QUICK else (900, 80, 300, 1024)
POOL_MIB = 24 if QUICK else 72
SLOT_BYTES = 30 * 3 * 64 * 2 * 2            # SmolLM2-135M in bf16: layers, KV heads, head_dim, K and V
LANES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "share/smollm2-135M.lanes")
BUDGET = "25%"
TTY = sys.stdout.isatty()
MIB = 1 << 20


class Client:
    def __init__(self, name, doc, batch):
        self.name, self.doc, self.batch = name, doc, batch
        self.status_file = os.path.join(work, name + ".status")
        self.out = open(os.path.join(work, name + ".out"), "w+")
        self.err = open(os.path.join(work, name + ".err"), "w+")
        self.last = {"tokens": 0, "live_slots": 0, "full_slots": 0, "evicted": 0, "phase": "start"}
        self.used, self.killed, self.end = 0, False, None
        self.total = batch * (PROMPT + DECODE)
        self.process = subprocess.Popen(
            [os.path.join(BIN, "ebb-llama"), "-m", MODEL, "-f", DOCS + doc, "--limit", str(PROMPT), "-n", str(DECODE),
             "--batch", str(batch), "--batch-offset", str(OFFSET), "--ignore-eos", "--json", "--status", self.status_file,
             "--wait", "60000", "--socket", sock], stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.err)

    def look(self):
        try:
            with open(self.status_file) as f:
                self.last.update(json.loads(f.read()))
        except (OSError, ValueError):
            pass                            # not there yet, or just being written
        if self.end is None and self.process.poll() is not None:
            self.end = self.process.returncode

    def state(self):
        if self.killed:
            return "killed"
        if self.end is not None:
            return "done" if self.end == 0 else "exit %d" % self.end
        return self.last["phase"]

    def result(self):
        self.out.seek(0)
        return json.loads(self.out.read())


def ask(what):
    out = subprocess.run([os.path.join(BIN, "ebbctl"), "--socket", sock, "--json", what], capture_output=True, timeout=30)
    return json.loads(out.stdout) if out.returncode == 0 else None


def start_daemon(device):
    with open(os.path.join(work, "ebbd.ini"), "w") as f:
        f.write("[daemon]\nsocket = %s\nlog_level = notice\ndrain = 1s\n\n[pool demo]\ndevice = %s\nsize = %dM\n\n"
                "[model smollm2-135M]\nlanes = %s\n\n"
                "[session]\npolicy = ebb\nsplit = measured\nbudget = %s\nslots = bf16\n" % (sock, device, POOL_MIB, LANES, BUDGET))
    log = open(os.path.join(work, "ebbd.log"), "w+")
    daemon = subprocess.Popen([os.path.join(BIN, "ebbd"), "--config", f.name], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    for _ in range(600):
        if daemon.poll() is not None:
            log.seek(0)
            return None, log.read()
        if os.path.exists(sock) and ask("status"):
            return daemon, ""
        time.sleep(0.05)
    daemon.kill()
    return None, "it does not answer"


def devices():
    chosen = os.environ.get("EBB_DEMO_DEVICE")
    if chosen:
        return [chosen]
    gpu = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    return ["cuda:0", "host"] if gpu else ["host"]


def bar(part, whole, width):
    n = min(width, round(width * part / whole)) if whole else 0
    return "#" * n + "." * (width - n)


def show(clients, status, lines_before, t0):
    pool = status["pools"][0]
    rows = ["  %5.1f s   pool %s  [%s]  %5.1f of %d MiB" % (time.time() - t0, pool["device"], bar(pool["used_bytes"], pool["size_bytes"], 30),
            pool["used_bytes"] / MIB, pool["size_bytes"] // MIB),
            "  %-8s %-11s %-8s %8s  %-31s %9s %9s" % ("process", "document", "state", "tokens", "live slots of a full cache's", "evicted", "pool")]
    for c in clients:
        live, full = c.last["live_slots"], c.last["full_slots"]
        if c.killed:
            live = 0
        rows.append("  %-8s %-11s %-8s %8d  [%s] %8s %3d%% %9d %5.1f MiB" % (c.name, c.doc, c.state(), c.last["tokens"], bar(live, full, 12),
                    "%.1fM" % (live / 1e6) if live >= 1e6 else "%.0fk" % (live / 1e3), 100 * live // full if full else 0, c.last["evicted"], c.used / MIB))
    if TTY:
        sys.stdout.write("\x1b[%dA" % lines_before if lines_before else "")
        sys.stdout.write("".join("\x1b[2K" + r[:shutil.get_terminal_size().columns - 1] + "\n" for r in rows))
    else:
        print("\n".join(rows) + "\n")
    sys.stdout.flush()
    return len(rows)


def kill_half_way(client):
    before = ask("status")
    client.process.send_signal(signal.SIGKILL)
    t = time.time()
    client.process.wait()
    client.killed, client.end = True, -9
    while True:
        after = ask("status")
        if after["sessions"] <= before["sessions"] - client.batch or time.time() - t > 30:
            break
    note = ("SIGKILL to %s at %d of %d tokens: sessions %d -> %d; its %.1f MiB are back in the pool (asked %.0f ms later)" %
            (client.name, client.last["tokens"], client.total, before["sessions"], after["sessions"], client.used / MIB, 1e3 * (time.time() - t)))
    client.used = 0
    return note, after["sessions"] == before["sessions"] - client.batch


def run_clients(t0):
    victim = Client("victim", "LGPL-2.1", 2)
    clients = [Client("llama-1", "GPL-3", 3), Client("llama-2", "Apache-2.0", 3), Client("llama-3", "GFDL-1.3", 3), victim]
    lines, next_print, notes, ok, peak = 0, 0.0, [], True, 0
    while any(c.end is None for c in clients):
        for c in clients:
            c.look()
        status, rows = ask("status"), ask("clients")
        if status is None:
            raise SystemExit("ebbd does not answer any more; its log: " + work)
        for c in clients:
            c.used = sum(r["used_bytes"] for r in (rows or []) if r["pid"] == c.process.pid)
        peak = max(peak, status["pools"][0]["used_bytes"])
        if TTY or time.time() >= next_print:
            lines, next_print = show(clients, status, lines, t0), time.time() + 5
        if victim.end is None and victim.last["tokens"] * 2 >= victim.total:
            note, fine = kill_half_way(victim)
            notes.append(note)
            ok, lines = ok and fine, 0
            print("\n  " + note + "\n")
        time.sleep(0.3)
    for c in clients:
        c.look()
    show(clients, ask("status"), lines, t0)
    return clients, victim, ok, peak


def nll():
    base = [os.path.join(BIN, "ebb-llama"), "-m", MODEL, "-f", DOCS + "GPL-3", "--nll", "--limit", str(NLL_TOKENS)]
    runs = [subprocess.Popen(base + more, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for more in (["--local"], ["--socket", sock])]
    outs = [r.communicate() for r in runs]
    for r, o in zip(runs, outs):
        if r.returncode:
            raise SystemExit("ebb-llama --nll: " + o[1].decode())
    return [json.loads(o[0]) for o in outs]


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    t0 = time.time()
    for device in devices():
        daemon, why = start_daemon(device)
        if daemon:
            break
    if not daemon:
        raise SystemExit("ebbd did not start: " + why)
    full = 11 * (PROMPT + DECODE) * SLOT_BYTES
    print("\nebbd owns one pool of %d MiB on %s. Four processes with 11 sequences of %d tokens each want it: as full caches that is %d MiB."
          "\nPolicy ebb, split measured (each lane as much as it is worth), budget %s of the tokens so far.\n" % (POOL_MIB, device, PROMPT + DECODE, full // MIB, BUDGET))
    try:
        clients, victim, ok, peak = run_clients(t0)
        for c in clients:
            if c is not victim and c.end != 0:
                c.err.seek(0)
                raise SystemExit("%s failed: %s" % (c.name, c.err.read()))
        decode_s = time.time() - t0
        status = ask("status")
        ok = ok and status["pools"][0]["used_bytes"] == 0 and status["sessions"] == 0
        print("\n  one document both ways: GPL-3, %d tokens, full cache in ebb-llama's own memory and %s of it in the pool ..." % (NLL_TOKENS, BUDGET))
        whole, quarter = nll()
    finally:
        daemon.send_signal(signal.SIGTERM)
        code = daemon.wait(timeout=30)
    results = [c.result() for c in clients if c is not victim]
    tokens = sum(c.last["tokens"] for c in clients)
    text = " ".join(results[0]["sequences"][0]["text"].split())
    print("""
  summary
    memory       full caches %d MiB; the pool had %d MiB, at most %.1f MiB of it in use
    tokens       %d in %.0f s: %.0f tokens/s over all processes, prompts included
    evicted      %d slots, %d windows, %d compactions; %d sessions still open, %d bytes still used
    quality      NLL of GPL-3 (%d tokens): full cache %.3f, %s budget %.3f nats a token (%d of %d slots live at its end)
    text         "... %s ..."
    total        %.0f s; ebbd ended with %d
""" % (full // MIB, POOL_MIB, peak / MIB, tokens, decode_s, tokens / decode_s, status["slots_evicted_total"], status["windows_total"],
       status["compactions_total"], status["sessions"], status["pools"][0]["used_bytes"], NLL_TOKENS, whole["nll"], BUDGET, quarter["nll"],
       quarter["live_slots"], quarter["full_slots"], text[:90], time.time() - t0, code))
    if not ok or code:
        raise SystemExit("something did not go as it should: see above")


if __name__ == "__main__":
    for program in ("ebbd", "ebbctl", "ebb-llama"):
        if not os.access(os.path.join(BIN, program), os.X_OK):
            raise SystemExit("%s is not built; run: make" % os.path.join(BIN, program))
    work = tempfile.mkdtemp(prefix="ebb-demo-")
    sock = os.path.join(work, "sock")
    done = False
    try:
        main()
        done = True
    finally:
        if done:
            shutil.rmtree(work, ignore_errors=True)
        else:
            print("logs are in " + work, file=sys.stderr)
