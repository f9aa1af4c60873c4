//! What can go wrong with a GPU.

use moli_format::TensorType;

/// Why a GPU can't be used, or an operation on one failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver.
    #[error("no NVIDIA driver: {reason}")]
    NoDriver {
        /// What was looked for, or what the library that was found lacks.
        reason: String,
    },
    /// There is a driver, and it has no device for us.
    #[error("no GPU: the NVIDIA driver says {code} ({message})")]
    NoDevice {
        /// The driver's name for the error.
        code: String,
        /// What it says about it.
        message: String,
    },
    /// A device that does not exist.
    #[error("there is no cuda:{index}: this machine has {count} GPU{}, from cuda:0 on", if *count == 1 { "" } else { "s" })]
    DeviceIndex {
        /// What was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A device older than what the kernels are made for.
    #[error("{name} has compute capability {}.{}, and Moli's kernels need {}.{}", found.0, found.1, needed.0, needed.1)]
    Capability {
        /// The device.
        name: String,
        /// What it has.
        found: (i32, i32),
        /// What is needed.
        needed: (i32, i32),
    },
    /// A driver older than the kernels' PTX.
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, and Moli's kernels need {}.{}: update the driver",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    DriverTooOld {
        /// The CUDA version of the driver: 1000 times the major one plus 10 times the minor one.
        found: i32,
        /// What is needed.
        needed: i32,
    },
    /// Memory that the device does not have.
    #[error("{what} needs {wanted} bytes of the GPU's memory, of which {free} are free")]
    OutOfMemory {
        /// What it is for.
        what: &'static str,
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A tensor type without kernels.
    #[error("{} matrices can't be computed on a GPU", ttype.name())]
    UnsupportedType {
        /// The type.
        ttype: TensorType,
    },
    /// Heads wider than the attention kernels take.
    #[error("heads of {head_dim} elements are wider than the {widest} that attention on a GPU takes")]
    HeadTooWide {
        /// What the model has.
        head_dim: usize,
        /// What is possible.
        widest: usize,
    },
    /// Shapes that don't fit each other.
    #[error("{what}: expected {expected}, got {actual}")]
    Shape {
        /// What was measured.
        what: &'static str,
        /// What the other arguments imply.
        expected: usize,
        /// What was given.
        actual: usize,
    },
    /// What the driver reports of an operation.
    #[error("{what} failed on the GPU: {code} ({message})")]
    Driver {
        /// What was being done.
        what: &'static str,
        /// The driver's name for the error.
        code: String,
        /// What it says about it.
        message: String,
    },
}

/// Refuses what is not as expected.
pub(crate) fn same(what: &'static str, expected: usize, actual: usize) -> Result<(), CudaError> {
    if expected == actual { Ok(()) } else { Err(CudaError::Shape { what, expected, actual }) }
}
