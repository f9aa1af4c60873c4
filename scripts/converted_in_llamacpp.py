"""Whether llama.cpp runs what `moli convert` writes, and to the same logits.

    pip install llama-cpp-python numpy
    cargo build --release
    python scripts/converted_in_llamacpp.py [NAME ...]

Each folder of tests/fixtures/architectures is converted and computed by llama.cpp, in f32, with the ids and compared with the logits
that transformers gave, each of tests/fixtures/encoders with its hidden states. Some of the folders ask for what llama.cpp has no key
for: it computes another model then, in silence. Last come the catalogue's all-minilm-l6-v2 (`minilm`), whose tokens and embeddings
of 100 texts are compared with those of sentence-transformers, and the tiny XLM-RoBERTa with a tokenizer (`xlm_roberta_texts`).
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


class Context:
    """A model of one sequence, in f32; `False` if the file is refused."""

    def __init__(self, path, context, pooling=None):
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            return
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, context, context
        options.n_threads = options.n_threads_batch = 1
        options.type_k = options.type_v = 0
        options.offload_kqv = False
        options.flash_attn_type = 0
        if pooling is not None:
            options.embeddings, options.pooling_type = True, pooling
        self.run = llama_cpp.llama_init_from_model(self.model, options)

    def __bool__(self):
        return bool(self.model)

    def close(self):
        llama_cpp.llama_free(self.run)
        llama_cpp.llama_model_free(self.model)

    def tokenize(self, text):
        vocab, data = llama_cpp.llama_model_get_vocab(self.model), text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(vocab, data, len(data), room, len(room), True, False)
        return list(room[:count])

    def compute(self, ids):
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = 1
        # An encoder has none.
        if memory := llama_cpp.llama_get_memory(self.run):
            llama_cpp.llama_memory_clear(memory, True)
        code = llama_cpp.llama_decode(self.run, batch)
        llama_cpp.llama_batch_free(batch)
        return code == 0

    def rows(self, ids, width, read):
        """`[ids, width]`, all tokens in one batch; `None` if that fails."""
        if not self.compute(ids):
            return None
        return np.stack([np.ctypeslib.as_array(read(self.run, place), (width,)).copy() for place in range(len(ids))])

    def logits(self, ids):
        width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        return self.rows(ids, width, llama_cpp.llama_get_logits_ith)

    def states(self, ids):
        return self.rows(ids, llama_cpp.llama_model_n_embd(self.model), llama_cpp.llama_get_embeddings_ith)

    def embedding(self, ids):
        """Of length 1."""
        self.compute(ids)
        width = llama_cpp.llama_model_n_embd(self.model)
        values = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(self.run, 0), (width,)).copy()
        return values / np.linalg.norm(values)


def converted(moli, source, place, name):
    path = place / f"{name}.gguf"
    made = subprocess.run([moli, "convert", source, path], capture_output=True, text=True)
    if made.returncode:
        print(f"{name}: not converted: {made.stderr.strip()}")
        return None
    return path


def decoder(moli, source, place):
    path, expected = converted(moli, source, place, source.name), json.loads((source / "expected.json").read_text())
    if path is None:
        return
    context = Context(path, max(expected.get("context", 64), 64))
    if not context:
        return print(f"{source.name}: llama.cpp refuses it")
    found, wanted = context.logits(expected["ids"]), np.array(expected["logits"], dtype=np.float32)
    context.close()
    if found is None:
        return print(f"{source.name}: llama.cpp does not compute it")
    same = (found.argmax(-1) == wanted.argmax(-1)).sum()
    print(f"{source.name}: {np.abs(found - wanted).max():.1e} of {np.abs(wanted).max():.1f}, the likeliest token the same at "
          f"{same} of {len(wanted)}")


def encoder(moli, source, place):
    path, expected = converted(moli, source, place, source.name), json.loads((source / "expected.json").read_text())
    if path is None:
        return
    if "second" in expected:
        return print(f"{source.name}: two texts, which llama.cpp reads as one")
    context = Context(path, 64, llama_cpp.LLAMA_POOLING_TYPE_NONE)
    if not context:
        return print(f"{source.name}: llama.cpp refuses it")
    found, wanted = context.states(expected["ids"]), np.array(expected["states"], dtype=np.float32)
    context.close()
    print(f"{source.name}: {np.abs(found - wanted).max():.1e} of {np.abs(wanted).max():.1f}")


def texts(name, path, texts, ids, vectors, most):
    """Tokens, where they are known, and embeddings of texts."""
    context = Context(path, 512, llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED)
    if not context:
        return print(f"{name}: llama.cpp refuses it")
    least, others = 1.0, []
    for text, known, vector in zip(texts, ids, vectors):
        found = context.tokenize(text)
        if found != known and len(found) != known:
            others.append(text)
            continue
        # Whoever cuts keeps the token behind the text.
        found = found if len(found) <= most else [*found[: most - 1], found[-1]]
        vector = np.array(vector, dtype=np.float64)
        least = min(least, context.embedding(found) @ vector / np.linalg.norm(vector))
    context.close()
    print(f"{name}: least cosine 1 - {1 - least:.1e} of {len(texts) - len(others)} texts; other tokens of {others}")


def minilm(moli, place):
    cases = json.loads((ROOT / "tests/fixtures/minilm.json").read_text())
    vectors = [np.frombuffer(bytes.fromhex(case["embedding"]), dtype=np.float16) for case in cases]
    path = converted(moli, "all-minilm-l6-v2", place, "minilm")
    if path:
        texts("minilm", path, [case["text"] for case in cases], [case["tokens"] for case in cases], vectors, 256)


def xlm_roberta_texts(moli, place):
    folder = ROOT / "tests/fixtures/xlm_roberta"
    expected = json.loads((folder / "expected.json").read_text())
    path = converted(moli, folder / "embeds", place, "xlm_roberta_texts")
    if path:
        texts("xlm_roberta_texts", path, expected["texts"], expected["ids"], expected["cls"], 64)


def main(names):
    moli = ROOT / "target/release/moli"
    if "--moli" in names:
        at = names.index("--moli")
        moli = names[at + 1]
        del names[at : at + 2]
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: print(text.decode(), end="") if level == 4 else None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        for kind, folder in ((decoder, "architectures"), (encoder, "encoders")):
            for source in sorted((ROOT / "tests/fixtures" / folder).iterdir()):
                if not names or source.name in names:
                    kind(moli, source, place)
        for kind in (minilm, xlm_roberta_texts):
            if not names or kind.__name__ in names:
                kind(moli, place)


if __name__ == "__main__":
    main(sys.argv[1:])
