//! The key-value pairs of a GGUF header.

use std::borrow::Cow;

use crate::value::{Array, StringArray, Value};
use crate::{Bytes, FormatError, Scalars};

/// Tokens of a text at most, where a model has positions for more.
pub(crate) const MAX_TOKENS: &str = "moli.max_seq_length";

/// The metadata of a model: keys with typed values, in the order of the file.
///
/// For each kind of value there are two readers: `u32(key)`, which wants the key, and `u32_opt(key)`, which gives
/// `None` when it is absent. Both refuse a value of another kind. Integers of any width and sign are taken where their
/// value fits; a truth value is not an integer and an integer is not a float.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Indices of `entries` by rising key.
    sorted: Box<[u32]>,
}

impl Metadata {
    /// Keeps the order and refuses a key that occurs twice.
    pub(crate) fn new(entries: Vec<(String, Value)>) -> Result<Self, FormatError> {
        let sorted = crate::gguf::sort_names(entries.len(), |index| &entries[index].0)
            .map_err(|key| FormatError::DuplicateKey { key })?;
        Ok(Self { entries, sorted })
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let found = self.sorted.binary_search_by(|&index| {
            self.entries.get(index as usize).map_or("", |(key, _)| key.as_str()).cmp(key)
        });
        let &index = self.sorted.get(found.ok()?)?;
        self.entries.get(index as usize).map(|(_, value)| value)
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// `general.architecture`, which every model has.
    ///
    /// # Errors
    /// If it is absent or not a string.
    pub fn architecture(&self) -> Result<&str, FormatError> {
        self.str("general.architecture")
    }

    /// How many tokens the model reads at most: `context_length` of its architecture, or fewer where `moli.max_seq_length` says so.
    ///
    /// # Errors
    /// If a key is not a count, or there is no architecture.
    pub fn context_length(&self) -> Result<Option<u64>, FormatError> {
        let positions = self.u64_opt(&format!("{}.context_length", self.architecture()?))?;
        let most = self.u64_opt(MAX_TOKENS)?.filter(|&most| most > 0);
        Ok(positions.map(|positions| most.map_or(positions, |most| most.min(positions))))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| FormatError::WrongType {
            key: key.to_string(),
            expected,
            actual: value.type_name(),
        })
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, name: &'static str) -> Result<Option<T>, FormatError> {
        let Some(value) = self.typed(key, "an integer", Value::as_integer)? else { return Ok(None) };
        let out_of_range = |_| FormatError::OutOfRange { key: key.to_string(), expected: name, value };
        T::try_from(value).map(Some).map_err(out_of_range)
    }

    fn integers<T: TryFrom<i128>>(
        &self,
        key: &str,
        name: &'static str,
    ) -> Result<Option<Vec<T>>, FormatError> {
        let read = |value| scalars(value)?.integers();
        match self.typed(key, "an array of integers", read)? {
            None => Ok(None),
            Some(Ok(values)) => Ok(Some(values)),
            Some(Err(value)) => Err(FormatError::OutOfRange { key: key.to_string(), expected: name, value }),
        }
    }
}

fn scalars(value: &Value) -> Option<&Scalars> {
    value.as_array()?.as_scalars()
}

/// Writes the reader that may find nothing and the one that must find something.
macro_rules! readers {
    ($($(#[$doc:meta])* $name:ident, $optional:ident: $result:ty, |$metadata:ident, $key:ident| $read:expr;)*) => {
        impl Metadata {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// `WrongType` or `OutOfRange` if the value is another one. An absent key is `None`.
            pub fn $optional(&self, key: &str) -> Result<Option<$result>, FormatError> {
                let ($metadata, $key) = (self, key);
                $read
            }

            $(#[$doc])*
            ///
            /// # Errors
            /// `MissingKey` if the key is absent, `WrongType` or `OutOfRange` if the value is another one.
            pub fn $name(&self, key: &str) -> Result<$result, FormatError> {
                self.$optional(key)?.ok_or_else(|| FormatError::MissingKey { key: key.to_string() })
            }
        )*}
    };
}

readers! {
    /// A `u32`, from an integer of any width.
    u32, u32_opt: u32, |m, key| m.integer(key, "u32");
    /// An `i32`, from an integer of any width.
    i32, i32_opt: i32, |m, key| m.integer(key, "i32");
    /// A `u64`, from an integer of any width.
    u64, u64_opt: u64, |m, key| m.integer(key, "u64");
    /// An `i64`, from an integer of any width.
    i64, i64_opt: i64, |m, key| m.integer(key, "i64");
    /// A float; an F64 is rounded.
    f32, f32_opt: f32, |m, key| m.typed(key, "a float", Value::as_f32);
    /// A truth value.
    bool, bool_opt: bool, |m, key| m.typed(key, "a bool", Value::as_bool);
    /// Text.
    str, str_opt: &str, |m, key| m.typed(key, "a string", Value::as_str);
    /// An array of any kind.
    array, array_opt: &Array, |m, key| m.typed(key, "an array", Value::as_array);
    /// An array of strings.
    strings, strings_opt: &StringArray,
        |m, key| m.typed(key, "an array of strings", |value| value.as_array()?.as_strings());
    /// An array of floats; F64 is rounded.
    f32s, f32s_opt: Cow<'_, [f32]>, |m, key| m.typed(key, "an array of floats", |value| scalars(value)?.f32s());
    /// An array of `i32`, from integers of any width.
    i32s, i32s_opt: Cow<'_, [i32]>, |m, key| Ok(m.integers(key, "i32")?.map(Cow::Owned));
    /// An array of `u32`, from integers of any width.
    u32s, u32s_opt: Cow<'_, [u32]>, |m, key| Ok(m.integers(key, "u32")?.map(Cow::Owned));
    /// An array of `u64`, from integers of any width.
    u64s, u64s_opt: Cow<'_, [u64]>, |m, key| Ok(m.integers(key, "u64")?.map(Cow::Owned));
    /// An array of truth values.
    bools, bools_opt: Vec<bool>, |m, key| m.typed(key, "an array of bools", |value| scalars(value)?.bools());
    /// The bytes of an array of U8 or I8.
    bytes, bytes_opt: Bytes, |m, key| m.typed(key, "an array of bytes", |value| scalars(value)?.byte_array());
}
