//! Layer 0: the on-disk format of ext4 and jbd2. Layout, geometry, checksums, edits of one block, and the
//! verifiers. No IO, no clock, no threads, no unsafe.

pub mod bitmap;
mod bits;
pub mod casefold;
pub mod corruption;
pub mod crc;
pub mod csum;
pub mod dirent;
pub mod encryption;
pub mod expand;
pub mod extent;
pub mod features;
pub mod geometry;
pub mod group_desc;
mod halves;
pub mod hash;
pub mod htree;
pub mod indirect;
pub mod inode;
pub mod jbd2;
pub mod locate;
pub mod mmp;
pub mod num;
pub mod orphan;
pub mod quota;
pub mod superblock;
pub mod verify;
pub mod xattr;

pub use corruption::{Corruption, Fault, Place, What};
pub use num::{BlockNo, FileBlock, GroupNo, Ino, Tid};
