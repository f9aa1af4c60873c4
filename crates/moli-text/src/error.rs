//! What can be wrong with a tokenizer, a template or a text.

use std::path::PathBuf;

use moli_format::FormatError;

/// An error of this crate. Ids are token ids; lengths are counts of elements unless a field says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The metadata lacks a key or holds another type than the key's.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A folder without a tokenizer: ids can be computed with, text can't.
    #[error("{}: this file is missing, and text cannot be read without it", path.display())]
    NoTokenizer {
        /// The file.
        path: PathBuf,
    },
    /// A kind of tokenizer, or a part of one, that is known but not supported.
    #[error("{what} {name:?} is not supported")]
    Unsupported {
        /// The part, such as `tokenizer.ggml.model`.
        what: &'static str,
        /// Its value in the file.
        name: String,
    },
    /// `tokenizer.ggml.pre` names a pre-tokenizer that isn't known.
    #[error(
        "unknown pre-tokenizer {name:?}: the text would be cut into other tokens than the model has learnt"
    )]
    UnknownPreTokenizer {
        /// The name in the file.
        name: String,
    },
    /// The vocabulary has no tokens.
    #[error("the vocabulary is empty")]
    EmptyVocabulary,
    /// An array that goes with the tokens has another length than they have.
    #[error("{key} has {actual} elements for {expected} tokens")]
    LengthMismatch {
        /// The array's key.
        key: &'static str,
        /// The number of tokens.
        expected: usize,
        /// The array's length.
        actual: usize,
    },
    /// A tokenizer with more tokens than the model has embeddings.
    #[error("the tokenizer has {tokens} tokens, and the model has embeddings of {rows}")]
    TooManyTokens {
        /// The tokens.
        tokens: usize,
        /// Rows of the model's embeddings.
        rows: usize,
    },
    /// A part of a tokenizer that has no place in the form that it is to be written in.
    #[error("this can't be said of a tokenizer in {form}: {what}")]
    Inexpressible {
        /// The form.
        form: &'static str,
        /// The part.
        what: String,
    },
    /// Two ids have the same text.
    #[error("token {token:?} appears twice, as {first} and {second}")]
    DuplicateToken {
        /// The text.
        token: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A token of type BYTE isn't `<0x00>` … `<0xFF>`.
    #[error("token {id} is a byte token but reads {token:?}, not <0xHH>")]
    InvalidByteToken {
        /// Its id.
        id: u32,
        /// Its text.
        token: String,
    },
    /// The vocabulary has no token for a byte, so some texts could not be encoded.
    #[error("the vocabulary has no token for the byte 0x{byte:02X}")]
    MissingByteToken {
        /// The byte.
        byte: u8,
    },
    /// A token of a byte-level vocabulary holds a character that stands for no byte, or an unknown type.
    #[error("token {id} {token:?} is invalid: {reason}")]
    InvalidToken {
        /// Its id.
        id: u32,
        /// Its text.
        token: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A BOS, EOS or other special id isn't an id of the vocabulary.
    #[error("{key} is {id}, but the vocabulary has {vocab} tokens")]
    SpecialOutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        id: u64,
        /// The number of tokens.
        vocab: usize,
    },
    /// The file asks for a BOS or EOS token and names none.
    #[error("{flag} is set, but {key} is missing")]
    MissingSpecial {
        /// The flag that is set.
        flag: &'static str,
        /// The key that is missing.
        key: &'static str,
    },
    /// A merge is malformed or names a token that isn't in the vocabulary.
    #[error("merge {index} {merge:?} names a token that is not in the vocabulary")]
    InvalidMerge {
        /// Its position in the list.
        index: usize,
        /// Its text.
        merge: String,
    },
    /// The table of what is replaced before a text is cut is not one.
    #[error("the tokenizer's table of replacements: {message}")]
    Charsmap {
        /// What is wrong.
        message: String,
    },
    /// A text that its normalizer makes too large: what it replaces grows again and again.
    #[error("the tokenizer's normalizer makes more than {limit} bytes of the text")]
    GrowsTooMuch {
        /// The most bytes.
        limit: usize,
    },
    /// Two texts are to be joined, and the tokenizer does not say how.
    #[error("the tokenizer does not say how two texts are joined")]
    NoPairs,
    /// An id that isn't in the vocabulary.
    #[error("{id} is not a token id: the vocabulary has {vocab} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// The number of tokens.
        vocab: usize,
    },
    /// The vocabulary has no way to write this part of the text.
    #[error("the vocabulary has no token for {text:?}")]
    Unrepresentable {
        /// The character or byte in question.
        text: String,
    },
    /// A `tokenizer.json` or `tokenizer_config.json` that can't be read.
    #[error("tokenizer.json: {message}")]
    Json {
        /// What is wrong.
        message: String,
    },
    /// A regular expression of a pre-tokenizer failed; this names it.
    #[error("pre-tokenizer: {message}")]
    PreTokenizer {
        /// What is wrong.
        message: String,
    },
    /// The template is not valid Jinja, or nests deeper than allowed.
    #[error("chat template: {message}")]
    TemplateSyntax {
        /// What is wrong and where.
        message: String,
    },
    /// The template's source is longer than allowed.
    #[error("the chat template has {actual} bytes, the most is {limit}")]
    TemplateTooLong {
        /// The most bytes.
        limit: usize,
        /// Its bytes.
        actual: usize,
    },
    /// Rendering used up its budget of time and memory: a loop or a value that grows without end.
    #[error("the chat template ran out of its budget: it loops or grows too much")]
    TemplateBudget,
    /// Rendering nested too deep: a macro that calls itself.
    #[error("the chat template recurses too deep")]
    TemplateRecursion,
    /// The template called `raise_exception`: it refuses these messages.
    #[error("the chat template refuses: {message}")]
    TemplateRefused {
        /// The template's own words.
        message: String,
    },
    /// Rendering failed otherwise.
    #[error("chat template: {message}")]
    TemplateFailed {
        /// What is wrong and where.
        message: String,
    },
    /// A variable for the template that it can't have.
    #[error("template variable {name:?}: {reason}")]
    TemplateVariable {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A tool whose definition can't be used.
    #[error("tool {name:?}: {reason}")]
    InvalidTool {
        /// Its name; as much of it as can be shown.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// More tools than allowed.
    #[error("{actual} tools, the most is {limit}")]
    TooManyTools {
        /// The most.
        limit: usize,
        /// How many there are.
        actual: usize,
    },
    /// A call has to name this tool, and it isn't offered.
    #[error("tool {name:?} is to be called, but is not among the {tools} tools")]
    UnknownTool {
        /// Its name.
        name: String,
        /// How many are offered.
        tools: usize,
    },
    /// A tool has to be called, and none is offered.
    #[error("a tool is to be called, but there is none")]
    NoTools,
    /// The arguments of a call in a message nest deeper than allowed.
    #[error("the arguments of the call {id:?} nest deeper than {limit} levels")]
    ArgumentsTooDeep {
        /// The call's id.
        id: String,
        /// The most levels.
        limit: usize,
    },
}
