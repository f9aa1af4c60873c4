//! Graphics processors that there are, whether Moli can compute on them or not: people who have one ask.

use std::path::Path;

use crate::files::{clean, name, names, text, values};

/// Graphics processors more than which are not listed.
const MOST: usize = 64;

/// The graphics processors that `/proc`, `/sys` and `/dev` under `root` know of, in words.
#[must_use]
pub fn gpus(root: &Path) -> Vec<String> {
    let devices = root.join("sys/bus/pci/devices");
    let mut gpus: Vec<_> =
        names(&devices).into_iter().filter_map(|slot| on_pci(root, &devices.join(&slot), &slot)).collect();
    // NVIDIA's boards have theirs in the processor, which the device tree names.
    let tree = text(&root.join("proc/device-tree/compatible")).unwrap_or_default();
    if tree.split('\0').any(|part| part.starts_with("nvidia,tegra")) {
        gpus.push("NVIDIA Tegra's own".to_owned());
    }
    // A container may have the device without the bus.
    if gpus.is_empty() && root.join("dev/nvidia0").exists() {
        gpus.push("NVIDIA (/dev/nvidia0)".to_owned());
    }
    gpus.truncate(MOST);
    gpus
}

/// The graphics processor that a device of the bus is, if it is one.
fn on_pci(root: &Path, device: &Path, slot: &str) -> Option<String> {
    let class = name(&device.join("class"))?;
    // With a display, and without.
    if !["0x0300", "0x0302"].iter().any(|kind| class.starts_with(kind)) {
        return None;
    }
    // Others are adapters for a screen, and those of virtual machines.
    let maker = match name(&device.join("vendor"))?.as_str() {
        "0x10de" => "NVIDIA",
        "0x1002" => "AMD",
        "0x8086" => "Intel",
        _ => return None,
    };
    // NVIDIA's driver knows the model's name.
    let driver =
        text(&root.join("proc/driver/nvidia/gpus").join(slot).join("information")).unwrap_or_default();
    let model = values(&driver, "Model").find_map(clean);
    let model = model.or_else(|| Some(format!("{maker} device {}", name(&device.join("device"))?)));
    clean(&format!("{} at {slot}", model.unwrap_or_else(|| maker.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    #[test]
    fn of_the_devices_the_graphics_processors() {
        let device = |tree: Tree, slot: &str, class: &str, vendor: &str| {
            tree.with(&format!("sys/bus/pci/devices/{slot}/class"), format!("{class}\n"))
                .with(&format!("sys/bus/pci/devices/{slot}/vendor"), format!("{vendor}\n"))
                .with(&format!("sys/bus/pci/devices/{slot}/device"), "0x2330\n")
        };
        let mut tree = Tree::new();
        for (slot, class, vendor) in [
            ("0000:00:02.0", "0x030000", "0x8086"),
            ("0000:00:1f.0", "0x020000", "0x10de"),
            ("0000:01:00.0", "0x030200", "0x10de"),
            ("0000:02:00.0", "0x030200", "0x10de"),
            // The screen of a virtual machine.
            ("0000:03:00.0", "0x030000", "0x1234"),
        ] {
            tree = device(tree, slot, class, vendor);
        }
        tree.set("proc/driver/nvidia/gpus/0000:02:00.0/information", "Model: \t\t NVIDIA H100\nIRQ: 5\n");
        tree.set("dev/nvidia0", "");
        let found = [
            "Intel device 0x2330 at 0000:00:02.0",
            "NVIDIA device 0x2330 at 0000:01:00.0",
            "NVIDIA H100 at 0000:02:00.0",
        ];
        assert_eq!(gpus(tree.root()), found);
    }

    #[test]
    fn on_a_board_in_a_container_and_nowhere() {
        assert_eq!(gpus(Tree::new().root()), Vec::<String>::new());
        let board = Tree::new().with("proc/device-tree/compatible", "nvidia,p3737-0000\0nvidia,tegra234\0");
        assert_eq!(gpus(board.root()), ["NVIDIA Tegra's own"]);
        assert_eq!(gpus(Tree::new().with("dev/nvidia0", "").root()), ["NVIDIA (/dev/nvidia0)"]);
    }
}
