//! Prompts and tokens on a [`Runtime`], with nothing between: the logits of the last token, no sampling, no text.

use std::hint::black_box;
use std::time::Instant;

use moli_engine::CancelToken;
use moli_model::{Adapted, Batch, ModelError, PAGE_TOKENS, Runtime, pages_of};

use super::options::sequences;
use crate::report::Test;

/// Most tokens of a prompt that are read at once, as the engine does.
pub const CHUNK: usize = 512;

/// The token at a position of a sequence: one that every vocabulary of a published model has and that isn't control, and not
/// one row of the embeddings again and again.
pub fn token(sequence: usize, position: usize, vocab: usize) -> u32 {
    let id = 1000 + (position + 977 * sequence) % 10_000 * 37 % 20_000;
    (id % vocab.max(1)) as u32
}

/// A model whose pages are divided between sequences as each test needs it.
pub struct Direct {
    runtime: Box<dyn Runtime>,
    /// What every sequence goes through.
    adapters: Vec<Adapted>,
    /// All pages.
    pages: Vec<u32>,
    /// Tokens of the first sequence whose keys and values are in the first pages: a token is a matter of its place, so
    /// they hold for every test.
    filled: usize,
    /// Of a model whose layers carry a state: the first sequence's after so many tokens.
    state: Option<(usize, Vec<u8>)>,
}

impl Direct {
    /// Takes a loaded model.
    pub fn new(runtime: Box<dyn Runtime>) -> Self {
        Self::adapted(runtime, Vec::new())
    }

    /// Takes a loaded model, whose sequences all go through these of its adapters.
    pub fn adapted(runtime: Box<dyn Runtime>, adapters: Vec<Adapted>) -> Self {
        Self { adapters, pages: (0..runtime.pages() as u32).collect(), runtime, filled: 0, state: None }
    }

    /// Runs a test and gives the seconds of its timed part; `None` when it was cancelled meanwhile.
    ///
    /// # Errors
    /// What the model reports, [`ModelError::Batch`] where there are too few pages. Of whole answers nothing is run.
    pub fn repetition(&mut self, test: &Test, cancel: &CancelToken) -> Result<Option<f64>, ModelError> {
        let (count, length) = sequences(test);
        let each = pages_of(length);
        if self.runtime.state_bytes() > 0 && self.runtime.states() < count {
            self.runtime.reserve_states(count)?;
        }
        match *test {
            Test::Prefill { tokens, depth } => {
                if !self.fill(depth, each, cancel)? {
                    return Ok(None);
                }
                let start = Instant::now();
                let done = self.read(depth, tokens, each, true, cancel)?;
                Ok(done.then(|| start.elapsed().as_secs_f64()))
            }
            Test::Decode { tokens, depth, batch } => {
                if !self.fill(depth, each, cancel)? || !self.spread(depth, count, each, cancel)? {
                    return Ok(None);
                }
                let start = Instant::now();
                for position in depth..depth + tokens {
                    if cancel.is_cancelled() {
                        return Ok(None);
                    }
                    self.step(position, batch, each)?;
                }
                let seconds = start.elapsed().as_secs_f64();
                self.filled = self.filled.max(depth + tokens).min(each * PAGE_TOKENS);
                Ok(Some(seconds))
            }
            Test::EndToEnd { .. } => Ok(None),
        }
    }

    /// Has the first sequence read what stands before a test.
    fn fill(&mut self, depth: usize, each: usize, cancel: &CancelToken) -> Result<bool, ModelError> {
        if self.runtime.state_bytes() == 0 {
            let first = self.filled.min(depth);
            return self.read(first, depth - first, each, false, cancel);
        }
        if depth == 0 {
            return Ok(true);
        }
        if self.filled < depth || self.state.as_ref().is_none_or(|(tokens, _)| *tokens != depth) {
            if !self.read(0, depth, each, false, cancel)? {
                return Ok(false);
            }
            let mut state = Vec::new();
            self.runtime.read_state(0, &mut state)?;
            self.state = Some((depth, state));
        }
        self.begin(0)?;
        Ok(true)
    }

    /// Gives a sequence the state that the first had before the test.
    fn begin(&mut self, sequence: usize) -> Result<(), ModelError> {
        match &self.state {
            Some((tokens, state)) => self.runtime.write_state(sequence as u32, *tokens as u32, state),
            None => Ok(()),
        }
    }

    /// Gives it to the other sequences too.
    fn spread(
        &mut self,
        depth: usize,
        sequences: usize,
        each: usize,
        cancel: &CancelToken,
    ) -> Result<bool, ModelError> {
        for sequence in 1..sequences {
            if cancel.is_cancelled() {
                return Ok(false);
            }
            for page in 0..pages_of(depth) {
                self.runtime.copy_page(page as u32, (sequence * each + page) as u32)?;
            }
            if depth > 0 {
                self.begin(sequence)?;
            }
        }
        if sequences > 1 {
            self.filled = self.filled.min(each * PAGE_TOKENS);
        }
        Ok(true)
    }

    /// Has the first sequence read tokens in chunks; the logits of the last one are computed where they are wanted.
    fn read(
        &mut self,
        first: usize,
        tokens: usize,
        each: usize,
        logits: bool,
        cancel: &CancelToken,
    ) -> Result<bool, ModelError> {
        let end = first + tokens;
        let vocab = self.runtime.config().vocab;
        for start in (first..end).step_by(CHUNK) {
            if cancel.is_cancelled() {
                return Ok(false);
            }
            let positions = start..end.min(start + CHUNK);
            let rows = positions.len();
            let ids: Vec<u32> = positions.clone().map(|position| token(0, position, vocab)).collect();
            let last = [rows.saturating_sub(1) as u32];
            let outputs = if logits && positions.end == end { last.as_slice() } else { &[] };
            let positions: Vec<u32> = positions.map(|position| position as u32).collect();
            self.forward(&ids, &positions, &vec![0; rows], 1, each, outputs)?;
        }
        self.filled = self.filled.max(end);
        Ok(true)
    }

    /// Has each sequence read one token, and computes its logits.
    fn step(&mut self, position: usize, sequences: usize, each: usize) -> Result<(), ModelError> {
        let vocab = self.runtime.config().vocab;
        let rows: Vec<u32> = (0..sequences as u32).collect();
        let ids: Vec<u32> = (0..sequences).map(|sequence| token(sequence, position, vocab)).collect();
        self.forward(&ids, &vec![position as u32; sequences], &rows, sequences, each, &rows)
    }

    fn forward(
        &mut self,
        tokens: &[u32],
        positions: &[u32],
        rows: &[u32],
        sequences: usize,
        each: usize,
        outputs: &[u32],
    ) -> Result<(), ModelError> {
        let tables: Vec<&[u32]> = self.pages.chunks(each.max(1)).take(sequences).collect();
        let own: &[Adapted] = &self.adapters;
        let adapters = if own.is_empty() { Vec::new() } else { vec![own; sequences] };
        let batch = Batch {
            tokens,
            positions,
            sequences: rows,
            types: &[],
            tables: &tables,
            adapters: &adapters,
            recurrent: &[],
            outputs,
            states: &[],
        };
        black_box(self.runtime.forward(&batch)?);
        Ok(())
    }
}
