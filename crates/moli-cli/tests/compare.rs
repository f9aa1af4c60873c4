//! `moli compare` and `moli imatrix` end to end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;

use moli_convert::Imatrix;
use support::World;

/// Some hundred tokens.
const TEXT: &str = "the valve of the second pump is open and the pressure of the first one falls. ";

fn text(world: &World) -> String {
    world.file("text.txt", TEXT.repeat(20))
}

#[test]
fn a_smaller_model_is_told_from_its_original() {
    let world = World::new();
    let (model, text) = (world.base_model(), text(&world));
    world.run(&["quantize", &model, "small.gguf", "--type", "q4_0"]).ok();
    let compare = |b: &str, options: &[&str]| {
        world.run(&[&["compare", &model, b, "-f", &text, "-c", "32", "--json"], options].concat())
    };
    let same = compare(&model, &["--max-kl", "0", "--max-ppl-rise", "0"]).json();
    assert_eq!(same["kl_divergence"]["most"], 0.0);
    assert_eq!(same["same_top"]["value"], 1.0);
    assert_eq!(same["perplexity_rise"]["value"], 0.0);
    assert_eq!(same["within"], true);

    let smaller = compare("small.gguf", &["--plot", "kl.svg"]).json();
    assert!(smaller["kl_divergence"]["mean"].as_f64().unwrap() > 0.0, "{smaller}");
    assert!(smaller["b"]["file_bytes"].as_u64() < smaller["a"]["file_bytes"].as_u64());
    assert!(smaller["b"]["answer_speed"].as_f64().unwrap() > 0.0);
    assert!(smaller.get("within").is_none());
    // Perplexity is what the other command says that it is.
    for (side, model) in [("a", model.as_str()), ("b", "small.gguf")] {
        let alone = world.run(&["perplexity", model, "-f", &text, "-c", "32", "--json"]).json();
        let (here, there) = (&smaller[side]["perplexity"], &alone["perplexity"]);
        assert!((here.as_f64().unwrap() / there.as_f64().unwrap() - 1.0).abs() < 1e-9, "{here} {there}");
        assert_eq!(smaller["tokens"], alone["tokens"]);
    }
    assert!(fs::read_to_string(world.path("kl.svg")).unwrap().contains("KL divergence"));

    // Beyond a bound it is no error, and no success.
    let refused = compare("small.gguf", &["--max-kl", "1e-12"]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.stdout.contains("\"within\":false"), "{refused:?}");
}

#[test]
fn what_cannot_be_compared_is_named() {
    let world = World::new();
    let (model, text) = (world.base_model(), text(&world));
    let other = world.model("other.gguf", |file| {
        file.meta("tokenizer.ggml.tokens", (0..259).map(|n| format!("other{n}")).collect::<Vec<_>>());
    });
    world
        .run(&["compare", &model, &other, "-f", &text, "-c", "32"])
        .fails(1, &["different vocabularies", "token 0"]);
    let short = world.file("short.txt", "a word");
    world
        .run(&["compare", &model, &model, "-f", &short, "-c", "32"])
        .fails(1, &["tokens", "64 are needed", "-c"]);
    world
        .run(&["compare", &model, &model, "-f", &text, "--plot", "kl.jpeg"])
        .fails(1, &["kl.jpeg", ".svg, .png or .html"]);
    for option in [["--max-kl", "-1"], ["--max-kl", "nan"], ["--max-ppl-rise", "120%"], ["-c", "2"]] {
        world
            .run(&[&["compare", &model, &model, "-f", &text], option.as_slice()].concat())
            .fails(2, &[option[0]]);
    }
}

#[test]
fn what_a_text_uses_is_measured_and_made_use_of() {
    let world = World::new();
    let (model, text) = (world.base_model(), text(&world));
    let said = world.run(&["imatrix", &model, "-f", &text, "-c", "32", "--chunks", "3"]);
    assert!(said.stderr.contains("from 3 pieces of 32 tokens"), "{said:?}");
    said.ok();
    let matrix = Imatrix::open(&world.path("imatrix.gguf")).unwrap();
    assert_eq!((matrix.chunk_count, matrix.chunk_size), (3, 32));
    assert_eq!(matrix.datasets, ["text.txt"]);
    let down = &matrix.entries["blk.0.ffn_down.weight"];
    assert_eq!(down.counts, [96.0]);
    assert!(down.in_sum2.iter().all(|sum| *sum > 0.0));
    let quantised = ["quantize", &model, "small.gguf", "--type", "q4_0", "--imatrix", "imatrix.gguf"];
    world.run(&quantised).ok();

    // What is there stays, and the input is no output.
    world.run(&["imatrix", &model, "-f", &text, "-c", "32"]).fails(1, &["imatrix.gguf", "exists already"]);
    world.run(&["imatrix", &model, "-f", &text, "-c", "32", "--force"]).ok();
    world.run(&["imatrix", &model, "-f", &text, "-o", &model, "--force"]).fails(1, &["is the input"]);
    let short = world.file("short.txt", "a word");
    world.run(&["imatrix", &model, "-f", &short, "-o", "no.gguf"]).fails(1, &["tokens", "512 are needed"]);
    assert!(!world.path("no.gguf").exists());
}
