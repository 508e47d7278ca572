#!/usr/bin/env bash
# tools/device-bundle.sh [demo]   Collects in build/device/ what a GPU machine without our build packages needs to run the tests and the
# demo: programs and tests (stripped) with the shared libraries that they load, glibc and the NVIDIA libraries excepted.
#
# Build first (make all tests build/tests/gpu/test_cuda; with LINEINFO= and one CUDA_ARCH it is a quarter as large). tests/gpu/run.sh runs
# there. With "demo" the tests stay out and the model comes along in two parts, build/device-model/a and b: too large to travel in one call, so
#     call 1: carry build/device-model/a, run `true`
#     call 2: carry build/device-model/b and build/device, and begin with
#             mkdir -p build/model && cat build/device-model/{a,b}/part >build/model/SmolLM2-135M-Instruct.Q4_1.gguf
set -eu -o pipefail
cd "$(dirname "$0")/.."
out=build/device
rm -rf $out
mkdir -p $out/lib $out/bin $out/tests

for f in build/bin/*; do
	[ -f "$f" ] && strip -o "$out/bin/${f##*/}" "$f"
done
if [ "${1:-}" = demo ]; then
	rm -rf build/device-model $out/bin/ebb-hello
	mkdir -p build/device-model/a build/device-model/b
	split -b 56M build/model/*.gguf build/device-model/part.
	mv build/device-model/part.aa build/device-model/a/part
	mv build/device-model/part.ab build/device-model/b/part
else
	make -s build/bench/bench_gpu
	mkdir -p build/tests/gpu && cp build/bench/bench_gpu build/tests/gpu/
fi

# Tests keep their folders, so that two of one name do not meet.
for f in build/tests/unit/gpu/test_* build/tests/unit/llama/test_forward_cuda build/tests/gpu/test_* build/tests/gpu/bench_* build/tests/integration/test_*; do
	if [ "${1:-}" != demo ] && [ -f "$f" ] && [ -x "$f" ]; then
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
