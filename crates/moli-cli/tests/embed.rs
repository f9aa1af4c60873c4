//! `moli embed` and `moli rerank`, on the encoders of `tests/fixtures/encoders`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use serde_json::{Map, Value, json};
use support::World;

const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// A fixture's weights with a tokenizer of words, `w0` to `w90`.
fn folder(world: &World, name: &str, extra: &[(&str, Value)]) -> String {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/encoders").join(name);
    for file in ["config.json", "model.safetensors"] {
        world.file(&format!("{name}/{file}"), std::fs::read(fixture.join(file)).unwrap());
    }
    let words = SPECIAL.iter().map(|word| (*word).to_owned()).chain((0..91).map(|i| format!("w{i}")));
    let vocab: Map<String, Value> = words.enumerate().map(|(id, word)| (word, json!(id))).collect();
    let added = |(id, word): (usize, &&str)| json!({"id": id, "content": word, "special": true});
    let tokenizer = json!({
        "model": {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]"},
        "normalizer": {"type": "BertNormalizer", "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "added_tokens": SPECIAL.iter().enumerate().map(added).collect::<Vec<_>>(),
    });
    world.file(&format!("{name}/tokenizer.json"), tokenizer.to_string());
    for (file, json) in extra {
        world.file(&format!("{name}/{file}"), json.to_string());
    }
    world.path(name).to_str().unwrap().to_owned()
}

fn embedder(world: &World) -> String {
    let pooling = ("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true}));
    let prompts = ("config_sentence_transformers.json", json!({"prompts": {"query": "w9 "}}));
    folder(world, "bert", &[pooling, prompts])
}

fn numbers(line: &str) -> Vec<f32> {
    line.split(' ').map(|number| number.parse().unwrap()).collect()
}

#[test]
fn embeddings_are_printed_in_each_format_and_from_each_source() {
    let world = World::new();
    let model = &embedder(&world);
    let text = world.run(&["embed", model, "w1 w2", "w3"]).ok();
    let vectors: Vec<Vec<f32>> = text.lines().map(numbers).collect();
    assert_eq!((vectors.len(), vectors[0].len()), (2, 40));
    let length: f32 = vectors[0].iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");

    let file = &world.file("lines.txt", "w1 w2\nw3\n");
    assert_eq!(world.run(&["embed", model, "-f", file]).ok(), text);
    // Options may follow the texts.
    assert_eq!(world.run(&["embed", model, "w1 w2", "w3", "--format", "text"]).ok(), text);
    assert_eq!(world.run_with(&["embed", model], b"w1 w2\nw3").ok(), text);
    let json = world.run(&["embed", model, "-f", file, "--format", "json"]).json();
    let embeddings: Vec<Vec<f32>> = serde_json::from_value(json["embeddings"].clone()).unwrap();
    assert_eq!((embeddings, &json["tokens"]), (vectors.clone(), &json!(7)));
    let lines = world.run(&["embed", model, "-f", file, "--format", "jsonl"]).ok();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    let embedding: Vec<f32> = serde_json::from_value(last["embedding"].clone()).unwrap();
    assert_eq!((&last["index"], &last["tokens"], embedding), (&json!(1), &json!(3), vectors[1].clone()));
}

#[test]
fn options_change_the_vectors() {
    let world = World::new();
    let model = &embedder(&world);
    let one = |options: &[&str], text: &str| {
        numbers(world.run(&[&["embed", model.as_str()], options, &[text]].concat()).ok().trim_end())
    };
    let plain = one(&[], "w1 w2");
    let prompted = one(&["--prompt-name", "query"], "w1 w2");
    assert_eq!(prompted, one(&["--prefix", "w9 "], "w1 w2"));
    assert_eq!(prompted, one(&[], "w9 w1 w2"));
    assert_ne!(prompted, plain);
    assert_ne!(one(&["--pooling", "cls"], "w1 w2"), plain);
    assert_eq!(one(&["--dimensions", "7"], "w1 w2").len(), 7);
    let length: f32 = one(&["--no-normalize"], "w1 w2").iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() > 0.01, "{length}");
    let (long, whole) = (vec!["w1"; 80].join(" "), vec!["w1"; 64].join(" "));
    world.run(&["embed", model, &long]).fails(1, &["text 1", "82", "66"]);
    assert_eq!(one(&["--truncate"], &long), one(&[], &whole));
}

#[test]
fn what_can_not_be_embedded_or_answered_is_said() {
    let world = World::new();
    let model = &embedder(&world);
    world.run(&["embed", model, "--format", "json", "w1", ""]).fails(1, &["text 2", "empty"]);
    world.run(&["embed", model, "--prompt-name", "passage", "w1"]).fails(1, &["passage", "query"]);
    world.run(&["rerank", model, "w1", "w2"]).fails(1, &["no reranker"]);
    world.run(&["run", model, "--raw", "-p", "w1"]).fails(1, &["moli embed"]);
    let world = World::new();
    let without_pooling = &folder(&world, "bert", &[]);
    world.run(&["embed", without_pooling, "w1"]).fails(1, &["pooling"]);
    let ranks = &folder(&world, "bert_ranks", &[]);
    world.run(&["embed", ranks, "w1"]).fails(1, &["moli rerank"]);
}

#[test]
fn documents_are_sorted_by_their_scores() {
    let world = World::new();
    let model = &folder(&world, "bert_ranks", &[]);
    let documents = ["w1 w2", "w3", "w4 w5 w6", "w7"];
    let json =
        world.run(&[&["rerank", model.as_str(), "w8", "--format", "json"], &documents[..]].concat()).json();
    let results = json["results"].as_array().unwrap();
    let scores: Vec<f64> = results.iter().map(|result| result["score"].as_f64().unwrap()).collect();
    assert!(scores.len() == 4 && scores.is_sorted_by(|a, b| a > b), "{scores:?}");
    for result in results {
        let index = result["index"].as_u64().unwrap() as usize;
        assert_eq!(result["document"], documents[index]);
    }
    let file = &world.file("documents.txt", documents.join("\n"));
    let text = world.run(&["rerank", model, "w8", "-f", file]).ok();
    let order: Vec<&str> = text.lines().map(|line| line.rsplit('\t').next().unwrap()).collect();
    let expected: Vec<&str> = results.iter().map(|result| result["document"].as_str().unwrap()).collect();
    assert_eq!(order, expected);
}

/// XLM-RoBERTa with its own tokenizer, as sentence-transformers has saved it and computed it.
#[test]
fn a_folder_of_xlm_roberta_embeds_and_ranks() {
    let world = World::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/xlm_roberta");
    let expected = std::fs::read(fixtures.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let model = fixtures.join("embeds");
    let text = expected["texts"][0].as_str().unwrap();
    let found = numbers(world.run(&["embed", model.to_str().unwrap(), text]).ok().trim());
    // Keys and values are in half precision here.
    let wanted: Vec<f32> = serde_json::from_value(expected["cls"][0].clone()).unwrap();
    let cosine: f32 = found.iter().zip(&wanted).map(|(a, b)| a * b).sum();
    assert!(found.len() == wanted.len() && cosine > 0.999_99, "{cosine}");
    let [query, document] = [0, 1].map(|index| expected["pairs"][3][index].as_str().unwrap());
    let model = fixtures.join("ranks");
    let json = world.run(&["rerank", model.to_str().unwrap(), query, document, "--format", "json"]).json();
    let (found, wanted) = (json["results"][0]["score"].as_f64(), expected["scores"][3].as_f64());
    assert!((found.unwrap() - wanted.unwrap()).abs() < 1e-3, "{json}");
}
