//! Temperatures: thermal zones and hwmon; of a GPU NVML.

use std::path::{Path, PathBuf};

#[cfg(feature = "cuda")]
use super::gpu::Gpu;
use super::{Computes, Found, lost};
use crate::files::{name, names, number, numbered};

/// What the name of a processor's sensor contains: of the kernel's drivers and of device trees.
const PROCESSOR: [&str; 11] =
    ["cpu", "pkg", "soc", "core", "package", "k10temp", "zenpower", "big", "little", "tctl", "bigcore"];
/// What the names of sensors contain that say nothing about the processor or the board.
const OTHERS: [&str; 8] = ["wifi", "wlan", "battery", "nvme", "drivetemp", "gpu", "modem", "charger"];

/// The sensors of the processor or of the GPU, whichever computes; where there are none, the board's.
pub(in crate::watch) struct Temperature {
    sensors: Sensors,
    source: String,
}

enum Sensors {
    Files(Vec<PathBuf>),
    #[cfg(feature = "cuda")]
    Gpu(Gpu),
}

impl Temperature {
    pub(super) fn find(root: &Path, computes: &Computes) -> Found<Self> {
        match computes {
            Computes::Processor => Self::of_processor(root),
            #[cfg(feature = "cuda")]
            Computes::Gpu { pci_bus_id } => {
                let gpu = Gpu::find(pci_bus_id)?;
                gpu.temperature()?;
                Ok(Self { sensors: Sensors::Gpu(gpu), source: format!("NVML: the GPU at {pci_bus_id}") })
            }
        }
    }

    fn of_processor(root: &Path) -> Found<Self> {
        let mut sensors = zones(&root.join("sys/class/thermal"));
        sensors.extend(hwmon(&root.join("sys/class/hwmon")));
        sensors.retain(|(path, _)| read(path).is_ok());
        let is_of = |name: &str, parts: &[&str]| {
            let name = name.to_lowercase();
            parts.iter().any(|part| name.contains(part))
        };
        sensors.retain(|(_, name)| !is_of(name, &OTHERS));
        if sensors.iter().any(|(_, name)| is_of(name, &PROCESSOR)) {
            sensors.retain(|(_, name)| is_of(name, &PROCESSOR));
        }
        if sensors.is_empty() {
            return Err(
                "there is no thermal zone and no hwmon sensor of the processor or the board".to_owned()
            );
        }
        let (files, mut names): (_, Vec<_>) = sensors.into_iter().unzip();
        names.dedup();
        Ok(Self { sensors: Sensors::Files(files), source: names.join(", ") })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The highest now, °C.
    pub(in crate::watch) fn read(&self) -> Found<f64> {
        let all = |most: f64, next: Found<f64>| Ok(most.max(next?));
        match &self.sensors {
            Sensors::Files(files) => files.iter().map(|path| read(path)).try_fold(f64::NEG_INFINITY, all),
            #[cfg(feature = "cuda")]
            Sensors::Gpu(gpu) => gpu.temperature(),
        }
    }
}

/// A file's temperature, °C.
fn read(path: &Path) -> Found<f64> {
    // Thousandths of a degree; some drivers say 0 where they can't measure.
    let milli: Option<i64> = number(path);
    let degrees = milli.filter(|&milli| milli != 0).map(|milli| milli as f64 / 1e3);
    degrees.filter(|degrees| (-40.0..150.0).contains(degrees)).ok_or_else(|| lost(path, milli))
}

/// The thermal zones with their names.
fn zones(folder: &Path) -> Vec<(PathBuf, String)> {
    let zones = numbered(folder, "thermal_zone").into_iter();
    zones
        .map(|(_, zone)| {
            let kind = name(&folder.join(&zone).join("type"));
            (folder.join(&zone).join("temp"), kind.unwrap_or(zone))
        })
        .collect()
}

/// The temperatures of hwmon with their drivers' names.
fn hwmon(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut sensors = Vec::new();
    for (_, device) in numbered(folder, "hwmon") {
        let device = folder.join(device);
        let driver = name(&device.join("name")).unwrap_or_default();
        let files =
            names(&device).into_iter().filter(|name| name.starts_with("temp") && name.ends_with("_input"));
        sensors.extend(files.map(|file| (device.join(file), driver.clone())));
    }
    sensors
}
