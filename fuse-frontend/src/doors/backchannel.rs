//! What a door says to the kernel beside its replies, and the rule that somebody is left to serve what this
//! makes the kernel ask.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Part;
use super::caller_memory::CallerMemory;
use super::crew::{Act, Crew};
use super::dispatch::Kernel;
use super::notify::Notifier;
use super::old_pages::{OldPages, Range};

/// Notifications on behalf of the threads of one queue.
pub struct Backchannel {
    /// Sends them.
    pub notifier: Notifier,
    /// The threads.
    pub crew: Crew,
    /// A regular file that the kernel knows while a thread is started on its behalf: it has a request about
    /// it under way.
    file: AtomicU64,
    old_pages: Arc<OldPages>,
    caller_memory: Arc<CallerMemory>,
}

impl Backchannel {
    /// Over the connection of `part`, for `threads` threads; see [`Crew::new`].
    #[must_use]
    pub fn new(part: &Part, threads: usize, start: Act, rouse: Act) -> Backchannel {
        let (notifier, crew) = (Notifier::new(part.device.clone()), Crew::new(threads, start, rouse));
        let (old_pages, caller_memory) = (part.old_pages.clone(), part.caller_memory.clone());
        Backchannel { notifier, crew, file: AtomicU64::new(0), old_pages, caller_memory }
    }

    /// Has the kernel send a request, to the queue of the processor that this runs on.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn provoke_request(&self) -> io::Result<()> {
        self.notifier.provoke_request(self.file.load(Ordering::Relaxed))
    }

    /// Waits until the kernel has dropped them.
    ///
    /// # Errors
    /// Those of [`Crew::wait_for_kernel`]; nothing was dropped.
    fn drop_pages(&self, range: Range) -> io::Result<()> {
        // Whoever stores after us waits for the crew's lock, so its file is known as well.
        self.file.store(range.node, Ordering::Relaxed);
        self.crew.wait_for_kernel(|| self.notifier.drop_pages(range))
    }
}

impl Kernel for Backchannel {
    fn forget_pages(&self, node: u64, offset: u64, len: u64) {
        if let Err(error) = self.drop_pages(Range { node, offset, len }) {
            tracing::warn!(node, %error, "the kernel keeps its pages: nobody would be left to serve");
        }
    }

    fn forget_old_pages(&self, node: u64, offset: u64, len: u64) {
        let range = Range { node, offset, len };
        let waited = self.old_pages.turn().map(|_turn| self.drop_pages(range));
        if !matches!(waited, Some(Ok(()))) {
            self.old_pages.later(range);
        }
    }

    fn forget_attributes(&self, node: u64) {
        if let Err(error) = self.notifier.forget_attributes(node) {
            tracing::debug!(node, %error, "the kernel keeps old attributes");
        }
    }

    fn word_of_caller(&self, thread: u32, address: u64) -> io::Result<u32> {
        let mut word = Err(io::ErrorKind::WouldBlock.into());
        self.crew.wait_for_kernel(|| word = self.caller_memory.word(thread, address))?;
        word
    }
}
