#!/usr/bin/env python3
"""Writes which formats llama.cpp's quantiser chooses for the tensors of small models, which Moli's mixtures are tested against.

    scripts/peers-venv.sh FOLDER && FOLDER/bin/pip install gguf==0.19.0
    FOLDER/bin/python scripts/mixture-fixtures.py

writes crates/moli-convert/tests/fixtures/mixtures.json: for each model its metadata, its tensors (those outside of layers, and
those of each layer) and, for each mixture, one letter for each tensor in that order. "imatrix" is with an importance matrix of
ones for every tensor. What llama.cpp refuses is null. Everything is in F32 before, so that is what stays as it is.
"""

import ctypes
import json
import pathlib
import tempfile

import llama_cpp
import numpy as np
from gguf import GGUFReader, GGUFWriter
from llama_cpp.llama_cpp import llama_model_imatrix_data as Entry

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/moli-convert/tests/fixtures/mixtures.json"
ROWS = 4
MIXTURES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8, "Q4_K_M": 15,
    "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30, "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "Q2_K": 10,
    "Q2_K_S": 21,
}


def model(name, arch, layers, heads, kv_heads, layer, cols=256, tied=False, outside=(), **more):
    keys = {
        "block_count": layers, "context_length": 512, "embedding_length": cols, "feed_forward_length": 2 * cols,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5, "vocab_size": ROWS, **more,
    }
    ends = [["token_embd.weight", [cols, ROWS]], ["output_norm.weight", [cols]], *outside]
    if not tied:
        ends.append(["output.weight", [cols, ROWS]])
    return {
        "name": name, "metadata": {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in keys.items()}},
        "outside": ends, "layers": layers, "layer": layer,
    }


def matrices(cols, *stems, experts=None):
    return [[f"{stem}.weight", [cols, ROWS] + ([experts] if experts else [])] for stem in stems]


def vectors(cols, *names):
    return [[name, [cols]] for name in names]


ATTENTION = ["attn_q", "attn_k", "attn_v", "attn_output"]
DENSE = ["ffn_gate", "ffn_up", "ffn_down"]
EXPERTS = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]
NORMS = ["attn_norm.weight", "ffn_norm.weight"]


def llama(cols=256):
    return vectors(cols, *NORMS) + matrices(cols, *ATTENTION, *DENSE)


def mixture_of(experts, attention=tuple(ATTENTION)):
    return (vectors(256, *NORMS) + matrices(256, *attention, "ffn_gate_inp")
            + matrices(256, *EXPERTS, experts=experts))


def moe(experts):
    return {"expert_count": experts, "expert_used_count": 2, "expert_feed_forward_length": 256,
            "expert_shared_feed_forward_length": 256, "expert_shared_count": 1}


MODELS = [
    model("llama", "llama", 16, 8, 8, llama()),
    model("llama, a shared value, tied", "llama", 35, 8, 1, llama(), tied=True),
    model("llama, four to a value", "llama", 5, 8, 2, llama()),
    model("llama of 80 layers", "llama", 80, 8, 1, matrices(256, "attn_v", "attn_output", "ffn_down")),
    model("llama, rows of 320", "llama", 8, 8, 1, llama(320)),
    model("llama, rows of 320, tied", "llama", 8, 8, 8, llama(320), cols=320, tied=True),
    model("llama, rows of 80", "llama", 8, 8, 8, llama(80), cols=80),
    model("mixtral", "llama", 16, 8, 2, mixture_of(8), **moe(8)),
    model("mixtral of four", "llama", 16, 8, 2, mixture_of(4), **moe(4)),
    model("qwen2moe", "qwen2moe", 16, 8, 8, mixture_of(60)
          + matrices(256, "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
          + vectors(256, "attn_q.bias", "ffn_gate_inp_shexp.weight"), **moe(60)),
    model("qwen2 of 80 layers", "qwen2", 80, 8, 8, matrices(256, "attn_v", "ffn_down")),
    model("gemma3, as 270M", "gemma3", 18, 4, 1, matrices(640, "attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
          + matrices(1024, "attn_output") + matrices(2048, "ffn_down"), cols=640, tied=True),
    model("smollm2, as 135M", "llama", 30, 9, 3, matrices(576, *ATTENTION, "ffn_gate", "ffn_up")
          + matrices(1536, "ffn_down"), cols=576, tied=True),
    model("phi3", "phi3", 20, 8, 8, matrices(256, "attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    model("falcon", "falcon", 32, 8, 1, matrices(256, "attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    model("deepseek2", "deepseek2", 27, 8, 8, matrices(256, "attn_q", "attn_kv_a_mqa", "attn_kv_b", "attn_output", *DENSE),
          **{"attention.kv_lora_rank": 256, **moe(64)}),
    model("bert", "bert", 12, 8, 8, vectors(256, "attn_output_norm.weight") + matrices(256, *ATTENTION, "ffn_up", "ffn_down"),
          outside=[*matrices(256, "position_embd", "token_types"), *vectors(256, "token_embd_norm.bias")], tied=True),
]


def tensors_of(model):
    layers = [[f"blk.{n}.{name}", dims] for n in range(model["layers"]) for name, dims in model["layer"]]
    return model["outside"] + layers


def write(model, path):
    rng = np.random.default_rng(1)
    writer = GGUFWriter(path, model["metadata"]["general.architecture"])
    for key, value in model["metadata"].items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
    for name, dims in tensors_of(model):
        writer.add_tensor(name, rng.standard_normal(dims[::-1], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantised(source, target, number, imatrix):
    """The formats by name, or None where llama.cpp refuses."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = number, 1
    if imatrix is not None:
        params.imatrix = imatrix
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        return None
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(target).tensors}


def ones(model):
    entries, keep = [], []
    for name, dims in tensors_of(model):
        if len(dims) > 1:
            size = dims[0] * (dims[2] if len(dims) > 2 else 1)
            values = (ctypes.c_float * size)(*[1.0] * size)
            keep.append(values)
            entries.append(Entry(name.encode(), ctypes.cast(values, ctypes.POINTER(ctypes.c_float)), size))
    entries.append(Entry(None, None, 0))
    return (Entry * len(entries))(*entries), keep


def main():
    legend, models = {}, []
    with tempfile.TemporaryDirectory() as folder:
        source, target = (str(pathlib.Path(folder) / name) for name in ("source.gguf", "target.gguf"))
        for model in MODELS:
            write(model, source)
            imatrix, _keep = ones(model)
            for kind, data in (("types", None), ("imatrix", imatrix)):
                model[kind] = {}
                for name, number in MIXTURES.items():
                    types = quantised(source, target, number, data)
                    if types is not None:
                        names = [types[tensor] for tensor, _ in tensors_of(model)]
                        types = "".join(legend.setdefault(t, chr(ord("A") + len(legend))) for t in names)
                    model[kind][name] = types
            # Only what differs is of interest.
            model["imatrix"] = {k: v for k, v in model["imatrix"].items() if v != model["types"][k]}
            models.append(model)
    version = f"llama.cpp of llama-cpp-python {llama_cpp.__version__}"
    lines = ",\n".join(json.dumps(model) for model in models)
    legend = json.dumps({letter: name for name, letter in legend.items()})
    OUT.write_text(f'{{"made_by": "{version}",\n"legend": {legend},\n"models": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
