//! Adapters on the command line: used, scaled, merged.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use moli_format::{GgufWriter, TensorType};
use moli_testkit::TinyModel;
use support::World;

/// A model in single precision and an adapter for it, by their paths.
fn place(world: &World) -> (String, String) {
    let model = TinyModel { matrix: TensorType::F32, embedding: TensorType::F32, ..TinyModel::new("llama") };
    let path = world.path("model.gguf");
    model.write(&path).unwrap();
    let mut writer = GgufWriter::new();
    writer.meta("general.type", "adapter").meta("general.architecture", "llama");
    writer.meta("adapter.type", "lora").meta("adapter.lora.alpha", 8.0_f32);
    for (end, dims) in [("lora_a", [256, 4]), ("lora_b", [4, 512])] {
        let values = (0..dims[0] * dims[1]).map(|i| ((i * 7) % 17) as f32 / 16.0 - 0.5);
        let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        writer.tensor(format!("blk.0.ffn_up.weight.{end}"), TensorType::F32, dims, data);
    }
    let adapter = world.path("law.gguf");
    writer.write_file(&adapter).unwrap();
    (path.to_str().unwrap().to_owned(), adapter.to_str().unwrap().to_owned())
}

#[test]
fn an_adapter_is_used_and_merged_alike() {
    let world = World::new();
    let (model, adapter) = place(&world);
    let (half, none) = (format!("{adapter}=0.5"), format!("{adapter}=0"));
    let ask = |model: &str, lora: &[&str]| {
        let arguments = ["run", model, "--raw", "-p", "hm", "-n", "16", "--temp", "0", "--ignore-eos"];
        world.run(&[&arguments[..], lora].concat()).ok()
    };
    let (plain, with) = (ask(&model, &[]), ask(&model, &["--lora", &adapter]));
    let halved = ask(&model, &["--lora", &half]);
    assert!(plain != with && with != halved && halved != plain, "{plain:?} {with:?} {halved:?}");
    assert_eq!(ask(&model, &["--lora", &none]), plain);

    let merged = world.path("merged.gguf");
    let merged = merged.to_str().unwrap();
    let ran = world.run(&["merge", &model, &half, "-o", merged]);
    assert!(ran.stderr.contains("merged into 1 tensors"), "{ran:?}");
    ran.ok();
    assert_eq!(ask(merged, &[]), halved);
    // What is there stays, unless it may be replaced.
    world.run(&["merge", &model, &adapter, "-o", merged]).fails(1, &[merged, "exists"]);
    assert_eq!(ask(merged, &[]), halved);
    world.run(&["merge", &model, &adapter, "-o", merged, "--force"]).ok();
    assert_eq!(ask(merged, &[]), with);
    for input in [&model, &adapter] {
        world.run(&["merge", &model, &adapter, "-o", input, "--force"]).fails(1, &[input, "input"]);
    }

    let text = world.file("text.txt", "one two three four five six seven eight nine ten ".repeat(4));
    let measure = |lora: &[&str]| {
        let arguments = ["perplexity", &model, "-f", &text, "-c", "32", "--json"];
        world.run(&[&arguments[..], lora].concat()).json()["perplexity"].as_f64().unwrap()
    };
    assert_ne!(measure(&[]), measure(&["--lora", &adapter]));
}

#[test]
fn adapters_that_make_no_sense() {
    let world = World::new();
    let (model, adapter) = place(&world);
    for scale in ["nan", "-1", "inf"] {
        let scaled = format!("{adapter}={scale}");
        world.run(&["run", &model, "-p", "hm", "--lora", &scaled]).fails(2, &[]);
        world.run(&["merge", &model, &scaled, "-o", "merged.gguf"]).fails(2, &[]);
    }
    world.run(&["run", &model, "-p", "hm", "--lora", "missing.gguf"]).fails(1, &["missing.gguf"]);
    world.run(&["run", &model, "-p", "hm", "--lora", &model]).fails(1, &["general.type"]);
    world.run(&["merge", &model, &model, "-o", "merged.gguf"]).fails(1, &["general.type"]);
    world.run(&["serve", &model, "--lora", "law"]).fails(2, &[]);
    world.run(&["serve", &model, "--lora", "other:law=law.gguf"]).fails(1, &["other"]);
    world.run(&["serve", "--model", "m=model.gguf", "--lora", "law=law.gguf"]).fails(2, &["--lora"]);
}
