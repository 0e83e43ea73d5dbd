//! Exclusive use of a device, and who stands in the way of it.
//!
//! A block device is claimed with O_EXCL, which the kernel's mounts, swap, device-mapper and loop
//! partitions respect. An image file is claimed with flock(2), shared by readers. The kernel's loop
//! driver takes no such lock, so loop devices are looked up by the file behind them; and who opens a
//! loop device also locks the file behind it, which makes both doors to one image exclude each other.
//! What nobody can prevent: that a file is attached to a loop device after it was opened here.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, major, minor};
use rustix::io::Errno;

use crate::file::Kind;
use crate::mount_table::{MountEntry, mount_table, unescape};
use crate::mount_users::is_fuse_of;

/// Who uses a device. Its text says what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holder {
    /// Mounted by the kernel.
    Mounted {
        /// The mount point.
        at: PathBuf,
    },
    /// An image file attached to a loop device.
    Loop {
        /// The loop device.
        device: PathBuf,
        /// Where that device is mounted, if it is.
        at: Option<PathBuf>,
    },
    /// Part of another block device (device-mapper, RAID).
    Stacked {
        /// The name of the device above.
        by: String,
    },
    /// Swap space.
    Swap,
    /// Open in another process.
    Process {
        /// Its number.
        pid: u32,
        /// Its command name.
        name: String,
    },
    /// Nobody who could be found.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Mounted { at } => {
                write!(f, "mounted on {at}; unmount it first (umount {at})", at = at.display())
            }
            Holder::Loop { device, at: Some(at) } => write!(
                f,
                "attached to {device}, which is mounted on {at}; unmount it and detach it first (umount {at}; \
                 losetup -d {device})",
                device = device.display(),
                at = at.display()
            ),
            Holder::Loop { device, at: None } => write!(
                f,
                "attached to {device}; detach it first (losetup -d {device}) or use {device} itself",
                device = device.display()
            ),
            Holder::Stacked { by } => write!(f, "part of {by}; use or stop that device"),
            Holder::Swap => write!(f, "swap space; swapoff it first"),
            Holder::Process { pid, name } => {
                write!(f, "process {pid} ({name}) has it open; unmount it there or wait until it ends")
            }
            Holder::Unknown => write!(f, "another program or the kernel has claimed it"),
        }
    }
}

/// Why a device could not be claimed.
pub(crate) enum Refusal {
    /// Somebody has it.
    InUse(Holder),
    /// It could not be found out.
    Failed(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Failed(error)
    }
}

/// A mount of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// The mount point.
    pub at: PathBuf,
    /// Whether the filesystem, and not only this mount of it, is read-only.
    pub read_only: bool,
    /// Whether it is this process's root.
    pub root: bool,
    /// Whether a FUSE server, and not the kernel, has it mounted.
    pub fuse: bool,
}

/// Where a block device or an image file is mounted, or the loop device over an image file.
#[must_use]
pub fn mounted(path: &Path) -> Option<Mount> {
    if let Some(rdev) = device_number(path) {
        return mount_of(rdev);
    }
    let image = path.metadata().ok().filter(fs::Metadata::is_file)?;
    let canonical = path.canonicalize().ok()?;
    let served = mount_table().ok()?.into_iter().find(|entry| is_fuse_of(entry, &canonical));
    if let Some(entry) = served {
        return Some(Mount { read_only: entry.fs_is_read_only(), at: entry.point, root: false, fuse: true });
    }
    loops_over(&image).find_map(|device| mount_of(device_number(&device)?))
}

/// Claims an open device or says who has it. Returns a file to keep open for its lock, if another one
/// than the device itself carries it.
pub(crate) fn claim(file: &File, kind: Kind, read_only: bool) -> Result<Option<File>, Refusal> {
    match kind {
        Kind::Image => {
            if !lock(file, read_only)? {
                return Err(Refusal::InUse(holder_of_lock(file)));
            }
            match loop_device_over(file, read_only)? {
                Some(holder) => Err(Refusal::InUse(holder)),
                None => Ok(None),
            }
        }
        Kind::Block => {
            let Some(image) = file_behind_loop(file) else { return Ok(None) };
            match lock(&image, read_only) {
                Ok(true) => Ok(Some(image)),
                Ok(false) => Err(Refusal::InUse(holder_of_lock(&image))),
                // The file behind may live where locks do not exist; the device's own claim stands.
                Err(_) => Ok(None),
            }
        }
    }
}

/// Whether a device or an image cannot be written by this process: the kernel has marked it read-only, its
/// filesystem is, or its mode says so.
#[must_use]
pub fn is_write_protected(path: &Path) -> bool {
    let is_device_or_image =
        path.metadata().is_ok_and(|meta| meta.is_file() || meta.file_type().is_block_device());
    let refuses = |error: io::Error| {
        matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
    };
    is_device_or_image
        && (is_read_only(path) || File::options().write(true).open(path).is_err_and(refuses))
        && File::open(path).is_ok()
}

/// Whether the kernel has marked a block device read-only.
pub(crate) fn is_read_only(path: &Path) -> bool {
    device_number(path).and_then(|rdev| sysfs_value(rdev, "ro")).is_some_and(|ro| ro == "1")
}

/// Who keeps a block device busy.
pub(crate) fn holder_of_block_device(path: &Path) -> Holder {
    let Some(rdev) = device_number(path) else { return Holder::Unknown };
    if let Some(at) = mount_point(rdev) {
        return Holder::Mounted { at };
    }
    let holders = fs::read_dir(sysfs(rdev).join("holders")).into_iter().flatten().flatten();
    if let Some(by) = holders.map(|entry| entry.file_name().to_string_lossy().into_owned()).next() {
        return Holder::Stacked { by };
    }
    let swaps = fs::read("/proc/swaps").unwrap_or_default();
    let mut swaps =
        swaps.split(|byte| *byte == b'\n').skip(1).filter_map(|line| line.split(|b| *b == b' ').next());
    if swaps.any(|swap| device_number(Path::new(&unescape(swap))) == Some(rdev)) {
        return Holder::Swap;
    }
    process_with_open(rdev)
}

fn lock(file: &File, shared: bool) -> io::Result<bool> {
    let how =
        if shared { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    match flock(file, how) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The process that holds a flock on `file`, by device and inode number in /proc/locks.
fn holder_of_lock(file: &File) -> Holder {
    let Ok(metadata) = file.metadata() else { return Holder::Unknown };
    let (dev, ino) = (metadata.dev(), metadata.ino());
    let wanted = format!("{:02x}:{:02x}:{ino}", major(dev), minor(dev));
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else { return None };
        (place == wanted).then(|| pid.parse().ok()).flatten()
    });
    pid.map_or(Holder::Unknown, process)
}

fn process(pid: u32) -> Holder {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Holder::Process { pid, name: String::from_utf8_lossy(name.trim_ascii_end()).into_owned() }
}

/// A process with a block device open; needs the right to look into other processes.
fn process_with_open(rdev: u64) -> Holder {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_it_open = |pid: &u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| fs::metadata(fd.path()).ok())
            .any(|file| file.file_type().is_block_device() && file.rdev() == rdev)
    };
    pids.filter(|&pid| pid != std::process::id()).find(has_it_open).map_or(Holder::Unknown, process)
}

/// The loop device over an image file that would make our use of it unsafe.
fn loop_device_over(file: &File, read_only: bool) -> io::Result<Option<Holder>> {
    let metadata = file.metadata()?;
    let holder = loops_over(&metadata).find(|device| !(read_only && is_read_only(device)));
    Ok(holder.map(|device| {
        let at = device_number(&device).and_then(mount_point);
        Holder::Loop { device, at }
    }))
}

/// The loop devices over a file.
fn loops_over(image: &fs::Metadata) -> impl Iterator<Item = PathBuf> {
    let wanted = (image.dev(), image.ino());
    let all = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    all.filter_map(move |entry| {
        let behind = fs::metadata(line_of(&entry.path().join("loop/backing_file"))?).ok()?;
        ((behind.dev(), behind.ino()) == wanted).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// The file that a loop device stands on.
fn file_behind_loop(file: &File) -> Option<File> {
    let rdev = file.metadata().ok()?.rdev();
    let backing = sysfs_value(rdev, "loop/backing_file")?;
    File::open(backing).ok()
}

fn device_number(path: &Path) -> Option<u64> {
    let metadata = path.metadata().ok()?;
    metadata.file_type().is_block_device().then(|| metadata.rdev())
}

fn sysfs(rdev: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev)))
}

fn sysfs_value(rdev: u64, name: &str) -> Option<OsString> {
    line_of(&sysfs(rdev).join(name))
}

/// What a file of one line says, a path possibly, which may be of any bytes.
fn line_of(path: &Path) -> Option<OsString> {
    let mut line = fs::read(path).ok()?;
    line.pop_if(|last| *last == b'\n');
    Some(OsString::from_vec(line))
}

fn mount_point(rdev: u64) -> Option<PathBuf> {
    mount_of(rdev).map(|mount| mount.at)
}

/// Where a block device is mounted. Besides the device number, the source of a mount of type fuseblk is
/// looked at: only root can mount that. Other sources are words that lead anywhere, into a filesystem that
/// does not answer for one.
fn mount_of(rdev: u64) -> Option<Mount> {
    let is_of_device = |entry: &MountEntry| {
        entry.device == (major(rdev), minor(rdev))
            || entry.fs_type.as_bytes().starts_with(b"fuseblk") && device_number(&entry.source) == Some(rdev)
    };
    let entry = mount_table().ok()?.into_iter().find(is_of_device)?;
    let fuse = entry.fs_type.as_bytes().starts_with(b"fuse");
    let root = fs::metadata("/").is_ok_and(|root| root.dev() == rdev);
    Some(Mount { read_only: entry.fs_is_read_only(), at: entry.point, root, fuse })
}
