//! Stateless checks of one structure at a time: after a read, before a write, and by fsck. Each takes the
//! bytes and what must be known about them, and says what is wrong first.

mod volume;

pub use volume::{block_bitmap, group_desc, inode_bitmap, mmp};
