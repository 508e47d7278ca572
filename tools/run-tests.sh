#!/usr/bin/env bash
# tools/run-tests.sh LOGDIR PROGRAM...   Runs test programs one after the other and counts their test cases.
#
# A program is a cmocka suite or anything whose exit status says it: 0 passed, 77 skipped, else failed. Its output goes to
# LOGDIR and is shown when it fails. The last line printed is "N passed, N failed, N skipped".
# Environment: RUN_PREFIX (e.g. "valgrind -q"), TEST_TIMEOUT (seconds per program, default 300), TEST_FILTER (only programs
# whose name matches this glob). Exit: 0 nothing failed, 1.
set -u -o pipefail
logs=$1; shift
mkdir -p "$logs"
passed=0 failed=0 skipped=0 failures=()
export CMOCKA_MESSAGE_OUTPUT=TAP

for program; do
	name=${program#build/}; name=${name#tests/}
	if [ -n "${TEST_FILTER:-}" ] && [[ $name != $TEST_FILTER ]]; then
		continue
	fi
	log=$logs/${name//\//-}.log
	t0=$EPOCHREALTIME
	# A killed test takes its children along: timeout makes it the leader of a process group.
	timeout -k 5 "${TEST_TIMEOUT:-300}" ${RUN_PREFIX:-} "$program" >"$log" 2>&1 </dev/null
	rc=$?
	t=$(awk -v a="$t0" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
	bad=$(grep -c '^not ok ' "$log")
	skip=$(grep -cE '^(not )?ok .*# SKIP' "$log")
	good=$(( $(grep -c '^ok ' "$log") - $(grep -cE '^ok .*# SKIP' "$log") ))
	bad=$(( bad - $(grep -cE '^not ok .*# SKIP' "$log") ))
	if [ $rc = 77 ]; then
		state=skip; skip=$(( skip > 0 ? skip : 1 ))
		note=$(tail -n 1 "$log" | cut -c1-100)
	elif [ $rc = 0 ] && [ $bad = 0 ]; then
		state=ok; note=
		if [ $good = 0 ] && [ $skip = 0 ]; then good=1; fi
	else
		state=FAIL; note="exit $rc"
		if [ $rc = 124 ] || [ $rc = 137 ]; then note="no end after ${TEST_TIMEOUT:-300} s"; fi
		if [ $bad = 0 ]; then bad=1; fi
		failures+=("$name ($note): $log")
	fi
	passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + skip))
	printf '  %-5s %-46s %4d cases %6s s  %s\n' "$state" "$name" $((good + bad + skip)) "$t" "$note"
	if [ $state = FAIL ]; then
		# The failing lines first: the log of a long suite hides them.
		grep -vE '^(ok |1\.\.|TAP version|# ok )' "$log" | tail -n 60 | sed 's/^/        | /'
	fi
done
if [ ${#failures[@]} -gt 0 ]; then
	printf '\nfailed:\n'; printf '  %s\n' "${failures[@]}"
fi
printf '\n%d passed, %d failed, %d skipped\n' $passed $failed $skipped
[ $failed = 0 ]
