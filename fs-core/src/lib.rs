//! Floors 3-5: what POSIX wants of an ext4 volume. No FUSE type lives here.

pub mod alloc;
pub mod data;
pub mod error;
pub mod extent;
pub mod inode;
pub mod sync;
pub mod tx;
pub mod types;
pub mod volume;
