//! Rerankers: how well a document answers a query, by a model that was trained for it.
//!
//! A cross-encoder reads both texts at once, and its classifier has one label: the score is the sigmoid of that.
//!
//! A decoder was trained to say "yes" or "no". The prompt is a fixed text with places for the two; the score is the probability of "yes" against "no" after it. A file
//! made for ranking has both words' rows of the output head as a classifier of its own (`cls.output.weight`); of another, the
//! rows are taken from the output head.

use moli_format::{Gguf, Metadata};
use moli_model::{Classifier, Runtime};
use moli_text::{RenderedPrompt, Tokenizer};

use crate::embed::{Declared, PendingPooled, Pooled, Pooling, truncated};
use crate::math::exp;
use crate::{CancelToken, Engine, EngineError};

/// How well a document answers a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rank {
    /// From 0 to 1.
    pub score: f32,
    /// Tokens of the prompt, with both in it.
    pub tokens: usize,
    /// Tokens that the prefix cache had.
    pub cached_tokens: usize,
}

/// A score on its way. Dropping it cancels it.
#[derive(Debug)]
pub struct PendingRank {
    engine: Engine,
    pooled: PendingPooled,
}

impl PendingRank {
    /// Waits for it.
    ///
    /// # Errors
    /// As [`PendingEmbedding::wait`](crate::PendingEmbedding::wait).
    pub fn wait(self) -> Result<Rank, EngineError> {
        let tokens = self.pooled.tokens;
        let Pooled { state, cached_tokens } = self.pooled.wait()?;
        Ok(Rank { score: self.engine.ranker()?.score(&state), tokens, cached_tokens })
    }
}

impl Engine {
    /// How well a document answers a query. What they say never becomes a control token. Blocks until it is there.
    ///
    /// # Errors
    /// As [`submit_rank`](Self::submit_rank) and [`PendingRank::wait`].
    pub fn rank(&self, query: &str, document: &str, cancel: &CancelToken) -> Result<Rank, EngineError> {
        self.submit_rank(query, document, false, cancel)?.wait()
    }

    /// Asks for a score without waiting for it: several that are asked for together are computed together, and what their
    /// prompts begin with is computed once. With `truncate` a cross-encoder's document is cut where the context ends; the prompt of
    /// a decoder is never cut, since the question is at its end.
    ///
    /// # Errors
    /// Nothing is computed where there is one: [`EngineError::NotAReranker`], [`EngineError::PromptTooLong`],
    /// [`EngineError::Text`], [`EngineError::QueueFull`], [`EngineError::Poisoned`].
    pub fn submit_rank(
        &self,
        query: &str,
        document: &str,
        truncate: bool,
        cancel: &CancelToken,
    ) -> Result<PendingRank, EngineError> {
        let pooled = match &self.ranker()?.asked {
            Asked::Pair { pooling } => {
                let (mut ids, second) = self.tokenizer().encode_pair(query, document)?;
                if truncate && second < self.context() {
                    ids = truncated(self.model(), &ids).unwrap_or(ids);
                }
                self.submit_pooled(&ids, Some(second), *pooling, cancel)?
            }
            Asked::Prompt { template, .. } => {
                let texts = [("query", query), ("document", document)];
                let prompt = RenderedPrompt::fill(template, self.tokenizer(), &texts)?;
                let ids = self.tokenizer().encode_prompt(&prompt)?;
                self.submit_pooled(&ids, None, Pooling::Last, cancel)?
            }
        };
        Ok(PendingRank { engine: self.clone(), pooled })
    }

    /// Whether the model is one that ranks documents.
    pub fn is_reranker(&self) -> bool {
        self.model().ranker.is_ok()
    }

    fn ranker(&self) -> Result<&Ranker, EngineError> {
        let refused = |reason: &String| EngineError::NotAReranker { reason: reason.clone() };
        self.model().ranker.as_ref().map_err(refused)
    }
}

/// What makes scores of texts.
#[derive(Debug)]
pub(crate) struct Ranker {
    asked: Asked,
    classifier: Classifier,
}

/// How both texts come to the model.
#[derive(Debug)]
enum Asked {
    /// As a pair. The score is made of the hidden state of this pooling.
    Pair { pooling: Pooling },
    /// In a prompt with `{query}` and `{document}` in it; the words are rows of the classifier.
    Prompt { template: String, yes: usize, no: usize },
}

const WORDS: [&str; 2] = ["yes", "no"];

/// What Qwen3-Reranker was trained on (arXiv:2506.05176), for files that don't carry it.
const QWEN3_TEMPLATE: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
    Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web \
    search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {document}<|im_end|>\n\
    <|im_start|>assistant\n<think>\n\n</think>\n\n";

impl Ranker {
    /// The reranker that a model is, or why it is none.
    ///
    /// # Errors
    /// Keys of another type than theirs, and rows of the output head that can't be read.
    pub(crate) fn of(
        gguf: &Gguf,
        runtime: &dyn Runtime,
        tokenizer: &Tokenizer,
        declared: &Declared,
    ) -> Result<Result<Self, String>, EngineError> {
        let metadata = gguf.metadata();
        if !runtime.config().causal {
            return Self::cross_encoder(metadata, runtime, tokenizer);
        }
        let is_qwen3 = metadata.architecture()?.starts_with("qwen3");
        let own = metadata.str_opt("tokenizer.chat_template.rerank")?;
        let classifier = match runtime.classifier() {
            Some(classifier) => classifier.clone(),
            None if !is_qwen3 || !(declared.ranks || own.is_some() || is_called_reranker(metadata)?) => {
                return Ok(Err(
                    "it has no classifier, and nothing says that it is a Qwen3-Reranker".to_owned()
                ));
            }
            None => match WORDS.map(|word| tokenizer.token_id(word)) {
                [Some(yes), Some(no)] => Classifier::of_tokens(gguf, runtime.config(), &[yes, no], &WORDS)?,
                _ => return Ok(Err("its vocabulary has no tokens \"yes\" and \"no\"".to_owned())),
            },
        };
        let row = |word: &str| classifier.labels().iter().position(|label| label == word);
        let (Some(yes), Some(no), 2) = (row("yes"), row("no"), classifier.labels().len()) else {
            let labels = classifier.labels();
            return Ok(Err(format!("its classifier has the labels {labels:?}, not \"yes\" and \"no\"")));
        };
        let Some(template) = own.or(is_qwen3.then_some(QWEN3_TEMPLATE)) else {
            return Ok(Err("it has no chat template named \"rerank\"".to_owned()));
        };
        if !["{query}", "{document}"].iter().all(|place| template.contains(place)) {
            return Ok(
                Err("its template named \"rerank\" has no place for {query} or {document}".to_owned()),
            );
        }
        let asked = Asked::Prompt { template: template.to_owned(), yes, no };
        Ok(Ok(Self { asked, classifier }))
    }

    /// The same of an encoder.
    fn cross_encoder(
        metadata: &Metadata,
        runtime: &dyn Runtime,
        tokenizer: &Tokenizer,
    ) -> Result<Result<Self, String>, EngineError> {
        let Some(classifier) = runtime.classifier() else {
            return Ok(Err("it is an encoder without a classifier: it makes embeddings".to_owned()));
        };
        if classifier.count() != 1 {
            let (count, labels) = (classifier.count(), classifier.labels());
            return Ok(Err(format!("its classifier has {count} labels {labels:?}, not one")));
        }
        if !tokenizer.joins_pairs() {
            return Ok(Err("its tokenizer does not say how two texts are joined".to_owned()));
        }
        let mean = metadata.bool_opt("moli.classifier.mean")?.unwrap_or(false);
        let asked = Asked::Pair { pooling: if mean { Pooling::Mean } else { Pooling::Cls } };
        Ok(Ok(Self { asked, classifier: classifier.clone() }))
    }

    /// The sigmoid of the label's score, or the softmax of both words' logits, at "yes". `state`: `[hidden]`.
    fn score(&self, state: &[f32]) -> f32 {
        let scores = self.classifier.scores(state);
        let logit = |row: usize| f64::from(scores.get(row).copied().unwrap_or_default());
        let above = match self.asked {
            Asked::Pair { .. } => logit(0),
            Asked::Prompt { yes, no, .. } => logit(yes) - logit(no),
        };
        let odds = exp(-above.abs());
        (if above >= 0.0 { 1.0 / (1.0 + odds) } else { odds / (1.0 + odds) }) as f32
    }
}

/// Whether the model's name says that it ranks: files of a plain conversion say it nowhere else.
fn is_called_reranker(metadata: &Metadata) -> Result<bool, EngineError> {
    let name = metadata.str_opt("general.name")?.unwrap_or_default();
    Ok(name.to_lowercase().contains("reranker"))
}
