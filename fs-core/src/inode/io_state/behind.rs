//! Write-behind: the dirty bytes of one file, copied once into aligned buffers.
//!
//! A [`Piece`] is a run of whole blocks in one buffer, of which the bytes `lo..hi` are valid; only
//! its first and last block can be partly valid. Pieces of one map never share a block. A write
//! that would leave invalid bytes between valid ones asks for the block to be filled first.
//! A piece is *dirty* until a flush takes it, then *flushing* until its data are on the device and
//! its blocks are on the completed list. Readers look at dirty, then at flushing, then at the map.
//!
//! Readers hold the buffers shared and never see them change: whoever wants to write into a buffer
//! that is shared copies the piece first.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use blockdev::PooledBuf;
use smallvec::SmallVec;

/// Longest piece that is made, in bytes. Longer writes become several.
const MAX_PIECE: usize = 1 << 20;

/// Some bytes of a shared buffer.
#[derive(Clone)]
pub struct Slice {
    buf: Arc<PooledBuf>,
    range: Range<usize>,
}

impl std::ops::Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf[self.range.clone()]
    }
}

/// A run of blocks in one buffer.
#[derive(Clone)]
struct Piece {
    buf: Arc<PooledBuf>,
    /// Byte of `buf` at which the first block begins.
    at: usize,
    blocks: u64,
    /// The valid bytes, counted from the start of the first block.
    lo: usize,
    hi: usize,
}

/// What became of a [`Behind::put`].
#[derive(Debug, PartialEq, Eq)]
pub enum Put {
    /// The bytes are in.
    Done,
    /// Some may be in. Fill this block and put them all again.
    NeedsFill(u64),
}

/// The write-behind of one file.
pub struct Behind {
    block_size: usize,
    dirty: BTreeMap<u64, Piece>,
    flushing: BTreeMap<u64, Piece>,
    blocks: u64,
}

impl Behind {
    /// An empty write-behind for blocks of `block_size` bytes.
    #[must_use]
    pub fn new(block_size: u32) -> Behind {
        Behind {
            block_size: block_size as usize,
            dirty: BTreeMap::new(),
            flushing: BTreeMap::new(),
            blocks: 0,
        }
    }

    /// Whether there are no dirty bytes (some may still be flushing).
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Whether there is nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.flushing.is_empty()
    }

    /// Bytes of all blocks held, dirty or flushing.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks * self.block_size as u64
    }

    /// Copies `data` in at byte `at`.
    pub fn put(&mut self, at: u64, data: &[u8]) -> Put {
        let mut rest = data;
        let mut at = at;
        while !rest.is_empty() {
            let block = at / self.block_size as u64;
            let done = match self.covering(block) {
                Some(first) => self.put_into(first, at, rest),
                None => Some(self.put_beside(at, rest)),
            };
            let Some(done) = done else { return Put::NeedsFill(block) };
            at += done as u64;
            rest = &rest[done..];
        }
        Put::Done
    }

    /// First block of the dirty piece that holds `block`.
    fn covering(&self, block: u64) -> Option<u64> {
        let (&first, piece) = self.dirty.range(..=block).next_back()?;
        (block < first + piece.blocks).then_some(first)
    }

    /// Overwrites bytes of the piece at `first`; `None` when a gap would be left.
    fn put_into(&mut self, first: u64, at: u64, data: &[u8]) -> Option<usize> {
        let bs = self.block_size;
        let piece = self.dirty.get_mut(&first)?;
        let from = (at - first * bs as u64) as usize;
        let to = (from + data.len()).min(piece.blocks as usize * bs);
        if from > piece.hi || to < piece.lo {
            return None;
        }
        piece.make_private(bs)[from..to].copy_from_slice(&data[..to - from]);
        piece.lo = piece.lo.min(from);
        piece.hi = piece.hi.max(to);
        Some(to - from)
    }

    /// Takes in bytes whose first block no piece holds: behind the piece before if its buffer has
    /// room, else as a new piece. Gives the number of bytes taken.
    fn put_beside(&mut self, at: u64, data: &[u8]) -> usize {
        let bs = self.block_size;
        let block = at / bs as u64;
        let lead = (at % bs as u64) as usize;
        let next = self.dirty.range(block..).next().map_or(u64::MAX, |(&first, _)| first);
        let wanted = ((lead + data.len()).div_ceil(bs) as u64).min(next - block);
        let mut capacity = bs;
        if let Some((&first, piece)) = self.dirty.range_mut(..block).next_back()
            && first + piece.blocks == block
        {
            let end = piece.blocks as usize * bs;
            let room = piece.room(bs).min(wanted);
            if lead == 0 && piece.hi == end && room > 0 {
                let taken = data.len().min(room as usize * bs);
                piece.blocks += (taken.div_ceil(bs)) as u64;
                self.blocks += (taken.div_ceil(bs)) as u64;
                piece.make_private(bs)[end..end + taken].copy_from_slice(&data[..taken]);
                piece.hi = end + taken;
                return taken;
            }
            // A file that grows in small steps gets larger and larger buffers.
            capacity = 2 * end;
        }
        let blocks = wanted.min((MAX_PIECE / bs) as u64);
        let len = blocks as usize * bs;
        let mut buf = match PooledBuf::try_take(capacity.clamp(len, MAX_PIECE)) {
            Ok(buf) => buf,
            Err(_) => PooledBuf::take(len),
        };
        let whole = buf.capacity();
        buf.set_len(whole);
        let taken = data.len().min(len - lead);
        buf[lead..lead + taken].copy_from_slice(&data[..taken]);
        let piece = Piece { buf: Arc::new(buf), at: 0, blocks, lo: lead, hi: lead + taken };
        self.dirty.insert(block, piece);
        self.blocks += blocks;
        taken
    }

    /// Gives the bytes of `block` that no write has set yet. `content` is one block.
    pub fn fill(&mut self, block: u64, content: &[u8]) {
        let bs = self.block_size;
        for map in [&mut self.dirty, &mut self.flushing] {
            if let Some((&first, piece)) = map.range_mut(..=block).next_back()
                && block < first + piece.blocks
            {
                piece.fill((block - first) as usize * bs, content, bs);
            }
        }
    }

    /// The lowest run of dirty pieces that touch each other and reach into `within`: whole pieces,
    /// and no more of them once they hold `max` blocks.
    #[must_use]
    pub fn next_run(&self, within: &Range<u64>, max: u64) -> Option<Range<u64>> {
        let from = self.covering(within.start).unwrap_or(within.start);
        let mut pieces = self.dirty.range(from..within.end);
        let (&start, piece) = pieces.next()?;
        let mut end = start + piece.blocks;
        for (&first, piece) in pieces {
            if first != end || end - start + piece.blocks > max {
                break;
            }
            end += piece.blocks;
        }
        Some(start..end)
    }

    /// Turns the dirty pieces of `run`, which [`Behind::next_run`] gave, to flushing.
    pub fn take(&mut self, run: &Range<u64>) {
        while let Some((&first, _)) = self.dirty.range(run.clone()).next() {
            if let Some(piece) = self.dirty.remove(&first) {
                self.flushing.insert(first, piece);
            }
        }
    }

    /// Blocks of the flushing `run` that still lack bytes.
    #[must_use]
    pub fn unfilled(&self, run: &Range<u64>) -> SmallVec<[u64; 4]> {
        let mut blocks = SmallVec::new();
        for (&first, piece) in self.flushing.range(run.clone()) {
            let last = first + piece.blocks - 1;
            if piece.lo > 0 {
                blocks.push(first);
            }
            if piece.hi < piece.blocks as usize * self.block_size && (last != first || piece.lo == 0) {
                blocks.push(last);
            }
        }
        blocks
    }

    /// The bytes of the flushing `run`, one slice a piece, in order.
    #[must_use]
    pub fn flushing(&self, run: &Range<u64>) -> SmallVec<[Slice; 8]> {
        let slices = self.flushing.range(run.clone());
        slices.map(|(_, p)| p.slice(0..p.blocks as usize * self.block_size)).collect()
    }

    /// Forgets the flushing `run`: its data are on the device, or lost.
    pub fn landed(&mut self, run: &Range<u64>) {
        while let Some((&first, _)) = self.flushing.range(run.clone()).next() {
            self.blocks -= self.flushing.remove(&first).map_or(0, |p| p.blocks);
        }
    }

    /// First blocks of the pieces of `range` that are flushing now.
    #[must_use]
    pub fn flushing_at(&self, range: &Range<u64>) -> SmallVec<[u64; 8]> {
        let before = self.flushing.range(..range.start).next_back();
        let before = before.filter(|(first, piece)| **first + piece.blocks > range.start);
        before.into_iter().chain(self.flushing.range(range.clone())).map(|(&first, _)| first).collect()
    }

    /// Whether the piece at `first` is flushing.
    #[must_use]
    pub fn is_flushing(&self, first: u64) -> bool {
        self.flushing.contains_key(&first)
    }

    /// The block behind the last dirty one, or 0.
    #[must_use]
    pub fn dirty_end(&self) -> u64 {
        self.dirty.last_key_value().map_or(0, |(&first, piece)| first + piece.blocks)
    }

    /// Whether a dirty block lies in `range`.
    #[must_use]
    pub fn is_dirty(&self, range: &Range<u64>) -> bool {
        !range.is_empty() && self.next_run(range, 1).is_some()
    }

    /// Calls `each` with the parts of the bytes `range` that are held here, in rising order, the
    /// newest bytes of each.
    pub fn overlay(&self, range: Range<u64>, mut each: impl FnMut(u64, Slice)) {
        let mut at = range.start;
        self.pieces(&self.dirty, range.clone(), |start, slice| {
            if at < start {
                self.pieces(&self.flushing, at..start, &mut each);
            }
            at = start + slice.len() as u64;
            each(start, slice);
        });
        if at < range.end {
            self.pieces(&self.flushing, at..range.end, &mut each);
        }
    }

    fn pieces(&self, map: &BTreeMap<u64, Piece>, range: Range<u64>, mut each: impl FnMut(u64, Slice)) {
        let bs = self.block_size as u64;
        let from = map.range(..=range.start / bs).next_back().map_or(0, |(&first, _)| first);
        for (&first, piece) in map.range(from..range.end.div_ceil(bs)) {
            let start = first * bs;
            let lo = range.start.max(start + piece.lo as u64);
            let hi = range.end.min(start + piece.hi as u64);
            if lo < hi {
                each(lo, piece.slice((lo - start) as usize..(hi - start) as usize));
            }
        }
    }

    /// Drops the dirty blocks of `range`.
    pub fn discard(&mut self, range: Range<u64>) {
        let bs = self.block_size;
        while let Some(run) = self.next_run(&range, 1) {
            let Some(mut piece) = self.dirty.remove(&run.start) else { return };
            self.blocks -= piece.blocks;
            if run.end > range.end {
                let skipped = (range.end - run.start) as usize * bs;
                let mut right = piece.clone();
                right.at += skipped;
                right.blocks = run.end - range.end;
                right.lo = 0;
                right.hi -= skipped;
                self.blocks += right.blocks;
                self.dirty.insert(range.end, right);
            }
            if run.start < range.start {
                piece.blocks = range.start - run.start;
                piece.hi = piece.hi.min(piece.blocks as usize * bs);
                self.blocks += piece.blocks;
                self.dirty.insert(run.start, piece);
            }
        }
    }

    /// Drops the dirty bytes from byte `end` on.
    pub fn cut(&mut self, end: u64) {
        let bs = self.block_size as u64;
        self.discard(end.div_ceil(bs)..u64::MAX);
        let Some(first) = self.covering(end / bs) else { return };
        let Some(piece) = self.dirty.get_mut(&first) else { return };
        let keep = (end - first * bs) as usize;
        piece.hi = piece.hi.min(keep);
        let blocks = piece.hi.div_ceil(self.block_size) as u64;
        if piece.hi <= piece.lo {
            self.blocks -= piece.blocks;
            self.dirty.remove(&first);
        } else {
            self.blocks -= piece.blocks - blocks;
            piece.blocks = blocks;
        }
    }

    /// Whether block `at` is held here, dirty or flushing, and for how many blocks (at most `max`)
    /// that stays so.
    #[must_use]
    pub fn status(&self, at: u64, max: u64) -> (bool, u64) {
        let mut next = u64::MAX;
        for map in [&self.dirty, &self.flushing] {
            if let Some((&first, piece)) = map.range(..=at).next_back()
                && first + piece.blocks > at
            {
                return (true, max.min(first + piece.blocks - at));
            }
            next = next.min(map.range(at..).next().map_or(u64::MAX, |(&first, _)| first));
        }
        (false, max.min(next - at))
    }
}

impl Piece {
    fn slice(&self, bytes: Range<usize>) -> Slice {
        Slice { buf: self.buf.clone(), range: self.at + bytes.start..self.at + bytes.end }
    }

    /// Blocks that still fit behind the last one. None while the buffer is shared.
    fn room(&mut self, bs: usize) -> u64 {
        match Arc::get_mut(&mut self.buf) {
            Some(buf) => ((buf.len() - self.at) / bs) as u64 - self.blocks,
            None => 0,
        }
    }

    /// The bytes of all blocks for writing, copied first if a reader holds them.
    fn make_private(&mut self, bs: usize) -> &mut [u8] {
        let len = self.blocks as usize * bs;
        if Arc::get_mut(&mut self.buf).is_none() {
            let mut copy = PooledBuf::take(len);
            let valid = self.at + self.lo..self.at + self.hi;
            copy[self.lo..self.hi].copy_from_slice(&self.buf[valid]);
            self.buf = Arc::new(copy);
            self.at = 0;
        }
        match Arc::get_mut(&mut self.buf) {
            Some(buf) => &mut buf[self.at..self.at + len],
            None => &mut [],
        }
    }

    fn fill(&mut self, at: usize, content: &[u8], bs: usize) {
        let (lo, hi) = (self.lo, self.hi);
        let end = self.blocks as usize * bs;
        if at == 0 && lo > 0 {
            self.make_private(bs)[..lo].copy_from_slice(&content[..lo]);
            self.lo = 0;
        }
        if at + bs == end && hi < end {
            self.make_private(bs)[hi..].copy_from_slice(&content[hi - at..]);
            self.hi = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BS: usize = 64;
    const SIZE: usize = 4096;

    /// What a file looks like to readers: the bytes under the write-behind and those in it.
    fn read(behind: &Behind, under: &[u8]) -> Vec<u8> {
        let mut seen = under.to_vec();
        let mut at = 0;
        behind.overlay(0..SIZE as u64, |start, slice| {
            assert!(start >= at && !slice.is_empty());
            at = start + slice.len() as u64;
            seen[start as usize..at as usize].copy_from_slice(&slice);
        });
        seen
    }

    fn put(behind: &mut Behind, under: &[u8], at: usize, data: &[u8]) {
        for _ in 0..4 {
            match behind.put(at as u64, data) {
                Put::Done => return,
                Put::NeedsFill(block) => {
                    let start = block as usize * BS;
                    let content = read(behind, under)[start..start + BS].to_vec();
                    behind.fill(block, &content);
                }
            }
        }
        panic!("a filled block asks to be filled again");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(usize, usize, u8),
        Take(u64),
        Land,
        Discard(u64, u64),
        Cut(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..SIZE, 1usize..300, any::<u8>()).prop_map(|(a, l, v)| Step::Put(a, l.min(SIZE - a), v)),
            1 => (0u64..64).prop_map(Step::Take),
            1 => Just(Step::Land),
            1 => (0u64..64, 0u64..10).prop_map(|(a, l)| Step::Discard(a, a + l)),
            1 => (0..SIZE).prop_map(Step::Cut),
        ]
    }

    proptest! {
        #[test]
        fn readers_see_the_newest_bytes(steps in prop::collection::vec(step(), 1..60), shared in any::<bool>()) {
            let mut behind = Behind::new(BS as u32);
            // What is under the write-behind, and what a reader must see.
            let mut under = vec![0xee; SIZE];
            let mut model = under.clone();
            let mut run: Option<Range<u64>> = None;
            let mut holders = Vec::new();
            for step in steps {
                match step {
                    Step::Put(at, len, value) => {
                        put(&mut behind, &under, at, &vec![value; len]);
                        model[at..at + len].fill(value);
                    }
                    Step::Take(from) if run.is_none() => {
                        run = behind.next_run(&(from..64), 8);
                        if let Some(run) = &run {
                            behind.take(run);
                        }
                    }
                    Step::Land => if let Some(run) = run.take() {
                        for block in behind.unfilled(&run) {
                            let start = block as usize * BS;
                            let content = read(&behind, &under)[start..start + BS].to_vec();
                            behind.fill(block, &content);
                        }
                        prop_assert!(behind.unfilled(&run).is_empty());
                        let mut at = run.start as usize * BS;
                        for slice in behind.flushing(&run) {
                            under[at..at + slice.len()].copy_from_slice(&slice);
                            at += slice.len();
                        }
                        prop_assert_eq!(at, run.end as usize * BS);
                        behind.landed(&run);
                    },
                    Step::Discard(from, to) if run.is_none() => {
                        behind.discard(from..to);
                        let bytes = (from as usize * BS).min(SIZE)..(to as usize * BS).min(SIZE);
                        model[bytes.clone()].copy_from_slice(&under[bytes]);
                    }
                    Step::Cut(end) if run.is_none() => {
                        behind.cut(end as u64);
                        model[end..].copy_from_slice(&under[end..]);
                    }
                    _ => {}
                }
                prop_assert_eq!(&read(&behind, &under), &model);
                let held = behind.dirty.values().chain(behind.flushing.values()).map(|p| p.blocks);
                prop_assert_eq!(behind.bytes(), held.sum::<u64>() * BS as u64);
                for (first, piece) in &behind.dirty {
                    prop_assert!(piece.lo < BS && piece.hi > (piece.blocks as usize - 1) * BS);
                    let next = behind.dirty.range(first + 1..).next();
                    prop_assert!(next.is_none_or(|(n, _)| *n >= first + piece.blocks));
                }
                if shared {
                    let before = read(&behind, &under);
                    let mut slices = Vec::new();
                    behind.overlay(0..SIZE as u64, |at, slice| slices.push((at as usize, slice)));
                    holders.push((before, slices));
                }
            }
            for (before, slices) in holders {
                for (at, slice) in slices {
                    prop_assert_eq!(&before[at..at + slice.len()], &slice[..]);
                }
            }
        }
    }

    #[test]
    fn appended_bytes_share_a_buffer_and_make_one_run() {
        let mut behind = Behind::new(4096);
        for i in 0..100u64 {
            assert_eq!(behind.put(i * 1000, &[i as u8; 1000]), Put::Done);
        }
        assert!(behind.dirty.len() <= 4, "{}", behind.dirty.len());
        assert_eq!(behind.next_run(&(0..u64::MAX), 1000), Some(0..25));
    }
}
