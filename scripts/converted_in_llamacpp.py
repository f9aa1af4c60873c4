"""Whether llama.cpp runs what `moli convert` writes, and to the same logits.

    pip install llama-cpp-python numpy
    cargo build --release
    python scripts/converted_in_llamacpp.py [NAME ...]

Each folder of tests/fixtures/architectures is converted and computed by llama.cpp, in f32, with the ids and compared with the logits
that transformers gave. Some of the folders ask for what llama.cpp has no key for: it computes another model then, in silence.
"""

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests/fixtures/architectures"


def logits(path, ids, context):
    """`[ids, vocab]`, all tokens in one batch, with keys and values in f32; `None` if the file is refused."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        return None
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = context, 64, 64
    options.n_threads = options.n_threads_batch = 1
    options.type_k = options.type_v = 0
    options.offload_kqv = False
    options.flash_attn_type = 0
    run = llama_cpp.llama_init_from_model(model, options)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place] = token, place
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        batch.logits[place] = 1
    if llama_cpp.llama_decode(run, batch) != 0:
        return None
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(run, place), (vocab,)).copy() for place in range(len(ids))]
    llama_cpp.llama_free(run)
    llama_cpp.llama_model_free(model)
    return np.stack(rows)


def main(names):
    moli = ROOT / "target/release/moli"
    if "--moli" in names:
        at = names.index("--moli")
        moli = names[at + 1]
        del names[at : at + 2]
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: print(text.decode(), end="") if level >= 4 else None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        for name in names or sorted(path.name for path in FIXTURES.iterdir()):
            path = Path(folder) / f"{name}.gguf"
            made = subprocess.run([moli, "convert", FIXTURES / name, path], capture_output=True, text=True)
            if made.returncode:
                print(f"{name}: not converted: {made.stderr.strip()}")
                continue
            expected = json.loads((FIXTURES / name / "expected.json").read_text())
            wanted = np.array(expected["logits"], dtype=np.float32)
            found = logits(path, expected["ids"], expected.get("context", 64))
            if found is None:
                print(f"{name}: llama.cpp refuses it")
                continue
            worst = np.abs(found - wanted).max()
            same = (found.argmax(-1) == wanted.argmax(-1)).sum()
            print(f"{name}: {worst:.1e} of {np.abs(wanted).max():.1f}, the likeliest token the same at {same} of {len(wanted)}")


if __name__ == "__main__":
    main(sys.argv[1:])
