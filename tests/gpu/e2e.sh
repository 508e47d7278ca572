#!/usr/bin/env bash
# tests/gpu/e2e.sh [OUT]   The whole system on a machine with an NVIDIA GPU: the daemon with a CUDA pool and a host pool, real clients with
# the real model, the integration tests on the CUDA pool, the host operations with this machine's vector set, the demo. Uses what
# tools/device-bundle.sh collected in build/device, and the model in build/model. Logs go to OUT. AT_ONCE=1 runs the tests side by side.
# Exit: 0 if all went well.
set -u -o pipefail
cd "$(dirname "$0")/../.."
here=$PWD/build/device
out=${1:-$here/logs}
mkdir -p "$out"
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} EBB_BIN=$here/bin EBB_SOURCE=$PWD
export EBB_MODEL=$PWD/build/model/SmolLM2-135M-Instruct.Q4_1.gguf CMOCKA_MESSAGE_OUTPUT=STDOUT
device=${DEVICE:-cuda:0} doc=/usr/share/common-licenses/GPL-3 failed=0
[ -f $doc ] || { mkdir -p /usr/share/common-licenses && cp -n "$here"/docs/* /usr/share/common-licenses/; }
dir=$(mktemp -d) sock=$dir/s

say() { printf '%-5s %s\n' "$1" "$2"; [ "$1" = FAIL ] && failed=1; return 0; }
test_one() {	# NAME DEVICE LIMIT
	local t0=$SECONDS rc log=$out/${1//\//_}-$2.log
	timeout -k 5 "$3" env EBB_TEST_DEVICE="$2" "$here/tests/$1" >"$log" 2>&1 </dev/null
	rc=$?
	[ $rc = 0 ] && say ok "$1 on $2 ($((SECONDS - t0)) s)" || { say FAIL "$1 on $2: exit $rc"; grep -E 'ERROR|error' "$log" | head -5; }
	return $rc
}
# AT_ONCE=1: beside the next ones, until finish. The machine must be large enough that nobody waits too long.
started=()
next() {
	if [ -n "${AT_ONCE:-}" ]; then
		"$@" & started+=($!)
	else
		"$@" || failed=1
	fi
}
finish() {
	local pid
	for pid in "${started[@]}"; do
		wait "$pid" || failed=1
	done
	started=()
}
nll() { timeout 200 "$here/bin/ebb-llama" -m "$EBB_MODEL" --socket "$sock" -f $doc --nll --limit 1024 --json "$@" 2>>"$out/err"; }
# both NAME OPTION...: on the GPU and on the host.
both() {
	local name=$1 gpu
	shift
	nll --pool gpu "$@" >"$out/$name-gpu.json" & gpu=$!
	nll --pool host "$@" >"$out/$name-host.json"
	wait $gpu
	tail "$out/$name-gpu.json" "$out/$name-host.json"
	awk -v a="$(field nll <"$out/$name-gpu.json")" -v b="$(field nll <"$out/$name-host.json")" \
		'BEGIN { d = a - b; exit !(a > 0 && d < 0.005 && d > -0.005) }' && say ok "NLL on the GPU and on the host, $name" ||
		{ say FAIL "NLL on the GPU and on the host, $name"; return 1; }
}
field() { sed -E "s/.*\"$1\": ?([-0-9.e]+).*/\1/"; }

# PARTS: which of nll, integration, unit, demo, memcheck to run.
parts=" ${PARTS-nll integration unit demo memcheck} "
part() { [[ $parts == *" $1 "* ]]; }

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
printf '[daemon]\nsocket = %s\n[pool gpu]\ndevice = %s\nsize = 2G\n[pool host]\ndevice = host\nsize = 1G\n' "$sock" "$device" >"$dir/ini"
if part nll; then
setsid "$here/bin/ebbd" --config "$dir/ini" >"$out/ebbd.log" 2>&1 </dev/null &
daemon=$!
for _ in $(seq 100); do [ -S "$sock" ] && break; sleep 0.1; done
"$here/bin/ebbctl" --socket "$sock" pools || say FAIL "ebbctl pools"

for slots in f32 bf16 q8; do
	next both full-$slots --policy full --slots $slots
done
for policy in h2o streaming; do
	next both $policy-256 --policy $policy --budget 256 --slots f32
done
finish

# Through the daemon with room for all, and without a daemon: the same logits, bit for bit. Twice under eviction: the same again.
nll --pool gpu --policy full --limit 300 --logits "$dir/a" >/dev/null
timeout 200 "$here/bin/ebb-llama" -m "$EBB_MODEL" --local --pool "$device" -f $doc --nll --limit 300 --json --logits "$dir/b" >/dev/null 2>>"$out/err"
cmp -s "$dir/a" "$dir/b" && [ -s "$dir/a" ] && say ok "GPU: daemon and --local give the same logits" || say FAIL "GPU: daemon and --local differ"
nll --pool gpu --policy h2o --budget 128 --limit 600 --logits "$dir/a" >/dev/null
pids=()
for i in 1 2 3; do
	timeout 300 "$here/bin/ebb-llama" -m "$EBB_MODEL" --socket "$sock" --pool gpu -f /usr/share/common-licenses/GPL-2 --limit 1500 -n 300 \
		--batch 4 --batch-offset 200 --ignore-eos --json >"$out/gen$i.json" 2>>"$out/err" & pids+=($!)
done
sleep 1
"$here/bin/ebbctl" --socket "$sock" sessions
nll --pool gpu --policy h2o --budget 128 --limit 600 --logits "$dir/b" >/dev/null
cmp -s "$dir/a" "$dir/b" && [ -s "$dir/a" ] && say ok "GPU: bit-identical under eviction while three clients decode" || say FAIL "GPU: differs under load"
wait "${pids[@]}" || say FAIL "a client failed"
cat "$out"/gen?.json | cut -c1-300
for _ in $(seq 50); do
	"$here/bin/ebbctl" --socket "$sock" --json status >"$out/status.json"
	grep -qE '"sessions": ?0' "$out/status.json" && break
	sleep 0.1
done
grep -oE '"used_bytes": ?[0-9]+' "$out/status.json" | grep -qv ': *0$' && say FAIL "memory is left behind" || say ok "nothing left in the pools"
kill $daemon; wait $daemon 2>/dev/null
fi

part integration && for t in ${INTEGRATION-determinism reload pressure daemon_death hostile kill}; do
	next test_one integration/test_$t "$device" 240
done
part unit && for t in ${UNIT-append attend observe select memory}; do
	next test_one unit/gpu/test_$t host 200
	next test_one unit/gpu/test_$t "$device" 200
done
finish
if part demo; then
	EBB_DEMO_DEVICE=$device timeout 200 python3 -B tools/demo.py >"$out/demo.log" 2>&1 </dev/null
	rc=$?
	tail -25 "$out/demo.log"
	[ $rc = 0 ] && say ok demo || say FAIL "demo: exit $rc"
fi
if part memcheck && command -v compute-sanitizer >/dev/null; then
	rm -f "$sock"
	timeout 200 compute-sanitizer --tool memcheck --error-exitcode 9 --print-limit 10 "$here/bin/ebbd" --config "$dir/ini" >"$out/memcheck-ebbd.log" 2>&1 </dev/null &
	daemon=$!
	for _ in $(seq 300); do [ -S "$sock" ] && break; sleep 0.1; done
	timeout 150 compute-sanitizer --tool memcheck --error-exitcode 9 "$here/bin/ebb-llama" -m "$EBB_MODEL" --socket "$sock" --pool gpu -f $doc --nll \
		--limit 400 --policy h2o --budget 128 --json >"$out/memcheck-llama.log" 2>&1 && say ok "memcheck of ebb-llama" || say FAIL "memcheck of ebb-llama"
	pkill -TERM -f "^$here/bin/ebbd --config $dir/ini"	# not the sanitizer, which may end by the signal, too: its verdict is in its log
	wait $daemon
	grep -q 'ERROR SUMMARY: 0 errors' "$out/memcheck-ebbd.log" && say ok "memcheck of ebbd" || say FAIL "memcheck of ebbd"
	grep -h 'ERROR SUMMARY' "$out"/memcheck-*.log
fi
rm -rf "$dir"
[ $failed = 0 ] && echo "all passed" || { echo FAILED; tail -5 "$out/err"; }
exit $failed
