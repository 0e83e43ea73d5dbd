//! The operations, one verb a file: take the locks in order, start a handle, call the parts,
//! finish.

mod bmap;
mod copy;
mod create;
mod evict;
mod fallocate;
mod flags;
mod fsync;
mod getattr;
mod label;
mod link;
mod lookup;
mod mkdir;
mod mknod;
mod names;
mod open;
mod read;
mod readdir;
mod readlink;
mod rename;
mod rmdir;
mod seek;
mod setattr;
mod stream;
mod symlink;
mod tmpfile;
mod truncate;
mod unlink;
mod write;
mod xattr;

pub use fallocate::FallocateMode;
pub use flags::Shutdown;
pub use open::OpenFlags;
pub use readdir::{DirEntry, ReadDir};
pub use rename::RenameFlags;
pub use seek::SeekWhence;
pub use write::WriteKind;
pub use xattr::SetXattr;
