#!/usr/bin/env bash
# Every header compiles alone, as C17; every header that nvcc or a C++ program may read also as C++17.
set -u
cd "$(dirname "$0")/.." || exit 1
CC=${CC:-gcc} CXX=${CXX:-g++}
command -v "$CXX" >/dev/null || { echo "no C++ compiler: only C is checked"; CXX=; }
# Parts of one file, included by it and by nobody else, stand in it as if written there: they are checked with it.
parts='^(evict/policy_[a-z0-9_]*|examples/llama/unicode_table)\.h$'
# Bodies of functions for one C file or for the tests; no interface, and never C++.
only_c='^(evict/split_[a-z_]*|gpu/host/(k_[a-z]*|kernels|vec)|tests/.*)\.h$'
n=0 bad=0
while read -r header; do
	n=$((n + 1))
	# As an include of an empty file, so that "#pragma once in main file" and unused static functions stay silent.
	printf '#include "%s"\n' "$header" >"${tmp:=$(mktemp -d)}/one.c"
	$CC -std=c17 -D_GNU_SOURCE -Wall -Wextra -Werror -Wno-unused-function -fmax-errors=5 -I. -fsyntax-only "$tmp/one.c" ||
		{ echo "not ok: $header as C"; bad=$((bad + 1)); }
	[ -z "$CXX" ] || [[ $header =~ $only_c ]] || $CXX -x c++ -std=c++17 -D_GNU_SOURCE -Wall -Wextra -Werror -Wno-unused-function -fmax-errors=5 -I. -fsyntax-only "$tmp/one.c" ||
		{ echo "not ok: $header as C++"; bad=$((bad + 1)); }
done < <(find conf ctl daemon evict examples gpu libclient tests -name '*.h' 2>/dev/null | grep -vE "$parts" | LC_ALL=C sort)
rm -rf "${tmp:-}"
echo "headers: $n checked alone as C${CXX:+, interfaces also as C++}, $bad wrong"
[ $n -gt 0 ] && [ $bad = 0 ]
