#!/usr/bin/env bash
# tools/bench.sh OUT PROGRAM...   Runs benchmarks, gathers their JSON lines in OUT, prints one table.
# A goal that was missed is shown, and is no failure; a benchmark that cannot run is one.
set -u -o pipefail
out=$1; shift
[ $# -gt 0 ] || { echo "no benchmarks"; exit 1; }
: >"$out.part"
bad=0
for program; do
	printf '  %-5s %s\n' BENCH "${program##*/}"
	timeout -k 5 "${BENCH_TIMEOUT:-600}" "$program" | tee >(grep '^{"name"' >>"$out.part") | grep -v '^{"name"' | sed 's/^/        /'
	rc=${PIPESTATUS[0]}
	if [ "$rc" != 0 ] && [ "$rc" != 77 ]; then
		echo "        failed with exit status $rc"; bad=1
	fi
done
wait
mv "$out.part" "$out"
awk '
function text(key,   m) { return match($0, "\"" key "\": *\"[^\"]*\"") ? gensub_(substr($0, RSTART, RLENGTH)) : "" }
function gensub_(s) { sub(/^"[a-z]*": *"/, "", s); sub(/"$/, "", s); return s }
function number(key,   s) { if (!match($0, "\"" key "\": *[-+0-9.eE]+")) return ""; s = substr($0, RSTART, RLENGTH); sub(/^.*: */, "", s); return s }
function show(x) { return x == "" ? "-" : sprintf(x >= 1000 || x <= -1000 ? "%.0f" : "%.3g", x) }
BEGIN { printf "\n%-44s %12s %-12s %12s %7s  %-16s %s\n", "what", "value", "unit", "ceiling", "ratio", "goal", "" }
{
	ratio = number("ratio"); goal = text("goal")
	if (goal == "" && number("goal") != "") goal = show(number("goal"))
	ok = /"ok": *true/ ? "reached" : /"ok": *false/ ? "missed" : ""
	printf "%-44s %12s %-12s %12s %7s  %-16s %s\n", text("name"), show(number("value")), text("unit"), show(number("ceiling")),
		ratio == "" ? "-" : sprintf("%.1f%%", 100 * ratio), goal, ok
}' "$out"
printf '\n%s\n' "written to $out"
exit $bad
