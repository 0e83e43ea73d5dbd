//! The place in the tree where the volume appears: what must be true of it beforehand, and the
//! tuning of a fresh mount that only root can do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tracing::debug;

/// Refuses a mount point that is missing or no directory, before anything is opened.
pub fn check(dir: &Path) -> Result<()> {
    let meta = fs::metadata(dir).with_context(|| format!("mount point {}", dir.display()))?;
    if !meta.is_dir() {
        bail!("mount point {} is not a directory", dir.display());
    }
    Ok(())
}

/// The kernel reads 128 KiB ahead on a FUSE mount, whatever the handshake says. Raises that, if
/// we may. Only a server whose loop runs can be asked about its mount, so the kernel's own table
/// is read instead of the mount point.
pub fn raise_read_ahead(dir: &Path, kib: u32) {
    let Some(device) = device_of(dir) else { return };
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&file, kib.to_string()) {
        debug!(%error, file, "read-ahead stays at the kernel's default");
    }
}

/// A line of the kernel's table of mounts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// `major:minor` of the mount.
    pub device: String,
    /// The mount point.
    pub point: PathBuf,
    /// Its type.
    pub fs_type: String,
    /// What is mounted.
    pub source: PathBuf,
}

impl Entry {
    /// The newest mount on `dir`.
    pub fn of(dir: &Path) -> Option<Entry> {
        table().into_iter().rev().find(|entry| entry.point == dir)
    }

    /// Whether a server of ours has mounted it.
    pub fn is_ours(&self) -> bool {
        ["fuse.rext4", "fuseblk.rext4"].contains(&self.fs_type.as_str())
    }

    /// `36 35 98:0 /root /point options optional... - type source options`
    fn parse(line: &str) -> Option<Entry> {
        let (front, back) = line.split_once(" - ")?;
        let (mut front, mut back) = (front.split(' ').skip(2), back.split(' '));
        let (device, _root, point) = (front.next()?, front.next()?, front.next()?);
        let (fs_type, source) = (back.next()?, back.next()?);
        Some(Entry {
            device: device.into(),
            point: unescape(point).into(),
            fs_type: fs_type.into(),
            source: unescape(source).into(),
        })
    }
}

/// `major:minor` of the newest mount on `dir`.
pub fn device_of(dir: &Path) -> Option<String> {
    Entry::of(dir).map(|entry| entry.device)
}

/// Whether the filesystem `device` is mounted anywhere that we see.
pub fn is_mounted(device: &str) -> bool {
    table().iter().any(|entry| entry.device == device)
}

fn table() -> Vec<Entry> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(Entry::parse).collect()
}

/// Undoes the octal escapes (`\040`) of the mount table.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_escapes_are_undone() {
        assert_eq!(unescape("/mnt/a\\040b\\134c"), "/mnt/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
    }

    #[test]
    fn a_line_of_the_table_is_read() {
        let line =
            "40 26 0:36 / /mnt/a\\040b rw,noatime shared:7 master:1 - fuse.rext4 /images/x rw,user_id=0";
        let entry = Entry::parse(line).unwrap();
        assert!(entry.is_ours());
        assert_eq!((entry.device.as_str(), entry.point), ("0:36", "/mnt/a b".into()));
        assert_eq!(entry.source, Path::new("/images/x"));
        assert_eq!(Entry::parse("no such line"), None);
    }
}
