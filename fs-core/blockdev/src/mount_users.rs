//! Who else has a FUSE filesystem mounted: other processes' tables of mounts.

use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::mount_table::{MountEntry, mount_table_of};

/// A process that has a mount in a tree of mounts of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountUser {
    /// Its number.
    pub pid: u32,
    /// Its command name.
    pub name: String,
    /// Where the mount is in its tree.
    pub at: PathBuf,
}

impl fmt::Display for MountUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) on {}", self.pid, self.name, self.at.display())
    }
}

/// Whether a mount is a FUSE server's, of the image `path`. The words of the table are compared, and lead
/// nowhere: rext4's servers give canonical paths.
pub(crate) fn is_fuse_of(entry: &MountEntry, path: &Path) -> bool {
    entry.fs_type.as_bytes().starts_with(b"fuse") && entry.source == path
}

/// One process of each other tree of mounts (a container, `unshare -m`) that has a mount like `wanted`. Sees
/// the processes that the caller may trace.
pub fn mounted_elsewhere(wanted: impl Fn(&MountEntry) -> bool) -> Vec<MountUser> {
    let mut seen = Vec::from_iter(fs::read_link("/proc/self/ns/mnt"));
    let mut found = Vec::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let Ok(space) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if seen.contains(&space) {
            continue;
        }
        seen.push(space);
        let table = mount_table_of(pid).unwrap_or_default();
        if let Some(mount) = table.into_iter().find(|entry| wanted(entry)) {
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name = String::from_utf8_lossy(name.trim_ascii_end()).into_owned();
            found.push(MountUser { pid, name, at: mount.point });
        }
    }
    found
}
