//! `mount -o remount`: the kernel tells a FUSE server nothing of it.
//!
//! So the server follows the kernel's table of mounts ([`Follower`]): when its filesystem becomes read-only, the
//! volume is suspended, which leaves it clean on its device; when it becomes writable again, changes are allowed.
//! A change that comes before the table was read looks into the table itself. mount(8), where it knows
//! mount.rext4 as its helper, leaves the remount to [`run`], which also finds out whether the server can
//! write at all.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use blockdev::MountEntry;
use fs_core::Filesystem;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};
use tracing::{debug, warn};

use crate::mountpoint;

/// How long until a volume that could not be suspended is tried again: at first, and at most.
const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
const LATER: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The thread that follows remounts; ends when this is dropped.
pub struct Follower {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Follows the newest mount on `dir`, which is `fs`.
    ///
    /// # Errors
    /// When the table of mounts cannot be read or no thread be had.
    pub fn start(fs: &Arc<Filesystem>, dir: &Path) -> io::Result<Follower> {
        let device = mountpoint::device_of(dir).ok_or(io::ErrorKind::NotFound)?;
        let table = File::open("/proc/self/mountinfo")?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        fs.set_may_resume(Box::new(move || !is_read_only(device).unwrap_or(false)));
        let (followed, stopped) = (Arc::downgrade(fs), stop.clone());
        let body = move || follow(&followed, device, &table, &stopped);
        let thread = std::thread::Builder::new().name("rext4-remount".into()).spawn(body)?;
        Ok(Follower { stop, thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether the filesystem `device` is read-only; `None` when it is not mounted where we see it.
fn is_read_only(device: (u32, u32)) -> Option<bool> {
    let table = blockdev::mount_table().ok()?;
    table.iter().find(|entry| entry.device == device).map(MountEntry::fs_is_read_only)
}

fn follow(fs: &Weak<Filesystem>, device: (u32, u32), table: &File, stop: &OwnedFd) {
    let mut was_read_only = None;
    let mut patience = None;
    loop {
        let waits = &mut [PollFd::new(table, PollFlags::PRI), PollFd::new(stop, PollFlags::IN)];
        match poll(waits, patience.as_ref()) {
            Ok(_) if !waits[1].revents().is_empty() => return,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return warn!(%error, "remounts are not followed any more"),
        }
        let Some(fs) = fs.upgrade() else { return };
        let read_only = is_read_only(device);
        if read_only == Some(false) && was_read_only == Some(true) {
            fs.resume();
        }
        patience = match read_only {
            // What was still open when it became read-only may have changed something since.
            Some(true) if !fs.is_suspended() => match fs.suspend() {
                Ok(true) => Some(LATER),
                Ok(false) if was_read_only == Some(false) || patience == Some(SOON) => Some(SOON),
                Ok(false) => Some(LATER),
                Err(error) => {
                    debug!(%error, "the volume is not suspended");
                    None
                }
            },
            Some(true) => Some(LATER),
            _ => None,
        };
        was_read_only = read_only.or(was_read_only);
    }
}

/// Does what mount(8) asks its helper for with the word `remount` among `words`: sets the flags of the mount on
/// `dir`. Options of the server itself stay as they are.
///
/// # Errors
/// When it is no mount of ours, when the kernel refuses, and when a volume that the server has opened for reading
/// only shall become writable.
pub fn run(dir: &Path, words: &[&str]) -> Result<()> {
    let dir = dir.canonicalize().with_context(|| format!("mount point {}", dir.display()))?;
    let Some(entry) = mountpoint::entry_of(&dir).filter(mountpoint::is_ours) else {
        bail!("{} is no mount of rext4's", dir.display());
    };
    let before = flags_of(&entry);
    let mut flags = before;
    for word in words {
        match *word {
            "rw" => flags -= MountFlags::RDONLY,
            "defaults" => {
                flags -= MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            }
            "suid" => flags -= MountFlags::NOSUID,
            "dev" => flags -= MountFlags::NODEV,
            "exec" => flags -= MountFlags::NOEXEC,
            "atime" => flags -= MountFlags::NOATIME,
            "diratime" => flags -= MountFlags::NODIRATIME,
            "async" => flags -= MountFlags::SYNCHRONOUS,
            word => flags |= flag(word),
        }
    }
    let bind = if words.contains(&"bind") { MountFlags::BIND } else { MountFlags::empty() };
    let remount = |flags| mount_remount(&dir, flags | bind, c"");
    remount(flags).with_context(|| format!("remounting {}", dir.display()))?;
    if bind.is_empty() && before.contains(MountFlags::RDONLY) && !flags.contains(MountFlags::RDONLY) {
        // The server refuses a change before it looks for what is to be changed.
        let asked = rustix::fs::removexattr(&dir, "user.rext4-is-writable");
        if asked == Err(Errno::ROFS) {
            let _ = remount(before);
            bail!(
                "{} cannot be written: {} was opened for reading only; unmount it and mount it again",
                dir.display(),
                entry.source.display()
            );
        }
    }
    Ok(())
}

/// The flags that a mount has now.
fn flags_of(entry: &MountEntry) -> MountFlags {
    let both = [&entry.options, &entry.fs_options].map(|options| options.to_string_lossy().into_owned());
    both.iter().flat_map(|options| options.split(',')).map(flag).collect()
}

fn flag(word: &str) -> MountFlags {
    match word {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "sync" => MountFlags::SYNCHRONOUS,
        "dirsync" => MountFlags::DIRSYNC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "strictatime" => MountFlags::STRICTATIME,
        _ => MountFlags::empty(),
    }
}
