#!/usr/bin/env python3
"""Compares what `moli bench` says with a clock outside `moli run`, on the same work, in turns.

    scripts/check-bench.py target/release/moli MODEL...

`moli run` is timed from its start to its end with two lengths; the difference has neither loading nor the reading of what
both have in common. `moli bench` measures the same tokens at the same depth, once in each round. Compared are the fastest
times of all rounds: what disturbs makes slower and never faster, and a difference of two disturbed times says nothing. It
fails where the two are further than 5% apart.
"""

import argparse
import json
import subprocess
import sys
import time

# Tokens of the prompts, and of the answers.
PROMPT = (512, 1024)
ANSWER = (32, 160)
TOLERANCE = 0.05


def seconds(command):
    """How long a command takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def run(moli, model, threads, prompt, tokens):
    """`moli run` that does what the benchmark does and no more: no template, no guesses, the likeliest token."""
    return [
        moli, "run", model, "-t", str(threads), "-c", "2048", "--raw", "--no-speculation", "--temp", "0",
        "--ignore-eos", "-p", prompt, "-n", str(tokens),
    ]


def text_of(moli, model, threads, tokens):
    """A text of so many tokens, the one that begins it included."""
    count = tokens
    for _ in range(4):
        text = " a" * count
        told = subprocess.run(run(moli, model, threads, text, 1) + ["--json"], check=True, capture_output=True)
        found = json.loads(told.stdout)["usage"]["prompt_tokens"]
        if found == tokens:
            return text
        count += tokens - found
    sys.exit(f"{model}: no text of {tokens} tokens was found")


def bench(moli, model, threads, arguments):
    """The seconds of the one repetition that is asked for."""
    command = [moli, "bench", model, "-t", str(threads), "--no-limits", "-r", "1", "--format", "json", *arguments]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    (row,) = json.loads(told.stdout)["rows"]
    (repetition,) = row["seconds"]
    return repetition


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moli")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("pp", "tg"), help="prompts or generating alone")
    options = parser.parse_args()
    failed = False
    for model in options.models:
        moli, threads = options.moli, options.threads
        short, long = (text_of(moli, model, threads, tokens) for tokens in PROMPT)
        few, many = ANSWER
        # What is timed outside, the tokens of the difference, and how the benchmark is asked for the same.
        tests = {
            f"pp{PROMPT[1] - PROMPT[0]}": (
                [run(moli, model, threads, text, 1) for text in (short, long)],
                PROMPT[1] - PROMPT[0],
                ["-p", str(PROMPT[1] - PROMPT[0]), "-n", "0", "-d", str(PROMPT[0])],
            ),
            f"tg{many - few}": (
                [run(moli, model, threads, short, tokens) for tokens in ANSWER],
                many - few,
                ["-p", "0", "-n", str(many - few), "-d", str(PROMPT[0] + few)],
            ),
        }
        for name, (commands, tokens, arguments) in tests.items():
            if options.only and not name.startswith(options.only):
                continue
            less, more, inside = [], [], []
            for _ in range(options.rounds):
                less.append(seconds(commands[0]))
                more.append(seconds(commands[1]))
                inside.append(bench(moli, model, threads, arguments))
            own, outside = tokens / min(inside), tokens / (min(more) - min(less))
            agrees = abs(own / outside - 1) <= TOLERANCE
            failed |= not agrees
            print(
                f"{model} {name}: bench {own:.1f} tokens/s, outside {outside:.1f}, ratio {own / outside:.3f},"
                f" {options.rounds} rounds: {'agrees' if agrees else 'DIFFERS'}",
                flush=True,
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()
