"""
stand_in.py - lets PyPI's torch run on a machine without NVIDIA's libraries.

torch from PyPI links CUDA's libraries (cuBLAS, cuDNN, NCCL, ...), packages of their own, and does not load without them, though nothing
of them is called as long as no tensor lies on a GPU. This builds one library that defines what torch misses, every
function of it a trap, and puts it beside torch's own under each missing name. libcudart is the real one: torch calls it.

    python stand_in.py      (with the interpreter of the environment that torch is in; needs gcc and binutils)
"""
import glob
import importlib.util
import os
import re
import subprocess
import tempfile

NVIDIA = re.compile(r"lib(cu|nccl|nv)")
SYMBOL = re.compile(r"(cu|nccl|nv)")
NAME = "libebb_stand_in.so"


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(files, which):
    lines = output("nm", "-D", which, *files).splitlines()
    return {line.split()[-1].replace("@@", "@") for line in lines if len(line.split()) >= 2}


def main():
    lib = os.path.join(os.path.dirname(importlib.util.find_spec("torch").origin), "lib")
    site = os.path.dirname(os.path.dirname(lib))
    ours = [f for f in glob.glob(lib + "/*.so*") if not os.path.islink(f) and os.path.basename(f) != NAME]
    real = glob.glob(site + "/nvidia/**/*.so*", recursive=True)
    there = {os.path.basename(f) for f in ours + real}
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-dW", *ours)))
    defined = {s.split("@")[0] for s in symbols(ours + real, "--defined-only")}
    missing = {}    # version -> names
    for symbol in symbols(ours, "--undefined-only"):
        name, _, version = symbol.partition("@")
        if SYMBOL.match(name) and name not in defined:
            missing.setdefault(version, set()).add(name)
    with tempfile.TemporaryDirectory() as folder:
        source, script = os.path.join(folder, "stand_in.c"), os.path.join(folder, "stand_in.map")
        with open(source, "w", encoding="ascii") as f:
            for name in sorted(set().union(*missing.values())):
                f.write("void %s(void) { __builtin_trap(); }\n" % name)
        with open(script, "w", encoding="ascii") as f:
            for version in sorted(v for v in missing if v):
                f.write("%s { %s; };\n" % (version, "; ".join(sorted(missing[version]))))
        subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-Wl,--version-script=" + script, "-o", os.path.join(lib, NAME), source],
                       check=True)
    for name in sorted(needed):
        at = os.path.join(lib, name)
        if NVIDIA.match(name) and name not in there and not os.path.islink(at):
            os.symlink(NAME, at)


main()
