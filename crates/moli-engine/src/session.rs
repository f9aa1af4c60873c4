//! One mutable timeline of tokens.

use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use crate::adapters::Chosen;
use crate::answer::{Answer, Chunk, Summary};
use crate::scheduler::{Timeline, Wanted};
use crate::worker::{Message, Score, Task};
use crate::{AdapterScale, CancelToken, Engine, EngineError, GenerateParams};

/// A timeline of tokens: a conversation, a document that is asked about.
///
/// Keys and values are the engine's: as long as its prefix cache has them, a prompt that begins like the last one costs
/// only what is new. A session is a list of ids; any number of them can be open.
#[derive(Debug)]
pub struct Session {
    engine: Engine,
    tokens: Vec<u32>,
    adapters: Vec<AdapterScale>,
    /// The same, looked up.
    chosen: Chosen,
}

impl Session {
    pub(crate) fn new(engine: Engine) -> Self {
        let adapters = engine.model().adapters.defaults().to_vec();
        let chosen = engine.model().adapters.unchosen();
        Self { engine, tokens: Vec::new(), adapters, chosen }
    }

    pub(crate) fn with_tokens(mut self, tokens: Vec<u32>) -> Self {
        self.tokens = tokens;
        self
    }

    /// The engine that this is a session of.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The last prompt and as much of its answer as was taken, but for the last token, which nothing has needed yet.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The adapters that it is computed with.
    pub fn adapters(&self) -> &[AdapterScale] {
        &self.adapters
    }

    /// Has everything from now on computed with these adapters, each once, and with no others.
    ///
    /// # Errors
    /// [`EngineError::UnknownAdapter`]; [`EngineError::InvalidParameter`] for a scale that is negative or no finite number, and for an
    /// adapter that is named twice. Then the session keeps those that it had.
    pub fn choose_adapters(&mut self, adapters: &[AdapterScale]) -> Result<(), EngineError> {
        self.chosen = self.engine.model().adapters.choose(adapters)?;
        self.adapters = adapters.to_vec();
        Ok(())
    }

    pub(crate) fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.tokens.clear();
    }

    /// Answers a prompt; its first choice becomes the session's [`tokens`](Self::tokens). What the prefix cache has of the
    /// prompt is not computed again; the answer is the same bits as if it were. Adapters that `params` names become the session's.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn generate<'s>(
        &'s mut self,
        prompt: &[u32],
        params: &GenerateParams,
        cancel: &CancelToken,
    ) -> Result<Generation<'s>, EngineError> {
        let answer = match &params.adapters {
            None => {
                let adapters = Some(self.adapters.clone());
                self.engine.submit(prompt, &GenerateParams { adapters, ..params.clone() }, cancel)?
            }
            Some(adapters) => {
                let answer = self.engine.submit(prompt, params, cancel)?;
                self.choose_adapters(adapters)?;
                answer
            }
        };
        self.tokens.clear();
        self.tokens.extend_from_slice(prompt);
        Ok(Generation { answer, session: self, latest: None })
    }

    /// The logits, `[vocab]`, that the model gives after each of these places of a text: row `i` of the answer predicts
    /// `ids[positions[i] + 1]`. They take `positions.len() * vocab * 4` bytes; [`score_with`](Self::score_with) does
    /// without.
    ///
    /// # Errors
    /// As [`score_with`](Self::score_with).
    pub fn score(&mut self, ids: &[u32], positions: &[usize]) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut rows = Vec::new();
        self.score_with(ids, positions, |_, logits| rows.push(logits.to_vec()))?;
        Ok(rows)
    }

    /// Hands the logits after each of these places to `row`, as `(place, [vocab])` and in order. What follows the last
    /// place is not computed.
    ///
    /// # Errors
    /// [`EngineError::InvalidParameter`] unless `positions` rise and are below `ids.len()`; for `ids` and the queue as
    /// [`Engine::submit`].
    pub fn score_with(
        &mut self,
        ids: &[u32],
        positions: &[usize],
        mut row: impl FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.engine.model().check_head()?;
        self.engine.model().check_prompt(ids)?;
        if let Some(pair) = positions.windows(2).find(|pair| pair.first() >= pair.last()) {
            return Err(EngineError::parameter("positions", format!("{pair:?}"), "strictly rising"));
        }
        let Some(&last) = positions.last() else { return Ok(()) };
        let Some(ids) = ids.get(..=last) else {
            let allowed = format!("below the {} tokens of the text", ids.len());
            return Err(EngineError::parameter("positions", last, allowed));
        };
        let (sender, rows) = mpsc::channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let cancel = CancelOnDrop(CancelToken::new());
        let wanted = Wanted::Places(positions.iter().copied().collect());
        let timeline = Timeline::new(self.engine.next_id(0), ids.to_vec(), wanted, cancel.0.clone());
        let timeline = timeline.with_adapters(self.chosen.clone());
        let score = Score { rows: sender, pending: Arc::clone(&pending), admitted: false };
        let request = Message::Request { timeline: Box::new(timeline), task: Task::Score(score) };
        self.engine.send(vec![request])?;
        for received in rows {
            let (place, logits) = received?;
            row(place, &logits);
            pending.fetch_sub(1, Ordering::AcqRel);
            self.engine.wake();
            if place == last {
                self.tokens.clear();
                self.tokens.extend_from_slice(ids);
                return Ok(());
            }
        }
        Err(EngineError::Poisoned)
    }
}

/// Whoever stops listening, by an error or a panic of its own, wants no more.
#[derive(Debug)]
pub(crate) struct CancelOnDrop(pub(crate) CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// An [`Answer`] that becomes part of a session.
#[derive(Debug)]
pub struct Generation<'s> {
    answer: Answer,
    session: &'s mut Session,
    /// The token taken last, which the session gets when another follows.
    latest: Option<u32>,
}

impl Generation<'_> {
    /// Why the answer ended and what it took; see [`Answer::summaries`].
    pub fn summary(&self) -> Summary {
        self.answer.summary()
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Chunk, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.answer.next();
        if let Some(Ok(Chunk { choice: 0, token: Some(token), .. })) = &item {
            self.session.tokens.extend(self.latest.replace(token.id));
        }
        item
    }
}

impl FusedIterator for Generation<'_> {}
