//! The place in the tree where the volume appears: what must be true of it beforehand, and the
//! tuning of a fresh mount that only root can do.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use blockdev::MountEntry;
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
    let Some((major, minor)) = device_of(dir) else { return };
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&file, kib.to_string()) {
        debug!(%error, file, "read-ahead stays at the kernel's default");
    }
}

/// The newest mount on `dir`, by the kernel's table, which may be unreadable.
pub fn entry_of(dir: &Path) -> Option<MountEntry> {
    blockdev::mount_table().ok()?.into_iter().rev().find(|entry| entry.point == dir)
}

/// Device number, major and minor, of the newest mount on `dir`.
pub fn device_of(dir: &Path) -> Option<(u32, u32)> {
    entry_of(dir).map(|entry| entry.device)
}

/// Whether the filesystem `device` is mounted anywhere that we see.
pub fn is_mounted(device: (u32, u32)) -> bool {
    blockdev::mount_table().is_ok_and(|table| table.iter().any(|entry| entry.device == device))
}
