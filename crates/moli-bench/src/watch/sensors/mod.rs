//! Where the system measures itself. Each sensor is looked for once, and read until it fails.

mod energy;
mod frequency;
#[cfg(feature = "cuda")]
mod gpu;
mod temperature;
mod throttling;

use std::path::Path;

pub(super) use energy::Energy;
pub(super) use frequency::Frequency;
pub(super) use temperature::Temperature;
pub(super) use throttling::Throttling;
pub use throttling::throttled_since_boot;

use super::Computes;
use crate::report::{self, Readable};

/// What measures something; `Err`: why nothing does, in words.
pub(super) type Found<T> = Result<T, String>;

/// All that the conditions of a run are read from.
pub(super) struct Sensors {
    pub(super) frequency: Found<Frequency>,
    pub(super) temperature: Found<Temperature>,
    pub(super) energy: Found<Energy>,
    pub(super) throttling: Found<Throttling>,
}

impl Sensors {
    /// Looks for those of the machine under `root`, for these processors and what computes.
    pub(super) fn find(root: &Path, cpus: &[u32], computes: &Computes) -> Self {
        Self {
            frequency: Frequency::find(root, cpus),
            temperature: Temperature::find(root, computes),
            energy: Energy::find(root, computes),
            throttling: Throttling::find(root, cpus),
        }
    }

    /// Where each is read, in words.
    pub(super) fn describe(&self) -> report::Sensors {
        fn readable<T>(found: &Found<T>, source: impl Fn(&T) -> &str) -> Readable {
            match found {
                Ok(sensor) => Readable::From(source(sensor).to_owned()),
                Err(reason) => Readable::Not(reason.clone()),
            }
        }
        report::Sensors {
            frequency: readable(&self.frequency, Frequency::source),
            temperature: readable(&self.temperature, Temperature::source),
            energy: readable(&self.energy, Energy::source),
            throttling: readable(&self.throttling, Throttling::source),
        }
    }
}

/// Why a sensor can't be read any more: its file, and what was wrong with it.
fn lost(path: &Path, found: Option<impl std::fmt::Display>) -> String {
    match found {
        Some(value) => format!("{} says {value}", path.display()),
        None => format!("{} has no number any more", path.display()),
    }
}
