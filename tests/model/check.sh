#!/usr/bin/env bash
# Proves tests/model/handover.pml with Spin, and shows that each rule left out is caught. Prints a table; exit 1 if anything is
# not as expected. Under two minutes on two cores, 2 GB of memory.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# kind | what is checked | flags of the model | property | expected: proved, or the finding's text
# Properties: safety = never two owners, assertions, no deadlock (which is what a lost wake-up ends in); else an ltl formula.
runs='
good |host: never two owners, no deadlock                       | -DTOKENS=3                  | safety    | proved
good |host: the client always completes                         | -DTOKENS=3                  | completes | proved
good |host: every claim is served                               | -DTOKENS=3                  | served    | proved
good |CUDA: never two owners, no deadlock                       | -DTOKENS=3 -DCUDA           | safety    | proved
good |CUDA: the client always completes                         | -DTOKENS=3 -DCUDA           | completes | proved
good |CUDA with timer: every claim is served                    | -DTOKENS=3 -DCUDA -DTIMER   | served    | proved
good |host, either side dies: never two owners, no deadlock     | -DTOKENS=2 -DCRASH          | safety    | proved
good |host, either side dies: the client ends                   | -DTOKENS=2 -DCRASH          | completes | proved
good |host, either side dies: claims served, memory freed       | -DTOKENS=2 -DCRASH          | served    | proved
good |CUDA, either side dies: never two owners, no deadlock     | -DTOKENS=2 -DCRASH -DCUDA   | safety    | proved
good |ahead: devices take turns, no deadlock                    | -DTOKENS=2 -DCUDA -DAHEAD   | safety    | proved
good |ahead: the client always completes                        | -DTOKENS=2 -DCUDA -DAHEAD   | completes | proved
good |ahead with timer: every claim is served                   | -DTOKENS=2 -DCUDA -DAHEAD -DTIMER | served    | proved
good |ahead: the client'\''s device gets done                       | -DTOKENS=2 -DCUDA -DAHEAD   | drains    | proved
good |ahead, either side dies: devices take turns               | -DTOKENS=3 -DCLAIMS=0 -DCRASH -DCUDA -DAHEAD | safety    | proved
good |ahead, either side dies: the device gets done             | -DTOKENS=3 -DCLAIMS=0 -DCRASH -DCUDA -DAHEAD | drains    | proved
good |ahead, either side dies: claims served, memory freed      | -DTOKENS=3 -DCLAIMS=0 -DCRASH -DCUDA -DAHEAD -DTIMER | served    | proved
BUG 1|step_begin does not look at the claim                     | -DTOKENS=3                  | safety    | two owners
BUG 2|the client sleeps without a last look                     | -DTOKENS=3                  | safety    | lost wake-up
BUG 3|the daemon does not wait for finished                     | -DTOKENS=3                  | safety    | two owners
BUG 4|the daemon does not ring the bell                         | -DTOKENS=3                  | safety    | lost wake-up
BUG 5|the daemon sleeps without a last look                     | -DTOKENS=3                  | safety    | lost wake-up
BUG 6|the swap does not look at the epoch                       | -DTOKENS=3                  | safety    | more begun than granted
BUG 7|step_end does not look at the claim                       | -DTOKENS=3                  | safety    | lost wake-up
BUG 8|the last look asks for no larger window                   | -DTOKENS=3                  | safety    | lost wake-up
BUG 9|the ring'\''s tail before the record                         | -DTOKENS=3                  | safety    | a record nobody wrote
BUG10|a full ring is written to                                 | -DTOKENS=3                  | safety    | a record nobody wrote
BUG11|a grant does not count the epoch up                       | -DTOKENS=3                  | safety    | lost wake-up
BUG12|the daemon, woken, looks at records only                  | -DTOKENS=3 -DCUDA           | safety    | lost wake-up
BUG14|CUDA: step_begin sleeps and nobody rings for the device   | -DTOKENS=3 -DCUDA           | safety    | lost wake-up
BUG15|hand is published before granted                          | -DTOKENS=3                  | safety    | two owners
BUG16|the window is read before hand                            | -DTOKENS=3                  | safety    | a window that is no more
BUG17|hand is published by a store                              | -DTOKENS=3                  | safety    | a begin lost
BUG18|CUDA: no timer                                            | -DTOKENS=3 -DCUDA           | served    | never
BUG19|ahead: the client'\''s stream does not wait                  | -DTOKENS=2 -DCUDA -DAHEAD   | safety    | devices at once
BUG20|ahead: the daemon'\''s device does not wait                  | -DTOKENS=2 -DCUDA -DAHEAD   | safety    | devices at once
BUG21|ahead: nobody lets through a client whose daemon died     | -DTOKENS=3 -DCLAIMS=0 -DCRASH -DCUDA -DAHEAD | drains    | never
BUG22|ahead: nobody lets through a daemon whose client died     | -DTOKENS=3 -DCLAIMS=0 -DCRASH -DCUDA -DAHEAD -DTIMER | served    | never
BUG23|ahead: the daemon does not look at launched               | -DTOKENS=2 -DCUDA -DAHEAD   | safety    | two owners
spare|CUDA: step_end has nobody ring (BUG 13)                   | -DTOKENS=3 -DCUDA -DBUG=13  | safety    | proved
spare|CUDA with timer: step_begin has nobody ring (BUG 14)      | -DTOKENS=2 -DCUDA -DTIMER -DBUG=14 | completes | proved
'

finding() {	# what pan's output says in the words of the table
	local out=$1
	if grep -q 'errors: 0' "$out" && ! grep -qE 'too small|truncated|out of memory' "$out"; then echo proved; return; fi
	case $(grep -m 1 '^pan:1:' "$out") in
	*'invalid end state'*)		echo 'lost wake-up' ;;
	*'d_runs'*|*'c_runs'*|*'boundary'*)	echo 'devices at once' ;;
	*'daemon_owns'*|*'c_gone||'*)	echo 'two owners' ;;
	*'begun<=granted'*)		echo 'more begun than granted' ;;
	*'record!=0'*)			echo 'a record nobody wrote' ;;
	*'mine==tables'*)		echo 'a window that is no more' ;;
	*'begun=='*)			echo 'a begin lost' ;;
	*'acceptance cycle'*)		echo 'never' ;;
	*)				echo "?? $(grep -m 1 -E 'pan:|error' "$out")" ;;
	esac
}

one() {		# LINE NUMBER
	local kind what flags property expected dir states found pan
	IFS='|' read -r kind what flags property expected <<<"$2"
	property=${property// } expected=$(sed 's/^ *//; s/ *$//' <<<"$expected")
	dir=$work/$1
	mkdir "$dir" && cd "$dir" || return 1
	case $kind in BUG*) flags="$flags -DBUG=${kind//[^0-9]}" ;; esac
	case $flags in *AHEAD*) pan='-DNFAIR=5 -DCOLLAPSE' ;; *) pan=-DNFAIR=4 ;; esac
	if ! spin -a $flags "$here/handover.pml" >spin.out 2>&1; then
		found="spin: $(head -n 1 spin.out)"
	elif [ "$property" = safety ]; then
		gcc -O2 -w $pan -DSAFETY -DNOCLAIM -DMEMLIM=3000 -o pan pan.c && ./pan -m1000000 -w23 >out 2>&1
		found=$(finding out)
	else
		gcc -O2 -w $pan -DMEMLIM=3000 -o pan pan.c && ./pan -a -f -N "$property" -m1000000 -w23 >out 2>&1
		found=$(finding out)
	fi
	states=$(sed -nE 's/^ *([0-9]+) states, stored.*/\1/p' out 2>/dev/null)
	printf '%s%-6s %-58s %-24s %10s states\n' "$([ "$found" = "$expected" ] && echo '  ' || echo 'X ')" "$kind" "$what" "$found" "$states" >"$work/$1.row"
	[ "$found" = "$expected" ] || echo "         expected: $expected" >>"$work/$1.row"
	rm -f pan pan.*
}
export -f one finding
export here work

grep . <<<"$runs" | awk '{ printf "%02d%c%s%c", NR, 0, $0, 0 }' | xargs -0 -n 2 -P "$(nproc)" bash -c 'one "$@"' one
cat "$work"/*.row
n=$(grep -c . <<<"$(grep . <<<"$runs")") bad=$(cat "$work"/*.row | grep -c '^X')
rows=$(ls "$work"/*.row | wc -l)
printf '\n%d passed, %d failed, 0 skipped\n' $((rows - bad)) $((bad + n - rows))
[ "$bad" = 0 ] && [ "$rows" = "$n" ]
