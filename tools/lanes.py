#!/usr/bin/env python3
"""`make lanes`: measures share/smollm2-135M.lanes anew, with an ebbd of its own: ebb-llama --calibrate on six texts.

Two texts are made here with a fixed seed, because prose alone does not show which lanes retrieve: pass keys said and asked for in a text of
filler, and records with notes that come back to earlier ones. The others every Debian machine has with perl and python: code, an essay,
a licence, an answer to questions. None of them is among the documents of `make quality`.

Environment: OUT (share/smollm2-135M.lanes), TEXTS (how many of the texts: 6), EBB_BIN, EBB_MODEL. Stop it and start it again as you like:
what is measured is in OUT.part.
"""
import argparse, glob, os, random, signal, subprocess, sys, tempfile, time

BIN = os.environ.get("EBB_BIN", "build/bin")
MODEL = os.environ.get("EBB_MODEL", "build/model/SmolLM2-135M-Instruct.Q4_1.gguf")
OUT = os.environ.get("OUT") or "share/smollm2-135M.lanes"
FILLER = "/usr/share/common-licenses/Artistic"
OTHERS = ["/usr/lib/python3*/tempfile.py", "/usr/share/perl/5.*/TAP/Harness/Beyond.pod", None, "/usr/share/common-licenses/GFDL-1.3",
          "/usr/share/perl/5.*/IO/Compress/FAQ.pod"]            # None: the records
FIRST = ("Anna Boris Clara David Elena Frank Greta Henry Irene Jonas Karen Louis Maria Nadia Oscar Paula Quinn Rosa Simon Tanja Urban Vera "
         "Walter Xenia Yusuf Zora").split()
LAST = ("Adler Baker Costa Duval Engel Fischer Garcia Huber Ito Jensen Keller Lopez Meyer Novak Olsen Petrov Quist Rossi Sato Tanaka Ulrich "
        "Vogel Weber Young Zimmer").split()
CITY = "Berlin Lisbon Oslo Madrid Prague Vienna Dublin Athens Warsaw Zurich Helsinki Riga Tallinn Vilnius Sofia".split()
THINGS = "blue river stone garden window silver mountain paper candle harbour orange bridge forest lantern copper".split()


def records(r):
    people, out = [], []
    for i in range(40):
        n, c, k, t = (r.choice(FIRST) + " " + r.choice(LAST), r.choice(CITY), r.randint(10000, 99999),
                      "%03d-%04d" % (r.randint(100, 999), r.randint(0, 9999)))
        people.append((n, c, k, t))
        out.append(f"Record {i + 1}: name {n}; city {c}; account {k}; telephone {t}.\n")
        if i >= 4 and i % 2:
            n, c, k, t = r.choice(people[:-2])
            out.append(r.choice([f"Note: {n} lives in {c} and has the account {k}.\n", f"Note: the telephone of {n} in {c} is {t}.\n",
                                 f"Note: the account {k} belongs to {n}, telephone {t}.\n"]))
    return "".join(out)


def passkeys(r, filler):
    out, keys = [], {}
    for i in range(60):
        thing = THINGS[i % len(THINGS)]
        if thing not in keys:
            keys[thing] = r.randint(10000, 99999)
            out.append(f" The pass key of the {thing} is {keys[thing]}. Remember it: {keys[thing]} is the pass key of the {thing}.")
        out.append(" " + filler[i % len(filler)].replace("\n", " ").strip()[:160] + ".")
        if i > 6 and i % 2:
            asked = r.choice(list(keys)[:-1] or list(keys))
            out.append(f" What is the pass key of the {asked}? The pass key of the {asked} is {keys[asked]}.")
    return "".join(out)


def texts(folder):
    r = random.Random(7)
    made = {"records": records(r) + records(r)}
    filler = open(FILLER).read().split(". ")
    made["passkeys"] = passkeys(r, filler).strip() + passkeys(r, filler)
    for name, text in made.items():
        with open(os.path.join(folder, name + ".txt"), "w") as f:
            f.write(text)
    out = [os.path.join(folder, "passkeys.txt")]
    for pattern in OTHERS:
        found = sorted(f for f in glob.glob(pattern) if os.path.isfile(f)) if pattern else [os.path.join(folder, "records.txt")]
        if not found:
            sys.exit("lanes: this machine has no " + pattern)
        out.append(found[0])
    return out[:int(os.environ.get("TEXTS") or 6)]


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(prefix="ebbd-lanes-") as work:
        sock, ini = os.path.join(work, "sock"), os.path.join(work, "ebbd.ini")
        with open(ini, "w") as f:
            f.write("[daemon]\nsocket = %s\nlog_level = warning\ndrain = 0s\n[pool host]\ndevice = host\nsize = 512M\n" % sock)
        daemon = subprocess.Popen([os.path.join(BIN, "ebbd"), "--config", ini], stdin=subprocess.DEVNULL)
        try:
            for _ in range(200):
                if os.path.exists(sock) or daemon.poll() is not None:
                    break
                time.sleep(0.05)
            code = subprocess.call([os.path.join(BIN, "ebb-llama"), "-m", MODEL, "--socket", sock, "--calibrate", "-o", OUT, "--progress",
                                    "-t", str(min(os.cpu_count() or 1, 8))] + texts(work))
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(timeout=30)
    sys.exit(code)


main()
