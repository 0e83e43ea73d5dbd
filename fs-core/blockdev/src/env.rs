//! The world outside the disk, given at mount so that a test can hold it still: time, chance
//! and who runs the background work.

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A point in time: seconds since 1970 and nanoseconds below a second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp {
    /// Seconds since the epoch; negative before it.
    pub sec: i64,
    /// Nanoseconds, below 1 000 000 000.
    pub nsec: u32,
}

/// Tells the time.
pub trait Clock: Send + Sync {
    /// The wall clock now.
    fn now(&self) -> Timestamp;

    /// Time since the machine started, which nobody sets; goes on while the machine sleeps.
    fn since_boot(&self) -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        Duration::new(now.tv_sec.max(0) as u64, now.tv_nsec.clamp(0, 999_999_999) as u32)
    }
}

/// Draws random numbers (inode generations, new hash seeds, UUIDs).
pub trait Chance: Send + Sync {
    /// The next number.
    fn next_u64(&self) -> u64;
}

/// Who runs the background loops (commit timer, write-behind, conversion, checkpoint).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workers {
    /// Threads of their own.
    Threads,
    /// Nobody: the test calls each loop's `step`, so that the interleaving is its own.
    Manual,
}

/// What a volume needs from outside.
#[derive(Clone)]
pub struct Env {
    /// The clock behind every timestamp that the server itself sets.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness.
    pub chance: Arc<dyn Chance>,
    /// Who runs the background loops.
    pub workers: Workers,
}

impl Env {
    /// The machine's clock and randomness, and real threads.
    #[must_use]
    pub fn system() -> Env {
        Env { clock: Arc::new(SystemClock), chance: Arc::new(SystemChance), workers: Workers::Threads }
    }
}

struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // The clock of the kernel's own timestamps: with a finer one, what the kernel stamps after us would
        // seem to have come before.
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Timestamp { sec: now.tv_sec, nsec: now.tv_nsec as u32 }
    }
}

struct SystemChance;

impl Chance for SystemChance {
    fn next_u64(&self) -> u64 {
        // RandomState draws from the operating system; one hasher gives one number.
        use std::hash::{BuildHasher, Hasher};
        std::hash::RandomState::new().build_hasher().finish()
    }
}

/// The name of this machine, as other hosts that share a device know it.
#[must_use]
pub fn host_name() -> Vec<u8> {
    let name = std::fs::read("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_ascii_end().to_vec()
}
