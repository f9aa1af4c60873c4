//! Importance matrices: how much each column of a tensor matters, from what went into it when a model read texts.
//!
//! The file is the GGUF that llama.cpp's `llama-imatrix` writes: for each tensor the sums of the squares of its inputs by
//! column (`NAME.in_sum2`) and how many inputs were added up (`NAME.counts`), both once for each expert.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moli_format::{Gguf, GgufWriter, ReadMode, Tensor, TensorType};

use crate::{ConvertError, Output};

const TYPE: &str = "general.type";
const IMATRIX: &str = "imatrix";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// What went into a model's tensors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imatrix {
    /// The texts, by the names of their files.
    pub datasets: Vec<String>,
    /// Chunks of text that were read.
    pub chunk_count: u32,
    /// Tokens of a chunk.
    pub chunk_size: u32,
    /// By the names of the model's tensors.
    pub entries: BTreeMap<String, ImatrixEntry>,
}

/// What went into one tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImatrixEntry {
    /// Sums of squares, `[experts][cols]`; one expert where there are none.
    pub in_sum2: Vec<f32>,
    /// Inputs that were added up, of each expert.
    pub counts: Vec<f32>,
}

/// What can be wrong with an importance matrix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImatrixError {
    /// The file is some other GGUF.
    #[error("this is no importance matrix: {TYPE} is {}", found.as_deref().unwrap_or("absent"))]
    NotImatrix {
        /// `general.type`.
        found: Option<String>,
    },
    /// Nothing is in it.
    #[error("the importance matrix is empty")]
    Empty,
    /// A tensor that no importance matrix has.
    #[error("tensor {tensor} ends in neither {SUMS} nor {COUNTS}")]
    UnknownTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor that is not of floats.
    #[error("tensor {tensor} is {ttype}, expected F32")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Its type.
        ttype: TensorType,
    },
    /// Sums without counts, or counts without sums.
    #[error("tensor {tensor} is missing")]
    MissingTensor {
        /// The tensor that should be there.
        tensor: String,
    },
    /// Sums that can't be shared out among the experts that were counted.
    #[error("{tensor} has {sums} sums and {counts} counts, which should divide them")]
    Shape {
        /// The model's tensor.
        tensor: String,
        /// Number of sums.
        sums: usize,
        /// Number of counts.
        counts: usize,
    },
    /// A sum or count that is negative, infinite or not a number.
    #[error("{tensor} holds {value}, expected a finite number that is not negative")]
    Value {
        /// The tensor.
        tensor: String,
        /// The value.
        value: f32,
    },
    /// It was made of another model.
    #[error("the importance matrix has none of the model's tensors; its first is {first}")]
    OtherModel {
        /// Its first tensor.
        first: String,
    },
    /// A tensor of another shape than the model's.
    #[error("the importance matrix has {actual} values for {tensor}, expected {expected}")]
    Columns {
        /// The tensor.
        tensor: String,
        /// Columns of the model's tensor, times its experts.
        expected: usize,
        /// Values that there are.
        actual: usize,
    },
}

impl Imatrix {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConvertError::Imatrix`] for everything that can be wrong with it.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        let gguf = Gguf::open(path, ReadMode::Map)?;
        let about = |source| ConvertError::Imatrix { path: PathBuf::from(path), source };
        let found = gguf.metadata().str_opt(TYPE)?;
        if found != Some(IMATRIX) {
            return Err(about(ImatrixError::NotImatrix { found: found.map(str::to_owned) }));
        }
        let mut entries = BTreeMap::new();
        for tensor in gguf.tensors() {
            let missing = |name: String| about(ImatrixError::MissingTensor { tensor: name });
            if let Some(name) = tensor.name.strip_suffix(SUMS) {
                let counts = format!("{name}{COUNTS}");
                let counts = gguf.tensor(&counts).ok_or_else(|| missing(counts))?;
                entries.insert(name.to_owned(), ImatrixEntry::of(name, tensor, counts).map_err(about)?);
            } else if let Some(name) = tensor.name.strip_suffix(COUNTS) {
                let sums = format!("{name}{SUMS}");
                gguf.tensor(&sums).ok_or_else(|| missing(sums))?;
            } else {
                return Err(about(ImatrixError::UnknownTensor { tensor: tensor.name.clone() }));
            }
        }
        if entries.is_empty() {
            return Err(about(ImatrixError::Empty));
        }
        let datasets = gguf.metadata().strings_opt(DATASETS)?;
        Ok(Self {
            datasets: datasets.map(|names| names.iter().map(str::to_owned).collect()).unwrap_or_default(),
            chunk_count: gguf.metadata().u32_opt(CHUNK_COUNT)?.unwrap_or(0),
            chunk_size: gguf.metadata().u32_opt(CHUNK_SIZE)?.unwrap_or(0),
            entries,
        })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// As for [`Output::write`].
    pub fn write(&self, output: &Output) -> Result<(), ConvertError> {
        let mut file = GgufWriter::new();
        file.meta(TYPE, IMATRIX);
        file.meta(DATASETS, self.datasets.as_slice());
        file.meta(CHUNK_COUNT, self.chunk_count).meta(CHUNK_SIZE, self.chunk_size);
        for (name, entry) in &self.entries {
            let experts = entry.counts.len();
            let cols = entry.in_sum2.len() / experts.max(1);
            let dims = |cols: usize| vec![cols as u64, experts as u64];
            file.tensor(format!("{name}{SUMS}"), TensorType::F32, dims(cols), bytes_of(&entry.in_sum2));
            file.tensor(format!("{name}{COUNTS}"), TensorType::F32, dims(1), bytes_of(&entry.counts));
        }
        output.write(&file)
    }

    /// How much each column of a tensor matters, `[experts][cols]`: the mean square of what went into it. `None` for a tensor
    /// that is not here. An expert that nothing went into weighs all its columns the same.
    pub fn importance(&self, tensor: &str) -> Option<Vec<f32>> {
        let ImatrixEntry { in_sum2, counts } = self.entries.get(tensor)?;
        let cols = in_sum2.len() / counts.len().max(1);
        let experts = in_sum2.chunks_exact(cols.max(1)).zip(counts);
        let mean = |sum: &f32, count: f32| if count > 0.0 { sum / count } else { 1.0 };
        Some(experts.flat_map(|(sums, &count)| sums.iter().map(move |sum| mean(sum, count))).collect())
    }

    /// Experts of a tensor that nothing went into, and all of its experts; 0 of 0 for a tensor that is not here.
    pub fn uncounted(&self, tensor: &str) -> (usize, usize) {
        let counts = self.entries.get(tensor).map_or(&[][..], |entry| &entry.counts);
        (counts.iter().filter(|&&count| count == 0.0).count(), counts.len())
    }
}

impl ImatrixEntry {
    fn of(name: &str, sums: &Tensor, counts: &Tensor) -> Result<Self, ImatrixError> {
        let entry = Self { in_sum2: floats_of(sums)?, counts: floats_of(counts)? };
        let (sums, counts) = (entry.in_sum2.len(), entry.counts.len());
        // A tensor that was read has no dimension of zero.
        if counts == 0 || !sums.is_multiple_of(counts) {
            return Err(ImatrixError::Shape { tensor: name.to_owned(), sums, counts });
        }
        Ok(entry)
    }
}

fn floats_of(tensor: &Tensor) -> Result<Vec<f32>, ImatrixError> {
    let name = || tensor.name.clone();
    if tensor.ttype != TensorType::F32 {
        return Err(ImatrixError::TensorType { tensor: name(), ttype: tensor.ttype });
    }
    let values: Vec<f32> = tensor.data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    match values.iter().find(|value| !value.is_finite() || **value < 0.0) {
        Some(&value) => Err(ImatrixError::Value { tensor: name(), value }),
        None => Ok(values),
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Imatrix {
        let dense = ImatrixEntry { in_sum2: vec![2.0, 4.0, 6.0], counts: vec![2.0] };
        let experts = ImatrixEntry { in_sum2: vec![8.0, 4.0, 0.0, 0.0], counts: vec![4.0, 0.0] };
        Imatrix {
            datasets: vec!["a.txt".into(), "b.txt".into()],
            chunk_count: 3,
            chunk_size: 512,
            entries: [("dense".into(), dense), ("experts".into(), experts)].into(),
        }
    }

    fn opened(change: impl FnOnce(&mut GgufWriter)) -> Result<Imatrix, ConvertError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix.gguf");
        let mut file = GgufWriter::new();
        change(&mut file);
        file.write_file(&path).unwrap();
        Imatrix::open(&path)
    }

    fn refused(change: impl FnOnce(&mut GgufWriter)) -> String {
        opened(change).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix.gguf");
        some().write(&Output::new(&path, &[], false).unwrap()).unwrap();
        assert_eq!(Imatrix::open(&path).unwrap(), some());
        let gguf = Gguf::open(&path, ReadMode::Map).unwrap();
        assert_eq!(gguf.tensor("experts.in_sum2").unwrap().dims, [2, 2]);
        assert_eq!(gguf.tensor("experts.counts").unwrap().dims, [1, 2]);
    }

    #[test]
    fn importance_is_the_mean_square_and_even_where_nothing_was_counted() {
        let imatrix = some();
        assert_eq!(imatrix.importance("dense").unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(imatrix.importance("experts").unwrap(), [2.0, 1.0, 1.0, 1.0]);
        assert_eq!(imatrix.importance("other"), None);
        assert_eq!(imatrix.uncounted("experts"), (1, 2));
        assert_eq!(imatrix.uncounted("dense"), (0, 1));
    }

    #[test]
    fn what_is_no_importance_matrix_is_refused_by_name() {
        let floats = |file: &mut GgufWriter, name: &str, values: &[f32]| {
            file.tensor(name, TensorType::F32, [values.len() as u64], bytes_of(values));
        };
        let model = refused(|file| {
            file.meta(TYPE, "model");
        });
        assert!(model.contains("general.type is model"), "{model}");
        assert!(refused(|_| ()).contains("general.type is absent"));
        let imatrix = |change: &dyn Fn(&mut GgufWriter)| {
            refused(|file| {
                file.meta(TYPE, IMATRIX);
                change(file);
            })
        };
        assert!(imatrix(&|_| ()).contains("is empty"));
        let missing = imatrix(&|file| floats(file, "a.in_sum2", &[1.0]));
        assert!(missing.contains("tensor a.counts is missing"), "{missing}");
        let missing = imatrix(&|file| floats(file, "a.counts", &[1.0]));
        assert!(missing.contains("tensor a.in_sum2 is missing"), "{missing}");
        let unknown = imatrix(&|file| floats(file, "a.weight", &[1.0]));
        assert!(unknown.contains("tensor a.weight ends in neither"), "{unknown}");
        let pair = |sums: &[f32], counts: &[f32]| {
            imatrix(&|file| {
                floats(file, "a.in_sum2", sums);
                floats(file, "a.counts", counts);
            })
        };
        assert!(pair(&[1.0; 3], &[1.0; 2]).contains("3 sums and 2 counts"));
        for value in [f32::NAN, f32::INFINITY, -1.0] {
            let error = pair(&[1.0, value], &[1.0]);
            assert!(error.contains(&format!("a.in_sum2 holds {value}")), "{error}");
        }
        let halves = imatrix(&|file| {
            file.tensor("a.in_sum2", TensorType::F16, [1], &[0; 2]);
            floats(file, "a.counts", &[1.0]);
        });
        assert!(halves.contains("a.in_sum2 is F16, expected F32"), "{halves}");
    }
}
