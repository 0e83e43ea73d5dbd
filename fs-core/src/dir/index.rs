//! Walking the htree: from a hash to a leaf, and from a leaf to the next.

use ext4_format::hash::{Hash, HashVersion};
use ext4_format::htree::{DxEntry, Index, Kind, max_levels};
use ext4_format::{FileBlock, What};
use jbd2::Buffer;
use smallvec::SmallVec;

use super::Dir;
use super::blocks::Role;
use crate::error::Result;
use crate::inode::Core;

/// One index block on a path, and the entry that was taken.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub buffer: Buffer,
    pub kind: Kind,
    pub at: usize,
    pub full: bool,
}

/// The way from the root to a leaf.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// Root first; never empty, at most three.
    pub frames: SmallVec<[Frame; 3]>,
    /// The leaf.
    pub leaf: FileBlock,
    /// The hash that the index gives for the leaf (0 for the first).
    pub start: u32,
    /// How the index hashes.
    pub version: HashVersion,
}

impl Dir<'_> {
    /// The path to the first leaf that may hold `name`.
    pub(super) fn probe(&self, core: &Core, name: &[u8]) -> Result<(Hash, Path)> {
        let (root, version, depth) = self.root(core)?;
        let hash = self.hash(version, name)?;
        Ok((hash, self.descend(core, root, version, depth, hash.major)?))
    }

    /// The path to the first leaf that may hold names with major hash `major`.
    pub(super) fn probe_hash(&self, core: &Core, major: u32) -> Result<Path> {
        let (root, version, depth) = self.root(core)?;
        self.descend(core, root, version, depth, major)
    }

    /// The hash of `name` in this index.
    pub(super) fn hash(&self, version: HashVersion, name: &[u8]) -> Result<Hash> {
        let hash = self.settings.hash(version, name);
        hash.ok_or_else(|| self.damaged(What::HtreeBlock, "hash_version", version.raw().into(), 0))
    }

    /// The hash that the index gives for the leaf after this one; `None` at the end.
    pub(super) fn next_start(&self, path: &Path) -> Result<Option<u32>> {
        Ok(self.successor(path)?.map(|(_, entry)| entry.hash))
    }

    /// Moves `path` to the next leaf; false at the end.
    pub(super) fn next_leaf(&self, core: &Core, path: &mut Path) -> Result<bool> {
        let Some((level, taken)) = self.successor(path)? else { return Ok(false) };
        path.frames[level].at += 1;
        let mut below = self.checked(taken.block)?;
        for deeper in level + 1..path.frames.len() {
            let frame = self.frame(core, below, |_| 0)?;
            below = self.checked(self.entry(&frame, 0)?.map_or(FileBlock(0), |e| e.block))?;
            path.frames[deeper] = frame;
        }
        (path.leaf, path.start) = (below, taken.hash);
        Ok(true)
    }

    /// The lowest level at which the path can move on, and the entry it would take there.
    fn successor(&self, path: &Path) -> Result<Option<(usize, DxEntry)>> {
        for (level, frame) in path.frames.iter().enumerate().rev() {
            if let Some(entry) = self.entry(frame, frame.at + 1)? {
                return Ok(Some((level, entry)));
            }
        }
        Ok(None)
    }

    fn root(&self, core: &Core) -> Result<(Buffer, HashVersion, usize)> {
        let buffer = self.read(core, FileBlock(0), Role::Index(Kind::Root))?;
        let data = buffer.data();
        let index = Index::parse(&data, Kind::Root, self.settings.format.tail);
        let info = index.map_err(|c| self.corrupt(&buffer, c))?.info();
        let bad = |field, found: u8| self.damaged(What::HtreeBlock, field, found.into(), 0);
        let info = info.ok_or_else(|| bad("info", 0))?;
        if info.unused_flags & 1 != 0 {
            return Err(bad("unused_flags", info.unused_flags));
        }
        if info.indirect_levels >= max_levels(self.settings.large) {
            return Err(bad("indirect_levels", info.indirect_levels));
        }
        let version = HashVersion::from_raw(info.hash_version)
            .ok_or_else(|| bad("hash_version", info.hash_version))?
            .with_unsigned(self.settings.hash_unsigned);
        Ok((buffer, version, usize::from(info.indirect_levels)))
    }

    fn descend(
        &self,
        core: &Core,
        root: Buffer,
        version: HashVersion,
        depth: usize,
        major: u32,
    ) -> Result<Path> {
        let search = |index: &Index<'_>| index.search(major);
        let mut frames = SmallVec::new();
        let mut start = 0;
        let mut frame = self.frame_of(root, Kind::Root, search)?;
        let leaf = loop {
            let Some(entry) = self.entry(&frame, frame.at)? else {
                return Err(self.damaged(What::HtreeBlock, "count", 0, 1));
            };
            if frame.at > 0 {
                start = entry.hash;
            }
            frames.push(frame);
            let below = self.checked(entry.block)?;
            if frames.len() > depth {
                break below;
            }
            frame = self.frame(core, below, search)?;
        };
        Ok(Path { frames, leaf, start, version })
    }

    /// Refuses the root as somebody's child.
    fn checked(&self, at: FileBlock) -> Result<FileBlock> {
        if at.0 == 0 { Err(self.damaged(What::HtreeBlock, "block", 0, 1)) } else { Ok(at) }
    }

    fn frame(&self, core: &Core, at: FileBlock, choose: impl Fn(&Index<'_>) -> usize) -> Result<Frame> {
        let buffer = self.read(core, at, Role::Index(Kind::Node))?;
        self.frame_of(buffer, Kind::Node, choose)
    }

    fn frame_of(&self, buffer: Buffer, kind: Kind, choose: impl Fn(&Index<'_>) -> usize) -> Result<Frame> {
        let data = buffer.data();
        let index = Index::parse(&data, kind, self.settings.format.tail);
        let index = index.map_err(|c| self.corrupt(&buffer, c))?;
        Ok(Frame { at: choose(&index), full: index.is_full(), kind, buffer })
    }

    fn entry(&self, frame: &Frame, at: usize) -> Result<Option<DxEntry>> {
        let data = frame.buffer.data();
        let index = Index::parse(&data, frame.kind, self.settings.format.tail);
        Ok(index.map_err(|c| self.corrupt(&frame.buffer, c))?.entry(at))
    }
}
