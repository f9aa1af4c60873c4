//! `moli bench` from the command line.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader, Read};

use moli_bench::Report;
use moli_bench::report::Test;
use support::{CONTEXT, World};

/// A run of a tiny model that takes a moment.
const SHORT: [&str; 9] = ["-p", "8", "-n", "4", "-r", "2", "-t", "1", "--no-limits"];

fn arguments<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["bench", model], &SHORT[..], more].concat()
}

#[track_caller]
fn report(world: &World, arguments: &[&str]) -> Report {
    let ran = world.run(&[arguments, &["--format", "json"]].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn a_run_is_a_receipt() {
    let world = World::new();
    let model = world.base_model();
    let report =
        report(&world, &arguments(&model, &["-d", "0,16", "-b", "1", "-b", "2", "--kv-type", "f16,q8_0"]));
    assert_eq!(report.schema, moli_bench::report::SCHEMA);
    assert_eq!(report.rows.len(), 2 * 2 * 3);
    assert!(report.rows.iter().all(|row| row.seconds.len() == 2 && row.rate.median > 0.0));
    assert_eq!(report.models["base"].source, model);
    let prefill = report.rows.iter().filter(|row| matches!(row.case.work, Test::Prefill { tokens: 8, .. }));
    assert_eq!(prefill.count(), 4);
    let note = "12 cases took turns for 2 rounds, every other round backwards";
    assert!(report.notes.iter().any(|text| text == note), "{:?}", report.notes);
}

#[test]
fn limits_and_bounds_are_in_the_same_run() {
    let world = World::new();
    let model = world.base_model();
    let report = report(&world, &["bench", &model, "-p", "8", "-n", "4", "-r", "1", "-t", "1"]);
    assert_eq!(report.limits.len(), 1);
    assert!(report.limits[0].read_bytes_per_second > 1e8);
    for row in &report.rows {
        let bound = row.bound.unwrap();
        assert!(bound.of_memory > 0.0 && bound.of_compute > 0.0, "{bound:?}");
    }
}

#[test]
fn whole_answers_through_both_ways() {
    let world = World::new();
    let model = world.chat_model();
    let report = report(&world, &arguments(&model, &["--e2e", "-b", "2"]));
    let latencies = report.rows.iter().filter_map(|row| row.latency.as_ref());
    assert_eq!(latencies.map(|latency| latency.ttft.count).collect::<Vec<_>>(), [4, 4]);
}

#[test]
fn a_synthetic_model_needs_no_file() {
    let world = World::new();
    let arguments = [
        "bench",
        "--synthetic",
        "smollm2-135m:q4_0",
        "-p",
        "4",
        "-n",
        "1",
        "-r",
        "1",
        "-t",
        "2",
        "--no-limits",
    ];
    let in_memory = report(&world, &arguments);
    let saved = world.path("model.gguf");
    let with_file = [&arguments[..], &["--save-model", saved.to_str().unwrap()]].concat();
    let mapped = report(&world, &with_file);
    let [memory, file] = [&in_memory, &mapped].map(|report| report.models.values().next().unwrap());
    assert!(memory.synthetic && file.synthetic);
    assert_eq!(memory.fingerprint, file.fingerprint);
    assert!(saved.metadata().unwrap().len() > 50_000_000);
    // Nothing is left beside it.
    assert_eq!(world.path(".").read_dir().unwrap().count(), 1);
}

#[test]
fn the_report_goes_to_a_file_whose_name_says_its_form() {
    let world = World::new();
    let model = world.base_model();
    let table = world.run(&arguments(&model, &["-d", "0,8", "-o", "report.json", "--plot", "plot.svg"]));
    assert!(table.ok().contains("base"));
    let report: Report =
        serde_json::from_str(&std::fs::read_to_string(world.path("report.json")).unwrap()).unwrap();
    assert_eq!(report.rows.len(), 4);
    assert!(world.path("plot.svg").exists());
    let mut names: Vec<_> =
        world.path(".").read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["base.gguf", "plot.svg", "report.json"]);
}

#[test]
fn a_sustained_run_has_moments() {
    let world = World::new();
    let model = world.base_model();
    let arguments = ["bench", &model, "-n", "4", "-t", "1", "--no-limits", "--sustain", "1200ms"];
    let report = report(&world, &arguments);
    assert_eq!((report.rows.len(), report.sustained.len()), (1, 2));
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_done() {
    let world = World::new();
    let model = world.base_model();
    let arguments =
        ["bench", &model, "-p", "64", "-n", "16", "-t", "1", "-r", "9999", "--no-limits", "--format", "json"];
    let mut child = world.command(&arguments).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while line.trim() != "round 4" {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
    }
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    // The pipe is read to its end, so that neither waits for the other.
    let drain = std::thread::spawn(move || {
        let mut rest = String::new();
        log.read_to_string(&mut rest).map(|_| rest)
    });
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let report: Report = serde_json::from_str(&text).unwrap();
    let counts: Vec<usize> = report.rows.iter().map(|row| row.seconds.len()).collect();
    assert!(counts.len() == 2 && counts.iter().all(|count| (3..9999).contains(count)), "{counts:?}");
    let interrupted = |note: &String| note.starts_with("interrupted in round ") && note.ends_with(" of 9999");
    assert!(report.notes.iter().any(interrupted), "{:?}", report.notes);
    assert!(drain.join().unwrap().unwrap().contains("interrupted in round"));
}

#[test]
fn mistakes_are_told_before_anything_is_measured() {
    let world = World::new();
    let model = world.base_model();
    let trained = CONTEXT.to_string();
    for (more, names) in [
        (&["-r", "0"][..], &["the number of repetitions is 0", "between 1 and 10000"][..]),
        (&["-p", "0", "-n", "0"], &["nothing to measure"]),
        (&["-t", "0"], &["threads is 0", "1024"]),
        (&["-t", "1025"], &["threads is 1025", "1024"]),
        (&["-b", "65"], &["batches is 65", "64"]),
        (&["-t", "1,2,1"], &["1 is twice among the threads"]),
        (&["--kv-type", "f16,f16"], &["f16 is twice among the KV types"]),
        (&["-d", &trained], &["needs 65544 tokens", "65536"]),
        (&["-c", "32", "-b", "2"], &["needs pages for 64 tokens", "context of 32"]),
        (
            &["-c", "67108864", "--kv-type", "f32", "-t", "1-256"],
            &["would take", "MB for all its cases: more than"],
        ),
        (&["--sustain", "1s"], &["one case", "2 are asked for"]),
        (&["-o", "nowhere/report.json"], &["cannot write nowhere/report.json"]),
        (&["-o", "."], &["cannot write .", "folder"]),
        (&["-o", "json"], &["--format"]),
        (&["--plot", "plot.pdf"], &["plot.pdf", ".svg"]),
        (&["--synthetic", "qwen9-1b:q4_k_m"], &["qwen9-1b", "qwen2.5-7b"]),
        (&["--synthetic", "qwen2.5-7b:q9"], &["q9", "Q4_K_M"]),
        (&["no-such-model.gguf"], &["no-such-model.gguf"]),
    ] {
        // What is given again replaces nothing in a list, so these come alone.
        let given = |flag: &str| more.contains(&flag);
        let mut all = vec!["bench", &model, "--no-limits"];
        for pair in SHORT[..8].chunks(2).filter(|pair| !given(pair[0])) {
            all.extend(pair);
        }
        all.extend(more);
        world.run(&all).fails(1, names);
    }
    assert_eq!(world.path(".").read_dir().unwrap().count(), 1, "nothing is left");
    for (more, names) in [
        (&["-p", ""][..], &["neither a number"][..]),
        (&["-n", "-1"], &["neither a number"]),
        (&["-t", "4-2"], &["ends before it begins"]),
        (&["--kv-type", "q4_0"], &["q4_0"]),
        (&["--format", "xml"], &["xml"]),
        (&["--sustain", "0s"], &["no time"]),
        (&["--sustain", "ten"], &["ten"]),
    ] {
        let ran = world.run(&[&["bench", &model], more].concat());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(names.iter().all(|name| ran.stderr.contains(name)), "{ran:?}");
    }
}
