//! OpenAI's API, on a tiny model.

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
