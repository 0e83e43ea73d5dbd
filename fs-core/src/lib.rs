//! ext4 in user space: reads and writes the real on-disk format, journal included, through a file, a block
//! device or a device of the caller's.
//!
//! ```
//! use std::sync::Arc;
//! use fs_core::{Filesystem, OpenOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let image = folder.path().join("disk.img");
//! # std::fs::File::create(&image)?.set_len(32 << 20)?;
//! # let device = blockdev::open(&image, &blockdev::OpenOptions::default())?;
//! # mkfs::format(&*device, &mkfs::Options::new(mkfs::Kind::Ext4, 1_700_000_000))?;
//! # drop(device);
//! let fs: Arc<Filesystem> = Filesystem::open(&image)?;
//!
//! // By handles ...
//! let dir = fs.root()?.create_dir("logs", 0o755)?;
//! let file = dir.create("a", 0o644)?;
//! file.write_at(b"hi", 0)?;
//! file.sync_data()?;
//!
//! // ... and by path, in the manner of std::fs.
//! assert_eq!(fs.read("/logs/a")?, b"hi");
//! fs.write("logs/b", "more")?;
//! for entry in fs.read_dir("logs")? {
//!     println!("{}", entry?.name().display());
//! }
//!
//! fs.close()?;
//!
//! let fs = OpenOptions::new().read_only(true).open(&image)?;
//! assert_eq!(fs.metadata("logs/b")?.size, 4);
//! # Ok(())
//! # }
//! ```
//!
//! # Handles
//!
//! [`Node`] is a file of any type, [`Dir`] a directory, [`OpenFile`] an open regular file. A handle keeps its
//! inode: a file that was removed can be read and written through its handles, and its space is free when the
//! last of them has been dropped. Files can be used from any number of threads.
//!
//! # Durability
//!
//! As with the kernel's ext4: [`OpenFile::sync_all`] and [`OpenFile::sync_data`] make a file durable,
//! [`Node::sync`] the names in a directory, [`Filesystem::sync`] everything. Without them changes become durable
//! some seconds later. After a crash the next opening replays the journal.
//! [`Filesystem::close`], or dropping the filesystem and all handles, leaves a clean volume.
//!
//! # Rights
//!
//! Operations do not check permissions, except for what an inode's own flags forbid (immutable, append-only).
//! A caller that acts for others checks with [`Node::check_access`], and passes their [`Credentials`] to the
//! operations whose names end in `_as`: what is made belongs to them.
//!
//! # Errors
//!
//! [`Error`] says what failed and where; [`Error::errno`], and the conversion into [`std::io::Error`], give what a
//! system call would.

mod access;
mod alloc;
mod background;
mod data;
mod dir;
mod error;
mod extent;
mod fs;
mod inode;
mod locks;
mod mmp;
mod mount;
mod node;
mod ops;
mod options;
mod path;
mod recovery;
mod remount;
mod rounds;
mod threads;
mod tx;
mod types;
mod volume;
mod xattr;

pub use access::{Access, check_access};
pub use blockdev::{BlockDevice, Clock, DeviceGeometry, Direct, Env, Timestamp, Workers};
pub use data::{DataStats, ReadPlan, Segment};
pub use dir::Item as DirItem;
pub use error::{Error, MountError, Posix, Result};
pub use ext4_format::inode::{FileType, Time, flag};
pub use ext4_format::{Corruption, Ino};
pub use fs::Filesystem;
pub use node::{Dir, Node, OpenFile};
pub use ops::{
    DirEntry, FallocateMode, OpenFlags, ReadDir, RenameFlags, SeekWhence, SetXattr, Shutdown, WriteKind,
};
pub use options::OpenOptions;
pub use path::Walk;
pub use types::{Atime, Attr, Credentials, ErrorPolicy, MountOptions, SetAttr, SetTime, StatFs, TimesFrom};
pub use volume::{MayResume, VOLUME_EVENTS};
pub use xattr::acl::Acl;

/// Parts of the engine, for this crate's own tests: no part of the API.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub mod alloc {
        pub use crate::alloc::*;
    }
    pub mod extent {
        pub use crate::extent::*;
    }
    pub mod tx {
        pub use crate::tx::*;
    }
    pub mod volume {
        pub use crate::volume::*;
    }
}
