//! A set of file blocks as merged, disjoint ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// File blocks, kept as ranges that neither overlap nor touch.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct BlockSet {
    /// First block to the block after the last.
    ranges: BTreeMap<u64, u64>,
    len: u64,
}

impl BlockSet {
    /// Whether no block is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of blocks in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Number of separate ranges.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.ranges.len()
    }

    /// The lowest range.
    #[must_use]
    pub fn first(&self) -> Option<Range<u64>> {
        self.ranges.first_key_value().map(|(&start, &end)| start..end)
    }

    /// Adds `range`; says whether it was merged with a range that was there.
    pub fn insert(&mut self, range: Range<u64>) -> bool {
        if range.is_empty() {
            return false;
        }
        let Range { mut start, mut end } = range;
        let mut merged = false;
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.ranges.remove(&s);
            self.len -= e - s;
            start = start.min(s);
            end = end.max(e);
            merged = true;
        }
        self.ranges.insert(start, end);
        self.len += end - start;
        merged
    }

    /// Takes `range` out; gives the number of blocks of it that were in the set.
    pub fn remove(&mut self, range: Range<u64>) -> u64 {
        let mut gone = 0;
        while let Some((&s, &e)) = self.ranges.range(..range.end).next_back() {
            if e <= range.start || range.is_empty() {
                break;
            }
            self.ranges.remove(&s);
            if s < range.start {
                self.ranges.insert(s, range.start);
            }
            if e > range.end {
                self.ranges.insert(range.end, e);
            }
            gone += e.min(range.end) - s.max(range.start);
        }
        self.len -= gone;
        gone
    }

    /// Whether `at` is in the set, and for how many blocks (at most `max`) that stays so.
    #[must_use]
    pub fn status(&self, at: u64, max: u64) -> (bool, u64) {
        if let Some((_, &e)) = self.ranges.range(..=at).next_back()
            && e > at
        {
            return (true, max.min(e - at));
        }
        let next = self.ranges.range(at..).next().map_or(u64::MAX, |(&s, _)| s);
        (false, max.min(next - at))
    }

    /// Number of blocks of `range` that are in the set.
    #[must_use]
    pub fn count(&self, range: Range<u64>) -> u64 {
        let mut count = 0;
        let mut at = range.start;
        while at < range.end {
            let (inside, len) = self.status(at, range.end - at);
            count += if inside { len } else { 0 };
            at += len;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(edits in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 1..60)) {
            let mut set = BlockSet::default();
            let mut model = BTreeSet::new();
            for (add, start, len) in edits {
                let range = start..start + len;
                if add {
                    let touching = model.range(start.saturating_sub(1)..=range.end).next().is_some();
                    prop_assert_eq!(set.insert(range.clone()), touching && len > 0);
                    model.extend(range);
                } else {
                    let gone = range.clone().filter(|b| model.remove(b)).count();
                    prop_assert_eq!(set.remove(range), gone as u64);
                }
                prop_assert_eq!(set.len(), model.len() as u64);
                for at in 0..80 {
                    let (inside, run) = set.status(at, 20);
                    prop_assert_eq!(inside, model.contains(&at));
                    prop_assert!(run > 0);
                    prop_assert!((at..at + run).all(|b| model.contains(&b) == inside));
                    prop_assert!(run == 20 || model.contains(&(at + run)) != inside);
                }
                let starts = model.iter().filter(|b| **b == 0 || !model.contains(&(**b - 1))).count();
                prop_assert_eq!(set.pieces(), starts);
                prop_assert_eq!(set.count(5..50), model.range(5..50).count() as u64);
            }
        }
    }
}
