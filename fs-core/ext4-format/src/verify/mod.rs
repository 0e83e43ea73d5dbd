//! Stateless checks of one structure at a time. Each takes the bytes and their context and returns the first
//! broken rule.

mod tree;
mod volume;

pub use tree::{dir_block, extent_block, htree_block, inode, orphan_block, xattr_block};
pub use volume::{block_bitmap, group_desc, inode_bitmap, mmp};
