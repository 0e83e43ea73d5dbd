//! The mounted filesystem: the parts side by side, and what ties them to the journal.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, Weak};

use blockdev::FileDevice;
use ext4_format::Tid;
use jbd2::{CommitObserver, Handle};

use crate::alloc::Allocator;
use crate::background::Background;
use crate::data::DataPath;
use crate::dir;
use crate::extent::MapCtx;
use crate::inode::{Inode, Orphans, Reclaim, Table};
use crate::locks::RankedMutex;
use crate::mmp::MmpGuard;
use crate::remount;
use crate::volume::Volume;
use crate::xattr::XattrCache;

/// What is called when space has run out ([`Filesystem::before_no_space`]).
pub(crate) type Hint = Box<dyn Fn() + Send + Sync>;

/// A mounted ext4 volume. Its files are reached by handles ([`crate::Node`], [`crate::Dir`],
/// [`crate::OpenFile`]) and by path; all of it may be used from any number of threads.
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
    /// Inodes on their way out.
    pub(crate) reclaim: Reclaim,
    /// See [`Filesystem::before_no_space`].
    pub(crate) hint: OnceLock<Hint>,
    /// The device's claim, which the end gives up.
    pub(crate) unlock: OnceLock<Arc<FileDevice>>,
    /// Whether there is nothing to close: not mounted yet, or closed.
    pub(crate) closed: AtomicBool,
    pub(crate) background: Background,
    /// The claim on a volume with multi-mount protection, while it is mounted for writing.
    pub(crate) claim: Option<Arc<MmpGuard>>,
}

impl Filesystem {
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
