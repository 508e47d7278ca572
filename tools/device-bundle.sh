#!/usr/bin/env bash
# tools/device-bundle.sh   Collects in build/device/ what a GPU machine without our build packages needs to run the tests and the
# demo: programs and tests (stripped) with the shared libraries that they load, glibc and the NVIDIA libraries excepted.
#
# Build first (make all tests, and the tests/gpu/ programs). tests/gpu/run.sh runs there. The model is not in it (92 MB).
set -eu -o pipefail
cd "$(dirname "$0")/.."
out=build/device
rm -rf $out
mkdir -p $out/lib $out/bin $out/tests

for f in build/bin/*; do
	[ -f "$f" ] && strip -o "$out/bin/${f##*/}" "$f"
done
# Tests keep their folders, so that two of one name do not meet.
for f in build/tests/unit/gpu/test_* build/tests/gpu/test_* build/tests/gpu/bench_* build/tests/integration/test_*; do
	if [ -f "$f" ] && [ -x "$f" ]; then
		mkdir -p "$out/$(dirname "${f#build/}")"
		strip -o "$out/${f#build/}" "$f"
	fi
done
find $out/bin $out/tests -type f -print0 | xargs -0 -n 1 ldd 2>/dev/null |
	awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
	grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*|libcublas(Lt)?|libcuda|libgcc_s|libstdc\+\+)\.so' |
	while read -r so; do
		cp -L "$so" "$out/lib/${so##*/}"
		strip --strip-unneeded "$out/lib/${so##*/}" || true
	done
gcc -shared -fPIC -O1 -o $out/lib/filter.so tests/gpu/filter.c -lcmocka
du -sh $out | cut -f1
