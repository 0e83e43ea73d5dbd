//! Counters of the data path.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the data path has done since the mount, and what is under way. `Display` gives one
/// `name: value` a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DataStats {
    /// Direct reads under way.
    pub direct_reads_in_flight: u64,
    /// Direct writes under way.
    pub direct_writes_in_flight: u64,
    /// Direct reads begun.
    pub direct_reads: u64,
    /// Direct writes begun.
    pub direct_writes: u64,
    /// Writes of data that needed no handle: every block was written already.
    pub overwrites: u64,
    /// Ranges that joined a completed list.
    pub conversions_queued: u64,
    /// Those of them that were merged with a neighbour there.
    pub conversions_merged: u64,
    /// Ranges converted by the worker.
    pub conversions_by_worker: u64,
    /// Ranges converted by fsync, truncate and others who could not wait for the worker.
    pub conversions_by_fsync: u64,
    /// Ranges converted by writers, because too many waited for the worker.
    pub conversions_by_writers: u64,
    /// Ranges that wait for their conversion.
    pub conversions_pending: u64,
    /// Files that they belong to.
    pub files_pending: u64,
    /// Runs of write-behind that were written out.
    pub flushes: u64,
    /// Bytes in write-behind.
    pub behind_bytes: u64,
}

impl fmt::Display for DataStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = [
            ("direct_reads_in_flight", self.direct_reads_in_flight),
            ("direct_writes_in_flight", self.direct_writes_in_flight),
            ("direct_reads", self.direct_reads),
            ("direct_writes", self.direct_writes),
            ("overwrites", self.overwrites),
            ("conversions_queued", self.conversions_queued),
            ("conversions_merged", self.conversions_merged),
            ("conversions_by_worker", self.conversions_by_worker),
            ("conversions_by_fsync", self.conversions_by_fsync),
            ("conversions_by_writers", self.conversions_by_writers),
            ("conversions_pending", self.conversions_pending),
            ("files_pending", self.files_pending),
            ("flushes", self.flushes),
            ("behind_bytes", self.behind_bytes),
        ];
        lines.iter().try_for_each(|(name, value)| writeln!(f, "{name}: {value}"))
    }
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

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
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
    pub by_writer: Counter,
    pub flushes: Counter,
}
