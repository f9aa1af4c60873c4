//! Prompts that are a fixed text with places to fill in, as rerankers have them.

use crate::guard::Guard;
use crate::{RenderedPrompt, TextError, Tokenizer};

impl RenderedPrompt {
    /// A template with each `{name}` replaced by its text. What the texts say can't become a control token of `tokenizer`,
    /// nor a place to fill in.
    ///
    /// # Errors
    /// [`TextError::TemplateFailed`] where the texts leave no character to mark them with.
    pub fn fill(template: &str, tokenizer: &Tokenizer, texts: &[(&str, &str)]) -> Result<Self, TextError> {
        let all = texts.iter().map(|&(_, text)| text).chain([template]);
        let guard = Guard::new(tokenizer.special(), all).ok_or_else(|| TextError::TemplateFailed {
            message: "the texts use all private-use characters".to_owned(),
        })?;
        let places: Vec<(String, String)> =
            texts.iter().map(|&(name, text)| (format!("{{{name}}}"), guard.content(text))).collect();
        let (mut filled, mut rest) = (String::with_capacity(template.len()), template);
        let next = |rest: &str| {
            let found = places.iter().filter_map(|place| Some((rest.find(&place.0)?, place)));
            found.min_by_key(|&(at, _)| at)
        };
        while let Some((at, (place, text))) = next(rest) {
            filled.push_str(rest.get(..at).unwrap_or_default());
            filled.push_str(text);
            rest = rest.get(at + place.len()..).unwrap_or_default();
        }
        filled.push_str(rest);
        let (text, barriers) = guard.clean(&filled);
        Ok(Self::new(text, barriers))
    }
}
