//! Stateless checks of one structure at a time: after a read, before a write, and by fsck. Each takes the
//! bytes and what must be known about them, and says what is wrong first.

mod tree;
mod volume;

pub use tree::{dir_block, extent_block, htree_block, inode, orphan_block, xattr_block};
pub use volume::{block_bitmap, group_desc, inode_bitmap, mmp};
