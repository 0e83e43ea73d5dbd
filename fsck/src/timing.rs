//! What a check has cost: `-t`, and for each pass `-t -t`.

use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// The state of the clocks and counters at one moment.
pub struct Meter {
    started: Instant,
    /// Microseconds of this process in user space and in the kernel.
    spent: (i64, i64),
    /// Bytes read and written.
    moved: (u64, u64),
}

impl Meter {
    /// From now on.
    pub fn start() -> Meter {
        Meter { started: Instant::now(), spent: spent(), moved: moved() }
    }

    /// What it has cost since, in e2fsck's words: memory in KiB; wall, user and system time in seconds.
    pub fn summary(&self) -> String {
        let wall = self.started.elapsed().as_secs_f64();
        let (user, system) = spent();
        let (read, written) = moved();
        let seconds = |microseconds: i64| microseconds as f64 / 1e6;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let (read, written) = (read.saturating_sub(self.moved.0), written.saturating_sub(self.moved.1));
        format!(
            "Memory used: {}k, time: {wall:5.2}/{:5.2}/{:5.2}\nI/O read: {}MB, write: {}MB, rate: {:.2}MB/s\n",
            peak(),
            seconds(user - self.spent.0),
            seconds(system - self.spent.1),
            mib(read),
            mib(written),
            (read + written) as f64 / (1 << 20) as f64 / wall.max(1e-6)
        )
    }
}

fn spent() -> (i64, i64) {
    getrusage(UsageWho::RUSAGE_SELF).map_or((0, 0), |usage| {
        (usage.user_time().num_microseconds(), usage.system_time().num_microseconds())
    })
}

/// The largest resident memory so far, in KiB.
fn peak() -> i64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss())
}

/// Bytes that went through read and write calls, as the kernel counts them.
fn moved() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let count = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
    (count("rchar:").unwrap_or(0), count("wchar:").unwrap_or(0))
}
