//! Floors 3-5: what POSIX wants of an ext4 volume. No FUSE type lives here.

pub mod alloc;
mod background;
pub mod data;
mod deletions;
pub mod dir;
pub mod error;
pub mod extent;
pub mod fs;
pub mod inode;
mod mmp;
pub mod mount;
pub mod ops;
mod recovery;
mod rounds;
pub mod sync;
mod threads;
pub mod tx;
pub mod types;
pub mod volume;
pub mod xattr;

pub use data::{ReadPlan, Segment};
pub use deletions::Arrival;
pub use dir::Item as DirItem;
pub use error::{Error, Posix, Result};
pub use ext4_format::Ino;
pub use ext4_format::inode::{FileType, Time, flag};
pub use fs::Filesystem;
pub use mount::MountError;
pub use ops::{FallocateMode, OpenFlags, RenameFlags, SeekWhence, SetXattr, Shutdown, WriteMode};
pub use types::{Atime, Attr, Caller, Entry, ErrorPolicy, MountOptions, OpenId, SetAttr, SetTime, StatFs};
