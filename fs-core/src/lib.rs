//! Floors 3-5: what POSIX wants of an ext4 volume. No FUSE type lives here.

pub mod alloc;
mod background;
pub mod data;
pub mod dir;
pub mod error;
pub mod extent;
pub mod fs;
pub mod inode;
pub mod mount;
pub mod ops;
pub mod sync;
pub mod tx;
pub mod types;
pub mod volume;
pub mod xattr;

pub use fs::Filesystem;
