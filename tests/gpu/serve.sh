#!/usr/bin/env bash
# tests/gpu/serve.sh [PART...]   The page "Serving" of docs/performance.md, measured anew on a machine with an NVIDIA GPU. Programs are in
# $EBB_BIN (build/bin); ebb-llama's part needs a model, $EBB_MODEL. About five minutes in all. Each part has a limit of its own: one that
# runs out of time costs no other.
#
#   ceiling   the read ceiling of this run ($EBB_BENCH, bench_gpu)
#   one       one process: full caches, budgets that never bite, 4096, 2048, 1024; these with the policy ebb, the default, too
#   four      four processes
#   growth    100000 tokens a session
#   large     a pool of nearly all of the GPU's memory, filled with sessions of 16K tokens, twice, so that the first ones' memory came back
#   llama     ebb-llama, batch 1 to 256
#
# Exit: 0, or 1 where a part failed.
set -u -o pipefail
cd "$(dirname "$0")/../.."
bin=${EBB_BIN:-build/bin} device=${DEVICE:-0} failed=0
model=${EBB_MODEL:-build/model/SmolLM2-135M-Instruct.Q4_1.gguf} text=${TEXT:-/usr/share/common-licenses/GPL-3}
dir=$(mktemp -d)

serve() {	# LIMIT OPTION...
	local limit=$1
	shift
	timeout -k 5 "$limit" "$bin/ebb-bench-serve" --device "$device" --limit "$limit" "$@" 2>"$dir/err"
}

part_ceiling() { BENCH=ceiling timeout 30 "${EBB_BENCH:-build/bench/bench_gpu}" | sed 's/"unit.*//'; }
part_one() {
	serve 110 --part serve --processes 1 &&
		serve 110 --part serve --processes 1 --no-full --policy ebb
}
part_four() { serve 110 --part serve --processes 4 --budgets 4096,1024 --decode 128; }

# Few layers and a small vocabulary: what may grow with a session's age is not in the products.
part_growth() { serve 90 --part growth --vocab 16384; }

part_large() {
	local free pool
	free=$(nvidia-smi -i "$device" --query-gpu=memory.free --format=csv,noheader,nounits) || return
	# 10 GiB are left: weights of 8 layers and a small vocabulary (4), logits of lanes (3), contexts of two processes, activations.
	pool=$((free / 1024 - 10))
	echo "a pool of $pool GiB, $free MiB of the GPU free"
	serve 90 --part serve --processes 1 --no-full --layers 8 --vocab 16384 --pool ${pool}G --budgets 16384,16384 --decode 128 --fill 1024
}

part_llama() {
	local weights batch daemon
	printf '[daemon]\nsocket = %s\n[pool gpu]\ndevice = cuda:%s\nsize = 40G\n' "$dir/s" "$device" >"$dir/ini"
	"$bin/ebbd" --config "$dir/ini" >"$dir/log" 2>&1 </dev/null &
	daemon=$!
	for _ in $(seq 100); do [ -S "$dir/s" ] && break; sleep 0.1; done
	for weights in bf16 f32; do
		for batch in 1 4 16 64 256; do
			printf '%s weights, batch %d: ' $weights $batch
			timeout 30 "$bin/ebb-llama" -m "$model" --socket "$dir/s" -f "$text" --limit 64 -n 160 --batch $batch --batch-offset 24 \
				--ignore-eos --weights $weights --json 2>>"$dir/err" </dev/null | grep -oE '"tokens_per_s": [0-9.]+' || echo failed
		done
	done
	kill $daemon
	wait $daemon
}

for part in ${*:-ceiling one four growth large llama}; do
	t0=$SECONDS
	echo "== $part"
	"part_$part" || { failed=1; echo "FAILED: $part"; tail -n 3 "$dir/err"; }
	echo "== $part took $((SECONDS - t0)) s"
done
rm -rf "$dir"
exit $failed
