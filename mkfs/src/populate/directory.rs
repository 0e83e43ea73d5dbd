//! Directory blocks: one linear block where that holds all entries, else an htree whose leaves are filled in
//! the order of hashes, or, without `dir_index`, linear blocks.
//!
//! An htree's blocks are the root, then the index nodes level by level, then the leaves. Source: the kernel's
//! `Documentation/filesystems/ext4/directory.rst`.

use ext4_format::csum::Csum;
use ext4_format::dirent::{DirBlockMut, DirFormat, NewEntry};
use ext4_format::htree::{DxEntry, INFO_LEN, IndexMut, Kind, RootInfo, RootShape};
use ext4_format::inode::FileType;
use ext4_format::{Corruption, FileBlock, Ino};

use super::order::Hashing;

/// How a directory's blocks are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Index nodes below the root, level by level; `None` for a linear directory.
    pub nodes: Option<[u32; 2]>,
    /// Blocks that hold entries.
    pub leaves: u32,
}

impl Shape {
    /// All blocks.
    pub fn blocks(&self) -> u32 {
        self.leaves + self.nodes.map_or(0, |[upper, lower]| 1 + upper + lower)
    }
}

/// What a volume's directories are like.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The format of blocks.
    pub format: DirFormat,
    /// Bytes of a block.
    pub block_size: usize,
    /// How names are hashed, and whether directories are indexed.
    pub hashing: Hashing,
    /// Whether an index may have a third level (feature `large_dir`).
    pub three_levels: bool,
}

const DOTS: usize = 24;

impl Rules {
    fn usable(&self) -> usize {
        self.format.usable(self.block_size)
    }

    /// How the entries with names of these lengths are laid out. `None`: more than an index can hold.
    pub fn shape(&self, lengths: impl Iterator<Item = usize> + Clone) -> Option<Shape> {
        let sizes = lengths.map(|len| self.format.entry_size(len));
        let linear = self.leaves(DOTS, sizes.clone());
        if linear == 1 || !self.hashing.indexed {
            return Some(Shape { nodes: None, leaves: linear });
        }
        let leaves = self.leaves(0, sizes);
        let root = Kind::Root.limit(self.block_size, self.format.tail) as u32;
        let node = Kind::Node.limit(self.block_size, self.format.tail) as u32;
        let lower = leaves.div_ceil(node);
        let nodes = match leaves {
            _ if leaves <= root => [0, 0],
            _ if lower <= root => [0, lower],
            _ if self.three_levels && lower.div_ceil(node) <= root => [lower.div_ceil(node), lower],
            _ => return None,
        };
        Some(Shape { nodes: Some(nodes), leaves })
    }

    /// Blocks that entries of these sizes fill, the first one from byte `start` on.
    fn leaves(&self, start: usize, sizes: impl Iterator<Item = usize>) -> u32 {
        let (mut count, mut at) = (1, start);
        for size in sizes {
            if at + size > self.usable() {
                (count, at) = (count + 1, 0);
            }
            at += size;
        }
        count
    }

    /// Writes all blocks of a directory. Entries come in the order of [`super::order`].
    ///
    /// # Errors
    /// Never, for entries whose names are valid.
    pub fn write(
        &self,
        csum: &Csum,
        shape: Shape,
        (itself, parent): (Ino, Ino),
        entries: &[NewEntry<'_>],
        mut put: impl FnMut(&mut [u8]) -> Result<(), crate::Error>,
    ) -> Result<(), crate::Error> {
        let mut bytes = vec![0; self.block_size];
        let Some(nodes) = shape.nodes else {
            return self.linear(csum, shape.leaves, (itself, parent), entries, put);
        };
        // Where each leaf starts in `entries`, and the hash that the index has for it.
        let mut starts = vec![0];
        let mut at = 0;
        for (index, entry) in entries.iter().enumerate() {
            let size = self.format.entry_size(entry.name.len());
            if at + size > self.usable() {
                starts.push(index);
                at = 0;
            }
            at += size;
        }
        let hash = |start: usize| {
            let (first, before) = (self.hashing.of(entries[start].name).0, start.checked_sub(1));
            let continued = before.is_some_and(|before| self.hashing.of(entries[before].name).0 == first);
            first | u32::from(continued)
        };
        let leaves_at = 1 + nodes[0] + nodes[1];
        let lowest: Vec<DxEntry> = starts
            .iter()
            .enumerate()
            .map(|(leaf, start)| DxEntry {
                hash: if leaf == 0 { 0 } else { hash(*start) },
                block: FileBlock(leaves_at + leaf as u32),
            })
            .collect();
        let per_node = Kind::Node.limit(self.block_size, self.format.tail);
        let above = |below: &[DxEntry], first_block: u32| -> Vec<DxEntry> {
            let firsts = below.chunks(per_node).enumerate();
            firsts
                .map(|(n, part)| DxEntry { hash: part[0].hash, block: FileBlock(first_block + n as u32) })
                .collect()
        };
        let lower = if nodes[1] > 0 { above(&lowest, 1 + nodes[0]) } else { Vec::new() };
        let upper = if nodes[0] > 0 { above(&lower, 1) } else { Vec::new() };
        let top = [&upper, &lower, &lowest].into_iter().find(|level| !level.is_empty());
        let top = top.map_or(&[][..], Vec::as_slice);

        let info = RootInfo {
            hash_version: 1,
            info_length: INFO_LEN,
            indirect_levels: u8::from(nodes[0] > 0) + u8::from(nodes[1] > 0),
            unused_flags: 0,
        };
        let root = RootShape { itself, parent, filetype: self.format.filetype, tail: self.format.tail };
        let mut index = IndexMut::init_root(&mut bytes, &root, info, top[0].block);
        fill(&mut index, top)?;
        csum.set_htree_block(&mut bytes, Kind::Root.entries_offset(), itself, 0);
        put(&mut bytes)?;
        for level in
            [(nodes[0] > 0).then_some(&lower), (nodes[1] > 0).then_some(&lowest)].into_iter().flatten()
        {
            for part in level.chunks(per_node) {
                let mut index = IndexMut::init_node(&mut bytes, self.format.tail, part[0].block);
                fill(&mut index, part)?;
                csum.set_htree_block(&mut bytes, Kind::Node.entries_offset(), itself, 0);
                put(&mut bytes)?;
            }
        }
        for (leaf, start) in starts.iter().enumerate() {
            let end = starts.get(leaf + 1).copied().unwrap_or(entries.len());
            let mut block = DirBlockMut::init(&mut bytes, self.format);
            block.fill(entries[*start..end].iter().copied());
            csum.set_dir_block(&mut bytes, itself, 0);
            put(&mut bytes)?;
        }
        Ok(())
    }

    fn linear(
        &self,
        csum: &Csum,
        blocks: u32,
        (itself, parent): (Ino, Ino),
        entries: &[NewEntry<'_>],
        mut put: impl FnMut(&mut [u8]) -> Result<(), crate::Error>,
    ) -> Result<(), crate::Error> {
        let mut bytes = vec![0; self.block_size];
        let dot = |ino, name| NewEntry { ino, file_type: FileType::Directory, name };
        let mut left = entries;
        for block in 0..blocks {
            let mut filled = DirBlockMut::init(&mut bytes, self.format);
            let dots: &[NewEntry<'_>] =
                if block == 0 { &[dot(itself, b"."), dot(parent, b"..")] } else { &[] };
            let count = filled.fill(dots.iter().chain(left).copied()) - dots.len();
            left = &left[count..];
            csum.set_dir_block(&mut bytes, itself, 0);
            put(&mut bytes)?;
        }
        Ok(())
    }
}

fn fill(index: &mut IndexMut<'_>, entries: &[DxEntry]) -> Result<(), Corruption> {
    for (at, entry) in entries.iter().enumerate().skip(1) {
        if !index.insert(at, *entry) {
            let what = ext4_format::What::HtreeBlock;
            return Err(Corruption::new(what, "count", at as u64, entries.len() as u64));
        }
    }
    Ok(())
}
