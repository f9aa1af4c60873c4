//! Stub.
use crate::report::Limits;

/// Measures.
#[derive(Debug)]
pub struct Meter(usize);

/// A sample.
#[derive(Debug, Clone, Copy)]
pub struct Sample;

impl Meter {
    /// For so many threads.
    ///
    /// # Errors
    /// Never.
    pub fn new(threads: usize) -> Result<Self, std::io::Error> {
        Ok(Self(threads))
    }

    /// Measures once.
    pub fn measure(&mut self) -> Sample {
        let _ = self.0;
        Sample
    }
}

impl Limits {
    /// Medians.
    pub fn of(threads: usize, _: &[Sample]) -> Self {
        Self {
            threads,
            read_bytes_per_second: 3e10,
            int8_macs_per_second: Some(4e11),
            f32_macs_per_second: 1e11,
        }
    }
}
