//! Checks of what belongs to one file: its inode, the blocks of its tree, its names and its attributes.
//!
//! A check first verifies the fields that locate the checksum, then the checksum, then the rest, as the kernel
//! does: so a wrong checksum (`EBADMSG`) and other damage (`EUCLEAN`) get the kernel's error. Rules that need two
//! structures (an index and its child, a name and its inode) are the caller's.

use crate::corruption::{Corruption, What};
use crate::csum::Csum;
use crate::dirent::{DirBlock, DirFormat};
use crate::extent::{Bounds, Node};
use crate::htree::{Index, Kind};
use crate::inode::{Inode, InodeLayout};
use crate::num::{BlockNo, Ino};
use crate::{orphan, xattr};

/// Checks and decodes one record of the inode table.
///
/// # Errors
/// A wrong sum or a record that cannot be decoded.
pub fn inode(bytes: &[u8], csum: &Csum, layout: &InodeLayout, ino: Ino) -> Result<Inode, Corruption> {
    let size = usize::from(layout.inode_size);
    let record = bytes
        .get(..size)
        .ok_or_else(|| Corruption::new(What::Inode, "inode_size", bytes.len() as u64, size as u64))
        .map_err(|c| c.in_inode(ino))?;
    let inode = Inode::decode(record, layout).map_err(|c| c.in_inode(ino))?;
    csum.verify_inode(record, ino)?;
    Ok(inode)
}

/// Checks a block of an extent tree: header, sum, order, and that all it names lies on the volume.
/// `volume` is [`Bounds::of_volume`].
///
/// # Errors
/// The first rule that is broken.
pub fn extent_block(
    bytes: &[u8],
    csum: &Csum,
    volume: &Bounds,
    ino: Ino,
    generation: u32,
) -> Result<(), Corruption> {
    let node = Node::parse(bytes).map_err(|c| c.in_inode(ino))?;
    csum.verify_extent_block(bytes, ino, generation)?;
    node.check(volume, false).map_err(|c| c.in_inode(ino))
}

/// Checks a linear directory block: records, tail and sum.
///
/// # Errors
/// The first rule that is broken.
pub fn dir_block(
    bytes: &[u8],
    csum: &Csum,
    format: DirFormat,
    ino: Ino,
    generation: u32,
) -> Result<(), Corruption> {
    let block = DirBlock::new(bytes, format);
    block.check_tail().map_err(|c| c.in_inode(ino))?;
    csum.verify_dir_block(bytes, ino, generation)?;
    block.check().map_err(|c| c.in_inode(ino))
}

/// Checks an index block of a directory: sum, shape, limit and count.
///
/// # Errors
/// The first rule that is broken.
pub fn htree_block(
    bytes: &[u8],
    kind: Kind,
    csum: &Csum,
    ino: Ino,
    generation: u32,
) -> Result<(), Corruption> {
    csum.verify_htree_block(bytes, kind.entries_offset(), ino, generation)?;
    Index::parse(bytes, kind, csum.metadata()).map(|_| ()).map_err(|c| c.in_inode(ino))
}

/// Checks an attribute block that lies at `block`: header, entries and sum.
///
/// # Errors
/// The first rule that is broken.
pub fn xattr_block(bytes: &[u8], csum: &Csum, block: BlockNo) -> Result<(), Corruption> {
    xattr::block_header(bytes).map_err(|c| c.at_block(block))?;
    csum.verify_xattr_block(bytes, block)?;
    xattr::check(bytes, xattr::Home::Block).map_err(|c| c.at_block(block))
}

/// Checks a block of the orphan file, which is inode `ino` and lies at `block`: magic and sum.
///
/// # Errors
/// The first rule that is broken.
pub fn orphan_block(
    bytes: &[u8],
    csum: &Csum,
    block: BlockNo,
    ino: Ino,
    generation: u32,
) -> Result<(), Corruption> {
    orphan::check(bytes).map_err(|c| c.in_inode(ino).at_block(block))?;
    csum.verify_orphan_block(bytes, block, ino, generation)
}
