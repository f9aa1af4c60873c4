//! How a failure is told: one line with its causes, a hint where one helps, and the exit code.

use std::borrow::Cow;
use std::fmt;
use std::process::ExitCode;

use moli_engine::EngineError;
use moli_hub::HubError;
use moli_model::ModelError;
use moli_server::ServerError;

use crate::output::{StdoutError, escape, note};

/// The exit code of an error.
const FAILED: u8 = 1;
/// The exit code of wrong usage, as clap has it.
pub(crate) const USAGE: u8 = 2;
/// The exit code of a comparison that came out worse than was allowed: nothing went wrong, and a CI job should stop.
pub(crate) const WORSE: u8 = 3;

/// Arguments that are each right and make no sense together.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) Cow<'static, str>);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Tells what went wrong and gives the exit code. A reader of standard output that has gone is not an error.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<StdoutError>().is_some_and(StdoutError::reader_has_gone) {
        return ExitCode::SUCCESS;
    }
    tell(error);
    ExitCode::from(if error.is::<UsageError>() { USAGE } else { FAILED })
}

/// Writes the error and its hint to standard error.
pub(crate) fn tell(error: &anyhow::Error) {
    // Some errors name a list, a line for each source; everything else that is not printable comes from a file.
    for (index, line) in one_line(error).split('\n').enumerate() {
        note!("{}{}", if index == 0 { "error: " } else { "" }, escape(line));
    }
    if let Some(hint) = hint(error) {
        note!("hint: {}", escape(&hint));
    }
}

/// The error and its causes, joined. What a message already says is not said again.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if parts.iter().any(|part| part.contains(&text)) {
            continue;
        }
        // `PATH` as context of `PATH: no such file`.
        parts.retain(|part| !text.contains(part.as_str()));
        parts.push(text);
    }
    parts.join(": ")
}

/// What the person could do about it.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<HubError>() {
            return hub_hint(error);
        }
        if let Some(ServerError::PublicWithoutKeys { .. }) = cause.downcast_ref() {
            return Some("--api-key-file or MOLI_API_KEY gives keys; --allow-no-key does without".to_owned());
        }
        // Where it would make another error large, it is in a box.
        let boxed = || cause.downcast_ref::<Box<EngineError>>().map(AsRef::as_ref);
        cause.downcast_ref::<EngineError>().or_else(boxed).and_then(engine_hint)
    })
}

fn engine_hint(error: &EngineError) -> Option<String> {
    Some(match error {
        EngineError::PromptTooLong { .. } => {
            "a larger context is asked for with -c; in a conversation, /reset begins anew".to_owned()
        }
        EngineError::InvalidParameter { name: "context", .. } => {
            "-c 0 takes all that the model has".to_owned()
        }
        EngineError::TextTooShort { .. } => "a smaller context is asked for with -c".to_owned(),
        EngineError::DoesNotFit(_) => "`moli inspect MODEL` shows what takes how much memory".to_owned(),
        EngineError::Model(ModelError::TooLarge { .. }) => {
            "a smaller context (-c) needs less memory".to_owned()
        }
        EngineError::Model(ModelError::UnsupportedArchitecture { .. }) => {
            "`moli inspect MODEL` shows what the file is".to_owned()
        }
        _ => return None,
    })
}

fn hub_hint(error: &HubError) -> Option<String> {
    match error {
        HubError::UnknownModel { model, .. } if model.contains(char::is_whitespace) => {
            Some("a prompt comes after -p: moli run -p \"...\"".to_owned())
        }
        HubError::UnknownModel { .. } | HubError::NoSuchFile { .. } => {
            Some("`moli list` shows the models that have a name".to_owned())
        }
        HubError::NotCached { .. } => Some("`moli list` shows what is here".to_owned()),
        HubError::AllSourcesFailed { .. } => {
            Some("a model file that you have already can be given by its path".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_joined_and_not_repeated() {
        let io = || std::io::Error::other("disk on fire");
        let error = anyhow::Error::new(io()).context("cannot read a.gguf");
        assert_eq!(one_line(&error), "cannot read a.gguf: disk on fire");
        let error = anyhow::Error::new(io()).context("a.gguf: disk on fire").context("a.gguf");
        assert_eq!(one_line(&error), "a.gguf: disk on fire");
    }

    #[test]
    fn a_prompt_in_the_place_of_the_model_gets_a_hint() {
        let unknown = |model: &str| {
            let model = model.to_owned();
            anyhow::Error::new(HubError::UnknownModel {
                model,
                suggestions: Vec::new(),
                problems: Vec::new(),
            })
        };
        assert!(hint(&unknown("why is the sky blue")).unwrap().contains("-p"));
        assert!(hint(&unknown("smolm2")).unwrap().contains("moli list"));
    }
}
