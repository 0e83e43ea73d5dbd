//! What is in use: one bit per cluster and a few bytes per inode, filled by many threads at once.
//!
//! Both maps are cut into chunks that exist only where something is in use, so an empty volume costs nothing
//! and memory follows what the volume holds, not its size.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use ext4_format::geometry::Geometry;
use ext4_format::{BlockNo, Ino};

const WORDS: usize = 512;
const CHUNK: u64 = WORDS as u64 * 64;

/// A set of clusters of the volume.
pub struct BlockMap {
    chunks: Vec<OnceLock<Box<[AtomicU64; WORDS]>>>,
    first: u64,
    ratio: u64,
    end: u64,
}

impl BlockMap {
    /// The empty set.
    #[must_use]
    pub fn new(geometry: &Geometry) -> BlockMap {
        let first = u64::from(geometry.first_data_block);
        let ratio = u64::from(geometry.cluster_ratio);
        let end = geometry.blocks_count;
        let clusters = (end - first).div_ceil(ratio);
        let chunks = (0..clusters.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        BlockMap { chunks, first, ratio, end }
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
        self.words(start, len, |chunk, word, mask, base| {
            let chunk = chunk.get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS]));
            let mut twice = chunk[word].fetch_or(mask, Relaxed) & mask;
            while twice != 0 {
                seen(base + u64::from(twice.trailing_zeros()));
                twice &= twice - 1;
            }
        });
    }

    /// Takes clusters out again.
    pub fn release(&self, start: BlockNo, len: u64) {
        self.words(start, len, |chunk, word, mask, _| {
            if let Some(chunk) = chunk.get() {
                chunk[word].fetch_and(!mask, Relaxed);
            }
        });
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
        self.words(start, len, |chunk, word, mask, _| {
            any |= chunk.get().is_some_and(|chunk| chunk[word].load(Relaxed) & mask != 0);
        });
        any
    }

    /// The 64 clusters around a cluster.
    #[must_use]
    pub fn word(&self, cluster: u64) -> u64 {
        let chunk = self.chunks.get((cluster / CHUNK) as usize).and_then(OnceLock::get);
        chunk.map_or(0, |chunk| chunk[(cluster % CHUNK / 64) as usize].load(Relaxed))
    }

    /// Clusters outside the set.
    #[must_use]
    pub fn free_count(&self) -> u64 {
        let total = (self.end - self.first).div_ceil(self.ratio);
        let words = self.chunks.iter().filter_map(OnceLock::get).flat_map(|chunk| chunk.iter());
        total.saturating_sub(words.map(|word| u64::from(word.load(Relaxed).count_ones())).sum())
    }

    /// The first run of `clusters` clusters outside the set, looked for from `from` on and then from the start.
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

    fn words(
        &self,
        start: BlockNo,
        len: u64,
        mut visit: impl FnMut(&OnceLock<Box<[AtomicU64; WORDS]>>, usize, u64, u64),
    ) {
        let end = start.0.saturating_add(len).min(self.end);
        if end <= start.0.max(self.first) {
            return;
        }
        let (mut at, end) = (self.cluster(start.0), self.cluster(end - 1) + 1);
        while at < end {
            let stop = end.min((at / 64 + 1) * 64);
            let mask = (u64::MAX >> (64 - (stop - at))) << (at % 64);
            visit(&self.chunks[(at / CHUNK) as usize], (at % CHUNK / 64) as usize, mask, at / 64 * 64);
            at = stop;
        }
    }
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

/// What is known of every inode.
pub struct InodeMap {
    groups: Vec<OnceLock<GroupInodes>>,
    per_group: u32,
}

impl InodeMap {
    /// All free.
    #[must_use]
    pub fn new(geometry: &Geometry) -> InodeMap {
        let groups = (0..geometry.group_count).map(|_| OnceLock::new()).collect();
        InodeMap { groups, per_group: geometry.inodes_per_group }
    }

    /// Says what an inode is, and the link count on disk.
    pub fn set(&self, ino: Ino, what: Use, links: u16) {
        let at = ino.get() - 1;
        let Some(group) = self.groups.get((at / self.per_group) as usize) else { return };
        let group = group.get_or_init(|| GroupInodes {
            uses: (0..self.per_group).map(|_| AtomicU8::new(0)).collect(),
            links: (0..self.per_group).map(|_| AtomicU16::new(0)).collect(),
            names: (0..self.per_group).map(|_| AtomicU32::new(0)).collect(),
        });
        let index = (at % self.per_group) as usize;
        group.uses[index].store(what.pack(), Relaxed);
        group.links[index].store(links, Relaxed);
    }

    /// What an inode is; free past the last one.
    #[must_use]
    pub fn get(&self, ino: Ino) -> Use {
        self.at(ino).map_or(Use::Free, |(group, index)| Use::unpack(group.uses[index].load(Relaxed)))
    }

    /// The link count that stands in the inode.
    #[must_use]
    pub fn links(&self, ino: Ino) -> u16 {
        self.at(ino).map_or(0, |(group, index)| group.links[index].load(Relaxed))
    }

    /// The names counted.
    #[must_use]
    pub fn names(&self, ino: Ino) -> u32 {
        self.at(ino).map_or(0, |(group, index)| group.names[index].load(Relaxed))
    }

    /// Counts names more or less.
    pub fn add_names(&self, ino: Ino, change: i32) {
        if let Some((group, index)) = self.at(ino) {
            group.names[index].fetch_add(change as u32, Relaxed);
        }
    }

    /// Whether any inode of a group is in use.
    #[must_use]
    pub fn touched(&self, group: u32) -> bool {
        self.groups.get(group as usize).is_some_and(|group| group.get().is_some())
    }

    fn at(&self, ino: Ino) -> Option<(&GroupInodes, usize)> {
        let at = ino.get() - 1;
        let group = self.groups.get((at / self.per_group) as usize)?.get()?;
        Some((group, (at % self.per_group) as usize))
    }
}
