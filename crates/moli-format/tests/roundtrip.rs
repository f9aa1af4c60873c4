//! What the writer writes the reader reads, and nothing that is done to such a file makes it panic.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use moli_format::{Array, Bytes, FormatError, Gguf, GgufWriter, NestedArray, TensorType, Value};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn array() -> impl Strategy<Value = Value> {
    let flat = prop_oneof![
        vec(any::<u8>(), 0..20).prop_map(Value::from),
        vec(any::<i16>(), 0..20).prop_map(Value::from),
        vec(any::<u32>(), 0..20).prop_map(Value::from),
        vec(any::<i64>(), 0..20).prop_map(Value::from),
        vec(any::<f32>(), 0..20).prop_map(Value::from),
        vec(any::<f64>(), 0..20).prop_map(Value::from),
        vec(any::<bool>(), 0..20).prop_map(Value::from),
        vec(any::<String>(), 0..20).prop_map(Value::from),
    ];
    let nested = vec(flat.clone(), 0..4).prop_map(|arrays| {
        arrays.iter().filter_map(|array| array.as_array().cloned()).collect::<NestedArray>().into()
    });
    prop_oneof![4 => flat, 1 => nested]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        array(),
    ]
}

fn tensors() -> impl Strategy<Value = BTreeMap<String, (TensorType, Vec<u64>)>> {
    let ttype = proptest::sample::select(TensorType::ALL);
    let dims = (1_u64..3, vec(1_u64..4, 0..4));
    let tensor = (ttype, dims).prop_map(|(ttype, (blocks, others))| {
        let dims = std::iter::once(blocks * ttype.block_len() as u64).chain(others).collect();
        (ttype, dims)
    });
    btree_map("[a-z.0-9é]{1,20}", tensor, 0..6)
}

/// Reads everything that a good file has.
fn touch(gguf: &Gguf) -> usize {
    fn array(values: &Array) -> usize {
        values.iter().map(|value| value.as_array().map_or(1, array)).sum()
    }
    let values: usize = gguf.metadata().iter().map(|(_, value)| value.as_array().map_or(1, array)).sum();
    values + gguf.tensors().map(|tensor| tensor.data.iter().filter(|&&byte| byte > 0).count()).sum::<usize>()
}

proptest! {
    #[test]
    fn write_then_open(
        entries in btree_map("[a-z_.]{1,20}", value(), 0..8),
        tensors in tensors(),
        alignment in proptest::option::of(3_u32..12),
    ) {
        let mut writer = GgufWriter::new();
        if let Some(power) = alignment {
            writer.alignment(1 << power);
        }
        for (key, value) in &entries {
            writer.meta(key, value.clone());
        }
        for (index, (name, (ttype, dims))) in tensors.iter().enumerate() {
            let elements: u64 = dims.iter().product();
            let bytes = elements as usize / ttype.block_len() * ttype.block_bytes();
            writer.tensor(name, *ttype, dims.as_slice(), vec![index as u8; bytes]);
        }
        let mut file = Vec::new();
        writer.write(&mut file).unwrap();
        let gguf = common::open(&file).unwrap();
        prop_assert_eq!(gguf.metadata().len(), entries.len() + usize::from(alignment.is_some()));
        for (key, value) in &entries {
            // Debug, because a NaN is not equal to itself.
            prop_assert_eq!(format!("{:?}", gguf.metadata().get(key).unwrap()), format!("{value:?}"));
        }
        prop_assert_eq!(gguf.tensors().len(), tensors.len());
        for (index, (name, (ttype, dims))) in tensors.iter().enumerate() {
            let tensor = gguf.tensor(name).unwrap();
            prop_assert_eq!((tensor.ttype, &tensor.dims), (*ttype, dims));
            prop_assert!(tensor.data.iter().all(|&byte| byte == index as u8));
            prop_assert_eq!(tensor.elements() as u64, dims.iter().product::<u64>());
        }
        // Written again it is the same file.
        let mut again = GgufWriter::new();
        for (key, value) in gguf.metadata().iter() {
            again.meta(key, value.clone());
        }
        for tensor in gguf.tensors() {
            again.tensor(&tensor.name, tensor.ttype, tensor.dims.as_slice(), &tensor.data);
        }
        let mut copy = Vec::new();
        again.write(&mut copy).unwrap();
        prop_assert!(copy == file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn changed_bytes_never_panic(changes in vec((any::<usize>(), any::<u8>()), 1..8), cut in 0_usize..4000) {
        let mut bytes = common::small();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut.saturating_sub(3000) % bytes.len());
        if let Ok(gguf) = Gguf::from_bytes(&Bytes::from_vec(bytes)) {
            touch(&gguf);
        }
    }

    #[test]
    fn any_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..200), magic: bool) {
        if magic && bytes.len() > 24 {
            bytes[..24].copy_from_slice(b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
        }
        if let Ok(gguf) = Gguf::from_bytes(&Bytes::from_vec(bytes)) {
            touch(&gguf);
        }
    }
}

#[test]
fn typed_readers() {
    let gguf = common::open(&common::small()).unwrap();
    let meta = gguf.metadata();
    assert_eq!(meta.architecture().unwrap(), "llama");
    // Integers of any width, where they fit.
    assert_eq!(meta.u32("a.u8").unwrap(), 1);
    assert_eq!(meta.i64("a.i8").unwrap(), -1);
    assert_eq!(meta.u64("a.u64").unwrap(), u64::MAX);
    assert!(matches!(meta.u32("a.u64"), Err(FormatError::OutOfRange { expected: "u32", .. })));
    assert!(matches!(meta.u32("a.i8"), Err(FormatError::OutOfRange { value: -1, .. })));
    assert!(matches!(meta.i64("a.u64"), Err(FormatError::OutOfRange { .. })));
    // Other types are refused, absent keys are not.
    assert!(matches!(meta.u32("a.f32"), Err(FormatError::WrongType { expected: "an integer", .. })));
    assert!(matches!(meta.u32("a.bool"), Err(FormatError::WrongType { .. })));
    assert!(matches!(meta.f32("a.u8"), Err(FormatError::WrongType { .. })));
    assert!(matches!(meta.str("a.u8"), Err(FormatError::WrongType { .. })));
    assert!(matches!(meta.u32("none"), Err(FormatError::MissingKey { key }) if key == "none"));
    assert_eq!(meta.u32_opt("none").unwrap(), None);
    assert_eq!(meta.f32("a.f64").unwrap(), 0.25);
    assert!(meta.bool("a.bool").unwrap());
    // Arrays.
    assert_eq!(meta.f32s("a.f32s").unwrap().as_ref(), [1.0, -2.0]);
    assert_eq!(meta.u32s("a.u8s").unwrap().as_ref(), [1, 2, 3]);
    assert_eq!(meta.bytes("a.u8s").unwrap().as_slice(), [1, 2, 3]);
    assert_eq!(meta.bools("a.bools").unwrap(), [true, false]);
    assert_eq!(meta.strings("a.strings").unwrap().get(1), Some("é"));
    assert_eq!(meta.i32s("a.none").unwrap().len(), 0);
    assert!(matches!(
        meta.f32s("a.u8s"),
        Err(FormatError::WrongType { expected: "an array of floats", actual, .. }) if actual == "an array of u8"
    ));
    assert!(matches!(meta.strings("a.u8s"), Err(FormatError::WrongType { .. })));
}

#[test]
fn a_scores_array_of_u8() {
    let mut file = Vec::new();
    GgufWriter::new().meta("tokenizer.ggml.scores", [1_u8, 2]).write(&mut file).unwrap();
    let gguf = common::open(&file).unwrap();
    let error = gguf.metadata().f32s_opt("tokenizer.ggml.scores").unwrap_err();
    assert!(matches!(error, FormatError::WrongType { .. }), "{error:?}");
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let refused = |writer: &mut GgufWriter| writer.write(Vec::new()).unwrap_err();
    let error = refused(GgufWriter::new().meta("k", 1_u8).meta("k", 2_u8));
    assert!(matches!(error, FormatError::DuplicateKey { .. }));
    assert!(matches!(refused(GgufWriter::new().meta("", 1_u8)), FormatError::EmptyName { .. }));
    assert!(matches!(refused(GgufWriter::new().meta("a\0", 1_u8)), FormatError::NulInName { .. }));
    assert!(matches!(refused(GgufWriter::new().alignment(24)), FormatError::BadAlignment { .. }));
    let tensor = |dims: &[u64], bytes: usize| {
        refused(GgufWriter::new().tensor("t", TensorType::Q8_0, dims, vec![0; bytes]))
    };
    assert!(matches!(tensor(&[32], 33), FormatError::DataLength { expected: 34, actual: 33, .. }));
    assert!(matches!(tensor(&[31], 34), FormatError::PartialBlock { .. }));
    assert!(matches!(tensor(&[0], 0), FormatError::ZeroDimension { .. }));
    assert!(matches!(tensor(&[], 34), FormatError::TooManyDimensions { actual: 0, .. }));
    assert!(matches!(tensor(&[32, 1, 1, 1, 1], 34), FormatError::TooManyDimensions { actual: 5, .. }));
    let mut twice = GgufWriter::new();
    twice.tensor("t", TensorType::I8, [1], vec![0]).tensor("t", TensorType::I8, [1], vec![0]);
    assert!(matches!(refused(&mut twice), FormatError::DuplicateTensor { .. }));
}

/// Data that is made while the file is written gives the same file, and must be as long as it was said to be.
#[test]
fn data_can_be_made_when_its_turn_comes() {
    let mut ready = GgufWriter::new();
    ready.tensor("a", TensorType::I8, [5], vec![7; 5]).tensor("b", TensorType::I8, [1], vec![9]);
    let mut made = GgufWriter::new();
    made.tensor_from("a", TensorType::I8, [5], |out| (0..5).try_for_each(|_| out.write_all(&[7])))
        .tensor_from("b", TensorType::I8, [1], |out| out.write_all(&[9]));
    let bytes = |writer: &GgufWriter| {
        let mut file = Vec::new();
        writer.write(&mut file).unwrap();
        file
    };
    assert_eq!(bytes(&made), bytes(&ready));

    for wrong in [4, 6] {
        let error = GgufWriter::new()
            .tensor_from("a", TensorType::I8, [5], move |out| out.write_all(&vec![7; wrong]))
            .write(Vec::new())
            .unwrap_err();
        assert!(
            matches!(error, FormatError::DataLength { expected: 5, actual, .. } if actual == wrong as u64)
        );
    }
    // Only a claim, so nothing else bounds it.
    let mut huge = GgufWriter::new();
    for name in ["a", "b", "c", "d"] {
        huge.tensor_from(name, TensorType::I8, [1 << 62], |_| Ok(()));
    }
    assert!(matches!(huge.write(Vec::new()).unwrap_err(), FormatError::DimensionOverflow { .. }));
}

#[test]
fn write_file_leaves_nothing_behind_when_it_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut writer = GgufWriter::new();
    writer.tensor("t", TensorType::I8, [2], vec![0]);
    writer.write_file(&path).unwrap_err();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let error = GgufWriter::new().write_file(&folder.path().join("none/m.gguf")).unwrap_err();
    assert!(matches!(error, FormatError::NotFound { .. }));
}

#[test]
fn a_model_takes_other_weights_of_the_right_size() {
    let mut bytes = Vec::new();
    let mut writer = GgufWriter::new();
    writer.meta("general.architecture", "llama").meta("general.name", "x");
    writer.tensor("a", TensorType::F32, [32, 2], vec![0; 256]).tensor("b", TensorType::F32, [4], vec![0; 16]);
    writer.write(&mut bytes).unwrap();
    let gguf = Gguf::from_bytes(&Bytes::from_vec(bytes)).unwrap();
    let with = |ttype, len| {
        gguf.with_weights(|tensor| match tensor.name.as_str() {
            "a" => Ok((ttype, Bytes::from_vec(vec![1; len]))),
            _ => Ok::<_, FormatError>((tensor.ttype, tensor.data.clone())),
        })
    };
    let made = with(TensorType::Q8_0, 68).unwrap();
    let a = made.tensor("a").unwrap();
    assert_eq!((a.ttype, a.dims.as_slice(), a.data.len()), (TensorType::Q8_0, &[32, 2][..], 68));
    assert_eq!(made.tensor("b"), gguf.tensor("b"));
    assert_eq!((made.metadata(), made.file_bytes()), (gguf.metadata(), 68 + 16));
    let refused = with(TensorType::Q8_0, 67).unwrap_err();
    assert!(matches!(refused, FormatError::DataLength { expected: 68, actual: 67, .. }), "{refused}");
    let refused = with(TensorType::Q4K, 144).unwrap_err();
    assert!(matches!(refused, FormatError::PartialBlock { cols: 32, .. }), "{refused}");
}
