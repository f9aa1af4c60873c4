//! Ollama's API, on a tiny model.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Reply, Running, thinker, tiny, tiny_with};
use moli_engine::EngineOptions;
use moli_server::{ModelSpec, ServerOptions};
use serde_json::{Value, json};

/// A request with further fields; those of `options` join the others.
fn with(base: Value, extra: Value) -> Value {
    let mut request = base;
    for (key, value) in extra.as_object().unwrap() {
        match (request.get_mut(key).and_then(Value::as_object_mut), value.as_object()) {
            (Some(own), Some(more)) => own.extend(more.clone()),
            _ => request[key] = value.clone(),
        }
    }
    request
}

fn chat(extra: Value) -> Value {
    let message = json!({"role": "user", "content": "hm"});
    with(json!({"model": "tiny", "messages": [message], "options": {"num_predict": 8, "seed": 8}}), extra)
}

fn generate(extra: Value) -> Value {
    with(json!({"model": "tiny", "prompt": "hm", "options": {"num_predict": 8, "seed": 8}}), extra)
}

fn tool() -> Value {
    json!({"type": "function", "function": {"name": "look", "description": "Looks", "parameters": {
        "type": "object", "properties": {"at": {"const": "é🦀"}}, "required": ["at"], "additionalProperties": false
    }}})
}

/// What an answer says that does not depend on the clock.
fn lasting(mut last: Value) -> Value {
    for field in ["created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"] {
        assert!(!last[field].is_null(), "{field}: {last}");
        last.as_object_mut().unwrap().remove(field);
    }
    last
}

fn ok(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

#[test]
fn a_streamed_chat_is_the_whole_one() {
    let server = Running::start();
    let extra = json!({"logprobs": true, "top_logprobs": 2});
    // Once before, so that both find the same in the prefix cache.
    ok(&server.post("/api/chat", &chat(json!({"stream": false}))));
    let whole = ok(&server.post("/api/chat", &with(chat(extra.clone()), json!({"stream": false}))));
    let streamed = server.post("/api/chat", &chat(extra));
    assert_eq!(streamed.header("content-type"), Some("application/x-ndjson"));
    let parts = streamed.events();
    assert_eq!(parts.len(), streamed.text.lines().count());
    let text: String = parts.iter().map(|part| part["message"]["content"].as_str().unwrap()).collect();
    let tokens: Vec<&Value> = parts.iter().filter_map(|part| part["logprobs"].as_array()).flatten().collect();
    assert_eq!(whole["message"]["content"], text);
    assert_eq!(whole["logprobs"], json!(tokens));
    assert_eq!(tokens.len(), 8);
    assert_eq!(tokens[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let (last, before) = parts.split_last().unwrap();
    assert!(before.iter().all(|part| part["done"] == false && part["message"]["role"] == "assistant"));
    let (mut last, mut whole) = (lasting(last.clone()), lasting(whole));
    for own in [&mut last, &mut whole] {
        own.as_object_mut().unwrap().remove("message");
        own.as_object_mut().unwrap().remove("logprobs");
    }
    assert_eq!(last, whole);
    for (field, value) in [
        ("model", json!("tiny")),
        ("done", json!(true)),
        ("done_reason", json!("length")),
        ("eval_count", json!(8)),
        ("truncated", json!(false)),
        ("seed", json!(8)),
    ] {
        assert_eq!(whole[field], value, "{field}");
    }
    assert!(whole["cached_tokens"].as_u64().unwrap() < whole["prompt_eval_count"].as_u64().unwrap());
}

#[test]
fn texts_are_answered_whole_and_streamed() {
    let server = Running::start();
    for extra in [json!({}), json!({"system": "be brief"}), json!({"raw": true}), json!({"prompt": "hm\nhm"})]
    {
        let whole =
            ok(&server.post("/api/generate", &with(generate(extra.clone()), json!({"stream": false}))));
        let parts = server.post("/api/generate", &generate(extra)).events();
        let text: String = parts.iter().map(|part| part["response"].as_str().unwrap()).collect();
        assert_eq!(whole["response"], text);
        assert_eq!(parts.last().unwrap()["prompt_eval_count"], whole["prompt_eval_count"]);
    }
    // A prompt is a message of the user, unless it is raw.
    let whole = |path: &str, request: Value| ok(&server.post(path, &with(request, json!({"stream": false}))));
    let (text, chat) = (whole("/api/generate", generate(json!({}))), whole("/api/chat", chat(json!({}))));
    assert_eq!(text["response"], chat["message"]["content"]);
    assert_eq!(text["prompt_eval_count"], chat["prompt_eval_count"]);
    assert_eq!(whole("/api/generate", generate(json!({"raw": true})))["prompt_eval_count"], 2);
    // As Ollama names models, and as it was asked.
    assert_eq!(whole("/api/generate", generate(json!({"model": "tiny:latest"})))["model"], "tiny:latest");
}

#[test]
fn every_duration_is_a_part_of_the_whole_one() {
    let server = Running::start();
    let answer = ok(&server.post(
        "/api/generate",
        &generate(json!({"stream": false, "options": {"num_predict": 40, "stop": []}})),
    ));
    let nanos = |field: &str| answer[field].as_u64().unwrap();
    let parts = nanos("load_duration") + nanos("prompt_eval_duration") + nanos("eval_duration");
    assert!(nanos("prompt_eval_duration") > 0 && nanos("load_duration") > 0);
    assert!(parts <= nanos("total_duration"), "{answer}");
    assert!(answer["eval_count"].as_u64().unwrap() < 2 || nanos("eval_duration") > 0);
    let created = answer["created_at"].as_str().unwrap();
    assert_eq!((created.len(), &created[19..20], &created[29..]), (30, ".", "Z"));
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let server = Running::start();
    let free = json!({"num_predict": 200});
    let schema = json!({"type": "object", "properties": {"a": {"const": "né 🦀 ü"}}, "required": ["a"], "additionalProperties": false});
    let request = chat(json!({"format": schema, "options": free}));
    let parts = server.post("/api/chat", &request).events();
    let text: String = parts.iter().map(|part| part["message"]["content"].as_str().unwrap()).collect();
    // Each byte is a token of its own, and no part has half a character.
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({"a": "né 🦀 ü"}));
    assert!(parts.len() > 10);
    assert_eq!(parts.last().unwrap()["done_reason"], "stop");
    let whole =
        ok(&server
            .post("/api/generate", &generate(json!({"format": schema, "stream": false, "options": free}))));
    assert_eq!(whole["response"], text);
    let json = generate(
        json!({"format": "json", "stream": false, "options": {"num_predict": 400, "temperature": 0}}),
    );
    let answer = ok(&server.post("/api/generate", &json));
    assert!(answer["response"].as_str().unwrap().trim_start().starts_with('{'), "{answer}");
    // What Go's client writes for nothing.
    let empty = json!({"format": "", "suffix": "", "system": "", "template": "", "context": [], "images": [], "options": null, "stream": false, "raw": false, "think": null, "keep_alive": null});
    let mut request = json!({"model": "tiny", "prompt": "hm"});
    request.as_object_mut().unwrap().extend(empty.as_object().unwrap().clone());
    ok(&server.post("/api/generate", &request));
}

#[test]
fn tools_there_and_back() {
    let server = Running::start();
    // A schema that calls for nothing else than a call's text: a tiny model would never call of itself.
    let call = json!({"name": "look", "arguments": {"at": "é🦀"}});
    let ask = |stream: bool| {
        let grammar = json!({"const": call});
        json!({"model": "tiny", "messages": [{"role": "user", "content": "hm"}], "tools": [tool()], "format": grammar, "stream": stream, "options": {"num_predict": 300, "seed": 7, "frequency_penalty": 50}})
    };
    let whole = ok(&server.post("/api/chat", &ask(false)));
    let text: String = server
        .post("/api/chat", &ask(true))
        .events()
        .iter()
        .map(|part| part["message"]["content"].as_str().unwrap().to_owned())
        .collect();
    // Without the marks it is text.
    assert_eq!(whole["message"]["content"], text);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), call);
    // What was called goes back, with ids and without.
    for ids in [true, false] {
        let mut called = json!({"function": {"name": "look", "arguments": {"at": "é🦀"}}});
        let mut result = json!({"role": "tool", "content": "a crab", "tool_name": "look"});
        if ids {
            called = with(called, json!({"id": "abc", "type": "function"}));
            result = with(result, json!({"tool_call_id": "abc"}));
        }
        let messages = json!([
            {"role": "user", "content": "hm"},
            {"role": "assistant", "content": "", "thinking": "", "tool_calls": [called]},
            result,
        ]);
        let answer = ok(&server
            .post("/api/chat", &chat(json!({"messages": messages, "tools": [tool()], "stream": false}))));
        assert!(answer["prompt_eval_count"].as_u64().unwrap() > 200, "{answer}");
    }
}

#[test]
fn thoughts_are_told_apart() {
    let server = Running::with(ServerOptions { models: vec![thinker(), tiny()], ..ServerOptions::default() });
    let ask = |extra: Value| chat(with(json!({"model": "thinker", "stream": false}), extra));
    let thought = ok(&server.post("/api/chat", &ask(json!({"think": true}))));
    assert_eq!(thought["message"]["content"], "");
    assert!(!thought["message"]["thinking"].as_str().unwrap().is_empty());
    assert_eq!(ok(&server.post("/api/chat", &ask(json!({}))))["message"], thought["message"]);
    assert_eq!(ok(&server.post("/api/chat", &ask(json!({"think": "low"}))))["message"], thought["message"]);
    let parts = server.post("/api/chat", &ask(json!({"stream": true}))).events();
    let text: String = parts.iter().filter_map(|part| part["message"]["thinking"].as_str()).collect();
    assert_eq!(thought["message"]["thinking"], text);
    let plain = ok(&server.post("/api/chat", &ask(json!({"think": false}))));
    assert_eq!(plain["message"]["thinking"], Value::Null);
    assert!(!plain["message"]["content"].as_str().unwrap().is_empty());
    let text = ok(&server.post("/api/generate", &generate(json!({"model": "thinker", "stream": false}))));
    assert_eq!(text["thinking"], thought["message"]["thinking"]);
    // One that does not think can be told not to, and not to think.
    ok(&server.post("/api/chat", &chat(json!({"think": false, "stream": false}))));
    assert_eq!(server.post("/api/chat", &chat(json!({"think": true}))).status, 400);
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    let server = Running::start();
    for (path, request, named) in [
        ("/api/chat", chat(json!({"surprise": 1})), "surprise"),
        ("/api/chat", chat(json!({"options": {"num_gpu": 1}})), "options.num_gpu"),
        ("/api/chat", chat(json!({"options": {"mirostat": 1}})), "options.mirostat"),
        (
            "/api/chat",
            chat(json!({"options": {"num_ctx": 4096}})),
            "options.num_ctx is 4096, and the model is served with 512",
        ),
        ("/api/chat", chat(json!({"options": {"num_keep": 4}})), "options.num_keep"),
        ("/api/chat", chat(json!({"options": {"num_keep": 600}, "shift": true})), "options.num_keep is 600"),
        ("/api/chat", chat(json!({"options": {"num_predict": -3}})), "options.num_predict is -3"),
        ("/api/chat", chat(json!({"options": {"temperature": -1}})), "options.temperature is -1"),
        ("/api/chat", chat(json!({"options": {"repeat_last_n": -2}})), "options.repeat_last_n is -2"),
        ("/api/chat", chat(json!({"options": {"stop": [""]}})), "options.stop"),
        ("/api/chat", chat(json!({"options": {"top_k": "many"}})), "options.top_k"),
        ("/api/chat", chat(json!({"format": "xml"})), "format: must be \"json\" or a JSON schema"),
        ("/api/chat", chat(json!({"format": {"type": "nonsense"}})), "JSON schema"),
        ("/api/chat", chat(json!({"think": "max"})), "think: must be"),
        ("/api/chat", chat(json!({"think": "high"})), "think is \"high\""),
        ("/api/chat", chat(json!({"keep_alive": "soon"})), "keep_alive is \"soon\""),
        ("/api/chat", chat(json!({"keep_alive": []})), "keep_alive"),
        ("/api/chat", chat(json!({"top_logprobs": 3})), "top_logprobs"),
        ("/api/chat", chat(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs is 21"),
        (
            "/api/chat",
            chat(json!({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]})),
            "messages[0].images",
        ),
        (
            "/api/chat",
            chat(json!({"messages": [{"role": "wizard", "content": "x"}]})),
            "unknown variant `wizard`",
        ),
        (
            "/api/chat",
            chat(json!({"tools": [{"type": "function", "function": {"name": "no good"}}]})),
            "no good",
        ),
        ("/api/chat", json!({"messages": []}), "model"),
        ("/api/generate", generate(json!({"suffix": "x"})), "suffix"),
        ("/api/generate", generate(json!({"template": "x"})), "template"),
        ("/api/generate", generate(json!({"context": [1]})), "context"),
        ("/api/generate", generate(json!({"images": ["aGk="]})), "images"),
        ("/api/generate", generate(json!({"raw": true, "system": "x"})), "system"),
        ("/api/generate", generate(json!({"raw": true, "think": false})), "think"),
        ("/api/generate", generate(json!({"prompt": "x".repeat(600)})), "context has room for 512"),
        ("/api/show", json!({"model": "tiny", "system": "x"}), "system"),
        ("/api/show", json!({"model": "tiny", "options": {"seed": 1}}), "options"),
        ("/api/show", json!({}), "model"),
    ] {
        let reply = server.post(path, &request);
        let error = reply.json();
        assert_eq!(reply.status, 400, "{request}: {error}");
        let message = error["error"].as_str().unwrap();
        assert!(message.contains(named), "{named}: {message}");
        assert_eq!(error.as_object().unwrap().len(), 1);
    }
    for (method, path, status) in [
        ("post", "/api/chat", 404),
        ("post", "/api/show", 404),
        ("get", "/api/nothing", 404),
        ("get", "/api/chat", 405),
    ] {
        let reply = match method {
            "post" => server.post(path, &json!({"model": "huge", "messages": []})),
            _ => server.get(path),
        };
        if path != "/api/show" {
            assert_eq!(reply.status, status, "{path}: {}", reply.text);
        }
        assert!(reply.json()["error"].is_string());
    }
    assert_eq!(server.post("/api/show", &json!({"name": "huge"})).status, 404);
    for (path, command) in
        [("pull", "moli pull"), ("delete", "moli rm"), ("create", "moli serve"), ("push", "uploads")]
    {
        let reply = server.post(&format!("/api/{path}"), &json!({"model": "tiny"}));
        assert_eq!(reply.status, 501);
        assert!(reply.json()["error"].as_str().unwrap().contains(command), "{}", reply.text);
    }
}

#[test]
fn models_say_what_they_are() {
    let server = Running::with(ServerOptions {
        models: vec![tiny(), ModelSpec { keep: false, ..thinker() }],
        ..ServerOptions::default()
    });
    let tags = ok(&server.get("/api/tags"));
    let names: Vec<&Value> = tags["models"].as_array().unwrap().iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["tiny", "thinker"]);
    let model = &tags["models"][0];
    assert_eq!(model["model"], "tiny");
    assert!(model["size"].as_u64().unwrap() > 100_000);
    assert_eq!(model["digest"].as_str().unwrap().len(), 64);
    assert_ne!(model["digest"], tags["models"][1]["digest"]);
    assert_eq!(model["details"]["family"], "llama");
    assert_eq!(model["details"]["format"], "gguf");
    assert_eq!(model["details"]["quantization_level"], "Q8_0");
    assert!(model["details"]["parameter_size"].as_str().unwrap().ends_with('M'));
    assert!(model["modified_at"].as_str().unwrap().starts_with("20"));
    assert_eq!(model["capabilities"], json!(["completion", "tools"]));

    let shown = ok(&server.post("/api/show", &json!({"model": "thinker:latest"})));
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
    assert!(shown["template"].as_str().unwrap().contains("<think>"));
    assert_eq!(shown["model_info"]["general.architecture"], "llama");
    assert_eq!(shown["model_info"]["llama.context_length"], 2048);
    assert_eq!(shown["model_info"]["tokenizer.ggml.tokens"], Value::Null);
    assert!(shown["parameters"].as_str().unwrap().contains("temperature"));
    assert_eq!(shown["tensors"], Value::Null);
    let verbose = ok(&server.post("/api/show", &json!({"model": "tiny", "verbose": true})));
    assert_eq!(verbose["tensors"][0].as_object().unwrap().len(), 3);

    // Only what is loaded is in memory.
    let loaded = ok(&server.get("/api/ps"));
    assert_eq!(loaded["models"].as_array().unwrap().len(), 1);
    assert_eq!(loaded["models"][0]["name"], "tiny");
    assert_eq!(loaded["models"][0]["context_length"], 512);
    assert_eq!(loaded["models"][0]["digest"], model["digest"]);
    assert!(loaded["models"][0]["expires_at"].as_str().unwrap().starts_with("23"), "{loaded}");
    assert_eq!(ok(&server.get("/api/version"))["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn models_are_loaded_and_unloaded() {
    let options = || EngineOptions { context: Some(512), threads: Some(1), ..EngineOptions::default() };
    let other = ModelSpec { keep: false, ..tiny_with("other", options()) };
    let server = Running::with(ServerOptions {
        models: vec![tiny(), other],
        unload_after: None,
        ..ServerOptions::default()
    });
    let expires = || {
        let loaded = ok(&server.get("/api/ps"));
        let models = loaded["models"].as_array().unwrap();
        let other = models.iter().find(|model| model["name"] == "other")?;
        Some(other["expires_at"].as_str().unwrap().to_owned())
    };
    let ask = |extra: Value| with(json!({"model": "other", "messages": []}), extra);
    let load = ok(&server.post("/api/chat", &ask(json!({}))));
    assert_eq!((&load["done"], &load["done_reason"]), (&json!(true), &json!("load")));
    assert_eq!(load["message"], json!({"role": "assistant", "content": ""}));
    assert!(expires().unwrap().starts_with("23"));
    let load = ok(&server.post("/api/generate", &json!({"model": "other", "keep_alive": "90m"})));
    assert_eq!((&load["response"], &load["done_reason"]), (&json!(""), &json!("load")));
    assert!(expires().unwrap().starts_with("202"));
    let unload = ok(&server.post("/api/generate", &json!({"model": "other", "keep_alive": 0})));
    assert_eq!(unload["done_reason"], "unload");
    assert_eq!(expires(), None);
    // Not loaded: there is nothing to do, and it does not stay short the next time.
    assert_eq!(ok(&server.post("/api/chat", &ask(json!({"keep_alive": "0"}))))["done_reason"], "unload");
    ok(&server.post("/api/chat", &ask(json!({}))));
    assert!(expires().unwrap().starts_with("23"));
    // An answer first.
    let request = chat(json!({"model": "other", "keep_alive": 0, "stream": false}));
    assert_eq!(ok(&server.post("/api/chat", &request))["eval_count"], 8);
    let start = Instant::now();
    while expires().is_some() {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
    // What else is asked has to be right even so.
    for wrong in [json!({"logprobs": true, "top_logprobs": 21}), json!({"options": {"top_p": -1.5}})] {
        assert_eq!(server.post("/api/chat", &ask(wrong.clone())).status, 400);
        assert_eq!(server.post("/api/chat", &ask(with(wrong, json!({"keep_alive": 0})))).status, 400);
    }
    // The server's own word holds.
    let kept = server.post("/api/generate", &json!({"model": "tiny", "keep_alive": 0}));
    assert_eq!(kept.status, 400);
    assert!(kept.json()["error"].as_str().unwrap().contains("stays loaded"));
    ok(&server.post("/api/chat", &chat(json!({"keep_alive": 0, "stream": false}))));
    assert_eq!(ok(&server.get("/api/ps"))["models"][0]["name"], "tiny");
}

#[test]
fn a_full_context_is_told_and_forgotten_only_when_asked() {
    let server = Running::start();
    let long = |extra: Value| {
        let text = "x".repeat(480);
        let request =
            generate(json!({"prompt": text, "raw": true, "stream": false, "options": {"num_predict": -1}}));
        ok(&server.post("/api/generate", &with(request, extra)))
    };
    let schema = json!({"type": "array", "items": {"const": 1}, "minItems": 60});
    let full = long(json!({"format": schema}));
    assert_eq!((&full["done_reason"], &full["truncated"]), (&json!("length"), &json!(true)));
    let shifted =
        long(json!({"format": schema, "shift": true, "options": {"num_keep": 8, "num_predict": 100}}));
    assert_eq!((&shifted["eval_count"], &shifted["truncated"]), (&json!(100), &json!(true)));
}

#[test]
fn vectors_are_those_of_the_other_api() {
    let server =
        Running::with(ServerOptions { models: vec![common::embedder()], ..ServerOptions::default() });
    let texts = json!(["one", "two"]);
    let own = server.post("/api/embed", &json!({"model": "embedder:latest", "input": texts}));
    assert_eq!(own.status, 200, "{}", own.text);
    let other = server.post("/v1/embeddings", &json!({"model": "embedder", "input": texts})).json();
    let own = own.json();
    for index in 0..2 {
        assert_eq!(own["embeddings"][index], other["data"][index]["embedding"]);
    }
    assert_eq!(own["prompt_eval_count"], other["usage"]["prompt_tokens"]);
    let long = json!({"model": "embedder", "input": "a".repeat(600)});
    assert_eq!(server.post("/api/embed", &long).status, 400);
    let one =
        server.post("/api/embed", &json!({"model": "embedder", "input": "one", "dimensions": 5})).json();
    assert_eq!(one["embeddings"][0].as_array().unwrap().len(), 5);
}
