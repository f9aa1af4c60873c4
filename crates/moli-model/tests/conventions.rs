//! The same model in the forms that files of several ages have gives the same logits.
//!
//! The folders of `tests/fixtures/architectures` are rewritten as converters to GGUF do: rows of Q and K in the order of
//! interleaved pairs, experts in one tensor, gates beside what they gate, latent attention in two matrices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use moli_format::{Bytes, Gguf, GgufWriter, ReadMode, Tensor, TensorType};
use moli_model::{BackendKind, Batch, Config, KvType, LoadOptions, load, pages_of};

fn folder(name: &str) -> Gguf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    Gguf::open(&root.join(name), ReadMode::Map).unwrap()
}

/// The logits of some tokens at every position.
fn logits(gguf: &Gguf) -> Vec<f32> {
    let tokens: Vec<u32> = (0..14).map(|i| i * 37 % 96).collect();
    let options =
        LoadOptions { threads: 1, isa: None, context: tokens.len(), max_rows: 32, kv_type: KvType::F32 };
    let mut runtime = load(gguf, BackendKind::Cpu, &options).unwrap();
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    let pages: Vec<u32> = (0..pages_of(tokens.len()) as u32).collect();
    let batch = Batch {
        tokens: &tokens,
        positions: &rows,
        sequences: &vec![0; tokens.len()],
        types: &[],
        tables: &[&pages],
        adapters: &[],
        recurrent: &[],
        outputs: &rows,
        states: &[],
    };
    runtime.forward(&batch).unwrap().logits.to_vec()
}

/// A model with other tensors and other values of some keys; `None` removes the key.
fn rewritten(gguf: &Gguf, keys: &[(&str, Option<u32>)], tensors: Vec<Tensor>) -> Gguf {
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata().iter() {
        if !keys.iter().any(|(changed, _)| *changed == key) {
            writer.meta(key, value.clone());
        }
    }
    for (key, value) in keys {
        if let Some(value) = value {
            writer.meta(*key, *value);
        }
    }
    for tensor in tensors {
        writer.tensor(&tensor.name, tensor.ttype, tensor.dims.as_slice(), tensor.data.to_vec());
    }
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    Gguf::from_bytes(&Bytes::from_vec(file)).unwrap()
}

/// The rows of each head, pairs of halves made neighbours.
fn interleaved(tensor: &Tensor, heads: usize) -> Tensor {
    let row = tensor.data.len() / tensor.rows();
    let half = tensor.rows() / heads / 2;
    let order = (0..heads).flat_map(|head| {
        (0..half).flat_map(move |i| [0, 1].map(|second| head * 2 * half + second * half + i))
    });
    let data = order.flat_map(|from| tensor.data[from * row..(from + 1) * row].to_vec()).collect();
    Tensor { data: Bytes::from_vec(data), ..tensor.clone() }
}

#[test]
fn rows_of_q_and_k_in_the_order_of_converted_files() {
    for name in ["llama", "granite", "internlm2", "smollm3"] {
        let gguf = folder(name);
        let architecture = gguf.metadata().architecture().unwrap();
        let heads = |key: &str| gguf.metadata().u64(&format!("{architecture}.{key}")).unwrap() as usize;
        // In a layer without rotary embedding there are no pairs.
        let rotated = gguf.metadata().bools_opt(&format!("{architecture}.rope.layers")).unwrap();
        let turns = |tensor: &Tensor| {
            let layer: Option<usize> = tensor.name.split('.').nth(1).and_then(|layer| layer.parse().ok());
            rotated.as_ref().zip(layer).is_none_or(|(layers, layer)| layers[layer])
        };
        let tensors =
            gguf.tensors().map(|tensor| match tensor.name.rsplit('.').nth(1).filter(|_| turns(tensor)) {
                Some("attn_q") => interleaved(tensor, heads("attention.head_count")),
                Some("attn_k") => interleaved(tensor, heads("attention.head_count_kv")),
                _ => tensor.clone(),
            });
        let converted = rewritten(&gguf, &[("moli.rope.halves", None)], tensors.collect());
        let want = logits(&gguf);
        assert_eq!(logits(&converted), want, "{name}");
        // With the key left in, the rows would be in the wrong order.
        let wrong = rewritten(&gguf, &[], converted.tensors().cloned().collect());
        assert_ne!(logits(&wrong), want, "{name}");
    }
}

#[test]
fn architectures_that_are_others_by_another_name() {
    for (name, other) in [
        ("llama", "xverse"),
        ("llama", "chatglm"),
        ("llama", "mistral3"),
        ("phi3_partial", "exaone"),
        ("mixtral", "deepseek"),
        ("qwen2", "qwen2vl"),
        ("qwen3", "qwen3vl"),
        ("qwen3_moe", "qwen3vlmoe"),
        ("glm4_moe", "dots1"),
        ("hunyuan_dense", "hunyuan-moe"),
    ] {
        let gguf = folder(name);
        let prefix = format!("{}.", gguf.metadata().architecture().unwrap());
        let mut writer = GgufWriter::new();
        for (key, value) in gguf.metadata().iter() {
            match key.strip_prefix(&prefix) {
                Some(key) => writer.meta(format!("{other}.{key}"), value.clone()),
                None if key == "general.architecture" => writer.meta(key, other),
                None => writer.meta(key, value.clone()),
            };
        }
        for tensor in gguf.tensors() {
            writer.tensor(&tensor.name, tensor.ttype, tensor.dims.as_slice(), tensor.data.to_vec());
        }
        let mut file = Vec::new();
        writer.write(&mut file).unwrap();
        let renamed = Gguf::from_bytes(&Bytes::from_vec(file)).unwrap();
        assert_eq!(logits(&renamed), logits(&gguf), "{name} as {other}");
    }
}

/// NVFP4's factors on whole matrices: of a matrix that is divided by one, the model is the same.
#[test]
fn factors_on_matrices() {
    for name in ["qwen2", "phi3", "qwen3_moe", "llama_bias"] {
        let gguf = folder(name);
        let mut tensors = Vec::new();
        let stacks =
            if name == "qwen3_moe" { stacked(&gguf, false) } else { gguf.tensors().cloned().collect() };
        for tensor in stacks {
            let scaled =
                tensor.dims.len() > 1 && tensor.name.starts_with("blk.") || tensor.name == "output.weight";
            if !scaled {
                tensors.push(tensor);
                continue;
            }
            // Powers of two, so that nothing is rounded. One for each expert.
            let matrices = tensor.dims.get(2).map_or(1, |&experts| experts as usize);
            let scales: Vec<f32> = (0..matrices).map(|i| 0.25 * 2f32.powi(i as i32)).collect();
            let each = tensor.elements() / matrices;
            let values = tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            let divided = values.enumerate().map(|(at, value)| value / scales[at / each]);
            let data = Bytes::from_vec(divided.flat_map(f32::to_le_bytes).collect());
            let vector = |end: &str, values: &[f32]| Tensor {
                name: tensor.name.replace(".weight", end),
                ttype: TensorType::F32,
                dims: vec![values.len() as u64],
                data: Bytes::from_vec(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            };
            tensors.push(vector(".scale", &scales));
            tensors.push(vector(".input_scale", &[3.0]));
            tensors.push(Tensor { data, ..tensor });
        }
        assert_eq!(logits(&rewritten(&gguf, &[], tensors)), logits(&gguf), "{name}");
    }
}

#[test]
fn keys_that_files_have_for_the_same_thing() {
    let gguf = folder("llama");
    let tensors = || gguf.tensors().cloned().collect::<Vec<_>>();
    let mut ahead = tensors();
    // A layer that guesses further ahead, and is left out.
    let more = gguf.tensors().filter(|tensor| tensor.name.starts_with("blk.1."));
    ahead.extend(
        more.map(|tensor| Tensor { name: tensor.name.replace("blk.1.", "blk.2."), ..tensor.clone() }),
    );
    let keys = [("llama.block_count", Some(3)), ("llama.nextn_predict_layers", Some(1))];
    assert_eq!(logits(&rewritten(&gguf, &keys, ahead)), logits(&gguf));

    // Queries' temperature begins to rise behind this many tokens, which is as far as such a model goes.
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata().iter() {
        writer.meta(key, value.clone());
    }
    writer.meta("llama.attention.temperature_scale", 0.1f32);
    writer.meta("llama.rope.scaling.original_context_length", 20u32);
    let metadata = |writer: &GgufWriter| {
        let mut file = Vec::new();
        writer.write(&mut file).unwrap();
        Gguf::from_bytes(&Bytes::from_vec(file)).unwrap()
    };
    let config = Config::from_metadata(metadata(&writer).metadata(), 96).unwrap();
    assert_eq!(config.context_train, 20);
    // Granite's way to say that nothing is rotated, which in other files tells of how the model was made.
    for (name, rotates) in [("granite", false), ("llama", true)] {
        let gguf = folder(name);
        let mut writer = GgufWriter::new();
        for (key, value) in gguf.metadata().iter() {
            writer.meta(key, value.clone());
        }
        writer.meta(format!("{name}.rope.scaling.finetuned"), false);
        let config = Config::from_metadata(metadata(&writer).metadata(), 96).unwrap();
        assert_eq!(config.rotated, [rotates; 2], "{name}");
    }
    // Whatever stretches the context, and where nothing does.
    writer.meta("llama.rope.scaling.attn_factor", 1.25f32);
    let config = Config::from_metadata(metadata(&writer).metadata(), 96).unwrap();
    assert_eq!(config.rope.magnitude, 1.25);
}

/// Experts that are in tensors of their own, put into one for each part, or into one for gates and what they gate.
fn stacked(gguf: &Gguf, fused: bool) -> Vec<Tensor> {
    let mut stacks: BTreeMap<String, Vec<(usize, &Tensor)>> = BTreeMap::new();
    let mut tensors = Vec::new();
    for tensor in gguf.tensors() {
        match tensor.name.split('.').collect::<Vec<_>>()[..] {
            ["blk", layer, part, expert, "weight"] => {
                let expert: usize = expert.parse().unwrap();
                let (part, index) = match part {
                    "ffn_gate" if fused => ("ffn_gate_up", 2 * expert),
                    "ffn_up" if fused => ("ffn_gate_up", 2 * expert + 1),
                    part => (part, expert),
                };
                stacks.entry(format!("blk.{layer}.{part}_exps.weight")).or_default().push((index, tensor));
            }
            _ => tensors.push(tensor.clone()),
        }
    }
    assert!(!stacks.is_empty());
    for (name, mut parts) in stacks {
        parts.sort_by_key(|(index, _)| *index);
        let double = if name.contains("gate_up") { 2 } else { 1 };
        let (cols, rows) = (parts[0].1.cols() as u64, parts[0].1.rows() as u64);
        let dims = vec![cols, rows * double, parts.len() as u64 / double];
        let data = parts.iter().flat_map(|(_, tensor)| tensor.data.to_vec()).collect();
        tensors.push(Tensor { name, ttype: TensorType::F32, dims, data: Bytes::from_vec(data) });
    }
    tensors
}

#[test]
fn experts_alone_together_and_with_their_gates() {
    for name in ["mixtral", "qwen3_moe", "deepseek_v3", "gemma4_moe"] {
        let gguf = folder(name);
        let want = logits(&gguf);
        for fused in [false, true] {
            assert_eq!(logits(&rewritten(&gguf, &[], stacked(&gguf, fused))), want, "{name}, fused: {fused}");
        }
    }
}

/// Layers of Gemma 4 that see the keys of others have some of their own in published files.
#[test]
fn keys_and_values_that_nothing_reads() {
    let gguf = folder("gemma4");
    let mut tensors: Vec<Tensor> = gguf.tensors().cloned().collect();
    let own = tensors.iter().filter(|tensor| tensor.name.starts_with("blk.2.attn_"));
    let unread =
        own.filter(|tensor| ["_k.", "_v.", "_k_norm."].iter().any(|part| tensor.name.contains(part)));
    let unread: Vec<Tensor> = unread
        .map(|tensor| Tensor { name: tensor.name.replace("blk.2.", "blk.3."), ..tensor.clone() })
        .collect();
    assert_eq!(unread.len(), 3);
    tensors.extend(unread);
    assert_eq!(logits(&rewritten(&gguf, &[], tensors)), logits(&gguf));
}

#[test]
fn latent_attention_in_one_matrix_and_in_two() {
    for name in ["deepseek_v2", "deepseek_v3"] {
        let gguf = folder(name);
        let number = |key: &str| gguf.metadata().u64(&format!("deepseek2.{key}")).unwrap() as usize;
        let (heads, rank) = (number("attention.head_count"), number("attention.kv_lora_rank"));
        let rotated = number("rope.dimension_count");
        let (key, value) = (number("attention.key_length"), number("attention.value_length"));
        let plain = key - rotated;
        let mut tensors = Vec::new();
        for tensor in gguf.tensors() {
            let Some(layer) = tensor.name.strip_suffix("attn_kv_b.weight") else {
                tensors.push(tensor.clone());
                continue;
            };
            let floats: Vec<[u8; 4]> = tensor.data.as_chunks::<4>().0.to_vec();
            let at =
                |head: usize, row: usize, col: usize| floats[(head * (plain + value) + row) * rank + col];
            let (mut k, mut v) = (Vec::new(), Vec::new());
            for head in 0..heads {
                k.extend(
                    (0..rank).flat_map(|r| (0..plain).map(move |p| (p, r))).map(|(p, r)| at(head, p, r)),
                );
                v.extend(
                    (0..value)
                        .flat_map(|o| (0..rank).map(move |r| (o, r)))
                        .map(|(o, r)| at(head, plain + o, r)),
                );
            }
            for (stem, cols, rows, data) in [("attn_k_b", plain, rank, k), ("attn_v_b", rank, value, v)] {
                tensors.push(Tensor {
                    name: format!("{layer}{stem}.weight"),
                    ttype: TensorType::F32,
                    dims: vec![cols as u64, rows as u64, heads as u64],
                    data: Bytes::from_vec(data.concat()),
                });
            }
        }
        let keys = [
            ("deepseek2.attention.head_count_kv", Some(1)),
            ("deepseek2.attention.key_length", Some((rank + rotated) as u32)),
            ("deepseek2.attention.value_length", Some(rank as u32)),
            ("deepseek2.attention.key_length_mla", Some(key as u32)),
            ("deepseek2.attention.value_length_mla", Some(value as u32)),
        ];
        assert_eq!(logits(&rewritten(&gguf, &keys, tensors)), logits(&gguf), "{name}");
    }
}
