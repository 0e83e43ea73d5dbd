//! Counters of what the journal did since it was opened.

use std::sync::atomic::{AtomicU64, Ordering};

/// A reading of the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Transactions made durable.
    pub commits: u64,
    /// Callers of `commit` that waited for a commit another thread led.
    pub followers: u64,
    /// Blocks that those transactions wrote.
    pub committed_blocks: u64,
    /// Checkpoints that moved the log's tail.
    pub checkpoints: u64,
    /// Blocks written to their own places.
    pub home_blocks: u64,
    /// Blocks read from the device.
    pub loads: u64,
    /// Reads answered from the cache.
    pub hits: u64,
    /// Blocks in the cache now.
    pub cached: u64,
    /// Log blocks in use now, and the size of the log's ring.
    pub log_used: u64,
    /// Log blocks of the ring.
    pub log_size: u64,
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub commits: Counter,
    pub followers: Counter,
    pub committed_blocks: Counter,
    pub checkpoints: Counter,
    pub home_blocks: Counter,
    pub loads: Counter,
    pub hits: Counter,
}
