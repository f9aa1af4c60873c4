//! From the text of a grammar to a constraint, in bounded time.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{Matcher, ParserFactory};
use moli_text::Tokenizer;
use toktrie::{InferenceCapabilities, TokEnv};

use super::cache::Cache;
use super::matcher::Constraint;
use super::vocabulary::Vocabulary;
use super::{Grammar, gbnf, lark, productive, schema};
use crate::EngineError;

/// How long a caller waits for its grammar. Ordinary ones take milliseconds.
const COMPILE_TIME: Duration = Duration::from_millis(1500);

/// Grammars that are compiled at once. One that takes too long keeps its thread until its own limits end it, and that
/// must not add up.
const COMPILE_THREADS: usize = 2;

/// The compiler recurses along chains of rules and references; what it may recurse over is bounded so that this suffices.
const STACK_BYTES: usize = 64 << 20;

/// What the matcher may spend. Running out is an error, at compiling or later.
fn limits() -> ParserLimits {
    ParserLimits {
        // An object takes four for each property that may come next.
        max_items_in_row: 10_000,
        step_max_items: 200_000,
        // Each is 1 to 2 KB.
        max_lexer_states: 50_000,
        // The state of a failed answer is of no use to a client, and has the whole grammar in it.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Compiles grammars for one tokenizer, and keeps what it has compiled.
pub(crate) struct Compiler {
    shared: Arc<Shared>,
}

struct Shared {
    vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
    cache: Mutex<Cache>,
    running: Mutex<usize>,
    ended: Condvar,
}

impl Compiler {
    /// Builds the trie of all tokens; for a large vocabulary that takes a tenth of a second.
    ///
    /// # Errors
    /// [`EngineError::InvalidParameter`] for a vocabulary that is too large for it.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Result<Self, EngineError> {
        let vocabulary = Arc::new(Vocabulary::new(tokenizer)?);
        let environment: TokEnv = Arc::<Vocabulary>::clone(&vocabulary);
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| EngineError::ConstraintFailed { reason: reason(&error.to_string()) })?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self {
            shared: Arc::new(Shared {
                vocabulary,
                factory,
                cache: Mutex::default(),
                running: Mutex::default(),
                ended: Condvar::new(),
            }),
        })
    }

    /// The constraint of a new answer. Blocks until the grammar is compiled, at most about [`COMPILE_TIME`].
    ///
    /// # Errors
    /// One of the errors of [`EngineError`] that speak of a grammar.
    pub(crate) fn compile(&self, grammar: &Grammar) -> Result<Constraint, EngineError> {
        grammar.check_size()?;
        let cached = lock(&self.shared.cache).get(grammar);
        if let Some(constraint) = cached {
            return Ok(constraint.fresh());
        }
        let kind = grammar.kind();
        let too_complex =
            || EngineError::GrammarTooComplex { kind, limit_ms: COMPILE_TIME.as_millis() as u64 };
        let started = Instant::now();
        let slot = Slot::take(&self.shared, COMPILE_TIME).ok_or_else(too_complex)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let shared = Arc::clone(&self.shared);
        let owned = grammar.clone();
        let work = move || {
            let compiled = shared.compile(&owned);
            drop(slot);
            // Nobody listens any more after too long a time.
            let _ = sender.send(compiled);
        };
        thread::Builder::new()
            .name("moli-grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(work)
            .map_err(|error| invalid(kind, error))?;
        match receiver.recv_timeout(COMPILE_TIME.saturating_sub(started.elapsed())) {
            Ok(compiled) => {
                let (constraint, bytes) = compiled?;
                let constraint = Arc::new(constraint);
                lock(&self.shared.cache).insert(grammar.clone(), Arc::clone(&constraint), bytes);
                Ok(constraint.fresh())
            }
            Err(RecvTimeoutError::Timeout) => Err(too_complex()),
            Err(RecvTimeoutError::Disconnected) => Err(invalid(kind, "its compiler failed")),
        }
    }

    #[cfg(test)]
    pub(crate) fn cached(&self) -> usize {
        lock(&self.shared.cache).len()
    }
}

impl Shared {
    /// The constraint, and the bytes that its automata hold.
    fn compile(&self, grammar: &Grammar) -> Result<(Constraint, usize), EngineError> {
        let kind = grammar.kind();
        let grammar = match grammar {
            Grammar::Json | Grammar::JsonSchema(_) => {
                TopLevelGrammar::from_json_schema(schema::prepare(grammar.text())?)
            }
            Grammar::Regex(text) => TopLevelGrammar::from_lark(lark::from_regex(text)?),
            Grammar::Lark(text) => {
                lark::check(text)?;
                TopLevelGrammar::from_lark(text.clone())
            }
            Grammar::Gbnf(text) => TopLevelGrammar::from_lark(gbnf::to_lark(text)?),
        };
        // A panic inside is caught there and comes back as an error.
        let mut parser = self.factory.create_parser(grammar).map_err(|error| invalid(kind, error))?;
        productive::check(kind, parser.parser.grammar())?;
        lark::check_enforced(kind, &mut parser)?;
        let bytes = parser.parser.lexer_stats().num_bytes;
        let mut matcher = Matcher::new(Ok(parser));
        // What is left to fail shows in the first mask.
        if let Err(error) = matcher.compute_mask_or_eos() {
            let nothing = error.to_string().starts_with(&StopReason::NoExtensionBias.to_string());
            return Err(if nothing { invalid(kind, "no text matches it") } else { invalid(kind, error) });
        }
        Ok((Constraint::new(matcher, Arc::clone(&self.vocabulary)), bytes))
    }
}

/// The right to use one of the compile threads.
struct Slot {
    shared: Arc<Shared>,
}

impl Slot {
    /// Waits for a thread to be free; `None` after too long a time.
    fn take(shared: &Arc<Shared>, patience: Duration) -> Option<Self> {
        let running = lock(&shared.running);
        let busy = |running: &mut usize| *running >= COMPILE_THREADS;
        let waited = shared.ended.wait_timeout_while(running, patience, busy);
        let (mut running, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *running += 1;
        Some(Self { shared: Arc::clone(shared) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *lock(&self.shared.running) -= 1;
        self.shared.ended.notify_one();
    }
}

/// What these locks guard is whole at every moment: a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn invalid(kind: &'static str, error: impl ToString) -> EngineError {
    EngineError::InvalidGrammar { kind, reason: reason(&error.to_string()) }
}

/// What a message says, without the state, the backtrace and the source that follow. Those of regular expressions have
/// the reason behind the source.
pub(super) fn reason(message: &str) -> String {
    const MOST: usize = 300;
    let mut lines = message.lines();
    let mut reason: String = lines.next().unwrap_or_default().trim().chars().take(MOST).collect();
    if let Some(error) = lines.find(|line| line.starts_with("error: ")) {
        reason.push(' ');
        reason.extend(error.chars().take(MOST));
    }
    reason
}
