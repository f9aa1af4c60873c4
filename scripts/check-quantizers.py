#!/usr/bin/env python3
"""Whether `moli quantize` comes to what llama.cpp's own quantiser comes to, and llama.cpp runs what it writes.

    scripts/peers-venv.sh && target/peers/bin/pip install gguf==0.19.0
    cargo build --release
    target/peers/bin/python scripts/check-quantizers.py [--moli BINARY] [--llama-imatrix BINARY] [MODEL...]

Two models of the catalogue, as F32, are quantised by both programs. For each type

- all tensors have the same types in both files,
- the perplexity of ours is at most 2% above that of llama.cpp's,
- llama.cpp computes our file to within 2% of that perplexity, and answers from it, and
- perplexity is above that of the type before it, unless it falls with llama.cpp's files too or within twice its standard error.

Then both quantise with an importance matrix that `moli imatrix` wrote, and Moli with one that llama.cpp's side wrote: the
`gguf` package, and llama-imatrix where that is given. Prints a table; the exit status is 1 if anything does not hold.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFReader, GGUFWriter
from llama_cpp.llama_cpp import llama_model_imatrix_data as Entry

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"SmolLM2": "smollm2-135m-instruct", "Gemma 3": "gemma-3-270m"}
TYPES = {"Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15, "Q4_0": 2, "IQ4_XS": 30}
WITH_IMATRIX = "IQ4_XS"
CONTEXT = 512
MOST = 1.02
PROMPT = "The capital of France is"

failures = []


def check(holds, what):
    if not holds:
        failures.append(what)
        print(f"FAILED: {what}", flush=True)


def types_of(path):
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


class Moli:
    def __init__(self, binary, text):
        self.binary, self.text = binary, text

    def __call__(self, *arguments):
        done = subprocess.run([self.binary, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"moli {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def perplexity(self, path):
        return json.loads(self("perplexity", path, "-f", self.text, "-c", CONTEXT, "-t", 1, "--json"))["perplexity"]


class LlamaCpp:
    """A file in llama.cpp."""

    def __init__(self, path):
        # Raises if the file is refused.
        self.model = llama_cpp.Llama(
            str(path), n_ctx=CONTEXT, n_batch=CONTEXT, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)

    def losses(self, text):
        """Of each token that `moli perplexity` scores, the negative logarithm of its probability."""
        ids = self.model.tokenize(text.encode(), add_bos=True, special=False)
        begins, losses = ids[0] == self.model.token_bos(), []
        for start in range(0, len(ids) - CONTEXT + 1, CONTEXT):
            piece = ids[start : start + CONTEXT]
            self.model.reset()
            self.model.eval([self.model.token_bos(), *piece[1:]] if begins else piece)
            places = np.arange(CONTEXT // 2, CONTEXT - 1)
            logits = self.model.scores[places].astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            of_next = logits[np.arange(len(places)), np.array(piece)[places + 1]]
            losses.append(np.log(np.exp(logits).sum(-1)) - of_next)
        return np.concatenate(losses)

    def answer(self):
        self.model.reset()
        return self.model.create_completion(PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"]


def quantise(source, target, name, importance=None):
    """By llama.cpp. `importance`: of each tensor how much its columns matter."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = TYPES[name], 1
    entries, held = [], []
    for tensor, values in (importance or {}).items():
        array = (ctypes.c_float * len(values))(*values)
        held.append(array)
        entries.append(Entry(tensor.encode(), ctypes.cast(array, ctypes.POINTER(ctypes.c_float)), len(values)))
    if entries:
        entries.append(Entry(None, None, 0))
        params.imatrix = (Entry * len(entries))(*entries)
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp does not quantise {source} to {name}")


def imatrix_of(path):
    """Sums and counts of a file, by the names of the model's tensors."""
    tensors = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    return {name: (tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"]) for name in names}


def compare_files(what, moli, text, ours, theirs):
    """One row: types, perplexities, an answer. Both perplexities, and the losses of our file in llama.cpp."""
    check(types_of(ours) == types_of(theirs), f"{what}: tensors have other types than llama.cpp's")
    our, their = moli.perplexity(ours), moli.perplexity(theirs)
    check(our <= MOST * their, f"{what}: perplexity {our:.2f}, llama.cpp's {their:.2f}")
    model = LlamaCpp(ours)
    losses, answer = model.losses(text), model.answer()
    del model
    check(answer.strip(), f"{what}: llama.cpp answers nothing")
    there = np.exp(losses.mean())
    check(1 / MOST <= there / our <= MOST, f"{what}: perplexity in llama.cpp {there:.2f}, in Moli {our:.2f}")
    print(f"| {what} | {our:.2f} | {their:.2f} | {there:.2f} | {answer!r}", flush=True)
    return our, their, losses


def check_order(model, results):
    for (before, one), (after, other) in zip(results.items(), list(results.items())[1:]):
        rise = other[2] - one[2]
        error = rise.std() / np.sqrt(len(rise))
        holds = rise.mean() > -2 * error or other[1] < one[1]
        check(holds, f"{model}: perplexity falls from {before} to {after}, and not with llama.cpp's files")


def check_imatrices(model, moli, text, source, folder, llama_imatrix):
    ours, theirs, matrix = (folder / f"{name}.gguf" for name in ("ours", "theirs", "matrix"))
    moli("imatrix", source, "-f", moli.text, "-o", matrix, "-t", 1)
    sums = imatrix_of(matrix)
    quantise(source, theirs, WITH_IMATRIX, {name: (of / counts).ravel() for name, (of, counts) in sums.items()})
    moli("quantize", source, ours, "--type", WITH_IMATRIX, "--imatrix", matrix)
    compare_files(f"{model} {WITH_IMATRIX}, Moli's importance matrix", moli, text, ours, theirs)

    again, copy = folder / "again.gguf", folder / "copy.gguf"
    writer = GGUFWriter(copy, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["text-en.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", CONTEXT)
    for name, (of, counts) in sums.items():
        writer.add_tensor(f"{name}.in_sum2", of)
        writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    moli("quantize", source, again, "--type", WITH_IMATRIX, "--imatrix", copy)
    data = [{tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors} for path in (ours, again)]
    check(data[0] == data[1], f"{model}: another weight with the same importance matrix, written by gguf")

    if llama_imatrix:
        measured, merged = folder / "measured.gguf", folder / "merged.gguf"
        command = [llama_imatrix, "-m", source, "-f", moli.text, "-c", str(CONTEXT), "-t", "1", "--output-format", "gguf"]
        subprocess.run([*command, "-o", measured], check=True, capture_output=True)
        apart = []
        for name, (of, counts) in imatrix_of(measured).items():
            if name in sums:
                mine, other = sums[name][0] / sums[name][1], of / counts
                apart.append(np.abs(mine - other).sum() / np.abs(other).sum())
        check(len(apart) == len(sums), f"{model}: {len(apart)} of {len(sums)} tensors are in llama-imatrix's file")
        check(np.mean(apart) < 0.05, f"{model}: importance is {np.mean(apart):.1%} from llama-imatrix's")
        quantise(source, theirs, WITH_IMATRIX, {n: (of / c).ravel() for n, (of, c) in imatrix_of(measured).items()})
        moli("quantize", source, ours, "--type", WITH_IMATRIX, "--imatrix", measured, "--force")
        compare_files(f"{model} {WITH_IMATRIX}, llama-imatrix's, {np.mean(apart):.1%} apart", moli, text, ours, theirs)
        command = [llama_imatrix, "-m", source, "--in-file", f"{matrix},{measured}", "--output-format", "gguf"]
        done = subprocess.run([*command, "-o", merged], capture_output=True)
        check(done.returncode == 0 and merged.exists(), f"{model}: llama-imatrix does not read Moli's file")
        both = imatrix_of(merged)
        added = all(np.allclose(both[n][1], sums[n][1] + imatrix_of(measured)[n][1]) for n in sums)
        check(added, f"{model}: llama-imatrix read other counts in Moli's file")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--moli", default=ROOT / "target/release/moli")
    parser.add_argument("--llama-imatrix")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all if none is named")
    options = parser.parse_args()
    path = ROOT / "tests/golden/text-en.txt"
    moli, text = Moli(options.moli, path), path.read_text()
    # Errors only.
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: print(text.decode(), end="") if level == 4 else None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    print("| Type | Moli's file | llama.cpp's | Moli's, in llama.cpp | llama.cpp's answer |")
    print("| --- | --- | --- | --- | --- |")
    for model in options.models or MODELS:
        name = MODELS[model]
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            source, ours, theirs = (folder / f"{name}.gguf" for name in ("source", "ours", "theirs"))
            moli("convert", name, source, "--dtype", "f32")
            print(f"| {model} F32 | {moli.perplexity(source):.2f} | | |", flush=True)
            results = {}
            for kind in TYPES:
                moli("quantize", source, ours, "--type", kind, "--force", "-t", 1)
                quantise(source, theirs, kind)
                results[kind] = compare_files(f"{model} {kind}", moli, text, ours, theirs)
            check_order(model, results)
            ours.unlink()
            check_imatrices(model, moli, text, source, folder, options.llama_imatrix)
    print("all of it holds" if not failures else f"{len(failures)} failed")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
