//! IO in flight: what truncate and punch must wait for before blocks may be freed, and what keeps
//! two writes of the same blocks from being on their way to the device at the same time.

use std::ops::Range;

use smallvec::SmallVec;

/// The device requests of one inode that are under way without its lock.
#[derive(Debug, Default)]
pub struct Flight {
    reads: u32,
    /// Block ranges being written; disjoint.
    writes: SmallVec<[Range<u64>; 8]>,
}

impl Flight {
    /// A read begins. Reads may overlap anything but the freeing of blocks.
    pub fn begin_read(&mut self) {
        self.reads += 1;
    }

    /// A read has ended.
    pub fn end_read(&mut self) {
        self.reads -= 1;
    }

    /// Whether a write of any block of `range` is under way.
    #[must_use]
    pub fn is_writing(&self, range: &Range<u64>) -> bool {
        self.writes.iter().any(|w| w.start < range.end && range.start < w.end)
    }

    /// A write of the blocks `range` begins, unless one that overlaps is under way.
    pub fn begin_write(&mut self, range: Range<u64>) -> bool {
        let free = !self.is_writing(&range);
        if free {
            self.writes.push(range);
        }
        free
    }

    /// The write of `range` has ended.
    pub fn end_write(&mut self, range: &Range<u64>) {
        if let Some(at) = self.writes.iter().position(|w| w == range) {
            self.writes.swap_remove(at);
        }
    }

    /// Whether the blocks of `range` may be freed: no read is under way, and no write of them.
    #[must_use]
    pub fn is_clear(&self, range: &Range<u64>) -> bool {
        self.reads == 0 && !self.is_writing(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_writes_exclude_each_other() {
        let mut flight = Flight::default();
        assert!(flight.begin_write(0..4));
        assert!(!flight.begin_write(3..5));
        assert!(flight.begin_write(4..8));
        flight.end_write(&(0..4));
        assert!(flight.begin_write(0..1));
        assert!(flight.is_clear(&(8..u64::MAX)));
        assert!(!flight.is_clear(&(7..9)));
        flight.begin_read();
        assert!(!flight.is_clear(&(8..9)));
    }
}
