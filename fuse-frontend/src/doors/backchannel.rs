//! What a door says to the kernel beside its replies, and the rule that somebody is left to serve what this
//! makes the kernel ask.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::crew::{Crew, Start};
use super::dispatch::Kernel;
use super::notify::Notifier;

/// Notifications on behalf of the threads of one queue.
pub struct Backchannel {
    /// Sends them.
    pub notifier: Notifier,
    /// The threads.
    pub crew: Crew,
    /// A regular file that the kernel knows while a thread is started on its behalf: it has a request about it under way.
    file: AtomicU64,
}

impl Backchannel {
    /// Over the connection `device`, for `threads` threads that `start` starts.
    #[must_use]
    pub fn new(device: &Arc<File>, threads: usize, start: Start) -> Backchannel {
        let crew = Crew::new(threads, start);
        Backchannel { notifier: Notifier::new(device.clone()), crew, file: AtomicU64::new(0) }
    }

    /// Has the kernel send a request, to the queue of the processor that this runs on.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn provoke_request(&self) -> io::Result<()> {
        self.notifier.provoke_request(self.file.load(Ordering::Relaxed))
    }
}

impl Kernel for Backchannel {
    fn forget_pages(&self, node: u64, offset: u64, len: u64) {
        // Whoever stores after us waits for the crew's lock, so its file is known as well.
        self.file.store(node, Ordering::Relaxed);
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
