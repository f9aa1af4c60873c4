//! Unigram, the tokenizer of T5 and XLM-RoBERTa (arXiv:1804.10959): each piece has a score, the logarithm of how likely it is, and
//! a text is cut into the pieces whose scores have the greatest sum.
//!
//! The sums are those of the `tokenizers` crate, in f64 and word by word. SentencePiece sums a whole text in f32, where ways of
//! cutting that are as good as each other may be told apart by rounding; else both come to the same pieces.

mod charsmap;
mod normalize;
mod read;

use crate::TextError;
use crate::vocab::{SPACE, TokenKind, Vocab, parse_byte_token};
use normalize::Step;

pub(crate) use charsmap::Charsmap;
pub(crate) use normalize::charsmap_bytes;
pub(crate) use read::{CHARSMAP, NORMALIZER, PRE_TOKENIZER, TRIM, of_gguf, of_json, with_charsmap};

/// How much less likely than the least likely piece a character is that no piece has.
const UNKNOWN_PENALTY: f64 = 10.0;
/// Bytes of the longest piece. SentencePiece trains pieces of at most 16 characters by default.
const LONGEST: usize = 1024;
/// Sets of lengths, by how pieces begin.
const BEGINNINGS: usize = 1 << 14;

/// What is done before pieces are looked for.
pub(crate) enum Preparation {
    /// The parts of a `tokenizer.json`.
    Pipeline { steps: Vec<Step>, words: Words },
    /// What SentencePiece does: see [`normalize::sentence_piece`].
    SentencePiece { map: Option<Charsmap>, trim: bool, prefix: bool, suffix: bool },
}

/// How a text is cut into words.
pub(crate) struct Words {
    /// White space ends a word, and goes.
    white_space: bool,
    /// Where `▁` is put before a word; `None`: spaces stay spaces.
    metaspace: Option<Metaspace>,
    /// Each `▁` begins a word.
    split: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metaspace {
    Always,
    First,
    Never,
}

pub(crate) struct Unigram {
    preparation: Preparation,
    /// Of each token.
    scores: Vec<f64>,
    /// Which kinds of tokens are pieces of texts.
    is_piece: fn(TokenKind) -> bool,
    unknown: Option<u32>,
    unknown_score: f64,
    /// `▁` is a piece, and no other has one but where it begins: then each begins one.
    spaces_begin: bool,
    /// What stands for the bytes of what no piece has.
    bytes: Option<Box<[u32; 256]>>,
    /// For each way to begin, two characters, which lengths pieces have: bit n is n + 1 characters, the last bit that and more.
    lengths: Box<[u64]>,
    hasher: ahash::RandomState,
}

/// The best way to cut a text up to some place.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    /// Where the last piece begins; `usize::MAX`: no way leads here.
    start: usize,
    id: u32,
}

impl Best {
    const NONE: Self = Self { score: 0.0, start: usize::MAX, id: 0 };
}

/// Room that is used again from word to word.
#[derive(Default)]
struct Scratch {
    best: Vec<Best>,
    /// Pieces from the last to the first.
    path: Vec<(usize, usize, u32)>,
}

impl Unigram {
    /// `scores`: one for each token from the first on; those behind are no pieces. `least`: the score of the least likely piece. With
    /// `fallback`, bytes stand for what no piece has, where each has a token.
    fn new(
        vocab: &Vocab,
        scores: Vec<f64>,
        unknown: Option<u32>,
        preparation: Preparation,
        is_piece: fn(TokenKind) -> bool,
        least: f64,
        fallback: bool,
    ) -> Result<Self, TextError> {
        let mut lengths = vec![0; BEGINNINGS].into_boxed_slice();
        let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
        let mut bytes = [None; 256];
        let (mut has_space, mut spaces_inside) = (false, false);
        for ((id, text, kind), &score) in vocab.iter().zip(&scores) {
            let invalid = |reason| TextError::InvalidToken { id, token: text.to_owned(), reason };
            if !score.is_finite() {
                return Err(invalid("its score is not a finite number"));
            }
            if let Some(slot) = parse_byte_token(text).and_then(|byte| bytes.get_mut(usize::from(byte))) {
                *slot = Some(id);
            }
            if !is_piece(kind) || text.is_empty() {
                continue;
            }
            if text.len() > LONGEST {
                return Err(invalid("a piece of more than 1024 bytes"));
            }
            has_space |= text.chars().eq([SPACE]);
            spaces_inside |= text.chars().skip(1).any(|c| c == SPACE);
            let mut chars = text.chars();
            let beginning = (chars.next(), chars.next());
            let count = chars.count() + usize::from(beginning.1.is_some());
            if let Some(set) = lengths.get_mut(hasher.hash_one(beginning) as usize % BEGINNINGS) {
                *set |= 1 << count.min(63);
            }
        }
        let bytes = bytes.into_iter().collect::<Option<Vec<u32>>>().filter(|_| fallback);
        let bytes = bytes.and_then(|bytes| <Box<[u32; 256]>>::try_from(bytes.into_boxed_slice()).ok());
        // A model without pieces knows nothing but the unknown token.
        let least = if least.is_finite() { least } else { 0.0 };
        let unknown_score = least - UNKNOWN_PENALTY;
        let spaces_begin = has_space && !spaces_inside;
        Ok(Self {
            preparation,
            scores,
            is_piece,
            unknown,
            unknown_score,
            spaces_begin,
            bytes,
            lengths,
            hasher,
        })
    }

    /// The score of each piece, which tokens behind the last of them have none of.
    pub(crate) fn scores(&self) -> &[f64] {
        &self.scores
    }

    /// What stands for what no piece has.
    pub(crate) fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// Whether bytes stand for it instead.
    pub(crate) fn has_bytes(&self) -> bool {
        self.bytes.is_some()
    }

    /// Whether each `▁` begins a piece.
    pub(crate) fn spaces_begin(&self) -> bool {
        self.spaces_begin
    }

    pub(crate) fn preparation(&self) -> &Preparation {
        &self.preparation
    }

    /// Appends the ids of `text`; `begins`: nothing comes before it.
    pub(crate) fn encode(
        &self,
        vocab: &Vocab,
        text: &str,
        begins: bool,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let mut scratch = Scratch::default();
        match &self.preparation {
            Preparation::SentencePiece { map, trim, prefix, suffix } => {
                let text = normalize::sentence_piece(map.as_ref(), text, *trim, *prefix, *suffix);
                self.encode_words(vocab, &text, self.spaces_begin, &mut scratch, out)
            }
            Preparation::Pipeline { steps, words } => {
                let (text, whole) = Step::apply(steps, text)?;
                let begins = begins && whole;
                if !words.white_space {
                    let text = words.marked(&text, begins);
                    return self.encode_words(vocab, &text, words.split, &mut scratch, out);
                }
                let begins = begins && !text.starts_with(char::is_whitespace);
                for (index, word) in text.split_whitespace().enumerate() {
                    let word = words.marked(word, begins && index == 0);
                    self.encode_words(vocab, &word, words.split, &mut scratch, out)?;
                }
                Ok(())
            }
        }
    }

    /// The words of a text, where `▁` begins them; else the text as a whole.
    fn encode_words(
        &self,
        vocab: &Vocab,
        text: &str,
        split: bool,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let mut rest = text;
        while !rest.is_empty() {
            let after = rest.chars().next().map_or(0, char::len_utf8);
            let end = rest.get(after..).and_then(|rest| rest.find(SPACE)).filter(|_| split);
            let (word, others) = rest.split_at(end.map_or(rest.len(), |end| after + end));
            self.encode_word(vocab, word, scratch, out)?;
            rest = others;
        }
        Ok(())
    }

    /// The best way to each place of the text, from the first to the last, and then back along it.
    fn encode_word(
        &self,
        vocab: &Vocab,
        text: &str,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let Scratch { best, path } = scratch;
        best.clear();
        best.resize(text.len() + 1, Best::NONE);
        // Of ways that are as good as each other the first.
        let put = |best: &mut [Best], start: usize, end: usize, score: f64, id: u32| {
            if let Some(slot) =
                best.get_mut(end).filter(|slot| slot.start == usize::MAX || score > slot.score)
            {
                *slot = Best { score, start, id };
            }
        };
        for (start, first) in text.char_indices() {
            let so_far = best.get(start).map_or(0.0, |best| best.score);
            let rest = text.get(start..).unwrap_or("");
            let mut single = false;
            for end in self.ends(rest, first) {
                let Some(id) = rest.get(..end).and_then(|piece| self.piece(vocab, piece)) else { continue };
                let score = self.scores.get(id as usize).copied().unwrap_or(0.0);
                put(best, start, start + end, so_far + score, id);
                single |= end == first.len_utf8();
            }
            if !single {
                let end = start + first.len_utf8();
                put(best, start, end, so_far + self.unknown_score, u32::MAX);
            }
        }
        path.clear();
        let mut end = text.len();
        while let Some(&Best { start, id, .. }) = best.get(end).filter(|_| end > 0) {
            // Characters that are unknown are unknown together.
            match path.last_mut().filter(|(.., after)| self.is_unknown(id) && self.is_unknown(*after)) {
                Some((from, ..)) => *from = start,
                None => path.push((start, end, id)),
            }
            end = start;
        }
        for &(start, end, id) in path.iter().rev() {
            if self.is_unknown(id) {
                self.encode_unknown(vocab, text.get(start..end).unwrap_or(""), out)?;
            } else {
                out.push(id);
            }
        }
        Ok(())
    }

    /// Where pieces may end that begin as `text` does, in bytes, in rising order.
    fn ends(&self, text: &str, first: char) -> impl Iterator<Item = usize> {
        let set = |second: Option<char>| {
            let beginning = (Some(first), second);
            self.lengths.get(self.hasher.hash_one(beginning) as usize % BEGINNINGS).copied().unwrap_or(0)
        };
        let second = text.chars().nth(1);
        let lengths = (set(None) & 1) | second.map_or(0, |second| set(Some(second)) & !1);
        let most = if lengths >> 63 == 1 { LONGEST } else { 64 - lengths.leading_zeros() as usize };
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        let ends = ends.take(most).enumerate();
        ends.filter(move |(index, _)| lengths >> (*index).min(63) & 1 == 1).map(|(_, end)| end)
    }

    fn piece(&self, vocab: &Vocab, text: &str) -> Option<u32> {
        if text.len() > LONGEST {
            return None;
        }
        vocab
            .id(text)
            .filter(|&id| (id as usize) < self.scores.len() && vocab.kind(id).is_some_and(self.is_piece))
    }

    fn is_unknown(&self, id: u32) -> bool {
        id == u32::MAX || Some(id) == self.unknown
    }

    fn encode_unknown(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) -> Result<(), TextError> {
        if let Some(id) = self.piece(vocab, text) {
            out.push(id);
        } else if let Some(bytes) = &self.bytes {
            out.extend(text.bytes().filter_map(|byte| bytes.get(usize::from(byte))));
        } else {
            let unrepresentable = || TextError::Unrepresentable { text: text.chars().take(16).collect() };
            out.push(self.unknown.ok_or_else(unrepresentable)?);
        }
        Ok(())
    }
}

impl Words {
    /// A word with `▁` for its spaces and one before it, as far as they are wanted.
    fn marked(&self, word: &str, begins: bool) -> String {
        let Some(metaspace) = self.metaspace else { return word.to_owned() };
        let mut marked = String::with_capacity(word.len() + word.len() / 2 + 3);
        let wanted = metaspace == Metaspace::Always || metaspace == Metaspace::First && begins;
        if wanted && !word.is_empty() && !word.starts_with([' ', SPACE]) {
            marked.push(SPACE);
        }
        marked.extend(word.chars().map(|c| if c == ' ' { SPACE } else { c }));
        marked
    }
}
