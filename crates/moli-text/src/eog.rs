//! Which tokens end an answer.
//!
//! Files name one EOS, and models end their turns with others: the texts are what tells them.

use crate::vocab::{TokenKind, Vocab};
use std::collections::BTreeSet;

/// Tokens of these texts end the generation wherever a vocabulary has them.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    // Padding and the separators of repository-level completion: an answer never goes on after them.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<|repo_name|>",
    "<|fim_repo|>",
    "<fim-repo>",
    "<reponame>",
    "<|file_sep|>",
];

/// Other control texts that converters are known to file as ordinary ones.
const CONTROL_TEXTS: &[&str] = &[
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<fim_prefix>",
    "<fim_suffix>",
    "<fim_middle>",
    "<fim-prefix>",
    "<fim-suffix>",
    "<fim-middle>",
    "<｜fim▁begin｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁end｜>",
];

/// The markers inside an answer of the harmony format: shown and matched like ordinary text.
const HARMONY_TEXTS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Collects the ids, given those that the file names, and puts mislabelled control tokens right: a token that ends an
/// answer is control whatever its type says, so that no user can write it.
pub(crate) fn find(vocab: &mut Vocab, named: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
    let mut ends: BTreeSet<u32> = named.into_iter().collect();
    let has = |vocab: &Vocab, text: &str| vocab.id(text).is_some();
    for text in END_TEXTS {
        if let Some(id) = vocab.id(text) {
            ends.insert(id);
            vocab.set_kind(id, TokenKind::Control);
        }
    }
    for text in CONTROL_TEXTS {
        if let Some(id) = vocab.id(text) {
            vocab.set_kind(id, TokenKind::Control);
        }
    }
    for text in HARMONY_TEXTS {
        if let Some(id) = vocab.id(text).filter(|_| has(vocab, "<|return|>")) {
            vocab.set_kind(id, TokenKind::UserDefined);
        }
    }
    // Harmony's `<|end|>` closes a message and another of the same answer follows.
    let calls = has(vocab, "<|call|>") || has(vocab, "<|calls|>");
    if calls
        && (has(vocab, "<|return|>") || has(vocab, "<|flush|>"))
        && let Some(id) = vocab.id("<|end|>")
    {
        ends.remove(&id);
    }
    // Where `<|tool_response>` exists, `</s>` is markup of ordinary text.
    if has(vocab, "<|tool_response>")
        && let Some(id) = vocab.id("</s>").filter(|id| ends.remove(id))
    {
        vocab.set_kind(id, TokenKind::Normal);
    }
    ends
}
