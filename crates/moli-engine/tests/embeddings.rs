//! Embeddings and rerank scores of real forward passes: against transformers, in company, and as files declare them.
//!
//! The expected vectors are made by `tests/fixtures/embeddings.py`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use moli_engine::{
    CancelToken, EmbedOptions, Engine, EngineError, EngineOptions, GenerateParams, KvType, Pooling,
    SamplerParams, Scheduling, Tokenizer,
};
use moli_format::{Bytes, FormatError, Gguf, GgufWriter, HuggingFaceError, ReadMode, TensorType, Value};
use moli_model::{BackendKind, Classifier, LoadOptions, ModelError};
use moli_testkit::{TinyFile, TinyModel};
use serde_json::{Value as Json, json};

/// Greatest difference, relative to a vector's largest element.
const BOUND: f64 = 1e-5;
const POOLINGS: [(&str, Pooling); 3] =
    [("mean", Pooling::Mean), ("cls", Pooling::Cls), ("last", Pooling::Last)];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn floats(json: &Json) -> Vec<f32> {
    serde_json::from_value(json.clone()).unwrap()
}

fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |largest, &x| largest.max(f64::from(x).abs()));
    for (a, b) in found.iter().zip(expected) {
        assert!(f64::from((a - b).abs()) <= BOUND * largest, "{what}: {a} instead of {b}");
    }
}

/// Words that the models of the fixtures have ids for; what the ids mean is of no matter here.
fn words() -> Vec<String> {
    let named = ["<unk>", "<s>", "</s>", "<end>", "y", "e", "s", "n", "o", "ye", "yes", "no", "▁"];
    let numbered = (named.len()..96).map(|id| format!("<{id}>"));
    named.into_iter().map(String::from).chain(numbered).collect()
}

fn tokenizer() -> Tokenizer {
    let mut file = Vec::new();
    GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("tokenizer.ggml.model", "llama")
        .meta("tokenizer.ggml.tokens", words())
        .meta("tokenizer.ggml.scores", vec![0.0_f32; 96])
        .write(&mut file)
        .unwrap();
    Tokenizer::from_gguf(Gguf::from_bytes(&Bytes::from_vec(file)).unwrap().metadata()).unwrap()
}

fn expected() -> serde_json::Map<String, Json> {
    serde_json::from_slice(&fs::read(fixtures().join("embeddings.json")).unwrap()).unwrap()
}

#[test]
fn pooled_states_are_those_of_transformers() {
    let all = expected();
    assert!(all.len() >= 4);
    for (name, expected) in all {
        let ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
        let gguf = Gguf::open(&fixtures().join("architectures").join(&name), ReadMode::Map).unwrap();
        for max_rows in [5, 32] {
            let load = LoadOptions { threads: 2, isa: None, context: 64, max_rows, kv_type: KvType::F32 };
            let runtime = moli_model::load(&gguf, BackendKind::Cpu, &load).unwrap();
            let config = runtime.config().clone();
            let engine = Engine::from_parts(runtime, tokenizer(), None, &Scheduling::default()).unwrap();
            for (key, pooling) in POOLINGS {
                let what = format!("{name} {key}");
                let raw = floats(&expected[key]);
                let options =
                    EmbedOptions { pooling: Some(pooling), normalize: false, ..EmbedOptions::default() };
                let found = engine.embed(&ids, &options, &CancelToken::new()).unwrap();
                assert_near(&found.values, &raw, &what);
                let length = raw.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let unit: Vec<f32> = raw.iter().map(|&x| (f64::from(x) / length) as f32).collect();
                let options = EmbedOptions { normalize: true, ..options };
                let found = engine.embed(&ids, &options, &CancelToken::new()).unwrap();
                assert_near(&found.values, &unit, &what);
            }
            // What a reranker computes: the softmax of two tokens' logits, by their rows of the output head.
            let id = |key: &str| expected[key].as_u64().unwrap() as u32;
            let head = Classifier::of_tokens(&gguf, &config, &[id("yes"), id("no")], &["yes", "no"]).unwrap();
            let options =
                EmbedOptions { pooling: Some(Pooling::Last), normalize: false, ..EmbedOptions::default() };
            let state = engine.embed(&ids, &options, &CancelToken::new()).unwrap().values;
            let scores = head.scores(&state);
            let score = 1.0 / (1.0 + f64::from(scores[1] - scores[0]).exp());
            assert!((score - expected["rank"].as_f64().unwrap()).abs() < BOUND, "{name}: {score}");
        }
    }
}

fn write(file: &TinyFile, path: &Path) {
    file.write(path).unwrap();
}

fn engine(file: &TinyFile, prefill_chunk: usize) -> Result<Engine, EngineError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(file, &path);
    let options = EngineOptions {
        threads: Some(2),
        context: Some(512),
        prefill_chunk,
        read_mode: ReadMode::Read,
        ..EngineOptions::default()
    };
    Engine::load(&path, &options)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_same_bits_in_any_chunks_in_company_and_on_a_cache_hit() {
    let file = TinyModel::new("qwen3").file().unwrap();
    let ids: Vec<u32> = (0..150).map(|i| i * i * 7 % 256).collect();
    let cancel = CancelToken::new();
    let options = |pooling| EmbedOptions { pooling: Some(pooling), ..EmbedOptions::default() };
    let alone = POOLINGS.map(|(_, pooling)| {
        let engine = engine(&file, 512).unwrap();
        bits(&engine.embed(&ids, &options(pooling), &cancel).unwrap().values)
    });
    assert!(alone[0] != alone[1] && alone[1] != alone[2]);
    for chunk in [1, 7, 64] {
        let engine = engine(&file, chunk).unwrap();
        let params = GenerateParams {
            max_tokens: Some(40),
            sampling: SamplerParams::greedy(),
            ignore_eos: true,
            ..GenerateParams::default()
        };
        let running: Vec<_> = (0..3).map(|i| engine.submit(&[i, 2, 3], &params, &cancel).unwrap()).collect();
        for cached in [0, 149] {
            let submit = |(_, pooling)| engine.submit_embedding(&ids, &options(pooling), &cancel).unwrap();
            // One after the other, so that the last one finds what the first left.
            for (pending, expected) in
                POOLINGS.map(|pooling| submit(pooling).wait().unwrap()).iter().zip(&alone)
            {
                assert_eq!(bits(&pending.values), *expected, "chunks of {chunk}");
            }
            let last = submit(POOLINGS[2]).wait().unwrap();
            assert!(last.cached_tokens >= cached, "{}", last.cached_tokens);
            assert_eq!(bits(&last.values), alone[2]);
        }
        assert!(running.into_iter().all(|answer| answer.count() == 40));
    }
}

#[test]
fn nan_in_the_weights_is_an_error() {
    let mut file = TinyModel::new("qwen3").file().unwrap();
    let mut data = file.tensor_data("blk.0.ffn_down.weight").unwrap().to_vec();
    data[..34].fill(0xff);
    file.tensor("blk.0.ffn_down.weight", TensorType::Q8_0, &[512, 256], data);
    let options = EmbedOptions { pooling: Some(Pooling::Mean), ..EmbedOptions::default() };
    let engine = engine(&file, 64).unwrap();
    let error = engine.embed(&[1, 2, 3], &options, &CancelToken::new()).unwrap_err();
    assert!(matches!(error, EngineError::Model(ModelError::StateNotFinite { .. })), "{error}");
}

#[test]
fn a_file_declares_its_pooling() {
    let with = |pooling: Value| {
        let mut file = TinyModel::new("llama").file().unwrap();
        file.meta("llama.pooling_type", pooling);
        engine(&file, 64)
    };
    let cancel = CancelToken::new();
    for (number, (_, pooling)) in (1_u32..).zip(POOLINGS) {
        let engine = with(number.into()).unwrap();
        assert_eq!(engine.pooling(), Some(pooling));
        let declared = engine.embed(&[1, 2, 3], &EmbedOptions::default(), &cancel).unwrap();
        let named = EmbedOptions { pooling: Some(pooling), ..EmbedOptions::default() };
        assert_eq!(bits(&engine.embed(&[1, 2, 3], &named, &cancel).unwrap().values), bits(&declared.values));
    }
    // None, and what ranks.
    for number in [0_u32, 4] {
        let engine = with(number.into()).unwrap();
        assert_eq!(engine.pooling(), None);
        let error = engine.embed(&[1], &EmbedOptions::default(), &cancel).unwrap_err();
        match number {
            0 => assert!(matches!(error, EngineError::NoPooling), "{error}"),
            _ => assert!(matches!(error, EngineError::IsAReranker), "{error}"),
        }
    }
    let error = with(9_u32.into()).unwrap_err();
    assert!(
        matches!(&error, EngineError::Model(ModelError::OutOfRange { key, .. }) if key == "llama.pooling_type"),
        "{error}"
    );
    let error = with("mean".into()).unwrap_err();
    assert!(matches!(error, EngineError::Format(FormatError::WrongType { .. })), "{error}");
}

/// The tiny qwen3 as a folder of sentence-transformers, with this pooling and these modules behind it.
fn sentence_transformers(name: &str, pooling: &Json, modules: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join(name);
    fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixtures().join("architectures/qwen3").join(file), folder.join(file)).unwrap();
    }
    let vocab: serde_json::Map<String, Json> =
        words().into_iter().enumerate().map(|(id, word)| (word, json!(id))).collect();
    let special = |id: u32, text: &str| json!({"id": id, "content": text, "special": true});
    let tokenizer = json!({
        "model": {"type": "BPE", "vocab": vocab, "merges": ["y e", "ye s", "n o"], "unk_token": "<unk>"},
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "added_tokens": [special(1, "<s>"), special(2, "</s>"), special(3, "<end>")],
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<end>", "type_id": 0}},
        ]},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(folder.join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#).unwrap();
    fs::write(folder.join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    let modules: Vec<Json> = ["Transformer", "Pooling"]
        .iter()
        .chain(modules)
        .enumerate()
        .map(|(idx, name)| {
            let path = if idx == 0 { String::new() } else { format!("{idx}_{name}") };
            json!({"idx": idx, "path": path, "type": format!("sentence_transformers.models.{name}")})
        })
        .collect();
    fs::write(folder.join("modules.json"), Json::from(modules).to_string()).unwrap();
    (root, folder)
}

#[test]
fn a_folder_of_sentence_transformers_declares_its_pooling() {
    let older =
        json!({"word_embedding_dimension": 40, "pooling_mode_lasttoken": true, "include_prompt": true});
    let newer = json!({"word_embedding_dimension": 40, "pooling_mode": "lasttoken"});
    for pooling in [older, newer] {
        let (_root, folder) = sentence_transformers("tiny", &pooling, &["Normalize"]);
        let options = EngineOptions { kv_type: Some(KvType::F32), ..EngineOptions::default() };
        let engine = Engine::load(&folder, &options).unwrap();
        assert_eq!(engine.pooling(), Some(Pooling::Last));
        // What the template of the tokenizer puts behind a text is not its EOS.
        assert_eq!((engine.tokenizer().eos(), engine.tokenizer().closing()), (Some(2), Some(3)));
        assert_eq!(engine.encode_for_embedding("yes no").unwrap(), [10, 12, 11, 3]);
        let expected = &expected()["qwen3"];
        let ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
        let options = EmbedOptions { normalize: false, ..EmbedOptions::default() };
        let found = engine.embed(&ids, &options, &CancelToken::new()).unwrap();
        assert_near(&found.values, &floats(&expected["last"]), "a folder");
        // Cut, with the closing token behind it.
        let long = [vec![10; 100], vec![3]].concat();
        let cut = EmbedOptions { truncate: true, ..options.clone() };
        let cut = engine.embed(&long, &cut, &CancelToken::new()).unwrap();
        let whole = engine.embed(&[vec![10; 63], vec![3]].concat(), &options, &CancelToken::new()).unwrap();
        assert_eq!((cut.tokens, bits(&cut.values)), (64, bits(&whole.values)));
        assert!(!engine.is_reranker());
    }
}

#[test]
fn steps_of_sentence_transformers_that_are_not_computed_are_refused() {
    let last = json!({"pooling_mode_lasttoken": true});
    let cases = [
        (json!({"pooling_mode_max_tokens": true}), &["Normalize"][..], "pooling_mode_max_tokens"),
        (
            json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}),
            &[],
            "pooling_mode_cls_token",
        ),
        (json!({"pooling_mode": ["mean", "cls"]}), &[], "pooling_mode"),
        (json!({}), &[], "pooling_mode"),
        (json!({"pooling_mode_lasttoken": true, "include_prompt": false}), &[], "include_prompt"),
        (last, &["Dense"], "type"),
    ];
    for (pooling, modules, named) in cases {
        let (_root, folder) = sentence_transformers("tiny", &pooling, modules);
        let error = Engine::load(&folder, &EngineOptions::default()).unwrap_err();
        match &error {
            EngineError::Format(FormatError::HuggingFace(HuggingFaceError::UnsupportedEmbedding {
                field,
                ..
            })) => assert!(field.contains(named), "{error}"),
            other => panic!("{other}"),
        }
    }
}

/// A tiny qwen3 in single precision whose last two control tokens are "yes" and "no".
fn words_of_a_reranker() -> TinyFile {
    let model = TinyModel { matrix: TensorType::F32, embedding: TensorType::F32, ..TinyModel::new("qwen3") };
    let mut file = model.file().unwrap();
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    let mut tokens: Vec<String> = (0..=255)
        .map(|byte: u8| {
            let other = (!printable(byte)).then(|| others.next().unwrap());
            other.map_or(char::from(byte), |code| char::from_u32(code).unwrap()).to_string()
        })
        .collect();
    tokens.extend(["<|endoftext|>", "yes", "no"].map(String::from));
    let kinds: Vec<i32> = (0..259).map(|id| if id == 256 { 3 } else { 1 }).collect();
    file.meta("tokenizer.ggml.tokens", tokens);
    file.meta("tokenizer.ggml.token_type", kinds);
    file.meta("tokenizer.ggml.add_eos_token", true);
    file.meta("tokenizer.chat_template.rerank", "Q {query}<|endoftext|>\nD {document}{query} A");
    file
}

/// The output head's rows of "yes" and "no", in this order, as a classifier.
fn add_classifier(file: &mut TinyFile, rows: [usize; 2], labels: [&str; 2]) {
    let row = 256 * 4;
    let head = file.tensor_data("token_embd.weight").unwrap();
    let data: Vec<u8> = rows.iter().flat_map(|&id| head[id * row..][..row].to_vec()).collect();
    file.tensor("cls.output.weight", TensorType::F32, &[256, 2], data);
    file.meta("qwen3.pooling_type", 4_u32);
    file.meta("qwen3.classifier.output_labels", labels.map(String::from).to_vec());
}

#[test]
fn rerankers_score_by_yes_and_no() {
    let (query, document) = ("who?", "me {document} <|endoftext|>");
    let plain = words_of_a_reranker();
    let mut labelled = plain.clone();
    add_classifier(&mut labelled, [257, 258], ["yes", "no"]);
    let mut reversed = plain.clone();
    add_classifier(&mut reversed, [258, 257], ["no", "yes"]);
    let mut named = plain.clone();
    named.remove("tokenizer.chat_template.rerank");
    named.meta("general.name", "Qwen3 Reranker 0.6B");

    // By hand: the control token of the template is one, that of the document is text, and no EOS follows.
    let engine_of_plain = engine(&plain, 64).unwrap();
    let text = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
    let mut ids = text("Q who?");
    ids.push(256);
    ids.extend(text("\nD me {document} <|endoftext|>who? A"));
    let logits = engine_of_plain.session().score(&ids, &[ids.len() - 1]).unwrap().remove(0);
    let [yes, no] = [257, 258].map(|id: usize| f64::from(logits[id]));
    let expected = 1.0 / (1.0 + (no - yes).exp());
    assert!(expected > 0.01 && expected < 0.99, "{expected}");

    for (what, file) in [("rows of the head", &plain), ("labels", &labelled), ("reversed labels", &reversed)]
    {
        let engine = engine(file, 64).unwrap();
        assert!(engine.is_reranker());
        let rank = engine.rank(query, document, &CancelToken::new()).unwrap();
        assert_eq!((rank.tokens, rank.cached_tokens), (ids.len(), 0));
        assert!((f64::from(rank.score) - expected).abs() < BOUND, "{what}: {} {expected}", rank.score);
        // Again, what the prompts begin with is there.
        let other = engine.submit_rank(query, "you", false, &CancelToken::new()).unwrap().wait().unwrap();
        assert!(other.cached_tokens >= 10 && other.score != rank.score);
    }
    // A plain conversion that nothing but its name tells of: the prompt that the model was trained on.
    let rank = engine(&named, 64).unwrap().rank("q", "d", &CancelToken::new()).unwrap();
    assert!(rank.score > 0.0 && rank.score < 1.0 && rank.tokens > 200, "{rank:?}");
    let error = engine(&named, 64).unwrap().rank("q", &"d".repeat(512), &CancelToken::new()).unwrap_err();
    assert!(matches!(error, EngineError::PromptTooLong { context: 512, .. }), "{error}");
}

#[test]
fn what_is_no_reranker_says_why() {
    let refused = |file: &TinyFile, reason: &str| {
        let engine = engine(file, 64).unwrap();
        assert!(!engine.is_reranker());
        let error = engine.rank("q", "d", &CancelToken::new()).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(matches!(error, EngineError::NotAReranker { .. }));
    };
    refused(&TinyModel::new("qwen3").file().unwrap(), "no classifier");
    let mut ranks = TinyModel::new("llama").file().unwrap();
    ranks.meta("llama.pooling_type", 4_u32);
    refused(&ranks, "no classifier");
    let mut wordless = TinyModel::new("qwen3").file().unwrap();
    wordless.meta("qwen3.pooling_type", 4_u32);
    refused(&wordless, "no tokens \"yes\" and \"no\"");
    let mut labels = words_of_a_reranker();
    add_classifier(&mut labels, [257, 258], ["LABEL_0", "LABEL_1"]);
    refused(&labels, "LABEL_0");
    let mut placeless = words_of_a_reranker();
    placeless.meta("tokenizer.chat_template.rerank", "{query}?");
    refused(&placeless, "{document}");
}
