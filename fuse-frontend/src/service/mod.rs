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

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fs_core::{Attr, Credentials, Error, FileType, Filesystem, Node, flag};

pub use files::{Opened, Source, WriteHow};
pub use ioctl::{EXT4_IOC_SHUTDOWN, changes_attributes, native, shutdown_asked, wants_cached_data};

use crate::nodes::Nodes;
use crate::options::Options;

pub use crate::nodes::{ROOT_NODE, node_of};

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

/// Returns when every FORGET that was sent before has been heard, or begun to be.
type Arrival = Box<dyn Fn() + Send + Sync>;

/// The filesystem behind the doors.
pub struct Service {
    fs: Arc<Filesystem>,
    nodes: Nodes,
    /// See [`Service::forgets_arrive_by`].
    arrival: Arc<OnceLock<Arrival>>,
    fake_root: bool,
    shows_stats: bool,
}

impl Service {
    /// A service for a mounted volume.
    #[must_use]
    pub fn new(fs: Arc<Filesystem>, options: &Options) -> Service {
        let nodes = Nodes::new(fs.clone());
        let arrival: Arc<OnceLock<Arrival>> = Arc::default();
        let (closing, arrives) = (nodes.wait_for_closing(), arrival.clone());
        fs.before_no_space(move || {
            closing();
            if let Some(arrives) = arrives.get() {
                arrives();
            }
        });
        Service { fs, nodes, arrival, fake_root: options.fake_root, shows_stats: options.stats }
    }

    /// For a transport that brings FORGET by another way than the rest: `arrival` returns when all that was sent before
    /// has been heard. Deleted files end with them, so whoever finds no space waits for that.
    pub fn forgets_arrive_by(&self, arrival: impl Fn() + Send + Sync + 'static) {
        let _ = self.arrival.set(Box::new(arrival));
    }

    /// Counts the reference that the kernel gets with a reply, and gives the attributes that go there.
    fn remember(&self, node: Node) -> Answer<Attr> {
        let attr = node.attributes().map_err(refuse)?;
        self.nodes.remember(node);
        Ok(attr)
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
    fn caller(&self, sender: Sender, umask: u32) -> Credentials {
        if self.fake_root {
            return Credentials { umask, ..Credentials::root() };
        }
        self.owner(sender, umask)
    }

    /// As whose a request makes something new.
    fn owner(&self, sender: Sender, umask: u32) -> Credentials {
        Credentials { uid: sender.uid, gid: sender.gid, umask, ..Credentials::root() }
    }
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
pub(crate) fn refuse(error: Error) -> i32 {
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
    fn large_device_numbers_pass() {
        for (major, minor) in [(8, 1), (259, 70_000), (0xfff, 0xf_ffff)] {
            let encoded = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
            assert_eq!(decode_device(encoded), (major, minor));
        }
    }
}
