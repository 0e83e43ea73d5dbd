//! The blocks in use on a volume that is being laid out, as runs: cheap where a bitmap of 16 TiB is not.

use std::collections::BTreeMap;
use std::ops::Range;

/// Blocks in use, as merged runs from first block to one past the last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UsedBlocks(BTreeMap<u64, u64>);

impl UsedBlocks {
    /// The end of the run that covers a block.
    fn run_over(&self, block: u64) -> Option<u64> {
        self.0.range(..=block).next_back().map(|(_, end)| *end).filter(|end| *end > block)
    }

    /// Whether none of the blocks is in use.
    #[must_use]
    pub fn is_free(&self, first: u64, count: u64) -> bool {
        self.run_over(first).is_none() && self.0.range(first..first + count).next().is_none()
    }

    /// Takes blocks that are free.
    pub fn take(&mut self, first: u64, count: u64) {
        debug_assert!(self.is_free(first, count), "blocks {first}+{count} are taken twice");
        let mut end = first + count;
        if let Some(after) = self.0.remove(&end) {
            end = after;
        }
        match self.0.range_mut(..first).next_back() {
            Some((_, before)) if *before == first => *before = end,
            _ => {
                self.0.insert(first, end);
            }
        }
    }

    /// The first run of free blocks at or after the start of a range, cut off at its end.
    #[must_use]
    pub fn next_free(&self, range: Range<u64>) -> Option<Range<u64>> {
        let start = self.run_over(range.start).unwrap_or(range.start);
        if start >= range.end {
            return None;
        }
        let end = self.0.range(start..range.end).next().map_or(range.end, |(next, _)| *next);
        Some(start..end)
    }

    /// The first `count` free blocks in a row inside a range.
    #[must_use]
    pub fn find(&self, range: Range<u64>, count: u64) -> Option<u64> {
        let mut at = range.start;
        while let Some(free) = self.next_free(at..range.end) {
            if free.end - free.start >= count {
                return Some(free.start);
            }
            at = free.end;
        }
        None
    }

    /// The runs in use inside a range.
    pub fn runs_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.run_over(range.start).map(|end| range.start..end.min(range.end));
        let from = if first.is_some() { range.start + 1 } else { range.start };
        let rest =
            self.0.range(from..range.end.max(from)).map(move |(start, end)| *start..(*end).min(range.end));
        first.into_iter().chain(rest)
    }

    /// How many blocks of a range are in use.
    #[must_use]
    pub fn count_in(&self, range: Range<u64>) -> u64 {
        self.runs_in(range).map(|run| run.end - run.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_agree_with_a_plain_array(
            takes in prop::collection::vec((0..200u64, 1..20u64), 0..40),
            a in 0..220u64, b in 0..220u64, count in 1..10u64,
        ) {
            let mut used = UsedBlocks::default();
            let mut model = [false; 240];
            for (first, len) in takes {
                let free = model[first as usize..(first + len) as usize].iter().all(|taken| !taken);
                prop_assert_eq!(used.is_free(first, len), free);
                if free {
                    used.take(first, len);
                    model[first as usize..(first + len) as usize].fill(true);
                }
            }
            let range = a.min(b)..a.max(b);
            let taken = range.clone().filter(|i| model[*i as usize]).collect::<Vec<_>>();
            prop_assert_eq!(used.count_in(range.clone()), taken.len() as u64);
            prop_assert_eq!(used.runs_in(range.clone()).flatten().collect::<Vec<_>>(), taken);
            let found = range.clone().find(|at| {
                at + count <= range.end && (*at..at + count).all(|i| !model[i as usize])
            });
            prop_assert_eq!(used.find(range, count), found);
        }
    }
}
