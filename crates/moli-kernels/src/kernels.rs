//! The table of functions for one instruction set.

use crate::float::FloatOps;
use crate::matmul::MatmulTable;
use crate::{Isa, KernelError};

/// The kernels of one instruction set, picked once.
///
/// All of them give the same bits; see the crate's documentation.
pub struct Kernels {
    isa: Isa,
    pub(crate) float: FloatOps,
    pub(crate) matmul: MatmulTable,
}

impl Kernels {
    /// The kernels for `isa`.
    ///
    /// # Errors
    /// [`KernelError::UnsupportedIsa`] if this processor does not have it.
    pub fn new(isa: Isa) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::UnsupportedIsa { isa });
        }
        Ok(Self { isa, float: FloatOps::new(isa), matmul: MatmulTable::new(isa) })
    }

    /// The instruction set that these kernels use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish_non_exhaustive()
    }
}
