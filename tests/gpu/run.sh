#!/usr/bin/env bash
# tests/gpu/run.sh [OUT]   Runs on a machine with an NVIDIA GPU what tools/device-bundle.sh collected: every operation against the
# oracle, the CUDA backend's own tests, compute-sanitizer on a reduced set. Logs go to OUT (default build/device/logs); the
# summary comes last. DEVICE=cuda:N chooses the device. SKIP_SANITIZER=1 leaves the sanitizers out. Exit: 0 all passed.
set -u -o pipefail
cd "$(dirname "$0")/../.."
here=$PWD/build/device
out=${1:-$here/logs}
mkdir -p "$out"
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export EBB_TEST_DEVICE=${DEVICE:-cuda:0} CMOCKA_MESSAGE_OUTPUT=STDOUT EBB_BIN=$here/bin EBB_SOURCE=$PWD
summary=() failed=0

# one NAME TIMEOUT COMMAND...: exit status and the number of passed cases.
one() {
	local name=$1 limit=$2 log=$out/$1.log t0=$SECONDS rc state
	shift 2
	timeout -k 5 "$limit" "$@" >"$log" 2>&1 </dev/null
	rc=$?
	state=ok
	if [ $rc = 77 ]; then
		state=skip
	elif [ $rc != 0 ]; then
		state=FAIL failed=1
		echo "---- $name: exit $rc"
		grep -E 'FAILED|rror|expected|depends|=====.*(Invalid|Race|hazard|at )' "$log" | head -n 25
	fi
	summary+=("$(printf '  %-5s %-34s %3d passed %4d failed %5d s  %s' $state "$name" "$(grep -c '\[       OK \]' "$log")" \
		"$(grep -c '\[  FAILED  \].*[a-z]' "$log")" $((SECONDS - t0)) "$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tr -d '=')")")
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
for t in "$here"/tests/gpu/test_* "$here"/tests/unit/gpu/test_* "$here"/tests/unit/llama/test_*; do
	[ -x "$t" ] && one "${t##*/}" 300 "$t"
done

for t in "$here"/tests/gpu/bench_*; do
	[ -x "$t" ] && one "${t##*/}" 120 "$t" && cat "$out/${t##*/}.log"
done

# TOOL:TEST:FILTER. The racecheck of all of attend takes minutes.
sanitize="memcheck:gpu/test_cuda:* memcheck:unit/gpu/test_append:* memcheck:unit/gpu/test_observe:* memcheck:unit/gpu/test_select:*
	memcheck:unit/gpu/test_attend:* memcheck:unit/llama/test_forward_cuda:* racecheck:unit/gpu/test_append:*
	racecheck:unit/gpu/test_observe:observe_a* racecheck:unit/gpu/test_select:the_steps* racecheck:unit/gpu/test_attend:large*
	racecheck:unit/gpu/test_attend:many*
	racecheck:unit/llama/test_forward_cuda:logits*"
if [ -z "${SKIP_SANITIZER:-}" ] && command -v compute-sanitizer >/dev/null; then
	set -f
	for entry in ${SANITIZE:-$sanitize}; do
		IFS=: read -r tool t filter <<<"$entry"
		[ -x "$here/tests/$t" ] || continue
		one "$tool-${t##*/}" "${SANITIZER_TIMEOUT:-150}" env "EBB_TEST_FILTER=$filter" LD_PRELOAD="$here/lib/filter.so" \
			compute-sanitizer --tool "$tool" --target-processes all --report-api-errors no --error-exitcode 9 --print-limit 20 "$here/tests/$t"
	done
	set +f
fi
echo
printf '%s\n' "${summary[@]}"
[ $failed = 0 ] && echo "all passed" || echo "FAILED"
exit $failed
