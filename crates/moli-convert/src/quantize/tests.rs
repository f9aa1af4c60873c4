use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use moli_kernels::dequantize;

use super::*;
use crate::ImatrixEntry;

const COLS: usize = 256;
const ROWS: usize = 20;

/// Weights that look like a model's.
fn weights(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| 0.1 * (next() + next() + next())).collect()
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A model of two layers in single precision; `change` may add to it.
fn model(change: impl FnOnce(&mut GgufWriter)) -> Gguf {
    let mut file = GgufWriter::new();
    file.meta("general.architecture", "llama").meta("llama.block_count", 2u32);
    file.meta("general.file_type", 0u32).meta("general.name", "small");
    file.meta("llama.attention.head_count", 4u32).meta("llama.attention.head_count_kv", 4u32);
    let names = ["token_embd", "output", "blk.0.attn_v", "blk.0.ffn_down", "blk.1.attn_v", "blk.1.ffn_down"];
    for (seed, name) in names.into_iter().enumerate() {
        let dims = [COLS as u64, ROWS as u64];
        file.tensor(
            format!("{name}.weight"),
            TensorType::F32,
            dims,
            le_bytes(&weights(seed as u64, COLS * ROWS)),
        );
    }
    file.tensor("output_norm.weight", TensorType::F32, [COLS as u64], le_bytes(&[1.0; COLS]));
    change(&mut file);
    let mut bytes = Vec::new();
    file.write(&mut bytes).unwrap();
    Gguf::from_bytes(&Bytes::from_vec(bytes)).unwrap()
}

fn options(mixture: Mixture) -> QuantizeOptions {
    QuantizeOptions { mixture, keep: Vec::new(), imatrix: None }
}

fn with(imatrix: Imatrix) -> QuantizeOptions {
    QuantizeOptions { imatrix: Some((PathBuf::from("imatrix.gguf"), imatrix)), ..options(Mixture::Q4KM) }
}

fn imatrix(entries: &[(&str, usize, &[f32])]) -> Imatrix {
    let entry = |cols: usize, counts: &[f32]| ImatrixEntry {
        in_sum2: vec![1.0; cols * counts.len()],
        counts: counts.to_vec(),
    };
    let entries = entries.iter().map(|&(name, cols, counts)| (name.to_owned(), entry(cols, counts)));
    Imatrix { datasets: vec!["text.txt".into()], chunk_count: 7, chunk_size: 512, entries: entries.collect() }
}

fn go_on() -> Arc<Progress> {
    Arc::new(|_| ControlFlow::Continue(()))
}

fn quantised(model: &Gguf, options: &QuantizeOptions, threads: usize) -> Result<Gguf, ConvertError> {
    Quantization::new(model, options)?.in_memory(&Arc::new(Pool::new(threads)), &go_on())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.elements()];
    dequantize(tensor.ttype, &tensor.data, &mut values).unwrap();
    values
}

#[test]
fn a_model_is_the_same_but_for_its_weights_formats() {
    let model = model(|file| {
        file.meta("split.count", 1u32).meta("quantize.imatrix.file", "old.gguf");
    });
    let made = quantised(&model, &options(Mixture::Q4KM), 2).unwrap();
    let types: BTreeMap<&str, &str> = made.tensors().map(|t| (t.name.as_str(), t.ttype.name())).collect();
    let expected = [
        ("blk.0.attn_v.weight", "Q4_K"),
        ("blk.0.ffn_down.weight", "Q4_K"),
        ("blk.1.attn_v.weight", "Q6_K"),
        ("blk.1.ffn_down.weight", "Q6_K"),
        ("output.weight", "Q6_K"),
        ("output_norm.weight", "F32"),
        ("token_embd.weight", "Q4_K"),
    ];
    assert_eq!(types, expected.into());
    for (before, after) in model.tensors().zip(made.tensors()) {
        assert_eq!((&before.name, &before.dims), (&after.name, &after.dims));
        let (before, after) = (values(before), values(after));
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
        let error =
            square(&mut before.iter().zip(&after).map(|(a, b)| a - b)) / square(&mut before.iter().copied());
        assert!(error < 0.1, "{error}");
    }
    let metadata = made.metadata();
    assert_eq!(metadata.u32("general.file_type").unwrap(), 15);
    assert_eq!(metadata.u32("general.quantization_version").unwrap(), 2);
    assert_eq!(metadata.str("general.name").unwrap(), "small");
    assert!(metadata.get("split.count").is_none() && metadata.get("quantize.imatrix.file").is_none());
}

#[test]
fn threads_and_pieces_change_nothing() {
    // More rows than a span has, of three experts with a number that no span divides.
    let rows = 300u64;
    let model = model(|file| {
        let data = le_bytes(&weights(9, COLS * rows as usize * 3));
        file.tensor("blk.0.ffn_up_exps.weight", TensorType::F32, [COLS as u64, rows, 3], data);
    });
    let counted = with(imatrix(&[("blk.0.ffn_up_exps.weight", COLS, &[1.0, 2.0, 0.0])]));
    for options in [options(Mixture::Q5KM), counted] {
        let one = quantised(&model, &options, 1).unwrap();
        let three = quantised(&model, &options, 3).unwrap();
        assert!(one.tensors().eq(three.tensors()));
    }
}

#[test]
fn what_has_its_format_already_is_copied() {
    let first = quantised(&model(|_| ()), &options(Mixture::Q4KM), 1).unwrap();
    let again = Quantization::new(&first, &options(Mixture::Q4KM)).unwrap();
    assert!(again.notes().is_empty() && again.tensors().all(|tensor| !tensor.changes()));
    let again = again.in_memory(&Arc::new(Pool::new(1)), &go_on()).unwrap();
    assert!(first.tensors().eq(again.tensors()));
    let lower = Quantization::new(&first, &options(Mixture::Q3KS)).unwrap();
    let QuantizeNote::Requantised { tensors: 5, from: TensorType::Q4K, .. } = &lower.notes()[0] else {
        panic!("{:?}", lower.notes())
    };
    assert!(lower.notes()[0].to_string().starts_with("5 tensors were quantised already"));
    // Back to floats nothing is lost.
    assert!(Quantization::new(&first, &options(Mixture::F32)).unwrap().notes().is_empty());
}

#[test]
fn rows_that_are_no_whole_blocks_are_told() {
    let model = model(|file| {
        let data = le_bytes(&weights(9, 96 * 4));
        file.tensor("blk.0.attn_q.weight", TensorType::F32, [96, 4], data.clone());
        file.tensor("blk.0.attn_k.weight", TensorType::F32, [4, 96], data);
    });
    let quantization = Quantization::new(&model, &options(Mixture::Q4KM)).unwrap();
    let notes: Vec<String> = quantization.notes().iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "1 tensor as Q5_0 instead of Q4_K, whose blocks of 256 don't divide the rows: blk.0.attn_q.weight has 96 columns",
            "1 tensor as F16 instead of Q4_K, whose blocks of 256 don't divide the rows: blk.0.attn_k.weight has 4 columns",
        ]
    );
}

#[test]
fn the_plan_says_what_is_written() {
    let model = model(|_| ());
    let quantization = Quantization::new(&model, &options(Mixture::Q8_0)).unwrap();
    let made = quantization.in_memory(&Arc::new(Pool::new(1)), &go_on()).unwrap();
    assert_eq!(quantization.file_bytes().unwrap(), made.file_bytes());
    for (planned, tensor) in quantization.tensors().zip(made.tensors()) {
        assert_eq!((planned.to, planned.to_bytes), (tensor.ttype, tensor.data.len() as u64));
    }
    let before: usize = model.tensors().map(|tensor| tensor.data.len()).sum();
    assert_eq!(quantization.input_bytes(), before as u64);
}

#[test]
fn all_of_the_model_is_reported_as_read() {
    let model = model(|_| ());
    let quantization = Quantization::new(&model, &options(Mixture::Q8_0)).unwrap();
    let read = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&read);
    let progress: Arc<Progress> = Arc::new(move |bytes| {
        counter.fetch_add(bytes, Ordering::Relaxed);
        ControlFlow::Continue(())
    });
    quantization.in_memory(&Arc::new(Pool::new(2)), &progress).unwrap();
    assert_eq!(read.load(Ordering::Relaxed), quantization.input_bytes());
}

#[test]
fn who_stops_it_finds_nothing_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let output = Output::new(&path, &[], false).unwrap();
    let quantization = Quantization::new(&model(|_| ()), &options(Mixture::Q8_0)).unwrap();
    let stop: Arc<Progress> = Arc::new(|_| ControlFlow::Break(()));
    let stopped = quantization.write(&output, &Arc::new(Pool::new(1)), &stop).unwrap_err();
    assert!(matches!(stopped, ConvertError::Interrupted), "{stopped}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn weights_that_no_format_stores_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = Output::new(&folder.path().join("out.gguf"), &[], false).unwrap();
    let refused = |name: &str, value: f32, mixture| {
        let model = model(|file| {
            let mut odd = weights(9, COLS * 4);
            odd[COLS * 2 + 5] = value;
            file.tensor(name, TensorType::F32, [COLS as u64, 4], le_bytes(&odd));
        });
        let quantization = Quantization::new(&model, &options(mixture)).unwrap();
        let error = quantization.write(&output, &Arc::new(Pool::new(2)), &go_on()).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        error.to_string()
    };
    for value in [f32::NAN, f32::INFINITY] {
        // One that is quantised, and one that is copied.
        for name in ["blk.0.attn_q.weight", "blk.0.attn_norm.weight"] {
            let error = refused(name, value, Mixture::Q4KM);
            assert_eq!(error, format!("tensor {name} holds {value} in row 2, which no format stores"));
        }
    }
    let large = refused("blk.0.attn_q.weight", 1e5, Mixture::F16);
    assert_eq!(large, "tensor blk.0.attn_q.weight holds 100000 in row 2, which is too large for F16");
    let large = refused("blk.0.attn_q.weight", 1e9, Mixture::Q8_0);
    assert!(large.ends_with("which is too large for Q8_0"), "{large}");
}

#[test]
fn formats_that_are_not_read_are_copied_or_named() {
    let ids = le_bytes(&[0.0; 8]);
    let model = model(|file| {
        file.tensor("blk.0.ids", TensorType::I32, [8], ids.clone());
    });
    let made = quantised(&model, &options(Mixture::Q4_0), 1).unwrap();
    assert_eq!(made.tensor("blk.0.ids").unwrap().data.as_slice(), ids);
    let model = self::model(|file| {
        file.tensor("blk.0.attn_q.weight", TensorType::I32, [4, 2], ids.clone());
    });
    let error = quantised(&model, &options(Mixture::Q4_0), 1).unwrap_err();
    assert_eq!(error.to_string(), "tensor blk.0.attn_q.weight is I32, which can't be read here");
}

#[test]
fn an_importance_matrix_is_used_and_named_in_the_file() {
    let model = model(|_| ());
    let entries =
        ["blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.1.attn_v.weight", "blk.1.ffn_down.weight"];
    let mut matrix = imatrix(&entries.map(|name| (name, COLS, &[2.0][..])));
    matrix
        .entries
        .insert("output.weight".into(), ImatrixEntry { in_sum2: vec![1.0; COLS], counts: vec![1.0] });
    let quantization = Quantization::new(&model, &with(matrix)).unwrap();
    assert_eq!(quantization.notes(), []);
    let made = quantization.in_memory(&Arc::new(Pool::new(1)), &go_on()).unwrap();
    let metadata = made.metadata();
    assert_eq!(metadata.str("quantize.imatrix.file").unwrap(), "imatrix.gguf");
    assert_eq!(metadata.str("quantize.imatrix.dataset").unwrap(), "text.txt");
    assert_eq!(metadata.u32("quantize.imatrix.entries_count").unwrap(), 5);
    assert_eq!(metadata.u32("quantize.imatrix.chunks_count").unwrap(), 7);
}

#[test]
fn an_importance_matrix_of_another_model_is_refused_and_one_with_gaps_told() {
    let model = model(|file| {
        let data = le_bytes(&weights(9, COLS * 8));
        file.tensor("blk.0.ffn_up_exps.weight", TensorType::F32, [COLS as u64, 4, 2], data);
    });
    let refused = |matrix: Imatrix| Quantization::new(&model, &with(matrix)).unwrap_err().to_string();
    let other = refused(imatrix(&[("blk.9.attn_q.weight", COLS, &[1.0])]));
    assert_eq!(
        other,
        "imatrix.gguf: the importance matrix has none of the model's tensors; its first is blk.9.attn_q.weight"
    );
    let wider = refused(imatrix(&[("blk.0.attn_v.weight", 512, &[1.0])]));
    assert!(wider.contains("has 512 values for blk.0.attn_v.weight, expected 256"), "{wider}");
    let dense = refused(imatrix(&[("blk.0.ffn_up_exps.weight", COLS, &[1.0])]));
    assert!(dense.contains("has 256 values for blk.0.ffn_up_exps.weight, expected 512"), "{dense}");

    let gaps =
        imatrix(&[("blk.0.ffn_up_exps.weight", COLS, &[3.0, 0.0]), ("blk.9.attn_q.weight", COLS, &[1.0])]);
    let quantization = Quantization::new(&model, &with(gaps)).unwrap();
    let notes: Vec<String> = quantization.notes().iter().map(ToString::to_string).collect();
    let nothing =
        "the importance matrix has nothing for 5 tensors, whose columns count the same: output.weight";
    let uncounted = "the importance matrix counted nothing for experts of 1 tensor, whose columns count the same: 1 of 2 in \
                     blk.0.ffn_up_exps.weight";
    let more = "the importance matrix has 1 tensor that the model does not have: blk.9.attn_q.weight";
    assert_eq!(notes, [nothing, uncounted, more]);
}

#[test]
fn two_bits_need_an_importance_matrix() {
    let error = Quantization::new(&model(|_| ()), &options(Mixture::Q2KS)).unwrap_err();
    let ConvertError::NeedsImatrix { mixture: Mixture::Q2KS, tensor, ttype: TensorType::Q2K } = error else {
        panic!("{error}")
    };
    assert_eq!(tensor, "blk.0.attn_v.weight");
}

#[test]
fn an_exception_that_no_tensor_is_is_refused() {
    let keep = vec!["attn_v=q8_0".parse().unwrap(), "output_norm=q8_0".parse().unwrap()];
    let error =
        Quantization::new(&model(|_| ()), &QuantizeOptions { keep, ..options(Mixture::Q4KM) }).unwrap_err();
    assert_eq!(error.to_string(), "no tensor that is quantised matches \"output_norm\"");
}
