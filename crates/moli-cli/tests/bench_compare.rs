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
