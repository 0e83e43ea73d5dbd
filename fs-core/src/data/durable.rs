//! Which data writes a device flush has covered.
//!
//! Every data write that has returned gets a number. A flush covers the numbers given out before
//! it began; a journal commit flushes too, and what had a number when its transaction closed is
//! covered once it is durable. So an fsync asks for a flush of its own only when the last write of
//! its file is not covered yet, and any number of them share one.

use std::sync::atomic::{AtomicU64, Ordering};

use ext4_format::Tid;
use jbd2::Journal;

use crate::error::Result;
use crate::locks::{Condvar, Rank, RankedMutex};

/// The count of data writes and of those that are durable.
pub struct Durable {
    written: AtomicU64,
    covered: AtomicU64,
    state: RankedMutex<State>,
    flushed: Condvar,
}

#[derive(Default)]
struct State {
    flushing: bool,
    /// The transaction being committed, and the last number before it closed.
    closing: Option<(Tid, u64)>,
}

impl Default for Durable {
    fn default() -> Self {
        Durable {
            written: AtomicU64::new(0),
            covered: AtomicU64::new(0),
            state: RankedMutex::new(Rank::Leaf, State::default()),
            flushed: Condvar::default(),
        }
    }
}

impl Durable {
    /// Numbers a data write that has just returned.
    pub fn wrote(&self) -> u64 {
        self.written.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The number of the last write.
    pub fn last(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// The transaction `tid` is complete; its commit will flush the device.
    pub fn closing(&self, tid: Tid) {
        self.state.lock().closing = Some((tid, self.written.load(Ordering::Acquire)));
    }

    /// The transaction `tid` is durable.
    pub fn committed(&self, tid: Tid) {
        if let Some((closed, number)) = self.state.lock().closing
            && closed == tid
        {
            self.covered.fetch_max(number, Ordering::AcqRel);
        }
    }

    /// Returns when the write `number` and all before it are durable. Flushes the device, or waits
    /// for a thread that is doing so.
    pub fn make(&self, number: u64, journal: &Journal) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            if self.covered.load(Ordering::Acquire) >= number {
                return Ok(());
            }
            if !state.flushing {
                break;
            }
            self.flushed.wait(&mut state);
        }
        state.flushing = true;
        drop(state);
        let upto = self.written.load(Ordering::Acquire);
        let done = journal.flush_device();
        if done.is_ok() {
            self.covered.fetch_max(upto, Ordering::AcqRel);
        }
        self.state.lock().flushing = false;
        self.flushed.notify_all();
        Ok(done?)
    }
}
