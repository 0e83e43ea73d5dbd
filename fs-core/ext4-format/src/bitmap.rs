//! Bitmaps of blocks and inodes: a bit is set when the thing is in use; bit 0 is the lowest of byte 0.
//!
//! Views over the bytes of a bitmap block, worked on 64 bits at a time. A range reaching past the end is cut
//! off there, except where a conflict is an error. Allocation sets bits that must be clear and
//! freeing clears bits that must be set: both refuse without changing anything, which finds double use.

use std::ops::Range;

const WORD: u32 = 64;

/// A bitmap to look at.
#[derive(Clone, Copy, Debug)]
pub struct Bits<'a> {
    bytes: &'a [u8],
    len: u32,
}

/// A bitmap to change.
#[derive(Debug)]
pub struct BitsMut<'a> {
    bytes: &'a mut [u8],
    len: u32,
}

/// What a bitmap says as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Clear bits.
    pub free: u32,
    /// Runs of clear bits.
    pub fragments: u32,
    /// Length of the longest run of clear bits.
    pub longest: u32,
}

/// The bits of word `index` that lie in `range`, as a mask.
fn mask(index: u32, range: &Range<u32>) -> u64 {
    let base = index * WORD;
    let low = range.start.saturating_sub(base).min(WORD);
    let high = range.end.saturating_sub(base).min(WORD);
    if low >= high { 0 } else { !0u64 >> (WORD - (high - low)) << low }
}

fn words(range: &Range<u32>) -> Range<u32> {
    if range.is_empty() { 0..0 } else { range.start / WORD..range.end.div_ceil(WORD) }
}

impl<'a> Bits<'a> {
    /// The first `len` bits of `bytes`, or all of them if there are fewer.
    #[must_use]
    pub fn new(bytes: &'a [u8], len: u32) -> Bits<'a> {
        let most = u32::try_from(bytes.len().saturating_mul(8)).unwrap_or(u32::MAX);
        Bits { bytes, len: len.min(most) }
    }

    /// Number of bits.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no bits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn word(&self, index: u32) -> u64 {
        let at = index as usize * 8;
        match self.bytes.get(at..at + 8) {
            Some(bytes) => u64::from_le_bytes(bytes.try_into().unwrap_or_default()),
            None => {
                let mut word = [0; 8];
                let rest = self.bytes.get(at..).unwrap_or_default();
                word[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(word)
            }
        }
    }

    fn clip(&self, range: Range<u32>) -> Range<u32> {
        range.start.min(self.len)..range.end.min(self.len)
    }

    /// Whether a bit is set; `false` past the end.
    #[must_use]
    pub fn get(&self, bit: u32) -> bool {
        bit < self.len && self.word(bit / WORD) >> (bit % WORD) & 1 == 1
    }

    /// Set bits in a range.
    #[must_use]
    pub fn count_set(&self, range: Range<u32>) -> u32 {
        let range = self.clip(range);
        words(&range).map(|i| (self.word(i) & mask(i, &range)).count_ones()).sum()
    }

    /// Clear bits in a range.
    #[must_use]
    pub fn count_clear(&self, range: Range<u32>) -> u32 {
        let range = self.clip(range);
        (range.end.saturating_sub(range.start)) - self.count_set(range)
    }

    /// The first set bit in a range.
    #[must_use]
    pub fn first_set(&self, range: Range<u32>) -> Option<u32> {
        self.first(range, 0)
    }

    /// The first clear bit in a range.
    #[must_use]
    pub fn first_clear(&self, range: Range<u32>) -> Option<u32> {
        self.first(range, !0)
    }

    fn first(&self, range: Range<u32>, flip: u64) -> Option<u32> {
        let range = self.clip(range);
        words(&range).find_map(|i| {
            let hits = (self.word(i) ^ flip) & mask(i, &range);
            (hits != 0).then(|| i * WORD + hits.trailing_zeros())
        })
    }

    /// The run of clear bits that begins at or after the start of a range, cut off at its end.
    #[must_use]
    pub fn next_clear_run(&self, range: Range<u32>) -> Option<Range<u32>> {
        let range = self.clip(range);
        let start = self.first_clear(range.clone())?;
        Some(start..self.first_set(start..range.end).unwrap_or(range.end))
    }

    /// All runs of clear bits in a range, in order.
    pub fn clear_runs(self, range: Range<u32>) -> impl Iterator<Item = Range<u32>> + 'a {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let run = self.next_clear_run(at..range.end)?;
            at = run.end;
            Some(run)
        })
    }

    /// All runs of set bits in a range, in order.
    pub fn set_runs(self, range: Range<u32>) -> impl Iterator<Item = Range<u32>> + 'a {
        let range = self.clip(range);
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = self.first_set(at..range.end)?;
            at = self.first_clear(start..range.end).unwrap_or(range.end);
            Some(start..at)
        })
    }

    /// Free bits, fragments and the longest run, in one pass.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.clear_runs(0..self.len).fold(Summary::default(), |sum, run| {
            let len = run.end - run.start;
            Summary { free: sum.free + len, fragments: sum.fragments + 1, longest: sum.longest.max(len) }
        })
    }
}

impl<'a> BitsMut<'a> {
    /// The first `len` bits of `bytes`, or all of them if there are fewer.
    #[must_use]
    pub fn new(bytes: &'a mut [u8], len: u32) -> BitsMut<'a> {
        let len = Bits::new(bytes, len).len;
        BitsMut { bytes, len }
    }

    /// The same bits, to look at.
    #[must_use]
    pub fn view(&self) -> Bits<'_> {
        Bits { bytes: self.bytes, len: self.len }
    }

    /// Sets or clears a range whatever it was; cut off at the end.
    pub fn fill(&mut self, range: Range<u32>, value: bool) {
        let range = self.view().clip(range);
        for index in words(&range) {
            let bits = mask(index, &range);
            let old = self.view().word(index);
            let new = if value { old | bits } else { old & !bits };
            let at = index as usize * 8;
            let end = (at + 8).min(self.bytes.len());
            self.bytes[at..end].copy_from_slice(&new.to_le_bytes()[..end - at]);
        }
    }

    /// Sets a range of clear bits. If one is set already, or lies past the end, nothing changes and it is
    /// named.
    pub fn set(&mut self, range: Range<u32>) -> Result<(), u32> {
        self.change(range, true)
    }

    /// Clears a range of set bits. If one is clear already, or lies past the end, nothing changes and it is
    /// named.
    pub fn clear(&mut self, range: Range<u32>) -> Result<(), u32> {
        self.change(range, false)
    }

    fn change(&mut self, range: Range<u32>, value: bool) -> Result<(), u32> {
        if range.end > self.len {
            return Err(range.start.max(self.len));
        }
        let view = self.view();
        let conflict = if value { view.first_set(range.clone()) } else { view.first_clear(range.clone()) };
        match conflict {
            Some(bit) => Err(bit),
            None => {
                self.fill(range, value);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitvec::prelude::{BitSlice, Lsb0};
    use proptest::prelude::*;

    fn bitmap() -> impl Strategy<Value = (Vec<u8>, u32)> {
        let byte = prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
        (prop::collection::vec(byte, 0..80), 0..700u32)
    }

    proptest! {
        #[test]
        fn looking_agrees_with_bitvec((bytes, len) in bitmap(), a in 0..700u32, b in 0..700u32) {
            let bits = Bits::new(&bytes, len);
            let model = BitSlice::<u8, Lsb0>::from_slice(&bytes);
            let model = &model[..bits.len() as usize];
            let (a, b) = (a.min(b), a.max(b));
            let (from, to) = (a.min(bits.len()) as usize, b.min(bits.len()) as usize);
            prop_assert_eq!(bits.get(a), model.get(a as usize).is_some_and(|bit| *bit));
            prop_assert_eq!(bits.count_set(a..b) as usize, model[from..to].count_ones());
            prop_assert_eq!(bits.count_clear(a..b) as usize, model[from..to].count_zeros());
            prop_assert_eq!(bits.first_set(a..b), model[from..to].first_one().map(|i| (i + from) as u32));
            prop_assert_eq!(bits.first_clear(a..b), model[from..to].first_zero().map(|i| (i + from) as u32));

            let zeros: Vec<u32> = model[from..to].iter_zeros().map(|i| (i + from) as u32).collect();
            let runs: Vec<_> = bits.clear_runs(a..b).collect();
            prop_assert_eq!(runs.iter().cloned().flatten().collect::<Vec<_>>(), zeros);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            let ones: Vec<u32> = model[from..to].iter_ones().map(|i| (i + from) as u32).collect();
            prop_assert_eq!(bits.set_runs(a..b).flatten().collect::<Vec<_>>(), ones);
            let summary = bits.summary();
            prop_assert_eq!(summary.free as usize, model.count_zeros());
        }

        #[test]
        fn changing_agrees_with_bitvec((bytes, len) in bitmap(), a in 0..700u32, b in 0..700u32, value: bool) {
            let range = a.min(b)..a.max(b);
            let mut ours = bytes.clone();
            let mut bits = BitsMut::new(&mut ours, len);
            let len = bits.view().len();
            let result = if value { bits.set(range.clone()) } else { bits.clear(range.clone()) };
            let mut theirs = bytes.clone();
            let model = BitSlice::<u8, Lsb0>::from_slice_mut(&mut theirs);
            let fits = range.end <= len;
            if fits && model[range.start as usize..range.end as usize].iter().all(|bit| *bit != value) {
                model[range.start as usize..range.end as usize].fill(value);
                prop_assert_eq!(result, Ok(()));
            } else {
                let bit = result.unwrap_err();
                prop_assert!(!fits || range.contains(&bit));
                prop_assert!(bit >= len || model[bit as usize] == value || !fits);
            }
            prop_assert_eq!(&ours, &theirs);

            let mut bits = BitsMut::new(&mut ours, len);
            bits.fill(range.clone(), value);
            let model = BitSlice::<u8, Lsb0>::from_slice_mut(&mut theirs);
            model[range.start.min(len) as usize..range.end.min(len) as usize].fill(value);
            prop_assert_eq!(&ours, &theirs);
        }
    }
}
