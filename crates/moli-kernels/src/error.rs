//! What can be wrong with what a kernel is given.

use moli_format::TensorType;

use crate::Isa;

/// An argument that a kernel can't work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice, a count or a dimension that does not fit the others.
    #[error("{what}: expected {expected}, got {actual}")]
    Length {
        /// What was measured.
        what: &'static str,
        /// What the other arguments imply.
        expected: usize,
        /// What was given.
        actual: usize,
    },
    /// A number above what the buffers were made for, or below what an operation needs.
    #[error("{what}: {actual} is beyond the limit of {limit}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The limit.
        limit: usize,
        /// What was given.
        actual: usize,
    },
    /// A row that is not a whole number of blocks.
    #[error("{cols} columns are not whole blocks of {ttype}, which hold {block} elements")]
    PartialBlock {
        /// The type of the matrix.
        ttype: TensorType,
        /// Elements of a block.
        block: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// Dimensions whose product is beyond the address space.
    #[error("{rows} rows of {cols} columns are more than this machine can address")]
    TooLarge {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// A tensor type without kernels.
    #[error("there is no kernel for the tensor type {ttype}")]
    UnsupportedType {
        /// The type.
        ttype: TensorType,
    },
    /// A tensor type whose blocks are read, but not made here.
    #[error("there is no quantiser for the tensor type {ttype}")]
    NoQuantizer {
        /// The type.
        ttype: TensorType,
    },
    /// A value to be quantised that is infinite or no number.
    #[error("the value at {index} is not finite")]
    NotFinite {
        /// Its position among those given.
        index: usize,
    },
    /// An importance below 0, infinite or no number.
    #[error("the importance of column {column} is negative or not finite")]
    Importance {
        /// The column.
        column: usize,
    },
    /// An instruction set that this processor does not have.
    #[error("this processor does not have the instruction set {isa}")]
    UnsupportedIsa {
        /// The instruction set.
        isa: Isa,
    },
    /// Activations that were not quantised for the type of the matrix: call
    /// [`Activations::set`](crate::Activations::set) first.
    #[error("the activations are not prepared for the tensor type {ttype}")]
    NotPrepared {
        /// The type of the matrix.
        ttype: TensorType,
    },
}
