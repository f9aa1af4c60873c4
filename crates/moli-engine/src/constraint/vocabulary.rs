//! A tokenizer's tokens as the matcher sees them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use moli_text::Tokenizer;
use toktrie::{INVALID_TOKEN, SimpleVob, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::EngineError;

/// Tokens that are longer are never allowed under a constraint: the trie has room for this depth.
const MAX_TOKEN_BYTES: usize = 1000;

/// The trie keeps ids in 24 bits, of which the last value means none.
const MAX_TOKENS: usize = (1 << 24) - 1;

/// All tokens that are text, as a trie, and those that end an answer.
pub(super) struct Vocabulary {
    trie: TokTrie,
    /// The tokens that the trie has.
    text: SimpleVob,
    ends: Vec<TokenId>,
}

impl Vocabulary {
    /// Control tokens have no text and match nothing. A byte 0xFF is no part of any text, and means something else to
    /// the trie.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Self, EngineError> {
        let tokens = tokenizer.vocab_size();
        if tokens == 0 || tokens > MAX_TOKENS {
            let allowed = format!("between 1 and {MAX_TOKENS} for constrained answers");
            return Err(EngineError::parameter("vocabulary", tokens, allowed));
        }
        let ends: Vec<TokenId> = tokenizer.end_of_generation_ids().collect();
        let words: Vec<Vec<u8>> = (0..tokens as TokenId)
            .map(|id| {
                let hidden = tokenizer.is_control(id) || tokenizer.is_end_of_generation(id);
                let bytes = tokenizer.token_bytes(id).filter(|_| !hidden).unwrap_or_default();
                let fits = bytes.len() <= MAX_TOKEN_BYTES && !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER);
                if fits { bytes.into_owned() } else { Vec::new() }
            })
            .collect();
        let info = TokRxInfo::new(tokens as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
        // A vocabulary of more bytes than the trie can number makes it panic.
        let build = || {
            let trie = TokTrie::from(&info, &words);
            if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) }
        };
        let trie = catch_unwind(AssertUnwindSafe(build)).map_err(|_| {
            EngineError::parameter(
                "vocabulary",
                tokens,
                "smaller: its trie for constrained answers overflows",
            )
        })?;
        let mut text = trie.alloc_token_set();
        for (id, _) in words.iter().enumerate().filter(|(_, word)| !word.is_empty()) {
            text.allow_token(id as TokenId);
        }
        Ok(Self { trie, text, ends })
    }

    pub(super) fn text(&self) -> &SimpleVob {
        &self.text
    }

    pub(super) fn ends(&self) -> &[TokenId] {
        &self.ends
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(bytes)
    }

    /// The model chooses how it spells a forced text: nothing is forced token by token.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
