//! ext4 volumes from a program: make them, read and write their files, check them. No mount, no root, no kernel
//! module; the format is the real one, journal included, which Linux and e2fsprogs read and write as well.
//!
//! ```
//! use rext4::{OpenOptions, device, fsck, mkfs};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Format. A device is an image file, a block device, memory, or a type of your own.
//! let disk = device::memory(64 << 20);
//! mkfs::format(&*disk, &mkfs::Options { label: b"demo".to_vec(), ..Default::default() })?;
//!
//! // Write and read.
//! let fs = OpenOptions::new().open_device(disk.clone())?;
//! fs.create_dir_all("/logs/today")?;
//! fs.write("/logs/today/first", "hello")?;
//! assert_eq!(fs.read("/logs/today/first")?, b"hello");
//! for file in fs.walk("/logs")? {
//!     let (path, node) = file?;
//!     println!("{} has {} bytes", path.display(), node.attributes()?.size);
//! }
//! fs.close()?;
//!
//! // Check.
//! let report = fsck::check(disk, &fsck::Options { force: true, ..Default::default() })?;
//! assert!(report.is_clean(), "{}", report.summary());
//! # Ok(())
//! # }
//! ```
//!
//! With image files it is shorter:
//!
//! ```
//! use rext4::{Filesystem, mkfs};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let image = folder.path().join("disk.img");
//! mkfs::format_file(&image, 64 << 20, &mkfs::Options::default())?;
//! let fs = Filesystem::open(&image)?;
//! fs.write("greeting", "hello")?;
//! fs.close()?;
//! assert!(rext4::check(&image)?.is_clean());
//! # Ok(())
//! # }
//! ```
//!
//! # Files
//!
//! [`Filesystem`] has the everyday operations by path, in the manner of [`std::fs`]: `read`, `write`, `copy`,
//! `create_dir_all`, `rename`, `remove_dir_all`, `symlink`, `read_dir`, `walk`, `metadata`, `set_xattr` and
//! others. Paths begin at the volume's root; symbolic links and `..` never lead out of the volume.
//!
//! Everything else is done with handles. A [`Node`] is a file of any type, a [`Dir`] a directory, an [`OpenFile`]
//! an open regular file, which implements [`Read`](std::io::Read), [`Write`](std::io::Write) and
//! [`Seek`](std::io::Seek) and reads and writes at positions. A handle keeps its file, even one that loses its
//! last name; dropped, it releases it. All of them can be used from any number of threads.
//!
//! ```
//! use std::io::{Read, Seek, SeekFrom, Write};
//! # use rext4::{OpenOptions, device, mkfs};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let disk = device::memory(64 << 20);
//! # mkfs::format(&*disk, &mkfs::Options::default())?;
//! # let fs = OpenOptions::new().open_device(disk)?;
//! let dir = fs.root()?.create_dir("data", 0o750)?;
//! let mut file = dir.create("table", 0o640)?;
//! file.write_all(b"one two three")?;
//! file.write_all_at(b"TWO", 4)?;
//! file.sync_data()?;
//! file.seek(SeekFrom::Start(4))?;
//! let mut word = [0; 3];
//! file.read_exact(&mut word)?;
//! assert_eq!(&word, b"TWO");
//! dir.rename("table", &fs.root()?, "moved", Default::default())?;
//! assert_eq!(file.attributes()?.size, 13);
//! # Ok(())
//! # }
//! ```
//!
//! # Opening
//!
//! [`Filesystem::open`] takes an image file or a block device for reading and writing, and locks it against other
//! users of this crate and, for a block device, against mounts. [`OpenOptions`] has the rest: read-only, an offset
//! and a length in the device, no recovery, the bound of the cache, the error policy, a clock, and
//! [`open_device`](OpenOptions::open_device) for any [`device::BlockDevice`].
//!
//! # Durability
//!
//! The journal works as the kernel's: after a crash the next opening, by this crate or by Linux, finds a consistent
//! volume. [`OpenFile::sync_all`] and [`OpenFile::sync_data`] make a file durable, [`Filesystem::sync`] everything;
//! without them changes are durable some seconds later. [`Filesystem::close`] writes everything and marks the
//! volume clean. Dropping the filesystem and its handles does the same, but can only log an error.
//!
//! # Rights
//!
//! Operations check no permissions, but for what an inode's own flags forbid (immutable, append-only), and what they
//! make belongs to root. Whoever acts for others asks first: [`Node::check_access`] answers whether some [`Credentials`] may read, write or execute, by mode and access control
//! list, and the operations whose names end in `_as` make files that belong to them.
//!
//! # Errors
//!
//! [`Error`] and [`MountError`] are typed, and convert into [`std::io::Error`] with the errno that a system call would
//! give:
//!
//! ```
//! # use rext4::{Error, OpenOptions, Posix, device, mkfs};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let disk = device::memory(64 << 20);
//! # mkfs::format(&*disk, &mkfs::Options::default())?;
//! # let fs = OpenOptions::new().open_device(disk)?;
//! match fs.read("nothing") {
//!     Err(Error::Posix(Posix::NotFound)) => {}
//!     other => panic!("{other:?}"),
//! }
//! let error = std::io::Error::from(fs.read("nothing").unwrap_err());
//! assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
//! # Ok(())
//! # }
//! ```
//!
//! # More
//!
//! The package's `examples/` copy a folder of the host into a volume, read a file out of one, print a tree as JSON, go
//! through a volume's whole life, and serve a volume over HTTP. What of the format is supported is listed in the
//! project's `docs/FORMAT.md`. The crate logs through [`tracing`](https://docs.rs/tracing).

pub mod device;
pub mod fsck;
pub mod mkfs;

#[doc(inline)]
pub use fs_core::{
    Access, Acl, Atime, Attr, Clock, Corruption, Credentials, DataStats, Dir, DirEntry, DirItem, Env, Error,
    ErrorPolicy, FallocateMode, FileType, Filesystem, Ino, MountError, MountOptions, Node, OpenFile,
    OpenFlags, OpenOptions, Posix, ReadDir, ReadPlan, RenameFlags, Result, SeekWhence, Segment, SetAttr,
    SetTime, SetXattr, Shutdown, StatFs, Time, TimesFrom, Timestamp, Walk, Workers, WriteKind, check_access,
    flag,
};
#[doc(inline)]
pub use fsck::check_file as check;

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
