//! The place in the tree where the volume appears: what must be true of it beforehand, and the
//! tuning of a fresh mount that only root can do.

use std::fs;
use std::path::Path;

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

/// `major:minor` of the newest mount on `dir`.
pub fn device_of(dir: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let wanted = dir.to_str()?;
    let device = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let (device, _root, point) = (fields.next()?, fields.next()?, fields.next()?);
        (unescape(point) == wanted).then(|| device.to_owned())
    };
    table.lines().rev().find_map(device)
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
}
