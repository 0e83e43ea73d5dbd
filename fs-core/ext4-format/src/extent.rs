//! The extent tree: codec, checks and edits of one node, and a bounded walk over a whole tree.
//!
//! A node is a 12-byte header and `max` slots of 12 bytes, sorted by logical block. The root lies in the
//! inode's 60 bytes, every other node fills a block and, with `metadata_csum`, ends with a four-byte checksum
//! behind the last slot. Depth 0 holds extents, a larger depth holds indexes to nodes one level deeper.
//! Nothing here does IO: a walk asks its caller for blocks. Source of every offset: the kernel's
//! `Documentation/filesystems/ext4/ifork.rst`.

use crate::corruption::{Corruption, What};
use crate::num::{BlockNo, FileBlock};

/// `eh_magic`.
pub const MAGIC: u16 = 0xf30a;
/// Bytes of the header and of each slot.
pub const ENTRY_SIZE: usize = 12;
/// Byte offsets in the header.
const EH_MAGIC: usize = 0;
const EH_ENTRIES: usize = 2;
const EH_MAX: usize = 4;
const EH_DEPTH: usize = 6;
/// The deepest tree ext4 builds.
pub const MAX_DEPTH: u16 = 5;
/// The most blocks of a written extent.
pub const MAX_LEN: u32 = 32768;
/// The most blocks of an unwritten extent: `ee_len` above 32768 means unwritten.
pub const MAX_UNWRITTEN_LEN: u32 = MAX_LEN - 1;

/// A run of a file's blocks that lie one after the other on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Extent {
    /// First block of the file.
    pub first: FileBlock,
    /// Blocks; at least 1, at most [`MAX_LEN`] or [`MAX_UNWRITTEN_LEN`].
    pub len: u32,
    /// Where they lie.
    pub start: BlockNo,
    /// Allocated but never written: it reads as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// The file block after the last; up to 2^32, so wider than a [`FileBlock`].
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.first.0) + u64::from(self.len)
    }

    /// The device block of `block`, when this extent covers it.
    #[must_use]
    pub fn map(&self, block: FileBlock) -> Option<BlockNo> {
        let ahead = block.0.checked_sub(self.first.0).filter(|&ahead| ahead < self.len)?;
        self.start.checked_add(u64::from(ahead))
    }

    /// The most blocks an extent of this kind may have.
    #[must_use]
    pub fn max_len(unwritten: bool) -> u32 {
        if unwritten { MAX_UNWRITTEN_LEN } else { MAX_LEN }
    }

    /// Whether `next` continues this extent in the file, on the device and in kind, and one extent can hold
    /// both.
    #[must_use]
    pub fn joins(&self, next: &Extent) -> bool {
        self.end() == u64::from(next.first.0)
            && self.start.0.checked_add(u64::from(self.len)) == Some(next.start.0)
            && self.unwritten == next.unwritten
            && self.len + next.len <= Extent::max_len(self.unwritten)
    }

    fn decode(slot: &[u8; ENTRY_SIZE]) -> Extent {
        let raw = u32::from(u16_at(slot, 4));
        let unwritten = raw > MAX_LEN;
        Extent {
            first: FileBlock(u32_at(slot, 0)),
            len: if unwritten { raw - MAX_LEN } else { raw },
            start: BlockNo(u64::from(u16_at(slot, 6)) << 32 | u64::from(u32_at(slot, 8))),
            unwritten,
        }
    }

    fn encode(&self) -> [u8; ENTRY_SIZE] {
        debug_assert!(self.len >= 1 && self.len <= Extent::max_len(self.unwritten));
        let len = if self.unwritten { self.len + MAX_LEN } else { self.len };
        let mut slot = [0; ENTRY_SIZE];
        slot[..4].copy_from_slice(&self.first.0.to_le_bytes());
        slot[4..6].copy_from_slice(&(len as u16).to_le_bytes());
        slot[6..8].copy_from_slice(&((self.start.0 >> 32) as u16).to_le_bytes());
        slot[8..].copy_from_slice(&(self.start.0 as u32).to_le_bytes());
        slot
    }
}

/// A pointer to a node one level deeper.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Index {
    /// First file block the child covers.
    pub first: FileBlock,
    /// The block of the child.
    pub child: BlockNo,
}

impl Index {
    fn decode(slot: &[u8; ENTRY_SIZE]) -> Index {
        Index {
            first: FileBlock(u32_at(slot, 0)),
            child: BlockNo(u64::from(u16_at(slot, 8)) << 32 | u64::from(u32_at(slot, 4))),
        }
    }

    fn encode(&self) -> [u8; ENTRY_SIZE] {
        let mut slot = [0; ENTRY_SIZE];
        slot[..4].copy_from_slice(&self.first.0.to_le_bytes());
        slot[4..8].copy_from_slice(&(self.child.0 as u32).to_le_bytes());
        slot[8..10].copy_from_slice(&((self.child.0 >> 32) as u16).to_le_bytes());
        slot
    }
}

/// The device blocks that a pointer may name, and what a node must cover.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// First block of the device that holds data (`s_first_data_block`).
    pub first_block: BlockNo,
    /// Blocks of the filesystem.
    pub blocks_count: u64,
    /// First file block that the node may hold.
    pub first: u64,
    /// File block after the last one it may hold.
    pub end: u64,
}

impl Bounds {
    /// Bounds of a root: any file block (2^32 - 1 is never one), on a device of this size.
    #[must_use]
    pub fn of_volume(first_block: BlockNo, blocks_count: u64) -> Bounds {
        Bounds { first_block, blocks_count, first: 0, end: u64::from(u32::MAX) }
    }

    fn holds(&self, start: BlockNo, len: u64) -> bool {
        start.0 > 0
            && start >= self.first_block
            && start.0.checked_add(len).is_some_and(|end| end <= self.blocks_count)
    }
}

/// `eh_magic` and `eh_max` as they stand; `None` when `bytes` do not start with the magic of a node.
#[must_use]
pub fn stated_max(bytes: &[u8]) -> Option<u16> {
    let header = bytes.first_chunk::<ENTRY_SIZE>()?;
    (u16_at(header, EH_MAGIC) == MAGIC).then(|| u16_at(header, EH_MAX))
}

/// Writes `eh_max`; nothing when `bytes` have no header.
pub fn set_max(bytes: &mut [u8], max: u16) {
    if let Some(header) = bytes.first_chunk_mut::<ENTRY_SIZE>() {
        header[EH_MAX..EH_DEPTH].copy_from_slice(&max.to_le_bytes());
    }
}

/// Writes `eh_depth`; nothing when `bytes` have no header.
pub fn set_depth(bytes: &mut [u8], depth: u16) {
    if let Some(header) = bytes.first_chunk_mut::<ENTRY_SIZE>() {
        header[EH_DEPTH..EH_DEPTH + 2].copy_from_slice(&depth.to_le_bytes());
    }
}

/// A node with a valid header. [`Node::check`] checks its entries.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    bytes: &'a [u8],
    entries: u16,
    max: u16,
    depth: u16,
}

impl<'a> Node<'a> {
    /// Reads the header of a node: the inode's 60 bytes or a whole block.
    ///
    /// # Errors
    /// A wrong magic, more slots than the bytes have room for, more entries than slots, a depth above
    /// [`MAX_DEPTH`].
    pub fn parse(bytes: &'a [u8]) -> Result<Node<'a>, Corruption> {
        let bad =
            |field, found: u64, expected: u64| Err(Corruption::new(What::ExtentNode, field, found, expected));
        let Some((header, slots)) = bytes.split_first_chunk::<ENTRY_SIZE>() else {
            return bad("node size", bytes.len() as u64, ENTRY_SIZE as u64);
        };
        let [magic, entries, max, depth] = std::array::from_fn(|i| u16_at(header, 2 * i));
        let room = (slots.len() / ENTRY_SIZE) as u16;
        if magic != MAGIC {
            return bad("eh_magic", u64::from(magic), u64::from(MAGIC));
        }
        if max == 0 || max > room {
            return bad("eh_max", u64::from(max), u64::from(room));
        }
        if entries > max {
            return bad("eh_entries", u64::from(entries), u64::from(max));
        }
        if depth > MAX_DEPTH {
            return bad("eh_depth", u64::from(depth), u64::from(MAX_DEPTH));
        }
        Ok(Node { bytes, entries, max, depth })
    }

    /// Entries in use.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.entries)
    }

    /// Whether no entry is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Slots.
    #[must_use]
    pub fn max(&self) -> usize {
        usize::from(self.max)
    }

    /// Whether every slot is in use.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries >= self.max
    }

    /// Levels below this node; 0 is a leaf.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// Entry `at` of a leaf.
    #[must_use]
    pub fn extent(&self, at: usize) -> Option<Extent> {
        (self.depth == 0).then(|| self.slot(at).map(Extent::decode))?
    }

    /// Entry `at` of an index node.
    #[must_use]
    pub fn index(&self, at: usize) -> Option<Index> {
        (self.depth > 0).then(|| self.slot(at).map(Index::decode))?
    }

    /// The extents of a leaf; empty for an index node.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + 'a {
        let node = *self;
        (0..node.len()).map_while(move |at| node.extent(at))
    }

    /// The indexes of an index node; empty for a leaf.
    pub fn indexes(&self) -> impl Iterator<Item = Index> + 'a {
        let node = *self;
        (0..node.len()).map_while(move |at| node.index(at))
    }

    /// First file block of entry `at`.
    #[must_use]
    pub fn first_of(&self, at: usize) -> Option<FileBlock> {
        self.slot(at).map(|slot| FileBlock(u32_at(slot, 0)))
    }

    /// The last entry that starts at or before `block`; `None` when all start after it.
    #[must_use]
    pub fn search(&self, block: FileBlock) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.first_of(middle)? <= block {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.checked_sub(1)
    }

    /// Checks every entry: order, overlap, lengths, and that all blocks lie inside `bounds`. `child` tells
    /// that the first entry must start exactly at `bounds.first`, which holds for every node but the root.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self, bounds: &Bounds, child: bool) -> Result<(), Corruption> {
        let bad = |at: usize, field, found: u64, expected: u64| {
            Err(Corruption::new(What::ExtentNode, field, found, expected).at_offset(ENTRY_SIZE * (at + 1)))
        };
        if self.is_empty() && (child || self.depth > 0) {
            return bad(0, "eh_entries", 0, 1);
        }
        let mut next = bounds.first;
        for at in 0..self.len() {
            let first = self.first_of(at).map_or(0, |first| u64::from(first.0));
            if at == 0 && child && first != bounds.first {
                return bad(at, "first logical block", first, bounds.first);
            }
            if first < next || first >= bounds.end {
                return bad(at, "logical block order", first, next);
            }
            if let Some(extent) = self.extent(at) {
                if extent.len == 0 {
                    return bad(at, "ee_len", 0, 1);
                }
                if !bounds.holds(extent.start, u64::from(extent.len)) {
                    return bad(at, "ee_start", extent.start.0, bounds.blocks_count);
                }
                if extent.end() > bounds.end {
                    return bad(at, "extent end", extent.end(), bounds.end);
                }
                next = extent.end();
            } else if let Some(index) = self.index(at) {
                if !bounds.holds(index.child, 1) {
                    return bad(at, "ei_leaf", index.child.0, bounds.blocks_count);
                }
                next = first + 1;
            }
        }
        Ok(())
    }

    /// What child `at` of this index node must cover.
    #[must_use]
    pub fn child_bounds(&self, at: usize, bounds: &Bounds) -> Bounds {
        let first = self.first_of(at).map_or(bounds.first, |first| u64::from(first.0));
        let end = if at + 1 < self.len() { self.first_of(at + 1) } else { None };
        Bounds { first, end: end.map_or(bounds.end, |end| u64::from(end.0)), ..*bounds }
    }

    fn slot(&self, at: usize) -> Option<&'a [u8; ENTRY_SIZE]> {
        if at >= self.len() {
            return None;
        }
        self.bytes.get(ENTRY_SIZE * (at + 1)..)?.first_chunk()
    }
}

/// An entry of either kind, for edits that do not care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Of a leaf.
    Extent(Extent),
    /// Of an index node.
    Index(Index),
}

impl From<Extent> for Entry {
    fn from(extent: Extent) -> Entry {
        Entry::Extent(extent)
    }
}

impl From<Index> for Entry {
    fn from(index: Index) -> Entry {
        Entry::Index(index)
    }
}

/// A node that is being changed. Edits keep the header consistent. The caller keeps the order and sets the
/// checksum.
#[derive(Debug)]
pub struct NodeMut<'a> {
    bytes: &'a mut [u8],
}

impl<'a> NodeMut<'a> {
    /// Makes `bytes` an empty node of `depth`. A block keeps room for the checksum whether it has one or not.
    #[must_use]
    pub fn init(bytes: &'a mut [u8], depth: u16) -> NodeMut<'a> {
        let max = (bytes.len() / ENTRY_SIZE - 1) as u16;
        bytes.fill(0);
        let mut node = NodeMut { bytes };
        node.put_u16(EH_MAGIC, MAGIC);
        node.put_u16(EH_MAX, max);
        node.put_u16(EH_DEPTH, depth);
        node
    }

    /// An existing node.
    ///
    /// # Errors
    /// As [`Node::parse`].
    pub fn parse(bytes: &'a mut [u8]) -> Result<NodeMut<'a>, Corruption> {
        Node::parse(bytes)?;
        Ok(NodeMut { bytes })
    }

    /// The node as it stands.
    #[must_use]
    pub fn view(&self) -> Node<'_> {
        Node {
            bytes: self.bytes,
            entries: u16_at(self.bytes, EH_ENTRIES),
            max: u16_at(self.bytes, EH_MAX),
            depth: u16_at(self.bytes, EH_DEPTH),
        }
    }

    /// Puts `entry` before entry `at`. False, and no change, when the node is full or `at` lies behind the
    /// end.
    #[must_use]
    pub fn insert(&mut self, at: usize, entry: impl Into<Entry>) -> bool {
        let (len, full) = (self.view().len(), self.view().is_full());
        if full || at > len {
            return false;
        }
        let from = ENTRY_SIZE * (at + 1);
        self.bytes.copy_within(from..ENTRY_SIZE * (len + 1), from + ENTRY_SIZE);
        self.put_u16(EH_ENTRIES, len as u16 + 1);
        self.set(at, entry)
    }

    /// Replaces entry `at`. False when there is none.
    pub fn set(&mut self, at: usize, entry: impl Into<Entry>) -> bool {
        if at >= self.view().len() {
            return false;
        }
        let slot = match entry.into() {
            Entry::Extent(extent) => extent.encode(),
            Entry::Index(index) => index.encode(),
        };
        let from = ENTRY_SIZE * (at + 1);
        self.bytes[from..from + ENTRY_SIZE].copy_from_slice(&slot);
        true
    }

    /// Moves the start of entry `at` to another file block, which an index node does when the first entry of
    /// a child changes. False when there is none.
    pub fn set_first(&mut self, at: usize, first: FileBlock) -> bool {
        if at >= self.view().len() {
            return false;
        }
        let from = ENTRY_SIZE * (at + 1);
        self.bytes[from..from + 4].copy_from_slice(&first.0.to_le_bytes());
        true
    }

    /// Takes entries `range` out. Returns false, and changes nothing, when the range leaves the node.
    pub fn remove(&mut self, range: std::ops::Range<usize>) -> bool {
        let len = self.view().len();
        if range.start > range.end || range.end > len {
            return false;
        }
        let end = ENTRY_SIZE * (len + 1);
        self.bytes.copy_within(ENTRY_SIZE * (range.end + 1)..end, ENTRY_SIZE * (range.start + 1));
        self.bytes[end - ENTRY_SIZE * range.len()..end].fill(0);
        self.put_u16(EH_ENTRIES, (len - range.len()) as u16);
        true
    }

    /// Moves the entries from `at` on into `right`, which becomes a fresh node of the same depth, and returns
    /// the first file block it covers. `None`, and no change, when nothing would move or the target is too
    /// small.
    pub fn split_off(&mut self, at: usize, right: &mut [u8]) -> Option<FileBlock> {
        let (len, depth) = (self.view().len(), self.view().depth());
        let first = self.view().first_of(at)?;
        let moving = len - at;
        if right.len() < ENTRY_SIZE * (moving + 1) {
            return None;
        }
        let mut right = NodeMut::init(right, depth);
        right.bytes[ENTRY_SIZE..ENTRY_SIZE * (moving + 1)]
            .copy_from_slice(&self.bytes[ENTRY_SIZE * (at + 1)..ENTRY_SIZE * (len + 1)]);
        right.put_u16(EH_ENTRIES, moving as u16);
        self.remove(at..len);
        Some(first)
    }

    /// Makes the tree one level deeper: this root's entries move into `child`, and one index to `at` stays.
    /// False, and no change, for a root that is as deep as can be or empty.
    #[must_use]
    pub fn grow_depth(&mut self, child: &mut [u8], at: BlockNo) -> bool {
        let depth = self.view().depth();
        if depth >= MAX_DEPTH {
            return false;
        }
        let Some(first) = self.split_off(0, child) else { return false };
        self.put_u16(6, depth + 1);
        self.insert(0, Index { first, child: at })
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
}

/// What a walk meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A block of the tree itself, before what it holds; `depth` as in its header.
    Node {
        /// Where it lies.
        block: BlockNo,
        /// Levels below it.
        depth: u16,
    },
    /// A run of data blocks.
    Extent(Extent),
}

/// Walks a tree in file order. `read` fetches (and may verify the checksum of) a node's block, `visit` sees
/// each step. Every node is checked, and since children cover disjoint, exactly starting ranges, a hostile
/// tree ends after at most `blocks_count` nodes.
///
/// # Errors
/// The first damage met, or what `read` or `visit` return.
pub fn walk<B, E>(
    root: &[u8],
    bounds: Bounds,
    read: &mut impl FnMut(BlockNo) -> Result<B, E>,
    visit: &mut impl FnMut(Step) -> Result<(), E>,
) -> Result<(), E>
where
    B: AsRef<[u8]>,
    E: From<Corruption>,
{
    let node = Node::parse(root)?;
    node.check(&bounds, false)?;
    let mut budget = bounds.blocks_count;
    walk_node(&node, &bounds, &mut budget, read, visit)
}

fn walk_node<B, E>(
    node: &Node<'_>,
    bounds: &Bounds,
    budget: &mut u64,
    read: &mut impl FnMut(BlockNo) -> Result<B, E>,
    visit: &mut impl FnMut(Step) -> Result<(), E>,
) -> Result<(), E>
where
    B: AsRef<[u8]>,
    E: From<Corruption>,
{
    for extent in node.extents() {
        visit(Step::Extent(extent))?;
    }
    for (at, index) in node.indexes().enumerate() {
        let bad = |field, found: u64, expected: u64| {
            Corruption::new(What::ExtentNode, field, found, expected).at_block(index.child)
        };
        *budget = budget.checked_sub(1).ok_or_else(|| bad("tree size", bounds.blocks_count, 0))?;
        let bytes = read(index.child)?;
        let child = Node::parse(bytes.as_ref()).map_err(|c| c.at_block(index.child))?;
        if child.depth() + 1 != node.depth() {
            return Err(bad("eh_depth", u64::from(child.depth()), u64::from(node.depth()) - 1).into());
        }
        let inner = node.child_bounds(at, bounds);
        child.check(&inner, true).map_err(|c| c.at_block(index.child))?;
        visit(Step::Node { block: index.child, depth: child.depth() })?;
        walk_node(&child, &inner, budget, read, visit)?;
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const VOLUME: Bounds =
        Bounds { first_block: BlockNo(1), blocks_count: 1 << 40, first: 0, end: u32::MAX as u64 };

    fn extent(first: u32, len: u32, start: u64, unwritten: bool) -> Extent {
        Extent { first: FileBlock(first), len, start: BlockNo(start), unwritten }
    }

    #[test]
    fn lengths_tell_unwritten_extents_apart() {
        for (len, unwritten, raw) in [(32768, false, 32768_u16), (32767, true, 65535), (1, true, 32769)] {
            let extent = extent(7, len, 0xabcd_1234_5678, unwritten);
            let slot = extent.encode();
            assert_eq!(u16_at(&slot, 4), raw);
            assert_eq!(Extent::decode(&slot), extent);
        }
    }

    #[test]
    fn a_hostile_loop_ends() {
        let mut root = [0; 60];
        let mut node = NodeMut::init(&mut root, 1);
        for first in 0..4 {
            assert!(node.insert(first, Index { first: FileBlock(first as u32), child: BlockNo(9) }));
        }
        let mut block = vec![0; 1024];
        let mut child = NodeMut::init(&mut block, 0);
        assert!(child.insert(0, extent(0, 1, 50, false)));
        let seen = walk::<_, Corruption>(&root, VOLUME, &mut |_| Ok(&block[..]), &mut |_| Ok(()));
        assert_eq!(seen.unwrap_err().field, "first logical block");
    }

    #[test]
    fn a_grown_tree_walks_in_order() {
        let mut blocks: HashMap<u64, Vec<u8>> = HashMap::new();
        let mut root = [0; 60];
        let mut node = NodeMut::init(&mut root, 0);
        for at in 0..4 {
            assert!(node.insert(at, extent(10 * at as u32, 5, 100 * (at as u64 + 1), at == 2)));
        }
        assert!(!node.insert(4, extent(99, 1, 99, false)), "the root has four slots");
        let mut child = vec![0; 1024];
        assert!(node.grow_depth(&mut child, BlockNo(77)));
        let mut right = vec![0; 1024];
        let first = NodeMut::parse(&mut child).unwrap().split_off(2, &mut right).unwrap();
        assert!(node.insert(1, Index { first, child: BlockNo(78) }));
        blocks.insert(77, child);
        blocks.insert(78, right);
        let mut seen = Vec::new();
        walk::<_, Corruption>(&root, VOLUME, &mut |b| Ok(blocks[&b.0].clone()), &mut |step| {
            seen.push(step);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen.len(), 6);
        assert_eq!(seen[0], Step::Node { block: BlockNo(77), depth: 0 });
        assert_eq!(seen[4], Step::Extent(extent(20, 5, 300, true)));
    }

    proptest! {
        #[test]
        fn edits_follow_a_vector(ops in proptest::collection::vec((0_usize..90, any::<bool>(), 1_u32..32768, any::<bool>()), 1..200)) {
            let mut bytes = vec![0; 1024];
            let mut node = NodeMut::init(&mut bytes, 0);
            let mut model: Vec<Extent> = Vec::new();
            for (at, add, len, unwritten) in ops {
                if add {
                    let new = extent(at as u32, len.min(Extent::max_len(unwritten)), u64::from(len) << 20, unwritten);
                    let fits = model.len() < 84 && at <= model.len();
                    prop_assert_eq!(node.insert(at, new), fits);
                    if fits { model.insert(at, new); }
                } else {
                    prop_assert_eq!(node.remove(at..at + 1), at < model.len());
                    if at < model.len() { model.remove(at); }
                }
                prop_assert_eq!(&node.view().extents().collect::<Vec<_>>(), &model);
            }
        }

        #[test]
        fn search_agrees_with_a_linear_one(mut firsts in proptest::collection::btree_set(0_u32..1000, 1..80), probe in 0_u32..1000) {
            let mut bytes = vec![0; 1024];
            let mut node = NodeMut::init(&mut bytes, 0);
            for (at, first) in firsts.iter().enumerate() {
                prop_assert!(node.insert(at, extent(*first, 1, 5, false)));
            }
            firsts.retain(|&first| first <= probe);
            prop_assert_eq!(node.view().search(FileBlock(probe)), firsts.len().checked_sub(1));
        }

        #[test]
        fn no_bytes_make_a_walk_panic(bytes in proptest::collection::vec(any::<u8>(), 60), entries in 0_u8..5, depth in 0_u8..3) {
            let mut bytes = bytes;
            bytes[..8].copy_from_slice(&[0x0a, 0xf3, entries, 0, 4, 0, depth, 0]);
            let copy = bytes.clone();
            let _ = walk::<_, Corruption>(&bytes, VOLUME, &mut |_| Ok(copy.clone()), &mut |_| Ok(()));
        }
    }
}
