//! One mutable timeline of tokens and its place in the KV cache.

use moli_model::{Batch, MAX_OUTPUTS, PageTable};

use crate::generation::Generation;
use crate::{CancelToken, Engine, EngineError, GenerateParams};

/// Rows of logits that [`Session::score_with`] asks for at once; 32 rows of a vocabulary of 262,144 are 32 MiB.
const SCORE_ROWS: usize = if MAX_OUTPUTS < 32 { MAX_OUTPUTS } else { 32 };

/// A timeline of tokens whose keys and values are kept, so that a prompt that begins like the last one costs only what
/// is new. Its pages go back to the engine when it is dropped.
#[derive(Debug)]
pub struct Session {
    engine: Engine,
    table: PageTable,
    /// The tokens whose keys and values are in `table`.
    tokens: Vec<u32>,
    /// Logits of the last row that asked for them, `[vocab]`.
    logits: Vec<f32>,
    // Scratch of a batch.
    positions: Vec<u32>,
    sequences: Vec<u32>,
}

impl Session {
    pub(crate) fn new(engine: Engine) -> Self {
        Self {
            engine,
            table: PageTable::new(),
            tokens: Vec::new(),
            logits: Vec::new(),
            positions: Vec::new(),
            sequences: Vec::new(),
        }
    }

    /// The engine that this is a session of.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The tokens whose keys and values the session holds: the last prompt and the answer, but for the answer's last
    /// token, which nothing has needed yet.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets everything and gives the pages back.
    pub fn reset(&mut self) {
        self.truncate(0);
    }

    /// Answers a prompt. The keys and values of the longest beginning that it shares with
    /// [`tokens`](Self::tokens) are used again; the answer is the same bits as if they were not.
    ///
    /// Nothing is computed until the first item is taken.
    ///
    /// # Errors
    /// [`EngineError::EmptyPrompt`], [`EngineError::PromptTooLong`], [`EngineError::TokenOutOfVocabulary`], and
    /// [`EngineError::InvalidParameter`] for what is wrong with `params`.
    pub fn generate<'s>(
        &'s mut self,
        prompt: &[u32],
        params: &GenerateParams,
        cancel: &CancelToken,
    ) -> Result<Generation<'s>, EngineError> {
        self.check(prompt)?;
        Generation::new(self, prompt, params, cancel)
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
    /// place is not computed. `row` runs while the engine is locked: it must not use it.
    ///
    /// # Errors
    /// [`EngineError::InvalidParameter`] unless `positions` rise and are below `ids.len()`; for `ids` as
    /// [`generate`](Self::generate).
    pub fn score_with(
        &mut self,
        ids: &[u32],
        positions: &[usize],
        mut row: impl FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check(ids)?;
        if let Some(pair) = positions.windows(2).find(|pair| pair.first() >= pair.last()) {
            return Err(EngineError::parameter("positions", format!("{pair:?}"), "strictly rising"));
        }
        let (Some(&first), Some(&last)) = (positions.first(), positions.last()) else { return Ok(()) };
        let Some(ids) = ids.get(..=last) else {
            let allowed = format!("below the {} tokens of the text", ids.len());
            return Err(EngineError::parameter("positions", last, allowed));
        };
        self.keep_common(ids, first);
        let chunk = self.engine.prefill_chunk();
        let mut wanted = positions.iter().copied().peekable();
        let mut places = Vec::with_capacity(SCORE_ROWS);
        let mut outputs = Vec::with_capacity(SCORE_ROWS);
        while self.tokens.len() <= last {
            let start = self.tokens.len();
            let mut end = ids.len().min(start.saturating_add(chunk));
            places.clear();
            outputs.clear();
            while let Some(&place) = wanted.peek().filter(|place| **place < end) {
                if places.len() == SCORE_ROWS {
                    end = place;
                    break;
                }
                places.push(place);
                outputs.push((place - start) as u32);
                wanted.next();
            }
            let tokens = ids.get(start..end).unwrap_or_default();
            let mut place = places.iter();
            self.forward(tokens, &outputs, |logits| {
                if let Some(&place) = place.next() {
                    row(place, logits);
                }
            })?;
        }
        Ok(())
    }

    /// What must be right before anything is computed.
    fn check(&self, prompt: &[u32]) -> Result<(), EngineError> {
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let context = self.engine.context();
        if prompt.len() > context {
            return Err(EngineError::PromptTooLong { prompt_tokens: prompt.len(), context });
        }
        let vocab = self.engine.config().vocab;
        match prompt.iter().find(|id| **id as usize >= vocab) {
            Some(&id) => Err(EngineError::TokenOutOfVocabulary { id, vocab }),
            None => Ok(()),
        }
    }

    /// Keeps what a prompt shares with the tokens that are here, at most `most` of them; gives their number.
    pub(crate) fn keep_common(&mut self, prompt: &[u32], most: usize) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = common.min(most);
        self.truncate(kept);
        kept
    }

    /// Computes more tokens; the last one's logits, if they are wanted, are then in [`logits`](Self::logits).
    pub(crate) fn extend(&mut self, tokens: &[u32], want_logits: bool) -> Result<(), EngineError> {
        let last = tokens.len().saturating_sub(1) as u32;
        let outputs: &[u32] = if want_logits { &[last] } else { &[] };
        let mut logits = std::mem::take(&mut self.logits);
        let computed = self.forward(tokens, outputs, |row| {
            logits.clear();
            logits.extend_from_slice(row);
        });
        self.logits = logits;
        computed
    }

    /// The logits of the last token, `[vocab]`.
    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// One forward pass, which appends `tokens` and hands over the logits of `outputs`, rows of this pass. If it fails
    /// the session is what it was before.
    fn forward(
        &mut self,
        tokens: &[u32],
        outputs: &[u32],
        mut row: impl FnMut(&[f32]),
    ) -> Result<(), EngineError> {
        let start = self.tokens.len();
        let end = start + tokens.len();
        self.positions.clear();
        self.positions.extend(start as u32..end as u32);
        self.sequences.clear();
        self.sequences.resize(tokens.len(), 0);
        let vocab = self.engine.config().vocab;
        let mut runtime = self.engine.runtime()?;
        runtime.reserve(&mut self.table, end)?;
        let batch = Batch {
            tokens,
            positions: &self.positions,
            sequences: &self.sequences,
            tables: &[&self.table],
            outputs,
        };
        let computed = match runtime.forward(&batch) {
            Ok(logits) => {
                let expected = outputs.len().saturating_mul(vocab);
                if logits.len() == expected {
                    logits.chunks_exact(vocab.max(1)).for_each(&mut row);
                    Ok(())
                } else {
                    Err(EngineError::LogitsLength { expected, actual: logits.len() })
                }
            }
            Err(error) => Err(error.into()),
        };
        match computed {
            Ok(()) => self.tokens.extend_from_slice(tokens),
            Err(_) => runtime.truncate(&mut self.table, start),
        }
        computed
    }

    fn truncate(&mut self, tokens: usize) {
        self.tokens.truncate(tokens);
        if self.table.len() > tokens {
            // After a panic in a forward pass nobody can use the runtime any more, and its pages are of no use.
            if let Ok(mut runtime) = self.engine.runtime() {
                runtime.truncate(&mut self.table, tokens);
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.truncate(0);
    }
}
