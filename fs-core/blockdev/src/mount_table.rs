//! The kernel's tables of mounts, as bytes (proc(5), `/proc/PID/mountinfo`), of this process and of others.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A mount of a FUSE filesystem.
pub(crate) struct FuseMount {
    /// `major:minor` of the filesystem.
    pub device: Vec<u8>,
    /// Where it is.
    pub at: PathBuf,
    /// What is mounted, as the one who mounted it says.
    pub source: PathBuf,
    /// Whether the filesystem, and not only this mount of it, is read-only.
    pub read_only: bool,
}

/// The FUSE mounts that the process `pid` sees (`self` for this one).
pub(crate) fn fuse_mounts(pid: &str) -> Vec<FuseMount> {
    let table = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    table.split(|&byte| byte == b'\n').filter_map(parse).collect()
}

/// `36 35 98:0 /root /point options optional... - type source options`
fn parse(line: &[u8]) -> Option<FuseMount> {
    let mut fields = line.split(|&byte| byte == b' ').skip(2);
    let (device, _root, at) = (fields.next()?, fields.next()?, fields.next()?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let (fs_type, source, options) = (fields.next()?, fields.next()?, fields.next()?);
    fs_type.starts_with(b"fuse").then(|| FuseMount {
        device: device.to_vec(),
        at: unescape(at),
        source: unescape(source),
        read_only: options.split(|&byte| byte == b',').any(|option| option == b"ro"),
    })
}

/// Undoes the octal escapes (`\040`).
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = match (byte, after.get(..3)) {
            (b'\\', Some(digits)) if digits.iter().all(|digit| (b'0'..b'8').contains(digit)) => {
                digits.iter().try_fold(0u8, |code, digit| code.checked_mul(8)?.checked_add(digit - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes).into()
}

/// Whether `source` names the same file or device as `path`.
pub(crate) fn is_of(mount: &FuseMount, path: &Path) -> bool {
    if !mount.source.is_absolute() {
        return false;
    }
    if mount.source == path {
        return true;
    }
    match (mount.source.metadata(), path.metadata()) {
        (Ok(a), Ok(b)) if a.rdev() != 0 || b.rdev() != 0 => a.rdev() == b.rdev(),
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

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

impl std::fmt::Display for MountUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({}) on {}", self.pid, self.name, self.at.display())
    }
}

/// One process of each other tree of mounts (a container, `unshare -m`) where the FUSE filesystem on `path`, or
/// the one with the number `device` (`major:minor`), is still mounted. Needs the right to look into other
/// processes.
#[must_use]
pub fn mounted_elsewhere(path: &Path, device: Option<&str>) -> Vec<MountUser> {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut seen = Vec::from_iter(own);
    let mut found = Vec::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let Ok(space) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if seen.contains(&space) {
            continue;
        }
        seen.push(space);
        let mounts = fuse_mounts(&pid.to_string());
        let wanted = |mount: &&FuseMount| match device {
            Some(device) => mount.device == device.as_bytes(),
            None => is_of(mount, path),
        };
        if let Some(mount) = mounts.iter().find(wanted) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            found.push(MountUser { pid, name: name.trim_end().to_owned(), at: mount.at.clone() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bytes() {
        let line = b"40 26 0:36 / /mnt/a\\040\xff rw shared:7 - fuse.rext4 /images/x\\134y ro,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!(mount.at.as_os_str().as_encoded_bytes(), b"/mnt/a \xff");
        assert_eq!(mount.source.as_os_str().as_encoded_bytes(), b"/images/x\\y");
        assert!(mount.read_only && mount.device == b"0:36");
        assert!(parse(b"40 26 8:1 / / rw - ext4 /dev/sda1 rw").is_none());
        assert!(parse(b"").is_none() && parse(b"no such line").is_none());
        assert_eq!(unescape(b"a\\777\\04").as_os_str().as_encoded_bytes(), b"a\\777\\04");
    }
}
