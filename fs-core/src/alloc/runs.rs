//! The free runs of one group, searchable: a bitmap of what may be handed out and, over its
//! 64-bit words, a tree whose nodes know the free run at their start, at their end, and the
//! longest anywhere in between.
//!
//! The tree is exact: "is there a run of n blocks, and which is the first one behind this block"
//! costs a walk down, a change costs a walk up from the words it touched. For a group of 32768
//! blocks both parts together take 10 KiB. It knows nothing of transactions or the disk.

use std::ops::Range;

const WORD: u32 = u64::BITS;

/// Most blocks of a group that the tree can count. `mke2fs` stays below (`-g` up to 65528).
pub const MAX_BLOCKS: u32 = u16::MAX as u32 / WORD * WORD;

/// Free blocks at the start, at the end, and in the longest run of a node's span.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Span {
    head: u16,
    tail: u16,
    longest: u16,
}

impl Span {
    fn of_word(word: u64) -> Span {
        Span {
            head: word.trailing_ones() as u16,
            tail: word.leading_ones() as u16,
            longest: longest_ones(word) as u16,
        }
    }

    /// Two neighbours, each `half` blocks long.
    fn join(left: Span, right: Span, half: u32) -> Span {
        let full = half as u16;
        Span {
            head: if left.head == full { full + right.head } else { left.head },
            tail: if right.tail == full { full + left.tail } else { right.tail },
            longest: left.longest.max(right.longest).max(left.tail + right.head),
        }
    }
}

/// Which blocks of a group are free, in block numbers from the group's first.
#[derive(Debug)]
pub struct FreeRuns {
    words: Vec<u64>,
    /// A complete binary tree: node `n` has children `2n` and `2n + 1`, the leaves are the words.
    tree: Vec<Span>,
}

impl FreeRuns {
    /// The clear bits among the first `blocks` bits of an on-disk bitmap. Bits behind its end
    /// count as taken.
    #[must_use]
    pub fn from_bitmap(bitmap: &[u8], blocks: u32) -> FreeRuns {
        let blocks = blocks.min(MAX_BLOCKS);
        let mut words = vec![0; blocks.div_ceil(WORD) as usize];
        for (word, bytes) in words.iter_mut().zip(bitmap.chunks(8)) {
            let mut full = [0xff; 8];
            full[..bytes.len()].copy_from_slice(bytes);
            *word = !u64::from_le_bytes(full);
        }
        if let Some(last) = words.last_mut()
            && !blocks.is_multiple_of(WORD)
        {
            *last &= (1 << (blocks % WORD)) - 1;
        }
        let leaves = words.len().next_power_of_two();
        let mut runs = FreeRuns { words, tree: vec![Span::default(); 2 * leaves] };
        for (at, word) in runs.words.iter().enumerate() {
            runs.tree[leaves + at] = Span::of_word(*word);
        }
        runs.rejoin(leaves, 2 * leaves - 1, WORD);
        runs
    }

    /// Length of the longest run.
    #[must_use]
    pub fn longest(&self) -> u32 {
        self.tree.get(1).map_or(0, |root| root.longest.into())
    }

    /// Length of the run that starts at `at`, counted up to `max`.
    #[must_use]
    pub fn run_at(&self, at: u32, max: u32) -> u32 {
        let mut len = 0;
        while len < max {
            let bit = (at + len) % WORD;
            let Some(word) = self.words.get(((at + len) / WORD) as usize) else { break };
            let ones = (word >> bit).trailing_ones();
            len += ones;
            if ones < WORD - bit {
                break;
            }
        }
        len.min(max)
    }

    /// Whether no block of `range` is free.
    #[cfg(any(test, feature = "internals"))]
    #[must_use]
    pub fn none_in(&self, range: Range<u32>) -> bool {
        self.words_of(range).all(|(at, mask)| self.words[at] & mask == 0)
    }

    /// The first run of at least `want` blocks, counting only blocks from `from` on.
    #[must_use]
    pub fn find(&self, from: u32, want: u32) -> Option<u32> {
        let mut search = Search { runs: self, from, want: want.max(1), behind: 0 };
        search.node(1, 0, self.tree.len() as u32 / 2 * WORD)
    }

    /// Marks `range` free or taken. Blocks outside the group are ignored.
    pub fn set(&mut self, range: Range<u32>, free: bool) {
        let leaves = self.tree.len() / 2;
        let mut touched: Option<(usize, usize)> = None;
        for (at, mask) in self.words_of(range) {
            let old = self.words[at];
            let new = if free { old | mask } else { old & !mask };
            self.words[at] = new;
            self.tree[leaves + at] = Span::of_word(new);
            touched = Some((touched.map_or(at, |(first, _)| first), at));
        }
        if let Some((first, last)) = touched {
            self.rejoin(leaves + first, leaves + last, WORD);
        }
    }

    /// Renews the ancestors of the nodes `first..=last` of one level, whose spans are `len` long.
    fn rejoin(&mut self, mut first: usize, mut last: usize, mut len: u32) {
        while first > 1 {
            (first, last) = (first / 2, last / 2);
            for node in first..=last {
                self.tree[node] = Span::join(self.tree[2 * node], self.tree[2 * node + 1], len);
            }
            len *= 2;
        }
    }

    /// The words that `range` touches, each with the mask of its bits in the range.
    fn words_of(&self, range: Range<u32>) -> impl Iterator<Item = (usize, u64)> + use<> {
        let end = range.end.min(self.words.len() as u32 * WORD);
        let start = range.start.min(end);
        let last = if start == end { start / WORD } else { end.div_ceil(WORD) };
        (start / WORD..last).map(move |at| {
            let low = start.max(at * WORD) - at * WORD;
            let high = end.min((at + 1) * WORD) - at * WORD;
            (at as usize, (!0 >> (WORD - (high - low))) << low)
        })
    }
}

struct Search<'a> {
    runs: &'a FreeRuns,
    from: u32,
    want: u32,
    /// Length of the free run that ends right before the node being looked at.
    behind: u32,
}

impl Search<'_> {
    fn node(&mut self, node: usize, start: u32, len: u32) -> Option<u32> {
        if start + len <= self.from {
            return None;
        }
        let leaves = self.runs.tree.len() / 2;
        if start >= self.from {
            let span = self.runs.tree[node];
            if self.behind + u32::from(span.head) >= self.want {
                return Some(start - self.behind);
            }
            if u32::from(span.longest) < self.want {
                self.behind = if u32::from(span.head) == len { self.behind + len } else { span.tail.into() };
                return None;
            }
        }
        if node >= leaves {
            return self.word(self.runs.words.get(node - leaves).copied().unwrap_or(0), start);
        }
        let half = len / 2;
        self.node(2 * node, start, half).or_else(|| self.node(2 * node + 1, start + half, half))
    }

    fn word(&mut self, word: u64, start: u32) -> Option<u32> {
        let skip = self.from.saturating_sub(start);
        let word = word >> skip << skip;
        if let Some(bit) = first_run(word, self.want) {
            return Some(start + bit);
        }
        self.behind = word.leading_ones();
        None
    }
}

/// The lowest run of at least `want` ones.
fn first_run(word: u64, want: u32) -> Option<u32> {
    if want > WORD {
        return None;
    }
    // Bit i of `starts` says that `have` ones begin at bit i.
    let (mut starts, mut have) = (word, 1);
    while have < want && starts != 0 {
        let step = have.min(want - have);
        starts &= starts >> step;
        have += step;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

fn longest_ones(mut word: u64) -> u32 {
    if word == !0 {
        return WORD;
    }
    let mut len = 0;
    while word != 0 {
        word &= word << 1;
        len += 1;
    }
    len
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn linear_find(model: &[bool], from: u32, want: u32) -> Option<u32> {
        let mut run = 0;
        for (at, free) in model.iter().enumerate().skip(from as usize) {
            run = if *free { run + 1 } else { 0 };
            if run == want {
                return Some(at as u32 + 1 - want);
            }
        }
        None
    }

    fn longest(model: &[bool]) -> u32 {
        model.split(|free| !free).map(|run| run.len() as u32).max().unwrap_or(0)
    }

    #[test]
    fn the_end_of_a_short_group_is_taken() {
        let runs = FreeRuns::from_bitmap(&[0; 1024], 100);
        assert_eq!((runs.longest(), runs.find(0, 101), runs.run_at(90, 50)), (100, None, 10));
        let runs = FreeRuns::from_bitmap(&[0; 4096], 32768);
        assert_eq!((runs.longest(), runs.find(5, 32763)), (32768, Some(5)));
    }

    proptest! {
        #[test]
        fn agrees_with_a_vector(
            blocks in 1_u32..700,
            edits in proptest::collection::vec((0_u32..700, 0_u32..200, any::<bool>()), 1..60),
            probes in proptest::collection::vec((0_u32..720, 1_u32..150), 20),
        ) {
            let mut model = vec![true; blocks as usize];
            let mut runs = FreeRuns::from_bitmap(&vec![0; blocks.div_ceil(8) as usize], blocks);
            for (start, len, free) in edits {
                let range = start.min(blocks)..(start + len).min(blocks);
                model[range.start as usize..range.end as usize].fill(free);
                runs.set(range, free);
            }
            prop_assert_eq!(runs.longest(), longest(&model));
            for (from, want) in probes {
                prop_assert_eq!(runs.find(from, want), linear_find(&model, from, want));
                let run = model.iter().skip(from as usize).take_while(|free| **free).count() as u32;
                prop_assert_eq!(runs.run_at(from, want), run.min(want));
                let end = (from + want).min(blocks);
                let none = !model[from.min(end) as usize..end as usize].contains(&true);
                prop_assert_eq!(runs.none_in(from..from + want), none);
            }
        }
    }
}
