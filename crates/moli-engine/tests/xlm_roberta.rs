//! XLM-RoBERTa from a text to its embedding or score, against sentence-transformers: with its Unigram tokenizer, positions that begin
//! behind the padding's, either pooling, and as a GGUF in the form in which bge-m3 and multilingual-e5 are published.
//!
//! The folders are made by `tests/fixtures/xlm_roberta.py`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use moli_convert::{Options, Output, to_folder, to_gguf};
use moli_engine::{CancelToken, EmbedOptions, Engine, EngineOptions, KvType, Pooling};
use moli_format::{Gguf, GgufWriter, ReadMode, Value};
use serde_json::Value as Json;

/// Greatest difference of an element of a vector of length 1, and of a score.
const BOUND: f32 = 2e-6;

struct Expected {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    cls: Vec<Vec<f32>>,
    mean: Vec<Vec<f32>>,
    mean_pooling: Json,
    pairs: Vec<[String; 2]>,
    scores: Vec<f32>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/xlm_roberta")
}

fn expected() -> Expected {
    let mut json: Json =
        serde_json::from_slice(&fs::read(fixtures().join("expected.json")).unwrap()).unwrap();
    let mut take = |name: &str| json[name].take();
    Expected {
        texts: serde_json::from_value(take("texts")).unwrap(),
        ids: serde_json::from_value(take("ids")).unwrap(),
        cls: serde_json::from_value(take("cls")).unwrap(),
        mean: serde_json::from_value(take("mean")).unwrap(),
        mean_pooling: take("mean_pooling"),
        pairs: serde_json::from_value(take("pairs")).unwrap(),
        scores: serde_json::from_value(take("scores")).unwrap(),
    }
}

fn engine(path: &Path) -> Engine {
    let options = EngineOptions { threads: Some(2), kv_type: Some(KvType::F32), ..EngineOptions::default() };
    Engine::load(path, &options).unwrap()
}

fn embeddings(engine: &Engine, texts: &[String], ids: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let embed = |(text, expected): (&String, &Vec<u32>)| {
        let ids = engine.encode_for_embedding(text).unwrap();
        assert_eq!(&ids, expected, "{text:?}");
        engine.embed(&ids, &EmbedOptions::default(), &CancelToken::new()).unwrap().values
    };
    texts.iter().zip(ids).map(embed).collect()
}

fn scores(engine: &Engine, pairs: &[[String; 2]]) -> Vec<f32> {
    let rank =
        |[query, document]: &[String; 2]| engine.rank(query, document, &CancelToken::new()).unwrap().score;
    pairs.iter().map(rank).collect()
}

fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst <= BOUND, "{what}: off by {worst:.1e}");
}

/// The folder as llama.cpp's converter writes it: a SentencePiece model of type `t5`, and no row for positions that nothing has.
fn as_gguf(folder: &Path, to: &Path) {
    let gguf = Gguf::open(folder, ReadMode::Map).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata().iter().filter(|(key, _)| !key.starts_with("tokenizer.")) {
        writer.meta(key, value.clone());
    }
    let file: Json = serde_json::from_slice(&fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    let pieces = file["model"]["vocab"].as_array().unwrap();
    let last = pieces.len() - 1;
    let tokens: Vec<&str> = pieces.iter().map(|piece| piece[0].as_str().unwrap()).collect();
    let scores: Vec<f32> = pieces.iter().map(|piece| piece[1].as_f64().unwrap() as f32).collect();
    let kind = |id| match id {
        3 => 2,
        _ if id < 3 || id == last => 3,
        _ => 1,
    };
    let charsmap = STANDARD.decode(file["normalizer"]["precompiled_charsmap"].as_str().unwrap()).unwrap();
    let entries: [(&str, Value); 15] = [
        ("model", "t5".into()),
        ("pre", "default".into()),
        ("tokens", tokens.into()),
        ("scores", scores.into()),
        ("token_type", (0..pieces.len()).map(kind).collect::<Vec<i32>>().into()),
        ("add_space_prefix", true.into()),
        ("token_type_count", 1_u32.into()),
        ("remove_extra_whitespaces", true.into()),
        ("precompiled_charsmap", charsmap.as_slice().into()),
        ("bos_token_id", 0_u32.into()),
        ("eos_token_id", 2_u32.into()),
        ("unknown_token_id", 3_u32.into()),
        ("seperator_token_id", 2_u32.into()),
        ("padding_token_id", 1_u32.into()),
        ("cls_token_id", 0_u32.into()),
    ];
    for (key, value) in entries {
        writer.meta(format!("tokenizer.ggml.{key}"), value);
    }
    for tensor in gguf.tensors() {
        // 66 rows in the folder, two of them for the padding and what is before it.
        assert!(tensor.name != "position_embd.weight" || tensor.rows() == 64);
        writer.tensor(&tensor.name, tensor.ttype, tensor.dims.as_slice(), tensor.data.to_vec());
    }
    writer.write_file(to).unwrap();
}

/// As Moli writes it: a GGUF of the folder, and a folder of that.
fn converted(folder: &Path, place: &Path) -> [PathBuf; 2] {
    let paths = ["converted.gguf", "converted"].map(|name| place.join(name));
    let convert = |from: &Path, to: &Path| {
        let output = Output::new(to, &[from], false).unwrap();
        let convert = if to.extension().is_some() { to_gguf } else { to_folder };
        let model = Gguf::open(from, ReadMode::Map).unwrap();
        convert(&model, &output, &Options::default(), Arc::new(|_| true)).unwrap();
    };
    convert(folder, &paths[0]);
    convert(&paths[0], &paths[1]);
    let config: Json = serde_json::from_slice(&fs::read(paths[1].join("config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["model_type"], &config["max_position_embeddings"]),
        (&"xlm-roberta".into(), &66.into())
    );
    paths
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    let expected = expected();
    assert!(expected.ids.iter().flatten().filter(|&&id| id == 3).count() > 50);
    let folder = tempfile::tempdir().unwrap();
    for file in
        ["config.json", "model.safetensors", "modules.json", "tokenizer.json", "tokenizer_config.json"]
    {
        fs::copy(fixtures().join("embeds").join(file), folder.path().join(file)).unwrap();
    }
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    fs::write(folder.path().join("1_Pooling/config.json"), expected.mean_pooling.to_string()).unwrap();
    let gguf = folder.path().join("embeds.gguf");
    as_gguf(&fixtures().join("embeds"), &gguf);
    let [made, back] = converted(&fixtures().join("embeds"), folder.path());
    assert!(back.join("modules.json").is_file());
    for (path, pooling, vectors) in [
        (&*made, Pooling::Cls, &expected.cls),
        (&back, Pooling::Cls, &expected.cls),
        (fixtures().join("embeds").as_path(), Pooling::Cls, &expected.cls),
        (folder.path(), Pooling::Mean, &expected.mean),
        (&gguf, Pooling::Cls, &expected.cls),
    ] {
        let engine = engine(path);
        assert_eq!((engine.pooling(), engine.context()), (Some(pooling), 64));
        let found = embeddings(&engine, &expected.texts, &expected.ids);
        for ((found, expected), text) in found.iter().zip(vectors).zip(&expected.texts) {
            assert_near(found, expected, &format!("{}, {text:?}", path.display()));
        }
    }
}

#[test]
fn scores_are_those_of_a_cross_encoder() {
    let expected = expected();
    let folder = tempfile::tempdir().unwrap();
    let gguf = folder.path().join("ranks.gguf");
    as_gguf(&fixtures().join("ranks"), &gguf);
    let [made, back] = converted(&fixtures().join("ranks"), folder.path());
    for path in [fixtures().join("ranks"), gguf, made, back] {
        let engine = engine(&path);
        assert!(engine.is_reranker());
        assert_near(&scores(&engine, &expected.pairs), &expected.scores, &path.display().to_string());
    }
}
