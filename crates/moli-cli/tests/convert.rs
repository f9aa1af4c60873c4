//! `moli convert`, with models of a hundred kilobytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use serde_json::Value;
use support::World;

/// A folder of `tests/fixtures/architectures`.
fn fixture(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    root.join(name).to_str().unwrap().to_owned()
}

fn logits(world: &World, model: &str) -> Value {
    world.run(&["logits", model, "--ids", "3,5,80,7", "--json"]).json()["logits"].clone()
}

#[test]
fn a_folder_to_a_file_and_back() {
    let world = World::new();
    let source = fixture("llama_bias");
    let ran = world.run(&["convert", &source, "model.gguf"]);
    // A folder without a tokenizer is still a model.
    assert!(ran.stderr.contains("tokenizer.json is missing"), "{ran:?}");
    assert_eq!(ran.ok(), "model.gguf\n");
    let wanted = logits(&world, &source);
    assert_eq!(logits(&world, "./model.gguf"), wanted);
    let answer = world.run(&["convert", "./model.gguf", "back", "--json"]).json();
    assert_eq!((&answer["output"], &answer["notes"][0].is_string()), (&"back".into(), &true));
    assert_eq!(logits(&world, "./back"), wanted);
    let answer = world.run(&["convert", "./model.gguf", "half.gguf", "--dtype", "f16", "--json"]).json();
    assert_eq!(answer["bytes"], world.path("half.gguf").metadata().unwrap().len());
    assert_ne!(logits(&world, "./half.gguf"), wanted);
}

#[test]
fn a_quantised_model_with_its_tokenizer_to_a_folder() {
    let world = World::new();
    let model = world.chat_model();
    world.run(&["convert", &model, "folder"]).ok();
    let tokens = |model: &str| {
        world.run(&["tokenize", model, "-p", "a b, <|im_end|>", "--json"]).json()["ids"].clone()
    };
    assert_eq!(tokens("./folder"), tokens(&model));
    let config = std::fs::read_to_string(world.path("folder/tokenizer_config.json")).unwrap();
    assert!(config.contains("add_generation_prompt"), "{config}");
    world.run(&["convert", "./folder", "again.gguf"]).ok();
    assert_eq!(tokens("./again.gguf"), tokens(&model));
    assert_eq!(logits(&world, "./again.gguf"), logits(&world, "./folder"));
    world.run(&["convert", &model, "ids-only.gguf", "--no-tokenizer"]).ok();
    world.run(&["tokenize", "./ids-only.gguf", "-p", "a"]).fails(1, &["tokenizer"]);
}

#[test]
fn what_is_there_stays() {
    let world = World::new();
    let source = fixture("llama");
    let file = world.file("there.gguf", "mine");
    world.run(&["convert", &source, &file]).fails(1, &["there.gguf", "exists already"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    world.run(&["convert", &source, &file, "--force"]).ok();
    // The input by another name, a folder too.
    world.run(&["convert", &file, "./there.gguf", "--force"]).fails(1, &["is the input"]);
    world.run(&["convert", &file, "folder"]).ok();
    world.run(&["convert", "./folder", "../".to_owned().as_str(), "--force"]).fails(1, &["not replaced"]);
    world.run(&["convert", "./folder", "folder/.", "--force"]).fails(1, &["is the input"]);
    world.run(&["convert", &file, "folder"]).fails(1, &["folder", "exists already"]);
    world.file("folder/extra/notes.txt", "mine");
    world.run(&["convert", &file, "folder", "--force"]).fails(1, &["is not replaced"]);
    std::fs::remove_dir_all(world.path("folder/extra")).unwrap();
    world.run(&["convert", &file, "folder", "--force"]).ok();
    assert_eq!(logits(&world, "./folder"), logits(&world, &source));
    world.run(&["convert", &file, "model.safetensors"]).fails(2, &["OUT is a folder"]);
}

#[test]
fn a_model_that_cannot_be_converted_leaves_nothing() {
    let world = World::new();
    world.file("strange/config.json", r#"{"model_type": "strange"}"#);
    world.file("strange/model.safetensors", "");
    world.run(&["convert", "./strange", "out.gguf"]).fails(1, &["strange", "llama"]);
    let strange = world.model("strange.gguf", |file| file.meta("general.architecture", "strange"));
    world.run(&["convert", &strange, "out"]).fails(1, &["strange", "llama"]);
    let pre = world.model("pre.gguf", |file| file.meta("tokenizer.ggml.pre", "strange"));
    world.run(&["convert", &pre, "out"]).fails(1, &["strange"]);
    world.run(&["convert", &pre, "out", "--no-tokenizer"]).ok();
    let left: Vec<_> =
        std::fs::read_dir(world.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().contains("part")), "{left:?}");
    assert!(!world.path("out.gguf").exists());
}

/// A file may have 16 kilobytes: as on a full disk, a write fails.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full() {
    let world = World::new();
    for out in ["out.gguf", "out"] {
        let moli = world.command(&["convert", &fixture("llama"), out]);
        let script = r#"trap '' XFSZ; ulimit -f 16; exec "$0" "$@""#;
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", script]).arg(moli.get_program()).args(moli.get_args());
        shell.current_dir(world.path(""));
        support::Ran::new(shell.output().unwrap()).fails(1, &["File too large"]);
        assert_eq!(std::fs::read_dir(world.path("")).unwrap().count(), 0, "{out}");
    }
}
