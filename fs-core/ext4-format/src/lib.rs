//! Floor 0: what the bytes of ext4 and jbd2 mean. No IO, no clock, no threads, no unsafe.

pub mod corruption;
pub mod num;

pub use corruption::{Corruption, Place, What};
pub use num::{BlockNo, FileBlock, GroupNo, Ino, Tid};
