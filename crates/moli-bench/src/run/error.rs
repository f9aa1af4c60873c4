//! Why nothing was measured.

use std::path::PathBuf;

use moli_convert::ConvertError;
use moli_engine::{EngineError, Limit, units::megabytes};
use moli_format::FormatError;
use moli_model::ModelError;
use moli_server::ServerError;
use moli_synthetic::SyntheticError;

/// What is wrong with what was asked for, or went wrong meanwhile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A list that has to say something.
    #[error("the list of {name} is empty")]
    Empty {
        /// What is listed.
        name: &'static str,
    },
    /// A value that is listed twice: it would be measured twice under one name.
    #[error("{value} is twice among the {name}")]
    Duplicate {
        /// What is listed.
        name: &'static str,
        /// The value.
        value: String,
    },
    /// A number beyond what makes sense.
    #[error("{name} is {value}, and must be between {low} and {high}")]
    Range {
        /// What it is of.
        name: &'static str,
        /// What was asked for.
        value: usize,
        /// The least.
        low: usize,
        /// The most.
        high: usize,
    },
    /// An adapter that can't be read, or is of another model.
    #[error("{}: {source}", path.display())]
    Adapter {
        /// The adapter.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// No test is left.
    #[error("there is nothing to measure: neither tokens of a prompt nor tokens to generate are asked for")]
    Nothing,
    /// Whole answers need both.
    #[error("whole answers need a prompt and tokens to generate, and one of them is 0")]
    NoAnswers,
    /// More cases than anybody waits for.
    #[error("{cases} cases are asked for, and at most {limit} are measured in a run")]
    TooManyCases {
        /// The product of the lists.
        cases: usize,
        /// The most.
        limit: usize,
    },
    /// A sustained run is a run of one case.
    #[error("a sustained run measures one case, and {cases} are asked for")]
    Sustained {
        /// The product of the lists.
        cases: usize,
    },
    /// More tokens than the model was trained for.
    #[error("{test} needs {tokens} tokens in a sequence, and {model} was trained for {context}")]
    Context {
        /// What was to be measured.
        test: String,
        /// Tokens of a sequence.
        tokens: usize,
        /// Of what.
        model: String,
        /// What it was trained for.
        context: usize,
    },
    /// More tokens than there were to be pages for.
    #[error("{test} needs pages for {tokens} tokens, and a context of {context} was asked for")]
    Pages {
        /// What was to be measured.
        test: String,
        /// Tokens of all sequences, in whole pages.
        tokens: usize,
        /// What was asked for.
        context: usize,
    },
    /// Nothing was allocated.
    #[error("{model} would take {} for all its cases: more than {limit}", megabytes(*.needed))]
    Memory {
        /// The model as it was named.
        model: String,
        /// Bytes of its weights and of all its cases.
        needed: u64,
        /// What there is.
        limit: Box<Limit>,
    },
    /// A file that can't be read as a model.
    #[error("{model}: {source}")]
    Open {
        /// The model as it was named.
        model: String,
        /// Why.
        source: FormatError,
    },
    /// A model whose weights can't be quantised.
    #[error("{model}: {source}")]
    Quantize {
        /// The model as it was named.
        model: String,
        /// Why.
        source: ConvertError,
    },
    /// A model that can't be loaded or computed.
    #[error("{model}: {source}")]
    Model {
        /// The model as it was named.
        model: String,
        /// Why.
        source: ModelError,
    },
    /// A model that the engine can't load or answer with.
    #[error("{model}: {source}")]
    Engine {
        /// The model as it was named.
        model: String,
        /// Why.
        source: EngineError,
    },
    /// A synthetic model that can't be made.
    #[error(transparent)]
    Synthetic(#[from] SyntheticError),
    /// The server that requests were to go through.
    #[error(transparent)]
    Server(Box<ServerError>),
    /// It did not answer as it should.
    #[error("the server's answer: {reason}")]
    Answer {
        /// What was wrong.
        reason: String,
    },
    /// The machine's limits can't be measured.
    #[error("the limits of {threads} threads can't be measured: {reason}")]
    Limits {
        /// Threads.
        threads: usize,
        /// Why.
        reason: String,
    },
}

impl From<ServerError> for RunError {
    fn from(error: ServerError) -> Self {
        Self::Server(Box::new(error))
    }
}
