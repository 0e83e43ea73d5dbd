//! The mounted filesystem: the parts side by side, and what ties them to the journal.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Instant;

use ext4_format::{Ino, Tid};
use jbd2::{CommitObserver, Handle};

use crate::alloc::Allocator;
use crate::background::Background;
use crate::data::DataPath;
use crate::deletions::Deletions;
use crate::dir;
use crate::extent::MapCtx;
use crate::inode::{Inode, Orphans, Table};
use crate::mmp::MmpGuard;
use crate::remount;
use crate::sync::RankedMutex;
use crate::volume::Volume;
use crate::xattr::XattrCache;

/// A mounted ext4 volume. Its methods are the operations of POSIX, one file each in `ops`; they
/// may be called from any number of threads.
pub struct Filesystem {
    pub(crate) vol: Arc<Volume>,
    pub(crate) alloc: Arc<Allocator>,
    pub(crate) inodes: Arc<Table>,
    pub(crate) orphans: Arc<Orphans>,
    pub(crate) data: Arc<DataPath>,
    /// What the volume says about its directories.
    pub(crate) dirs: dir::Settings,
    pub(crate) xattrs: XattrCache,
    /// Serializes renames that move a directory. Rank 20.
    pub(crate) renaming: RankedMutex<()>,
    /// Inodes that were busy when the kernel forgot them, and whether they have no name.
    pub(crate) leaving: RankedMutex<BTreeMap<Ino, bool>>,
    /// Inodes that lost their last name lately, and when.
    pub(crate) unlinked: RankedMutex<VecDeque<(Instant, Ino)>>,
    pub(crate) deletions: Deletions,
    pub(crate) background: Background,
    /// The claim on a volume with multi-mount protection, while it is mounted for writing.
    pub(crate) claim: Option<Arc<MmpGuard>>,
}

impl Filesystem {
    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Ino {
        Ino::ROOT
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.vol.block_size()
    }

    /// Whether the volume can be changed.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.vol.writable().is_ok()
    }

    /// What the map of `inode` needs to know of the volume.
    pub(crate) fn map_ctx(&self, inode: &Inode) -> MapCtx<'_> {
        MapCtx { vol: &self.vol, alloc: &self.alloc, ino: inode.ino, generation: inode.generation }
    }
}

/// Listens to the journal on behalf of the parts, which the journal must not keep alive.
pub(crate) struct Observer {
    pub vol: Weak<Volume>,
    pub alloc: Weak<Allocator>,
    pub data: Weak<DataPath>,
}

impl CommitObserver for Observer {
    fn closing(&self, tid: Tid, handle: &Handle<'_>) -> jbd2::Result<()> {
        if let Some(data) = self.data.upgrade() {
            data.closing(tid);
        }
        match self.alloc.upgrade() {
            Some(alloc) => alloc.closing(handle),
            None => Ok(()),
        }
    }

    fn committed(&self, tid: Tid) {
        if let Some(alloc) = self.alloc.upgrade() {
            alloc.committed(tid);
        }
        if let Some(data) = self.data.upgrade() {
            data.committed(tid);
        }
    }

    fn resuming(&self) -> jbd2::Result<()> {
        self.vol.upgrade().map_or(Ok(()), |vol| remount::resuming(&vol))
    }

    fn aborted(&self, cause: &jbd2::Error) {
        if let Some(vol) = self.vol.upgrade() {
            tracing::error!(%cause, "the journal was aborted; the volume is read-only from here on");
            vol.make_read_only();
        }
    }
}
