//! What a request of the FUSE protocol means, whatever door it came through. Numbers and names
//! come in as the protocol has them; answers go out as plain values or an errno.
//!
//! Must not know: message layouts, transports, how a reply is sent.

pub mod attributes;
mod caller;
mod directories;
mod files;
mod ioctl;
mod names;
mod stats;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fs_core::{Attr, Caller, Error, FileType, Filesystem, Ino, flag};
use parking_lot::Mutex;

pub use files::{Opened, Source, WriteHow};
pub use ioctl::{EXT4_IOC_SHUTDOWN, changes_attributes, native, shutdown_asked, wants_cached_data};

use crate::options::Options;

/// The protocol's number for the root directory; ext4's is 2.
pub const ROOT_NODE: u64 = 1;

/// How long the kernel may believe what it was told. Nobody else writes the device, so: for ever
/// (longer than any uptime; the protocol's own maximum overflows in some kernels' arithmetic).
pub const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Whether it is a file that nobody may write to, not even through a handle from before. The kernel knows no
/// such flag of ours, so a door has it ask before each write ([`Service::getattr`]). (Of folders the kernel
/// must hear: it has the root before it has its attributes.)
#[must_use]
pub fn is_immutable(attr: &Attr) -> bool {
    attr.flags & flag::IMMUTABLE != 0 && FileType::from_mode(attr.mode) == Some(FileType::Regular)
}

/// An answer, or the errno to send instead.
pub type Answer<T> = Result<T, i32>;

/// Credentials of whoever sent a request.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
    /// Number of the calling thread, 0 when it has none in the namespace of this process.
    pub thread: u32,
}

/// The filesystem behind the doors.
pub struct Service {
    fs: Arc<Filesystem>,
    fake_root: bool,
    shows_stats: bool,
    /// The files with handles that write through the kernel's page cache.
    cached_writers: Mutex<HashMap<u64, Writers>>,
    /// Files whose cached data found no space, and how many blocks were left then, which were too
    /// few: until there are more, write(2) shall fail.
    starved: Mutex<HashMap<u64, u64>>,
}

/// Who writes a file through the kernel's page cache.
struct Writers {
    handles: u32,
    /// The writer with the most rights: pages that are written back say nothing of their writer,
    /// but whether they may take the last blocks depends on it.
    opener: Sender,
    /// Whether pages came into the page cache since the first of the handles was opened.
    pages_cached: bool,
}

impl Service {
    /// A service for a mounted volume.
    #[must_use]
    pub fn new(fs: Arc<Filesystem>, options: &Options) -> Service {
        Service {
            fs,
            fake_root: options.fake_root,
            shows_stats: options.stats,
            cached_writers: Mutex::default(),
            starved: Mutex::default(),
        }
    }

    /// See [`Filesystem::forgets_arrive_by`].
    pub fn forgets_arrive_by(&self, arrival: fs_core::Arrival) {
        self.fs.forgets_arrive_by(arrival);
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.fs.block_size()
    }

    /// Whether everybody who gets in has root's rights, and the kernel checks none.
    #[must_use]
    pub fn has_fake_root(&self) -> bool {
        self.fake_root
    }

    /// As whom a request acts on what is there.
    fn caller(&self, sender: Sender, umask: u32) -> Caller {
        if self.fake_root { Caller { umask, ..Caller::root() } } else { self.owner(sender, umask) }
    }

    /// As whose a request makes something new.
    fn owner(&self, sender: Sender, umask: u32) -> Caller {
        Caller { uid: sender.uid, gid: sender.gid, umask }
    }
}

/// The inode that a node number of the protocol stands for.
fn inode_of(node: u64) -> Answer<Ino> {
    match node {
        ROOT_NODE => Ok(Ino::ROOT),
        n => u32::try_from(n).ok().and_then(Ino::new).ok_or(libc::ESTALE),
    }
}

/// The node number that stands for an inode.
#[must_use]
pub fn node_of(ino: Ino) -> u64 {
    if ino == Ino::ROOT { ROOT_NODE } else { ino.get().into() }
}

/// The device number as the protocol carries it (`new_encode_dev`).
#[must_use]
pub fn encode_device(attr: &Attr) -> u32 {
    let (major, minor) = attr.rdev;
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn decode_device(rdev: u32) -> (u32, u32) {
    ((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

/// The errno of a failure. What is not the caller's doing, and was not logged where it was found, is logged.
fn refuse(error: Error) -> i32 {
    match &error {
        Error::Posix(_) | Error::NoSpace | Error::ReadOnly | Error::ShutDown => {}
        Error::Corrupt(_) | Error::Journal(_) => tracing::debug!(%error, "a request failed"),
        error => tracing::error!(%error, "a request failed"),
    }
    error.errno()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_two_numbers() {
        assert_eq!(inode_of(1), Ok(Ino::ROOT));
        assert_eq!(node_of(Ino::ROOT), 1);
        assert_eq!(inode_of(0), Err(libc::ESTALE));
        assert_eq!(inode_of(1 << 40), Err(libc::ESTALE));
    }

    #[test]
    fn large_device_numbers_pass() {
        for (major, minor) in [(8, 1), (259, 70_000), (0xfff, 0xf_ffff)] {
            let encoded = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
            assert_eq!(decode_device(encoded), (major, minor));
        }
    }
}
