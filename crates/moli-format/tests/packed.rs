//! Folders whose weights are packed, and that contradict themselves or are packed in another way.
//!
//! What the fixtures of `tests/fixtures/packed.py` unpack to is compared in `moli-model::packed`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use moli_format::safetensors::{Dtype, Safetensors};
use moli_format::{FormatError, Gguf, HuggingFaceError, ReadMode, TensorType};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const DOWN: &str = "model.layers.0.mlp.down_proj";

/// Type, shape and bytes.
type Raw = (Dtype, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Raw>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/packed").join(name)
}

fn config(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name).join("config.json")).unwrap()).unwrap()
}

fn tensors(name: &str) -> Tensors {
    let file = Safetensors::open(&fixture(name).join("model.safetensors"), ReadMode::Read).unwrap();
    file.tensors()
        .map(|tensor| (tensor.name.clone(), (tensor.dtype, tensor.shape.clone(), tensor.data.to_vec())))
        .collect()
}

fn open(config: &Value, tensors: &Tensors, mode: ReadMode) -> Result<Gguf, FormatError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    Gguf::open(folder.path(), mode)
}

fn refused(config: &Value, tensors: &Tensors) -> HuggingFaceError {
    match open(config, tensors, ReadMode::Map) {
        Err(FormatError::HuggingFace(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ways_of_packing_that_are_not_read() {
    for (name, field, value) in [
        ("gptq", "bits", json!(3)),
        ("gptq", "bits", json!(2)),
        ("gptq", "checkpoint_format", json!("marlin")),
        ("gptq", "is_marlin_format", json!(true)),
        ("gptq", "pack_dtype", json!("int16")),
        ("gptq", "dynamic", json!({"+:.*down.*": {"bits": 8}})),
        ("awq", "bits", json!(8)),
        ("awq", "version", json!("gemv")),
        ("awq", "zero_point", json!(false)),
        ("awq", "backend", json!("llm-awq")),
    ] {
        let mut config = config(name);
        config["quantization_config"][field] = value;
        let error = refused(&config, &tensors(name));
        let named = format!("quantization_config.{field}");
        assert!(matches!(&error, HuggingFaceError::Unsupported { field, .. } if *field == named), "{error}");
    }
    let mut config = config("gptq");
    config["quantization_config"]["quant_method"] = json!("hqq");
    let error = refused(&config, &tensors("gptq"));
    assert!(matches!(&error, HuggingFaceError::Quantized { method } if method == "hqq"), "{error}");
    // Without the configuration nobody knows what the tensors are.
    config.as_object_mut().unwrap().remove("quantization_config");
    let error = refused(&config, &tensors("gptq"));
    assert!(matches!(&error, HuggingFaceError::UnknownTensor { .. }), "{error}");
}

#[test]
fn numbers_that_are_none() {
    for (field, value) in [
        ("bits", json!("four")),
        ("group_size", json!(0)),
        ("group_size", json!(-2)),
        ("group_size", json!(1.5)),
        ("group_size", json!("all")),
        ("dynamic", json!([1])),
    ] {
        let mut config = config("gptq");
        config["quantization_config"][field] = value.clone();
        let error = refused(&config, &tensors("gptq"));
        assert!(matches!(&error, HuggingFaceError::WrongField { .. }), "{field} {value}: {error}");
    }
    for field in ["bits", "group_size"] {
        let mut config = config("awq");
        config["quantization_config"].as_object_mut().unwrap().remove(field);
        let error = refused(&config, &tensors("awq"));
        assert!(matches!(&error, HuggingFaceError::MissingField { .. }), "{field}: {error}");
    }
}

#[test]
fn parts_that_contradict_each_other() {
    let shape_of = |name: &str, part: &str| {
        let error = |group: i64| {
            let mut config = config(name);
            config["quantization_config"]["group_size"] = json!(group);
            refused(&config, &tensors(name))
        };
        for group in [16, -1] {
            let error = error(group);
            assert!(
                matches!(&error, HuggingFaceError::Shape { tensor, .. } if tensor.ends_with(part)),
                "{error}"
            );
        }
    };
    shape_of("gptq", ".qzeros");
    shape_of("awq", ".qzeros");
    // 96 inputs in groups of 32, and one that says it is of another.
    for group in [3, -1, i32::MAX] {
        let mut tensors = tensors("gptq_order");
        let (_, _, data) = tensors.get_mut(&format!("{DOWN}.g_idx")).unwrap();
        data[20..24].copy_from_slice(&group.to_le_bytes());
        let error = refused(&config("gptq_order"), &tensors);
        let told = i64::from(group);
        assert!(
            matches!(&error, HuggingFaceError::PackedGroup { input: 5, group, groups: 3, .. } if *group == told),
            "{error}"
        );
    }
    let changed = |part: &str, change: &dyn Fn(&mut Raw)| {
        let mut tensors = tensors("gptq");
        change(tensors.get_mut(&format!("{DOWN}.{part}")).unwrap());
        refused(&config("gptq"), &tensors)
    };
    let fewer = |(_, shape, data): &mut Raw| {
        let bytes = data.len() / shape[0];
        shape[0] -= 1;
        data.truncate(bytes * shape[0]);
    };
    for part in ["scales", "qzeros", "g_idx"] {
        let error = changed(part, &fewer);
        assert!(
            matches!(&error, HuggingFaceError::Shape { tensor, .. } if tensor.ends_with(part)),
            "{error}"
        );
    }
    let error = changed("qweight", &|(_, shape, _)| *shape = vec![shape[0] * shape[1]]);
    assert!(matches!(&error, HuggingFaceError::Shape { .. }), "{error}");
    for part in ["qweight", "qzeros", "g_idx"] {
        let error = changed(part, &|(dtype, ..)| *dtype = Dtype::F32);
        assert!(
            matches!(&error, HuggingFaceError::PackedType { tensor, .. } if tensor.ends_with(part)),
            "{error}"
        );
    }
    let error = changed("scales", &|(dtype, ..)| *dtype = Dtype::I16);
    assert!(matches!(&error, HuggingFaceError::ElementType { .. }), "{error}");
    for part in ["scales", "qzeros"] {
        let mut tensors = tensors("gptq");
        tensors.remove(&format!("{DOWN}.{part}"));
        let error = refused(&config("gptq"), &tensors);
        assert!(
            matches!(&error, HuggingFaceError::MissingTensor { tensor } if tensor.ends_with(part)),
            "{error}"
        );
    }
    // Without codes, what belongs to them is left over; without any, nothing is packed.
    let mut some = tensors("gptq");
    some.remove(&format!("{DOWN}.qweight"));
    let error = refused(&config("gptq"), &some);
    assert!(matches!(&error, HuggingFaceError::UnknownTensor { .. }), "{error}");
    some.retain(|name, _| !name.ends_with(".qweight"));
    let error = refused(&config("gptq"), &some);
    assert!(matches!(&error, HuggingFaceError::MissingTensor { tensor } if tensor == "qweight"), "{error}");
    let mut twice = tensors("gptq");
    twice.insert(format!("{DOWN}.weight"), (Dtype::F16, vec![64, 96], vec![0; 64 * 96 * 2]));
    let error = refused(&config("gptq"), &twice);
    assert!(matches!(&error, HuggingFaceError::PackedTwice { tensor } if tensor.contains("down")), "{error}");
}

#[test]
fn what_a_scale_cannot_be_in_halves_is_in_single_precision() {
    let mut tensors = tensors("gptq");
    let (dtype, _, data) = tensors.get_mut(&format!("{DOWN}.scales")).unwrap();
    // As BF16, which has the range of F32: the first is 2^-100.
    *dtype = Dtype::BF16;
    data.chunks_exact_mut(2).for_each(|scale| scale.copy_from_slice(&[0x80, 0x3C]));
    let halves = open(&config("gptq"), &tensors, ReadMode::Map).unwrap();
    assert_eq!(halves.tensor("blk.0.ffn_down.weight").unwrap().ttype, TensorType::Q4_0);
    let (_, _, data) = tensors.get_mut(&format!("{DOWN}.scales")).unwrap();
    data[..2].copy_from_slice(&[0x80, 0x0D]);
    let wide = open(&config("gptq"), &tensors, ReadMode::Map).unwrap();
    assert_eq!(wide.tensor("blk.0.ffn_down.weight").unwrap().ttype, TensorType::F32);
    assert!(wide.metadata().str("moli.unpacked").unwrap().contains("1 as F32 (exact"));
}

#[test]
fn what_is_unpacked_takes_the_place_of_what_was_packed() {
    for (name, blocks) in [("gptq", 18), ("gptq_zeros", 22), ("gptq_8", 34)] {
        let (config, tensors) = (config(name), tensors(name));
        let mapped = open(&config, &tensors, ReadMode::Map).unwrap();
        let bytes: usize = tensors
            .iter()
            .filter(|(name, _)| name.ends_with(".qweight"))
            .map(|(_, (_, _, data))| data.len())
            .sum();
        let weights = bytes as u64 * 8 / if name == "gptq_8" { 8 } else { 4 };
        assert_eq!(mapped.unpacked_bytes(), weights / 32 * blocks, "{name}");
        assert_eq!(
            mapped.weight_bytes(),
            mapped.file_bytes() - bytes as u64 + mapped.unpacked_bytes(),
            "{name}"
        );
        // The file's bytes stay where it was read into memory.
        let read = open(&config, &tensors, ReadMode::Read).unwrap();
        assert_eq!(read.weight_bytes(), read.file_bytes() + read.unpacked_bytes(), "{name}");
    }
}
