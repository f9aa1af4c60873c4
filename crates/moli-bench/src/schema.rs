//! The committed JSON Schema is that of the types.

use serde_json::{Value, json};

use crate::report::Report;
use crate::samples;

const COMMITTED: &str = include_str!("../../../docs/bench.schema.json");

fn validates(report: &Value) -> bool {
    let schema: Value = serde_json::from_str(COMMITTED).unwrap();
    jsonschema::validator_for(&schema).unwrap().is_valid(report)
}

/// `MOLI_RENEW=1 cargo test -p moli-bench schema` writes what is committed anew.
fn compare_or_renew(path: &str, committed: &str, text: &str) {
    if std::env::var_os("MOLI_RENEW").is_some() {
        std::fs::write(format!("{}/{path}", env!("CARGO_MANIFEST_DIR")), text).unwrap();
    } else {
        assert!(text == committed, "{path} is old: MOLI_RENEW=1 cargo test -p moli-bench schema");
    }
}

#[test]
fn the_committed_schema_is_up_to_date() {
    let text = serde_json::to_string_pretty(&schemars::schema_for!(Report)).unwrap() + "\n";
    compare_or_renew("../../docs/bench.schema.json", COMMITTED, &text);
}

/// The tests of the command read it.
#[test]
fn the_committed_report_is_up_to_date() {
    let text = serde_json::to_string(&samples::report()).unwrap() + "\n";
    compare_or_renew("tests/report.json", include_str!("../tests/report.json"), &text);
}

#[test]
fn a_report_and_every_row_of_it_validate() {
    let report = serde_json::to_value(samples::report()).unwrap();
    assert!(validates(&report));
    let mut schema: Value = serde_json::from_str(COMMITTED).unwrap();
    // The rows' own part of it.
    schema.as_object_mut().unwrap().retain(|field, _| field.starts_with('$'));
    schema["$ref"] = json!("#/$defs/Row");
    let row = jsonschema::validator_for(&schema).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.len() > 10 && rows.iter().all(|value| row.is_valid(value)));
    assert!(!row.is_valid(&json!({})));
}

#[test]
fn wrong_reports_do_not_validate() {
    let report = serde_json::to_value(samples::report()).unwrap();
    let rows = |field: &str, value: Value| {
        let mut wrong = report.clone();
        wrong["rows"][0][field] = value;
        validates(&wrong)
    };
    assert!(!rows("seconds", json!("1")));
    assert!(!rows("seconds", json!([null])));
    assert!(!rows("test", json!("train")));
    assert!(!rows("threads", json!(-1)));
    assert!(!rows("rate", json!({"median": 1.0})));
    assert!(!rows(
        "bound",
        json!({"of_memory": 1.0, "of_compute": 1.0, "compute": "int4", "binds": "memory"})
    ));
    for field in ["schema", "machine", "models", "rows", "outlier_rule"] {
        let mut wrong = report.clone();
        wrong.as_object_mut().unwrap().remove(field);
        assert!(!validates(&wrong), "without {field}");
    }
    let mut wrong = report.clone();
    wrong["colour"] = json!("blue");
    assert!(!validates(&wrong));
}
