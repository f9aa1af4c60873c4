#!/usr/bin/env bash
# Checks the CUDA backend on a real GPU, in one go and under eight minutes: the tests that otherwise run on the mock driver, the
# memory checker of the toolkit where it is installed, and speeds beside the device's own limits.
#
#   scripts/gpu-check.sh [RESULTS]              # builds what it needs first; results go to target/gpu-check
#   scripts/gpu-check.sh --prepare FOLDER       # builds here, and puts all that a machine without cargo needs into FOLDER
#   scripts/gpu-check.sh --prepared FOLDER [RESULTS]
#
# The last line says what passed. Speeds are of synthetic models in the shapes of Qwen2.5 7B and Llama 3 8B, Q4_K_M; what to hold
# them against (70% of the bandwidth when generating) is in docs/cuda.md.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# The command itself, and the test programs that use a GPU: all of one build. (What moli-engine tests of memory is exact to the
# byte, as only the mock driver is.)
build() { # FOLDER
    mkdir -p "$1"
    cargo test --release --locked --workspace --no-run --message-format=json | python3 -c '
import json, shutil, sys
folder = sys.argv[1]
for line in sys.stdin:
    message = json.loads(line)
    program, target = message.get("executable"), message.get("target", {})
    if not program:
        continue
    crate = message["package_id"].split("#")[0].rpartition("/")[2]
    if target["kind"] == ["test"] and target["name"] in ["cuda", "gpu"] and crate != "moli-engine":
        shutil.copy(program, f"{folder}/{crate}-" + target["name"])
    elif target["kind"] == ["bin"] and target["name"] == "moli" and not message["profile"]["test"]:
        shutil.copy(program, f"{folder}/moli")
' "$1"
    strip "$1"/* 2>/dev/null || true
}

prepared=
case ${1:-} in
--prepare)
    build "$2"
    du -sh "$2"
    exit
    ;;
--prepared)
    prepared=$2
    shift 2
    ;;
esac
results=${1:-target/gpu-check}
mkdir -p "$results"
if [[ -z $prepared ]]; then
    prepared=$results/programs
    build "$prepared"
fi

failed=()
check() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2 start=$SECONDS
    shift 2
    if MOLI_TEST_GPU=1 timeout "$seconds" "$@" >"$results/$name.txt" 2>&1; then
        echo "ok      $name ($((SECONDS - start)) s)"
    else
        echo "FAILED  $name ($((SECONDS - start)) s): $(tail -1 "$results/$name.txt")"
        failed+=("$name")
    fi
}

nvidia-smi >"$results/nvidia-smi.txt" 2>&1 || true
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader 2>/dev/null || true

for program in "$prepared"/moli-*; do
    check "$(basename "$program")" 90 "$program" --test-threads=2
done
# A small model under the memory checker: out of bounds, races, memory that was never written.
if sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1) && [[ -n $sanitizer ]]; then
    for tool in memcheck racecheck; do
        check "sanitizer-$tool" 60 "$sanitizer" --tool "$tool" --error-exitcode 1 \
            "$prepared/moli" bench --device cuda --synthetic qwen2.5-0.5b:q4_k_m -p 32 -n 2 -r 1 --no-limits
    done
else
    echo "left out: compute-sanitizer is not installed"
fi

measure() { # NAME SECONDS ARGUMENTS...
    check "$1" "$2" "$prepared/moli" bench --device cuda "${@:3}" -o "$results/$1.json"
    sed -n '/^model/,/^meanwhile/p' "$results/$1.txt"
}
measure speed-7b 90 --synthetic qwen2.5-7b:q4_k_m -p 512,2048 -n 64 -b 1,8,32 -r 3
measure speed-8b 90 --synthetic llama3-8b:q4_k_m -p 512,2048 -n 64 -b 1,8,32 -r 3
measure speed-small 60 --synthetic qwen2.5-0.5b:q4_k_m --synthetic qwen2.5-1.5b:q4_k_m -p 512 -n 64 -d 0,4096 -r 3

# The real small model, where it is here already.
export MOLI_OFFLINE=1
if "$prepared/moli" list 2>/dev/null | grep -q smollm2-135m-instruct; then
    check paris 60 bash -c "'$prepared/moli' run --device cuda -p 'The capital of France is' --raw -n 8 --temp 0 | grep -q Paris"
else
    echo "left out: smollm2-135m-instruct is not in the cache"
fi

if ((${#failed[@]} > 0)); then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all passed"
