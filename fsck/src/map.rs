//! What is in use: one bit per cluster and a few bytes per inode, filled by many threads at once.
//!
//! Both maps are cut into chunks that exist only where something is in use, so an empty volume costs nothing
//! and memory follows what the volume holds, not its size. Where that could be more than the bound, both lie
//! in the pages of a scratch file instead.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use ext4_format::geometry::Geometry;
use ext4_format::{BlockNo, Ino};

use crate::scratch::{PAGE, Scratch};

const WORDS: usize = 512;
const CHUNK: u64 = WORDS as u64;

/// Words of 64 bits, by number: in memory where something was set, or in a scratch file.
enum Words {
    Memory(Vec<OnceLock<Box<[AtomicU64; WORDS]>>>),
    Spilled(Spilled),
}

/// Words in the pages of a scratch file.
struct Spilled {
    scratch: Arc<Scratch>,
    /// Its first page.
    base: u64,
    /// A bit for each chunk that anything was set in. The others are zeros, which takes no look at the file.
    touched: Vec<AtomicU64>,
}

impl Spilled {
    fn is_touched(&self, chunk: u64) -> bool {
        let bits = self.touched.get((chunk / 64) as usize);
        bits.is_some_and(|bits| bits.load(Relaxed) >> (chunk % 64) & 1 == 1)
    }

    fn word<R>(&self, word: u64, change: bool, visit: impl FnOnce(&mut u64) -> R) -> R {
        if change && let Some(bits) = self.touched.get((word / CHUNK / 64) as usize) {
            bits.fetch_or(1 << (word / CHUNK % 64), Relaxed);
        }
        self.scratch.with(self.base + word / CHUNK, change, |page| {
            let bytes = &mut page[(word % CHUNK) as usize * 8..][..8];
            let mut bits = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
            let result = visit(&mut bits);
            bytes.copy_from_slice(&bits.to_le_bytes());
            result
        })
    }
}

impl Words {
    fn load(&self, word: u64) -> u64 {
        match self {
            Words::Memory(chunks) => {
                let chunk = chunks.get((word / CHUNK) as usize).and_then(OnceLock::get);
                chunk.map_or(0, |chunk| chunk[(word % CHUNK) as usize].load(Relaxed))
            }
            Words::Spilled(spilled) if !spilled.is_touched(word / CHUNK) => 0,
            Words::Spilled(spilled) => spilled.word(word, false, |bits| *bits),
        }
    }

    /// Whether all words of a chunk are zero because nothing was ever set there.
    fn is_blank(&self, chunk: u64) -> bool {
        match self {
            Words::Memory(chunks) => chunks.get(chunk as usize).is_none_or(|chunk| chunk.get().is_none()),
            Words::Spilled(spilled) => !spilled.is_touched(chunk),
        }
    }

    /// The words from `first` on within one chunk, as little-endian bytes.
    fn copy(&self, first: u64, bytes: &mut [u8]) {
        let start = (first % CHUNK) as usize;
        match self {
            _ if self.is_blank(first / CHUNK) => bytes.fill(0),
            Words::Memory(chunks) => {
                let Some(chunk) = chunks.get((first / CHUNK) as usize).and_then(OnceLock::get) else {
                    return;
                };
                for (word, bytes) in chunk[start..].iter().zip(bytes.chunks_mut(8)) {
                    bytes.copy_from_slice(&word.load(Relaxed).to_le_bytes()[..bytes.len()]);
                }
            }
            Words::Spilled(spilled) => spilled.scratch.with(spilled.base + first / CHUNK, false, |page| {
                bytes.copy_from_slice(&page[start * 8..][..bytes.len()]);
            }),
        }
    }

    /// Sets bits and tells those that were set before.
    fn set(&self, word: u64, mask: u64) -> u64 {
        match self {
            Words::Memory(chunks) => {
                let Some(chunk) = chunks.get((word / CHUNK) as usize) else { return 0 };
                let chunk = chunk.get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS]));
                chunk[(word % CHUNK) as usize].fetch_or(mask, Relaxed) & mask
            }
            Words::Spilled(spilled) => spilled.word(word, true, |bits| {
                let before = *bits & mask;
                *bits |= mask;
                before
            }),
        }
    }

    fn clear(&self, word: u64, mask: u64) {
        match self {
            Words::Memory(chunks) => {
                if let Some(chunk) = chunks.get((word / CHUNK) as usize).and_then(OnceLock::get) {
                    chunk[(word % CHUNK) as usize].fetch_and(!mask, Relaxed);
                }
            }
            Words::Spilled(spilled) => spilled.word(word, true, |bits| *bits &= !mask),
        }
    }
}

/// A set of clusters of the volume.
pub struct BlockMap {
    words: Words,
    first: u64,
    ratio: u64,
    end: u64,
}

impl BlockMap {
    /// The empty set, in memory.
    #[must_use]
    pub fn new(geometry: &Geometry) -> BlockMap {
        let chunks = pages_of_blocks(geometry);
        BlockMap::over(geometry, Words::Memory((0..chunks).map(|_| OnceLock::new()).collect()))
    }

    /// The empty set, in pages of a scratch file from `base` on.
    #[must_use]
    pub fn spilled(geometry: &Geometry, scratch: &Arc<Scratch>, base: u64) -> BlockMap {
        let touched = (0..pages_of_blocks(geometry).div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        BlockMap::over(geometry, Words::Spilled(Spilled { scratch: Arc::clone(scratch), base, touched }))
    }

    fn over(geometry: &Geometry, words: Words) -> BlockMap {
        let first = u64::from(geometry.first_data_block);
        let ratio = u64::from(geometry.cluster_ratio);
        BlockMap { words, first, ratio, end: geometry.blocks_count }
    }

    /// The cluster of a block.
    #[must_use]
    pub fn cluster(&self, block: u64) -> u64 {
        block.saturating_sub(self.first) / self.ratio
    }

    /// The first block of a cluster.
    #[must_use]
    pub fn block(&self, cluster: u64) -> BlockNo {
        BlockNo(self.first + cluster * self.ratio)
    }

    /// Adds the clusters of `len` blocks from `start`; `seen` hears of each that was there before.
    pub fn claim(&self, start: BlockNo, len: u64, mut seen: impl FnMut(u64)) {
        self.visit(start, len, |word, mask| {
            let mut twice = self.words.set(word, mask);
            while twice != 0 {
                seen(word * 64 + u64::from(twice.trailing_zeros()));
                twice &= twice - 1;
            }
        });
    }

    /// Takes clusters out again.
    pub fn release(&self, start: BlockNo, len: u64) {
        self.visit(start, len, |word, mask| self.words.clear(word, mask));
    }

    /// Whether the cluster of a block is in the set.
    #[must_use]
    pub fn has(&self, block: BlockNo) -> bool {
        self.word(self.cluster(block.0)) >> (self.cluster(block.0) % 64) & 1 == 1
    }

    /// Whether any cluster of a range is in the set.
    #[must_use]
    pub fn any(&self, start: BlockNo, len: u64) -> bool {
        let mut any = false;
        self.visit(start, len, |word, mask| any |= self.words.load(word) & mask != 0);
        any
    }

    /// The 64 clusters around a cluster.
    #[must_use]
    pub fn word(&self, cluster: u64) -> u64 {
        self.words.load(cluster / 64)
    }

    /// Whether nothing of a range was ever added to the set. `false` may be wrong.
    #[must_use]
    pub fn is_blank(&self, start: BlockNo, len: u64) -> bool {
        let first = self.cluster(start.0) / 64 / CHUNK;
        let last = self.cluster(start.0 + len.max(1) - 1) / 64 / CHUNK;
        (first..=last).all(|chunk| self.words.is_blank(chunk))
    }

    /// The set from a cluster on, as the bytes of a bitmap. The cluster's number is a multiple of eight.
    pub fn copy_bits(&self, first: u64, bits: &mut [u8]) {
        let (mut at, mut rest) = (first, bits);
        while !rest.is_empty() {
            let word = at / 64;
            let in_word = (at % 64 / 8) as usize;
            let (part, next) = if in_word > 0 {
                let len = rest.len().min(8 - in_word);
                let (part, next) = rest.split_at_mut(len);
                part.copy_from_slice(&self.words.load(word).to_le_bytes()[in_word..in_word + len]);
                (len, next)
            } else {
                let left = (CHUNK - word % CHUNK) as usize * 8;
                let (part, next) = rest.split_at_mut(rest.len().min(left));
                self.words.copy(word, part);
                (part.len(), next)
            };
            at += part as u64 * 8;
            rest = next;
        }
    }

    /// Clusters outside the set.
    #[must_use]
    pub fn free_count(&self) -> u64 {
        let total = (self.end - self.first).div_ceil(self.ratio);
        let mut used = 0;
        for chunk in (0..total.div_ceil(64 * CHUNK)).filter(|chunk| !self.words.is_blank(*chunk)) {
            let words = chunk * CHUNK..((chunk + 1) * CHUNK).min(total.div_ceil(64));
            used += words.map(|word| u64::from(self.words.load(word).count_ones())).sum::<u64>();
        }
        total.saturating_sub(used)
    }

    /// The first run of `clusters` clusters outside the set, looked for from `from` on and then from the
    /// start.
    #[must_use]
    pub fn find_free(&self, from: BlockNo, clusters: u64) -> Option<BlockNo> {
        let total = (self.end - self.first).div_ceil(self.ratio);
        // The last cluster may be cut short by the end of the volume.
        let whole = (self.end - self.first) / self.ratio;
        let start = self.cluster(from.0).min(total);
        let search = |range: std::ops::Range<u64>| {
            let (mut run, mut at) = (0, range.start);
            while at < range.end {
                if self.word(at) == u64::MAX {
                    run = 0;
                    at = (at / 64 + 1) * 64;
                    continue;
                }
                run = if self.word(at) >> (at % 64) & 1 == 1 { 0 } else { run + 1 };
                at += 1;
                if run == clusters {
                    return Some(self.block(at - clusters));
                }
            }
            None
        };
        search(start..whole).or_else(|| search(0..whole))
    }

    fn visit(&self, start: BlockNo, len: u64, mut visit: impl FnMut(u64, u64)) {
        let end = start.0.saturating_add(len).min(self.end);
        if end <= start.0.max(self.first) {
            return;
        }
        let (mut at, end) = (self.cluster(start.0), self.cluster(end - 1) + 1);
        while at < end {
            let stop = end.min((at / 64 + 1) * 64);
            visit(at / 64, (u64::MAX >> (64 - (stop - at))) << (at % 64));
            at = stop;
        }
    }
}

/// Pages of a map of clusters.
#[must_use]
pub fn pages_of_blocks(geometry: &Geometry) -> u64 {
    let clusters = (geometry.blocks_count - u64::from(geometry.first_data_block))
        .div_ceil(u64::from(geometry.cluster_ratio));
    clusters.div_ceil(CHUNK * 64)
}

/// Pages of a map of inodes.
#[must_use]
pub fn pages_of_inodes(geometry: &Geometry) -> u64 {
    u64::from(geometry.inodes_count).div_ceil(INODES_IN_PAGE)
}

/// What an inode is, as pass 1 found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Use {
    /// Not in use.
    Free,
    /// A file of the type with this code of a directory entry (1 to 7).
    File(u8),
    /// In use by the volume itself: it needs no name.
    Internal,
    /// Holds the value of an attribute.
    Attribute,
    /// Reserved, and empty.
    Reserved,
}

impl Use {
    fn pack(self) -> u8 {
        match self {
            Use::Free => 0,
            Use::File(code) => code,
            Use::Internal => 0x10,
            Use::Attribute => 0x11,
            Use::Reserved => 0x12,
        }
    }

    fn unpack(raw: u8) -> Use {
        match raw {
            0 => Use::Free,
            0x10 => Use::Internal,
            0x11 => Use::Attribute,
            0x12 => Use::Reserved,
            code => Use::File(code),
        }
    }

    /// Whether the bitmap must say "in use".
    #[must_use]
    pub fn is_used(self) -> bool {
        self != Use::Free
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(self) -> bool {
        self == Use::File(2)
    }
}

struct GroupInodes {
    uses: Box<[AtomicU8]>,
    links: Box<[AtomicU16]>,
    names: Box<[AtomicU32]>,
}

/// Bytes of an inode in a scratch file: what it is, a pad, its links (2), its names (4).
const RECORD: usize = 8;
const INODES_IN_PAGE: u64 = (PAGE / RECORD) as u64;

enum Inodes {
    Memory(Vec<OnceLock<GroupInodes>>),
    /// Pages from a base on, and which groups have any inode in use.
    Spilled(Arc<Scratch>, u64, Vec<AtomicBool>),
}

/// What is known of every inode.
pub struct InodeMap {
    inodes: Inodes,
    per_group: u32,
    count: u32,
}

impl InodeMap {
    /// All free, in memory.
    #[must_use]
    pub fn new(geometry: &Geometry) -> InodeMap {
        let groups = (0..geometry.group_count).map(|_| OnceLock::new()).collect();
        InodeMap::over(geometry, Inodes::Memory(groups))
    }

    /// All free, in pages of a scratch file from `base` on.
    #[must_use]
    pub fn spilled(geometry: &Geometry, scratch: &Arc<Scratch>, base: u64) -> InodeMap {
        let touched = (0..geometry.group_count).map(|_| AtomicBool::new(false)).collect();
        InodeMap::over(geometry, Inodes::Spilled(Arc::clone(scratch), base, touched))
    }

    fn over(geometry: &Geometry, inodes: Inodes) -> InodeMap {
        InodeMap { inodes, per_group: geometry.inodes_per_group, count: geometry.inodes_count }
    }

    /// Says what an inode is, and the link count on disk.
    pub fn set(&self, ino: Ino, what: Use, links: u16) {
        let at = ino.get() - 1;
        let group = (at / self.per_group) as usize;
        match &self.inodes {
            Inodes::Memory(groups) => {
                let Some(group) = groups.get(group) else { return };
                let group = group.get_or_init(|| GroupInodes {
                    uses: (0..self.per_group).map(|_| AtomicU8::new(0)).collect(),
                    links: (0..self.per_group).map(|_| AtomicU16::new(0)).collect(),
                    names: (0..self.per_group).map(|_| AtomicU32::new(0)).collect(),
                });
                let index = (at % self.per_group) as usize;
                group.uses[index].store(what.pack(), Relaxed);
                group.links[index].store(links, Relaxed);
            }
            Inodes::Spilled(.., touched) => {
                let Some(touched) = touched.get(group) else { return };
                touched.store(true, Relaxed);
                self.record(ino, true, |record| {
                    record[0] = what.pack();
                    record[2..4].copy_from_slice(&links.to_le_bytes());
                });
            }
        }
    }

    /// What an inode is; free past the last one.
    #[must_use]
    pub fn get(&self, ino: Ino) -> Use {
        match self.at(ino) {
            Some((group, index)) => Use::unpack(group.uses[index].load(Relaxed)),
            None => Use::unpack(self.record(ino, false, |record| record[0])),
        }
    }

    /// The link count that stands in the inode.
    #[must_use]
    pub fn links(&self, ino: Ino) -> u16 {
        match self.at(ino) {
            Some((group, index)) => group.links[index].load(Relaxed),
            None => self.record(ino, false, |record| u16::from_le_bytes([record[2], record[3]])),
        }
    }

    /// The names counted.
    #[must_use]
    pub fn names(&self, ino: Ino) -> u32 {
        match self.at(ino) {
            Some((group, index)) => group.names[index].load(Relaxed),
            None => self.record(ino, false, |record| names_in(record)),
        }
    }

    /// Counts names more or less.
    pub fn add_names(&self, ino: Ino, change: i32) {
        match self.at(ino) {
            Some((group, index)) => {
                group.names[index].fetch_add(change as u32, Relaxed);
            }
            None => self.record(ino, true, |record| {
                let names = names_in(record).wrapping_add(change as u32);
                record[4..8].copy_from_slice(&names.to_le_bytes());
            }),
        }
    }

    /// Whether any inode of a group is in use.
    #[must_use]
    pub fn touched(&self, group: u32) -> bool {
        match &self.inodes {
            Inodes::Memory(groups) => groups.get(group as usize).is_some_and(|group| group.get().is_some()),
            Inodes::Spilled(.., touched) => touched.get(group as usize).is_some_and(|t| t.load(Relaxed)),
        }
    }

    fn at(&self, ino: Ino) -> Option<(&GroupInodes, usize)> {
        let Inodes::Memory(groups) = &self.inodes else { return None };
        let at = ino.get() - 1;
        let group = groups.get((at / self.per_group) as usize)?.get()?;
        Some((group, (at % self.per_group) as usize))
    }

    /// The record in the scratch file; the default for a map in memory and past the last inode.
    fn record<R: Default>(&self, ino: Ino, change: bool, visit: impl FnOnce(&mut [u8]) -> R) -> R {
        let Inodes::Spilled(scratch, base, _) = &self.inodes else { return R::default() };
        let at = u64::from(ino.get() - 1);
        if at >= self.count.into() {
            return R::default();
        }
        scratch.with(base + at / INODES_IN_PAGE, change, |page| {
            visit(&mut page[(at % INODES_IN_PAGE) as usize * RECORD..][..RECORD])
        })
    }
}

fn names_in(record: &[u8]) -> u32 {
    u32::from_le_bytes([record[4], record[5], record[6], record[7]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty set of `end` clusters of one block, in memory or in a scratch file.
    fn empty(end: u64, spilled: bool) -> BlockMap {
        let chunks = end.div_ceil(CHUNK * 64);
        let words = if spilled {
            let scratch = Arc::new(Scratch::create(&std::env::temp_dir(), 0).unwrap());
            let touched = (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
            Words::Spilled(Spilled { scratch, base: 0, touched })
        } else {
            Words::Memory((0..chunks).map(|_| OnceLock::new()).collect())
        };
        BlockMap { words, first: 0, ratio: 1, end }
    }

    #[test]
    fn bits_are_copied_as_they_were_set() {
        let end = 5 * CHUNK * 64 + 100;
        let edge = 2 * CHUNK * 64;
        for spilled in [false, true] {
            let map = empty(end, spilled);
            for (start, len) in [(3, 70), (edge - 5, 9), (edge + 1000, 1), (end - 1, 1)] {
                map.claim(BlockNo(start), len, |_| ());
            }
            for (first, bytes) in [(0, 16), (8, 3), (edge - 72, 40), (edge - 64, 8), (end - 92, 12)] {
                let mut bits = vec![0xa5; bytes];
                map.copy_bits(first, &mut bits);
                for at in 0..bytes as u64 * 8 {
                    let bit = bits[at as usize / 8] >> (at % 8) & 1 == 1;
                    assert_eq!(bit, map.has(BlockNo(first + at)), "{spilled}, {first} + {at}");
                }
            }
            assert_eq!(map.free_count(), end - 81);
            assert!(map.is_blank(BlockNo(3 * CHUNK * 64), CHUNK * 64) && !map.is_blank(BlockNo(edge), 1));
        }
    }
}
