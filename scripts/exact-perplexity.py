#!/usr/bin/env python3
"""Perplexity of a llama or gemma3 GGUF file in exact arithmetic, independent of Moli.

The weights are dequantised by the `gguf` package and everything is computed in f32 with numpy: no quantised activations, no
half precision. It is the truth that tests/real_models/perplexity.rs compares with.

    pip install gguf numpy
    moli tokenize MODEL --special --json < TEXT > ids.json
    scripts/exact-perplexity.py MODEL.gguf ids.json
"""
import json
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

CONTEXT = 512
BOS = 2  # Gemma's

path, ids_path = sys.argv[1:3]
reader = GGUFReader(path)
tensors = {
    t.name: dequantize(t.data, t.tensor_type).astype(np.float32).reshape([int(d) for d in reversed(t.shape)])
    for t in reader.tensors
}
fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("tokenizer")}
arch = fields["general.architecture"]
gemma = arch == "gemma3"
layers, heads = fields[f"{arch}.block_count"], fields[f"{arch}.attention.head_count"]
kv_heads, hidden = fields[f"{arch}.attention.head_count_kv"], fields[f"{arch}.embedding_length"]
head_dim = fields.get(f"{arch}.attention.key_length", hidden // heads)
eps = fields[f"{arch}.attention.layer_norm_rms_epsilon"]
base = fields[f"{arch}.rope.freq_base"]


def norm(x, gain):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def rope(x, base):
    angles = np.arange(x.shape[0])[:, None] * base ** (-np.arange(0, head_dim, 2) / head_dim)
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    out = np.empty_like(x)
    half = head_dim // 2
    first, second = (slice(0, half), slice(half, None)) if gemma else (slice(0, None, 2), slice(1, None, 2))
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def forward(ids):
    n = len(ids)
    x = tensors["token_embd.weight"][ids] * (np.sqrt(hidden) if gemma else 1)
    query, key = np.arange(n)[:, None], np.arange(n)[None]
    for layer in range(layers):
        w = lambda name: tensors[f"blk.{layer}.{name}.weight"]
        local = gemma and layer % 6 < 5
        h = norm(x, w("attn_norm"))
        q = (h @ w("attn_q").T).reshape(n, heads, head_dim)
        k = (h @ w("attn_k").T).reshape(n, kv_heads, head_dim)
        v = (h @ w("attn_v").T).reshape(n, kv_heads, head_dim)
        if gemma:
            q, k = norm(q, w("attn_q_norm")), norm(k, w("attn_k_norm"))
        q, k = (rope(t, 10000.0 if local else base) for t in (q, k))
        k, v = (np.repeat(t, heads // kv_heads, 1) for t in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(head_dim)
        hidden_keys = key > query
        if local:
            hidden_keys |= query - key >= fields[f"{arch}.attention.sliding_window"]
        scores = np.where(hidden_keys, -np.inf, scores)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        out = np.einsum("hij,jhd->ihd", p, v).reshape(n, heads * head_dim) @ w("attn_output").T
        x = x + (norm(out, w("post_attention_norm")) if gemma else out)
        h = norm(x, w("ffn_norm"))
        gate = h @ w("ffn_gate").T
        if gemma:
            gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        out = (gate * (h @ w("ffn_up").T)) @ w("ffn_down").T
        x = x + (norm(out, w("post_ffw_norm")) if gemma else out)
    return norm(x, tensors["output_norm.weight"])


ids = json.load(open(ids_path))["ids"]
head = tensors.get("output.weight", tensors["token_embd.weight"])
loss, scored = 0.0, 0
for start in range(0, len(ids) - CONTEXT + 1, CONTEXT):
    chunk = ids[start : start + CONTEXT]
    # As llama.cpp: a chunk begins with BOS where the model adds one, and its second half is scored.
    context = [BOS] + chunk[1:] if gemma else chunk
    logits = (forward(context)[CONTEXT // 2 : CONTEXT - 1] @ head.T).astype(np.float64)
    top = logits.max(-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    targets = np.array(chunk[CONTEXT // 2 + 1 :])
    loss += (log_sum - logits[np.arange(len(targets)), targets]).sum()
    scored += len(targets)
print(f"{np.exp(loss / scored):.4f} over {scored} tokens")
