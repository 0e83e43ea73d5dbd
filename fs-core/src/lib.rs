//! Floors 3-5: what POSIX wants of an ext4 volume. No FUSE type lives here.

pub mod sync;
