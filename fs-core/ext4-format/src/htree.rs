//! Index blocks of an htree directory.
//!
//! The root is block 0 of the directory: it opens with `.` and a `..` whose record hides the rest, so that
//! old code sees a linear directory; behind them stand eight bytes of info and the entries. A node hides
//! everything behind one free record. Entry 0 has no hash (its place holds limit and count) and stands for
//! "all below entry 1"; the lowest bit of a hash says that its first names continue those of the block
//! before. With `metadata_csum` eight bytes behind the last slot hold the checksum. Source: the kernel's
//! `Documentation/filesystems/ext4/directory.rst`.

use crate::corruption::{Corruption, What};
use crate::dirent::{decode_rec_len, encode_rec_len};
use crate::inode::FileType;
use crate::num::{FileBlock, Ino};

/// Bytes of an entry.
pub const ENTRY_SIZE: usize = 8;
/// Where the entries of a root start (behind eight bytes of info).
pub const ROOT_ENTRIES: usize = 32;
/// Where the entries of a node start.
pub const NODE_ENTRIES: usize = 8;
/// Bytes of the tail.
pub const TAIL_SIZE: usize = 8;
/// Length of `dx_root_info`.
pub const INFO_LEN: u8 = 8;
const INFO: usize = 24;
const BLOCK_MASK: u32 = 0x0fff_ffff;

/// Levels of index blocks, root included, that a directory may have.
#[must_use]
pub fn max_levels(large_dir: bool) -> u8 {
    if large_dir { 3 } else { 2 }
}

/// Which kind of index block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Block 0 of the directory.
    Root,
    /// Any other index block.
    Node,
}

impl Kind {
    /// Where the entries start; the count and limit stand there.
    #[must_use]
    pub fn entries_offset(self) -> usize {
        match self {
            Kind::Root => ROOT_ENTRIES,
            Kind::Node => NODE_ENTRIES,
        }
    }

    /// Slots of a block of this kind.
    #[must_use]
    pub fn limit(self, block_size: usize, tail: bool) -> usize {
        block_size.saturating_sub(self.entries_offset() + if tail { TAIL_SIZE } else { 0 }) / ENTRY_SIZE
    }
}

/// `dx_root_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootInfo {
    /// `hash_version` as it stands.
    pub hash_version: u8,
    /// Bytes of the info; 8.
    pub info_length: u8,
    /// Levels of nodes between the root and the leaves.
    pub indirect_levels: u8,
    /// Unused; 0, its lowest bit would mark an unknown format.
    pub unused_flags: u8,
}

/// One index entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DxEntry {
    /// Smallest hash below this entry, lowest bit: continued. 0 for entry 0.
    pub hash: u32,
    /// The block of the directory it leads to.
    pub block: FileBlock,
}

/// An index block that can be read.
#[derive(Clone, Copy, Debug)]
pub struct Index<'a> {
    bytes: &'a [u8],
    kind: Kind,
    limit: usize,
    count: usize,
}

impl<'a> Index<'a> {
    /// Reads an index block: its shape, limit and count. `tail` says whether the volume has metadata
    /// checksums.
    ///
    /// # Errors
    /// A shape that is not an index block's, a limit that does not fit the block, a count outside 1 to limit.
    pub fn parse(bytes: &'a [u8], kind: Kind, tail: bool) -> Result<Index<'a>, Corruption> {
        let bad = |field, found: usize, expected: usize| {
            Err(Corruption::new(What::HtreeBlock, field, found as u64, expected as u64))
        };
        let at = kind.entries_offset();
        let Some(counts) = bytes.get(at..).and_then(|rest| rest.first_chunk::<ENTRY_SIZE>()) else {
            return bad("block size", bytes.len(), at + ENTRY_SIZE);
        };
        let rec_len = |at: usize| decode_rec_len(u16::from_le_bytes([bytes[at], bytes[at + 1]]), bytes.len());
        match kind {
            Kind::Root => {
                if rec_len(4) != 12 || rec_len(16) != bytes.len() - 12 {
                    return bad("rec_len", rec_len(16), bytes.len() - 12);
                }
                if bytes[INFO..INFO + 4] != [0; 4] {
                    return bad("reserved_zero", usize::from(bytes[INFO]), 0);
                }
                if bytes[INFO + 5] != INFO_LEN {
                    return bad("info_length", usize::from(bytes[INFO + 5]), usize::from(INFO_LEN));
                }
            }
            Kind::Node => {
                if bytes[..4] != [0; 4] || rec_len(4) != bytes.len() {
                    return bad("rec_len", rec_len(4), bytes.len());
                }
            }
        }
        let limit = usize::from(u16::from_le_bytes([counts[0], counts[1]]));
        let count = usize::from(u16::from_le_bytes([counts[2], counts[3]]));
        let room = kind.limit(bytes.len(), tail);
        if limit != room {
            return bad("limit", limit, room);
        }
        if count == 0 || count > limit {
            return bad("count", count, limit);
        }
        Ok(Index { bytes, kind, limit, count })
    }

    /// The info of a root; `None` for a node.
    #[must_use]
    pub fn info(&self) -> Option<RootInfo> {
        (self.kind == Kind::Root).then(|| RootInfo {
            hash_version: self.bytes[INFO + 4],
            info_length: self.bytes[INFO + 5],
            indirect_levels: self.bytes[INFO + 6],
            unused_flags: self.bytes[INFO + 7],
        })
    }

    /// Entries in use.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Slots.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether every slot is in use.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count >= self.limit
    }

    /// Entry `at`.
    #[must_use]
    pub fn entry(&self, at: usize) -> Option<DxEntry> {
        if at >= self.count {
            return None;
        }
        let from = self.kind.entries_offset() + at * ENTRY_SIZE;
        let raw: &[u8; ENTRY_SIZE] = self.bytes.get(from..)?.first_chunk()?;
        let [a, b, c, d, block @ ..] = *raw;
        Some(DxEntry {
            hash: if at == 0 { 0 } else { u32::from_le_bytes([a, b, c, d]) },
            block: FileBlock(u32::from_le_bytes(block) & BLOCK_MASK),
        })
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = DxEntry> + 'a {
        let index = *self;
        (0..index.count).map_while(move |at| index.entry(at))
    }

    /// The entry whose subtree holds names with major hash `hash`: the last one not above it.
    #[must_use]
    pub fn search(&self, hash: u32) -> usize {
        let (mut low, mut high) = (1, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle).is_some_and(|entry| entry.hash <= hash) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low - 1
    }
}

/// An index block that is being changed. Checksums are `csum`'s.
#[derive(Debug)]
pub struct IndexMut<'a> {
    bytes: &'a mut [u8],
    kind: Kind,
    tail: bool,
}

impl<'a> IndexMut<'a> {
    /// Makes `bytes` the root of directory `itself` with one entry, the leaf or node in block `first`.
    #[must_use]
    pub fn init_root(
        bytes: &'a mut [u8],
        shape: &RootShape,
        info: RootInfo,
        first: FileBlock,
    ) -> IndexMut<'a> {
        bytes.fill(0);
        let size = bytes.len();
        let code = if shape.filetype { FileType::Directory.dirent_code() } else { 0 };
        for (at, ino, rec_len, name) in
            [(0, shape.itself, 12, &b"."[..]), (12, shape.parent, size - 12, b"..")]
        {
            bytes[at..at + 4].copy_from_slice(&ino.get().to_le_bytes());
            bytes[at + 4..at + 6].copy_from_slice(&encode_rec_len(rec_len, size).to_le_bytes());
            bytes[at + 6] = name.len() as u8;
            bytes[at + 7] = code;
            bytes[at + 8..at + 8 + name.len()].copy_from_slice(name);
        }
        let mut index = IndexMut { bytes, kind: Kind::Root, tail: shape.tail };
        index.set_info(info);
        index.start_entries(first);
        index
    }

    /// Makes `bytes` a node with one entry.
    #[must_use]
    pub fn init_node(bytes: &'a mut [u8], tail: bool, first: FileBlock) -> IndexMut<'a> {
        let mut index = IndexMut::bare_node(bytes, tail);
        index.start_entries(first);
        index
    }

    /// An existing index block.
    ///
    /// # Errors
    /// As [`Index::parse`].
    pub fn parse(bytes: &'a mut [u8], kind: Kind, tail: bool) -> Result<IndexMut<'a>, Corruption> {
        Index::parse(bytes, kind, tail)?;
        Ok(IndexMut { bytes, kind, tail })
    }

    /// The block as it stands.
    #[must_use]
    pub fn view(&self) -> Index<'_> {
        let at = self.kind.entries_offset();
        let word = |at: usize| usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]));
        Index { bytes: self.bytes, kind: self.kind, limit: word(at), count: word(at + 2) }
    }

    /// Changes the info of a root; nothing for a node.
    pub fn set_info(&mut self, info: RootInfo) {
        if self.kind == Kind::Root {
            self.bytes[INFO + 4..INFO + 8].copy_from_slice(&[
                info.hash_version,
                info.info_length,
                info.indirect_levels,
                info.unused_flags,
            ]);
        }
    }

    /// Puts `entry` before entry `at`, which is at least 1. False, and no change, when the block is full or
    /// `at` lies outside.
    #[must_use]
    pub fn insert(&mut self, at: usize, entry: DxEntry) -> bool {
        let (count, full) = (self.view().count, self.view().is_full());
        if full || at == 0 || at > count {
            return false;
        }
        let start = self.kind.entries_offset();
        let from = start + at * ENTRY_SIZE;
        self.bytes.copy_within(from..start + count * ENTRY_SIZE, from + ENTRY_SIZE);
        self.set_count(count + 1);
        self.put(at, entry);
        true
    }

    /// Moves the upper half of the entries into `right`, which becomes a fresh node; returns the hash that
    /// leads there. `None`, and no change, with fewer than two entries.
    pub fn split_upper_half(&mut self, right: &mut [u8]) -> Option<u32> {
        let count = self.view().count;
        let keep = count / 2;
        let hash = self.view().entry(keep).filter(|_| keep > 0)?.hash;
        self.move_entries(keep, right);
        self.set_count(keep);
        Some(hash)
    }

    /// Makes the tree one level deeper: this root's entries move into `child`, which becomes block `at` of
    /// the directory and the root's only entry.
    pub fn grow_depth(&mut self, child: &mut [u8], at: FileBlock) {
        self.move_entries(0, child);
        self.set_count(1);
        self.put(0, DxEntry { hash: 0, block: at });
        if let Some(info) = self.view().info() {
            self.set_info(RootInfo { indirect_levels: info.indirect_levels + 1, ..info });
        }
    }

    fn move_entries(&mut self, from: usize, right: &mut [u8]) {
        let moving: Vec<DxEntry> = self.view().entries().skip(from).collect();
        let mut node = IndexMut::bare_node(right, self.tail);
        node.set_count(moving.len());
        for (at, entry) in moving.into_iter().enumerate() {
            node.put(at, entry);
        }
    }

    fn bare_node(bytes: &'a mut [u8], tail: bool) -> IndexMut<'a> {
        bytes.fill(0);
        let rec_len = encode_rec_len(bytes.len(), bytes.len());
        bytes[4..6].copy_from_slice(&rec_len.to_le_bytes());
        let mut node = IndexMut { bytes, kind: Kind::Node, tail };
        node.set_limit();
        node
    }

    fn start_entries(&mut self, first: FileBlock) {
        self.set_limit();
        self.set_count(1);
        self.put(0, DxEntry { hash: 0, block: first });
    }

    fn set_limit(&mut self) {
        let limit = self.kind.limit(self.bytes.len(), self.tail) as u16;
        let at = self.kind.entries_offset();
        self.bytes[at..at + 2].copy_from_slice(&limit.to_le_bytes());
    }

    fn set_count(&mut self, count: usize) {
        let at = self.kind.entries_offset() + 2;
        self.bytes[at..at + 2].copy_from_slice(&(count as u16).to_le_bytes());
    }

    fn put(&mut self, at: usize, entry: DxEntry) {
        let from = self.kind.entries_offset() + at * ENTRY_SIZE;
        if at > 0 {
            self.bytes[from..from + 4].copy_from_slice(&entry.hash.to_le_bytes());
        }
        self.bytes[from + 4..from + 8].copy_from_slice(&entry.block.0.to_le_bytes());
    }
}

/// What a new root needs to know beside its info.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootShape {
    /// The directory.
    pub itself: Ino,
    /// Its parent.
    pub parent: Ino,
    /// Feature `filetype`.
    pub filetype: bool,
    /// Feature `metadata_csum`.
    pub tail: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn root(bytes: &mut [u8]) -> IndexMut<'_> {
        let itself = Ino::ROOT;
        let shape = RootShape { itself, parent: itself, filetype: true, tail: true };
        let info = RootInfo { hash_version: 1, info_length: INFO_LEN, indirect_levels: 0, unused_flags: 0 };
        IndexMut::init_root(bytes, &shape, info, FileBlock(1))
    }

    #[test]
    fn limits_are_those_of_the_kernel() {
        assert_eq!(Kind::Root.limit(4096, true), 507);
        assert_eq!(Kind::Root.limit(4096, false), 508);
        assert_eq!(Kind::Node.limit(4096, true), 510);
        assert_eq!(Kind::Node.limit(1024, false), 127);
    }

    #[test]
    fn a_full_root_grows_and_its_node_splits() {
        let (mut bytes, mut child, mut right) = (vec![0xff; 1024], vec![0xff; 1024], vec![0xff; 1024]);
        let mut index = root(&mut bytes);
        let mut n = 1;
        while index.insert(n, DxEntry { hash: 10 * n as u32, block: FileBlock(n as u32 + 1) }) {
            n += 1;
        }
        assert_eq!(n, Kind::Root.limit(1024, true));
        index.grow_depth(&mut child, FileBlock(900));
        assert_eq!(index.view().info().unwrap().indirect_levels, 1);
        assert_eq!(index.view().entries().collect::<Vec<_>>(), [DxEntry { hash: 0, block: FileBlock(900) }]);
        let mut node = IndexMut::parse(&mut child, Kind::Node, true).unwrap();
        let hash = node.split_upper_half(&mut right).unwrap();
        assert!(index.insert(1, DxEntry { hash, block: FileBlock(901) }));
        for (bytes, kind, from, to) in [
            (&child, Kind::Node, 0, hash),
            (&right, Kind::Node, hash, u32::MAX),
            (&bytes, Kind::Root, 0, u32::MAX),
        ] {
            let hashes: Vec<u32> =
                Index::parse(bytes, kind, true).unwrap().entries().map(|e| e.hash).collect();
            assert!(hashes.is_sorted() && hashes[1..].iter().all(|hash| (from..=to).contains(hash)));
        }
        let right = Index::parse(&right, Kind::Node, true).unwrap();
        assert_eq!(right.entry(0).unwrap().block, FileBlock(hash / 10 + 1));
    }

    proptest! {
        #[test]
        fn search_agrees_with_a_linear_one(hashes in proptest::collection::btree_set(1_u32..5000, 0..100), probe in any::<u16>()) {
            let mut bytes = vec![0; 1024];
            let mut index = root(&mut bytes);
            for (at, hash) in hashes.iter().enumerate() {
                let entry = DxEntry { hash: *hash, block: FileBlock(7) };
                prop_assert!(index.insert(at + 1, entry));
            }
            let probe = u32::from(probe);
            let expected = hashes.iter().filter(|&&h| h <= probe).count();
            prop_assert_eq!(index.view().search(probe), expected);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), root in any::<bool>()) {
            let kind = if root { Kind::Root } else { Kind::Node };
            if let Ok(index) = Index::parse(&bytes, kind, false) {
                prop_assert_eq!(index.entries().count(), index.count());
            }
        }
    }
}
