#!/usr/bin/env bash
# tools/check-style.sh FILE.c...   Functions of at most 70 lines (clang-tidy), files of at most 600, no line over 140 columns
# (a tab is 8), and clang-format where a .clang-format exists.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
bad=0
complain() { echo "not ok: $*"; bad=$((bad + 1)); }

while read -r file; do
	n=$(wc -l <"$file")
	[ "$n" -le 600 ] || complain "$file has $n lines, more than 600"
	long=$(expand -t 8 "$file" | awk 'length($0) > 140 { printf "%s%d", sep, NR; sep = ", " }')
	[ -z "$long" ] || complain "$file: over 140 columns in line $long"
done < <(git ls-files '*.c' '*.h' '*.cu' '*.cuh')

# Lines counted between the braces, the opening one aside.
long_functions=$(clang-tidy --quiet --checks='-*,readability-function-size' \
	--config='{CheckOptions: [{key: readability-function-size.LineThreshold, value: 70},
		{key: readability-function-size.StatementThreshold, value: 100000}]}' \
	"$@" -- -std=c17 -D_GNU_SOURCE -I. -DEBB_BUILD_VERSION='""' -mavx2 -mfma -mf16c 2>/dev/null |
	grep -E 'warning: function .* exceeds' | sed "s|$PWD/||" | sort -u)
if [ -n "$long_functions" ]; then
	echo "$long_functions"
	bad=$((bad + $(wc -l <<<"$long_functions")))
fi
if [ -e .clang-format ]; then
	clang-format --dry-run --Werror "$@" || complain "clang-format"
fi
echo "style: $# files, $bad complaints"
[ $bad = 0 ]
