//! The one error type of this crate.

use std::path::PathBuf;

use moli_format::FormatError;
use moli_model::ModelError;
use moli_text::TextError;

/// Why an engine can't be loaded or an answer can't be given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The file can't be read as a model.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model can't be loaded or computed.
    #[error(transparent)]
    Model(ModelError),
    /// The tokenizer or the chat template can't be built or used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The prompt has no tokens, so there is nothing to continue.
    #[error("the prompt is empty: there is nothing to continue")]
    EmptyPrompt,
    /// The prompt does not fit the context. Nothing was computed.
    #[error("the prompt has {prompt_tokens} tokens and the context has room for {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// A token id that the model does not have.
    #[error("token {id} is outside the vocabulary of {vocab}")]
    TokenOutOfVocabulary {
        /// The id.
        id: u32,
        /// Tokens in the vocabulary.
        vocab: usize,
    },
    /// A parameter with a value that it can't have.
    #[error("{name} is {value}, and must be {allowed}")]
    InvalidParameter {
        /// The parameter's name, as the field is called.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// A logit that is not a number.
    #[error("the logit of token {token} is {value}: the model's weights are damaged")]
    NotFinite {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// The logit bias (or `ignore_eos`) forbids every token of the vocabulary.
    #[error("the logit bias forbids every token")]
    NothingToSample,
    /// The tokenizer has ids that the model has no rows for.
    #[error("the tokenizer has {tokenizer} tokens and the model has only {model}")]
    VocabularyMismatch {
        /// Tokens in the tokenizer.
        tokenizer: usize,
        /// Rows of the model's embedding table.
        model: usize,
    },
    /// The draft model can't be loaded.
    #[error("the draft model {}: {source}", path.display())]
    Draft {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<EngineError>,
    },
    /// The draft model does not have the model's vocabulary, so that its guesses mean nothing.
    #[error(
        "the draft model has another vocabulary: token {id} is {} there and {} in the model",
        quoted(draft),
        quoted(model)
    )]
    DraftVocabulary {
        /// The first id that differs.
        id: u32,
        /// What the model has there, if anything.
        model: Option<String>,
        /// What the draft model has there, if anything.
        draft: Option<String>,
    },
    /// The model has no chat template, so messages can't be put into its format.
    #[error("the model has no chat template: give it plain text instead of messages")]
    NoChatTemplate,
    /// The model has a chat template, and it can't be used; prompts without a template can.
    #[error("the model's chat template can't be used: {reason}")]
    BrokenChatTemplate {
        /// What is wrong with it.
        reason: String,
    },
    /// A text that is too short to measure perplexity on.
    #[error("the text has {tokens} tokens, and perplexity at this context needs at least {needed}")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Two contexts.
        needed: usize,
    },
    /// The runtime gave another number of logits than was asked for.
    #[error("the runtime gave {actual} logits instead of {expected}")]
    LogitsLength {
        /// Rows times vocabulary.
        expected: usize,
        /// What came.
        actual: usize,
    },
    /// Too many answers wait already. Nothing was computed; later there may be room.
    #[error("{waiting} answers wait already, and the queue has room for {limit}")]
    QueueFull {
        /// Answers that wait.
        waiting: usize,
        /// Most that may wait.
        limit: usize,
    },
    /// The operating system has no random numbers to make a seed of.
    #[error("no seed can be drawn: {reason}")]
    NoEntropy {
        /// What the operating system said.
        reason: String,
    },
    /// The operating system has no thread for the engine.
    #[error("no thread can be started: {reason}")]
    NoThread {
        /// What the operating system said.
        reason: String,
    },
    /// A step panicked, so the state of this engine is unknown.
    #[error("a step of this engine failed half-way: load the model again")]
    Poisoned,
}

fn quoted(token: &Option<String>) -> String {
    token.as_ref().map_or_else(|| "missing".to_owned(), |token| format!("{token:?}"))
}

impl From<ModelError> for EngineError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Format(error) => Self::Format(error),
            ModelError::NotFinite { token, value } => Self::NotFinite { token, value },
            error => Self::Model(error),
        }
    }
}

impl EngineError {
    pub(crate) fn parameter(name: &'static str, value: impl ToString, allowed: impl Into<String>) -> Self {
        Self::InvalidParameter { name, value: value.to_string(), allowed: allowed.into() }
    }
}
