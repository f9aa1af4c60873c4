//! What is worth knowing about a model that is quantised.

use std::fmt;

use moli_format::TensorType;

use super::Item;
use crate::Imatrix;

/// Something that a person may not expect. Each is said once, with the number of tensors and the first of them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantizeNote {
    /// Tensors whose rows are no whole blocks of their format get another one.
    Fallback {
        /// Their number.
        tensors: usize,
        /// The first.
        first: String,
        /// Its columns.
        cols: u64,
        /// What they would get.
        wanted: TensorType,
        /// What they get.
        ttype: TensorType,
    },
    /// Tensors that were quantised before lose twice.
    Requantised {
        /// Their number.
        tensors: usize,
        /// The first.
        first: String,
        /// Its format.
        from: TensorType,
    },
    /// Tensors that the importance matrix says nothing of: their columns count the same.
    NoImportance {
        /// Their number.
        tensors: usize,
        /// The first.
        first: String,
    },
    /// Tensors with experts that nothing went into when the importance matrix was made: their columns count the same.
    Uncounted {
        /// Their number.
        tensors: usize,
        /// The first.
        first: String,
        /// Its experts that nothing went into.
        experts: usize,
        /// All its experts.
        of: usize,
    },
    /// Tensors of the importance matrix that the model does not have.
    OtherTensors {
        /// Their number.
        tensors: usize,
        /// The first.
        first: String,
    },
}

impl fmt::Display for QuantizeNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = |tensors: usize| if tensors == 1 { "tensor" } else { "tensors" };
        match self {
            Self::Fallback { tensors, first, cols, wanted, ttype } => write!(
                f,
                "{tensors} {} as {ttype} instead of {wanted}, whose blocks of {} don't divide the rows: {first} has {cols} \
                 columns",
                many(*tensors),
                wanted.block_len()
            ),
            Self::Requantised { tensors, first, from } => write!(
                f,
                "{tensors} {} quantised already and lose quality twice: {first} is {from}; a file in F16, BF16 or F32 gives \
                 better results",
                if *tensors == 1 { "tensor was" } else { "tensors were" },
            ),
            Self::NoImportance { tensors, first } => write!(
                f,
                "the importance matrix has nothing for {tensors} {}, whose columns count the same: {first}",
                many(*tensors)
            ),
            Self::Uncounted { tensors, first, experts, of } => write!(
                f,
                "the importance matrix counted nothing for experts of {tensors} {}, whose columns count the same: {experts} \
                 of {of} in {first}",
                many(*tensors)
            ),
            Self::OtherTensors { tensors, first } => write!(
                f,
                "the importance matrix has {tensors} {} that the model does not have: {first}",
                many(*tensors)
            ),
        }
    }
}

/// A number of tensors and the first.
fn summary<T>(mut all: impl Iterator<Item = T>) -> Option<(usize, T)> {
    let first = all.next()?;
    Some((1 + all.count(), first))
}

/// What there is to say about tensors that were planned.
pub(super) fn notes(items: &[Item], imatrix: Option<&Imatrix>) -> Vec<QuantizeNote> {
    let mut notes = Vec::new();
    let mut pairs: Vec<(TensorType, TensorType)> = Vec::new();
    for item in items {
        let pair = (item.planned.wanted, item.planned.to);
        if pair.0 != pair.1 && !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    for (wanted, ttype) in pairs {
        let these = items.iter().filter(|item| (item.planned.wanted, item.planned.to) == (wanted, ttype));
        if let Some((tensors, first)) = summary(these) {
            let (first, cols) = (first.planned.name.clone(), first.tensor.cols() as u64);
            notes.push(QuantizeNote::Fallback { tensors, first, cols, wanted, ttype });
        }
    }
    let again = items.iter().filter(|item| item.planned.is_quantised() && item.planned.from.block_len() > 1);
    if let Some((tensors, first)) = summary(again) {
        let (first, from) = (first.planned.name.clone(), first.planned.from);
        notes.push(QuantizeNote::Requantised { tensors, first, from });
    }
    let Some(imatrix) = imatrix else { return notes };
    // Nothing goes into embeddings that are looked up.
    let quantised = || {
        let looked_up = |item: &&Item| item.planned.name.ends_with("token_embd.weight");
        items.iter().filter(|item| item.planned.is_quantised()).filter(move |item| !looked_up(item))
    };
    if let Some((tensors, first)) = summary(quantised().filter(|item| item.importance.is_none())) {
        notes.push(QuantizeNote::NoImportance { tensors, first: first.planned.name.clone() });
    }
    let uncounted = |item: &&Item| item.importance.is_some() && imatrix.uncounted(&item.planned.name).0 > 0;
    if let Some((tensors, first)) = summary(quantised().filter(uncounted)) {
        let first = first.planned.name.clone();
        let (experts, of) = imatrix.uncounted(&first);
        notes.push(QuantizeNote::Uncounted { tensors, first, experts, of });
    }
    let known = |name: &str| items.iter().any(|item| item.planned.name == name);
    if let Some((tensors, first)) = summary(imatrix.entries.keys().filter(|name| !known(name))) {
        notes.push(QuantizeNote::OtherTensors { tensors, first: first.clone() });
    }
    notes
}
