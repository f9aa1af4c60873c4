//! `/api/tags`, `/api/show`, `/api/ps`: which models there are, what they are and which of them are loaded.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use moli_engine::SamplerParams;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::timestamp;
use crate::app::App;
use crate::body::Strict;
use crate::error::ApiError;
use crate::facts::Facts;
use crate::models::Slot;

/// When a model is unloaded that is not unloaded of itself: so far away that clients call it for ever.
const FOR_EVER: Duration = Duration::from_secs(11_000_000_000);

/// What a model is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::ModelDetails)]
struct Details {
    /// There is none.
    parent_model: &'static str,
    /// `gguf` or `safetensors`.
    format: &'static str,
    /// The architecture.
    family: String,
    families: Vec<String>,
    /// `134.52M`.
    parameter_size: String,
    /// `Q4_K_M`.
    quantization_level: String,
    /// What it was trained for, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding_length: Option<u64>,
}

impl Details {
    fn of(facts: &Facts) -> Self {
        Self {
            parent_model: "",
            format: facts.format,
            family: facts.architecture.clone(),
            families: vec![facts.architecture.clone()],
            parameter_size: count(facts.parameters),
            quantization_level: facts.quantization.clone(),
            context_length: facts.context,
            embedding_length: facts.hidden,
        }
    }
}

/// A number for people.
fn count(n: u64) -> String {
    match n {
        1_000_000_000.. => format!("{:.1}B", n as f64 / 1e9),
        1_000_000.. => format!("{:.2}M", n as f64 / 1e6),
        1_000.. => format!("{:.0}K", n as f64 / 1e3),
        _ => n.to_string(),
    }
}

/// The models that are served.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::ModelList)]
pub(crate) struct Tags {
    models: Vec<Tag>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::Model)]
struct Tag {
    name: String,
    model: String,
    /// When its file was written.
    modified_at: String,
    /// Bytes of its file.
    size: u64,
    /// It changes with the file: a sha256 of its size, its time and its header, not of its weights.
    digest: String,
    details: Details,
    /// `completion`, `tools`, `thinking`, `embedding`.
    capabilities: Vec<&'static str>,
}

#[utoipa::path(
    get,
    path = "/api/tags",
    tag = "ollama",
    responses((status = 200, description = "What is served", body = Tags))
)]
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Json<Tags> {
    let mut models = Vec::new();
    for slot in app.models.slots() {
        let (name, facts) = (slot.spec.name.clone(), known(slot).await);
        models.push(Tag {
            name: name.clone(),
            model: name,
            modified_at: timestamp(facts.modified.unwrap_or(UNIX_EPOCH)),
            size: facts.size,
            digest: facts.digest.clone(),
            details: Details::of(&facts),
            capabilities: facts.capabilities.clone(),
        });
    }
    Json(Tags { models })
}

/// What is known of a model. A file that can't be read spoils no list.
async fn known(slot: &Slot) -> Arc<Facts> {
    slot.facts().await.unwrap_or_else(|error| {
        tracing::warn!(model = slot.spec.name, "{}", error.message);
        Arc::default()
    })
}

/// Which model is of interest.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ollama::ShowRequest)]
pub(crate) struct ShowRequest {
    model: Option<String>,
    /// The same, under its old name.
    name: Option<String>,
    /// Lists the tensors too; false.
    verbose: Option<bool>,
    /// Not supported: it may only be empty.
    system: Option<String>,
    /// Not supported: it may only be empty.
    template: Option<String>,
    /// Not supported: it may only be empty.
    #[schema(value_type = Option<Object>)]
    options: Option<Map<String, Value>>,
}

impl ShowRequest {
    fn model(&self) -> Result<&str, ApiError> {
        let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        for (set, name) in [
            (text(&self.system), "system"),
            (text(&self.template), "template"),
            (self.options.as_ref().is_some_and(|options| !options.is_empty()), "options"),
        ] {
            if set {
                let message = format!("{name} is not supported: what is shown is the model as it is served");
                return Err(ApiError::unsupported(name, message));
            }
        }
        let mut names = [&self.model, &self.name].into_iter().flatten().filter(|name| !name.is_empty());
        names.next().map(String::as_str).ok_or_else(|| ApiError::invalid("model", "model is missing"))
    }
}

/// What a model is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::ModelInfo)]
pub(crate) struct Shown {
    /// The license's name, where the file tells.
    #[serde(skip_serializing_if = "String::is_empty")]
    license: String,
    /// How its answers are sampled where a request does not say: a name and a value a line.
    parameters: String,
    /// Jinja.
    template: String,
    details: Details,
    /// The file's metadata; lists are null.
    #[schema(value_type = Object)]
    model_info: Map<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<ShownTensor>,
    capabilities: Vec<&'static str>,
    /// When its file was written.
    modified_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::Tensor)]
struct ShownTensor {
    name: String,
    r#type: &'static str,
    /// The contiguous dimension first.
    shape: Vec<u64>,
}

#[utoipa::path(
    post,
    path = "/api/show",
    tag = "ollama",
    request_body = ShowRequest,
    responses((status = 200, description = "What it is", body = Shown), (status = "4XX", response = super::OllamaRefused))
)]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Strict(request): Strict<ShowRequest>,
) -> Result<Json<Shown>, ApiError> {
    let slot = app.models.find(request.model()?)?;
    let facts = slot.facts().await?;
    let tensors = facts.tensors.iter().filter(|_| request.verbose == Some(true));
    let tensors =
        tensors.map(|(name, r#type, shape)| ShownTensor { name: name.clone(), r#type, shape: shape.clone() });
    Ok(Json(Shown {
        license: facts.license.clone(),
        parameters: parameters(&slot.spec.sampling),
        template: facts.template.clone(),
        details: Details::of(&facts),
        model_info: facts.metadata.clone(),
        tensors: tensors.collect(),
        capabilities: facts.capabilities.clone(),
        modified_at: timestamp(facts.modified.unwrap_or(UNIX_EPOCH)),
    }))
}

fn parameters(sampling: &SamplerParams) -> String {
    let lines = [
        ("temperature", sampling.temperature.to_string()),
        ("top_k", sampling.top_k.to_string()),
        ("top_p", sampling.top_p.to_string()),
        ("min_p", sampling.min_p.to_string()),
        ("repeat_penalty", sampling.repeat_penalty.to_string()),
    ];
    lines.map(|(name, value)| format!("{name:30} {value}")).join("\n")
}

/// The models that are loaded.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::Loaded)]
pub(crate) struct Loaded {
    models: Vec<LoadedModel>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::LoadedModel)]
struct LoadedModel {
    name: String,
    model: String,
    /// Bytes that it was planned to take of memory.
    size: u64,
    digest: String,
    details: Details,
    /// When it is unloaded if nobody uses it before.
    expires_at: String,
    /// Bytes in the memory of an accelerator.
    size_vram: u64,
    /// Tokens that a conversation can hold.
    context_length: usize,
}

#[utoipa::path(
    get,
    path = "/api/ps",
    tag = "ollama",
    responses((status = 200, description = "What is loaded", body = Loaded))
)]
pub(crate) async fn ps(State(app): State<Arc<App>>) -> Json<Loaded> {
    let mut models = Vec::new();
    for slot in app.models.slots() {
        let Some(engine) = slot.engine() else { continue };
        let (name, facts) = (slot.spec.name.clone(), known(slot).await);
        let expires = slot.expires(app.options.unload_after).and_then(|expires| {
            SystemTime::now().checked_add(expires.saturating_duration_since(Instant::now()))
        });
        models.push(LoadedModel {
            name: name.clone(),
            model: name,
            size: engine.plan().map_or(0, moli_engine::MemoryPlan::own_bytes),
            digest: facts.digest.clone(),
            details: Details::of(&facts),
            expires_at: timestamp(expires.unwrap_or(UNIX_EPOCH + FOR_EVER)),
            size_vram: 0,
            context_length: engine.context(),
        });
    }
    Json(Loaded { models })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        for (n, text) in [(12, "12"), (1_500, "2K"), (134_515_008, "134.52M"), (7_615_616_512, "7.6B")] {
            assert_eq!(count(n), text);
        }
    }
}
