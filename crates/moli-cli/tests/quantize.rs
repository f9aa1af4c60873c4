//! `moli quantize` end to end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;

use moli_convert::{Imatrix, ImatrixEntry, Output};
use moli_format::TensorType;
use moli_testkit::TinyFile;
use support::World;

fn floats(len: usize) -> Vec<u8> {
    (0..len).flat_map(|n| (((n * 7919) % 1009) as f32 / 1009.0 - 0.5).to_le_bytes()).collect()
}

/// Forty megabytes of weights, which take a moment.
fn large(file: &mut TinyFile) {
    for n in 0..20 {
        file.tensor(&format!("blk.0.more{n}.weight"), TensorType::F32, &[256, 2048], floats(256 * 2048));
    }
}

/// The names of a folder's files that are not the model's.
fn left(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with("chat") && !name.starts_with("base")).collect()
}

#[test]
fn a_quantised_model_answers() {
    let world = World::new();
    let model = world.chat_model();
    let report = world.run(&["quantize", &model, "out.gguf", "--type", "q5_0", "--json"]).json();
    assert_eq!(report["type"], "Q5_0");
    assert_eq!(report["output_bytes"], fs::metadata(world.path("out.gguf")).unwrap().len());
    assert!(report["bits_per_weight"].as_f64().unwrap() < 9.0, "{report}");
    let inspected = world.run(&["inspect", "out.gguf", "--json"]).json();
    let types: Vec<&str> =
        inspected["types"].as_array().unwrap().iter().map(|share| share["type"].as_str().unwrap()).collect();
    assert!(types.contains(&"Q5_0"), "{types:?}");
    let answer = world.run(&["run", "out.gguf", "-p", "hello", "--temp", "0", "-n", "8"]).ok();
    assert!(!answer.is_empty());
    // And so does one that is quantised when it is loaded.
    let loaded = world.run(&["run", &model, "-p", "hello", "--temp", "0", "-n", "8", "--quantize", "q5_0"]);
    assert!(loaded.stderr.contains("quantising the weights to Q5_0"), "{loaded:?}");
    assert_eq!(loaded.ok(), answer);
}

#[test]
fn a_dry_run_shows_each_tensor_and_writes_nothing() {
    let world = World::new();
    let model = world.base_model();
    let shown = world.run(&["quantize", &model, "--type", "Q4_K_M", "--dry-run"]);
    assert!(shown.stderr.contains("instead of Q4_K, whose blocks of 256 don't divide the rows"), "{shown:?}");
    let text = shown.ok();
    let line = text.lines().find(|line| line.ends_with("blk.0.attn_q.weight (instead of Q4_K)")).unwrap();
    assert!(line.contains("Q5_0") && line.contains("64 x 64"), "{line}");
    assert!(text.lines().last().unwrap().contains(" bits per weight"), "{text}");
    let report =
        world.run(&["quantize", &model, "ignored.gguf", "--type", "q8_0", "--dry-run", "--json"]).json();
    assert!(report["output"].is_null() && report["tensors"].as_array().unwrap().len() > 10, "{report}");
    assert!(left(&world).is_empty());
}

#[test]
fn what_is_there_is_kept_unless_it_may_go() {
    let world = World::new();
    let model = world.base_model();
    world.file("out.gguf", "mine");
    let arguments = ["quantize", &model, "out.gguf", "--type", "q8_0"];
    world.run(&arguments).fails(1, &["out.gguf exists already"]);
    assert_eq!(fs::read(world.path("out.gguf")).unwrap(), b"mine");
    world.run(&[&arguments[..], &["--force"]].concat()).ok();
    assert!(fs::metadata(world.path("out.gguf")).unwrap().len() > 1000);
    for force in [&["--force"][..], &[]] {
        let itself = ["quantize", &model, &model, "--type", "q8_0"];
        let same = [&itself[..], force].concat();
        world.run(&same).fails(1, &["is the input and can't be the output"]);
    }
}

#[test]
fn what_can_not_be_done_is_said_and_leaves_nothing() {
    let world = World::new();
    let model = world.base_model();
    let fails = |model: &str, more: &[&str], code: i32, names: &[&str]| {
        world.run(&[&["quantize", model, "out.gguf"][..], more].concat()).fails(code, names);
        assert!(!left(&world).iter().any(|name| name.contains("out.gguf")), "{:?}", left(&world));
    };
    fails(&model, &["--type", "q9_0"], 2, &["q9_0", "Q4_K_M, Q4_K_S"]);
    fails(&model, &["--type", "q8_0", "--keep", "attn_(=q8_0"], 2, &["attn_(", "unclosed group"]);
    fails(&model, &["--type", "q8_0", "--keep", "attn=q9"], 2, &["there is no type \"q9\""]);
    fails(
        &model,
        &["--type", "q4_0", "--keep", "attn_x=q8_0"],
        1,
        &["no tensor that is quantised matches", "attn_x"],
    );
    fails(&model, &["--type", "q2_k", "--imatrix", "none.gguf"], 1, &["none.gguf"]);
    fails(&model, &["--type", "q2_k", "--imatrix", &model], 1, &["this is no importance matrix"]);
    let damaged = world.model("base-nan.gguf", |file| {
        let mut data = floats(64 * 64);
        data[4 * 64 * 3..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        file.tensor("blk.0.more.weight", TensorType::F32, &[64, 64], data);
    });
    fails(&damaged, &["--type", "q8_0"], 1, &["blk.0.more.weight holds NaN in row 3"]);
    let matrix = world.path("base-other.imatrix");
    let entry = ImatrixEntry { in_sum2: vec![1.0; 64], counts: vec![1.0] };
    let imatrix =
        Imatrix { entries: [("blk.77.attn_q.weight".to_owned(), entry)].into(), ..Imatrix::default() };
    imatrix.write(&Output::new(&matrix, &[], false).unwrap()).unwrap();
    let none = ["none of the model's tensors", "blk.77.attn_q.weight"];
    fails(&model, &["--type", "q4_0", "--imatrix", matrix.to_str().unwrap()], 1, &none);
    world.run(&["quantize", &model, "nowhere/out.gguf", "--type", "q8_0"]).fails(1, &["nowhere/out.gguf"]);
}

#[cfg(unix)]
mod stopped {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::support::Ran;

    fn start(world: &World, model: &str) -> Child {
        world
            .command(&["quantize", model, "out.gguf", "--type", "q4_k_m", "--force", "-t", "1"])
            .spawn()
            .unwrap()
    }

    fn whole(path: &Path) -> bool {
        path.exists() && moli_format::Gguf::open(path, moli_format::ReadMode::Map).is_ok()
    }

    #[test]
    fn killed_at_any_moment_it_leaves_no_model_under_the_name() {
        let world = World::new();
        let model = world.model("base-large.gguf", large);
        let (out, started) = (world.path("out.gguf"), Instant::now());
        assert!(start(&world, &model).wait_with_output().unwrap().status.success());
        let whole_run = started.elapsed();
        fs::remove_file(&out).unwrap();
        let (mut killed, mut parts) = (0, 0);
        for moment in 0..20 {
            let mut child = start(&world, &model);
            std::thread::sleep(whole_run * (2 * moment + 1) / 40);
            child.kill().unwrap();
            let ended = child.wait_with_output().unwrap().status;
            // It may have been done.
            if ended.signal().is_some() {
                killed += 1;
                assert!(!out.exists() || whole(&out), "{moment}");
            }
            parts += left(&world).iter().filter(|name| name.ends_with(".part")).count();
            if out.exists() {
                assert!(whole(&out), "{moment}");
                fs::remove_file(&out).unwrap();
            }
        }
        assert!(killed >= 10 && parts > 0, "{killed} {parts}");
        // What they left is in nobody's way.
        assert!(start(&world, &model).wait_with_output().unwrap().status.success());
        assert!(whole(&out));
    }

    #[test]
    fn interrupted_it_leaves_nothing() {
        let world = World::new();
        let model = world.model("base-large.gguf", large);
        let mut child = start(&world, &model);
        let part = |world: &World| left(world).iter().any(|name| name.ends_with(".part"));
        let begun = Instant::now();
        while !part(&world) && begun.elapsed() < Duration::from_secs(20) {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it wrote");
            std::thread::sleep(Duration::from_millis(1));
        }
        let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let ran = Ran::new(child.wait_with_output().unwrap());
        assert_eq!(ran.code, Some(130), "{ran:?}");
        assert!(ran.stderr.contains("interrupted; nothing was written"), "{ran:?}");
        assert!(left(&world).iter().all(|name| !name.contains("out.gguf")), "{:?}", left(&world));
    }

    #[test]
    fn a_file_that_may_not_grow_is_an_error_and_no_file() {
        let world = World::new();
        let model = world.model("base-large.gguf", large);
        // A limit on the size of files stands for a full disk: what is written fails the same way.
        let script = format!(
            "trap '' XFSZ; ulimit -f 400; exec {} quantize {model} out.gguf --type q8_0",
            env!("CARGO_BIN_EXE_moli")
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).current_dir(world.path("")).stdin(Stdio::null());
        let ran = Ran::new(shell.output().unwrap());
        ran.fails(1, &["cannot write out.gguf", "File too large", "nothing was left there"]);
        assert!(left(&world).iter().all(|name| !name.contains("out.gguf")), "{:?}", left(&world));
    }
}
