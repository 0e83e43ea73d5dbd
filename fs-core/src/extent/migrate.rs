//! From an extent tree to the pointers of ext2 and ext3, for files small enough that no block changes hands.

use ext4_format::extent as codec;
use ext4_format::indirect::{self, DIRECT};
use ext4_format::{BlockNo, FileBlock};

use super::MapRoot;
use crate::error::{Posix, Result};

/// The map of `root` by pointers in the inode itself.
///
/// # Errors
/// `NotSupported` unless the tree is empty or one written extent within the first twelve blocks of the file
/// and the first 2^32 of the volume: what the kernel's ext4 converts.
pub fn to_pointers(root: &MapRoot) -> Result<MapRoot> {
    let node = codec::Node::parse(&root.block)?;
    let mut block = [0; 60];
    let fits = match (node.depth(), node.len(), node.extent(0)) {
        (0, 0, _) => true,
        (0, 1, Some(extent)) if !extent.unwritten => set(&mut block, extent),
        _ => false,
    };
    if fits { Ok(MapRoot::new(block, false, root.sectors)) } else { Err(Posix::NotSupported.into()) }
}

fn set(block: &mut [u8], codec::Extent { first: FileBlock(first), len, start, .. }: codec::Extent) -> bool {
    let end = first.saturating_add(len);
    let fits = end <= DIRECT && start.0 + u64::from(len) <= 1 << 32;
    fits && (first..end).all(|slot| {
        let target = BlockNo(start.0 + u64::from(slot - first));
        indirect::set_pointer(block, slot, Some(target))
    })
}
