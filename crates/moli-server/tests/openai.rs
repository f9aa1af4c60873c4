//! OpenAI's API, on a tiny model.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "a test fails by panicking")]

mod common;

use common::{Running, narrow, tiny, tiny_with};
use moli_server::ServerOptions;
use serde_json::{Value, json};

fn ask(extra: Value) -> Value {
    let mut request =
        json!({"model": "tiny", "messages": [{"role": "user", "content": "hm"}], "max_tokens": 8, "seed": 7});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    request
}

#[test]
fn a_streamed_answer_is_the_whole_one() {
    let server = Running::start();
    let whole =
        server.post("/v1/chat/completions", &ask(json!({"n": 2, "logprobs": true, "top_logprobs": 3})));
    assert_eq!(whole.status, 200, "{}", whole.text);
    let whole = whole.json();
    let extra = json!({"n": 2, "logprobs": true, "top_logprobs": 3, "stream": true, "stream_options": {"include_usage": true}});
    let streamed = server.post("/v1/chat/completions", &ask(extra));
    assert_eq!(streamed.header("content-type"), Some("text/event-stream"));
    assert!(streamed.text.ends_with("data: [DONE]\n\n"));
    let events = streamed.events();
    for index in 0..2 {
        let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
        let own: Vec<&Value> = choices.filter(|choice| choice["index"] == index).collect();
        let text: String = own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        let tokens: Vec<Value> = own
            .iter()
            .filter_map(|choice| choice["logprobs"]["content"].as_array())
            .flatten()
            .cloned()
            .collect();
        let choice = &whole["choices"][index];
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(choice["logprobs"]["content"], Value::from(tokens));
        assert_eq!(own.last().unwrap()["finish_reason"], choice["finish_reason"]);
    }
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][field], whole["usage"][field]);
    }
    assert_eq!((&last["truncated"], &last["seed"]), (&json!(false), &json!(7)));
}

#[test]
fn texts_are_continued_whole_and_streamed() {
    let server = Running::start();
    let ask = |extra: Value| {
        let mut request = json!({"model": "tiny", "prompt": ["one", "two"], "max_tokens": 8, "seed": 3, "n": 2, "echo": true, "ignore_eos": true});
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post("/v1/completions", &request)
    };
    let whole = ask(json!({})).json();
    let streamed = ask(json!({"stream": true})).events();
    let prompts = ["one", "one", "two", "two"];
    assert_eq!(whole["choices"].as_array().unwrap().len(), 4);
    for (index, prompt) in prompts.into_iter().enumerate() {
        let choices = streamed.iter().flat_map(|event| event["choices"].as_array().unwrap());
        let own = choices.filter(|choice| choice["index"] == index);
        let text: String = own.map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(whole["choices"][index]["text"], text);
        assert!(text.starts_with(prompt), "{text}");
    }
    assert_eq!(whole["usage"]["completion_tokens"], 32);
    // One by one, the same.
    let alone = server.post(
        "/v1/completions",
        &json!({"model": "tiny", "prompt": "two", "max_tokens": 8, "seed": 3, "echo": true, "ignore_eos": true}),
    );
    assert_eq!(alone.json()["choices"][0]["text"], whole["choices"][2]["text"]);
    let tokens = server.post("/tokenize", &json!({"model": "tiny", "content": "two"})).json();
    let ids = server.post(
        "/v1/completions",
        &json!({"model": "tiny", "prompt": tokens["tokens"], "max_tokens": 8, "seed": 3, "echo": true, "ignore_eos": true}),
    );
    assert_eq!(ids.json()["choices"][0]["text"], alone.json()["choices"][0]["text"]);
}

#[test]
fn log_probabilities_of_continued_texts() {
    let server = Running::start();
    let request = json!({"model": "tiny", "prompt": "x", "max_tokens": 4, "temperature": 0, "logprobs": 2});
    let choice = server.post("/v1/completions", &request).json()["choices"][0].take();
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 4);
    // The likeliest was taken.
    let tops = logprobs["top_logprobs"].as_array().unwrap().iter();
    for (top, own) in tops.zip(logprobs["token_logprobs"].as_array().unwrap()) {
        let best = top.as_object().unwrap().values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
        assert_eq!(own.as_f64().unwrap(), best);
    }
    let too_many = json!({"model": "tiny", "prompt": "x", "logprobs": 1_000_000});
    assert_eq!(server.post("/v1/completions", &too_many).json()["error"]["param"], "logprobs");
}

fn weather() -> Value {
    json!({"name": "weather", "description": "The weather", "strict": true, "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "北京"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city", "days"],
        "additionalProperties": false
    }})
}

fn check_arguments(arguments: &str) {
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    assert!(["Paris", "北京"].iter().any(|city| arguments["city"] == *city), "{arguments}");
    assert!((1..=7).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
}

#[test]
fn a_tool_that_has_to_be_called_is_called() {
    let server = Running::start();
    let tools = json!([{"type": "function", "function": weather()}]);
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "weather"}})] {
        let extra =
            json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false, "max_tokens": 200});
        let whole = server.post("/v1/chat/completions", &ask(extra.clone()));
        let whole = whole.json()["choices"][0].take();
        assert_eq!(whole["finish_reason"], "tool_calls", "{whole}");
        assert_eq!(whole["message"]["content"], Value::Null);
        let call = &whole["message"]["tool_calls"][0];
        assert_eq!(call["function"]["name"], "weather");
        check_arguments(call["function"]["arguments"].as_str().unwrap());
        let mut streamed = ask(extra);
        streamed["stream"] = true.into();
        let events = server.post("/v1/chat/completions", &streamed).events();
        let deltas: Vec<Value> = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(deltas[0]["id"], call["id"]);
        assert_eq!(deltas[0]["function"]["name"], "weather");
        let arguments: String =
            deltas.iter().filter_map(|delta| delta["function"]["arguments"].as_str()).collect();
        assert_eq!(call["function"]["arguments"], arguments);
        // And what it gave goes back.
        let messages = json!([
            {"role": "user", "content": "hm"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "rain"}
        ]);
        let answered =
            server.post("/v1/chat/completions", &ask(json!({"messages": messages, "tools": tools})));
        assert_eq!(answered.status, 200, "{}", answered.text);
    }
}

#[test]
fn an_answer_is_what_it_must_be() {
    let server = Running::start();
    let schema = json!({"type": "object", "properties": {"dose": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["dose"], "additionalProperties": false});
    for format in [
        json!({"type": "json_schema", "json_schema": {"name": "dose", "strict": true, "schema": schema}}),
        json!({"type": "regex", "regex": r#"\{"dose": [1-9]\}"#}),
        json!({"type": "gbnf", "grammar": "root ::= \"{\\\"dose\\\": \" [1-9] \"}\""}),
        json!({"type": "lark", "grammar": "start: \"{\\\"dose\\\": \" /[1-9]/ \"}\""}),
    ] {
        let reply =
            server.post("/v1/chat/completions", &ask(json!({"response_format": format, "max_tokens": 100})));
        let answer: Value =
            serde_json::from_str(reply.json()["choices"][0]["message"]["content"].as_str().unwrap())
                .unwrap_or_else(|error| panic!("{format}: {error}: {}", reply.text));
        assert!((1..=9).contains(&answer["dose"].as_i64().unwrap()), "{answer}");
    }
    let bad = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}});
    let reply = server.post("/v1/chat/completions", &ask(json!({"response_format": bad})));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("invalid_grammar")));
}

#[test]
fn responses_whole_and_streamed() {
    let server = Running::start();
    let mut tool = weather();
    tool["type"] = "function".into();
    let cases = [
        json!({"input": "hm", "max_output_tokens": 8, "instructions": "be brief", "temperature": 0.0}),
        json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hm"}]}], "tools": [tool],
            "tool_choice": {"type": "function", "name": "weather"}, "temperature": 0.0}),
        json!({"input": "hm", "text": {"format": {"type": "json_schema", "name": "x", "schema":
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false}}},
            "temperature": 0.0, "top_logprobs": 2}),
    ];
    for mut request in cases {
        request["model"] = "tiny".into();
        let whole = server.post("/v1/responses", &request);
        assert_eq!(whole.status, 200, "{}", whole.text);
        let whole = whole.json();
        request["stream"] = true.into();
        let streamed = server.post("/v1/responses", &request);
        let events = streamed.events();
        for (index, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], index);
        }
        let last = events.last().unwrap();
        let ends = ["response.completed", "response.incomplete"];
        assert!(ends.iter().any(|end| last["type"] == *end), "{last}");
        let without_ids = |value: &Value| {
            let mut items = value.as_array().unwrap().clone();
            items.iter_mut().for_each(|item| drop(item.as_object_mut().unwrap().remove("id")));
            items.iter_mut().for_each(|item| drop(item.as_object_mut().unwrap().remove("call_id")));
            items
        };
        assert_eq!(without_ids(&last["response"]["output"]), without_ids(&whole["output"]));
        assert_eq!(last["response"]["status"], whole["status"]);
        let deltas: String = events
            .iter()
            .filter(|event| event["type"].as_str().unwrap().ends_with(".delta"))
            .filter_map(|event| event["delta"].as_str())
            .collect();
        let item = &whole["output"][0];
        let text = item["arguments"].as_str().or(item["content"][0]["text"].as_str()).unwrap();
        assert_eq!(deltas, text);
        if item["type"] == "function_call" {
            check_arguments(text);
            let input = json!([{"role": "user", "content": "hm"}, item,
                {"type": "function_call_output", "call_id": item["call_id"], "output": "rain"}]);
            let next = server
                .post("/v1/responses", &json!({"model": "tiny", "input": input, "max_output_tokens": 4}));
            assert_eq!(next.status, 200, "{}", next.text);
        } else {
            // An answer can come back as it is.
            let input = json!([{"role": "user", "content": "hm"}, item, {"role": "user", "content": "so?"}]);
            let next = server
                .post("/v1/responses", &json!({"model": "tiny", "input": input, "max_output_tokens": 4}));
            assert_eq!(next.status, 200, "{}", next.text);
        }
    }
}

#[test]
fn what_is_not_understood_is_named() {
    let server = Running::start();
    let cases = [
        ("/v1/chat/completions", json!({"frequency": 1}), "frequency", "unknown_field"),
        (
            "/v1/chat/completions",
            json!({"stream_options": {"x": 1}, "stream": true}),
            "stream_options.x",
            "unknown_field",
        ),
        ("/v1/chat/completions", json!({"stream_options": {}}), "stream_options", "invalid_value"),
        ("/v1/chat/completions", json!({"temperature": "hot"}), "temperature", "invalid_value"),
        ("/v1/chat/completions", json!({"temperature": -1}), "temperature", "invalid_value"),
        ("/v1/chat/completions", json!({"n": 0}), "n", "invalid_value"),
        ("/v1/chat/completions", json!({"top_logprobs": 2}), "top_logprobs", "invalid_value"),
        (
            "/v1/chat/completions",
            json!({"max_tokens": 3, "max_completion_tokens": 4}),
            "max_tokens",
            "invalid_value",
        ),
        ("/v1/chat/completions", json!({"logit_bias": {"x": 1}}), "logit_bias", "invalid_value"),
        ("/v1/chat/completions", json!({"store": true}), "store", "unsupported"),
        ("/v1/chat/completions", json!({"tool_choice": "required"}), "tool_choice", "invalid_value"),
        ("/v1/chat/completions", json!({"reasoning_effort": "high"}), "reasoning_effort", "unsupported"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "robot", "content": "x"}]}),
            "messages[0].role",
            "invalid_value",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
            "invalid_value",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x", "foo": 1}]}),
            "messages[0].foo",
            "unknown_field",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            "messages[0].content",
            "invalid_value",
        ),
        ("/v1/chat/completions", json!({"model": "other"}), "model", "model_not_found"),
    ];
    for (path, extra, param, code) in cases {
        let reply = server.post(path, &ask(extra.clone()));
        let error = reply.json()["error"].take();
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &json!(code)),
            "{extra}: {}",
            reply.text
        );
        assert_eq!(reply.status, if code == "model_not_found" { 404 } else { 400 });
    }
}

#[test]
fn a_lenient_server_names_what_it_ignored() {
    let options = ServerOptions { lenient: true, models: vec![common::tiny()], ..ServerOptions::default() };
    let server = Running::with(options);
    let reply = server
        .post("/v1/chat/completions", &ask(json!({"foo": 1, "stream_options": {"bar": 2}, "stream": true})));
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("moli-ignored"), Some("foo, stream_options.bar"));
    let reply = server.post("/v1/chat/completions", &ask(json!({})));
    assert_eq!(reply.header("moli-ignored"), None);
}

#[test]
fn tokens_there_and_back() {
    let server = Running::start();
    let text = "Zürich 北京 🙂";
    let cut =
        server.post("/tokenize", &json!({"model": "tiny", "content": text, "with_pieces": true})).json();
    assert_eq!(cut["tokens"].as_array().unwrap().len(), cut["pieces"].as_array().unwrap().len());
    let joined = server.post("/detokenize", &json!({"model": "tiny", "tokens": cut["tokens"]})).json();
    assert_eq!(joined["content"], text);
    let bad = server.post("/detokenize", &json!({"model": "tiny", "tokens": [4_000_000_000_u32]}));
    assert_eq!(bad.status, 400, "{}", bad.text);
    let messages = json!([{"role": "user", "content": "hm"}]);
    let prompt = server.post("/apply-template", &json!({"model": "tiny", "messages": messages})).json();
    assert_eq!(prompt["prompt"], "<|im_start|>user\nhm<|im_end|>\n<|im_start|>assistant\n");
    let usage = server.post("/v1/chat/completions", &ask(json!({}))).json()["usage"].take();
    assert_eq!(usage["prompt_tokens"], prompt["tokens"]);
}

#[test]
fn vectors_and_their_bytes() {
    let server =
        Running::with(ServerOptions { models: vec![common::embedder()], ..ServerOptions::default() });
    let ask = |extra: Value| {
        let mut request = json!({"model": "embedder", "input": ["one", "two", "one"]});
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post("/v1/embeddings", &request)
    };
    let reply = ask(json!({}));
    assert_eq!(reply.status, 200, "{}", reply.text);
    let numbers = |value: &Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
    };
    let reply = reply.json();
    let vectors: Vec<Vec<f32>> = (0..3).map(|index| numbers(&reply["data"][index]["embedding"])).collect();
    assert_eq!(vectors[0], vectors[2]);
    assert_ne!(vectors[0], vectors[1]);
    for vector in &vectors {
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
    }
    assert_eq!(reply["usage"]["prompt_tokens"], reply["usage"]["total_tokens"]);
    let bytes = ask(json!({"encoding_format": "base64"})).json();
    let bytes = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        bytes["data"][1]["embedding"].as_str().unwrap(),
    );
    let read: Vec<f32> =
        bytes.unwrap().chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect();
    assert_eq!(read, vectors[1]);
    assert_eq!(numbers(&ask(json!({"dimensions": 7})).json()["data"][0]["embedding"]).len(), 7);
    let long = "a".repeat(600);
    assert_eq!(ask(json!({"input": long})).json()["error"]["code"], "context_length_exceeded");
    let cut = ask(json!({"input": long, "truncate": true})).json();
    assert_eq!((&cut["truncated"], &cut["usage"]["prompt_tokens"]), (&json!(true), &json!(512)));
    for input in [json!([]), json!(""), json!(["x", 1])] {
        assert_eq!(ask(json!({"input": input})).status, 400, "{input}");
    }
    let no_pooling = Running::start().post("/v1/embeddings", &json!({"model": "tiny", "input": "x"}));
    assert_eq!((no_pooling.status, &no_pooling.json()["error"]["code"]), (400, &json!("no_pooling")));
    let rank = server.post("/v1/rerank", &json!({"model": "embedder", "query": "x", "documents": ["a"]}));
    assert_eq!((rank.status, &rank.json()["error"]["code"]), (400, &json!("not_a_reranker")));
}

#[test]
fn every_described_path_is_there() {
    let server = Running::start();
    let document = server.get("/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 12);
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{model}", "tiny");
            let status = match method.as_str() {
                "get" => server.get(&path).status,
                "post" => server.post(&path, &json!({})).status,
                other => panic!("{other} {path}"),
            };
            assert!(status == 200 || status == 400, "{method} {path}: {status}");
        }
    }
}

#[test]
fn metrics_tell_of_the_work() {
    let server = Running::start();
    server.post("/v1/chat/completions", &ask(json!({"ignore_eos": true})));
    server.post("/v1/chat/completions", &ask(json!({"foo": 1})));
    let metrics = server.get("/metrics").text;
    for line in [
        "moli_requests_running{model=\"tiny\"} 0",
        "moli_completion_tokens_total{model=\"tiny\"} 8",
        "moli_rejected_total{reason=\"unknown_field\"} 1",
        "moli_ttft_seconds_count{model=\"tiny\"} 1",
        "moli_inter_token_seconds_bucket{le=\"+Inf\",model=\"tiny\"} 7",
        "moli_answers_total{model=\"tiny\",how=\"done\"} 1",
    ] {
        assert!(metrics.lines().any(|own| own == line), "{line}\n{metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"));
}

#[test]
fn what_never_fits_into_the_queue_is_no_overload() {
    let models = vec![tiny_with("tiny", narrow(8))];
    let server = Running::with(ServerOptions { models, ..ServerOptions::default() });
    assert_eq!(server.post("/v1/chat/completions", &ask(json!({"n": 8}))).status, 200);
    let texts = server.post("/v1/completions", &json!({"model": "tiny", "prompt": ["a", "b"], "n": 5}));
    for (reply, answers) in [(server.post("/v1/chat/completions", &ask(json!({"n": 9}))), 9), (texts, 10)] {
        let error = &reply.json()["error"];
        assert_eq!((reply.status, reply.header("retry-after"), &error["param"]), (400, None, &json!("n")));
        assert_eq!(error["message"], format!("n makes {answers} answers altogether, and may make 8"));
    }
}

#[test]
fn a_description_says_what_is_taken() {
    let described = |lenient| {
        let options = ServerOptions { models: vec![tiny()], lenient, ..ServerOptions::default() };
        Running::with(options).get("/openapi.json").json()
    };
    let strict = described(false);
    let schemas = &strict["components"]["schemas"];
    for (asked, closed) in
        [("ChatRequest", true), ("ChatMessage", true), ("OfferedFunction", true), ("Usage", false)]
    {
        assert_eq!(schemas[asked]["additionalProperties"] == false, closed, "{asked}");
    }
    assert!(described(true)["components"]["schemas"]["ChatRequest"]["additionalProperties"].is_null());
    // Each reference leads somewhere.
    let text = strict.to_string();
    let references = text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap());
    assert!(references.clone().count() > 20);
    for reference in references {
        assert!(strict.pointer(reference).is_some(), "{reference}");
    }
    let answers = &strict["paths"]["/v1/chat/completions"]["post"]["responses"];
    assert!(
        answers["200"]["content"]["text/event-stream"].is_object() && answers["5XX"].is_object(),
        "{answers}"
    );
}

#[test]
fn an_error_names_the_field_that_it_is_about() {
    let server = Running::start();
    let tool = |parameters: Value| json!([{"type": "function", "function": {"name": "x", "parameters": parameters, "strict": true}}]);
    let object = json!({"type": "object"});
    let enforced = json!({"type": "json_schema", "json_schema": {"schema": object}});
    let nonsense = json!({"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}});
    let unknown = json!({"type": "object", "properties": {"a": {"type": "string", "format": "nonsense"}}});
    let named = json!({"type": "function", "function": {"name": "y"}});
    for (extra, param) in [
        (json!({"response_format": nonsense}), "response_format"),
        (json!({"tools": tool(object.clone()), "response_format": enforced}), "response_format"),
        (json!({"tools": tool(json!({"type": "nonsense"}))}), "tools"),
        (json!({"tools": tool(unknown)}), "tools"),
        (json!({"tools": tool(object), "tool_choice": named}), "tool_choice"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"response_format": {"type": "json_object", "further": 1}}), "response_format"),
        (json!({"stream": true, "stream_options": [null, null]}), "stream_options"),
        (json!({"stream": true, "stream_options": {"further": 1}}), "stream_options.further"),
        (
            json!({"messages": [{"role": "assistant", "content": "", "audio": {"id": "x"}}]}),
            "messages[0].audio",
        ),
    ] {
        let reply = server.post("/v1/chat/completions", &ask(extra.clone()));
        assert_eq!(
            (reply.status, &reply.json()["error"]["param"]),
            (400, &json!(param)),
            "{extra} {}",
            reply.text
        );
    }
    let list = server.post("/detokenize", &json!(["tiny", [65], true]));
    assert_eq!((list.status, &list.json()["error"]["code"]), (400, &json!("invalid_json")), "{}", list.text);
    let asked = json!({"model": "tiny", "input": "hm", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nonsense"}}}});
    let reply = server.post("/v1/responses", &asked);
    assert_eq!(
        (reply.status, &reply.json()["error"]["param"]),
        (400, &json!("text.format")),
        "{}",
        reply.text
    );
}

#[test]
fn a_list_of_texts_waits_for_its_own() {
    let spec = common::embedder_with(narrow(2));
    let server = Running::with(ServerOptions { models: vec![spec], ..ServerOptions::default() });
    let texts: Vec<String> = (0..40).map(|index| format!("text {index}")).collect();
    let reply = server.post("/v1/embeddings", &json!({"model": "embedder", "input": texts}));
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json()["data"].as_array().unwrap().len(), 40);
}
