//! The one error type of this crate.

use std::path::PathBuf;

use moli_convert::ConvertError;
use moli_format::FormatError;
use moli_model::ModelError;
use moli_text::TextError;

use crate::SnapshotError;
use crate::plan::Shortage;

/// Why an engine can't be loaded or an answer can't be given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The file can't be read as a model.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The weights can't be quantised.
    #[error(transparent)]
    Quantize(Box<ConvertError>),
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
    /// The model does not fit the memory that there is for it. Nothing was loaded.
    #[error("{0}")]
    DoesNotFit(Box<Shortage>),
    /// A logit that is not a number.
    #[error("the logit of token {token} is {value}: the model's weights are damaged")]
    NotFinite {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// The logit bias, `ignore_eos` and the grammar together forbid every token of the vocabulary.
    #[error("logit bias, ignored end tokens and grammar forbid every token")]
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
    /// A draft model with a model whose layers carry a state, or that is one.
    #[error(
        "the layers of `{architecture}` carry a state, out of which no wrong guess can be taken again: it can't have a draft \
         model, nor be one"
    )]
    NoSpeculation {
        /// The architecture.
        architecture: String,
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
    /// An adapter can't be loaded.
    #[error("the adapter {}: {source}", path.display())]
    Adapter {
        /// Its file or folder.
        path: PathBuf,
        /// What is wrong with it, or why it does not fit the model.
        source: Box<EngineError>,
    },
    /// Two adapters of the same name.
    #[error("two adapters are called {name:?}")]
    DuplicateAdapter {
        /// The name.
        name: String,
    },
    /// An adapter that was not loaded with the model.
    #[error("there is no adapter {name:?}; there is {}", if known.is_empty() { "none" } else { known.as_str() })]
    UnknownAdapter {
        /// The name.
        name: String,
        /// Those that were loaded, with commas.
        known: String,
    },
    /// Two models that are to be compared have different vocabularies, so that their predictions are of different things.
    #[error(
        "the models have different vocabularies: token {id} is {} in the first and {} in the second",
        quoted(reference),
        quoted(other)
    )]
    OtherVocabulary {
        /// The first id that differs.
        id: u32,
        /// What the first model has there, if anything.
        reference: Option<String>,
        /// What the second model has there, if anything.
        other: Option<String>,
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
    /// Nothing says how embeddings are made of the model's hidden states.
    #[error(
        "the model's file names no pooling, so it may be none for embeddings: name mean, cls or last to use it as one"
    )]
    NoPooling,
    /// Answers were asked of a model that has no output head.
    #[error(
        "the model is an encoder, which makes embeddings or scores and no answers: use `moli embed` or `moli rerank`"
    )]
    Encoder,
    /// Embeddings were asked of a model that ranks documents.
    #[error(
        "the model ranks documents and is none for embeddings: use `moli rerank`, or name a pooling: mean, cls or last"
    )]
    IsAReranker,
    /// A text to embed that has no characters.
    #[error("the text is empty: there is nothing to embed")]
    EmptyText,
    /// The model has no prompt of this name to put before a text.
    #[error("the model has no prompt named {name:?}; it has {}", named(known))]
    UnknownPrompt {
        /// The name.
        name: String,
        /// Those that it has.
        known: Vec<String>,
    },
    /// The model can't tell how well a document answers a query.
    #[error("the model is no reranker: {reason}")]
    NotAReranker {
        /// What it lacks.
        reason: String,
    },
    /// Whoever asked for it cancelled it.
    #[error("it was cancelled")]
    Cancelled,
    /// A text that is too short for pieces of the context.
    #[error("the text has {tokens} tokens, and at this context at least {needed} are needed")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// The least.
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
    /// The runtime gave another number of hidden states than was asked for.
    #[error("the runtime gave {actual} elements of hidden states instead of {expected}")]
    StatesLength {
        /// Rows times the model's width.
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
    /// A session can't be saved or restored.
    #[error("{}: {error}", path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: SnapshotError,
    },
    /// The operating system has no random numbers to make a seed of.
    #[error("no seed can be drawn: {reason}")]
    NoEntropy {
        /// What the operating system said.
        reason: String,
    },
    /// A page of keys and values that several answers share could not be copied for one of them.
    #[error("a page of keys and values can't be copied: {reason}")]
    CopyFailed {
        /// What the backend said.
        reason: String,
    },
    /// The operating system has no thread for the engine.
    #[error("no thread can be started: {reason}")]
    NoThread {
        /// What the operating system said.
        reason: String,
    },
    /// Tools were offered to a model whose way of calling them is not known: its calls would be taken for text.
    #[error("the chat template writes calls of tools in a way that is not known")]
    UnknownToolFormat,
    /// A grammar that has a mistake, allows no text at all, or asks for what can't be enforced.
    #[error("the {kind} can't be used: {reason}")]
    InvalidGrammar {
        /// What it is: "JSON schema", "regular expression", "Lark grammar" or "GBNF grammar".
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A grammar whose text can't be read.
    #[error("the {kind} can't be read at line {line}, column {column}: {reason}")]
    GrammarSyntax {
        /// What it is, as in [`InvalidGrammar`](Self::InvalidGrammar).
        kind: &'static str,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A schema keyword that can't be enforced. Leaving it out would allow answers that the schema forbids.
    #[error("the JSON schema has {keyword:?} at {pointer:?}, which can't be enforced: {reason}")]
    UnsupportedKeyword {
        /// The keyword.
        keyword: String,
        /// The JSON pointer of the schema that has it.
        pointer: String,
        /// Why not.
        reason: String,
    },
    /// A grammar with too much of something.
    #[error("the {kind} is too large: it has {value} {what}, and may have {limit}")]
    GrammarTooLarge {
        /// What it is, as in [`InvalidGrammar`](Self::InvalidGrammar).
        kind: &'static str,
        /// What it has too much of.
        what: &'static str,
        /// How much it has.
        value: usize,
        /// How much it may have.
        limit: usize,
    },
    /// A grammar that was not compiled in time.
    #[error("the {kind} is too complex: it was not compiled in {limit_ms} ms")]
    GrammarTooComplex {
        /// What it is, as in [`InvalidGrammar`](Self::InvalidGrammar).
        kind: &'static str,
        /// The time that it had, waiting for other grammars included.
        limit_ms: u64,
    },
    /// A token that the grammar does not allow next.
    #[error("the grammar does not allow token {id} next")]
    TokenNotAllowed {
        /// The token.
        id: u32,
    },
    /// A constrained answer that can't go on. It is not continued without its constraint.
    #[error("the constrained answer can't go on: {reason}")]
    ConstraintFailed {
        /// What the matcher said.
        reason: String,
    },
    /// A step panicked, so the state of this engine is unknown.
    #[error("a step of this engine failed half-way: load the model again")]
    Poisoned,
}

fn named(known: &[String]) -> String {
    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
}

fn quoted(token: &Option<String>) -> String {
    token.as_ref().map_or_else(|| "missing".to_owned(), |token| format!("{token:?}"))
}

impl From<ConvertError> for EngineError {
    fn from(error: ConvertError) -> Self {
        Self::Quantize(Box::new(error))
    }
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
