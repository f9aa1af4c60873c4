//! Vectors and scores: computed by the engine beside its answers, waited for on threads for such work.

use std::collections::VecDeque;

use moli_engine::{CancelToken, EmbedOptions, Embedding, Engine, EngineError, Rank};

use crate::answering::Prompt;
use crate::app::App;
use crate::error::ApiError;
use crate::models::Lease;

/// Texts of one request that are with the engine at the same time. They are computed together, and leave room for others.
const WINDOW: usize = 8;

/// Most texts of a request.
const MAX_TEXTS: usize = 2048;

fn check_count(name: &str, count: usize) -> Result<(), ApiError> {
    if (1..=MAX_TEXTS).contains(&count) {
        return Ok(());
    }
    Err(ApiError::invalid(name, format!("{name} has {count} texts, and must have 1 to {MAX_TEXTS}")))
}

/// Vectors, and whether a text was cut for one of them.
#[derive(Debug)]
pub(crate) struct Embedded {
    pub(crate) vectors: Vec<Embedding>,
    pub(crate) truncated: bool,
}

impl App {
    /// A vector of each text.
    pub(crate) async fn embed(
        &self,
        lease: &Lease,
        inputs: Vec<Prompt>,
        options: EmbedOptions,
    ) -> Result<Embedded, ApiError> {
        check_count("input", inputs.len())?;
        lease.refuse_adapter("vectors are not made")?;
        let cancel = CancelOnDrop::default();
        let token = cancel.0.clone();
        let embed = move |engine: &Engine| {
            let mut truncated = false;
            let submit = |input: &Prompt| {
                let encoded;
                let ids = match input {
                    Prompt::Text(text) => {
                        encoded = engine.encode_for_embedding(text)?;
                        &encoded
                    }
                    Prompt::Ids(ids) => ids,
                };
                truncated |= ids.len() > engine.context();
                engine.submit_embedding(ids, &options, &token)
            };
            let vectors = in_windows(inputs, submit, |pending| pending.wait())?;
            Ok(Embedded { vectors, truncated })
        };
        self.compute(lease, embed).await
    }

    /// How well each document answers a query.
    pub(crate) async fn rank(
        &self,
        lease: &Lease,
        query: String,
        documents: Vec<String>,
    ) -> Result<Vec<Rank>, ApiError> {
        check_count("documents", documents.len())?;
        lease.refuse_adapter("documents are not ranked")?;
        let cancel = CancelOnDrop::default();
        let token = cancel.0.clone();
        let rank = move |engine: &Engine| {
            let submit = |document: &String| engine.submit_rank(&query, document, false, &token);
            in_windows(documents, submit, |pending| pending.wait())
        };
        self.compute(lease, rank).await
    }
}

/// Submits a few before the first is waited for. Where the queue is full, its own are waited for, if there are any.
fn in_windows<I, P, T>(
    inputs: Vec<I>,
    mut submit: impl FnMut(&I) -> Result<P, EngineError>,
    wait: impl Fn(P) -> Result<T, EngineError>,
) -> Result<Vec<T>, EngineError> {
    let mut pending = VecDeque::new();
    let mut done = Vec::with_capacity(inputs.len());
    for input in inputs {
        if pending.len() == WINDOW {
            done.extend(pending.pop_front().map(&wait).transpose()?);
        }
        let submitted = loop {
            match (submit(&input), pending.pop_front()) {
                (Err(EngineError::QueueFull { .. }), Some(first)) => done.push(wait(first)?),
                (submitted, first) => {
                    first.into_iter().for_each(|first| pending.push_front(first));
                    break submitted?;
                }
            }
        };
        pending.push_back(submitted);
    }
    for last in pending {
        done.push(wait(last)?);
    }
    Ok(done)
}

/// Whoever leaves wants nothing more.
#[derive(Default)]
struct CancelOnDrop(CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
