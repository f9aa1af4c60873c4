//! Which device computes: as a person asks for it, and what becomes of that.

use std::fmt;
use std::str::FromStr;

use crate::{BackendKind, ModelError};

/// A device, as a person asks for it: `cpu`, `cuda:0`, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The GPU with the most free memory, or the processor where there is none that can be used.
    Auto,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

/// What computes, and why it is not what might have been expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// What computes.
    pub backend: BackendKind,
    /// Why no GPU does where one would have been used.
    pub reason: Option<String>,
}

/// A GPU's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMemory {
    /// `cuda:0`.
    pub name: String,
    /// Bytes that nobody uses.
    pub free: u64,
}

impl Device {
    /// Looks for the device.
    ///
    /// # Errors
    /// Why the GPU that was asked for can't be used. `auto` has no errors: it gives the reason beside the processor.
    pub fn resolve(self) -> Result<Resolved, ModelError> {
        let cpu = |reason| Resolved { backend: BackendKind::Cpu, reason };
        match self {
            Self::Cpu => Ok(cpu(None)),
            Self::Auto => Ok(match best_gpu() {
                Ok(index) => Resolved { backend: BackendKind::Cuda(index), reason: None },
                Err(error) => cpu(Some(error.to_string())),
            }),
            Self::Cuda(index) => {
                let backend = BackendKind::Cuda(index);
                backend.memory().map(|_| Resolved { backend, reason: None })
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn best_gpu() -> Result<usize, ModelError> {
    let best = moli_cuda::devices()?.into_iter().max_by_key(|gpu| gpu.free_bytes);
    // There is one where there is no error.
    let index = best.map_or(0, |gpu| gpu.index);
    moli_cuda::usable(index)?;
    Ok(index)
}

#[cfg(not(feature = "cuda"))]
fn best_gpu() -> Result<usize, ModelError> {
    Err(ModelError::BackendNotBuilt { backend: "cuda", feature: "cuda" })
}

impl BackendKind {
    /// The memory of its device; `None`: it computes in the process's own.
    ///
    /// # Errors
    /// Why the GPU can't be used.
    pub fn memory(self) -> Result<Option<DeviceMemory>, ModelError> {
        match self {
            Self::Cpu | Self::Candle => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => {
                let info = moli_cuda::usable(index)?;
                Ok(Some(DeviceMemory { name: format!("cuda:{index}"), free: info.free_bytes }))
            }
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => Err(ModelError::BackendNotBuilt { backend: "cuda", feature: "cuda" }),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Auto => f.write_str("auto"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let unknown = || ModelError::UnknownDevice { name: name.to_owned() };
        match name.to_ascii_lowercase().as_str() {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, device) in
            [("cpu", Device::Cpu), ("AUTO", Device::Auto), ("cuda", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))]
        {
            assert_eq!(name.parse::<Device>().unwrap(), device);
        }
        for device in [Device::Cpu, Device::Auto, Device::Cuda(7)] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:99999999999999999999", "cuda 0"] {
            let error = name.parse::<Device>().unwrap_err();
            assert!(matches!(&error, ModelError::UnknownDevice { name: told } if told == name), "{error}");
        }
    }
}
