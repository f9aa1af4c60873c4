//! Random answers under a constraint.

use std::time::{Duration, Instant};

use moli_text::Tokenizer;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::constraint::Constraint;
use crate::sampler::Sampler;
use crate::{EngineError, SamplerParams};

/// How an answer went.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) tokens: usize,
    /// It is what it must be; `false`: cut off at its most tokens.
    pub(super) finished: bool,
    /// Tokens that a sampler with top-k of [`TOP_K`] chose without a mask.
    pub(super) unmasked: usize,
}

const TOP_K: usize = 4;

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
    // Two of each: one looks at tokens before there is a mask, if that suffices.
    let params = SamplerParams { seed: Some(seed), top_k: TOP_K, ..SamplerParams::default() };
    let mut samplers = [SamplerParams::greedy(), params]
        .map(|params| [(); 2].map(|()| Sampler::new(params.clone(), None, &[]).unwrap()));
    let mut unmasked = 0;
    for tokens in 0..most {
        if constraint.is_complete() {
            return Ok(Answer { text: String::from_utf8(bytes).unwrap(), tokens, finished: true, unmasked });
        }
        let lean = tokens as f32 / 8.0;
        for (logit, closing) in logits.iter_mut().zip(&closing) {
            *logit = rng.random::<f32>() * 4.0 + closing * lean;
        }
        let mut looked = [None; 2];
        for ([looking, _], looked) in samplers.iter_mut().zip(&mut looked) {
            *looked = looking.choose_allowed(&logits, |id| constraint.allows(id))?;
        }
        let started = Instant::now();
        constraint.mask(&mut logits)?;
        let masked = started.elapsed();
        unmasked += usize::from(looked[1].is_some());
        for ([looking, masking], looked) in samplers.iter_mut().zip(looked) {
            let expected = masking.choose(&logits)?;
            assert_eq!(looked.map_or_else(|| looking.choose(&logits), Ok)?, expected);
        }
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
                unmasked,
            });
        }
        assert!(!tokenizer.is_control(id));
        bytes.extend_from_slice(&tokenizer.token_bytes(id).unwrap());
    }
    Ok(Answer { text: String::from_utf8_lossy(&bytes).into_owned(), tokens: most, finished: false, unmasked })
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

/// Answers of `tokens` tokens, chosen as an answer's choice does, and by masks alone: the same, or this panics. How many were chosen
/// without a mask.
pub(super) fn looked(
    tokenizer: &Tokenizer,
    constraint: &Constraint,
    params: &SamplerParams,
    tokens: usize,
) -> usize {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut logits = vec![0.0; tokenizer.vocab_size()];
    // Each with a matcher of its own, so that none spends what another has.
    let mut ways = [(); 2].map(|()| (constraint.fresh(), Sampler::new(params.clone(), None, &[]).unwrap()));
    let mut unmasked = 0;
    for _ in 0..tokens {
        logits.fill_with(|| rng.random::<f32>() * 8.0);
        let [(looking, looker), (masking, masker)] = &mut ways;
        let mut looked = None;
        if looking.takes_a_look() {
            looked = looker.choose_allowed(&logits, |id| looking.allows(id)).unwrap();
        }
        unmasked += usize::from(looked.is_some());
        let found = looked.unwrap_or_else(|| {
            let mut masked = logits.clone();
            looking.mask(&mut masked).unwrap();
            looker.choose(&masked).unwrap()
        });
        masking.mask(&mut logits).unwrap();
        assert_eq!(masker.choose(&logits).unwrap(), found);
        looking.accept(found).unwrap();
        masking.accept(found).unwrap();
    }
    unmasked
}
