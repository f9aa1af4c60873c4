//! Anthropic's API, on a tiny model.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "a test fails by panicking")]

mod common;

use common::{Reply, Running, thinker, tiny};
use moli_engine::SamplerParams;
use moli_server::{ModelSpec, ServerOptions};
use serde_json::{Value, json};

fn ask(extra: Value) -> Value {
    let message = json!({"role": "user", "content": "hm"});
    let mut request = json!({"model": "tiny", "messages": [message], "max_tokens": 8});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    request
}

/// A model that says the likeliest, but nothing again and again: between the parts of a call there may be any number of
/// spaces.
fn greedy(model: ModelSpec) -> ModelSpec {
    ModelSpec { sampling: SamplerParams { frequency_penalty: 50.0, ..SamplerParams::greedy() }, ..model }
}

fn serve() -> Running {
    Running::with(ServerOptions { models: vec![greedy(tiny())], ..ServerOptions::default() })
}

fn tool(name: &str) -> Value {
    json!({"name": name, "description": "Looks", "cache_control": {"type": "ephemeral", "ttl": "1h"}, "input_schema": {
        "type": "object", "properties": {"at": {"const": "é🦀"}}, "required": ["at"], "additionalProperties": false
    }})
}

fn ok(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

/// The message that a stream's events make, put together as clients do; the order of the events is checked.
fn joined(reply: &Reply) -> Value {
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let names = reply.text.lines().filter_map(|line| line.strip_prefix("event: "));
    let events = reply.events();
    assert_eq!(
        names.collect::<Vec<_>>(),
        events.iter().map(|e| e["type"].as_str().unwrap()).collect::<Vec<_>>()
    );
    let mut message = Value::Null;
    let mut open: Option<usize> = None;
    let mut partial = String::new();
    for event in &events {
        match event["type"].as_str().unwrap() {
            "message_start" => {
                assert!(message.is_null());
                message = event["message"].clone();
                assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
            }
            "ping" => {}
            "content_block_start" => {
                assert_eq!(open, None);
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(event["index"], content.len());
                open = Some(content.len());
                content.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                assert_eq!(event["index"], open.unwrap());
                let block = &mut message["content"][open.unwrap()];
                let delta = &event["delta"];
                let field = match delta["type"].as_str().unwrap() {
                    "text_delta" => "text",
                    "thinking_delta" => "thinking",
                    "signature_delta" => "signature",
                    "input_json_delta" => {
                        partial.push_str(delta["partial_json"].as_str().unwrap());
                        continue;
                    }
                    other => panic!("{other}"),
                };
                block[field] =
                    format!("{}{}", block[field].as_str().unwrap(), delta[field].as_str().unwrap()).into();
            }
            "content_block_stop" => {
                let block = &mut message["content"][open.take().unwrap()];
                if block["type"] == "tool_use" {
                    assert_eq!(block["input"], json!({}));
                    block["input"] = serde_json::from_str(&std::mem::take(&mut partial)).unwrap();
                }
            }
            "message_delta" => {
                assert_eq!(open, None);
                for (field, value) in event["delta"].as_object().unwrap() {
                    message[field] = value.clone();
                }
                message["usage"] = event["usage"].clone();
            }
            "message_stop" => assert_eq!(event, events.last().unwrap()),
            other => panic!("{other}"),
        }
    }
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    message
}

/// Without what is another with each answer.
fn lasting(mut message: Value) -> Value {
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    message.as_object_mut().unwrap().remove("id");
    for block in message["content"].as_array_mut().unwrap() {
        if block["type"] == "tool_use" {
            let id = block.as_object_mut().unwrap().remove("id").unwrap();
            assert!(!id.as_str().unwrap().is_empty());
        }
    }
    message
}

#[test]
fn a_streamed_answer_is_the_whole_one() {
    let server = Running::with(ServerOptions {
        models: vec![greedy(tiny()), greedy(thinker())],
        ..ServerOptions::default()
    });
    let schema = json!({"type": "object", "properties": {"a": {"const": "né 🦀"}}, "required": ["a"], "additionalProperties": false});
    for (request, reason, kinds) in [
        (ask(json!({})), "max_tokens", vec!["text"]),
        (
            ask(
                json!({"stop_sequences": ["\u{e9}"], "output_config": {"format": {"type": "json_schema", "schema": schema}}, "max_tokens": 200}),
            ),
            "stop_sequence",
            vec!["text"],
        ),
        (
            ask(
                json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}, "max_tokens": 200}),
            ),
            "end_turn",
            vec!["text"],
        ),
        (
            ask(
                json!({"model": "thinker", "thinking": {"type": "enabled", "budget_tokens": 6}, "max_tokens": 24}),
            ),
            "max_tokens",
            vec!["thinking", "text"],
        ),
        (
            ask(json!({"model": "thinker", "thinking": {"type": "adaptive", "display": "summarized"}})),
            "max_tokens",
            vec!["thinking"],
        ),
        (ask(json!({"model": "thinker", "thinking": {"type": "disabled"}})), "max_tokens", vec!["text"]),
        (
            ask(
                json!({"tools": [tool("look")], "tool_choice": {"type": "any", "disable_parallel_tool_use": true}, "max_tokens": 200}),
            ),
            "tool_use",
            vec!["tool_use"],
        ),
        (
            ask(
                json!({"tools": [{"name": "a", "input_schema": {"type": "object"}}, tool("look")], "tool_choice": {"type": "tool", "name": "look"}, "max_tokens": 200}),
            ),
            "tool_use",
            vec!["tool_use"],
        ),
        (ask(json!({"max_tokens": 0})), "max_tokens", vec![]),
    ] {
        // Once before, so that both find the same in the prefix cache.
        ok(&server.post("/v1/messages", &request));
        let whole = lasting(ok(&server.post("/v1/messages", &request)));
        let mut streaming = request.clone();
        streaming["stream"] = true.into();
        let streamed = server.post("/v1/messages", &streaming);
        assert!(streamed.header("request-id").unwrap().starts_with("req_"));
        assert_eq!(lasting(joined(&streamed)), whole);
        assert_eq!(whole["stop_reason"], reason, "{whole}");
        let own: Vec<&str> =
            whole["content"].as_array().unwrap().iter().map(|b| b["type"].as_str().unwrap()).collect();
        assert_eq!(own, kinds, "{whole}");
        assert_eq!(
            (&whole["type"], &whole["role"], &whole["model"]),
            (&json!("message"), &json!("assistant"), &request["model"])
        );
        for block in whole["content"].as_array().unwrap() {
            if block["type"] == "tool_use" {
                assert_eq!((&block["name"], &block["input"]), (&json!("look"), &json!({"at": "é🦀"})));
            }
        }
    }
    let stopped = ok(&server.post("/v1/messages", &ask(json!({"stop_sequences": ["}", "\"a"], "output_config": {"format": {"type": "json_schema", "schema": schema}}, "max_tokens": 200}))));
    assert_eq!(
        (&stopped["stop_sequence"], &stopped["stop_reason"]),
        (&json!("\"a"), &json!("stop_sequence"))
    );
}

#[test]
fn tokens_are_counted_before_and_after_alike() {
    let server = serve();
    let call = json!({"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "é🦀"}});
    let result = json!({"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "a crab"}]});
    let text = |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
    for conversation in [
        json!({"messages": [{"role": "user", "content": "hm"}]}),
        json!({"messages": [{"role": "user", "content": [text("hm")]}], "system": "be brief"}),
        json!({"messages": [{"role": "user", "content": "hm"}], "system": [text("be"), text("brief")], "tools": [tool("look")]}),
        json!({"messages": [{"role": "user", "content": "hm"}], "tools": [tool("look")], "tool_choice": {"type": "none"}}),
        json!({"messages": [{"role": "user", "content": "hm"}, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result, text("and?")]}], "tools": [tool("look")]}),
    ] {
        let mut request = conversation.clone();
        request["model"] = "tiny".into();
        let counted = ok(&server.post("/v1/messages/count_tokens", &request));
        let counted = counted["input_tokens"].as_u64().unwrap();
        request["max_tokens"] = 2.into();
        // The second time most of them have been computed before.
        let mut cached = Vec::new();
        for _ in 0..2 {
            let usage = ok(&server.post("/v1/messages", &request))["usage"].clone();
            let of = |field: &str| usage[field].as_u64().unwrap();
            assert_eq!(of("input_tokens") + of("cache_read_input_tokens"), counted, "{usage}");
            assert_eq!(of("cache_creation_input_tokens"), 0);
            cached.push(of("cache_read_input_tokens"));
        }
        assert!(cached[1] >= cached[0] && (counted < 40 || cached[1] > 0), "{cached:?} of {counted}");
    }
    // The tools are part of the prompt, unless none may be called.
    let count = |extra: Value| {
        let mut request = json!({"model": "tiny", "messages": [{"role": "user", "content": "hm"}], "tools": [tool("look")]});
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        ok(&server.post("/v1/messages/count_tokens", &request))["input_tokens"].as_u64().unwrap()
    };
    assert!(count(json!({})) > count(json!({"tool_choice": {"type": "none"}})) + 100);
}

#[test]
fn a_call_there_and_back() {
    let server = serve();
    let tools = json!([tool("look")]);
    let choice = json!({"type": "tool", "name": "look"});
    let call =
        ok(&server
            .post("/v1/messages", &ask(json!({"tools": tools, "tool_choice": choice, "max_tokens": 200}))));
    let id = call["content"][0]["id"].clone();
    let messages = json!([
        {"role": "user", "content": "hm"},
        {"role": "assistant", "content": call["content"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "a crab", "is_error": false}]},
    ]);
    let answer = ok(&server.post("/v1/messages", &ask(json!({"messages": messages, "tools": tools}))));
    // All of the first answer was computed before.
    assert!(answer["usage"]["cache_read_input_tokens"].as_u64().unwrap() > 200, "{answer}");
    // One call at most, where none has to be.
    let auto = json!({"type": "auto", "disable_parallel_tool_use": true});
    ok(&server.post("/v1/messages", &ask(json!({"tools": tools, "tool_choice": auto}))));
}

#[test]
fn thoughts_go_back_to_the_model() {
    let server = Running::with(ServerOptions { models: vec![greedy(thinker())], ..ServerOptions::default() });
    let thinking = json!({"type": "enabled", "budget_tokens": 6});
    let request = ask(json!({"model": "thinker", "thinking": thinking, "max_tokens": 40}));
    let thought = ok(&server.post("/v1/messages", &request));
    assert_eq!(thought["content"][0]["type"], "thinking");
    assert!(!thought["content"][0]["signature"].as_str().unwrap().is_empty());
    let messages = json!([
        {"role": "user", "content": "hm"},
        {"role": "assistant", "content": thought["content"]},
        {"role": "user", "content": "and?"},
    ]);
    ok(&server.post("/v1/messages", &ask(json!({"model": "thinker", "messages": messages}))));
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    let server = serve();
    let user = |block: Value| ask(json!({"messages": [{"role": "user", "content": [block]}]}));
    for (request, named) in [
        (ask(json!({"surprise": 1})), "surprise"),
        (ask(json!({"metadata": {"name": "x"}})), "metadata.name"),
        (ask(json!({"cache_control": {"type": "eternal"}})), "eternal"),
        (ask(json!({"service_tier": "priority"})), "priority"),
        (ask(json!({"max_tokens": null})), "max_tokens"),
        (ask(json!({"max_tokens": -1})), "max_tokens"),
        (ask(json!({"temperature": -1})), "temperature is -1"),
        (ask(json!({"top_p": 2})), "top_p is 2"),
        (ask(json!({"stop_sequences": [""]})), "stop_sequences"),
        (ask(json!({"messages": []})), "messages is empty"),
        (ask(json!({"messages": "hm"})), "messages"),
        (
            ask(json!({"messages": [{"role": "user", "content": 1}]})),
            "messages[0].content: invalid type: integer `1`, expected a string or a list of blocks",
        ),
        (ask(json!({"messages": [{"role": "user", "content": "a", "name": "b"}]})), "name"),
        (
            ask(
                json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
            ),
            "messages end with the assistant",
        ),
        (
            user(
                json!({"type": "image", "source": {"type": "base64", "data": "", "media_type": "image/png"}}),
            ),
            "messages[0].content[0].type: unknown variant `image`",
        ),
        (user(json!({"type": "document", "source": {}})), "`document`"),
        (user(json!({"type": "redacted_thinking", "data": "x"})), "`redacted_thinking`"),
        (
            user(json!({"type": "text", "text": "a", "shout": true})),
            "messages[0].content[0]: unknown field `shout`",
        ),
        (
            user(json!({"type": "text", "text": "a", "citations": [{"type": "char_location"}]})),
            "messages[0].content[0].citations",
        ),
        (
            user(json!({"type": "tool_result", "tool_use_id": "x"})),
            "messages[0].content[0].tool_use_id is \"x\"",
        ),
        (user(json!({"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]})), "`image`"),
        (ask(json!({"system": [{"type": "image"}]})), "system[0].type: unknown variant `image`"),
        (
            ask(json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]})),
            "tools[0].type: unknown variant `web_search_20250305`",
        ),
        (ask(json!({"tools": [{"name": "x"}]})), "input_schema"),
        (ask(json!({"tools": [{"name": "no good", "input_schema": {"type": "object"}}]})), "no good"),
        (ask(json!({"tool_choice": {"type": "any"}})), "there are no tools"),
        (ask(json!({"tools": [tool("look")], "tool_choice": {"type": "tool", "name": "other"}})), "other"),
        (
            ask(json!({"tools": [tool("look")], "tool_choice": {"type": "tool"}})),
            "tool_choice: missing field `name`",
        ),
        (
            ask(json!({"thinking": {"type": "enabled", "budget_tokens": 1024}})),
            "thinking asks the model to think",
        ),
        (ask(json!({"thinking": {"type": "enabled", "budget_tokens": 0}})), "thinking.budget_tokens is 0"),
        (ask(json!({"thinking": {"type": "adaptive", "display": "omitted"}})), "`omitted`"),
        (ask(json!({"thinking": {"type": "sometimes"}})), "`sometimes`"),
        (ask(json!({"output_config": {"effort": "high"}})), "output_config.effort is \"high\""),
        (ask(json!({"output_config": {"effort": "max"}})), "output_config.effort"),
        (
            ask(
                json!({"output_config": {"format": {"type": "json_schema", "schema": {"type": "nonsense"}}}}),
            ),
            "JSON schema",
        ),
        (
            ask(json!({"messages": [{"role": "user", "content": "x".repeat(600)}]})),
            "context has room for 512",
        ),
    ] {
        let reply = server.post("/v1/messages", &request);
        let error = reply.json();
        assert_eq!(reply.status, 400, "{request}: {error}");
        assert_eq!(
            (&error["type"], &error["error"]["type"]),
            (&json!("error"), &json!("invalid_request_error"))
        );
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(named), "{named}: {message}");
        assert_eq!(error["request_id"].as_str(), reply.header("request-id"));
    }
    let reply = server.post("/v1/messages", &ask(json!({"model": "huge"})));
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (404, &json!("not_found_error")));
    let reply = server.post("/v1/messages/count_tokens", &ask(json!({})));
    assert_eq!(reply.status, 400, "what no count depends on: {}", reply.text);
    assert_eq!(server.post_bytes("/v1/messages", b"{").json()["error"]["type"], "invalid_request_error");
    assert_eq!(server.get("/v1/messages").json()["type"], "error");
}

#[test]
fn headers_and_a_lenient_server() {
    let server =
        Running::with(ServerOptions { models: vec![tiny()], lenient: true, ..ServerOptions::default() });
    let headers =
        [("anthropic-version", "2023-06-01"), ("x-api-key", "none"), ("anthropic-beta", "whatever-2026")];
    let body = ask(
        json!({"context_management": {"edits": []}, "tools": [{"name": "look", "input_schema": {"type": "object"}, "defer_loading": false}]}),
    );
    let reply = server.post_with("/v1/messages?beta=true", &headers, body.to_string().as_bytes());
    ok(&reply);
    let ignored = reply.header("moli-ignored").unwrap();
    assert!(ignored.contains("context_management") && ignored.contains("defer_loading"), "{ignored}");
}
