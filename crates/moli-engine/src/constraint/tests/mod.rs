//! Constrained answers of random models, checked by others.

mod bad_input;
mod families;
mod model;
mod oracle;
mod random;
mod speed;
mod state;
mod tokenizer;

use moli_text::Tokenizer;

use super::{Compiler, Constraint, Grammar};
use crate::EngineError;

/// The tokens of a text in a random cut, not the one that the tokenizer would make.
fn cut(tokenizer: &Tokenizer, text: &str, random: &mut random::Random) -> Vec<u32> {
    let words = tokenizer::words(tokenizer);
    let (mut ids, mut rest) = (Vec::new(), text.as_bytes());
    while !rest.is_empty() {
        let length = 1 + random.below(rest.len().min(6));
        if let Some(id) = words.get(&rest[..length]) {
            ids.push(*id);
            rest = &rest[length..];
        }
    }
    ids
}

/// Whether these tokens may come one after the other, and the answer may end with them.
fn accepts(tokenizer: &Tokenizer, mut constraint: Constraint, ids: &[u32]) -> Result<bool, EngineError> {
    let end = tokenizer.eos().unwrap();
    if constraint.allowed(&[ids, &[end]].concat())? != ids.len() + 1 {
        return Ok(false);
    }
    for id in ids.iter().chain([&end]) {
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        constraint.mask(&mut logits)?;
        assert_eq!(logits[*id as usize], 0.0, "what is allowed and what is masked must agree");
        constraint.accept(*id)?;
    }
    assert!(constraint.is_complete());
    Ok(true)
}
