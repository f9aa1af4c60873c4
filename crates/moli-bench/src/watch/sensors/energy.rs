//! Energy: of a processor RAPL's counters or hwmon's, of a GPU NVML's, else the power of a board or a battery. One of them: they
//! measure different parts of a machine, and their sum is nothing.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[cfg(feature = "cuda")]
use super::gpu::Gpu;
use super::{Computes, Found, lost};
use crate::files::{name, names, number, numbered, text};

/// The most that a counter can rise in a second, watts: more is a counter that was set back.
const MOST_WATTS: f64 = 5e3;
/// Drivers that measure the power of a board or a server; others measure a graphics card or a disk.
const METERS: [&str; 9] =
    ["ina219", "ina220", "ina226", "ina230", "ina231", "ina233", "ina238", "ina3221", "power_meter"];

/// What measures energy.
pub(in crate::watch) struct Energy {
    meter: Meter,
    source: String,
    read_at: Instant,
}

enum Meter {
    /// Counters of microjoules.
    Counters(Vec<Counter>),
    /// Power, which is integrated: how it is read, and the last one in watts.
    Power(Power, f64),
    /// A GPU's counter of millijoules, and its last value.
    #[cfg(feature = "cuda")]
    Gpu(Gpu, u64),
}

struct Counter {
    path: PathBuf,
    /// The value behind which it begins again at 0.
    range: Option<u64>,
    last: u64,
}

enum Power {
    /// Microwatts.
    Watts(PathBuf),
    /// Millivolts times milliamperes.
    Hwmon { volts: PathBuf, amperes: PathBuf },
    /// A folder of a battery.
    Battery(PathBuf),
    /// A GPU that has no counter.
    #[cfg(feature = "cuda")]
    Gpu(Gpu),
}

impl Energy {
    pub(super) fn find(root: &Path, computes: &Computes) -> Found<Self> {
        // A board's and a battery's power is that of whatever computes there.
        let (board, battery) = (|| board(root), || battery(root));
        let searches: &[&dyn Fn() -> Search] = match computes {
            Computes::Processor => &[&|| rapl(root), &|| sockets(root), &board, &battery],
            #[cfg(feature = "cuda")]
            Computes::Gpu { pci_bus_id } => &[&|| gpu(pci_bus_id), &board, &battery],
        };
        let mut reasons = Vec::new();
        for search in searches {
            match search() {
                Ok((meter, source)) => return Ok(Self { meter, source, read_at: Instant::now() }),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.join("; "))
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Joules since the last call.
    pub(in crate::watch) fn read(&mut self, now: Instant) -> Found<f64> {
        let seconds = now.saturating_duration_since(self.read_at).as_secs_f64();
        self.read_at = now;
        match &mut self.meter {
            Meter::Counters(counters) => {
                counters.iter_mut().try_fold(0.0, |sum, counter| Ok(sum + counter.read(seconds)?))
            }
            Meter::Power(power, last) => {
                let watts = power.read()?;
                let before = std::mem::replace(last, watts);
                Ok((before + watts) / 2.0 * seconds)
            }
            #[cfg(feature = "cuda")]
            Meter::Gpu(gpu, last) => {
                let now = gpu.millijoules()?;
                let more = now.checked_sub(std::mem::replace(last, now)).map(|more| more as f64 / 1e3);
                more.filter(|&joules| plausible(joules, seconds))
                    .ok_or_else(|| format!("NVML says {now} mJ, which is impossible"))
            }
        }
    }
}

/// Whether a counter can rise so far. Counters move in steps: even in no time a step's worth is possible.
fn plausible(joules: f64, seconds: f64) -> bool {
    joules <= MOST_WATTS * (seconds + 0.1)
}

impl Counter {
    fn new(path: PathBuf, range: Option<u64>) -> Option<Self> {
        Some(Self { last: number(&path)?, range, path })
    }

    /// Joules since the last call.
    fn read(&mut self, seconds: f64) -> Found<f64> {
        let now: Option<u64> = number(&self.path);
        let more = now.and_then(|now| match now.checked_sub(self.last) {
            Some(more) => Some(more),
            None => self.range?.checked_sub(self.last)?.checked_add(now),
        });
        let joules = more.map(|more| more as f64 / 1e6).filter(|&joules| plausible(joules, seconds));
        self.last = now.unwrap_or_default();
        joules.ok_or_else(|| lost(&self.path, now))
    }
}

impl Power {
    /// Watts, now.
    fn read(&self) -> Found<f64> {
        let checked = |watts: Option<f64>, path: &Path| {
            watts.filter(|watts| (0.0..MOST_WATTS).contains(watts)).ok_or_else(|| lost(path, watts))
        };
        match self {
            Self::Watts(path) => checked(number::<i64>(path).map(|micro| micro as f64 / 1e6), path),
            Self::Hwmon { volts, amperes } => {
                let milli = |path| number::<i64>(path).map(|milli| milli as f64 / 1e3);
                checked(milli(volts).zip(milli(amperes)).map(|(volts, amperes)| volts * amperes), amperes)
            }
            Self::Battery(folder) => {
                let status = name(&folder.join("status")).unwrap_or_default();
                if status != "Discharging" {
                    return Err(format!("the battery is not discharging ({status})"));
                }
                // Some drivers have a sign for the direction.
                let micro =
                    |file: &str| number::<i64>(&folder.join(file)).map(|n| n.unsigned_abs() as f64 / 1e6);
                let watts = micro("power_now")
                    .or_else(|| Some(micro("current_now")? * micro("voltage_now")?))
                    // Drivers that can't measure it say 0.
                    .filter(|&watts| watts > 0.0);
                checked(watts, folder)
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => gpu.watts(),
        }
    }
}

type Search = Found<(Meter, String)>;

/// Packages, and their memory, which isn't part of them.
fn rapl(root: &Path) -> Search {
    let folder = root.join("sys/class/powercap");
    let mut counters = Vec::new();
    let mut names = Vec::new();
    for (_, package) in numbered(&folder, "intel-rapl:") {
        let zones = numbered(&folder, &format!("{package}:")).into_iter().map(|(_, zone)| zone);
        for (inside, zone) in [(false, package.clone())].into_iter().chain(zones.map(|zone| (true, zone))) {
            let path = folder.join(&zone).join("energy_uj");
            let name = name(&folder.join(&zone).join("name")).unwrap_or_default();
            // What a package says of its own parts is in its own number already; `psys` is the whole platform.
            let wanted = if inside { name == "dram" } else { name.starts_with("package") };
            if !wanted {
                continue;
            }
            if File::open(&path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
                return Err(format!("RAPL is for root only ({})", path.display()));
            }
            let range = number(&folder.join(&zone).join("max_energy_range_uj"));
            let Some(counter) = Counter::new(path.clone(), range) else {
                return Err(format!("RAPL has no number in {}", path.display()));
            };
            counters.push(counter);
            names.push(name);
        }
    }
    if counters.is_empty() {
        return Err("there is no RAPL".to_owned());
    }
    Ok((Meter::Counters(counters), format!("RAPL: {}", names.join(", "))))
}

/// A GPU's own counter, or its power.
#[cfg(feature = "cuda")]
fn gpu(pci_bus_id: &str) -> Search {
    let gpu = Gpu::find(pci_bus_id)?;
    let source = format!("NVML: the GPU at {pci_bus_id}");
    match gpu.millijoules() {
        Ok(now) => Ok((Meter::Gpu(gpu, now), source)),
        Err(_) => {
            let watts = gpu.watts()?;
            Ok((Meter::Power(Power::Gpu(gpu), watts), source))
        }
    }
}

/// The meter of a board: of several rails that which all others come from.
fn board(root: &Path) -> Search {
    let folder = root.join("sys/class/hwmon");
    let mut reason = "no power sensor of hwmon".to_owned();
    for (_, device) in numbered(&folder, "hwmon") {
        let device = folder.join(device);
        let driver = name(&device.join("name")).unwrap_or_default();
        if !METERS.contains(&driver.as_str()) {
            continue;
        }
        let rails: Vec<_> = (1..=8).filter_map(|rail| Some((rail, power(&device, rail)?))).collect();
        let label = |rail: u32| {
            let labels =
                [format!("power{rail}_label"), format!("in{rail}_label"), format!("curr{rail}_label")];
            labels.iter().find_map(|file| name(&device.join(file))).unwrap_or_default()
        };
        let several = rails.len() > 1;
        let chosen = rails.into_iter().find(|&(rail, _)| !several || is_input(&label(rail)));
        match chosen {
            Some((rail, power)) => {
                let watts = power.read()?;
                let source = format!("{driver} of hwmon {}", label(rail));
                return Ok((Meter::Power(power, watts), source.trim_end().to_owned()));
            }
            None => reason = format!("of the rails of {driver} none says that it is the input"),
        }
    }
    Err(reason)
}

/// Whether a rail's name is that of a board's input (`VDD_IN`, `POM_5V_IN`).
fn is_input(label: &str) -> bool {
    label.split(['_', ' ']).any(|part| part.eq_ignore_ascii_case("in"))
}

/// The counters of AMD's sockets; those of the cores are part of them.
fn sockets(root: &Path) -> Search {
    let folder = root.join("sys/class/hwmon");
    let is_it = |device: &PathBuf| name(&device.join("name")).as_deref() == Some("amd_energy");
    let devices = numbered(&folder, "hwmon").into_iter().map(|(_, device)| folder.join(device));
    let counters: Vec<_> = devices.filter(is_it).filter_map(|device| of_sockets(&device)).flatten().collect();
    match counters.is_empty() {
        true => Err("no amd_energy".to_owned()),
        false => Ok((Meter::Counters(counters), "amd_energy of hwmon".to_owned())),
    }
}

/// `None` where one of them has no number.
fn of_sockets(device: &Path) -> Option<Vec<Counter>> {
    let label = |file: &str| text(&device.join(format!("{file}_label"))).unwrap_or_default();
    let files = names(device).into_iter().filter_map(|file| Some(file.strip_suffix("_label")?.to_owned()));
    let files = files.filter(|file| file.starts_with("energy") && label(file).starts_with("Esocket"));
    files.map(|file| Counter::new(device.join(format!("{file}_input")), None)).collect()
}

/// How the power of a rail is read, where it can be.
fn power(device: &Path, rail: u32) -> Option<Power> {
    let file = |name: String| device.join(name);
    let watts = [format!("power{rail}_input"), format!("power{rail}_average")].map(file).map(Power::Watts);
    let product =
        Power::Hwmon { volts: file(format!("in{rail}_input")), amperes: file(format!("curr{rail}_input")) };
    watts.into_iter().chain([product]).find(|power| power.read().is_ok())
}

fn battery(root: &Path) -> Search {
    let folder = root.join("sys/class/power_supply");
    let supplies = names(&folder).into_iter().map(|name| folder.join(name));
    let batteries: Vec<_> = supplies
        .filter(|path| name(&path.join("type")).as_deref() == Some("Battery"))
        // A mouse has a battery too.
        .filter(|path| name(&path.join("scope")).as_deref() != Some("Device"))
        .collect();
    match batteries.as_slice() {
        [] => Err("no battery".to_owned()),
        [one] => {
            let power = Power::Battery(one.clone());
            let watts = power.read()?;
            Ok((Meter::Power(power, watts), "the battery: the whole device".to_owned()))
        }
        _ => Err("several batteries".to_owned()),
    }
}
