//! The control groups of this process, as Linux mounts them.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// A folder with files about a control group that this process is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlGroup {
    /// The folder.
    pub folder: PathBuf,
    /// Whether its files have the names of version 2 (`memory.max`) or of version 1 (`memory.limit_in_bytes`).
    pub version2: bool,
}

impl ControlGroup {
    /// The groups that `/proc` and `/sys` under `root` say of this process for a controller (`memory`, `cpu`), and all
    /// groups around them. A container may see its own group as the root of the mount while the path is that of the whole
    /// machine: of these folders, those that are not there say nothing.
    #[must_use]
    pub fn all(root: &Path, controller: &str) -> Vec<Self> {
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mounts = root.join("sys/fs/cgroup");
        let mut all = Vec::new();
        for line in groups.lines() {
            // `id:controllers:path`; version 2 has the id 0 and no controllers.
            let mut fields = line.splitn(3, ':');
            let (id, controllers, path) = (fields.next(), fields.next(), fields.next().unwrap_or_default());
            match (id, controllers) {
                // Beside groups of version 1, those of version 2 have a mount of their own.
                (Some("0"), Some("")) => {
                    all.extend(around(&mounts, path, true));
                    all.extend(around(&mounts.join("unified"), path, true));
                }
                (_, Some(list)) if list.split(',').any(|name| name == controller) => {
                    all.extend(around(&mounts.join(controller), path, false));
                }
                _ => {}
            }
        }
        all
    }
}

/// A group and the groups around it, up to that of the mount.
fn around(mount: &Path, path: &str, version2: bool) -> Vec<ControlGroup> {
    let inside = Path::new(path.trim_start_matches('/'));
    let inside = if inside.components().all(|part| matches!(part, Component::Normal(_))) {
        inside
    } else {
        Path::new("")
    };
    inside.ancestors().map(|group| ControlGroup { folder: mount.join(group), version2 }).collect()
}
