//! Random answers under a constraint.

use std::time::{Duration, Instant};

use moli_text::Tokenizer;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::EngineError;
use crate::constraint::Constraint;

/// How an answer went.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) tokens: usize,
    /// It is what it must be; `false`: cut off at its most tokens.
    pub(super) finished: bool,
}

/// Logits are noise that leans, the more the longer the answer is, towards its end and what closes things.
pub(super) fn answer(
    tokenizer: &Tokenizer,
    constraint: &mut Constraint,
    seed: u64,
    most: usize,
) -> Result<Answer, EngineError> {
    run(tokenizer, constraint, seed, most, |_| {})
}

/// The same, for the times of mask and acceptance of each token.
pub(super) fn timed(
    tokenizer: &Tokenizer,
    constraint: &mut Constraint,
    seed: u64,
    most: usize,
    times: &mut Vec<Duration>,
) {
    run(tokenizer, constraint, seed, most, |time| times.push(time)).unwrap();
}

fn run(
    tokenizer: &Tokenizer,
    constraint: &mut Constraint,
    seed: u64,
    most: usize,
    mut spent: impl FnMut(Duration),
) -> Result<Answer, EngineError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let closing: Vec<f32> = (0..tokenizer.vocab_size() as u32).map(|id| closing(tokenizer, id)).collect();
    let mut logits = vec![0.0; closing.len()];
    let mut bytes = Vec::new();
    for tokens in 0..most {
        if constraint.is_complete() {
            return Ok(Answer { text: String::from_utf8(bytes).unwrap(), tokens, finished: true });
        }
        let lean = tokens as f32 / 8.0;
        for (logit, closing) in logits.iter_mut().zip(&closing) {
            *logit = rng.random::<f32>() * 4.0 + closing * lean;
        }
        let started = Instant::now();
        constraint.mask(&mut logits)?;
        let masked = started.elapsed();
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        assert!(best.1.is_finite());
        let id = best.0 as u32;
        assert_eq!(constraint.allowed(&[id])?, 1);
        let started = Instant::now();
        constraint.accept(id)?;
        spent(masked + started.elapsed());
        if tokenizer.is_end_of_generation(id) {
            return Ok(Answer {
                text: String::from_utf8(bytes).unwrap(),
                tokens: tokens + 1,
                finished: true,
            });
        }
        assert!(!tokenizer.is_control(id));
        bytes.extend_from_slice(&tokenizer.token_bytes(id).unwrap());
    }
    Ok(Answer { text: String::from_utf8_lossy(&bytes).into_owned(), tokens: most, finished: false })
}

fn closing(tokenizer: &Tokenizer, id: u32) -> f32 {
    if tokenizer.is_end_of_generation(id) {
        return 2.0;
    }
    match &*tokenizer.token_bytes(id).unwrap() {
        b"\"" | b"}" | b"]" | b")" | b"\"}" | b"\"]" | b"}}" | b"]]" => 1.0,
        // It ends what has no closing sign of its own.
        b"," => 0.4,
        // What a pattern may wait for, and chance seldom brings.
        b"@" | b":" | b"z" | b"y" | b".com" | b"\n" => 1.0,
        b" " | b"\r\n" | b"\t" | b"  " | b"[" | b"{" | b"(" => -0.5,
        _ => 0.0,
    }
}
