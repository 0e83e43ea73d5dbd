//! Making things durable.
//!
//! A file: its dirty data go out, its completed list is converted, then the transaction that
//! last changed it commits, if it has not yet. Plain overwrites have no transaction: a flush of
//! the device makes them durable, unless one has come after them already.

use std::sync::Arc;

use ext4_format::Ino;
use jbd2::mutants::{Mutant, is};

use crate::data::By;
use crate::error::Result;
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::types::OpenId;

impl Filesystem {
    /// Makes the content of `ino` durable, and with it its attributes unless `data_only`.
    ///
    /// # Errors
    /// Those of [`Filesystem::fsync_opened`], for a caller who has not opened the file.
    pub fn fsync(&self, ino: Ino, data_only: bool) -> Result<()> {
        self.fsync_opened(ino, OpenId::NOBODY, data_only)
    }

    /// The same on behalf of an opening.
    ///
    /// # Errors
    /// A failure of this call, or the last one to write the file's data before it: that is told to
    /// each opening once, and to later ones if nobody was told yet.
    pub fn fsync_opened(&self, ino: Ino, opening: OpenId, data_only: bool) -> Result<()> {
        self.vol.alive()?;
        let inode = self.inodes.get(ino)?;
        let alive = self.vol.journal.is_aborted().is_none();
        let synced = self.sync_inode(&inode, data_only);
        let synced = synced.map_err(|e| if alive { e.at_first_sight() } else { e });
        let failure = inode.io.lock().failures.tell(opening);
        synced?;
        failure.map_or(Ok(()), Err)
    }

    /// Makes the names in the directory `ino` durable.
    ///
    /// # Errors
    /// Those of the journal.
    pub fn fsyncdir(&self, ino: Ino, data_only: bool) -> Result<()> {
        self.fsync(ino, data_only)
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// The first failure, the rest was tried nevertheless; or data of any file that were lost since the last
    /// call. Their own fsync tells of it, too.
    pub fn syncfs(&self) -> Result<()> {
        let synced = self.sync_all();
        let lost = self.data.lost.lock().take();
        synced?;
        lost.map_or(Ok(()), Err)
    }

    pub(crate) fn sync_all(&self) -> Result<()> {
        self.vol.alive()?;
        if self.vol.changeable().is_err() {
            return self.left_behind();
        }
        for inode in self.data.dirty.all() {
            self.data.flush_all(&inode);
        }
        let converted = self.data.convert_all(By::Fsync);
        self.vol.journal.commit_running()?;
        self.data.make_all_durable()?;
        converted
    }

    /// What a volume that cannot be written has to say to whoever wants something durable: nothing can have
    /// been changed on one that was mounted read-only, anything on one whose journal was aborted later.
    fn left_behind(&self) -> Result<()> {
        self.vol.journal.is_aborted().map_or(Ok(()), |cause| Err(cause.into()))
    }

    fn sync_inode(&self, inode: &Arc<Inode>, data_only: bool) -> Result<()> {
        if self.vol.changeable().is_err() {
            return self.left_behind();
        }
        // The names are a directory's content: to fdatasync it is to fsync it.
        let data_only = data_only && !inode.is_dir();
        // A failure is kept with the inode, and reported from there.
        let _ = self.data.flush(inode, 0..u64::MAX);
        if !is(Mutant::FsyncSkipsCompleted) {
            self.data.convert(inode, By::Fsync)?;
        }
        if !data_only {
            self.data.store_times(inode)?;
        }
        let tid = {
            let core = inode.core.read();
            if data_only { core.datasync_tid } else { core.sync_tid }
        };
        if let Some(tid) = tid
            && !self.vol.journal.is_committed(tid)
        {
            self.vol.journal.commit(tid)?;
        }
        self.data.make_durable(inode)
    }
}
