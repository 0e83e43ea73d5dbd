//! What the server tells the kernel unasked, over /dev/fuse whatever door requests come through.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{Immutable, IntoBytes};

use super::old_pages::Range;
use super::wire::abi::{
    NOTIFY_INVAL_INODE, NOTIFY_RETRIEVE, NotifyInvalInodeOut, NotifyRetrieveOut, OutHeader,
};
/// An offset that makes an invalidation leave the cached pages alone.
const ATTRIBUTES_ONLY: i64 = -1;

/// The kernel counts its own requests from the bottom, in steps of two.
const PROVOKED: u64 = 1 << 63;

/// Sends notifications.
pub struct Notifier {
    device: Arc<File>,
    /// How many requests were provoked.
    provoked: AtomicU64,
}

impl Notifier {
    /// Sends them through `device`, an open connection.
    #[must_use]
    pub fn new(device: Arc<File>) -> Notifier {
        Notifier { device, provoked: AtomicU64::new(0) }
    }

    /// Has the kernel forget a file's attributes.
    ///
    /// # Errors
    /// ENOENT when the kernel does not know the node.
    pub fn forget_attributes(&self, node: u64) -> io::Result<()> {
        self.invalidate(node, ATTRIBUTES_ONLY, 0)
    }

    /// Has the kernel forget a file's pages of `len` bytes from `offset` on (0: to the end), which writes the
    /// dirty ones first. Waits for the requests that this takes: never from the last thread that serves any.
    ///
    /// # Errors
    /// ENOENT when the kernel does not know the node.
    fn forget_pages(&self, node: u64, offset: u64, len: u64) -> io::Result<()> {
        self.invalidate(node, offset as i64, len as i64)
    }

    /// The same, when a failure is of no interest: a node that the kernel does not know has no pages.
    pub fn drop_pages(&self, Range { node, offset, len }: Range) {
        if let Err(error) = self.forget_pages(node, offset, len) {
            tracing::debug!(node, %error, "no pages were dropped");
        }
    }

    /// Has the kernel send us a request that means nothing: a byte of the regular file `node`. (Of a
    /// directory, or of no byte, Linux 6.18 sends none.) Its number is ours to choose, and a ring's replies
    /// find their requests by that: two of the same number at a time would be taken for each other.
    ///
    /// # Errors
    /// ENOENT when the kernel does not know the node.
    pub fn provoke_request(&self, node: u64) -> io::Result<()> {
        let notify_unique = PROVOKED | self.provoked.fetch_add(1, Ordering::Relaxed) << 1;
        let nothing =
            NotifyRetrieveOut { notify_unique, nodeid: node, size: 1, ..NotifyRetrieveOut::default() };
        self.send(NOTIFY_RETRIEVE, &nothing)
    }

    fn invalidate(&self, node: u64, off: i64, len: i64) -> io::Result<()> {
        self.send(NOTIFY_INVAL_INODE, &NotifyInvalInodeOut { ino: node, off, len })
    }

    fn send<T: IntoBytes + Immutable>(&self, code: i32, what: &T) -> io::Result<()> {
        let len = size_of::<OutHeader>() + size_of::<T>();
        let header = OutHeader { len: len as u32, error: code, unique: 0 };
        rustix::io::writev(&self.device, &[IoSlice::new(header.as_bytes()), IoSlice::new(what.as_bytes())])?;
        Ok(())
    }
}
