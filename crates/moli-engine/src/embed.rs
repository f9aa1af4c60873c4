//! Embeddings: one vector for a text, made of its tokens' hidden states after the last norm.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use moli_format::Metadata;
use moli_model::ModelError;
use moli_text::EncodeOptions;

use crate::model::Model;
use crate::scheduler::{Timeline, Wanted};
use crate::session::CancelOnDrop;
use crate::worker::{Message, Task};
use crate::{CancelToken, Engine, EngineError};

/// How the hidden states of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token.
    Cls,
    /// That of the last token.
    Last,
}

/// What is asked for of an embedding.
#[derive(Debug, Clone)]
pub struct EmbedOptions {
    /// How the tokens become one vector; `None`: as the model's file says.
    pub pooling: Option<Pooling>,
    /// Whether the vector is divided by its length.
    pub normalize: bool,
    /// Elements of the vector to keep, the first ones, before its length is taken: for models that were trained for it
    /// (arXiv:2205.13147). `None`: all.
    pub dimensions: Option<usize>,
    /// Whether a text beyond the context is cut there, the [closing](moli_text::Tokenizer::closing) token kept. Otherwise it
    /// is an error.
    pub truncate: bool,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { pooling: None, normalize: true, dimensions: None, truncate: false }
    }
}

/// The embedding of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// `[hidden]`, or as many as were asked for.
    pub values: Vec<f32>,
    /// Tokens of the text, those that were cut off left out.
    pub tokens: usize,
    /// Tokens that the prefix cache had.
    pub cached_tokens: usize,
}

/// An embedding on its way. Dropping it cancels it.
#[derive(Debug)]
pub struct PendingEmbedding {
    pooled: PendingPooled,
    normalize: bool,
    dimensions: usize,
}

impl PendingEmbedding {
    /// Waits for it.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`], [`EngineError::Model`] with [`ModelError::StateNotFinite`] where the weights are damaged,
    /// [`EngineError::Poisoned`], and whatever computing says.
    pub fn wait(self) -> Result<Embedding, EngineError> {
        let tokens = self.pooled.tokens;
        let Pooled { mut state, cached_tokens } = self.pooled.wait()?;
        state.truncate(self.dimensions);
        if self.normalize {
            normalize(&mut state);
        }
        Ok(Embedding { values: state, tokens, cached_tokens })
    }
}

/// What a file says of embeddings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Declared {
    /// `pooling_type`
    pub(crate) pooling: Option<Pooling>,
    /// Texts to put before others, by their names.
    pub(crate) prompts: Vec<(String, String)>,
    /// Whether the model ranks documents instead.
    pub(crate) ranks: bool,
}

impl Declared {
    /// # Errors
    /// [`ModelError::OutOfRange`] for a number that means nothing, or a key of another type.
    pub(crate) fn of(metadata: &Metadata) -> Result<Self, EngineError> {
        let key = format!("{}.pooling_type", metadata.architecture()?);
        let pooling = match metadata.i64_opt(&key)? {
            None | Some(-1 | 0) => None,
            Some(1) => Some(Pooling::Mean),
            Some(2) => Some(Pooling::Cls),
            Some(3) => Some(Pooling::Last),
            Some(4) => return Ok(Self { ranks: true, ..Self::default() }),
            Some(other) => {
                let allowed = "0 (none), 1 (mean), 2 (cls), 3 (last) or 4 (rank)".to_owned();
                return Err(ModelError::OutOfRange { key, value: other.to_string(), allowed }.into());
            }
        };
        let strings =
            |key| Ok::<_, EngineError>(metadata.strings_opt(key)?.into_iter().flat_map(|all| all.iter()));
        let prompts = strings("moli.prompts.names")?.zip(strings("moli.prompts.texts")?);
        let prompts = prompts.map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        Ok(Self { pooling, prompts, ranks: false })
    }
}

impl Engine {
    /// The embedding of a text's ids, as [`encode_for_embedding`](Self::encode_for_embedding) gives them. It is computed
    /// beside answers, in the same batches, and is the same bits with others and alone. Blocks until it is there.
    ///
    /// # Errors
    /// As [`submit_embedding`](Self::submit_embedding) and [`PendingEmbedding::wait`].
    pub fn embed(
        &self,
        ids: &[u32],
        options: &EmbedOptions,
        cancel: &CancelToken,
    ) -> Result<Embedding, EngineError> {
        self.submit_embedding(ids, options, cancel)?.wait()
    }

    /// Asks for an embedding without waiting for it: several that are asked for together are computed together.
    ///
    /// The mean needs every token's hidden state, so nothing of its text comes from the prefix cache; the last token's needs
    /// the keys and values only.
    ///
    /// # Errors
    /// Nothing is computed where there is one: [`EngineError::NoPooling`] where neither the options nor the file name one,
    /// [`EngineError::EmptyPrompt`], [`EngineError::PromptTooLong`], [`EngineError::TokenOutOfVocabulary`],
    /// [`EngineError::InvalidParameter`] for `dimensions`, [`EngineError::QueueFull`], [`EngineError::Poisoned`].
    pub fn submit_embedding(
        &self,
        ids: &[u32],
        options: &EmbedOptions,
        cancel: &CancelToken,
    ) -> Result<PendingEmbedding, EngineError> {
        let model = self.model();
        let hidden = model.config.hidden;
        let dimensions = options.dimensions.unwrap_or(hidden);
        let checked = if !(1..=hidden).contains(&dimensions) {
            Err(EngineError::parameter(
                "dimensions",
                dimensions,
                format!("between 1 and the model's {hidden}"),
            ))
        } else {
            let undeclared =
                if model.declared.ranks { EngineError::IsAReranker } else { EngineError::NoPooling };
            options.pooling.or(model.declared.pooling).ok_or(undeclared)
        };
        let pooling = checked.inspect_err(|_| self.count_invalid())?;
        let cut = if options.truncate { truncated(model, ids) } else { None };
        let pooled = self.submit_pooled(cut.as_deref().unwrap_or(ids), None, pooling, cancel)?;
        Ok(PendingEmbedding { pooled, normalize: options.normalize, dimensions })
    }

    /// The ids of a text to embed: with the tokens before and behind it that the model wants there. Control tokens that are
    /// spelt out are recognised.
    ///
    /// # Errors
    /// [`EngineError::EmptyText`], [`TextError::Unrepresentable`](moli_text::TextError::Unrepresentable) where the vocabulary
    /// lacks a token.
    pub fn encode_for_embedding(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        if text.is_empty() {
            return Err(EngineError::EmptyText);
        }
        let options = EncodeOptions { add_special: true, parse_special: true };
        Ok(self.tokenizer().encode(text, options)?)
    }

    /// How the model's file says that embeddings are made; `None`: not at all, so that a caller has to.
    pub fn pooling(&self) -> Option<Pooling> {
        self.model().declared.pooling
    }

    /// The text that the model's folder has under this name to put before texts: an instruction.
    ///
    /// # Errors
    /// [`EngineError::UnknownPrompt`] with the names that there are.
    pub fn prompt(&self, name: &str) -> Result<&str, EngineError> {
        let prompts = &self.model().declared.prompts;
        match prompts.iter().find(|(known, _)| known == name) {
            Some((_, text)) => Ok(text),
            None => Err(EngineError::UnknownPrompt {
                name: name.to_owned(),
                known: prompts.iter().map(|(known, _)| known.clone()).collect(),
            }),
        }
    }

    /// Asks for the pooled hidden state of a text, or of two of which the second begins at `second`.
    pub(crate) fn submit_pooled(
        &self,
        ids: &[u32],
        second: Option<usize>,
        pooling: Pooling,
        cancel: &CancelToken,
    ) -> Result<PendingPooled, EngineError> {
        self.model().check_prompt(ids).inspect_err(|_| self.count_invalid())?;
        // What follows the last state that is needed is not computed, where it changes nothing.
        let wanted = match pooling {
            Pooling::Mean => 0..ids.len(),
            Pooling::Cls => 0..1,
            Pooling::Last => ids.len() - 1..ids.len(),
        };
        let end = if self.model().config.causal { wanted.end } else { ids.len() };
        let needed = ids.get(..end).unwrap_or_default().to_vec();
        let (sender, pooled) = mpsc::channel();
        let cancel = CancelOnDrop(cancel.child());
        let timeline = Timeline::new(self.next_id(0), needed, Wanted::States(wanted), cancel.0.clone());
        let timeline = timeline.with_adapters(self.model().adapters.unchosen()).with_second(second);
        let task = Task::Embed(Pool { sum: Vec::new(), states: 0, cached: None, pooled: sender });
        self.send(vec![Message::Request { timeline: Box::new(timeline), task }])?;
        Ok(PendingPooled { pooled, tokens: ids.len(), _cancel: cancel })
    }
}

/// The pooled hidden state of a text.
#[derive(Debug)]
pub(crate) struct Pooled {
    /// `[hidden]`
    pub(crate) state: Vec<f32>,
    pub(crate) cached_tokens: usize,
}

/// One on its way.
#[derive(Debug)]
pub(crate) struct PendingPooled {
    pooled: Receiver<Result<Pooled, EngineError>>,
    pub(crate) tokens: usize,
    _cancel: CancelOnDrop,
}

impl PendingPooled {
    pub(crate) fn wait(self) -> Result<Pooled, EngineError> {
        self.pooled.recv().unwrap_or(Err(EngineError::Poisoned))
    }
}

/// Hidden states on their way to one vector, their mean. They come in the order of their positions, however the text is cut,
/// so the sum is the same bits; the mean of one is itself.
#[derive(Debug)]
pub(crate) struct Pool {
    /// `[hidden]`
    sum: Vec<f64>,
    states: usize,
    /// Tokens that the prefix cache had; `None` before it is admitted.
    pub(crate) cached: Option<usize>,
    pooled: Sender<Result<Pooled, EngineError>>,
}

impl Pool {
    /// `states`: `[states, hidden]`.
    pub(crate) fn add(&mut self, states: &[f32], hidden: usize) {
        self.sum.resize(hidden, 0.0);
        for state in states.chunks_exact(hidden.max(1)) {
            self.sum.iter_mut().zip(state).for_each(|(sum, &element)| *sum += f64::from(element));
            self.states += 1;
        }
    }

    /// Sends what was pooled, or why it was not. Who does not listen any more has cancelled.
    pub(crate) fn report(self, result: Result<(), EngineError>) {
        let count = self.states.max(1) as f64;
        let state = self.sum.iter().map(|sum| (sum / count) as f32);
        let cached_tokens = self.cached.unwrap_or(0);
        let _ = self.pooled.send(result.map(|()| Pooled { state: state.collect(), cached_tokens }));
    }
}

/// The text as far as the context goes, if it goes further.
pub(crate) fn truncated(model: &Arc<Model>, ids: &[u32]) -> Option<Vec<u32>> {
    if ids.len() <= model.context {
        return None;
    }
    let mut cut = ids.get(..model.context)?.to_vec();
    let closing = model.tokenizer.closing().filter(|closing| ids.last() == Some(closing));
    if let (Some(last), Some(closing)) = (cut.last_mut(), closing) {
        *last = closing;
    }
    Some(cut)
}

/// Divides a vector by its length; one of zeros stays as it is.
fn normalize(values: &mut [f32]) {
    let length = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length > 0.0 {
        values.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}
