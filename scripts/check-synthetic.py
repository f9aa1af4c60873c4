#!/usr/bin/env python3
"""Compares a synthetic model in memory with a file of the same bytes: speed, and what the first takes.

    scripts/check-synthetic.py target/release/moli
    scripts/check-synthetic.py target/release/moli --shape qwen2.5-1.5b:q4_k_m --rounds 16

The file is written, dropped from the system's cache and read from front to back, as a file that was loaded has been. Then both take
turns in one run of `moli bench`. It fails where the median of the rounds' ratios of generating is further than 5% from 1, or
where the model in memory alone takes 6 GB or more. The file is removed at the end; the default shape's has 4.7 GB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

TOLERANCE = 0.05
MOST_BYTES = 6_000_000_000


def bench(moli, arguments):
    command = [moli, "bench", "--format", "json", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def read_anew(path):
    """Has the system forget a file's pages and read them in order, which makes them large ones."""
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 24):
            pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moli")
    parser.add_argument("--shape", default="qwen2.5-7b:q4_k_m")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--folder", help="where the file is written [default: the system's for temporary ones]")
    options = parser.parse_args()
    work = ["-p", "0", "-n", str(options.tokens)]

    alone = bench(options.moli, ["--synthetic", options.shape, *work, "-r", "1"])
    peak = max(row["conditions"]["peak_resident_bytes"] for row in alone["rows"])
    small = peak < MOST_BYTES
    print(f"{options.shape} in memory takes {peak / 1e9:.2f} GB: {'fits' if small else 'TOO MUCH'}", flush=True)

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = os.path.join(folder, "model.gguf")
        once = ["--synthetic", options.shape, "--save-model", path, "-p", "1", "-n", "0", "-r", "1", "--no-limits"]
        bench(options.moli, once)
        read_anew(path)
        both = bench(options.moli, [path, "--synthetic", options.shape, *work, "-r", str(options.rounds), "--no-limits"])
    seconds = {both["models"][row["model"]]["synthetic"]: row["seconds"] for row in both["rows"]}
    ratios = [in_file / in_memory for in_file, in_memory in zip(seconds[False], seconds[True], strict=True)]
    ratio = statistics.median(ratios)
    agrees = abs(ratio - 1) <= TOLERANCE
    print(
        f"tokens per second in memory, to those of the file: {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}),"
        f" {options.rounds} rounds: {'agrees' if agrees else 'DIFFERS'}"
    )
    for note in both["notes"]:
        print(f"note: {note}")
    sys.exit(not (agrees and small))


if __name__ == "__main__":
    main()
