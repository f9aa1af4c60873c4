//! What a GPU measures itself, through NVIDIA's management library (NVML), which comes with the driver.

use std::sync::OnceLock;

use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::Found;

/// As drivers install it; the name without a number comes with packages for developers.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// A GPU that can be asked.
pub(super) struct Gpu(Device<'static>);

impl Gpu {
    /// The GPU at this place of the PCI bus, as the CUDA driver spells it.
    pub(super) fn find(pci_bus_id: &str) -> Found<Self> {
        library()?.device_by_pci_bus_id(pci_bus_id).map(Self).map_err(words)
    }

    /// °C.
    pub(super) fn temperature(&self) -> Found<f64> {
        self.0.temperature(TemperatureSensor::Gpu).map(f64::from).map_err(words)
    }

    /// Millijoules since the driver was loaded; GPUs since Volta count them.
    pub(super) fn millijoules(&self) -> Found<u64> {
        self.0.total_energy_consumption().map_err(words)
    }

    /// Watts, now.
    pub(super) fn watts(&self) -> Found<f64> {
        self.0.power_usage().map(|milliwatts| f64::from(milliwatts) / 1e3).map_err(words)
    }
}

/// The library, opened once: a run asks for a sensor at each repetition.
fn library() -> Found<&'static Nvml> {
    static LOADED: OnceLock<Found<Nvml>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| Nvml::builder().lib_path(LIBRARY.as_ref()).init().map_err(words));
    loaded.as_ref().map_err(Clone::clone)
}

fn words(error: NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) => format!("there is no {LIBRARY} (NVML)"),
        error => format!("NVML: {error}"),
    }
}
