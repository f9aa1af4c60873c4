//! `moli logits`, with models of a hundred kilobytes.

mod support;

use serde_json::Value;
use support::{BOS, World};

#[test]
fn logits_are_those_that_perplexity_scores() {
    let world = World::new();
    let model = world.base_model();
    // A token for each letter, and BOS, which perplexity puts in the place of the first of each piece.
    let text = "a quick brown fox jumps over the lazy dog ".repeat(4);
    let file = world.file("text.txt", &text[..127]);
    let measured = world.run(&["perplexity", &model, "-f", &file, "-c", "64", "--json"]).json();
    let ids = world.run(&["tokenize", &model, "-f", &file, "--special", "--json"]).json();
    let mut ids: Vec<u64> = ids["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert_eq!((ids.len(), ids[0]), (128, u64::from(BOS)));
    ids[64] = u64::from(BOS);
    let mut loss = 0.0;
    for piece in ids.chunks(64) {
        let list = piece.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let all = ["logits", &model, "--ids", &list, "--positions", "all", "--json", "--kv-type", "f16"];
        let answer = world.run(&all).json();
        assert_eq!(answer["ids"], Value::from(piece));
        assert_eq!(answer["positions"], Value::from((0..64).collect::<Vec<u64>>()));
        for place in 32..63 {
            let row = answer["logits"][place].as_array().unwrap();
            let row: Vec<f64> = row.iter().map(|logit| logit.as_f64().unwrap()).collect();
            let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
            loss += sum.ln() - row[piece[place + 1] as usize];
        }
    }
    let expected = measured["perplexity"].as_f64().unwrap();
    let perplexity = (loss / f64::from(2 * 31)).exp();
    assert!((perplexity / expected - 1.0).abs() < 1e-5, "{perplexity} {expected}");
}

#[test]
fn logits_of_chosen_positions() {
    let world = World::new();
    let model = world.base_model();
    // More than the rows of logits of one forward pass, and than the tokens that are computed together.
    let list = (0..600).map(|i| (i * 7 % 250).to_string()).collect::<Vec<_>>().join(",");
    let logits =
        |more: &[&str]| world.run(&[&["logits", &model, "--ids", &list, "--json"], more].concat()).json();
    let all = logits(&["--positions", "all", "-t", "1"]);
    assert_eq!(all["logits"].as_array().unwrap().len(), 600);
    let some = logits(&["--positions", "598,3,70,3,511,512"]);
    assert_eq!(some["positions"], Value::from(vec![3, 70, 511, 512, 598]));
    assert_eq!(some["logits"].as_array().unwrap().len(), 5);
    for (row, place) in [3, 70, 511, 512, 598].into_iter().enumerate() {
        assert_eq!(some["logits"][row], all["logits"][place], "{place}");
        assert_ne!(some["logits"][row], all["logits"][place - 1], "{place}");
    }
    let last = logits(&[]);
    assert_eq!((&last["positions"][0], &last["logits"][0]), (&Value::from(599), &all["logits"][599]));

    let text = world.run(&["logits", &model, "-p", "abc"]).ok();
    assert_eq!(text.lines().count(), 11, "{text}");
    assert!(text.starts_with("position 3, after 99  'c'\n"), "{text}");
    let row = world.run(&["logits", &model, "-p", "abc", "--json"]).json();
    assert_eq!(row["ids"], Value::from(vec![BOS, 97, 98, 99]));
    let row = row["logits"][0].as_array().unwrap();
    let best = row.iter().map(|logit| logit.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
    assert!(text.lines().nth(1).unwrap().contains(&format!("{best:.5}")), "{text}");
}

#[test]
fn logits_need_no_tokenizer_but_tokens_that_exist() {
    let world = World::new();
    let model = &world.base_model();
    let bare = &world.model("bare.gguf", |file| file.remove("tokenizer.ggml.tokens"));
    let ask = |model: &str, more: &[&str]| world.run(&[&["logits", model], more].concat());
    let with = ask(model, &["--ids", "1,2,3", "--json"]).ok();
    assert_eq!(ask(bare, &["--ids", "1,2,3", "--json"]).ok(), with);
    assert!(ask(bare, &["--ids", "1,2,3"]).ok().starts_with("position 2, after 3\n"));
    ask(bare, &["-p", "a"]).fails(1, &["tokenizer.ggml.tokens"]);

    ask(model, &["--ids", "1,100000"]).fails(1, &["100000", "vocabulary of "]);
    ask(model, &["--ids", "1,2", "--positions", "0,2"]).fails(1, &["position 2", "tokens, 2"]);
    let short = &world.model("short.gguf", |file| file.meta("llama.context_length", 3u32));
    ask(short, &["--ids", "1,2,3"]).ok();
    ask(short, &["--ids", "1,2,3,4"]).fails(1, &["4 tokens", "trained for 3"]);
    let wrong: [(&[&str], &str); 9] = [
        (&["--ids", ""], "--ids"),
        (&["--ids", "1,x"], "'x'"),
        (&["--ids", "1,,2"], "--ids"),
        (&["--ids", "-1"], "'-1'"),
        (&["--ids", "4294967296"], "'4294967296'"),
        (&["--ids", "1", "--positions", "first"], "`first`"),
        (&["--ids", "1", "--positions", "0,-1"], "`-1`"),
        (&["--ids", "1", "-p", "a"], "cannot be used"),
        (&[], "--ids"),
    ];
    for (arguments, name) in wrong {
        ask(model, arguments).fails(2, &[name]);
    }
}

#[test]
fn logits_of_a_hugging_face_folder_are_those_of_transformers() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/architectures/qwen3");
    let text = std::fs::read_to_string(format!("{folder}/expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let ids = expected["ids"].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",");
    let numbers = |logits: &Value| -> Vec<f64> {
        serde_json::from_value::<Vec<Vec<f64>>>(logits.clone()).unwrap().concat()
    };
    let expected = numbers(&expected["logits"]);
    let size = expected.iter().fold(0.0, |size: f64, logit| size.max(logit.abs()));
    for (kv_type, bound) in [("f32", 5e-6), ("f16", 2e-3), ("q8_0", 0.1)] {
        let all = ["logits", folder, "--ids", &ids, "--positions", "all", "--json", "--kv-type", kv_type];
        let found = numbers(&World::new().run(&all).json()["logits"]);
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).fold(0.0, |worst: f64, (a, b)| worst.max((a - b).abs()));
        assert!(worst <= bound * size, "{kv_type}: {worst} of {size}");
    }
}
