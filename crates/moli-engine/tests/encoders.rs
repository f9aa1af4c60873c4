//! Encoders: hidden states and scores against transformers, in company, on any number of threads, and what they refuse.
//!
//! The folders are made by `tests/fixtures/encoders.py`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moli_convert::{Options, Output, to_folder, to_gguf};
use moli_engine::{
    CancelToken, EmbedOptions, Engine, EngineError, EngineOptions, GenerateParams, KvType, Pooling,
};
use moli_format::{Gguf, GgufWriter, ReadMode, TensorType};
use moli_kernels::Isa;
use moli_model::{BackendKind, Batch, LoadOptions, ModelError, Runtime, pages_of};
use serde_json::{Value as Json, json};

/// Greatest difference, relative to the largest element.
const BOUND: f64 = 5e-6;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/encoders")
}

/// What a folder must give.
struct Expected {
    ids: Vec<u32>,
    second: Option<usize>,
    states: Vec<Vec<f32>>,
    logit: Option<f64>,
}

impl Expected {
    fn of(name: &str) -> Self {
        let json: Json =
            serde_json::from_slice(&fs::read(fixtures().join(name).join("expected.json")).unwrap()).unwrap();
        Self {
            ids: serde_json::from_value(json["ids"].clone()).unwrap(),
            second: json.get("second").map(|second| second.as_u64().unwrap() as usize),
            states: serde_json::from_value(json["states"].clone()).unwrap(),
            logit: json.get("logit").map(|logit| logit.as_f64().unwrap()),
        }
    }

    fn types(&self) -> Vec<u32> {
        let kind = |position| u32::from(position >= self.second.unwrap_or(usize::MAX));
        (0..self.ids.len()).map(kind).collect()
    }
}

fn load(gguf: &Gguf, isa: Option<Isa>, threads: usize) -> Box<dyn Runtime> {
    let load = LoadOptions { threads, isa, context: 256, max_rows: 96, kv_type: KvType::F32 };
    moli_model::load(gguf, BackendKind::Cpu, &load).unwrap()
}

fn open(name: &str) -> Gguf {
    Gguf::open(&fixtures().join(name), ReadMode::Map).unwrap()
}

/// The hidden states of texts that are computed together, each with its tokens' kinds.
fn states(runtime: &mut dyn Runtime, texts: &[(&[u32], &[u32])]) -> Vec<Vec<f32>> {
    let mut batch = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut pages = Vec::new();
    let mut next = 0;
    for (index, (ids, types)) in texts.iter().enumerate() {
        batch.0.extend_from_slice(ids);
        batch.1.extend(0..ids.len() as u32);
        batch.2.extend(vec![index as u32; ids.len()]);
        batch.3.extend_from_slice(types);
        let count = pages_of(ids.len()) as u32;
        pages.push((next..next + count).collect::<Vec<u32>>());
        next += count;
    }
    let tables: Vec<&[u32]> = pages.iter().map(Vec::as_slice).collect();
    let rows: Vec<u32> = (0..batch.0.len() as u32).collect();
    let hidden = runtime.config().hidden;
    let batch = Batch {
        tokens: &batch.0,
        positions: &batch.1,
        sequences: &batch.2,
        types: if runtime.config().token_types > 1 { &batch.3 } else { &[] },
        tables: &tables,
        adapters: &[],
        recurrent: &[],
        outputs: &[],
        states: &rows,
    };
    runtime.forward(&batch).unwrap().states.chunks(hidden).map(<[f32]>::to_vec).collect()
}

fn folders() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 10, "{names:?}");
    names
}

fn worst(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = || found.iter().flatten().zip(expected.iter().flatten());
    let largest = pairs().fold(0.0_f32, |largest, (_, x)| largest.max(x.abs()));
    let worst = pairs().fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
    f64::from(worst / largest)
}

fn bits(states: &[Vec<f32>]) -> Vec<u32> {
    states.iter().flatten().map(|x| x.to_bits()).collect()
}

#[test]
fn hidden_states_are_those_of_transformers() {
    let mut wrong = Vec::new();
    for name in folders() {
        let expected = Expected::of(&name);
        let types = expected.types();
        let mut runtime = load(&open(&name), None, 2);
        let found = states(runtime.as_mut(), &[(&expected.ids, &types)]);
        let difference = worst(&found, &expected.states);
        println!("{name}: {difference:.1e}");
        if difference > BOUND {
            wrong.push(format!("{name}: off by {difference:.1e}"));
        }
        if let Some(logit) = expected.logit {
            let mean = |column: usize| {
                found.iter().map(|row| f64::from(row[column])).sum::<f64>() / found.len() as f64
            };
            let state: Vec<f32> = match name.ends_with("mean") {
                true => (0..found[0].len()).map(|column| mean(column) as f32).collect(),
                false => found[0].clone(),
            };
            let score = runtime.classifier().unwrap().scores(&state);
            assert_eq!(score.len(), 1);
            if (f64::from(score[0]) - logit).abs() > 1e-5 {
                wrong.push(format!("{name}: scored {} instead of {logit}", score[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_same_bits_alone_and_in_company_on_any_threads_and_instruction_set() {
    for name in ["bert_ranks", "modernbert", "nomic_bert"] {
        let gguf = open(name);
        let expected = Expected::of(name);
        let (ids, types) = (&expected.ids, expected.types());
        let alone = bits(&states(load(&gguf, None, 1).as_mut(), &[(ids, &types)]));
        for (threads, isa) in [(1, None), (2, None), (3, None), (2, Some(Isa::Scalar))] {
            let mut runtime = load(&gguf, isa, threads);
            let others: [(&[u32], &[u32]); 3] =
                [(&ids[3..20], &types[..17]), (ids, &types), (&ids[5..6], &types[..1])];
            let together = states(runtime.as_mut(), &others);
            assert_eq!(bits(&together[17..17 + ids.len()]), alone, "{name}, {threads} threads, {isa:?}");
            // Pages that others have left.
            assert_eq!(bits(&states(runtime.as_mut(), &[(ids, &types)])), alone, "{name}");
        }
    }
}

#[test]
fn a_batch_of_an_encoder_is_of_whole_texts() {
    let mut runtime = load(&open("bert"), None, 1);
    let good = Batch {
        tokens: &[5, 6],
        positions: &[0, 1],
        sequences: &[0, 0],
        types: &[],
        tables: &[&[0, 1, 2]],
        adapters: &[],
        recurrent: &[],
        outputs: &[],
        states: &[0],
    };
    assert!(runtime.forward(&good).is_ok());
    let field = |error| match error {
        ModelError::Batch { what, .. } => what,
        other => panic!("{other}"),
    };
    let mut refused = |batch: Batch<'_>| field(runtime.forward(&batch).unwrap_err());
    assert_eq!(refused(Batch { positions: &[1, 2], ..good }), "position");
    assert_eq!(refused(Batch { positions: &[0, 0], ..good }), "position");
    assert_eq!(refused(Batch { outputs: &[1], ..good }), "outputs");
    assert_eq!(refused(Batch { types: &[0], ..good }), "types");
    assert_eq!(refused(Batch { types: &[0, 2], ..good }), "type");
    let tokens = vec![5; 67];
    let positions: Vec<u32> = (0..67).collect();
    let long = Batch { tokens: &tokens, positions: &positions, sequences: &[0; 67], ..good };
    assert_eq!(refused(long), "position");
}

/// A folder with the fixture's weights and a tokenizer: words `w0` to `w89`, behind the special tokens.
fn with_tokenizer(name: &str, extra: &[(&str, Json)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixtures().join(name).join(file), folder.path().join(file)).unwrap();
    }
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"];
    let words = special.iter().map(|word| (*word).to_owned()).chain((0..90).map(|i| format!("w{i}")));
    let vocab: serde_json::Map<String, Json> =
        words.enumerate().map(|(id, word)| (word, json!(id))).collect();
    let token = |id: u32| json!({"id": id, "content": special[id as usize], "special": true});
    let tokenizer = json!({
        "model": {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]"},
        "normalizer": {"type": "BertNormalizer", "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "added_tokens": (0..5).map(token).collect::<Vec<_>>(),
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    for (file, json) in extra {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, json.to_string()).unwrap();
    }
    folder
}

fn mean_pooling() -> (&'static str, Json) {
    ("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true}))
}

fn engine(folder: &Path, threads: usize) -> Engine {
    let options =
        EngineOptions { threads: Some(threads), kv_type: Some(KvType::F32), ..EngineOptions::default() };
    Engine::load(folder, &options).unwrap()
}

#[test]
fn texts_that_are_asked_for_together_have_the_bits_that_they_have_alone() {
    let folder = with_tokenizer("bert", &[mean_pooling()]);
    let cancel = CancelToken::new();
    let texts: Vec<String> =
        (0..40).map(|n| (0..=n).map(|i| format!("w{}", i * 7 % 90)).collect::<Vec<_>>().join(" ")).collect();
    for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
        let options = EmbedOptions { pooling: Some(pooling), ..EmbedOptions::default() };
        let alone: Vec<_> = {
            let engine = engine(folder.path(), 1);
            let embed = |text: &String| {
                let ids = engine.encode_for_embedding(text).unwrap();
                engine.embed(&ids, &options, &cancel).unwrap()
            };
            texts.iter().map(embed).collect()
        };
        let engine = engine(folder.path(), 2);
        let pending: Vec<_> = texts
            .iter()
            .map(|text| {
                let ids = engine.encode_for_embedding(text).unwrap();
                engine.submit_embedding(&ids, &options, &cancel).unwrap()
            })
            .collect();
        for (pending, alone) in pending.into_iter().zip(&alone) {
            let found = pending.wait().unwrap();
            assert_eq!(found.cached_tokens, 0);
            assert_eq!(bits(&[found.values]), bits(std::slice::from_ref(&alone.values)), "{pooling:?}");
        }
    }
}

#[test]
fn what_an_encoder_refuses() {
    let folder = with_tokenizer("bert", &[]);
    let engine = engine(folder.path(), 1);
    let cancel = CancelToken::new();
    let embed = |text: &str, options: &EmbedOptions| {
        engine.embed(&engine.encode_for_embedding(text)?, options, &cancel)
    };
    // No pooling is declared.
    let error = embed("w1", &EmbedOptions::default()).unwrap_err();
    assert!(matches!(error, EngineError::NoPooling), "{error}");
    let mean = EmbedOptions { pooling: Some(Pooling::Mean), ..EmbedOptions::default() };
    let error = embed("", &mean).unwrap_err();
    assert!(matches!(error, EngineError::EmptyText), "{error}");
    let long = vec!["w1"; 65].join(" ");
    let error = embed(&long, &mean).unwrap_err();
    assert!(matches!(error, EngineError::PromptTooLong { prompt_tokens: 67, context: 66 }), "{error}");
    let cut = EmbedOptions { truncate: true, ..mean.clone() };
    let whole = embed(&vec!["w1"; 64].join(" "), &mean).unwrap();
    assert_eq!(embed(&long, &cut).unwrap().values, whole.values);
    // Answers and scores of tokens.
    let error = engine.submit(&[2, 5, 3], &GenerateParams::default(), &cancel).unwrap_err();
    assert!(matches!(error, EngineError::Encoder), "{error}");
    let error = engine.session().score(&[2, 5, 3], &[1]).unwrap_err();
    assert!(matches!(error, EngineError::Encoder), "{error}");
    let error = engine.rank("w1", "w2", &cancel).unwrap_err();
    assert!(matches!(error, EngineError::NotAReranker { .. }), "{error}");
    let error = engine.prompt("query").unwrap_err();
    assert!(matches!(error, EngineError::UnknownPrompt { .. }), "{error}");
}

#[test]
fn a_folder_says_its_pooling_its_length_and_its_prompts() {
    let prompts = json!({"prompts": {"query": "a: ", "document": ""}, "default_prompt_name": null});
    let extra = [
        mean_pooling(),
        ("sentence_bert_config.json", json!({"max_seq_length": 20})),
        ("config_sentence_transformers.json", prompts),
    ];
    let folder = with_tokenizer("bert", &extra);
    let engine = engine(folder.path(), 1);
    assert_eq!((engine.pooling(), engine.context()), (Some(Pooling::Mean), 20));
    assert_eq!((engine.prompt("query").unwrap(), engine.prompt("document").unwrap()), ("a: ", ""));
    let error = engine.prompt("passage").unwrap_err().to_string();
    assert!(error.contains("passage") && error.contains("query"), "{error}");
    for (file, json) in [
        ("sentence_bert_config.json", json!({"max_seq_length": "many"})),
        ("config_sentence_transformers.json", json!({"prompts": {"query": 5}})),
    ] {
        let folder = with_tokenizer("bert", &[(file, json)]);
        let error = Engine::load(folder.path(), &EngineOptions::default()).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
    }
}

#[test]
fn cross_encoders_rank_and_make_no_embeddings() {
    let folder = with_tokenizer("bert_ranks", &[]);
    let cancel = CancelToken::new();
    let scores = [1, 2].map(|threads| {
        let engine = engine(folder.path(), threads);
        assert!(engine.is_reranker());
        let documents = ["w3 w4", "w5", "w6 w7 w8"];
        let alone = documents.map(|document| engine.rank("w1 w2", document, &cancel).unwrap().score);
        let pending =
            documents.map(|document| engine.submit_rank("w1 w2", document, false, &cancel).unwrap());
        assert_eq!(pending.map(|pending| pending.wait().unwrap().score), alone);
        let error = engine.embed(&[2, 5, 3], &EmbedOptions::default(), &cancel).unwrap_err();
        assert!(matches!(error, EngineError::IsAReranker), "{error}");
        let long = vec!["w1"; 70].join(" ");
        let error = engine.rank("w1", &long, &cancel).unwrap_err();
        assert!(matches!(error, EngineError::PromptTooLong { .. }), "{error}");
        let cut = engine.submit_rank("w1", &long, true, &cancel).unwrap().wait().unwrap();
        assert_eq!(cut.tokens, 66);
        assert_eq!(cut.score, engine.rank("w1", &vec!["w1"; 62].join(" "), &cancel).unwrap().score);
        let error = engine.submit_rank(&long, "w1", true, &cancel).unwrap_err();
        assert!(matches!(error, EngineError::PromptTooLong { .. }), "{error}");
        alone
    });
    assert_eq!(scores[0], scores[1]);
    // The pair as the model was trained on it: the second text's tokens are of another kind.
    let expected = Expected::of("bert_ranks");
    let mut runtime = load(&open("bert_ranks"), None, 1);
    let ids = [2, 7, 8, 3, 11, 3];
    let found = states(runtime.as_mut(), &[(&ids, &[0, 0, 0, 0, 1, 1])]);
    let logit = f64::from(runtime.classifier().unwrap().scores(&found[0])[0]);
    assert!((f64::from(scores[0][1]) - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-6);
    assert!(expected.second.is_some());
    // Three labels say nothing of relevance.
    let folder = with_tokenizer("bert_sorts", &[]);
    let error = engine(folder.path(), 1).rank("w1", "w2", &cancel).unwrap_err();
    assert!(error.to_string().contains("3 labels"), "{error}");
}

/// The folder as a GGUF file of the convention, its matrices of 32 columns or more in q8_0 or as they are.
fn as_gguf(folder: &Path, quantised: bool, to: &Path) {
    let gguf = Gguf::open(folder, ReadMode::Map).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata().iter() {
        if !key.starts_with("tokenizer.huggingface") {
            writer.meta(key, value.clone());
        }
    }
    // As a converter writes WordPiece: `▁` begins a word, and what continues one has nothing before it.
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁a"];
    let tokens: Vec<String> =
        special.iter().map(|token| (*token).to_owned()).chain((0..90).map(|i| format!("▁w{i}"))).collect();
    let types: Vec<i32> = (0..96).map(|id| if id < 5 { 3 } else { 1 }).collect();
    writer.meta("tokenizer.ggml.model", "bert");
    writer.meta("tokenizer.ggml.tokens", tokens);
    writer.meta("tokenizer.ggml.token_type", types);
    writer.meta("tokenizer.ggml.unknown_token_id", 1u32);
    writer.meta("tokenizer.ggml.cls_token_id", 2u32);
    writer.meta("tokenizer.ggml.seperator_token_id", 3u32);
    for tensor in gguf.tensors() {
        let mut values = vec![0.0; tensor.elements()];
        moli_kernels::dequantize(tensor.ttype, &tensor.data, &mut values).unwrap();
        let blocks = quantised && tensor.rows() > 1 && tensor.cols().is_multiple_of(32);
        let ttype = if blocks { TensorType::Q8_0 } else { TensorType::F32 };
        let mut data = Vec::new();
        moli_kernels::quantize(ttype, &values, &mut data).unwrap();
        writer.tensor(&tensor.name, ttype, tensor.dims.as_slice(), data);
    }
    writer.write_file(to).unwrap();
}

#[test]
fn a_gguf_of_the_convention_gives_what_its_folder_gives() {
    let folder = with_tokenizer("bert_wide", &[mean_pooling()]);
    let cancel = CancelToken::new();
    let text = "W1 w22, w3 ẃ4 unknown a";
    let embed = |path: &Path| {
        let engine = engine(path, 2);
        let ids = engine.encode_for_embedding(text).unwrap();
        (ids.clone(), engine.embed(&ids, &EmbedOptions::default(), &cancel).unwrap().values)
    };
    let (ids, expected) = embed(folder.path());
    assert_eq!(ids, [2, 7, 28, 1, 9, 10, 1, 5, 3]);
    let file = folder.path().join("model.gguf");
    as_gguf(folder.path(), false, &file);
    assert_eq!(embed(&file), (ids.clone(), expected.clone()));
    as_gguf(folder.path(), true, &file);
    let (same, near) = embed(&file);
    assert_eq!(same, ids);
    let cosine: f64 = near.iter().zip(&expected).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    assert!(cosine > 0.999 && cosine < 0.999_999_99, "{cosine}");
}

/// Each folder as a GGUF, as a folder of that and as a GGUF again: the same bits, and the same kind of model.
#[test]
fn there_and_back() {
    let place = tempfile::tempdir().unwrap();
    let options = Options { tokenizer: false, ..Options::default() };
    let mut kinds = Vec::new();
    for name in folders() {
        let expected = Expected::of(&name);
        let states = |path: &Path| {
            let mut runtime = load(&Gguf::open(path, ReadMode::Map).unwrap(), None, 1);
            bits(&states(runtime.as_mut(), &[(&expected.ids, &expected.types())]))
        };
        let convert = |from: &Path, to: &Path| {
            let output = Output::new(to, &[from], false).unwrap();
            let convert = if to.extension().is_some() { to_gguf } else { to_folder };
            convert(&Gguf::open(from, ReadMode::Map).unwrap(), &output, &options, Arc::new(|_| true))
                .unwrap();
        };
        let [file, folder, again] = [format!("{name}.gguf"), name.clone(), format!("{name}.again.gguf")]
            .map(|name| place.path().join(name));
        let wanted = states(&fixtures().join(&name));
        convert(&fixtures().join(&name), &file);
        convert(&file, &folder);
        convert(&folder, &again);
        for path in [&file, &folder, &again] {
            assert!(states(path) == wanted, "{name} as {}", path.display());
        }
        let config: Json = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let sorts = config["architectures"][0].as_str().unwrap().ends_with("ForSequenceClassification");
        assert_eq!(sorts, Gguf::open(&file, ReadMode::Map).unwrap().tensor("cls.output.weight").is_some());
        assert_eq!(sorts, expected.logit.is_some() || name == "bert_sorts", "{name}");
        kinds.push(config["model_type"].as_str().unwrap().to_owned());
    }
    kinds.dedup();
    // Without a tokenizer, RoBERTa is BERT whose positions begin elsewhere.
    assert_eq!(kinds, ["bert", "modernbert", "nomic_bert", "bert"]);
}
