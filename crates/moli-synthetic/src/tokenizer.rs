//! A vocabulary of any size, with as much to load as a real one.

use moli_format::GgufWriter;

/// How the texts of a family are split, and its control tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokenizer {
    /// `tokenizer.ggml.pre`.
    pre: &'static str,
    /// Control tokens, at the end of the vocabulary.
    control: [&'static str; 3],
    /// Which of `control` begins and which ends a text.
    bos_eos: [usize; 2],
}

pub(crate) const QWEN2: Tokenizer =
    Tokenizer { pre: "qwen2", control: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], bos_eos: [0, 2] };
pub(crate) const LLAMA3: Tokenizer = Tokenizer {
    pre: "llama-bpe",
    control: ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
    bos_eos: [0, 1],
};
pub(crate) const SMOLLM: Tokenizer = Tokenizer { pre: "smollm", bos_eos: [1, 2], ..QWEN2 };

/// Tokens of the smallest vocabulary: the bytes and the control tokens.
pub(crate) const LEAST_VOCAB: u64 = 256 + 3;

impl Tokenizer {
    /// A byte-level vocabulary of `vocab` tokens, at least [`LEAST_VOCAB`]: bytes, then all strings of two, three and four
    /// common characters as far as they are needed, each merged from the string before its last character and that
    /// character. So there are as many merges to load as in the real one, and English comes out in words' pieces.
    pub(crate) fn write(&self, vocab: usize, writer: &mut GgufWriter) {
        let ordinary = vocab.saturating_sub(self.control.len());
        let common: Vec<String> =
            " etaoinshrdlcumwfgypbvkjxqz".bytes().map(|b| byte_level(b).into()).collect();
        let mut tokens: Vec<String> = (0..=255).map(|byte| byte_level(byte).into()).collect();
        let mut merges = Vec::with_capacity(ordinary.saturating_sub(tokens.len()));
        // Strings that are still to be made longer: the single characters, then those made here in their order.
        let mut longer = std::collections::VecDeque::from(common.clone());
        while tokens.len() < ordinary
            && let Some(prefix) = longer.pop_front()
        {
            for last in common.iter().take(ordinary - tokens.len()) {
                merges.push(format!("{prefix} {last}"));
                tokens.push(format!("{prefix}{last}"));
                longer.push_back(format!("{prefix}{last}"));
            }
        }
        let mut kinds = vec![1i32; tokens.len()];
        tokens.extend(self.control.map(str::to_owned));
        kinds.resize(tokens.len(), 3);
        let [bos, eos] = self.bos_eos.map(|control| (ordinary + control) as u32);
        writer.meta("tokenizer.ggml.model", "gpt2");
        writer.meta("tokenizer.ggml.pre", self.pre);
        writer.meta("tokenizer.ggml.tokens", tokens);
        writer.meta("tokenizer.ggml.token_type", kinds);
        writer.meta("tokenizer.ggml.merges", merges);
        writer.meta("tokenizer.ggml.bos_token_id", bos);
        writer.meta("tokenizer.ggml.eos_token_id", eos);
    }
}

/// The character that byte-level vocabularies write for a byte (GPT-2's table): itself where it is printable, otherwise one
/// of those from U+0100 on.
pub fn byte_level(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}
