//! Reading a configuration field by field.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::HuggingFaceError;
use super::family::Family;
use crate::{Bytes, FormatError, ReadMode};

/// Layers, heads or elements of a head, at most: far beyond any model.
const MAX_SIZE: u32 = 1 << 16;

/// Parses a JSON file of at most `limit` bytes; `None` if there is no such file. Nesting is limited by the parser.
pub(super) fn json<T: DeserializeOwned>(
    path: &Path,
    limit: u64,
    mode: ReadMode,
) -> Result<Option<T>, FormatError> {
    let Some(bytes) = bytes(path, limit, mode)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes).map_err(|error| HuggingFaceError::InvalidJson {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })?;
    Ok(Some(value))
}

/// Reads a text file of at most `limit` bytes; `None` if there is no such file.
pub(super) fn text(path: PathBuf, limit: u64, mode: ReadMode) -> Result<Option<String>, FormatError> {
    let Some(bytes) = bytes(&path, limit, mode)? else { return Ok(None) };
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(HuggingFaceError::InvalidText { path }.into()),
    }
}

fn bytes(path: &Path, limit: u64, mode: ReadMode) -> Result<Option<Bytes>, FormatError> {
    let length = match path.metadata() {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FormatError::from_io(path, error)),
    };
    if length > limit {
        return Err(HuggingFaceError::JsonTooLarge { path: path.to_path_buf(), bytes: length, limit }.into());
    }
    Bytes::open(path, mode).map(Some)
}

/// The fields of one object of `config.json`. A field that is `null` is as one that is absent, but that no default
/// takes its place.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    /// The fields around this object, with a dot behind each.
    path: String,
    map: &'a Map<String, Value>,
    /// What the model's configurations call fields by, that others have by another name.
    aliases: &'static [(&'static str, &'static str)],
    /// What the model's code takes for numbers that are absent.
    defaults: &'static [(&'static str, f64)],
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { path: String::new(), map, aliases: &[], defaults: &[] }
    }

    /// The same of a family, with its defaults, by the names that others have for its fields.
    pub(super) fn of(self, family: &Family) -> Self {
        Self { aliases: family.aliases, defaults: family.defaults, ..self }
    }

    /// What the configuration calls a field.
    fn own<'f>(&self, field: &'f str) -> &'f str {
        self.aliases.iter().find(|(name, _)| *name == field).map_or(field, |(_, own)| *own)
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(self.own(field)).filter(|value| !value.is_null())
    }

    /// How many fields there are.
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Their names.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The object in a field.
    pub(super) fn object(&self, field: &str) -> Result<Option<Self>, HuggingFaceError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Self { path: format!("{}{field}.", self.path), ..Self::new(map) }))
            }
            Some(_) => Err(self.wrong(field, "an object")),
        }
    }

    /// A finite number.
    pub(super) fn number(&self, field: &str) -> Result<Option<f64>, HuggingFaceError> {
        match self.map.get(self.own(field)) {
            None => Ok(self.defaults.iter().find(|(name, _)| *name == field).map(|(_, value)| *value)),
            Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(field, "a number")),
            },
        }
    }

    /// A number that must be there.
    pub(super) fn need_number(&self, field: &str) -> Result<f64, HuggingFaceError> {
        self.number(field)?.ok_or_else(|| self.missing(field))
    }

    /// A count from 0 to 2^32 - 1.
    pub(super) fn count(&self, field: &str) -> Result<Option<u32>, HuggingFaceError> {
        const COUNT: &str = "an integer from 0 to 4294967295";
        match self.number(field)? {
            None => Ok(None),
            Some(number) if number >= 0.0 && number <= f64::from(u32::MAX) && number.fract() == 0.0 => {
                Ok(Some(number as u32))
            }
            Some(_) => Err(self.wrong(field, COUNT)),
        }
    }

    /// A count that must be there.
    pub(super) fn need_count(&self, field: &str) -> Result<u32, HuggingFaceError> {
        self.count(field)?.ok_or_else(|| self.missing(field))
    }

    /// A count from 0 to [`MAX_SIZE`] that must be there.
    pub(super) fn need_size_from_zero(&self, field: &str) -> Result<u32, HuggingFaceError> {
        match self.need_count(field)? {
            size if size <= MAX_SIZE => Ok(size),
            _ => Err(self.wrong(field, "an integer from 0 to 65536")),
        }
    }

    /// A count from 1 to [`MAX_SIZE`], which may size what is allocated.
    pub(super) fn size(&self, field: &str) -> Result<Option<u32>, HuggingFaceError> {
        match self.count(field)? {
            Some(size) if !(1..=MAX_SIZE).contains(&size) => {
                Err(self.wrong(field, "an integer from 1 to 65536"))
            }
            size => Ok(size),
        }
    }

    /// Such a count that must be there.
    pub(super) fn need_size(&self, field: &str) -> Result<u32, HuggingFaceError> {
        self.size(field)?.ok_or_else(|| self.missing(field))
    }

    /// A truth value.
    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>, HuggingFaceError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(field, "true or false")),
        }
    }

    /// Text.
    pub(super) fn text(&self, field: &str) -> Result<Option<&'a str>, HuggingFaceError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(field, "a string")),
        }
    }

    /// A list of numbers.
    pub(super) fn numbers(&self, field: &str) -> Result<Option<Vec<f64>>, HuggingFaceError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.wrong(field, "a list of numbers")),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, field: &str) -> Result<Option<Vec<&'a str>>, HuggingFaceError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        match texts {
            Some(texts) => Ok(Some(texts)),
            None => Err(self.wrong(field, "a list of strings")),
        }
    }

    /// The error for a field that is absent.
    pub(super) fn missing(&self, field: &str) -> HuggingFaceError {
        HuggingFaceError::MissingField { field: self.name(field) }
    }

    /// The error for a field that should be something else.
    pub(super) fn wrong(&self, field: &str, expected: &'static str) -> HuggingFaceError {
        HuggingFaceError::WrongField { field: self.name(field), expected, value: self.shown(field) }
    }

    /// The error for a field that asks for what is not computed.
    pub(super) fn unsupported(&self, field: &str) -> HuggingFaceError {
        HuggingFaceError::Unsupported { field: self.name(field), value: self.shown(field) }
    }

    fn name(&self, field: &str) -> String {
        format!("{}{}", self.path, self.own(field))
    }

    fn shown(&self, field: &str) -> String {
        self.map.get(self.own(field)).map_or_else(|| "absent".to_owned(), Value::to_string)
    }
}
