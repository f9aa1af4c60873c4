//! How an answer is made, in Ollama's words.

use std::time::Duration;

use moli_engine::{GenerateParams, Grammar, SamplerParams};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::models::Lease;
use crate::openai::params::{Common, Stop};
use crate::openai::{Effort, logprobs};
use crate::thinking;

/// What the engine's parameters are called here.
pub(crate) const NAMES: &[(&str, &str)] = &[
    ("temperature", "options.temperature"),
    ("top_k", "options.top_k"),
    ("top_p", "options.top_p"),
    ("min_p", "options.min_p"),
    ("typical_p", "options.typical_p"),
    ("repeat_penalty", "options.repeat_penalty"),
    ("repeat_last_n", "options.repeat_last_n"),
    ("frequency_penalty", "options.frequency_penalty"),
    ("presence_penalty", "options.presence_penalty"),
    ("stop", "options.stop"),
    ("context_shift", "options.num_keep"),
    ("logprobs", "top_logprobs"),
    ("grammar", "format"),
    ("reasoning_effort", "think"),
];

/// The tokens at the beginning that stay where the context is shifted and nobody says how many, as Ollama has it.
const DEFAULT_KEEP: usize = 4;

/// How tokens are chosen and how many there may be. What concerns a model's loading is not a request's matter here.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = ollama::Options)]
pub(crate) struct Options {
    /// 0: always the likeliest token.
    #[schema(minimum = 0, maximum = 1000)]
    temperature: Option<f32>,
    /// Only so many of the likeliest tokens; 0: all.
    top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability; 1: all.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Only tokens with at least this part of the likeliest one's probability.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    /// Locally typical sampling; 1: off.
    #[schema(minimum = 0, maximum = 1)]
    typical_p: Option<f32>,
    /// How many last tokens the penalties look at; -1: all.
    #[schema(minimum = -1)]
    repeat_last_n: Option<i64>,
    /// Divides the logits of recent tokens; 1: off.
    #[schema(minimum = 0.01, maximum = 100)]
    repeat_penalty: Option<f32>,
    #[schema(minimum = -100, maximum = 100)]
    presence_penalty: Option<f32>,
    #[schema(minimum = -100, maximum = 100)]
    frequency_penalty: Option<f32>,
    /// The same seed gives the same answer.
    seed: Option<i64>,
    /// Texts that end the answer.
    stop: Option<Stop>,
    /// Most tokens of the answer; -1 and -2: as many as the context holds.
    #[schema(minimum = -2)]
    num_predict: Option<i64>,
    /// Tokens that prompt and answer need together: at most the context that the model is served with, which stays as it is.
    num_ctx: Option<usize>,
    /// The tokens at the beginning that stay where `shift` is true and the context full; 4.
    num_keep: Option<usize>,
}

/// What an answer must be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be \"json\" or a JSON schema")]
#[schema(as = ollama::Format)]
pub(crate) enum Format {
    Word(FormatWord),
    /// JSON that this schema allows.
    Schema(Map<String, Value>),
}

#[derive(Debug, Deserialize)]
pub(crate) enum FormatWord {
    /// A JSON object.
    #[serde(rename = "json")]
    Json,
    /// Anything.
    #[serde(rename = "")]
    Any,
}

// The derived one would have the variant's name for the empty word.
impl utoipa::PartialSchema for FormatWord {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        let words = utoipa::openapi::ObjectBuilder::new().enum_values(Some(["json", ""]));
        words.schema_type(utoipa::openapi::schema::Type::String).into()
    }
}

impl ToSchema for FormatWord {
    fn name() -> std::borrow::Cow<'static, str> {
        "ollama.FormatWord".into()
    }
}

/// Whether, or how much, to think first.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be true, false, \"low\", \"medium\" or \"high\"")]
#[schema(as = ollama::Think)]
pub(crate) enum Think {
    Switch(bool),
    Level(Level),
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ollama::ThinkLevel)]
pub(crate) enum Level {
    Low,
    Medium,
    High,
}

/// How long a model stays loaded while nobody uses it: seconds, or a duration such as `5m`; below 0: for ever.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a number of seconds or a duration such as \"5m\"")]
#[schema(as = ollama::KeepAlive)]
pub(crate) enum KeepAlive {
    Seconds(f64),
    Text(String),
}

impl KeepAlive {
    /// [`Duration::MAX`]: for ever.
    pub(crate) fn duration(&self) -> Result<Duration, ApiError> {
        let text = match self {
            Self::Seconds(seconds) => return Ok(seconds_of(*seconds)),
            Self::Text(text) => text,
        };
        if let Some(seconds) = text.parse().ok().filter(|seconds: &f64| !seconds.is_nan()) {
            return Ok(seconds_of(seconds));
        }
        let (forever, span) = text.strip_prefix('-').map_or((false, text.as_str()), |span| (true, span));
        match humantime::parse_duration(span) {
            Ok(_) if forever => Ok(Duration::MAX),
            Ok(duration) => Ok(duration),
            Err(error) => {
                let shown: String = text.chars().take(40).collect();
                let message = format!("keep_alive is {shown:?}, and must be seconds or like \"5m\": {error}");
                Err(ApiError::invalid("keep_alive", message))
            }
        }
    }
}

fn seconds_of(seconds: f64) -> Duration {
    if seconds < 0.0 { Duration::MAX } else { Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX) }
}

/// What chats and texts have in common.
#[derive(Debug)]
pub(crate) struct Manner {
    pub(crate) options: Options,
    pub(crate) format: Option<Format>,
    pub(crate) shift: bool,
    pub(crate) logprobs: Option<bool>,
    pub(crate) top_logprobs: Option<usize>,
}

impl Options {
    /// Whether the context that is asked for is there.
    pub(crate) fn check_context(&self, lease: &Lease) -> Result<(), ApiError> {
        let context = lease.engine.context();
        match self.num_ctx.filter(|&num_ctx| num_ctx > context) {
            None => Ok(()),
            Some(num_ctx) => {
                let message =
                    format!("options.num_ctx is {num_ctx}, and the model is served with {context} tokens");
                Err(ApiError::unsupported("options.num_ctx", message))
            }
        }
    }
}

impl Manner {
    /// As the engine has it, for this model.
    pub(crate) fn generate(self, lease: &Lease) -> Result<GenerateParams, ApiError> {
        self.options.check_context(lease)?;
        self.params(&lease.spec().sampling)
    }

    /// Checks what it would be for a model with this vocabulary and context.
    pub(crate) fn check(
        self,
        sampling: &SamplerParams,
        vocab: usize,
        context: usize,
    ) -> Result<(), ApiError> {
        let checked = self.params(sampling).and_then(|params| Ok(params.validate(vocab, context)?));
        checked.map_err(|error| error.renamed(NAMES))
    }

    /// As the engine has it, where `sampling` holds what is not asked for.
    fn params(self, sampling: &SamplerParams) -> Result<GenerateParams, ApiError> {
        let Self { options, format, shift, logprobs: wanted, top_logprobs } = self;
        if options.num_keep.is_some() && !shift {
            let message = "options.num_keep is for answers with shift: true";
            return Err(ApiError::unsupported("options.num_keep", message));
        }
        let common = Common {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            typical_p: options.typical_p,
            repeat_penalty: options.repeat_penalty,
            repeat_last_n: options.repeat_last_n,
            frequency_penalty: options.frequency_penalty,
            presence_penalty: options.presence_penalty,
            seed: options.seed,
            stop: options.stop,
            ..Common::default()
        };
        let max_tokens = match options.num_predict {
            None | Some(-2 | -1) => None,
            Some(n) => Some(usize::try_from(n).map_err(|_| {
                let message = format!("options.num_predict is {n}, and must be at least -2");
                ApiError::invalid("options.num_predict", message)
            })?),
        };
        Ok(GenerateParams {
            max_tokens,
            grammar: match format {
                None | Some(Format::Word(FormatWord::Any)) => None,
                Some(Format::Word(FormatWord::Json)) => Some(Grammar::Json),
                Some(Format::Schema(schema)) => Some(Grammar::JsonSchema(Value::Object(schema).to_string())),
            },
            logprobs: logprobs(wanted, top_logprobs)?,
            context_shift: shift.then(|| options.num_keep.unwrap_or(DEFAULT_KEEP)),
            ..common.generate(sampling)?
        })
    }
}

impl Think {
    /// Tells the model's chat template.
    pub(crate) fn tell(self, lease: &Lease, variables: &mut Map<String, Value>) -> Result<(), ApiError> {
        match self {
            Self::Switch(on) => thinking::think(on, lease, variables, "think"),
            Self::Level(Level::Low) => Effort::Low.tell(lease, variables),
            Self::Level(Level::Medium) => Effort::Medium.tell(lease, variables),
            Self::Level(Level::High) => Effort::High.tell(lease, variables),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_model_stays() {
        let read = |value: Value| serde_json::from_value::<KeepAlive>(value).unwrap().duration();
        let minutes = |n: u64| Ok(Duration::from_secs(60 * n));
        for (value, duration) in [
            (Value::from(300), minutes(5)),
            (Value::from(0.5), Ok(Duration::from_millis(500))),
            (Value::from(0), minutes(0)),
            (Value::from(-1), Ok(Duration::MAX)),
            (Value::from(1e300), Ok(Duration::MAX)),
            (Value::from("5m"), minutes(5)),
            (Value::from("1h30m"), minutes(90)),
            (Value::from("300"), minutes(5)),
            (Value::from("0"), minutes(0)),
            (Value::from("0s"), minutes(0)),
            (Value::from("-1m"), Ok(Duration::MAX)),
        ] {
            assert_eq!(read(value.clone()), duration, "{value}");
        }
        for wrong in ["", "soon", "NaN", "5 parsecs", "-", "99999999999999999999h"] {
            assert_eq!(read(wrong.into()).unwrap_err().param.as_deref(), Some("keep_alive"), "{wrong}");
        }
    }
}
