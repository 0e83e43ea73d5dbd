//! A word of a caller's memory, which its request does not bring along.
//!
//! To read it may wait: for a page of a file of this very mount, whose READ is a request to us, or for a lock
//! that the caller's other threads hold. So no thread that serves reads it. One is started for it, and
//! the answer waits no longer than `PATIENCE`; what cannot be read by then stays unknown. No more than
//! `MOST` of them are there at a time, however many callers have memory that never comes.
//!
//! The caller waits for its answer meanwhile, so its number is no other thread's. If the wait ends first,
//! whatever is read afterwards is thrown away.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Threads that read at a time.
const MOST: usize = 4;
/// How long an answer waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// Reads callers' memory.
#[derive(Default)]
pub struct CallerMemory {
    readers: AtomicUsize,
}

/// A reader's place among [`MOST`].
struct Place(Arc<CallerMemory>);

impl CallerMemory {
    /// The word at `address` in the memory of `thread`. Waits, also for requests of this mount.
    ///
    /// # Errors
    /// EFAULT where nothing is mapped; `PermissionDenied` without the right to trace the thread; `TimedOut`;
    /// `WouldBlock` when too many wait already; those of starting a thread.
    pub fn word(self: &Arc<CallerMemory>, thread: u32, address: u64) -> io::Result<u32> {
        self.wait_for(move || read(thread, address))
    }

    fn wait_for(
        self: &Arc<CallerMemory>,
        read: impl FnOnce() -> io::Result<u32> + Send + 'static,
    ) -> io::Result<u32> {
        let place = self.place().ok_or(io::ErrorKind::WouldBlock)?;
        let (tell, told) = sync_channel(1);
        std::thread::Builder::new().name("rext4-caller".into()).spawn(move || {
            let word = read();
            drop(place);
            // Nobody waits any more when it took too long.
            let _ = tell.send(word);
        })?;
        told.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn place(self: &Arc<CallerMemory>) -> Option<Place> {
        let more = |readers| (readers < MOST).then_some(readers + 1);
        self.readers.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

fn read(thread: u32, address: u64) -> io::Result<u32> {
    let memory = File::open(format!("/proc/{thread}/mem"))?;
    let mut word = [0; 4];
    memory.read_exact_at(&mut word, address).map_err(|error| match error.raw_os_error() {
        // What this file says of an address that cannot be read.
        Some(libc::EIO) => io::Error::from_raw_os_error(libc::EFAULT),
        _ => error,
    })?;
    Ok(u32::from_ne_bytes(word))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_word_is_read_and_a_wrong_address_is_told() {
        let memory = Arc::new(CallerMemory::default());
        let word = Box::new(0x1234_5678u32);
        let me = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let address = std::ptr::from_ref(&*word).addr() as u64;
        assert_eq!(memory.word(me, address).unwrap(), 0x1234_5678);
        assert_eq!(memory.word(me, 8).unwrap_err().raw_os_error(), Some(libc::EFAULT));
        assert!(memory.word(0, address).is_err());
    }

    #[test]
    fn nobody_waits_for_ever_and_only_some_wait() {
        let memory = Arc::new(CallerMemory::default());
        let mut stuck = Vec::new();
        for _ in 0..MOST {
            let (release, released) = channel::<()>();
            stuck.push(release);
            let memory = memory.clone();
            std::thread::spawn(move || {
                memory.wait_for(move || {
                    let _ = released.recv();
                    Ok(0)
                })
            });
        }
        while memory.readers.load(Ordering::Acquire) < MOST {
            std::thread::yield_now();
        }
        assert_eq!(memory.word(1, 0).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(stuck.pop());
        let late = loop {
            match memory.wait_for(|| {
                std::thread::sleep(2 * PATIENCE);
                Ok(0)
            }) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                late => break late,
            }
        };
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
