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
    Spilled(Arc<Scratch>, u64),
}

impl Words {
    fn load(&self, word: u64) -> u64 {
        match self {
            Words::Memory(chunks) => {
                let chunk = chunks.get((word / CHUNK) as usize).and_then(OnceLock::get);
                chunk.map_or(0, |chunk| chunk[(word % CHUNK) as usize].load(Relaxed))
            }
            Words::Spilled(..) => self.spilled(word, false, |bits| *bits),
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
            Words::Spilled(..) => self.spilled(word, true, |bits| {
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
            Words::Spilled(..) => self.spilled(word, true, |bits| *bits &= !mask),
        }
    }

    fn spilled<R>(&self, word: u64, change: bool, visit: impl FnOnce(&mut u64) -> R) -> R
    where
        R: Default,
    {
        let Words::Spilled(scratch, base) = self else { return R::default() };
        scratch.with(base + word / CHUNK, change, |page| {
            let bytes = &mut page[(word % CHUNK) as usize * 8..][..8];
            let mut bits = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
            let result = visit(&mut bits);
            bytes.copy_from_slice(&bits.to_le_bytes());
            result
        })
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
        BlockMap::over(geometry, Words::Spilled(Arc::clone(scratch), base))
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

    /// Clusters outside the set.
    #[must_use]
    pub fn free_count(&self) -> u64 {
        let total = (self.end - self.first).div_ceil(self.ratio);
        let words = (0..total.div_ceil(64)).map(|word| u64::from(self.words.load(word).count_ones()));
        total.saturating_sub(words.sum())
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
