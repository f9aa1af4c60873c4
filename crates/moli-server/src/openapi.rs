//! `/openapi.json`: what can be asked and what is answered.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::{OpenApi, ToResponse, ToSchema};

use crate::app::App;
use crate::{anthropic, app, metrics, native, ollama, openai};

/// A request that is not answered: each API has its own form, and this is OpenAI's, which Moli's own paths speak too.
#[derive(ToSchema, ToResponse, Serialize)]
#[response(description = "The request is not answered, and why")]
pub(crate) struct Refused {
    #[schema(inline)]
    error: Reason,
}

#[derive(ToSchema, Serialize)]
struct Reason {
    message: String,
    r#type: String,
    /// The field that it is about.
    param: Option<String>,
    code: String,
}

/// A server-sent event of a stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Frames` writes")]
pub(crate) struct Event {
    /// Its kind, where the API names it.
    event: Option<String>,
    /// JSON, or `[DONE]`.
    data: String,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Moli", description = "Quantised language models on the device in front of you."),
    paths(
        app::health,
        app::ready,
        metrics::export,
        native::tokenize,
        native::detokenize,
        native::apply_template,
        openai::models,
        openai::model,
        openai::chat::complete,
        openai::completions::complete,
        openai::responses::respond,
        openai::embeddings::embed,
        openai::embeddings::rerank,
        ollama::ask::chat,
        ollama::ask::generate,
        ollama::embed::embed,
        ollama::models::tags,
        ollama::models::show,
        ollama::models::ps,
        ollama::version,
        anthropic::messages::create,
        anthropic::messages::count,
    ),
    components(responses(Refused, ollama::OllamaRefused, anthropic::AnthropicRefused), schemas(Reason))
)]
struct Document;

/// The description of the API.
pub(crate) async fn document(State(app): State<Arc<App>>) -> Json<Value> {
    let mut document = json!(Document::openapi());
    let mut bodies = Vec::new();
    for operation in operations(&mut document) {
        references(&operation["requestBody"], &mut bodies);
        if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
            // Whoever may be wrong may also come at a bad time, and is told so in the same form.
            if let Some(refused) = responses.get("4XX").cloned() {
                responses.insert("5XX".to_owned(), refused);
            }
        }
    }
    if !app.options.lenient {
        close(&mut document, bodies);
    }
    Json(document)
}

/// What can be done at each path.
fn operations(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    let methods = paths.into_iter().flatten().filter_map(|(_, path)| path.as_object_mut());
    methods.flatten().map(|(_, operation)| operation)
}

/// Says of all objects in these schemas, and in those that they refer to, that no further fields are in them.
fn close(document: &mut Value, mut schemas: Vec<String>) {
    let mut closed = BTreeSet::new();
    while let Some(pointer) = schemas.pop() {
        let Some(schema) = document.pointer_mut(&pointer) else { continue };
        if closed.insert(pointer) {
            close_objects(schema);
            references(schema, &mut schemas);
        }
    }
}

fn close_objects(schema: &mut Value) {
    let is_object = schema["type"] == "object" && schema["properties"].is_object();
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(close_objects);
            if is_object {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close_objects),
        _ => {}
    }
}

/// Where the schemas are that one refers to, as JSON pointers.
fn references(schema: &Value, out: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            let own = fields.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
            out.extend(own.map(str::to_owned));
            fields.values().for_each(|field| references(field, out));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, out)),
        _ => {}
    }
}
