#!/usr/bin/env python3
"""Whether transformers and sentence-transformers read what `moli convert` writes of a GGUF, and come to the same.

    pip install torch==2.15.0 transformers==5.24.0 sentence-transformers==6.2.0 numpy==2.4.6
    cargo build --release
    scripts/converted_in_transformers.py [--moli BINARY] [NAME ...]

Each folder of tests/fixtures/architectures and tests/fixtures/encoders becomes a GGUF and a folder again, which transformers loads
and computes in f32: the logits, states or scores are compared with those of the folder that it was. Then the real models of the
catalogue: SmolLM2 as F32, whose answers and logits are compared with Moli's, and all-MiniLM-L6-v2, whose embeddings are. The exit
status is 1 if anything is not the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests/fixtures"
# Their classes are code that comes with published models, which the fixtures don't have.
FOREIGN = ["baichuan", "internlm2", "minicpm"]
# What Moli refuses to write into a folder, and why in its words.
ONE_WAY = {"glm4_odd": "rope_freqs.weight", "qwen2_5_vl": "qwen2vl"}
PROMPTS = ["The capital of France is", "Water boils at", "def fibonacci(n):\n", "1, 2, 3, 4,"]
CHAT = [{"role": "user", "content": "What is the capital of France?"}]

failures = []


def report(name, worst, bound):
    print(f"{name}: {worst:.1e}" + ("" if worst <= bound else f", and at most {bound:.0e} is allowed"), flush=True)
    if not worst <= bound:
        failures.append(name)


def apart(found, expected):
    """The greatest difference, relative to the largest element."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return np.abs(found - expected).max() / np.abs(expected).max()


class Refused(Exception):
    """The command failed, with these words."""


class Moli:
    def __init__(self, binary):
        self.binary = binary

    def __call__(self, *arguments):
        done = subprocess.run([self.binary, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            raise Refused(f"moli {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def there_and_back(self, source, place, name, *options):
        file, folder = place / f"{name}.gguf", place / name
        self("convert", source, file, *options)
        self("convert", file, folder)
        return file, folder


def decoder(moli, source, place):
    expected = json.loads((source / "expected.json").read_text())
    _, folder = moli.there_and_back(source, place, source.name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([expected["ids"]])).logits[0].numpy()
    report(source.name, apart(logits, expected["logits"]), 2e-5)


def encoder(moli, source, place):
    expected = json.loads((source / "expected.json").read_text())
    _, folder = moli.there_and_back(source, place, source.name)
    ids = torch.tensor([expected["ids"]])
    kinds = {}
    if "second" in expected and json.loads((folder / "config.json").read_text()).get("type_vocab_size", 0) > 1:
        kinds["token_type_ids"] = (torch.arange(ids.shape[1])[None] >= expected["second"]).long()
    with torch.no_grad():
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        report(source.name, apart(model(ids, **kinds).last_hidden_state[0], expected["states"]), 2e-5)
        if "logit" in expected:
            kind = AutoModelForSequenceClassification
            model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
            report(f"{source.name}, its score", apart(model(ids, **kinds).logits[0], [expected["logit"]]), 2e-5)


def smollm2(moli, place):
    file, folder = moli.there_and_back("smollm2-135m-instruct", place, "smollm2", "--dtype", "f32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chat = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    for prompt in [*PROMPTS, chat]:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0].numpy()
            answer = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer.decode(answer, skip_special_tokens=True)
        asked = ["--ids", ",".join(map(str, ids[0].tolist())), "--positions", "all", "--json"]
        for path in (file, folder):
            report(f"smollm2, {prompt[:20]!r}", apart(json.loads(moli("logits", path, *asked))["logits"], logits), 2e-5)
            own = moli("run", path, "--raw", "-p", prompt, "-n", 24, "--temp", 0, "--repeat-penalty", 1)
            if prompt != chat and own.strip() != text.strip():
                failures.append(prompt)
                print(f"another answer to {prompt!r}: {own!r}, and of transformers {text!r}")


def minilm(moli, place):
    texts = [case["text"] for case in json.loads((FIXTURES / "minilm.json").read_text())]
    # A model of several files is named by one of them.
    original = Path(moli("pull", "all-minilm-l6-v2").strip().splitlines()[-1]).parent
    file, folder = moli.there_and_back("all-minilm-l6-v2", place, "minilm")
    models = [SentenceTransformer(str(path)) for path in (original, folder)]
    lengths = [model.max_seq_length for model in models]
    if lengths[0] != lengths[1]:
        failures.append("minilm")
        print(f"all-minilm-l6-v2: {lengths[1]} tokens at most, and of the original {lengths[0]}")
    wanted, found = [model.encode(texts, normalize_embeddings=True) for model in models]
    report("all-minilm-l6-v2, the folder", apart(found, wanted), 1e-6)
    lines = [text for text in texts if not set(text) & set("\n\r\0") and text.strip()]
    listed = place / "lines.txt"
    listed.write_text("\n".join(lines))
    own = json.loads(moli("embed", file, "-f", listed, "--truncate", "--format", "json"))["embeddings"]
    wanted = models[0].encode(lines, normalize_embeddings=True)
    report("all-minilm-l6-v2, the GGUF in Moli", 1 - (np.array(own) * wanted).sum(-1).min(), 1e-4)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--moli", default=ROOT / "target/release/moli")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    moli = Moli(options.moli)
    asked = lambda name: not options.names or name in options.names
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        for kind, folder in ((decoder, "architectures"), (encoder, "encoders")):
            for source in sorted((FIXTURES / folder).iterdir()):
                if not asked(source.name) or source.name in FOREIGN:
                    continue
                try:
                    kind(moli, source, place)
                except Refused as error:
                    why = ONE_WAY.get(source.name)
                    if why is None or why not in str(error):
                        failures.append(source.name)
                    print(f"{source.name}: {error}", flush=True)
        for kind in (smollm2, minilm):
            if asked(kind.__name__):
                kind(moli, place)
    print("all of it is the same" if not failures else f"{len(failures)} are not the same")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
