//! LoRA adapters: models of names of their own, and a field of a request.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Running, tiny_with};
use moli_engine::{AdapterFile, EngineOptions};
use moli_format::{GgufWriter, TensorType};
use moli_server::{ModelSpec, ServerOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

/// `tiny` with the adapters `law` and `tax`, and the folder that they are in.
fn server() -> (Running, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let adapters = ["law", "tax"].map(|name| {
        let rank = name.len() as u64 + u64::from(name == "tax");
        let mut writer = GgufWriter::new();
        writer.meta("general.type", "adapter").meta("general.architecture", "llama");
        writer.meta("adapter.type", "lora").meta("adapter.lora.alpha", 8.0_f32);
        for (end, dims) in [("lora_a", [256, rank]), ("lora_b", [rank, 512])] {
            let values = (0..dims[0] * dims[1]).map(|i| ((i * (rank + 3)) % 17) as f32 / 16.0 - 0.5);
            let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            writer.tensor(format!("blk.0.ffn_up.weight.{end}"), TensorType::F32, dims, data);
        }
        let path = folder.path().join(name);
        writer.write_file(&path).unwrap();
        AdapterFile { name: name.to_owned(), path, scale: 0.0 }
    });
    let options = EngineOptions {
        context: Some(512),
        sessions: 4,
        threads: Some(1),
        adapters: adapters.to_vec(),
        ..EngineOptions::default()
    };
    let names = adapters.iter().map(|adapter| adapter.name.clone()).collect();
    let model = ModelSpec { adapters: names, ..tiny_with("tiny", options) };
    (Running::with(ServerOptions { models: vec![model], ..ServerOptions::default() }), folder)
}

fn chat(server: &Running, model: &str, extra: Value) -> common::Reply {
    let mut request = json!({
        "model": model, "messages": [{"role": "user", "content": "hm"}], "max_tokens": 12, "temperature": 0,
    });
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    server.post("/v1/chat/completions", &request)
}

fn said(reply: &common::Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn an_adapter_is_a_model_and_a_field() {
    let (server, _folder) = server();
    let list = server.get("/v1/models").json();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["tiny", "tiny:law", "tiny:tax"]);
    assert_eq!((&list["data"][0]["parent"], &list["data"][1]["parent"]), (&Value::Null, &json!("tiny")));
    assert_eq!(server.get("/v1/models/tiny:tax").json()["id"], "tiny:tax");

    let plain = said(&chat(&server, "tiny", json!({})));
    let reply = chat(&server, "tiny:law", json!({}));
    assert_eq!(reply.json()["model"], "tiny:law");
    let law = said(&reply);
    let tax = said(&chat(&server, "tiny:tax", json!({})));
    assert!(plain != law && law != tax && tax != plain);
    for (lora, expected) in [
        (json!([{"name": "law"}]), &law),
        (json!([{"id": 1, "scale": 1.0}]), &tax),
        (json!([]), &plain),
        (json!([{"id": 0, "scale": 0}]), &plain),
        (json!(null), &plain),
    ] {
        assert_eq!(said(&chat(&server, "tiny", json!({"lora": lora}))), *expected, "{lora}");
    }
    let both = json!({"lora": [{"name": "law", "scale": 0.5}, {"name": "tax"}]});
    let both = said(&chat(&server, "tiny", both));
    assert!(both != law && both != tax);
    // The other APIs, by the name.
    let ollama = |model: &str| {
        let request = json!({
            "model": model, "messages": [{"role": "user", "content": "hm"}], "stream": false,
            "options": {"num_predict": 12, "temperature": 0},
        });
        let reply = server.post("/api/chat", &request).json();
        reply["message"]["content"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
    };
    assert_eq!((ollama("tiny:latest"), ollama("tiny:law:latest")), (plain.clone(), law.clone()));
    let request = json!({"model": "tiny", "prompt": "hm", "max_tokens": 8, "temperature": 0});
    let with = json!({"model": "tiny", "prompt": "hm", "max_tokens": 8, "temperature": 0, "lora": [{"name": "law"}]});
    let text = |request: &Value| server.post("/v1/completions", request).json()["choices"][0]["text"].clone();
    assert_ne!(text(&request), text(&with));
}

#[test]
fn adapters_that_cannot_be_chosen() {
    let (server, _folder) = server();
    let reply = chat(&server, "tiny:sea", json!({}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("model_not_found")));
    assert!(reply.text.contains("tiny:tax"), "{}", reply.text);
    for (lora, code) in [
        (json!([{"name": "sea"}]), "unknown_adapter"),
        (json!([{"id": 2}]), "invalid_value"),
        (json!([{}]), "invalid_value"),
        (json!([{"name": "law", "id": 0}]), "invalid_value"),
        (json!([{"name": "law", "scale": -1}]), "invalid_value"),
        (json!([{"name": "law"}, {"id": 0}]), "invalid_value"),
    ] {
        let reply = chat(&server, "tiny", json!({"lora": lora}));
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["code"]), (400, &json!(code)), "{lora}: {}", reply.text);
        assert_eq!(error["param"], "lora", "{lora}: {}", reply.text);
    }
    // No f32: refused while it is read, or as an infinite one.
    let reply = chat(&server, "tiny", json!({"lora": [{"name": "law", "scale": 1e39}]}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("invalid_value")));
    let reply = chat(&server, "tiny", json!({"lora": [{"name": "law", "weight": 1}]}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("unknown_field")));
    let reply = chat(&server, "tiny:law", json!({"lora": [{"name": "tax"}]}));
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("lora")));
    let reply = server.post("/v1/embeddings", &json!({"model": "tiny:law", "input": "hm"}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("unsupported")));
}
