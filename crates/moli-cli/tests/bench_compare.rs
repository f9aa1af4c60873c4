//! `moli bench compare`, on a report that has every kind of row.

// Clippy takes helpers of tests for code outside tests.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::World;

const REPORT: &str = include_str!("../../moli-bench/tests/report.json");

fn report(change: impl FnOnce(&mut Value)) -> String {
    let mut report: Value = serde_json::from_str(REPORT).unwrap();
    change(&mut report);
    report.to_string()
}

/// Each repetition takes so many times as long.
fn slowed(factor: f64) -> String {
    report(|report| {
        for row in report["rows"].as_array_mut().unwrap() {
            for seconds in row["seconds"].as_array_mut().unwrap() {
                *seconds = json!(seconds.as_f64().unwrap() * factor);
            }
        }
    })
}

#[test]
fn a_slower_build_is_told_and_fails_if_that_is_asked_for() {
    let world = World::new();
    let a = world.file("a.json", REPORT);
    let b = world.file("b.json", slowed(1.0 / 0.8));
    let table = world.run(&["bench", "compare", &a, &b]).ok();
    assert!(
        table.contains("  slower\n") && table.contains("0.800") && !table.contains("  faster\n"),
        "{table}"
    );
    let compare =
        |allowed| world.run(&["bench", "compare", &a, &b, "--fail-if-slower", allowed, "--format", "json"]);
    let failed = compare("5%");
    assert_eq!(failed.code, Some(3), "{failed:?}");
    let comparison: Value = serde_json::from_str(&failed.stdout).unwrap();
    assert!(comparison["rows"].as_array().unwrap().iter().all(|row| row["verdict"] == "slower"));
    assert!(failed.stderr.contains("slower by more than 5%"), "{failed:?}");
    compare("30%").ok();
    let same = world.run(&["bench", "compare", &a, &a, "--fail-if-slower", "5%"]).ok();
    assert!(same.contains("  no difference shown\n") && !same.contains("  slower\n"), "{same}");
    // The other way round it is faster.
    assert!(world.run(&["bench", "compare", &b, &a, "--format", "md"]).ok().contains("| faster |"));
}

#[test]
fn unlike_reports_are_refused() {
    let world = World::new();
    let a = world.file("a.json", REPORT);
    let other = report(|report| {
        report["rows"].as_array_mut().unwrap().iter_mut().for_each(|row| row["kv_type"] = json!("f32"))
    });
    let b = world.file("b.json", other);
    let error = world.run(&["bench", "compare", &a, &b]).fails(1, &[]);
    assert!(error.contains("kv_type: f16 in A, f32 in B"), "{error}");
    let fewer = report(|report| drop(report["rows"].as_array_mut().unwrap().remove(0)));
    let b = world.file("b.json", fewer);
    let error = world.run(&["bench", "compare", &a, &b]).fails(1, &[]);
    assert!(error.contains("pp512, threads 1, kv f16, context 8192: only in A"), "{error}");
    let table = world.run(&["bench", "compare", &a, &b, "--common"]).ok();
    assert!(table.contains("not compared: qwen2.5-1.5b pp512"), "{table}");
}

#[test]
fn what_is_no_report_is_refused_with_its_path() {
    let world = World::new();
    let a = world.file("a.json", REPORT);
    let cases = [
        ("no JSON", "not json".to_owned(), "not a report of `moli bench`"),
        (
            "another version",
            report(|report| report["schema"] = json!("moli-bench/9")),
            "\"moli-bench/9\" in the file, \"moli-bench/1\"",
        ),
        ("an unknown field", report(|report| report["colour"] = json!(1)), "colour"),
        (
            "no repetitions",
            report(|report| report["rows"][2]["seconds"] = json!([])),
            "row 2: no repetitions",
        ),
        ("a negative time", report(|report| report["rows"][0]["seconds"][1] = json!(-1.0)), "seconds is -1"),
    ];
    for (what, text, expected) in cases {
        let b = world.file("b.json", text);
        let error = world.run(&["bench", "compare", &a, &b]).fails(1, &[]);
        assert!(error.contains(expected) && error.contains("b.json"), "{what}: {error}");
    }
    let error = world.run(&["bench", "compare", &a, "/nonexistent/b.json"]).fails(1, &[]);
    assert!(error.contains("/nonexistent/b.json"), "{error}");
}

#[test]
fn wrong_usage_of_compare_exits_with_2() {
    let world = World::new();
    for more in [
        &["--fail-if-slower", "5"][..],
        &["--fail-if-slower", "x%"],
        &["--format", "csv"],
        &["--run-to-run", "200%"],
    ] {
        let ran = world.run(&[&["bench", "compare", "a.json", "b.json"], more].concat());
        assert_eq!(ran.code, Some(2), "{more:?}: {ran:?}");
    }
    assert_eq!(world.run(&["bench", "compare", "a.json"]).code, Some(2));
}

/// What the programs of a test are called with.
const SHORT: [&str; 8] = ["-p", "8", "-n", "4", "-r", "1", "-t", "1"];

fn in_turns<'a>(a: &'a str, b: &'a str, options: &[&'a str], model: &'a str) -> Vec<&'a str> {
    let head = ["bench", "compare", "--run", "--rounds", "6", a, b];
    [&head, options, &["--", model], &SHORT].concat()
}

#[test]
fn two_programs_run_in_turns_and_are_compared_round_by_round() {
    let world = World::new();
    let (model, moli) = (world.base_model(), env!("CARGO_BIN_EXE_moli"));
    let ran =
        world.run(&in_turns(moli, moli, &["--reports", "a.json", "b.json", "--format", "json"], &model));
    assert!(ran.stderr.contains("round 1\n") && ran.stderr.contains("round 6\n"), "{ran:?}");
    let text = ran.ok();
    let comparison: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(comparison["rounds"], 6);
    let rows = comparison["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let [low, high] = [0, 1].map(|end| row["interval"][end].as_f64().unwrap());
        let ratio = row["ratio"].as_f64().unwrap();
        assert!(low <= ratio && ratio <= high, "{row}");
    }
    // The reports are those of any run, and say the same again.
    assert_eq!(world.run(&["bench", "compare", "a.json", "b.json", "--format", "json"]).ok(), text);
    let report: Value =
        serde_json::from_str(&std::fs::read_to_string(world.path("b.json")).unwrap()).unwrap();
    assert_eq!(report["turns"]["rounds"], 6);
    assert_eq!(report["rows"][0]["seconds"].as_array().unwrap().len(), 6);
    let table = world.run(&["bench", "compare", "a.json", "b.json"]).ok();
    assert!(table.contains("in each of 6 rounds in which both took turns"), "{table}");
}

#[test]
fn programs_that_cannot_be_compared_are_named() {
    let world = World::new();
    let (model, moli) = (world.base_model(), env!("CARGO_BIN_EXE_moli"));
    world
        .run(&in_turns(moli, "/nonexistent/moli", &[], &model))
        .fails(1, &["cannot run /nonexistent/moli", "No such file"]);
    world.run(&in_turns(moli, moli, &[], "missing.gguf")).fails(1, &["round 1 of 6", "missing.gguf"]);
    let rounds = ["bench", "compare", "--run", "--rounds", "5", moli, moli];
    world.run(&rounds).fails(1, &["the number of rounds is 5", "between 6 and 100"]);
    let unwritable = in_turns(moli, moli, &["--reports", "a.json", "nowhere/b.json"], &model);
    world.run(&unwritable).fails(1, &["cannot write nowhere/b.json"]);
    assert_eq!(world.path(".").read_dir().unwrap().count(), 1, "nothing is left");
}

#[test]
fn arguments_that_two_programs_cannot_be_compared_with_exit_with_2() {
    let world = World::new();
    let moli = env!("CARGO_BIN_EXE_moli");
    for (more, names) in [
        (&["--format", "csv"][..], "--format"),
        (&["-o", "a.json"], "--output"),
        (&["--plot", "a.svg"], "--plot"),
        (&["--sustain", "1s"], "--sustain"),
        (&["--synthetic", "qwen2.5-0.5b:q4_0", "--save-model", "a.gguf"], "--save-model"),
        (&["--colour"], "unexpected argument '--colour'"),
        (&["-n", "x"], "neither a number"),
    ] {
        let head = ["bench", "compare", "--run", moli, moli, "--"];
        world.run(&[&head, more].concat()).fails(2, &["behind --: ", names]);
    }
    // What only reports have, and what only runs have.
    for more in [&["--common"][..], &["--run-to-run", "1%"]] {
        let ran = world.run(&[&["bench", "compare", "--run", moli, moli], more].concat());
        assert_eq!(ran.code, Some(2), "{more:?}: {ran:?}");
    }
    for more in [&["--rounds", "9"][..], &["--reports", "c.json", "d.json"], &["--", "model.gguf"]] {
        let ran = world.run(&[&["bench", "compare", "a.json", "b.json"], more].concat());
        assert_eq!(ran.code, Some(2), "{more:?}: {ran:?}");
        assert!(ran.stderr.contains("--run"), "{more:?}: {ran:?}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_comparison_in_turns() {
    use std::io::{BufRead as _, BufReader, Read as _};

    let world = World::new();
    let (model, moli) = (world.base_model(), env!("CARGO_BIN_EXE_moli"));
    let arguments = ["bench", "compare", "--run", "--rounds", "100", moli, moli, "--", &model];
    let mut child = world.command(&[&arguments[..], &SHORT].concat()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while line.trim() != "round 8" {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
    }
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    let mut table = String::new();
    child.stdout.take().unwrap().read_to_string(&mut table).unwrap();
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(table.contains("interrupted in round "), "{table}");
    assert!(table.contains("rounds in which both took turns"), "{table}");
}
