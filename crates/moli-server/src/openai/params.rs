//! What `/v1/chat/completions` and `/v1/completions` have in common: how an answer is made.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use moli_engine::{AdapterScale, GenerateParams, MAX_STOP_STRINGS, SamplerParams};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::bounded;
use crate::error::ApiError;
use crate::models::Lease;

/// Most tokens with a bias.
const MAX_LOGIT_BIAS: usize = 1024;

/// What the engine's parameters are called here.
pub(crate) const NAMES: &[(&str, &str)] =
    &[("choices", "n"), ("logprobs", "top_logprobs"), ("deadline", "deadline_ms"), ("adapters", "lora")];

/// Defines a request: its own fields, and those of all that have an answer made. (Not by `flatten`: a field that nobody
/// knows would go unnoticed.)
macro_rules! request {
    ($(#[$about:meta])* struct $name:ident { $($(#[$doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug, Deserialize, ToSchema)]
        pub(crate) struct $name {
            $($(#[$doc])* $field: $kind,)*
            /// 0: always the likeliest token.
            #[schema(minimum = 0, maximum = 1000)]
            temperature: Option<f32>,
            /// Only the likeliest tokens that together have this probability; 1: all.
            #[schema(minimum = 0, maximum = 1)]
            top_p: Option<f32>,
            /// Only so many of the likeliest tokens; 0: all.
            top_k: Option<usize>,
            /// Only tokens with at least this part of the likeliest one's probability.
            #[schema(minimum = 0, maximum = 1)]
            min_p: Option<f32>,
            /// Locally typical sampling; 1: off.
            #[schema(minimum = 0, maximum = 1)]
            typical_p: Option<f32>,
            /// Divides the logits of recent tokens; 1: off.
            #[schema(minimum = 0.01, maximum = 100)]
            repeat_penalty: Option<f32>,
            /// How many last tokens the penalties look at; -1: all.
            #[schema(minimum = -1)]
            repeat_last_n: Option<i64>,
            #[schema(minimum = -100, maximum = 100)]
            frequency_penalty: Option<f32>,
            #[schema(minimum = -100, maximum = 100)]
            presence_penalty: Option<f32>,
            /// What is added to the logits of tokens, by their ids.
            #[schema(value_type = Option<std::collections::BTreeMap<String, f32>>)]
            logit_bias: Option<$crate::openai::params::LogitBias>,
            /// The same seed gives the same answer, whatever else is computed meanwhile.
            seed: Option<i64>,
            /// Answers to the same prompt.
            #[schema(minimum = 1, maximum = 128)]
            n: Option<usize>,
            /// Texts that end the answer.
            stop: Option<$crate::openai::params::Stop>,
            /// Tokens that end an answer are never chosen.
            ignore_eos: Option<bool>,
            /// Who is served first where not everybody can be: the higher.
            priority: Option<i32>,
            /// The answer ends after so many milliseconds, finished or not.
            #[schema(minimum = 1, format = "uint64")]
            deadline_ms: Option<u64>,
            /// LoRA adapters that the answer is computed with, and no others.
            lora: Option<Vec<$crate::openai::params::Lora>>,
            /// The answer comes as it is made, as server-sent events.
            stream: Option<bool>,
            #[serde(default, deserialize_with = "crate::body::object")]
            stream_options: Option<$crate::openai::params::StreamOptions>,
            /// Whoever asks; it changes nothing.
            #[serde(rename = "user")]
            _user: Option<String>,
            /// Notes of whoever asks; they change nothing.
            #[serde(rename = "metadata")]
            _metadata: Option<serde_json::Map<String, serde_json::Value>>,
        }

        impl $name {
            /// The part that such requests have in common.
            fn common(&mut self) -> $crate::openai::params::Common {
                $crate::openai::params::Common {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    typical_p: self.typical_p,
                    repeat_penalty: self.repeat_penalty,
                    repeat_last_n: self.repeat_last_n,
                    frequency_penalty: self.frequency_penalty,
                    presence_penalty: self.presence_penalty,
                    logit_bias: self.logit_bias.take().map(|bias| bias.0).unwrap_or_default(),
                    seed: self.seed,
                    n: self.n,
                    stop: self.stop.take(),
                    ignore_eos: self.ignore_eos,
                    priority: self.priority,
                    deadline_ms: self.deadline_ms,
                }
            }
        }
    };
}
pub(crate) use request;

/// What is added to the logits of tokens, by their ids.
#[derive(Debug)]
pub(crate) struct LogitBias(pub(crate) BTreeMap<String, f32>);

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bias;

        impl<'de> Visitor<'de> for Bias {
            type Value = LogitBias;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<LogitBias, A::Error> {
                bounded::map(fields, MAX_LOGIT_BIAS).map(LogitBias)
            }
        }

        deserializer.deserialize_map(Bias)
    }
}

/// Texts that end an answer.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
pub(crate) enum Stop {
    One(String),
    Several(Vec<String>),
}

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = Stop;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Stop, E> {
                Ok(Stop::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, texts: A) -> Result<Stop, A::Error> {
                bounded::list(texts, MAX_STOP_STRINGS).map(Stop::Several)
            }
        }

        deserializer.deserialize_any(Texts)
    }
}

impl Stop {
    pub(crate) fn into_texts(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Several(texts) => texts,
        }
    }
}

/// A LoRA adapter, by its name or its number.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Lora {
    name: Option<String>,
    /// Its place among those of the model, from 0.
    id: Option<usize>,
    /// What it is multiplied by; 1.
    #[schema(minimum = 0)]
    scale: Option<f32>,
}

/// The adapters that are asked for, as the engine has them.
pub(crate) fn adapters(
    lora: Option<Vec<Lora>>,
    lease: &Lease,
) -> Result<Option<Vec<AdapterScale>>, ApiError> {
    let of = |Lora { name, id, scale }: Lora| {
        let name = match (name, id) {
            (Some(name), None) => name,
            (None, Some(id)) => lease.engine.adapters().get(id).cloned().ok_or_else(|| {
                let message =
                    format!("lora has the id {id}, and there are {}", lease.engine.adapters().len());
                ApiError::invalid("lora", message)
            })?,
            _ => return Err(ApiError::invalid("lora", "lora has a name or an id for each adapter")),
        };
        Ok(AdapterScale { name, scale: scale.unwrap_or(1.0) })
    };
    lora.map(|list| list.into_iter().map(of).collect()).transpose()
}

/// How soon an answer is wanted: there is one way only.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tier {
    Auto,
    Default,
}

/// How long beginnings of prompts are cached: in memory, as long as there is room.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) enum Retention {
    #[serde(rename = "in_memory", alias = "in-memory")]
    InMemory,
}

/// How long an answer is to be: the model decides.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verbosity {
    Medium,
}

/// What else comes in a stream.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// A last chunk without choices, with the tokens counted.
    pub(crate) include_usage: Option<bool>,
    /// Padding against whoever measures the lengths of encrypted chunks; there is none, so it may only be off.
    include_obfuscation: Option<bool>,
}

impl StreamOptions {
    /// `streams`: whether the answer comes as it is made.
    pub(crate) fn include_usage(options: Option<&Self>, streams: bool) -> Result<bool, ApiError> {
        if options.is_some() && !streams {
            return Err(ApiError::invalid(
                "stream_options",
                "stream_options is for answers with stream: true",
            ));
        }
        if options.is_some_and(|options| options.include_obfuscation == Some(true)) {
            let at = "stream_options.include_obfuscation";
            return Err(ApiError::unsupported(at, format!("{at} is not supported")));
        }
        Ok(options.and_then(|options| options.include_usage).unwrap_or(false))
    }
}

/// How an answer is made.
#[derive(Debug, Default)]
pub(crate) struct Common {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) min_p: Option<f32>,
    pub(crate) typical_p: Option<f32>,
    pub(crate) repeat_penalty: Option<f32>,
    pub(crate) repeat_last_n: Option<i64>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) logit_bias: BTreeMap<String, f32>,
    pub(crate) seed: Option<i64>,
    pub(crate) n: Option<usize>,
    pub(crate) stop: Option<Stop>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) priority: Option<i32>,
    pub(crate) deadline_ms: Option<u64>,
}

impl Common {
    /// As the engine has it, for a model that is sampled like this where nobody chooses.
    pub(crate) fn generate(self, model: &SamplerParams) -> Result<GenerateParams, ApiError> {
        Ok(GenerateParams {
            choices: self.n.unwrap_or(1),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            priority: self.priority.unwrap_or(0),
            deadline: self.deadline_ms.map(Duration::from_millis),
            sampling: self.sampling(model)?,
            stop: self.stop.map(Stop::into_texts).unwrap_or_default(),
            ..GenerateParams::default()
        })
    }

    /// The model's own settings belong together: they hold as long as none of them is chosen.
    fn sampling(&self, model: &SamplerParams) -> Result<SamplerParams, ApiError> {
        let chosen = self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.min_p.is_some()
            || self.repeat_penalty.is_some();
        let base = if chosen { SamplerParams::default() } else { model.clone() };
        Ok(SamplerParams {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            typical_p: self.typical_p.unwrap_or(base.typical_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(base.repeat_penalty),
            repeat_last_n: self.repeat_last_n.map_or(Ok(base.repeat_last_n), last_n)?,
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            logit_bias: logit_bias(&self.logit_bias)?,
            // Any number is a seed.
            seed: self.seed.map(i64::cast_unsigned),
            ..base
        })
    }
}

fn last_n(n: i64) -> Result<usize, ApiError> {
    match n {
        -1 => Ok(usize::MAX),
        n => usize::try_from(n).map_err(|_| {
            ApiError::invalid(
                "repeat_last_n",
                format!("repeat_last_n is {n}, and must be at least 0, or -1 for all"),
            )
        }),
    }
}

fn logit_bias(given: &BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, ApiError> {
    let biases = given.iter().map(|(id, bias)| {
        let wrong = || {
            let id: String = id.chars().take(40).collect();
            ApiError::invalid("logit_bias", format!("logit_bias has {id:?}, which is not the id of a token"))
        };
        Ok((id.parse().map_err(|_| wrong())?, *bias))
    });
    biases.collect()
}

/// The limit on an answer's tokens, which may be given under an old and a new name.
pub(crate) fn max_tokens(old: Option<usize>, new: Option<usize>) -> Result<Option<usize>, ApiError> {
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let message = format!("max_tokens is {old} and max_completion_tokens {new}: they mean the same");
            Err(ApiError::invalid("max_tokens", message))
        }
        (old, new) => Ok(new.or(old)),
    }
}
