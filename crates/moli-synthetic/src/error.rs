//! What can be wrong with a model that is asked for.

use moli_format::FormatError;
use moli_kernels::KernelError;

/// A model that can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyntheticError {
    /// What was asked for has no `:MIXTURE` behind it.
    #[error(
        "{asked:?} names no mixture: write it as SHAPE:MIXTURE, such as qwen2.5-7b:q4_k_m. \
         Shapes: {shapes}, or the path of a config.json. Mixtures: {mixtures}"
    )]
    NoMixture {
        /// What was asked for.
        asked: String,
        /// The shapes that there are.
        shapes: String,
        /// The mixtures that there are.
        mixtures: String,
    },
    /// A shape that is not known.
    #[error("no shape {shape:?}: there are {known}, or the path of a config.json")]
    UnknownShape {
        /// What was asked for.
        shape: String,
        /// Those that there are.
        known: String,
    },
    /// A mixture that is not known.
    #[error("no mixture {mixture:?}: there are {known}")]
    UnknownMixture {
        /// What was asked for.
        mixture: String,
        /// Those that there are.
        known: String,
    },
    /// A `config.json` of an architecture whose tensors are not made.
    #[error("no synthetic model of architecture {architecture}: there are {known}")]
    UnknownArchitecture {
        /// As `general.architecture` spells it.
        architecture: String,
        /// Those that there are.
        known: String,
    },
    /// A dimension beyond all models.
    #[error("{key} is {value}, and may be from {least} to {most}")]
    OutOfRange {
        /// The dimension, as the key of the metadata.
        key: String,
        /// What the configuration has.
        value: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// The model does not fit in memory.
    #[error("there is no memory for {bytes} bytes of weights")]
    OutOfMemory {
        /// Bytes of the whole model.
        bytes: u64,
    },
    /// The configuration can't be read, or the model can't be written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The weights can't be made.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
