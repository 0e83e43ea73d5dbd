//! The place in the tree where the volume appears: what must be true of it beforehand, and the
//! tuning of a fresh mount that only root can do.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use blockdev::MountEntry;
use rustix::mount::{UnmountFlags, unmount};
use tracing::{debug, info};

/// Most dead mounts on one directory.
const MAX_DEAD: usize = 64;

/// The canonical path of a mount point; refuses one that is missing or no directory, before anything is opened. A
/// mount of ours whose server has ended without unmounting is taken away.
pub fn prepare(dir: &Path) -> Result<PathBuf> {
    let named = || format!("mount point {}", dir.display());
    for _ in 0..MAX_DEAD {
        match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => return dir.canonicalize().with_context(named),
            Ok(_) => bail!("mount point {} is not a directory", dir.display()),
            Err(error) if is_dead(&error) => take_away_dead(dir)?,
            // The server ended while it was asked; the next one who asks hears that.
            Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => {}
            Err(error) => return Err(error).with_context(named),
        }
    }
    bail!("mount point {} has too many dead mounts", dir.display())
}

/// What a mount answers once its server has ended, or was told to give up.
fn is_dead(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotConnected | ErrorKind::ConnectionAborted)
}

/// Takes away the mount on `dir`, which answers that nobody serves it.
fn take_away_dead(dir: &Path) -> Result<()> {
    let named = || format!("mount point {}", dir.display());
    let dir = std::path::absolute(dir).with_context(named)?;
    let (parent, name) = (dir.parent().context("a root directory").with_context(named)?, dir.file_name());
    let dir = parent.canonicalize().with_context(named)?.join(name.unwrap_or_default());
    let ours = entry_of(&dir).is_some_and(|entry| is_ours(&entry));
    if !ours {
        bail!(
            "mount point {0} is dead, its server has ended; unmount it first (umount -l {0})",
            dir.display()
        );
    }
    info!("taking away the mount on {}, whose server has ended", dir.display());
    if unmount(&dir, UnmountFlags::DETACH).is_ok() {
        return Ok(());
    }
    let status = Command::new("fusermount3").arg("-uz").arg("--").arg(&dir).status();
    ensure!(
        status.is_ok_and(|status| status.success()),
        "mount point {0} is dead, its server has ended; unmount it first (umount -l {0})",
        dir.display()
    );
    Ok(())
}

/// Whether a server of ours has mounted it, by the name that it has given it.
pub fn is_ours(entry: &MountEntry) -> bool {
    ["fuse.rext4", "fuseblk.rext4"].iter().any(|ours| entry.fs_type == *ours)
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
