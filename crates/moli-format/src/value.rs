//! Typed metadata values, with arrays that stay in the file.

use std::borrow::Cow;

use crate::cursor::Cursor;
use crate::error::shown;
use crate::{Bytes, FormatError};

/// How deep arrays of arrays are followed.
const MAX_DEPTH: usize = 4;

/// The type of a metadata value, with its number in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[expect(missing_docs, reason = "each name says all")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this number.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// The type's number.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// `u8`, `string`, `array` and so on.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of a number or truth value; `None` for strings and arrays, which have no fixed size.
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each name says all")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

impl Value {
    /// The type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F32(_) => ValueType::F32,
            Self::F64(_) => ValueType::F64,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
        }
    }

    /// The type in words, for errors: `u32`, `array of string`.
    pub fn type_name(&self) -> String {
        match self {
            Self::Array(array) => format!("an array of {}", array.item_type().name()),
            other => other.value_type().name().to_string(),
        }
    }

    /// An integer of any width and sign.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// A float; an F64 is rounded.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::F32(v) => Some(v),
            Self::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(v) = *self { Some(v) } else { None }
    }

    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(v) = self { Some(v) } else { None }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        if let Self::Array(v) = self { Some(v) } else { None }
    }

    /// Reads a value of the type `id`.
    pub(crate) fn parse(cursor: &mut Cursor<'_>, key: &str, id: u32) -> Result<Self, FormatError> {
        let unknown = || FormatError::UnknownValueType { key: key.to_string(), id };
        let what = &format_args!("the value of {}", shown(key));
        Ok(match ValueType::from_id(id).ok_or_else(unknown)? {
            ValueType::String => Self::String(cursor.string(what)?.to_string()),
            ValueType::Array => Self::Array(Array::parse(cursor, key, 1)?),
            kind => {
                let bytes = cursor.take(kind.size().ok_or_else(unknown)? as u64, what)?;
                if let (ValueType::Bool, &[value]) = (kind, bytes)
                    && value > 1
                {
                    return Err(FormatError::InvalidBool { key: key.to_string(), value });
                }
                Self::scalar(kind, bytes).ok_or_else(unknown)?
            }
        })
    }

    /// A number or truth value from exactly its bytes.
    fn scalar(kind: ValueType, bytes: &[u8]) -> Option<Self> {
        fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
            bytes.try_into().ok()
        }
        Some(match kind {
            ValueType::U8 => Self::U8(u8::from_le_bytes(array(bytes)?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(array(bytes)?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(array(bytes)?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(array(bytes)?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(array(bytes)?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(array(bytes)?)),
            ValueType::U64 => Self::U64(u64::from_le_bytes(array(bytes)?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(array(bytes)?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(array(bytes)?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(array(bytes)?)),
            ValueType::Bool => Self::Bool(array::<1>(bytes)? != [0]),
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// Appends the value as it stands in a file, without its type.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(v) => out.extend(v.to_le_bytes()),
            Self::I8(v) => out.extend(v.to_le_bytes()),
            Self::U16(v) => out.extend(v.to_le_bytes()),
            Self::I16(v) => out.extend(v.to_le_bytes()),
            Self::U32(v) => out.extend(v.to_le_bytes()),
            Self::I32(v) => out.extend(v.to_le_bytes()),
            Self::U64(v) => out.extend(v.to_le_bytes()),
            Self::I64(v) => out.extend(v.to_le_bytes()),
            Self::F32(v) => out.extend(v.to_le_bytes()),
            Self::F64(v) => out.extend(v.to_le_bytes()),
            Self::Bool(v) => out.push(u8::from(*v)),
            Self::String(v) => encode_str(v, out),
            Self::Array(v) => v.encode(out),
        }
    }
}

fn encode_str(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A metadata array. Numbers stay in the file; strings are one buffer.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Numbers or truth values.
    Scalars(Scalars),
    /// Strings.
    Strings(StringArray),
    /// Arrays.
    Arrays(NestedArray),
}

impl Array {
    /// The type of the elements.
    pub fn item_type(&self) -> ValueType {
        match self {
            Self::Scalars(array) => array.kind,
            Self::Strings(_) => ValueType::String,
            Self::Arrays(_) => ValueType::Array,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Scalars(array) => array.len(),
            Self::Strings(array) => array.len(),
            Self::Arrays(array) => array.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `index`.
    pub fn get(&self, index: usize) -> Option<Value> {
        match self {
            Self::Scalars(array) => array.get(index),
            Self::Strings(array) => array.get(index).map(Value::from),
            Self::Arrays(array) => array.get(index).map(Value::Array),
        }
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        (0..self.len()).map_while(|index| self.get(index))
    }

    /// The numbers or truth values, if that is what the elements are.
    pub fn as_scalars(&self) -> Option<&Scalars> {
        if let Self::Scalars(array) = self { Some(array) } else { None }
    }

    /// The strings, if that is what the elements are.
    pub fn as_strings(&self) -> Option<&StringArray> {
        if let Self::Strings(array) = self { Some(array) } else { None }
    }

    /// Reads element type, length and elements. `depth` counts the arrays around the elements.
    fn parse(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Self, FormatError> {
        if depth > MAX_DEPTH {
            return Err(FormatError::NestingTooDeep { key: key.to_string(), limit: MAX_DEPTH });
        }
        let what = &format_args!("the array {}", shown(key));
        let id = cursor.u32(what)?;
        let kind = ValueType::from_id(id)
            .ok_or_else(|| FormatError::UnknownValueType { key: key.to_string(), id })?;
        let length = cursor.u64(what)?;
        // A string takes at least its length, and an array its type and length.
        let smallest = match kind {
            ValueType::String => 8,
            ValueType::Array => 12,
            scalar => scalar.size().unwrap_or(1),
        } as u64;
        let limit = cursor.remaining() / smallest;
        if length > limit {
            return Err(FormatError::ArrayTooLong { key: key.to_string(), length, limit });
        }
        match kind {
            ValueType::String => StringArray::parse(cursor, key, length).map(Self::Strings),
            ValueType::Array => NestedArray::parse(cursor, key, length, depth).map(Self::Arrays),
            scalar => {
                // No overflow: the limit above is the rest of the file divided by the element's size.
                let bytes = cursor.take_bytes(length * smallest, what)?;
                if scalar == ValueType::Bool
                    && let Some(&value) = bytes.iter().find(|&&byte| byte > 1)
                {
                    return Err(FormatError::InvalidBool { key: key.to_string(), value });
                }
                Ok(Self::Scalars(Scalars { kind: scalar, bytes }))
            }
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.item_type().id().to_le_bytes());
        out.extend((self.len() as u64).to_le_bytes());
        match self {
            Self::Scalars(array) => out.extend(array.bytes.iter()),
            Self::Strings(array) => array.iter().for_each(|text| encode_str(text, out)),
            Self::Arrays(array) => out.extend(array.bytes.iter()),
        }
    }
}

/// Numbers or truth values, as little-endian bytes of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Scalars {
    kind: ValueType,
    bytes: Bytes,
}

impl Scalars {
    /// The type of the elements.
    pub fn item_type(&self) -> ValueType {
        self.kind
    }

    /// The elements as they stand in the file: little-endian, without gaps, at no particular alignment.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Element `index`.
    pub fn get(&self, index: usize) -> Option<Value> {
        let start = index.checked_mul(self.size())?;
        Value::scalar(self.kind, self.bytes.get(start..start.checked_add(self.size())?)?)
    }

    fn size(&self) -> usize {
        self.kind.size().unwrap_or(1)
    }

    fn chunks<const N: usize>(&self) -> impl ExactSizeIterator<Item = [u8; N]> {
        self.bytes.as_slice().as_chunks::<N>().0.iter().copied()
    }

    /// The elements if they are floats (F64 is rounded), borrowed where the machine allows it.
    pub fn f32s(&self) -> Option<Cow<'_, [f32]>> {
        match self.kind {
            ValueType::F32 => Some(self.chunks().map(f32::from_le_bytes).collect()),
            ValueType::F64 => Some(self.chunks().map(|b| f64::from_le_bytes(b) as f32).collect()),
            _ => None,
        }
    }

    /// The elements if they are integers of any width and sign: `Ok` if all of them fit `T`, else `Err` with the first
    /// that does not. `None` if they are not integers.
    pub fn integers<T: TryFrom<i128>>(&self) -> Option<Result<Vec<T>, i128>> {
        fn fit<T: TryFrom<i128>>(values: impl Iterator<Item = i128>) -> Option<Result<Vec<T>, i128>> {
            Some(values.map(|value| T::try_from(value).map_err(|_| value)).collect())
        }
        match self.kind {
            ValueType::U8 => fit(self.chunks().map(|b| u8::from_le_bytes(b).into())),
            ValueType::I8 => fit(self.chunks().map(|b| i8::from_le_bytes(b).into())),
            ValueType::U16 => fit(self.chunks().map(|b| u16::from_le_bytes(b).into())),
            ValueType::I16 => fit(self.chunks().map(|b| i16::from_le_bytes(b).into())),
            ValueType::U32 => fit(self.chunks().map(|b| u32::from_le_bytes(b).into())),
            ValueType::I32 => fit(self.chunks().map(|b| i32::from_le_bytes(b).into())),
            ValueType::U64 => fit(self.chunks().map(|b| u64::from_le_bytes(b).into())),
            ValueType::I64 => fit(self.chunks().map(|b| i64::from_le_bytes(b).into())),
            _ => None,
        }
    }

    /// The elements if they are truth values.
    pub fn bools(&self) -> Option<Vec<bool>> {
        (self.kind == ValueType::Bool).then(|| self.bytes.iter().map(|&byte| byte != 0).collect())
    }
}

/// Strings in one buffer, with the place where each of them ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StringArray {
    text: Box<str>,
    /// Where each string ends in `text`.
    ends: Box<[usize]>,
}

impl StringArray {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.text.get(start..end)
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }

    /// `length` strings. Lengths are added up first, so that the two allocations have their final size and are together
    /// no larger than the strings in the file; the text is then checked for UTF-8 in one pass.
    fn parse(cursor: &mut Cursor<'_>, key: &str, length: u64) -> Result<Self, FormatError> {
        let what = &format_args!("a string of {}", shown(key));
        let start = cursor.position();
        for _ in 0..length {
            let len = cursor.u64(what)?;
            cursor.take(len, what)?;
        }
        // Every string has a length of 8 bytes before it.
        let text_len = (cursor.position() - start).saturating_sub(length as usize * 8);
        let mut text = Vec::with_capacity(text_len);
        let mut ends = Vec::with_capacity(length as usize);
        *cursor = cursor.back_to(start);
        for _ in 0..length {
            let len = cursor.u64(what)?;
            text.extend_from_slice(cursor.take(len, what)?);
            ends.push(text.len());
        }
        let invalid =
            |index: usize| FormatError::InvalidUtf8 { what: format!("string {index} of {}", shown(key)) };
        let text = String::from_utf8(text).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            invalid(ends.partition_point(|&end| end <= at))
        })?;
        // The whole may be valid where a string begins in the middle of a character.
        if let Some(index) = ends.iter().position(|&end| !text.is_char_boundary(end)) {
            return Err(invalid(index));
        }
        Ok(Self { text: text.into_boxed_str(), ends: ends.into_boxed_slice() })
    }
}

/// Strings into an array of a file to write.
impl<S: AsRef<str>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut text = String::new();
        let mut ends = Vec::new();
        for string in strings {
            text.push_str(string.as_ref());
            ends.push(text.len());
        }
        Self { text: text.into(), ends: ends.into() }
    }
}

/// Arrays in an array, as bytes of the file that were checked when it was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct NestedArray {
    bytes: Bytes,
    /// Where each array begins in `bytes`.
    starts: Box<[usize]>,
}

impl NestedArray {
    /// Number of arrays.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are no arrays.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Array `index`, read again from the file's bytes.
    pub fn get(&self, index: usize) -> Option<Array> {
        let start = *self.starts.get(index)?;
        Array::parse(&mut Cursor::at(&self.bytes, start), "", 1).ok()
    }

    /// The arrays in order.
    pub fn iter(&self) -> impl Iterator<Item = Array> + '_ {
        (0..self.len()).map_while(|index| self.get(index))
    }

    fn parse(cursor: &mut Cursor<'_>, key: &str, length: u64, depth: usize) -> Result<Self, FormatError> {
        let start = cursor.position();
        let mut starts = Vec::with_capacity(length as usize);
        for _ in 0..length {
            starts.push(cursor.position() - start);
            // Parsed to check it and to find its end; `get` parses it again.
            Array::parse(cursor, key, depth + 1)?;
        }
        let end = cursor.position();
        *cursor = cursor.back_to(start);
        let bytes = cursor.take_bytes((end - start) as u64, &key)?;
        Ok(Self { bytes, starts: starts.into_boxed_slice() })
    }
}

/// Arrays into an array of a file to write.
impl FromIterator<Array> for NestedArray {
    fn from_iter<I: IntoIterator<Item = Array>>(arrays: I) -> Self {
        let mut bytes = Vec::new();
        let mut starts = Vec::new();
        for array in arrays {
            starts.push(bytes.len());
            array.encode(&mut bytes);
        }
        Self { bytes: bytes.into(), starts: starts.into() }
    }
}

macro_rules! numbers {
    ($($number:ty => $variant:ident),*) => {$(
        impl From<$number> for Value {
            fn from(value: $number) -> Self {
                Self::$variant(value)
            }
        }
        impl From<&[$number]> for Value {
            fn from(values: &[$number]) -> Self {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Self::Array(Array::Scalars(Scalars { kind: ValueType::$variant, bytes: bytes.into() }))
            }
        }
        impl From<Vec<$number>> for Value {
            fn from(values: Vec<$number>) -> Self {
                values.as_slice().into()
            }
        }
        impl<const N: usize> From<[$number; N]> for Value {
            fn from(values: [$number; N]) -> Self {
                values.as_slice().into()
            }
        }
    )*};
}
numbers!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32,
         f64 => F64);

macro_rules! into_value {
    ($($from:ty, $name:ident => $value:expr;)*) => {$(
        impl From<$from> for Value {
            fn from($name: $from) -> Self {
                $value
            }
        }
    )*};
}
into_value! {
    bool, v => Self::Bool(v);
    &str, v => Self::String(v.to_string());
    String, v => Self::String(v);
    Array, v => Self::Array(v);
    StringArray, v => Self::Array(Array::Strings(v));
    NestedArray, v => Self::Array(Array::Arrays(v));
    Vec<String>, v => v.into_iter().collect::<StringArray>().into();
    Vec<&str>, v => v.into_iter().collect::<StringArray>().into();
    &[String], v => v.iter().collect::<StringArray>().into();
    &[&str], v => v.iter().collect::<StringArray>().into();
    &[bool], v => {
        let bytes: Vec<u8> = v.iter().map(|&v| u8::from(v)).collect();
        Self::Array(Array::Scalars(Scalars { kind: ValueType::Bool, bytes: bytes.into() }))
    };
    Vec<bool>, v => v.as_slice().into();
}

impl<const N: usize> From<[&str; N]> for Value {
    fn from(values: [&str; N]) -> Self {
        values.as_slice().into()
    }
}

impl<const N: usize> From<[bool; N]> for Value {
    fn from(values: [bool; N]) -> Self {
        values.as_slice().into()
    }
}

impl Scalars {
    /// The elements if they are single bytes, as a range of the file.
    pub fn byte_array(&self) -> Option<Bytes> {
        matches!(self.kind, ValueType::U8 | ValueType::I8).then(|| self.bytes.clone())
    }
}
