//! Inodes in memory: what is on disk (`Core`), what is on its way there (`IoState`), and the
//! table that finds, writes and forgets them.

mod dir_state;
mod io_state;
pub mod orphan;
pub mod reclaim;
mod table;

use std::sync::atomic::AtomicBool;

use ext4_format::inode::{FileType, Inode as DiskInode, flag};
use ext4_format::{Ino, Tid};

use crate::error::{Posix, Result};
use crate::extent::MapRoot;
use crate::locks::{Rank, RankedRwLock};

pub use dir_state::{DirState, Listed, Listing};
pub use io_state::*;
pub use orphan::Orphans;
pub use reclaim::Reclaim;
pub use table::{Departure, Table};

/// A live inode. At most one exists for an inode number.
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// Its generation, constant while it lives.
    pub generation: u32,
    /// Its type, constant while it lives.
    pub kind: FileType,
    /// Names of a directory; size and content of a file. Rank 30, keyed by inode number.
    pub lock: RankedRwLock<()>,
    /// What is or will be on disk. Rank 60, keyed by inode number.
    pub core: RankedRwLock<Core>,
    /// File data in flight.
    pub io: IoState,
    /// What is remembered of a directory's entries.
    pub dir: DirState,
    /// Made without a name, and free to get one; a file whose last name was removed is not.
    pub(crate) may_get_a_name: AtomicBool,
}

/// The part of an inode that its on-disk form is made from.
pub struct Core {
    /// The on-disk fields. `block` and `blocks` are taken from `map` when it is written; `size`
    /// is the size on disk, which trails `size` below while an extending write is in flight.
    pub disk: DiskInode,
    /// The block map.
    pub map: MapRoot,
    /// The size that callers see, in bytes.
    pub size: u64,
    /// The transaction that last changed the inode.
    pub sync_tid: Option<Tid>,
    /// The transaction that last changed what fdatasync promises (size, map).
    pub datasync_tid: Option<Tid>,
    /// Whether the inode is on the orphan list, and where.
    pub orphan: Option<OrphanSlot>,
}

/// Where an orphan is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OrphanSlot {
    /// In the orphan file: which of its blocks, which entry of that.
    File(usize, usize),
    /// In the chain that starts in the superblock.
    Chain,
}

impl Inode {
    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind == FileType::Regular
    }

    /// Refuses what is no regular file.
    pub fn expect_file(&self) -> Result<()> {
        match self.kind {
            FileType::Regular => Ok(()),
            FileType::Directory => Err(Posix::IsDirectory.into()),
            _ => Err(Posix::Invalid.into()),
        }
    }

    /// `earlier` is for an inode that comes from the disk: the newest transaction in which an earlier
    /// life of it in memory may have changed it. The next fsync has to answer for that life, too.
    fn new(ino: Ino, kind: FileType, disk: DiskInode, block_size: u32, earlier: Option<Tid>) -> Inode {
        let key = u64::from(ino.get());
        Inode {
            ino,
            generation: disk.generation,
            kind,
            lock: RankedRwLock::keyed(Rank::Inode, key, ()),
            core: RankedRwLock::keyed(
                Rank::Map,
                key,
                Core {
                    map: MapRoot::new(disk.block, disk.has(flag::EXTENTS), disk.blocks),
                    size: disk.size,
                    disk,
                    sync_tid: earlier,
                    datasync_tid: earlier,
                    orphan: None,
                },
            ),
            io: IoState::new(block_size, earlier.is_some()),
            dir: DirState::default(),
            may_get_a_name: AtomicBool::new(false),
        }
    }
}
