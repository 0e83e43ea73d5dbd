//! Where threads begin, sleep and end; nothing else in the core does any of it.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A thread of the core.
pub(crate) struct Thread(JoinHandle<()>);

impl Thread {
    /// Starts a thread.
    ///
    /// # Errors
    /// The system's, when it has none to give.
    pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
        thread::Builder::new().name(name.into()).spawn(body).map(Thread)
    }

    /// Waits for its end. A thread that would wait for itself (it may give up the last reference
    /// to what owns it) goes on.
    pub fn join(self) {
        if self.0.thread().id() != thread::current().id() {
            let _ = self.0.join();
        }
    }
}

/// Rests.
pub(crate) fn sleep(time: Duration) {
    thread::sleep(time);
}

/// Whether this thread is unwinding.
pub(crate) fn is_panicking() -> bool {
    thread::panicking()
}
