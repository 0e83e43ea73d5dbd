//! Counters of the data path.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the data path has done since the mount, and what is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DataStats {
    /// Direct reads under way.
    pub direct_reads_in_flight: u64,
    /// Direct writes under way.
    pub direct_writes_in_flight: u64,
    /// Direct reads done.
    pub direct_reads: u64,
    /// Direct writes done.
    pub direct_writes: u64,
    /// Direct writes that needed no handle: every block was written already.
    pub overwrites: u64,
    /// Completed writes that joined a completed list.
    pub conversions_queued: u64,
    /// Those of them that were merged with a neighbour there.
    pub conversions_merged: u64,
    /// Ranges converted by the worker.
    pub conversions_by_worker: u64,
    /// Ranges converted by fsync, truncate and others who could not wait for the worker.
    pub conversions_by_fsync: u64,
    /// Files whose completed list is not empty.
    pub conversions_pending: u64,
    /// Runs of write-behind that were written out.
    pub flushes: u64,
    /// Bytes in write-behind.
    pub behind_bytes: u64,
}

/// A counter.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Number of things under way.
#[derive(Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Counts one more until the guard is dropped.
    pub fn enter(&self) -> Entered<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Entered(self)
    }
}

/// One thing under way.
pub struct Entered<'a>(&'a Gauge);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
pub struct Counters {
    pub reading: Gauge,
    pub writing: Gauge,
    pub reads: Counter,
    pub writes: Counter,
    pub overwrites: Counter,
    pub queued: Counter,
    pub merged: Counter,
    pub by_worker: Counter,
    pub by_fsync: Counter,
    pub flushes: Counter,
}

impl Counters {
    pub fn snapshot(&self, behind_bytes: u64, pending: u64) -> DataStats {
        DataStats {
            direct_reads_in_flight: self.reading.0.load(Ordering::Relaxed),
            direct_writes_in_flight: self.writing.0.load(Ordering::Relaxed),
            direct_reads: self.reads.get(),
            direct_writes: self.writes.get(),
            overwrites: self.overwrites.get(),
            conversions_queued: self.queued.get(),
            conversions_merged: self.merged.get(),
            conversions_by_worker: self.by_worker.get(),
            conversions_by_fsync: self.by_fsync.get(),
            conversions_pending: pending,
            flushes: self.flushes.get(),
            behind_bytes,
        }
    }
}
