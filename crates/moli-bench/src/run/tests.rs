#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use moli_convert::Mixture;
use moli_format::{Gguf, ReadMode, TensorType};
use moli_model::KvType;
use moli_testkit::TinyModel;
use tempfile::TempDir;

use super::cost::Cost;
use super::*;
use crate::report::{Test, Through};

fn model(folder: &TempDir, tiny: &TinyModel) -> Source {
    let path = folder.path().join(format!("{}.gguf", tiny.architecture));
    tiny.write(&path).unwrap();
    Source::File { name: path.display().to_string(), path, synthetic: false }
}

fn options(folder: &TempDir) -> Options {
    Options {
        prompt: vec![8],
        generate: vec![4],
        threads: vec![1],
        repetitions: 2,
        limits: false,
        ..Options::new(vec![model(folder, &TinyModel::new("llama"))])
    }
}

fn quietly(options: &Options) -> Result<Report, RunError> {
    run(options, &CancelToken::new(), &mut |_| ())
}

#[test]
fn every_case_has_its_repetitions() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options { depths: vec![0, 40], batches: vec![1, 3], ..options(&folder) };
    options.kv_types = vec![KvType::F16, KvType::Q8_0];
    let mut seen = Vec::new();
    let report = run(&options, &CancelToken::new(), &mut |event| {
        if let Event::Measuring { round, case, .. } = event
            && case.kv_type == "f16"
        {
            seen.push((round, case.work.to_string()));
        }
    })
    .unwrap();
    assert_eq!(report.rows.len(), 2 * 2 * 3);
    for row in &report.rows {
        assert_eq!((row.seconds.len(), row.loads), (2, 2));
        assert!(row.seconds.iter().all(|&seconds| seconds > 0.0) && row.rate.median > 0.0);
        assert_eq!(row.tokens_per_repetition, tokens(&row.case.work));
        assert!(row.conditions.wall_seconds > 0.0);
    }
    let model = report.models.get("llama").unwrap();
    assert_eq!((model.architecture.as_str(), model.fingerprint.len()), ("llama", 64));
    let tests = ["pp8", "tg4", "b3 tg4", "pp8 @ d40", "tg4 @ d40", "b3 tg4 @ d40"];
    let forth = |round| tests.iter().map(move |test| (round, (*test).to_owned()));
    let back = |round| tests.iter().rev().map(move |test| (round, (*test).to_owned()));
    assert_eq!(seen, forth(0).chain(forth(1)).chain(forth(0)).chain(back(2)).collect::<Vec<_>>());
    assert!(report.notes.iter().any(|note| note.contains("12 cases took turns for 2 rounds")));
}

#[test]
fn models_take_turns_under_names_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut options = options(&folder);
    options.models.push(model(&folder, &TinyModel::new("qwen3moe")));
    options.models.push(model(&other, &TinyModel::new("llama")));
    let report = quietly(&options).unwrap();
    let long = options.models[2].name();
    let names: Vec<&str> = report.rows.iter().map(|row| row.case.model.as_str()).collect();
    assert_eq!(names.iter().filter(|name| **name == long).count(), 2);
    assert_eq!(names.iter().filter(|name| **name == "qwen3moe").count(), 2);
    assert_eq!(report.models.len(), 3);
}

#[test]
fn whole_answers_are_timed_through_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let end_to_end = vec![Through::Engine, Through::Server];
    let options = Options { batches: vec![1, 2], end_to_end, ..options(&folder) };
    let report = quietly(&options).unwrap();
    let answers: Vec<&Row> = report.rows.iter().filter(|row| row.latency.is_some()).collect();
    assert_eq!(answers.len(), 4);
    for row in answers {
        let Test::EndToEnd { clients, tokens, .. } = row.case.work else { panic!("{row:?}") };
        let latency = row.latency.as_ref().unwrap();
        assert_eq!(latency.ttft.count, 2 * clients);
        assert!(latency.inter_token.count <= 2 * clients * (tokens - 1));
        assert!(latency.ttft.p50 > 0.0 && latency.ttft.p50 < row.seconds[0].max(row.seconds[1]));
        assert_eq!(row.bound, None);
    }
}

#[test]
fn what_a_model_cannot_hold_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let trained = TinyModel::new("llama").context;
    let long = Options { depths: vec![trained], ..options(&folder) };
    match quietly(&long).unwrap_err() {
        RunError::Context { tokens, context, test, .. } => {
            assert_eq!((tokens, context, test), (trained + 8, trained, format!("pp8 @ d{trained}")));
        }
        other => panic!("{other}"),
    }
    let pages = Options { contexts: vec![32], batches: vec![2], ..options(&folder) };
    let told = quietly(&pages).unwrap_err().to_string();
    assert_eq!(told, "b2 tg4 needs pages for 64 tokens, and a context of 32 was asked for");
    // 64 M tokens of f32 keys and values: it ends before they are allocated.
    let memory = Options { contexts: vec![1 << 26], kv_types: vec![KvType::F32], ..options(&folder) };
    let memory = Options { threads: (1..=64).collect(), ..memory };
    match quietly(&memory).unwrap_err() {
        RunError::Memory { needed, limit, .. } => assert!(needed > limit.bytes),
        other => panic!("{other}"),
    }
    let missing = Source::File { name: "no.gguf".into(), path: "no.gguf".into(), synthetic: false };
    let told = quietly(&Options::new(vec![missing])).unwrap_err();
    assert!(matches!(&told, RunError::Open { model, .. } if model == "no.gguf"), "{told}");
}

#[test]
fn weights_are_quantised_in_memory_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let Source::File { path, .. } = &options.models[0] else { panic!("not a file") };
    let quantised = Source::Quantised { name: "tiny".into(), path: path.clone(), mixture: Mixture::Q4_0 };
    let report = quietly(&Options { models: vec![quantised], ..options }).unwrap();
    let model = &report.models["tiny as Q4_0"];
    assert_eq!(model.quantization, "Q4_0");
}

#[test]
fn what_was_measured_before_an_interruption_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { repetitions: 100, ..options(&folder) };
    let cancel = CancelToken::new();
    let report = run(&options, &cancel, &mut |event| {
        if let Event::Measuring { round: 3, case, .. } = event
            && matches!(case.work, Test::Decode { .. })
        {
            cancel.cancel();
        }
    })
    .unwrap();
    let counts: Vec<usize> = report.rows.iter().map(|row| row.seconds.len()).collect();
    assert_eq!(counts, [3, 2]);
    assert!(report.notes.contains(&"interrupted in round 3 of 100".to_owned()), "{:?}", report.notes);

    let cancel = CancelToken::new();
    let report = run(&options, &cancel, &mut |_| cancel.cancel()).unwrap();
    assert_eq!(report.rows, []);
}

#[test]
fn a_sustained_run_has_moments() {
    let folder = tempfile::tempdir().unwrap();
    let sustain = Some(Duration::from_millis(1300));
    let options = Options { sustain, prompt: vec![0], ..options(&folder) };
    let report = quietly(&options).unwrap();
    assert_eq!(report.sustained.len(), 2);
    assert!(report.sustained.iter().all(|moment| moment.rate > 0.0));
    assert!(report.sustained[0].seconds < report.sustained[1].seconds);
    assert!(report.rows[0].seconds.len() > 10);
    assert!(report.notes.iter().any(|note| note.starts_with("sustained: the last tenth")));
}

fn cost(folder: &TempDir, tiny: &TinyModel) -> (Cost, Gguf) {
    let path = folder.path().join("cost.gguf");
    tiny.write(Path::new(&path)).unwrap();
    let gguf = Gguf::open(&path, ReadMode::Map).unwrap();
    let vocab = gguf.tensor("token_embd.weight").unwrap().rows();
    let config = moli_model::Config::from_metadata(gguf.metadata(), vocab).unwrap();
    (Cost::of(&gguf, &config), gguf)
}

#[test]
fn a_token_costs_what_it_reads_and_multiplies() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = TinyModel { matrix: TensorType::Q8_0, ..TinyModel::new("llama") };
    let (cost, gguf) = cost(&folder, &tiny);
    let matrices = gguf.tensors().filter(|tensor| tensor.rows() > 1);
    let elements: u64 = matrices.map(|tensor| tensor.elements() as u64).sum();
    let tied = gguf.tensor("output.weight").is_none();
    let table = gguf.tensor("token_embd.weight").unwrap();
    let (skipped, bytes) = if tied { (0, 0) } else { (table.elements() as u64, table.data.len() as u64) };
    assert_eq!(cost.macs_per_token(), elements - skipped);
    assert_eq!(cost.bytes_per_token(), cost.weight_bytes - bytes);

    let decode =
        |tokens, depth, batch| cost.work(&Test::Decode { tokens, depth, batch }, KvType::F16).unwrap();
    let kv = (tiny.layers * 2 * tiny.kv_heads * tiny.head_dim * 2) as f64;
    assert_eq!(decode(1, 0, 1).bytes, cost.bytes_per_token() as f64 + kv);
    assert_eq!(decode(2, 10, 1).bytes, 2.0 * cost.bytes_per_token() as f64 + (11.0 + 12.0) * kv);
    // Weights are read once for all sequences, keys and values for each.
    assert_eq!(decode(1, 10, 4).bytes, cost.bytes_per_token() as f64 + 4.0 * 11.0 * kv);
    assert_eq!(decode(1, 10, 4).macs, 4.0 * cost.macs_per_token() as f64);

    let prefill = |tokens| cost.work(&Test::Prefill { tokens, depth: 0 }, KvType::F16).unwrap();
    let head = table.elements() as f64;
    assert_eq!(prefill(100).macs, 100.0 * (cost.macs_per_token() as f64 - head) + head);
    assert_eq!(prefill(100).bytes, cost.bytes_per_token() as f64 + 100.0 * kv);
}

#[test]
fn a_token_reads_the_experts_that_it_goes_through() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = TinyModel { experts: 8, experts_used: 2, ..TinyModel::new("qwen3moe") };
    let (cost, gguf) = cost(&folder, &tiny);
    let experts: usize =
        gguf.tensors().filter(|tensor| tensor.name.contains("_exps")).map(|tensor| tensor.data.len()).sum();
    assert!(experts > 0);
    let decode = |batch| cost.work(&Test::Decode { tokens: 1, depth: 0, batch }, KvType::F16).unwrap().bytes;
    // A token goes through a quarter of them, 64 tokens miss hardly any.
    let kv = (tiny.layers * 2 * tiny.kv_heads * tiny.head_dim * 2) as f64;
    let more = experts as f64 * (0.75 - 0.75f64.powi(64)) + 63.0 * kv;
    assert!((decode(64) - decode(1) - more).abs() < 1.0, "{} {} {more}", decode(1), decode(64));
}

#[test]
fn a_bound_is_the_nearer_limit() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = TinyModel { matrix: TensorType::Q8_0, embedding: TensorType::Q8_0, ..TinyModel::new("llama") };
    let (cost, _) = cost(&folder, &tiny);
    let test = Test::Decode { tokens: 1, depth: 0, batch: 1 };
    let work = cost.work(&test, KvType::F16).unwrap();
    let limits = Limits {
        threads: 1,
        read_bytes_per_second: work.bytes * 2.0,
        int8_macs_per_second: Some(work.macs * 4.0),
        f32_macs_per_second: work.macs,
    };
    let bound = cost.bound(&test, KvType::F16, 1.0, &limits).unwrap();
    assert_eq!((bound.of_memory, bound.of_compute), (0.5, 0.25));
    assert_eq!((bound.compute, bound.binds), (crate::report::Peak::Int8, crate::report::Binds::Memory));
    let scalar = Limits { int8_macs_per_second: None, ..limits };
    let bound = cost.bound(&test, KvType::F16, 1.0, &scalar).unwrap();
    assert_eq!((bound.of_compute, bound.binds), (1.0, crate::report::Binds::Compute));
}
