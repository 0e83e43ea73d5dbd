//! Pages that the kernel has read while a direct write was on its way, and that are older than it.
//!
//! They are dropped before the write is answered. Dropping waits for READs of the same pages; and READs and
//! asynchronous direct writes are background requests alike, of which the kernel has no more than
//! [`MAX_BACKGROUND`] under way: if all of these were writes that wait, no READ would come any more. So only
//! `MOST` answers wait at a time. The others are given at once, and a thread of its own drops their pages.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use super::handshake::MAX_BACKGROUND;
use super::reserve::Reserve;

/// Answers that may wait at a time.
const MOST: usize = MAX_BACKGROUND as usize / 2;

/// Bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The file.
    pub node: u64,
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

/// Decides which answers wait, and has the thread for the others.
pub struct OldPages {
    waiting: AtomicUsize,
    late: Sender<Range>,
}

/// Permission for one answer to wait.
pub struct Turn(Arc<OldPages>);

impl OldPages {
    /// Pages are dropped by `forget`, on a thread of `reserve`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn new(reserve: &Reserve, forget: impl Fn(Range) + Send + 'static) -> io::Result<Arc<OldPages>> {
        let (late, owed) = channel();
        reserve.run("rext4-pages", move || owed.into_iter().for_each(forget))?;
        Ok(Arc::new(OldPages { waiting: AtomicUsize::new(0), late }))
    }

    /// Whether the answer that asks may wait until its pages are dropped.
    #[must_use]
    pub fn turn(self: &Arc<OldPages>) -> Option<Turn> {
        let more = |waiting| (waiting < MOST).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Turn(self.clone()))
    }

    /// Has them dropped without waiting for it.
    pub fn later(&self, range: Range) {
        // The thread ends after us.
        let _ = self.late.send(range);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_wait_and_the_others_are_not_forgotten() {
        let (tell, told) = channel();
        let reserve = Reserve::new(1).unwrap();
        let pages = OldPages::new(&reserve, move |range| tell.send(range).unwrap()).unwrap();
        let turns: Vec<Turn> = std::iter::from_fn(|| pages.turn()).collect();
        assert!(!turns.is_empty() && turns.len() < usize::from(MAX_BACKGROUND));
        let range = Range { node: 7, offset: 4096, len: 1 };
        pages.later(range);
        assert_eq!(told.recv(), Ok(range));
        drop(turns);
        assert!(pages.turn().is_some());
    }
}
