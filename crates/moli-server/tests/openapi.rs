//! The description of the API.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "a test fails by panicking")]

mod common;

use common::Running;
use serde_json::Value;

/// Every `$ref` below a value.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn what_it_refers_to_is_there() {
    let server = Running::start();
    let document = server.get("/openapi.json").json();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 100, "{}", found.len());
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
    for path in [
        "/v1/chat/completions",
        "/api/chat",
        "/api/generate",
        "/api/show",
        "/v1/messages",
        "/v1/messages/count_tokens",
    ] {
        let request =
            &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
        let schema = document.pointer(request["$ref"].as_str().unwrap().trim_start_matches('#')).unwrap();
        assert!(!schema["properties"]["model"].is_null(), "{path}");
    }
}
