//! What a door says to the kernel beside its replies, and the rule that somebody is left to serve what this
//! makes the kernel ask.

use std::fs::File;
use std::sync::Arc;

use super::crew::{Crew, Start};
use super::dispatch::Kernel;
use super::notify::Notifier;

/// Notifications on behalf of the threads of one queue.
pub struct Backchannel {
    /// Sends them.
    pub notifier: Notifier,
    /// The threads.
    pub crew: Crew,
}

impl Backchannel {
    /// Over the connection `device`, for `threads` threads that `start` starts.
    #[must_use]
    pub fn new(device: &Arc<File>, threads: usize, start: Start) -> Backchannel {
        Backchannel { notifier: Notifier::new(device.clone()), crew: Crew::new(threads, start) }
    }
}

impl Kernel for Backchannel {
    fn forget_pages(&self, node: u64, offset: u64, len: u64) {
        let waited = self.crew.wait_for_kernel(|| {
            if let Err(error) = self.notifier.forget_pages(node, offset, len) {
                tracing::debug!(node, %error, "no pages were dropped");
            }
        });
        if let Err(error) = waited {
            tracing::warn!(node, %error, "the kernel keeps old pages: no thread could be started");
        }
    }

    fn forget_attributes(&self, node: u64) {
        if let Err(error) = self.notifier.forget_attributes(node) {
            tracing::debug!(node, %error, "the kernel keeps old attributes");
        }
    }
}
