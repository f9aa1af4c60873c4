#!/usr/bin/env bash
# Compares what Moli measures as this machine's limits with what a C program measures: bytes read per second, 8-bit and f32
# multiply-adds per second, with one thread and with all. They take turns, so that a slow minute slows both; the medians may
# differ by 10%.
#
#   scripts/check-limits.sh              # MOLI_ROUNDS rounds (9), MOLI_ISA the instruction set
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${CARGO_TARGET_DIR:-target}
# With the features that all of the workspace have together: nothing is compiled twice.
cargo build --release --locked --workspace --example limits
moli=$folder/release/examples/limits
c=$folder/release/limits-c
"${CC:-cc}" -O3 -pthread benches/limits.c -o "$c"

isa=$("$moli" isa)
buffer=$("$moli" buffer)
threads="1 $(nproc)"
[[ $(nproc) -gt 1 ]] || threads=1
samples=$(mktemp)
trap 'rm -f "$samples"' EXIT
for _ in $(seq "${MOLI_ROUNDS:-9}"); do
    for n in $threads; do
        echo "moli $n $("$moli" "$n")"
        echo "c $n $("$c" "$n" "$buffer" 0.2 "$isa")"
    done
done >"$samples"

python3 - "$isa" "$samples" <<'PYTHON'
import statistics, sys

isa, path = sys.argv[1:]
samples = {}
for line in open(path):
    program, threads, *values = line.split()
    for what, value in zip(["reading, GB/s", "int8, GMAC/s", "f32, GMAC/s"], values):
        samples.setdefault((int(threads), what), {}).setdefault(program, []).append(float(value) / 1e9)
print(f"{isa}, medians\n\n| threads | limit | Moli | C | Moli to C |\n|---|---|---|---|---|")
failed = False
for (threads, what), found in sorted(samples.items()):
    moli, c = (statistics.median(found[program]) for program in ("moli", "c"))
    if moli == 0 and c == 0:
        continue  # The instruction set has none.
    ratio = moli / c if c else float("inf")
    wrong = not 0.9 <= ratio <= 1.1
    failed |= wrong
    print(f"| {threads} | {what} | {moli:.1f} | {c:.1f} | {ratio:.3f}{' more than 10% off' if wrong else ''} |")
sys.exit(failed)
PYTHON
