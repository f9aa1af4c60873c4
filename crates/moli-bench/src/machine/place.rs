//! What is around the processors: the board, the system, a virtual machine or container, and the limits of control groups.

use std::path::{Path, PathBuf};

use moli_engine::ControlGroup;

use crate::files::{clean, name, number, text};

/// What boards say that were never told their name.
const PLACEHOLDERS: [&str; 6] =
    ["to be filled", "system product name", "default string", "not specified", "none", "o.e.m."];

/// What the board says it is.
pub(super) fn board(root: &Path) -> Option<String> {
    if let Some(model) = name(&root.join("proc/device-tree/model")) {
        return Some(model);
    }
    let product = dmi(root, ["sys_vendor", "product_name"]);
    product.or_else(|| dmi(root, ["board_vendor", "board_name"]))
}

/// A maker and what it made; nothing where the latter is not known.
fn dmi(root: &Path, [maker, product]: [&str; 2]) -> Option<String> {
    let read = |file: &str| {
        let said = name(&root.join("sys/class/dmi/id").join(file))?;
        let plain = said.to_lowercase();
        (!PLACEHOLDERS.iter().any(|placeholder| plain.contains(placeholder))).then_some(said)
    };
    let product = read(product)?;
    Some(read(maker).map_or(product.clone(), |maker| format!("{maker} {product}")))
}

/// The system and its version.
pub(super) fn kernel(root: &Path) -> Option<String> {
    let read = |file: &str| name(&root.join("proc/sys/kernel").join(file));
    clean(&format!("{} {}", read("ostype")?, read("osrelease")?))
}

/// Whether this is a virtual machine or in a container, and which, as far as can be seen.
pub(super) fn virtualised(root: &Path, hypervisor_flag: bool) -> Option<String> {
    let kinds: Vec<_> = [machine(root, hypervisor_flag), container(root)].into_iter().flatten().collect();
    (!kinds.is_empty()).then(|| kinds.join(", "))
}

fn machine(root: &Path, hypervisor_flag: bool) -> Option<String> {
    // Each is what a maker's name or a product's name contains.
    const MACHINES: [(&str, &str); 9] = [
        ("Amazon EC2", "Amazon EC2"),
        ("Google Compute Engine", "Google Compute Engine"),
        ("Virtual Machine", "Hyper-V"),
        ("VMware", "VMware"),
        ("VirtualBox", "VirtualBox"),
        ("Parallels", "Parallels"),
        ("QEMU", "QEMU"),
        ("KVM", "KVM"),
        ("Xen", "Xen"),
    ];
    let xen = name(&root.join("sys/hypervisor/type"));
    // A guest on Arm has no flag; the tree that it was given names its hypervisor.
    let tree = name(&root.join("proc/device-tree/hypervisor/compatible"));
    let said = ["sys_vendor", "product_name"].map(|file| name(&root.join("sys/class/dmi/id").join(file)));
    let said = said.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let known = MACHINES.iter().find(|(part, _)| said.contains(part)).map(|(_, kind)| (*kind).to_owned());
    // Amazon's metal machines say that they are EC2 too.
    let known = known.filter(|_| hypervisor_flag || !said.contains(".metal"));
    match known.or(xen).or(tree) {
        Some(kind) => Some(format!("virtual machine ({kind})")),
        None => hypervisor_flag.then(|| "virtual machine".to_owned()),
    }
}

fn container(root: &Path) -> Option<String> {
    let named = |kind: &str| Some(format!("container ({kind})"));
    if root.join(".dockerenv").exists() {
        return named("Docker");
    }
    if root.join("run/.containerenv").exists() {
        return named("Podman");
    }
    let groups = text(&root.join("proc/self/cgroup"))?;
    let kinds = [
        ("kubepods", "Kubernetes"),
        ("docker", "Docker"),
        ("libpod", "Podman"),
        ("lxc", "LXC"),
        ("containerd", "containerd"),
    ];
    // Services of the host have such names at the end of their path (`docker.service`), containers are inside.
    let inside = |kind: &str| groups.lines().any(|line| line.split('/').any(|part| is_of(part, kind)));
    kinds.iter().find(|(part, _)| inside(part)).and_then(|(_, kind)| named(kind))
}

/// Whether a part of a control group's path is that of a container of this kind.
fn is_of(part: &str, kind: &str) -> bool {
    part.starts_with(kind) && !part.ends_with(".service")
}

/// A limit on the processors' time.
#[derive(Debug, Clone, PartialEq)]
pub struct CpuQuota {
    /// Processors' worth of time.
    pub cpus: f64,
    /// The file that says so.
    pub file: PathBuf,
}

/// The least that the control groups of this process leave it of the processors' time; `None`: all.
#[must_use]
pub fn cpu_quota(root: &Path) -> Option<CpuQuota> {
    let quota = |group: ControlGroup| {
        let file = group.folder.join(if group.version2 { "cpu.max" } else { "cpu.cfs_quota_us" });
        let said = text(&file)?;
        let (quota, period) = if group.version2 {
            let (quota, period) = said.trim().split_once(' ')?;
            (quota.parse().ok()?, period.parse().ok()?)
        } else {
            // -1: no quota.
            (said.trim().parse().ok()?, number(&group.folder.join("cpu.cfs_period_us"))?)
        };
        let known: (i64, i64) = (quota, period);
        (known.0 > 0 && known.1 > 0).then(|| CpuQuota { cpus: known.0 as f64 / known.1 as f64, file })
    };
    let quotas = ControlGroup::all(root, "cpu").into_iter().filter_map(quota);
    quotas.min_by(|a, b| a.cpus.total_cmp(&b.cpus))
}
