//! The system zone: every block that belongs to the volume itself (superblocks, descriptors,
//! bitmaps, inode tables, the journal). No extent may name one, nobody may free or allocate one:
//! a damaged pointer must not make us overwrite metadata.

use ext4_format::BlockNo;

/// Sorted, disjoint, non-adjacent runs of blocks.
#[derive(Clone, Debug, Default)]
pub struct SystemZone {
    runs: Vec<(u64, u64)>,
}

impl SystemZone {
    /// The zone that covers `runs`, given as first block and length in any order.
    #[must_use]
    pub fn new(mut runs: Vec<(u64, u64)>) -> SystemZone {
        runs.retain(|(_, len)| *len > 0);
        runs.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, len) in runs {
            let end = start.saturating_add(len);
            match merged.last_mut() {
                Some((_, last)) if start <= *last => *last = end.max(*last),
                _ => merged.push((start, end)),
            }
        }
        merged.shrink_to_fit();
        SystemZone { runs: merged }
    }

    /// Whether any of the `len` blocks from `start` belongs to the volume itself.
    #[must_use]
    pub fn touches(&self, start: BlockNo, len: u64) -> bool {
        let end = start.0.saturating_add(len);
        let before = self.runs.partition_point(|(first, _)| *first < end);
        before > 0 && self.runs[before - 1].1 > start.0 && len > 0
    }

    /// Blocks in the zone.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.runs.iter().map(|(first, end)| end - first).sum()
    }

    /// The parts of the zone inside the `len` blocks from `start`, as first block and length.
    pub fn within(&self, start: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let end = start.saturating_add(len);
        let skip = self.runs.partition_point(|(_, last)| *last <= start);
        self.runs[skip..].iter().take_while(move |(first, _)| *first < end).map(move |(first, last)| {
            let first = (*first).max(start);
            (first, (*last).min(end) - first)
        })
    }
}

/// Collects runs that mostly continue one of the last few, as bitmaps and tables of neighbouring
/// groups do with flex_bg, so that the zone of a large volume is sorted from few runs.
#[derive(Debug, Default)]
pub struct Collector {
    runs: Vec<(u64, u64)>,
    open: [(u64, u64); 4],
    oldest: usize,
}

impl Collector {
    /// Adds the `len` blocks from `start`.
    pub fn add(&mut self, start: u64, len: u64) {
        if let Some(run) =
            self.open.iter_mut().find(|(first, n)| *n > 0 && first.checked_add(*n) == Some(start))
        {
            run.1 = run.1.saturating_add(len);
            return;
        }
        self.runs.push(std::mem::replace(&mut self.open[self.oldest], (start, len)));
        self.oldest = (self.oldest + 1) % self.open.len();
    }

    /// The zone of everything added.
    #[must_use]
    pub fn finish(mut self) -> SystemZone {
        self.runs.extend(self.open);
        SystemZone::new(self.runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_merge_and_are_found() {
        let mut zone = Collector::default();
        for (start, len) in
            [(100, 1), (200, 1), (300, 8), (101, 1), (201, 1), (308, 8), (0, 5), (1000, 2), (500, 1)]
        {
            zone.add(start, len);
        }
        let zone = zone.finish();
        assert_eq!(zone.runs, [(0, 5), (100, 102), (200, 202), (300, 316), (500, 501), (1000, 1002)]);
        for (start, len, expected) in [
            (5, 95, false),
            (5, 96, true),
            (102, 1, false),
            (101, 1, true),
            (1001, 7, true),
            (1002, 7, false),
            (4, 0, false),
        ] {
            assert_eq!(zone.touches(BlockNo(start), len), expected, "{start}+{len}");
        }
        assert_eq!(zone.within(3, 300).collect::<Vec<_>>(), [(3, 2), (100, 2), (200, 2), (300, 3)]);
    }
}
